"""Modal truncation: keep the dominant modes of a system, poles untouched.

With eigenvectors scaled so that w_kᴴ v_k = 1, c_k = C v_k and b_k = w_kᴴ B, a mode contributes at most

    ‖c_k‖‖b_k‖/|Re λ_k| (continuous)  or  ‖c_k‖‖b_k‖/(1 - |λ_k|) (discrete)

to the H-infinity norm: its dominance. Those of the removed modes add up to an error bound. The kept
modes are not computed from eigenvectors but from an ordered Schur form and a Sylvester equation (see
`ssmreduce.reduction.decoupling`): O(n³). Nearly defective poles have large and opposite residues, and
defective ones none that are finite; they come first. A cut between them is refused where that would cost
more than half of the digits.

Reference: Varga, Math. Modelling of Systems 1 (1995).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg

from ssmreduce._boundary import any_library
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError, OrderError
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.decoupling import (
    LARGEST_CONDITION,
    Decoupling,
    SchurForm,
    decouple,
    schur_form,
)
from ssmreduce.reduction.order import (
    ErrorBound,
    FixedOrder,
    OrderRule,
    TotalBudget,
    as_rule,
    divided,
)
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.selection import choose_modes, select_states
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_EPS = float(np.finfo(np.float64).eps)


@any_library()
def modal_truncation(system: System, order: int | OrderRule) -> Reduction:
    """Keep the modes of largest dominance ‖c_k‖‖b_k‖/|Re λ_k|, or ‖c_k‖‖b_k‖/(1 - |λ_k|).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        With any leading batch axes. Modes that are not stable are kept.
    order : int or OrderRule
        For a `StateSpace` exactly this many states; for a diagonal system as for `select_states`.
        Rules take half the dominance for Hankel singular values. Where they would separate a
        conjugate pair of a real system, they keep both.

    Returns
    -------
    Reduction
        ``error_bound`` is the sum of the removed dominances, for a dense system of those that the removed
        part has on its own: a multiple pole shares its residue out differently then. A dense system comes
        back in real (complex) Schur form.

    Raises
    ------
    OrderError
        If the order is not positive, above the system's own, below the number of unstable states,
        or separates a conjugate pair of a real dense system: the message names the orders beside it.
    NoConvergenceError
        If kept and removed poles agree to rounding, or nearly so and are nearly defective.
    UnreachableToleranceError
        If an `ErrorBound` is missed, since poles are nearly defective.

    Examples
    --------
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.reduction.modal import modal_truncation
    >>> system = StateSpace(
    ...     [[-1.0, 1.0], [0.0, -9.0]], [[1.0], [1.0]], [[1.0, 0.0]], time=Continuous()
    ... )
    >>> reduction = modal_truncation(system, 1)
    >>> reduction.system.poles().tolist(), reduction.verify() <= reduction.error_bound
    ([-1.0], True)
    """
    check_system(system)
    rule = as_rule(order)
    if isinstance(system, DiagonalStateSpace):
        return _renamed(select_states(system, rule, "hinf"))
    modes = [_Modes(single) for single in single_systems(system)]
    rules = divided(rule, [m.stable_scores() for m in modes], [m.unstable for m in modes])
    is_exact = isinstance(rule, FixedOrder | TotalBudget)
    return assemble(
        system, [m.cut(own, exact=is_exact) for m, own in zip(modes, rules, strict=True)]
    )


class _Modes:
    """Schur form of one dense system and the dominance of the modes along its diagonal."""

    def __init__(self, system: StateSpace) -> None:
        self._system = system
        self._host = system.to_host()
        self._schur = schur_form(self._host.A)
        self._scores = _dominance(self._host, self._schur)
        if not np.iscomplexobj(self._schur.triangle):
            # Both of a pair score the same up to rounding: exactly so that they stay together.
            first = np.flatnonzero(self._schur.triangle.diagonal(-1))
            both = np.maximum(self._scores[first], self._scores[first + 1])
            self._scores[first] = self._scores[first + 1] = both
        self._ranking = np.argsort(-self._scores, kind="stable")
        self.unstable = int(np.sum(np.isinf(self._scores)))

    def stable_scores(self) -> HostArray:
        """Dominance of the stable modes, descending."""
        return self._scores[self._ranking[self.unstable :]]

    def cut(self, rule: OrderRule, *, exact: bool) -> Reduction:
        """Keep the modes that `rule` chooses: `exact` refuses to widen it to whole pairs."""
        host, scores = self._host, self._scores[self._ranking]
        n = host.order
        wanted = choose_modes(rule, scores, "hinf", self.unstable)
        if wanted > n > 0:
            raise OrderError(
                f"`order` is {wanted} but the system has {n} states; expected at most {n}."
            )
        order = self._whole_pairs(min(wanted, n), exact=exact)
        unchanged = Reduction(
            original=self._system,
            system=self._system,
            order=order,
            real_order=order,
            wanted_order=wanted,
            rank=int(np.sum(scores > n * _EPS * self._largest())),
            hsv=np.zeros(0),
            error_bound=float(np.sum(scores[order:])),
            method="modal truncation",
            unstable=self.unstable,
            scores=scores,
        )
        if order == n:
            return unchanged
        kept = np.zeros(n, dtype=bool)
        kept[self._ranking[:order]] = True
        groups = decouple(self._schur, kept)
        if groups.condition > LARGEST_CONDITION:
            raise NoConvergenceError(
                f"separating {order} of {n} modes from the others has condition {groups.condition:.2g}; "
                f"expected at most {LARGEST_CONDITION:.2g}: poles of the two groups are nearly one defective "
                "pole. Try another order."
            )
        bound = self._bound(rule, groups, float(np.sum(scores[order:])))
        W, T = groups.left[0], groups.right[0]
        reduced = StateSpace(
            groups.first,
            adjoint(W) @ host.B,
            host.C @ T,
            host.D,
            time=host.time,
            read_after_update=host.read_after_update,
        )
        return replace(unchanged, system=reduced, left=W, right=T, error_bound=bound)

    def _bound(self, rule: OrderRule, groups: Decoupling, ranked: float) -> float:
        """Sum of the dominances of the removed part; `ranked` where that is the same to half of the digits.

        How much of a multiple pole goes with which of its eigenvectors is open until the parts are separated.
        """
        host, poles = self._host, SchurForm(groups.second, np.eye(len(groups.second)))
        B, C = adjoint(groups.left[1]) @ host.B, host.C @ groups.right[1]
        found = float(np.sum(_dominance(StateSpace(poles.triangle, B, C, time=host.time), poles)))
        if abs(found - ranked) <= np.sqrt(_EPS) * ranked:
            return ranked
        if isinstance(rule, ErrorBound):
            rule.check(self.stable_scores() / 2.0, found)
        return found

    def _largest(self) -> float:
        stable = self.stable_scores()
        return float(stable[0]) if stable.size else 0.0

    def _whole_pairs(self, wanted: int, *, exact: bool) -> int:
        """`wanted`, or one more where that keeps both poles of a pair."""
        if wanted == len(self._ranking) or np.iscomplexobj(self._schur.triangle):
            return wanted
        first = np.flatnonzero(self._schur.triangle.diagonal(-1))
        kept = set(self._ranking[:wanted].tolist())
        if not any((k in kept) != (k + 1 in kept) for k in first.tolist()):
            return wanted
        if exact:
            choices = f"{wanted - 1} or {wanted + 1}" if wanted > 1 else "2"
            raise OrderError(
                f"`order` is {wanted}, which separates a conjugate pair of poles of a real system; "
                f"expected {choices}. Ask for that, or use an order rule, which keeps whole pairs."
            )
        return wanted + 1


def _dominance(host: StateSpace, schur: SchurForm) -> HostArray:
    """Dominance of every pole in the order of the Schur form; inf where it is not stable."""
    T, Q = schur.triangle, schur.vectors
    if not T.size:
        return np.zeros(0)
    if not np.iscomplexobj(T):
        T, Q = scipy.linalg.rsf2csf(T, Q)
    poles = T.diagonal()
    distance = 1.0 - np.abs(poles) if isinstance(host.time, Discrete) else -poles.real
    # Of a triangular matrix LAPACK returns eigenvectors in the order of its diagonal.
    _, left, right = scipy.linalg.eig(T, left=True)
    overlap = np.abs(np.sum(left.conj() * right, axis=0))
    defective = overlap <= len(T) * _EPS
    if np.any(defective):
        overlap[defective] = 1.0
        rows = (adjoint(Q @ left) @ host.B) / overlap[:, None]
    else:
        # Of a multiple pole the left eigenvectors need not be the dual basis of the right ones.
        rows = scipy.linalg.solve_triangular(right, adjoint(Q) @ host.B)
    c, b = np.linalg.norm((host.C @ Q) @ right, axis=0), np.linalg.norm(rows, axis=1)
    stable = distance > schur.rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        dominance = np.where(stable, b * (c / distance), np.inf)
    # The residue of a defective pole is not finite: above all of the others, whatever rounding made of it.
    above = np.linalg.norm(host.B) * np.linalg.norm(host.C) / distance[stable].min(initial=np.inf)
    dominance[defective & stable] = above / _EPS**2
    return dominance


def _renamed(reduction: Reduction) -> Reduction:
    """The same selection under the name of modal truncation."""
    parts = tuple(_renamed(part) for part in reduction.parts)
    return replace(reduction, method="modal truncation", parts=parts)
