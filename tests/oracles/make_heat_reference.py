"""Make tests/data/heat_modal*.npz: Hankel singular values of the heat benchmark in modal form.

SLICOT's `heat-cont` has A = tridiag(404.01, -808.02, 404.01) of order 200, one input at entry 67 and one
output at entry 133. With v_k(i) = sqrt(2/201) sin(ikπ/201) its modal form has the poles
a + 2 b cos(kπ/201) and the weights v_k(67), v_k(133). These are computed in double (`heat_modal`) or
rounded to the nearest double (`heat_modal_nearest`), and from then on exact; every third mode is
uncontrollable, and its weight exactly zero. The values are computed with 300 digits; `sensitivity` is
the largest relative change of each over eight random changes of all data by half a unit in the last
place. Takes ten minutes, in tests: python -m oracles.make_heat_reference
"""

from __future__ import annotations

import sys
from multiprocessing import Pool
from pathlib import Path

import mpmath as mp
import numpy as np

from oracles.mpmath_cauchy import hankel_singular_values

TARGET = Path(__file__).resolve().parents[1] / "data"
ORDER, DIAGONAL, NEIGHBOUR = 200, "-808.02", "404.01"
INPUT, OUTPUT = 67, 133
DRAWS, DIGITS = 8, 300


def modal_form(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poles and weights of one of the two files."""
    k = np.arange(1, ORDER + 1)
    if name == "heat_modal":
        angles, scale = k * np.pi / (ORDER + 1), np.sqrt(2 / (ORDER + 1))
        poles = float(DIAGONAL) + 2 * float(NEIGHBOUR) * np.cos(angles)
        b, c = (scale * np.sin(entry * angles) for entry in (INPUT, OUTPUT))
    else:
        poles, b, c = _nearest_modal_form()
    return poles, np.where(k % 3 == 0, 0.0, b), c


def _nearest_modal_form() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with mp.workdps(40):
        step = mp.pi / (ORDER + 1)
        diagonal, neighbour = mp.mpf(DIAGONAL), mp.mpf(NEIGHBOUR)
        modes = range(1, ORDER + 1)

        def weights(entry: int) -> np.ndarray:
            scale = mp.sqrt(mp.mpf(2) / (ORDER + 1))
            return np.array([float(scale * mp.sin(entry * k * step)) for k in modes])

        poles = np.array([float(diagonal + 2 * neighbour * mp.cos(k * step)) for k in modes])
        return poles, weights(INPUT), weights(OUTPUT)


def values(name: str, seed: int) -> np.ndarray:
    """Exact values for seed 0, else those of data moved by half a unit in the last place."""
    rng = np.random.default_rng(seed)
    data = []
    for x in modal_form(name):
        half = 0.5 * np.spacing(np.abs(x)) * rng.choice([-1.0, 1.0], x.size)
        with mp.workdps(DIGITS):
            data.append(
                [
                    mp.mpf(float(y)) + (mp.mpf(float(h)) if seed and y else 0)
                    for y, h in zip(x, half, strict=True)
                ]
            )
    return hankel_singular_values(*data, discrete=False, digits=DIGITS)


if __name__ == "__main__":
    for name in sys.argv[1:] or ("heat_modal", "heat_modal_nearest"):
        with Pool(2) as pool:
            exact, *moved = pool.starmap(values, [(name, s) for s in range(DRAWS + 1)], chunksize=1)
        poles, b, c = modal_form(name)
        sensitivity = np.max([np.abs(x / exact - 1.0) for x in moved], axis=0)
        np.savez(TARGET / name, poles=poles, b=b, c=c, hsv=exact, sensitivity=sensitivity)
