"""Transfer functions at many points of the stability boundary at once: `StatePart`.

G(z) - D = C (z I - A)⁻¹ B, times z where the system reads after its update. For a diagonal A a
weighted product per point, O(n p m). For a dense A one LU per point costs O(n³); from a few points
on it pays to take the Schur form A = U T Uᴴ once, and to solve (z_k I - T) x_k = r_k of all points
together: O(n²) per point and right hand side, most of it in matrix products. Both are
backward stable in norm, an error of c·n·ε·‖A‖ in A; close to a pole it shows.

Reference: Laub, Efficient multivariable frequency response computations, IEEE TAC 26 (1981).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_single
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_WORKING_ENTRIES = 2**22
"""Complex numbers held at once while a transfer function is evaluated: 64 MiB."""

_SCHUR_POINTS = 16
"""From this many points on the Schur form pays: it costs about as much as 10 to 20 LU solves."""

_BLOCK = 32
"""Rows that are eliminated one by one before a matrix product carries them into the rest."""


class StatePart:
    """The transfer function without feedthrough, at many points of the stability boundary at once.

    As matrices, or as products with one vector per point: those cost two matrix products for all
    points of a diagonal system together.
    """

    def __init__(self, system: System) -> None:
        check_single(system)
        self.system = system.to_host()
        self.discrete = isinstance(system.time, Discrete)
        self._schur: tuple[HostArray, HostArray] | None = None

    def matrices(self, omega: HostArray) -> HostArray:
        """Return G(z_k), shape (K, p, m)."""
        host, z = self.system, self._points(omega)
        triangular = self._use_schur(z.size)
        dense = isinstance(host, StateSpace) and not triangular
        width = host.order if dense else max(1, min(host.inputs, host.outputs))
        length = max(1, _WORKING_ENTRIES // max(1, host.order * width))
        blocks = [self._block(z[i : i + length]) for i in range(0, max(z.size, 1), length)]
        return np.asarray(self._advanced(z)[:, None, None] * np.concatenate(blocks))

    def products(self, omega: HostArray, vectors: HostArray) -> HostArray:
        """Return G(z_k) v_k as columns, shape (p, K), for columns v_k, shape (m, K)."""
        host, z = self.system, self._points(omega)
        return self._advanced(z) * self._product(z, vectors, host.B, host.C, mirrored=False)

    def adjoint_products(self, omega: HostArray, vectors: HostArray) -> HostArray:
        """Return G(z_k)ᴴ v_k as columns, shape (m, K), for columns v_k, shape (p, K)."""
        host, z = self.system, self._points(omega)
        B, C = adjoint(host.C), adjoint(host.B)
        return self._advanced(z).conj() * self._product(z.conj(), vectors, B, C, mirrored=True)

    def _use_schur(self, points: int) -> bool:
        """Whether to work with the Schur form, which is kept once it was computed."""
        host = self.system
        if not isinstance(host, StateSpace) or host.order < 2:
            return False
        if self._schur is None and points >= _SCHUR_POINTS:
            triangle, vectors = scipy.linalg.schur(host.A, output="complex")
            self._schur = triangle, vectors
        return self._schur is not None

    def _block(self, z: HostArray) -> HostArray:
        host = self.system
        if isinstance(host, StateSpace):
            if self._schur is not None:
                return self._triangular_block(host, *self._schur, z)
            shifted = z[:, None, None] * np.eye(host.order) - host.A
            return np.asarray(host.C @ np.linalg.solve(shifted, host.B[None]))
        value = _resolvent(host, z)
        if host.real_output:
            value = 0.5 * (value + _resolvent(host, z.conj()).conj())
        return value

    def _triangular_block(
        self, host: StateSpace, T: HostArray, U: HostArray, z: HostArray
    ) -> HostArray:
        """All columns of B, or all rows of C if those are fewer, at all points of z."""
        flipped = host.outputs < host.inputs
        right = adjoint(host.C @ U) if flipped else adjoint(U) @ host.B
        points = z.conj() if flipped else z
        triangle = _reversed_adjoint(T) if flipped else T
        right = right[::-1] if flipped else right
        columns = np.repeat(right[:, None, :], z.size, axis=1).reshape(len(T), -1)
        solved = _solve_shifted(triangle, np.repeat(points, right.shape[1]), columns)
        solved = np.moveaxis(solved.reshape(len(T), z.size, -1), 1, 0)
        if flipped:
            return np.asarray(adjoint(solved[:, ::-1]) @ (adjoint(U) @ host.B))
        return np.asarray((host.C @ U) @ solved)

    def _points(self, omega: HostArray) -> HostArray:
        omega = np.asarray(omega, dtype=np.float64)
        return np.asarray(np.exp(1j * omega) if self.discrete else 1j * omega)

    def _advanced(self, z: HostArray) -> HostArray:
        return z if self.system.read_after_update else np.ones_like(z)

    def _product(
        self, z: HostArray, vectors: HostArray, B: HostArray, C: HostArray, *, mirrored: bool
    ) -> HostArray:
        """C (z - A)⁻¹ B v for one vector per point; with Aᴴ where `mirrored`."""
        host = self.system
        if isinstance(host, StateSpace):
            if self._use_schur(z.size) and self._schur is not None:
                T, U = self._schur
                driven = adjoint(U) @ (B @ vectors)
                if mirrored:
                    return np.asarray(
                        C @ (U @ _solve_shifted(_reversed_adjoint(T), z, driven[::-1])[::-1])
                    )
                return np.asarray(C @ (U @ _solve_shifted(T, z, driven)))
            A = adjoint(host.A) if mirrored else host.A
            shifted = z[:, None, None] * np.eye(host.order) - A
            driven = np.moveaxis(B @ vectors, -1, 0)[..., None]
            return np.asarray(C @ np.moveaxis(np.linalg.solve(shifted, driven)[..., 0], 0, -1))
        poles = (host.eigenvalues.conj() if mirrored else host.eigenvalues)[:, None]
        value = C @ ((B @ vectors) / (z - poles))
        if host.real_output:
            other = C.conj() @ ((B.conj() @ vectors) / (z - poles.conj()))
            value = 0.5 * (value + other)
        return np.asarray(value)


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


def _reversed_adjoint(T: HostArray) -> HostArray:
    """Tᴴ with rows and columns in reversed order: upper triangular again."""
    return np.ascontiguousarray(adjoint(T)[::-1, ::-1])


def _resolvent(host: DiagonalStateSpace, z: HostArray) -> HostArray:
    """C (z - Λ)⁻¹ B at every point; the smaller of B and C carries the points."""
    distance = z[:, None] - host.eigenvalues
    if host.outputs <= host.inputs:
        return np.asarray((host.C / distance[:, None, :]) @ host.B)
    return np.asarray(host.C @ (host.B / distance[:, :, None]))
