"""Singular values by their number, and errors by order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import check_text, fraction, items, real_values, whole_number
from ssmreduce.errors import OrderError, ShapeError
from ssmreduce.plotting.axes import (
    MARKERS,
    STYLES,
    axis_of_numbers,
    count_states,
    curves,
    finish,
    legend_above,
    look,
    one_panel,
    positive,
    say,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR = 1e-12
"""Values below this share of the largest one are rounding and would stretch the axis."""

_HSV = "Hankel singular value"

_CURVE = "values"
"""By this a curve is told from other lines, for the next one to look different."""


def plot_hsv(
    hsv: HostArray,
    order: int | None = None,
    *,
    energy: Sequence[float] = (0.9, 0.99, 0.999),
    name: str = _HSV,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Values by which states are ranked, largest first, with the kept order and shares of Σσ²
    marked.

    Parameters
    ----------
    hsv : (..., n) array
        Values, not negative, descending. Of a batch the largest are drawn above the range of all.
    order : int, optional
        How many are kept: the last of them is marked.
    energy : sequence of float
        Shares of Σσ² to mark where they are reached; none are with ``energy=()``.
    name : str
        What the values are.
    label : str, optional
        What the legend calls this curve, where several calls draw into one `ax`.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        On a logarithmic scale, without values below 1e-12 of the largest.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If `hsv` is not a descending list of nonnegative numbers.
    OrderError, ArgumentError
        If `order` is not between 0 and n, or a share not in (0, 1].
    NonFiniteError
        If a value is NaN or Inf.

    Examples
    --------
    >>> from ssmreduce.plotting import plot_hsv
    >>> axes = plot_hsv([4.0, 2.0, 0.1], order=2)
    >>> axes.get_ylabel()
    'Hankel singular value'
    >>> [text.get_text() for text in axes.get_legend().get_texts()][:2]
    ['all 3', '2 of 3 kept: 99.95 % of Σσ²']
    """
    values = _descending(hsv)
    kept = None if order is None else _count(order, values.shape[-1])
    shares = [fraction(each, "energy") for each in items(energy, "energy", "(0.9, 0.99)")]
    check_text(name, "name", "what the values are")
    if label is not None:
        check_text(label, "label", "what to call the curve")
    axes = one_panel(ax)
    _draw_values(axes, values, kept, shares, label)
    title = "Hankel singular values" if name == _HSV else name[:1].upper() + name[1:]
    finish(axes, title, "number of the value", name, legend=False)
    legend_above(axes)
    count_states(axes)
    return axes


def _draw_values(
    axes: Axes, values: HostArray, kept: int | None, shares: list[float], label: str | None
) -> None:
    index = sum(line.get_gid() == _CURVE for line in axes.lines)
    style: dict[str, Any] = {**look(index), "marker": ""}
    count = values.shape[-1]
    rows = values.reshape(-1, count)
    largest = rows.max(axis=0)
    if not largest.any():
        say(axes, "all values are 0")
        return
    floor = _FLOOR * largest[0]
    number = np.arange(1, count + 1)
    axes.set_yscale("log")
    if len(rows) > 1:
        low, high = np.maximum(rows.min(axis=0), floor), np.maximum(largest, floor)
        spread = f"range of {len(rows)} systems"
        axes.fill_between(number, low, high, color=style["color"], alpha=0.2, lw=0, label=spread)
    seen = np.where(largest > floor, largest, np.nan)
    text = label or (f"all {count}" if len(rows) == 1 else f"largest of {len(rows)}, {count} each")
    # A single value has no line.
    points = {"marker": "."} if count <= 40 else {}
    axes.plot(number, seen, **{**style, **points}, label=text, gid=_CURVE)
    energy = np.cumsum(largest**2) / np.sum(largest**2)
    if kept:
        colour = style["color"]
        text = f"{kept} of {count} kept: {100.0 * energy[kept - 1]:.4g} % of Σσ²"
        axes.plot(
            kept,
            max(largest[kept - 1], floor),
            color=colour,
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=9,
            markeredgecolor="black",
            label=text if label is None else None,
        )
        axes.axvline(kept + 0.5, color=colour, linestyle=STYLES[3], linewidth=1.2)
    for place, share in enumerate(shares):
        _mark_energy(axes, largest, energy, share, place)


def _mark_energy(
    axes: Axes, values: HostArray, energy: HostArray, share: float, place: int
) -> None:
    """An open marker on the value with which a share of the energy is reached."""
    # Rounding must not miss a share of 1.
    reached = int(np.argmax(energy >= share * (1.0 - values.size * np.finfo(np.float64).eps)))
    axes.plot(
        reached + 1,
        max(values[reached], _FLOOR * values[0]),
        linestyle="none",
        marker=MARKERS[(place + 2) % len(MARKERS)],
        markersize=7 + 2 * place,
        markerfacecolor="none",
        markeredgecolor="black",
        label=f"{100.0 * share:g} % of Σσ²",
    )


def _descending(hsv: object) -> HostArray:
    values = real_values(hsv, "hsv", "the result of hankel_singular_values")
    ordered = not (values.size == 0 or values.min() < 0.0 or np.any(np.diff(values) > 0.0))
    if not ordered or values.max() > 1e150:
        raise ShapeError(
            f"`hsv` has shape {values.shape} and is not sorted, negative somewhere, empty or above 1e150; "
            "expected nonnegative numbers in descending order. Pass the result of hankel_singular_values."
        )
    return values


def _count(order: object, most: int) -> int:
    kept = whole_number(order, "order", "how many values are kept")
    if not 0 <= kept <= most:
        raise OrderError(
            f"`order` is {kept} but there are {most} values; expected 0 to {most}. "
            "In a system with real output an order counts real states."
        )
    return kept


def plot_errors(
    orders: Sequence[int] | HostArray,
    errors: Mapping[str, Sequence[float | None]],
    *,
    metric: Sequence[float | None] | None = None,
    metric_name: str = "metric",
    ax: Axes | None = None,
) -> Axes:
    """Bounds and errors against order, logarithmic, and a metric of yours on an axis to the right.

    Parameters
    ----------
    orders : (K,) sequence of int
        States kept, in any order.
    errors : mapping of str to (K,) sequence
        Label of each curve to its values, as ``{"error bound": bounds, "measured error": errors}``.
        None leaves a gap, and so does 0.
    metric : (K,) sequence, optional
        A number for each order, with gaps as well.
    metric_name : str
        Its name, for the axis.
    ax : Axes, optional
        Where to draw; a new figure otherwise.

    Returns
    -------
    Axes
        Those of the errors; the metric is on ``ax.figure.axes[-1]``.

    Raises
    ------
    MissingBackendError
        If Matplotlib is not installed.
    ShapeError
        If there are no orders, or not one value for each.
    NonFiniteError
        If an order is NaN or Inf.
    ArgumentError
        If `metric_name` is not text.

    Examples
    --------
    >>> from ssmreduce import error_bounds
    >>> from ssmreduce.plotting import plot_errors
    >>> axes = plot_errors([0, 1, 2], {"error bound": error_bounds([4.0, 2.0])})
    >>> axes.lines[0].get_ydata().tolist()
    [12.0, 4.0, nan]
    """
    found = axis_of_numbers(orders, "orders")
    if not found.size:
        raise ShapeError("`orders` has no entries; expected at least one. Pass orders.")
    place = np.argsort(found, kind="stable")
    known = curves(errors, "errors", found.size)
    check_text(metric_name, "metric_name", "what the metric is")
    numbers = None if metric is None else with_gaps(metric, "metric", found.size)[place]
    axes = one_panel(ax)
    for index, (label, values) in enumerate(known.items()):
        axes.plot(found[place], positive(values[place]), label=label, **look(index))
    if any(np.any(values > 0.0) for values in known.values()):
        axes.set_yscale("log")
    elif numbers is None:
        say(axes, "no error above 0 is known")
    count_states(axes)
    finish(axes, "Errors against order", "states kept", "error (gain)", legend=False)
    right = []
    if numbers is not None:
        right.append(_draw_metric(axes, found[place], numbers, metric_name, len(known)))
    legend_above(axes, *right)
    return axes


def _draw_metric(axes: Axes, orders: HostArray, values: HostArray, name: str, index: int) -> Axes:
    right = axes.twinx()
    style = {**look(index), "color": "black", "markerfacecolor": "none"}
    right.plot(orders, values, label=f"{name} (right)", **style)
    right.set_ylabel(name)
    right.spines["top"].set_visible(False)
    return right
