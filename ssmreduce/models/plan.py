"""Plan the reduction of one layer: cut it, write it as the layer would hold it, measure that."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.adapters.registry import rounding_of, supported
from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import (
    OrderError,
    SSMReduceError,
    UnreachableToleranceError,
    UnsupportedLayerError,
)
from ssmreduce.hankel import error_bounds
from ssmreduce.layers.read_back import check_read_back
from ssmreduce.models.diagonal_cut import balanced_layer
from ssmreduce.models.options import CutOptions
from ssmreduce.models.report import LayerReduction
from ssmreduce.reduction.measured import smallest, to_nothing
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

_EXCESS = 0.1
"""Share by which the measured error of a written layer may exceed its bound before another order is tried."""

_ROUNDINGS = 1e3
"""The same in units of eps(dtype) · 2Σσ: weights are rounded, and poles near the circle amplify that."""

_NEARBY_ORDERS = 4
"""How many lower orders are tried where the layer as written does not keep its bound."""


def planned(
    layer: Any,
    order: int | OrderRule,
    options: CutOptions,
) -> LayerReduction:
    """Everything about the reduction of one layer but the change itself."""
    started = time.perf_counter()
    result = _Plan(layer, order, options).result()
    return replace(result, seconds=time.perf_counter() - started)


class _Plan:
    """Cuts one layer, writes the result as the layer would hold it, and measures that."""

    def __init__(
        self,
        layer: Any,
        order: int | OrderRule,
        options: CutOptions,
    ) -> None:
        self._backend, self._layer, self._map = supported(layer)
        names = self._map.names()
        self._order, self._multiple_of = order, options.multiple_of
        self._weights = self._backend.read_arrays(layer, names)
        self._item_sizes = self._backend.item_sizes(layer, names)
        self._eps = rounding_of(layer, self._map)
        self._balancing = balanced_layer(self._map.read(self._weights), options.horizon)

    def result(self) -> LayerReduction:
        """The reduction whose written layer keeps its bound, of the order that was asked for or one below."""
        if isinstance(self._order, MeasuredError):
            return self._smallest(self._order)
        reduction = self._cut(self._order)
        old_order = self._map.order(self._weights)
        first = -(-self._stored_order(reduction) // self._multiple_of) * self._multiple_of
        if first >= old_order:
            return self._outcome(self._cut(old_order), self._weights, 0.0)
        if first > self._stored_order(reduction):
            reduction = self._cut(first)
        return self._nearest(reduction, first)

    def _nearest(self, reduction: Reduction, first: int) -> LayerReduction:
        """The first written layer that keeps its bound, from `reduction` to `first` states downwards."""
        failure: SSMReduceError | None = None
        lowest = max(first - _NEARBY_ORDERS * self._multiple_of, self._multiple_of)
        if isinstance(self._order, ErrorBound):
            lowest = first  # a lower order would break the promise
        for limit in range(first, lowest - 1, -self._multiple_of):
            try:
                candidate = reduction if limit == first else self._cut(limit)
                outcome, keeps_bound = self._written(candidate)
            except SSMReduceError as error:
                failure = failure or error
                continue
            self._check_tolerance(outcome)
            if keeps_bound:
                return outcome
            failure = failure or self._too_coarse(outcome)
        assert failure is not None
        raise failure

    def _check_tolerance(self, outcome: LayerReduction) -> None:
        """Raise unless a tolerance that was asked for is met by the layer as it would be written."""
        if isinstance(self._order, ErrorBound):
            hsv = outcome.reduction.hsv
            worst = np.argmax(hsv[..., 0])
            self._order.check(hsv.reshape(-1, hsv.shape[-1])[worst], outcome.measured_error)

    def _too_coarse(self, outcome: LayerReduction) -> UnreachableToleranceError:
        parts = outcome.reduction.parts or (outcome.reduction,)
        errors = [self._map.error_factor * float(part.quick_error()) for part in parts]
        bounds = [self._map.error_factor * float(part.error_bound or 0.0) for part in parts]
        worst = int(np.argmax(np.subtract(errors, bounds)))
        return UnreachableToleranceError(
            f"{type(self._layer).__name__} at order {outcome.new_order}, in weights with eps = "
            f"{self._eps:.2g}, has an error of at least {errors[worst]:.3g} but the bound "
            f"{bounds[worst]:.3g}; expected one that keeps its bound, there or a little below. "
            "Try a wider dtype, or CutOptions(horizon=L) for sequences of L steps."
        )

    def _smallest(self, rule: MeasuredError) -> LayerReduction:
        """The smallest written layer that a bisection finds within the tolerance; nothing is cut at worst."""
        old_order = self._map.order(self._weights)
        whole = self._cut(old_order)
        parts = whole.parts or (whole,)
        gain = self._map.error_factor * max(float(to_nothing(x).quick_error()) for x in parts)
        if not np.any(whole.hsv):
            self._cut(1)  # refuses
        best = smallest(
            1,
            -(-old_order // self._multiple_of),
            self._at_multiple,
            lambda found: found.measured_error <= rule.relative * gain,
        )
        return self._outcome(whole, self._weights, 0.0) if best is None else best

    def _at_multiple(self, count: int) -> LayerReduction | None:
        """The layer as it is written with at most so many multiples of states; None if it cannot be."""
        try:
            outcome, _ = self._written(self._cut(count * self._multiple_of))
        except UnsupportedLayerError:
            raise
        except SSMReduceError:
            return None
        return outcome

    def _cut(self, order: int | OrderRule) -> Reduction:
        """Cut to what a rule chooses, or to at most so many states as the layer stores them."""
        reduction = self._balancing.truncate(order, common_order=True)
        if isinstance(as_rule(order), FixedOrder):
            limit = int(as_rule(order).choose(np.zeros(0)))
            while self._stored_order(reduction) > limit:
                if reduction.system.order == 1:
                    raise OrderError(
                        f"`order` is {limit} but the layer takes two states for one complex pole; "
                        "expected at least 2."
                    )
                reduction = self._balancing.truncate(reduction.system.order - 1, common_order=True)
        return reduction

    def _stored_order(self, reduction: Reduction) -> int:
        if reduction.system is reduction.original:
            return self._map.order(self._weights)
        assert isinstance(reduction.system, DiagonalStateSpace)
        return self._map.storable(reduction.system).order

    def _written(self, reduction: Reduction) -> tuple[LayerReduction, bool]:
        """What the layer holds once `reduction` is written, and whether that keeps the bound."""
        assert isinstance(reduction.system, DiagonalStateSpace)
        stored = self._map.storable(reduction.system)
        system = padded(stored, -(-stored.order // self._multiple_of) * self._multiple_of)
        new = self._backend.rounded(self._layer, self._map.write(system, self._weights))
        weights = {**self._weights, **new}
        read_back = self._map.read(weights).to_host()
        check_read_back(self._map, reduction.system, read_back, self._eps)
        if reduction.horizon is None:
            check_stable_system(
                read_back,
                "A pole is nearer to the boundary than its weights can say: try a lower order.",
                name="the layer as it would be written",
            )
        written = as_written(reduction, read_back)
        parts = written.parts or (written,)
        errors = [float(part.quick_error()) for part in parts]
        allowed = [_allowed_error(part, self._eps) for part in parts]
        keeps = all(error <= most for error, most in zip(errors, allowed, strict=True))
        return self._outcome(written, weights, self._map.error_factor * max(errors)), keeps

    def _outcome(
        self, reduction: Reduction, weights: dict[str, HostArray], error: float
    ) -> LayerReduction:
        return LayerReduction(
            self._layer, reduction, error, self._weights, weights, self._item_sizes, self._map
        )


def padded(system: DiagonalStateSpace, order: int) -> DiagonalStateSpace:
    """Add states that neither respond nor are seen, up to `order`."""
    missing = order - system.order
    if missing == 0:
        return system
    batch = [(0, 0)] * len(system.batch_shape)
    return DiagonalStateSpace(
        np.pad(system.eigenvalues, [*batch, (0, missing)]),
        np.pad(system.B, [*batch, (0, missing), (0, 0)]),
        np.pad(system.C, [*batch, (0, 0), (0, missing)]),
        system.D,
        time=system.time,
        real_output=system.real_output,
        read_after_update=system.read_after_update,
    )


def as_written(reduction: Reduction, system: System) -> Reduction:
    """`reduction` with the system that was read back from the weights, in its parts as well."""
    indices = np.ndindex(system.batch_shape)
    parts = tuple(
        replace(part, system=system[at]) for part, at in zip(reduction.parts, indices, strict=False)
    )
    return replace(reduction, system=system, parts=parts)


def _allowed_error(reduction: Reduction, eps: float) -> float:
    """Largest error at which a written layer is taken at once."""
    if reduction.error_bound is None:
        return float("inf")
    bound, gain = float(reduction.error_bound), float(error_bounds(reduction.hsv)[0])
    return bound + max(_EXCESS * bound, _ROUNDINGS * eps * gain)
