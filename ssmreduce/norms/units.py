"""Systems in units in which nothing over- or underflows: entries of about 1, whatever they were.

With powers of two t, β, γ for the units of time, inputs and outputs, and S for those of the states,

    A' = S⁻¹ A S / t,   B' = β S⁻¹ B,   C' = γ C S,   D' = t β γ D   have   G'(z/t) = t β γ G(z)

(t = 1 in discrete time, where z has no unit). S makes rows and columns of A about equally large: without
it a badly scaled basis makes ‖A‖, and with it every backward error, arbitrarily large. Nothing is rounded;
only what is negligible beside the rest underflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ssmreduce._namespace import HostArray
from ssmreduce.errors import UnreachableToleranceError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_ZERO = -(2**16)
"""Exponent of the size of a zero array: smaller than any other."""


@dataclass(frozen=True)
class Units:
    """Exponents of two: a gain of 1 here is 2^gain outside, a frequency of 1 is 2^time."""

    gain: int
    time: int

    def gain_outside(self, gain: float) -> float:
        """Return a gain in the units of the given systems.

        Raises
        ------
        UnreachableToleranceError
            If doubles cannot hold it.
        """
        if gain == 0.0 or math.isinf(gain):
            return gain
        mantissa, exponent = math.frexp(gain)
        exponent += self.gain
        if not np.finfo(np.float64).minexp < exponent <= np.finfo(np.float64).maxexp:
            raise UnreachableToleranceError(
                f"the gain of `system` is about 1e{exponent * math.log10(2.0):+.0f}; expected one between "
                "1e-307 and 1e308, which doubles hold. Choose other units of inputs and outputs."
            )
        return math.ldexp(mantissa, exponent)

    def frequency_outside(self, frequency: float) -> float:
        """Return a frequency in the units of the given systems."""
        return math.ldexp(frequency, self.time)


def in_units(systems: Sequence[System]) -> tuple[list[System], Units]:
    """Return systems on the host in units common to all of them, and those."""
    hosts = [_balanced(system.to_host()) for system in systems]
    discrete = isinstance(hosts[0].time, Discrete)
    time = 0 if discrete else max(_exponent(_state(system)) for system in hosts)
    time = max(time, -1000)
    sizes = [(_exponent(x.B), _exponent(x.C)) for x in hosts]
    gain = max(
        max(b + c - time for b, c in sizes),
        max(_exponent(np.asarray(system.D)) for system in hosts),
    )
    if gain < _ZERO // 2:
        gain = 0
    scaled = []
    for host, (b, c) in zip(hosts, sizes, strict=True):
        if b < _ZERO // 2 or c < _ZERO // 2:
            b = c = 0
        # What the gain of this system lacks to 1 is shared between its inputs and outputs.
        lacking = b + c - time - gain
        arrays = {
            "B": _shifted(host.B, lacking // 2 - b),
            "C": _shifted(host.C, lacking - lacking // 2 - c),
            "D": _shifted(np.asarray(host.D), -gain),
        }
        scaled.append(_replaced(host, _shifted(_state(host), -time), **arrays))
    return scaled, Units(gain, time)


def _state(system: System) -> HostArray:
    return system.eigenvalues if isinstance(system, DiagonalStateSpace) else system.A


def _replaced(system: System, state: HostArray, **arrays: HostArray) -> System:
    """The system with other arrays of the same shapes, which need no second check."""
    copy = object.__new__(type(system))
    name = "eigenvalues" if isinstance(system, DiagonalStateSpace) else "A"
    vars(copy).update(vars(system) | arrays | {name: state})
    return copy


def _balanced(system: System) -> System:
    if not isinstance(system, StateSpace) or system.order == 0:
        return system
    A, (scale, _) = scipy.linalg.matrix_balance(system.A, permute=False, separate=True)
    return _replaced(system, A, B=system.B / scale[:, None], C=system.C * scale)


def _exponent(array: HostArray) -> int:
    """Exponent e of the smallest power of two above all entries."""
    if not array.size:
        return _ZERO
    largest = float(np.abs(array).max())
    if math.isinf(largest):  # the modulus of a complex number
        largest = max(float(np.abs(array.real).max()), float(np.abs(array.imag).max()))
    return math.frexp(largest)[1] if largest else _ZERO


def _shifted(array: HostArray, exponent: int) -> HostArray:
    """The array times 2^exponent, in two steps where that alone is no double."""
    half = min(max(exponent, -2000), 2000) // 2
    rest = min(max(exponent, -2000), 2000) - half
    return np.asarray(array * math.ldexp(1.0, half) * math.ldexp(1.0, rest))
