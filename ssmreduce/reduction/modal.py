"""Modal truncation: keep the dominant modes of a system, poles untouched.

With eigenvectors scaled so that w_kᴴ v_k = 1, c_k = C v_k and b_k = w_kᴴ B, a mode contributes at most

    ‖c_k‖‖b_k‖/|Re λ_k| (continuous)  or  ‖c_k‖‖b_k‖/(1 - |λ_k|) (discrete)

to the H-infinity norm: its dominance. Those of the removed modes add up to an error bound. The kept
modes are not computed from eigenvectors but from an ordered Schur form and a Sylvester equation (see
`ssmreduce.reduction.decoupling`): O(n³). Nearly defective poles have large and opposite residues; they
come first, and where a cut goes between them the bound says that it means nothing.

Reference: Varga, Math. Modelling of Systems 1 (1995).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg

from ssmreduce._boundary import any_library
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import OrderError
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.decoupling import SchurForm, decouple, schur_form
from ssmreduce.reduction.order import FixedOrder, OrderRule, TotalBudget, as_rule, divided
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.selection import choose_modes, select_states
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


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
        ``error_bound`` is the sum of the removed dominances. A dense system comes back in real
        (complex) Schur form.

    Raises
    ------
    OrderError
        If the order is not positive, above the system's own, below the number of unstable states,
        or separates a conjugate pair of a real dense system: the message names the orders beside it.
    NoConvergenceError
        If kept and removed poles agree to rounding.

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
            rank=int(np.sum(scores > n * np.finfo(np.float64).eps * self._largest())),
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
        W, T = groups.left[0], groups.right[0]
        reduced = StateSpace(
            groups.first,
            adjoint(W) @ host.B,
            host.C @ T,
            host.D,
            time=host.time,
            read_after_update=host.read_after_update,
        )
        return replace(unchanged, system=reduced, left=W, right=T)

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
    # Of a triangular matrix LAPACK returns eigenvectors in the order of its diagonal.
    _, vectors = np.linalg.eig(T)
    c = np.linalg.norm((host.C @ Q) @ vectors, axis=0)
    b = np.linalg.norm(scipy.linalg.solve_triangular(vectors, adjoint(Q) @ host.B), axis=1)
    distance = 1.0 - np.abs(poles) if isinstance(host.time, Discrete) else -poles.real
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance > schur.rounding, b * (c / distance), np.inf)


def _renamed(reduction: Reduction) -> Reduction:
    """The same selection under the name of modal truncation."""
    parts = tuple(_renamed(part) for part in reduction.parts)
    return replace(reduction, method="modal truncation", parts=parts)
