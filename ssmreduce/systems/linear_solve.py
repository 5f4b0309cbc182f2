"""M X = N for one square matrix M, refused where no digit of X would be right.

LAPACK's expert driver ``gesvx``: rows and columns are scaled first, so that a matrix which is only
badly scaled (units of 1e-12 beside units of 1e12) is not mistaken for a singular one, then LU,
condition estimate and one or two steps of iterative refinement. Cost 2n³/3 + O(n² columns).
Reference: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 7.3.
"""

from __future__ import annotations

import contextlib

import numpy as np
from scipy.linalg import get_lapack_funcs

from ssmreduce._array_libraries import HostArray


def singularity(size: int) -> float:
    """Reciprocal condition n·eps below which rounding of the entries may have hidden a singularity."""
    return size * float(np.finfo(np.float64).eps)


def solve_stacked(matrices: HostArray, right: HostArray) -> HostArray:
    """Return M_k⁻¹ N_k for stacks (K, n, n) and (K, n, m); NaN for every M_k with a zero pivot.

    Lower triangular ones are reversed: pivots of their columns would mix rows that substitution keeps apart.
    """
    if _is_lower(matrices):
        return _eliminated(matrices[:, ::-1, ::-1], right[:, ::-1])[:, ::-1]
    return _eliminated(matrices, right)


def _is_lower(matrices: HostArray) -> bool:
    n = matrices.shape[-1]
    if n < 2 or not len(matrices) or np.any(matrices[0, 0, 1:]):
        return False
    return not np.any(matrices[:, *np.triu_indices(n, 1)])


def _eliminated(matrices: HostArray, right: HostArray) -> HostArray:
    try:
        return np.linalg.solve(matrices, right)
    except np.linalg.LinAlgError:
        # LAPACK reports that one of them is singular, not which.
        solution = np.full(right.shape, np.nan, dtype=np.result_type(matrices, right))
        for k, (matrix, columns) in enumerate(zip(matrices, right, strict=True)):
            with contextlib.suppress(np.linalg.LinAlgError):
                solution[k] = np.linalg.solve(matrix, columns)
        return solution


def solve_conditioned(matrix: HostArray, right: HostArray) -> tuple[HostArray, float]:
    """Return M⁻¹ N and the reciprocal condition of M after scaling (0.0 where M is singular).

    Parameters
    ----------
    matrix : (n, n) array
        M, real or complex, in double precision; n and k may be 0.
    right : (n, k) array
        N.

    Returns
    -------
    (n, k) array
        Solution; not to be used where the reciprocal condition is below `singularity`.
    float
        Reciprocal condition, in the 1-norm.
    """
    dtype = np.result_type(matrix, right)
    if matrix.size == 0:
        return np.zeros(right.shape, dtype=dtype), 1.0
    if right.shape[-1] == 0:
        _, conditioned = solve_conditioned(matrix, np.zeros((len(matrix), 1)))
        return np.zeros(right.shape, dtype=dtype), conditioned
    (gesvx,) = get_lapack_funcs(("gesvx",), (matrix, right))
    *_, solution, conditioned, _, _, info = gesvx(matrix, right, fact="E")
    if 0 < info <= len(matrix) or not np.all(np.isfinite(solution)):
        return np.zeros(right.shape, dtype=dtype), 0.0
    return np.asarray(solution), float(conditioned)
