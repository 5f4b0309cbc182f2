"""Where pictures are drawn, how their lines look, and checks of what goes into them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray, is_array, to_double
from ssmreduce._checks import check_text, items, numeric_array, real_values, require_backend, shown
from ssmreduce.errors import ArgumentTypeError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct under the common colour blindnesses; line styles and markers
# repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#8C8C8C"

FULL: dict[str, Any] = {"color": "#C4C4C4", "linestyle": "-", "linewidth": 4.0}
REDUCED: dict[str, Any] = {"color": COLOURS[1], "linestyle": "--", "linewidth": 1.6}
ERROR: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-.", "linewidth": 1.2}
BOUND: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.4}

_FAR = 1e30
"""Numbers beyond it overflow in the margins that Matplotlib adds."""


def look(index: int) -> dict[str, Any]:
    """Colour, line style and marker of the curve of that number."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index % len(STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.6,
        "markersize": 5,
    }


# --- Axes


def one_panel(ax: Axes | None, size: tuple[float, float] = (6.4, 4.2)) -> Axes:
    """Return `ax`, or the axes of a new figure."""
    found: Axes = panels(ax, size, 1, 1)[0, 0]
    return found


def panels(
    ax: Any, size: tuple[float, float], rows: int, columns: int, **options: Any
) -> HostArray:
    """Return the axes in `ax`, or those of a new figure, shape (rows, columns)."""
    require_backend("matplotlib.figure", extra="plot")
    from matplotlib.axes import Axes

    if ax is None:
        return _new_panels(size, rows, columns, options)
    given = [ax]
    if isinstance(ax, np.ndarray):
        given = list(ax.flat)
    elif isinstance(ax, list | tuple):
        given = list(ax)
    if not all(isinstance(each, Axes) for each in given):
        raise ArgumentTypeError(
            f"`ax` is {shown(ax)}; expected Matplotlib axes. Pass what plt.subplots() returned."
        )
    if len(given) != rows * columns:
        raise ShapeError(
            f"`ax` has {len(given)} axes; expected {rows * columns}. Try plt.subplots({rows}, {columns})."
        )
    found = np.empty(len(given), dtype=object)
    found[:] = given
    return found.reshape(rows, columns)


def _new_panels(
    size: tuple[float, float], rows: int, columns: int, options: dict[str, Any]
) -> HostArray:
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        from ssmreduce.plotting.notebook import subplots

        return subplots(size, rows, columns, **options)
    figure = pyplot.figure(figsize=size, layout="constrained")
    found: HostArray = figure.subplots(rows, columns, squeeze=False, **options)
    return found


def finish(axes: Axes, title: str, x: str, y: str, *, legend: bool = True) -> None:
    """Title, labels, grid and legend."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, framealpha=0.9)


def legend_above(axes: Axes, *more: Axes, columns: int = 2, rows: int | None = None) -> None:
    """A legend between the axes and their title, where it hides nothing; with what `more` axes hold."""
    drawn = [each.get_legend_handles_labels() for each in (axes, *more)]
    handles = [handle for found, _ in drawn for handle in found]
    labels = [label for _, found in drawn for label in found]
    rows = -(-len(labels) // columns) if rows is None else rows
    if labels:
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        tight: dict[str, Any] = {"handlelength": 1.8, "columnspacing": 1.0, "borderaxespad": 0.0}
        axes.legend(handles, labels, ncols=columns, fontsize=8, frameon=False, **place, **tight)
    axes.set_title(axes.get_title(), fontsize=11, pad=8.0 + 13.0 * rows)


def count_states(axes: Axes) -> None:
    """Ticks at whole numbers alone along x, with room around a single one."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_xlim()
    if high - low < 2.0:
        axes.set_xlim((low + high) / 2.0 - 1.0, (low + high) / 2.0 + 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def few_ticks(axes: Axes) -> None:
    """So few ticks along x that labels of many digits do not overlap."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def say(axes: Axes, text: str) -> None:
    """Write into axes that have nothing to show."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


# --- Values


def axis_of_numbers(value: object, name: str) -> HostArray:
    """Return `value` as one axis of finite numbers."""
    array = real_values(value, name, "a list of numbers")
    _check_axis(array, name)
    return array


def with_gaps(value: object, name: str, length: int) -> HostArray:
    """Return `length` numbers, NaN where there is None, NaN or an infinite one."""
    entries = value
    if not is_array(value):
        found = items(value, name, "one number for each")
        entries = [np.nan if each is None else each for each in found]
    array = to_double(numeric_array(entries, name, 1))
    if array.dtype.kind == "c":
        raise ShapeError(f"`{name}` holds complex numbers; expected real ones. Pass their sizes.")
    array = np.where(np.isfinite(array), array, np.nan)
    _check_axis(array, name)
    if array.size != length:
        raise ShapeError(f"`{name}` has {array.size} numbers; expected {length}, one for each.")
    return array


def _check_axis(array: HostArray, name: str) -> None:
    largest = np.nanmax(np.abs(array), initial=0.0)
    if array.ndim != 1 or largest > _FAR:
        raise ShapeError(
            f"`{name}` has shape {array.shape} and numbers up to {largest:.3g}; expected one axis of "
            f"numbers up to {_FAR:g}. Pass a list."
        )


def entries(mapping: object, name: str) -> dict[str, Any]:
    """Return a dict with text for keys."""
    if not isinstance(mapping, Mapping):
        raise ShapeError(
            f"`{name}` is {shown(mapping)}; expected a dict by label. Pass {{'label': values}}."
        )
    for label in mapping:
        check_text(label, name, "labels as its keys")
    return dict(mapping)


def curves(mapping: object, name: str, length: int) -> dict[str, HostArray]:
    """Return a dict of `length` numbers by label, with gaps."""
    return {
        label: with_gaps(values, f"{name}[{label!r}]", length)
        for label, values in entries(mapping, name).items()
    }


def positive(values: HostArray) -> HostArray:
    """Values with gaps where a logarithmic axis has none."""
    return np.where(values > 0.0, values, np.nan)
