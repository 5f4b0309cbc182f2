"""The Schur form A = S W T Wᴴ S⁻¹, in units S of the states that balance A.

The QR algorithm is backward stable relative to ‖A‖, which badly scaled states inflate: their eigenvalues
may come out with errors larger than themselves. So rows and columns of A are brought to about equal
size first, by powers of two, which round nothing. What follows from the form then depends on the units of
the states no more than by rounding.

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

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ssmreduce._lapack import frobenius_norm, product, safe_unit
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain, boundary_distance

Edges = list[tuple[int, int]]
"""First and last plus one row of each diagonal block."""

_ROUNDINGS = 2.0
"""c of c n eps ‖A‖_F, beyond the backward error of QR algorithms, which in practice is a few eps ‖A‖_F."""

_EPS = float(np.finfo(np.float64).eps)

_CLEARLY = _EPS**0.5
"""Distance from the boundary relative to ‖A‖_F beyond which no way to find poles leaves a doubt."""

_LEAST_SCALED = 1e-120
"""Norm below which, and over which in its inverse, LAPACK's geev scales a matrix."""

_ROUNDS = 10
"""Times that ports are made smaller; each time goes a good part of the way, counted in digits."""

_FEW = 8
"""Diagonal blocks, times this at most n, whose eigenvectors are found one by one."""

_FAR = 1e300
"""Size from which ports count as equally large."""

_GRADED = 64.0
"""Ratio of the sizes of rows above which their order matters to more than two digits."""

_SMALLEST_FOR_PARTS = 100
"""Below this order the search for parts takes longer than the Schur form."""

_SMALL = 64
"""Up to this order LAPACK takes little work space, and is called without the checks of its wrapper, which
cost more than a pair."""

_WORK_PER_STATE = 40
"""Numbers of work space for each state, enough for blocks of 32 columns."""

_SPARSE_SHARE = 0.2
"""Above this share of nonzero entries a matrix is not searched for parts: it would rarely have any."""


def balance_states(
    A: HostArray, B: HostArray | None = None, C: HostArray | None = None
) -> tuple[HostArray, HostArray | None]:
    """S⁻¹ A S with rows and columns of about equal size, and the powers of two in S as a column.

    None stands for units that are all 1, where A itself is returned. Parts of A that act on others without
    being acted on have units of their own, which A leaves open; with B and C, those of inputs and outputs
    fix them. Cost O(n²).
    """
    n = A.shape[0]
    if n < 2:
        return A, None
    if B is None or C is None or np.count_nonzero(A) == A.size:
        even, units = balanced(A)
    else:
        units = _units_of_parts(A, B, C)
        even = in_units(A, units)
    if len(set(units.tolist())) == 1:
        return A, None
    return even, units[:, None]


def _units_of_parts(A: HostArray, B: HostArray, C: HostArray) -> HostArray:
    """Units that balance each part of A on its own, then the parts, with what leads from one to the next.

    Ports are made so small that nothing between two parts is larger than what is inside of them.
    """
    order, parts = parts_of(A)
    part = np.zeros(A.shape[0], dtype=np.intp)
    for k, (first, last) in enumerate(parts):
        part[order[first:last]] = k
    inside = part[:, None] == part
    _, units = balanced(np.where(inside, A, 0.0))
    if len(parts) == 1:
        return units
    sizes = in_units(np.abs(A), units)
    size = float(sizes.max(initial=0.0, where=inside)) or float(sizes.max()) or 1.0
    count = len(parts)
    # One row and column for each part, and one for the ports.
    whole = np.zeros((count + 1, count + 1))
    np.maximum.at(whole, (part[:, None], part), sizes)
    with np.errstate(over="ignore"):
        into = np.minimum(np.abs(B).max(axis=1, initial=0.0) / units, _FAR)
        out = np.minimum(np.abs(C).max(axis=0, initial=0.0) * units, _FAR)
    np.maximum.at(whole[:, count], part, into)
    np.maximum.at(whole[count], part, out)
    ports = whole[:count, count], whole[count, :count]
    for port in ports:
        port /= port.max() or 1.0
        port *= size
    # A part without dynamics of its own, an integrator, counts as one as fast as the fastest.
    np.fill_diagonal(whole[:count, :count], size)
    change = np.ones(count + 1)
    for _ in range(_ROUNDS):
        even, change = balanced(whole)
        excess = float(even[:count, :count].max()) / size
        if excess <= 1.0:
            break
        ports[0][:] /= excess**2
    found: HostArray = units * (change[:count] / change[count])[part]
    return found


def in_units(A: HostArray, units: HostArray) -> HostArray:
    """S⁻¹ A S for S = diag(units); ratios first, since products may underflow where these do not."""
    with np.errstate(over="ignore"):
        ratios = units / units[:, None]
    return np.multiply(A, ratios, out=np.zeros_like(A), where=A != 0.0)


def balanced(A: HostArray) -> tuple[HostArray, HostArray]:
    """S⁻¹ A S with rows and columns of about equal size, and the powers of two in S, shape (n,)."""
    if not A.size:
        return A, np.ones(len(A))
    gebal = lapack.zgebal if A.dtype.kind == "c" else lapack.dgebal
    even, _, _, units, _ = gebal(A, scale=1, permute=0)
    return even, units


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
    _known: dict[TimeDomain, float] = field(default_factory=dict, repr=False)
    """Distance of the nearest pole from the boundary."""

    @classmethod
    def of(
        cls,
        A: HostArray,
        B: HostArray | None = None,
        C: HostArray | None = None,
        *,
        time: TimeDomain | None = None,
    ) -> SchurForm:
        """Balance A, or a system (A, B, C), and decompose A, O(25 n³) unless it has structure.

        Where a `time` is given and rounding might decide whether a pole is stable, A is decomposed in as
        many parts as it has.

        Raises
        ------
        NoConvergenceError
            If the QR algorithm fails.
        """
        balanced, units = balance_states(A, B, C)
        return cls.of_balanced(balanced, units, time=time)

    @classmethod
    def of_balanced(
        cls, balanced: HostArray, units: HostArray | None = None, *, time: TimeDomain | None = None
    ) -> SchurForm:
        """The same for S⁻¹ A S."""
        try:
            n = balanced.shape[0]
            order, parts = parts_of(balanced) if n >= _SMALLEST_FOR_PARTS else _whole(n)
            form = cls._in_parts(balanced, order, parts, units)
            if time is None or len(parts) > 1 or n < 2:
                return form
            if form._nearest(time) > form._doubtful or form._is_clear(time):
                return form
            order, parts = parts_of(balanced)
            return form if len(parts) == 1 else cls._in_parts(balanced, order, parts, units)
        except np.linalg.LinAlgError as error:
            raise NoConvergenceError(
                f"the Schur form of `A` could not be computed ({error}); expected entries of moderate "
                "range. Scale the states."
            ) from error

    @staticmethod
    def is_cheap(A: HostArray) -> bool:
        """Whether A falls apart into blocks of at most a quarter of its order."""
        n = A.shape[0]
        if n < _SMALLEST_FOR_PARTS or np.count_nonzero(A) > _SPARSE_SHARE * n * n:
            return False
        _, parts = parts_of(A)
        return bool(4 * max(last - first for first, last in parts) <= n)

    @classmethod
    def _in_parts(
        cls, A: HostArray, order: HostArray, parts: Edges, units: HostArray | None
    ) -> SchurForm:
        if len(parts) == 1:
            return cls(*_ordered_schur(A), units, A, order, parts)
        T = np.asfortranarray(A[np.ix_(order, order)])
        W = np.zeros_like(T)
        for first, last in parts:
            at = slice(first, last)
            if last - first == 1:
                W[order[first], first] = 1.0
                continue
            T[at, at], basis = _ordered_schur(T[at, at])
            W[order[at], at] = basis
            T[:first, at] = product(T[:first, at], basis)
            T[at, last:] = product(basis, T[at, last:], adjoint_left=True)
        return cls(T, W, units, A, order, parts)

    def of_type(self, dtype: np.dtype[Any]) -> SchurForm:
        """The complex form with the same eigenvalues where the type is complex and this one real."""
        if dtype.kind != "c" or self.triangle.dtype.kind == "c":
            return self
        T, W = _complex_form(self.triangle, self.basis)
        return replace(self, triangle=T, basis=W, _known={})

    # --- Coordinates

    def inputs(self, B: HostArray) -> HostArray:
        """Wᴴ S⁻¹ B: an input matrix in the coordinates of T."""
        return product(self.basis, B if self.units is None else B / self.units, adjoint_left=True)

    def outputs(self, C_adjoint: HostArray) -> HostArray:
        """Wᴴ S Cᴴ: the adjoint of an output matrix, as Cᴴ, in the coordinates of T."""
        scaled = C_adjoint if self.units is None else C_adjoint * self.units
        return product(self.basis, scaled, adjoint_left=True)

    def reached(self, states: HostArray) -> HostArray:
        """S W X: states in the coordinates of T, in those of A."""
        moved = product(self.basis, states)
        return moved if self.units is None else moved * self.units

    def observed(self, states: HostArray) -> HostArray:
        """S⁻¹ W Y: dual states in the coordinates of T, in those of A."""
        moved = product(self.basis, states)
        return moved if self.units is None else moved / self.units

    def reversed_adjoint(self) -> HostArray:
        """Tᴴ with rows and columns in reverse order: the triangle of Aᴴ in the reversed basis."""
        return np.asfortranarray(adjoint(self.triangle)[::-1, ::-1])

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

    def all_stable(self, time: TimeDomain) -> bool:
        """Whether every pole is `stable`."""
        return bool(self._nearest(time) > self._doubtful or self.stable(time).all())

    def inside(self, time: TimeDomain) -> bool:
        """Whether every pole lies inside the boundary, rounding left aside."""
        return self._nearest(time) > 0.0

    def stable(self, time: TimeDomain, margin: float = 0.0) -> HostArray:
        """Whether each pole lies inside the boundary by more than `margin` and its rounding."""
        room = boundary_distance(self.eigenvalues(), time) - margin
        rounding = 0.0 if self._is_clear(time, margin) else self._rounding(room, time)
        return np.asarray(room > rounding)

    def _distance(self, time: TimeDomain) -> HostArray:
        """Of each pole from the boundary; blocks of pairs have equal diagonal entries."""
        if isinstance(time, Discrete):
            return boundary_distance(self._eigenvalues, time)
        return boundary_distance(self.triangle.diagonal(), time)

    def _nearest(self, time: TimeDomain) -> float:
        nearest = self._known.get(time)
        if nearest is None:
            nearest = float(np.minimum.reduce(self._distance(time), initial=np.inf))
            self._known[time] = nearest
        return nearest

    @cached_property
    def _doubtful(self) -> float:
        """Distance from the boundary up to which rounding might decide."""
        return _clearly(self.triangle)

    def _is_clear(self, time: TimeDomain, margin: float = 0.0) -> bool:
        """Whether no pole is so near to the boundary, or the line at `margin`, that rounding might decide."""
        near = np.abs(self._distance(time) - margin) <= self._doubtful
        return not near.any()

    def _rounding(self, room: HostArray, time: TimeDomain) -> HostArray:
        """How far inside the boundary each pole may lie and still be on it for all that rounding tells.

        The inverse is asked where the distances `room` from the boundary are not beyond that.
        """
        rounding, poles = np.zeros(self.triangle.shape[0]), self.eigenvalues()
        for first, last in self.parts:
            at = slice(first, last)
            if last - first > 1:
                block = self.triangle[at, at]
                condition = _conditions(block, (room[at] > 0.0) & (room[at] <= _clearly(block)))
                rounding[at] = np.minimum(_rounding_of(block) * condition, _clearly(block))
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
            rounding = np.abs(nearest) ** 2 * (_rounding_of(inverse) / conditioned) * condition
            rounding += np.abs(poles - nearest)
        return np.asarray(np.where(np.isfinite(rounding), rounding, np.inf))


def eigenvectors_of(A: HostArray) -> tuple[HostArray, HostArray]:
    """Eigenvalues and eigenvectors of one balanced matrix, in the order of its states from fast to slow."""
    order = _fast_to_slow(A)
    if order is None:
        poles, vectors = np.linalg.eig(A)
        return poles, vectors
    poles, ordered = np.linalg.eig(A[np.ix_(order, order)])
    vectors = np.empty_like(ordered)
    vectors[order] = ordered
    return poles, vectors


def poles_of(A: HostArray) -> HostArray:
    """Eigenvalues of each matrix of a stack (..., n, n), those of graded ones to their own digits."""
    if A.shape[-1] == 1:
        return A[..., 0].copy()
    poles = np.linalg.eigvals(A)  # balances, but does not order
    graded = is_graded(A)
    if not graded.any():
        return poles
    poles = poles.astype(np.complex128)
    for at in map(tuple, np.argwhere(graded)):
        balanced, _ = balance_states(A[at])
        if is_graded(balanced):
            poles[at] = _poles_by_parts(balanced)
    complex_valued = np.iscomplexobj(A) or np.any(poles.imag)
    return poles if complex_valued else np.asarray(poles.real)


def _poles_by_parts(A: HostArray) -> HostArray:
    """Eigenvalues of one balanced matrix, of each part in its own scale and from fast to slow states."""
    order, parts = parts_of(A)
    poles = A.diagonal()[order].astype(np.complex128)
    for first, last in parts:
        if last - first > 1:
            states = order[first:last]
            block = A[np.ix_(states, states)]
            falling = _fast_to_slow(block)
            if falling is not None:
                block = block[np.ix_(falling, falling)]
            poles[first:last] = np.linalg.eigvals(block)
    return poles


def are_stable(A: HostArray, time: TimeDomain, margin: float = 0.0) -> HostArray:
    """Whether all poles of each matrix of a stack (..., n, n) are stable, shape (...).

    A Schur form is taken where eigenvalues alone leave it to rounding.
    """
    if not A.shape[-1]:
        return np.ones(A.shape[:-2], dtype=bool)
    if A.ndim == 2 and len(A) <= _SMALL:  # LAPACK takes less than the checks of NumPy
        if _plainly_stable(A, time, margin):
            return np.asarray(True)
        form = SchurForm.of(A, time=time)
        return np.asarray(form.stable(time, margin).all() if margin else form.all_stable(time))
    every = A.reshape(-1, *A.shape[-2:])
    stable, doubtful = _by_eigenvalues(every, time, margin)
    for k in np.flatnonzero(doubtful):
        stable[k] = SchurForm.of(every[k], time=time).stable(time, margin).all()
    return stable.reshape(A.shape[:-2])


def _by_eigenvalues(A: HostArray, time: TimeDomain, margin: float) -> tuple[HostArray, HostArray]:
    """Which of a stack (K, n, n) are stable, and which of these answers are in doubt.

    Of small ones with rows that slow, eigenvalues alone would leave a doubt.
    """
    small, room, doubtful = A.shape[-1] <= _SMALL, np.empty(len(A)), np.ones(len(A), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.linalg.norm(A, axis=-1)
        size = np.linalg.norm(rows, axis=-1)
        slow = small & (rows.min(axis=-1) < 2.0 * _CLEARLY * size)
        if not slow.all():
            distance = boundary_distance(np.linalg.eigvals(A[~slow]), time) - margin
            room[~slow] = distance.min(axis=-1)
            doubtful[~slow] = ~(np.abs(room[~slow]) > _CLEARLY * size[~slow])
        rest = np.flatnonzero(doubtful)
        if small and rest.size:
            even = np.stack([balanced(A[k])[0] for k in rest])
            room[rest], doubtful[rest] = _by_conditions(even, time, margin)
    return room > 0.0, doubtful


def _by_conditions(A: HostArray, time: TimeDomain, margin: float) -> tuple[HostArray, HostArray]:
    """How far inside the poles of balanced matrices lie, and whether rounding might decide about it.

    It does not where all lie inside by twice what their conditions let it do.
    """
    poles, vectors = np.linalg.eig(A)
    distance = boundary_distance(poles, time) - margin
    room, size = distance.min(axis=-1), np.linalg.norm(A, axis=(-2, -1))
    doubtful = ~(np.abs(room) > _CLEARLY * size)
    try:
        conditions = np.linalg.norm(np.linalg.inv(vectors), axis=-1)
    except np.linalg.LinAlgError:
        return room, doubtful
    rounding = _ROUNDINGS * A.shape[-1] * _EPS * size
    inside = distance > 2.0 * rounding[:, None] * conditions
    return room, doubtful & ~inside.all(axis=-1)


def _plainly_stable(A: HostArray, time: TimeDomain, margin: float) -> bool:
    """Whether eigenvalues alone show that all poles of a small matrix lie well inside the boundary."""
    size = frobenius_norm(A)
    # Elsewhere geev scales, and not all versions undo it.
    if not _LEAST_SCALED < size < 1.0 / _LEAST_SCALED:
        return False
    if A.dtype.kind == "c":
        poles, _, _, failed = lapack.zgeev(A, compute_vl=0, compute_vr=0)
    else:
        real, imaginary, _, _, failed = lapack.dgeev(A, compute_vl=0, compute_vr=0)
        poles = real + 1j * imaginary if isinstance(time, Discrete) else real
    nearest = min(boundary_distance(poles, time).tolist())
    return bool(not failed and nearest > margin + _CLEARLY * size)


def _clearly(block: HostArray) -> float:
    doubtful: float = _CLEARLY * frobenius_norm(block)
    return doubtful


def _complex_form(T: HostArray, W: HostArray) -> tuple[HostArray, HostArray]:
    """The complex triangle and basis of real ones."""
    if not T.diagonal(-1).any():
        return T.astype(np.complex128), W.astype(np.complex128)
    unit = safe_unit(T)  # SciPy takes squares
    T, W = scipy.linalg.rsf2csf(T / unit, W, check_finite=False)
    return np.asfortranarray(T * unit), np.asfortranarray(W)


def _conditions(T: HostArray, wanted: HostArray) -> HostArray:
    """1/|yᴴ x| for the eigenvalues of a triangle with left and right eigenvectors y and x of length 1.

    Inf for those that are not wanted, where only few blocks of T are.
    """
    n, below = len(T), np.append(T.diagonal(-1), 0.0) != 0.0
    firsts = np.flatnonzero(~np.roll(below, 1)).tolist()
    runs = [(k, k + 1 + int(below[k])) for k in firsts if wanted[k] or (below[k] and wanted[k + 1])]
    if n <= _SMALL or _FEW * len(runs) > n:
        runs = [(0, n)]
    conditions = np.full(n, np.inf)
    for first, last in runs:
        conditions[first:last] = _conditions_of_run(T, first, last)
    return conditions


def _conditions_of_run(T: HostArray, first: int, last: int) -> HostArray:
    """The same for diagonal blocks in a row; eigenvectors of T from theirs: [X x; x; 0] and [0; y; Yᴴ y]."""
    run = T[first:last, first:last]
    left, right = _eigenvectors(run)
    X = _decoupling(T[:first, :first], run, T[:first, first:last])
    Y = _decoupling(run, T[last:, last:], T[first:last, last:])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        sizes = np.hypot(*(np.linalg.norm(x, axis=0) for x in (right, X @ right)))
        sizes *= np.hypot(*(np.linalg.norm(y, axis=0) for y in (left, adjoint(Y) @ left)))
        conditions = sizes / np.abs(np.sum(left.conj() * right, axis=0))
    return np.where(np.isnan(conditions), np.inf, conditions)


def _decoupling(one: HostArray, other: HostArray, between: HostArray) -> HostArray:
    """X of T₁ X - X T₂ = T₁₂ for two triangles."""
    if not between.size:
        return between
    trsyl = lapack.ztrsyl if between.dtype.kind == "c" else lapack.dtrsyl
    X, scale, _ = trsyl(one, other, between, isgn=-1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.asarray(X / scale)


def _eigenvectors(T: HostArray) -> tuple[HostArray, HostArray]:
    """Left and right ones of a triangle, in the order of its diagonal."""
    if T.dtype.kind != "c" and T.diagonal(-1).any():
        T, W = _complex_form(T, np.eye(len(T)))
        left, right = _eigenvectors(T)
        return product(W, left), product(W, right)
    # LAPACK keeps the order of a triangular matrix.
    *_, left, right, _ = lapack.zgeev(T) if T.dtype.kind == "c" else lapack.dgeev(T)
    return left, right


def _rounding_of(block: HostArray) -> float:
    rounding: float = _ROUNDINGS * block.shape[0] * _EPS * frobenius_norm(block)
    return rounding


def _schur(A: HostArray) -> tuple[HostArray, HostArray]:
    """Triangle and basis."""
    n = A.shape[0]
    if n < 2:
        return A, np.eye(n, dtype=A.dtype)
    if n > _SMALL:
        return cast(tuple[HostArray, HostArray], scipy.linalg.schur(A, check_finite=False))
    if A.dtype.kind == "c":
        T, _, _, basis, _, failed = lapack.zgees(lambda *_: None, A, lwork=_WORK_PER_STATE * n)
    else:
        T, _, _, _, basis, _, failed = lapack.dgees(lambda *_: None, A, lwork=_WORK_PER_STATE * n)
    if failed:
        raise np.linalg.LinAlgError("the QR algorithm did not converge")
    return T, basis


def _ordered_schur(A: HostArray) -> tuple[HostArray, HostArray]:
    """Triangle and basis, from the fast to the slow states of a graded matrix."""
    order = _fast_to_slow(A)
    if order is None:
        return _schur(A)
    T, ordered = _schur(A[np.ix_(order, order)])
    basis = np.empty_like(ordered)
    basis[order] = ordered
    return T, basis


def _fast_to_slow(A: HostArray) -> HostArray | None:
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


def _whole(n: int) -> tuple[HostArray, Edges]:
    return np.arange(n), [(0, n)]


def parts_of(A: HostArray) -> tuple[HostArray, Edges]:
    """An order of the states that makes A block upper triangular, and its diagonal blocks."""
    n = A.shape[0]
    if np.count_nonzero(A) == A.size:
        return _whole(n)
    graph = csr_array(A != 0)
    count, labels = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return _whole(n)
    # Components come in topological order, in one direction or the other; the blocks are checked.
    rows, columns = graph.nonzero()
    for candidate in (labels, count - 1 - labels):
        if np.all(candidate[rows] <= candidate[columns]):
            order = np.argsort(candidate, kind="stable")
            starts = np.concatenate([[0], np.cumsum(np.bincount(candidate))])
            return order, list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    return _whole(n)
