"""`Change`: what is to become of one layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ssmreduce._namespace import Array, HostArray
from ssmreduce.layers.layer_map import LayerMap

Path = tuple[Any, ...]
"""Key path of a layer in a model."""


class Change(NamedTuple):
    """New arrays for one layer.

    Attributes
    ----------
    layer : object
        The layer.
    layer_map : LayerMap
        Which of its attributes depend on the number of states.
    values : dict of arrays
        New arrays by name.
    ratio : float
        New order over the old one.
    reduce_state : callable or None
        Takes a hidden state that the layer keeps to the new states; None to begin with zeros.
    """

    layer: Any
    layer_map: LayerMap
    values: Mapping[str, HostArray]
    ratio: float
    reduce_state: Callable[[Array], Array] | None = None
