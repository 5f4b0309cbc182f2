"""Gramian factors where the arrays are: on any device, with any leading axes, and under tracing.

Dense discrete systems by doubling, dense continuous ones by the matrix sign iteration, diagonal ones by
elimination: products, QR, inverses. Nothing but a few numbers that decide is read: whether all systems
are stable, and whether the residuals are those of a backward stable method. Where not, `NoNativeRoute`
sends the system to the host, whose Schur form is sturdier. Traced values are not looked at; where an
iteration did not converge the factors are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ssmreduce._boundary import NoNativeRoute, deciding_array
from ssmreduce._namespace import (
    Array,
    adjoint,
    common_precision,
    conjugate,
    has_doubles,
    in_library_of,
    is_traced,
    namespace,
    refuted,
)
from ssmreduce.equations import diagonal_native, sign, smith
from ssmreduce.equations.residual import BACKWARD_STABLE, factor_residual
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.time_domain import Discrete

_LARGE = 2.0**230
"""Entries of B and C between 1/this and this have squares, and products of two of those, in range."""


@dataclass(frozen=True, eq=False)
class NativeSystem:
    """The arrays of a system in one library, on one device, in one dtype; and its factors.

    Attributes
    ----------
    state : (..., n, n) or (..., n) array
        A, or the eigenvalues.
    logarithms : (..., n) array or None
        Of the eigenvalues, where the system keeps them.
    B, C, D : arrays
        As in the system.
    system : StateSpace or DiagonalStateSpace
        Where they come from.
    """

    state: Array
    logarithms: Array | None
    B: Array
    C: Array
    D: Array
    system: System

    @property
    def xp(self) -> Any:
        """Functions of the library."""
        return namespace(self.B)

    @property
    def real_output(self) -> bool:
        """Whether the real system of order 2n is meant."""
        return isinstance(self.system, DiagonalStateSpace) and self.system.real_output

    @property
    def traced(self) -> bool:
        """Whether values cannot be looked at."""
        return any(is_traced(x) for x in (self.state, self.B, self.C, self.D))

    def factors(self) -> tuple[Array, Array]:
        """Z and Y, P = Z Zᴴ and Q = Y Yᴴ; complex for real outputs, of real states.

        Raises
        ------
        NoNativeRoute
            If a system is not stable, its entries are out of range, or the factors are not accurate;
            not where traced.
        """
        if self.system.order == 0:
            raise NoNativeRoute("a static gain has no states to work on")
        for G in (self.B, self.C):
            if 0 not in G.shape and not self.traced:
                size = self.xp.max(self.xp.abs(G), axis=(-2, -1))
                moderate = (size > 1.0 / _LARGE) & (size < _LARGE)
                self.require((size == 0.0) | moderate, "its entries cannot be squared on it")
        if isinstance(self.system, DiagonalStateSpace):
            return self._diagonal_factors()
        return self._dense_factors()

    def _diagonal_factors(self) -> tuple[Array, Array]:
        xp, time = self.xp, self.system.time
        if self.logarithms is not None:
            stable = xp.real(self.logarithms) < 0.0
        elif isinstance(time, Discrete):
            stable = xp.abs(self.state) < 1.0
        else:
            stable = xp.real(self.state) < 0.0
        self.require(stable, "a pole is not stable")
        factor = (
            diagonal_native.real_state_factor if self.real_output else diagonal_native.state_factor
        )
        mirrored = None if self.logarithms is None else conjugate(self.logarithms)
        Z = factor(self.state, self.logarithms, self.B, time)
        Y = factor(conjugate(self.state), mirrored, adjoint(self.C), time)
        self.require(xp.isfinite(Z), "a Gramian is not finite")
        self.require(xp.isfinite(Y), "a Gramian is not finite")
        return Z, Y

    def _dense_factors(self) -> tuple[Array, Array]:
        xp, time, dual = self.xp, self.system.time, adjoint(self.C)
        if isinstance(time, Discrete):
            (Z, Y), done, _ = smith.infinite_factors(self.state, self.B, dual)
        else:
            (Z, Y), done, stable, _ = sign.sign_factors(self.state, self.B, dual)
            done = done & stable
        if self.traced:
            undefined = xp.where(done, 1.0, xp.nan)[..., None, None]
            return undefined * Z, undefined * Y
        self.require(
            done, "a pole is not stable, or too near the stability boundary for iterations"
        )
        limit = BACKWARD_STABLE * (self.system.order + 10) * xp.finfo(Z.dtype).eps
        for A, factor, G in ((self.state, Z, self.B), (adjoint(self.state), Y, dual)):
            accurate = factor_residual(A, factor, G, time=time) <= limit
            self.require(accurate, "the iteration lost digits that a Schur form keeps")
        return Z, Y

    def require(self, condition: Array, refusal: str) -> None:
        """Leave for the host unless `condition` holds everywhere; traced values count as true."""
        if refuted(condition):
            raise NoNativeRoute(refusal)

    @property
    def input_matrix(self) -> Array:
        """B, or that of the real states."""
        if not self.real_output:
            return self.B
        return self.xp.concat([self.xp.real(self.B), _imag(self.B)], axis=-2)

    @property
    def output_matrix(self) -> Array:
        """C, or that of the real states."""
        if not self.real_output:
            return self.C
        return self.xp.concat([self.xp.real(self.C), -_imag(self.C)], axis=-1)


def native_system(system: System, *, horizon: int | None = None) -> NativeSystem:
    """Bring the arrays of `system` to one library and dtype, without leaving the device.

    Raises
    ------
    NoNativeRoute
        If the device holds no double precision (traced values keep their own), or a horizon is given.
    """
    check_system(system)
    if horizon is not None:
        raise NoNativeRoute("sums over a horizon are taken on the host")
    like = deciding_array(system)
    if not has_doubles(like) and not is_traced(like):
        raise NoNativeRoute(
            "it holds 32-bit numbers only, which leave Hankel singular values with 7 digits of the "
            "largest (for JAX see jax_enable_x64)"
        )
    logarithms = None
    if isinstance(system, DiagonalStateSpace):
        state, logarithms = system.eigenvalues, system.log_eigenvalues
    else:
        state = system.A
    arrays = [state, system.B, system.C, system.D]
    given = [x for x in (*arrays, logarithms) if x is not None]
    state, B, C, D, *logs = common_precision(*(in_library_of(x, like) for x in given))
    if isinstance(system, DiagonalStateSpace) and logs and isinstance(system.time, Discrete):
        state = namespace(state).exp(logs[0])
    return NativeSystem(state, logs[0] if logs else None, B, C, D, system)


def controllability(system: System, *, horizon: int | None = None) -> Array:
    """Native version of `controllability_gramian`."""
    return _gramian(system, horizon, 0)


def observability(system: System, *, horizon: int | None = None) -> Array:
    """Native version of `observability_gramian`."""
    return _gramian(system, horizon, 1)


def _gramian(system: System, horizon: int | None, which: int) -> Array:
    arrays = native_system(system, horizon=horizon)
    factor = arrays.factors()[which]
    gramian = factor @ adjoint(factor)
    return arrays.xp.real(gramian) if arrays.real_output else gramian


def _imag(array: Array) -> Array:
    xp = namespace(array)
    is_complex = xp.isdtype(array.dtype, "complex floating")
    return xp.imag(array) if is_complex else xp.zeros_like(array)
