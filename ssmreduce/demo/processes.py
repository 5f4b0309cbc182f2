"""Tasks in processes of their own, as many at once as there are cores, and what they tell on the way.

Each process computes with one thread, so that the seconds of one do not depend on how many threads the
others leave it. A new process pays for all of its compilations.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import jax
from threadpoolctl import threadpool_limits

from ssmreduce.errors import SSMReduceError

# The optimisations that are left out take time to compile and make the steps no faster.
_XLA_FLAGS = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=1 "
    "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true,xla_cpu_disable_slp_vectorizer=true"
)


class ProcessError(SSMReduceError, RuntimeError):
    """A process of the demo ended before its task was done."""


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def told_by_processes(
    function: Callable[..., None], tasks: Sequence[tuple[Any, ...]]
) -> Generator[Any]:
    """Call ``function(*task, tell)`` for each task in a process, and yield what it gives to `tell`.

    However this ends, by Ctrl-C too, no process is left.

    Raises
    ------
    ProcessError
        If a process fails; its traceback went to standard error.
    """
    waiting = deque(tasks)
    context = multiprocessing.get_context("spawn")
    busy: dict[Connection, SpawnProcess] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < cores():
                ours, theirs = context.Pipe(duplex=False)
                with theirs, _interrupts_held_back():
                    process = context.Process(
                        target=_work, args=(theirs, function, waiting.popleft()), daemon=True
                    )
                    process.start()
                busy[ours] = process
            ready = wait(list(busy))
            for connection in [ours for ours in busy if ours in ready]:
                try:
                    message = connection.recv()
                except EOFError:
                    _check_end(busy.pop(connection))
                else:
                    yield message
    finally:
        for process in busy.values():
            process.kill()
        for process in busy.values():
            process.join()


def _work(connection: Connection, function: Callable[..., None], task: tuple[Any, ...]) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}"
    os.environ["NPROC"] = "1"  # threads of XLA's own pool
    # Several processes would not share the memory of a GPU.
    jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    with threadpool_limits(1):
        function(*task, connection.send)


def _check_end(process: SpawnProcess) -> None:
    process.join()
    if process.exitcode:
        raise ProcessError(
            f"a training process ended with exit code {process.exitcode}; expected 0. What it printed is "
            "above; after a code of -9 the machine may have been short of memory: try --quick."
        )


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes deaf to Ctrl-C, which reaches all of a terminal's: the parent ends them."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # which lets the signal through again, where it starts later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
