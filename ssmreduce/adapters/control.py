"""python-control systems in and out, with their time base.

python-control says continuous as ``dt=0``, discrete as a number, discrete without a sampling time as
``True`` and "not said" as ``None``. The first three become `Continuous()`, `Discrete(dt)` and
`Discrete()`; ``None`` is refused unless `time` says what is meant. It holds real numbers only (its
constructor fails or casts otherwise), so complex systems are refused with the way out. Transfer functions
are realised by python-control itself (Slycot for several inputs and outputs); where that matters, build
state-space systems instead: coefficients of high-order polynomials lose digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce.errors import ArgumentTypeError, MissingBackendError, ShapeError, TimeDomainError
from ssmreduce.systems.coordinates import exportable
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous, Discrete, TimeDomain, check_time, sampling_time


def from_control(sys: Any, time: TimeDomain | None = None) -> StateSpace:
    """The `StateSpace` of a python-control system, time base kept.

    Parameters
    ----------
    sys : control.StateSpace or control.TransferFunction
        Transfer functions are realised by python-control.
    time : Continuous or Discrete, optional
        Needed where ``sys.dt`` is None, and allowed where it is True (a discrete system without a
        sampling time, else read as ``Discrete()``); otherwise it must agree.

    Returns
    -------
    StateSpace
        Real, in float64.

    Raises
    ------
    TimeDomainError
        If ``sys.dt`` is None and `time` is missing, or the two disagree.
    ArgumentTypeError
        If `sys` is neither of the two.
    ShapeError
        If a transfer function has a numerator of higher degree than its denominator.
    MissingBackendError
        If python-control is missing, or Slycot for a transfer function with several inputs or outputs.

    Examples
    --------
    >>> import control
    >>> from ssmreduce.adapters.control import from_control
    >>> system = from_control(control.ss([[0.5]], [[1.0]], [[1.0]], [[0.0]], 0.1))
    >>> system.order, system.time
    (1, Discrete(dt=0.1))
    """
    control = _checks.require_backend("control", extra="control")
    if not isinstance(sys, control.StateSpace | control.TransferFunction):
        raise ArgumentTypeError(
            f"`sys` is a {_checks.type_name(sys)}; expected a control.StateSpace "
            "or a control.TransferFunction. Convert it with control.ss first."
        )
    domain = _time_domain(sys.dt, time)
    if isinstance(sys, control.TransferFunction):
        sys = _realised(control, sys)
    return StateSpace(
        *(np.array(x, dtype=np.float64) for x in (sys.A, sys.B, sys.C, sys.D)), time=domain
    )


def to_control(system: System) -> Any:
    """The python-control `StateSpace` with the same map, time base kept.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Real (or with real output), without batch axes. One that reads after its update is exported
        in its standard form.

    Returns
    -------
    control.StateSpace
        With ``dt=0`` for continuous time, else the sampling time.

    Raises
    ------
    ShapeError
        If the system is complex or has batch axes.
    MissingBackendError
        If python-control is missing.
    ArgumentTypeError
        If `system` is not a system.

    Examples
    --------
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.adapters.control import to_control
    >>> sys = to_control(StateSpace([[-1.0]], [[1.0]], [[1.0]], time=Continuous()))
    >>> sys.dt, sys.nstates
    (0, 1)
    """
    control = _checks.require_backend("control", extra="control")
    dense = exportable(system, "python-control")
    if 0 in dense.D.shape:
        raise ShapeError(
            f"`system` has {dense.inputs} inputs and {dense.outputs} outputs; expected at least one of "
            "each: python-control has no other systems."
        )
    dt = sampling_time(dense.time) or 0
    return control.StateSpace(dense.A, dense.B, dense.C, dense.D, dt, remove_useless_states=False)


def _time_domain(dt: object, time: TimeDomain | None) -> TimeDomain:
    if time is not None:
        check_time(time)
    if dt is None:
        if time is None:
            raise TimeDomainError(
                "`sys` has dt=None, which leaves its time domain open; expected a known one. Pass "
                "time=Continuous() or time=Discrete(dt=...)."
            )
        return time
    if dt is True:
        found: TimeDomain = time if isinstance(time, Discrete) else Discrete()
    else:
        found = Continuous() if dt == 0 else Discrete(float(dt))  # type: ignore[arg-type]
    if time is not None and time != found:
        raise TimeDomainError(
            f"`time` is {time!r} but `sys` has dt={dt!r}; expected the same. Leave `time` out."
        )
    return found


def _realised(control: Any, sys: Any) -> Any:
    """A state-space realisation by python-control."""
    try:
        return control.ss(sys)
    except control.ControlMIMONotImplemented:
        raise MissingBackendError(
            f"`sys` is a transfer function with {sys.noutputs} outputs and {sys.ninputs} inputs, which "
            "python-control realises with Slycot only. Run: pip install 'ssmreduce[slycot]'"
        ) from None
    except ValueError as error:
        if "non-proper" not in str(error):
            raise
        raise ShapeError(
            "`sys` has a numerator of higher degree than its denominator; expected a proper transfer "
            "function: no state-space system differentiates its input."
        ) from None
