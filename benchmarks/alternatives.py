"""Choices after a cut that were compared and have no use: moments sliced, states of other sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce import CutOptions, reduce_model
from ssmreduce.models.report import ModelReduction
from ssmreduce.reduction.report import Reduction

B_NAMES, C_NAMES = ("B_re", "B_im"), ("C_re", "C_im")


def cut_with(
    model: Any, order: Any, opt_state: Any, moments: str = "carry", scaling: str = "usual"
) -> ModelReduction:
    """`reduce_model` with moments carried, reset or sliced, and states of some size."""
    options = CutOptions(moments="reset" if moments == "reset" else "carry")
    result = reduce_model(model, order, opt_state=opt_state, options=options)
    if scaling != "usual":
        result = rescaled(result, FACTORS[scaling], moments == "carry")
    if moments == "slice":
        state = jax.tree.map(sliced, opt_state, result.optimizer_state)
        result = replace(result, optimizer_state=state)
    return result


def sliced(old: Any, new: Any) -> Any:
    """The first entries of an array, as many as the new one has: in the wrong basis, as CompreSSM does."""
    return old[tuple(slice(length) for length in jnp.shape(new))] if jnp.ndim(new) else new


def rescaled(result: ModelReduction, factors: Any, moments: bool) -> ModelReduction:
    """States of another size, by factors that a reduction gives."""
    model, state = result.model, result.optimizer_state
    for path, part in zip(lru_paths(model), result.report.values(), strict=True):
        factor = factors(part.reduction)
        factor = jnp.asarray(np.concatenate([factor, np.ones(part.new_order - factor.size)]))
        model = scaled(model, path, factor)
        if moments:
            state = scaled_moments(model, state, path, factor)
    return replace(result, model=model, optimizer_state=state)


def balanced(reduction: Reduction) -> np.ndarray:
    """States as balancing leaves them: coordinates along eigenvectors of unit length."""
    return np.linalg.norm(reduction.slot_map.vectors, axis=0)


def proportional(reduction: Reduction) -> np.ndarray:
    """‖b‖/sqrt(1-|λ|²) over ‖c‖ becomes the median of that ratio in the layer."""
    before, after = (
        np.linalg.norm(system.B, axis=1)
        / np.sqrt(1.0 - np.abs(system.eigenvalues) ** 2)
        / np.linalg.norm(system.C, axis=0)
        for system in (reduction.original, reduction.system)
    )
    return np.sqrt(np.median(before) / after)


FACTORS = {"balanced": balanced, "proportion": proportional}


def lru_paths(model: Any) -> list[Any]:
    """Where the LRU layers of a model of the demo are."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    return [path[:-1] for path in paths if getattr(path[-1], "name", None) == "nu_log"]


def scaled(tree: Any, layer: Any, factor: Any, power: int = 1) -> Any:
    """`tree` with states of the layer `factor` times as large, or their moments where power < 0."""

    def at(path: Any, leaf: Any) -> Any:
        name = getattr(path[-1], "name", None) if path else None
        if path[:-1] != layer or name not in (*B_NAMES, *C_NAMES):
            return leaf
        by = factor**power
        return (leaf * by[:, None] if name in B_NAMES else leaf / by).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(at, tree)


def scaled_moments(model: Any, opt_state: Any, layer: Any, factor: Any) -> Any:
    """∇(b s) = ∇b / s and ∇(c / s) = s ∇c; second moments take the squares."""
    structure = jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))

    def is_moments(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def moved(path: Any, node: Any) -> Any:
        if not is_moments(node):
            return node
        return scaled(node, layer, factor, -2 if getattr(path[-1], "name", "") == "nu" else -1)

    return jax.tree_util.tree_map_with_path(moved, opt_state, is_leaf=is_moments)
