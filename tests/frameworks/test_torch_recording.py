"""Runs of a model whose layers change their own weights in a run: S4 makes C C~, and ``l_kernel`` says so."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from samples import slow_inputs
from torch import nn
from torch_modules import SSMKernelDPLR, convolve

from ssmreduce import CutOptions, calibrate, reduce_model
from ssmreduce.models.search import search

# Longer ones come later: kernels are lengthened in between.
INPUTS = [
    torch.tensor(slow_inputs(8, 30 if k % 4 == 2 else 12, 6, k), dtype=torch.float32)
    for k in range(8)
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.activation = SSMKernelDPLR(6, 24), nn.Tanh()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel(inputs.shape[1])[0]
        return self.activation(convolve(kernel, inputs.transpose(1, 2)).transpose(1, 2))


def s4(blocks: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *(Block() for _ in range(blocks)), nn.Linear(6, 2))


def mean_square(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def batches_of(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs, and what a copy of the model puts out, with noise."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        outputs = [model(each) for each in INPUTS]
    return [(u, y + 0.01 * torch.randn(y.shape)) for u, y in zip(INPUTS, outputs, strict=True)]


def assert_same(model: nn.Module, before: nn.Module) -> None:
    """Parameters and buffers are as before, bit for bit."""
    own, other = model.state_dict(), before.state_dict()
    assert own.keys() == other.keys()
    for name, value in own.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("length", [0, 12])
@pytest.mark.parametrize("loss", [None, mean_square])
def test_weights_that_a_run_changes_are_put_back(length, loss):
    model = s4(2)
    if length:
        model(INPUTS[0])
    before = copy.deepcopy(model)
    held = {name: id(value) for name, value in model.named_parameters()}
    calibrate(model, batches_of(model), loss=loss)
    assert_same(model, before)
    assert held == {name: id(value) for name, value in model.named_parameters()}
    assert all(block.kernel.l_kernel.item() == length for block in model[1:3])
    with torch.no_grad():
        assert torch.equal(model(INPUTS[0]), before(INPUTS[0]))


def test_weights_are_put_back_after_an_error():
    model = s4()
    before = copy.deepcopy(model)

    def fails(model: Any, batch: Any) -> torch.Tensor:
        loss = mean_square(model, batch)
        if len(batch[0][0]) == 30:
            raise RuntimeError("in the middle")
        return loss

    with pytest.raises(RuntimeError, match="in the middle"):
        calibrate(model, batches_of(model), loss=fails)
    assert_same(model, before)


def test_a_graph_from_before_stays_valid():
    model = s4()
    loss = model(INPUTS[0]).square().mean()
    calibrate(model, INPUTS[:2])
    loss.backward()
    assert model[1].kernel.C.grad.abs().max() > 0.0


@pytest.mark.parametrize("method", ["white", "balanced"])
@pytest.mark.parametrize("match", [False, True])
def test_a_loss_that_is_told_is_that_of_the_model(method, match):
    model = s4()
    batches = batches_of(model)
    data = calibrate(model, batches, loss=mean_square)
    result = reduce_model(model, 3, data=data, options=CutOptions(method=method, match=match))
    losses = result.report["1.kernel"].losses
    with torch.no_grad():
        real = np.mean([mean_square(model, batches[k]).item() for k in (3, 7)])
    assert losses.after == pytest.approx(real, rel=1e-4)
    assert not match or losses.after < losses.unmatched


def test_every_batch_meets_the_same_first_layer():
    model = s4(2)
    data = calibrate(model, INPUTS)
    reduce_model(model, 3, data=data, options=CutOptions(exclude=("2.kernel",)))
    assert model[1].kernel.l_kernel.item() == 0
    # Of the second layer alone: the first runs without being recorded.
    unlike = {"2.kernel": np.zeros((0, 0, 0))}
    found = data.runs.inputs(search(model), unlike, is_uncut=True)["2.kernel"]
    with torch.no_grad():
        wanted = [model[:2](each).numpy() for each in INPUTS]
    for k, each in enumerate(wanted):
        own = found[8 * k : 8 * (k + 1), : each.shape[1]]
        np.testing.assert_allclose(own, each, atol=1e-5 * np.abs(each).max())


def test_matching_moves_a_follower_as_it_moves_the_model():
    model = s4()
    follower = copy.deepcopy(model)
    with torch.no_grad():
        follower[1].kernel.C.mul_(1.3)
    data = calibrate(model, batches_of(model), loss=mean_square)
    found = []
    for match in (False, True):
        both = copy.deepcopy([model, follower])
        options = CutOptions(method="balanced", match=match)
        reduce_model(both[0], 3, data=data, options=options, followers=both[1:])
        assert all(each[1].kernel.l_kernel.item() == 0 for each in both)
        found.append(np.stack([each[1].kernel.C.detach().numpy() for each in both]))
    moved, followed = found[1] - found[0]
    np.testing.assert_allclose(followed, moved, atol=1e-4 * np.abs(moved).max())
