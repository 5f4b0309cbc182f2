"""Gramian factors of a dense system: the choice of the method, and the work that P and Q share.

Both equations share the Schur form, or the LU factorisations of the low-rank iteration. The factors
come in the coordinates of the Schur form, which they need not leave: Hankel singular values and
truncations do not depend on the basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import all_finite, product, safe_unit
from ssmreduce._schur import SchurForm
from ssmreduce._state_units import balanced_matrix
from ssmreduce.equations import smith
from ssmreduce.equations.adi import (
    LowRankPlan,
    ShiftedSolves,
    low_rank_gramian,
    plan_low_rank,
)
from ssmreduce.equations.hammarling import hammarling_factor
from ssmreduce.equations.stability import stable_form
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import TimeDomain

SMALLEST_FOR_LOW_RANK = 128
"""Below this order the Schur form takes less time than the calls of an iteration."""


@dataclass(frozen=True, eq=False)
class DenseFactors:
    """Z and Y with P = (S W Z)(S W Z)ᴴ and Q = (S⁻¹ W Y)(S⁻¹ W Y)ᴴ, in a unitary basis W and units S.

    A basis that is None, and units 1.0, stand for I. Their product Yᴴ Z is that of the whole factors.
    """

    Z: HostArray
    Y: HostArray
    basis: HostArray | None = None
    units: HostArray | float = 1.0

    def whole(self) -> tuple[HostArray, HostArray]:
        """The factors of P and Q themselves."""
        return self.in_states(self.Z, self.Y)

    def in_states(self, reached: HostArray, observed: HostArray) -> tuple[HostArray, HostArray]:
        """S W X and S⁻¹ W X: what inputs reach and what outputs observe, in the states of the system."""
        if self.basis is not None:
            reached, observed = product(self.basis, reached), product(self.basis, observed)
        return reached * self.units, observed / self.units


def dense_factors(
    A: HostArray, B: HostArray, C: HostArray, time: TimeDomain, horizon: int | None = None
) -> DenseFactors:
    """Factor both Gramians of a stable system, or of any within a horizon.

    Raises
    ------
    UnstableSystemError
        If an eigenvalue lies on or outside the stability boundary, and there is no horizon.
    """
    if horizon is not None:
        return DenseFactors(
            smith.finite_factor(smith.dense_powers(A), B, horizon),
            smith.finite_factor(smith.dense_powers(adjoint(A)), adjoint(C), horizon),
        )
    given, dtype, C_adjoint = A, np.result_type(A, B, C), adjoint(C)
    A, units, root_rate = even_units(A, time)
    if A is not given:  # else all units are 1, and a copy takes memory
        B, C_adjoint = B / units / root_rate, C_adjoint * units / root_rate
    B, C_adjoint = B.astype(dtype, copy=False), C_adjoint.astype(dtype, copy=False)
    if len(A) >= SMALLEST_FOR_LOW_RANK:
        pair = _low_rank_factors(A.astype(dtype, copy=False), B, C_adjoint, time)
        if pair is not None:
            return DenseFactors(*pair, units=units)
    schur = stable_form(A, time, given)
    schur = schur.as_complex() if dtype.kind == "c" else schur
    B, C_adjoint = schur.ports(B, C_adjoint)
    Z = hammarling_factor(schur.triangle, B, time)
    # Aᴴ has the triangle Tᴴ with rows and columns in reverse order.
    mirrored = np.asfortranarray(adjoint(schur.triangle)[::-1, ::-1])
    Y = np.asfortranarray(hammarling_factor(mirrored, C_adjoint[::-1], time)[::-1])
    if not all_finite(Z, Y):
        raise _overflow()
    return DenseFactors(Z, Y, schur.basis, units if schur.units is None else units * schur.units)


def _low_rank_factors(
    A: HostArray, B: HostArray, C_adjoint: HostArray, time: TimeDomain
) -> tuple[HostArray, HostArray] | None:
    """Low-rank Z and Y where they are predicted to be cheaper, and come out."""
    route = choose_low_rank(A, max(B.shape[1], C_adjoint.shape[1]), time)
    if route is None:
        return None
    solves, plan = route
    first = low_rank_gramian(solves, B, plan, check_stability=True)
    if first is None:
        return None
    second = low_rank_gramian(solves, C_adjoint, plan, mirrored=True)
    return None if second is None else (first.Z, second.Z)


def dense_factor(A: HostArray, G: HostArray, time: TimeDomain, which: int) -> HostArray:
    """Factor one Gramian of a stable system: P of (A, G), or Q of (A, Gᴴ) where `which` is 1.

    Raises
    ------
    UnstableSystemError
        If an eigenvalue lies on or outside the stability boundary.
    """
    given, dtype = A, np.result_type(A, G)
    A, units, root_rate = even_units(A, time)
    G = ((G * units if which else G / units) / root_rate).astype(dtype, copy=False)
    route = None
    if len(A) >= SMALLEST_FOR_LOW_RANK:
        route = choose_low_rank(A.astype(dtype, copy=False), G.shape[1], time)
    if route is not None:
        low_rank = low_rank_gramian(
            route[0], G, route[1], mirrored=bool(which), check_stability=True
        )
        if low_rank is not None:
            return low_rank.Z / units if which else low_rank.Z * units
    schur = stable_form(A, time, given)
    schur = schur.as_complex() if dtype.kind == "c" else schur
    factor = schur_factor(schur, G, time, mirrored=bool(which))
    if not all_finite(factor):
        raise _overflow()
    factor = schur.observed(factor) if which else schur.reached(factor)
    return factor / units if which else factor * units


def schur_factor(
    schur: SchurForm, G: HostArray, time: TimeDomain, *, mirrored: bool = False
) -> HostArray:
    """Factor of P of (A, G), or of Q of (A, Gᴴ) where `mirrored`, in the coordinates of T.

    Aᴴ has the triangle Tᴴ with rows and columns in reverse order.
    """
    if schur.units is not None:
        G = G * schur.units if mirrored else G / schur.units
    G = product(schur.basis, G, adjoint_left=True)
    if not mirrored:
        return hammarling_factor(schur.triangle, G, time)
    triangle = np.asfortranarray(adjoint(schur.triangle)[::-1, ::-1])
    return np.asfortranarray(hammarling_factor(triangle, G[::-1], time)[::-1])


def _overflow() -> NoConvergenceError:
    return NoConvergenceError(
        "a Gramian factor overflows; expected rates and ports within the range of double precision. "
        "Truncate the fastest states, or scale `B` and `C`."
    )


def even_units(A: HostArray, time: TimeDomain) -> tuple[HostArray, HostArray | float, float]:
    """A in units that balance its rows and columns, with rates near 1; those of the states; √ that of rates.

    All are powers of two, so that nothing is rounded.
    """
    even, states = balanced_matrix(A)
    units: HostArray | float = 1.0
    if len(set(states.tolist())) > 1:
        A, units = even, states[:, None]
    rate = safe_unit(A) if time.has_unit else 1.0
    if rate == 1.0:
        return A, units, 1.0
    scaled = A / rate
    if np.count_nonzero(scaled) < np.count_nonzero(A):  # rates too far apart for any unit
        return A, units, 1.0
    return scaled, units, math.sqrt(rate)


def choose_low_rank(
    A: HostArray, columns: int, time: TimeDomain
) -> tuple[ShiftedSolves, LowRankPlan] | None:
    """Shifted solves and a plan where a low-rank factor is predicted to be cheaper; else None.

    For A of `SMALLEST_FOR_LOW_RANK` states or more.
    """
    if SchurForm.is_cheap(A):
        return None
    solves = ShiftedSolves(A, time)
    plan = plan_low_rank(solves, columns)
    return None if plan is None else (solves, plan)
