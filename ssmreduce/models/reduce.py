"""Reduce one layer, or all layers of a model together with its optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ssmreduce.adapters.registry import (
    Path,
    find_layers,
    is_supported,
    model_backend,
    read_system,
    supported,
    write_system,
)
from ssmreduce.errors import OrderError, SSMReduceError, UnstableSystemError
from ssmreduce.hankel import error_bounds
from ssmreduce.models.optimizer_state import Moments, check_moments, reduce_optimizer_state
from ssmreduce.models.report import LayerReduction, ModelReduction
from ssmreduce.reduction.balanced import balance
from ssmreduce.reduction.order import ErrorBound, OrderRule, TotalBudget
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace

_EXCESS = 0.1
"""Share by which the measured error of a written layer may exceed its bound before another order is tried."""

_ROUNDINGS = 1e3
"""The same in units of eps(dtype) · 2Σσ: weights are rounded, and poles near the circle amplify that."""

_NEARBY_ORDERS = 4
"""How many lower orders are tried where the layer as written does not keep its bound."""


def reduce_layer(
    layer: Any, order: int | OrderRule, *, horizon: int | None = None
) -> LayerReduction:
    """Reduce the states of one layer by balanced truncation, and measure what was written.

    Parameters
    ----------
    layer : object
        A supported layer (see `read_system`); it is left as it is.
    order : int or OrderRule
        Upper limit on stored states, or a rule; see `balanced_truncation`.
    horizon : int, optional
        Sequence length to balance for; see `balance`.

    Returns
    -------
    LayerReduction
        With ``layer``, ``reduction`` and ``measured_error``. If the error of the layer as written,
        in its own dtype, exceeds the bound by more than a tenth (and more than rounding explains),
        up to four lower orders are tried and the one with the least measured error is returned.

    Raises
    ------
    UnsupportedLayerError
        If the layer is not known.
    SSMReduceError
        As `balanced_truncation`; the message names the layer and its order.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> result = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6)
    >>> result.new_order, result.measured_error <= result.reduction.error_bound
    (6, True)
    """
    backend, layer_map = supported(layer)
    weights = backend.read_arrays(layer, layer_map.names())
    balancing = balance(layer_map.read(weights), horizon=horizon)
    reduction = balancing.truncate(order)

    def outcome(new_layer: Any, written: Reduction, error: float) -> LayerReduction:
        return LayerReduction(new_layer, written, error, weights, layer_map)

    if reduction.order == balancing.system.order:
        return outcome(layer, reduction, 0.0)
    allowed = _allowed_error(reduction, backend.precision(layer, layer_map.names()))
    best: LayerReduction | None = None
    refusal: UnstableSystemError | None = None
    lowest = max(int(reduction.order) - _NEARBY_ORDERS, 1)
    if isinstance(order, ErrorBound):
        lowest = int(reduction.order)  # a lower order would break the promise
    for limit in range(int(reduction.order), lowest - 1, -1):
        candidate = reduction if limit == reduction.order else balancing.truncate(limit)
        assert isinstance(candidate.system, DiagonalStateSpace)
        try:
            new_layer = write_system(layer, candidate.system)
        except UnstableSystemError as error:
            refusal = error
            continue
        written = replace(candidate, system=read_system(new_layer))
        measured = float(written.quick_error())
        if best is None or measured < best.measured_error:
            best = outcome(new_layer, written, measured)
        if measured <= allowed:
            break
    if best is None:
        assert refusal is not None
        raise refusal
    if isinstance(order, ErrorBound):
        order.check(best.reduction.hsv, best.measured_error)
    return best


def reduce_model(
    model: Any,
    order: int | OrderRule,
    *,
    opt_state: Any = None,
    moments: Moments = "carry",
    horizon: int | None = None,
) -> ModelReduction:
    """Reduce every supported layer of a model, and its optimizer state with it.

    Parameters
    ----------
    model : object
        An Equinox module; it is left as it is.
    order : int or OrderRule
        For each layer; see `reduce_layer`. A `TotalBudget` is shared by all of them.
    opt_state : pytree, optional
        optax state, initialised from the model's arrays.
    moments : {"carry", "reset", "slice"}
        What becomes of first and second moments; see `ssmreduce.models.optimizer_state`.
    horizon : int, optional
        Sequence length to balance for.

    Returns
    -------
    ModelReduction
        With ``model``, ``optimizer_state`` and ``report`` by layer name.

    Raises
    ------
    UnsupportedLayerError
        If the model holds no supported layer.
    SSMReduceError
        As `reduce_layer`; nothing was changed then.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_model
    >>> from ssmreduce.demo.lru import LRU
    >>> result = reduce_model({"first": LRU(16, 4, rng=np.random.default_rng(0))}, 6)
    >>> {name: part.new_order for name, part in result.report.items()}
    {"['first']": 6}
    """
    check_moments(moments)
    backend = model_backend(model)
    layers = find_layers(model)
    orders = layer_orders([layer for _, layer in layers], order, horizon)
    results = {
        path: reduce_named_layer(backend.path_name(path), layer, own, horizon)
        for (path, layer), own in zip(layers, orders, strict=True)
    }
    new_model, new_state = apply_reductions(model, opt_state, results, moments)
    report = {backend.path_name(path): result for path, result in results.items()}
    return ModelReduction(new_model, new_state, report)


def layer_orders(
    layers: Sequence[Any], order: int | OrderRule, horizon: int | None
) -> list[int | OrderRule]:
    """One order per layer: `order` itself, or the share of each in a total budget."""
    if not isinstance(order, TotalBudget):
        return [order] * len(layers)
    values = [balance(read_system(layer), horizon=horizon).budget_values() for layer in layers]
    if any(len(systems) != 1 for systems in values):
        raise OrderError(
            "`order` is a TotalBudget but a layer holds a batch of systems; expected one system per "
            "layer, whose states can be counted. Pass an int or another rule."
        )
    return list(order.allocate([systems[0] for systems in values]))


def reduce_named_layer(
    name: str, layer: Any, order: int | OrderRule, horizon: int | None
) -> LayerReduction:
    """Reduce one layer of a model; errors name it."""
    try:
        return reduce_layer(layer, order, horizon=horizon)
    except SSMReduceError as error:
        raise type(error)(f"while reducing layer `{name}`: {error}") from error


def apply_reductions(
    model: Any, opt_state: Any, results: dict[Path, LayerReduction], moments: Moments
) -> tuple[Any, Any]:
    """Return model and optimizer state with the given layers replaced; the old ones stay intact."""
    cut = {path: result for path, result in results.items() if result.new_order < result.old_order}
    if not cut:
        return model, opt_state
    backend = model_backend(model)
    new_state = reduce_optimizer_state(backend, model, opt_state, cut, moments)
    layers = {path: result.layer for path, result in cut.items()}
    return backend.replace_layers(model, is_supported, layers), new_state


def _allowed_error(reduction: Reduction, eps: float) -> float:
    """Largest error at which a written layer is taken at once."""
    if reduction.error_bound is None:
        return float("inf")
    bound, gain = float(reduction.error_bound), float(error_bounds(reduction.hsv)[0])
    return bound + max(_EXCESS * bound, _ROUNDINGS * eps * gain)
