"""Hammarling's method in blocks: the factor U of a Gramian straight from a Schur form.

For T upper (quasi-)triangular and stable, U is upper (block) triangular in

    T U Uᴴ + U Uᴴ Tᴴ + B Bᴴ = 0   (continuous)   or   T U Uᴴ Tᴴ - U Uᴴ + B Bᴴ = 0   (discrete).

Partition with the last block row as the second. That block alone is a small equation of the same
kind, for U₂. With S = U₂⁻¹ T₂ U₂ and M = U₂⁻¹ B₂, which stay bounded where U₂ is singular,

    T₁ X + X Sᴴ = -(T₁₂ U₂ + B₁ Mᴴ),                  B₁ <- B₁ - X M            (continuous),
    X - T₁ X Sᴴ = T₁₂ U₂ Sᴴ + B₁ Mᴴ,   [X, B₁] <- [T₁ X + T₁₂ U₂, B₁] Qᴴ        (discrete),

gives the rest X of the block column, and a B₁ for the rows that remain; Q is unitary with leading
rows [S, M], which are orthonormal. (In continuous time S + Sᴴ + M Mᴴ = 0.) Neither U₂⁻¹ nor a Gramian
is ever formed, so small directions of the factor keep their digits.

Inside a block the same is done state by state, or conjugate pair by pair; outside, all work is in
matrix products. Cost O(n³/3 + n² m), a small part of the Schur form before it.

References: Hammarling, IMA J. Numer. Anal. 2 (1982); Kressner, ACM TOMS 34 (2008), for blocks.
"""

from __future__ import annotations

import cmath
import math

import numpy as np

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.triangular import (
    Edges,
    SteinColumn,
    diagonal_blocks,
    solve_sylvester_column,
    stein_leaf,
    sylvester_leaf,
)
from ssmreduce.time_domain import Discrete, TimeDomain

Small = tuple[HostArray, HostArray, HostArray]
"""U, S and M of a diagonal block."""


def hammarling_factor(T: HostArray, B: HostArray, time: TimeDomain) -> HostArray:
    """Return U, upper block triangular, with U Uᴴ the Gramian of (T, B).

    Parameters
    ----------
    T : (n, n) array
        Schur form: upper triangular, or upper quasi-triangular if it is real. Stable.
    B : (n, m) array
        Input matrix in the coordinates of T; real exactly where T is.
    time : Continuous or Discrete
        Time domain.

    Returns
    -------
    (n, n) array
        Factor, real where T is.
    """
    n, m = B.shape
    scale = np.abs(B).max(initial=0.0)
    if scale == 0.0:
        return np.zeros_like(T)
    B = np.array(_compressed(B) if m > n else B, order="F") / scale
    U = np.zeros((n, n), dtype=T.dtype, order="F")
    edges = diagonal_blocks(T)
    if isinstance(time, Discrete):
        _eliminate_discrete(T, B, U, edges)
    else:
        _eliminate_continuous(T, B, U, edges)
    U *= scale
    return U


def _compressed(B: HostArray) -> HostArray:
    """A square B with the same B Bᴴ."""
    return adjoint(np.asarray(np.linalg.qr(adjoint(B), mode="r")))


def _eliminate_continuous(T: HostArray, B: HostArray, U: HostArray, edges: Edges) -> None:
    for index in range(len(edges) - 1, -1, -1):
        first, last = edges[index]
        small, S, M = _block_continuous(T[first:last, first:last], B[first:last])
        U[first:last, first:last] = small
        if first:
            F = -(T[:first, first:last] @ small) - product(B[:first], adjoint(M))
            X = solve_sylvester_column(T, edges[:index], S, F)
            U[:first, first:last] = X
            B[:first] -= product(X, M)


def _block_continuous(T: HostArray, B: HostArray) -> Small:
    """U, S and M of one block, state by state."""
    U, S = np.zeros_like(T), np.zeros_like(T)
    M, B = np.zeros_like(B), B.copy()
    for first, last in reversed(diagonal_blocks(T, 1)):
        if last - first == 1:
            small, s, row = _state_continuous(T[first, first], B[first])
            U[first, first], S[first, first], M[first] = small, s, row
            if first and small:
                F = T[:first, first] * small + B[:first] @ row.conj()
                X = -sylvester_leaf(T[:first, :first], S[first:last, first:last], F[:, None])[:, 0]
                U[:first, first] = X
                B[:first] -= np.multiply.outer(X, row)
            continue
        at = slice(first, last)
        U[at, at], S[at, at], M[at] = _pair_factor(T[at, at], B[at], discrete=False)
        if first:
            F = T[:first, at] @ U[at, at] + B[:first] @ adjoint(M[at])
            X = -sylvester_leaf(T[:first, :first], S[at, at], F)
            U[:first, at] = X
            B[:first] -= X @ M[at]
    above = np.triu(M @ adjoint(M), 1)
    if np.isrealobj(T):
        paired = np.flatnonzero(T.diagonal(-1))
        above[paired, paired + 1] = 0.0
    return U, S - above, M


def _state_continuous(t: complex, row: HostArray) -> tuple[float, complex, HostArray]:
    norm = _norm(row)
    if norm == 0.0:
        return 0.0, 0.0, row
    rate = math.sqrt(-2.0 * t.real)
    return norm / rate, t, row * (rate / norm)


def _eliminate_discrete(T: HostArray, B: HostArray, U: HostArray, edges: Edges) -> None:
    stein = SteinColumn(T, edges)
    for index in range(len(edges) - 1, -1, -1):
        first, last = edges[index]
        small, S, M = _block_discrete(T[first:last, first:last], B[first:last])
        U[first:last, first:last] = small
        if first:
            driven = T[:first, first:last] @ small
            F = driven @ adjoint(S) + product(B[:first], adjoint(M))
            X, driven = stein.solve(index, S, F, driven)
            U[:first, first:last] = X
            B[:first] = _completed(driven, B[:first], S, M)


def _block_discrete(T: HostArray, B: HostArray) -> Small:
    """U, S and M of one block, state by state; then S and M of the states together."""
    U, S = np.zeros_like(T), np.zeros_like(T)
    M, B = np.zeros_like(B), B.copy()
    edges = diagonal_blocks(T, 1)
    for first, last in reversed(edges):
        at = slice(first, last)
        if last - first == 1:
            U[first, first], S[first, first], M[first] = _state_discrete(T[first, first], B[first])
        else:
            U[at, at], S[at, at], M[at] = _pair_factor(T[at, at], B[at], discrete=True)
        if first:
            above, s = T[:first, :first], S[at, at]
            driven = T[:first, at] @ U[at, at]
            X = stein_leaf(above, s, driven @ adjoint(s) + B[:first] @ adjoint(M[at]))
            U[:first, at] = X
            B[:first] = _completed(above @ X + driven, B[:first], s, M[at])
    for first, last in edges[1:]:
        at = slice(first, last)
        S[:first, at], M[:first] = _cascaded(M[:first], S[at, at], M[at])
    return U, S, M


def _state_discrete(t: complex, row: HostArray) -> tuple[float, complex, HostArray]:
    norm = _norm(row)
    if norm == 0.0:
        return 0.0, 1.0, row
    rate = math.sqrt((1.0 - abs(t)) * (1.0 + abs(t)))
    return norm / rate, t, row * (rate / norm)


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


def _completed(driven: HostArray, B: HostArray, S: HostArray, M: HostArray) -> HostArray:
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


def _pair_factor(T: HostArray, B: HostArray, *, discrete: bool) -> Small:
    """U (upper triangular), S and M of a conjugate pair of poles, all real.

    Two complex states are eliminated in the Schur form of the pair; the unitary V that makes the
    factor real and triangular is then that of a rotation.
    """
    scale = float(np.abs(B).max())
    if scale == 0.0:
        return np.zeros((2, 2)), np.eye(2) if discrete else np.zeros((2, 2)), np.zeros_like(B)
    # B = L Nᴴ with orthonormal columns of N, and L lower triangular: a problem of 2 by 2 numbers.
    N, triangle = np.linalg.qr(adjoint(B / scale))
    L = adjoint(triangle)
    pole, q, coupling = _pair_schur(T)
    mirrored = pole.conjugate()
    b = adjoint(q) @ L
    u2, m2 = _complex_state(pole=mirrored, row=b[1], discrete=discrete)
    if discrete:
        u12 = (coupling * u2 * pole + b[0] @ m2.conj()) / (1.0 - pole * pole)
        phase = mirrored / abs(mirrored) if pole else 1.0
        driven = pole * u12 + coupling * u2
        rest = b[0] - (phase.conjugate() * driven + (b[0] @ m2.conj()) / (1.0 + abs(pole))) * m2
    else:
        u12 = -(coupling * u2 + b[0] @ m2.conj()) / (2.0 * pole)
        rest = b[0] - u12 * m2
    u1, m1 = _complex_state(pole=pole, row=rest, discrete=discrete)
    inner = m1 @ m2.conj()
    if discrete:
        s12 = -phase * inner
        m1 = m1 - inner / (1.0 + abs(pole)) * m2
    else:
        s12 = -inner
    factor = q @ np.array([[u1, u12], [0.0, u2]])
    bottom = float(np.linalg.norm(factor[1]))
    if bottom == 0.0:
        # Only by underflow: both poles are reached through both states.
        return np.zeros((2, 2)), np.eye(2) if discrete else np.zeros((2, 2)), np.zeros_like(B)
    x, y = factor[1]
    V = np.array([[y, x.conjugate()], [-x, y.conjugate()]]) / bottom
    # det q = 1 and det V = 1, so that the corner is known without a difference. For a pair that is
    # nearly one real pole m1 comes from one, and its phase with few digits: V follows that phase.
    corner = u1 * u2 / bottom
    row = V[:, 0].conj() @ np.stack([m1, m2])
    square = complex(row @ row)
    if square:
        V[:, 0] = V[:, 0] * cmath.sqrt(square / abs(square))
    S = adjoint(V) @ np.array([[pole, s12], [0.0, mirrored]]) @ V
    M = adjoint(V) @ np.stack([m1, m2])
    U = np.array([[corner, (factor[0] @ V[:, 1]).real], [0.0, bottom]])
    return scale * U, S.real, M.real @ adjoint(N)


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
    return pole, q, complex((adjoint(q) @ T @ q)[0, 1])


def _complex_state(*, pole: complex, row: HostArray, discrete: bool) -> tuple[float, HostArray]:
    norm = float(np.linalg.norm(row))
    if norm == 0.0:
        return 0.0, row
    if discrete:
        rate = math.sqrt((1.0 - abs(pole)) * (1.0 + abs(pole)))
    else:
        rate = math.sqrt(-2.0 * pole.real)
    return norm / rate, row * (rate / norm)


def _norm(row: HostArray) -> float:
    """2-norm that neither over- nor underflows."""
    largest = float(np.abs(row).max())
    if largest == 0.0:
        return 0.0
    unit = row / largest
    return largest * math.sqrt(float((unit @ unit.conj()).real))
