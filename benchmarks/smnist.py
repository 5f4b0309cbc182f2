"""Sequential MNIST at full length 784: full, reduced in training, and small from scratch, side by side.

    python benchmarks/smnist.py --data mnist.npz [--recurrence chunked|scan] [--steps 10000]
        [--states 256] [--tau 0.1] [--seed 0] [--quick] [--output smnist.json]

N = 256 states, H = 8 channels, 1 block, batches of 50, the model, optimizer and recurrence of the demo.
Seconds are wall-clock of a whole run: compilation, cuts and evaluations included. Accuracy is that on
all 10 000 test images after the last step. The runs follow one another in one process; the JAX caches
are cleared between them, so each pays for its own compilations.

How much a cut gains depends on how the recurrence is run. ``chunked`` is the demo's: matrix products
within chunks of time, with which much of a step does not depend on the number of
states. ``scan`` is the plain loop over time steps that most layers run on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp

from ssmreduce.demo import lru
from ssmreduce.demo.experiment import train_chain
from ssmreduce.demo.runs import Run
from ssmreduce.demo.settings import make_settings


def scan_recurrence(log_eigenvalues, B, C, D, inputs):
    """Same outputs as the demo's recurrence, one time step after the other."""
    eigenvalues = jnp.exp(log_eigenvalues)
    drive = jnp.einsum("nh,blh->lbn", B, inputs.astype(B.dtype))

    def step(state, driven):
        state = eigenvalues * state + driven
        return state, state

    _, states = jax.lax.scan(step, jnp.zeros_like(drive[0]), drive)
    return jnp.einsum("hn,lbn->blh", C, states).real + D * inputs


class Record:
    """Prints the evaluations of the runs, and keeps the runs."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.runs: dict[str, Run] = {}

    def __call__(self, run: Run) -> None:
        self.runs[run.name] = run
        if run.curve and run.curve[-1].step == run.step and not run.complete:
            print(
                f"  {run.name:8s} step {run.step:5d}/{self.steps}  {run.seconds:7.1f} s  "
                f"loss {run.loss:.3f}  accuracy {100 * run.accuracy:.2f} %  {run.states} states",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recurrence", choices=("chunked", "scan"), default="chunked")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--states", type=int)
    parser.add_argument("--tau", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = make_settings(
        dataset="smnist",
        data=arguments.data,
        states=arguments.states,
        tau=arguments.tau,
        steps=arguments.steps,
        seed=arguments.seed,
        quick=arguments.quick,
    )
    record = Record(settings.steps)
    chosen = lru.diagonal_recurrence if arguments.recurrence == "chunked" else scan_recurrence
    with patch.object(lru, "diagonal_recurrence", chosen):
        train_chain(settings, ("full",), record)
        train_chain(settings, ("reduced", "small"), record)
    runs = record.runs
    full, events = runs["full"], runs["reduced"].events
    platform = f"{os.cpu_count()} cores, {jax.devices()[0].platform}"
    print(f"{arguments.recurrence} recurrence, {settings.steps} steps, {platform}")
    for name, run in runs.items():
        print(
            f"{name:8s} accuracy {100 * run.accuracy:6.2f} %  states {run.states:4d}  "
            f"{run.seconds:7.1f} s  {full.seconds / run.seconds:5.2f}x"
        )
    for event in events:
        print(
            f"cut after step {event.step}: {event.old_order} -> {event.new_order} states, bound "
            f"{event.error_bound:.3g}, measured {event.measured_error:.3g}, {event.seconds:.2f} s"
        )
    if arguments.output:
        figures = {
            "settings": settings.to_dict(),
            "runs": {name: run.to_dict() for name, run in runs.items()},
            "cuts": [event.to_dict() for event in events],
        }
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
