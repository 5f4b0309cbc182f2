"""Sizes of the states of a reduced layer: the proportion of its weights stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from modules import KernelLRU, make_lru
from samples import EPS, lru_weights

from ssmreduce import reduce_layer


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
def test_a_cut_keeps_the_median_proportion_in_every_state(x64: None, seed: int) -> None:
    result = reduce_layer(trained_layer(seed), 7)
    expected = np.median(stored_ratio(result.weights))
    np.testing.assert_allclose(stored_ratio(result.new_weights), expected, rtol=1e3 * EPS)
