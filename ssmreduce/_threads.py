"""BLAS threads: how many the hot paths may use.

A small problem is over before the threads of a BLAS have woken up: with two of them a truncation of 120
states takes up to half as long again as with one. A still smaller one never wakes them. Worker pools
bring threads of their own, and want one each in the BLAS.

The setting is that of the whole process, and users limit it, too. So whoever lowers it gives back what
was there, and whoever finds one thread already leaves it alone: calls in several Python threads may
overlap. threadpoolctl lets one Python thread at a time control OpenBLAS, and ignores the others; control
is given up as soon as the count is set, so that a limit which a user sets meanwhile holds, and outlives
the call.

An interrupt may come at any call, the one that gives the threads back included, and before the first
line of a Python function. ``with`` does not repeat an ``__exit__`` that was interrupted there: hence
functions that call a function, with a second attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from threadpoolctl import OpenBLASController, ThreadpoolController

Result = TypeVar("Result")

_GAINING = 150
"""Order from which a second thread makes dense routes faster, not slower."""

_WAKING = 40
"""Size of matrices below which LAPACK and OpenBLAS keep to one thread anyway: to say so takes 25 µs."""

_CONTROL = threading.RLock()
"""Held while OpenBLAS is under our control, so that no call of ours ignores another."""

_OWED: dict[Any, int] = {}
"""Counts that could not be given back, since a limit was in force that another Python thread had set."""


@cache
def _pools() -> tuple[Any, ...]:
    """The BLAS libraries in this process, those of NumPy and SciPy among them."""
    pools = ThreadpoolController().lib_controllers
    return tuple(pool for pool in pools if pool.user_api == "blas")


def blas_threads() -> int:
    """How many threads a BLAS may use now; 1 if there is none that can be asked."""
    return max((pool.get_num_threads() for pool in _pools()), default=1)


def on_gainful_threads(
    function: Callable[..., Result], *arguments: Any, order: int | None = None, ports: int = 0
) -> Result:
    """Call `function` with one thread in every BLAS of the process, and give back what was there.

    With an `order`, only where a second thread would be woken in vain, else with all there are. `ports` is
    the larger one of the numbers of inputs and outputs, where matrices have as many columns.
    """
    if order is not None and (order >= _GAINING or max(order, ports) < _WAKING):
        return function(*arguments)
    if _OWED:
        # threadpoolctl obeys a new Python thread if and only if no limit is in force.
        helper = threading.Thread(target=_settle)
        helper.start()
        helper.join()
    counts = [(pool, count) for pool in _pools() if (count := pool.get_num_threads()) > 1]
    if not counts:
        return function(*arguments)
    try:
        with _CONTROL:
            for pool, _ in counts:
                pool.set_num_threads(1)
            OpenBLASController.clear_controlling_thread()
        result = function(*arguments)
    finally:
        try:
            _give_back(counts)
        except BaseException:
            _give_back(counts)
            raise
    return result


def _give_back(counts: Sequence[tuple[Any, int]]) -> None:
    """Set every pool that has one thread to its count; another count is the user's, and newer."""
    with _CONTROL:
        for pool, count in counts:
            if pool.get_num_threads() == 1:
                pool.set_num_threads(count)
                if pool.get_num_threads() == 1:
                    _OWED[pool] = count
        OpenBLASController.clear_controlling_thread()


def _settle() -> None:
    """Give back what is owed; a limit that was closed meanwhile has set the one thread that it found."""
    _give_back(list(_OWED.items()))
    for pool in list(_OWED):
        if pool.get_num_threads() > 1:
            _OWED.pop(pool, None)
