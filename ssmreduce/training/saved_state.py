"""Check the saved state of a reducer, all of it, before the reducer changes.

A state comes from a file, which may be of another run or program, or damaged. What it says has to be what
`InTrainingReducer.state_dict` could have said: the entries are those, each of its kind and in its range,
and they agree with each other and with the settings of the reducer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import is_array
from ssmreduce._checks import (
    flag,
    is_number,
    is_one_of,
    nonnegative_count,
    positive_count,
    shown,
    type_name,
)
from ssmreduce.errors import (
    ArgumentError,
    ArgumentTypeError,
    ShapeError,
    SSMReduceError,
)
from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.layers.options import Method
from ssmreduce.training.books import Books
from ssmreduce.training.policy import RollbackPolicy, Trial
from ssmreduce.training.records import HankelRecord
from ssmreduce.training.trace import HankelTrace
from ssmreduce.training.tracking import ReductionEvent

_ENTRIES = ("settings", "step", "events", "waiting", "metric", "stopped", "trial", "trace")
_TRIAL = tuple(item.name for item in fields(Trial))
_EVENT = tuple(item.name for item in fields(ReductionEvent))
_TRACE = ("every", "share", "horizon", "records")
_RECORD = tuple(item.name for item in fields(HankelRecord))
_IN_TORCH = ("tensors", "attributes", "optimizer")
_OF_ARRAYS = ("model", "opt_state")


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
        return _checked(_dict_of(state, "state", _ENTRIES), settings, rollback, trace)
    except RecursionError:
        raise ArgumentError(
            "`state` is nested too deeply to be read; expected what state_dict() of a reducer returned. "
            "Take another file."
        ) from None


def _checked(
    entries: Mapping[str, Any],
    settings: Mapping[str, str],
    rollback: RollbackPolicy | None,
    trace: HankelTrace | None,
) -> tuple[Books, list[HankelRecord]]:
    _check_settings(entries["settings"], settings)
    step = nonnegative_count(entries["step"], 'state["step"]', "the number of updates done")
    events = _events(entries["events"], 'state["events"]', step)
    metric = _metric(entries["metric"], 'state["metric"]', rollback)
    books = Books(
        step=step,
        events=tuple(events),
        waiting=flag(entries["waiting"], 'state["waiting"]'),
        metric=metric,
        stopped=frozenset(_names(entries["stopped"], 'state["stopped"]')),
        trial=_trial(entries["trial"], 'state["trial"]', rollback, metric, events),
    )
    return books, _records(entries["trace"], 'state["trace"]', trace)


def _check_settings(saved: object, settings: Mapping[str, str]) -> None:
    texts = _dict_of(saved, 'state["settings"]', tuple(settings))
    for name, here in settings.items():
        before = texts[name]
        if not isinstance(before, str):
            raise _wrong(f'state["settings"]["{name}"]', before, "a str")
        if name != "schedule" and before != here:
            raise ArgumentError(
                f"`state` was saved with {name} {_text(before)} but the reducer has {here}; expected "
                "the same. Build the reducer as it was."
            )


def _text(text: str) -> str:
    """A text of a file as a message shows it: without quotes, and cut where it is long."""
    return text if len(text) <= 400 else f"{text[:400]}..."


def _metric(value: object, name: str, rollback: RollbackPolicy | None) -> float | None:
    if value is None:
        return None
    if not is_number(value):
        raise _wrong(name, value, "a finite number, or None before the first report")
    if rollback is None:
        raise _wrong(name, value, "None, as the reducer has no rollback policy")
    return float(value)


# --- Events


def _events(saved: object, name: str, last_step: int) -> list[ReductionEvent]:
    events: list[ReductionEvent] = []
    for index, entry in enumerate(_list_of(saved, name)):
        own = f"{name}[{index}]"
        values = _dict_of(entry, own, _EVENT)
        _check_counts(values, own, last_step)
        values |= _finite_numbers(values, own)
        methods = get_args(Method)[1:]  # the best is one of the others
        if values["method"] is not None and not is_one_of(values["method"], methods):
            expected = f"None or one of {', '.join(map(repr, methods))}"
            raise _wrong(f'{own}["method"]', values["method"], expected)
        for key in ("hsv", "poles_before", "poles_after"):
            _check_plain(values[key], f'{own}["{key}"]')
        with _inside(own):
            event = ReductionEvent.from_dict(values)
        _check_arrays(event, own)
        events.append(event)
    return events


def _check_counts(values: Mapping[str, Any], name: str, last_step: int) -> None:
    counts = ("step", "old_order", "new_order")
    meaning = "what to_dict() of an event returned"
    step, old, new = (positive_count(values[key], f'{name}["{key}"]', meaning) for key in counts)
    nonnegative_count(values["real_order"], f'{name}["real_order"]', meaning)
    if step > last_step:
        raise _wrong(f'{name}["step"]', step, f'{last_step} or less, which is state["step"]')
    if new > old:
        raise _wrong(f'{name}["new_order"]', new, f"{old} or less, the order before the cut")
    back = values["rolled_back"]
    if back is not None:
        back = positive_count(back, f'{name}["rolled_back"]', "the step of the rollback, or None")
        if back > last_step:  # maybe before the cut: a loop may count its updates anew
            raise _wrong(
                f'{name}["rolled_back"]', back, f'{last_step} or less, which is state["step"]'
            )


def _finite_numbers(values: Mapping[str, Any], name: str) -> dict[str, float]:
    found = {}
    for key in ("tau", "error_bound", "output_error", "measured_error", "seconds"):
        value = values[key]
        if value is None and key != "seconds":
            continue
        most = 1.0 if key == "tau" else math.inf
        if not is_number(value) or not 0.0 <= value <= most:
            expected = "a number from 0 to 1" if key == "tau" else "a finite number, 0 or more"
            raise _wrong(f'{name}["{key}"]', value, expected)
        found[key] = float(value)
    for key in ("loss_before", "loss_after", "constant_loss", "unmatched_loss"):
        value = values[key]
        if value is None:
            continue
        if not is_number(value):
            raise _wrong(f'{name}["{key}"]', value, "a finite number, or None")
        found[key] = float(value)
    return found


def _check_plain(value: Any, name: str) -> None:
    """Refuse anything but numbers in lists, or a NumPy array of them."""
    if isinstance(value, list | tuple):
        if {*map(type, value)} != {float}:
            for index, entry in enumerate(value):
                _check_plain(entry, f"{name}[{index}]")
    elif not is_number(value) and not (isinstance(value, np.ndarray) and value.dtype.kind in "fiu"):
        raise ShapeError(
            f"`{name}` is {shown(value)}; expected a finite number, or a list of them. Take another file."
        )


def _check_arrays(event: ReductionEvent, name: str) -> None:
    _check_values(event.hsv, name)
    if not max(event.old_order, event.real_order) <= event.hsv.shape[-1]:
        raise ShapeError(
            f'`{name}["hsv"]` has shape {event.hsv.shape}; expected {event.old_order} values or more, one '
            f"for each stored state, and not fewer than real_order {event.real_order}. Take another file."
        )
    for key in ("poles_before", "poles_after"):
        poles = getattr(event, key)
        if poles.size == 0 and event.measured_error is None:
            continue  # a layer that runs no one system
        if poles.size == 0 or poles.shape[:-1] != event.hsv.shape[:-1]:
            raise ShapeError(
                f'`{name}["{key}"]` has shape {poles.shape} but "hsv" has {event.hsv.shape}; expected the '
                "same leading axes, and a pole at least. Take another file."
            )


def _check_values(hsv: Any, name: str, key: str = "hsv") -> None:
    if (hsv < 0).any() or (np.diff(hsv) > 0).any():
        raise ShapeError(
            f'`{name}["{key}"]` is not sorted, or negative somewhere; expected nonnegative numbers in '
            "descending order. Take another file."
        )


# --- The cut on trial


def _trial(
    saved: object,
    name: str,
    rollback: RollbackPolicy | None,
    metric: float | None,
    events: Sequence[ReductionEvent],
) -> Trial | None:
    if saved is None:
        return None
    values = _dict_of(saved, name, _TRIAL)
    if rollback is None:
        raise ArgumentError(
            f"`{name}` is a dict but the reducer has no rollback policy; expected None. Build the reducer as "
            "it was."
        )
    if metric is None:
        raise _wrong('state["metric"]', metric, f"a number, with which `{name}` is compared")
    if flag(values["stands"], f'{name}["stands"]'):
        raise _wrong(f'{name}["stands"]', True, "False: a trial is not saved once its cut stands")
    misses = nonnegative_count(values["misses"], f'{name}["misses"]', "how many reports were worse")
    if misses > rollback.patience:
        raise _wrong(f'{name}["misses"]', misses, f"{rollback.patience} or less, the patience")
    step = positive_count(values["step"], f'{name}["step"]', "the step of the cut")
    last = [event for event in events if event.step == events[-1].step]
    if not last or last[0].step != step:
        steps = last[0].step if last else "no cut at all"
        raise _wrong(f'{name}["step"]', step, f"that of the last of the events: {steps}")
    layers = _names(values["layers"], f'{name}["layers"]')
    cut = {event.layer for event in last if event.rolled_back is None}
    if not layers or len({*layers}) < len(layers) or not cut.issuperset(layers):
        expected = f"some of the layers that were cut then, once each: {', '.join(sorted(cut))}"
        raise _wrong(f'{name}["layers"]', layers, expected)
    return Trial(step, layers, _snapshots(values["snapshots"], f'{name}["snapshots"]'), misses)


def _snapshots(saved: object, name: str) -> list[Snapshot]:
    found = _list_of(saved, name)
    if not found:
        raise _wrong(name, found, "one of the model at least")
    first = found[0]
    in_torch = isinstance(first, Mapping) and "tensors" in first
    read = _torch_snapshot if in_torch else _snapshot_of_arrays
    return [read(entry, f"{name}[{index}]") for index, entry in enumerate(found)]


def _torch_snapshot(saved: object, name: str) -> Snapshot:
    """As `ssmreduce.frameworks.torch_snapshot.take` makes it."""
    entries = _dict_of(saved, name, _IN_TORCH)
    tensors = _dict_by(str, entries["tensors"], f'{name}["tensors"]', _tensor)
    attributes = _dict_by(str, entries["attributes"], f'{name}["attributes"]', _named_values)
    optimizer = _dict_by(int, entries["optimizer"], f'{name}["optimizer"]', _named_values)
    return {"tensors": tensors, "attributes": attributes, "optimizer": optimizer}


def _snapshot_of_arrays(saved: object, name: str) -> Snapshot:
    """As `ssmreduce.frameworks.pytrees` makes it, and of a mapping, in any library."""
    entries = _dict_of(saved, name, _OF_ARRAYS)
    return {key: _dict_by(str, entries[key], f'{name}["{key}"]', _leaf) for key in _OF_ARRAYS}


def _named_values(saved: object, name: str) -> dict[Any, Any]:
    return _dict_by(str, saved, name, _value)


def _value(saved: Any, name: str) -> Any:
    """An entry of an optimizer state, or an attribute: tensors, numbers, and containers of them."""
    if isinstance(saved, Mapping):
        return _dict_by(object, saved, name, _value)
    if isinstance(saved, list | tuple):
        made = [_value(entry, f"{name}[{index}]") for index, entry in enumerate(saved)]
        return made if isinstance(saved, list) else tuple(made)
    if saved is None or isinstance(saved, bool | int | float | complex | str):
        return saved
    return _tensor(saved, name)


def _tensor(saved: Any, name: str) -> Any:
    if not array_api_compat.is_torch_array(saved):
        raise ShapeError(f"`{name}` is {shown(saved)}; expected a tensor. Take another file.")
    if saved.is_meta:
        raise ShapeError(
            f'`{name}` is on the device "meta", without numbers; expected a tensor that has them. Load the '
            'file with map_location="cpu".'
        )
    return saved


def _leaf(saved: Any, name: str) -> Any:
    if isinstance(saved, bool | int | float | complex):
        return saved
    if array_api_compat.is_torch_array(saved):
        return _tensor(saved, name)
    if is_array(saved) and not isinstance(saved, np.ndarray):
        return saved
    # V: bfloat16 and its like, which have no fields.
    if (
        not isinstance(saved, np.ndarray | np.generic)
        or saved.dtype.kind not in "biufcV"
        or saved.dtype.fields
    ):
        raise ShapeError(
            f"`{name}` is {shown(saved)}; expected an array of numbers, or a number. Take another file."
        )
    return saved


# --- The trace


def _records(saved: object, name: str, trace: HankelTrace | None) -> list[HankelRecord]:
    if trace is None or saved is None:
        if trace is not None or saved is not None:
            expected = (
                "None, as the reducer has no trace" if trace is None else f"that of {trace!r}"
            )
            raise _wrong(name, saved, expected)
        return []
    entries = _dict_of(saved, name, _TRACE)
    records = _list_of(entries["records"], f'{name}["records"]')
    with _inside(name):
        before = HankelTrace.from_dict({**entries, "records": []})
    if repr(before) != repr(trace):
        raise ArgumentError(
            f"`{name}` is of {before!r} but the reducer has {trace!r}; expected the same. Build the "
            "reducer as it was."
        )
    return [_record(entry, f'{name}["records"][{index}]') for index, entry in enumerate(records)]


def _record(saved: object, name: str) -> HankelRecord:
    values = _dict_of(saved, name, _RECORD)
    has_data = values["data_hsv"] is not None
    for key in ("hsv", "shares", "data_hsv") if has_data else ("hsv", "shares"):
        _check_plain(values[key], f'{name}["{key}"]')
    with _inside(name):
        record = HankelRecord.from_dict(values)
    _check_values(record.hsv, name)
    if record.data_hsv is not None:
        _check_values(record.data_hsv, name, "data_hsv")
    if record.shares.shape[:-1] != record.hsv.shape[:-1]:
        raise ShapeError(
            f'`{name}["shares"]` has shape {record.shares.shape} but "hsv" has {record.hsv.shape}; expected '
            "the same leading axes. Take another file."
        )
    return record


# --- Containers


def _dict_of(saved: object, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """The entries of a dict that has these keys and no other."""
    if not isinstance(saved, Mapping):
        raise _wrong(name, saved, f"a dict with {', '.join(keys)}")
    missing = sorted(set(keys) - saved.keys())
    extra = sorted(shown(key) for key in saved.keys() - set(keys))
    if missing or extra:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has {', '.join(extra)} besides" if extra else ""
        raise ArgumentError(
            f"`{name}` {' and '.join(filter(None, (lacks, has)))}; expected what state_dict() of a reducer "
            "returned. Take that of the same version of ssmreduce."
        )
    return {key: saved[key] for key in keys}


def _dict_by(
    kind: type, saved: object, name: str, read: Callable[[Any, str], Any]
) -> dict[Any, Any]:
    """The entries of a dict whose keys are of this kind, each read."""
    if not isinstance(saved, Mapping):
        raise _wrong(name, saved, "a dict")
    for key in saved:
        if not isinstance(key, kind) or isinstance(key, bool):
            raise ArgumentError(
                f"`{name}` has the key {shown(key)}; expected keys of type {kind.__name__}. "
                "Take another file."
            )
    return {key: read(value, f"{name}[{key!r}]") for key, value in saved.items()}


def _list_of(saved: object, name: str) -> list[Any]:
    if not isinstance(saved, list | tuple):
        raise _wrong(name, saved, "a list")
    return list(saved)


def _names(saved: object, name: str) -> list[str]:
    found = _list_of(saved, name)
    for index, entry in enumerate(found):
        if not isinstance(entry, str):
            raise _wrong(f"{name}[{index}]", entry, "a str, the name of a layer")
    return found


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """Say which entry an error is about."""
    try:
        yield
    except SSMReduceError as error:
        raise type(error)(f"in `{name}`: {error}") from error


def _wrong(name: str, found: object, expected: str) -> ArgumentError:
    return ArgumentError(
        f"`{name}` is {shown(found)}; expected {expected}. Take what state_dict() of the reducer returned."
    )
