"""BLAS threads are limited during a call, and given back: after interrupts, beside limits of the user's."""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
from threadpoolctl import OpenBLASController, threadpool_info, threadpool_limits

from ssmreduce import Discrete, HankelMass, StateSpace, balanced_truncation
from ssmreduce._threads import _pools, on_gainful_threads
from ssmreduce._workers import map_workers


def counts() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def two() -> Iterator[list[int]]:
    """Two BLAS threads, with no limit of threadpoolctl in force."""

    def give(numbers: list[int]) -> None:
        for pool, number in zip(_pools(), numbers, strict=True):
            pool.set_num_threads(number)
        OpenBLASController.clear_controlling_thread()

    before = [pool.get_num_threads() for pool in _pools()]
    give([2] * len(before))
    yield counts()
    OpenBLASController.clear_controlling_thread(force=True)
    give(before)


def system_of(order: int) -> StateSpace:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((order, order)) * 0.9 / np.sqrt(order)
    B, C = rng.standard_normal((order, 2)), rng.standard_normal((2, order))
    return StateSpace(A, B, C, np.zeros((2, 2)), time=Discrete())


def inside() -> tuple[threading.Thread, Callable[[], None]]:
    """A Python thread that is in a limited call, and what ends that call."""
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        leave.wait(timeout=30)

    other = threading.Thread(target=on_gainful_threads, args=(wait,))
    other.start()
    assert entered.wait(timeout=30)

    def end() -> None:
        leave.set()
        other.join()

    return other, end


def test_restored_after_nested_calls_and_errors(two: list[int]) -> None:
    assert set(on_gainful_threads(on_gainful_threads, counts)) == {1}
    assert counts() == two

    def fail() -> None:
        raise ValueError("inner")

    with pytest.raises(ValueError, match="inner"):
        on_gainful_threads(fail)
    assert counts() == two


def test_overlapping_calls_leave_nothing_behind(two: list[int]) -> None:
    """One that starts inside another in its own thread, and outlasts it."""

    def start() -> Callable[[], None]:
        _, end = inside()
        assert set(counts()) == {1}
        return end

    on_gainful_threads(start)()
    assert counts() == two


def test_limits_before_and_across_a_call(two: list[int]) -> None:
    with threadpool_limits(1, user_api="blas"):
        on_gainful_threads(counts)
        assert set(counts()) == {1}
        _, end = inside()
    assert counts() == two
    end()
    assert counts() == two
    with threadpool_limits(3, user_api="blas"):
        assert set(on_gainful_threads(counts)) == {1}
        assert set(counts()) == {3}
    assert counts() == two


def test_a_limit_set_during_a_call_outlives_it(two: list[int]) -> None:
    _, end = inside()
    with threadpool_limits(1, user_api="blas"):
        end()
        assert set(counts()) == {1}
        on_gainful_threads(counts)
        assert set(counts()) == {1}
    # threadpoolctl has given back the one thread that it found; the next call gives back the others.
    on_gainful_threads(counts)
    assert counts() == two


def test_a_limit_without_an_end_set_during_a_call_stays(two: list[int]) -> None:
    _, end = inside()
    threadpool_limits(1, user_api="blas")
    end()
    on_gainful_threads(counts)
    assert set(counts()) == {1}


def test_another_count_set_during_a_call_stays(two: list[int]) -> None:
    _, end = inside()
    threadpool_limits(3, user_api="blas")
    end()
    assert set(counts()) == {3}


def test_a_rule_of_the_users_finds_the_threads_of_the_user(two: list[int]) -> None:
    seen: list[list[int]] = []

    class Looking(HankelMass):
        def choose(self, hsv: Any) -> int:
            seen.append(counts())
            return super().choose(hsv)

    balanced_truncation(system_of(60), Looking(0.5))
    assert seen == [two]


@pytest.mark.parametrize("first", ["main", "worker"])
def test_others_may_set_threads_afterwards(first: str, two: list[int]) -> None:
    """Our limit keeps no Python thread from setting its own, not even while we wait in another."""
    seen: list[list[int]] = []
    done = threading.Event()

    def own_limit() -> None:
        with threadpool_limits(1, user_api="blas"):
            seen.append(counts())

    def limit_and_wait() -> None:
        on_gainful_threads(counts)
        done.set()
        done.wait(timeout=30)

    if first == "main":
        on_gainful_threads(counts)
        other = threading.Thread(target=own_limit)
        other.start()
        other.join()
    else:
        other = threading.Thread(target=limit_and_wait)
        other.start()
        assert done.wait(timeout=30)
        own_limit()
        other.join()
    assert set(seen[0]) == {1}


def test_only_systems_that_gain_nothing_are_limited(two: list[int]) -> None:
    for large_or_tiny in (10, 1000):
        assert on_gainful_threads(counts, order=large_or_tiny) == two
    for order, ports in ((100, 1), (10, 300)):
        assert set(on_gainful_threads(counts, order=order, ports=ports)) == {1}


def interrupted(place: int, function: Callable[[], object]) -> bool:
    """Interrupt `function` at one of the places in our code, or threadpoolctl's, where signals are seen.

    Those are the entry to a function, the end of a call and a jump back.
    """
    seen = 0
    last: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("_threads.py", "threadpoolctl.py")):
            return None
        frame.f_trace_opcodes = True
        before = last.get(frame, "")
        if event == "opcode":
            last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if event == "call" or (event == "opcode" and before.startswith(("CALL", "JUMP_BACKWARD"))):
            seen += 1
            if seen == place:
                raise KeyboardInterrupt
        return trace

    outer = sys.gettrace()
    try:
        sys.settrace(trace)
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(outer)
    return False


def test_an_interrupt_anywhere_gives_the_threads_back(two: list[int]) -> None:
    place = 1
    while interrupted(place, lambda: on_gainful_threads(int)):
        assert counts() == two, place
        place += 1
    assert place > 50


def test_an_interrupt_anywhere_in_a_truncation_gives_the_threads_back(two: list[int]) -> None:
    system = system_of(100)
    place = 1
    while interrupted(place, lambda: balanced_truncation(system, 20)):
        assert counts() == two, place
        place += 7
    assert place > 100


@pytest.mark.skipif(sys.platform == "win32", reason="there are no interval timers")
# An interrupt that comes in a callback of the garbage collector ends there, with a warning of Python's.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", ["truncation", "workers"])
def test_ctrl_c_gives_the_threads_back(work: str, two: list[int]) -> None:
    system = system_of(60)
    interrupts = 0

    def run() -> None:
        if work == "truncation":
            balanced_truncation(system, 20)
        else:
            map_workers(np.linalg.svdvals, [system.A] * 4)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for delay in np.linspace(1e-5, 4e-3, 150):
            try:
                signal.setitimer(signal.ITIMER_REAL, float(delay))
                run()
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            except KeyboardInterrupt:
                interrupts += 1
            assert counts() == two, delay
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts
