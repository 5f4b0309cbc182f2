"""The scan of Mamba-2 on the host: states that are matrices, with one decay for all entries of a head.

Head h of group g has a state S (P, N), decays by the scalar a[t, h] < 1 and is driven and read by vectors
B[t], C[t] that the heads of a group share:

    S[t] = a[t] S[t-1] + v[t] B[t]ᵀ,   y[t] = S[t] C[t].

The steps of a chunk are multiplied out: with c[t] = a[1] ... a[t] from its beginning, where the state is S0,

    y[t] = Σ_{s ≤ t} (c[t] / c[s]) (C[t] · B[s]) v[s] + c[t] S0 C[t],

two products of matrices, and the state at any step t is Σ_{s ≤ t} (c[t] / c[s]) v[s] B[s]ᵀ + c[t] S0.
Quotients come from logarithms, and none is above 1. Cost for each step and head: a chunk's length times
N + P, and P N. States are there at the steps that are asked for, and are never all kept.

Arrays have groups first, then the heads of each, then steps. Reference: Dao and Gu, Transformers are SSMs,
ICML (2024).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint

_CHUNK = 64
"""Steps that are multiplied out at once."""


class Chunk:
    """A few steps of a sequence.

    Attributes
    ----------
    at : slice
        Which.
    """

    def __init__(
        self, at: slice, decay: HostArray, drive: HostArray, B: HostArray, state: HostArray
    ) -> None:
        self.at = at
        self._drive, self._B, self._state = drive[:, :, at], B[:, None, at], state
        total = np.cumsum(decay[:, :, at], axis=-1)
        self._since = np.exp(total)[..., None]
        apart = total[..., :, None] - total[..., None, :]
        causal = np.tri(apart.shape[-1], dtype=bool)
        self._between = np.where(causal, np.exp(np.where(causal, apart, 0.0)), 0.0)

    def outputs(self, C: HostArray) -> HostArray:
        """Return y of these steps, shape (G, J, steps, P), for all C of the sequence."""
        C = C[:, None, self.at]
        scores = C @ adjoint(self._B)
        own = (scores * self._between) @ self._drive
        return np.asarray(own + self._since * (C @ adjoint(self._state)))

    def state_at(self, t: int) -> HostArray:
        """Return S after step t of these, counted from 0, shape (G, J, P, N)."""
        weights = self._between[:, :, t, : t + 1, None]
        driven = adjoint(weights * self._drive[:, :, : t + 1]) @ self._B[:, :, : t + 1]
        return np.asarray(driven + self._since[:, :, t, :, None] * self._state)

    @property
    def last(self) -> HostArray:
        """S after the last step."""
        return self.state_at(self._between.shape[-1] - 1)


def chunks(decay: HostArray, drive: HostArray, B: HostArray) -> Iterator[Chunk]:
    """Yield the chunks of a sequence, from rest.

    Parameters
    ----------
    decay : (G, J, L) array
        Logarithms of a, of J heads in each of G groups.
    drive : (G, J, L, P) array
        v.
    B : (G, L, N) array
        What the states are driven by.
    """
    length = decay.shape[-1]
    state = np.zeros((*decay.shape[:2], drive.shape[-1], B.shape[-1]))
    for first in range(0, length, _CHUNK):
        chunk = Chunk(slice(first, min(first + _CHUNK, length)), decay, drive, B, state)
        yield chunk
        state = chunk.last
