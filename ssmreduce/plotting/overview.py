"""What `Reduction.plot` and `Balancing.plot` draw: several pictures together."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, to_double, to_host
from ssmreduce.hankel import tail_bounds
from ssmreduce.plotting.axes import panels, say
from ssmreduce.plotting.decay import plot_errors, plot_hsv
from ssmreduce.plotting.impulse import plot_impulse
from ssmreduce.plotting.systems import plot_gain, plot_poles
from ssmreduce.systems.diagonal import System

_SAMPLES = 1000
"""Samples of an impulse response that are drawn at most."""


def draw_reduction(
    original: System,
    reduced: System | None,
    values: HostArray,
    kept: int | None,
    name: str,
    *,
    bound: float | Array | None,
    horizon: int | None,
    mask: Array | None,
    ax: Any,
) -> HostArray:
    """Draw into four axes; `reduced` is None where nothing was cut."""
    axes = panels(ax, (10.4, 7.6), 2, 2)
    is_real = original.real_output
    if values.size:
        plot_hsv(values, kept, name=name, ax=axes[0, 0])
        if is_real and values.shape[-1] == original.real_order:
            axes[0, 0].set_xlabel("number of the value (2 per stored state)")
    else:
        say(axes[0, 0], "no values rank the states")
    before, after = to_host(original.poles()), None
    if reduced is not None:
        after = to_host(reduced.poles())
        after = after if mask is None else after[to_host(mask)]
    plot_poles(before, after, time=original.time, folded=is_real, ax=axes[0, 1])
    limit = None if bound is None or reduced is None else float(np.max(to_double(bound)))
    plot_gain(original, reduced, bound=limit, ax=axes[1, 0])
    shown = None
    if horizon is not None:
        axes[1, 0].title.set_text(f"Gain over all times, cut for {horizon} steps")
        shown = min(horizon, _SAMPLES)
    plot_impulse(original, reduced, length=shown, ax=axes[1, 1])
    return axes


def draw_balancing(hsv: Array, order: int | None, has_bound: bool, ax: Any) -> HostArray:
    """Draw Hankel singular values, and the error bound where there is one, into two axes."""
    values = to_double(hsv)
    bounds = tail_bounds(values).reshape(-1, values.shape[-1] + 1).max(axis=0)
    axes: HostArray = panels(ax, (10.0, 4.2), 1, 2)[0]
    if not values.size:
        say(axes[0], "there are no stable states")
        say(axes[1], "there are no stable states")
        return axes
    plot_hsv(values, order, ax=axes[0])
    errors = {"error bound": bounds} if has_bound else {}
    plot_errors(np.arange(bounds.size), errors, ax=axes[1])
    axes[1].title.set_text("Error bound against order")
    axes[1].set_xlabel("values kept")
    return axes
