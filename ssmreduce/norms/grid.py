"""A lower bound on the H-infinity norm: the largest gain found on an adaptive frequency grid.

The grid holds 0, the Nyquist frequency or infinity, a uniform (discrete) or logarithmic (continuous)
grid, and the frequencies of the sharpest resonances. Around its largest local maxima it is then
refined: near a resonance r/(iω - λ) the inverse square of the gain is a parabola in ω, so the lowest
point of the parabola through three neighbours is the next guess, with a bisection of the wider side
beside it. The largest value found is a *lower bound*; a peak between grid points, with no pole near, can be
missed, which the level-set test rules out.

Cost: grid + resonances + 8 points per refinement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.norms.gain import Gain
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.time_domain import Continuous, Discrete

_PEAKS = 4
"""Local maxima that are refined side by side."""

_STILL = 1e-13
"""Relative rise that counts as none: it moves the place by 3e-7 of the peak's width."""

_IDLE_ROUNDS = 2
"""Rounds that promise no rise after which none is expected: the parabolas converge faster than linearly."""

_CLOSEST = 8.0
"""c of c eps: how far rounding may move an angle, or a frequency relative to itself, and some room."""

_EPS = float(np.finfo(np.float64).eps)

_LEVEL = 8.0 * _EPS
"""Relative difference that is rounding: a point that near to a peak would give it no slope."""

_STEEPEST = 1e30
"""Cap on (peak/neighbour)², so that a neighbour where the gain vanishes stays a finite number."""


@dataclass(frozen=True)
class Search:
    """How thoroughly a peak is searched for.

    Attributes
    ----------
    grid : int
        Points of the uniform grid, and at most as many resonances of each system.
    refinements : int
        Rounds of refinement around the largest values.
    iterations : int
        Power iterations per point where both input and output are wide.
    accuracy : float
        Relative error of gains, by modes or by rounding, up to which they need not be computed again.
    """

    grid: int
    refinements: int
    iterations: int
    accuracy: float = 1e-6


def peak(gain: Gain, search: Search) -> tuple[float, float]:
    """Return the largest gain found and its frequency (∞ where the feedthrough is largest)."""
    cheap = gain.by_modes if gain.is_dense else gain
    omega = frequencies(cheap, search.grid)
    estimate = partial(cheap.at, iterations=search.iterations)
    value, frequency = refine(estimate, omega, search.refinements)
    if cheap is not gain and value > 0.0:
        estimate = partial(gain.at, iterations=search.iterations)
        seen = float(estimate(np.array([frequency]))[0])
        if abs(seen - value) > search.accuracy * value:
            seen, frequency = refine(estimate, omega, search.refinements)
        value = seen
    if isinstance(gain.time, Continuous) and np.any(gain.D):
        at_infinity = float(gain.at(np.array([math.inf]))[0])
        if at_infinity > value:
            return at_infinity, math.inf
    # In discrete time the same frequency in [-π, π].
    return value, math.remainder(frequency, 2.0 * gain.time.nyquist)


def refine(
    evaluate: Callable[[HostArray], HostArray],
    omega: HostArray,
    refinements: int,
    still: float = _STILL,
) -> tuple[float, float]:
    """Refine a sorted grid around its largest local maxima; return the maximum and its place.

    Once two rounds promise nothing above the largest value by more than a relative `still`, it ends.
    """
    values = evaluate(omega)
    idle = 0
    for _ in range(refinements):
        proposed, promised = _proposals(omega, values)
        idle = idle + 1 if promised <= (1.0 + still) * values.max() else 0
        if idle == _IDLE_ROUNDS:
            break
        at = np.searchsorted(omega, proposed)
        fresh = np.unique(proposed[omega[np.minimum(at, omega.size - 1)] != proposed])
        if not fresh.size:
            break
        omega = np.concatenate([omega, fresh])
        values = np.concatenate([values, evaluate(fresh)])
        order = np.argsort(omega, kind="stable")
        omega, values = omega[order], values[order]
    best = int(np.argmax(values))
    return float(values[best]), float(omega[best])


def frequencies(gain: Gain, count: int) -> HostArray:
    """Sorted frequencies: a uniform or logarithmic grid, and the `count` sharpest resonances of each system.

    Rounding tells them apart, for their own size or that of a turn: others would give no slope.
    """
    found = []
    for part in gain.parts:
        system, weight = part.system, 1.0
        if isinstance(system, DiagonalStateSpace):
            # Of the system itself or of its modes.
            own = system.eigenvalues
            weight = np.linalg.norm(system.B, axis=1) * np.linalg.norm(system.C, axis=0)
        else:
            own = part.poles
        # Resonances are as large as ‖c‖‖b‖/(distance to the boundary).
        distance = np.abs(gain.time.distance(own))
        sharpness = weight / np.maximum(distance, np.finfo(np.float64).tiny)
        found.append(own[np.argsort(sharpness)[-count:]])
    poles = np.concatenate(found)
    in_steps = isinstance(gain.time, Discrete)
    if in_steps:
        resonances = np.angle(poles)
        grid = np.linspace(0.0 if gain.real else -np.pi, np.pi, count + 1)
        if not gain.real:
            # A peak at an end would have neighbours on one side alone.
            grid = np.append(grid, np.pi + 2.0 * np.pi / count)
    else:
        sizes = np.abs(poles)
        # What rounding leaves of the imaginary part of a real pole is no frequency of its own.
        resonances = np.where(np.abs(poles.imag) > _CLOSEST * _EPS * sizes, poles.imag, 0.0)
        sizes, grid = sizes[sizes > 0], np.zeros(1)
        if sizes.size:
            slowest = max(sizes.min() / 100, np.finfo(np.float64).tiny)
            decades = np.geomspace(slowest, sizes.max() * 100, count)
            grid = np.concatenate([grid, decades, decades[:0] if gain.real else -decades])
    omega = np.unique(np.concatenate([grid, np.abs(resonances) if gain.real else resonances]))
    size = np.maximum(np.abs(omega[1:]), 1.0 if in_steps else 0.0)
    near = np.diff(omega) <= _CLOSEST * _EPS * size
    return np.asarray(omega[np.concatenate([[True], ~near])])


def _proposals(omega: HostArray, values: HostArray) -> tuple[HostArray, float]:
    """Two new frequencies for each of the largest local maxima, and the largest value they promise."""
    largest = values > 0
    largest[1:] &= values[1:] >= values[:-1]
    largest[:-1] &= values[:-1] >= values[1:]
    maxima = largest.nonzero()[0]
    best = maxima[values[maxima].argsort()[-_PEAKS:]]
    left = omega[np.maximum(best - 1, 0)] - omega[best]
    right = omega[np.minimum(best + 1, omega.size - 1)] - omega[best]
    middle = omega[best] + np.where(right > -left, right, left) / 2
    inside = (left < 0) & (right > 0)
    best, left, right = best[inside], left[inside], right[inside]
    highest, width = values[best], right - left
    with np.errstate(divide="ignore", over="ignore"):
        slope_left = (np.minimum((highest / values[best - 1]) ** 2, _STEEPEST) - 1.0) / left
        slope_right = (np.minimum((highest / values[best + 1]) ** 2, _STEEPEST) - 1.0) / right
        bend = slope_right - slope_left
        # Of three equal values the one in the middle, which promises nothing.
        lowest = 0.5 * (left - slope_left * width / np.where(bend > 0, bend, np.inf))
        drop = -lowest * (slope_left + bend * (lowest - left) / width)
        promised = highest / np.sqrt(np.maximum(1.0 - drop, 0.0))
    higher = drop > _LEVEL
    return np.concatenate([middle, (omega[best] + lowest)[higher]]), promised.max(initial=0.0)
