"""Many small systems at once: worker threads, each with one BLAS thread.

A BLAS gains nothing from many threads on small matrices, and its threads get in each other's way. So
for the time of a batch the BLAS libraries in the process are held to one thread, and as many workers
as they had before take the systems, or chunks of them; NumPy's decompositions and loops run without
Python's lock. More threads than before are never busy: OPENBLAS_NUM_THREADS or
``threadpoolctl.threadpool_limits`` set how many. Without threadpoolctl everything runs in the caller's
thread.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from ssmreduce.errors import SSMReduceError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_workers(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return ``[function(item) for item in items]``; the first item that fails is the one that raises."""
    if len(items) < 2:
        return [function(item) for item in items]
    with _LIMITS.one_blas_thread() as threads:
        if threads < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            futures = [pool.submit(copy_context().run, function, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()  # After an error, or Ctrl-C, nothing more is started.


@contextmanager
def naming_system(index: tuple[int, ...]) -> Iterator[None]:
    """Say in an error which system of a batch it is about; without batch axes it stays as it is."""
    try:
        yield
    except SSMReduceError as error:
        if not index:
            raise
        at = ", ".join(map(str, index))
        raise type(error)(f"system[{at}] of the batch: {error}") from error


class _Limits:
    """Holds all BLAS libraries to one thread while any batch runs, in whatever thread of the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._threads = 1
        self._limiter: Any = None

    @contextmanager
    def one_blas_thread(self) -> Iterator[int]:
        """Give the number of threads that the libraries had; they have it back when all batches end."""
        with self._lock:
            controller = _controller()
            if self._running == 0 and controller is not None:
                counts = [library.num_threads for library in controller.lib_controllers]
                self._threads = max(counts, default=1)
                self._limiter = controller.limit(limits=1) if self._threads > 1 else None
            # Batches within batches, and beside each other, share the threads of the first one.
            threads = self._threads if self._running == 0 else 1
            self._running += 1
        try:
            yield threads
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0 and self._limiter is not None:
                    self._limiter.restore_original_limits()
                    self._limiter = None


_LIMITS = _Limits()


@functools.cache
def _controller() -> Any:
    """Control of the BLAS libraries that NumPy and SciPy have loaded; None without threadpoolctl."""
    try:
        import threadpoolctl
    except ImportError:
        return None
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
