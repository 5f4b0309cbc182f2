"""BLAS threads: how many the hot paths may use.

A small problem is over before the threads of a BLAS have woken up: with two of them a truncation of 120
states takes up to half as long again as with one. A still smaller one never wakes them. Worker pools
bring threads of their own, and want one each in the BLAS. The setting is that of the whole process. Who
finds one thread already leaves it alone, so that bodies in several Python threads may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

_GAINING = 150
"""Order from which a second thread makes dense routes faster, not slower."""

_WAKING = 40
"""Size of matrices below which LAPACK and OpenBLAS keep to one thread anyway: to say so takes 25 µs."""


@cache
def _pools() -> tuple[Any, ...]:
    """The BLAS libraries in this process, those of NumPy and SciPy among them."""
    pools = ThreadpoolController().lib_controllers
    return tuple(pool for pool in pools if pool.user_api == "blas")


def blas_threads() -> int:
    """How many threads a BLAS may use now; 1 if there is none that can be asked."""
    return max((pool.get_num_threads() for pool in _pools()), default=1)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the body with one thread in every BLAS of the process, and restore what was."""
    limited: list[tuple[Any, int]] = []
    try:
        for pool in _pools():
            count = pool.get_num_threads()
            if count > 1:
                limited.append((pool, count))
                pool.set_num_threads(1)
        yield
    finally:
        for pool, count in limited:
            pool.set_num_threads(count)
            # threadpoolctl >= 3.7 obeys one Python thread alone, until that gives up control.
            if hasattr(pool, "clear_controlling_thread"):
                pool.clear_controlling_thread()


def threads_for(order: int, ports: int = 0) -> AbstractContextManager[None]:
    """One BLAS thread where a second one would be woken in vain, else as many as there are.

    `ports` is the larger one of the numbers of inputs and outputs, where matrices have as many columns.
    """
    wakes = order < _GAINING and max(order, ports) >= _WAKING
    return one_blas_thread() if wakes else nullcontext()
