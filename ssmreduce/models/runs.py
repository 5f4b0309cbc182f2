"""`Runs`: how a model is run on its batches, to record its layers, and for its loss on what was held out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray, to_host
from ssmreduce.errors import NonFiniteError, ShapeError
from ssmreduce.frameworks.framework import Framework
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.recording import Recorded
from ssmreduce.models.layer_records import PADDED, LayerRecord, cropped
from ssmreduce.models.masked_steps import without_padding
from ssmreduce.models.output_checks import OutputChecks
from ssmreduce.models.search import Layers


@dataclass(frozen=True, eq=False)
class Runs:
    """How a model is run: what it takes to look behind layers that were cut, and at a loss.

    Attributes
    ----------
    forward, loss, mask : callable
        As `calibrate` is told.
    batches : tuple
        What was recorded.
    held_out : tuple of bool
        Which of them nothing is fitted to; none of them where there is one batch.
    sizes : tuple of int
        How many sequences each has.
    most : int
        How many sequences of a layer are kept.
    """

    forward: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any] | None
    mask: Callable[[Any], Any] | None
    batches: tuple[Any, ...] = ()
    held_out: tuple[bool, ...] = ()
    sizes: tuple[int, ...] = ()
    most: int = sys.maxsize

    def recorded(
        self,
        found: Layers,
        batch: Any,
        *,
        differentiates: bool,
        checks: OutputChecks | None = None,
        enough: int | None = None,
    ) -> dict[str, LayerRecord]:
        """What the layers of a model are given in one batch; squares of derivatives, or ones, for weights.

        What they put out is added to `checks`. With `enough`, the run ends once each was given so many
        sequences.
        """
        calls = found.framework.record(
            found.model,
            found.meant,
            partial(self.run, found.framework, batch),
            differentiates=differentiates,
            enough=enough,
        )
        mask = None if self.mask is None else np.asarray(to_host(self.mask(batch)), dtype=bool)
        records: dict[str, LayerRecord] = {}
        by_path = {handle.path: handle for handle in found.meant}
        for path, own in calls.items():
            handle, parts = by_path[path], []
            for seen in own:
                call, counted = without_padding(handle, seen, _checked(handle, seen, mask))
                _check_inputs(handle, call)
                if checks is not None:
                    checks.add(handle, call)
                # An output that a loss does not depend on has no derivative, or zero.
                weights = _weights(call, counted, otherwise=0.0 if differentiates else 1.0)
                parts.append(LayerRecord(call.inputs, weights, np.zeros(len(call.inputs), bool)))
            records[handle.name] = parts[0].joined(*parts[1:])
        return records

    def run(self, framework: Framework, batch: Any, model: Any) -> Any:
        """Return the loss of a batch, or where there is none the output of the model."""
        if self.loss is None:
            return self.forward(model, batch)
        with framework.differentiable():
            return self.loss(model, batch)

    def inputs(
        self, found: Layers, known: Mapping[str, HostArray], *, is_uncut: bool
    ) -> Mapping[str, HostArray]:
        """What the layers in `known` are given in all batches by a model, as far as it is kept.

        If the first and the last batch give them what is `known`, bit for bit, and nothing was cut in this
        call, the others are not run: a change of the model since may not show in these two, though.
        """
        alone = replace(found, meant=[own for own in found.meant if own.name in known])
        run = partial(self.recorded, alone, differentiates=False)
        first, *others = zip(self.batches, self.sizes, strict=True)
        ends = [run(batch, enough=size) for batch, size in (first, *others[-1:])]
        if is_uncut and all(
            _has_ends(inputs, ends[0][name].inputs, ends[-1][name].inputs)
            for name, inputs in known.items()
        ):
            return known
        between = [run(batch, enough=size) for batch, size in others[:-1]]
        parts = [ends[0], *between, *ends[1:]]
        return {name: self.kept([part[name] for part in parts]).inputs for name in known}

    def kept(self, parts: Sequence[LayerRecord]) -> LayerRecord:
        """What is kept of the records of one layer, one for each batch."""
        first, *others = cropped(parts, self.held_out, self.most)
        return first.joined(*others)

    @property
    def fitting(self) -> list[Any]:
        """The batches that are not held out."""
        pairs = zip(self.batches, self.held_out, strict=True)
        return [batch for batch, is_held_out in pairs if not is_held_out]

    @property
    def held_out_loss(self) -> HeldOutLoss | None:
        """What candidates are compared by, where there is a loss, and a batch that was held out."""
        if self.loss is None or not any(self.held_out):
            return None
        batches, sizes = (compress(each, self.held_out) for each in (self.batches, self.sizes))
        return HeldOutLoss(self, [*batches], [*sizes])


@dataclass(frozen=True, eq=False)
class HeldOutLoss:
    """A loss, and the batches that nothing is fitted to.

    Attributes
    ----------
    runs : Runs
        What runs the model.
    batches : list
        One at least.
    sizes : list of int
        How many sequences each has: as much it counts in a mean.
    """

    runs: Runs
    batches: list[Any]
    sizes: list[int]

    def of(self, found: Layers) -> float:
        """Mean loss of a model."""
        evaluated, model = found.framework.evaluated, found.model
        return self._mean([evaluated(model, run) for run in self._runs(found)])

    def of_constant(self, found: Layers) -> float | None:
        """Mean loss of the best of a few constant predictions; None if there is none."""
        constant_losses, model = found.framework.constant_losses, found.model
        try:
            losses = [constant_losses(model, found.meant, run) for run in self._runs(found)]
        except Exception:  # a loss need not take zeros: a distribution has no scale of 0
            return None
        kinds = set(losses[0]).intersection(*losses)
        return min((self._mean([each[kind] for each in losses]) for kind in kinds), default=None)

    def _mean(self, losses: list[float]) -> float:
        return float(np.average(losses, weights=self.sizes))

    def _runs(self, found: Layers) -> list[Callable[[Any], Any]]:
        return [partial(self.runs.run, found.framework, batch) for batch in self.batches]


def _has_ends(inputs: HostArray, first: HostArray, last: HostArray) -> bool:
    """Whether these are the first and the last sequences, but for padding behind them."""
    return np.array_equal(inputs[: len(first), : first.shape[1]], first) and np.array_equal(
        inputs[-len(last) :, : last.shape[1]], last
    )


def _checked(handle: LayerHandle, call: Recorded, mask: HostArray | None) -> HostArray | None:
    """Raise `ShapeError` unless what `mask` returned says something about each step of a call."""
    steps = call.inputs.shape[:2]
    if mask is None:
        return None
    if mask.shape != steps:
        raise ShapeError(
            f"`mask` returned shape {mask.shape}, but layer `{handle.name}` is given {steps[0]} sequences of "
            f"{steps[1]} steps; expected one entry for each."
        )
    if not mask.any():
        raise ShapeError(
            f"`mask` returned {mask.size} entries of a batch that are all false; expected true for each step "
            "that is not padding. Turn it round, or leave out batches of padding."
        )
    return mask


def _weights(call: Recorded, counted: HostArray | None, *, otherwise: float) -> HostArray:
    """Squares of derivatives by what comes out at each step, where known; negative where padded."""
    steps = call.inputs.shape[:2]
    squares = np.full(steps, otherwise) if call.squares is None else call.squares.astype(np.float64)
    return squares if counted is None else np.where(counted, squares, PADDED)


def _check_inputs(handle: LayerHandle, call: Recorded) -> None:
    """Raise unless the inputs are finite, and derivatives as well."""
    if not np.all(np.isfinite(call.inputs)):
        raise NonFiniteError(
            f"layer `{handle.name}` is given NaN or Inf; expected finite inputs. Look at the batches, and at "
            "the layers before."
        )
    if call.squares is not None and not np.all(np.isfinite(call.squares)):
        raise NonFiniteError(
            f"the derivative of `loss` by what layer `{handle.name}` puts out has NaN or Inf; expected "
            "finite numbers. Look at the loss of each batch."
        )
