"""Split the states of a dense system in two groups that do not act on each other.

With a Schur form S⁻¹ A S = Q [[A₁, F], [0, A₂]] Qᴴ ordered so that the first group leads, and X from the
Sylvester equation A₁ X - X A₂ + F = 0,

    A = S [T₁ T₂] diag(A₁, A₂) [W₁ W₂]ᴴ S⁻¹,   T₁ = Q₁, T₂ = Q₂ + Q₁ X, W₁ = Q₁ - Q₂ Xᴴ, W₂ = Q₂.

No eigenvectors are formed, so repeated and defective poles inside a group do no harm; poles of the two
groups close to each other make X large. Cost O(n³). Digits are lost with the condition number of
[T₁ T₂], which is ((‖X‖ + sqrt(‖X‖² + 4))/2)². In the units S, which balance A, those of the
states do not count.

Reference: Bavely and Stewart, SIAM J. Numerical Analysis 16 (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._schur import SchurForm
from ssmreduce.errors import NoConvergenceError


@dataclass(frozen=True, eq=False)
class Decoupling:
    """Two groups of states that do not act on each other.

    Attributes
    ----------
    first, second : (k, k) and (n - k, n - k) array
        Their state matrices, in Schur form.
    left, right : tuple of two arrays
        W and T of the first and of the second group, in the states of the system.
    condition : float
        Condition number of the change of states, in units that balance A.
    """

    first: HostArray
    second: HostArray
    left: tuple[HostArray, HostArray]
    right: tuple[HostArray, HostArray]
    condition: float


def decouple(schur: SchurForm, leading: HostArray) -> Decoupling:
    """Separate the poles marked in `leading`, shape (n,), from the others.

    Raises
    ------
    NoConvergenceError
        If poles of the two groups are too close to be separated.
    """
    n, k = len(schur.triangle), int(np.sum(leading))
    T, Q, units = schur.triangle, schur.basis, schur.units
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
    left, right = (Q1 - Q2 @ adjoint(X), Q2), (Q1, Q2 + Q1 @ X)
    if units is not None:
        left, right = (left[0] / units, left[1] / units), (right[0] * units, right[1] * units)
    return Decoupling(
        first=A1,
        second=A2,
        left=left,
        right=right,
        condition=((norm + np.sqrt(norm**2 + 4.0)) / 2.0) ** 2,
    )
