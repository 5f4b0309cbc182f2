"""Gramian factors of small blocks in Schur form, by states and conjugate pairs.

For a block (T, B) these are U, S = U⁻¹ T U and M = U⁻¹ B, which `hammarling` needs of its diagonal blocks.
States are eliminated from the last to the first. One state is a scalar equation; a conjugate pair
is one of two states in complex arithmetic, turned real. That is compiled (`_elimination.c`) where
a C compiler was at hand on installation: with some twenty calls a state, the interpreter would otherwise take
most of the time of a small system.

Reference: Hammarling, IMA J. Numer. Anal. 2 (1982).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import numpy as np

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.triangular import (
    BLOCK,
    diagonal_blocks,
    singular_equation,
    stein_state,
    sylvester_leaf,
)
from ssmreduce.errors import NoConvergenceError

eliminate: Callable[[HostArray, HostArray, HostArray, HostArray, HostArray, bool], bool] | None
"""Fills U, S and M of a block, and overwrites B; None where it is not compiled."""
try:
    from ssmreduce.equations._elimination import eliminate
except ImportError:  # installed without a C compiler
    eliminate = None

_LARGEST = 128
"""Order up to which one compiled block is faster than products of small ones."""

Small = tuple[HostArray, HostArray, HostArray]
"""U, S and M of a block."""


def largest_block() -> int:
    """Order up to which a matrix is best taken as one block."""
    return 2 * BLOCK if eliminate is None else _LARGEST


def block_factor(T: HostArray, B: HostArray, *, discrete: bool) -> Small:
    """U, S and M of one block."""
    if eliminate is None:
        return _block_discrete(T, B) if discrete else _block_continuous(T, B)
    U, S = np.zeros(T.shape, T.dtype, order="F"), np.zeros(T.shape, T.dtype, order="F")
    M = np.zeros(B.shape, B.dtype, order="F")
    if not eliminate(np.asfortranarray(T), B.copy(order="F"), U, S, M, discrete):
        raise _singular(discrete=discrete)
    return U, S, M


def _block_continuous(T: HostArray, B: HostArray) -> Small:
    """U, S and M of one block in Python, a state or a pair at a time."""
    U, S = np.zeros_like(T), np.zeros_like(T)
    M, B = np.zeros_like(B), B.copy()
    for first, last in reversed(diagonal_blocks(T, 1)):
        at = slice(first, last)
        factor = _state_factor if last - first == 1 else _pair_factor
        u, s, m = factor(T[at, at], B[at], discrete=False)
        U[at, at], S[at, at], M[at] = u, s, m
        S[at, last:] = -(m @ adjoint(M[last:]))
        if first:
            X = sylvester_leaf(T[:first, :first], s, -(T[:first, at] @ u) - B[:first] @ adjoint(m))
            U[:first, at] = X
            B[:first] -= X @ m
    return U, S, M


def _block_discrete(T: HostArray, B: HostArray) -> Small:
    """The same in discrete time; then S and M of the states together."""
    U, S = np.zeros_like(T), np.zeros_like(T)
    M, B = np.zeros_like(B), B.copy()
    edges = diagonal_blocks(T, 1)
    for first, last in reversed(edges):
        at = slice(first, last)
        factor = _state_factor if last - first == 1 else _pair_factor
        U[at, at], S[at, at], M[at] = factor(T[at, at], B[at], discrete=True)
        if first:
            above, s = T[:first, :first], S[at, at]
            driven = T[:first, at] @ U[at, at]
            X = stein_state(above, s, driven @ adjoint(s) + B[:first] @ adjoint(M[at]))
            U[:first, at] = X
            B[:first] = completed_inputs(above @ X + driven, B[:first], s, M[at])
    for first, last in edges[1:]:
        at = slice(first, last)
        S[:first, at], M[:first] = _cascaded(M[:first], S[at, at], M[at])
    return U, S, M


def _state_factor(T: HostArray, B: HostArray, *, discrete: bool) -> Small:
    """U, S and M of one state; S is free where nothing reaches it, and then unitary or zero."""
    size, row = _normalised(complex(T[0, 0]), B[0], discrete=discrete)
    S = T if size else np.full((1, 1), 1.0 if discrete else 0.0)
    return np.full((1, 1), size), S, row[None]


def _normalised(pole: complex, row: HostArray, *, discrete: bool) -> tuple[float, HostArray]:
    """The factor u of one state, and its row m = b/u."""
    decay = _decay(pole, discrete=discrete)
    if not decay > 0.0:
        raise _singular(discrete=discrete)
    largest = float(np.abs(row).max(initial=0.0))
    if largest == 0.0:
        return 0.0, np.zeros_like(row)
    row = row / largest
    norm, rate = math.sqrt(float(np.vdot(row, row).real)), math.sqrt(decay)
    return largest * norm / rate, row * (rate / norm)


def _decay(pole: complex, *, discrete: bool) -> float:
    """|b|²/u² of one state: -2 Re λ, or 1 - |λ|², which is rounded as 1 - λ² where λ is nearly real."""
    if not discrete:
        return -2.0 * pole.real
    small, large = sorted((abs(pole.real), abs(pole.imag)))
    return (1.0 - large) * (1.0 + large) - small * small


def _singular(*, discrete: bool) -> NoConvergenceError:
    return singular_equation("λ_i conj λ_j = 1" if discrete else "λ_i + conj λ_j = 0")


def _pair_factor(T: HostArray, B: HostArray, *, discrete: bool) -> Small:
    """U (upper triangular), S and M of a conjugate pair of poles, all real.

    Two complex states are eliminated in the Schur form of the pair; the unitary V that makes the
    factor real and triangular is then that of a rotation.
    """
    scale = float(np.abs(B).max(initial=0.0))
    if scale == 0.0:
        return np.zeros((2, 2)), np.eye(2) if discrete else np.zeros((2, 2)), np.zeros_like(B)
    # B = L Nᴴ with orthonormal columns of N, and L lower triangular: a problem of 2 by 2 numbers.
    N, triangle = np.linalg.qr(adjoint(B / scale))
    L = adjoint(triangle)
    pole, q, coupling = _pair_schur(T)
    mirrored = pole.conjugate()
    b = adjoint(q) @ L
    u2, m2 = _normalised(mirrored, b[1], discrete=discrete)
    if discrete:
        u12 = (coupling * u2 * pole + b[0] @ m2.conj()) / ((1.0 - pole) * (1.0 + pole))
        phase = mirrored / abs(mirrored) if pole else 1.0
        driven = pole * u12 + coupling * u2
        rest = b[0] - (phase.conjugate() * driven + (b[0] @ m2.conj()) / (1.0 + abs(pole))) * m2
    else:
        u12 = -(coupling * u2 + b[0] @ m2.conj()) / (2.0 * pole)
        rest = b[0] - u12 * m2
    u1, m1 = _normalised(pole, rest, discrete=discrete)
    inner = m1 @ m2.conj()
    if discrete:
        s12 = -phase * inner
        m1 = m1 - inner / (1.0 + abs(pole)) * m2
    else:
        s12 = -inner
    factor = q @ np.array([[u1, u12], [0.0, u2]])
    S, M = np.array([[pole, s12], [0.0, mirrored]]), np.stack([m1, m2])
    U, S, M = _turned_real(factor, u1, u2, S, M, discrete=discrete)
    return scale * U, S, M @ adjoint(N)


def _turned_real(
    factor: HostArray, u1: float, u2: float, S: HostArray, M: HostArray, *, discrete: bool
) -> Small:
    """Real U, S and M of a pair from complex ones: `factor` V, Vᴴ S V and Vᴴ M with a unitary V.

    V turns the larger row of `factor` into [0, size], and a rotation makes U upper triangular at the end.
    Until then only the first column of U may be small: where the pair is nearly one real pole, or inputs
    reach one direction alone. Rounding may then leave nothing of the first row of [S, M] but its norm; so it
    keeps that, and takes the phase in which it is nearly real.
    """
    sizes = np.linalg.norm(factor, axis=1)
    larger = int(sizes[1] >= sizes[0])
    size = float(sizes[larger])
    if size == 0.0:
        # Only by underflow: both poles are reached through both states.
        return np.zeros((2, 2)), np.eye(2) if discrete else np.zeros((2, 2)), np.zeros(M.shape)
    unit = 1.0 if discrete else abs(S[0, 0])
    rate = math.sqrt(_decay(complex(S[0, 0]), discrete=discrete))
    (x, y), other = factor[larger], factor[1 - larger]
    V = np.array([[y, x.conjugate()], [-x, y.conjugate()]]) / size
    S, M = adjoint(V) @ S @ V, adjoint(V) @ M
    # Either part of the first row may be rounding alone; both are taken relative to what they can be.
    square = complex((M[0] / rate) @ (M[0] / rate) + (S[0, 1] / unit) ** 2)
    phase = cmath.sqrt(square / abs(square)) if square else 1.0
    S = np.array([[S[0, 0], S[0, 1] / phase], [S[1, 0] * phase, S[1, 1]]]).real
    length = float(np.linalg.norm(M[0]))
    M = np.stack([M[0] / phase, M[1]]).real
    if u1 == 0.0:  # out of reach: free, as for one state
        S[0], M[0] = [float(discrete), 0.0], 0.0
    elif discrete:
        norm = math.hypot(S[0, 0], S[0, 1], float(np.linalg.norm(M[0])))
        S[0] /= norm
        M[0] /= norm
    else:
        M[0] *= length / (float(np.linalg.norm(M[0])) or 1.0)
        S[0, 1] = -S[1, 0] - M[0] @ M[1]
    # det V = 1, and the determinant of `factor` is u1 u2: the corner is known without a difference.
    corner, beside = u1 * (u2 / size), float((other @ V[:, 1]).real)
    if larger:
        return np.array([[corner, beside], [0.0, size]]), S, M
    bottom = math.hypot(corner, beside)  # U is [0, size; -corner, beside] so far
    if bottom == 0.0:
        return np.array([[0.0, size], [0.0, 0.0]]), S, M
    turn = np.array([[beside, -corner], [corner, beside]]) / bottom
    U = np.array([[size * -turn[0, 1], size * turn[0, 0]], [0.0, bottom]])
    return U, adjoint(turn) @ S @ turn, adjoint(turn) @ M


def _pair_schur(T: HostArray) -> tuple[complex, HostArray, complex]:
    """λ (of positive imaginary part), unitary q and coupling with qᴴ T q = [[λ, coupling], [0, λ̄]]."""
    (a, b), (c, d) = T.tolist()
    half = 0.5 * (a - d)
    imag = math.sqrt(max(-(half * half + b * c), 0.0))
    pole = complex(0.5 * (a + d), imag)
    # Eigenvector from the row with the larger entries.
    x, y = (b, pole - a) if abs(b) >= abs(c) else (pole - d, c)
    size = math.hypot(abs(x), abs(y))
    x, y = x / size, y / size
    q = np.array([[x, -complex(y).conjugate()], [y, complex(x).conjugate()]])
    # What the poles have in common couples nothing, and its rounding need not.
    rest = np.array([[half, b], [c, -half]])
    return pole, q, complex(q[:, 0].conj() @ rest @ q[:, 1])


def _reflectors(S: HostArray, M: HostArray) -> tuple[HostArray, HostArray]:
    """V and R with Qᴴ = I - V R Vᴴ, where Q has the rows of [S, M] (up to sign) as its first.

    For the k orthonormal columns E of [S, M]ᴴ with leading block E₁ = U D Wᴴ and phase J = U Wᴴ,
    the block reflector of V = E + [J; 0] maps E to -[J; 0].
    """
    k = S.shape[0]
    V = np.concatenate([adjoint(S), adjoint(M)])
    left, values, right = np.linalg.svd(V[:k])
    V[:k] += left @ right
    # Vᴴ V = 2 I + E₁ᴴ J + Jᴴ E₁ = 2 W (I + D) Wᴴ
    return V, (adjoint(right) / (1.0 + values)) @ right


def completed_inputs(driven: HostArray, B: HostArray, S: HostArray, M: HostArray) -> HostArray:
    """The last columns of [driven, B] Qᴴ: the input matrix of the rows that remain."""
    k = S.shape[0]
    V, R = _reflectors(S, M)
    inner = product(driven, V[:k]) + product(B, V[k:])
    return np.asarray(B - product(inner @ R, adjoint(V[k:])))


def _cascaded(M: HostArray, S: HostArray, below: HostArray) -> tuple[HostArray, HostArray]:
    """[0, M] Q: rows M of the states above, expressed by the states below and their inputs."""
    k = S.shape[0]
    V, R = _reflectors(S, below)
    inner = (M @ V[k:]) @ adjoint(R)
    return -inner @ adjoint(V[:k]), M - inner @ adjoint(V[k:])
