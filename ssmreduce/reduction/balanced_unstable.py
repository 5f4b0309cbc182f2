"""Reduce the stable part of a system and put the unstable one back beside it.

‖G - G_r‖∞ = ‖G_s - G_s,r‖∞: bound, DC gain and measured error are those of the stable part.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.linalg

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import NoConvergenceError, OrderError
from ssmreduce.gramians.batch import map_systems
from ssmreduce.hankel import error_bounds
from ssmreduce.reduction.balanced_diagonal import balanced_system
from ssmreduce.reduction.balanced_system import BalancedSystem, check_still_stable
from ssmreduce.reduction.order import FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.selection import embedding
from ssmreduce.reduction.unstable import UnstableSplit, split_unstable
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.interconnect import parallel
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap

_LARGEST_CONDITION = float(np.finfo(np.float64).eps) ** -0.5
"""Condition at which separating the two parts costs half of the digits."""

_SPREAD = (
    "Poles of the stable part lie on the boundary for the size of the others: try a lower order, or a "
    "`margin` that counts them as unstable."
)


def check_split(split: UnstableSplit) -> None:
    """Raise `NoConvergenceError` where separating the parts costs more than half of the digits."""
    if split.condition > _LARGEST_CONDITION:
        raise NoConvergenceError(
            f"separating {split.unstable_count} unstable poles from the others has condition "
            f"{split.condition:.2g}; expected at most {_LARGEST_CONDITION:.2g}. A multiple pole near the "
            "stability boundary may lie on both sides of it: pass a `margin` such as 1e-6."
        )


class BalancedUnstable:
    """A system with unstable poles, of which the stable part is balanced.

    The unstable part is kept as it is, or as `trimmed` has left it.
    """

    def __init__(
        self,
        original: System,
        split: UnstableSplit,
        unstable: System,
        trimmed: Reduction | None = None,
    ) -> None:
        self.original = original
        self._split = split
        self._unstable = unstable
        self._trimmed = trimmed
        self._kept = unstable if trimmed is None else trimmed.system
        self.unstable = self._kept.order
        self.stable = None if split.stable is None else balanced_system(split.stable)
        values = np.zeros(0) if self.stable is None else self.stable.hsv
        self.hsv = np.concatenate([values, np.zeros(original.real_order - values.size)])
        self.rank = 0 if self.stable is None else self.stable.rank

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut the stable part: fixed orders count all states, other rules see the stable part's σ."""
        if self.stable is None or self._stable_order(rule) == 0:
            return self._without_stable_states(rule, matched=False)
        inner = self.stable.truncate(self._stable_rule(rule))
        return self._joined(inner)

    def match_dc(self, rule: OrderRule) -> Reduction:
        """As `truncate`, keeping the DC gain of the stable part."""
        if self.stable is None or self._stable_order(rule) == 0:
            return self._without_stable_states(rule, matched=True)
        inner = self.stable.match_dc(self._stable_rule(rule))
        return self._joined(inner)

    def available(self, order: int) -> int:
        """`order`, or what the unstable states and the rank of the stable part allow."""
        if self.stable is None or order <= self.unstable:
            return self.unstable
        return self.unstable + self.stable.available(order - self.unstable)

    def budget_values(self) -> HostArray:
        """Those of the stable part."""
        return np.zeros(0) if self.stable is None else self.stable.budget_values()

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
        stable, balanced = self._split.stable, self.stable
        if stable is None or balanced is None:
            self._stable_order(rule)
            if self._trimmed is None or self._kept is self._unstable:
                return self._unchanged()
            return self._trimmed_alone(self._trimmed)
        balanced = balanced.standard if matched else balanced
        D = stable.dc_gain() if matched else stable.D
        n = stable.real_order
        empty = np.zeros((n, 0), dtype=self._split.left[0].dtype)
        inner = Reduction(
            original=stable,
            system=_static(stable, D),
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

    def _trimmed_alone(self, trimmed: Reduction) -> Reduction:
        W, T, slot_map = _way(self.original, trimmed)
        return replace(
            self._unchanged(),
            system=trimmed.system,
            order=self.unstable,
            real_order=W.shape[1],
            left=self._split.left[1] @ W,
            right=self._split.right[1] @ T,
            slot_map=slot_map,
        )

    def _unchanged(self) -> Reduction:
        order = self.original.real_order
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
            stable_part=None if self.stable is None else self.stable.unchanged(),
        )

    def _joined(self, inner: Reduction) -> Reduction:
        """The reduced stable part together with the unstable one."""
        split, kept = self._split, self._kept
        if inner.system is inner.original and kept is self._unstable:
            return self._unchanged()
        W_kept, T_kept, map_kept = _way(self._unstable, self._trimmed)
        W, T, slot_map = _way(inner.original, inner)
        left = np.concatenate([split.left[1] @ W_kept, split.left[0] @ W], axis=1)
        right = np.concatenate([split.right[1] @ T_kept, split.right[0] @ T], axis=1)
        real_order = W_kept.shape[1]
        hsv = np.zeros(self.hsv.size)
        hsv[: inner.hsv.size] = inner.hsv
        both = None
        if map_kept is not None and slot_map is not None:
            both = _side_by_side(map_kept, slot_map)
        system = parallel(kept, inner.system)
        check_still_stable(system, _SPREAD, kept=self.unstable)
        return replace(
            inner,
            original=self.original,
            system=system,
            order=kept.order + int(inner.order),
            real_order=real_order + int(inner.real_order),
            wanted_order=real_order + int(inner.wanted_order),
            hsv=hsv,
            left=left,
            right=right,
            slot_map=both,
            unstable=self.unstable,
            stable_part=inner,
        )


Reducible = BalancedSystem | BalancedUnstable
"""One system (no batch axes) that is ready for any number of cuts."""


def beside_unstable(system: System, margin: float) -> list[Reducible]:
    """Balance the stable part of every system of a batch, and keep the unstable one."""

    def one(single: System) -> Reducible:
        split = split_unstable(single, margin)
        check_split(split)
        if split.unstable is None:
            return balanced_system(single)
        return BalancedUnstable(single, split, split.unstable)

    return map_systems(system, one)


def _way(part: System, reduction: Reduction | None) -> tuple[HostArray, HostArray, SlotMap | None]:
    """W, T and slot map of a part; those of the identity where it was not cut."""
    if reduction is not None and reduction.left is not None and reduction.right is not None:
        return reduction.left, reduction.right, reduction.slot_map
    if isinstance(part, DiagonalStateSpace):
        columns, slot_map = embedding(part, np.arange(part.order))
        return columns, columns, slot_map
    return np.eye(part.order), np.eye(part.order), None


def _static(stable: System, D: HostArray) -> System:
    """The system without states that is its feedthrough D, of the kind of `stable`."""
    B, C = np.zeros((0, stable.inputs)), np.zeros((stable.outputs, 0))
    if isinstance(stable, DiagonalStateSpace):
        return stable.replace(eigenvalues=np.zeros(0), B=B, C=C, D=D)
    return stable.replace(A=np.zeros((0, 0)), B=B, C=C, D=D)


def _side_by_side(first: SlotMap, second: SlotMap) -> SlotMap:
    return SlotMap(
        np.concatenate([first.eigenvalues, second.eigenvalues]),
        scipy.linalg.block_diag(first.vectors, second.vectors),
        scipy.linalg.block_diag(first.inverse, second.inverse),
        np.concatenate([first.is_pair, second.is_pair]),
        max(first.condition, second.condition),
    )
