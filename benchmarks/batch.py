"""Batches beside loops: 1024 channels of S4D over Slycot, python-control and pyMOR; 48 layers over 48 calls.

    python benchmarks/batch.py [--quick] [--repeats 5] [--count 1024] [--peers 128] [--output batch.json]

A channel is x' = diag(λ) x + u, y = 2 Re(C x) with λ = -1/2 + iπn, n < 32, and C random: a real system of 64
states, cut to 16 real ones. It comes in continuous time, and sampled with a zero-order hold at steps
log-uniform in 1e-3 ... 1e-1. The peers get the same systems as dense real matrices (block-diagonal, the
form of their routines' input), the first `--peers` of them, in a Python loop with one BLAS thread, which
is the fastest for them. Ours gets all, as one batch, with as many workers as the BLAS has threads: all
cores, or what OPENBLAS_NUM_THREADS says.

Repeats of all packages are interleaved; medians are in ms for each system, with the ratio to ours. Beside
them stands accuracy, on a few systems: the largest deviation of the Hankel singular values from ours,
relative to σ₁, and the error of the reduced system over the bound 2 Σ σ_i, which must not exceed 1.
python-control knows continuous systems only, and its `balred` returns no values: they take a call of
their own.
Memory is the peak of NumPy's allocations (tracemalloc). Layers have 256 states and H = 8, like an LRU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import control
import numpy as np
import slycot
from pymor.core.logger import set_log_levels
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import BTReductor
from threadpoolctl import threadpool_info, threadpool_limits

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balanced_truncation,
    hankel_singular_values,
)
from ssmreduce.responses import frequency_response

STORED, KEPT = 32, 8
"""Stored states of a channel, pairs of real ones, before and after."""

CHECKED = 16
"""Systems of which accuracy is measured."""


def channels(count: int, *, discrete: bool) -> DiagonalStateSpace:
    rng = np.random.default_rng(0)
    steps = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), count))
    C = 2.0 * (rng.standard_normal((count, 1, STORED, 2)) @ [1.0, 1j])
    poles = -0.5 + 1j * np.pi * np.arange(STORED)
    if not discrete:
        B = np.ones((count, STORED, 1))
        poles = np.tile(poles, (count, 1))
        return DiagonalStateSpace(poles, B, C, time=Continuous(), real_output=True)
    logarithms = steps[:, None] * poles
    B = (np.expm1(logarithms) / poles)[..., None]
    return DiagonalStateSpace.from_log(logarithms, B, C, time=Discrete(), real_output=True)


def layers(count: int, states: int) -> DiagonalStateSpace:
    rng = np.random.default_rng(1)
    moduli = rng.uniform(0.9, 0.999, (count, states))
    poles = moduli * np.exp(1j * rng.uniform(0.0, 6.28, (count, states)))
    B = rng.standard_normal((count, states, 8, 2)) @ [1.0, 1j]
    C = rng.standard_normal((count, 8, states, 2)) @ [1.0, 1j]
    B *= np.sqrt(1.0 - moduli**2)[..., None]
    return DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=True)


def slycot_loop(systems: list[StateSpace]) -> list[Any]:
    results = []
    for system in systems:
        dico = "D" if isinstance(system.time, Discrete) else "C"
        n = system.order
        _, A, B, C, hsv = slycot.ab09ad(
            dico, "B", "N", n, 1, 1, system.A, system.B, system.C, 2 * KEPT
        )
        results.append((hsv, (A, B, C)))
    return results


def control_loop(systems: list[StateSpace]) -> list[Any]:
    results = []
    for system in systems:
        reduced = control.balred(control.ss(system.A, system.B, system.C, 0.0), 2 * KEPT)
        results.append((None, (reduced.A, reduced.B, reduced.C)))
    return results


def control_values(systems: list[StateSpace]) -> list[Any]:
    return [(control.hankel_singular_values(control.ss(s.A, s.B, s.C, 0.0)), None) for s in systems]


def pymor_loop(systems: list[StateSpace]) -> list[Any]:
    results = []
    for system in systems:
        step = system.time.dt if isinstance(system.time, Discrete) else 0
        model = LTIModel.from_matrices(
            system.A.copy(), system.B.copy(), system.C.copy(), sampling_time=step
        )
        reduced = BTReductor(model).reduce(2 * KEPT, projection="sr")
        A, B, C, _, E = reduced.to_matrices()
        if E is not None:
            A, B = np.linalg.solve(E, A), np.linalg.solve(E, B)
        results.append((model.hsv(), (A, B, C)))
    return results


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def interleaved(
    tasks: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each task, and what the last repeat returned."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    results = {name: task() for name, task in tasks.items()}  # warm-up
    for _ in range(repeats):
        for name, task in tasks.items():
            elapsed, results[name] = timed(task)
            seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def peak(function: Callable[[], Any]) -> int:
    tracemalloc.start()
    function()
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest


def error_over_bound(original: StateSpace, matrices: Any, hsv: np.ndarray) -> float:
    """Largest error on a grid, relative to 2 Σ σ_i over what was cut."""
    discrete = isinstance(original.time, Discrete)
    omega = np.linspace(0.0, np.pi if discrete else 32.0 * np.pi, 400)
    reduced = StateSpace(*matrices, time=original.time)
    if reduced.order != 2 * KEPT:
        return float("nan")
    error = frequency_response(original, omega) - frequency_response(reduced, omega)
    return float(np.abs(error).max() / (2.0 * hsv[2 * KEPT :].sum()))


def compare_channels(count: int, peers: int, repeats: int, *, discrete: bool) -> dict[str, Any]:
    batch = channels(count, discrete=discrete)
    singles = [batch[k].to_dense() for k in range(min(peers, count))]

    def loop(function: Callable[[list[StateSpace]], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with threadpool_limits(1, user_api="blas"):
                return function(singles)

        return run

    tasks: dict[str, Callable[[], Any]] = {
        "ours, values": lambda: hankel_singular_values(batch),
        "ours": lambda: balanced_truncation(batch, KEPT),
        "ours, one by one": lambda: [
            balanced_truncation(batch[k], KEPT) for k in range(len(singles))
        ],
        "Slycot": loop(slycot_loop),
        "pyMOR": loop(pymor_loop),
    }
    if not discrete:
        tasks["python-control"] = loop(control_loop)
        tasks["python-control, values"] = loop(control_values)
    seconds, results = interleaved(tasks, repeats)
    values, reduction = results["ours, values"], results["ours"]
    checked = range(min(CHECKED, len(singles)))
    row: dict[str, Any] = {"count": count, "discrete": discrete}
    for name, elapsed in seconds.items():
        systems = count if name in ("ours", "ours, values") else len(singles)
        row[name] = {"ms": 1e3 * elapsed / systems}
    for name, result in results.items():
        if name.startswith("ours"):
            continue
        found = [hsv for hsv, _ in result if hsv is not None]
        if found:
            row[name]["values"] = max(
                float(np.abs(found[k] - values[k][: len(found[k])]).max() / values[k][0])
                for k in checked
            )
        if result[0][1] is not None:
            row[name]["error"] = max(
                error_over_bound(singles[k], result[k][1], values[k]) for k in checked
            )
    alone = results["ours, one by one"]
    row["ours"]["values"] = max(
        float(np.abs(reduction.hsv[k] - alone[k].hsv).max() / alone[k].hsv[0]) for k in checked
    )
    row["ours"]["error"] = float(
        max(part.verify() / part.error_bound for part in reduction.parts[: len(checked)])
    )
    row["ours, values"]["peak_bytes"] = peak(lambda: hankel_singular_values(batch))
    row["ours"]["peak_bytes"] = peak(lambda: balanced_truncation(batch, KEPT))
    return row


def compare_layers(count: int, states: int, repeats: int) -> dict[str, Any]:
    batch = layers(count, states)
    seconds, results = interleaved(
        {
            "batch": lambda: balanced_truncation(batch, states // 4),
            "one by one": lambda: [
                balanced_truncation(batch[k], states // 4) for k in range(count)
            ],
        },
        repeats,
    )
    deviation = max(
        float(np.abs(results["batch"].hsv[k] - single.hsv).max() / single.hsv[0])
        for k, single in enumerate(results["one by one"])
    )
    return {"layers": count, "states": states, **seconds, "deviation": deviation}


def show(row: dict[str, Any]) -> None:
    kind = "sampled" if row["discrete"] else "continuous"
    print(f"{row['count']} {kind} channels of {2 * STORED} real states -> {2 * KEPT}")
    for name, figures in row.items():
        if not isinstance(figures, dict):
            continue
        base = row["ours, values" if name.endswith(", values") else "ours"]["ms"]
        line = f"  {name:24s} {figures['ms']:8.3f} ms  ratio {figures['ms'] / base:6.2f}"
        if "values" in figures:
            line += f"  values off by {figures['values']:.1e} σ₁"
        if "error" in figures:
            line += f"  error/bound {figures['error']:.2f}"
        if "peak_bytes" in figures:
            each = figures["peak_bytes"] / row["count"] / 1e3
            line += f"  memory {figures['peak_bytes'] / 1e6:.0f} MB, {each:.0f} kB a system"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few systems, two repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--peers", type=int, default=128)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    count, peers, repeats = arguments.count, arguments.peers, arguments.repeats
    layer_count, states = 48, 256
    if arguments.quick:
        count, peers, repeats, layer_count, states = 64, 8, 2, 4, 64
    set_log_levels({"pymor": "ERROR"})
    threads = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
    print(f"{threads} thread(s)")
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Peers warn of what they are about to do; see dense.py.
        for discrete in (True, False):
            rows.append(compare_channels(count, peers, repeats, discrete=discrete))
            show(rows[-1])
    found = compare_layers(layer_count, states, repeats)
    print(
        f"{found['layers']} layers of {states} states, H = 8 -> {states // 4}: batch "
        f"{found['batch']:.2f} s, one by one {found['one by one']:.2f} s, ratio "
        f"{found['one by one'] / found['batch']:.2f}, values off by {found['deviation']:.1e} σ₁"
    )
    if arguments.output:
        figures = {"threads": threads, "channels": rows, "layers": found}
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
