"""Equinox modules: find layers in a model, read and write their arrays. Nothing else.

Imported only once the user's own object proves that Equinox is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce import _checks
from ssmreduce._namespace import HostArray, is_traced, to_double, to_host
from ssmreduce.adapters.change import Change, Path
from ssmreduce.adapters.moments import Moments
from ssmreduce.errors import OptimizerStateError, ShapeError
from ssmreduce.layers.layer_map import LayerMap


def is_module(candidate: object) -> bool:
    """Tell whether `candidate` is an Equinox module."""
    return isinstance(candidate, eqx.Module)


def array_axes(module: Any) -> dict[str, int]:
    """Return the names of the arrays of `module` and their numbers of axes."""
    values = vars(module).items() if is_module(module) else ()
    return {name: value.ndim for name, value in values if eqx.is_array(value)}


def unwrapped(module: Any) -> Any:
    """Return `module` itself: modules of Equinox are passed as they are."""
    return module


def team_of(model: Any) -> None:
    """Return None: a pytree belongs to one process."""


def shares_weights(first: Any, second: Any, names: tuple[str, ...]) -> bool:
    """Return False: a cut replaces leaves, each on its own."""
    return False


def check_ready(model: Any, layers: Mapping[Path, tuple[Any, LayerMap]]) -> None:
    """Nothing is in the way: arrays are never changed in place."""


def gradients_of(model: Any, layers: Mapping[Path, tuple[Any, LayerMap]]) -> list[Moments]:
    """Return none: a pytree holds no gradients."""
    return []


def read_arrays(module: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the named arrays at double precision on the host; tracers as they are."""
    arrays = {name: getattr(module, name) for name in names}
    return {name: x if is_traced(x) else to_double(x) for name, x in arrays.items()}


def precision(module: Any, names: tuple[str, ...]) -> float:
    """Return the largest eps among the dtypes of the named arrays."""
    dtypes = [getattr(module, name).dtype for name in names]
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)  # type: ignore[no-untyped-call]


def item_sizes(module: Any, names: tuple[str, ...]) -> dict[str, int]:
    """Return the bytes of one entry of each named array."""
    return {name: int(getattr(module, name).dtype.itemsize) for name in names}


def rounded(module: Any, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Return `values` as the arrays of `module` would hold them, at double precision."""
    return {
        name: to_double(np.asarray(value, dtype=to_host(getattr(module, name)).dtype))
        for name, value in values.items()
    }


def write_layer(
    module: Any, layer_map: LayerMap, values: Mapping[str, HostArray], ratio: float
) -> Any:
    """Return a copy of `module` with new arrays, each in the dtype of the one it replaces.

    Numbers of states that are leaves follow by `ratio`. Static fields belong to the structure of the tree,
    which an optimizer state shares: they stay as they are.
    """
    new: dict[str, Any] = {
        name: jnp.asarray(np.asarray(value, dtype=to_host(getattr(module, name)).dtype))
        for name, value in values.items()
    }
    static = {
        field.name for field in dataclasses.fields(module) if field.metadata.get("static", False)
    }
    for name in layer_map.sizes:
        count = vars(module).get(name)
        if type(count) is int and name not in static:
            new[name] = round(count * ratio)
    return eqx.tree_at(lambda m: [getattr(m, name) for name in new], module, list(new.values()))


def find_layers(
    model: Any, matches: Callable[[Any], bool]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the key path and the object of every matching module, the outermost ones only."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=matches)
    for path, leaf in leaves:
        if matches(leaf):
            yield path, leaf


def path_name(path: tuple[Any, ...]) -> str:
    """Return a key path as it reads in code, for example ``blocks[0].lru``."""
    return jax.tree_util.keystr(path).lstrip(".") or "model"


def prepared(
    model: Any,
    matches: Callable[[Any], bool],
    changes: Mapping[Path, Change],
    opt_state: Any,
    moments: Mapping[Path, HostArray],
    gradients: Mapping[Path, HostArray],
) -> Callable[[], tuple[Any, Any]]:
    """Make copies of model and optimizer state with new layers and moments; a call returns them.

    There are no `gradients`: those of a pytree are another pytree.
    """
    weights = {path for path, _ in jax.tree_util.tree_leaves_with_path(model)}
    layers = {
        path: write_layer(change.layer, change.layer_map, change.values, change.ratio)
        for path, change in changes.items()
    }
    model = jax.tree_util.tree_map_with_path(
        lambda path, node: layers.get(path, node), model, is_leaf=matches
    )

    def at(path: Path, leaf: Any) -> Any:
        if path not in moments:
            return leaf
        value, dtype = moments[path], to_host(leaf).dtype
        if np.iscomplexobj(value) and _field_of(path[: _start_of(path, weights)]) in _MODULI:
            value = value.real + value.imag
        return jnp.asarray(np.asarray(value, dtype=dtype))

    opt_state = jax.tree_util.tree_map_with_path(at, opt_state)
    return lambda: (model, opt_state)


def moments_of(
    model: Any, opt_state: Any, names: Mapping[Path, tuple[str, ...]]
) -> Iterator[Moments]:
    """Yield what an optax state holds for the named arrays of the layers at the given paths.

    Raises
    ------
    OptimizerStateError
        If it holds an array that belongs to no weight: flattened or factored moments, say.
    """
    weights = {
        (*path, jax.tree_util.GetAttrKey(name)): (path, name)
        for path, own in names.items()
        for name in own
    }
    model_paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(model)}
    groups: dict[tuple[Path, Path], dict[str, tuple[Any, HostArray]]] = {}
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        start = _start_of(leaf_path, model_paths)
        if start is None:
            _check_unrelated(leaf, path_name(leaf_path))
        elif leaf_path[start:] in weights:
            layer_path, name = weights[leaf_path[start:]]
            group = groups.setdefault((leaf_path[:start], layer_path), {})
            value = to_double(leaf)
            if np.iscomplexobj(value) and _field_of(leaf_path[:start]) in _MODULI:
                value = (0.5 + 0.5j) * value.real
            group[name] = leaf_path, value
    for (prefix, layer_path), group in groups.items():
        field = _field_of(prefix)
        if field in _CENTRED and _is_centred(opt_state, prefix):
            field = _CENTRED[field]
        yield Moments(field, path_name(prefix), layer_path, group)


_MODULI = frozenset({"nu", "nu_max", "sum_of_squares"})
"""Fields in which optax keeps |g|² of complex weights: to us half of it for each part."""


def _start_of(leaf_path: Path, model_paths: set[Path]) -> int | None:
    """Where the path of a weight begins in the path of a leaf of an optimizer state."""
    return next((i for i in range(len(leaf_path)) if leaf_path[i:] in model_paths), None)


def _field_of(prefix: Path) -> str | None:
    """The field of a state that a path leads to before it goes on as the path of a weight."""
    names = [key.name for key in prefix if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[-1] if names else None


_CENTRED = {"mu": "grad_avg", "nu": "square_avg"}
"""Fields of optax's centred RMSprop, which Adam has too, and their names in torch, which are its own."""


def _is_centred(opt_state: Any, prefix: Path) -> bool:
    """Whether the moments at this path are those of centred RMSprop."""
    holder = opt_state
    for key in prefix[:-1]:
        if isinstance(key, jax.tree_util.GetAttrKey):
            holder = getattr(holder, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            holder = holder[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            holder = holder[key.key]
    return "RStdDev" in type(holder).__name__


def _check_unrelated(leaf: Any, where: str) -> None:
    if getattr(leaf, "ndim", 0) and np.issubdtype(to_host(leaf).dtype, np.inexact):
        raise OptimizerStateError(
            f"the optimizer state holds an array of shape {leaf.shape} at {where} that belongs to no "
            "weight of the model; expected moments with the model's structure. Initialise the "
            "optimizer from the model itself, not from a list or a flattened vector."
        )


def check_optimizer(model: Any, opt_state: Any, followers: Sequence[Any]) -> None:
    """Raise `OptimizerStateError` for an optimizer in place of its state.

    Whose state it is tells the structure of the model, by which its moments are read.
    """
    if hasattr(opt_state, "init") or hasattr(opt_state, "param_groups"):
        raise OptimizerStateError(
            f"`opt_state` is a {_checks.type_name(opt_state)}; expected the state of an optimizer of optax. "
            "Pass what its init(...) or its last update(...) returned."
        )


def check_pytree(model: Any) -> None:
    """Nothing is in the way: the arrays of a pytree have names."""


def _names(path: Path) -> Path:
    """The keys of a path as strings, the same for the field of a module and the key of a dict."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def saved_arrays(model: Any, saved: Any) -> dict[Path, Any]:
    """Return the leaves of `saved` by the names of their keys: one for each array of `model`.

    Raises
    ------
    ShapeError
        If a name is missing or left over, or what is under it no array with as many axes.
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(
            saved, is_leaf=lambda node: isinstance(node, Iterator)
        )
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"`saved` is a {_checks.type_name(saved)} that is no pytree ({error}); expected dicts of "
            "arrays by name. Pass what Orbax restored."
        ) from error
    if [path for path, _ in leaves] == [()]:
        raise ShapeError(
            f"`saved` is a {_checks.type_name(saved)}; expected a report or a pytree of arrays. Read the "
            "file first, with json.load(file) or checkpointer.restore(path)."
        )
    given = {_names(path): leaf for path, leaf in leaves}
    own = {_names(path): (path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    missing = [
        path_name(path) for key, (path, leaf) in own.items() if _is_array(leaf) and key not in given
    ]
    extra = [path_name(path) for path, _ in leaves if _names(path) not in own]
    if missing or extra:
        raise ShapeError(
            f"`saved` lacks {', '.join(missing[:4]) or 'nothing'} and has "
            f"{', '.join(extra[:4]) or 'nothing'} besides; expected the names of `model`. "
            "Build the model as it was."
        )
    for key, (path, leaf) in own.items():
        if _is_array(leaf) and not (_is_array(given[key]) and given[key].ndim == leaf.ndim):
            shape = f" of shape {given[key].shape}" if _is_array(given[key]) else ""
            raise ShapeError(
                f"`{path_name(path)}` of `saved` is a {_checks.type_name(given[key])}{shape}; expected an "
                f"array with {leaf.ndim} axes. Build the model as it was."
            )
    return given


def shapes_of_layer(
    given: Mapping[Path, Any], path: Path, names: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the named arrays of the layer at `path`."""
    return {name: given[(*_names(path), name)].shape for name in names}


def with_arrays(model: Any, given: Mapping[Path, Any]) -> Any:
    """Return a copy of `model` whose arrays are those that `saved_arrays` returned.

    Raises
    ------
    ShapeError
        If the shape or the dtype of one differs.
    """

    def take(path: Path, leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        value = given[_names(path)]
        if (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
            raise ShapeError(
                f"`{path_name(path)}` of `saved` has shape {value.shape} and dtype {value.dtype}; expected "
                f"{leaf.shape} and {leaf.dtype}. Build the model as it was."
            )
        return jnp.asarray(value) if isinstance(leaf, jax.Array) else np.array(value)

    return jax.tree_util.tree_map_with_path(take, model)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)
