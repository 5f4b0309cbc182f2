"""The H-infinity norm beside Slycot's `ab13dd`, with and without a certificate.

    python benchmarks/hinf.py [--quick] [--repeats 7]

Same arrays, same run, calls interleaved; the smallest processor time of each is printed, in
milliseconds, with the ratio to Slycot's. Both routes of ours find the same peak; the certificate is
asked for to a relative 1e-6, which is also what `ab13dd` is told. The last column is
the largest relative distance between the norms.

Systems, order n, as many inputs as outputs (1, 2 or 5):
random     a Gaussian matrix / sqrt(n), shifted to spectral abscissa -0.1
damped     n/2 lightly damped modes [0 I; -Ω² -2ζΩ], ζ = 0.005, three decades of frequency, like `iss`
mixed      the same in a random orthogonal basis, so that the structure cannot be seen
discrete   a Gaussian matrix of spectral radius 0.95
resonant   modes of modulus 0.999 at random angles in a random orthogonal basis, in discrete time
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import slycot

from ssmreduce import Continuous, Discrete, StateSpace
from ssmreduce.norms import hinf_norm

SIZES = (10, 30, 50, 70, 100, 150, 200)
WIDTHS = (1, 2, 5)
TOLERANCE = 1e-6


def arrays(n: int, width: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + width)
    return rng, rng.standard_normal((n, width)), rng.standard_normal((width, n))


def random_system(n: int, width: int) -> StateSpace:
    rng, B, C = arrays(n, width)
    A = rng.standard_normal((n, n)) / np.sqrt(n)
    A -= (np.linalg.eigvals(A).real.max() + 0.1) * np.eye(n)
    return StateSpace(A, B, C, rng.standard_normal((width, width)), time=Continuous())


def damped(n: int, width: int) -> StateSpace:
    _, B, C = arrays(n, width)
    modes = n // 2
    omega = np.geomspace(0.1, 100.0, modes)
    A = np.zeros((n, n))
    A[:modes, modes:] = np.eye(modes)
    A[modes:, :modes] = -np.diag(omega**2)
    A[modes:, modes:] = -np.diag(2 * 0.005 * omega)
    B[:modes] = 0.0
    C[:, :modes] = 0.0
    return StateSpace(A, B, C, time=Continuous())


def mixed(n: int, width: int) -> StateSpace:
    return in_mixed_basis(damped(n, width))


def discrete(n: int, width: int) -> StateSpace:
    rng, B, C = arrays(n, width)
    A = rng.standard_normal((n, n))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max()
    return StateSpace(A, B, C, rng.standard_normal((width, width)), time=Discrete())


def resonant(n: int, width: int) -> StateSpace:
    rng, B, C = arrays(n, width)
    A = np.zeros((n, n))
    for k, angle in enumerate(rng.uniform(0.0, np.pi, n // 2)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = 0.999 * turn
    return in_mixed_basis(StateSpace(A, B, C, time=Discrete()))


def in_mixed_basis(plain: StateSpace) -> StateSpace:
    basis, _ = np.linalg.qr(np.random.default_rng(plain.order).standard_normal(plain.A.shape))
    return StateSpace(
        basis @ plain.A @ basis.T, basis @ plain.B, plain.C @ basis.T, plain.D, time=plain.time
    )


KINDS = {
    "random": random_system,
    "damped": damped,
    "mixed": mixed,
    "discrete": discrete,
    "resonant": resonant,
}


def slicot(system: StateSpace) -> float:
    dico = "D" if isinstance(system.time, Discrete) else "C"
    n, m, p = system.order, system.inputs, system.outputs
    A, B, C, D = (np.array(x, order="F") for x in (system.A, system.B, system.C, system.D))
    norm, _ = slycot.ab13dd(dico, "I", "S", "D", n, m, p, A, np.eye(n), B, C, D, TOLERANCE)
    return float(norm)


def rebuilt(system: StateSpace) -> StateSpace:
    """A system that remembers nothing of earlier calls."""
    return StateSpace(system.A, system.B, system.C, system.D, time=system.time)


CALLS: dict[str, Callable[[StateSpace], float]] = {
    "Slycot": slicot,
    "ours": lambda system: float(hinf_norm(rebuilt(system)).lower),
    "certified": lambda system: float(
        hinf_norm(rebuilt(system), certified=True, tolerance=TOLERANCE).lower
    ),
}


def measure(system: StateSpace, repeats: int) -> tuple[dict[str, float], float]:
    """Smallest time of every call, in milliseconds, and the distance between their norms."""
    norms = {name: call(system) for name, call in CALLS.items()}
    times = dict.fromkeys(CALLS, float("inf"))
    for _ in range(repeats):
        for name, call in CALLS.items():
            start = time.process_time()
            call(system)
            times[name] = min(times[name], 1e3 * (time.process_time() - start))
    values = list(norms.values())
    return times, (max(values) - min(values)) / max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, few repeats")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    sizes = SIZES[:2] if arguments.quick else SIZES
    repeats = 2 if arguments.quick else arguments.repeats
    print(f"CPUs: {os.cpu_count()}, threads: {os.environ.get('OPENBLAS_NUM_THREADS', 'all')}")
    print(
        f"{'kind':10}{'n':>5}{'m = p':>7}{'Slycot':>9}{'ours':>9}{'ratio':>7}"
        f"{'certified':>11}{'ratio':>7}{'difference':>12}"
    )
    for kind, build in KINDS.items():
        for width in WIDTHS:
            for n in sizes:
                times, apart = measure(build(n, width), repeats)
                base, plain, proven = times["Slycot"], times["ours"], times["certified"]
                over = "" if plain <= 2 * base + 3 and proven <= 3 * base + 3 else "  over"
                print(
                    f"{kind:10}{n:5}{width:7}{base:9.2f}{plain:9.2f}{plain / base:7.1f}"
                    f"{proven:11.2f}{proven / base:7.1f}{apart:12.0e}{over}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
