"""What else of a PyTorch module depends on the number of states: sizes, states between calls, caches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.handle import LayerChange, ones_like
from ssmreduce.frameworks.transaction import ABSENT, Entries

Dependent = tuple[Any, str, Any]
"""A module, the name of an attribute, of an object in it after a dot, and what the value is to be."""


def attribute(module: Any, name: str) -> Any:
    """Return the attribute of a module, or of an object in it; None if there is none."""
    *inside, own = name.split(".")
    held = vars(module).get(inside[0]) if inside else module
    return getattr(held, "__dict__", {}).get(own)


def assigned(module: Any, name: str, value: Any) -> Entries:
    """Return what gives such an attribute a value, or takes it away; an object in the module is copied.

    Other modules may have the same config.
    """
    holder, _, own = name.rpartition(".")
    if holder:
        copied = copy.copy(getattr(module, holder))
        setattr(copied, own, value)
        name, value = holder, copied
    return Entries(module._buffers if name in module._buffers else vars(module), {name: value})


def dependents(model: Any, change: LayerChange) -> Iterator[Dependent]:
    """Yield what changes with the number of states of a layer, in every module that holds one of its arrays.

    States between calls, which may be buffers, follow by the cut, or begin with zeros; one that has
    not begun stays None. Caches go.
    """
    kind = change.handle.kind
    own = {*map(id, change.handle.arrays.values())}
    for module in model.modules():
        if own.isdisjoint(map(id, (*module._parameters.values(), *module._buffers.values()))):
            continue
        values = vars(module)
        for name in kind.sizes:
            size = attribute(module, name)
            if isinstance(size, int):
                yield module, name, round(size * change.ratio)
        for name in kind.states:
            kept = values.get(name, module._buffers.get(name))
            if torch.is_tensor(kept):
                yield module, name, _state(kept.detach(), change)
            elif name in values and kept is None:
                yield module, name, None
        for name in values.keys() & kind.caches:
            yield module, name, ABSENT
    if any("." in name for name in change.handle.arrays):
        yield from _features(change)


def _features(change: LayerChange) -> Iterator[Dependent]:
    """Numbers of features of modules inside of a layer, whose weights change, and what else is as many."""
    handle = change.handle
    resized = handle.kind.resized(ones_like(handle.arrays), round(handle.order * change.ratio))
    for name, weight in handle.kind.widths.items():
        if isinstance(attribute(handle.layer, name), int):
            yield handle.layer, name, resized[weight].shape[0]
    for name, value in resized.items():
        inside, _, own = name.rpartition(".")
        module = handle.layer.get_submodule(inside)
        if own == "weight" and isinstance(module, torch.nn.Linear):
            yield module, "out_features", value.shape[0]
            yield module, "in_features", value.shape[1]
        elif own == "weight" and isinstance(module, torch.nn.Conv1d):  # of each channel alone
            for field in ("in_channels", "out_channels", "groups"):
                yield module, field, value.shape[0]


def _state(old: Any, change: LayerChange) -> Any:
    if change.cut is None:
        shape = (*old.shape[:-1], round(old.shape[-1] * change.ratio))
        return torch.zeros(shape, dtype=old.dtype, device=old.device)
    try:
        return change.cut.reduce_state(old)
    except ShapeError as error:
        raise ShapeError(
            f"the layer keeps a state between calls, and that cannot follow: {error}"
        ) from error
