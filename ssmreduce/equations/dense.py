"""Gramian factors of a dense system: the choice of the route, and what P and Q share.

Both equations share the Schur form, or the LU factorisations of the low-rank iteration. The factors
come in the coordinates of the Schur form, which they need not leave: Hankel singular values and
truncations do not depend on the basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.adi import (
    LowRankPlan,
    ShiftedSolves,
    low_rank_gramian,
    plan_low_rank,
)
from ssmreduce.equations.hammarling import hammarling_factor
from ssmreduce.equations.schur import SchurForm
from ssmreduce.equations.stability import check_stable
from ssmreduce.time_domain import TimeDomain

_SMALLEST_FOR_LOW_RANK = 100
"""Below this order the Schur form takes less time than the calls of an iteration."""


@dataclass(frozen=True, eq=False)
class DenseFactors:
    """Z and Y with P = basis Z Zᴴ basisᴴ and Q = basis Y Yᴴ basisᴴ; `basis` is None for the identity."""

    Z: HostArray
    Y: HostArray
    basis: HostArray | None


def dense_factors(A: HostArray, B: HostArray, C: HostArray, time: TimeDomain) -> DenseFactors:
    """Factor both Gramians of a stable system.

    Raises
    ------
    UnstableSystemError
        If an eigenvalue lies on or outside the stability boundary.
    """
    columns = max(B.shape[1], C.shape[0])
    route = choose_low_rank(A, columns, time)
    if route is not None:
        solves, plan = route
        first = low_rank_gramian(solves, B, plan, check_stability=True)
        if first is not None:
            second = low_rank_gramian(solves, adjoint(C), plan, mirrored=True)
            if second is not None:
                return DenseFactors(first.Z, second.Z, None)
    schur = SchurForm.of(A)
    check_stable(schur.eigenvalues(), time)
    mirrored = schur.mirrored()
    Z = hammarling_factor(schur.triangle, product(schur.basis, B, adjoint_left=True), time)
    Y = hammarling_factor(
        mirrored.triangle, product(mirrored.basis, adjoint(C), adjoint_left=True), time
    )
    return DenseFactors(Z, np.asfortranarray(Y[::-1]), schur.basis)


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
