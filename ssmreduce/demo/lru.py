"""The linear recurrent unit (LRU) as an Equinox module that takes batches of sequences."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from ssmreduce.demo.recurrence import diagonal_recurrence

# Recurrence at initialisation: moduli in a ring near the unit circle, all phases.
_MIN_MODULUS, _MAX_MODULUS, _MAX_PHASE = 0.9, 0.999, 6.28


def single(values: npt.ArrayLike) -> Array:
    """Return `values` as a float32 array of JAX."""
    # Unlike jnp.asarray, which compiles a copy for each shape.
    array: Array = jax.device_put(np.array(values, dtype=np.float32))
    return array


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
    rng : numpy.random.Generator
        Source of the initial weights: NumPy's needs no compilation, unlike JAX's.
    """

    nu_log: Array
    theta_log: Array
    B_re: Array
    B_im: Array
    C_re: Array
    C_im: Array
    D: Array
    gamma_log: Array

    def __init__(self, states: int, width: int, *, rng: np.random.Generator) -> None:
        squared = rng.uniform(_MIN_MODULUS**2, _MAX_MODULUS**2, states)
        nu = -0.5 * np.log(squared)
        # 1 - u lies in (0, 1]: a phase of 0 has no logarithm.
        phase = _MAX_PHASE * (1.0 - rng.uniform(size=states))
        self.nu_log = single(np.log(nu))
        self.theta_log = single(np.log(phase))
        self.B_re = single(rng.normal(size=(states, width)) / math.sqrt(2 * width))
        self.B_im = single(rng.normal(size=(states, width)) / math.sqrt(2 * width))
        self.C_re = single(rng.normal(size=(width, states)) / math.sqrt(states))
        self.C_im = single(rng.normal(size=(width, states)) / math.sqrt(states))
        self.D = single(rng.normal(size=width))
        self.gamma_log = single(0.5 * np.log(-np.expm1(-2.0 * nu)))

    @property
    def states(self) -> int:
        """Number of stored complex states."""
        return self.nu_log.shape[0]

    @property
    def eigenvalues(self) -> Array:
        """Diagonal (N,) of Λ."""
        return jnp.exp(self.log_eigenvalues)

    @property
    def log_eigenvalues(self) -> Array:
        """Their logarithms (N,)."""
        return jax.lax.complex(-jnp.exp(self.nu_log), jnp.exp(self.theta_log))

    def __call__(self, inputs: Array) -> Array:
        """Run (batch, L, H) sequences from a zero state."""
        B = jnp.exp(self.gamma_log)[:, None] * jax.lax.complex(self.B_re, self.B_im)
        C = jax.lax.complex(self.C_re, self.C_im)
        return diagonal_recurrence(self.log_eigenvalues, B, C, self.D, inputs)
