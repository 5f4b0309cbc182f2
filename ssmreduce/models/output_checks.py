"""What layers put out is what their weights say: checked for the first sequence of each call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ssmreduce._checks import naming
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.recording import Recorded

_SAME, _ROUNDINGS = 1e-2, 8
"""Relative difference up to which a layer puts out what its weights say: this, or some roundings in half."""

_TOGETHER = 16
"""Sequences that are checked together, at most: more take memory and no less time."""


@dataclass(eq=False)
class OutputChecks:
    """Calls that are still to be checked, those of one layer and length together."""

    _waiting: dict[tuple[Path, tuple[int, ...]], list[tuple[LayerHandle, Recorded]]] = field(
        default_factory=dict
    )

    def add(self, handle: LayerHandle, call: Recorded) -> None:
        """Keep the first sequence of a call, where it is known what came out; check them by the dozen."""
        if call.first_output is None:
            return
        mask = None if call.mask is None else call.mask[:1]
        first = Recorded(call.inputs[:1].copy(), call.first_output, None, mask)
        key = handle.path, first.inputs.shape
        waiting = self._waiting.setdefault(key, [])
        waiting.append((handle, first))
        if len(waiting) >= _TOGETHER:
            _check(self._waiting.pop(key))

    def check(self) -> None:
        """Check what is still waiting.

        Raises
        ------
        UnsupportedLayerError
            If something else came out than the weights say.
        """
        for waiting in self._waiting.values():
            _check(waiting)
        self._waiting.clear()


def _check(waiting: list[tuple[LayerHandle, Recorded]]) -> None:
    handle, _ = waiting[0]
    inputs = np.concatenate([call.inputs for _, call in waiting]).astype(np.float64)
    with naming(f"layer `{handle.name}`"):
        outputs = handle.kind.output(handle.weights, inputs)
    for (_, call), own in zip(waiting, outputs, strict=True):
        size = float(np.max(np.abs(own), initial=0.0))
        apart = np.inf
        if call.first_output is not None and own.shape == call.first_output.shape:
            steps = slice(None) if call.mask is None else call.mask[0]
            apart = float(np.max(np.abs(own - call.first_output)[steps], initial=0.0))
        if not apart <= max(_SAME, _ROUNDINGS * handle.eps) * size:
            raise UnsupportedLayerError(
                f"layer `{handle.name}` puts out something else than its weights say, by {apart:.3g} of "
                f"{size:.3g}; expected a run from rest with steps of one length, of one sequence or a "
                "batch. Map a model of single sequences over its batches, and leave out initial states and "
                "step_scale, or the layer with options=CutOptions(exclude=...)."
            )
