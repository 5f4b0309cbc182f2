"""Factored doubling (squared Smith) for X = A X Aᴴ + B Bᴴ: products and QR only.

With Z_k Z_kᴴ = Σ_{j<k} A^j B Bᴴ A^jᴴ, two factors combine as Z_{2k} = [Z_k, A^k Z_k]: 2^i terms in i
steps. The columns are compressed to numerical rank by an orthogonal decomposition, so X is never formed
and its small directions keep their digits. The iteration doubles until the last block no longer matters;
log2(36/(1-ρ)) steps of O(n³) for spectral radius ρ. Arrays of any library pass through. Sums over
finitely many steps are in `ssmreduce.equations.smith`.

Reference: Smith, SIAM J. Appl. Math. 16 (1968); Penzl, SIAM J. Sci. Comput. 21 (2000).
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import (
    Array,
    State,
    adjoint,
    device_of,
    namespace,
    repeat_until,
    triangular_factor,
)
from ssmreduce.errors import NoConvergenceError

_MAX_DOUBLINGS = 64
"""2^64 steps: a stable double-precision pole has decayed, or sits within eps of the circle."""


def infinite_factor(A: Array, B: Array) -> tuple[Array, int | None]:
    """Return Z, shape (n, k), with Z Zᴴ = Σ_{j≥0} A^j B Bᴴ A^jᴴ for a stable A, and the doublings.

    Raises
    ------
    NoConvergenceError
        If 64 doublings do not exhaust the sum.
    """
    (Z,), converged, doublings = infinite_factors(A, B)
    if not bool(namespace(converged).all(converged)):
        raise not_converged()
    return Z, doublings


def infinite_factors(A: Array, *generators: Array) -> tuple[list[Array], Array, int | None]:
    """Factors of Σ A^j B Bᴴ A^jᴴ for the first generator B, of Σ A^jᴴ G Gᴴ A^j for a second one G.

    Arrays of any library and with any leading axes, of one dtype; both sums share the powers of A.

    Returns
    -------
    factors : list of (..., n, k) arrays
        With k = n once as many doublings were taken as that needs.
    converged : (...) bool array
        Whether a sum is exhausted, and A is stable: some power of it has a norm below 1.
    doublings : int or None
        None where they are traced.
    """
    xp = namespace(A)

    def doubled(state: State) -> tuple[Array, State]:
        _, power, *factors = state
        size = xp.linalg.matrix_norm(power)
        settled, following = size < 1.0, []
        for Z, step in zip(factors, (power, adjoint(power)), strict=False):
            tail = step @ Z
            longer = compressed(xp.concat([Z, tail], axis=-1))
            settled = settled & _negligible(tail, longer)
            following.append(longer)
        # Where a power overflows nothing more will come: A is not stable.
        finished = xp.all(settled | ~xp.isfinite(size))
        return finished, (settled, power @ power, *following)

    with np.errstate(over="ignore", invalid="ignore"):
        nothing = xp.zeros(A.shape[:-2], dtype=xp.bool, device=device_of(A))
        start = (nothing, A, *map(compressed, generators))
        (converged, _, *factors), doublings = repeat_until(doubled, start, _MAX_DOUBLINGS)
    return factors, converged, doublings


def infinite_solution(A: Array, Q: Array) -> tuple[Array, int | None]:
    """Return X = Σ_{j≥0} A^j Q A^jᴴ for a stable A, and the number of doublings.

    Raises
    ------
    NoConvergenceError
        If 64 doublings do not exhaust the sum.
    """
    X, converged, doublings = infinite_sum(A, Q)
    if not bool(namespace(converged).all(converged)):
        raise not_converged()
    return X, doublings


def infinite_sum(A: Array, Q: Array) -> tuple[Array, Array, int | None]:
    """X = Σ_{j≥0} A^j Q A^jᴴ; whether it converged, shape (...); and the doublings."""
    xp = namespace(A)
    eps = xp.finfo(A.dtype).eps

    def doubled(state: State) -> tuple[Array, State]:
        _, power, X = state
        tail = power @ X @ adjoint(power)
        X = X + tail
        size = xp.linalg.matrix_norm(X)
        settled = xp.linalg.matrix_norm(tail) <= eps * size
        settled = settled & (xp.linalg.matrix_norm(power) < 1.0)
        return xp.all(settled | ~xp.isfinite(size)), (settled, power @ power, X)

    with np.errstate(over="ignore", invalid="ignore"):
        nothing = xp.zeros(A.shape[:-2], dtype=xp.bool, device=device_of(A))
        (converged, _, X), doublings = repeat_until(doubled, (nothing, A, Q), _MAX_DOUBLINGS)
    return X, converged, doublings


def compressed(Z: Array) -> Array:
    """Return a factor with at most n columns and the same Z Zᴴ."""
    return Z if Z.shape[-1] <= Z.shape[-2] else adjoint(triangular_factor(adjoint(Z)))


def _negligible(tail: Array, Z: Array) -> Array:
    """Whether `tail` changes no row of Z by more than eps relative to that row, squared; shape (...)."""
    xp = namespace(Z)
    largest = xp.maximum(_largest(tail), _largest(Z))[..., None]
    unit = xp.where(largest > 0.0, largest, 1.0)
    eps = xp.finfo(Z.dtype).eps
    rows = [xp.linalg.vector_norm(x / unit, axis=-1) for x in (tail, Z)]
    return xp.all(rows[0] <= eps * rows[1], axis=-1)


def _largest(Z: Array) -> Array:
    """Largest modulus in each row; 0 without columns."""
    xp = namespace(Z)
    sizes = xp.abs(Z)
    return xp.max(sizes, axis=-1) if Z.shape[-1] else xp.sum(sizes, axis=-1)


def not_converged() -> NoConvergenceError:
    """The error for a sum that does not end."""
    return NoConvergenceError(
        f"Smith doubling did not converge in {_MAX_DOUBLINGS} doublings; expected a spectral radius "
        "below 1. Use horizon= for a system with a pole at the stability boundary."
    )
