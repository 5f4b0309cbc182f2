"""Learning after a cut: moments, scaling of modes, and warm-up of the learning rate, over seeds.

    python benchmarks/after_cut.py --data mnist.npz [--task smnist|copy] [--seeds 3] [--steps 3000]
        [--quick] [--output after_cut.json]

Of every seed the full model (256 states, H = 8, one block) is trained to the cut at a tenth of the steps,
once. From there all runs see the same batches:

- the model as it is, uncut;
- cut to 16 states, with moments carried, reset or sliced, output weights as large as the layer's, weights in
  the layer's proportion or states as balancing leaves them, and the learning rate warmed up again over the
  first twentieth of the steps or not;
- the same with moments reset and every state turned by a phase drawn at random, three times: what the phase,
  which is free too, and chance make of one and the same cut;
- cut to 8 and 64 states with the defaults.

Beside them stand models with 8, 16 and 64 states trained from scratch over all steps. Tasks are sequential
MNIST at 14×14 (means of 2×2 pixels), and delayed copying: twenty symbols of eight, twenty steps of silence,
then they are to be said again. Finished runs are kept in the output file and not repeated: the benchmark
can be interrupted and started again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from alternatives import cut_with

from ssmreduce.demo.data import load_smnist
from ssmreduce.demo.model import Block, Linear
from ssmreduce.demo.settings import make_settings
from ssmreduce.demo.training import make_optimizer

STATES, WIDTH, BATCH = 256, 8, 50
SIZES = (8, 16, 64)
STUDIED = 16
CUT_SHARE, WARM_UP_SHARE = 0.1, 0.05
PIECE = 25
SYMBOLS, LETTERS, SILENCE = 8, 20, 20
TASKS = ("smnist", "copy")
SCALINGS = ("usual", "proportion", "balanced")
TITLES = (
    "% of Hankel mass",
    "% after the cut",
    "loss, 50 steps",
    "next 150",
    "last 200",
    "% at the end",
    "beside default",
)
FIGURES = (
    ("kept", 100),
    ("after", 100),
    ("soon", 1),
    ("later", 1),
    ("last", 1),
    ("accuracy", 100),
    ("difference", 100),
)


@dataclass(frozen=True)
class Task:
    """Sequences (n, L, inputs) and labels (n, K): of the mean over time (K = 1) or of the last K steps."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int


def load_task(name: str, data: Path | None) -> Task:
    if name == "copy":
        return Task(copying(20000, 1), copying(2000, 2), SYMBOLS)
    assert data is not None
    images = load_smnist(data)
    parts = [
        (pooled(images.train_sequences), images.train_labels[:, None]),
        (pooled(images.test_sequences), images.test_labels[:, None]),
    ]
    return Task(parts[0], parts[1], 10)


def pooled(sequences: np.ndarray) -> np.ndarray:
    """28×28 images as sequences of 14×14 means, one pixel per step."""
    return sequences.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196, 1)


def copying(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    symbols = np.random.default_rng(seed).integers(SYMBOLS, size=(count, LETTERS))
    silence = np.full((count, SILENCE), SYMBOLS)
    tokens = np.concatenate([symbols, silence, np.full((count, LETTERS), SYMBOLS + 1)], axis=1)
    return np.eye(SYMBOLS + 2, dtype=np.float32)[tokens], symbols.astype(np.int32)


class Model(eqx.Module):
    """Encoder, one LRU block, linear head at every step."""

    encoder: Linear
    block: Block
    head: Linear

    def __init__(self, task: Task, states: int, rng: np.random.Generator) -> None:
        self.encoder = Linear(task.train[0].shape[-1], WIDTH, rng=rng)
        self.block = Block(states, WIDTH, rng=rng)
        self.head = Linear(WIDTH, task.classes, rng=rng)

    def __call__(self, sequences: Any, answers: int, statistics: Any = None) -> tuple[Any, Any]:
        hidden, statistics = self.block(self.encoder(sequences), statistics)
        hidden = hidden.mean(1, keepdims=True) if answers == 1 else hidden[:, -answers:]
        return self.head(hidden), statistics


def loss_of(model: Model, sequences: Any, labels: Any) -> Any:
    scores, _ = model(sequences, labels.shape[1])
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


@partial(jax.jit, static_argnums=0)
def advance(optimizer: Any, now: Any, train: Any, batches: Any, pace: Any) -> Any:
    """Some steps, whose learning rates are multiplied by `pace`: model, optimizer state and losses."""

    def step(now: Any, driven: Any) -> Any:
        (model, state), (batch, pace) = now, driven
        loss, gradient = jax.value_and_grad(loss_of)(model, train[0][batch], train[1][batch])
        updates, state = optimizer.update(gradient, state, model)
        updates = jax.tree.map(lambda update: pace * update, updates)
        return (optax.apply_updates(model, updates), state), loss

    return jax.lax.scan(step, now, (batches, pace))


@jax.jit
def statistics_of(model: Model, sequences: Any) -> Any:
    return model(sequences, 1)[1]


@jax.jit
def right(model: Model, statistics: Any, sequences: Any, labels: Any) -> Any:
    scores, _ = model(sequences, labels.shape[1], statistics)
    return (scores.argmax(-1) == labels).mean()


class Seed:
    """All runs of one task and seed, which share data, batches and optimizer."""

    def __init__(self, name: str, task: Task, seed: int, steps: int) -> None:
        self.name, self.task, self.seed, self.steps = name, task, seed, steps
        settings = make_settings(steps=steps, seed=seed)
        self.optimizer = make_optimizer(replace(settings, width=WIDTH, batch_size=BATCH))
        self.train = jax.tree.map(jnp.asarray, task.train)
        rng = np.random.default_rng([seed, 1])
        count = len(task.train[1])
        epochs = -(-steps * BATCH // count)
        order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
        self.batches = order[: steps * BATCH].reshape(steps, BATCH)
        self.cut_step = round(CUT_SHARE * steps / PIECE) * PIECE
        self._full: Any = None

    def fresh(self, states: int) -> Any:
        model = Model(self.task, states, np.random.default_rng(self.seed))
        return model, self.optimizer.init(model)

    def full(self) -> Any:
        """Model and optimizer state at the cut."""
        if self._full is None:
            self._full = self.run(self.fresh(STATES), 0, self.cut_step)[0]
        return self._full

    def run(self, now: Any, start: int, stop: int, rewarm: bool = False) -> Any:
        pace = np.ones(self.steps, dtype=np.float32)
        if rewarm:
            ramp = round(WARM_UP_SHARE * self.steps)
            pace[start : start + ramp] = np.arange(1, ramp + 1) / ramp
        losses = []
        for at in range(start, stop, PIECE):
            piece = slice(at, at + PIECE)
            now, loss = advance(self.optimizer, now, self.train, self.batches[piece], pace[piece])
            losses.append(loss)
        return now, np.concatenate(losses)

    def accuracy(self, model: Model) -> float:
        statistics = statistics_of(model, self.train[0][:500])
        parts = range(0, len(self.task.test[1]), 500)
        found = [
            right(model, statistics, *(part[at : at + 500] for part in self.task.test))
            for at in parts
        ]
        return float(np.mean(found))

    def small(self, states: int) -> dict[str, Any]:
        (model, _), losses = self.run(self.fresh(states), 0, self.steps)
        return {"states": states, **self.figures(model, losses, self.cut_step)}

    def uncut(self) -> dict[str, Any]:
        model = self.full()[0]
        (last, _), losses = self.run(self.full(), self.cut_step, self.steps)
        before = self.accuracy(model)
        return {"states": STATES, "after": before, **self.figures(last, losses, 0)}

    def cut(
        self, states: int, moments: Any, scaling: Any, rewarm: bool, turn: int | None = None
    ) -> dict[str, Any]:
        model, state = self.full()
        cut = cut_with(model, states, state, moments, scaling)
        (part,) = cut.report.values()
        small = cut.model if turn is None else turned(cut.model, turn)
        after = self.accuracy(small)
        (last, _), losses = self.run(
            (small, cut.optimizer_state), self.cut_step, self.steps, rewarm
        )
        figures = self.figures(last, losses, 0)
        hsv, real_order = part.reduction.hsv, part.reduction.real_order
        kept = float(hsv[:real_order].sum() / hsv.sum())
        return {"states": part.new_order, "after": after, "kept": kept, **figures}

    def figures(self, model: Model, losses: np.ndarray, cut: int) -> dict[str, Any]:
        """Accuracy at the end, and losses soon after the cut and at the end."""
        return {
            "accuracy": self.accuracy(model),
            "soon": float(losses[cut : cut + 50].mean()),
            "later": float(losses[cut + 50 : cut + 200].mean()),
            "last": float(losses[-200:].mean()),
        }


def turned(model: Model, draw: int) -> Model:
    """The same map with another phase of every state."""
    lru = model.block.lru
    phase = np.exp(2j * np.pi * np.random.default_rng(draw).uniform(size=lru.states))
    B = phase[:, None] * (np.asarray(lru.B_re) + 1j * np.asarray(lru.B_im))
    C = (np.asarray(lru.C_re) + 1j * np.asarray(lru.C_im)) / phase
    new = [jnp.asarray(part, jnp.float32) for part in (B.real, B.imag, C.real, C.imag)]
    return eqx.tree_at(
        lambda m: [getattr(m.block.lru, name) for name in ("B_re", "B_im", "C_re", "C_im")],
        model,
        new,
    )


def planned_runs() -> dict[str, Any]:
    """Every run by name: what to call on a `Seed`."""
    runs = {"full": lambda seed: seed.uncut()}
    for size in SIZES:
        runs[f"small {size}"] = partial(lambda seed, size: seed.small(size), size=size)
        if size != STUDIED:
            runs[variant(size, "carry", "usual", False)] = partial(
                Seed.cut, states=size, moments="carry", scaling="usual", rewarm=False
            )
    treatments = product(("carry", "reset", "slice"), SCALINGS, (False, True))
    for moments, scaling, rewarm in treatments:
        runs[variant(STUDIED, moments, scaling, rewarm)] = partial(
            Seed.cut, states=STUDIED, moments=moments, scaling=scaling, rewarm=rewarm
        )
    for turn in range(3):
        runs[f"{variant(STUDIED, 'reset', 'usual', False)} turn {turn}"] = partial(
            Seed.cut, states=STUDIED, moments="reset", scaling="usual", rewarm=False, turn=turn
        )
    return runs


def variant(states: int, moments: str, scaling: str, rewarm: bool) -> str:
    return f"cut {states} {moments} {scaling}" + (" rewarm" if rewarm else "")


def table(results: dict[str, Any], seeds: int) -> str:
    """Means and standard deviations over seeds, accuracy also as difference to the default."""
    lines = [f"{'':42s}" + "".join(f"{title:>18s}" for title in TITLES)]
    default = variant(STUDIED, "carry", "usual", False)
    for task in TASKS:
        for name in planned_runs():
            rows = []
            for seed in range(seeds):
                row, beside = (results.get(f"{task}/{seed}/{run}") for run in (name, default))
                if row and beside and name.startswith(f"cut {STUDIED}"):
                    row = {**row, "difference": row["accuracy"] - beside["accuracy"]}
                rows += [row] if row else []
            if not rows:
                continue
            cells = [f"{task:7s}{name:30s}{len(rows):2d}   "]
            for figure, factor in FIGURES:
                values = [factor * row[figure] for row in rows if figure in row]
                spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
                cells.append(f"{np.mean(values):9.3f} ±{spread:7.3f}" if values else 18 * " ")
            lines.append("".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="needed by smnist")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no run after these"
    )
    parser.add_argument("--quick", action="store_true", help="copying alone, 1 seed, 500 steps")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    tasks = ["copy"] if arguments.quick else arguments.task or list(TASKS)
    seeds, steps = (1, 500) if arguments.quick else (arguments.seeds, arguments.steps)
    results = {}
    if arguments.output and arguments.output.exists():
        results = json.loads(arguments.output.read_text())
    started = time.perf_counter()
    for name, seed in ((name, seed) for seed in range(seeds) for name in tasks):
        todo = {
            run: call
            for run, call in planned_runs().items()
            if f"{name}/{seed}/{run}" not in results
        }
        if not todo:
            continue
        runs = Seed(name, load_task(name, arguments.data), seed, steps)
        for run, call in todo.items():
            if time.perf_counter() - started > 60.0 * arguments.minutes:
                break
            began = time.process_time()
            results[f"{name}/{seed}/{run}"] = call(runs)
            took = time.process_time() - began
            print(f"{name}/{seed}/{run} {took:.0f} s {results[f'{name}/{seed}/{run}']}", flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
        jax.clear_caches()
    print(table(results, seeds))


if __name__ == "__main__":
    main()
