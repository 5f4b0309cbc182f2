"""One block of Hammarling's method, compiled and in Python: U, S and M against their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from oracles.kronecker import continuous_lyapunov
from samples import EPS, adjoint

from ssmreduce import NoConvergenceError
from ssmreduce.equations import small_gramians
from ssmreduce.equations.small_gramians import block_continuous

C = 20.0
"""c of the tolerances c (n + 10) eps, relative to the norms of what is compared."""


@pytest.fixture(params=["compiled", "python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(small_gramians, "eliminate", None)
    elif small_gramians.eliminate is None:
        pytest.skip("installed without a C compiler")
    return str(request.param)


def block(rng: np.random.Generator, n: int, m: int, *, is_complex: bool) -> tuple[Any, Any]:
    """A stable Schur form and inputs."""
    A, B = rng.standard_normal((n, n)), rng.standard_normal((n, m))
    if is_complex:
        A, B = A + 1j * rng.standard_normal((n, n)), B + 1j * rng.standard_normal((n, m))
    A = A - (np.linalg.eigvals(A).real.max() + 0.2) * np.eye(n)
    return scipy.linalg.schur(A)[0], B


def check(T: Any, B: Any) -> Any:
    """Check the identities of U, S and M, and return U."""
    before = T.copy(), B.copy()
    U, S, M = block_continuous(T, B)
    np.testing.assert_array_equal(T, before[0])
    np.testing.assert_array_equal(B, before[1])
    rounding = C * (T.shape[0] + 10) * EPS
    size = np.linalg.norm
    assert size(T @ U - U @ S) <= rounding * size(T) * size(U)
    assert size(U @ M - B) <= rounding * size(U) * max(size(M), 1.0)
    assert size(S + adjoint(S) + M @ adjoint(M)) <= rounding * size(T)
    below = np.tril(U, -1)
    pairs = np.flatnonzero(T.diagonal(-1)) if np.isrealobj(T) else []
    assert not np.any(
        below[[i + 1 for i in pairs], list(pairs)]
    )  # a pair's factor is triangular too
    assert not np.any(below)
    return U


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_blocks(
    rng: np.random.Generator, implementation: str, n: int, m: int, is_complex: bool
) -> None:
    T, B = block(rng, n, m, is_complex=is_complex)
    U = check(T, B)
    if n <= 8:
        X = continuous_lyapunov(T, B @ adjoint(B))
        condition = np.linalg.cond(np.kron(np.eye(n), T) + np.kron(T.conj(), np.eye(n)))
        error = np.linalg.norm(U @ adjoint(U) - X)
        assert error <= C * (n + 10) * EPS * condition * np.linalg.norm(X)


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_of_a_larger_matrix(
    rng: np.random.Generator, implementation: str, order: Any
) -> None:
    T, B = block(rng, 9, 2, is_complex=True)
    whole = np.zeros((20, 20), dtype=T.dtype, order=order)
    whole[5:14, 5:14] = T
    np.testing.assert_allclose(
        block_continuous(whole[5:14, 5:14], B)[0], block_continuous(T, B)[0], rtol=1e3 * EPS
    )


def test_rows_that_nothing_reaches(rng: np.random.Generator, implementation: str) -> None:
    T, B = block(rng, 6, 2, is_complex=False)
    T = np.triu(T) - 5.0 * np.eye(6)
    B[3:] = 0.0
    U, _, M = block_continuous(T, B)
    assert not np.any(U[3:])
    assert not np.any(M[3:])
    X = continuous_lyapunov(T, B @ adjoint(B))
    np.testing.assert_allclose(U @ adjoint(U), X, rtol=1e4 * EPS, atol=1e3 * EPS)


@pytest.mark.parametrize("is_complex", [False, True])
def test_nothing_drives_it(rng: np.random.Generator, implementation: str, is_complex: bool) -> None:
    T, B = block(rng, 5, 2, is_complex=is_complex)
    for inputs in (0.0 * B, B[:, :0]):
        U, _, M = block_continuous(T, inputs)
        assert not np.any(U)
        assert not np.any(M)


@pytest.mark.parametrize("size", [1e-140, 1e140])
def test_extreme_inputs(rng: np.random.Generator, implementation: str, size: float) -> None:
    T, B = block(rng, 6, 2, is_complex=False)
    scaled, plain = block_continuous(T, size * B), block_continuous(T, B)
    np.testing.assert_allclose(scaled[0] / size, plain[0], rtol=1e4 * EPS, atol=1e2 * EPS)
    np.testing.assert_allclose(scaled[2], plain[2], rtol=1e4 * EPS, atol=1e2 * EPS)


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-14])
def test_pair_that_is_nearly_a_real_pole(
    rng: np.random.Generator, implementation: str, gap: float
) -> None:
    """A nearly defective pair; its rows of M come from differences and keep S + Sᴴ + M Mᴴ = 0."""
    T = np.array([[-1.0, 1.0], [-gap, -1.0]])
    for B in (rng.standard_normal((2, 1)), np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])):
        U, S, M = block_continuous(T, B)
        X = continuous_lyapunov(T, B @ adjoint(B))
        np.testing.assert_allclose(U @ adjoint(U), X, rtol=1e3 * EPS, atol=1e2 * EPS)
        np.testing.assert_allclose(S + adjoint(S) + M @ adjoint(M), 0.0, atol=1e2 * EPS)


@pytest.mark.parametrize("is_complex", [False, True])
def test_singular_equation(implementation: str, is_complex: bool) -> None:
    T = np.array([[1.0, 0.5], [0.0, -1.0]], dtype=complex if is_complex else float)
    with pytest.raises(NoConvergenceError, match="singular"):
        block_continuous(T, np.ones((2, 1), dtype=T.dtype))


def test_compiled_arguments_are_checked() -> None:
    eliminate = small_gramians.eliminate
    if eliminate is None:
        pytest.skip("installed without a C compiler")
    F = {n: np.asfortranarray(-np.eye(n)) for n in (2, 3)}
    inputs = np.ones((3, 1), order="F")
    with pytest.raises(TypeError, match="T, B, U, S and M"):
        eliminate(F[3], inputs)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"shape \(n, n\)"):
        eliminate(F[3], inputs, F[2].copy(order="F"), F[3].copy(order="F"), inputs.copy())
    with pytest.raises(ValueError, match="of one type"):
        eliminate(
            F[3], inputs.astype(complex), F[3].copy(order="F"), F[3].copy(order="F"), inputs.copy()
        )
    with pytest.raises(ValueError, match="contiguous columns"):
        eliminate(
            np.arange(9.0).reshape(3, 3),
            inputs,
            F[3].copy(order="F"),
            F[3].copy(order="F"),
            inputs.copy(),
        )
    frozen = F[3].copy(order="F")
    frozen.setflags(write=False)
    with pytest.raises((BufferError, ValueError), match=r"(?i)read-only"):
        eliminate(F[3], inputs, frozen, F[3].copy(order="F"), inputs.copy())
