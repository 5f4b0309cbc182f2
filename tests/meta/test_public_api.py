"""Public names: re-exported, documented, and documented as they are."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from abc import ABC
from pathlib import Path
from typing import Any

import pytest

import ssmreduce
import ssmreduce.errors
import ssmreduce.plotting
import ssmreduce.testing
from ssmreduce.equations.solve import LyapunovSolution
from ssmreduce.models.sweep import Sweep
from ssmreduce.norms import HinfNorm
from ssmreduce.reduction.h2_optimal import H2Reduction
from ssmreduce.reduction.unstable import UnstableSplit
from ssmreduce.training.tracking import ReductionEvent

SOURCE = Path(ssmreduce.__file__).read_text(encoding="utf-8")
PUBLIC = sorted(
    name
    for name, value in vars(ssmreduce).items()
    if not name.startswith("_")
    and not inspect.ismodule(value)
    and getattr(value, "__module__", "").startswith("ssmreduce")
)
CALLABLES = {name: vars(ssmreduce)[name] for name in PUBLIC if callable(vars(ssmreduce)[name])}
ELSEWHERE = {
    "H2Reduction": H2Reduction,
    "HinfNorm": HinfNorm,
    "LyapunovSolution": LyapunovSolution,
    "ReductionEvent": ReductionEvent,
    "Sweep": Sweep,
    "UnstableSplit": UnstableSplit,
}
"""Results that are looked at, hardly ever named."""

CALLABLES |= ELSEWHERE
CALLABLES |= {
    name: value for name, value in vars(ssmreduce.errors).items() if inspect.isclass(value)
}
HELPERS = {
    f"testing.{name}": value
    for name, value in vars(ssmreduce.testing).items()
    if inspect.isfunction(value)
}
PICTURES = {
    f"plotting.{name}": getattr(ssmreduce.plotting, name) for name in ssmreduce.plotting.__all__
}
CALLABLES |= HELPERS | PICTURES
FUNCTIONS = {name: value for name, value in CALLABLES.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in CALLABLES.items() if inspect.isclass(value)}
ERRORS = {name: value for name, value in CLASSES.items() if issubclass(value, Exception)}

RESULTS = {
    "H2Reduction",
    "HinfNorm",
    "LyapunovSolution",
    "UnstableSplit",
    "Reduction",
    "Balancing",
    "ReductionEvent",
    "Sweep",
}
"""Made by the package, never by the user: attributes are documented instead of parameters."""


def section(doc: str, title: str) -> str | None:
    """Text of a numpydoc section."""
    match = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", doc, re.M | re.S)
    return match.group(1) if match else None


def documented_parameters(doc: str) -> list[str]:
    text = section(doc, "Parameters") or ""
    names: list[str] = []
    for line in text.splitlines():
        match = re.match(r"^([*\w, ]+?)(?: : .*)?$", line)
        if match and line[:1].strip():
            names += [name.strip() for name in match.group(1).split(",")]
    return names


def signature_names(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name not in {"self", "_"}]


def is_error(name: str) -> bool:
    return name in ERRORS


def test_expected_names_are_there() -> None:
    assert {
        "StateSpace",
        "DiagonalStateSpace",
        "Continuous",
        "Discrete",
        "controllability_gramian",
        "observability_gramian",
        "hankel_singular_values",
        "balance",
        "balanced_truncation",
        "error_bounds",
        "FixedOrder",
        "ErrorBound",
        "HankelMass",
        "HankelEnergy",
        "Reduction",
        "read_system",
        "write_system",
        "reduce_layer",
        "reduce_model",
        "sweep",
        "register_layer",
        "InTrainingReducer",
        "ReductionSchedule",
        "RollbackPolicy",
        "HankelTrace",
        "SSMReduceError",
    } <= set(PUBLIC)
    assert len(ssmreduce.__all__) <= 60


def test_dunder_all_is_true() -> None:
    names = ssmreduce.__all__
    assert len(set(names)) == len(names)
    assert [name for name in PUBLIC if is_error(name)] == ["SSMReduceError"]
    assert set(PUBLIC) <= set(names)
    for name in names:
        assert hasattr(ssmreduce, name), name


def test_reexports_name_themselves() -> None:
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssmreduce"):
            for alias in node.names:
                assert alias.asname == alias.name, f"{node.module}: {alias.name}"


def test_errors_are_all_of_one_family_and_a_builtin() -> None:
    assert len(ERRORS) >= 10
    from ssmreduce import errors

    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, Exception):
            if issubclass(value, Warning):
                continue
            assert issubclass(value, ssmreduce.SSMReduceError), name
            if value is not ssmreduce.SSMReduceError:
                builtin = (ValueError, TypeError, ImportError, RuntimeError)
                assert issubclass(value, builtin), name


@pytest.mark.parametrize("name", CALLABLES)
def test_everything_public_is_documented(name: str) -> None:
    thing = CALLABLES[name]
    doc = inspect.getdoc(thing)
    assert doc, name
    assert thing.__doc__, f"{name} inherits its docstring"
    if name in ERRORS:
        return
    if name not in {"OrderRule", "Balancing", "Continuous"} and name not in RESULTS:
        assert "Examples" in doc, name
        assert ">>>" in doc, name
    if name in RESULTS:
        assert section(doc, "Attributes"), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_documented_parameters_are_those_of_the_signature(name: str) -> None:
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    if name == "observability_gramian":  # refers to its dual, word for word the same
        assert signature_names(FUNCTIONS[name]) == signature_names(
            ssmreduce.controllability_gramian
        )
        return
    assert documented_parameters(doc) == signature_names(FUNCTIONS[name])
    returns_nothing = inspect.signature(FUNCTIONS[name]).return_annotation in (None, "None")
    assert (section(doc, "Returns") is None) == returns_nothing


@pytest.mark.parametrize("name", sorted(set(CLASSES) - set(ERRORS) - RESULTS))
def test_constructor_parameters_are_documented(name: str) -> None:
    thing, doc = CLASSES[name], inspect.getdoc(CLASSES[name]) or ""
    if ABC in thing.__bases__:
        return
    names = signature_names(thing)
    documented = documented_parameters(doc)
    if documented:
        assert documented == names
    else:  # one or no field, explained by the summary
        assert len(names) <= 1, f"{name} does not document {names}"


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_result_attributes_are_documented(name: str) -> None:
    thing = CLASSES[name]
    if not dataclasses.is_dataclass(thing):
        return
    text = section(inspect.getdoc(thing) or "", "Attributes") or ""
    listed = ",".join(re.findall(r"^(\w[\w, ]*) :", text, re.M)).replace(" ", "").split(",")
    inherited = {
        field.name
        for base in thing.__bases__
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    own = [field.name for field in dataclasses.fields(thing) if field.name not in inherited]
    assert listed == own


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_are_documented(name: str) -> None:
    for attribute, value in vars(CLASSES[name]).items():
        if attribute.startswith("_") or not (
            inspect.isfunction(value) or isinstance(value, property | classmethod)
        ):
            continue
        assert inspect.getdoc(getattr(CLASSES[name], attribute)), f"{name}.{attribute}"


def test_no_mutable_defaults() -> None:
    seen = 0
    for name, thing in CALLABLES.items():
        if name in ERRORS:
            continue
        for parameter in inspect.signature(thing).parameters.values():
            seen += 1
            assert not isinstance(parameter.default, list | dict | set), thing
    assert seen > 50


def test_the_api_page_lists_the_test_helpers_and_the_pictures() -> None:
    page = Path(__file__).parents[2] / "docs" / "api.rst"
    listed = re.findall(r"^   ((?:testing|plotting)\.\w+)$", page.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(HELPERS | PICTURES)


def test_the_api_page_lists_every_public_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.rst").read_text(encoding="utf-8")
    listed = {line.strip().rpartition(".")[2] for line in page.splitlines() if line[:3] == "   "}
    own = {name for name in ssmreduce.__all__ if not name.startswith("_")}
    assert own | set(ELSEWHERE) | set(ERRORS) <= listed
