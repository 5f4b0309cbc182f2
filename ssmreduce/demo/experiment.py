"""Three runs for each seed, in processes of their own, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from ssmreduce.demo.data import SequenceData, load_digits, load_smnist
from ssmreduce.demo.processes import told_by_processes
from ssmreduce.demo.runs import Run, Watch
from ssmreduce.demo.settings import Settings
from ssmreduce.demo.tones import make_tones
from ssmreduce.demo.training import Problem, train
from ssmreduce.reduction.order import FixedOrder, HankelMass
from ssmreduce.training.reducer import InTrainingReducer
from ssmreduce.training.schedule import ReductionSchedule

RUN_NAMES = ("full", "reduced", "small")

_CHAINS = ("full",), ("reduced", "small")
"""Runs that follow one another: a small one has the size at which the reduced one ended."""


@dataclass
class Experiment:
    """Three runs for each seed, with the same data, batches and number of steps.

    Attributes
    ----------
    settings : Settings
        What was asked for.
    tested : int
        Test sequences of each run.
    runs : dict
        For each of "full", "reduced" and "small" a `Run` per seed.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    settings: Settings
    tested: int = 1
    runs: dict[str, list[Run]] = field(init=False)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.runs = {name: [Run(name, seed) for seed in self.seeds] for name in RUN_NAMES}

    @property
    def seeds(self) -> range:
        """All of them."""
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    def __iter__(self) -> Iterator[Run]:
        """All runs."""
        return (run for runs in self.runs.values() for run in runs)


def load(settings: Settings) -> SequenceData:
    """Sequences that the settings name.

    Raises
    ------
    DataFileError
        If the file is not what it should be.
    MissingBackendError
        If scikit-learn is needed and not installed.
    """
    if settings.dataset == "tones":
        return make_tones(settings.seed)
    return load_digits() if settings.data is None else load_smnist(settings.data)


def train_chain(settings: Settings, names: Sequence[str], watch: Watch) -> None:
    """Do runs of one seed one after the other; one after the reduced run begins at the size it ended with.

    Parameters
    ----------
    settings : Settings
        With the seed of these runs.
    names : sequence of str
        Which of "full", "reduced" and "small".
    watch : callable
        Called with each `Run` as it goes on.
    """
    problem = Problem(load(settings), settings)
    states = [settings.states] * settings.blocks
    for name in names:
        run = Run(name, settings.seed)
        train(
            run, problem, settings, states, watch, _reducer(settings) if name == "reduced" else None
        )
        states = run.states_per_layer


def _reducer(settings: Settings) -> InTrainingReducer:
    order = FixedOrder(settings.order) if settings.tau is None else HankelMass(1.0 - settings.tau)
    return InTrainingReducer(
        ReductionSchedule(settings.steps, attempts=settings.attempts), order=order
    )


def run_experiment(experiment: Experiment, watch: Watch) -> None:
    """Train at full size, reduced in training, and at the final size from scratch, for each seed.

    Parameters
    ----------
    experiment : Experiment
        Filled as the runs go on. Ctrl-C ends them; `experiment` then holds what was reached.
    watch : callable
        Called with each `Run` as it goes on.
    """
    settings = experiment.settings
    tasks = [
        (replace(settings, seed=seed), names) for names in _CHAINS for seed in experiment.seeds
    ]
    try:
        with closing(told_by_processes(train_chain, tasks)) as told:
            for run in told:
                experiment.runs[run.name][run.seed - settings.seed] = run
                watch(run)
    except KeyboardInterrupt:
        experiment.interrupted = True
