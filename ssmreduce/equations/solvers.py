"""Solver objects: one small frozen class per method, and `AutoLyapunov`, which says what it would take.

A solver answers `solution`, X itself, for any Q, or `factor`, Z with X = Z Zᴴ for Q = B Bᴴ and a stable A,
or both; what it cannot do it refuses by name. All of them work on arrays of NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ssmreduce._checks import require_backend
from ssmreduce._lapack import product
from ssmreduce._namespace import Array, HostArray, adjoint, to_double
from ssmreduce._schur import SchurForm
from ssmreduce.equations import diagonal, sign, smith
from ssmreduce.equations.adi import ShiftedSolves, low_rank_gramian, plan_low_rank
from ssmreduce.equations.arguments import single_equation, state_matrix
from ssmreduce.equations.bartels_stewart import solve_schur
from ssmreduce.equations.dense import Units, choose_low_rank
from ssmreduce.equations.hammarling import hammarling_factor
from ssmreduce.equations.stability import check_stable, check_stable_form
from ssmreduce.errors import NoConvergenceError, UnstableSystemError, UnsupportedEquationError
from ssmreduce.time_domain import Discrete, TimeDomain


@dataclass(frozen=True, eq=False)
class Answer:
    """A solution or factor, the number of iterations if the method iterates, and who gave it."""

    value: HostArray
    solver: LyapunovSolver
    iterations: int | None = None


class LyapunovSolver:
    """A method for A X + X Aᴴ + Q = 0 (continuous) and A X Aᴴ - X + Q = 0 (discrete)."""

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        raise UnsupportedEquationError(
            f"`solver` is {self!r}, which computes factors only; expected a solver of the whole "
            "equation. Use BartelsStewart(), or solve_lyapunov_factor with this one."
        )

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z, shape (n, k), with X = Z Zᴴ for Q = B Bᴴ."""
        raise UnsupportedEquationError(
            f"`solver` is {self!r}, which computes X itself only; expected a solver of factors. "
            "Use Hammarling(), or solve_lyapunov with this one."
        )


@dataclass(frozen=True)
class BartelsStewart(LyapunovSolver):
    """Schur form and blocked back substitution: any A and Q whose equation has one solution, O(n³)."""

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        A, Q = single_equation(A, Q, "Q", time)
        dtype = np.result_type(A, Q)
        schur = SchurForm.of(A.astype(dtype, copy=False))
        inner = adjoint(schur.inputs(adjoint(schur.inputs(Q.astype(dtype, copy=False)))))
        X = solve_schur(schur.triangle, inner, time)
        return Answer(adjoint(schur.reached(adjoint(schur.reached(X)))), self)


@dataclass(frozen=True)
class Hammarling(LyapunovSolver):
    """Triangular factor straight from the Schur form, in blocks: the general route, O(n³)."""

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z of shape (n, n)."""
        A, B = single_equation(A, B, "B", time)
        dtype = np.result_type(A, B)
        scaled, units = Units.of(A, time)
        schur = SchurForm.of_balanced(scaled, time=time)
        check_stable_form(schur, time, A, name="`A`")
        schur = schur.of_type(dtype)
        inner = product(schur.basis, units.inputs(B.astype(dtype, copy=False)), adjoint_left=True)
        Z = product(schur.basis, hammarling_factor(schur.triangle, inner, time))
        return Answer(units.reached(Z), self)


@dataclass(frozen=True)
class DiagonalLyapunov(LyapunovSolver):
    """Closed form for a diagonal A; the factor comes from (λ, B) without forming X. O(n²) and O(n² m)."""

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X = Q ∘ K."""
        A, Q = single_equation(A, Q, "Q", time)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            kernel = diagonal.cauchy_kernels(_diagonal_of(A), None, time)[0]
            return Answer(Q * kernel, self)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z with as many columns as its numerical rank."""
        A, B = single_equation(A, B, "B", time)
        eigenvalues = _diagonal_of(A)
        check_stable(eigenvalues.astype(np.complex128), time, name="`A`")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            kernel = diagonal.cauchy_kernels(eigenvalues, None, time)[0]
            return Answer(diagonal.state_factor(eigenvalues, B, kernel), self)


@dataclass(frozen=True)
class SmithDoubling(LyapunovSolver):
    """Squared Smith iteration: matrix products only; continuous equations by a Cayley transform."""

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        A, Q = single_equation(A, Q, "Q", time)
        _refuse_unstable(A, time)
        if not isinstance(time, Discrete):
            A, middle = smith.cayley(A, np.eye(A.shape[0]))
            Q = middle @ Q @ adjoint(middle)
        X, doublings = smith.infinite_solution(A, Q)
        return Answer(X, self, doublings)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z."""
        A, B = single_equation(A, B, "B", time)
        _refuse_unstable(A, time)
        if not isinstance(time, Discrete):
            A, B = smith.cayley(A, B)
        Z, doublings = smith.infinite_factor(A, B)
        return Answer(Z, self, doublings)


@dataclass(frozen=True)
class MatrixSign(LyapunovSolver):
    """Matrix sign iteration (continuous): products and inverses only, for a stable A."""

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        A, Q = single_equation(A, Q, "Q", time)
        self._refuse_discrete(time)
        X, iterations = _inverting(sign.sign_solution, A, Q)
        return Answer(X, self, iterations)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z."""
        A, B = single_equation(A, B, "B", time)
        self._refuse_discrete(time)
        Z, iterations = _inverting(sign.sign_factor, A, B)
        return Answer(Z, self, iterations)

    def _refuse_discrete(self, time: TimeDomain) -> None:
        if isinstance(time, Discrete):
            raise UnsupportedEquationError(
                "`solver` is MatrixSign(), which is for continuous equations; `time` is "
                f"{time!r}. Use SmithDoubling(), its discrete counterpart."
            )


@dataclass(frozen=True)
class LowRankADI(LyapunovSolver):
    """Low-rank ADI with a few real shifts: thin factors where inputs are few, O(n² m) per step."""

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z with as many columns as inputs times steps."""
        A, B = single_equation(A, B, "B", time)
        solves = ShiftedSolves(A.astype(np.result_type(A, B), copy=False), time)
        plan = plan_low_rank(solves, B.shape[1])
        result = None
        if plan is not None:
            result = low_rank_gramian(solves, B, plan, check_stability=True)
        if result is None:
            raise NoConvergenceError(
                "LowRankADI() does not converge with fewer columns than states: `A` has modes that real "
                "shifts damp too slowly, an unstable mode, or too many inputs. Use Hammarling()."
            )
        return Answer(result.Z, self, result.steps)


@dataclass(frozen=True)
class SlycotLyapunov(LyapunovSolver):
    """SLICOT's SB03MD and SB03OD through Slycot: real equations, for comparison."""

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X; Q must be symmetric."""
        A, Q = single_equation(A, Q, "Q", time)
        slycot = self._backend(A, Q)
        result = slycot.sb03md57(
            A.copy(order="F"), C=-Q.copy(order="F"), dico=_dico(time), trana="T"
        )
        # Returned in the order of the Fortran arguments: A, U, X, scale, ...
        return Answer(np.asarray(result[2] / result[3]), self)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z."""
        A, B = single_equation(A, B, "B", time)
        slycot = self._backend(A, B)
        _refuse_unstable(A, time)
        n, m = B.shape
        wide = np.zeros((n, max(n, m)), order="F")
        wide[:, :m] = B
        Q = np.zeros((n, n), order="F")
        U, scale, _ = slycot.sb03od(n, m, A.copy(order="F"), Q, wide, _dico(time), trans="T")
        return Answer(np.asarray(np.triu(U) / scale), self)

    def _backend(self, A: HostArray, other: HostArray) -> ModuleType:
        if np.iscomplexobj(A) or np.iscomplexobj(other):
            raise UnsupportedEquationError(
                "`solver` is SlycotLyapunov(), which is for real equations; an argument is complex. "
                "Use BartelsStewart() or Hammarling()."
            )
        return require_backend("slycot", extra="slycot")


@dataclass(frozen=True)
class LyapunovChoice:
    """What `AutoLyapunov` picks, and why."""

    solver: LyapunovSolver
    reason: str
    fallback: LyapunovSolver | None = None


@dataclass(frozen=True)
class AutoLyapunov(LyapunovSolver):
    """Picks by structure and size: closed form, low rank, or the Schur form; never an optional package.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.solvers import AutoLyapunov
    >>> A, B = np.array([[-1.0, 1.0], [0.0, -2.0]]), np.ones((2, 1))
    >>> choice = AutoLyapunov().select_factor(A, B, Continuous())
    >>> choice.solver
    Hammarling()
    >>> choice.reason
    '2 states: no low-rank iteration is predicted to be cheaper than the Schur form'
    """

    def select(self, A: HostArray) -> LyapunovChoice:
        """Say how X would be computed."""
        A = to_double(state_matrix(A))
        if _is_diagonal(A):
            return LyapunovChoice(
                DiagonalLyapunov(), "`A` is diagonal: the solution is known entrywise"
            )
        return LyapunovChoice(BartelsStewart(), "`A` is dense: the Schur form is backward stable")

    def select_factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> LyapunovChoice:
        """Say how Z would be computed."""
        A, B = single_equation(A, B, "B", time)
        if _is_diagonal(A):
            return LyapunovChoice(
                DiagonalLyapunov(), "`A` is diagonal: the factor follows from (λ, B)"
            )
        n = A.shape[0]
        route = choose_low_rank(A.astype(np.result_type(A, B), copy=False), B.shape[1], time)
        if route is not None:
            reason = f"{route[1].steps} steps with {len(set(route[1].shifts))} shifts are predicted"
            return LyapunovChoice(LowRankADI(), reason, Hammarling())
        reason = "no low-rank iteration is predicted to be cheaper than the Schur form"
        return LyapunovChoice(Hammarling(), f"{n} states: {reason}")

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X by the solver selected."""
        return self.select(A).solver.solution(A, Q, time)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z by the solver selected."""
        choice = self.select_factor(A, B, time)
        try:
            return choice.solver.factor(A, B, time)
        except NoConvergenceError:
            if choice.fallback is None:
                raise
            return choice.fallback.factor(A, B, time)


def _dico(time: TimeDomain) -> str:
    return "D" if isinstance(time, Discrete) else "C"


def _is_diagonal(A: HostArray) -> bool:
    return bool(np.count_nonzero(A) == np.count_nonzero(A.diagonal()))


def _diagonal_of(A: HostArray) -> HostArray:
    if not _is_diagonal(A):
        raise UnsupportedEquationError(
            "`solver` is DiagonalLyapunov() but `A` has entries off its diagonal; expected a diagonal "
            "matrix. Use AutoLyapunov()."
        )
    return A.diagonal()


def _inverting(
    iteration: Callable[[Array, Array], tuple[Array, int | None]],
    A: HostArray,
    right: HostArray,
) -> tuple[HostArray, int | None]:
    """Run a sign iteration; a singular iterate belongs to an eigenvalue on the imaginary axis."""
    try:
        return iteration(A, right)
    except np.linalg.LinAlgError as error:
        raise UnstableSystemError(
            "`A` has an eigenvalue on the imaginary axis, to rounding; expected Re λ < 0. Use "
            "BartelsStewart() for an equation whose A is not stable."
        ) from error


def _refuse_unstable(A: HostArray, time: TimeDomain) -> None:
    check_stable_form(SchurForm.of(A, time=time), time, A, name="`A`")
