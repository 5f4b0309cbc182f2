"""Transfer functions at many points of the stability boundary at once: `state_part`.

G(z) - D = C (z I - A)⁻¹ B, times z where the system reads after its update. For a diagonal A a
weighted product per point, O(n p m). For a dense A one LU per point costs O(n³); from a few points
on it pays to take the Schur form A = U T Uᴴ once, and to solve (z_k I - T) x_k = r_k of all points
together: O(n²) per point and right hand side, most of it in matrix products.

The Schur form is exact for a matrix within c·ε·‖A‖ of A. Where the entries of A have a meaning of their own
(a chain of filter sections) that can be too much: all digits were lost on a Butterworth filter of order 20
that LU keeps to 1e-13. So each solution is corrected once with its residual from A itself, and where the
correction is larger than √ε, so that its square would show, the point is solved again by LU.

References: Laub, Efficient multivariable frequency response computations, IEEE TAC 26 (1981); Skeel,
Iterative refinement implies numerical stability for Gaussian elimination, Math. Comp. 35 (1980).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import mixed_product
from ssmreduce._schur import SchurForm
from ssmreduce._state_units import parts_of
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.linear_solve import solve_stacked
from ssmreduce.systems.state_space import StateSpace, in_balanced_units

_WORKING_ENTRIES = 2**22
"""Complex numbers held at once while a transfer function is evaluated: 64 MiB."""

_SCHUR_POINTS = 16
"""From this many points on the Schur form pays: it costs about as much as 10 to 20 LU solves."""

_SCHUR_ORDER = 32
"""Below this order LU is fast enough."""

_CORRECTION = float(np.sqrt(np.finfo(np.float64).eps))
"""Largest relative correction of a solution that is accepted: one more would change it by its square."""

_BLOCK = 32
"""Rows that are eliminated one by one before a matrix product carries them into the rest."""

Product = Callable[[HostArray], HostArray]
"""A product with one column per point."""


@dataclass(frozen=True, eq=False)
class DiagonalPart:
    """The transfer function of a diagonal system without feedthrough, at many points of the boundary at once.

    As matrices, or as products with one vector per point: those cost two matrix products for all points
    together.
    """

    system: DiagonalStateSpace

    def matrices(self, z: HostArray) -> HostArray:
        """Return G(z_k), shape (K, p, m): C (z - Λ)⁻¹ B, or its real-output form.

        The smaller of B and C carries the points: a stack of matrices times another one is one product.
        """
        host = self.system
        left, right = host.C, host.B
        mirrored = len(left) > right.shape[1]
        if mirrored:
            left, right = np.swapaxes(right, 0, 1), np.swapaxes(left, 0, 1)
        rows, n = left.shape
        found = np.empty((z.size, rows, right.shape[1]), dtype=np.complex128)
        length = max(1, _WORKING_ENTRIES // max(1, left.size))
        for start in range(0, z.size, length):
            points = z[start : start + length]
            count = points.size
            if host.real_output:
                points = np.concatenate([points, points.conj()])
            resolvent = 1.0 / (points[:, None] - host.eigenvalues)
            stacked = (left * resolvent[:, None, :]).reshape(points.size * rows, n)
            values = (stacked @ right).reshape(points.size, rows, right.shape[1])
            if host.real_output:
                values = 0.5 * (values[:count] + values[count:].conj())
            found[start : start + count] = values
        found = np.swapaxes(found, 1, 2) if mirrored else found
        return np.asarray(z[:, None, None] * found if host.read_after_update else found)

    def products(self, z: HostArray) -> tuple[Product, Product]:
        """Return v -> G(z_k) v_k and v -> G(z_k)ᴴ v_k, for columns v_k, shape (m, K) and (p, K)."""
        host = self.system
        return _diagonal_products(host, z, z if host.read_after_update else np.ones_like(z))


class DensePart:
    """The same of a dense system, which is put in balanced units of its states."""

    def __init__(self, host: StateSpace) -> None:
        self.system = _in_triangular_order(in_balanced_units(host))
        self._schur: SchurForm | None = None

    def matrices(self, z: HostArray) -> HostArray:
        """Return G(z_k), shape (K, p, m)."""
        host = self.system
        if host.inputs <= host.outputs:
            right = np.broadcast_to(host.B[:, None, :], (host.order, z.size, host.inputs))
            values = self._dense(z, host.A, right, host.C, mirrored=False)
        else:
            right = adjoint(host.C)
            right = np.broadcast_to(right[:, None, :], (host.order, z.size, host.outputs))
            values = adjoint(
                self._dense(z.conj(), adjoint(host.A), right, adjoint(host.B), mirrored=True)
            )
        return np.asarray(z[:, None, None] * values if host.read_after_update else values)

    def products(self, z: HostArray) -> tuple[Product, Product]:
        """Return v -> G(z_k) v_k and v -> G(z_k)ᴴ v_k, for columns v_k, shape (m, K) and (p, K)."""
        host = self.system

        def forward(vectors: HostArray) -> HostArray:
            right = (host.B @ vectors)[..., None]
            values = self._dense(z, host.A, right, host.C, mirrored=False)
            return self._advanced(z) * np.moveaxis(values[..., 0], 0, -1)

        def backward(vectors: HostArray) -> HostArray:
            right = (adjoint(host.C) @ vectors)[..., None]
            values = self._dense(z.conj(), adjoint(host.A), right, adjoint(host.B), mirrored=True)
            return self._advanced(z).conj() * np.moveaxis(values[..., 0], 0, -1)

        return forward, backward

    def _advanced(self, z: HostArray) -> HostArray:
        return z if self.system.read_after_update else np.ones_like(z)

    def _dense(
        self, z: HostArray, A: HostArray, right: HostArray, left: HostArray, *, mirrored: bool
    ) -> HostArray:
        """L (z_k - A)⁻¹ R_k, shape (K, q, w), for R of shape (n, K, w); A is the adjoint if `mirrored`."""
        if self._schur is None and z.size >= _SCHUR_POINTS and len(A) >= _SCHUR_ORDER:
            self._schur = SchurForm.of_balanced(self.system.A.astype(np.complex128))
        if self._schur is None:
            return _by_elimination(z, A, right, left)
        T, U = self._schur.triangle, self._schur.basis
        if mirrored:  # Aᴴ = (U J) (J Tᴴ J) (U J)ᴴ with J the reversal: upper triangular again
            T, U = np.ascontiguousarray(adjoint(T)[::-1, ::-1]), U[:, ::-1]
        values = np.empty((z.size, len(left), right.shape[2]), dtype=np.complex128)
        done = 0
        for points in _chunks(z, max(1, right.shape[0] * right.shape[2])):
            part = slice(done, done + points.size)
            done += points.size
            values[part], corrections = _by_schur(points, A, T, U, right[:, part], left)
            doubtful = np.flatnonzero(~(corrections <= _CORRECTION))
            if doubtful.size:
                again = right[:, part][:, doubtful]
                values[part][doubtful] = _by_elimination(points[doubtful], A, again, left)
        return values


def state_part(host: System) -> DiagonalPart | DensePart:
    """The transfer function of a system on the host without its feedthrough."""
    return DiagonalPart(host) if isinstance(host, DiagonalStateSpace) else DensePart(host)


def _in_triangular_order(system: StateSpace) -> StateSpace:
    """The same system with A upper triangular, if an order of the states makes it so.

    Elimination is then substitution, without pivots that mix rates.
    """
    n = system.order
    if n < 2 or np.count_nonzero(system.A) > n * (n + 1) // 2:
        return system
    order, parts = parts_of(system.A)
    if len(parts) < n or np.all(order[1:] > order[:-1]):
        return system
    A, B, C = system.A[np.ix_(order, order)], system.B[order], system.C[:, order]
    return system.replace(A=A, B=B, C=C)


def _chunks(z: HostArray, entries: int) -> list[HostArray]:
    """At least one piece, each of at most `_WORKING_ENTRIES` numbers at `entries` per point."""
    length = max(1, _WORKING_ENTRIES // entries)
    return [z[i : i + length] for i in range(0, max(z.size, 1), length)]


def _by_elimination(z: HostArray, A: HostArray, right: HostArray, left: HostArray) -> HostArray:
    values, done = [], 0
    for points in _chunks(z, max(1, A.size)):
        columns = np.moveaxis(right[:, done : done + points.size], 1, 0)
        done += points.size
        shifted = points[:, None, None] * np.eye(len(A)) - A
        values.append(left @ solve_stacked(shifted, columns))
    return np.concatenate(values)


def _by_schur(
    z: HostArray, A: HostArray, T: HostArray, U: HostArray, right: HostArray, left: HostArray
) -> tuple[HostArray, HostArray]:
    """Values after one correction, and how large it was relative to the value at each point."""
    n, count, width = right.shape
    columns, points = right.reshape(n, -1), np.repeat(z, width)
    states = U @ _solve_shifted(T, points, adjoint(U) @ columns)
    residual = columns - (points * states - A @ states)
    correction = U @ _solve_shifted(T, points, adjoint(U) @ residual)
    values = (left @ states).reshape(-1, count, width)
    changes = (left @ correction).reshape(-1, count, width)
    size = np.linalg.norm(values, axis=(0, 2))
    change = np.linalg.norm(changes, axis=(0, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(change == 0.0, 0.0, change / size)
    return np.moveaxis(values + changes, 1, 0), relative


def _solve_shifted(T: HostArray, z: HostArray, right: HostArray) -> HostArray:
    """Columns x_k of (z_k I - T) x_k = r_k for an upper triangular T, shape (n, K).

    Substitution from the last row up, all columns at once; after each block of rows one matrix
    product carries it into the rows above.
    """
    solved = right.astype(np.complex128)
    for stop in range(len(T), 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        for i in range(stop - 1, start - 1, -1):
            if i + 1 < stop:
                solved[i] += T[i, i + 1 : stop] @ solved[i + 1 : stop]
            solved[i] /= z - T[i, i]
        solved[:start] += T[:start, start:stop] @ solved[start:stop]
    return solved


def _diagonal_products(
    host: DiagonalStateSpace, z: HostArray, factor: HostArray
) -> tuple[Product, Product]:
    """Products of a diagonal system, in real factors where its output is real: half the work.

    That of Re(C x) is [Re C, Im C] [[s, t], [t, -s]] [Re B; Im B], where s and -i t are half the sum and half
    the difference of 1/(z - λ) and 1/(z - conj(λ)).
    """
    n, B, C = host.order, host.B, host.C
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        one = factor / (z - host.eigenvalues[:, None])
        if host.real_output:
            other = factor / (z - host.eigenvalues.conj()[:, None])
            s, t = 0.5 * (one + other), 0.5j * (one - other)
            B = np.concatenate([B.real, B.imag])
            C = np.concatenate([C.real, C.imag], axis=1)

    def solved(states: HostArray) -> HostArray:
        if not host.real_output:
            return np.asarray(one * states)
        real, imaginary = states[:n], states[n:]
        return np.concatenate([s * real + t * imaginary, t * real - s * imaginary])

    def forward(vectors: HostArray) -> HostArray:
        return mixed_product(C, solved(mixed_product(B, vectors)))

    def backward(vectors: HostArray) -> HostArray:
        # Conjugate of the transposed product; what is in the middle is symmetric.
        states = solved(mixed_product(np.swapaxes(C, 0, 1), vectors.conj()))
        return np.asarray(np.conj(mixed_product(np.swapaxes(B, 0, 1), states)))

    return forward, backward
