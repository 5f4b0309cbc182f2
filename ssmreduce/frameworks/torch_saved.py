"""State dicts of PyTorch modules: what may replace a tensor, and loading that can be undone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ssmreduce import _checks
from ssmreduce.errors import NonFiniteError, ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.torch_arrays import SHARDED
from ssmreduce.frameworks.transaction import Change, Step


def check_tensor(present: Any, saved: Any, name: str) -> None:
    """Raise unless `saved` can replace a tensor of a model, as far as its kind and its numbers tell.

    Raises
    ------
    ShapeError
        If it is no tensor, of another layout or dtype, or without numbers of its own.
    NonFiniteError
        If it is to be a parameter and holds NaN or Inf; masks, which are buffers, may.
    UnsupportedLayerError
        If the model has no numbers there yet.
    """
    if not torch.is_tensor(present):
        return
    if not torch.is_tensor(saved):
        raise ShapeError(
            f"{name} is a {_checks.type_name(saved)}; expected a tensor. Convert it with torch.as_tensor."
        )
    if torch.nn.parameter.is_lazy(present) or present.is_meta:
        raise UnsupportedLayerError(
            f"{name} is to replace a tensor that has no numbers yet, of a lazy module or on the device "
            '"meta"; expected weights. Call the model once, or model.to_empty(device=...), first.'
        )
    _check_kind(present, saved, name)
    if saved.dtype != present.dtype and not _fits(saved.dtype, present.dtype):
        raise ShapeError(
            f"{name} has dtype {saved.dtype} but the model {present.dtype}; expected the same, or one "
            "that it can hold. Build the model as it was."
        )
    if isinstance(present, torch.nn.Parameter) and not _is_finite(saved):
        raise NonFiniteError(
            f"{name} holds NaN or Inf; expected finite numbers. Load a checkpoint from before training "
            "diverged."
        )


def _check_kind(present: Any, saved: Any, name: str) -> None:
    """Raise `ShapeError` unless the numbers of `saved` are laid out like those that are there."""
    if torch.nn.parameter.is_lazy(saved) or saved.is_meta:
        raise ShapeError(
            f'{name} has no numbers, as on the device "meta"; expected a tensor that has them. Load the file '
            'with map_location="cpu".'
        )
    here, there = _kind(present), _kind(saved)
    if here != there:
        advice = "Convert it, for example with to_dense() or dequantize()."
        if here == "sharded":
            here, advice = "sharded over processes", "Load before fully_shard."
        raise ShapeError(
            f"{name} is {there} but the model has one that is {here}; expected the same. {advice}"
        )
    if there == "plain" and saved.numel() > max(
        present.numel(), saved.untyped_storage().nbytes() // saved.element_size()
    ):
        raise ShapeError(
            f"{name} has shape {tuple(saved.shape)} but {saved.untyped_storage().nbytes()} bytes; expected "
            "a number for each entry. Save it with contiguous()."
        )


def _kind(tensor: Any) -> str:
    """How the numbers of a tensor are laid out."""
    if isinstance(tensor, SHARDED):
        return "sharded"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    return "plain"


def _fits(saved: Any, present: Any) -> bool:
    """Whether numbers of one dtype are those of the other, rounding apart: floats are no integers."""
    inexact = saved.is_floating_point or saved.is_complex
    needs = present.is_floating_point or present.is_complex
    return bool(torch.can_cast(saved, present)) and inexact == needs


def _is_finite(tensor: Any) -> bool:
    """Whether a plain tensor is finite; others are not looked at."""
    if _kind(tensor) != "plain" or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    values = tensor.detach()
    # Floats of one byte know fewer functions.
    values = values.float() if values.element_size() == 1 else values
    return bool(torch.isfinite(values).all())


def loading_steps(model: Any, state_dict: Mapping[str, Any], resizes: Sequence[Step]) -> list[Step]:
    """The steps that give shapes, and those that load, there and back; numbers are kept on the host."""
    tensors = [
        (tensor, tensor.detach().to("cpu", copy=True))
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.layout is not torch.strided or 0 not in tensor.stride()
    ]
    extra = [
        (part, copy.deepcopy(part.get_extra_state()))
        for part in model.modules()
        if type(part).get_extra_state is not torch.nn.Module.get_extra_state
    ]
    back = Change(undo=partial(_put_back, tensors, extra))  # undone last, when shapes are back
    # torch sets the mode of autograd while it loads.
    mode = partial(torch.set_grad_enabled, torch.is_grad_enabled())
    return [back, *resizes, Change(partial(model.load_state_dict, state_dict), mode)]


def _put_back(tensors: Sequence[tuple[Any, Any]], extra: Sequence[tuple[Any, Any]]) -> None:
    """Put back numbers and extra state."""
    for tensor, values in tensors:
        tensor.detach().copy_(values)
    for part, value in extra:
        part.set_extra_state(value)
