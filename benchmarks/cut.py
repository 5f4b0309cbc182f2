"""One LRU cut beside the published procedure: HSVs, balancing, write-back, at a quarter of the order.

    python benchmarks/cut.py [--quick] [--repeats 5] [--output cut.json]

Both get the same float32 weights on the host and return new float32 weights. The repeats of both are
interleaved, so that drift of the machine hits both alike; medians and their ratio are printed for
BLAS libraries with one thread and with all cores (each in a process of its own, since the number
of threads is read at start). Peak memory is that of NumPy's allocations (tracemalloc) while both Gramians
are factored, balanced and truncated, in units of n² float64 numbers, for P and Q together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from published_procedure import reduce_lru

from ssmreduce import DiagonalStateSpace, balance
from ssmreduce.layers.lru import LRU
from ssmreduce.norms import hinf_difference

SIZES = ((256, 8), (384, 512), (1024, 512))


def draw_weights(n: int, width: int, seed: int) -> dict[str, np.ndarray]:
    """LRU initialisation on the ring 0.9 < |λ| < 0.999, all phases, float32."""
    rng = np.random.default_rng(seed)
    modulus_squared = rng.uniform(0.9**2, 0.999**2, n)
    nu = -0.5 * np.log(modulus_squared)
    weights = {
        "nu_log": np.log(nu),
        "theta_log": np.log(6.28 * rng.uniform(size=n)),
        "gamma_log": 0.5 * np.log(-np.expm1(-2 * nu)),
        "B_re": rng.standard_normal((n, width)) / np.sqrt(2 * width),
        "B_im": rng.standard_normal((n, width)) / np.sqrt(2 * width),
        "C_re": rng.standard_normal((width, n)) / np.sqrt(n),
        "C_im": rng.standard_normal((width, n)) / np.sqrt(n),
        "D": rng.standard_normal(width),
    }
    return {name: value.astype(np.float32) for name, value in weights.items()}


def reduce_ours(weights: dict[str, np.ndarray], order: int) -> dict[str, np.ndarray]:
    doubles = {name: value.astype(np.float64) for name, value in weights.items()}
    reduced = balance(LRU().read(doubles)).truncate(order).system
    written = LRU().write(reduced, doubles)
    return {name: value.astype(np.float32) for name, value in written.items()}


def reduce_published(weights: dict[str, np.ndarray], order: int) -> dict[str, np.ndarray]:
    written = reduce_lru(weights, order)
    return {name: value.astype(np.float32) for name, value in written.items()}


def measured_error(weights: dict[str, np.ndarray], written: dict[str, np.ndarray]) -> float:
    def system(values: dict[str, np.ndarray]) -> DiagonalStateSpace:
        return LRU().read(
            {k: v.astype(np.float64) for k, v in (values | {"D": weights["D"]}).items()}
        )

    return hinf_difference(system(weights), system(written))


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(n: int, width: int, repeats: int) -> dict[str, float]:
    weights, order = draw_weights(n, width, seed=0), n // 4
    ours, published = reduce_ours(weights, order), reduce_published(weights, order)  # warm-up
    times: dict[str, list[float]] = {"ours": [], "published": []}
    for _ in range(repeats):
        times["ours"].append(timed(lambda: reduce_ours(weights, order)))
        times["published"].append(timed(lambda: reduce_published(weights, order)))
    system = LRU().read({name: value.astype(np.float64) for name, value in weights.items()})
    tracemalloc.start()
    balance(system).truncate(order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "states": n,
        "width": width,
        "order": order,
        **{f"{name}_seconds": value for name, value in medians.items()},
        "ratio": medians["published"] / medians["ours"],
        "ours_error": measured_error(weights, ours),
        "published_error": measured_error(weights, published),
        "peak_in_n_squared_float64": peak / 8 / n**2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smallest size, two repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="internal: measure in this process")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    sizes = SIZES[:1] if arguments.quick else SIZES
    repeats = 2 if arguments.quick else arguments.repeats
    if arguments.threads is not None:
        print(json.dumps([measure(*size, repeats) for size in sizes]))
        return
    figures = []
    for threads in sorted({1, os.cpu_count() or 1}):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, __file__, "--threads", str(threads), "--repeats", str(repeats)]
        command += ["--quick"] if arguments.quick else []
        environment = os.environ | {name: str(threads) for name in names}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        for row in json.loads(run.stdout):
            figures.append({"threads": threads, **row})
            print(
                f"{threads} thread(s)  n={row['states']:5d} H={row['width']:4d} -> {row['order']:4d}  "
                f"ours {row['ours_seconds']:.3f} s  published {row['published_seconds']:.3f} s  "
                f"ratio {row['ratio']:.2f}  errors {row['ours_error']:.3g} / "
                f"{row['published_error']:.3g}  peak {row['peak_in_n_squared_float64']:.0f} n²"
            )
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
