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

from ssmreduce._array_libraries import (
    Array,
    adjoint,
    common_precision,
    conjugate,
    has_doubles,
    imaginary_part,
    in_library_of,
    is_complex_array,
    is_traced,
    namespace,
    real_part,
    refuted,
)
from ssmreduce._array_routes import NoNativeRoute, deciding_array
from ssmreduce.devices import diagonal_factors
from ssmreduce.devices.lyapunov import iterated_factors
from ssmreduce.devices.residual import BACKWARD_STABLE, factor_residual
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.pytree import arrays_of

_LARGE = 2.0**230
"""Entries of B and C between 1/this and this have squares, and products of two of those, in range."""

_Side = tuple[Array, Array | None, Array]


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
        return self.system.real_output

    @property
    def traced(self) -> bool:
        """Whether values cannot be looked at."""
        return any(is_traced(x) for x in (self.state, self.B, self.C, self.D))

    def factors(self, *sides: int) -> list[Array]:
        """Z and Y, P = Z Zᴴ and Q = Y Yᴴ, or the one of `sides`; complex for real outputs, of real states.

        Raises
        ------
        NoNativeRoute
            If a system is not stable, its entries are out of range, or the factors are not accurate;
            not where traced.
        """
        if self.system.order == 0:
            raise NoNativeRoute("a static gain has no states to work on")
        chosen = [self._side(which) for which in sides or (0, 1)]
        for _, _, G in chosen:
            if 0 not in G.shape and not self.traced:
                size = self.xp.max(self.xp.abs(G), axis=(-2, -1))
                moderate = (size > 1.0 / _LARGE) & (size < _LARGE)
                self.require((size == 0.0) | moderate, "its entries cannot be squared on it")
        if isinstance(self.system, DiagonalStateSpace):
            return self._diagonal_factors(chosen)
        return self._dense_factors(chosen)

    def _side(self, which: int) -> _Side:
        """The state array, its logarithms and the generator of P (0) or of Q (1)."""
        if which == 0:
            return self.state, self.logarithms, self.B
        logarithms = None if self.logarithms is None else conjugate(self.logarithms)
        diagonal = isinstance(self.system, DiagonalStateSpace)
        mirrored = conjugate(self.state) if diagonal else adjoint(self.state)
        return mirrored, logarithms, adjoint(self.C)

    def _diagonal_factors(self, sides: list[_Side]) -> list[Array]:
        xp, time = self.xp, self.system.time
        stable = time.inside(self.state, logarithms=self.logarithms)
        self.require(stable, "a pole is not stable")
        factor = (
            diagonal_factors.real_state_factor
            if self.real_output
            else diagonal_factors.state_factor
        )
        factors = [factor(*side, time) for side in sides]
        for Z in factors:
            self.require(xp.isfinite(Z), "a Gramian is not finite")
        return factors

    def _dense_factors(self, sides: list[_Side]) -> list[Array]:
        xp, time = self.xp, self.system.time
        A, generators = sides[0][0], [G for _, _, G in sides]
        factors, done, _ = iterated_factors(A, time, *generators)
        if self.traced:
            undefined = xp.where(done, 1.0, xp.nan)[..., None, None]
            return [undefined * Z for Z in factors]
        self.require(
            done, "a pole is not stable, or too near the stability boundary for iterations"
        )
        for (A, _, G), Z in zip(sides, factors, strict=True):
            limit = BACKWARD_STABLE * (self.system.order + 10) * xp.finfo(Z.dtype).eps
            accurate = factor_residual(A, Z, G, time=time) <= limit
            self.require(accurate, "the iteration lost digits that a Schur form keeps")
        return factors

    def require(self, condition: Array, refusal: str) -> None:
        """Leave for the host unless `condition` holds everywhere; traced values count as true."""
        if refuted(condition):
            raise NoNativeRoute(refusal)

    @property
    def input_matrix(self) -> Array:
        """B, or that of the real states."""
        if not self.real_output:
            return self.B
        return self.xp.concat([self.xp.real(self.B), imaginary_part(self.B)], axis=-2)

    @property
    def output_matrix(self) -> Array:
        """C, or that of the real states."""
        if not self.real_output:
            return self.C
        return self.xp.concat([self.xp.real(self.C), -imaginary_part(self.C)], axis=-1)


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
    if logs:
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
    (factor,) = arrays.factors(which)
    gramian = factor @ adjoint(factor)
    return gramian if is_complex_gramian(system, which) else real_part(gramian)


def is_complex_gramian(system: System, which: int) -> bool:
    """Whether P of (A, B), or Q of (A, C), is complex: where the one or the other is."""
    if system.real_output:
        return False
    state, B, C, _ = arrays_of(system)
    return any(map(is_complex_array, (state, C if which else B)))
