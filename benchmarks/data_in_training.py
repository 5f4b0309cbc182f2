"""One cut in training, with and without data: LRU layers with 8 channels, cut at step 300 of 3,000.

    python benchmarks/data_in_training.py --task mnist8 --data mnist.npz --results r.json    (5 min a seed)
    python benchmarks/data_in_training.py --task copying16 --results r.json
    python benchmarks/data_in_training.py --results r.json --seeds 0 --table table.txt
    python benchmarks/data_in_training.py --task copying8 --seeds 3 \\
        --methods white "white, matched" best "best, matched"
    python benchmarks/data_in_training.py --quick                                   copying, few steps

MNIST has 14 x 14 pixels, read one by one. In delayed copying each of twelve symbols, one of eight, is to be
said again 100 steps later; accuracy is that of single symbols, and gradients are clipped. All runs of a seed
share the first 300 steps, but for the small model that is trained from scratch. "white" is the cut without
data; the others calibrate with 512 training sequences, of which 128 are held out. "published" is the
procedure of CompreSSM with sliced moments, "random states" keeps some states as they are. "matched" lets the
layers that are cut learn the old outputs where the cut leads to chance, "match=True" wherever that lowers
the held-out loss; both are run where they are asked for.
Accuracy in % on test sequences, right after the cut and at the end. Costs are in training steps of the
model before the cut, by processor time. Runs that the file of results has are not done again.
"""

import argparse
import copy
import json
import math
import pathlib
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from data_aware import accuracy, mnist, spread
from published_procedure import reduce_lru
from torch import nn

from ssmreduce import CutOptions, InTrainingReducer, ReductionSchedule, calibrate

WIDTH, BATCH, STEPS, CUT = 8, 50, 3000, 300
RATE, WARM_UP, WEIGHT_DECAY = 1e-2, 150, 0.05
SYMBOLS, COPIED, DELAY = 8, 12, 100
CHUNK = 14
CUTS = ("white", "white refit", "balanced", "selected")
MATCHED = ("white, matched", "best, matched")
ALWAYS = "best, match=True"
METHODS = (*CUTS, "best", "published", "random states", "from scratch", "full")


@dataclass(frozen=True)
class Task:
    """What is learnt, the states of each layer before and after the cut, and the title of its columns."""

    title: str
    states: int
    order: int
    layers: int = 1

    @property
    def copies(self):
        return self.title.startswith("copying")


TASKS = {
    "mnist8": Task("MNIST, 256 → 8", 256, 8),
    "mnist16": Task("MNIST, 256 → 16", 256, 16),
    "copying16": Task("copying, 256 → 16", 256, 16),
    "copying8": Task("copying, 256 → 8", 256, 8),
    "mnist4x2": Task("MNIST, two layers, 128 → 4", 128, 4, 2),
}


class LRU(nn.Module):
    """y[k] = Re(C h[k]) + D u[k] with h[k] = Λ h[k-1] + γ B u[k], in chunks of steps."""

    def __init__(self, states):
        super().__init__()
        squares = 0.9**2 + (0.999**2 - 0.9**2) * torch.rand(states)
        nu = -0.5 * torch.log(squares)
        self.nu_log = nn.Parameter(torch.log(nu))
        self.theta_log = nn.Parameter(torch.log(2 * math.pi * (1 - torch.rand(states))))
        self.gamma_log = nn.Parameter(0.5 * torch.log(-torch.expm1(-2 * nu)))
        self.B_re = nn.Parameter(torch.randn(states, WIDTH) / math.sqrt(2 * WIDTH))
        self.B_im = nn.Parameter(torch.randn(states, WIDTH) / math.sqrt(2 * WIDTH))
        self.C_re = nn.Parameter(torch.randn(WIDTH, states) / math.sqrt(states))
        self.C_im = nn.Parameter(torch.randn(WIDTH, states) / math.sqrt(states))
        self.D = nn.Parameter(torch.randn(WIDTH))

    def forward(self, inputs):
        """Matrix products within chunks of steps, and from the states that chunks end with."""
        count, length, _ = inputs.shape
        chunks = -(-length // CHUNK)
        padded = nn.functional.pad(inputs, (0, 0, 0, chunks * CHUNK - length))
        rows = padded.reshape(count, chunks, CHUNK * WIDTH)
        logarithms = -torch.exp(self.nu_log) + 1j * torch.exp(self.theta_log)
        powers = torch.exp(logarithms * torch.arange(CHUNK + 1)[:, None])
        B = torch.exp(self.gamma_log)[:, None] * torch.complex(self.B_re, self.B_im)
        C = torch.complex(self.C_re, self.C_im)

        read = _columns(powers[:, None, :] * C)
        kernel = read[:-1] @ torch.cat([B.real, B.imag])
        kernel = torch.cat([kernel[:1] + torch.diag(self.D), kernel[1:], 0.0 * kernel[:1]])
        lag = torch.arange(CHUNK)[:, None] - torch.arange(CHUNK)
        within = kernel[torch.where(lag < 0, CHUNK, lag)]
        outputs = rows @ within.permute(1, 3, 0, 2).reshape(CHUNK * WIDTH, CHUNK * WIDTH)

        drive = powers[:CHUNK].flip(0)[:, None, :] * B.mT
        drive = rows @ torch.cat([drive.real, drive.imag], -1).reshape(CHUNK * WIDTH, -1)
        states = _states(torch.exp(logarithms * CHUNK * torch.arange(chunks)[:, None]), drive)
        outputs = outputs + states @ read[1:].reshape(CHUNK * WIDTH, -1).mT
        return outputs.reshape(count, -1, WIDTH)[:, :length]


def _columns(matrix):
    """[Re M, -Im M], which takes [Re x; Im x] to Re(M x)."""
    return torch.cat([matrix.real, -matrix.imag], dim=-1)


def _states(powers, drive):
    """States before each chunk, as (N, chunks, [Re, Im]), of what each adds to them."""
    chunks, count = powers.shape
    lag = torch.arange(chunks)[:, None] - torch.arange(chunks) - 1
    carried = torch.where(lag[..., None] < 0, 0.0, powers[lag.clamp(min=0)]).permute(2, 0, 1)
    real, imag = carried.real, carried.imag
    both = torch.cat([torch.cat([real, -imag], -1), torch.cat([imag, real], -1)], 1)
    parts = drive.reshape(len(drive), chunks, 2, count).permute(3, 2, 1, 0)
    states = both @ parts.reshape(count, 2 * chunks, -1)
    return states.reshape(count, 2, chunks, -1).permute(3, 2, 1, 0).reshape(drive.shape)


class Block(nn.Module):
    """x + GLU(GELU(LRU(norm(x)))), with batch normalisation."""

    def __init__(self, states):
        super().__init__()
        self.norm, self.lru = nn.BatchNorm1d(WIDTH, affine=False), LRU(states)
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, inputs):
        hidden = nn.functional.gelu(self.lru(self.norm(inputs.mT).mT))
        values, gates = self.mix(hidden).chunk(2, dim=-1)
        return inputs + values * torch.sigmoid(gates)


class Model(nn.Module):
    """Classes from the mean over time, or symbols at the last steps."""

    def __init__(self, task, states):
        super().__init__()
        self.copies = task.copies
        self.encoder = nn.Linear(SYMBOLS + 1 if task.copies else 1, WIDTH)
        self.blocks = nn.Sequential(*(Block(states) for _ in range(task.layers)))
        self.head = nn.Linear(WIDTH, SYMBOLS if task.copies else 10)

    def forward(self, inputs):
        hidden = self.blocks(self.encoder(inputs))
        return self.head(hidden[:, -COPIED:] if self.copies else hidden.mean(dim=1))


def copying(count, generator):
    """Symbols, a delay, and blanks while the symbols are to be said again; one-hot."""
    symbols = torch.randint(SYMBOLS, (count, COPIED), generator=generator)
    blanks = torch.full((count, DELAY), SYMBOLS)
    return nn.functional.one_hot(torch.cat([symbols, blanks], 1), SYMBOLS + 1).float(), symbols


class Problem:
    """Sequences, and the order in which a seed trains with them."""

    def __init__(self, task, path, seed):
        generator = torch.Generator().manual_seed(seed)
        self.longest_gradient = 1.0 if task.copies else math.inf
        if task.copies:
            self.training, self.test = copying(20_000, generator), copying(2_000, generator)
        else:
            self.training, self.test = mnist(path)
        self.rows = torch.randint(len(self.training[0]), (STEPS, BATCH), generator=generator)

    def batch(self, step):
        rows = self.rows[step - 1]
        return self.training[0][rows], self.training[1][rows]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def calibrated(problem, model):
    """On 512 sequences of the training set."""
    parts = (part[:512].split(32) for part in problem.training)
    return calibrate(model, list(zip(*parts, strict=True)), loss=loss)


def optimizer_of(model):
    """AdamW; the recurrence learns at a quarter of the rate, and neither it nor B decays."""
    poles = {"nu_log", "theta_log", "gamma_log"}
    groups = [
        {"params": [], "share": 0.25, "weight_decay": 0.0},
        {"params": [], "share": 1.0, "weight_decay": 0.0},
        {"params": [], "share": 1.0, "weight_decay": WEIGHT_DECAY},
    ]
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        groups[0 if last in poles else 1 if last.startswith("B_") else 2]["params"].append(
            parameter
        )
    return torch.optim.AdamW(groups, RATE, fused=True)


def rate(step):
    """Linear warm-up and cosine decay to a hundredth."""
    if step <= WARM_UP:
        return RATE * step / WARM_UP
    cosine = math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))
    return RATE * (0.01 + 0.99 * 0.5 * (1.0 + cosine))


def train(model, optimizer, problem, first, last):
    """Do the updates from `first` to `last`, both included."""
    for step in range(first, last + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * rate(step)
        optimizer.zero_grad()
        loss(model, problem.batch(step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), problem.longest_gradient)
        optimizer.step()


def cut_by_reducer(method, task, problem, model, optimizer):
    """Cut as a training loop does, and return what was compared."""
    reducer = InTrainingReducer(
        ReductionSchedule.at(CUT),
        order=task.order,
        data=None if method == "white" else partial(calibrated, problem),
        above_chance="match" if method in MATCHED else "warn",
        options=CutOptions(method=method.partition(",")[0], match=method == ALWAYS),
    )
    reducer.step(CUT, model, optimizer)
    return [part.choice.values for part in reducer.last_cut.values() if part.choice]


def cut_by_rows(method, task, seed, model, optimizer):
    """Random states as they are, or those of the published procedure; moments are sliced in both."""
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        layer = block.lru
        kept = torch.arange(task.order)
        if method == "random states":
            kept = torch.randperm(task.states, generator=generator)[: task.order]
        weights = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        new = reduce_lru(weights, task.order) if method == "published" else {}
        for name, parameter in layer.named_parameters():
            if name == "D":
                continue
            rows = (slice(None), kept) if name.startswith("C_") else kept
            value = torch.tensor(new[name]).float() if new else parameter.data[rows]
            parameter.data, parameter.grad = value.clone(), None
            moments = optimizer.state[parameter]
            for key in ("exp_avg", "exp_avg_sq"):
                moments[key] = moments[key][rows].clone()


def run(method, task, problem, seed, start, found):
    """Accuracy after the step of the cut, and at the end; and what the cut took, in seconds."""
    if method == "from scratch":
        torch.manual_seed(seed)
        model = Model(task, task.order)
        optimizer = optimizer_of(model)
        train(model, optimizer, problem, 1, CUT)
    else:
        model, optimizer = copy.deepcopy(start)
    compared = []
    started = time.process_time()
    if method in (*CUTS, "best", *MATCHED, ALWAYS):
        compared = cut_by_reducer(method, task, problem, model, optimizer)
    elif method in ("published", "random states"):
        cut_by_rows(method, task, seed, model, optimizer)
    seconds = time.process_time() - started
    after = accuracy(model, problem.test)
    if method == "best":
        found["compared"] = compared
        earlier = same_run(compared, found["runs"])
        if earlier is not None and earlier[0] == after:
            return after, earlier[1], seconds
    train(model, optimizer, problem, CUT + 1, STEPS)
    return after, accuracy(model, problem.test), seconds


def same_run(compared, runs):
    """The run with the cut that was chosen for the only layer, if there is one."""
    if len(compared) > 1:
        return None
    return runs.get(min(compared[0], key=compared[0].get))


def one_seed(task, problem, seed, methods, found):
    """Fill `found` with the methods that it lacks, and say after each that it has one more."""
    missing = [method for method in methods if method not in found.setdefault("runs", {})]
    if not missing:
        return
    torch.manual_seed(seed)
    model = Model(task, task.states)
    start = model, optimizer_of(model)
    started = time.process_time()
    train(*start, problem, 1, CUT)
    step = (time.process_time() - started) / CUT
    started = time.process_time()
    calibrated(problem, model)
    found["calibration"] = (time.process_time() - started) / step
    print(
        f"seed {seed}: a step {1e3 * step:.0f} ms, calibration {found['calibration']:.0f} of them"
    )
    for method in missing:
        after, end, seconds = run(method, task, problem, seed, start, found)
        found["runs"][method] = after, end, seconds / step
        print(f"  {method:14s} {after:5.1f} {end:5.1f}", flush=True)
        yield method


def table(results):
    """The figures as a page includes them."""
    results = {name: results[name] for name in TASKS if name in results}
    titles = [TASKS[name].title for name in results]
    rows = [
        ("", *(cell for title in titles for cell in (title, ""))),
        ("", *(("at the cut", "end") * len(titles))),
        *((method, *_accuracies(results, method)) for method in (*METHODS, *MATCHED, ALWAYS)),
        ("best - white, in pairs", *_differences(results)),
        ("steps, calibration", *_costs(results, "calibration")),
        *((f"steps, {method}", *_costs(results, method)) for method in (*CUTS, "best")),
    ]
    lines = [
        f"Accuracy in % right after a cut at step {CUT}, and at the end of {STEPS:,} steps: mean and "
        "standard deviation over seeds, whose number is in brackets. Steps: what the calibration takes, and "
        "an attempt with the calibration in it, in training steps before the cut.",
        "",
        ".. list-table::",
        "   :header-rows: 2",
        "",
    ]
    for row in rows[:2] + [row for row in rows[2:] if any(row[1:])]:
        lines += [f"   {'*' if not k else ' '} - {cell}".rstrip() for k, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def _spread(values, sign=""):
    return f"{spread(values, sign)} ({len(values)})" if values else ""


def _accuracies(results, method):
    for seeds in results.values():
        found = [seed["runs"][method] for seed in seeds.values() if method in seed["runs"]]
        has_cut = method not in ("full", "from scratch")
        yield _spread([run[0] for run in found]) if has_cut else ""
        yield _spread([run[1] for run in found])


def _differences(results):
    for seeds in results.values():
        both = [seed["runs"] for seed in seeds.values() if {"best", "white"} <= seed["runs"].keys()]
        for at in (0, 1):
            yield _spread([runs["best"][at] - runs["white"][at] for runs in both], "+")


def _costs(results, method):
    """In training steps; the calibration's where that is asked for."""
    for seeds in results.values():
        runs = [
            {"calibration": (0, 0, seed["calibration"]), **seed["runs"]} for seed in seeds.values()
        ]
        costs = [own[method][2] for own in runs if method in own]
        yield f"{np.median(costs):.0f}" if costs else ""
        yield ""


def main():
    global STEPS, CUT, WARM_UP
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="copying, one seed, few steps")
    parser.add_argument("--task", choices=tuple(TASKS), default="copying16")
    parser.add_argument("--data", type=pathlib.Path, help="mnist.npz")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument(
        "--methods", nargs="+", choices=(*METHODS, *MATCHED, ALWAYS), default=METHODS
    )
    parser.add_argument("--results", type=pathlib.Path, help="JSON to which each run is added")
    parser.add_argument("--table", type=pathlib.Path, help="where to write all results as a table")
    options = parser.parse_args()
    if options.quick:
        STEPS, CUT, WARM_UP, options.seeds = 60, 30, 5, 1
        options.methods = ("white", "best", "from scratch")
    results = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    task = TASKS[options.task]
    for seed in range(options.seeds):
        found = results.setdefault(options.task, {}).setdefault(str(seed), {})
        problem = Problem(task, options.data, seed)
        for _ in one_seed(task, problem, seed, options.methods, found):
            if options.results:
                options.results.write_text(json.dumps(results, indent=1))
    if options.table:
        options.table.write_text(table(results))


if __name__ == "__main__":
    main()
