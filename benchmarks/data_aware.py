"""Cuts with and without data: four layers, trained on digits or MNIST, cut after training, no further steps.

    python benchmarks/data_aware.py --results r.json                 S5, digits, three seeds (15 min)
    python benchmarks/data_aware.py --results r.json --layer S4D     S4D, digits
    python benchmarks/data_aware.py --layer S4 --seeds 1 --epochs 8  S4 with HiPPO-LegS, digits
    python benchmarks/data_aware.py --results r.json --data mnist.npz --seeds 2
    python benchmarks/data_aware.py --results r.json --seeds 0 --table table.txt --picture picture.png
    python benchmarks/data_aware.py --quick                          one seed, one epoch, two methods

Accuracy in % on test images that were neither trained on nor calibrated with. The layers have 64 states
(S4D and S4: 32 complex ones for each channel) and width 16; 512 training images calibrate, of which 128 are
held out. Seeds that the file of results has are not run again.
"""

import argparse
import copy
import itertools
import json
import math
import pathlib
import time

import numpy as np
import torch
from s5 import S5
from sklearn.datasets import load_digits
from torch import nn

from ssmreduce import CutOptions, calibrate, reduce_model

METHODS = ("white", "white refit", "balanced", "selected", "best")
WIDTH, STATES, LAYERS, BATCH = 16, 64, 4, 50
ORDERS = {"S5": (16, 8, 4), "S4D": (8, 4, 2), "S4": (8, 4, 2)}
"""States that are stored: those of S4D and S4 stand for two each."""

EPOCHS = {"digits": 25, "MNIST": 2}


class S4DKernel(nn.Module):
    """The minimal S4D kernel, of shape (H, L)."""

    def __init__(self):
        super().__init__()
        count = STATES // 2
        self.C = nn.Parameter(torch.randn(WIDTH, count, 2) * math.sqrt(0.5))
        low, high = math.log(0.001), math.log(0.1)
        self.log_dt = nn.Parameter(torch.rand(WIDTH) * (high - low) + low)
        self.log_A_real = nn.Parameter(torch.full((WIDTH, count), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(count).float().repeat(WIDTH, 1))

    def forward(self, length):
        poles = -torch.exp(self.log_A_real) + 1j * self.A_imag
        logarithms = poles * torch.exp(self.log_dt)[:, None]
        C = torch.view_as_complex(self.C) * (torch.exp(logarithms) - 1) / poles
        powers = torch.exp(logarithms[..., None] * torch.arange(length))
        return 2 * torch.einsum("hn,hnl->hl", C, powers).real


class S4Kernel(nn.Module):
    """The kernel of S4, of shape (H, L), with HiPPO-LegS to begin with; C is stored as it is."""

    real_transform = "exp"

    def __init__(self):
        super().__init__()
        roots = np.sqrt(2.0 * np.arange(STATES) + 1.0)
        low_rank = np.sqrt(np.arange(STATES) + 0.5)
        A = -np.tril(np.outer(roots, roots), -1) - np.diag(np.arange(STATES) + 1.0)
        normal = A + np.outer(low_rank, low_rank) + 0.5 * np.eye(STATES)
        rates, vectors = np.linalg.eigh(-1j * normal)
        rates, vectors = rates[STATES // 2 :], vectors[:, STATES // 2 :]

        def each(values):
            pairs = torch.tensor(np.stack([values.real, values.imag], axis=-1)).float()
            return nn.Parameter(pairs.repeat(1, WIDTH, 1, 1))

        self.P, self.B = each(vectors.conj().T @ low_rank), each(vectors.conj().T @ roots)
        self.C = nn.Parameter(torch.randn(1, WIDTH, STATES // 2, 2) * math.sqrt(0.5))
        self.A_real = nn.Parameter(torch.full((WIDTH, STATES // 2), math.log(0.5)))
        self.A_imag = nn.Parameter(-torch.tensor(rates).float().repeat(WIDTH, 1))
        low, high = math.log(0.01), math.log(0.3)
        self.inv_dt = nn.Parameter(torch.rand(WIDTH, 1) * (high - low) + low)
        self.register_buffer("l_kernel", torch.tensor(0))

    def forward(self, length):
        B, C, P = (
            torch.cat([half, half.conj()], -1)
            for half in (torch.view_as_complex(each) for each in (self.B, self.C, self.P))
        )
        poles = -torch.exp(self.A_real) - 1j * self.A_imag
        A = torch.diag_embed(torch.cat([poles, poles.conj()], -1))
        A = A - torch.einsum("rhm,rhn->hmn", P, P.conj())
        half_step, identity = 0.5 * torch.exp(self.inv_dt)[..., None], torch.eye(A.shape[-1])
        backward = torch.linalg.inv(identity - half_step * A)
        states, A = (
            backward @ (2 * half_step * B[0, ..., None]),
            backward @ (identity + half_step * A),
        )
        while states.shape[-1] < length:
            states, A = torch.cat([states, A @ states], -1), A @ A
        return torch.einsum("hn,hnl->hl", C[0], states[..., :length]).real


class WithKernel(nn.Module):
    """A kernel, a feedthrough and an activation, on sequences (N, L, H)."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel, self.activation = kernel, nn.GELU()
        self.D = nn.Parameter(torch.randn(WIDTH))

    def forward(self, inputs):
        length = inputs.shape[1]
        response = torch.fft.rfft(self.kernel(length), n=2 * length)
        spectrum = torch.fft.rfft(inputs.mT, n=2 * length)
        outputs = torch.fft.irfft(spectrum * response, n=2 * length)[..., :length]
        return self.activation(outputs.mT + inputs * self.D)


class Block(nn.Module):
    """A layer between a norm and a gated mix of channels, beside a skip."""

    def __init__(self, layer):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        if layer == "S5":
            self.ssm = nn.Sequential(S5(WIDTH, STATES), nn.GELU())
        else:
            self.ssm = WithKernel(S4Kernel() if layer == "S4" else S4DKernel())
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, inputs):
        values, gates = self.mix(self.ssm(self.norm(inputs))).chunk(2, dim=-1)
        return inputs + values * torch.sigmoid(gates)


class Classifier(nn.Module):
    """Reads the pixels one by one, and decides after the last."""

    def __init__(self, layer):
        super().__init__()
        self.encoder = nn.Linear(1, WIDTH)
        self.blocks = nn.Sequential(*(Block(layer) for _ in range(LAYERS)))
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


def mnist(path):
    """Training and test images of 14 x 14 pixels, each the mean of four, with labels."""
    with np.load(path, allow_pickle=False) as arrays:
        sets = []
        for name in ("train", "test"):
            images = arrays[f"{name}_images"].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
            inputs = torch.tensor(images.reshape(-1, 196, 1) / 255.0, dtype=torch.float32)
            sets.append((inputs, torch.tensor(arrays[f"{name}_labels"].astype(np.int64))))
    return sets


def trained(layer, training, seed, epochs):
    torch.manual_seed(seed)
    model = Classifier(layer)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(training[0])).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model, (training[0][rows], training[1][rows])).backward()
            optimizer.step()
    return model


def accuracy(model, test):
    """In %."""
    model.eval()
    with torch.no_grad():
        right = [
            (model(inputs).argmax(-1) == labels).float().sum()
            for inputs, labels in zip(test[0].split(500), test[1].split(500), strict=True)
        ]
    model.train()
    return 100.0 * float(sum(right)) / test[1].numel()


def calibrated(model, training, count=512):
    rows = (part[:count].split(32) for part in training)
    return calibrate(model, list(zip(*rows, strict=True)), loss=cross_entropy)


def one_seed(layer, sets, seed, epochs, orders, methods):
    """Train a model, and cut copies of it by each method."""
    training, test = sets
    started = time.process_time()
    model = trained(layer, training, seed, epochs)
    step = (time.process_time() - started) / (epochs * -(-len(training[0]) // BATCH))
    started = time.process_time()
    data = calibrated(model, training)
    calibration = (time.process_time() - started) / step
    found = {"full": accuracy(model, test), "calibration": calibration, "cuts": {}, "taken": {}}
    print(f"full {found['full']:.1f}; a step {step:.2f} s, calibration {calibration:.0f} of them")
    print(data)
    for order, method in itertools.product(orders, methods):
        cut = copy.deepcopy(model)
        started = time.process_time()
        result = reduce_model(cut, order, data=data, options=CutOptions(method=method))
        steps = (time.process_time() - started) / step
        found["cuts"].setdefault(str(order), {})[method] = accuracy(cut, test), steps
        print(f"  {order:2d}, {method:12s} {found['cuts'][str(order)][method][0]:5.1f}", flush=True)
        if method == "best":
            compared = [part.choice.values for part in result.report.values()]
            found["taken"][str(order)] = compared
    return found


def table(results):
    """The figures as a page includes them."""
    lines = [
        "Accuracy in %, mean and standard deviation over seeds, whose number is in brackets. Steps: what a "
        "cut of all layers takes, in training steps of 50 sequences.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
    ]
    for row in itertools.chain(
        [("", "states", *METHODS)], *(_rows(*run) for run in results.items())
    ):
        lines += [f"   {'*' if not k else ' '} - {cell}".rstrip() for k, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def spread(values, sign=""):
    """Mean and standard deviation, if there are several."""
    more = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.1f}{more}"


def _rows(name, run):
    """Of one layer and data set: orders, and what cuts cost."""
    seeds = list(run.values())
    full = [seed["full"] for seed in seeds]
    title = f"{name} ({len(seeds)}), full {spread(full)}"
    for order in seeds[0]["cuts"]:
        at = [[seed["cuts"][order][method][0] for seed in seeds] for method in METHODS]
        yield title, order, *map(spread, at)
        title = ""
    every = [cuts for seed in seeds for cuts in seed["cuts"].values()]
    costs = [np.median([cuts[method][1] for cuts in every]) for method in METHODS]
    yield "", "steps", *(f"{cost:.0f}" for cost in costs)


def picture(results, path):
    """Accuracy against states that are kept, and that of the full model as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(results), 3.0), layout="constrained")
    lines = {
        "white": ("white", "#8C8C8C", "--s"),
        "white refit": ("white, refitted", "#0072B2", "-.^"),
        "best": ("with data, chosen", "#D55E00", "-o"),
    }
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (name, run) in zip(panels, results.items(), strict=True):
        seeds = list(run.values())
        orders = list(seeds[0]["cuts"])
        for method, (label, colour, style) in lines.items():
            values = np.array([[seed["cuts"][at][method][0] for at in orders] for seed in seeds])
            means, deviations = values.mean(axis=0), values.std(axis=0)
            places = range(len(orders))
            axes.errorbar(
                places, means, deviations, color=colour, fmt=style, capsize=3, label=label
            )
        full = np.mean([seed["full"] for seed in seeds])
        axes.axhline(full, color="black", linewidth=1, label="full")
        axes.set(title=name, xlabel="states kept of each layer", ylabel="accuracy, %")
        axes.set_xticks(range(len(orders)), orders)
    panels[0].legend(fontsize="small", loc="lower left")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, few cuts")
    parser.add_argument("--layer", choices=tuple(ORDERS), default="S5")
    parser.add_argument("--data", type=pathlib.Path, help="mnist.npz, in place of the digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--results", type=pathlib.Path, help="JSON to which each seed is added")
    parser.add_argument("--table", type=pathlib.Path, help="where to write all results as a table")
    parser.add_argument("--picture", type=pathlib.Path, help="where to draw all results")
    options = parser.parse_args()
    results = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    task = "MNIST" if options.data else "digits"
    own = results.setdefault(f"{options.layer}, {task}", {})
    seeds, epochs = (1, 1) if options.quick else (options.seeds, options.epochs or EPOCHS[task])
    orders, methods = ORDERS[options.layer], METHODS
    if options.quick:
        orders, methods = orders[1:2], ("white", "best")
    for seed in range(seeds):
        if str(seed) in own:
            continue
        sets = mnist(options.data) if options.data else digits(seed)
        if options.quick:
            sets = [(inputs[:400], labels[:400]) for inputs, labels in sets]
        own[str(seed)] = one_seed(options.layer, sets, seed, epochs, orders, methods)
        if options.results:
            options.results.write_text(json.dumps(results, indent=1))
    results = {name: run for name, run in results.items() if run}
    if options.table:
        options.table.write_text(table(results))
    if options.picture:
        picture(results, options.picture)


if __name__ == "__main__":
    main()
