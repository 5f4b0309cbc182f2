"""How results print: one line each, tables in text and HTML, plain dicts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from xml.etree import ElementTree

import good_calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import ssmreduce as sr
from ssmreduce import _display
from ssmreduce.models.report import ModelReport

LINES = {
    "StateSpace(order=4, inputs=2, outputs=2, time=Discrete(dt=1.0))": good_calls.dense,
    "DiagonalStateSpace(order=4, inputs=2, outputs=2, time=Discrete(dt=1.0), real_output=True, "
    "read_after_update=True)": good_calls.layer_like,
    "StateSpace(order=3, inputs=1, outputs=1, batch_shape=(2,), time=Discrete(dt=1.0))": (
        good_calls.batch
    ),
    "Balancing(StateSpace(order=4, inputs=2, outputs=2, time=Discrete(dt=1.0)), rank=4)": (
        good_calls.balancing
    ),
    "Balancing(StateSpace(order=4, inputs=2, outputs=2, time=Discrete(dt=1.0)), rank=4, horizon=10)": (
        lambda: sr.balance(good_calls.dense(), horizon=10)
    ),
    "Reduction(4 -> 2 states, error_bound=0.647, method='balanced truncation')": (
        good_calls.reduction
    ),
    "Reduction(4 -> 2 states, error_bound=None, horizon=10, method='balanced truncation')": (
        lambda: sr.balanced_truncation(good_calls.dense(), 2, horizon=10)
    ),
    "Reduction(3 -> 2 states, error_bound=0.0644, batch_shape=(2,), method='balanced truncation')": (
        lambda: sr.balanced_truncation(good_calls.channels(), 2)
    ),
    "Reduction(3 -> 2 states, error_bound=0.134, unstable=1, method='balanced truncation')": (
        lambda: sr.balanced_truncation(good_calls.unstable(), 2, keep_unstable=True)
    ),
    "H2Reduction(4 -> 2 states, h2_error=0.249, iterations=3, converged=True)": (
        lambda: sr.h2_optimal(good_calls.dense(), 2)
    ),
    "LayerReduction(6 -> 4 states, error_bound=3.86, measured_error=1.02)": (
        good_calls.layer_reduction
    ),
    "ReductionEvent(step=10, layer='layer', 6 -> 4 states, error_bound=3.86, measured_error=1.02)": (
        good_calls.event
    ),
    "ReductionEvent(step=10, layer='layer', 6 -> 4 states, error_bound=3.86, measured_error=1.02, "
    "rolled_back=20)": lambda: dataclasses.replace(good_calls.event(), rolled_back=20),
    "ModelReduction(1 layer, 6 -> 3 states, largest measured_error=0.346)": (
        lambda: sr.reduce_model(good_calls.model(), 3)
    ),
    "ModelReport(1 layer, 6 -> 3 states, largest measured_error=0.346)": (
        lambda: sr.reduce_model(good_calls.model(), 3).report
    ),
    "ModelReport(0 layers, 0 -> 0 states, largest measured_error=None)": ModelReport,
}


@pytest.mark.parametrize("line", LINES)
def test_a_result_prints_in_one_line(line: str) -> None:
    assert repr(LINES[line]()) == line


@pytest.mark.parametrize("make", [torch.tensor, jnp.asarray])
def test_results_in_other_libraries_print_alike(make: Any) -> None:
    one = good_calls.batch()
    arrays = (make(np.asarray(x)) for x in (one.A, one.B, one.C, one.D))
    reduction = sr.balanced_truncation(sr.StateSpace(*arrays, time=one.time), 2)
    host = sr.balanced_truncation(one, 2)
    assert repr(reduction) == repr(host)
    assert repr(reduction.system) == repr(host.system)


def test_a_traced_reduction_and_trees_without_arrays_print() -> None:
    lines: list[str] = []

    def reduced(system: Any) -> Any:
        lines.append(repr(sr.balanced_truncation(system, 2)))
        return system.A

    jax.jit(reduced)(jax.tree.map(jnp.asarray, good_calls.dense()))
    assert lines == ["Reduction(4 -> 2 states, error_bound=traced, method='balanced truncation')"]
    axes = jax.tree.map(lambda _: 0, good_calls.layer_like())
    assert repr(axes).startswith("DiagonalStateSpace(eigenvalues=0, B=0, C=0, D=0, ")


def table(html: str) -> list[list[str | None]]:
    return [[entry.text for entry in row] for row in ElementTree.fromstring(html)]


def test_tables_of_a_report() -> None:
    result = sr.reduce_model(good_calls.model(), 3)
    rows = table(result._repr_html_())
    assert [" ".join(filter(None, row)).split() for row in rows] == [
        line.split() for line in str(result).splitlines()
    ]
    assert table(result.report["1"]._repr_html_()) == [rows[0][1:], rows[1][1:]]
    passed = dataclasses.replace(result, skipped={"<a>": "no & yes"})
    assert "<tr><td>&lt;a&gt;</td><td>no &amp; yes</td></tr>" in passed._repr_html_()


def test_tables_of_reductions_and_events() -> None:
    assert table(good_calls.reduction()._repr_html_()) == [
        ["states", "order", "real order", "rank", "error bound", "method"],
        ["4", "2", "2", "4", "0.647", "balanced truncation"],
    ]
    reducer = good_calls.reducer()
    events = good_calls.event(), dataclasses.replace(good_calls.event(), layer="<b>")
    reducer._books = dataclasses.replace(reducer._books, events=events)
    head, first, second = table(reducer._repr_html_())
    assert head[:4] == ["step", "layer", "old order", "new order"]
    assert first[:6] == ["10", "layer", "6", "4", "3.86", "1.02"]
    assert second[1] == "<b>"
    assert table(good_calls.event()._repr_html_()) == [head, first]


def test_a_report_as_a_dict() -> None:
    report = sr.reduce_model(good_calls.model(), 3, options=sr.CutOptions(horizon=10)).report
    values = json.loads(json.dumps(report.to_dict()))
    part = report["1"]
    losses = {name for name in values["1"] if "loss" in name}
    assert losses == {"loss_before", "loss_after", "constant_loss", "unmatched_loss"}
    for name, value in values["1"].items():
        assert value == (None if name in losses else getattr(part, name))
    assert values["1"]["new_order"] == 3
    assert values["1"]["error_bound"] is None


def test_numbers_are_short() -> None:
    shorts = {
        None: "None",
        7: "7",
        12345678: "12345678",
        0.123456: "0.123",
        float("inf"): "inf",
        np.float32(2.0): "2",
    }
    for value, text in shorts.items():
        assert _display.short(value) == text
    assert _display.short(np.array([[3, 1], [2, 1]])) == "1 to 3"
    assert _display.short(torch.tensor([0.5, 0.25], requires_grad=True)) == "0.25 to 0.5"
    assert _display.short(np.array([])) == "nothing"
    assert _display.cell(None) == "-"
    assert _display.text_table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"
