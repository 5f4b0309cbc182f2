"""H2-optimal refinement of a reduced system: interpolation at its own mirrored poles (IRKA, TSIA).

A reduced system G_r(s) = Σ c_i b_iᴴ/(s - λ_i) that minimises ‖G - G_r‖_H2 locally satisfies

    G(-λ̄_i) b_i = G_r(-λ̄_i) b_i,  c_iᴴ G(-λ̄_i) = c_iᴴ G_r(-λ̄_i),  c_iᴴ G'(-λ̄_i) b_i = c_iᴴ G_r'(-λ̄_i) b_i.

The fixed-point iteration projects onto the ranges of X and Y that solve

    A X + X A_rᴴ + B B_rᴴ = 0,   Aᴴ Y + Y A_r + Cᴴ C_r = 0,

columns (-λ̄_i - A)⁻¹ B b_i in other words, found as r shifted solves. Discrete time has λ̄_i⁻¹ for
-λ̄_i, and runs on a continuous system with the same norms (`h2_forms`). Cost per iteration: O(n² r) dense,
O(n r (m + p + r)) diagonal, after one Schur form of A.

That iteration need not converge, nor descend: after a few steps their lengths are chosen (`h2_descent`). All
errors are measured and the best system is kept.

References: Gugercin, Antoulas and Beattie, SIAM J. Matrix Anal. Appl. 30 (2008); Xu and Zeng,
IEEE Trans. Automatic Control 56 (2011); Bunse-Gerstner et al., J. Comput. Appl. Math. 233 (2010).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray
from ssmreduce._array_routes import any_library
from ssmreduce._display import short
from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import (
    OrderError,
    ShapeError,
    TimeDomainError,
    UnreachableToleranceError,
)
from ssmreduce.reduction.balanced import balance
from ssmreduce.reduction.h2_descent import Iterate, descend
from ssmreduce.reduction.h2_forms import minimal, written_like
from ssmreduce.reduction.h2_plant import (
    DiagonalPlant,
    plant_of,
)
from ssmreduce.reduction.order import OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system

_ROUNDING = 4.0
"""Errors within 4 n eps ‖G‖_H2 of each other are taken as equal: a few roundings per entry of Ĉ Z."""


@dataclass(frozen=True, eq=False, repr=False)
class H2Reduction(Reduction):
    """Result of `h2_optimal`: a `Reduction`, and how the iteration went.

    `left` and `right` are None and there is no `error_bound`; `wanted_order`, `rank` and `hsv` are those of
    balanced truncation.

    Attributes
    ----------
    h2_error : float
        ‖G - G_r‖_H2 of `system` as it stands, its feedthrough being that of the original.
    h2_errors : (iterations + 1,) array
        The same for the start and for every iterate; inf for one that was of no use (its poles
        need more stored states than asked for, or it was not finite).
    iterations : int
        Iterations that were done.
    converged : bool
        Whether the last step, over its length if that is below 1, was below the tolerance. If not,
        `system` is still the best that was found, and never worse than the start.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.h2_optimal import h2_optimal
    >>> system = DiagonalStateSpace(
    ...     [0.9, 0.5, -0.3], np.ones((3, 1)), [[1.0, 2.0, 1.0]], time=Discrete()
    ... )
    >>> result = h2_optimal(system, 1)
    >>> result.converged, bool(result.h2_error < result.h2_errors[0])
    (True, True)
    """

    h2_error: float = 0.0
    h2_errors: HostArray = field(default_factory=lambda: np.zeros(1))
    iterations: int = 0
    converged: bool = True

    def __repr__(self) -> str:
        return (
            f"H2Reduction({self._orders()}, h2_error={short(self.h2_error)}, "
            f"iterations={self.iterations}, converged={self.converged})"
        )


@any_library()
def h2_optimal(
    system: System,
    order: int | OrderRule,
    *,
    start: System | None = None,
    iterations: int = 100,
    tolerance: float = 1e-8,
) -> H2Reduction:
    """Reduce a system to a local minimum of ‖G - G_r‖_H2, starting from balanced truncation.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable, without batch axes.
    order : int or OrderRule
        As in `balanced_truncation`. Real poles of a diagonal system with real output take a whole
        stored state; iterates that need more than `order` of them are skipped.
    start : StateSpace or DiagonalStateSpace, optional
        Stable system of that order, of the same kind and sizes, to start from instead.
    iterations : int
        Upper limit on the number of iterations.
    tolerance : float
        The iteration stops when a step changes G_r by less than this share of its H2 norm.

    Returns
    -------
    H2Reduction
        With the best system found: same kind, time and feedthrough; never one with a larger error
        than the start. Diagonal systems stay diagonal, with ‖b_k‖ = ‖c_k‖ for every stored state.

    Raises
    ------
    OrderError, ArgumentError
        As in `balanced_truncation`, if `start` is of another order, or if `iterations` or
        `tolerance` is not positive.
    UnstableSystemError
        If the system or `start` is not stable.
    ShapeError, TimeDomainError
        If there are batch axes, or `start` does not fit the system.
    UnreachableToleranceError
        If the H2 error leaves the range of double precision.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Where the fixed-point iteration has not converged after ten steps, a descent with a line search
    continues from the best of its systems. But for rounding, it reaches the same local minimum in
    any units of the states. The H2 norm is the root mean square of the output for white noise at
    the input. Errors are measured without subtracting squares, to about eps ‖G‖_H2 times the square
    root of σ₁/σ_r of the reduced system. Where the output is read after the update, G - G_r is
    multiplied by z, which leaves its norm as it is.

    References
    ----------
    Gugercin, Antoulas and Beattie, H2 model reduction for large-scale linear dynamical systems,
    SIAM J. Matrix Anal. Appl. 30 (2008); Xu and Zeng, IEEE Trans. Automatic Control 56 (2011);
    Mlinarić, Beattie, Drmač and Gugercin, IEEE Trans. Automatic Control 70 (2025), for the descent.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.reduction.h2_optimal import h2_optimal
    >>> A, B, C = np.diag([-1.0, -2.0, -3.0]), np.ones((3, 1)), [[1.0, -2.0, 2.0]]
    >>> result = h2_optimal(StateSpace(A, B, C, time=Continuous()), 1)
    >>> round(float(result.h2_errors[0]), 4), round(result.h2_error, 4)  # balanced truncation first
    (0.0956, 0.0940)
    """
    check_system(system)
    iterations = _checks.positive_count(iterations, "iterations", "how many steps it may take")
    tolerance = _checks.fraction(tolerance, "tolerance")
    if system.batch_shape:
        raise ShapeError(
            f"`system` has batch axes {system.batch_shape}; expected a single system. "
            "Index it first: system[0]."
        )
    truncation = balance(system).truncate(order)
    if start is None:
        start = truncation.system
    else:
        _check_start(start, system, order if isinstance(order, int) else int(truncation.order))
    if start is system or system.order == 0:
        return _result(truncation, system, 0.0, np.zeros(1), system.real_order)
    plant = plant_of(system.to_host())
    limit = start.order if isinstance(system, DiagonalStateSpace) else None
    first = Iterate(plant, minimal(start))
    if not np.isfinite(first.error):
        raise UnreachableToleranceError(
            "the H2 error of `system` is beyond the range of double precision; expected one below 1e308. "
            "Scale `B` or `C`."
        )
    rounding = _ROUNDING * system.order * np.finfo(np.float64).eps * plant.norm()
    iterates, converged = descend(first, iterations, tolerance, rounding)
    errors = np.array([_usable_error(iterate, limit) for iterate in iterates])
    best = iterates[int(np.flatnonzero(errors <= errors.min() + rounding)[-1])]
    written, error = start, first.error
    if best is not first:
        candidate = written_like(best.reduced, system)
        measured = np.inf if candidate is None else Iterate(plant, minimal(candidate)).error
        if candidate is not None and measured <= error:
            written, error = candidate, measured
    return _result(truncation, written, error, errors, first.reduced.order, converged)


def _usable_error(iterate: Iterate, limit: int | None) -> float:
    """The error; inf where a diagonal system has more poles than `limit` stored states hold."""
    plant = iterate.plant
    real = isinstance(plant, DiagonalPlant) and plant.real_output
    if limit is None or iterate.previous is None:
        return iterate.error
    poles = iterate.reduced.poles()
    # Of a real system a conjugate pair takes one stored state.
    slots = np.count_nonzero(poles.imag >= 0.0) if real else poles.size
    return iterate.error if slots <= limit else np.inf


def _result(
    truncation: Reduction,
    reduced: System,
    error: float,
    errors: HostArray,
    real_order: int,
    converged: bool = True,
) -> H2Reduction:
    return H2Reduction(
        original=truncation.original,
        system=reduced,
        order=reduced.order,
        real_order=real_order,
        wanted_order=truncation.wanted_order,
        rank=truncation.rank,
        hsv=truncation.hsv,
        error_bound=None,
        method="H2-optimal refinement",
        h2_error=error,
        h2_errors=errors,
        iterations=len(errors) - 1,
        converged=converged,
    )


def _check_start(start: System, system: System, order: int) -> None:
    if type(start) is not type(system) or start.batch_shape:
        raise ShapeError(
            f"`start` is a {_checks.type_name(start)}; expected a single "
            f"{_checks.type_name(system)}, as `system` is. Leave it out to start from balanced truncation."
        )
    if start.time != system.time:
        raise TimeDomainError(
            f"`start` has time {start.time!r} but the system has {system.time!r}; expected the same. "
            "Reduce the system in its own time domain."
        )
    found, expected = (start.outputs, start.inputs), (system.outputs, system.inputs)
    flags = [(each.read_after_update, each.real_output) for each in (start, system)]
    if found != expected or flags[0] != flags[1]:
        raise ShapeError(
            f"`start` is {found[0]}x{found[1]} with (read_after_update, real_output) = {flags[0]} but "
            f"the system is {expected[0]}x{expected[1]} with {flags[1]}; expected the same. "
            "Pass a reduction of this very system."
        )
    if start.order != order:
        raise OrderError(
            f"`start` has {start.order} states but `order` is {order}; expected the same. "
            "Pass order=start.order."
        )
    check_stable_system(start, "Leave it out to start from balanced truncation.", name="`start`")
