"""Impulse, step and frequency response of a system.

    h[k] = D, C B, C A B, ...  (or D + C B, C A B, ... read after the update),   h(t) = C exp(A t) B,
    G(z) = C (z I - A)⁻¹ B + D  (times z read after the update: z C (z I - A)⁻¹ B + D).

Evenly spaced times take one matrix exponential, O(n³), others one per step; diagonal systems have closed
forms at any time. Rounding errors add up over the steps of a recursion: after k steps of a stable
dense system about k ε of the largest state. See `ssmreduce.systems.transfer` for G.
"""

from __future__ import annotations

import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray, to_double
from ssmreduce._array_routes import any_library
from ssmreduce._lapack import safe_unit
from ssmreduce.devices import transfer as native
from ssmreduce.errors import ArgumentError, ShapeError, TimeDomainError, UnstableSystemError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_single, is_complex
from ssmreduce.systems.prescaling import prescaled
from ssmreduce.systems.simulation import refuse_times, sample_times, simulate, step_sizes
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.time_step import checked_range, exponents, time_steps
from ssmreduce.systems.transfer import state_part
from ssmreduce.time_domain import Discrete

_SMALLEST_UNIT = 2.0**-1000
"""Numbers can be divided by it, complex ones too."""

_MOST_SAMPLES = 2**31
"""Samples of a response: those of one channel fill 16 GiB."""


@any_library()
def impulse_response(
    system: System, length: int | None = None, *, times: HostArray | None = None
) -> HostArray:
    """Response to a unit impulse in each input: Markov parameters, or C exp(A t) B at `times`.

    Discrete: D, C B, C A B, ... or, read after the update, D + C B, C A B, C A² B, ...

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes.
    length : int, optional
        Number L of samples of a discrete system.
    times : (L,) array, optional
        Increasing times t ≥ 0 of a continuous system. The Dirac impulse D δ(t) at t = 0 is left
        out.

    Returns
    -------
    (L, p, m) array
        Real where the map is.

    Raises
    ------
    TimeDomainError
        If `length` is missing for a discrete system, or `times` for a continuous one.
    ArgumentError
        If `length` is not a positive int, or above 2³¹.
    ShapeError
        If `times` does not increase or starts below 0, or the system has batch axes.
    NonFiniteError
        If the response overflows.
    ArgumentTypeError
        If `system` is not a system.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.responses import impulse_response
    >>> system = DiagonalStateSpace(
    ...     [0.5], [[1.0]], [[1.0]], time=Discrete(), read_after_update=True
    ... )
    >>> impulse_response(system, 3).ravel().tolist()
    [1.0, 0.5, 0.25]
    """
    check_single(system)
    host = system.to_host()
    samples, instants = _samples(host, length, times)
    if instants is None:
        return _markov_parameters(host, samples)
    if instants[0] < 0.0:
        raise ShapeError(
            f"`times` starts at {instants[0]:g}; expected times from 0 on, where the impulse is."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        response = _impulse_at(host, instants)
    reached = f"`times` reaches {instants[-1]:g}, up to where the response"
    return checked_range(response, reached, "Stop earlier, or look at system.poles().")


@any_library()
def step_response(
    system: System, length: int | None = None, *, times: HostArray | None = None
) -> HostArray:
    """Response to a unit step in each input, from rest: the running sum or integral of the impulse
    response.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes.
    length : int, optional
        Number L of samples of a discrete system.
    times : (L,) array, optional
        Increasing sample times of a continuous system; the step comes at the first.

    Returns
    -------
    (L, p, m) array
        Real where the map is; it tends to `dc_gain()` if the system is stable.

    Raises
    ------
    TimeDomainError
        If `length` is missing for a discrete system, or `times` for a continuous one.
    ArgumentError
        If `length` is not a positive int, or above 2³¹.
    ShapeError
        If `times` does not increase, or the system has batch axes.
    NonFiniteError
        If the response overflows.
    NoConvergenceError
        If A is so stiff that rounding spoils the outputs, and has more than 24 states or would take
        more than about 10 s in the integer arithmetic that is used up to 24.
    ArgumentTypeError
        If `system` is not a system.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.responses import step_response
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> step_response(system, 4).ravel().tolist()
    [0.0, 1.0, 1.5, 1.75]
    """
    check_single(system)
    host = system.to_host()
    samples, instants = _samples(host, length, times)
    dtype = np.complex128 if is_complex(host) else np.float64
    response = np.empty((samples, host.outputs, host.inputs), dtype=dtype)
    for j in range(host.inputs):
        signal = np.zeros((samples, host.inputs))
        signal[:, j] = 1.0
        response[..., j] = simulate(host, signal, times=instants)
    return response


@any_library(native.frequency_response)
def frequency_response(system: System, omega: HostArray) -> HostArray:
    """Transfer function C (zI - A)⁻¹ B + D on the stability boundary; times z where read after
    update.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes. Real outputs give the transfer function of the real system.
    omega : (K,) array
        Angles in radians per sample (discrete, z = exp(i ω)) or rad/s (continuous, z = i ω).

    Returns
    -------
    (K, p, m) complex array
        Values G(z).

    Raises
    ------
    ShapeError
        If `omega` is not one axis of finite, real numbers, or the system has batch axes.
    UnstableSystemError
        If a pole lies at one of the points.
    NonFiniteError
        If a value overflows.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(K n p m) for diagonal systems; for dense ones O(n³) for a Schur form and O(K n² min(m,
    p)), or O(K n³) for few points.

    References
    ----------
    Laub, IEEE Trans. Automatic Control 26 (1981), for dense systems.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.responses import frequency_response
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> bool(abs(frequency_response(system, [0.0])[0, 0, 0] - 2.0) < 1e-15)
    True
    """
    check_single(system)
    points = to_double(_checks.numeric_array(omega, "omega", 0))
    if points.ndim != 1 or points.dtype.kind == "c" or not np.all(np.isfinite(points)):
        raise ShapeError(
            f"`omega` is {_checks.shown(omega)}; expected one axis of finite, real frequencies. "
            "Put a single one into a list, or try numpy.linspace(0, numpy.pi, 200)."
        )
    host = prescaled(system.to_host())
    inputs, outputs = (max(safe_unit(x), _SMALLEST_UNIT) for x in (host.B, host.C))
    if inputs != 1.0 or outputs != 1.0:
        host = host.replace(B=host.B / inputs, C=host.C / outputs)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        response = state_part(host).matrices(host.time.point(points))
        if not np.all(np.isfinite(response)):
            raise UnstableSystemError(
                "`system` has a pole at one of the frequencies in `omega`; expected none on the boundary. "
                "Leave that frequency out, or look at system.poles()."
            )
        response = response * inputs * outputs + to_double(system.D)
    return checked_range(
        response, "the transfer function of `system`", "Take other units of inputs and outputs."
    )


def _impulse_at(host: System, instants: HostArray) -> HostArray:
    if isinstance(host, DiagonalStateSpace):
        grown = np.exp(exponents(host.eigenvalues, instants[:, None]))
        response = (host.C * grown[:, None, :]) @ host.B
        return np.asarray(response.real if host.real_output else response)
    sizes, repeats = step_sizes(instants)
    at_once = instants[0] == 0.0
    undriven = host.replace(B=host.B[:, :0], D=host.D[:, :0])
    steps = time_steps(undriven, sizes if at_once else np.concatenate([instants[:1], sizes]))
    at_zero = host.B.astype(np.result_type(host.A, host.B))
    states = [at_zero if at_once else next(steps).moved(at_zero)]
    for step in steps:
        for _ in range(repeats):
            states.append(step.moved(states[-1]))
    return np.asarray(host.C @ np.stack(states, dtype=np.result_type(host.A, host.B)))


def _markov_parameters(host: System, length: int) -> HostArray:
    advance = host.A if isinstance(host, StateSpace) else host.eigenvalues[:, None]
    dtype = np.complex128 if is_complex(host) else np.float64
    response = np.zeros((length, host.outputs, host.inputs), dtype=dtype)
    state = host.B
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(0 if host.read_after_update else 1, length):
            output = host.C @ state
            response[k] = output.real if host.real_output else output
            state = advance @ state if isinstance(host, StateSpace) else advance * state
        response[0] += host.D
    reached = f"`length` is {length}, within which the response"
    return checked_range(response, reached, "Take fewer samples, or look at system.poles().")


def _samples(
    host: System, length: int | None, times: HostArray | None
) -> tuple[int, HostArray | None]:
    """Number of samples, and their times in continuous time."""
    if isinstance(host.time, Discrete):
        return _sample_count(length, times), None
    if length is not None:
        raise TimeDomainError(
            f"`length` is {_checks.shown(length)} but `system` is continuous; expected `times` instead. "
            "Try times=numpy.linspace(0, 10, 200)."
        )
    instants = sample_times(times, None)
    return instants.size, instants


def _sample_count(length: int | None, times: HostArray | None) -> int:
    refuse_times(times)
    if length is None:
        raise TimeDomainError(
            "`length` is missing; expected a number of samples for a discrete system. Try length=100."
        )
    samples = _checks.positive_count(length, "length", "the number of samples")
    if samples > _MOST_SAMPLES:
        raise ArgumentError(
            f"`length` is {samples}; expected at most {_MOST_SAMPLES} samples, which all lie in memory. "
            "Ask for what the response takes to decay, or for dc_gain()."
        )
    return samples
