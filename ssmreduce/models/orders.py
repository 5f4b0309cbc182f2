"""Which order each layer of a model is to get, before it is balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ssmreduce._array_libraries import HostArray
from ssmreduce._array_routes import warn_caller
from ssmreduce.errors import (
    OrderError,
    ReductionWarning,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks.framework import listed
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.layers.options import CutOptions, names_meant
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.report import LayerReduction
from ssmreduce.reduction.order import FixedOrder, OrderRule, TotalBudget, as_rule

Order = int | OrderRule | Mapping[str, int | OrderRule]
"""An order for all layers of a model, or one for each that is to be cut, by name."""


def warn_of_no_cut(
    order: OrderRule | Mapping[str, int | OrderRule], sizes: Mapping[str, int]
) -> None:
    """Warn where all layers, of which `sizes` has the states by name, are to keep more than they have."""
    asked = (
        {names_meant(name, sizes)[0]: as_rule(own) for name, own in order.items()}
        if isinstance(order, Mapping)
        else dict.fromkeys(sizes, order)
    )
    too_many = [
        rule.order
        for name, rule in asked.items()
        if isinstance(rule, FixedOrder) and rule.order > sizes[name]
    ]
    if asked and len(too_many) == len(asked):
        largest = max(sizes[name] for name in asked)
        warn_caller(
            f"`order` is {max(too_many)}, but no layer has more than {largest} states: nothing is cut.",
            UserWarning,
        )


def named_orders(
    order: Mapping[str, int | OrderRule], firsts: Mapping[str, str]
) -> dict[str, int | OrderRule]:
    """Return the orders by the names of the layers that decide, which `firsts` has for each.

    Raises
    ------
    OrderError
        If layers that are cut alike are to have two orders, or the layer that a copy follows is excluded.
    """
    orders: dict[str, int | OrderRule] = {}
    for name, wanted in order.items():
        if firsts[name] not in firsts:
            raise OrderError(
                f"`order` names `{name}`, a copy of `{firsts[name]}`, which is excluded; expected layers "
                "that may be cut. Leave the copy out."
            )
        given = orders.setdefault(firsts[name], wanted)
        if as_rule(given) != as_rule(wanted):
            raise OrderError(
                f"`order` gives `{name}` {wanted!r} and `{firsts[name]}` {given!r}, but they share their "
                "weights, or one is a copy; expected the same for both. Name one of them."
            )
    return orders


def names_in_model(
    order: Mapping[str, int | OrderRule], handles: Sequence[LayerHandle]
) -> dict[str, int | OrderRule]:
    """Orders by the names that layers have in the model, from those with or without its wrappers.

    Raises
    ------
    OrderError
        If `order` names what is no layer, or one layer twice.
    """
    own = [handle.name for handle in handles]
    meant = {name: names_meant(str(name), own) for name in order}
    unknown = [str(name) for name, found in meant.items() if len(found) != 1]
    if unknown:
        raise OrderError(
            f"`order` names {', '.join(unknown)}, but the layers are {listed(own)}; expected "
            "some of these. Layers that are not named stay as they are."
        )
    named = {meant[name][0]: wanted for name, wanted in order.items()}
    if len(named) < len(order):
        raise OrderError(
            f"`order` names a layer twice, with and without the wrapper of the model: {listed(order)}; "
            "expected each once."
        )
    return named


def shares_of(
    layers: Mapping[str, LayerHandle],
    budget: TotalBudget,
    options: CutOptions,
    data: Calibration | None,
) -> dict[str, int]:
    """Shares, of sizes that may be stored, whose sum with what stays as it is does not exceed the budget.

    A layer with fewer states than a multiple stays as it is. Where a layer runs its channels apart, one
    more state means one more for all of them, and the largest value that is left out decides.
    """
    multiple_of = options.multiple_of
    sizes = {name: each.kind.order(each.weights) for name, each in layers.items()}
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
    if options.uniform:
        return fixed | _equal_shares(budget.states - sum(fixed.values()), free, sizes, options)
    _check_units([layers[name] for name in free], budget)
    # Entry k: what is left out first where k multiples are kept.
    values = {name: _scores(layers[name], options, data)[::multiple_of] for name in free}
    shares = dict(fixed)
    while len(shares) < len(layers):
        names = [name for name in free if name not in shares]
        units = replace(budget, states=(budget.states - sum(shares.values())) // multiple_of)
        counts = units.allocate([values[name] for name in names])
        wanted = {name: multiple_of * count for name, count in zip(names, counts, strict=True)}
        # The last multiple of a layer may be incomplete; what it leaves goes to the others.
        whole = {name: sizes[name] for name in names if wanted[name] >= sizes[name]}
        shares |= whole or {name: options.rounded_down(size) for name, size in wanted.items()}
    return shares


def _check_units(layers: Sequence[LayerHandle], budget: TotalBudget) -> None:
    """Raise where scores of some layers are gains, and of others losses of outputs on data."""
    names: dict[bool, str] = {each.kind.needs_data: each.name for each in layers}
    if len(names) == 2 and not budget.relative:
        raise OrderError(
            f"`order` is {budget}, but layer `{names[False]}` has Hankel singular values and "
            f"`{names[True]}`, which is selective, losses of outputs: they have no common unit; expected "
            f"shares of the largest of each. Pass TotalBudget({budget.states}, relative=True), or an order "
            "for each layer."
        )


def _scores(handle: LayerHandle, options: CutOptions, data: Calibration | None) -> HostArray:
    """Scores of a layer; with data, one that is not stable is looked at over the recorded sequences.

    A selective layer has scores by data alone.
    """
    try:
        return handle.kind.scores(handle.weights, options.horizon)
    except UnstableSystemError:
        if data is None or options.horizon is not None:
            raise
        return handle.kind.scores(handle.weights, data.record_of(handle).inputs.shape[1])
    except UnsupportedLayerError:
        if data is None:
            raise
        record = data.record_of(handle)
        scores = handle.kind.data_scores(handle.weights, record.data(record.outputs(handle)))
        if scores is None:
            raise
        return scores


def _equal_shares(
    states: int, names: list[str], sizes: Mapping[str, int], options: CutOptions
) -> dict[str, int]:
    """The same size for each; a layer with fewer states keeps them, and leaves the rest to the others."""
    shares: dict[str, int] = {}
    while len(shares) < len(names):
        open_ones = [name for name in names if name not in shares]
        equal = options.rounded_down((states - sum(shares.values())) // len(open_ones))
        small = [name for name in open_ones if sizes[name] < equal]
        shares |= {name: sizes[name] for name in small} or dict.fromkeys(open_ones, equal)
    return shares


def warn_of_lower_orders(results: Mapping[str, LayerReduction]) -> None:
    """Warn of layers that cannot hold the cut of their order, and get a lower one."""
    for name, result in results.items():
        white = None if result.choice is None else result.choice.white
        alike = result.cut if white is None or white.new_order != result.new_order else white
        reason = result.cut.passed_over or alike.passed_over
        if reason:
            warn_caller(
                f"layer `{name}` gets {result.new_order} states, fewer than its order: its weights cannot "
                f"hold the cut of a higher one. {reason}",
                ReductionWarning,
            )
