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
from ssmreduce.errors import NoConvergenceError
from ssmreduce.gramians.frequency_weighting import FrequencyWeighting
from ssmreduce.hankel import BalancedFactors, balance_every, tail_bounds
from ssmreduce.reduction.balanced_dense import BalancedDense
from ssmreduce.reduction.balanced_system import BalancedSystem
from ssmreduce.reduction.batch import single_systems
from ssmreduce.reduction.dc_matching import ShiftedSystem, are_invertible
from ssmreduce.reduction.order import FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise, slots_needed

_DIAGONALISATION_FACTOR = 0.1
"""Eigenvectors are safe while their rounding stays below this share of the truncation bound."""

_EPS = float(np.finfo(np.float64).eps)

_NEARBY_ORDERS = 6
"""How many lower orders are tried where the eigenvectors of the truncated system are not safe."""


def balanced_system(
    original: System,
    horizon: int | None = None,
    weighting: FrequencyWeighting | None = None,
    factors: BalancedFactors | None = None,
) -> BalancedSystem:
    """Balance one system (no batch axes), unless it comes with its factors."""
    if isinstance(original, StateSpace):
        return BalancedDense(original, horizon, weighting, factors)
    return BalancedDiagonal(original, horizon, weighting, factors)


def balanced_systems(
    system: System, horizon: int | None = None, weighting: FrequencyWeighting | None = None
) -> list[BalancedSystem]:
    """Balance every system of a batch, in C order."""
    kind = BalancedDense if isinstance(system, StateSpace) else BalancedDiagonal
    if not system.batch_shape:
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

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses, or the nearest below that fits and is safe.

        Raises
        ------
        OrderError
            If all Hankel singular values are zero.
        NoConvergenceError
            If no order nearby has a stable diagonal form.
        """
        return _DiagonalCut(self).to(rule)

    def target(self, rule: OrderRule) -> Target | None:
        """What `rule` aims at; None if nothing is to be cut."""
        if isinstance(rule, FixedOrder):
            limit = rule.order
            wanted = 2 * limit if self.original.real_output else limit
            if wanted >= self.hsv.size:
                return None
        else:
            limit = wanted = rule.choose(self.hsv)
        order = min(wanted, self.check_rank())
        return Target(order, limit, wanted) if order < self.hsv.size else None

    def available(self, order: int) -> int:
        """`order`: an upper limit in any case."""
        return order

    def budget_values(self) -> HostArray:
        """Every other Hankel singular value where the output is real: r stored states keep 2r."""
        return self.hsv[::2] if self.original.real_output else self.hsv

    def _match_dc(self, rule: OrderRule, *, invertible: bool) -> Reduction:
        return _DCMatchingCut(self).to(rule, invertible=invertible)


class _DiagonalCut:
    """Truncates a balanced diagonal system and makes the result diagonal again."""

    method = "balanced truncation"

    def __init__(self, balanced: BalancedDiagonal) -> None:
        self._balanced = balanced
        self._host = balanced.host
        self._state: HostArray = np.zeros((0, 0))

    def to(self, rule: OrderRule, *, invertible: bool = False) -> Reduction:
        """Cut to the order that `rule` chooses; where `invertible` to poles other than 0."""
        host, balanced = self._host, self._balanced
        stored = host.order
        if stored == 0:
            return balanced.unchanged()
        target = balanced.target(rule)
        if target is None:
            return balanced.unchanged()
        real_order = self._largest_fit(target.order, target.limit)
        real_order, slot_map = self._safest_map(real_order, target.limit, invertible)
        if slot_map.order >= stored:
            return balanced.unchanged()
        balanced.check_bound(rule, real_order)
        W, T = balanced.projections(real_order)
        B, C, D = self._ports(real_order, W, T)
        reduced, slot_map = stored_system(host, slot_map, B, C, D)
        return balanced.report(reduced, real_order, target.wanted, (W, T), slot_map, self.method)

    def _dense_state(self, real_order: int) -> HostArray:
        """Wᴴ A T of this order: a leading block of that of any larger one."""
        if real_order > len(self._state):
            W, T = self._balanced.projections(real_order)
            self._state = adjoint(W) @ self._host.applied(T)
        return self._state[:real_order, :real_order]

    def _pattern(self, real_order: int) -> HostArray:
        """A matrix with as many real poles as the dense system of this order."""
        return self._dense_state(real_order)

    def _ports(
        self, real_order: int, W: HostArray, T: HostArray
    ) -> tuple[HostArray, HostArray, HostArray]:
        """B, C and D of the dense system of this order."""
        B, C = self._host.ports()
        return adjoint(W) @ B, C @ T, self._host.D

    def _largest_fit(self, real_order: int, limit: int) -> int:
        """Largest order, at most `real_order`, whose poles fit `limit` stored states.

        Real poles come and go with the order, so every one is tried; order `limit` always fits. One
        eigenvalue problem per try: few, unless most poles are real.
        """
        while real_order > limit:
            poles = np.linalg.eigvals(self._pattern(real_order))
            if slots_needed(poles, real=self._host.real_output) <= limit:
                break
            real_order -= 1
        return real_order

    def _safest_map(self, real_order: int, limit: int, invertible: bool) -> tuple[int, SlotMap]:
        """The order, at most `real_order`, whose bound and eigenvector rounding are least together.

        Rounding is estimated as eps · condition · 2 Σσ. The given order is taken at once if that is
        below a tenth of its truncation bound, or of the square root of eps.
        """
        bounds = tail_bounds(self._balanced.hsv)
        best: tuple[float, int, SlotMap] | None = None
        for candidate in range(real_order, max(real_order - _NEARBY_ORDERS, 1) - 1, -1):
            slot_map = diagonalise(self._dense_state(candidate), real=self._host.real_output)
            if (
                slot_map is None
                or slot_map.is_pair.size > limit
                or not self._storable(slot_map, invertible)
            ):
                continue
            total = float(bounds[candidate] + _EPS * slot_map.condition * bounds[0])
            if best is None or total < best[0]:
                best = total, candidate, slot_map
            if eigenvectors_are_safe(slot_map, bounds, candidate):
                break
        if best is None:
            raise NoConvergenceError(
                f"truncated to order {real_order}, or to one of the {_NEARBY_ORDERS} orders below, "
                "the system has no stable diagonal form; expected distinct poles. "
                "Try another order."
            )
        return best[1], best[2]

    def _storable(self, slot_map: SlotMap, invertible: bool) -> bool:
        """Whether the poles are stable; within a horizon they need not be."""
        if self._balanced.horizon is not None:
            return True
        poles = slot_map.eigenvalues
        if not np.all(np.isfinite(poles)) or (invertible and not are_invertible(poles)):
            return False
        return bool(np.all(self._host.time.inside(poles)))


class _DCMatchingCut(_DiagonalCut):
    """The same with the dense system that keeps the DC gain; each order has one of its own."""

    method = "DC matching"

    def _matched(self, real_order: int) -> ShiftedSystem:
        return self._balanced.matched(real_order)

    def _dense_state(self, real_order: int) -> HostArray:
        return self._matched(real_order).A

    def _pattern(self, real_order: int) -> HostArray:
        """(A - s)⁻¹ by the inverse of S, unless it overflows."""
        M = self._balanced.followers(real_order).inverse
        return M if np.all(np.isfinite(M)) else self._dense_state(real_order)

    def _ports(
        self, real_order: int, W: HostArray, T: HostArray
    ) -> tuple[HostArray, HostArray, HostArray]:
        matched = self._matched(real_order)
        return matched.B, matched.C, matched.D.copy()


def eigenvectors_are_safe(slot_map: SlotMap, bounds: HostArray, order: int) -> HostArray:
    """Whether their rounding, eps · condition · 2 Σσ, is below a share of the bound, or of sqrt(eps)."""
    rounding = _EPS * slot_map.condition * bounds[..., 0]
    limit = np.maximum(bounds[..., order], _EPS**0.5 * bounds[..., 0])
    return np.asarray(rounding <= _DIAGONALISATION_FACTOR * limit)


def stored_system(
    host: DiagonalStateSpace, slot_map: SlotMap, B: HostArray, C: HostArray, D: HostArray
) -> tuple[DiagonalStateSpace, SlotMap]:
    """The diagonal form of a dense system that `host` was cut to, and the map to its stored states.

    The size of a stored state is free, see `usual_sizes`. So is its phase, of which eigenvectors of a
    rounded matrix say nothing: the leading entry of b is real and positive.
    """
    B, C = slot_map.input_matrix(B), slot_map.output_matrix(C)
    scale = usual_sizes(host, slot_map.eigenvalues, B, C) / _leading_phase(B)
    reduced = host.replace(
        eigenvalues=slot_map.eigenvalues,
        B=B * scale[..., :, None],
        C=C / scale[..., None, :],
        D=D,
    )
    return reduced, slot_map.rescaled(scale)


def usual_sizes(
    host: DiagonalStateSpace, eigenvalues: HostArray, B: HostArray, C: HostArray
) -> HostArray:
    """By how much to multiply each new state, so that output weights are as large as usual in `host`.

    ‖b‖/sqrt(1-|λ|²) over ‖c‖ becomes one number for all new states, and the median of ‖c‖ that of `host`.
    So input weights take what fewer states have to carry. 1 where this is not defined.
    """
    if 0 in eigenvalues.shape:
        return np.ones(eigenvalues.shape)
    b, c, usual = _norms(B, -1), _norms(C, -2), _norms(host.C, -2)
    decay = np.abs(host.time.decay(host.time.distance(eigenvalues)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        carried = np.sqrt(b) * np.sqrt(c) / decay**0.25
        scale = _median(carried) / _median(usual) * (np.sqrt(c) / np.sqrt(b) * decay**0.25)
    return np.where(np.isfinite(scale) & (scale > 0.0), scale, 1.0)


def _norms(matrix: HostArray, axis: int) -> HostArray:
    """Those of rows or columns; in units of the largest entries squares neither over- nor underflow."""
    largest = np.abs(matrix).max(axis=axis, keepdims=True, initial=0.0)
    units = np.where(largest > 0.0, largest, 1.0)
    return np.asarray(np.linalg.norm(matrix / units, axis=axis) * np.squeeze(units, axis))


def _median(values: HostArray) -> HostArray:
    """Of the last axis, over what is finite and above 0; nan where nothing is."""
    usable = np.isfinite(values) & (values > 0.0)
    count = usable.sum(axis=-1, keepdims=True)
    ordered = np.sort(np.where(usable, values, np.inf), axis=-1)
    low, high = (
        np.take_along_axis(ordered, np.maximum(k, 0), axis=-1)
        for k in ((count - 1) // 2, count // 2)
    )
    return np.where(count > 0, 0.5 * low + 0.5 * high, np.nan)


def _leading_phase(B: HostArray) -> HostArray:
    """Phase of the first entry of each row that is at least half the largest; 1 for rows of zeros.

    Rounding then decides only where an entry is half the largest, and not where symmetry makes two equal.
    """
    if B.shape[-1] == 0:
        return np.ones(B.shape[:-1])
    sizes = np.abs(B)
    first = np.argmax(2.0 * sizes >= sizes.max(axis=-1, keepdims=True), axis=-1)
    leading = np.take_along_axis(B, first[..., None], axis=-1)[..., 0]
    leading = np.where(leading == 0.0, 1.0, leading)
    return np.asarray(leading / np.abs(leading))  # exactly 1 or -1 of a real one
