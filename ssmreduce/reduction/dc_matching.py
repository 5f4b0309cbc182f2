"""DC matching: the states that are cut become static, so that G_r(s) = G(s) at the s of the DC gain.

With S = A - s (s = 0 in continuous and s = 1 in discrete time) and balanced states, kept ones first, the
reduced system is S₁₁ - S₁₂ S₂₂⁻¹ S₂₁ + s and so on. It is read off the inverse of the bordered matrix

    [S  T]⁻¹   [T₂ S₂₂⁻¹ W₂ᴴ   T̃         ]
    [Wᴴ 0]   = [W̃ᴴ            -(A_r - s)],   B_r = W̃ᴴ B,  C_r = C T̃,  D_r = D - C T₂ S₂₂⁻¹ W₂ᴴ B,

in which W and T are the projections of truncation: the states that are cut, T₂ and W₂, are not needed.
The inverse of S and one step of refinement give it where the step is small, a factorisation of the
bordered matrix elsewhere. A slow pole (S nearly singular) so costs no digits of lightly damped ones, as
the inverse of S alone does, and states beyond the numerical rank, which are rounding, are never touched.
Where S₂₂ is nearly singular (an order that separates a lightly damped pair) digits of the DC gain are
lost; D_r makes up for it. Cost O(n³) once and O(n² r) for each order, or else O((n + r)³).

References: Liu and Anderson, Int. J. Control 50 (1989); Govaerts, Numerical Methods for Bifurcations of
Dynamical Equilibria, SIAM 2000, chapter 3, for bordered systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import frobenius_norm, product
from ssmreduce._state_units import balanced_matrix
from ssmreduce.errors import OrderError
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.real_form import real_state
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import TimeDomain

_EPS = float(np.finfo(np.float64).eps)

_SINGULAR = 10.0
"""Safety factor c of c r eps: a matrix of order r whose reciprocal condition number is below that may
be singular for all that its digits tell."""

_LARGEST_GROWTH = _EPS**-0.5
"""Growth of rounding at which half of the digits are left."""

_GAIN_ROUNDING = 4.0
"""c in c n eps |C S⁻¹| |S| |S⁻¹ B|, by norms of rows and columns: what rounding of S, and of a solution with
it, may change of a DC gain."""


_SMALL_STEP = _EPS ** (2 / 3)
"""A step of refinement this small beside the solution leaves no error of its own. At eps^(1/2) the DC gain
lost a digit in 2 of 126 systems with slow and lightly damped poles, at eps^(2/3) in none."""


@dataclass(frozen=True, eq=False)
class Followers:
    """Projections W and T in units of the states, with S⁻ᴴ W, S⁻¹ T and Wᴴ S⁻¹ T."""

    left: HostArray
    right: HostArray
    backward: HostArray
    forward: HostArray
    inverse: HostArray

    def leading(self, order: int) -> Followers:
        """Those of a lower order."""
        left, right, backward, forward = (
            x[:, :order] for x in (self.left, self.right, self.backward, self.forward)
        )
        return Followers(left, right, backward, forward, self.inverse[:order, :order])


@dataclass(frozen=True, eq=False)
class ShiftedSystem:
    """S = A - s, B, C and D on the host; real states where a diagonal system outputs a real part."""

    S: HostArray
    B: HostArray
    C: HostArray
    D: HostArray
    point: float
    inverse: HostArray | None = None
    """S⁻¹ of a diagonal system, where every entry is right to eps."""

    @classmethod
    def of(cls, system: StateSpace | DiagonalStateSpace) -> ShiftedSystem:
        """Shift a system on the host, in the standard form."""
        point = system.time.steady_point
        if isinstance(system, StateSpace):
            S = system.A - point * np.eye(system.order)
            return cls(S, system.B, system.C, system.D, point)
        if system.log_eigenvalues is not None:
            distance = np.expm1(system.log_eigenvalues)
        else:
            distance = system.eigenvalues - point
        S, inverse = np.diag(distance), np.diag(1.0 / distance)
        if system.real_output:
            S, inverse = real_state(distance), real_state(1.0 / distance)
        return cls(S, *system.ports(), system.D, point, inverse)

    def follow(self, W: HostArray, T: HostArray) -> Followers:
        """What DC matching needs of projections W and T with Wᴴ T = I, and of any leading columns of them."""
        _, scale, _ = self._in_units
        W, T = np.asfortranarray(W * scale), np.asfortranarray(T / scale)
        backward, forward = self._solve(W, transposed=True), self._solve(T)
        return Followers(W, T, backward, forward, product(W, forward, adjoint_left=True))

    @np.errstate(all="ignore")
    def matched(self, basis: Followers) -> ShiftedSystem:
        """The reduced system with the same DC gain.

        Raises
        ------
        OrderError
            If the states that are cut have a pole at s, for all that rounding tells.
        """
        _, scale, unit = self._in_units
        inputs = self.B.shape[1]
        x, z = self._eliminated(basis) or self._bordered(basis)
        if not (np.all(np.isfinite(x)) and np.all(np.isfinite(z))):
            raise OrderError(
                f"`order` is {len(z)}, where the states that are cut have a pole at zero frequency to "
                "working precision; expected states that can follow at once. Try an order next to it."
            )
        seen = product(adjoint(scale) * self.C, x)
        D, C = self.D - seen[:, :inputs] / unit, seen[:, inputs:]
        N = unit * _slow_corrected(-z[:, inputs:], basis)
        reduced = ShiftedSystem(N, z[:, :inputs], C, D, self.point)
        return reduced._with_gain_of(self)

    def _eliminated(self, basis: Followers) -> tuple[HostArray, HostArray] | None:
        """Solve with the bordered matrix by the inverse of S and one step of refinement, in units.

        What the inverse of S costs in digits is in the residual, which is that of the bordered matrix.
        None if that is more than a third of the digits.
        """
        (S, scale, _), (W, T), driven = self._in_units, (basis.left, basis.right), self._driven
        r, inputs = T.shape[1], driven.shape[1]
        unit = np.eye(r)
        inner = _Solver(basis.inverse, driven)
        z = inner(np.hstack([product(W, driven, adjoint_left=True), -unit]))
        x = -product(basis.forward, z)
        x[:, :inputs] += driven
        first = -(product(S, x) + product(T, z))
        first[:, :inputs] += self.B / scale
        moved = self._solve(first)
        second = product(W, moved + x, adjoint_left=True)
        second[:, inputs:] -= unit
        dz = inner(second)
        dx = moved - product(basis.forward, dz)
        for step, solved in ((dx, x), (dz, z)):
            if not np.all(_columns(step) <= _SMALL_STEP * _columns(solved)):
                return None
        return x + dx, z + dz

    def _bordered(self, basis: Followers) -> tuple[HostArray, HostArray]:
        """The same by a factorisation of the bordered matrix."""
        (S, scale, _), (W, T), B = self._in_units, (basis.left, basis.right), self.B
        n, r = T.shape
        dtype = np.result_type(S, T, W, B)
        bordered, right = np.zeros((n + r,) * 2, dtype), np.zeros((n + r, B.shape[1] + r), dtype)
        bordered[:n, :n], bordered[:n, n:], bordered[n:, :n] = S, T, adjoint(W)
        right[:n, :-r], right[n:, -r:] = B / scale, np.eye(r)
        bordered, scale, size = _scaled(bordered)
        solved = scale * _Solver(bordered)(right / scale) / size
        return solved[:n], solved[n:]

    def system(self, time: TimeDomain) -> StateSpace:
        """The dense system, in arrays of its own."""
        B, C, D = (x.copy() for x in (self.B, self.C, self.D))
        return StateSpace(self.A, B, C, D, time=time)

    @property
    def A(self) -> HostArray:
        """The state matrix."""
        return self.S + self.point * np.eye(len(self.S))

    @cached_property
    def steady(self) -> tuple[HostArray, HostArray]:
        """The DC gain D - C S⁻¹ B, and what rounding may have changed of each entry; NaN if S is singular."""
        S, scale, unit = self._in_units
        driven = self._driven
        gain = self.D - product(self.C, scale * driven) / unit
        c = _GAIN_ROUNDING * len(S) * _EPS / unit
        if self.inverse is not None:
            return gain, c * (np.abs(self.C) @ np.abs(driven))
        seen = self._solve(scale * adjoint(self.C), transposed=True)
        return gain, c * np.linalg.norm(S) * np.outer(_columns(seen), _columns(driven))

    @cached_property
    def _driven(self) -> HostArray:
        """S⁻¹ B in units of the states and of rates."""
        _, scale, _ = self._in_units
        return self._solve(self.B / scale)

    @cached_property
    def _in_units(self) -> tuple[HostArray, HostArray, float]:
        return _scaled(self.S, even=self.inverse is not None)

    @cached_property
    def _solver(self) -> _Solver:
        return _Solver(self._in_units[0], self.B, self.C)

    def _solve(self, right: HostArray, *, transposed: bool = False) -> HostArray:
        """S⁻¹ or S⁻ᴴ times a matrix, in units of the states and of rates; NaN if S is singular."""
        if self.inverse is not None:
            return self._in_units[2] * product(self.inverse, right, adjoint_left=transposed)
        return self._solver(right, transposed=transposed)

    def _with_gain_of(self, original: ShiftedSystem) -> ShiftedSystem:
        """Add to D what the DC gain misses and rounding does not explain."""
        wanted, uncertain = original.steady
        found, rounding = self.steady
        missing = wanted - found
        meant = np.abs(missing) > uncertain + rounding
        if not np.any(meant & np.isfinite(missing)):
            return self
        D = self.D + np.where(meant & np.isfinite(missing), missing, 0.0)
        return ShiftedSystem(self.S, self.B, self.C, D, self.point)


def _slow_corrected(N: HostArray, basis: Followers) -> HostArray:
    """N = (Wᴴ S⁻¹ T)⁻¹ with its slow part taken from this definition, in units.

    Rounding of S moves N by eps ‖S‖ ‖W‖ ‖T‖, however small its singular values σ are, and Wᴴ S⁻¹ T by
    eps ‖S‖ ‖S⁻ᴴ W‖ ‖S⁻¹ T‖, which moves N by σ² times that in its directions: Newton's step for the
    inverse is taken where that is less.
    """
    pairs = (basis.left, basis.right), (basis.backward, basis.forward)
    errors = [frobenius_norm(x) * frobenius_norm(y) for x, y in pairs]
    if not 0.0 < errors[1] < np.inf:
        return N
    U, V = _slow_directions(N, basis, errors[0] / errors[1])
    again = product(basis.left, product(basis.forward, N @ V), adjoint_left=True)
    step = adjoint(U) @ (N @ (V - again))
    return np.asarray(N + U @ step @ adjoint(V))


def _slow_directions(N: HostArray, basis: Followers, largest: float) -> tuple[HostArray, HostArray]:
    """Left and right singular vectors of N whose values have squares below `largest`.

    They span what is large in its inverse M. Eigenvectors of M Mᴴ take half of the time, where its rounding,
    eps of the largest eigenvalue, is below all that count.
    """
    M = basis.inverse
    squares = product(M, adjoint(M))
    if _SINGULAR * len(N) * _EPS * frobenius_norm(squares) * largest < 1.0:
        _, V = scipy.linalg.eigh(
            squares, check_finite=False, subset_by_value=(1.0 / largest, np.inf)
        )
        return np.linalg.qr(product(M, V, adjoint_left=True))[0], V
    left, sizes, right = np.linalg.svd(N)
    slow = sizes**2 < largest
    return left[:, slow], adjoint(right[slow])


def _columns(matrix: HostArray) -> HostArray:
    return np.asarray(np.linalg.norm(matrix, axis=0))


def _scaled(matrix: HostArray, *, even: bool = False) -> tuple[HostArray, HostArray, float]:
    """The matrix in units of the states, shape (n, 1), and of rates in which its rows and columns are near 1.

    All are powers of two, so that nothing is rounded. The states of an `even` one have good units.
    """
    scaled, scale = (matrix, np.ones(len(matrix))) if even else balanced_matrix(matrix)
    unit = float(2.0 ** np.frexp(np.abs(scaled).max())[1])
    return scaled / unit, scale[:, None], unit


class _Solver:
    """One LU factorisation; solutions are NaN if the matrix is singular. `others` tell what is complex."""

    def __init__(self, matrix: HostArray, *others: HostArray) -> None:
        self._dtype = np.result_type(matrix, *others)
        is_complex = self._dtype == np.complex128
        getrf, self._getrs = (
            (lapack.zgetrf, lapack.zgetrs) if is_complex else (lapack.dgetrf, lapack.dgetrs)
        )
        self._factors, self._pivots, self._singular = getrf(
            np.array(matrix, self._dtype, order="F"), overwrite_a=True
        )

    def __call__(self, right: HostArray, *, transposed: bool = False) -> HostArray:
        right = np.array(right, self._dtype, order="F")
        if self._singular:
            return np.full_like(right, np.nan)
        solution, _ = self._getrs(
            self._factors, self._pivots, right, trans=2 * transposed, overwrite_b=True
        )
        return np.asarray(solution)


def are_invertible(poles: HostArray) -> bool:
    """Whether no pole of a diagonal system is zero up to rounding."""
    sizes = np.abs(poles)
    return bool(sizes.min() > _SINGULAR * sizes.size * _EPS * sizes.max())


def dense_after_update(system: StateSpace) -> StateSpace:
    """Return the same map read after the update: (A, B, C A⁻¹, D - C A⁻¹ B).

    Raises
    ------
    OrderError
        If A is singular in floating point, or so nearly that D - C A⁻¹ B costs half of the digits.
    """
    singular_values = np.linalg.svd(system.A, compute_uv=False)
    limit = _SINGULAR * system.order * _EPS
    if singular_values[-1] > limit * singular_values[0]:
        C = adjoint(scipy.linalg.solve(adjoint(system.A), adjoint(system.C)))
        response = np.linalg.norm(system.D) + np.linalg.norm(system.C) * np.linalg.norm(system.B)
        if np.linalg.norm(C) * np.linalg.norm(system.B) <= _LARGEST_GROWTH * response:
            D = system.D - C @ system.B
            return system.replace(C=C, D=D, read_after_update=True)
    raise OrderError(
        f"the reduced state matrix of order {system.order} is singular, or too nearly so, so that no system "
        "that reads its state after the update has the reduced map; expected poles other than 0. "
        "Try another order, or reduce system.to_standard()."
    )


def diagonal_after_update(system: DiagonalStateSpace) -> DiagonalStateSpace:
    """Return the same map read after the update; the poles must be invertible."""
    C = system.C / system.eigenvalues
    first = C @ system.B
    D = system.D - (first.real if system.real_output else first)
    return system.replace(C=C, D=D, read_after_update=True)
