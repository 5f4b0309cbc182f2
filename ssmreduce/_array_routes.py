"""Where arrays of other libraries come in, and answers go out in kind: `any_library`.

Three routes lead through a public function.

1. NumPy arrays: the function is called as it is.
2. Arrays in host memory (torch on the CPU, JAX on the CPU, array-api-strict): they are viewed as NumPy
   arrays, the function is called, and all arrays in its result go back to the caller's library.
3. Arrays on another device, abstract arrays of JAX, and tensors that record gradients: the native
   version of the function is called, which leaves them where they are. Where there is none, or it
   raises `NoNativeRoute`, arrays of a device take route 2 with a `HostTransferWarning`; so do tensors
   whose gradient a native version would have kept.

Arrays are found in arguments, and in the fields of dataclasses: systems, reductions, solutions. An object
that went in and comes out is the same object for the caller.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np

from ssmreduce._array_libraries import (
    Array,
    described,
    from_host,
    in_host_memory,
    is_array,
    is_traced,
    linear_algebra_errors,
    records_gradient,
    to_host,
)
from ssmreduce.errors import HostTransferWarning, NoConvergenceError, TracedValueError

F = TypeVar("F", bound=Callable[..., Any])


class NoNativeRoute(Exception):
    """A native version cannot do what was asked for; the message says why."""


# --- Arrays inside of values

_PLAIN, _ARRAY, _SEQUENCE = "plain", "array", "sequence"

_KINDS: dict[type, str | tuple[str, ...]] = {np.ndarray: _PLAIN}
"""What a type is: plain, an array of another library, a sequence, or a dataclass with these fields."""


def _kind(value: object) -> str | tuple[str, ...]:
    kind = _KINDS.get(type(value))
    if kind is None:
        kind = _KINDS[type(value)] = _classified(value)
    return kind


def _classified(value: object) -> str | tuple[str, ...]:
    if is_array(value) and not isinstance(value, np.ndarray):
        return _ARRAY
    if isinstance(value, tuple | list):
        return _SEQUENCE
    if dataclasses.is_dataclass(value) and type(value).__module__.split(".")[0] == "ssmreduce":
        return tuple(field.name for field in dataclasses.fields(value)) or _PLAIN
    return _PLAIN


def is_foreign(*values: Any) -> bool:
    """Whether there is an array of another library than NumPy in one; of a sequence the first counts."""
    left = list(values)
    for value in left:  # it grows
        kind = _KINDS.get(type(value)) or _kind(value)
        if kind is _ARRAY:
            return True
        if kind is _SEQUENCE:
            left += value[:1]
        elif kind is not _PLAIN:
            for name in kind:
                part = getattr(value, name)
                # Most are, and this runs on every call with a system: 1 µs.
                if type(part) is not np.ndarray:
                    left.append(part)
    return False


def _foreign_arrays(value: Any) -> Iterator[Array]:
    kind = _kind(value)
    if kind is _ARRAY:
        yield value
    elif kind is _SEQUENCE:
        for part in value:
            yield from _foreign_arrays(part)
    elif kind is not _PLAIN:
        for name in kind:
            yield from _foreign_arrays(getattr(value, name))


def _mapped(value: Any, convert: Callable[[Any], Any]) -> Any:
    """`value` with `convert` applied to what it holds; itself where nothing changes."""
    kind = _kind(value)
    if kind is _SEQUENCE:
        parts = [convert(part) for part in value]
        changed = any(new is not old for new, old in zip(parts, value, strict=True))
        return type(value)(parts) if changed else value
    fields = {name: convert(getattr(value, name)) for name in kind}
    if all(new is getattr(value, name) for name, new in fields.items()):
        return value
    # Its constructor would check again what was checked before.
    copy = object.__new__(type(value))
    vars(copy).update(fields)
    return copy


# --- The caller


@dataclasses.dataclass(frozen=True, eq=False)
class Caller:
    """Who called: the library and device of an array, and the objects that were passed.

    Parameters
    ----------
    like : array
        Answers go to its library and device.
    """

    like: Array
    _known: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def host(self, value: Any) -> Any:
        """Return `value` with NumPy arrays for all arrays in it."""
        if not any(True for _ in _foreign_arrays(value)):
            return value
        converted = to_host(value) if _kind(value) is _ARRAY else _mapped(value, self.host)
        # Kept alive by the entry, so that no other object can take over its id.
        self._known[id(converted)] = converted, value
        return converted

    def answer(self, value: Any) -> Any:
        """Return `value` with arrays of the caller's library, and the objects that it passed."""
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, np.ndarray):
            return from_host(value, self.like)
        if _kind(value) in (_PLAIN, _ARRAY):
            return value
        return _mapped(value, self.answer)


def deciding_array(*values: Any) -> Array:
    """The array by which the route is chosen: a traced one, or one on a device, before all others."""
    arrays = [array for value in values for array in _foreign_arrays(value)]
    return max(arrays, key=_urgency, default=np.zeros(()))


def _urgency(array: Array) -> int:
    if is_traced(array):
        return 3
    if not in_host_memory(array):
        return 2
    return int(records_gradient(array))


def needs_native(*values: Any) -> bool:
    """Whether arrays should be left where they are: on a device, traced, or recording gradients."""
    return is_foreign(*values) and _urgency(deciding_array(*values)) > 0


def announce_transfer(name: str, reason: str, *values: Any) -> None:
    """Warn that `name` moves arrays of a device to the host, or refuse to look into traced ones.

    Raises
    ------
    TracedValueError
        If an array is traced.
    """
    like = deciding_array(*values)
    if is_traced(like):
        raise TracedValueError(
            f"`{name}` was called with {described(like)}, but {reason}; expected numbers that can be "
            "looked at. Call it outside of jit and vmap."
        )
    if not in_host_memory(like):
        warn_caller(
            f"`{name}` got {described(like)}, but {reason}: computed on the host, and the answer moved "
            "back. Move the arrays yourself, system.to_host(), to do so once.",
            HostTransferWarning,
        )


def announce_fallback(name: str, reason: str, *values: Any) -> None:
    """`announce_transfer` where a native version refused: a gradient that it would have had ends too."""
    announce_transfer(name, reason, *values)
    if _record_gradients(*values):
        warn_caller(
            f"`{name}` got a tensor that records gradients, but {reason}: computed on the host, and the "
            "gradient ends here. Detach the arrays, system.to_host(), if none is wanted.",
            HostTransferWarning,
        )


def _record_gradients(*values: Any) -> bool:
    return any(records_gradient(array) for value in values for array in _foreign_arrays(value))


def warn_caller(message: str, category: type[Warning]) -> None:
    """Issue a warning at the line outside of this package that led to it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ssmreduce."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def any_library(
    native: Callable[..., Any] | None = None, *, has_derivative: bool = False
) -> Callable[[F], F]:
    """Let a function of NumPy arrays and systems take those of any library, and answer in kind.

    Parameters
    ----------
    native : callable, optional
        The same function for arrays that should stay where they are.
    has_derivative : bool
        Whether the function itself answers systems whose derivative may be asked for, traced ones and
        those that record gradients; see `ssmreduce.derivatives`.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_foreign(*args, *kwargs.values()):
                return elsewhere(*args, **kwargs)
            return function(*args, **kwargs)

        def elsewhere(*args: Any, **kwargs: Any) -> Any:
            values = (*args, *kwargs.values())
            if needs_native(*values):
                traced = is_traced(deciding_array(*values))
                if has_derivative and (traced or _record_gradients(*values)):
                    return function(*args, **kwargs)
                if native is None:
                    reason = "it has no version that leaves arrays where they are"
                    announce_transfer(function.__name__, reason, *values)
                else:
                    try:
                        return run_native(native, *args, **kwargs)
                    except NoNativeRoute as refusal:
                        announce_fallback(function.__name__, str(refusal), *values)
            caller = Caller(deciding_array(*values))
            on_host = [caller.host(value) for value in args]
            named = {key: caller.host(value) for key, value in kwargs.items()}
            return caller.answer(function(*on_host, **named))

        return cast(F, call)

    return decorate


def run_native(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a native version; what fails in its arithmetic is a reason to try on the host.

    Raises
    ------
    NoNativeRoute
        If it cannot answer.
    """
    try:
        return native(*args, **kwargs)
    except NoConvergenceError as error:
        raise NoNativeRoute(f"on its device {error}") from error
    except linear_algebra_errors() as error:
        raise NoNativeRoute(f"its device could not decompose a matrix ({error})") from error
