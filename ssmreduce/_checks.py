"""Validation shared by all modules: one check, one message, both sizes printed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from numbers import Real
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from ssmreduce._lapack import all_finite
from ssmreduce._namespace import (
    Array,
    as_array,
    has_doubles,
    in_host_memory,
    is_traced,
    refuted,
    to_host,
)
from ssmreduce.errors import MissingBackendError, NonFiniteError, OrderError, ShapeError


def require_backend(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or raise `MissingBackendError` naming the pip command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingBackendError(
            f"{module} is not installed and this feature needs it. "
            f"Run: pip install 'ssmreduce[{extra}]'"
        ) from None


def type_name(value: object) -> str:
    """Name of the type for a message: with its module, unless it is one of ours."""
    kind = type(value)
    ours = kind.__module__.split(".")[0] == "ssmreduce"
    return kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def floating_array(value: object, name: str, ndim_min: int) -> Array:
    """Return `value` as a finite real or complex floating array with at least `ndim_min` axes."""
    array = numeric_array(value, name, ndim_min)
    if not _all_finite(array):
        raise NonFiniteError(
            f"`{name}` holds NaN or Inf; expected finite numbers. "
            "Look at the step before: a diverged training run or a damaged checkpoint."
        )
    return array


def numeric_array(value: object, name: str, ndim_min: int) -> Array:
    """Return `value` as a real or complex floating array with at least `ndim_min` axes, finite or not."""
    try:
        array = as_array(value)
    except ValueError as error:
        raise ShapeError(
            f"`{name}` is not an array ({error}); expected rows of equal length. Look at its nesting."
        ) from None
    if array is not value and isinstance(value, np.ma.MaskedArray):
        raise ShapeError(
            f"`{name}` is a masked array; expected all of its entries. Fill in what is missing, for "
            f"example {name}.filled(0.0)."
        )
    if isinstance(array, np.ndarray):
        if array.dtype.kind in "biu":
            array = array.astype(np.float64)
        floating = array.dtype.kind in "fc"
    else:
        xp = array_api_compat.array_namespace(array)
        if xp.isdtype(array.dtype, ("bool", "integral")):
            array = xp.astype(array, xp.float64 if has_doubles(array) else xp.float32)
        floating = xp.isdtype(array.dtype, ("real floating", "complex floating"))
    if array.dtype == object:
        raise ShapeError(
            f"`{name}` is a {type_name(value)}, which NumPy reads as "
            f"objects; expected numbers. Of a sparse matrix take {name}.toarray()."
        )
    if not floating:
        raise ShapeError(
            f"`{name}` has dtype {array.dtype}; expected a real or complex floating dtype. "
            f"Convert it, for example {name}.astype('float64')."
        )
    if array.ndim < ndim_min:
        raise ShapeError(
            f"`{name}` has shape {tuple(array.shape)}; expected at least {ndim_min} axes. "
            "Write one input as a column and one output as a row."
        )
    return array


def _all_finite(array: Array) -> bool:
    """Tell whether no entry is NaN or Inf; what cannot be looked at counts as finite."""
    if isinstance(array, np.ndarray):
        return all_finite(array)
    if not is_traced(array) and in_host_memory(array):
        # JAX would compile its own functions for every new shape, 0.1 s each.
        return all_finite(to_host(array))
    return not refuted(array_api_compat.array_namespace(array).isfinite(array))


def matching_batches(batches: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Check that all arrays have the same leading axes and return them."""
    (first, expected), *rest = batches.items()
    for name, found in rest:
        if found != expected:
            raise ShapeError(
                f"`{name}` has leading batch axes {found} but `{first}` has {expected}; "
                "expected the same. Broadcast the arrays before you build the system."
            )
    return expected


def positive_order(order: object, *, name: str = "order") -> int:
    """Return `order` as a positive int."""
    if isinstance(order, bool) or not isinstance(order, int | np.integer):
        raise OrderError(
            f"`{name}` is {order!r}; expected a positive int or an order rule. "
            "Try a rule such as HankelMass(0.99)."
        )
    if order < 1:
        raise OrderError(
            f"`{name}` is {int(order)}; expected at least 1 state. "
            "Look at hankel_singular_values(system) to choose one."
        )
    return int(order)


def positive_count(value: object, name: str, meaning: str) -> int:
    """Return `value` as a positive int."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise OrderError(f"`{name}` is {value!r}; expected a positive int. Pass {meaning}.")
    return int(value)


def is_number(value: object) -> bool:
    """Tell whether `value` is a finite real number, of Python or NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


_LONGEST_HORIZON = 2**63 - 1
"""Steps that a count of 64 bits holds."""


def positive_horizon(horizon: object) -> int | None:
    """Return `horizon` as a positive int, or None for an infinite horizon."""
    if horizon is None:
        return None
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise OrderError(
            f"`horizon` is {horizon!r}; expected a positive number of steps, or None for an "
            "infinite horizon. Pass the length of the sequences that the layer sees."
        )
    if horizon > _LONGEST_HORIZON:
        raise OrderError(
            "`horizon` is more than 2**63 - 1; expected fewer steps, or None for an infinite horizon. "
            "Leave it out: no sequence is as long."
        )
    return int(horizon)


def fraction(value: Any, name: str) -> float:
    """Return `value` as a float strictly between 0 and 1, or equal to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise OrderError(f"`{name}` is {value!r}; expected a number in (0, 1]. Try 0.95.")
    if not 0.0 < float(value) <= 1.0:
        raise OrderError(f"`{name}` is {float(value)}; expected a number in (0, 1]. Try 0.95.")
    return float(value)
