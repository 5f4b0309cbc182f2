"""CuPy without a GPU: every function that the native routes call exists there, and takes the same arguments.

The routes run on arrays of array-api-strict, whose namespace records what is asked of it. That of CuPy, which
can be imported without a GPU, must have each function, and bind each recorded call.
"""

from __future__ import annotations

import inspect
from typing import Any

import array_api_strict
import numpy as np
import pytest
from samples import dense_system, diagonal_system

from ssmreduce import (
    balanced_truncation,
    controllability_gramian,
    error_bounds,
    frequency_response,
    h2_norm,
    hankel_norm,
    hankel_singular_values,
    hinf_norm,
    observability_gramian,
    solve_lyapunov,
    solve_lyapunov_factor,
)

Call = tuple[str, int, frozenset[str]]
"""Name, number of positional arguments, names of the others."""


class Recorder:
    """A namespace that notes every call of a function of it or of its parts."""

    def __init__(self, module: Any, calls: set[Call], prefix: str = "") -> None:
        self._module, self._calls, self._prefix = module, calls, prefix

    def __getattr__(self, name: str) -> Any:
        found, full = getattr(self._module, name), self._prefix + name
        if inspect.ismodule(found):
            return Recorder(found, self._calls, f"{full}.")
        if not callable(found) or inspect.isclass(found):
            return found

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._calls.add((full, len(args), frozenset(kwargs)))
            return found(*args, **kwargs)

        return recorded


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> set[Call]:
    """What is called while the namespace of array-api-strict records."""
    found: set[Call] = set()
    recorder = Recorder(array_api_strict, found)
    kind = type(array_api_strict.zeros(1))
    monkeypatch.setattr(kind, "__array_namespace__", lambda self, api_version=None: recorder)
    return found


def on_device(host: Any) -> Any:
    return array_api_strict.asarray(host, device=array_api_strict.Device("device1"))


def run_native_routes(rng: np.random.Generator) -> None:
    """Everything that has a native route, on a device that NumPy cannot read."""
    from libraries import DOUBLE, Library

    library = Library("strict-device", on_device, DOUBLE, on_host=False)
    plain = [
        dense_system(rng, 5, 2, 2, discrete=discrete, is_complex=is_complex)
        for discrete in (True, False)
        for is_complex in (True, False)
    ]
    stored = [
        diagonal_system(rng, 5, 2, 2, discrete=discrete, real_output=real_output)
        for discrete in (True, False)
        for real_output in (True, False)
    ]
    for system in map(library.system, plain + stored):
        controllability_gramian(system), observability_gramian(system)
        error_bounds(hankel_singular_values(system))
        h2_norm(system), hankel_norm(system), hinf_norm(system)
        frequency_response(system, np.linspace(0.0, 1.0, 3))
    for system in map(library.system, plain):
        balanced_truncation(system, 2)
        Q = on_device(np.eye(5, dtype=system.A.dtype._np_dtype))
        solve_lyapunov(system.A, Q, time=system.time)
        solve_lyapunov_factor(system.A, system.B, time=system.time)


def looked_up(namespace: Any, name: str) -> Any:
    for part in name.split("."):
        namespace = getattr(namespace, part)
    return namespace


def accepts(function: Any, positional: int, named: frozenset[str]) -> bool | None:
    """Whether the signature binds such a call; None where there is no signature to ask."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    try:
        signature.bind(*range(positional), **dict.fromkeys(named))
    except TypeError:
        return False
    return True


def test_the_recorder_sees_the_routes(calls: set[Call], rng: np.random.Generator) -> None:
    run_native_routes(rng)
    names = {name for name, _, _ in calls}
    assert {"concat", "where", "linalg.inv", "linalg.svdvals", "linalg.qr", "linalg.solve"} <= names


def test_cupy_has_every_function_that_is_called(calls: set[Call], rng: np.random.Generator) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'ssmreduce[cupy]'")
    import array_api_compat.cupy as xp
    import cupy

    run_native_routes(rng)
    missing, refused, ufuncs = [], [], []
    for name, positional, named in sorted(calls, key=str):
        try:
            function = looked_up(xp, name)
        except AttributeError:
            missing.append(name)
            continue
        verdict = accepts(function, positional, named)
        if verdict is None:
            # Elementwise functions of CuPy have no signature; they take their operands by position.
            assert isinstance(function, cupy.ufunc), name
            ufuncs.append(name)
            if named or positional != function.nin:
                refused.append((name, positional, named))
        elif not verdict:
            refused.append((name, positional, named))
    assert (missing, refused) == ([], [])
    assert len({name for name, _, _ in calls}) > 30
    assert ufuncs


def test_elementwise_functions_take_complex_numbers_in_cupy() -> None:
    cupy = pytest.importorskip(
        "cupy", reason="CuPy is not installed: pip install 'ssmreduce[cupy]'"
    )
    for name in ("expm1", "exp", "sqrt", "conj", "isfinite"):
        kinds = {kind.split("->")[0] for kind in getattr(cupy, name).types}
        assert {"d", "D"} <= kinds, name


def test_cupy_has_what_the_backend_file_calls_by_its_own_names() -> None:
    cupy = pytest.importorskip(
        "cupy", reason="CuPy is not installed: pip install 'ssmreduce[cupy]'"
    )
    assert accepts(cupy.linalg.qr, 1, frozenset({"mode"}))
    assert accepts(cupy.asarray, 1, frozenset())
    for name in ("get", "device", "dtype", "shape", "ndim", "__matmul__", "__getitem__"):
        assert hasattr(cupy.ndarray, name), name


def test_signatures_can_refuse() -> None:
    def function(x: Any, /, *, axis: int = 0) -> None: ...

    assert accepts(function, 1, frozenset({"axis"}))
    assert not accepts(function, 2, frozenset())
    assert not accepts(function, 1, frozenset({"keepdims"}))
