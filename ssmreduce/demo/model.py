"""The demo's sequence classifier: LRU blocks as in the LRU paper, batched, in Equinox.

Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (ICML 2023). Every layer
takes and gives (batch, L, H) arrays. All leaves are arrays, so that a model passes through `jax.jit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from ssmreduce.demo.recurrence import diagonal_recurrence

# Recurrence at initialisation: moduli in a ring near the unit circle, all phases.
_MIN_MODULUS, _MAX_MODULUS, _MAX_PHASE = 0.9, 0.999, 6.28

# Steps that `_each_step` packs into one row of its matrix product.
_PACKED_STEPS = 4


class Linear(eqx.Module):
    """Affine map W x + b of the channels of every step."""

    weight: Array
    bias: Array

    def __init__(self, inputs: int, outputs: int, *, key: Array) -> None:
        bound = 1.0 / math.sqrt(inputs)
        self.weight = jax.random.uniform(key, (outputs, inputs), minval=-bound, maxval=bound)
        self.bias = jnp.zeros(outputs)

    def __call__(self, inputs: Array) -> Array:
        """Map (..., inputs) to (..., outputs)."""
        return _each_step(inputs, self.weight) + self.bias


class LRU(eqx.Module):
    """Linear recurrent unit: x[k] = Λ x[k-1] + γ B u[k], y[k] = Re(C x[k]) + D u[k].

    Λ = exp(-exp(nu_log) + i exp(theta_log)), γ = exp(gamma_log), with the attribute names of
    CompreSSM and discretax.
    """

    nu_log: Array
    theta_log: Array
    B_re: Array
    B_im: Array
    C_re: Array
    C_im: Array
    D: Array
    gamma_log: Array

    def __init__(self, states: int, width: int, *, key: Array) -> None:
        modulus, phase, b_re, b_im, c_re, c_im, d = jax.random.split(key, 7)
        squared = jax.random.uniform(
            modulus, (states,), minval=_MIN_MODULUS**2, maxval=_MAX_MODULUS**2
        )
        self.nu_log = jnp.log(-0.5 * jnp.log(squared))
        # 1 - u lies in (0, 1]: a phase of 0 has no logarithm.
        self.theta_log = jnp.log(_MAX_PHASE * (1.0 - jax.random.uniform(phase, (states,))))
        self.B_re = jax.random.normal(b_re, (states, width)) / math.sqrt(2 * width)
        self.B_im = jax.random.normal(b_im, (states, width)) / math.sqrt(2 * width)
        self.C_re = jax.random.normal(c_re, (width, states)) / math.sqrt(states)
        self.C_im = jax.random.normal(c_im, (width, states)) / math.sqrt(states)
        self.D = jax.random.normal(d, (width,))
        self.gamma_log = 0.5 * jnp.log(-jnp.expm1(-2.0 * jnp.exp(self.nu_log)))

    @property
    def states(self) -> int:
        """Number of stored complex states."""
        return self.nu_log.shape[0]

    def __call__(self, inputs: Array) -> Array:
        """Run (batch, L, H) sequences from a zero state."""
        eigenvalues = jnp.exp(jax.lax.complex(-jnp.exp(self.nu_log), jnp.exp(self.theta_log)))
        B = jnp.exp(self.gamma_log)[:, None] * jax.lax.complex(self.B_re, self.B_im)
        C = jax.lax.complex(self.C_re, self.C_im)
        return diagonal_recurrence(eigenvalues, B, C, self.D, inputs)


class Block(eqx.Module):
    """x + GLU(GELU(LRU(norm(x))))."""

    lru: LRU
    value: Linear
    gate: Linear

    def __init__(self, states: int, width: int, *, key: Array) -> None:
        lru, value, gate = jax.random.split(key, 3)
        self.lru = LRU(states, width, key=lru)
        self.value = Linear(width, width, key=value)
        self.gate = Linear(width, width, key=gate)

    def __call__(self, inputs: Array) -> Array:
        """Map (batch, L, H) to (batch, L, H)."""
        hidden = jax.nn.gelu(self.lru(_normalised(inputs)))
        return inputs + self.value(hidden) * jax.nn.sigmoid(self.gate(hidden))


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
    key : (2,) array
        JAX random key.
    """

    encoder: Linear
    blocks: tuple[Block, ...]
    head: Linear

    def __init__(self, states: Sequence[int], width: int, classes: int, *, key: Array) -> None:
        encoder, head, *blocks = jax.random.split(key, 2 + len(states))
        self.encoder = Linear(1, width, key=encoder)
        self.blocks = tuple(
            Block(count, width, key=block) for count, block in zip(states, blocks, strict=True)
        )
        self.head = Linear(width, classes, key=head)

    @property
    def states(self) -> list[int]:
        """Stored states of each block's LRU."""
        return [block.lru.states for block in self.blocks]

    def __call__(self, sequences: Array) -> Array:
        """Class scores (batch, classes) of sequences (batch, L)."""
        hidden = self.encoder(sequences[..., None])
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(jnp.mean(hidden, axis=1))


def _each_step(inputs: Array, weight: Array) -> Array:
    """Matrix product W x for every step, several steps to a row.

    XLA's CPU matrix product is slow on rows of 8 numbers; block-diagonal copies of W waste some
    multiplications and win more than they cost.
    """
    outputs, width = weight.shape
    if inputs.size % (_PACKED_STEPS * width):
        return inputs @ weight.T
    packed = jnp.kron(jnp.eye(_PACKED_STEPS, dtype=weight.dtype), weight.T)
    rows = inputs.reshape(-1, _PACKED_STEPS * width) @ packed
    return rows.reshape(*inputs.shape[:-1], outputs)


def _normalised(inputs: Array) -> Array:
    """Layer normalisation without scale and offset, which the next linear map would absorb."""
    width = inputs.shape[-1]
    average = jnp.full((width, width), 1.0 / width, inputs.dtype)
    centred = inputs - _each_step(inputs, average)
    return centred * jax.lax.rsqrt(_each_step(centred * centred, average) + 1e-5)
