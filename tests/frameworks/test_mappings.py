"""Plain arrays by name are a framework: state dicts, nested mappings, safetensors files."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from s5 import S5 as TorchS5
from safetensors import safe_open
from safetensors.torch import save_file
from samples import lru_weights
from torch import nn

from ssmreduce import (
    CutOptions,
    DiagonalStateSpace,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    TotalBudget,
    balanced_truncation,
    load_reduced,
    read_system,
    reduce_layer,
    reduce_model,
    sweep,
    write_system,
)
from ssmreduce.errors import (
    ArgumentError,
    OptimizerStateError,
    ShapeError,
    TracedValueError,
    UnsupportedLayerError,
)
from ssmreduce.layers.discretisation import Discretisation
from ssmreduce.layers.linoss import LinOSS
from ssmreduce.layers.s4 import S4
from ssmreduce.layers.s4d import S4Diagonal
from ssmreduce.layers.s5 import S5


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), TorchS5(4, 16), TorchS5(4, 12), nn.Linear(4, 2))


def trained() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 10, 3)).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        field: {names[id(p)]: state[field].clone() for p, state in optimizer.state.items()}
        for field in ("exp_avg", "exp_avg_sq")
    }


def lru(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return lru_weights(rng, 12, 3)


def test_a_state_dict_is_cut_as_its_model_is() -> None:
    model, optimizer = trained()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = moments_of(model, optimizer)
    unchanged = copy.deepcopy((weights, moments))
    result = reduce_model(weights, 6, opt_state=moments, kind="s5")
    reduce_model(model, 6, optimizer=optimizer)
    assert set(result.report) == {"1.seq", "2.seq"}
    for name, value in model.state_dict().items():
        assert torch.equal(result.model[name], value)
    for field, own in moments_of(model, optimizer).items():
        for name, value in own.items():
            assert torch.equal(result.optimizer_state[field][name], value)
    pairs = (weights, unchanged[0]), (moments["exp_avg"], unchanged[1]["exp_avg"])
    for now, before in pairs:
        assert all(torch.equal(now[name], before[name]) for name in before)
    again = load_reduced(network(), result.model)
    inputs = torch.randn(2, 7, 3)
    assert torch.equal(again(inputs), model(inputs))


def test_a_file_of_safetensors_is_a_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: torch.from_numpy(value).float() for name, value in lru(rng).items()}
    save_file({f"lru.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x")
    with safe_open(str(tmp_path / "x"), "pt") as file:
        result = reduce_model(file, 4)
        system = read_system(file)
        (row,) = sweep(file, [4]).rows
    assert row.measured_error == result.report["lru"].measured_error
    assert result.report["lru"].new_order == 4
    assert system.order == 12
    assert result.model["lru.B_re"].shape == (4, 3)
    assert result.model["lru.B_re"].dtype == torch.float32


@pytest.mark.parametrize("separator", [".", "/"])
def test_names_may_be_nested_or_joined(separator: str, rng: np.random.Generator) -> None:
    weights, other = lru(rng), np.ones(3)
    nested = {"net": {"lru": weights, "bias": other}, "version": 3}
    joined = {f"net{separator}lru{separator}{name}": value for name, value in weights.items()}
    results = [reduce_model(model, 5) for model in (nested, joined)]
    assert [list(result.report) for result in results] == [["net.lru"], [f"net{separator}lru"]]
    for name, value in results[0].model["net"]["lru"].items():
        assert np.array_equal(results[1].model[f"net{separator}lru{separator}{name}"], value)
    assert results[0].model["net"]["bias"] is other
    assert results[0].model["version"] == 3


def test_a_layer_of_arrays_is_read_cut_and_written(rng: np.random.Generator) -> None:
    weights = lru(rng)
    system = read_system(weights, kind="lru")
    result = reduce_layer(weights, 5, kind="lru")
    assert result.measured_error <= result.error_bound
    smaller = write_system(weights, balanced_truncation(system, 5).system, kind="lru")
    for name, value in result.layer.items():
        assert np.array_equal(smaller[name], value)
    assert weights["nu_log"].shape == (12,)


def test_a_layer_of_traced_arrays_is_read(rng: np.random.Generator) -> None:
    """Names with dots are those of a mapping, where Equinox is loaded too."""
    weights = {f"lru.{name}": jnp.asarray(each) for name, each in lru_weights(rng, 8, 3).items()}

    def poles(weights: dict[str, jax.Array]) -> Any:
        system = read_system(weights, kind="lru")
        assert isinstance(system, DiagonalStateSpace)
        return system.eigenvalues

    expected = read_system(weights, kind="lru").poles()
    assert np.allclose(jax.jit(poles)(weights), expected, rtol=1e-5)


def test_a_layer_of_traced_arrays_has_a_gradient(rng: np.random.Generator) -> None:
    weights = {name: jnp.asarray(each) for name, each in lru_weights(rng, 8, 3).items()}

    def size(weights: dict[str, jax.Array]) -> Any:
        system = read_system(weights, kind="lru")
        return jnp.sum(jnp.abs(jnp.asarray(system.C)) ** 2)

    gradient = jax.grad(size)(weights)
    for name in ("C_re", "C_im"):
        assert np.allclose(gradient[name], 2.0 * weights[name], rtol=1e-5)


@pytest.mark.parametrize("kind", ["s5", "linoss"])
def test_kinds_that_look_at_numbers_refuse_traced_arrays(
    kind: str, rng: np.random.Generator
) -> None:
    B, C, ones = rng.normal(size=(4, 3, 2)), rng.normal(size=(3, 4, 2)), np.ones(4)
    arrays: dict[str, dict[str, Any]] = {
        "s5": {"Lambda": -ones + 1j, "log_step": -ones, "B": B, "C": C[..., 0] + 0j},
        "linoss": {"A_diag": ones, "G_diag": 0.1 * ones, "steps": ones, "B": B, "C": C},
    }
    weights = {name: jnp.asarray(each) for name, each in arrays[kind].items()}
    weights["D"] = jnp.ones(3)
    assert read_system(weights, kind=kind).inputs == 3

    looked_at = {"s5": "log_step", "linoss": "D"}[kind]

    def feedthrough(traced: jax.Array) -> Any:
        return jnp.sum(jnp.asarray(read_system({**weights, looked_at: traced}, kind=kind).D))

    for traced in (jax.jit(feedthrough), jax.grad(feedthrough)):
        with pytest.raises(
            TracedValueError, match=rf"`{looked_at}` is .* traced .*looked at\. Call it out"
        ):
            traced(weights[looked_at])


def test_options_of_a_kind_are_those_of_an_instance() -> None:
    layer = TorchS5(4, 16, bidir=True)
    weights = dict(layer.seq.state_dict())
    with pytest.raises(ShapeError, match=r"`C` has shape \(4, 32\)"):
        read_system(weights, kind="s5")
    own = read_system(layer)
    told = read_system(weights, kind=S5(bidirectional=True))
    assert np.array_equal(own.C, told.C)
    other = read_system(weights, kind=S5(Discretisation.BILINEAR, bidirectional=True))
    assert not np.allclose(own.eigenvalues, other.eigenvalues)


def linoss(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "A_diag": rng.uniform(0.5, 3.0, 8),
        "steps": rng.standard_normal(8),
        "B": rng.standard_normal((8, 2, 2)),
        "C": rng.standard_normal((2, 8, 2)),
        "D": rng.standard_normal(2),
    }


def s4(rng: np.random.Generator, low_rank: bool) -> dict[str, np.ndarray]:
    P = {"P": rng.standard_normal((1, 2, 4, 2)), "l_kernel": np.zeros(())}
    return {
        "A_real": np.full((2, 4), -0.5),
        "A_imag": -np.pi * np.tile(np.arange(4.0), (2, 1)),
        "inv_dt": np.full((2, 1), -3.0),
        "B": rng.standard_normal((1, 2, 4, 2)),
        "C": rng.standard_normal((1, 2, 4, 2)),
        **(P if low_rank else {}),
    }


@pytest.mark.parametrize("kind", ["linoss", "s4_diagonal", "s4"])
def test_options_that_arrays_do_not_tell_have_to_be_said(
    kind: str, rng: np.random.Generator
) -> None:
    weights = linoss(rng) if kind == "linoss" else s4(rng, kind == "s4")
    for holder in (weights, {name: jnp.asarray(value) for name, value in weights.items()}):
        with pytest.raises(
            UnsupportedLayerError, match=r"has no attribute .* Pass kind=.*register_layer"
        ):
            read_system(holder)
        with pytest.raises(UnsupportedLayerError, match=r"has no attribute .* Pass kind="):
            reduce_model({"x": holder}, 2, options=CutOptions(horizon=50))
    default = {"linoss": LinOSS("IMEX", damped=False), "s4_diagonal": S4Diagonal(), "s4": S4()}[
        kind
    ]
    assert np.array_equal(*(read_system(weights, kind=said).C for said in (kind, default)))


def test_linoss_with_an_array_of_damping_tells_itself(rng: np.random.Generator) -> None:
    weights = {**linoss(rng), "G_diag": rng.uniform(0.1, 1.0, 8)}
    told = [read_system(weights, kind=kind) for kind in (None, "linoss", LinOSS())]
    assert all(np.array_equal(told[0].C, each.C) for each in told[1:])


def test_arrays_that_are_tied_stay_tied(rng: np.random.Generator) -> None:
    weights = lru(rng)
    model = {"a": dict(weights), "b": dict(weights)}
    result = reduce_model(model, 5)
    for name in weights:
        assert np.array_equal(result.model["a"][name], result.model["b"][name])
    assert result.report.totals()[:2] == (12, 5)


def test_ties_of_a_state_dict_are_seen() -> None:
    model = network()
    model[2] = model[1]
    weights = model.state_dict()
    assert weights["1.seq.B"] is not weights["2.seq.B"]
    result = reduce_model(weights, TotalBudget(6), kind="s5")
    assert {name: each.new_order for name, each in result.report.items()} == {
        "1.seq": 6,
        "2.seq": 6,
    }
    for name in ("Lambda", "B", "C"):
        assert result.model[f"1.seq.{name}"] is result.model[f"2.seq.{name}"]


def test_conjugates_that_torch_keeps_as_views_are_not_tied(rng: np.random.Generator) -> None:
    parts = {name: torch.from_numpy(value) for name, value in lru(rng).items()}
    weights = {name: parts[name] for name in ("nu_log", "theta_log", "gamma_log", "D")}
    weights |= {name: torch.complex(parts[f"{name}_re"], parts[f"{name}_im"]) for name in "BC"}
    other = {**weights, "B": weights["B"].conj()}
    result = reduce_model({"a": weights, "b": other}, 5)
    assert result.report.totals()[:2] == (24, 10)


def test_views_of_one_array_are_tied(rng: np.random.Generator) -> None:
    weights = lru(rng)
    other = {name: value[...] for name, value in weights.items()}
    result = reduce_model({"a": weights, "b": other}, 5)
    assert result.report.totals()[:2] == (12, 5)
    assert result.model["a"]["B_re"] is result.model["b"]["B_re"]


@pytest.mark.parametrize("dtype", [complex, float])
def test_squares_of_complex_weights_follow_as_in_optax(
    dtype: type, rng: np.random.Generator
) -> None:
    parts = lru(rng)
    weights = {name: parts[name] for name in ("nu_log", "theta_log", "gamma_log", "D")}
    weights |= {name: parts[f"{name}_re"] + 1j * parts[f"{name}_im"] for name in "BC"}
    squares = {name: rng.uniform(0.1, 1.0, value.shape) for name, value in weights.items()}
    for name in "BC":
        squares[name] = squares[name].astype(dtype)
    result = reduce_model({"x": weights}, 5, opt_state={"nu": {"x": squares}})
    params = {"x": {name: jnp.asarray(value) for name, value in weights.items()}}
    state = optax.adam(1e-3).init(params)
    state = eqx.tree_at(
        lambda tree: tree[0].nu, state, {"x": {k: jnp.asarray(v) for k, v in squares.items()}}
    )
    (own, *_) = reduce_model(params, 5, opt_state=state).optimizer_state
    for name, value in result.optimizer_state["nu"]["x"].items():
        assert value.dtype == squares[name].dtype
        assert np.all(value.imag == 0.0)
        np.testing.assert_allclose(value, own.nu["x"][name], rtol=1e-5, atol=1e-7)


def test_copies_follow(rng: np.random.Generator) -> None:
    weights = lru(rng)
    near = {
        name: value * (1.0 + 1e-3 * rng.standard_normal(value.shape))
        for name, value in weights.items()
    }
    result = reduce_model({"x": weights}, 5, followers=[{"x": near}])
    (copied,) = result.followers
    mean = {
        name: 0.5 * (value + copied.model["x"][name]) for name, value in result.model["x"].items()
    }
    reduced, between = (read_system(each, kind="lru") for each in (result.model["x"], mean))
    assert np.abs(reduced.eigenvalues - between.eigenvalues).max() < 1e-2


def test_a_reducer_cuts_mappings_and_undoes_it(rng: np.random.Generator) -> None:
    model = {"x": lru(rng)}
    state = {
        "exp_avg": {"x": {name: 0.1 * value for name, value in model["x"].items()}},
        "count": 3,
    }
    trace = HankelTrace(1)
    reducer = InTrainingReducer(
        ReductionSchedule.at(2), 5, rollback=RollbackPolicy(0.1), trace=trace
    )
    reducer.step(1, model, state)
    reducer.report(1.0)
    smaller, smaller_state = reducer.step(2, model, state)
    smaller_state = {**smaller_state, "count": 4}
    assert smaller["x"]["nu_log"].shape == smaller_state["exp_avg"]["x"]["nu_log"].shape == (5,)
    again = InTrainingReducer(
        ReductionSchedule.at(2), 5, rollback=RollbackPolicy(0.1), trace=HankelTrace(1)
    )
    again.load_state_dict(reducer.state_dict())
    for each in (reducer, again):
        each.report(9.0)
        back, back_state = each.step(3, smaller, smaller_state)
        for name, value in model["x"].items():
            assert np.array_equal(back["x"][name], value)
            assert np.array_equal(back_state["exp_avg"]["x"][name], state["exp_avg"]["x"][name])
        assert back_state["count"] == 3
    assert [record.layer for record in trace.records] == ["x"] * 3


def test_the_trial_of_a_state_dict_is_saved() -> None:
    def reducer() -> InTrainingReducer:
        return InTrainingReducer(ReductionSchedule.at(1), 5, rollback=RollbackPolicy(0.1))

    weights = {f"x.{k}": torch.from_numpy(v) for k, v in lru(np.random.default_rng(0)).items()}
    first, again = reducer(), reducer()
    first.report(1.0)
    smaller, _ = first.step(1, weights, None)
    saved = first.state_dict()
    again.load_state_dict(saved)
    again.report(9.0)
    back, _ = again.step(2, smaller, None)
    assert all(torch.equal(back[name], value) for name, value in weights.items())
    tensors = saved["trial"]["snapshots"][0]["model"]
    tensors["x.D"] = tensors["x.D"].to("meta")
    with pytest.raises(ShapeError, match='is on the device "meta"'):
        reducer().load_state_dict(saved)


@pytest.mark.parametrize("extra", [np.int64(3), np.float32(0.1), 1j, (1, 2), [0.5]])
def test_numbers_beside_arrays_stay(
    extra: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "equinox")
    result = reduce_model({"x": lru(rng), "extra": extra}, 5, opt_state={"betas": extra})
    assert result.model["extra"] is extra
    assert result.optimizer_state["betas"] is extra


def test_what_keeps_a_mapping_from_being_a_model_is_named(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "equinox")
    with pytest.raises(UnsupportedLayerError, match=r"dict that holds a .*object as `y\.odd`"):
        reduce_model({"x": lru(rng), "y": {"odd": object()}}, 5)


@pytest.mark.parametrize("other", [None, 1.0, np.ones(2)])
def test_other_leaves_beside_jax_arrays_leave_a_pytree(
    other: Any, rng: np.random.Generator
) -> None:
    params = {"x": {name: jnp.asarray(value) for name, value in lru(rng).items()}, "other": other}
    result = reduce_model(params, 5, opt_state=optax.adam(1e-3).init(params))
    assert result.optimizer_state[0].mu["x"]["B_re"].shape == (5, 3)
    view = types.MappingProxyType({"x": params["x"]})
    assert list(reduce_model(view, 5).report) == ["x"]


def test_layers_of_numpy_beside_jax_arrays_are_found(rng: np.random.Generator) -> None:
    result = reduce_model({"x": lru(rng), "w": jnp.ones(3)}, 5)
    assert result.model["x"]["B_re"].shape == (5, 3)


def test_centred_squares_belong_to_the_means_of_their_own_optimizer(
    rng: np.random.Generator,
) -> None:
    model = {"x": lru(rng)}
    squares = {"x": {name: np.ones_like(value) for name, value in model["x"].items()}}
    means = {"x": {name: 0.5 * value for name, value in squares["x"].items()}}
    alone = reduce_model(model, 5, opt_state={"opt1/square_avg": squares})
    beside = reduce_model(model, 5, opt_state={"opt1/square_avg": squares, "opt2/grad_avg": means})
    for name, value in alone.optimizer_state["opt1/square_avg"]["x"].items():
        assert np.array_equal(beside.optimizer_state["opt1/square_avg"]["x"][name], value)


@pytest.mark.parametrize("name", ["x.nu_log", "x/nu_log"])
def test_a_name_given_twice_is_refused(name: str, rng: np.random.Generator) -> None:
    weights = lru(rng)
    joined = (
        {f"x.{key}": value for key, value in weights.items()} if "/" in name else {"x": weights}
    )
    with pytest.raises(UnsupportedLayerError, match=f"`model` holds two arrays as `{name}`"):
        reduce_model({**joined, name: weights["nu_log"]}, 5)
    moments = {"mu": {"x": weights}, "mu.x.nu_log": weights["nu_log"]}
    with pytest.raises(OptimizerStateError, match=r"holds two arrays as `mu\.x\.nu_log`"):
        reduce_model({"x": weights}, 5, opt_state=moments)


def test_a_state_dict_cannot_be_loaded_into_a_mapping(rng: np.random.Generator) -> None:
    with pytest.raises(UnsupportedLayerError, match="a mapping has the shapes"):
        load_reduced({"x": lru(rng)}, {})


def test_dicts_of_jax_arrays_are_pytrees_with_optax(rng: np.random.Generator) -> None:
    params = {"x": {name: jnp.asarray(value) for name, value in lru(rng).items()}, "w": jnp.ones(3)}
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)
    result = reduce_model(params, 5, opt_state=state)
    assert result.model["x"]["B_re"].shape == (5, 3)
    gradients = eqx.tree_at(lambda tree: tree["w"], result.model, jnp.ones(3))
    optimizer.update(gradients, result.optimizer_state, result.model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "nope"}, UnsupportedLayerError, "`kind` is 'nope'; expected one of 'lru'"),
        ({"kind": 3}, UnsupportedLayerError, "`kind` is 3; expected one of"),
        ({"kind": "s4"}, UnsupportedLayerError, "nothing has the arrays of kind='s4'"),
        (
            {"opt_state": (1, 2)},
            OptimizerStateError,
            "`opt_state` is a .*tuple.* expected a mapping",
        ),
        (
            {"opt_state": {"mu": {"q": np.ones(3)}}},
            OptimizerStateError,
            r"as `mu\.q`, which ends",
        ),
        (
            {"opt_state": {"mu": {"x.nu_log": np.ones(3)}}},
            OptimizerStateError,
            r"`mu` of `nu_log` has shape \(3,\); expected \(12,\)",
        ),
        (
            {"opt_state": {"odd": {"x.nu_log": np.ones(12)}}},
            OptimizerStateError,
            "holds `odd` at odd",
        ),
        (
            {"opt_state": {"adam": [{"mu": {"x.nu_log": np.ones(12)}}]}},
            OptimizerStateError,
            "`opt_state` holds a .*list as `adam`; expected arrays",
        ),
        ({"options": CutOptions(exclude=("y",))}, ArgumentError, "`exclude` names y"),
        ({"followers": [{"y": {}}]}, UnsupportedLayerError, "without a known layer"),
        (
            {"followers": [{"x.a": 1.0, "x": {}}]},
            UnsupportedLayerError,
            "without a known layer",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, rng: np.random.Generator
) -> None:
    model = {"x": lru(rng)}
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        reduce_model(model, 5, **arguments)
    assert all(np.array_equal(model["x"][name], before["x"][name]) for name in before["x"])


def test_missing_and_misshapen_arrays_are_named(rng: np.random.Generator) -> None:
    weights = lru(rng)
    with pytest.raises(ShapeError, match=r"`B_re` has shape \(3, 3\); expected \(12, m\)"):
        reduce_layer({**weights, "B_re": weights["B_re"][:3]}, 5, kind="lru")
    del weights["B_re"]
    with pytest.raises(UnsupportedLayerError, match="without the arrays B_re"):
        reduce_layer(weights, 5, kind="lru")
