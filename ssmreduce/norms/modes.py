"""Dense systems by their eigenvectors: the gain at hundreds of frequencies for O(n p m) each.

A = V Λ V⁻¹ gives C (z - A)⁻¹ B = (C V) (z - Λ)⁻¹ (V⁻¹ B), right to about eps cond(V) ‖A‖ ‖(z - A)⁻¹‖. That is good
enough to *search* for a peak, whose height is then evaluated with A itself, and to begin a solution that
is refined. Where cond(V) is too large, near a defective A, there are no such modes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ssmreduce._lapack import frobenius_norm
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, is_complex
from ssmreduce.systems.linear_solve import solve_stacked
from ssmreduce.systems.state_space import StateSpace

_CONDITION = 2.0**20
"""Largest cond(V) in the Frobenius norm: a search then knows gains to 1e-9 of what they add up from."""


class Modes:
    """Poles of a system on the host, and its modes where their vectors are well-conditioned."""

    def __init__(self, system: System) -> None:
        self.system = system

    @property
    def poles(self) -> HostArray:
        """All stored poles."""
        if isinstance(self.system, DiagonalStateSpace):
            return np.asarray(self.system.poles())
        return self._eigen[0]

    @cached_property
    def known(self) -> bool:
        """Whether the system is diagonal, or can be made so."""
        return isinstance(self.system, DiagonalStateSpace) or self._inverse is not None

    def solve(self, z: HostArray, right: HostArray, *, dual: bool) -> HostArray:
        """Solutions X_k of (z_k - A) X_k = R_k, or with Aᴴ if `dual`, for R of shape (n, K, w)."""
        eigenvalues, V = self._eigen
        inverse = self._inverse
        if inverse is None:
            return self._eliminated(z, right, dual=dual)
        if dual:
            eigenvalues, V, inverse = eigenvalues.conj(), adjoint(inverse), adjoint(V)
        n, count, width = right.shape
        inner = (inverse @ right.reshape(n, -1)).reshape(n, count, width)
        inner = inner / (z - eigenvalues[:, None])[..., None]
        return np.asarray(V @ inner.reshape(n, -1)).reshape(n, count, width)

    def _eliminated(self, z: HostArray, right: HostArray, *, dual: bool) -> HostArray:
        A = adjoint(self.system.A) if dual else self.system.A
        solutions = [
            solve_stacked((point * np.eye(len(A)) - A)[None], right[None, :, k])[0]
            for k, point in enumerate(z)
        ]
        return np.stack(solutions, axis=1)

    def diagonalised(self) -> System:
        """The same map by its modes; the system itself where it has no good ones."""
        system = self.system
        if not isinstance(system, StateSpace) or system.order == 0 or self._inverse is None:
            return system
        eigenvalues, V = self._eigen
        B, C = self._inverse @ system.B, system.C @ V
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

    def sensitivity(self, z: HostArray) -> HostArray:
        """‖ |C R(z_k)| |A| |R(z_k) B| ‖ for R(z) = (z - A)⁻¹: what a relative change of every a_ij may move.

        The units of states do not matter to it.
        """
        system = self.system
        if system.order == 0:
            return np.zeros(z.size)
        if isinstance(system, DiagonalStateSpace):
            distance = np.abs(z[:, None] - system.eigenvalues)
            if system.real_output:
                other = np.abs(z[:, None] - system.eigenvalues.conj())
                distance = np.minimum(distance, other)
            B, C = np.linalg.norm(system.B, axis=1), np.linalg.norm(system.C, axis=0)
            return np.asarray(np.sum(C * np.abs(system.eigenvalues) * B / distance**2, axis=1))
        seen = []
        for dual, right in ((False, system.B), (True, adjoint(system.C))):
            points = z.conj() if dual else z
            every = np.broadcast_to(right[:, None, :], (len(right), z.size, right.shape[1]))
            states = self.solve(points, every, dual=dual)
            seen.append(np.linalg.norm(states, axis=2))
        return np.sum(seen[1] * (np.abs(system.A) @ seen[0]), axis=0)

    @cached_property
    def _eigen(self) -> tuple[HostArray, HostArray]:
        assert isinstance(self.system, StateSpace)
        eigenvalues, vectors = np.linalg.eig(self.system.A)
        return eigenvalues.astype(np.complex128), vectors

    @cached_property
    def _inverse(self) -> HostArray | None:
        """V⁻¹, or None where V is nearly singular."""
        _, vectors = self._eigen
        try:
            inverse = np.linalg.inv(vectors)
        except np.linalg.LinAlgError:
            return None
        bad = not frobenius_norm(inverse) * frobenius_norm(vectors) <= _CONDITION
        return None if bad else inverse
