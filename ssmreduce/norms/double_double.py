"""Products and sums in twice the working precision, from exact products of pieces.

A number is a pair hi + lo. A matrix is cut into pieces of so few bits that the entries of a product of two
pieces are integers below 2^53 in a common unit: a BLAS computes them without any rounding, whatever the
processor. Products of the same unit are added up exactly, and the sums of all units with compensation. What
is left out is below 2^-85 of the largest entries of a row of the left and a column of the right factor.

Reference: Ozaki, Ogita, Oishi and Rump, Error-free transformations of matrix multiplication by using fast
routines, Numerical Algorithms 59 (2012); Knuth, The Art of Computer Programming 2, section 4.2.2 (two_sum).
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import mixed_product

_PIECES = 5
"""Pieces of a pair: five times 20 bits, or 19 and 18 where sums have more than 400 and 1600 terms."""

_COMPENSATED = 3
"""Units of which products are added up with compensation: those of the next are below 2^-54 of the largest,
and their rounding below 2^-107."""

_LARGEST = 850
"""Exponent of the largest and smallest entries that are cut: units of the last piece are doubles."""

_STEPS = np.arange(1, _PIECES + 1)


def two_sum(one: HostArray, other: HostArray) -> tuple[HostArray, HostArray]:
    """The rounded sum and its rounding error, exactly; of complex numbers part by part."""
    total = one + other
    back = total - one
    return total, (one - (total - back)) + (other - back)


class Sum:
    """A compensated sum of arrays: ``hi`` + ``lo``."""

    def __init__(self, first: HostArray) -> None:
        self.hi, self.lo = first, np.zeros_like(first)

    def add(self, term: HostArray) -> None:
        """Add an array."""
        self.hi, error = two_sum(self.hi, term)
        self.lo = self.lo + error

    def add_levels(self, terms: list[HostArray]) -> None:
        """Add the products of falling units; the last ones need no compensation among themselves."""
        for term in terms[:_COMPENSATED]:
            self.add(term)
        if len(terms) > _COMPENSATED:
            self.add(sum(terms[_COMPENSATED + 1 :], start=terms[_COMPENSATED]))

    def rounded(self) -> HostArray:
        """Return the sum as one array."""
        return self.hi + self.lo


def bits(length: int) -> int:
    """Bits of a piece: all products of one level, complex sums of `length` terms, add up exactly."""
    return (52 - int(2 * _PIECES * length).bit_length()) // 2


def pieces(hi: HostArray, lo: HostArray | None, axis: int | None, bits: int) -> HostArray:
    """Cut hi + lo into a stack of pieces; all entries along `axis` (None: each by itself) share a unit.

    Both are cut at the same places: the smaller part brings nothing to the first pieces, and every later one
    of either part is at most half as large as a piece may be.
    """
    # Real and imaginary parts as numbers of their own, side by side.
    parts = _parts(hi)
    axes = -1 if axis is None else (axis - hi.ndim - 1, -1)
    size = np.maximum.reduce(np.abs(parts), axis=axes, keepdims=True, initial=0.0)
    exponent = np.minimum(np.maximum(np.frexp(size)[1], -_LARGEST), _LARGEST)
    scale = np.ldexp(1.0, np.subtract.outer(bits * _STEPS, exponent))
    cut, whole = _pieces(parts, scale)
    if lo is None or not lo.any():
        cut = cut[: whole + 1]
    else:
        cut += _pieces(_parts(lo), scale)[0]
    return cut.view(hi.dtype)[..., 0]


def _pieces(numbers: HostArray, scale: HostArray) -> tuple[HostArray, int]:
    """What each of ever smaller units adds, and the last that adds anything; `scale` holds their inverses."""
    cut = numbers * scale
    np.rint(cut, out=cut)
    cut /= scale
    reached = np.all(cut == numbers, axis=tuple(range(1, cut.ndim)))
    reached[-1] = True
    cut[1:] -= cut[:-1]
    return cut, int(reached.argmax())


def _parts(numbers: HostArray) -> HostArray:
    """Numbers with their real and imaginary parts, or only themselves, on a last axis of their own."""
    return np.ascontiguousarray(numbers)[..., None].view(np.float64)


def side_by_side(left: HostArray) -> HostArray:
    """Pieces of a matrix as `add_matrix_products` wants them on the left: (m, pieces, n)."""
    return np.ascontiguousarray(left.swapaxes(0, 1))


def add_matrix_products(total: Sum, left: HostArray, right: HostArray) -> None:
    """Add a product of matrices, of `side_by_side` and `pieces`; one BLAS call for all of the same unit."""
    rows, _, n = left.shape
    falling, terms = np.ascontiguousarray(right[::-1]), []
    for level in range(_PIECES):
        first, last = _paired(level, left.shape[1], len(right))
        if first < last:
            start = len(right) - 1 - level + first
            ours = left[:, first:last].reshape(rows, -1)
            theirs = falling[start : start + last - first].reshape((last - first) * n, -1)
            terms.append(mixed_product(ours, theirs))
    total.add_levels(terms)


def add_products(total: Sum, left: HostArray, right: HostArray) -> None:
    """Add a product entry by entry of two numbers in `pieces`."""
    terms = []
    for level in range(_PIECES):
        first, last = _paired(level, len(left), len(right))
        if first < last:
            theirs = right[level - last + 1 : level - first + 1]
            terms.append(np.add.reduce(left[first:last] * theirs[::-1], axis=0))
    total.add_levels(terms)


def _paired(level: int, left: int, right: int) -> tuple[int, int]:
    """First and last plus one piece i on the left that meets piece level - i on the right."""
    return max(0, level - right + 1), min(level + 1, left)
