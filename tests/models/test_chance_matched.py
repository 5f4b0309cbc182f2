"""Old outputs are matched where a cut leads to chance: what is trained, what stays, what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax_modules import make_s4d
from s5 import S5
from torch import nn
from torch_modules import S4D

from ssmreduce import (
    Calibration,
    CutOptions,
    FixedOrder,
    InTrainingReducer,
    ReductionSchedule,
    calibrate,
    reduce_layer,
    reduce_model,
    sweep,
)
from ssmreduce.demo.lru import LRU
from ssmreduce.errors import ArgumentError, CalibrationWarning, CutRefusedError, SSMReduceError
from ssmreduce.frameworks import pytree_matching
from ssmreduce.models import matching
from ssmreduce.models.matching import MatchedCut
from ssmreduce.models.search import search

WHITE = CutOptions(method="white")
ABOVE = r"the cut takes the loss on what was held out from .* Keep more states"
HELD_OUT = (3, 7)
LAYER = "layer.seq."


class Model(nn.Module):
    """Scores of four classes, from the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.layer, self.decoder = nn.Linear(2, 4), S5(4, 12), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (N, L, 2) to (N, 4)."""
        return self.decoder(self.layer(self.encoder(inputs))[:, -1])


@pytest.fixture(scope="module")
def learned() -> Model:
    """Sure of itself, by states that a cut to one loses."""
    torch.manual_seed(10)
    model = Model()
    inputs = torch.randn(128, 20, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.layer.seq.log_step.fill_(-1.5)
        model.layer.seq.D.zero_()
        model.decoder.weight.mul_(200.0)
        model.decoder.bias.sub_(model(inputs).mean(0))
    return model


@pytest.fixture(scope="module")
def pairs(learned: Model) -> list[Any]:
    """Batches whose labels the model knows."""
    inputs = torch.randn(128, 20, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [*zip(inputs.split(16), learned(inputs).argmax(1).split(16), strict=True)]


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def adam_of(model: nn.Module) -> torch.optim.Optimizer:
    """With moments."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    (model(torch.ones(2, 3, 2)) / 200.0).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def cut(model: nn.Module, batches: Any, above_chance: Any, **options: Any) -> InTrainingReducer:
    """Cut to one state, by batches that the loss and `forward` take."""
    followers = options.pop("followers", None)
    own = {"loss": loss_of, **options}
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        FixedOrder(1),
        data=lambda model: calibrate(model, batches, **own),
        above_chance=above_chance,
        options=WHITE,
    )
    optimizer = adam_of(model)
    reducer.optimizer = optimizer
    reducer.step(1, model, optimizer, followers)
    return reducer


def moments_of(reducer: Any) -> list[Any]:
    return [value for state in reducer.optimizer.state.values() for value in state.values()]


def is_same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def plain(learned: Model, pairs: Any) -> tuple[Any, Any]:
    """The model and its reducer after a cut alone."""
    model = copy.deepcopy(learned)
    with pytest.warns(CalibrationWarning, match=ABOVE):
        return model, cut(model, pairs, "warn")


@pytest.fixture(scope="module")
def matched(learned: Model, pairs: Any) -> tuple[Any, Any]:
    """The same after one whose outputs were matched, without a warning."""
    model = copy.deepcopy(learned)
    return model, cut(model, pairs, "match")


def by_hand(model: nn.Module, uncut: nn.Module, pairs: Any) -> dict[str, torch.Tensor]:
    """A hundred steps of Adam on the squared error of the outputs, by the layer's weights alone."""
    model = copy.deepcopy(model).eval()
    layer = [p for name, p in model.named_parameters() if name.startswith(LAYER)]
    optimizer = torch.optim.Adam(layer, 1e-2)
    fitting = [inputs for k, (inputs, _) in enumerate(pairs) if k not in HELD_OUT]
    with torch.no_grad():
        targets = [uncut(inputs) for inputs in fitting]
    for step in range(100):
        optimizer.zero_grad()
        at = step % len(fitting)
        nn.functional.mse_loss(model(fitting[at]), targets[at]).backward()
        optimizer.step()
    return model.state_dict()


def test_the_layer_that_was_cut_matches_the_old_outputs(
    learned: Model, pairs: Any, plain: Any, matched: Any
) -> None:
    model, reducer = matched
    (event,), (other,) = reducer.events, plain[1].events
    assert event.loss_before < event.constant_loss < event.unmatched_loss
    assert event.loss_after < event.constant_loss
    assert event.unmatched_loss == other.loss_after
    assert other.unmatched_loss is None
    with torch.no_grad():
        own = [float(loss_of(model, pairs[k])) for k in HELD_OUT]
    assert event.loss_after == pytest.approx(np.mean(own), rel=1e-5)
    assert event.error_bound is None
    uncut = copy.deepcopy(learned)
    adam_of(uncut)
    for name, value in by_hand(plain[0], uncut, pairs).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-3, msg=name)
    (part,) = reducer.last_cut.values()
    assert part.reduction.method == "balanced truncation, outputs matched"
    assert part.measured_error > 0.0
    assert pickle.loads(pickle.dumps(part.cut)).new_order == 1
    again = InTrainingReducer(
        ReductionSchedule.at(1), FixedOrder(1), above_chance="match", options=WHITE
    )
    again.load_state_dict(reducer.state_dict())
    assert again.events == reducer.events


def test_nothing_else_changes(plain: Any, matched: Any) -> None:
    model, reducer = matched
    for name, value in plain[0].state_dict().items():
        if not name.startswith(LAYER):
            assert torch.equal(model.state_dict()[name], value), name
    assert is_same(moments_of(reducer), moments_of(plain[1]))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Noisy(Model):
    """Counts its calls, and drops."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (N, L, 2) to (N, 4)."""
        self.calls += 1
        return super().forward(self.drop(inputs + 0.0 * torch.rand(())))


def test_generators_buffers_and_modes_stay(learned: Model, pairs: Any) -> None:
    model = Noisy()
    model.load_state_dict({**learned.state_dict(), "calls": model.calls})
    model.encoder.eval()
    drawn: list[torch.Tensor] = []

    def calibrated(model: Any, batch: Any) -> torch.Tensor:
        drawn.append(torch.get_rng_state())
        return model(batch[0])

    reducer = cut(model, pairs, "match", forward=calibrated)
    assert reducer.events[0].unmatched_loss is not None
    assert len(drawn) == 6 + 100
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert float(model.calls) == 1.0  # of the step with which the optimizer began
    assert [part.training for part in (model, model.encoder)] == [True, False]


@pytest.mark.parametrize("rate", [1e6, -1e-3])
def test_what_is_no_better_is_not_taken(
    learned: Model, pairs: Any, plain: Any, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "MATCHING_RATES", (rate,) * 100)
    model = copy.deepcopy(learned)
    not_taken = "the outputs of the uncut model.* which stays|and the cut stays as it is"
    with (
        pytest.warns(CalibrationWarning, match=ABOVE),
        pytest.warns(CalibrationWarning, match=not_taken),
    ):
        reducer = cut(model, pairs, "match")
    assert reducer.events[0].unmatched_loss is None
    assert is_same(model.state_dict().values(), plain[0].state_dict().values())


@pytest.mark.parametrize("through", ["reduce_model", "reducer"])
def test_a_cut_that_keeps_most_matches_where_that_is_asked(
    learned: Model, pairs: Any, through: str
) -> None:
    model, white = copy.deepcopy(learned), CutOptions(method="white", match=True)
    data = calibrate(model, pairs, loss=loss_of)
    if through == "reduce_model":
        losses = reduce_model(model, 3, data=data, options=white).report["layer.seq"].losses
        assert losses is not None
        before, after, constant, unmatched = (
            losses.before,
            losses.after,
            losses.constant,
            losses.unmatched,
        )
    else:
        reducer = InTrainingReducer(
            ReductionSchedule.at(1), FixedOrder(3), data=lambda _: data, options=white
        )
        reducer.step(1, model, adam_of(model))
        (event,) = reducer.events
        before, after = event.loss_before, event.loss_after
        constant, unmatched = event.constant_loss, event.unmatched_loss
    assert before < after < unmatched < constant
    held_out = [loss_of(model, pairs[k]).item() for k in HELD_OUT]
    assert np.mean(held_out) == pytest.approx(after, rel=1e-4)
    if through == "reduce_model":
        assert is_same(model.decoder.state_dict().values(), learned.decoder.state_dict().values())


def test_what_cannot_be_matched_is_refused(learned: Model, pairs: Any) -> None:
    model, match = copy.deepcopy(learned), CutOptions(match=True)
    optimizer = adam_of(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match="`match` is true, but there are no data"):
        reduce_model(model, 4, options=match)
    with pytest.raises(CutRefusedError, match="no loss on what was held out is known"):
        reduce_model(model, 4, data=calibrate(model, pairs), options=match)
    with pytest.raises(ArgumentError, match="a layer alone has no outputs of a model"):
        reduce_layer(model.layer, 4, options=match)
    with pytest.raises(ArgumentError, match="no data"):
        InTrainingReducer(ReductionSchedule.at(1), options=match).step(1, model, optimizer)
    with pytest.raises(SSMReduceError, match="`match`"):
        CutOptions(match="yes")  # type: ignore[arg-type]
    assert is_same(model.state_dict().values(), before.values())


@torch.no_grad()
def without_graph(model: Any, batch: Any) -> torch.Tensor:
    """As functions that predict often are."""
    scores: torch.Tensor = model(batch[0])
    return scores


def with_states(model: Any, batch: Any) -> Any:
    """Scores, and something of the size of the states, which would broadcast."""
    return model(batch[0]), model.layer.seq.log_step


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"forward": lambda model, batch: model(batch["x"])}, "`forward` ends in .*TypeError"),
        ({"forward": lambda model, batch: batch[1]}, "`forward` returns no array"),
        ({"forward": without_graph}, "`forward` ends in .*RuntimeError.*with a graph"),
        ({"forward": with_states}, r"`forward` returns shapes .*\(1,\)\] after the cut"),
        ({"loss": None}, "no loss on what was held out is known"),
    ],
)
def test_what_cannot_be_matched_is_not_cut(
    learned: Model, pairs: Any, options: Any, words: str
) -> None:
    model, before = copy.deepcopy(learned), copy.deepcopy(learned)
    adam_of(before)
    with pytest.warns(UserWarning, match=f"no cut after step 1, .*{words}"):
        assert cut(model, pairs, "match", **options).events == []
    assert is_same(model.state_dict().values(), before.state_dict().values())


def test_inputs_alone_match_nothing() -> None:
    layer = LRU(8, 4, rng=np.random.default_rng(0))
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        FixedOrder(2),
        data=lambda _: Calibration.of_inputs({"model": np.ones((8, 5, 4))}),
        above_chance="match",
        options=WHITE,
    )
    with pytest.warns(UserWarning, match="no loss on what was held out is known"):
        assert reducer.step(1, layer, None)[0] is layer


def test_an_interrupted_match_leaves_the_model(learned: Model, pairs: Any) -> None:
    model, before = copy.deepcopy(learned), copy.deepcopy(learned)
    adam_of(before)
    calls = iter(range(6 + 50))

    def forward(model: Any, batch: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return model(batch[0])

    drawn = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        cut(model, pairs, "match", forward=forward)
    assert is_same(model.state_dict().values(), before.state_dict().values())
    assert torch.equal(drawn, torch.get_rng_state())


class Both(nn.Module):
    """A student, and a teacher that is a copy of it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.student, self.teacher = copy.deepcopy(model), copy.deepcopy(model)
        self.teacher.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The student's scores."""
        return self.student(inputs) + 0.0 * self.teacher(inputs)


def test_copies_follow(learned: Model, pairs: Any) -> None:
    both = Both(learned)
    follower = copy.deepcopy(both)
    reducer = cut(both, pairs, "match", followers=[follower])
    assert [event.unmatched_loss is not None for event in reducer.events] == [True, True]
    student, *others = (
        [p for name, p in part.named_parameters() if name.startswith(LAYER)]
        for part in (both.student, both.teacher, follower.student, follower.teacher)
    )
    for other in others:
        for one, same in zip(student, other, strict=True):
            assert one.shape == same.shape
            torch.testing.assert_close(one, same, rtol=0.0, atol=0.02)


# --- JAX


class Classes(eqx.Module):
    """Scores of classes from the last step, of (N, L, 4)."""

    layer: LRU
    decoder: eqx.nn.Linear

    def __call__(self, inputs: Any) -> Any:
        return jax.vmap(self.decoder)(self.layer(inputs)[:, -1])


@eqx.filter_jit
def cross_entropy(model: Any, batch: Any) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1])
    return jnp.mean(losses)


@pytest.fixture(scope="module")
def jax_problem() -> tuple[Classes, list[Any]]:
    layer = LRU(16, 4, rng=np.random.default_rng(4))
    model = Classes(layer, eqx.nn.Linear(4, 4, key=jax.random.key(4)))
    changed = (20.0 * model.decoder.weight, 0.0 * layer.D)
    model = eqx.tree_at(lambda tree: (tree.decoder.weight, tree.layer.D), model, changed)
    inputs = np.random.default_rng(1).normal(size=(64, 20, 4)).astype(np.float32)
    labels = np.array(jnp.argmax(eqx.filter_jit(model)(inputs), axis=-1))
    return model, [*zip(np.split(inputs, 4), np.split(labels, 4), strict=True)]


def cut_jax(model: Classes, batches: Any, above_chance: Any, **options: Any) -> tuple[Any, Any]:
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        FixedOrder(1),
        data=lambda model: calibrate(model, batches, **options),
        above_chance=above_chance,
        options=WHITE,
    )
    return reducer.step(1, model, None)[0], reducer


@pytest.mark.slow
def test_equinox_models_match_old_outputs(jax_problem: Any) -> None:
    model, pairs = jax_problem
    # As a loader of torch gives them.
    given = [tuple(map(torch.from_numpy, pair)) for pair in pairs]

    def loss(model: Any, batch: Any) -> Any:
        return cross_entropy(model, tuple(jnp.asarray(part.numpy()) for part in batch))

    def forward(model: Any, batch: Any) -> Any:
        return {"scores": model(jnp.asarray(batch[0])), "count": 4}

    with pytest.warns(CalibrationWarning):
        plain, _ = cut_jax(model, given, "warn", loss=loss, forward=forward)
    with pytest.warns(CalibrationWarning):  # better, and not good enough
        matched, reducer = cut_jax(model, given, "match", loss=loss, forward=forward)
    (event,) = reducer.events
    assert event.loss_before < event.constant_loss < event.loss_after < event.unmatched_loss
    assert event.loss_after == pytest.approx(float(cross_entropy(matched, pairs[3])), rel=1e-4)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, plain.decoder, matched.decoder))

    optimizer, layer = optax.adam(1e-2), plain.layer
    state = optimizer.init(eqx.filter(layer, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(layer: Any, state: Any, inputs: Any) -> Any:
        def error(layer: Any) -> Any:
            found = eqx.tree_at(lambda tree: tree.layer, plain, layer)(inputs)
            return jnp.mean((found - model(inputs)) ** 2)

        changes, state = optimizer.update(eqx.filter_grad(error)(layer), state)
        return eqx.apply_updates(layer, changes), state

    for number in range(100):
        layer, state = update(layer, state, pairs[number % 3][0])
    for own, other in zip(jax.tree.leaves(matched.layer), jax.tree.leaves(layer), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-2, atol=1e-3)


def test_complex_weights_descend_in_both_parts() -> None:
    model = make_s4d(np.random.default_rng(0), 4, 3, "float32")
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(16, 20, 3)), jnp.float32)
    handles = search(model, CutOptions()).meant

    @eqx.filter_jit
    def forward(model: Any, batch: Any) -> Any:
        return jax.vmap(model)(batch)

    (target,) = pytree_matching.outputs(model, forward, [inputs])
    other = eqx.tree_at(lambda tree: tree.kernel.C, model, 0.7j * model.kernel.C)
    found = pytree_matching.matched(other, handles, forward, [inputs], [target], (1e-2,) * 100)

    def error(model: Any) -> float:
        return float(jnp.mean((forward(model, inputs) - target[0]) ** 2))

    assert error(found) < 0.2 * error(other)


def test_a_forward_that_cannot_be_compiled_is_refused(jax_problem: Any) -> None:
    model, pairs = jax_problem

    def forward(model: Any, batch: Any) -> Any:
        return model(np.asarray(batch[0]))

    with pytest.warns(UserWarning, match="`forward` ends in .*TracerArrayConversionError"):
        same, _ = cut_jax(model, pairs, "match", loss=cross_entropy, forward=forward)
    assert same is model


@pytest.mark.parametrize("method", ["white", "white refit", "balanced", "selected"])
@pytest.mark.parametrize("make", [lambda: S5(6, 24).seq, lambda: S4D(6, 24).kernel])
def test_cuts_of_every_kind_can_be_trained(make: Any, method: Any) -> None:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).normal(size=(64, 60, 6)).cumsum(axis=1)
    data = Calibration.of_inputs({"model": inputs})
    options = CutOptions(method=method)
    cut = reduce_layer(make(), 4, data=data, options=options).cut
    same = MatchedCut.of(cut, cut.new_weights)
    assert same.error_bound is None
    assert same.measured_error == pytest.approx(cut.measured_error, rel=1e-6)
    assert same.reduction.method == f"{cut.reduction.method}, outputs matched"


@pytest.mark.slow
def test_a_model_of_jax_matches_with_a_follower_and_in_a_sweep(jax_problem: Any) -> None:
    model, pairs = jax_problem
    data = calibrate(model, pairs, loss=cross_entropy)
    options = CutOptions(method="white", match=True, uniform=True)
    other = jax.tree.map(lambda leaf: leaf, model)
    with pytest.warns(CalibrationWarning):  # better, and not good enough
        made = reduce_model(model, 1, data=data, followers=[other], options=options)
    (losses,) = (part.losses for part in made.report.values())
    assert losses is not None
    assert losses.unmatched is not None
    assert losses.after < losses.unmatched
    assert losses.after == pytest.approx(float(cross_entropy(made.model, pairs[3])), rel=1e-4)
    (follower,) = made.followers
    for own, same in zip(jax.tree.leaves(made.model), jax.tree.leaves(follower.model), strict=True):
        np.testing.assert_allclose(own, same, rtol=1e-5, atol=1e-6)
    with pytest.warns(CalibrationWarning):
        (row,) = sweep(model, [1], data=data, options=options).rows
    assert row.loss == pytest.approx(losses.after, rel=1e-4)
