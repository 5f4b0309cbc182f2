"""Layers whose weights are real: cut by data, and told where they cannot hold the order asked for."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmreduce
from ssmreduce import (
    CutOptions,
    InTrainingReducer,
    ReductionSchedule,
    calibrate,
    reduce_layer,
    reduce_model,
    register_layer,
    sweep,
)
from ssmreduce.errors import (
    OrderError,
    ReductionWarning,
    UnsupportedLayerError,
)
from ssmreduce.layers.lti import LTILayer, check_decay


class Decays(eqx.Module):
    """h[k] = λ h[k-1] + B u[k], y[k] = C h[k], all real, on (L, m)."""

    decay: jax.Array
    B: jax.Array
    C: jax.Array

    def __call__(self, inputs: jax.Array) -> jax.Array:
        def step(state: jax.Array, sample: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = jnp.exp(-jnp.exp(self.decay)) * state + self.B @ sample
            return state, self.C @ state

        return jax.lax.scan(step, jnp.zeros_like(self.decay), inputs)[1]


class DecaysLayer(LTILayer):
    """As the page about layers says, but it cannot store complex poles."""

    shapes: ClassVar = {"decay": ("n",), "B": ("n", "m"), "C": ("p", "n")}
    poles = ("decay",)

    def modes(self, weights: Any) -> Any:
        one = np.ones(weights["decay"].shape)
        return -np.exp(weights["decay"]), one, one

    def pole_weights(self, logarithms: Any, weights: Any) -> Any:
        check_decay(logarithms, "a Decays layer")
        return {"decay": np.log(-logarithms.real)}

    def matrices(self, weights: Any) -> Any:
        return weights["B"], weights["C"]

    def matrix_weights(self, B: Any, C: Any) -> Any:
        return {"B": B, "C": C}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssmreduce.layers.known, "_REGISTERED", {})
    register_layer(Decays, DecaysLayer())


def model() -> list[Decays]:
    rng = np.random.default_rng(0)
    B, C = rng.normal(size=(16, 3)), rng.normal(size=(3, 16))
    return [Decays(jnp.linspace(-4.0, -1.0, 16), jnp.asarray(B, "f"), jnp.asarray(C, "f"))]


def batches() -> list[jax.Array]:
    steps = np.random.default_rng(1).normal(size=(4, 16, 50, 3)).cumsum(axis=2)
    return list(jnp.asarray(steps, "f"))


def forward(found: list[Decays], batch: jax.Array) -> jax.Array:
    return jax.vmap(found[0])(batch)


@pytest.mark.parametrize("method", ["best", "white", "white refit", "balanced", "selected"])
def test_a_real_layer_is_cut_by_data(method: Any) -> None:
    data = calibrate(model(), batches(), forward=forward)
    part = reduce_model(model(), 4, data=data, options=CutOptions(method=method)).report["[0]"]
    assert part.new_order == 4
    assert part.output_error is not None
    assert part.output_error < 0.1
    assert not any(np.iscomplexobj(value) for value in vars(part.layer).values())


def test_a_lower_order_than_the_one_asked_for_is_said() -> None:
    message = r"layer `\[0\]` gets 5 states, fewer than its order: .*order 8 that was written.*select_states"
    with pytest.warns(ReductionWarning, match=message) as seen:
        report = reduce_model(model(), 8).report
    assert report["[0]"].new_order == 5
    assert [each.filename for each in seen] == [__file__]
    with pytest.warns(ReductionWarning, match="fewer than its order"):
        assert reduce_layer(model()[0], 8).new_order == 5
    with pytest.warns(ReductionWarning, match="fewer than its order"):
        InTrainingReducer(ReductionSchedule.at(1), 8).step(1, model(), None)
    with pytest.raises(UnsupportedLayerError, match="select_states"):
        reduce_model(model(), 12)


@pytest.mark.parametrize("order", [8, 12])
def test_data_give_the_order_asked_for_where_the_layer_can_keep_its_modes(order: int) -> None:
    data = calibrate(model(), batches(), forward=forward)
    part = reduce_model(model(), order, data=data).report["[0]"]
    assert (part.new_order, part.method) == (order, "selected")
    kept = np.asarray(part.layer.decay)
    assert np.isin(kept, model()[0].decay).all()
    white = CutOptions(method="white")
    with pytest.warns(ReductionWarning, match="fewer than its order"):
        assert reduce_model(model(), 8, data=data, options=white).report["[0]"].new_order == 5
    with pytest.raises(OrderError, match=r"excite 1\d of 16 states"):
        reduce_model(model(), 15, data=data)


def test_a_sweep_with_data_has_rows_without_a_white_cut() -> None:
    data = calibrate(model(), batches(), forward=forward)
    row = sweep(model(), [8], data=data).rows[0]
    assert (row.order, row.method, row.error_bound) == (8, "selected", None)
