"""Overview of a model layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import check_text, items
from ssmreduce.errors import ShapeError
from ssmreduce.plotting.axes import (
    COLOURS,
    GREY,
    MARKERS,
    count_states,
    curves,
    finish,
    legend_above,
    panels,
    positive,
    say,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _AROUND, _TALLEST = 0.26, 1.9, 24.0
"""Inches of a layer, of what is around them, and of the figure at most."""

_LONGEST = 36
"""Letters of a name of a layer."""


def plot_layers(
    layers: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    *,
    errors: Mapping[str, Sequence[float | None]] | None = None,
    ax: Sequence[Axes] | None = None,
) -> HostArray:
    """States of each layer before and after, and next to them its errors and bounds, logarithmic.

    Parameters
    ----------
    layers : (L,) sequence of str
        Names, drawn from top to bottom.
    before, after : (L,) sequences of int
        Stored states.
    errors : mapping of str to (L,) sequence, optional
        Label of each kind of marker to its values, as ``{"error bound": bounds}``. None and 0 leave
        a gap.
    ax : two Axes, optional
        Where to draw; a new figure otherwise, as tall as there are layers.

    Returns
    -------
    (2,) array of Axes
        States and errors.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If there is not one number for each layer.
    ArgumentError
        If `ax` is not Matplotlib axes.

    Examples
    --------
    >>> from ssmreduce.plotting import plot_layers
    >>> states, errors = plot_layers(
    ...     ["a", "b"], [64, 64], [20, 33], errors={"error bound": [0.1, 0.2]}
    ... )
    >>> [text.get_text() for text in states.texts]
    ['64 → 20', '64 → 33']
    """
    names = items(layers, "layers", "the names of the layers")
    for name in names:
        check_text(name, "layers", "the names of the layers")
    count = len(names)
    old, new = with_gaps(before, "before", count), with_gaps(after, "after", count)
    if np.any(np.isnan(old) | np.isnan(new) | (old < 0.0) | (new < 0.0)):
        raise ShapeError(
            "`before` or `after` has no number for some layer, or a negative one; expected the states of "
            "each. Pass ints."
        )
    known = curves({} if errors is None else errors, "errors", count)
    height = min(_AROUND + _ROW * max(count, 3), _TALLEST)
    names = _short(names)
    width = 7.4 + 0.06 * max(map(len, names), default=0)
    axes: HostArray = panels(ax, (width, height), 1, 2, sharey=True)[0]
    row = 72.0 * (height - _AROUND) / max(count, 1)
    rows = max(2, len(known))
    _draw_states(axes[0], names, np.array([old, new]), row, rows)
    _draw_errors(axes[1], known, count, rows)
    return axes


def _draw_states(axes: Axes, names: list[str], orders: HostArray, row: float, rows: int) -> None:
    """Wide bars before, narrow ones after; each row so many points high, and rows of a legend above."""
    before, after = orders
    place, size = np.arange(len(names)), float(np.clip(0.8 * row, 4.0, 9.0))
    axes.barh(place, before, height=0.8, color="#D9D9D9", edgecolor=GREY, label="before")
    axes.barh(place, after, height=0.4, color=COLOURS[0], label="after")
    for index in place:
        axes.annotate(
            f"{before[index]:g} → {after[index]:g}",
            (max(before[index], after[index]), index),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
        )
    axes.set_yticks(place, names, fontsize=size)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.3 * max(before.max(initial=0.0), after.max(initial=0.0), 1.0))
    count_states(axes)
    finish(axes, "States of each layer", "stored states", "", legend=False)
    axes.grid(False, axis="y")
    legend_above(axes, columns=1, rows=rows)
    if not names:
        say(axes, "no layers")


def _draw_errors(axes: Axes, known: dict[str, HostArray], count: int, rows: int) -> None:
    looks: list[dict[str, Any]] = [
        {"color": "black", "markerfacecolor": "none"},
        {"color": COLOURS[1]},
        {"color": COLOURS[2]},
    ]
    for index, (label, values) in enumerate(known.items()):
        style = {**looks[index % len(looks)], "marker": MARKERS[index % len(MARKERS)]}
        axes.plot(
            positive(values), np.arange(count), label=label, linestyle="none", markersize=6, **style
        )
    if any(np.any(values > 0.0) for values in known.values()):
        axes.set_xscale("log")
    else:
        say(axes, "no error above 0 is known")
    finish(axes, "Errors of each layer", "error", "", legend=False)
    legend_above(axes, columns=1, rows=rows)
    axes.tick_params(axis="y", left=False)


def _short(names: list[str]) -> list[str]:
    """Long names without most parts that all begin and end with, and then without their middle."""
    if max(map(len, names), default=0) > _LONGEST and len(names) > 1:
        parts = [name.split(".") for name in names]
        start = max(_shared(parts) - 1, 0)
        end = max(_shared([own[start + 1 :][::-1] for own in parts]) - 1, 0)
        names = [
            "…" * (start > 0) + ".".join(own[start : len(own) - end]) + "…" * (end > 0)
            for own in parts
        ]
    half = _LONGEST // 2
    return [
        name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}" for name in names
    ]


def _shared(parts: list[list[str]]) -> int:
    """How many entries all lists begin with; fewer than the shortest has."""
    together = list(zip(*(own[:-1] for own in parts), strict=False))
    return next((k for k, own in enumerate(together) if len(set(own)) > 1), len(together))
