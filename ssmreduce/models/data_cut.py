"""Cut the layers of a model by what they are given: one after the other, each behind those already cut.

The layer's own output in the uncut model is what each is to reproduce, so that it makes up for what the
layers before it have lost. Candidates are compared on what was held out, by the loss where there is one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from ssmreduce.errors import CalibrationWarning, SSMReduceError
from ssmreduce.frameworks.framework import LayerHandle
from ssmreduce.frameworks.transaction import commit
from ssmreduce.layers.layer import LayerCut
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration, LayerRecord, Runs
from ssmreduce.models.cut import changes_of
from ssmreduce.models.report import Choice, LayerReduction
from ssmreduce.models.search import Layers
from ssmreduce.reduction.order import OrderRule

_ROWS = 4.0
"""Effective rows that a fit wants for each of its unknowns."""


class DataCut:
    """Decides about the layers of one model."""

    def __init__(self, found: Layers, data: Calibration) -> None:
        self._found, self._data = found, data
        # On several processes the first decides alone, and cannot run a model that is spread over them.
        self._runs = data.runs if found.team is None else None
        self._behind: Layers | None = None
        """The model with the layers that were cut so far; None for none."""

    def decide(
        self, layers: Mapping[str, LayerHandle], orders: Mapping[str, int | OrderRule]
    ) -> dict[str, LayerReduction]:
        """Plan all layers that have an order, in the order in which the model runs them."""
        records = {name: self._data.record_of(layers[name]) for name in orders}
        ranks = {id(record): rank for rank, record in enumerate(self._data.layers.values())}
        results = {}
        for name in sorted(orders, key=lambda each: ranks[id(records[each])]):
            try:
                results[name] = self._decided(layers[name], orders[name])
            except SSMReduceError as error:
                raise type(error)(f"while reducing layer `{name}`: {error}") from error
        return results

    def _decided(self, handle: LayerHandle, order: int | OrderRule) -> LayerReduction:
        record = self._data.record_of(handle)
        if self._behind is not None and self._runs is not None:
            inputs = self._runs.inputs(self._behind, self._at(self._behind, handle).name)
            record = replace(record, inputs=inputs, targets=record.outputs(handle))
        loss = None
        if self._runs is not None and self._runs.tells_loss:
            loss = partial(self._loss, self._runs, handle)
        result = planned_with_data(handle, order, self._found.options, record, loss)
        if self._runs is not None and result.new_order < result.old_order:
            self._behind = self._with_cut(handle, result.cut)
        return result

    def _loss(self, runs: Runs, handle: LayerHandle, cut: LayerCut) -> float:
        """Loss of the model with a candidate, on what was held out."""
        return runs.held_out_loss(self._with_cut(handle, cut))

    def _at(self, found: Layers, handle: LayerHandle) -> LayerHandle:
        """The layer in a copy of the model, whose wrappers may be gone."""
        return found.meant[[each.path for each in self._found.meant].index(handle.path)]

    def _with_cut(self, handle: LayerHandle, cut: LayerCut) -> Layers:
        """The model with the layers that were cut so far, and this one."""
        base = self._found if self._behind is None else self._behind
        framework = self._found.framework
        model = framework.scratch(framework.plain(base.model))
        copy = self._found.of(model)
        own = self._at(copy, handle)
        changes, gradients = changes_of(framework, model, [own], {own.path: cut})
        ready = framework.prepared(model, changes, None, {}, gradients)
        commit(ready.steps)
        return self._found.of(ready.model)


def planned_with_data(
    handle: LayerHandle,
    order: int | OrderRule,
    options: CutOptions,
    record: LayerRecord,
    loss: Callable[[LayerCut], float] | None = None,
) -> LayerReduction:
    """Plan the cut of one layer by what it is given; candidates are compared by a loss if there is one."""
    started = time.perf_counter()
    data = record.data(record.outputs(handle))
    cuts = handle.kind.candidates(handle.weights, order, options, handle, data)
    choice, best = None, cuts[0]
    if best.new_order < best.old_order:
        by = "output error" if loss is None or len(cuts) == 1 else "loss"
        values = [
            np.inf if value is None or np.isnan(value) else value
            for cut in cuts
            for value in [loss(cut) if loss is not None and by == "loss" else cut.output_error]
        ]
        names = [cut.reduction.method for cut in cuts]
        choice, best = (
            Choice(by, dict(zip(names, values, strict=True))),
            cuts[int(np.argmin(values))],
        )
        _check_rows(handle, data.fitting.effective_rows, best)
    seconds = time.perf_counter() - started
    return LayerReduction(handle.layer, best, handle.item_sizes, seconds, choice)


def _check_rows(handle: LayerHandle, rows: float, cut: LayerCut) -> None:
    """Warn if the sequences say too little for the output weights of a cut."""
    directions = 2 if handle.kind.both_directions else 1
    wanted = _ROWS * 2 * directions * cut.new_order
    if rows < wanted and cut.reduction.method != "balanced truncation":
        warnings.warn(
            f"layer `{handle.name}` was fitted to {rows:.0f} effective rows; expected {wanted:.0f} or more "
            f"for {cut.new_order} states. Calibrate with more sequences: max_sequences=...",
            CalibrationWarning,
            stacklevel=2,
        )
