"""Balanced truncation of dense systems where the arrays are, all systems of a batch at once.

The order is an int, or a rule for a single system whose values can be looked at: of the singular values a
copy goes to the host for it, and of the reduced state matrix one for its poles. A result that is not
stable is left to the host, and so are diagonal systems: nothing but a nonsymmetric eigenvalue problem
makes them diagonal again.
"""

from __future__ import annotations

import numpy as np
from array_api_extra import default_dtype

from ssmreduce._array_libraries import Array, adjoint, as_number, device_of, is_traced, to_double
from ssmreduce._array_routes import NoNativeRoute
from ssmreduce.devices.hankel_values import NativeBalance, tail_sums
from ssmreduce.hankel import rank_tolerance
from ssmreduce.reduction.order import FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.state_space import StateSpace


class NativeBalancing:
    """Balanced dense systems on any device, ready for cuts.

    Raises
    ------
    NoNativeRoute
        If a system is not stable, or its factors are not accurate; not where traced.
    """

    def __init__(self, system: StateSpace) -> None:
        self._system = system
        self._balance = NativeBalance.of(system)
        self.hsv: Array = self._balance.hsv
        self._traced = is_traced(self.hsv)
        self._integer = default_dtype(self._balance.arrays.xp, "integral")
        self.rank = self._rank()

    def _rank(self) -> int | Array:
        xp, n = self._balance.arrays.xp, self._system.order
        floor = rank_tolerance(np.ones(n)) * self.hsv[..., :1]
        counted = xp.astype(self.hsv > floor, self._integer)
        rank: int | Array = as_number(xp.sum(counted, axis=-1, dtype=self._integer))
        return rank

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses.

        Raises
        ------
        NoNativeRoute
            If the order depends on values that must not be looked at, or on each system of a batch; or if
            the host would refuse it, or the result.
        """
        order = self._order(rule)
        system, balance = self._system, self._balance
        xp, n = balance.arrays.xp, system.order
        bounds = tail_sums(self.hsv)[..., order]
        single = not system.batch_shape
        W = T = None
        reduced = system
        if order < n:
            W, T = balance.projections(order)
            if self._traced:
                # Above the rank the projections are rounding, or NaN, and no theorem holds.
                bounds = xp.where(self.rank >= order, bounds, xp.nan)
            arrays = balance.arrays
            reduced = system.replace(
                A=adjoint(W) @ (arrays.state @ T),
                B=adjoint(W) @ arrays.B,
                C=arrays.C @ T,
                D=arrays.D,
            )
            if not self._traced and not np.all(reduced.to_host().is_stable()):
                raise NoNativeRoute("the result is not stable")
        filled = {"dtype": self._integer, "device": device_of(self.hsv)}
        mask = {"dtype": xp.bool, "device": device_of(self.hsv)}
        orders = order if single else xp.full(system.batch_shape, order, **filled)
        return Reduction(
            original=system,
            system=reduced,
            order=orders,
            real_order=orders,
            wanted_order=orders,
            rank=self.rank,
            hsv=self.hsv,
            error_bound=as_number(bounds),
            left=W if single else None,
            right=T if single else None,
            mask=None if single else xp.ones((*system.batch_shape, order), **mask),
            unstable=0 if single else xp.zeros(system.batch_shape, **filled),
        )

    def _order(self, rule: OrderRule) -> int:
        n = self._system.order
        if self._traced:
            if not isinstance(rule, FixedOrder):
                raise NoNativeRoute(f"{rule!r} looks at values; expected an int")
            return min(rule.order, n)
        if self._system.batch_shape and not isinstance(rule, FixedOrder):
            raise NoNativeRoute(f"{rule!r} gives each system of a batch its own order")
        values = to_double(self.hsv).reshape(-1, n)
        order = rule.choose(values[0])
        for hsv in values:
            rank = int(np.sum(hsv > rank_tolerance(hsv)))
            if order > rank:
                raise NoNativeRoute(f"`order` {order} is above the numerical rank {rank}")
        return order
