"""Hammarling's method in blocks: the factor U of a Gramian straight from a Schur form.

For T upper (quasi-)triangular and stable, U is upper triangular in

    T U Uᴴ + U Uᴴ Tᴴ + B Bᴴ = 0   (continuous)   or   T U Uᴴ Tᴴ - U Uᴴ + B Bᴴ = 0   (discrete).

Partition with the last block row as the second. That block alone is a small equation of the same
kind, for U₂. With S = U₂⁻¹ T₂ U₂ and M = U₂⁻¹ B₂, which stay bounded where U₂ is singular,

    T₁ X + X Sᴴ = -(T₁₂ U₂ + B₁ Mᴴ),                  B₁ <- B₁ - X M            (continuous),
    X - T₁ X Sᴴ = T₁₂ U₂ Sᴴ + B₁ Mᴴ,   [X, B₁] <- [T₁ X + T₁₂ U₂, B₁] Qᴴ        (discrete),

gives the rest X of the block column, and a B₁ for the rows that remain; Q is unitary with leading
rows [S, M], which are orthonormal. (In continuous time S + Sᴴ + M Mᴴ = 0.) Neither U₂⁻¹ nor a Gramian
is ever formed, so small directions of the factor keep their digits.

Inside a block the same is done state by state, compiled (`_elimination.c`); outside, all work is in
matrix products. Cost O(n³/3 + n² m), a small part of the Schur form before it. Where nothing is compiled,
a T with pairs is first made triangular in complex arithmetic if time is discrete.

References: Hammarling, IMA J. Numer. Anal. 2 (1982); Kressner, ACM TOMS 34 (2008), for blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import SCIPY, product, safe_unit
from ssmreduce.equations.triangular import (
    BLOCK,
    Edges,
    diagonal_blocks,
    singular_equation,
    solve_stein_column,
    solve_sylvester_column,
)
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain

eliminate: Callable[[HostArray, HostArray, HostArray, HostArray, HostArray, bool], bool] | None
"""Fills U, S and M of a block, and overwrites B; None where it is not compiled."""
try:
    from ssmreduce.equations._elimination import eliminate
except ImportError:  # installed without a C compiler
    eliminate = None

LARGEST_BLOCK = 64 if eliminate is None else 128
"""Order up to which one block is faster than products of small ones, if it needs no `trsyl`."""


def hammarling_factor(T: HostArray, B: HostArray, time: TimeDomain) -> HostArray:
    """Return U, upper triangular, with U Uᴴ the Gramian of (T, B).

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

    Raises
    ------
    NoConvergenceError
        If T is not stable.
    """
    n, m = B.shape
    if not np.count_nonzero(B):
        return np.zeros_like(T)
    scale = safe_unit(B)
    B = np.array(_compressed(B) if m > n else B, order="F")
    if scale != 1.0:
        B /= scale
    discrete = isinstance(time, Discrete)
    if eliminate is None and discrete and np.isrealobj(T) and T.diagonal(-1).any():
        U = _factor_of_pairs(T, B, time)
    elif len(T) <= LARGEST_BLOCK and (discrete or eliminate is not None):
        U, _, _ = block_factor(T, B, discrete=discrete)
    else:
        U = np.zeros(T.shape, dtype=T.dtype, order="F")
        by_blocks = _eliminate_discrete if discrete else _eliminate_continuous
        by_blocks(T, B, U, diagonal_blocks(T))
    if scale == 1.0:
        return U
    with np.errstate(over="ignore"):  # the callers refuse what overflowed
        return U * scale


def _compressed(B: HostArray) -> HostArray:
    """A square B with the same B Bᴴ."""
    return np.asarray(adjoint(np.linalg.qr(adjoint(B), mode="r")))


def block_factor(
    T: HostArray, B: HostArray, *, discrete: bool
) -> tuple[HostArray, HostArray, HostArray]:
    """U, S and M of one block; where nothing is compiled, T is triangular in discrete time."""
    if eliminate is None:
        return _discrete_block(T, B) if discrete else _continuous_block(T, B)
    U, S = np.zeros(T.shape, T.dtype, order="F"), np.zeros(T.shape, T.dtype, order="F")
    M = np.zeros(B.shape, B.dtype, order="F")
    if not eliminate(np.asfortranarray(T), B.copy(order="F"), U, S, M, discrete):
        raise _singular(discrete=discrete)
    return U, S, M


def _singular(*, discrete: bool) -> NoConvergenceError:
    return singular_equation("λ_i conj λ_j = 1" if discrete else "λ_i + conj λ_j = 0")


def _eliminate_continuous(T: HostArray, B: HostArray, U: HostArray, edges: Edges) -> None:
    for index in range(len(edges) - 1, -1, -1):
        first, last = edges[index]
        small, S, M = block_factor(T[first:last, first:last], B[first:last], discrete=False)
        U[first:last, first:last] = small
        if first:
            F = -(T[:first, first:last] @ small) - product(B[:first], adjoint(M))
            X = solve_sylvester_column(T, edges[:index], S, F)
            U[:first, first:last] = X
            B[:first] -= product(X, M)


def _eliminate_discrete(T: HostArray, B: HostArray, U: HostArray, edges: Edges) -> None:
    for index in range(len(edges) - 1, -1, -1):
        first, last = edges[index]
        small, S, M = block_factor(T[first:last, first:last], B[first:last], discrete=True)
        U[first:last, first:last] = small
        if first:
            driven = T[:first, first:last] @ small
            F = driven @ adjoint(S) + product(B[:first], adjoint(M))
            X, driven = solve_stein_column(T, edges[:index], S, F, driven)
            U[:first, first:last] = X
            B[:first] = _completed_inputs(driven, B[:first], S, M)


def _completed_inputs(driven: HostArray, B: HostArray, S: HostArray, M: HostArray) -> HostArray:
    """The last columns of [driven, B] Qᴴ: the input matrix of the rows that remain.

    For the k orthonormal columns E of [S, M]ᴴ with leading block E₁ = U D Wᴴ and phase J = U Wᴴ,
    the block reflector I - V R Vᴴ of V = E + [J; 0] maps E to -[J; 0].
    """
    k = S.shape[0]
    V = np.concatenate([adjoint(S), adjoint(M)])
    left, values, right = np.linalg.svd(V[:k])
    V[:k] += left @ right
    # Vᴴ V = 2 I + E₁ᴴ J + Jᴴ E₁ = 2 W (I + D) Wᴴ
    R = (adjoint(right) / (1.0 + values)) @ right
    inner = product(driven, V[:k]) + product(B, V[k:])
    return np.asarray(B - product(inner @ R, adjoint(V[k:])))


def _factor_of_pairs(T: HostArray, B: HostArray, time: TimeDomain) -> HostArray:
    """Real U by way of a complex Schur form of T, which has no pairs."""
    pairs = [slice(k, k + 2) for k in np.flatnonzero(T.diagonal(-1)).tolist()]
    triangle, inputs = T.astype(complex, order="F"), B.astype(complex, order="F")
    forms = [_pair_schur(T[at, at]) for at in pairs]
    for at, (form, q) in zip(pairs, forms, strict=True):
        triangle[: at.start, at] = triangle[: at.start, at] @ q
        triangle[at, at.stop :] = adjoint(q) @ triangle[at, at.stop :]
        triangle[at, at] = form
        inputs[at] = adjoint(q) @ inputs[at]
    U = hammarling_factor(triangle, inputs, time)
    for at, (_, q) in zip(pairs, forms, strict=True):
        U[at, at.start :] = q @ U[at, at.start :]
    # U Uᴴ is real, so [Re U, Im U] is a factor too, with zeros below the diagonal of Re U. A QR
    # decomposition from the last row on makes it square and triangular.
    flipped = adjoint(U)[::-1, ::-1]
    triangular, _, _, _ = lapack.dtpqrt(len(T) - 1, min(len(T), BLOCK), flipped.real, flipped.imag)
    return np.asarray(adjoint(triangular)[::-1, ::-1])


def _continuous_block(T: HostArray, B: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """U, S and M in Python, a state or a pair of conjugate poles at a time."""
    U, S, M, B = np.zeros_like(T), np.zeros_like(T), np.zeros_like(B), B.copy()
    for first, last in reversed(diagonal_blocks(T, 1)):
        at = slice(first, last)
        factor = _state_factor if last - first == 1 else _pair_factor
        U[at, at], S[at, at], M[at] = u, s, m = factor(T[at, at], B[at])
        if first and u[-1, -1]:  # an unreachable state excites no other
            F = -T[:first, at].dot(u) - B[:first].dot(adjoint(m))
            U[:first, at] = X = solve_sylvester_column(T, [(0, first)], s, F)
            B[:first] -= X.dot(m)
        S[at, last:] = -m.dot(adjoint(M[last:]))
    return U, S, M


def _state_factor(T: HostArray, B: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """U, S and M of one state; S is free where nothing reaches it."""
    size, row = _normalised(T[0, 0], B[0], discrete=False)
    return np.full((1, 1), size), T if size else np.zeros((1, 1)), row[None]


def _pair_factor(T: HostArray, B: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """U, S and M of a pair, all real.

    With a pole λ the Gramian is (B Bᵀ + |λ|² T⁻¹ B Bᵀ T⁻ᵀ) / 4|Re λ|, so an RQ decomposition of
    [B, |λ| T⁻¹ B] has U and M. S follows from S + Sᵀ + M Mᵀ = 0 and the corner of T U = U S.
    """
    (a, b), (c, d) = T.tolist()
    pole = _pair_pole(T)
    if not pole.real < 0.0:
        raise _singular(discrete=False)
    rows = np.concatenate([B, np.array([[d, -b], [-c, a]]) / abs(pole) @ B], axis=1)
    Q, R = SCIPY.qr(adjoint(rows[::-1]))
    if not R[0, 0]:
        return np.zeros_like(T), np.zeros_like(T), np.zeros_like(B)
    rate = 2.0 * math.sqrt(-pole.real)
    M = rate * adjoint(Q[: B.shape[1], ::-1])
    (first, both), (_, second) = (M @ adjoint(M)).tolist()
    corner = c * R[1, 1] / R[0, 0]
    S = np.array([[-0.5 * first, -both - corner], [corner, -0.5 * second]])
    return np.array([[R[1, 1], R[0, 1]], [0.0, R[0, 0]]]) / rate, S, M


def _discrete_block(T: HostArray, B: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """U, S and M of a triangular T in Python, a state at a time, with Q a reflector."""
    U, S, M, B = np.zeros_like(T), np.diag(T.diagonal()), np.zeros_like(B), B.copy()
    trtrs = lapack.ztrtrs if np.iscomplexobj(T) else lapack.dtrtrs
    for k in range(len(T) - 1, -1, -1):
        pole, above = T[k, k], T[:k, :k]
        U[k, k], M[k] = size, m = _normalised(pole, B[k], discrete=True)
        if not size:  # an unreachable state excites no other
            S[k, k] = 1.0
        elif k:
            driven, reached = size * T[:k, k], B[:k] @ m.conj()
            shifted, right = np.eye(k) - np.conj(pole) * above, np.conj(pole) * driven + reached
            U[:k, k], failed = trtrs(shifted, right)
            if failed:
                raise _singular(discrete=True)
            driven = _phase(pole) * (above @ U[:k, k] + driven) + reached / (1.0 + abs(pole))
            B[:k] -= np.outer(driven, m)
    for k in range(1, len(T)):  # rows above, in terms of state k and the inputs to it
        inner = M[:k] @ M[k].conj()
        S[:k, k] = -np.conj(_phase(S[k, k])) * inner
        M[:k] -= np.outer(inner / (1.0 + abs(S[k, k])), M[k])
    return U, S, M


def _phase(pole: complex) -> complex:
    """That of the conjugate, or 1."""
    size = abs(pole)
    return pole.conjugate() / size if size else 1.0


def _normalised(pole: complex, row: HostArray, *, discrete: bool) -> tuple[float, HostArray]:
    """The factor u of one state, and its row m = b/u.

    |b|²/u² is -2 Re λ, or 1 - |λ|², which is rounded as 1 - λ² where λ is nearly real.
    """
    small, large = sorted((abs(pole.real), abs(pole.imag)))
    decay = (1.0 - large) * (1.0 + large) - small * small if discrete else -2.0 * pole.real
    if not decay > 0.0:
        raise _singular(discrete=discrete)
    largest = float(np.abs(row).max(initial=0.0))
    if largest == 0.0:
        return 0.0, row
    norm, rate = float(np.linalg.norm(row / largest)), math.sqrt(decay)
    return largest * norm / rate, row / largest * (rate / norm)


def _pair_pole(T: HostArray) -> complex:
    """That of positive imaginary part of a pair; its real part is not rounded."""
    (a, b), (c, d) = T.tolist()
    half = 0.5 * (a - d)
    if half == 0.0:  # the form that LAPACK has
        return complex(a, math.sqrt(abs(b)) * math.sqrt(abs(c)))
    return complex(0.5 * (a + d), math.sqrt(max(-(half * half + b * c), 0.0)))


def _pair_schur(T: HostArray) -> tuple[HostArray, HostArray]:
    """Complex Schur form of a pair, and its unitary basis with an imaginary corner."""
    (a, b), (c, d) = T.tolist()
    half, pole = 0.5 * (a - d), _pair_pole(T)
    # Eigenvector from the row with the larger entries.
    x, y = (b, pole - a) if abs(b) >= abs(c) else (pole - d, c)
    size = math.hypot(abs(x), abs(y))
    x, y = x / size * (1j * abs(y) / y), 1j * abs(y) / size
    q = np.array([[x, y], [y, x.conjugate()]])
    # What the poles have in common couples nothing, and its rounding need not.
    coupling = q[:, 0].conj() @ np.array([[half, b], [c, -half]]) @ q[:, 1]
    return np.array([[pole, coupling], [0.0, pole.conjugate()]]), q
