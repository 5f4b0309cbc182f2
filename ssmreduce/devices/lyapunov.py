"""Lyapunov equations where the arrays are: doubling in discrete time, the matrix sign in continuous time.

Both need a stable A. Equations with another A, and results that are not as accurate as those of the host,
which is measured, are left to the host.
"""

from __future__ import annotations

from typing import NamedTuple

from ssmreduce._array_libraries import (
    Array,
    adjoint,
    common_precision,
    has_doubles,
    in_library_of,
    is_traced,
    namespace,
    refuted,
)
from ssmreduce._array_routes import NoNativeRoute, deciding_array
from ssmreduce.devices import doubling, matrix_sign
from ssmreduce.devices.residual import BACKWARD_STABLE, stacked_residual
from ssmreduce.time_domain import Discrete, TimeDomain


class NativeAnswer(NamedTuple):
    """X or Z, the largest residual, whether it is traced, and the number of iterations."""

    value: Array
    residual: Array
    traced: bool
    iterations: int | None


def solve(A: Array, right: Array, time: TimeDomain, *, factor: bool) -> NativeAnswer:
    """Solve A X + X Aᴴ + Q = 0 or A X Aᴴ - X + Q = 0 for X, or for its factor with Q = B Bᴴ.

    Raises
    ------
    NoNativeRoute
        If A is not stable, or the residual is too large.
    """
    like = deciding_array(A, right)
    if not has_doubles(like) and not is_traced(like):
        raise NoNativeRoute("it holds 32-bit numbers only (for JAX see jax_enable_x64)")
    A, right = common_precision(*(in_library_of(x, like) for x in (A, right)))
    xp = namespace(A)
    if A.shape[-1] == 0 or right.shape[-1] == 0:
        raise NoNativeRoute("there is nothing to compute")
    value, done, iterations = _iterated(A, right, time, factor=factor)
    traced = is_traced(value)
    if traced:
        value = xp.where(done, 1.0, xp.nan)[..., None, None] * value
    elif refuted(done):
        raise NoNativeRoute("`A` is not stable, or an eigenvalue is too near the boundary")
    X, Q = value, right
    if factor:
        X, Q = value @ adjoint(value), right @ adjoint(right)
    residual = xp.max(stacked_residual(A, X, Q, time=time))
    limit = BACKWARD_STABLE * (A.shape[-1] + 10) * xp.finfo(A.dtype).eps
    if not traced and not bool(residual <= limit):
        raise NoNativeRoute("the iteration lost digits that a Schur form keeps")
    return NativeAnswer(value, residual, traced, iterations)


def _iterated(
    A: Array, right: Array, time: TimeDomain, *, factor: bool
) -> tuple[Array, Array, int | None]:
    """X or Z, whether it is one, shape (...), and the iterations."""
    if factor:
        (Z,), done, iterations = iterated_factors(A, time, right)
        return Z, done, iterations
    if isinstance(time, Discrete):
        return doubling.infinite_sum(A, right)
    X, done, stable, iterations = matrix_sign.sign_sum(A, right)
    return X, done & stable, iterations


def iterated_factors(
    A: Array, time: TimeDomain, *generators: Array
) -> tuple[list[Array], Array, int | None]:
    """Z for B and Y for Cᴴ, or one of them, whether they are factors, and the iterations."""
    if isinstance(time, Discrete):
        return doubling.infinite_factors(A, *generators)
    factors, done, stable, iterations = matrix_sign.sign_factors(A, *generators)
    return factors, done & stable, iterations
