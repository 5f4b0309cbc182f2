"""Hankel singular values to high relative accuracy, of diagonal systems with one input and one output.

They are the singular values of M = Φᵀ diag(c b) Φ, see `equations.cauchy`, whose columns Φ_j are known to
O(n eps) entry by entry. With the largest pivots first M = D K D, where D is diagonal and holds the whole
range, and K is well conditioned. One-sided Jacobi rotations after two pivoted QR steps (LAPACK's
`gejsv`, joba = 'F': neither rows nor columns are taken for noise) keep the relative accuracy of every
value, where bidiagonalisation leaves eps σ₁ in each. SciPy has the real one, so a complex M is embedded as
[[Re M, -Im M], [Im M, Re M]], which has each of its singular values twice.

Where the output is real, a pair of poles that nearly coincide without being equal is eliminated one at a
time, in complex numbers: K would be ill conditioned.

However small σ_i is, its relative error is O(n eps), or what half a unit in the last place of the data
changes if that is more. Cost O(n³), more than that of the ordinary route.

References: Demmel, Gu, Eisenstat, Slapničar, Veselić and Drmač, Linear Algebra Appl. 299 (1999);
Drmač and Veselić, SIAM J. Matrix Anal. Appl. 29 (2008); Haut and Beylkin, SIAM J. Matrix Anal. Appl. 33
(2012).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dgejsv

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import announce_transfer
from ssmreduce._lapack import power_of_two
from ssmreduce.derivatives.dispatch import differentiable
from ssmreduce.equations.cauchy import orthonormal_functions
from ssmreduce.equations.stability import check_stable
from ssmreduce.errors import ArgumentError, NoConvergenceError, UnsupportedEquationError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.time_domain import TimeDomain

_KEEP_SMALL = {"joba": 2, "jobr": 0, "jobt": 0, "jobp": 0}
"""Rows and columns pivoted, nothing set to zero, no transposition, no perturbation."""

_NO_LEFT, _NO_RIGHT = 3, 3

_NEARLY_REAL = 0.03
"""Smallest |λ - conj λ| |K| of a pair eliminated at once.

Rounding of small values grows by the square of its inverse at most, as measured: three digits of the fifteen.
"""


def check_relative(system: System, horizon: int | None) -> None:
    """Raise unless the values of `system` can be had to high relative accuracy."""
    check_system(system)
    if horizon is not None:
        raise ArgumentError(
            f"`relative_accuracy` is True but `horizon` is {horizon}; expected one of the two: sums over "
            "a horizon have no such form. Leave one out."
        )
    if not isinstance(system, DiagonalStateSpace) or (system.inputs, system.outputs) != (1, 1):
        raise UnsupportedEquationError(
            f"`relative_accuracy` is True but `system` is a {type(system).__name__} with "
            f"{system.inputs} inputs and {system.outputs} outputs; expected a DiagonalStateSpace with one of "
            "each: others have values right to n eps σ₁ only. Leave it out."
        )
    if differentiable(system):
        announce_transfer("hankel_singular_values", "rotations look at their values", system)
        raise UnsupportedEquationError(
            "`relative_accuracy` is True but a derivative is asked for; expected one of the two: rotations "
            "have none here. Leave it out, or detach the arrays of the system."
        )


@np.errstate(over="ignore", invalid="ignore")
def relative_singular_values(host: DiagonalStateSpace) -> HostArray:
    """Values of one system, descending; fewer than states where not all respond.

    They may be infinite or zero where they leave the range of double precision.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    NoConvergenceError
        If products of its entries leave that range.
    """
    logs = host.log_eigenvalues
    check_stable(host.eigenvalues, host.time, log_eigenvalues=logs)
    poles, logs = host.eigenvalues[None], None if logs is None else logs[None]
    units = power_of_two(host.C), power_of_two(host.B)
    residues = (host.C[0] / units[0] * (host.B[:, 0] / units[1]))[None]
    real = host.real_output and not np.any(nearly_real(poles, logs, host.time))
    if host.real_output and not real:
        poles, residues = _with_conjugates(poles), _with_conjugates(residues) / 2.0
        logs = None if logs is None else _with_conjugates(logs)
    functions, nodes = orthonormal_functions(poles, logs, residues, host.time, real=real)
    try:
        values = jacobi_singular_values(_core(functions[0], nodes.residues[0], real=real))
    except np.linalg.LinAlgError as error:
        raise NoConvergenceError(
            f"the Hankel singular values could not be computed ({error}); expected a response within "
            "the range of double precision. Scale `B` or `C`."
        ) from error
    return values * units[0] * units[1]


def nearly_real(
    eigenvalues: HostArray, log_eigenvalues: HostArray | None, time: TimeDomain
) -> HostArray:
    """Which poles nearly coincide with their conjugates without being equal, shape (..., n)."""
    logarithms = None if log_eigenvalues is None else (log_eigenvalues, log_eigenvalues)
    distance = 2.0 * np.abs(eigenvalues.imag / time.divisor(eigenvalues, eigenvalues, logarithms))
    near: HostArray = (eigenvalues.imag != 0) & (distance < _NEARLY_REAL)
    return near


def _with_conjugates(values: HostArray) -> HostArray:
    """Values for the states [h; conj h]."""
    return np.concatenate([values, values.conj()], axis=-1)


def _core(functions: HostArray, residues: HostArray, *, real: bool) -> HostArray:
    """Φᵀ diag(r) Φ or its real part, each entry to rounding errors of the size of its row and column."""
    size = np.abs(residues)
    largest = size.max(initial=0.0)
    left = np.sqrt(size / (largest or 1.0)) * functions
    right = residues / np.where(size > 0, size, 1.0) * left
    if real:
        left = np.concatenate([left.real, left.imag], axis=-1)
        right = np.concatenate([right.real, -right.imag], axis=-1)
    return np.asarray(largest * (left @ adjoint(right.conj())))


def jacobi_singular_values(M: HostArray) -> HostArray:
    """Singular values of a square matrix, descending."""
    if np.iscomplexobj(M):
        return jacobi_singular_values(np.block([[M.real, -M.imag], [M.imag, M.real]]))[::2]
    if not M.size:
        return np.zeros(0)
    if not np.all(np.isfinite(M)):
        raise np.linalg.LinAlgError("entries are not finite")
    values, _, _, work, _, info = dgejsv(M, jobu=_NO_LEFT, jobv=_NO_RIGHT, **_KEEP_SMALL)
    if info != 0:
        raise np.linalg.LinAlgError("Jacobi rotations did not converge")
    return -np.sort(-values * (work[0] / work[1]))
