"""A function of both Gramians, continued from one point with its adjoint solutions held fixed.

For L(P, Q) with G = dL/dP and H = dL/dQ at a system with Gramians P₀, Q₀, let X and Y solve the
adjoint equations for G and H. Then

    L₀ + Re tr X (A P₀ Aᴴ - P₀ + B Bᴴ) + Re tr Y (Aᴴ Q₀ A - Q₀ + Cᴴ C)

(continuous: A P₀ + P₀ Aᴴ + B Bᴴ and its dual) has the value and the gradient of L at that system, and
needs products with fixed matrices only. Where G and H are semidefinite it is convex in B, in C and
in A. The terms that do not depend on the system are added up to one offset.

A diagonal system is written in the real and imaginary parts of λ, B and C, of which the three
terms are real quadratic forms: O(n² (m + p)). For a dense one the term in A costs four products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssmreduce._array_libraries import (
    Array,
    HostArray,
    adjoint,
    common_dtype,
    conjugate,
    imaginary_part,
    in_library_of,
    is_complex_array,
    is_traced,
    namespace,
    real_part,
)
from ssmreduce._array_routes import deciding_array
from ssmreduce.derivatives.adjoint import diagonal_adjoint, dual, rows_left_out
from ssmreduce.equations.solve import solve_lyapunov
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import register_fields
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


@dataclass(frozen=True, eq=False)
class FrozenAdjoint:
    """Fixed matrices by which a function of both Gramians is continued from one system or batch; a
    pytree of JAX.

    With X and Y that solve the adjoint equations at the Gramians P₀ and Q₀, the function is

    ::

        L₀ + Re tr X (A P₀ Aᴴ - P₀ + B Bᴴ) + Re tr Y (Aᴴ Q₀ A - Q₀ + Cᴴ C)

    in discrete time. It is made by `LazyHankelNuclearNorm.refresh`.

    Attributes
    ----------
    offset : (...) array
        L₀ less the three terms at the system it was made for.
    inputs, outputs : (..., N, N) array
        X and Y; for a diagonal system in real and imaginary parts, N = 2n.
    dynamics : tuple of arrays
        For the term in A: one matrix or vector, or (P₀, Q₀) for a dense discrete system.
    made_for : str
        `kind_of` the system; no leaf of the pytree.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.regularizers import LazyHankelNuclearNorm
    >>> system = StateSpace([[0.5]], [[1.0]], [[3.0]], time=Discrete())
    >>> lazy = LazyHankelNuclearNorm()
    >>> frozen = lazy.refresh(system)
    >>> round(float(lazy.penalty(system, frozen)), 12)  # σ₁ of the system
    4.0
    """

    offset: Array
    inputs: Array
    outputs: Array
    dynamics: tuple[Array, ...]
    made_for: str

    def __post_init__(self) -> None:
        register_fields(type(self), ["offset", "inputs", "outputs", "dynamics"], ["made_for"])


def kind_of(system: System) -> str:
    """What a system must have in common with another for which a `FrozenAdjoint` was made."""
    kind = type(system).__name__
    if system.real_output:
        kind += " with real output"
    sizes = f"{system.order} states, {system.inputs} inputs, {system.outputs} outputs"
    return f"{kind}, {system.time}, {sizes}"


def freeze(
    system: System, value: float, gramians: tuple[HostArray, HostArray], weights: tuple[Any, Any]
) -> FrozenAdjoint:
    """Solve the adjoint equations of one system on the host.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        On the host, without batch axes.
    value : float
        L₀.
    gramians : tuple of two factors
        Z and Y with P₀ = Z Zᴴ and Q₀ = Y Yᴴ.
    weights : tuple of two arrays
        G and H, Hermitian.
    """
    if isinstance(system, DiagonalStateSpace):
        frozen = _diagonal(system, weights)
    else:
        frozen = _dense(system, gramians, weights)
    return replace(frozen, offset=np.asarray(value - _terms(system, frozen)))


def frozen_value(system: System, frozen: FrozenAdjoint) -> Array:
    """Evaluate the continuation at `system`, of the library of its arrays; one value per system."""
    terms = _terms(system, frozen)
    return in_library_of(frozen.offset, terms) + terms


def _diagonal(system: DiagonalStateSpace, weights: tuple[Any, Any]) -> FrozenAdjoint:
    mirrored = dual(system)
    reached, observed = diagonal_adjoint(system, weights[0]), diagonal_adjoint(mirrored, weights[1])
    share = rows_left_out(system)
    driven = reached.X * reached.P.conj() + (observed.X * observed.P.conj()).conj()
    if isinstance(system.time, Discrete):
        dynamics = _real_form(share * driven)
    else:
        slope = 2.0 * share * driven.sum(axis=1)
        dynamics = np.concatenate([slope.real, slope.imag])
    inputs, outputs = _real_form(share * reached.X), _real_form(share * observed.X)
    return FrozenAdjoint(np.zeros(()), inputs, outputs, (dynamics,), kind_of(system))


def _real_form(X: HostArray) -> HostArray:
    """Matrix of hᴴ X₁ h + Re hᴴ X₂ conj h in [Re h; Im h], with X = X₁ or [X₁, X₂]."""
    n = X.shape[0]
    hermitian = X[:, :n]
    symmetric = X[:, n:] if X.shape[1] > n else np.zeros_like(hermitian)
    total, difference = hermitian + symmetric, hermitian - symmetric
    return np.block([[total.real, -difference.imag], [total.imag, difference.real]])


def _dense(
    system: StateSpace, gramians: tuple[Any, Any], weights: tuple[Any, Any]
) -> FrozenAdjoint:
    A, (Z, Y) = system.A, gramians
    X = solve_lyapunov(adjoint(A), weights[0], time=system.time).value
    dual_X = solve_lyapunov(A, weights[1], time=system.time).value
    if isinstance(system.time, Discrete):
        dynamics: tuple[HostArray, ...] = (Z @ adjoint(Z), Y @ adjoint(Y))
    else:
        dynamics = (2.0 * ((X @ Z) @ adjoint(Z) + Y @ (adjoint(Y) @ dual_X)),)
    return FrozenAdjoint(np.zeros(()), X, dual_X, dynamics, kind_of(system))


def _terms(system: System, frozen: FrozenAdjoint) -> Array:
    """The three terms that depend on the system, in one library and the widest dtype at hand."""
    like = deciding_array(system, frozen)
    diagonal = isinstance(system, DiagonalStateSpace)
    state = system.eigenvalues[..., None, :] if isinstance(system, DiagonalStateSpace) else system.A
    state, B, C = (in_library_of(x, like) for x in (state, system.B, system.C))
    given = [state, adjoint(B), C]
    if diagonal:
        given = [_parts(rows) for rows in (conjugate(state), adjoint(B), C)]
    fixed = [in_library_of(x, like) for x in (frozen.inputs, frozen.outputs, *frozen.dynamics)]
    state, B, C, X, dual_X, *dynamics = common_dtype(*given, *fixed)
    total = _quadratic(B, X) + _quadratic(C, dual_X)
    discrete = isinstance(system.time, Discrete)
    if diagonal and discrete:
        return total + _quadratic(state, dynamics[0])
    if diagonal:
        return total + namespace(state).sum(state[..., 0, :] * dynamics[0], axis=-1)
    driven = dynamics[0]
    if discrete:
        P, Q = dynamics
        driven = X @ state @ P + Q @ state @ dual_X
    return total + _inner(driven, state)


def _quadratic(rows: Array, X: Array) -> Array:
    """Re tr R X Rᴴ for a fixed Hermitian X."""
    if is_traced(rows) and not is_complex_array(rows):
        from ssmreduce.derivatives.jax import quadratic_form

        return quadratic_form(rows, X)
    return _inner(rows @ X, rows)


def _inner(left: Array, right: Array) -> Array:
    """Re tr Lᴴ R."""
    return namespace(left).sum(real_part(left * conjugate(right)), axis=(-2, -1))


def _parts(rows: Array) -> Array:
    """[Re R, -Im R], whose product with [Re h; Im h] is Re R h."""
    return namespace(rows).concat([real_part(rows), -imaginary_part(rows)], axis=-1)
