"""PyTorch layers under test, one entry for each kind, and what the formulas say that they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from LRU_pytorch import LRU
from s5 import S5
from s5.s5_model import discretize_bilinear
from samples import slow_inputs
from torch import nn
from torch_modules import S4D, LrnnxLRU, LrnnxS5, SSMKernelDiag, SSMKernelDPLR

from ssmreduce import read_system, simulate

Array = np.ndarray


def double(module: nn.Module) -> nn.Module:
    """The module in double precision, complex parameters too (`.double()` leaves them out)."""
    module.double()
    for parameter in module.parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(torch.complex128)
    for part in module.modules():
        if torch.is_tensor(getattr(part, "state", None)):
            part.state = part.state.to(torch.complex128)
    return module


def s5(bidirectional: bool, bilinear: bool, states: int = 12, width: int = 3) -> nn.Module:
    """An S5 layer with steps for which 40 samples show all of its poles."""
    layer = S5(width, states, bidir=bidirectional, dt_min=0.05, dt_max=0.5)
    if bilinear:
        layer.seq.discretize = discretize_bilinear
    return layer


def _signal_layer(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    return layer.seq(inputs)


def _plain(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    return layer(inputs)


def _lru(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    with_default = torch.get_default_dtype()
    torch.set_default_dtype(inputs.dtype)  # its output has the default dtype
    try:
        return layer(inputs)
    finally:
        torch.set_default_dtype(with_default)


def _kernel(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Impulse responses of a kernel, (L, heads · H), by its own forward."""
    response = (layer.kernel if isinstance(layer, S4D) else layer)(len(inputs))
    return response.reshape(-1, len(inputs)).transpose(0, 1)


def _simulated(layer: Any, inputs: Array) -> Array:
    return simulate(read_system(layer), inputs)


def _both_ways(layer: Any, inputs: Array) -> Array:
    system = read_system(layer)
    forward, backward = simulate(system, inputs), simulate(system, inputs[::-1])[::-1]
    width = inputs.shape[1]
    return forward[:, :width] + backward[:, width:]


def _responses(layer: Any, inputs: Array) -> Array:
    """What `_kernel` returns, from the systems of the channels."""
    systems = read_system(layer.kernel if isinstance(layer, S4D) else layer)
    impulse = np.eye(len(inputs), 1)
    channels = [simulate(systems[k], impulse) for k in range(systems.batch_shape[0])]
    return np.stack(channels, axis=-1).reshape(len(inputs), -1)


@dataclass(frozen=True)
class Case:
    """How to make a layer, run it, and run its system."""

    make: Callable[[], nn.Module]
    run: Callable[[Any, torch.Tensor], torch.Tensor] = _signal_layer
    simulate: Callable[[Any, Array], Array] = _simulated

    def outputs(self, layer: Any, inputs: Array) -> Array:
        """The layer's own forward in its precision."""
        dtype = next(p for p in layer.parameters() if not p.is_complex()).dtype
        return self.run(layer, torch.tensor(inputs, dtype=dtype)).detach().numpy()


CASES: dict[str, Case] = {
    "s5": Case(lambda: s5(False, False)),
    "s5 bilinear": Case(lambda: s5(False, True)),
    "s5 both ways": Case(lambda: s5(True, False), simulate=_both_ways),
    "s5 both ways bilinear": Case(lambda: s5(True, True), simulate=_both_ways),
    "lru": Case(lambda: LRU(3, 3, 12, rmin=0.5, rmax=0.95), _lru),
    "lrnnx lru": Case(lambda: LrnnxLRU(3, 12), _plain),
    "lrnnx zoh": Case(lambda: LrnnxS5(3, 12), _plain),
    "lrnnx dirac": Case(lambda: LrnnxS5(3, 12, "dirac"), _plain),
    "s4d": Case(lambda: S4D(3, 24), _kernel, _responses),
    "s4d buffers": Case(lambda: S4D(3, 24, lr=0.0), _kernel, _responses),
    **{
        f"s4 diagonal {name}": Case(
            lambda options=options: SSMKernelDiag(3, 24, **options), _kernel, _responses
        )
        for name, options in {
            "zoh": {},
            "bilinear": {"disc": "bilinear"},
            "heads": {"heads": 2},
            "steps": {"dt_tie": False},
            "softplus": {"real_transform": "softplus", "imag_transform": "exp"},
            "fast": {"dt_fast": True, "dt_transform": "softplus"},
        }.items()
    },
    "s4": Case(lambda: SSMKernelDPLR(3, 24), _kernel, _responses),
    "s4 steps": Case(lambda: SSMKernelDPLR(3, 24, dt_tie=False), _kernel, _responses),
    "s4 rank 2": Case(lambda: SSMKernelDPLR(3, 24, rank=2, heads=2), _kernel, _responses),
}


class TwoLayers(nn.Module):
    """Two layers behind a batch norm and dropout, read at the last step."""

    def __init__(self, make=lambda: S5(6, 24), *, channels_first: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.first, self.second = make(), make()
        self.dropout = nn.Dropout(0.5)
        self.decoder = nn.Linear(6, 4)
        self._channels_first = channels_first

    def forward(self, inputs):
        hidden = self.norm(self.encoder(inputs).transpose(1, 2))
        for layer in (self.first, self.second):
            if self._channels_first:
                hidden = hidden + layer(hidden)
            else:
                hidden = hidden + layer(hidden.transpose(1, 2)).transpose(1, 2)
            hidden = self.dropout(torch.tanh(hidden))
        return self.decoder(hidden[..., -1])


def model_and_batches(make=lambda: S5(6, 24), *, channels_first=False, count=8, size=16):
    torch.manual_seed(0)
    model = TwoLayers(make, channels_first=channels_first)
    inputs = torch.tensor(slow_inputs(count * size, 40, 3), dtype=torch.float32)
    labels = torch.randint(0, 4, (count * size,))
    return model, list(zip(inputs.split(size), labels.split(size), strict=True))


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained_with(reducer, model, batches, steps=6):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        cross_entropy(model, batches[step % len(batches)]).backward()
        optimizer.step()
        reducer.step(step, model, optimizer)
    return optimizer
