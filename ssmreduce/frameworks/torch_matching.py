"""Train some layers of a copy of a PyTorch model, so that it puts out what another one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch

from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.recording import pairs_of
from ssmreduce.frameworks.torch_recording import in_evaluation, untouched


def outputs(
    model: Any, forward: Callable[[Any, Any], Any], batches: Sequence[Any]
) -> list[list[torch.Tensor]]:
    """Return, for each batch, the floating-point tensors that `forward` returns, without a graph."""
    with untouched(model, (), differentiates=False), torch.no_grad():
        return [_tensors(forward(model, batch)) for batch in batches]


def matched(
    model: Any,
    handles: Sequence[LayerHandle],
    forward: Callable[[Any, Any], Any],
    batches: Sequence[Any],
    targets: Sequence[list[torch.Tensor]],
    rates: Sequence[float],
) -> Any:
    """Return `model` itself, in which the parameters of the layers were trained.

    Buffers stay as the runs leave them: one may say what parameters mean that were trained.
    """
    model.requires_grad_(False)
    held = (each for handle in handles for each in handle.arrays.values())
    # What layers hold as buffers stays.
    weights = [
        each
        for each in dict.fromkeys(held)
        if isinstance(each, torch.nn.Parameter) and _is_inexact(each)
    ]
    if not weights:
        return model
    for each in weights:
        each.requires_grad_(True)
    # What keeps Adam from dividing by zero, in the coarsest type of the weights.
    eps = max(1e-8, *(torch.finfo(each.dtype).tiny for each in weights))
    optimizer = torch.optim.Adam(weights, eps=eps)
    with in_evaluation(model), torch.enable_grad():
        for rate, batch, target in zip(rates, cycle(batches), cycle(targets), strict=False):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            pairs = pairs_of(_tensors(forward(model, batch)), target)
            error = torch.stack([(own - other).abs().square().mean() for own, other in pairs])
            error.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def _is_inexact(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors in tuples, lists and dicts, in their order, without those of integers."""
    if torch.is_tensor(output):
        return [output] if _is_inexact(output) else []
    if isinstance(output, Mapping):
        output = [*output.values()]
    if isinstance(output, tuple | list):
        return [tensor for each in output for tensor in _tensors(each)]
    return []
