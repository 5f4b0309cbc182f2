"""Systems as tuples of arrays and back, and as pytrees of JAX.

The arrays of a system are (A, B, C, D), or (λ, B, C, D) for a diagonal one, with log λ in place of λ
where logarithms are kept: λ is then computed again, so that the two always agree. Going back
checks nothing: a tree may hold tracers, axis numbers or gradients in place of arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import array_api_compat

from ssmreduce._array_libraries import Array

SomeSystem = TypeVar("SomeSystem")

_REGISTERED: set[type] = set()
"""Classes that JAX knows as pytrees."""

_OPTIONS = {
    "A": ("time", "read_after_update"),
    "eigenvalues": ("time", "read_after_update", "real_output"),
}
"""Fields that are not arrays, by the field of the state array."""

_LACKS_LOGARITHMS = "_lacks_logarithms"
"""Set where a tree, half of one that was parted say, has None in their place: its structure stays."""


def arrays_of(system: Any) -> tuple[Array, Array, Array, Array]:
    """Return the state array (A, λ or log λ), B, C and D."""
    state, B, C, D = (getattr(system, name) for name in _names(system))
    return state, B, C, D


def with_arrays(system: Any, arrays: Sequence[Array]) -> Any:
    """Return a system like `system` with other arrays, of any kind and unchecked."""
    return _unflatten(type(system), _structure(system), tuple(arrays))


def unchecked(system: SomeSystem, **fields: Any) -> SomeSystem:
    """Return a copy of `system` with other fields, which are known to fit."""
    copy = object.__new__(type(system))
    vars(copy).update(vars(system), **fields)
    return copy


def register_pytree(cls: type) -> None:
    """Tell JAX, if it is loaded, how to take a system apart; once per class."""
    jax = sys.modules.get("jax")
    if jax is None or cls in _REGISTERED:
        return
    _REGISTERED.add(cls)

    def flatten_with_keys(system: Any) -> Any:
        keys = (jax.tree_util.GetAttrKey(name) for name in _names(system))
        return tuple(zip(keys, arrays_of(system), strict=True)), _structure(system)

    jax.tree_util.register_pytree_with_keys(
        cls,
        flatten_with_keys,
        lambda structure, arrays: _unflatten(cls, structure, arrays),
        lambda system: (arrays_of(system), _structure(system)),
    )


def register_fields(cls: type, arrays: list[str], options: list[str]) -> None:
    """The same for a dataclass with these fields, of which `options` are no leaves."""
    jax = sys.modules.get("jax")
    if jax is None or cls in _REGISTERED:
        return
    _REGISTERED.add(cls)
    jax.tree_util.register_dataclass(cls, arrays, options)


def _names(system: Any) -> tuple[str, str, str, str]:
    state = system.state_field
    if state == "eigenvalues" and (
        system.log_eigenvalues is not None or _LACKS_LOGARITHMS in vars(system)
    ):
        state = "log_eigenvalues"
    return state, "B", "C", "D"


def _structure(system: Any) -> tuple[Any, ...]:
    """What is not an array, hashable: name of the state array, and (name, value) of each option."""
    options = _OPTIONS[system.state_field]
    return _names(system)[0], *((name, getattr(system, name)) for name in options)


def _unflatten(cls: type, structure: tuple[Any, ...], arrays: Sequence[Any]) -> Any:
    state, *options = structure
    values = dict(zip((state, "B", "C", "D"), arrays, strict=True), **dict(options))
    if state == "log_eigenvalues":
        values["eigenvalues"] = logarithms = values[state]
        if logarithms is None:
            values[_LACKS_LOGARITHMS] = True
        if array_api_compat.is_array_api_obj(logarithms):
            values["eigenvalues"] = array_api_compat.array_namespace(logarithms).exp(logarithms)
    elif state == "eigenvalues":
        values["log_eigenvalues"] = None
    system: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(system, name, value)
    return system
