"""An S5 model that is cut early in training: what the steps do that a cut writes into the layers.

Two S5 layers of s5-pytorch, 48 states each, tell apart six sums of two tones in noise. After 30 of 150
updates they are cut to 45 states, which changes outputs by less than 1e-3; training goes on with the moments
carried. Λ and the step Δ of a state are one number too many. Written states get the steps with which Λ decays
as before; compared with one step for all states of a layer, their median.

    OPENBLAS_NUM_THREADS=1 python benchmarks/s5_steps.py           three seeds: about four minutes
    python benchmarks/s5_steps.py --quick                          a few updates
"""

import argparse
import math
import statistics

import torch
from s5 import S5
from torch import nn

from ssmreduce import CutOptions, reduce_model

LENGTH, CUT = 120, 30
TONES = ((0.02, 0.11), (0.05, 0.31), (0.09, 0.04), (0.14, 0.23), (0.20, 0.07), (0.27, 0.17))


class Model(nn.Module):
    """Sequences of two channels in, scores of six classes out."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 12)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.layers = nn.ModuleList(S5(12, 48) for _ in range(2))
        self.decoder = nn.Linear(12, len(TONES))

    def forward(self, inputs):
        hidden = self.encoder(inputs)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            hidden = hidden + nn.functional.gelu(layer(norm(hidden)))
        return self.decoder(hidden.square().mean(dim=1))


def batch(count=32):
    """Return sequences and the classes of their tones."""
    labels = torch.randint(0, len(TONES), (count,))
    tones = torch.tensor(TONES)[labels][:, None]
    phases = torch.rand(count, 1, 2)
    time = torch.arange(LENGTH)[None, :, None]
    signals = torch.sin(2.0 * math.pi * (tones * time + phases))
    return signals + 1.5 * torch.randn(count, LENGTH, 2), labels


@torch.no_grad()
def one_step_for_all(model, optimizer):
    """Give all states of a layer the median step, with Λ, B and their moments in its units."""
    for layer in (each.seq for each in model.layers):
        old = layer.log_step.exp()
        new = torch.full_like(old, float(old.median()))
        ratio = (old / new).flatten()
        for parameter, factor in ((layer.Lambda, ratio), (layer.B, ratio[:, None, None])):
            parameter.mul_(factor)
            optimizer.state[parameter]["exp_avg"].div_(factor)
            optimizer.state[parameter]["exp_avg_sq"].div_(factor**2)
        layer.log_step.copy_(new.log())


def trained(seed, way, updates, rate):
    """Return the mean loss of the last 20 updates, the accuracy in %, and what the cut changed."""
    torch.manual_seed(seed)
    change = 0.0
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    losses = []
    for update in range(1, updates + 1):
        inputs, labels = batch()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if update == min(CUT, updates) and way != "no cut":
            options = CutOptions(horizon=LENGTH)
            with torch.no_grad():
                before = model(inputs)
                reduce_model(model, 45, optimizer=optimizer, options=options)
                change = (model(inputs) - before).abs().max().item()
            if way == "cut, one step":
                one_step_for_all(model, optimizer)
    inputs, labels = batch(1000)
    with torch.no_grad():
        hits = (model(inputs).argmax(dim=1) == labels).float().mean().item()
    return statistics.mean(losses[-20:]), 100.0 * hits, change


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a few updates, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate of AdamW")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, updates = (1, 5) if given.quick else (given.seeds, 150)
    for way in ("no cut", "cut", "cut, one step"):
        found = [trained(seed, way, updates, given.rate) for seed in range(seeds)]
        losses, hits, changes = zip(*found, strict=True)
        print(
            f"{way:15} loss {', '.join(f'{loss:.2f}' for loss in losses)}   "
            f"accuracy {statistics.mean(hits):.1f} ± {statistics.pstdev(hits):.1f} %   "
            f"outputs changed by {max(changes):.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
