"""Mamba: what a mixer computes, which states stay, what is fitted, and the stock models that come out."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
import runpy
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import mambapy.mamba
import numpy as np
import pytest
import torch
import transformers
from fingerprints import fingerprint
from LRU_pytorch import LRU
from torch import distributed, nn
from transformers import MambaConfig, MambaForCausalLM

from ssmreduce import (
    Calibration,
    CutOptions,
    ErrorBound,
    HankelMass,
    HankelTrace,
    InTrainingReducer,
    MeasuredError,
    ReductionSchedule,
    RollbackPolicy,
    TotalBudget,
    calibrate,
    load_reduced,
    read_system,
    reduce_layer,
    reduce_model,
    sweep,
)
from ssmreduce.errors import (
    CalibrationWarning,
    NonFiniteError,
    OrderError,
    ShapeError,
    UnreachableToleranceError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks.torch_config import check_orders
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.mamba import Mamba
from ssmreduce.layers.mamba_fit import DriveFit, Elimination, ReadoutFit, output_gram, refitted
from ssmreduce.layers.mamba_merge import StateMaps, grouped
from ssmreduce.layers.mamba_mixer import Mixer, Run
from ssmreduce.layers.selective_scan import scan, scan_adjoint, states
from ssmreduce.models.search import find_layers

SINGLE = 4e-6
"""Libraries take exp of A_log in single precision: its eps, times the length of what is summed."""


AT_CHANCE = pytest.mark.filterwarnings("ignore:the model is at chance")
"""Language models of these tests have learned nothing."""

OVERFLOWS = pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.manual_seed(3)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def shaken(module: Any) -> Any:
    """A module whose weights are those of no initialisation."""
    with torch.no_grad():
        for each in module.parameters():
            each.add_(0.1 * torch.randn_like(each))
    return module


def block(states: int = 6, d_model: int = 8, **settings: Any) -> Any:
    config = mambapy.mamba.MambaConfig(
        d_model, 1, d_state=states, dt_min=0.05, dt_max=0.5, **settings
    )
    return shaken(mambapy.mamba.MambaBlock(config))


def language_model(states: int = 8, hidden: int = 16, **settings: Any) -> Any:
    config = MambaConfig(
        vocab_size=20, hidden_size=hidden, state_size=states, num_hidden_layers=2, **settings
    )
    return shaken(MambaForCausalLM(config)).eval()


def tokens(count: int = 6) -> list[torch.Tensor]:
    return [torch.randint(0, 20, (4, 16)) for _ in range(count)]


def loss(model: Any, batch: torch.Tensor) -> Any:
    return model(batch, labels=batch).loss


def mixer_of(module: Any) -> Mixer:
    return Mixer({name: each.detach().double().numpy() for name, each in module.named_parameters()})


def sequences_of(mixer: Mixer, count: int = 3, length: int = 9, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, length, mixer.in_proj.shape[1]))
    weights = rng.uniform(0.2, 2.0, size=(count, length))
    weights[-1, -2:] = 0.0
    return Sequences(inputs, mixer.output(inputs), weights)


def data_for(module: Any, count: int = 24, length: int = 20) -> Calibration:
    width = module.in_proj.weight.shape[1]
    rng = np.random.default_rng(1)
    return Calibration.of_inputs({"model": rng.normal(size=(count, length, width))})


# --- What a mixer computes


@pytest.mark.parametrize("biases", [False, True])
def test_the_output_is_that_of_transformers(biases: bool) -> None:
    model = language_model(use_bias=biases, use_conv_bias=biases, use_mambapy=False).double()
    mixer, inputs = model.backbone.layers[0].mixer, torch.randn(3, 30, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = mixer(inputs).numpy()
    np.testing.assert_allclose(
        mixer_of(mixer).output(inputs.numpy()), expected, atol=SINGLE * np.abs(expected).max()
    )


@pytest.mark.parametrize("settings", [{"pscan": False}, {"bias": True, "conv_bias": False}])
def test_the_output_is_that_of_mambapy(settings: dict[str, Any]) -> None:
    module, inputs = block(**settings).double(), torch.randn(3, 30, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = module(inputs).numpy()
    np.testing.assert_allclose(
        mixer_of(module).output(inputs.numpy()), expected, atol=SINGLE * np.abs(expected).max()
    )


def test_the_scan_in_chunks_is_the_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmreduce.layers.selective_scan._CHUNK", 60)
    rng = np.random.default_rng(0)
    rates, step = -rng.uniform(0.1, 3.0, (4, 3)), rng.uniform(0.0, 1.0, (11, 2, 4))
    x, B, C = (rng.normal(size=(11, 2, width)) for width in (4, 3, 3))
    h, expected = np.zeros((2, 4, 3)), np.zeros((11, 2, 4))
    for t in range(11):
        for s, d, n in np.ndindex(2, 4, 3):
            decay = np.exp(step[t, s, d] * rates[d, n])
            h[s, d, n] = decay * h[s, d, n] + step[t, s, d] * x[t, s, d] * B[t, s, n]
            expected[t, s, d] += C[t, s, n] * h[s, d, n]
    np.testing.assert_allclose(scan(rates, step, step * x, B, C), expected, atol=1e-13)
    q = rng.normal(size=expected.shape)
    dB = scan_adjoint(rates, step, step * x, C, q)
    np.testing.assert_allclose(np.sum(dB * B), np.sum(q * expected), rtol=1e-12)


# --- Which states stay


def states_by_hand(mixer: Mixer, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V of each step, shape (S, L, p, N), and V without C; from the equations, one number at a time."""
    torch_inputs = torch.from_numpy(inputs)
    x, z = (
        torch_inputs @ torch.from_numpy(mixer.in_proj.T) + torch.from_numpy(mixer.in_bias)
    ).chunk(2, -1)
    kernel = torch.from_numpy(mixer.kernel)[:, None]
    wide = nn.functional.pad(x.transpose(1, 2), (kernel.shape[-1] - 1, 0))
    x = nn.functional.conv1d(wide, kernel, torch.from_numpy(mixer.kernel_bias), groups=len(kernel))
    x, gate = nn.functional.silu(x).transpose(1, 2).numpy(), nn.functional.silu(z).numpy()
    raw = x @ mixer.to_delta.T @ mixer.weights["dt_proj.weight"].T + mixer.weights["dt_proj.bias"]
    step = np.log1p(np.exp(raw))
    B, C = x @ mixer.to_B.T, x @ mixer.to_C.T
    h = np.zeros((len(inputs), *mixer.rates.shape))
    found, unread = [], []
    for t in range(inputs.shape[1]):
        h = np.exp(step[:, t, :, None] * mixer.rates) * h
        h = h + (step[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        unread.append(np.einsum("pd,sd,sdn->spn", mixer.out_proj, gate[:, t], h))
        found.append(unread[-1] * C[:, t, None, :])
    return np.stack(found, 1), np.stack(unread, 1)


def test_the_gram_matrix_of_contributions() -> None:
    mixer = mixer_of(block())
    sequences = sequences_of(mixer)
    V, unread = states_by_hand(mixer, sequences.inputs)
    for found, each in (
        (output_gram(mixer, sequences), V),
        (output_gram(mixer, sequences, read=False), unread),
    ):
        expected = np.einsum("sl,slpn,slpm->nm", sequences.weights, each, each)
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
    without = Mixer({**mixer.weights, "D": np.zeros_like(mixer.skip)})
    np.testing.assert_allclose(
        without.output(sequences.inputs), V.sum(axis=-1) + mixer.out_bias, atol=1e-13
    )


def test_elimination_is_the_best_change_of_scales_at_each_step() -> None:
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(40, 6)) * rng.uniform(0.1, 2.0, 6)
    K = factor.T @ factor
    ridged = K + 1e-5 * np.mean(np.diagonal(K)) * np.eye(6)

    def lost(kept: list[int]) -> float:
        """The least (w - 1)ᵀ K (w - 1) with w = 0 elsewhere."""
        root = np.linalg.cholesky(ridged).T
        return float(np.linalg.lstsq(root[:, kept], root.sum(axis=1), rcond=None)[1][0])

    found, left, before = Elimination.of(K), [*range(6)], 0.0
    for k in range(4):
        costs = {j: lost([i for i in left if i != j]) for j in left}
        best = min(costs, key=costs.__getitem__)
        assert found.dropped[k] == best
        assert found.scores[k] ** 2 == pytest.approx(costs[best] - before, rel=1e-9)
        left.remove(best)
        before = costs[best]
        kept, scales = found.kept(5 - k)
        assert [*kept] == left
        w = np.zeros(6)
        w[kept] = scales
        assert (w - 1) @ ridged @ (w - 1) == pytest.approx(before, rel=1e-9)
    assert np.sum(found.scores**2) == pytest.approx(np.ones(6) @ ridged @ np.ones(6), rel=1e-9)


def test_a_selection_alone_is_zeroing_of_what_reads_the_others() -> None:
    module = block().double()
    kept = np.array([0, 2, 5])
    small = StateMaps.selection(kept, np.ones(3), 6).mapped(mixer_of(module))
    rank = module.config.dt_rank
    with torch.no_grad():
        for n in {*range(6)} - {*kept.tolist()}:
            module.x_proj.weight[rank + 6 + n] = 0.0
    inputs = np.random.default_rng(2).normal(size=(2, 15, 8))
    np.testing.assert_allclose(small.output(inputs), mixer_of(module).output(inputs), atol=1e-14)


# --- What is fitted


@pytest.mark.parametrize("kind", [ReadoutFit, DriveFit])
def test_products_are_those_of_the_dense_matrix(kind: Any) -> None:
    mixer = mixer_of(block(3, 4))
    sequences = sequences_of(mixer, 2, 7)
    fit = kind(mixer, sequences)
    residual = fit.products(None)
    np.testing.assert_allclose(residual, 0.0, atol=1e-13)  # its own outputs
    base = fit.moved(np.zeros_like(residual)).output(sequences.inputs)
    columns = [
        (fit.moved(unit).output(sequences.inputs) - base).ravel()
        for unit in np.eye(residual.size)  # outputs are linear in what is fitted
    ]
    J = np.stack(columns, axis=1)
    weights = np.repeat(sequences.weights.ravel(), base.shape[-1])
    rng = np.random.default_rng(0)
    change = rng.normal(size=residual.size)
    expected = J.T @ (weights * (J @ change))
    np.testing.assert_allclose(fit.products(change), expected, atol=1e-10 * np.abs(expected).max())
    targets = base + rng.normal(size=base.shape)
    other = kind(mixer, Sequences(sequences.inputs, targets, sequences.weights))
    expected = J.T @ (weights * (targets - base).ravel())
    np.testing.assert_allclose(other.products(None), expected, atol=1e-10 * np.abs(expected).max())
    there = fit.metric(change)
    np.testing.assert_allclose(fit.metric(there, inverse=True), change, atol=1e-8)
    assert change @ there > 0.0


def test_conjugate_gradients_end_at_the_ridge_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmreduce.layers.mamba_fit._ITERATIONS", 200)
    mixer = mixer_of(block(2, 4))
    sequences = sequences_of(mixer, 4, 12)
    targets = sequences.targets + 0.1 * np.random.default_rng(0).normal(
        size=sequences.targets.shape
    )
    fit = DriveFit(mixer, Sequences(sequences.inputs, targets, sequences.weights))
    units = np.eye(mixer.to_B.size)
    normal = np.stack([fit.products(unit) + fit.anchor * fit.metric(unit) for unit in units], 1)
    expected = np.linalg.solve(normal, fit.products(None))
    found = (fit.fitted().to_B - mixer.to_B).ravel()
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_compensation_and_fit_lower_the_error_of_outputs() -> None:
    mixer = mixer_of(block(12))
    sequences, held_out = (sequences_of(mixer, 40, 20, seed) for seed in (0, 1))
    kept, scales = Elimination.of(output_gram(mixer, sequences)).kept(4)
    plain = StateMaps.selection(kept, np.ones(4), 12).mapped(mixer)
    compensated = StateMaps.selection(kept, scales, 12).mapped(mixer)
    fitted = refitted(compensated, sequences)
    errors = [each.output_error(sequences, mixer) for each in (plain, compensated, fitted)]
    assert errors == sorted(errors, reverse=True)
    unseen = [each.output_error(held_out, mixer) for each in (plain, compensated, fitted)]
    assert unseen[2] < 0.7 * min(unseen[:2])
    rows = [mixer.to_delta, mixer.to_B, np.zeros_like(mixer.to_C)]
    off = Mixer({**mixer.weights, "x_proj.weight": np.concatenate(rows)})
    assert off.output_error(held_out, mixer) == pytest.approx(1.0, abs=1e-12)


# --- Merging


def test_groups_are_the_best_intervals() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=8), rng.uniform(0.1, 1.0, 8)

    def spread(groups: np.ndarray) -> float:
        means = [np.average(values[groups == g], weights=weights[groups == g]) for g in groups]
        return float(np.sum(weights * (values - means) ** 2))

    every = (np.array(each) for each in itertools.product(range(3), repeat=8))
    best = min(map(spread, every))
    found = grouped(values, weights, 3)
    assert {*found.tolist()} == {0, 1, 2}
    assert spread(found) == pytest.approx(best, rel=1e-9)
    assert np.all(np.diff(found[np.argsort(values)]) >= 0)
    assert [*grouped(values, weights, 1)] == [0] * 8


def with_two_rates(module: Any) -> Any:
    """States 0, 1, 4 have one rate, the others another, and rows of B depend: two states say all of each."""
    rank = module.config.dt_rank
    with torch.no_grad():
        for n in (1, 4):
            module.A_log[:, n] = module.A_log[:, 0]
        for n in (3, 5):
            module.A_log[:, n] = module.A_log[:, 2]
        module.A_log[:, [2, 3, 5]] += 3.0
        B = module.x_proj.weight[rank : rank + 6]
        B[4] = 0.5 * B[0] - B[1]
        B[5] = 2.0 * B[2] + B[3]
    return module


def test_states_of_like_rates_merge_exactly() -> None:
    module = with_two_rates(block()).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.0, betas=(0.0, 0.0))
    inputs = torch.randn(8, 20, 8, dtype=torch.float64)
    before = module(inputs)
    (before**2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    model = nn.Sequential(module)
    data = Calibration.of_inputs({"0": inputs.numpy()})
    options = CutOptions(method="merged")
    result = reduce_model(model, 4, data=data, optimizer=optimizer, options=options)
    assert result.report["0"].output_error < 1e-7
    after = module(inputs)
    np.testing.assert_allclose(
        after.detach(), before.detach(), atol=1e-6 * float(before.detach().abs().max())
    )
    (after**2).mean().backward()
    own = optimizer.state[module.x_proj.weight]["exp_avg"]
    expected = module.x_proj.weight.grad
    torch.testing.assert_close(own, expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))
    state = optimizer.state[module.A_log]
    assert not state["exp_avg"].any()
    assert (state["exp_avg_sq"] > 0.0).all()
    whole, small = (
        list(states(-np.exp(each["A_log"]), *scanned(each, inputs.numpy())))[-1][1][-1]
        for each in (result.report["0"].weights, result.report["0"].new_weights)
    )
    np.testing.assert_allclose(
        result.report["0"].reduce_state(whole), small, atol=1e-5 * np.abs(small).max()
    )
    with pytest.raises(OrderError, match="4 states say all"):
        reduce_layer(with_two_rates(block().double()), 5, data=data_for(module), options=options)


def scanned(weights: dict[str, np.ndarray], inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    run = Run(Mixer(weights), inputs)
    return run.step, run.drive, run.projected(run.mixer.to_B)


# --- Layers and stock models


def test_all_states_change_nothing() -> None:
    module = block()
    before = fingerprint(module)
    result = reduce_layer(module, 6, data=data_for(module))
    assert (result.new_order, result.old_order) == (6, 6)
    assert fingerprint(module) == before


@pytest.mark.parametrize("method", ["compensated", "selected", "merged"])
def test_a_block_of_mambapy(method: Any) -> None:
    module = block()
    module.x_proj.requires_grad_(False)
    module.d_state = 6  # as mamba_ssm has it
    config = module.config
    data = data_for(module)
    inputs = torch.from_numpy(data.layers["model"].inputs).float()
    held_out = data.layers["model"].held_out
    with torch.no_grad():
        before = module(inputs).numpy()
    result = reduce_layer(module, 3, data=data, options=CutOptions(method=method))
    assert module.A_log.shape == (16, 3)
    assert module.A_log._no_weight_decay
    assert not module.x_proj.weight.requires_grad
    assert module.x_proj.out_features == module.config.dt_rank + 6
    assert (module.d_state, module.config.d_state, config.d_state) == (3, 3, 6)
    with torch.no_grad():
        after = module(inputs).numpy()
        off = copy.deepcopy(module)
        off.x_proj.weight[-3:] = 0.0
        off.D.copy_(torch.from_numpy(result.weights["D"]))
        direct = off(inputs).numpy()
    lost = np.sum((after - before)[held_out] ** 2) / np.sum((before - direct)[held_out] ** 2)
    assert result.output_error == pytest.approx(np.sqrt(lost), rel=1e-4)
    assert result.choice is not None
    assert result.choice.method == method
    cache = (None, torch.zeros(2, 16, config.d_conv - 1))
    steps = []
    with torch.no_grad():
        for k in range(8):
            out, cache = module.step(inputs[:2, k], cache)
            steps.append(out)
    np.testing.assert_allclose(torch.stack(steps, 1), after[:2, :8], atol=1e-5)


@AT_CHANCE
def test_a_model_of_transformers_stays_stock(tmp_path: Path) -> None:
    model, batches = language_model(), tokens()
    result = reduce_model(model, 3, data=calibrate(model, batches, loss=loss))
    assert [part.new_order for part in result.report.values()] == [3, 3]
    assert {part.choice.by for part in result.report.values() if part.choice} == {"loss"}
    assert (model.config.state_size, model.backbone.layers[1].mixer.ssm_state_size) == (3, 3)
    assert not hasattr(model.config, "ssm_states")
    assert "output error" in str(result.report)
    model.save_pretrained(tmp_path)
    again = MambaForCausalLM.from_pretrained(tmp_path)
    states = model.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with torch.no_grad():
        assert torch.equal(model(batches[0]).logits, again.eval()(batches[0]).logits)
    loaded = load_reduced(language_model(), model.state_dict())
    assert loaded.config.state_size == 3
    with torch.no_grad():
        assert torch.equal(loaded.eval()(batches[0]).logits, model(batches[0]).logits)


def test_generation_with_the_cache_is_the_forward_pass() -> None:
    model, batches = language_model(), tokens(2)
    reduce_model(model, 3, data=calibrate(model, batches))
    with torch.no_grad():
        written = model.generate(batches[0], max_new_tokens=6, do_sample=False, use_cache=True)
        logits = model(written, use_cache=False).logits
    length = batches[0].shape[1]
    assert torch.equal(written[:, length:], logits[:, length - 1 : -1].argmax(-1))


def test_what_is_excited_by_fewer_states_is_cut_at_no_loss() -> None:
    module = block().double()
    rank = module.config.dt_rank
    with (
        torch.no_grad()
    ):  # states 1 and 4 are those of state 0: with its rates and half of its input
        for n, share in ((1, 0.5), (4, -2.0)):
            module.A_log[:, n] = module.A_log[:, 0]
            module.x_proj.weight[rank + n] = share * module.x_proj.weight[rank]
            module.x_proj.weight[rank + 6 + n] = 3.0 * module.x_proj.weight[rank + 6]
    data = data_for(module)
    result = reduce_layer(module, 4, data=data, options=CutOptions(method="compensated"))
    assert result.output_error < 1e-4  # the ridge


def test_rules() -> None:
    module = block(8)
    data = data_for(module)
    result = reduce_layer(copy.deepcopy(module), MeasuredError(0.3), data=data)
    assert 0.0 < result.output_error <= 0.3
    assert 1 < result.new_order < 8
    by_share = reduce_layer(copy.deepcopy(module), HankelMass(0.6), data=data)
    assert 1 <= by_share.new_order < 8
    for options in (CutOptions(multiple_of=4), CutOptions(power_of_two=True)):
        rounded = reduce_layer(copy.deepcopy(module), 3, data=data, options=options)
        assert rounded.new_order == 4
    by_error = CutOptions(method="selected", power_of_two=True)
    assert reduce_layer(
        copy.deepcopy(module), MeasuredError(0.3), data=data, options=by_error
    ).new_order in (1, 2, 4, 8)
    rows = sweep(module, [2, 4, 8], data=data).rows
    assert [row.order for row in rows] == [2, 4, 8]
    assert rows[0].output_error > rows[1].output_error > rows[2].output_error == 0.0
    assert rows[0].error_bound is rows[0].measured_error is None
    head = repr(sweep(module, [2, 8], data=data)).splitlines()[0]
    assert re.split("  +", head) == ["wanted", "order", "method by data", "output error", "seconds"]


def test_a_budget_is_shared_by_data() -> None:
    config = mambapy.mamba.MambaConfig(8, 2, d_state=6, dt_min=0.05, dt_max=0.5)
    model = shaken(mambapy.mamba.Mamba(config))
    with torch.no_grad():
        model.layers[1].mixer.x_proj.weight[-6:] *= 1e-3  # hardly reads its states
    data = calibrate(model, [torch.randn(8, 12, 8) for _ in range(4)])
    report = reduce_model(model, TotalBudget(7), data=data).report
    assert [part.new_order for part in report.values()] == [6, 1]


def test_a_budget_over_layers_without_a_common_unit() -> None:
    model = nn.Sequential(block(), LRU(8, 8, 12))
    data = calibrate(model, [torch.randn(6, 10, 8) for _ in range(4)])
    before = fingerprint(model)
    with pytest.raises(OrderError, match=r"`1` has Hankel.*`0`, which is selective.*relative=True"):
        reduce_model(model, TotalBudget(9), data=data)
    assert fingerprint(model) == before
    report = reduce_model(model, TotalBudget(9, relative=True), data=data).report
    assert sum(part.new_order for part in report.values()) == 9


def test_layers_of_one_config_get_one_order() -> None:
    model, batches = language_model(), tokens(4)
    data = calibrate(model, batches)
    before = fingerprint(model)
    with pytest.raises(
        OrderError, match=r"layers would have 3, 8 states.*one `state_size`.*uniform=True"
    ):
        reduce_model(model, {"backbone.layers.0.mixer": 3}, data=data)
    assert fingerprint(model) == before
    reduce_model(model, MeasuredError(0.2), data=data, options=CutOptions(uniform=True))
    sizes = {each.mixer.A_log.shape[1] for each in model.backbone.layers}
    assert sizes == {model.config.state_size}


class _SsmMamba(mambapy.mamba.MambaBlock):
    """A mixer with the arguments and attributes of `mamba_ssm`."""

    def __init__(self, d_model: int, d_state: int = 16) -> None:
        super().__init__(
            mambapy.mamba.MambaConfig(d_model, 1, d_state=d_state, dt_min=0.05, dt_max=0.5)
        )
        self.d_state = d_state


@dataclasses.dataclass
class _SsmConfig:
    d_model: int
    n_layer: int = 2
    vocab_size: int = 20
    ssm_cfg: dict[str, Any] = dataclasses.field(default_factory=dict)


class _SsmLanguageModel(nn.Module):
    """Built and saved as the language model of `mamba_ssm` is."""

    def __init__(self, config: _SsmConfig) -> None:
        super().__init__()
        self.config = config
        cfg = copy.deepcopy(config.ssm_cfg)
        assert cfg.pop("layer", "Mamba1") == "Mamba1"
        self.backbone = nn.Sequential(
            nn.Embedding(config.vocab_size, config.d_model),
            *(_SsmMamba(config.d_model, **cfg) for _ in range(config.n_layer)),
        )
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.backbone(ids))

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(vars(self.config)))

    @classmethod
    def from_pretrained(cls, folder: Path) -> _SsmLanguageModel:
        model = cls(_SsmConfig(**json.loads((folder / "config.json").read_text())))
        model.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
        return model


@pytest.mark.parametrize("cfg", [{}, {"layer": "Mamba1", "d_state": 8}])
def test_a_language_model_of_mamba_ssm_saves_its_size(cfg: dict[str, Any], tmp_path: Path) -> None:
    model, batches = _SsmLanguageModel(_SsmConfig(8, ssm_cfg=cfg)), tokens()
    shaken(model)
    given = copy.deepcopy(cfg)
    optimizer = torch.optim.Adam(model.parameters())
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        3,
        data=lambda model: calibrate(model, batches),
        rollback=RollbackPolicy(0.1),
    )
    reducer.report(1.0)
    reducer.step(1, model, optimizer)
    assert model.config.ssm_cfg == {**given, "d_state": 3}
    assert cfg == given
    model.save_pretrained(tmp_path)
    again = _SsmLanguageModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(batches[0]), model(batches[0]))
    reducer.report(9.0)
    reducer.step(2, model, optimizer)
    assert model.config.ssm_cfg == {"d_state": 16, **given}
    data = calibrate(model, batches)
    with pytest.raises(OrderError, match=r"one `ssm_cfg\.d_state` for all of them"):
        reduce_model(model, {"backbone.1": 3}, data=data)


# --- Training


def test_moments_are_gradients_after_a_cut_that_changes_nothing() -> None:
    module = block().double()
    rank = module.config.dt_rank
    with torch.no_grad():
        for n in (2, 3):  # twins of state 0, of which one with another scale
            module.A_log[:, n] = module.A_log[:, 0]
            module.x_proj.weight[rank + n] = 0.5 * module.x_proj.weight[rank]
            module.x_proj.weight[rank + 6 + n] = 2.0 * module.x_proj.weight[rank + 6]
    inputs = torch.randn(8, 20, 8, dtype=torch.float64)
    goal = torch.randn(8, 20, 8, dtype=torch.float64)
    optimizer = torch.optim.Adam(module.parameters(), 0.0, betas=(0.0, 0.0))

    def gradients() -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        ((module(inputs) - goal) ** 2).mean().backward()
        return {name: each.grad.clone() for name, each in module.named_parameters()}

    gradients()
    optimizer.step()
    model = nn.Sequential(module)
    data = Calibration.of_inputs({"0": inputs.numpy()})
    result = reduce_model(
        model, 4, data=data, optimizer=optimizer, options=CutOptions(method="compensated")
    )
    cut = result.report["0"].cut
    assert np.abs(cut.maps.read).max() > 2.0
    for name, expected in gradients().items():
        state = optimizer.state[dict(module.named_parameters())[name]]
        for field, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            found = state[field]
            assert found.shape == expected.shape
            error = (found - expected**power).abs().max() / (expected**power).abs().max()
            assert error < 1e-3, (name, field)  # the ridge


@AT_CHANCE
def test_training_goes_on_after_a_cut_in_training() -> None:
    model, batches = language_model().train(), tokens(8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    reducer = InTrainingReducer(
        ReductionSchedule.at(3),
        3,
        data=lambda model: calibrate(model, batches[:4], loss=loss),
        rollback=RollbackPolicy(0.1),
    )
    reducer.report(1.0)
    losses = []
    for step in range(1, 9):
        optimizer.zero_grad()
        value = loss(model, batches[step % 8])
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
        reducer.step(step, model, optimizer)
    assert losses[-1] < losses[0]
    assert [event.new_order for event in reducer.events] == [3, 3]
    assert model.backbone.layers[0].mixer.A_log.shape[1] == model.config.state_size == 3
    event = reducer.events[0]
    assert event.measured_error is event.error_bound is None
    assert event.method in ("compensated", "selected", "merged")
    assert type(event).from_dict(event.to_dict()) == event
    reducer.report(9.0)
    reducer.step(9, model, optimizer)
    assert model.config.state_size == model.backbone.layers[1].mixer.ssm_state_size == 8
    assert model.backbone.layers[1].mixer.x_proj.out_features == 17


def test_plots_and_reports_name_scores_as_what_they_are() -> None:
    model = nn.Sequential(block(), LRU(8, 8, 12))
    batches = [torch.randn(6, 10, 8) for _ in range(4)]
    reducer = InTrainingReducer(
        ReductionSchedule.at(1), 3, data=lambda model: calibrate(model, batches)
    )
    reducer.step(1, model, torch.optim.Adam(model.parameters()))
    selective, linear = reducer.events
    for event, value in (
        (selective, "root of the output lost with each state"),
        (linear, "singular value"),
    ):
        axes = event.plot()
        assert value in axes[0].get_ylabel()
        assert len(axes) == 1 + (event is linear)
        assert "Hankel" not in axes[0].get_ylabel() or event is linear


def test_a_summary_has_the_error_that_there_is() -> None:
    model = nn.Sequential(block())
    data = Calibration.of_inputs({"0": data_for(model[0]).layers["model"].inputs})
    result = reduce_model(model, 3, data=data)
    error = result.report["0"].output_error
    assert f"largest output_error={error:.3g}" in repr(result)
    assert "measured_error" not in repr(result.report)


@pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="torch was built without gloo",
)
def test_a_model_in_ddp_is_cut_as_alone(tmp_path: Path) -> None:
    model, batches = language_model(), tokens()
    alone = copy.deepcopy(model)
    reduce_model(alone, 3, data=calibrate(alone, batches))
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:  # two processes are in test_torch_distributed.py
        wrapped = nn.parallel.DistributedDataParallel(model)
        reduce_model(wrapped, 3, data=calibrate(wrapped, batches))
        loss(wrapped, batches[0]).backward()
    finally:
        distributed.destroy_process_group()
    assert model.config.state_size == 3
    for own, expected in zip(model.parameters(), alone.parameters(), strict=True):
        assert own.grad.shape == own.shape
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(own, expected, rtol=0.0, atol=1e-3 * scale)


def test_a_rollback_gives_mambapy_its_sizes_back() -> None:
    config = mambapy.mamba.MambaConfig(8, 2, d_state=6, dt_min=0.05, dt_max=0.5)
    model = shaken(mambapy.mamba.Mamba(config))
    inputs = [torch.randn(6, 10, 8) for _ in range(4)]
    optimizer = torch.optim.Adam(model.parameters())
    before = fingerprint(model)

    def new_reducer() -> InTrainingReducer:
        return InTrainingReducer(
            ReductionSchedule.at(1),
            2,
            data=lambda model: calibrate(model, inputs),
            rollback=RollbackPolicy(0.1),
        )

    reducer = new_reducer()
    reducer.report(1.0)
    reducer.step(1, model, optimizer)
    assert [each.mixer.config.d_state for each in model.layers] == [2, 2]
    assert model.layers[0].mixer.config is not model.layers[1].mixer.config
    assert config.d_state == 6
    small = mambapy.mamba.Mamba(config)
    load_reduced(small, model.state_dict())
    assert [each.mixer.config.d_state for each in small.layers] == [2, 2]
    assert torch.equal(small(inputs[0]), model(inputs[0]))
    saved = copy.deepcopy(reducer.state_dict())
    reducer = new_reducer()
    reducer.load_state_dict(saved)
    assert len(reducer.events) == 2
    reducer.report(9.0)
    reducer.step(2, model, optimizer)
    assert [each.mixer.config.d_state for each in model.layers] == [6, 6]
    assert fingerprint(model) == before


@pytest.mark.slow
@AT_CHANCE
def test_outputs_may_be_matched_after_a_cut() -> None:
    model, batches = language_model(), tokens(4)
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        2,
        data=lambda model: calibrate(model, batches, loss=loss),
        above_chance="match",
    )
    optimizer = torch.optim.Adam(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # outputs of noise match no better
        reducer.step(1, model, optimizer)
    assert {event.new_order for event in reducer.events} == {2}


@pytest.mark.slow
def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "docs/examples/mamba.py"
    runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    before, after, constant = map(
        float,
        re.findall(r"held out: (\S+) before, (\S+) after; of a constant prediction (\S+)", said)[0],
    )
    off = float(re.findall(r"all states off: (\S+)", said)[0])
    assert before < after < 1.1 * before < 0.5 * min(constant, off)
    assert "4 torch.Size([64, 4])" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_without_a_head_in_its_own_precision(dtype: torch.dtype) -> None:
    model = language_model().backbone.to(dtype)
    data = calibrate(model, tokens())
    result = reduce_model(model, 4, data=data)
    assert model.layers[0].mixer.A_log.dtype is dtype
    assert model.config.state_size == 4
    assert all(part.output_error < 0.7 for part in result.report.values())
    with torch.no_grad():
        assert torch.isfinite(model(tokens(1)[0]).last_hidden_state).all()


def test_an_average_inside_follows() -> None:
    net = nn.Sequential(block())
    model = nn.ModuleDict({"net": net, "ema": torch.optim.swa_utils.AveragedModel(net)})
    data = Calibration.of_inputs(
        {name: data_for(net[0]).layers["model"].inputs for name in ("net.0", "ema.module.0")}
    )
    result = reduce_model(model, 3, data=data)
    assert [part.new_order for part in result.report.values()] == [3, 3]
    torch.testing.assert_close(net[0].x_proj.weight, model["ema"].module[0].x_proj.weight)


def test_a_follower_keeps_the_same_states() -> None:
    model = nn.Sequential(block())
    follower = copy.deepcopy(model)
    data = Calibration.of_inputs({"0": data_for(model[0]).layers["model"].inputs})
    reduce_model(model, 3, data=data, followers=[follower])
    for own, other in zip(model.parameters(), follower.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_the_state_of_a_stream() -> None:
    module = block()
    result = reduce_layer(
        module, 3, data=data_for(module), options=CutOptions(method="compensated")
    )
    state = torch.randn(2, 16, 6)
    torch.testing.assert_close(
        result.reduce_state(state), state[..., result.cut.maps.drive.argmax(axis=1)]
    )
    with pytest.raises(ShapeError, match=r"last axes are \(16, 6\)"):
        result.reduce_state(state[..., :5])


def test_the_state_of_a_stream_in_integers_is_merged_in_floats() -> None:
    module = with_two_rates(block())
    result = reduce_layer(module, 4, data=data_for(module), options=CutOptions(method="merged"))
    whole = 3.0 * torch.randn(2, 16, 6).round()
    found, expected = result.reduce_state(whole.long()), result.reduce_state(whole)
    assert (expected != expected.round()).any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


# --- Refusals


def test_what_needs_data_is_passed_over_where_that_is_asked_for() -> None:
    block = mambapy.mamba.MambaBlock(mambapy.mamba.MambaConfig(8, 1, d_state=8))
    model = nn.Sequential(LRU(8, 8, 12), block)
    options = CutOptions(skip_unsupported=True)
    with pytest.raises(UnsupportedLayerError, match=r"no data.*skip_unsupported=True"):
        reduce_model(model, 4)
    result = reduce_model(model, 4, options=options)
    assert list(result.report) == ["0"]
    assert result.skipped == {"1": "it is cut by data alone, and there are none."}
    assert str(result).splitlines()[-1] == f"not reduced: 1: {result.skipped['1']}"
    trace = HankelTrace(1)
    trace.record(1, model)
    assert trace.layers == ("0",)
    assert block.A_log.shape[1] == 8
    with pytest.raises(UnsupportedLayerError, match=r"without data.*Passed over: `0`") as caught:
        reduce_model(nn.Sequential(block), 4, options=options)
    assert "skip_unsupported" not in str(caught.value)


def test_without_data_a_reducer_fails_at_the_first_step() -> None:
    block = mambapy.mamba.MambaBlock(mambapy.mamba.MambaConfig(8, 1, d_state=8))
    model = nn.Sequential(LRU(8, 8, 12), block)
    schedule = ReductionSchedule.at(25)
    with pytest.raises(UnsupportedLayerError, match=r"`1`.*InTrainingReducer\(schedule, data="):
        InTrainingReducer(schedule).step(1, model, None)
    skipping = CutOptions(skip_unsupported=True)
    InTrainingReducer(schedule, options=skipping).step(1, model, None)
    with pytest.raises(UnsupportedLayerError, match=r"InTrainingReducer\(schedule, data="):
        InTrainingReducer(schedule, options=skipping).step(1, nn.Sequential(block), None)


def test_without_data_a_cut_says_how_to_calibrate() -> None:
    model = language_model()
    before = fingerprint(model)
    for call in (
        lambda: reduce_model(model, 3),
        lambda: reduce_layer(model.backbone.layers[0].mixer, 3),
    ):
        with pytest.raises(UnsupportedLayerError, match=r"data=calibrate\(model, batches\)"):
            call()
    with pytest.raises(UnsupportedLayerError, match="no Hankel singular values to record"):
        HankelTrace(1).record(1, model)
    with pytest.raises(UnsupportedLayerError, match=r"selective.*no one system"):
        read_system(model.backbone.layers[0].mixer)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("order", "options", "error", "match"),
    [
        (7, CutOptions(), OrderError, "`order` is 7 but this Mamba layer has 6 states"),
        (ErrorBound(relative=0.1), CutOptions(), UnreachableToleranceError, "MeasuredError"),
        (
            3,
            CutOptions(method="balanced"),
            UnsupportedLayerError,
            "'best', 'compensated', 'selected'",
        ),
    ],
)
def test_what_cannot_be_had(order: Any, options: Any, error: Any, match: str) -> None:
    module = block()
    before = fingerprint(module)
    with pytest.raises(error, match=match):
        reduce_layer(module, order, data=data_for(module), options=options)
    assert fingerprint(module) == before


def test_a_method_of_some_layers_names_the_others() -> None:
    model = nn.Sequential(LRU(8, 8, 12), block())
    batches = [torch.randn(6, 10, 8) for _ in range(4)]
    data = calibrate(model, batches)
    for method in ("compensated", "balanced"):
        options = CutOptions(method=method)
        with pytest.raises(
            UnsupportedLayerError, match=r"while reducing layer `[01]`.*exclude=\.\.\."
        ):
            reduce_model(model, 4, data=data, options=options)
    for name, method in (("1", "balanced"), ("0", "compensated")):
        options = CutOptions(method=method, exclude=(name,))
        assert len(reduce_model(model, 4, data=data, options=options).report) == 1


def test_no_compensation_for_other_layers() -> None:
    from s5 import S5

    layer = S5(3, 8)
    data = Calibration.of_inputs({"model": np.random.default_rng(0).normal(size=(8, 20, 3))})
    with pytest.raises(UnsupportedLayerError, match="no selective layer"):
        reduce_layer(layer, 4, data=data, options=CutOptions(method="compensated"))


def test_few_sequences_are_warned_of() -> None:
    module = block()
    data = data_for(module, 4, 5)
    with pytest.warns(
        CalibrationWarning, match=r"15 effective rows; expected 32.*: 17 are missing"
    ):
        reduce_layer(module, 3, data=data, options=CutOptions(method="selected"))


def _second_scan() -> Any:
    module = block()
    module.A_b_log = nn.Parameter(module.A_log.detach().clone())
    return module


def _other_activation() -> Any:
    return language_model(hidden_act="gelu").backbone.layers[0].mixer


def _falcon() -> Any:
    from transformers import FalconMambaConfig
    from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer

    config = FalconMambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1)
    return FalconMambaMixer(config, 0, initialize_mixer_weights=False)


def _quantised() -> Any:
    module = block()
    weight = module.x_proj.weight.detach().to(torch.int8)
    module.x_proj.weight = nn.Parameter(weight, requires_grad=False)
    return module


class _Scaled(torch.Tensor):
    """Says that it is of floats, and holds integers and a scale, as tensors of torchao do."""

    values: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Any:
        self = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)
        self.values, self.scale = values, scale
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        plain = [each.values * each.scale if isinstance(each, cls) else each for each in args]
        return func(*plain, **(kwargs or {}))


class _Int8Linear(nn.Module):
    """A projection whose weight is integers and scales."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        scales = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("values", (linear.weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.values * self.scales)


def _scaled(name: str) -> Any:
    module = block()
    linear = getattr(module, name)
    values, scale = (100 * linear.weight.detach()).round().to(torch.int8), torch.tensor(0.01)
    linear.weight = nn.Parameter(_Scaled(values, scale), requires_grad=False)
    return module


def _bare(name: str) -> Any:
    module = block()
    setattr(module, name, _Int8Linear(getattr(module, name)))
    return module


def _one_projection() -> Any:
    first, second = block(), block()
    second.x_proj = first.x_proj
    return nn.Sequential(first, second)


def _tied() -> Any:
    first, second = block(), block()
    second.x_proj.weight = first.x_proj.weight
    return nn.Sequential(first, second)


def _parametrised() -> Any:
    module = block()
    nn.utils.parametrizations.weight_norm(module.x_proj)
    return module


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_falcon, "normalises B and C"),
        (lambda: block(inner_layernorms=True), "normalises B and C"),
        (_second_scan, "second scan in reverse"),
        (_other_activation, "`activation` is 'gelu'"),
        (_quantised, "dtype torch.int8"),
        (lambda: _scaled("x_proj"), r"`x_proj.weight` of layer `0.*` is a .*_Scaled.*quantised"),
        (lambda: _scaled("in_proj"), r"`in_proj.weight` of layer `0.*` is a .*_Scaled.*quantised"),
        (lambda: _bare("in_proj"), r"whose `in_proj` holds no `weight`.*Cut the model before"),
        (lambda: _bare("x_proj"), r"whose `x_proj` holds no `weight`"),
        (_tied, "shares parameters"),
        (_one_projection, "shares parameters.*Untie them first"),
        (_parametrised, "computed by a parametrization"),
    ],
)
def test_variants_are_refused(make: Any, match: str) -> None:
    model = nn.Sequential(make())
    before = fingerprint(model)
    data = Calibration.of_inputs({"0": np.ones((4, 3, 8))})
    with pytest.raises(UnsupportedLayerError, match=match):
        reduce_model(model, 3, data=data)
    assert fingerprint(model) == before


def test_a_model_with_one_quantised_layer_is_refused() -> None:
    model, batches = language_model(), tokens()
    mixer = model.backbone.layers[1].mixer
    mixer.in_proj = _Int8Linear(mixer.in_proj)
    before = fingerprint(model)
    data = calibrate(model, batches)
    assert [*data.layers] == ["backbone.layers.0.mixer"]
    with pytest.raises(UnsupportedLayerError, match=r"layers\.1\.mixer.*one `state_size`"):
        reduce_model(model, 3, data=data)
    assert fingerprint(model) == before


def test_a_frozen_model_stays_frozen() -> None:
    model, batches = language_model().requires_grad_(False), tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # it has learned nothing
        result = reduce_model(model, 3, data=calibrate(model, batches, loss=loss))
    assert {part.new_order for part in result.report.values()} == {3}
    assert not any(each.requires_grad for each in model.parameters())


def test_layers_that_put_out_nothing_by_their_states() -> None:
    module = block()
    with torch.no_grad():
        module.x_proj.weight[-6:] = 0.0
    with pytest.raises(OrderError, match="no state matters"):
        reduce_layer(module, 3, data=data_for(module))


def test_kinds_are_told_apart() -> None:
    assert Mamba().is_same(Mamba())
    assert not Mamba().is_same(Mamba(()))
    assert [*itertools.islice(Mamba().shapes, 2)] == ["A_log", "D"]


@OVERFLOWS
def test_numbers_that_overflow_are_refused() -> None:
    module = block()
    data = Calibration.of_inputs({"0": 1e60 * np.random.default_rng(0).normal(size=(8, 16, 8))})
    with pytest.raises(NonFiniteError, match="overflows"):
        reduce_model(nn.Sequential(module), 3, data=data)


@OVERFLOWS
def test_a_tolerance_does_not_hide_numbers_that_overflow() -> None:
    module = block()
    data = Calibration.of_inputs({"0": 1e60 * np.random.default_rng(0).normal(size=(8, 16, 8))})
    before = fingerprint(module)
    with pytest.raises(NonFiniteError, match="overflows"):
        reduce_model(nn.Sequential(module), MeasuredError(0.1), data=data)
    assert fingerprint(module) == before


def test_a_tolerance_passes_over_orders_that_a_method_cannot_make() -> None:
    module = with_two_rates(block().double())
    options = CutOptions(method="merged")
    data = data_for(module)
    result = reduce_layer(copy.deepcopy(module), MeasuredError(1e-6), data=data, options=options)
    assert result.new_order == 4
    result = reduce_layer(module, MeasuredError(1e-15), data=data, options=options)
    assert result.new_order == 6


@OVERFLOWS
def test_no_cut_writes_what_its_precision_cannot_hold() -> None:
    module = block()
    with torch.no_grad():
        module.A_log[:, 1] = module.A_log[:, 0]
        module.x_proj.weight[-11] = module.x_proj.weight[-12]
        module.x_proj.weight[-6:] = 4e4 * torch.sign(module.x_proj.weight[-6:])
        module.x_proj.weight[-5] = module.x_proj.weight[-6]
    before = fingerprint(module.half())
    with pytest.raises(NonFiniteError, match=r"x_proj\.weight"):
        reduce_layer(module, 5, data=data_for(module), options=CutOptions(method="compensated"))
    assert fingerprint(module) == before


def test_a_trace_says_that_there_are_no_hankel_singular_values() -> None:
    module = block()
    with pytest.raises(UnsupportedLayerError, match="no Hankel singular values"):
        HankelTrace(1).record(0, nn.Sequential(module), data=data_for(module))


def test_orders_of_layers_are_compared_by_shapes_alone() -> None:
    model = language_model(hidden=64)
    handles = find_layers(model, CutOptions()).handles
    tracemalloc.start()
    try:
        check_orders(model, [(handle, 4) for handle in handles])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < model.backbone.layers[0].mixer.in_proj.weight.nbytes
