"""Check the saved state of a reducer, all of it, before the reducer changes.

A state comes from a file, which may be of another run or program, or damaged. What it says has to be what
`InTrainingReducer.state_dict` could have said: the entries are those, each of its kind and in its range,
and they agree with each other and with the settings of the reducer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, get_args

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import is_array
from ssmreduce._checks import (
    flag,
    fraction,
    is_number,
    is_one_of,
    naming,
    nonnegative_count,
    positive_count,
    shown,
    type_name,
    whole_number,
)
from ssmreduce.errors import ArgumentError, ArgumentTypeError, ShapeError, SSMReduceError
from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.layers.options import Method
from ssmreduce.training.books import Books
from ssmreduce.training.policy import RollbackPolicy, Trial
from ssmreduce.training.records import HankelRecord
from ssmreduce.training.trace import HankelTrace
from ssmreduce.training.tracking import ReductionEvent

Reader = Callable[[Any, str], Any]
"""Takes an entry and its name; returns what it says, or raises."""

_METHODS = get_args(Method)[1:]
"""How a layer can have been cut: the best is one of the others."""


def checked_state(
    state: object,
    settings: Mapping[str, str],
    rollback: RollbackPolicy | None,
    trace: HankelTrace | None,
) -> tuple[Books, list[HankelRecord]]:
    """Return what `state` says, for a reducer of these settings, policy and trace: books and records.

    Raises
    ------
    ArgumentError
        If it is of a reducer with other settings, or no state of a reducer.
    ShapeError, NonFiniteError
        If an array in it is none that a reducer saves.
    """
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(
            f"`state` is a {type_name(state)}; expected what state_dict() of a reducer returned. "
            "Read a file with torch.load(path) first."
        )
    try:
        said = _dict_of({"settings": partial(_settings, settings), **_STATE}, state, "state")
    except RecursionError:
        raise ArgumentError(
            "`state` is nested too deeply to be read; expected what state_dict() of a reducer returned. "
            "Take another file."
        ) from None
    del said["settings"]
    if said["metric"] is not None and rollback is None:
        raise _wrong(
            'state["metric"]', said["metric"], "None, as the reducer has no rollback policy"
        )
    for index, event in enumerate(said["events"]):
        name = f'state["events"][{index}]'
        _check_limit(event.step, f'{name}["step"]', said["step"], 'which is state["step"]')
        back = 0 if event.rolled_back is None else event.rolled_back
        # Maybe before the cut: a loop may count its updates anew.
        _check_limit(back, f'{name}["rolled_back"]', said["step"], 'which is state["step"]')
    if said["trial"] is not None:
        said["trial"] = Trial(**said["trial"])
        _check_trial(said, rollback)
    records = _records(said.pop("trace"), trace)
    said |= {"events": tuple(said["events"]), "stopped": frozenset(said["stopped"])}
    return Books(**said), records


def _settings(settings: Mapping[str, str], saved: Any, name: str) -> None:
    """The first entry to be read: those of another reducer are of no use here."""
    texts = _dict_of(dict.fromkeys(settings, _text), saved, name)
    for name, here in settings.items():
        before = texts[name]
        if name != "schedule" and before != here:
            before = before if len(before) <= 400 else f"{before[:400]}..."
            raise ArgumentError(
                f"`state` was saved with {name} {before} but the reducer has {here}; expected "
                "the same. Build the reducer as it was."
            )


def _check_limit(value: int, name: str, most: int, meaning: str) -> None:
    if value > most:
        raise _wrong(name, value, f"{most} or less, {meaning}")


def _check_trial(said: Mapping[str, Any], rollback: RollbackPolicy | None) -> None:
    name, trial, events = 'state["trial"]', said["trial"], said["events"]
    if rollback is None:
        raise ArgumentError(
            f"`{name}` is a dict but the reducer has no rollback policy; expected None. Build the reducer as "
            "it was."
        )
    if said["metric"] is None:
        raise _wrong('state["metric"]', None, f"a number, with which `{name}` is compared")
    if trial.stands:
        raise _wrong(f'{name}["stands"]', True, "False: a trial is not saved once its cut stands")
    _check_limit(trial.misses, f'{name}["misses"]', rollback.patience, "the patience")
    last = [event for event in events if event.step == events[-1].step]
    if not last or last[0].step != trial.step:
        steps = last[0].step if last else "no cut at all"
        raise _wrong(f'{name}["step"]', trial.step, f"that of the last of the events: {steps}")
    layers = trial.layers
    cut = {event.layer for event in last if event.rolled_back is None}
    if not layers or len({*layers}) < len(layers) or not cut.issuperset(layers):
        expected = f"some of the layers that were cut then, once each: {', '.join(sorted(cut))}"
        raise _wrong(f'{name}["layers"]', layers, expected)


def _records(saved: dict[str, Any] | None, trace: HankelTrace | None) -> list[HankelRecord]:
    name = 'state["trace"]'
    if trace is None:
        if saved is not None:
            raise _wrong(name, saved, "None, as the reducer has no trace")
        return []
    if saved is None:
        raise _wrong(name, saved, f"that of {trace!r}")
    records: list[HankelRecord] = saved.pop("records")
    before = HankelTrace(**saved)
    if repr(before) != repr(trace):
        raise ArgumentError(
            f"`{name}` is of {before!r} but the reducer has {trace!r}; expected the same. Build the "
            "reducer as it was."
        )
    return records


# --- What each entry is


_SOURCE = "what state_dict() of the reducer returned"


def _wrong(
    name: str, found: object, expected: str, kind: type[SSMReduceError] = ArgumentError
) -> SSMReduceError:
    return kind(f"`{name}` is {shown(found)}; expected {expected}. Take {_SOURCE}.")


def _or_none(read: Reader, saved: Any, name: str) -> Any:
    return None if saved is None else read(saved, name)


def _number(
    saved: Any, name: str, *, expected: str, least: float = 0.0, most: float = math.inf
) -> float:
    if not is_number(saved) or not least <= saved <= most:
        raise _wrong(name, saved, expected)
    return float(saved)


def _text(saved: Any, name: str, *, expected: str = "a str") -> str:
    if not isinstance(saved, str):
        raise _wrong(name, saved, expected)
    return saved


def _method(saved: Any, name: str) -> Any:
    if saved is not None and not is_one_of(saved, _METHODS):
        raise _wrong(name, saved, f"None or one of {', '.join(map(repr, _METHODS))}")
    return saved


def _numbers(saved: Any, name: str) -> Any:
    """Numbers in lists, or a NumPy array of them, and nothing else."""
    if isinstance(saved, list | tuple):
        if {*map(type, saved)} != {float}:
            for index, entry in enumerate(saved):
                _numbers(entry, f"{name}[{index}]")
    elif not is_number(saved) and not (isinstance(saved, np.ndarray) and saved.dtype.kind in "fiu"):
        raise _wrong(name, saved, "a finite number, or a list of them", ShapeError)
    return saved


def _value(saved: Any, name: str) -> Any:
    """An entry of an optimizer state, or an attribute: tensors, numbers, and containers of them."""
    if isinstance(saved, Mapping):
        return _dict_by(object, _value, saved, name)
    if isinstance(saved, list | tuple):
        made = _list_of(_value, saved, name)
        return made if isinstance(saved, list) else tuple(made)
    if saved is None or isinstance(saved, int | float | complex | str):
        return saved
    return _tensor(saved, name)


def _tensor(saved: Any, name: str) -> Any:
    if not array_api_compat.is_torch_array(saved):
        raise _wrong(name, saved, "a tensor", ShapeError)
    if saved.is_meta:
        raise ShapeError(
            f'`{name}` is on the device "meta", without numbers; expected a tensor that has them. Load the '
            'file with map_location="cpu".'
        )
    return saved


def _leaf(saved: Any, name: str) -> Any:
    """A number, or an array of any library."""
    if array_api_compat.is_torch_array(saved):
        return _tensor(saved, name)
    if isinstance(saved, np.ndarray | np.generic):  # V: bfloat16 and its like, which have no fields
        is_numeric = saved.dtype.kind in "biufcV" and not saved.dtype.fields
    else:
        is_numeric = is_array(saved) or isinstance(saved, int | float | complex)
    if not is_numeric:
        raise _wrong(name, saved, "an array of numbers, or a number", ShapeError)
    return saved


# --- Containers


def _dict_of(entries: Mapping[str, Reader], saved: object, name: str) -> dict[str, Any]:
    """A dict that has these entries and no other."""
    if not isinstance(saved, Mapping):
        raise _wrong(name, saved, f"a dict with {', '.join(entries)}")
    missing = sorted(entries.keys() - saved.keys())
    extra = sorted(shown(key) for key in saved.keys() - entries.keys())
    if missing or extra:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has {', '.join(extra)} besides" if extra else ""
        raise ArgumentError(
            f"`{name}` {' and '.join(filter(None, (lacks, has)))}; expected what state_dict() of a reducer "
            "returned. Take that of the same version of ssmreduce."
        )
    return {key: read(saved[key], f'{name}["{key}"]') for key, read in entries.items()}


def _dict_by(kind: type, read: Reader, saved: object, name: str) -> dict[Any, Any]:
    """A dict whose keys are of this kind."""
    if not isinstance(saved, Mapping):
        raise _wrong(name, saved, "a dict")
    for key in saved:
        if not isinstance(key, kind) or isinstance(key, bool):
            raise ArgumentError(
                f"`{name}` has the key {shown(key)}; expected keys of type {kind.__name__}. "
                "Take another file."
            )
    return {key: read(value, f"{name}[{key!r}]") for key, value in saved.items()}


def _list_of(read: Reader, saved: object, name: str) -> list[Any]:
    if not isinstance(saved, list | tuple):
        raise _wrong(name, saved, "a list")
    return [read(entry, f"{name}[{index}]") for index, entry in enumerate(saved)]


# --- Records


_POSITIVE = partial(positive_count, meaning=_SOURCE)
_POSITIVE_OR_NONE = partial(_or_none, partial(positive_count, meaning=f"None, or {_SOURCE}"))
_COUNT = partial(nonnegative_count, meaning=_SOURCE)
_LAYERS = partial(_list_of, partial(_text, expected="a str, the name of a layer"))
_SHARE = partial(_or_none, partial(_number, most=1.0, expected="a number from 0 to 1, or None"))
_ERROR = partial(_or_none, partial(_number, expected="a finite number, 0 or more, or None"))
_ANY_NUMBER = partial(_number, least=-math.inf)
_LOSS = partial(_or_none, partial(_ANY_NUMBER, expected="a finite number, or None"))
_METRIC = partial(_ANY_NUMBER, expected="a finite number, or None before the first report")


def _entries_of(record: type, **others: Reader) -> dict[str, Reader]:
    """How to read each entry of a dataclass: as one of its kind, unless it is among the others."""
    kinds: dict[Any, Reader] = {
        "bool": flag,
        "int": _POSITIVE,
        "int | None": _POSITIVE_OR_NONE,
        "float": partial(_number, expected="a finite number, 0 or more"),
        "float | None": _ERROR,
        "str": _text,
        "list[str]": _LAYERS,
        "HostArray": _numbers,
        "HostArray | None": partial(_or_none, _numbers),
    }
    return {own.name: others.get(own.name) or kinds[own.type] for own in fields(record)}


_EVENT = _entries_of(
    ReductionEvent,
    real_order=_COUNT,
    tau=_SHARE,
    loss_before=_LOSS,
    loss_after=_LOSS,
    constant_loss=_LOSS,
    unmatched_loss=_LOSS,
    method=_method,
)


def _event(saved: object, name: str) -> ReductionEvent:
    event: ReductionEvent = _made(ReductionEvent.from_dict, _EVENT, saved, name)
    old, hsv = event.old_order, event.hsv
    _check_limit(event.new_order, f'{name}["new_order"]', old, "the order before the cut")
    _check_descending(hsv, f'{name}["hsv"]')
    if not max(old, event.real_order) <= hsv.shape[-1]:
        raise ShapeError(
            f'`{name}["hsv"]` has shape {hsv.shape}; expected {old} values or more, one for each stored '
            f"state, and not fewer than real_order {event.real_order}. Take another file."
        )
    for key in ("poles_before", "poles_after"):
        poles = getattr(event, key)
        if poles.size == 0 and event.measured_error is None:
            continue  # a layer that runs no one system
        if poles.size == 0 or poles.shape[:-1] != hsv.shape[:-1]:
            raise ShapeError(
                f'`{name}["{key}"]` has shape {poles.shape} but "hsv" has {hsv.shape}; expected the '
                "same leading axes, and a pole at least. Take another file."
            )
    return event


_RECORD = _entries_of(HankelRecord, step=partial(whole_number, meaning=_SOURCE))


def _record(saved: object, name: str) -> HankelRecord:
    record: HankelRecord = _made(HankelRecord.from_dict, _RECORD, saved, name)
    _check_descending(record.hsv, f'{name}["hsv"]')
    if record.data_hsv is not None:
        _check_descending(record.data_hsv, f'{name}["data_hsv"]')
    if record.shares.shape[:-1] != record.hsv.shape[:-1]:
        raise ShapeError(
            f'`{name}["shares"]` has shape {record.shares.shape} but "hsv" has {record.hsv.shape}; expected '
            "the same leading axes. Take another file."
        )
    return record


def _made(
    make: Callable[[Any], Any], entries: Mapping[str, Reader], saved: object, name: str
) -> Any:
    """What is made of a dict of these entries; errors say where it was."""
    values = _dict_of(entries, saved, name)
    with naming(f"in `{name}`"):
        return make(values)


def _check_descending(values: Any, name: str) -> None:
    if (values < 0).any() or (np.diff(values) > 0).any():
        raise ShapeError(
            f"`{name}` is not sorted, or negative somewhere; expected nonnegative numbers in "
            "descending order. Take another file."
        )


_BY_NAME = partial(_dict_by, str, _value)

_IN_TORCH: dict[str, Reader] = {
    "tensors": partial(_dict_by, str, _tensor),
    "attributes": partial(_dict_by, str, _BY_NAME),
    "optimizer": partial(_dict_by, int, _BY_NAME),
}
"""As `ssmreduce.frameworks.torch_snapshot.take` makes it."""

_LEAVES = partial(_dict_by, str, _leaf)

_OF_ARRAYS: dict[str, Reader] = {"model": _LEAVES, "opt_state": _LEAVES}
"""As `ssmreduce.frameworks.pytrees` makes it, and of a mapping, in any library."""


def _snapshots(saved: Any, name: str) -> list[Snapshot]:
    if not isinstance(saved, list | tuple) or not saved:
        raise _wrong(name, saved, "one of the model at least, in a list")
    in_torch = isinstance(saved[0], Mapping) and "tensors" in saved[0]
    return _list_of(partial(_dict_of, _IN_TORCH if in_torch else _OF_ARRAYS), saved, name)


_TRIAL = _entries_of(Trial, snapshots=_snapshots, misses=_COUNT)

_TRACE: dict[str, Reader] = {
    "every": _POSITIVE,
    "share": fraction,
    "horizon": _POSITIVE_OR_NONE,
    "records": partial(_list_of, _record),
}

_STATE: dict[str, Reader] = {
    "step": _COUNT,
    "events": partial(_list_of, _event),
    "waiting": flag,
    "metric": partial(_or_none, _METRIC),
    "stopped": _LAYERS,
    "trial": partial(_or_none, partial(_dict_of, _TRIAL)),
    "trace": partial(_or_none, partial(_dict_of, _TRACE)),
}
