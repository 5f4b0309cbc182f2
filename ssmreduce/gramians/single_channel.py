"""Diagonal systems with one input and one output: Hankel singular values to high relative accuracy.

Each channel of an S4D layer is such a system. Its factors come from `equations.cauchy`, where every
entry is a product, as does M = Φᵀ diag(c b) Φ = D K D, symmetric, with D diagonal and K well
conditioned. However small σ_i is, its relative error is O(n eps), or what half a unit in the last place of
the data changes if that is more; by the route of all other systems it is eps σ₁/σ_i. A standard
decomposition of M does that for values down to σ₁/4n, one of its inverse for those up to 4n times the
least. Where that leaves a gap, Jacobi rotations take M.

Cost O(n³): a tenth of that of the other route where values are close; with rotations up to twice as much at
64 stored states and up to five times as much at 256. Larger systems take the other route.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.equations.cauchy import CauchyFactors, cauchy_factors, nearly_real
from ssmreduce.equations.jacobi import jacobi_right_singular, jacobi_singular_values
from ssmreduce.equations.stability import check_stable
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

LARGEST_ROTATED = 512
"""Largest real matrix given to Jacobi rotations: 256 stored states, 128 if poles are nearly real."""

_REACH = 4.0
"""A value above σ₁/(4 k) is taken from M of order k: an error of eps σ₁ is 4 k eps of it at most."""


def single_channel(system: System) -> CauchyFactors | None:
    """Factors of a diagonal system with one input and one output; None for others and for large ones.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    """
    ports = system.B.shape[-1], system.C.shape[-2]
    if not isinstance(system, DiagonalStateSpace) or ports != (1, 1):
        return None
    if system.order > LARGEST_ROTATED // 2:
        return None
    host = system.to_host()
    check_stable(host.eigenvalues, system.time, log_eigenvalues=host.log_eigenvalues)
    large = system.real_output and system.order > LARGEST_ROTATED // 4
    if large and np.any(nearly_real(host.eigenvalues, host.log_eigenvalues, system.time)):
        return None
    return _factors(host)


def is_channel_batch(system: System) -> bool:
    """Whether `system` is a batch of diagonal systems with one input and one output, none of them large."""
    return (
        isinstance(system, DiagonalStateSpace)
        and bool(system.batch_shape)
        and system.inputs == system.outputs == 1
        and 0 < system.order <= LARGEST_ROTATED // 4
    )


def decompose_channels(
    batch: DiagonalStateSpace,
) -> list[tuple[CauchyFactors, HostArray, HostArray]]:
    """Factors, singular values and right singular vectors of each system along one batch axis.

    Systems whose factors have the same shape share every step; each comes out as it does alone.

    Raises
    ------
    UnstableSystemError, NoConvergenceError, numpy.linalg.LinAlgError
        If that is so for any of them.
    """
    parts: list[Any] = [None] * batch.batch_shape[0]
    for alike, own in _channel_factors(batch):
        values, V = right_singular(own)
        for at, k in enumerate(alike):
            parts[k] = own[at], values[at], V[at]
    return parts


def channel_gains(batch: DiagonalStateSpace) -> HostArray:
    """‖C Z‖ of each system along one batch axis; raises what `decompose_channels` does."""
    gains = np.zeros(batch.batch_shape[0])
    _, C = batch.ports()
    for alike, own in _channel_factors(batch):
        _check_finite(own)
        gains[alike] = np.linalg.norm(C[alike] @ own.Z, axis=(-2, -1))
    return gains


def _channel_factors(batch: DiagonalStateSpace) -> Iterator[tuple[HostArray, CauchyFactors]]:
    """Positions of the systems whose factors have the same shape, and these factors."""
    host = batch.to_host()
    logarithms = host.log_eigenvalues
    check_stable(host.eigenvalues, host.time, log_eigenvalues=logarithms)
    near = np.any(nearly_real(host.eigenvalues, logarithms, host.time), axis=-1)
    near &= host.real_output
    for members in (np.flatnonzero(~near), np.flatnonzero(near)):
        if members.size == 0:
            continue
        factors = _factors(host[members])
        for count in np.unique(factors.count):
            alike = members[factors.count == count]
            yield alike, factors if alike.size == members.size else _factors(host[alike])


def right_singular(factors: CauchyFactors) -> tuple[HostArray, HostArray]:
    """Singular values of M to high relative accuracy, descending, and its right singular vectors.

    The vectors of a complex M come from a standard decomposition: they are orthonormal to eps, and
    right to eps σ₁ over the distance of neighbouring values.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a factor is not finite or the rotations do not converge.
    """
    _check_finite(factors)
    if factors.core.ndim == 2:
        values, V = right_singular(factors[None])
        return values[0], V[0]
    core, M = factors.core, factors.M
    values, V = np.zeros(core.shape[:2]), np.zeros(M.shape, dtype=M.dtype)
    if core.size == 0:
        return values, V
    reach, real = _REACH * core.shape[1], np.isrealobj(core)
    # Column j is about D_1 D_j, and σ_j about D_j²: a wide spread shows before any decomposition.
    columns = np.abs(core).max(axis=1)
    graded = columns.min(axis=1) * reach**1.5 < columns.max(axis=1)
    graded &= real
    if not graded.any():
        values, V = _standard(core, M)
    elif not graded.all():
        values[~graded], V[~graded] = _standard(core[~graded], M[~graded])
    wide = values[:, 0] > reach * values[:, -1]
    if wide.any():
        graded |= values[:, 0] > reach**2 * values[:, -1]
        wide &= ~graded
        values[wide] = _with_small_ones(values[wide], core[wide])
    for k in np.flatnonzero(graded):
        if real:
            values[k], V[k] = jacobi_right_singular(core[k])
        else:
            values[k] = jacobi_singular_values(core[k])
    return values, V


def _check_finite(factors: CauchyFactors) -> None:
    if not (np.isfinite(factors.Z).all() and np.isfinite(factors.Y).all()):
        raise np.linalg.LinAlgError("Gramian factors are not finite")


def _standard(core: HostArray, M: HostArray) -> tuple[HostArray, HostArray]:
    """Singular values and right singular vectors of M, each to about eps σ₁."""
    if np.iscomplexobj(core):
        _, values, Vh = np.linalg.svd(M)
        return values[..., : core.shape[-1]], adjoint(Vh)
    eigenvalues, V = np.linalg.eigh(M)
    order = np.argsort(-np.abs(eigenvalues), axis=1, kind="stable")
    at = np.arange(len(order))[:, None], order
    return np.abs(eigenvalues[at]), V.swapaxes(1, 2)[at].swapaxes(1, 2)


def _with_small_ones(values: HostArray, core: HostArray) -> HostArray:
    """Replace the smaller values by those of the inverse, where they are the larger ones."""
    small = 1.0 / np.linalg.svd(np.linalg.inv(core), compute_uv=False)[..., ::-1]
    middle = np.sqrt(values[..., :1]) * np.sqrt(values[..., -1:])
    return -np.sort(-np.where(values < middle, small, values), axis=-1)


def _factors(host: DiagonalStateSpace) -> CauchyFactors:
    return cauchy_factors(
        host.eigenvalues,
        host.log_eigenvalues,
        host.B[..., 0],
        host.C[..., 0, :],
        host.time,
        real_output=host.real_output,
    )
