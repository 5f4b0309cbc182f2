"""Arrays of any library in, NumPy arrays on the host out.

Systems keep the arrays they are given (NumPy, JAX, torch, CuPy: anything that follows the array
API). Rank decisions and reductions happen on the host, in NumPy, at double precision.
No framework is imported here: an array that came from one proves that it is loaded already.
"""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

Array = Any
"""An array of any library that follows the array API."""

HostArray = NDArray[Any]
"""A NumPy array."""


def as_array(value: object) -> Array:
    """Return `value` itself if it is an array of a known library, else ``numpy.asarray(value)``."""
    if type(value) is np.ndarray or (
        array_api_compat.is_array_api_obj(value) and not isinstance(value, np.generic)
    ):
        return value
    return np.asarray(value)


def is_traced(array: Array) -> bool:
    """Tell whether `array` is an abstract JAX value, whose entries cannot be looked at."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def is_complex_array(array: Array) -> bool:
    """Tell whether `array`, of any library, has a complex dtype."""
    return bool(array_api_compat.array_namespace(array).isdtype(array.dtype, "complex floating"))


def to_host(array: Array) -> HostArray:
    """Copy or view `array` as a NumPy array; device arrays are moved."""
    if array_api_compat.is_torch_array(array):
        return np.asarray(array.detach().cpu().resolve_conj().numpy())
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    return np.asarray(array)


def is_host_double(array: Array) -> bool:
    """Tell whether `array` is a NumPy array of float64 or complex128, as `to_double` returns."""
    return type(array) is np.ndarray and array.dtype in (np.float64, np.complex128)


def to_double(array: Array) -> HostArray:
    """Copy or view `array` on the host as float64, or complex128 if it is complex."""
    host = to_host(array)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64, copy=False)


def adjoint(matrix: HostArray) -> HostArray:
    """Conjugate transpose of the last two axes (a view if `matrix` is real)."""
    transposed = matrix.swapaxes(-1, -2)
    return transposed.conj() if matrix.dtype.kind == "c" else transposed
