"""The arguments of a Lyapunov equation, checked once for all functions and solvers."""

from __future__ import annotations

from ssmreduce import _checks
from ssmreduce._array_libraries import Array, HostArray, to_double
from ssmreduce.errors import ShapeError
from ssmreduce.time_domain import TimeDomain, check_time


def state_matrix(A: Array) -> Array:
    """Return A as a floating array of square matrices."""
    A = _checks.floating_array(A, "A", 2)
    if A.shape[-2] != A.shape[-1]:
        raise _checks.not_square(A)
    return A


def equation(A: Array, right: Array, name: str, time: TimeDomain) -> tuple[Array, Array]:
    """Return A and the right-hand side, Q or a factor B, as floating arrays that fit together."""
    check_time(time)
    A, right = _checks.floating_arrays({"A": A, name: right}, (2, 2))
    n = A.shape[-1]
    if A.shape[-2] != n:
        raise _checks.not_square(A)
    if right.shape[-2] != n or (name == "Q" and right.shape[-1] != n):
        raise ShapeError(
            f"`{name}` is {right.shape[-2]}x{right.shape[-1]} but `A` is {n}x{n}; expected `{name}` "
            f"of shape (..., {n}, {n if name == 'Q' else 'm'})."
        )
    if A.ndim == right.ndim == 2:
        return A, right
    batch = _checks.matching_batches({"A": tuple(A.shape[:-2]), name: tuple(right.shape[:-2])})
    if 0 in batch:
        raise ShapeError(
            f"`A` has batch axes {batch} and so no entries; expected at least one equation."
        )
    return A, right


def single_equation(
    A: Array, right: Array, name: str, time: TimeDomain
) -> tuple[HostArray, HostArray]:
    """Return the arrays of one equation in NumPy, as solvers take them."""
    A, right = equation(A, right, name, time)
    if A.ndim > 2:
        raise ShapeError(
            f"`A` has batch axes {tuple(A.shape[:-2])}; expected one equation. Use solve_lyapunov, or "
            "solve_lyapunov_factor."
        )
    return to_double(A), to_double(right)
