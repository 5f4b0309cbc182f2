"""The demo's model and optimizer, the batches that runs share, and what a run records."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmreduce.demo import experiment
from ssmreduce.demo.data import SequenceData
from ssmreduce.demo.model import SequenceClassifier
from ssmreduce.demo.processes import ProcessError, told_by_processes
from ssmreduce.demo.runs import Run
from ssmreduce.demo.settings import SettingsError, make_settings
from ssmreduce.demo.training import Problem, loss_of, make_optimizer, train
from ssmreduce.reduction.order import FixedOrder
from ssmreduce.training.reducer import InTrainingReducer
from ssmreduce.training.schedule import ReductionSchedule


@pytest.fixture
def data(rng):
    """Ten constant levels, told apart by their mean."""

    def part(count):
        labels = np.arange(count, dtype=np.int32) % 10
        noise = 0.02 * rng.standard_normal((count, 16))
        return (labels[:, None] / 10 + noise).astype(np.float32), labels

    return SequenceData("levels", *part(60), *part(30))


@pytest.fixture
def settings():
    """A small model and few steps."""
    chosen = make_settings(states=6, steps=20)
    return dataclasses.replace(chosen, width=4, blocks=2, batch_size=12, penalty=0.0)


def test_evaluation_with_the_batch_statistics_is_the_training_pass(rng):
    model = SequenceClassifier([5, 3], 4, 10, rng=np.random.default_rng(0))
    sequences = jnp.asarray(rng.uniform(size=(6, 20)), jnp.float32)
    call = jax.jit(lambda *args: model(*args))
    scores, statistics = call(sequences)
    again, _ = call(sequences, statistics)
    assert scores.shape == (6, 10)
    assert model.states == [5, 3]
    np.testing.assert_allclose(scores, again, atol=1e-5)
    # With given statistics a sequence's scores do not depend on its neighbours.
    alone, _ = call(sequences[:1], statistics)
    np.testing.assert_allclose(alone[0], scores[0], atol=1e-5)


def test_recurrence_learns_slower_and_does_not_decay(settings):
    model = SequenceClassifier([4], 4, 10, rng=np.random.default_rng(0))
    optimizer = make_optimizer(settings)
    gradient = jax.tree.map(jnp.ones_like, model)
    state = optimizer.init(model)
    update = jax.jit(optimizer.update)
    _, state = update(gradient, state, model)  # warm-up starts at a rate of zero
    updates, _ = update(gradient, state, model)
    lru = updates.blocks[0].lru
    # Equal gradients make equal Adam steps: what differs is the rate and the decay.
    np.testing.assert_allclose(lru.nu_log, 0.25 * lru.B_re[0, 0], rtol=1e-5)
    assert float(jnp.ptp(lru.B_re)) == 0.0
    assert float(jnp.ptp(lru.C_re)) > 0.0


def test_batches_are_a_new_permutation_every_epoch(data, settings):
    problem = Problem(data, settings)
    assert problem.batches.shape == (20, 12)
    first, second = problem.batches[:5].ravel(), problem.batches[5:10].ravel()
    assert sorted(first) == sorted(second) == list(range(60))
    assert list(first) != list(second)
    np.testing.assert_array_equal(problem.batches, Problem(data, settings).batches)


def test_small_data_sets_make_smaller_batches(data, settings):
    problem = Problem(data, dataclasses.replace(settings, batch_size=1000))
    assert problem.batches.shape == (20, 60)


def test_the_penalty_is_the_sum_of_the_peaks_of_all_modes(data, settings):
    model = SequenceClassifier([3, 2], 4, 10, rng=np.random.default_rng(0))
    problem = Problem(data, settings)
    batch = problem.sequences[:4], problem.labels[:4]
    both = jax.jit(lambda model: [loss_of(model, *batch, penalty) for penalty in (0.0, 1e-2)])
    plain, penalised = map(float, both(model))
    peaks = 0.0
    for block in model.blocks:
        lru = block.lru
        B = np.exp(np.asarray(lru.gamma_log))[:, None] * (lru.B_re + 1j * lru.B_im)
        modulus = np.exp(-np.exp(np.asarray(lru.nu_log, np.float64)))
        gains = np.linalg.norm(B, axis=1) * np.linalg.norm(lru.C_re + 1j * lru.C_im, axis=0)
        peaks += np.sum(gains / (1.0 - modulus))
    assert penalised - plain == pytest.approx(1e-2 * peaks, rel=1e-3)


@pytest.mark.slow
def test_a_run_records_states_and_cuts(data, settings):
    run, readings = Run("reduced"), []
    reducer = InTrainingReducer(ReductionSchedule(20, attempts=1), order=FixedOrder(2))
    train(run, Problem(data, settings), settings, [6, 6], readings.append, reducer)
    assert run.complete
    assert run.states_per_layer == [2, 2]
    assert run.states == 4
    assert len(reducer.events) == 2
    assert len(run.cut_times) == 1  # both layers at one step
    assert run.events == reducer.events
    assert run.poles.shape == (4,)
    before, after, *_ = run.curve
    assert (before.step, before.states, after.step, after.states) == (2, 12, 2, 4)
    assert before.seconds < run.cut_times[0] < after.seconds
    assert 0.0 <= before.accuracy <= 1.0
    assert run.curve[-1].step == 20
    assert run.accuracy == run.curve[-1].accuracy
    assert readings[-1] is run
    assert run.seconds >= run.curve[-1].seconds


@pytest.mark.slow  # three sizes of a model are compiled, with their evaluation
def test_full_and_reduced_are_one_run_until_the_first_cut(data, settings):
    problem = Problem(data, settings)
    reducer = InTrainingReducer(
        ReductionSchedule(20, start=0.4, stop=0.5, attempts=1), order=FixedOrder(2)
    )
    losses = {"full": {}, "reduced": {}}

    def watch(run):
        losses[run.name][run.step] = run.loss

    train(Run("full"), problem, settings, [6, 6], watch)
    train(Run("reduced"), problem, settings, [6, 6], watch, reducer)
    # The loss of a step is that before its update: the cut after step 10 shows in step 11.
    assert {event.step for event in reducer.events} == {10}
    differ = [step for step in range(1, 21) if losses["full"][step] != losses["reduced"][step]]
    assert differ[0] == 11


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_reached(data, settings):
    run = Run("full")

    def interrupt(run):
        if run.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, Problem(data, settings), settings, [6, 6], interrupt)
    assert not run.complete
    assert run.states == 12
    assert run.curve[-1].step == 10
    assert run.seconds > 0.0


@pytest.mark.slow
def test_the_small_run_begins_at_the_size_of_the_reduced_one(data, settings, monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda settings: data)
    runs = {}
    settings = dataclasses.replace(settings, states=12, tau=0.3)
    experiment.train_chain(settings, ("reduced", "small"), lambda run: runs.update({run.name: run}))
    reduced, small = runs["reduced"], runs["small"]
    assert reduced.states < 24
    assert reduced.states_per_layer == small.states_per_layer
    cut = sum(event.old_order - event.new_order for event in reduced.events)
    assert cut == 24 - reduced.states
    assert small.events == []


def fail(tell):
    tell("started")
    raise ValueError("no good")


@pytest.mark.slow  # starts a process
def test_a_process_that_fails_is_an_error(capfd):
    told = told_by_processes(fail, [()])
    assert next(told) == "started"
    with pytest.raises(ProcessError, match="exit code 1"):
        next(told)
    assert "ValueError: no good" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tau": 0.0}, "--tau"),
        ({"tau": 1.0}, "--tau"),
        ({"tau": float("nan")}, "--tau"),
        ({"states": 0}, "--states"),
        ({"steps": -1}, "--steps"),
        ({"seeds": 0}, "--seeds"),
        ({"seed": -1}, "--seed"),
        ({"dataset": "cifar"}, "--dataset"),
        ({"dataset": "smnist"}, "--data"),
        ({"data": "mnist.npz"}, "--data"),
    ],
)
def test_impossible_settings_are_refused(options, named):
    with pytest.raises(SettingsError, match=named):
        make_settings(**options)


def test_output_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "results"
    path.write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        make_settings(output=path)


def test_quick_settings_are_shorter():
    for dataset in ("tones", "digits", "smnist"):
        make = partial(make_settings, dataset=dataset, data="x" if dataset == "smnist" else None)
        assert make(quick=True).steps < make().steps
