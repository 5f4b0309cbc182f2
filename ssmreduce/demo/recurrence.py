r"""Diagonal linear recurrence in chunks, for training on CPUs.

x[k] = Λ x[k-1] + B u[k],  y[k] = Re(C x[k]) + D u[k],  x[-1] = 0.

The sequence is cut into chunks of T steps. Within a chunk the layer is a convolution with
K[k] = Re(C Λᵏ B), one matrix for all chunks; across chunks only the state at the chunk
ends is needed:

    s[c+1] = Λᵀ s[c] + Σ_j Λ^(T-1-j) B u[cT+j],
    y[cT+i] = Re(C Λ^(i+1) s[c]) + Σ_j≤i K[i-j] u[cT+j] + D u[cT+i].

So the work is three matrix products, and L/T states are stored where a scan stores L. Cost per step
and sequence: 4 N H + T H² multiplications (N states, H channels), T ≤ √L. Powers of Λ have modulus
at most 1 and nothing is divided, so |λ| near 1 is safe. The backward pass runs the same recurrence
in reverse with conj(Λ).

Compilation of a small layer takes much longer than a step, in proportion to the number of operations: hence
few of them here.
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
    log_eigenvalues: Array, B: Array, C: Array, D: Array, inputs: Array, *, chunk: int | None = None
) -> Array:
    """Outputs y[k] = Re(C x[k]) + D u[k] of x[k] = Λ x[k-1] + B u[k], started at zero.

    Parameters
    ----------
    log_eigenvalues : (N,) complex array
        Logarithms of the diagonal of Λ, with real parts of at most 0.
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
    >>> half = jnp.log(jnp.array([0.5 + 0j]))
    >>> diagonal_recurrence(half, one, one, jnp.zeros(1), u)[0, :, 0].round(6).tolist()
    [1.0, 0.5, 0.25]
    """
    batch, length, width = inputs.shape
    steps = chunk or _chunk_length(length, log_eigenvalues.size)
    chunks = -(-length // steps)
    powers = jnp.exp(np.arange(steps + 1, dtype=inputs.dtype)[:, None] * log_eigenvalues)

    readout = _parts(jnp.conj(powers[:, None, :] * C))  # Re(C Λᵏ x) as one real product, k = 0 … T
    within = _block_toeplitz(readout[:-1] @ _parts(B.T).T)
    to_state = _parts(powers[:steps][::-1, None, :] * B.T).reshape(steps * width, -1)

    # One product for both.
    padded = jnp.pad(inputs, ((0, 0), (0, chunks * steps - length), (0, 0)))
    rows = padded.reshape(batch * chunks, steps * width) @ jnp.concatenate(
        [within, to_state], axis=1
    )
    drive = rows[:, steps * width :].reshape(batch, chunks, 2, -1)
    states = _chunk_states(_parts(powers[steps]).reshape(2, -1), drive)
    outputs = (
        rows[:, : steps * width]
        + states.reshape(batch * chunks, -1) @ readout[1:].reshape(steps * width, -1).T
    )
    return outputs.reshape(batch, chunks * steps, width)[:, :length] + D * inputs


def _chunk_length(length: int, states: int) -> int:
    """√L for many states; shorter for few, whose scan costs little next to the products."""
    return max(1, round(math.sqrt(length * min(1.0, states / _MANY_STATES))))


def _parts(matrix: Array) -> Array:
    """[Re M, Im M] in place of the last axis."""
    return jnp.concatenate([matrix.real, matrix.imag], axis=-1)


def _block_toeplitz(kernel: Array) -> Array:
    """Matrix that maps the inputs of a chunk to its outputs: kernel[i-j], and 0 where i < j."""
    steps, width, _ = kernel.shape
    # Rows one shorter than what repeats shift it by one step from row to row.
    repeated = jnp.tile(jnp.pad(kernel, ((0, steps), (0, 0), (0, 0))), (steps, 1, 1))
    rows = repeated[: steps * (2 * steps - 1)].reshape(steps, 2 * steps - 1, width, width)
    # (input step, output step, output, input)
    return rows[:, :steps].transpose(0, 3, 1, 2).reshape(steps * width, steps * width)


@jax.custom_vjp
def _chunk_states(factor: Array, drive: Array) -> Array:
    """States (batch, chunks, 2, N) before each chunk: s[0] = 0, s[c+1] = factor s[c] + drive[c].

    Axes of length 2 hold the real and the imaginary part.
    """
    return _scan_chunks(factor, drive, reverse=False)


def _scan_chunks(factor: Array, drive: Array, *, reverse: bool) -> Array:
    chunks = drive.shape[1]
    rotation = jnp.stack([-factor[1], factor[1]])

    def step(count: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, states = carry
        chunk = chunks - 1 - count if reverse else count
        states = lax.dynamic_update_index_in_dim(states, state, chunk, axis=1)
        driven = lax.dynamic_index_in_dim(drive, chunk, axis=1, keepdims=False)
        return factor[0] * state + rotation * state[:, ::-1] + driven, states

    zeros = jnp.zeros_like(drive)
    states: Array = lax.fori_loop(0, chunks, step, (zeros[:, 0], zeros))[1]
    return states


def _chunk_states_forward(factor: Array, drive: Array) -> tuple[Array, tuple[Array, Array]]:
    states = _scan_chunks(factor, drive, reverse=False)
    return states, (factor, states)


def _chunk_states_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    factor, states = saved
    conjugate = factor * jnp.array([[1.0], [-1.0]], factor.dtype)
    adjoint = _scan_chunks(conjugate, cotangent, reverse=True)
    turned = states[:, :, ::-1] * jnp.array([[-1.0], [1.0]], factor.dtype)  # i s
    return jnp.stack([jnp.sum(adjoint * x, (0, 1, 2)) for x in (states, turned)]), adjoint


_chunk_states.defvjp(_chunk_states_forward, _chunk_states_backward)
