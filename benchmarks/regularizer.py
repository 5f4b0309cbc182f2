"""Hankel nuclear norm penalties beside a training step of the demo's LRU, and exact beside lazy.

    python benchmarks/regularizer.py [--quick] [--repeats 30] [--output regularizer.json]

Cost: one optimizer step of the demo's sMNIST model (256 states, 8 channels, 50 sequences of 784
steps; random numbers in place of pixels), and beside it value and gradient of each penalty of its LRU
layer, compiled by themselves, so that the start of a compiled function counts as theirs; and a refresh of
the lazy form, shared out over the steps between two of them. The repeats are interleaved; medians. On
a shared machine trust processor time, and give BLAS one thread (OPENBLAS_NUM_THREADS=1), since idle
ones spin.

Closeness: the demo's digits are learnt with the lazy penalty. From one refresh on, value and
gradient of the lazy penalty are compared with the exact ones as the weights move away: relative value,
and the cosine of the gradients for each kind of weight.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssmreduce import read_system
from ssmreduce.demo.data import load_digits
from ssmreduce.demo.model import SequenceClassifier
from ssmreduce.demo.settings import Settings, make_settings
from ssmreduce.demo.training import make_optimizer
from ssmreduce.regularizers import LazyHankelNuclearNorm, hankel_nuclear_norm, modal_l1

STATES, WIDTH, CLASSES = 256, 8, 10
STRENGTH = 3e-4
GROUPS = {
    "nu_log": ("nu_log",),
    "theta_log": ("theta_log",),
    "gamma_log": ("gamma_log",),
    "B": ("B_re", "B_im"),
    "C": ("C_re", "C_im"),
}

Penalty = Callable[[Any, Any], Any]

PENALTIES: dict[str, Penalty] = {
    "modal l1": lambda system, state: modal_l1(system),
    "lazy": lambda system, state: LazyHankelNuclearNorm().penalty(system, state),
    "exact": lambda system, state: hankel_nuclear_norm(system),
}


def start(settings: Settings) -> tuple[Any, Any, Any]:
    model = SequenceClassifier([STATES], WIDTH, CLASSES, rng=np.random.default_rng(settings.seed))
    optimizer = make_optimizer(settings)
    return model, optimizer, optimizer.init(model)


def compiled_step(optimizer: Any, penalty: Penalty) -> Callable[..., Any]:
    def loss(model: Any, state: Any, sequences: Any, labels: Any) -> Any:
        scores, _ = model(sequences)
        cost = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))
        return cost + STRENGTH * penalty(read_system(model.blocks[0].lru), state)

    def step(model: Any, moments: Any, state: Any, sequences: Any, labels: Any) -> Any:
        gradient = jax.grad(loss)(model, state, sequences, labels)
        updates, moments = optimizer.update(gradient, moments, model)
        return optax.apply_updates(model, updates), moments

    return jax.jit(step)


def seconds(function: Callable[..., Any], *arguments: Any) -> np.ndarray:
    """Wall time and processor time."""
    started = time.perf_counter(), time.process_time()
    jax.block_until_ready(function(*arguments))
    return np.array([time.perf_counter() - started[0], time.process_time() - started[1]])


def measure_cost(repeats: int) -> dict[str, list[float]]:
    """Median wall and processor times."""
    settings = make_settings(dataset="smnist", data=Path("not-read"))
    model, optimizer, moments = start(settings)
    layer = model.blocks[0].lru
    rng = np.random.default_rng(1)
    shape = (settings.batch_size, 784)
    sequences = jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    labels = jnp.asarray(rng.integers(0, CLASSES, settings.batch_size))
    lazy = LazyHankelNuclearNorm()
    state = jax.device_put(lazy.refresh(read_system(layer)))
    step = compiled_step(optimizer, lambda system, state: 0.0)
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: step(model, moments, state, sequences, labels),
        "refresh": lambda: lazy.refresh(read_system(layer)),
    }
    for name, penalty in PENALTIES.items():
        calls[name] = partial(compiled_penalty(penalty), layer, state)
    times: dict[str, list[np.ndarray]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round compiles
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: np.median(values[1:], axis=0).tolist() for name, values in times.items()}


def compiled_penalty(penalty: Penalty) -> Callable[..., Any]:
    """Value and gradient by the weights of a layer."""
    return jax.jit(jax.value_and_grad(lambda layer, state: penalty(read_system(layer), state)))


def measure_closeness(warm_up: int, distances: list[int]) -> list[dict[str, Any]]:
    settings = make_settings(dataset="digits", quick=True)
    data = load_digits()
    sequences, labels = jnp.asarray(data.train_sequences), jnp.asarray(data.train_labels)
    model, optimizer, moments = start(settings)
    rng = np.random.default_rng(settings.seed)
    step = compiled_step(optimizer, PENALTIES["lazy"])
    gradients = {name: compiled_penalty(PENALTIES[name]) for name in ("lazy", "exact")}
    lazy = LazyHankelNuclearNorm(every=max(distances))
    rows = []
    for count in range(warm_up + max(distances) + 1):
        since = count - warm_up
        layer = model.blocks[0].lru
        if since <= 0 and (since == 0 or lazy.due(count)):
            state = jax.device_put(lazy.refresh(read_system(layer)))
        if since in (0, *distances):
            found = {name: function(layer, state) for name, function in gradients.items()}
            (value, slope), (exact, exact_slope) = found["lazy"], found["exact"]
            row = {"steps": since, "exact": float(exact), "lazy": float(value)}
            row |= {group: cosine(slope, exact_slope, names) for group, names in GROUPS.items()}
            rows.append(row)
        batch = rng.integers(0, len(labels), settings.batch_size)
        model, moments = step(model, moments, state, sequences[batch], labels[batch])
    return rows


def cosine(first: Any, second: Any, names: tuple[str, ...]) -> float:
    a, b = (
        np.concatenate([np.asarray(getattr(slope, name), np.float64).ravel() for name in names])
        for slope in (first, second)
    )
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats and short distances")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cost = measure_cost(2 if options.quick else options.repeats)
    for clock, kind in enumerate(("wall", "processor")):
        plain, refresh = cost["step"][clock], cost["refresh"][clock]
        print(
            f"{kind} time: a training step {1e3 * plain:.1f} ms, a refresh {1e3 * refresh:.0f} ms"
        )
        for name in PENALTIES:
            print(
                f"{name:>12}: {1e3 * cost[name][clock]:8.2f} ms, {cost[name][clock] / plain:7.1%}"
            )
        for every in (50, 100, 200, 500):
            share = (cost["lazy"][clock] + refresh / every) / plain
            print(f"{'lazy':>12} and its refresh every {every}: {share:.1%}")
    warm_up, distances = (3, [1, 2]) if options.quick else (100, [1, 10, 50, 100, 200])
    rows = measure_closeness(warm_up, distances)
    print(f"closeness, refreshed after {warm_up} steps: values, and cosines of the gradients")
    print("steps   exact    lazy  " + "".join(f"{group:>10}" for group in GROUPS))
    for row in rows:
        cosines = "".join(f"{row[group]:10.3f}" for group in GROUPS)
        print(f"{row['steps']:5d} {row['exact']:8.2f} {row['lazy']:8.2f}{cosines}")
    if options.output is not None:
        options.output.write_text(json.dumps({"cost": cost, "closeness": rows}, indent=2))


if __name__ == "__main__":
    main()
