"""S5 and S4D of JAX: what is read against the layer's own scan, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_modules import S5, make_s4d, make_s5, s5_weights
from samples import EPS, lru_weights

from ssmreduce import (
    CutOptions,
    DiagonalStateSpace,
    HankelMass,
    InTrainingReducer,
    ReductionSchedule,
    TotalBudget,
    balanced_truncation,
    h2_norm,
    hankel_singular_values,
    read_system,
    reduce_layer,
    reduce_model,
    register_layer,
    shaped_like,
    simulate,
    write_system,
)
from ssmreduce.errors import NonFiniteError, ShapeError, UnstableSystemError, UnsupportedLayerError
from ssmreduce.layers.discretisation import Discretisation
from ssmreduce.layers.s5_jax import S5HalfSpectrum

LAYOUTS = ("C", "both", "two")
RULES = ("zoh", "bilinear")
VARIANTS = list(itertools.product(RULES, (True, False), (True, False), LAYOUTS))
SINGLE = float(np.finfo(np.float32).eps)
POLES = ("Lambda_re", "Lambda_im", "log_step")


def variant(
    rng: np.random.Generator,
    rule: str = "zoh",
    conj_sym: bool = True,
    clip_eigs: bool = True,
    layout: str = "C",
    *,
    states: int = 8,
    dtype: str = "float64",
) -> S5:
    """A layer with two real parts that the clip changes, if there is one."""
    weights = s5_weights(rng, states, 3, layout)
    if clip_eigs:
        weights["Lambda_re"][:2] = -1e-5, 0.3
    return make_s5(
        weights,
        dtype,
        conj_sym=conj_sym,
        clip_eigs=clip_eigs,
        discretization=rule,
        bidirectional=layout != "C",
        step_rescale=1.25,
    )


_compiled = eqx.filter_jit(lambda layer, inputs: layer(inputs))


def run(layer: Any, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(_compiled(layer, jnp.asarray(inputs)))


def simulated(system: Any, inputs: np.ndarray) -> np.ndarray:
    """Outputs of a layer with `system`, from both directions if it has twice the outputs."""
    forward, width = simulate(system, inputs), inputs.shape[1]
    if forward.shape[1] == width:
        return forward
    return forward[:, :width] + simulate(system, inputs[::-1])[::-1, width:]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def parameters(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


# --- Reading and writing


@pytest.mark.parametrize(("rule", "conj_sym", "clip", "layout"), VARIANTS)
def test_the_system_that_is_read_and_written_is_the_layer(
    x64: None, rng: np.random.Generator, rule: str, conj_sym: bool, clip: bool, layout: str
) -> None:
    layer, inputs = variant(rng, rule, conj_sym, clip, layout), rng.standard_normal((60, 3))
    system, outputs = read_system(layer), run(layer, inputs)
    # 60 steps of 8 states, with poles whose logarithms go up to about 5.
    assert relative(simulated(system, inputs), outputs) <= 60 * 8 * EPS
    written = write_system(layer, system)
    assert relative(run(written, inputs), outputs) <= 100 * 60 * 8 * EPS
    # Steps with which the states decay as before, as far as the steps of the layer go.
    old, new = (np.asarray(each.log_step)[:, 0] for each in (layer, written))
    decays = -np.minimum(layer.Lambda_re, -1e-4) if clip else -np.asarray(layer.Lambda_re)
    inside = (old.min() + 1e-3 < new) & (new < old.max() - 1e-3)
    assert np.sum(inside) >= 2
    np.testing.assert_allclose(-written.Lambda_re[inside], np.median(decays), rtol=1e-5)
    if clip:
        assert np.all(np.asarray(written.Lambda_re) <= -1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "conj_sym", "clip", "layout"), VARIANTS)
def test_a_cut_keeps_its_bound(
    x64: None, rng: np.random.Generator, rule: str, conj_sym: bool, clip: bool, layout: str
) -> None:
    layer, inputs = variant(rng, rule, conj_sym, clip, layout), rng.standard_normal((60, 3))
    result = reduce_layer(layer, 5)
    assert result.new_order == result.layer.P == read_system(result.layer).order <= 5
    outputs, bound = run(result.layer, inputs), result.error_bound
    assert bound is not None
    assert np.linalg.norm(outputs - run(layer, inputs)) <= bound * np.linalg.norm(inputs)
    # What is left is the reduction that was asked for, in the layer's own scan.
    assert relative(outputs, simulated(result.reduction.system, inputs)) <= 1e4 * EPS


def test_both_directions_count_for_the_bound(x64: None, rng: np.random.Generator) -> None:
    result = reduce_layer(variant(rng, layout="two"), 4)
    assert result.error_bound == pytest.approx(2**0.5 * float(result.reduction.error_bound))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", RULES)
def test_single_precision(rng: np.random.Generator, rule: str, layout: str) -> None:
    layer = variant(rng, rule, clip_eigs=False, layout=layout, dtype="float32")
    inputs = rng.standard_normal((60, 3)).astype(np.float32)
    assert relative(simulated(read_system(layer), inputs), run(layer, inputs)) <= 60 * 8 * SINGLE
    result = reduce_layer(layer, 4)
    assert result.layer.B.dtype == result.layer.log_step.dtype == jnp.float32
    found = simulated(result.reduction.system, inputs)
    assert relative(run(result.layer, inputs), found) <= 60 * 8 * SINGLE


@pytest.mark.parametrize("conj_sym", [True, False])
def test_real_poles_take_a_state_each(x64: None, rng: np.random.Generator, conj_sym: bool) -> None:
    weights = s5_weights(rng, 7, 2)
    weights["Lambda_im"][:3] = 0.0
    weights["B"][:3, :, 1] = weights["C"][:, :3, 1] = 0.0
    weights["Lambda_re"][:3] = -1.0, -0.1, -0.4
    layer, inputs = make_s5(weights, conj_sym=conj_sym), rng.standard_normal((60, 2))
    for order in (2, 3, 4, 5, 6):
        result = reduce_layer(layer, order)
        assert result.new_order <= order
        difference = np.linalg.norm(run(result.layer, inputs) - run(layer, inputs))
        assert difference <= result.error_bound * np.linalg.norm(inputs)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", [1e-2, 1e-5, 1e-8])
def test_a_written_pole_near_the_circle_is_not_clipped(
    rng: np.random.Generator, rule: str, decay: float
) -> None:
    weights = s5_weights(rng, 4, 2)
    weights["log_step"][:] = np.log(0.1)
    layer = make_s5(weights, "float32", clip_eigs=True, discretization=rule)
    own = read_system(layer)
    poles = np.array(own.eigenvalues)
    poles[1] = np.exp(-decay + 0.7j)
    system = DiagonalStateSpace(
        poles, own.B, own.C, own.D, time=own.time, real_output=True, read_after_update=True
    )
    written = write_system(layer, system)
    assert written.Lambda_re.dtype == np.float32
    assert np.all(np.asarray(written.Lambda_re) <= np.float32(-1e-4))
    found = read_system(written).eigenvalues
    # Eps of single precision in Λ and in the step, times |log λ|.
    np.testing.assert_allclose(np.log(found[1]).real, -decay, rtol=1e-3, atol=4 * SINGLE)
    np.testing.assert_allclose(found, poles, atol=8 * SINGLE)
    # The layer itself runs that pole, and its clip lets a gradient through.
    assert np.all(np.abs(np.asarray(written.discrete()[0]) - poles) <= 8 * SINGLE)
    gradient = eqx.filter_grad(lambda m: jnp.sum(m.discrete()[0].real))(written)
    assert np.all(np.asarray(gradient.Lambda_re) != 0.0)


def test_without_clip_unstable_poles_are_kept(x64: None, rng: np.random.Generator) -> None:
    weights = s5_weights(rng, 4, 2)
    weights["Lambda_re"][0] = 0.05
    inputs = rng.standard_normal((40, 2))
    layer = make_s5(weights)
    written = write_system(layer, read_system(layer))
    assert relative(run(written, inputs), run(layer, inputs)) <= 1e4 * EPS
    with pytest.raises(UnstableSystemError, match="clip_eigs"):
        write_system(make_s5(s5_weights(rng, 4, 2), clip_eigs=True), read_system(layer))


def test_the_kernel_of_discretax(x64: None, rng: np.random.Generator) -> None:
    layer, impulse = make_s4d(rng, 8, 3), np.eye(60, 1)

    def responses(kernel: Any) -> np.ndarray:
        systems = read_system(kernel)
        return np.stack([simulate(systems[k], impulse)[:, 0] for k in range(3)])

    expected = np.asarray(layer.kernel(60))
    assert relative(responses(layer.kernel), expected) <= 60 * 8 * EPS
    written = write_system(layer.kernel, read_system(layer.kernel))
    assert relative(np.asarray(written(60)), expected) <= 100 * 60 * EPS
    result = reduce_model(layer, 5)
    kernel = result.model.kernel
    assert kernel.C.shape == kernel.log_a_real.shape == (3, 5)
    assert kernel.C.dtype == np.complex128
    assert relative(np.asarray(kernel(60)), responses(kernel)) <= 60 * 8 * EPS
    inputs = rng.standard_normal((60, 3))
    (report,) = result.report.values()
    difference = np.linalg.norm(run(result.model, inputs) - run(layer, inputs))
    assert difference <= report.error_bound * np.linalg.norm(inputs)


def test_layers_are_told_apart(x64: None, rng: np.random.Generator) -> None:
    assert read_system(variant(rng)).outputs == 3
    assert read_system(variant(rng, layout="both")).outputs == 6
    assert read_system(make_s4d(rng, 4, 2).kernel).batch_shape == (2,)


# --- Models


def test_a_dict_of_layers_with_order_rules(x64: None, rng: np.random.Generator) -> None:
    model = {
        "a": variant(rng, states=10),
        "b": [variant(rng, "bilinear", False, layout="two", states=12), make_s4d(rng, 6, 2)],
    }
    result = reduce_model(model, HankelMass(0.9))
    assert set(result.report) == {"['a']", "['b'][0]", "['b'][1].kernel"}
    assert all(each.new_order <= each.old_order for each in result.report.values())
    assert result.report["['a']"].new_order == result.model["a"].P
    pair = {"a": model["a"], "b": model["b"][0]}
    budget = reduce_model(pair, TotalBudget(12))
    assert sum(each.new_order for each in budget.report.values()) <= 12
    fresh = shaped_like(pair, budget.report)
    sizes = jax.tree.map(jnp.shape, parameters(fresh))
    assert eqx.tree_equal(sizes, jax.tree.map(jnp.shape, parameters(budget.model)))
    assert fresh["b"].P == budget.model["b"].P


@pytest.mark.slow
@pytest.mark.parametrize(("conj_sym", "layout"), [(True, "C"), (True, "two"), (False, "both")])
def test_training_goes_on_after_a_cut(
    rng: np.random.Generator, conj_sym: bool, layout: str
) -> None:
    model: Any = [variant(rng, "zoh", conj_sym, layout=layout, dtype="float32")]
    inputs, targets = jnp.asarray(rng.standard_normal((2, 40, 3)), jnp.float32)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(parameters(model))

    @eqx.filter_jit
    def update(model: Any, state: Any) -> Any:
        loss, gradient = eqx.filter_value_and_grad(
            lambda m: jnp.mean((jnp.tanh(m[0](inputs)) - targets) ** 2)
        )(model)
        updates, state = optimizer.update(parameters(gradient), state, parameters(model))
        return eqx.apply_updates(model, updates), state, loss

    reducer = InTrainingReducer(ReductionSchedule.at(20), order=4)
    losses = []
    for step in range(1, 61):
        model, state, loss = update(model, state)
        losses.append(float(loss))
        model, state = reducer.step(step, model, state)
    assert read_system(model[0]).order == model[0].P <= 4
    for moments in (state[0].mu, state[0].nu):
        assert eqx.tree_equal(
            jax.tree.map(jnp.shape, moments), jax.tree.map(jnp.shape, parameters(model))
        )
    assert losses[-1] < losses[20]
    assert np.all(np.isfinite(losses))


def redundant_s5(rng: np.random.Generator, **options: Any) -> tuple[S5, int]:
    """A layer of 6 states that is exactly one of 4: two have no output or no input."""
    weights = s5_weights(rng, 6, 3, "two")
    weights["B"][5] = 0.0
    weights["C1"][:, 4] = weights["C2"][:, 4] = 0.0
    weights["Lambda_re"] -= 0.5
    return make_s5(weights, bidirectional=True, **options), 4


@pytest.mark.slow
@pytest.mark.parametrize("conj_sym", [True, False])
def test_first_moments_are_the_gradients_of_the_reduced_layer(
    x64: None, rng: np.random.Generator, conj_sym: bool
) -> None:
    layer, order = redundant_s5(rng, conj_sym=conj_sym, clip_eigs=True)
    inputs, targets = jnp.asarray(rng.standard_normal((2, 30, 3)))
    gradient_of = eqx.filter_jit(
        eqx.filter_grad(lambda m: jnp.mean((jnp.tanh(m(inputs)) - targets) ** 2))
    )
    _, state = optax.trace(0.9).update(gradient_of(layer), optax.trace(0.9).init(parameters(layer)))
    result = reduce_model(layer, order, opt_state=state)
    expected, found = gradient_of(result.model), result.optimizer_state.trace
    for name in ("B", "C1", "C2", "D"):
        size = float(np.abs(getattr(expected, name)).max())
        difference = np.abs(np.asarray(getattr(found, name) - getattr(expected, name)))
        assert difference.max() <= 1e-8 * size, name
    for name in POLES:
        assert not np.any(np.asarray(getattr(found, name)))
        assert getattr(found, name).shape == getattr(result.model, name).shape


@pytest.mark.slow
def test_complex_moments_are_those_of_conjugated_gradients(
    x64: None, rng: np.random.Generator
) -> None:
    layer = make_s4d(rng, 6, 2)
    layer = eqx.tree_at(lambda m: m.kernel.C, layer, layer.kernel.C.at[:, 4:].set(0.0))
    inputs, targets = jnp.asarray(rng.standard_normal((2, 30, 2)))

    def descent(model: Any) -> Any:
        loss = eqx.filter_grad(lambda m: jnp.mean((jnp.tanh(m(inputs)) - targets) ** 2))
        return jax.tree.map(jnp.conj, parameters(loss(model)))

    _, state = optax.trace(0.9).update(descent(layer), optax.trace(0.9).init(parameters(layer)))
    result = reduce_model(layer, 4, opt_state=state)
    expected = np.asarray(descent(result.model).kernel.C)
    found = np.asarray(result.optimizer_state.trace.kernel.C)
    assert np.abs(found - expected).max() <= 1e-8 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop", "centred", "adagrad"])
def test_squares_of_complex_gradients_stay_real(rng: np.random.Generator, name: str) -> None:
    optimizer = {
        "adam": optax.adam(1e-2),
        "amsgrad": optax.amsgrad(1e-2),
        "rmsprop": optax.rmsprop(1e-2),
        "centred": optax.rmsprop(1e-2, centered=True),
        "adagrad": optax.adagrad(1e-2),
    }[name]
    model = make_s4d(rng, 8, 2, "float32")
    inputs, targets = jnp.asarray(rng.standard_normal((2, 40, 2)), jnp.float32)

    @eqx.filter_jit
    def update(model: Any, state: Any) -> Any:
        loss, gradient = eqx.filter_value_and_grad(lambda m: jnp.mean((m(inputs) - targets) ** 2))(
            model
        )
        gradient = jax.tree.map(jnp.conj, parameters(gradient))
        updates, state = optimizer.update(gradient, state, parameters(model))
        return eqx.apply_updates(model, updates), state, loss

    state, losses = optimizer.init(parameters(model)), []
    for step in range(60):
        model, state, loss = update(model, state)
        losses.append(float(loss))
        if step == 30:
            result = reduce_model(model, 4, opt_state=state)
            model, state = result.model, result.optimizer_state
            for each in jax.tree.leaves(state[0]):
                assert np.all(np.isfinite(np.asarray(each)))
            squares = [
                getattr(part, field)
                for part in state
                for field in ("nu", "sum_of_squares")
                if hasattr(part, field)
            ]
            assert squares
            for each in squares:
                assert each.kernel.C.shape == (2, 4)
                assert np.all(np.asarray(each.kernel.C.imag) == 0.0)
                assert np.all(np.asarray(each.kernel.C.real) > 0.0)
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[31]


def test_complex_second_moments_are_carried_in_scale(x64: None, rng: np.random.Generator) -> None:
    # Where nothing mixes, |g|² of a kept state is that of its new one, whatever its phase is.
    layer = make_s4d(rng, 6, 1).kernel
    state = optax.scale_by_adam().init(parameters(layer))
    state = state._replace(nu=jax.tree.map(lambda x: x * 0 + 4.0, parameters(layer)))
    kept = reduce_model(layer, 6, opt_state=state).optimizer_state.nu.C
    assert np.all(np.asarray(kept) == 4.0)
    reset = reduce_model(layer, 3, opt_state=state, options=CutOptions(moments="reset"))
    assert not np.any(np.asarray(reset.optimizer_state.nu.C))


def test_averages_follow(x64: None, rng: np.random.Generator) -> None:
    model = [variant(rng, layout="two"), make_s4d(rng, 6, 2)]
    average = jax.tree.map(lambda x: x + 1e-3 if eqx.is_inexact_array(x) else x, model)
    result = reduce_model(model, 4, followers=[average])
    (follower,) = result.followers
    shapes = jax.tree.map(jnp.shape, parameters(result.model))
    assert eqx.tree_equal(jax.tree.map(jnp.shape, parameters(follower.model)), shapes)
    assert follower.model[0].P == result.model[0].P
    inputs = rng.standard_normal((60, 3))
    apart = run(follower.model[0], inputs) - run(result.model[0], inputs)
    assert np.abs(apart).max() <= 0.1 * np.abs(run(result.model[0], inputs)).max()


def test_a_stream_goes_on_after_a_cut(x64: None, rng: np.random.Generator) -> None:
    layer, order = redundant_s5(rng)  # exactly: states that nothing excites, or that nothing shows
    result, inputs = reduce_layer(layer, order), rng.standard_normal((40, 3))
    poles, B = (np.asarray(x) for x in layer.discrete())
    state = np.zeros(poles.shape, complex)
    for sample in inputs:
        state = poles * state + B @ sample
    after = np.asarray(result.reduce_state(state))
    expected = read_system(layer).C @ state
    found = read_system(result.layer).C @ after
    # Both without the factor of the bound: the cut is exact.
    assert np.abs(expected.real - found.real).max() <= 1e-8 * np.abs(expected).max()


# --- Derivatives


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "conj_sym", "clip", "layout"), VARIANTS[::3])
def test_reading_follows_traced_layers(
    x64: None, rng: np.random.Generator, rule: str, conj_sym: bool, clip: bool, layout: str
) -> None:
    layer = variant(rng, rule, conj_sym, clip, layout, states=4)

    def norm(model: S5) -> jax.Array:
        return h2_norm(read_system(model))

    gradient = eqx.filter_jit(eqx.filter_grad(norm))(layer)
    step = 1e-6
    for name in ("Lambda_re", "log_step"):
        at = np.zeros(getattr(layer, name).shape)
        at[2] = step
        shifted = [
            dataclasses.replace(layer, **{name: getattr(layer, name) + s * at}) for s in (1, -1)
        ]
        above, below = (float(norm(each)) for each in shifted)
        found = float(np.asarray(getattr(gradient, name)).ravel()[2])
        expected = (above - below) / (2 * step)
        assert found == pytest.approx(expected, rel=1e-5, abs=10 * EPS * above / step)


def test_the_kernel_follows_traced_layers(x64: None, rng: np.random.Generator) -> None:
    kernel = make_s4d(rng, 4, 2).kernel
    total = eqx.filter_jit(lambda k: jnp.sum(hankel_singular_values(read_system(k))))
    expected = float(np.sum(hankel_singular_values(read_system(kernel))))
    assert float(total(kernel)) == pytest.approx(expected, rel=1e-10)


# --- Refusals


@pytest.mark.parametrize("rule", ["euler", None, 3, ["zoh"]])
def test_other_rules_are_refused(rng: np.random.Generator, rule: Any) -> None:
    layer = make_s5(s5_weights(rng, 4, 2), "float32", discretization=rule)
    with pytest.raises(UnsupportedLayerError, match="neither 'zoh' nor 'bilinear'"):
        read_system(layer)
    good = variant(rng, dtype="float32")
    result = reduce_model([layer, good], 3, options=CutOptions(skip_unsupported=True))
    assert eqx.tree_equal(result.model[0], layer)
    assert len(result.report) == 1


@pytest.mark.parametrize("factor", [0.0, -1.0, np.inf, np.nan, "1", True, None])
def test_step_rescale_has_to_be_positive(rng: np.random.Generator, factor: Any) -> None:
    with pytest.raises(UnsupportedLayerError, match="step_rescale"):
        read_system(make_s5(s5_weights(rng, 4, 2), "float32", step_rescale=factor))


def test_two_output_matrices_of_one_direction_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(UnsupportedLayerError, match="`C1` and `C2`"):
        read_system(make_s5(s5_weights(rng, 4, 2, "two"), "float32"))


class Bare(eqx.Module):
    """S5 that does not say whether its states stand for pairs."""

    Lambda_re: jax.Array
    Lambda_im: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array
    log_step: jax.Array


def test_a_layer_without_options_is_registered(x64: None, rng: np.random.Generator) -> None:
    weights = s5_weights(rng, 4, 2)
    layer = Bare(**{name: jnp.asarray(x) for name, x in weights.items()})
    with pytest.raises(UnsupportedLayerError, match=r"conj_sym.*register_layer"):
        read_system(layer)

    class Registered(Bare):
        pass

    options = {"discretization": "bilinear", "conj_sym": False}
    layer_map = S5HalfSpectrum(Discretisation.BILINEAR, conj_sym=False)
    register_layer(Registered, layer_map)
    known, inputs = Registered(**dict(vars(layer))), rng.standard_normal((40, 2))
    expected = run(make_s5(weights, **options), inputs)
    assert relative(simulated(read_system(known), inputs), expected) <= 60 * 8 * EPS
    # A dict of arrays, as Flax keeps them, needs no module.
    reduced = balanced_truncation(layer_map.read(weights), 3).system
    smaller = make_s5(weights | layer_map.write(reduced, weights), **options)
    assert relative(run(smaller, inputs), simulated(reduced, inputs)) <= 1e4 * EPS


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Lambda_re", (2, 4)),
        ("Lambda_im", (5,)),
        ("log_step", (4,)),
        ("log_step", (5, 1)),
        ("log_step", (4, 2)),
        ("B", (4, 2)),
        ("B", (4, 2, 3)),
        ("B", (5, 2, 2)),
        ("C", (2, 8, 2)),
        ("C", (3, 4, 2)),
        ("D", (3,)),
    ],
)
def test_weights_have_to_fit(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> None:
    weights = s5_weights(rng, 4, 2) | {name: np.ones(shape)}
    with pytest.raises(ShapeError, match=f"`{name}` has shape"):
        read_system(make_s5(weights, "float32"))


@pytest.mark.parametrize(("name", "shape"), [("C", (2, 3)), ("log_dt", (3,)), ("A_imag", (2, 5))])
def test_weights_of_the_kernel_have_to_fit(
    rng: np.random.Generator, name: str, shape: tuple[int, ...]
) -> None:
    kernel = make_s4d(rng, 4, 2, "float32").kernel
    bad = eqx.tree_at(lambda k: getattr(k, name), kernel, jnp.ones(shape))
    with pytest.raises(ShapeError, match=f"`{name}` has shape"):
        read_system(bad)


@pytest.mark.parametrize("name", ["Lambda_re", "Lambda_im", "B", "C", "D", "log_step"])
def test_nan_is_refused(rng: np.random.Generator, name: str) -> None:
    weights = s5_weights(rng, 4, 2)
    weights[name].flat[0] = np.nan
    with pytest.raises(NonFiniteError, match=f"`{name}`"):
        read_system(make_s5(weights, "float32", clip_eigs=True))


def test_a_pole_at_zero_is_refused_where_the_layer_divides_by_it(rng: np.random.Generator) -> None:
    weights = s5_weights(rng, 4, 2)
    weights["Lambda_re"][1] = weights["Lambda_im"][1] = 0.0
    with pytest.raises(ShapeError, match="common entry 0"):
        read_system(make_s5(weights, "float32"))
    for options in ({"clip_eigs": True}, {"discretization": "bilinear"}):
        assert read_system(make_s5(weights, "float32", **options)).order == 4


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_layers_are_no_layer(kind: type, rng: np.random.Generator) -> None:
    layers = kind(make_s5(s5_weights(rng, states, 3)) for states in (8, 6))
    for call in (read_system, partial(reduce_layer, order=3)):
        with pytest.raises(UnsupportedLayerError, match=r"it holds `\[0\]`, `\[1\]`"):
            call(layers)


def test_shape_errors_name_the_weight_that_says_otherwise(rng: np.random.Generator) -> None:
    weights = lru_weights(rng, 8, 3)
    weights["B_im"] = weights["B_im"][:, :2]
    expected = r"`B_im` has shape \(8, 2\); expected \(8, 3\), as `B_re` has shape \(8, 3\)"
    with pytest.raises(ShapeError, match=expected):
        read_system(weights, kind="lru")
