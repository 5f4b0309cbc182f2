"""What came of reducing layers: `LayerReduction` and `ModelReduction`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssmreduce._namespace import HostArray
from ssmreduce.adapters.registry import LayerMap
from ssmreduce.reduction.report import Reduction


@dataclass(frozen=True, eq=False)
class LayerReduction:
    """A layer before and after.

    Attributes
    ----------
    layer : object
        The reduced layer; the original object itself if nothing was cut.
    reduction : Reduction
        How it was reduced; ``reduction.system`` was read back from what was written.
    measured_error : float
        Error of the written layer, measured on a coarse grid (a lower bound, see
        `Reduction.verify`).
    weights : dict of arrays
        Weights of the original layer on the host.
    layer_map : LayerMap
        How this kind of layer stores a system.
    """

    layer: Any = field(repr=False)
    reduction: Reduction
    measured_error: float
    weights: dict[str, HostArray] = field(repr=False)
    layer_map: LayerMap = field(repr=False)

    @property
    def old_order(self) -> int:
        """Stored states before."""
        return self.reduction.original.order

    @property
    def new_order(self) -> int:
        """Stored states after."""
        return self.reduction.system.order


@dataclass(frozen=True, eq=False)
class ModelReduction:
    """A model after its layers were reduced.

    Attributes
    ----------
    model : object
        The reduced model.
    optimizer_state : object or None
        The optimizer state that goes with it; None if none was given.
    report : dict of str to LayerReduction
        What came of each supported layer, by its name in the model.
    """

    model: Any = field(repr=False)
    optimizer_state: Any = field(repr=False)
    report: dict[str, LayerReduction]
