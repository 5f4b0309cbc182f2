"""Cut a layer's systems to diagonal ones, also where the layer's own state matrix is not diagonal.

A dense real system truncated to order R is diagonalised: a conjugate pair or a real pole takes one stored
state, so that r stored states hold a real order between r and 2r. The largest is kept that fits, or one
of the next below if its eigenvectors would cost more digits than the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import SSMReduceError, UnstableSystemError
from ssmreduce.reduction.balanced_batch import BalancedBatch
from ssmreduce.reduction.balanced_dense import BalancedDense
from ssmreduce.reduction.balanced_diagonal import balanced_systems
from ssmreduce.reduction.balanced_system import NEARBY_ORDERS, no_response
from ssmreduce.reduction.order import ErrorBound, FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.scaling import warn_if_badly_scaled
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.transform import SlotMap, diagonalise

_ADVICE = "Pass options=CutOptions(horizon=length), or data."

_NEAR_ONE = 1e-4
"""Below this log |λ|, what is shown is the distance of |λ| from 1: digits of |λ| do not tell them apart."""


def balanced_layer(system: System, horizon: int | None) -> BalancedBatch:
    """Balance the systems that a layer runs.

    Raises
    ------
    UnstableSystemError
        If there is no horizon and a state does not decay.
    """
    system = system.to_host()
    try:
        parts = balanced_systems(system, horizon, dense=DiagonalisedDense)
    except UnstableSystemError as error:
        raise does_not_decay(system, _ADVICE) from error
    if isinstance(system, DiagonalStateSpace):
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


class DiagonalisedDense(BalancedDense):
    """A balanced dense system, cut to diagonal ones: stored states are an upper limit."""

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the real order that `rule` chooses, or the nearest below that fits and is safe.

        Raises
        ------
        OrderError
            If all singular values are zero.
        NoConvergenceError
            If no order nearby has a stable diagonal form.
        """
        if isinstance(rule, FixedOrder) and 2 * rule.order >= self.hsv.size:
            return self.unchanged()
        if self.rank == 0:
            raise no_response()
        limit, wanted = 2 * self.rank, min(rule.choose(self.hsv), self.rank)
        if isinstance(rule, FixedOrder):
            limit, wanted = rule.order, min(2 * rule.order, self.rank)
        if isinstance(rule, ErrorBound):
            self.check_bound(rule, wanted)
        cuts = islice(self._diagonal_cuts(wanted, limit), NEARBY_ORDERS + 1)
        stable = (found for found in cuts if np.all(np.abs(found[1].eigenvalues) < 1.0))
        _, slot_map, cut = self.safest(wanted, stable, limit)
        system = in_slots(cut.system, slot_map, *cut.system.ports())
        return replace(cut, system=system, order=system.order, slot_map=slot_map)

    def available(self, order: int) -> int:
        """`order`: an upper limit in any case."""
        return order

    def budget_values(self) -> HostArray:
        """Every other Hankel singular value: a stored state stands for two real ones."""
        return self.hsv[::2]

    def _diagonal_cuts(self, wanted: int, limit: int) -> Iterator[tuple[int, SlotMap, Reduction]]:
        """Orders from `wanted` down whose poles `limit` states hold, their diagonal forms, and the cuts."""
        for order in range(wanted, 0, -1):
            try:
                cut = super().truncate(FixedOrder(order))
            except SSMReduceError:  # a cut between nearly equal values that came out unstable
                continue
            slot_map = diagonalise(cut.system.to_dense().A, real=True)
            if slot_map is not None and slot_map.order <= limit:
                yield order, slot_map, cut


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
