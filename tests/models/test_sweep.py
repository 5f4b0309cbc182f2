"""`sweep`: the same numbers as separate calls, nothing changed, and what the table says."""

from __future__ import annotations

import copy
import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import good_calls
import numpy as np
import pytest
import torch
from fingerprints import fingerprint
from samples import linoss_weights, lru_weights, slow_inputs
from torch_samples import cross_entropy, model_and_batches

from ssmreduce import (
    Calibration,
    Continuous,
    CutOptions,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    FixedOrder,
    HankelMass,
    MeasuredError,
    balanced_truncation,
    calibrate,
    hinf_norm,
    reduce_layer,
    reduce_model,
    sweep,
)
from ssmreduce.errors import (
    ArgumentError,
    CalibrationWarning,
    OrderError,
    ShapeError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers.linoss import LinOSS
from ssmreduce.models.sweep import Sweep, SweepRow
from ssmreduce.reduction.measured_order import to_nothing
from ssmreduce.reduction.unstable import split_unstable

EPS = float(np.finfo(np.float64).eps)


@pytest.mark.parametrize("system", [good_calls.dense, good_calls.layer_like, good_calls.continuous])
def test_rows_of_a_system_are_those_of_separate_cuts(system: Callable[[], Any]) -> None:
    orders = [1, 3, HankelMass(0.9), ErrorBound(relative=0.1)]
    gain = hinf_norm(system()).lower
    rows = sweep(system(), orders, metric=hinf_norm).rows
    for order, row in zip(orders, rows, strict=True):
        cut = balanced_truncation(system(), order)
        assert (row.wanted, row.order, row.error_bound) == (order, cut.order, cut.error_bound)
        assert row.measured_error == pytest.approx(cut.verify(), rel=1e4 * EPS)
        assert row.relative_error == pytest.approx(cut.verify() / gain, rel=1e-3)
        assert row.metric == pytest.approx(float(hinf_norm(cut.system)), rel=1e4 * EPS)
        assert row.seconds > 0.0


def test_an_int_is_an_upper_limit() -> None:
    for system in (good_calls.dense(), good_calls.diagonal()):
        rows = sweep(system, [2, 4, 9]).rows
        assert [(row.wanted, row.order) for row in rows] == [(2, 2), (4, 4), (9, 4)]


def test_a_batch_is_as_good_as_its_worst_system() -> None:
    one = good_calls.channels()
    scale = np.array([1.0, 3.0])[:, None, None]
    batch = DiagonalStateSpace(
        one.eigenvalues, one.B, scale * one.C, time=Discrete(), real_output=True
    )
    (row,) = sweep(batch, [2], options=CutOptions(horizon=20)).rows
    worst = balanced_truncation(batch[1], 2, horizon=20)
    assert (row.order, row.error_bound) == (2, None)
    assert row.measured_error == pytest.approx(worst.verify(), rel=1e-6)
    gain = float(to_nothing(worst).verify())
    assert row.relative_error == pytest.approx(worst.verify() / gain, rel=1e-6)


@pytest.mark.parametrize("layer", [good_calls.layer, good_calls.equinox_layer])
def test_rows_of_a_layer_are_those_of_reduce_layer(layer: Callable[[], Any]) -> None:
    given = layer()
    before = fingerprint(given)
    rows = sweep(given, range(2, 5), options=CutOptions(horizon=30)).rows
    assert fingerprint(given) == before
    for order, row in zip(range(2, 5), rows, strict=True):
        cut = reduce_layer(copy.deepcopy(given), order, options=CutOptions(horizon=30))
        found = (row.order, row.error_bound, row.measured_error)
        assert found == (cut.new_order, cut.error_bound, cut.measured_error)
        assert row.relative_error == cut.measured_error / to_nothing(cut.reduction).quick_error()


def test_rows_of_a_model_sum_up_its_layers() -> None:
    torch.manual_seed(1)
    first, second = good_calls.layer(), good_calls.LRU(2, 2, 8, rmin=0.5)
    model = torch.nn.Sequential(first, second, first)  # the first and the last share their weights
    before = fingerprint(model)
    done: list[tuple[int, int]] = []

    def states(reduced: Any) -> int:
        assert reduced is not model
        return sum(len(layer.nu_log) for layer in reduced)

    result = sweep(model, [2, 8], states, progress=lambda *counts: done.append(counts))
    assert fingerprint(model) == before
    assert done == [(1, 2), (2, 2)]
    assert [(row.order, row.metric) for row in result.rows] == [(4, 6), (14, 20)]
    parts = list(reduce_model(copy.deepcopy(model), 2).report.values())
    (row, last) = result.rows
    assert row.error_bound == max(part.error_bound for part in parts if part.error_bound)
    assert row.measured_error == max(part.measured_error for part in parts)
    assert row.relative_error == max(
        part.measured_error / to_nothing(part.reduction).quick_error() for part in parts
    )
    assert (last.error_bound, last.measured_error, last.relative_error) == (0.0, 0.0, 0.0)


def test_the_smallest_order() -> None:
    result = sweep(good_calls.dense(), [4, 3, 2, 1])
    errors = {row.order: row.relative_error for row in result.rows}
    assert errors[1] > errors[2] > errors[3] > errors[4] == 0.0
    for order in (1, 2, 3):
        assert result.smallest(relative_error=errors[order]).order == order
    assert result.smallest(relative_error=0.999 * errors[2]).order == 3
    short = Sweep(result.rows[2:])
    with pytest.raises(
        ArgumentError, match=r"`relative_error` is 0\.001 .* 0\.0\d+, at order 2; expected"
    ):
        short.smallest(relative_error=0.001)


def test_the_table() -> None:
    result = Sweep(
        (
            SweepRow(2, 2, None, 0.5, 0.25, None, 0.125),
            SweepRow(HankelMass(0.9), 3, 0.75, 0.25, 0.125, None, 1.0),
        )
    )
    assert repr(result).splitlines() == [
        "wanted                 order  error bound  error at least  relative  seconds",
        "2                          2            -             0.5      0.25    0.125",
        "HankelMass(share=0.9)      3         0.75            0.25     0.125        1",
    ]
    assert "<tr><td>2</td><td>2</td><td>-</td><td>0.5</td>" in result._repr_html_()
    assert repr(result.rows[0]) == (
        "SweepRow(wanted=2, order=2, error_bound=-, measured_error=0.5, relative_error=0.25, seconds=0.125)"
    )
    assert json.loads(json.dumps(result.to_dict())) == {
        "wanted": [2, "HankelMass(share=0.9)"],
        "order": [2, 3],
        "error_bound": [None, 0.75],
        "measured_error": [0.5, 0.25],
        "relative_error": [0.25, 0.125],
        "method": [None, None],
        "output_error": [None, None],
        "loss": [None, None],
        "metric": [None, None],
        "seconds": [0.125, 1.0],
    }
    assert "metric" in repr(Sweep((SweepRow(2, 2, None, 0.5, 0.25, 0.9),)))


def test_the_table_with_data_tells_both_kinds_of_values_apart() -> None:
    row = SweepRow(2, 4, None, 0.5, 0.25, None, 0.125, "selected", 0.0625, 1.5)
    result = Sweep((row, SweepRow(8, 8, 0.0, 0.0, 0.0, None, 1.0, None, 0.0, 1.25)))
    assert repr(result).splitlines() == [
        "wanted  order  white: bound  white: error at least  white: relative  method by data  "
        "output error  loss  seconds",
        "2           4             -                    0.5             0.25        selected  "
        "      0.0625   1.5    0.125",
        "8           8             0                      0                0               -  "
        "           0  1.25        1",
    ]
    assert "<td>selected</td><td>0.0625</td><td>1.5</td>" in result._repr_html_()
    assert "method=selected, output_error=0.0625, loss=1.5" in repr(row)
    found = json.loads(json.dumps(result.to_dict()))
    assert found["method"] == ["selected", None]
    assert (found["output_error"], found["loss"]) == ([0.0625, 0.0], [1.5, 1.25])
    with pytest.raises(ArgumentError, match="the smallest of the sweep is unknown"):
        Sweep((replace(row, relative_error=None),)).smallest(relative_error=0.1)


# --- By data


@pytest.mark.filterwarnings("ignore:the model is at chance:ssmreduce.errors.CalibrationWarning")
def test_rows_with_data_are_those_of_reduce_model() -> None:
    model, batches = model_and_batches(count=4)
    data = calibrate(model, batches, loss=cross_entropy)
    before = fingerprint(model)
    wanted = [3, MeasuredError(0.3), 24]
    rows = sweep(model, wanted, data=data).rows
    assert fingerprint(model) == before
    for order, row in zip(wanted, rows, strict=True):
        cut = copy.deepcopy(model)
        report = reduce_model(cut, order, data=data).report
        assert row.order == report.totals()[1]
        errors = [part.cut.output_error or 0.0 for part in report.values()]
        assert row.output_error == max(errors)
        cut.eval()
        with torch.no_grad():  # one batch in four is held out
            assert row.loss == pytest.approx(float(cross_entropy(cut, batches[3])), rel=1e-6)
        for part in report.values():
            assert part.choice is None or part.choice.method in (row.method or "")
    assert rows[1].output_error is not None
    assert 0.0 < rows[1].output_error <= 0.3
    assert (rows[2].method, rows[2].output_error, rows[2].measured_error) == (None, 0.0, 0.0)


def test_a_loss_is_asked_as_often_as_by_reduce_model() -> None:
    model, batches = model_and_batches(count=4)
    calls: list[Any] = []

    def loss(model: Any, batch: Any) -> torch.Tensor:
        calls.append(batch)
        return cross_entropy(model, batch)

    data, options = calibrate(model, batches, loss=loss), CutOptions(method="white")
    asked = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        for ask in (reduce_model, lambda *given, **more: sweep(given[0], given[1:], **more)):
            calls.clear()
            ask(copy.deepcopy(model), 6, data=data, options=options)
            asked.append(len(calls))
    assert asked[0] == asked[1] > 0


@pytest.mark.parametrize("method", ["best", "balanced"])
def test_errors_beside_data_are_those_of_the_white_cut(method: Any) -> None:
    model, batches = model_and_batches(count=4)
    data = calibrate(model, batches)
    (plain,) = sweep(model, [6]).rows
    (row,) = sweep(model, [6], data=data, options=CutOptions(method=method)).rows
    for name in ("order", "error_bound", "measured_error", "relative_error"):
        assert getattr(row, name) == getattr(plain, name)
    assert row.method in ("balanced", "selected", "white refit")
    assert row.loss is None
    (white,) = sweep(model, [6], data=data, options=CutOptions(method="white")).rows
    assert white.method == "white"
    assert row.output_error is not None
    assert white.output_error is not None
    assert row.output_error < white.output_error


def test_a_layer_alone_is_swept_with_its_only_record() -> None:
    weights, options = lru_weights(np.random.default_rng(0), 24, 6), CutOptions(kind="lru")
    data = Calibration.of_inputs({"encoder.0": slow_inputs(64, 60, 6)})
    (row,) = sweep(weights, [4], data=data, options=options).rows
    cut = reduce_layer(weights, 4, kind="lru", data=data)
    assert (row.order, row.output_error) == (cut.new_order, cut.cut.output_error)


def test_oscillators_have_no_values_by_data() -> None:
    weights = linoss_weights(n=12)
    data = Calibration.of_inputs({"model": slow_inputs(16, 30, weights["D"].shape[0])})
    options = CutOptions(kind=LinOSS())
    (row,) = sweep(weights, [5], data=data, options=options).rows
    (plain,) = sweep(weights, [5], options=options).rows
    assert (row.output_error, row.loss) == (None, None)
    assert row.measured_error == plain.measured_error
    assert "output error" not in repr(Sweep((row,)))


def test_data_that_do_not_fit_are_refused() -> None:
    weights, options = lru_weights(np.random.default_rng(0), 24, 6), CutOptions(kind="lru")
    before = fingerprint(weights)
    good = Calibration.of_inputs({"model": slow_inputs(8, 20, 6)})
    with pytest.raises(ArgumentError, match=r"`data` are given but `model` is a .*StateSpace"):
        sweep(good_calls.dense(), [1], data=good)
    with pytest.raises(ArgumentError, match="`data` is"):
        sweep(weights, [1], data={"model": slow_inputs(8, 20, 6)}, options=options)  # type: ignore[arg-type]
    wide = Calibration.of_inputs({"model": slow_inputs(8, 20, 7)})
    with pytest.raises(ShapeError, match=r"while trying order 4: .*expected 6 channels"):
        sweep(weights, [4], data=wide, options=options)
    two = Calibration.of_inputs({name: slow_inputs(8, 20, 6) for name in "ab"})
    with pytest.raises(
        ShapeError, match=r"`data` has the layers .*expected one of the name `model`"
    ):
        sweep(weights, [4], data=two, options=options)
    pulse = np.zeros((8, 5, 6))
    pulse[:, 0, 0] = 1.0
    short = Calibration.of_inputs({"model": pulse})
    with pytest.raises(
        OrderError, match=r"trying order 8: .*excite 3 of 24 states; expected at most 3"
    ):
        sweep(weights, [8], data=short, options=options)
    assert fingerprint(weights) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"orders": []}, ArgumentError, "`orders` has no entries; expected at least one"),
        ({"orders": 3}, ShapeError, r"`orders` is 3; expected a list.* \[4, 8, 16\]"),
        ({"orders": [2, 0]}, ArgumentError, "`orders` is 0; expected a positive int"),
        (
            {"orders": [FixedOrder(5)]},
            OrderError,
            r"while trying order FixedOrder\(order=5\): `order` is 5 but .* rank 4",
        ),
        ({"metric": 3}, ArgumentError, "`metric` is 3; expected a function"),
        (
            {"metric": str},
            ArgumentError,
            r"`metric\(reduced\)` is 'StateSpace.*; expected a number",
        ),
        ({"progress": True}, ArgumentError, "`progress` is True; expected a function"),
        ({"options": 0}, ArgumentError, "`options` is 0"),
        ({"model": [1]}, UnsupportedLayerError, "`model` is a .*would be a StateSpace"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sweep(**{"model": good_calls.dense(), "orders": [1, 2], **arguments})


def test_unstable_systems_are_refused_with_what_a_sweep_takes() -> None:
    system = DiagonalStateSpace([-1.0, -0.0], [[1.0]] * 2, [[1.0] * 2], time=Continuous())
    with pytest.raises(UnstableSystemError, match=r"Re λ = 0;.* pass it split_unstable") as caught:
        sweep(system, [1])
    assert "-0" not in str(caught.value)
    (row,) = sweep(split_unstable(system).stable, [1]).rows
    assert row.order == 1


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = good_calls.model()
    model.kept = torch.ones(1, requires_grad=True) * 2.0  # of an earlier run
    assert len(sweep(model, [2]).rows) == 1
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedLayerError, match=r"`model` is a .* cannot be copied"):
        sweep(model, [2])
