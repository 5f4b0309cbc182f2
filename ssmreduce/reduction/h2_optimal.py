"""H2-optimal refinement of a reduced system: interpolation at its own mirrored poles (IRKA, TSIA).

A reduced system G_r(s) = Σ c_i b_iᴴ/(s - λ_i) that minimises ‖G - G_r‖_H2 locally satisfies

    G(-λ̄_i) b_i = G_r(-λ̄_i) b_i,  c_iᴴ G(-λ̄_i) = c_iᴴ G_r(-λ̄_i),  c_iᴴ G'(-λ̄_i) b_i = c_iᴴ G_r'(-λ̄_i) b_i.

The fixed-point iteration projects onto the ranges of X and Y that solve

    A X + X A_rᴴ + B B_rᴴ = 0,   Aᴴ Y + Y A_r + Cᴴ C_r = 0,

columns (-λ̄_i - A)⁻¹ B b_i in other words, found as r shifted solves. Discrete time has λ̄_i⁻¹ for
-λ̄_i, and runs on a continuous system with the same norms (`h2_forms`). Cost per iteration: O(n² r) dense,
O(n r (m + p + r)) diagonal, after one Schur form of A.

The iteration need not converge, nor descend. Its errors are measured and the best system is kept.

References: Gugercin, Antoulas and Beattie, SIAM J. Matrix Anal. Appl. 30 (2008); Xu and Zeng,
IEEE Trans. Automatic Control 56 (2011); Bunse-Gerstner et al., J. Comput. Appl. Math. 233 (2010).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ssmreduce import _checks
from ssmreduce._boundary import any_library
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import (
    NoConvergenceError,
    OrderError,
    ShapeError,
    TimeDomainError,
    UnreachableToleranceError,
    UnstableSystemError,
)
from ssmreduce.hankel import state_count
from ssmreduce.reduction.balanced import balance
from ssmreduce.reduction.h2_forms import minimal, written_like
from ssmreduce.reduction.h2_plant import (
    DensePlant,
    DiagonalPlant,
    Plant,
    TriangularSystem,
    plant_of,
)
from ssmreduce.reduction.order import OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import slots_needed
from ssmreduce.time_domain import Continuous

_ROUNDING = 4.0
"""Errors within 4 n eps ‖G‖_H2 of each other are taken as equal: a few roundings per entry of Ĉ Z."""


@dataclass(frozen=True, eq=False)
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
        Whether the last step was below the tolerance. If not, `system` is still the best that was
        seen, and never worse than the start.

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
    h2_errors: HostArray = field(default_factory=lambda: np.zeros(1), repr=False)
    iterations: int = 0
    converged: bool = True


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
        stored state; iterates that need more than `order` of them are passed over.
    start : StateSpace or DiagonalStateSpace, optional
        Stable system of that order, of the same kind and sizes, to start from instead.
    iterations : int
        Upper limit on the number of iterations.
    tolerance : float
        The iteration stops when a step changes G_r by less than this share of its H2 norm.

    Returns
    -------
    H2Reduction
        With the best system seen: same kind, time and feedthrough; never one with a larger error
        than the start. Diagonal systems stay diagonal, with ‖b_k‖ = ‖c_k‖ for every stored state.

    Raises
    ------
    OrderError
        As in `balanced_truncation`, if `start` is of another order, or if `iterations` or
        `tolerance` is not positive.
    UnstableSystemError
        If the system or `start` is not stable.
    ShapeError, TimeDomainError
        If there are batch axes, or `start` does not fit the system.

    Notes
    -----
    Where the iteration does not converge, `converged` is False and rounding decides which iterate is best.
    The H2 norm is the root mean square of the output for white noise at the input. Errors are
    measured without subtracting squares (see `Plant.distance`), to about eps ‖G‖_H2 times the
    square root of σ₁/σ_r of the reduced system. Where the output is read after the update, G - G_r is
    multiplied with z, which leaves its norm as it is.

    References
    ----------
    Gugercin, Antoulas and Beattie, H2 model reduction for large-scale linear dynamical systems, SIAM J.
    Matrix Anal. Appl. 30 (2008).

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
        return _result(truncation, system, 0.0, [], state_count(system))
    plant = plant_of(system.to_host())
    limit = start.order if isinstance(system, DiagonalStateSpace) else None
    iterates = [_Iterate(plant, minimal(start))]
    while len(iterates) <= iterations and iterates[-1].step > tolerance:
        following = iterates[-1].next(limit)
        if following is None:
            break
        iterates.append(following)
    # Errors are flat at their minimum: of those that rounding cannot tell apart the last is nearest.
    errors = np.array([iterate.error for iterate in iterates])
    if not np.isfinite(errors[0]):
        raise UnreachableToleranceError(
            "the H2 error of `system` is beyond the range of double precision; expected one below 1e308. "
            "Scale `B` or `C`."
        )
    rounding = _ROUNDING * system.order * np.finfo(np.float64).eps * plant.norm()
    best = iterates[int(np.flatnonzero(errors <= errors.min() + rounding)[-1])]
    written, error = start, iterates[0].error
    if best is not iterates[0]:
        candidate = written_like(best.reduced, system)
        measured = np.inf if candidate is None else _Iterate(plant, minimal(candidate)).error
        if candidate is not None and measured <= error:
            written, error = candidate, measured
    return _result(truncation, written, error, iterates, iterates[0].reduced.order, tolerance)


class _Iterate:
    """A reduced system in continuous form, its error, and how far the last step went."""

    def __init__(self, plant: Plant, reduced: StateSpace, step: float = np.inf) -> None:
        self.plant = plant
        self.reduced = reduced
        self.step = step
        self._triangular = TriangularSystem.of(reduced)
        self._seen = plant.seen(self._triangular.triangle, self._triangular.C)
        self.error = plant.distance(self._triangular, self._seen)

    def next(self, limit: int | None) -> _Iterate | None:
        """Project onto X and Y; None where that gives no stable system of this order that responds.

        The error is inf where the poles need more than `limit` stored states.
        """
        plant, small = self.plant, self._triangular
        X, Y = plant.driven(small.triangle, small.B), self._seen
        if plant.real:
            # In the real states of the reduced system the solutions are real.
            X = adjoint(small.form.reached(adjoint(X))).real
            Y = adjoint(small.form.observed(adjoint(Y))).real
        if not (np.all(np.isfinite(X)) and np.all(np.isfinite(Y))):
            return None
        V, W = np.linalg.qr(X)[0], np.linalg.qr(Y)[0]
        projected = adjoint(W) @ np.concatenate([plant.apply(V), plant.B], axis=1)
        try:
            projected = np.linalg.solve(adjoint(W) @ V, projected)
            A = _stable(projected[:, : V.shape[1]])
        except np.linalg.LinAlgError:
            return None
        if not np.all(np.isfinite(A)):
            return None
        following = StateSpace(A, projected[:, V.shape[1] :], plant.C @ V, time=Continuous())
        try:
            there = DensePlant(following)
            size = there.norm()
            if size == 0.0:
                return None
            step = there.distance(small, there.seen(small.triangle, small.C)) / size
            iterate = _Iterate(plant, following, step)
        except (NoConvergenceError, UnstableSystemError):
            # A pole so near to the boundary that its Gramian cannot be computed.
            return None
        real_output = isinstance(plant, DiagonalPlant) and plant.real_output
        if limit is not None and slots_needed(following.poles(), real=real_output) > limit:
            iterate.error = np.inf
        return iterate


def _stable(A: HostArray) -> HostArray:
    """Mirror the unstable eigenvalues of A at the imaginary axis."""
    poles, vectors = np.linalg.eig(A)
    if np.all(poles.real < 0):
        return A
    decay = np.maximum(np.abs(poles.real), np.finfo(np.float64).eps * np.abs(poles))
    mirrored = np.linalg.solve(adjoint(vectors), adjoint(vectors * (1j * poles.imag - decay)))
    return adjoint(mirrored) if np.iscomplexobj(A) else adjoint(mirrored).real


def _result(
    truncation: Reduction,
    reduced: System,
    error: float,
    iterates: list[_Iterate],
    real_order: int,
    tolerance: float = 0.0,
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
        h2_errors=np.array([iterate.error for iterate in iterates] or [0.0]),
        iterations=max(len(iterates) - 1, 0),
        converged=not iterates or iterates[-1].step <= tolerance,
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
    flags = [
        (each.read_after_update, isinstance(each, DiagonalStateSpace) and each.real_output)
        for each in (start, system)
    ]
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
