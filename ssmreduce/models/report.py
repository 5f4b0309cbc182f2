"""What came of reducing layers: `LayerReduction`, `ModelReduction` and its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.layers.layer_map import LayerMap
from ssmreduce.reduction.report import Reduction


@dataclass(frozen=True, eq=False)
class LayerReduction:
    """A layer before and after.

    Attributes
    ----------
    layer : object
        The reduced layer; the original object itself if nothing was cut, or if it was changed in
        place, as PyTorch modules are.
    reduction : Reduction
        How it was reduced; ``reduction.system`` was read back from what was written. A batch where the
        layer runs its channels apart.
    measured_error : float
        Error of the written layer, measured on a coarse grid (a lower bound, see
        `Reduction.verify`); of the worst channel.
    weights, new_weights : dict of arrays
        Weights of the layer before and after, on the host.
    item_sizes : dict of str to int
        Bytes of one entry of each weight.
    layer_map : LayerMap
        How this kind of layer stores a system.
    """

    layer: Any = field(repr=False)
    reduction: Reduction = field(repr=False)
    measured_error: float
    weights: dict[str, HostArray] = field(repr=False)
    new_weights: dict[str, HostArray] = field(repr=False)
    item_sizes: dict[str, int] = field(repr=False)
    layer_map: LayerMap = field(repr=False)

    @property
    def old_order(self) -> int:
        """Stored states before, of each channel where they run apart."""
        return self.layer_map.order(self.weights)

    @property
    def new_order(self) -> int:
        """Stored states after."""
        return self.layer_map.order(self.new_weights)

    @property
    def error_bound(self) -> float | None:
        """Bound on the H-infinity error of the layer before rounding; None where there is none."""
        bound = self.reduction.error_bound
        return None if bound is None else self.layer_map.error_factor * float(np.max(bound))

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the weights with a new shape."""
        return tuple(
            name for name, new in self.new_weights.items() if new.shape != self.weights[name].shape
        )

    @property
    def parameters_saved(self) -> int:
        """Entries of weights that are gone; a complex number counts as one."""
        return sum(self._entries_saved(name) for name in self.weights)

    @property
    def bytes_saved(self) -> int:
        """Bytes of weights that are gone."""
        return sum(self._entries_saved(name) * self.item_sizes[name] for name in self.weights)

    def _entries_saved(self, name: str) -> int:
        return int(self.weights[name].size - self.new_weights[name].size)


class ModelReport(dict[str, LayerReduction]):
    """What came of each layer, by its name in the model; prints as a table."""

    def __str__(self) -> str:
        """The table, with a line of totals."""
        head = ("layer", "states", "order", "error bound", "measured error", "parameters saved")
        rows = [(*head, "bytes saved")]
        for name, part in self.items():
            bound = "-" if part.error_bound is None else f"{part.error_bound:.3g}"
            rows.append(
                (
                    name,
                    str(part.old_order),
                    str(part.new_order),
                    bound,
                    f"{part.measured_error:.3g}",
                    f"{part.parameters_saved:,}",
                    f"{part.bytes_saved:,}",
                )
            )
        parameters = sum(part.parameters_saved for part in self.values())
        saved = sum(part.bytes_saved for part in self.values())
        states = sum(part.old_order for part in self.values())
        orders = sum(part.new_order for part in self.values())
        rows.append(("total", str(states), str(orders), "", "", f"{parameters:,}", f"{saved:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


@dataclass(frozen=True, eq=False)
class ModelReduction:
    """A model after its layers were reduced.

    Attributes
    ----------
    model : object
        The reduced model; the same object for PyTorch, which is changed in place.
    optimizer_state : object or None
        The optimizer state that goes with it, for PyTorch the optimizer, changed in place; None if
        none was given.
    report : ModelReport
        What came of each supported layer, by its name in the model: a dict of `LayerReduction` that
        prints as a table.
    """

    model: Any = field(repr=False)
    optimizer_state: Any = field(repr=False)
    report: ModelReport

    def __str__(self) -> str:
        """The table of the report."""
        return str(self.report)
