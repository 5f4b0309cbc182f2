"""What a Mamba-2 mixer computes, again from its weights: `Mixer2`, and its run on a sequence.

Of inputs u, with d channels in H heads, and B and C for each of G groups of heads,

    [z, x, B, C, δ] = μ ⊙ (W_in (γ u) + b),   [x, B, C] = SiLU(conv([x, B, C])),
    Δ = clip(softplus(δ + b_Δ)),   out = W_out norm(y + D x, z),

with y of `ssmreduce.layers.mamba2_scan` for a = exp(-Δ exp(A_log)) and v = Δ x. The norm is, with w and
s = SiLU(z), w ⊙ RMS(y ⊙ s), or s ⊙ w ⊙ RMS(y), or y ⊙ s alone. Only u is ever recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.mamba2_scan import Chunk, chunks
from ssmreduce.layers.mamba_mixer import convolved, silu, softplus


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


class Mixer2:
    """A mixer with d channels in H heads of P, N states for each channel, m inputs and p outputs.

    Attributes
    ----------
    settings : Settings
        What its weights do not say.
    states : int
        N.
    out_proj : (p, d) array
        From normed outputs of the channels to those of the layer.
    norm_weight : (d,) array
        w.
    """

    def __init__(self, weights: Mapping[str, HostArray], settings: Settings) -> None:
        self.settings = settings
        self.in_proj = weights["in_proj.weight"]
        self.in_bias = weights.get("in_proj.bias", np.zeros(len(self.in_proj)))
        self.factors = weights.get("mup_vector", np.ones(len(self.in_proj))).ravel()
        self.kernel = weights["conv1d.weight"][:, 0]
        self.kernel_bias = weights.get("conv1d.bias", np.zeros(len(self.kernel)))
        self.rates = -np.exp(weights["A_log"])
        self.step_bias = weights["dt_bias"]
        self.out_proj = weights["out_proj.weight"]
        self.out_bias = weights.get("out_proj.bias", np.zeros(len(self.out_proj)))
        channels = self.out_proj.shape[1]
        self.skip = np.repeat(weights["D"], channels // len(weights["D"]))
        self.norm_weight = weights.get("norm.weight", np.ones(channels))
        self.states = (len(self.kernel) - channels) // (2 * settings.groups)

    def output(self, inputs: HostArray) -> HostArray:
        """Return the layer's outputs for inputs (S, L, m), from rest."""
        found = np.empty((*inputs.shape[:2], len(self.out_proj)))
        for own, sequence in zip(found, inputs, strict=True):
            run = Run2(self, sequence)
            own[:] = run.out(run.scanned() + self.skip * run.x)
        return found

    def output_error(self, sequences: Sequences) -> float:
        """Return the root of Σ τ |target - out|², over that of the layer without its states."""
        lost = total = 0.0
        for k, weights in enumerate(sequences.weights):
            run, targets = Run2(self, sequences.inputs[k]), sequences.targets[k]
            direct = self.skip * run.x
            lost += weights @ np.sum((targets - run.out(run.scanned() + direct)) ** 2, axis=-1)
            total += weights @ np.sum((targets - run.out(direct)) ** 2, axis=-1)
        return float(np.sqrt(lost / total)) if total else 0.0


class Run2:
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
        self.mixer, settings = mixer, mixer.settings
        projected = (settings.gain * inputs) @ adjoint(mixer.in_proj) + mixer.in_bias
        d, width, G = mixer.out_proj.shape[1], len(mixer.kernel), settings.groups
        z, mixed, delta = np.split(mixer.factors * projected, [d, d + width], axis=-1)
        mixed = silu(convolved(mixed, mixer.kernel, mixer.kernel_bias))
        self.x, B, C = np.split(mixed, [d, (d + width) // 2], axis=-1)
        self.gate = silu(z)
        self.B, self.C = (_apart(each, G) for each in (B, C))
        step = np.clip(softplus(delta + mixer.step_bias), *settings.step_limit)
        self.step = _apart(step, G).swapaxes(1, 2)

    @cached_property
    def heads(self) -> HostArray:
        """The channels of each head, shape (G, J, L, P), as in x."""
        G, J, L = self.step.shape
        return np.moveaxis(self.x.reshape(L, G, J, -1), 0, 2)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of the scan."""
        rates = self.mixer.rates.reshape(self.step.shape[:2])[..., None]
        return chunks(rates * self.step, self.step[..., None] * self.heads, self.B)

    def scanned(self) -> HostArray:
        """Return y, shape (L, d)."""
        y = np.concatenate([chunk.outputs(self.C) for chunk in self.chunks()], axis=2)
        return np.moveaxis(y, 2, 0).reshape(self.x.shape)

    def normed(self, y: HostArray) -> tuple[HostArray, HostArray]:
        """Return what the gate and the norm make of y, shape (L, d), and by what they multiply it."""
        norm, factors = self.mixer.settings.norm, self.gate
        if norm is not None:
            seen = (y if norm.before_gate else y * self.gate).reshape(len(y), -1, norm.size)
            mean = np.mean(seen**2, axis=-1, keepdims=True)
            scales = np.broadcast_to(1.0 / np.sqrt(mean + norm.eps), seen.shape).reshape(y.shape)
            factors = factors * scales * self.mixer.norm_weight
        return y * factors, factors

    def out(self, y: HostArray) -> HostArray:
        """Return outputs (L, p) of the layer from those of its channels."""
        mixer = self.mixer
        return np.asarray(self.normed(y)[0] @ adjoint(mixer.out_proj) + mixer.out_bias)


def _apart(values: HostArray, groups: int) -> HostArray:
    """Columns (L, G k) of groups, shape (G, L, k)."""
    return np.moveaxis(values.reshape(len(values), groups, -1), 1, 0)
