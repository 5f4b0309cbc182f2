"""One training run of the demo, full, reduced or small, and what it records as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import Array

from ssmreduce.demo.data import CLASSES, SequenceData
from ssmreduce.demo.model import SequenceClassifier, Statistics
from ssmreduce.demo.settings import Settings
from ssmreduce.training.reducer import InTrainingReducer

# Evaluations begin where the default schedule of cuts ends: the shapes between cuts are then never
# compiled for evaluation.
_EVALUATIONS = 20
_FIRST_EVALUATION_SHARE = 0.1
_EVALUATION_BATCH = 500
# Test batches of the evaluations during a run; the one at its end sees all.
_WATCHED_BATCHES = 4
_LOSS_READINGS = 100

_WARM_UP_SHARE = 0.05
_FINAL_LEARNING_RATE_SHARE = 0.01
_WEIGHT_DECAY = 0.05
# As in the LRU paper: the recurrence learns slower than the rest; the recurrence and B do not decay.
_RECURRENCE_LEARNING_RATE_SHARE = 0.25
_RECURRENCE = frozenset({"nu_log", "theta_log", "gamma_log"})
_NO_DECAY = _RECURRENCE | {"B_re", "B_im"}


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
    states_per_layer : list of int
        Stored states of each LRU, now.
    seconds : float
        Wall-clock time, compilation, cuts and evaluations included.
    complete : bool
        Whether it did all its steps.
    curve : list of CurvePoint
        Evaluations so far.
    cut_times : list of float
        Seconds since the run began, for every step at which layers were cut.
    """

    name: str
    states_per_layer: list[int] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False
    curve: list[CurvePoint] = field(default_factory=list)
    cut_times: list[float] = field(default_factory=list)

    @property
    def states(self) -> int:
        """Stored states of all layers."""
        return sum(self.states_per_layer)

    @property
    def accuracy(self) -> float | None:
        """Test accuracy at the latest evaluation, 0 … 1; None before the first."""
        return self.curve[-1].accuracy if self.curve else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "accuracy": self.accuracy,
            "states": self.states,
            "states_per_layer": self.states_per_layer,
            "seconds": self.seconds,
            "complete": self.complete,
            "cut_times": self.cut_times,
            "curve": [asdict(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Progress:
    """A reading during a run, for display; `evaluated` marks those with a new accuracy."""

    step: int
    seconds: float
    loss: float
    accuracy: float | None
    states: int
    evaluated: bool


Watch = Callable[[Progress], None]


class Problem:
    """The data on the device, and the order of the batches, which all runs share.

    Parameters
    ----------
    data : SequenceData
        Training and test sequences.
    settings : Settings
        Steps, batch size and seed.
    """

    def __init__(self, data: SequenceData, settings: Settings) -> None:
        self.sequences = jnp.asarray(data.train_sequences)
        self.labels = jnp.asarray(data.train_labels)
        count = len(data.train_labels)
        generator = np.random.default_rng(settings.seed)
        self.batches = _batches(count, settings.batch_size, settings.steps, generator)
        self.reference = self.sequences[generator.permutation(count)[:_EVALUATION_BATCH]]
        # Files may be sorted; the batches watched during a run must be like the rest.
        order = np.random.default_rng(0).permutation(len(data.test_labels))
        self.test_batches = [
            (jnp.asarray(data.test_sequences[part]), jnp.asarray(data.test_labels[part]))
            for part in np.split(order, range(_EVALUATION_BATCH, len(order), _EVALUATION_BATCH))
        ]


def _batches(
    count: int, batch_size: int, steps: int, generator: np.random.Generator
) -> npt.NDArray[np.int32]:
    """Indices of the sequences of each step: (steps, batch_size), every epoch in a new order."""
    size = min(batch_size, count)
    per_epoch = count // size
    epochs = [
        generator.permutation(count)[: per_epoch * size].reshape(per_epoch, size)
        for _ in range(-(-steps // per_epoch))
    ]
    return np.concatenate(epochs)[:steps].astype(np.int32)


def train(
    run: Run,
    problem: Problem,
    settings: Settings,
    states_per_layer: Sequence[int],
    watch: Watch,
    reducer: InTrainingReducer | None = None,
) -> None:
    """Train a fresh model and record it in `run`, which holds what was reached if this is interrupted.

    Parameters
    ----------
    run : Run
        Filled as the run goes on.
    problem : Problem
        Data and batches.
    settings : Settings
        Size of the model, steps, learning rate and seed.
    states_per_layer : sequence of int
        Stored states of each LRU at the start.
    watch : callable
        Called with a `Progress` about a hundred times.
    reducer : InTrainingReducer, optional
        Asked for a cut after every step.
    """
    started = time.perf_counter()
    # Every run pays for all of its compilations.
    jax.clear_caches()  # type: ignore[no-untyped-call]
    run.states_per_layer = list(states_per_layer)
    model = SequenceClassifier(
        states_per_layer, settings.width, CLASSES, rng=np.random.default_rng(settings.seed)
    )
    optimizer = make_optimizer(settings)
    optimizer_state = optimizer.init(model)
    update = jax.jit(partial(update_model, optimizer), donate_argnums=(0, 1))
    try:
        for step in range(1, settings.steps + 1):
            batch = problem.batches[step - 1]
            model, optimizer_state, loss = update(
                model, optimizer_state, problem.sequences, problem.labels, batch
            )
            if reducer is not None:
                before = len(reducer.events)
                model, optimizer_state = reducer.step(step, model, optimizer_state)
                if len(reducer.events) > before:
                    run.states_per_layer = model.states
                    run.cut_times.append(time.perf_counter() - started)
            evaluated = (
                _due(step, settings.steps, _EVALUATIONS)
                and step >= _FIRST_EVALUATION_SHARE * settings.steps
            )
            if evaluated:
                last = step == settings.steps
                accuracy = _accuracy(model, problem, None if last else _WATCHED_BATCHES)
                seconds = time.perf_counter() - started
                run.curve.append(CurvePoint(step, seconds, float(loss), accuracy, run.states))
            if evaluated or _due(step, settings.steps, _LOSS_READINGS):
                seconds = time.perf_counter() - started
                watch(Progress(step, seconds, float(loss), run.accuracy, run.states, evaluated))
        run.complete = True
    finally:
        run.seconds = time.perf_counter() - started


def make_optimizer(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """AdamW with linear warm-up and cosine decay.

    The recurrence learns slower than the rest; the recurrence and B have no weight decay.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=max(1, round(_WARM_UP_SHARE * settings.steps)),
        decay_steps=max(2, settings.steps),
        end_value=_FINAL_LEARNING_RATE_SHARE * settings.learning_rate,
    )

    def decays(weights: Any) -> Any:
        return _by_name(lambda name, _: name not in _NO_DECAY, weights)

    def slow_recurrence(updates: Any, _: Any) -> Any:
        share = _RECURRENCE_LEARNING_RATE_SHARE
        return _by_name(lambda name, x: share * x if name in _RECURRENCE else x, updates)

    return optax.chain(
        optax.adamw(schedule, weight_decay=_WEIGHT_DECAY, mask=decays),
        optax.stateless(slow_recurrence),
    )


def _by_name(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map function(attribute name, leaf) over a pytree of modules."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(getattr(path[-1], "name", ""), leaf), tree
    )


def update_model(
    optimizer: optax.GradientTransformationExtraArgs,
    model: SequenceClassifier,
    optimizer_state: Any,
    sequences: Array,
    labels: Array,
    batch: Array,
) -> tuple[SequenceClassifier, Any, Array]:
    """Do one optimizer step on the sequences numbered `batch`.

    Parameters
    ----------
    optimizer : optax.GradientTransformationExtraArgs
        What `make_optimizer` returned.
    model : SequenceClassifier
        Weights before the step.
    optimizer_state : pytree
        State of the optimizer before the step.
    sequences : (n, L) array
        All training sequences.
    labels : (n,) array
        Their classes.
    batch : (k,) array of int
        Which of them to learn from.

    Returns
    -------
    tuple
        Model, optimizer state, and the loss before the step.
    """
    loss, gradient = jax.value_and_grad(_loss)(model, sequences[batch], labels[batch])
    updates, optimizer_state = optimizer.update(gradient, optimizer_state, model)
    return optax.apply_updates(model, updates), optimizer_state, loss


def _loss(model: SequenceClassifier, sequences: Array, labels: Array) -> Array:
    scores, _ = model(sequences)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def _accuracy(model: SequenceClassifier, problem: Problem, batches: int | None) -> float:
    """Share of right answers on the first test batches, normalised as the training sequences are."""
    statistics = _reference_statistics(model, problem.reference)
    parts = problem.test_batches[:batches]
    right = sum(int(_right(model, statistics, *part)) for part in parts)
    return right / sum(len(labels) for _, labels in parts)


@jax.jit
def _reference_statistics(model: SequenceClassifier, reference: Array) -> list[Statistics]:
    return model(reference)[1]


@jax.jit
def _right(
    model: SequenceClassifier, statistics: list[Statistics], sequences: Array, labels: Array
) -> Array:
    scores, _ = model(sequences, statistics)
    return jnp.sum(jnp.argmax(scores, axis=-1) == labels)


def _due(step: int, steps: int, times: int) -> bool:
    """Whether `step` is one of `times` evenly spaced ones among 1 … steps, the last included."""
    return step * times // steps > (step - 1) * times // steps
