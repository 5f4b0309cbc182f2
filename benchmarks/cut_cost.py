"""What a cut of a whole model and its optimizer costs, in training steps of that model.

    OPENBLAS_NUM_THREADS=1 python benchmarks/cut_cost.py [--layers 6] [--batch 32] [--length 1024]
        [--order 64] [--repeats 3] [--quick] [--output cut_cost.json]

A PyTorch model of S5 layers (s5-pytorch, 256 states, H = 128, residual, GELU) with AdamW. One training step
(forward, backward, update) and `reduce_model` with the optimizer, on a copy, take turns; printed are medians
of processor seconds in one thread and their ratio. (The idle threads of BLAS spin, which counts as work:
hence the setting.)
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from s5 import S5

from ssmreduce import reduce_model

STATES, WIDTH = 256, 128


class Model(torch.nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(S5(WIDTH, STATES) for _ in range(layers))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(layers))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            signal = signal + torch.nn.functional.gelu(layer(norm(signal)))
        return signal


def seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--order", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two layers, batch 2, length 128")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    layers, batch, length = arguments.layers, arguments.batch, arguments.length
    if arguments.quick:
        layers, batch, length = 2, 2, 128
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    signal = torch.randn(batch, length, WIDTH)
    target = signal.cumsum(1).tanh()

    def step() -> None:
        torch.nn.functional.mse_loss(model(signal), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    def cut() -> float:
        copied, state = copy.deepcopy((model, optimizer))
        return seconds(lambda: reduce_model(copied, arguments.order, optimizer=state))

    step()
    cut()  # warm-up
    times: dict[str, list[float]] = {"step": [], "cut": []}
    for _ in range(arguments.repeats):
        times["step"].append(seconds(step))
        times["cut"].append(cut())
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["cut"] / medians["step"]
    print(
        f"{layers} layers, {STATES} -> {arguments.order} states, batch {batch}, length {length}: "
        f"step {medians['step']:.2f} s, cut {medians['cut']:.2f} s, {ratio:.3f} steps"
    )
    if arguments.output:
        figures = {"layers": layers, "batch": batch, "length": length, **times, "ratio": ratio}
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
