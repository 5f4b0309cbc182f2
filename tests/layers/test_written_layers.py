"""A cut whose weights do not hold what was meant is refused, and nothing changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fingerprints import fingerprint
from LRU_pytorch import LRU
from torch import nn

import ssmreduce
from ssmreduce import (
    CutOptions,
    ErrorBound,
    InTrainingReducer,
    MeasuredError,
    ReductionSchedule,
    balanced_truncation,
    read_system,
    reduce_layer,
    reduce_model,
    register_layer,
    select_states,
    write_system,
)
from ssmreduce.errors import UnreachableToleranceError, UnsupportedLayerError
from ssmreduce.layers.lti import LTILayer

REFUSED = r"OscillatorMap reads another system .* order \d+ .* select_states"


class Oscillators(nn.Module):
    """Poles on a curve: 1/λ = 1 - 0.3i √A."""

    def __init__(self, states: int = 16, width: int = 3) -> None:
        super().__init__()
        rng = np.random.default_rng(0)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(
                torch.tensor(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
            )

        self.A = nn.Parameter(torch.tensor(rng.uniform(0.05, 2.0, states)))
        self.B, self.C = drawn(states, width), drawn(width, states)


class OscillatorMap(LTILayer):
    """Writes any pole as one on the curve."""

    shapes: ClassVar = {"A": ("n",), "B": ("n", "m"), "C": ("p", "n")}
    poles = ("A",)

    def modes(self, weights: Any) -> Any:
        one = np.ones(weights["A"].shape)
        return -np.log(1 - 0.3j * np.sqrt(weights["A"])), one, one

    def pole_weights(self, logarithms: Any, weights: Any) -> Any:
        return {"A": ((1 / np.exp(logarithms)).imag / 0.3) ** 2}

    def matrices(self, weights: Any) -> Any:
        return weights["B"], weights["C"]

    def matrix_weights(self, B: Any, C: Any) -> Any:
        return {"B": B, "C": C}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(ssmreduce.layers.known, "_REGISTERED", {})
    register_layer(Oscillators, OscillatorMap())


@pytest.mark.parametrize(
    "cut",
    [
        lambda layer: reduce_layer(layer, 14),
        lambda layer: reduce_layer(layer, 8),
        lambda layer: reduce_layer(layer, 2),
        lambda layer: reduce_layer(layer, ErrorBound(relative=0.1)),
        lambda layer: reduce_layer(layer, MeasuredError(0.1)),
        lambda layer: reduce_layer(layer, 8, options=CutOptions(horizon=50)),
        lambda layer: reduce_layer(layer, 7, options=CutOptions(multiple_of=4)),
        lambda layer: write_system(layer, balanced_truncation(read_system(layer), 14).system),
    ],
)
def test_poles_that_the_weights_cannot_hold_are_refused(cut: Callable[[Any], Any]) -> None:
    layer = Oscillators()
    before = fingerprint(layer)
    with pytest.raises(UnsupportedLayerError, match=REFUSED):
        cut(layer)
    assert fingerprint(layer) == before


def test_a_selection_keeps_poles_that_they_can_hold() -> None:
    layer = Oscillators()
    system = select_states(read_system(layer), 6).system
    write_system(layer, system)
    np.testing.assert_allclose(read_system(layer).eigenvalues, system.eigenvalues, rtol=1e-13)


def test_model_and_optimizer_stay() -> None:
    model = nn.Sequential(LRU(3, 3, 16, rmin=0.5), Oscillators())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        model[1].A.abs_()
    before = fingerprint(model, optimizer)
    with pytest.raises(UnsupportedLayerError, match=f"layer `1`: {REFUSED}"):
        reduce_model(model, 8, optimizer=optimizer)
    assert fingerprint(model, optimizer) == before
    reducer = InTrainingReducer(ReductionSchedule.at(1), 8)
    with pytest.warns(UserWarning, match=f"no cut after step 1.*{REFUSED}"):
        reducer.step(1, model, optimizer)
    assert fingerprint(model, optimizer) == before
    assert reducer.events == []


def test_a_bound_that_rounding_breaks_at_every_order_tried_is_refused() -> None:
    # One pole 1e-7 from the circle: rounding of its angle to 32 bits moves a peak by its width.
    layer = LRU(2, 2, 8, rmin=0.5)
    with torch.no_grad():
        layer.nu_log[0], layer.gamma_log[0] = math.log(1e-7), 0.5 * math.log(2e-7)
    before = fingerprint(layer)
    with pytest.raises(UnreachableToleranceError, match=r"LRU at order 7, .* but the bound 0\.04"):
        reduce_layer(layer, 7)
    assert fingerprint(layer) == before
    assert reduce_layer(layer, 7, options=CutOptions(horizon=100)).new_order == 7


def test_a_copy_that_cannot_hold_its_projection_is_refused() -> None:
    model = nn.Sequential(LRU(3, 3, 16, rmin=0.5))
    average = copy.deepcopy(model)
    average[0].B = nn.Parameter(average[0].B.real.clone())
    before = fingerprint(model, average)
    with pytest.raises(UnsupportedLayerError, match="`followers`: LRU reads another system"):
        reduce_model(model, 6, followers=[average])
    assert fingerprint(model, average) == before
