"""Reduce one layer, or all layers of a model together with its optimizer state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ssmreduce._checks import check_instance
from ssmreduce.errors import ArgumentError, SSMReduceError
from ssmreduce.frameworks.handle import LayerChange
from ssmreduce.frameworks.transaction import commit
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import Results, agreement, checked_followers, copy_of, make_cut, plan_cut
from ssmreduce.models.data_cut import DataCut, planned_with_data
from ssmreduce.models.held_out import losses_in, warn_at_chance, with_losses
from ssmreduce.models.matching import matched
from ssmreduce.models.orders import (
    Order,
    named_orders,
    names_in_model,
    shares_of,
    warn_of_lower_orders,
    warn_of_no_cut,
)
from ssmreduce.models.report import LayerReduction, ModelReduction
from ssmreduce.models.search import BY_DATA, Layers, search
from ssmreduce.models.systems_of_layers import handle_of
from ssmreduce.reduction.order import OrderRule, TotalBudget, as_rule

_PASS_DATA = "Pass data=calibrate(model, batches)."


def reduce_layer(
    layer: Any,
    order: int | OrderRule,
    *,
    kind: object = None,
    data: Calibration | None = None,
    options: CutOptions = CutOptions(),
) -> LayerReduction:
    """Reduce the states of one layer by balanced truncation, and measure what was written.

    Parameters
    ----------
    layer : object
        A supported layer (see `read_system`). An Equinox module is left as it is; a PyTorch module
        is changed in place, after everything that can fail.
    order : int or OrderRule
        Upper limit on stored states, or a rule; see `balanced_truncation`. Where the layer runs its
        channels apart, all of them get the largest order that one needs.
    kind : str or Layer, optional
        What kind of layer arrays by name are, where no object says so: ``"lru"``, ``"s5"``,
        ``"s4d"``, ``"linoss"`` ... with its defaults, or an instance with others, such as
        ``S5(Discretisation.BILINEAR)``.
    data : Calibration, optional
        Recorded inputs of the layer, under its name or as the only ones; see `reduce_model`.
    options : CutOptions
        Horizon, multiple and method; options about several layers have no effect here, and
        ``match`` is refused.

    Returns
    -------
    LayerReduction
        With ``layer``, ``reduction`` and ``measured_error``. If the error of the layer as written,
        in its own dtype, exceeds the bound by more than a tenth (and more than rounding explains),
        or it cannot store the poles, up to four lower orders are tried, and the first that keeps
        its bound is taken.

    Raises
    ------
    UnsupportedLayerError
        If the layer is not known, or its weights cannot hold the poles of the reduced system.
    UnreachableToleranceError
        If none of the orders tried keeps its bound in the dtype of the weights.
    SSMReduceError
        As `balanced_truncation`; the message names the layer and its order.

    Warns
    -----
    ReductionWarning
        If a lower order was taken than the one asked for.
    UserWarning
        If `order` is above the number of states, so that nothing is cut.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> result = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6)
    >>> result.new_order, result.measured_error <= result.reduction.error_bound
    (6, True)
    """
    check_instance(options, CutOptions, "options", "CutOptions(multiple_of=8)")
    if data is not None:
        check_instance(data, Calibration, "data", "calibrate(model, batches)")
    if options.match:
        raise ArgumentError(
            "`match` is true, but a layer alone has no outputs of a model to be matched; expected false. "
            "Pass the model to reduce_model, or leave it out."
        )
    options = options.of_call(kind, has_data=data is not None)
    order = as_rule(order)
    handle = handle_of(layer, options.kind)
    framework, inner = handle.framework, handle.layer
    framework.check_ready(inner, [handle])
    if data is None:
        started = time.perf_counter()
        cut = handle.kind.plan(handle.weights, order, options, handle)
        result = LayerReduction(None, cut, handle.item_sizes, time.perf_counter() - started)
    else:
        result = planned_with_data(handle, order, options, data.record_of(handle, alone=True))
    if result.new_order == result.old_order:
        warn_of_no_cut(order, {handle.name: result.old_order})
        return replace(result, layer=layer)
    ratio = result.new_order / result.old_order
    change = LayerChange(handle, result.cut.new_weights, ratio, result.cut)
    ready = framework.prepared(inner, [change], None, {})
    commit(ready.steps)
    warn_of_lower_orders({handle.name: result})
    return replace(result, layer=layer if ready.model is inner else ready.model)


def reduce_model(
    model: Any,
    order: Order,
    *,
    optimizer: Any = None,
    opt_state: Any = None,
    followers: Sequence[Any] | None = None,
    kind: object = None,
    data: Calibration | None = None,
    options: CutOptions = CutOptions(),
) -> ModelReduction:
    """Reduce every supported layer of a model, and its optimizer state with it.

    Parameters
    ----------
    model : object
        A PyTorch module, which is changed in place; an Equinox module (or pytree of them), or
        arrays by name, such as a state dict or an open safetensors file, which are left as they
        are.
    order : int, OrderRule, or dict of them by layer name
        For each layer; see `reduce_layer`. A `TotalBudget` is shared by all of them. With a dict,
        whose names are those of a report, layers that are not named stay as they are.
    optimizer : torch.optim.Optimizer, optional
        The optimizer of a PyTorch model, changed in place. In JAX the same as `opt_state`.
    opt_state : pytree, optional
        optax state, initialised from the model's arrays; for a mapping of arrays another mapping,
        with the moments under the name of their field and that of the weight, such as
        ``"mu.lru.nu_log"``.
    followers : sequence of models, optional
        Copies of the model with weights of their own, such as a
        `torch.optim.swa_utils.AveragedModel` or a momentum teacher: they get the same projection,
        in the same coordinates, so that averaging continues. PyTorch modules are changed in place,
        pytrees are returned in the result. Copies that are part of a PyTorch model are found
        without being named here.
    kind : str, Layer, or dict of them by layer name, optional
        What kind of layer arrays by name are, where no object says so; short for
        ``CutOptions(kind=...)``.
    data : Calibration, optional
        Recorded inputs of the layers, from `calibrate`. Layers are then cut one after the other by
        the method that is best on the part that is held out (see `CutOptions`); the report says
        which was taken. Only a cut by ``method="white"`` has an error bound; if that method alone
        is asked for, output errors are those for inputs in the uncut model. Orders are chosen as
        without data, except by `MeasuredError`, whose tolerance is then that of the held-out
        outputs.
    options : CutOptions
        Which layers to leave alone, horizon, multiple, a common order, moments. What is skipped is
        named in the result.

    Returns
    -------
    ModelReduction
        With ``model``, ``optimizer_state`` and ``report`` by layer name, which prints as a table;
        ``followers`` and ``skipped`` where there are any.

    Raises
    ------
    UnsupportedLayerError
        If the model holds no supported layer, or a variant of one that cannot be reduced.
    OptimizerStateError
        If the optimizer holds something that cannot be carried.
    ShapeError
        If a follower is not a copy of the model.
    CutRefusedError
        If ``options.match`` asks for outputs that cannot be had, or no loss on held-out batches is
        known.
    DistributedError
        If the model is wrapped by DDP or FSDP2 and its processes differ, or are not all there.
    SSMReduceError
        As `reduce_layer`; nothing was changed then, on no process.

    Warns
    -----
    ReductionWarning
        If a layer cannot hold the cut of the order asked for, and gets a lower one.
    CalibrationWarning
        If there are few sequences for a fit, or the model is at chance; if matching lowers no loss;
        if `data` holds no batches and may be another model's.
    UserWarning
        If `order` is above the number of states of every layer, so that nothing is cut.

    Notes
    -----
    A model in `torch.nn.parallel.DistributedDataParallel` or under ``fully_shard`` is passed as it
    is, by all of its processes: the first one decides, and all of them write its weights.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_model
    >>> from ssmreduce.demo.lru import LRU
    >>> result = reduce_model({"first": LRU(16, 4, rng=np.random.default_rng(0))}, 6)
    >>> {name: part.new_order for name, part in result.report.items()}
    {"['first']": 6}
    """
    followers = [] if followers is None else checked_followers(followers)
    if data is not None:
        check_instance(data, Calibration, "data", "calibrate(model, batches)")
    check_instance(options, CutOptions, "options", "CutOptions(multiple_of=8)")
    if optimizer is not None and opt_state is not None:
        raise ArgumentError(
            "`optimizer` and `opt_state` are both given; expected one of them. Pass `optimizer` for "
            "PyTorch, `opt_state` for optax."
        )
    options = options.of_call(kind, has_data=data is not None)
    if isinstance(order, Mapping):
        for own in order.values():
            as_rule(own)  # before anything is balanced
    else:
        order = as_rule(order)
    state = opt_state if optimizer is None else optimizer
    result = cut_model(model, order, state, followers, data, options)
    cuts = {name: part.cut for name, part in result.report.items()}
    if not any(cut.new_order < cut.old_order for cut in cuts.values()):
        warn_of_no_cut(order, {name: cut.old_order for name, cut in cuts.items()})
    warn_of_lower_orders(result.report)
    return result


def cut_model(
    model: Any,
    order: Order,
    state: Any,
    followers: Sequence[Any],
    data: Calibration | None,
    options: CutOptions,
) -> ModelReduction:
    """As `reduce_model`, with arguments that were checked; an order above all sizes is no news."""
    found = search(model, options)
    with agreement(found.team):
        found.check()
    data = None if data is None else data.for_first(found)
    only = None
    if isinstance(order, Mapping):
        named = partial(names_in_model, order, found.meant)
        only = order = named() if found.team is None else found.team.decide(named)
    decide = partial(decide_cut, order=order)
    if data is not None:
        decide = partial(_decided_by_data, order=order, data=data)
    plan = plan_cut(found, state, decide, followers, only=only)
    cut = make_cut(found, state, plan, followers)
    skipped = found.passed_over
    if data is None and options.skip_unsupported:
        needing = [each.name for each in found.meant if each.kind.needs_data]
        skipped = {**skipped, **dict.fromkeys(needing, f"it {BY_DATA}.")}
    return replace(cut, skipped=skipped)


def _decided_by_data(found: Layers, order: Order, data: Calibration) -> Results:
    """Plan all layers, and warn where the model is no better than chance."""
    results = with_losses(found, decide_cut(found, order, data=data), data)
    if found.options.match:
        results = matched(found, results, data)
    warn_at_chance(losses_in(results))
    return results


def decide_cut(
    found: Layers,
    order: Order,
    leave_out: Callable[[str], bool] = lambda name: False,
    data: Calibration | None = None,
) -> Results:
    """Plan all layers of a model; those left out by name count in a total budget alone."""
    layers = {handle.name: handle for handle in found.meant}
    skips = data is None and found.options.skip_unsupported
    if skips:
        found.check_without_data(_PASS_DATA)
    # Layers with the same weights and copies count as the one that decides.
    own = {
        name: each
        for name, each in layers.items()
        if found.firsts[name] == name and not (skips and each.kind.needs_data)
    }
    orders: Mapping[str, int | OrderRule]
    if isinstance(order, Mapping):
        orders = named_orders(order, found.firsts)
    elif isinstance(order, TotalBudget):
        orders = shares_of(own, order, found.options, data)
    else:
        orders = dict.fromkeys(own, order)
    orders = {name: each for name, each in orders.items() if not leave_out(name)}

    results: dict[str, LayerReduction] = {}
    if data is not None:
        results = DataCut(found, data).decide(layers, orders)
    else:
        for name, each in orders.items():
            started, handle = time.perf_counter(), layers[name]
            try:
                cut = handle.kind.plan(handle.weights, each, found.options, handle)
            except SSMReduceError as error:
                raise type(error)(f"while reducing layer `{name}`: {error}") from error
            seconds = time.perf_counter() - started
            results[name] = LayerReduction(None, cut, handle.item_sizes, seconds)
    if found.options.uniform and results:
        results = _uniform(results, found, data)
    return {
        handle.path: copy_of(handle, results[first], found)
        if handle.path in found.copies
        else results[first]
        for handle, first in zip(found.meant, found.firsts.values(), strict=True)
        if first in results
    }


def _uniform(
    results: dict[str, LayerReduction], found: Layers, data: Calibration | None
) -> dict[str, LayerReduction]:
    """The results with the largest of their orders for all."""
    options = found.options
    largest = max(result.new_order for result in results.values())
    common = options.rounded_up(largest)
    exactly = replace(options, multiple_of=common, power_of_two=False, uniform=False)
    unlike = {
        name: common
        for name, result in results.items()
        if result.new_order != min(common, result.old_order)
    }
    if data is not None and unlike:  # what follows a layer depends on its cut
        unlike = {name: result.new_order for name, result in results.items()}
    again = decide_cut(replace(found, options=exactly), unlike, data=data)
    return results | {each.name: again[each.path] for each in found.meant if each.name in unlike}
