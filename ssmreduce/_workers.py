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
from typing import TypeVar

from ssmreduce._threads import blas_threads, on_one_blas_thread
from ssmreduce.errors import SSMReduceError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_workers(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return ``[function(item) for item in items]``; of items that fail the first one raises."""
    workers = min(blas_threads(), len(items))
    if workers < 2:
        return [function(item) for item in items]
    return on_one_blas_thread(_worked_off, workers, function, items)


def _worked_off(
    workers: int, function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # After an error, or Ctrl-C, nothing more is started.


@contextmanager
def naming_system(index: tuple[int, ...]) -> Iterator[None]:
    """Say in an error which system of a batch it is about; that of a single system stays as it is."""
    try:
        yield
    except SSMReduceError as error:
        if not index:
            raise
        at = ", ".join(map(str, index))
        raise type(error)(f"in system[{at}] of the batch {error}") from error
