"""Products and sums in twice the working precision, from exact products of pieces.

A number is a pair hi + lo. A matrix is cut into pieces of so few bits that the entries of a product of two
pieces are integers below 2^53 in a common unit: a BLAS computes them without any rounding, whatever the
processor. Products of the same unit are added up exactly, and the sums of all units with compensation. What
is left out is below 2^-85 of the largest entries of a row of the left and a column of the right factor.

Reference: Ozaki, Ogita, Oishi and Rump, Error-free transformations of matrix multiplication by using fast
routines, Numerical Algorithms 59 (2012); Knuth, The Art of Computer Programming 2, section 4.2.2 (two_sum).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssmreduce._lapack import mixed_product
from ssmreduce._namespace import HostArray

_PIECES = 5
"""Pieces of a pair: five times 20 bits, or 19 and 18 where sums have more than 400 and 1600 terms."""

_LARGEST = 850
"""Exponent of the largest and smallest entries that are cut: units of the last piece are doubles."""


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

    def rounded(self) -> HostArray:
        """Return the sum as one array."""
        return self.hi + self.lo


def bits(length: int) -> int:
    """Bits of a piece: all products of one level, complex sums of `length` terms, add up exactly."""
    return (52 - int(2 * _PIECES * length).bit_length()) // 2


def pieces(hi: HostArray, lo: HostArray, axis: int | None, bits: int) -> list[HostArray]:
    """Cut hi + lo into pieces; all entries along `axis` (None: each by itself) share a unit."""
    size = np.maximum(np.abs(hi.real), np.abs(hi.imag))
    if axis is not None:
        size = size.max(axis=axis, keepdims=True, initial=0.0)
    unit = np.ldexp(1.0, np.clip(np.frexp(size)[1], -_LARGEST, _LARGEST))
    cut = []
    for _ in range(_PIECES):
        unit = unit * 0.5**bits
        piece = np.rint(hi / unit) * unit
        cut.append(piece)
        hi, lo = two_sum(hi - piece, lo)
        if not (np.any(hi) or np.any(lo)):
            break
    return cut


def add_products(
    total: Sum, left: Sequence[HostArray], right: Sequence[HostArray], *, matrix: bool
) -> None:
    """Add the product of two numbers in pieces, of matrices or entry by entry."""
    for level in range(_PIECES):
        which = range(max(0, level - len(right) + 1), min(level + 1, len(left)))
        terms = [
            mixed_product(left[i], right[level - i]) if matrix else left[i] * right[level - i]
            for i in which
        ]
        if terms:
            total.add(np.asarray(sum(terms[1:], start=terms[0])))
