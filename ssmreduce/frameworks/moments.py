"""`Moment`: what an optimizer keeps for a weight, in one of its fields.

`reason_against` says of fields that are no moments why they cannot follow a cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray


@dataclass(frozen=True, eq=False)
class Moment:
    """An array of an optimizer state that belongs to one weight of a layer.

    Attributes
    ----------
    field : str or None
        Name of the field, for example ``"exp_avg"``.
    where : str
        The field as a message says it.
    layer_path : tuple
        Key path of the layer in the model.
    name : str
        Name of the weight.
    key : object
        By which the framework finds the array again.
    value : array
        The array at double precision.
    moduli : bool
        Whether the field holds |g|² of a complex weight, and `value` half of it as the square of each part.
    """

    field: str | None
    where: str
    layer_path: tuple[Any, ...]
    name: str
    key: Any
    value: HostArray
    moduli: bool = False


_MODULI = frozenset({"nu", "nu_max", "sum_of_squares"})
"""Fields in which optax keeps |g|² of complex weights."""


def read_moment(field: str | None, value: HostArray, *, is_complex: bool) -> tuple[HostArray, bool]:
    """Return what a field holds for a weight, and whether that is |g|² of a complex one: see `Moment`."""
    moduli = is_complex and field in _MODULI and not np.any(np.imag(value))
    return (0.5 + 0.5j) * np.real(value) if moduli else value, moduli


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
