"""Functions through which a layer keeps a parameter positive, and their inverses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import UnstableSystemError, UnsupportedLayerError

_SMALLEST = 1e-4
"""Least value of a relu transform, and of a value that has to be positive: as state-spaces/s4 initialises."""

_Map = Callable[[HostArray], HostArray]

_TRANSFORMS: dict[str, tuple[_Map, _Map]] = {
    "none": (lambda x: x, lambda y: y),
    "exp": (np.exp, np.log),
    "relu": (lambda x: np.maximum(x, 0.0) + _SMALLEST, lambda y: np.maximum(y - _SMALLEST, 0.0)),
    "sigmoid": (lambda x: 1.0 / (1.0 + np.exp(-x)), lambda y: np.log(y) - np.log1p(-y)),
    "softplus": (lambda x: np.logaddexp(0.0, x), lambda y: y + np.log(-np.expm1(-y))),
}
"""Each transform and its inverse."""


def transformed(parameter: HostArray, name: str) -> HostArray:
    """Return the value of a parameter under a transform.

    Raises
    ------
    UnsupportedLayerError
        If the transform is not known.
    """
    if name not in _TRANSFORMS:
        raise UnsupportedLayerError(
            f"the layer has a transform {name!r}; expected one of {', '.join(_TRANSFORMS)}. "
            "Register a map of your own for it."
        )
    return np.asarray(_TRANSFORMS[name][0](parameter))


def inverse_transformed(value: HostArray, name: str, *, positive: bool = False) -> HostArray:
    """Return the parameter that a transform takes to `value`; with `positive` at least to 1e-4.

    Raises
    ------
    UnstableSystemError
        If no parameter does.
    """
    if positive and name != "none":
        value = np.maximum(value, _SMALLEST)
    if name == "sigmoid" and np.any(value >= 1.0):
        raise UnstableSystemError(
            f"`system` has a pole that needs the value {value.max():.4g} of a sigmoid, which stays below "
            "1; expected poles nearer to the origin. Reduce to another order."
        )
    return np.asarray(_TRANSFORMS[name][1](value))
