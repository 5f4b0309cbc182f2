"""Train some layers of an Equinox model, so that it puts out what another one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmreduce._array_libraries import is_array, to_host
from ssmreduce._checks import require_backend
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.pytree_recording import in_inference_mode
from ssmreduce.frameworks.pytree_stand_ins import part_at
from ssmreduce.frameworks.recording import pairs_of


def outputs(
    model: Any, forward: Callable[[Any, Any], Any], batches: Sequence[Any]
) -> list[list[jax.Array]]:
    """Return, for each batch, the floating-point arrays that `forward`, compiled, returns."""
    compiled, model = eqx.filter_jit(forward), in_inference_mode(model)
    return [_arrays(compiled(model, _traceable(batch))) for batch in batches]


def matched(
    model: Any,
    handles: Sequence[LayerHandle],
    forward: Callable[[Any, Any], Any],
    batches: Sequence[Any],
    targets: Sequence[list[jax.Array]],
    rates: Sequence[float],
) -> Any:
    """Return a copy of `model` in which the weights of the layers were trained.

    A step is compiled once for batches of one shape.
    """
    optax = require_backend("optax", extra="jax")  # which nothing else needs

    model = in_inference_mode(model)
    places = [
        (each.path, name)
        for each in handles
        for name, array in each.arrays.items()
        if jnp.issubdtype(array.dtype, jnp.inexact)
    ]

    def trained(model: Any) -> list[Any]:
        return [getattr(part_at(model, path), name) for path, name in places]

    def error(values: list[jax.Array], model: Any, batch: Any, target: list[jax.Array]) -> Any:
        model = eqx.tree_at(trained, model, values)
        pairs = pairs_of(_arrays(forward(model, batch)), target)
        return sum(jnp.mean(jnp.abs(own - other) ** 2) for own, other in pairs)

    values = [jnp.asarray(each) for each in trained(model)]
    # What keeps Adam from dividing by zero, in the coarsest type of the weights.
    tiny = (float(jnp.finfo(each.dtype).tiny) for each in values)  # type: ignore[no-untyped-call]
    adam = optax.adam(lambda step: jnp.asarray(rates)[step], eps=max(1e-8, *tiny))
    adam = optax.contrib.split_real_and_imaginary(adam)

    @eqx.filter_jit
    def updated(values: list[jax.Array], state: Any, *given: Any) -> tuple[Any, Any]:
        gradient = [jnp.conj(each) for each in jax.grad(error)(values, *given)]
        moves, state = adam.update(gradient, state)
        return optax.apply_updates(values, moves), state

    state = adam.init(values)
    for _, batch, target in zip(rates, cycle(batches), cycle(targets), strict=False):
        values, state = updated(values, state, model, _traceable(batch), target)
    return eqx.tree_at(trained, model, values)


def _traceable(batch: Any) -> Any:
    """A batch in JAX arrays, also where a loader makes others."""

    def as_jax(leaf: Any) -> Any:
        is_other = is_array(leaf) and not isinstance(leaf, jax.Array)
        return jnp.asarray(to_host(leaf)) if is_other else leaf

    return jax.tree.map(as_jax, batch)


def _arrays(output: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(output) if eqx.is_inexact_array(leaf)]
