"""What a Mamba mixer computes, again from its weights: `Mixer`, and its runs on a few sequences.

Of inputs u, with Δ, B and C linear in x but for a softplus,

    [x, z] = W_in u,   x = SiLU(conv(x)),   [δ, B, C] = W_x x,   Δ = softplus(W_dt δ + b_dt),
    out = W_out ((y + D x) ⊙ SiLU(z)),

with y of `ssmreduce.layers.selective_scan` for the rates a = -exp(A_log).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.layers.selective_mixer import (
    SelectiveMixer,
    SelectiveRun,
    convolved,
    product,
    silu,
    softplus,
)
from ssmreduce.layers.selective_scan import scan

_TOGETHER = 2**21
"""States, over all steps, of sequences that are run together."""


class Mixer(SelectiveMixer):
    """A mixer with D channels, N states for each, m inputs and p outputs.

    Attributes
    ----------
    to_delta : (R, D) array
        The first rows of W_x.
    to_B, to_C : (N, D) array
        The other rows of W_x.
    """

    def __init__(self, weights: Mapping[str, HostArray]) -> None:
        super().__init__(weights)
        N = self.rates.shape[1]
        self.to_delta, self.to_B, self.to_C = np.split(weights["x_proj.weight"], [-2 * N, -N])

    def runs(self, inputs: HostArray, states: int = 0) -> Iterator[tuple[slice, Run]]:
        """Yield which sequences are run together, so that their states need little memory, and their run."""
        channels, own = self.rates.shape
        step = max(1, _TOGETHER // (inputs.shape[1] * channels * (states or own)))
        for first in range(0, len(inputs), step):
            few = slice(first, first + step)
            yield few, Run(self, inputs[few])


class Run(SelectiveRun):
    """A mixer on a few sequences (S, L, m): what its scan is given, with the time first.

    Attributes
    ----------
    x, gate, step : (L, S, D) array
        x, SiLU(z) and Δ.
    """

    def __init__(self, mixer: Mixer, inputs: HostArray) -> None:
        self.mixer: Mixer = mixer
        projected = product(np.swapaxes(inputs, 0, 1), mixer.in_proj) + mixer.in_bias
        x, z = np.split(projected, 2, axis=-1)
        self.x = silu(convolved(x, mixer.kernel, mixer.kernel_bias))
        self.gate = silu(z)
        delta = product(self.x, mixer.to_delta)
        weights = mixer.weights
        self.step = softplus(product(delta, weights["dt_proj.weight"]) + weights["dt_proj.bias"])

    @cached_property
    def drive(self) -> HostArray:
        """Δ x."""
        return np.asarray(self.step * self.x)

    def projected(self, rows: HostArray) -> HostArray:
        """Return rows (N, D) of W_x times x, shape (L, S, N)."""
        return product(self.x, rows)

    def scanned(self) -> HostArray:
        """Return y, shape (L, S, D)."""
        mixer = self.mixer
        B, C = self.projected(mixer.to_B), self.projected(mixer.to_C)
        return scan(mixer.rates, self.step, self.drive, B, C)

    def factors(self, y: HostArray) -> HostArray:
        """Return the gate, whatever y is."""
        return self.gate
