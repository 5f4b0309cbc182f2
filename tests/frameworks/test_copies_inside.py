"""Averages and teachers that are part of the model: they follow the layers that they are copies of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_followers import moved
from test_streaming import LAYERS
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_samples import s5

from ssmreduce import (
    CutOptions,
    HankelMass,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    TotalBudget,
    reduce_model,
)
from ssmreduce.errors import (
    OrderError,
    UnsupportedLayerError,
)
from ssmreduce.models.report import ModelReduction
from ssmreduce.models.search import search

OPTIONS = CutOptions(horizon=40)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(8)


def network(width: int = 3, layers: int = 1) -> nn.Sequential:
    parts = [s5(False, False, width=width) for _ in range(layers)]
    return nn.Sequential(nn.Linear(2, width), *parts, nn.Linear(width, 1))


def average_of(net: nn.Module, **options: Any) -> AveragedModel:
    options = options or {"multi_avg_fn": get_ema_multi_avg_fn(0.8)}
    return AveragedModel(net, **options)


def teacher_of(net: nn.Module, freeze: bool = True) -> nn.Module:
    twin = copy.deepcopy(net)
    return twin.requires_grad_(False) if freeze else twin


def holder(**parts: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(parts)


def optimizer_of(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), 3e-3)


def update(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    inputs = torch.randn(4, 20, 2)
    optimizer.zero_grad()
    (net(inputs) - inputs[..., :1].cumsum(1)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(steps: int = 20, **options: Any) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
    """A network with its average inside, on its way."""
    net = network()
    model = holder(net=net, ema=average_of(net, **options))
    optimizer = optimizer_of(net)
    for _ in range(steps):
        update(net, optimizer)
        model["ema"].update_parameters(net)
    return model, optimizer


def halfway(net: nn.Module, average: nn.Module) -> nn.Module:
    """The network with the mean of both weights."""
    mean = copy.deepcopy(net)
    with torch.no_grad():
        for own, other in zip(mean.parameters(), average.parameters(), strict=True):
            own.lerp_(other, 0.5)
    return mean


def orders(result: ModelReduction) -> dict[str, int]:
    return {name: each.new_order for name, each in result.report.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn(0.8)},
        {"avg_fn": lambda average, new, count: 0.8 * average + 0.2 * new},
    ],
)
def test_an_average_inside_is_cut_as_one_beside(options: dict[str, Any]) -> None:
    model, optimizer = trained(**options)
    net, average = copy.deepcopy((model["net"], model["ema"]))
    inputs = torch.randn(4, 20, 2)
    result = reduce_model(model, 5, optimizer=optimizer, options=OPTIONS)
    reduce_model(net, 5, followers=[average], options=OPTIONS)
    for own, other in zip(
        model.parameters(), (*net.parameters(), *average.parameters()), strict=True
    ):
        assert torch.equal(own, other)
    mean = halfway(model["net"], model["ema"])
    assert (mean(inputs) - model["net"](inputs)).norm() < 0.2 * model["net"](inputs).norm()
    assert set(result.report) == {"net.1.seq", "ema.module.1.seq"}
    update(model["net"], optimizer)
    model["ema"].update_parameters(model["net"])


def test_a_teacher_follows_with_and_without_an_optimizer() -> None:
    for optimizer in (True, False):
        student = network()
        model = holder(student=student, teacher=teacher_of(student))
        held = optimizer_of(model) if optimizer else None  # holds frozen parameters, too
        reduce_model(model, 5, optimizer=held)
        for own, other in zip(student.parameters(), model["teacher"].parameters(), strict=True):
            torch.testing.assert_close(own.detach(), other)


def test_an_average_in_the_optimizer_follows() -> None:
    net = network()
    model = holder(net=net, ema=average_of(net))
    result = reduce_model(model, 5, optimizer=optimizer_of(model))
    assert result.report["ema.module.1.seq"].error_bound is None


def test_two_averages_follow() -> None:
    net = network(layers=2)
    model = holder(first=average_of(net), net=net, second=average_of(net))
    result = reduce_model(model, TotalBudget(10), optimizer=optimizer_of(net))
    found = orders(result)
    assert found["net.1.seq"] + found["net.2.seq"] == 10
    for name in ("first.module.", "second.module."):
        assert found[f"{name}1.seq"] == found["net.1.seq"]
        assert found[f"{name}2.seq"] == found["net.2.seq"]


class Whole(nn.Module):
    """Averages itself, and has a head that the average lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = s5(False, False)
        self.ema = average_of(self)
        self.head = nn.Linear(3, 1)


def test_a_model_that_averages_itself() -> None:
    model = Whole()
    trained_ones = [*model.layer.parameters(), *model.head.parameters()]
    result = reduce_model(model, 5, optimizer=torch.optim.Adam(trained_ones))
    assert result.report["ema.module.layer.seq"].error_bound is None


def test_compiled_parts_are_the_same() -> None:
    net = network()
    model = holder(net=torch.compile(net, backend="eager"), ema=average_of(net))
    result = reduce_model(model, 5, optimizer=optimizer_of(net))
    assert result.report["ema.module.1.seq"].error_bound is None


def deeper() -> nn.ModuleDict:
    """A teacher with more layers than the student, which begins with some of them."""
    teacher = network(layers=2)
    student = nn.Sequential(teacher[0], teacher[1], teacher[3])
    return holder(student=teacher_of(student, freeze=False), teacher=teacher.requires_grad_(False))


def frozen_first() -> nn.Module:
    net = network(layers=2)
    net[1].requires_grad_(False)
    return net


NO_COPIES: dict[str, Callable[[], nn.Module]] = {
    "both trained": lambda: (lambda net: holder(net=net, other=teacher_of(net, False)))(network()),
    "a larger teacher": deeper,
    "another teacher": lambda: holder(net=network(), other=network().requires_grad_(False)),
    "frozen blocks": frozen_first,
    "all frozen": lambda: (lambda net: holder(net=net, other=teacher_of(net)))(
        network().requires_grad_(False)
    ),
}


@pytest.mark.parametrize("case", NO_COPIES)
def test_other_layers_are_cut_by_themselves(case: str) -> None:
    result = reduce_model(NO_COPIES[case](), 5)
    assert all(each.error_bound is not None for each in result.report.values())


@pytest.mark.parametrize("name", LAYERS)
def test_weights_tell_a_teacher_from_a_frozen_layer(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        layer, other = LAYERS[name](), LAYERS[name]().requires_grad_(False)
        teacher = moved(layer, 0.05, seed).requires_grad_(False)
        found = search(holder(layer=layer, other=other, teacher=teacher)).with_copies(None)
        assert [path[0].split(".")[0] for path in found.copies] == ["teacher"]


def test_tied_layers_of_an_average_stay_tied() -> None:
    net = nn.Sequential(s5(False, False), s5(False, False))
    for weight in ("Lambda", "B", "C", "D", "log_step"):
        setattr(net[1].seq, weight, getattr(net[0].seq, weight))
    model = holder(net=net, ema=average_of(net))
    result = reduce_model(model, 5, optimizer=optimizer_of(net))
    assert set(orders(result).values()) == {5}
    average = model["ema"].module
    assert average[0].seq.B is average[1].seq.B
    for own, other in zip(net.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_several_possible_originals_are_refused() -> None:
    net = network()
    model = holder(one=net, two=teacher_of(net, False), teacher=teacher_of(net))
    before = [tensor.clone() for tensor in model.parameters()]
    with pytest.raises(UnsupportedLayerError, match=r"`teacher.1.seq`.*`one.1.seq`, `two.1.seq`"):
        reduce_model(model, 5)
    assert all(map(torch.equal, before, model.parameters()))
    result = reduce_model(model, 5, options=CutOptions(exclude=("teacher.1.seq",)))
    assert orders(result) == {"one.1.seq": 5, "two.1.seq": 5}


def test_of_two_networks_each_has_its_average() -> None:
    actor, critic = network(), network()
    model = holder(actor=actor, critic=critic, slow_critic=average_of(critic))
    reduce_model(model, 5, optimizer=optimizer_of(nn.ModuleList([actor, critic])))
    for own, other in zip(
        critic.parameters(), model["slow_critic"].module.parameters(), strict=True
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("excluded", ["net.1.seq", "ema.module.1.seq"])
def test_an_excluded_layer_or_copy_stays(excluded: str) -> None:
    model, optimizer = trained(1)
    result = reduce_model(model, 5, optimizer=optimizer, options=CutOptions(exclude=(excluded,)))
    assert orders(result) == ({} if excluded.startswith("net") else {"net.1.seq": 5})
    assert model["ema"].module[1].seq.Lambda.shape == (12,)


def test_orders_by_the_name_of_a_copy() -> None:
    model, optimizer = trained(1)
    both = {"net.1.seq": 5, "ema.module.1.seq": 4}
    with pytest.raises(OrderError, match="or one is a copy"):
        reduce_model(model, both, optimizer=optimizer)
    with pytest.raises(OrderError, match="which is excluded"):
        reduce_model(
            model,
            {"ema.module.1.seq": 4},
            optimizer=optimizer,
            options=CutOptions(exclude=("net.1.seq",)),
        )
    result = reduce_model(model, {"ema.module.1.seq": 4}, optimizer=optimizer)
    assert orders(result) == {"net.1.seq": 4, "ema.module.1.seq": 4}


def test_a_follower_with_an_average_inside() -> None:
    model, optimizer = trained()
    follower = copy.deepcopy(model)
    reduce_model(model, 5, optimizer=optimizer, followers=[follower])
    for own, other in zip(model.parameters(), follower.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("uniform", [False, True])
def test_cuts_and_rollbacks_in_training(uniform: bool) -> None:
    model, optimizer = trained(3)
    reducer = InTrainingReducer(
        ReductionSchedule(10, attempts=4),
        HankelMass(0.8),
        rollback=RollbackPolicy(0.02),
        options=CutOptions(horizon=40, uniform=uniform),
    )
    reducer.report(1.0)
    before = copy.deepcopy(model)
    reducer.step(1, model, optimizer)
    names = ["net.1.seq", "ema.module.1.seq"]
    assert [event.layer for event in reducer.events] == names
    for _ in range(3):
        update(model["net"], optimizer)
        model["ema"].update_parameters(model["net"])
    while not any(event.rolled_back for event in reducer.events):
        reducer.report(9.0)
        reducer.step(2, model, optimizer)
    for own, other in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, other)
    reducer.report(1.0)
    reducer.step(10, model, optimizer)
    assert len(reducer.events) == 2  # stopped, both
    update(model["net"], optimizer)
    model["ema"].update_parameters(model["net"])


def test_a_copy_too_far_away_names_the_way_out() -> None:
    net = network()
    model = holder(net=net, ema=average_of(net))
    with torch.no_grad():
        model["ema"].module[1].seq.Lambda.copy_(torch.nan * model["ema"].module[1].seq.Lambda)
    with pytest.raises(Exception, match=r"exclude=\('ema.module.1.seq',\)"):
        reduce_model(model, 5, optimizer=optimizer_of(net))
