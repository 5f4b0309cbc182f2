"""Plan the reduction of one layer: cut it, write it as the layer would hold it, measure that."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.adapters.registry import supported
from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import OrderError, SSMReduceError, UnstableSystemError, UnsupportedLayerError
from ssmreduce.hankel import error_bounds
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

_INVERSE = 1e-3
"""How far, relative to its response, a system may be from the same written and read back, in doubles.

Far above rounding, also that of poles at zero, which are stored as small ones.
"""

_STEPS = np.array([0, 1, 3, 10, 30])
"""Powers of the poles for which that is looked at."""

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
        self._eps = self._backend.precision(layer, names)
        system = self._map.read(self._weights)
        self._balancing = balanced_layer(system, options.horizon)
        self._check_inverse(system)

    def result(self) -> LayerReduction:
        """The reduction whose written layer keeps its bound, or the best of those nearby."""
        if isinstance(self._order, MeasuredError):
            return self._smallest(self._order)
        reduction = self._cut(self._order)
        old_order = self._map.order(self._weights)
        first = -(-self._stored_order(reduction) // self._multiple_of) * self._multiple_of
        if first >= old_order:
            return self._outcome(self._cut(old_order), self._weights, 0.0)
        if first > self._stored_order(reduction):
            reduction = self._cut(first)
        best: LayerReduction | None = None
        refusal: UnstableSystemError | None = None
        lowest = max(first - _NEARBY_ORDERS * self._multiple_of, self._multiple_of)
        if isinstance(self._order, ErrorBound):
            lowest = first  # a lower order would break the promise
        for limit in range(first, lowest - 1, -self._multiple_of):
            candidate = reduction if limit == first else self._cut(limit)
            try:
                outcome, keeps_bound = self._written(candidate)
            except UnstableSystemError as error:
                refusal = error
                continue
            if best is None or outcome.measured_error < best.measured_error:
                best = outcome
            if keeps_bound:
                break
        if best is None:
            assert refusal is not None
            raise refusal
        if isinstance(self._order, ErrorBound):
            worst = np.argmax(best.reduction.hsv[..., 0])
            hsv = best.reduction.hsv.reshape(-1, best.reduction.hsv.shape[-1])[worst]
            self._order.check(hsv, best.measured_error)
        return best

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

    def _check_inverse(self, system: System) -> None:
        """Raise unless the map reads back what it writes."""
        if not isinstance(system, DiagonalStateSpace):  # written in another form than it is read
            return
        try:
            new = self._map.write(self._map.storable(system), self._weights)
        except UnstableSystemError:  # balanced for a horizon, on or outside the unit circle
            return
        back = self._map.read({**self._weights, **new})
        assert isinstance(back, DiagonalStateSpace)
        own, other = _markov_parameters(system), _markov_parameters(back)
        size, apart = (np.max(np.abs(x), axis=(-3, -2, -1)) for x in (own, own - other))
        if not np.all(apart <= _INVERSE * size):
            raise UnsupportedLayerError(
                f"{type(self._map).__name__} reads another system from the weights that its `write` "
                "returns; expected the one that was written. Look whether `pole_weights` inverts "
                "`logarithms`, and `matrix_weights` inverts `matrices`."
            )

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


def _markov_parameters(system: DiagonalStateSpace) -> HostArray:
    """D and a few C Λᵏ B of each system, shape (..., 6, p, m)."""
    powers = system.eigenvalues[..., None, :] ** _STEPS[:, None]
    products = (system.C[..., None, :, :] * powers[..., None, :]) @ system.B[..., None, :, :]
    products = np.concatenate([system.D[..., None, :, :], products], axis=-3)
    return np.asarray(products.real if system.real_output else products)
