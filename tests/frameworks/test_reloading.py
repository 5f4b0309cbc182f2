"""Saved Equinox models, reduced, loaded into fresh ones of full size: `shaped_like`."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from torch_samples import CASES, s5

from ssmreduce import (
    HankelMass,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    load_reduced,
    reduce_model,
    register_layer,
    shaped_like,
)
from ssmreduce.demo.lru import LRU
from ssmreduce.errors import ArgumentError, ShapeError, UnsupportedLayerError


class Model(eqx.Module):
    """Two layers that shrink, one that stays, arrays besides, functions and a number."""

    named: dict[str, LRU]
    listed: list[LRU]
    mlp: eqx.nn.MLP
    host: np.ndarray
    depth: int


def fresh(seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    return Model(
        # In another order than that of the names, and of the shapes that a cut gives them.
        {"z": LRU(16, 4, rng=rng), "a": LRU(24, 4, rng=rng)},
        [LRU(4, 4, rng=rng)],
        eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(seed)),
        rng.normal(size=3),
        2,
    )


@pytest.fixture(scope="module")
def reduction() -> Any:
    return reduce_model(fresh(), {"named['a']": 5, "named['z']": HankelMass(0.9)})


def by_name(model: Model) -> dict[str, Any]:
    """The arrays, as Orbax restores them without a target."""
    lists = [{name: np.asarray(x) for name, x in vars(layer).items()} for layer in model.listed]
    layers = [{"weight": part.weight, "bias": part.bias} for part in model.mlp.layers]
    named = {key: dict(vars(model.named[key])) for key in sorted(model.named)}
    return {"named": named, "listed": lists, "mlp": {"layers": layers}, "host": model.host}


def assert_equal(one: Any, two: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert bool(eqx.tree_equal(one, two))


def test_equinox_loads_into_the_shapes_of_a_report(reduction: Any, tmp_path: Path) -> None:
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", reduction.model)
    report = json.loads(json.dumps(reduction.report.to_dict()))
    for saved in (report, reduction.report):
        like = shaped_like(fresh(1), saved)
        assert like.named["a"].C_re.shape == (4, 5)
        assert like.listed[0].states == 4
        loaded = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", like)
        assert_equal(
            eqx.filter(loaded, eqx.is_array_like), eqx.filter(reduction.model, eqx.is_array_like)
        )


@pytest.mark.slow
def test_orbax_loads_by_name(reduction: Any, tmp_path: Path) -> None:
    checkpointer = ocp.StandardCheckpointer()
    arrays = eqx.filter(reduction.model, eqx.is_array_like)
    checkpointer.save(tmp_path / "model", eqx.filter(reduction.model, eqx.is_array_like))
    checkpointer.wait_until_finished()
    like = eqx.filter(shaped_like(fresh(1), reduction.report), eqx.is_array_like)
    assert_equal(checkpointer.restore(tmp_path / "model", like), arrays)
    loaded = shaped_like(fresh(1), checkpointer.restore(tmp_path / "model"))
    assert_equal(eqx.filter(loaded, eqx.is_array_like), arrays)
    inputs = jnp.ones((1, 3, 4))
    assert jnp.array_equal(loaded.named["z"](inputs), reduction.model.named["z"](inputs))
    assert jnp.array_equal(loaded.mlp(inputs[0, 0]), reduction.model.mlp(inputs[0, 0]))


def test_arrays_come_as_a_model_or_as_dicts(reduction: Any) -> None:
    for saved in (reduction.model, by_name(reduction.model)):
        model = fresh(1)
        loaded = shaped_like(model, saved)
        assert_equal(eqx.filter(loaded, eqx.is_array), eqx.filter(reduction.model, eqx.is_array))
        assert np.array_equal(loaded.host, reduction.model.host)
        assert_equal(eqx.filter(model, eqx.is_array), eqx.filter(fresh(1), eqx.is_array))


def test_what_is_replaced_may_hold_anything(reduction: Any) -> None:
    broken = jax.tree.map(lambda x: x * np.nan if eqx.is_array(x) else x, fresh())
    loaded = shaped_like(broken, by_name(reduction.model))
    assert_equal(eqx.filter(loaded, eqx.is_array), eqx.filter(reduction.model, eqx.is_array))


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_layer_gets_the_shapes_of_a_cut(name: str) -> None:
    (cut,) = reduce_model(CASES[name].make(), 3).report.values()
    fields = dict.fromkeys(cut.weights, jax.Array)
    kind: Any = type("Own", (eqx.Module,), {"__annotations__": fields})
    register_layer(kind, cut.kind)
    model = [kind(**{key: jnp.asarray(value) for key, value in cut.weights.items()})]
    like = shaped_like(model, {"[0]": {"new_order": cut.new_order}})
    expected = {key: cut.new_weights.get(key, value) for key, value in cut.weights.items()}
    assert {key: value.shape for key, value in vars(like[0]).items()} == {
        key: value.shape for key, value in expected.items()
    }
    saved = [{key: jnp.asarray(value) for key, value in expected.items()}]
    loaded = shaped_like(model, saved)
    assert all(jnp.array_equal(value, vars(loaded[0])[key]) for key, value in saved[0].items())


def drop(saved: dict[str, Any]) -> None:
    del saved["named"]["a"]["B_re"]


def put(name: str, value: Any) -> Any:
    return lambda saved: saved["named"]["a"].update({name: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, r"`saved` lacks named\['a'\]\.B_re and has nothing besides"),
        (put("E", np.ones(2)), r"lacks nothing and has \['named'\]\['a'\]\['E'\] besides"),
        (put("B_re", np.ones(5, np.float32)), r"`named\['a'\]\.B_re` .* shape \(5,\).* 2 axes"),
        (put("B_re", "no"), r"`named\['a'\]\.B_re` of `saved` is a builtins\.str; .*array"),
        (put("B_re", np.ones((4, 5), np.float32)), r"B_re` .* shape \(4, 5\).*expected \(5, 4\)"),
        (put("B_re", np.ones((5, 4))), r"B_re` .* dtype float64; expected \(5, 4\) and float32"),
        (
            put("theta_log", np.ones(3, np.float32)),
            r"theta_log` of `saved` has shape \(3,\).*expected \(5,\)",
        ),
        (lambda saved: saved.update(host=np.ones(4)), r"`host` of `saved` has shape \(4,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(reduction: Any, spoil: Any, message: str) -> None:
    saved = by_name(reduction.model)
    spoil(saved)
    with pytest.raises(ShapeError, match=message):
        shaped_like(fresh(), saved)


def trained(reducer: InTrainingReducer, model: Any, steps: Any, opt_state: Any) -> Any:
    """Steps without updates, which cut; the metric gets worse after the second cut, which is undone."""
    for step in steps:
        if reducer.rollback is not None:
            reducer.report(float(step > 6))
        model, opt_state = reducer.step(step, model, opt_state)
    return model, opt_state


def reducer_of(rollback: RollbackPolicy | None = None) -> InTrainingReducer:
    schedule = ReductionSchedule.at(2, 6)
    return InTrainingReducer(schedule, HankelMass(0.9), gate=1.0, rollback=rollback)


def test_a_run_in_training_is_saved_and_loaded_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/training.rst").read_text(encoding="utf-8")
    blocks = re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", page)
    (code,) = (each for each in blocks if "eqx.tree_serialise_leaves" in each)
    optimizer, reducer = optax.adam(1e-3), reducer_of()
    start = optimizer.init(eqx.filter(fresh(), eqx.is_inexact_array))
    model, opt_state = trained(reducer, fresh(), range(1, 4), start)
    given = {
        "model": model,
        "opt_state": opt_state,
        "optimizer": optimizer,
        "reducer": reducer,
        "step": 3,
        "build_model": lambda: fresh(1),
        "InTrainingReducer": lambda _: reducer_of(),
    }
    exec(textwrap.dedent(code), given)
    before = eqx.filter((model, opt_state), eqx.is_array_like)
    assert_equal(eqx.filter((given["model"], given["opt_state"]), eqx.is_array_like), before)
    assert given["reducer"] is not reducer
    assert given["reducer"].events == reducer.events
    assert reducer.events[0].new_order < reducer.events[0].old_order


def test_cuts_of_a_reducer_that_were_undone_do_not_count() -> None:
    start = optax.adam(1e-3).init(eqx.filter(fresh(), eqx.is_inexact_array))
    reducer = reducer_of(RollbackPolicy(0.1))
    reducer.order = HankelMass(0.99)
    model, opt_state = trained(reducer, fresh(), range(1, 6), start)
    reducer.order = HankelMass(0.7)
    model, opt_state = trained(reducer, model, [6], opt_state)
    sizes = jax.tree.map(jnp.shape, eqx.filter(model, eqx.is_array))
    on_trial = shaped_like(fresh(1), reducer.state_dict())
    assert_equal(jax.tree.map(jnp.shape, eqx.filter(on_trial, eqx.is_array)), sizes)
    model, _ = trained(reducer, model, [7], opt_state)
    assert {event.rolled_back for event in reducer.events} == {None, 7}
    back = jax.tree.map(jnp.shape, eqx.filter(model, eqx.is_array))
    assert back != sizes
    like = shaped_like(fresh(1), reducer.state_dict())
    assert_equal(jax.tree.map(jnp.shape, eqx.filter(like, eqx.is_array)), back)


def test_the_state_of_a_reducer_without_cuts_keeps_full_size() -> None:
    like = shaped_like(fresh(1), reducer_of().state_dict())
    assert_equal(eqx.filter(like, eqx.is_array), eqx.filter(fresh(1), eqx.is_array))
    spoilt = reducer_of().state_dict() | {"events": [{"new_order": 3}]}
    with pytest.raises(ArgumentError, match=r"saved\['events'\]` is \[.*state_dict"):
        shaped_like(fresh(1), spoilt)


def test_other_things_are_refused(reduction: Any) -> None:
    with pytest.raises(ShapeError, match=r"names layer 'b', but those of `model` are named\['a'\]"):
        shaped_like(fresh(), {"b": {"new_order": 3}})
    with pytest.raises(
        ArgumentError, match=r"saved\[.*\]\['new_order'\]` is None; expected a positive int"
    ):
        shaped_like(fresh(), {"named['a']": {"new_order": 3}, "named['z']": {}})
    with pytest.raises(
        ArgumentError, match=r"layer `listed\[0\]` 5 states, but it has 4 in `model`"
    ):
        shaped_like(fresh(), {"listed[0]": {"new_order": 5}})
    with pytest.raises(ArgumentError, match=r"24 states, but it has 5 in `model`.*full size"):
        shaped_like(reduction.model, by_name(fresh()))
    with pytest.raises(ShapeError, match=r"`saved` is a builtins\.str; .*Read the file first"):
        shaped_like(fresh(), "model.eqx")
    with pytest.raises(ShapeError, match="no pytree"):
        shaped_like(fresh(), {1: 2, "a": 3})
    with pytest.raises(UnsupportedLayerError, match="load_reduced"):
        shaped_like(s5(False, False, 12), reduction.report)
    with pytest.raises(UnsupportedLayerError, match="shaped_like"):
        load_reduced(fresh(), {})
