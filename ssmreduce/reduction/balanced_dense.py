"""Cut one balanced dense system: truncated to (Wᴴ A T, Wᴴ B, C T), or with its DC gain kept."""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import product
from ssmreduce._poles import are_stable
from ssmreduce._threads import on_gainful_threads
from ssmreduce.errors import OrderError
from ssmreduce.hankel import rank_tolerance
from ssmreduce.reduction.balanced_system import BalancedSystem, check_still_stable, no_response
from ssmreduce.reduction.order import ErrorBound, FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.state_space import StateSpace

_DOUBTFUL_GAP = 1e-6
"""Relative gap of neighbouring Hankel singular values, and of the last one over rounding, below which they
are the likely reason for an unstable result: rounding of the projections is eps over that gap."""


class BalancedDense(BalancedSystem):
    """A `StateSpace`: exactly the order asked for, or an error."""

    host: StateSpace

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses.

        Raises
        ------
        OrderError
            If a fixed order is above the numerical rank, or the rank is zero. Rules stop at the rank.
        UnstableSystemError
            If it came out unstable: by a band or two weights, or by rounding, most likely in a cut between
            values that are nearly equal.
        """
        # The rule may be code of the user's, and finds the threads that the user has.
        order, wanted = self._order(rule)
        if order == self.hsv.size:
            return self.unchanged()
        (p, m), n = self.host.D.shape, self.hsv.size
        return on_gainful_threads(self._cut, order, wanted, order=n, ports=max(m, p))

    def _cut(self, order: int, wanted: int) -> Reduction:
        W, T = self.projections(order)
        host = self.host
        reduced = host.replace(
            A=product(W, product(host.A, T), adjoint_left=True),
            B=product(W, host.B, adjoint_left=True),
            C=product(host.C, T),
        )
        if self.horizon is None and not are_stable(reduced.A, reduced.time):
            self._refuse(reduced)
        return self.report(reduced, order, wanted, (W, T))

    def available(self, order: int) -> int:
        """`order`, or the numerical rank if that is lower."""
        if self.rank == 0:
            raise no_response()
        return min(order, self.rank)

    def budget_values(self) -> HostArray:
        """Hankel singular values."""
        return self.hsv

    def _match_dc(self, rule: OrderRule, *, invertible: bool) -> Reduction:
        order, wanted = self._order(rule)
        if order == self.hsv.size:
            return self.unchanged()
        W, T = self.projections(order)
        matched = self.matched(order)
        reduced = matched.system(self.host.time)
        if not are_stable(reduced.A, reduced.time):
            self._refuse(reduced)
        return self.report(reduced, order, wanted, (W, T), method="DC matching")

    def _refuse(self, reduced: StateSpace) -> None:
        """Raise `UnstableSystemError` for an unstable result; within a horizon poles may lie anywhere."""
        if self.weighting is not None and not self.weighting.keeps_stability:
            advice = (
                "Neither a band nor two weights guarantee that: try an order next to it, or one weight "
                "only."
            )
        elif self._cuts_between_equals(reduced.order):
            advice = (
                "The cut lies between Hankel singular values that are nearly equal, or near rounding: "
                "try a lower order."
            )
        else:
            advice = (
                "Rounding has moved a pole over the boundary, which it lies near to for the size of `A`: "
                "try a lower order, or other units for the states."
            )
        check_still_stable(reduced, advice)

    def _cuts_between_equals(self, order: int) -> bool:
        """Whether a cut to `order` lies between values that are nearly equal, or near rounding."""
        last, following = self.hsv[order - 1], np.append(self.hsv, 0.0)[order]
        floor = 0.0 if self.factors is None else self.factors.floor
        rounding = max(rank_tolerance(self.hsv), floor)
        return bool(last - following < _DOUBTFUL_GAP * last or last < rounding / _DOUBTFUL_GAP)

    def _order(self, rule: OrderRule) -> tuple[int, int]:
        """The order to cut to, and the one that was wanted before the rank made it lower."""
        n = self.hsv.size
        if n == 0:
            return 0, 0
        rank = self.rank
        if rank == 0:
            raise no_response()
        wanted = rule.choose(self.hsv)
        if isinstance(rule, FixedOrder) and wanted > rank:
            raise OrderError(
                f"`order` is {wanted} but the system has numerical rank {rank} ({n} states); "
                f"expected at most {rank}. Ask for that, or use an order rule such as "
                "HankelMass(0.99)."
            )
        order = min(wanted, rank)
        if order < n and isinstance(rule, ErrorBound):
            self.check_bound(rule, order)
        return order, wanted
