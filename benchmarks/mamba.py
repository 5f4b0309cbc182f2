"""What a cut of a small Mamba language model costs right after it, by method and order.

Two stock blocks of mambapy learn the characters of the pages in docs/. Loss in nats on what was not trained
on, more than before the cut; beside it what the model loses without any states, and with random ones.

    OPENBLAS_NUM_THREADS=1 python benchmarks/mamba.py             d_state 32, 400 steps
    OPENBLAS_NUM_THREADS=1 python benchmarks/mamba.py --states 128 --steps 2000
    python benchmarks/mamba.py --quick                            few steps, one order
"""

import argparse
import copy
import pathlib
import time
import warnings

import torch
from mambapy.mamba import Mamba, MambaConfig
from torch import nn

from ssmreduce import CutOptions, calibrate, reduce_model
from ssmreduce.errors import CalibrationWarning

PAGES = pathlib.Path(__file__).parents[1] / "docs"
LENGTH, BATCH = 128, 16


class Text(nn.Module):
    """Characters in, scores of the next ones out."""

    def __init__(self, characters, states):
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.blocks = Mamba(MambaConfig(64, 2, d_state=states))
        self.head = nn.Linear(64, characters)

    def forward(self, ids):
        return self.head(nn.functional.layer_norm(self.blocks(self.embedding(ids)), (64,)))


def loss(model, ids):
    return nn.functional.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:])


def sequences(text, count):
    at = torch.randint(0, len(text) - LENGTH - 1, (count,))
    return torch.stack([text[k : k + LENGTH + 1] for k in at])


def trained(model, text, steps):
    """Return the optimizer, and processor seconds of a step."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    started = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, sequences(text, BATCH)).backward()
        optimizer.step()
    return (time.process_time() - started) / steps


@torch.no_grad()
def measured(model, batches):
    return sum(loss(model, ids).item() for ids in batches) / len(batches)


def without_states(model):
    copied = copy.deepcopy(model)
    for layer in copied.blocks.layers:
        layer.mixer.x_proj.weight.data[-layer.mixer.config.d_state :] = 0.0
    return copied


def random_rows(model, order):
    """Keep states at random, as a floor."""
    copied = copy.deepcopy(model)
    for layer in copied.blocks.layers:
        states = layer.mixer.config.d_state
        dropped = torch.randperm(states)[order:]
        rank = layer.mixer.config.dt_rank
        layer.mixer.x_proj.weight.data[rank + states + dropped] = 0.0
    return copied


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one order")
    parser.add_argument("--states", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--orders", type=int, nargs="+", default=[16, 8, 4, 2])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.quick:
        given.states, given.steps, given.orders = 4, 5, [2]
    torch.manual_seed(given.seed)
    torch.set_num_threads(1)
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.rst")))
    characters = sorted(set(pages))
    text = torch.tensor([characters.index(each) for each in pages])
    training, rest = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    model = Text(len(characters), given.states)
    step = trained(model, training, given.steps)
    model.eval()
    test = [sequences(rest, 64) for _ in range(4)]
    full = measured(model, test)
    off = measured(without_states(model), test)
    print(f"{given.states} states: {full:.3f} nats; all states off: {off - full:+.4f}")
    data = calibrate(model, [sequences(training, BATCH) for _ in range(4)], loss=loss)
    warnings.simplefilter("ignore", CalibrationWarning)
    for order in given.orders:
        row = [f"random {measured(random_rows(model, order), test) - full:+.4f}"]
        for method in ("compensated", "selected", "merged"):
            cut, started = copy.deepcopy(model), time.process_time()
            reduce_model(cut, order, data=data, options=CutOptions(method=method))
            steps = (time.process_time() - started) / step
            row.append(f"{method} {measured(cut, test) - full:+.4f} ({steps:.0f} steps)")
        print(f"{order:4d}  " + "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
