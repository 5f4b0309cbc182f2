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

from ssmreduce._lapack import shifted
from ssmreduce._namespace import HostArray
from ssmreduce._state_units import balanced
from ssmreduce.errors import UnreachableToleranceError
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.even_states import NO_SIZE, even_states, replaced, state_of
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_SMALLEST = -1100
"""Exponent below which there are no doubles: zero in units is zero."""


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
        """Return a frequency in the units of the given systems.

        Raises
        ------
        UnreachableToleranceError
            If doubles cannot hold it.
        """
        if math.frexp(frequency)[1] + self.time > np.finfo(np.float64).maxexp:
            raise UnreachableToleranceError(
                "the gain of `system` is largest at a frequency beyond the range of double precision; "
                "expected one below 1e308. Choose another unit of time."
            )
        return math.ldexp(frequency, self.time)


def in_units(systems: Sequence[System]) -> tuple[list[System], Units]:
    """Return systems on the host in units common to all of them, and those."""
    hosts, known = [], []
    for system in systems:
        host = even_states(system.to_host())
        b, c = (max(_exponent(x), _SMALLEST) for x in (host.B, host.C))
        scaled = replaced(host, state_of(host), B=shifted(host.B, -b), C=shifted(host.C, -c))
        hosts.append(even_states(_balanced(scaled)))
        known.append(b + c)
    time = 0
    if not isinstance(hosts[0].time, Discrete):
        time = max(_SMALLEST, *(_exponent(state_of(system)) for system in hosts))
    sizes = [(max(_exponent(x.B), _SMALLEST), max(_exponent(x.C), _SMALLEST)) for x in hosts]
    gains = [b + c + more - time for (b, c), more in zip(sizes, known, strict=True)]
    gain = max(*gains, *(max(_exponent(np.asarray(x.D)), _SMALLEST) for x in hosts))
    result = []
    for host, (b, c), own in zip(hosts, sizes, gains, strict=True):
        # What the gain of this system lacks to 1 is shared between its inputs and outputs.
        lacking = own - gain
        arrays = {
            "B": shifted(host.B, lacking // 2 - b),
            "C": shifted(host.C, lacking - lacking // 2 - c),
            "D": shifted(np.asarray(host.D), -gain),
        }
        result.append(replaced(host, shifted(state_of(host), -time), **arrays))
    return result, Units(gain, time)


def _balanced(system: System) -> System:
    if not isinstance(system, StateSpace) or system.order == 0:
        return system
    A, scale = balanced(system.A)
    return replaced(system, A, B=system.B / scale[:, None], C=system.C * scale)


def _exponent(array: HostArray) -> int:
    """Exponent e of the smallest power of two above all entries."""
    if not array.size:
        return NO_SIZE
    largest = float(np.abs(array).max())
    if math.isinf(largest):  # the modulus of a complex number
        largest = max(float(np.abs(array.real).max()), float(np.abs(array.imag).max()))
    return math.frexp(largest)[1] if largest else NO_SIZE
