"""States of which inputs and outputs have very different sizes: units that no entry loses itself in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    frequency_response,
    h2_norm,
    hankel_singular_values,
    hinf_norm,
)
from ssmreduce.norms import certified_difference, hinf_difference
from ssmreduce.norms.horizon import finite_horizon_difference


def spread(x: float, kind: str) -> Any:
    """States driven by x and 1/x and seen by 1/x and x."""
    B, C = np.array([[x], [1 / x]]), np.array([[1 / x, x]])
    if kind == "diagonal":
        return DiagonalStateSpace([-1.0, -3.0], B, C, time=Continuous())
    A = np.array([[-1.0, 2.0 if kind == "coupled" else 0.0], [0.0, -3.0]])
    return StateSpace(A, B, C, time=Continuous())


@pytest.mark.parametrize("kind", ["diagonal", "dense", "coupled"])
@pytest.mark.parametrize("x", [1e100, 1e160, 1e200, 1e300])
def test_products_count_not_their_factors(kind: str, x: float) -> None:
    system, plain = spread(x, kind), spread(1.0, "diagonal")
    for norm in (h2_norm, hankel_singular_values):
        np.testing.assert_allclose(norm(system), norm(plain), rtol=1e-10)
    found = hinf_norm(system, certified=True)
    assert found.lower == pytest.approx(4 / 3, rel=1e-10)
    assert found.lower <= found.upper <= 1.00001 * found.lower
    response = frequency_response(system, [0.0, 1.0])
    np.testing.assert_allclose(response, frequency_response(plain, [0.0, 1.0]), rtol=1e-10)


def test_small_couplings_are_couplings() -> None:
    units = 2.0 ** np.array([0, 310])
    A, B, C = np.array([[-1.0, 0.0], [1.0, -2.0]]), np.ones((2, 1)), np.ones((1, 2))
    plain = StateSpace(A, B, C, time=Continuous())
    system = StateSpace(
        A * units / units[:, None], B / units[:, None], C * units, time=Continuous()
    )
    assert hinf_norm(system).lower == pytest.approx(2.0, rel=1e-10)
    assert hinf_norm(system, certified=True).upper >= 2.0
    assert hinf_difference(system, plain) <= 1e-14


def test_a_certificate_counts_frequencies_that_corrections_do_not_help() -> None:
    A = np.eye(3) * (1 - 1e-8) + np.diag([1.0, 1.0], 1)
    large = StateSpace(A, [[0.0], [0.0], [1.0]], [[1.0, 0.0, 0.0]], time=Discrete())
    small = StateSpace([[0.0]], [[1.0]], [[1.0]], time=Discrete())
    found = certified_difference(large, small)
    gain = abs(frequency_response(large, [0.0])).item()  # 1e24; the other has 1
    assert found.upper >= gain
    assert hinf_difference(large, small) >= 0.99 * gain


@pytest.mark.parametrize("states", [0, 1])
def test_a_certificate_of_feedthrough_alone_is_its_norm(states: int) -> None:
    rng = np.random.default_rng(1)
    U, _ = np.linalg.qr(rng.standard_normal((24, 24)))
    D = U * (1 + 0.01 * rng.random(24))
    system = StateSpace(
        0.5 * np.eye(states), np.zeros((states, 24)), np.ones((24, states)), D, time=Discrete()
    )
    found = hinf_norm(system, certified=True)
    assert found.upper >= np.linalg.norm(D, 2) * (1 - 1e-14)


def test_stability_does_not_hang_on_the_unit_of_time() -> None:
    A = np.array([[-4.0, -2.0, -6.0], [-1.0, -1.0, -2.0], [-4.0, -3.0, -7.0]])  # singular
    for power in (0, -480, -500, -550):
        system = StateSpace(A * 2.0**power, np.ones((3, 1)), np.ones((1, 3)), time=Continuous())
        assert not system.is_stable()
    assert not StateSpace([[-1e-200]], [[1.0]], [[1.0]], time=Continuous()).is_stable(1e-190)
    assert StateSpace([[-1e-200]], [[1.0]], [[1.0]], time=Continuous()).is_stable()


def test_no_inputs_have_no_gain_over_any_horizon() -> None:
    system = StateSpace([[0.5]], np.ones((1, 0)), np.ones((1, 1)), time=Discrete())
    assert finite_horizon_difference(system, system, 10**6) == 0.0
