"""`sweep`: the table of what each order costs, for a system, a layer or a model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssmreduce._checks import (
    check_functions,
    check_instance,
    finite_number,
    items,
    metric_value,
    positive_count,
    type_name,
    whole_number,
)
from ssmreduce._display import cell, html_table, short, text_table
from ssmreduce._namespace import HostArray, to_double
from ssmreduce.errors import OrderError, SSMReduceError, UnsupportedLayerError
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.reduce import reduce_model
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.search import find_layers
from ssmreduce.reduction.balanced import balance
from ssmreduce.reduction.measured import to_nothing
from ssmreduce.reduction.order import OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace

_HEADS = {
    "wanted": "wanted",
    "order": "order",
    "error_bound": "error bound",
    "measured_error": "error at least",
    "relative_error": "relative",
    "metric": "metric",
    "seconds": "seconds",
}
"""Columns of the table and what is written above them."""


@dataclass(frozen=True, eq=False, repr=False)
class SweepRow:
    """What one order costs.

    Attributes
    ----------
    wanted : int or OrderRule
        What was asked for.
    order : int
        Stored states after the cut: of the largest system of a batch, of all layers of a model together.
    error_bound : float or None
        Bound on the H-infinity error, the largest over a batch or the layers; None where one has none.
    measured_error : float
        What the error is at least, the largest over a batch or the layers.
    relative_error : float
        The same over the gain of each system or layer, which is measured alike; of a layer that runs channels
        apart the largest of both.
    metric : float or None
        What `metric` returned.
    seconds : float
        Wall-clock time of the cut and of measuring its error, without the metric; for a system without
        balancing, which is done once.
    """

    wanted: int | OrderRule
    order: int
    error_bound: float | None
    measured_error: float
    relative_error: float
    metric: float | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        values = (f"{name}={text}" for name, text in zip(_HEADS, self._cells(), strict=True))
        return f"SweepRow({', '.join(values)})"

    def _cells(self) -> tuple[str, ...]:
        """Entries of the table."""
        numbers = (cell(getattr(self, name)) for name in _HEADS if name != "wanted")
        return (str(self.wanted), *numbers)


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """One row for each order; prints as a table.

    Attributes
    ----------
    rows : tuple of SweepRow
        In the order in which they were asked for.
    """

    rows: tuple[SweepRow, ...]

    def __repr__(self) -> str:
        return text_table(self._table())

    def _repr_html_(self) -> str:
        return html_table(self._table())

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain numbers by column, for JSON or ``pandas.DataFrame``; order rules as text."""
        columns = {name: [getattr(row, name) for row in self.rows] for name in _HEADS}
        columns["wanted"] = [
            str(wanted) if isinstance(wanted, OrderRule) else wanted for wanted in columns["wanted"]
        ]
        return columns

    def smallest(self, *, relative_error: float) -> SweepRow:
        """Return the row of the smallest order whose relative error is at most this.

        Parameters
        ----------
        relative_error : float
            0.01 for 1 %.

        Returns
        -------
        SweepRow
            Its relative error was measured: a lower bound.

        Raises
        ------
        OrderError
            If there is none.
        """
        limit = finite_number(relative_error, "relative_error", "0.01 for 1 %")
        good = [row for row in self.rows if row.relative_error <= limit]
        if not good:
            best = min(self.rows, key=_relative_error)
            raise OrderError(
                f"`relative_error` is {limit:g} but the smallest of the sweep is "
                f"{short(best.relative_error)}, at order {best.order}; expected at least that. Sweep larger "
                "orders."
            )
        return min(good, key=_order_and_error)

    def _table(self) -> list[tuple[str, ...]]:
        rows = [tuple(_HEADS.values()), *(row._cells() for row in self.rows)]
        if all(row.metric is None for row in self.rows):
            at = list(_HEADS).index("metric")
            rows = [(*row[:at], *row[at + 1 :]) for row in rows]
        return rows


def sweep(
    model: Any,
    orders: Sequence[int | OrderRule],
    metric: Callable[[Any], float] | None = None,
    *,
    options: CutOptions = CutOptions(),
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Tell for each order what a cut to it would cost; nothing is changed.

    Parameters
    ----------
    model : StateSpace, DiagonalStateSpace, layer or model
        A system is balanced once and truncated to each order (see `Balancing.truncate`). Of a layer or a
        model of PyTorch or JAX a copy is reduced to each (see `reduce_model`).
    orders : sequence of ints or order rules
        As they are given to `balanced_truncation` or `reduce_model`; a model gets each for all layers. An
        int is an upper limit: a single dense system gets its numerical rank at most.
    metric : callable, optional
        Takes the reduced system, layer or model and returns a number, its accuracy for example.
    options : CutOptions
        As `reduce_model` takes them; of a system the horizon counts.
    progress : callable, optional
        Called after each order with how many are done and how many there are.

    Returns
    -------
    Sweep
        With a row for each order: bound, measured error, metric, seconds.

    Raises
    ------
    OrderError
        If there are no orders, or one of them cannot be delivered.
    UnsupportedLayerError
        If `model` is nothing that can be reduced, or a PyTorch module that cannot be copied.
    SSMReduceError
        As `balance` or `reduce_model`.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, sweep
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> costs = sweep(system, [1, 2, 3])
    >>> [row.order for row in costs.rows]
    [1, 2, 3]
    >>> costs.smallest(relative_error=0.05).order
    2
    """
    wanted = _checked_orders(orders)
    check_instance(options, CutOptions, "options", "CutOptions(horizon=784)")
    check_functions(metric=metric, progress=progress)
    cuts: _SystemCuts | _ModelCuts = (
        _SystemCuts(model, options)
        if isinstance(model, StateSpace | DiagonalStateSpace)
        else _ModelCuts(model, options)
    )
    rows: list[SweepRow] = []
    for order in wanted:
        started = time.perf_counter()
        try:
            reduced, row = cuts.cut(order)
        except SSMReduceError as error:
            raise type(error)(f"while trying order {order}: {error}") from error
        seconds = time.perf_counter() - started
        value = None if metric is None else metric_value(metric(reduced), "metric(reduced)")
        rows.append(replace(row, metric=value, seconds=seconds))
        if progress is not None:
            progress(len(rows), len(wanted))
    return Sweep(tuple(rows))


class _SystemCuts:
    """Cuts of one system, or batch, which is balanced once."""

    def __init__(self, system: System, options: CutOptions) -> None:
        self._balancing = balance(system, horizon=options.horizon)
        self._gains: HostArray | None = None

    def cut(self, order: int | OrderRule) -> tuple[System, SweepRow]:
        """Return the reduced system, and what the cut cost."""
        reduction = self._balancing.truncate(self._within_rank(order))
        error = to_double(reduction.verify())
        bound = reduction.error_bound
        if self._gains is None:
            self._gains = _gains(reduction).reshape(error.shape)
        row = SweepRow(
            wanted=order,
            order=reduction.system.order,
            error_bound=None if bound is None else float(to_double(bound).max()),
            measured_error=float(error.max()),
            relative_error=_relative(error, self._gains),
        )
        return reduction.system, row

    def _within_rank(self, order: int | OrderRule) -> int | OrderRule:
        """An int is an upper limit, as it is for diagonal systems; rules are left alone, and batches."""
        system = self._balancing.system
        if isinstance(order, OrderRule) or isinstance(system, DiagonalStateSpace):
            return order
        return order if system.batch_shape else min(order, max(int(self._balancing.rank), 1))


class _ModelCuts:
    """Cuts of copies of a layer or a model."""

    def __init__(self, model: Any, options: CutOptions) -> None:
        self._model, self._options = model, options
        self._gains: dict[str, HostArray] = {}
        try:
            find_layers(model, options)
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(
                f"{error} A system would be a StateSpace or a DiagonalStateSpace."
            ) from error

    def cut(self, order: int | OrderRule) -> tuple[Any, SweepRow]:
        """Return the reduced copy, and what the cut cost."""
        result = reduce_model(self._copied(), order, options=self._options)
        parts = list(result.report.values())
        bounds = [part.error_bound for part in parts if part.error_bound is not None]
        if not self._gains:
            self._gains = {name: _gain_of(part) for name, part in result.report.items()}
        row = SweepRow(
            wanted=order,
            order=result.report.totals()[1],
            error_bound=max(bounds) if len(bounds) == len(parts) else None,
            measured_error=max(part.measured_error for part in parts),
            relative_error=max(
                _relative(np.asarray(part.measured_error), self._gains[name])
                for name, part in result.report.items()
            ),
        )
        return result.model, row

    def _copied(self) -> Any:
        try:
            return copy.deepcopy(self._model)
        except Exception as error:
            raise UnsupportedLayerError(
                f"`model` is a {type_name(self._model)} that cannot be copied ({error}); expected one "
                "that copy.deepcopy takes. Sweep one of its layers."
            ) from error


def _gains(reduction: Reduction) -> HostArray:
    """Gain of the system, or of each of a batch, in C order."""
    return np.array([to_nothing(part).verify() for part in reduction.parts or (reduction,)])


def _gain_of(part: LayerReduction) -> HostArray:
    parts = part.reduction.parts or (part.reduction,)
    gain = max(float(to_nothing(each).quick_error()) for each in parts)
    return np.asarray(part.kind.error_factor * gain)


def _relative(error: HostArray, gain: HostArray) -> float:
    """Largest of the errors over the gain of each."""
    return float(np.max(np.divide(error, gain, out=np.zeros(error.shape), where=error > 0.0)))


def _checked_orders(orders: Any) -> list[int | OrderRule]:
    meaning = "orders to try, such as [4, 8, 16]"
    found = list(orders) if isinstance(orders, range) else items(orders, "orders", meaning)
    if not found:
        raise OrderError("`orders` has no entries; expected at least one. Pass orders to try.")
    return [
        order
        if isinstance(order, OrderRule)
        else positive_count(whole_number(order, "orders", meaning), "orders", meaning)
        for order in found
    ]


def _relative_error(row: SweepRow) -> float:
    return row.relative_error


def _order_and_error(row: SweepRow) -> tuple[int, float]:
    return row.order, row.relative_error
