"""What becomes of learning right after a cut: moments carried, reset, or sliced.

    python benchmarks/optimizer_state.py [--quick] [--dataset smnist --data mnist.npz]
        [--seeds 5] [--output optimizer_state.json]

A model is trained to the middle of a run, where the learning rate is still high, and cut once. From
there the same batches follow with each treatment of the optimizer's moments, and with no cut at all.
Printed is the mean training loss in windows of steps after the cut (mean over seeds, and the
standard error of the difference to "carry").
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from alternatives import cut_with

from ssmreduce import HankelMass
from ssmreduce.demo.data import CLASSES
from ssmreduce.demo.experiment import load
from ssmreduce.demo.model import SequenceClassifier
from ssmreduce.demo.settings import make_settings
from ssmreduce.demo.training import Problem, make_optimizer, update_model

WINDOWS = ((1, 5), (6, 20), (21, 60), (61, 150))
TREATMENTS = ("none", "carry", "reset", "slice")


def losses_after_cut(settings, problem, cut_step, share):
    optimizer = make_optimizer(settings)
    update = jax.jit(partial(update_model, optimizer))
    model = SequenceClassifier(
        [settings.states] * settings.blocks,
        settings.width,
        CLASSES,
        rng=np.random.default_rng(settings.seed),
    )
    state = optimizer.init(model)
    batches = problem.batches
    for step in range(cut_step):
        model, state, _ = update(model, state, problem.sequences, problem.labels, batches[step])
    losses, states = {}, {}
    for treatment in TREATMENTS:
        if treatment == "none":
            now, now_state = model, state
        else:
            result = cut_with(model, HankelMass(share), state, treatment)
            now, now_state = result.model, result.optimizer_state
        trace = []
        for step in range(cut_step, cut_step + WINDOWS[-1][1]):
            now, now_state, loss = update(
                now, now_state, problem.sequences, problem.labels, batches[step]
            )
            trace.append(loss)
        losses[treatment] = np.asarray(jnp.stack(trace))
        states[treatment] = sum(now.states)
    return losses, states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--states", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.9, help="Hankel mass kept by the cut")
    parser.add_argument("--cut-step", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    windows = {treatment: [] for treatment in TREATMENTS}
    for seed in range(seeds):
        settings = make_settings(
            dataset=arguments.dataset,
            data=arguments.data,
            states=arguments.states,
            steps=10 * arguments.cut_step,
            seed=seed,
        )
        problem = Problem(load(settings), settings)
        losses, states = losses_after_cut(settings, problem, arguments.cut_step, arguments.share)
        for treatment, trace in losses.items():
            windows[treatment].append([trace[a - 1 : b].mean() for a, b in WINDOWS])
        print(f"seed {seed}: states {states}", flush=True)
    means = {treatment: np.mean(rows, axis=0) for treatment, rows in windows.items()}
    print("steps after the cut   " + "  ".join(f"{a:>4d}-{b:<9d}" for a, b in WINDOWS))
    for treatment, mean in means.items():
        difference = np.array(windows[treatment]) - np.array(windows["carry"])
        error = difference.std(axis=0) / np.sqrt(max(seeds - 1, 1))
        cells = "  ".join(f"{m:.4f} ±{e:.4f}" for m, e in zip(mean, error, strict=True))
        print(f"{treatment:>18s}    {cells}")
    if arguments.output:
        rows = {name: np.asarray(value).tolist() for name, value in windows.items()}
        arguments.output.write_text(json.dumps({"windows": WINDOWS, "loss": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
