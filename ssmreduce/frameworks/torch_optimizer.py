"""What an optimizer of PyTorch, and the parameters themselves, hold for the weights of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ssmreduce import _checks
from ssmreduce._namespace import HostArray
from ssmreduce.errors import OptimizerStateError
from ssmreduce.frameworks.framework import LayerHandle, Path
from ssmreduce.frameworks.moments import Moments
from ssmreduce.frameworks.torch_arrays import host_array, tensor_like
from ssmreduce.frameworks.torch_distributed import is_sharded, managed, sharded_like, whole
from ssmreduce.frameworks.transaction import Step

MomentKey = tuple[Path, str, str]
"""Where a moment is: path of the layer, name of the weight, field of the optimizer state."""


def check_optimizer(model: Any, optimizer: Any, followers: Sequence[Any]) -> None:
    """Raise `OptimizerStateError` unless an optimizer trains `model`, no follower, weight by weight."""
    if optimizer is None:
        return
    _check_state(optimizer)
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()}
    if own.isdisjoint(held):
        raise OptimizerStateError(
            "`optimizer` holds none of the parameters of `model`; expected the one that trains it. Pass "
            "the model that the optimizer was made for, and its copies as `followers`."
        )
    copies = [each for each in followers if isinstance(each, torch.nn.Module)]
    if any(id(p) in held and id(p) not in own for copy in copies for p in copy.parameters()):
        raise OptimizerStateError(
            "`optimizer` holds parameters of a model of `followers`, whose moments are not carried; "
            "expected those of `model` alone. Pass the model that is trained as `model`, copies that "
            "are not as `followers`."
        )
    total = sum(p.numel() * (2 if p.is_complex() else 1) for p in held.values())
    for parameter, state in optimizer.state.items():
        for field, value in state.items():
            if torch.is_tensor(value) and value.shape == (total,) != parameter.shape:
                raise OptimizerStateError(
                    f"`optimizer` is a {type(optimizer).__qualname__} that holds `{field}` for all "
                    "parameters joined, which cannot be carried; expected one tensor for each. Use "
                    "Adam, AdamW, SGD or RMSprop, or initialise the optimizer afresh."
                )


def moments_of(optimizer: Any, handles: Sequence[LayerHandle]) -> list[Moments]:
    """Return what an optimizer holds for the layers.

    Raises
    ------
    OptimizerStateError
        If `optimizer` is not a torch optimizer, or its state cannot be carried.
    """
    if optimizer is None:
        return []
    found: list[Moments] = []
    for handle in handles:
        fields: dict[str, dict[str, tuple[Any, HostArray]]] = {}
        for name in handle.kind.names():
            for field, value in optimizer.state.get(getattr(handle.layer, name), {}).items():
                if _is_moment(value, field, name):
                    key = handle.path, name, field
                    fields.setdefault(field, {})[name] = key, host_array(value)
        found += [
            Moments(field, f"layer {handle.name}", handle.path, arrays)
            for field, arrays in fields.items()
        ]
    return found


def _check_state(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerStateError(
            f"`optimizer` is a {_checks.type_name(optimizer)}; expected a "
            "torch.optim.Optimizer. Pass the one that trains the model, or none."
        )
    if hasattr(optimizer, "consolidate_state_dict"):
        raise OptimizerStateError(
            f"`optimizer` is a {type(optimizer).__qualname__}, which keeps most of its state on other "
            "processes; expected one whose state is here. Shard the model with fully_shard instead, or "
            "make the optimizer anew after the cut."
        )


def _is_moment(value: Any, field: str, name: str) -> bool:
    """Whether an entry of a state is a tensor with axes; numbers, as of steps, are none."""
    if torch.is_tensor(value):
        return value.ndim > 0
    if isinstance(value, list | tuple | dict):
        raise OptimizerStateError(
            f"the optimizer state holds `{field}` for `{name}` as a {type(value).__name__}, which cannot "
            "be carried; expected tensors. Use Adam, AdamW, SGD or RMSprop, or initialise the optimizer "
            "afresh."
        )
    return False


@dataclass(frozen=True, eq=False)
class Gradient:
    """A gradient that a parameter holds, or that FSDP2 keeps for it until it is summed over processes."""

    owner: Any
    field: str
    value: Any

    def renewed(self, value: HostArray) -> NewGradient:
        """What puts another one of any shape in its place."""
        return NewGradient(self, sharded_like(self.value, tensor_like(self.value, value)))


class NewGradient(Step):
    """Gives a parameter that has got another shape its gradient."""

    def __init__(self, held: Gradient, new: Any) -> None:
        self._held, self._new = held, new

    def make(self) -> None:
        """Assign it."""
        setattr(self._held.owner, self._held.field, self._new)

    def undo(self) -> None:
        """Nothing: the old gradient comes back with the old shape."""


def held_gradients(model: Any, tensor: Any) -> dict[str, Gradient]:
    """Return the gradients of one parameter by field."""
    owners = [(tensor, "grad")]
    if is_sharded(tensor):
        owners.append((managed(model, tensor), "accumulated_gradient"))
    held = [Gradient(owner, field, getattr(owner, field)) for owner, field in owners]
    return {gradient.field: gradient for gradient in held if gradient.value is not None}


def gradients_of(model: Any, handles: Sequence[LayerHandle]) -> list[Moments]:
    """Return the gradients of the layers; where they are sharded, every rank has to call this."""
    found: list[Moments] = []
    for handle in handles:
        fields: dict[str, dict[str, tuple[Any, HostArray]]] = {}
        for name in handle.kind.names():
            for field, gradient in held_gradients(model, getattr(handle.layer, name)).items():
                key = handle.path, name, field
                fields.setdefault(field, {})[name] = key, host_array(whole(gradient.value))
        found += [
            Moments(field, f"layer {handle.name}", handle.path, arrays)
            for field, arrays in fields.items()
        ]
    return found
