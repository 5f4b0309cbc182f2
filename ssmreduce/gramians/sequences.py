"""States of a layer on given sequences: their second moments, and output weights fitted to them.

A diagonal system with real output that reads after its update runs h[k] = λ h[k-1] + B u[k] from rest and
puts out

    y[k] = Re(C h[k]) + D u[k] = [Re C, -Im C] [Re h[k]; Im h[k]] + D u[k],

a linear map of features; those of a dense system are its states. A layer that reads its sequence in both
directions has twice as many, those of the sequence from its end as well. All that a fit of C needs is in
sums over sequences and steps with weights τ,

    Φ = Σ τ f fᵀ,   R = Σ τ f y0ᵀ,   y0 = y - D u,

since Σ τ |y0 - K f|² = Σ τ |y0|² - 2 tr(K R) + tr(K Φ Kᵀ). Sums add over batches of sequences. Of many
steps a sample says as much: a fit of k unknowns needs some multiple of k rows, whose number then does not
grow with that of the steps, each with τ over its share in the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ShapeError
from ssmreduce.gramians.chunks import Chunks, Powers, powers, real_output
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import unchecked
from ssmreduce.systems.state_space import StateSpace

_TOGETHER = 2**20
"""States, over all steps, of sequences that are run together."""

_ENTRIES = 2**22
"""Features of steps up to which all are in a sum; beyond, steps are drawn."""

_ROWS = 16
"""Steps that are drawn for each feature at least."""

RIDGE = 1e-6
"""Added to the diagonal of Φ in units in which that is 1: between 1e-8 and 1e-4 fits are alike."""

_IDLE = 1e-4
"""Features below this share of the median length are left out: half of a real pole is zero, or rounding."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences that one layer is given, and what is to come out.

    Attributes
    ----------
    inputs : (N, L, m) array
        Inputs; one for each channel where the layer runs them apart.
    targets : (N, L, p) array
        Outputs that are to be reproduced.
    weights : (N, L) array
        τ, nonnegative; 0 where a sequence is padded.

    Raises
    ------
    ShapeError
        If the arrays do not fit together.
    """

    inputs: HostArray
    targets: HostArray
    weights: HostArray

    def __post_init__(self) -> None:
        steps = self.inputs.shape[:2]
        if self.targets.shape[:2] != steps or self.weights.shape != steps:
            raise ShapeError(
                f"`inputs`, `targets` and `weights` have shapes {self.inputs.shape}, {self.targets.shape} "
                f"and {self.weights.shape}; expected (N, L, m), (N, L, p) and (N, L)."
            )

    @property
    def effective_rows(self) -> float:
        """(Σ τ)² / Σ τ²: how many equations of a fit count."""
        squares = float(np.sum(self.weights**2))
        return float(np.sum(self.weights)) ** 2 / squares if squares else 0.0

    def sample(self, count: int) -> HostArray:
        """Draw about `count` steps, and return for how many each stands in sums over steps, shape (N, L).

        The same ones are drawn each time: half of them in proportion to τ, the other half evenly, lest
        outputs run wild at steps that hardly count. Those that would be drawn more than once are taken as
        they are, and so are all where there are no more; none where τ is 0.
        """
        counted = self.weights > 0.0
        if np.count_nonzero(counted) <= count:
            return np.asarray(counted, dtype=np.float64)
        chance = np.where(counted, self.weights + np.mean(self.weights[counted]), 0.0)
        chance = chance * (count / np.sum(chance))
        while np.any(chance > 1.0):
            rest = chance < 1.0
            left = count - int(np.count_nonzero(~rest))
            chance = np.where(rest, chance * (left / np.sum(chance[rest])), 1.0)
        left = count - int(np.count_nonzero(chance >= 1.0))
        # One from each of as many strata as there are to be: neighbours say much the same.
        others = np.flatnonzero(counted & (chance < 1.0))
        total = np.cumsum(chance.ravel()[others])
        places = np.arange(left) + np.random.default_rng(0).uniform(size=left)
        drawn = others[np.searchsorted(total[:-1], total[-1] / left * places, side="right")]
        times = np.where(chance < 1.0, 0.0, 1.0).ravel()
        np.add.at(times, drawn, 1.0)
        return np.asarray(times / np.where(counted, chance, 1.0).ravel()).reshape(chance.shape)


@dataclass(frozen=True, eq=False)
class LayerData:
    """What was recorded of one layer.

    Attributes
    ----------
    fitting : Sequences
        What P and output weights come from.
    held_out : Sequences
        What candidates are compared on.
    """

    fitting: Sequences
    held_out: Sequences

    @property
    def horizon(self) -> int:
        """Steps of the sequences."""
        return int(self.fitting.inputs.shape[1])


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Φ and R of one system, or for each system of a batch.

    Attributes
    ----------
    gram : (..., k, k) array
        Φ; the features of a state are neighbours: Re h and Im h, then those of the other direction.
    seen : (..., k, p) array
        R.
    moment : (..., k, k) array
        Φ with all steps alike, but for those with τ = 0.
    """

    gram: HostArray
    seen: HostArray
    moment: HostArray

    def fitted(self) -> HostArray:
        """Return K, shape (..., p, k), with (Φ + ridge) Kᵀ = R in units in which Φ has a unit diagonal."""
        lengths = np.sqrt(np.maximum(np.diagonal(self.gram, axis1=-2, axis2=-1), 0.0))
        used = lengths > _IDLE * np.median(lengths, axis=-1, keepdims=True)
        inverse = np.where(used, 1.0 / np.where(used, lengths, 1.0), 0.0)[..., None]
        gram = inverse * self.gram * np.swapaxes(inverse, -1, -2)
        ridge = np.where(used, RIDGE, 1.0)[..., None] * np.eye(gram.shape[-1])
        found = inverse * np.linalg.solve(gram + ridge, inverse * self.seen)
        return np.asarray(np.swapaxes(found, -1, -2))

    def of_groups(self, groups: HostArray, size: int) -> FeatureSums:
        """Return the sums of some groups of neighbouring features, shape (..., r), of each system."""
        at = (groups[..., :, None] * size + np.arange(size)).reshape(*groups.shape[:-1], -1)
        gram, moment = (
            np.take_along_axis(
                np.take_along_axis(each, at[..., :, None], axis=-2), at[..., None, :], axis=-1
            )
            for each in (self.gram, self.moment)
        )
        seen = np.take_along_axis(self.seen, at[..., :, None], axis=-2)
        return FeatureSums(gram, seen, moment)


def feature_sums(
    system: System, sequences: Sequences, *, both_directions: bool = False
) -> FeatureSums:
    """Sum Φ and R over sequences and steps.

    Parameters
    ----------
    system : System
        Discrete, with real output, read after its update; with one input for each of a batch of channels.
    sequences : Sequences
        Inputs and targets; of channels, p columns of the targets for each.
    both_directions : bool
        Whether the layer reads the sequence from its end as well, with outputs of their own: y is then the
        sum of the first and the second half of the system's outputs.

    Notes
    -----
    Where the features have more than four million entries, steps are drawn, 16 for each feature at least; see
    `Sequences.sample`. Cost O(R k (k + m + p)) for R steps and k features, and O(N L k m) for what leads to
    them, for a dense system O(N L k²/16) more, in float64. Memory is bounded by running few sequences at a
    time.
    """
    host = _on_host(system)
    size = 2 if isinstance(host, DiagonalStateSpace) else 1
    k = (2 if both_directions else 1) * size * host.order
    systems = math.prod(host.batch_shape)
    stands_for = sequences.sample(max(_ENTRIES // (k * systems), _ROWS * k))
    gram: HostArray | float = 0.0
    seen: HostArray | float = 0.0
    moment: HostArray | float = 0.0
    rates = powers(host, sequences.inputs.shape[1])
    for few in _together(host, *sequences.inputs.shape[:2]):
        inputs, at = sequences.inputs[few], np.nonzero(stands_for[few])
        features = _features(rates, inputs, *at, both_directions=both_directions)
        features *= np.sqrt(stands_for[few][at])[:, None]
        moment = moment + np.swapaxes(features, -1, -2) @ features
        roots = np.sqrt(sequences.weights[few][at])[:, None]
        features *= roots
        gram = gram + np.swapaxes(features, -1, -2) @ features
        roots *= np.sqrt(stands_for[few][at])[:, None]
        direct = feedthrough(host, inputs[at][None], both_directions=both_directions)[0]
        wanted = _by_channel(roots * (sequences.targets[few][at] - direct), host.batch_shape)
        seen = seen + np.swapaxes(features, -1, -2) @ wanted
    return FeatureSums(*map(np.asarray, (gram, seen, moment)))


def feedthrough(system: System, inputs: HostArray, *, both_directions: bool = False) -> HostArray:
    """Return D u, shape (N, L, p); the second half of the outputs is that of the other direction."""
    D = system.D
    if both_directions:
        D = np.sum(np.split(D, 2), axis=0)
    if system.batch_shape:
        return np.asarray((D[..., 0] * inputs[..., None]).reshape(*inputs.shape[:2], -1))
    return np.asarray(inputs @ np.swapaxes(D, -1, -2))


def output(system: System, inputs: HostArray, *, both_directions: bool = False) -> HostArray:
    """Return what a layer that runs `system` puts out, shape (N, L, p), from rest."""
    host = _on_host(system)
    found = feedthrough(host, inputs, both_directions=both_directions)
    forth, *back = np.split(host.C, 2, axis=-2) if both_directions else [host.C]
    rates = powers(host, inputs.shape[1])
    for few in _together(host, *inputs.shape[:2]):
        found[few] += Chunks(rates, inputs[few]).read(forth)
        for C in back:
            found[few] += Chunks(rates, inputs[few, ::-1]).read(C)[:, ::-1]
    return found


def output_error(system: System, sequences: Sequences, *, both_directions: bool = False) -> float:
    """Return the root of Σ τ |y - ŷ|² over Σ τ |y - D u|²: how far a layer's outputs are from the targets."""
    inputs, weights = sequences.inputs, sequences.weights[..., None]
    found = output(system, inputs, both_directions=both_directions)
    direct = feedthrough(system.to_host(), inputs, both_directions=both_directions)
    lost = float(np.sum(weights * (sequences.targets - found) ** 2))
    total = float(np.sum(weights * (sequences.targets - direct) ** 2))
    return float(np.sqrt(lost / total)) if total else 0.0


def readout(system: DiagonalStateSpace, *, both_directions: bool = False) -> HostArray:
    """Return K, shape (..., p, k), with y = K f + D u."""
    C = _on_host(system).C
    halves = np.split(C, 2, axis=-2) if both_directions else [C]
    stacked = np.stack(halves, axis=-1)
    return real_output(stacked.reshape(*stacked.shape[:-2], -1))


def output_matrix(K: HostArray, *, both_directions: bool = False) -> HostArray:
    """Return C of a system from K: the inverse of `readout`."""
    size = 4 if both_directions else 2
    parts = K.reshape(*K.shape[:-1], -1, size)
    halves = [parts[..., k] - 1j * parts[..., k + 1] for k in range(0, size, 2)]
    return np.asarray(np.concatenate(halves, axis=-2))


def state_moment(gram: HostArray, *, both_directions: bool = False) -> HostArray:
    """Return P = Σ x xᵀ of x = [Re h; Im h], shape (..., 2n, 2n), from Φ; the mean over directions."""
    size = 4 if both_directions else 2
    batch, n = gram.shape[:-2], gram.shape[-1] // size
    blocks = gram.reshape(*batch, n, size, n, size)
    P = np.mean([blocks[..., :, k : k + 2, :, k : k + 2] for k in range(0, size, 2)], axis=0)
    return np.asarray(np.moveaxis(P, (-3, -1), (-4, -2))).reshape(*batch, 2 * n, 2 * n)


def _on_host(system: System) -> System:
    """The system on the host; a diagonal one in complex arrays, also where all numbers are real: two
    features a state.
    """
    if isinstance(system, StateSpace):
        return system.to_host()
    host = system.to_host()
    poles, B, C = (x.astype(np.complex128, copy=False) for x in (host.eigenvalues, host.B, host.C))
    return unchecked(host, eigenvalues=poles, B=B, C=C)


def _together(system: System, count: int, length: int) -> Iterator[slice]:
    """Yield the sequences whose states are computed together."""
    states = system.order * math.prod(system.batch_shape)
    step = max(1, _TOGETHER // (length * states))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _features(
    rates: Powers,
    inputs: HostArray,
    sequences: HostArray,
    steps: HostArray,
    *,
    both_directions: bool,
) -> HostArray:
    """Return features, shape (..., R, k), of R sequences and steps."""
    states = [Chunks(rates, inputs).states(sequences, steps)]
    if both_directions:
        back = inputs.shape[1] - 1 - steps
        states.append(Chunks(rates, inputs[:, ::-1]).states(sequences, back))
    stacked = np.stack(states, axis=-1)
    return stacked.reshape(*stacked.shape[:-2], -1).view(np.float64)


def _by_channel(rows: HostArray, batch_shape: tuple[int, ...]) -> HostArray:
    """From rows (R, p) to (..., R, p of each channel)."""
    apart = rows.reshape(len(rows), *batch_shape, -1)
    return np.asarray(np.moveaxis(apart, 0, -2))
