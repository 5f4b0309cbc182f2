"""Which object is which layer: `register_layer`, `read_system`, `write_system`.

Supporting a layer is one class in `ssmreduce.layers` and one line here. Classes are told apart by
the arrays they hold, so that an LRU of any package (or of your own) is recognised without naming it;
`register_layer` binds a class explicitly.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, Protocol, runtime_checkable

from ssmreduce._namespace import HostArray
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.layers.lru import LRU
from ssmreduce.systems.diagonal import DiagonalStateSpace


@runtime_checkable
class LayerMap(Protocol):
    """How the weights of a layer parametrise a system; `ssmreduce.layers.lru.LRU` is the model."""

    poles: ClassVar[tuple[str, ...]]
    input_matrix: ClassVar[tuple[str, ...]]
    output_matrix: ClassVar[tuple[str, ...]]
    feedthrough: ClassVar[tuple[str, ...]]

    def names(self) -> tuple[str, ...]:
        """Return the names of all weights."""

    def read(self, weights: Mapping[str, HostArray]) -> DiagonalStateSpace:
        """Return the discrete system that the layer runs."""

    def write(self, system: DiagonalStateSpace) -> dict[str, HostArray]:
        """Return the weights of a layer that runs `system`, all but the feedthrough."""

    def input_scale(self, weights: Mapping[str, HostArray]) -> HostArray:
        """Return s, shape (n,), with B = s (stored input matrix)."""


Path = tuple[Any, ...]
"""Key path of a layer in a model."""

_KNOWN: tuple[LayerMap, ...] = (LRU(),)
"""Recognised by the names of their arrays."""

_REGISTERED: dict[type, LayerMap] = {}


def register_layer(layer_type: type, layer_map: LayerMap) -> None:
    """Say that objects of `layer_type` store their weights as `layer_map` describes.

    Parameters
    ----------
    layer_type : type
        Class of the layer object, for example an Equinox module.
    layer_map : LayerMap
        Object with ``names``, ``read``, ``write``, ``input_scale`` and the names of its weights in
        ``poles``, ``input_matrix``, ``output_matrix``, ``feedthrough``; see `ssmreduce.layers.lru.LRU`.

    Raises
    ------
    UnsupportedLayerError
        If `layer_type` is not a class.

    Examples
    --------
    >>> import equinox as eqx
    >>> from ssmreduce import register_layer
    >>> from ssmreduce.layers.lru import LRU
    >>> class MyLRU(eqx.Module):
    ...     "An LRU with arrays nu_log, theta_log, ..."
    >>> register_layer(MyLRU, LRU())
    """
    if not isinstance(layer_type, type):
        raise UnsupportedLayerError(
            f"`layer_type` is {layer_type!r}; expected a class. Pass type(layer)."
        )
    if not isinstance(layer_map, LayerMap):
        raise UnsupportedLayerError(
            f"`layer_map` is {layer_map!r}; expected an object with the methods of a LayerMap. "
            "Try ssmreduce.layers.lru.LRU()."
        )
    _REGISTERED[layer_type] = layer_map


def backend_of(layer: object) -> ModuleType | None:
    """Return the adapter of the framework that `layer` comes from, None if there is none."""
    if "equinox" in sys.modules:
        from ssmreduce.adapters import jax

        if jax.is_module(layer):
            return jax
    return None


def layer_map_of(layer: object) -> LayerMap | None:
    """Return the map of a supported layer, None for anything else."""
    backend = backend_of(layer)
    if backend is None:
        return None
    for kind in type(layer).__mro__:
        if kind in _REGISTERED:
            return _REGISTERED[kind]
    for layer_map in _KNOWN:
        if backend.has_arrays(layer, layer_map.names()):
            return layer_map
    return None


def is_supported(layer: object) -> bool:
    """Tell whether `layer` can be read and written."""
    return layer_map_of(layer) is not None


def model_backend(model: object) -> ModuleType:
    """Return the adapter of the framework that `model`, a pytree of modules, belongs to.

    Raises
    ------
    UnsupportedLayerError
        If no supported framework has been imported.
    """
    if "equinox" in sys.modules:
        from ssmreduce.adapters import jax

        return jax
    raise UnsupportedLayerError(
        f"`model` is a {_type_name(model)}; expected a pytree of Equinox modules, but Equinox has not "
        "been imported. Install it with: pip install 'ssmreduce[jax]'"
    )


def find_layers(model: Any) -> list[tuple[Path, Any]]:
    """Return key path and object of every supported layer of a model.

    Raises
    ------
    UnsupportedLayerError
        If there is none.
    """
    found: list[tuple[Path, Any]] = list(model_backend(model).find_layers(model, is_supported))
    if not found:
        raise UnsupportedLayerError(
            f"`model` is a {_type_name(model)} without a supported layer; expected a pytree with "
            f"Equinox modules that have the arrays of one of: {_known_names()}. Bind your layer's class with "
            "register_layer(...)."
        )
    return found


def _type_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _known_names() -> str:
    return "; ".join(f"{type(known).__name__} ({', '.join(known.names())})" for known in _KNOWN)


def supported(layer: object) -> tuple[ModuleType, LayerMap]:
    """Return adapter and map of a layer.

    Raises
    ------
    UnsupportedLayerError
        If no map fits.
    """
    backend, layer_map = backend_of(layer), layer_map_of(layer)
    if backend is None or layer_map is None:
        raise UnsupportedLayerError(
            f"`layer` is a {_type_name(layer)}; expected an Equinox "
            f"module with the arrays of one of: {_known_names()}. Bind your class with "
            "register_layer(...), or pass the layer itself rather than the model around it."
        )
    if not backend.has_arrays(layer, layer_map.names()):
        missing = [name for name in layer_map.names() if not backend.has_arrays(layer, (name,))]
        raise UnsupportedLayerError(
            f"`layer` is a {_type_name(layer)} without the arrays {', '.join(missing)}; expected those "
            f"of {type(layer_map).__name__}. Register another map for it."
        )
    return backend, layer_map


def read_system(layer: Any) -> DiagonalStateSpace:
    """Read the weights of a layer as the discrete system it runs, at double precision.

    Parameters
    ----------
    layer : object
        A supported layer: an Equinox LRU with nu_log, theta_log, B_re, B_im, C_re, C_im, D, gamma_log.

    Returns
    -------
    DiagonalStateSpace
        Discrete, with ``real_output`` and ``read_after_update`` as the layer has them.

    Raises
    ------
    UnsupportedLayerError
        If the layer is not known.
    ShapeError, NonFiniteError
        If its weights do not fit together, or hold NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import read_system
    >>> from ssmreduce.demo.lru import LRU
    >>> read_system(LRU(16, 4, rng=np.random.default_rng(0))).order
    16
    """
    backend, layer_map = supported(layer)
    return layer_map.read(backend.read_arrays(layer, layer_map.names()))


def write_system(layer: Any, system: DiagonalStateSpace) -> Any:
    """Return a copy of `layer` that runs `system`, in the dtype of its weights.

    Parameters
    ----------
    layer : object
        A supported layer; it is left as it is.
    system : DiagonalStateSpace
        Discrete, with the layer's inputs and outputs, read after its update, real output. Its
        feedthrough is not written: reductions keep it.

    Returns
    -------
    object
        A layer of the same class, with ``system.order`` states.

    Raises
    ------
    UnsupportedLayerError
        If the layer is not known.
    ShapeError
        If the system does not fit the layer.
    UnstableSystemError
        If the layer cannot store a pole.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import balanced_truncation, read_system, write_system
    >>> from ssmreduce.demo.lru import LRU
    >>> layer = LRU(16, 4, rng=np.random.default_rng(0))
    >>> smaller = write_system(layer, balanced_truncation(read_system(layer), 6).system)
    >>> smaller.nu_log.shape
    (6,)
    """
    backend, layer_map = supported(layer)
    own = layer_map.read(backend.read_arrays(layer, layer_map.names()))
    for name in ("inputs", "outputs", "batch_shape", "time", "real_output", "read_after_update"):
        found, expected = getattr(system, name, None), getattr(own, name)
        if found != expected:
            raise ShapeError(
                f"`system` has {name} = {found} but the layer has {expected}; expected the same. "
                "Start from read_system(layer)."
            )
    return backend.write_arrays(layer, layer_map.write(system.to_host()))
