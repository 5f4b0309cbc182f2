"""Sizes of the states of a reduced layer: output weights stay as large as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from modules import KernelLRU, make_lru
from samples import EPS, lru_weights

from ssmreduce import reduce_layer


def trained_weights(seed: int) -> dict[str, np.ndarray]:
    """Of an LRU whose states have all sorts of sizes, and a γ of their own."""
    rng = np.random.default_rng(seed)
    weights = lru_weights(rng, 24, 3, r_min=0.5, r_max=0.99)
    size = np.exp(rng.standard_normal(24))
    for part in ("re", "im"):
        weights[f"B_{part}"] *= size[:, None]
        weights[f"C_{part}"] /= 5.0 * size
    weights["gamma_log"] += 0.5 * rng.standard_normal(24)
    return weights


def trained_layer(seed: int) -> Any:
    return make_lru(trained_weights(seed), "float64", KernelLRU)


def stored_ratio(weights: dict[str, np.ndarray]) -> np.ndarray:
    """‖b‖/‖c‖ of the stored weights, with the γ that a written layer has."""
    decay = -np.expm1(-2.0 * np.exp(weights["nu_log"]))
    gamma = np.exp(weights["gamma_log"])
    b = gamma / np.sqrt(decay) * np.linalg.norm(weights["B_re"] + 1j * weights["B_im"], axis=1)
    return b / np.linalg.norm(weights["C_re"] + 1j * weights["C_im"], axis=0)


def usual_output_weights(weights: dict[str, np.ndarray]) -> float:
    """Geometric mean of ‖c‖, in which each state counts by what it carries, ‖b‖‖c‖/sqrt(1-|λ|²)."""
    c = np.linalg.norm(weights["C_re"] + 1j * weights["C_im"], axis=0)
    carried = stored_ratio(weights) * c**2
    return float(np.exp(np.average(np.log(c), weights=carried)))


@pytest.mark.parametrize("order", [1, 6, 24])
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_keeps_the_usual_size_of_output_weights(x64: None, seed: int, order: int) -> None:
    result = reduce_layer(trained_layer(seed), order)
    expected = usual_output_weights(result.weights)
    np.testing.assert_allclose(usual_output_weights(result.new_weights), expected, rtol=1e3 * EPS)


@pytest.mark.parametrize("seed", range(3))
def test_all_new_states_have_one_proportion_of_weights(x64: None, seed: int) -> None:
    ratio = stored_ratio(reduce_layer(trained_layer(seed), 7).new_weights)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e3 * EPS)


def test_states_without_use_do_not_count() -> None:
    weights, order = trained_weights(0), 4
    silent = np.arange(0, 24, 2)
    for part in ("re", "im"):
        weights[f"C_{part}"][:, silent] = 0.0
    used = {
        name: np.delete(value, silent, axis=name.startswith("C_")) if name != "D" else value
        for name, value in weights.items()
    }
    whole, part = (reduce_layer(these, order, kind="lru").new_weights for these in (weights, used))
    for name in ("B_re", "B_im", "C_re", "C_im"):
        np.testing.assert_allclose(whole[name], part[name], rtol=1e-9, atol=1e-9)
