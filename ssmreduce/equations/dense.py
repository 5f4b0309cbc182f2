"""Gramian factors of a dense system: the choice of the route, and what P and Q share.

Both equations share the Schur form, or the LU factorisations of the low-rank iteration. The factors
come in the coordinates of the Schur form, which they need not leave: Hankel singular values and
truncations do not depend on the basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from ssmreduce._lapack import product, safe_unit
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.adi import (
    LowRankPlan,
    ShiftedSolves,
    low_rank_gramian,
    plan_low_rank,
)
from ssmreduce.equations.hammarling import hammarling_factor
from ssmreduce.equations.schur import SchurForm
from ssmreduce.time_domain import Discrete, TimeDomain

_SMALLEST_FOR_LOW_RANK = 128
"""Below this order the Schur form takes less time than the calls of an iteration."""

_WORTH_SCALING = 2.0**10
"""Spread of the units of states below which the Schur form is as good without scaling."""


@dataclass(frozen=True, eq=False)
class DenseFactors:
    """Z and Y with P = (R Z)(R Z)ᴴ and Q = (L Y)(L Y)ᴴ, where Lᴴ R = I; None stands for I.

    Their product Yᴴ Z is that of the whole factors.
    """

    Z: HostArray
    Y: HostArray
    right_basis: HostArray | None = None
    left_basis: HostArray | None = None

    def whole(self) -> tuple[HostArray, HostArray]:
        """The factors of P and Q themselves."""
        return in_basis(self.right_basis, self.Z), in_basis(self.left_basis, self.Y)


def in_basis(basis: HostArray | None, columns: HostArray) -> HostArray:
    """Return ``basis @ columns``."""
    return columns if basis is None else product(basis, columns)


def dense_factors(A: HostArray, B: HostArray, C: HostArray, time: TimeDomain) -> DenseFactors:
    """Factor both Gramians of a stable system.

    Raises
    ------
    UnstableSystemError
        If an eigenvalue lies on or outside the stability boundary.
    """
    dtype = np.result_type(A, B, C)
    A, B, C = (x.astype(dtype, copy=False) for x in (A, B, C))
    A, unit, root = _in_good_units(A, time)
    B, C = B / (root * unit)[:, None], C / (root / unit)
    route = choose_low_rank(A, max(B.shape[1], C.shape[0]), time)
    if route is not None:
        solves, plan = route
        first = low_rank_gramian(solves, B, plan, check_stability=True)
        if first is not None:
            second = low_rank_gramian(solves, adjoint(C), plan, mirrored=True)
            if second is not None:
                return DenseFactors(first.Z * unit[:, None], second.Z / unit[:, None])
    schur = SchurForm.of(A)
    schur.check_stable(time)
    mirrored = schur.mirrored()
    Z = hammarling_factor(schur.triangle, product(schur.basis, B, adjoint_left=True), time)
    inputs = product(mirrored.basis, adjoint(C), adjoint_left=True)
    Y = np.asfortranarray(hammarling_factor(mirrored.triangle, inputs, time)[::-1])
    if np.all(unit == 1.0):
        return DenseFactors(Z, Y, schur.basis, schur.basis)
    return DenseFactors(Z, Y, schur.basis * unit[:, None], schur.basis / unit[:, None])


def dense_factor(A: HostArray, B: HostArray, time: TimeDomain) -> HostArray:
    """Factor one Gramian of a stable system: P of (A, B), or Q of (Aᴴ, Cᴴ).

    Raises
    ------
    UnstableSystemError
        If an eigenvalue lies on or outside the stability boundary.
    """
    dtype = np.result_type(A, B)
    A, unit, root = _in_good_units(A.astype(dtype, copy=False), time)
    B = B.astype(dtype, copy=False) / (root * unit)[:, None]
    route = choose_low_rank(A, B.shape[1], time)
    if route is not None:
        low_rank = low_rank_gramian(route[0], B, route[1], check_stability=True)
        if low_rank is not None:
            return np.asarray(low_rank.Z * unit[:, None])
    schur = SchurForm.of(A)
    schur.check_stable(time)
    Z = hammarling_factor(schur.triangle, product(schur.basis, B, adjoint_left=True), time)
    return np.asarray(product(schur.basis, Z) * unit[:, None])


def _in_good_units(A: HostArray, time: TimeDomain) -> tuple[HostArray, HostArray, float]:
    """A in units of states, and of time, near 1; the units of states and the root of that of rates."""
    A, unit = scaled_states(A)
    rate = 1.0 if isinstance(time, Discrete) else safe_unit(A)
    return (A if rate == 1.0 else A / rate), unit, float(np.sqrt(rate))


def scaled_states(A: HostArray) -> tuple[HostArray, HostArray]:
    """Return S⁻¹ A S and the diagonal of S, powers of two that equalise rows and columns of A.

    The QR algorithm is backward stable relative to ‖A‖, which badly scaled states inflate; without
    this their eigenvalues may come out with errors larger than themselves. Nothing is rounded.
    """
    if A.shape[0] < 2:
        return A, np.ones(A.shape[0])
    gebal = lapack.zgebal if np.iscomplexobj(A) else lapack.dgebal
    scaled, _, _, unit, _ = gebal(A, scale=1, permute=0)
    if unit.max() <= _WORTH_SCALING * unit.min():
        return A, np.ones(A.shape[0])
    return np.asarray(scaled), np.asarray(unit)


def choose_low_rank(
    A: HostArray, columns: int, time: TimeDomain
) -> tuple[ShiftedSolves, LowRankPlan] | None:
    """Shifted solves and a plan where a low-rank factor is predicted to be cheaper; else None."""
    n = A.shape[0]
    if n < _SMALLEST_FOR_LOW_RANK or SchurForm.is_cheap(A):
        return None
    solves = ShiftedSolves(A, time)
    plan = plan_low_rank(solves, columns)
    return None if plan is None else (solves, plan)
