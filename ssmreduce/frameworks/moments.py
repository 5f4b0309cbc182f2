"""`Moments`: what an optimizer keeps for the weights of one layer, in one of its fields.

`reason_against` says of fields that are no moments why they cannot follow a cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssmreduce._namespace import HostArray


@dataclass(frozen=True, eq=False)
class Moments:
    """Arrays of one field of an optimizer state that belong to one layer.

    Attributes
    ----------
    field : str or None
        Name of the field, for example ``"exp_avg"``.
    where : str
        The field as a message says it.
    layer_path : tuple
        Key path of the layer in the model.
    arrays : dict
        By name of the weight: a key by which the adapter finds the array again, and the array at
        double precision.
    """

    field: str | None
    where: str
    layer_path: tuple[Any, ...]
    arrays: dict[str, tuple[Any, HostArray]]


_MODULI = frozenset({"nu", "nu_max", "sum_of_squares"})
"""Fields in which optax keeps |g|² of complex weights."""


def holds_moduli(field: str | None, value: HostArray) -> bool:
    """Tell whether what a field holds for a complex weight is |g|², and no square of each part."""
    return field in _MODULI and not np.any(np.imag(value))


def in_halves(value: HostArray) -> HostArray:
    """Return |g|² as half of it for each part: a sum of squares, and i times that of imaginary parts."""
    return (0.5 + 0.5j) * np.real(value)


def of_halves(value: HostArray) -> HostArray:
    """Return the |g|² of squares of both parts."""
    return np.asarray(value.real + value.imag)


_REASONS = {
    "sums over rows and columns of squared gradients, which do not say what those of other states are": (
        "v_row",
        "v_col",
    ),
    "what follows the signs of single entries, which a cut mixes": (
        "step_size",
        "step_sizes",
        "prev",
        "prev_updates",
    ),
    "a memory of steps of all weights together": (
        "weights_memory",
        "diff_params_memory",
        "diff_updates_memory",
    ),
    "weights as they were, which a cut does not rewrite": (
        "z",
        "x0",
        "cache",
        "params0",
        "init_params",
        "init_particles",
    ),
}


def reason_against(field: str | None) -> str:
    """Say what a field that cannot follow a cut holds, as part of a message."""
    return next(
        (reason for reason, fields in _REASONS.items() if field in fields),
        "not known to average gradients or their squares",
    )
