"""Factored doubling (squared Smith) for X = A X Aᴴ + B Bᴴ, over infinitely many steps or over L.

With Z_k Z_kᴴ = Σ_{j<k} A^j B Bᴴ A^jᴴ, two factors combine as Z_{k+l} = [Z_k, A^k Z_l]; doubling k
reaches 2^i terms in i steps. The columns are compressed to numerical rank by an orthogonal
decomposition, so X is never formed and its small directions keep their digits. The iteration
doubles until the last block no longer matters; log2(36/(1-ρ)) steps for spectral radius ρ.
Cost O(n³) per step for a dense A, O(n k²) for a diagonal one.

Continuous A X + X Aᴴ + B Bᴴ = 0 has the same solution as the discrete equation of its Cayley
transform (A + s I)(s I - A)⁻¹ with B replaced by sqrt(2s) (s I - A)⁻¹ B, for any s > 0.

Reference: Smith, SIAM J. Appl. Math. 16 (1968); Penzl, SIAM J. Sci. Comput. 21 (2000).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssmreduce._namespace import (
    Array,
    HostArray,
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

_SHIFTS_TRIED = 64
"""Shifts between the extreme moduli, a tenth of a decade apart over six decades."""

Power = Callable[[int], Callable[[HostArray], HostArray]]
"""Maps i to the function X -> A^(2^i) X; called with i = 0, 1, 2, ... in order."""


def dense_powers(A: HostArray) -> Power:
    """Return A^(2^i) by repeated squaring."""
    squarings = [A]

    def power(i: int) -> Callable[[HostArray], HostArray]:
        while len(squarings) <= i:
            squarings.append(squarings[-1] @ squarings[-1])
        return lambda X: squarings[i] @ X

    return power


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
            longer = _compressed(xp.concat([Z, tail], axis=-1))
            settled = settled & _negligible(tail, longer)
            following.append(longer)
        # Where a power overflows nothing more will come: A is not stable.
        finished = xp.all(settled | ~xp.isfinite(size))
        return finished, (settled, power @ power, *following)

    with np.errstate(over="ignore", invalid="ignore"):
        nothing = xp.zeros(A.shape[:-2], dtype=xp.bool, device=device_of(A))
        start = (nothing, A, *map(_compressed, generators))
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


def finite_factor(power: Power, B: HostArray, steps: int) -> HostArray:
    """Return Z, shape (n, k), with Z Zᴴ = Σ_{j<steps} A^j B Bᴴ A^jᴴ, for any A.

    Raises
    ------
    NoConvergenceError
        If the sum overflows.
    """
    Z: HostArray | None = None
    doubled = compress_columns(B)
    i = 0
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            if steps >> i & 1:
                Z = (
                    doubled
                    if Z is None
                    else compress_columns(np.concatenate([doubled, power(i)(Z)], axis=1))
                )
            if steps >> (i + 1) == 0:
                break
            doubled = compress_columns(np.concatenate([doubled, power(i)(doubled)], axis=1))
            i += 1
    assert Z is not None
    return Z


def compress_columns(Z: HostArray) -> HostArray:
    """Return a factor with at most n columns and the same Z Zᴴ, to row-wise accuracy.

    Raises
    ------
    NoConvergenceError
        If an entry overflowed.
    """
    if not np.all(np.isfinite(Z)):
        raise overflow_within_horizon()
    return np.asarray(_compressed(Z))


def _compressed(Z: Array) -> Array:
    return Z if Z.shape[-1] <= Z.shape[-2] else adjoint(triangular_factor(adjoint(Z)))


def cayley(A: HostArray, B: HostArray) -> tuple[HostArray, HostArray]:
    """Return the discrete pair with the Gramian of the continuous pair (A, B).

    The shift takes the slowest pole of the discrete pair as far from the circle as it can.
    """
    shift = _cayley_shift(np.linalg.eigvals(A))
    identity = np.eye(A.shape[0])
    solved = np.linalg.solve(
        shift * identity - A, np.concatenate([A + shift * identity, B], axis=1)
    )
    return solved[:, : A.shape[0]], np.sqrt(2.0 * shift) * solved[:, A.shape[0] :]


def _cayley_shift(poles: HostArray) -> float:
    """Return s > 0 with the largest min_i 1 - |λ_i'|², λ' = (s + λ)/(s - λ), that a search finds.

    1 - |λ'|² = 4 s |Re λ|/|s - λ|². For real poles the geometric mean of the extreme moduli is best; for
    lightly damped ones next to slow ones it is off by many decades, in steps and in digits.
    """
    moduli = np.abs(poles)
    low, high = moduli[moduli > 0].min(), moduli.max()
    middle = np.sqrt(low) * np.sqrt(high)
    shifts = np.concatenate([[middle], np.geomspace(low, high, _SHIFTS_TRIED)])
    damping = shifts * np.abs(poles.real)[:, None] / np.abs(shifts - poles[:, None]) ** 2
    return float(shifts[np.argmax(damping.min(axis=0))])


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


def overflow_within_horizon() -> NoConvergenceError:
    """The error for a sum over the horizon that is not finite."""
    return NoConvergenceError(
        "the Gramian overflows within the horizon; expected |λ|^horizon to be finite. "
        "Use a shorter horizon, or remove the fast unstable poles first."
    )
