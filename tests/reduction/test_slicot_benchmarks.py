"""The model-reduction benchmarks of the SLICOT collection, where the data lie beside the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import EPS

from ssmreduce import Continuous, StateSpace, balance, hankel_singular_values
from ssmreduce.norms import hinf_difference
from ssmreduce.reduction.balanced import Balancing

pytestmark = pytest.mark.every_library

C_SLICOT = 10.0
"""c of c n eps σ₁ κ, with κ = max|λ|/min|Re λ| of A, the condition of a normal Lyapunov equation:
two backward stable solvers may differ by that much."""

NAMES = ("build", "CDplayer", "iss", "heat-cont")


def load(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "slicot" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the shared data sets")
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def system_of(data: dict[str, Any]) -> StateSpace:
    return StateSpace(data["A"], data["B"], data["C"], time=Continuous())


def balanced(folder: Path, name: str) -> Balancing:
    return balance(system_of(load(folder, name)))


def slicot_values(system: StateSpace) -> np.ndarray:
    """Hankel singular values as SLICOT's balance-and-truncate routine returns them."""
    slycot = pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
    n, m, p = system.order, system.inputs, system.outputs
    result = slycot.ab09ad(
        "C", "B", "N", n, m, p, system.A.copy(), system.B.copy(), system.C.copy(), nr=1
    )
    return np.asarray(result[4])


@pytest.mark.parametrize("name", NAMES)
def test_values_agree_with_slicot(shared_data: Path, name: str) -> None:
    balancing = balanced(shared_data, name)
    exact = slicot_values(balancing.system)
    error = np.abs(balancing.hsv - exact).max() / exact[0]
    poles = np.linalg.eigvals(balancing.system.A)
    condition = np.abs(poles).max() / np.abs(poles.real).min()
    assert error <= C_SLICOT * len(exact) * EPS * condition


def test_heat_agrees_with_the_published_list(shared_data: Path) -> None:
    exact = load(shared_data, "heat-cont")["hsv"]
    found = balanced(shared_data, "heat-cont").hsv
    # Six digits are published.
    trusted = exact > 1e-17
    error = np.abs(found - exact)[trusted]
    assert np.all(error <= 1e-5 * exact[trusted] + len(exact) * EPS * exact[0])


def test_heat_twentieth_value(shared_data: Path) -> None:
    # Formed Gramians give 1.7e-13 here, factors 7.53e-17, the published value.
    exact = load(shared_data, "heat-cont")["hsv"]
    found = balanced(shared_data, "heat-cont").hsv
    assert found[19] == pytest.approx(exact[19], rel=0.01)


@pytest.mark.parametrize(
    ("name", "order"),
    [("build", 2), ("build", 6), ("build", 14), ("CDplayer", 6), ("iss", 6), ("heat-cont", 6)],
)
def test_reductions_keep_the_bound(shared_data: Path, name: str, order: int) -> None:
    balancing = balanced(shared_data, name)
    reduction = balancing.truncate(order)
    assert reduction.system.order == order
    assert np.all(reduction.system.poles().real < 0)
    rounding = len(reduction.hsv) * EPS * reduction.hsv[0] * 10
    assert reduction.error_bound is not None
    # As verify(), on fewer points: a dense system of 270 states costs 10 ms for each.
    measured = hinf_difference(balancing.system, reduction.system, grid=48, refinements=4)
    assert measured <= reduction.error_bound * (1 + 1e-9) + rounding
    # σ_{r+1} is a lower bound for any reduced system of order r: a measurement below half of it
    # would mean that the grid misses the resonances.
    if reduction.hsv[order] > 1e4 * rounding:
        assert measured >= 0.5 * reduction.hsv[order]


def test_values_without_balancing(shared_data: Path) -> None:
    system = system_of(load(shared_data, "build"))
    np.testing.assert_array_equal(
        hankel_singular_values(system).shape, balanced(shared_data, "build").hsv.shape
    )
    difference = np.abs(hankel_singular_values(system) - balanced(shared_data, "build").hsv)
    assert difference.max() <= 48 * EPS * balanced(shared_data, "build").hsv[0]
