"""`LayerRecord`: the sequences that one layer is given, how much each step counts, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.gramians.sequences import LayerData, Sequences

_EACH = 4
"""One of so many is held out: batches, or sequences where there is one batch."""

_FLOOR = 1e-3
"""Added to weights with mean 1, so that each step counts a little."""

PADDED = -1.0
"""In place of a square where a sequence is padded."""


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """Recorded inputs of one layer, and how much each step counts.

    Attributes
    ----------
    inputs : (N, L, m) array
        Sequences, padded with zeros to the longest.
    weights : (N, L) array
        How much each step counts: 0 where padded.
    held_out : (N,) bool array
        Which of them are held out: nothing is fitted to these.
    targets : (N, L, p) array, optional
        Outputs to reproduce; by default those of the layer as it is.

    Raises
    ------
    ShapeError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Calibration
    >>> data = Calibration.of_inputs({"encoder": np.ones((8, 50, 4))})
    >>> record = data.layers["encoder"]
    >>> record.inputs.shape, int(record.held_out.sum())
    ((8, 50, 4), 2)
    """

    inputs: HostArray
    weights: HostArray
    held_out: HostArray
    targets: HostArray | None = None

    def __post_init__(self) -> None:
        arrays = [self.inputs, self.weights, self.held_out]
        shapes = [each.shape if isinstance(each, np.ndarray) else None for each in arrays]
        first = shapes[0]
        if first is None or len(first) != 3 or shapes[1:] != [first[:2], first[:1]]:
            raise ShapeError(
                f"`inputs`, `weights` and `held_out` have shapes {', '.join(map(str, shapes))}; expected "
                "arrays of shape (N, L, m), (N, L) and (N,). Try Calibration.of_inputs."
            )
        if self.held_out.dtype != bool:
            raise ShapeError(
                f"`held_out` has dtype {self.held_out.dtype}; expected bools. Try "
                "Calibration.of_inputs."
            )

    def outputs(self, handle: LayerHandle) -> HostArray:
        """Return the outputs that a layer is to reproduce.

        Parameters
        ----------
        handle : LayerHandle
            The layer.

        Returns
        -------
        (N, L, p) array
            `targets`, or the layer's outputs for `inputs`.
        """
        if self.targets is not None:
            return self.targets
        return handle.kind.output(handle.weights, self.inputs.astype(np.float64))

    def data(self, targets: HostArray) -> LayerData:
        """Return the record in two parts, one to fit to and one that is held out.

        Parameters
        ----------
        targets : (N, L, p) array
            What `outputs` returned.

        Returns
        -------
        LayerData
            With ``fitting`` and ``held_out``.
        """
        fitting, held_out = (
            Sequences(self.inputs[rows].astype(np.float64), targets[rows], self.weights[rows])
            for rows in (~self.held_out, self.held_out)
        )
        return LayerData(fitting, held_out)

    def joined(self, *others: LayerRecord) -> LayerRecord:
        """Return this record and `others` as one, padded to the longest."""
        if not others:
            return self
        length = max(record.inputs.shape[1] for record in (self, *others))
        padded = [_padded(record, length) for record in (self, *others)]
        targets = [record.targets for record in padded if record.targets is not None]
        return LayerRecord(
            np.concatenate([record.inputs for record in padded]),
            np.concatenate([record.weights for record in padded]),
            np.concatenate([record.held_out for record in padded]),
            np.concatenate(targets) if len(targets) == len(padded) else None,
        )


def every_fourth(count: int) -> HostArray:
    """Every fourth of so many, or the last; none of one."""
    out: HostArray = np.arange(count) % _EACH == _EACH - 1
    if not out.any() and count > 1:
        out[-1] = True
    return out


def cropped(
    records: Sequence[LayerRecord], held_out: Sequence[bool], most: int
) -> list[LayerRecord]:
    """The records of some batches, marked as held out or not, with `most` sequences at most.

    Batches held out get a quarter.

    The latest batches go first. Where fewer than a quarter are held out, the others get what is left.
    """
    sizes = [len(record.inputs) for record in records]
    out = sum(size for size, is_out in zip(sizes, held_out, strict=True) if is_out)
    rest = sum(sizes) - out
    left = {True: min(out, max(most // _EACH, most - rest, 1))}
    left[False] = most - left[True]
    found = []
    for record, size, is_out in zip(records, sizes, held_out, strict=True):
        count = min(size, left[is_out])
        left[is_out] -= count
        # From all over the batch: a layer that is called twice has the sequences of either call in turn.
        at = np.linspace(0, size - 1, count).round().astype(np.intp)
        found.append(LayerRecord(record.inputs[at], record.weights[at], np.full(count, is_out)))
    return found


def _padded(record: LayerRecord, length: int) -> LayerRecord:
    missing = length - record.inputs.shape[1]
    if not missing:
        return record
    return replace(
        record,
        inputs=np.pad(record.inputs, ((0, 0), (0, missing), (0, 0))),
        weights=np.pad(record.weights, ((0, 0), (0, missing)), constant_values=PADDED),
    )


def weighted(record: LayerRecord) -> LayerRecord:
    """The record with weights of mean 1 over each sequence, and a floor, 0 where padded.

    A loss reads each sequence as much as any other: one that the model knows has small derivatives, and
    would hardly count if they were compared.
    """
    counted = record.weights >= 0.0
    squares = np.where(counted, record.weights, 0.0)
    steps = np.maximum(np.sum(counted, axis=1, keepdims=True), 1)
    mean = np.sum(squares, axis=1, keepdims=True) / steps
    weights = np.where(mean > 0.0, squares / np.where(mean > 0.0, mean, 1.0), 1.0) + _FLOOR
    return replace(record, weights=np.where(counted, weights, 0.0))
