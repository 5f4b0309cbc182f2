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

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import shifted
from ssmreduce._state_units import balanced_matrix
from ssmreduce.errors import UnreachableToleranceError
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.prescaling import prescaled
from ssmreduce.systems.pytree import unchecked
from ssmreduce.systems.state_space import StateSpace

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
    for host in [system.to_host() for system in systems]:
        host, more = prescaled(host), 0
        if isinstance(host, StateSpace) and host.order:
            b, c = _exponents(host.B, host.C)
            A, scale = balanced_matrix(host.A)
            B, C = shifted(host.B, -b) / scale[:, None], shifted(host.C, -c) * scale
            host, more = prescaled(unchecked(host, A=A, B=B, C=C)), b + c
        hosts.append(host)
        known.append(more)
    time = 0
    if hosts[0].time.has_unit:
        time = max(_exponents(*(getattr(host, host.state_field) for host in hosts)))
    sizes = [_exponents(host.B, host.C, host.D) for host in hosts]
    gains = [b + c + more - time for (b, c, _), more in zip(sizes, known, strict=True)]
    gain = max(*gains, *(d for *_, d in sizes))
    result = []
    for host, (b, c, _), own in zip(hosts, sizes, gains, strict=True):
        # What the gain of this system lacks to 1 is shared between its inputs and outputs.
        lacking = own - gain
        arrays = {
            host.state_field: shifted(getattr(host, host.state_field), -time),
            "B": shifted(host.B, lacking // 2 - b),
            "C": shifted(host.C, lacking - lacking // 2 - c),
            "D": shifted(host.D, -gain),
        }
        result.append(unchecked(host, **arrays))
    return result, Units(gain, time)


def _exponents(*arrays: HostArray) -> list[int]:
    """Of each array the exponent e of the smallest power of two above all entries, `_SMALLEST` of zeros."""
    exponents = []
    for array in arrays:
        largest = float(np.abs(array).max(initial=0.0))
        if math.isinf(largest):  # the modulus of a complex number
            largest = max(float(np.abs(array.real).max()), float(np.abs(array.imag).max()))
        exponents.append(max(math.frexp(largest)[1], _SMALLEST) if largest else _SMALLEST)
    return exponents
