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

from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ssmreduce._namespace import Array, HostArray, adjoint, is_complex_array, is_traced
from ssmreduce.derivatives.adjoint import diagonal_adjoint, dual, rows_left_out
from ssmreduce.equations.solve import solve_lyapunov
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


class FrozenAdjoint(NamedTuple):
    """Fixed matrices of one system or batch: arrays only, so that JAX takes it as it is.

    Attributes
    ----------
    offset : (...) array
        L₀ less the three terms at the system it was made for.
    inputs, outputs : (..., N, N) array
        X and Y; of a diagonal system in real and imaginary parts, N = 2n.
    dynamics : tuple of arrays
        Of the term in A: one matrix or vector, or (P₀, Q₀) for a dense discrete system.
    """

    offset: Array
    inputs: Array
    outputs: Array
    dynamics: tuple[Array, ...]


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
    return frozen._replace(offset=np.asarray(value - _terms(system, frozen)))


def frozen_value(system: System, frozen: FrozenAdjoint) -> Array:
    """Evaluate the continuation at `system`, of the library of its arrays; one value per system."""
    return frozen.offset + _terms(system, frozen)


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
    return FrozenAdjoint(np.zeros(()), inputs, outputs, (dynamics,))


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
    return FrozenAdjoint(np.zeros(()), X, dual_X, dynamics)


def _terms(system: System, frozen: FrozenAdjoint) -> Array:
    """The three terms that depend on the system."""
    xp = array_api_compat.array_namespace(system.B)
    X, dual_X, dynamics = frozen.inputs, frozen.outputs, frozen.dynamics
    B, C = _conj(xp, xp.moveaxis(system.B, -1, -2)), system.C
    if not isinstance(system, DiagonalStateSpace):
        return _quadratic(xp, B, X) + _quadratic(xp, C, dual_X) + _dense_term(xp, system, frozen)
    total = _quadratic(xp, _parts(xp, B), X) + _quadratic(xp, _parts(xp, C), dual_X)
    row = _parts(xp, _conj(xp, system.eigenvalues[..., None, :]))
    if isinstance(system.time, Discrete):
        return total + _quadratic(xp, row, dynamics[0])
    return total + xp.sum(row[..., 0, :] * dynamics[0], axis=-1)


def _dense_term(xp: Any, system: StateSpace, frozen: FrozenAdjoint) -> Array:
    A = system.A
    if isinstance(system.time, Discrete):
        P, Q = frozen.dynamics
        driven = frozen.inputs @ A @ P + Q @ A @ frozen.outputs
    else:
        (driven,) = frozen.dynamics
    return _inner(xp, driven, A)


def _quadratic(xp: Any, rows: Array, X: Array) -> Array:
    """Re tr R X Rᴴ for a fixed Hermitian X."""
    if is_traced(rows) and not is_complex_array(rows):
        from ssmreduce.derivatives.jax import quadratic_form

        return quadratic_form(rows, X)
    return _inner(xp, rows @ X, rows)


def _inner(xp: Any, left: Array, right: Array) -> Array:
    """Re tr Lᴴ R."""
    product = left * _conj(xp, right)
    return xp.sum(xp.real(product) if is_complex_array(product) else product, axis=(-2, -1))


def _conj(xp: Any, array: Array) -> Array:
    return xp.conj(array) if is_complex_array(array) else array


def _parts(xp: Any, rows: Array) -> Array:
    """[Re R, -Im R], whose product with [Re h; Im h] is Re R h."""
    if not is_complex_array(rows):
        return xp.concat([rows, xp.zeros_like(rows)], axis=-1)
    return xp.concat([xp.real(rows), -xp.imag(rows)], axis=-1)
