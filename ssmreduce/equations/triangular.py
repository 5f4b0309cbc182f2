"""Equations with Schur forms: block by block, so that the work is in products.

The Bartels-Stewart method takes any right-hand side, and any A whose equation has a solution. With the
Schur form A = W T Wᴴ the equation for Wᴴ X W is solved from the last block column to the first; each
column costs one product with the columns already known and a block back substitution. Cost: the Schur
form and O(n³) in matrix products. The residual is backward stable, of the order of n eps ‖A‖ ‖X‖; the
error is larger by the condition of the equation, 1/min|λ_i + conj λ_j| or 1/min|1 - λ_i conj λ_j| for a
normal A.

Right-hand sides are solved for a block column at a time,

    T X + X Sᴴ = F  (continuous)   or   X - T X Sᴴ = F  (discrete),

with T upper (quasi-)triangular and S a diagonal block of such a matrix: from the last block row of T
upwards, each solved row is removed from the rows above it by a matrix product. What is left for the
small blocks on the diagonal is LAPACK's unblocked `trsyl`; there is no such routine for the Stein
equation, whose small blocks go by states and conjugate pairs, compiled in `_elimination.c`.

LAPACK's `trsyl` on the whole matrix, and SLICOT's solvers, do all of this with vectors.

References: Bartels and Stewart, Comm. ACM 15 (1972); Kitagawa, Int. J. Control 25 (1977); Jonsson and
Kågström, ACM TOMS 28 (2002).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import product
from ssmreduce._state_units import Edges as Edges
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain

stein: Callable[[HostArray, HostArray, HostArray, HostArray], bool] | None
"""Solves a small Stein equation in place; None where it is not compiled."""
try:
    from ssmreduce.equations._elimination import stein
except ImportError:  # installed without a C compiler
    stein = None

BLOCK = 32
"""Order of the diagonal blocks: small enough for unblocked solves, large enough for products."""


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


def solve_schur(T: HostArray, Q: HostArray, time: TimeDomain) -> HostArray:
    """Return X with T X + X Tᴴ + Q = 0 or T X Tᴴ - X + Q = 0 for T in Schur form.

    Parameters
    ----------
    T : (n, n) array
        Upper triangular, or upper quasi-triangular if it is real.
    Q : (n, n) array
        Right-hand side in the coordinates of T, of the same dtype; need not be Hermitian.
    time : Continuous or Discrete
        Time domain.

    Returns
    -------
    (n, n) array
        X.
    """
    X = np.zeros(Q.shape, dtype=Q.dtype, order="F")
    edges, discrete = diagonal_blocks(T), isinstance(time, Discrete)
    for first, last in reversed(edges):
        S, F = T[first:last, first:last], Q[:, first:last].copy()
        if last < len(T):
            known = product(X[:, last:], adjoint(T[first:last, last:]))
            F += product(T, known) if discrete else known
        if discrete:
            X[:, first:last], _ = solve_stein_column(T, edges, S, F, np.zeros_like(F))
        else:
            X[:, first:last] = solve_sylvester_column(T, edges, S, -F)
    return X


def solve_sylvester_column(T: HostArray, edges: Edges, S: HostArray, F: HostArray) -> HostArray:
    """Return X with T X + X Sᴴ = F; F is overwritten."""
    X = np.empty_like(F)
    trsyl = lapack.ztrsyl if np.iscomplexobj(F) else lapack.dtrsyl
    for first, last in reversed(edges):
        small, scale, close = trsyl(T[first:last, first:last], S, F[first:last], tranb="C")
        if close:
            raise singular_equation("λ_i + conj λ_j = 0")
        X[first:last] = small if scale == 1.0 else small / scale
        if first:
            F[:first] -= product(T[:first, first:last], X[first:last])
    return X


def solve_stein_column(
    T: HostArray, edges: Edges, S: HostArray, F: HostArray, driven: HostArray
) -> tuple[HostArray, HostArray]:
    """Return X with X - T X Sᴴ = F, and `driven` + T X; F and `driven` are overwritten."""
    X = np.asfortranarray(F)
    for first, last in reversed(edges):
        X[first:last], moved = _stein_block(T[first:last, first:last], S, X[first:last])
        driven[first:last] += moved
        if first:
            moved = product(T[:first, first:last], X[first:last])
            driven[:first] += moved
            X[:first] += product(moved, adjoint(S))
    return X, driven


def _stein_block(T: HostArray, S: HostArray, F: HostArray) -> tuple[HostArray, HostArray]:
    """Return X and T X of X - T X Sᴴ = F for small T and S in Schur form."""
    X, TX = F.copy(order="F"), np.zeros(F.shape, F.dtype, order="F")
    if stein is not None:
        if not stein(np.asfortranarray(T), np.asfortranarray(S), X, TX):
            raise singular_equation("λ_i conj λ_j = 1")
        return X, TX
    for first, last in reversed(diagonal_blocks(S, 1)):
        at = slice(first, last)
        X[:, at] += TX[:, last:] @ adjoint(S[at, last:])
        X[:, at] = stein_state(T, S[at, at], X[:, at])
        TX[:, at] = T @ X[:, at]
    return X, TX


def stein_state(T: HostArray, S: HostArray, F: HostArray) -> HostArray:
    """Return X with X - T X Sᴴ = F for the S of one state, or of a conjugate pair."""
    identity = np.eye(T.shape[0])
    try:
        if S.shape[0] == 1:
            return np.linalg.solve(identity - np.conj(S[0, 0]) * T, F)
        form, basis = scipy.linalg.schur(adjoint(S), output="complex")
        X = F @ basis
        X[:, 0] = np.linalg.solve(identity - form[0, 0] * T, X[:, 0])
        X[:, 1] += T @ X[:, 0] * form[0, 1]
        X[:, 1] = np.linalg.solve(identity - form[1, 1] * T, X[:, 1])
    except np.linalg.LinAlgError:
        raise singular_equation("λ_i conj λ_j = 1") from None
    return np.asarray((X @ adjoint(basis)).real)


def singular_equation(condition: str) -> NoConvergenceError:
    """What to raise where an equation has no unique solution because of `condition`."""
    return NoConvergenceError(
        "the Lyapunov equation is singular to working precision; expected no eigenvalues of `A` with "
        f"{condition}. Shift or scale `A`."
    )
