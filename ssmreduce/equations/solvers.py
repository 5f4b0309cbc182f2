"""Solver objects: one small frozen class per method, and `AutoLyapunov`, which says what it would choose.

A solver answers `solution`, X itself, for any Q, or `factor`, Z with X = Z Zᴴ for Q = B Bᴴ and a stable A,
or both; what it cannot do it refuses by name. All of them work on arrays of NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, adjoint, to_double
from ssmreduce._checks import require_backend
from ssmreduce._lapack import product
from ssmreduce._schur import SchurForm
from ssmreduce.devices import doubling, matrix_sign
from ssmreduce.equations import diagonal, smith
from ssmreduce.equations.adi import ShiftedSolves, low_rank_gramian, plan_low_rank
from ssmreduce.equations.arguments import single_equation, state_matrix
from ssmreduce.equations.dense import SMALLEST_FOR_LOW_RANK, choose_low_rank, schur_factor
from ssmreduce.equations.lyapunov_solver import Answer as Answer
from ssmreduce.equations.lyapunov_solver import LyapunovChoice as LyapunovChoice
from ssmreduce.equations.lyapunov_solver import LyapunovSolver as LyapunovSolver
from ssmreduce.equations.stability import check_stable, check_stable_form, stable_form
from ssmreduce.equations.triangular import solve_schur
from ssmreduce.errors import NoConvergenceError, UnstableSystemError, UnsupportedEquationError
from ssmreduce.time_domain import Discrete, TimeDomain


@dataclass(frozen=True)
class BartelsStewart(LyapunovSolver):
    """Schur form and blocked back substitution: any A and Q whose equation has one solution, O(n³).

    It computes X alone; for a factor of a Gramian use `Hammarling`. The residual is of the order of
    n eps ‖A‖ ‖X‖.

    References
    ----------
    Bartels and Stewart, Comm. ACM 15 (1972); Kitagawa, Int. J. Control 25 (1977), for discrete
    equations.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.solvers import BartelsStewart
    >>> A = np.array([[1.0, 2.0], [0.0, 3.0]])  # not stable
    >>> Q = np.array([[0.0, 1.0], [2.0, 0.0]])
    >>> X = BartelsStewart().solution(A, Q, Continuous()).value
    >>> bool(abs(A @ X + X @ A.T + Q).max() < 1e-14)
    True
    """

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        return self._checked_solution(A, Q, time)

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        dtype = np.result_type(A, Q)
        schur = SchurForm.of_balanced(A.astype(dtype, copy=False))
        W = schur.basis
        inner = product(product(W, Q.astype(dtype, copy=False), adjoint_left=True), W)
        X = solve_schur(schur.triangle, inner, time)
        return Answer(product(product(W, X), adjoint(W)), self)


@dataclass(frozen=True)
class Hammarling(LyapunovSolver):
    """Triangular factor straight from the Schur form, in blocks: the general route to Z, O(n³).

    X is never formed, so that small directions of the factor keep their digits.

    References
    ----------
    Hammarling, IMA J. Numer. Anal. 2 (1982); Kressner, ACM TOMS 34 (2008), for blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.solvers import Hammarling
    >>> A, B = np.array([[-1.0, 2.0], [0.0, -3.0]]), np.ones((2, 1))
    >>> Z = Hammarling().factor(A, B, Continuous()).value
    >>> X = Z @ Z.T
    >>> bool(abs(A @ X + X @ A.T + B @ B.T).max() < 1e-14)
    True
    """

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z of shape (n, n)."""
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        schur = stable_form(A, time, A, name="`A`")
        dtype = np.result_type(A, B)
        schur = schur.as_complex() if dtype.kind == "c" else schur
        factor = schur_factor(schur, B.astype(dtype, copy=False), time)
        return Answer(schur.reached(factor), self)


@dataclass(frozen=True)
class DiagonalLyapunov(LyapunovSolver):
    """Closed form for a diagonal A: X_ij = -Q_ij/(λ_i + conj λ_j), or Q_ij/(1 - λ_i conj λ_j) in
    discrete time.

    The factor comes from (λ, B) without forming X. Cost O(n²) for X and O(n k m) for a factor with
    k columns.

    References
    ----------
    Kailath and Sayed, SIAM Review 37 (1995), for the factor.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Discrete
    >>> from ssmreduce.equations.solvers import DiagonalLyapunov
    >>> A, Q = np.diag([0.5, 0.0]), np.ones((2, 2))
    >>> DiagonalLyapunov().solution(A, Q, Discrete()).value.round(4).tolist()
    [[1.3333, 1.0], [1.0, 1.0]]
    """

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X = Q ∘ K, with K_ij = -1/(λ_i + conj λ_j) or 1/(1 - λ_i conj λ_j)."""
        return self._checked_solution(A, Q, time)

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            kernel = diagonal.cauchy_kernels(_diagonal_of(A), None, time)[0]
            return Answer(Q * kernel, self)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z with as many columns as its numerical rank."""
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        eigenvalues = _diagonal_of(A)
        check_stable(eigenvalues.astype(np.complex128), time, name="`A`")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            kernel = diagonal.cauchy_kernels(eigenvalues, None, time)[0]
            return Answer(diagonal.state_factor(eigenvalues, B, kernel), self)


@dataclass(frozen=True)
class SmithDoubling(LyapunovSolver):
    """Squared Smith iteration, matrix products only, for a stable A; continuous equations by a
    Cayley transform.

    Each step doubles the number of terms of Σ Aᵏ Q Aᵏᴴ: about log₂(36/(1 - ρ)) steps for a spectral
    radius ρ, of O(n³) each. It serves arrays of a device, where there is no Schur form.

    References
    ----------
    Smith, SIAM J. Appl. Math. 16 (1968); Penzl, SIAM J. Sci. Comput. 21 (2000).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Discrete
    >>> from ssmreduce.equations.solvers import SmithDoubling
    >>> A, Q = np.array([[0.5, 0.2], [0.0, 0.1]]), np.eye(2)
    >>> X = SmithDoubling().solution(A, Q, Discrete()).value
    >>> bool(abs(A @ X @ A.T - X + Q).max() < 1e-14)
    True
    """

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        return self._checked_solution(A, Q, time)

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        _refuse_unstable(A, time)
        if not isinstance(time, Discrete):
            A, middle = smith.cayley(A, np.eye(A.shape[0]))
            Q = middle @ Q @ adjoint(middle)
        X, doublings = doubling.infinite_solution(A, Q)
        return Answer(X, self, doublings)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z."""
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        _refuse_unstable(A, time)
        if not isinstance(time, Discrete):
            A, B = smith.cayley(A, B)
        Z, doublings = doubling.infinite_factor(A, B)
        return Answer(Z, self, doublings)


@dataclass(frozen=True)
class MatrixSign(LyapunovSolver):
    """Matrix sign iteration for continuous equations with a stable A: products and inverses only.

    It converges quadratically, most often in 6 to 12 iterations of O(n³), and loses digits where
    poles lie near the imaginary axis.

    References
    ----------
    Roberts, Int. J. Control 32 (1980); Benner and Quintana-Ortí, Numer. Algorithms 20 (1999).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.solvers import MatrixSign
    >>> A, Q = np.array([[-1.0, 2.0], [0.0, -3.0]]), np.eye(2)
    >>> X = MatrixSign().solution(A, Q, Continuous()).value
    >>> bool(abs(A @ X + X @ A.T + Q).max() < 1e-13)
    True
    """

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X."""
        return self._checked_solution(A, Q, time)

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        self._refuse_discrete(time)
        X, iterations = _inverting(matrix_sign.sign_solution, A, Q)
        return Answer(X, self, iterations)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z."""
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        self._refuse_discrete(time)
        Z, iterations = _inverting(matrix_sign.sign_factor, A, B)
        return Answer(Z, self, iterations)

    def _refuse_discrete(self, time: TimeDomain) -> None:
        if isinstance(time, Discrete):
            raise UnsupportedEquationError(
                "`solver` is MatrixSign(), which is for continuous equations; `time` is "
                f"{time!r}. Use SmithDoubling(), its discrete counterpart."
            )


@dataclass(frozen=True)
class LowRankADI(LyapunovSolver):
    """Low-rank ADI with a few real shifts: thin factors where inputs are few, O(n² m) per step.

    It pays where the poles lie in a region that a few real shifts cover, and converges slowly for
    lightly damped modes. A must be stable.

    References
    ----------
    Wachspress, Appl. Math. Lett. 1 (1988); Penzl, SIAM J. Sci. Comput. 21 (2000); Benner, Kürschner
    and Saak, Numer. Algorithms 62 (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.solvers import LowRankADI
    >>> A = np.diag(-np.linspace(1.0, 2.0, 100))
    >>> B = np.ones((100, 1))
    >>> Z = LowRankADI().factor(A, B, Continuous()).value
    >>> X = Z @ Z.T
    >>> Z.shape[1] < 30, bool(abs(A @ X + X @ A.T + B @ B.T).max() < 1e-13)
    (True, True)
    """

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z with as many columns as inputs times steps.

        Raises
        ------
        NoConvergenceError
            If the iteration does not converge, would take too many steps or columns, or A has an
            unstable mode.
        """
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        solves = ShiftedSolves(A.astype(np.result_type(A, B), copy=False), time)
        plan = plan_low_rank(solves, B.shape[1])
        result = None
        if plan is not None:
            result = low_rank_gramian(solves, B, plan, check_stability=True)
        if result is None:
            raise NoConvergenceError(
                "LowRankADI() does not converge within 400 steps and 2.5 columns for each state: `A` has "
                "modes that real shifts damp too slowly, an unstable mode, or too many inputs. Use "
                "Hammarling()."
            )
        return Answer(result.Z, self, result.steps)


@dataclass(frozen=True)
class SlycotLyapunov(LyapunovSolver):
    """SLICOT's SB03MD (for X) and SB03OD (for a factor) through Slycot: real equations, for
    comparison.

    Needs the package ``slycot``; a `MissingBackendError` says how to install it.

    References
    ----------
    Benner, Mehrmann, Sima, Van Huffel and Varga, SLICOT, Applied and Computational Control,
    Signals, and Circuits 1 (1999).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.solvers import SlycotLyapunov
    >>> A, Q = np.array([[-1.0, 2.0], [0.0, -3.0]]), np.eye(2)
    >>> X = SlycotLyapunov().solution(A, Q, Continuous()).value
    >>> bool(abs(A @ X + X @ A.T + Q).max() < 1e-14)
    True
    """

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X; Q must be symmetric."""
        return self._checked_solution(A, Q, time)

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        slycot = self._backend(A, Q)
        result = slycot.sb03md57(
            A.copy(order="F"), C=-Q.copy(order="F"), dico=_dico(time), trana="T"
        )
        # Returned in the order of the Fortran arguments: A, U, X, scale, ...
        return Answer(np.asarray(result[2] / result[3]), self)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z."""
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
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
        """Say how X would be computed.

        Parameters
        ----------
        A : (..., n, n) array
            State matrix.

        Returns
        -------
        LyapunovChoice
            `DiagonalLyapunov` for a diagonal A, else `BartelsStewart`.

        Raises
        ------
        ShapeError, NonFiniteError
            If A is not square, or holds NaN or Inf.
        """
        return self._choice(to_double(state_matrix(A)))

    def _choice(self, A: HostArray) -> LyapunovChoice:
        if np.count_nonzero(A) == np.count_nonzero(A.diagonal()):
            return LyapunovChoice(
                DiagonalLyapunov(), "`A` is diagonal: the solution is known entrywise"
            )
        return LyapunovChoice(BartelsStewart(), "`A` is dense: the Schur form is backward stable")

    def select_factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> LyapunovChoice:
        """Say how Z would be computed.

        Parameters
        ----------
        A : (n, n) array
            State matrix.
        B : (n, m) array
            Input matrix.
        time : Continuous or Discrete
            Time domain.

        Returns
        -------
        LyapunovChoice
            `DiagonalLyapunov` for a diagonal A; `LowRankADI`, with `Hammarling` to fall back on,
            where that is predicted to be cheaper; else `Hammarling`.

        Raises
        ------
        ShapeError, NonFiniteError, TimeDomainError
            If an argument is not what it should be, or A has batch axes.
        """
        return self._factor_choice(*single_equation(A, B, "B", time), time)

    def _factor_choice(self, A: HostArray, B: HostArray, time: TimeDomain) -> LyapunovChoice:
        if np.count_nonzero(A) == np.count_nonzero(A.diagonal()):
            return LyapunovChoice(
                DiagonalLyapunov(), "`A` is diagonal: the factor follows from (λ, B)"
            )
        n, route = A.shape[0], None
        if n >= SMALLEST_FOR_LOW_RANK:
            route = choose_low_rank(A.astype(np.result_type(A, B), copy=False), B.shape[1], time)
        if route is not None:
            reason = f"{route[1].steps} steps with {len(set(route[1].shifts))} shifts are predicted"
            return LyapunovChoice(LowRankADI(), reason, Hammarling())
        reason = "no low-rank iteration is predicted to be cheaper than the Schur form"
        return LyapunovChoice(Hammarling(), f"{n} states: {reason}")

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Return X by the solver selected."""
        return self._checked_solution(A, Q, time)

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        return self._choice(A).solver._solution(A, Q, time)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Return Z by the solver selected."""
        return self._checked_factor(A, B, time)

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        choice = self._factor_choice(A, B, time)
        try:
            return choice.solver._factor(A, B, time)
        except NoConvergenceError:
            if choice.fallback is None:
                raise
            return choice.fallback._factor(A, B, time)


def _dico(time: TimeDomain) -> str:
    return "D" if isinstance(time, Discrete) else "C"


def _diagonal_of(A: HostArray) -> HostArray:
    if np.count_nonzero(A) != np.count_nonzero(A.diagonal()):
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
