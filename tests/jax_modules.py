"""Equinox layers with the arrays and options of lindermanlab and discretax."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


class S5(eqx.Module):
    """S5 on (L, H) with the parameters and formulas of lindermanlab; C, or C1 and C2, as given."""

    Lambda_re: jax.Array
    Lambda_im: jax.Array
    B: jax.Array
    D: jax.Array
    log_step: jax.Array
    P: int
    conj_sym: bool = eqx.field(static=True)
    C: jax.Array | None = None
    C1: jax.Array | None = None
    C2: jax.Array | None = None
    clip_eigs: bool = eqx.field(static=True, default=False)
    discretization: Any = eqx.field(static=True, default="zoh")
    step_rescale: Any = eqx.field(static=True, default=1.0)
    bidirectional: bool = eqx.field(static=True, default=False)

    def discrete(self) -> tuple[jax.Array, jax.Array]:
        """Discrete poles and input matrix."""
        real = jnp.clip(self.Lambda_re, None, -1e-4) if self.clip_eigs else self.Lambda_re
        poles, B = real + 1j * self.Lambda_im, self.B[..., 0] + 1j * self.B[..., 1]
        step = self.step_rescale * jnp.exp(self.log_step[:, 0])
        if self.discretization == "zoh":
            discrete = jnp.exp(poles * step)
            return discrete, ((discrete - 1.0) / poles)[:, None] * B
        below = 1.0 / (1.0 - 0.5 * step * poles)
        return below * (1.0 + 0.5 * step * poles), (below * step)[:, None] * B

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, H) to (L, H)."""
        poles, B = self.discrete()

        def states(signal: jax.Array) -> jax.Array:
            def step(state: jax.Array, sample: jax.Array) -> tuple[jax.Array, jax.Array]:
                state = poles * state + B @ sample
                return state, state

            return jax.lax.scan(step, jnp.zeros_like(poles), signal)[1]

        kept = states(inputs.astype(poles.dtype))
        if self.bidirectional:
            kept = jnp.concatenate([kept, states(inputs[::-1].astype(poles.dtype))[::-1]], axis=1)
        parts = [C for C in (self.C, self.C1, self.C2) if C is not None]
        C = jnp.concatenate([part[..., 0] + 1j * part[..., 1] for part in parts], axis=1)
        return (2.0 if self.conj_sym else 1.0) * (kept @ C.T).real + inputs * self.D


class S4DKernel(eqx.Module):
    """The kernel of discretax: c is one complex array; a call returns impulse responses (H, L)."""

    C: jax.Array
    log_dt: jax.Array
    log_a_real: jax.Array
    A_imag: jax.Array

    def __call__(self, length: int) -> jax.Array:
        """Return the impulse responses, (H, length)."""
        poles, step = -jnp.exp(self.log_a_real) + 1j * self.A_imag, jnp.exp(self.log_dt)[:, None]
        discrete = jnp.exp(poles * step)

        def advance(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            return discrete * state, 2.0 * state.sum(axis=1).real

        first = self.C * (discrete - 1.0) / poles
        return jax.lax.scan(advance, first, None, length=length)[1].T


class S4D(eqx.Module):
    """A layer around such a kernel, on (L, H)."""

    state_dim: int
    kernel: S4DKernel

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, H) to (L, H)."""
        length = len(inputs)
        spectra = jnp.fft.rfft(self.kernel(length).T, 2 * length, axis=0)
        product = spectra * jnp.fft.rfft(inputs, 2 * length, axis=0)
        return jnp.fft.irfft(product, 2 * length, axis=0)[:length]


def s5_weights(
    rng: np.random.Generator, states: int, width: int, layout: str = "C"
) -> dict[str, NDArray[np.float64]]:
    """Random weights of S5; C in one array for one or "both" directions, or "two" arrays."""
    shapes = {"C": {"C": 1}, "both": {"C": 2}, "two": {"C1": 1, "C2": 1}}[layout]
    return {
        "Lambda_re": -rng.uniform(0.1, 1.0, states),
        "Lambda_im": rng.uniform(-8.0, 8.0, states),
        "B": rng.standard_normal((states, width, 2)) / np.sqrt(2 * width),
        "D": rng.standard_normal(width),
        "log_step": rng.uniform(np.log(0.05), np.log(0.5), (states, 1)),
        **{
            name: rng.standard_normal((width, n * states, 2)) / np.sqrt(states)
            for name, n in shapes.items()
        },
    }


def make_s5(weights: dict[str, NDArray[np.float64]], dtype: str = "float64", **options: Any) -> S5:
    """Put NumPy weights into a module; options are its static fields."""
    arrays = {name: jnp.asarray(np.asarray(x, dtype=dtype)) for name, x in weights.items()}
    own = {"P": weights["Lambda_re"].size, "conj_sym": True} | options
    return S5(**arrays, **own)


def make_s4d(rng: np.random.Generator, states: int, width: int, dtype: str = "float64") -> S4D:
    """A layer with random weights."""
    C = rng.standard_normal((width, states)) + 1j * rng.standard_normal((width, states))
    arrays = {
        "log_dt": rng.uniform(np.log(0.05), np.log(0.5), width),
        "log_a_real": np.log(rng.uniform(0.3, 1.0, (width, states))),
        "A_imag": np.pi * np.tile(np.arange(states), (width, 1)) + rng.uniform(0, 0.5, states),
    }
    held = {name: jnp.asarray(np.asarray(x, dtype=dtype)) for name, x in arrays.items()}
    kind = np.result_type(dtype, np.complex64)
    return S4D(2 * states, S4DKernel(C=jnp.asarray(C.astype(kind)), **held))
