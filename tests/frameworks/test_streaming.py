"""A stream cut in its middle goes on as the reduced system does from the projected state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from LRU_pytorch import LRU as PackageLRU
from torch import nn
from torch_modules import S4D, LrnnxLRU, LrnnxS5, SSMKernelDiag, SSMKernelDPLR
from torch_samples import double, s5

from ssmreduce import (
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    load_reduced,
    read_system,
    reduce_layer,
    reduce_model,
)
from ssmreduce.errors import ShapeError
from ssmreduce.systems.state_space import StateSpace

LENGTH, HALF = 40, 25

LAYERS: dict[str, Any] = {
    "s5": lambda: s5(False, False).seq,
    "s5 bilinear": lambda: s5(False, True).seq,
    "lru": lambda: PackageLRU(3, 3, 12, rmin=0.5, rmax=0.95),
    "lrnnx lru": lambda: LrnnxLRU(3, 12),
    "lrnnx s5": lambda: LrnnxS5(3, 12),
    "s4d": lambda: S4D(3, 24).kernel,
    "s4 diagonal": lambda: SSMKernelDiag(3, 24),
    "s4 bilinear": lambda: SSMKernelDiag(3, 24, disc="bilinear", heads=2),
    "s4": lambda: SSMKernelDPLR(3, 24),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(21)


def stream(system: Any, state: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run one system as its equations say: h = λ h + B u, y = Re(C h) + D u."""
    outputs = []
    for sample in inputs:
        if isinstance(system, StateSpace):
            state = system.A @ state + system.B @ sample
        else:
            state = system.eigenvalues * state + system.B @ sample
        outputs.append((system.C @ state).real + system.D @ sample)
    return np.array(outputs), state


def real(state: np.ndarray) -> np.ndarray:
    return np.concatenate([state.real, state.imag])


def projected(part: Any, state: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """The truncated system in real coordinates, from x_r = Wᵀ x, with matrices formed here."""
    system = part.original
    W, T = part.left, part.right
    if isinstance(system, StateSpace):
        A, B, C = system.A, system.B, system.C
    else:
        poles = np.diag(system.eigenvalues)
        A = np.block([[poles.real, -poles.imag], [poles.imag, poles.real]])
        B = np.concatenate([system.B.real, system.B.imag])
        C = np.concatenate([system.C.real, -system.C.imag], axis=1)
    x, outputs = W.transpose() @ real(state), []
    for sample in inputs:
        x = W.transpose() @ (A @ (T @ x)) + W.transpose() @ (B @ sample)
        outputs.append(C @ (T @ x) + system.D @ sample)
    return np.array(outputs)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("order", [3, 6])
def test_a_stream_goes_on_from_the_projected_state(
    rng: np.random.Generator, name: str, order: int
) -> None:
    layer = double(LAYERS[name]())
    system = read_system(layer)
    batch = system.batch_shape
    inputs = rng.standard_normal((*batch, LENGTH, system.inputs))
    states = np.zeros((*batch, system.order // (1 + isinstance(system, StateSpace))), complex)
    for at in np.ndindex(batch):
        start = real(states[at]) if isinstance(system, StateSpace) else states[at]
        _, state = stream(system[at] if batch else system, start, inputs[at][:HALF])
        if isinstance(system, StateSpace):
            state = state[: state.size // 2] + 1j * state[state.size // 2 :]
        states[at] = state
    result = reduce_layer(layer, order)
    assert result.new_order <= order < result.old_order
    carried = result.reduce_state(states)
    assert carried.shape == (*batch, result.new_order)
    written = read_system(layer)
    parts = result.reduction.parts or (result.reduction,)
    for at, part in zip(np.ndindex(batch), parts, strict=True):
        rest = inputs[at][HALF:]
        found, _ = stream(written[at] if batch else written, carried[at], rest)
        expected = projected(part, states[at], rest)
        # s5-pytorch uses B in single precision, so the written layer has it rounded.
        eps = float(np.finfo(np.float32 if name.startswith("s5") else np.float64).eps)
        allowed = LENGTH * eps * part.slot_map.condition * np.abs(expected).max()
        assert np.abs(found - expected).max() <= allowed
        # The state matters: from zero the outputs are others.
        cold, _ = stream(written[at] if batch else written, 0 * carried[at], rest)
        assert np.abs(cold - expected).max() > 100 * allowed


def test_s5_goes_on_through_its_own_interface(rng: np.random.Generator) -> None:
    layer = s5(False, False, 16)
    inputs = torch.tensor(rng.standard_normal((4, LENGTH, 3)), dtype=torch.float32)
    whole = layer(inputs)
    _, state = layer(inputs[:, :HALF], return_state=True)
    ((_, part),) = reduce_model(layer, 12).report.items()
    carried = part.reduce_state(state)
    assert carried.shape == (4, part.new_order)
    assert carried.dtype == torch.complex64
    after = layer(inputs[:, HALF:], state=carried)
    cold = layer(inputs[:, HALF:])
    kept = torch.norm(after - whole[:, HALF:])
    assert kept < 0.1 * torch.norm(cold - whole[:, HALF:])
    # Truncated backpropagation: what comes later still reaches what came before.
    (gradient,) = torch.autograd.grad(carried.abs().sum(), state)
    assert torch.all(gradient.abs() > 0)


class Stateful(nn.Module):
    """An LRU that keeps its state between calls, one sequence after the other."""

    def __init__(self, width: int, states: int, *, buffer: bool = False) -> None:
        super().__init__()
        self.lru = LrnnxLRU(width, states)
        state = torch.zeros(states, dtype=torch.complex64)
        if buffer:
            self.lru.register_buffer("state", state)
        else:
            self.lru.state = state

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (L, H) to (L, H), and remember."""
        lru = self.lru
        poles = torch.exp(-torch.exp(lru.nu_log) + 1j * torch.exp(lru.theta_log))
        B = torch.exp(lru.gamma_log)[:, None] * torch.complex(lru.B_re, lru.B_im)
        C, outputs = torch.complex(lru.C_re, lru.C_im), []
        for sample in inputs:
            lru.state = poles * lru.state.detach() + B @ sample.to(B.dtype)
            outputs.append((C @ lru.state).real + sample * lru.D)
        return torch.stack(outputs)


@pytest.mark.parametrize("buffer", [False, True])
def test_a_state_that_a_layer_keeps_is_carried(rng: np.random.Generator, buffer: bool) -> None:
    model = Stateful(3, 12, buffer=buffer)
    model(torch.tensor(rng.standard_normal((HALF, 3)), dtype=torch.float32))
    before = model.lru.state.detach().clone()
    ((_, part),) = reduce_model(model, 5).report.items()
    assert torch.equal(model.lru.state, part.reduce_state(before))
    assert torch.any(model.lru.state != 0)
    assert not model.lru.state.requires_grad
    fresh = load_reduced(Stateful(3, 12, buffer=buffer), model.state_dict())
    assert fresh.lru.state.shape == (5,)
    # A buffer is part of the state dict, an attribute is not.
    assert torch.equal(fresh.lru.state, model.lru.state if buffer else 0 * model.lru.state)


@pytest.mark.parametrize("buffer", [False, True])
def test_a_state_that_a_layer_keeps_comes_back(rng: np.random.Generator, buffer: bool) -> None:
    model = Stateful(3, 12, buffer=buffer)
    model(torch.tensor(rng.standard_normal((HALF, 3)), dtype=torch.float32))
    before = model.lru.state.detach().clone()
    reducer = InTrainingReducer(ReductionSchedule(10, attempts=4), 5, rollback=RollbackPolicy(0.0))
    reducer.report(1.0)
    reducer.step(1, model, None)
    assert model.lru.state.shape == (5,)
    reducer.report(2.0)
    reducer.step(2, model, None)
    assert torch.equal(model.lru.state, before)
    assert ("state" in dict(model.lru.named_buffers())) == buffer
    assert reducer.events[0].rolled_back == 2


def test_a_kept_state_of_another_layout_is_named() -> None:
    model = Stateful(3, 12)
    model.lru.state = torch.zeros(12, 2)
    with pytest.raises(ShapeError, match=r"keeps a state.*\(12, 2\)"):
        reduce_model(model, 5)
    assert model.lru.nu_log.shape == (12,)


def test_states_that_do_not_fit_are_refused() -> None:
    result = reduce_layer(LrnnxLRU(3, 12), 5)
    for state in (np.zeros(5, complex), np.zeros(12), torch.zeros(2, 11, dtype=torch.complex64)):
        with pytest.raises(ShapeError, match=r"`state`.*\(12,\)"):
            result.reduce_state(state)
    uncut = reduce_layer(LrnnxLRU(3, 12), 12)
    state = torch.ones(12, dtype=torch.complex64)
    assert uncut.reduce_state(state) is state
