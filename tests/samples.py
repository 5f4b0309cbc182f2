"""Random systems and layer weights with known properties, drawn from a given generator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace

EPS = float(np.finfo(np.float64).eps)
Generator = np.random.Generator
Array = NDArray[Any]


def adjoint(matrix: Array) -> Array:
    """Conjugate transpose of the last two axes."""
    return np.conj(np.swapaxes(matrix, -1, -2))


def complex_normal(rng: Generator, *shape: int) -> Array:
    """Independent complex normal numbers of variance 2."""
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def lru_weights(
    rng: Generator,
    states: int,
    inputs: int,
    outputs: int | None = None,
    *,
    r_min: float = 0.5,
    r_max: float = 0.99,
    max_phase: float = 6.28,
) -> dict[str, Array]:
    """Weights of an LRU as its authors initialise it (Orvieto et al., 2023), in double precision."""
    outputs = inputs if outputs is None else outputs
    squared = rng.uniform(r_min**2, r_max**2, states)
    nu = -0.5 * np.log(squared)
    scale_in, scale_out = np.sqrt(2 * inputs), np.sqrt(states)
    return {
        "nu_log": np.log(nu),
        "theta_log": np.log(max_phase * (1.0 - rng.uniform(size=states))),
        "gamma_log": 0.5 * np.log(-np.expm1(-2 * nu)),
        "B_re": rng.standard_normal((states, inputs)) / scale_in,
        "B_im": rng.standard_normal((states, inputs)) / scale_in,
        "C_re": rng.standard_normal((outputs, states)) / scale_out,
        "C_im": rng.standard_normal((outputs, states)) / scale_out,
        "D": rng.standard_normal(outputs if inputs == outputs else (outputs, inputs)),
    }


def lru_system(rng: Generator, states: int, inputs: int, **options: Any) -> DiagonalStateSpace:
    """The system of `lru_weights`, folded by hand."""
    w = lru_weights(rng, states, inputs, **options)
    return DiagonalStateSpace(
        np.exp(-np.exp(w["nu_log"]) + 1j * np.exp(w["theta_log"])),
        np.exp(w["gamma_log"])[:, None] * (w["B_re"] + 1j * w["B_im"]),
        w["C_re"] + 1j * w["C_im"],
        np.diag(w["D"]) if w["D"].ndim == 1 else w["D"],
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )


def diagonal_system(
    rng: Generator,
    states: int,
    inputs: int,
    outputs: int,
    *,
    discrete: bool = True,
    real_output: bool = False,
    radius: float = 0.95,
) -> DiagonalStateSpace:
    """Poles spread over the disk of `radius`, or over a box in the left half plane."""
    if discrete:
        modulus = radius * np.sqrt(rng.uniform(size=states))
        poles = modulus * np.exp(2j * np.pi * rng.uniform(size=states))
    else:
        poles = -rng.uniform(0.1, 5.0, states) + 1j * rng.uniform(-5.0, 5.0, states)
    return DiagonalStateSpace(
        poles,
        complex_normal(rng, states, inputs),
        complex_normal(rng, outputs, states),
        time=Discrete() if discrete else Continuous(),
        real_output=real_output,
    )


def dense_system(
    rng: Generator,
    states: int,
    inputs: int,
    outputs: int,
    *,
    discrete: bool = True,
    is_complex: bool = False,
    radius: float = 0.9,
) -> StateSpace:
    """A random matrix scaled to spectral radius `radius`, or shifted to spectral abscissa -0.2."""

    def normal(*shape: int) -> Array:
        return complex_normal(rng, *shape) if is_complex else rng.standard_normal(shape)

    A = normal(states, states) / np.sqrt(states)
    poles = np.linalg.eigvals(A)
    if discrete:
        A = A * (radius / np.abs(poles).max())
    else:
        A = A - (poles.real.max() + 0.2) * np.eye(states)
    time = Discrete() if discrete else Continuous()
    return StateSpace(A, normal(states, inputs), normal(outputs, states), time=time)


def well_conditioned(rng: Generator, size: int, *, is_complex: bool, spread: float = 3.0) -> Array:
    """A square matrix with singular values between 1 and `spread`."""
    draw = complex_normal if is_complex else (lambda g, *s: g.standard_normal(s))
    left, _ = np.linalg.qr(draw(rng, size, size))
    right, _ = np.linalg.qr(draw(rng, size, size))
    return (left * np.geomspace(1.0, spread, size)) @ right


def impulse_response(system: Any, steps: int) -> Array:
    """D, C B, C A B, ... (or D + C B, C A B, ... read after the update), by plain recursion."""
    diagonal = isinstance(system, DiagonalStateSpace)
    A = np.diag(np.asarray(system.eigenvalues)) if diagonal else np.asarray(system.A)
    X, C, D = np.asarray(system.B), np.asarray(system.C), np.asarray(system.D)
    terms = []
    for _ in range(steps):
        terms.append(C @ X)
        X = A @ X
    response = np.array(terms)
    if diagonal and system.real_output:
        response = response.real
    if system.read_after_update:
        response[0] = response[0] + D
        return response
    return np.concatenate([np.asarray(D)[None], response[:-1]])


def linoss_weights(damped: bool = True, n: int = 8, m: int = 3, seed: int = 0) -> dict[str, Array]:
    """Weights of a new LinOSS, with A and G in ranges of trained ones."""
    rng = np.random.default_rng(seed)
    weights = {
        "A_diag": rng.uniform(0.05, 3.0, n),
        "steps": 0.5 * rng.standard_normal(n),
        "B": rng.standard_normal((n, m, 2)),
        "C": rng.standard_normal((m, n, 2)),
        "D": rng.standard_normal(m),
    }
    return weights | ({"G_diag": rng.uniform(0.05, 0.4, n)} if damped else {})


def slow_inputs(count: int, steps: int, width: int, seed: int = 0) -> Array:
    """Sequences with a long memory, which white noise is not, shape (count, steps, width)."""
    u = np.random.default_rng(seed).normal(size=(count, steps, width))
    for k in range(1, steps):
        u[:, k] = 0.95 * u[:, k - 1] + 0.3 * u[:, k]
    return u
