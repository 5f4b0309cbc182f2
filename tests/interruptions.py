"""Raise at any call of the package, or line of the modules that write, and say what is left afterwards."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fingerprints import fingerprint

import ssmreduce
from ssmreduce.frameworks import transaction

PACKAGE = str(Path(ssmreduce.__file__).parent)
WRITING = (
    "frameworks/transaction.py",
    "frameworks/torch.py",
    "frameworks/torch_arrays.py",
    "frameworks/torch_attributes.py",
    "frameworks/torch_distributed.py",
    "frameworks/torch_optimizer.py",
    "frameworks/torch_saved.py",
    "frameworks/torch_snapshot.py",
    "models/cut.py",
    "models/snapshots.py",
    "training/attempts.py",
    "training/books.py",
    "training/recorder.py",
    "training/reducer.py",
)
"""The modules of the write phase."""

EVENTS = frozenset({"call", "c_call", "c_return", "line", "return"})

Point = tuple[str, int, str, int]
"""File, line, event and how many times it was there before."""


class Places:
    """Counts the places where an exception may come, and raises at one of them.

    Outside of `commit` only the first time at a place counts; within, every time, and torch's own code too.
    """

    def __init__(self, *, lines: bool, at: Point | None = None, failure: Any = None) -> None:
        self.seen: list[Point] = []
        self._lines, self._at, self._failure = lines, at, failure
        self._counts: dict[tuple[str, int, str], int] = {}
        self._is_ours: dict[Any, bool] = {}
        self._is_writing = False
        self.has_raised = False

    def _visit(self, frame: Any, event: str, _: Any = None) -> None:
        code = frame.f_code
        ours = self._is_ours.get(code)
        if ours is None:
            ours = self._is_ours[code] = code.co_filename.startswith(PACKAGE)
        if not ours and not self._is_writing:
            return
        if event not in EVENTS or self.has_raised:
            return
        if code is transaction.commit.__code__:
            self._is_writing = event != "return"
        if event == "return":
            return
        place = code.co_filename, frame.f_lineno, event
        count = self._counts.get(place, 0)
        self._counts[place] = count + 1
        if count and not (ours and self._is_writing):
            return
        point = (*place, count)
        self.seen.append(point)
        if point == self._at:
            self.has_raised = True
            raise self._failure

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(WRITING):
            return None
        if event != "call" or frame.f_code is transaction.commit.__code__:
            self._visit(frame, event)
        return self._trace

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at what is called meanwhile."""
        get, put = (sys.gettrace, sys.settrace) if self._lines else (sys.getprofile, sys.setprofile)
        before = get()
        put(self._trace if self._lines else self._visit)
        try:
            yield
        finally:
            put(before)


def standing(parts: Sequence[Any]) -> str:
    """Hash of all that a cut or a rollback changes: models, optimizers, reducers and traces."""
    hashes = []
    for part in parts:
        if isinstance(part, torch.nn.Module):
            own = {name: vars(module) for name, module in part.named_modules()}
            plain = (bool, int, float, str, torch.Tensor, type(None))
            hashes.append(
                fingerprint(
                    {
                        f"{name}.{key}": value
                        for name, values in sorted(own.items())
                        for key, value in sorted(values.items())
                        if isinstance(value, plain)
                    },
                    {
                        name: (p.requires_grad, type(p).__name__, vars(p), p.grad)
                        for name, p in part.named_parameters()
                    },
                    dict(part.named_buffers()),
                    {name: tensor.detach() for name, tensor in part.named_parameters()},
                )
            )
        elif isinstance(part, ssmreduce.InTrainingReducer):
            state = copy.deepcopy(part.state_dict())
            for event in state["events"]:
                event["seconds"] = 0.0  # of this run
            orders = {name: cut.new_order for name, cut in part.last_cut.items()}
            hashes.append(fingerprint(state, orders, part.due(10**6)))
        else:
            hashes.append(fingerprint(part))
    return "\n".join(hashes)


def points_of(
    make: Callable[[], Any], operate: Callable[[Any], Any], *, lines: bool = False
) -> list[Point]:
    """All places of an operation where an exception may come."""
    subject, places = make(), Places(lines=lines)
    with places.watched():
        operate(subject)
    return places.seen


def interrupted(
    subject: Any, operate: Callable[[Any], Any], point: Point, failure: Any, *, lines: bool = False
) -> bool:
    """Whether the operation ended in an exception, after one was raised at that point."""
    places = Places(lines=lines, at=point, failure=failure)
    try:
        with places.watched():
            operate(subject)
    except BaseException:
        if not places.has_raised:
            raise
        return True
    return False


# --- Every call


class Calls:
    """Numbers the calls in an operation, and raises at the one with a given number.

    Counted are all calls of functions of the package; within `commit` those of other functions too, and of
    functions in C, before and after each. With `lines` all lines within `commit` are counted instead.
    """

    def __init__(self, at: int | None = None, failure: Any = None, *, lines: bool = False) -> None:
        self.count = 0
        self.where = ""
        self._at, self._failure, self._lines = -1 if at is None else at, failure, lines

    def run(self, operate: Callable[[Any], Any], subject: Any) -> bool:
        """Whether the operation ended in an exception."""
        get, put = (sys.gettrace, sys.settrace) if self._lines else (sys.getprofile, sys.setprofile)
        before = get()
        put(self._tracer() if self._lines else self._profiler())
        try:
            operate(subject)
        except BaseException:
            put(before)
            if not self.where:
                raise
            return True
        finally:
            put(before)
        return False

    def _profiler(self) -> Callable[[Any, str, Any], None]:
        # A closure that looks at nothing it need not: there are 20,000 events in a cut.
        is_ours, is_writing = _IS_OURS, False
        committing = transaction.commit.__code__

        def visit(frame: Any, event: str, _: Any) -> None:
            nonlocal is_writing
            if event == "call":
                code = frame.f_code
                key = id(code)
                if key not in is_ours:
                    is_ours[key] = code.co_filename.startswith(PACKAGE)
                    _SEEN.append(code)
                if is_ours[key]:
                    is_writing = is_writing or code is committing
                    self._visit(frame, event)
                elif is_writing:
                    self._visit(frame, event)
            elif is_writing:
                if event != "return":
                    self._visit(frame, event)
                elif frame.f_code is committing:
                    is_writing = False

        return visit

    def _tracer(self) -> Callable[[Any, str, Any], Any]:
        is_writing = False
        committing = transaction.commit.__code__

        def visit(frame: Any, event: str, _: Any) -> Any:
            nonlocal is_writing
            if frame.f_code is committing:
                is_writing = event != "return"
            if not is_writing:
                return None
            if event == "line":
                self._visit(frame, event)
            return visit

        return visit

    def _visit(self, frame: Any, event: str) -> None:
        number = self.count
        self.count = number + 1
        if number == self._at:
            self.where = f"{event} at {frame.f_code.co_filename}:{frame.f_lineno}"
            raise self._failure


_IS_OURS: dict[int, bool] = {}
_SEEN: list[Any] = []
"""By the identity of code objects, whose hashes are slow, and these objects themselves."""
