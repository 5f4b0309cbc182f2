"""Whether the system that is read back from written weights is the one that was meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

if TYPE_CHECKING:
    from ssmreduce.layers.layer import Layer, Weights

_STEPS = np.array([0, 1, 3, 10, 30])
"""Steps of the impulse response that are compared."""

_STORED = 1e-5
"""Largest difference that is taken: some maps store a pole at zero, or a real one, as another near it."""

_ROUNDINGS = 16.0
"""The same in units of eps: weights are logarithms, up to 10 or so, of poles whose own go up to π."""


OWN_POLES = "write_system(layer, select_states(read_system(layer), order).system)"
"""What keeps poles of a layer's own, for messages."""


def read_back(kind: Layer, meant: System, weights: Weights, eps: float) -> System:
    """Return the system that new weights hold, or raise `UnsupportedLayerError` unless it is the one meant.

    `eps` is that of the dtype of the weights. A system that is read in another form is not looked at.

    Compared are the impulse responses at a few steps k, over 1 + k, relative to the sum of what the states
    contribute, regardless of signs, as rounding of weights is; and rounding of a pole grows with k. The
    feedthrough does not count.
    """
    back = kind.read(weights)
    if not isinstance(meant, DiagonalStateSpace) or not isinstance(back, DiagonalStateSpace):
        return back
    most = max(_STORED, _ROUNDINGS * eps)
    modulus = np.abs(meant.eigenvalues)
    radius = np.max(modulus, axis=-1, keepdims=True, initial=1.0)  # powers must not overflow
    responses = []  # C Λᵏ B, shape (..., 5, p, m)
    with np.errstate(over="ignore", invalid="ignore"):
        for poles, B, C in (
            (meant.eigenvalues, meant.B, meant.C),
            (back.eigenvalues, back.B, back.C),
            (modulus, np.abs(meant.B), np.abs(meant.C)),
        ):
            powers = (poles / radius)[..., None, :] ** _STEPS[:, None]
            responses.append((C[..., None, :, :] * powers[..., None, :]) @ B[..., None, :, :])
        own, other, whole = responses
        difference = (own - other).real if meant.real_output else own - other
        apart = np.max(np.abs(difference), axis=(-2, -1), initial=0.0) / (1 + _STEPS)
        size = np.maximum(np.max(whole, axis=(-3, -2, -1)), np.finfo(np.float64).tiny)[..., None]
        error = float(np.max(apart / size))  # of the worst of a batch
    if not error <= most:  # or overflow
        raise UnsupportedLayerError(
            f"{type(kind).__name__} reads another system from the weights than the one of order "
            f"{meant.order} that was written: they differ by {error:.2g} of what its states contribute; "
            f"expected at most {most:.2g}. If the layer cannot store every pole, keep poles of its own: "
            f"{OWN_POLES}. Otherwise look whether "
            "`pole_weights` inverts `modes`, and `matrix_weights` inverts `matrices`."
        )
    return back
