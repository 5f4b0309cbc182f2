"""Snapshots of PyTorch modules and optimizers: every array, and the attributes that follow a cut.

Parameters keep their identity when a snapshot is put back, as they do in a cut. Hyperparameters of the
optimizer's groups are left alone: the schedule of the learning rate goes on. Sharded arrays are in a
snapshot in full, so that it is the same on all ranks and fits another number of them. Names are those of
the model without the wrappers of ``torch.compile`` and of DDP.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ssmreduce.adapters.registry import is_reducible, layer_map_of
from ssmreduce.adapters.torch import _attributes, find_layers, holders, resized
from ssmreduce.adapters.torch_distributed import (
    clear_gradients,
    renew_buckets,
    sharded_like,
    team_of,
    whole,
)
from ssmreduce.errors import ShapeError
from ssmreduce.layers.layer_map import LayerMap


def take(model: Any, optimizer: Any) -> dict[str, Any]:
    """Copy tensors, counts and kept states of `model`, and the state of `optimizer`, to the host.

    Where several processes train the model, all of them have to call this.
    """
    team_of(model)
    attributes: dict[str, dict[str, Any]] = {}
    for path, name in _empty_states(model):
        attributes.setdefault(path, {})[name] = None
    for path, owner, name, value in _dependent_attributes(model):
        if value is not None and name in vars(owner):  # buffers are among the tensors
            attributes.setdefault(path, {})[name] = _copied(vars(owner)[name])
    entries = {}
    if isinstance(optimizer, torch.optim.Optimizer):
        entries = {
            index: _copied(optimizer.state[parameter])
            for index, parameter in _parameters(model, optimizer)
            if parameter in optimizer.state
        }
    return {
        "tensors": {name: _copied(tensor) for name, tensor in _tensors(model)},
        "attributes": attributes,
        "optimizer": entries,
    }


def prepared_back(
    model: Any, optimizer: Any, snapshot: dict[str, Any]
) -> Callable[[], tuple[Any, Any]]:
    """Copy what `snapshot` holds; what is returned gives it to model and optimizer, in place."""
    team_of(model)  # FSDP2: shards, also after a forward pass
    saved, here = snapshot["tensors"], dict(_tensors(model))
    kept = snapshot["attributes"]
    parameters = {} if optimizer is None else dict(_parameters(model, optimizer))
    _check(here, saved, parameters, snapshot["optimizer"])
    modules = {_plain(name): part for name, part in _unwrapped(model).named_modules()}
    resizes = {
        name: resized(model, tensor, _copied(saved[name], tensor.device))
        for name, tensor in here.items()
        # One number that stands for several cannot be copied into.
        if tensor.shape != saved[name].shape
        or (tensor.layout is torch.strided and 0 in tensor.stride())
    }
    attributes = [
        (modules[path], name, _copied(value, _device_for(name, modules[path], model)))
        for path, values in kept.items()
        for name, value in values.items()
    ]
    stale = [
        (owner, name)
        for path, owner, name, _ in _dependent_attributes(model)
        if name in vars(owner) and name not in kept.get(path, {})
    ]
    entries = {
        index: _entry(values, optimizer.state.get(parameters[index], {}), parameters[index])
        for index, values in snapshot["optimizer"].items()
    }

    def make() -> tuple[Any, Any]:
        clear_gradients(model)
        with torch.no_grad():
            for name, tensor in here.items():
                if name in resizes:
                    resizes[name]()
                else:
                    tensor.copy_(sharded_like(tensor, saved[name].to(tensor.device)))
        renew_buckets(model)
        for owner, name, value in attributes:
            setattr(owner, name, value)
        for owner, name in stale:
            vars(owner).pop(name, None)  # layers with the same weights name it twice
        for index, parameter in parameters.items():
            if index in entries:
                optimizer.state[parameter] = entries[index]
            else:
                optimizer.state.pop(parameter, None)
        return model, optimizer

    return make


def _entry(saved: dict[str, Any], present: dict[str, Any], parameter: Any) -> dict[str, Any]:
    """The entry of one parameter, each tensor on the device where its successor is."""
    entry = {}
    for field, value in saved.items():
        # Step counts stay on the host unless the optimizer keeps them elsewhere.
        shaped = torch.is_tensor(value) and value.ndim > 0
        new = _copied(value, _device(present.get(field)) or (parameter.device if shaped else None))
        entry[field] = sharded_like(parameter, new) if shaped else new
    return entry


def _check(
    here: dict[str, Any],
    saved: dict[str, Any],
    parameters: dict[int, Any],
    entries: dict[int, Any],
) -> None:
    other = sorted(here.keys() ^ saved.keys()) + [
        name for name in here.keys() & saved.keys() if _kind(here[name]) != _kind(saved[name])
    ]
    if other:
        raise ShapeError(
            f"the snapshot from before the cut and `model` differ in {', '.join(other[:4])}; expected "
            "the same names, dtypes and numbers of axes. Build the model as it was."
        )
    if entries.keys() - parameters.keys():
        raise ShapeError(
            f"the snapshot from before the cut has optimizer state for {len(entries)} parameters of the "
            f"model but the optimizer has {len(parameters)} of them; expected the same. Build the "
            "optimizer as it was."
        )


def _kind(tensor: Any) -> tuple[Any, int]:
    """What a cut leaves as it is."""
    return tensor.dtype, tensor.ndim


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    inner = _unwrapped(model)
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        yield _plain(name), tensor


def _unwrapped(model: Any) -> Any:
    """The model inside of ``torch.compile`` and DDP, in any order."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _plain(name: str) -> str:
    """The name without the wrappers of parts that are compiled."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _parameters(model: Any, optimizer: Any) -> Iterator[tuple[int, Any]]:
    """Parameters of the model with the numbers that the optimizer's own state dict gives them."""
    own = {id(parameter) for parameter in model.parameters()}
    every = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for index, parameter in enumerate(every):
        if id(parameter) in own:
            yield index, parameter


def _dependent_attributes(model: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """Module name, module, attribute and value (None: a cache) of all that depends on layer orders."""
    names = _module_names(model)
    for layer, layer_map in _layers(model):
        for owner, name, value in _attributes(model, layer, layer_map, 1.0):
            yield names[id(owner)], owner, name, value


def _empty_states(model: Any) -> Iterator[tuple[str, str]]:
    """Module name and attribute of every state between calls that has not begun."""
    names = _module_names(model)
    for layer, layer_map in _layers(model):
        for owner in holders(model, layer, layer_map):
            for name in layer_map.states:
                if vars(owner).get(name, owner) is None:
                    yield names[id(owner)], name


def _layers(model: Any) -> Iterator[tuple[Any, LayerMap]]:
    for _, layer in find_layers(model, is_reducible):
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        yield layer, layer_map


def _module_names(model: Any) -> dict[int, str]:
    return {id(part): _plain(name) for name, part in _unwrapped(model).named_modules()}


def _device(value: Any) -> Any:
    """The device of a tensor; None for anything else."""
    return getattr(value, "device", None)


def _device_for(name: str, owner: Any, model: Any) -> Any:
    """The device of what is there under that name, else that of the nearest parameters."""
    parameters = itertools.chain(owner.parameters(), model.parameters())
    return _device(getattr(owner, name, None)) or _device(next(parameters, None))


def _copied(value: Any, device: Any = None) -> Any:
    """A copy on `device`, the host by default, of a tensor or of a container of them."""
    if torch.is_tensor(value):
        return whole(value.detach()).to(device or "cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry, device) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry, device) for entry in value)
    return value
