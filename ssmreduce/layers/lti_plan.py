"""Decide about the cut of a linear layer: cut it, write it as the layer would hold it, measure that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import (
    OrderError,
    SSMReduceError,
    UnreachableToleranceError,
)
from ssmreduce.hankel import tail_bounds
from ssmreduce.layers.cut import SystemPlan
from ssmreduce.layers.lti_cut import LTICut, as_written
from ssmreduce.layers.read_back import read_back
from ssmreduce.layers.stored_states import with_real_input
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.state_space import StateSpace

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer

_EXCESS = 0.1
"""Share by which the measured error of a written layer may exceed its bound before another order is tried."""

_ROUNDINGS = 1e3
"""The same in units of eps(dtype) · 2Σσ: weights are rounded, and poles near the circle amplify that."""

_NEARBY_ORDERS = 4
"""How many lower orders are tried where the layer as written does not keep its bound."""


@dataclass(frozen=True, eq=False)
class LTIPlan(SystemPlan[LTICut]):
    """Cuts the systems of one layer, writes the result as the layer would hold it, and measures that."""

    kind: LTILayer
    order: int | OrderRule
    truncate: Callable[[OrderRule], Reduction]

    def cut(self) -> LTICut:
        """The cut whose written layer keeps its bound, of the order that was asked for or one below."""
        reduction, stored = self.reduced(self.order)
        first = self.options.rounded_up(stored)
        if first >= self.kind.order(self.weights):
            return self.unchanged()
        if first > stored:
            reduction, stored = self.reduced(first)

        limits: Sequence[int] = range(first, 0, -self.options.multiple_of)[: 1 + _NEARBY_ORDERS]
        if self.options.power_of_two:
            limits = [first, *filter(None, [self.options.rounded_down(first - 1)])]
        if isinstance(self.order, ErrorBound):
            limits = [first]  # a lower order would break the promise
        failures: list[SSMReduceError] = []
        for limit in limits:
            try:
                if limit < first:
                    reduction, stored = self.reduced(limit)
                outcome, keeps_bound = self.written(reduction, stored)
            except SSMReduceError as error:
                failures.append(error)
                continue
            # A tolerance that was asked for is one for the layer as it would be written.
            if isinstance(self.order, ErrorBound):
                hsv = outcome.reduction.hsv
                worst = np.argmax(hsv[..., 0])
                self.order.check(hsv.reshape(-1, hsv.shape[-1])[worst], outcome.measured_error)
            if keeps_bound:
                return replace(outcome, passed_over=str(failures[0]) if failures else "")
            failures.append(self._too_coarse(outcome))
        raise failures[0]

    def _too_coarse(self, outcome: LTICut) -> UnreachableToleranceError:
        factor, found = self.kind.error_factor, outcome.reduction
        errors, bounds = np.ravel(found.measured()), np.ravel(np.asarray(found.error_bound))
        worst = int(np.argmax(errors - bounds))
        return UnreachableToleranceError(
            f"{type(self.kind).__name__} at order {outcome.new_order}, in weights with eps = "
            f"{self.storage.eps:.2g}, has an error of at least {factor * errors[worst]:.3g} but the bound "
            f"{factor * bounds[worst]:.3g}; expected one that keeps its bound, there or a little below. "
            "Try a wider dtype, or CutOptions(horizon=L) for sequences of L steps."
        )

    def smallest(self, rule: MeasuredError) -> LTICut:
        """The smallest written layer within the tolerance; refused if the layer does not respond."""
        if not np.any(self.unchanged().scores):
            self.reduced(1)
        return super().smallest(rule)

    def of_order(self, order: int) -> LTICut:
        """The layer as it is written with at most so many states."""
        outcome, _ = self.written(*self.reduced(order))
        return outcome

    def reduced(self, order: int | OrderRule) -> tuple[Reduction, int]:
        """Cut to what a rule chooses, or to at most so many states as the layer stores them; and how many."""
        rule = tried = as_rule(order)
        while True:
            reduction = self.truncate(tried)
            system = reduction.system
            if system is reduction.original or isinstance(system, StateSpace):  # as it was
                return reduction, self.kind.order(self.weights)
            stored = (with_real_input(system) if self.kind.real_input else system).order
            if not isinstance(rule, FixedOrder) or stored <= rule.order:
                return reduction, stored
            if system.order == 1:
                raise OrderError(
                    f"`order` is {rule.order} but the layer takes two states for one complex pole; "
                    "expected at least 2."
                )
            tried = FixedOrder(system.order - 1)

    def written(self, reduction: Reduction, stored: int) -> tuple[LTICut, bool]:
        """What the layer holds once `reduction` is written, and whether that keeps the bound.

        `stored` says how many states the layer takes for it.
        """
        order = self.options.rounded_up(stored)
        new = self.storage.rounded(self.kind.write(reduction.system, self.weights, order=order))
        weights, eps = {**self.weights, **new}, self.storage.eps
        system = read_back(self.kind, reduction.system, weights, eps)
        if reduction.horizon is None:
            check_stable_system(
                system,
                "A pole is nearer to the boundary than its weights can say: try a lower order.",
                name="the layer as it would be written",
            )
        written = as_written(reduction, system)
        errors, keeps = written.measured(), True
        if written.error_bound is not None:
            gains = tail_bounds(written.hsv)[..., 0]
            excess = np.maximum(_EXCESS * written.error_bound, _ROUNDINGS * eps * gains)
            keeps = bool(np.all(errors <= written.error_bound + excess))
        error = self.kind.error_factor * float(np.max(errors))
        return LTICut(self.kind, written, error, self.weights, weights), keeps

    def unchanged(self) -> LTICut:
        """The layer as it is."""
        whole, _ = self.reduced(self.kind.order(self.weights))
        return LTICut(self.kind, whole, 0.0, self.weights, self.weights)
