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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp

from ssmreduce.demo import lru
from ssmreduce.demo.experiment import Experiment, load, run_experiment
from ssmreduce.demo.settings import make_settings
from ssmreduce.demo.training import Progress, Watch


def scan_recurrence(eigenvalues, B, C, D, inputs):
    """Same outputs as the demo's recurrence, one time step after the other."""
    drive = jnp.einsum("nh,blh->lbn", B, inputs.astype(B.dtype))

    def step(state, driven):
        state = eigenvalues * state + driven
        return state, state

    _, states = jax.lax.scan(step, jnp.zeros_like(drive[0]), drive)
    return jnp.einsum("hn,lbn->blh", C, states).real + D * inputs


@contextmanager
def plain_display(name: str, steps: int) -> Iterator[Watch]:
    def watch(progress: Progress) -> None:
        if progress.evaluated:
            print(
                f"  {name:8s} step {progress.step:5d}/{steps}  {progress.seconds:7.1f} s  "
                f"loss {progress.loss:.3f}  accuracy {100 * progress.accuracy:.2f} %  "
                f"{progress.states} states",
                flush=True,
            )

    yield watch


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
    experiment = Experiment(settings)
    chosen = lru.diagonal_recurrence if arguments.recurrence == "chunked" else scan_recurrence
    with patch.object(lru, "diagonal_recurrence", chosen):
        run_experiment(experiment, load(settings), plain_display)
    if experiment.interrupted:
        raise SystemExit("interrupted")
    full = experiment.runs["full"]
    platform = f"{os.cpu_count()} cores, {jax.devices()[0].platform}"
    print(f"{arguments.recurrence} recurrence, {settings.steps} steps, {platform}")
    for name, run in experiment.runs.items():
        print(
            f"{name:8s} accuracy {100 * run.accuracy:6.2f} %  states {run.states:4d}  "
            f"{run.seconds:7.1f} s  {full.seconds / run.seconds:5.2f}x"
        )
    for event in experiment.events:
        print(
            f"cut after step {event.step}: {event.old_order} -> {event.new_order} states, bound "
            f"{event.error_bound:.3g}, measured {event.measured_error:.3g}, {event.seconds:.2f} s"
        )
    if arguments.output:
        figures = {
            "settings": settings.to_dict(),
            "runs": {name: run.to_dict() for name, run in experiment.runs.items()},
            "cuts": [event.to_dict() for event in experiment.events],
        }
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
