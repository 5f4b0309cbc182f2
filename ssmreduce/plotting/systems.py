"""Poles and gains of a system before and after a reduction.

A batch is drawn as its worst: at each frequency the largest gain, the largest error and the largest bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray, is_array, to_double
from ssmreduce._checks import (
    finite_number,
    flag,
    floating_array,
    metric_value,
    real_values,
    shown,
)
from ssmreduce.errors import ShapeError
from ssmreduce.gramians.batch import batch_indices
from ssmreduce.norms.gain import Gain, check_alike
from ssmreduce.plotting.axes import (
    BOUND,
    COLOURS,
    ERROR,
    FULL,
    GREY,
    REDUCED,
    few_ticks,
    finish,
    legend_above,
    one_panel,
    positive,
    say,
)
from ssmreduce.systems.diagonal import System, check_system
from ssmreduce.time_domain import Continuous, Discrete, TimeDomain, check_time, sampling_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 400
"""Frequencies of a curve."""

_ITERATIONS = 8
"""Power iterations for a gain of many inputs and outputs: its curve is right to a line's width."""

_LEAST_GAIN = -240.0
"""dB below the peak that count as none: there is rounding alone."""


def plot_poles(
    before: HostArray,
    after: HostArray | None = None,
    *,
    time: TimeDomain,
    folded: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Poles before and after a reduction, with the unit circle or the imaginary axis.

    Parameters
    ----------
    before : (..., n) array
        Poles λ.
    after : (..., r) array, optional
        Poles of the reduced system.
    time : Continuous or Discrete
        Where stable poles lie: left of the imaginary axis, or inside the unit circle.
    folded : bool
        Draw each pole at |Im λ|: a system with real output is the same with its conjugate.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        Poles before are dots, those after crosses.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If poles are not an array of numbers.
    NonFiniteError
        If one is not finite.
    TimeDomainError
        If `time` is not a time domain.
    ArgumentError
        If `folded` is not a bool.

    Examples
    --------
    >>> from ssmreduce import Discrete
    >>> from ssmreduce.plotting import plot_poles
    >>> axes = plot_poles([0.9, 0.5j, -0.5j], [0.9], time=Discrete())
    >>> axes.get_xlabel(), len(axes.collections[0].get_offsets())
    ('Re λ', 3)
    """
    folded, time = flag(folded, "folded"), check_time(time)
    sets = [_poles(before, "before", folded)]
    if after is not None:
        sets.append(_poles(after, "after", folded))
    in_steps = isinstance(time, Discrete)
    axes = one_panel(ax, (5.2, 4.0 if folded and in_steps else 4.8))
    looks: list[dict[str, Any]] = [
        {"s": 20, "color": GREY, "alpha": 0.7, "linewidths": 0},
        {"s": 46, "marker": "x", "color": COLOURS[1], "linewidths": 1.5},
    ]
    for poles, name, style in zip(sets, ("before", "after"), looks, strict=False):
        axes.scatter(poles.real, poles.imag, label=f"{poles.size} {name}", zorder=3, **style)
    per_second, rad = ("", "") if in_steps else (" (1/s)", " (rad/s)")
    imaginary = "|Im λ|" if folded else "Im λ"
    if in_steps:
        _draw_circle(axes, folded, np.concatenate(sets))
    else:
        axes.axvline(0.0, color="black", linewidth=0.8)
        few_ticks(axes)
    finish(axes, "Poles", f"Re λ{per_second}", f"{imaginary}{rad}", legend=False)
    legend_above(axes)
    return axes


def _draw_circle(axes: Axes, folded: bool, poles: HostArray) -> None:
    circle = np.exp(2j * np.pi * np.linspace(0.0, 0.5 if folded else 1.0, 361))
    axes.plot(circle.real, circle.imag, color="black", linewidth=0.8)
    far = 1.1 * max(1.0, float(np.abs(poles).max(initial=0.0)))
    axes.set_aspect("equal")
    axes.set_xlim(-far, far)
    axes.set_ylim(-0.06 * far if folded else -far, far)


def _poles(poles: object, name: str, folded: bool) -> HostArray:
    found = to_double(floating_array(poles, name, 1)).astype(np.complex128).ravel()
    if np.abs(found).max(initial=0.0) > 1e150:
        raise ShapeError(
            f"`{name}` holds poles up to {np.abs(found).max():.3g}; expected at most 1e150. Look at "
            "system.poles()."
        )
    return found.real + 1j * np.abs(found.imag) if folded else found


# --- Gain


def plot_gain(
    system: System,
    reduced: System | None = None,
    *,
    bound: float | HostArray | None = None,
    omega: HostArray | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Gain over frequency of a system, of a reduced one and of their difference, with the error
    bound.

    The gain is the largest singular value of G(z) on the stability boundary, in dB.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Of a batch the largest gain at each frequency is drawn.
    reduced : StateSpace or DiagonalStateSpace, optional
        A system of the same inputs, outputs and batch axes.
    bound : float or (...) array, optional
        Bound on the H-infinity error, drawn as a line; the largest of several.
    omega : (K,) array, optional
        Positive angles in radians per sample (discrete) or rad/s (continuous), as
        `frequency_response` takes them; chosen by the poles otherwise.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        Over rad/s, or rad/sample where the sampling time is 1, with a line at the Nyquist
        frequency. Curves end 240 dB below the highest peak, where only rounding is left.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ArgumentTypeError
        If `system` or `reduced` is not a system.
    ShapeError, TimeDomainError
        If their sizes or times differ, or a frequency is not positive.
    NonFiniteError
        If a frequency is NaN or Inf.
    ArgumentError
        If `bound` is not a number, or one for each system.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, balanced_truncation
    >>> from ssmreduce.plotting import plot_gain
    >>> system = DiagonalStateSpace([0.9, 0.1], [[1.0], [0.1]], [[1.0, 0.1]], time=Discrete())
    >>> result = balanced_truncation(system, 1)
    >>> axes = plot_gain(system, result.system, bound=result.error_bound)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('frequency (rad/sample)', 'gain (dB)')
    """
    pairs = [*paired(system, reduced).values()]
    singles = [single for single, _ in pairs]
    limit = None if bound is None else _largest(bound)
    gains: list[tuple[str, dict[str, Any], list[Gain]]] = []
    gains.append(("full", FULL, [Gain((1.0, each)) for each in singles]))
    both = [(one, two) for one, two in pairs if two is not None]
    if both:
        gains.append(("reduced", REDUCED, [Gain((1.0, two)) for _, two in both]))
        gains.append(("error", ERROR, [Gain((1.0, one), (-1.0, two)) for one, two in both]))
    points = _frequencies(singles) if omega is None else _checked_frequencies(omega)
    axes = one_panel(ax)
    _draw_gains(axes, points, system.time, gains, limit)
    return axes


def _largest(bound: Any) -> float:
    """A number, or the largest of an array."""
    if not is_array(bound) or bound.ndim == 0:
        return finite_number(metric_value(bound, "bound"), "bound", "reduction.error_bound")
    array = real_values(bound, "bound", "reduction.error_bound")
    if array.size == 0:
        raise ShapeError(
            f"`bound` has shape {array.shape}; expected one number at least. Pass reduction.error_bound."
        )
    return float(array.max())


def _draw_gains(
    axes: Axes,
    omega: HostArray,
    time: TimeDomain,
    gains: list[tuple[str, dict[str, Any], list[Gain]]],
    bound: float | None,
) -> None:
    dt = sampling_time(time)
    curves = [
        _decibels(np.max([_gain_at(gain, omega) for gain in each], axis=0)) for _, _, each in gains
    ]
    tops = [np.nanmax(curve) for curve in curves if not np.all(np.isnan(curve))]
    for curve, (label, style, each) in zip(curves, gains, strict=True):
        seen = np.where(curve > max(tops, default=0.0) + _LEAST_GAIN, curve, np.nan)
        of = f" (largest of {len(each)})" if len(each) > 1 else ""
        axes.plot(omega / (dt or 1.0), seen, label=f"{label}{of}", **style)
    if bound is not None and bound > 0.0:
        level = float(_decibels(np.array([bound]))[0])
        axes.axhline(level, label=f"error bound ({level:.1f} dB)", **BOUND)
    axes.set_xscale("log")
    if dt is not None:
        axes.axvline(np.pi / dt, color="black", linewidth=0.8, label="Nyquist frequency")
    if not tops:
        say(axes, "the gain is 0")
    both = "" if gains[0][2][0].real else ", the larger of both signs"
    unit = "rad/sample" if dt == 1.0 else "rad/s"
    finish(axes, "Gain", f"frequency ({unit}){both}", "gain (dB)", legend=False)
    legend_above(axes)


def _gain_at(gain: Gain, omega: HostArray) -> HostArray:
    found = gain.at(omega, _ITERATIONS)
    if gain.real:
        return found
    return np.maximum(found, gain.at(-omega, _ITERATIONS))


def _decibels(gain: HostArray) -> HostArray:
    return 20.0 * np.log10(positive(gain))


def paired(
    system: System, reduced: System | None
) -> dict[tuple[int, ...], tuple[System, System | None]]:
    """The systems of a batch, on the host, by their index, each with the reduced one."""
    singles = _singles(system, "system")
    if reduced is None:
        return {index: (single, None) for index, single in singles.items()}
    others = _singles(reduced, "reduced")
    if singles.keys() != others.keys():
        raise ShapeError(
            f"`reduced` has batch axes {reduced.batch_shape} but `system` has {system.batch_shape}; "
            "expected the same."
        )
    for index, single in singles.items():
        check_alike(single, others[index])
    return {index: (single, others[index]) for index, single in singles.items()}


def _singles(system: System, name: str) -> dict[tuple[int, ...], System]:
    check_system(system, name)
    host = system.to_host()
    return {index: host[index] if index else host for index in batch_indices(host)}


def _checked_frequencies(omega: object) -> HostArray:
    points = real_values(omega, "omega", "frequencies, such as numpy.logspace(-3, 0.5, 400)")
    if points.ndim != 1 or not points.size or points.min() <= 0.0:
        raise ShapeError(
            f"`omega` is {shown(omega)}; expected one axis of positive frequencies: the axis is logarithmic. "
            "Try numpy.logspace(-3, 0.5, 400)."
        )
    return np.sort(points)


def _frequencies(systems: list[System]) -> HostArray:
    """From a tenth of the slowest pole to the Nyquist frequency, or ten times the fastest, and resonances."""
    poles = np.concatenate([system.poles().ravel() for system in systems]).astype(np.complex128)
    time = systems[0].time
    poles = time.rates(poles[poles != 0.0])
    poles = poles[(np.abs(poles) > 1e-100) & (np.abs(poles) < 1e100)]
    slowest, fastest = np.abs(poles).min(initial=1.0), np.abs(poles).max(initial=0.0)
    if isinstance(time, Continuous):
        high = 10.0 * (fastest or 10.0)
        low = max(0.1 * (np.abs(poles).min() if poles.size else 0.1), 1e-12 * high)
    else:
        low, high = np.clip(slowest / 10.0, 1e-6, np.pi / 100.0), time.nyquist
    resonances = np.abs(poles.imag)
    inside = resonances[(resonances > low) & (resonances < high)]
    # The first of many, evenly spread, stand for all.
    inside = np.sort(inside)[:: max(1, inside.size // _POINTS)]
    points: HostArray = np.unique(np.concatenate([np.geomspace(low, high, _POINTS), inside]))
    return points
