"""Hankel singular values of diagonal systems against exact Gramians at 80 digits."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.mpmath_hsv import hankel_singular_values as exact_values
from samples import (
    EPS,
    adjoint,
    complex_normal,
    diagonal_system,
    lru_weights,
)

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    error_bounds,
    hankel_singular_values,
    impulse_response,
)
from ssmreduce.errors import ShapeError
from ssmreduce.gramians.frequency import frequency_limited_factors
from ssmreduce.time_domain import TimeDomain

pytestmark = pytest.mark.every_library

C_HSV = 8.0
"""c of c n eps σ₁: each row of the two factors, their product and its singular values is computed
with a few roundings of its own size; 3 was the largest c seen on the systems below."""


def tolerance(exact: np.ndarray, amplification: float = 1.0) -> float:
    """Absolute error that a backward stable computation may show."""
    return C_HSV * len(exact) * EPS * float(exact[0]) * amplification


def assert_exact(
    system: DiagonalStateSpace, *, amplification: float = 1.0, logarithms: bool = False
) -> np.ndarray:
    """Compare with the oracle; returns the exact values."""
    exact = exact_values(
        system.log_eigenvalues if logarithms else system.eigenvalues,
        system.B,
        system.C,
        discrete=isinstance(system.time, Discrete),
        logarithms=logarithms,
        real_output=system.real_output,
    )
    found = hankel_singular_values(system)
    assert found.shape == exact.shape
    assert np.all(np.diff(found) <= 0)
    assert np.abs(found - exact).max() <= tolerance(exact, amplification)
    return exact


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 3), (4, 2), (9, 9)])
def test_random_systems(
    rng: np.random.Generator, inputs: int, outputs: int, discrete: bool, real_output: bool
) -> None:
    system = diagonal_system(
        rng, 7, inputs, outputs, discrete=discrete, real_output=real_output, radius=0.9
    )
    assert_exact(system)


@pytest.mark.parametrize("real_output", [False, True])
def test_fast_decay_keeps_the_small_values(real_output: bool) -> None:
    # Poles on a short arc: the values fall below eps σ₁. Factors of formed Gramians are off by
    # sqrt(eps) σ₁ ~ 1e-8; that loss is shown here too, so that this test is known to see it.
    poles = 0.3 * np.exp(1j * np.linspace(0.2, 1.4, 10))
    rng = np.random.default_rng(3)
    system = DiagonalStateSpace(
        poles,
        complex_normal(rng, 10, 1),
        complex_normal(rng, 1, 10),
        time=Discrete(),
        real_output=real_output,
    )
    exact = assert_exact(system)
    assert exact[-1] < EPS * exact[0]
    if not real_output:
        P = (system.B @ adjoint(system.B)) / (1 - np.outer(poles, poles.conj()))
        Q = (adjoint(system.C) @ system.C) / (1 - np.outer(poles.conj(), poles))
        formed = np.sqrt(np.sort(np.abs(np.linalg.eigvals(P @ Q)))[::-1])
        assert np.abs(formed - exact).max() > 100 * tolerance(exact)


def test_single_input_values_are_relatively_accurate_where_the_factors_are() -> None:
    # For m = 1 every entry of a factor is a product. The values are then far better than
    # eps σ₁ as long as the singular value decomposition is: check down to 1e-3 σ₁ relative.
    poles = np.array([0.9, 0.5 + 0.3j, -0.2 + 0.7j, 0.1])
    system = DiagonalStateSpace(poles, np.ones((4, 1)), np.ones((1, 4)), time=Discrete())
    exact = assert_exact(system)
    found = hankel_singular_values(system)
    large = exact > 1e-3 * exact[0]
    assert np.sum(large) >= 3
    assert np.all(np.abs(found - exact)[large] <= C_HSV * 4 * EPS * 1e3 * exact[large])


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("gap", [1e-4, 1e-9, 1e-14, 0.0])
def test_near_degenerate_poles(gap: float, real_output: bool) -> None:
    rng = np.random.default_rng(5)
    centre = np.array([0.6 + 0.3j, -0.4 + 0.5j, 0.8 - 0.2j])
    poles = np.concatenate([centre, centre + gap, [0.1 + 0.1j]])
    system = DiagonalStateSpace(
        poles,
        complex_normal(rng, 7, 2),
        complex_normal(rng, 2, 7),
        time=Discrete(),
        real_output=real_output,
    )
    assert_exact(system)


def test_real_poles_with_real_weights_have_half_the_rank() -> None:
    rng = np.random.default_rng(6)
    poles = np.array([0.9, 0.3, -0.5, -0.95, 0.6 + 0.2j, 0.7 - 0.1j], dtype=complex)
    B, C = complex_normal(rng, 6, 2), complex_normal(rng, 2, 6)
    B[:4], C[:, :4] = B[:4].real, C[:, :4].real
    system = DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=True)
    assert_exact(system)
    assert balance(system).rank == 8  # four real poles, two pairs


def test_real_poles_with_complex_weights() -> None:
    rng = np.random.default_rng(7)
    poles = np.array([0.9, 0.3, -0.5, -0.95], dtype=complex)
    system = DiagonalStateSpace(
        poles,
        complex_normal(rng, 4, 2),
        complex_normal(rng, 2, 4),
        time=Discrete(),
        real_output=True,
    )
    assert_exact(system)


def test_mirrored_poles_of_a_real_system() -> None:
    # Both members of each conjugate pair stored, as with real-valued initialisations: rank n.
    rng = np.random.default_rng(8)
    half = np.array([0.9 * np.exp(0.3j), 0.7 * np.exp(1.3j), 0.5 * np.exp(2.5j)])
    B, C = complex_normal(rng, 3, 1), complex_normal(rng, 1, 3)
    system = DiagonalStateSpace(
        np.concatenate([half, half.conj()]),
        np.concatenate([B, B.conj()]),
        np.concatenate([C, C.conj()], axis=1),
        time=Discrete(),
        real_output=True,
    )
    assert_exact(system)
    assert balance(system).rank == 6


@pytest.mark.parametrize("inputs", [1, 3])
def test_phase_two_pi_as_float32_stores_it(inputs: int) -> None:
    # A real pole in a float32 LRU has θ_log = float32(log 2π) and comes back as a pole with an
    # imaginary part of about 1e-7: its two real states are nearly, not quite, proportional.
    rng = np.random.default_rng(9)
    w = lru_weights(rng, 6, inputs)
    w["theta_log"][:3] = np.log(2 * np.pi)
    w["B_im"][:3], w["C_im"][:, :3] = 0.0, 0.0
    w = {name: np.asarray(value, dtype=np.float32).astype(float) for name, value in w.items()}
    logarithms = -np.exp(w["nu_log"]) + 1j * np.exp(w["theta_log"])
    system = DiagonalStateSpace.from_log(
        logarithms,
        np.exp(w["gamma_log"])[:, None] * (w["B_re"] + 1j * w["B_im"]),
        w["C_re"] + 1j * w["C_im"],
        time=Discrete(),
        real_output=True,
    )
    assert 0 < np.abs(system.eigenvalues[:3].imag).max() < 1e-6
    assert_exact(system, logarithms=True)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("distance", [1e-4, 1e-10, 1e-13])
def test_close_to_the_unit_circle_from_logarithms(distance: float, real_output: bool) -> None:
    rng = np.random.default_rng(10)
    logarithms = np.array([-distance + 0.5j, -0.1 + 2.0j, -0.7 - 1.0j, -2 * distance - 2.2j])
    system = DiagonalStateSpace.from_log(
        logarithms,
        complex_normal(rng, 4, 2),
        complex_normal(rng, 2, 4),
        time=Discrete(),
        real_output=real_output,
    )
    exact = assert_exact(system, logarithms=True)
    stored = DiagonalStateSpace(
        np.exp(logarithms), system.B, system.C, time=Discrete(), real_output=real_output
    )
    error = np.abs(hankel_singular_values(stored) - exact).max()
    if distance <= 1e-10:  # what the logarithms are for
        assert error > tolerance(exact)


def test_wide_magnitudes_of_states_do_not_matter() -> None:
    rng = np.random.default_rng(11)
    scales = np.geomspace(1e-60, 1e60, 6)
    plain = diagonal_system(rng, 6, 2, 2, real_output=False)
    scaled = DiagonalStateSpace(
        plain.eigenvalues, plain.B * scales[:, None], plain.C / scales, time=Discrete()
    )
    exact = exact_values(plain.eigenvalues, plain.B, plain.C)
    assert np.abs(hankel_singular_values(scaled) - exact).max() <= tolerance(exact)


def test_continuous_time_poles_over_many_decades() -> None:
    rng = np.random.default_rng(12)
    poles = -np.geomspace(1e-6, 1e6, 8) * (1 + 0.5j)
    for real_output in (False, True):
        assert_exact(
            DiagonalStateSpace(
                poles,
                complex_normal(rng, 8, 1),
                complex_normal(rng, 1, 8),
                time=Continuous(),
                real_output=real_output,
            )
        )


def test_larger_than_one_block(rng: np.random.Generator) -> None:
    # 40 pairs: more than the real factor eliminates at once; compared with the dense route.
    system = diagonal_system(rng, 40, 3, 3, real_output=True, radius=0.9)
    found, dense = hankel_singular_values(system), hankel_singular_values(system.to_dense())
    # The dense route solves with matrices of size n and loses a little more.
    assert np.abs(found - dense).max() <= 10 * C_HSV * 80 * EPS * dense[0]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("horizon", [None, 20])
def test_more_is_reached_than_observed(
    rng: np.random.Generator, horizon: int | None, dense: bool
) -> None:
    # The factor of P has many more columns than that of Q; in the dual system it is the reverse.
    poles = np.exp(-np.geomspace(1e-2, 3.0, 120))
    B, C = rng.normal(size=(120, 40)), rng.normal(size=(1, 120))
    system, dual = (
        DiagonalStateSpace(poles, *ports, time=Discrete()) for ports in ((B, C), (C.T, B.T))
    )
    if dense:
        system, dual = system.to_dense(), dual.to_dense()
    found, other = (balance(each, horizon=horizon) for each in (system, dual))
    np.testing.assert_allclose(found.hsv, other.hsv, rtol=0, atol=C_HSV * 120 * EPS * other.hsv[0])
    cut, of_dual = found.truncate(6).system, other.truncate(6).system
    responses = [impulse_response(each, length=30) for each in (cut, of_dual)]
    # Arrays of single precision leave some 1e-7 of a response; wrong vectors change all of it.
    near = 1e-6 * np.abs(responses[1]).max()
    np.testing.assert_allclose(responses[0], responses[1].mT, rtol=0, atol=near)


def test_error_bounds() -> None:
    bounds = error_bounds(np.array([[4.0, 2.0, 1.0], [8.0, 0.5, 0.0]]))
    np.testing.assert_array_equal(bounds, [[14.0, 6.0, 2.0, 0.0], [17.0, 1.0, 0.0, 0.0]])


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, -1.0], [np.nan, 1.0], 3.0, [1j, 0.0]])
def test_error_bounds_refuses_what_is_not_a_descending_list(bad: object) -> None:
    with pytest.raises(ShapeError, match="descending"):
        error_bounds(bad)


@pytest.mark.parametrize("time", [Continuous(), Discrete()])
def test_no_states(time: TimeDomain) -> None:
    B, C = np.zeros((0, 1)), np.zeros((1, 0))
    for system in (
        StateSpace(np.zeros((0, 0)), B, C, time=time),
        DiagonalStateSpace(np.zeros(0), B, C, time=time),
    ):
        assert hankel_singular_values(system).shape == (0,)
        for factor in frequency_limited_factors(system, (0.0, 1.0)):
            assert factor.shape == (0, 0)
