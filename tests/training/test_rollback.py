"""A cut on trial: undone if the watched metric says so, saved and resumed, and bit for bit as it was."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from fingerprints import fingerprint
from LRU_pytorch import LRU as PackageLRU
from modules import KernelLRU, Stack, make_lru
from s5 import S5
from samples import lru_weights
from torch import nn
from torch_modules import S4D, SSMKernelDiag, SSMKernelDPLR
from torch_samples import s5

from ssmreduce import (
    CutOptions,
    ErrorBound,
    FixedOrder,
    HankelMass,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    load_reduced,
    reduce_model,
)
from ssmreduce.errors import (
    ArgumentError,
    NonFiniteError,
    ShapeError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks.transaction import commit
from ssmreduce.models.search import search
from ssmreduce.training.tracking import ReductionEvent

NAN = float("nan")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(31)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `inputs`."""
        self.calls += 1
        return inputs


class TorchRun:
    """A PyTorch model with two layers of different kinds, and what trains it."""

    def __init__(self, seed: int = 31) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(2, 3),
            s5(False, False, 12),
            PackageLRU(3, 3, 10, rmin=0.5),
            nn.Linear(3, 1),
            Counting(),
        )
        self.state = torch.optim.AdamW(self.model.parameters(), 3e-3)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.state, 60)

    def train(self, step: int) -> None:
        """Update number `step`, on the data of that step."""
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 10, 2, generator=generator)
        loss = torch.mean((self.model(inputs) - inputs.cumsum(1)[..., :1]) ** 2)
        loss.backward()
        self.state.step()
        self.scheduler.step()
        self.state.zero_grad()

    def reduce(self, reducer: InTrainingReducer, step: int) -> None:
        assert reducer.step(step, self.model, self.state) == (self.model, self.state)

    def orders(self) -> tuple[int, int]:
        return self.model[1].seq.Lambda.shape[0], self.model[2].nu_log.shape[0]

    def hash(self) -> str:
        """Of all weights and moments; the rate of learning is the scheduler's."""
        entries = [
            self.state.state_dict()["state"][k] for k in sorted(self.state.state_dict()["state"])
        ]
        return fingerprint(self.model, entries)


ADAM = optax.adam(3e-3)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def jax_update(model: Any, state: Any, inputs: Any) -> Any:
    """One step of Adam."""

    def loss_of(model: Any) -> Any:
        return jnp.mean((jax.vmap(model)(inputs) - inputs.sum((1, 2))) ** 2)

    updates, state = ADAM.update(jax.grad(loss_of)(model), state, model)
    return optax.apply_updates(model, updates), state


class JaxRun:
    """The same in JAX, with buffers donated to the update, as is usual."""

    names = ("first", "second")

    def __init__(self, seed: int = 31) -> None:
        rng = np.random.default_rng(seed)
        first, second = (make_lru(lru_weights(rng, n, 3), kind=KernelLRU) for n in (12, 10))
        self.model = Stack(first, second, jnp.asarray(rng.standard_normal(3), dtype="float32"))
        self.state = ADAM.init(eqx.filter(self.model, eqx.is_inexact_array))

    def train(self, step: int) -> None:
        inputs = np.random.default_rng(step).standard_normal((4, 10, 3)).astype("float32")
        self.model, self.state = jax_update(self.model, self.state, inputs)

    def reduce(self, reducer: InTrainingReducer, step: int) -> None:
        self.model, self.state = reducer.step(step, self.model, self.state)

    def orders(self) -> tuple[int, int]:
        return self.model.first.nu_log.size, self.model.second.nu_log.size

    def hash(self) -> str:
        return fingerprint(self.model, self.state)


RUNS: dict[str, Any] = {"torch": TorchRun, "jax": JaxRun}


def reducer_of(order: Any = 4, *, attempts: int = 3, **policy: Any) -> InTrainingReducer:
    """Attempts after steps 5, 10 and 15."""
    schedule = ReductionSchedule(5 * attempts, stop=1.0, attempts=attempts)
    options = {"tolerance": 0.1, **policy}
    return InTrainingReducer(schedule, order, rollback=RollbackPolicy(**options))


def standing(reducer: InTrainingReducer) -> dict[str, Any]:
    """All that a reducer knows but the number of the step."""
    return {**reducer.state_dict(), "step": 0}


def go(run: Any, reducer: InTrainingReducer, steps: range, metrics: dict[int, float]) -> None:
    for step in steps:
        run.train(step)
        if step in metrics:
            reducer.report(metrics[step])
        run.reduce(reducer, step)


# --- The policy


@pytest.mark.parametrize(
    ("arguments", "metric", "worse"),
    [
        ({"tolerance": 0.25}, 1.25, False),
        ({"tolerance": 0.25}, 1.3, True),
        ({"tolerance": 0.25}, 0.0, False),
        ({"tolerance": 0.0}, 1.0, False),
        ({"tolerance": 0.25, "mode": "max"}, 0.75, False),
        ({"tolerance": 0.25, "mode": "max"}, 0.7, True),
        ({"tolerance": 0.25, "mode": "max"}, 9.0, False),
        ({"tolerance": 0.25}, NAN, True),
        ({"tolerance": 0.25, "mode": "max"}, NAN, True),
        ({"tolerance": 0.25}, float("inf"), True),
        ({"tolerance": 0.25, "mode": "max"}, float("inf"), False),
    ],
)
def test_worse_by_more_than_the_tolerance(
    arguments: dict[str, Any], metric: float, worse: bool
) -> None:
    assert RollbackPolicy(**arguments).is_worse(metric, than=1.0) == worse


@pytest.mark.parametrize(
    "arguments",
    [
        {"tolerance": -0.1},
        {"tolerance": NAN},
        {"tolerance": float("inf")},
        {"tolerance": "0.1"},
        {"tolerance": True},
        {"tolerance": 0.1, "mode": "falls"},
        {"tolerance": 0.1, "patience": 0},
        {"tolerance": 0.1, "patience": 1.5},
    ],
)
def test_bad_policies(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        RollbackPolicy(**arguments)


def test_bad_options_of_the_reducer() -> None:
    for options in ({"rollback": 0.1}, {"trace": 10}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            InTrainingReducer(ReductionSchedule(10, attempts=4), **options)


# --- Undoing a cut


@pytest.mark.parametrize("kind", RUNS)
def test_a_worse_metric_undoes_the_cut_exactly(kind: str) -> None:
    run, reducer = RUNS[kind](), reducer_of()
    go(run, reducer, range(1, 5), {1: 1.0})
    run.train(5)
    before, orders = run.hash(), run.orders()
    run.reduce(reducer, 5)
    assert max(run.orders()) <= 4
    go(run, reducer, range(6, 8), {7: 1.2})
    assert run.hash() == before
    assert run.orders() == orders
    assert [event.rolled_back for event in reducer.events] == [7, 7]
    assert [(event.old_order, event.step) for event in reducer.events] == [(12, 5), (10, 5)]
    # Training goes on, and what was undone is not tried again.
    go(run, reducer, range(8, 20), {11: 0.1})
    assert run.orders() == orders
    assert len(reducer.events) == 2


@pytest.mark.parametrize("kind", RUNS)
def test_after_a_rollback_the_run_is_the_one_that_was_never_cut(kind: str) -> None:
    run, other = RUNS[kind](), RUNS[kind]()
    reducer = reducer_of()
    go(run, reducer, range(1, 10), {1: 1.0, 9: NAN})
    for step in range(1, 6):
        other.train(step)
    assert reducer.events[0].rolled_back == 9
    for step in range(20, 26):
        if kind == "torch":  # the schedule of the learning rate went on
            rate = run.state.param_groups[0]["lr"]
            other.state.param_groups[0]["lr"] = rate
            run.scheduler.step = other.scheduler.step = lambda: None
        run.train(step)
        other.train(step)
    leaves = [
        jax.tree.leaves(r.model) if kind == "jax" else list(r.model.parameters())
        for r in (run, other)
    ]
    for one, two in zip(*leaves, strict=True):
        assert one.tolist() == two.tolist()


@pytest.mark.parametrize("kind", RUNS)
def test_averages_follow_cuts_and_rollbacks(kind: str) -> None:
    run, reducer = RUNS[kind](), reducer_of()
    average = RUNS[kind]().model
    run.train(1)
    for step in range(1, 5):
        reducer.report(1.0)
        returned = reducer.step(step, run.model, run.state, [average])
        assert returned == (run.model, run.state, [average])
    before = fingerprint(average)
    run.model, run.state, (cut,) = reducer.step(5, run.model, run.state, [average])
    shapes = [
        [tuple(x.shape) for x in (jax.tree.leaves(m) if kind == "jax" else m.parameters())]
        for m in (run.model, cut)
    ]
    assert shapes[0] == shapes[1]
    assert max(run.orders()) <= 4
    reducer.report(2.0)
    saved = copy.deepcopy(reducer.state_dict())
    again = reducer_of()
    again.load_state_dict(saved)
    held = fingerprint(run.model), fingerprint(cut)
    with pytest.raises(ShapeError, match="`followers` has 0 models but 1 followed"):
        reducer.step(6, run.model, run.state)
    assert (fingerprint(run.model), fingerprint(cut)) == held
    assert again.due(6)
    run.model, run.state, (back,) = again.step(6, run.model, run.state, [cut])
    assert fingerprint(back) == before
    assert run.orders() == (12, 10)


@pytest.mark.parametrize("kind", RUNS)
def test_a_metric_within_the_tolerance_confirms_the_cut(kind: str) -> None:
    run, reducer = RUNS[kind](), reducer_of(8, mode="max")
    go(run, reducer, range(1, 8), {1: 0.8, 7: 0.71})
    assert max(run.orders()) <= 8
    assert [event.rolled_back for event in reducer.events] == [None, None]
    assert reducer.state_dict()["trial"] is None
    # 0.71 is what later reports are compared with, and there is nothing left to undo.
    go(run, reducer, range(8, 10), {8: 0.1, 9: NAN})
    assert max(run.orders()) <= 8


def test_patience_counts_reports_in_a_row() -> None:
    run, reducer = TorchRun(), reducer_of(patience=3)
    go(run, reducer, range(1, 8), {1: 1.0, 6: 2.0, 7: 2.0})
    assert max(run.orders()) <= 4
    go(run, reducer, range(8, 9), {8: 1.05})
    assert reducer.state_dict()["trial"] is None
    run, reducer = TorchRun(), reducer_of(patience=3)
    go(run, reducer, range(1, 9), {1: 1.0, 6: 2.0, 7: NAN, 8: 2.0})
    assert run.orders() == (12, 10)
    # All reports are compared with the one before the cut.
    run, reducer = TorchRun(), reducer_of(patience=2)
    go(run, reducer, range(1, 8), {1: 1.0, 6: 2.0, 7: 2.0})
    assert run.orders() == (12, 10)


def test_one_cut_at_a_time_is_on_trial() -> None:
    run, reducer = TorchRun(), reducer_of(HankelMass(0.7))
    go(run, reducer, range(1, 13), {1: 1.0})
    first = run.orders()
    assert first < (12, 10)
    assert {event.step for event in reducer.events} == {5}  # that of step 10 waits
    reducer.order = FixedOrder(2)
    run.train(13)
    reducer.report(0.9)
    before = run.hash()
    run.reduce(reducer, 13)
    assert {event.step for event in reducer.events} == {5, 13}
    go(run, reducer, range(14, 15), {14: 3.0})
    assert run.hash() == before  # the second cut alone is undone
    assert run.orders() == first
    assert [event.rolled_back for event in reducer.events] == [None, None, 14, 14]


def test_other_layers_are_still_cut_after_a_rollback() -> None:
    run, reducer = TorchRun(), reducer_of(10)  # 10 of 12 in the first layer, nothing in the second
    go(run, reducer, range(1, 11), {1: 1.0, 10: 5.0})
    assert [(event.layer, event.rolled_back) for event in reducer.events] == [("1.seq", 10)]
    # The attempt that was due after step 10 as well is made next.
    reducer.order = FixedOrder(4)
    go(run, reducer, range(11, 12), {})
    assert run.orders() == (12, 4)


def test_without_a_metric_an_attempt_waits() -> None:
    run, reducer = TorchRun(), reducer_of()
    run.train(5)
    assert not reducer.due(5)
    with pytest.warns(UserWarning, match=r"attempt due after step 5 waits.*reducer\.report"):
        run.reduce(reducer, 5)
    go(run, reducer, range(6, 7), {6: NAN})  # no number to compare with
    assert run.orders() == (12, 10)
    go(run, reducer, range(7, 8), {7: 1.0})
    assert max(run.orders()) <= 4
    assert {event.step for event in reducer.events} == {7}


def test_reports_that_make_no_sense() -> None:
    with pytest.raises(ArgumentError, match=r"no rollback policy.*RollbackPolicy\(tolerance\)"):
        InTrainingReducer(ReductionSchedule(10, attempts=4)).report(1.0)
    for metric in ("good", None, torch.ones(2), {}):
        with pytest.raises(ArgumentError, match="`metric`"):
            reducer_of().report(metric)
    reducer = reducer_of()
    for metric in (torch.ones(1, requires_grad=True), jnp.ones(()), np.float32(1.0), 1):
        reducer.report(metric)
        assert reducer.state_dict()["metric"] == 1.0


def test_gradients_follow_a_cut_and_end_at_a_rollback() -> None:
    run, reducer = TorchRun(), reducer_of()
    for step in range(1, 7):
        reducer.report(1.0)
        torch.mean(run.model(torch.randn(1, 4, 2))).backward()
        run.reduce(reducer, step)  # warnings are errors here
        assert all(p.grad.shape == p.shape for p in run.model.parameters() if p.grad is not None)
    assert run.orders() != (12, 10)
    reducer = reducer_of()
    run = TorchRun()
    go(run, reducer, range(1, 7), {1: 1.0})
    reducer.report(9.0)
    assert reducer.due(7)
    torch.mean(run.model(torch.randn(1, 4, 2))).backward()
    run.reduce(reducer, 7)
    assert run.orders() == (12, 10)
    assert reducer.events[0].rolled_back == 7
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_layers_that_cannot_be_reduced_are_passed_over_on_trial() -> None:
    model = nn.Sequential(s5(False, False, 12), S5(3, 8, liquid=True))
    before = fingerprint(model)
    reducer = InTrainingReducer(
        ReductionSchedule(10, attempts=4),
        4,
        options=CutOptions(skip_unsupported=True),
        rollback=RollbackPolicy(0.1),
    )
    reducer.report(1.0)
    reducer.step(1, model, None)
    assert fingerprint(model) != before
    reducer.report(2.0)
    reducer.step(2, model, None)
    assert fingerprint(model) == before


def test_layers_that_cannot_be_reduced_are_passed_over() -> None:
    model = nn.Sequential(s5(False, False, 12), S5(3, 8, liquid=True))
    with pytest.raises(UnsupportedLayerError, match="liquid"):
        InTrainingReducer(ReductionSchedule(10, attempts=4), 4).step(1, model, None)
    reducer = InTrainingReducer(
        ReductionSchedule(10, attempts=4),
        4,
        options=CutOptions(skip_unsupported=True),
        trace=HankelTrace(1),
    )
    reducer.step(1, model, None)
    assert [event.layer for event in reducer.events] == ["0.seq"]
    assert reducer.trace is not None
    assert reducer.trace.layers == ("0.seq",)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_trial_is_saved_without_the_names_of_wrappers(compiled_first: bool) -> None:
    run = TorchRun()
    wrapped = torch.compile(run.model)
    before, after = (wrapped, run.model) if compiled_first else (run.model, wrapped)
    reducer = reducer_of()
    reducer.report(1.0)
    run.train(4)
    held = run.hash()
    reducer.step(5, before, run.state)
    assert max(run.orders()) <= 4
    again = reducer_of()
    again.load_state_dict(copy.deepcopy(reducer.state_dict()))
    again.report(9.0)
    again.step(6, after, run.state)
    assert run.hash() == held
    assert again.last_cut == {}
    again.report(1.0)
    again.step(10, after, run.state)  # what was undone is not cut again, under any name
    assert run.orders() == (12, 10)


def test_a_snapshot_of_another_model_is_refused() -> None:
    run, reducer = TorchRun(), reducer_of()
    go(run, reducer, range(1, 6), {1: 1.0})
    reducer.report(9.0)
    other = nn.Sequential(s5(False, False, 4))
    before = fingerprint(other)
    with pytest.raises(ShapeError, match=r"snapshot.*Build the model as it was"):
        reducer.step(6, other, None)
    assert fingerprint(other) == before
    small = torch.optim.AdamW(list(run.model.parameters())[:2])
    before = fingerprint(run.model, small)
    with pytest.raises(ShapeError, match="has 2 of them; expected the same"):
        reducer.step(6, run.model, small)
    assert fingerprint(run.model, small) == before
    jax_run, jax_reducer = JaxRun(), reducer_of()
    go(jax_run, jax_reducer, range(1, 6), {1: 1.0})
    jax_reducer.report(9.0)
    with pytest.raises(ShapeError, match="opt_state"):
        jax_reducer.step(6, jax_run.model, None)


def test_a_snapshot_of_another_follower_is_refused() -> None:
    run, reducer = TorchRun(), reducer_of()
    average = copy.deepcopy(run.model)
    run.train(1)
    reducer.report(1.0)
    reducer.step(5, run.model, run.state, [average])
    reducer.report(9.0)
    other = nn.Sequential(s5(False, False, 4))
    fresh = torch.optim.AdamW(run.model.parameters())
    with pytest.raises(ShapeError, match=r"of follower 1 in `followers`: the snapshot"):
        reducer.step(6, run.model, fresh, [other])
    assert not fresh.state


def test_moments_that_were_not_there_are_not_there_again() -> None:
    run, reducer = TorchRun(), reducer_of()
    reducer.report(1.0)
    run.reduce(reducer, 5)
    run.train(6)
    reducer.report(9.0)
    run.reduce(reducer, 6)
    assert run.state.state_dict()["state"] == {}
    run.train(7)


def test_what_the_user_does_meanwhile_is_undone_too() -> None:
    run, reducer = TorchRun(), reducer_of()
    head = nn.Parameter(torch.ones(3))  # of no part of the model
    run.state.add_param_group({"params": [head]})
    go(run, reducer, range(1, 5), {1: 1.0})
    run.train(5)
    before = run.hash()
    run.reduce(reducer, 5)
    reduce_model(run.model, 2, optimizer=run.state)
    head.grad = torch.ones(3)
    run.train(6)
    reducer.report(9.0)
    run.reduce(reducer, 6)
    entries = run.state.state_dict()["state"]
    assert entries[max(entries)]["exp_avg"].tolist() == pytest.approx([0.1] * 3)
    del run.state.state[head]
    assert run.hash() == before


def test_parameters_stay_the_same_objects_in_a_rollback() -> None:
    run, reducer = TorchRun(), reducer_of()
    parameters = dict(run.model.named_parameters())
    parameters["1.seq.C"]._optim = {"lr": 1e-4}
    go(run, reducer, range(1, 6), {1: 1.0})
    loss = torch.mean(run.model(torch.randn(1, 4, 2)))  # its graph is alive during the rollback
    reducer.report(9.0)
    run.reduce(reducer, 6)
    for name, parameter in run.model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.is_leaf
        assert parameter.grad is None
    assert parameters["1.seq.C"]._optim == {"lr": 1e-4}
    assert all(parameter in run.state.state for parameter in parameters.values())
    run.train(7)
    del loss


@pytest.mark.parametrize(
    "layer", [S4D(3, 16, lr=0.0), SSMKernelDiag(3, 16), SSMKernelDPLR(3, 16, rank=2)]
)
def test_buffers_and_counts_come_back(layer: nn.Module) -> None:
    reducer = reducer_of(attempts=1)
    reducer.report(1.0)
    before = fingerprint(layer)
    reducer.step(5, layer, None)
    assert fingerprint(layer) != before
    if isinstance(layer, SSMKernelDPLR):
        layer.dA = torch.zeros(2)  # a cache, of the reduced weights
    reducer.report(2.0)
    reducer.step(6, layer, None)
    assert fingerprint(layer) == before


def test_states_that_a_layer_keeps_come_back() -> None:
    layer = PackageLRU(3, 3, 10, rmin=0.5)
    layer.state = torch.randn(10, dtype=torch.complex64)
    kept = layer.state.clone()
    reducer = reducer_of(attempts=1)
    reducer.report(1.0)
    reducer.step(5, layer, None)
    assert layer.state.shape == layer.nu_log.shape < (10,)
    reducer.report(2.0)
    reducer.step(6, layer, None)
    assert torch.equal(layer.state, kept)


def test_states_that_had_not_begun_have_not_begun_again() -> None:
    layer = PackageLRU(3, 3, 10, rmin=0.5)
    layer.state = None
    reducer = reducer_of(attempts=1)
    reducer.report(1.0)
    reducer.step(5, layer, None)
    layer.state = torch.zeros(layer.nu_log.shape, dtype=torch.complex64)
    reducer.report(2.0)
    reducer.step(6, layer, None)
    assert layer.nu_log.shape == (10,)
    assert layer.state is None


def test_a_state_comes_back_to_the_device_of_its_layer() -> None:
    layer = PackageLRU(3, 3, 10, rmin=0.5)
    layer.state = torch.randn(10, dtype=torch.complex64)
    found = search(layer)
    snapshot = found.framework.snapshot(layer, None, found.handles)
    layer.state = None
    layer.to("meta")
    commit(found.framework.prepared_back(layer, None, snapshot, found.handles).steps)
    assert layer.state.device.type == "meta"


def test_buffers_that_are_views_come_back() -> None:
    model = nn.Sequential(PackageLRU(3, 3, 10, rmin=0.5), Counting())
    model[1].register_buffer("scales", torch.ones(1).expand(5))
    model[1].register_buffer("sparse", torch.eye(3).to_sparse())
    reducer = reducer_of(attempts=1)
    reducer.report(1.0)
    reducer.step(5, model, None)
    model[1].scales = torch.zeros(1).expand(5)
    reducer.report(2.0)
    reducer.step(6, model, None)
    assert model[0].nu_log.shape == (10,)
    assert torch.equal(model[1].scales, torch.ones(5))


def test_gradients_of_an_average_end_at_a_rollback() -> None:
    model = nn.Sequential(PackageLRU(3, 3, 10, rmin=0.5))
    average = copy.deepcopy(model)
    reducer = reducer_of(attempts=1)
    reducer.report(1.0)
    reducer.step(5, model, None, [average])
    reducer.report(2.0)
    average(torch.randn(4, 3)).sum().backward()
    reducer.step(6, model, None, [average])
    assert model[0].nu_log.shape == average[0].nu_log.shape == (10,)
    assert all(parameter.grad is None for parameter in average.parameters())


def test_keys_of_random_numbers_come_back() -> None:
    class Noisy(eqx.Module):
        layer: KernelLRU
        key: jax.Array
        rate: float
        name: str = eqx.field(static=True)

    rng = np.random.default_rng(5)
    model = Noisy(make_lru(lru_weights(rng, 10, 3), kind=KernelLRU), jax.random.key(7), 0.5, "a")
    reducer = reducer_of(attempts=1)
    reducer.report(1.0)
    cut, _ = reducer.step(5, model, None)
    cut = eqx.tree_at(lambda m: (m.key, m.rate), cut, (jax.random.key(8), 0.25))
    reducer.report(2.0)
    back, _ = reducer.step(6, cut, None)
    assert back.layer.nu_log.size == 10
    assert back.rate == 0.5
    assert jax.random.key_data(back.key).tolist() == jax.random.key_data(model.key).tolist()


# --- Failures leave everything as it was


def nan(run: TorchRun) -> None:
    run.model[2].C.data[0, 0] = NAN


def unstable(run: TorchRun) -> None:
    run.model[1].seq.Lambda.data[2] = 0.3 + 1j


@pytest.mark.parametrize(
    ("inject", "error"), [(nan, NonFiniteError), (unstable, UnstableSystemError)]
)
@pytest.mark.parametrize("watched", [False, True])
def test_a_failure_leaves_every_byte(inject: Any, error: type[Exception], watched: bool) -> None:
    run = TorchRun()
    reducer = reducer_of() if watched else InTrainingReducer(reducer_of().schedule, 4)
    if watched:
        reducer.report(1.0)
    for step in range(1, 4):
        run.train(step)
    inject(run)
    things = run.model, run.state, run.scheduler
    before, randomness = fingerprint(*things, standing(reducer)), torch.get_rng_state()
    with pytest.warns(UserWarning, match="no cut after step 5"):
        run.reduce(reducer, 5)
    assert fingerprint(*things, standing(reducer)) == before
    with pytest.raises(error):
        reduce_model(run.model, 4, optimizer=run.state)
    assert fingerprint(*things, standing(reducer)) == before
    assert torch.equal(torch.get_rng_state(), randomness)


@pytest.mark.parametrize("fault", ["nan", "unstable"])
def test_a_failure_leaves_every_byte_in_jax(fault: str) -> None:
    run, reducer = JaxRun(), reducer_of()
    reducer.report(1.0)
    run.train(1)
    where, value = (lambda m: m.second.nu_log), (NAN if fault == "nan" else -1e3)
    run.model = eqx.tree_at(where, run.model, where(run.model).at[0].set(value))
    before = fingerprint(run.model, run.state, standing(reducer))
    with pytest.warns(UserWarning, match=r"no cut after step 5.*`second`"):
        run.reduce(reducer, 5)
    assert fingerprint(run.model, run.state, standing(reducer)) == before
    with pytest.raises((NonFiniteError, UnstableSystemError)):
        reduce_model(run.model, 4, opt_state=run.state)
    assert fingerprint(run.model, run.state, standing(reducer)) == before


def test_the_fingerprint_sees_a_single_bit() -> None:
    run = TorchRun()
    run.train(1)
    before = fingerprint(run.model, run.state, run.scheduler)
    entry = run.state.state[run.model[1].seq.Lambda]["exp_avg"]
    entry.view(-1).view(torch.float32).view(torch.int32)[3] ^= 1
    assert fingerprint(run.model, run.state, run.scheduler) != before


# --- Saving and resuming


def saved_torch(run: TorchRun, reducer: InTrainingReducer, file: Any) -> None:
    states = {"model": run.model, "optimizer": run.state, "scheduler": run.scheduler}
    everything = {name: thing.state_dict() for name, thing in states.items()}
    torch.save({**everything, "reducer": reducer.state_dict()}, file)


def resumed_torch(reducer: InTrainingReducer, file: Any) -> TorchRun:
    saved = torch.load(file, weights_only=True)
    run = TorchRun(seed=77)
    load_reduced(run.model, saved["model"])
    run.state.load_state_dict(saved["optimizer"])
    run.scheduler.load_state_dict(saved["scheduler"])
    reducer.load_state_dict(saved["reducer"])
    return run


def saved_jax(run: JaxRun, reducer: InTrainingReducer, file: Any) -> None:
    leaves = [np.array(leaf) for leaf in jax.tree.leaves((run.model, run.state))]
    with open(file, "wb") as stream:
        pickle.dump((leaves, reducer.state_dict()), stream)


def resumed_jax(reducer: InTrainingReducer, file: Any) -> JaxRun:
    with open(file, "rb") as stream:
        leaves, state = pickle.load(stream)
    run = JaxRun(seed=77)
    structure = jax.tree.structure((run.model, run.state))
    run.model, run.state = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])
    reducer.load_state_dict(state)
    return run


RESUMED = [
    (7, {1: 1.0, 12: 0.9}),  # a cut on trial, confirmed later
    (7, {1: 1.0, 9: 4.0}),  # ... undone later
    (6, {1: 1.0, 6: 4.0, 13: 1.0}),  # saved in the step of the rollback
    (7, {7: 1.0, 11: 1.0}),  # an attempt that waited
    (11, {1: 1.0, 8: 1.0, 13: 5.0}),  # in the second trial
    (11, {1: 1.0, 12: 1.0, 14: 5.0}),  # ... which waits for the first to end
]


@pytest.mark.parametrize(
    ("kind", "stop_at", "metrics"),
    [
        # JAX compiles an update for each pair of orders.
        pytest.param(kind, *case, marks=[pytest.mark.slow] if kind == "jax" and i != 2 else [])
        for kind in RUNS
        for i, case in enumerate(RESUMED)
    ],
)
def test_a_resumed_run_goes_on_bit_for_bit(
    kind: str, stop_at: int, metrics: dict[int, float], tmp_path: Any
) -> None:
    def fresh() -> InTrainingReducer:
        reducer = reducer_of(HankelMass(0.7))
        reducer.trace = HankelTrace(4)
        return reducer

    save, resume = (saved_torch, resumed_torch) if kind == "torch" else (saved_jax, resumed_jax)
    run, reducer = RUNS[kind](), fresh()
    straight, straight_reducer = RUNS[kind](), fresh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: 0.0)
        if 1 not in metrics:
            for each, its in ((straight, straight_reducer), (run, reducer)):
                with pytest.warns(UserWarning, match="waits"):
                    go(each, its, range(1, 6), metrics)
            first = 6
        else:
            first = 1
        go(straight, straight_reducer, range(first, 19), metrics)
        go(run, reducer, range(first, stop_at + 1), metrics)
        assert reducer.events
        save(run, reducer, tmp_path / "checkpoint")
        again = fresh()
        resumed = resume(again, tmp_path / "checkpoint")
        go(resumed, again, range(stop_at + 1, 19), metrics)
    assert resumed.orders() == straight.orders()
    assert resumed.hash() == straight.hash()
    assert fingerprint(again) == fingerprint(straight_reducer)
    assert len(again.events) >= 2


def test_the_state_is_a_copy() -> None:
    run, reducer = TorchRun(), reducer_of()
    go(run, reducer, range(1, 6), {1: 1.0})
    state = reducer.state_dict()
    before = copy.deepcopy(state)
    reducer.report(9.0)
    run.train(6)
    run.reduce(reducer, 6)
    assert fingerprint(torch_like(state)) == fingerprint(torch_like(before))


def torch_like(state: Any) -> Any:
    return [state]


def test_states_of_other_reducers_are_refused() -> None:
    state = reducer_of().state_dict()
    others = {
        "rollback": reducer_of(tolerance=0.2),
        "trace": InTrainingReducer(
            reducer_of().schedule, 4, rollback=reducer_of().rollback, trace=HankelTrace(5)
        ),
    }
    for name, other in others.items():
        before = fingerprint(other)
        with pytest.raises(
            ArgumentError, match=rf"saved with {name} .*Build the reducer as it was"
        ):
            other.load_state_dict(state)
        assert fingerprint(other) == before
    with pytest.raises(ArgumentError, match="lacks events, metric"):
        reducer_of().load_state_dict({"model": 1})
    longer = HankelTrace(5), HankelTrace(6)
    one, two = (InTrainingReducer(reducer_of().schedule, trace=trace) for trace in longer)
    with pytest.raises(ArgumentError, match=r"HankelTrace\(5.*HankelTrace\(6"):
        two.load_state_dict(one.state_dict())


def test_events_come_back_from_json() -> None:
    run = TorchRun()
    reducer = InTrainingReducer(ReductionSchedule(10, attempts=1), ErrorBound(relative=0.5))
    run.reduce(reducer, 1)
    for event in reducer.events:
        back = ReductionEvent.from_dict(json.loads(json.dumps(event.to_dict(), allow_nan=False)))
        assert fingerprint([vars(back)]) == fingerprint([vars(event)])
        assert back == event
        assert hash(back) == hash(event)


def test_events_are_compared_by_their_values() -> None:
    run, reducer = TorchRun(), InTrainingReducer(ReductionSchedule(10, attempts=1), 4)
    run.reduce(reducer, 1)
    again = InTrainingReducer(ReductionSchedule(10, attempts=1), 4)
    again.load_state_dict(json.loads(json.dumps(reducer.state_dict())))
    assert again.events == reducer.events
    assert {*again.events} == {*reducer.events}
    first, second = reducer.events
    assert first != second
    assert first != "an event"
    changes = {
        "step": 2,
        "layer": "x",
        "tau": 0.1,
        "error_bound": None,
        "hsv": first.hsv[:-1],
        "poles_after": first.poles_after + 1e-9,
        "rolled_back": 3,
    }
    for name, value in changes.items():
        assert dataclasses.replace(first, **{name: value}) != first


def test_warnings_in_code_without_a_module() -> None:
    # exec without __name__, as some notebooks and configuration files do it.
    code = "reducer.step(5, layer, None)"
    with pytest.warns(UserWarning, match="waits") as caught:
        exec(code, {"reducer": reducer_of(), "layer": s5(False, False, 12)})
    assert caught[0].filename == "<string>"
