"""`InTrainingReducer` in a real training loop, and when something goes wrong in it."""

from __future__ import annotations

import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from modules import KernelLRU, Stack, make_lru
from samples import lru_weights

from ssmreduce import (
    CutOptions,
    ErrorBound,
    FixedOrder,
    HankelMass,
    InTrainingReducer,
    ReductionSchedule,
    reduce_model,
)
from ssmreduce.errors import (
    ArgumentError,
    NonFiniteError,
    OptimizerStateError,
    UnsupportedLayerError,
)
from ssmreduce.training.tracking import ReductionEvent


def make_model(seed: int = 41, sizes: tuple[int, int] = (24, 20)) -> Stack:
    rng = np.random.default_rng(seed)
    first, second = (make_lru(lru_weights(rng, n, 3), kind=KernelLRU) for n in sizes)
    return Stack(first, second, jnp.asarray(rng.standard_normal(3), dtype="float32"))


def parameters(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


def frozen(tree: Any) -> tuple[list[Any], list[np.ndarray]]:
    leaves = jax.tree.leaves(tree)
    return leaves, [np.array(leaf) for leaf in leaves]


def assert_untouched(tree: Any, snapshot: tuple[list[Any], list[np.ndarray]]) -> None:
    leaves, copies = snapshot
    after = jax.tree.leaves(tree)
    assert len(after) == len(leaves)
    for leaf, old, copy in zip(after, leaves, copies, strict=True):
        assert leaf is old
        np.testing.assert_array_equal(leaf, copy)


# --- The first step


def test_an_order_above_every_size_warns_once() -> None:
    model = make_model()
    reducer = InTrainingReducer(ReductionSchedule.at(2, 3), order=25)
    with pytest.warns(UserWarning, match="`order` is 25, but no layer has more than 24 states"):
        reducer.step(1, model, None)
    for step in (2, 3):
        reducer.step(step, model, None)
    assert not reducer.events


def test_a_resumed_reducer_does_not_warn_of_layers_that_it_cut() -> None:
    reducer = InTrainingReducer(ReductionSchedule.at(1), order=12)
    model, _ = reducer.step(1, make_model(), None)
    smaller = reduce_model(model, 8).model
    resumed = InTrainingReducer(ReductionSchedule.at(1), order=12)
    resumed.load_state_dict(reducer.state_dict())
    assert resumed.step(2, smaller, None)[0] is smaller


def test_an_optimizer_that_is_left_out_is_asked_for() -> None:
    reducer = InTrainingReducer(ReductionSchedule.at(1))
    with pytest.raises(OptimizerStateError, match=r"reducer\.step\(step, model, optimizer\)"):
        reducer.step(1, make_model())  # type: ignore[call-overload]
    assert not reducer.events


# --- Schedule


def test_default_schedule_is_four_attempts_in_the_first_tenth() -> None:
    schedule = ReductionSchedule(1000)
    assert schedule.steps == (25, 50, 75, 100)
    assert [step for step in range(1001) if schedule.due(step)] == [25, 50, 75, 100]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"start": 0.2, "stop": 0.6, "attempts": 2}, (40, 60)),
        ({"start": 0.0, "stop": 1.0, "attempts": 1}, (100,)),
        ({"attempts": 1}, (10,)),
        ({"stop": 0.02, "attempts": 8}, (1, 2)),
    ],
)
def test_schedules(arguments: dict[str, Any], steps: tuple[int, ...]) -> None:
    assert ReductionSchedule(100, **arguments).steps == steps


@pytest.mark.parametrize(
    ("total", "steps"),
    [
        (1000, (25, 50, 75, 100)),
        (999, (33, 67, 100)),
        (500, (25, 50)),
        (499, (50,)),
        (160, (25,)),
        (50, (25,)),
        (20, (10,)),
        (1, (1,)),
    ],
)
def test_short_runs_have_fewer_attempts(total: int, steps: tuple[int, ...]) -> None:
    assert ReductionSchedule(total).steps == steps
    assert ReductionSchedule(160, attempts=4).steps == (4, 8, 12, 16)
    # 0.3 - 0.2 is less than 0.1 in floating point.
    assert ReductionSchedule(1000, start=0.2, stop=0.3).steps == (225, 250, 275, 300)


def test_a_schedule_takes_the_steps_themselves() -> None:
    schedule = ReductionSchedule.at(400, 100, 400)
    assert schedule.steps == (100, 400)
    assert schedule == ReductionSchedule.at(100, 400)
    assert repr(schedule) == "ReductionSchedule.at(100, 400)"
    assert ReductionSchedule(1000) == ReductionSchedule.at(25, 50, 75, 100)
    wrong: Any
    for wrong in ((), (0,), (1.5,), ("1",), (10, -1), ([100, 400],)):
        with pytest.raises(ArgumentError, match="`steps`"):
            ReductionSchedule.at(*wrong)


def test_short_runs_have_at_least_one_attempt_after_the_first_step() -> None:
    for total in (1, 2, 5, 17):
        steps = ReductionSchedule(total).steps
        assert steps
        assert min(steps) >= 1
        assert max(steps) <= total


@pytest.mark.parametrize(
    "arguments",
    [
        {"total_steps": 0},
        {"total_steps": 1.5},
        {"total_steps": True},
        {"total_steps": 10, "attempts": 0},
        {"total_steps": 10, "attempts": 2.0},
        {"total_steps": 10, "start": 0.5, "stop": 0.5},
        {"total_steps": 10, "start": -0.1},
        {"total_steps": 10, "stop": 1.1},
        {"total_steps": 10, "stop": float("nan")},
    ],
)
def test_bad_schedules(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        ReductionSchedule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"gate": 0.0}, ArgumentError),
        ({"gate": 1.5}, ArgumentError),
        ({"gate": None}, ArgumentError),
        ({"order": 0}, ArgumentError),
        ({"order": 2.5}, ArgumentError),
        ({"options": {"horizon": 3}}, ArgumentError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        InTrainingReducer(ReductionSchedule(10, attempts=4), **arguments)


# --- Cuts


def test_nothing_happens_off_schedule() -> None:
    model = make_model()
    state = optax.adam(1e-3).init(parameters(model))
    reducer = InTrainingReducer(ReductionSchedule(1000), FixedOrder(4))
    for step in (1, 24):
        same, same_state = reducer.step(step, model, state)
        assert same is model
        assert same_state is state
    assert reducer.events == []


def test_a_cut_and_its_events() -> None:
    model = make_model()
    state = optax.adam(1e-3).init(parameters(model))
    before = frozen((model, state))
    reducer = InTrainingReducer(ReductionSchedule(1000), HankelMass(0.9))
    new, new_state = reducer.step(25, model, state)
    assert_untouched((model, state), before)
    assert [event.layer for event in reducer.events] == ["first", "second"]
    for event, old, layer in zip(
        reducer.events, (model.first, model.second), (new.first, new.second), strict=True
    ):
        assert event.step == 25
        assert event.old_order == old.nu_log.size
        assert event.new_order == layer.nu_log.size < 0.95 * event.old_order
        assert event.hsv.shape == (2 * event.old_order,)
        assert event.real_order == HankelMass(0.9).choose(event.hsv)
        assert event.tau == pytest.approx(0.1)
        assert event.error_bound == pytest.approx(2 * event.hsv[event.real_order :].sum())
        assert 0 < event.measured_error <= event.error_bound
        assert event.seconds > 0
        assert event.poles_before.shape == (event.old_order,)
        assert event.poles_after.shape == (event.new_order,)
        assert np.all(np.abs(event.poles_after) < 1)
    assert new.head is model.head
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_events_are_plain_json() -> None:
    model = make_model()
    state = optax.adam(1e-3).init(parameters(model))
    for rule, horizon in ((HankelMass(0.9), None), (ErrorBound(relative=0.5), None), (4, 64)):
        reducer = InTrainingReducer(
            ReductionSchedule(100, attempts=4), rule, options=CutOptions(horizon=horizon)
        )
        reducer.step(10, model, state)
        event = reducer.events[0]
        text = json.dumps(event.to_dict(), allow_nan=False)
        back = json.loads(text)
        assert set(back) == set(ReductionEvent.__dataclass_fields__)
        assert back["new_order"] == event.new_order
        assert back["hsv"] == event.hsv.tolist()
        poles = np.array(back["poles_after"]) @ [1, 1j]
        np.testing.assert_array_equal(poles, event.poles_after)
        assert (back["error_bound"] is None) == (horizon is not None)
        assert (back["tau"] is None) == (not isinstance(rule, HankelMass))


def test_the_gate_is_per_layer() -> None:
    model = make_model(sizes=(24, 20))
    state = optax.adam(1e-3).init(parameters(model))
    # 19 of 20 is not below 95 %, 19 of 24 is.
    reducer = InTrainingReducer(ReductionSchedule(100, attempts=4), FixedOrder(19))
    new, _ = reducer.step(10, model, state)
    assert new.first.nu_log.size <= 19
    assert new.second.nu_log is model.second.nu_log
    assert [event.layer for event in reducer.events] == ["first"]
    # A gate that lets nothing through returns the objects themselves.
    strict = InTrainingReducer(ReductionSchedule(100, attempts=4), FixedOrder(19), gate=0.5)
    same, same_state = strict.step(10, model, state)
    assert same is model
    assert same_state is state
    assert strict.events == []


def test_what_ends_every_attempt_is_raised_in_the_first_step() -> None:
    linear, model = eqx.nn.Linear(2, 2, key=jax.random.key(0)), make_model()
    adam = optax.adam(1e-3)
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (linear, None, {}, UnsupportedLayerError, "`model` is a .* without a known layer"),
        (
            model,
            None,
            {"exclude": ("x",)},
            ArgumentError,
            "`exclude` names x, but the layers are first",
        ),
        (
            model,
            None,
            {"kind": {"x": "lru"}},
            ArgumentError,
            "`kind` names x, but the layers are first",
        ),
        (model, adam, {}, OptimizerStateError, "expected the state of an optimizer"),
        (model, iter([1]), {}, OptimizerStateError, "expected the state of an optimizer"),
        (
            model,
            adam.init(parameters(make_model(sizes=(6, 20)))),
            {},
            OptimizerStateError,
            r"`mu` of `nu_log` has shape \(6,\); expected \(24,\)",
        ),
    ]
    for given, state, options, error, message in cases:
        reducer = InTrainingReducer(
            ReductionSchedule(100, attempts=4), options=CutOptions(**options)
        )
        for _ in range(2):
            with pytest.raises(error, match=message):
                reducer.step(1, given, state)
        assert reducer.state_dict()["step"] == 0


def test_what_may_be_right_again_is_left_to_the_attempt() -> None:
    model = make_model()
    broken = eqx.tree_at(lambda m: m.first.B_re, model, model.first.B_re.at[0, 0].set(jnp.nan))
    state = optax.adam(1e-3).init(parameters(broken))
    reducer = InTrainingReducer(ReductionSchedule(100, attempts=4), FixedOrder(4))
    assert reducer.step(1, broken, state) == (broken, state)
    cut, _ = reducer.step(10, model, state)
    assert cut.first.nu_log.size == 4


@pytest.mark.slow
def test_training_goes_on_after_the_cuts() -> None:
    # The target is a small LRU: few states are enough to learn it.
    rng = np.random.default_rng(42)
    inputs = jnp.asarray(rng.standard_normal((16, 30, 3)), dtype="float32")
    teacher = make_lru(lru_weights(rng, 4, 3), kind=KernelLRU)
    targets = jax.vmap(teacher)(inputs).mean(axis=1) @ jnp.ones(3)
    optimizer = optax.adam(3e-3)
    compiled: list[int] = []

    def loss_of(model: Stack) -> jax.Array:
        return jnp.mean((jax.vmap(model)(inputs) - targets) ** 2)

    @jax.jit
    def update(model: Stack, state: Any) -> tuple[Stack, Any, jax.Array]:
        compiled.append(model.first.nu_log.size)
        loss, gradient = jax.value_and_grad(loss_of)(model)
        updates, state = optimizer.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, loss

    model = make_model()
    state = optimizer.init(parameters(model))
    reducer = InTrainingReducer(ReductionSchedule(120, stop=0.5, attempts=2), HankelMass(0.9))
    losses = []
    for step in range(1, 121):
        model, state, loss = update(model, state)
        losses.append(float(loss))
        model, state = reducer.step(step, model, state)
    assert {event.step for event in reducer.events} <= {30, 60}
    assert len(reducer.events) >= 2
    assert model.first.nu_log.size < 24
    assert state[0].count == 120
    shapes = {event.step for event in reducer.events}
    assert len(compiled) == 1 + len(shapes)
    assert np.all(np.isfinite(losses))
    # The cut itself costs little, and learning goes on: both in terms of the run's own progress.
    assert losses[60] <= losses[59] + 0.2 * losses[0]
    assert losses[-1] < 0.9 * losses[61]
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_that_was_there_before_is_not_due_again() -> None:
    rng = np.random.default_rng(5)
    model = make_lru(lru_weights(rng, 32, 4))
    reducer = InTrainingReducer(
        ReductionSchedule(20, stop=1.0, attempts=2),
        HankelMass(0.8),
        gate=1.0,
    )
    for step in (9, 10, 10, 10, 7, 10):
        model, _ = reducer.step(step, model, None)
    assert [event.step for event in reducer.events] == [10]
    assert not reducer.due(10)
    assert reducer.due(20)


def test_attempts_passed_over_are_made_up_for_by_one() -> None:
    model = make_model()
    reducer = InTrainingReducer(ReductionSchedule(1000), FixedOrder(18))
    assert not reducer.due(20)
    reducer.step(20, model, None)
    assert reducer.due(60)
    model, _ = reducer.step(60, model, None)
    assert {event.step for event in reducer.events} == {60}
    reducer.order = FixedOrder(4)
    assert not reducer.due(70)
    saved = reducer.state_dict()
    again = InTrainingReducer(ReductionSchedule(1000), FixedOrder(4))
    longer = InTrainingReducer(ReductionSchedule.at(25, 50, 300), FixedOrder(4))
    longer.load_state_dict(saved)
    assert not longer.due(299)
    assert longer.due(300)
    again.load_state_dict(saved)
    assert not again.due(70)
    assert again.due(90)
    # A first call late in the run makes one attempt, not four.
    late = InTrainingReducer(ReductionSchedule(1000), FixedOrder(4))
    assert late.due(500)
    late.step(500, model, None)
    assert len(late.events) == 2
    assert not late.due(501)


@pytest.mark.parametrize("step", [0, -1, 1.0, True, None])
def test_a_step_is_a_positive_int(step: Any) -> None:
    with pytest.raises(ArgumentError, match="`step`"):
        InTrainingReducer(ReductionSchedule(10, attempts=4)).step(step, make_model(), None)


@pytest.mark.parametrize(
    "options",
    [{"order": 5}, {"gate": 0.5}, {"options": CutOptions(moments="reset")}],
)
def test_a_state_saved_with_other_options_is_refused(options: dict[str, Any]) -> None:
    saved = InTrainingReducer(ReductionSchedule(10, attempts=4)).state_dict()
    with pytest.raises(ArgumentError, match=next(iter(options))):
        InTrainingReducer(ReductionSchedule(10, attempts=4), **options).load_state_dict(saved)


def test_orders_are_uniform_and_rounded_as_in_reduce_model() -> None:
    model = make_model()
    for values in ({"uniform": True}, {"multiple_of": 4}, {"uniform": True, "multiple_of": 4}):
        options = CutOptions(**values)
        reducer = InTrainingReducer(
            ReductionSchedule(10, attempts=4), HankelMass(0.9), options=options
        )
        cut, _ = reducer.step(1, model, None)
        expected = reduce_model(model, HankelMass(0.9), options=options).model
        for one, other in zip(jax.tree.leaves(cut), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(one, other)
    # The gate lets pass all or none, so that orders stay the same.
    reducer = InTrainingReducer(
        ReductionSchedule(10, attempts=4), FixedOrder(19), options=CutOptions(uniform=True)
    )
    cut, _ = reducer.step(1, model, None)
    assert cut.first.nu_log.size == cut.second.nu_log.size < 20
    with pytest.raises(ArgumentError, match="multiple_of"):
        InTrainingReducer(ReductionSchedule(10, attempts=4), options=CutOptions(multiple_of=0))


def test_the_last_cut_carries_streams() -> None:
    model = make_model()
    reducer = InTrainingReducer(ReductionSchedule(10, attempts=4), FixedOrder(6))
    assert reducer.last_cut == {}
    reducer.step(1, model, None)
    assert set(reducer.last_cut) == {"first", "second"}
    result = reducer.last_cut["first"]
    assert result.layer is None
    state = np.random.default_rng(1).standard_normal(24) + 1j
    expected = reduce_model(model, FixedOrder(6)).report["first"].reduce_state(state)
    np.testing.assert_array_equal(result.reduce_state(state), expected)


def test_repr_tells_settings_and_cuts() -> None:
    text = repr(InTrainingReducer(ReductionSchedule(10, attempts=4), 4))
    assert "schedule=ReductionSchedule.at(1)" in text
    assert "gate=0.95" in text
    assert "0 events" in text


# --- Failures


@pytest.mark.parametrize("layer", ["first", "second"])
def test_a_failed_cut_warns_and_changes_nothing(layer: str) -> None:
    model = make_model()
    broken = eqx.tree_at(
        lambda m: getattr(m, layer).B_re, model, getattr(model, layer).B_re.at[0, 0].set(jnp.nan)
    )
    state = optax.adam(1e-3).init(parameters(broken))
    before = frozen((broken, state))
    reducer = InTrainingReducer(ReductionSchedule(100, attempts=4), FixedOrder(4))
    with pytest.warns(
        UserWarning, match=rf"no cut after step 10, it was the last attempt.*`{layer}`.*NaN"
    ):
        same, same_state = reducer.step(10, broken, state)
    assert same is broken
    assert same_state is state
    assert_untouched((same, same_state), before)
    assert reducer.events == []
    with pytest.raises(NonFiniteError, match=f"while reducing layer `{layer}`") as caught:
        reduce_model(broken, 4, opt_state=state)
    assert isinstance(caught.value.__cause__, NonFiniteError)
    assert_untouched((broken, state), before)


def test_an_optimizer_that_cannot_follow_is_refused_and_nothing_changes() -> None:
    model = make_model()
    state = optax.rprop(1e-3).init(parameters(model))
    before = frozen((model, state))
    reducer = InTrainingReducer(ReductionSchedule(100, attempts=4), FixedOrder(4))
    with pytest.raises(OptimizerStateError, match=r"step_sizes|prev_updates"):
        reducer.step(1, model, state)
    assert_untouched((model, state), before)
    # One that comes later, as where a loop changes it, ends an attempt with a warning.
    reducer.step(1, model, None)
    with pytest.warns(UserWarning, match="no cut after step 10"):
        same, same_state = reducer.step(10, model, state)
    assert same is model
    assert same_state is state
    assert_untouched((same, same_state), before)
    assert reducer.events == []


def test_an_unreachable_tolerance_warns() -> None:
    model = make_model()
    reducer = InTrainingReducer(ReductionSchedule(100, attempts=4), ErrorBound(relative=1e-17))
    with pytest.warns(UserWarning, match="lies below"):
        same, _ = reducer.step(10, model, None)
    assert same is model


def test_a_layer_outside_the_unit_circle_needs_a_horizon() -> None:
    model = make_model()
    marginal = eqx.tree_at(
        lambda m: m.first.nu_log, model, model.first.nu_log.at[0].set(jnp.float32(-1e3))
    )
    reducer = InTrainingReducer(ReductionSchedule(100, attempts=4), FixedOrder(8))
    with pytest.warns(UserWarning, match="horizon"):
        same, _ = reducer.step(10, marginal, None)
    assert same is marginal
    within = InTrainingReducer(
        ReductionSchedule(100, attempts=4), FixedOrder(8), options=CutOptions(horizon=30)
    )
    cut, _ = within.step(10, marginal, None)
    assert cut.first.nu_log.size <= 8
    assert within.events[0].error_bound is None
