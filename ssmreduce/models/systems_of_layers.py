"""Between layers and systems: `read_system`, `write_system`."""

from __future__ import annotations

import sys
from typing import Any

from ssmreduce._array_libraries import described, is_traced
from ssmreduce._checks import type_name
from ssmreduce.errors import ShapeError, TracedValueError, UnsupportedLayerError
from ssmreduce.frameworks.current import framework_of
from ssmreduce.frameworks.framework import listed
from ssmreduce.frameworks.handle import LayerChange, LayerHandle
from ssmreduce.frameworks.mappings import opened
from ssmreduce.frameworks.transaction import commit
from ssmreduce.layers.known import as_said, kind_of, said_kind, with_arrays
from ssmreduce.layers.layer import NamedWeights
from ssmreduce.layers.likeness import Likeness
from ssmreduce.layers.lti import LTILayer
from ssmreduce.layers.read_back import read_back
from ssmreduce.models.search import search
from ssmreduce.systems.diagonal import DiagonalStateSpace, System

_ADVICE = (
    "Cut the layers of a model with reduce_model(model, ...), pass the layer itself, or write a class for it "
    "and call register_layer(...)."
)


def handle_of(layer: Any, kind: object = None) -> LayerHandle:
    """Return the handle of a layer: of itself, or of the only one in a wrapper without weights.

    Raises
    ------
    UnsupportedLayerError
        If it is no known layer, or a variant of one that cannot be reduced.
    """
    if "safetensors" in sys.modules:
        layer = opened(layer)
    framework = framework_of(layer, "layer")
    said = said_kind(kind, side_by_side=framework.side_by_side)
    inner, axes = framework.unwrapped(layer)
    found = kind_of(inner, axes) if said is None else as_said(said, inner, axes)
    if found is None:
        inside = [] if said is not None else search(layer).handles
        if inside:
            raise UnsupportedLayerError(
                f"`layer` is a {type_name(layer)}; expected a known layer, but it holds "
                f"{listed([f'`{each.name}`' for each in inside])}. Pass what is inside, or the whole to "
                "reduce_model(model, ...)."
            )
        near = Likeness(inner, axes)
        advice = near.advice if near.share else _ADVICE
        raise UnsupportedLayerError(
            f"`layer` is a {type_name(layer)}; expected a known layer, but {near.reason}. {advice}"
        )
    return LayerHandle(framework, (), inner, with_arrays(found, layer, axes))


def read_system(layer: Any, *, kind: object = None) -> System:
    """Read the weights of a layer as the discrete system it runs, at double precision.

    Parameters
    ----------
    layer : object
        A supported layer: an LRU, S5 or S4D of PyTorch or Equinox, or one of your own
        (see `register_layer`), or its arrays by name, of any library.
    kind : str or Layer, optional
        What kind of layer arrays by name are, where no object says so: ``"lru"``, ``"s5"``,
        ``"s4d"``, ``"linoss"`` ... with its defaults, or an instance with others, such as
        ``S5(Discretisation.BILINEAR)``.

    Returns
    -------
    DiagonalStateSpace or StateSpace
        Discrete, with ``real_output`` and ``read_after_update``; dense where the layer's state
        matrix is not diagonal (S4); a batch with one system for each channel where the layer runs
        channels apart; with the outputs of both directions where the layer is bidirectional. In JAX
        arrays for a layer of JAX that is traced; in NumPy arrays for one of PyTorch, whose
        gradients end here (the page on derivatives shows how to keep them).

    Raises
    ------
    UnsupportedLayerError
        If the layer is not known.
    ShapeError, NonFiniteError
        If its weights do not fit together, or hold NaN or Inf.
    TracedValueError
        If weights are traced, and the kind of layer needs their entries, as S5 and LinOSS do.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import read_system
    >>> from ssmreduce.demo.lru import LRU
    >>> read_system(LRU(16, 4, rng=np.random.default_rng(0))).order
    16
    """
    handle = handle_of(layer, kind)
    weights = handle.framework.on_host(handle.arrays)  # those of JAX that are traced as they are
    try:
        return handle.kind.read(NamedWeights(weights))
    except TypeError as error:
        traced = [name for name, value in weights.items() if is_traced(value)]
        if not traced:
            raise
        raise TracedValueError(
            f"`{traced[0]}` is {described(weights[traced[0]])}, but {type(handle.kind).__name__} needs "
            "its entries; expected numbers that can be looked at. Call it outside of jit, grad and vmap."
        ) from error


def write_system(layer: Any, system: DiagonalStateSpace, *, kind: object = None) -> Any:
    """Return a layer that runs `system`, in the dtype of its weights.

    Parameters
    ----------
    layer : object
        A supported layer. An Equinox module is left as it is and a copy returned; a PyTorch module
        is changed in place, its `nn.Parameter` objects staying the same, without gradients, and returned.
    system : DiagonalStateSpace
        Discrete, with the layer's inputs and outputs, read after its update, real output. Its
        feedthrough is not written: reductions keep it.
    kind : str or Layer, optional
        What kind of layer arrays by name are, where no object says so: ``"lru"``, ``"s5"``, ``"s4d"``,
        ``"linoss"`` ... with its defaults, or an instance with others, such as
        ``S5(Discretisation.BILINEAR)``.

    Returns
    -------
    object
        A layer of the same class, with ``system.order`` states, or more where it stores one of them
        in several.

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
    handle = handle_of(layer, kind)
    own_kind = handle.kind
    if not isinstance(own_kind, LTILayer):
        raise UnsupportedLayerError(
            f"`layer` is a {type_name(layer)}, which cannot hold any system; expected a layer that is "
            "cut by balanced truncation. Cut it with reduce_layer(layer, order)."
        )
    handle.framework.check_ready(handle.layer, [handle])
    own = own_kind.read(handle.weights)
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
    new = own_kind.write(host, handle.weights)
    read_back(own_kind, host, {**handle.weights, **handle.rounded(new)}, handle.eps)
    values = {**handle.weights, **new}  # all of them: gradients are those of another system
    ratio = own_kind.order(values) / own_kind.order(handle.weights)
    change = LayerChange(handle, values, ratio)
    ready = handle.framework.prepared(handle.layer, [change], None, {})
    commit(ready.steps)
    return layer if ready.model is handle.layer else ready.model
