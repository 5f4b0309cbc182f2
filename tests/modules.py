"""Equinox modules that are not the package's own: what users bring along."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


class ForeignLRU(eqx.Module):
    """An LRU with the formula and the attribute names of CompreSSM and discretax, on (L, H)."""

    nu_log: jax.Array
    theta_log: jax.Array
    B_re: jax.Array
    B_im: jax.Array
    C_re: jax.Array
    C_im: jax.Array
    D: jax.Array
    gamma_log: jax.Array

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, m) to (L, p)."""
        eigenvalues = jnp.exp(-jnp.exp(self.nu_log) + 1j * jnp.exp(self.theta_log))
        B = (self.B_re + 1j * self.B_im) * jnp.exp(self.gamma_log)[:, None]
        C = self.C_re + 1j * self.C_im
        driven = inputs @ jnp.swapaxes(B, 0, 1)
        steps = jnp.broadcast_to(eigenvalues, driven.shape)

        def combine(first: Any, second: Any) -> Any:
            return second[0] * first[0], second[0] * first[1] + second[1]

        _, states = jax.lax.associative_scan(combine, (steps, driven))
        direct = inputs * self.D if self.D.ndim == 1 else inputs @ jnp.swapaxes(self.D, 0, 1)
        return (states @ jnp.swapaxes(C, 0, 1)).real + direct


class SubclassedLRU(ForeignLRU):
    """A subclass without additions."""


class KernelLRU(ForeignLRU):
    """The same map as a convolution with Re(C Λ^k B): quick to compile, for short sequences."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, m) to (L, m)."""
        length = inputs.shape[0]
        logarithms = -jnp.exp(self.nu_log) + 1j * jnp.exp(self.theta_log)
        powers = jnp.exp(jnp.arange(length)[:, None] * logarithms)
        B = jnp.exp(self.gamma_log)[:, None] * (self.B_re + 1j * self.B_im)
        kernel = jnp.einsum("pn,kn,nm->kpm", self.C_re + 1j * self.C_im, powers, B).real
        lag = np.subtract.outer(np.arange(length), np.arange(length))
        response = jnp.where((lag >= 0)[..., None, None], kernel[np.maximum(lag, 0)], 0.0)
        return jnp.einsum("tspm,sm->tp", response, inputs) + inputs * self.D


class ForeignLinOSS(eqx.Module):
    """A LinOSS with the formulas and the attribute names of discretax, on (L, H)."""

    A_diag: jax.Array
    G_diag: jax.Array | None
    B: jax.Array
    C: jax.Array
    D: jax.Array
    steps: jax.Array
    discretization: str = eqx.field(static=True)
    damping: bool = eqx.field(static=True)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, m) to (L, m)."""
        step, stiffness = jax.nn.sigmoid(self.steps), jax.nn.relu(self.A_diag)
        damping = jax.nn.relu(self.G_diag) if self.damping else jnp.zeros_like(step)
        if self.damping:
            root = 2.0 * jnp.sqrt(1.0 + step * damping)
            low = (2.0 + step * damping - root) / step**2
            high = (2.0 + step * damping + root) / step**2
            stiffness = jnp.clip(self.A_diag, low, high)
        implicit = self.discretization == "IM"
        factor = 1.0 / (1.0 + (step**2 * stiffness if implicit else step * damping))
        driven = inputs @ jnp.swapaxes(self.B[..., 0] + 1j * self.B[..., 1], 0, 1)

        def advance(state: Any, drive: jax.Array) -> Any:
            speed, place = state
            force = drive - stiffness * place
            speed = factor * (speed + step * force)
            place = place + step * speed
            return (speed, place), place

        start = jnp.zeros_like(driven[0])
        _, places = jax.lax.scan(advance, (start, start), driven)
        outputs = places @ jnp.swapaxes(self.C[..., 0] + 1j * self.C[..., 1], 0, 1)
        return outputs.real + inputs * self.D


class Stack(eqx.Module):
    """Two layers with a nonlinearity between them and a linear head."""

    first: ForeignLRU
    second: ForeignLRU
    head: jax.Array

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, m) to (1,)."""
        hidden = jnp.tanh(self.first(inputs))
        return jnp.mean(self.second(hidden), axis=0) @ self.head


def make_lru(
    weights: dict[str, NDArray[Any]],
    dtype: str = "float32",
    kind: type[ForeignLRU] = ForeignLRU,
) -> ForeignLRU:
    """Put NumPy weights into a module."""
    return kind(**{name: jnp.asarray(np.asarray(x, dtype=dtype)) for name, x in weights.items()})


def numpy_outputs(layer: Any, inputs: NDArray[Any]) -> NDArray[np.float64]:
    """The LRU formula, step by step in float64, from the layer's own weights."""
    w = {name: np.asarray(getattr(layer, name), dtype=np.float64) for name in WEIGHTS}
    eigenvalues = np.exp(-np.exp(w["nu_log"])) * np.exp(1j * np.exp(w["theta_log"]))
    B = np.exp(w["gamma_log"])[:, None] * (w["B_re"] + 1j * w["B_im"])
    C = w["C_re"] + 1j * w["C_im"]
    D = np.diag(w["D"]) if w["D"].ndim == 1 else w["D"]
    state = np.zeros(eigenvalues.size, dtype=complex)
    outputs = []
    for sample in inputs:
        state = eigenvalues * state + B @ sample
        outputs.append((C @ state).real + D @ sample)
    return np.array(outputs)


WEIGHTS = ("nu_log", "theta_log", "B_re", "B_im", "C_re", "C_im", "D", "gamma_log")
