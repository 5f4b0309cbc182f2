"""`commit`: changes of a model, its optimizer, its copies and a reducer's books, made entirely or not at all.

Everything that can fail is done before: a `Step` only puts what is ready in its place. Ctrl-C waits until all
steps are made; where something is raised all the same, the steps that were begun are undone, on all processes
that train the model.
"""

from __future__ import annotations

import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol


class Step(Protocol):
    """One change, made once. It keeps what it replaces, from before the transaction or from its beginning."""

    @abstractmethod
    def make(self) -> object:
        """Make the change."""

    @abstractmethod
    def undo(self) -> object:
        """Put back what was there, whether `make` ended, was broken off or did not begin."""


class Change(NamedTuple):
    """A step of two functions."""

    make: Callable[[], object] = lambda: None
    undo: Callable[[], object] = lambda: None


def assignment(owner: Any, name: str, value: Any, before: Any) -> Change:
    """Return the step ``setattr(owner, name, value)`` and the way back to what was there before."""
    return Change(partial(setattr, owner, name, value), partial(setattr, owner, name, before))


ABSENT: Any = object()
"""Stands for an entry that is not there."""


@dataclass(eq=False)
class Entries(Step):
    """``mapping[key] = value`` for all of `new`; where the value is `ABSENT` the entry goes."""

    mapping: Any
    new: Mapping[Any, Any]
    _before: Mapping[Any, Any] = field(default_factory=dict, init=False)

    def make(self) -> None:
        """Set the entries, and remove others."""
        self._before = {key: self.mapping.get(key, ABSENT) for key in self.new}
        for key, value in self.new.items():
            if value is ABSENT:
                self.mapping.pop(key, None)
            else:
                self.mapping[key] = value

    def undo(self) -> None:
        """Set what was there."""
        Entries(self.mapping, self._before).make()


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model and its optimizer state as they will be, and the steps to that, where they change in place."""

    model: Any
    opt_state: Any
    steps: Sequence[Step] = field(default=())


def commit(steps: Sequence[Step], agreement: AbstractContextManager[Any] | None = None) -> None:
    """Make all steps, or none.

    `agreement` surrounds them where several processes train the model, and raises on all if one raised. Only
    a connection that breaks while they tell each other can leave processes different.
    """
    handler: Any = None
    held: list[tuple[int, Any]] = []
    try:
        try:
            present = signal.getsignal(signal.SIGINT)
            # Python runs handlers in the main thread.
            if threading.current_thread() is threading.main_thread() and callable(present):
                handler = present
                signal.signal(signal.SIGINT, lambda *received: held.append(received))
            with ExitStack() as undoing:  # goes on where a step cannot be undone
                with nullcontext() if agreement is None else agreement:
                    for step in steps:
                        undoing.callback(step.undo)
                        step.make()
                undoing.pop_all()
        finally:
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
    finally:
        if handler is not None:
            # Again: what is raised in a call may come before its first line.
            signal.signal(signal.SIGINT, handler)
            if held:
                handler(*held[-1])
