"""Time as a type: `Continuous` and `Discrete`, required wherever it matters, never a sentinel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import is_number, shown
from ssmreduce.errors import TimeDomainError


@dataclass(frozen=True)
class Continuous:
    """Continuous time: x'(t) = A x(t) + B u(t). Stable poles have a negative real part.

    Examples
    --------
    >>> from ssmreduce import Continuous
    >>> Continuous() == Continuous()
    True
    """


@dataclass(frozen=True)
class Discrete:
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


def check_time(time: object, *, name: str = "time") -> TimeDomain:
    """Return `time` if it is a time domain; raise `TimeDomainError` otherwise."""
    if isinstance(time, Continuous | Discrete):
        return time
    raise TimeDomainError(
        f"`{name}` is {shown(time)}; expected Continuous() or Discrete(dt=...). "
        "Pass an instance, for example time=Discrete()."
    )


def boundary_distance(poles: HostArray, time: TimeDomain) -> HostArray:
    """How far each pole lies inside the stability boundary: 1 - |z|, or -Re s."""
    if isinstance(time, Discrete):
        return np.asarray(1.0 - np.abs(poles))
    return np.asarray(-poles.real)


def inside_boundary(poles: HostArray, time: TimeDomain, margin: float) -> HostArray:
    """Tell for each pole whether |z| < 1 - margin, or Re s < -margin."""
    return np.asarray(boundary_distance(poles, time) > margin)


def steady_point(time: TimeDomain) -> float:
    """Return the point of the stability boundary that stands for constant signals: z = 1 or s = 0."""
    return 1.0 if isinstance(time, Discrete) else 0.0
