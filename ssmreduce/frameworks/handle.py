"""`LayerHandle`: one layer of a model; `LayerChange`: what is to become of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssmreduce._array_libraries import (
    Array,
    HostArray,
    array_eps,
    described,
)
from ssmreduce.errors import TracedValueError
from ssmreduce.layers.layer import Layer, NamedWeights

if TYPE_CHECKING:
    from ssmreduce.frameworks.framework import Framework
    from ssmreduce.layers.cut import LayerCut


Path = tuple[Any, ...]
"""Key path of a layer in a model."""


@dataclass(frozen=True, eq=False)
class LayerHandle:
    """One layer of a model: where it is, what it holds, and what that means.

    Attributes
    ----------
    framework : Framework
        Where its arrays live.
    path : tuple
        Key path in the model.
    layer : object
        The object that holds the arrays.
    kind : Layer
        What they mean.
    name : str
        Name in the model.
    full_weights : dict of arrays, optional
        Its weights, where the object holds a part of them.

    Examples
    --------
    >>> import torch
    >>> from LRU_pytorch import LRU
    >>> from ssmreduce.frameworks.current import framework_of
    >>> from ssmreduce.frameworks.handle import LayerHandle
    >>> from ssmreduce.layers.lru import LRU as LRUWeights
    >>> from ssmreduce.layers.storage import Whole
    >>> layer = LRU(3, 3, 16)
    >>> kind = LRUWeights(Whole("B"), Whole("C"))
    >>> handle = LayerHandle(framework_of(layer), (), layer, kind)
    >>> handle.name, handle.item_sizes["B"], handle.weights["B"].dtype
    ('model', 8, dtype('complex128'))
    """

    framework: Framework
    path: Path
    layer: Any
    kind: Layer
    name: str = "model"
    full_weights: dict[str, HostArray] | None = None

    @cached_property
    def weights(self) -> dict[str, HostArray]:
        """Arrays by name, at double precision on the host.

        Raises
        ------
        TracedValueError
            If one of them is traced.
        """
        if self.full_weights is not None:
            return self.full_weights
        weights = NamedWeights(self.framework.on_host(self.arrays))
        for name, value in weights.items():
            if not isinstance(value, np.ndarray):
                raise TracedValueError(
                    f"`{name}` of layer `{self.name}` is {described(value)}; expected numbers that can be "
                    "looked at. Call it outside of jit and vmap."
                )
        return weights

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The same as the object holds them, a part of them or traced maybe."""
        names, layer = self.kind.shapes, self.layer
        if isinstance(layer, Mapping):
            return {name: layer[name] for name in names}
        return {name: attrgetter(name)(layer) for name in names}

    @property
    def order(self) -> int:
        """Number of states, from the shapes of the weights alone."""
        return self.kind.order(ones_like(self.arrays))

    @cached_property
    def eps(self) -> float:
        """Relative rounding of its weights."""
        return max(array_eps(*self.arrays.values()), self.kind.eps)

    @property
    def item_sizes(self) -> dict[str, int]:
        """Bytes of one entry of each weight."""
        return {name: int(array.dtype.itemsize) for name, array in self.arrays.items()}

    def rounded(self, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """Return `values` as the layer would hold them, at double precision."""
        return self.framework.on_host(self.framework.like(self.arrays, values))


def ones_like(arrays: Mapping[str, Array]) -> dict[str, HostArray]:
    """Return ones in the shapes of arrays, which take no memory."""
    return {name: np.broadcast_to(1.0, tuple(array.shape)) for name, array in arrays.items()}


class LayerChange(NamedTuple):
    """What is to become of one layer.

    Attributes
    ----------
    handle : LayerHandle
        The layer.
    values : dict of arrays
        New arrays by name.
    ratio : float
        New order over the old one.
    cut : LayerCut or None
        What takes gradients, and a state that the layer keeps, to the new states; where there is
        none, gradients go, and states begin with zeros.
    """

    handle: LayerHandle
    values: Mapping[str, HostArray]
    ratio: float
    cut: LayerCut | None = None
