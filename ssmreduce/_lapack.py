"""Large dense products and decompositions that stay in one pool of BLAS threads.

The wheels of NumPy and SciPy carry a pool of BLAS threads each, and a hot path that alternates
between them stalls small machines, by a factor of 2 to 3 at 300 states. Schur forms exist in SciPy
alone; so the dense routes do all that is large there. BLAS wants columns to lie contiguously: a
row-major array is passed as the transpose that it is in memory, so that nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from ssmreduce._array_libraries import Array, HostArray

_SMALL_PRODUCT = 2**18
"""Multiplications below which a BLAS uses one thread anyway, and the call of NumPy is cheaper."""

_WORK_PER_COLUMN = 64
"""Numbers of work space with which LAPACK's QR factorisation runs in its largest blocks."""

_SAFE_EXPONENT = 100
"""Entries between 2^-100 and 2^100 can be squared, and their squares multiplied."""

_LARGEST_EXPONENT = 1000
"""2^1000 and 2^-1000 are far enough from overflow to be multiplied by a few numbers."""

_SMALLEST_PLAIN = 2.0**-500
"""A norm above this loses nothing to the underflow of squares."""

_SMALL_VECTOR_PRODUCT = 2**13
"""The same for the product of a matrix and one column."""

_PLAIN = 2.0 ** (32 - 2 * _SAFE_EXPONENT)
"""A sum of up to 2^13 squares above this and below its inverse has a largest entry in no danger."""


def product(left: HostArray, right: HostArray, *, adjoint_left: bool = False) -> HostArray:
    """Return ``left @ right``, or ``adjoint(left) @ right``, of two matrices."""
    columns = right.shape[1]
    most = _SMALL_PRODUCT if columns != 1 else _SMALL_VECTOR_PRODUCT
    if left.size * columns < most:
        # The operator takes twice as long for the smallest.
        small: HostArray = (left.conj().swapaxes(0, 1) if adjoint_left else left).dot(right)
        return small
    dtype = np.result_type(left, right)
    left, right = left.astype(dtype, copy=False), right.astype(dtype, copy=False)
    gemm = blas.zgemm if dtype == np.complex128 else blas.dgemm
    a, trans_a = (left, 0)
    if left.flags.c_contiguous and not (adjoint_left and np.iscomplexobj(left)):
        a, trans_a = np.swapaxes(left, 0, 1), 1
    if adjoint_left:
        trans_a = 1 - trans_a if np.isrealobj(left) else 2
    b, trans_b = (np.swapaxes(right, 0, 1), 1) if right.flags.c_contiguous else (right, 0)
    return np.asarray(gemm(1.0, a, b, trans_a=trans_a, trans_b=trans_b))


def mixed_product(matrix: HostArray, columns: HostArray) -> HostArray:
    """Matrix product with complex columns; half the work where the matrix is real."""
    if np.iscomplexobj(matrix):
        return np.asarray(matrix @ columns)
    columns = np.ascontiguousarray(columns, dtype=np.complex128)
    return np.asarray((matrix @ columns.view(np.float64)).view(np.complex128))


def all_finite(*arrays: HostArray) -> bool:
    """Whether no entry is NaN or Inf; squares show that of a small array in a quarter of the time."""
    for array in arrays:
        if array.size <= _SMALL_VECTOR_PRODUCT:
            entries = array.ravel("K")
            if math.isfinite(np.vdot(entries, entries).real):
                continue
        if not np.isfinite(array).all():
            return False
    return True


def power_of_two(matrix: HostArray) -> float:
    """The one near the largest entry; 1.0 of zeros. Dividing by it is exact, and its inverse is finite."""
    largest = float(np.abs(matrix).max(initial=0.0))
    if not 0.0 < largest < math.inf:
        return 1.0
    exponent = math.frexp(largest)[1]
    return math.ldexp(1.0, min(max(exponent, -_LARGEST_EXPONENT), _LARGEST_EXPONENT))


def safe_unit(matrix: HostArray) -> float:
    """An even power of two near the largest entry; 1.0 where squares are in no danger anyway.

    Dividing by it, or by its root, is exact. Its inverse is finite, for complex divisions.
    """
    if matrix.size <= _SMALL_VECTOR_PRODUCT:
        entries = matrix.ravel("K")
        if _PLAIN < np.vdot(entries, entries).real < 1.0 / _PLAIN:
            return 1.0
    largest = max(float(matrix.real.max(initial=0.0)), -float(matrix.real.min(initial=0.0)))
    if np.iscomplexobj(matrix):
        largest = max(largest, float(np.abs(matrix.imag).max(initial=0.0)))
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= _SAFE_EXPONENT:
        return 1.0
    return 4.0 ** (max(exponent - 1, -_LARGEST_EXPONENT) // 2)


def frobenius_norm(matrix: Array) -> float:
    """Frobenius norm without a BLAS, and without overflow or underflow of the squares.

    NumPy's takes a dot product in threads of its own pool; a short one is over without them.
    """
    if matrix.size <= _SMALL_VECTOR_PRODUCT:
        entries = matrix.ravel("K")
        plain = math.sqrt(np.vdot(entries, entries).real)
        if _SMALLEST_PLAIN < plain < math.inf:
            return plain
    largest = float(np.abs(matrix).max(initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    # A power of two: nothing is rounded. Its inverse must be finite, for complex divisions.
    unit = math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -_LARGEST_EXPONENT))
    scaled = matrix / unit
    squares = np.add.reduce(np.square(scaled.real), axis=None)
    if np.iscomplexobj(scaled):
        squares += np.add.reduce(np.square(scaled.imag), axis=None)
    return unit * float(np.sqrt(squares))


@dataclass(frozen=True)
class Pool:
    """Products and decompositions in one BLAS: (U, values, Vᴴ), (values, vectors) and (Q, R), all thin.

    That of NumPy takes stacks of matrices too; `svd` and `eigh` of SciPy overwrite their argument.
    """

    multiply: Callable[[HostArray, HostArray], HostArray]
    svd: Callable[[HostArray], Any]
    eigh: Callable[[HostArray], Any]
    qr: Callable[[HostArray], Any]
    over_upper: Callable[[HostArray, HostArray], HostArray]


def _svd(matrix: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """LAPACK's divide and conquer, without the checks of its wrapper: they cost a tenth at 50 columns."""
    if matrix.size == 0:
        return np.linalg.svd(matrix, full_matrices=False)
    gesdd, query = (
        (lapack.zgesdd, lapack.zgesdd_lwork)
        if matrix.dtype.kind == "c"
        else (lapack.dgesdd, lapack.dgesdd_lwork)
    )
    size, _ = query(*matrix.shape, compute_uv=1, full_matrices=0)
    work = int(size.real)
    left, values, right, failed = gesdd(matrix, full_matrices=0, lwork=work, overwrite_a=True)
    if failed or not np.isfinite(values).all():
        raise np.linalg.LinAlgError("the singular value decomposition did not converge")
    return left, values, right


def _qr(matrix: HostArray) -> tuple[HostArray, HostArray]:
    """Thin Q and R of a matrix with at least as many rows as columns; below its diagonal R is not zero."""
    geqrf, orgqr = (
        (lapack.zgeqrf, lapack.zungqr)
        if matrix.dtype.kind == "c"
        else (lapack.dgeqrf, lapack.dorgqr)
    )
    if matrix.size == 0:
        return np.linalg.qr(matrix)
    columns = matrix.shape[1]
    work = _WORK_PER_COLUMN * columns
    packed, tau, _, _ = geqrf(matrix, lwork=work)
    Q, _, _ = orgqr(packed, tau, lwork=work)
    return Q, packed[:columns]


def over_upper(matrix: HostArray, R: HostArray) -> HostArray:
    """Return ``matrix`` R⁻¹ for an upper triangular R; what is below its diagonal is not looked at."""
    trsm = blas.ztrsm if "c" in (R.dtype.kind, matrix.dtype.kind) else blas.dtrsm
    return np.asarray(trsm(1.0, R, matrix, side=1))


def inverse_of_triangle(R: HostArray, *, lower: bool = False) -> HostArray:
    """R⁻¹ of a real triangle that is not singular; a quarter of the time of `numpy.linalg.inv`."""
    if not R.size:
        return R
    inverse, failed = lapack.dtrtri(R, lower=lower)
    if failed:
        raise np.linalg.LinAlgError("Singular matrix")
    return np.asarray(inverse)


NUMPY = Pool(
    np.matmul,
    lambda x: np.linalg.svd(x, full_matrices=False),
    np.linalg.eigh,
    np.linalg.qr,
    lambda x, R: x @ np.linalg.inv(R),
)
SCIPY = Pool(
    product,
    _svd,
    lambda x: scipy.linalg.eigh(x, driver="evd", overwrite_a=True, check_finite=False),
    _qr,
    over_upper,
)


def shifted(values: HostArray, exponents: HostArray | int) -> HostArray:
    """Entries times 2^e, rounded only where doubles end; the entries themselves where e is 0."""
    if not np.any(exponents):
        return values
    if np.iscomplexobj(values):
        real, imag = np.ldexp(values.real, exponents), np.ldexp(values.imag, exponents)
        return np.asarray(real + 1j * imag)
    return np.asarray(np.ldexp(values, exponents))
