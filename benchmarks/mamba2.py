"""What a cut of a small Mamba-2 language model costs right after it, by order.

Two layers of transformers learn to repeat words of six letters. Loss in nats on new words, more than before
the cut; beside it what the model loses without any states, and with a random selection.

    OPENBLAS_NUM_THREADS=1 python benchmarks/mamba2.py
    python benchmarks/mamba2.py --quick                            few steps, one model and order
"""

import argparse
import copy
import time

import torch
from torch import nn
from transformers import Mamba2Config, Mamba2ForCausalLM

from ssmreduce import calibrate, reduce_model

WORD, LETTERS, STATES = 6, 8, 32


def batch(count=32):
    return torch.randint(0, LETTERS, (count, WORD)).repeat(1, 4)


def loss(model, ids):
    scores = model(ids, use_cache=False).logits[:, WORD - 1 : -1]
    return nn.functional.cross_entropy(scores.transpose(1, 2), ids[:, WORD:])


def trained(groups, steps):
    """Return a model, and processor seconds of a step."""
    config = Mamba2Config(
        vocab_size=LETTERS,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        state_size=STATES,
        n_groups=groups,
        chunk_size=32,
        conv_kernel=2,
    )
    model = Mamba2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    started = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch()).backward()
        optimizer.step()
    return model.eval(), (time.process_time() - started) / steps


@torch.no_grad()
def measured(model, batches):
    return sum(loss(model, ids).item() for ids in batches) / len(batches)


def with_random_states(model, order):
    """Keep states at random: what reads the others becomes zero."""
    copied = copy.deepcopy(model)
    for layer in copied.backbone.layers:
        convolution, groups = layer.mixer.conv1d, layer.mixer.n_groups
        for group in range(groups):
            first = len(convolution.weight) - (groups - group) * STATES
            dropped = first + torch.randperm(STATES)[order:]
            convolution.weight.data[dropped] = 0.0
            convolution.bias.data[dropped] = 0.0
    return copied


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="few steps, one model and order")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--orders", type=int, nargs="+", default=[16, 8, 4])
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if given.quick:
        given.groups, given.steps, given.orders, given.seeds = [2], 10, [4], 1
    torch.set_num_threads(1)
    for groups in given.groups:
        for seed in range(given.seeds):
            torch.manual_seed(seed)
            model, step = trained(groups, given.steps)
            data = calibrate(model, [batch() for _ in range(8)], loss=loss)
            test = [batch() for _ in range(8)]
            full, off = measured(model, test), measured(with_random_states(model, 0), test)
            print(f"{groups} groups, seed {seed}: {full:.3f} nats; all states off: {off:.3f}")
            for order in given.orders:
                other = measured(with_random_states(model, order), test) - full
                cut, started = copy.deepcopy(model), time.process_time()
                reduce_model(cut, order, data=data)
                steps = (time.process_time() - started) / step
                more = measured(cut, test) - full
                print(f"{order:4d}  random {other:+.3f}   selected {more:+.3f} ({steps:.0f} steps)")


if __name__ == "__main__":
    main()
