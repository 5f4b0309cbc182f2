"""Callbacks that calibrate by batches of the training loader, in the real trainers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import transformers
from test_callbacks import (
    Labelled,
    Module,
    assert_same_weights,
    samples,
    trainer_of,
)
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from ssmreduce import (
    CutOptions,
    DiagonalStateSpace,
    Discrete,
    FixedOrder,
    InTrainingReducer,
    ReductionSchedule,
    calibrate,
)
from ssmreduce.errors import ArgumentError
from ssmreduce.regularizers import modal_l1
from ssmreduce.training import callbacks
from ssmreduce.training.callbacks import LoaderCallback, first_batches
from ssmreduce.training.lightning import ReductionCallback as LightningCallback
from ssmreduce.training.transformers import ReductionCallback as TransformersCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),
    # A few batches of tiny models that hardly learned anything.
    pytest.mark.filterwarnings("ignore::ssmreduce.errors.CalibrationWarning"),
]


def reducer_of(order: int = 5, **options: Any) -> InTrainingReducer:
    return InTrainingReducer(ReductionSchedule.at(3), FixedOrder(order), **options)


def is_cut(model: torch.nn.Module) -> bool:
    return model.net[1].seq.Lambda.shape[-1] <= 5


def squared(module: Any, batch: Any) -> torch.Tensor:
    return torch.mean((module.net(batch[0]) - batch[1]) ** 2)


# --- The loader


class Noisy(TensorDataset):
    """Adds noise from the default generators."""

    def __getitem__(self, index: Any) -> Any:
        inputs, targets = super().__getitem__(index)
        noise = random.random() + np.random.random() + torch.rand(())  # noqa: NPY002
        return inputs + noise, targets


def states() -> list[Any]:
    drawn = np.random.get_state()[1].tolist()  # noqa: NPY002
    return [random.getstate(), drawn, torch.get_rng_state().tolist()]


@pytest.mark.parametrize("own", [False, True])
def test_reading_beside_a_pass_changes_nothing(own: bool) -> None:
    check_a_pass(own, 0)


@pytest.mark.slow
def test_reading_beside_a_pass_of_workers_changes_nothing() -> None:
    # In a process without JAX, which other tests have loaded: it does not stand a fork.
    code = "import test_callback_data as tests; tests.check_a_pass(True, 2)"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def check_a_pass(own: bool, workers: int) -> None:
    """Two passes over a loader give what they give without the looks at it in between."""

    def loader() -> DataLoader:
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        generator = torch.Generator().manual_seed(7) if own else None
        return DataLoader(
            Noisy(*samples()),
            4,
            shuffle=True,
            generator=generator,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def read(looks: bool) -> tuple[list[Any], list[Any]]:
        made, seen, found = loader(), [], []
        for _ in range(2):
            for number, batch in enumerate(made):
                seen.append(batch)
                if looks and number in (2, 5):
                    found.append(first_batches(made, 3 if number == 2 else 99))
        assert [len(each) for each in found] == [3, 8] * (2 * looks)
        return seen, states()

    (one, after), (two, again) = read(False), read(True)
    assert after == again
    for first, second in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_loss_that_draws_leaves_the_generators() -> None:
    module, (inputs, targets) = Module(), samples()

    def loss(module: Any, batch: Any) -> torch.Tensor:
        noise = random.random() + np.random.random() + torch.rand(())  # noqa: NPY002
        return (module.net(batch[0]) - batch[1] + 0.0 * noise).square().mean()

    before = states()
    loader = [*zip(inputs.split(4), targets.split(4), strict=True)]
    callback = LoaderCallback(reducer_of(), None, 8, loss)
    callback._calibrated(module, loader, lambda batch: batch, loss, None)
    assert states() == before


class Seeded(RandomSampler):
    """Counts passes, each in another order, as samplers of distributed training do."""

    epoch = 0

    def __iter__(self) -> Any:
        self.generator = torch.Generator().manual_seed(self.epoch)
        yield from super().__iter__()
        self.epoch += 1


def test_seeds_of_samplers_stay() -> None:
    data = TensorDataset(*samples())
    sampler = Seeded(data)
    loader = DataLoader(data, 4, sampler=sampler)
    assert len(first_batches(loader, 99)) == 8
    assert sampler.epoch == 0
    assert sampler.generator is None
    assert sampler.data_source is data
    alone = DataLoader(data, batch_size=None, sampler=range(5))
    assert [tuple(each[0].shape) for each in first_batches(alone, 3)] == [(10, 2)] * 3


class Stream(IterableDataset):
    """Has no length."""

    def __iter__(self) -> Any:
        return iter(list(zip(*samples(), strict=True)))


def test_loaders_without_a_length() -> None:
    whole = first_batches(DataLoader(Stream(), 4), 99)
    assert len(whole) == 8
    torch.testing.assert_close(first_batches(DataLoader(Stream(), 4), 1)[0], whole[0])
    assert first_batches([1, 2, 3], 2) == [1, 2]


class Once(Stream):
    """Its own iterator."""

    def __init__(self) -> None:
        self.left = super().__iter__()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.left)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(Once(), 4), "reads a .*Once, which can be read once only"),
        (iter([1]), "is a .*list_iterator; expected one DataLoader"),
        ({"a": DataLoader(Stream(), 4)}, "is a .*dict; expected one DataLoader"),
        ([DataLoader(Stream(), 4)], "is a .*list; expected one DataLoader"),
        (None, "is a .*NoneType"),
        (DataLoader([0], sampler=iter([0])), "sampler of the training loader cannot be copied"),
    ],
)
def test_loaders_that_cannot_be_read_beside(loader: Any, words: str) -> None:
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, Stream):
        loader = DataLoader([0], sampler=(index for index in [0]))
    with pytest.raises(ArgumentError, match=rf"{words}.*data=lambda model"):
        first_batches(loader, 1)


# --- Lightning


class Logging(Module):
    """Logs, counts and drops in its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.drop = 0, torch.nn.Dropout(0.1)

    def training_step(self, batch: Any, index: int) -> Any:
        self.calls += 1
        loss = torch.mean((self.net(self.drop(batch[0])) - batch[1]) ** 2)
        self.log("train_loss", loss, on_epoch=True)
        return {"loss": loss}


def fit(module: pl.LightningModule, callback: LightningCallback, folder: Path, **more: Any) -> Any:
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    torch.manual_seed(5)
    loader = more.pop("loader", DataLoader(TensorDataset(*samples()), 4, shuffle=True))
    trainer.fit(module, loader)
    return trainer


def test_lightning_calibrates_without_a_trace(tmp_path: Path) -> None:
    def run(data: int | None, order: int) -> tuple[Logging, LightningCallback, pl.Trainer]:
        module, callback = Logging(), LightningCallback(reducer_of(order), data=data)
        return module, callback, fit(module, callback, tmp_path)

    plain, _, without = run(None, 12)
    looked, callback, trainer = run(4, 12)  # nothing is cut
    assert_same_weights(looked, plain)
    assert looked.calls == plain.calls == 6
    assert trainer.callback_metrics == without.callback_metrics
    assert callback.reducer.data is None
    cut, callback, trainer = run(4, 5)
    assert is_cut(cut)
    assert cut.calls == 6
    (part,) = callback.reducer.last_cut.values()
    assert part.choice is not None
    assert part.choice.by == "loss"
    assert callback.reducer.data is None


def test_lightning_takes_a_loss_and_cuts_as_by_hand(tmp_path: Path) -> None:
    class Bare(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            return squared(self, batch)

    module, reducer = Bare(), reducer_of()
    loader = DataLoader(TensorDataset(*samples()), 4)
    fit(module, LightningCallback(reducer, data=4, loss=squared), tmp_path, loader=loader)
    by_hand = Bare()
    optimizer = by_hand.configure_optimizers()
    batches = [batch for batch, _ in zip(loader, range(6), strict=False)]
    again = reducer_of(data=lambda model: calibrate(model, batches[:4], loss=squared))
    for step, batch in enumerate(batches, start=1):
        squared(by_hand, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        again.step(step, by_hand, optimizer)
    assert_same_weights(module, by_hand)
    assert is_cut(module)
    choice, other = (next(iter(each.last_cut.values())).choice for each in (reducer, again))
    assert choice == other


def test_a_module_under_fsdp2_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "sharded_modules", lambda model: [model])
    fit(Module(), LightningCallback(reducer_of()), tmp_path)
    with pytest.raises(
        ArgumentError, match=r"`data` is 4 but the module is sharded by fully_shard"
    ):
        fit(Module(), LightningCallback(reducer_of(), data=4), tmp_path)


class Broken(Module):
    """Fails after the first attempts."""

    def training_step(self, batch: Any, index: int) -> Any:
        if index == 4:
            raise KeyError("broken")
        return squared(self, batch)


def test_a_run_that_breaks_off_leaves_the_reducer(tmp_path: Path) -> None:
    reducer = reducer_of()
    callback = LightningCallback(reducer, data=4)
    with pytest.raises(KeyError, match="broken"):
        fit(Broken(), callback, tmp_path)
    assert len(reducer.events) == 1
    assert reducer.data is None
    LightningCallback(reducer, data=4)


class Trained(Module):
    """Returns what a test wants."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def training_step(self, batch: Any) -> Any:
        loss = squared(self, batch)
        return loss if self.training else self.change(self, loss)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda module, loss: loss.expand(3), r"`loss` returned a tensor of shape \(3,\)"),
        (lambda module, loss: None, "`loss` returned .*NoneType"),
        (lambda module, loss: torch.nan * loss, "derivative of `loss`"),
        (
            lambda module, loss: module.trainer.x,
            r"training_step of .*Trained ends in .*RuntimeError.*Pass loss=",
        ),
    ],
)
def test_lightning_says_why_there_was_no_cut(change: Any, words: str, tmp_path: Path) -> None:
    module, reducer = Trained(change), reducer_of()
    with pytest.warns(UserWarning, match=f"no cut after step 3.*{words}"):
        fit(module, LightningCallback(reducer, data=4), tmp_path)
    assert not is_cut(module)
    assert module.training


def test_a_loader_that_ends_early_is_enough(tmp_path: Path) -> None:
    reducer = reducer_of()
    loader = DataLoader(TensorDataset(*samples()), 16)
    fit(Module(), LightningCallback(reducer, data=99), tmp_path, loader=loader)
    assert [event.new_order for event in reducer.events] == [5]
    stream, streamed = DataLoader(Stream(), 16), reducer_of()
    fit(Module(), LightningCallback(streamed, data=99), tmp_path, loader=stream)
    assert [event.new_order for event in streamed.events] == [5]


def test_a_penalty_goes_into_the_training_step_until_the_cut(tmp_path: Path) -> None:
    class Penalised(Module):
        def __init__(self, strength: float, reducer: InTrainingReducer) -> None:
            super().__init__()
            self.strength, self.reducer, self.sizes = strength, reducer, []

        def training_step(self, batch: Any, index: int) -> Any:
            layer = self.net[1].seq
            steps = layer.log_step.exp()
            B, C = layer.get_BC_tilde()
            _, B = layer.discretize(layer.Lambda, B, steps)
            system = DiagonalStateSpace.from_log(
                layer.Lambda * steps, B, C, time=Discrete(), real_output=True
            )
            loss = squared(self, batch)
            self.sizes.append(float(modal_l1(system).detach()))
            if not self.reducer.events:
                loss = loss + self.strength * modal_l1(system)
            return loss

    def run(strength: float) -> Penalised:
        reducer = reducer_of(options=CutOptions(method="white"))
        module = Penalised(strength, reducer)
        loader = DataLoader(TensorDataset(*samples()), 4)
        fit(module, LightningCallback(reducer), tmp_path, loader=loader)
        assert is_cut(module)
        return module

    without, light = run(0.0), run(0.1)
    assert light.sizes[0] == without.sizes[0]
    assert all(one < other for one, other in zip(light.sizes[1:3], without.sizes[1:3], strict=True))


# --- transformers


def test_a_loop_of_ones_own_needs_no_loader() -> None:
    model = Labelled()
    callback, state = TransformersCallback(reducer_of()), SimpleNamespace(global_step=3)
    callback.on_step_end(None, state, None, model=model, optimizer=None)
    assert is_cut(model)


def test_a_loss_without_parts_is_still_the_users() -> None:
    class Terms(torch.nn.ModuleDict):
        def forward(self, model: Any, batch: Any) -> Any:
            asked.append(batch)
            return torch.mean((model.net(batch[0]) - batch[1]) ** 2)

    asked: list[Any] = []
    model, loss = Labelled(), Terms()
    assert not len(loss)
    callback = TransformersCallback(reducer_of(), data=4, loss=loss)
    loader = DataLoader(TensorDataset(*samples()), 4)
    arguments = SimpleNamespace(device="cpu")
    callback.on_step_end(
        arguments,
        SimpleNamespace(global_step=3),
        None,
        model=model,
        optimizer=None,
        train_dataloader=loader,
    )
    assert asked
    assert is_cut(model)


def test_the_trainer_calibrates_without_a_trace(tmp_path: Path) -> None:
    def run(data: int | None, order: int) -> tuple[Labelled, InTrainingReducer]:
        model, reducer = Labelled(), reducer_of(order)
        trainer = trainer_of(model, reducer, tmp_path, steps=6, eval_steps=6)
        trainer._get_train_sampler = lambda *_: RandomSampler(trainer.train_dataset)
        old = next(
            c for c in trainer.callback_handler.callbacks if isinstance(c, TransformersCallback)
        )
        trainer.remove_callback(old)
        trainer.add_callback(TransformersCallback(reducer, data=data))
        trainer.train()
        assert reducer.data is None
        return model, reducer

    plain, _ = run(None, 12)
    looked, _ = run(4, 12)
    assert_same_weights(looked, plain)
    cut, reducer = run(4, 5)
    assert is_cut(cut)
    (part,) = reducer.last_cut.values()
    assert part.choice is not None
    assert part.choice.by == "loss"


def test_the_loss_of_a_model_is_what_it_returns() -> None:
    from ssmreduce.training.transformers import _outputs, _own_loss

    def model(**batch: Any) -> Any:
        return batch["outputs"]

    assert _own_loss(model, {"outputs": {"loss": 1.0}}) == 1.0
    assert _own_loss(model, {"outputs": (2.0, 3.0)}) == 2.0
    output = transformers.modeling_outputs.CausalLMOutput(loss=torch.ones(()))
    assert float(_own_loss(model, {"outputs": output})) == 1.0
    whole = transformers.modeling_outputs.CausalLMOutput(loss=torch.ones(()), logits=torch.zeros(3))
    assert torch.equal(*_outputs(model, {"outputs": whole}), torch.zeros(3))
    assert _outputs(model, {"outputs": (2.0, 3.0)}) == (3.0,)
    with pytest.raises(ArgumentError, match=r"returns logits; expected a loss.*Pass loss="):
        _own_loss(model, {"outputs": {"logits": 1.0}})
    with pytest.raises(ArgumentError, match=r"is a .*tuple; expected a dict.*Pass"):
        _own_loss(model, (1.0,))


@pytest.mark.filterwarnings("ignore::ssmreduce.errors.CalibrationWarning")
def test_lightning_takes_what_is_matched(tmp_path: Path) -> None:
    class OfDicts(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            return torch.mean((self.net(batch["inputs"]) - batch["targets"]) ** 2)

    def forward(module: Any, batch: Any) -> Any:
        matched.append(len(batch["inputs"]))
        return module.net(batch["inputs"])

    inputs, targets = samples()
    rows = [{"inputs": u, "targets": y} for u, y in zip(inputs, targets, strict=True)]
    matched: list[int] = []
    reducer = InTrainingReducer(
        ReductionSchedule.at(3), order=1, above_chance="match", options=CutOptions(method="white")
    )
    module, callback = OfDicts(), LightningCallback(reducer, data=4, forward=forward)
    fit(module, callback, tmp_path, loader=DataLoader(rows, 4))
    (part,) = reducer.last_cut.values()
    assert part.losses.unmatched is not None
    assert matched


# --- Arguments


@pytest.mark.parametrize("callback", [LightningCallback, TransformersCallback])
def test_bad_arguments(callback: Any) -> None:
    for wrong in (0, -1, 1.5, True, "8", calibrate):
        with pytest.raises(ArgumentError, match="`data` is"):
            callback(reducer_of(), data=wrong)
    with pytest.raises(ArgumentError, match="`loss` is 3; expected a function"):
        callback(reducer_of(), data=8, loss=3)
    with pytest.raises(ArgumentError, match=r"`loss` is .* but `data` is None"):
        callback(reducer_of(), loss=squared)
    if callback is LightningCallback:
        with pytest.raises(ArgumentError, match=r"`forward` is .* but `data` is None"):
            callback(reducer_of(), forward=squared)
    with pytest.raises(ArgumentError, match=r"`data` is 8 but the reducer has data="):
        callback(reducer_of(data=lambda model: None), data=8)
