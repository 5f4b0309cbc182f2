"""Optimizer moments across a cut, against gradients that JAX computes for the reduced layer."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import torch
from modules import WEIGHTS, ForeignLRU, KernelLRU, Stack, make_lru
from samples import EPS, lru_weights

from ssmreduce import CutOptions, reduce_model
from ssmreduce.errors import OptimizerStateError
from ssmreduce.models.report import ModelReduction

POLES = ("nu_log", "theta_log", "gamma_log")
MATRICES = ("B_re", "B_im", "C_re", "C_im")


def parameters(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


def redundant_layer(dtype: str = "float64") -> tuple[ForeignLRU, int]:
    """A layer of 9 states that is exactly one of 6: five pairs and a real pole.

    Two states repeat poles with proportional input weights, one does not respond to its input.
    """
    rng = np.random.default_rng(31)
    w = lru_weights(rng, 9, 3, r_min=0.4, r_max=0.9)
    for copy, source in ((5, 0), (6, 3)):
        for name in POLES:
            w[name][copy] = w[name][source]
        factor = complex(*rng.standard_normal(2))
        b = factor * (w["B_re"][source] + 1j * w["B_im"][source])
        w["B_re"][copy], w["B_im"][copy] = b.real, b.imag
    w["B_re"][7] = w["B_im"][7] = 0.0
    w["theta_log"][8] = np.log(2 * np.pi)
    w["B_im"][8], w["C_im"][:, 8] = 0.0, 0.0
    w["gamma_log"] += 0.3 * rng.standard_normal(9) * (np.arange(9) < 5)
    w["gamma_log"][[5, 6]] = w["gamma_log"][[0, 3]]
    return make_lru(w, dtype, KernelLRU), 6


def loss_of(layer: ForeignLRU) -> jax.Array:
    rng = np.random.default_rng(32)
    inputs, targets = jnp.asarray(rng.standard_normal((2, 40, 3)))
    return jnp.mean((jnp.tanh(layer(inputs)) - targets) ** 2)


gradient_of = jax.jit(jax.grad(loss_of))


def by_name(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(tree, name)) for name in WEIGHTS}


def with_trace(layer: Any, values: Any) -> Any:
    """A momentum state that holds exactly `values`."""
    state = optax.trace(0.9).init(parameters(layer))
    _, state = optax.trace(0.9).update(values, state)
    return state


@pytest.mark.slow
def test_first_moments_are_the_gradients_of_the_reduced_layer(x64: None) -> None:
    layer, order = redundant_layer()
    gradient = gradient_of(layer)
    state = with_trace(layer, gradient)
    result = reduce_model(layer, order, opt_state=state)
    (report,) = result.report.values()
    assert report.new_order == order
    slots = report.reduction.slot_map
    assert np.sum(~slots.is_pair) == 1
    # The cut is exact, so both layers have one loss, and gradients that the map must connect.
    scale = float(loss_of(layer))
    assert float(loss_of(result.model)) == pytest.approx(scale, rel=1e4 * EPS * slots.condition)
    expected, found = by_name(gradient_of(result.model)), by_name(result.optimizer_state.trace)
    for name in (*MATRICES, "D"):
        size = np.abs(expected[name]).max()
        # W, T, V and S are products of 18 terms, each of condition cond(V).
        allowed = 1e3 * 18 * EPS * slots.condition * size
        assert np.abs(found[name] - expected[name]).max() <= allowed, name
    for name in POLES:
        assert not np.any(found[name]), name


def carried(layer: Any, order: int, values: dict[str, np.ndarray], kind: str) -> Any:
    """Moments after the cut of `layer`, for first moments ("trace") or second ones ("nu")."""
    tree = eqx.tree_at(
        lambda m: [getattr(m, name) for name in values],
        jax.tree.map(jnp.zeros_like, layer),
        [jnp.asarray(x) for x in values.values()],
    )
    if kind == "trace":
        state: Any = with_trace(layer, tree)
        return by_name(reduce_model(layer, order, opt_state=state).optimizer_state.trace)
    state = optax.scale_by_rms().init(parameters(layer))._replace(nu=tree)
    return by_name(reduce_model(layer, order, opt_state=state).optimizer_state.nu)


def test_second_moments_take_the_squared_coefficients(x64: None) -> None:
    # The linear map of first moments, entry by entry, from unit vectors; its squares map the second.
    rng = np.random.default_rng(33)
    layer = make_lru(lru_weights(rng, 6, 1, r_max=0.9), "float64")
    second = {name: rng.exponential(size=getattr(layer, name).shape) for name in MATRICES}
    found = carried(layer, 3, second, "nu")
    for group in (("B_re", "B_im"), ("C_re", "C_im")):
        expected = {name: np.zeros_like(found[name]) for name in group}
        for source in group:
            for index in range(6):
                unit = np.zeros(6)
                unit[index] = 1.0
                shape = getattr(layer, source).shape
                image = carried(layer, 3, {source: unit.reshape(shape)}, "trace")
                for target in group:
                    weight = second[source].ravel()[index]
                    expected[target] += image[target] ** 2 * weight
        for name in group:
            assert np.all(found[name] >= 0)
            np.testing.assert_allclose(found[name], expected[name], rtol=100 * EPS)


def test_second_moments_of_poles_share_the_sum(x64: None) -> None:
    rng = np.random.default_rng(34)
    layer = make_lru(lru_weights(rng, 8, 2), "float64")
    second = {name: rng.exponential(size=8) for name in POLES}
    found = carried(layer, 4, second, "nu")
    for name in POLES:
        assert found[name].sum() == pytest.approx(second[name].sum(), rel=10 * EPS)
        assert np.ptp(found[name]) == 0.0


def test_feedthrough_moments_stay(x64: None) -> None:
    rng = np.random.default_rng(35)
    layer = make_lru(lru_weights(rng, 8, 2), "float64")
    D = rng.standard_normal(2)
    np.testing.assert_array_equal(carried(layer, 4, {"D": D}, "trace")["D"], D)
    np.testing.assert_array_equal(carried(layer, 4, {"D": D**2}, "nu")["D"], D**2)


# --- Structures of optax states


def stack(precision: str = "float32") -> Stack:
    rng = np.random.default_rng(36)
    return Stack(
        make_lru(lru_weights(rng, 16, 3), precision),
        make_lru(lru_weights(rng, 12, 3), precision),
        jnp.ones(3, dtype=precision),
    )


def groups(model: Any) -> Any:
    def label(path: Any, leaf: Any) -> str:
        return "poles" if path[-1].name in POLES else "rest"

    return jax.tree_util.tree_map_with_path(label, model)


OPTIMIZERS: dict[str, Any] = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "amsgrad": optax.amsgrad(1e-2),
    "sgd": optax.sgd(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop(1e-2, momentum=0.5, centered=True),
    "lion": optax.lion(1e-3),
    "adagrad": optax.adagrad(1e-2),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(1e-2, 100)),
        optax.ema(0.9),
    ),
    "multi_transform": optax.multi_transform(
        {"poles": optax.adam(1e-3), "rest": optax.sgd(1e-2, momentum=0.9)}, groups
    ),
    "multi_steps": optax.MultiSteps(optax.adam(1e-2), every_k_schedule=3),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
}


def some_gradient(model: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), model)


def step_once(optimizer: Any, model: Any, state: Any, seed: int) -> tuple[Any, Any]:
    updates, state = optimizer.update(some_gradient(model, seed), state, model)
    return optax.apply_updates(model, updates), state


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        # JAX compiles each operation of an optimizer for each shape.
        *(
            pytest.param(name, "carry", marks=[] if name == "adam" else [pytest.mark.slow])
            for name in OPTIMIZERS
        ),
        ("adam", "reset"),
    ],
)
def test_states_go_on_working(name: str, moments: Any) -> None:
    optimizer, model = OPTIMIZERS[name], stack()
    state = optimizer.init(parameters(model))
    for seed in range(2):
        _, state = step_once(optimizer, model, state, seed)
    result = reduce_model(model, 5, opt_state=state, options=CutOptions(moments=moments))
    assert {part.new_order for part in result.report.values()} == {5}
    fresh = optimizer.init(parameters(result.model))
    new = result.optimizer_state
    assert jax.tree.structure(new) == jax.tree.structure(fresh)
    for (path, leaf), (_, expected), (_, old) in zip(
        *(jax.tree_util.tree_leaves_with_path(tree) for tree in (new, fresh, state)), strict=True
    ):
        where = jax.tree_util.keystr(path)
        assert jnp.shape(leaf) == jnp.shape(expected), where
        assert leaf.dtype == expected.dtype, where
        assert np.all(np.isfinite(leaf)), where
        if not any(field in where for field in (".first.", ".second.")):
            assert leaf is old, where  # counts, schedules, keys, the head
        elif moments == "reset" and ".D" not in where:
            assert not np.any(leaf), where
    after, _ = step_once(optimizer, result.model, new, 2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


def test_reset(x64: None) -> None:
    layer, order = redundant_layer()
    gradient = gradient_of(layer)
    state = with_trace(layer, gradient)
    options = CutOptions(moments="reset")
    reset = reduce_model(layer, order, opt_state=state, options=options).optimizer_state.trace
    for name in (*POLES, *MATRICES):
        assert not bool(jnp.any(getattr(reset, name))), name
    np.testing.assert_array_equal(reset.D, gradient.D)


def test_no_state_is_no_state() -> None:
    result = reduce_model(stack(), 4)
    assert isinstance(result, ModelReduction)
    assert result.optimizer_state is None


def test_same_names_at_different_depths(x64: None) -> None:
    # Key paths end alike: ['a'].B_re and ['x']['a'].B_re are different weights all the same.
    rng = np.random.default_rng(38)
    small = make_lru(lru_weights(rng, 8, 2), "float64")
    other = make_lru(lru_weights(rng, 10, 2), "float64")
    values = [
        jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), layer)
        for layer in (small, other)
    ]
    state = with_trace({"a": small, "x": {"a": other}}, {"a": values[0], "x": {"a": values[1]}})
    result = reduce_model({"a": small, "x": {"a": other}}, 4, opt_state=state)
    for layer, value, found in (
        (small, values[0], result.optimizer_state.trace["a"]),
        (other, values[1], result.optimizer_state.trace["x"]["a"]),
    ):
        alone = reduce_model(layer, 4, opt_state=with_trace(layer, value)).optimizer_state.trace
        for name in WEIGHTS:
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_uncut_layers_of_the_same_name_keep_their_moments(x64: None) -> None:
    rng = np.random.default_rng(39)
    cut = make_lru(lru_weights(rng, 8, 2), "float64")
    kept = make_lru(lru_weights(rng, 4, 2), "float64")
    model = {"a": cut, "x": {"a": kept}}
    moments = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), model)
    result = reduce_model(model, 4, opt_state=with_trace(model, moments))
    assert result.model["x"]["a"] is kept or result.model["x"]["a"].nu_log is kept.nu_log
    for name in WEIGHTS:
        np.testing.assert_array_equal(
            getattr(result.optimizer_state.trace["x"]["a"], name), getattr(moments["x"]["a"], name)
        )


def leaves_unchanged(tree: Any, before: list[Any]) -> bool:
    after = jax.tree.leaves(tree)
    return len(after) == len(before) and all(a is b for a, b in zip(after, before, strict=True))


def test_an_optimizer_is_no_state(rng: np.random.Generator) -> None:
    model = make_lru(lru_weights(rng, 16, 4))
    torch_optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    for optimizer in (optax.adam(1e-3), torch_optimizer):
        for given in ({"optimizer": optimizer}, {"opt_state": optimizer}):
            with pytest.raises(OptimizerStateError, match=r"expected the state of an optimizer"):
                reduce_model(model, 6, **given)


def test_unknown_fields_are_refused_and_nothing_changes() -> None:
    model = stack()
    optimizer = optax.rprop(1e-3)
    state = optimizer.init(parameters(model))
    before = jax.tree.leaves((model, state))
    copies = [np.array(leaf) for leaf in before]
    with pytest.raises(OptimizerStateError, match=r"step_sizes|prev_updates") as caught:
        reduce_model(model, 4, opt_state=state)
    assert isinstance(caught.value, TypeError)
    assert leaves_unchanged((model, state), before)
    for leaf, copy in zip(before, copies, strict=True):
        np.testing.assert_array_equal(leaf, copy)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (optax.adafactor(1e-3), "sums over rows and columns"),
        (optax.flatten(optax.adam(1e-3)), "joins all weights"),
        (optax.sm3(1e-3), "is a part of a moment only"),
        (optax.rprop(1e-3), "signs of single entries"),
        (optax.novograd(1e-3), "as NovoGrad has it"),
        (optax.contrib.schedule_free_adamw(1e-3), "weights as they were"),
        (optax.adan(1e-3), "not known to average"),
        (optax.chain(optax.adam(1e-3), optax.scale_by_lbfgs()), "belongs to no weight"),
    ],
)
def test_states_that_cannot_follow_say_why(optimizer: Any, reason: str) -> None:
    model = stack()
    with pytest.raises(OptimizerStateError, match=f"{reason}.*[Uu]se"):
        reduce_model(model, 4, opt_state=optimizer.init(parameters(model)))


def test_the_polynomial_of_muon_stays() -> None:
    model, optimizer = stack(), optax.contrib.muon(1e-3)
    result = reduce_model(model, 4, opt_state=optimizer.init(parameters(model)))
    fresh = optimizer.init(parameters(result.model))
    assert jax.tree.map(jnp.shape, result.optimizer_state) == jax.tree.map(jnp.shape, fresh)


def test_state_of_another_shape_is_refused() -> None:
    model = stack()
    smaller = reduce_model(model, 4).model
    state = optax.adam(1e-3).init(parameters(smaller))
    with pytest.raises(OptimizerStateError, match=r"\(4,.*\(16,"):
        reduce_model(model, 4, opt_state=state)


@pytest.mark.parametrize("moments", ["keep", None, 0])
def test_unknown_treatment(moments: Any) -> None:
    with pytest.raises(OptimizerStateError, match="carry"):
        CutOptions(moments=moments)


def test_float32_states_stay_float32() -> None:
    model = stack("float32")
    optimizer = optax.adam(1e-2)
    _, state = step_once(optimizer, model, optimizer.init(parameters(model)), 3)
    result = reduce_model(model, 5, opt_state=state)
    assert result.optimizer_state[0].count is state[0].count
    assert result.optimizer_state[0].mu.first.B_re.dtype == jnp.float32
    assert result.optimizer_state[0].mu.head is state[0].mu.head
    assert bool(jnp.any(result.optimizer_state[0].nu.first.B_re > 0))


def test_the_original_model_and_state_stay_alive(rng: np.random.Generator) -> None:
    model, optimizer = stack(), optax.adam(1e-2)
    _, state = step_once(optimizer, model, optimizer.init(parameters(model)), 3)
    before = jax.tree.leaves((model, state))
    copies = [np.array(leaf) for leaf in before]
    reduce_model(model, 5, opt_state=state)
    assert leaves_unchanged((model, state), before)
    for leaf, copy in zip(before, copies, strict=True):
        np.testing.assert_array_equal(leaf, copy)


@pytest.mark.slow
def test_variances_of_centred_rmsprop_stay_positive() -> None:
    # One gradient all along: no variance. Through squared coefficients alone it would become negative.
    optimizer, model = optax.rmsprop(1e-2, centered=True), stack()
    state = optimizer.init(parameters(model))
    for _ in range(40):
        _, state = step_once(optimizer, model, state, 0)
    new = reduce_model(model, 5, opt_state=state).optimizer_state[0]
    for mean, square in zip(jax.tree.leaves(new.mu), jax.tree.leaves(new.nu), strict=True):
        assert jnp.all(square >= mean**2 * (1 - 1e-6))
