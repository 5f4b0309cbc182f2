"""The relative residual by which every solution of a Lyapunov equation is measured."""

from __future__ import annotations

import numpy as np

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.time_domain import Discrete, TimeDomain


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

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.equations.residual import relative_residual
    >>> relative_residual(-np.eye(2), np.eye(2), 2 * np.eye(2), time=Continuous())
    0.0
    """
    if isinstance(time, Discrete):
        sizes = [_power_of_two(X), _power_of_two(Q)]
        common = max(sizes)
        X, Q = X / common, Q / common
        remainder = product(product(A, X), adjoint(A)) - X + Q
        scale = (np.linalg.norm(A) ** 2 + 1.0) * np.linalg.norm(X) + np.linalg.norm(Q)
    else:
        # In the units of each matrix, so that no product over- or underflows.
        a, x = _power_of_two(A), _power_of_two(X)
        A, X = A / a, X / x
        Q = Q / a / x
        half = product(A, X)
        remainder = half + product(X, adjoint(A)) + Q
        scale = 2.0 * np.linalg.norm(A) * np.linalg.norm(X) + np.linalg.norm(Q)
    return float(np.linalg.norm(remainder) / scale) if scale != 0.0 else 0.0


def _power_of_two(matrix: HostArray) -> float:
    """The power of two just above the largest entry, or 1.0: dividing by it is exact."""
    largest = float(np.abs(matrix).max(initial=0.0))
    return float(2.0 ** np.frexp(largest)[1]) if largest > 0.0 else 1.0
