"""Low-rank alternating directions (ADI): thin Gramian factors of large systems with few inputs.

One step with a shift p > 0 (continuous), or α in (-1, 1) (discrete), splits the equation exactly,

    V = (A - p I)⁻¹ B,    P = 2p V Vᴴ + P',        B' = B + 2p V                   (continuous),
    V = (I - α A)⁻¹ B,    P = (1 - α²) V Vᴴ + P',  B' = (A - α I) V                (discrete),

where P' is the Gramian of (A, B'): B' B'ᴴ is the residual, known at no cost. It shrinks by
|λ + p| / |λ - p|, or |λ - α| / |1 - α λ|, in the direction of each eigenvalue λ. A few shifts are used in
turn, so that as many LU factorisations serve all steps; A and Aᴴ share them. Every step costs two
triangular solves with m columns, O(n² m).

It pays where the eigenvalues lie in a region that few real shifts cover, as random matrices do; for
lightly damped modes they shrink B' too slowly. How fast is predicted from Ritz values before
anything is spent on it, and `low_rank_factors` declines where another route is cheaper.

A random column goes through the same steps as B. For an unstable A it does not decay, whether or
not the inputs reach the unstable mode, so that no eigenvalue has to be computed.

References: Wachspress, Appl. Math. Lett. 1 (1988); Penzl, SIAM J. Sci. Comput. 21 (2000); Benner,
Kürschner and Saak, Numer. Algorithms 62 (2013), for the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import frobenius_norm, product
from ssmreduce.time_domain import Discrete, TimeDomain

_RITZ_VALUES = 24
"""Steps of the Arnoldi process with A, and half as many with A⁻¹."""

_CANDIDATES = 24
"""Shifts that are considered."""

_MOST_SHIFTS = 4
"""Shifts used in turn; each costs an LU factorisation."""

_LU_IN_STEPS = 30.0
"""Cost of an LU factorisation in steps of the iteration, near 1000 states."""

_MOST_STEPS = 400
"""Steps after which the Schur form would have been cheaper."""

_JUDGED_EVERY = 32
"""Steps after which the pace is looked at again: Ritz values may miss the slowest modes."""

_TOO_SLOW = 1.25
"""Times the steps allowed, beyond which an iteration that is expected to need them is left."""

_MOST_COLUMNS = 2.5
"""Columns of a factor before compression, as a multiple of n; beyond, the Schur form is cheaper."""

_DECAYED = 2.0**-26
"""sqrt(eps): a random column that has shrunk so far had no component in an unstable mode."""


@dataclass(frozen=True, eq=False)
class LowRankPlan:
    """Shifts and the number of steps that they are expected to take."""

    shifts: tuple[complex, ...]
    steps: int


@dataclass(frozen=True, eq=False)
class LowRankGramian:
    """A thin factor, the relative size ‖B'‖/‖B‖ of what was left, and the steps taken."""

    Z: HostArray
    remainder: float
    steps: int


class ShiftedSolves:
    """Solves with A - p I, or I - α A, and their adjoints, each factored once."""

    def __init__(self, A: HostArray, time: TimeDomain) -> None:
        self.A = np.asfortranarray(A)
        self.discrete = isinstance(time, Discrete)
        complex_entries = np.iscomplexobj(A)
        self._getrf = lapack.zgetrf if complex_entries else lapack.dgetrf
        self._getrs = lapack.zgetrs if complex_entries else lapack.dgetrs
        self._gemm = blas.zgemm if complex_entries else blas.dgemm
        self._factors: dict[complex, tuple[HostArray, HostArray]] = {}

    def apply(self, X: HostArray, *, mirrored: bool = False) -> HostArray:
        """Return A X, or Aᴴ X."""
        return np.asarray(self._gemm(1.0, self.A, X, trans_a=2 if mirrored else 0))

    def solve(self, shift: complex, X: HostArray, *, mirrored: bool = False) -> HostArray:
        """Return (A - p I)⁻¹ X or (I - α A)⁻¹ X; with (…)ᴴ where `mirrored`.

        Raises
        ------
        numpy.linalg.LinAlgError
            If the matrix is singular: A is not stable then.
        """
        if self.discrete and shift == 0.0:
            return X
        if shift not in self._factors:
            identity = np.eye(self.A.shape[0])
            matrix = identity - shift * self.A if self.discrete else self.A - shift * identity
            lu, pivots, singular = self._getrf(np.asfortranarray(matrix), overwrite_a=True)
            if singular:
                raise np.linalg.LinAlgError(f"an eigenvalue belongs to the shift {shift}")
            self._factors[shift] = lu, pivots
        lu, pivots = self._factors[shift]
        X, _ = self._getrs(lu, pivots, X, trans=2 if mirrored else 0)
        return np.asarray(X)


def plan_low_rank(solves: ShiftedSolves, columns: int) -> LowRankPlan | None:
    """Choose shifts from Ritz values; None if the iteration would not pay.

    Parameters
    ----------
    solves : ShiftedSolves
        The state matrix.
    columns : int
        Inputs, or outputs if there are more of them.

    Returns
    -------
    LowRankPlan or None
        None where a factor would have more columns than 2.5 n, more than 400 steps are predicted, A is
        singular (continuous), or a Ritz value lies outside the region of stability.
    """
    n = solves.A.shape[0]
    limit = min(_MOST_STEPS, int(_MOST_COLUMNS * n) // max(columns, 1))
    try:
        values = _ritz_values(solves)
    except np.linalg.LinAlgError:
        return None
    stable = np.abs(values) < 1.0 if solves.discrete else values.real < 0.0
    if limit == 0 or not np.all(stable):
        return None
    candidates = _candidates(values, solves)
    # Decay of each Ritz direction under each candidate, in powers of e.
    with np.errstate(divide="ignore"):
        if solves.discrete:
            ratio = (values[:, None] - np.conj(candidates)) / (1.0 - values[:, None] * candidates)
        else:
            ratio = (values[:, None] + np.conj(candidates)) / (values[:, None] - candidates)
        decay = -np.log(np.abs(ratio))
    target = -np.log(np.finfo(np.float64).eps)
    chosen: list[int] = []
    best: tuple[float, LowRankPlan] | None = None
    total = np.zeros(values.size)
    for count in range(1, _MOST_SHIFTS + 1):
        worst = (total[:, None] + decay).min(axis=0)
        chosen.append(int(np.argmax(worst)))
        total += decay[:, chosen[-1]]
        if worst.max() <= 0.0:
            continue
        steps = int(np.ceil(target * count / worst.max()))
        factored = sum(not (solves.discrete and candidates[i] == 0.0) for i in set(chosen))
        cost = steps + _LU_IN_STEPS * factored
        if steps <= limit and (best is None or cost < best[0]):
            shifts = tuple(candidates[i].item() for i in chosen)
            best = cost, LowRankPlan(shifts, steps)
    return None if best is None else best[1]


def low_rank_gramian(
    solves: ShiftedSolves,
    B: HostArray,
    plan: LowRankPlan,
    *,
    mirrored: bool = False,
    check_stability: bool = False,
) -> LowRankGramian | None:
    """Run the iteration for (A, B), or for (Aᴴ, B) where `mirrored`.

    Parameters
    ----------
    solves : ShiftedSolves
        The state matrix.
    B : (n, m) array
        Inputs; the adjoint of the outputs where `mirrored`.
    plan : LowRankPlan
        Shifts.
    mirrored : bool
        Whether the equation is that of Aᴴ.
    check_stability : bool
        Whether a random column goes along, which decays for a stable A only.

    Returns
    -------
    LowRankGramian or None
        None if B' was not, or at its pace will not be, below eps ‖B‖ within half as many steps again
        as planned, or the random column did not decay.
    """
    n, m = B.shape
    scale = float(np.abs(B).max(initial=0.0))
    dtype = np.result_type(solves.A, B)
    limit = min(plan.steps + plan.steps // 2 + 8, max(int(_MOST_COLUMNS * n) // max(m, 1), 1))
    rest = np.zeros((n, m + check_stability), dtype=dtype, order="F")
    if scale > 0.0:
        rest[:, :m] = B / scale
    if check_stability:
        probe = np.random.default_rng(0).standard_normal(n)
        rest[:, m] = probe / frobenius_norm(probe)
    start = frobenius_norm(rest[:, :m])
    Z = np.empty((n, m * limit), dtype=dtype, order="F")
    eps = np.finfo(np.float64).eps
    step, sizes = 0, [start]
    while sizes[-1] > eps * start or (check_stability and not _decayed(rest[:, m])):
        if step == limit or not np.isfinite(sizes[-1]):
            return None
        if step and step % _JUDGED_EVERY == 0 and _expected_steps(sizes) > _TOO_SLOW * limit:
            return None
        shift = plan.shifts[step % len(plan.shifts)]
        V = solves.solve(shift, rest, mirrored=mirrored)
        shift = shift.conjugate() if mirrored else shift
        if solves.discrete:
            weight = np.sqrt((1.0 - abs(shift)) * (1.0 + abs(shift)))
            rest = solves.apply(V, mirrored=mirrored) - shift.conjugate() * V
        else:
            weight = np.sqrt(2.0 * shift.real)
            rest = rest + (2.0 * shift.real) * V
        Z[:, step * m : (step + 1) * m] = weight * V[:, :m]
        step += 1
        sizes.append(frobenius_norm(rest[:, :m]))
    Z = Z[:, : step * m]
    Z *= scale
    if Z.shape[1] > n:
        Z = adjoint(scipy.linalg.qr(adjoint(Z), mode="r", check_finite=False)[0][:n])
    return LowRankGramian(Z, sizes[-1] / start if start else 0.0, step)


def _expected_steps(sizes: list[float]) -> float:
    """Steps until the last of `sizes` is eps of the first, at the pace of the second half of them."""
    step, done = len(sizes) - 1, np.finfo(np.float64).eps * sizes[0]
    if sizes[-1] <= done:
        return float(step)
    pace = np.log(sizes[step // 2] / sizes[-1]) / (step - step // 2)
    return float(step + np.log(sizes[-1] / done) / pace) if pace > 0.0 else np.inf


def _decayed(column: HostArray) -> bool:
    return frobenius_norm(column) <= _DECAYED


def _ritz_values(solves: ShiftedSolves) -> HostArray:
    """Estimates of the outer eigenvalues of A, and in continuous time of those nearest to 0."""
    count = min(_RITZ_VALUES, solves.A.shape[0])
    values = _arnoldi(solves.apply, solves.A, count)
    if solves.discrete:
        return values
    inner = _arnoldi(lambda X: solves.solve(0.0, X), solves.A, max(count // 2, 1))
    return np.concatenate([values, 1.0 / inner[inner != 0.0]])


def _arnoldi(apply: Callable[[HostArray], HostArray], A: HostArray, count: int) -> HostArray:
    """Eigenvalues of the projection onto a Krylov space from a random start."""
    n = A.shape[0]
    basis = np.zeros((n, count + 1), dtype=A.dtype, order="F")
    H = np.zeros((count + 1, count), dtype=A.dtype)
    start = np.random.default_rng(1).standard_normal(n)
    basis[:, 0] = start / frobenius_norm(start)
    for k in range(count):
        known = basis[:, : k + 1]
        image = apply(basis[:, k : k + 1])
        for _ in range(2):  # once more: orthogonal to working precision
            weights = product(known, image, adjoint_left=True)
            image = image - product(known, weights)
            H[: k + 1, k] += weights[:, 0]
        norm = frobenius_norm(image)
        if norm <= n * np.finfo(np.float64).eps * frobenius_norm(H[: k + 1, k]):
            return np.linalg.eigvals(H[: k + 1, : k + 1])
        H[k + 1, k] = norm
        basis[:, k + 1] = image[:, 0] / norm
    return np.linalg.eigvals(H[:count, :count])


def _candidates(values: HostArray, solves: ShiftedSolves) -> HostArray:
    """Shifts to choose from: a grid on the real axis, through the middle of a complex spectrum."""
    if solves.discrete:
        radius = float(np.abs(values).max())
        return np.concatenate([[0.0], np.linspace(-radius, radius, _CANDIDATES - 1)])
    sizes = np.abs(values)
    grid = np.geomspace(sizes[sizes > 0].min(), sizes.max(), _CANDIDATES)
    if np.iscomplexobj(solves.A):
        return grid + 1j * float(np.median(values.imag))
    return grid
