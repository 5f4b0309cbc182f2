"""Many small systems at once: worker threads, each with one BLAS thread.

A BLAS gains nothing from many threads on small matrices, and its threads get in each other's way. So
for the time of a batch the BLAS is held to one thread, and as many workers as it had threads before
take the systems, or chunks of them: NumPy's loops and decompositions run without Python's lock. No more
threads are busy than OPENBLAS_NUM_THREADS or ``threadpoolctl.threadpool_limits`` allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

from ssmreduce._threads import blas_threads, on_gainful_threads
from ssmreduce.errors import SSMReduceError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_workers(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return ``[function(item) for item in items]``; of items that fail the first one raises.

    After an error, or Ctrl-C, nothing more is started.
    """
    workers = min(blas_threads(), len(items))
    if workers < 2:
        return [function(item) for item in items]
    return on_gainful_threads(_in_workers, workers, function, items)


def _in_workers(
    workers: int, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    foreman = _Foreman(workers, function, items)
    try:
        foreman.start()
        outcome = foreman.outcome.get()
    except RuntimeError as error:
        # An interrupt while a thread starts may end in "release unlocked lock".
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    finally:
        foreman.called_off = True
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


class _Foreman(Thread, Generic[Item, Result]):
    """The thread that a pool of workers belongs to.

    An interrupt comes in the main thread, and may leave a lock of a pool held for good, so that whoever
    closes the pool waits for ever. Hence the main thread waits for a queue, which has no such lock, and
    the pool is another thread's.
    """

    def __init__(
        self, workers: int, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> None:
        super().__init__(daemon=True)
        self._workers = workers
        self._function = function
        self._tasks = [(copy_context(), item) for item in items]
        self.called_off = False
        self.outcome: SimpleQueue[list[Result] | BaseException] = SimpleQueue()

    def run(self) -> None:
        try:
            with ThreadPoolExecutor(self._workers) as pool:
                futures = [
                    pool.submit(context.run, self._work, item) for context, item in self._tasks
                ]
                try:
                    results = [future.result() for future in futures]
                finally:
                    for future in futures:
                        future.cancel()
        except BaseException as error:
            self.outcome.put(error)
        else:
            self.outcome.put(results)

    def _work(self, item: Item) -> Result:
        if self.called_off:
            raise InterruptedError("the caller waits no longer")
        return self._function(item)


@contextmanager
def naming_system(index: tuple[int, ...], name: str = "system") -> Iterator[None]:
    """Say in an error which system of a batch it is about; that of a single system stays as it is."""
    try:
        yield
    except SSMReduceError as error:
        if not index:
            raise
        at = ", ".join(map(str, index))
        raise type(error)(f"in {name}[{at}] of the batch {error}") from error
