"""`sweep`: the same numbers as separate calls, nothing changed, and what the table says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import good_calls
import numpy as np
import pytest
import torch
from fingerprints import fingerprint

from ssmreduce import (
    CutOptions,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    FixedOrder,
    HankelMass,
    balanced_truncation,
    hinf_norm,
    reduce_layer,
    reduce_model,
    sweep,
)
from ssmreduce.errors import OrderError, ShapeError, UnsupportedLayerError
from ssmreduce.models.sweep import Sweep, SweepRow
from ssmreduce.reduction.measured import to_nothing

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
        OrderError, match=r"`relative_error` is 0\.001 .* 0\.0\d+, at order 2; expected"
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
        "SweepRow(wanted=2, order=2, error_bound=-, measured_error=0.5, relative_error=0.25, metric=-, "
        "seconds=0.125)"
    )
    assert json.loads(json.dumps(result.to_dict())) == {
        "wanted": [2, "HankelMass(share=0.9)"],
        "order": [2, 3],
        "error_bound": [None, 0.75],
        "measured_error": [0.5, 0.25],
        "relative_error": [0.25, 0.125],
        "metric": [None, None],
        "seconds": [0.125, 1.0],
    }
    assert "metric" in repr(Sweep((SweepRow(2, 2, None, 0.5, 0.25, 0.9),)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"orders": []}, OrderError, "`orders` has no entries; expected at least one"),
        ({"orders": 3}, ShapeError, r"`orders` is 3; expected a list.* \[4, 8, 16\]"),
        ({"orders": [2, 0]}, OrderError, "`orders` is 0; expected a positive int"),
        (
            {"orders": [FixedOrder(5)]},
            OrderError,
            r"while trying order FixedOrder\(order=5\): `order` is 5 but .* rank 4",
        ),
        ({"metric": 3}, OrderError, "`metric` is 3; expected a function"),
        ({"metric": str}, OrderError, r"`metric\(reduced\)` is 'StateSpace.*; expected a number"),
        ({"progress": True}, OrderError, "`progress` is True; expected a function"),
        ({"options": 0}, OrderError, "`options` is 0"),
        ({"model": [1]}, UnsupportedLayerError, "`model` is a .*would be a StateSpace"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sweep(**{"model": good_calls.dense(), "orders": [1, 2], **arguments})


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = good_calls.model()
    model.kept = torch.ones(1, requires_grad=True) * 2.0
    with pytest.raises(UnsupportedLayerError, match=r"`model` is a .* cannot be copied"):
        sweep(model, [2])
