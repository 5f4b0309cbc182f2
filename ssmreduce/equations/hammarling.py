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

Inside a block the same is done by groups of states (`small_gramians`); outside, all work is in matrix
products. Cost O(n³/3 + n² m), a small part of the Schur form before it.

References: Hammarling, IMA J. Numer. Anal. 2 (1982); Kressner, ACM TOMS 34 (2008), for blocks.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._lapack import product, safe_unit
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.small_gramians import block_factor, completed_inputs, largest_block
from ssmreduce.equations.triangular import (
    Edges,
    diagonal_blocks,
    solve_stein_column,
    solve_sylvester_column,
)
from ssmreduce.time_domain import Discrete, TimeDomain


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
    if not np.count_nonzero(B):
        return np.zeros_like(T)
    scale = safe_unit(B)
    B = np.array(_compressed(B) if m > n else B, order="F")
    if scale != 1.0:
        B /= scale
    discrete = isinstance(time, Discrete)
    if n <= largest_block():
        U, _, _ = block_factor(T, B, discrete=discrete)
    else:
        U = np.zeros((n, n), dtype=T.dtype, order="F")
        eliminate = _eliminate_discrete if discrete else _eliminate_continuous
        eliminate(T, B, U, diagonal_blocks(T))
    if scale == 1.0:
        return U
    with np.errstate(over="ignore"):  # refused by those who know what overflows
        return U * scale


def _compressed(B: HostArray) -> HostArray:
    """A square B with the same B Bᴴ."""
    return np.asarray(adjoint(np.linalg.qr(adjoint(B), mode="r")))


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
            B[:first] = completed_inputs(driven, B[:first], S, M)
