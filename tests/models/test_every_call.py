"""An exception at every single call of a cut, a step and a rollback: none leaves anything torn."""

from __future__ import annotations

import copy
import gc
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import equinox as eqx
import numpy as np
import optax
import pytest
import torch
from interruptions import Calls
from modules import KernelLRU, make_lru
from raw_bytes import raw_bytes
from samples import lru_weights
from torch_modules import LrnnxLRU

from ssmreduce import (
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    reduce_model,
)

FAILURES = (KeyboardInterrupt, MemoryError, RuntimeError)
STATES, ORDER = 8, 4


def make_reducer(*, traced: bool) -> InTrainingReducer:
    """Cuts after the first step, on trial."""
    reducer = InTrainingReducer(
        ReductionSchedule(4, stop=1.0, attempts=4),
        order=ORDER,
        rollback=RollbackPolicy(0.1),
        trace=HankelTrace(1) if traced else None,
    )
    reducer.report(1.0)
    return reducer


class Modules:
    """PyTorch: everything changes in place, and stays the same object."""

    is_changed_in_place = True

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.model = torch.nn.Sequential(LrnnxLRU(1, STATES))
        self.parameters = list(self.model.parameters())
        self.state = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        self.reducer = make_reducer(traced=True)
        self.train()
        self.loss().backward()  # an accumulation that goes on

    def loss(self) -> Any:
        return sum((p**2).sum() for p in self.model.parameters())

    def train(self) -> None:
        self.state.zero_grad()
        self.loss().backward()
        self.state.step()
        self.average.update_parameters(self.model)

    def cut(self) -> None:
        reduce_model(self.model, ORDER, optimizer=self.state, followers=[self.average])

    def step(self, number: int) -> None:
        self.reducer.step(number, self.model, self.state, followers=[self.average])


class Trees:
    """Equinox and optax: what is there when a call returns is the caller's."""

    is_changed_in_place = False

    def __init__(self) -> None:
        weights = lru_weights(np.random.default_rng(5), STATES, 1)
        self.model: Any = [make_lru(weights, kind=KernelLRU)]
        self.state: Any = optax.adam(1e-3).init(eqx.filter(self.model, eqx.is_inexact_array))
        self.reducer = make_reducer(traced=False)
        self.train()

    def train(self) -> None:
        gradients = eqx.filter(self.model, eqx.is_inexact_array)
        updates, self.state = optax.adam(1e-3).update(gradients, self.state, self.model)
        self.model = eqx.apply_updates(self.model, updates)

    def cut(self) -> None:
        done = reduce_model(self.model, ORDER, opt_state=self.state)
        self.model, self.state = done.model, done.optimizer_state

    def step(self, number: int) -> None:
        self.model, self.state = self.reducer.step(number, self.model, self.state)


class Mappings(Trees):
    """Arrays by name, with moments."""

    def __init__(self) -> None:
        weights = lru_weights(np.random.default_rng(5), STATES, 1)
        self.model = {f"lru.{name}": np.float32(value) for name, value in weights.items()}
        self.state = {
            "count": 1,
            "mu": {name: 0.1 * value for name, value in self.model.items()},
            "nu": {name: value**2 for name, value in self.model.items()},
        }
        self.reducer = make_reducer(traced=False)

    def train(self) -> None:
        self.model = {name: 0.99 * value for name, value in self.model.items()}


def on_trial(subject: Any) -> Any:
    """The same after a cut that did harm."""
    subject.step(1)
    subject.train()
    subject.reducer.report(9.0)
    return subject


OPERATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], None]]] = {
    "reduce_model": (lambda kind: kind(), lambda subject: subject.cut()),
    "step": (lambda kind: kind(), lambda subject: subject.step(1)),
    "rollback": (lambda kind: on_trial(kind()), lambda subject: subject.step(2)),
}
KINDS = {"torch": Modules, "jax": Trees, "mapping": Mappings}
SCENARIOS = [f"{kind} {operation}" for kind in KINDS for operation in OPERATIONS]


class Injection:
    """One operation, and what became of the exceptions that were raised in it."""

    def __init__(self, scenario: str, *, lines: bool = False) -> None:
        kind, operation = scenario.split()
        build, self._operate = OPERATIONS[operation]
        self._original, self._lines = build(KINDS[kind]), lines
        self._operate(self.make())  # caches are filled once
        complete = self.make()
        self._before = raw_bytes(vars(complete))
        calls = Calls(lines=lines)
        assert not calls.run(self._operate, complete)
        self._after = raw_bytes(vars(complete))
        self.points = calls.count
        """How many calls, or lines, there are."""
        beyond = Calls(self.points, lines=lines)
        assert not beyond.run(self._operate, self.make())
        assert (beyond.count, beyond.where) == (self.points, "")
        self.ends: Counter[str] = Counter()
        self.torn: list[str] = []

    def make(self) -> Any:
        """A subject of its own, as the operation finds it."""
        return copy.deepcopy(self._original)

    def try_at(self, points: Iterable[int]) -> None:
        """Raise at some points, one after the other.

        A subject that is as before, to the bit, is used again: of whatever failed nothing stays behind.
        """
        subject = self.make()
        for number in points:
            end = self._end_of(subject, number)
            self.ends[end] += 1
            if end != "before":
                subject = self.make()
            if number % 500 == 0:
                gc.collect()
        self._operate(subject)
        assert raw_bytes(vars(subject)) == self._after
        subject.train()

    def _end_of(self, subject: Any, number: int) -> str:
        failure = FAILURES[number % len(FAILURES)](f"at point {number}")
        calls = Calls(number, failure, lines=self._lines)
        handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
        swallowed: list[bool] = []
        sys.unraisablehook = lambda info: swallowed.append(info.exc_value is failure)
        try:
            raised = calls.run(self._operate, subject)
        finally:
            sys.unraisablehook = hook
        assert calls.where, f"point {number} of {self.points} was not reached"
        found = raw_bytes(vars(subject))
        is_before, is_after = found == self._before, found == self._after
        if signal.getsignal(signal.SIGINT) is handler:
            if raised and is_before:
                return "before"
            # A pytree is its caller's only if nothing was raised.
            if raised and is_after and subject.is_changed_in_place:
                return "after"
            # Python drops what is raised in a generator that closes.
            if not raised and is_after and swallowed == [True]:
                return "went on"
        signal.signal(signal.SIGINT, handler)
        self.torn.append(calls.where)
        return "torn"


@pytest.fixture(autouse=True)
def _without_collections() -> Iterator[None]:
    """No garbage is collected in the middle of an operation, with calls of its own."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def sampled(injection: Injection, count: int) -> list[int]:
    """Some of the points, and the last ones, where everything is being written or was."""
    chosen = np.random.default_rng(11).permutation(injection.points)[:count]
    return [*map(int, chosen), *range(injection.points - count // 4, injection.points)]


@pytest.mark.parametrize(
    "scenario",
    [each for each in SCENARIOS if not each.startswith("jax")],  # compiles anew each time
)
def test_an_exception_at_some_calls(scenario: str) -> None:
    injection = Injection(scenario)
    points = sampled(injection, 12)
    injection.try_at(points)
    assert injection.torn == []
    assert injection.ends.total() == len(points)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_exception_at_every_call(scenario: str) -> None:
    injection = Injection(scenario)
    # What a call returns is its caller's at the end: there every twelfth point tells.
    points = range(0, injection.points, 1 if scenario.startswith("torch") else 12)
    injection.try_at(points)
    assert injection.torn == []
    assert injection.ends.total() == len(points)
    assert injection.ends["before"] > len(points) / 2
    assert injection.ends["went on"] < len(points) / 10


IN_PLACE = [scenario for scenario in SCENARIOS if scenario.startswith("torch")]


@pytest.mark.parametrize("scenario", IN_PLACE)
def test_an_exception_at_some_lines_that_write(scenario: str) -> None:
    injection = Injection(scenario, lines=True)
    points = sampled(injection, 12)
    injection.try_at(points)
    assert injection.torn == []
    assert injection.ends.total() == len(points)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", IN_PLACE)
def test_an_exception_at_every_second_line_that_writes(scenario: str) -> None:
    injection = Injection(scenario, lines=True)
    points = range(0, injection.points, 2)
    injection.try_at(points)
    assert injection.torn == []
    assert injection.ends.total() == len(points)
    assert injection.ends["before"] > 100
    assert injection.ends["after"] > 0
