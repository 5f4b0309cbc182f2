"""Order rules: how many states to keep, decided from the Hankel singular values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ArgumentError, OrderError, UnreachableToleranceError
from ssmreduce.hankel import error_bounds, rank_tolerance


class OrderRule(ABC):
    """Chooses an order from Hankel singular values. Subclasses are small frozen objects.

    Examples
    --------
    A rule of your own, that cuts at the largest gap between two neighbouring values:

    >>> import numpy as np
    >>> from ssmreduce import OrderRule
    >>> class LargestGap(OrderRule):
    ...     def choose(self, hsv):
    ...         hsv = np.asarray(hsv)
    ...         return int(np.argmin(hsv[1:] / hsv[:-1])) + 1
    >>> LargestGap().choose([4.0, 3.0, 0.01, 0.001])
    2
    """

    @abstractmethod
    def choose(self, hsv: HostArray) -> int:
        """Return the order of the (real) balanced system.

        Parameters
        ----------
        hsv : (n,) array
            Hankel singular values, descending.

        Returns
        -------
        int
            At least 1.

        Raises
        ------
        ShapeError, NonFiniteError
            If `hsv` is not a descending list of nonnegative numbers.
        """


@dataclass(frozen=True)
class FixedOrder(OrderRule):
    """Keep `order` states: the same as passing the int.

    For a `StateSpace` exactly that many; for diagonal systems and layers at most that many *stored*
    states.

    Parameters
    ----------
    order : int
        How many, a positive int.

    Raises
    ------
    OrderError
        If it is not a positive int.

    Examples
    --------
    >>> from ssmreduce import FixedOrder
    >>> FixedOrder(8).order
    8
    """

    order: int

    def __post_init__(self) -> None:
        order: object = self.order
        if not _checks.is_int(order):
            share = order if _checks.is_number(order) and 0.0 < order < 1.0 else 0.99
            raise OrderError(
                f"`order` is {_checks.shown(order)}; expected a positive int or an order rule. "
                f"Try a rule such as HankelMass({float(share)})."
            )
        if order < 1:
            raise OrderError(
                f"`order` is {int(order)}; expected at least 1 state. "
                "Look at hankel_singular_values(system) to choose one."
            )
        vars(self).update(order=int(order))

    def choose(self, hsv: HostArray) -> int:
        """Return the fixed order."""
        return self.order


@dataclass(frozen=True)
class HankelMass(OrderRule):
    """Keep the smallest order with Σ_{i≤r} σ_i ≥ share · Σ σ_i (CompreSSM's rule, share = 1 - τ).

    Parameters
    ----------
    share : float
        Share of the sum, in (0, 1].

    Raises
    ------
    ArgumentError
        If it is not in that range.

    References
    ----------
    CompreSSM, arXiv 2510.02823.

    Examples
    --------
    >>> from ssmreduce import HankelMass
    >>> HankelMass(0.9).choose([8.0, 1.5, 0.5])
    2
    """

    share: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _checks.fraction(self.share, "share"))

    def choose(self, hsv: HostArray) -> int:
        """Return the smallest order that keeps the share of the sum."""
        return _smallest_share(_checks.singular_values(hsv), self.share)


@dataclass(frozen=True)
class HankelEnergy(OrderRule):
    """Keep the smallest order with Σ_{i≤r} σ_i² ≥ share · Σ σ_i².

    Parameters
    ----------
    share : float
        Share of the sum of squares, in (0, 1].

    Raises
    ------
    ArgumentError
        If it is not in that range.

    Examples
    --------
    >>> from ssmreduce import HankelEnergy
    >>> HankelEnergy(0.9).choose([8.0, 1.5, 0.5])
    1
    """

    share: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", _checks.fraction(self.share, "share"))

    def choose(self, hsv: HostArray) -> int:
        """Return the smallest order that keeps the share of the sum of squares."""
        return _smallest_share(_checks.singular_values(hsv) ** 2, self.share)


@dataclass(frozen=True)
class ErrorBound(OrderRule):
    """Keep the smallest order whose bound 2 Σ_{i>r} σ_i is at most the tolerance.

    Parameters
    ----------
    absolute : float, optional
        Tolerance on the H-infinity error itself.
    relative : float, optional
        Tolerance relative to σ₁. Give exactly one of the two.

    Raises
    ------
    ArgumentError
        If not exactly one positive tolerance is given.
    UnreachableToleranceError
        From `choose`, if the tolerance is below 4 n eps σ₁, where no bound can be certified.

    Examples
    --------
    >>> from ssmreduce import ErrorBound
    >>> ErrorBound(absolute=2.0).choose([4.0, 2.0, 1.0])
    2
    """

    _: KW_ONLY
    absolute: float | None = None
    relative: float | None = None

    def __post_init__(self) -> None:
        given = {
            name: value
            for name, value in (("absolute", self.absolute), ("relative", self.relative))
            if value is not None
        }
        if len(given) != 1:
            raise ArgumentError(
                f"ErrorBound got {sorted(given) or 'no tolerance'}; expected exactly one of "
                "`absolute` and `relative`. Try ErrorBound(relative=1e-3)."
            )
        ((name, value),) = given.items()
        if not _checks.is_number(value) or value <= 0:
            raise ArgumentError(
                f"`{name}` is {_checks.shown(value)}; expected a positive finite number. Try 1e-3."
            )

    def choose(self, hsv: HostArray) -> int:
        """Return the smallest order that meets the tolerance."""
        values = _checks.singular_values(hsv)
        tolerance, floor = self._tolerance(values), rank_tolerance(values)
        if tolerance < floor:
            self._refuse(tolerance, floor)
        return max(1, int(np.argmax(error_bounds(values) <= tolerance)))

    def is_met(self, hsv: HostArray, error: float) -> bool:
        """Whether an error is within the tolerance.

        Parameters
        ----------
        hsv : (n,) array
            Hankel singular values, descending: a relative tolerance refers to the first.
        error : float
            A bound, or a measured error.

        Returns
        -------
        bool
            Whether it is; NaN is not.

        Raises
        ------
        ArgumentError
            If `error` is not a number.
        ShapeError, NonFiniteError
            If `hsv` is not a descending list of nonnegative numbers.
        """
        if not _checks.is_extended(error):
            raise ArgumentError(
                f"`error` is {_checks.shown(error)}; expected a number. Pass a bound, or what was measured."
            )
        return error <= self._tolerance(hsv)

    def check(self, hsv: HostArray, error: float) -> None:
        """Raise unless an error is within the tolerance.

        Parameters
        ----------
        hsv : (n,) array
            Hankel singular values, descending.
        error : float
            A bound, or a measured error.

        Raises
        ------
        UnreachableToleranceError
            If it is above the tolerance.
        ArgumentError
            If `error` is not a number.
        ShapeError, NonFiniteError
            If `hsv` is not a descending list of nonnegative numbers.
        """
        if not self.is_met(hsv, error):
            self._refuse(self._tolerance(hsv), float(error))

    def _tolerance(self, hsv: HostArray) -> float:
        if self.relative is not None:
            return float(self.relative * _checks.singular_values(hsv)[0])
        return float(self.absolute or 0.0)

    def _refuse(self, tolerance: float, reachable: float) -> None:
        raise UnreachableToleranceError(
            f"the tolerance {tolerance:.3g} lies below {reachable:.3g}, what is left of this system's "
            "error by rounding; expected at least that. "
            f"Try ErrorBound(absolute={2 * reachable:.1g})."
        )


@dataclass(frozen=True)
class MeasuredError(OrderRule):
    """Keep the smallest order whose measured error is at most a share of the system's gain.

    Bounds are worst cases: in trained layers 2 Σσ is 9 to 35 times the error. This rule cuts,
    measures by `Reduction.quick_error`, and bisects: about log₂ n cuts of each system. Error and
    gain are H-infinity norms, feedthrough included, or induced norms within a horizon; those of a
    layer are of its weights as they are written.

    Parameters
    ----------
    relative : float
        Error over gain, in (0, 1].

    Raises
    ------
    OrderError, ArgumentError
        If `relative` is not in that range, or where orders are chosen from Hankel singular values
        or scores alone: in `modal_truncation`, and by `choose`.

    Examples
    --------
    >>> from ssmreduce import Discrete, MeasuredError, StateSpace, balanced_truncation
    >>> system = StateSpace([[0.9, 0.0], [0.0, 0.1]], [[1.0], [0.1]], [[1.0, 0.1]], time=Discrete())
    >>> balanced_truncation(system, MeasuredError(0.01)).order
    1
    """

    relative: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "relative", _checks.fraction(self.relative, "relative", 0.01))

    def choose(self, hsv: HostArray) -> int:
        """Raise `OrderError`: Hankel singular values do not tell what will be measured."""
        raise OrderError(
            f"`order` is {self!r}, for which reduced systems are measured; expected a rule that Hankel "
            "singular values or scores decide. Take ErrorBound here, or pass this one to "
            "balanced_truncation, balance(system).truncate, reduce_layer or reduce_model."
        )


@dataclass(frozen=True)
class TotalBudget(OrderRule):
    """Share `states` among several systems so that the largest σ left out anywhere is least.

    The sum of the bounds 2 Σ_{i>r} σ_i over all systems is then least too. Every system keeps at least
    one state, and none keeps more than its numerical rank.

    Parameters
    ----------
    states : int
        Most states that all systems together may keep. For a batch of diagonal systems *stored*
        states; for a single system the budget is all its own.
    relative : bool
        Compare σ_i/σ₁ of each system instead of σ_i: right where the gain of a system means little,
        as for layers that a normalisation follows.

    Raises
    ------
    OrderError, ArgumentError
        If `states` is not a positive int; from `allocate`, if it is less than one per system.

    Examples
    --------
    >>> from ssmreduce.reduction.order import TotalBudget
    >>> TotalBudget(4).allocate([[8.0, 4.0, 2.0], [3.0, 1.0, 0.5]])
    [3, 1]
    >>> TotalBudget(4, relative=True).allocate([[8.0, 4.0, 2.0], [3.0, 1.0, 0.5]])
    [2, 2]
    """

    states: int
    _: KW_ONLY
    relative: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "states",
            _checks.positive_count(self.states, "states", "how many to keep"),
        )
        object.__setattr__(self, "relative", _checks.flag(self.relative, "relative"))

    def choose(self, hsv: HostArray) -> int:
        """Return the order of a system that has the budget to itself."""
        return self.allocate([_checks.singular_values(hsv)])[0]

    def allocate(
        self, hsvs: Sequence[HostArray], *, kept: Sequence[int] | None = None
    ) -> list[int]:
        """Return one order per list of Hankel singular values, in the units of its entries.

        Parameters
        ----------
        hsvs : sequence of (n_k,) arrays
            Descending Hankel singular values of each system.
        kept : sequence of int, optional
            States that each system keeps in addition: unstable ones, which have no such value.

        Returns
        -------
        list of int
            Orders, each at least 1 more than `kept`; their sum is at most `states`, and less only
            where every system keeps its numerical rank.

        Raises
        ------
        OrderError, ArgumentError
            If there are no systems, or the budget is too small for them.
        ShapeError, NonFiniteError
            If an entry of `hsvs` is not a descending list of nonnegative numbers.
        """
        lists = [
            _descending(hsv) for hsv in _checks.items(hsvs, "hsvs", "one array for each system")
        ]
        orders = [0] * len(lists)
        if kept is not None:
            meaning = "how many states each system keeps besides"
            orders = [
                _checks.nonnegative_count(own, "kept", meaning)
                for own in _checks.items(kept, "kept", "one int for each system")
            ]
        if len(orders) != len(lists):
            raise ArgumentError(
                f"`kept` has {len(orders)} entries but `hsvs` has {len(lists)}; expected one for each "
                "system. Leave it out where nothing else is kept."
            )
        for k, hsv in enumerate(lists):
            orders[k] += min(1, hsv.size)
        left = self.states - sum(orders)
        if not lists or left < 0:
            raise OrderError(
                f"`states` is {self.states} for {len(lists)} systems; expected at least "
                f"{max(sum(orders), 1)}: one for each, and their unstable states. Raise the budget "
                "or leave systems out."
            )
        # σ₁ of each is kept in any case; of the others the largest above rounding are, wherever
        # they are. Each list descends, so what is kept is a leading part of it.
        candidates = [
            (float(value / hsv[0] if self.relative else value), k)
            for k, hsv in enumerate(lists)
            for value in hsv[1:]
            if value > rank_tolerance(hsv)
        ]
        candidates.sort(key=lambda entry: -entry[0])
        for _value, k in candidates[:left]:
            orders[k] += 1
        return orders


def as_rule(order: int | OrderRule) -> OrderRule:
    """Return the order rule that `order` stands for."""
    if isinstance(order, OrderRule):
        return order
    return FixedOrder(order)


def divided(rule: OrderRule, values: Sequence[HostArray], kept: Sequence[int]) -> list[OrderRule]:
    """One rule per system of a batch: `rule` itself, or the share of each in a total budget."""
    if not isinstance(rule, TotalBudget):
        return [rule] * len(values)
    # Nothing can be left of a system without states, whatever the rule.
    return [FixedOrder(order) if order else rule for order in rule.allocate(values, kept=kept)]


def _descending(hsv: HostArray) -> HostArray:
    """Hankel singular values of one of several systems, which may have no states."""
    values = _checks.real_values(hsv, "hsvs", "one array for each system")
    return _checks.singular_values(values, "hsvs") if values.size else np.zeros(0)


def _smallest_share(values: HostArray, share: float) -> int:
    """Return the smallest r with Σ_{i≤r} ≥ share · Σ; the last partial sum always qualifies."""
    sums = np.cumsum(values)
    return int(np.searchsorted(sums, min(share * sums[-1], sums[-1]), side="left")) + 1
