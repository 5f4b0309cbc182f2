"""Hankel singular values of the heat benchmark in modal form against 300-digit arithmetic.

    python benchmarks/heat_accuracy.py

The reference values, and how far half a unit in the last place of the data moves each of them, come from
`tests/oracles/make_heat_reference.py`. Printed for some values: the relative error with
`relative_accuracy`, that without it, and what the data allow; and over all: the largest error above
1e-13, and down to 1e-24 the largest error relative to what the data allow, in decades.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssmreduce import Continuous, DiagonalStateSpace, hankel_singular_values

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "data"
SHOWN = (1, 10, 15, 20, 23, 31, 41)


def main() -> None:
    for name in ("heat_modal", "heat_modal_nearest"):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
            poles, b, c, exact, allowed = (
                archive[key] for key in ("poles", "b", "c", "hsv", "sensitivity")
            )
        single = DiagonalStateSpace(poles, b[:, None], c[None], time=Continuous())
        count = exact.size
        error = np.abs(hankel_singular_values(single, relative_accuracy=True)[:count] / exact - 1)
        other = np.abs(hankel_singular_values(single)[:count] / exact - 1)
        print(f"{name}: {poles.size} modes, minimal order {count}")
        for k in SHOWN:
            print(
                f"  value {k:2d}  {exact[k - 1]:9.2e}  error {error[k - 1]:.1e}  "
                f"ordinary route {other[k - 1]:.1e}  data {allowed[k - 1]:.1e}"
            )
        above = exact > 1e-13
        below = (exact <= 1e-13) & (exact >= 1e-24)
        decades = np.log10(error[below] / allowed[below]).max()
        print(f"  above 1e-13: {above.sum()} values, largest error {error[above].max():.1e}")
        print(f"  to 1e-24: {below.sum()} values, {decades:+.2f} decades from the data at worst")


if __name__ == "__main__":
    main()
