"""Sequences with padding that a layer is told of: what it computes at the other steps, as from rest.

A mixer of transformers sets its inputs to zero at masked steps, and what comes out of its convolution. After
padding in front its states are zero, as those of a sequence that begins there, and padding behind changes
nothing before. So sequences are moved to begin with their first step, and padded steps count nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.recording import Recorded


def without_padding(
    handle: LayerHandle, call: Recorded, counted: HostArray | None
) -> tuple[Recorded, HostArray | None]:
    """Return a call with padding behind alone, and which steps count: those of `counted` that are no padding.

    Raises
    ------
    ShapeError
        If a mask has another shape than the steps.
    UnsupportedLayerError
        If a mask has other numbers than 0 and 1 or padding between steps, or if the layer is not at rest
        after padding.
    """
    if call.mask is None:
        return call, counted
    mask = _checked(handle, call.mask, call.inputs.shape[:2])
    count, length = mask.shape
    steps = (np.argmax(mask, axis=1)[:, None] + np.arange(length)) % length
    at = np.arange(count)[:, None], steps
    own = mask[at]
    seen = own if counted is None else own & counted[at]
    if not seen.any():
        raise ShapeError(
            f"`{handle.kind.masked_by}` of layer `{handle.name}`, with `mask` where there is one, leaves no "
            "step of a batch; expected some that are not padding. Leave out batches of padding."
        )
    return (
        replace(
            call,
            inputs=np.where(own[..., None], call.inputs[at], 0.0).astype(call.inputs.dtype),
            first_output=None if call.first_output is None else call.first_output[steps[0]],
            squares=None if call.squares is None else call.squares[at],
            mask=own,
        ),
        seen,
    )


def _checked(handle: LayerHandle, given: HostArray, steps: tuple[int, ...]) -> HostArray:
    """The mask as bools."""
    name = f"`{handle.kind.masked_by}` of layer `{handle.name}`"
    if given.shape != steps:
        raise ShapeError(
            f"{name} has shape {given.shape}, but there are {steps[0]} sequences of {steps[1]} steps; "
            "expected one entry for each. Calibrate without a cache."
        )
    mask: HostArray = given != 0
    begins = np.diff(mask.astype(int), axis=1, prepend=0) == 1
    if np.any(mask != given) or np.any(begins.sum(axis=1) > 1):
        raise UnsupportedLayerError(
            f"{name} has other numbers than 0 and 1, or padding between steps; expected 1 for all steps of a "
            "sequence and 0 before or after them. Leave it out, or crop sequences."
        )
    if np.any(begins[:, 1:]) and not handle.kind.rests_while_masked(handle.weights):
        raise UnsupportedLayerError(
            f"{name} has padding in front of sequences, and `in_proj.bias` goes into the convolution there; "
            "expected no such bias, or sequences from rest. Pad behind: tokenizer.padding_side = 'right'."
        )
    return mask
