"""Pictures of all seeds: accuracy against time, values and poles at each cut, poles among the eight tones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssmreduce.demo.experiment import Experiment
from ssmreduce.demo.runs import Run
from ssmreduce.demo.tones import NEAR, SAMPLING_RATE, TONES, frequencies, near_a_tone
from ssmreduce.plotting import plot_hsv, plot_poles
from ssmreduce.time_domain import Discrete
from ssmreduce.training.tracking import ReductionEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOK: dict[str, dict[str, Any]] = {
    "full": {"color": "#8C8C8C", "linestyle": "--", "marker": "s", "markersize": 4},
    "reduced": {"color": "#0072B2", "linestyle": "-", "marker": "o", "markersize": 4},
    "small": {"color": "#D55E00", "linestyle": ":", "marker": "^", "markersize": 4},
}

_CUT: dict[str, Any] = {
    "color": "black",
    "linestyle": "none",
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
}

_LEAST_ERROR = 5e-4
_ERRORS = 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001

_MARKERS: dict[str, dict[str, Any]] = {
    "at a tone": {"color": "#0072B2", "linestyle": "none", "marker": "o", "markersize": 6},
    "elsewhere": {"color": "#D55E00", "linestyle": "none", "marker": "x", "markeredgewidth": 2},
}

_COLUMNS = 3
"""Panels beside each other."""

_TOP, _ROW, _BOTTOM = 0.6, 1.05, 0.85
"""Inches."""

_BAND = 600.0, 1800.0
"""Hz, all tones and some room."""

_ROOM = 1.0, 100.0
"""Milliseconds in which a pole falls to 1/e; the tones last 25."""


def accuracy_picture(experiment: Experiment) -> Figure:
    """Test accuracy of all runs against their own time, on an axis that is logarithmic in the error."""
    figure = Figure((8.0, 4.8), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    worst = 0.01
    for run in experiment:
        if not run.curve:
            continue
        seconds = [point.seconds for point in run.curve]
        errors = np.maximum([1.0 - point.accuracy for point in run.curve], _LEAST_ERROR)
        worst = max(worst, *errors)
        axes.semilogy(seconds, errors, linewidth=1.5, **_LOOK[run.name])
        axes.plot(run.cut_times, np.interp(run.cut_times, seconds, errors), **_CUT)
    _finish_accuracy(axes, experiment, min(1.05, 1.3 * worst))
    return figure


def _finish_accuracy(axes: Axes, experiment: Experiment, worst: float) -> None:
    axes.set_ylim(worst, 0.9 * _LEAST_ERROR)
    # The least error stands for none at all.
    labels = [f"{100.0 * (1.0 - error):g}" for error in _ERRORS]
    axes.set_yticks((*_ERRORS, _LEAST_ERROR), (*labels, "100"))
    axes.minorticks_off()
    axes.set_xlim(left=0.0)
    axes.set_xlabel("time of the run (s), compilation, cut and evaluations included")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    settings = experiment.settings
    handles = [
        Line2D([], [], label=f"{name}, {_sizes(runs, settings.states)}", **_LOOK[name])
        for name, runs in experiment.runs.items()
    ]
    cut = Line2D([], [], label="cut", **_CUT)
    axes.legend(handles=[*handles, cut], fontsize=9, framealpha=0.9)
    count = f", {settings.seeds} seeds" if settings.seeds > 1 else ""
    axes.set_title(f"{settings.steps} steps each{count}", fontsize=11)


def _sizes(runs: list[Run], full: int) -> str:
    ends = sorted({str(run.states) for run in runs if run.states_per_layer}, key=int)
    start = f"{full} → " if any(run.cut_times for run in runs) else ""
    return f"{start}{' or '.join(ends) or '–'} states"


def values_picture(events: Sequence[ReductionEvent]) -> Figure:
    """Hankel singular values before each cut, largest first; the last that each kept is marked."""
    figure = Figure((7.0, 4.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    for event in events:
        kept = min(event.real_order, event.hsv.shape[-1])
        plot_hsv(event.hsv, kept, energy=(), label=_cut_name(event, events), ax=axes)
    if not events:
        axes.text(0.5, 0.5, "no cut was made", ha="center", transform=axes.transAxes)
    axes.title.set_text("Hankel singular values at each cut; the marker is the last one kept")
    axes.set_xlabel("number of the value (2 per stored state)")
    return figure


def poles_picture(events: Sequence[ReductionEvent]) -> Figure:
    """Poles before and after each cut on the upper half of the unit disk, a panel each."""
    columns = min(max(len(events), 1), _COLUMNS)
    rows = max(1, -(-len(events) // columns))
    figure = Figure((4.6 * columns, 3.6 * rows), layout="constrained", dpi=150)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, event in zip(panels, events, strict=False):
        both = event.poles_before, event.poles_after
        plot_poles(*both, time=Discrete(), folded=True, ax=axes)
        axes.title.set_text(_cut_name(event, events))
    for axes in panels[len(events) :]:
        axes.set_axis_off()
    if not events:
        panels[0].text(0.5, 0.5, "no cut was made", ha="center", transform=panels[0].transAxes)
    return figure


def _cut_name(event: ReductionEvent, events: Sequence[ReductionEvent]) -> str:
    """Step and sizes of the cut, with the layer where there are several."""
    layer = f", {event.layer}" if len({other.layer for other in events}) > 1 else ""
    return f"step {event.step}{layer}: {event.old_order} → {event.new_order} states"


def tones_picture(experiment: Experiment) -> Figure:
    """Frequency and decay of the poles of each reduced and small model, with the eight tones as lines."""
    runs = [run for name in ("reduced", "small") for run in experiment.runs[name]]
    height = _TOP + _ROW * len(runs) + _BOTTOM
    figure = Figure((8.4, height), dpi=150)
    rows = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(0.08, _BOTTOM / height, 0.77, 1.0 - _TOP / height, hspace=0.3)
    for axes, run in zip(rows, runs, strict=True):
        _draw_poles(axes, run)
    above = rows[0].get_xaxis_transform()
    for tone in TONES:
        rows[0].text(tone, 1.06, f"{tone:.0f}", transform=above, ha="center", fontsize=8)
    rows[-1].set_xlabel("frequency of the pole (Hz); lines: the eight tones, shaded: within 2 %")
    figure.supylabel("time in which the pole decays to 1/e (ms)", x=0.005, fontsize=10)
    handles = [Line2D([], [], label=f"pole {where}", **look) for where, look in _MARKERS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False)
    figure.suptitle(
        "Poles at the end of training and the eight tones", y=1.0 - 0.08 / height, fontsize=11
    )
    return figure


def _draw_poles(axes: Axes, run: Run) -> None:
    for tone in TONES:
        axes.axvline(tone, color="black", linewidth=0.8)
        axes.axvspan(
            tone * (1.0 - NEAR), tone * (1.0 + NEAR), color="black", alpha=0.1, linewidth=0
        )
    axes.set_xlim(_BAND)
    axes.set_yscale("log")
    axes.set_ylim(_ROOM)
    axes.set_yticks((1, 10, 100), ("1", "10", "100"))
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    found = near_a_tone(run.poles)
    hits = found.any(axis=1)
    hertz = frequencies(run.poles)
    decay = np.clip(-1e3 / (SAMPLING_RATE * np.log(np.abs(run.poles))), *_ROOM)
    inside = (hertz >= _BAND[0]) & (hertz <= _BAND[1])
    for which, look in zip((hits, inside & ~hits), _MARKERS.values(), strict=True):
        axes.plot(hertz[which], decay[which], clip_on=False, **look)
    outside = np.sort(hertz[~inside])
    lines = [
        f"{run.name}, seed {run.seed}",
        "–" if run.accuracy is None else f"{100.0 * run.accuracy:.1f} %",
        f"{found.any(axis=0).sum()} of {TONES.size} tones",
    ]
    if outside.size:
        lines.append("beyond the axis, Hz:\n" + _wrapped([f"{value:.0f}" for value in outside]))
    axes.text(
        1.02, 0.5, "\n".join(lines), transform=axes.transAxes, va="center", fontsize=8
    )  # fmt: skip


def _wrapped(words: list[str]) -> str:
    rows = [words[start : start + 4] for start in range(0, len(words), 4)]
    return ",\n".join(", ".join(row) for row in rows)
