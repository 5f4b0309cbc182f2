"""Diagonal systems with one input and one output: Hankel singular values to high relative accuracy.

Each channel of an S4D layer is such a system. Its factors come from `equations.cauchy`, where every
entry is a product. However small σ_i is, its relative error is O(n eps), or what half a unit in the last
place of the data changes if that is more; by the route of all other systems it is eps σ₁/σ_i. Where all
values lie above σ₁/n, both come to the same: M is then left to a standard decomposition, of a symmetric
matrix where the system is real (M = Φᵀ diag(c b) Φ). Where not, Jacobi rotations take it.

Cost O(n³): a tenth of that of the other route where values are close, with rotations up to twice as much at 64 stored
states and up to five times as much at 256. Larger systems take the other route.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.cauchy import CauchyFactors, cauchy_factors, nearly_real
from ssmreduce.equations.jacobi import jacobi_right_singular, jacobi_singular_values
from ssmreduce.equations.stability import check_stable
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

LARGEST_ROTATED = 512
"""Largest real matrix given to Jacobi rotations: 256 stored states, 128 if poles are nearly real."""


def single_channel(system: System) -> CauchyFactors | None:
    """Factors of a diagonal system with one input and one output; None for others and for large ones.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    """
    if not isinstance(system, DiagonalStateSpace) or system.inputs != 1 or system.outputs != 1:
        return None
    if system.order > LARGEST_ROTATED // 2:
        return None
    host = system.to_host()
    check_stable(host.eigenvalues, system.time, log_eigenvalues=host.log_eigenvalues)
    large = system.real_output and system.order > LARGEST_ROTATED // 4
    if large and np.any(nearly_real(host.eigenvalues, host.log_eigenvalues, system.time)):
        return None
    return _factors(host)


def right_singular(factors: CauchyFactors) -> tuple[HostArray, HostArray]:
    """Singular values of M to high relative accuracy, descending, and its right singular vectors.

    The vectors of a complex M come from a standard decomposition: they are orthonormal to eps, and
    right to eps σ₁ over the distance of neighbouring values.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a factor is not finite or the rotations do not converge.
    """
    if not (np.all(np.isfinite(factors.Z)) and np.all(np.isfinite(factors.Y))):
        raise np.linalg.LinAlgError("Gramian factors are not finite")
    core, M = factors.core, factors.M
    k = core.shape[-1]
    values, V = np.zeros(core.shape[:-1]), np.zeros(M.shape, dtype=M.dtype)
    if k == 0:
        return values, V
    # M = D K D with K well conditioned: its columns show how far the values spread.
    columns = np.abs(core).max(axis=-2)
    graded = columns.min(axis=-1) * k < columns.max(axis=-1)
    if not np.all(graded) or np.iscomplexobj(core):
        plain = np.ones_like(graded) if np.iscomplexobj(core) else ~graded
        values[plain], V[plain] = _standard(core[plain], M[plain])
        graded |= values[..., -1] * k < values[..., 0]
    for index in np.argwhere(graded):
        at = tuple(index)
        if np.iscomplexobj(core):
            values[at] = jacobi_singular_values(core[at])
        else:
            values[at], V[at] = jacobi_right_singular(core[at])
    return values, V


def _standard(core: HostArray, M: HostArray) -> tuple[HostArray, HostArray]:
    """Singular values and right singular vectors, to n eps σ₁."""
    if np.iscomplexobj(core):
        _, values, Vh = np.linalg.svd(M)
        return values[..., : core.shape[-1]], adjoint(Vh)
    eigenvalues, V = np.linalg.eigh(M)
    order = np.argsort(-np.abs(eigenvalues), axis=-1, kind="stable")
    values = np.abs(np.take_along_axis(eigenvalues, order, axis=-1))
    return values, np.take_along_axis(V, order[..., None, :], axis=-1)


def _factors(host: DiagonalStateSpace) -> CauchyFactors:
    return cauchy_factors(
        host.eigenvalues,
        host.log_eigenvalues,
        host.B[..., 0],
        host.C[..., 0, :],
        host.time,
        real_output=host.real_output,
    )
