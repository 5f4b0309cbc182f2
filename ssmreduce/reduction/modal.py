"""Modal truncation: keep the dominant modes of a system, poles untouched.

With eigenvectors scaled so that w_kᴴ v_k = 1, c_k = C v_k and b_k = w_kᴴ B, a mode contributes at most

    ‖c_k‖‖b_k‖/|Re λ_k| (continuous)  or  ‖c_k‖‖b_k‖/(1 - |λ_k|) (discrete)

to the H-infinity norm: its dominance. Those of the removed modes add up to an error bound. The kept
modes are not computed from eigenvectors but from an ordered Schur form and a Sylvester equation (see
`ssmreduce.reduction.decoupling`): O(n³). Nearly defective poles have large and opposite residues, and
defective ones none that are finite: their dominance is infinite, and they come first. A cut between them is
refused where it would cost more than half of the digits.

Reference: Varga, Math. Modelling of Systems 1 (1995).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._lapack import safe_unit
from ssmreduce._schur import SchurForm
from ssmreduce.errors import NoConvergenceError, OrderError
from ssmreduce.gramians.batch import map_parts, map_systems
from ssmreduce.reduction.balanced_system import check_still_stable
from ssmreduce.reduction.batch import assemble
from ssmreduce.reduction.decoupling import Decoupling, decouple
from ssmreduce.reduction.order import (
    ErrorBound,
    FixedOrder,
    OrderRule,
    as_rule,
    divided,
)
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.selection import choose_modes, select_states
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace

_EPS = float(np.finfo(np.float64).eps)

_LARGEST_CONDITION = 1.0 / _EPS
"""Condition of a separation at which half of the digits are left: errors grow with its square root."""


_NEARLY_DEFECTIVE = 1e-5
"""Least |yᴴ x| below which a separation of modes may be refused."""


@any_library()
def modal_truncation(system: System, order: int | OrderRule) -> Reduction:
    """Keep the modes of largest dominance ‖c_k‖‖b_k‖/|Re λ_k|, or ‖c_k‖‖b_k‖/(1 - |λ_k|).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        With any leading batch axes. Modes that are not stable are kept.
    order : int or OrderRule
        For a `StateSpace` exactly this many states; for a diagonal system as for `select_states`.
        Rules take half the dominance for Hankel singular values, and keep defective poles. Where
        they would separate a conjugate pair of a real system, or equal poles, they keep both.

    Returns
    -------
    Reduction
        ``error_bound`` is the sum of the removed dominances, for a dense system of those that the
        removed part has on its own: a multiple pole shares its residue out differently then. A
        dense system comes back in real (complex) Schur form. The bound is inf where defective poles
        were removed.

    Raises
    ------
    OrderError, ArgumentError
        If the order is not positive, above the system's own, below the number of unstable states,
        or separates a conjugate pair of a real dense system: the message names the nearest orders.
    NoConvergenceError
        If an order as a number separates poles that agree to rounding, or nearly so and are nearly
        defective.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Cost O(n³) for a dense system, by an ordered Schur form and a Sylvester equation, and O(n (m +
    p)) for a diagonal one.

    References
    ----------
    Varga, Mathematical Modelling of Systems 1 (1995); Green and Limebeer, Linear Robust Control,
    Prentice Hall 1995, section 9.2.

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
    modes = map_systems(system, _Modes)
    rules = divided(rule, [m.finite_scores() for m in modes], [m.leading for m in modes])
    return assemble(system, map_parts(system, _Modes.cut, modes, rules))


class _Modes:
    """Schur form of one dense system and the dominance of the modes along its diagonal.

    Attributes
    ----------
    unstable : int
        How many modes are not stable. They come first.
    leading : int
        How many have an infinite dominance: those, and defective poles, which follow.
    """

    def __init__(self, system: StateSpace) -> None:
        self._system = system
        self._host = system.to_host()
        host = self._host
        self._schur = SchurForm.of(host.A, host.B, host.C, time=host.time)
        scores, stable, separate = _dominance(self._host, self._schur)
        if separate < _NEARLY_DEFECTIVE:  # rounding may decide whether modes can be separated
            self._schur = SchurForm.of(host.A, host.B, host.C, exact=True)
            scores, stable, _ = _dominance(self._host, self._schur)
        # Both of a pair score the same up to rounding: exactly so that they stay together.
        first = self._schur.pairs()
        scores[first] = scores[first + 1] = np.maximum(scores[first], scores[first + 1])
        stable[first] = stable[first + 1] = stable[first] & stable[first + 1]
        self._ranking = np.lexsort((-scores, stable))
        self._scores = scores[self._ranking]
        self.unstable = int(np.count_nonzero(~stable))
        self.leading = int(np.count_nonzero(np.isinf(scores)))

    def finite_scores(self) -> HostArray:
        """Dominance of the modes that have one, descending."""
        return self._scores[self.leading :]

    def cut(self, rule: OrderRule) -> Reduction:
        """Keep the modes that `rule` chooses, and those that go with them; a fixed order exactly."""
        n, exact = self._host.order, isinstance(rule, FixedOrder)
        leading = self.unstable if exact else self.leading
        wanted = choose_modes(rule, self._scores, "hinf", leading)
        if wanted > n > 0:
            raise OrderError(
                f"`order` is {wanted} but the system has {n} states; expected at most {n}."
            )
        order, finite = min(wanted, n), self.finite_scores()
        while (order := self._whole_pairs(order, exact=exact)) < n:
            try:
                reduction = self._cut_to(order, wanted)
            except NoConvergenceError:
                if exact:
                    raise
            else:
                bound = float(np.asarray(reduction.error_bound))
                if not isinstance(rule, ErrorBound) or rule.is_met(finite / 2.0, bound):
                    return reduction
            order += 1
        return self._report(self._system, n, wanted, 0.0)

    def _report(self, reduced: StateSpace, order: int, wanted: int, bound: float) -> Reduction:
        scores, finite = self._scores, self.finite_scores()
        floor = scores.size * _EPS * finite[0] if finite.size else 0.0
        return Reduction(
            original=self._system,
            system=reduced,
            order=order,
            real_order=order,
            wanted_order=wanted,
            rank=int(np.count_nonzero(scores > floor)),
            hsv=np.zeros(0),
            error_bound=bound,
            method="modal truncation",
            unstable=self.unstable,
            scores=scores,
        )

    def _cut_to(self, order: int, wanted: int) -> Reduction:
        """Keep the leading modes."""
        host, n = self._host, self._host.order
        kept = np.zeros(n, dtype=bool)
        kept[self._ranking[:order]] = True
        groups = decouple(self._schur, kept)
        if groups.condition > _LARGEST_CONDITION:
            raise NoConvergenceError(
                f"separating {order} of {n} modes from the others has condition {groups.condition:.2g}; "
                f"expected at most {_LARGEST_CONDITION:.2g}: that costs more than half of the digits, since "
                "poles of the two groups are near to each other for the size of `A`. Try another order."
            )
        W, T = groups.left[0], groups.right[0]
        reduced = host.replace(A=groups.first, B=adjoint(W) @ host.B, C=host.C @ T)
        check_still_stable(
            reduced,
            "Rounding of the size of `A` decides on which side of the boundary a pole lies: try other "
            "units for the states.",
            kept=self.unstable,
        )
        reduction = self._report(reduced, order, wanted, self._bound(groups, order))
        return replace(reduction, left=W, right=T)

    def _bound(self, groups: Decoupling, order: int) -> float:
        """Sum of the dominances of the removed part; as ranked where that agrees to half of the digits.

        How much of a multiple pole goes with which of its eigenvectors is open until the parts are separated.
        """
        host = self._host
        B, C = adjoint(groups.left[1]) @ host.B, host.C @ groups.right[1]
        rest = StateSpace(groups.second, B, C, time=host.time)
        scores, _, _ = _dominance(rest, SchurForm.of(groups.second, B, C, time=host.time))
        found, ranked = float(scores.sum()), float(self._scores[order:].sum())
        return ranked if abs(found - ranked) <= np.sqrt(_EPS) * ranked < np.inf else found

    def _whole_pairs(self, wanted: int, *, exact: bool) -> int:
        """`wanted`, or one more where that keeps both poles of a pair."""
        kept = set(self._ranking[:wanted].tolist())
        if not any((k in kept) != (k + 1 in kept) for k in self._schur.pairs().tolist()):
            return wanted
        if exact:
            choices = f"{wanted - 1} or {wanted + 1}" if wanted > 1 else "2"
            raise OrderError(
                f"`order` is {wanted}, which separates a conjugate pair of poles of a real system; "
                f"expected {choices}. Ask for that, or use an order rule, which keeps whole pairs."
            )
        return wanted + 1


def _dominance(host: StateSpace, schur: SchurForm) -> tuple[HostArray, HostArray, float]:
    """Dominance of every pole in the order of the Schur form, which are stable, and the least |yᴴ x|.

    Left and right eigenvectors y and x have length 1. Dominance is infinite where a pole is not stable, or
    defective to working precision.
    """
    if not schur.triangle.size:
        return np.zeros(0), np.zeros(0, dtype=bool), 1.0
    stable = schur.stable(host.time)
    inputs, outputs = safe_unit(host.B), safe_unit(host.C)
    B, C_adjoint = schur.ports(host.B / inputs, adjoint(host.C / outputs))
    T, turn = schur.triangle, np.eye(len(schur.triangle))
    if not np.iscomplexobj(T):
        T, turn = scipy.linalg.rsf2csf(T, turn)
    B, C = adjoint(turn) @ B, adjoint(C_adjoint) @ turn
    distance = host.time.distance(T.diagonal())
    # Of a triangular matrix LAPACK returns eigenvectors in the order of its diagonal.
    _, left, right = scipy.linalg.eig(T, left=True)
    overlap = np.abs(np.sum(left.conj() * right, axis=0))
    least, defective = float(overlap.min()), overlap <= len(T) * _EPS
    if np.any(defective):
        # Right for simple poles; parts of multiple ones may be ranked otherwise than they should.
        overlap[defective] = 1.0
        rows = (adjoint(left) @ B) / overlap[:, None]
    else:
        # Of a multiple pole the left eigenvectors need not be the dual basis of the right ones.
        rows = scipy.linalg.solve_triangular(right, B)
    c, b = np.linalg.norm(C @ right, axis=0), np.linalg.norm(rows, axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        dominance = b * (c / distance) * inputs * outputs
    return np.where(stable & ~defective, dominance, np.inf), stable, least


def _renamed(reduction: Reduction) -> Reduction:
    """The same selection under the name of modal truncation."""
    parts = tuple(_renamed(part) for part in reduction.parts)
    return replace(reduction, method="modal truncation", parts=parts)
