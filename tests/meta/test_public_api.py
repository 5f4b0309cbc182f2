"""Public names: re-exported under their own name, with immutable defaults, and errors of one family."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import ssmreduce
import ssmreduce.errors
import ssmreduce.plotting
import ssmreduce.testing

SOURCE = Path(ssmreduce.__file__).read_text(encoding="utf-8")
PUBLIC = sorted(
    name
    for name, value in vars(ssmreduce).items()
    if not name.startswith("_")
    and not inspect.ismodule(value)
    and getattr(value, "__module__", "").startswith("ssmreduce")
)
ERRORS = {name: value for name, value in vars(ssmreduce.errors).items() if inspect.isclass(value)}


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
    assert [name for name in PUBLIC if name in ERRORS] == ["SSMReduceError"]
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
    for name, value in ERRORS.items():
        if issubclass(value, Warning):
            continue
        assert issubclass(value, ssmreduce.SSMReduceError), name
        if value is not ssmreduce.SSMReduceError:
            builtin = (ValueError, TypeError, ImportError, RuntimeError)
            assert issubclass(value, builtin), name


def test_no_mutable_defaults() -> None:
    values = [getattr(ssmreduce, name) for name in PUBLIC if name not in ERRORS]
    for module in (ssmreduce.plotting, ssmreduce.testing):
        values += [value for value in vars(module).values() if inspect.isfunction(value)]
    seen = 0
    for value in filter(callable, values):
        for parameter in inspect.signature(value).parameters.values():
            seen += 1
            assert not isinstance(parameter.default, list | dict | set), value
    assert seen > 50
