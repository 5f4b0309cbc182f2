"""Balanced truncation of dense systems beside Slycot AB09AD, pyMOR and python-control `balred`.

    python benchmarks/dense.py [--quick] [--repeats 5] [--largest 2000] [--growth] [--data FOLDER]

From the same arrays to the reduced system, same order, same run: the repeats of all packages are
interleaved, and medians are printed with the ratio to ours. Beside the time stands accuracy: the largest
deviation of the Hankel singular values from ours, relative to the first, and the error of the reduced
system on a few frequencies over the bound 2 Σ σ_i, which must not exceed 1 (NaN: the package returned
another order). Memory is the peak of NumPy's allocations (tracemalloc) in one call of ours, in units of n²
numbers.

Systems, continuous time unless said, three inputs and outputs, order 20 (n/4 below 80 states):
random     a Gaussian matrix / sqrt(n), shifted to spectral abscissa -0.1
structure  n/2 lightly damped modes [0 I; -Ω² -2ζΩ], ζ = 0.005, three decades of frequency, like `iss`
mixed      the same in a random orthogonal basis, so that the structure cannot be seen
discrete   a Gaussian matrix of spectral radius 0.95, in discrete time, which `balred` takes for continuous
and the SLICOT benchmark systems if --data names their folder. No solver of ours is Slycot's. Before each
package there is a pause, in which the threads of the one before fall asleep; short calls are then
repeated for a twentieth of a second.
`--growth` times ours alone from 50 to 4000 states. Threads: both BLAS pools with all cores, or what
OPENBLAS_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control
import numpy as np
import slycot
from pymor.core.logger import set_log_levels
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import BTReductor

from ssmreduce import Continuous, Discrete, StateSpace, balanced_truncation
from ssmreduce.responses import frequency_response

SIZES = (10, 20, 50, 120, 270, 500, 1000, 2000)
GROWTH = (50, 100, 200, 500, 1000, 2000, 4000)
REST = 0.1
"""Seconds before each call: the idle threads of the BLAS used before spin for a while, and every package
brings a BLAS of its own."""

BURST = 0.05
"""Seconds for which a call is repeated after that rest, so that short ones meet warm caches."""

PATIENCE = 30.0
"""Seconds: a package that took longer at one size is left out at the larger ones."""

Reduced = tuple[StateSpace | None, np.ndarray | None]
"""A reduced system (None: of another order) and the Hankel singular values, where they are returned."""


def random_system(n: int) -> StateSpace:
    rng = np.random.default_rng(n)
    A = rng.standard_normal((n, n)) / np.sqrt(n)
    A -= (np.linalg.eigvals(A).real.max() + 0.1) * np.eye(n)
    return StateSpace(
        A, rng.standard_normal((n, 3)), rng.standard_normal((3, n)), time=Continuous()
    )


def structure(n: int) -> StateSpace:
    rng = np.random.default_rng(n)
    modes = n // 2
    omega = np.geomspace(0.1, 100.0, modes)
    A = np.zeros((2 * modes, 2 * modes))
    A[:modes, modes:] = np.eye(modes)
    A[modes:, :modes] = -np.diag(omega**2)
    A[modes:, modes:] = -np.diag(2 * 0.005 * omega)
    B, C = np.zeros((2 * modes, 3)), np.zeros((3, 2 * modes))
    B[modes:] = rng.standard_normal((modes, 3))
    C[:, modes:] = rng.standard_normal((3, modes))
    return StateSpace(A, B, C, time=Continuous())


def mixed(n: int) -> StateSpace:
    plain = structure(n)
    basis, _ = np.linalg.qr(np.random.default_rng(n + 1).standard_normal((plain.order,) * 2))
    return StateSpace(
        basis @ plain.A @ basis.T, basis @ plain.B, plain.C @ basis.T, time=Continuous()
    )


def discrete(n: int) -> StateSpace:
    rng = np.random.default_rng(n)
    A = rng.standard_normal((n, n))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max()
    return StateSpace(A, rng.standard_normal((n, 3)), rng.standard_normal((3, n)), time=Discrete())


KINDS = {"random": random_system, "structure": structure, "mixed": mixed, "discrete": discrete}


def ours(system: StateSpace, order: int) -> Reduced:
    given = StateSpace(system.A, system.B, system.C, time=system.time)
    reduction = balanced_truncation(given, order)
    return reduction.system, reduction.hsv


def slicot(system: StateSpace, order: int) -> Reduced:
    arrays = (np.array(x, order="F") for x in (system.A, system.B, system.C))
    found, A, B, C, hsv = slycot.ab09ad(
        "C" if system.time == Continuous() else "D",
        "B",
        "N",
        system.order,
        system.inputs,
        system.outputs,
        *arrays,
        nr=order,
    )
    return checked(A[:found, :found], B[:found], C[:, :found], system, order), hsv


def pymor(system: StateSpace, order: int) -> Reduced:
    step = 0 if system.time == Continuous() else 1
    arrays = (system.A, system.B, system.C)
    reductor = BTReductor(LTIModel.from_matrices(*arrays, sampling_time=step))
    A, B, C, _, E = reductor.reduce(order).to_matrices()
    if E is not None:  # its balancing-free default leaves one
        A, B = np.linalg.solve(E, A), np.linalg.solve(E, B)
    return checked(A, B, C, system, order), None


def python_control(system: StateSpace, order: int) -> Reduced:
    full = control.ss(system.A, system.B, system.C, np.zeros((system.outputs, system.inputs)))
    reduced = control.balred(full, order, method="truncate")
    return checked(reduced.A, reduced.B, reduced.C, system, order), None


PACKAGES: dict[str, Callable[[StateSpace, int], Reduced]] = {
    "ours": ours,
    "Slycot": slicot,
    "pyMOR": pymor,
    "balred": python_control,
}


def checked(A: Any, B: Any, C: Any, full: StateSpace, order: int) -> StateSpace | None:
    return StateSpace(A, B, C, time=full.time) if len(A) == order else None


def error_over_bound(system: StateSpace, reduced: StateSpace | None, bound: float) -> float:
    if reduced is None:
        return float("nan")
    if system.time == Continuous():
        poles = np.abs(reduced.poles().imag)
        omega = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 12), poles[poles > 0][:8]])
    else:
        omega = np.linspace(0.0, np.pi, 21)
    gap = frequency_response(system, omega) - frequency_response(reduced, omega)
    return float(np.linalg.norm(gap, ord=2, axis=(-2, -1)).max() / bound)


def measure(system: StateSpace, order: int, repeats: int, names: list[str]) -> dict[str, Any]:
    results: dict[str, Reduced] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            if repeat and times[name][0] > PATIENCE / 3:
                continue
            time.sleep(REST)
            begun = started = time.perf_counter()
            while started < begun + BURST:
                results[name] = PACKAGES[name](system, order)
                finished = time.perf_counter()
                times[name].append(finished - started)
                started = finished
    tracemalloc.start()
    reduction = balanced_truncation(system, order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    hsv = reduction.hsv
    bound = 2.0 * float(hsv[order:].sum())
    row: dict[str, Any] = {"peak": peak / 8 / system.order**2}
    for name in names:
        reduced, values = results[name]
        row[name] = {
            "seconds": statistics.median(times[name]),
            "hsv": None if values is None else float(np.abs(values - hsv).max() / hsv[0]),
            "error": error_over_bound(system, reduced, bound),
        }
    return row


def cases(largest: int, data: Path | None) -> Iterator[tuple[str, StateSpace]]:
    for kind, make in KINDS.items():
        for n in SIZES:
            if n <= largest:
                yield kind, make(n)
    for name in ("build", "CDplayer", "heat-cont", "iss") if data else ():
        assert data is not None
        with np.load(data / f"{name}.npz", allow_pickle=False) as archive:
            arrays = [archive[key] for key in "ABC"]
        yield name, StateSpace(*arrays, time=Continuous())


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows, dropped = [], dict.fromkeys(PACKAGES, float("inf"))
    for kind, system in cases(arguments.largest, arguments.data):
        n = system.order
        order = 10 if kind == "heat-cont" else min(20, n // 4)  # of numerical rank 17
        names = [name for name in PACKAGES if n < dropped[name]]
        if system.time != Continuous():
            names.remove("balred")
        # Before the first measurement of a size: threads started, code loaded.
        for name in names if n <= 270 else ():
            PACKAGES[name](system, order)
        row = {"system": kind, "states": n, "order": order}
        row |= measure(system, order, 2 if arguments.quick else arguments.repeats, names)
        rows.append(row)
        cells = []
        for name in names:
            seconds = row[name]["seconds"]
            if seconds > PATIENCE:
                dropped[name] = n + 1
            ratio = "" if name == "ours" else f" ({seconds / row['ours']['seconds']:.2f}x)"
            hsv = "" if row[name]["hsv"] in (None, 0.0) else f" hsv {row[name]['hsv']:.0e}"
            cells.append(f"{name} {seconds:.4f} s{ratio}{hsv} err {row[name]['error']:.2f}")
        print(
            f"{kind:9s} n={n:5d} -> {order:3d}  {row['peak']:4.1f} n²  " + "  ".join(cells),
            flush=True,
        )
    return rows


def growth(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for kind, make in KINDS.items():
        for n in GROWTH:
            system = make(n)
            order = min(20, n // 4)
            seconds = []
            for _ in range(repeats if n <= 1000 else 1):
                started = time.perf_counter()
                balanced_truncation(system, order)
                seconds.append(time.perf_counter() - started)
            rows.append({"system": kind, "states": n, "seconds": statistics.median(seconds)})
            print(f"{kind:9s} n={n:5d} -> {order:3d}  ours {rows[-1]['seconds']:.4f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 120 states, two repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, default=2000, help="number of states, 2000")
    parser.add_argument("--growth", action="store_true", help="ours alone, 50 to 4000 states")
    parser.add_argument("--data", type=Path, help="folder with the SLICOT benchmark systems")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.largest = 120
    set_log_levels({"pymor": "ERROR"})
    warnings.simplefilter("ignore")  # of the other packages: their results are measured
    print(f"threads: {os.environ.get('OPENBLAS_NUM_THREADS', os.cpu_count())} in each BLAS pool")
    rows = growth(arguments.repeats) if arguments.growth else compare(arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
