"""Axes that a notebook shows as their figure, although pyplot, and so its inline backend, is not loaded."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssmreduce._array_libraries import HostArray


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


class NotebookAxes(Axes):
    """Axes that show as the picture that they are in where they are the last line of a cell."""

    def _repr_png_(self) -> bytes:
        return _png(self.figure)


class NotebookPanels(np.ndarray[Any, Any]):
    """An array of axes that does the same."""

    def _repr_png_(self) -> bytes | None:
        return _png(self.flat[0].figure) if self.size else None


def subplots(size: tuple[float, float], rows: int, columns: int, **options: Any) -> HostArray:
    """Return a new figure's axes, shape (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    kind = {"axes_class": NotebookAxes}
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw=kind, **options)
    panels: HostArray = axes.view(NotebookPanels)
    return panels
