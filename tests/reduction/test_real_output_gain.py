"""Balancing the real system behind a layer, against balancing the complex one.

Layers are drawn as LRU initialises them (r_min = 0.5, r_max = 0.99, phase up to 6.28); the complex
way forgets that the output is a real part, and its reduced system is then read as a layer again.
"""

from __future__ import annotations

import numpy as np
import pytest
from samples import lru_system

from ssmreduce import DiagonalStateSpace, Discrete, balanced_truncation
from ssmreduce.norms import hinf_difference

pytestmark = pytest.mark.every_library

# states, inputs, kept, median gain measured when the method was designed, draws
TABLE = [
    (64, 1, 16, 9.1, 20),
    pytest.param(64, 4, 16, 1.9, 20, marks=pytest.mark.slow),
    pytest.param(64, 8, 32, 2.8, 6, marks=pytest.mark.slow),
    pytest.param(256, 8, 64, 2.8, 3, marks=pytest.mark.slow),
]


def complex_balanced(layer: DiagonalStateSpace, order: int) -> DiagonalStateSpace:
    plain = DiagonalStateSpace(layer.eigenvalues, layer.B, layer.C, time=Discrete())
    reduced = balanced_truncation(plain, order).system
    assert isinstance(reduced, DiagonalStateSpace)
    return DiagonalStateSpace(
        reduced.eigenvalues,
        reduced.B,
        reduced.C,
        layer.D,
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )


@pytest.mark.parametrize(("states", "width", "kept", "median", "draws"), TABLE)
def test_gain(states: int, width: int, kept: int, median: float, draws: int) -> None:
    gains = []
    for seed in range(draws):
        layer = lru_system(np.random.default_rng([seed, states, width]), states, width)
        reduction = balanced_truncation(layer, kept)
        assert reduction.order <= kept
        real = hinf_difference(layer, reduction.system)
        gains.append(hinf_difference(layer, complex_balanced(layer, kept)) / real)
    assert np.median(gains) >= 0.75 * median
