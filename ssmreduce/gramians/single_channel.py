"""Diagonal systems with one input and one output: Hankel singular values to high relative accuracy.

Each channel of an S4D layer is such a system. Its factors come from `equations.cauchy`, where every
entry is a product, and its values from Jacobi rotations. However small σ_i is, its relative error is
O(n eps), or what half a unit in the last place of the data changes if that is more; by the route of
all other systems it is eps σ₁/σ_i. Cost O(n³): a tenth to twice that of the other route up to 64
stored states, up to five times as much at 256. Larger systems take the other route.
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
    eigenvalues, logarithms = host.eigenvalues, host.log_eigenvalues
    check_stable(eigenvalues, system.time, log_eigenvalues=logarithms)
    large = system.real_output and system.order > LARGEST_ROTATED // 4
    if large and np.any(nearly_real(eigenvalues, logarithms, system.time)):
        return None
    return cauchy_factors(
        eigenvalues,
        logarithms,
        host.B[:, 0],
        host.C[0],
        system.time,
        real_output=system.real_output,
    )


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
    if not np.iscomplexobj(factors.core):
        return jacobi_right_singular(factors.core)
    values = jacobi_singular_values(factors.core)
    return values, adjoint(np.linalg.svd(factors.M)[2])
