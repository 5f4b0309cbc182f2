"""`sweep`: the table of what each order costs, for a system, a layer or a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, to_double
from ssmreduce._checks import (
    check_functions,
    check_instance,
    finite_number,
    items,
    metric_value,
    naming,
    positive_count,
    type_name,
    whole_number,
)
from ssmreduce._display import cell, html_table, text_table
from ssmreduce.errors import ArgumentError, OrderError, UnstableSystemError, UnsupportedLayerError
from ssmreduce.layers.cut import LayerCut, SystemCut
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.choice import LossAtCut
from ssmreduce.models.held_out import losses_in
from ssmreduce.models.reduce import cut_model
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.search import find_layers, search
from ssmreduce.reduction.balanced import balance
from ssmreduce.reduction.measured_order import to_nothing
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
    "method": "method by data",
    "output_error": "output error",
    "loss": "loss",
    "metric": "metric",
    "seconds": "seconds",
}
"""Columns of the table and what is written above them."""

_WHITE_HEADS = {
    "error_bound": "white: bound",
    "measured_error": "white: error at least",
    "relative_error": "white: relative",
}
"""The same where there are columns by data."""

_OPTIONAL = ("method", "output_error", "loss", "metric")
"""Columns that are left out where they are empty; with data also those of white cuts, which selective layers
cannot have."""


@dataclass(frozen=True, eq=False, repr=False)
class SweepRow:
    """What one order costs.

    Attributes
    ----------
    wanted : int or OrderRule
        What was asked for, of each layer of a model.
    order : int
        Stored states after the cut: of the largest system of a batch, of all layers of a model
        together.
    error_bound : float or None
        Bound on the H-infinity error in exact arithmetic, the largest over a batch or the layers;
        None where one of them has none. Rounding may lift an error above a bound that is small and
        tight, as that of one state less than all may be. With data, this and the next two are those
        of balanced truncation to the same order, without data.
    measured_error : float or None
        Measured error, a lower bound, the largest over a batch or the layers; None where, with
        data, a layer cannot be cut without them.
    relative_error : float or None
        Measured error over the gain of the system or layer, which is measured alike, the largest
        over a batch or the layers; of a layer that runs channels apart the largest error over the
        largest gain.
    metric : float or None
        What `metric` returned.
    seconds : float
        Wall-clock time of the cut and of measuring its error, without the metric; for a system
        without balancing, which is done once.
    method : str or None
        With data, the method that was chosen; where layers differ, each with the number of them.
    output_error : float or None
        With data, the relative error of the held-out outputs, the largest over the layers; None
        where no layer has one.
    loss : float or None
        The loss of the reduced model on what was held out, where `data` has a loss.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, sweep
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> (row,) = sweep(system, [1]).rows
    >>> row.wanted, row.order, row.measured_error <= row.error_bound
    (1, 1, True)
    """

    wanted: int | OrderRule
    order: int
    error_bound: float | None
    measured_error: float | None
    relative_error: float | None
    metric: float | None = None
    seconds: float = 0.0
    method: str | None = None
    output_error: float | None = None
    loss: float | None = None

    def __repr__(self) -> str:
        names = [
            name for name in _HEADS if name not in _OPTIONAL or getattr(self, name) is not None
        ]
        return f"SweepRow({', '.join(f'{name}={self._cell(name)}' for name in names)})"

    def _cell(self, name: str) -> str:
        """Entry of the table."""
        return str(self.wanted) if name == "wanted" else cell(getattr(self, name))


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """One row for each order; prints as a table.

    Of a model *wanted* is for each layer, and *order* the sum over all layers: two layers that are
    cut to 32 states have 64.

    Attributes
    ----------
    rows : tuple of SweepRow
        In the order in which they were asked for.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, sweep
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> costs = sweep(system, [1, 2])
    >>> len(costs.rows), costs.to_dict()["order"]
    (2, [1, 2])
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

    def plot(self, *, ax: Any = None) -> Any:
        """Draw bound and errors against order, and the metric, or the loss, on an axis to the right.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; a new figure otherwise.

        Returns
        -------
        Axes
            See `ssmreduce.plotting.plot_errors`.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        """
        from ssmreduce.plotting.decay import plot_errors

        columns = self.to_dict()
        filled = {name for name in columns if any(value is not None for value in columns[name])}
        white = ", without data" if "output_error" in filled else ""
        names = {
            "error_bound": f"error bound{white}",
            "measured_error": f"measured error{white}",
            "output_error": "output error (relative)",
        }
        errors = {text: columns[name] for name, text in names.items() if name in filled}
        name = "metric" if "metric" in filled else "loss"
        metric = columns[name] if name in filled else None
        return plot_errors(columns["order"], errors, metric=metric, metric_name=name, ax=ax)

    def smallest(self, *, relative_error: float) -> SweepRow:
        """Return the row of the smallest order whose relative error is at most this.

        Parameters
        ----------
        relative_error : float
            0.01 for 1 %.

        Returns
        -------
        SweepRow
            Its relative error was measured: a lower bound; with data that of the cut without.

        Raises
        ------
        ArgumentError
            If there is none.
        """
        limit = finite_number(relative_error, "relative_error", "0.01 for 1 %")
        known = [(row.relative_error, row) for row in self.rows if row.relative_error is not None]
        good = [(row.order, error, row) for error, row in known if error <= limit]
        if not good:
            error, best = min(known, key=itemgetter(0), default=(np.inf, None))
            smallest = "unknown" if best is None else f"{error:.3g}, at order {best.order}"
            raise ArgumentError(
                f"`relative_error` is {limit:g} but the smallest of the sweep is {smallest}; expected at "
                "least that. Sweep larger orders."
            )
        return min(good, key=itemgetter(0, 1))[2]

    def _table(self) -> list[tuple[str, ...]]:
        filled = {
            name for name in _HEADS if any(getattr(row, name) is not None for row in self.rows)
        }
        by_data = bool({"method", "output_error"} & filled)
        white = _WHITE_HEADS if by_data else {}
        names = [name for name in _HEADS if name in filled or name not in {*_OPTIONAL, *white}]
        heads = _HEADS | white
        rows = (tuple(row._cell(name) for name in names) for row in self.rows)
        return [tuple(heads[name] for name in names), *rows]


def sweep(
    model: Any,
    orders: Sequence[int | OrderRule],
    metric: Callable[[Any], float] | None = None,
    *,
    data: Calibration | None = None,
    options: CutOptions = CutOptions(),
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Measure for each order what a cut to it would cost; nothing is changed.

    Parameters
    ----------
    model : StateSpace, DiagonalStateSpace, layer or model
        A system is balanced once and truncated to each order (see `Balancing.truncate`). For a
        layer or model of PyTorch or JAX, a copy is reduced to each order (see `reduce_model`).
    orders : sequence of ints or order rules
        As they are given to `balanced_truncation` or `reduce_model`; each is used for all layers of
        a model. An int is an upper limit: a single dense system gets its numerical rank at most.
    metric : callable, optional
        Takes the reduced system, layer or model and returns a number, its accuracy for example.
    data : Calibration, optional
        Recorded inputs of the layers: each order is then cut as `reduce_model` does with them. The
        rows have the method that was chosen and its held-out error and loss, next to the errors of
        the cut without data.
    options : CutOptions
        As `reduce_model` takes them; for a system only the horizon matters.
    progress : callable, optional
        Called after each order with how many are done and how many there are.

    Returns
    -------
    Sweep
        With a row for each order: bound, measured error, metric, seconds; with data also method,
        output error and loss.

    Raises
    ------
    OrderError, ArgumentError
        If there are no orders, or one of them cannot be delivered; or if `data` are given for a
        system.
    UnsupportedLayerError
        If `model` is nothing that can be reduced, or a PyTorch module that cannot be copied.
    UnstableSystemError
        If a system is unstable: sweep ``split_unstable(system).stable``, where all of the error is.
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
    if data is not None:
        check_instance(data, Calibration, "data", "calibrate(model, batches)")
    cuts: _SystemCuts | _ModelCuts
    if not isinstance(model, StateSpace | DiagonalStateSpace):
        cuts = _ModelCuts(model, data, options)
    elif data is None:
        cuts = _SystemCuts(model, options)
    else:
        raise ArgumentError(
            f"`data` are given but `model` is a {type_name(model)}; expected a layer or a model. Leave "
            "`data` out."
        )
    rows: list[SweepRow] = []
    for order in wanted:
        started = time.perf_counter()
        with naming(f"while trying order {order}"):
            reduced, row = cuts.cut(order)
        seconds = time.perf_counter() - started
        value = None if metric is None else metric_value(metric(reduced), "metric(reduced)")
        rows.append(replace(row, metric=value, seconds=seconds))
        if progress is not None:
            progress(len(rows), len(wanted))
    return Sweep(tuple(rows))


class _SystemCuts:
    """Cuts of one system, or batch, which is balanced once."""

    def __init__(self, system: System, options: CutOptions) -> None:
        try:
            self._balancing = balance(system, horizon=options.horizon)
        except UnstableSystemError as error:
            raise UnstableSystemError(
                f"{error} A sweep has no `keep_unstable`: pass it split_unstable(system).stable, where all "
                "of the error is."
            ) from error
        self._gains: HostArray | None = None

    def cut(self, order: int | OrderRule) -> tuple[System, SweepRow]:
        """Return the reduced system, and what the cut cost."""
        reduction = self._balancing.truncate(self._within_rank(order))
        error = to_double(reduction.verify())
        if self._gains is None:
            self._gains = _gains(reduction).reshape(error.shape)
        row = SweepRow(
            order, reduction.system.order, *_errors(reduction.error_bound, error, self._gains)
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

    def __init__(self, model: Any, data: Calibration | None, options: CutOptions) -> None:
        self._model, self._data, self._options = model, data, options
        self._gains: dict[str, float] = {}
        try:
            self._framework = find_layers(model, options).framework
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(
                f"{error} A system would be a StateSpace or a DiagonalStateSpace."
            ) from error
        options.of_call(has_data=data is not None)

    def cut(self, order: int | OrderRule) -> tuple[Any, SweepRow]:
        """Return the reduced copy, and what the cut cost."""
        result = cut_model(self._copied(), order, None, (), self._data, self._options)
        report, data = result.report, self._data
        # Copies that follow a layer are cut like it, without a choice of their own.
        decided = {
            name: part
            for name, part in report.items()
            if data is None or part.choice or not _is_cut(part)
        }
        whites = {
            name: part.cut if part.choice is None else part.choice.white
            for name, part in decided.items()
        }
        row = SweepRow(order, report.totals()[1], *self._errors(whites))
        if data is not None:
            row = replace(
                row,
                method=_methods([part for part in decided.values() if _is_cut(part)]),
                output_error=_output_error(list(decided.values())),
                loss=self._loss(result.model, losses_in(report), data),
            )
        return result.model, row

    def _errors(self, cuts: Mapping[str, LayerCut | None]) -> _Errors:
        """The largest of the errors of some cuts, one for each layer; none where one is not of a system."""
        made = {name: cut for name, cut in cuts.items() if isinstance(cut, SystemCut)}
        if len(made) < len(cuts):
            return None, None, None
        for name, cut in made.items():
            if name not in self._gains:
                self._gains[name] = _gain_of(cut)
        errors = [cut.measured_error for cut in made.values()]
        bounds = [cut.error_bound for cut in made.values()]
        gains = [self._gains[name] for name in made]
        return _errors(
            None if None in bounds else np.array(bounds), np.array(errors), np.array(gains)
        )

    def _loss(self, model: Any, losses: LossAtCut | None, data: Calibration) -> float | None:
        """Loss of a reduced model on what was held out; of one that was not cut it is not known yet."""
        if losses is not None:
            return losses.after
        held_out = None if data.runs is None else data.runs.held_out_loss
        return None if held_out is None else held_out.of(search(model, self._options))

    def _copied(self) -> Any:
        try:
            return self._framework.scratch(self._model)
        except Exception as error:
            raise UnsupportedLayerError(
                f"`model` is a {type_name(self._model)} that cannot be copied ({error}); expected one "
                "that copy.deepcopy takes. Sweep one of its layers."
            ) from error


def _gains(reduction: Reduction) -> HostArray:
    """Gain of the system, or of each of a batch, in C order."""
    return np.array([to_nothing(part).verify() for part in reduction.parts or (reduction,)])


def _gain_of(cut: SystemCut) -> float:
    parts = cut.reduction.parts or (cut.reduction,)
    return cut.kind.error_factor * max(float(to_nothing(each).measured()) for each in parts)


def _is_cut(part: LayerReduction) -> bool:
    return part.new_order < part.old_order


def _methods(parts: Sequence[LayerReduction]) -> str | None:
    """How layers were cut."""
    counts = Counter(part.choice.method for part in parts if part.choice is not None)
    if len(counts) < 2:
        return next(iter(counts), None)
    return ", ".join(f"{count} {method}" for method, count in counts.items())


def _output_error(parts: Sequence[LayerReduction]) -> float | None:
    """Largest error of outputs that were held out, of the layers that tell; 0 where nothing was cut."""
    errors = [part.cut.output_error for part in parts if part.cut.output_error is not None]
    return max(errors, default=None if any(map(_is_cut, parts)) else 0.0)


_Errors = tuple[float | None, float | None, float | None]


def _errors(bounds: Array | None, errors: HostArray, gains: HostArray) -> _Errors:
    """Largest bound, or None, largest error, and largest of the errors over the gain of each."""
    relative = np.divide(errors, gains, out=np.zeros(errors.shape), where=errors > 0.0)
    bound = None if bounds is None else float(to_double(bounds).max())
    return bound, float(errors.max()), float(relative.max())


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
