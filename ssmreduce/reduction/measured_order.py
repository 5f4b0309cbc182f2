"""Orders that are found by measuring reduced systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ssmreduce.errors import SSMReduceError, UnsupportedLayerError
from ssmreduce.reduction.balanced_system import BalancedSystem, no_response
from ssmreduce.reduction.balanced_unstable import Reducible
from ssmreduce.reduction.order import FixedOrder, MeasuredError, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.state_space import StateSpace

Found = TypeVar("Found")


def smallest_cut(
    part: Reducible, rule: MeasuredError, cut: Callable[[OrderRule], Reduction]
) -> Reduction:
    """Return the smallest cut that a bisection finds within the tolerance; nothing is cut at worst."""
    n = max(part.original.order, 1)
    balanced: BalancedSystem | None
    if isinstance(part, BalancedSystem):
        balanced, whole = part, part.unchanged()
    else:
        balanced, whole = part.stable, cut(FixedOrder(max(part.available(n), 1)))
    if balanced is None or balanced.original.order == 0:
        return whole
    if balanced.rank == 0:
        raise no_response()
    tolerance = rule.relative * float(to_nothing(balanced.unchanged()).measured())

    best = smallest(
        max(part.unstable, 1),
        n,
        lambda order: cut(FixedOrder(order)),
        lambda found: float(found.measured()) <= tolerance,
    )
    return whole if best is None else best


def smallest(
    first: int,
    end: int,
    attempt: Callable[[int], Found | None],
    keeps: Callable[[Found], bool],
    *,
    passed_over: type[SSMReduceError] = SSMReduceError,
) -> Found | None:
    """Return the first of ``attempt(first) ... attempt(end - 1)`` that a bisection finds to be kept, or None.

    Errors fall with the order, if not strictly: a smaller one that would be kept by chance is not looked for,
    and what is returned is kept. Orders of which the attempt is None, or raises what is `passed_over`, are
    left out: they are above the rank, or cannot be made. An `UnsupportedLayerError` is about all orders, and
    ends the search.
    """

    def tried(order: int) -> Found | None:
        try:
            return attempt(order)
        except UnsupportedLayerError:  # at any order
            raise
        except passed_over:
            return None

    below, order, best = first - 1, end, None
    while order - below > 1:
        middle = (below + order) // 2
        made = next(
            ((k, found) for k in range(middle, order) if (found := tried(k)) is not None), None
        )
        if made is None:
            order = middle
        elif keeps(made[1]):
            order, best = made
        else:
            below = made[0]
    return best


def to_nothing(reduction: Reduction) -> Reduction:
    """The cut of a single system to no states and no feedthrough, whose error is the gain."""
    return replace(reduction, system=_without_states(reduction.original))


def _without_states(system: System) -> StateSpace:
    m, p = system.inputs, system.outputs
    return StateSpace(
        np.zeros((0, 0)),
        np.zeros((0, m)),
        np.zeros((p, 0)),
        np.zeros((p, m)),
        time=system.time,
        read_after_update=system.read_after_update,
    )
