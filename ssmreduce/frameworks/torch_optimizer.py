"""What an optimizer of PyTorch, and the parameters themselves, hold for the weights of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import OptimizerStateError
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, Path
from ssmreduce.frameworks.moments import Moment
from ssmreduce.frameworks.torch_arrays import SHARDED, host_arrays, tensors_like, whole
from ssmreduce.frameworks.torch_fsdp import managed
from ssmreduce.frameworks.transaction import Step, assignment
from ssmreduce.layers.cut import LayerCut

MomentKey = tuple[Path, str, str]
"""Where a moment is: path of the layer, name of the weight, field of the optimizer state."""

_KEPT = "accumulated_gradient"
"""Field of the gradient that FSDP2 keeps for a parameter until it is summed over processes."""


def check_optimizer(model: Any, opt_state: Any, followers: Sequence[Any]) -> None:
    """Raise `OptimizerStateError` unless an optimizer trains `model`, no follower, weight by weight."""
    if opt_state is None:
        return
    if not isinstance(opt_state, torch.optim.Optimizer):
        raise OptimizerStateError(
            f"`optimizer` is a {_checks.type_name(opt_state)}; expected a "
            "torch.optim.Optimizer. Pass the one that trains the model, or none."
        )
    if hasattr(opt_state, "consolidate_state_dict"):
        raise OptimizerStateError(
            f"`optimizer` is a {type(opt_state).__qualname__}, which keeps most of its state on other "
            "processes; expected one whose state is here. Shard the model with fully_shard instead, or "
            "make the optimizer anew after the cut."
        )
    held = {id(p): p for group in opt_state.param_groups for p in group["params"]}
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
    for parameter, state in opt_state.state.items():
        for field, value in state.items():
            if torch.is_tensor(value) and value.shape == (total,) != parameter.shape:
                raise OptimizerStateError(
                    f"`optimizer` is a {type(opt_state).__qualname__} that holds `{field}` for all "
                    "parameters joined, which cannot be carried; expected one tensor for each. Use "
                    "Adam, AdamW, SGD or RMSprop, or initialise the optimizer afresh."
                )


def moments_of(model: Any, opt_state: Any, handles: Sequence[LayerHandle]) -> list[Moment]:
    """Return what an optimizer holds for the layers: tensors with axes; numbers, as of steps, are none.

    Raises
    ------
    OptimizerStateError
        If its state cannot be carried.
    """
    if opt_state is None:
        return []
    held: dict[MomentKey, Any] = {}
    for handle in handles:
        for name, tensor in handle.arrays.items():
            for field, value in opt_state.state.get(tensor, {}).items():
                if isinstance(value, list | tuple | dict):
                    raise OptimizerStateError(
                        f"the optimizer state holds `{field}` for `{name}` as a {type(value).__name__}, "
                        "which cannot be carried; expected tensors. Use Adam, AdamW, SGD or RMSprop, or "
                        "initialise the optimizer afresh."
                    )
                if torch.is_tensor(value) and value.ndim > 0:
                    held[handle.path, name, field] = value
    layers = {handle.path: f"layer {handle.name}" for handle in handles}
    return [
        Moment(field, layers[path], path, name, (path, name, field), value)
        for (path, name, field), value in host_arrays(held).items()
    ]


def new_gradients(model: Any, changes: Sequence[LayerChange]) -> list[Step]:
    """What gives parameters of layers that are cut, once they have other shapes, their gradients.

    They are carried as first moments. Where they are sharded, every rank has to call this.
    """
    steps: list[Step] = []
    for change in changes:
        if change.cut is None:
            continue
        tensors = change.handle.arrays
        records = {
            name: managed(model, tensor)
            for name, tensor in tensors.items()
            if isinstance(tensor, SHARDED)
        }
        for field, owners in (("grad", tensors), (_KEPT, records)):
            held = {name: getattr(owner, field) for name, owner in owners.items()}
            held = {name: value for name, value in held.items() if value is not None}
            if held:
                full = {name: whole(value) for name, value in held.items()}
                carried = _carried(change.cut, host_arrays(full))
                new = tensors_like(held, carried, in_shards=True)
                # The old ones come back with the old shapes.
                steps += [
                    assignment(owners[name], field, value, None) for name, value in new.items()
                ]
    return steps


def _carried(cut: LayerCut, gradients: dict[str, HostArray]) -> dict[str, HostArray]:
    """Gradients of a reduced layer; NaN and Inf, which a scaler looks for, remain."""
    with np.errstate(invalid="ignore", over="ignore"):
        carried = cut.carry(gradients, squared=False)
    for name in cut.without_image:
        if name in carried and not np.all(np.isfinite(gradients[name])):
            carried[name] = np.full_like(carried[name], np.nan)
    return {
        name: carried[name] if name in cut.changed else value for name, value in gradients.items()
    }
