"""The three runs of the demo, in order, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from ssmreduce.demo.data import SequenceData, load_digits, load_smnist
from ssmreduce.demo.settings import Settings
from ssmreduce.demo.training import Problem, Run, Watch, train
from ssmreduce.reduction.order import HankelMass
from ssmreduce.training.reducer import InTrainingReducer
from ssmreduce.training.schedule import ReductionSchedule
from ssmreduce.training.tracking import ReductionEvent

RUN_NAMES = ("full", "reduced", "small")

# Called with the name of a run and its steps; gives what `train` reports its progress to.
Display = Callable[[str, int], AbstractContextManager[Watch]]


@dataclass
class Experiment:
    """Three runs with the same seed, batches and number of steps.

    Attributes
    ----------
    settings : Settings
        What was asked for.
    runs : dict
        A `Run` for each of "full", "reduced" and "small".
    events : list of ReductionEvent
        The cuts of the reduced run.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    settings: Settings
    runs: dict[str, Run] = field(default_factory=lambda: {name: Run(name) for name in RUN_NAMES})
    events: list[ReductionEvent] = field(default_factory=list)
    interrupted: bool = False


def load(settings: Settings) -> SequenceData:
    """Sequences that the settings name.

    Raises
    ------
    DataFileError
        If the file is not what it should be.
    MissingBackendError
        If scikit-learn is needed and not installed.
    """
    return load_digits() if settings.data is None else load_smnist(settings.data)


def run_experiment(experiment: Experiment, data: SequenceData, display: Display) -> None:
    """Train at full size, reduced in training, and at the final size from scratch.

    Parameters
    ----------
    experiment : Experiment
        Filled as the runs go on. Ctrl-C ends them; `experiment` then holds what was reached.
    data : SequenceData
        Training and test sequences.
    display : callable
        Shows the progress of each run.
    """
    settings, runs = experiment.settings, experiment.runs
    full_size = [settings.states] * settings.blocks
    reducer = InTrainingReducer(
        ReductionSchedule(settings.steps, attempts=settings.attempts),
        order=HankelMass(1.0 - settings.tau),
    )
    try:
        problem = Problem(data, settings)
        # JAX starts up in a step that is thrown away: no run's seconds pay for it.
        warm_up = replace(settings, steps=1)
        train(Run("warm-up"), problem, warm_up, [1] * settings.blocks, lambda progress: None)
        with display("full", settings.steps) as watch:
            train(runs["full"], problem, settings, full_size, watch)
        with display("reduced", settings.steps) as watch:
            train(runs["reduced"], problem, settings, full_size, watch, reducer)
        with display("small", settings.steps) as watch:
            train(runs["small"], problem, settings, runs["reduced"].states_per_layer, watch)
    except KeyboardInterrupt:
        experiment.interrupted = True
    finally:
        experiment.events = reducer.events
