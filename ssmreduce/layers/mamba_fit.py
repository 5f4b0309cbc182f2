"""Which states of a Mamba mixer to keep, and how to read and drive them then, from what it is given.

With s = SiLU(z), the states of one step contribute to the output of the layer

    V[t] = W_out diag(s[t]) h[t] diag(C[t]),   (p, N),

a column each; out = V 1 + W_out (s ⊙ D x). Scales w of the states, w = 1 for now, change it by V (w - 1), so
that K = Σ τ V[t]ᵀ V[t] says what a choice of them costs. Dropping state j, with the best change of all other
scales, costs w_j² / M_jj for M = K⁻¹, and the inverse without it follows by one step of elimination: the
optimal brain surgeon, on scales. Rows of B stay, those of C get the scales.

Then W_C (with the skip D) and W_B, in both of which outputs are linear, are fitted to the outputs in turn, by

    min Σ τ |target - out(W)|² + λ ‖W - W⁰‖²_P,

a few steps of conjugate gradients. The dense normal matrix has (N D)² entries and is never formed; its part
for W_C is about P = (Σ τ Gᵀ G) ⊗ E[x xᵀ], G[t] = W_out diag(s[t]) h[t], which is the preconditioner and the
metric of the ridge. For W_B the same with diag(C[t]) and the states that B = 1 drives.

References: Hassibi and Stork, Second order derivatives for network pruning, NeurIPS (1992); Hestenes and
Stiefel, J. Res. NBS 49 (1952).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import NonFiniteError
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.mamba_mixer import Mixer, Run
from ssmreduce.layers.selective import check_contributions
from ssmreduce.layers.selective_mixer import product
from ssmreduce.layers.selective_scan import scan, scan_adjoint, states

_RIDGE = 1e-5
"""Added to K and to E[x xᵀ], in units of the mean of the diagonal."""

_ITERATIONS = 10
"""Of conjugate gradients."""

_STEPS = 2**14
"""Steps of sequences that are looked at: more say much the same."""

_KEPT = 2**22
"""Numbers of one kind for all channels and steps up to which what is given to scans is kept during a fit."""

_SAMPLE = 2**12
"""Steps that are drawn of them for a Gram matrix of contributions, which cost most."""


def few_sequences(sequences: Sequences, least: float) -> Sequences:
    """Return as many sequences, from all over them, as have `least` steps, and some thousands anyway."""
    count, length = sequences.weights.shape
    wanted = -(-max(int(least), _STEPS) // length)
    if wanted >= count:
        return sequences
    at = np.linspace(0, count - 1, wanted).round().astype(int)
    return Sequences(sequences.inputs[at], sequences.targets[at], sequences.weights[at])


def output_gram(
    mixer: Mixer, sequences: Sequences, *, driven: bool = True, read: bool = True
) -> HostArray:
    """Return Σ τ Vᵀ V, shape (N, N); with B = 1 unless `driven`, and C = 1 unless `read`."""
    N = mixer.rates.shape[1]
    total = np.zeros((N, N))
    stands_for = sequences.sample(max(_SAMPLE, 16 * N))
    for few, run in mixer.runs(sequences.inputs):
        roots = adjoint(np.sqrt(sequences.weights[few] * stands_for[few]))
        ones = np.ones((*roots.shape, N))
        B = run.projected(mixer.to_B) if driven else ones
        C = run.projected(mixer.to_C) if read else ones
        for at, h in states(mixer.rates, run.step, run.drive, B):
            seen = np.nonzero(roots[at])
            gates = roots[at][seen][:, None] * run.gate[at][seen]
            V = mixer.out_proj @ (gates[..., None] * h[seen] * C[at][seen][:, None, :])
            total += np.tensordot(V, V, axes=((0, 1), (0, 1)))
    return total


@dataclass(frozen=True, eq=False)
class Elimination:
    """The states of a mixer in the order in which they go.

    Attributes
    ----------
    K : (N, N) array
        Gram matrix of what they contribute to outputs.
    dropped : (N,) int array
        The states, that which goes first in front.
    scores : (N,) array
        Root of what the outputs lose with each, in the same order.
    """

    K: HostArray
    dropped: HostArray
    scores: HostArray

    @classmethod
    def of(cls, K: HostArray) -> Elimination:
        """Eliminate all states, each time that which costs least once the others make up for it.

        Raises
        ------
        NonFiniteError
            If what they contribute overflows.
        OrderError
            If no state contributes anything.
        """
        check_contributions(K, "Mamba")
        N = len(K)
        M = np.linalg.inv(_ridged(K))
        w, left = np.ones(N), np.ones(N, bool)
        dropped, scores = np.zeros(N, np.intp), np.zeros(N)
        for k in range(N):
            costs = np.where(left, w**2 / np.where(left, np.diagonal(M), 1.0), np.inf)
            j = int(np.argmin(costs))
            dropped[k], scores[k], left[j] = j, np.sqrt(costs[j]), False
            w = w - M[:, j] * (w[j] / M[j, j])
            M = M - np.outer(M[:, j], M[j] / M[j, j])
        return cls(K, dropped, scores)

    @property
    def descending(self) -> HostArray:
        """The scores, largest first."""
        return np.sort(self.scores)[::-1]

    def kept(self, order: int) -> tuple[HostArray, HostArray]:
        """Return the states that are left, ascending, and the scales that make up for the others."""
        kept = np.sort(self.dropped[len(self.K) - order :])
        ridged = _ridged(self.K)
        # All scales at once: the minimum of (w - 1)ᵀ (K + ridge) (w - 1) with w = 0 elsewhere.
        scales = np.linalg.solve(ridged[np.ix_(kept, kept)], ridged[kept].sum(axis=1))
        return kept, scales


def refitted(mixer: Mixer, sequences: Sequences) -> Mixer:
    """Return the mixer with W_C, W_B and again W_C fitted to the targets, the skip with W_C."""
    for fit in (ReadoutFit, DriveFit, ReadoutFit):
        mixer = fit(mixer, sequences).fitted()
    return mixer


class OutputFit(ABC):
    """A fit of weights, in which outputs are linear, to the targets of sequences: of W_C and D, or of W_B.

    A change of them is a flat array, that of D last.

    Attributes
    ----------
    anchor : float
        λ.
    reads : bool
        Whether W_C is fitted, and D; else W_B.
    """

    anchor: float
    reads: bool

    def __init__(self, mixer: Mixer, sequences: Sequences) -> None:
        self.mixer, self.sequences = mixer, sequences
        self._kept: list[tuple[Run, HostArray, HostArray]] = []

    @abstractmethod
    def products(self, change: HostArray | None) -> HostArray:
        """Return Jᵀ τ J of a change of the weights, or without one Jᵀ τ (target - out)."""

    @property
    def rows(self) -> HostArray:
        """What is fitted of W_x, shape (N, D)."""
        return self.mixer.to_C if self.reads else self.mixer.to_B

    def parts(self, change: HostArray) -> tuple[HostArray, HostArray]:
        """Return a change of rows of W_x, and one of D, which is empty in a fit of W_B."""
        size = self.rows.size
        return change[:size].reshape(self.rows.shape), change[size:]

    def moved(self, change: HostArray) -> Mixer:
        """Return the mixer with a change."""
        weights, (rows, skip) = self.mixer.weights, self.parts(change)
        x_proj, D = weights["x_proj.weight"].copy(), weights["D"].copy()
        N = len(rows)
        x_proj[slice(-N, None) if self.reads else slice(-2 * N, -N)] += rows
        D[: skip.size] += skip
        return Mixer({**weights, "x_proj.weight": x_proj, "D": D})

    def metric(self, change: HostArray, *, inverse: bool = False) -> HostArray:
        """Return P, or P⁻¹, times a change: a Kronecker product for rows of W_x and a diagonal for D."""
        rows, skip = self.parts(change)
        moment, direct = self.moments
        direct = direct[: skip.size]
        if inverse:
            both = np.linalg.solve(self._gain, rows) @ self._inverse_moment
            return np.concatenate([both.ravel(), skip / direct])
        return np.concatenate([(self._gain @ rows @ moment).ravel(), skip * direct])

    def fitted(self) -> Mixer:
        """Return the mixer after a few steps of conjugate gradients, from no change on."""
        from scipy.sparse.linalg import LinearOperator, cg  # 30 ms to load

        residual = self.products(None)
        operator = partial(LinearOperator, (residual.size, residual.size), dtype=float)
        normal = operator(lambda x: self.products(x) + self.anchor * self.metric(x))
        inverse = operator(lambda x: self.metric(x, inverse=True))
        least = float(np.finfo(np.float64).tiny)
        change, _ = cg(normal, residual, rtol=0.0, atol=least, maxiter=_ITERATIONS, M=inverse)
        if not np.all(np.isfinite(change)):
            raise NonFiniteError(
                "a fit of Mamba's projections to `data` ends in NaN or Inf; expected finite weights. Keep "
                "more states, or calibrate with other batches."
            )
        return self.moved(change)

    def runs(self) -> Iterable[tuple[Run, HostArray, HostArray]]:
        """Runs of a few sequences each, and their targets and weights, with the time first."""
        if self.sequences.weights.size * len(self.mixer.rates) > _KEPT:
            return self._new_runs()
        self._kept = self._kept or list(self._new_runs())
        return self._kept

    def _new_runs(self) -> Iterator[tuple[Run, HostArray, HostArray]]:
        targets, weights = self.sequences.targets, self.sequences.weights
        for few, run in self.mixer.runs(self.sequences.inputs):
            yield run, np.swapaxes(targets[few], 0, 1), adjoint(weights[few])[..., None]

    @cached_property
    def _gain(self) -> HostArray:
        gram = output_gram(self.mixer, self.sequences, driven=self.reads, read=not self.reads)
        return _ridged(gram)

    @cached_property
    def moments(self) -> tuple[HostArray, HostArray]:
        """E[x xᵀ], and Σ τ s² x² |W_out|² of each channel, with a ridge."""
        D = len(self.mixer.rates)
        moment, direct, total = np.zeros((D, D)), np.zeros(D), 0.0
        for run, _, weights in self.runs():
            moment += np.tensordot(weights * run.x, run.x, axes=((0, 1), (0, 1)))
            direct += np.sum(weights * (run.gate * run.x) ** 2, axis=(0, 1))
            total += float(np.sum(weights))
        direct *= np.sum(self.mixer.out_proj**2, axis=0)
        return _ridged(moment / total), direct + _RIDGE * np.mean(direct)

    @cached_property
    def _inverse_moment(self) -> HostArray:
        return np.asarray(np.linalg.inv(self.moments[0]))


class ReadoutFit(OutputFit):
    """The fit of W_C and D, which are joined in this order."""

    anchor = 1e-2
    reads = True

    def products(self, change: HostArray | None) -> HostArray:
        """Return Jᵀ τ J of a change, with q = s ⊙ (e W_out): Σ (hᵀ q) xᵀ and Σ q ⊙ x."""
        mixer = self.mixer
        to_C, skip = (mixer.to_C, mixer.skip) if change is None else self.parts(change)
        total, direct = np.zeros(to_C.shape), np.zeros(skip.shape)
        for run, targets, weights in self.runs():
            B, C = run.projected(mixer.to_B), run.projected(to_C)
            for at, h in states(mixer.rates, run.step, run.drive, B):
                x, gate = run.x[at], run.gate[at]
                out = product(gate * ((h @ C[at][..., None])[..., 0] + skip * x), mixer.out_proj)
                error = targets[at] - mixer.out_bias - out if change is None else out
                q = gate * product(weights[at] * error, adjoint(mixer.out_proj))
                seen = (q[:, :, None, :] @ h)[:, :, 0, :]
                total += np.tensordot(seen, x, axes=((0, 1), (0, 1)))
                direct += np.sum(q * x, axis=(0, 1))
        return np.concatenate([total.ravel(), direct])


class DriveFit(OutputFit):
    """The fit of W_B."""

    anchor = 1e-3
    reads = False

    def products(self, change: HostArray | None) -> HostArray:
        """Return Jᵀ τ J of a change: a scan there, one in reverse back."""
        mixer = self.mixer
        to_B, skip = (mixer.to_B, mixer.skip) if change is None else (self.parts(change)[0], 0.0)
        total = np.zeros(to_B.shape)
        for run, targets, weights in self.runs():
            B, C = run.projected(to_B), run.projected(mixer.to_C)
            y = scan(mixer.rates, run.step, run.drive, B, C) + skip * run.x
            error = product(run.gate * y, mixer.out_proj)
            if change is None:
                error = targets - mixer.out_bias - error
            q = run.gate * product(weights * error, adjoint(mixer.out_proj))
            dB = scan_adjoint(mixer.rates, run.step, run.drive, C, q)
            total += np.tensordot(dB, run.x, axes=((0, 1), (0, 1)))
        return total.ravel()


def _ridged(gram: HostArray) -> HostArray:
    return np.asarray(gram + _RIDGE * np.mean(np.diagonal(gram)) * np.eye(len(gram)))
