"""Oscillators of a LinOSS layer: real recursions of two states, and their inner products.

An oscillator with step Δ, stiffness A and damping G runs [z; y][k] = M [z; y][k-1] + F v[k] with

    IM:    S = 1/(1 + Δ² A),  M = [[S, -Δ A S], [Δ S, S]],           F = [Δ S; Δ² S],
    IMEX:  S = 1/(1 + Δ G),   M = [[S, -Δ A S], [Δ S, 1 - Δ² A S]],  F = [Δ S; Δ² S].

Its poles ρ exp(±iθ) have ρ² = S. Sums over impulse responses of two oscillators,

    P_ij(L) = Σ_{k<L} M_iᵏ F_i F_jᵀ M_jᵏᵀ,   P_2L = P_L + M_iᴸ P_L M_jᴸᵀ,   P_{L+1} = F_i F_jᵀ + M_i P_L M_jᵀ,

follow from the binary digits of L, for poles of any kind. Where all decay, a power of two after which
nothing is left stands for infinity. Cost O(N² log L) for N oscillators. Powers of M by squaring err by
L eps, in effect by eps/(1 - ρ²), and double poles by eps/(1 - ρ)².
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError, UnstableSystemError

_EPS = float(np.finfo(np.float64).eps)

_DECAYED = 128.0
"""Infinite sums end where ρ^2L < exp(-128): even with the factor L² of a double pole nothing is left."""

_SLOWEST = 64.0 * _EPS
"""Least 1 - ρ² of an infinite horizon: squaring M up to that power errs by eps/(1 - ρ²)."""


class Oscillators(NamedTuple):
    """The recursions of all oscillators, without the complex b and c."""

    M: HostArray
    """(N, 2, 2): maps [z; y] to its next value."""
    F: HostArray
    """(N, 2): what an input of one adds to it."""
    decay: HostArray
    """(N,): -log ρ², zero where it does not decay."""
    sine: HostArray
    """(N,): sin θ; zero where the poles are real."""
    cosine: HostArray
    """(N,): cos θ; beyond ±1 where the poles are real and distinct."""


def oscillators(
    step: HostArray, A: HostArray, G: HostArray, *, implicit: bool, clip: bool
) -> Oscillators:
    """The recursions of IM for A ≥ 0, or of IMEX for G ≥ 0, with A ≥ 0 or clipped to where poles are a pair.

    With x = Δ² A the poles of IM are S (1 ± i √x). With q = 1 + Δ G the discriminant of IMEX is
    S² (x - (√q - 1)²) ((√q + 1)² - x) / 4, and √q - 1 = Δ G/(√q + 1): nothing cancels.
    """
    root = np.sqrt(1.0 + step * G)
    low, high = step * G / (root + 1.0), root + 1.0
    if clip:
        with np.errstate(divide="ignore", over="ignore"):  # a step of zero
            A = np.clip(A, (G / high) ** 2, (high / step) ** 2)
    x = step**2 * A
    if implicit:
        S = corner = 1.0 / (1.0 + x)
        decay, sine, cosine = np.log1p(x), np.sqrt(x * S), np.sqrt(S)
    else:
        S, decay = 1.0 / root**2, np.log1p(step * G)
        corner = 1.0 - x * S
        gap = np.maximum(x - low**2, 0.0) * np.maximum(high**2 - x, 0.0)
        sine, cosine = np.sqrt(gap) / (2.0 * root), (root**2 + 1.0 - x) / (2.0 * root)
    M = np.stack([S, -step * A * S, step * S, corner], axis=-1).reshape(-1, 2, 2)
    return Oscillators(M, np.stack([step * S, step**2 * S], axis=-1), decay, sine, cosine)


def inner_products(found: Oscillators, horizon: int | None) -> HostArray:
    """P_ij, shape (N, N, 2, 2), over a horizon or over all steps, by the binary digits of their number.

    Raises
    ------
    UnstableSystemError
        If an oscillator does not decay and there is no horizon.
    NoConvergenceError
        If the sum overflows.
    """
    steps = _steps(found.decay, horizon)
    first = found.F[:, None, :, None] * found.F[None, :, None, :]
    P, power = first, found.M
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for digit in bin(steps)[3:]:
            P = P + power[:, None] @ P @ adjoint(power)[None]
            power = power @ power
            if digit == "1":
                P = first + found.M[:, None] @ P @ adjoint(found.M)[None]
                power = power @ found.M
    if not np.all(np.isfinite(P)):
        raise NoConvergenceError(
            f"the responses of this LinOSS layer overflow within {steps} steps; expected |λ|^horizon to "
            "be finite. Use a shorter horizon."
        )
    return np.asarray(0.5 * (P + np.swapaxes(adjoint(P), 0, 1)))


def _steps(decay: HostArray, horizon: int | None) -> int:
    """The horizon, or a power of two after which all oscillators have decayed."""
    if horizon is not None:
        return horizon
    slow = int(np.sum(decay < _SLOWEST))
    if slow:
        raise UnstableSystemError(
            f"{slow} of {len(decay)} oscillators of this LinOSS layer do not decay; expected damping, or a "
            "horizon over which outputs are compared. Pass options=CutOptions(horizon=L) with the length L "
            "of the sequences that the layer sees."
        )
    return 1 << int(np.ceil(np.log2(max(1.0, _DECAYED / decay.min()))))
