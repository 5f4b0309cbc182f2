"""The callbacks in the real trainers of Lightning and transformers, and scalars read back by TensorBoard."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from fingerprints import fingerprint
from lightning.pytorch.callbacks import EMAWeightAveraging
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter
from torch_samples import s5

from ssmreduce import (
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    reduce_model,
)
from ssmreduce.errors import ArgumentError, DataFileError, DistributedError, OptimizerStateError
from ssmreduce.models.checkpoint import accept_reduced
from ssmreduce.training.lightning import ReductionCallback as LightningCallback
from ssmreduce.training.transformers import ReductionCallback as TransformersCallback

pytestmark = [
    # Lightning's advice on workers and loggers, and its own use of a deprecated class of torch.
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
]

STEPS = 12
"""Updates of a run: four for each pass over 32 samples in batches of 4, two batches for an update."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()


def make_reducer(**options: Any) -> InTrainingReducer:
    """Attempts after updates 3, 6, 9 and 12."""
    return InTrainingReducer(ReductionSchedule(STEPS, stop=1.0, attempts=4), 5, **options)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), s5(False, False, 12), nn.Linear(3, 1))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(32, 10, 2, generator=torch.Generator().manual_seed(3))
    return inputs, inputs.cumsum(1)[..., :1]


def is_cut(model: nn.Module) -> bool:
    return any(part.shape[-1] == 5 for name, part in model.named_parameters() if "Lambda" in name)


def by_hand(reducer: InTrainingReducer, metrics: dict[int, float]) -> nn.Sequential:
    """The run that the trainers should make: gradients of two batches, then an update."""
    model = network(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    inputs, targets = samples()
    for step in range(1, STEPS + 1):
        for half in range(2):
            start = (8 * (step - 1) + 4 * half) % 32
            loss = torch.mean((model(inputs[start : start + 4]) - targets[start : start + 4]) ** 2)
            (loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        reducer.step(step, model, optimizer)
        if step in metrics:
            reducer.report(metrics[step])
    return model


def assert_same_weights(one: nn.Module, two: nn.Module) -> None:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


# --- Lightning


class Module(pl.LightningModule):
    """Logs a metric that is bad for as long as a cut stands, after so many updates."""

    def __init__(self, seed: int = 0, *, bad_from: int = 0, optimizers: int = 1) -> None:
        super().__init__()
        self.net, self.number, self.bad_from = network(seed), optimizers, bad_from
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, index: int) -> Any:
        return torch.mean((self.net(batch[0]) - batch[1]) ** 2)

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("watched", 1.0 + 5.0 * (is_cut(self) and self.global_step >= self.bad_from))

    def configure_optimizers(self) -> Any:
        made = [
            torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.0) for _ in range(self.number)
        ]
        return made if self.number > 1 else made[0]


def fit(
    module: Module, reducer: InTrainingReducer, folder: Path, *, steps: int = STEPS, **options: Any
) -> pl.Trainer:
    metric = options.pop("metric", None if reducer.rollback is None else "watched")
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=2 if module.number == 1 else 1,
        val_check_interval=options.pop("val_check_interval", 2),
        num_sanity_val_steps=2,
        default_root_dir=folder,
        callbacks=[
            *options.pop("callbacks", ()),
            LightningCallback(reducer, metric=metric, followers=options.pop("followers", None)),
        ],
    )
    data = TensorDataset(*samples())
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 16), **options)
    return trainer


def test_lightning_cuts_at_updates(tmp_path: Path) -> None:
    module, reducer = Module(), make_reducer()
    fit(module, reducer, tmp_path)
    assert [(event.step, event.layer, event.new_order) for event in reducer.events] == [
        (3, "net.1.seq", 5)
    ]
    assert_same_weights(module.net, by_hand(make_reducer(), {}))
    assert not module._load_state_dict_pre_hooks


def test_lightning_reports_and_undoes(tmp_path: Path) -> None:
    def options() -> InTrainingReducer:
        return make_reducer(rollback=RollbackPolicy(0.5, patience=2))

    reducer, by_itself = options(), options()
    module = Module()
    fit(module, reducer, tmp_path)
    # A validation is in time for the next update.
    expected = by_hand(by_itself, {1: 1.0, 2: 1.0, 3: 6.0, 4: 6.0})
    assert [(event.step, event.rolled_back) for event in reducer.events] == [(3, 5)]
    assert by_itself.events[0].rolled_back == 5
    assert_same_weights(module.net, expected)
    confirmed = options()
    fit(Module(bad_from=4), confirmed, tmp_path)
    assert [(event.step, event.rolled_back) for event in confirmed.events] == [(3, None)]
    # The sanity check before the first update is no report.
    with pytest.warns(UserWarning, match="attempt due after step 3 waits"):
        fit(Module(), options(), tmp_path, val_check_interval=8)


# At the end of an epoch: within one Lightning does not go on with the data where it stopped.
@pytest.mark.parametrize("stop_at", [4, 8])
def test_lightning_resumes_bit_for_bit(stop_at: int, tmp_path: Path) -> None:
    def options() -> InTrainingReducer:
        return make_reducer(rollback=RollbackPolicy(0.5, patience=3), trace=HankelTrace(2))

    straight, reducer = Module(), options()
    whole = fit(straight, reducer, tmp_path)
    file = tmp_path / "part.ckpt"
    fit(Module(), options(), tmp_path, steps=stop_at).save_checkpoint(file)
    resumed, again = Module(seed=9), options()
    rest = fit(resumed, again, tmp_path, ckpt_path=file, weights_only=True)
    assert [(event.step, event.rolled_back) for event in again.events] == [(3, 6)]
    assert_same_weights(resumed, straight)
    states = [t.optimizers[0].state_dict()["state"] for t in (rest, whole)]
    assert fingerprint([states[0]]) == fingerprint([states[1]])
    for event in (*reducer.events, *again.events):
        object.__setattr__(event, "seconds", 0.0)
    assert fingerprint(again) == fingerprint(reducer)


def test_lightning_cuts_the_average_too(tmp_path: Path) -> None:
    averages: list[AveragedModel] = []

    class Averaging(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            averages.append(AveragedModel(pl_module))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            averages[0].update_parameters(pl_module)

    fit(
        Module(),
        make_reducer(),
        tmp_path,
        callbacks=[Averaging()],
        followers=lambda trainer: averages,
    )
    assert is_cut(averages[0])
    assert int(averages[0].n_averaged) == 2 * STEPS


@pytest.mark.filterwarnings("ignore:The checkpoint was not created with WeightAveraging")
@pytest.mark.parametrize("saved_with_average", [True, False])
@pytest.mark.parametrize("average_first", [True, False])
def test_lightning_resumes_in_any_order_of_callbacks(
    average_first: bool, saved_with_average: bool, tmp_path: Path
) -> None:
    def run(steps: int, averaged: bool, file: Path | None) -> tuple[pl.Trainer, Any]:
        average, module = EMAWeightAveraging(decay=0.9), Module(seed=steps)
        cut = LightningCallback(make_reducer(), followers=lambda _: [average._average_model])
        both = [average, cut] if average_first else [cut, average]
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=both if averaged else [LightningCallback(make_reducer())],
        )
        data = DataLoader(TensorDataset(*samples()), 8)
        trainer.fit(module, data, ckpt_path=file, weights_only=None if file is None else True)
        assert not module._load_state_dict_pre_hooks
        return trainer, average._average_model

    first, average = run(4, saved_with_average, None)
    first.save_checkpoint(tmp_path / "part.ckpt")
    resumed, again = run(4, True, tmp_path / "part.ckpt")
    assert is_cut(again)
    assert_same_weights(resumed.lightning_module, first.lightning_module)
    if saved_with_average:
        assert_same_weights(again, average)
    _, further = run(8, True, tmp_path / "part.ckpt")
    assert is_cut(further)
    # What was put into the module goes along in copies and pickles of it.
    pickle.dumps(copy.deepcopy(further.module))


def test_lightning_says_what_is_wrong(tmp_path: Path) -> None:
    watching = make_reducer(rollback=RollbackPolicy(0.5))
    with pytest.raises(ArgumentError, match=r"did not log.*one of watched"):
        fit(Module(), watching, tmp_path, metric="accuracy")
    with pytest.raises(OptimizerStateError, match="2 optimizers"):
        fit(Module(optimizers=2), make_reducer(), tmp_path)
    for callback in (LightningCallback, TransformersCallback):
        with pytest.raises(ArgumentError, match=r"`metric` is None .*both or neither"):
            callback(watching)
        with pytest.raises(ArgumentError, match=r"`metric` is 'loss' .*both or neither"):
            callback(make_reducer(), metric="loss")


# --- transformers


class Labelled(nn.Module):
    """Returns its loss, as the Trainer wants it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = network(seed)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and outputs."""
        outputs = self.net(inputs)
        return {"loss": torch.mean((outputs - labels) ** 2), "logits": outputs}


class InOrder(transformers.Trainer):
    """Without shuffling, so that the run can be done by hand."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_of(
    model: Labelled,
    reducer: InTrainingReducer,
    folder: Path,
    *,
    steps: int = STEPS,
    metric: str | None = None,
    **options: Any,
) -> InOrder:
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=options.pop("eval_steps", 1),
        save_strategy="steps",
        save_steps=2,
        optim="adamw_torch",
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        **options,
    )
    data = [{"inputs": one, "labels": other} for one, other in zip(*samples(), strict=True)]
    if metric is None and reducer.rollback is not None:
        metric = "eval_watched"
    return InOrder(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data[:8],
        compute_metrics=lambda _: {"watched": 1.0 + 5.0 * is_cut(model)},
        callbacks=[TransformersCallback(reducer, metric=metric)],
    )


def test_transformers_cuts_at_updates(tmp_path: Path) -> None:
    model, reducer = Labelled(), make_reducer()
    trainer_of(model, reducer, tmp_path).train()
    assert [(event.step, event.layer, event.new_order) for event in reducer.events] == [
        (3, "net.1.seq", 5)
    ]
    expected = by_hand(make_reducer(), {})
    for one, two in zip(model.net.parameters(), expected.parameters(), strict=True):
        # The loss of two batches is divided elsewhere.
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop_at", [pytest.param(4, marks=pytest.mark.slow), 10])
def test_transformers_resumes_bit_for_bit(stop_at: int, elsewhere: bool, tmp_path: Path) -> None:
    def options() -> InTrainingReducer:
        return make_reducer(rollback=RollbackPolicy(0.5, patience=3), trace=HankelTrace(2))

    straight, reducer = Labelled(), options()
    whole = trainer_of(straight, reducer, tmp_path / "whole")
    whole.train()
    trainer_of(Labelled(), options(), tmp_path / "part", steps=stop_at).train()
    checkpoint = tmp_path / "part" / f"checkpoint-{stop_at}"
    resumed, again = Labelled(seed=9), options()
    if elsewhere:
        checkpoint = Path(shutil.move(checkpoint, tmp_path / "moved"))
    trainer = trainer_of(resumed, again, tmp_path / "part")
    if elsewhere:
        with pytest.raises(ArgumentError, match=r"no ssmreduce\.pt.*callback\.load"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        (callback,) = (c for c in trainer.callback_handler.callbacks if hasattr(c, "reducer"))
        callback.load(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert [(event.step, event.rolled_back) for event in again.events] == [(3, 6)]
    assert_same_weights(resumed, straight)
    states = [t.optimizer.state_dict()["state"] for t in (trainer, whole)]
    assert fingerprint([states[0]]) == fingerprint([states[1]])
    for event in (*reducer.events, *again.events):
        object.__setattr__(event, "seconds", 0.0)
    assert fingerprint(again) == fingerprint(reducer)


def test_transformers_loads_the_best_model_of_another_size(tmp_path: Path) -> None:
    model, reducer = Labelled(), make_reducer()
    trainer_of(
        model,
        reducer,
        tmp_path,
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_watched",
        greater_is_better=False,
    ).train()
    assert [event.step for event in reducer.events] == [3]
    assert not is_cut(model)  # the best checkpoint was that of update 2


def test_transformers_refuses_damaged_files(tmp_path: Path) -> None:
    callback, file = TransformersCallback(make_reducer()), tmp_path / "ssmreduce.pt"
    torch.save({"large": torch.zeros(10**5), "object": SimpleNamespace()}, file)
    whole = file.read_bytes()
    with pytest.raises(DataFileError, match=r"ssmreduce.pt: cannot be read .*expected the state"):
        callback.load(tmp_path)
    for content in (b"", b"no archive", whole[:-100]):
        file.write_bytes(content)
        with pytest.raises(DataFileError, match="cannot be read"):
            callback.load(tmp_path)
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as archive,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(DataFileError, match=r"unpacks to \d+ bytes but has \d+"):
        callback.load(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(ArgumentError, match=r"there is no ssmreduce.pt"):
        callback.load(tmp_path)


def test_transformers_refuses_several_processes() -> None:
    callback = TransformersCallback(InTrainingReducer(ReductionSchedule(10)))
    arguments = SimpleNamespace(world_size=2)
    with pytest.raises(DistributedError, match=r"2 processes.*expected one"):
        callback.on_train_begin(arguments, transformers.TrainerState(), None)


def test_transformers_with_several_sets_for_evaluation(tmp_path: Path) -> None:
    model, reducer = Labelled(), make_reducer(rollback=RollbackPolicy(0.5))
    trainer = trainer_of(model, reducer, tmp_path, metric="eval_second_watched")
    trainer.eval_dataset = {"first": trainer.eval_dataset, "second": trainer.eval_dataset}
    trainer.train()
    assert [(event.step, event.rolled_back) for event in reducer.events] == [(3, 4)]
    nothing = make_reducer(rollback=RollbackPolicy(0.5))
    with pytest.warns(UserWarning, match="no finite metric was reported"):
        trainer_of(Labelled(), nothing, tmp_path, metric="eval_accuracy").train()
    assert nothing.events == []


# --- Loading into a model of another size, whoever does it


def test_a_model_that_accepts_reduced_weights() -> None:
    small = network(1)
    reduce_model(small, 5)
    model = nn.ModuleDict({"inner": network(2)})
    hook = accept_reduced(model["inner"])
    state = {f"inner.{name}": value for name, value in small.state_dict().items()}
    model.load_state_dict(state)
    assert_same_weights(model["inner"], small)
    # Names are still the business of load_state_dict.
    del state["inner.0.bias"]
    with pytest.raises(RuntimeError, match=r"inner\.0\.bias"):
        model.load_state_dict(state)
    model.load_state_dict(state, strict=False)
    hook.remove()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({f"inner.{k}": v for k, v in network(2).state_dict().items()})


# --- TensorBoard


def test_tensorboard_shows_events_and_trace(tmp_path: Path) -> None:
    reducer = make_reducer(rollback=RollbackPolicy(0.5), trace=HankelTrace(2))
    with SummaryWriter(tmp_path) as writer:
        reducer.log_to(writer)
        by_hand(reducer, {2: 1.0, 4: 9.0})
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    tags = {name.removeprefix("ssmreduce/1.seq/") for name in accumulator.Tags()["scalars"]}
    cut = {"order", "measured_error", "error_bound", "seconds", "rolled_back"}
    assert tags == cut | {"hsv_sum", "hsv_largest", "states_kept", "overlap", "rank_correlation"}

    def series(name: str) -> list[tuple[int, float]]:
        return [(s.step, s.value) for s in accumulator.Scalars(f"ssmreduce/1.seq/{name}")]

    (event,) = reducer.events
    assert event.rolled_back == 5
    assert series("rolled_back") == [(5, 3.0)]
    assert series("error_bound") == [(3, pytest.approx(event.error_bound))]
    assert series("order") == [
        (2, 12.0),
        (3, 5.0),
        (4, 5.0),
        (5, 12.0),
        *((step, 12.0) for step in (6, 8, 10, 12)),
    ]
    assert reducer.trace is not None
    sums = [(record.step, float(record.hsv.sum())) for record in reducer.trace.records]
    assert series("hsv_sum") == [(step, pytest.approx(value)) for step, value in sums]
    # A record with another number of states cannot be compared with the one before.
    assert [step for step, _ in series("rank_correlation")] == [8, 10, 12]
