"""What a solver of Lyapunov equations is, yours too, what it answers, and how a choice is told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.equations.arguments import single_equation
from ssmreduce.equations.dense import even_units
from ssmreduce.errors import UnsupportedEquationError
from ssmreduce.time_domain import TimeDomain


@dataclass(frozen=True, eq=False)
class Answer:
    """A solution or factor, the number of iterations if the method iterates, and who gave it."""

    value: HostArray
    solver: LyapunovSolver
    iterations: int | None = None


class LyapunovSolver:
    """A method for A X + X Aᴴ + Q = 0 (continuous) and A X Aᴴ - X + Q = 0 (discrete).

    A solver has `solution`, or `factor`, or both; the one it lacks raises. Both take one equation
    in NumPy arrays. A class of your own goes to ``solver=`` of `solve_lyapunov` like those of the
    package, and `solve_lyapunov` measures its residual.

    Examples
    --------
    The sum of all terms Aᵏ Q Aᵏᴴ, for a discrete equation with A of small norm:

    >>> import numpy as np
    >>> from ssmreduce import Discrete, solve_lyapunov
    >>> from ssmreduce.equations.solvers import Answer, LyapunovSolver
    >>> class Series(LyapunovSolver):
    ...     def solution(self, A, Q, time):
    ...         X = term = Q
    ...         while np.linalg.norm(term) > 1e-17 * np.linalg.norm(X):
    ...             term = A @ term @ A.conj().T
    ...             X = X + term
    ...         return Answer(X, self)
    >>> solve_lyapunov([[0.5]], [[3.0]], time=Discrete(), solver=Series()).value.tolist()
    [[4.0]]
    """

    def solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Solve for X.

        Parameters
        ----------
        A : (n, n) array
            Real or complex.
        Q : (n, n) array
            Right-hand side.
        time : Continuous or Discrete
            Time domain.

        Returns
        -------
        Answer
            With X in ``value``, of shape (n, n), the solver and its number of iterations.

        Raises
        ------
        UnsupportedEquationError
            If the solver computes factors only, or cannot treat this equation.
        ShapeError, NonFiniteError, TimeDomainError
            If an argument is not what it should be.
        NoConvergenceError
            If the equation is singular to working precision, or an iteration fails.
        UnstableSystemError
            If A is not stable and the solver needs that.
        """
        raise UnsupportedEquationError(
            f"`solver` is {self!r}, which computes factors only; expected a solver of the whole "
            "equation. Use BartelsStewart(), or solve_lyapunov_factor with this one."
        )

    def _solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """`solution` of an equation that is checked, in `even_units`."""
        return self.solution(A, Q, time)

    def _checked_solution(self, A: HostArray, Q: HostArray, time: TimeDomain) -> Answer:
        """Check the arguments, and go to even units and back."""
        A, Q = single_equation(A, Q, "Q", time)
        A, units, root_rate = even_units(A, time)
        columns = np.ravel(units)
        answer = self._solution(A, Q / units / columns / root_rate / root_rate, time)
        return replace(answer, value=answer.value * units * columns)

    def factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """Solve for Z, with X = Z Zᴴ the solution for Q = B Bᴴ; A must be stable.

        Parameters
        ----------
        A : (n, n) array
            Real or complex, stable.
        B : (n, m) array
            Input matrix.
        time : Continuous or Discrete
            Time domain.

        Returns
        -------
        Answer
            With Z in ``value``, of shape (n, k), the solver and its number of iterations.

        Raises
        ------
        UnsupportedEquationError
            If the solver computes X itself only, or cannot treat this equation.
        ShapeError, NonFiniteError, TimeDomainError
            If an argument is not what it should be.
        NoConvergenceError
            If an iteration fails.
        UnstableSystemError
            If A is not stable.
        """
        raise UnsupportedEquationError(
            f"`solver` is {self!r}, which computes X itself only; expected a solver of factors. "
            "Use Hammarling(), or solve_lyapunov with this one."
        )

    def _factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """`factor` of such an equation."""
        return self.factor(A, B, time)

    def _checked_factor(self, A: HostArray, B: HostArray, time: TimeDomain) -> Answer:
        """As `_checked_solution`."""
        A, B = single_equation(A, B, "B", time)
        A, units, root_rate = even_units(A, time)
        answer = self._factor(A, B / units / root_rate, time)
        return replace(answer, value=answer.value * units)


@dataclass(frozen=True)
class LyapunovChoice:
    """What `AutoLyapunov` picks, and why.

    Attributes
    ----------
    solver : LyapunovSolver
        The solver that it runs.
    reason : str
        Why, in words.
    fallback : LyapunovSolver or None
        What it runs where `solver` does not converge; None where it always does.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.equations.solvers import AutoLyapunov
    >>> choice = AutoLyapunov().select(np.diag([-1.0, -2.0]))
    >>> choice.solver, choice.reason
    (DiagonalLyapunov(), '`A` is diagonal: the solution is known entrywise')
    """

    solver: LyapunovSolver
    reason: str
    fallback: LyapunovSolver | None = None
