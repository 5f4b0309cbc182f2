"""What rounding of a triangle does to its eigenvalues: their conditions."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import frobenius_norm, product, safe_unit

ROUNDINGS = 2.0
"""c of c n eps ‖A‖_F, beyond the backward error of QR algorithms, which in practice is a few eps ‖A‖_F."""

EPS = float(np.finfo(np.float64).eps)

CLEARLY = EPS**0.5
"""Distance from the boundary relative to ‖A‖_F beyond which no way to find poles leaves a doubt."""

SEVERAL = 8.0
"""Times what conditions let rounding do, beyond which no way to find poles decides otherwise."""

_FEW_STATES = 32
"""Up to this order eigenvectors take well under a millisecond."""

_FEW = 8
"""Diagonal blocks, times this at most n, whose eigenvectors are found one by one."""

_LEAF = 32
"""Order up to which vectors are as fast as products."""

SMALL = 64
"""Up to this order LAPACK takes little work space, and is called without the checks of its wrapper, which
cost more than a pair."""


def far(n: int) -> float:
    """Distance from the boundary relative to ‖A‖_F at which eigenvalues alone leave no doubt.

    Rounding moves poles of order four by less; of more than a few states, where eigenvectors take long, of
    order two.
    """
    return float(SEVERAL * EPS ** (1.0 / max(2, min(n, 4)))) if n <= _FEW_STATES else CLEARLY


def complex_form(T: HostArray, W: HostArray) -> tuple[HostArray, HostArray]:
    """The complex triangle and basis of real ones."""
    if not T.diagonal(-1).any():
        return T.astype(np.complex128), W.astype(np.complex128)
    unit = safe_unit(T)  # SciPy takes squares
    T, W = scipy.linalg.rsf2csf(T / unit, W, check_finite=False)
    return np.asfortranarray(T * unit), np.asfortranarray(W)


def conditions_of(T: HostArray, wanted: HostArray) -> HostArray:
    """1/|yᴴ x| for the eigenvalues of a triangle with left and right eigenvectors y and x of length 1.

    Inf for those that are not wanted, where only few blocks of T are.
    """
    n, below = len(T), np.append(T.diagonal(-1), 0.0) != 0.0
    firsts = np.flatnonzero(~np.roll(below, 1)).tolist()
    runs = [(k, k + 1 + int(below[k])) for k in firsts if wanted[k] or (below[k] and wanted[k + 1])]
    if n <= SMALL or _FEW * len(runs) > n:
        runs = [(0, n)]
    conditions = np.full(n, np.inf)
    for first, last in runs:
        conditions[first:last] = _conditions_of_run(T, first, last)
    return conditions


def _conditions_of_run(T: HostArray, first: int, last: int) -> HostArray:
    """The same for diagonal blocks in a row; eigenvectors of T from theirs: [X x; x; 0] and [0; y; Yᴴ y]."""
    run = T[first:last, first:last]
    left, right = _eigenvectors(run)
    X = _decoupling(T[:first, :first], run, T[:first, first:last])
    Y = _decoupling(run, T[last:, last:], T[first:last, last:])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        sizes = np.hypot(*(np.linalg.norm(x, axis=0) for x in (right, X @ right)))
        sizes *= np.hypot(*(np.linalg.norm(y, axis=0) for y in (left, adjoint(Y) @ left)))
        conditions = sizes / np.abs(np.sum(left.conj() * right, axis=0))
    return np.where(np.isnan(conditions), np.inf, conditions)


def _decoupling(one: HostArray, other: HostArray, between: HostArray) -> HostArray:
    """X of T₁ X - X T₂ = T₁₂ for two triangles: by halves, since LAPACK's `trsyl` works in vectors."""
    if not between.size:
        return between
    if len(one) > _LEAF:
        k = _middle(one)
        lower = _decoupling(one[k:, k:], other, between[k:])
        upper = _decoupling(one[:k, :k], other, between[:k] - product(one[:k, k:], lower))
        return np.concatenate([upper, lower])
    if len(other) > _LEAF:
        k = _middle(other)
        left = _decoupling(one, other[:k, :k], between[:, :k])
        right = _decoupling(one, other[k:, k:], between[:, k:] + product(left, other[:k, k:]))
        return np.concatenate([left, right], axis=1)
    trsyl = lapack.ztrsyl if between.dtype.kind == "c" else lapack.dtrsyl
    X, scale, _ = trsyl(one, other, between, isgn=-1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.asarray(X / scale)


def _middle(T: HostArray) -> int:
    """About half the order of a triangle, where it parts no block of a pair."""
    k = len(T) // 2
    return k + int(T[k, k - 1] != 0.0)


def _eigenvectors(T: HostArray) -> tuple[HostArray, HostArray]:
    """Left and right ones of a triangle, in the order of its diagonal."""
    # LAPACK keeps the order of a triangular matrix, and mostly that of one with blocks.
    if T.dtype.kind == "c":
        *_, left, right, _ = lapack.zgeev(T)
        return left, right
    real, imaginary, left, right, _ = lapack.dgeev(T)
    first = np.flatnonzero(T.diagonal(-1))
    size = np.sqrt(np.abs(T[first, first + 1])) * np.sqrt(np.abs(T[first + 1, first]))
    expected = np.zeros(len(T))
    expected[first], expected[first + 1] = size, -size
    if np.array_equal(real, T.diagonal()) and np.allclose(imaginary, expected, 8.0 * EPS, 0.0):
        return _joined(left, first), _joined(right, first)
    T, W = complex_form(T, np.eye(len(T)))
    left, right = _eigenvectors(T)
    return product(W, left), product(W, right)


def _joined(vectors: HostArray, first: HostArray) -> HostArray:
    """Complex columns of pairs, whose real and imaginary parts LAPACK puts side by side."""
    if not first.size:
        return vectors
    joined = vectors.astype(np.complex128)
    joined[:, first] += 1j * vectors[:, first + 1]
    joined[:, first + 1] = joined[:, first].conj()
    return joined


def rounding_of(block: HostArray) -> float:
    rounding: float = ROUNDINGS * block.shape[0] * EPS * frobenius_norm(block)
    return rounding
