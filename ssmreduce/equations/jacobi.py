"""Singular values to high relative accuracy: one-sided Jacobi rotations after two pivoted QR steps.

For M = D₁ K D₂ with diagonal D₁, D₂ of any range and a well conditioned K, whose entries are known
to eps (D₁)_i (D₂)_j, every singular value comes out with a relative error of O(n eps κ), however
small it is: bidiagonalisation would leave eps σ₁ in each. LAPACK's `gejsv` (joba = 'F': neither
rows nor columns are taken for noise). SciPy has the real one, so a complex M is embedded as
[[Re M, -Im M], [Im M, Re M]], which has each of its singular values twice.
Cost O(n³), about that of a standard decomposition where M is graded.

References: Demmel, Gu, Eisenstat, Slapničar, Veselić and Drmač, Linear Algebra Appl. 299 (1999);
Drmač and Veselić, SIAM J. Matrix Anal. Appl. 29 (2008).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dgejsv

from ssmreduce._array_libraries import HostArray

_KEEP_SMALL = {"joba": 2, "jobr": 0, "jobt": 0, "jobp": 0}
"""Rows and columns pivoted, nothing set to zero, no transposition, no perturbation."""

_NO_LEFT, _RIGHT, _NO_RIGHT = 3, 0, 3


def jacobi_singular_values(M: HostArray) -> HostArray:
    """Singular values of a square matrix, descending.

    Raises
    ------
    numpy.linalg.LinAlgError
        If M is not finite or the rotations do not converge.
    """
    if not np.iscomplexobj(M):
        return _decompose(M, _NO_RIGHT)[0]
    embedded = np.block([[M.real, -M.imag], [M.imag, M.real]])
    return _decompose(embedded, _NO_RIGHT)[0][::2]


def jacobi_right_singular(M: HostArray) -> tuple[HostArray, HostArray]:
    """Singular values of a real square matrix, descending, and its right singular vectors.

    Raises
    ------
    numpy.linalg.LinAlgError
        If M is not finite or the rotations do not converge.
    """
    return _decompose(M, _RIGHT)


def _decompose(M: HostArray, right: int) -> tuple[HostArray, HostArray]:
    if M.shape[0] == 0:
        return np.zeros(0), np.zeros((0, 0))
    if not np.all(np.isfinite(M)):
        raise np.linalg.LinAlgError("entries are not finite")
    values, _, V, work, _, info = dgejsv(M, jobu=_NO_LEFT, jobv=right, **_KEEP_SMALL)
    if info != 0:
        raise np.linalg.LinAlgError("Jacobi rotations did not converge")
    values = values * (work[0] / work[1])
    order = np.argsort(-values, kind="stable")
    return values[order], V[:, order] if right == _RIGHT else V
