"""What a Mamba-2 mixer computes, again from its weights: `Mixer2`, and its run on a sequence.

Of inputs u, with d channels in H heads, and B and C for each of G groups of heads,

    [z, x, B, C, δ] = μ ⊙ (W_in (γ u) + b),   [x, B, C] = SiLU(conv([x, B, C])),
    Δ = clip(softplus(δ + b_Δ)),   out = W_out norm(y + D x, z),

with y of `ssmreduce.layers.mamba2_scan` for a = exp(-Δ exp(A_log)) and v = Δ x. The norm is, with w and
s = SiLU(z), w ⊙ RMS(y ⊙ s), or s ⊙ w ⊙ RMS(y), or y ⊙ s alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.layers.mamba2_scan import Chunk, chunks
from ssmreduce.layers.selective_mixer import (
    SelectiveMixer,
    SelectiveRun,
    convolved,
    silu,
    softplus,
)


@dataclass(frozen=True)
class Norm:
    """A gated RMS norm before the output projection of Mamba-2.

    Attributes
    ----------
    size : int
        How many channels are normalised together, to mean square 1.
    eps : float
        Added to the mean square.
    before_gate : bool
        Whether the gate comes after the norm.

    Examples
    --------
    >>> from ssmreduce.layers.mamba2_mixer import Norm
    >>> Norm(size=64, eps=1e-5)
    Norm(size=64, eps=1e-05, before_gate=False)
    """

    size: int
    eps: float
    before_gate: bool = False


@dataclass(frozen=True)
class Settings:
    """Settings of a Mamba-2 mixer that its weights do not tell.

    Attributes
    ----------
    groups : int
        G: each group of heads has its own B and C.
    norm : Norm or None
        The norm before the output projection; None for the gate alone.
    step_limit : tuple of float
        The least step Δ, and the largest.
    gain : float
        γ, a factor of the inputs.

    Examples
    --------
    >>> from ssmreduce.layers.mamba2_mixer import Norm, Settings
    >>> Settings(groups=1, norm=Norm(size=64, eps=1e-5)).step_limit
    (0.0, inf)
    """

    groups: int
    norm: Norm | None
    step_limit: tuple[float, float] = (0.0, float("inf"))
    gain: float = 1.0


class Mixer2(SelectiveMixer):
    """A mixer with d channels in H heads of P, N states for each channel, m inputs and p outputs.

    Attributes
    ----------
    settings : Settings
        What its weights do not say.
    states : int
        N.
    """

    def __init__(self, weights: Mapping[str, HostArray], settings: Settings) -> None:
        super().__init__(weights)
        self.settings = settings
        self.states = (len(self.kernel) - self.out_proj.shape[1]) // (2 * settings.groups)

    def runs(self, inputs: HostArray) -> Iterator[tuple[int, Run2]]:
        """Yield one sequence after the other, and its run."""
        for k, sequence in enumerate(inputs):
            yield k, Run2(self, sequence)


class Run2(SelectiveRun):
    """A mixer on a sequence (L, m): what its scan is given.

    Attributes
    ----------
    x, gate : (L, d) array
        x and SiLU(z).
    B, C : (G, L, N) array
        What drives and reads the states.
    step : (G, J, L) array
        Δ of J heads in each group.
    """

    def __init__(self, mixer: Mixer2, inputs: HostArray) -> None:
        self.mixer: Mixer2 = mixer
        settings, weights = mixer.settings, mixer.weights
        projected = (settings.gain * inputs) @ adjoint(mixer.in_proj) + mixer.in_bias
        projected = np.ravel(weights.get("mup_vector", 1.0)) * projected
        d, width, G = mixer.out_proj.shape[1], len(mixer.kernel), settings.groups
        z, mixed, delta = np.split(projected, [d, d + width], axis=-1)
        mixed = silu(convolved(mixed, mixer.kernel, mixer.kernel_bias))
        self.x, B, C = np.split(mixed, [d, (d + width) // 2], axis=-1)
        self.gate = silu(z)
        self.B, self.C = (_apart(each, G) for each in (B, C))
        step = np.clip(softplus(delta + weights["dt_bias"]), *settings.step_limit)
        self.step = _apart(step, G).swapaxes(1, 2)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of the scan."""
        G, J, L = self.step.shape
        heads = np.moveaxis(self.x.reshape(L, G, J, -1), 0, 2)
        decay = self.mixer.rates.reshape(G, J, 1) * self.step
        return chunks(decay, self.step[..., None] * heads, self.B)

    def scanned(self) -> HostArray:
        """Return y, shape (L, d)."""
        y = np.concatenate([chunk.outputs(self.C) for chunk in self.chunks()], axis=2)
        return np.moveaxis(y, 2, 0).reshape(self.x.shape)

    def factors(self, y: HostArray) -> HostArray:
        """Return by what the gate and the norm multiply y, shape (L, d)."""
        norm = self.mixer.settings.norm
        if norm is None:
            return self.gate
        seen = (y if norm.before_gate else y * self.gate).reshape(len(y), -1, norm.size)
        mean = np.mean(seen**2, axis=-1, keepdims=True)
        scales = np.broadcast_to(1.0 / np.sqrt(mean + norm.eps), seen.shape).reshape(y.shape)
        return np.asarray(self.gate * scales * self.mixer.weights.get("norm.weight", 1.0))


def _apart(values: HostArray, groups: int) -> HostArray:
    """Columns (L, G k) of groups, shape (G, L, k)."""
    return np.moveaxis(values.reshape(len(values), groups, -1), 1, 0)
