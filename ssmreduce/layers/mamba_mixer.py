"""What a Mamba mixer computes, again from its weights: `Mixer`, and its runs on a few sequences.

Of inputs u, with Δ, B and C linear in x but for a softplus,

    [x, z] = W_in u,   x = SiLU(conv(x)),   [δ, B, C] = W_x x,   Δ = softplus(W_dt δ + b_dt),
    out = W_out ((y + D x) ⊙ SiLU(z)),

with y of `ssmreduce.layers.selective_scan` for the rates a = -exp(A_log). Only u is ever recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.selective_scan import scan

_TOGETHER = 2**21
"""States, over all steps, of sequences that are run together."""


@dataclass(frozen=True, eq=False)
class Mixer:
    """The arrays of a mixer, with D channels, N states for each, m inputs and p outputs.

    Attributes
    ----------
    in_proj, in_bias : (2 D, m) array, (2 D,) array
        For x and z.
    kernel, kernel_bias : (D, K) array, (D,) array
        The causal convolution of each channel.
    to_delta : (R, D) array
        The first rows of W_x.
    step_proj, step_bias : (D, R) array, (D,) array
        From δ to what softplus takes to Δ.
    to_B, to_C : (N, D) array
        The other rows of W_x.
    rates : (D, N) array
        a.
    skip : (D,) array
        The weight D.
    out_proj, out_bias : (p, D) array, (p,) array
        From gated outputs of the channels to those of the layer.
    """

    in_proj: HostArray
    in_bias: HostArray
    kernel: HostArray
    kernel_bias: HostArray
    to_delta: HostArray
    step_proj: HostArray
    step_bias: HostArray
    to_B: HostArray
    to_C: HostArray
    rates: HostArray
    skip: HostArray
    out_proj: HostArray
    out_bias: HostArray

    @classmethod
    def of(cls, weights: Mapping[str, HostArray]) -> Mixer:
        """Return the mixer with these weights; a bias that is not there is zero."""
        rates = -np.exp(weights["A_log"])
        rank, states = weights["dt_proj.weight"].shape[1], rates.shape[1]
        delta, B, C = np.split(weights["x_proj.weight"], [rank, rank + states])
        in_proj, out_proj = weights["in_proj.weight"], weights["out_proj.weight"]
        kernel = weights["conv1d.weight"][:, 0]
        return cls(
            in_proj,
            weights.get("in_proj.bias", np.zeros(len(in_proj))),
            kernel,
            weights.get("conv1d.bias", np.zeros(len(kernel))),
            delta,
            weights["dt_proj.weight"],
            weights["dt_proj.bias"],
            B,
            C,
            rates,
            weights["D"],
            out_proj,
            weights.get("out_proj.bias", np.zeros(len(out_proj))),
        )

    def with_states(self, rates: HostArray, to_B: HostArray, to_C: HostArray) -> Mixer:
        """Return the mixer with other states."""
        return replace(self, rates=rates, to_B=to_B, to_C=to_C)

    def together(self, count: int, length: int, states: int = 0) -> Iterator[slice]:
        """Yield which of `count` sequences are run together, so that their states need little memory."""
        channels, own = self.rates.shape
        step = max(1, _TOGETHER // (length * channels * (states or own)))
        for first in range(0, count, step):
            yield slice(first, min(first + step, count))

    def output(self, inputs: HostArray) -> HostArray:
        """Return what the layer puts out for inputs (S, L, m), from rest."""
        found = np.empty((*inputs.shape[:2], len(self.out_proj)))
        for few in self.together(*inputs.shape[:2]):
            run = Run(self, inputs[few])
            found[few] = np.swapaxes(run.out(run.scanned() + self.skip * run.x), 0, 1)
        return found

    def output_error(self, sequences: Sequences, whole: Mixer) -> float:
        """Return the root of Σ τ |target - out|², over that of the skip of `whole` in place of out."""
        lost = total = 0.0
        for few in self.together(*sequences.inputs.shape[:2]):
            run = Run(self, sequences.inputs[few])
            targets = np.swapaxes(sequences.targets[few], 0, 1)
            weights = adjoint(sequences.weights[few])[..., None]
            out = run.out(run.scanned() + self.skip * run.x)
            lost += np.sum(weights * (targets - out) ** 2)
            total += np.sum(weights * (targets - run.out(whole.skip * run.x)) ** 2)
        return float(np.sqrt(lost / total)) if total else 0.0


class Run:
    """A mixer on a few sequences (S, L, m): what its scan is given, with the time first.

    Attributes
    ----------
    x, gate, step : (L, S, D) array
        x, SiLU(z) and Δ.
    """

    def __init__(self, mixer: Mixer, inputs: HostArray) -> None:
        self.mixer = mixer
        projected = product(np.swapaxes(inputs, 0, 1), mixer.in_proj) + mixer.in_bias
        x, z = np.split(projected, 2, axis=-1)
        self.x = silu(convolved(x, mixer.kernel, mixer.kernel_bias))
        self.gate = silu(z)
        delta = product(self.x, mixer.to_delta)
        self.step = softplus(product(delta, mixer.step_proj) + mixer.step_bias)

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

    def out(self, y: HostArray) -> HostArray:
        """Return outputs (L, S, p) of the layer from those of its channels."""
        mixer = self.mixer
        return np.asarray(product(self.gate * y, mixer.out_proj) + mixer.out_bias)


def product(values: HostArray, matrix: HostArray) -> HostArray:
    """Return what an (n, m) matrix makes of the last axis, m, of all values: one product of matrices."""
    return np.tensordot(values, matrix, axes=(-1, -1))


def convolved(x: HostArray, kernel: HostArray, bias: HostArray) -> HostArray:
    """Return x (L, ..., D) after the causal convolution of each channel with a kernel (D, K)."""
    width = kernel.shape[1]
    padded = np.pad(x, ((width - 1, 0), *(((0, 0),) * (x.ndim - 1))))
    return np.asarray(bias + sum(kernel[:, k] * padded[k : k + len(x)] for k in range(width)))


def silu(values: HostArray) -> HostArray:
    """Return x / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # -0 far below zero
        return np.asarray(values / (1.0 + np.exp(-values)))


def softplus(values: HostArray) -> HostArray:
    """Return log(1 + exp(x))."""
    return np.asarray(np.maximum(values, 0.0) + np.log1p(np.exp(-np.abs(values))))
