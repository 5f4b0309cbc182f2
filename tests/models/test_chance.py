"""The loss just before and just after a cut, and that of a constant prediction: warnings, refusals."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from s5 import S5
from samples import slow_inputs
from torch import nn
from torch_modules import S4D

from ssmreduce import (
    CutOptions,
    FixedOrder,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    calibrate,
    reduce_model,
)
from ssmreduce.errors import ArgumentError, CalibrationWarning, ShapeError
from ssmreduce.frameworks.torch_constant import constant_losses
from ssmreduce.models.runs import HeldOutLoss
from ssmreduce.models.search import search

TOO_FEW = pytest.mark.filterwarnings(
    "ignore:layer .* was fitted:ssmreduce.errors.CalibrationWarning"
)
COUNT = 16


class Model(nn.Module):
    """Says of two signs which they are, from all steps."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.layer, self.decoder = nn.Linear(2, 4), S5(4, 12), nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (N, L, 2) to (N, 4)."""
        return self.decoder(self.layer(self.encoder(inputs)).mean(1))


def batches(count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.tensor(slow_inputs(COUNT * count, 20, 2, seed=1), dtype=torch.float32)
    signs = inputs.mean(1) > 0
    return list(zip(inputs.split(COUNT), (2 * signs[:, 0] + signs[:, 1]).split(COUNT), strict=True))


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def learned() -> Model:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(100):
        optimizer.zero_grad()
        loss_of(model, batches()[step % 8]).backward()
        optimizer.step()
    return model


# --- The loss of a constant prediction


def test_constant_predictions_are_zeros_and_means() -> None:
    model, (batch, *_) = Model(), batches()
    handles = search(model, CutOptions()).meant
    found = constant_losses(model, handles, lambda model: loss_of(model, batch))
    with torch.no_grad():
        mean = model(batch[0]).mean(0, keepdim=True).expand(COUNT, 4)
        by_hand = float(nn.functional.cross_entropy(mean, batch[1]))
    assert found == {"zero": pytest.approx(np.log(4.0)), "mean": pytest.approx(by_hand)}
    assert not any(part._forward_hooks for part in model.modules())


class Returning(nn.Module):
    """Returns its loss beside what it puts out, as models of Hugging Face do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
        """Loss and outputs."""
        outputs = self.inner(inputs)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


def test_constant_predictions_where_the_loss_is_inside() -> None:
    inner, (batch, *_) = Model(), batches()
    expected = constant_losses(
        inner, search(inner, CutOptions()).meant, lambda model: loss_of(model, batch)
    )
    model = Returning(inner)
    handles = search(model, CutOptions()).meant
    assert expected
    assert constant_losses(model, handles, lambda model: model(*batch)["loss"]) == expected
    # As a training step does, which calls a part of the module.
    assert constant_losses(model, handles, lambda model: loss_of(model.inner, batch)) == expected


def test_constant_predictions_of_containers_and_kernels() -> None:
    class Tuples(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = S4D(2, 8)

        def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> Any:
            out = self.layer(inputs.transpose(1, 2))
            return [out, (mask, torch.return_types.max((out, mask)))]

    model, inputs, mask = Tuples(), batches()[0][0], torch.ones(COUNT)
    handles = search(model, CutOptions()).meant

    def run(model: nn.Module) -> torch.Tensor:
        (out, (given, pair)), ones = model(inputs, mask), torch.ones(())
        return (out - 1.0).square().mean() + pair.values.square().mean() + 0.0 * given.mean() * ones

    found = constant_losses(model, handles, run)
    assert found["zero"] == pytest.approx(1.0)
    assert torch.equal(mask, torch.ones(COUNT))


def test_there_is_no_constant_prediction_of_one_sequence_at_a_time() -> None:
    model, (batch, *_) = Model(), batches()
    handles = search(model, CutOptions()).meant

    def each(model: nn.Module) -> torch.Tensor:
        outputs = torch.cat([model(sequence[None]) for sequence in batch[0]])
        return nn.functional.cross_entropy(outputs, batch[1])

    assert constant_losses(model, handles, each) == {}
    few = constant_losses(
        model, handles, lambda model: loss_of(model, (batch[0][:4], batch[1][:4]))
    )
    assert [*few] == ["zero"]  # a mean over four tells much of each


@TOO_FEW
def test_a_loss_need_not_take_zeros(learned: Model) -> None:
    def likelihood(model: Model, batch: Any) -> torch.Tensor:
        spread = torch.distributions.HalfNormal(model(batch[0]).abs(), validate_args=True)
        return -spread.log_prob(torch.ones(())).mean()

    data = calibrate(learned, batches(), loss=likelihood)
    report = reduce_model(copy.deepcopy(learned), 4, data=data).report
    assert report["layer.seq"].losses is not None
    assert report["layer.seq"].losses.constant is None


# --- A cut of a model


@TOO_FEW
def test_a_model_at_chance_is_told() -> None:
    model = Model(3)
    with pytest.warns(CalibrationWarning, match=r"the model is at chance when it is cut"):
        result = reduce_model(model, 4, data=calibrate(model, batches(), loss=loss_of))
    losses = result.report["layer.seq"].losses
    assert losses is not None
    assert losses.before >= losses.constant


@TOO_FEW
def test_a_cut_that_loses_what_was_learned_is_told(learned: Model) -> None:
    model = copy.deepcopy(learned)
    data = calibrate(model, batches(), loss=loss_of)
    reduce_model(copy.deepcopy(model), 6, data=data)  # warnings are errors
    with torch.no_grad():
        model.layer.seq.C.mul_(-30.0)  # confident, and wrong
    runs = data.runs
    assert runs is not None
    with pytest.warns(CalibrationWarning, match="the model is at chance"):
        result = reduce_model(model, 6, data=data)
    losses = result.report["layer.seq"].losses
    assert losses is not None
    assert losses.after == pytest.approx(runs.held_out_loss.of(search(model, CutOptions())))


def test_a_loss_may_differentiate(learned: Model) -> None:
    def penalised(model: Model, batch: Any) -> torch.Tensor:
        inputs = batch[0].clone().requires_grad_()
        loss = loss_of(model, (inputs, batch[1]))
        wanted = [inputs, model.encoder.weight]
        by_inputs, by_weights = torch.autograd.grad(loss, wanted, create_graph=True)
        return loss + by_inputs.square().sum() + by_weights.square().sum()

    model = copy.deepcopy(learned)
    losses = (
        reduce_model(model, 6, data=calibrate(model, batches(), loss=penalised))
        .report["layer.seq"]
        .losses
    )
    assert losses is not None
    own = [float(penalised(model.eval(), batches()[k]).detach()) for k in (3, 7)]
    assert losses.after == pytest.approx(np.mean(own), rel=1e-5)
    assert losses.constant is not None  # the derivative by what comes before it is zero
    assert losses.constant == pytest.approx(np.log(4.0), rel=0.01)
    assert all(p.grad is None for p in model.parameters())


def test_a_short_batch_counts_by_its_sequences(learned: Model) -> None:
    given = batches()
    given[7] = (given[7][0][:3], given[7][1][:3])
    model = copy.deepcopy(learned)
    report = reduce_model(model, 6, data=calibrate(model, given, loss=loss_of)).report
    losses = report["layer.seq"].losses
    assert losses is not None
    whole = [torch.cat(parts) for parts in zip(given[3], given[7], strict=True)]
    assert losses.after == pytest.approx(float(loss_of(model.eval(), whole).detach()), rel=1e-5)


# --- In training


def step_with(reducer: InTrainingReducer, model: nn.Module, step: int = 1) -> None:
    reducer.step(step, model, torch.optim.SGD(model.parameters(), 1e-2))


def with_data(order: int = 6, **options: Any) -> InTrainingReducer:
    return InTrainingReducer(
        ReductionSchedule.at(1, 2),
        FixedOrder(order),
        data=lambda model: calibrate(model, batches(), loss=loss_of),
        **options,
    )


@TOO_FEW
def test_events_say_what_a_cut_does_to_the_loss(learned: Model) -> None:
    model, reducer = copy.deepcopy(learned), with_data(options=CutOptions(method="white"))
    held_out = [batches()[k] for k in (3, 7)]

    def by_hand() -> float:
        with torch.no_grad():
            return float(np.mean([float(loss_of(model, batch)) for batch in held_out]))

    before = by_hand()
    step_with(reducer, model)
    (event,) = reducer.events
    assert event.loss_before == pytest.approx(before, rel=1e-5)
    assert event.loss_after == pytest.approx(by_hand(), rel=1e-5)
    assert event.loss_after < event.constant_loss
    again = with_data(options=CutOptions(method="white"))
    again.load_state_dict(reducer.state_dict())
    assert again.events == reducer.events
    assert event.method == "white"
    assert event.output_error > 0.0
    assert "method='white', output_error=" in repr(event)
    for name in ("loss_before", "loss_after", "constant_loss", "output_error", "method"):
        state = reducer.state_dict()
        state["events"][0][name] = float("nan")
        with pytest.raises(ArgumentError, match=rf'\["{name}"\]'):
            again.load_state_dict(state)


@TOO_FEW
def test_a_cut_above_chance_is_refused_where_a_policy_says_so(learned: Model) -> None:
    model, reducer = Model(3), with_data(above_chance="refuse")
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(
        UserWarning, match=r"no cut after step 1, the next .* constant prediction has"
    ):
        step_with(reducer, model)
    assert reducer.events == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.load_state_dict(learned.state_dict())
    step_with(reducer, model, 2)  # it has learned since
    assert [event.step for event in reducer.events] == [2]


@TOO_FEW
def test_a_policy_compares_just_before_with_just_after(learned: Model) -> None:
    model = copy.deepcopy(learned)
    white = CutOptions(method="white")
    strict = with_data(2, options=white, rollback=RollbackPolicy(at_cut=0.0))
    with pytest.warns(UserWarning, match=r"no cut after step 1.*at most 0 more, `at_cut`"):
        step_with(strict, model)
    assert strict.events == []
    loose = with_data(2, options=white, rollback=RollbackPolicy(at_cut=100.0), above_chance="warn")
    step_with(loose, model)  # waits for no metric
    assert len(loose.events) == 1
    state = loose.state_dict()
    assert state["trial"] is None
    with_data(2, options=white, rollback=RollbackPolicy(at_cut=100.0)).load_state_dict(state)
    with pytest.raises(ArgumentError, match="saved with rollback"):
        with_data(2, options=white, rollback=RollbackPolicy(at_cut=1.0)).load_state_dict(state)
    with pytest.raises(ArgumentError, match="no rollback policy with a tolerance"):
        loose.report(1.0)
    both = with_data(2, rollback=RollbackPolicy(0.1, at_cut=100.0))
    both.report(1.0)
    step_with(both, copy.deepcopy(learned))
    assert both.state_dict()["trial"] is not None


def test_what_judges_a_cut_has_to_be_known(learned: Model) -> None:
    for options in ({"above_chance": "refuse"}, {"rollback": RollbackPolicy(at_cut=1.0)}):
        reducer = with_data(**options)
        reducer.data = lambda model: calibrate(model, batches())
        with pytest.warns(UserWarning, match="no cut after step 1.*no loss on what was held out"):
            step_with(reducer, copy.deepcopy(learned))
    unknown = with_data(above_chance="refuse")
    whole = unknown.data
    assert whole is not None

    def one_by_one(model: Any, batch: Any) -> torch.Tensor:
        return loss_of(lambda inputs: torch.cat([model(each[None]) for each in inputs]), batch)

    unknown.data = lambda model: calibrate(model, batches(), loss=one_by_one)
    with pytest.warns(UserWarning, match="constant prediction, by which .* cannot be had"):
        step_with(unknown, copy.deepcopy(learned))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"above_chance": "refuse"}, "`above_chance` is 'refuse', but there are no data"),
        ({"above_chance": "match"}, "`above_chance` is 'match', but there are no data"),
        ({"rollback": RollbackPolicy(at_cut=1.0)}, "`at_cut` of `rollback` is 1.0, but there are"),
        ({"options": CutOptions(method="selected")}, "`method` is 'selected', but there are no"),
    ],
)
def test_what_needs_data_is_told_at_the_first_step(options: Any, told: str, learned: Model) -> None:
    reducer = InTrainingReducer(ReductionSchedule.at(100), FixedOrder(6), **options)
    with pytest.raises(ArgumentError, match=told):
        step_with(reducer, copy.deepcopy(learned))


@pytest.mark.parametrize("detached", ["detach", "no_grad"])
def test_a_loss_without_a_graph_is_refused(detached: str, learned: Model) -> None:
    def loss(model: Any, batch: Any) -> torch.Tensor:
        if detached == "detach":
            return loss_of(model, batch).detach()
        with torch.no_grad():
            return loss_of(model, batch)

    with pytest.raises(ArgumentError, match="`loss` returned a tensor without a graph"):
        calibrate(learned, batches(), loss=loss)


def test_inference_mode_around_a_calibration_changes_nothing(learned: Model) -> None:
    given = batches()
    expected = calibrate(learned, given, loss=loss_of).to_arrays()
    with torch.inference_mode():
        found = calibrate(learned, given, loss=loss_of).to_arrays()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_mask_that_leaves_nothing_is_refused(learned: Model) -> None:
    with pytest.raises(ShapeError, match="entries of a batch that are all false"):
        calibrate(learned, batches(), mask=lambda batch: np.zeros(batch[0].shape[:2], bool))


def test_a_loss_that_is_no_number_stops_a_cut(monkeypatch: Any, learned: Model) -> None:
    reducer, model = with_data(options=CutOptions(method="white")), copy.deepcopy(learned)
    monkeypatch.setattr(HeldOutLoss, "of", lambda *_: float("inf"))
    with pytest.warns(UserWarning, match="no cut after step 1.*is inf just before the cut"):
        step_with(reducer, model)
    assert reducer.events == []


def test_bad_arguments() -> None:
    for wrong in ("no", None, True, 0.1):
        with pytest.raises(ArgumentError, match="`above_chance` is"):
            with_data(above_chance=wrong)
    for wrong in (-1.0, float("nan"), "1", SimpleNamespace()):
        with pytest.raises(ArgumentError, match="`at_cut` is"):
            RollbackPolicy(at_cut=wrong)
    with pytest.raises(ArgumentError, match="`tolerance` and `at_cut` are None"):
        RollbackPolicy()
    assert repr(RollbackPolicy(0.1)) == "RollbackPolicy(tolerance=0.1, mode='min', patience=1)"
