"""The gain of a difference of nearly equal systems, from residual corrections in twice the precision.

A solution of (z - A) x = b by any decomposition is right to eps ‖A‖ ‖(z - A)⁻¹‖. Where poles are lightly
damped that moves the gain by more than the error of a good reduction. So the solution is refined with
residuals in twice the working precision, as a pair of doubles, until corrections no longer matter; outputs
are summed and subtracted as pairs too. What is left of rounding is of the size of the last correction, at
every frequency for itself, and is taken off the gain there: a lower bound of the gain of the systems as
they were given.

Cost: per frequency some 100 n² min(m, p) in matrix products, and O(n³) where the modes of A do not serve.

Reference: Demmel, Hida, Kahan, Li, Mukherjee and Riedy, Error bounds from extra-precise iterative refinement,
ACM TOMS 32 (2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.norms.double_double import (
    Sum,
    add_matrix_products,
    add_products,
    bits,
    pieces,
    side_by_side,
)
from ssmreduce.norms.gain import Gain, largest_singular_values
from ssmreduce.norms.grid import Search, frequencies, peak, refine
from ssmreduce.norms.modes import DenseModes, DiagonalModes
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

_CORRECTIONS = 6
"""Corrections at most. Each multiplies the error by eps ‖A‖ ‖(z - A)⁻¹‖: more means no convergence."""

_AGREEMENT = 0.01
"""Relative difference from the gain by plain solutions up to which their peak is trusted."""

_GRID = 64
"""Points of the grid where it is not."""

_SLOWEST = 0.1
"""Factor by which every correction must be smaller than the one before."""

_NEGLIGIBLE = float(np.finfo(np.float64).eps) ** 1.5
"""Correction relative to the gain of one system below which none follows."""

_ROUNDING = 4.0
"""Multiple of the last correction, and of eps for operations that are rounded once."""

_TERMS = 4.0
"""c of c n eps for plain gains: every term is rounded a few times and added n times."""

_WORKING_ENTRIES = 2**20
"""Complex numbers of a solution held at once, a few dozen times: 16 MiB each."""

_EPS = float(np.finfo(np.float64).eps)

_Solve = Callable[[HostArray], HostArray]


class RefinedGain:
    """Lower bounds of σ_max(G) for the gain of a sum of systems."""

    def __init__(self, gain: Gain) -> None:
        self.gain = gain
        self.after = all(system.read_after_update for system in gain.systems)
        self.parts = [
            (sign, _RefinedPart(part, after=not self.after and part.system.read_after_update))
            for sign, part in zip(gain.signs, gain.parts, strict=True)
            if part.system.order > 0
        ]

    def lower(self, omega: HostArray) -> HostArray:
        """The gain at every frequency less what rounding may have added, at least 0."""
        gains = np.zeros(omega.size)
        states = sum(system.order for system in self.gain.systems)
        width = max(1, (states + self.gain.outputs) * max(1, self.gain.inputs))
        length = max(1, _WORKING_ENTRIES // width)
        for start in range(0, omega.size, length):
            chunk = slice(start, start + length)
            gains[chunk] = self._lower(omega[chunk])
        return gains

    def unresolved(self, omega: HostArray) -> float:
        """Largest rounding of plain gains at the frequencies where corrections do not help."""
        _, rounding = self.matrices(omega)
        rest = omega[~np.isfinite(rounding)]
        return float(plain_rounding(self.gain, rest).max(initial=0.0))

    def _lower(self, omega: HostArray) -> HostArray:
        values, rounding = self.matrices(omega)
        usable = np.all(np.isfinite(values), axis=(-2, -1)) & np.isfinite(rounding)
        gains = np.zeros(omega.size)
        if np.any(usable) and values[0].size:
            gains[usable] = largest_singular_values(values[usable]) - rounding[usable]
        if not np.all(
            usable
        ):  # corrections do not help, but plain values may stand out of rounding
            rest = omega[~usable]
            gains[~usable] = self.gain.at(rest) - plain_rounding(self.gain, rest)
        return np.maximum(gains, 0.0)

    def matrices(self, omega: HostArray) -> tuple[HostArray, HostArray]:
        """Return G, shape (K, p, m), and a bound of its rounding in the Frobenius norm, shape (K,).

        G is that of z⁻¹ G where all systems read after their update: it has the same gain.
        """
        gain = self.gain
        finite = np.isfinite(omega)
        at = np.where(finite, omega, 0.0)
        z = gain.time.point(at)
        total = Sum(np.zeros((omega.size, gain.outputs, gain.inputs), dtype=np.complex128))
        if any(system.D.any() for system in gain.systems):
            through = Sum(np.zeros((gain.outputs, gain.inputs), dtype=np.complex128))
            for sign, system in zip(gain.signs, gain.systems, strict=True):
                through.add(sign * np.asarray(system.D))
            D = through.rounded()
            total.add(z.conj()[:, None, None] * D if self.after else D)
        rounding = np.zeros(omega.size)
        if np.any(finite):
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                for sign, part in self.parts:
                    pair, change = part.values(z[finite])
                    for term in (pair.hi, pair.lo):
                        total.add(_scattered(sign * term, finite))
                    rounding[finite] += change
        values = total.rounded()
        own = _ROUNDING * _EPS * np.linalg.norm(values, axis=(-2, -1))
        return values, rounding + own


def _scattered(values: HostArray, where: HostArray) -> HostArray:
    """Values at some points, and zero at the others."""
    if where.all():
        return values
    whole = np.zeros((where.size, *values.shape[1:]), dtype=values.dtype)
    whole[where] = values
    return whole


def lower_bound(gain: Gain, search: Search) -> tuple[float, float]:
    """Largest gain that stands out of rounding, at least 0, and its frequency."""
    value, frequency = peak(gain, search)
    if value == 0.0 or not math.isfinite(frequency):
        return value, frequency
    at = np.array([frequency])
    rounding = float(plain_rounding(gain, at)[0])
    if rounding <= search.accuracy * value:
        return value - rounding, frequency
    refined = RefinedGain(gain)
    lower = float(refined.lower(at)[0])
    if _agrees(lower, value) or _agrees(lower, float(gain.at(at)[0])):
        return lower, frequency
    # The search saw rounding: another one without.
    omega = frequencies(gain.by_modes if gain.is_dense else gain, min(search.grid, _GRID))
    lower, frequency = refine(refined.lower, omega, search.refinements)
    return lower, math.remainder(frequency, 2.0 * gain.time.nyquist)


def _agrees(lower: float, plain: float) -> bool:
    return abs(lower - plain) <= _AGREEMENT * plain


def plain_rounding(gain: Gain, omega: HostArray) -> HostArray:
    """What rounding may make of `gain.at` at frequencies, shape (K,)."""
    z = gain.time.point(omega)
    total = np.zeros(z.size)
    for part in gain.parts:
        total += _TERMS * (part.system.order + 1) * _EPS * part.moved(z)
    return np.where(np.isfinite(total), total, np.inf)


class _RefinedPart:
    """C (z - A)⁻¹ B of one system as a pair, and a bound of its rounding; times z if `after`."""

    def __init__(self, modes: DenseModes | DiagonalModes, *, after: bool) -> None:
        self.after, self.modes, system = after, modes, modes.system
        self.known = isinstance(modes, DiagonalModes) or modes.known
        # With fewer outputs than inputs the dual system (Aᴴ, Cᴴ, Bᴴ) is evaluated at conj(z).
        self.dual = system.outputs < system.inputs
        state, B, C = _complex_states(system)
        self.diagonal = state.ndim == 1
        if self.dual:
            state, B, C = state.conj() if self.diagonal else adjoint(state), adjoint(C), adjoint(B)
        self.state, self.B, self.C = state, B.astype(np.complex128), C
        self.bits = bits(max(len(state), 1))
        if self.diagonal:
            self.state_pieces = pieces(state, None, None, self.bits)[..., None]
        else:
            self.state_pieces = side_by_side(pieces(state, None, 1, self.bits))
        self.C_pieces = side_by_side(pieces(C, None, 1, self.bits))

    def values(self, z: HostArray) -> tuple[Sum, HostArray]:
        """Return the pair, shape (K, p, m), and bounds of its rounding, shape (K,)."""
        points = z.conj() if self.dual else z
        if self.known:
            found, change = self._refined(points, self._solver(points))
        else:
            empty = np.zeros((z.size, len(self.C), self.B.shape[1]), dtype=np.complex128)
            found, change = Sum(empty), np.full(z.size, np.inf)
        slow = np.flatnonzero(~np.isfinite(change)) if not self.diagonal else np.empty(0, dtype=int)
        length = max(1, _WORKING_ENTRIES // max(1, self.state.size))
        for at in (slow[i : i + length] for i in range(0, slow.size, length)):
            again, change[at] = self._refined(points[at], _Inverses(self.state, points[at]))
            found.hi[at], found.lo[at] = again.hi, again.lo
        if self.dual:
            found.hi, found.lo = adjoint(found.hi), adjoint(found.lo)
        if self.after:
            size = np.linalg.norm(found.hi, axis=(-2, -1))
            found.hi = z[:, None, None] * found.hi
            found.lo = z[:, None, None] * found.lo
            change = change + _ROUNDING * _EPS * size
        return found, change

    def _refined(self, z: HostArray, solve: _Solve) -> tuple[Sum, HostArray]:
        width = self.B.shape[1]
        right = np.repeat(self.B[:, None, :], z.size, axis=1)
        states = Sum(solve(right).astype(np.complex128))
        minus_z = np.repeat(-pieces(z, None, None, self.bits), width, axis=1)[:, None]
        first = last = rounding = np.full(z.size, np.inf)
        enough = _NEGLIGIBLE * _size(self.C, states.hi)
        for k in range(_CORRECTIONS):
            correction = solve(self._residual(right, minus_z, states))
            states.add(correction)
            change = _size(self.C, correction)
            shrinks = change <= _SLOWEST * last
            # Corrections that no longer shrink are what rounding makes of them.
            rounding = np.where(shrinks, change, np.maximum(change, last))
            first, last = (change if k == 0 else first), change
            if not np.any(shrinks & (change > enough)):
                break
        lost = ~(rounding <= 0.5 * first) & ~(rounding <= enough)
        rounding = np.where(lost, np.inf, _ROUNDING * rounding)
        total = Sum(np.zeros((len(self.C), z.size * width), dtype=np.complex128))
        cut = pieces(*_columns(states), 0, self.bits)
        add_matrix_products(total, self.C_pieces, cut)
        shape = (len(self.C), z.size, width)
        total.hi, total.lo = (x.reshape(shape).swapaxes(0, 1) for x in (total.hi, total.lo))
        return total, rounding

    def _residual(self, right: HostArray, minus_z: HostArray, states: Sum) -> HostArray:
        """B - (z - A) X, shape (n, K, w), from products in twice the precision."""
        cut = pieces(*_columns(states), 0, self.bits)
        total = Sum(right.reshape(len(right), -1))
        if self.diagonal:
            add_products(total, self.state_pieces, cut)
        else:
            add_matrix_products(total, self.state_pieces, cut)
        add_products(total, minus_z, cut)
        return total.rounded().reshape(right.shape)

    def _solver(self, z: HostArray) -> _Solve:
        if isinstance(self.modes, DiagonalModes):
            distance = (z - self.state[:, None])[..., None]
            return lambda right: np.asarray(right / distance)
        return self.modes.solver(z, dual=self.dual)


class _Inverses:
    """Solutions by the inverses of z_k - A, where nothing cheaper is good enough to be refined."""

    def __init__(self, A: HostArray, z: HostArray) -> None:
        self.inverses = np.full((z.size, *A.shape), np.nan, dtype=np.complex128)
        for k, point in enumerate(z):
            try:
                self.inverses[k] = np.linalg.inv(point * np.eye(len(A)) - A)
            except np.linalg.LinAlgError:
                continue

    def __call__(self, right: HostArray) -> HostArray:
        return np.moveaxis(self.inverses @ np.moveaxis(right, 1, 0), 0, 1)


def _complex_states(system: System) -> tuple[HostArray, HostArray, HostArray]:
    """State matrix or eigenvalues, B and C of a system with complex outputs C x."""
    if not isinstance(system, DiagonalStateSpace):
        return system.A, system.B, system.C
    state, B, C = system.eigenvalues, system.B, system.C
    if system.real_output:
        state, B = np.concatenate([state, state.conj()]), np.concatenate([B, B.conj()])
        C = 0.5 * np.concatenate([C, C.conj()], axis=1)
    return state, B, C


def _columns(states: Sum) -> tuple[HostArray, HostArray]:
    return states.hi.reshape(len(states.hi), -1), states.lo.reshape(len(states.lo), -1)


def _size(C: HostArray, states: HostArray) -> HostArray:
    """‖C X_k‖ in the Frobenius norm for every point."""
    n, count, width = states.shape
    outputs = (C @ states.reshape(n, -1)).reshape(-1, count, width)
    squares = np.square(outputs.real) + np.square(outputs.imag)
    return np.asarray(np.sqrt(np.add.reduce(squares, axis=(0, 2))))
