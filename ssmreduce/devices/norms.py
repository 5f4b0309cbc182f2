"""Norms where the arrays are: H2 and Hankel norms from factors, a lower bound of the H-infinity norm.

Numbers of single systems come back as floats, those of batches, and traced ones, as arrays. The gain is
taken on one grid, and on finer ones between the neighbours of its largest value. Poles of dense systems
are not known here: the grid of continuous ones reaches from 1/‖A⁻¹‖ to ‖A‖, between which the moduli of
all poles lie.
"""

from __future__ import annotations

from typing import Any

from ssmreduce._array_libraries import (
    Array,
    State,
    adjoint,
    as_number,
    device_of,
    namespace,
    refuted,
    repeat_until,
)
from ssmreduce._array_routes import NoNativeRoute
from ssmreduce.devices.gramian_factors import NativeSystem, native_system
from ssmreduce.devices.hankel_values import singular_values
from ssmreduce.devices.transfer import transfer_function
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.time_domain import Continuous, Discrete

_GRID = 256
"""Points of the first grid."""

_FINER = 17
"""Points of every finer grid, between the neighbours of the largest gain: 8 times finer."""

_ROUNDS = 10
"""Finer grids: 8^10 is 1e9, and the gain is flat at its peak."""

_BEYOND = 10.0
"""How far the grid of a continuous system reaches beyond the bounds of its poles."""


def h2(system: System) -> Any:
    """Native version of `h2_norm`: ‖C Z‖_F or ‖Bᴴ Y‖_F, and ‖D‖_F with it in discrete time."""
    arrays = native_system(system.to_standard())
    xp = arrays.xp
    if system.outputs <= system.inputs:
        (Z,), seen = arrays.factors(0), arrays.output_matrix
    else:
        (Z,), seen = arrays.factors(1), adjoint(arrays.input_matrix)
    state = xp.linalg.matrix_norm(_as(seen, Z) @ Z)
    through = xp.linalg.matrix_norm(arrays.D)
    return as_number(system.time.h2_norm(state, through))


def hankel(system: System) -> Any:
    """Native version of `hankel_norm`."""
    return as_number(singular_values(system.to_standard())[..., 0])


def hinf_lower_bound(system: System, certified: bool) -> tuple[Any, Any]:
    """The largest gain on the grids, and its frequency.

    Raises
    ------
    NoNativeRoute
        If an upper bound is asked for, for a batch, if the system is not stable, and if its gain is 0 or out
        of range on the whole grid.
    """
    if certified:
        raise NoNativeRoute("the level-set test needs eigenvalues of a nonsymmetric matrix")
    if system.batch_shape:
        raise NoNativeRoute("the grid is one of a single system (use vmap in JAX)")
    arrays = native_system(system)
    arrays.factors(0)  # refuses unstable systems
    xp = arrays.xp

    def finer(state: State) -> tuple[Array, State]:
        gain, frequency, omega, at = state
        low = _entry(omega, xp.where(at > 0, at - 1, at))
        high = _entry(omega, xp.where(at < omega.shape[0] - 1, at + 1, at))
        steps = xp.arange(_FINER, dtype=omega.dtype, device=device_of(omega)) / (_FINER - 1)
        omega = low + (high - low) * steps
        seen, at = _peak(system, omega)
        frequency = xp.where(seen > gain, _entry(omega, at), frequency)
        return high <= low, (xp.maximum(gain, seen), frequency, omega, at)

    omega = _grid(arrays)
    gain, at = _peak(system, omega)
    if refuted(gain > 0.0):
        raise NoNativeRoute("its gain is 0 or out of range at all frequencies of the grid")
    start = (gain, _entry(omega, at), omega, at)
    (gain, frequency, *_), _ = repeat_until(finer, start, _ROUNDS)
    through = xp.linalg.matrix_norm(arrays.D, ord=2)
    if isinstance(system.time, Continuous):
        frequency = xp.where(through > gain, xp.inf, frequency)
        gain = xp.maximum(gain, through)
    return as_number(gain), as_number(frequency)


def hinf_pair(system: System) -> Array:
    """The largest gain on the grids and its frequency, as one array."""
    gain, frequency = hinf_lower_bound(system, False)
    return namespace(gain).stack([gain, frequency])


def _peak(system: System, omega: Array) -> tuple[Array, Array]:
    """Largest singular value over the frequencies, and its index."""
    xp = namespace(omega)
    values = transfer_function(system, omega)
    gains = xp.max(xp.linalg.svdvals(xp.where(xp.isfinite(values), values, 0.0)), axis=-1)
    return xp.max(gains), xp.argmax(gains)


def _entry(values: Array, index: Array) -> Array:
    xp = namespace(values)
    return xp.take(values, xp.reshape(index, (1,)), axis=0)[0]


def _grid(arrays: NativeSystem) -> Array:
    """Frequencies, ascending: nonnegative ones for a real system."""
    xp, state, device = arrays.xp, arrays.state, device_of(arrays.B)
    diagonal = isinstance(arrays.system, DiagonalStateSpace)
    discrete = isinstance(arrays.system.time, Discrete)
    real = arrays.real_output or not xp.isdtype(state.dtype, "complex floating")
    sizes = xp.abs(state)
    dtype = sizes.dtype
    if discrete:
        grid = xp.linspace(0.0 if real else -xp.pi, xp.pi, _GRID, dtype=dtype, device=device)
    else:
        low, high = xp.min(sizes), xp.max(sizes)
        if not diagonal:
            high = xp.linalg.matrix_norm(state)
            low = 1.0 / xp.linalg.matrix_norm(xp.linalg.inv(state))
        steps = xp.linspace(0.0, 1.0, _GRID, dtype=dtype, device=device)
        start, end = xp.log(low / _BEYOND), xp.log(high * _BEYOND)
        positive = xp.exp(start + (end - start) * steps)
        grid = xp.concat([xp.zeros_like(positive[:1]), positive])
        if not real:
            grid = xp.concat([-positive, grid])
    if diagonal and xp.isdtype(state.dtype, "complex floating"):
        # Their resonances are known.
        poles = xp.atan2(xp.imag(state), xp.real(state)) if discrete else xp.imag(state)
        grid = xp.concat([grid, xp.abs(poles) if real else poles])
    return xp.sort(grid)


def _as(array: Array, like: Array) -> Array:
    return namespace(array).astype(array, like.dtype, copy=False)
