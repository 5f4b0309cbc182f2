"""Weights of layers as they were recorded, to tell a model that was trained on from another one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ssmreduce._array_libraries import HostArray

_UNLIKE = 1.2
"""Distance of two arrays relative to the larger one: 1.41 where they are unrelated and alike in size.

Of S5 layers that were trained for a thousand steps, with a rate of 0.01, it was 1.0 at most: weights grow.
"""

_FEWEST = 16
"""Arrays with fewer entries say nothing."""


def single(weights: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Copies in single precision, complex ones by real and imaginary parts, as any file can hold them."""
    found = {}
    for name, value in weights.items():
        parts = [value.real, value.imag] if np.iscomplexobj(value) else [value]
        with np.errstate(over="ignore"):
            found[name] = np.stack(parts).astype(np.float32)
    return found


def unlike(then: Mapping[str, HostArray], now: Mapping[str, HostArray]) -> tuple[str, float] | None:
    """The first array that is unrelated to that of the same name, and how far away; None for none.

    Both as `single` returns them. Arrays of another shape, which was cut since, are not compared.
    """
    shared = [name for name in then if name in now and then[name].shape == now[name].shape]
    for name in shared:
        before, after = then[name].astype(np.float64), now[name].astype(np.float64)
        if before.size < _FEWEST:
            continue
        distance = float(np.linalg.norm(after - before))
        size = float(max(np.linalg.norm(before), np.linalg.norm(after)))
        if distance > _UNLIKE * size:
            return name, distance / size
    return None
