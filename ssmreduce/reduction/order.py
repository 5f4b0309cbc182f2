"""Order rules: how many states to keep, decided from the Hankel singular values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass

import numpy as np

from ssmreduce import _checks
from ssmreduce._namespace import HostArray
from ssmreduce.errors import OrderError, UnreachableToleranceError
from ssmreduce.hankel import error_bounds, rank_tolerance


class OrderRule(ABC):
    """Chooses an order from Hankel singular values. Subclasses are small frozen objects."""

    @abstractmethod
    def choose(self, hsv: HostArray) -> int:
        """Return the order of the (real) balanced system for descending `hsv`, at least 1."""


@dataclass(frozen=True)
class FixedOrder(OrderRule):
    """Keep `order` states: the same as passing the int.

    For a `StateSpace` exactly that many; for diagonal systems and layers at most that many *stored*
    states.

    Examples
    --------
    >>> from ssmreduce import FixedOrder
    >>> FixedOrder(8).order
    8
    """

    order: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", _checks.positive_order(self.order))

    def choose(self, hsv: HostArray) -> int:
        """Return the fixed order."""
        return self.order


@dataclass(frozen=True)
class HankelMass(OrderRule):
    """Keep the smallest order with Σ_{i≤r} σ_i ≥ share · Σ σ_i (CompreSSM's rule, share = 1 - τ).

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
        return _smallest_share(np.asarray(hsv, dtype=np.float64), self.share)


@dataclass(frozen=True)
class HankelEnergy(OrderRule):
    """Keep the smallest order with Σ_{i≤r} σ_i² ≥ share · Σ σ_i².

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
        return _smallest_share(np.asarray(hsv, dtype=np.float64) ** 2, self.share)


@dataclass(frozen=True)
class ErrorBound(OrderRule):
    """Keep the smallest order whose bound 2 Σ_{i>r} σ_i is at most the tolerance.

    Parameters
    ----------
    absolute : float
        Tolerance on the H-infinity error itself.
    relative : float
        Tolerance relative to σ₁. Give exactly one of the two.

    Raises
    ------
    OrderError
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
            raise OrderError(
                f"ErrorBound got {sorted(given) or 'no tolerance'}; expected exactly one of "
                "`absolute` and `relative`. Try ErrorBound(relative=1e-3)."
            )
        ((name, value),) = given.items()
        valid = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
        if not valid or not np.isfinite(value) or value <= 0:
            raise OrderError(f"`{name}` is {value!r}; expected a positive finite number. Try 1e-3.")

    def choose(self, hsv: HostArray) -> int:
        """Return the smallest order that meets the tolerance."""
        values = np.asarray(hsv, dtype=np.float64)
        tolerance, floor = self._tolerance(values), rank_tolerance(values)
        if tolerance < floor:
            self._refuse(tolerance, floor)
        return max(1, int(np.argmax(error_bounds(values) <= tolerance)))

    def check(self, hsv: HostArray, error: float) -> None:
        """Raise `UnreachableToleranceError` if `error`, bound or measured, misses the tolerance."""
        tolerance = self._tolerance(np.asarray(hsv, dtype=np.float64))
        if error > tolerance:
            self._refuse(tolerance, error)

    def _tolerance(self, hsv: HostArray) -> float:
        if self.absolute is not None:
            return float(self.absolute)
        assert self.relative is not None
        return float(self.relative * hsv[0])

    def _refuse(self, tolerance: float, reachable: float) -> None:
        raise UnreachableToleranceError(
            f"the tolerance {tolerance:.3g} lies below {reachable:.3g}, what is left of this system's "
            "error by rounding; expected at least that. "
            f"Try ErrorBound(absolute={2 * reachable:.1g})."
        )


def as_rule(order: int | OrderRule) -> OrderRule:
    """Return the order rule that `order` stands for."""
    if isinstance(order, OrderRule):
        return order
    return FixedOrder(_checks.positive_order(order))


def _smallest_share(values: HostArray, share: float) -> int:
    """Return the smallest r with Σ_{i≤r} ≥ share · Σ; the last partial sum always qualifies."""
    sums = np.cumsum(values)
    return int(np.searchsorted(sums, min(share * sums[-1], sums[-1]), side="left")) + 1
