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
