"""`Recorder`: the records that a reducer takes for its trace, and what it tells a writer of TensorBoard."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ssmreduce._array_routes import warn_caller
from ssmreduce._checks import check_instance
from ssmreduce.errors import SSMReduceError
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import agreement, with_full_layers
from ssmreduce.models.search import Layers
from ssmreduce.training.board import write_event, write_trace
from ssmreduce.training.records import HankelRecord
from ssmreduce.training.trace import HankelTrace
from ssmreduce.training.tracking import ReductionEvent


class Recorder:
    """Takes records into a copy of a trace, which stands once the step does; the trace may be None."""

    def __init__(self) -> None:
        self.writer: Any = None
        self._succeeds = True

    def recorded(
        self, trace: HankelTrace | None, step: int, model: Any, options: CutOptions
    ) -> HankelTrace:
        """A copy of the trace with the records of this step."""
        if trace is None:
            return HankelTrace(1)
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
        """What an attempt cuts by, on all processes; the trace gets records of it."""
        with agreement(found.team):
            data = _calibration(calibrate, found.model)
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
            write_trace(self.writer, trace)
        for event in events:
            write_event(self.writer, event)

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


def _calibration(calibrate: Callable[[Any], Calibration], model: Any) -> Calibration:
    data = calibrate(model)
    check_instance(data, Calibration, "data(model)", "calibrate(model, batches)")
    return data
