"""Give a fresh pytree the shapes of a reduced one, to load a saved one into it: `shaped_like`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce.adapters.change import Change, Path
from ssmreduce.adapters.registry import is_reducible, layer_map_of, model_backend
from ssmreduce.errors import OrderError, ShapeError
from ssmreduce.layers.layer_map import LayerMap
from ssmreduce.models.options import CutOptions
from ssmreduce.models.report import ModelReport
from ssmreduce.models.search import find_layers
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.time_domain import Discrete


def shaped_like(model: Any, saved: Any) -> Any:
    """Return a copy of an Equinox model in which layers have as many states as when it was saved.

    The copy is what ``equinox.tree_deserialise_leaves`` and Orbax's ``restore`` load into. With a report the
    arrays of layers whose size changes are zeros; arrays that are given are put in place, each
    by its name in the model.

    Parameters
    ----------
    model : pytree of equinox.Module
        Built like the model that was reduced, at full size; it stays as it is.
    saved : ModelReport or dict or pytree of arrays
        The report of the reduction, its ``to_dict()``, also when read back from JSON, or the saved
        arrays: a model, or dicts and lists of arrays by name, as Orbax restores them.

    Returns
    -------
    pytree of equinox.Module
        With what is no array (functions, numbers) from `model`.

    Raises
    ------
    UnsupportedLayerError
        If `model` is a PyTorch module, which is for `load_reduced`, or holds no supported layer.
    ShapeError
        If a name is missing or left over, a dtype differs, or a shape does by more than the states of
        a layer.
    OrderError
        If a report does not say how many states a layer has, or more than it has in `model`.

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
    backend = model_backend(model)
    backend.check_pytree(model)
    layers: dict[Path, tuple[Any, LayerMap]] = {}
    for path, layer in find_layers(model, CutOptions(skip_unsupported=True)):
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        layers[path] = layer, layer_map
    if isinstance(saved, ModelReport):
        saved = saved.to_dict()
    if is_report := _is_report(saved):
        orders = _orders_of_report(saved, {backend.path_name(path): path for path in layers})
    else:
        given = backend.saved_arrays(model, saved)
        orders = {
            path: _order_of_arrays(layer_map, given, path, backend)
            for path, (_, layer_map) in layers.items()
        }
    changes = {}
    for path, order in orders.items():
        name = backend.path_name(path)
        layer, layer_map = layers[path]
        arrays = backend.read_arrays(layer, layer_map.names())
        change = _change(layer, layer_map, arrays, order, name)
        if change.ratio != 1.0:
            changes[path] = change
    shaped, _ = backend.prepared(model, is_reducible, changes, None, {}, {})()
    return shaped if is_report else backend.with_arrays(shaped, given)


def _is_report(saved: Any) -> bool:
    return isinstance(saved, Mapping) and any(
        isinstance(entry, Mapping) and "new_order" in entry for entry in saved.values()
    )


def _orders_of_report(saved: Mapping[Any, Any], paths: Mapping[str, Path]) -> dict[Path, int]:
    orders: dict[Path, int] = {}
    for name, entry in saved.items():
        if not isinstance(name, str) or name not in paths:
            raise ShapeError(
                f"`saved` names layer {_checks.shown(name)}, but those of `model` are {', '.join(paths)}; "
                "expected some of these. Build the model as it was."
            )
        order = entry.get("new_order") if isinstance(entry, Mapping) else entry
        what = f"saved[{name!r}]['new_order']"
        orders[paths[name]] = _checks.positive_count(order, what, "report.to_dict()")
    return orders


def _order_of_arrays(
    layer_map: LayerMap, given: Mapping[Path, Any], path: Path, backend: Any
) -> int:
    """States of a layer whose arrays are `given`."""
    shapes = backend.shapes_of_layer(given, path, layer_map.names())
    try:
        order = layer_map.order({name: np.ones(shape) for name, shape in shapes.items()})
    except ValueError as error:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(
            f"the arrays of layer `{backend.path_name(path)}` in `saved` do not fit together: {listed}; "
            "expected those of one layer. Save the model again."
        ) from error
    return _checks.positive_count(
        order, f"number of states of `{backend.path_name(path)}` in `saved`", "a model with states"
    )


def _change(
    layer: Any, layer_map: LayerMap, arrays: Mapping[str, Any], order: int, name: str
) -> Change:
    """Zeros in the shapes that the arrays of a layer have at another order."""
    # The shapes alone matter: what is replaced may be NaN, or anything.
    ones = {key: np.ones(value.shape) for key, value in arrays.items()}
    states = layer_map.order(ones)
    if order > states:
        raise OrderError(
            f"`saved` gives layer `{name}` {order} states, but it has {states} in `model`; expected no "
            "more. Build the model at full size."
        )
    B, C = layer_map.matrices(ones)
    batch = np.broadcast_shapes(B.shape[:-2], C.shape[:-2])
    system = DiagonalStateSpace(
        np.full((*batch, order), 0.5),
        np.ones((*batch, order, B.shape[-1])),
        np.ones((*batch, C.shape[-2], order)),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    new = {key: np.zeros(value.shape) for key, value in layer_map.write(system, ones).items()}
    return Change(layer, layer_map, new, order / states)
