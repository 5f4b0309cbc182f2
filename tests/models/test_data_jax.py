"""Calibration of Equinox models: what is recorded under JAX's transformations, and cuts by it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_modules import S4D, make_s4d, make_s5, s5_weights

from ssmreduce import (
    Calibration,
    CutOptions,
    FixedOrder,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    calibrate,
    hankel_singular_values,
    read_system,
    reduce_layer,
    reduce_model,
    sweep,
    write_system,
)
from ssmreduce.demo.lru import LRU
from ssmreduce.demo.model import SequenceClassifier
from ssmreduce.errors import (
    ArgumentError,
    CalibrationWarning,
    MissingBackendError,
    NonFiniteError,
    ShapeError,
    TracedValueError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks import pytree_callbacks
from ssmreduce.frameworks.current import framework_of
from ssmreduce.models.search import search

Array = np.ndarray
STATES, WIDTH, STEPS, SIZE = 8, 4, 20, 8


def s5(seed: int = 0, layout: str = "C", **options: Any) -> Any:
    weights = s5_weights(np.random.default_rng(seed), STATES, WIDTH, layout)
    return make_s5(weights, "float32", **options)


class Model(eqx.Module):
    """Two layers with dropout between them, on (L, 3), read at the last step."""

    encoder: eqx.nn.Linear
    blocks: list[Any]
    dropout: eqx.nn.Dropout
    decoder: eqx.nn.Linear

    def __init__(self, *blocks: Any) -> None:
        keys = jax.random.split(jax.random.key(0))
        self.encoder = eqx.nn.Linear(3, WIDTH, key=keys[0])
        self.blocks = [*blocks] or [s5(0), s5(1)]
        self.dropout = eqx.nn.Dropout(0.5)
        self.decoder = eqx.nn.Linear(WIDTH, 4, key=keys[1])

    def __call__(self, inputs: Any, key: Any = None) -> Any:
        hidden = jax.vmap(self.encoder)(inputs)
        for block in self.blocks:
            hidden = self.dropout(hidden + jnp.tanh(block(hidden)), key=key)
        return self.decoder(hidden[-1])


def slow_inputs(count: int, width: int = 3, steps: int = STEPS, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).normal(size=(count, steps, width))
    return (0.3 * noise.cumsum(axis=1)).astype(np.float32)


def make_batches(count: int = 4) -> list[tuple[Array, Array]]:
    inputs = slow_inputs(count * SIZE)
    labels = np.random.default_rng(1).integers(0, 4, count * SIZE)
    return [*zip(np.split(inputs, count), np.split(labels, count), strict=True)]


def cross_entropy(model: Any, batch: Any) -> Any:
    scores = jax.vmap(model)(batch[0])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]))


compiled = eqx.filter_jit(cross_entropy)


@eqx.filter_jit
def every_call(model: Any, batch: Any) -> Any:
    return jax.vmap(model)(batch[0])


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def batches() -> list[tuple[Array, Array]]:
    return make_batches()


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    assert not pytree_callbacks._OPEN


# --- Under transformations, against a model that is taken apart by hand


def in_each_sequence(model: Model, hidden: Any) -> Any:
    def one(hidden: Any) -> Any:
        for block in model.blocks:
            hidden = hidden + jnp.tanh(block(hidden))
        return hidden

    return jax.vmap(one)(hidden)


def over_two_axes_of_which_one_is_last(model: Model, hidden: Any) -> Any:
    folded = jnp.moveaxis(hidden.reshape(2, -1, *hidden.shape[1:]), 1, -1)
    found = jax.vmap(jax.vmap(lambda each: in_each_sequence(model, each[None])[0], 2, 2))(folded)
    return jnp.moveaxis(found, -1, 1).reshape(hidden.shape)


def scanned(model: Model, hidden: Any) -> Any:
    parts = [eqx.partition(block, eqx.is_array) for block in model.blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts))

    @jax.checkpoint
    def step(hidden: Any, arrays: Any) -> tuple[Any, None]:
        block = eqx.combine(arrays, parts[0][1])
        return hidden + jnp.tanh(jax.vmap(block)(hidden)), None

    return jax.lax.scan(step, hidden, stacked)[0]


def compiled_inside(model: Model, hidden: Any) -> Any:
    one = eqx.filter_jit(lambda block, hidden: hidden + jnp.tanh(jax.vmap(block)(hidden)))
    for block in model.blocks:
        hidden = one(block, hidden)
    return hidden


SAME_PATH = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
"""For another process that imports this module."""

WAYS = [over_two_axes_of_which_one_is_last, scanned, compiled_inside]


@functools.cache
def loss_of(way: Callable[[Model, Any], Any]) -> Callable[[Model, Any], Any]:
    def loss(model: Model, batch: Any) -> Any:
        hidden = way(model, jax.vmap(jax.vmap(model.encoder))(batch[0]))
        scores = jax.vmap(model.decoder)(hidden[:, -1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]))

    return eqx.filter_jit(loss)


@pytest.fixture(scope="module")
def by_hand(model: Model, batches: Any) -> list[tuple[Array, Array]]:
    """What goes into each layer, and the weights from derivatives by what is added to its output."""

    def run(added: Any, batch: Any) -> Any:
        hidden, given = jax.vmap(jax.vmap(model.encoder))(batch[0]), []
        for block, more in zip(model.blocks, added, strict=True):
            given.append(hidden)
            hidden = hidden + jnp.tanh(jax.vmap(block)(hidden) + more)
        scores = jax.vmap(model.decoder)(hidden[:, -1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch[1])), given

    differentiated = jax.jit(jax.grad(run, has_aux=True))
    zeros = [jnp.zeros((SIZE, STEPS, WIDTH))] * 2
    found = [differentiated(zeros, batch) for batch in batches]
    result = []
    for k in range(2):
        squares = np.concatenate([(np.asarray(each[k]) ** 2).mean(-1) for each, _ in found])
        inputs = np.concatenate([np.asarray(given[k]) for _, given in found])
        result.append((inputs, squares / squares.mean(axis=1, keepdims=True) + 1e-3))
    return result


@pytest.mark.parametrize("way", WAYS)
def test_records_are_those_of_a_model_taken_apart(way, model, batches, by_hand):
    data = calibrate(model, batches, loss=loss_of(way))
    assert [*data.layers] == ["blocks[0]", "blocks[1]"]
    for (inputs, weights), found in zip(by_hand, data.layers.values(), strict=True):
        np.testing.assert_allclose(found.inputs, inputs, atol=1e-5 * np.abs(inputs).max())
        np.testing.assert_allclose(found.weights, weights, rtol=1e-3)
        assert found.inputs.dtype == np.float32


def test_without_a_loss_the_same_inputs_are_recorded(model, batches, by_hand):
    data = calibrate(model, batches, forward=loss_of(scanned))
    for (inputs, _), found in zip(by_hand, data.layers.values(), strict=True):
        np.testing.assert_allclose(found.inputs, inputs, atol=1e-5 * np.abs(inputs).max())
        np.testing.assert_array_equal(found.weights, 1.0 + 1e-3)


def arrays_of(model: Any) -> list[Any]:
    return jax.tree.leaves(eqx.filter(model, eqx.is_array))


def test_nothing_compiled_is_lost_and_one_program_serves_all_batches(model, batches):
    traced = []

    @eqx.filter_jit
    def loss(model: Any, batch: Any) -> Any:
        traced.append(1)
        return cross_entropy(eqx.nn.inference_mode(model), batch)

    own = [np.array(array) for array in arrays_of(model)]
    before = loss(model, batches[0])
    calibrate(model, batches, loss=loss)
    assert len(traced) == 2
    calibrate(model, batches, loss=loss)
    assert loss(model, batches[0]) == before
    assert len(traced) == 2
    for array, kept in zip(arrays_of(model), own, strict=True):
        np.testing.assert_array_equal(array, kept)
    assert model.dropout.inference is False
    assert [type(block).__mro__[1] for block in model.blocks] == [eqx.Module] * 2


def test_calls_of_one_layer_keep_their_order_and_their_derivatives():
    layer = eqx.filter_jit(lambda block, inputs: jax.vmap(block)(inputs))
    inputs = [slow_inputs(4, WIDTH, seed=seed) for seed in range(6)]

    @eqx.filter_jit
    def loss(block: Any, batch: Any) -> Any:
        # Nothing says which of these comes first, and each has its own last step that counts.
        return sum(jnp.sum(layer(block, each)[:, k]) for k, each in enumerate(batch))

    for _ in range(3):
        (found,) = calibrate(s5(), [inputs, inputs], loss=loss).layers.values()
        np.testing.assert_array_equal(found.inputs, np.concatenate(inputs * 2))
        counted = np.argmax(found.weights, axis=1)
        np.testing.assert_array_equal(counted, np.tile(np.repeat(np.arange(6), 4), 2))


@pytest.mark.slow
def test_a_loss_may_take_derivatives_of_its_own():
    block, given = s5(), slow_inputs(4, WIDTH)

    def penalty(run: Callable[[Any], Any], batch: Any) -> Any:
        slopes = jax.grad(lambda inputs: jnp.sum(jnp.tanh(run(inputs))[:, 5:9] ** 2))(batch)
        return jnp.mean(slopes**2)

    @eqx.filter_jit
    def loss(block: Any, batch: Any) -> Any:
        return penalty(jax.vmap(block), batch)

    def added(more: Any) -> Any:
        return penalty(lambda inputs: jax.vmap(block)(inputs) + more, given)

    (found,) = calibrate(block, [given, given], loss=loss).layers.values()
    squares = (np.asarray(jax.jit(jax.grad(added))(jnp.zeros(given.shape))) ** 2).mean(-1)
    wanted = squares / squares.mean(axis=1, keepdims=True) + 1e-3
    np.testing.assert_allclose(found.weights[:4], wanted, rtol=1e-3)


def test_chunks_of_a_scan_are_sequences():
    chunks = [slow_inputs(3, WIDTH, seed=seed) for seed in range(4)]

    @eqx.filter_jit
    def loss(block: Any, batch: Any) -> Any:
        def step(total: Any, chunk: Any) -> tuple[Any, None]:
            return total + jnp.sum(jax.vmap(block)(chunk)[:, -1] ** 2), None

        return jax.lax.scan(step, 0.0, jnp.stack(batch))[0]

    (found,) = calibrate(s5(), [chunks, chunks], loss=loss).layers.values()
    np.testing.assert_array_equal(found.inputs, np.concatenate(chunks * 2))
    np.testing.assert_allclose(found.weights[:, -1], STEPS, rtol=1e-2)


# --- Kinds of layers


class Batched(eqx.Module):
    """A layer that is given batches, as the demo's."""

    layer: LRU

    def __call__(self, inputs: Any) -> Any:
        return inputs + jnp.tanh(self.layer(inputs))


class Single(eqx.Module):
    """A layer that is given one sequence."""

    layer: Any

    def __call__(self, inputs: Any) -> Any:
        return jax.vmap(lambda each: each + jnp.tanh(self.layer(each)))(inputs)


KINDS: dict[str, Callable[[], Any]] = {
    "LRU": lambda: Batched(LRU(STATES, WIDTH, rng=np.random.default_rng(0))),
    "S5, half of the spectrum": lambda: Single(s5()),
    "S5, all of it": lambda: Single(s5(conj_sym=False)),
    "S5 in both directions": lambda: Single(s5(layout="both", bidirectional=True)),
    "S4D": lambda: Single(make_s4d(np.random.default_rng(0), STATES, WIDTH, "float32")),
}


GIVEN = [slow_inputs(16, WIDTH, seed=seed) for seed in range(4)]


@eqx.filter_jit
def last_square(model: Any, batch: Any) -> Any:
    return jnp.mean(model(batch)[:, -1] ** 2)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind.startswith("S5,") else [])
        for kind in KINDS
    ],
)
def test_each_kind_is_recorded(kind):
    model = KINDS[kind]()
    (found,) = calibrate(model, GIVEN, loss=last_square).layers.values()
    np.testing.assert_array_equal(found.inputs, np.concatenate(GIVEN))
    np.testing.assert_allclose(found.weights[:, -1], STEPS, rtol=1e-2)  # read at the last alone


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "LRU" else pytest.mark.slow) for kind in KINDS]
)
def test_each_kind_is_cut_by_its_loss(kind):
    model = KINDS[kind]()
    data = calibrate(model, GIVEN, loss=last_square)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        (part,) = reduce_model(model, 3, data=data).report.values()
    assert part.choice.by == "loss"
    assert 0.9 * part.choice.values[part.method] <= min(part.choice.values.values())
    assert part.new_order in (2, 3)


def test_a_kernel_is_recorded_with_channels_in_front_as_well():
    class ChannelsFirst(eqx.Module):
        kernel: Any

        def __call__(self, inputs: Any) -> Any:
            return S4D(2 * STATES, self.kernel)(inputs.T).T

    given = slow_inputs(8, WIDTH)
    kernel = make_s4d(np.random.default_rng(0), STATES, WIDTH, "float32").kernel
    layer = ChannelsFirst(kernel)
    turned = np.swapaxes(given, 1, 2)

    @eqx.filter_jit
    def loss(model: Any, batch: Any) -> Any:
        return jnp.mean(jax.vmap(model)(batch)[:, :, 5] ** 2)

    (found,) = calibrate(layer, [turned, turned], loss=loss).layers.values()
    np.testing.assert_array_equal(found.inputs[:8], given)
    np.testing.assert_allclose(found.weights[:, 5], STEPS, rtol=1e-2)


def test_a_layer_that_puts_out_a_tuple_hands_on_the_rest():
    class Pair(LRU):
        def __call__(self, inputs: Any) -> Any:
            return super().__call__(inputs), {"steps": inputs.shape[1]}, None

    model = Batched(Pair(STATES, WIDTH, rng=np.random.default_rng(0)))
    given = slow_inputs(8, WIDTH)

    @eqx.filter_jit
    def loss(model: Any, batch: Any) -> Any:
        output, rest, nothing = model.layer(batch)
        assert (rest, nothing) == ({"steps": STEPS}, None)
        return jnp.mean(output[:, -1] ** 2)

    (found,) = calibrate(model, [given, given], loss=loss).layers.values()
    np.testing.assert_allclose(found.weights[:, -1], STEPS, rtol=1e-2)


class Twice(eqx.Module):
    first: Any
    second: Any

    def __call__(self, inputs: Any) -> Any:
        return self.second(jnp.tanh(self.first(inputs)))


def test_a_layer_in_two_places_is_recorded_in_both():
    layer, given = s5(), slow_inputs(8, WIDTH)
    model = Twice(layer, layer)
    data = calibrate(model, [given, given], forward=jax.jit(lambda m, b: jax.vmap(m)(b)))
    assert [*data.layers] == ["first", "second"]
    inputs = [record.inputs[:8] for record in data.layers.values()]
    np.testing.assert_array_equal(inputs[0], given)
    again = jnp.tanh(jax.jit(jax.vmap(layer))(given))
    np.testing.assert_allclose(inputs[1], again, atol=1e-5)
    # Where Equinox keeps one of the two, it is given what both are.
    tied = eqx.nn.Shared(model, lambda each: each.second, lambda each: each.first)
    run = eqx.filter_jit(lambda m, b: jax.vmap(m())(b))
    ((name, record),) = calibrate(tied, [given, given], forward=run).layers.items()
    assert name == "pytree.first"
    np.testing.assert_allclose(record.inputs[:16], np.concatenate(inputs), atol=1e-5)


def test_masks_and_other_lengths():
    def odd_steps(batch: Any) -> Any:
        return np.arange(batch.shape[1]) % 2 * np.ones((16, 1)) > 0

    model, (whole, other) = KINDS["LRU"](), GIVEN[:2]
    given = [whole, other[:, : STEPS - 5]]
    (record,) = calibrate(model, given, loss=last_square, mask=odd_steps).layers.values()
    assert record.weights.shape == (32, STEPS)
    np.testing.assert_array_equal(record.weights[:, ::2], 0.0)
    np.testing.assert_array_equal(record.weights[16:, STEPS - 5 :], 0.0)
    assert np.all(record.weights[:16, 1::2] > 0.0)
    with pytest.raises(ShapeError, match="`mask` returned shape"):
        calibrate(model, given, loss=last_square, mask=lambda batch: np.ones((2, 2), bool))


# --- Models


def disagreement(cut: Any, model: Any, batches: Any) -> float:
    run = eqx.filter_jit(lambda model, inputs: jax.vmap(eqx.nn.inference_mode(model))(inputs))
    inputs = np.concatenate([batch[0] for batch in batches])
    return float(jnp.mean((run(cut, inputs) - run(model, inputs)) ** 2))


@pytest.mark.slow
def test_later_layers_make_up_for_earlier_ones(model):
    batches = make_batches(16)
    data = calibrate(model, batches, forward=every_call)
    apart, options = Calibration(data.layers), CutOptions(method="white refit")
    lost = {}
    for name, given, how in (
        ("white", data, CutOptions(method="white")),
        ("apart", apart, options),
        ("together", data, options),
    ):
        lost[name] = disagreement(
            reduce_model(model, 3, data=given, options=how).model, model, batches
        )
    assert lost["together"] < lost["apart"] < lost["white"]


@pytest.mark.slow
def test_the_demo_is_recorded_and_cut():
    model = SequenceClassifier([STATES] * 2, WIDTH, 4, rng=np.random.default_rng(0))
    batches = [(inputs[..., 0], labels) for inputs, labels in make_batches(8)]

    @jax.jit
    def loss(model: Any, batch: Any) -> Any:
        scores, _ = model(batch[0])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch[1]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        result = reduce_model(model, 3, data=calibrate(model, batches, loss=loss))
    assert {part.choice.by for part in result.report.values()} == {"loss"}
    assert result.model.states == [3, 3]
    assert type(result.model.blocks[0].lru) is LRU


def test_a_reducer_calibrates_at_each_attempt():
    model, optimizer, asked = KINDS["LRU"](), optax.adamw(1e-3), []

    def data(model: Any) -> Calibration:
        asked.append(model.layer.states)
        return calibrate(model, GIVEN, loss=last_square)

    reducer = InTrainingReducer(ReductionSchedule.at(1), FixedOrder(3), data=data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        cut, opt_state = reducer.step(1, model, optimizer.init(model))
    assert asked == [STATES]
    assert [event.new_order for event in reducer.events] == [3]
    assert [part.choice.by for part in reducer.last_cut.values()] == ["loss"]
    assert (type(cut.layer), cut.layer.states, model.layer.states) == (LRU, 3, STATES)
    assert opt_state[0].mu.layer.B_re.shape == (3, WIDTH)


def test_a_reducer_knows_the_loss_of_zeros(model, batches):
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        FixedOrder(3),
        data=lambda model: calibrate(model, batches, loss=compiled),
        above_chance="refuse",
    )
    optimizer = optax.sgd(1e-3)
    with pytest.warns(UserWarning, match="a constant prediction has 1.386"):
        cut, _ = reducer.step(1, model, optimizer.init(eqx.filter(model, eqx.is_array)))
    assert cut is model
    framework = framework_of(model)
    handles = search(model, CutOptions()).meant
    found = framework.constant_losses(model, handles, lambda model: compiled(model, batches[0]))
    assert found == {"zero": pytest.approx(np.log(4.0))}
    # Of what is inside, where the loss is not that of what the model puts out.
    inside = framework.constant_losses(
        Outside(model),
        search(Outside(model), CutOptions()).meant,
        lambda m: compiled(m.inner, batches[0]),
    )
    assert inside == found


def test_a_model_that_returns_its_loss_is_not_at_chance(model, batches):
    framework, losing = framework_of(model), Losing(model)
    found = framework.constant_losses(
        losing,
        search(losing, CutOptions()).meant,
        lambda losing: jax.vmap(losing)(*batches[0]).mean(),
    )
    assert found == {"zero": pytest.approx(np.log(4.0))}


class Losing(eqx.Module):
    """Holds a model, and puts out the loss of one sequence."""

    inner: Model

    def __call__(self, inputs: Any, label: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(self.inner(inputs), label)


def test_small_derivatives_in_half_precision_count():
    layer, received = LRU(4, 2, rng=np.random.default_rng(0)), pytree_callbacks.Received()
    inputs = jnp.ones((1, 3, 2), jnp.float16)
    with pytree_callbacks.numbered(received, search(layer).meant) as (number,):
        jax.grad(
            lambda number: jnp.sum(1e-4 * pytree_callbacks.told(number, inputs, inputs)[:, -1])
        )(number)
    ((call,),) = received.recorded().values()
    np.testing.assert_allclose(call.squares, [[0.0, 0.0, 1e-8]], rtol=1e-2)


class Outside(eqx.Module):
    """Holds a model, and puts out something else."""

    inner: Model

    def __call__(self, inputs: Any) -> Any:
        return inputs


# --- What is refused


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["loss", "forward"])
def test_a_run_that_breaks_off_leaves_nothing(name, error):
    def broken(model: Any, batch: Any) -> Any:
        last_square(model, batch)
        raise error("in the middle")

    model = KINDS["LRU"]()
    with pytest.raises(error, match="in the middle"):
        calibrate(model, GIVEN, **{name: broken})
    assert not pytree_callbacks._OPEN
    (record,) = calibrate(model, GIVEN, loss=last_square).layers.values()
    np.testing.assert_array_equal(record.inputs, np.concatenate(GIVEN))


def test_what_is_no_data_is_refused(model, batches):
    layer = KINDS["LRU"]()
    with pytest.raises(NonFiniteError, match="`layer` is given NaN"):
        calibrate(layer, [np.full_like(GIVEN[0], np.nan)], loss=last_square)
    with pytest.raises(NonFiniteError, match="derivative of `loss`"):
        calibrate(layer, GIVEN, loss=lambda m, b: jnp.nan * last_square(m, b))
    with pytest.raises(ShapeError, match=r"`loss` returned an array of shape \(3,\)"):
        calibrate(model, batches, loss=lambda m, b: jnp.ones(3))
    with pytest.raises(ShapeError, match=r"`loss` returned builtins\.tuple"):
        calibrate(model, batches, loss=lambda m, b: (jnp.ones(()), 1))
    with pytest.raises(ArgumentError, match="has 0 sequences"):
        calibrate(model, [])
    with pytest.raises(UnsupportedLayerError, match=r"does not reach layer `blocks\[0\]`"):
        calibrate(model, batches, forward=lambda m, b: None)
    with pytest.raises(UnsupportedLayerError, match=r"S5 is given an array of shape \(20, 3\)"):
        calibrate(model, batches, forward=lambda m, b: jax.vmap(m.blocks[0])(b[0]))
    with pytest.raises(UnsupportedLayerError, match="given no array"):
        calibrate(model, batches, forward=lambda m, b: m.blocks[0](np.arange(5)))


def test_a_model_of_one_sequence_is_told_to_be_mapped(model, batches):
    for given, forward in ((batches, r"\(b\[0\]\)"), ([each[0] for each in batches], r"\(b\)")):
        message = rf"takes one sequence of it; .*forward=lambda m, b: jax\.vmap\(m\){forward}\."
        with pytest.raises(ShapeError, match=message) as raised:
            calibrate(model, given)
        assert isinstance(raised.value.__cause__, TypeError)
    wide = [(inputs[..., :2], labels) for inputs, labels in batches]
    with pytest.raises(TypeError, match="dot_general"):
        calibrate(model, wide)
    with pytest.raises(TypeError, match="dot_general"):
        calibrate(model, batches, loss=lambda model, batch: model(batch[0]).sum())


def test_traced_models_are_refused(model, batches):
    pair, batch = [LRU(8, 3, rng=np.random.default_rng(0))] * 2, batches[0]
    given = Calibration.of_inputs({"[0]": batch[0], "[1]": batch[0]})
    calls = {
        "reduce_model": lambda traced: reduce_model(traced, 4).model,
        "with data": lambda traced: reduce_model(traced, 4, data=given).model,
        "reduce_layer": lambda traced: reduce_layer(traced[0], 4).layer,
        "write_system": lambda traced: write_system(traced[0], read_system(pair[0])),
        "sweep": lambda traced: sweep(traced, [4]).rows[0].order,
        "trace": lambda traced: HankelTrace(1).record(1, traced),
        "reducer": lambda traced: InTrainingReducer(ReductionSchedule.at(9)).step(1, traced, None),
        "calibrate": lambda traced: (
            calibrate(traced, [batch[0]], forward=lambda m, b: m[0](b)).runs
        ),
    }
    for name, call in calls.items():
        for transform in (eqx.filter_jit, eqx.filter_vmap):
            if transform is eqx.filter_vmap and name == "calibrate":
                continue
            many = jax.tree.map(lambda x: x[None], pair) if transform is eqx.filter_vmap else pair
            with pytest.raises(
                TracedValueError, match=r"`nu_log` of layer .*outside of jit and vmap"
            ):
                transform(call)(many)
    norm = jax.jit(lambda layer: jnp.sum(hankel_singular_values(read_system(layer))))
    assert float(norm(pair[0])) > 0.0


def test_a_layer_that_runs_otherwise_than_its_weights_say_is_refused():
    class Rescaled(LRU):
        def __call__(self, inputs: Any) -> Any:
            return 2.0 * super().__call__(inputs)

    class Pooled(LRU):
        def __call__(self, inputs: Any) -> Any:
            return super().__call__(inputs).mean(axis=1)

    given, run = [slow_inputs(4, WIDTH)] * 2, eqx.filter_jit(lambda m, b: m(b))
    for layer, message in (
        (Rescaled, "something else than its weights say"),
        (Pooled, "a row for each"),
    ):
        with pytest.raises(UnsupportedLayerError, match=message):
            calibrate(layer(STATES, WIDTH, rng=np.random.default_rng(0)), given, forward=run)


def test_arrays_without_a_call_are_to_be_recorded_by_hand():
    class Weights(eqx.Module):
        nu_log: Any
        theta_log: Any
        gamma_log: Any
        B_re: Any
        B_im: Any
        C_re: Any
        C_im: Any
        D: Any

    layer = LRU(STATES, WIDTH, rng=np.random.default_rng(0))
    given = slow_inputs(8, WIDTH)
    for tree in ({"lru": dict(vars(layer))}, {"lru": Weights(**vars(layer))}):
        with pytest.raises(UnsupportedLayerError, match=r"without a call.*Calibration\.of_inputs"):
            calibrate(tree, [given], forward=lambda m, b: 0.0)
        data = Calibration.of_inputs({"['lru']": given})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            (part,) = reduce_model(tree, 3, data=data).report.values()
        assert part.choice.by == "output error"


def test_kernels_whose_input_is_not_that_of_their_module_are_refused():
    layer = make_s4d(np.random.default_rng(0), STATES, WIDTH, "float32")

    class Normed(eqx.Module):
        norm: Any
        kernel: Any
        other: Any = None

        def __call__(self, inputs: Any) -> Any:
            return S4D(2 * STATES, self.kernel)(jax.vmap(self.norm)(inputs))

    norm, given = eqx.nn.LayerNorm(WIDTH), [slow_inputs(4, WIDTH)] * 2
    with pytest.raises(UnsupportedLayerError, match="after a LayerNorm"):
        calibrate(Normed(norm, layer.kernel), given, forward=lambda m, b: jax.vmap(m)(b))
    with pytest.raises(UnsupportedLayerError, match="holds two kernels"):
        calibrate(
            Normed(norm, layer.kernel, layer.kernel), given, forward=lambda m, b: jax.vmap(m)(b)
        )
    with pytest.raises(UnsupportedLayerError, match="no shape tells apart"):
        calibrate(layer, [slow_inputs(4, WIDTH, WIDTH)], forward=lambda m, b: jax.vmap(m)(b))
    with pytest.raises(UnsupportedLayerError, match="expected a module around it"):
        calibrate(layer.kernel, given, forward=lambda m, b: m(STEPS))


def test_a_jax_that_drops_callbacks_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 8, 0))
    with pytest.raises(
        MissingBackendError, match=r"expected 0\.8\.2 or newer for `calibrate`, though 0\.6"
    ):
        calibrate(s5(), GIVEN)


def test_matching_without_optax_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    layer = s5()
    data = calibrate(
        layer,
        GIVEN,
        forward=lambda m, b: jax.vmap(m)(b),
        loss=lambda m, b: jnp.mean(jax.vmap(m)(b) ** 2),
    )
    with pytest.raises(MissingBackendError, match=r"optax.*pip install 'ssmreduce\[jax\]'"):
        reduce_model(layer, 2, data=data, options=CutOptions(match=True))


def test_a_mode_that_cannot_be_set_is_refused():
    class Fixed(Single):
        inference: bool = eqx.field(static=True, default=False)

    with pytest.raises(UnsupportedLayerError, match="field `inference` is static"):
        calibrate(Fixed(s5()), [slow_inputs(4, WIDTH)] * 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a process one processor")
def test_one_processor_is_enough():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import equinox as eqx, jax, numpy as np
from test_data_jax import KINDS, STEPS, WIDTH, last_square, slow_inputs
from ssmreduce import calibrate
given = [slow_inputs(1000, WIDTH)] * 2  # 320 kB, which JAX copies in another thread
(record,) = calibrate(
    KINDS["LRU"](), given, loss=last_square, max_sequences=2000
).layers.values()
np.testing.assert_array_equal(record.inputs, np.concatenate(given))
np.testing.assert_allclose(record.weights[:, -1], STEPS, rtol=1e-2)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=SAME_PATH, timeout=120)


@pytest.mark.slow
def test_several_devices_are_refused_by_name():
    code = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, pytest
from test_data_jax import WIDTH, Single, s5, slow_inputs
from ssmreduce import calibrate
from ssmreduce.errors import UnsupportedLayerError
for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("b",), axis_types=(kind,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))
    given = [jax.device_put(slow_inputs(4, WIDTH), sharding)] * 2
    with pytest.raises(UnsupportedLayerError, match="of `batches` is spread over several devices"):
        calibrate(Single(s5()), given, forward=eqx.filter_jit(lambda m, b: m(b)))
"""
    environment = {**SAME_PATH, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_loss_without_derivatives_is_told():
    def loss(model, batch):
        return jax.lax.stop_gradient(cross_entropy(model, batch))

    with pytest.warns(CalibrationWarning, match="`loss` has no derivative by what"):
        calibrate(Model(), make_batches(), loss=loss)
