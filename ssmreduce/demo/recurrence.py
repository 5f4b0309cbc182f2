r"""Diagonal linear recurrence in chunks, for training on CPUs.

x[k] = Λ x[k-1] + B u[k],  y[k] = Re(C x[k]) + D u[k],  x[-1] = 0.

The sequence is cut into chunks of T steps. Within a chunk the layer is a convolution with
K[k] = Re(C Λᵏ B), K[0] + D, one matrix for all chunks; across chunks only the state at the chunk
ends is needed:

    s[c+1] = Λᵀ s[c] + Σ_j Λ^(T-1-j) B u[cT+j],    y[cT+i] = Re(C Λ^(i+1) s[c]) + Σ_j≤i K[i-j] u[cT+j].

So the work is three matrix products, and L/T states are stored where a scan stores L. Cost per step
and sequence: 4 N H + T H² multiplications (N states, H channels), T ≤ √L. Powers of Λ have modulus
at most 1 and nothing is divided, so |λ| near 1 is safe. The backward pass runs the same recurrence
in reverse with conj(Λ).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_MANY_STATES = 64
"""From here on the scan over chunks weighs as much as the products within them."""


def diagonal_recurrence(
    eigenvalues: Array, B: Array, C: Array, D: Array, inputs: Array, *, chunk: int | None = None
) -> Array:
    """Outputs y[k] = Re(C x[k]) + D u[k] of x[k] = Λ x[k-1] + B u[k], started at zero.

    Parameters
    ----------
    eigenvalues : (N,) complex array
        Diagonal of Λ, of modulus at most 1.
    B : (N, H) complex array
        Input matrix.
    C : (H, N) complex array
        Output matrix.
    D : (H,) array
        Elementwise feedthrough.
    inputs : (batch, L, H) array
        Real input sequences.
    chunk : int, optional
        Steps per chunk; at most √L if not given. It changes the speed, not the result.

    Returns
    -------
    (batch, L, H) array
        Real output sequences.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> u = jnp.array([[[1.0], [0.0], [0.0]]])
    >>> one = jnp.ones((1, 1), complex)
    >>> diagonal_recurrence(jnp.array([0.5 + 0j]), one, one, jnp.zeros(1), u)[0, :, 0].tolist()
    [1.0, 0.5, 0.25]
    """
    batch, length, width = inputs.shape
    steps = chunk or _chunk_length(length, eigenvalues.size)
    chunks = -(-length // steps)
    powers = _powers(eigenvalues, steps + 1)

    readout = _real_columns(powers[:, None, :] * C)  # Re(C Λᵏ x) as one real product, k = 0 … T
    within = _block_toeplitz(readout[:-1] @ jnp.concatenate([B.real, B.imag]), D)
    to_state = powers[:steps][::-1, None, :] * B.T
    to_state = jnp.concatenate([to_state.real, to_state.imag], axis=-1)
    to_state = to_state.reshape(steps * width, -1)

    # One product for both, and only the states change their layout: inputs are the larger array.
    padded = jnp.pad(inputs, ((0, 0), (0, chunks * steps - length), (0, 0)))
    rows = padded.reshape(batch * chunks, steps * width) @ jnp.concatenate(
        [within, to_state], axis=1
    )
    drive = rows[:, steps * width :].reshape(batch, chunks, -1).swapaxes(0, 1)
    states = _chunk_states(powers[steps], drive).swapaxes(0, 1).reshape(batch * chunks, -1)
    outputs = rows[:, : steps * width] + states @ readout[1:].reshape(steps * width, -1).T
    return outputs.reshape(batch, chunks * steps, width)[:, :length]


def _chunk_length(length: int, states: int) -> int:
    """√L for many states; shorter for few, whose scan costs little next to the products."""
    return max(1, round(math.sqrt(length * min(1.0, states / _MANY_STATES))))


def _powers(eigenvalues: Array, count: int) -> Array:
    """λ⁰ … λ^(count-1) along a new first axis, by doubling: log₂ rounding errors, not count."""
    powers = jnp.ones((1, *eigenvalues.shape), eigenvalues.dtype)
    factor = eigenvalues
    while powers.shape[0] < count:
        powers = jnp.concatenate([powers, powers * factor])
        factor = factor * factor
    return powers[:count]


def _real_columns(matrix: Array) -> Array:
    """[Re M, -Im M], which maps [Re x; Im x] to Re(M x)."""
    return jnp.concatenate([matrix.real, -matrix.imag], axis=-1)


def _block_toeplitz(kernel: Array, feedthrough: Array) -> Array:
    """Matrix that maps the inputs of a chunk to its outputs: kernel[i-j] + D where i = j, 0 if i < j."""
    steps, width, _ = kernel.shape
    kernel = kernel.at[0].add(jnp.diag(feedthrough))
    kernel = jnp.concatenate([kernel, jnp.zeros_like(kernel[:1])])
    lag = np.subtract.outer(np.arange(steps), np.arange(steps))
    blocks = kernel[np.where(lag < 0, steps, lag)]  # (output step, input step, output, input)
    return blocks.transpose(1, 3, 0, 2).reshape(steps * width, steps * width)


@jax.custom_vjp
def _chunk_states(factor: Array, drive: Array) -> Array:
    """States before each chunk: s[0] = 0, s[c+1] = factor s[c] + drive[c], as [Re s, Im s]."""
    return _scan_chunks(factor, drive, reverse=False)


def _scan_chunks(factor: Array, drive: Array, *, reverse: bool) -> Array:
    half = drive.shape[-1] // 2
    re, im = factor.real, factor.imag

    def step(state: Array, driven: Array) -> tuple[Array, Array]:
        x, y = state[:, :half], state[:, half:]
        moved = jnp.concatenate([re * x - im * y, re * y + im * x], axis=-1)
        return moved + driven, state

    return lax.scan(step, jnp.zeros_like(drive[0]), drive, reverse=reverse)[1]


def _chunk_states_forward(factor: Array, drive: Array) -> tuple[Array, tuple[Array, Array]]:
    states = _scan_chunks(factor, drive, reverse=False)
    return states, (factor, states)


def _chunk_states_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    factor, states = saved
    adjoint = _scan_chunks(jnp.conj(factor), cotangent, reverse=True)
    half = states.shape[-1] // 2
    a, b = adjoint[..., :half], adjoint[..., half:]
    x, y = states[..., :half], states[..., half:]
    # JAX transposes without conjugating: the cotangent of Re f is the real sum, of Im f minus it.
    grad = lax.complex(jnp.sum(a * x + b * y, (0, 1)), jnp.sum(a * y - b * x, (0, 1)))
    return grad, adjoint


_chunk_states.defvjp(_chunk_states_forward, _chunk_states_backward)
