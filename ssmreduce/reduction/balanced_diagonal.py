"""Cut one balanced diagonal system and make it diagonal again.

Where it outputs a real part, the real system of order 2n behind it is balanced, truncated and
diagonalised; a conjugate pair or a real pole then takes one stored state, so that r stored states
hold a real order between r and 2r: the largest is kept that fits. DC matching does the same with
another dense system, see `ssmreduce.reduction.dc_matching`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.gramians.frequency_weighting import FrequencyWeighting
from ssmreduce.hankel import BalancedFactors, balance_every
from ssmreduce.reduction.balanced_dense import BalancedDense
from ssmreduce.reduction.balanced_system import NEARBY_ORDERS, BalancedSystem, no_response
from ssmreduce.reduction.batch import single_systems
from ssmreduce.reduction.order import ErrorBound, FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise

_LARGEST_SIZE = 1e150
"""Factor of a state beyond which weights might overflow."""


def balanced_system(
    original: System,
    horizon: int | None = None,
    weighting: FrequencyWeighting | None = None,
    factors: BalancedFactors | None = None,
    *,
    dense: type[BalancedDense] = BalancedDense,
) -> BalancedSystem:
    """Balance one system (no batch axes), unless it comes with its factors."""
    kind = dense if isinstance(original, StateSpace) else BalancedDiagonal
    return kind(original, horizon, weighting, factors)


def balanced_systems(
    system: System,
    horizon: int | None = None,
    weighting: FrequencyWeighting | None = None,
    *,
    dense: type[BalancedDense] = BalancedDense,
) -> list[BalancedSystem]:
    """Balance every system of a batch, in C order."""
    kind = dense if isinstance(system, StateSpace) else BalancedDiagonal
    if system.D.ndim == 2:
        return [kind(system, horizon, weighting)]
    singles: list[Any] = single_systems(system)
    if system.order == 0:
        return [kind(single, horizon, weighting) for single in singles]
    every = balance_every(system, horizon, weighting)
    return [
        kind(single, horizon, weighting, factors)
        for single, factors in zip(singles, every, strict=True)
    ]


@dataclass(frozen=True)
class Target:
    """The real order to start from, how many stored states it may take, and the order that was wanted."""

    order: int
    limit: int
    wanted: int


class BalancedDiagonal(BalancedSystem):
    """A `DiagonalStateSpace`: stored states are an upper limit, the result is diagonal again."""

    original: DiagonalStateSpace
    host: DiagonalStateSpace

    def truncate(
        self, rule: OrderRule, *, match_dc: bool = False, invertible: bool = False
    ) -> Reduction:
        """Cut to the order that `rule` chooses, or the nearest below that fits and is safe.

        With `match_dc` each order has a dense system of its own, which keeps the DC gain; where `invertible`
        its poles are not 0. Otherwise those of lower orders are leading blocks of one.

        Raises
        ------
        OrderError
            If all Hankel singular values are zero.
        NoConvergenceError
            If no order nearby has a stable diagonal form.
        """
        host, target = self.host, self.target(rule)
        if target is None:
            return self.unchanged()
        order, state = target.order, None
        if not match_dc:
            W, T = self.projections(order)
            state = adjoint(W) @ host.applied(T)
        # Real poles come and go with the order, so every one is tried; order `limit` always fits. One
        # eigenvalue problem per try: few, unless most poles are real.
        while order > target.limit:
            pattern = self._pattern(order) if state is None else state[:order, :order]
            if np.count_nonzero(np.linalg.eigvals(pattern).imag >= 0.0) <= target.limit:
                break
            order -= 1
        orders = range(order, max(order - NEARBY_ORDERS, 1) - 1, -1)
        matrices = ((k, self.matched(k).A if state is None else state[:k, :k]) for k in orders)
        maps = ((k, own) for k, A in matrices if (own := diagonalise(A, real=host.real_output)))
        order, slot_map = self.safest(order, maps, target.limit, invertible=invertible)
        if slot_map.eigenvalues.size >= host.order:
            return self.unchanged()
        if isinstance(rule, ErrorBound):
            self.check_bound(rule, order)
        W, T = self.projections(order)
        if match_dc:
            matched, method = self.matched(order), "DC matching"
            B, C, D = matched.B, matched.C, matched.D.copy()
        else:
            (B, C), method = host.ports(), "balanced truncation"
            B, C, D = adjoint(W) @ B, C @ T, host.D
        reduced, slot_map = stored_system(host, slot_map, B, C, D)
        return self.report(reduced, order, target.wanted, (W, T), slot_map, method)

    def target(self, rule: OrderRule) -> Target | None:
        """What `rule` aims at; None if nothing is to be cut."""
        if self.hsv.size == 0:
            return None
        if isinstance(rule, FixedOrder):
            limit = rule.order
            wanted = 2 * limit if self.original.real_output else limit
            if wanted >= self.hsv.size:
                return None
        else:
            limit = wanted = rule.choose(self.hsv)
        if self.rank == 0:
            raise no_response()
        order = min(wanted, self.rank)
        return Target(order, limit, wanted) if order < self.hsv.size else None

    def available(self, order: int) -> int:
        """`order`: an upper limit in any case."""
        return order

    def budget_values(self) -> HostArray:
        """Every other Hankel singular value where the output is real: r stored states keep 2r."""
        return self.hsv[::2] if self.original.real_output else self.hsv

    def _match_dc(self, rule: OrderRule, *, invertible: bool) -> Reduction:
        return self.truncate(rule, match_dc=True, invertible=invertible)

    def _pattern(self, order: int) -> HostArray:
        """A matrix with as many real poles as the system of this order with the same DC gain.

        (A - s)⁻¹ by the inverse of S, unless it overflows.
        """
        M = self.followers(order).inverse
        return M if np.all(np.isfinite(M)) else self.matched(order).A


def stored_system(
    host: DiagonalStateSpace, slot_map: SlotMap, B: HostArray, C: HostArray, D: HostArray
) -> tuple[DiagonalStateSpace, SlotMap]:
    """The diagonal form of a dense system that `host` was cut to, and the map to its stored states.

    The size of a stored state is free, see `usual_sizes`. So is its phase, of which eigenvectors of a
    rounded matrix say nothing: the first entry of b that is at least half the largest is real and positive.
    Rounding then decides only where an entry is half the largest, and not where symmetry makes two equal.
    """
    B, C = slot_map.ports(B, C)
    scale = usual_sizes(host, slot_map.eigenvalues, B, C)
    if B.shape[-1]:
        sizes = np.abs(B)
        first = np.argmax(2.0 * sizes >= sizes.max(axis=-1, keepdims=True), axis=-1)
        leading = np.take_along_axis(B, first[..., None], axis=-1)[..., 0]
        leading = np.where(leading == 0.0, 1.0, leading)
        scale = scale / (leading / np.abs(leading))  # exactly 1 or -1 for a real one
    reduced = DiagonalStateSpace(
        slot_map.eigenvalues,
        B * scale[..., :, None],
        C / scale[..., None, :],
        D,
        time=host.time,
        real_output=host.real_output,
        read_after_update=host.read_after_update,
    )
    return reduced, slot_map.rescaled(scale)


def usual_sizes(
    host: DiagonalStateSpace, eigenvalues: HostArray, B: HostArray, C: HostArray
) -> HostArray:
    """By how much to multiply each new state, so that output weights are as large as they are in `host`.

    ‖b‖/sqrt(1-|λ|²) over ‖c‖ becomes one number for all new states, with which the geometric mean of ‖c‖ is
    that of `host`. In this mean each state counts by what it carries, ‖b‖‖c‖/sqrt(1-|λ|²), so that states
    without use do not. 1 where this is not defined, or so far from 1 that weights might overflow.
    """
    means = []
    for poles, matrices in ((host.eigenvalues, (host.B, host.C)), (eigenvalues, (B, C))):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            norms = []
            for matrix, axis in zip(matrices, (-1, -2), strict=True):
                # In units of the largest entries squares neither over- nor underflow.
                largest = np.abs(matrix).max(axis=axis, keepdims=True, initial=0.0)
                units = np.where(largest > 0.0, largest, 1.0)
                norms.append(np.linalg.norm(matrix / units, axis=axis) * np.squeeze(units, axis))
            b, c = np.log(norms)
            b -= 0.5 * np.log(np.abs(host.time.divisor(poles, poles.conj())))
            carried = np.where(np.isfinite(b + c), b + c, -np.inf)
            most = carried.max(axis=-1, keepdims=True, initial=-np.finfo(float).max)
            weights = np.exp(carried - most)
            logarithms = np.where(weights > 0.0, [c, b + c], 0.0)
            means.append((weights * logarithms).sum(-1) / weights.sum(-1))
    usual, product = means[0][0], means[1][1]
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.exp(0.5 * (product[..., None] - (b - c)) - usual[..., None])
    return np.where((scale > 1.0 / _LARGEST_SIZE) & (scale < _LARGEST_SIZE), scale, 1.0)
