"""Give a fresh pytree the shapes of a reduced one, to load a saved one into it: `shaped_like`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.frameworks.current import framework_of
from ssmreduce.frameworks.handle import LayerChange, LayerHandle
from ssmreduce.frameworks.saved import NamedTrees
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.report import ModelReport
from ssmreduce.models.search import find_layers

_STATE = {"settings", "events", "trial"}
"""Entries by which the state of a reducer is told."""


def shaped_like(model: Any, saved: Any, *, kind: Any = None) -> Any:
    """Return a copy of an Equinox model in which layers have as many states as when it was saved.

    The copy is what ``equinox.tree_deserialise_leaves`` and Orbax's ``restore`` load into. With a report the
    arrays of layers whose size changes are zeros; arrays that are given are put in place, each
    by its name in the model.

    Parameters
    ----------
    model : pytree of equinox.Module
        Built like the model that was reduced, at full size; it stays as it is.
    saved : ModelReport or dict or pytree of arrays
        The report of the reduction, its ``to_dict()``, also when read back from JSON; the
        ``state_dict()`` of a reducer, whose cuts that stand count; or the saved arrays: a model, or
        dicts and lists of arrays by name, as Orbax restores them.
    kind : str, Layer, or dict of them by layer name, optional
        What kind of layer arrays are, where nothing else tells; see `CutOptions`.

    Returns
    -------
    pytree of equinox.Module
        What is not an array (functions, numbers) is that of `model`.

    Raises
    ------
    UnsupportedLayerError
        If `model` is a PyTorch module, which is for `load_reduced`, or holds no supported layer.
    ShapeError
        If a name is missing or left over, a dtype differs, or a shape does by more than the states of
        a layer.
    ArgumentError
        If a report or reducer does not say how many states a layer has, or more than it has in
        `model`.

    Examples
    --------
    >>> import json
    >>> import numpy as np
    >>> from ssmreduce import reduce_model, shaped_like
    >>> from ssmreduce.demo.lru import LRU
    >>> def build():
    ...     return {"encoder": LRU(16, 4, rng=np.random.default_rng(0))}
    >>> result = reduce_model(build(), 6)
    >>> text = json.dumps(result.report.to_dict())
    >>> shaped_like(build(), json.loads(text))["encoder"].B_re.shape
    (6, 4)
    >>> arrays = {"encoder": dict(vars(result.model["encoder"]))}
    >>> loaded = shaped_like(build(), arrays)
    >>> bool((loaded["encoder"].B_re == result.model["encoder"].B_re).all())
    True
    """
    framework = framework_of(model)
    trees = framework.named_trees(model)
    options = CutOptions(skip_unsupported=True, kind=kind)
    layers = {handle.name: handle for handle in find_layers(model, options).handles}
    told = _told(saved)
    given = trees.saved_arrays(model, saved) if told is None else {}
    if told is not None:
        orders = _orders_of_report(told, layers)
    else:
        orders = {name: _order_of_arrays(handle, given, trees) for name, handle in layers.items()}
    changes = [_change(layers[name], order) for name, order in orders.items()]
    real = [change for change in changes if change.ratio != 1.0]
    shaped = framework.prepared(model, real, None, {}).model
    return trees.with_arrays(shaped, given) if told is None else shaped


def _told(saved: Any) -> Mapping[Any, Any] | None:
    """What is told of layers by name: by a report, or by the last cuts of a reducer; None for arrays."""
    if isinstance(saved, ModelReport):
        return saved.to_dict()
    if not isinstance(saved, Mapping):
        return None
    if saved.keys() >= _STATE:
        return {
            event["layer"]: event
            for event in _events(saved["events"])
            if event["rolled_back"] is None
        }
    entries = saved.values()
    is_report = any(isinstance(entry, Mapping) and "new_order" in entry for entry in entries)
    return saved if is_report else None


def _events(saved: Any) -> Sequence[Mapping[str, Any]]:
    """The events in the state of a reducer."""
    if not isinstance(saved, list | tuple) or not all(
        isinstance(event, Mapping)
        and isinstance(event.get("layer"), str)
        and "rolled_back" in event
        for event in saved
    ):
        raise ArgumentError(
            f"`saved['events']` is {_checks.shown(saved)}; expected a list of dicts with layer, "
            "new_order and rolled_back. Take what state_dict() of a reducer returned."
        )
    return saved


def _orders_of_report(
    saved: Mapping[Any, Any], layers: Mapping[str, LayerHandle]
) -> dict[str, int]:
    orders: dict[str, int] = {}
    for name, entry in saved.items():
        if not isinstance(name, str) or name not in layers:
            raise ShapeError(
                f"`saved` names layer {_checks.shown(name)}, but those of `model` are {', '.join(layers)}; "
                "expected some of these. Build the model as it was."
            )
        order = entry.get("new_order") if isinstance(entry, Mapping) else entry
        what = f"saved[{name!r}]['new_order']"
        orders[name] = _checks.positive_count(order, what, "report.to_dict()")
    return orders


def _order_of_arrays(handle: LayerHandle, given: Mapping[Any, Any], trees: NamedTrees) -> int:
    """States of a layer whose arrays are `given`."""
    kind = handle.kind
    shapes = trees.shapes_of_layer(given, handle.path, tuple(kind.shapes))
    order = kind.order({name: np.ones(shape) for name, shape in shapes.items()})
    return _checks.positive_count(
        order, f"number of states of `{handle.name}` in `saved`", "a model with states"
    )


def _change(handle: LayerHandle, order: int) -> LayerChange:
    """Zeros in the shapes that the arrays of a layer have at another order."""
    states = handle.kind.order(handle.weights)
    if order > states:
        raise ArgumentError(
            f"`saved` gives layer `{handle.name}` {order} states, but it has {states} in `model`; expected "
            "no more. Build the model at full size."
        )
    return LayerChange(handle, handle.kind.resized(handle.weights, order), order / states)
