"""Hammarling's method in Schur forms, compiled and in Python; of a block U, S and M."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS, adjoint

from ssmreduce import Continuous, Discrete
from ssmreduce.equations import hammarling
from ssmreduce.equations.hammarling import block_factor, hammarling_factor
from ssmreduce.equations.triangular import BLOCK, diagonal_blocks, solve_stein_column
from ssmreduce.errors import NoConvergenceError

C = 20.0
"""c of the tolerances c (n + 10) eps, relative to the norms of what is compared."""


@pytest.fixture(params=[False, True], ids=["continuous", "discrete"])
def discrete(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def block(
    rng: np.random.Generator, n: int, m: int, *, is_complex: bool, discrete: bool
) -> tuple[Any, Any]:
    """A stable Schur form and inputs."""
    A, B = rng.standard_normal((n, n)), rng.standard_normal((n, m))
    if is_complex:
        A, B = A + 1j * rng.standard_normal((n, n)), B + 1j * rng.standard_normal((n, m))
    poles = np.linalg.eigvals(A)
    A = 0.9 / np.abs(poles).max() * A if discrete else A - (poles.real.max() + 0.2) * np.eye(n)
    return scipy.linalg.schur(A)[0], B


def gramian(T: Any, B: Any, *, discrete: bool) -> Any:
    solve = discrete_lyapunov if discrete else continuous_lyapunov
    return solve(T, B @ adjoint(B))


def factor(T: Any, B: Any, *, discrete: bool) -> Any:
    return hammarling_factor(T, B, Discrete() if discrete else Continuous())


def check(T: Any, B: Any, *, discrete: bool) -> Any:
    """Check the equation of U, the identities of U, S and M, and return U."""
    before = T.copy(), B.copy()
    U = factor(T, B, discrete=discrete)
    rounding = C * (T.shape[0] + 10) * EPS
    size = np.linalg.norm
    X, driven = U @ adjoint(U), B @ adjoint(B)
    if discrete:
        residual, scale = T @ X @ adjoint(T) - X + driven, (size(T, 2) ** 2 + 1.0) * size(X)
    else:
        residual, scale = T @ X + X @ adjoint(T) + driven, 2.0 * size(T, 2) * size(X)
    assert size(residual) <= rounding * scale
    if hammarling.eliminate is not None or not (discrete and np.any(np.tril(T, -1))):
        U, S, M = block_factor(T, B, discrete=discrete)
        assert size(T @ U - U @ S) <= rounding * size(T) * size(U)
        assert size(U @ M - B) <= rounding * size(U) * max(size(M), 1.0)
        if discrete:
            assert size(S @ adjoint(S) + M @ adjoint(M) - np.eye(len(T))) <= rounding * len(T)
        else:
            assert size(S + adjoint(S) + M @ adjoint(M)) <= rounding * size(T)
    np.testing.assert_array_equal(T, before[0])
    np.testing.assert_array_equal(B, before[1])
    assert np.isrealobj(U) == np.isrealobj(T)
    assert not np.any(np.tril(U, -1))  # a pair's factor is triangular too
    return U


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_blocks(
    rng: np.random.Generator,
    implementation: str,
    discrete: bool,
    n: int,
    m: int,
    is_complex: bool,
) -> None:
    T, B = block(rng, n, m, is_complex=is_complex, discrete=discrete)
    U = check(T, B, discrete=discrete)
    if n <= 8:
        X = gramian(T, B, discrete=discrete)
        if discrete:
            operator = np.eye(n * n) - np.kron(T.conj(), T)
        else:
            operator = np.kron(np.eye(n), T) + np.kron(T.conj(), np.eye(n))
        error = np.linalg.norm(U @ adjoint(U) - X)
        assert error <= C * (n + 10) * EPS * np.linalg.cond(operator) * np.linalg.norm(X)


@pytest.mark.parametrize("is_complex", [False, True])
def test_blocks_together(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    discrete: bool,
    is_complex: bool,
) -> None:
    """A factor made of several blocks, which meet in S and M."""
    monkeypatch.setattr(hammarling, "LARGEST_BLOCK", 0)
    n = 2 * BLOCK + 7
    T, B = block(rng, n, 3, is_complex=is_complex, discrete=discrete)
    U = hammarling_factor(T, B, Discrete() if discrete else Continuous())
    X, driven = U @ adjoint(U), B @ adjoint(B)
    size = np.linalg.norm(T, 2)
    if discrete:
        residual, scale = T @ X @ adjoint(T) - X + driven, (size**2 + 1.0) * np.linalg.norm(X)
    else:
        residual, scale = T @ X + X @ adjoint(T) + driven, 2.0 * size * np.linalg.norm(X)
    assert np.linalg.norm(residual) <= C * (n + 10) * EPS * scale


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_of_a_larger_matrix(
    rng: np.random.Generator, implementation: str, discrete: bool, order: Any
) -> None:
    T, B = block(rng, 9, 2, is_complex=True, discrete=discrete)
    whole = np.zeros((20, 20), dtype=T.dtype, order=order)
    whole[5:14, 5:14] = T
    found, expected = (factor(x, B, discrete=discrete) for x in (whole[5:14, 5:14], T))
    np.testing.assert_allclose(found, expected, rtol=1e4 * EPS, atol=1e2 * EPS)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (5, 4), (9, 2), (BLOCK + 3, 6)])
def test_stein_equations(
    rng: np.random.Generator, implementation: str, n: int, k: int, is_complex: bool
) -> None:
    """X - T X Sᴴ = F where neither T nor S is stable, so that no equation of Gramians stands behind it."""
    T, S = (3.0 * block(rng, x, 1, is_complex=is_complex, discrete=True)[0] for x in (n, k))
    F, driven = (rng.standard_normal((n, k)).astype(T.dtype) for _ in range(2))
    before = T.copy(), S.copy()
    X, moved = solve_stein_column(T, diagonal_blocks(T), S, F.copy(), driven.copy())
    operator = np.eye(n * k) - np.kron(S.conj(), T)
    expected = np.linalg.solve(operator, F.ravel(order="F")).reshape(F.shape, order="F")
    tolerance = C * (n + 10) * EPS * np.linalg.cond(operator)
    assert np.linalg.norm(X - expected) <= tolerance * np.linalg.norm(expected)
    whole = np.linalg.norm(T) * np.linalg.norm(X) + np.linalg.norm(driven)
    assert np.linalg.norm(moved - driven - T @ X) <= C * (n + 10) * EPS * whole
    np.testing.assert_array_equal(T, before[0])
    np.testing.assert_array_equal(S, before[1])


@pytest.mark.parametrize("is_complex", [False, True])
def test_singular_stein_equations(implementation: str, is_complex: bool) -> None:
    T = np.array([[0.5, 1.0], [0.0, 2.0]], dtype=complex if is_complex else float)
    with pytest.raises(NoConvergenceError, match="λ_i conj λ_j = 1"):
        solve_stein_column(T, [(0, 2)], T, np.ones_like(T), np.zeros_like(T))


def test_compiled_stein_looks_at_its_arguments() -> None:
    stein = pytest.importorskip("ssmreduce.equations._elimination").stein
    square, column = np.eye(2, order="F"), np.zeros((2, 1), order="F")
    with pytest.raises(TypeError, match="expected T, S, X and TX"):
        stein(square, square, square)
    with pytest.raises(ValueError, match="of shape"):
        stein(square, square, column, column)
    with pytest.raises(ValueError, match="of one type"):
        stein(square, square, square.astype(complex), square)
    read_only = square.copy(order="F")
    read_only.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        stein(square, square, read_only, square.copy(order="F"))


def test_rows_that_nothing_reaches(
    rng: np.random.Generator, implementation: str, discrete: bool
) -> None:
    T, B = block(rng, 6, 2, is_complex=False, discrete=discrete)
    T = np.triu(T) / 3.0 if discrete else np.triu(T) - 5.0 * np.eye(6)
    B[3:] = 0.0
    U = factor(T, B, discrete=discrete)
    assert not np.any(U[3:])
    X = gramian(T, B, discrete=discrete)
    np.testing.assert_allclose(U @ adjoint(U), X, rtol=1e4 * EPS, atol=1e3 * EPS)


@pytest.mark.parametrize("is_complex", [False, True])
def test_nothing_drives_it(
    rng: np.random.Generator, implementation: str, discrete: bool, is_complex: bool
) -> None:
    T, B = block(rng, 5, 2, is_complex=is_complex, discrete=discrete)
    for inputs in (0.0 * B, B[:, :0]):
        assert not np.any(factor(T, inputs, discrete=discrete))


@pytest.mark.parametrize("size", [1e-140, 1e140])
def test_extreme_inputs(
    rng: np.random.Generator, implementation: str, discrete: bool, size: float
) -> None:
    T, B = block(rng, 6, 2, is_complex=False, discrete=discrete)
    scaled, plain = (factor(T, x, discrete=discrete) for x in (size * B, B))
    scaled = scaled / size
    signs = np.sign(np.sum(scaled * plain, axis=0))  # rounding decides that of a column
    np.testing.assert_allclose(signs * scaled, plain, rtol=1e4 * EPS, atol=1e2 * EPS)


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-14])
def test_pair_that_is_nearly_a_real_pole(
    rng: np.random.Generator, implementation: str, discrete: bool, gap: float
) -> None:
    """A nearly defective pair; its rows of M come from differences and keep their identity with S."""
    pole = 0.5 if discrete else -1.0
    T = np.array([[pole, 1.0], [-gap, pole]])
    for B in (rng.standard_normal((2, 1)), np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])):
        U = factor(T, B, discrete=discrete)
        X = gramian(T, B, discrete=discrete)
        np.testing.assert_allclose(U @ adjoint(U), X, rtol=1e3 * EPS, atol=1e2 * EPS)
        if hammarling.eliminate is None:
            continue
        _, S, M = block_factor(T, B, discrete=discrete)
        identity = S @ adjoint(S) - np.eye(2) if discrete else S + adjoint(S)
        np.testing.assert_allclose(identity + M @ adjoint(M), 0.0, atol=1e2 * EPS)


@pytest.mark.parametrize("size", [1.0, 1e-16])
@pytest.mark.parametrize("noise", [0.0, 1e-17, -2.7e-17])
@pytest.mark.parametrize("modulus", [0.1, 0.5, 0.95])
def test_pair_of_period_four(
    rng: np.random.Generator, implementation: str, modulus: float, noise: float, size: float
) -> None:
    """Poles ±ir, where inputs reach one state alone: the first row of M is rounding, and has no phase."""
    T = np.zeros((4, 4))
    T[:2, 2:] = 0.1 * rng.standard_normal((2, 2))
    T[0, 0], T[1, 1] = 0.3, -0.2
    T[2:, 2:] = [[noise, -modulus], [modulus, noise]]
    for row in ([0.0, 1.0], [1.0, 0.0], [1e-16, 0.8], [0.8, 1e-16]):
        for m in (1, 2):
            B = np.repeat(np.array([[1.0], [0.5], [0.0], [0.0]]), m, axis=1)
            B[2:] = size * np.array(row)[:, None]
            check(T, B, discrete=True)


def test_pair_whose_first_row_of_m_vanishes(discrete: bool) -> None:
    """The same for any pair, at the input that bisection finds."""
    if hammarling.eliminate is None:
        pytest.skip("installed without a C compiler")
    pole = 0.7 * np.exp(0.6j) if discrete else -0.3 + 2.0j
    T = np.array([[pole.real, -3.0 * pole.imag], [pole.imag / 3.0, pole.real]])

    def inputs(angle: float) -> Any:
        return np.array([[np.cos(angle)], [np.sin(angle)]])

    def first(angle: float) -> float:
        return float(block_factor(T, inputs(angle), discrete=discrete)[2][0, 0])

    angles = np.linspace(0.0, np.pi, 30)
    (crossing,) = np.flatnonzero([first(a) * first(b) < 0.0 for a, b in pairwise(angles)])
    root = scipy.optimize.brentq(first, angles[crossing], angles[crossing + 1], xtol=EPS)
    for angle in root + 4 * EPS * np.arange(-20, 21):
        assert abs(first(angle)) < 1e3 * EPS
        check(T, inputs(angle), discrete=discrete)


@pytest.mark.parametrize("frequency", [1e-17, 2e-16, 1e-13, 1e-10, 1e-5])
@pytest.mark.parametrize("pole", [-1.2, -0.01, 0.5, -0.5, 0.999999])
def test_pair_that_is_nearly_one_repeated_pole(
    rng: np.random.Generator, implementation: str, pole: float, frequency: float
) -> None:
    """As rounding makes of a repeated real pole: both states alike, each input reaches one direction."""
    discrete = pole > -0.8 and pole != -0.01
    T = np.array(
        [[-0.3, 0.0, 0.4, -0.2], [0.0, 0.2 if discrete else -0.2, 0.1, 0.3], [0.0] * 4, [0.0] * 4]
    )
    for spread in (1.0, 3.0, 0.2):
        T[2:, 2:] = [[pole, -frequency * spread], [frequency / spread, pole]]
        for small in (0.0, 1e-17, 1e-15, 1e-9, 1.0):
            for m in (1, 2, 3):
                B = rng.standard_normal((4, m))
                one, other = rng.standard_normal(2), rng.standard_normal(m)
                for pair in (
                    np.outer(one, other) + small * B[2:],
                    np.outer(one, np.eye(m)[0]) + small * B[2:],
                    B[2:] * np.array([[1.0], [small]]),
                    B[2:] * np.array([[small], [1.0]]),
                ):
                    B[2:] = pair
                    check(T, B, discrete=discrete)


@pytest.mark.parametrize("pole", [0.0, 1e-200])
def test_poles_at_zero(rng: np.random.Generator, implementation: str, pole: float) -> None:
    """Of a finite impulse response: S has no phase to follow."""
    T = np.diag([pole] * 4) + np.diag([1.0, 2.0, 3.0], 1)
    check(T, rng.standard_normal((4, 2)), discrete=True)
    check(T.astype(complex), rng.standard_normal((4, 2)).astype(complex), discrete=True)


@pytest.mark.parametrize("is_complex", [False, True])
def test_singular_equation(implementation: str, discrete: bool, is_complex: bool) -> None:
    poles = (2.0, 0.5) if discrete else (1.0, -1.0)
    T = np.array([[poles[0], 0.5], [0.0, poles[1]]], dtype=complex if is_complex else float)
    with pytest.raises(NoConvergenceError, match="singular"):
        factor(T, np.ones((2, 1), dtype=T.dtype), discrete=discrete)


def test_compiled_arguments_are_checked() -> None:
    eliminate = hammarling.eliminate
    if eliminate is None:
        pytest.skip("installed without a C compiler")
    F = {n: np.asfortranarray(-np.eye(n)) for n in (2, 3)}
    inputs = np.ones((3, 1), order="F")

    def square(n: int = 3) -> Any:
        return F[n].copy(order="F")

    with pytest.raises(TypeError, match="T, B, U, S, M and whether"):
        eliminate(F[3], inputs)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"shape \(n, n\)"):
        eliminate(F[3], inputs, square(2), square(), inputs.copy(), False)
    with pytest.raises(ValueError, match="of one type"):
        eliminate(F[3], inputs.astype(complex), square(), square(), inputs.copy(), False)
    with pytest.raises(ValueError, match="contiguous columns"):
        eliminate(np.arange(9.0).reshape(3, 3), inputs, square(), square(), inputs.copy(), False)
    frozen = square()
    frozen.setflags(write=False)
    with pytest.raises((BufferError, ValueError), match=r"(?i)read-only"):
        eliminate(F[3], inputs, frozen, square(), inputs.copy(), False)


def test_pairs_of_different_scaling(implementation: str) -> None:
    """Entries of 1e-6 and 1e5 meet in the four equations between two pairs; mpmath has the Gramian."""
    a, d = -4.2747990729593046e-05, -1.7390696851919463
    T = np.array(
        [
            [a, 93407.12791113857, -0.0030400658620785012, -0.004870012119257917],
            [-1.6375103473937608e-06, a, -0.006060785427802382, -0.010582514618921299],
            [0.0, 0.0, d, 0.00021098243665997667],
            [0.0, 0.0, -0.601259401999493, d],
        ]
    )
    B = np.array([[-266.66], [2.404], [-3.737e-4], [-0.10283]])
    U = factor(T, B, discrete=False)
    with mp.workdps(60):
        exact_T, exact_B = mp.matrix(T.tolist()), mp.matrix(B.tolist())
        operator = mp.matrix(16, 16)
        for i in range(4):
            for j in range(4):
                for k in range(4):
                    operator[4 * j + i, 4 * j + k] += exact_T[i, k]
                    operator[4 * j + i, 4 * k + i] += exact_T[j, k]
        driven = exact_B * exact_B.T
        right = mp.matrix([-driven[i, j] for j in range(4) for i in range(4)])
        solution = mp.lu_solve(operator, right)
        X = np.array([[float(solution[4 * j + i]) for j in range(4)] for i in range(4)])
    deviation = np.sqrt(X.diagonal())
    error = np.abs(U @ U.T - X) / np.outer(deviation, deviation)
    assert error.max() <= 1e2 * EPS


@pytest.mark.parametrize("is_complex", [False, True])
def test_unstable_blocks_are_refused(
    rng: np.random.Generator, implementation: str, discrete: bool, is_complex: bool
) -> None:
    """What has no decay has no Gramian, and no square root of it is taken."""
    edge = np.array([[0.6, 0.8], [-0.8, 0.6]]) if discrete else np.array([[0.0, 1.0], [-1.0, 0.0]])
    T = scipy.linalg.schur(edge, output="complex")[0] if is_complex else edge * (1.0 + 2.0 * EPS)
    with pytest.raises(NoConvergenceError, match="singular"):
        factor(T, np.ones((2, 1), dtype=T.dtype), discrete=discrete)
