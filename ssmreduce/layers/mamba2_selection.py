"""Which states of a Mamba-2 mixer to keep, from what it is given.

State n of a group contributes S[t][:, n] C[t][n] to the channels of each of its heads, and to the outputs

    V[t] = W_out F[t] S[t] diag(C[t]),   (p, N),

a column each, where S has the channels of all heads of the group and W_out their columns, and F, diagonal, is
the gate and the norm, which is taken to stay what it was. Dropping states D changes the outputs by the sum of
their columns, so that K = Σ τ V[t]ᵀ V[t] says what it costs: 1_Dᵀ K 1_D. Nothing can make up for what is
dropped: B and C pass a convolution and SiLU before they meet the states, so that the weights hold no scale of
a state. States go one after the other, each time that with which 1_Dᵀ K 1_D is least. Cost: p N (d + N) for
each step that is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.mamba2_mixer import Mixer2, Run2
from ssmreduce.layers.selective import check_contributions

_SAMPLE = 2**12
"""Steps that are drawn for the Gram matrices, at least."""


def group_grams(mixer: Mixer2, sequences: Sequences) -> HostArray:
    """Return K of each group, shape (G, N, N)."""
    G, N = mixer.settings.groups, mixer.states
    total = np.zeros((G, N, N))
    out_proj = np.moveaxis(mixer.out_proj.reshape(len(mixer.out_proj), G, -1), 1, 0)
    stands_for = sequences.sample(max(_SAMPLE, 16 * N))
    for inputs, weights in zip(sequences.inputs, sequences.weights * stands_for, strict=True):
        if not np.any(weights):
            continue
        run = Run2(mixer, inputs)
        factors = run.factors(run.scanned() + mixer.skip * run.x)
        for chunk in run.chunks():
            for k in np.flatnonzero(weights[chunk.at]):
                t = chunk.at.start + int(k)
                states = chunk.state_at(int(k)).reshape(G, -1, N)
                seen = factors[t].reshape(G, -1, 1) * states * run.C[:, t, None]
                V = out_proj @ seen
                total += weights[t] * (adjoint(V) @ V)
    return total


@dataclass(frozen=True, eq=False)
class Dropping:
    """The states of each group in the order in which they go.

    Attributes
    ----------
    dropped : (G, N) int array
        The states, that which goes first in front.
    losses : (G, N) array
        1_Dᵀ K 1_D, once each of them has gone.
    """

    dropped: HostArray
    losses: HostArray

    @classmethod
    def of(cls, grams: HostArray) -> Dropping:
        """Drop all states, each time that which costs least.

        Raises
        ------
        NonFiniteError
            If what they contribute overflows.
        OrderError
            If no state contributes anything.
        """
        check_contributions(grams, "Mamba-2")
        groups, N = grams.shape[:2]
        dropped, losses = np.zeros((groups, N), np.intp), np.zeros((groups, N))
        for K, order, found in zip(grams, dropped, losses, strict=True):
            costs, left, loss = np.diagonal(K).copy(), np.ones(N, bool), 0.0
            for k in range(N):
                j = int(np.argmin(np.where(left, costs, np.inf)))
                loss = loss + costs[j]
                order[k], found[k], left[j] = j, loss, False
                costs = costs + 2.0 * K[:, j]
        return cls(dropped, losses)

    def kept(self, order: int) -> HostArray:
        """Return the states that are left, shape (G, order), ascending."""
        return np.sort(self.dropped[:, self.dropped.shape[1] - order :], axis=1)

    @property
    def scores(self) -> HostArray:
        """Roots of what the outputs lose with each state, descending: of all groups together.

        Losses of states that make up for each other fall again when both are gone; counted is the most.
        """
        most = np.sum(np.maximum.accumulate(self.losses, axis=1), axis=0)
        return np.sort(np.sqrt(np.diff(most, prepend=0.0)))[::-1]
