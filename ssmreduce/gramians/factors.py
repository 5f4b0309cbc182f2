"""Gramians of a system, as factors: P = Z Zᴴ (controllability) and Q = Y Yᴴ (observability).

Discrete time: P = Σ A^k B Bᴴ A^kᴴ solves A P Aᴴ - P + B Bᴴ = 0 and Q = Σ A^kᴴ Cᴴ C A^k solves
Aᴴ Q A - Q + Cᴴ C = 0. Continuous time: A P + P Aᴴ + B Bᴴ = 0 and Aᴴ Q + Q A + Cᴴ C = 0. For a
`DiagonalStateSpace` with real output they are those of the real system with states [Re h; Im h].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._checks import positive_horizon
from ssmreduce._lapack import power_of_two
from ssmreduce.derivatives.adjoint import (
    controllability_gradient,
    dual,
    observability_gradient,
)
from ssmreduce.derivatives.dispatch import apply, differentiable, refuse_horizon
from ssmreduce.derivatives.rule import Gradients, Pullback
from ssmreduce.devices import gramian_factors as native
from ssmreduce.equations import diagonal, smith
from ssmreduce.equations.dense import dense_factor, dense_factors
from ssmreduce.equations.stability import check_stable
from ssmreduce.errors import NoConvergenceError, TimeDomainError
from ssmreduce.gramians.batch import map_batch
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.pytree import unchecked
from ssmreduce.time_domain import Discrete


def gramian_factors(system: System, horizon: int | None = None) -> tuple[HostArray, HostArray]:
    """Return Z and Y of one system (no batch axes), P = Z Zᴴ and Q = Y Yᴴ.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.
    """
    host = system.to_host()
    if not isinstance(host, DiagonalStateSpace):
        return dense_factors(host.A, host.B, host.C, host.time, horizon).whole()
    if horizon is not None:
        return _horizon_factor(host, horizon), _horizon_factor(dual(host), horizon)
    check_stable(host.eigenvalues, host.time, log_eigenvalues=host.log_eigenvalues)
    kernels = diagonal.cauchy_kernels(host.eigenvalues, host.log_eigenvalues, host.time)
    mirrored = (kernels[0].conj(), kernels[1].conj())
    return diagonal.diagonal_factor(host, kernels), diagonal.diagonal_factor(dual(host), mirrored)


def gramian_factor(system: System, which: int, horizon: int | None = None) -> HostArray:
    """Return Z alone (`which` 0), or Y alone (1): half of the work of `gramian_factors`."""
    host = system.to_host()
    if isinstance(host, DiagonalStateSpace):
        host = dual(host) if which else host
        if horizon is not None:
            return _horizon_factor(host, horizon)
        check_stable(host.eigenvalues, host.time, log_eigenvalues=host.log_eigenvalues)
        kernels = diagonal.cauchy_kernels(host.eigenvalues, host.log_eigenvalues, host.time)
        return diagonal.diagonal_factor(host, kernels)
    A, G = host.A, adjoint(host.C) if which else host.B
    if horizon is None:
        return dense_factor(A, G, host.time, which)
    A = adjoint(A) if which else A
    return smith.finite_factor(smith.dense_powers(A), G, horizon)


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
    TimeDomainError
        If a horizon is given for a continuous system.
    ArgumentError
        If `horizon` is not a positive int.
    NoConvergenceError
        If it leaves the range of double precision: its entries are squares of those of B.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.
    UnsupportedEquationError
        If a derivative is asked for within a horizon.

    Notes
    -----
    In closed form for a diagonal system; for a dense one Z Zᴴ, from its factor Z. `balance` works
    with factors alone, which keep the digits of small directions: prefer it for anything numerical.
    Cost O(n² m) for diagonal systems; for dense ones O(n³), and within a horizon O(n³) for each
    doubling. Differentiable under torch autograd and JAX without a horizon: a tensor that asks for
    a gradient, or a tracer, gives one back.

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981).

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

    It is the controllability Gramian of the dual system (Aᴴ, Cᴴ).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Number of steps L to sum over, Σ_{k<L} A^kᴴ Cᴴ C A^k (discrete time only).

    Returns
    -------
    (..., n, n) array
        Hermitian, positive semidefinite; (..., 2n, 2n) and real for a diagonal system with real
        output, whose states are [Re h; Im h].

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.
    TimeDomainError
        If a horizon is given for a continuous system.
    ArgumentError
        If `horizon` is not a positive int.
    NoConvergenceError
        If it leaves the range of double precision: its entries are squares of those of C.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.
    UnsupportedEquationError
        If a derivative is asked for within a horizon.

    Notes
    -----
    Cost and derivatives are those of `controllability_gramian`, with p in place of m.

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981).

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

    check_system(system)
    horizon = check_horizon(system, horizon)

    def gramian(single: System) -> HostArray:
        if isinstance(single, DiagonalStateSpace):
            return _diagonal_gramian(single, horizon, which)
        factor = gramian_factor(single, which, horizon)
        unit = power_of_two(factor)
        return _in_range((factor / unit) @ adjoint(factor / unit), unit, which)

    return map_batch(system, gramian)


def _in_range(scaled: HostArray, unit: float, which: int) -> HostArray:
    """Multiply a Gramian by unit² again; raise `NoConvergenceError` if it leaves double precision."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        gramian = scaled * unit * unit
    largest = float(np.abs(gramian).max(initial=0.0))
    lost = largest < np.finfo(np.float64).tiny and np.any(scaled)
    if lost or not np.all(np.isfinite(gramian)):
        name, matrix = ("observability", "C") if which else ("controllability", "B")
        raise NoConvergenceError(
            f"the {name} Gramian {'underflows' if lost else 'overflows'}: its entries are squares of those "
            f"of `{matrix}` (about {unit:.0e} here); expected them within the range of double precision. "
            f"Scale `{matrix}`, or take hankel_singular_values, which need no Gramian."
        )
    return gramian


def _with_derivative(system: System, which: int) -> Array:
    rule = _observability_rule if which else _controllability_rule
    n = system.real_order
    name, where_it_is = (
        ("observability_gramian", native.observability)
        if which
        else ("controllability_gramian", native.controllability)
    )
    is_complex = native.is_complex_gramian(system, which)
    return apply(rule, system, (n, n), name=name, is_complex=is_complex, native=where_it_is)


def _controllability_rule(system: System) -> tuple[HostArray, Pullback]:
    Z = gramian_factor(system, 0)

    def pullback(cotangent: HostArray) -> Gradients:
        G = 0.5 * (cotangent + adjoint(cotangent))
        return *controllability_gradient(system, Z, G), None, None

    return Z @ adjoint(Z), pullback


def _observability_rule(system: System) -> tuple[HostArray, Pullback]:
    Y = gramian_factor(system, 1)

    def pullback(cotangent: HostArray) -> Gradients:
        state, C = observability_gradient(system, Y, 0.5 * (cotangent + adjoint(cotangent)))
        return state, None, C, None

    return Y @ adjoint(Y), pullback


def _diagonal_gramian(system: DiagonalStateSpace, horizon: int | None, which: int) -> HostArray:
    """The Gramian in closed form, (G Gᴴ) ∘ K."""
    host = dual(system.to_host()) if which else system.to_host()
    unit = power_of_two(host.B)
    eigenvalues, logarithms, G = host.eigenvalues, host.log_eigenvalues, host.B / unit
    if horizon is None:
        check_stable(eigenvalues, host.time, log_eigenvalues=logarithms)
        hermitian, symmetric = diagonal.cauchy_kernels(eigenvalues, logarithms, host.time)
    else:
        hermitian, symmetric = diagonal.horizon_kernels(eigenvalues, logarithms, horizon)
    first = (G @ adjoint(G)) * hermitian
    second = (G @ adjoint(G.conj())) * symmetric
    if horizon is not None and not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
        raise smith.overflow_within_horizon()
    # Fused multiplications do not commute: λ_i conj λ_j is not quite the conjugate of λ_j conj λ_i.
    first = 0.5 * first + 0.5 * adjoint(first)
    if not system.real_output:
        real = np.isrealobj(eigenvalues) and np.isrealobj(G)
        return _in_range(first.real if real else first, unit, which)
    second = 0.5 * second + 0.5 * adjoint(second.conj())
    gramian = 0.5 * np.block(
        [
            [(first + second).real, (second - first).imag],
            [(first + second).imag, (first - second).real],
        ]
    )
    return _in_range(gramian, unit, which)


def check_horizon(system: System, horizon: int | None) -> int | None:
    """Return `horizon` as a positive int or None; refuse one for a continuous system."""
    if horizon is None:
        return None
    horizon = positive_horizon(horizon)
    if not isinstance(system.time, Discrete):
        raise TimeDomainError(
            f"`horizon` is {horizon} but the system is continuous; expected a discrete system. "
            "Discretise it, or leave the horizon out."
        )
    return horizon


def _horizon_factor(system: DiagonalStateSpace, horizon: int) -> HostArray:
    """Factor of Σ_{k<L} Aᵏ B Bᴴ Aᵏᴴ, in the states of Gramians."""
    if system.order == 0:
        return np.zeros((0, 0))

    def power(i: int) -> Callable[[HostArray], HostArray]:
        return unchecked(system, eigenvalues=system.eigenvalues ** (2**i)).applied

    return smith.finite_factor(power, system.ports()[0], horizon)
