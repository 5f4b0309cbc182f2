"""Sizes of the states of a reduced layer: one map, two proportions of its weights, moments that follow."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from modules import KernelLRU, make_lru
from samples import EPS, adjoint, impulse_response, lru_weights

from ssmreduce import InTrainingReducer, OrderError, ReductionSchedule, reduce_layer, reduce_model
from ssmreduce.models.report import LayerReduction

MATRICES = ("B_re", "B_im", "C_re", "C_im")


def trained_layer(seed: int) -> Any:
    """A layer whose states have all sorts of sizes, and a γ of their own."""
    rng = np.random.default_rng(seed)
    weights = lru_weights(rng, 24, 3, r_min=0.5, r_max=0.99)
    size = np.exp(rng.standard_normal(24))
    for part in ("re", "im"):
        weights[f"B_{part}"] *= size[:, None]
        weights[f"C_{part}"] /= 5.0 * size
    weights["gamma_log"] += 0.5 * rng.standard_normal(24)
    return make_lru(weights, "float64", KernelLRU)


def stored_ratio(weights: dict[str, np.ndarray]) -> np.ndarray:
    """‖b‖/‖c‖ of the stored weights, with the γ that a written layer has."""
    decay = -np.expm1(-2.0 * np.exp(weights["nu_log"]))
    gamma = np.exp(weights["gamma_log"])
    b = gamma / np.sqrt(decay) * np.linalg.norm(weights["B_re"] + 1j * weights["B_im"], axis=1)
    return b / np.linalg.norm(weights["C_re"] + 1j * weights["C_im"], axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_map_is_the_same(x64: None, seed: int) -> None:
    layer = trained_layer(seed)
    results = [reduce_layer(layer, 7, mode_scaling=scaling) for scaling in ("layer", "balanced")]
    first, second = (impulse_response(x.reduction.system, 60) for x in results)
    condition = results[0].reduction.slot_map.condition
    assert np.abs(first - second).max() <= 100 * 7 * EPS * condition * np.abs(first).max()
    assert np.abs(results[0].new_weights["B_re"] / results[1].new_weights["B_re"] - 1).max() > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_layer_keeps_the_median_proportion_in_every_state(x64: None, seed: int) -> None:
    result = reduce_layer(trained_layer(seed), 7, mode_scaling="layer")
    expected = np.median(stored_ratio(result.weights))
    np.testing.assert_allclose(stored_ratio(result.new_weights), expected, rtol=1e3 * EPS)


@pytest.mark.parametrize("seed", range(3))
def test_balanced_has_unit_eigenvectors(x64: None, seed: int) -> None:
    result = reduce_layer(trained_layer(seed), 7, mode_scaling="balanced")
    system, original = result.reduction.system, result.reduction.original
    left, right = result.reduction.left, result.reduction.right
    A = np.diag(original.eigenvalues)
    real = np.block([[A.real, -A.imag], [A.imag, A.real]])
    B = np.concatenate([original.B.real, original.B.imag])
    values, vectors = np.linalg.eig(adjoint(left) @ real @ right)  # of unit length
    b = np.linalg.norm(np.linalg.solve(vectors, adjoint(left) @ B), axis=1)
    for pole, row in zip(system.eigenvalues, system.B, strict=True):
        at = np.argmin(np.minimum(np.abs(values - pole), np.abs(values - pole.conj())))
        assert np.linalg.norm(row) == pytest.approx(b[at], rel=1e-9)


def test_default_is_layer() -> None:
    layer = trained_layer(0)
    default, named = reduce_layer(layer, 7), reduce_layer(layer, 7, mode_scaling="layer")
    for name, value in default.new_weights.items():
        np.testing.assert_array_equal(value, named.new_weights[name])


def state_factors(results: list[LayerReduction]) -> np.ndarray:
    """By what the states of the second layer are larger than those of the first: real, positive."""
    first, second = (x.reduction.system for x in results)
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    factor = second.B[:, 0] / first.B[:, 0]
    assert np.abs(factor.imag).max() <= 1e3 * EPS * np.abs(factor).max()
    assert factor.real.min() > 0.0
    return factor.real


@pytest.mark.parametrize("power", [1, 2])
def test_moments_follow_the_size(x64: None, power: int) -> None:
    # ∇(b s) = ∇b / s and ∇(c / s) = s ∇c; second moments take the squares of these factors.
    layer = trained_layer(3)
    rng = np.random.default_rng(4)
    values = jax.tree.map(lambda x: jnp.asarray(rng.exponential(size=x.shape)), layer)
    parameters = eqx.filter(layer, eqx.is_inexact_array)
    if power == 1:
        _, state = optax.trace(0.9).update(values, optax.trace(0.9).init(parameters))
    else:
        state = optax.scale_by_rms().init(parameters)._replace(nu=values)
    moments, parts = [], []
    for scaling in ("layer", "balanced"):
        result = reduce_model(layer, 7, opt_state=state, mode_scaling=scaling)
        new = result.optimizer_state
        moments.append(new.trace if power == 1 else new.nu)
        parts += result.report.values()
    factor = state_factors(parts) ** power
    for name in MATRICES:
        by = 1.0 / factor[:, None] if name.startswith("B") else factor
        expected = np.asarray(getattr(moments[0], name)) * by
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            getattr(moments[1], name), expected, rtol=1e4 * EPS, atol=1e4 * EPS * scale
        )


def test_unknown_scaling() -> None:
    layer: Any = trained_layer(0)
    wrong: Any = "unit"
    with pytest.raises(OrderError, match="balanced"):
        reduce_layer(layer, 7, mode_scaling=wrong)
    with pytest.raises(OrderError, match="balanced"):
        reduce_model(layer, 7, mode_scaling=wrong)
    with pytest.raises(OrderError, match="balanced"):
        InTrainingReducer(ReductionSchedule(10), mode_scaling=wrong)


def test_reducer_passes_it_on(x64: None) -> None:
    layer = trained_layer(1)
    state = optax.sgd(0.1).init(eqx.filter(layer, eqx.is_inexact_array))
    schedule = ReductionSchedule(1, stop=1.0, attempts=1)
    found, _ = InTrainingReducer(schedule, 7, mode_scaling="balanced").step(1, layer, state)
    expected = reduce_layer(layer, 7, mode_scaling="balanced").new_weights
    np.testing.assert_array_equal(found.B_re, expected["B_re"])
