"""Split the states of a dense system in two groups that do not act on each other.

With a Schur form A = Q [[A₁, F], [0, A₂]] Qᴴ ordered so that the first group leads, and X from the
Sylvester equation A₁ X - X A₂ + F = 0,

    A = [T₁ T₂] diag(A₁, A₂) [W₁ W₂]ᴴ,   T₁ = Q₁, T₂ = Q₂ + Q₁ X, W₁ = Q₁ - Q₂ Xᴴ, W₂ = Q₂.

No eigenvectors are formed, so repeated and defective poles inside a group do no harm; poles of the two
groups close to each other make X large. Cost O(n³). Digits are lost with the condition number of
[T₁ T₂], which is ((‖X‖ + sqrt(‖X‖² + 4))/2)².

Reference: Bavely and Stewart, SIAM J. Numerical Analysis 16 (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError

_ROUNDINGS = 4.0
"""Safety factor c of c eps ‖A‖_F, the backward error of a Schur form in practice: a simple pole on the
stability boundary is computed that far from it."""


@dataclass(frozen=True, eq=False)
class SchurForm:
    """A = Q T Qᴴ with (quasi-)triangular T: real for a real A, pairs of poles in 2x2 blocks."""

    triangle: HostArray
    vectors: HostArray

    @property
    def rounding(self) -> float:
        """Distance c eps ‖A‖_F: a pole this close to the stability boundary may lie on it."""
        return float(_ROUNDINGS * np.finfo(np.float64).eps * np.linalg.norm(self.triangle))

    @property
    def poles(self) -> HostArray:
        """Eigenvalues in the order of the diagonal; of a pair the one above the real axis first."""
        T = self.triangle
        poles = T.diagonal().astype(np.complex128)
        first = np.flatnonzero(T.diagonal(-1)) if not np.iscomplexobj(T) else np.zeros(0, int)
        # LAPACK leaves a 2x2 block with equal diagonal entries and off-diagonals of opposite sign.
        imag = np.sqrt(np.abs(T[first, first + 1])) * np.sqrt(np.abs(T[first + 1, first]))
        poles[first] += 1j * imag
        poles[first + 1] -= 1j * imag
        return poles


@dataclass(frozen=True, eq=False)
class Decoupling:
    """Two groups of states: bases of both, their state matrices and the condition of the change."""

    first: HostArray
    second: HostArray
    left: tuple[HostArray, HostArray]
    right: tuple[HostArray, HostArray]
    condition: float


def schur_form(A: HostArray) -> SchurForm:
    """Schur form of a matrix, real if the matrix is."""
    if not A.size:
        return SchurForm(A, A)
    output = "complex" if np.iscomplexobj(A) else "real"
    return SchurForm(*scipy.linalg.schur(A, output=output))


def decouple(schur: SchurForm, leading: HostArray) -> Decoupling:
    """Separate the poles marked in `leading`, shape (n,), from the others.

    Raises
    ------
    NoConvergenceError
        If poles of the two groups are too close to be told apart.
    """
    n, k = len(schur.triangle), int(np.sum(leading))
    T, Q = schur.triangle, schur.vectors
    X = np.zeros((k, n - k), dtype=T.dtype)
    scale, info = 1.0, 0
    if 0 < k < n:
        reorder, solve = scipy.linalg.get_lapack_funcs(("trsen", "trsyl"), (T,))
        workspace = {"lwork": max(1, 2 * n)}
        if not np.iscomplexobj(T):
            workspace["liwork"] = max(1, n)
        T, Q, *_, info = reorder(leading.astype(np.int32), T, Q, job=b"N", **workspace)
    A1, F, A2 = T[:k, :k], T[:k, k:], T[k:, k:]
    if 0 < k < n and info == 0:
        X, scale, info = solve(A1, A2, -F, isgn=-1)
    if info != 0 or scale == 0.0 or not np.all(np.isfinite(X)):
        raise NoConvergenceError(
            f"{k} of {n} poles cannot be separated from the others: some of the two groups agree to "
            "rounding; expected two groups with a gap between them. Try another `margin` or order."
        )
    X = X / scale
    norm = float(np.linalg.norm(X, 2)) if X.size else 0.0
    Q1, Q2 = Q[:, :k], Q[:, k:]
    return Decoupling(
        first=A1,
        second=A2,
        left=(Q1 - Q2 @ adjoint(X), Q2),
        right=(Q1, Q2 + Q1 @ X),
        condition=((norm + np.sqrt(norm**2 + 4.0)) / 2.0) ** 2,
    )
