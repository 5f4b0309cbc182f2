"""The demo's sequence classifier: LRU blocks as in the LRU paper, batched, in Equinox.

Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (ICML 2023). Every layer
takes and gives (batch, L, H) arrays. All leaves are arrays, so that a model passes through `jax.jit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ssmreduce.demo.lru import LRU, single

# Added to variances, for channels that are constant.
_VARIANCE_FLOOR = 1e-5


class Linear(eqx.Module):
    """Affine map W x + b of the channels of every step."""

    weight: Array
    bias: Array

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator) -> None:
        bound = 1.0 / math.sqrt(inputs)
        self.weight = single(rng.uniform(-bound, bound, (outputs, inputs)))
        self.bias = single(np.zeros(outputs))

    def __call__(self, inputs: Array) -> Array:
        """Map (..., inputs) to (..., outputs)."""
        return inputs @ self.weight.T + self.bias


class Statistics(NamedTuple):
    """Mean and variance of each channel, over sequences and steps."""

    mean: Array
    variance: Array


class Block(eqx.Module):
    """x + GLU(GELU(LRU(norm(x)))), with batch normalisation.

    The normalisation has no trainable scale and offset: B and D of the LRU can take over the scale,
    the biases after it most of the offset.
    """

    lru: LRU
    mix: Linear

    def __init__(self, states: int, width: int, *, rng: np.random.Generator) -> None:
        self.lru = LRU(states, width, rng=rng)
        self.mix = Linear(width, 2 * width, rng=rng)

    def __call__(
        self, inputs: Array, statistics: Statistics | None = None
    ) -> tuple[Array, Statistics]:
        """Map (batch, L, H) to (batch, L, H), and return the statistics that were used."""
        if statistics is None:
            statistics = _statistics(inputs)
        scale = jax.lax.rsqrt(statistics.variance + _VARIANCE_FLOOR)
        hidden = jax.nn.gelu(self.lru((inputs - statistics.mean) * scale))
        return inputs + jax.nn.glu(self.mix(hidden)), statistics


class SequenceClassifier(eqx.Module):
    """Encoder 1 → H, LRU blocks, mean over time, linear head.

    Parameters
    ----------
    states : sequence of int
        Stored states of each block's LRU; its length is the number of blocks.
    width : int
        Channels H.
    classes : int
        Size of the output.
    rng : numpy.random.Generator
        Source of the initial weights.
    """

    encoder: Linear
    blocks: tuple[Block, ...]
    head: Linear

    def __init__(
        self, states: Sequence[int], width: int, classes: int, *, rng: np.random.Generator
    ) -> None:
        self.encoder = Linear(1, width, rng=rng)
        self.blocks = tuple(Block(count, width, rng=rng) for count in states)
        self.head = Linear(width, classes, rng=rng)

    @property
    def states(self) -> list[int]:
        """Stored states of each block's LRU."""
        return [block.lru.states for block in self.blocks]

    def __call__(
        self, sequences: Array, statistics: Sequence[Statistics] | None = None
    ) -> tuple[Array, list[Statistics]]:
        """Class scores (batch, classes) of sequences (batch, L), and the statistics that were used.

        Each block normalises by `statistics`: those of the sequences themselves if not given, which
        is right in training; in evaluation those that a batch of training sequences returned.
        """
        hidden = self.encoder(sequences[..., None])
        used = []
        for index, block in enumerate(self.blocks):
            hidden, own = block(hidden, None if statistics is None else statistics[index])
            used.append(own)
        return self.head(jnp.mean(hidden, axis=1)), used


def _statistics(inputs: Array) -> Statistics:
    mean = jnp.mean(inputs, axis=(0, 1))
    return Statistics(mean, jnp.mean((inputs - mean) ** 2, axis=(0, 1)))
