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

from ssmreduce._checks import naming
from ssmreduce.errors import ArgumentError, CalibrationWarning
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.gramians.sequences import LayerData
from ssmreduce.layers.cut import Candidates, LayerCut
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.choice import Choice
from ssmreduce.models.held_out import cut_copy
from ssmreduce.models.layer_records import LayerRecord
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.runs import HeldOutLoss, Runs
from ssmreduce.models.search import Layers
from ssmreduce.reduction.order import MeasuredError, OrderRule

_ROWS = 4.0
"""Effective rows that a fit wants for each of its unknowns."""

_WORSE = 3.0
"""Candidates with an output error so many times the least one are not run for their loss."""

_TIE = 0.1
"""Losses that differ by a smaller share are equal, as far as some hundred sequences tell."""


class DataCut:
    """Decides about the layers of one model."""

    def __init__(self, found: Layers, data: Calibration) -> None:
        self._found, self._data = found, data
        self._runs = data.runs
        self._behind: Layers | None = None
        """The model with the layers that were cut so far; None for none, or if inputs decide nothing."""
        self._inputs_decide = True

    def decide(
        self, layers: Mapping[str, LayerHandle], orders: Mapping[str, int | OrderRule]
    ) -> dict[str, LayerReduction]:
        """Plan all layers that have an order, in the order in which the model runs them."""
        self._inputs_decide = self._found.options.method != "white" or any(
            isinstance(order, MeasuredError) for order in orders.values()
        )
        groups = {name: self._tied(name) for name in orders}
        every = [each for group in groups.values() for each in group]
        records = {each.name: self._data.record_of(each) for each in every}
        ranks = {id(record): rank for rank, record in enumerate(self._data.layers.values())}
        ordered = sorted(orders, key=lambda name: ranks[id(records[name])])
        runs = self._runs
        if runs is not None:  # the weights may have changed since they were recorded
            records = self._again(runs, records, self._found)
        results = {}
        for name in ordered:
            uncut = {each.name: records[each.name] for each in groups[name]}
            behind = self._behind
            own = uncut if runs is None or behind is None else self._again(runs, uncut, behind)
            with naming(f"while reducing layer `{name}`"):
                first, *others = (
                    replace(own[each.name], targets=uncut[each.name].outputs(each))
                    for each in groups[name]
                )
                results[name] = self._decided(layers[name], orders[name], first.joined(*others))
        return results

    def _tied(self, name: str) -> list[LayerHandle]:
        """A layer, and those that share its weights: their sequences add up."""
        found = self._found
        return [
            each
            for each in found.meant
            if found.firsts[each.name] == name and each.path not in found.copies
        ]

    def _again(
        self, runs: Runs, records: Mapping[str, LayerRecord], model: Layers
    ) -> dict[str, LayerRecord]:
        """Records with what the layers are given now, in a model that stays as it is."""
        framework, is_uncut = model.framework, model is self._found
        model = model.of(framework.scratch(framework.plain(model.model)))
        names = {
            each.name: own.name
            for each, own in zip(self._found.meant, model.meant, strict=True)
            if each.name in records
        }
        known = {names[name]: record.inputs for name, record in records.items()}
        inputs = runs.inputs(model, known, is_uncut=is_uncut)
        return {
            name: replace(record, inputs=inputs[names[name]]) for name, record in records.items()
        }

    def _decided(
        self, handle: LayerHandle, order: int | OrderRule, record: LayerRecord
    ) -> LayerReduction:
        held_out = None if self._runs is None else self._runs.held_out_loss
        loss = None if held_out is None else partial(self._loss, held_out, handle)
        result = planned_with_data(handle, order, self._found.options, record, loss)
        is_cut = result.new_order < result.old_order
        if self._runs is not None and is_cut and self._inputs_decide:
            self._behind = self._with_cut(handle, result.cut)
        return result

    def _loss(self, held_out: HeldOutLoss, handle: LayerHandle, cut: LayerCut) -> float:
        """Loss of the model with a candidate, on what was held out."""
        return held_out.of(self._with_cut(handle, cut))

    def _with_cut(self, handle: LayerHandle, cut: LayerCut) -> Layers:
        """The model with the layers that were cut so far, and this one."""
        base = self._found if self._behind is None else self._behind
        # In a copy, whose wrappers may be gone, it has another path.
        at = [each.path for each in self._found.meant].index(handle.path)
        return cut_copy(base, {base.meant[at].path: cut})


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
    _check_excites(handle, data)
    found = handle.kind.candidates(handle.weights, order, options, handle, data)
    choice, best = None, next(iter(found.cuts.values()))
    if best.new_order < best.old_order:
        choice = _chosen(found, loss)
        best = found.cuts[choice.method]
        if choice.method != "white":
            _check_rows(handle, data.fitting.effective_rows, best)
    seconds = time.perf_counter() - started
    return LayerReduction(None, best, handle.item_sizes, seconds, choice)


def _chosen(found: Candidates, loss: Callable[[LayerCut], float] | None) -> Choice:
    """The best on what was held out: by a loss that tells them apart, else by output error.

    A selected cut has to be better than the balanced one by more than losses tell.
    """
    errors = {name: _or_infinite(cut.output_error) for name, cut in found.cuts.items()}
    by, compared = "output error", errors
    near = [name for name, error in errors.items() if error <= _WORSE * min(errors.values())]
    if loss is not None and len(near) > 1:
        losses = {name: _or_infinite(loss(found.cuts[name])) for name in near}
        if min(losses.values()) < max(losses.values()):
            by, compared = "loss", losses
    best = min(compared, key=compared.__getitem__)
    balanced = compared.get("balanced", np.inf)
    nearly = balanced - _TIE * abs(balanced) <= compared[best]
    if by == "loss" and best == "selected" and nearly:
        best = "balanced"  # Trained on, it ends ahead of a selected cut that started beside it.
    return Choice(best, by, compared, found.white)


def _or_infinite(value: float | None) -> float:
    """An error or a loss, or infinity where there is none."""
    return np.inf if value is None or not np.isfinite(value) else value


def _check_excites(handle: LayerHandle, data: LayerData) -> None:
    """Raise `ArgumentError` unless something goes into a layer, in both parts of the sequences."""
    for name, part in (("fitted to", data.fitting), ("held out", data.held_out)):
        if not np.any(part.inputs[part.weights > 0.0]):
            raise ArgumentError(
                f"`data` excite 0 of {handle.kind.order(handle.weights)} states of layer `{handle.name}` by "
                f"the sequences that are {name}; expected inputs that are not zero. Calibrate with more, or "
                "other, batches."
            )


def _check_rows(handle: LayerHandle, rows: float, cut: LayerCut) -> None:
    """Warn if the sequences say too little for the output weights of a cut."""
    wanted = _ROWS * handle.kind.unknowns(cut.new_weights, cut.new_order)
    if rows < wanted:
        warnings.warn(
            f"layer `{handle.name}` was fitted to {rows:.0f} effective rows; expected {wanted:.0f} or more "
            f"for {cut.new_order} states: {wanted - rows:.0f} are missing. Calibrate with more sequences: "
            "max_sequences=...",
            CalibrationWarning,
            stacklevel=2,
        )
