"""Time as a type: `Continuous` and `Discrete`, required wherever it matters, never a sentinel.

The two own what depends on time in formulas about poles, frequencies and Gramians, for arrays of any
library. Logarithms of poles, where they are kept, belong to discrete time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ssmreduce._array_libraries import Array, adjoint, namespace, real_part
from ssmreduce._checks import is_number, shown
from ssmreduce.errors import TimeDomainError

_NEAR_BOUNDARY = 0.1
"""|1 - λ λ'| below which logarithms are used; they gain a digit at least."""


class _Time(ABC):
    """What both time domains answer; `logarithms` are those of poles, in discrete time."""

    steady_point: ClassVar[float]
    """Point of the stability boundary that stands for constant signals, and the limit of `growth`."""

    nyquist: ClassVar[float]
    """The highest frequency."""

    has_unit: ClassVar[bool]
    """Whether poles are rates, which depend on the unit of time."""

    variable: ClassVar[str]
    growth_symbol: ClassVar[str]
    frequency_unit: ClassVar[str]

    @abstractmethod
    def growth(self, poles: Array) -> Array:
        """What decides about the stability of `poles`: Re s or |z|."""

    @abstractmethod
    def distance(self, poles: Array, logarithms: Array | None = None) -> Array:
        """How far `poles` lie inside the stability boundary."""

    @abstractmethod
    def decay(self, distance: Array) -> Array:
        """Return the `divisor` of poles and their conjugates, at a `distance`."""

    @abstractmethod
    def point(self, omega: Array) -> Array:
        """Return the points of the stability boundary at frequencies `omega`."""

    @abstractmethod
    def rates(self, poles: Array) -> Array:
        """Return `poles` as in continuous time, per second or per sample."""

    @abstractmethod
    def divisor(
        self, left: Array, right: Array, logarithms: tuple[Array, Array] | None = None
    ) -> Array:
        """Return what divides the entries of a Gramian between poles `left` and `right`."""

    @abstractmethod
    def lyapunov(self, A: Array, X: Array) -> Array:
        """Return the left side of the Lyapunov equation, of `A` and `X`."""

    @abstractmethod
    def lyapunov_size(self, size: Array) -> Array:
        """Return a bound of the norm of that map of X, given ‖A‖ as `size`."""

    @abstractmethod
    def h2_norm(self, state: Array, feedthrough: Array) -> Array:
        """Return the H2 norm, given that of the states as `state` and ‖D‖ as `feedthrough`."""

    def inside(self, poles: Array, margin: float = 0.0, logarithms: Array | None = None) -> Array:
        """Whether `poles` lie inside the stability boundary by more than `margin`."""
        return self.distance(poles, logarithms) > margin


class _ContinuousTime(_Time):
    """Formulas of continuous time."""

    steady_point = 0.0
    nyquist = math.inf
    has_unit = True
    variable = "s"
    growth_symbol = "Re λ"
    frequency_unit = "rad/s"

    def growth(self, poles: Array) -> Array:
        """Re s of `poles`."""
        return _real(poles)

    def distance(self, poles: Array, logarithms: Array | None = None) -> Array:
        """Return -Re s of `poles`; there are no `logarithms`."""
        return -_real(poles)

    def decay(self, distance: Array) -> Array:
        """Return -2 Re s of poles at a `distance`."""
        return 2.0 * distance

    def point(self, omega: Array) -> Array:
        """Return jω at frequencies `omega` in rad/s."""
        return 1j * omega

    def rates(self, poles: Array) -> Array:
        """Return `poles` themselves."""
        return poles

    def divisor(
        self, left: Array, right: Array, logarithms: tuple[Array, Array] | None = None
    ) -> Array:
        """Return -(λ + λ') of `left` and `right`; there are no `logarithms`."""
        return -(left + right)

    def lyapunov(self, A: Array, X: Array) -> Array:
        """Return A X + X Aᴴ of `A` and `X`."""
        return A @ X + X @ adjoint(A)

    def lyapunov_size(self, size: Array) -> Array:
        """Return 2 ‖A‖, given ‖A‖ as `size`."""
        return 2.0 * size

    def h2_norm(self, state: Array, feedthrough: Array) -> Array:
        """Return `state`, or inf where there is `feedthrough`."""
        xp = _functions(state)
        return xp.where(feedthrough > 0.0, xp.inf, state)


class _DiscreteTime(_Time):
    """Formulas of discrete time."""

    steady_point = 1.0
    nyquist = math.pi
    has_unit = False
    variable = "z"
    growth_symbol = "|λ|"
    frequency_unit = "radians per sample"

    def growth(self, poles: Array) -> Array:
        """|z| of `poles`."""
        return abs(poles)

    def distance(self, poles: Array, logarithms: Array | None = None) -> Array:
        """Return 1 - |z| of `poles`, from their `logarithms` where given."""
        if logarithms is None:
            return 1.0 - abs(poles)
        return -_functions(logarithms).expm1(_real(logarithms))

    def decay(self, distance: Array) -> Array:
        """Return 1 - |z|² of poles at a `distance`."""
        return distance * (2.0 - distance)

    def point(self, omega: Array) -> Array:
        """Return exp(jω) at frequencies `omega` in radians per sample."""
        return _functions(omega).exp(1j * omega)

    def rates(self, poles: Array) -> Array:
        """Return the logarithms of `poles`."""
        return _functions(poles).log(poles)

    def divisor(
        self, left: Array, right: Array, logarithms: tuple[Array, Array] | None = None
    ) -> Array:
        """Return 1 - λ λ' of `left` and `right`; from `logarithms`, where given, if it is small."""
        distance = 1.0 - left * right
        if logarithms is None:
            return distance
        exponents, near = logarithms[0] + logarithms[1], abs(distance) < _NEAR_BOUNDARY
        if isinstance(distance, np.ndarray):
            distance[near] = -np.expm1(exponents[near])
            return distance
        xp = namespace(distance)
        return xp.where(near, -xp.expm1(exponents), distance)

    def lyapunov(self, A: Array, X: Array) -> Array:
        """Return A X Aᴴ - X of `A` and `X`."""
        return A @ X @ adjoint(A) - X

    def lyapunov_size(self, size: Array) -> Array:
        """Return ‖A‖² + 1, given ‖A‖ as `size`."""
        return size**2 + 1.0

    def h2_norm(self, state: Array, feedthrough: Array) -> Array:
        """Root of the sum of squares of `state` and `feedthrough`, which is one impulse."""
        return _functions(state).hypot(state, feedthrough)


@dataclass(frozen=True)
class Continuous(_ContinuousTime):
    """Continuous time: x'(t) = A x(t) + B u(t). Stable poles have a negative real part.

    Examples
    --------
    >>> from ssmreduce import Continuous
    >>> Continuous() == Continuous()
    True
    """


@dataclass(frozen=True)
class Discrete(_DiscreteTime):
    """Discrete time: x[k+1] = A x[k] + B u[k]. Stable poles lie inside the unit circle.

    Parameters
    ----------
    dt : float
        Sampling time in seconds; 1.0 (the default) counts steps.

    Raises
    ------
    TimeDomainError
        If `dt` is not a positive finite number.

    Examples
    --------
    >>> from ssmreduce import Discrete
    >>> Discrete(dt=0.01).dt
    0.01
    """

    dt: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.dt) or self.dt <= 0:
            raise TimeDomainError(
                f"`dt` is {shown(self.dt)}; expected a positive finite number of seconds. "
                "Pass a number, such as 0.1; Discrete() alone counts steps."
            )
        vars(self).update(dt=float(self.dt))


TimeDomain = Continuous | Discrete


def check_time(time: object, *, read_after_update: bool = False) -> TimeDomain:
    """Return `time` if it is a time domain, and discrete where a system is read after its update.

    Raises
    ------
    TimeDomainError
        Otherwise.
    """
    if not isinstance(time, Continuous | Discrete):
        raise TimeDomainError(
            f"`time` is {shown(time)}; expected Continuous() or Discrete(dt=...). "
            "Pass an instance, for example time=Discrete()."
        )
    if read_after_update and not isinstance(time, Discrete):
        raise TimeDomainError(
            "`read_after_update` is True but `time` is continuous; expected a discrete system. "
            "Leave it False, or discretise first."
        )
    return time


def sampling_time(time: TimeDomain) -> float | None:
    """Seconds from sample to sample; None in continuous time."""
    return time.dt if isinstance(time, Discrete) else None


def _real(array: Array) -> Array:
    return array.real if isinstance(array, np.ndarray) else real_part(array)


def _functions(array: Array) -> Any:
    """NumPy for its own arrays, without the search for another library."""
    return np if isinstance(array, np.ndarray | np.generic | float) else namespace(array)
