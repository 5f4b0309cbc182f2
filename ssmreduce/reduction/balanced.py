"""Balanced truncation: balance once, cut as often as you like, one system or a batch.

References: Moore, IEEE Trans. Automatic Control 26 (1981); Al-Saggaf and Franklin, IEEE Trans.
Automatic Control 32 (1987), for discrete time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.gramians.emphasis import Emphasis
from ssmreduce.reduction.order import FixedOrder, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.single import BalancedDense, BalancedDiagonal, BalancedSystem
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


def balance(
    system: System,
    *,
    horizon: int | None = None,
    band: tuple[float, float] | None = None,
    input_weight: System | None = None,
    output_weight: System | None = None,
) -> Balancing:
    """Factor the Gramians and decompose them, once for any number of cuts.

    P = Z Zᴴ, Q = Y Yᴴ, Yᴴ Z = U Σ Vᴴ; order r keeps T = Z V_r Σ_r^(-1/2), W = Y U_r Σ_r^(-1/2).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Sequence length L that the system will see (discrete time): balances what it does within
        L steps, also with poles on or outside the unit circle. No error bound exists then.
    band : tuple of two floats, optional
        Lowest and highest frequency that count, in rad/s or radians per sample (see
        `frequency_limited_factors`). There is no error bound, and the result may be unstable.
    input_weight, output_weight : StateSpace or DiagonalStateSpace, optional
        Stable filters W_i and W_o before the input and after the output, whose gain says how much
        each frequency counts (see `weighted_factors`). There is no error bound; with both weights the
        result may be unstable. Not together with `band` or `horizon`.

    Returns
    -------
    Balancing
        With ``hsv``, ``rank``, ``bound(order)`` and ``truncate(order)``.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon; from `truncate`
        if a dense system that was balanced in a band, or with two weights, became unstable.
    OrderError
        If two of a horizon, a band and weights are given, or the band is none.

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
    emphasis = Emphasis.chosen(horizon, band, input_weight, output_weight)
    return Balancing(system, horizon, emphasis)


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
        For a batch: give all systems the largest of their orders, as far as the rank of each
        and its pole pattern allow.

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
    emphasis : Emphasis or None
        Band or weights that were balanced for.
    """

    def __init__(
        self, system: System, horizon: int | None = None, emphasis: Emphasis | None = None
    ) -> None:
        check_system(system)
        self.system = system
        self.horizon = horizon
        self.emphasis = emphasis
        batch = system.batch_shape
        singles = [system[index] for index in np.ndindex(batch)] if batch else [system]
        self._parts = [_balanced(single, horizon, emphasis) for single in singles]
        self.hsv: HostArray = self._shaped([part.factors.hsv for part in self._parts])
        self.rank: int | HostArray = self._shaped([part.factors.rank for part in self._parts])

    def bound(self, order: int | OrderRule) -> float | HostArray | None:
        """Error bound of ``truncate(order)``, in the same units; None where no theorem gives one."""
        return self.truncate(order).error_bound

    def truncate(self, order: int | OrderRule, *, common_order: bool = False) -> Reduction:
        """Cut to `order`; see `balanced_truncation` for what it means and what can be raised."""
        rule = as_rule(order)
        parts = [part.truncate(rule) for part in self._parts]
        if not self.system.batch_shape:
            return parts[0]
        if common_order:
            largest = max(int(part.order) for part in parts)
            parts = [self._cut_to(part, largest) for part in self._parts]
        if all(part.left is None for part in parts):
            system, mask = self.system, np.ones((*self.system.batch_shape, self.system.order), bool)
        else:
            system, mask = _stack([part.system for part in parts], self.system.batch_shape)
        bounds = [part.error_bound for part in parts]
        return Reduction(
            original=self.system,
            system=system,
            order=self._shaped([part.order for part in parts]),
            real_order=self._shaped([part.real_order for part in parts]),
            wanted_order=self._shaped([part.wanted_order for part in parts]),
            rank=self.rank,
            hsv=self.hsv,
            error_bound=None if bounds[0] is None else self._shaped(bounds),
            mask=mask,
            horizon=self.horizon,
            parts=tuple(parts),
        )

    @staticmethod
    def _cut_to(part: BalancedSystem, order: int) -> Reduction:
        """Cut to a common order; a dense system of lower rank to that."""
        if isinstance(part, BalancedDense):
            order = min(order, part.check_rank())
        return part.truncate(FixedOrder(order))

    def _shaped(self, values: Sequence[Any]) -> Any:
        """One value per system in the shape of the batch; the value itself without one."""
        if not self.system.batch_shape:
            return values[0]
        stacked = np.asarray(values)
        return stacked.reshape(*self.system.batch_shape, *stacked.shape[1:])


def _balanced(system: System, horizon: int | None, emphasis: Emphasis | None) -> BalancedSystem:
    if isinstance(system, StateSpace):
        return BalancedDense(system, horizon, emphasis)
    return BalancedDiagonal(system, horizon, emphasis)


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
