"""Balanced truncation: balance once, cut as often as you like.

A dense system is truncated to (Wᴴ A T, Wᴴ B, C T). A diagonal one must become diagonal again. Where
it outputs a real part, the real system of order 2n behind it is balanced, truncated and
diagonalised; a conjugate pair or a real pole then takes one stored state, so that r stored states
hold a real order between r and 2r: the largest is kept that fits.

References: Moore, IEEE Trans. Automatic Control 26 (1981); Al-Saggaf and Franklin, IEEE Trans.
Automatic Control 32 (1987), for discrete time.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError, OrderError
from ssmreduce.hankel import BalancedFactors, balance_factors, error_bounds, state_count
from ssmreduce.reduction.order import FixedOrder, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction, System
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.real_form import apply_real_state, real_input, real_output
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise, slots_needed
from ssmreduce.time_domain import Discrete

_DIAGONALISATION_FACTOR = 0.1
"""Eigenvectors are safe while their rounding stays below this share of the truncation bound."""

_NEARBY_ORDERS = 6
"""How many lower orders are tried where the eigenvectors of the truncated system are not safe."""


def balance(system: System, *, horizon: int | None = None) -> Balancing:
    """Factor the Gramians and decompose them, once for any number of cuts.

    P = Z Zᴴ, Q = Y Yᴴ, Yᴴ Z = U Σ Vᴴ; order r keeps T = Z V_r Σ_r^(-1/2), W = Y U_r Σ_r^(-1/2).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Sequence length L that the system will see (discrete time): balances what it does within
        L steps, also with poles on or outside the unit circle. No error bound exists then.

    Returns
    -------
    Balancing
        With ``hsv``, ``rank``, ``bound(order)`` and ``truncate(order)``.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.

    Notes
    -----
    Cost O(n³), n being twice the stored order where the output is real.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, balance
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> balancing = balance(system)
    >>> balancing.bound(1) > balancing.bound(2) > 0.0
    True
    >>> balancing.truncate(2).order
    2
    """
    return Balancing(system, horizon)


def balanced_truncation(
    system: System,
    order: int | OrderRule,
    *,
    horizon: int | None = None,
    common_order: bool = False,
) -> Reduction:
    """Reduce a system by balanced truncation, with ‖G - G_r‖∞ ≤ 2 Σ_{i>r} σ_i.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    order : int or OrderRule
        For a `StateSpace` exactly this many states. For diagonal systems an int (or `FixedOrder`)
        is an upper limit on the *stored* states; own order or more returns the system unchanged.
        Other rules choose the order of the (real) balanced system, and stored states follow.
    horizon : int, optional
        See `balance`.
    common_order : bool
        For a batch: give all systems the largest of their orders.

    Returns
    -------
    Reduction
        The reduced system is of the same kind, and diagonal if it was.

    Raises
    ------
    OrderError
        If the order is not positive, or above the numerical rank of a dense system, or if all
        Hankel singular values are zero.
    UnreachableToleranceError
        If an `ErrorBound` lies below the accuracy of the arithmetic.
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.

    References
    ----------
    Antoulas, Approximation of Large-Scale Dynamical Systems, SIAM 2005, chapter 7.

    Examples
    --------
    >>> from ssmreduce import Discrete, ErrorBound, StateSpace, balanced_truncation
    >>> system = StateSpace([[0.9, 0.0], [0.0, 0.1]], [[1.0], [0.1]], [[1.0, 0.1]], time=Discrete())
    >>> reduction = balanced_truncation(system, ErrorBound(relative=0.1))
    >>> reduction.order, reduction.verify() <= reduction.error_bound
    (1, True)
    """
    return balance(system, horizon=horizon).truncate(order, common_order=common_order)


class Balancing:
    """One balanced system (or batch), ready for any number of cuts.

    Attributes
    ----------
    system : StateSpace or DiagonalStateSpace
        What was balanced.
    hsv : (..., n) array
        Hankel singular values, descending; 2n of them where a diagonal system outputs a real part.
    rank : int or int array
        How many of them exceed 4 n eps σ₁.
    horizon : int or None
        Sequence length that was balanced for.
    """

    def __init__(self, system: System, horizon: int | None = None) -> None:
        self.system = system
        self.horizon = horizon
        if system.batch_shape:
            self._parts = [
                Balancing(system[index], horizon) for index in np.ndindex(system.batch_shape)
            ]
            self.hsv = np.stack([part.hsv for part in self._parts]).reshape(*system.batch_shape, -1)
            self.rank: int | HostArray = self._stacked([part.rank for part in self._parts])
        else:
            self._parts = []
            self._host = system.to_host()
            self._factors: BalancedFactors = balance_factors(self._host, horizon)
            self._balanced_state: HostArray = np.zeros((0, 0))
            self.hsv = self._factors.hsv
            self.rank = self._factors.rank

    def bound(self, order: int | OrderRule) -> float | HostArray | None:
        """Error bound of ``truncate(order)``, in the same units; None with a horizon."""
        return self.truncate(order).error_bound

    def truncate(self, order: int | OrderRule, *, common_order: bool = False) -> Reduction:
        """Cut to `order`; see `balanced_truncation` for what it means and what can be raised."""
        rule = as_rule(order)
        if self._parts:
            return self._truncate_batch(rule, common_order)
        if isinstance(self._host, StateSpace):
            return self._truncate_dense(self._host, rule)
        return self._truncate_diagonal(self._host, rule)

    def _truncate_dense(self, host: StateSpace, rule: OrderRule) -> Reduction:
        order = rule.choose(self.hsv)
        if order > self._factors.rank:
            raise OrderError(
                f"`order` is {order} but the system has numerical rank {self.rank} "
                f"({host.order} states); expected at most {self.rank}. "
                "Ask for that, or use an order rule such as HankelMass(0.99)."
            )
        if order == host.order:
            return self._unchanged()
        W, T = self._factors.projections(order)
        reduced = StateSpace(
            adjoint(W) @ host.A @ T,
            adjoint(W) @ host.B,
            host.C @ T,
            host.D,
            time=host.time,
            read_after_update=host.read_after_update,
        )
        return self._result(reduced, order, order, W, T, None)

    def _truncate_diagonal(self, host: DiagonalStateSpace, rule: OrderRule) -> Reduction:
        if isinstance(rule, FixedOrder):
            limit = rule.order
            start = 2 * limit if host.real_output else limit
        else:
            start = rule.choose(self.hsv)
            limit = start
        if limit >= host.order and isinstance(rule, FixedOrder):
            return self._unchanged()
        rank = self._factors.rank
        if rank == 0:
            raise OrderError(
                "all Hankel singular values are zero: no state is both reachable and observable; "
                "expected a system that responds to its input. Look at `B` and `C`."
            )
        real_order = self._largest_fit(min(start, rank), limit)
        real_order, slot_map = self._safest_map(real_order, limit)
        if slot_map.order >= host.order:
            return self._unchanged()
        W, T = self._factors.projections(real_order)
        B, C = (real_input(host.B), real_output(host.C)) if host.real_output else (host.B, host.C)
        slot_map = _like_original(slot_map, host, adjoint(W) @ B, C @ T)
        reduced = DiagonalStateSpace(
            slot_map.eigenvalues,
            slot_map.input_matrix(adjoint(W) @ B),
            slot_map.output_matrix(C @ T),
            host.D,
            time=host.time,
            real_output=host.real_output,
            read_after_update=host.read_after_update,
        )
        return self._result(reduced, slot_map.order, real_order, W, T, slot_map)

    def _truncated_state(self, real_order: int) -> HostArray:
        """Wᴴ A T of this order: a leading block of that of any larger order."""
        if real_order > len(self._balanced_state):
            W, T = self._factors.projections(real_order)
            eigenvalues = self._host.eigenvalues
            if self._host.real_output:
                self._balanced_state = adjoint(W) @ apply_real_state(eigenvalues, T)
            else:
                self._balanced_state = adjoint(W) @ (eigenvalues[:, None] * T)
        return self._balanced_state[:real_order, :real_order]

    def _largest_fit(self, real_order: int, limit: int) -> int:
        """Largest order found whose poles fit `limit` stored states, from `real_order` downward.

        Removing one real state frees at most one stored state as a rule, so the search goes down
        by the excess; real order `limit` always fits.
        """
        while real_order > limit:
            poles = np.linalg.eigvals(self._truncated_state(real_order))
            excess = slots_needed(poles, real=self._host.real_output) - limit
            if excess <= 0:
                break
            real_order = max(real_order - excess, limit)
        return real_order

    def _safest_map(self, real_order: int, limit: int) -> tuple[int, SlotMap]:
        """The order, at most `real_order`, whose bound and eigenvector rounding are least together.

        Rounding is estimated as eps · condition · 2 Σσ. The given order is taken at once if that is
        below a tenth of its truncation bound, or of the square root of eps.
        """
        bounds = error_bounds(self.hsv)
        eps = np.finfo(np.float64).eps
        best: tuple[float, int, SlotMap] | None = None
        for candidate in range(real_order, max(real_order - _NEARBY_ORDERS, 1) - 1, -1):
            slot_map = diagonalise(self._truncated_state(candidate))
            if slot_map is None or slot_map.order > limit or not self._storable(slot_map):
                continue
            rounding = eps * slot_map.condition * bounds[0]
            total = bounds[candidate] + rounding
            if best is None or total < best[0]:
                best = total, candidate, slot_map
            floor = max(bounds[candidate], np.sqrt(eps) * bounds[0])
            if rounding <= _DIAGONALISATION_FACTOR * floor:
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
        if isinstance(self.system.time, Discrete):
            return bool(np.all(np.abs(slot_map.eigenvalues) < 1.0))
        return bool(np.all(slot_map.eigenvalues.real < 0.0))

    def _truncate_batch(self, rule: OrderRule, common_order: bool) -> Reduction:
        parts = [part.truncate(rule) for part in self._parts]
        if common_order:
            largest = max(int(part.order) for part in parts)
            parts = [part.truncate(largest) for part in self._parts]
        bounds = [part.error_bound for part in parts]
        system, mask = _stack([part.system for part in parts], self.system.batch_shape)
        return Reduction(
            original=self.system,
            system=system,
            order=self._stacked([part.order for part in parts]),
            real_order=self._stacked([part.real_order for part in parts]),
            rank=self.rank,
            hsv=self.hsv,
            error_bound=None if bounds[0] is None else self._stacked(bounds),
            mask=mask,
            horizon=self.horizon,
            parts=tuple(parts),
        )

    def _stacked(self, values: list[object]) -> HostArray:
        return np.reshape(np.asarray(values), self.system.batch_shape)

    def _unchanged(self) -> Reduction:
        order = self.system.order
        return self._result(self.system, order, state_count(self.system), None, None, None)

    def _result(
        self,
        reduced: System,
        order: int,
        real_order: int,
        left: HostArray | None,
        right: HostArray | None,
        slot_map: SlotMap | None,
    ) -> Reduction:
        bound = None if self.horizon is not None else float(error_bounds(self.hsv)[real_order])
        return Reduction(
            original=self.system,
            system=reduced,
            order=order,
            real_order=real_order,
            rank=self.rank,
            hsv=self.hsv,
            error_bound=bound,
            left=left,
            right=right,
            slot_map=slot_map,
            horizon=self.horizon,
        )


def _like_original(
    slot_map: SlotMap, host: DiagonalStateSpace, B: HostArray, C: HostArray
) -> SlotMap:
    """Scale stored states so that input and output weights share their product as before.

    The size of a stored state is free. It is chosen so that ‖b‖/sqrt(1-|λ|²) over ‖c‖ is the median
    of that ratio in the original: gradients of both then keep their proportions.
    """
    target = _input_share(host.eigenvalues, host.B, host.C, host)
    found = _input_share(
        slot_map.eigenvalues, slot_map.input_matrix(B), slot_map.output_matrix(C), host
    )
    usable = np.isfinite(target) & (target > 0)
    if not np.any(usable):
        return slot_map
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(np.median(target[usable]) / found)
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


def _stack(systems: list[System], batch_shape: tuple[int, ...]) -> tuple[System, HostArray]:
    """Stack systems, padded with states that neither respond nor are seen; and say which are not."""
    order = max(system.order for system in systems)
    mask = np.array([np.arange(order) < system.order for system in systems])
    hosts = [system.to_host() for system in systems]
    resting = 0.0 if isinstance(hosts[0].time, Discrete) else -1.0

    def stacked(arrays: list[HostArray]) -> HostArray:
        return np.stack(arrays).reshape(*batch_shape, *arrays[0].shape)

    def lengthened(array: HostArray, axis: int, fill: float = 0.0) -> HostArray:
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, order - array.shape[axis])
        return np.pad(array, widths, constant_values=fill)

    B = stacked([lengthened(host.B, -2) for host in hosts])
    C = stacked([lengthened(host.C, -1) for host in hosts])
    D = stacked([host.D for host in hosts])
    first = hosts[0]
    if isinstance(first, DiagonalStateSpace):
        eigenvalues = [
            lengthened(host.eigenvalues, -1, resting)
            for host in hosts
            if isinstance(host, DiagonalStateSpace)
        ]
        return DiagonalStateSpace(
            stacked(eigenvalues),
            B,
            C,
            D,
            time=first.time,
            real_output=first.real_output,
            read_after_update=first.read_after_update,
        ), mask.reshape(*batch_shape, order)
    matrices = [
        lengthened(lengthened(host.A, -1), -2) + resting * np.diag(~kept)
        for host, kept in zip(hosts, mask, strict=True)
        if isinstance(host, StateSpace)
    ]
    return StateSpace(
        stacked(matrices), B, C, D, time=first.time, read_after_update=first.read_after_update
    ), mask.reshape(*batch_shape, order)
