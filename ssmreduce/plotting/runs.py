"""Pictures of training: values over the steps, how rankings agree, and a metric against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import check_text, finite_number, items, real_values, shown
from ssmreduce.errors import ShapeError
from ssmreduce.plotting.axes import (
    axis_of_numbers,
    count_states,
    entries,
    finish,
    look,
    one_panel,
    say,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR = 1e-8
"""Share of the largest value below which all have one colour."""

_APART = 0.05
"""Share of the width that labels of two cuts are apart; closer ones are one label."""


def plot_hsv_map(
    steps: Sequence[float],
    hsv: Sequence[HostArray],
    *,
    kept: Sequence[int] | None = None,
    cuts: Mapping[float, str] | None = None,
    name: str = "Hankel singular value",
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the values of one layer over training, with the cuts marked.

    Parameters
    ----------
    steps : (K,) sequence of float
        When the values were recorded, increasing.
    hsv : K sequences of (..., n) arrays
        Values at each step, descending; n may change. Where channels run apart, the largest are
        drawn.
    kept : (K,) sequence of int, optional
        How many of them a rule would keep: drawn as a line.
    cuts : mapping of float to str, optional
        Steps at which the layer was cut, or a cut was undone, and what to write there.
    name : str
        What the values are.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        With a colour bar next to them.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If there are no steps, or not one array of values for each.
    NonFiniteError
        If a value is NaN or Inf.
    ArgumentError
        If `name` is not text.

    Examples
    --------
    >>> from ssmreduce.plotting import plot_hsv_map
    >>> axes = plot_hsv_map(
    ...     [0, 10, 20], [[4.0, 2.0, 0.1], [4.0, 1.0, 0.1], [4.0]], cuts={15: "3 → 1"}
    ... )
    >>> axes.collections[0].get_array().shape
    (3, 3)
    """
    at = axis_of_numbers(steps, "steps")
    rows = [_largest(each) for each in items(hsv, "hsv", "an array of values for each step")]
    if not at.size or len(rows) != at.size or np.any(np.diff(at) <= 0.0):
        raise ShapeError(
            f"`steps` has {at.size} entries and `hsv` {len(rows)}; expected as many, at least one, and steps "
            "that increase. Pass one array of values for each step."
        )
    counts = None if kept is None else with_gaps(kept, "kept", at.size)
    marks = _checked_cuts(cuts)
    check_text(name, "name", "what the values are")
    axes = one_panel(ax)
    _draw_map(axes, at, rows, name)
    if counts is not None:
        outline: dict[str, Any] = {"drawstyle": "steps-mid", "linestyle": "-"}
        axes.plot(at, counts + 0.5, color="black", linewidth=3.2, **outline)
        axes.plot(at, counts + 0.5, color="white", linewidth=1.6, label="kept", **outline)
    _draw_cuts(axes, marks)
    count_states(axes)
    finish(axes, "Values over training", "step", "number of the value", legend=False)
    axes.grid(False)
    return axes


def _draw_map(axes: Axes, steps: HostArray, rows: list[HostArray], name: str) -> None:
    from matplotlib.colors import LogNorm

    table = np.full((max(row.size for row in rows), steps.size), np.nan)
    for column, row in zip(table.T, rows, strict=True):
        column[: row.size] = row
    largest = np.nanmax(table)
    if largest <= 0.0:
        say(axes, "all values are 0")
        return
    least = np.nanmin(np.where(table > _FLOOR * largest, table, largest))
    # What is 0 has the darkest colour; white is where there is no state.
    shown = np.where(np.isnan(table), np.nan, np.maximum(table, least))
    norm = LogNorm(least if least < largest else 0.1 * largest, largest)
    mesh = axes.pcolormesh(
        _edges(steps),
        np.arange(len(table) + 1) + 0.5,
        shown,
        norm=norm,
        cmap="cividis",
        rasterized=True,
    )
    bar = axes.figure.colorbar(mesh, ax=axes, label=name)
    bar.minorticks_off()


def _edges(steps: HostArray) -> HostArray:
    """Borders between the columns of steps: halfway."""
    if steps.size == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    between = (steps[1:] + steps[:-1]) / 2.0
    first, last = 2.0 * steps[0] - between[0], 2.0 * steps[-1] - between[-1]
    return np.array([first, *between, last])


def _draw_cuts(axes: Axes, cuts: dict[float, str]) -> None:
    """A line at each cut, and what is written there."""
    left, right = axes.get_xlim()
    said: dict[float, str] = {}
    last = -np.inf
    for step in sorted(cuts):
        axes.axvline(step, color="black", linewidth=2.6)
        axes.axvline(step, color="white", linewidth=1.2, linestyle="--")
        if step - last < _APART * (right - left):
            said[last] += f", {cuts[step]}"
        else:
            said[step], last = cuts[step], step
    for step, text in said.items():
        axes.annotate(
            text,
            (step, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, -4),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1.0},
        )


def _checked_cuts(cuts: object) -> dict[float, str]:
    if cuts is None:
        return {}
    if not isinstance(cuts, Mapping):
        raise ShapeError(f"`cuts` is {shown(cuts)}; expected a dict. Pass {{100: '64 → 20'}}.")
    for label in cuts.values():
        check_text(label, "cuts", "what to write at each step")
    return {finite_number(step, "cuts", "steps as its keys"): text for step, text in cuts.items()}


def _largest(values: object) -> HostArray:
    """Values over the channels."""
    array = real_values(values, "hsv", "an array of values for each step")
    if array.size == 0 or array.min() < 0.0:
        raise ShapeError(
            f"`hsv` holds an array of shape {array.shape} that is empty or negative somewhere; expected "
            "nonnegative numbers. Pass the result of hankel_singular_values."
        )
    largest: HostArray = array.reshape(-1, array.shape[-1]).max(axis=0)
    return largest


def plot_agreement(
    steps: Sequence[float],
    overlap: Sequence[float],
    rank_correlation: Sequence[float],
    *,
    settled: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How rankings of states over training agree with the latest one.

    Parameters
    ----------
    steps : (K,) sequence of float
        When they were recorded.
    overlap : (K,) sequence of float
        States that a ranking and the latest both keep, over those that one of them keeps.
    rank_correlation : (K,) sequence of float
        Spearman's ρ of the two.
    settled : float, optional
        Since when both have been high.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        With both curves; 1 is full agreement.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If there is not one value for each step.
    ArgumentError
        If `settled` is not a finite number.
    NonFiniteError
        If a value is NaN or Inf.

    Examples
    --------
    >>> from ssmreduce.plotting import plot_agreement
    >>> axes = plot_agreement([0, 10, 20], [0.5, 1.0, 1.0], [0.2, 0.9, 1.0], settled=10)
    >>> [line.get_label() for line in axes.lines]
    ['same states kept (overlap)', 'same order (rank correlation)', 'settled at step 10']
    """
    at = axis_of_numbers(steps, "steps")
    curves = {
        "same states kept (overlap)": with_gaps(overlap, "overlap", at.size),
        "same order (rank correlation)": with_gaps(rank_correlation, "rank_correlation", at.size),
    }
    since = None if settled is None else finite_number(settled, "settled", "a step")
    axes = one_panel(ax, (6.4, 2.8))
    for index, (label, values) in enumerate(curves.items()):
        axes.plot(at, values, label=label, **{**look(index), "markersize": 4})
    if since is not None:
        axes.axvline(since, color="black", linewidth=1.2, label=f"settled at step {since:g}")
    lowest = np.nanmin([np.nanmin(values, initial=1.0) for values in curves.values()])
    axes.set_ylim(min(0.0, 1.1 * lowest), 1.08)
    count_states(axes)
    finish(axes, "Agreement with the latest ranking", "step", "agreement")
    return axes


def plot_metric(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    cuts: Mapping[str, Sequence[float]] | None = None,
    name: str = "metric",
    ax: Axes | None = None,
) -> Axes:
    """A metric against wall-clock time, one curve for each run.

    Parameters
    ----------
    curves : mapping of str to (seconds, values)
        Label of each run to its times in seconds and the metric then. What is not finite leaves a
        gap.
    cuts : mapping of str to sequence of float, optional
        Seconds at which the run of that label was cut: circles on its curve.
    name : str
        What the metric is, with its unit.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        With a legend of the runs.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If a run has not one value for each time, or there are cuts of a run that is not there.
    ArgumentError
        If a label or `name` is not text.

    Examples
    --------
    >>> from ssmreduce.plotting import plot_metric
    >>> runs = {"full": ([0, 60, 120], [10, 80, 90]), "cut": ([0, 60, 90], [10, 81, 90])}
    >>> axes = plot_metric(runs, cuts={"cut": [30]}, name="test accuracy (%)")
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('wall-clock time (s)', 'test accuracy (%)')
    """
    runs = {label: _checked_curve(label, each) for label, each in entries(curves, "curves").items()}
    marks = {
        label: axis_of_numbers(times, f"cuts[{label!r}]")
        for label, times in entries({} if cuts is None else cuts, "cuts").items()
    }
    if not marks.keys() <= runs.keys():
        raise ShapeError(
            f"`cuts` has the labels {[*marks]}; expected some of those of `curves`, {[*runs]}. Use one name "
            "for each run."
        )
    check_text(name, "name", "what the metric is")
    axes = one_panel(ax)
    for index, (label, (seconds, values)) in enumerate(runs.items()):
        axes.plot(seconds, values, label=label, **{**look(index), "markersize": 4})
    _draw_cut_times(axes, runs, marks)
    if not runs:
        say(axes, "no runs")
    finish(axes, "Metric against time", "wall-clock time (s)", name)
    return axes


def _draw_cut_times(
    axes: Axes, runs: dict[str, tuple[HostArray, HostArray]], cuts: dict[str, HostArray]
) -> None:
    """Circles on the curves, or where a run has no value around a cut nothing."""
    times, values = [], []
    for label, seconds in cuts.items():
        at, metric = runs[label]
        if at.size:
            order = np.argsort(at, kind="stable")
            times.append(seconds)
            values.append(np.interp(seconds, at[order], metric[order], left=np.nan, right=np.nan))
    if times:
        circle: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 11}
        circle |= {"markerfacecolor": "none", "markeredgecolor": "black", "label": "cut"}
        axes.plot(np.concatenate(times), np.concatenate(values), **circle)


def _checked_curve(label: str, curve: object) -> tuple[HostArray, HostArray]:
    name = f"curves[{label!r}]"
    pair = items(curve, name, "the seconds and the values of the run")
    if len(pair) != 2:
        raise ShapeError(
            f"`{name}` has {len(pair)} entries; expected seconds and values. Pass a pair of lists."
        )
    seconds = axis_of_numbers(pair[0], name)
    return seconds, with_gaps(pair[1], name, seconds.size)
