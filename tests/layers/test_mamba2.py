"""Mamba-2: what a mixer computes, which states of each group stay, and the stock models that come out."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fingerprints import fingerprint
from torch import nn

from ssmreduce import (
    Calibration,
    CutOptions,
    ErrorBound,
    HankelEnergy,
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
)
from ssmreduce.errors import (
    ArgumentError,
    CalibrationWarning,
    OrderError,
    ShapeError,
    UnreachableToleranceError,
    UnsupportedLayerError,
)
from ssmreduce.gramians.sequences import Sequences
from ssmreduce.layers.known import kind_of
from ssmreduce.layers.mamba2 import Mamba2
from ssmreduce.layers.mamba2_mixer import Mixer2, Norm, Run2, Settings
from ssmreduce.layers.mamba2_scan import chunks
from ssmreduce.layers.mamba2_selection import Dropping, group_grams

AT_CHANCE = pytest.mark.filterwarnings("ignore:the model is at chance")
"""Language models of these tests have learned nothing."""

STATES, GROUPS = 8, 2
_TINY: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2}
_HYBRID: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
}
_BAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": STATES,
    "mamba_n_groups": GROUPS,
    "mamba_chunk_size": 8,
}


def _mamba2(**settings: Any) -> Any:
    sizes = {"num_heads": 4, "head_dim": 8, "state_size": STATES, "n_groups": GROUPS}
    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(**_TINY, **{**sizes, "chunk_size": 8, **settings})
    )


def _bamba() -> Any:
    return transformers.BambaForCausalLM(
        transformers.BambaConfig(**_TINY, **_HYBRID, **_BAMBA, attn_layer_indices=[1])
    )


def _granite() -> Any:
    config = transformers.GraniteMoeHybridConfig(
        **_TINY,
        **_HYBRID,
        **_BAMBA,
        layer_types=["mamba", "attention"],
        num_local_experts=2,
        num_experts_per_tok=1,
        shared_intermediate_size=16,
    )
    return transformers.GraniteMoeHybridForCausalLM(config)


def _falcon(**settings: Any) -> Any:
    config = transformers.FalconH1Config(
        **_TINY,
        **_HYBRID,
        **_BAMBA,
        mamba_d_ssm=32,
        ssm_multipliers=[0.5, 1.5, 0.7, 0.8, 1.2],
        ssm_in_multiplier=1.3,
        **settings,
    )
    return transformers.FalconH1ForCausalLM(config)


def _zamba2() -> Any:
    config = transformers.Zamba2Config(
        **_TINY,
        **_HYBRID,
        mamba_d_state=STATES,
        mamba_ngroups=GROUPS,
        n_mamba_heads=4,
        mamba_headdim=8,
        chunk_size=8,
        layers_block_type=["mamba", "hybrid"],
        num_mem_blocks=1,
        adapter_rank=4,
    )
    return transformers.Zamba2ForCausalLM(config)


def _nemotron() -> Any:
    config = transformers.NemotronHConfig(
        vocab_size=20,
        hidden_size=16,
        **_HYBRID,
        head_dim=8,
        layers_block_type=["mamba", "attention", "mamba"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=STATES,
        n_groups=GROUPS,
        chunk_size=8,
    )
    return transformers.NemotronHForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "Mamba2": _mamba2,
    "Mamba2, limited steps": lambda: _mamba2(time_step_limit=(0.02, 0.7), use_bias=True),
    "Mamba2, no bias": lambda: _mamba2(use_conv_bias=False, n_groups=1),
    "Bamba": _bamba,
    "GraniteMoeHybrid": _granite,
    "FalconH1": _falcon,
    "FalconH1, normed before": lambda: _falcon(
        mamba_rms_norm=True, mamba_norm_before_gate=True, mamba_proj_bias=True
    ),
    "FalconH1, normed after": lambda: _falcon(
        mamba_rms_norm=True, mamba_norm_before_gate=False, projectors_bias=True
    ),
    "Zamba2": _zamba2,
    "NemotronH": _nemotron,
}
STOCK = ("Mamba2", "Bamba", "GraniteMoeHybrid", "FalconH1", "Zamba2", "NemotronH")


pytestmark = pytest.mark.usefixtures("quiet_transformers")


def made(name: str = "Mamba2") -> Any:
    """A model whose weights are those of no initialisation."""
    model = MODELS[name]()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
    return model.eval()


def mixers(model: Any) -> list[Any]:
    return [each for each in model.modules() if "A_log" in each._parameters]


def tokens(count: int = 6) -> list[torch.Tensor]:
    return [torch.randint(1, 20, (4, 16)) for _ in range(count)]


def loss(model: Any, batch: torch.Tensor) -> Any:
    return model(batch, labels=batch).loss


@contextmanager
def in_double() -> Iterator[None]:
    """What libraries do in single precision, in double."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch, "float32", torch.float64)
        with torch.no_grad():
            yield


def weights_of(module: Any) -> dict[str, np.ndarray]:
    named = itertools.chain(module.named_parameters(), module.named_buffers())
    return {name: each.detach().double().numpy() for name, each in named}


def data_for(count: int = 12, length: int = 20) -> Calibration:
    rng = np.random.default_rng(1)
    return Calibration.of_inputs({"model": rng.normal(size=(count, length, 16))})


def a_mixer() -> tuple[Mixer2, Sequences]:
    """Four heads of two channels in two groups, three states, and sequences for it."""
    rng = np.random.default_rng(0)
    d, H, N, G = 8, 4, 3, 2
    width = d + 2 * G * N
    weights = {
        "in_proj.weight": rng.normal(size=(d + width + H, 5)),
        "conv1d.weight": rng.normal(size=(width, 1, 3)),
        "A_log": rng.normal(size=H),
        "dt_bias": rng.normal(size=H),
        "D": rng.normal(size=d),
        "norm.weight": rng.normal(size=d),
        "out_proj.weight": rng.normal(size=(6, d)),
    }
    mixer = Mixer2(weights, Settings(G, Norm(d // G, 1e-5)))
    inputs, tau = rng.normal(size=(3, 9, 5)), rng.uniform(0.2, 2.0, size=(3, 9))
    tau[-1, -2:] = 0.0
    return mixer, Sequences(inputs, mixer.output(inputs), tau)


class Recurrence(nn.Module):
    """A mixer with the names of mamba_ssm, one step after the other."""

    def __init__(self, *, rmsnorm: bool = True, whole: bool = False, before: bool = False) -> None:
        super().__init__()
        self.d_ssm = self.d_inner = 32
        self.d_state, self.ngroups, self.nheads, self.headdim = STATES, GROUPS, 4, 8
        self.dt_limit, self.rmsnorm, self.activation = (0.0, math.inf), rmsnorm, "silu"
        width = 32 + 2 * GROUPS * STATES
        self.in_proj = nn.Linear(16, 32 + width + 4, bias=False)
        self.conv1d = nn.Conv1d(width, width, 4, groups=width, padding=3)
        self.dt_bias, self.A_log = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.D = nn.Parameter(torch.randn(32 if whole else 4))
        self.out_proj = nn.Linear(32, 16, bias=False)
        if rmsnorm:
            self.norm = nn.Module()
            self.norm.weight = nn.Parameter(torch.randn(32))
            self.norm.eps, self.norm.group_size = 1e-5, 16
            self.norm.norm_before_gate = before

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        size = self.ngroups * self.d_state
        z, mixed, delta = self.in_proj(u).split([32, 32 + 2 * size, 4], -1)
        mixed = self.conv1d(mixed.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)
        x, B, C = nn.functional.silu(mixed).split([32, size, size], -1)
        step = nn.functional.softplus(delta + self.dt_bias)
        heads = x.unflatten(-1, (4, 8))
        B, C = (each.unflatten(-1, (2, -1)).repeat_interleave(2, dim=2) for each in (B, C))
        state, y = torch.zeros(len(u), 4, 8, self.d_state, dtype=u.dtype), []
        for t in range(u.shape[1]):
            decay = torch.exp(-step[:, t] * self.A_log.exp())[..., None, None]
            driven = (step[:, t, :, None] * heads[:, t])[..., None] * B[:, t, :, None]
            state = decay * state + driven
            y.append((state * C[:, t, :, None]).sum(-1))
        skip = self.D.view(4, -1)
        out = (torch.stack(y, 1) + skip * heads).flatten(2)
        gate = nn.functional.silu(z)
        if not self.rmsnorm:
            return self.out_proj(out * gate)
        if not self.norm.norm_before_gate:
            out = out * gate
        out = out.unflatten(-1, (2, 16))
        out = (out / torch.sqrt((out**2).mean(-1, keepdim=True) + 1e-5)).flatten(2)
        out = out * self.norm.weight
        return self.out_proj(out * gate if self.norm.norm_before_gate else out)


# --- What a mixer computes


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_that_of_transformers(name: str) -> None:
    model = made(name).double()
    inputs = torch.randn(3, 21, 16, dtype=torch.float64)
    for mixer in mixers(model):
        with in_double():
            expected = mixer(inputs).numpy()
        weights = weights_of(mixer)
        kind = kind_of(mixer, {name: each.ndim for name, each in weights.items()})
        assert isinstance(kind, Mamba2)
        got = kind.output(weights, inputs.numpy())
        np.testing.assert_allclose(got, expected, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize(
    "settings",
    [{}, {"rmsnorm": False}, {"whole": True}, {"before": True}],
    ids=lambda settings: next(iter(settings), "usual"),
)
def test_a_mixer_of_mamba_ssm(settings: Any) -> None:
    module = Recurrence(**settings).double()
    data = data_for()
    inputs = torch.from_numpy(data.layers["model"].inputs)
    with torch.no_grad():
        before = module(inputs)
        result = reduce_layer(module, 3, data=data)
        after = module(inputs)
        direct = without_states(module)(inputs)
    np.testing.assert_allclose(
        result.kind.output(result.cut.weights, inputs.numpy()), before, atol=1e-12
    )
    assert (module.d_state, module.conv1d.groups, module.in_proj.out_features) == (3, 44, 80)
    held_out = data.layers["model"].held_out
    lost = ((after - before)[held_out] ** 2).sum() / ((before - direct)[held_out] ** 2).sum()
    assert result.output_error == pytest.approx(math.sqrt(lost), rel=1e-9)


def without_states(module: Any) -> Any:
    """A copy in which nothing reads the states."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.conv1d.weight[-GROUPS * module.d_state :] = 0.0
        other.conv1d.bias[-GROUPS * module.d_state :] = 0.0
    return other


def test_the_scan_in_chunks_is_the_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmreduce.layers.mamba2_scan._CHUNK", 4)
    rng = np.random.default_rng(0)
    G, J, L, P, N = 2, 3, 11, 4, 5
    decay, drive = -rng.uniform(0.0, 3.0, (G, J, L)), rng.normal(size=(G, J, L, P))
    B, C = rng.normal(size=(2, G, L, N))
    parts = [*chunks(decay, drive, B)]
    assert [part.at.start for part in parts] == [0, 4, 8]
    y = np.concatenate([part.outputs(C) for part in parts], axis=2)
    S = np.zeros((G, J, P, N))
    for t in range(L):
        for g, j in np.ndindex(G, J):
            S[g, j] = np.exp(decay[g, j, t]) * S[g, j] + np.outer(drive[g, j, t], B[g, t])
            np.testing.assert_allclose(y[g, j, t], S[g, j] @ C[g, t], atol=1e-13)
        np.testing.assert_allclose(parts[t // 4].state_at(t % 4), S, atol=1e-13)


# --- Which states stay


def test_the_gram_matrix_is_what_outputs_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmreduce.layers.mamba2_scan._CHUNK", 4)
    mixer, sequences = a_mixer()
    grams = group_grams(mixer, sequences)
    for dropped in ([0], [1, 2], [0, 1, 2]):
        for g in range(2):
            lost = 0.0
            for inputs, tau in zip(sequences.inputs, sequences.weights, strict=True):
                run = Run2(mixer, inputs)
                y = run.scanned()
                seen = run.factors(y + mixer.skip * run.x)
                run.C[g][:, dropped] = 0.0
                change = (seen * (y - run.scanned())) @ mixer.out_proj.T
                lost += tau @ np.sum(change**2, axis=-1)
            found = grams[g][np.ix_(dropped, dropped)].sum()
            assert found == pytest.approx(lost, rel=1e-10)


def test_each_state_that_goes_costs_least_with_those_that_have_gone() -> None:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2, 6, 9)) * rng.uniform(0.1, 2.0, (2, 6, 1))
    grams = factors @ np.swapaxes(factors, 1, 2)
    found = Dropping.of(grams)
    for K, order, losses in zip(grams, found.dropped, found.losses, strict=True):
        gone: list[int] = []
        for j, loss_then in zip(order, losses, strict=True):
            costs = {i: K[np.ix_([*gone, i], [*gone, i])].sum() for i in range(6) if i not in gone}
            assert j == min(costs, key=costs.__getitem__)
            assert loss_then == pytest.approx(costs[j], rel=1e-10)
            gone.append(int(j))
    assert found.kept(2).tolist() == [sorted(order[-2:]) for order in found.dropped]
    most = np.maximum.accumulate(found.losses, axis=1)[:, -1].sum()
    assert np.sum(found.scores**2) == pytest.approx(most)
    assert np.all(np.diff(found.scores) <= 0.0)


@pytest.mark.parametrize(
    "name", ["Mamba2", "Mamba2, no bias", "FalconH1", "FalconH1, normed before"]
)
def test_a_cut_is_zeroing_after_the_convolution(name: str) -> None:
    model = made(name).double()
    before = copy.deepcopy(model)
    result = reduce_model(model, 3, data=calibrate(model, tokens()))
    inputs = torch.randn(3, 21, 16, dtype=torch.float64)
    for layer, part in result.report.items():
        old, new = before.get_submodule(layer), model.get_submodule(layer)
        d, G = old.intermediate_size, old.n_groups
        gone = [
            d + STATES * (part_of * G + g) + n
            for part_of in (0, 1)
            for g in range(G)
            for n in range(STATES)
            if n not in part.cut.kept[g]
        ]
        with in_double():
            old.conv1d.weight[gone] = 0.0
            if old.conv1d.bias is not None:
                old.conv1d.bias[gone] = 0.0
            expected, found = old(inputs), new(inputs)
        torch.testing.assert_close(
            found, expected, rtol=0.0, atol=1e-14 * float(expected.abs().max())
        )
        rows = [n for n in range(len(old.in_proj.weight)) if n - d not in gone]
        assert torch.equal(new.in_proj.weight, old.in_proj.weight[rows])
        assert new.conv_dim == new.conv1d.groups == new.conv1d.in_channels == d + 6 * G


def test_states_that_nothing_reads_go_first() -> None:
    module = Recurrence().double()
    idle = {0: [1, 4, 6], 1: [0, 2, 7]}
    with torch.no_grad():
        for g, states in idle.items():
            rows = [32 + GROUPS * STATES + g * STATES + n for n in states]
            module.conv1d.weight[rows] = 0.0
            module.conv1d.bias[rows] = 0.0
    result = reduce_layer(module, 5, data=data_for())
    assert result.output_error < 1e-14
    kept = [[n for n in range(STATES) if n not in states] for states in idle.values()]
    assert result.cut.kept.tolist() == kept
    assert np.count_nonzero(result.cut.scores > 1e-12) == 5


# --- Layers and stock models


def test_all_states_change_nothing() -> None:
    module = Recurrence()
    before = fingerprint(module)
    result = reduce_layer(module, STATES, data=data_for())
    assert (result.new_order, result.old_order) == (STATES, STATES)
    assert fingerprint(module) == before


@AT_CHANCE
@pytest.mark.parametrize("name", STOCK)
def test_a_model_of_transformers_stays_stock(name: str, tmp_path: Path) -> None:
    model, batches = made(name), tokens()
    fields = {
        field
        for field, value in model.config.to_dict().items()
        if value == STATES and "state" in field
    }
    assert len(fields) == 1
    result = reduce_model(model, 3, data=calibrate(model, batches, loss=loss))
    assert {part.new_order for part in result.report.values()} == {3}
    assert len(result.report) == len(mixers(model))
    assert getattr(model.config, *fields) == 3
    assert not hasattr(model.config, "ssm_states")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    for one, other in zip(weights_of(model).values(), weights_of(again).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded = load_reduced(made(name), model.state_dict()).eval()
    assert getattr(loaded.config, *fields) == 3
    with torch.no_grad():
        expected = model(batches[0]).logits
        assert torch.equal(again(batches[0]).logits, expected)
        assert torch.equal(loaded(batches[0]).logits, expected)
        written = model.generate(
            batches[0],
            attention_mask=torch.ones_like(batches[0]),
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
        )
        logits = model(written, use_cache=False).logits
    assert torch.equal(written[:, 16:], logits[:, 15:-1].argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_without_a_head_in_its_own_precision(dtype: torch.dtype) -> None:
    model = made("FalconH1").model.to(dtype)
    result = reduce_model(model, 4, data=calibrate(model, tokens()))
    assert model.layers[0].mamba.mup_vector.dtype is model.layers[0].mamba.A_log.dtype is dtype
    assert model.config.mamba_d_state == 4
    assert all(part.output_error < 0.7 for part in result.report.values())
    with torch.no_grad():
        assert torch.isfinite(model(tokens(1)[0]).last_hidden_state).all()


def test_a_budget_is_shared_by_data() -> None:
    model = nn.Sequential(Recurrence(), Recurrence())
    with torch.no_grad():
        model[1].conv1d.weight[-GROUPS * STATES :] *= 1e-3  # hardly reads its states
        model[1].conv1d.bias[-GROUPS * STATES :] *= 1e-3
    data = calibrate(model, [torch.randn(8, 12, 16) for _ in range(4)])
    report = reduce_model(model, TotalBudget(STATES + 1), data=data).report
    assert [part.new_order for part in report.values()] == [STATES, 1]


def test_rules() -> None:
    module, data = Recurrence(), data_for()
    result = reduce_layer(copy.deepcopy(module), MeasuredError(0.5), data=data)
    assert 0.0 < result.output_error <= 0.5
    assert 1 < result.new_order < STATES
    by_share = reduce_layer(copy.deepcopy(module), HankelEnergy(0.8), data=data)
    assert 1 <= by_share.new_order < STATES
    rounded = reduce_layer(copy.deepcopy(module), 3, data=data, options=CutOptions(multiple_of=4))
    assert rounded.new_order == 4
    assert rounded.choice is not None
    assert rounded.choice.method == "selected"
    assert rounded.error_bound is rounded.measured_error is None


def test_layers_of_one_config_get_one_order() -> None:
    model = made()
    data = calibrate(model, tokens(4))
    before = fingerprint(model)
    with pytest.raises(ArgumentError, match=r"would have 3, 8 states.*one `state_size`"):
        reduce_model(model, {"backbone.layers.0.mixer": 3}, data=data)
    assert fingerprint(model) == before


def test_the_state_of_a_stream() -> None:
    module = Recurrence()
    result = reduce_layer(module, 3, data=data_for())
    state = torch.randn(5, 4, 8, STATES)
    found = result.reduce_state(state)
    for head in range(4):
        assert torch.equal(found[:, head], state[:, head][..., result.cut.kept[head // 2]])
    with pytest.raises(ShapeError, match=r"last axes are \(4, 8, 8\)"):
        result.reduce_state(state[..., :5])


# --- Training


def test_moments_of_kept_rows_stay() -> None:
    module = Recurrence()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(4, 12, 16)).pow(2).mean().backward()
    optimizer.step()
    old = {
        name: {field: value.clone() for field, value in optimizer.state[each].items()}
        for name, each in module.named_parameters()
    }
    model = nn.Sequential(module)
    data = Calibration.of_inputs({"0": data_for().layers["model"].inputs})
    cut = reduce_model(model, 3, data=data, optimizer=optimizer).report["0"].cut
    B = [32 + g * STATES + n for g in range(2) for n in cut.kept[g]]
    rows = [*range(32), *B, *(row + GROUPS * STATES for row in B)]
    every = [*range(32), *(32 + row for row in rows), *range(96, 100)]
    for name, each in module.named_parameters():
        at = {"in_proj": every, "conv1d": rows}.get(name.split(".")[0], slice(None))
        for field in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[each][field], old[name][field][at]), name


@AT_CHANCE
@pytest.mark.parametrize("name", ["Mamba2", "FalconH1"])
def test_a_cut_in_training_with_its_average_and_back(name: str) -> None:
    model, batches = made(name).train(), tokens(6)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    reducer = InTrainingReducer(
        ReductionSchedule.at(2),
        3,
        data=lambda model: calibrate(model, batches[:4], loss=loss),
        rollback=RollbackPolicy(0.1),
    )
    reducer.report(1.0)
    for step in range(1, 5):
        optimizer.zero_grad()
        loss(model, batches[step]).backward()
        optimizer.step()
        average.update_parameters(model)
        reducer.step(step, model, optimizer, [average])
    assert [event.new_order for event in reducer.events] == [3] * 2
    assert {event.method for event in reducer.events} == {"selected"}
    assert type(reducer.events[0]).from_dict(reducer.events[0].to_dict()) == reducer.events[0]
    for own, other in zip(mixers(model), mixers(average), strict=True):
        assert own.conv1d.weight.shape == other.conv1d.weight.shape == (44, 1, 4)
        assert own.ssm_state_size == other.ssm_state_size == 3
    average(batches[0])
    reducer.report(9.0)
    reducer.step(5, model, optimizer, [average])
    for each in (*mixers(model), *mixers(average)):
        assert (each.ssm_state_size, each.conv_dim) == (STATES, 64)
        assert each.in_proj.out_features == len(each.in_proj.weight) == 100
        assert name != "FalconH1" or each.mup_vector.shape[-1] == 100
    loss(model, batches[0]).backward()
    optimizer.step()


@pytest.mark.slow
@AT_CHANCE
def test_outputs_may_be_matched_after_a_cut() -> None:
    model, batches = made(), tokens(4)
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


# --- Refusals


def test_weights_that_do_not_fit_are_named() -> None:
    module = Recurrence()
    module.ngroups = 3
    with pytest.raises(ShapeError, match="32 channels in 4 heads and 3 groups"):
        reduce_layer(module, 3, data=data_for())


def test_without_data_a_cut_says_how_to_calibrate() -> None:
    model = made()
    before = fingerprint(model)
    with pytest.raises(
        UnsupportedLayerError, match=r"Mamba-2 is.*data=calibrate\(model, batches\)"
    ):
        reduce_model(model, 3)
    with pytest.raises(UnsupportedLayerError, match=r"Mamba-2 layer is selective.*no one system"):
        read_system(model.backbone.layers[0].mixer)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("order", "options", "error", "match"),
    [
        (9, CutOptions(), OrderError, "`order` is 9 but this Mamba-2 layer has 8 states"),
        (ErrorBound(relative=0.1), CutOptions(), UnreachableToleranceError, "MeasuredError"),
        (3, CutOptions(method="compensated"), UnsupportedLayerError, "'best', 'selected'"),
    ],
)
def test_what_cannot_be_had(order: Any, options: Any, error: Any, match: str) -> None:
    module = Recurrence()
    before = fingerprint(module)
    with pytest.raises(error, match=match):
        reduce_layer(module, order, data=data_for(), options=options)
    assert fingerprint(module) == before


def _changed(**attributes: Any) -> Any:
    module = Recurrence()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _quantised() -> Any:
    module = Recurrence()
    weight = module.in_proj.weight.detach().to(torch.int8)
    module.in_proj.weight = nn.Parameter(weight, requires_grad=False)
    return module


class _Wrapped(nn.Module):
    """A projection with its weight one module further in, as adapters have it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)


def _wrapped() -> Any:
    module = Recurrence()
    module.in_proj = _Wrapped(module.in_proj)
    return module


def _one_projection() -> Any:
    first, second = Recurrence(), Recurrence()
    second.in_proj = first.in_proj
    return nn.Sequential(first, second)


def _normed_otherwise() -> Any:
    module = Recurrence()
    module.norm = nn.LayerNorm(32)
    return module


def _mamba3() -> Any:
    module = nn.Module()
    module.in_proj, module.out_proj = nn.Linear(16, 100), nn.Linear(32, 16)
    module.B_norm, module.C_norm = nn.RMSNorm(8), nn.RMSNorm(8)
    for name in ("B_bias", "C_bias"):
        setattr(module, name, nn.Parameter(torch.ones(4, 1, 8)))
    module.dt_bias, module.D = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    return module


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: _changed(init_states=nn.Parameter(torch.ones(4, 8, 8))), "`init_states`"),
        (lambda: _changed(d_ssm=16), "gated MLP beside the scan"),
        (lambda: _changed(process_group=object()), "shared out over processes"),
        (lambda: _changed(activation="gelu"), "`activation` is 'gelu'"),
        (lambda: _changed(ngroups=None), "no attribute `n_groups`"),
        (_normed_otherwise, "no gated RMS norm that is known"),
        (_quantised, r"`in_proj\.weight` of layer `0` has dtype torch\.int8"),
        (_wrapped, "whose `in_proj` holds no `weight`.*merge what is wrapped"),
        (_one_projection, "shares parameters.*Untie them first"),
        (_mamba3, "Mamba-3.*normalised over its states"),
    ],
)
def test_variants_are_refused(make: Any, match: str) -> None:
    model = nn.Sequential(make())
    before = fingerprint(model)
    data = Calibration.of_inputs({"0": np.ones((4, 3, 16))})
    with pytest.raises(UnsupportedLayerError, match=match):
        reduce_model(model, 3, data=data)
    assert fingerprint(model) == before


def test_layers_that_put_out_nothing_by_their_states() -> None:
    with pytest.raises(OrderError, match="no state matters"):
        reduce_layer(without_states(Recurrence()), 3, data=data_for())
