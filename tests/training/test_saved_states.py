"""States of reducers, damaged in every place: refused with the reducer as it was, or good to go on with."""

from __future__ import annotations

import collections
import copy
import functools
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fingerprints import fingerprint
from test_rollback import RUNS, go

from ssmreduce import (
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    SSMReduceError,
)
from ssmreduce.errors import ArgumentError, OrderError, ShapeError
from ssmreduce.training import saved_state
from ssmreduce.training.saved_state import checked_state

KINDS = {
    "plain": (False, False),
    "trace": (False, True),
    "rollback": (True, False),
    "rollback and trace": (True, True),
}

POLICY = RollbackPolicy(0.1, patience=2)


def reducer_of(kind: str) -> InTrainingReducer:
    """Attempts after steps 4 and 8."""
    rollback, trace = KINDS[kind]
    return InTrainingReducer(
        ReductionSchedule.at(4, 8),
        6,
        rollback=POLICY if rollback else None,
        trace=HankelTrace(2) if trace else None,
    )


@functools.cache
def standing(library: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """A run after 6 steps, and the state of its reducer: with a rollback policy, a cut is on trial."""
    torch.manual_seed(31)
    run, reducer = RUNS[library](), reducer_of(kind)
    go(run, reducer, range(1, 7), {1: 1.0, 6: 5.0} if KINDS[kind][0] else {})
    state = reducer.state_dict()
    assert state["events"]
    assert (state["trial"] is not None) == KINDS[kind][0]
    return run, state


# --- Damage


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every entry, of long lists of numbers the first, and to the state itself."""
    yield path
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from places(entry, (*path, key))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value[:1] if is_long(value) else value):
            yield from places(entry, (*path, index))


def is_long(value: Any) -> bool:
    return len(value) > 2 and isinstance(value[0], float | list)


def replaced(value: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of the containers in which `change` was made to the entry at `path`."""
    if not path:
        return change(value)
    first, *rest = path
    if isinstance(value, dict):
        return {**value, first: replaced(value[first], tuple(rest), change)}
    entries = list(value)
    entries[first] = replaced(entries[first], tuple(rest), change)
    return type(value)(entries)


def without(value: Any, path: tuple[Any, ...]) -> Any:
    *before, last = path

    def drop(owner: Any) -> Any:
        if isinstance(owner, dict):
            return {key: entry for key, entry in owner.items() if key != last}
        return type(owner)([entry for index, entry in enumerate(owner) if index != last])

    return replaced(value, tuple(before), drop)


def deep(levels: int = 5000) -> Any:
    nested: Any = []
    for _ in range(levels):
        nested = [nested]
    return nested


OTHERS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    3,
    10**6,
    10**30,
    -0.5,
    0.5,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "text",
    b"bytes",
    1j,
    [],
    {},
    (),
    [[]],
    [None],
    [math.nan],
    [1.0, 2.0],
    [[1.0, 2.0], [3.0]],
    [[0.5, math.inf]],
    {"more": 1},
    {1: 2},
    {"step"},
    object(),
    np.float64(2.0),
    np.array([]),
    np.array([1.0, math.nan]),
    np.array(["a"]),
    np.array([None, 1]),
    np.zeros((2, 3), "float32"),
    torch.zeros(2, 3),
    torch.zeros(()),
    torch.zeros(2, 3, device="meta"),
    torch.zeros(2, 3).to_sparse(),
    deep(),
]

CHANGES: list[Any] = [
    *(lambda _, other=other: other for other in OTHERS),
    lambda value: [value],
    lambda value: {"inner": value},
    lambda value: str(value),
    lambda value: -value if isinstance(value, int | float) else value[::-1],
    lambda value: value + value,
    lambda value: value[:-1],
    lambda value: value * 1e9 if isinstance(value, int | float) else [*value, {}],
    lambda value: {**value, "more": 0},
    lambda value: {**value, 7: 0},
    lambda value: value.astype(object) if isinstance(value, np.ndarray) else value.to("meta"),
    lambda value: list(value.items()) if isinstance(value, dict) else value.tolist(),
]


def damaged(state: Any, rng: random.Random, count: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Some of all damage: entries taken away, and replaced by every other kind of thing."""
    paths = list(places(state))
    choices = [(path, None) for path in paths if path]
    choices += [(path, change) for path in paths for change in CHANGES]
    for path, change in rng.sample(choices, min(count, len(choices))):
        try:
            bad = without(state, path) if change is None else replaced(state, path, change)
        except (TypeError, AttributeError, ValueError, IndexError, KeyError, RuntimeError):
            continue  # a change that this kind of entry cannot have
        yield path, bad


def spelled(value: Any) -> str:
    return fingerprint([value])


# --- Every place


def checked_load(library: str, kind: str, bad: Any) -> bool:
    """Whether a state was taken; either way the reducer is as it has to be."""
    reducer = reducer_of(kind)
    before = reducer.state_dict()
    try:
        reducer.load_state_dict(bad)
    except SSMReduceError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert "`state" in refusal
        assert "; expected " in refusal
        assert len(refusal) < 1500
        assert spelled(reducer.state_dict()) == spelled(before)
        return False
    again = reducer.state_dict()
    checked_state(again, reducer._settings(), reducer.rollback, reducer.trace)
    run = copy.deepcopy(standing(library, kind)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an attempt may wait for a metric
        run.reduce(reducer, 7)
    repr(reducer), reducer._repr_html_()
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", RUNS)
def test_a_damaged_state_is_refused_or_good(library: str, kind: str) -> None:
    counts = tampering(library, kind, 200)
    assert counts[False] > counts[True] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", RUNS)
def test_more_damage_is_refused_or_good(library: str, kind: str) -> None:
    tampering(library, kind, 2000)


def tampering(library: str, kind: str, count: int) -> collections.Counter[bool]:
    _, state = standing(library, kind)
    rng = random.Random(f"{library} {kind}")
    return collections.Counter(
        checked_load(library, kind, bad) for _, bad in damaged(state, rng, count)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", RUNS)
def test_the_state_as_it_was_is_taken(library: str, kind: str) -> None:
    _, state = standing(library, kind)
    reducer = reducer_of(kind)
    reducer.load_state_dict(state)
    assert spelled(reducer.state_dict()) == spelled(state)
    assert checked_load(library, kind, state)


# --- What an error says


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("step",), -1, r'`state\["step"\]` is -1; expected an int, 0 or more'),
        (("step",), 3, r'`state\["events"\]\[0\]\["step"\]` is 4; expected 3 or less'),
        (("waiting",), 1, r'`state\["waiting"\]` is 1; expected a bool'),
        (("metric",), math.nan, r'`state\["metric"\]` is nan; expected a finite number'),
        (("metric",), None, r'`state\["metric"\]` is None; expected a number, with which'),
        (("stopped",), "a", r'`state\["stopped"\]` is \'a\'; expected a list'),
        (("stopped",), [1], r'`state\["stopped"\]\[0\]` is 1; expected a str'),
        (("settings", "gate"), 1, r'`state\["settings"\]\["gate"\]` is 1; expected a str'),
        (("more",), 1, r"`state` has 'more' besides"),
        (("events", 0, "new_order"), 99, r'\["new_order"\]` is 99; expected 12 or less'),
        (("events", 0, "rolled_back"), 99, r'\["rolled_back"\]` is 99; expected .* or less'),
        (("events", 0, "seconds"), math.inf, r'\["seconds"\]` is inf; expected a finite'),
        (("events", 0, "hsv"), [1.0, 2.0], r'\["hsv"\]` is not sorted'),
        (("events", 0, "poles_after"), [1], r'in `state\["events"\]\[0\]`: `poles_after` has'),
        (("trial", "misses"), 3, r'`state\["trial"\]\["misses"\]` is 3; expected 2 or less'),
        (("trial", "layers"), ["0"], r'`state\["trial"\]\["layers"\]` is .* expected some of'),
        (("trial", "step"), 3, r'`state\["trial"\]\["step"\]` is 3; expected that of the last'),
        (("trial", "stands"), True, r'`state\["trial"\]\["stands"\]` is True; expected False'),
        (("trial", "snapshots"), [], r'`state\["trial"\]\["snapshots"\]` is \[\]; expected one'),
        (
            ("trial", "snapshots", 0, "tensors", "0.bias"),
            [1.0],
            r"tensors.*bias.*expected a tensor",
        ),
        (("trial", "more"), 1, r"`state\[\"trial\"\]` has 'more' besides"),
        (("trace", "every"), 3, r'`state\["trace"\]` is of HankelTrace\(3.*has HankelTrace\(2'),
        (("trace", "records", 0, "shares"), [], r'in `state\["trace"\]\["records"\]\[0\]`'),
    ],
)
def test_an_error_names_the_entry(path: tuple[Any, ...], value: Any, message: str) -> None:
    state = copy.copy(standing("torch", "rollback and trace")[1])
    *before, last = path
    bad = replaced(state, tuple(before), lambda owner: put(owner, last, value))
    reducer = reducer_of("rollback and trace")
    unchanged = spelled(reducer.state_dict())
    with pytest.raises((ArgumentError, ShapeError), match=message) as refusal:
        reducer.load_state_dict(bad)
    assert refusal.type is not OrderError
    assert spelled(reducer.state_dict()) == unchanged


def put(owner: Any, key: Any, value: Any) -> Any:
    made = copy.copy(owner)
    made[key] = value
    return made


def test_a_trial_needs_a_policy_and_a_trace_a_trace() -> None:
    state = standing("torch", "rollback and trace")[1]
    settings = reducer_of("plain")._settings()
    bare = {**state, "settings": settings, "trace": None}
    plain = reducer_of("plain")
    with pytest.raises(ArgumentError, match=r'`state\["metric"\]` is 1\.0; expected None'):
        plain.load_state_dict(bare)
    with pytest.raises(ArgumentError, match=r'`state\["trial"\]` is a dict .* no rollback policy'):
        plain.load_state_dict({**bare, "metric": None})
    with pytest.raises(ArgumentError, match=r'`state\["trace"\]` is .* expected None'):
        plain.load_state_dict({**bare, "metric": None, "trial": None, "trace": state["trace"]})
    missing = {**state, "trace": None}
    with pytest.raises(ArgumentError, match=r'`state\["trace"\]` is None; expected that of Hankel'):
        reducer_of("rollback and trace").load_state_dict(missing)


@pytest.mark.parametrize(
    ("library", "place", "name"),
    [
        ("torch", "tensors", "0.weight"),
        ("torch", "tensors", "2.nu_log"),
        ("jax", "model", ".first.nu_log"),
        ("jax", "opt_state", "[0].mu.head"),
    ],
)
def test_a_snapshot_of_other_arrays_is_refused_in_the_rollback(
    library: str, place: str, name: str
) -> None:
    run, state = standing(library, "rollback")
    run = copy.deepcopy(run)
    to_int = (lambda x: x.long()) if library == "torch" else (lambda x: x.astype("int32"))
    for change in (lambda x: x[None], to_int):
        path = ("trial", "snapshots", 0, place, name)
        reducer = reducer_of("rollback")
        reducer.load_state_dict(replaced(state, path, change))
        reducer.report(5.0)
        before = run.hash()
        with pytest.raises(ShapeError, match=r"snapshot from before the cut .* differ in"):
            run.reduce(reducer, 7)
        assert run.hash() == before


# --- All or nothing


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupt_in_the_middle_leaves_the_reducer(
    failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = standing("torch", "rollback and trace")[1]
    names = ("_dict_of", "_settings", "_made", "_tensor", "_check_trial", "_records", "Books")
    for name in names:
        reducer = reducer_of("rollback and trace")
        before = spelled(reducer.state_dict())

        def fail(*_: Any, **__: Any) -> Any:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(saved_state, name, fail)
            with pytest.raises(failure):
                reducer.load_state_dict(state)
        assert spelled(reducer.state_dict()) == before, name
        assert reducer.trace is not None
        assert reducer.trace.records == []


def test_an_interrupt_at_any_line_leaves_the_reducer_whole() -> None:
    """Ctrl-C between any two lines: all was loaded, or nothing."""
    import sys

    state = standing("torch", "rollback and trace")[1]
    before = spelled(reducer_of("rollback and trace").state_dict())
    after = spelled(state)
    loading = InTrainingReducer.load_state_dict.__code__
    found = set()
    for stop in range(30):
        reducer, lines = reducer_of("rollback and trace"), 0

        def interrupt(frame: Any, event: str, _: Any, stop: int = stop) -> Any:
            nonlocal lines
            if frame.f_code is not loading:
                return None
            frame.f_trace_opcodes = False
            lines += event == "line"
            if lines > stop:
                raise KeyboardInterrupt
            return interrupt

        traced = sys.gettrace()
        sys.settrace(interrupt)
        try:
            reducer.load_state_dict(state)
            is_interrupted = False
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            sys.settrace(traced)
        found.add(spelled(reducer.state_dict()))
        if not is_interrupted:
            break
    assert found == {before, after}
