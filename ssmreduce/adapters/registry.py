"""Which object is which layer: `register_layer`, `read_system`, `write_system`.

Supporting a layer is one class in `ssmreduce.layers` and one line here. Layers are told apart by the
arrays they hold, so that an LRU of any package (or of your own) is recognised without naming it;
`register_layer` binds a class explicitly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ssmreduce import _checks
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.layers.layer_map import HasArrays, LayerMap
from ssmreduce.layers.lru import LRU
from ssmreduce.layers.read_back import check_read_back
from ssmreduce.layers.s4 import S4
from ssmreduce.layers.s4d import S4D, S4Diagonal
from ssmreduce.layers.s5 import S5
from ssmreduce.layers.s5_jax import S5HalfSpectrum
from ssmreduce.layers.s5_real_input import S5RealInput
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

_KNOWN: tuple[type[LayerMap], ...] = (LRU, S5, S5HalfSpectrum, S5RealInput, S4D, S4, S4Diagonal)
"""Recognised by their arrays."""

_REGISTERED: dict[type, LayerMap] = {}


def register_layer(layer_type: type, layer_map: LayerMap) -> None:
    """Say that objects of `layer_type` store their weights as `layer_map` describes.

    Parameters
    ----------
    layer_type : type
        Class of the layer object: an Equinox or a PyTorch module.
    layer_map : LayerMap
        How its weights parametrise a system; see `ssmreduce.layers.layer_map.LayerMap`.

    Raises
    ------
    UnsupportedLayerError
        If `layer_type` is not a class, or `layer_map` not an instance of a LayerMap.

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
            f"`layer_type` is {_checks.shown(layer_type)}; expected a class. Pass type(layer)."
        )
    if not isinstance(layer_map, LayerMap):
        raise UnsupportedLayerError(
            f"`layer_map` is {_checks.shown(layer_map)}; expected an instance of a LayerMap. "
            "Try ssmreduce.layers.lru.LRU()."
        )
    _REGISTERED[layer_type] = layer_map


def backend_of(thing: object) -> ModuleType | None:
    """Return the adapter of the framework that a module comes from, None if there is none."""
    if "torch" in sys.modules:
        from ssmreduce.adapters import torch

        if torch.is_module(thing):
            return torch
    if "equinox" in sys.modules:
        from ssmreduce.adapters import jax

        if jax.is_module(thing):
            return jax
    return None


def layer_map_of(layer: object) -> LayerMap | None:
    """Return the map of a supported layer, None for anything else.

    Raises
    ------
    UnsupportedLayerError
        If it is a variant of a known layer that cannot be reduced.
    """
    backend = backend_of(layer)
    if backend is None:
        return None
    for kind in type(layer).__mro__:
        if kind in _REGISTERED:
            return _REGISTERED[kind]
    has = HasArrays(backend.array_axes(layer))
    for known in _KNOWN:
        layer_map = known.recognise(layer, has)
        if layer_map is not None:
            return layer_map
    return None


def is_supported(layer: object) -> bool:
    """Tell whether `layer` can be read and written."""
    return layer_map_of(layer) is not None


def model_backend(model: object) -> ModuleType:
    """Return the adapter of the framework of a model: a PyTorch module or a pytree of Equinox modules.

    Raises
    ------
    UnsupportedLayerError
        If `model` belongs to neither, or its framework has not been imported.
    """
    backend = backend_of(model)
    if backend is not None:
        return backend
    if "equinox" in sys.modules and not isinstance(model, Iterator):
        from ssmreduce.adapters import jax

        return jax
    advice = (
        "Pass the module itself, not its class, state dict, parameters or optimizer."
        if {"torch", "equinox"} & sys.modules.keys()
        else "Neither framework is imported; one that is missing comes with: pip install "
        "'ssmreduce[torch]' or 'ssmreduce[jax]'"
    )
    raise UnsupportedLayerError(
        f"`model` is a {_checks.type_name(model)}; expected a PyTorch module or a pytree of Equinox "
        f"modules. {advice}"
    )


def is_reducible(layer: object) -> bool:
    """Tell whether `layer` can be read and written; False for variants that cannot be reduced."""
    try:
        return is_supported(layer)
    except UnsupportedLayerError:
        return False


def known_names() -> str:
    """Return the known layers with the arrays by which they are known, as a message says it."""
    return "; ".join(f"{known.__name__} ({', '.join(known().names())})" for known in _KNOWN)


def supported(layer: object) -> tuple[ModuleType, Any, LayerMap]:
    """Return adapter, layer and map: the layer itself, or the only one in a wrapper without weights.

    Raises
    ------
    UnsupportedLayerError
        If no map fits.
    """
    backend = backend_of(layer)
    if backend is not None:
        layer = backend.unwrapped(layer)
    layer_map = layer_map_of(layer)
    if backend is None or layer_map is None:
        raise UnsupportedLayerError(
            f"`layer` is a {_checks.type_name(layer)}; expected a module with the arrays of one of: "
            f"{known_names()}. Bind your class with register_layer(...), or pass the layer itself "
            "rather than the model around it."
        )
    missing = [name for name in layer_map.names() if name not in backend.array_axes(layer)]
    if missing:
        raise UnsupportedLayerError(
            f"`layer` is a {_checks.type_name(layer)} without the arrays {', '.join(missing)}; expected "
            f"those of {type(layer_map).__name__}. Register another map for it."
        )
    return backend, layer, layer_map


def rounding_of(layer: Any, layer_map: LayerMap) -> float:
    """Return the eps with which a layer holds its weights."""
    return max(float(model_backend(layer).precision(layer, layer_map.names())), layer_map.eps)


def read_system(layer: Any) -> System:
    """Read the weights of a layer as the discrete system it runs, at double precision.

    Parameters
    ----------
    layer : object
        A supported layer: an LRU, S5 or S4D of PyTorch or Equinox, or one of your own
        (see `register_layer`).

    Returns
    -------
    DiagonalStateSpace or StateSpace
        Discrete, with ``real_output`` and ``read_after_update``; dense where the layer's state matrix
        is not diagonal (S4); a batch with one system for each
        channel where the layer runs channels apart; with the outputs of both directions where the
        layer is bidirectional. Of JAX arrays for a layer of JAX that is traced; of NumPy arrays for one of
        PyTorch, whose gradients end here (docs/derivatives has the way around).

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
    backend, layer, layer_map = supported(layer)
    return layer_map.read(backend.read_arrays(layer, layer_map.names()))


def write_system(layer: Any, system: DiagonalStateSpace) -> Any:
    """Return a layer that runs `system`, in the dtype of its weights.

    Parameters
    ----------
    layer : object
        A supported layer. An Equinox module is left as it is and a copy returned; a PyTorch module
        is changed in place, its `nn.Parameter` objects staying the same, without gradients, and returned.
    system : DiagonalStateSpace
        Discrete, with the layer's inputs and outputs, read after its update, real output. Its
        feedthrough is not written: reductions keep it.

    Returns
    -------
    object
        A layer of the same class, with ``system.order`` states, or more where it cannot store one
        of them in one.

    Raises
    ------
    UnsupportedLayerError
        If the layer is not known, or another system than `system` would be read back from its weights.
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
    backend, inner, layer_map = supported(layer)
    backend.check_ready(inner, {(): (inner, layer_map)})
    weights = backend.read_arrays(inner, layer_map.names())
    own = layer_map.read(weights)
    expects = {"real_output": True}
    for name in ("inputs", "outputs", "batch_shape", "time", "real_output", "read_after_update"):
        found = getattr(system, name, None)
        expected = expects.get(name, getattr(own, name, None))
        if found != expected:
            raise ShapeError(
                f"`system` has {name} = {found} but the layer has {expected}; expected the same. "
                "Start from read_system(layer)."
            )
    host = system.to_host()
    stored = layer_map.storable(host)
    new = layer_map.write(stored, weights)
    back = layer_map.read({**weights, **backend.rounded(inner, new)})
    check_read_back(layer_map, host, back, rounding_of(inner, layer_map))
    written = backend.write_layer(inner, layer_map, new, stored.order / layer_map.order(weights))
    return layer if written is inner else written
