"""Frequency-limited Gramian factors against the antiderivative at 50 digits, and against SciPy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, linalg

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace
from ssmreduce.errors import ArgumentError, NonFiniteError, ShapeError, UnstableSystemError
from ssmreduce.gramians.factors import gramian_factors
from ssmreduce.gramians.frequency import frequency_limited_factors
from ssmreduce.systems.real_form import real_ports, real_state
from tests import samples

pytestmark = pytest.mark.every_library

EPS = samples.EPS
adjoint = samples.adjoint
KINDS = ["real", "complex", "diagonal", "real_output"]


def draw(kind: str, rng: Any, n: int, m: int = 2, p: int = 3, *, discrete: bool) -> Any:
    if kind in ("real", "complex"):
        return samples.dense_system(rng, n, m, p, discrete=discrete, is_complex=kind == "complex")
    return samples.diagonal_system(
        rng, n, m, p, discrete=discrete, real_output=kind == "real_output"
    )


def whole(kind: str, *, discrete: bool) -> tuple[float, float]:
    """All frequencies that a system of this kind has."""
    limit = np.pi if discrete else np.inf
    return (0.0 if kind in ("real", "real_output") else -limit), limit


def gramian(factor: Any) -> Any:
    return factor @ adjoint(factor)


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def exact(
    poles: Any, G: Any, low: float, high: float, *, discrete: bool, logarithms: bool = False
) -> Any:
    """(1/2π) ∫ (z - Λ)⁻¹ G Gᴴ (z - Λ)⁻ᴴ dω from its antiderivative, as an mpmath matrix.

    1/((iω-λ)(-iω-μ̄)) = -[1/(iω-λ) + 1/(-iω-μ̄)]/(λ+μ̄), and on the circle
    1/((z-λ)(z⁻¹-μ̄)) = [1 + (λ/z)/(1-λ/z) + μ̄z/(1-μ̄z)]/(1-λμ̄).
    """
    states = [mp.mpmathify(complex(pole)) for pole in poles]
    if logarithms:
        states = [mp.exp(state) for state in states]
    ends = mp.mpf(high), mp.mpf(low)
    result = mp.matrix(len(states), len(states))
    for i, a in enumerate(states):
        for j, b in enumerate(mp.conj(state) for state in states):
            if discrete:
                integral = ends[0] - ends[1]
                for end, sign in zip(ends, (1, -1), strict=True):
                    ahead, behind = mp.log1p(-a * mp.expj(-end)), mp.log1p(-b * mp.expj(end))
                    integral += sign * (ahead - behind) / mp.j
                integral /= 1 - a * b
            else:
                integral = mp.mpf(0)
                for end, sign in zip(ends, (1, -1), strict=True):
                    integral += sign * (mp.log(mp.j * end - a) - mp.log(-mp.j * end - b)) / mp.j
                integral /= -(a + b)
            product = sum(
                (mp.mpmathify(complex(x)) * mp.conj(mp.mpmathify(complex(y))))
                for x, y in zip(G[i], G[j], strict=True)
            )
            result[i, j] = product * integral / (2 * mp.pi)
    return result


def rounded(matrix: Any) -> Any:
    return np.array(matrix.tolist(), dtype=complex)


def exact_hsv(P: Any, Q: Any) -> Any:
    energies, vectors = mp.eighe(P)
    root = vectors * mp.diag([mp.sqrt(max(energy, mp.mpf(0))) for energy in energies])
    squares = mp.eighe(root.H * Q * root, eigvals_only=True)
    return np.array(sorted((float(mp.sqrt(max(x, mp.mpf(0)))) for x in squares), reverse=True))


BANDS = [(0.3, 0.31), (0.1, 2.0), (-1.0, 1.5), (0.5, 0.5 + 1e-8), (-3.0, -2.5)]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("band", BANDS)
def test_gramians_and_hsv_of_a_diagonal_system_to_rounding(
    rng: Any, discrete: bool, band: tuple[float, float]
) -> None:
    n = 10
    system = samples.diagonal_system(rng, n, 2, 2, discrete=discrete)
    Z, Y = frequency_limited_factors(system, band)
    with mp.workdps(50):
        P = exact(system.eigenvalues, system.B, *band, discrete=discrete)
        # The dual of (z - A)⁻¹ is (z̄ - Aᴴ)⁻¹: the same band, mirrored.
        mirrored = -band[1], -band[0]
        duals = adjoint(system.C)
        Q = exact(system.eigenvalues.conj(), duals, *mirrored, discrete=discrete)
        hsv = exact_hsv(P, Q)
    for factor, reference in ((Z, rounded(P)), (Y, rounded(Q))):
        # Row by row: the error of P_ij is measured against sqrt(P_ii P_jj).
        scale = np.sqrt(np.outer(reference.diagonal().real, reference.diagonal().real))
        assert np.abs((gramian(factor) - reference) / scale).max() <= 4 * n * EPS
    found = np.linalg.svd(adjoint(Y) @ Z, compute_uv=False)
    assert np.abs(found - hsv[: found.size]).max() <= 4 * n * EPS * hsv[0]


@pytest.mark.parametrize("discrete", [False, True])
def test_small_directions_keep_their_digits_where_a_formed_gramian_loses_half(
    rng: Any, discrete: bool
) -> None:
    """The singular values of Z against the exact ones, in the coordinates of a narrow band."""
    n, band = 8, (0.2, 0.6)
    system = samples.diagonal_system(rng, n, 1, 1, discrete=discrete)
    with mp.workdps(50):
        P = exact(system.eigenvalues, system.B, *band, discrete=discrete)
        roots = [mp.sqrt(max(x, mp.mpf(0))) for x in mp.eighe(P, eigvals_only=True)]
    expected = np.sort(np.array(roots, dtype=float))[::-1]
    assert expected[-1] < 1e-8 * expected[0]
    direct = np.linalg.svd(frequency_limited_factors(system, band)[0], compute_uv=False)
    squared = np.sqrt(np.maximum(np.linalg.eigvalsh(rounded(P))[::-1], 0.0))
    assert np.abs(direct - expected).max() <= 4 * n * EPS * expected[0]
    assert np.abs(squared - expected).max() >= 1e6 * EPS * expected[0]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_all_frequencies_give_the_ordinary_gramians(rng: Any, kind: str, discrete: bool) -> None:
    n = 12
    system = draw(kind, rng, n, discrete=discrete)
    limited = frequency_limited_factors(system, whole(kind, discrete=discrete))
    for found, plain in zip(limited, gramian_factors(system), strict=True):
        assert found.dtype == (float if kind in ("real", "real_output") else complex)
        assert relative(gramian(found), gramian(plain)) <= 1e4 * EPS


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_dense_gramians_are_the_defining_integral(rng: Any, kind: str, discrete: bool) -> None:
    low, high = 0.4, 1.3
    system = draw(kind, rng, 5, discrete=discrete)
    A, B, C = system.A, system.B, system.C

    def integrand(omega: float) -> Any:
        z = np.exp(1j * omega) if discrete else 1j * omega
        columns = np.linalg.solve(z * np.eye(5) - A, B)
        rows = np.linalg.solve(adjoint(z * np.eye(5) - A), adjoint(C))
        both = np.stack([gramian(columns), gramian(rows)]) / (2 * np.pi)
        # The mirrored band of a real system gives the conjugate.
        return 2 * both.real if kind == "real" else both

    expected, _ = integrate.quad_vec(integrand, low, high, epsabs=0, epsrel=1e-13)
    for factor, reference in zip(
        frequency_limited_factors(system, (low, high)), expected, strict=True
    ):
        assert relative(gramian(factor), reference) <= 5e3 * EPS


def test_gramian_solves_its_lyapunov_equation_with_the_matrix_logarithm(rng: Any) -> None:
    """Gawronski and Juang: S = Re[(i/π) log(-(A + iω)(…))] and A P + P Aᵀ + S B Bᵀ + B Bᵀ Sᵀ = 0."""
    system = samples.dense_system(rng, 6, 2, 2, discrete=False)
    A, B = system.A, system.B
    low, high = 0.7, 2.5
    identity = np.eye(6)

    def half(omega: float) -> Any:
        """(1/2π) ∫ (iω - A)⁻¹ over [-omega, omega]."""
        return (1j / np.pi * linalg.logm(-A - 1j * omega * identity)).real

    S = half(high) - half(low)
    P = gramian(frequency_limited_factors(system, (low, high))[0])
    residual = A @ P + P @ adjoint(A) + S @ B @ adjoint(B) + B @ adjoint(B) @ adjoint(S)
    assert np.linalg.norm(residual) <= 1e3 * EPS * np.linalg.norm(A) * np.linalg.norm(P)


@pytest.mark.parametrize("discrete", [False, True])
def test_real_output_is_limited_to_both_bands_of_its_real_system(rng: Any, discrete: bool) -> None:
    system = samples.diagonal_system(rng, 6, 2, 3, discrete=discrete, real_output=True)
    band = (0.2, 1.1)
    dense = StateSpace(
        real_state(system.eigenvalues),
        *real_ports(system.B, system.C),
        time=system.time,
    )
    for found, expected in zip(
        frequency_limited_factors(system, band),
        frequency_limited_factors(dense, band),
        strict=True,
    ):
        assert relative(gramian(found), gramian(expected)) <= 1e3 * EPS


@pytest.mark.parametrize("kind", KINDS)
def test_bands_add_up(rng: Any, kind: str) -> None:
    system = draw(kind, rng, 8, discrete=True)
    ends = np.linspace(*whole(kind, discrete=True), 4)
    parts = sum(
        gramian(frequency_limited_factors(system, (float(a), float(b)))[0])
        for a, b in pairwise(ends)
    )
    everything = gramian(gramian_factors(system)[0])
    assert relative(parts, everything) <= 1e4 * EPS


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    discrete=st.booleans(),
    low=st.floats(0.0, 1.5),
    width=st.floats(1e-6, 1.5),
    widening=st.floats(0.0, 0.1),
)
@settings(max_examples=40)
def test_a_wider_band_holds_at_least_as_much(
    seed: int, kind: str, discrete: bool, low: float, width: float, widening: float
) -> None:
    rng = np.random.default_rng(seed)
    system = draw(kind, rng, int(rng.integers(1, 8)), discrete=discrete)
    narrow = frequency_limited_factors(system, (low, low + width))
    wide = frequency_limited_factors(system, (low, low + width + widening))
    for inner, outer, plain in zip(narrow, wide, gramian_factors(system), strict=True):
        floor = 1e3 * EPS * np.linalg.norm(gramian(plain))
        assert np.linalg.eigvalsh(gramian(outer) - gramian(inner)).min() >= -floor
        assert np.linalg.eigvalsh(gramian(plain) - gramian(outer)).min() >= -floor


@given(seed=st.integers(0, 2**32 - 1), discrete=st.booleans(), scale=st.sampled_from([1e-4, 1e5]))
def test_hsv_do_not_depend_on_coordinates(seed: int, discrete: bool, scale: float) -> None:
    rng = np.random.default_rng(seed)
    system = samples.diagonal_system(rng, 5, 2, 2, discrete=discrete)
    T = samples.well_conditioned(rng, 5, is_complex=True)
    T = T * np.geomspace(1.0, scale, 5)[:, None]
    moved = StateSpace(
        T @ np.diag(system.eigenvalues) @ np.linalg.inv(T),
        T @ system.B,
        system.C @ np.linalg.inv(T),
        time=system.time,
    )
    values = []
    for each in (system, moved):
        Z, Y = frequency_limited_factors(each, (0.1, 1.0))
        values.append(np.linalg.svd(adjoint(Y) @ Z, compute_uv=False))
    conditioning = float(np.linalg.cond(T))
    assert np.abs(values[0] - values[1]).max() <= 1e3 * EPS * conditioning * values[0][0]


@pytest.mark.parametrize("distance", [1e-4, 1e-8, 1e-12, 1e-100])
@pytest.mark.parametrize("discrete", [False, True])
def test_poles_next_to_the_boundary_inside_the_band(distance: float, discrete: bool) -> None:
    """Two resonances of width `distance`, as far apart as they are wide, and one on the edge."""
    near = np.array([-distance + 1j, -2 * distance + 1j * (1.0 + distance), -distance + 2j])
    poles = np.concatenate([near, [-0.3 + 0.5j, -1.0]])
    B, C = np.ones((5, 1)), np.ones((1, 5))
    band = (0.5, 2.0)
    if discrete:
        system = DiagonalStateSpace.from_log(poles, B, C, time=Discrete())
    else:
        system = DiagonalStateSpace(poles, B, C, time=Continuous())
    with mp.workdps(260):
        P = rounded(exact(poles, B, *band, discrete=discrete, logarithms=discrete))
    scale = np.sqrt(np.outer(P.diagonal().real, P.diagonal().real))
    found = gramian(frequency_limited_factors(system, band)[0])
    # Up to 63,744 columns are compressed; old kernels add their squares one by one, at random √N eps.
    assert np.abs((found - P) / scale).max() <= 4 * np.sqrt(63_744) * EPS


@pytest.mark.parametrize("pole", [-1.0 + 1e-9, 0.0, 1.0 - 1e-9])
def test_real_discrete_poles_at_zero_and_near_both_ends(pole: float) -> None:
    """∫ over the circle of 1/|z - λ|² is 1/(1 - λ²), and half of it each side."""
    system = DiagonalStateSpace.from_log(
        np.log(np.array([pole], dtype=complex)) if pole else np.array([-800.0 + 0j]),
        [[1.0]],
        [[1.0]],
        time=Discrete(),
    )
    expected = 1.0 if pole == 0.0 else -1.0 / np.expm1(2 * system.log_eigenvalues[0].real)
    for band, share in (((-np.pi, np.pi), 1.0), ((0.0, np.pi), 0.5)):
        found = gramian(frequency_limited_factors(system, band)[0])[0, 0].real
        # π is rounded by 1e-16 of a resonance that is 1e-9 wide.
        tolerance = 20 * EPS + (2 * EPS / 1e-9 if pole < 0 else 0.0)
        assert abs(found / (share * expected) - 1) <= tolerance


@pytest.mark.parametrize("discrete", [False, True])
def test_random_sharp_poles_and_bands(discrete: bool) -> None:
    """Distances to the boundary from 3 to 1e-14, bands of any width within and beyond all poles."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 5))
        poles = -(10.0 ** rng.uniform(-14, 0.5, n)) + 1j * rng.uniform(-3, 3, n)
        low = float(rng.choice([rng.uniform(-3.1, 0.0), poles[0].imag]))
        high = min(low + 10.0 ** rng.uniform(-9, 0.8), 3.1)
        scale = 1.0 if discrete else 10.0 ** rng.uniform(-4, 4)
        low, high = low * scale, high * scale
        B, C = samples.complex_normal(rng, n, 1), np.ones((1, n))
        if discrete:
            system = DiagonalStateSpace.from_log(poles, B, C, time=Discrete())
        else:
            system = DiagonalStateSpace(poles, B, C, time=Continuous())
        with mp.workdps(60):
            P = rounded(exact(poles, B, low, high, discrete=discrete, logarithms=discrete))
        root = np.sqrt(P.diagonal().real)
        found = gramian(frequency_limited_factors(system, (low, high))[0])
        assert np.abs((found - P) / np.outer(root, root)).max() <= 100 * EPS


def test_one_state_has_the_arcus_tangens() -> None:
    system = StateSpace([[-2.0]], [[3.0]], [[5.0]], time=Continuous())
    for low, high in ((0.0, 1.0), (0.5, np.inf), (1e-30, 1e-20), (1e8, 1e9)):
        Z, Y = frequency_limited_factors(system, (low, high))
        # atan(h/2) - atan(l/2) = atan2(h/2 - l/2, 1 + h l/4), without its cancellation.
        expected = (
            np.arctan2(2.0, low)
            if np.isinf(high)
            else np.arctan2(high / 2 - low / 2, 1 + high * low / 4)
        ) / (2 * np.pi)
        assert Z.shape == Y.shape == (1, 1)
        assert abs(Z[0, 0] ** 2 / (9 * expected) - 1) <= 20 * EPS
        assert abs(Y[0, 0] ** 2 / (25 * expected) - 1) <= 20 * EPS


def test_repeated_and_defective_poles() -> None:
    """A Jordan block: x₂ = 1/(iω+1), x₁ = 1/(iω+1)², with rational integrals."""
    A = [[-1.0, 1.0], [0.0, -1.0]]
    system = StateSpace(A, [[0.0], [1.0]], [[1.0, 0.0]], time=Continuous())
    Z, _ = frequency_limited_factors(system, (0.0, 1.0))
    # ∫₀¹ 1/(1+ω²) = π/4, ∫₀¹ 1/(1+ω²)² = π/8 + 1/4; the mixed term is the real part, 1/(1+ω²)².
    expected = np.array([[np.pi / 8 + 0.25, np.pi / 8 + 0.25], [np.pi / 8 + 0.25, np.pi / 4]])
    assert relative(gramian(Z), expected / np.pi) <= 20 * EPS


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_nothing_drives_have_zero_rows(rng: Any, kind: str) -> None:
    system = draw(kind, rng, 4, discrete=True)
    idle = np.zeros_like(system.B)
    if kind in ("real", "complex"):
        quiet: Any = StateSpace(system.A, idle, system.C, time=Discrete())
    else:
        quiet = DiagonalStateSpace(
            system.eigenvalues,
            idle,
            system.C,
            time=Discrete(),
            real_output=system.real_output,
        )
    Z, Y = frequency_limited_factors(quiet, (0.1, 0.2))
    assert not np.any(Z)
    assert np.any(Y)


@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_extreme_scales(rng: Any, size: float) -> None:
    system = samples.dense_system(rng, 4, 2, 2, discrete=False)
    plain = frequency_limited_factors(system, (0.5, 1.0))
    scaled = StateSpace(size * system.A, size * system.B, system.C, time=Continuous())
    stretched = frequency_limited_factors(scaled, (0.5 * size, size))
    # (iωs - sA)⁻¹ sB = (iω - A)⁻¹ B, and dω grows by s; C alone has no s.
    assert relative(stretched[0] / np.sqrt(size), plain[0]) <= 100 * EPS
    assert relative(stretched[1] * np.sqrt(size), plain[1]) <= 100 * EPS


def test_wide_inputs_and_single_precision(rng: Any) -> None:
    system = samples.diagonal_system(rng, 4, 40, 1, real_output=True)
    small = DiagonalStateSpace(
        system.eigenvalues.astype(np.complex64),
        system.B.astype(np.complex64),
        system.C.astype(np.complex64),
        time=Discrete(),
        real_output=True,
    )
    before = small.B.tobytes()
    single, double = (frequency_limited_factors(s, (0.1, 0.9))[0] for s in (small, small.to_host()))
    assert single.shape == (8, 8)
    assert np.array_equal(single, double)
    assert small.B.tobytes() == before


@pytest.mark.parametrize(
    ("band", "error", "words"),
    [
        ((0.5, 0.5), ArgumentError, "is empty"),
        ((0.6, 0.5), ArgumentError, "runs backwards"),
        ((0.5, 3.2), ArgumentError, "radians per sample"),
        ((-0.5, 0.5), ArgumentError, "mirrored band is always included"),
        ((0.0, np.nan), NonFiniteError, "expected numbers"),
        ((0.5,), ShapeError, "two frequencies"),
        (0.5, ShapeError, "two frequencies"),
        (("a", "b"), ShapeError, "two frequencies"),
    ],
)
def test_bands_that_are_none(rng: Any, band: Any, error: type[Exception], words: str) -> None:
    system = samples.dense_system(rng, 3, 1, 1, discrete=True)
    with pytest.raises(error, match=words):
        frequency_limited_factors(system, band)


def test_unstable_systems_and_batches_are_refused() -> None:
    for poles, time in (([0.5, 1.0], Discrete()), ([-1.0, 0.0], Continuous())):
        diagonal = DiagonalStateSpace(poles, np.ones((2, 1)), np.ones((1, 2)), time=time)
        for system in (diagonal, diagonal.to_dense()):
            with pytest.raises(UnstableSystemError, match="has a pole with"):
                frequency_limited_factors(system, (0.1, 0.2))
    batch = DiagonalStateSpace(
        np.full((2, 1), 0.5), np.ones((2, 1, 1)), np.ones((2, 1, 1)), time=Discrete()
    )
    with pytest.raises(ShapeError, match="batch axes"):
        frequency_limited_factors(batch, (0.1, 0.2))
