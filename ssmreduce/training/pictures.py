"""What `HankelTrace.plot` draws: a row of panels for each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import check_instance, items
from ssmreduce.plotting.axes import panels, say
from ssmreduce.plotting.runs import plot_agreement, plot_hsv_map
from ssmreduce.training.tracking import ReductionEvent

if TYPE_CHECKING:
    from ssmreduce.training.records import HankelRecord
    from ssmreduce.training.trace import HankelTrace

_WIDTH, _HEIGHT = 5.4, 3.0
"""Inches of a panel."""


def draw_trace(trace: HankelTrace, events: Sequence[ReductionEvent], ax: Any) -> HostArray:
    """Draw into as many axes as there are panels."""
    found = items(events, "events", "reducer.events")
    for event in found:
        check_instance(event, ReductionEvent, "events", "reducer.events")
    layers = trace.layers
    if not layers:
        empty = panels(ax, (_WIDTH, _HEIGHT), 1, 1)
        say(empty[0, 0], "nothing was recorded")
        empty[0, 0].set_axis_off()
        return empty
    columns = 3 if any(record.data_hsv is not None for record in trace.records) else 2
    size = columns * _WIDTH, max(_HEIGHT * len(layers), 3.4)
    axes = panels(ax, size, len(layers), columns)
    for row, layer in zip(axes, layers, strict=True):
        cuts = _marks([event for event in found if event.layer == layer])
        records = trace.of_layer(layer)
        _draw_values(row[0], records, trace.share, cuts)
        row[0].title.set_text(layer)
        if columns == 3:
            _draw_data_values(row[1], records, cuts)
        _draw_agreement(row[-1], trace, layer)
    return axes


def _draw_values(
    axes: Any, records: Sequence[HankelRecord], share: float, cuts: dict[float, str]
) -> None:
    values = _by_step((record.step, record.hsv) for record in records)
    sums = [np.cumsum(each) for each in values.values()]
    kept = [int(np.searchsorted(each, share * each[-1])) + 1 for each in sums]
    name = records[-1].ranked_by
    plot_hsv_map([*values], [*values.values()], kept=kept, cuts=cuts, name=name, ax=axes)
    for line in axes.lines:
        if line.get_label() == "kept":
            line.set_label(f"{100.0 * share:g} % of the sum")
    axes.legend(loc="lower left", fontsize=8, facecolor=_GREY, framealpha=0.9)


_GREY = "#8C8C8C"
"""Behind a white line."""


def _draw_data_values(axes: Any, records: Sequence[HankelRecord], cuts: dict[float, str]) -> None:
    values = _by_step(
        (record.step, record.data_hsv) for record in records if record.data_hsv is not None
    )
    if values:
        name = "singular value by data"
        plot_hsv_map([*values], [*values.values()], cuts=cuts, name=name, ax=axes)
    else:
        say(axes, "no values by data")
        axes.set_axis_off()
    axes.set_title("by data", fontsize=11)


def _draw_agreement(axes: Any, trace: HankelTrace, layer: str) -> None:
    agreement = trace.agreement(layer)
    plot_agreement(
        [entry.step for entry in agreement],
        [entry.overlap for entry in agreement],
        [entry.rank_correlation for entry in agreement],
        settled=trace.settled(layer),
        ax=axes,
    )
    spacing = trace.spacing(layer)
    if spacing > trace.every:
        axes.set_xlabel(f"step (recorded at least every {spacing})")


def _by_step(records: Iterable[tuple[int, HostArray]]) -> dict[int, HostArray]:
    """Largest values over the channels, the last of each step, which may have gone back in between."""
    found = {step: values.reshape(-1, values.shape[-1]).max(axis=0) for step, values in records}
    return dict(sorted(found.items()))


def _marks(events: Sequence[ReductionEvent]) -> dict[float, str]:
    """What to write at the step of each cut, and at that where it was undone."""
    marks: dict[float, str] = {}
    for event in events:
        marks[event.step] = f"{event.old_order} → {event.new_order}"
        if event.rolled_back is not None:
            marks[event.rolled_back] = "undone"
    return marks
