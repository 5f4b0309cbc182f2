"""Sizes of the states of a reduced layer: output weights stay as large as usual."""

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


def output_sizes(weights: dict[str, np.ndarray]) -> np.ndarray:
    """‖c‖ of the stored weights."""
    return np.linalg.norm(weights["C_re"] + 1j * weights["C_im"], axis=0)


@pytest.mark.parametrize("order", [1, 6, 7])
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_keeps_the_usual_size_of_output_weights(x64: None, seed: int, order: int) -> None:
    result = reduce_layer(trained_layer(seed), order)
    usual = np.median(output_sizes(result.weights))
    np.testing.assert_allclose(np.median(output_sizes(result.new_weights)), usual, rtol=1e3 * EPS)


@pytest.mark.parametrize("seed", range(3))
def test_all_new_states_have_one_proportion_of_weights(x64: None, seed: int) -> None:
    ratio = stored_ratio(reduce_layer(trained_layer(seed), 7).new_weights)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e3 * EPS)


def test_states_without_output_weights_do_not_count(x64: None) -> None:
    weights = trained_weights(0)
    silent = np.arange(0, 24, 2)
    for part in ("re", "im"):
        weights[f"C_{part}"][:, silent] = 0.0
    result = reduce_layer(weights, 4, kind="lru")
    heard = np.delete(output_sizes(weights), silent)
    expected = np.median(heard)
    np.testing.assert_allclose(
        np.median(output_sizes(result.new_weights)), expected, rtol=1e3 * EPS
    )
