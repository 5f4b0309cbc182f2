"""The gain of a system at one frequency: the largest singular value of G(z).

`Gain` adds up the transfer functions of several systems (a system, or a system less a reduced one)
and their feedthroughs. A diagonal system costs O(n p m) per frequency in closed form. A dense one is
brought to real or complex Schur form A = U T Uᴴ once; after that all frequencies share one blocked
back substitution with zI - T, O(n² min(m, p)) each in matrix products instead of O(n³) for a
factorisation. Both are backward stable: what is evaluated belongs to a matrix within c n eps ‖A‖ of
A, which at a distance d between z and the spectrum moves the gain by a relative n eps ‖A‖/d.

Where both sides are wide the singular value may be taken from a power iteration, which only ever
underestimates. Points where a pole has rounded onto the boundary have no value and count as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg

from ssmreduce._lapack import frobenius_norm
from ssmreduce._namespace import HostArray, adjoint, to_double
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.systems.diagonal import System, is_complex
from ssmreduce.systems.linear_solve import solve_stacked
from ssmreduce.systems.response import StatePart
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_EXACT_WIDTH = 16
"""Up to this many inputs or outputs G(z) is decomposed; above, power iteration is cheaper."""

_BLOCK = 24
"""Rows that one step of the back substitution solves for at once."""

_WORKING_ENTRIES = 2**22
"""Complex numbers held at once while a transfer function is evaluated: 64 MiB."""

_Columns = Callable[[HostArray], HostArray]
_Products = Callable[[HostArray, HostArray], HostArray]


class SchurPart:
    """C (zI - A)⁻¹ B of a dense system at many points, from one Schur form.

    With fewer outputs than inputs the dual system (Aᴴ, Cᴴ, Bᴴ) is evaluated at conj(z).
    """

    def __init__(self, system: StateSpace) -> None:
        self.dual = system.outputs < system.inputs
        A, B, C = balanced(system)
        if self.dual:
            A, B, C = adjoint(A), adjoint(C), adjoint(B)
        self.triangle, U = scipy.linalg.schur(A, output="real" if np.isrealobj(A) else "complex")
        self.B, self.C = adjoint(U) @ B, C @ U

    def poles(self) -> HostArray:
        """Eigenvalues of A, read off the Schur form."""
        poles = np.diagonal(self.triangle).astype(np.complex128)
        if np.isrealobj(self.triangle):
            # LAPACK leaves 2x2 blocks as [[a, b], [c, a]] with b c < 0.
            above, below = np.diagonal(self.triangle, 1), np.diagonal(self.triangle, -1)
            first = np.flatnonzero(below)
            imaginary = np.sqrt(np.abs(above[first])) * np.sqrt(np.abs(below[first]))
            poles[first] += 1j * imaginary
            poles[first + 1] -= 1j * imaginary
        return np.asarray(poles.conj() if self.dual else poles)

    def matrices(self, z: HostArray) -> HostArray:
        """Return the values, shape (K, p, m), for points z, shape (K,)."""
        length = max(1, _WORKING_ENTRIES // max(1, self.B.size))
        points = z.conj() if self.dual else z
        blocks = [self._values(points[i : i + length]) for i in range(0, z.size, length)]
        values = np.concatenate(blocks)
        return adjoint(values) if self.dual else values

    def _values(self, z: HostArray) -> HostArray:
        """One blocked back substitution X = (zI - T)⁻¹ B, then C X."""
        n, m = self.B.shape
        X = np.empty((n, z.size, m), dtype=np.complex128)
        for start, end in self._blocks():
            rows = np.repeat(self.B[start:end, None].astype(np.complex128), z.size, axis=1)
            if end < n:
                known = X[end:].reshape(n - end, z.size * m)
                rows += _times(self.triangle[start:end, end:], known).reshape(rows.shape)
            shifted = z[:, None, None] * np.eye(end - start) - self.triangle[start:end, start:end]
            X[start:end] = _rows_first(solve_stacked(shifted, _points_first(rows)))
        return _points_first(_times(self.C, X.reshape(n, z.size * m)).reshape(-1, z.size, m))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Row ranges from last to first; none of them cuts a 2x2 block of the real Schur form."""
        end = len(self.triangle)
        while end > 0:
            start = max(0, end - _BLOCK)
            if start > 0 and self.triangle[start, start - 1] != 0:
                start -= 1
            yield start, end
            end = start


class Gain:
    """σ_max of G(z) = Σ s_i G_i(z) + D on the stability boundary, for systems G_i and signs s_i.

    Parameters
    ----------
    terms : tuple of (float, StateSpace or DiagonalStateSpace)
        Signs and systems of equal sizes and time domain, without batch axes.
    """

    def __init__(self, *terms: tuple[float, System]) -> None:
        self.signs = [sign for sign, _ in terms]
        self.parts = [StatePart(system) for _, system in terms]
        self.systems = [part.system for part in self.parts]
        first, *others = self.systems
        for other in others:
            check_alike(first, other)
        self.discrete = isinstance(first.time, Discrete)
        self.real = not any(map(is_complex, self.systems))
        self.inputs, self.outputs = first.inputs, first.outputs
        D = [s * to_double(x.D) for s, x in zip(self.signs, self.systems, strict=True)]
        self.D: HostArray = np.sum(D, axis=0)
        self._schur = {
            i: SchurPart(system)
            for i, system in enumerate(self.systems)
            if isinstance(system, StateSpace) and system.order > 0
        }

    @property
    def is_dense(self) -> bool:
        """Whether a Schur form is in it."""
        return bool(self._schur)

    def poles(self) -> list[HostArray]:
        """Poles of every system."""
        return [
            self._schur[i].poles() if i in self._schur else np.asarray(system.poles())
            for i, system in enumerate(self.systems)
        ]

    def matrices(self, omega: HostArray) -> HostArray:
        """Return G, shape (K, p, m), at frequencies ω; D alone at ω = ∞. May hold Inf and NaN."""
        values = np.zeros((omega.size, self.outputs, self.inputs), dtype=np.complex128)
        finite = np.isfinite(omega)
        for i, sign in enumerate(self.signs if np.any(finite) else []):
            values[finite] += sign * self._part(i, omega[finite])
        return values + self.D

    def exact(self, omega: HostArray) -> HostArray:
        """Return σ_max(G) at every frequency, from a singular value decomposition."""
        gains = np.zeros(omega.size)
        for chunk in self._chunks(omega):
            values = self._finite(omega[chunk])
            gains[chunk] = np.linalg.norm(values, ord=2, axis=(-2, -1))
        return gains

    def estimate(self, omega: HostArray, iterations: int) -> HostArray:
        """Return lower bounds of σ_max(G): exact where one side is narrow, else power iteration."""
        if min(self.inputs, self.outputs) <= _EXACT_WIDTH:
            return self.exact(omega)
        if not self._schur:
            return _power_iteration(*self._products(omega), self.inputs, omega.size, iterations)
        gains = np.zeros(omega.size)
        for chunk in self._chunks(omega):
            values = self._finite(omega[chunk])
            products = _columnwise(values), _columnwise(adjoint(values))
            gains[chunk] = _power_iteration(*products, self.inputs, len(values), iterations)
        return gains

    def scale(self, frequency: float) -> float:
        """Sum of the Frobenius norms of all terms at ω: what a difference cancels from."""
        total = 0.0
        for i, system in enumerate(self.systems):
            value = to_double(system.D)
            if np.isfinite(frequency):
                value = value + self._part(i, np.array([frequency]))[0]
            total += frobenius_norm(value)
        return total

    def _chunks(self, omega: HostArray) -> Iterator[slice]:
        if self.inputs == 0 or self.outputs == 0:
            return
        length = max(1, _WORKING_ENTRIES // (self.inputs * self.outputs))
        for start in range(0, omega.size, length):
            yield slice(start, start + length)

    def _finite(self, omega: HostArray) -> HostArray:
        """Matrices, zero where a pole has rounded onto the point."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = self.matrices(omega)
        values[~np.all(np.isfinite(values), axis=(-2, -1))] = 0.0
        return values

    def _part(self, i: int, omega: HostArray) -> HostArray:
        """One system without its feedthrough."""
        if self.systems[i].order == 0:
            return np.zeros((omega.size, self.outputs, self.inputs))
        if i not in self._schur:
            return self.parts[i].matrices(omega)
        z = np.exp(1j * omega) if self.discrete else 1j * omega
        values = self._schur[i].matrices(z)
        return z[:, None, None] * values if self.systems[i].read_after_update else values

    def _products(self, omega: HostArray) -> tuple[_Columns, _Columns]:
        """G(z_k) v_k and G(z_k)ᴴ v_k for diagonal systems, without forming any G."""
        finite = np.isfinite(omega)

        def summed(D: HostArray, methods: list[_Products]) -> _Columns:
            def apply(vectors: HostArray) -> HostArray:
                image = D @ vectors if np.any(D) else np.zeros((len(D), finite.size), complex)
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    for sign, method in zip(self.signs, methods, strict=True):
                        image[:, finite] += sign * method(omega[finite], vectors[:, finite])
                image[:, ~np.all(np.isfinite(image), axis=0)] = 0.0
                return image

            return apply

        return (
            summed(self.D, [part.products for part in self.parts]),
            summed(adjoint(self.D), [part.adjoint_products for part in self.parts]),
        )


def balanced(system: StateSpace) -> tuple[HostArray, HostArray, HostArray]:
    """(A, B, C) with rows and columns of A of about equal size, by an exact diagonal scaling.

    Without it a badly scaled basis makes ‖A‖, and with it the backward error, arbitrarily large.
    """
    A, (scale, _) = scipy.linalg.matrix_balance(system.A, permute=False, separate=True)
    return A, system.B / scale[:, None], system.C * scale


def _power_iteration(
    forward: _Columns, backward: _Columns, inputs: int, count: int, iterations: int
) -> HostArray:
    """Lower bounds of `count` largest singular values, from products with columns."""
    vectors = np.random.default_rng(0).standard_normal((inputs, count)).astype(np.complex128)
    gains = np.zeros(count)
    for _ in range(iterations):
        norm = np.linalg.norm(vectors, axis=0)
        image = forward(vectors / np.where(norm > 0, norm, 1.0))
        gains = np.maximum(gains, np.linalg.norm(image, axis=0))
        vectors = backward(image)
    return gains


def check_alike(first: System, other: System) -> None:
    """Raise `TimeDomainError` or `ShapeError` unless two systems can be subtracted."""
    if first.time != other.time:
        raise TimeDomainError(
            f"`second` has time {other.time} but `first` has {first.time}; expected the same. "
            "Convert one of them before you compare."
        )
    sizes = [(x.outputs, x.inputs) for x in (first, other)]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            f"`second` has (outputs, inputs) = {sizes[1]} but `first` has {sizes[0]}; expected the "
            "same. Only maps between the same signals have a difference."
        )


def _times(matrix: HostArray, X: HostArray) -> HostArray:
    """Matrix product with complex X; half the work where `matrix` is real."""
    if np.iscomplexobj(matrix):
        return matrix @ X
    return np.asarray((matrix @ X.view(np.float64)).view(np.complex128))


def _points_first(X: HostArray) -> HostArray:
    return np.moveaxis(X, 1, 0)


def _rows_first(X: HostArray) -> HostArray:
    return np.moveaxis(X, 0, 1)


def _columnwise(matrices: HostArray) -> _Columns:
    """Multiply column k by the k-th matrix."""

    def apply(vectors: HostArray) -> HostArray:
        columns = np.moveaxis(vectors, -1, 0)[..., None]
        return np.moveaxis((matrices @ columns)[..., 0], 0, -1)

    return apply
