"""Dense systems by their eigenvectors: the gain at hundreds of frequencies for O(n p m) each.

A = V Λ V⁻¹ gives C (z - A)⁻¹ B = (C V) (z - Λ)⁻¹ (V⁻¹ B), right to about eps cond(V) ‖A‖ ‖(z - A)⁻¹‖. That is
good enough to *search* for a peak, whose height is then evaluated with A itself, and to begin a solution
that is refined. Where cond(V) is too large, near a defective A, there are no such modes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import frobenius_norm
from ssmreduce._poles import eigenvectors_of
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, is_complex
from ssmreduce.systems.linear_solve import solve_stacked
from ssmreduce.systems.transfer import DensePart, DiagonalPart

_CONDITION = 2.0**20
"""Largest cond(V) in the Frobenius norm: gains are then accurate to 1e-9 of the sum of their terms."""

_EPS = float(np.finfo(np.float64).eps)

_CORRECTED = _EPS**0.25
"""Relative error of a solution that three corrections make negligible: each multiplies it once more."""

_LOST = 8.0
"""c of c eps cond(V) ‖A‖, which modes are off by."""

_POINTS = 64
"""Points at once by the modes."""


class DiagonalModes(DiagonalPart):
    """Those of a diagonal system on the host: its own."""

    @property
    def poles(self) -> HostArray:
        """Eigenvalues of the system."""
        poles: HostArray = self.system.eigenvalues
        return poles

    def diagonalised(self) -> System:
        """The system itself."""
        return self.system

    def moved(self, z: HostArray, *, by_poles: bool = False) -> HostArray:
        """Σ ‖c_i‖ ‖b_i‖ / |z_k - λ_i|: c n eps times this is what rounding makes of G(z_k), a sum of terms.

        With `by_poles` what a relative change of every λ_i may move, Σ ‖c_i‖ |λ_i| ‖b_i‖ / |z_k - λ_i|².
        """
        poles = self.system.eigenvalues
        distance = np.abs(z[:, None] - poles)
        if self.system.real_output:
            distance = np.minimum(distance, np.abs(z[:, None] - poles.conj()))
        B, C = np.linalg.norm(self.system.B, axis=1), np.linalg.norm(self.system.C, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = C * np.abs(poles) * B / distance**2 if by_poles else C * B / distance
            return np.asarray(np.sum(terms, axis=1))


class DenseModes(DensePart):
    """Poles of a dense system on the host, and its modes where their vectors are well-conditioned."""

    def matrices(self, z: HostArray) -> HostArray:
        """Return G(z_k), shape (K, p, m), by modes where they serve."""
        system = self.system
        if not system.order or not self.known:
            return super().matrices(z)
        values = np.empty((z.size, system.outputs, system.inputs), dtype=np.complex128)
        served = self.serve(z)
        at = np.flatnonzero(served)
        for some in (at[k : k + _POINTS] for k in range(0, at.size, _POINTS)):
            values[some] = self.values(z[some])
        if system.read_after_update:
            values *= z[:, None, None]
        if at.size < z.size:
            values[~served] = super().matrices(z[~served])
        return values

    @property
    def poles(self) -> HostArray:
        """Eigenvalues of A."""
        return self._eigen[0]

    @property
    def known(self) -> bool:
        """Whether the eigenvectors serve."""
        return self._inverse is not None

    def diagonalised(self) -> System:
        """The same map by its modes; the system itself where they do not serve."""
        system, inverse = self.system, self._inverse
        if inverse is None or system.order == 0:
            return system
        eigenvalues, V = self._eigen
        B, C = inverse @ system.B, system.C @ V
        real = not is_complex(system)
        if real:
            # One of each pair: y = Re(C x).
            kept = eigenvalues.imag >= 0.0
            share = np.where(eigenvalues[kept].imag > 0.0, 2.0, 1.0)
            eigenvalues, B, C = eigenvalues[kept], B[kept], share * C[:, kept]
        return DiagonalStateSpace(
            eigenvalues,
            B.astype(np.complex128),
            C.astype(np.complex128),
            system.D,
            time=system.time,
            real_output=real,
            read_after_update=system.read_after_update,
        )

    def serve(self, z: HostArray) -> HostArray:
        """Whether few corrections make solutions by modes right, for every point."""
        return np.asarray(self._error(z) <= _CORRECTED)

    def solver(self, z: HostArray, *, dual: bool) -> Callable[[HostArray], HostArray]:
        """From R to solutions X_k of (z_k - A) X_k = R_k, or with Aᴴ if `dual`, for R of shape (n, K, w).

        By modes where a few corrections make them right, else by elimination.
        """
        by_modes = self.serve(z.conj() if dual else z)
        if by_modes.all():
            return lambda right: self._by_modes(z, right, dual=dual)
        return lambda right: self._solve(z, right, by_modes, dual=dual)

    def _solve(
        self, z: HostArray, right: HostArray, by_modes: HostArray, *, dual: bool
    ) -> HostArray:
        solved = np.empty(right.shape, dtype=np.complex128)
        solved[:, by_modes] = self._by_modes(z[by_modes], right[:, by_modes], dual=dual)
        A = adjoint(self.system.A) if dual else self.system.A
        for k in np.flatnonzero(~by_modes):
            shifted = (z[k] * np.eye(len(A)) - A)[None]
            solved[:, k] = solve_stacked(shifted, right[None, :, k])[0]
        return solved

    def _by_modes(self, z: HostArray, right: HostArray, *, dual: bool) -> HostArray:
        (eigenvalues, V), inverse = self._eigen, self._inverse
        if inverse is None:
            return np.full(right.shape, np.nan, dtype=np.complex128)
        if dual:
            eigenvalues, V, inverse = eigenvalues.conj(), adjoint(inverse), adjoint(V)
        inner = (inverse @ right.reshape(len(V), -1)).reshape(right.shape)
        inner = inner / (z - eigenvalues[:, None])[..., None]
        return np.asarray(V @ inner.reshape(len(V), -1)).reshape(right.shape)

    def values(self, z: HostArray) -> HostArray:
        """C (z_k - A)⁻¹ B, shape (K, p, m), where modes serve; solutions are corrected with A itself."""
        system = self.system
        n, width = system.B.shape
        every = np.repeat(system.B[:, None, :], z.size, axis=1)
        error = left = max(float(self._error(z).max(initial=0.0)), _EPS**0.5)
        states = self._by_modes(z, every, dual=False)
        while left > _EPS:
            image = (system.A @ states.reshape(n, -1)).reshape(states.shape)
            states += self._by_modes(z, every - (z[:, None] * states - image), dual=False)
            left *= error
        outputs = (system.C @ states.reshape(n, -1)).reshape(-1, z.size, width)
        return np.moveaxis(outputs, 1, 0)

    def moved(self, z: HostArray, *, by_poles: bool = False) -> HostArray:
        """‖ |C R| (|A| + |z_k|) |R B| ‖, R = (z_k - A)⁻¹: c n eps times this is what rounding makes of G.

        With `by_poles` what a relative change of every a_ij may move, ‖ |C R| |A| |R B| ‖. The units of
        states do not matter to it.
        """
        system, seen = self.system, []
        if system.order == 0:
            return np.zeros(z.size)
        for dual, right in ((False, system.B), (True, adjoint(system.C))):
            points = z.conj() if dual else z
            every = np.repeat(right[:, None, :], z.size, axis=1)
            seen.append(np.linalg.norm(self.solver(points, dual=dual)(every), axis=2))
        diagonal = np.zeros(z.size) if by_poles else np.abs(z)
        moved = np.abs(system.A) @ seen[0] + diagonal * seen[0]
        return np.asarray(np.sum(seen[1] * moved, axis=0))

    @cached_property
    def _eigen(self) -> tuple[HostArray, HostArray]:
        eigenvalues, vectors = eigenvectors_of(self.system.A)
        return eigenvalues.astype(np.complex128), vectors

    def _error(self, z: HostArray) -> HostArray:
        """What modes lose of a solution: c eps cond(V) ‖A‖ over the distance of z from the poles."""
        distance = np.abs(z - self.poles[:, None]).min(axis=0, initial=np.inf)
        with np.errstate(divide="ignore"):
            return np.asarray(self._lost / distance)

    @cached_property
    def _lost(self) -> float:
        inverse = self._inverse
        if inverse is None:
            return np.inf
        condition = frobenius_norm(inverse) * frobenius_norm(self._eigen[1])
        return _LOST * _EPS * condition * frobenius_norm(self.system.A)

    @cached_property
    def _inverse(self) -> HostArray | None:
        """V⁻¹, or None where V is nearly singular."""
        _, vectors = self._eigen
        try:
            inverse = np.linalg.inv(vectors)
        except np.linalg.LinAlgError:
            return None
        condition = frobenius_norm(inverse) * frobenius_norm(vectors)
        return inverse if condition <= _CONDITION else None
