"""Orders that are found by measuring reduced systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ssmreduce.errors import UnstableSystemError
from ssmreduce.reduction.order import FixedOrder, MeasuredError, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.single import Reducible
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.state_space import StateSpace


def smallest_cut(
    part: Reducible, rule: MeasuredError, cut: Callable[[Reducible, OrderRule], Reduction]
) -> Reduction:
    """Return the smallest cut that a bisection finds within the tolerance; nothing is cut at worst.

    Errors fall with the order, if not strictly: a smaller order that keeps the tolerance by chance is not
    looked for, and what is returned keeps it.
    """
    whole = cut(part, FixedOrder(max(part.original.order, 1)))
    if part.balanced_part is None or part.balanced_part.original.order == 0:
        return whole
    tolerance = rule.relative * measured_gain(part.balanced_part.unchanged())
    too_small, order = max(part.unstable - 1, 0), part.available(part.original.order)
    best = _within(tolerance, part, order, cut)
    if best is None:
        return whole
    while order - too_small > 1:
        middle = (too_small + order) // 2
        candidate = _within(tolerance, part, middle, cut)
        if candidate is None:
            too_small = middle
        else:
            order, best = middle, candidate
    return best


def _within(
    tolerance: float, part: Reducible, order: int, cut: Callable[[Reducible, OrderRule], Reduction]
) -> Reduction | None:
    """The cut to an order; None if its error is larger, or it came out unstable."""
    try:
        reduction = cut(part, FixedOrder(order))
    except UnstableSystemError:
        return None
    return reduction if float(reduction.quick_error()) <= tolerance else None


def measured_gain(reduction: Reduction) -> float:
    """Gain of the original of a single reduction, measured as its `quick_error` is."""
    return float(replace(reduction, system=_without_states(reduction.original)).quick_error())


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
