"""The numerical tests in every array library: what they call gets arrays of one, what they see are NumPy's.

Tests of a module with ``pytestmark = pytest.mark.every_library`` run once in each library, but for those
that `exceptions` names. They are written for NumPy: for the length of one test a `Stage` stands between
it and the package. Systems that it builds have a twin in arrays of the library. What it calls, public
functions in the namespace of its module and methods of systems and results, gets the twins. Every array
of the answer, at any depth, must be one of the library, on its device and in its precision; the test gets
a copy of the answer in NumPy arrays of double precision, whose methods are staged again.

The numbers are those of the library: with 32 bits a system is rounded when it is built, so that oracles
see what the library holds, and ``EPS`` in the module of the test is that of 32 bits.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
from libraries import DOUBLE, Library

from ssmreduce import (
    Balancing,
    DiagonalStateSpace,
    Reduction,
    StateSpace,
    _array_routes,
    balance,
    balanced_truncation,
)
from ssmreduce._array_libraries import is_array, to_host
from ssmreduce.errors import SSMReduceError
from ssmreduce.systems.transform import SlotMap

EXAMPLES = 4
"""Examples of a property test in other libraries than NumPy; the arithmetic is mostly the same."""

SYSTEMS = (StateSpace, DiagonalStateSpace)
STAGED = (*SYSTEMS, Balancing, Reduction, SlotMap)
"""Classes whose methods are staged; attributes of any other result are."""

HELPERS = ("samples", "tests.samples", "strategies")
"""Modules that hold the EPS of tolerances beside the one of the test."""


def is_staged(function: object) -> bool:
    """Whether a function takes arrays of any library."""
    if not isinstance(function, FunctionType):
        return False
    decorated = function.__code__.co_filename == _array_routes.__file__
    return decorated or function in (balance, balanced_truncation)


def methods(owner: type) -> Iterator[str]:
    """Names of the public methods of a class, without the one whose answer is meant for the host."""
    for name, value in vars(owner).items():
        public = not name.startswith("_") or name == "__getitem__"
        if public and name != "to_host" and isinstance(value, FunctionType | classmethod):
            yield name


def called_by_package() -> bool:
    """Whether the function that asks was called by the package itself, but for its tools for tests."""
    name = sys._getframe(2).f_globals.get("__name__", "")
    return name.startswith("ssmreduce.") and not name.startswith("ssmreduce.testing")


def with_parts(value: Any, convert: Callable[[Any], Any]) -> Any:
    """A copy of an object of the package with its public attributes converted; itself if none changes."""
    parts = {k: convert(part) for k, part in vars(value).items() if not k.startswith("_")}
    if all(part is vars(value)[k] for k, part in parts.items()):
        return value
    copy = object.__new__(type(value))
    vars(copy).update(vars(value) | parts)
    return copy


def has_parts(value: object) -> bool:
    return type(value).__module__.startswith("ssmreduce.") and hasattr(value, "__dict__")


def is_foreign(value: object) -> bool:
    return is_array(value) and not isinstance(value, np.ndarray)


def widened(host: Any) -> Any:
    """NumPy array of double precision; a NumPy number where there are no axes."""
    if host.dtype.kind in "fc":
        return host.astype(np.result_type(host, np.float64))[()]
    return np.array(host)[()]


class Stage:
    """A test in one library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.calls = 0
        self._twins: dict[int, tuple[Any, Any]] = {}
        self._images: dict[int, tuple[Any, Any]] = {}

    def inside(self, value: Any) -> Any:
        """`value` of the test as the package gets it."""
        if id(value) in self._twins:
            return self._twins[id(value)][1]
        if isinstance(value, np.ndarray):
            return self.library.make(value) if value.dtype.kind in "biufc" else value
        if type(value) in (list, tuple):
            return type(value)(map(self.inside, value))
        if not has_parts(value):
            return value
        if isinstance(value, SYSTEMS):
            twin = self.library.system(value)
        else:
            twin = with_parts(value, self.inside)
        if twin is not value:
            self._pair(value, twin)
        return twin

    def outside(self, value: Any) -> Any:
        """`value` of the package as the test gets it; checks the arrays in it."""
        if id(value) in self._images:
            return self._images[id(value)][1]
        if is_array(value):
            return widened(self.library.read(value))
        if type(value) in (list, tuple):
            return type(value)(map(self.outside, value))
        if not has_parts(value):
            return value
        image = with_parts(value, self.outside)
        if image is not value:
            self._pair(image, value)
        return image

    def _pair(self, outside: Any, inside: Any) -> None:
        # Both are kept alive, so that no other object can take over an id.
        self._twins[id(outside)] = outside, inside
        self._images[id(inside)] = inside, outside

    def staged(
        self, function: Callable[..., Any], given: Callable[[Any], Any] | None = None
    ) -> Callable[..., Any]:
        """`function` in the library, where the test calls it, with arguments as `given` makes them."""
        inside = given or self.inside

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if called_by_package():
                return function(*args, **kwargs)
            self.calls += 1
            named = {name: inside(value) for name, value in kwargs.items()}
            return self.outside(function(*map(inside, args), **named))

        return call

    def built(self, construct: Callable[..., None]) -> Callable[..., None]:
        """The constructor of a system, which builds its twin first: what that refuses is refused."""

        @functools.wraps(construct)
        def build(system: Any, *args: Any, **kwargs: Any) -> None:
            given = (*args, *kwargs.values())
            if called_by_package() or any(map(is_foreign, given)):
                return construct(system, *args, **kwargs)
            twin = object.__new__(type(system))
            named = {name: self._array(value) for name, value in kwargs.items()}
            try:
                construct(twin, *map(self._array, args), **named)
            except SSMReduceError:
                self.calls += 1
                raise
            construct(system, *args, **kwargs)
            if self.library.eps != DOUBLE:
                for name, value in vars(twin).items():
                    if is_array(value):
                        wide = to_host(value).astype(vars(system)[name].dtype)
                        object.__setattr__(system, name, wide)
            self._pair(system, twin)
            return None

        return build

    def _array(self, value: Any) -> Any:
        """An argument of a constructor, where a list of numbers stands for an array."""
        if isinstance(value, list):
            try:
                value = np.asarray(value)
            except ValueError:
                return value
        return self.inside(value)


@contextmanager
def staged_for(module: ModuleType, library: Library) -> Iterator[Stage]:
    """A stage for a test of this module."""
    stage = Stage(library)
    for name, value in vars(module).items():
        held = value.values() if isinstance(value, dict) else value
        if isinstance(value, list | tuple | dict) and not name.startswith("__"):
            assert not any(map(is_staged, held)), f"{name} holds a function, which is not staged"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in list(vars(module).items()):
            if is_staged(value):
                patch.setattr(module, name, stage.staged(value))
        for helper in (module, *(sys.modules[name] for name in HELPERS if name in sys.modules)):
            if "EPS" in vars(helper):
                patch.setattr(helper, "EPS", library.eps)
        for owner in STAGED:
            for name in methods(owner):
                method = inspect.getattr_static(owner, name)
                if isinstance(method, classmethod):
                    call: Any = classmethod(stage.staged(method.__func__, stage._array))
                else:
                    call = stage.staged(method)
                patch.setattr(owner, name, call)
        for owner in SYSTEMS:
            patch.setattr(owner, "__init__", stage.built(owner.__init__))
        yield stage
