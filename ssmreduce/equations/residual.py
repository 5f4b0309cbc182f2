"""The relative residual by which every solution of a Lyapunov equation is measured."""

from __future__ import annotations

from ssmreduce._array_libraries import HostArray, adjoint, to_double
from ssmreduce._checks import numeric_array
from ssmreduce._lapack import frobenius_norm, power_of_two, product
from ssmreduce.errors import ShapeError
from ssmreduce.time_domain import Discrete, TimeDomain, check_time


def relative_residual(A: HostArray, X: HostArray, Q: HostArray, *, time: TimeDomain) -> float:
    """Return ‖A X + X Aᴴ + Q‖ / (2 ‖A‖ ‖X‖ + ‖Q‖), or ‖A X Aᴴ - X + Q‖ / ((‖A‖² + 1) ‖X‖ + ‖Q‖).

    In Frobenius norms: the size of a relative change of A and Q that would make X exact. A backward
    stable solver leaves n eps times a small constant.

    Parameters
    ----------
    A, X, Q : (n, n) array
        State matrix, solution and right-hand side.
    time : Continuous or Discrete
        Time domain.

    Returns
    -------
    float
        0.0 where everything is zero; NaN where something is.

    Raises
    ------
    ShapeError
        If the arrays are not square matrices of one size.
    TimeDomainError
        If `time` is not a time domain.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.residual import relative_residual
    >>> relative_residual(-np.eye(2), np.eye(2), 2 * np.eye(2), time=Continuous())
    0.0
    """
    check_time(time)
    A, X, Q = (to_double(numeric_array(x, name, 2)) for name, x in (("A", A), ("X", X), ("Q", Q)))
    if not A.ndim == 2 or not A.shape == X.shape == Q.shape == A.shape[::-1]:
        raise ShapeError(
            f"`A`, `X` and `Q` have shapes {A.shape}, {X.shape} and {Q.shape}; expected square matrices of "
            "one size. Index a batch first."
        )
    return residual_of(A, X, Q, time)


def residual_of(A: HostArray, X: HostArray, Q: HostArray, time: TimeDomain) -> float:
    """The same of square matrices that are known to be some."""
    if isinstance(time, Discrete):
        # All terms over the square of the size of A, where that is above 1: no product overflows.
        common, a = max(power_of_two(X), power_of_two(Q)), max(power_of_two(A), 1.0)
        A, X, Q = A / a, X / common, Q / common / a / a
        remainder = product(product(A, X), adjoint(A)) - X / a / a + Q
        scale = (frobenius_norm(A) ** 2 + 1.0 / a / a) * frobenius_norm(X) + frobenius_norm(Q)
    else:
        # In the units of each matrix, so that no product over- or underflows.
        a, x = power_of_two(A), power_of_two(X)
        A, X = A / a, X / x
        Q = Q / a / x
        half = product(A, X)
        remainder = half + product(X, adjoint(A)) + Q
        scale = 2.0 * frobenius_norm(A) * frobenius_norm(X) + frobenius_norm(Q)
    return float(frobenius_norm(remainder) / scale) if scale != 0.0 else 0.0
