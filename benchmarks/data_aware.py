"""Cuts with and without data: four S5 layers, trained on digits, cut after training, no further steps.

    python benchmarks/data_aware.py            three seeds, orders 16, 8 and 4 (25 min on 2 cores)
    python benchmarks/data_aware.py --quick    one seed, one epoch, order 8, two methods

Accuracy in % on test images that were neither trained on nor calibrated with. The layers have 64 states
and width 16; 512 training images calibrate, of which 128 are held out. With `--table FILE` the figures are
written as a table for the docs.
"""

import argparse
import copy
import pathlib
import time

import numpy as np
import torch
from s5 import S5
from sklearn.datasets import load_digits
from torch import nn

from ssmreduce import CutOptions, calibrate, reduce_model

METHODS = ("white", "white refit", "balanced", "selected", "best")
WIDTH, STATES, LAYERS = 16, 64, 4


class Block(nn.Module):
    """A layer between a norm and a gated mix of channels, beside a skip."""

    def __init__(self):
        super().__init__()
        self.norm, self.ssm = nn.LayerNorm(WIDTH), S5(WIDTH, STATES)
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, inputs):
        hidden = nn.functional.gelu(self.ssm(self.norm(inputs)))
        values, gates = self.mix(hidden).chunk(2, dim=-1)
        return inputs + values * torch.sigmoid(gates)


class Classifier(nn.Module):
    """Reads the pixels one by one, and decides after the last."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(1, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.decoder = nn.Linear(WIDTH, 10)

    def forward(self, inputs):
        return self.decoder(self.blocks(self.encoder(inputs))[:, -1])


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def digits(seed):
    """Training and test images with labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    inputs = torch.tensor(images[order] / 16.0, dtype=torch.float32)[..., None]
    targets = torch.tensor(labels[order])
    return (inputs[:1347], targets[:1347]), (inputs[1347:], targets[1347:])


def trained(training, seed, epochs):
    torch.manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(training[0])).split(50):
            optimizer.zero_grad()
            cross_entropy(model, (training[0][rows], training[1][rows])).backward()
            optimizer.step()
    return model


def accuracy(model, test):
    model.eval()
    with torch.no_grad():
        return 100.0 * float((model(test[0]).argmax(-1) == test[1]).float().mean())


def batches(training):
    return list(zip(training[0][:512].split(32), training[1][:512].split(32), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, order 8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", type=pathlib.Path, help="where to write a table for the docs")
    options = parser.parse_args()
    seeds, epochs = (1, 1) if options.quick else (options.seeds, 25)
    orders = (8,) if options.quick else (16, 8, 4)
    methods = ("white", "best") if options.quick else METHODS
    full, found, seconds = [], {}, {}
    for seed in range(seeds):
        training, test = digits(seed)
        started = time.perf_counter()
        model = trained(training, seed, epochs)
        step = (time.perf_counter() - started) / (epochs * 27)
        full.append(accuracy(model, test))
        started = time.perf_counter()
        data = calibrate(model, batches(training), loss=cross_entropy)
        calibration = (time.perf_counter() - started) / step
        print(
            f"seed {seed}: full {full[-1]:.1f}; calibration took {calibration:.0f} training steps"
        )
        for order in orders:
            for method in methods:
                cut = copy.deepcopy(model)
                started = time.perf_counter()
                reduce_model(cut, order, data=data, options=CutOptions(method=method))
                seconds.setdefault(method, []).append((time.perf_counter() - started) / step)
                found.setdefault((order, method), []).append(accuracy(cut, test))
                print(
                    f"  {order:2d} states, {method:12s} {found[order, method][-1]:5.1f}", flush=True
                )
    rows = [("states", *methods)]
    for order in orders:
        cells = [found[order, method] for method in methods]
        rows.append((str(order), *(f"{np.mean(x):.1f} ± {np.std(x):.1f}" for x in cells)))
    rows.append(("steps", *(f"{np.median(seconds[method]):.0f}" for method in methods)))
    text = "\n".join("  ".join(cell.ljust(12) for cell in row).rstrip() for row in rows)
    print(f"full {np.mean(full):.1f} ± {np.std(full):.1f} ({seeds} seeds)\n{text}")
    print("steps: what a cut of all layers takes, in training steps of 50 sequences")
    if options.table:
        options.table.write_text(table(rows, full, seeds))


def table(rows, full, seeds):
    """The figures as a page includes them."""
    lines = [
        f"Accuracy in %, {seeds} seeds, mean and standard deviation; full, with 64 states, "
        f"{np.mean(full):.1f} ± {np.std(full):.1f}. The last row is what a cut of all layers takes, "
        "in training steps.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    for row in rows:
        lines += [f"   {'*' if not k else ' '} - {cell}" for k, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
