"""Docstrings of all names on the API page, as numpydoc reads them; their examples run as doctests."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from numpydoc.docscrape import ClassDoc, FunctionDoc, NumpyDocString

import ssmreduce
import ssmreduce.errors
import ssmreduce.plotting
import ssmreduce.testing
from ssmreduce.adapters import control, pymor, scipy_signal
from ssmreduce.equations import solvers
from ssmreduce.layers.known import KNOWN

PAGE = (Path(__file__).parents[2] / "docs" / "api.rst").read_text(encoding="utf-8")
LISTED = re.findall(r"^   ([\w.]+)$", PAGE, re.M)

NOT_CONSTRUCTED = {
    "Balancing": "made by `balance`",
    "models.report.ModelReport": "a dict, made by `reduce_model`",
    "layers.discretisation.Discretisation": "an Enum",
}
"""Classes of which no user calls the constructor, nor reads its arguments as attributes."""

WITHOUT_REFERENCE = {
    "equations.residual.relative_residual": "a quotient of norms",
    "equations.solvers.AutoLyapunov": "a choice between methods",
    "equations.solvers.LyapunovSolver": "the base class",
}
"""Names in modules of methods that implement none."""

OF_METHODS = (
    "ssmreduce.equations",
    "ssmreduce.gramians",
    "ssmreduce.hankel",
    "ssmreduce.norms",
    "ssmreduce.reduction",
    "ssmreduce.regularizers",
    "ssmreduce.systems.sampling",
)
"""Packages and modules whose public functions, and solvers, implement a method of the literature."""


IS_ARRAY = re.compile(r"\b(Host)?Array\b")


def resolved(name: str) -> Any:
    """What the API page lists under `name`."""
    module, _, last = f"ssmreduce.{name}".rpartition(".")
    return getattr(importlib.import_module(module), last)


PUBLIC = {name: resolved(name) for name in LISTED}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {
    name: value
    for name, value in PUBLIC.items()
    if inspect.isclass(value) and not issubclass(value, Exception)
}
ERRORS = {name: PUBLIC[name] for name in PUBLIC.keys() - FUNCTIONS.keys() - CLASSES.keys()}


def methods_of(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines, by name, as functions."""
    for name, value in vars(owner).items():
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif isinstance(value, classmethod):
            value = value.__func__
        if inspect.isfunction(value) and not name.startswith("_"):
            yield name, value


CALLED = {
    f"{name}.{own}": (owner, method)
    for name, owner in CLASSES.items()
    for own, method in methods_of(owner)
}
EVERYTHING = FUNCTIONS | CLASSES | {name: method for name, (_, method) in CALLED.items()}


@functools.cache
def parsed(thing: Any) -> NumpyDocString:
    """A docstring as numpydoc reads it; of a class without what its properties say."""
    if inspect.isclass(thing):
        return ClassDoc(thing, config={"show_class_members": False})
    return FunctionDoc(thing)


def summary(thing: Any) -> str:
    return " ".join(parsed(thing)["Summary"])


def entries(thing: Any, section: str) -> Iterator[tuple[str, str]]:
    """Each name of a section, and its type."""
    for entry in parsed(thing)[section]:
        for name in entry.name.split(","):
            yield name.strip(" *"), entry.type


def names(thing: Any, section: str) -> list[str]:
    return [name for name, _ in entries(thing, section)]


def signature_names(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]


def shared_arguments(owner: type) -> set[str]:
    """Arguments of several methods, which the Notes of a class or of a base class explain at once."""
    notes = [line for base in owner.__mro__ if base.__doc__ for line in parsed(base)["Notes"]]
    return {match[1] for line in notes if (match := re.match(r"(\w+) : ", line))}


def own_fields(thing: Any) -> list[str]:
    """Fields of a dataclass that none of its bases has."""
    inherited = {
        field.name
        for base in thing.__bases__
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    return [field.name for field in dataclasses.fields(thing) if field.name not in inherited]


def error_named(name: str) -> type[BaseException] | None:
    found = getattr(ssmreduce.errors, name, getattr(builtins, name, None))
    return found if inspect.isclass(found) and issubclass(found, BaseException) else None


def named_errors(thing: Any) -> list[str]:
    """Names of what a docstring says is raised, or warned of."""
    rows = [*parsed(thing)["Raises"], *parsed(thing)["Warns"]]
    return [name.strip() for row in rows for name in (row.name or row.type).split(",")]


def raised_by(thing: Any) -> set[str]:
    """Names of the errors that the body of a function raises itself."""
    body = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing))))
    raised = [node.exc for node in ast.walk(body) if isinstance(node, ast.Raise)]
    calls = [exc.func for exc in raised if isinstance(exc, ast.Call)]
    found = {call.id for call in calls if isinstance(call, ast.Name)}
    return {name for name in found if error_named(name) is not None}


def bodies_of(thing: Any) -> list[Any]:
    """The function itself, or what a class writes down to construct it."""
    if not inspect.isclass(thing):
        return [thing]
    constructors = [vars(thing).get(name) for name in ("__init__", "__post_init__")]
    # The __init__ of a dataclass has no source.
    return [each for each in constructors if each and each.__code__.co_filename[:1] != "<"]


# --- The API page


def public_in(module: ModuleType) -> dict[str, Any]:
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    return {name: getattr(module, name) for name in getattr(module, "__all__", own)}


def test_the_page_lists_each_public_name_once() -> None:
    assert len(LISTED) > 150
    assert len(set(LISTED)) == len(LISTED)
    modules = (ssmreduce, ssmreduce.errors, ssmreduce.plotting, ssmreduce.testing)
    public = [*(value for module in modules for value in public_in(module).values()), *KNOWN]
    for module in (control, pymor, scipy_signal):
        public += public_in(module).values()
    public += [
        value
        for value in public_in(solvers).values()
        if inspect.isclass(value) and issubclass(value, solvers.LyapunovSolver)
    ]
    listed = {id(value) for value in PUBLIC.values()}
    missing = [value for value in public if callable(value) and id(value) not in listed]
    assert missing == []


# --- Functions and classes


def test_everything_has_a_docstring_of_its_own() -> None:
    assert [name for name, value in PUBLIC.items() if not value.__doc__] == []
    ends = {name: summary(value) for name, value in (EVERYTHING | ERRORS).items()}
    assert [name for name, text in ends.items() if not text.endswith((".", ":"))] == []


def test_documented_parameters_are_those_of_the_signature() -> None:
    wrong = {
        name: names(value, "Parameters")
        for name, value in FUNCTIONS.items()
        if names(value, "Parameters") != signature_names(value)
    }
    assert wrong == {}


def test_results_are_documented() -> None:
    for name, value in FUNCTIONS.items():
        returns_nothing = inspect.signature(value).return_annotation == "None"
        documented = parsed(value)["Returns"] or parsed(value)["Yields"]
        assert bool(documented) != returns_nothing, name


def test_arguments_of_constructors_are_documented() -> None:
    for name in CLASSES.keys() - NOT_CONSTRUCTED.keys():
        value = CLASSES[name]
        if dataclasses.is_dataclass(value) and not parsed(value)["Parameters"]:
            assert names(value, "Attributes") == own_fields(value), name  # a result
        else:
            assert names(value, "Parameters") == signature_names(value), name


def test_what_is_not_constructed_says_what_it_holds() -> None:
    for name in NOT_CONSTRUCTED:
        is_known = issubclass(CLASSES[name], dict | Enum)
        assert is_known or parsed(CLASSES[name])["Attributes"], name


def test_arrays_have_a_shape() -> None:
    without = []
    for name, value in EVERYTHING.items():
        parameters = {} if name in NOT_CONSTRUCTED else inspect.signature(value).parameters
        arrays = {own for own, each in parameters.items() if IS_ARRAY.search(str(each.annotation))}
        for section in ("Parameters", "Attributes", "Returns", "Yields"):
            for own, type_ in entries(value, section):
                is_array = own in arrays or re.search(r"\barrays?\b", f"{own} {type_}")
                # Several arrays, as weights by name, have a shape each.
                stated = re.search(
                    r"\((\.\.\.|.*,.*)\)|\b(dict|mapping|pytree|tuple|list) of", type_
                )
                if is_array and not (stated or re.search(r"\(\.\.\.|\(.*,.*\)", own)):
                    without.append(f"{name}, {section}: {own} : {type_}")
    assert without == []


def test_functions_say_what_they_raise() -> None:
    silent = [name for name, value in FUNCTIONS.items() if not parsed(value)["Raises"]]
    assert silent == []


def test_errors_in_a_body_are_in_its_docstring() -> None:
    for name, value in EVERYTHING.items():
        documented = [error_named(error) for error in named_errors(value)]
        assert None not in documented, f"{name}: {named_errors(value)}"
        text = f"{summary(value)} {' '.join(parsed(value)['Extended Summary'])}"
        for error in {error for body in bodies_of(value) for error in raised_by(body)}:
            kinds = inspect.getmro(error_named(error))
            assert f"`{error}`" in text or set(kinds) & set(documented), f"{name}: {error}"


def test_everything_has_an_example() -> None:
    """That `pytest --doctest-modules` finds."""
    found: dict[str, int] = {}
    for module in {value.__module__ for value in (FUNCTIONS | CLASSES).values()}:
        tests = doctest.DocTestFinder().find(importlib.import_module(module))
        found |= {test.name: len(test.examples) for test in tests}
    without = []
    for name, value in (FUNCTIONS | CLASSES).items():
        is_found = found.get(f"{value.__module__}.{value.__qualname__}")
        if not parsed(value)["Examples"] or not is_found:
            without.append(name)
    assert without == []


def test_methods_of_the_literature_have_a_reference() -> None:
    methods = {
        name: value
        for name, value in PUBLIC.items()
        if value.__module__.startswith(OF_METHODS)
        and (inspect.isfunction(value) or issubclass(value, solvers.LyapunovSolver))
    }
    methods |= {name: value for name, value in PUBLIC.items() if value in KNOWN}
    assert len(methods) > 40
    without = {name for name, value in methods.items() if not parsed(value)["References"]}
    assert without == WITHOUT_REFERENCE.keys()


# --- Methods of classes


def test_methods_explain_their_arguments() -> None:
    """In a section, by name in the text, or in the Notes of the class; or they override one that does."""
    for name, (owner, method) in CALLED.items():
        arguments, documented = signature_names(method), names(method, "Parameters")
        assert documented in ([], arguments), name
        is_override = any(name.rpartition(".")[2] in vars(base) for base in owner.__mro__[1:])
        if documented or is_override:
            continue
        text = inspect.getdoc(method) or ""
        told = shared_arguments(owner) | set(re.findall(r"`(\w+)`", text))
        assert set(arguments) <= told, f"{name}: {set(arguments) - told}"
