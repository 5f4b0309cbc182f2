"""Transfer functions where the arrays are: C (z I - A)⁻¹ B at many points z at once.

One batched LU per point for a dense A (the host's Schur form, cheaper from a few points on, exists on no
other device), a weighted product for a diagonal one. For all systems of a batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import array_api_compat

from ssmreduce._array_libraries import (
    Array,
    common_precision,
    conjugate,
    device_of,
    in_library_of,
    is_complex_array,
    is_traced,
    namespace,
    refuted,
)
from ssmreduce._array_routes import NoNativeRoute, deciding_array
from ssmreduce._checks import numeric_array
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_single

_WORKING_ENTRIES = 2**26
"""Complex numbers held at once: 1 GiB in double precision."""


def frequency_response(system: System, omega: Any) -> Array:
    """Native version of `frequency_response`, in the precision of the system's arrays."""
    check_single(system)
    like = deciding_array(system, omega)
    (points,) = common_precision(in_library_of(numeric_array(omega, "omega", 0), like))
    if not is_traced(points) and not is_traced(like):
        points = array_api_compat.to_device(points, device_of(like))
    xp = namespace(points)
    if points.ndim != 1 or is_complex_array(points) or refuted(xp.isfinite(points)):
        raise NoNativeRoute("`omega` is not one axis of finite, real frequencies")
    response = transfer_function(system, points)
    if refuted(xp.isfinite(response)):
        raise NoNativeRoute("a pole lies at one of the frequencies")
    return response


def transfer_function(system: System, omega: Array) -> Array:
    """G at frequencies ω, shape (K, p, m); may hold Inf and NaN where a pole is met."""
    xp = namespace(omega)
    state = system.eigenvalues if isinstance(system, DiagonalStateSpace) else system.A
    arrays = (in_library_of(x, omega) for x in (state, system.B, system.C, system.D, omega))
    state, B, C, D, omega = (_complex(x) for x in common_precision(*arrays))
    z = system.time.point(omega)
    if isinstance(system, DiagonalStateSpace):
        values = _diagonal(state, B, C, z)
        if system.real_output:
            values = 0.5 * (values + conjugate(_diagonal(state, B, C, conjugate(z))))
    else:
        length = max(1, _WORKING_ENTRIES // max(1, state.shape[-1] ** 2))
        count = z.shape[0]
        edges = [*range(0, count, length), count]
        blocks = [_dense(state, B, C, z[i:j]) for i, j in pairwise(edges)]
        values = xp.concat(blocks, axis=0) if blocks else xp.zeros((0, *D.shape), dtype=z.dtype)
    return (z[:, None, None] * values if system.read_after_update else values) + D


def _diagonal(poles: Array, B: Array, C: Array, z: Array) -> Array:
    weights = 1.0 / (z[:, None] - poles)
    return (C[None, :, :] * weights[:, None, :]) @ B


def _dense(A: Array, B: Array, C: Array, z: Array) -> Array:
    xp = namespace(A)
    n = A.shape[-1]
    identity = xp.eye(n, dtype=A.dtype, device=device_of(A))
    right = xp.broadcast_to(B[None, :, :], (z.shape[0], n, B.shape[-1]))
    return C @ xp.linalg.solve(z[:, None, None] * identity - A, right)


def _complex(array: Array) -> Array:
    xp = namespace(array)
    if xp.isdtype(array.dtype, "complex floating"):
        return array
    return xp.astype(array, xp.complex128 if array.dtype == xp.float64 else xp.complex64)
