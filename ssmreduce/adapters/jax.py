"""Equinox modules: find layers in a model, read and write their arrays. Nothing else.

Imported only once the user's own object proves that Equinox is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce._namespace import HostArray, is_traced, to_double, to_host


def is_module(candidate: object) -> bool:
    """Tell whether `candidate` is an Equinox module."""
    return isinstance(candidate, eqx.Module)


def has_arrays(module: Any, names: tuple[str, ...]) -> bool:
    """Tell whether `module` has an array under each name."""
    return all(eqx.is_array(getattr(module, name, None)) for name in names)


def read_arrays(module: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the named arrays at double precision on the host; tracers as they are."""
    arrays = {name: getattr(module, name) for name in names}
    return {name: x if is_traced(x) else to_double(x) for name, x in arrays.items()}


def precision(module: Any, names: tuple[str, ...]) -> float:
    """Return the largest eps among the dtypes of the named arrays."""
    dtypes = [getattr(module, name).dtype for name in names]
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)  # type: ignore[no-untyped-call]


def write_arrays(module: Any, values: Mapping[str, HostArray]) -> Any:
    """Return a copy of `module` with new arrays, each in the dtype of the one it replaces."""
    names = list(values)
    arrays = [
        jnp.asarray(np.asarray(values[name], dtype=to_host(getattr(module, name)).dtype))
        for name in names
    ]
    return eqx.tree_at(lambda m: [getattr(m, name) for name in names], module, arrays)


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


def replace_layers(
    model: Any, matches: Callable[[Any], bool], replacements: Mapping[tuple[Any, ...], Any]
) -> Any:
    """Return a copy of `model` with the matching modules at the given key paths replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda path, node: replacements.get(path, node), model, is_leaf=matches
    )


def leaves_with_paths(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Return key path and value of every leaf."""
    leaves: list[tuple[tuple[Any, ...], Any]] = jax.tree_util.tree_leaves_with_path(tree)
    return leaves


def replace_leaves(tree: Any, values: Mapping[tuple[Any, ...], HostArray]) -> Any:
    """Return a copy of `tree` with the leaves at the given key paths replaced, dtypes kept."""

    def at(path: tuple[Any, ...], leaf: Any) -> Any:
        if path not in values:
            return leaf
        return jnp.asarray(np.asarray(values[path], dtype=to_host(leaf).dtype))

    return jax.tree_util.tree_map_with_path(at, tree)


def attribute_key(name: str) -> Any:
    """Return the path key under which a module holds `name`."""
    return jax.tree_util.GetAttrKey(name)


def last_attribute(path: tuple[Any, ...]) -> str | None:
    """Return the innermost attribute name on a path, None if it has none."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return names[-1] if names else None
