"""Every bad call ends in a clear word, and valid arrays in every layout give equal answers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import bad_calls
import matplotlib
import numpy as np
import pytest
from good_calls import CALLS, continuous, dense, diagonal, event, trace

import ssmreduce
from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    FixedOrder,
    HankelMass,
    ReductionSchedule,
    SSMReduceError,
    StateSpace,
    balanced_truncation,
    hankel_norm,
    hinf_norm,
)
from ssmreduce.adapters.pymor import to_pymor
from ssmreduce.errors import ArgumentError, ShapeError, TimeDomainError


@pytest.fixture(autouse=True)
def _many_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are pyplot's here, since python-control has loaded it, and there are hundreds."""
    monkeypatch.setitem(matplotlib.rcParams, "figure.max_open_warning", 0)


RESULTS = {
    "Continuous",  # takes no arguments
    "H2Reduction",
    "HinfNorm",
    "LyapunovSolution",
    "OrderRule",
    "Reduction",
    "Sweep",
    "UnstableSplit",
}
"""Public classes whose objects the package makes, or that are abstract."""


def test_the_table_has_every_public_function_and_class() -> None:
    public = {name: getattr(ssmreduce, name) for name in ssmreduce.__all__}
    expected = {
        name
        for name, value in public.items()
        if callable(value) and not (inspect.isclass(value) and issubclass(value, Exception))
    }
    assert expected - RESULTS <= {name.split(" ")[0] for name in CALLS}


def test_the_table_has_every_public_method() -> None:
    """Those of private base classes, and those marked private, are for the package alone."""
    refuse_always = {"OrderRule.choose", "MeasuredError.choose"}
    classes = [
        value for name in ssmreduce.__all__ if inspect.isclass(value := vars(ssmreduce)[name])
    ]
    expected = {
        f"{of.__name__}.{name}": {f"{base.__name__}.{name}" for base in of.__mro__}
        for of in classes
        for name, method in inspect.getmembers(of)
        if not name.startswith("_")
        and (inspect.isfunction(method) or inspect.ismethod(method))
        and method.__module__.startswith("ssmreduce")
        and not method.__qualname__.startswith("_")
        and set(inspect.signature(method).parameters) - {"self"}
        and ":meta private:" not in (method.__doc__ or "")
    }
    listed = {name.split(" ")[0] for name in CALLS} | refuse_always
    assert [name for name, own in expected.items() if not own & listed] == []


@pytest.mark.parametrize("name", CALLS)
def test_a_good_call_is_answered_and_leaves_its_inputs_alone(name: str) -> None:
    function, arguments = CALLS[name]()
    before = bad_calls.fingerprint(arguments)
    bad_calls.run(function, (), arguments)
    if name not in bad_calls.IN_PLACE:
        assert bad_calls.fingerprint(arguments) == before


def check(count: int, seed: int) -> None:
    """Make so many bad calls; all that end badly are named."""
    endings = ((call, bad_calls.ending(call)) for call in bad_calls.bad_calls(count, seed))
    badly = [f"{call}: {ending}" for call, ending in endings if ending is not None]
    assert not badly, f"{len(badly)} of {count} calls\n" + "\n".join(badly[:20])


def test_bad_calls_end_in_a_clear_word() -> None:
    check(4_000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_bad_calls_end_in_a_clear_word(seed: int) -> None:
    check(10_000, seed)


# --- Some of them, by name


@pytest.mark.parametrize("value", ["no", 1, 0, None, float("nan"), [], np.array([True])])
@pytest.mark.parametrize(
    "call",
    [
        lambda value: hinf_norm(dense(), certified=value),
        lambda value: balanced_truncation(dense(), 2, keep_unstable=value),
        lambda value: balanced_truncation(dense(), 2, common_order=value),
        lambda value: balanced_truncation(dense(), 2).verify(certified=value),
        lambda value: StateSpace(
            [[0.5]], [[1.0]], [[1.0]], time=Discrete(), read_after_update=value
        ),
        lambda value: DiagonalStateSpace(
            [0.5], [[1.0]], [[1.0]], time=Discrete(), real_output=value
        ),
        lambda value: ssmreduce.TotalBudget(3, relative=value),
    ],
)
def test_flags_are_bools(call: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"expected a bool"):
        call(value)


def test_a_bool_of_numpy_is_a_flag() -> None:
    system = DiagonalStateSpace(
        [0.5], [[1.0]], [[1.0]], time=Discrete(), real_output=np.True_, read_after_update=np.False_
    )
    assert system.real_output is True
    assert system.read_after_update is False


@pytest.mark.parametrize("kind", [HankelMass, FixedOrder, Discrete, ReductionSchedule])
def test_settings_of_any_size_and_kind_are_refused(kind: Any) -> None:
    for value in (10**400, 10**5000, -(10**400), np.timedelta64(1, "s"), 1j, "1"):
        with pytest.raises((ArgumentError, TimeDomainError)) as refusal:
            kind(value)
        assert len(str(refusal.value)) < 500


def test_shares_of_a_schedule_are_numbers() -> None:
    for start in ("0", None, [0.0], float("nan")):
        with pytest.raises(ArgumentError, match="`start` is"):
            ReductionSchedule(100, start=start)
    with pytest.raises(ArgumentError, match="`attempts` is"):
        ReductionSchedule(10**12, attempts=10**12)


def test_hints_fit_what_was_passed() -> None:
    system = StateSpace([[-0.5]], [[1.0]], [[1.0]], time=ssmreduce.Continuous())
    with pytest.raises(ShapeError, match=r"`times` has shape \(\) .* Try numpy\.linspace"):
        ssmreduce.step_response(system, times=10)
    with pytest.raises(ShapeError, match=r"`omega` is 1.0.* single one into a list"):
        ssmreduce.frequency_response(system, 1.0)
    with pytest.raises(TimeDomainError, match=r"`dt` is Discrete.* Pass a number"):
        ssmreduce.to_discrete(system, Discrete(0.1))
    with pytest.raises(
        ArgumentError, match=r"`states` is 2.5; expected a positive int\. Pass how many"
    ):
        ssmreduce.TotalBudget(2.5)


def test_a_system_without_inputs_has_the_hankel_norm_zero() -> None:
    assert hankel_norm(StateSpace([[0.5]], np.zeros((1, 0)), [[1.0]], time=Discrete())) == 0.0


def test_pymor_gets_copies_that_it_may_lock() -> None:
    system = StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete())
    to_pymor(system)
    assert all(array.flags.writeable for array in (system.A, system.B, system.C, system.D))


def test_pictures_name_what_is_no_event() -> None:
    for events in (None, 3, [1], {"a": 1}, [event(), "b"]):
        with pytest.raises(SSMReduceError, match="`events` is"):
            trace().plot(events)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="`hsv`"):
        dataclasses.replace(event(), hsv=np.zeros((2, 0)))
    dataclasses.replace(event(), hsv=np.ones((2, 12))).plot()


def test_indices_are_ints_and_the_end_of_a_batch_ends_a_loop() -> None:
    batch = bad_calls.batch()
    assert len(list(batch)) == 2
    for index in ("a", 0.5, True, [[0], [0, 1]], 10**400, {}):
        with pytest.raises(ShapeError, match="`index` is"):
            batch[index]
    with pytest.raises(IndexError, match="out of bounds"):
        batch[2]


# --- Good arrays in every layout


def reversed_strides(array: Any) -> Any:
    back = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[back])[back]


def spread_out(array: Any) -> Any:
    wide = np.full(tuple(2 * size for size in array.shape), np.nan, dtype=array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def locked(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "negative strides": reversed_strides,
    "not contiguous": spread_out,
    "read-only": locked,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "subclass": lambda array: array.view(type("Own", (np.ndarray,), {})),
}


def laid_out(value: Any, layout: Callable[[Any], Any]) -> Any:
    """The same value with its arrays in another layout."""
    if isinstance(value, np.ndarray):
        return layout(value)
    if isinstance(value, list):
        return [laid_out(part, layout) for part in value]
    if isinstance(value, dict):
        return {name: laid_out(part, layout) for name, part in value.items()}
    if isinstance(value, StateSpace | DiagonalStateSpace):
        names = ("A" if isinstance(value, StateSpace) else "eigenvalues", "B", "C", "D")
        arrays = (layout(getattr(value, name)) for name in names)
        options = {"time": value.time, "read_after_update": value.read_after_update}
        if isinstance(value, DiagonalStateSpace):
            options["real_output"] = value.real_output
        return type(value)(*arrays, **options)
    return value


TIMED = {"sweep", "sweep of a layer with data"}
"""Calls whose answers hold seconds."""


def holds_arrays(value: Any) -> bool:
    return isinstance(value, np.ndarray) or any(map(holds_arrays, bad_calls.parts(value)))


def assert_equal(found: Any, expected: Any) -> None:
    """The numbers of two results agree to rounding."""
    if isinstance(expected, float | complex | np.ndarray | np.generic):
        array = np.asarray(expected)
        if array.dtype.kind in "biufc":
            scale = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
            # The systems of the table are well conditioned; integers and bools are exact.
            rtol = 1e4 * float(np.finfo(array.dtype).eps) if array.dtype.kind in "fc" else 0.0
            np.testing.assert_allclose(found, array, rtol=rtol, atol=rtol * scale)
            assert np.asarray(found).dtype == array.dtype
        return
    assert type(found) is type(expected)
    for one, two in zip(bad_calls.parts(found), bad_calls.parts(expected), strict=True):
        assert_equal(one, two)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_in_every_layout_give_equal_answers(layout: str) -> None:
    for name in CALLS:
        function, arguments = CALLS[name]()
        moved = laid_out(arguments, LAYOUTS[layout])
        if name in bad_calls.IN_PLACE | TIMED or not holds_arrays(arguments):
            continue
        before = bad_calls.fingerprint(moved)
        found = bad_calls.run(function, (), moved)
        assert bad_calls.fingerprint(moved) == before, name
        assert_equal(found, bad_calls.good_result(name))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("system", [dense, continuous, diagonal])
def test_methods_of_systems_in_every_layout_give_equal_answers(
    layout: str, system: Callable[[], Any]
) -> None:
    moved = laid_out(system(), LAYOUTS[layout])
    before = bad_calls.fingerprint(moved)
    for method in ("poles", "is_stable", "dc_gain", "to_host", "to_dense", "to_standard"):
        assert_equal(getattr(moved, method)(), getattr(system(), method)())
    assert bad_calls.fingerprint(moved) == before
