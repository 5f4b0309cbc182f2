"""The balanced systems of a batch, cut to one rule: each alone, or as channels in stacked arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import flag
from ssmreduce.errors import OrderError
from ssmreduce.gramians.batch import batch_indices, in_batch_shape, map_indices, map_systems
from ssmreduce.gramians.channels import is_channel_batch
from ssmreduce.gramians.frequency_weighting import FrequencyWeighting
from ssmreduce.reduction.balanced_channels import truncate_channels
from ssmreduce.reduction.balanced_diagonal import (
    BalancedDiagonal,
    balanced_system,
    balanced_systems,
)
from ssmreduce.reduction.balanced_system import Reducible
from ssmreduce.reduction.balanced_unstable import BalancedUnstable, check_split
from ssmreduce.reduction.batch import assemble
from ssmreduce.reduction.measured_order import smallest_cut
from ssmreduce.reduction.order import (
    FixedOrder,
    MeasuredError,
    OrderRule,
    TotalBudget,
    as_rule,
    divided,
)
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.scaling import warn_if_badly_scaled
from ssmreduce.reduction.unstable import split_unstable
from ssmreduce.systems.diagonal import System

Cut = Callable[[OrderRule], Reduction]
"""`truncate` or `match_dc` of one balanced system."""


class BalancedBatch:
    """A system on the host and its balanced parts, one or those of a batch in C order, ready for cuts."""

    def __init__(self, system: System, parts: Sequence[Reducible]) -> None:
        self.system = system
        self.parts = parts

    @classmethod
    def of(
        cls, system: System, horizon: int | None = None, weighting: FrequencyWeighting | None = None
    ) -> BalancedBatch:
        """Balance every system of a batch."""
        return cls(system, balanced_systems(system, horizon, weighting))

    @classmethod
    def beside_unstable(cls, system: System, margin: float) -> BalancedBatch:
        """Balance the stable part of every system, and keep the unstable one."""
        return cls(system, map_systems(system, lambda single: _keeping_unstable(single, margin)))

    def warn_if_badly_scaled(self) -> None:
        """Issue a `ScalingWarning` where gains of inputs or outputs are far below the largest one."""
        for part in self.parts:
            balanced = part.balanced_part
            if balanced is not None and balanced.factors is not None:
                warn_if_badly_scaled(balanced.original, balanced.factors)

    def values(self) -> tuple[HostArray, int | HostArray, int | HostArray]:
        """Hankel singular values, rank and number of unstable states, in the shape of the batch."""
        found = [(part.hsv, part.rank, part.unstable) for part in self.parts]
        shape = self.system.batch_shape
        if not shape:
            return found[0]
        hsv, rank, unstable = (in_batch_shape(list(x), shape) for x in zip(*found, strict=True))
        return hsv, rank, unstable

    def budget_values(self) -> list[HostArray]:
        """For each system, the values by which a `TotalBudget` shares out states."""
        return [part.budget_values() for part in self.parts]

    def truncate(self, order: int | OrderRule, *, common_order: bool = False) -> Reduction:
        """See `Balancing.truncate`; channels are cut in stacked arrays."""
        return self._cut(order, common_order, [part.truncate for part in self.parts], together=True)

    def match_dc(self, order: int | OrderRule, *, common_order: bool = False) -> Reduction:
        """See `Balancing.match_dc`."""
        return self._cut(
            order, common_order, [part.match_dc for part in self.parts], together=False
        )

    def _cut(
        self, order: int | OrderRule, common_order: bool, cuts: Sequence[Cut], *, together: bool
    ) -> Reduction:
        common_order = flag(common_order, "common_order")
        rules = self._rules(as_rule(order), common_order)
        if not self.system.batch_shape:
            return _cut_one(self.parts[0], rules[0], cuts[0])
        parts = self._cut_each(rules, cuts, together)
        if common_order:
            largest = max(int(part.order) for part in parts)
            common = [FixedOrder(part.available(largest)) for part in self.parts]
            parts = self._cut_each(common, cuts, together)
        return assemble(self.system, parts)

    def _rules(self, rule: OrderRule, common_order: bool) -> Sequence[OrderRule]:
        """The rule for each system."""
        if not isinstance(rule, TotalBudget):
            return [rule] * len(self.parts)
        if common_order:
            raise OrderError(
                "`order` is a TotalBudget but `common_order` is True; expected one of the two: a "
                "budget gives each system its own order. Pass an int for a common one."
            )
        return divided(rule, self.budget_values(), [part.unstable for part in self.parts])

    def _cut_each(
        self, rules: Sequence[OrderRule], cuts: Sequence[Cut], together: bool
    ) -> list[Reduction]:
        done: list[Reduction | None] = [None] * len(rules)
        balanced = [part for part in self.parts if isinstance(part, BalancedDiagonal)]
        measured = any(isinstance(rule, MeasuredError) for rule in rules)
        together = together and not measured and is_channel_batch(self.system)
        if together and len(balanced) == len(rules):
            done = truncate_channels(balanced, rules)
        every = zip(self.parts, rules, cuts, done, strict=True)
        tasks = dict(zip(batch_indices(self.system), every, strict=True))

        def one(index: tuple[int, ...]) -> Reduction:
            part, rule, cut, ready = tasks[index]
            return ready or _cut_one(part, rule, cut)

        return map_indices(self.system, one)


def _cut_one(part: Reducible, rule: OrderRule, cut: Cut) -> Reduction:
    return smallest_cut(part, rule, cut) if isinstance(rule, MeasuredError) else cut(rule)


def _keeping_unstable(system: System, margin: float) -> Reducible:
    split = split_unstable(system, margin)
    check_split(split)
    if split.unstable is None:
        return balanced_system(system)
    return BalancedUnstable(system, split, split.unstable)
