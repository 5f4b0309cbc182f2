"""What a training run records as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.training.tracking import ReductionEvent


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: updates done, seconds since the run began, loss, test accuracy (0 … 1), states."""

    step: int
    seconds: float
    loss: float
    accuracy: float
    states: int


@dataclass
class Run:
    """What a run has reached so far.

    Attributes
    ----------
    name : str
        "full", "reduced" or "small".
    seed : int
        Seed of its data, weights and batches.
    step : int
        Updates done.
    loss : float
        Training loss of the latest one.
    states_per_layer : list of int
        Stored states of each LRU, now.
    seconds : float
        Wall-clock time, compilation, cuts and evaluations included.
    processor_seconds : float
        The same on the clock of the process, which stands still while others have the core.
    complete : bool
        Whether it did all its steps.
    curve : list of CurvePoint
        Evaluations so far.
    cut_times : list of float
        Seconds since the run began, for every step at which layers were cut.
    events : list of ReductionEvent
        The cuts.
    poles : (n,) complex array
        Those of all layers at the end.
    """

    name: str
    seed: int = 0
    step: int = 0
    loss: float = math.nan
    states_per_layer: list[int] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0
    complete: bool = False
    curve: list[CurvePoint] = field(default_factory=list)
    cut_times: list[float] = field(default_factory=list)
    events: list[ReductionEvent] = field(default_factory=list)
    poles: HostArray = field(default_factory=lambda: np.zeros(0, np.complex128))

    @property
    def states(self) -> int:
        """Stored states of all layers."""
        return sum(self.states_per_layer)

    @property
    def accuracy(self) -> float | None:
        """Test accuracy at the latest evaluation, 0 … 1; None before the first."""
        return self.curve[-1].accuracy if self.curve else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; poles as [re, im]."""
        names = ("seed", "accuracy", "states", "states_per_layer", "seconds", "processor_seconds")
        return {
            **{name: getattr(self, name) for name in (*names, "complete", "cut_times")},
            "curve": [asdict(point) for point in self.curve],
            "poles": [[pole.real, pole.imag] for pole in self.poles.tolist()],
        }


Watch = Callable[[Run], None]


class Clock:
    """Keeps the seconds of a run, from when it is made."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._started = time.perf_counter(), time.process_time()

    def read(self) -> float:
        """Set the seconds of the run, and return those on the wall."""
        wall, processor = self._started
        self._run.seconds = time.perf_counter() - wall
        self._run.processor_seconds = time.process_time() - processor
        return self._run.seconds

    def point(self, accuracy: float) -> CurvePoint:
        """Return a point of the curve, with this accuracy."""
        run = self._run
        return CurvePoint(run.step, self.read(), run.loss, accuracy, run.states)
