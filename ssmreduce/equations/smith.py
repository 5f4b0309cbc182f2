"""Doubling over finitely many steps, and the Cayley transform of continuous equations, on NumPy arrays.

Two sums Z_k Z_kᴴ = Σ_{j<k} A^j B Bᴴ A^jᴴ combine as Z_{k+l} = [Z_k, A^k Z_l], so that L steps take
log2 L doublings; see `ssmreduce.devices.doubling`, which goes on until the sum has converged. Cost O(n³)
per step for a dense A, O(n k²) for a diagonal one.

Continuous A X + X Aᴴ + B Bᴴ = 0 has the same solution as the discrete equation of its Cayley
transform (A + s I)(s I - A)⁻¹ with B replaced by sqrt(2s) (s I - A)⁻¹ B, for any s > 0.

Reference: Smith, SIAM J. Appl. Math. 16 (1968); Penzl, SIAM J. Sci. Comput. 21 (2000).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.devices.doubling import compressed
from ssmreduce.errors import NoConvergenceError

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


def finite_factor(power: Power, B: HostArray, steps: int) -> HostArray:
    """Return Z, shape (n, k), with Z Zᴴ = Σ_{j<steps} A^j B Bᴴ A^jᴴ, for any A.

    Raises
    ------
    NoConvergenceError
        If the sum overflows.
    """
    Z = B[:, :0]
    doubled = compress_columns(B)
    i = 0
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            if steps >> i & 1:
                Z = (
                    doubled
                    if not Z.shape[1]
                    else compress_columns(np.concatenate([doubled, power(i)(Z)], axis=1))
                )
            if steps >> (i + 1) == 0:
                break
            doubled = compress_columns(np.concatenate([doubled, power(i)(doubled)], axis=1))
            i += 1
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
    return np.asarray(compressed(Z))


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


def overflow_within_horizon() -> NoConvergenceError:
    """The error for a sum over the horizon that is not finite."""
    return NoConvergenceError(
        "the Gramian overflows within the horizon; expected |λ|^horizon to be finite. "
        "Use a shorter horizon, or remove the fast unstable poles first."
    )
