"""The relative residual of Lyapunov equations for arrays of any library, and its limit."""

from __future__ import annotations

from ssmreduce._array_libraries import Array, adjoint, namespace
from ssmreduce.time_domain import TimeDomain

BACKWARD_STABLE = 8.0
"""c of the residual c (n + 10) eps up to which a solution counts as backward stable: measured it
stays below 1 for the direct solvers, and below 4 for those that iterate, except near the stability
boundary and for A far from normal: there these lose digits, and say so."""


def factor_residual(A: Array, Z: Array, B: Array, *, time: TimeDomain) -> Array:
    """Return the residual of X = Z Zᴴ for Q = B Bᴴ, see `stacked_residual`."""
    return stacked_residual(A, Z @ adjoint(Z), B @ adjoint(B), time=time)


def stacked_residual(A: Array, X: Array, Q: Array, *, time: TimeDomain) -> Array:
    """Return the residual of `equations.residual.relative_residual`, shape (...), with leading axes.

    NaN where a product overflows.
    """
    xp = namespace(A)
    size = xp.linalg.matrix_norm
    scale = time.lyapunov_size(size(A)) * size(X) + size(Q)
    return size(time.lyapunov(A, X) + Q) / xp.where(scale > 0.0, scale, 1.0)
