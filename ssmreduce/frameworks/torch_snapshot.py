"""Snapshots of PyTorch modules and optimizers: every array, and the attributes that follow a cut.

Parameters keep their identity when a snapshot is put back, as they do in a cut. Hyperparameters of the
optimizer's groups are left alone: the schedule of the learning rate goes on. Sharded arrays are in a
snapshot in full, so that it is the same on all ranks and fits another number of them. Names are those of
the model without the wrappers of ``torch.compile`` and of DDP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.frameworks.handle import LayerChange, LayerHandle
from ssmreduce.frameworks.torch_arrays import mapped, replaced, sharded_like, whole
from ssmreduce.frameworks.torch_attributes import Dependent, assigned, attribute, dependents
from ssmreduce.frameworks.torch_config import all_steps
from ssmreduce.frameworks.torch_fsdp import reshard, sharded_parameters
from ssmreduce.frameworks.torch_recording import plain
from ssmreduce.frameworks.transaction import ABSENT, Change, Entries, Prepared, Step, assignment


def take(model: Any, opt_state: Any, handles: Sequence[LayerHandle]) -> Snapshot:
    """Copy tensors, counts and kept states of `model`, and the state of its optimizer, to the host.

    Where several processes train the model, all of them have to call this.
    """
    reshard(model)
    attributes: dict[str, dict[str, Any]] = {}
    for path, (module, name, value) in _dependents(model, handles):
        if value is not ABSENT:
            attributes.setdefault(path, {})[name] = _copied(attribute(module, name))
    entries = {
        index: _copied(opt_state.state[parameter])
        for index, parameter in _parameters(model, opt_state)
        if parameter in opt_state.state
    }
    return {
        "tensors": {name: _copied(tensor) for name, tensor in _tensors(model)},
        "attributes": attributes,
        "optimizer": entries,
    }


def prepared_back(
    model: Any, opt_state: Any, snapshot: Snapshot, handles: Sequence[LayerHandle]
) -> Prepared:
    """Copy what `snapshot` holds; the steps give it to model and optimizer, in place."""
    reshard(model)
    saved, here = snapshot["tensors"], dict(_tensors(model))
    parameters = dict(_parameters(model, opt_state))
    _check(here, saved, parameters, snapshot["optimizer"])
    gradients = [assignment(each, "grad", None, each.grad) for each in model.parameters()]
    gradients += [
        assignment(each, "accumulated_gradient", None, each.accumulated_gradient)
        for each in sharded_parameters(model)
    ]
    tensors = [_tensor_step(model, tensor, saved[name]) for name, tensor in here.items()]
    attributes = _attribute_steps(model, snapshot["attributes"], handles)
    entries = _entries(opt_state, parameters, snapshot["optimizer"])
    steps = [*gradients, *tensors, *attributes, *entries]
    return Prepared(model, opt_state, all_steps(model, handles, steps))


def _tensor_step(model: Any, tensor: Any, saved: Any) -> Step:
    # One number that stands for several cannot be copied into.
    stands_for_several = tensor.layout is torch.strided and 0 in tensor.stride()
    if tensor.shape != saved.shape or stands_for_several:
        return replaced(model, tensor, _copied(saved, tensor.device))
    before = tensor.detach().clone()
    return Change(partial(_copy, tensor, saved), partial(tensor.detach().copy_, before))


def _copy(tensor: Any, saved: Any) -> None:
    """Copy numbers into a tensor of the same shape; without `no_grad`, which would stay if broken off."""
    tensor.detach().copy_(sharded_like(tensor, saved.to(tensor.device)))


def _attribute_steps(
    model: Any, kept: dict[str, dict[str, Any]], handles: Sequence[LayerHandle]
) -> list[Step]:
    modules = {_plain(name): part for name, part in plain(model).named_modules()}
    given = [
        assigned(owner, name, _copied(value, _device_for(name, owner, model)))
        for path, values in kept.items()
        for owner in [modules[path]]
        for name, value in values.items()
    ]
    stale = [
        assigned(module, name, ABSENT)
        for path, (module, name, _) in _dependents(model, handles)
        if "." not in name and name not in kept.get(path, {})
    ]
    return [*given, *stale]


def _entries(optimizer: Any, parameters: dict[int, Any], saved: dict[int, Any]) -> list[Step]:
    new = dict.fromkeys(parameters.values(), ABSENT) | {
        parameter: _entry(saved[index], optimizer.state.get(parameter, {}), parameter)
        for index, parameter in parameters.items()
        if index in saved
    }
    return [Entries(optimizer.state, new)] if new else []


def _entry(saved: dict[str, Any], present: dict[str, Any], parameter: Any) -> dict[str, Any]:
    """The entry of one parameter, each tensor on the device where its successor is."""
    entry = {}
    for field, value in saved.items():
        # Step counts stay on the host unless the optimizer keeps them elsewhere.
        shaped = torch.is_tensor(value) and value.ndim > 0
        usual = parameter.device if shaped else "cpu"
        new = _copied(value, getattr(present.get(field), "device", usual))
        entry[field] = sharded_like(parameter, new) if shaped else new
    return entry


def _check(
    here: dict[str, Any],
    saved: dict[str, Any],
    parameters: dict[int, Any],
    entries: dict[int, Any],
) -> None:
    kinds, wanted = (
        {(name, tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
        for tensors in (here, saved)
    )
    other = sorted({name for name, *_ in kinds ^ wanted})
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


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    inner = plain(model)
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        yield _plain(name), tensor


def _plain(name: str) -> str:
    """The name without the wrappers of parts that are compiled."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _parameters(model: Any, optimizer: Any) -> Iterator[tuple[int, Any]]:
    """Parameters of the model with the numbers that the optimizer's own state dict gives them."""
    own = {id(parameter) for parameter in model.parameters()}
    groups = optimizer.param_groups if isinstance(optimizer, torch.optim.Optimizer) else ()
    every = (parameter for group in groups for parameter in group["params"])
    return ((index, each) for index, each in enumerate(every) if id(each) in own)


def _dependents(model: Any, handles: Sequence[LayerHandle]) -> Iterator[tuple[str, Dependent]]:
    """Module name and what depends on layer orders; buffers are among the tensors."""
    names = {id(part): _plain(name) for name, part in plain(model).named_modules()}
    for handle in handles:
        for each in dependents(model, LayerChange(handle, {}, 1.0)):
            module, name, _ = each
            if "." in name or name in vars(module):
                yield names[id(module)], each


def _device_for(name: str, owner: Any, model: Any) -> Any:
    """The device of what is there under that name, else that of the nearest parameters."""
    near = (getattr(owner, name, None), *owner.parameters(), *model.parameters())
    return next((each.device for each in near if torch.is_tensor(each)), "cpu")


def _copied(value: Any, device: Any = "cpu") -> Any:
    """A copy of a tensor or of a container of them."""
    return mapped(value, lambda each: whole(each.detach()).to(device, copy=True))
