"""What is at a key path of a pytree."""

from __future__ import annotations

from typing import Any

import jax

from ssmreduce.frameworks.handle import Path


def part_at(tree: Any, path: Path) -> Any:
    """Return the object at a key path."""
    for key in path:
        tree = _child(tree, key)
    return tree


def _child(node: Any, key: Any) -> Any:
    """What is under one key of a path; the object itself for a key of no such kind."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(node, key.name)
    if isinstance(key, jax.tree_util.SequenceKey):
        return node[key.idx]
    if isinstance(key, jax.tree_util.DictKey):
        return node[key.key]
    return jax.tree_util.tree_leaves(node, is_leaf=lambda inner: inner is not node)[key.key]
