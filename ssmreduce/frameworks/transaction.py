"""`commit`: changes of a model, its optimizer, its copies and a reducer's books, made entirely or not at all.

Everything that can fail is done before: a `Step` only puts what is ready in its place. Ctrl-C waits until all
steps are made; where something is raised all the same, the steps that were begun are undone, on all processes
that train the model.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any


class Step(ABC):
    """One change. It keeps what it replaces, from before the transaction or from when it is made."""

    @abstractmethod
    def make(self) -> None:
        """Make the change."""

    @abstractmethod
    def undo(self) -> None:
        """Put back what was there, whether `make` ended, was broken off or did not begin."""


class Assignment(Step):
    """``setattr(owner, name, value)``; for a `value` None with `removes` the attribute goes."""

    def __init__(self, owner: Any, name: str, value: Any, *, removes: bool = False) -> None:
        self.owner, self.name, self.removes = owner, name, removes
        self._value = value
        self._was_there = hasattr(owner, name)
        self._before = getattr(owner, name, None)

    def make(self) -> None:
        """Assign, or remove."""
        if self.removes:
            vars(self.owner).pop(self.name, None)
        else:
            setattr(self.owner, self.name, self._value)

    def undo(self) -> None:
        """Assign what was there."""
        if self._was_there:
            setattr(self.owner, self.name, self._before)
        else:
            vars(self.owner).pop(self.name, None)


@dataclass(eq=False)
class Entries(Step):
    """``mapping[key] = value`` for all of `new`, and no entries for the keys of `stale`."""

    mapping: Any
    new: Mapping[Any, Any]
    stale: Collection[Any] = ()
    _before: dict[Any, Any] | None = field(default=None, init=False)

    def make(self) -> None:
        """Set the entries, and remove others."""
        mapping = self.mapping
        self._before = {key: mapping[key] for key in (*self.new, *self.stale) if key in mapping}
        mapping.update(self.new)
        for key in self.stale:
            mapping.pop(key, None)

    def undo(self) -> None:
        """Set what was there."""
        if self._before is None:
            return
        for key in self.new.keys() - self._before.keys():
            self.mapping.pop(key, None)
        self.mapping.update(self._before)


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
