"""The balanced systems of a batch, cut to one rule: each alone, or as channels in stacked arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import flag
from ssmreduce.errors import OrderError
from ssmreduce.gramians.batch import map_parts
from ssmreduce.gramians.channels import is_channel_batch
from ssmreduce.reduction.balanced_channels import truncate_channels
from ssmreduce.reduction.balanced_diagonal import BalancedDiagonal
from ssmreduce.reduction.balanced_unstable import Reducible
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
from ssmreduce.systems.diagonal import System

Cut = Callable[[OrderRule], Reduction]
"""`truncate` or `match_dc` of one balanced system."""


@dataclass(frozen=True, eq=False)
class BalancedBatch:
    """A system on the host and its balanced parts, one or those of a batch in C order, ready for cuts."""

    system: System
    parts: Sequence[Reducible]

    def budget_values(self) -> list[HostArray]:
        """For each system, the values by which a `TotalBudget` shares out states."""
        return [part.budget_values() for part in self.parts]

    def truncate(
        self, order: int | OrderRule, *, common_order: bool = False, match_dc: bool = False
    ) -> Reduction:
        """See `Balancing.truncate`, and `Balancing.match_dc`; channels are truncated in stacked arrays."""
        common_order, rule = flag(common_order, "common_order"), as_rule(order)
        rules: Sequence[OrderRule] = [rule] * len(self.parts)
        if isinstance(rule, TotalBudget):
            rules = self._shared_out(rule, common_order)
        cuts = [part.match_dc if match_dc else part.truncate for part in self.parts]
        if self.system.D.ndim == 2:
            if isinstance(rule, MeasuredError):
                return smallest_cut(self.parts[0], rule, cuts[0])
            return cuts[0](rules[0])
        parts = self._cut_each(rules, cuts, not match_dc)
        if common_order:
            largest = max(int(part.order) for part in parts)
            common = [FixedOrder(part.available(largest)) for part in self.parts]
            if common != rules:
                parts = self._cut_each(common, cuts, not match_dc)
        return assemble(self.system, parts)

    def _shared_out(self, rule: TotalBudget, common_order: bool) -> Sequence[OrderRule]:
        """The rule for each system."""
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
        return map_parts(self.system, _cut_one, self.parts, rules, cuts, done)


def _cut_one(
    part: Reducible, rule: OrderRule, cut: Cut, done: Reduction | None = None
) -> Reduction:
    if done is not None:
        return done
    return smallest_cut(part, rule, cut) if isinstance(rule, MeasuredError) else cut(rule)
