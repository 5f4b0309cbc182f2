"""Prescaling: units of states in which their rows of B and columns of C are about equally large."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import shifted
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import unchecked
from ssmreduce.systems.state_space import StateSpace, in_balanced_units

SomeSystem = TypeVar("SomeSystem", StateSpace, DiagonalStateSpace, System)

NO_SIZE = -(2**16)
"""Exponent of the size of a zero array: smaller than any other."""

_SPREAD = 300
"""Spread of the exponents of inputs or outputs from which products may underflow."""

_MODERATE = 2.0 ** (_SPREAD - 1)
"""Ratio below which exponents differ by less."""


def prescaled(system: SomeSystem) -> SomeSystem:
    """A system on the host in such units where products of its B and C might underflow, else itself.

    A state with inputs of 1e200 and outputs of 1e-200 counts as much as one with 1 and 1. States that A
    couples both ways keep their units to each other once they are balanced. Units are powers of two.
    """
    spread = 0
    for array, axis in ((system.B, -1), (system.C, -2)):
        entries = np.abs(array)
        smallest = float(np.minimum.reduce(entries, axis=None, initial=np.inf))
        # Most often sizes of all entries do not differ that much.
        if float(np.maximum.reduce(entries, axis=None, initial=0.0)) >= smallest * _MODERATE:
            exponents = _exponents(array, axis)
            known = exponents[exponents > NO_SIZE]  # zeros do not count
            spread = max(spread, np.ptp(known) if known.size else 0)
    if system.C.shape[-1] <= 1 or spread < _SPREAD:
        return system
    if isinstance(system, StateSpace):
        system = in_balanced_units(system)
    B, C = _exponents(system.B, -1), _exponents(system.C, -2)
    if isinstance(system, DiagonalStateSpace):
        state = system.eigenvalues
        shift = np.where((B > NO_SIZE) & (C > NO_SIZE), (C - B) // 2, 0)
    else:
        state, shift = _evened_parts(system.A, B, C)
    B, C = shifted(system.B, shift[..., :, None]), shifted(system.C, -shift[..., None, :])
    return unchecked(system, **{system.state_field: state}, B=B, C=C)


def _evened_parts(A: HostArray, B: HostArray, C: HostArray) -> tuple[HostArray, HostArray]:
    """A in units of parts that it couples in one direction only, and their exponents.

    Where the coupling of two parts would overflow in such units, both have one unit.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    for connection in ("strong", "weak"):
        # A dense array would lose entries below 1e-8.
        _, part = connected_components(csr_array(A != 0), connection=connection)
        shift = np.zeros(len(B), dtype=int)
        for k in range(part.max() + 1):
            inputs, outputs = B[part == k].max(), C[part == k].max()
            if min(inputs, outputs) > NO_SIZE:
                shift[part == k] = (outputs - inputs) // 2
        with np.errstate(over="ignore"):
            even = shifted(A, shift[:, None] - shift)
        if np.abs(even).max() <= max(np.abs(A).max(), 1.0):
            break
    return even, shift


def _exponents(array: HostArray, axis: int) -> HostArray:
    largest = np.abs(array).max(axis=axis, initial=0.0)
    return np.where(largest > 0.0, np.frexp(largest)[1], NO_SIZE)
