"""`kind`: what arrays are where nothing else tells, in every call that looks for layers."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax_modules import s5_weights
from s5 import S5 as TorchS5
from samples import lru_weights
from torch import nn

from ssmreduce import (
    CutOptions,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    load_reduced,
    reduce_layer,
    reduce_model,
    shaped_like,
    sweep,
)
from ssmreduce.errors import ArgumentError, ShapeError, UnsupportedLayerError
from ssmreduce.layers.discretisation import Discretisation
from ssmreduce.layers.mamba import Mamba
from ssmreduce.layers.s5 import S5
from ssmreduce.layers.s5_jax import S5HalfSpectrum
from ssmreduce.models.checkpoint import accept_reduced

SAID = CutOptions(kind="s5")
BILINEAR = S5(Discretisation.BILINEAR)


def arrays(states: int = 12) -> dict[str, Any]:
    return dict(TorchS5(3, states).seq.state_dict())


class Bare(nn.Module):
    """The parameters of an S5, and no attribute that says what it computes."""

    def __init__(self, states: int = 12) -> None:
        super().__init__()
        for name, value in arrays(states).items():
            self.register_parameter(name, nn.Parameter(value))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_a_reducer_cuts_what_it_is_told_and_goes_on_from_its_state() -> None:
    model = {"x": arrays(), "y": {"w": torch.ones(3)}}
    expected = reduce_model(model, 5, kind="s5").model

    def reducer() -> InTrainingReducer:
        return InTrainingReducer(
            ReductionSchedule.at(1),
            5,
            options=SAID,
            rollback=RollbackPolicy(1),
            trace=HankelTrace(1),
        )

    first, again = reducer(), reducer()
    first.report(1.0)
    cut, _ = first.step(1, model, None)
    assert all(torch.equal(cut["x"][name], expected["x"][name]) for name in expected["x"])
    assert first.trace is not None
    assert first.trace.layers == ("x",)
    again.load_state_dict(first.state_dict())
    again.report(9.0)
    back, _ = again.step(2, cut, None)
    assert all(torch.equal(back["x"][name], value) for name, value in model["x"].items())


def test_a_state_of_a_reducer_that_was_told_otherwise_is_refused() -> None:
    def reducer(kind: Any) -> InTrainingReducer:
        return InTrainingReducer(ReductionSchedule(10), options=CutOptions(kind=kind))

    state = reducer(S5(Discretisation.BILINEAR)).state_dict()
    reducer(S5(Discretisation.BILINEAR)).load_state_dict(state)
    for other in (None, "s5", S5()):
        with pytest.raises(ArgumentError, match=r"saved with options .*BILINEAR"):
            reducer(other).load_state_dict(state)


def test_a_trace_and_a_sweep_are_told() -> None:
    trace, model = HankelTrace(1), {"x": arrays()}
    with pytest.raises(UnsupportedLayerError, match="for example kind="):
        trace.step(1, model)
    trace.step(1, model, SAID)
    assert trace.layers == ("x",)
    assert [row.order for row in sweep(model, [4, 6], options=SAID).rows] == [4, 6]


def test_rollbacks_and_followers_of_modules_are_told() -> None:
    model, teacher = nn.Sequential(Bare()), nn.Sequential(Bare())
    teacher.load_state_dict(model.state_dict())
    options = CutOptions(kind=BILINEAR)
    reducer = InTrainingReducer(
        ReductionSchedule.at(1), 5, options=options, rollback=RollbackPolicy(1)
    )
    reducer.report(1.0)
    reducer.step(1, model, None, [teacher])
    assert model[0].B.shape[0] == teacher[0].B.shape[0] == 5
    reducer.report(9.0)
    reducer.step(2, model, None, [teacher])
    assert model[0].B.shape[0] == teacher[0].B.shape[0] == 12


@pytest.mark.parametrize("kind", [BILINEAR, {"0": BILINEAR}])
def test_saved_modules_are_loaded(kind: Any) -> None:
    model = nn.Sequential(Bare(), nn.Linear(3, 3))
    saved = reduce_model(model, 5, kind=kind).model.state_dict()
    with pytest.raises(UnsupportedLayerError, match="register_layer"):
        load_reduced(nn.Sequential(Bare(), nn.Linear(3, 3)), saved)
    again = load_reduced(nn.Sequential(Bare(), nn.Linear(3, 3)), saved, kind=kind)
    assert torch.equal(again[0].B, saved["0.B"])
    loading = nn.Sequential(Bare(), nn.Linear(3, 3))
    accept_reduced(loading, kind=kind)
    assert pickle.loads(pickle.dumps(loading)) is not None
    copied = copy.deepcopy(loading)
    for each in (loading, copied):
        each.load_state_dict(saved)
        assert torch.equal(each[0].B, saved["0.B"])


def test_a_fresh_pytree_is_shaped(rng: np.random.Generator) -> None:
    def build(states: int = 8) -> Any:
        weights = s5_weights(np.random.default_rng(0), states, 3)
        return {"x": {name: jnp.asarray(value) for name, value in weights.items()}}

    kind = {"['x']": S5HalfSpectrum(conj_sym=True)}
    options = CutOptions(kind=kind, horizon=50)
    result = reduce_model(build(), 4, options=options)
    report = json.loads(json.dumps(result.report.to_dict()))
    for saved in (report, result.model):
        shaped = shaped_like(build(), saved, kind=kind)
        assert shaped["x"]["B"].shape == result.model["x"]["B"].shape
    state = optax.adam(1e-3).init(result.model)
    assert eqx.tree_equal(reduce_model(result.model, 4, opt_state=state, options=options).model)


# --- By layer


def test_layers_of_several_kinds_are_told_by_name(rng: np.random.Generator) -> None:
    model = {"a": arrays(), "b": arrays(), "c": lru_weights(rng, 8, 3)}
    said = {"a": "s5", "b": BILINEAR}
    result = reduce_model(model, 5, kind=said)
    assert list(result.report) == ["a", "b", "c"]
    for name, kind in said.items():
        expected = reduce_layer(model[name], 5, kind=kind).layer
        assert all(torch.equal(result.model[name][key], expected[key]) for key in expected)
    # What is not named is not cut because it is like what is.
    assert list(reduce_model(model, 5, kind={"a": "s5"}).report) == ["a", "c"]
    assert list(reduce_model(model, 5, kind={"module.a": "s5"}).report) == ["a", "c"]


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            {"z": "s5"},
            ArgumentError,
            "`kind` names z, but the layers are x; expected some of these",
        ),
        ({"y": "s5"}, ArgumentError, "`kind` names y, but"),
        ({"x": "s6"}, UnsupportedLayerError, "`kind` is 's6'; expected one of 'lru'"),
        ({"x": None}, UnsupportedLayerError, "`kind` is 'None'; expected one of 'lru'"),
        ({3: "s5"}, ArgumentError, "`kind` is 3; expected a str"),
        ({"x": "s5"}, UnsupportedLayerError, "layer `x`: it has 1 of the 5 arrays of S5"),
        (["s5"], UnsupportedLayerError, r"`kind` is \['s5'\]; expected one of"),
    ],
)
def test_names_and_kinds_that_fit_nothing_are_refused(
    kind: Any, error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    model = {"x": lru_weights(rng, 8, 3), "y": {"w": np.ones(3)}}
    calls: list[Callable[[], Any]] = [
        lambda: reduce_model(model, 4, kind=kind),
        lambda: reduce_model(model, 4, options=CutOptions(kind=kind)),
        lambda: HankelTrace(1).record(1, model, CutOptions(kind=kind)),
        lambda: sweep(model, [4], options=CutOptions(kind=kind)),
        lambda: InTrainingReducer(ReductionSchedule.at(1), options=CutOptions(kind=kind)).step(
            1, model, None
        ),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_a_kind_is_said_once() -> None:
    for call in (reduce_model, reduce_layer):
        with pytest.raises(
            UnsupportedLayerError, match="`kind` is 's5' but `options` has kind='s5'"
        ):
            call(arrays(), 5, kind="s5", options=SAID)  # type: ignore[operator]
    with pytest.raises(UnsupportedLayerError, match=r"`kind` is \{.*expected one of"):
        reduce_layer(arrays(), 5, kind={"model": "s5"})


def test_kinds_with_weights_in_modules_inside_are_refused_of_arrays() -> None:
    reason = "which has `in_proj.weight` in a module inside of the layer"
    model = {"x": {"A_log": np.ones((4, 2)), "D": np.ones(4)}}
    for kind in (Mamba(), {"x": Mamba()}):
        with pytest.raises(UnsupportedLayerError, match=reason):
            reduce_model(model, 1, kind=kind)
    with pytest.raises(UnsupportedLayerError, match=reason):
        reduce_layer(model["x"], 1, kind=Mamba())


# --- Near misses


@pytest.mark.parametrize("kind", ["s5", {"x": "s5", "y": "s5"}])
def test_what_nearly_has_the_arrays_is_not_passed_over_silently(kind: Any) -> None:
    near = arrays()
    del near["log_step"]
    model = {"x": arrays(), "y": near, "z": {"D": torch.ones(3)}}
    reason = "it has 4 of the 5 arrays of S5, which `kind` says, and lacks `log_step`"
    with pytest.raises(UnsupportedLayerError, match=f"while looking at layer `y`: {reason}"):
        reduce_model(model, 5, kind=kind)
    result = reduce_model(
        model, 5, options=CutOptions(kind=kind, skip_unsupported=True, multiple_of=1)
    )
    assert list(result.report) == ["x"]
    assert list(result.skipped) == ["y"]
    assert result.skipped["y"].startswith(reason)
    result = reduce_model(model, 5, options=CutOptions(kind=kind, exclude=("y",)))
    assert list(result.report) == ["x"]
    assert not result.skipped


def test_options_with_kinds_compare_print_and_hash() -> None:
    options = CutOptions(kind={"x": "s5"}, horizon=3)
    assert options == CutOptions(kind={"x": "s5"}, horizon=3)
    assert hash(options) == hash(CutOptions(kind={"x": "s5"}, horizon=3))
    assert repr(options) == "CutOptions(horizon=3, kind={'x': 's5'})"
    assert repr(CutOptions(kind=BILINEAR)).startswith("CutOptions(kind=S5(discretisation=")
    assert CutOptions(kind={}) == CutOptions()
    with pytest.raises(ShapeError, match="has shape"):
        reduce_model({"x": {**arrays(), "B": torch.ones(2, 12, 3, 2)}}, 5, kind="s5")
