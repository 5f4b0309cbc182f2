"""Which order each layer of a model is to get, before it is balanced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from ssmreduce.adapters.registry import layer_map_of, model_backend, read_system
from ssmreduce.errors import OrderError
from ssmreduce.models.diagonal_cut import balanced_layer
from ssmreduce.reduction.order import OrderRule, TotalBudget, as_rule

Order = int | OrderRule | Mapping[str, int | OrderRule]
"""An order for all layers of a model, or one for each that is to be cut, by name."""


def first_of_same(backend: ModuleType, layers: Mapping[str, Any]) -> dict[str, str]:
    """Name for each layer the first one that holds the same weights: itself, unless it is tied."""
    firsts: dict[str, str] = {}
    for name, layer in layers.items():
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        weights = layer_map.names()
        firsts[name] = next(
            (
                other
                for other in dict.fromkeys(firsts.values())
                if backend.shares_weights(layer, layers[other], weights)
            ),
            name,
        )
    return firsts


def layer_orders(
    layers: Mapping[str, Any],
    order: Order,
    firsts: Mapping[str, str],
    *,
    horizon: int | None,
    uniform: bool,
    multiple_of: int,
) -> dict[str, int | OrderRule]:
    """One order per layer by name: `order` itself, its own one, or its share in a total budget.

    Layers with the same weights, of which `firsts` names the first, count as that one alone.
    """
    own = {name: layer for name, layer in layers.items() if firsts[name] == name}
    if isinstance(order, Mapping):
        return _named_orders(order, firsts)
    if isinstance(order, TotalBudget):
        return {**_shares(own, order, horizon, uniform, multiple_of)}
    return dict.fromkeys(own, order)


def _named_orders(
    order: Mapping[str, int | OrderRule], firsts: Mapping[str, str]
) -> dict[str, int | OrderRule]:
    check_layer_names(order, firsts)
    orders: dict[str, int | OrderRule] = {}
    for name, wanted in order.items():
        given = orders.setdefault(firsts[name], wanted)
        if as_rule(given) != as_rule(wanted):
            raise OrderError(
                f"`order` gives `{name}` {wanted!r} and `{firsts[name]}` {given!r}, but they share their "
                "weights; expected the same for both. Name one of them."
            )
    return orders


def check_layer_names(order: Mapping[str, Any], layers: Iterable[str]) -> None:
    """Raise `OrderError` unless `order` names layers of the model."""
    unknown = [str(name) for name in order if name not in set(layers)]
    if unknown:
        raise OrderError(
            f"`order` names {', '.join(unknown)}, but the layers are {', '.join(layers)}; expected "
            "some of these. Layers that are not named stay as they are."
        )


def _shares(
    layers: Mapping[str, Any],
    budget: TotalBudget,
    horizon: int | None,
    uniform: bool,
    multiple_of: int,
) -> dict[str, int]:
    """Shares, multiples if asked, whose sum with what stays as it is does not exceed the budget.

    A layer with fewer states than a multiple stays as it is. Where a layer runs its channels apart, one
    more state means one more for all of them, and the largest value that is left out decides.
    """
    sizes = {name: _stored_states(layer) for name, layer in layers.items()}
    if budget.states >= sum(sizes.values()):
        return sizes
    fixed = {name: size for name, size in sizes.items() if size < multiple_of}
    free = [name for name in layers if name not in fixed]
    least = sum(fixed.values()) + multiple_of * len(free)
    if budget.states < least:
        raise OrderError(
            f"`order` is {budget} for {len(layers)} layers, and `multiple_of` is {multiple_of}; expected "
            f"at least {least} states: {multiple_of} for each, or as many as a layer has. Raise the budget."
        )
    values = {}
    if not uniform:
        for name in free:
            systems = balanced_layer(read_system(layers[name]), horizon).budget_values()
            values[name] = np.max(systems, axis=0)
    while free:
        left = replace(budget, states=budget.states - sum(fixed.values()))
        if uniform:
            shares = dict.fromkeys(free, left.states // len(free))
        else:
            each = left.allocate([values[name] for name in free])
            shares = dict(zip(free, each, strict=True))
        shares = {name: share // multiple_of * multiple_of for name, share in shares.items()}
        # Who needs less than its share, or gets less than a multiple, leaves the others another one.
        settled = {name: sizes[name] for name in free if uniform and sizes[name] < shares[name]}
        settled |= {name: multiple_of for name in free if not shares[name]}
        if not settled:
            return fixed | shares
        fixed |= settled
        free = [name for name in free if name not in settled]
    return fixed


def _stored_states(layer: Any) -> int:
    layer_map = layer_map_of(layer)
    assert layer_map is not None
    return layer_map.order(model_backend(layer).read_arrays(layer, layer_map.names()))
