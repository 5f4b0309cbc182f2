"""The linear recurrent unit (LRU) as an Equinox module that takes batches of sequences."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from ssmreduce.demo.recurrence import diagonal_recurrence

# Recurrence at initialisation: moduli in a ring near the unit circle, all phases.
_MIN_MODULUS, _MAX_MODULUS, _MAX_PHASE = 0.5, 0.99, 6.28


class LRU(eqx.Module):
    """Linear recurrent unit: x[k] = Λ x[k-1] + γ B u[k], y[k] = Re(C x[k]) + D u[k].

    Λ = exp(-exp(nu_log) + i exp(theta_log)), γ = exp(gamma_log), with the attribute names of
    CompreSSM and discretax.

    Parameters
    ----------
    states : int
        Number N of stored complex states.
    width : int
        Number H of input and of output channels.
    key : array
        JAX random key.
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
