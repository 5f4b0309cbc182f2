"""Cut one balanced system: dense to dense, diagonal to diagonal.

A dense system is truncated to (Wᴴ A T, Wᴴ B, C T). A diagonal one must become diagonal again. Where
it outputs a real part, the real system of order 2n behind it is balanced, truncated and
diagonalised; a conjugate pair or a real pole then takes one stored state, so that r stored states
hold a real order between r and 2r: the largest is kept that fits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError, OrderError, UnstableSystemError
from ssmreduce.gramians.emphasis import Emphasis
from ssmreduce.hankel import balance_factors, error_bounds, state_count
from ssmreduce.reduction.order import ErrorBound, FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.real_form import apply_real_state, real_input, real_output
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise, slots_needed
from ssmreduce.time_domain import Discrete

_DIAGONALISATION_FACTOR = 0.1
"""Eigenvectors are safe while their rounding stays below this share of the truncation bound."""

_NEARBY_ORDERS = 6
"""How many lower orders are tried where the eigenvectors of the truncated system are not safe."""


class BalancedSystem(ABC):
    """One system (no batch axes) with its balanced factors."""

    def __init__(
        self, original: System, horizon: int | None, emphasis: Emphasis | None = None
    ) -> None:
        self.original = original
        self.horizon = horizon
        self.emphasis = emphasis
        self.factors = balance_factors(original, horizon, emphasis)
        self._widest: tuple[HostArray, HostArray] = np.zeros((0, 0)), np.zeros((0, 0))

    @abstractmethod
    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses."""

    def projections(self, order: int) -> tuple[HostArray, HostArray]:
        """W and T of this order: the leading columns of those of the largest order so far."""
        if order > self._widest[0].shape[1]:
            self._widest = self.factors.projections(order)
        return self._widest[0][:, :order], self._widest[1][:, :order]

    def result(
        self,
        reduced: System,
        real_order: int,
        wanted_order: int,
        slot_map: SlotMap | None = None,
    ) -> Reduction:
        """Report `reduced`, which was truncated to `real_order`."""
        left, right = self.projections(real_order)
        return self._report(reduced, real_order, wanted_order, left, right, slot_map)

    def unchanged(self) -> Reduction:
        """Report that nothing was cut."""
        order = state_count(self.original)
        return self._report(self.original, order, order, None, None, None)

    def check_rank(self) -> int:
        """Return the numerical rank; raise `OrderError` if it is zero."""
        if self.factors.rank == 0:
            raise OrderError(
                "all Hankel singular values are zero: no state is both reachable and observable; "
                "expected a system that responds to its input. Look at `B` and `C`."
            )
        return self.factors.rank

    def _report(
        self,
        reduced: System,
        real_order: int,
        wanted_order: int,
        left: HostArray | None,
        right: HostArray | None,
        slot_map: SlotMap | None,
    ) -> Reduction:
        hsv = self.factors.hsv
        bounded = self.horizon is None and self.emphasis is None
        return Reduction(
            original=self.original,
            system=reduced,
            order=reduced.order,
            real_order=real_order,
            wanted_order=wanted_order,
            rank=self.factors.rank,
            hsv=hsv,
            error_bound=float(error_bounds(hsv)[real_order]) if bounded else None,
            left=left,
            right=right,
            slot_map=slot_map,
            horizon=self.horizon,
        )


class BalancedDense(BalancedSystem):
    """A `StateSpace`: exactly the order asked for, or an error."""

    def __init__(
        self, original: StateSpace, horizon: int | None, emphasis: Emphasis | None = None
    ) -> None:
        super().__init__(original, horizon, emphasis)
        self._host = original.to_host()

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses.

        Raises
        ------
        OrderError
            If a fixed order is above the numerical rank, or the rank is zero. Rules stop at the rank.
        UnstableSystemError
            If a band or two weights make it unstable.
        """
        host, rank = self._host, self.check_rank()
        wanted = rule.choose(self.factors.hsv)
        if isinstance(rule, FixedOrder) and wanted > rank:
            raise OrderError(
                f"`order` is {wanted} but the system has numerical rank {rank} ({host.order} "
                f"states); expected at most {rank}. Ask for that, or use an order rule such as "
                "HankelMass(0.99)."
            )
        order = min(wanted, rank)
        if order == host.order:
            return self.unchanged()
        if isinstance(rule, ErrorBound):
            rule.check(self.factors.hsv, float(error_bounds(self.factors.hsv)[order]))
        W, T = self.projections(order)
        reduced = StateSpace(
            adjoint(W) @ host.A @ T,
            adjoint(W) @ host.B,
            host.C @ T,
            host.D,
            time=host.time,
            read_after_update=host.read_after_update,
        )
        if self.emphasis is not None and not self.emphasis.keeps_stability:
            _check_still_stable(reduced)
        return self.result(reduced, order, wanted)


class BalancedDiagonal(BalancedSystem):
    """A `DiagonalStateSpace`: stored states are an upper limit, the result is diagonal again."""

    def __init__(
        self, original: DiagonalStateSpace, horizon: int | None, emphasis: Emphasis | None = None
    ) -> None:
        super().__init__(original, horizon, emphasis)
        self._host = original.to_host()
        self._state: HostArray = np.zeros((0, 0))

    def truncate(self, rule: OrderRule) -> Reduction:
        """Cut to the order that `rule` chooses, or the nearest below that fits and is safe.

        Raises
        ------
        OrderError
            If all Hankel singular values are zero.
        NoConvergenceError
            If no order nearby has a stable diagonal form.
        """
        host = self._host
        if isinstance(rule, FixedOrder):
            limit = rule.order
            if limit >= host.order:
                return self.unchanged()
            wanted = 2 * limit if host.real_output else limit
        else:
            limit = wanted = rule.choose(self.factors.hsv)
        real_order = self._largest_fit(min(wanted, self.check_rank()), limit)
        real_order, slot_map = self._safest_map(real_order, limit)
        if slot_map.order >= host.order:
            return self.unchanged()
        if isinstance(rule, ErrorBound):
            rule.check(self.factors.hsv, float(error_bounds(self.factors.hsv)[real_order]))
        W, T = self.projections(real_order)
        full_B, full_C = host.B, host.C
        if host.real_output:
            full_B, full_C = real_input(host.B), real_output(host.C)
        B, C = adjoint(W) @ full_B, full_C @ T
        slot_map = _like_original(slot_map, host, B, C)
        reduced = DiagonalStateSpace(
            slot_map.eigenvalues,
            slot_map.input_matrix(B),
            slot_map.output_matrix(C),
            host.D,
            time=host.time,
            real_output=host.real_output,
            read_after_update=host.read_after_update,
        )
        return self.result(reduced, real_order, wanted, slot_map)

    def _truncated_state(self, real_order: int) -> HostArray:
        """Wᴴ A T of this order: a leading block of that of any larger order."""
        if real_order > len(self._state):
            W, T = self.projections(real_order)
            eigenvalues = self._host.eigenvalues
            if self._host.real_output:
                moved = apply_real_state(eigenvalues, T)
            else:
                moved = eigenvalues[:, None] * T
            self._state = adjoint(W) @ moved
        return self._state[:real_order, :real_order]

    def _largest_fit(self, real_order: int, limit: int) -> int:
        """Largest order, at most `real_order`, whose poles fit `limit` stored states.

        Real poles come and go with the order, so every one is tried; order `limit` always fits. One
        eigenvalue problem per try: few, unless most poles are real.
        """
        while real_order > limit:
            poles = np.linalg.eigvals(self._truncated_state(real_order))
            if slots_needed(poles, real=self._host.real_output) <= limit:
                break
            real_order -= 1
        return real_order

    def _safest_map(self, real_order: int, limit: int) -> tuple[int, SlotMap]:
        """The order, at most `real_order`, whose bound and eigenvector rounding are least together.

        Rounding is estimated as eps · condition · 2 Σσ. The given order is taken at once if that is
        below a tenth of its truncation bound, or of the square root of eps.
        """
        bounds = error_bounds(self.factors.hsv)
        eps = float(np.finfo(np.float64).eps)
        best: tuple[float, int, SlotMap] | None = None
        for candidate in range(real_order, max(real_order - _NEARBY_ORDERS, 1) - 1, -1):
            slot_map = diagonalise(self._truncated_state(candidate), real=self._host.real_output)
            if slot_map is None or slot_map.order > limit or not self._storable(slot_map):
                continue
            rounding = eps * slot_map.condition * bounds[0]
            total = float(bounds[candidate] + rounding)
            if best is None or total < best[0]:
                best = total, candidate, slot_map
            if rounding <= _DIAGONALISATION_FACTOR * max(bounds[candidate], eps**0.5 * bounds[0]):
                break
        if best is None:
            raise NoConvergenceError(
                f"truncated to order {real_order}, or to one of the {_NEARBY_ORDERS} orders below, "
                "the system has no stable diagonal form; expected distinct poles. "
                "Try another order."
            )
        return best[1], best[2]

    def _storable(self, slot_map: SlotMap) -> bool:
        """Whether the poles are stable; within a horizon they need not be."""
        if self.horizon is not None:
            return True
        if isinstance(self._host.time, Discrete):
            return bool(np.all(np.abs(slot_map.eigenvalues) < 1.0))
        return bool(np.all(slot_map.eigenvalues.real < 0.0))


def _check_still_stable(reduced: StateSpace) -> None:
    """Refuse an unstable result: neither a band nor two weights promise a stable one."""
    poles = reduced.poles()
    discrete = isinstance(reduced.time, Discrete)
    worst = poles[np.argmax(np.abs(poles) if discrete else poles.real)]
    if abs(worst) >= 1.0 if discrete else worst.real >= 0.0:
        kind = f"|λ| = {abs(worst):.6g}" if discrete else f"Re λ = {worst.real:.6g}"
        raise UnstableSystemError(
            f"truncated to `order` {reduced.order} the system has a pole with {kind}; expected a stable "
            "one, which neither a band nor two weights guarantee. Try an order next to it, or one "
            "weight only."
        )


def _like_original(
    slot_map: SlotMap, host: DiagonalStateSpace, B: HostArray, C: HostArray
) -> SlotMap:
    """Scale stored states so that input and output weights share their product as before.

    The size of a stored state is free. It is chosen so that ‖b‖/sqrt(1-|λ|²) over ‖c‖ is the median
    of that ratio in the original: gradients of both then keep their proportions.
    """
    before = _input_share(host.eigenvalues, host.B, host.C, host)
    after = _input_share(
        slot_map.eigenvalues, slot_map.input_matrix(B), slot_map.output_matrix(C), host
    )
    usable = np.isfinite(before) & (before > 0)
    if not np.any(usable):
        return slot_map
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.median(before[usable]) / after)
    return slot_map.rescaled(np.where(np.isfinite(scale) & (scale > 0), scale, 1.0))


def _input_share(
    eigenvalues: HostArray, B: HostArray, C: HostArray, host: DiagonalStateSpace
) -> HostArray:
    if isinstance(host.time, Discrete):
        decay = np.abs(1.0 - np.abs(eigenvalues) ** 2)
    else:
        decay = np.abs(2.0 * eigenvalues.real)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.linalg.norm(B, axis=-1) / np.linalg.norm(C, axis=-2) / np.sqrt(decay)
    return np.asarray(ratio)
