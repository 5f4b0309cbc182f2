"""Gramians of a system, as factors: P = Z Zᴴ (controllability) and Q = Y Yᴴ (observability).

Discrete time: P = Σ A^k B Bᴴ A^kᴴ solves A P Aᴴ - P + B Bᴴ = 0 and Q = Σ A^kᴴ Cᴴ C A^k solves
Aᴴ Q A - Q + Cᴴ C = 0. Continuous time: A P + P Aᴴ + B Bᴴ = 0 and Aᴴ Q + Q A + Cᴴ C = 0. For a
`DiagonalStateSpace` with real output they are those of the real system with states [Re h; Im h].
"""

from __future__ import annotations

import numpy as np

from ssmreduce._boundary import any_library
from ssmreduce._checks import positive_horizon
from ssmreduce._namespace import Array, HostArray, adjoint, is_complex_array
from ssmreduce.derivatives.adjoint import controllability_gradient, observability_gradient
from ssmreduce.derivatives.dispatch import apply, differentiable, refuse_horizon
from ssmreduce.derivatives.rule import Gradients, Pullback
from ssmreduce.equations import diagonal, smith
from ssmreduce.equations.dense import DenseFactors, dense_factors
from ssmreduce.equations.stability import check_stable
from ssmreduce.errors import TimeDomainError
from ssmreduce.gramians import native
from ssmreduce.gramians.batch import map_batch
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import arrays_of
from ssmreduce.systems.real_form import apply_real_state
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


def gramian_factors(system: System, horizon: int | None = None) -> tuple[HostArray, HostArray]:
    """Return Z and Y of one system (no batch axes), P = Z Zᴴ and Q = Y Yᴴ.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.
    TimeDomainError
        If a horizon is given for a continuous system.
    """
    horizon = check_horizon(system, horizon)
    host = system.to_host()
    if isinstance(host, DiagonalStateSpace):
        return _diagonal_factors(host, horizon)
    return dense_gramian_factors(host, horizon).whole()


@any_library(native.controllability, has_derivative=True)
def controllability_gramian(system: System, *, horizon: int | None = None) -> HostArray:
    """Controllability Gramian P of A P Aᴴ - P + B Bᴴ = 0 or A P + P Aᴴ + B Bᴴ = 0.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Number of steps L to sum over, Σ_{k<L} A^k B Bᴴ A^kᴴ (discrete time only).

    Returns
    -------
    (..., n, n) array
        Hermitian, positive semidefinite; (..., 2n, 2n) and real for a diagonal system with real
        output, whose states are [Re h; Im h].

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.

    Notes
    -----
    Formed from its factor, which is what `balance` uses: prefer that for anything numerical. Within a
    horizon, for a diagonal system, the sum is taken in closed form.
    Cost O(n² m) for diagonal systems, O(n³) per doubling for dense ones. Differentiable under torch
    autograd and JAX without a horizon: a tensor that asks for a gradient, or a tracer, gives one back.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, controllability_gramian
    >>> system = DiagonalStateSpace([0.5], [[3.0]], [[1.0]], time=Discrete())
    >>> bool(abs(controllability_gramian(system)[0, 0] - 12.0) < 1e-13)
    True
    """
    return _batched(system, horizon, 0)


@any_library(native.observability, has_derivative=True)
def observability_gramian(system: System, *, horizon: int | None = None) -> HostArray:
    """Observability Gramian Q of Aᴴ Q A - Q + Cᴴ C = 0 or Aᴴ Q + Q A + Cᴴ C = 0.

    Parameters, results and errors are those of `controllability_gramian`, of which this is the dual:
    it returns the controllability Gramian of (Aᴴ, Cᴴ).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, observability_gramian
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[3.0]], time=Discrete())
    >>> bool(abs(observability_gramian(system)[0, 0] - 12.0) < 1e-13)
    True
    """
    return _batched(system, horizon, 1)


def _batched(system: System, horizon: int | None, which: int) -> HostArray:
    if differentiable(system):
        refuse_horizon(horizon)
        found: HostArray = _with_derivative(system, which)
        return found

    def gramian(single: System) -> HostArray:
        if horizon is not None and isinstance(single, DiagonalStateSpace):
            return _horizon_gramian(single, horizon, which)
        factor = gramian_factors(single, horizon)[which]
        return factor @ adjoint(factor)

    return map_batch(system, gramian)


def _with_derivative(system: System, which: int) -> Array:
    rule = _observability_rule if which else _controllability_rule
    real_output = isinstance(system, DiagonalStateSpace) and system.real_output
    n = 2 * system.order if real_output else system.order
    state, B, C, _ = arrays_of(system)
    complex_valued = not real_output and any(map(is_complex_array, (state, C if which else B)))
    where_it_is = native.observability if which else native.controllability
    return apply(rule, system, (n, n), is_complex=complex_valued, native=where_it_is)


def _controllability_rule(system: System) -> tuple[HostArray, Pullback]:
    Z = gramian_factors(system)[0]

    def pullback(cotangent: HostArray) -> Gradients:
        G = 0.5 * (cotangent + adjoint(cotangent))
        return *controllability_gradient(system, Z, G), None, None

    return Z @ adjoint(Z), pullback


def _observability_rule(system: System) -> tuple[HostArray, Pullback]:
    Y = gramian_factors(system)[1]

    def pullback(cotangent: HostArray) -> Gradients:
        state, C = observability_gradient(system, Y, 0.5 * (cotangent + adjoint(cotangent)))
        return state, None, C, None

    return Y @ adjoint(Y), pullback


def _horizon_gramian(system: DiagonalStateSpace, horizon: int, which: int) -> HostArray:
    """The Gramian over a finite horizon in closed form."""
    steps = check_horizon(system, horizon)
    assert steps is not None
    host = system.to_host()
    eigenvalues, logarithms, G = host.eigenvalues, host.log_eigenvalues, host.B
    if which == 1:
        eigenvalues, G = eigenvalues.conj(), adjoint(host.C)
        logarithms = None if logarithms is None else logarithms.conj()
    hermitian, symmetric = diagonal.horizon_kernels(eigenvalues, logarithms, steps)
    first = (G @ adjoint(G)) * hermitian
    second = (G @ adjoint(G.conj())) * symmetric
    if not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
        raise smith.overflow_within_horizon()
    if not system.real_output:
        real = np.isrealobj(eigenvalues) and np.isrealobj(G)
        return np.asarray(first.real if real else first)
    return 0.5 * np.block(
        [
            [(first + second).real, (second - first).imag],
            [(first + second).imag, (first - second).real],
        ]
    )


def check_horizon(system: System, horizon: int | None) -> int | None:
    """Return `horizon` as a positive int or None; refuse one for a continuous system."""
    horizon = positive_horizon(horizon)
    if horizon is not None and not isinstance(system.time, Discrete):
        raise TimeDomainError(
            f"`horizon` is {horizon} but the system is continuous; expected a discrete system. "
            "Discretise it, or leave the horizon out."
        )
    return horizon


def dense_gramian_factors(system: StateSpace, horizon: int | None) -> DenseFactors:
    """Factors of one dense system on the host, in a basis of their own.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.
    """
    A, B, C = system.A, system.B, system.C
    if horizon is None:
        return dense_factors(A, B, C, system.time)
    return DenseFactors(
        smith.finite_factor(smith.dense_powers(A), B, horizon),
        smith.finite_factor(smith.dense_powers(adjoint(A)), adjoint(C), horizon),
    )


def _diagonal_factors(
    system: DiagonalStateSpace, horizon: int | None
) -> tuple[HostArray, HostArray]:
    eigenvalues, inputs, outputs = system.eigenvalues, system.B, adjoint(system.C)
    if horizon is None:
        check_stable(eigenvalues, system.time, log_eigenvalues=system.log_eigenvalues)
    if horizon is not None:
        return (
            _horizon_factor(eigenvalues, inputs, horizon, real=system.real_output),
            _horizon_factor(eigenvalues.conj(), outputs, horizon, real=system.real_output),
        )
    kernels = diagonal.cauchy_kernels(eigenvalues, system.log_eigenvalues, system.time)
    conjugate = (kernels[0].conj(), kernels[1].conj())
    logs = system.log_eigenvalues
    dual_logs = None if logs is None else logs.conj()
    if system.real_output:
        return (
            diagonal.real_state_factor(eigenvalues, inputs, kernels, system.time, logs),
            diagonal.real_state_factor(
                eigenvalues.conj(), outputs, conjugate, system.time, dual_logs
            ),
        )
    return (
        diagonal.state_factor(eigenvalues, inputs, kernels[0], logs),
        diagonal.state_factor(eigenvalues.conj(), outputs, conjugate[0], dual_logs),
    )


def _horizon_factor(eigenvalues: HostArray, G: HostArray, horizon: int, *, real: bool) -> HostArray:
    """Factor of Σ_{k<L} Λ^k G Gᴴ Λ^kᴴ, or of the same sum for the real states [Re h; Im h]."""
    if real:
        stacked = np.concatenate([G.real, G.imag])
        return smith.finite_factor(
            lambda i: lambda X: apply_real_state(eigenvalues ** (2**i), X), stacked, horizon
        )
    return smith.finite_factor(lambda i: lambda X: (eigenvalues ** (2**i))[:, None] * X, G, horizon)
