"""The reciprocal of a system about the point s of its DC gain: G(s + 1/w) as a function of w.

    (A, B, C, D) -> ((A - s)⁻¹, (A - s)⁻¹ B, -C (A - s)⁻¹, D - C (A - s)⁻¹ B),

s = 0 in continuous and s = 1 in discrete time; the same map with A - s and its inverse exchanged leads
back. Projections that balance the system balance its reciprocal. DC matching is
the truncation of the reciprocal system, taken back: with A, B, C in blocks of kept and
other states this is A₁₁ - A₁₂ (A₂₂ - s)⁻¹ A₂₁ and so on, but neither A₂₂ nor the noise in the
states beyond the numerical rank is ever touched. Cost O(n³) for a dense system, once; digits are lost
with the condition number of A - s, as in any DC gain.

References: Liu and Anderson, Int. J. Control 50 (1989); Al-Saggaf and Franklin, IEEE Trans.
Automatic Control 33 (1988).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import OrderError
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete, TimeDomain

_SINGULAR = 10.0
"""Safety factor c of c r eps: a matrix of order r whose reciprocal condition number is below that may
be singular for all that its digits tell."""

_LARGEST_GROWTH = float(np.finfo(np.float64).eps) ** -0.5
"""Growth of rounding at which half of the digits are left."""


def dc_point(time: TimeDomain) -> float:
    """Return s with G(s) the DC gain: 1 in discrete, 0 in continuous time."""
    return 1.0 if isinstance(time, Discrete) else 0.0


def dense_reciprocal(system: StateSpace) -> StateSpace:
    """Return the reciprocal of a dense system on the host, in the standard form."""
    return _invert_dense(system, dc_point(system.time), 0.0)


def dense_from_reciprocal(reciprocal: StateSpace) -> StateSpace:
    """Return the system that has this reciprocal."""
    return _invert_dense(reciprocal, 0.0, dc_point(reciprocal.time))


def diagonal_reciprocal(system: DiagonalStateSpace) -> DiagonalStateSpace:
    """Return the reciprocal of a diagonal system on the host, in the standard form."""
    if system.log_eigenvalues is not None:
        return _invert_diagonal(system, np.expm1(system.log_eigenvalues), 0.0)
    return _invert_diagonal(system, system.eigenvalues - dc_point(system.time), 0.0)


def diagonal_from_reciprocal(reciprocal: DiagonalStateSpace) -> DiagonalStateSpace:
    """Return the system that has this reciprocal, with poles s + 1/μ."""
    return _invert_diagonal(reciprocal, reciprocal.eigenvalues, dc_point(reciprocal.time))


def _invert_dense(system: StateSpace, before: float, after: float) -> StateSpace:
    """Replace A by (A - before)⁻¹ + after, and B, C, D as they follow."""
    identity = np.eye(system.order, dtype=system.A.dtype)
    shifted = scipy.linalg.lu_factor(system.A - before * identity)
    inverse = scipy.linalg.lu_solve(shifted, identity)
    driven = scipy.linalg.lu_solve(shifted, system.B)
    seen = adjoint(scipy.linalg.lu_solve(shifted, adjoint(system.C), trans=2))
    return StateSpace(
        inverse + after * identity, driven, -seen, system.D - system.C @ driven, time=system.time
    )


def _invert_diagonal(
    system: DiagonalStateSpace, distance: HostArray, after: float
) -> DiagonalStateSpace:
    inverse = 1.0 / distance
    driven = inverse[:, None] * system.B
    first = system.C @ driven
    return DiagonalStateSpace(
        inverse + after,
        driven,
        -system.C * inverse,
        system.D - (first.real if system.real_output else first),
        time=system.time,
        real_output=system.real_output,
    )


def reciprocal_poles(poles: HostArray, time: TimeDomain) -> HostArray:
    """Return s + 1/μ; inf for μ = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(dc_point(time) + 1.0 / poles)


def are_invertible(poles: HostArray) -> bool:
    """Whether no pole of a diagonal system is zero up to rounding."""
    sizes = np.abs(poles)
    return bool(sizes.min() > _SINGULAR * sizes.size * np.finfo(np.float64).eps * sizes.max())


def dense_after_update(system: StateSpace) -> StateSpace:
    """Return the same map read after the update: (A, B, C A⁻¹, D - C A⁻¹ B).

    Raises
    ------
    OrderError
        If A is singular in floating point, or so nearly that D - C A⁻¹ B costs half of the digits.
    """
    singular_values = np.linalg.svd(system.A, compute_uv=False)
    limit = _SINGULAR * system.order * np.finfo(np.float64).eps
    if singular_values[-1] > limit * singular_values[0]:
        C = adjoint(scipy.linalg.solve(adjoint(system.A), adjoint(system.C)))
        response = np.linalg.norm(system.D) + np.linalg.norm(system.C) * np.linalg.norm(system.B)
        if np.linalg.norm(C) * np.linalg.norm(system.B) <= _LARGEST_GROWTH * response:
            D = system.D - C @ system.B
            return StateSpace(system.A, system.B, C, D, time=system.time, read_after_update=True)
    raise OrderError(
        f"the reduced state matrix of order {system.order} is singular, or too nearly so, so that no system "
        "that reads its state after the update has the reduced map; expected poles other than 0. "
        "Try another order, or reduce system.to_standard()."
    )


def diagonal_after_update(system: DiagonalStateSpace) -> DiagonalStateSpace:
    """Return the same map read after the update; the poles must be invertible."""
    C = system.C / system.eigenvalues
    first = C @ system.B
    return DiagonalStateSpace(
        system.eigenvalues,
        system.B,
        C,
        system.D - (first.real if system.real_output else first),
        time=system.time,
        real_output=system.real_output,
        read_after_update=True,
    )
