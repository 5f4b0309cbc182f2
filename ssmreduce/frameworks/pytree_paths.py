"""What is at a key path of a pytree."""

from __future__ import annotations

from typing import Any

import jax

from ssmreduce.frameworks.handle import Path


def part_at(tree: Any, path: Path) -> Any:
    """Return the object at a key path."""
    if not path:
        return tree
    inside = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return part_at(dict(inside)[path[:1]], path[1:])
