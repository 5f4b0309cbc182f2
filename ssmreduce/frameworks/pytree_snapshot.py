"""Snapshots of pytrees of JAX arrays: NumPy copies by key path, safe from donated buffers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce.errors import ShapeError

_NUMBERS = bool | int | float | complex


def take(model: Any, opt_state: Any) -> dict[str, Any]:
    """Copy the arrays and numbers of both trees to the host."""
    return {"model": _leaves(model), "opt_state": _leaves(opt_state)}


def prepared_back(model: Any, opt_state: Any, snapshot: dict[str, Any]) -> tuple[Any, Any]:
    """Make both trees with the leaves that `snapshot` holds, on the devices of the present ones."""
    return (
        _restored(model, snapshot["model"], "model"),
        _restored(opt_state, snapshot["opt_state"], "opt_state"),
    )


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _leaves(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if isinstance(leaf, jax.Array):
            leaves[name] = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        elif isinstance(leaf, np.ndarray):
            leaves[name] = leaf.copy()
        elif isinstance(leaf, _NUMBERS):
            leaves[name] = leaf
    return leaves


def _kind(leaf: Any) -> Any:
    """What a cut leaves as it is."""
    return (leaf.dtype, leaf.ndim) if hasattr(leaf, "dtype") else None


def _restored(tree: Any, saved: dict[str, Any], what: str) -> Any:
    here = _leaves(tree)
    other = sorted(saved.keys() ^ here.keys()) + [
        name for name in here.keys() & saved.keys() if _kind(here[name]) != _kind(saved[name])
    ]
    if other:
        raise ShapeError(
            f"the snapshot from before the cut and `{what}` differ in {', '.join(other[:4])}; "
            f"expected the same leaves, dtypes and numbers of axes. Build `{what}` as it was."
        )

    def restore(path: Any, leaf: Any) -> Any:
        value = saved.get(jax.tree_util.keystr(path), leaf)
        if not isinstance(leaf, jax.Array):
            return value.copy() if isinstance(value, np.ndarray) else value
        if _is_key(leaf):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        return jax.device_put(value, leaf.sharding)

    return jax.tree_util.tree_map_with_path(restore, tree)
