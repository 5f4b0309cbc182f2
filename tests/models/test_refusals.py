"""What a model, a map or an optimizer must not be, and that the message says so, before anything changes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fingerprints import fingerprint
from hypothesis import given
from hypothesis import strategies as st
from LRU_pytorch import LRU
from s5 import S5, S5Block
from torch import nn
from torch.nn.utils import parametrizations

from ssmreduce import (
    CutOptions,
    FixedOrder,
    HankelMass,
    MeasuredError,
    TotalBudget,
    load_reduced,
    read_system,
    reduce_layer,
    reduce_model,
    register_layer,
    sweep,
)
from ssmreduce.errors import (
    ArgumentError,
    NonFiniteError,
    OptimizerStateError,
    OrderError,
    ShapeError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks.torch_fsdp import ShardedParameter
from ssmreduce.models.checkpoint import accept_reduced
from ssmreduce.models.systems_of_layers import handle_of


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def model(layers: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), *(LRU(3, 3, 16, rmin=0.5) for _ in range(layers)))


def bound_to(**changes: Any) -> nn.Module:
    kind = type("Own", (LRU,), {})
    own_map = copy.copy(handle_of(LRU(3, 3, 16)).kind)
    own_map.__class__ = type("OwnMap", (type(own_map),), changes)
    register_layer(kind, own_map)
    return kind(3, 3, 16, rmin=0.5)


@pytest.mark.parametrize("order", [17, FixedOrder(17), {"1": 17}])
def test_an_order_above_every_size_warns(order: Any) -> None:
    net = model(2)
    text = "`order` is 17, but no layer has more than 16 states: nothing is cut"
    with pytest.warns(UserWarning, match=text) as caught:
        result = reduce_model(net, order)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert {part.new_order for part in result.report.values()} == {16}
    with pytest.warns(UserWarning, match=text):
        reduce_layer(net[1], 17)
    assert sweep(net, [17]).rows[0].order == 32  # its table has both numbers


def test_an_order_above_some_sizes_is_an_upper_limit() -> None:
    net = nn.Sequential(LRU(3, 3, 16, rmin=0.5), LRU(3, 3, 8, rmin=0.5))
    report = reduce_model(net, 12).report
    assert [part.new_order for part in report.values()] == [12, 8]
    assert reduce_model(net, {"0": 12, "1": 9}).report["1"].new_order == 8
    assert reduce_model(net, 12).report["0"].new_order == 12


def test_a_whole_checkpoint_is_no_state_dict() -> None:
    net = model()
    saved = {"step": 3, "options": {}, "model": reduce_model(model(), 6).model.state_dict()}
    with pytest.raises(ShapeError, match=r"as 'model'.*Pass state_dict\['model'\]\.$"):
        load_reduced(net, saved)
    assert load_reduced(net, saved["model"])[1].nu_log.shape == (6,)


def test_what_holds_a_layer_is_no_layer() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"S5Block; .* it holds `s5\.seq`"):
        read_system(S5Block(4, 8, False))


def test_a_map_that_forgets_its_poles_is_refused_where_there_are_moments() -> None:
    layer = bound_to(poles=(), shapes=handle_of(LRU(3, 3, 16)).kind.shapes)
    net = nn.Sequential(nn.Linear(3, 3), layer)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 5, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(UnsupportedLayerError, match=r"`nu_log` has a new shape.*`poles` of OwnMap"):
        reduce_model(net, 6, optimizer=optimizer)
    assert layer.nu_log.shape == (16,)


def test_a_map_that_does_not_invert_itself_is_refused() -> None:
    layer = bound_to(
        matrix_weights=lambda self, B, C: handle_of(LRU(3, 3, 16)).kind.matrix_weights(B, 2 * C),
    )
    with pytest.raises(UnsupportedLayerError, match="OwnMap reads another system"):
        reduce_layer(layer, 6)


def test_joined_optimizer_states_are_refused() -> None:
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(p.abs().pow(2).sum() for p in net.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
    with pytest.raises(OptimizerStateError, match="`optimizer` is a LBFGS"):
        reduce_model(net, 6, optimizer=optimizer)


def test_an_optimizer_of_another_model_is_refused() -> None:
    net, other = model(), model()
    with pytest.raises(OptimizerStateError, match="none of the parameters of `model`"):
        reduce_model(net, 6, optimizer=torch.optim.AdamW(other.parameters()))
    both = torch.optim.AdamW([*net.parameters(), *other.parameters()])
    with pytest.raises(OptimizerStateError, match="of a model of `followers`"):
        reduce_model(net, 6, optimizer=both, followers=[other])
    reduce_model(net, 6, optimizer=torch.optim.AdamW(net[0].parameters()))


@pytest.mark.parametrize("options", [{"uniform": True}, {"multiple_of": 4}])
def test_a_budget_holds_whatever_orders_must_be(options: Any) -> None:
    report = reduce_model(model(3), TotalBudget(22), options=CutOptions(**options)).report
    orders = [part.new_order for part in report.values()]
    assert sum(orders) <= 22
    assert len(set(orders)) == 1 or all(order % 4 == 0 for order in orders)


def test_a_budget_too_small_for_a_multiple_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`multiple_of` is 8"):
        reduce_model(model(3), TotalBudget(22), options=CutOptions(uniform=True, multiple_of=8))


def test_a_layer_with_fewer_states_than_a_multiple_stays_as_it_is() -> None:
    def orders(states: int, **options: Any) -> list[int]:
        net = nn.Sequential(LRU(3, 3, 4, rmin=0.5), *(LRU(3, 3, 40, rmin=0.5) for _ in range(2)))
        report = reduce_model(
            net, TotalBudget(states), options=CutOptions(multiple_of=8, **options)
        ).report
        assert sum(part.new_order for part in report.values()) <= states
        return [part.new_order for part in report.values()]

    assert orders(20) == orders(27) == orders(20, uniform=True) == [4, 8, 8]
    assert orders(36, uniform=True) == [4, 16, 16]
    assert orders(43, uniform=True) == [4, 16, 16]
    assert orders(84) == orders(1000) == [4, 40, 40]
    assert orders(1000, uniform=True) == [4, 40, 40]
    with pytest.raises(OrderError, match=r"expected at least 20 states: 8 for each"):
        orders(19)


def test_a_budget_of_multiples_is_used_up() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(LRU(3, 3, 40, rmin=0.5) for _ in range(4)))
    report = reduce_model(net, TotalBudget(70), options=CutOptions(multiple_of=4)).report
    assert sum(part.new_order for part in report.values()) == 68


@given(order=st.integers(0, 500), multiple_of=st.integers(1, 40), power_of_two=st.booleans())
def test_orders_that_may_be_stored(order: int, multiple_of: int, power_of_two: bool) -> None:
    options = CutOptions(multiple_of=multiple_of, power_of_two=power_of_two)
    stored = [multiple_of * k for k in range(1, 501)]
    if power_of_two:
        stored = [multiple_of * 2**k for k in range(10)]
    if order:
        assert options.rounded_up(order) == min(size for size in stored if size >= order)
    assert options.rounded_down(order) == max((size for size in stored if size <= order), default=0)
    assert options.count(order) <= options.count(order + 1)


def test_powers_of_two() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(LRU(3, 3, size, rmin=0.5) for size in (9, 40, 40)))
    for rule in (5, HankelMass(0.6), MeasuredError(0.1), TotalBudget(50)):
        for uniform in (False, True):
            options = CutOptions(power_of_two=True, uniform=uniform)
            report = reduce_model(copy.deepcopy(net), rule, options=options).report
            orders = [part.new_order for part in report.values()]
            assert {*orders} <= {1, 2, 4, 8, 9, 16, 32, 40}
            assert not isinstance(rule, TotalBudget) or 25 < sum(orders) <= 50
    options = CutOptions(power_of_two=True, multiple_of=16)
    assert reduce_layer(net[1], 5, options=options).new_order == 16
    assert reduce_layer(net[2], 17, options=options).new_order == 32


@pytest.mark.parametrize(("states", "used"), [(50, 50), (57, 50), (58, 58), (26, 24)])
def test_the_last_multiple_of_a_layer_may_be_incomplete(states: int, used: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(LRU(3, 3, size, rmin=0.5) for size in (9, 9, 40)))
    report = reduce_model(net, TotalBudget(states), options=CutOptions(multiple_of=8)).report
    kept = [part.new_order for part in report.values()]
    assert sum(kept) == used
    assert {*kept[:2]} <= {8, 9}
    assert kept[2] % 8 == 0


def test_multiples_of_rounding_are_not_kept() -> None:
    layers = {name: LRU(1, 1, 64, rmin=0.5, rmax=0.9) for name in "01"}
    with torch.no_grad():
        layers["0"].B[8:] *= 3e-13  # between the tolerances of eight values and of 64
        layers["1"].B[8:] *= 1e-4
    options = CutOptions(multiple_of=8)
    report = reduce_model(nn.ModuleDict(layers), TotalBudget(48), options=options).report
    assert {name: part.new_order for name, part in report.items()} == {"0": 8, "1": 32}


def test_a_budget_for_all_states_cuts_nothing() -> None:
    net = nn.Sequential(LRU(3, 3, 15, rmin=0.5), LRU(3, 3, 40, rmin=0.5))
    report = reduce_model(net, TotalBudget(55), options=CutOptions(multiple_of=8)).report
    assert [part.new_order for part in report.values()] == [15, 40]


def test_a_uniform_budget_is_used_up() -> None:
    net = nn.Sequential(LRU(3, 3, 4, rmin=0.5), *(LRU(3, 3, 40, rmin=0.5) for _ in range(2)))
    report = reduce_model(net, TotalBudget(26), options=CutOptions(uniform=True)).report
    assert [part.new_order for part in report.values()] == [4, 11, 11]


def test_uniform_orders_are_multiples_where_a_small_layer_stays() -> None:
    net = nn.Sequential(LRU(3, 3, 15, rmin=0.5), LRU(3, 3, 17, rmin=0.5))
    report = reduce_model(
        net, {"0": 15, "1": 12}, options=CutOptions(uniform=True, multiple_of=4)
    ).report
    assert [part.new_order for part in report.values()] == [15, 16]


@pytest.mark.parametrize("fault", ["parametrization", "learnt state", "NaN"])
def test_layers_that_are_not_named_need_not_be_ready(fault: str) -> None:
    net = model(2)
    names = list(reduce_model(model(2), 6).report)
    if fault == "parametrization":
        parametrizations.weight_norm(net[2], "D")
    elif fault == "learnt state":
        del net[2].state
        net[2].state = nn.Parameter(torch.zeros(16))
    else:
        net[2].nu_log.data.fill_(float("nan"))
    for order in (6, {names[1]: 6}):
        with pytest.raises((UnsupportedLayerError, NonFiniteError)):
            reduce_model(net, order)
    follower = copy.deepcopy(net)
    result = reduce_model(net, {names[0]: 6}, followers=[follower])
    assert [*result.report] == [names[0]]
    assert net[1].nu_log.shape == follower[1].nu_log.shape == (6,)


def test_what_is_inside_a_layer_of_ones_own_is_not_looked_at() -> None:
    class Wrapped(LRU):
        def __init__(self) -> None:
            super().__init__(3, 3, 16, rmin=0.5)
            self.core = S5(3, 8, liquid=True)

    register_layer(Wrapped, handle_of(LRU(3, 3, 16)).kind)
    net = nn.Sequential(Wrapped())
    result = reduce_model(net, 6, options=CutOptions(skip_unsupported=True))
    assert [*result.report] == ["0"]
    assert not result.skipped
    assert reduce_model(net, 4).report["0"].new_order == 4


def test_moments_that_are_not_finite_are_refused() -> None:
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 5, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.state[net[1].B]["exp_avg"][3] = float("inf")
    before = fingerprint(net, optimizer)
    with pytest.raises(NonFiniteError, match=r"`exp_avg` of `B` at layer 1 holds NaN or Inf"):
        reduce_model(net, 6, optimizer=optimizer)
    assert fingerprint(net, optimizer) == before
    reduce_model(net, 6, optimizer=optimizer, options=CutOptions(moments="reset"))
    assert all(
        torch.isfinite(value).all()
        for state in optimizer.state.values()
        for value in state.values()
    )


class Selective(nn.Module):
    """With the names of Mamba."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(4, 2))
        self.in_proj, self.conv1d = nn.Linear(3, 8), nn.Conv1d(4, 4, 2)


class Attention(nn.Module):
    """With the names of attention, linear or not."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(3, 3) for _ in range(3))


@pytest.mark.parametrize(
    ("kind", "named"), [(Selective, r"a selective layer \(Mamba\)"), (Attention, "attention")]
)
def test_selective_layers_are_named_and_stay_as_they_are(kind: Any, named: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=f"`1` is none, it is {named}.*not supported"):
        reduce_model(nn.Sequential(nn.Linear(3, 3), kind()), 6)
    with pytest.raises(UnsupportedLayerError, match=f"it is {named}"):
        reduce_layer(kind(), 6)
    assert [*reduce_model(nn.Sequential(*model(), kind()), 6).report] == ["1"]


def test_a_layer_without_what_its_class_was_registered_for_can_be_skipped() -> None:
    class Empty(nn.Module):
        pass

    register_layer(Empty, handle_of(LRU(3, 3, 16)).kind)
    net = nn.Sequential(*model(), Empty())
    with pytest.raises(UnsupportedLayerError, match=r"layer `2`.*without the arrays nu_log"):
        reduce_model(net, 6)
    result = reduce_model(net, 6, options=CutOptions(skip_unsupported=True))
    assert [*result.skipped] == ["2"]


def test_arrays_with_too_few_axes_are_named() -> None:
    net = model()
    net[1].C = nn.Parameter(torch.ones(16))
    with pytest.raises(ShapeError, match=r"`C` has shape \(16,\)"):
        reduce_model(net, 6)


def test_what_is_no_model_follower_or_state_dict_is_named() -> None:
    net = model()
    with pytest.raises(UnsupportedLayerError, match="`model` is a"):
        reduce_model(net.state_dict, 6)
    with pytest.raises(ShapeError, match=r"`followers` is a .*; expected a list"):
        reduce_model(net, 6, followers=model())
    with pytest.raises(ShapeError, match=r"`state_dict` is a builtins\.str"):
        load_reduced(net, "file.pt")
    wrapped = {f"module.{name}": value for name, value in net.state_dict().items()}
    with pytest.raises(ShapeError, match=r"begin with `module\.`"):
        load_reduced(net, wrapped)


def test_inference_mode_is_refused() -> None:
    net = model()
    with torch.inference_mode(), pytest.raises(OptimizerStateError, match="inference_mode"):
        reduce_model(net, 6)
    assert np.isfinite(net[1].nu_log.detach().numpy()).all()


def test_a_layer_reduction_prints_what_it_did() -> None:
    assert repr(reduce_layer(model()[1], 6)).startswith(
        "LayerReduction(16 -> 6 states, error_bound="
    )


def test_an_order_for_each_layer_by_name() -> None:
    net = model(3)
    names = list(reduce_model(model(3), 6).report)
    report = reduce_model(net, {names[0]: 6, names[2]: HankelMass(0.5)}).report
    assert list(report) == [names[0], names[2]]
    assert report[names[0]].new_order == 6
    assert net[2].nu_log.shape == (16,)
    with pytest.raises(OrderError, match=f"`order` names nobody, but the layers are {names[0]}, "):
        reduce_model(net, {"nobody": 3})


def test_an_initial_state_that_is_learnt_is_refused() -> None:
    net = model()
    net[1].state = nn.Parameter(torch.zeros(16))
    with pytest.raises(UnsupportedLayerError, match="`state` of layer `1` is a parameter"):
        reduce_model(net, 6)


def test_looking_for_layers_changes_nothing() -> None:
    # In training, each value that spectral_norm computes moves its vectors on.
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 3)), model()[1], nn.Dropout()
    ).train()
    with torch.no_grad():
        net[0].parametrizations.weight.original += torch.randn(3, 3)
        net[1].nu_log[0] = float("nan")
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with pytest.raises(NonFiniteError):
        reduce_model(net, 6)
    for name, value in net.state_dict().items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[name])), name
    assert torch.equal(torch.get_rng_state(), state)


# --- Loading


def test_gradients_and_what_weights_hold_do_not_matter_in_loading() -> None:
    saved = reduce_model(model(), 6).model.state_dict()
    net = model()
    net(torch.randn(2, 5, 3)).sum().backward()
    with torch.no_grad():
        net[1].nu_log[0] = float("nan")
    load_reduced(net, saved)
    assert net[1].nu_log.shape == (6,)
    assert torch.equal(net[1].nu_log, saved["1.nu_log"])
    net(torch.randn(2, 5, 3)).sum().backward()


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1e30, 1e3])
@pytest.mark.parametrize("kind", [lambda: LRU(3, 3, 16, rmin=0.5), lambda: S5(3, 16)])
def test_layers_are_loaded_whatever_they_hold(kind: Any, value: float) -> None:
    saved = reduce_model(kind(), 6).model.state_dict()
    net = kind()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    loaded = load_reduced(net, saved).state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_extra_state_is_not_shared() -> None:
    class Nothing(nn.Linear):
        def get_extra_state(self) -> None:
            return None

        def set_extra_state(self, state: None) -> None:
            return None

    net = nn.Sequential(model(), Nothing(3, 3), Nothing(3, 3))
    saved = reduce_model(copy.deepcopy(net), 6).model.state_dict()
    del saved["2._extra_state"]
    with pytest.raises(ShapeError, match=r"`state_dict` lacks 2\._extra_state"):
        load_reduced(net, saved)


class Counted(nn.Module):
    """Keeps a dict in state dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"calls": 3}


def test_extra_state_of_modules_is_loaded() -> None:
    saved = reduce_model(Counted(), 6).model.state_dict()
    assert load_reduced(Counted(), saved).inner[1].nu_log.shape == (6,)
    net = Counted()
    accept_reduced(net)
    net.load_state_dict(saved)
    net.load_state_dict(saved)
    assert net.inner[1].nu_log.shape == (6,)


def twice() -> nn.Sequential:
    net = model(2)
    net[2] = net[1]
    return net


def test_a_layer_that_is_used_twice_is_loaded() -> None:
    saved = reduce_model(twice(), 6).model.state_dict()
    assert load_reduced(twice(), saved)[2].nu_log.shape == (6,)
    # safetensors drops the second names.
    first = {name: value for name, value in saved.items() if not name.startswith("2.")}
    net = load_reduced(twice(), first)
    assert torch.equal(net[2].nu_log, saved["1.nu_log"])


def test_arrays_without_numbers_or_of_numpy_are_named() -> None:
    with torch.device("meta"):
        empty = model()
    with pytest.raises(UnsupportedLayerError, match='the layer is on the device "meta"'):
        reduce_model(empty, 6)
    saved = reduce_model(model(), 6).model.state_dict()
    for name in ("1.nu_log", "0.weight"):
        for value in (saved[name].numpy(), saved[name].tolist(), None):
            net = model()
            before = fingerprint(net)
            with pytest.raises(ShapeError, match=rf"`{name}` of `state_dict` is a .*tensor"):
                load_reduced(net, {**saved, name: value})
            assert fingerprint(net) == before


def test_what_was_passed_over_in_a_cut_is_in_loading_too() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(LRU(3, 3, 16, rmin=0.5), S5(3, 8, liquid=True))

    saved = reduce_model(net(), 6, options=CutOptions(skip_unsupported=True)).model.state_dict()
    full = load_reduced(net(), saved).state_dict()
    assert all(torch.equal(full[name], saved[name]) for name in saved)
    accepting = net()
    accept_reduced(accepting)
    accepting.load_state_dict(saved)
    assert accepting[0].nu_log.shape == (6,)


def test_a_torch_with_another_fsdp2_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"`unsharded_accumulated_grad` is missing"):
        ShardedParameter(SimpleNamespace(sharded_param=None))
