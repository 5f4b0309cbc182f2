"""The output of a system for a given input, from rest.

Discrete systems run their recursion. Continuous ones are stepped from one sample to the next exactly,
with Φ = exp(A h) and, for inputs that are constant or linear between samples,

    x(t + h) = Φ x(t) + h φ₁(A h) B u(t)  [+ h φ₂(A h) B (u(t + h) - u(t))],

φ₁(x) = (exp x - 1)/x and φ₂(x) = (φ₁(x) - 1)/x, from `ssmreduce.systems.time_step`. One exponential, O(n³),
serves all steps of an evenly spaced grid; diagonal systems cost O(n) a step. Rounding errors add up as in any
recursion: after k steps of a stable system about k ε of the largest state.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray, to_double
from ssmreduce._array_routes import any_library
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.systems.diagonal import System, check_single
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.time_step import checked_range, time_steps
from ssmreduce.time_domain import Discrete

_EVEN_GRID = 8.0
"""c in the tolerance c·ε·max|t| for equal steps: sample times are rounded, their differences too."""

_SAME_STEP = 2.0**-10
"""Steps that differ by more than this part are taken as they are, however large the times."""


@any_library()
def simulate(
    system: System,
    inputs: HostArray,
    *,
    times: HostArray | None = None,
    hold: Literal["constant", "linear"] = "constant",
) -> HostArray:
    """Output for an input sequence, from rest: y[k] = C x[k] + D u[k] at every sample.

    Discrete: x[k+1] = A x[k] + B u[k], or x[k] = A x[k-1] + B u[k] where the system reads after its
    update. Continuous: x' = A x + B u, exact for inputs that are constant, or linear, between
    `times`.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes; stable or not.
    inputs : (L, m) array
        Input at each sample; real if the system has `real_output`.
    times : (L,) array, optional
        Increasing sample times of a continuous system, which is at rest at the first. Discrete
        systems take none.
    hold : {"constant", "linear"}
        The input of a continuous system between its samples: the value before, or a straight line.

    Returns
    -------
    (L, p) array
        Output at each sample; real where the map and the input are.

    Raises
    ------
    TimeDomainError
        If `times` is missing for a continuous system or given for a discrete one, or `hold` with
        it.
    ShapeError
        If `inputs` is not (L, m), `times` does not increase, or the system has batch axes.
    NonFiniteError
        If the output overflows.
    NoConvergenceError
        If A is so stiff that rounding spoils the outputs, and has more than 24 states or would take
        more than about 10 s in the integer arithmetic that is used up to 24.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(L n (m + p)) for diagonal systems, O(L n (n + m + p)) for dense ones, plus O(n³) for the
    exponential of a continuous one: one for evenly spaced times, else one for each step.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.simulation import simulate
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> simulate(system, [[1.0], [0.0], [0.0]]).ravel().tolist()
    [0.0, 1.0, 0.5]
    """
    check_single(system)
    host = system.to_host()
    signal = to_double(_checks.floating_array(inputs, "inputs", 1))
    if signal.ndim != 2 or signal.shape[1] != host.inputs:
        raise ShapeError(
            f"`inputs` has shape {signal.shape}; expected (L, {host.inputs}) for a system with "
            f"{host.inputs} inputs. Put time first."
        )
    if host.real_output and np.iscomplexobj(signal):
        raise ShapeError(
            f"`inputs` has dtype {signal.dtype} but `system` has real output, the real part of C h; "
            "expected real inputs. Simulate real and imaginary part one after the other."
        )
    if not _checks.is_one_of(hold, ("constant", "linear")):
        raise ShapeError(f"`hold` is {_checks.shown(hold)}; expected 'constant' or 'linear'.")
    if isinstance(host.time, Discrete):
        refuse_times(times)
        if hold != "constant":
            raise TimeDomainError(
                f"`hold` is {hold!r} but `system` is discrete; expected no `hold`: there is no input between "
                "samples. Leave it out."
            )
        reached = f"`inputs` has {len(signal)} rows, within which the output"
        states = _discrete_states(host, signal)
    else:
        instants = sample_times(times, len(signal))
        reached = f"`times` reaches {instants[-1]:g}, up to where the output"
        states = _continuous_states(host, signal, instants, hold)
    with np.errstate(over="ignore", invalid="ignore"):
        output = _read(host, states) + _each_row(host.D, signal)
    return checked_range(output, reached, "Stop earlier, or look at system.poles().")


def _discrete_states(host: System, signal: HostArray) -> HostArray:
    advance = host.A if isinstance(host, StateSpace) else host.eigenvalues
    with np.errstate(over="ignore", invalid="ignore"):
        driven = _each_row(host.B, signal)
        states = np.empty(driven.shape, dtype=np.result_type(driven, advance))
        x = np.zeros(host.order, dtype=states.dtype)
        for k, drive in enumerate(driven):
            if host.read_after_update:
                x = _advanced(advance, x) + drive
                states[k] = x
            else:
                states[k] = x
                x = _advanced(advance, x) + drive
    return states


def _continuous_states(
    host: System, signal: HostArray, instants: HostArray, hold: str
) -> HostArray:
    advance = host.A if isinstance(host, StateSpace) else host.eigenvalues
    dtype = np.result_type(host.B, signal, advance)
    states = np.zeros((len(signal), host.order), dtype=dtype)
    sizes, repeats = step_sizes(instants)
    k = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for step in time_steps(host, sizes, hold == "linear"):
            for _ in range(repeats):
                states[k + 1] = step.moved(states[k]) + step.constant @ signal[k]
                if hold == "linear":
                    states[k + 1] += step.ramp @ (signal[k + 1] - signal[k])
                k += 1
    return states


def _read(host: System, states: HostArray) -> HostArray:
    output = _each_row(host.C, states)
    return output.real if host.real_output else output


def _each_row(matrix: HostArray, rows: HostArray) -> HostArray:
    """Apply `matrix` to every row, a vector at one time step."""
    return np.asarray(np.einsum("ij,kj->ki", matrix, rows, optimize=True))


def _advanced(power: HostArray, x: HostArray) -> HostArray:
    return np.asarray(power @ x if power.ndim == 2 else power * x)


# --- Sample times


def step_sizes(instants: HostArray) -> tuple[HostArray, int]:
    """Step sizes, and how often each is repeated: one size for an evenly spaced grid."""
    count = instants.size - 1
    sizes = np.diff(instants)
    if count < 1:
        return sizes, 1
    mean = float(instants[-1] - instants[0]) / count
    rounding = _EVEN_GRID * np.spacing(np.abs(instants).max())
    if np.all(np.abs(sizes - mean) <= min(rounding, _SAME_STEP * mean)):
        return np.array([mean]), count
    return sizes, 1


def refuse_times(times: HostArray | None) -> None:
    """Refuse sample times where the system is discrete."""
    if times is not None:
        raise TimeDomainError(
            "`times` is given but `system` is discrete; expected none: its samples are dt apart. "
            "Leave `times` out."
        )


def sample_times(times: HostArray | None, length: int | None) -> HostArray:
    """Return `times` as a vector of increasing numbers, of that length if one is given."""
    if times is None:
        raise TimeDomainError(
            "`system` is continuous and `times` is missing; expected the time of each sample. "
            "Try times=numpy.linspace(0, 10, 200), or discretise the system with to_discrete."
        )
    instants = to_double(_checks.floating_array(times, "times", 0))
    if instants.size and instants.ndim == 1:
        with np.errstate(over="ignore"):
            span = instants[-1:] - instants[:1]
        checked_range(span, f"`times` ends at {instants[-1]:g}, whose distance", "Start at 0.")
    if (
        instants.ndim != 1
        or instants.size == 0
        or np.iscomplexobj(instants)
        or (length is not None and instants.size != length)
        or np.any(np.diff(instants) <= 0.0)
    ):
        wanted = "(L,)" if length is None else f"({length},), one for each row of `inputs`,"
        raise ShapeError(
            f"`times` has shape {instants.shape} and dtype {instants.dtype}; expected {wanted} real "
            "numbers, each larger than the one before. "
            "Try numpy.linspace(0, 10, 200)."
        )
    return instants
