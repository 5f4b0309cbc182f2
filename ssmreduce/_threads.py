"""BLAS threads: how many the hot paths may use.

A small problem is over before the threads of a BLAS have woken up: with two of them a truncation of 50
states takes half as long again as with one. Worker pools bring threads of their own, and want one
each in the BLAS. The setting is that of the whole process. Who finds one thread already leaves it alone, so
that bodies in several Python threads may overlap: the first to leave restores what was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_TOO_SMALL = 150
"""Order below which a second thread makes dense routes slower, not faster."""


@cache
def _pools() -> tuple[Any, ...]:
    """The BLAS libraries that NumPy and SciPy have loaded."""
    pools = ThreadpoolController().lib_controllers
    return tuple(pool for pool in pools if pool.user_api == "blas")


def blas_threads() -> int:
    """How many threads a BLAS may use now; 1 if there is none that can be asked."""
    return max((pool.get_num_threads() for pool in _pools()), default=1)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the body with one thread in every BLAS, and restore what was; in the main thread only."""
    limited = []
    if threading.current_thread() is threading.main_thread():
        counts = [(pool, pool.get_num_threads()) for pool in _pools()]
        limited = [(pool, count) for pool, count in counts if count > 1]
    for pool, _ in limited:
        pool.set_num_threads(1)
    try:
        yield
    finally:
        for pool, count in limited:
            pool.set_num_threads(count)


def threads_for(order: int) -> AbstractContextManager[None]:
    """One BLAS thread for a dense system of few states, else as many as there are."""
    return one_blas_thread() if order < _TOO_SMALL else nullcontext()
