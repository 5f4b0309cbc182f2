"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Derandomised: a failure seen once is seen by everybody, and a run never depends on luck.
settings.register_profile(
    "ssmreduce",
    derandomize=True,
    deadline=None,
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ssmreduce")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision in JAX for the length of one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the dtype that the weights of a test have, with JAX set up for it."""
    import jax

    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets that lie beside the repository; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SSMREDUCE_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no data sets at {folder}: put them beside the repository or set SSMREDUCE_SHARED"
        )
    return folder
