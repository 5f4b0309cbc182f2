"""doctest looks at the functions of a module: at decorated ones too, by what is inside."""

from __future__ import annotations

import doctest
import inspect
from types import ModuleType
from typing import Any

_from_module: Any = doctest.DocTestFinder._from_module  # type: ignore[attr-defined]


def unwrapped_from_module(finder: doctest.DocTestFinder, module: ModuleType, thing: Any) -> bool:
    """Whether `thing`, or the function that it wraps, is defined in `module`."""
    inner = inspect.unwrap(thing) if inspect.isfunction(thing) else thing
    return bool(_from_module(finder, module, inner))


doctest.DocTestFinder._from_module = unwrapped_from_module  # type: ignore[attr-defined]
