"""Impulse responses of a system before and after a reduction.

Drawn as lines; as envelopes where they oscillate faster than a picture shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._checks import (
    positive_count,
    real_values,
    shown,
    whole_number,
)
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.plotting.axes import (
    FULL,
    REDUCED,
    finish,
    one_panel,
)
from ssmreduce.plotting.systems import paired
from ssmreduce.responses import impulse_response
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, is_complex
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.time_step import checked_range, exponents
from ssmreduce.time_domain import Discrete, sampling_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 400
"""Times of a curve."""

_PER_PERIOD = 10
"""Samples of a period of what is drawn as a line, at least."""

_COLUMNS = 200
"""Columns of an envelope, at most."""

_FINEST = 1000
"""Samples at which the extremes in a column of an envelope are looked for, at most."""

_HEARD = 1e-3
"""Share of the largest residue from which on a mode is seen in a response."""

_LASTING = 5.0
"""Time constants within a four-hundredth of the picture after which a mode is no oscillation in it."""

_LONGEST = 1000
"""Samples of a response, unless asked for more."""

_DECAY = 7.0
"""Time constants after which a response has decayed, to a thousandth."""

_SEEN = 0.999
"""Share of the energy of a response that is drawn at least."""

_ENTRIES = 2**22
"""Numbers at once to tell which channel has the most energy."""


def plot_impulse(
    system: System,
    reduced: System | None = None,
    *,
    channel: tuple[int, ...] | None = None,
    length: int | None = None,
    times: HostArray | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Impulse response of a system and of a reduced one, from one input to one output.

    Where a continuous system oscillates more than 100 times before it has decayed, its envelope is
    drawn: the smallest and the largest value in each of up to 200 intervals.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Of a batch one system is drawn.
    reduced : StateSpace or DiagonalStateSpace, optional
        A system of the same inputs, outputs and batch axes.
    channel : tuple of ints, optional
        ``(output, input)``, after the index of the system in a batch; otherwise that whose response
        has the most energy.
    length : int, optional
        Samples of a discrete system; until the response has decayed otherwise, 1000 at most.
    times : (L,) array, optional
        Times of a continuous system, in seconds. The impulse D δ(t) at t = 0 is not drawn.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        Over samples where the sampling time is 1, else over seconds. Of a complex response the real
        part.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ArgumentTypeError
        If `system` or `reduced` is not a system.
    ShapeError, TimeDomainError
        If their sizes or times differ, or as `impulse_response`.
    ArgumentError
        If there is no such channel.
    NonFiniteError
        If a time is NaN or Inf.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, balanced_truncation
    >>> from ssmreduce.plotting import plot_impulse
    >>> system = DiagonalStateSpace([0.9, 0.1], [[1.0], [0.1]], [[1.0, 0.1]], time=Discrete())
    >>> axes = plot_impulse(system, balanced_truncation(system, 1).system)
    >>> axes.get_title()
    'Impulse response from u[0] to y[0]'
    """
    pairs = paired(system, reduced)
    singles = {index: single for index, (single, _) in pairs.items()}
    grid = _grid([*singles.values()], length, times)
    at = _strongest(singles, grid) if channel is None else _channel(system, channel)
    single, other = pairs[at[:-2]]
    chosen = [("full", FULL, single)]
    if other is not None:
        chosen.append(("reduced", REDUCED, other))
    periods = 0.0
    if length is None and times is None:
        grid = _shortened(_grid([single], None, None), single, at)
        if "times" in grid:
            end = grid["times"][-1]
            periods = max(_periods(each, end) for _, _, each in chosen)
            points = int(np.clip(_PER_PERIOD * periods, _POINTS, _LONGEST))
            grid = {"times": np.linspace(0.0, end, points)}
    axes = one_panel(ax)
    dt = sampling_time(system.time)
    is_envelope = _PER_PERIOD * periods > _LONGEST
    for label, style, each in chosen:
        channel_of = _one_channel(each, at)
        if is_envelope:
            _draw_envelope(axes, channel_of, grid["times"][-1], periods, label, style)
            continue
        response = impulse_response(channel_of, **grid)[:, 0, 0].real
        instants = grid["times"] if dt is None else dt * np.arange(response.size)
        drawn: dict[str, Any] = {} if dt is None else {"drawstyle": "steps-post"}
        axes.plot(instants, response, label=label, **style, **drawn)
    of = f" of system {', '.join(map(str, at[:-2]))}" if at[:-2] else ""
    real = (
        "real part of the response" if any(is_complex(each[2]) for each in chosen) else "response"
    )
    if is_envelope:
        real = f"{real}: smallest and largest"
    x = "sample" if dt == 1.0 else "time (s)"
    finish(axes, f"Impulse response{of} from u[{at[-1]}] to y[{at[-2]}]", x, real)
    return axes


def _one_channel(system: System, channel: tuple[int, ...]) -> System:
    rows, columns = (slice(index, index + 1) for index in channel[-2:])
    return system.replace(B=system.B[:, columns], C=system.C[rows], D=system.D[rows, columns])


def _grid(systems: list[System], length: int | None, times: Any) -> dict[str, Any]:
    """Arguments of `impulse_response`: those given, or what the slowest pole takes to decay."""
    time = systems[0].time
    if times is not None:
        times = real_values(times, "times", "times in seconds")
    if length is not None or times is not None:
        return {"length": length, "times": times}
    poles = np.concatenate([system.poles().ravel() for system in systems]).astype(np.complex128)
    if isinstance(time, Discrete):
        until = _until(-np.log(np.abs(poles[poles != 0.0])), 20.0)
        return {"length": int(np.clip(until, 20, _LONGEST))}
    return {"times": np.linspace(0.0, _until(-poles.real, 1.0), _POINTS)}


def _shortened(grid: dict[str, Any], system: System, channel: tuple[int, ...]) -> dict[str, Any]:
    """As much of it as nearly all of the energy of a response comes in, and some more."""
    single = _one_channel(system, channel)
    if "length" in grid:
        energies = np.abs(impulse_response(single, **grid)[:, 0, 0]) ** 2
    else:
        end = grid["times"][-1]
        responses = _in_columns(single, end, _POINTS - 1, _periods(single, end))
        energies = np.mean(responses**2, axis=1)
    energy = np.cumsum(energies)
    count = int(1.5 * np.searchsorted(energy, _SEEN * energy[-1])) + 1
    if "length" in grid:
        return {"length": min(max(count, 20), grid["length"])}
    end = grid["times"][min(count, _POINTS - 1)]
    return {"times": np.linspace(0.0, end, _POINTS)}


def _periods(system: System, end: float) -> float:
    """Periods up to `end` of the fastest mode that does not vanish at once."""
    poles = system.poles().astype(np.complex128)
    counts = -poles.real * end < _LASTING * _POINTS
    if isinstance(system, DiagonalStateSpace):
        residues = np.abs(system.C).max(axis=-2) * np.abs(system.B).max(axis=-1)
        counts &= residues > _HEARD * residues.max(initial=0.0)
    lasting = np.abs(poles.imag[counts])
    return float(lasting.max(initial=0.0) * end / (2.0 * np.pi))


def _draw_envelope(
    axes: Axes, system: System, end: float, periods: float, label: str, style: dict[str, Any]
) -> None:
    """What lies between the extremes of columns that each hold a period, full or as two lines."""
    columns = int(min(_COLUMNS, periods / 1.5))
    found = _in_columns(system, end, columns, periods)
    middle = (np.arange(columns) + 0.5) * (end / columns)
    low, high = found.min(axis=1), found.max(axis=1)
    if style is FULL:
        look = {"linewidth": style["linewidth"], "color": style["color"]}
        axes.fill_between(middle, low, high, label=label, **look)
    else:
        for values, name in ((high, label), (low, None)):
            axes.plot(middle, values, label=name, **{**style, "linestyle": "-"})


def _in_columns(system: System, end: float, columns: int, periods: float) -> HostArray:
    """Real part of the response of one channel in `columns` intervals up to `end`, one a row.

    C exp(A (t + d)) B is a product of a row that depends on d and a column that depends on t: a million
    samples take no more steps than there are columns, and samples in one. Where a mode is so fast that
    there are fewer than ten in its period, they still meet it at all phases, unless it has exactly theirs.
    """
    width = end / columns
    samples = int(np.clip(np.ceil(_PER_PERIOD * periods / columns), 2, _FINEST)) + 1
    starts, within = width * np.arange(columns), np.linspace(0.0, width, samples)
    if isinstance(system, DiagonalStateSpace):
        eigenvalues = system.eigenvalues
        with np.errstate(over="ignore", invalid="ignore"):
            states = np.exp(exponents(eigenvalues, starts[:, None])) * system.B[:, 0]
            rows = np.conj(np.exp(exponents(eigenvalues, within[:, None])) * system.C[0])
    else:
        everything = np.eye(system.order)
        driven = system.replace(C=everything, D=None)
        read = StateSpace(adjoint(system.A), adjoint(system.C), everything, time=system.time)
        states = impulse_response(driven, times=starts)[:, :, 0]
        rows = impulse_response(read, times=within)[:, :, 0]
    found: HostArray = (states @ adjoint(rows)).real
    return checked_range(
        found, "the response drawn", "Pass earlier `times`, or look at system.poles()."
    )


def _until(rates: HostArray, otherwise: float) -> float:
    """When what decays at the slowest of the rates has decayed, or what grows has grown as much."""
    if rates.min(initial=0.0) < 0.0:
        return float(_DECAY / -rates.min())
    decaying = rates[(rates > 1e-100) & (rates < 1e100)]
    return float(_DECAY / decaying.min()) if decaying.size else otherwise


def _strongest(systems: dict[tuple[int, ...], System], grid: dict[str, Any]) -> tuple[int, ...]:
    """The channel whose response has the most energy, on as many samples as fit in memory."""
    first = next(iter(systems.values()))
    if not (first.inputs and first.outputs):
        raise ShapeError(
            f"`system` has {first.inputs} inputs and {first.outputs} outputs; expected at least one of "
            "each. Without them there is no response."
        )
    most = max(2, _ENTRIES // (first.inputs * first.outputs))
    shorter: dict[str, Any] = {}
    if grid.get("length") is not None:
        shorter = {"length": min(positive_count(grid["length"], "length", "samples"), most)}
    elif grid.get("times") is not None:
        shorter = {"times": grid["times"][:: max(1, -(-grid["times"].size // most))]}
    energies = {
        index: np.sum(np.abs(impulse_response(system, **shorter)) ** 2, axis=0)
        for index, system in systems.items()
    }
    best = max(energies, key=lambda index: float(energies[index].max()))
    output, entry = np.unravel_index(np.argmax(energies[best]), energies[best].shape)
    return (*best, int(output), int(entry))


def _channel(system: System, channel: object) -> tuple[int, ...]:
    """The indices in `channel`, each in its range."""
    shape = (*system.batch_shape, system.outputs, system.inputs)
    if not isinstance(channel, tuple | list) or len(channel) != len(shape):
        raise ArgumentError(
            f"`channel` is {shown(channel)}; expected {len(shape)} ints: the indices of output and input, "
            f"after those of the system in a batch. Try {(0,) * len(shape)}."
        )
    found = tuple(whole_number(each, "channel", "(output, input)") for each in channel)
    if any(not 0 <= each < size for each, size in zip(found, shape, strict=True)):
        raise ArgumentError(
            f"`channel` is {found}; expected indices below {shape}. Try {(0,) * len(shape)}."
        )
    return found
