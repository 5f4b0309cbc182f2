"""Matrices of stable systems made from drawn bytes: small and round where the bytes are small.

Every number is looked up in a table by one byte. Byte 0 stands for the simplest number, and the next few
for round ones, so that Hypothesis, which shrinks each byte towards 0, shrinks systems entry by entry.

The state matrix is A = H (Λ + N) Hᴴ with poles in Λ (2x2 blocks for conjugate pairs of a real A), N
strictly upper triangular and H a Householder reflection. H is unitary, so rounding moves A by n eps ‖A‖
only, and the distance of the poles from the stability boundary is known before A is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint

_MOST_BYTES = 512
"""Bytes drawn for one matrix at most; a larger one repeats them, so that any order can be drawn."""


def _table(*parts: HostArray | list[float] | list[complex]) -> HostArray:
    table = np.concatenate([np.asarray(part) for part in parts])
    return table[np.arange(256) % table.size]


def _grid(size: float, count: int) -> HostArray:
    return np.round(np.linspace(-size, size, count), 2)


_HALVES = [0.5, -0.5, 2.0, -2.0]
ENTRIES = _table([1.0, 0.0, -1.0], _HALVES, _grid(3.0, 249))
"""Entries of B and C."""
NONZERO = _table([1.0, -1.0], _HALVES, [x for x in _grid(3.0, 250) if abs(x) > 0.1])
OFFSETS = _table([0.0, 1.0, -1.0], _HALVES, _grid(3.0, 249))
"""Entries of D, imaginary parts and normal vectors of reflections: none, in the simplest case."""
COUPLINGS = _table([0.0, 1.0, -1.0], [0.5, -0.5], _grid(1.0, 251))
# A fifth of the poles lies as near to the boundary as is allowed.
RADII = _table([0.5, 0.0, 0.9, 0.25], np.round(np.sqrt(np.linspace(0.0, 1.0, 200)), 3), np.ones(52))
DECAYS = _table([1.0, 2.0, 0.5, 3.0], np.round(np.linspace(0.01, 3.0, 200), 2), np.zeros(52))
# A quarter of the directions and frequencies is real: the last ones, since Hypothesis halves a byte to
# find a smaller one, and what is complex should stay so.
DIRECTIONS = _table(
    [1.0, -1.0, 1j, -1j, 0.6 + 0.8j, -0.6 - 0.8j],
    np.exp(1j * np.linspace(-3.14, 3.14, 190)),
    np.tile([1.0, 1.0, -1.0], 20),
)
FREQUENCIES = _table([0.0, 1.0, -1.0, 2.0], _grid(4.0, 192), np.zeros(60))


@dataclass(frozen=True)
class Numbers:
    """Looks drawn bytes up.

    As many bytes are drawn for a small matrix as for one of the largest size, its capacity: entries
    stay where they are while Hypothesis takes states away.
    """

    draw: Callable[[int], bytes]
    most_states: int

    def pair(
        self, tables: tuple[HostArray, HostArray], capacity: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[HostArray, HostArray]:
        """Two matrices of entries of two tables.

        Both are drawn even if the second one is not needed: of two systems Hypothesis holds the one with
        fewer draws for the simpler one, whatever its entries are.
        """
        size = min(math.prod(capacity), _MOST_BYTES)
        # It moves small bytes to the front as well: from the back, the last states are the simple ones.
        drawn = np.frombuffer(self.draw(2 * size)[::-1], dtype=np.uint8).reshape(2, size)
        rows, columns = shape
        first, second = (np.resize(x, capacity)[:rows, :columns] for x in drawn)
        return tables[0][first], tables[1][second]

    def matrix(
        self, table: HostArray, capacity: tuple[int, int], shape: tuple[int, int], is_complex: bool
    ) -> HostArray:
        """Entries of `table`; with imaginary parts, zero in the simplest case, if `is_complex`."""
        real, imaginary = self.pair((table, OFFSETS), capacity, shape)
        return real + 1j * imaginary if is_complex else real

    def poles(self, n: int, margin: float, *, discrete: bool, distinct: bool) -> HostArray:
        """Complex poles at least `margin` away from the boundary.

        Those that must be `distinct` have a modulus (or decay) in a band of their own each; so they differ
        from each other's conjugates, too.
        """
        tables = (RADII, DIRECTIONS) if discrete else (DECAYS, FREQUENCIES)
        size, turn = (x[:, 0] for x in self.pair(tables, (self.most_states, 1), (n, 1)))
        banded = distinct and n > 1
        if discrete:
            if banded:
                size = (1.0 - margin) * (1.0 - (np.arange(n) + 0.5 * size) / n)
            return np.asarray(np.minimum(size, 1.0 - margin) * turn)
        if banded:
            size = margin + (3.0 * np.arange(n) + 0.5 * size) / n
        return np.asarray(-np.maximum(size, margin) + 1j * turn)

    def off_the_axis(self, poles: HostArray, margin: float, *, discrete: bool) -> HostArray:
        """The same with real poles moved off the real axis, no nearer to the boundary."""
        upright = poles.real + 1j
        if discrete:
            upright = 1j * np.where(poles == 0.0, 0.5 * (1.0 - margin), np.abs(poles))
        return np.where(poles.imag == 0.0, upright, poles)

    def normal_form(self, poles: HostArray, *, discrete: bool, is_complex: bool) -> HostArray:
        """Λ; for real systems with a 2x2 block for each pole off the real axis, as far as n goes."""
        if is_complex:
            return np.diag(poles)
        n = len(poles)
        blocks = np.diag(real_pole(poles, discrete=discrete))
        start = 0
        while start < n - 1:
            pole = poles[start]
            if pole.imag == 0.0:
                start += 1
                continue
            pair = [[pole.real, pole.imag], [-pole.imag, pole.real]]
            blocks[start : start + 2, start : start + 2] = pair
            start += 2
        return blocks

    def couplings(self, n: int, is_complex: bool) -> HostArray:
        """Strictly upper triangular, with entries of modulus at most 1."""
        size, turn = self.pair((COUPLINGS, DIRECTIONS), (self.most_states,) * 2, (n, n))
        return np.triu(size * turn if is_complex else size, 1)

    def reflection(self, n: int, is_complex: bool) -> HostArray:
        """H = I - 2 v vᴴ/(vᴴ v); I in the simplest case, v = 0."""
        v = self.matrix(OFFSETS, (self.most_states, 1), (n, 1), is_complex)
        return np.eye(n) - 2.0 * v @ adjoint(v) / (float(np.sum(np.abs(v) ** 2)) or 1.0)


def real_pole(poles: HostArray, *, discrete: bool) -> HostArray:
    """Real poles at the same distance from the boundary."""
    if not discrete:
        return np.asarray(poles.real)
    return np.asarray(np.abs(poles) * np.where(poles.real < 0.0, -1.0, 1.0))
