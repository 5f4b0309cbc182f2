"""Derivatives of Gramians by adjoint Lyapunov equations: from dL/dP to dL/dA, dL/dB, dually for Q.

For a real function L of P, with G = dL/dP Hermitian, the solution X of

    Aᴴ X A - X + G = 0 (discrete)   or   Aᴴ X + X A + G = 0 (continuous)

gives dL/dB = 2 X B and dL/dA = 2 X A P (discrete) or 2 X P (continuous); for L of Q the same holds
for (Aᴴ, Cᴴ) in place of (A, B). A derivative g with respect to z means dL = Re tr(gᴴ dz), that is
dL/dRe z + i dL/dIm z.

A diagonal system has X in closed form. One with real output is treated in the states [h; conj h],
in which it is diagonal too; of X, P and G only the first n rows are kept, the others being their
conjugates:

    X_ij = G_ij conj K_ij,   dL/dB = 2 X [B; conj B],   dL/dλ_i = 2 Σ_j X_ij conj(P_ij) λ_j,

without λ_j in continuous time, and twice that with real output, for the rows left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.equations.diagonal import cauchy_kernels
from ssmreduce.equations.solve import solve_lyapunov
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import unchecked
from ssmreduce.time_domain import Discrete, TimeDomain


def controllability_gradient(
    system: System, Z: HostArray, G: HostArray
) -> tuple[HostArray, HostArray]:
    """Derivatives of L with respect to the state array and B, from dL/dP.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        On the host, stable, without batch axes.
    Z : (n, k) array
        Factor of P = Z Zᴴ, of 2n real rows where the output is real.
    G : (n, n) array
        dL/dP, Hermitian.

    Returns
    -------
    tuple of two arrays
        dL/dA and dL/dB; for a diagonal system dL/dλ, or dL/d log λ where it keeps logarithms.
    """
    if isinstance(system, DiagonalStateSpace):
        adjoint_pair = diagonal_adjoint(system, G)
        return adjoint_pair.state_gradient(system), adjoint_pair.input_gradient(system)
    X, state = _dense(system.A, Z, G, system.time)
    return state, 2.0 * X @ system.B


def observability_gradient(
    system: System, Y: HostArray, G: HostArray
) -> tuple[HostArray, HostArray]:
    """Derivatives of L with respect to the state array and C, from dL/dQ; Q = Y Yᴴ."""
    if isinstance(system, DiagonalStateSpace):
        mirrored = dual(system)
        adjoint_pair = diagonal_adjoint(mirrored, G)
        state = adjoint_pair.state_gradient(mirrored).conj()
        return state, adjoint(adjoint_pair.input_gradient(mirrored))
    X, state = _dense(adjoint(system.A), Y, G, system.time)
    return adjoint(state), 2.0 * system.C @ X


def _dense(
    A: HostArray, Z: HostArray, G: HostArray, time: TimeDomain
) -> tuple[HostArray, HostArray]:
    """X and dL/dA."""
    X = solve_lyapunov(adjoint(A), G, time=time).value
    moved = A @ Z if isinstance(time, Discrete) else Z
    return X, 2.0 * (X @ moved) @ adjoint(Z)


def dual(system: DiagonalStateSpace) -> DiagonalStateSpace:
    """Return the system (λ̄, Cᴴ, Bᴴ), whose controllability Gramian is Q."""
    poles, logarithms = system.eigenvalues.conj(), system.log_eigenvalues
    logarithms = None if logarithms is None else logarithms.conj()
    B, C, D = (adjoint(x) for x in (system.C, system.B, system.D))
    return unchecked(system, eigenvalues=poles, B=B, C=C, D=D, log_eigenvalues=logarithms)


@dataclass(frozen=True, eq=False)
class DiagonalAdjoint:
    """The first n rows of X and P, in the states h or [h; conj h].

    Attributes
    ----------
    X, P : (n, n) or (n, 2n) array
        Solution of the adjoint equation, and Gramian.
    """

    X: HostArray
    P: HostArray

    def state_gradient(self, system: DiagonalStateSpace) -> HostArray:
        """Return dL/dλ, or dL/d log λ where logarithms are kept."""
        eigenvalues = system.eigenvalues
        driven = self.X * self.P.conj()
        if isinstance(system.time, Discrete):
            driven = driven * all_states(eigenvalues, system)
        gradient = 2.0 * rows_left_out(system) * driven.sum(axis=1)
        if system.log_eigenvalues is not None:
            gradient = gradient * eigenvalues.conj()
        return np.asarray(gradient)

    def input_gradient(self, system: DiagonalStateSpace) -> HostArray:
        """Return dL/dB."""
        return np.asarray(2.0 * rows_left_out(system) * self.X @ all_states(system.B, system))


def diagonal_adjoint(system: DiagonalStateSpace, G: HostArray) -> DiagonalAdjoint:
    """Solve the adjoint equation of a diagonal system in closed form."""
    hermitian, symmetric = cauchy_kernels(system.eigenvalues, system.log_eigenvalues, system.time)
    kernel = hermitian
    if system.real_output:
        n = system.order
        (G11, G12), (G21, G22) = (np.split(rows, [n], axis=1) for rows in np.split(G, [n]))
        kernel = np.concatenate([hermitian, symmetric], axis=1)
        G = 0.25 * np.concatenate(
            [G11 + G22 + 1j * (G21 - G12), G11 - G22 + 1j * (G12 + G21)], axis=1
        )
    P = (system.B @ adjoint(all_states(system.B, system))) * kernel
    return DiagonalAdjoint(G * kernel.conj(), P)


def all_states(rows: HostArray, system: DiagonalStateSpace) -> HostArray:
    """Return the rows of h, or of [h; conj h] where the output is real."""
    return np.concatenate([rows, rows.conj()]) if system.real_output else rows


def rows_left_out(system: DiagonalStateSpace) -> float:
    """Factor for the conjugate rows."""
    return 2.0 if system.real_output else 1.0
