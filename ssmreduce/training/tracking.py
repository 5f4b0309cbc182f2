"""What happened: one `ReductionEvent` for every cut of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import (
    check_instance,
    check_text,
    fields_of,
    floating_array,
    is_extended,
    real_values,
    shown,
    whole_number,
)
from ssmreduce._display import cell, html_table, short
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.models.report import LayerReduction
from ssmreduce.reduction.order import HankelEnergy, HankelMass, OrderRule
from ssmreduce.time_domain import Discrete
from ssmreduce.training.records import plain_values

COLUMNS = (
    "step",
    "layer",
    "old_order",
    "new_order",
    "error_bound",
    "measured_error",
    "method",
    "output_error",
    "seconds",
    "loss_before",
    "loss_after",
    "unmatched_loss",
    "constant_loss",
    "rolled_back",
)
"""What a table says of an event."""


@dataclass(frozen=True, eq=False, repr=False)
class ReductionEvent:
    """One cut of one layer during training; events with the same values are equal.

    Attributes
    ----------
    step : int
        Number of updates done before the cut.
    layer : str
        Name of the layer in the model.
    old_order, new_order : int
        Stored states before and after.
    real_order : int
        Where `hsv` was cut.
    hsv : (n,) array
        Hankel singular values before the cut, descending (two for each stored state); scores of the
        states where the layer has others.
    tau : float or None
        1 - share, where the order rule keeps a share of the Hankel singular values.
    error_bound : float or None
        2 Σ of the discarded values; None with a horizon.
    measured_error : float or None
        Error of the layer as written, measured on a coarse grid: a lower bound. None for a layer
        that runs no one system.
    seconds : float
        Wall-clock time of reading, balancing, writing and measuring.
    poles_before, poles_after : (n,) complex array
        Stored poles; none for a layer that runs no one system.
    rolled_back : int or None
        Number of updates done when the cut was undone; None if it stands.
    loss_before, loss_after : float or None
        Loss on held-out data just before and just after the whole cut; None without data that have
        one.
    constant_loss : float or None
        That of a constant prediction; see `~ssmreduce.models.choice.LossAtCut`.
    unmatched_loss : float or None
        That of the cut alone, where layers were trained to reproduce the old outputs after it; else
        None.
    method : str or None
        How the layer was cut by data, as `CutOptions` names it; None without data.
    output_error : float or None
        Relative error of the held-out outputs; None without data, or where they were matched.
    ranked_by : str
        What the values in `hsv` are, as pictures call them.

    Raises
    ------
    ArgumentError, ShapeError, NonFiniteError
        If a value is not what a cut reports.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import FixedOrder, reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> from ssmreduce.training.tracking import ReductionEvent
    >>> result = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6)
    >>> event = ReductionEvent.of(100, "encoder", result, FixedOrder(6))
    >>> event.step, event.old_order, event.new_order, event.hsv.shape
    (100, 16, 6, (32,))
    >>> ReductionEvent.from_dict(event.to_dict()) == event
    True
    """

    step: int
    layer: str
    old_order: int
    new_order: int
    real_order: int
    hsv: HostArray
    tau: float | None
    error_bound: float | None
    measured_error: float | None
    seconds: float
    poles_before: HostArray
    poles_after: HostArray
    rolled_back: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    constant_loss: float | None = None
    unmatched_loss: float | None = None
    method: str | None = None
    output_error: float | None = None
    ranked_by: str = "Hankel singular value"

    def __post_init__(self) -> None:
        check_text(self.layer, "layer", "the name of the layer")
        check_text(self.ranked_by, "ranked_by", "what the values are")
        if self.method is not None:
            check_text(self.method, "method", "how the layer was cut")
        for item in fields(self):
            name, value = item.name, getattr(self, item.name)
            kind, _, may_be_none = str(item.type).partition(" | ")
            if item.type == "int":
                meaning = "a number of updates, or of states"
                vars(self)[name] = whole_number(value, name, meaning)
            elif value is None and may_be_none:
                continue
            elif kind in ("int", "float") and not is_extended(value):
                raise ArgumentError(
                    f"`{name}` is {shown(value)}; expected a number, as a cut reports it."
                )
        hsv = real_values(self.hsv, "hsv", "the result of hankel_singular_values")
        if hsv.size == 0:
            raise ShapeError(f"`hsv` has shape {hsv.shape}; expected at least one value.")
        before, after = (
            floating_array(getattr(self, name), name, 1) for name in ("poles_before", "poles_after")
        )
        vars(self).update(hsv=hsv, poles_before=before, poles_after=after)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ReductionEvent):
            return NotImplemented
        names = [own.name for own in fields(self)]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        return hash((self.step, self.layer, self.old_order, self.new_order, self.rolled_back))

    def __repr__(self) -> str:
        parts = [
            f"step={self.step}",
            f"layer={self.layer!r}",
            f"{self.old_order} -> {self.new_order} states",
        ]
        if self.method is not None:
            parts += [f"method={self.method!r}", f"output_error={short(self.output_error)}"]
            if self.loss_after is not None:
                parts.append(f"loss_after={short(self.loss_after)}")
        parts.append(f"error_bound={short(self.error_bound)}")
        parts.append(f"measured_error={short(self.measured_error)}")
        if self.rolled_back is not None:
            parts.append(f"rolled_back={self.rolled_back}")
        return f"ReductionEvent({', '.join(parts)})"

    def _repr_html_(self) -> str:
        return events_html([self])

    def plot(self, *, ax: Any = None) -> HostArray:
        """Draw the values by which states were ranked, and the poles before and after.

        Parameters
        ----------
        ax : two Axes, optional
            Where to draw; a new figure otherwise. A layer that runs no one system, and has no
            poles, takes one.

        Returns
        -------
        (2,) array of Axes
            Values and poles, the latter at |Im λ|; (1,) without poles.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        ArgumentError, ShapeError
            If `ax` is not as many Matplotlib axes.
        """
        from ssmreduce.plotting.axes import panels
        from ssmreduce.plotting.decay import plot_hsv
        from ssmreduce.plotting.systems import plot_poles

        panes = 2 if self.poles_before.size else 1
        axes: HostArray = panels(ax, (5.6 * panes, 4.2), 1, panes)[0]
        # A selection by data keeps other states than those with the largest of these values.
        kept = None if self.method == "selected" else min(self.real_order, self.hsv.shape[-1])
        plot_hsv(self.hsv, kept, name=self.ranked_by, ax=axes[0])
        if panes == 2:
            both = self.poles_before, self.poles_after
            plot_poles(*both, time=Discrete(), folded=True, ax=axes[1])
        undone = "" if self.rolled_back is None else f", undone at {self.rolled_back}"
        axes[0].title.set_text(f"{self.layer}, step {self.step}{undone}")
        return axes

    @classmethod
    def of(cls, step: int, layer: str, result: LayerReduction, order: OrderRule) -> ReductionEvent:
        """Return the event of a cut.

        Parameters
        ----------
        step : int
            Number of updates done before it.
        layer : str
            Name of the layer in the model.
        result : LayerReduction
            What the cut did.
        order : OrderRule
            The rule that chose the order.

        Returns
        -------
        ReductionEvent
            With `tau`, if the rule keeps a share.

        Raises
        ------
        ArgumentError
            If `result` or `order` is not what it should be.
        """
        check_instance(result, LayerReduction, "result", "reduce_layer(layer, order)")
        check_instance(order, OrderRule, "order", "FixedOrder(8)")
        reduction, told = result.cut.reduction, result.to_dict()
        systems = () if reduction is None else (reduction.original, reduction.system)
        poles = [np.asarray(system.poles(), np.complex128) for system in systems]
        before, after = poles or [np.zeros(0, np.complex128)] * 2
        return cls(
            step=step,
            layer=layer,
            real_order=result.new_order if reduction is None else int(np.max(reduction.real_order)),
            hsv=result.cut.scores,
            tau=1.0 - order.share if isinstance(order, HankelMass | HankelEnergy) else None,
            poles_before=before,
            poles_after=after,
            ranked_by=result.cut.scores_name,
            **{item.name: told[item.name] for item in fields(cls) if item.name in told},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, ready for JSON; poles as [re, im]."""
        return plain_values(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReductionEvent:
        """Return the event that `to_dict` made `values` of."""
        own = fields_of(values, *(item.name for item in fields(cls) if item.default is not None))
        own |= {item.name: values.get(item.name) for item in fields(cls) if item.default is None}
        poles = {name: _complex(own[name], name) for name in ("poles_before", "poles_after")}
        return cls(**{**own, **poles})


def events_html(events: Sequence[ReductionEvent]) -> str:
    """Events as an HTML table, one row each."""
    rows = [[cell(getattr(event, name)) for name in COLUMNS] for event in events]
    return html_table([[name.replace("_", " ") for name in COLUMNS], *rows])


def _complex(pairs: Any, name: str) -> HostArray:
    parts = real_values(pairs, name, "[re, im] of each pole")
    if parts.size == 0:
        return np.zeros(0, np.complex128)
    if parts.shape[-1] != 2:
        raise ShapeError(f"`{name}` has shape {parts.shape}; expected [re, im] of each pole.")
    return np.ascontiguousarray(parts).view(np.complex128)[..., 0]
