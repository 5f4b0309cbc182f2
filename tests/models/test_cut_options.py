"""What `CutOptions` says about which layers are cut, in models and in training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from LRU_pytorch import LRU
from modules import make_lru
from samples import lru_weights
from torch import nn

from ssmreduce import (
    CutOptions,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    reduce_layer,
    reduce_model,
)
from ssmreduce.errors import ArgumentError, UnsupportedLayerError


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(LRU(3, 3, 16, rmin=0.5) for _ in range(3)))


def orders(net: Any) -> list[int]:
    return [layer.nu_log.numel() for layer in net]


@pytest.mark.parametrize("exclude", [("1",), ["1"], {"1"}, lambda name: name == "1"])
def test_excluded_layers_stay(exclude: Any) -> None:
    net = model()
    before = copy.deepcopy(net[1].state_dict())
    report = reduce_model(net, 6, options=CutOptions(exclude=exclude)).report
    assert list(report) == ["0", "2"]
    assert orders(net) == [6, 16, 6]
    assert all(torch.equal(value, before[name]) for name, value in net[1].state_dict().items())


def test_excluded_layers_need_not_be_ready_and_count_in_no_budget() -> None:
    net = model()
    net[1].nu_log.data.fill_(float("nan"))
    report = reduce_model(net, 12, options=CutOptions(exclude=("1",), uniform=True)).report
    assert list(report) == ["0", "2"]


def test_names_are_the_same_inside_of_wrappers_and_in_copies() -> None:
    net = model()
    average = torch.optim.swa_utils.AveragedModel(net)
    reduce_model(net, 6, followers=[average], options=CutOptions(exclude=("1",)))
    assert orders(average.module) == orders(net) == [6, 16, 6]
    wrapped = nn.Sequential(model())
    wrapped[0].register_module("_orig_mod", wrapped[0].pop(2))  # as torch.compile names a part
    reduce_model(wrapped, 6, options=CutOptions(exclude=("0.0",)))
    assert orders(wrapped[0]) == [16, 6, 6]


def test_functions_see_names_without_wrappers() -> None:
    net = model()
    average = torch.optim.swa_utils.AveragedModel(net)
    options = CutOptions(exclude=lambda name: name.startswith("1"))
    reduce_model(net, 6, followers=[average], options=options)
    assert orders(average.module) == orders(net) == [6, 16, 6]
    with pytest.raises(ArgumentError, match="`exclude` names 7"):
        HankelTrace(1).record(1, net, CutOptions(exclude=("7",)))


def test_layers_of_a_pytree_are_excluded_by_their_paths() -> None:
    rng = np.random.default_rng(0)
    tree = {name: make_lru(lru_weights(rng, 12, 2), "float64") for name in ("a", "b")}
    report = reduce_model(tree, 4, options=CutOptions(exclude=("['b']",))).report
    assert list(report) == ["['a']"]


def test_training_and_traces_leave_them_alone() -> None:
    net, trace = model(), HankelTrace(1)
    options = CutOptions(exclude=("0", "2"))
    schedule = ReductionSchedule(1, stop=1.0, attempts=1)
    InTrainingReducer(schedule, 6, options=options, trace=trace).step(1, net, None)
    assert orders(net) == [16, 6, 16]
    assert trace.layers == ("1",)


def test_names_of_no_layer_are_refused() -> None:
    net = model()
    options = CutOptions(exclude=("1", "encoder"))
    for call in (
        lambda: reduce_model(net, 6, options=options),
        lambda: InTrainingReducer(
            ReductionSchedule(1, stop=1.0, attempts=1), 6, options=options
        ).step(1, net, None),
    ):
        with pytest.raises(
            ArgumentError, match=r"`exclude` names encoder, but the layers are 0, 1, 2"
        ):
            call()
    with pytest.raises(UnsupportedLayerError, match="all 3 layers"):
        reduce_model(net, 6, options=CutOptions(exclude=lambda name: True))
    assert orders(net) == [16, 16, 16]


def test_bad_settings() -> None:
    wrong: Any
    for wrong in ("1", 1, [1], None):
        with pytest.raises(ArgumentError, match="`exclude` is"):
            CutOptions(exclude=wrong)
    with pytest.raises(ArgumentError, match=r"expected a bool"):
        reduce_model(model(), 6, options=CutOptions(exclude=len))
    for wrong in (None, {"horizon": 3}, CutOptions):
        with pytest.raises(ArgumentError, match="`options` is"):
            reduce_layer(model()[0], 6, options=wrong)
        with pytest.raises(ArgumentError, match="`options` is"):
            reduce_model(model(), 6, options=wrong)
        with pytest.raises(ArgumentError, match="`options` is"):
            InTrainingReducer(ReductionSchedule(10), options=wrong)


def test_settings_of_a_run_are_compared_by_name() -> None:
    def first(name: str) -> bool:
        return name == "0"

    def other(name: str) -> bool:
        return name == "1"

    reducers = [
        InTrainingReducer(ReductionSchedule(10), options=CutOptions(exclude=function))
        for function in (first, first, other)
    ]
    state = reducers[0].state_dict()
    reducers[1].load_state_dict(state)
    with pytest.raises(ArgumentError, match="options"):
        reducers[2].load_state_dict(state)
    assert repr(CutOptions()) == "CutOptions()"
