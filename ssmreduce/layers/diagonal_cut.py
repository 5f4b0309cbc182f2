"""Cut a layer's systems to diagonal ones, also where the layer's own state matrix is not diagonal.

A dense real system truncated to order R is diagonalised: a conjugate pair or a real pole takes one stored
state, so that r stored states hold a real order between r and 2r. The largest is kept that fits, or one
of the next below if its eigenvectors would cost more digits than the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import NoConvergenceError, SSMReduceError, UnstableSystemError
from ssmreduce.gramians.batch import map_parts
from ssmreduce.hankel import error_bounds
from ssmreduce.reduction.balanced_batch import BalancedBatch
from ssmreduce.reduction.balanced_diagonal import SAFE_SHARE, balanced_systems
from ssmreduce.reduction.balanced_system import BalancedSystem, no_response
from ssmreduce.reduction.batch import assemble
from ssmreduce.reduction.order import ErrorBound, FixedOrder, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.scaling import warn_if_badly_scaled
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise

_ADVICE = "Pass options=CutOptions(horizon=length), or data."

_NEAR_ONE = 1e-4
"""Below this log |λ|, what is shown is the distance of |λ| from 1: digits of |λ| do not tell them apart."""

_NEARBY_ORDERS = 6
"""How many lower orders are tried where the eigenvectors are not safe."""


class LayerBalancing(Protocol):
    """The balanced systems of a layer, ready for any number of cuts to diagonal ones."""

    def truncate(self, order: int | OrderRule, *, common_order: bool) -> Reduction:
        """Cut to at most `order` stored states, or to what a rule chooses."""

    def budget_values(self) -> list[HostArray]:
        """For each system, the values by which a `TotalBudget` shares out states."""


def balanced_layer(system: System, horizon: int | None) -> LayerBalancing:
    """Balance the systems that a layer runs.

    Raises
    ------
    UnstableSystemError
        If there is no horizon and a state does not decay.
    """
    system = system.to_host()
    try:
        parts = balanced_systems(system, horizon)
    except UnstableSystemError as error:
        raise does_not_decay(system, _ADVICE) from error
    if isinstance(system, StateSpace):
        return _DenseLayer(system, parts)
    warn_if_badly_scaled(parts)
    return BalancedBatch(system, parts)


def does_not_decay(system: System, advice: str) -> UnstableSystemError:
    """The error for a layer with a state that does not decay; `advice` says how to pass a horizon."""
    logarithms = system.log_eigenvalues if isinstance(system, DiagonalStateSpace) else None
    largest = np.max(np.abs(system.poles()))
    growth = float(np.log(largest) if logarithms is None else np.max(logarithms.real))
    size = f"{np.exp(growth):.5g}"
    if 0.0 < abs(growth) < _NEAR_ONE:
        size = f"1 {'+' if growth > 0.0 else '-'} {abs(growth):.2g}"
    return UnstableSystemError(
        f"a state of this layer {'grows' if growth > 0.0 else 'does not decay'} (|λ| = {size}), as is "
        f"common after training; expected |λ| < 1, or the length of your sequences. {advice}"
    )


class _DenseLayer:
    """Dense systems of a layer, cut to diagonal ones."""

    def __init__(self, system: StateSpace, parts: list[BalancedSystem]) -> None:
        self._system, self._parts = system, parts

    def truncate(self, order: int | OrderRule, *, common_order: bool) -> Reduction:
        """Cut each system; with `common_order` to the largest order that one of them takes."""
        rule = as_rule(order)
        if isinstance(rule, FixedOrder) and 2 * rule.order >= self._system.order:
            return assemble(self._system, [part.unchanged() for part in self._parts])
        cuts = self._cut_each(rule)
        largest = FixedOrder(max(int(cut.order) for cut in cuts))
        if common_order and largest != rule:
            cuts = self._cut_each(largest)
        return assemble(self._system, cuts)

    def _cut_each(self, rule: OrderRule) -> list[Reduction]:
        return map_parts(self._system, diagonal_cut, self._parts, [rule] * len(self._parts))

    def budget_values(self) -> list[HostArray]:
        """Every other Hankel singular value: a stored state stands for two real ones."""
        return [part.hsv[::2] for part in self._parts]


def diagonal_cut(part: BalancedSystem, rule: OrderRule) -> Reduction:
    """Cut one balanced system to a diagonal one of at most so many stored states.

    Raises
    ------
    OrderError
        If all singular values are zero.
    NoConvergenceError
        If no order nearby has a stable diagonal form.
    """
    if isinstance(part.original, DiagonalStateSpace):
        return part.truncate(rule)
    rank = part.rank
    if rank == 0:
        raise no_response()
    limit = 2 * rank
    wanted = min(rule.choose(part.hsv), rank)
    if isinstance(rule, FixedOrder):
        limit, wanted = rule.order, min(2 * rule.order, rank)
    if isinstance(rule, ErrorBound):
        part.check_bound(rule, wanted)
    bounds = error_bounds(part.hsv)
    eps = float(np.finfo(np.float64).eps)
    best: tuple[float, Reduction] | None = None
    for order, cut, A in islice(_cuts_that_fit(part, wanted, limit), _NEARBY_ORDERS + 1):
        slot_map = diagonalise(A, real=True)
        if slot_map is not None and np.all(np.abs(slot_map.eigenvalues) < 1.0):
            rounding = eps * slot_map.condition * bounds[0]
            total = float(bounds[order] + rounding)
            if best is None or total < best[0]:
                system = in_slots(cut.system, slot_map, *cut.system.ports())
                best = total, replace(cut, system=system, order=system.order, slot_map=slot_map)
            if rounding <= SAFE_SHARE * max(bounds[order], eps**0.5 * bounds[0]):
                break
    if best is None:
        raise NoConvergenceError(
            f"truncated to order {wanted}, or to one of those below, the system has no stable diagonal "
            "form; expected distinct poles. Try another order."
        )
    return best[1]


def _cuts_that_fit(
    part: BalancedSystem, wanted: int, limit: int
) -> Iterator[tuple[int, Reduction, HostArray]]:
    """Orders from `wanted` down, cuts and their A, of which `limit` stored states hold the poles."""
    for order in range(wanted, 0, -1):
        try:
            cut = part.truncate(FixedOrder(order))
        except SSMReduceError:  # a cut between nearly equal values that came out unstable
            continue
        A = cut.system.to_dense().A
        if np.count_nonzero(np.linalg.eigvals(A).imag >= 0.0) <= limit:
            yield order, cut, A


def in_slots(system: System, slot_map: SlotMap, B: HostArray, C: HostArray) -> DiagonalStateSpace:
    """A system in the stored states of its diagonal form, from B and C in the states of a dense one."""
    return DiagonalStateSpace(
        slot_map.eigenvalues,
        *slot_map.ports(B, C),
        system.D,
        time=system.time,
        real_output=True,
        read_after_update=system.read_after_update,
    )
