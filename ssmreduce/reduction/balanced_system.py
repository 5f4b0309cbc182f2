"""Cuts of one balanced system: the base class of all kinds, and dense systems.

A dense system is truncated to (Wᴴ A T, Wᴴ B, C T). For DC matching see `ssmreduce.reduction.dc_matching`, for
diagonal systems `ssmreduce.reduction.balanced_diagonal`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._schur import SchurForm
from ssmreduce._threads import on_gainful_threads
from ssmreduce.equations.stability import check_stable_system
from ssmreduce.errors import ArgumentError, NoConvergenceError, OrderError
from ssmreduce.gramians.frequency_weighting import FrequencyWeighting
from ssmreduce.hankel import (
    BalancedFactors,
    balance_factors,
    tail_bounds,
)
from ssmreduce.reduction.dc_matching import (
    Followers,
    ShiftedSystem,
    are_invertible,
    dense_after_update,
    diagonal_after_update,
)
from ssmreduce.reduction.order import ErrorBound, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.selection import stability_distance
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap

NEARBY_ORDERS = 6
"""How many lower orders are tried where the eigenvectors of the truncated system are not safe."""

SAFE_SHARE = 0.1
"""Eigenvectors are safe while their rounding stays below this share of the truncation bound."""

_EPS = float(np.finfo(np.float64).eps)

Tried = TypeVar("Tried", tuple[int, SlotMap], tuple[int, SlotMap, Reduction])
"""An order, its diagonal form, and what was cut to it maybe."""


def check_still_stable(reduced: System, advice: str, *, kept: int = 0) -> None:
    """Raise `UnstableSystemError` if more poles of a reduced system than the `kept` ones are unstable.

    Theory may promise better, but rounding of A moves poles, and a user's `is_stable()` tells.
    """
    host = reduced.to_host()
    if host.is_stable():
        return
    if isinstance(host, DiagonalStateSpace):
        stable = stability_distance(host) > 0.0
    else:
        stable = SchurForm.of(host.A, time=host.time).stable(host.time)
    if np.count_nonzero(~stable) > kept:
        name = f"reduced to `order` {reduced.order} the system"
        if kept:
            name += f", of which {kept} poles may be unstable,"
        check_stable_system(reduced, advice, name=name)


def no_response() -> OrderError:
    """Return the error for a system of rank zero."""
    return OrderError(
        "all Hankel singular values are zero: no state is both reachable and observable; "
        "expected a system that responds to its input. Look at `B` and `C`."
    )


class BalancedSystem(ABC):
    """One system (no batch axes) with its balanced factors, ready for any number of cuts."""

    unstable = 0
    """How many stored states are kept because they are unstable."""

    def __init__(
        self,
        original: System,
        horizon: int | None = None,
        weighting: FrequencyWeighting | None = None,
        factors: BalancedFactors | None = None,
    ) -> None:
        self.original = original
        self.host = original.to_host()
        self.horizon = horizon
        self.weighting = weighting
        # Without states nothing is left to balance: the system is its feedthrough.
        if factors is None and original.order:
            factors = balance_factors(self.host, horizon, weighting)
        self.factors = factors
        self.hsv: HostArray = np.zeros(0) if self.factors is None else self.factors.hsv
        self.rank = 0 if self.factors is None else self.factors.rank
        self._widest: tuple[HostArray, HostArray] = np.zeros((0, 0)), np.zeros((0, 0))
        self._followers: Followers | None = None
        self._latest: tuple[int, ShiftedSystem] | None = None

    @abstractmethod
    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses."""

    @abstractmethod
    def available(self, order: int) -> int:
        """`order`, or the largest there is to be had below it."""

    @abstractmethod
    def budget_values(self) -> HostArray:
        """Hankel singular values by what an order counts: σ_{r+1} is left out when r are kept."""

    def match_dc(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses from the standard form, and keep the DC gain."""
        if self.horizon is not None:
            raise ArgumentError(
                f"`horizon` is {self.horizon}; expected none: the DC gain is that of sequences "
                "without end. Use truncate, or balance without a horizon."
            )
        if self.weighting is not None:
            raise ArgumentError(
                "a band or weights are given; expected none: DC matching is exact at zero frequency and "
                "knows no other frequencies. Use truncate, or balance without them."
            )
        if self.original.order == 0:
            return self.unchanged()
        standard = self.standard
        if standard is self:
            return self._match_dc(rule, invertible=False)
        reduction = standard._match_dc(rule, invertible=True)
        if reduction.system is reduction.original:
            return replace(reduction, original=self.original, system=self.original)
        reduced = reduction.system
        if isinstance(reduced, StateSpace):
            return replace(reduction, original=self.original, system=dense_after_update(reduced))
        return replace(reduction, original=self.original, system=diagonal_after_update(reduced))

    @cached_property
    def standard(self) -> BalancedSystem:
        """The balanced standard form; this system itself if it reads before its update."""
        if not self.original.read_after_update:
            return self
        return type(self)(self.host.to_standard())

    @abstractmethod
    def _match_dc(self, rule: OrderRule, *, invertible: bool) -> Reduction:
        """Match the DC gain in the standard form; where needed with poles other than 0."""

    @cached_property
    def _shifted(self) -> ShiftedSystem:
        return ShiftedSystem.of(self.host)

    def matched(self, order: int) -> ShiftedSystem:
        """The dense system of this order with the same DC gain, kept until another is asked for."""
        if self._latest is None or self._latest[0] != order:
            self._latest = order, self._shifted.matched(self.followers(order))
        return self._latest[1]

    def followers(self, order: int) -> Followers:
        """The projections of this order, ready for DC matching: leading columns, like them."""
        W, T = self.projections(order)
        if self._followers is None or self._followers.right.shape[1] < order:
            self._followers = self._shifted.follow(W, T)
        return self._followers.leading(order)

    def projections(self, order: int) -> tuple[HostArray, HostArray]:
        """W and T of this order: the leading columns of those of the largest order so far."""
        if order > self._widest[0].shape[1] and self.factors is not None:
            n = self.factors.hsv.size
            self._widest = on_gainful_threads(self.factors.projections, order, order=n)
        return self._widest[0][:, :order], self._widest[1][:, :order]

    def safest(
        self, order: int, tried: Iterable[Tried], limit: int, *, invertible: bool = False
    ) -> Tried:
        """Of orders and diagonal forms the one whose bound and eigenvector rounding are least together.

        Rounding is estimated as eps · condition · 2 Σσ. The first is taken at once of which that is below a
        tenth of its truncation bound, or of the square root of eps. Forms have at most `limit` stored states,
        and poles are stable, but for a system that was balanced within a horizon.

        Raises
        ------
        NoConvergenceError
            If there is none.
        """
        best, least, bounds = None, np.inf, tail_bounds(self.hsv)
        for found in tried:
            poles = found[1].eigenvalues
            if poles.size > limit:
                continue
            if self.horizon is None:
                stable = np.isfinite(poles) & (self.host.time.distance(poles) > 0.0)
                if not np.all(stable) or (invertible and not are_invertible(poles)):
                    continue
            bound, rounding = bounds[found[0]], _EPS * found[1].condition * bounds[0]
            if best is None or bound + rounding < least:
                best, least = found, bound + rounding
            if rounding <= SAFE_SHARE * max(bound, _EPS**0.5 * bounds[0]):
                break
        if best is None:
            raise NoConvergenceError(
                f"truncated to order {order}, or to one of up to {NEARBY_ORDERS} orders below, the system "
                "has no stable diagonal form; expected distinct poles. Try another order."
            )
        return best

    def unchanged(self) -> Reduction:
        """Report that nothing was cut."""
        order = self.original.real_order
        return self.report(self.original, order, order, (None, None))

    def check_bound(self, rule: ErrorBound, real_order: int) -> None:
        """Raise `UnreachableToleranceError` if the bound is missed; refuse a rule where none is known."""
        if self.horizon is not None or self.weighting is not None:
            weighting = "a band or weights" if self.horizon is None else "a horizon"
            raise OrderError(
                f"`order` is an ErrorBound but the system was balanced for {weighting}; expected a rule "
                "without a promise: no theorem bounds that error. Try HankelMass(0.99), then verify()."
            )
        rule.check(self.hsv, float(tail_bounds(self.hsv)[real_order]))

    def report(
        self,
        reduced: System,
        real_order: int,
        wanted_order: int,
        projections: tuple[HostArray | None, HostArray | None],
        slot_map: SlotMap | None = None,
        method: str = "balanced truncation",
    ) -> Reduction:
        """Report `reduced`, which was cut to `real_order`."""
        left, right = projections
        bounded = self.horizon is None and self.weighting is None
        return Reduction(
            original=self.original,
            system=reduced,
            order=reduced.order,
            real_order=real_order,
            wanted_order=wanted_order,
            rank=self.rank,
            hsv=self.hsv,
            error_bound=float(tail_bounds(self.hsv)[real_order]) if bounded else None,
            left=left,
            right=right,
            slot_map=slot_map,
            horizon=self.horizon,
            method=method,
        )
