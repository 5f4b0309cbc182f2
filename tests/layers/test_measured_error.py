"""The measured error of a cut layer: a lower bound, and right to 1e-3 for narrow layers."""

from __future__ import annotations

import numpy as np
import pytest
from samples import complex_normal, lru_system

from ssmreduce import DiagonalStateSpace, Discrete, balance
from ssmreduce.responses import frequency_response

CLOSE = 1e-3
"""What the documentation says of up to 16 inputs or outputs."""


@pytest.mark.parametrize("kind", ["LRU", "S4D", "S5", "wide S5"])
@pytest.mark.parametrize(
    "seed", [100, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(101, 105))]
)
def test_the_measured_error_is_close_to_what_a_dense_grid_shows(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = layer(kind, rng)
    reduction = balance(system).truncate(system.order // int(rng.integers(2, 5)))
    found = float(reduction.quick_error())
    omega = np.unique(
        np.concatenate(
            [
                np.linspace(0.0, np.pi, 1000),
                *(np.abs(np.angle(s.poles())) for s in (system, reduction.system)),
                *(
                    np.abs(np.angle(s.poles()))[:, None].ravel() * scale
                    for s in (system, reduction.system)
                    for scale in (0.998, 0.999, 1.001, 1.002)
                ),
            ]
        )
    )
    apart = frequency_response(system, omega) - frequency_response(reduction.system, omega)
    seen = float(np.linalg.norm(apart, ord=2, axis=(-2, -1)).max())
    verified = float(reduction.verify())
    assert found <= max(seen, verified) * (1 + 1e-9)
    if kind != "wide S5":
        assert found >= max(seen, verified) * (1 - CLOSE)


def layer(kind: str, rng: np.random.Generator) -> DiagonalStateSpace:
    """The system of a layer as its authors initialise it."""
    if kind == "LRU":
        return lru_system(rng, 48, int(rng.integers(1, 9)), r_max=rng.uniform(0.95, 0.9999))
    n, width = 32, {"S4D": 1, "S5": 8, "wide S5": 32}[kind]
    rates = -0.5 + 1j * (np.pi * np.arange(n) if kind == "S4D" else np.sort(rng.uniform(0, 40, n)))
    steps = 10.0 ** rng.uniform(-3, -1, 1 if kind == "S4D" else n)
    driven = np.expm1(rates * steps)[:, None] / rates[:, None]
    B = driven * (np.ones((n, 1)) if kind == "S4D" else complex_normal(rng, n, width))
    C = complex_normal(rng, width, n)
    return DiagonalStateSpace.from_log(rates * steps, B, C, time=Discrete(), real_output=True)
