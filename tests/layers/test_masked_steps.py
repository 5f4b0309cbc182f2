"""Calibration with `attention_mask`: padding counts nothing, and sequences behind it begin from rest."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from test_mamba import language_model
from test_mamba2 import STOCK, made, mixers

from ssmreduce import CutOptions, calibrate, reduce_model
from ssmreduce.errors import ShapeError, UnsupportedLayerError

LENGTHS = (7, 12, 9, 12, 3, 10, 5, 8)
"""Of sequences in a batch of 12 steps; the first one is padded."""

AT_CHANCE = pytest.mark.filterwarnings("ignore:the model is at chance")
FEW_ROWS = pytest.mark.filterwarnings("ignore:layer .* was fitted to")


pytestmark = pytest.mark.usefixtures("quiet_transformers")


def batch(side: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 20, (len(LENGTHS), 12))
    at = torch.arange(12)
    mask = torch.stack([at < n if side == "right" else at >= 12 - n for n in LENGTHS])
    return {"input_ids": torch.where(mask, ids, 0), "attention_mask": mask.long()}


def cropped(given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    pairs = zip(given["input_ids"], given["attention_mask"], strict=True)
    return [ids[mask.bool()][None] for ids, mask in pairs]


def forward(model: Any, given: dict[str, torch.Tensor]) -> Any:
    return model(**given)


def loss(model: Any, given: dict[str, torch.Tensor]) -> Any:
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    return model(**given, labels=labels).loss


def given_to(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """What goes into each mixer, of one sequence without a mask."""
    found: list[torch.Tensor] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append([*args, *kwargs.values()][0].detach().clone())

    hooks = [each.register_forward_pre_hook(keep, with_kwargs=True) for each in mixers(model)]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["Mamba", *STOCK])
def test_records_are_those_of_cropped_sequences(name: str, side: str) -> None:
    model = language_model() if name == "Mamba" else made(name)
    given = batch(side)
    data = calibrate(model, [given], forward=forward)
    for k, ids in enumerate(cropped(given)):
        for record, expected in zip(data.layers.values(), given_to(model, ids), strict=True):
            n = LENGTHS[k]
            np.testing.assert_allclose(
                record.inputs[k, :n], expected[0], atol=2e-5 * float(expected.abs().max())
            )
            assert not record.inputs[k, n:].any()
            np.testing.assert_allclose(record.weights[k], np.where(np.arange(12) < n, 1.001, 0.0))


@AT_CHANCE
@FEW_ROWS
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cut_by_padded_sequences_is_that_by_cropped_ones(side: str) -> None:
    model = language_model()
    other = copy.deepcopy(model)
    given = [batch(side) for _ in range(4)]
    # The same sequences, without a mask: padding behind has no effect on what is before it.
    behind = [_turned(each) for each in given]
    options = CutOptions(method="selected")
    reduce_model(model, 3, data=calibrate(model, given, loss=loss), options=options)
    data = calibrate(
        other,
        behind,
        loss=lambda model, each: loss(_NoMask(model), each),
        mask=lambda each: each["attention_mask"],
    )
    reduce_model(other, 3, data=data, options=options)
    for own, expected in zip(model.parameters(), other.parameters(), strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(own, expected, rtol=0.0, atol=1e-4 * scale)


class _NoMask:
    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
        return self._model(input_ids, labels=labels)


def _turned(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sequences with padding behind."""
    ids = torch.zeros_like(given["input_ids"])
    for own, sequence in zip(ids, cropped(given), strict=True):
        own[: sequence.shape[1]] = sequence[0]
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def test_a_mask_of_ones_own_goes_with_it() -> None:
    model, given = language_model(), batch("left")
    last = torch.arange(12) >= 10
    data = calibrate(
        model, [given], forward=forward, mask=lambda each: last.expand(len(LENGTHS), 12)
    )
    for record in data.layers.values():
        counted = record.weights > 0.0
        assert [np.flatnonzero(row).tolist() for row in counted] == [
            [n - 2, n - 1] for n in LENGTHS
        ]


def _holes(given: dict[str, torch.Tensor]) -> None:
    given["attention_mask"][1, 5] = 0


def _fractions(given: dict[str, torch.Tensor]) -> None:
    given["attention_mask"] = 0.5 * given["attention_mask"]


@pytest.mark.parametrize("change", [_holes, _fractions])
@pytest.mark.parametrize("name", ["Mamba", "Mamba2"])
def test_masks_that_are_no_padding_are_refused(name: str, change: Any) -> None:
    model, given = language_model() if name == "Mamba" else made(name), batch("right")
    change(given)
    with pytest.raises(UnsupportedLayerError, match=r"`attention_mask`.*padding between steps"):
        calibrate(model, [given], forward=forward)


def test_padding_before_a_bias_is_refused() -> None:
    model = language_model(use_bias=True)
    calibrate(model, [batch("right")], forward=forward)
    with pytest.raises(UnsupportedLayerError, match=r"in_proj.bias.*Pad behind"):
        calibrate(model, [batch("left")], forward=forward)


def test_masks_that_leave_no_step_are_refused() -> None:
    model, given = language_model(), batch("right")
    with pytest.raises(ShapeError, match=r"`attention_mask` .* leaves no step"):
        calibrate(
            model,
            [given],
            forward=forward,
            mask=lambda given: given["attention_mask"] == 0,
        )
    given["attention_mask"][:] = 0
    with pytest.raises(ShapeError, match=r"`attention_mask` .* leaves no step"):
        calibrate(model, [given], forward=forward)


def test_a_mask_of_another_length_is_refused() -> None:
    module, inputs = language_model().backbone.layers[0].mixer, torch.randn(4, 12, 16)
    with pytest.raises(ShapeError, match=r"shape \(1, 12\), but there are 4 sequences of 12 steps"):
        calibrate(
            module, [inputs], forward=lambda module, u: module(u, attention_mask=torch.ones(1, 12))
        )
