"""Fewer states for a Mamba mixer: `StateMaps`, and the merging of states that decay alike.

States of one rate of decay are as good as any combinations of them: with a[d, n] = a[d] for the states n of
a group, the group puts out

    y[t, d] = Σ_s decay(t, s)[d] Δ[s, d] x[s, d] x[t]ᵀ G x[s],   G = Σ_n W_C[n]ᵀ W_B[n],

so that a low-rank approximation of G, in the metric of E[x xᵀ], needs fewer. Rates are grouped into a few, by
their means over channels (k-means in one dimension, which has an exact answer), and the singular triplets of
all groups compete by σ² times what a state of the group has of energy at the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.mamba_mixer import Mixer
from ssmreduce.layers.selective_scan import states

_RATES = 4
"""Rates of each channel that are left, at most."""

_ROUNDING = 1e-12
"""Singular values below this share of the first are nothing."""


@dataclass(frozen=True, eq=False)
class StateMaps:
    """How N states become r others.

    Attributes
    ----------
    drive : (r, N) array
        T: the new states are T h, driven by T W_B.
    read : (r, N) array
        R: the new states are read by R W_C.
    rates : (r, N) array
        S: the new A_log is A_log Sᵀ.
    """

    drive: HostArray
    read: HostArray
    rates: HostArray

    @classmethod
    def selection(cls, kept: HostArray, scales: HostArray, count: int) -> StateMaps:
        """Keep some of `count` states, and read them with `scales`."""
        rows = np.eye(count)[kept]
        return cls(rows, scales[:, None] * rows, rows)

    @property
    def is_selection(self) -> bool:
        """Whether new states are old ones."""
        return bool(np.array_equal(self.drive, self.rates))

    def mapped(self, mixer: Mixer) -> Mixer:
        """Return a mixer with the new states."""
        rows = mixer.to_delta, self.drive @ mixer.to_B, self.read @ mixer.to_C
        A_log = mixer.weights["A_log"] @ adjoint(self.rates)
        return Mixer({**mixer.weights, "A_log": A_log, "x_proj.weight": np.concatenate(rows)})


def merged(
    mixer: Mixer, sequences: Sequences, lengths: HostArray, moment: HostArray, count: int
) -> StateMaps:
    """Return maps to `count` states with a few rates.

    Parameters
    ----------
    mixer : Mixer
        All states.
    sequences : Sequences
        What it is given.
    lengths : (N,) array
        Root of the energy of what each state contributes: weights of means.
    moment : (D, D) array
        E[x xᵀ], positive definite.
    count : int
        How many to keep.
    """
    logarithms = mixer.weights["A_log"]
    means = np.mean(logarithms, axis=0)
    groups = grouped(means, lengths, min(_RATES, count))
    found = np.unique(groups)
    S = np.where(groups == found[:, None], lengths + np.finfo(float).tiny, 0.0)
    S /= np.sum(S, axis=1, keepdims=True)
    gains = _gains(mixer, sequences, -np.exp(logarithms @ adjoint(S)))
    values, vectors = np.linalg.eigh(moment)
    root = (vectors * np.sqrt(values)) @ adjoint(vectors)
    worths, triplets = [], []
    for g, label in enumerate(found):
        own = np.flatnonzero(groups == label)
        B, C = mixer.to_B[own] @ root, mixer.to_C[own] @ root
        # Cᵀ B = Q_C R_C R_Bᵀ Q_Bᵀ, and no Q is needed for C U and B V.
        to_C, to_B = (np.linalg.qr(adjoint(each), mode="r") for each in (C, B))
        U, sigma, V = np.linalg.svd(to_C @ adjoint(to_B))
        for i in range(sigma.size):
            if sigma[i] > _ROUNDING * sigma[0]:
                T, R = np.zeros((2, groups.size))
                T[own] = U[:, i] @ to_C / np.sqrt(sigma[i])
                R[own] = V[i] @ to_B / np.sqrt(sigma[i])
                worths.append(gains[g] * sigma[i] ** 2)
                triplets.append((T, R, S[g]))
    best = np.sort(np.argsort(worths)[::-1][:count])
    return StateMaps(*(np.stack([triplets[at][part] for at in best]) for part in range(3)))


def _gains(mixer: Mixer, sequences: Sequences, rates: HostArray) -> HostArray:
    """Σ τ p s² |W_out|² over steps and channels, p[t] = exp(2 Δ a) p[t-1] + (Δ x)², for rates (D, G)."""
    total = np.zeros(rates.shape[1])
    seen = np.sum(mixer.out_proj**2, axis=0)
    for few, run in mixer.runs(sequences.inputs, rates.shape[1]):
        weights = adjoint(sequences.weights[few])[..., None] * run.gate**2 * seen
        ones = np.ones((*run.step.shape[:2], rates.shape[1]))
        for at, energy in states(2.0 * rates, run.step, run.drive**2, ones):
            total += np.tensordot(weights[at], energy, axes=3)
    return total


def grouped(values: HostArray, weights: HostArray, count: int) -> HostArray:
    """Return the group of each value, from 0 on, with the least weighted sum of squares about their means.

    Groups are intervals: dynamic programming over the distinct values in order, O(count n²).
    """
    distinct, which = np.unique(values, return_inverse=True)
    w = np.bincount(which, weights) + np.finfo(float).tiny
    v = distinct - np.mean(distinct)
    sums = np.zeros((len(v) + 1, 3))
    sums[1:] = np.cumsum(np.stack([w, w * v, w * v**2], axis=1), axis=0)
    size, first, second = np.moveaxis(sums[None, :] - sums[:, None], -1, 0)  # from, to
    ahead = np.triu(np.ones(size.shape, bool), 1)
    costs = np.where(ahead, second - first**2 / np.where(ahead, size, 1.0), np.inf)
    best, cuts = costs[0], []
    for _ in range(min(count, len(v)) - 1):
        total = best[:, None] + costs
        cuts.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    groups = np.zeros(len(v), np.intp)
    end = len(v)
    for k, cut in reversed([*enumerate(cuts, 1)]):
        begin = int(cut[end])
        groups[begin:end] = k
        end = begin
    return groups[which]
