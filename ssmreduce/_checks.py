"""Validation shared by all modules: one check, one message, both sizes printed."""

from __future__ import annotations

import importlib
import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from numbers import Real
from types import ModuleType
from typing import Any, TypeGuard

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import (
    DOUBLES,
    Array,
    HostArray,
    as_array,
    has_doubles,
    in_host_memory,
    is_array,
    is_traced,
    refuted,
    to_double,
    to_host,
)
from ssmreduce._lapack import all_finite
from ssmreduce.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingBackendError,
    NonFiniteError,
    ShapeError,
    SSMReduceError,
    TracedValueError,
)

_LARGEST = sys.float_info.max

_LONGEST = 200
"""Characters of a value that a message shows."""


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


@contextmanager
def naming(place: str, advice: str = "") -> Iterator[None]:
    """Begin the message of an error with where it came up, such as "while reducing layer `encoder`".

    `advice` is what to try there, and ends it.
    """
    try:
        yield
    except SSMReduceError as error:
        raise type(error)(f"{place}: {error}{advice}") from error


def type_name(value: object) -> str:
    """Name of the type for a message: with its module, unless it is one of ours."""
    kind = type(value)
    ours = kind.__module__.split(".")[0] == "ssmreduce"
    return kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def floating_array(value: object, name: str, ndim_min: int) -> Array:
    """Return `value` as a finite real or complex floating array with at least `ndim_min` axes."""
    array = numeric_array(value, name, ndim_min)
    if isinstance(array, np.ndarray):
        finite = all_finite(array)
    elif not is_traced(array) and in_host_memory(array):
        # JAX would compile its own functions for every new shape, 0.1 s each.
        finite = all_finite(to_host(array))
    else:  # what cannot be looked at counts as finite
        finite = not refuted(array_api_compat.array_namespace(array).isfinite(array))
    if not finite:
        raise NonFiniteError(
            f"`{name}` holds NaN or Inf; expected finite numbers. "
            "Look at the step before: a diverged training run or a damaged checkpoint."
        )
    return array


def floating_arrays(values: Mapping[str, Any], ndim_min: Sequence[int]) -> list[Array]:
    """Return several values as `floating_array` does, each under its name, with its number of axes."""
    arrays = list(values.values())
    plain = all(
        type(x) is np.ndarray and x.dtype in DOUBLES and x.ndim >= least
        for x, least in zip(arrays, ndim_min, strict=True)
    )
    if plain and all_finite(*arrays):
        return arrays
    named = zip(values.items(), ndim_min, strict=True)
    return [floating_array(value, name, least) for (name, value), least in named]


def numeric_array(value: object, name: str, ndim_min: int) -> Array:
    """Return `value` as a real or complex floating array with at least `ndim_min` axes, finite or not."""
    plain = type(value) is np.ndarray and value.dtype in DOUBLES
    array: Array = value if plain else _as_numeric(value, name)
    if array.ndim < ndim_min:
        expected, hint = {
            1: ("one axis at least", f"Pass {name}=[{shown(value)}] if one number was meant."),
            2: ("at least 2 axes", "Write one input as a column and one output as a row."),
        }.get(ndim_min, (f"at least {ndim_min} axes", "Add an axis of length 1 for what is one."))
        raise ShapeError(f"`{name}` has shape {tuple(array.shape)}; expected {expected}. {hint}")
    return array


def _holds_traced(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_traced, value))
    return is_traced(value)


def _as_numeric(value: object, name: str) -> Array:
    array = _as_array(value, name)
    if array is not value and isinstance(value, np.ma.MaskedArray):
        raise ShapeError(
            f"`{name}` is a masked array; expected all of its entries. Fill in what is missing, for "
            f"example {name}.filled(0.0)."
        )
    array, floating = _as_floating(array)
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
    return array


def _as_array(value: object, name: str) -> Array:
    try:
        return as_array(value)
    except ValueError as error:
        raise ShapeError(
            f"`{name}` is not an array ({error}); expected rows of equal length. Look at its nesting."
        ) from None
    except TypeError as error:
        if not _holds_traced(value):
            raise
        raise TracedValueError(
            f"`{name}` is a {type_name(value)} with traced arrays of jax, which NumPy cannot read; expected "
            "one array. Join them first, by jax.numpy.stack say, or call it outside of jit and vmap."
        ) from error


def _as_floating(array: Array) -> tuple[Array, bool]:
    """Bools and ints as floating numbers, long doubles as doubles; and whether it holds such numbers."""
    if isinstance(array, np.ndarray):
        if array.dtype.kind in "biu":
            array = array.astype(np.float64)
        elif array.dtype.char in "gG":  # long doubles; what a double cannot hold becomes Inf
            with np.errstate(over="ignore"):
                array = array.astype(np.float64 if array.dtype.char == "g" else np.complex128)
        elif not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return array, array.dtype.kind in "fc"
    xp = array_api_compat.array_namespace(array)
    if xp.isdtype(array.dtype, ("bool", "integral")):
        array = xp.astype(array, xp.float64 if has_doubles(array) else xp.float32)
    return array, bool(xp.isdtype(array.dtype, ("real floating", "complex floating")))


def not_square(A: Array) -> ShapeError:
    """What to raise for a state matrix that is not square."""
    return ShapeError(
        f"`A` is {A.shape[-2]}x{A.shape[-1]}; expected a square matrix. Is it transposed or cut?"
    )


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


# --- Settings


def shown(value: object) -> str:
    """`value` as a message shows it: cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # ints of more digits than Python prints
        return f"a {type_name(value)} of too many digits to print"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..., a {type_name(value)}"


def exact(value: float) -> str:
    """The fewest digits that are this double and no other, and no sign of a zero."""
    return repr(float(value) + 0.0).removesuffix(".0")


def flag(value: object, name: str) -> bool:
    """Return `value` as a bool."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ArgumentTypeError(
        f"`{name}` is {shown(value)}; expected a bool: anything else would count as True or False "
        "unseen. Pass True or False."
    )


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether `value` is an int, of Python or NumPy, that NumPy can count with."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool | np.timedelta64):
        return False
    return bool(-sys.maxsize <= value <= sys.maxsize)


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether `value` is a finite real number, of Python or NumPy, that a float can hold."""
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, float | int | Real):
        return False
    if isinstance(value, int | Fraction):  # of any size, which math.isfinite cannot convert
        return bool(-_LARGEST <= value <= _LARGEST)
    return math.isfinite(value)


def is_one_of(value: object, names: Sequence[str]) -> bool:
    """Tell whether `value` is one of these strings; of an array ``in`` would ask for each entry."""
    return isinstance(value, str) and value in names


def is_extended(value: object) -> TypeGuard[float]:
    """Tell whether `value` is a real number, or infinite."""
    return is_number(value) or (isinstance(value, Real) and abs(value) == math.inf)


def finite_number(value: object, name: str, meaning: str) -> float:
    """Return `value` as a float."""
    if not is_number(value):
        raise ArgumentError(
            f"`{name}` is {shown(value)}; expected a finite number. Pass {meaning}."
        )
    return float(value)


def metric_value(metric: Any, name: str = "metric") -> float:
    """Return a reported metric, a number or an array of one entry, as a float; NaN and Inf are values.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    try:
        value = getattr(metric, "detach", lambda: metric)()
        numbers = value.dtype.kind in "iuf" if isinstance(value, np.ndarray | np.generic) else None
        if numbers is False or isinstance(value, str | bytes | bytearray | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(
            f"`{name}` is {shown(metric)}; expected a number, or an array of one entry. Report the value "
            "itself, for example metrics['val_loss']."
        ) from None


def check_instance(value: object, expected: type, name: str, example: str) -> None:
    """Raise `ArgumentTypeError` unless `value` is an object of that class."""
    if not isinstance(value, expected):
        raise ArgumentTypeError(
            f"`{name}` is {shown(value)}; expected a {expected.__name__}. Try {example}."
        )


def check_functions(**functions: object) -> None:
    """Raise `ArgumentTypeError` unless each of these arguments is a function or None."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ArgumentTypeError(
                f"`{name}` is {shown(function)}; expected a function. Leave it out if there is none."
            )


def items(value: Any, name: str, meaning: str) -> list[Any]:
    """Return the entries of a list, tuple or array."""
    if isinstance(value, list | tuple):
        return list(value)
    if is_array(value) and value.ndim > 0:
        return [value[k, ...] for k in range(value.shape[0])]
    raise ShapeError(f"`{name}` is {shown(value)}; expected a list. Pass {meaning}.")


def fields_of(values: object, *names: str) -> dict[str, Any]:
    """Return the entries of these names of what `to_dict` returned."""
    if not isinstance(values, Mapping) or any(name not in values for name in names):
        raise ShapeError(
            f"`values` is {shown(values)}; expected a dict with {', '.join(names)}. Pass what to_dict() "
            "returned."
        )
    return {name: values[name] for name in names}


def check_text(value: object, name: str, meaning: str) -> None:
    """Raise `ArgumentTypeError` unless `value` is a string."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"`{name}` is {shown(value)}; expected a str. Pass {meaning}.")


def positive_count(value: object, name: str, meaning: str) -> int:
    """Return `value` as a positive int."""
    if not is_int(value) or value < 1:
        raise ArgumentError(f"`{name}` is {shown(value)}; expected a positive int. Pass {meaning}.")
    return int(value)


def nonnegative_count(value: object, name: str, meaning: str) -> int:
    """Return `value` as an int that is not negative."""
    if not is_int(value) or value < 0:
        raise ArgumentError(
            f"`{name}` is {shown(value)}; expected an int, 0 or more. Pass {meaning}."
        )
    return int(value)


def whole_number(value: Any, name: str, meaning: str) -> int:
    """Return `value`, an int or an array of one of any library, as an int."""
    try:
        if isinstance(value, bool | np.bool_ | np.timedelta64):
            raise TypeError
        number: int = operator.index(value)
        if not is_int(number):
            raise TypeError
        return number
    except TypeError:
        raise ArgumentError(
            f"`{name}` is {shown(value)}; expected an int. Pass {meaning}."
        ) from None


def positive_horizon(horizon: object) -> int | None:
    """Return `horizon` as a positive int, or None for an infinite horizon."""
    if horizon is None:
        return None
    if not is_int(horizon) or horizon < 1:
        raise ArgumentError(
            f"`horizon` is {shown(horizon)}; expected a positive number of steps, or None for an "
            "infinite horizon. Pass the length of the sequences that the layer sees."
        )
    return int(horizon)


def fraction(value: object, name: str, example: float = 0.95) -> float:
    """Return `value` as a float strictly between 0 and 1, or equal to 1."""
    if not is_number(value) or not 0.0 < value <= 1.0:
        raise ArgumentError(
            f"`{name}` is {shown(value)}; expected a number in (0, 1]. Try {example}."
        )
    return float(value)


def real_values(value: object, name: str, meaning: str) -> HostArray:
    """Return `value` as real, finite numbers in double precision, along at least one axis."""
    array = to_double(floating_array(value, name, 0))
    if array.ndim == 0 or array.dtype.kind == "c":
        raise ShapeError(
            f"`{name}` has shape {array.shape} and dtype {array.dtype}; expected real numbers, in one "
            f"axis at least. Pass {meaning}."
        )
    return array


def singular_values(value: object, name: str = "hsv") -> HostArray:
    """Return Hankel singular values as one axis of real numbers, not empty, descending."""
    array = real_values(value, name, "the result of hankel_singular_values")
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(
            f"`{name}` has shape {array.shape}; expected one axis of at least one number. "
            "Pass the result of hankel_singular_values of a system with states."
        )
    if array[-1] < 0.0 or (array[1:] > array[:-1]).any():
        raise ShapeError(
            f"`{name}` is not sorted, or negative somewhere; expected nonnegative numbers in "
            "descending order. Pass the result of hankel_singular_values."
        )
    return array
