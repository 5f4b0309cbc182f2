"""Sylvester and Stein equations with Schur forms: block by block, so that the work is in products.

Right-hand sides are solved for a block column at a time,

    T X + X Sᴴ = F  (continuous)   or   X - T X Sᴴ = F  (discrete),

with T upper (quasi-)triangular and S a diagonal block of such a matrix: from the last block row of T
upwards, each solved row is removed from the rows above it by a matrix product. What is left for the
small blocks on the diagonal is LAPACK's unblocked `trsyl`; there is no such routine for the Stein
equation, whose small blocks are solved column by column in complex Schur form.

LAPACK's `trsyl` on the whole matrix, and SLICOT's solvers, do all of this with vectors.

References: Bartels and Stewart, Comm. ACM 15 (1972); Jonsson and Kågström, ACM TOMS 28 (2002).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError

BLOCK = 32
"""Order of the diagonal blocks: small enough for unblocked solves, large enough for products."""

Edges = list[tuple[int, int]]
"""First and last plus one row of each diagonal block."""


def diagonal_blocks(T: HostArray, size: int = BLOCK) -> Edges:
    """Cut 0 ... n into blocks of about `size` that part no 2 by 2 block of a real Schur form."""
    n = T.shape[0]
    if 0 < n <= size:
        return [(0, n)]
    paired = np.zeros(n + 1, dtype=bool)
    if np.isrealobj(T) and n > 1:
        paired[1:n] = T.diagonal(-1) != 0
    edges, first = [], 0
    while first < n:
        last = min(first + size, n)
        if paired[last]:
            last += 1
        edges.append((first, last))
        first = last
    return edges


def solve_sylvester_column(T: HostArray, edges: Edges, S: HostArray, F: HostArray) -> HostArray:
    """Return X with T X + X Sᴴ = F; F is overwritten."""
    X = np.empty_like(F)
    for first, last in reversed(edges):
        X[first:last] = sylvester_leaf(T[first:last, first:last], S, F[first:last])
        if first:
            F[:first] -= product(T[:first, first:last], X[first:last])
    return X


def sylvester_leaf(T: HostArray, S: HostArray, F: HostArray) -> HostArray:
    """Return X with T X + X Sᴴ = F for small T and S in Schur form."""
    trsyl = lapack.ztrsyl if np.iscomplexobj(F) else lapack.dtrsyl
    X, scale, close = trsyl(T, S, F, tranb="C")
    if close:
        raise singular_equation("λ_i + conj λ_j = 0")
    return np.asarray(X if scale == 1.0 else X / scale)


class SteinColumn:
    """Solves X - T X Sᴴ = F for block columns X above the diagonal blocks of T, from the last on."""

    def __init__(self, T: HostArray, edges: Edges) -> None:
        self._T = T
        self._edges = edges
        self._forms: dict[int, tuple[HostArray, HostArray]] = {}

    def solve(
        self, count: int, S: HostArray, F: HostArray, driven: HostArray
    ) -> tuple[HostArray, HostArray]:
        """Return X for the first `count` block rows, and `driven` + T X; both are overwritten."""
        T, X = self._T, np.empty_like(F)
        E, basis = _triangular_form(adjoint(S))
        for index in range(count - 1, -1, -1):
            first, last = self._edges[index]
            if index not in self._forms:
                self._forms[index] = _triangular_form(T[first:last, first:last])
            form, vectors = self._forms[index]
            solved = _stein_leaf(form, E, adjoint(vectors) @ F[first:last] @ basis)
            block = vectors @ solved @ adjoint(basis)
            X[first:last] = block if np.iscomplexobj(F) else block.real
            moved = product(T[:last, first:last], X[first:last])
            driven[:last] += moved
            if first:
                F[:first] += product(moved[:first], adjoint(S))
        return X, driven


def stein_leaf(T: HostArray, S: HostArray, F: HostArray) -> HostArray:
    """Return X with X - T X Sᴴ = F for a small T and an S of one or two states."""
    try:
        return _stein_leaf_columns(T, S, F)
    except np.linalg.LinAlgError:
        raise singular_equation("λ_i conj λ_j = 1") from None


def _stein_leaf_columns(T: HostArray, S: HostArray, F: HostArray) -> HostArray:
    if S.shape[0] == 1:
        return np.linalg.solve(np.eye(T.shape[0]) - np.conj(S[0, 0]) * T, F)
    E, basis = _triangular_form(adjoint(S))
    X = np.zeros(F.shape, dtype=E.dtype)
    F = F @ basis
    for column in range(S.shape[0]):
        rest = F[:, column] + T @ (X[:, :column] @ E[:column, column])
        X[:, column] = np.linalg.solve(np.eye(T.shape[0]) - E[column, column] * T, rest)
    X = X @ adjoint(basis)
    return X if np.iscomplexobj(T) else X.real


def _triangular_form(matrix: HostArray) -> tuple[HostArray, HostArray]:
    """Upper triangular form and unitary basis: complex if a real matrix has complex eigenvalues."""
    if matrix.shape[0] == 1:
        return matrix, np.ones((1, 1))
    form, basis = scipy.linalg.schur(matrix)
    if np.isrealobj(form) and np.any(form.diagonal(-1)):
        form, basis = scipy.linalg.schur(matrix, output="complex")
    return form, basis


def _stein_leaf(T: HostArray, E: HostArray, F: HostArray) -> HostArray:
    """Return X with X - T X E = F for small upper triangular T and E, column by column."""
    dtype = np.result_type(T, E, F)
    trtrs = lapack.ztrtrs if dtype == np.complex128 else lapack.dtrtrs
    identity = np.eye(T.shape[0], dtype=dtype, order="F")
    X, TX = np.zeros(F.shape, dtype=dtype), np.zeros(F.shape, dtype=dtype)
    for column in range(E.shape[0]):
        rest = F[:, column] + TX[:, :column] @ E[:column, column]
        X[:, column], singular = trtrs(identity - E[column, column] * T, rest)
        if singular:
            raise singular_equation("λ_i conj λ_j = 1")
        TX[:, column] = T @ X[:, column]
    return X


def singular_equation(condition: str) -> NoConvergenceError:
    """What to raise where an equation has no unique solution because of `condition`."""
    return NoConvergenceError(
        "the Lyapunov equation is singular to working precision; expected no eigenvalues of `A` with "
        f"{condition}. Shift or scale `A`."
    )
