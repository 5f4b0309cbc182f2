"""What mixers of Mamba and Mamba-2 have in common: `SelectiveMixer`, from weights, and `SelectiveRun`.

Both project what they are given, convolve channels, run a scan y, and put out

    out = W_out ((y + D x) ⊙ f) + b,

with factors f of a gate, and of a norm where there is one. Only inputs are ever recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.gramians.sequences import Sequences


class SelectiveMixer(ABC):
    """A mixer with d channels, m inputs and p outputs; a bias that is not there is zero.

    Attributes
    ----------
    weights : dict of arrays
        What it is made of.
    in_proj, in_bias : (..., m) array, (...) array
        From inputs to channels, gate and whatever else.
    kernel, kernel_bias : (w, K) array, (w,) array
        The causal convolution of each channel.
    rates : array
        a = -exp(A_log).
    skip : (d,) array
        The weight D.
    out_proj, out_bias : (p, d) array, (p,) array
        From gated outputs of the channels to those of the layer.
    """

    def __init__(self, weights: Mapping[str, HostArray]) -> None:
        self.weights = weights
        self.in_proj, self.in_bias = self._affine("in_proj")
        kernel, self.kernel_bias = self._affine("conv1d")
        self.kernel = kernel[:, 0]
        self.rates = -np.exp(weights["A_log"])
        self.out_proj, self.out_bias = self._affine("out_proj")
        self.skip = np.repeat(weights["D"], self.out_proj.shape[1] // len(weights["D"]))

    def _affine(self, name: str) -> tuple[HostArray, HostArray]:
        matrix = self.weights[f"{name}.weight"]
        return matrix, self.weights.get(f"{name}.bias", np.zeros(len(matrix)))

    @abstractmethod
    def runs(self, inputs: HostArray) -> Iterator[tuple[Any, SelectiveRun]]:
        """Yield which of some sequences (S, L, m) are run together, and their run."""

    def output(self, inputs: HostArray) -> HostArray:
        """Return what the layer puts out for inputs (S, L, m), from rest."""
        found = np.empty((*inputs.shape[:2], len(self.out_proj)))
        for few, run in self.runs(inputs):
            found[few] = run.out(run.scanned() + self.skip * run.x)
        return found

    def output_error(self, sequences: Sequences, whole: SelectiveMixer) -> float:
        """Return the root of Σ τ |target - out|², over that of the skip of `whole` in place of out."""
        lost = total = 0.0
        for few, run in self.runs(sequences.inputs):
            targets, weights = sequences.targets[few], sequences.weights[few][..., None]
            out = run.out(run.scanned() + self.skip * run.x)
            lost += np.sum(weights * (targets - out) ** 2)
            total += np.sum(weights * (targets - run.out(whole.skip * run.x)) ** 2)
        return float(np.sqrt(lost / total)) if total else 0.0


class SelectiveRun(ABC):
    """A mixer on some sequences, with the time first: (L, ..., d).

    Attributes
    ----------
    mixer : SelectiveMixer
        What runs.
    x : (L, ..., d) array
        What drives the scan, after the convolution.
    """

    mixer: SelectiveMixer
    x: HostArray

    @abstractmethod
    def scanned(self) -> HostArray:
        """Return y, shape (L, ..., d)."""

    @abstractmethod
    def factors(self, y: HostArray) -> HostArray:
        """Return by what the gate, and the norm, multiply outputs y of the channels."""

    def out(self, y: HostArray) -> HostArray:
        """Return outputs (..., L, p) of the layer from those of its channels."""
        out = product(y * self.factors(y), self.mixer.out_proj) + self.mixer.out_bias
        return np.moveaxis(out, 0, -2)


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
