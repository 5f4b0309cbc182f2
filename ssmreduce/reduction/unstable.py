"""Unstable systems: split them in a stable and an unstable part, and reduce the stable one.

G = G_s + G_u, where the poles of G_u have Re λ ≥ -margin (continuous) or |λ| ≥ 1 - margin (discrete time).
Dense systems are split by an ordered Schur form and a Sylvester equation (`decoupling`), diagonal
ones by picking states. No reduction touches G_u, so ‖G - G_r‖∞ = ‖G_s - G_s,r‖∞ keeps the bound of
the stable part. Digits are lost with the condition of the split, which is reported: a margin can
put it where the poles have a gap.

References: Kågström and Van Dooren, Linear Algebra Appl. 126 (1990); Varga, Proc. CDC 2001.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import OrderError, ShapeError
from ssmreduce.hankel import error_bounds, state_count
from ssmreduce.reduction.decoupling import decouple, schur_form
from ssmreduce.reduction.diagonal import balanced_system
from ssmreduce.reduction.order import FixedOrder, OrderRule
from ssmreduce.reduction.reciprocal import dense_reciprocal, diagonal_reciprocal
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.selection import embedding, stability_distance, subsystem
from ssmreduce.reduction.single import BalancedSystem, Reducible
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap
from ssmreduce.time_domain import Discrete


@dataclass(frozen=True, eq=False)
class UnstableSplit:
    """A system as the sum of a stable and an unstable part.

    Attributes
    ----------
    stable : StateSpace, DiagonalStateSpace or None
        Part with the stable poles, and D; None if there are none.
    unstable : StateSpace, DiagonalStateSpace or None
        Part with the other poles and no feedthrough (but D where there is no stable part); None if
        there are none.
    condition : float
        Condition number of the change of states that separates the two; 1 for a diagonal system.
    left, right : tuple of two (n, k) arrays
        W and T of the stable and of the unstable part, with Wᴴ T = I for each and 0 across; in real
        states where a diagonal system outputs a real part.

    Examples
    --------
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.reduction.unstable import split_unstable
    >>> system = StateSpace(
    ...     [[1.0, 1.0], [0.0, -1.0]], [[1.0], [1.0]], [[1.0, 0.0]], time=Continuous()
    ... )
    >>> split = split_unstable(system)
    >>> split.stable.poles().tolist(), split.unstable.poles().tolist()
    ([-1.0], [1.0])
    """

    stable: System | None
    unstable: System | None
    condition: float
    left: tuple[HostArray, HostArray] = field(repr=False)
    right: tuple[HostArray, HostArray] = field(repr=False)

    @property
    def unstable_count(self) -> int:
        """Stored states of the unstable part."""
        return 0 if self.unstable is None else self.unstable.order


def split_unstable(system: System, margin: float = 0.0) -> UnstableSplit:
    """Split G = G_s + G_u at Re λ = -margin (continuous) or |λ| = 1 - margin (discrete time).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes.
    margin : float
        Poles within this distance of the stability boundary count as unstable, and so does
        what lies on the line itself. Poles of a dense system are taken to lie on it if they do up to
        rounding, 4 eps ‖A‖_F; multiple ones spread further and need a margin.

    Returns
    -------
    UnstableSplit
        The parts are in NumPy arrays at double precision; real if the system is.

    Raises
    ------
    OrderError
        If the margin is not a nonnegative number (below 1 in discrete time).
    ShapeError
        If the system has batch axes.
    NoConvergenceError
        If poles on both sides of the line agree to rounding.

    Notes
    -----
    Cost O(n³) for a dense system; none for a diagonal one.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.unstable import split_unstable
    >>> system = DiagonalStateSpace([0.5, 1.0], [[1.0], [2.0]], [[1.0, 1.0]], time=Discrete())
    >>> split_unstable(system).unstable.eigenvalues.tolist()
    [1.0]
    """
    check_system(system)
    if system.batch_shape:
        raise ShapeError(
            f"`system` has batch axes {system.batch_shape}; expected a single system. "
            "Index it first: system[0]."
        )
    margin = _checked_margin(margin, system)
    host = system.to_host()
    if isinstance(host, DiagonalStateSpace):
        return _split_diagonal(host, margin)
    return _split_dense(host, margin)


class BalancedUnstable(Reducible):
    """A system with unstable poles, of which the stable part is balanced."""

    def __init__(self, original: System, split: UnstableSplit) -> None:
        self.original = original
        self.unstable = split.unstable_count
        self._split = split
        self._stable = None if split.stable is None else balanced_system(split.stable)
        values = np.zeros(0) if self._stable is None else self._stable.hsv
        self.hsv = np.concatenate([values, np.zeros(state_count(original) - values.size)])
        self.rank = 0 if self._stable is None else self._stable.rank

    @property
    def balanced_part(self) -> BalancedSystem | None:
        """The balanced stable part; None if there is none."""
        return self._stable

    def truncate(self, rule: OrderRule, *, balancing_free: bool = False) -> Reduction:
        """Cut the stable part: fixed orders count all states, other rules see the stable part's σ."""
        if self._stable is None or self._stable_order(rule) == 0:
            return self._without_stable_states(rule, matched=False)
        inner = self._stable.truncate(self._stable_rule(rule), balancing_free=balancing_free)
        return self._joined(inner)

    def match_dc(self, rule: OrderRule, *, balancing_free: bool = False) -> Reduction:
        """As `truncate`, keeping the DC gain of the stable part."""
        if self._stable is None or self._stable_order(rule) == 0:
            return self._without_stable_states(rule, matched=True)
        inner = self._stable.match_dc(self._stable_rule(rule), balancing_free=balancing_free)
        return self._joined(inner)

    def available(self, order: int) -> int:
        """`order`, or what the unstable states and the rank of the stable part allow."""
        if self._stable is None or order <= self.unstable:
            return self.unstable
        return self.unstable + self._stable.available(order - self.unstable)

    def budget_values(self) -> HostArray:
        """Those of the stable part."""
        return np.zeros(0) if self._stable is None else self._stable.budget_values()

    def _stable_order(self, rule: OrderRule) -> int | None:
        """What a fixed order leaves for the stable part; None for other rules."""
        if not isinstance(rule, FixedOrder):
            return None
        if rule.order < self.unstable:
            raise OrderError(
                f"`order` is {rule.order} but the system has {self.unstable} unstable states, which "
                f"are kept; expected at least {self.unstable}. Ask for that or more."
            )
        left = rule.order - self.unstable
        if isinstance(self.original, StateSpace) and left > self.rank:
            raise OrderError(
                f"`order` is {rule.order} but the system has {self.unstable} unstable states and a "
                f"stable part of numerical rank {self.rank}; expected at most "
                f"{self.unstable + self.rank}. Ask for that, or use an order rule."
            )
        return left

    def _stable_rule(self, rule: OrderRule) -> OrderRule:
        return FixedOrder(rule.order - self.unstable) if isinstance(rule, FixedOrder) else rule

    def _without_stable_states(self, rule: OrderRule, *, matched: bool) -> Reduction:
        """Keep the unstable states and of the stable part its feedthrough, or its DC gain."""
        stable = self._split.stable
        if stable is None:
            self._stable_order(rule)
            return self._unchanged()
        assert self._stable is not None
        balanced = self._stable.standard if matched else self._stable
        D = dc_gain(stable) if matched else stable.D
        n = state_count(stable)
        empty = np.zeros((n, 0), dtype=self._split.left[0].dtype)
        inner = Reduction(
            original=stable,
            system=_resting(stable, D),
            order=0,
            real_order=0,
            wanted_order=0,
            rank=balanced.rank,
            hsv=balanced.hsv,
            error_bound=float(error_bounds(balanced.hsv)[0]),
            left=empty,
            right=empty,
            slot_map=SlotMap(empty[0], empty[:0], empty[:0], np.zeros(0, dtype=bool), 1.0),
            method="DC matching" if matched else "balanced truncation",
        )
        return self._joined(inner)

    def _unchanged(self) -> Reduction:
        order = state_count(self.original)
        return Reduction(
            original=self.original,
            system=self.original,
            order=self.original.order,
            real_order=order,
            wanted_order=order,
            rank=self.rank,
            hsv=self.hsv,
            error_bound=0.0,
            unstable=self.unstable,
        )

    def _joined(self, inner: Reduction) -> Reduction:
        """The reduced stable part together with the unstable one."""
        split, unstable = self._split, self._split.unstable
        assert unstable is not None
        if inner.system is inner.original:
            return self._unchanged()
        assert inner.left is not None
        assert inner.right is not None
        left = np.concatenate([split.left[1], split.left[0] @ inner.left], axis=1)
        right = np.concatenate([split.right[1], split.right[0] @ inner.right], axis=1)
        kept = split.left[1].shape[1]
        slot_map = None
        if isinstance(unstable, DiagonalStateSpace):
            assert inner.slot_map is not None
            _, own = embedding(unstable, np.arange(unstable.order))
            slot_map = _side_by_side(own, inner.slot_map)
        hsv = np.zeros(self.hsv.size)
        hsv[: inner.hsv.size] = inner.hsv
        return replace(
            inner,
            original=self.original,
            system=_sum(unstable, inner.system, states=int(inner.order)),
            order=unstable.order + int(inner.order),
            real_order=kept + int(inner.real_order),
            wanted_order=kept + int(inner.wanted_order),
            hsv=hsv,
            left=left,
            right=right,
            slot_map=slot_map,
            unstable=self.unstable,
            stable_part=inner,
        )


def dc_gain(system: System) -> HostArray:
    """G at zero frequency of a system on the host: C (s - A)⁻¹ B + D of its standard form."""
    standard = system.to_standard()
    if isinstance(standard, DiagonalStateSpace):
        return np.asarray(diagonal_reciprocal(standard).D)
    return np.asarray(dense_reciprocal(standard).D)


def _split_diagonal(host: DiagonalStateSpace, margin: float) -> UnstableSplit:
    is_stable = stability_distance(host) > margin
    stable, unstable = np.flatnonzero(is_stable), np.flatnonzero(~is_stable)
    bases = embedding(host, stable)[0], embedding(host, unstable)[0]
    return UnstableSplit(
        stable=subsystem(host, stable, keep_D=True) if stable.size else None,
        unstable=subsystem(host, unstable, keep_D=not stable.size) if unstable.size else None,
        condition=1.0,
        left=bases,
        right=bases,
    )


def _split_dense(host: StateSpace, margin: float) -> UnstableSplit:
    schur = schur_form(host.A)
    poles = schur.poles
    distance = 1.0 - np.abs(poles) if isinstance(host.time, Discrete) else -poles.real
    is_stable = distance > margin + schur.rounding
    groups = decouple(schur, is_stable)

    def part(A: HostArray, W: HostArray, T: HostArray, *, keep_D: bool) -> StateSpace | None:
        if not len(A):
            return None
        return StateSpace(
            A,
            adjoint(W) @ host.B,
            host.C @ T,
            host.D if keep_D else np.zeros_like(host.D),
            time=host.time,
            read_after_update=host.read_after_update,
        )

    return UnstableSplit(
        stable=part(groups.first, groups.left[0], groups.right[0], keep_D=True),
        unstable=part(groups.second, groups.left[1], groups.right[1], keep_D=not np.any(is_stable)),
        condition=groups.condition,
        left=groups.left,
        right=groups.right,
    )


def _checked_margin(margin: float, system: System) -> float:
    limit = 1.0 if isinstance(system.time, Discrete) else np.inf
    valid = isinstance(margin, int | float | np.floating) and not isinstance(margin, bool)
    if not valid or not 0.0 <= margin < limit:
        below = " below 1" if limit == 1.0 else ""
        raise OrderError(
            f"`margin` is {margin!r}; expected a nonnegative number{below}: how far inside the "
            "stability boundary poles still count as unstable. Try 1e-6."
        )
    return float(margin)


def _resting(stable: System, D: HostArray) -> System:
    """A system that is its feedthrough, with one state that neither responds nor is seen."""
    B, C = np.zeros((1, stable.inputs)), np.zeros((stable.outputs, 1))
    pole = 0.0 if isinstance(stable.time, Discrete) else -1.0
    if isinstance(stable, DiagonalStateSpace):
        return DiagonalStateSpace(
            [pole],
            B,
            C,
            D,
            time=stable.time,
            real_output=stable.real_output,
            read_after_update=stable.read_after_update,
        )
    return StateSpace(
        [[pole]], B, C, D, time=stable.time, read_after_update=stable.read_after_update
    )


def _sum(unstable: System, stable: System, states: int) -> System:
    """Both parts side by side, with the leading `states` states of the stable one, and its D."""
    B = np.concatenate([unstable.B, stable.B[:states]])
    C = np.concatenate([unstable.C, stable.C[:, :states]], axis=1)
    if isinstance(unstable, DiagonalStateSpace) and isinstance(stable, DiagonalStateSpace):
        return DiagonalStateSpace(
            np.concatenate([unstable.eigenvalues, stable.eigenvalues[:states]]),
            B,
            C,
            stable.D,
            time=stable.time,
            real_output=stable.real_output,
            read_after_update=stable.read_after_update,
        )
    assert isinstance(unstable, StateSpace)
    assert isinstance(stable, StateSpace)
    return StateSpace(
        scipy.linalg.block_diag(unstable.A, stable.A[:states, :states]),
        B,
        C,
        stable.D,
        time=stable.time,
        read_after_update=stable.read_after_update,
    )


def _side_by_side(first: SlotMap, second: SlotMap) -> SlotMap:
    return SlotMap(
        np.concatenate([first.eigenvalues, second.eigenvalues]),
        scipy.linalg.block_diag(first.vectors, second.vectors),
        scipy.linalg.block_diag(first.inverse, second.inverse),
        np.concatenate([first.is_pair, second.is_pair]),
        max(first.condition, second.condition),
    )
