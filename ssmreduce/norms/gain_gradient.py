"""Derivative of the gain σ₁(G(z)) at one frequency, with respect to the arrays of the system.

With singular vectors G v = σ₁ u, x = (z - A)⁻¹ B v and y = (z - A)⁻ᴴ Cᴴ u,

    dσ₁ = Re (uᴴ dD v + uᴴ dC x + yᴴ dA x + yᴴ dB v).

At the frequency of its peak the gain does not change with frequency, so this is the derivative of the
H-infinity norm too, where there is one peak.

Reference: Boyd and Barratt, Linear Controller Design, Prentice Hall 1991, chapter 13.
"""

from __future__ import annotations

import math

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.derivatives.adjoint import all_states
from ssmreduce.derivatives.rule import Gradients
from ssmreduce.systems.diagonal import DiagonalStateSpace, System


def gain_gradient(system: System, omega: float, scale: float) -> Gradients:
    """Return `scale` times the derivatives of the gain at frequency `omega`.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        On the host, without batch axes, read before its update.
    omega : float
        Radians per sample, or rad/s; infinite for the gain of D.
    scale : float
        Factor of all derivatives.
    """
    if math.isinf(omega) or system.order == 0:
        u, v = _leading(system.D)
        return None, None, None, scale * _outer(u, v)
    z = system.time.point(omega)
    if not isinstance(system, DiagonalStateSpace):
        resolvent = np.linalg.inv(z * np.eye(system.order) - system.A)
        u, v = _leading(system.C @ resolvent @ system.B + system.D)
        x, y = resolvent @ (system.B @ v), adjoint(resolvent) @ (adjoint(system.C) @ u)
        state, B, C, D = _outer(y, x), _outer(y, v), _outer(u, x), _outer(u, v)
        return scale * state, scale * B, scale * C, scale * D
    share = 0.5 if system.real_output else 1.0
    inverse = 1.0 / (z - all_states(system.eigenvalues, system))
    B = all_states(system.B, system)
    C = share * adjoint(all_states(adjoint(system.C), system))
    u, v = _leading((C * inverse) @ B + system.D)
    x, y = inverse * (B @ v), (inverse.conj()) * (adjoint(C) @ u)
    state = _folded(y * x.conj(), system)
    if system.log_eigenvalues is not None:
        state = state * system.eigenvalues.conj()
    inputs = _folded(_outer(y, v), system)
    outputs = adjoint(_folded(share * _outer(x, u), system))
    return scale * state, scale * inputs, scale * outputs, scale * _outer(u, v)


def _leading(matrix: HostArray) -> tuple[HostArray, HostArray]:
    """Singular vectors of the largest singular value; none where there are no entries."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    if values.size == 0 or values[0] == 0.0:
        return np.zeros(len(matrix)), np.zeros(matrix.shape[1])
    return left[:, 0], right[0].conj()


def _outer(left: HostArray, right: HostArray) -> HostArray:
    """Return left rightᴴ."""
    return np.asarray(left[:, None] * right.conj())


def _folded(rows: HostArray, system: DiagonalStateSpace) -> HostArray:
    """From derivatives with respect to rows [r; conj r] to those with respect to r."""
    if not system.real_output:
        return rows
    n = system.order
    return np.asarray(rows[:n] + rows[n:].conj())
