"""The stage between tests and array libraries finds what it is there for, and its list is up to date."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import array_api_strict
import conftest
import everywhere
import exceptions
import libraries
import numpy as np
import pytest
from samples import dense_system

import ssmreduce
from ssmreduce import Discrete, StateSpace
from ssmreduce.errors import ShapeError

TESTS = Path(everywhere.__file__).parent


def to_numpy(A: Any) -> Any:
    return np.asarray(A)


def to_single(A: Any) -> Any:
    return A.float()


def to_cpu(A: Any) -> Any:
    return A.to_device(array_api_strict.Device("CPU_DEVICE"))


def written_to(A: Any) -> Any:
    A[0, 0] = 7.0
    return A


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("torch", to_numpy, "no array of torch"),
        ("jax-x64", to_numpy, "no array of jax-x64"),
        ("torch", to_single, "float32"),
        ("strict-device", to_cpu, "is not that of strict-device"),
        ("numpy-read-only", written_to, "read-only"),
    ],
)
def test_wrong_answers_fail(name: str, wrong: Callable[[Any], Any], message: str) -> None:
    with libraries.opened(name) as library:
        stage = everywhere.Stage(library)
        np.testing.assert_array_equal(stage.staged(lambda A: 2.0 * A)(np.eye(2)), 2.0 * np.eye(2))
        with pytest.raises((AssertionError, ValueError), match=message):
            stage.staged(wrong)(np.eye(2))
        assert stage.calls == 2


def test_wrong_arrays_inside_of_answers_fail(rng: np.random.Generator) -> None:
    def truncated(system: StateSpace) -> Any:
        return ssmreduce.balanced_truncation(system, 2)

    plain = dense_system(rng, 4, 1, 1)
    with libraries.opened("torch") as library:
        stage = everywhere.Stage(library)
        assert stage.staged(truncated)(plain).original is plain
        for name in ("hsv", "left"):
            spoilt = {name: np.ones(4)}
            with pytest.raises(AssertionError, match="no array of torch"):
                stage.staged(lambda system, spoilt=spoilt: replace(truncated(system), **spoilt))(
                    plain
                )


def test_a_test_is_staged(rng: np.random.Generator) -> None:
    """Functions of its module, methods of what they return, constructors, and its EPS."""
    seen: list[str] = []

    def recorded(library: libraries.Library) -> libraries.Library:
        def make(host: Any) -> Any:
            seen.append(library.name)
            return library.make(host)

        return replace(library, make=make)

    module = ModuleType("module")
    vars(module).update(balance=ssmreduce.balance, EPS=libraries.DOUBLE)
    with (
        libraries.opened("jax-x32") as library,
        everywhere.staged_for(module, recorded(library)) as stage,
    ):
        assert module.EPS == libraries.SINGLE
        third = StateSpace([[1.0 / 3.0]], [[1.0]], [[1.0]], time=Discrete())
        assert third.A[0, 0] == np.float32(1.0 / 3.0)
        assert third.A.dtype == np.float64
        with pytest.raises(ShapeError, match="`B` has 2 rows"):
            StateSpace([[0.5]], [[1.0], [1.0]], [[1.0]], time=Discrete())
        before, calls = len(seen), stage.calls
        balancing = module.balance(third)
        assert balancing.system is third
        reduction = balancing.truncate(1)
        assert reduction.system is third
        assert type(reduction.hsv) is np.ndarray
        assert reduction.hsv.dtype == np.float64
        assert reduction.verify() == 0.0
        assert third.poles()[0] == third.A[0, 0]
        assert stage.calls == calls + 4
        assert len(seen) > before
    assert module.balance is ssmreduce.balance
    assert "stag" not in StateSpace.__init__.__code__.co_qualname


def test_functions_that_would_not_be_staged_are_found() -> None:
    module = ModuleType("module")
    vars(module).update(FUNCTIONS={"balance": ssmreduce.balance})
    with (
        libraries.opened("torch") as library,
        pytest.raises(AssertionError, match="FUNCTIONS holds a function"),
        everywhere.staged_for(module, library),
    ):
        pass


@pytest.mark.parametrize("calls", [0, 1])
def test_a_test_that_calls_nothing_in_its_library_fails(calls: int) -> None:
    item: Any = SimpleNamespace(funcargs={"_stage": SimpleNamespace(calls=calls)})
    hook = conftest.pytest_pyfunc_call(item)
    next(hook)
    with pytest.raises(StopIteration if calls else AssertionError):
        hook.send(True)


def test_the_list_names_tests_that_are_there() -> None:
    lists = (exceptions.NUMPY_ONLY, exceptions.DOUBLE_ONLY, exceptions.HOST_ONLY)
    for tests in (tests for one in lists for tests in one.values()):
        for module, names in tests.items():
            source = (TESTS / f"{module}.py").read_text(encoding="utf-8")
            assert "pytest.mark.every_library" in source, module
            there = {
                node.name
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef)
            }
            assert there.issuperset(names.split()), (module, set(names.split()) - there)


def test_what_the_list_says() -> None:
    here = TESTS / "systems/test_systems.py"
    assert exceptions.libraries_of(here, "test_sampling_time") == ["numpy"]
    assert exceptions.libraries_of(here, "test_other_dtypes") == exceptions.EVERYWHERE
    double = exceptions.libraries_of(here, "test_logarithms_survive_indexing_and_host")
    assert {*exceptions.EVERYWHERE} - {*double} == {"jax-x32"}
    host = exceptions.libraries_of(TESTS / "equations/test_lyapunov.py", "test_diagonal_matrices")
    assert {*exceptions.EVERYWHERE} - {*host} == {"cupy"}
