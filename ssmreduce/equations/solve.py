"""`solve_lyapunov` and `solve_lyapunov_factor`: solver objects, and a measured residual."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, adjoint, to_host
from ssmreduce._array_routes import NoNativeRoute, any_library
from ssmreduce._checks import shown
from ssmreduce._lapack import product, safe_unit
from ssmreduce._workers import naming_system
from ssmreduce.devices import lyapunov
from ssmreduce.devices.residual import BACKWARD_STABLE
from ssmreduce.equations.arguments import equation
from ssmreduce.equations.dense import even_units
from ssmreduce.equations.residual import residual_of
from ssmreduce.equations.solvers import AutoLyapunov, LyapunovSolver, MatrixSign, SmithDoubling
from ssmreduce.errors import NoConvergenceError, UnsupportedEquationError
from ssmreduce.time_domain import Discrete, TimeDomain


class LyapunovStatus(StrEnum):
    """How good a solution is."""

    SUCCESS = "success"
    INACCURATE = "inaccurate"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, eq=False)
class LyapunovSolution:
    """Result of `solve_lyapunov` and `solve_lyapunov_factor`.

    Attributes
    ----------
    value : (..., n, n) or (..., n, k) array
        X, or its factor Z with X = Z Zᴴ. In a batch, factors are padded with zero columns.
    status : LyapunovStatus
        "success", or "inaccurate" where the residual exceeds 8 (n + 10) eps; of a batch the worst.
        "unchecked" for traced arrays.
    residual : float
        ‖A X + X Aᴴ + Q‖ / (2 ‖A‖ ‖X‖ + ‖Q‖), or ‖A X Aᴴ - X + Q‖ / ((‖A‖² + 1) ‖X‖ + ‖Q‖); of a
        batch the largest.
    solver : LyapunovSolver
        What was used: for `AutoLyapunov` its choice, or what it fell back to; in a batch that for
        the first equation. `AutoLyapunov` itself where A is 0 x 0.
    iterations : int or None
        Of the solver, where it iterates; in a batch the most.

    Examples
    --------
    >>> from ssmreduce import Continuous, solve_lyapunov
    >>> solution = solve_lyapunov(
    ...     [[-1.0, 2.0], [0.0, -3.0]], [[1.0, 0.0], [0.0, 1.0]], time=Continuous()
    ... )
    >>> solution.solver, solution.status.value, solution.residual < 1e-15, solution.iterations
    (BartelsStewart(), 'success', True, None)
    """

    value: HostArray = field(repr=False)
    status: LyapunovStatus
    residual: float
    solver: LyapunovSolver
    iterations: int | None


def _no_solver(solver: object) -> UnsupportedEquationError:
    """What to raise for a `solver` that is none."""
    return UnsupportedEquationError(
        f"`solver` is {shown(solver)}; expected an instance of a solver. Write BartelsStewart() or "
        "AutoLyapunov(), or leave it out."
    )


def _solve_natively(
    A: Array, right: Array, name: str, time: TimeDomain, solver: LyapunovSolver
) -> LyapunovSolution:
    if not isinstance(solver, LyapunovSolver):
        raise _no_solver(solver)
    A, right = equation(A, right, name, time)
    own = SmithDoubling() if isinstance(time, Discrete) else MatrixSign()
    if solver != own and not isinstance(solver, AutoLyapunov):
        raise NoNativeRoute(f"{solver!r} works on the host")
    value, residual, traced, iterations = lyapunov.solve(A, right, time, factor=name == "B")
    if traced:
        return LyapunovSolution(value, LyapunovStatus.UNCHECKED, residual, own, None)
    return LyapunovSolution(
        value, LyapunovStatus.SUCCESS, float(to_host(residual)), own, iterations
    )


def _native_solution(
    A: Array, Q: Array, *, time: TimeDomain, solver: LyapunovSolver = AutoLyapunov()
) -> LyapunovSolution:
    return _solve_natively(A, Q, "Q", time, solver)


def _native_factor(
    A: Array, B: Array, *, time: TimeDomain, solver: LyapunovSolver = AutoLyapunov()
) -> LyapunovSolution:
    return _solve_natively(A, B, "B", time, solver)


@any_library(_native_solution)
def solve_lyapunov(
    A: Array, Q: Array, *, time: TimeDomain, solver: LyapunovSolver = AutoLyapunov()
) -> LyapunovSolution:
    """Solve A X + X Aᴴ + Q = 0 (continuous) or A X Aᴴ - X + Q = 0 (discrete) for X.

    There is one solution if no λ_i + conj λ_j is 0 (continuous), or no λ_i conj λ_j is 1
    (discrete); A need not be stable, nor Q Hermitian. (SciPy's `solve_continuous_lyapunov` has Q
    with the other sign.)

    Parameters
    ----------
    A : (..., n, n) array
        Real or complex.
    Q : (..., n, n) array
        Right-hand side.
    time : Continuous or Discrete
        Time domain.
    solver : LyapunovSolver
        `AutoLyapunov` by default; see `ssmreduce.equations.solvers`.

    Returns
    -------
    LyapunovSolution
        With X in `value`, Hermitian to rounding where Q is, and real where A and Q are.

    Raises
    ------
    ShapeError, NonFiniteError
        If an argument is not square, of different order, or holds NaN or Inf.
    NoConvergenceError
        If the equation is singular to working precision, or an iteration fails.
    UnstableSystemError, UnsupportedEquationError
        If the chosen solver needs a stable A, or cannot treat this equation.
    TimeDomainError
        If `time` is not a time domain.

    Notes
    -----
    O(n³): a Schur form and matrix products. The residual is that of a backward stable method; the
    error is larger by the condition of the equation. Arrays of a device, and traced ones, are
    solved where they are if A is stable, by doubling or the matrix sign iteration.

    References
    ----------
    Bartels and Stewart, Comm. ACM 15 (1972); Simoncini, SIAM Review 58 (2016).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous, solve_lyapunov
    >>> A, Q = np.array([[-1.0, 2.0], [0.0, -3.0]]), np.eye(2)
    >>> solution = solve_lyapunov(A, Q, time=Continuous())
    >>> X = solution.value
    >>> bool(abs(A @ X + X @ A.conj().T + Q).max() < 1e-14), solution.status.value
    (True, 'success')
    """
    return _solve(A, Q, "Q", time, solver)


@any_library(_native_factor)
def solve_lyapunov_factor(
    A: Array, B: Array, *, time: TimeDomain, solver: LyapunovSolver = AutoLyapunov()
) -> LyapunovSolution:
    """Solve A X + X Aᴴ + B Bᴴ = 0 (continuous) or A X Aᴴ - X + B Bᴴ = 0 (discrete) for Z with X = Z
    Zᴴ.

    A must be stable. X is never formed, so that directions in which it is small keep their digits:
    half of them are lost by a Cholesky factorisation of X.

    Parameters
    ----------
    A : (..., n, n) array
        Real or complex, stable.
    B : (..., n, m) array
        Input matrix; for an observability Gramian pass Aᴴ and Cᴴ.
    time : Continuous or Discrete
        Time domain.
    solver : LyapunovSolver
        `AutoLyapunov` by default; see `ssmreduce.equations.solvers`.

    Returns
    -------
    LyapunovSolution
        With Z in `value`, of shape (..., n, k).

    Raises
    ------
    ShapeError, NonFiniteError
        If sizes do not fit, or an argument holds NaN or Inf.
    UnstableSystemError
        If an eigenvalue of A is not stable.
    NoConvergenceError, UnsupportedEquationError
        If an iteration fails, or the chosen solver cannot treat this equation.
    TimeDomainError
        If `time` is not a time domain.

    Notes
    -----
    O(n³), of which the Schur form is most; with few inputs O(n² m) per step of an iteration and an
    LU factorisation. The residual is computed from Z Zᴴ and takes three more products.

    References
    ----------
    Hammarling, IMA J. Numer. Anal. 2 (1982).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Discrete, solve_lyapunov_factor
    >>> A, B = np.array([[0.5, 0.2], [0.0, 0.1]]), np.ones((2, 1))
    >>> Z = solve_lyapunov_factor(A, B, time=Discrete()).value
    >>> X = Z @ Z.T
    >>> bool(abs(A @ X @ A.T - X + B @ B.T).max() < 1e-14)
    True
    """
    return _solve(A, B, "B", time, solver)


def _solve(
    A: Array, right: Array, name: str, time: TimeDomain, solver: LyapunovSolver
) -> LyapunovSolution:
    if not isinstance(solver, LyapunovSolver):
        raise _no_solver(solver)
    A, right = equation(A, right, name, time)
    A, right = (x.astype(np.result_type(x, np.float64), copy=False) for x in (A, right))
    if A.ndim == 2:
        return _solve_one(A, right, name, time, solver)
    n, batch = A.shape[-1], A.shape[:-2]
    parts = []
    for at in np.ndindex(batch):
        with naming_system(at, "A"):
            parts.append(_solve_one(A[at], right[at], name, time, solver))
    width = max(part.value.shape[1] for part in parts)
    values = [np.pad(part.value, ((0, 0), (0, width - part.value.shape[1]))) for part in parts]
    iterations = [part.iterations for part in parts if part.iterations is not None]
    return LyapunovSolution(
        np.stack(values).reshape(*batch, n, width),
        max((part.status for part in parts), key=list(LyapunovStatus).index),
        max(part.residual for part in parts),
        parts[0].solver,
        max(iterations) if iterations else None,
    )


def _solve_one(
    A: HostArray, right: HostArray, name: str, time: TimeDomain, solver: LyapunovSolver
) -> LyapunovSolution:
    """One equation, in units of states, rates and sizes in which A is balanced and nothing overflows."""
    n = A.shape[0]
    if n == 0:
        nothing = np.zeros((0, 0), dtype=np.result_type(A, right))
        return LyapunovSolution(nothing, LyapunovStatus.SUCCESS, 0.0, solver, None)
    if right.shape[1] == 0:
        zero = _solve_one(A, np.zeros((n, 1), dtype=right.dtype), name, time, solver)
        return replace(zero, value=zero.value[:, :0])
    A, units, root_rate = even_units(A, time)
    rate, columns = (root_rate**2, np.ravel(units)) if name == "Q" else (root_rate, 1.0)
    right = right / units / columns
    size = safe_unit(right)
    solve = solver._solution if name == "Q" else solver._factor
    answer = solve(A, right / size, time)
    value, chosen = answer.value, answer.solver
    if not np.all(np.isfinite(value)):
        raise NoConvergenceError(
            f"the solution by {chosen!r} is not finite: the equation is singular to working precision; "
            "expected no eigenvalues λ_i, λ_j of `A` with λ_i + conj λ_j = 0 (continuous) or "
            "λ_i conj λ_j = 1 (discrete). Shift or scale `A`."
        )
    X, Q = value, right / size
    if name == "B":
        unit = safe_unit(value)
        X = product(value / unit, adjoint(value / unit))
        Q = product(right / (size * unit), adjoint(right / (size * unit)))
    elif np.array_equal(Q, adjoint(Q)):
        # Its residual is no larger; near a singular equation X itself is Hermitian to few digits.
        X = value = 0.5 * (value + adjoint(value))
    residual = residual_of(A, X, Q, time)
    accurate = residual <= BACKWARD_STABLE * (n + 10) * np.finfo(np.float64).eps
    status = LyapunovStatus.SUCCESS if accurate else LyapunovStatus.INACCURATE
    with np.errstate(over="ignore", invalid="ignore"):
        value = value * size / rate * units * columns
    if not np.all(np.isfinite(value)):
        raise NoConvergenceError(
            f"the solution by {chosen!r} overflows; expected `{name}` and 1/`A` within the range of double "
            f"precision, and their product too. Scale `{name}`, or choose another unit of time."
        )
    return LyapunovSolution(value, status, residual, chosen, answer.iterations)
