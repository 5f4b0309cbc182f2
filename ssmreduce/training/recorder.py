"""`Recorder`: the records that a reducer takes for its trace, and what it tells a writer of TensorBoard.

The writer is one that the user brings: any object with ``add_scalar(tag, value, step)`` will do, such as
torch's ``SummaryWriter``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ssmreduce._array_routes import warn_caller
from ssmreduce._checks import check_instance
from ssmreduce.errors import SSMReduceError
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import agreement, with_full_layers
from ssmreduce.models.search import Layers
from ssmreduce.training.records import HankelRecord
from ssmreduce.training.trace import HankelTrace
from ssmreduce.training.tracking import COLUMNS, ReductionEvent


class Recorder:
    """Takes records into a copy of a trace, which stands once the step does."""

    def __init__(self) -> None:
        self.writer: Any = None
        self._succeeds = True

    def recorded(
        self, trace: HankelTrace, step: int, model: Any, options: CutOptions
    ) -> HankelTrace:
        """A copy of the trace with the records of this step."""
        trace = copy.copy(trace)
        trace.records = list(trace.records)
        self._try(step, partial(trace.step, step, model, options))
        return trace

    def calibrated(
        self,
        calibrate: Callable[[Any], Calibration],
        trace: HankelTrace | None,
        step: int,
        found: Layers,
    ) -> Calibration:
        """What an attempt cuts by, on all processes; the trace, if there is one, gets records of it."""
        with agreement(found.team):
            data = calibrate(found.model)
            check_instance(data, Calibration, "data(model)", "calibrate(model, batches)")
        if trace is not None:
            full = with_full_layers(found)
            trained = [each for each in full.meant if each.path not in full.copies]
            self._try(step, partial(trace.record_layers, step, trained, data))
        return data

    def write(
        self,
        events: Iterable[ReductionEvent],
        trace: HankelTrace,
        latest: Sequence[HankelRecord],
    ) -> None:
        """Tell the writer of events, and of records if the last of them is not the latest one any more."""
        if self.writer is None:
            return
        if trace.records[-1:] != latest:
            for layer in trace.layers:
                self._write_record(trace, layer)
        for event in events:
            self._write_event(event)

    def _write_record(self, trace: HankelTrace, layer: str) -> None:
        """Write the latest record of a layer, and how its ranking agrees with the one before."""
        latest = trace.of_layer(layer)[-1]
        scalars = {"order": latest.shares.shape[-1], "states_kept": latest.kept(trace.share).size}
        for name, values in (("hsv", latest.hsv), ("data_hsv", latest.data_hsv)):
            if values is not None:
                scalars[f"{name}_sum"] = float(values.sum())
                scalars[f"{name}_largest"] = float(values.max())
        for previous in trace.agreement(layer)[-2:-1]:
            scalars["overlap"] = previous.overlap
            scalars["rank_correlation"] = previous.rank_correlation
        self._write(layer, latest.step, scalars)

    def _write_event(self, event: ReductionEvent) -> None:
        """Write a cut; once undone, the old order and the step of that cut."""
        if event.rolled_back is None:
            values = {name: getattr(event, name) for name in COLUMNS}
            scalars = {name: value for name, value in values.items() if isinstance(value, float)}
            self._write(event.layer, event.step, {"order": event.new_order, **scalars})
        else:
            scalars = {"order": event.old_order, "rolled_back": event.step}
            self._write(event.layer, event.rolled_back, scalars)

    def _write(self, layer: str, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(f"ssmreduce/{layer}/{name}", value, step)

    def _try(self, step: int, record: Callable[[], None]) -> None:
        """Record, or say once why there are no records any more."""
        try:
            record()
            self._succeeds = True
        except SSMReduceError as error:
            if self._succeeds:
                message = f"no record of the trace after step {step}, nor while this lasts: {error}"
                warn_caller(message, UserWarning)
            self._succeeds = False
