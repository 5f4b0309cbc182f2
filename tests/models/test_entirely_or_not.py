"""A cut, a rollback and a load happen entirely or not at all, wherever they are interrupted."""

from __future__ import annotations

import copy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
import torch
from interruptions import interrupted, points_of, standing
from modules import KernelLRU, make_lru
from samples import lru_weights
from torch import nn
from torch_modules import LrnnxLRU, SSMKernelDiag

from ssmreduce import (
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    balanced_truncation,
    load_reduced,
    read_system,
    reduce_layer,
    reduce_model,
    write_system,
)
from ssmreduce.frameworks.transaction import Entries, Step, commit

EVERY: int | None = 25
"""How many points of each operation are tried in the slow run; None tries all, in an hour."""

FAILURES = (KeyboardInterrupt, MemoryError, RuntimeError)


def reducer_of(way: str = "plain") -> InTrainingReducer:
    """Cuts after the first step; `way` says with what."""
    return InTrainingReducer(
        ReductionSchedule(4, stop=1.0, attempts=4),
        order=4,
        rollback=None if way == "plain" else RollbackPolicy(0.1),
        trace=None if way == "plain" else HankelTrace(1),
    )


class TorchSubject:
    """Layers with a state between calls, tied ones and one with a cache; moments, gradients, an average."""

    def __init__(self, way: str = "plain") -> None:
        torch.manual_seed(5)
        layers = [LrnnxLRU(2, 8), LrnnxLRU(2, 8), SSMKernelDiag(1, 16)]
        for name, parameter in layers[0].named_parameters():
            setattr(layers[1], name, parameter)
        self.model = nn.Sequential(nn.Linear(2, 2), *layers)
        self.state = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        self.reducer = reducer_of(way)
        self.train()
        for model in (self.model, self.average.module):
            model[1].state = torch.randn(8, dtype=torch.complex64)
            model[3].setup_step()
        self.loss().backward()
        self.parameters = list(self.model.parameters())
        if way != "plain":
            self.reducer.report(1.0)

    def loss(self) -> Any:
        return sum((p.abs() ** 2).sum() for p in self.model.parameters())

    def train(self) -> None:
        self.state.zero_grad()
        self.loss().backward()
        self.state.step()
        self.average.update_parameters(self.model)

    def standing(self) -> str:
        assert all(p is q for p, q in zip(self.parameters, self.model.parameters(), strict=True))
        return standing([self.model, self.state, self.average, self.reducer])

    def step(self, number: int) -> None:
        self.reducer.step(number, self.model, self.state, followers=[self.average])


class JaxSubject:
    """Two layers, what Adam keeps for them, and an average."""

    def __init__(self, way: str = "plain") -> None:
        rng = np.random.default_rng(5)
        self.model = [make_lru(lru_weights(rng, 8, 2), kind=KernelLRU) for _ in range(2)]
        self.average = jax.tree.map(lambda leaf: leaf * 1, self.model)
        self.state = optax.adam(1e-3).init(eqx.filter(self.model, eqx.is_inexact_array))
        self.reducer = reducer_of(way)
        if way != "plain":
            self.reducer.report(1.0)

    def train(self) -> None:
        gradients = eqx.filter(self.model, eqx.is_inexact_array)
        updates, self.state = optax.adam(1e-3).update(gradients, self.state, self.model)
        self.model = eqx.apply_updates(self.model, updates)

    def standing(self) -> str:
        return standing([self.model, self.state, [self.average], self.reducer])

    def step(self, number: int) -> None:
        self.model, self.state, (self.average,) = self.reducer.step(
            number, self.model, self.state, followers=[self.average]
        )


class FreshSubject(TorchSubject):
    """The same before the first update, without an average."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.optim.AdamW(self.model.parameters(), 1e-3)

    def train(self) -> None:
        self.state.zero_grad()
        self.loss().backward()
        self.state.step()


class LayerSubject(FreshSubject):
    """A layer of its own, and what is written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = self.model[1]
        self.system = balanced_truncation(read_system(self.layer), 4).system


class SavedSubject(FreshSubject):
    """A model and the state dict of one that was cut."""

    def __init__(self) -> None:
        other = TorchSubject()
        other.step(1)
        super().__init__()
        self.saved = other.model.state_dict()


def on_trial(subject: Any) -> Any:
    """The same after a cut that did harm."""
    subject.step(1)
    subject.train()
    subject.reducer.report(9.0)
    return subject


def cut_model(subject: Any) -> None:
    """Cut, without a reducer."""
    reduce_model(subject.model, 4, optimizer=subject.state, followers=[subject.average])


SCENARIOS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "reduce_model": (TorchSubject, cut_model),
    "cut": (TorchSubject, lambda subject: subject.step(1)),
    "cut on trial": (lambda: TorchSubject("all"), lambda subject: subject.step(1)),
    "rollback": (lambda: on_trial(TorchSubject("all")), lambda subject: subject.step(2)),
    "load_reduced": (SavedSubject, lambda subject: load_reduced(subject.model, subject.saved)),
    "write_system": (LayerSubject, lambda subject: write_system(subject.layer, subject.system)),
    "reduce_layer": (LayerSubject, lambda subject: reduce_layer(subject.layer, 4)),
    "jax cut": (JaxSubject, lambda subject: subject.step(1)),
    "jax cut on trial": (lambda: JaxSubject("all"), lambda subject: subject.step(1)),
    "jax rollback": (lambda: on_trial(JaxSubject("all")), lambda subject: subject.step(2)),
}


def copies_of(subject: Any) -> Callable[[], Any]:
    """Make the same subject anew, with a graph that is alive during the cut."""
    operated = copy.deepcopy(vars(subject))

    def make() -> Any:
        new = object.__new__(type(subject))
        vars(new).update(copy.deepcopy(operated))
        if isinstance(new, TorchSubject):
            new.held = new.loss()
        return new

    return make


def torn(name: str, count: int | None, *, lines: bool = False) -> tuple[int, list[Any]]:
    """How many points were tried, `count` at random or all, and those that left something else."""
    build, operate = SCENARIOS[name]
    make = copies_of(build())
    complete = make()
    before = complete.standing()
    operate(complete)
    after = complete.standing()
    assert before != after
    points = points_of(make, operate, lines=lines)
    rng = np.random.default_rng(7)
    chosen = range(len(points)) if count is None else rng.permutation(len(points))[:count]
    handler = signal.getsignal(signal.SIGINT)
    wrong = []
    for index in chosen:
        subject = make()
        failure = FAILURES[index % 3]("injected")
        raised = interrupted(subject, operate, points[index], failure, lines=lines)
        found = subject.standing()
        was_made = found == after
        # A pytree is replaced by its caller, who has the new one only if nothing was raised.
        fits = found == before if name.startswith("jax") and raised else found in (before, after)
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
            fits = False
        if fits and not was_made:
            operate(subject)
            fits = subject.standing() == after
        subject.train()
        if not fits:
            wrong.append(points[index])
    return len(chosen), wrong


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in generators that close
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failure_in_any_call(name: str) -> None:
    assert torn(name, 3)[1] == []


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in generators that close
@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failure_in_many_calls(name: str) -> None:
    assert torn(name, EVERY)[1] == []


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in generators that close
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCENARIOS if not name.startswith("jax")])
def test_a_failure_in_many_lines(name: str) -> None:
    assert torn(name, EVERY, lines=True)[1] == []


# --- Ctrl-C


@contextmanager
def struck(delay: float) -> Iterator[None]:
    """A real SIGINT after some time, unless it is over before."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def torn_by_ctrl_c(name: str, count: int) -> tuple[int, int]:
    """How many of so many interrupts broke the operation off, and how many of these left it torn."""
    build, operate = SCENARIOS[name]
    make = copies_of(build())
    operate(make())  # the first one imports, which takes longer than all else
    complete = make()
    before = complete.standing()
    began = time.perf_counter()
    operate(complete)
    seconds = time.perf_counter() - began
    after = complete.standing()
    interrupts = wrong = 0
    for delay in np.random.default_rng(8).uniform(0.0, seconds, count):
        subject, raised = make(), False
        try:
            with struck(float(delay)):
                operate(subject)
        except KeyboardInterrupt:
            raised = True
        interrupts += raised
        found = subject.standing()
        is_whole = found in ((before, after) if raised else (after,))
        wrong += not is_whole or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return interrupts, wrong


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


CTRL_C = pytest.mark.skipif(sys.platform == "win32", reason="there are no interval timers")
# An interrupt that comes in a callback of the garbage collector ends there, with a warning of Python's.
IGNORED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KINDS = ["cut on trial", "rollback", "jax cut on trial", "jax rollback"]


@CTRL_C
@IGNORED
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in generators that close
@pytest.mark.parametrize("name", KINDS)
def test_ctrl_c(name: str) -> None:
    interrupts, wrong = torn_by_ctrl_c(name, 8)
    assert interrupts
    assert wrong == 0


@CTRL_C
@IGNORED
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in generators that close
@pytest.mark.slow
@pytest.mark.parametrize("name", ["reduce_model", *KINDS])
def test_ctrl_c_often(name: str) -> None:
    interrupts, wrong = torn_by_ctrl_c(name, 200)
    assert interrupts > 20
    assert wrong == 0


class Interrupting(Step):
    """Sends SIGINT while it is made."""

    def __init__(self) -> None:
        self.is_made = False

    def make(self) -> None:
        signal.raise_signal(signal.SIGINT)
        self.is_made = True

    def undo(self) -> None:
        self.is_made = False


def test_ctrl_c_waits_for_the_last_step() -> None:
    steps = [Interrupting(), Interrupting()]
    with pytest.raises(KeyboardInterrupt):
        commit(steps)
    assert all(step.is_made for step in steps)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Failing(Step):
    """Can be neither made nor undone."""

    def make(self) -> None:
        raise MemoryError

    def undo(self) -> None:
        raise RuntimeError("not undone")


def test_a_step_that_cannot_be_undone_leaves_the_others_undone() -> None:
    steps = [Interrupting(), Failing()]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(RuntimeError, match="not undone") as caught:
        commit(steps)
    assert isinstance(caught.value.__context__, MemoryError)
    assert not steps[0].is_made


def test_a_handler_of_the_user_gets_what_came() -> None:
    received: list[Any] = []

    def own(*arguments: Any) -> None:
        received.append(arguments)

    signal.signal(signal.SIGINT, own)
    commit([Interrupting()])
    assert [number for number, _ in received] == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_function_stays(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    step = Interrupting() if handler is signal.SIG_IGN else Entries({}, {"x": 1})
    commit([step])
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_that_is_not_of_python_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", None)
    commit([Entries({}, {"x": 1})])


def test_a_cut_in_a_thread() -> None:
    subject, expected = TorchSubject(), TorchSubject()
    thread = threading.Thread(target=subject.step, args=(1,))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    thread.join()
    expected.step(1)
    assert subject.standing() == expected.standing()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_writer_that_fails_leaves_the_models_of_jax() -> None:
    class Full:
        def add_scalar(self, *_: Any) -> None:
            raise OSError("no space left")

    subject = JaxSubject()
    before = subject.standing()
    subject.reducer.log_to(Full())
    with pytest.raises(OSError, match="no space"):
        subject.step(1)
    assert subject.standing() == before


def test_a_failure_after_the_copies_were_cut_leaves_both_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    subject = TorchSubject()
    monkeypatch.setattr("ssmreduce.models.cut.ModelReport", fail)
    with pytest.raises(KeyboardInterrupt):
        cut_model(subject)
    assert subject.model[1].nu_log.shape == subject.average.module[1].nu_log.shape == (4,)
