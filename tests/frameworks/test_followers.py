"""Copies of a model that follow it through a cut: same projection, same coordinates."""

from __future__ import annotations

import copy
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from LRU_pytorch import LRU as PackageLRU
from modules import make_lru
from samples import lru_weights
from test_streaming import LAYERS, LENGTH, stream
from test_streaming import projected as from_projected_state
from test_torch_training import batch, fingerprint, model_of, train
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_modules import LrnnxLRU
from torch_samples import double, s5

from ssmreduce import DiagonalStateSpace, read_system, reduce_model, simulate, write_system
from ssmreduce.errors import ShapeError, UnstableSystemError
from ssmreduce.systems.state_space import StateSpace


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(22)


def moved(layer: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """A copy with other weights near those of `layer`."""
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += size * noise.to(parameter.dtype) * parameter.abs()
    return twin


def projected(system: Any, W: np.ndarray, T: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Outputs of (Wᵀ A T, Wᵀ B, C T, D) of one system, in real coordinates formed here."""
    if isinstance(system, StateSpace):
        A, B, C = system.A, system.B, system.C
    else:
        poles = np.diag(system.eigenvalues)
        A = np.block([[poles.real, -poles.imag], [poles.imag, poles.real]])
        B = np.concatenate([system.B.real, system.B.imag])
        C = np.concatenate([system.C.real, -system.C.imag], axis=1)
    A, B, C = W.transpose() @ A @ T, W.transpose() @ B, C @ T
    state, outputs = np.zeros(len(A)), []
    for sample in inputs:
        state = A @ state + B @ sample
        outputs.append(C @ state + system.D @ sample)
    return np.array(outputs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_is_projected_as_the_model_is(rng: np.random.Generator, name: str) -> None:
    layer = double(LAYERS[name]())
    twin = moved(layer, 1e-3)
    before = read_system(twin)
    result = reduce_model(layer, 6, followers=[twin])
    ((_, part),) = result.report.items()
    (follower,) = result.followers
    assert follower.model is twin
    ((_, own),) = follower.report.items()
    assert own.new_order == part.new_order < own.old_order
    after = read_system(twin)
    batch_shape = before.batch_shape
    parts = part.reduction.parts or (part.reduction,)
    for at, cut in zip(np.ndindex(batch_shape), parts, strict=True):
        inputs = rng.standard_normal((LENGTH, before.inputs))
        single, written = (before[at], after[at]) if batch_shape else (before, after)
        found, expected = (
            simulate(written, inputs),
            projected(single, cut.left, cut.right, inputs),
        )
        # s5-pytorch uses B in single precision, so the written layer has it rounded.
        eps = float(np.finfo(np.float32 if name.startswith("s5") else np.float64).eps)
        allowed = LENGTH * eps * cut.slot_map.condition * np.abs(expected).max()
        assert np.abs(found - expected).max() <= allowed
    # Its error is its own, and that of the model but for their distance.
    assert own.measured_error == pytest.approx(part.measured_error, rel=0.2)
    assert own.error_bound is None


@pytest.mark.parametrize("name", LAYERS)
def test_streams_through_a_copy_go_on(rng: np.random.Generator, name: str) -> None:
    layer = double(LAYERS[name]())
    twin = moved(layer, 1e-3)
    batch_shape, inputs = read_system(twin).batch_shape, read_system(twin).inputs
    ((_, own),) = reduce_model(layer, 5, followers=[twin]).followers[0].report.items()
    shape = (*batch_shape, own.old_order)
    state = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    carried, after = own.reduce_state(state), read_system(twin)
    parts = own.reduction.parts or (own.reduction,)
    for at, part in zip(np.ndindex(batch_shape), parts, strict=True):
        signal = rng.standard_normal((LENGTH, inputs))
        found, _ = stream(after[at] if batch_shape else after, carried[at], signal)
        expected = from_projected_state(part, state[at], signal)
        eps = float(np.finfo(np.float32 if name.startswith("s5") else np.float64).eps)
        allowed = LENGTH * eps * part.slot_map.condition * np.abs(expected).max()
        assert np.abs(found - expected).max() <= allowed


@pytest.mark.parametrize("name", LAYERS)
def test_weights_stay_as_close_as_they_were(name: str) -> None:
    distances = []
    for size in (0.0, 1e-5, 1e-4):
        torch.manual_seed(22)
        layer = double(LAYERS[name]())
        twin = moved(layer, size)
        reduce_model(layer, 6, followers=[twin])
        pairs = zip(layer.state_dict().items(), twin.state_dict().values(), strict=True)
        distances.append(
            max(
                float((mine - other).abs().max() / (1e-3 + mine.abs().max()))
                for (key, mine), other in pairs
                if key.split(".")[-1] not in ("D", "l_kernel")
            )
        )
    same, near, far = distances
    eps = float(np.finfo(np.float32 if name.startswith("s5") else np.float64).eps)
    assert same <= 1e5 * eps
    assert near < 0.1
    # Proportional to the distance before: coordinates are continued, not chosen anew.
    assert 5.0 < far / near < 20.0


def test_an_average_goes_on() -> None:
    for name in ("s5", "lru", "s4d", "s4d buffers", "s4 diagonal", "s4", "lrnnx s5"):
        model = model_of(name)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
        for _ in range(4):
            train(model, optimizer, 1)
            average.update_parameters(model)
        inputs, _ = batch()
        before, own_before = average(inputs).detach(), model(inputs).detach()
        parameters = list(average.parameters())
        result = reduce_model(model, 6, optimizer=optimizer, followers=[average])
        assert all(a is b for a, b in zip(parameters, average.parameters(), strict=True))
        counted = int(average.n_averaged)
        # The cut costs the average about what it costs the model.
        moved_by = torch.norm(average(inputs) - before)
        assert moved_by < 2.0 * torch.norm(model(inputs) - own_before), name
        train(model, optimizer, 1)
        average.update_parameters(model)
        assert int(average.n_averaged) == counted + 1
        for mine, other in zip(average.module.parameters(), model.parameters(), strict=True):
            assert mine.shape == other.shape
        apart = torch.norm(average(inputs) - model(inputs))
        assert apart < 2.0 * torch.norm(before - own_before), name
        assert list(result.followers[0].report) == [f"module.{path}" for path in result.report], (
            name
        )


def test_poles_that_cannot_be_paired_keep_the_eigenvectors() -> None:
    # Two real poles that are a pair in the copy: right to first order, and measured.
    def layer_with(poles: np.ndarray) -> nn.Module:
        torch.manual_seed(22)
        layer = double(PackageLRU(2, 2, 4, rmin=0.5))
        rng = np.random.default_rng(5)
        weights = rng.standard_normal((4, 2)), rng.standard_normal((2, 4))
        scale = np.array([1.0, 1.0, 1.0, 1e-5])
        system = DiagonalStateSpace(
            poles,
            weights[0] * scale[:, None],
            weights[1] * scale,
            read_system(layer).D,
            time=read_system(layer).time,
            real_output=True,
            read_after_update=True,
        )
        return write_system(layer, system)

    model = layer_with(np.array([0.8, 0.6, 0.3 + 0.4j, 0.1]))
    twin = layer_with(np.array([0.8, 0.3 + 0.4j, 0.6, 0.1]))
    result = reduce_model(model, 3, followers=[twin])
    ((_, own),) = result.followers[0].report.items()
    assert own.new_order == 3
    poles = read_system(twin).eigenvalues
    assert np.all(np.abs(poles) < 1.0)
    assert np.isfinite(own.measured_error)


def test_what_is_no_copy_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(LrnnxLRU(3, 12), s5(False, False, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    short = nn.Sequential(LrnnxLRU(3, 12))
    other = nn.Sequential(s5(False, False, 8), LrnnxLRU(3, 12))
    smaller = nn.Sequential(LrnnxLRU(3, 11), s5(False, False, 8))
    wild = copy.deepcopy(model)
    with torch.no_grad():
        wild[1].seq.Lambda.real[:] = 1.0
    stream = copy.deepcopy(model)
    stream[0].state = torch.zeros(5)  # seen only when the change itself is prepared
    good = copy.deepcopy(model)
    for bad, error, match in (
        (short, ShapeError, "`followers`"),
        (other, ShapeError, "`followers`"),
        (smaller, ShapeError, r"layer `0` of `followers`.*\(11,"),
        (wild, UnstableSystemError, r"layer `1\.seq` of `followers`"),
        (stream, ShapeError, "keeps a state"),
    ):
        before = fingerprint(model, optimizer, good, bad)
        with pytest.raises(error, match=match):
            reduce_model(model, 4, optimizer=optimizer, followers=[good, bad])
        assert fingerprint(model, optimizer, good, bad) == before


def test_copies_of_pytrees_follow(x64: None) -> None:
    rng = np.random.default_rng(23)
    model = {"a": make_lru(lru_weights(rng, 9, 2, r_max=0.95), "float64")}
    twin = jax.tree.map(
        lambda x: x * (1 + 1e-7), model
    )  # eigenvectors make 1,600 times as much of it
    result = reduce_model(model, 4, followers=[twin])
    (follower,) = result.followers
    assert twin["a"].nu_log.shape == (9,)
    leaves = zip(
        jax.tree.leaves(eqx.filter(result.model, eqx.is_array)),
        jax.tree.leaves(eqx.filter(follower.model, eqx.is_array)),
        strict=True,
    )
    for mine, other in leaves:
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() <= 1e-3 * (1e-3 + np.abs(mine).max())
