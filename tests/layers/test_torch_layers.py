"""PyTorch layers: layer <-> system through their real packages, and what is refused."""

from __future__ import annotations

import copy
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from LRU_pytorch import LRU as PackageLRU
from s5 import S5, S5Block
from torch import nn
from torch_modules import S4D, LrnnxS5, SSMKernelDiag
from torch_samples import CASES, Case, double, s5

import ssmreduce
from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelMass,
    HankelTrace,
    StateSpace,
    read_system,
    reduce_layer,
    reduce_model,
    register_layer,
    simulate,
    sweep,
    write_system,
)
from ssmreduce.errors import (
    NonFiniteError,
    OrderError,
    ShapeError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers.diagonal_cut import balanced_layer
from ssmreduce.layers.discretisation import steps_of_decay

# Sums of 40 steps, rounded in single precision: S4D raises exp(Λ Δ) to powers as a whole.
ALLOWED = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


def made(case: Case, precision: str) -> Any:
    return double(case.make()) if precision == "float64" else case.make()


def inputs_of(rng: np.random.Generator, length: int = 40) -> np.ndarray:
    return rng.standard_normal((length, 3)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", CASES)
def test_system_is_what_the_layer_runs(rng: np.random.Generator, precision: str, name: str) -> None:
    case = CASES[name]
    layer, inputs = made(case, precision), inputs_of(rng)
    found, expected = case.outputs(layer, inputs), case.simulate(layer, inputs)
    assert np.abs(found - expected).max() <= ALLOWED[precision] * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_reduced_layer_runs_the_reduced_system(
    rng: np.random.Generator, precision: str, name: str
) -> None:
    case = CASES[name]
    layer, inputs = made(case, precision), inputs_of(rng)
    before = case.outputs(layer, inputs)
    result = reduce_model(layer, 5)
    ((_, part),) = result.report.items()
    assert result.model is layer
    assert 1 <= part.new_order <= 5 < part.old_order == 12
    counts = [m.d_state for m in layer.modules() if hasattr(m, "d_state")]
    assert all(count == part.new_order for count in counts)
    found, expected = case.outputs(layer, inputs), case.simulate(layer, inputs)
    assert np.abs(found - expected).max() <= ALLOWED[precision] * np.abs(expected).max()
    # What the result holds is what was written, bit by bit.
    written = read_system(part.layer)
    np.testing.assert_array_equal(part.reduction.system.B, written.B)
    np.testing.assert_array_equal(part.reduction.system.eigenvalues, written.eigenvalues)
    # The ℓ² gain of the error is below the bound, for this signal (an impulse for each channel).
    energy = np.linalg.norm(inputs) if "s4" not in name else 1.0
    error = np.linalg.norm(found - before) if "s4" not in name else np.abs(found - before).max()
    assert 0 < error <= part.error_bound * energy * (1 + ALLOWED[precision])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [2, 4, 9])
def test_bound_holds_for_the_written_layer(name: str, order: int) -> None:
    layer = CASES[name].make()
    ((_, part),) = reduce_model(layer, order).report.items()
    reduction = part.reduction
    parts = reduction.parts or (reduction,)
    for single in parts:
        rounding = 1e4 * float(np.finfo(np.float32).eps) * 2 * single.hsv.sum()
        assert single.verify() <= single.error_bound * (1 + 1e-6) + rounding


@pytest.mark.parametrize("name", CASES)
def test_round_trip(rng: np.random.Generator, precision: str, name: str) -> None:
    case = CASES[name]
    layer, inputs = made(case, precision), inputs_of(rng)
    if "l_kernel" in dict(layer.named_buffers()):
        reduce_model(layer, 8)  # it was dense
    expected = case.outputs(layer, inputs)
    inner = layer.kernel if isinstance(layer, S4D) else layer
    assert write_system(inner, read_system(inner)) is inner
    found = case.outputs(layer, inputs)
    # Poles are rounded: 40 steps of memory see it. S5 keeps B in single precision.
    allowed = 1e-4 if precision == "float32" or "s5" in name else 1e-9
    assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()


def test_real_poles_take_whole_states(rng: np.random.Generator, precision: str) -> None:
    # Real poles, positive and negative, as a reduction leaves them, in every layer that has a batch of one.
    system_of: dict[str, Any] = {"s5": s5(False, False, 4), "lru": PackageLRU(3, 3, 4, rmin=0.5)}
    for name, layer in system_of.items():
        if precision == "float64":
            double(layer)
        old = read_system(layer)
        poles = np.array([0.5, -0.7, 0.3 + 0.4j])
        system = DiagonalStateSpace(
            poles,
            rng.standard_normal((3, 3)),
            rng.standard_normal((3, 3)),
            old.D,
            time=old.time,
            real_output=True,
            read_after_update=True,
        )
        write_system(layer, system)
        inputs = inputs_of(rng)
        found, expected = CASES[name].outputs(layer, inputs), CASES[name].simulate(layer, inputs)
        assert np.abs(found - expected).max() <= ALLOWED[precision] * np.abs(expected).max()
        again = read_system(layer).eigenvalues
        np.testing.assert_allclose(again, poles, atol=2e-6 if precision == "float32" else 1e-12)


def test_channels_take_one_order_and_paddings_revive() -> None:
    # One channel has a single state that counts: the others decide, and its paddings get c = 0.
    layer = S4D(3, 24)
    with torch.no_grad():
        layer.kernel.C[1, 1:] = 0.0
    ((_, part),) = reduce_model(layer, ErrorBound(relative=0.5)).report.items()
    assert np.ptp(part.reduction.order) > 0
    assert part.new_order == np.max(part.reduction.order) < 12
    used = int(part.reduction.order[1])
    assert not torch.any(layer.kernel.C[1, used:])
    layer(torch.randn(2, 3, 30)).square().sum().backward()
    assert torch.all(layer.kernel.C.grad[1, used:].abs().sum(-1) > 0)
    for parameter in layer.parameters():
        assert torch.all(torch.isfinite(parameter.grad))


def test_wrappers_are_opened(precision: str) -> None:
    layer = s5(False, False)
    assert read_system(layer).order == read_system(layer.seq).order == 12
    block = S5Block(3, 12, bidir=True)
    result = reduce_model(block, 5)
    assert list(result.report) == ["s5.seq"]
    assert block(torch.randn(2, 20, 3)).shape == (2, 20, 3)
    # A block with weights of its own is no wrapper: its feedthrough would be lost.
    with pytest.raises(UnsupportedLayerError, match="S4D"):
        read_system(S4D(3, 8))


def test_states_between_calls_and_counts_follow() -> None:
    lru = PackageLRU(3, 3, 12, rmin=0.5)
    lru(torch.randn(5, 3))
    reduce_layer(lru, 5)
    assert lru.state.shape == (read_system(lru).order,)
    assert not torch.any(lru.state)
    lru(torch.randn(2, 5, 3))
    kernel = SSMKernelDiag(3, 24)
    kernel.setup_step()
    reduce_layer(kernel, 5)
    assert kernel.N == read_system(kernel).order == 5
    assert not hasattr(kernel, "dA")


REFUSED: dict[str, Any] = {
    "liquid": lambda: S5(4, 8, liquid=True),
    "degree": lambda: S5(4, 4, degree=2),
    "disc": lambda: SSMKernelDiag(3, 8, disc="dss"),
    "is_real": lambda: SSMKernelDiag(3, 8, is_real=True),
    "n_ssm": lambda: SSMKernelDiag(4, 8, n_ssm=2),
    "bandlimit": lambda: SSMKernelDiag(3, 8, bandlimit=0.5),
}


@pytest.mark.parametrize("name", REFUSED)
def test_variants_are_refused_by_name(name: str) -> None:
    layer = REFUSED[name]()
    model = nn.Sequential(nn.Linear(3, 3), layer)
    for function in (lambda: read_system(layer), lambda: reduce_model(model, 2)):
        with pytest.raises(UnsupportedLayerError, match=f"`{name}`.* because|because `{name}`"):
            function()


def test_a_real_input_matrix_takes_two_states_for_a_pole() -> None:
    layer = LrnnxS5(3, 12)
    result = reduce_layer(layer, 6)
    assert result.new_order == 6
    assert result.reduction.real_order <= 6
    poles = read_system(layer).eigenvalues
    assert np.unique(np.round(poles, 4)).size < 6
    # With one input every b is real up to a phase, and one state is enough.
    single = LrnnxS5(1, 12)
    assert reduce_layer(single, 6).reduction.real_order > 6
    with pytest.raises(OrderError, match="two states"):
        reduce_layer(LrnnxS5(3, 12), 1)
    with pytest.raises(UnsupportedLayerError, match="bilinear"):
        reduce_layer(LrnnxS5(3, 12, "bilinear"), 4)


def test_low_rank_matrices_are_refused_by_name() -> None:
    # s5-pytorch 0.2.1 cannot build this variant itself; the parameters are those it would have.
    layer = S5(4, 8).seq
    del layer.B, layer.C
    for name, shape in {"BH": (4, 2), "BP": (8, 2), "CH": (2, 4), "CP": (2, 8)}.items():
        setattr(layer, name, nn.Parameter(torch.randn(shape, dtype=torch.complex64)))
    with pytest.raises(UnsupportedLayerError, match="factor_rank"):
        reduce_layer(layer, 4)


def test_unstable_layers_are_refused_and_stay(rng: np.random.Generator) -> None:
    layer = s5(False, False)
    with torch.no_grad():
        layer.seq.Lambda[3] = 0.1 + 2j
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for call in (lambda: reduce_layer(layer, 4), lambda: sweep(layer, [4])):
        with pytest.raises(
            UnstableSystemError,
            match=r"state of this layer grows .\|λ\| = 1\..*horizon=length.*data",
        ):
            call()
    with pytest.raises(UnstableSystemError, match=r"grows.*HankelTrace\(every, horizon=length\)"):
        HankelTrace(1).record(1, layer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    lru = PackageLRU(3, 3, 4, rmin=0.5)
    system = read_system(lru)
    unstable = DiagonalStateSpace(
        np.array([1.1]),
        system.B[:1],
        system.C[:, :1],
        system.D,
        time=system.time,
        real_output=True,
        read_after_update=True,
    )
    with pytest.raises(UnstableSystemError, match="LRU"):
        write_system(lru, unstable)


@pytest.mark.parametrize(
    ("pole", "text"),
    [
        (1.25, "grows (|λ| = 1.25)"),
        (1.0 + 2.0**-40, "grows (|λ| = 1 + 9.1e-13)"),
        (-1.0, "does not decay (|λ| = 1)"),
    ],
)
def test_a_state_that_does_not_decay_is_told_with_its_size(pole: float, text: str) -> None:
    ports = {"time": Discrete(), "read_after_update": True}
    diagonal = DiagonalStateSpace([0.5, pole], np.ones((2, 1)), np.ones((1, 2)), **ports)
    dense = StateSpace(np.diag([0.5, pole]), np.ones((2, 1)), np.ones((1, 2)), **ports)
    logs = DiagonalStateSpace.from_log(
        np.log(np.array([0.5, pole], dtype=complex)), np.ones((2, 1)), np.ones((1, 2)), **ports
    )
    for system in (diagonal, dense, logs):
        with pytest.raises(UnstableSystemError, match=re.escape(text)):
            balanced_layer(system, None)
        balanced_layer(system, 20)


def test_a_zero_pole_of_zoh_is_named() -> None:
    layer = s5(False, False)
    with torch.no_grad():
        layer.seq.Lambda[3] = 0.0
    with pytest.raises(ShapeError, match="divides"):
        reduce_layer(layer, 4)


@pytest.mark.parametrize("name", ["s5", "lru", "s4d", "s4 diagonal zoh"])
def test_weights_that_are_not_finite_are_named(name: str) -> None:
    layer = CASES[name].make()
    for parameter in dict(layer.named_parameters()):
        if parameter.split(".")[-1] in {"D", "weight", "bias"}:
            continue
        broken = CASES[name].make()
        with torch.no_grad():
            broken.get_parameter(parameter).view(-1)[1] = float("nan")
        with pytest.raises(NonFiniteError, match=f"`{parameter.split('.')[-1]}`"):
            reduce_model(broken, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_their_dtype(dtype: torch.dtype) -> None:
    layer = S4D(3, 24).to(dtype)
    ((_, part),) = reduce_model(layer, HankelMass(0.9)).report.items()
    assert part.new_order < 12
    assert layer.kernel.C.dtype == dtype
    assert np.isfinite(part.measured_error)


# --- A layer that the package has never seen


class Oscillators(nn.Module):
    """Complex poles with a decay and a frequency."""

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(states) - 2.0)
        self.frequency = nn.Parameter(3.0 * torch.rand(states))
        self.B = nn.Parameter(torch.randn(states, width, dtype=torch.complex64))
        self.C = nn.Parameter(torch.randn(width, states, dtype=torch.complex64) / states)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (L, H) to (L, H)."""
        poles = torch.exp(torch.complex(-torch.exp(self.decay), self.frequency))
        state, outputs = torch.zeros_like(poles), []
        for sample in inputs:
            state = poles * state + self.B @ sample.to(self.B.dtype)
            outputs.append((self.C @ state).real)
        return torch.stack(outputs)


def test_the_documented_class_of_a_users_layer(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssmreduce.layers.known, "_REGISTERED", {})
    page = Path(ssmreduce.__file__).parents[1] / "docs" / "examples" / "own_layer.py"
    kind = runpy.run_path(str(page))["OscillatorLayer"]()
    layer = Oscillators(12, 3)
    with pytest.raises(UnsupportedLayerError, match="Oscillators"):
        read_system(layer)
    register_layer(Oscillators, kind)
    inputs = inputs_of(rng)
    signal = torch.tensor(inputs, dtype=torch.float32)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(signal).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    result = reduce_model(nn.Sequential(layer), 5, optimizer=optimizer)
    assert result.report["0"].new_order == 5
    found, expected = layer(signal).detach().numpy(), simulate(read_system(layer), inputs)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    layer(signal).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    system = read_system(layer)
    poles = np.full(5, 1.5 + 0j)
    wild = DiagonalStateSpace(
        poles, system.B, system.C, time=system.time, real_output=True, read_after_update=True
    )
    with pytest.raises(UnstableSystemError, match="Oscillators"):
        write_system(layer, wild)


@pytest.mark.parametrize("bilinear", [False, True])
def test_states_of_s5_decay_after_a_cut_as_before(bilinear: bool) -> None:
    """Training moves each Λ by as much as any other: slow modes get short steps, not a small Re Λ."""
    torch.manual_seed(0)
    layer = s5(False, bilinear, states=24).seq
    with torch.no_grad():
        layer.Lambda.real.mul_(torch.linspace(0.5, 2.0, 24))
    typical = np.median(-layer.Lambda.detach().real.numpy())
    steps = layer.log_step.detach().exp()
    reduce_layer(layer, 20)
    decays, new = -layer.Lambda.detach().real, layer.log_step.detach().exp()
    inside = (new > 1.001 * steps.min()) & (new < 0.999 * steps.max())
    assert inside.sum() >= 10
    np.testing.assert_allclose(decays[inside], typical, rtol=1e-5)


def test_a_copy_of_s5_gets_the_steps_of_the_model() -> None:
    """Else the mean of both, which an average goes on with, would be neither."""
    torch.manual_seed(0)
    model = s5(False, False, states=24)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.0 + 1e-3 * torch.randn(parameter.shape))
    reduce_model(model, 8, followers=[twin])
    assert torch.equal(twin.seq.log_step, model.seq.log_step)
    between, inputs = copy.deepcopy(model), torch.randn(4, 60, 3)
    with torch.no_grad():
        for mean, other in zip(between.parameters(), twin.parameters(), strict=True):
            mean.lerp_(other, 0.5)
        outputs = [each(inputs) for each in (model, between, twin)]
    off = (outputs[1] - 0.5 * (outputs[0] + outputs[2])).abs().max()
    assert off <= 0.1 * (outputs[0] - outputs[2]).abs().max()


def test_a_median_that_grows_leaves_the_median_step() -> None:
    poles, steps = np.array([0.1 + 1j, 0.2 + 1j, -1.0]), np.array([0.1, 0.2, 0.4])
    np.testing.assert_array_equal(steps_of_decay(np.array([0.5, -0.3]), poles, steps), [0.2, 0.2])
    np.testing.assert_allclose(
        steps_of_decay(np.array([0.15, -0.3, 9.0]), poles - 1.0, steps), [0.15 / 0.9, 0.1, 0.4]
    )
