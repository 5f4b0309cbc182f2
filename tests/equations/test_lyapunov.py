"""Lyapunov solvers: every solver x real or complex x time domain x A or Aᴴ x dtype, against oracles."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import pytest
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS, adjoint, complex_normal, dense_system, well_conditioned

from ssmreduce import (
    Continuous,
    Discrete,
    StateSpace,
    hankel_singular_values,
    observability_gramian,
    solve_lyapunov,
    solve_lyapunov_factor,
)
from ssmreduce._schur import SchurForm
from ssmreduce.equations import hammarling
from ssmreduce.equations.adi import (
    LowRankPlan,
    ShiftedSolves,
    low_rank_gramian,
    plan_low_rank,
)
from ssmreduce.equations.hammarling import hammarling_factor
from ssmreduce.equations.residual import relative_residual
from ssmreduce.equations.solvers import (
    AutoLyapunov,
    BartelsStewart,
    DiagonalLyapunov,
    Hammarling,
    LowRankADI,
    LyapunovSolver,
    MatrixSign,
    SlycotLyapunov,
    SmithDoubling,
)
from ssmreduce.equations.triangular import solve_schur
from ssmreduce.errors import (
    NoConvergenceError,
    NonFiniteError,
    ShapeError,
    TimeDomainError,
    UnstableSystemError,
    UnsupportedEquationError,
)

pytestmark = pytest.mark.every_library

C_RESIDUAL = 8.0
"""c of the relative residual c (n + 10) eps."""

C_ERROR = 40.0
"""c of the relative error c (n + 10) eps κ, κ the condition of the Kronecker matrix."""

TIMES = {"continuous": Continuous(), "discrete": Discrete()}
SOLUTION_SOLVERS = [
    AutoLyapunov(),
    BartelsStewart(),
    DiagonalLyapunov(),
    SmithDoubling(),
    MatrixSign(),
    SlycotLyapunov(),
]
FACTOR_SOLVERS = [
    AutoLyapunov(),
    Hammarling(),
    DiagonalLyapunov(),
    LowRankADI(),
    SmithDoubling(),
    MatrixSign(),
    SlycotLyapunov(),
]
GENERAL_FACTOR_SOLVERS = [AutoLyapunov(), Hammarling(), SmithDoubling(), MatrixSign()]
DTYPES = ["float32", "float64", "complex64", "complex128"]


def name_of(thing: Any) -> str:
    return type(thing).__name__ if isinstance(thing, LyapunovSolver) else str(thing)


def sample(
    rng: np.random.Generator,
    n: int,
    time: str,
    dtype: str,
    solver: LyapunovSolver = AutoLyapunov(),
) -> tuple[Any, Any, Any]:
    """A stable A that `solver` can treat, B, and a Hermitian Q, rounded to `dtype`."""
    is_complex = dtype.startswith("complex")
    inputs = 1 if isinstance(solver, LowRankADI) else 2
    system = dense_system(rng, n, inputs, 1, discrete=time == "discrete", is_complex=is_complex)
    A = system.A
    if isinstance(solver, DiagonalLyapunov):
        poles = np.linalg.eigvals(A)
        A = np.diag(poles if is_complex else -np.abs(poles))
    if isinstance(solver, LowRankADI):  # a spectrum that few real shifts cover
        A = 0.3 * A if time == "discrete" else A - 3.0 * np.eye(n)
    Q = complex_normal(rng, n, n) if is_complex else rng.standard_normal((n, n))
    return A.astype(dtype), system.B.astype(dtype), (Q + adjoint(Q)).astype(dtype)


def skip_unsupported(solver: LyapunovSolver, time: str, dtype: str = "float64") -> None:
    if isinstance(solver, MatrixSign) and time == "discrete":
        pytest.skip("the sign iteration is for continuous equations")
    if isinstance(solver, SlycotLyapunov):
        pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
        if dtype.startswith("complex"):
            pytest.skip("SLICOT is for real equations")


def orders(solver: LyapunovSolver) -> tuple[int, ...]:
    if isinstance(solver, LowRankADI):
        return (24,)  # as many as it takes steps
    return (2, 3, 7, 12) if isinstance(solver, SlycotLyapunov) else (1, 2, 3, 7, 12)


def oracle(A: Any, Q: Any, time: str) -> Any:
    double = np.complex128 if np.iscomplexobj(A) or np.iscomplexobj(Q) else np.float64
    solve = discrete_lyapunov if time == "discrete" else continuous_lyapunov
    return solve(A.astype(double), Q.astype(double))


def condition(A: Any, time: str) -> float:
    """Condition of the equation as a linear system, by its Kronecker matrix."""
    n = len(A)
    A = A.astype(np.result_type(A, float))
    if time == "discrete":
        operator = np.eye(n * n) - np.kron(A.conj(), A)
    else:
        operator = np.kron(np.eye(n), A) + np.kron(A.conj(), np.eye(n))
    return float(np.linalg.cond(operator))


def check_error(X: Any, A: Any, Q: Any, time: str) -> None:
    """Check X against the oracle; the condition, O(n⁶), is asked for only where it is needed."""
    exact = oracle(A, Q, time)
    error, allowed = (
        np.linalg.norm(X - exact),
        C_ERROR * (len(A) + 10) * EPS * np.linalg.norm(exact),
    )
    assert error <= allowed or error <= allowed * condition(A, time)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("solver", SOLUTION_SOLVERS, ids=name_of)
def test_solutions(
    rng: np.random.Generator, solver: LyapunovSolver, time: str, dtype: str, mirrored: bool
) -> None:
    skip_unsupported(solver, time, dtype)
    for n in orders(solver):
        A, _, Q = sample(rng, n, time, dtype, solver)
        A = adjoint(A) if mirrored else A
        before = A.tobytes(), Q.tobytes()
        result = solve_lyapunov(A, Q, time=TIMES[time], solver=solver)
        assert (A.tobytes(), Q.tobytes()) == before
        X = result.value
        assert X.dtype == (np.complex128 if dtype.startswith("complex") else np.float64)
        assert result.status == "success"
        residual = relative_residual(A.astype(X.dtype), X, Q.astype(X.dtype), time=TIMES[time])
        assert residual <= C_RESIDUAL * (n + 10) * EPS
        assert result.residual == pytest.approx(residual, rel=0.5, abs=EPS)
        check_error(X, A, Q, time)


def check_factor(Z: Any, A: Any, B: Any, time: str) -> None:
    """Check the residual of Z Zᴴ, and its error."""
    n, X, Q = len(A), Z @ adjoint(Z), B @ adjoint(B)
    assert relative_residual(A, X, Q, time=TIMES[time]) <= C_RESIDUAL * (n + 10) * EPS
    check_error(X, A, Q, time)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("solver", FACTOR_SOLVERS, ids=name_of)
def test_factors(
    rng: np.random.Generator, solver: LyapunovSolver, time: str, dtype: str, mirrored: bool
) -> None:
    skip_unsupported(solver, time, dtype)
    for n in orders(solver):
        A, B, _ = sample(rng, n, time, dtype, solver)
        A = adjoint(A) if mirrored else A
        before = A.tobytes(), B.tobytes()
        result = solve_lyapunov_factor(A, B, time=TIMES[time], solver=solver)
        assert (A.tobytes(), B.tobytes()) == before
        Z = result.value
        assert Z.dtype == (np.complex128 if dtype.startswith("complex") else np.float64)
        assert Z.shape[1] <= n
        assert result.status == "success"
        check_factor(Z, A.astype(Z.dtype), B.astype(Z.dtype), time)


# --- Blocks: orders around and across the block size


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("n", [31, 32, 33, 64, 65, 97, 129])
def test_orders_across_blocks(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, n: int, time: str, is_complex: bool
) -> None:
    monkeypatch.setattr(hammarling, "LARGEST_BLOCK", 0)
    system = dense_system(rng, n, 3, 1, discrete=time == "discrete", is_complex=is_complex)
    schur = SchurForm.of(system.A)
    T = schur.triangle
    B = adjoint(schur.basis) @ system.B
    U = hammarling_factor(T, B, TIMES[time])
    assert relative_residual(T, U @ adjoint(U), B @ adjoint(B), time=TIMES[time]) <= (
        C_RESIDUAL * n * EPS
    )
    Q = complex_normal(rng, n, n) if is_complex else rng.standard_normal((n, n))
    X = solve_schur(T, Q, TIMES[time])
    assert relative_residual(T, X, Q, time=TIMES[time]) <= C_RESIDUAL * n * EPS


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("m", [1, 5, 40, 90])
def test_any_number_of_inputs(rng: np.random.Generator, time: str, m: int) -> None:
    system = dense_system(rng, 40, m, 1, discrete=time == "discrete")
    result = solve_lyapunov_factor(system.A, system.B, time=TIMES[time], solver=Hammarling())
    assert result.status == "success"
    assert result.value.shape == (40, 40)


@pytest.mark.parametrize("time", TIMES)
def test_inputs_that_reach_little(rng: np.random.Generator, time: str) -> None:
    # Zero rows, and rows that vanish in the Schur basis: M and S are then free, U is zero there.
    system = dense_system(rng, 36, 2, 1, discrete=time == "discrete")
    schur = SchurForm.of(system.A)
    for zero in (slice(0, 36), slice(18, 36), slice(35, 36), slice(0, 5)):
        B = adjoint(schur.basis) @ system.B
        B[zero] = 0.0
        U = hammarling_factor(schur.triangle, B, TIMES[time])
        assert np.all(np.isfinite(U))
        Q = B @ adjoint(B)
        residual = relative_residual(schur.triangle, U @ adjoint(U), Q, time=TIMES[time])
        assert residual <= C_RESIDUAL * 36 * EPS
        if zero.stop == 36:
            assert not np.any(U[zero])


@pytest.mark.parametrize("time", TIMES)
def test_pairs_that_are_nearly_real(time: str) -> None:
    # Conjugate poles ± 1e-9 i from one input: the 2 x 2 factor is nearly singular.
    for imaginary in (1e-3, 1e-6, 1e-9, 1e-12):
        A = np.array([[-0.5, imaginary], [-imaginary, -0.5]])
        A = np.block([[A, np.ones((2, 2)) * 0.3], [np.zeros((2, 2)), A - 0.1 * np.eye(2)]])
        B = np.array([[1.0], [2.0], [1.0], [0.5]])
        U = hammarling_factor(A, B, TIMES[time])
        residual = relative_residual(A, U @ adjoint(U), B @ adjoint(B), time=TIMES[time])
        assert residual <= C_RESIDUAL * 4 * EPS


@pytest.mark.parametrize("time", TIMES)
def test_small_directions_keep_their_digits(time: str) -> None:
    # A chain of real poles reached through the first: columns of the exact factor fall by decades, and
    # are right to many digits, where a Cholesky factor of the formed Gramian is noise below 1e-8.
    n, coupling = 10, 1e-3
    poles = np.linspace(-0.5, -0.2, n)
    A = np.diag(poles) + coupling * np.diag(np.ones(n - 1), -1)
    B = np.zeros((n, 1))
    B[0] = 1.0
    # Lower triangular: its mirror image is a Schur form.
    T, b = A[::-1, ::-1].copy(), B[::-1].copy()
    U = hammarling_factor(T, b, TIMES[time])
    with mp.workdps(80):
        exact = mp_factor_values(T, b, time)
    values = np.linalg.svd(U, compute_uv=False)
    smallest = np.abs(np.diag(U))
    assert smallest.min() < 1e-12 * values[0]
    # U has the exact diagonal of the unique triangular factor with positive diagonal.
    np.testing.assert_allclose(smallest, exact, rtol=1e4 * n * EPS)


def mp_factor_values(T: Any, b: Any, time: str) -> Any:
    """Diagonal of the upper triangular factor, from a Kronecker solve at 80 digits."""
    n = len(T)
    A = mp.matrix(T.tolist())
    operator, right = mp.matrix(n * n, n * n), mp.matrix(n * n, 1)
    for i in range(n):
        for j in range(n):
            row = i * n + j
            right[row] = -mp.mpf(float(b[i, 0])) * mp.mpf(float(b[j, 0]))
            for k in range(n):
                if time == "discrete":
                    for m in range(n):
                        operator[row, k * n + m] += A[i, k] * A[j, m]
                else:
                    operator[row, k * n + j] += A[i, k]
                    operator[row, i * n + k] += A[j, k]
            if time == "discrete":
                operator[row, row] -= 1
    X = mp.lu_solve(operator, right)
    # Upper triangular factor: Cholesky of the matrix with its order reversed.
    reversed_X = mp.matrix(n, n)
    for i in range(n):
        for j in range(n):
            reversed_X[i, j] = X[(n - 1 - i) * n + (n - 1 - j)]
    L = mp.cholesky(reversed_X)
    return np.array([float(L[n - 1 - i, n - 1 - i]) for i in range(n)])


@pytest.mark.parametrize("damping", [1e-4, 1e-8, 1e-12])
def test_lightly_damped_pair_in_a_group(damping: float) -> None:
    # The formed Gramian of a group is Hermitian to few digits there; half of it alone solves nothing.
    T = np.array(
        [
            [-2.1, 0.8, 0.65, 1.3, 0.75],
            [-1.35, -2.1, 0.5, 0.3, -1.5],
            [0.0, 0.0, -damping, -1.4, -0.45],
            [0.0, 0.0, 2.2, -damping, 0.45],
            [0.0, 0.0, 0.0, 0.0, -0.18],
        ]
    )
    B = np.array([[6.0], [5.0], [-8.0], [-7.0], [-8.0]])
    U = hammarling_factor(T, B, Continuous())
    residual = relative_residual(T, U @ adjoint(U), B @ adjoint(B), time=Continuous())
    assert residual <= C_RESIDUAL * 15 * EPS


# --- Schur forms of structured matrices


def test_structured_matrices_fall_apart(rng: np.random.Generator) -> None:
    n = 120
    A = np.zeros((n, n))
    for first in range(0, n, 4):
        A[first : first + 4, first : first + 4] = rng.standard_normal((4, 4))
    A[:4, 8:12] = A[20:24, :4] = 1.0  # a cascade
    order = rng.permutation(n)
    A = A[np.ix_(order, order)]
    schur = SchurForm.of(A)
    assert SchurForm.is_cheap(A)
    scale = np.linalg.norm(A)
    identity = np.eye(n)
    rebuilt = schur.reached(schur.triangle) @ schur.ports(identity, identity)[0]
    assert np.linalg.norm(rebuilt - A) <= 10 * n * EPS * scale
    assert not np.any(np.tril(schur.triangle, -2))
    rebuilt = schur.observed(adjoint(schur.triangle)) @ schur.ports(identity, identity)[1]
    assert np.linalg.norm(rebuilt - adjoint(A)) <= 10 * n * EPS * scale
    found, expected = np.sort_complex(schur.eigenvalues()), np.sort_complex(np.linalg.eigvals(A))
    np.testing.assert_allclose(found, expected, atol=1e4 * EPS * scale)


@pytest.mark.parametrize("is_complex", [False, True])
def test_schur_form_of_anything(rng: np.random.Generator, is_complex: bool) -> None:
    for n in (1, 2, 5):
        A = well_conditioned(rng, n, is_complex=is_complex)
        schur = SchurForm.of(A)
        rebuilt = schur.reached(schur.triangle) @ schur.ports(np.eye(n), np.eye(n))[0]
        np.testing.assert_allclose(rebuilt, A, atol=50 * EPS)
        found = np.sort_complex(schur.eigenvalues())
        np.testing.assert_allclose(found, np.sort_complex(np.linalg.eigvals(A)), atol=1e3 * EPS)


# --- Closed form for a diagonal A


@pytest.mark.parametrize("time", TIMES)
def test_diagonal_matrices(rng: np.random.Generator, time: str) -> None:
    poles = -rng.uniform(0.1, 0.9, 6) + 0.3j * rng.standard_normal(6)
    A, B = np.diag(poles), complex_normal(rng, 6, 2)
    Q = B @ adjoint(B)
    full = solve_lyapunov(A, Q, time=TIMES[time])
    thin = solve_lyapunov_factor(A, B, time=TIMES[time])
    for result in (full, thin):
        assert result.solver == DiagonalLyapunov()
        assert result.status == "success"
    np.testing.assert_allclose(thin.value @ adjoint(thin.value), full.value, rtol=1e3 * EPS)
    rest = solve_lyapunov(A, Q, time=TIMES[time], solver=BartelsStewart()).value
    np.testing.assert_allclose(rest, full.value, atol=1e3 * EPS * np.abs(rest).max())
    with pytest.raises(UnsupportedEquationError, match="DiagonalLyapunov"):
        solve_lyapunov(A + 1.0, Q, time=TIMES[time], solver=DiagonalLyapunov())


# --- Low rank


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_low_rank_iteration(rng: np.random.Generator, mirrored: bool, is_complex: bool) -> None:
    system = dense_system(rng, 240, 1, 1, discrete=False, is_complex=is_complex)
    A = system.A - 0.5 * np.eye(240)
    solves = ShiftedSolves(A, Continuous())
    plan = plan_low_rank(solves, 1)
    assert plan is not None
    B = adjoint(system.C) if mirrored else system.B
    result = low_rank_gramian(solves, B, plan, mirrored=mirrored, check_stability=True)
    assert result is not None
    assert result.remainder <= EPS
    assert result.Z.shape[1] == result.steps < 240
    matrix = adjoint(A) if mirrored else A
    X, Q = result.Z @ adjoint(result.Z), B @ adjoint(B)
    assert relative_residual(matrix, X, Q, time=Continuous()) <= C_RESIDUAL * 250 * EPS


def test_low_rank_iteration_stops_early_where_its_pace_is_too_slow(
    rng: np.random.Generator,
) -> None:
    """All poles in a disc of radius 0.95 take 700 steps; the Ritz values had promised fewer."""

    class Counted(ShiftedSolves):
        applied = 0

        def apply(self, X: Any, *, mirrored: bool = False) -> Any:
            self.applied += 1
            return super().apply(X, mirrored=mirrored)

    A = rng.standard_normal((240, 240))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max()
    solves, B = Counted(A, Discrete()), rng.standard_normal((240, 1))
    plan = LowRankPlan(shifts=(0.0,), steps=300)
    assert low_rank_gramian(solves, B, plan) is None
    assert solves.applied <= 64


def test_low_rank_iteration_in_discrete_time(rng: np.random.Generator) -> None:
    system = dense_system(rng, 220, 1, 1, radius=0.6)
    for solver in (LowRankADI(), AutoLyapunov()):
        result = solve_lyapunov_factor(system.A, system.B, time=Discrete(), solver=solver)
        assert result.solver == LowRankADI()
        assert result.status == "success"
        assert result.iterations is not None
        assert result.value.shape[1] == result.iterations < 220


def test_low_rank_declines_what_it_cannot_do(rng: np.random.Generator) -> None:
    # Lightly damped modes: real shifts shrink nothing. Auto takes the Schur form.
    frequency = np.geomspace(1.0, 100.0, 110)
    A = np.zeros((220, 220))
    for k, omega in enumerate(frequency):
        A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [
            [-0.005 * omega, omega],
            [-omega, -0.005 * omega],
        ]
    basis = well_conditioned(rng, 220, is_complex=False)
    A = basis @ A @ np.linalg.inv(basis)
    B = rng.standard_normal((220, 1))
    choice = AutoLyapunov().select_factor(A, B, Continuous())
    assert choice.solver == Hammarling()
    assert "cheaper" in choice.reason
    assert solve_lyapunov_factor(A, B, time=Continuous()).status == "success"
    with pytest.raises(NoConvergenceError, match="Hammarling"):
        solve_lyapunov_factor(A, B, time=Continuous(), solver=LowRankADI())
    # Many inputs: as many columns as states after a few steps.
    wide = rng.standard_normal((220, 60))
    assert AutoLyapunov().select_factor(A, wide, Continuous()).solver == Hammarling()


@pytest.mark.parametrize("time", TIMES)
def test_low_rank_sees_unstable_modes_out_of_reach(rng: np.random.Generator, time: str) -> None:
    # The unstable mode is not reached by B and hardly seen by Ritz values; the probe grows with it.
    system = dense_system(rng, 230, 1, 1, discrete=time == "discrete", radius=0.5)
    A = np.zeros((231, 231))
    A[:230, :230] = system.A if time == "discrete" else system.A - np.eye(230)
    A[230, 230] = 1.02 if time == "discrete" else 0.02
    B = np.concatenate([system.B, np.zeros((1, 1))])
    A[:230, 230] = 0.1
    with pytest.raises(UnstableSystemError, match="pole"):
        solve_lyapunov_factor(A, B, time=TIMES[time])


# --- Other solvers, other equations


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("n", [2, 4, 9])
def test_slicot(rng: np.random.Generator, time: str, n: int) -> None:
    pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
    A, B, Q = sample(rng, n, time, "float64")
    for right, solve in ((Q, solve_lyapunov), (B, solve_lyapunov_factor)):
        theirs = solve(A, right, time=TIMES[time], solver=SlycotLyapunov())
        ours = solve(A, right, time=TIMES[time])
        assert theirs.status == "success"
        first, second = theirs.value, ours.value
        if right is B:
            first, second = first @ adjoint(first), second @ adjoint(second)
        scale = condition(A, time) * np.abs(second).max()
        np.testing.assert_allclose(first, second, atol=C_ERROR * (n + 10) * EPS * scale)
        with pytest.raises(UnsupportedEquationError, match="complex"):
            solve(A + 0j, right, time=TIMES[time], solver=SlycotLyapunov())


@pytest.mark.parametrize("time", TIMES)
def test_unstable_and_not_hermitian(rng: np.random.Generator, time: str) -> None:
    # Bartels and Stewart need neither: only that the equation has one solution.
    for is_complex in (False, True):
        A = well_conditioned(rng, 9, is_complex=is_complex, spread=20.0)
        Q = complex_normal(rng, 9, 9) if is_complex else rng.standard_normal((9, 9))
        result = solve_lyapunov(A, Q, time=TIMES[time])
        assert result.status == "success"
        check_error(result.value, A, Q, time)


def test_real_matrix_with_complex_right_hand_side(rng: np.random.Generator) -> None:
    # What SciPy 1.17 gets wrong.
    A, _, _ = sample(rng, 6, "continuous", "float64")
    Q = complex_normal(rng, 6, 6)
    for time in TIMES:
        result = solve_lyapunov(A / 3, Q, time=TIMES[time])
        assert result.status == "success"
        assert result.value.dtype == np.complex128


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("time", TIMES)
def test_extreme_norms(rng: np.random.Generator, time: str, scale: float) -> None:
    A, B, Q = sample(rng, 6, time, "float64")
    power = 2.0 ** int(np.log2(scale))
    exact = solve_lyapunov(A, Q, time=TIMES[time])
    result = solve_lyapunov(A, Q * power, time=TIMES[time])
    np.testing.assert_array_equal(result.value, exact.value * power)
    Z = solve_lyapunov_factor(A, B, time=TIMES[time]).value
    np.testing.assert_allclose(
        solve_lyapunov_factor(A, B * power, time=TIMES[time]).value, Z * power, rtol=1e3 * EPS
    )
    if time == "continuous":
        result = solve_lyapunov(A * power, Q, time=Continuous())
        assert result.status == "success"
        np.testing.assert_allclose(result.value * power, exact.value, rtol=1e6 * EPS)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])
def test_any_unit_of_time(scale: float) -> None:
    A, B, C = np.array([[-1.0, 5, 1], [-5, -1, 2], [0, 1, -2]]), np.ones((3, 1)), np.ones((1, 3))
    power = 2.0 ** int(np.log2(scale))
    fast = StateSpace(A * power, B * power, C, time=Continuous())
    expected = hankel_singular_values(StateSpace(A, B, C, time=Continuous()))
    np.testing.assert_allclose(hankel_singular_values(fast), expected, rtol=1e3 * EPS)


def test_solutions_out_of_range_are_refused() -> None:
    A = np.array([[-1.0, 1.0], [0.0, -1.0]])
    with pytest.raises(NoConvergenceError, match="overflows"):
        solve_lyapunov(A * 1e-200, np.eye(2) * 1e200, time=Continuous())
    with pytest.raises(NoConvergenceError, match="overflows"):
        solve_lyapunov_factor(A * 1e-300, np.eye(2) * 1e300, time=Continuous())
    with pytest.raises(NoConvergenceError, match="not finite"):
        solve_lyapunov(np.diag([-1.0, -1e-310]), np.eye(2), time=Continuous())
    # The largest doubles, and factors whose product overflows, are not out of range.
    assert solve_lyapunov(A, np.eye(2) * 1e308, time=Continuous()).status == "success"
    A[0, 1] = 1e160
    assert solve_lyapunov_factor(A, np.ones((2, 1)), time=Continuous()).status == "success"


@pytest.mark.parametrize("time", TIMES)
def test_solutions_are_hermitian(rng: np.random.Generator, time: str) -> None:
    # Near a singular equation a solution with a small residual alone is so to few digits.
    A = rng.standard_normal((8, 8))
    poles = np.linalg.eigvals(A)
    if time == "discrete":
        A *= (1.0 - 1e-9) / np.abs(poles).max()
    else:
        A -= (poles.real.max() + 1e-9) * np.eye(8)
    result = solve_lyapunov(A, np.eye(8), time=TIMES[time], solver=BartelsStewart())
    assert result.status == "success"
    np.testing.assert_array_equal(result.value, adjoint(result.value))


def test_batches(rng: np.random.Generator) -> None:
    draws = [sample(rng, 5, "discrete", "complex128") for _ in range(6)]
    A, B, Q = (np.stack(arrays).reshape(2, 3, 5, -1) for arrays in zip(*draws, strict=True))
    full = solve_lyapunov(A, Q, time=Discrete())
    thin = solve_lyapunov_factor(A, B, time=Discrete())
    for index, (a, b, q) in zip(np.ndindex(2, 3), draws, strict=True):
        np.testing.assert_array_equal(
            full.value[index], solve_lyapunov(a, q, time=Discrete()).value
        )
        single = solve_lyapunov_factor(a, b, time=Discrete()).value
        np.testing.assert_array_equal(thin.value[index], single)


@pytest.mark.parametrize("time", TIMES)
def test_nothing_to_solve(time: str) -> None:
    empty = solve_lyapunov(np.zeros((0, 0)), np.zeros((0, 0)), time=TIMES[time])
    assert empty.value.shape == (0, 0)
    none = solve_lyapunov_factor(-0.5 * np.eye(3), np.zeros((3, 0)), time=TIMES[time])
    assert none.value.shape == (3, 0)
    assert none.solver == DiagonalLyapunov()
    with pytest.raises(UnstableSystemError):
        solve_lyapunov_factor(2.0 * np.eye(3), np.zeros((3, 0)), time=TIMES[time])
    for solver in GENERAL_FACTOR_SOLVERS:
        if isinstance(solver, MatrixSign) and time == "discrete":
            continue
        zero = solve_lyapunov_factor(
            np.array([[-0.5, 0.1], [0.0, -0.2]]),
            np.zeros((3 - 1, 1)),
            time=TIMES[time],
            solver=solver,
        )
        assert not np.any(zero.value)


# --- Refusals


def test_wrong_arguments(rng: np.random.Generator) -> None:
    A, B, Q = sample(rng, 4, "continuous", "float64")
    with pytest.raises(ShapeError, match=r"`A` is 3x4"):
        solve_lyapunov(A[:3], Q, time=Continuous())
    with pytest.raises(ShapeError, match=r"`Q` is 4x3 but `A` is 4x4"):
        solve_lyapunov(A, Q[:, :3], time=Continuous())
    with pytest.raises(ShapeError, match=r"`B` is 3x2 but `A` is 4x4"):
        solve_lyapunov_factor(A, B[:3], time=Continuous())
    with pytest.raises(ShapeError, match="batch"):
        solve_lyapunov(A[None], Q, time=Continuous())
    with pytest.raises(NonFiniteError, match="`Q`"):
        solve_lyapunov(A, Q * np.nan, time=Continuous())
    with pytest.raises(TimeDomainError):
        solve_lyapunov(A, Q, time="continuous")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="time"):
        solve_lyapunov(A, Q)  # type: ignore[call-arg]


def test_solvers_refuse_by_name(rng: np.random.Generator) -> None:
    A, B, Q = sample(rng, 4, "discrete", "float64")
    for solver in (Hammarling(), LowRankADI()):
        with pytest.raises(
            UnsupportedEquationError,
            match=f"{solver!r}.*factors only".replace("(", r"\(").replace(")", r"\)"),
        ):
            solve_lyapunov(A, Q, time=Discrete(), solver=solver)
    with pytest.raises(UnsupportedEquationError, match="Hammarling"):
        solve_lyapunov_factor(A, B, time=Discrete(), solver=BartelsStewart())
    for right, solve in ((Q, solve_lyapunov), (B, solve_lyapunov_factor)):
        with pytest.raises(UnsupportedEquationError, match="SmithDoubling"):
            solve(A, right, time=Discrete(), solver=MatrixSign())


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("solver", GENERAL_FACTOR_SOLVERS, ids=name_of)
def test_a_solver_called_alone_does_not_depend_on_units(
    rng: np.random.Generator, solver: LyapunovSolver, time: str
) -> None:
    skip_unsupported(solver, time)
    A, B, _ = sample(rng, 6, time, "float64")
    units = 2.0 ** np.arange(-40, 44, 14)[:, None]
    scaled = A * units / units[:, 0]
    expected = solver.factor(A, B, TIMES[time]).value
    found = solver.factor(scaled, units * B, TIMES[time]).value / units
    expected, found = expected @ expected.T, found @ found.T
    assert abs(found - expected).max() <= 1e-12 * abs(expected).max()
    if not isinstance(solver, Hammarling):
        X = solver.solution(scaled, units * B @ (units * B).T, TIMES[time]).value
        X = X / units / units[:, 0]
        assert abs(X - expected).max() <= 1e-12 * abs(expected).max()


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("solver", GENERAL_FACTOR_SOLVERS, ids=name_of)
def test_unstable_matrices_have_no_factor(
    rng: np.random.Generator, solver: LyapunovSolver, time: str
) -> None:
    skip_unsupported(solver, time)
    A, B, _ = sample(rng, 5, time, "float64")
    A = A * 3 if time == "discrete" else A + 3 * np.eye(5)
    with pytest.raises(UnstableSystemError):
        solve_lyapunov_factor(A, B, time=TIMES[time], solver=solver)


def test_a_solver_is_an_instance() -> None:
    wrong: Any
    for wrong in (BartelsStewart, "auto", None):
        with pytest.raises(UnsupportedEquationError, match="`solver` is"):
            solve_lyapunov(-np.eye(2), np.eye(2), time=Continuous(), solver=wrong)


def test_singular_matrices(rng: np.random.Generator) -> None:
    # Inverses of A do not exist: neither for the sign iteration nor for Ritz values near zero.
    A = rng.standard_normal((150, 150)) / 150**0.5 - 1.3 * np.eye(150)
    A[5] = 0.0
    with pytest.raises(UnstableSystemError, match="pole"):
        solve_lyapunov_factor(A, rng.standard_normal((150, 1)), time=Continuous())
    for singular in (np.array([[0.0, 1.0], [0.0, -1.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])):
        for solve in (solve_lyapunov, solve_lyapunov_factor):
            with pytest.raises(UnstableSystemError, match="imaginary axis"):
                solve(singular, np.eye(2), time=Continuous(), solver=MatrixSign())


def test_doubling_of_large_factors() -> None:
    # Squares of the rows overflow; that must not look like convergence.
    A, B = np.array([[0.5, 1e153], [0.0, 0.9999]]), np.ones((2, 1))
    Z = solve_lyapunov_factor(A, B, time=Discrete(), solver=SmithDoubling()).value
    exact = solve_lyapunov_factor(A, B, time=Discrete(), solver=Hammarling()).value
    scale = 2.0**-512
    found, expected = (np.linalg.norm(x[0] * scale) for x in (Z, exact))
    assert found == pytest.approx(expected, rel=1e3 * EPS)


def test_doubling_that_overflows_is_refused() -> None:
    # Powers of a large Jordan block near the boundary grow beyond all range before they decay.
    A = (1.0 - 1e-10) * (np.eye(36) + 2.0 * np.diag(np.ones(35), 1))
    with pytest.raises(NoConvergenceError, match="Smith"):
        solve_lyapunov_factor(A, np.ones((36, 1)), time=Discrete(), solver=SmithDoubling())


def test_singular_equations() -> None:
    # λ and -λ, or λ and 1/λ, among the eigenvalues: no solution, or many.
    with pytest.raises(NoConvergenceError, match="singular"):
        solve_lyapunov(np.array([[1.0, 2.0], [0.0, -1.0]]), np.eye(2), time=Continuous())
    with pytest.raises(NoConvergenceError, match="singular"):
        solve_lyapunov(np.array([[0.5, 1.0], [0.0, 2.0]]), np.eye(2), time=Discrete())
    with pytest.raises(NoConvergenceError, match="singular"):
        solve_lyapunov(np.diag([1.0, -1.0]), np.eye(2), time=Continuous())


def test_pairs_of_uneven_states() -> None:
    # Found by a law: a nearly defective pair whose second state is driven by rounding alone. In a formed
    # Gramian its variance, 5e-17, is lost beside that of the first.
    A = np.array([[-0.1, -0.3], [6e-16, -0.1]])
    A = np.block(
        [[np.array([[-0.05, -0.07], [5e-17, -0.05]]), 0.1 * np.ones((2, 2))], [np.zeros((2, 2)), A]]
    )
    B = np.array([[-0.4], [0.5], [0.6], [-4e-15]])
    U = hammarling_factor(A, B, Continuous())
    # B = U M with S + Sᴴ + M Mᴴ = 0, S = U⁻¹ A U: the factor reproduces what drives the pair.
    M = np.linalg.solve(U, B)
    S = np.linalg.solve(U, A @ U)
    np.testing.assert_allclose(S + adjoint(S), -M @ adjoint(M), atol=1e3 * EPS)


def rotations(rng: np.random.Generator, n: int) -> list[Any]:
    """Three bases: the given one, its reverse, and a random orthogonal one."""
    return [np.eye(n), np.eye(n)[::-1], np.linalg.qr(rng.standard_normal((n, n)))[0]]


@pytest.mark.parametrize("solver", GENERAL_FACTOR_SOLVERS, ids=name_of)
@pytest.mark.parametrize("pair", [[[0.0, 1.0], [-0.36, 0.0]], [[0.0, -0.6], [0.6, 0.0]]])
def test_oscillators_of_period_four(
    rng: np.random.Generator, solver: LyapunovSolver, pair: list[list[float]]
) -> None:
    # z² + 0.36: what its input reaches of the pair has no part in one of its states.
    skip_unsupported(solver, "discrete")
    A = np.array([[0.3, 0.3, 0.7], [0.0, *pair[0]], [0.0, *pair[1]]])
    B = np.array([[0.0], [0.0], [1.0]])
    for turn in rotations(rng, 3):
        A, B = turn @ A @ turn.T, turn @ B
        check_factor(
            solve_lyapunov_factor(A, B, time=Discrete(), solver=solver).value, A, B, "discrete"
        )


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("solver", GENERAL_FACTOR_SOLVERS, ids=name_of)
def test_repeated_poles_of_any_basis(
    rng: np.random.Generator, solver: LyapunovSolver, time: str
) -> None:
    # In rounded arithmetic they become pairs with a frequency of eps; inputs reach one direction of each.
    skip_unsupported(solver, time)
    poles = (
        np.array([0.5, 0.5, -0.4, -0.4, -0.4]) if time == "discrete" else -np.array([2, 2, 1, 1, 1])
    )
    for _ in range(100):
        turn = rotations(rng, 5)[2]
        coupled = np.triu(rng.standard_normal((5, 5)), 1) * (poles[:, None] != poles)
        A = turn @ (np.diag(poles) + coupled) @ turn.T
        B = np.zeros((5, 3))
        B[:2, 0], B[2:, 1] = rng.integers(-2, 3, 2), rng.integers(-2, 3, 3)
        B = turn @ B
        check_factor(solve_lyapunov_factor(A, B, time=TIMES[time], solver=solver).value, A, B, time)


def test_states_out_of_reach_by_rounding() -> None:
    # Found by a law: C sees one pole only, but for rounding. Scaled to the size of the
    # third state the other two would make T so uneven that its equation looks singular.
    A = np.array(
        [
            [-0.6361558237474855, 0.4471945366590041, 1.0899105701836307],
            [-0.9493783392103602, -0.21705592577469265, -2.0355581818525503],
            [-0.7393604355532886, 2.200140017435582, -0.15721977026612138],
        ]
    )
    C = np.array([[0.47704250580546154, 0.20833669257382667, -0.16176001065410214]])
    system = StateSpace(adjoint(A), np.ones((3, 2)), C, time=Continuous())
    Q = observability_gramian(system)
    assert np.linalg.matrix_rank(Q, tol=1e-12) == 1
    residual = relative_residual(A, Q, adjoint(C) @ C, time=Continuous())
    assert residual <= C_RESIDUAL * 3 * EPS


@pytest.mark.parametrize("solver", [AutoLyapunov(), Hammarling(), SmithDoubling()])
def test_an_error_names_the_equation_of_a_batch(solver: LyapunovSolver) -> None:
    A = np.array([[[-1.0, 1.0], [0.0, -2.0]], [[-1.0, 1.0], [1.0, 2.0]]])
    with pytest.raises(UnstableSystemError, match=r"^in A\[1\] of the batch `A` has"):
        solve_lyapunov_factor(A, np.ones((2, 2, 1)), time=Continuous(), solver=solver)
    singular = np.stack([A[:1], np.array([[[1.0, 0.0], [0.0, -1.0]]])])
    with pytest.raises(NoConvergenceError, match=r"^in A\[1, 0\] of the batch"):
        solve_lyapunov(singular, np.ones((2, 1, 2, 2)), time=Continuous())
