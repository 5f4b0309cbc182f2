"""One training run of the demo, full, reduced or small."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import Array

from ssmreduce.demo.data import SequenceData
from ssmreduce.demo.model import SequenceClassifier
from ssmreduce.demo.runs import Clock, CurvePoint, Run, Watch
from ssmreduce.demo.settings import Settings
from ssmreduce.models.systems_of_layers import read_system
from ssmreduce.regularizers import modal_l1
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.training.reducer import InTrainingReducer

# Evaluations begin where the default schedule of cuts ends: the shapes between cuts are then never
# compiled for evaluation.
_EVALUATIONS = 20
_FIRST_EVALUATION_SHARE = 0.1
_EVALUATION_BATCH = 100
_REFERENCE = 500
# Test batches of the evaluations during a run; the one at its end sees all.
_WATCHED_BATCHES = 10
_READINGS = 100

_WARM_UP_SHARE = 0.05
_FINAL_LEARNING_RATE_SHARE = 0.01
_WEIGHT_DECAY = 0.05
# As in the LRU paper: the recurrence learns slower than the rest; the recurrence and B do not decay.
_RECURRENCE_LEARNING_RATE_SHARE = 0.25
_RECURRENCE = frozenset({"nu_log", "theta_log", "gamma_log"})
_NO_DECAY = _RECURRENCE | {"B_re", "B_im"}


Reached = tuple[SequenceClassifier, Any, Array]
"""Model, state of the optimizer, and the loss before the last step."""


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
        self.classes = data.classes
        self.sequences = jnp.asarray(data.train_sequences)
        self.labels = jnp.asarray(data.train_labels)
        count = len(data.train_labels)
        generator = np.random.default_rng(settings.seed)
        self.batches = _batches(count, settings.batch_size, settings.steps, generator)
        self.reference = self.sequences[generator.permutation(count)[:_REFERENCE]]
        # Files may be sorted; the batches watched during a run must be like the rest.
        order = np.random.default_rng(0).permutation(len(data.test_labels))
        self.test_batches = [
            (jnp.asarray(data.test_sequences[part]), jnp.asarray(data.test_labels[part]))
            for part in np.array_split(order, -(-len(order) // _EVALUATION_BATCH))
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
        Size of the model, steps, learning rate, penalty and seed.
    states_per_layer : sequence of int
        Stored states of each LRU at the start.
    watch : callable
        Called with `run` about a hundred times.
    reducer : InTrainingReducer, optional
        Asked for a cut at its attempts. Up to the last one the loss has the penalty of the settings.
    """
    clock = Clock(run)
    # Every run pays for all of its compilations.
    jax.clear_caches()  # type: ignore[no-untyped-call]
    run.states_per_layer = list(states_per_layer)
    watch(run)
    model = SequenceClassifier(
        states_per_layer, settings.width, problem.classes, rng=np.random.default_rng(settings.seed)
    )
    optimizer = make_optimizer(settings)
    optimizer_state = jax.jit(optimizer.init)(model)
    update = jax.jit(
        partial(update_often, optimizer), donate_argnums=(0, 1), static_argnames="penalty"
    )
    attempts = () if reducer is None else reducer.schedule.steps
    uncut = []
    try:
        for step in range(1, settings.steps + 1):
            is_read = _due(step, settings.steps, _READINGS)
            if not is_read and step not in attempts:
                continue
            penalty = settings.penalty if attempts and step <= attempts[-1] else 0.0
            batches = problem.batches, run.step, step
            model, optimizer_state, loss = update(
                model, optimizer_state, problem.sequences, problem.labels, *batches, penalty=penalty
            )
            run.step, run.loss = step, float(loss)
            if reducer is not None and reducer.due(step):
                uncut.append((clock.point(math.nan), jax.tree.map(np.array, model)))
                model, optimizer_state = reducer.step(step, model, optimizer_state)
                _record_cut(run, clock, model, reducer)
            if is_read:
                _evaluate(run, clock, model, problem, settings.steps)
                watch(run)
    finally:
        clock.read()
    _look_back(run, problem, model, uncut)
    watch(run)


def _record_cut(
    run: Run, clock: Clock, model: SequenceClassifier, reducer: InTrainingReducer
) -> None:
    seconds = clock.read()
    if len(reducer.events) > len(run.events):
        run.events, run.states_per_layer = reducer.events, model.states
        run.cut_times.append(seconds)


def _evaluate(
    run: Run, clock: Clock, model: SequenceClassifier, problem: Problem, steps: int
) -> None:
    """Add a point to the curve, if one is due."""
    if run.step >= _FIRST_EVALUATION_SHARE * steps and _due(run.step, steps, _EVALUATIONS):
        batches = None if run.step == steps else _WATCHED_BATCHES
        run.curve.append(clock.point(_accuracy(model, problem, batches)))
    clock.read()


def _look_back(
    run: Run,
    problem: Problem,
    model: SequenceClassifier,
    uncut: Sequence[tuple[CurvePoint, SequenceClassifier]],
) -> None:
    """Complete a run, off the clock: points from right before the cuts, and the poles at the end."""
    for point, before in uncut:
        accuracy = _accuracy(before, problem, _WATCHED_BATCHES)
        run.curve.append(replace(point, accuracy=accuracy))
    run.curve.sort(key=lambda point: point.seconds)
    run.poles = np.concatenate([np.asarray(block.lru.eigenvalues) for block in model.blocks])
    run.complete = True


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
    penalty: float = 0.0,
) -> Reached:
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
    penalty : float, optional
        Factor of `modal_l1` of every LRU in the loss.

    Returns
    -------
    Reached
        Model, optimizer state, and the loss before the step.
    """
    loss, gradient = jax.value_and_grad(loss_of)(model, sequences[batch], labels[batch], penalty)
    updates, optimizer_state = optimizer.update(gradient, optimizer_state, model)
    return optax.apply_updates(model, updates), optimizer_state, loss


def update_often(
    optimizer: optax.GradientTransformationExtraArgs,
    model: SequenceClassifier,
    optimizer_state: Any,
    sequences: Array,
    labels: Array,
    batches: Array,
    start: int,
    stop: int,
    penalty: float = 0.0,
) -> Reached:
    """Do the steps on rows `start` … `stop` - 1 of `batches` in one compiled loop.

    It is compiled once for any number of steps. The loss is that before the last one.
    """

    def update(row: Array, reached: Reached) -> Reached:
        model, optimizer_state, _ = reached
        return update_model(
            optimizer, model, optimizer_state, sequences, labels, batches[row], penalty
        )

    last: Reached = jax.lax.fori_loop(start, stop, update, (model, optimizer_state, jnp.zeros(())))
    return last


def loss_of(model: SequenceClassifier, sequences: Array, labels: Array, penalty: float) -> Array:
    """Mean cross-entropy, and `penalty` times the `modal_l1` of every LRU."""
    scores, _ = model(sequences)
    targets = jax.nn.one_hot(labels, scores.shape[-1])
    loss = jnp.mean(optax.softmax_cross_entropy(scores, targets))
    if penalty:
        systems = [cast(DiagonalStateSpace, read_system(block.lru)) for block in model.blocks]
        loss += penalty * sum(map(modal_l1, systems))
    return loss


def _accuracy(model: SequenceClassifier, problem: Problem, batches: int | None) -> float:
    """Share of right answers on the first test batches, normalised as the training sequences are."""
    parts = problem.test_batches[:batches]
    right = sum(int(_right(model, problem.reference, *part)) for part in parts)
    return right / sum(len(labels) for _, labels in parts)


@jax.jit
def _right(model: SequenceClassifier, reference: Array, sequences: Array, labels: Array) -> Array:
    _, statistics = model(reference)
    scores, _ = model(sequences, statistics)
    return jnp.sum(jnp.argmax(scores, axis=-1) == labels)


def _due(step: int, steps: int, times: int) -> bool:
    """Whether `step` is one of `times` evenly spaced ones among 1 … steps, the last included."""
    return step * times // steps > (step - 1) * times // steps
