"""Weights of layers as they were recorded, to notice a calibration of another model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ssmreduce._array_libraries import HostArray, to_double
from ssmreduce._array_routes import warn_caller
from ssmreduce.errors import CalibrationWarning

_LIMIT = 1.2
"""Largest distance of two arrays, relative to the larger one, that gives no warning.

It is 1.41 for large arrays that are unrelated and alike in size. Long training may exceed the limit, too, as
with weight decay.
"""

_FEWEST = 16
"""Arrays with fewer numbers are not compared; a complex one counts as two."""


def in_single_precision(weights: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Copies in single precision, complex ones by real and imaginary parts, as any file can hold them.

    Arrays that single precision cannot hold are left out.
    """
    found = {}
    for name, value in weights.items():
        parts = [value.real, value.imag] if np.iscomplexobj(value) else [value]
        with np.errstate(over="ignore"):
            copy = np.stack(parts).astype(np.float32)
        if np.all(np.isfinite(copy)):
            found[name] = copy
    return found


def warn_of_unrelated(
    argument: str, layer: str, then: Mapping[str, HostArray], now: Mapping[str, HostArray]
) -> None:
    """Issue a `CalibrationWarning` for the first array that is unrelated to that of the same name.

    Both as `in_single_precision` returns them. Arrays of another shape, which were cut since, are not
    compared.
    """
    for name, recorded in then.items():
        if name not in now or now[name].shape != recorded.shape or recorded.size < _FEWEST:
            continue
        distance = _distance(to_double(recorded), to_double(now[name]))
        if distance > _LIMIT:
            warn_caller(
                f"`{argument}` may be a calibration of another model: its weight `{name}` of layer `{layer}` "
                f"differs by {distance} times the larger of the two; expected at most {_LIMIT}. If it is "
                "another model's, calibrate this one.",
                CalibrationWarning,
            )
            return


def _distance(before: HostArray, after: HostArray) -> float:
    """The norm of the difference over the larger norm, to three decimals."""
    size = max(np.linalg.norm(before), np.linalg.norm(after))
    return round(float(np.linalg.norm(after - before) / size), 3) if size else 0.0
