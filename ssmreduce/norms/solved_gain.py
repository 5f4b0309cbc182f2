"""The gain of a difference as far as it stands out of rounding.

A Schur form belongs to a matrix within n eps ‖A‖ of A. Where poles are lightly damped, or A is graded, that
moves the gain by more than the error of a good reduction. Solving with zI - A itself is often much better,
and what rounding makes of *that* is seen by solving once more with the states in reverse order: the
same numbers, rounded in another way. A lower bound on a norm is what is left of the gain without it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.norms.gain import Gain
from ssmreduce.norms.grid import peak
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.linear_solve import solve_stacked
from ssmreduce.systems.state_space import StateSpace

_AGREEMENT = 0.01
"""Relative difference from the gain by Schur forms up to which their grid is trusted."""

_ROUNDING = 2.0
"""Multiple of the change by another order of states, which is one sample of what rounding does."""

_GRID, _REFINEMENTS = 64, 4
"""A grid of solutions, O(n³) each, where that of the Schur forms shows their rounding alone."""


class SolvedGain(Gain):
    """The same gain by solving with zI - A at every frequency, O(n³) each."""

    def __init__(self, gain: Gain, *, mirrored: bool = False) -> None:
        vars(self).update(vars(gain))
        if mirrored:
            self.systems = [_mirrored(system) for system in gain.systems]

    def _part(self, i: int, omega: HostArray) -> HostArray:
        system = self.systems[i]
        if not isinstance(system, StateSpace) or system.order == 0:
            return super()._part(i, omega)
        z = np.exp(1j * omega) if self.discrete else 1j * omega
        values = np.empty((z.size, self.outputs, self.inputs), dtype=np.complex128)
        identity = np.eye(system.order)
        for k, point in enumerate(z):
            states = solve_stacked((point * identity - system.A)[None], system.B[None])[0]
            values[k] = system.C @ states
        return z[:, None, None] * values if system.read_after_update else values


def lower_bound(gain: Gain, *, grid: int, refinements: int, iterations: int) -> float:
    """Largest gain seen, less what rounding may have added; 0 where nothing stands out of it."""
    value, frequency = peak(gain, grid=grid, refinements=refinements, iterations=iterations)
    if value == 0.0 or not math.isfinite(frequency) or not gain.is_dense:
        return value
    solved = SolvedGain(gain)
    seen, rounding = _seen(gain, solved, frequency)
    if abs(seen - value) > _AGREEMENT * value:
        _, frequency = peak(solved, grid=_GRID, refinements=_REFINEMENTS, iterations=iterations)
        if not math.isfinite(frequency):
            return float(solved.exact(np.array([frequency]))[0])
        seen, rounding = _seen(gain, solved, frequency)
    return max(seen - rounding, 0.0)


def _seen(gain: Gain, solved: SolvedGain, frequency: float) -> tuple[float, float]:
    """The gain at one frequency, and what rounding may have made of it."""
    at = np.array([frequency])
    value, other = solved.matrices(at)[0], SolvedGain(gain, mirrored=True).matrices(at)[0]
    if not np.all(np.isfinite(value)) or not np.all(np.isfinite(other)):
        return 0.0, 0.0
    change = float(np.linalg.norm(value - other, ord=2))
    eps = float(np.finfo(np.float64).eps)
    return float(np.linalg.norm(value, ord=2)), _ROUNDING * (change + eps * gain.scale(frequency))


def _mirrored(system: System) -> System:
    if not isinstance(system, StateSpace):
        return system
    return replace(system, A=system.A[::-1, ::-1], B=system.B[::-1], C=system.C[:, ::-1])
