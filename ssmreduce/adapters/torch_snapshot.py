"""Snapshots of PyTorch modules and optimizers: every array, and the attributes that follow a cut.

Parameters keep their identity when a snapshot is put back, as they do in a cut. Hyperparameters of the
optimizer's groups are left alone: the schedule of the learning rate goes on. Sharded arrays are in a
snapshot in full, so that it is the same on all ranks and fits another number of them. Names are those of
the model without the wrappers of ``torch.compile`` and of DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ssmreduce.adapters.registry import is_supported, layer_map_of
from ssmreduce.adapters.torch import _attributes, find_layers, resized
from ssmreduce.adapters.torch_distributed import (
    renew_buckets,
    sharded_like,
    team_of,
    whole,
)
from ssmreduce.errors import ShapeError


def take(model: Any, optimizer: Any) -> dict[str, Any]:
    """Copy tensors, counts and kept states of `model`, and the state of `optimizer`, to the host.

    Where several processes train the model, all of them have to call this.
    """
    team_of(model)
    attributes: dict[str, dict[str, Any]] = {}
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
    saved, here = snapshot["tensors"], dict(_tensors(model))
    parameters = {} if optimizer is None else dict(_parameters(model, optimizer))
    _check(here, saved, parameters, snapshot["optimizer"])
    modules = {_plain(name): part for name, part in _unwrapped(model).named_modules()}
    resizes = {
        name: resized(model, tensor, _copied(saved[name], tensor.device))
        for name, tensor in here.items()
        if tensor.shape != saved[name].shape
    }
    attributes = [
        (modules[path], name, _copied(value, getattr(getattr(modules[path], name), "device", None)))
        for path, values in snapshot["attributes"].items()
        for name, value in values.items()
    ]
    stale = [
        (owner, name) for _, owner, name, value in _dependent_attributes(model) if value is None
    ]
    entries = {
        index: _entry(values, optimizer.state[parameters[index]], parameters[index])
        for index, values in snapshot["optimizer"].items()
    }

    def make() -> tuple[Any, Any]:
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
            delattr(owner, name)
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
        device = parameter.device if shaped else None
        new = _copied(value, getattr(present.get(field), "device", device))
        entry[field] = sharded_like(parameter, new) if shaped else new
    return entry


def _check(
    here: dict[str, Any],
    saved: dict[str, Any],
    parameters: dict[int, Any],
    entries: dict[int, Any],
) -> None:
    other = sorted(here.keys() ^ saved.keys()) + [
        name for name in here.keys() & saved.keys() if here[name].dtype != saved[name].dtype
    ]
    if other:
        raise ShapeError(
            f"the snapshot from before the cut and `model` differ in {', '.join(other[:4])}; expected "
            "the same names and dtypes. Build the model as it was."
        )
    if entries.keys() - parameters.keys():
        raise ShapeError(
            f"the snapshot from before the cut has optimizer state for {len(entries)} parameters of the "
            f"model but the optimizer has {len(parameters)} of them; expected the same. Build the "
            "optimizer as it was."
        )


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
    names = {id(part): _plain(name) for name, part in _unwrapped(model).named_modules()}
    for _, layer in find_layers(model, is_supported):
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        for owner, name, value in _attributes(model, layer, layer_map, 1.0):
            yield names[id(owner)], owner, name, value


def _copied(value: Any, device: Any = None) -> Any:
    """A copy on `device`, the host by default, of a tensor or of a container of them."""
    if torch.is_tensor(value):
        return whole(value.detach()).to(device or "cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry, device) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry, device) for entry in value)
    return value
