"""Load what was saved of a reduced model into one of another size.

`load_reduced` and `accept_reduced` do so for PyTorch modules, in place; `shaped_like` gives a fresh pytree
the shapes of the saved one, or its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.frameworks.current import framework_of
from ssmreduce.frameworks.handle import LayerChange, LayerHandle
from ssmreduce.frameworks.saved import NamedTrees
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.report import ModelReport
from ssmreduce.models.search import find_layers, search


def load_reduced(model: Any, state_dict: Mapping[str, Any], *, kind: Any = None) -> Any:
    """Load the state dict of a reduced model into a model of any order, in place.

    The shapes of the saved weights say how many states each layer has: the layers of `model` take
    those first, and all weights are loaded strictly then. Parameters stay the same objects, so
    that an optimizer made before or after fits, and can load its own state dict next.

    Parameters
    ----------
    model : torch.nn.Module
        Built like the model that was saved, with any number of states.
    state_dict : dict of str to tensor
        From ``state_dict()`` of the reduced model.
    kind : str, Layer, or dict of them by layer name, optional
        What kind of layer arrays are, where nothing else tells; see `CutOptions`.

    Returns
    -------
    torch.nn.Module
        `model` itself.

    Raises
    ------
    UnsupportedLayerError
        If `model` is not a PyTorch module, holds no supported layer, or has tensors without values.
    ShapeError
        If a name is missing or left over, a shape differs by more than the states of a layer, or a
        tensor is of another kind or dtype, or without values.
    NonFiniteError
        If a parameter was saved with NaN or Inf.

    Notes
    -----
    An error, also one of a module that loads its own state, and Ctrl-C leave `model` as it was.

    Examples
    --------
    >>> import torch
    >>> from LRU_pytorch import LRU
    >>> from ssmreduce import load_reduced, reduce_model
    >>> _ = torch.manual_seed(0)
    >>> saved = reduce_model(LRU(3, 3, 16, rmin=0.5), 6).model.state_dict()
    >>> load_reduced(LRU(3, 3, 16), saved).nu_log.shape
    torch.Size([6])
    """
    framework = framework_of(model)
    loader = framework.state_dicts(model)
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise ShapeError(
            f"`state_dict` is a {_checks.type_name(state_dict)}; expected a dict of tensors by name. "
            "Read a file with torch.load(path) first."
        )
    handles = find_layers(model, CutOptions(skip_unsupported=True, kind=kind)).handles
    framework.check_ready(model, handles)
    own = model.state_dict(keep_vars=True)
    state_dict = _with_ties(own, state_dict)
    _check_names(own, state_dict)
    for name, value in own.items():
        loader.check_saved(value, state_dict[name], f"`{name}` of `state_dict`")
        here, there = _shape(value), _shape(state_dict[name])
        if here is not None and there is not None and len(here) != len(there):
            raise _other_shape(name, there, here)
    changes = [_resize(handle, own, state_dict) for handle in handles]
    free = {name for handle in handles for name in _free_names(handle, own)}
    for name, value in own.items():
        if name not in free and _shape(value) != _shape(state_dict[name]):
            raise _other_shape(name, _shape(state_dict[name]), _shape(value))
    loader.load_state(model, state_dict, changes)
    return model


def _resize(
    handle: LayerHandle, own: Mapping[str, Any], state_dict: Mapping[str, Any]
) -> LayerChange:
    """The change of one layer to the number of states in a state dict; `ShapeError` if it does not fit."""
    kind, prefix = handle.kind, _prefix(handle)
    names = [name for name in kind.shapes if prefix + name in state_dict]
    saved = handle.framework.on_host({name: state_dict[prefix + name] for name in names})
    unsaved = kind.unsaved(handle.weights, saved)
    new = {**handle.weights, **saved, **unsaved}
    with _checks.naming(f"in layer `{handle.name}`"):
        kind.check_readable(new)
    # Of the weights that are replaced the shapes alone matter: they may be NaN, or anything.
    old = {name: np.ones_like(value) for name, value in handle.weights.items()}
    counts = {"the state dict": kind.order(new), "the model": kind.order(old)}
    for where, count in counts.items():
        if count < 1:
            raise ShapeError(
                f"layer `{handle.name}` has {count} states in {where}; expected one at least. Take another "
                "file, or leave the layer out of the model."
            )
    was, has = kind.ports(new), kind.ports(old)
    if was != has:
        raise ShapeError(
            f"layer `{handle.name}` was saved with {was[1]} inputs, {was[2]} outputs and "
            f"batch axes {was[0]} but has {has[1]}, {has[2]} and {has[0]}; expected the same. Build "
            "the model as it was."
        )
    resized = kind.resized(old, counts["the state dict"])
    for name in names:
        here, there = _shape(own[prefix + name]), _shape(state_dict[prefix + name])
        if name in resized and there == resized[name].shape:
            continue
        if not _is_scaled(here or (), there or (), *counts.values()):
            raise _other_shape(prefix + name, there, here)
    others = {name: value for name, value in saved.items() if value.shape != old[name].shape}
    ratio = counts["the state dict"] / counts["the model"]
    return LayerChange(handle, {**others, **unsaved}, ratio)


def _free_names(handle: LayerHandle, own: Mapping[str, Any]) -> set[str]:
    """Names of a state dict whose shapes may differ: weights of a layer, those tied to them, states."""
    prefix = _prefix(handle)
    changing = {id(own[prefix + name]) for name in handle.kind.shapes if prefix + name in own}
    states = {prefix + name for name in handle.kind.states}
    return states | {name for name, value in own.items() if id(value) in changing}


def _prefix(handle: LayerHandle) -> str:
    return "".join(f"{part}." for part in handle.path)


def accept_reduced(model: Any, *, kind: Any = None) -> Any:
    """Let ``model.load_state_dict`` take the weights of a reduced model, whoever calls it.

    Training frameworks load checkpoints themselves. A hook before every load gives the layers
    the shapes of the state dict, as `load_reduced` does.

    Parameters
    ----------
    model : torch.nn.Module
        Of any number of states.
    kind : str, Layer, or dict of them by layer name, optional
        What kind of layer arrays are, where nothing else tells; see `CutOptions`.

    Returns
    -------
    torch.utils.hooks.RemovableHandle
        Its ``remove()`` takes the hook away.

    Raises
    ------
    UnsupportedLayerError
        If `model` is not a PyTorch module.
    ShapeError, ArgumentError
        If ``config.ssm_states`` of a model of Hugging Face is not a dict of numbers of states.

    Notes
    -----
    Hugging Face loads without ``load_state_dict``, into a model that it makes from a config. A cut of a
    ``PreTrainedModel`` writes ``config.ssm_states``, so that ``save_pretrained`` saves how many states each
    layer has. Called at the end of ``__init__``, when the layers are there, this gives them these sizes.

    Examples
    --------
    >>> import torch
    >>> from LRU_pytorch import LRU
    >>> from ssmreduce import reduce_model
    >>> from ssmreduce.models.checkpoint import accept_reduced
    >>> _ = torch.manual_seed(0)
    >>> saved = reduce_model(LRU(3, 3, 16, rmin=0.5), 6).model.state_dict()
    >>> model = LRU(3, 3, 16)
    >>> hook = accept_reduced(model)
    >>> model.load_state_dict(saved)
    <All keys matched successfully>
    """
    options = CutOptions(kind=kind)
    hook = accept_shapes(model, options.kind)
    framework_of(model).take_sizes(model, search(model, options).handles)
    return hook


def accept_shapes(model: Any, kind: object) -> Any:
    """As `accept_reduced`, and leave a model as it is until then."""
    framework_of(model).state_dicts(model)
    return model.register_load_state_dict_pre_hook(partial(_take_shapes, kind=kind))


def _take_shapes(
    model: Any, state_dict: Mapping[str, Any], prefix: str, *_: Any, kind: object
) -> None:
    own = model.state_dict()
    given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
    # Names are the business of whoever loads.
    if any(_shape(own[name]) != _shape(value) for name, value in given.items()):
        load_reduced(model, {**own, **given}, kind=kind)


def _with_ties(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved values, also under the names of parameters that share those of another one."""
    tensors = {name: value for name, value in own.items() if _shape(value) is not None}
    given = {id(value): saved[name] for name, value in tensors.items() if name in saved}
    tied = {name: given[id(value)] for name, value in tensors.items() if id(value) in given}
    return {**tied, **saved}


def _is_scaled(here: Sequence[int], there: Sequence[int], new: int, old: int) -> bool:
    """Whether each axis is as long as it was, or as many times as there are more states."""
    return all(was in (now, now * old / new) for was, now in zip(here, there, strict=True))


def _other_shape(name: str, saved: object, here: object) -> ShapeError:
    return ShapeError(
        f"`{name}` was saved with shape {saved} but has {here}; expected the same. Build the model as it was."
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for extra state that a module keeps, which may be anything."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError, TypeError):  # a lazy or a nested tensor has none
        return None


def _check_names(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing and extra:
        for prefix in ("module.", "_orig_mod."):
            if {name.removeprefix(prefix) for name in saved} == {
                name.removeprefix(prefix) for name in own
            }:
                raise ShapeError(
                    f"names of `state_dict` or of `model` begin with `{prefix}`, those of the other do "
                    "not; expected the same. A wrapper was saved or is loaded into: use the model inside."
                )
    for name in extra:
        inner = saved[name]
        if isinstance(inner, Mapping) and not own.keys().isdisjoint(inner):
            raise ShapeError(
                f"`state_dict` holds a state dict as {name!r}; expected that one alone. Pass "
                f"state_dict[{name!r}]."
            )
    if missing or extra:
        raise ShapeError(
            f"`state_dict` lacks {', '.join(missing) or 'nothing'} and has "
            f"{', '.join(extra) or 'nothing'} besides; expected the names of the model. "
            "Build the model as it was."
        )


# --- Pytrees, which are loaded into by others


_STATE = {"settings", "events", "trial"}
"""Entries by which the state of a reducer is told."""


def shaped_like(model: Any, saved: Any, *, kind: Any = None) -> Any:
    """Return a copy of an Equinox model in which layers have as many states as when it was saved.

    The copy is what ``equinox.tree_deserialise_leaves`` and Orbax's ``restore`` load into. With a report the
    arrays of layers whose size changes are zeros; arrays that are given are put in place, each
    by its name in the model.

    Parameters
    ----------
    model : pytree of equinox.Module
        Built like the model that was reduced, at full size; it stays as it is.
    saved : ModelReport or dict or pytree of arrays
        The report of the reduction, its ``to_dict()``, also when read back from JSON; the
        ``state_dict()`` of a reducer, whose cuts that stand count; or the saved arrays: a model, or
        dicts and lists of arrays by name, as Orbax restores them.
    kind : str, Layer, or dict of them by layer name, optional
        What kind of layer arrays are, where nothing else tells; see `CutOptions`.

    Returns
    -------
    pytree of equinox.Module
        What is not an array (functions, numbers) is that of `model`.

    Raises
    ------
    UnsupportedLayerError
        If `model` is a PyTorch module, which is for `load_reduced`, or holds no supported layer.
    ShapeError
        If a name is missing or left over, a dtype differs, or a shape does by more than the states of
        a layer.
    ArgumentError
        If a report or reducer does not say how many states a layer has, or more than it has in
        `model`.

    Examples
    --------
    >>> import json
    >>> import numpy as np
    >>> from ssmreduce import reduce_model, shaped_like
    >>> from ssmreduce.demo.lru import LRU
    >>> def build():
    ...     return {"encoder": LRU(16, 4, rng=np.random.default_rng(0))}
    >>> result = reduce_model(build(), 6)
    >>> text = json.dumps(result.report.to_dict())
    >>> shaped_like(build(), json.loads(text))["encoder"].B_re.shape
    (6, 4)
    >>> arrays = {"encoder": dict(vars(result.model["encoder"]))}
    >>> loaded = shaped_like(build(), arrays)
    >>> bool((loaded["encoder"].B_re == result.model["encoder"].B_re).all())
    True
    """
    framework = framework_of(model)
    trees = framework.named_trees(model)
    options = CutOptions(skip_unsupported=True, kind=kind)
    layers = {handle.name: handle for handle in find_layers(model, options).handles}
    told = _told(saved)
    given = trees.saved_arrays(model, saved) if told is None else {}
    if told is not None:
        orders = _orders_of_report(told, layers)
    else:
        orders = {name: _order_of_arrays(handle, given, trees) for name, handle in layers.items()}
    changes = [_change(layers[name], order) for name, order in orders.items()]
    real = [change for change in changes if change.ratio != 1.0]
    shaped = framework.prepared(model, real, None, {}).model
    return trees.with_arrays(shaped, given) if told is None else shaped


def _told(saved: Any) -> Mapping[Any, Any] | None:
    """What is told of layers by name: by a report, or by the last cuts of a reducer; None for arrays."""
    if isinstance(saved, ModelReport):
        return saved.to_dict()
    if not isinstance(saved, Mapping):
        return None
    if saved.keys() >= _STATE:
        return {
            event["layer"]: event
            for event in _events(saved["events"])
            if event["rolled_back"] is None
        }
    entries = saved.values()
    is_report = any(isinstance(entry, Mapping) and "new_order" in entry for entry in entries)
    return saved if is_report else None


def _events(saved: Any) -> Sequence[Mapping[str, Any]]:
    """The events in the state of a reducer."""
    if not isinstance(saved, list | tuple) or not all(
        isinstance(event, Mapping)
        and isinstance(event.get("layer"), str)
        and "rolled_back" in event
        for event in saved
    ):
        raise ArgumentError(
            f"`saved['events']` is {_checks.shown(saved)}; expected a list of dicts with layer, "
            "new_order and rolled_back. Take what state_dict() of a reducer returned."
        )
    return saved


def _orders_of_report(
    saved: Mapping[Any, Any], layers: Mapping[str, LayerHandle]
) -> dict[str, int]:
    orders: dict[str, int] = {}
    for name, entry in saved.items():
        if not isinstance(name, str) or name not in layers:
            raise ShapeError(
                f"`saved` names layer {_checks.shown(name)}, but those of `model` are {', '.join(layers)}; "
                "expected some of these. Build the model as it was."
            )
        order = entry.get("new_order") if isinstance(entry, Mapping) else entry
        what = f"saved[{name!r}]['new_order']"
        orders[name] = _checks.positive_count(order, what, "report.to_dict()")
    return orders


def _order_of_arrays(handle: LayerHandle, given: Mapping[Any, Any], trees: NamedTrees) -> int:
    """States of a layer whose arrays are `given`."""
    kind = handle.kind
    shapes = trees.shapes_of_layer(given, handle.path, tuple(kind.shapes))
    order = kind.order({name: np.ones(shape) for name, shape in shapes.items()})
    return _checks.positive_count(
        order, f"number of states of `{handle.name}` in `saved`", "a model with states"
    )


def _change(handle: LayerHandle, order: int) -> LayerChange:
    """Zeros in the shapes that the arrays of a layer have at another order."""
    states = handle.kind.order(handle.weights)
    if order > states:
        raise ArgumentError(
            f"`saved` gives layer `{handle.name}` {order} states, but it has {states} in `model`; expected "
            "no more. Build the model at full size."
        )
    return LayerChange(handle, handle.kind.resized(handle.weights, order), order / states)
