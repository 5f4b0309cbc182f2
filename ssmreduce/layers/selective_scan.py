"""The selective scan of Mamba on the host: a linear recurrence whose coefficients depend on the input.

Channel d has N states with rates a[d, n] < 0, its own step Δ[t, d], and drives and reads them by vectors
B[t], C[t] that all channels share:

    h[t, d, n] = exp(Δ[t, d] a[d, n]) h[t-1, d, n] + Δ[t, d] x[t, d] B[t, n],
    y[t, d] = Σ_n C[t, n] h[t, d, n].

For given Δ and x the outputs are linear in B, and in C. The adjoint of B ↦ y is the same scan in reverse,

    g[t, d, n] = q[t, d] C[t, n] + exp(Δ[t+1, d] a[d, n]) g[t+1, d, n],
    dB[t, n] = Σ_d Δ[t, d] x[t, d] g[t, d, n].

Arrays have the time first, then sequences. States are computed a chunk of steps at a time and are never all
kept: exponentials of a chunk at once, a loop over its steps with all channels, states and sequences.

Reference: Gu and Dao, Mamba: linear-time sequence modeling with selective state spaces, COLM (2024).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssmreduce._array_libraries import HostArray

_CHUNK = 2**17
"""States, over all steps, in a chunk: so that it stays in the cache of a core."""


def states(
    rates: HostArray, step: HostArray, drive: HostArray, B: HostArray
) -> Iterator[tuple[slice, HostArray]]:
    """Yield steps and their states h, shape (steps, S, D, N), chunk by chunk.

    Parameters
    ----------
    rates : (D, N) array
        a, negative.
    step : (L, S, D) array
        Δ of S sequences.
    drive : (L, S, D) array
        Δ x.
    B : (L, S, N) array
        What drives the states.
    """
    length, count, channels = step.shape
    size = max(1, _CHUNK // (count * channels * rates.shape[1]))
    state = np.zeros((count, channels, rates.shape[1]))
    for first in range(0, length, size):
        at = slice(first, min(first + size, length))
        decay = np.exp(step[at][..., None] * rates)
        chunk = drive[at][..., None] * B[at][:, :, None, :]
        for factor, now in zip(decay, chunk, strict=True):
            factor *= state
            now += factor
            state = now
        yield at, chunk


def scan(
    rates: HostArray, step: HostArray, drive: HostArray, B: HostArray, C: HostArray
) -> HostArray:
    """Return y, shape (L, S, D)."""
    y = np.empty(step.shape)
    for at, h in states(rates, step, drive, B):
        y[at] = (h @ C[at][..., None])[..., 0]
    return y


def scan_adjoint(
    rates: HostArray, step: HostArray, drive: HostArray, C: HostArray, q: HostArray
) -> HostArray:
    """Return dB, shape (L, S, N), with Σ dB B = Σ q y for all B."""
    later = np.zeros_like(step)  # from its end, a sequence decays by the step that follows
    later[1:] = step[:0:-1]
    found = np.empty(C.shape)
    driven = drive[::-1]
    for at, g in states(rates, later, q[::-1], C[::-1]):
        found[at] = (driven[at][:, :, None, :] @ g)[:, :, 0, :]
    return found[::-1]
