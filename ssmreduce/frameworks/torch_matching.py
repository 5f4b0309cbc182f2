"""Train some layers of a copy of a PyTorch model, so that it puts out what another one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    weights = list({id(each): each for each in _parameters(handles)}.values())
    if not weights:
        return model
    for each in weights:
        each.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, eps=_epsilon(weights))
    with in_evaluation(model), torch.enable_grad():
        for step, rate in enumerate(rates):
            at = step % len(batches)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            pairs = pairs_of(_tensors(forward(model, batches[at])), targets[at])
            error = torch.stack([(own - other).abs().square().mean() for own, other in pairs])
            error.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def _epsilon(weights: Sequence[torch.Tensor]) -> float:
    """What keeps Adam from dividing by zero, in the coarsest type of the weights."""
    return max(1e-8, *(torch.finfo(each.dtype).tiny for each in weights))


def _parameters(handles: Sequence[LayerHandle]) -> list[torch.nn.Parameter]:
    """Those that the layers are made of; what they hold as buffers stays."""
    held = [tensor for each in handles for tensor in each.arrays.values()]
    return [
        each
        for each in held
        if isinstance(each, torch.nn.Parameter) and (each.is_floating_point() or each.is_complex())
    ]


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors in tuples, lists and dicts, in their order, without those of integers."""
    if torch.is_tensor(output):
        return [output] if output.is_floating_point() or output.is_complex() else []
    if isinstance(output, Mapping):
        output = [*output.values()]
    if isinstance(output, tuple | list):
        return [tensor for each in output for tensor in _tensors(each)]
    return []
