"""Gramian factors of small blocks in Schur form: states, conjugate pairs, and groups of them.

For a block (T, B) these are U, S = U⁻¹ T U and M = U⁻¹ B, which `hammarling` needs of its diagonal blocks.
States are eliminated from the last to the first. One state is a scalar equation; a conjugate pair
is one of two states in complex arithmetic, turned real. In continuous time several states go at once
where nothing is lost by it: the small Gramian is formed, scaled to a correlation matrix, and its Cholesky
factor L taken as far as the rows of L⁻¹ are below sqrt(10), so that differences amplify eps by at most 10.

Reference: Hammarling, IMA J. Numer. Anal. 2 (1982).
"""

from __future__ import annotations

import cmath
import math

import numpy as np
from scipy.linalg import lapack

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.triangular import diagonal_blocks, stein_leaf, sylvester_leaf

Small = tuple[HostArray, HostArray, HostArray]
"""U, S and M of a block."""

_FIRST_GROUP = 16
"""States tried at once at first; doubled while all are accepted."""

_ACCEPTED_GROWTH = 100.0
"""Largest squared row of L⁻¹ in a group, and so the amplification of eps by its differences."""

_ACCEPTED_SPREAD = 0.1
"""Smallest standard deviation of a state in a group, relative to those after it: the formed Gramian has
errors of eps relative to the entries that it is computed from."""

_SCALED_SPREAD = 2.0**-20
"""Spread beyond which states are not scaled to go together: T would become too uneven to solve with."""


def block_continuous(T: HostArray, B: HostArray) -> Small:
    """U, S and M of one block, a group of states at a time."""
    U, S = np.zeros_like(T), np.zeros_like(T)
    M, B = np.zeros_like(B), B.copy()
    starts = {last: first for first, last in diagonal_blocks(T, 1)}
    last, length = T.shape[0], _FIRST_GROUP
    while last:
        found, tried = _trailing_group(T, B, starts, last, length)
        if found is None:
            first = starts[last]
            factor = _state_factor if last - first == 1 else _pair_factor
            found = factor(T[first:last, first:last], B[first:last], discrete=False)
            length = _FIRST_GROUP
        else:
            accepted = found[0].shape[0]
            length = 2 * tried if accepted == tried else accepted + 4
        small, s, rows = found
        first = last - small.shape[0]
        group = slice(first, last)
        U[group, group], S[group, group], M[group] = small, s, rows
        S[group, last:] = -(rows @ adjoint(M[last:]))
        if first:
            F = T[:first, group] @ small + B[:first] @ adjoint(rows)
            X = sylvester_leaf(T[:first, :first], s, F)
            U[:first, group] = -X
            B[:first] += X @ rows
        last = first
    return U, S, M


def _trailing_group(
    T: HostArray, B: HostArray, starts: dict[int, int], last: int, length: int
) -> tuple[Small | None, int]:
    """The longest well conditioned group that ends at `last`, of those up to `length`; and that length."""
    first = max(last - length, 0)
    if first and first not in starts:  # not in the middle of a pair
        first -= 1
    if last - first <= 2:
        return None, last - first
    at = slice(first, last)
    found = _group_factor(T[at, at], B[at])
    return found, last - first


def _group_factor(T: HostArray, B: HostArray, *, rescaled: bool = False) -> Small | None:
    """U, S and M of the trailing states whose correlation matrix is well conditioned, if any."""
    n = T.shape[0]
    X = sylvester_leaf(T, T, -(B @ adjoint(B)))
    # Near the boundary X is Hermitian to few digits. Its Hermitian part has as small a residual; the
    # lower triangle alone, which is all that `potrf` reads, has not.
    X = 0.5 * (X + adjoint(X))
    deviation = np.sqrt(np.maximum(X.diagonal().real, 0.0))
    if deviation[-1] == 0.0:
        return None
    # A state is computed from those after it alone, and a pair together: a larger one among those spoils
    # it. Where that ends the group early, the states are scaled, by powers of two, and tried again.
    behind = deviation[::-1]
    spoilt = behind < _ACCEPTED_SPREAD * np.maximum.accumulate(behind)
    if np.isrealobj(T):
        second = n - 2 - np.flatnonzero(T.diagonal(-1))
        spoilt[second] |= behind[second] < _ACCEPTED_SPREAD * behind[second + 1]
    usable = int(np.argmax(spoilt)) if spoilt.any() else n
    if 2 * usable < n:
        if rescaled or deviation.min() < _SCALED_SPREAD * deviation.max():
            return None
        unit = np.exp2(np.round(np.log2(deviation)))
        found = _group_factor(T / unit[:, None] * unit, B / unit[:, None], rescaled=True)
        if found is None:
            return None
        U, S, M = found
        return unit[n - U.shape[0] :, None] * U, S, M
    # Elimination starts with the last state: in reverse order it is an ordinary Cholesky factor.
    behind = behind[:usable]
    correlation = X[n - usable :, n - usable :][::-1, ::-1] / (behind[:, None] * behind)
    potrf, trtri = (
        (lapack.zpotrf, lapack.ztrtri)
        if np.iscomplexobj(correlation)
        else (lapack.dpotrf, lapack.dtrtri)
    )
    L, failed = potrf(correlation, lower=1)
    count = failed - 1 if failed else usable
    L = L[:count, :count]
    inverse, _ = trtri(L, lower=1)
    growth = np.einsum("ij,ij->i", inverse, inverse.conj()).real
    beyond = np.flatnonzero(growth > _ACCEPTED_GROWTH)
    count = int(beyond[0]) if beyond.size else count
    if 0 < count < n and np.isrealobj(T) and T[n - count, n - count - 1] != 0.0:
        count -= 1
    if count < 2:
        return None
    kept = deviation[n - count :]
    U = kept[:, None] * L[:count, :count][::-1, ::-1]
    inverse = inverse[:count, :count][::-1, ::-1] / kept
    T, B = T[n - count :, n - count :], B[n - count :]
    return U, inverse @ T @ U, inverse @ B


def block_discrete(T: HostArray, B: HostArray) -> Small:
    """U, S and M of one block, state by state; then S and M of the states together."""
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
            X = stein_leaf(above, s, driven @ adjoint(s) + B[:first] @ adjoint(M[at]))
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
    norm = math.sqrt(float(np.vdot(row, row).real))
    if norm == 0.0:
        return 0.0, np.zeros_like(row)
    if discrete:
        rate = math.sqrt((1.0 - abs(pole)) * (1.0 + abs(pole)))
    else:
        rate = math.sqrt(-2.0 * pole.real)
    return norm / rate, row * (rate / norm)


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
    u2, m2 = _normalised(mirrored, b[1], discrete=discrete)
    if discrete:
        u12 = (coupling * u2 * pole + b[0] @ m2.conj()) / (1.0 - pole * pole)
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
