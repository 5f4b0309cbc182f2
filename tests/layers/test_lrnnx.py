"""The layers of lrnnx themselves, where that package can be imported: its import asks for CUDA extensions.

Elsewhere modules with the same arrays and formulas stand for them (`torch_modules`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ssmreduce import read_system, reduce_model, simulate

lti = pytest.importorskip(
    "lrnnx.models.lti", reason="lrnnx needs its CUDA extensions", exc_type=ImportError
)

ALLOWED = 1e-5
"""Relative, in single precision."""

SIGNALS: dict[str, Callable[[], Any]] = {
    "LRU": lambda: lti.LRU(3, 12),
    "S5 zoh": lambda: lti.S5(3, 12, discretization="zoh"),
    "S5 dirac": lambda: lti.S5(3, 12, discretization="dirac"),
}

KERNELS: dict[str, Callable[[], Any]] = {
    "S4D": lambda: lti.S4D(3, d_state=24, l_max=64, verbose=False),
    "S4": lambda: lti.S4(3, d_state=24, l_max=64, verbose=False),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def relative(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", SIGNALS)
def test_layers_of_signals(rng: np.random.Generator, name: str) -> None:
    layer, inputs = SIGNALS[name]().eval(), rng.standard_normal((64, 3)).astype(np.float32)

    def outputs() -> Any:
        found = layer(torch.tensor(inputs)[None])
        return (found[0] if isinstance(found, tuple) else found)[0].detach().numpy()

    assert relative(outputs(), simulate(read_system(layer), inputs)) <= ALLOWED
    reduce_model(layer, 5)
    assert layer.d_state == read_system(layer).order == 5
    assert relative(outputs(), simulate(read_system(layer), inputs)) <= ALLOWED


@pytest.mark.parametrize("name", KERNELS)
def test_layers_of_kernels(name: str) -> None:
    layer = KERNELS[name]().eval()
    kernel = layer.layer.kernel

    def responses() -> tuple[Any, Any]:
        found, _ = kernel(L=64)
        systems = read_system(layer if name == "S4D" else kernel)
        each = [simulate(systems[k], np.eye(64, 1))[:, 0] for k in range(3)]
        return found[0].detach().numpy(), np.stack(each)

    found, expected = responses()
    assert relative(found, expected) <= ALLOWED
    reduce_model(layer, 5)
    assert layer.A_real is kernel.A_real
    assert layer.A_real.shape == (3, 5)
    found, expected = responses()
    assert relative(found, expected) <= ALLOWED
    assert layer(torch.zeros(2, 3, 64))[0].shape == (2, 3, 64)
