"""Processor time of small public calls, by themselves or against another checkout of this repository.

    python benchmarks/core.py [--against PATH] [--rounds 5] [--quick] [NAME ...]

Prints the least of each call in milliseconds, with one BLAS thread. With `--against`, processes that import
the package (built in place) from both take turns; slower by more than a fifth and 1 ms is marked. Beside a
checkout that is not built, `hsv-20`, `hsv-100` and `hsv-200x8` show what compiled code buys.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

import ssmreduce as s

HERE = pathlib.Path(__file__).resolve().parent.parent


def dense(n: int, width: int, seed: int = 1, decades: float = 0.0) -> s.StateSpace:
    """A stable random state matrix, whose rows fall by that many decades."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n)) / np.sqrt(n)
    largest = np.linalg.norm(A, 2) if decades else np.linalg.eigvals(A).real.max()
    A = (A - (largest + 0.1) * np.eye(n)) * np.geomspace(1.0, 10.0**-decades, n)[:, None]
    B, C = rng.standard_normal((n, width)), rng.standard_normal((width, n))
    return s.StateSpace(A, B, C, time=s.Continuous())


def batch(decades: float = 0.0) -> s.StateSpace:
    every = [dense(8, 3, seed, decades) for seed in range(200)]
    A, B, C = (np.stack([getattr(x, k) for x in every]) for k in "ABC")
    return s.StateSpace(A, B, C, time=s.Continuous())


def modes(n: int, width: int) -> s.DiagonalStateSpace:
    x, poles = dense(n, width), np.linspace(0.8, 0.99, n) * np.exp(3j * np.arange(n) / n)
    return s.DiagonalStateSpace(poles, x.B, x.C, time=s.Discrete(), real_output=True)


def s4d_lin(states: int, count: int) -> s.DiagonalStateSpace:
    """Channels of S4D-Lin, sampled with a zero-order hold at steps from 1e-3 to 1e-1."""
    poles = -0.5 + 1j * np.pi * np.arange(states)
    logarithms = np.geomspace(1e-3, 1e-1, count)[:, None] * poles
    B = (np.expm1(logarithms) / poles)[:, :, None]
    C = np.random.default_rng(1).standard_normal((count, 1, states, 2)) @ [1.0, 1j]
    return s.DiagonalStateSpace.from_log(logarithms, B, C, time=s.Discrete(), real_output=True)


def calls() -> dict[str, Any]:
    large, medium, small, diagonal = dense(200, 3), dense(100, 3), dense(20, 1), modes(64, 4)
    channels, channel = s4d_lin(32, 64), s4d_lin(200, 3)[1]
    cut, many, stiff = s.balanced_truncation(small, 10), batch(), batch(decades=8)
    return {
        "zoh-200": lambda: s.to_discrete(large, 0.1),
        "impulse-200": lambda: s.impulse_response(large, times=np.linspace(0.0, 20.0, 200)),
        "quick-error-20": cut.quick_error,
        "certified-error-20": lambda: cut.verify(certified=True),
        "match-dc-64": lambda: s.balance(diagonal).match_dc(32),
        "hsv-20": lambda: s.hankel_singular_values(small),
        "hsv-100": lambda: s.hankel_singular_values(medium),
        "hsv-200x8": lambda: s.hankel_singular_values(many),
        "cut-200x8": lambda: s.balanced_truncation(many, 4),
        "balance-s4d-64x32": lambda: s.balance(channels),
        "balance-s4d-200": lambda: s.balance(channel),
        "is-stable-200x8": stiff.is_stable,
    }


def measured(names: list[str], repeats: int) -> dict[str, float]:
    every = calls()
    best = dict.fromkeys(names or every, float("inf"))
    for name in best:
        for _ in range(repeats):
            start = time.process_time()
            every[name]()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--against", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measured(given.names, 2 if given.quick else 30)))
        return
    trees = [*([given.against.resolve()] if given.against else []), HERE]
    command = [sys.executable, __file__, "--worker", *["--quick"] * given.quick, *given.names]
    best: list[dict[str, float]] = [{} for _ in trees]
    for tree, known in list(zip(trees, best, strict=True)) * (1 if given.quick else given.rounds):
        own = os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
        output = subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE).stdout
        known.update({k: min(x, known.get(k, x)) for k, x in json.loads(output).items()})
    for (name, here), there in zip(best[-1].items(), best[0].values(), strict=True):
        slower = "  slower" if here > max(1.2 * there, there + 1.0) else ""
        print(f"{name:20}{here:9.3f}" + f"{there:9.3f}{here / there:7.2f}{slower}" * len(trees[1:]))


if __name__ == "__main__":
    main()
