"""Decide about the cut of a linear layer: cut it, write it as the layer would hold it, measure that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import (
    OrderError,
    SSMReduceError,
    UnreachableToleranceError,
    UnsupportedLayerError,
)
from ssmreduce.hankel import tail_bounds
from ssmreduce.layers.diagonal_cut import LayerBalancing, balanced_layer
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.lti_cut import LTICut, as_written
from ssmreduce.layers.options import CutOptions
from ssmreduce.layers.read_back import check_read_back
from ssmreduce.layers.stored_states import padded
from ssmreduce.reduction.measured_order import smallest, to_nothing
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer

_EXCESS = 0.1
"""Share by which the measured error of a written layer may exceed its bound before another order is tried."""

_ROUNDINGS = 1e3
"""The same in units of eps(dtype) · 2Σσ: weights are rounded, and poles near the circle amplify that."""

_NEARBY_ORDERS = 4
"""How many lower orders are tried where the layer as written does not keep its bound."""


class LTIPlan:
    """Cuts the systems of one layer, writes the result as the layer would hold it, and measures that."""

    def __init__(
        self,
        kind: LTILayer,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
        balancing: LayerBalancing | None = None,
    ) -> None:
        self._kind, self._weights, self._storage = kind, weights, storage
        self._order, self._options = order, options
        if balancing is None:
            balancing = balanced_layer(kind.read(weights), options.horizon)
        self._balancing = balancing
        self._old_order = kind.order(weights)

    def cut(self) -> LTICut:
        """The cut whose written layer keeps its bound, of the order that was asked for or one below."""
        if isinstance(self._order, MeasuredError):
            return self._smallest(self._order)
        reduction, stored = self.reduced(self._order)
        first = self._options.rounded_up(stored)
        if first >= self._old_order:
            return self.unchanged()
        if first > stored:
            reduction, _ = self.reduced(first)
        return self._nearest(reduction, first)

    def _nearest(self, reduction: Reduction, first: int) -> LTICut:
        """The first written layer that keeps its bound, from `reduction` to `first` states downwards."""
        failures: list[SSMReduceError] = []
        limits: Sequence[int] = range(first, 0, -self._options.multiple_of)[: 1 + _NEARBY_ORDERS]
        if self._options.power_of_two:
            limits = [each for each in (first, self._options.rounded_down(first - 1)) if each]
        if isinstance(self._order, ErrorBound):
            limits = [first]  # a lower order would break the promise
        for limit in limits:
            try:
                candidate = reduction if limit == first else self.reduced(limit)[0]
                outcome, keeps_bound = self.written(candidate)
            except SSMReduceError as error:
                failures.append(error)
                continue
            # A tolerance that was asked for is one for the layer as it would be written.
            if isinstance(self._order, ErrorBound):
                hsv = outcome.reduction.hsv
                worst = np.argmax(hsv[..., 0])
                self._order.check(hsv.reshape(-1, hsv.shape[-1])[worst], outcome.measured_error)
            if keeps_bound:
                return replace(outcome, passed_over=str(failures[0]) if failures else "")
            failures.append(self._too_coarse(outcome))
        raise failures[0]

    def _too_coarse(self, outcome: LTICut) -> UnreachableToleranceError:
        parts = outcome.reduction.parts or (outcome.reduction,)
        errors = [self._kind.error_factor * float(part.measured()) for part in parts]
        bounds = [self._kind.error_factor * float(part.error_bound or 0.0) for part in parts]
        worst = int(np.argmax(np.subtract(errors, bounds)))
        return UnreachableToleranceError(
            f"{type(self._kind).__name__} at order {outcome.new_order}, in weights with eps = "
            f"{self._storage.eps:.2g}, has an error of at least {errors[worst]:.3g} but the bound "
            f"{bounds[worst]:.3g}; expected one that keeps its bound, there or a little below. "
            "Try a wider dtype, or CutOptions(horizon=L) for sequences of L steps."
        )

    def _smallest(self, rule: MeasuredError) -> LTICut:
        """The smallest written layer that a bisection finds within the tolerance; nothing is cut at worst."""
        whole, _ = self.reduced(self._old_order)
        parts = whole.parts or (whole,)
        gain = self._kind.error_factor * max(float(to_nothing(x).measured()) for x in parts)
        if not np.any(whole.hsv):
            self.reduced(1)  # refuses
        best = smallest(
            1,
            self._options.count(self._old_order),
            self.at_size,
            lambda found: found.measured_error <= rule.relative * gain,
        )
        return self._whole(whole) if best is None else best

    def at_size(self, count: int) -> LTICut | None:
        """The layer as it is written with at most as many states as a size has; None if it cannot."""
        try:
            outcome, _ = self.written(self.reduced(self._options.size(count))[0])
        except UnsupportedLayerError:
            raise
        except SSMReduceError:
            return None
        return outcome

    def reduced(self, order: int | OrderRule) -> tuple[Reduction, int]:
        """Cut to what a rule chooses, or to at most so many states as the layer stores them; and how many."""
        rule = tried = as_rule(order)
        while True:
            reduction = self._balancing.truncate(tried, common_order=True)
            system = reduction.system
            if system is reduction.original:
                return reduction, self._old_order
            assert isinstance(system, DiagonalStateSpace)
            stored = self._kind.storable(system).order
            if not isinstance(rule, FixedOrder) or stored <= rule.order:
                return reduction, stored
            if system.order == 1:
                raise OrderError(
                    f"`order` is {rule.order} but the layer takes two states for one complex pole; "
                    "expected at least 2."
                )
            tried = FixedOrder(system.order - 1)

    def written(self, reduction: Reduction) -> tuple[LTICut, bool]:
        """What the layer holds once `reduction` is written, and whether that keeps the bound."""
        assert isinstance(reduction.system, DiagonalStateSpace)
        stored = self._kind.storable(reduction.system)
        system = padded(stored, self._options.rounded_up(stored.order))
        new = self._storage.rounded(self._kind.write(system, self._weights))
        weights = {**self._weights, **new}
        read_back = self._kind.read(weights)
        check_read_back(self._kind, reduction.system, read_back, self._storage.eps)
        if reduction.horizon is None:
            check_stable_system(
                read_back,
                "A pole is nearer to the boundary than its weights can say: try a lower order.",
                name="the layer as it would be written",
            )
        written = as_written(reduction, read_back)
        parts = written.parts or (written,)
        errors = [float(part.measured()) for part in parts]
        keeps = True
        for part, error in zip(parts, errors, strict=True):
            if part.error_bound is not None:
                bound, gain = float(part.error_bound), float(tail_bounds(part.hsv)[0])
                excess = max(_EXCESS * bound, _ROUNDINGS * self._storage.eps * gain)
                keeps = keeps and error <= bound + excess
        error = self._kind.error_factor * max(errors)
        return LTICut(self._kind, written, error, self._weights, weights), keeps

    def unchanged(self) -> LTICut:
        """The layer as it is."""
        return self._whole(self.reduced(self._old_order)[0])

    def _whole(self, whole: Reduction) -> LTICut:
        return LTICut(self._kind, whole, 0.0, self._weights, self._weights)
