"""Losses of constant predictions: what a PyTorch model puts out is replaced by the same for all sequences.

The module whose output is replaced is the outermost one that holds all layers and on whose output the loss
depends: the model itself, or where a model returns its loss, or a loss calls a part of it, a module inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch._C import _functorch

from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.recording import SAME_LOSS
from ssmreduce.frameworks.torch_arrays import mapped
from ssmreduce.frameworks.torch_recording import evaluated, record

_ENOUGH = 8
"""Sequences of which a mean says little about each."""


def constant_losses(
    model: Any, handles: Sequence[LayerHandle], run: Callable[[Any], Any]
) -> dict[str, float]:
    """Return the losses of a run with zeros for output, and with its mean over sequences if there are enough.

    None of them where nothing that the layers are part of puts out one result for each sequence.
    """
    usual: list[Any] = []
    calls = record(model, handles, lambda model: usual.append(run(model)), differentiates=False)
    counts = {len(call.inputs) for own in calls.values() for call in own}
    if len(counts) != 1 or counts == {1}:
        return {}
    (count,) = counts
    for module in _around(model, handles):
        zero = _with_output(model, module, partial(_changed, count, _zero), run)
        if not math.isclose(zero, float(usual[0].detach()), rel_tol=SAME_LOSS):
            found = {"zero": zero}
            if count >= _ENOUGH:
                found["mean"] = _with_output(model, module, partial(_changed, count, _mean), run)
            return {kind: value for kind, value in found.items() if math.isfinite(value)}
    return {}


def _around(model: Any, handles: Sequence[LayerHandle]) -> Iterator[Any]:
    """The modules that hold all layers, from the model inwards."""
    layers = {id(each.layer) for each in handles}
    module = model
    while module is not None:
        yield module
        module = next(
            (each for each in module.children() if layers <= {id(m) for m in each.modules()}), None
        )


def _with_output(
    model: Any,
    module: Any,
    change: Callable[[torch.Tensor], torch.Tensor],
    run: Callable[[Any], Any],
) -> float:
    """The loss of a run in which the output of a module is another."""
    with module.register_forward_hook(lambda module, args, output: mapped(output, change)):
        return evaluated(model, run)


def _changed(
    count: int, change: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor
) -> torch.Tensor:
    """A tensor of as many sequences changed; any other as it is."""
    is_of_sequences = (
        tensor.is_floating_point()
        and not _functorch.is_batchedtensor(tensor)
        and tensor.ndim > 0
        and tensor.shape[0] == count
    )
    return change(tensor) if is_of_sequences else tensor


def _mean(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mean(dim=0, keepdim=True).expand_as(tensor).clone()


def _zero(tensor: torch.Tensor) -> torch.Tensor:
    return 0.0 * tensor.nan_to_num(0.0, 0.0, 0.0)  # a loss may differentiate them
