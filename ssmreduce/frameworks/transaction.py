"""`commit`: changes of a model, its optimizer, its copies and a reducer's books, made entirely or not at all.

Everything that can fail is done before: a `Step` only puts what is ready in its place. Ctrl-C waits until all
steps are made; where something is raised all the same, the steps that were begun are undone, on all processes
that train the model.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any


class Step(ABC):
    """One change. It keeps what it replaces from before the transaction."""

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


class Entries(Step):
    """``mapping[key] = value`` for all of `new`, and no entries for the keys of `stale`."""

    def __init__(self, mapping: Any, new: Mapping[Any, Any], stale: Collection[Any] = ()) -> None:
        self._mapping, self._new, self._stale = mapping, new, stale
        self._before = {key: mapping[key] for key in (*new, *stale) if key in mapping}

    def make(self) -> None:
        """Set the entries, and remove others."""
        self._mapping.update(self._new)
        for key in self._stale:
            self._mapping.pop(key, None)

    def undo(self) -> None:
        """Set what was there."""
        for key in self._new.keys() - self._before.keys():
            self._mapping.pop(key, None)
        self._mapping.update(self._before)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model and its optimizer state as they will be, and the steps to that, where they change in place."""

    model: Any
    opt_state: Any
    steps: Sequence[Step] = field(default=())


def commit(
    steps: Sequence[Step], together: Callable[[Callable[[], None]], None] | None = None
) -> None:
    """Make all steps, or none.

    `together` calls a function on all processes that train the model, and raises on all if one raised. Only
    a connection that breaks while they tell each other can leave processes different.
    """
    hold = _Hold()
    try:
        try:
            hold.begin()
            with ExitStack() as undoing:  # goes on where a step cannot be undone

                def make() -> None:
                    for step in steps:
                        undoing.callback(step.undo)
                        step.make()

                make() if together is None else together(make)
                undoing.pop_all()
        finally:
            hold.end()
    finally:
        hold.end()  # again: a signal that is not held may end the first call before its first line


class _Hold:
    """Keeps Ctrl-C back, in the main thread, where Python runs its handlers."""

    _handler: Any = None

    def begin(self) -> None:
        self._held: list[tuple[int, Any]] = []
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, lambda *received: self._held.append(received))

    def end(self) -> None:
        """Let it through: the handler that was there gets what came meanwhile."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            handler, self._handler = self._handler, None
            if self._held:
                handler(*self._held[-1])
