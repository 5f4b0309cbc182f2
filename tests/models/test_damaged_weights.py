"""Damaged state dicts: refused with the model as it was, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fingerprints import fingerprint
from LRU_pytorch import LRU
from s5 import S5
from torch import nn
from torch_samples import CASES

from ssmreduce import SSMReduceError, load_reduced, reduce_model
from ssmreduce.errors import NonFiniteError, ShapeError, UnsupportedLayerError
from ssmreduce.models.checkpoint import accept_reduced

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


class Masked(nn.Module):
    """Keeps a mask with infinities, a count, and a note that no tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2,), -torch.inf))
        self.register_buffer("count", torch.tensor(3))
        self.note = "first"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs

    def get_extra_state(self) -> str:
        return self.note

    def set_extra_state(self, state: str) -> None:
        if state == "fails":
            raise RuntimeError("no such note")
        self.note = state


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), LRU(3, 3, 16, rmin=0.5), Masked(), S5(3, 12), Masked())


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return dict(reduce_model(network(1), 6).model.state_dict())


def state_of(net: nn.Module) -> tuple[str, list[Any]]:
    """Every bit, gradient and attribute, and which objects they are."""
    objects = [(id(part), [*map(id, part._parameters.values())]) for part in net.modules()]
    return fingerprint(net), objects


def first(value: Any, new: float) -> Any:
    changed = value.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[0] = new
    return changed


DAMAGE: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "meta": (lambda x: x.to("meta"), ShapeError, "has no numbers"),
    "lazy": (lambda _: nn.UninitializedParameter(), ShapeError, "has no numbers"),
    "sparse": (lambda x: x.to_sparse(), ShapeError, "is sparse_coo but the model has one"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(torch.ones(x.shape), 0.1, 0, torch.qint8),
        ShapeError,
        "is quantised but the model has one",
    ),
    "nested": (
        lambda x: torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)]),
        ShapeError,
        "is nested but",
    ),
    "integers": (lambda x: torch.ones(x.shape, dtype=torch.int64), ShapeError, "dtype torch.int64"),
    "bools": (lambda x: torch.ones(x.shape, dtype=torch.bool), ShapeError, "dtype torch.bool"),
    "complex": (lambda x: x + 1j, ShapeError, "dtype torch.complex64 but the model"),
    "nan": (lambda x: first(x, float("nan")), NonFiniteError, "holds NaN or Inf"),
    "inf": (lambda x: first(x, float("inf")), NonFiniteError, "holds NaN or Inf"),
    "no entries": (lambda x: x[:0], ShapeError, "shape|states"),
    "more axes": (lambda x: x[None], ShapeError, "shape|axes"),
    "number": (lambda x: x.reshape(-1)[0], ShapeError, "shape|axes|axis"),
    "longer": (lambda x: torch.cat([x, x]), ShapeError, "shape|inputs"),
    "stretched": (
        lambda x: torch.zeros(1).expand(10**12, *x.shape[1:]),
        ShapeError,
        "has shape .* but 4 bytes; expected a number for each entry",
    ),
    "array": (lambda x: x.numpy(), ShapeError, "is a numpy.ndarray; expected a tensor"),
    "None": (lambda x: None, ShapeError, "is a builtins.NoneType; expected a tensor"),
}


@pytest.mark.parametrize("name", ["0.weight", "1.nu_log", "1.D", "3.seq.log_step"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tensor_is_refused(damage: str, name: str, saved: dict[str, Any]) -> None:
    change, kind, message = DAMAGE[damage]
    net = network()
    net(torch.randn(2, 5, 3)).real.sum().backward() if damage == "nan" else None
    before = state_of(net)
    with pytest.raises((kind, ShapeError), match=message):
        load_reduced(net, {**saved, name: change(saved[name])})
    assert state_of(net) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tensor_is_refused_by_the_hook(damage: str, saved: dict[str, Any]) -> None:
    net = network()
    accept_reduced(net)
    before = state_of(net)
    change, *_ = DAMAGE[damage]
    with pytest.raises(SSMReduceError):
        net.load_state_dict({**saved, "1.nu_log": change(saved["1.nu_log"])})
    assert state_of(net) == before


@pytest.mark.parametrize("kind", CASES)
def test_every_weight_of_every_layer(kind: str) -> None:
    torch.manual_seed(2)
    small = reduce_model(CASES[kind].make(), 3).model.state_dict()
    net = CASES[kind].make()
    before = state_of(net)
    for name, value in small.items():
        for damage in ("meta", "more axes", "no entries", "nan"):
            is_inexact = value.is_floating_point() or value.is_complex()
            if (damage == "nan" and not is_inexact) or (damage == "no entries" and value.ndim == 0):
                continue
            try:
                load_reduced(net, {**small, name: DAMAGE[damage][0](value)})
            except SSMReduceError:
                assert state_of(net) == before
            else:  # a buffer beside the weights may hold NaN
                assert damage == "nan"
                assert name not in dict(net.named_parameters())
                net = CASES[kind].make()
                before = state_of(net)


def test_names_are_those_of_the_model(saved: dict[str, Any]) -> None:
    net = network()
    before = state_of(net)
    for name in saved:
        less = {key: value for key, value in saved.items() if key != name}
        with pytest.raises(ShapeError, match="`state_dict` lacks"):
            load_reduced(net, less)
        with pytest.raises(ShapeError, match="lacks nothing and has 9"):
            load_reduced(net, {**saved, "9": torch.zeros(1)})
    assert state_of(net) == before


def test_layers_have_states(saved: dict[str, Any]) -> None:
    bare = {
        name: value.movedim(value.shape.index(5), 0)[:0].movedim(0, value.shape.index(5))
        if name.startswith("1.") and 5 in value.shape
        else value
        for name, value in saved.items()
    }
    net = network()
    before = state_of(net)
    with pytest.raises(ShapeError, match=r"layer `1` .*0 states|1.* no entries|`nu_log`"):
        load_reduced(net, bare)
    assert state_of(net) == before


def test_masks_counts_and_rounding_are_loaded(saved: dict[str, Any]) -> None:
    others = {**saved, "2.count": torch.tensor(7, dtype=torch.int32)}
    others["0.weight"] = saved["0.weight"].to(torch.float16)
    net = load_reduced(network(), others)
    assert net[2].count == 7
    assert torch.isinf(net[2].mask).all()
    assert torch.equal(net[0].weight, saved["0.weight"].half().float())
    with pytest.raises(ShapeError, match=r"`2\.count` .* dtype torch.float32 but the model"):
        load_reduced(net, {**saved, "2.count": torch.tensor(7.0)})


def test_models_without_numbers_are_refused(saved: dict[str, Any]) -> None:
    net = network()
    net[0] = nn.LazyLinear(3)
    with pytest.raises(UnsupportedLayerError, match="lazy module"):
        load_reduced(net, saved)
    net = network()
    net[0] = nn.Linear(3, 3, device="meta")
    with pytest.raises(UnsupportedLayerError, match="meta"):
        load_reduced(net, saved)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_what_fails_in_loading_leaves_the_model(
    failure: type[BaseException], saved: dict[str, Any]
) -> None:
    net = network()
    net(torch.randn(2, 5, 3)).real.sum().backward()
    net[1].state = torch.ones(16)
    before = state_of(net)

    def fail(*_: Any) -> None:
        raise failure("in the middle")

    hook = net[4].register_load_state_dict_pre_hook(fail)
    with pytest.raises(failure, match="in the middle"):
        load_reduced(net, saved)
    assert state_of(net) == before
    hook.remove()
    with pytest.raises(RuntimeError, match="no such note"):
        load_reduced(net, {**saved, "2._extra_state": "new", "4._extra_state": "fails"})
    assert state_of(net) == before
    assert net[2].note == "first"
    load_reduced(net, {**saved, "2._extra_state": "new"})
    assert net[2].note == "new"
    assert net[1].nu_log.shape == (5,)


def test_a_copy_of_the_model_is_not_kept(saved: dict[str, Any]) -> None:
    net = load_reduced(network(), saved)
    weights = copy.deepcopy(net.state_dict())
    load_reduced(net, saved)
    pairs = zip(net.state_dict().items(), weights.values(), strict=True)
    assert all(name.endswith("state") or torch.equal(one, two) for (name, one), two in pairs)
