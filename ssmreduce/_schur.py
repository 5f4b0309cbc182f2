"""The Schur form A = S W T Wᴴ S⁻¹, in units S of the states that balance A.

The QR algorithm is backward stable relative to ‖A‖, which badly scaled states inflate: their eigenvalues
may come out with errors larger than themselves. So rows and columns of A are brought to about equal
size first, by powers of two, which round nothing. What follows from the form then depends on the units of
the states no more than by rounding. Where rounding decides, units are taken in which each part of A is the
same to the last bit whatever powers of two the states had for units.

Graded matrices, with states of many rates, are then ordered from fast to slow: so ordered, the QR algorithm
finds slow poles to their own digits, and to ε times the fastest rate otherwise.

Real matrices get the real form, whose T has 2 by 2 blocks for conjugate pairs. A matrix with
structure (decoupled or cascaded parts, as flexible structures in modal form have) is permuted to
block triangular form first, by the strongly connected components of its graph; then each part needs
a small Schur form instead of the O(25 n³) of the whole.

Poles on the stability boundary. Eigenvalues of a part of order n are those of a matrix within c n eps ‖A‖
of it, which moves them by that times their condition 1/|yᴴ x|, with eigenvectors y and x of length 1: one
that lies no farther inside the boundary may lie on it, and counts as not stable. No more than √eps ‖A‖ is
asked for: the condition of defective poles is infinite, and rounding moves them by a root of eps. Of a slow
pole beside fast ones the inverse may know more: λ = 1/μ with μ known to c n eps κ ‖A⁻¹‖ times its condition,
so λ to |λ|² times that, where κ is the condition of A after scaling of its rows and columns: small for a
graded A, whose small entries have digits of their own. A part of order 1 is its own eigenvalue, without
rounding.

References: Golub and Van Loan, Matrix Computations, 4th ed., 2013, chapter 7; James, Langou and Lowery,
On matrix balancing and eigenvector computation, arXiv 1401.5766 (2014).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import frobenius_norm, product
from ssmreduce._pole_rounding import (
    CLEARLY,
    SEVERAL,
    SMALL,
    complex_form,
    conditions_of,
    far,
    rounding_of,
)
from ssmreduce._state_units import Edges, balance_states, parts_of
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain

_GRADED = 64.0
"""Ratio of the sizes of rows above which their order matters to more than two digits."""

_SMALLEST_FOR_PARTS = 100
"""Below this order the search for parts takes longer than the Schur form."""

_WORK_PER_STATE = 40
"""Numbers of work space for each state, enough for blocks of 32 columns."""

_SPARSE_SHARE = 0.2
"""Above this share of nonzero entries a matrix is not searched for parts: it would rarely have any."""


@dataclass(frozen=True, eq=False)
class SchurForm:
    """Upper (quasi-)triangular T (`triangle`) and unitary W (`basis`) with A = S W T Wᴴ S⁻¹.

    Attributes
    ----------
    triangle, basis : (n, n) array
        T and W; real if A is.
    units : (n, 1) array or None
        The diagonal of S, powers of two; None where all are 1.
    balanced : (n, n) array
        S⁻¹ A S.
    order : (n,) int array
        An order of the states that makes it block triangular.
    parts : list of pairs of int
        First and last plus one row of its diagonal blocks, which were decomposed on their own.
    """

    triangle: HostArray
    basis: HostArray
    units: HostArray | None
    balanced: HostArray
    order: HostArray
    parts: Edges

    @classmethod
    def of(
        cls,
        A: HostArray,
        B: HostArray | None = None,
        C: HostArray | None = None,
        *,
        time: TimeDomain | None = None,
        exact: bool = False,
    ) -> SchurForm:
        """Balance A, or a system (A, B, C), and decompose A, O(25 n³) unless it has structure.

        In `exact` units the form does not depend on those of the states; see `balance_states`. Where a `time`
        is given, they are taken if rounding might decide whether a pole is stable. Either way A is decomposed
        in as many parts as it has.

        Raises
        ------
        NoConvergenceError
            If the QR algorithm fails.
        """
        form = cls.of_balanced(*balance_states(A, B, C, exact=exact), exact=exact)
        if exact or time is None or not form._in_doubt(time):
            return form
        return cls.of(A, B, C, exact=True)

    @classmethod
    def of_balanced(
        cls,
        balanced: HostArray,
        units: HostArray | None = None,
        *,
        exact: bool = False,
    ) -> SchurForm:
        """The same for S⁻¹ A S."""
        n = balanced.shape[0]
        in_parts = exact or n >= _SMALLEST_FOR_PARTS
        order, parts = parts_of(balanced) if in_parts else (np.arange(n), [(0, n)])
        try:
            decomposed = _schur(balanced) if len(parts) == 1 else _by_parts(balanced, order, parts)
        except np.linalg.LinAlgError as error:
            raise NoConvergenceError(
                f"the Schur form of `A` could not be computed ({error}); expected entries of moderate "
                "range. Scale the states."
            ) from error
        return cls(*decomposed, units, balanced, order, parts)

    def decided(self, time: TimeDomain) -> SchurForm:
        """The form in exact units if rounding might decide whether a pole is stable; else itself."""
        if not self._in_doubt(time):
            return self
        units, (even, more) = self.units, balance_states(self.balanced, exact=True)
        if more is not None:
            units = more if units is None else units * more
        return SchurForm.of_balanced(even, units, exact=True)

    @staticmethod
    def is_cheap(A: HostArray) -> bool:
        """Whether A falls apart into blocks of at most a quarter of its order."""
        n = A.shape[0]
        if n < _SMALLEST_FOR_PARTS or np.count_nonzero(A) > _SPARSE_SHARE * n * n:
            return False
        _, parts = parts_of(A)
        return bool(4 * max(last - first for first, last in parts) <= n)

    def as_complex(self) -> SchurForm:
        """The complex form with the same eigenvalues; itself if it is complex."""
        if self.triangle.dtype.kind == "c":
            return self
        T, W = complex_form(self.triangle, self.basis)
        return replace(self, triangle=T, basis=W)

    # --- Coordinates

    def ports(self, B: HostArray, C_adjoint: HostArray) -> tuple[HostArray, HostArray]:
        """Wᴴ S⁻¹ B and Wᴴ S Cᴴ: inputs, and the adjoint of outputs, in the coordinates of T."""
        if self.units is not None:
            B, C_adjoint = B / self.units, C_adjoint * self.units
        W = self.basis
        return product(W, B, adjoint_left=True), product(W, C_adjoint, adjoint_left=True)

    def reached(self, states: HostArray) -> HostArray:
        """S W X: states in the coordinates of T, in those of A."""
        moved = product(self.basis, states)
        return moved if self.units is None else moved * self.units

    def observed(self, states: HostArray) -> HostArray:
        """S⁻¹ W Y: dual states in the coordinates of T, in those of A."""
        moved = product(self.basis, states)
        return moved if self.units is None else moved / self.units

    # --- Poles

    def eigenvalues(self) -> HostArray:
        """Eigenvalues of A in the order of the diagonal of T; of a pair the one above the real axis first."""
        return self._eigenvalues.copy()

    @cached_property
    def _eigenvalues(self) -> HostArray:
        diagonal: HostArray = self.triangle.diagonal().astype(np.complex128)
        first = self.pairs()
        if first.size:
            # LAPACK's blocks of pairs [a, b; c, a] have equal diagonal entries, and b c < 0.
            beside, below = self.triangle.diagonal(1)[first], self.triangle.diagonal(-1)[first]
            root = 1j * np.sqrt(np.abs(beside)) * np.sqrt(np.abs(below))
            diagonal[first] += root
            diagonal[first + 1] -= root
        return diagonal

    def pairs(self) -> HostArray:
        """First rows of the 2 by 2 blocks of conjugate pairs."""
        if self.triangle.dtype.kind == "c":
            return np.zeros(0, dtype=np.intp)
        return np.flatnonzero(self.triangle.diagonal(-1))

    def inside(self, time: TimeDomain) -> bool:
        """Whether every pole lies inside the boundary, rounding left aside."""
        return bool((time.distance(self._eigenvalues) > 0.0).all())

    def stable(self, time: TimeDomain, margin: float = 0.0) -> HostArray:
        """Whether each pole lies inside the boundary by more than `margin` and its rounding."""
        room = time.distance(self._eigenvalues) - margin
        # So near to the boundary, or the line at `margin`, rounding might decide.
        near = np.abs(room) <= CLEARLY * frobenius_norm(self.triangle)
        return np.asarray(room > (self._rounding(room, time) if near.any() else 0.0))

    def _in_doubt(self, time: TimeDomain) -> bool:
        """Whether rounding might decide about a pole, however it is computed."""
        if len(self.triangle) < 2:
            return False
        room = np.abs(time.distance(self._eigenvalues))
        near = room <= far(len(room)) * frobenius_norm(self.triangle)
        if not near.any():
            return False
        rounding = SEVERAL * rounding_of(self.triangle) * conditions_of(self.triangle, near)
        return bool(np.any(room[near] <= rounding[near]))

    def _rounding(self, room: HostArray, time: TimeDomain) -> HostArray:
        """How far inside the boundary each pole may lie and still be on it for all that rounding tells.

        The inverse is asked where the distances `room` from the boundary are not beyond that.
        """
        rounding, poles = np.zeros(self.triangle.shape[0]), self.eigenvalues()
        for first, last in self.parts:
            at = slice(first, last)
            if last - first > 1:
                block = self.triangle[at, at]
                doubtful = CLEARLY * frobenius_norm(block)
                condition = conditions_of(block, (room[at] > 0.0) & (room[at] <= doubtful))
                rounding[at] = np.minimum(rounding_of(block) * condition, doubtful)
                decided = isinstance(time, Discrete) or (room[at] > rounding[at]).all()
                if not decided:
                    by_inverse = self._rounding_by_inverse(at, poles[at], condition)
                    rounding[at] = np.minimum(rounding[at], by_inverse)
        return rounding

    def _rounding_by_inverse(self, at: slice, poles: HostArray, condition: HostArray) -> HostArray:
        """The same from 1/λ: c n eps κ |λ|² ‖A⁻¹‖, and what the two ways to a pole differ by."""
        states = self.order[at]
        block = self.balanced[np.ix_(states, states)]
        gesvx = lapack.zgesvx if block.dtype.kind == "c" else lapack.dgesvx
        *_, inverse, conditioned, _, _, singular = gesvx(block, np.eye(len(block)), fact="E")
        if 0 < singular <= len(block) or not np.all(np.isfinite(inverse)):
            return np.full(poles.size, np.inf)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slow = 1.0 / np.linalg.eigvals(inverse)
            nearest = slow[np.abs(poles[:, None] - slow).argmin(axis=1)]
            rounding = np.abs(nearest) ** 2 * (rounding_of(inverse) / conditioned) * condition
            rounding += np.abs(poles - nearest)
        return np.asarray(np.where(np.isfinite(rounding), rounding, np.inf))


def _schur(A: HostArray) -> tuple[HostArray, HostArray]:
    """Triangle and basis, from the fast to the slow states of a graded matrix."""
    n = A.shape[0]
    if n < 2:
        return A, np.eye(n, dtype=A.dtype)
    order = fast_to_slow(A)
    if order is not None:
        A = A[np.ix_(order, order)]

    failed = 0
    if n > SMALL:
        T, basis = scipy.linalg.schur(A, check_finite=False)
    elif A.dtype.kind == "c":
        T, _, _, basis, _, failed = lapack.zgees(lambda *_: None, A, lwork=_WORK_PER_STATE * n)
    else:
        T, _, _, _, basis, _, failed = lapack.dgees(lambda *_: None, A, lwork=_WORK_PER_STATE * n)
    if failed:
        raise np.linalg.LinAlgError("the QR algorithm did not converge")
    if order is not None:
        basis[order] = basis.copy()
    return T, basis


def _by_parts(A: HostArray, order: HostArray, parts: Edges) -> tuple[HostArray, HostArray]:
    """Triangle and basis of a matrix that is block triangular in this order of its states."""
    T = np.asfortranarray(A[np.ix_(order, order)])
    W = np.zeros_like(T)
    for first, last in parts:
        at = slice(first, last)
        if last - first == 1:
            W[order[first], first] = 1.0
            continue
        T[at, at], basis = _schur(T[at, at])
        W[order[at], at] = basis
        T[:first, at] = product(T[:first, at], basis)
        T[at, last:] = product(basis, T[at, last:], adjoint_left=True)
    return T, W


def fast_to_slow(A: HostArray) -> HostArray | None:
    """States by falling size of their rows; None where these are much alike."""
    sizes = np.maximum.reduce(np.abs(A), axis=-1, initial=0.0)
    each = sizes.tolist()
    graded = max(each, default=0.0) / _GRADED > min(each, default=np.inf)
    return np.argsort(-sizes, kind="stable") if graded else None


def is_graded(A: HostArray) -> HostArray:
    """Whether rows differ much in size, of each matrix of a stack (..., n, n)."""
    sizes = np.maximum.reduce(np.abs(A), axis=-1, initial=0.0)
    largest = np.maximum.reduce(sizes, axis=-1, initial=0.0)
    return np.asarray(largest / _GRADED > np.minimum.reduce(sizes, axis=-1, initial=np.inf))
