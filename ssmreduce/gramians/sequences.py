"""What the states of a layer do on sequences that it is given: second moments, and output weights that fit.

A diagonal system with real output that reads after its update runs h[k] = λ h[k-1] + B u[k] from rest and
puts out

    y[k] = Re(C h[k]) + D u[k] = [Re C, -Im C] [Re h[k]; Im h[k]] + D u[k],

a linear map of features. A layer that reads its sequence in both directions has twice as many, those of the
sequence from its end as well. All that a fit of C needs is in sums over sequences and steps with weights τ,

    Φ = Σ τ f fᵀ,   R = Σ τ f y0ᵀ,   E = Σ τ |y0|²,   y0 = y - D u,

since Σ τ |y0 - K f|² = E - 2 tr(K R) + tr(K Φ Kᵀ). Sums add over batches of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.errors import ShapeError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace

_BYTES = 2**26
"""What the features of the sequences that are run together may take."""

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

    def unweighted(self) -> Sequences:
        """The same with every step that is not padded counted once."""
        return replace(self, weights=(self.weights > 0.0).astype(np.float64))


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
    """Φ, R and E of one system, or for each system of a batch.

    Attributes
    ----------
    gram : (..., k, k) array
        Φ; the features of a mode are neighbours: Re h and Im h, then those of the other direction.
    seen : (..., k, p) array
        R.
    energy : (...) array
        E.
    """

    gram: HostArray
    seen: HostArray
    energy: HostArray

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
        rows = np.take_along_axis(self.gram, at[..., :, None], axis=-2)
        gram = np.take_along_axis(rows, at[..., None, :], axis=-1)
        return FeatureSums(
            gram, np.take_along_axis(self.seen, at[..., :, None], axis=-2), self.energy
        )


def feature_sums(
    system: DiagonalStateSpace, sequences: Sequences, *, both_directions: bool = False
) -> FeatureSums:
    """Sum Φ, R and E over sequences and steps.

    Parameters
    ----------
    system : DiagonalStateSpace
        Discrete, with real output, read after its update; with one input for each of a batch of channels.
    sequences : Sequences
        Inputs and targets; of channels, p columns of the targets for each.
    both_directions : bool
        Whether the layer reads the sequence from its end as well, with outputs of their own: y is then the
        sum of the first and the second half of the system's outputs.

    Notes
    -----
    Cost O(N L k (k + m + p)) for k features, in float64; memory is bounded by running few sequences at a
    time.
    """
    host = system.to_host()
    targets = sequences.targets - feedthrough(
        host, sequences.inputs, both_directions=both_directions
    )
    gram: HostArray | float = 0.0
    seen: HostArray | float = 0.0
    energy: HostArray | float = 0.0
    for rows, features in _features(host, sequences.inputs, both_directions):
        wanted = _by_channel(targets[rows], host.batch_shape)
        weighted = features * _flat(sequences.weights[rows])
        gram = gram + np.swapaxes(weighted, -1, -2) @ features
        seen = seen + np.swapaxes(weighted, -1, -2) @ wanted
        energy = energy + np.sum(_flat(sequences.weights[rows]) * wanted**2, axis=(-2, -1))
    return FeatureSums(np.asarray(gram), np.asarray(seen), np.asarray(energy))


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
    host = system.to_host()
    if isinstance(host, StateSpace):
        return _dense_output(host, inputs)
    K = readout(host, both_directions=both_directions)
    parts = [
        _by_sequence(features @ np.swapaxes(K, -1, -2), rows, inputs.shape[1])
        for rows, features in _features(host, inputs, both_directions)
    ]
    return np.concatenate(parts) + feedthrough(host, inputs, both_directions=both_directions)


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
    halves = np.split(system.C, 2, axis=-2) if both_directions else [system.C]
    parts = [part for half in halves for part in (half.real, -half.imag)]
    stacked = np.stack(parts, axis=-1)
    return np.asarray(stacked.reshape(*stacked.shape[:-2], -1))


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


def _features(
    system: DiagonalStateSpace, inputs: HostArray, both_directions: bool
) -> Iterator[tuple[slice, HostArray]]:
    """Yield features, shape (..., rows, k), of a few sequences after the other, and which they are."""
    count, length = inputs.shape[:2]
    size = 4 if both_directions else 2
    each = 8 * size * length * system.eigenvalues.size
    step = max(1, _BYTES // each)
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        states = [_states(system, inputs[rows])]
        if both_directions:
            states.append(_states(system, inputs[rows, ::-1])[:, ::-1])
        parts = [part for each_way in states for part in (each_way.real, each_way.imag)]
        stacked = np.stack(parts, axis=-1)  # (N, L, *batch, n, size)
        moved = np.moveaxis(stacked, (0, 1), (-4, -3))
        yield rows, moved.reshape(*system.batch_shape, -1, moved.shape[-2] * size)


def _states(system: DiagonalStateSpace, inputs: HostArray) -> HostArray:
    """Return h, shape (N, L, *batch, n), from rest."""
    if system.batch_shape:
        driven = inputs[..., None] * system.B[..., 0]
    else:
        driven = inputs @ np.swapaxes(system.B, -1, -2)
    states: HostArray = driven.astype(np.complex128)
    for k in range(1, inputs.shape[1]):
        states[:, k] += system.eigenvalues * states[:, k - 1]
    return states


def _dense_output(system: StateSpace, inputs: HostArray) -> HostArray:
    """The same for dense systems, of a batch one input for each, read after the update."""
    states = np.zeros((len(inputs), *system.batch_shape, system.order))
    outputs = []
    for k in range(inputs.shape[1]):
        states = (system.A @ states[..., None])[..., 0]
        if system.batch_shape:
            states = states + inputs[:, k, ..., None] * system.B[..., 0]
        else:
            states = states + inputs[:, k] @ np.swapaxes(system.B, -1, -2)
        outputs.append((system.C @ states[..., None])[..., 0].reshape(len(inputs), -1))
    return np.stack(outputs, axis=1) + feedthrough(system, inputs)


def _flat(weights: HostArray) -> HostArray:
    return weights.reshape(-1, 1)


def _by_channel(outputs: HostArray, batch_shape: tuple[int, ...]) -> HostArray:
    """From (N, L, p) to (..., N L, p of each channel)."""
    flat = outputs.reshape(*outputs.shape[:2], *batch_shape, -1)
    moved = np.moveaxis(flat, (0, 1), (-3, -2))
    return np.asarray(moved).reshape(*batch_shape, -1, moved.shape[-1])


def _by_sequence(outputs: HostArray, rows: slice, length: int) -> HostArray:
    """The way back."""
    count = rows.stop - rows.start
    apart = outputs.reshape(*outputs.shape[:-2], count, length, outputs.shape[-1])
    moved = np.moveaxis(apart, (-3, -2), (0, 1))
    return np.asarray(moved).reshape(count, length, -1)
