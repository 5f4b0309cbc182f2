"""Reduced models of Hugging Face through save_pretrained and from_pretrained: the config has the sizes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_copies_inside import average_of, network
from torch import nn
from torch_modules import S4D, LrnnxLRU
from torch_samples import s5
from transformers import PretrainedConfig, PreTrainedModel

from ssmreduce import (
    HankelMass,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    load_reduced,
    reduce_layer,
    reduce_model,
)
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.models.checkpoint import accept_reduced

LAYERS: dict[str, Any] = {
    "s5": lambda: s5(False, False),
    "s5 bidirectional": lambda: s5(True, False),
    "s4d": lambda: S4D(3, 16),
    "s4d buffers": lambda: S4D(3, 16, lr=0.0),
    "lru": lambda: LrnnxLRU(3, 9),
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.manual_seed(8)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class Config(PretrainedConfig):
    """Says which layer."""

    model_type = "ssmreduce-test"
    layer = "s5"


class Backbone(PreTrainedModel):
    """One layer."""

    config_class = Config
    base_model_prefix = "backbone"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = LAYERS[config.layer]()
        accept_reduced(self)
        self.post_init()


class WithHead(PreTrainedModel):
    """A layer of its own on top of a backbone."""

    config_class = Config
    base_model_prefix = "backbone"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.backbone = Backbone(config)
        self.head = s5(False, False)
        accept_reduced(self)
        self.post_init()


class WithAverage(PreTrainedModel):
    """A network and its average."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.net = network()
        self.ema = average_of(self.net)
        accept_reduced(self)
        self.post_init()

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and outputs."""
        outputs = self.net(inputs)
        return {"loss": torch.mean((outputs - labels) ** 2), "logits": outputs}


def assert_same(model: nn.Module, again: nn.Module) -> None:
    """The same weights, buffers and attributes, bit for bit."""
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for own, other in zip(model.modules(), again.modules(), strict=True):
        sizes = [{k: v for k, v in vars(each).items() if type(v) is int} for each in (own, other)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_reduced_model_comes_back(layer: str, tmp_path: Path) -> None:
    model = Backbone(Config(layer=layer))
    reduce_model(model, 4)
    model.save_pretrained(tmp_path)
    again = Backbone.from_pretrained(tmp_path)
    assert_same(model, again)
    assert again.config.ssm_states == model.config.ssm_states
    inputs = torch.randn(2, 3, 3)
    if "lru" not in layer:
        # The library freezes complex parameters when it loads them, and products of these round elsewhere.
        again.requires_grad_(True)
        assert torch.equal(model.eval().layer(inputs), again.layer(inputs))
    reduce_model(again, 2)
    again.save_pretrained(tmp_path)
    assert_same(again, Backbone.from_pretrained(tmp_path))


def test_a_head_and_its_backbone(tmp_path: Path) -> None:
    model = WithHead(Config())
    reduce_model(model, {"backbone.layer.seq": 4, "head.seq": 6})
    assert model.config.ssm_states == {"layer.seq": 4, "head.seq": 6}
    model.save_pretrained(tmp_path)
    assert_same(model, WithHead.from_pretrained(tmp_path))
    assert_same(model.backbone, Backbone.from_pretrained(tmp_path))


def test_an_average_inside_comes_back(tmp_path: Path) -> None:
    model = WithAverage(Config())
    reduce_model(model, 5)
    model.save_pretrained(tmp_path)
    assert_same(model, WithAverage.from_pretrained(tmp_path))


def test_a_rollback_and_a_load_write_the_sizes(tmp_path: Path) -> None:
    model = WithAverage(Config())
    optimizer = torch.optim.Adam(model.net.parameters())
    reducer = InTrainingReducer(
        ReductionSchedule(10, attempts=4), HankelMass(0.8), rollback=RollbackPolicy(0.02)
    )
    reducer.report(1.0)
    reducer.step(1, model, optimizer)
    names = ["net.1.seq", "ema.module.1.seq"]
    assert set(model.config.ssm_states.values()) != {12}
    reduced = copy.deepcopy(model)
    while not any(event.rolled_back for event in reducer.events):
        reducer.report(9.0)
        reducer.step(2, model, optimizer)
    assert model.config.ssm_states == dict.fromkeys(names, 12)
    model.save_pretrained(tmp_path / "full")
    assert_same(model, WithAverage.from_pretrained(tmp_path / "full"))
    load_reduced(model, reduced.state_dict())
    assert model.config.ssm_states == reduced.config.ssm_states
    fresh = WithAverage(Config())
    fresh.load_state_dict(reduced.state_dict())
    fresh.save_pretrained(tmp_path / "reduced")
    assert_same(reduced, WithAverage.from_pretrained(tmp_path / "reduced"))


def test_a_cut_that_fails_leaves_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Backbone(Config())

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmreduce.frameworks.torch_attributes.Entries.make", broken)
    monkeypatch.setattr("ssmreduce.frameworks.torch_arrays._give", broken)
    with pytest.raises(KeyboardInterrupt):
        reduce_model(model, 4)
    assert not hasattr(model.config, "ssm_states")
    assert "ssm_states" not in model.config.to_json_string()


def test_a_model_made_from_such_a_config_has_its_sizes() -> None:
    model = Backbone(Config(ssm_states={"layer.seq": 5}))
    assert model.layer.seq.Lambda.shape == (5,)
    inputs = torch.randn(2, 9, 3)
    assert torch.isfinite(model.layer(inputs)).all()
    assert Backbone(Config(ssm_states={"layer.seq": 15})).layer.seq.Lambda.shape == (15,)


@pytest.mark.parametrize(
    ("states", "error"),
    [([6], ShapeError), ({"layer.seq": 0}, ArgumentError), ({"layer.seq": "six"}, ArgumentError)],
)
def test_a_config_with_something_else_is_refused(states: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"config\.ssm_states"):
        Backbone(Config(ssm_states=states))


def test_a_config_and_a_file_that_disagree(tmp_path: Path) -> None:
    model = Backbone(Config())
    reduce_layer(model.layer.seq, 5)  # knows of no config
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        Backbone.from_pretrained(tmp_path)
    assert_same(model, load_reduced(Backbone(Config()), model.state_dict()))


def test_checkpoints_of_the_trainer(tmp_path: Path) -> None:
    from ssmreduce.training.transformers import ReductionCallback

    model = WithAverage(Config())
    reducer = InTrainingReducer(ReductionSchedule(4, attempts=4), HankelMass(0.8))
    data = [{"inputs": torch.randn(9, 2), "labels": torch.randn(9, 1)} for _ in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        max_steps=4,
        per_device_train_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        optim="adamw_torch",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[ReductionCallback(reducer)],
    ).train()
    assert reducer.events
    model.save_pretrained(tmp_path / "best")
    assert_same(model, WithAverage.from_pretrained(tmp_path / "best"))
    last = WithAverage.from_pretrained(tmp_path / "checkpoint-4")
    assert last.config.ssm_states["net.1.seq"] == reducer.events[-2].new_order
