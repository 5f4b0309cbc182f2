"""Load the weights of a reduced PyTorch model into one of another size: `load_reduced`, `accept_reduced`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce.adapters.registry import layer_map_of, model_backend
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.layers.layer_map import LayerMap
from ssmreduce.models.options import CutOptions
from ssmreduce.models.search import find_layers


def load_reduced(model: Any, state_dict: Mapping[str, Any]) -> Any:
    """Load the state dict of a reduced model into a model of any order, in place.

    The shapes of the saved weights say how many states each layer has: the layers of `model` take
    those first, and all weights are loaded strictly then. Parameters stay the same objects, so
    that an optimizer made before or after it is right, and can load its own state dict next.

    Parameters
    ----------
    model : torch.nn.Module
        Built like the model that was saved, with any number of states.
    state_dict : dict of str to tensor
        From ``state_dict()`` of the reduced model.

    Returns
    -------
    torch.nn.Module
        `model` itself.

    Raises
    ------
    UnsupportedLayerError
        If `model` is not a PyTorch module, holds no supported layer, or has tensors without numbers.
    ShapeError
        If a name is missing or left over, a shape differs by more than the states of a layer, or a
        tensor is of another kind or dtype, or without numbers.
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
    >>> saved = reduce_model(LRU(3, 3, 16, rmin=0.5), 6).model.state_dict()
    >>> load_reduced(LRU(3, 3, 16), saved).nu_log.shape
    torch.Size([6])
    """
    backend = _check_backend(model)
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise ShapeError(
            f"`state_dict` is a {_checks.type_name(state_dict)}; expected a dict of tensors by name. "
            "Read a file with torch.load(path) first."
        )
    layers: dict[tuple[Any, ...], tuple[Any, LayerMap]] = {}
    for path, layer in find_layers(model, CutOptions(skip_unsupported=True)):
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        layers[path] = layer, layer_map
    backend.check_ready(model, layers)
    own = model.state_dict(keep_vars=True)
    state_dict = _with_ties(own, state_dict)
    _check_names(own, state_dict)
    for name, value in own.items():
        backend.check_tensor(value, state_dict[name], f"`{name}` of `state_dict`")
        here, there = _shape(value), _shape(state_dict[name])
        if here is not None and there is not None and len(here) != len(there):
            raise _other_shape(name, there, here)
    ratios: dict[tuple[Any, ...], float] = {}
    free: set[str] = set()
    for path, (layer, layer_map) in layers.items():
        prefix = f"{path[0]}." if path[0] else ""
        names = [name for name in layer_map.names() if prefix + name in state_dict]
        changing = {id(own[prefix + name]) for name in names}
        free |= {prefix + name for name in layer_map.states}
        free |= {name for name, value in own.items() if id(value) in changing}
        saved = {name: backend.host_array(state_dict[prefix + name]) for name in names}
        here = backend.read_arrays(layer, layer_map.names())
        new = {**here, **saved}
        layer_map.read(new)
        # Of the weights that are replaced the shapes alone matter: they may be NaN, or anything.
        old = {name: np.ones_like(value) for name, value in here.items()}
        was, has = _sizes(layer_map, new), _sizes(layer_map, old)
        states = {"the state dict": layer_map.order(new), "the model": layer_map.order(old)}
        for where, count in states.items():
            if count < 1:
                raise ShapeError(
                    f"layer `{backend.path_name(path)}` has {count} states in {where}; expected one at "
                    "least. Take another file, or leave the layer out of the model."
                )
        if was != has:
            raise ShapeError(
                f"layer `{backend.path_name(path)}` was saved with {was[1]} inputs, {was[2]} outputs and "
                f"batch axes {was[0]} but has {has[1]}, {has[2]} and {has[0]}; expected the same. Build "
                "the model as it was."
            )
        for name in names:
            here, there = _shape(own[prefix + name]), _shape(state_dict[prefix + name])
            if not _is_scaled(here or (), there or (), *states.values()):
                raise _other_shape(prefix + name, there, here)
        ratios[path] = states["the state dict"] / states["the model"]
    for name, value in own.items():
        if name not in free and _shape(value) != _shape(state_dict[name]):
            raise _other_shape(name, _shape(state_dict[name]), _shape(value))
    backend.load_state(model, state_dict, layers, ratios)
    return model


def accept_reduced(model: Any) -> Any:
    """Let ``model.load_state_dict`` take the weights of a reduced model, whoever calls it.

    Training frameworks load checkpoints themselves. A hook before every load gives the layers
    the shapes of the state dict, as `load_reduced` does.

    Parameters
    ----------
    model : torch.nn.Module
        Of any number of states.

    Returns
    -------
    torch.utils.hooks.RemovableHandle
        Its ``remove()`` takes the hook away.

    Raises
    ------
    UnsupportedLayerError
        If `model` is not a PyTorch module.

    Examples
    --------
    >>> from LRU_pytorch import LRU
    >>> from ssmreduce import reduce_model
    >>> from ssmreduce.models.checkpoint import accept_reduced
    >>> saved = reduce_model(LRU(3, 3, 16, rmin=0.5), 6).model.state_dict()
    >>> model = LRU(3, 3, 16)
    >>> hook = accept_reduced(model)
    >>> model.load_state_dict(saved)
    <All keys matched successfully>
    """
    _check_backend(model)
    return model.register_load_state_dict_pre_hook(_take_shapes)


def _take_shapes(model: Any, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    own = model.state_dict()
    given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
    # Names are the business of whoever loads.
    if any(_shape(own[name]) != _shape(value) for name, value in given.items()):
        load_reduced(model, {**own, **given})


def _sizes(layer_map: LayerMap, weights: Mapping[str, Any]) -> tuple[tuple[int, ...], int, int]:
    """Batch axes, inputs and outputs."""
    B, C = layer_map.matrices(weights)
    return np.broadcast_shapes(B.shape[:-2], C.shape[:-2]), B.shape[-1], C.shape[-2]


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


def _check_backend(model: Any) -> ModuleType:
    backend = model_backend(model)
    if not hasattr(backend, "load_state"):
        raise UnsupportedLayerError(
            f"`model` is a {_checks.type_name(model)}; expected a "
            "torch.nn.Module. For a pytree of Equinox modules call shaped_like(model, saved)."
        )
    return backend


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
    if missing or extra:
        raise ShapeError(
            f"`state_dict` lacks {', '.join(missing) or 'nothing'} and has "
            f"{', '.join(extra) or 'nothing'} besides; expected the names of the model. "
            "Build the model as it was."
        )
