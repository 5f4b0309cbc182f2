"""Layers are told by their names: followers, orders, exclusions, kinds that were said."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from LRU_pytorch import LRU
from modules import ForeignLinOSS
from s5 import S5
from samples import lru_weights
from torch import nn
from torch_modules import SSMKernelDiag

from ssmreduce import CutOptions, InTrainingReducer, ReductionSchedule, reduce_layer, reduce_model
from ssmreduce.errors import (
    OptimizerStateError,
    OrderError,
    UnsupportedLayerError,
)
from ssmreduce.layers.lru import LRU as LRULayer

SHAPES = {"A_diag": 12, "G_diag": 12, "steps": 12, "B": (12, 3, 2), "C": (3, 12, 2), "D": 3}


def pair(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    return {"encoder": lru_weights(rng, 12, 3), "decoder": lru_weights(rng, 12, 3)}


def test_followers_with_other_orders_of_names_follow_by_name(rng: np.random.Generator) -> None:
    model = pair(rng)
    result = reduce_model(model, 5, followers=[dict(sorted(model.items()))])
    for name, arrays in result.followers[0].model.items():
        for key, value in arrays.items():
            np.testing.assert_allclose(value, result.model[name][key], atol=1e-9)


def test_followers_with_other_options_are_no_copies() -> None:
    torch.manual_seed(0)
    layers = [SSMKernelDiag(2, 8, disc=rule) for rule in ("zoh", "bilinear")]
    layers[1].load_state_dict(layers[0].state_dict())
    with pytest.raises(Exception, match="expected a copy of the model"):
        reduce_model(layers[0], 2, followers=[layers[1]])


class Ambiguous(nn.Module):
    """Two layers whose names differ by what might be a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lru = LRU(3, 3, 12, rmin=0.5)
        self.module = nn.ModuleDict({"lru": LRU(3, 3, 12, rmin=0.5)})


def test_names_that_might_be_wrapped_mean_themselves() -> None:
    report = reduce_model(Ambiguous(), {"lru": 6}).report
    assert {name: part.new_order for name, part in report.items()} == {"lru": 6}
    report = reduce_model(Ambiguous(), 6, options=CutOptions(exclude=("lru",))).report
    assert list(report) == ["module.lru"]


def test_orders_by_other_keys_than_names_are_refused() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(S5(3, 8))
    orders: Any = {0: 4}
    with pytest.raises(OrderError, match=r"`order` names 0, but the layers are 0\.seq"):
        reduce_model(net, orders)


def test_a_kind_does_not_overrule_what_a_module_says() -> None:
    torch.manual_seed(0)
    layer = SSMKernelDiag(2, 8, bandlimit=0.5)
    with pytest.raises(UnsupportedLayerError, match="bandlimit"):
        reduce_layer(layer, 2, kind="s4_diagonal")


def test_nearly_a_layer_of_arrays_is_said_to_be_near(rng: np.random.Generator) -> None:
    weights = lru_weights(rng, 8, 3)
    del weights["theta_log"]
    with pytest.raises(UnsupportedLayerError, match=r"`enc` is none.*LRU: it lacks `theta_log`"):
        reduce_model({"enc": weights}, 4)
    with pytest.raises(UnsupportedLayerError, match=r"nothing has the arrays of kind='s5'"):
        reduce_model({"enc": lru_weights(rng, 8, 3)}, 4, kind="s5")
    state = nn.Sequential(S5(3, 8)).state_dict()
    with pytest.raises(UnsupportedLayerError, match=r"nearest is S5.*for example kind="):
        reduce_model(state, 4)


def test_followers_that_are_no_models_are_refused() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(S5(3, 8))
    optimizer = torch.optim.Adam(net.parameters())
    for thing in (None, 3, optimizer):
        with pytest.raises(UnsupportedLayerError):
            reduce_model(net, 4, optimizer=optimizer, followers=[thing])
    with pytest.raises(UnsupportedLayerError, match="a model of `followers`"):
        reduce_model(net, 4, optimizer=optimizer, followers=[nn.Linear(2, 2)])
    with pytest.raises(OptimizerStateError, match=r"`optimizer` is a .*str"):
        reduce_model(net, 8, optimizer="adam")
    assert net[0].seq.Lambda.shape == (8,)


def test_a_reducer_of_selected_states_reads_its_own_checkpoint() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    arrays |= {name: jnp.abs(arrays[name]) + 0.1 for name in ("A_diag", "G_diag")}
    layer = ForeignLinOSS(**arrays, discretization="IMEX", damping=True)
    reducer = InTrainingReducer(ReductionSchedule.at(1), 9)
    model, _ = reducer.step(1, {"x": layer}, None)
    assert model["x"].A_diag.shape == (9,)
    again = InTrainingReducer(ReductionSchedule.at(1), 9)
    again.load_state_dict(json.loads(json.dumps(reducer.state_dict())))
    assert [event.new_order for event in again.events] == [9]
    assert again.events[0].real_order == 9


class Forgetful(LRULayer):
    """A kind that does not list all of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = {name: shape for name, shape in self.shapes.items() if name != "D"}


def test_a_class_that_forgets_a_weight_is_told_so(rng: np.random.Generator) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"asks for the weight `D`, which its `shapes`"):
        reduce_layer(lru_weights(rng, 8, 3), 4, kind=Forgetful())
