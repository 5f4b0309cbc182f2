"""Everything that hangs on an object, as bytes: numbers, arrays, attributes, and which of them are one."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import torch

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_TIMES = frozenset({"seconds"})
"""Attributes and keys that differ from run to run."""


def raw_bytes(*things: Any) -> bytes:
    """Bytes that are the same for two object graphs only if they hold the same bits in the same places.

    Attributes are read as they are stored, private ones too. Code is taken by its name.
    """
    parts: list[bytes] = []
    numbers: dict[int, int] = {}

    def add(value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, _PLAIN):
            parts.append(f"{kind.__name__} {value!r}\n".encode())
            return
        if id(value) in numbers:
            parts.append(b"that %d\n" % numbers[id(value)])
            return
        numbers[id(value)] = len(numbers)
        if isinstance(value, _NAMED):
            parts.append(f"{getattr(value, '__qualname__', value)}\n".encode())
            return
        parts.append(f"{kind.__qualname__} ".encode())
        if isinstance(value, torch.Tensor):
            parts.append(f"{value.dtype} {(*value.shape,)} {value.requires_grad}\n".encode())
            parts.append(value.detach().contiguous().view(-1).numpy().tobytes())
            add(value.grad if value.is_leaf else None)
            add(vars(value))
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            array = np.asarray(value)
            parts.append(f"{array.dtype} {array.shape}\n".encode())
            parts.append(array.tobytes())
        elif isinstance(value, dict):
            add_entries(value)
        elif isinstance(value, list | tuple):
            add_all(value)
        elif isinstance(value, set | frozenset):
            add_all(sorted(value, key=repr))
        elif isinstance(value, types.MethodType):
            add_all((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            add_all((value.func, value.args, value.keywords))
        else:
            slots = [name for each in kind.__mro__ for name in vars(each).get("__slots__", ())]
            held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
            add_entries({**held, **getattr(value, "__dict__", {})})

    def add_all(values: Iterable[Any]) -> None:
        values = list(values)
        parts.append(b"%d\n" % len(values))
        for each in values:
            add(each)

    def add_entries(entries: dict[Any, Any]) -> None:
        parts.append(b"%d\n" % len(entries))
        for key, each in entries.items():
            add(key)
            if not (isinstance(key, str) and key in _TIMES):
                add(each)

    for thing in things:
        add(thing)
    return b"".join(parts)
