"""The Bartels-Stewart method in blocks: any right-hand side, any A whose equation has a solution.

With the Schur form A = W T Wᴴ the equation for Wᴴ X W is solved from the last block column to the
first; each column costs one product with the columns already known and a block back substitution.
Cost: the Schur form and O(n³) in matrix products. The residual is backward stable, of the order of
n eps ‖A‖ ‖X‖; the error is larger by the condition of the equation, 1/min|λ_i + conj λ_j|
or 1/min|1 - λ_i conj λ_j| for a normal A.

Reference: Bartels and Stewart, Comm. ACM 15 (1972); Kitagawa, Int. J. Control 25 (1977).
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import product
from ssmreduce.equations.triangular import (
    diagonal_blocks,
    solve_stein_column,
    solve_sylvester_column,
)
from ssmreduce.time_domain import Discrete, TimeDomain


def solve_schur(T: HostArray, Q: HostArray, time: TimeDomain) -> HostArray:
    """Return X with T X + X Tᴴ + Q = 0 or T X Tᴴ - X + Q = 0 for T in Schur form.

    Parameters
    ----------
    T : (n, n) array
        Upper triangular, or upper quasi-triangular if it is real.
    Q : (n, n) array
        Right-hand side in the coordinates of T, of the same dtype; need not be Hermitian.
    time : Continuous or Discrete
        Time domain.

    Returns
    -------
    (n, n) array
        X.
    """
    X = np.zeros(Q.shape, dtype=Q.dtype, order="F")
    edges, discrete = diagonal_blocks(T), isinstance(time, Discrete)
    for first, last in reversed(edges):
        S, F = T[first:last, first:last], Q[:, first:last].copy()
        if last < len(T):
            known = product(X[:, last:], adjoint(T[first:last, last:]))
            F += product(T, known) if discrete else known
        if discrete:
            X[:, first:last], _ = solve_stein_column(T, edges, S, F, np.zeros_like(F))
        else:
            X[:, first:last] = solve_sylvester_column(T, edges, S, -F)
    return X
