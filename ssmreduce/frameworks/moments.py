"""`Moments`: what an optimizer keeps for the weights of one layer, in one of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
