"""Pictures of reductions as Matplotlib figures, without pyplot and its global state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._checks import (
    check_instance,
    check_text,
    items,
    numeric_array,
    real_values,
    require_backend,
    shown,
)
from ssmreduce._namespace import HostArray, to_double
from ssmreduce.errors import ShapeError
from ssmreduce.training.trace import HankelRecord, HankelTrace
from ssmreduce.training.tracking import ReductionEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct under the common colour blindnesses; line styles and markers
# repeat the distinction.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#8C8C8C"
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")

# Values below this share of the largest one are rounding and would stretch the axis.
_HSV_FLOOR = 1e-12

_COLUMNS = 4

_FAR = 1e30
"""Seconds and accuracies beyond it overflow in the margins that Matplotlib adds."""


def plot_hsv_decay(events: Sequence[ReductionEvent]) -> Figure:
    """Hankel singular values before each cut, largest first, on a logarithmic axis.

    Parameters
    ----------
    events : sequence of ReductionEvent
        The cuts; the last value that each kept is marked. Of a layer that runs no one system, as Mamba, what
        outputs lose with each state is drawn, and called that.

    Returns
    -------
    Figure
        A new figure, not known to pyplot; a notebook shows it.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    """
    events = _checked_events(events)
    figure = _figure((7.0, 4.6))
    axes = figure.add_subplot()
    for index, event in enumerate(events):
        colour = _COLOURS[index % len(_COLOURS)]
        hsv = event.hsv.reshape(-1, event.hsv.shape[-1]).max(axis=0)
        shown = hsv > _HSV_FLOOR * hsv[0]
        position = np.arange(1, hsv.size + 1)
        label = f"{_cut_name(event, events)}: {event.old_order} → {event.new_order} states"
        axes.semilogy(
            position[shown],
            hsv[shown],
            color=colour,
            linestyle=_STYLES[index % len(_STYLES)],
            linewidth=1.8,
            label=label,
        )
        kept = min(event.real_order, hsv.size)
        axes.plot(
            kept,
            max(hsv[kept - 1], _HSV_FLOOR * hsv[0]),
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=9,
            markeredgecolor="black",
        )
        axes.axvline(kept, color=colour, linestyle=":", linewidth=1.0, alpha=0.7)
    number, value, values = _names_of_values(events)
    axes.set_xlabel(number)
    axes.set_ylabel(value)
    _finish(axes, f"{values} at each cut; the marker is the last one kept", events)
    return figure


def _names_of_values(events: Sequence[ReductionEvent]) -> tuple[str, str, str]:
    """What the numbers of states, their values and all values are called: selective layers have others."""
    has_system = {event.poles_before.size > 0 for event in events}
    if has_system == {False}:
        return "number of states", "score (loss of outputs with the state)", "Scores of the states"
    number, value = "index in the real system (2 per stored state)", "Hankel singular value (gain)"
    if has_system == {True, False}:
        value = f"{value}, or score"
        return f"{number}, or number of states", value, "Hankel singular values and scores"
    return number, value, "Hankel singular values"


def plot_accuracy(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    cut_times: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Accuracy against wall-clock time, one curve per run.

    Parameters
    ----------
    curves : mapping of str to (seconds, accuracy)
        Label of each run to its times in seconds and its accuracies from 0 to 1.
    cut_times : mapping of str to sequence of float, optional
        Seconds at which the run of that label was cut.

    Returns
    -------
    Figure
        A new figure, not known to pyplot; a notebook shows it.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    """
    runs = {label: _checked_curve(label, curve) for label, curve in _entries(curves, "curves")}
    cuts = {
        label: _checked_axis(times, f"cut_times[{label!r}]")
        for label, times in _entries({} if cut_times is None else cut_times, "cut_times")
    }
    figure = _figure((7.0, 4.6))
    axes = figure.add_subplot()
    lowest = 100.0
    marked = False
    for index, (label, (seconds, accuracy)) in enumerate(runs.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        percent = 100.0 * accuracy
        lowest = min(lowest, *percent) if percent.size else lowest
        axes.plot(
            seconds,
            percent,
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.8,
            label=label,
        )
        for time in cuts.get(label, ()):
            name = None if marked else "cut"
            axes.axvline(time, color=colour, linestyle=":", linewidth=1.4, label=name)
            marked = True
    axes.set_xlim(left=0.0)
    # The runs differ by points near the top; the climb from chance level may leave the picture.
    axes.set_ylim(max(0.0, lowest - 2.0), 100.5)
    axes.set_xlabel("wall-clock time (s), compilation and cuts included")
    axes.set_ylabel("test accuracy (%)")
    _finish(axes, "Accuracy against time, same number of steps", list(runs))
    return figure


def plot_poles(events: Sequence[ReductionEvent]) -> Figure:
    """Poles before and after each cut on the upper half of the unit disk.

    A layer with real output is the same with a pole or with its conjugate: both are drawn with
    Im λ ≥ 0.

    Parameters
    ----------
    events : sequence of ReductionEvent
        The cuts, one panel each; without poles for a layer that runs no one system.

    Returns
    -------
    Figure
        A new figure, not known to pyplot; a notebook shows it.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    """
    events = _checked_events(events)
    columns = min(max(len(events), 1), _COLUMNS)
    rows = max(1, -(-len(events) // columns))
    figure = _figure((max(3.6 * columns, 5.6), 2.7 * rows + 0.6))
    if not events:
        _finish(figure.add_subplot(), "Poles", events)
    circle = np.exp(2j * np.pi * np.linspace(0.0, 0.5, 181))
    for index, event in enumerate(events):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.plot(circle.real, circle.imag, color="black", linewidth=0.8)
        before, after = np.asarray(event.poles_before), np.asarray(event.poles_after)
        axes.scatter(
            before.real,
            abs(before.imag),
            s=14,
            color=_GREY,
            alpha=0.55,
            linewidths=0,
            label="before",
        )
        axes.scatter(
            after.real,
            abs(after.imag),
            s=42,
            marker="x",
            color=_COLOURS[1],
            linewidths=1.5,
            label="after",
        )
        if not before.size:
            axes.text(0.0, 0.45, "selective: no poles", ha="center", fontsize=9, color=_GREY)
        axes.set_aspect("equal")
        axes.set_xlim(-1.1, 1.1)
        axes.set_ylim(-0.06, 1.1)
        axes.set_xticks((-1.0, 0.0, 1.0))
        axes.set_yticks((0.0, 0.5, 1.0))
        axes.grid(alpha=0.25)
        axes.set_xlabel("Re λ")
        if index % columns == 0:
            axes.set_ylabel("|Im λ|")
        axes.set_title(
            f"{_cut_name(event, events)}\n{event.old_order} → {event.new_order} states", fontsize=10
        )
    if events:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle("Stored poles on the unit disk, conjugates folded to Im λ ≥ 0", fontsize=11)
    return figure


def plot_trace(trace: HankelTrace, events: Sequence[ReductionEvent] = ()) -> Figure:
    """Hankel singular values over the steps, and how each ranking agrees with the latest.

    Parameters
    ----------
    trace : HankelTrace
        What was recorded: one column for each layer. Of layers that run channels apart, the largest values
        over the channels are shown. Values by data are dashed.
    events : sequence of ReductionEvent, optional
        Cuts to mark at their steps, in the column of their layer.

    Returns
    -------
    Figure
        A new figure, not known to pyplot; a notebook shows it.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    """
    check_instance(trace, HankelTrace, "trace", "HankelTrace(100)")
    events = _checked_events(events)
    layers = trace.layers
    figure = _figure((max(4.6 * len(layers), 6.0), 6.0))
    if not layers:
        _finish(figure.add_subplot(), "Hankel singular values", layers)
        return figure
    grid = figure.subplots(2, len(layers), squeeze=False, sharex="col", height_ratios=(2, 1))
    for column, layer in enumerate(layers):
        above, below = grid[:, column]
        _plot_values(above, trace, layer)
        _plot_data_values(above, trace, layer)
        own = [event for event in events if event.layer == layer]
        _mark_cuts(above, own)
        _mark_changes(above, trace.of_layer(layer), own)
        above.set_title(_title(trace, layer), fontsize=11)
        agreement = trace.agreement(layer)
        steps = [entry.step for entry in agreement]
        curves = {
            "same states kept (overlap)": [entry.overlap for entry in agreement],
            "same order (rank correlation)": [entry.rank_correlation for entry in agreement],
        }
        for index, (label, values) in enumerate(curves.items()):
            style = {"color": _COLOURS[index], "marker": _MARKERS[index], "label": label}
            below.plot(steps, values, linestyle=_STYLES[index], markersize=4, **style)
        settled = trace.settled(layer)
        if settled is not None:
            below.axvline(settled, color="black", linewidth=1.2, label=f"settled at step {settled}")
        lowest = min(min(values) for values in curves.values())
        below.set_ylim(min(0.0, 1.1 * lowest), 1.05)
        spacing = trace.spacing(layer)
        note = f" (recorded at least every {spacing})" if spacing > trace.every else ""
        below.set_xlabel(f"step{note}")
        for axes in (above, below):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        below.legend(fontsize=8, framealpha=0.9)
    grid[0, 0].set_ylabel("Hankel singular value (gain)")
    grid[1, 0].set_ylabel("agreement with\nthe latest ranking")
    drawn = [axes.get_legend_handles_labels() for axes in grid[0]]
    legend = {label: line for lines in drawn for line, label in zip(*lines, strict=True)}
    place: dict[str, Any] = {
        "loc": "outside lower center",
        "ncols": 3,
        "frameon": False,
        "fontsize": 9,
    }
    figure.legend([*legend.values()], [*legend], **place)
    figure.suptitle("Hankel singular values over training", fontsize=11)
    return figure


def _checked_events(events: object) -> list[ReductionEvent]:
    found = items(events, "events", "reducer.events")
    for event in found:
        check_instance(event, ReductionEvent, "events", "reducer.events")
    return found


def _entries(mapping: object, name: str) -> list[tuple[str, Any]]:
    """Labels and values of a dict."""
    if not isinstance(mapping, Mapping):
        raise ShapeError(f"`{name}` is {shown(mapping)}; expected a dict by the label of each run.")
    for label in mapping:
        check_text(label, name, "the label of each run as its keys")
    return list(mapping.items())


def _checked_curve(label: str, curve: object) -> tuple[HostArray, HostArray]:
    name = f"curves[{label!r}]"
    pair = items(curve, name, "the seconds and the accuracies of the run")
    if len(pair) != 2:
        raise ShapeError(f"`{name}` has {len(pair)} entries; expected seconds and accuracies.")
    seconds = _checked_axis(pair[0], name)
    # A run that has diverged leaves a gap.
    found = to_double(numeric_array(pair[1], name, 0))
    accuracy = np.where(np.isfinite(found), found, np.nan)
    _checked_axis(np.nan_to_num(accuracy), name)
    if seconds.size != accuracy.size:
        raise ShapeError(
            f"`{name}` has {seconds.size} seconds but {accuracy.size} accuracies; expected as many."
        )
    return seconds, accuracy


def _checked_axis(values: object, name: str) -> HostArray:
    array = real_values(values, name, "a list of numbers")
    if array.ndim != 1 or np.abs(array).max(initial=0.0) > _FAR:
        raise ShapeError(
            f"`{name}` has shape {array.shape} and numbers up to {np.abs(array).max(initial=0.0):.3g}; "
            f"expected one axis of numbers up to {_FAR:g}."
        )
    return array


def _plot_values(axes: Axes, trace: HankelTrace, layer: str) -> None:
    """A line for each position in the ranking; it ends where a cut takes the position away."""
    records = trace.of_layer(layer)
    values = [_largest(record.hsv) for record in records]
    table = _table(values)
    kept = []
    for value in values:
        mass = np.cumsum(value)
        kept.append(value[np.searchsorted(mass, trace.share * mass[-1])])
    steps = [record.step for record in records]
    if np.any(
        table > 0.0
    ):  # a layer without any response has nothing to show on a logarithmic axis
        axes.set_yscale("log")
    lines = axes.plot(steps, table, color=_GREY, linewidth=0.8, alpha=0.7, marker=".", markersize=3)
    lines[0].set_label("one value each")
    axes.plot(
        steps, kept, color=_COLOURS[1], linewidth=1.8, label=f"last of {trace.share:.0%} of the sum"
    )


def _plot_data_values(axes: Axes, trace: HankelTrace, layer: str) -> None:
    """The values by data, dashed between the records that have some."""
    found = [
        (record.step, record.data_hsv)
        for record in trace.of_layer(layer)
        if record.data_hsv is not None
    ]
    if not found:
        return
    steps, table = [step for step, _ in found], _table([_largest(values) for _, values in found])
    lines = axes.plot(
        steps, table, "x--", color=_COLOURS[2], linewidth=0.7, alpha=0.6, markersize=3
    )
    lines[0].set_label("one value each, by data")


def _title(trace: HankelTrace, layer: str) -> str:
    """The layer, with a note where others alone have values by data."""
    named = {record.layer for record in trace.records if record.data_hsv is not None}
    return f"{layer} (no values by data)" if named and layer not in named else layer


def _largest(values: HostArray) -> HostArray:
    """Values over the channels."""
    largest: HostArray = values.reshape(-1, values.shape[-1]).max(axis=0)
    return largest


def _table(rows: Sequence[HostArray]) -> HostArray:
    """A row for each record, without what rounding makes."""
    table = np.full((len(rows), max(row.size for row in rows)), np.nan)
    for entries, row in zip(table, rows, strict=True):
        entries[: row.size] = np.where(row > _HSV_FLOOR * row[0], row, np.nan)
    return table


def _mark_cuts(axes: Axes, events: Sequence[ReductionEvent]) -> None:
    """A line with the orders at the step of each cut, and one at the step where it was undone."""
    for event in events:
        label = f"{event.old_order} → {event.new_order}"
        if event.rolled_back is not None:
            label += f", undone at {event.rolled_back}"
            axes.axvline(event.rolled_back, color=_COLOURS[0], linestyle=":", linewidth=1.2)
        name = "cut" if event is events[0] else None
        axes.axvline(event.step, color=_COLOURS[0], linestyle="--", linewidth=1.2, label=name)
        axes.annotate(
            label,
            (event.step, 0.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 6),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8,
            color=_COLOURS[0],
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1.0},
        )


def _mark_changes(
    axes: Axes, records: Sequence[HankelRecord], events: Sequence[ReductionEvent]
) -> None:
    """A line between records of different numbers of states, where no event says when that was."""
    known = [event.step for event in events]
    known += [event.rolled_back for event in events if event.rolled_back is not None]
    changes = [
        (before.step + after.step) / 2
        for before, after in itertools.pairwise(records)
        if before.shares.shape != after.shares.shape
        and not any(before.step <= step <= after.step for step in known)
    ]
    for index, change in enumerate(changes):
        label = "number of states changed" if index == 0 else None
        axes.axvline(change, color="black", linestyle=":", linewidth=1.2, label=label)


def _figure(size: tuple[float, float]) -> Figure:
    require_backend("matplotlib.figure", extra="plot")
    from ssmreduce._figure import NotebookFigure

    return NotebookFigure(figsize=size, layout="constrained", dpi=150)


def _cut_name(event: ReductionEvent, events: Sequence[ReductionEvent]) -> str:
    """Step of the cut, with the layer where there are several."""
    several = len({other.layer for other in events}) > 1
    return f"step {event.step}, {event.layer}" if several else f"step {event.step}"


def _finish(axes: Axes, title: str, content: Sequence[object]) -> None:
    axes.set_title(title, fontsize=11)
    if content:
        axes.grid(alpha=0.25)
        axes.legend(fontsize=9, framealpha=0.9)
    else:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
    axes.spines[["top", "right"]].set_visible(False)
