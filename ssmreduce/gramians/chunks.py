"""States and outputs of a system on many sequences, some steps at a time.

With g the state before a chunk of steps, the one after its inputs u[0], ..., u[j] is

    h = A^(j+1) g + Σ A^(j-i) B u[i],

a product of matrices, so that only the states before chunks follow from each other. A is that of a diagonal
system, or of a dense one; channels have one of their own each, and one input.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace

_WINDOW, _LONGEST = 64, 16
"""Inputs, and steps, in a chunk: the wider a layer, the more does a product of a whole chunk cost."""


class Powers(Protocol):
    """A⁰, ..., A^size of a system, on states in rows."""

    is_batch: bool
    size: int
    drive: HostArray
    """Bᵀ (A^(size-1))ᵀ, ..., Bᵀ: rows for each input of each step of a chunk, shape (..., size m, n)."""

    def moved(self, states: HostArray, steps: int) -> HostArray:
        """A^steps x of states, shape (..., R, n)."""

    def read(self, C: HostArray, steps: int) -> HostArray:
        """C A^steps."""


class _DiagonalPowers:
    """Those of a diagonal system."""

    def __init__(self, system: DiagonalStateSpace, size: int) -> None:
        self.is_batch, self.size = bool(system.batch_shape), size
        poles = system.eigenvalues[..., None, None, :]
        self._powers = poles ** np.arange(size + 1)[:, None, None]  # (..., size + 1, 1, n)
        descending = np.flip(self._powers[..., :-1, :, :], axis=-3)
        rows = descending * np.swapaxes(system.B[..., None, :, :], -1, -2)
        self.drive = rows.reshape(*system.batch_shape, -1, system.order)

    def moved(self, states: HostArray, steps: int) -> HostArray:
        return np.asarray(self._powers[..., steps, :, :] * states)

    def read(self, C: HostArray, steps: int) -> HostArray:
        return np.asarray(self._powers[..., steps, :, :] * C)


class _DensePowers:
    """Those of a dense system."""

    def __init__(self, system: StateSpace, size: int) -> None:
        self.is_batch, self.size = bool(system.batch_shape), size
        self._powers = [np.broadcast_to(np.eye(system.order), system.A.shape)]
        for _ in range(size):
            self._powers.append(self._powers[-1] @ system.A)
        rows = [np.swapaxes(power @ system.B, -1, -2) for power in self._powers[-2::-1]]
        self.drive = np.concatenate(rows, axis=-2)

    def moved(self, states: HostArray, steps: int) -> HostArray:
        return np.asarray(states @ np.swapaxes(self._powers[steps], -1, -2))

    def read(self, C: HostArray, steps: int) -> HostArray:
        return np.asarray(C @ self._powers[steps])


def powers(system: System, length: int) -> Powers:
    """Return the powers of A for sequences of some length.

    Parameters
    ----------
    system : System
        Discrete, on the host, read after its update; a diagonal one in complex arrays.
    length : int
        Steps of the sequences.
    """
    m = 1 if system.batch_shape else system.B.shape[-1]
    size = min(max(_WINDOW // m, 1), _LONGEST, length)
    if isinstance(system, StateSpace):
        return _DensePowers(system, size)
    return _DiagonalPowers(system, size)


class Chunks:
    """Sequences in chunks of steps, and the states before each of them.

    Parameters
    ----------
    powers : Powers
        Of the system that runs.
    inputs : (N, L, m) array
        Sequences; one input for each channel.
    """

    def __init__(self, powers: Powers, inputs: HostArray) -> None:
        self._powers, self._size = powers, powers.size
        self._count, self._length, width = inputs.shape
        self._chunks = -(-self._length // self._size)
        missing = self._chunks * self._size - self._length
        padded = np.pad(inputs, ((0, 0), (0, missing), (0, 0)))
        self._inputs = padded.reshape(-1, self._size, width)
        self._before = self._before_chunks()

    def _before_chunks(self) -> HostArray:
        """g, shape (..., N chunks, n)."""
        added = self._driven(self._inputs)
        apart = added.reshape(*added.shape[:-2], self._count, self._chunks, -1)
        before = np.zeros_like(apart)
        for k in range(1, self._chunks):
            moved = self._powers.moved(before[..., k - 1, :], self._size)
            before[..., k, :] = moved + apart[..., k - 1, :]
        return before.reshape(added.shape)

    def _driven(self, windows: HostArray) -> HostArray:
        """What inputs (R, steps, m) add to states, shape (..., R, n), at the last of these steps."""
        rows = self._rows(windows)
        drive = np.ascontiguousarray(self._powers.drive[..., -rows.shape[-1] :, :])
        return np.asarray((rows @ drive.view(np.float64)).view(drive.dtype))

    def _rows(self, windows: HostArray) -> HostArray:
        """From (R, steps, m) to (R, steps m), or to (channels, R, steps)."""
        if self._powers.is_batch:
            return np.moveaxis(windows, -1, 0)
        return windows.reshape(len(windows), -1)

    def states(self, sequences: HostArray, steps: HostArray) -> HostArray:
        """h, shape (..., R, n), of R sequences and steps."""
        chunks, places = np.divmod(steps, self._size)
        chunks = sequences * self._chunks + chunks
        before = self._before
        found = np.empty((*before.shape[:-2], len(steps), before.shape[-1]), before.dtype)
        for j in np.unique(places):
            at = np.flatnonzero(places == j)
            driven = self._driven(self._inputs[chunks[at], : j + 1])
            moved = self._powers.moved(np.take(before, chunks[at], axis=-2), j + 1)
            found[..., at, :] = moved + driven
        return found

    def read(self, C: HostArray) -> HostArray:
        """Re(C h), shape (N, L, p), at all steps."""
        kernel = (self._powers.drive @ np.swapaxes(C, -1, -2)).real
        own = np.swapaxes(real_output(C), -1, -2)
        found = []
        for j in range(self._size):
            windows = self._inputs[:, : j + 1]
            K = real_output(self._powers.read(C, j + 1))
            outputs = self._before.view(np.float64) @ np.swapaxes(K, -1, -2)
            if own.shape[-1] > own.shape[-2]:  # more outputs than features
                outputs += self._driven(windows).view(np.float64) @ own
            else:
                rows = self._rows(windows)
                outputs += rows @ kernel[..., -rows.shape[-1] :, :]
            found.append(np.moveaxis(outputs, -2, 0).reshape(len(windows), -1))
        every = np.stack(found, axis=1).reshape(self._count, self._chunks * self._size, -1)
        return every[:, : self._length]


def real_output(C: HostArray) -> HostArray:
    """[Re C, -Im C], with both columns of a state side by side; a real C as it is."""
    return np.asarray(np.conj(np.ascontiguousarray(C)).view(np.float64))
