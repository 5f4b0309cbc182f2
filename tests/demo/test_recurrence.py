"""The chunked recurrence against the associative scan that LRU implementations use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmreduce.demo import recurrence

diagonal_recurrence = jax.jit(recurrence.diagonal_recurrence, static_argnames="chunk")


@jax.jit
def scanned(log_eigenvalues, B, C, D, inputs):
    """The same layer by an associative scan over single steps."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    def run(sequence):
        driven = sequence @ B.T
        factors = jnp.broadcast_to(jnp.exp(log_eigenvalues), driven.shape)
        states = jax.lax.associative_scan(combine, (factors, driven))[1]
        return (states @ C.T).real + D * sequence

    return jax.vmap(run)(inputs)


def layer(rng, n, h, *, modulus, dtype):
    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), dtype)

    phase = rng.uniform(0.0, 2 * np.pi, n)
    gain = np.sqrt(-np.expm1(2 * np.log(modulus)))
    log_eigenvalues = jnp.asarray(np.log(modulus) + 1j * phase, dtype)
    return log_eigenvalues, gain * normal(n, h), normal(h, n) / n, normal(h).real


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 7, 64, 100])
@pytest.mark.parametrize("chunk", [None, 1, 8, 200])
def test_outputs_are_those_of_the_associative_scan(rng, length, chunk):
    weights = layer(rng, 12, 3, modulus=0.95, dtype=jnp.complex64)
    inputs = jnp.asarray(rng.standard_normal((2, length, 3)), jnp.float32)
    expected = scanned(*weights, inputs)
    found = diagonal_recurrence(*weights, inputs, chunk=chunk)
    assert found.shape == expected.shape
    assert found.dtype == jnp.float32
    # Both round once per product of a sum over states and earlier steps.
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=50 * np.finfo(np.float32).eps * scale)


@pytest.mark.parametrize("modulus", [1e-6, 0.5, 1 - 1e-3, 1 - 1e-6])
def test_moduli_near_zero_and_one(rng, modulus):
    weights = layer(rng, 16, 2, modulus=modulus, dtype=jnp.complex64)
    inputs = jnp.asarray(rng.standard_normal((3, 784, 2)), jnp.float32)
    expected = scanned(*weights, inputs)
    found = diagonal_recurrence(*weights, inputs)
    # A product of k poles carries k rounding errors; the longest memory here is 784 steps.
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=784 * np.finfo(np.float32).eps * scale)


@pytest.mark.slow
def test_gradients_in_double_precision(rng, x64):
    weights = layer(rng, 10, 3, modulus=0.97, dtype=jnp.complex128)
    inputs = jnp.asarray(rng.standard_normal((2, 50, 3)))
    probe = jnp.asarray(rng.standard_normal(inputs.shape))

    def gradients(function):
        return jax.grad(lambda *args: jnp.sum(function(*args) * probe), argnums=range(5))(
            *weights, inputs
        )

    for found, expected in zip(gradients(diagonal_recurrence), gradients(scanned), strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=1e3 * np.finfo(float).eps * scale)
