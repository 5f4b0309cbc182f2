"""Which parameters of a PyTorch model layers share, and whether they may be replaced now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrize

from ssmreduce._checks import type_name
from ssmreduce.errors import OptimizerStateError, UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.torch_arrays import SHARDED


def check_ready(model: Any, handles: Sequence[LayerHandle]) -> None:
    """Raise unless the arrays of the layers may be replaced now.

    Raises
    ------
    UnsupportedLayerError
        If one is computed by a parametrization, quantised, or shared with something of another shape, or if
        the initial state of a layer is learnt.
    OptimizerStateError
        Under `torch.inference_mode`, whose tensors can never be trained.
    """
    if torch.is_inference_mode_enabled():
        raise OptimizerStateError(
            "`torch.inference_mode` is on, whose tensors can never be trained; expected it off. "
            "Reduce outside of it; torch.no_grad() does no harm."
        )
    for handle in handles:
        for name in handle.kind.shapes:
            inside, _, own = name.rpartition(".")
            if parametrize.is_parametrized(handle.layer.get_submodule(inside), own):
                raise UnsupportedLayerError(
                    f"`{name}` of layer `{handle.name}` is computed by a parametrization; expected "
                    "a plain parameter. Call torch.nn.utils.parametrize.remove_parametrizations first."
                )
        for name, tensor in handle.arrays.items():
            floats = tensor.is_floating_point() or tensor.is_complex()
            computes = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
            if computes and not isinstance(tensor, (SHARDED, FakeTensor)):
                raise _quantised(handle, name, f"is a {type_name(tensor)}")
            if tensor.ndim > 1 and not floats:
                raise _quantised(handle, name, f"has dtype {tensor.dtype}")
        for name in handle.kind.states:
            if handle.layer._parameters.get(name) is not None:
                raise UnsupportedLayerError(
                    f"`{name}` of layer `{handle.name}` is a parameter: an initial state that is learnt, "
                    "which a cut does not carry; expected a buffer or attribute. Make it one first."
                )
    _check_sharing(model, handles)


def _quantised(handle: LayerHandle, name: str, found: str) -> UnsupportedLayerError:
    """The error for what something else scales: matrices of integers, tensors that compute their values."""
    return UnsupportedLayerError(
        f"`{name}` of layer `{handle.name}` {found}, as of a quantised or wrapped layer; "
        "expected a plain tensor of floating-point numbers. Cut the layer before."
    )


def _check_sharing(model: Any, handles: Sequence[LayerHandle]) -> None:
    """Refuse parameters shared with another module, unless two layers share all of them."""
    owned: dict[int, tuple[LayerHandle, str]] = {}
    for handle in handles:
        own = {id(tensor): (handle, name) for name, tensor in handle.arrays.items()}
        for twin in {owned[tensor][0] for tensor in own if tensor in owned}:
            _check_twins(handle, twin)
        owned |= own
    inside = {id(part) for handle in handles for part in handle.layer.modules()}
    layers = {id(handle.layer) for handle in handles}
    for name, module in model.named_modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        shared = [owned[id(tensor)] for tensor in tensors if id(tensor) in owned]
        if (
            not shared
            or id(module) in inside
            or any(id(part) in layers for part in module.modules())
        ):
            continue
        for owner, weight in shared:
            if weight in owner.kind.changing(owner.weights):
                raise _tied(owner.name, name or "model", weight, only=True)


def _check_twins(handle: LayerHandle, twin: LayerHandle) -> None:
    if not handle.kind.is_same(twin.kind):
        raise UnsupportedLayerError(
            f"layer `{handle.name}` shares its weights with `{twin.name}`, which computes "
            "something else from them; expected layers of one kind with the same options. Untie them "
            "first."
        )
    apart = [name for name, own in handle.arrays.items() if twin.arrays[name] is not own]
    if apart:
        raise _tied(handle.name, twin.name, ", ".join(apart))


def _tied(first: str, second: str, names: str, *, only: bool = False) -> UnsupportedLayerError:
    what = "shares only" if only else "shares parameters, but not"
    return UnsupportedLayerError(
        f"layer `{first}` {what} {names} with `{second}`; expected layers that share all "
        "weights or none: one cut has to fit both. Untie them first."
    )
