"""Train some layers of an Equinox model, so that it puts out what another one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmreduce._array_libraries import is_array, to_host
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.frameworks.pytree_paths import part_at
from ssmreduce.frameworks.pytree_recording import in_inference_mode
from ssmreduce.frameworks.recording import pairs_of

_State = tuple[list[jax.Array], list[jax.Array], list[jax.Array]]
"""Weights, first and second moments."""

_FIRST, _SECOND, _EPS = 0.9, 0.999, 1e-8
"""Adam's usual decay rates, and what keeps it from dividing by zero."""


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
    model, weights = in_inference_mode(model), _Weights(handles)

    def error(values: list[jax.Array], model: Any, batch: Any, target: list[jax.Array]) -> Any:
        pairs = pairs_of(_arrays(forward(weights.put(model, values), batch)), target)
        return sum(jnp.mean(jnp.abs(own - other) ** 2) for own, other in pairs)

    @eqx.filter_jit
    def updated(
        state: _State, step: jax.Array, rate: jax.Array, model: Any, batch: Any, target: Any
    ) -> _State:
        return _after_adam(state, jax.grad(error)(state[0], model, batch, target), step, rate)

    values = weights.of(model)
    state = values, [jnp.zeros_like(each) for each in values], [0.0 * each for each in values]
    for step, rate in enumerate(rates):
        batch, target = _traceable(batches[step % len(batches)]), targets[step % len(batches)]
        count = jnp.asarray(step + 1.0)
        state = updated(state, count, jnp.asarray(rate), model, batch, target)
    return weights.put(model, state[0])


def _after_adam(
    state: _State, gradient: list[jax.Array], step: jax.Array, rate: jax.Array
) -> _State:
    """Values and moments after one step."""
    values, first, second = state
    first = [_FIRST * m + (1 - _FIRST) * g for m, g in zip(first, gradient, strict=True)]
    second = [_SECOND * v + (1 - _SECOND) * g**2 for v, g in zip(second, gradient, strict=True)]
    moves = [
        m / (1 - _FIRST**step) / (jnp.sqrt(v / (1 - _SECOND**step)) + _epsilon(v))
        for m, v in zip(first, second, strict=True)
    ]
    new = [
        value - (rate * move).astype(value.dtype) for value, move in zip(values, moves, strict=True)
    ]
    return new, first, second


def _epsilon(moments: jax.Array) -> float:
    """What keeps Adam from dividing by zero, in the type of the moments."""
    return max(_EPS, float(jnp.finfo(moments.dtype).tiny))  # type: ignore[no-untyped-call]


class _Weights:
    """The weights of some layers; real and imaginary parts of complex ones apart."""

    def __init__(self, handles: Sequence[LayerHandle]) -> None:
        self._places = [
            (each, name)
            for each in handles
            for name, array in each.arrays.items()
            if jnp.issubdtype(array.dtype, jnp.inexact)
        ]

    def of(self, model: Any) -> list[jax.Array]:
        """Those in a model."""
        arrays = map(jnp.asarray, self._at(model))
        return [
            jnp.stack([array.real, array.imag]) if jnp.iscomplexobj(array) else array
            for array in arrays
        ]

    def put(self, model: Any, values: list[jax.Array]) -> Any:
        """A copy of a model with other ones."""
        new = [
            jax.lax.complex(value[0], value[1]) if jnp.iscomplexobj(old) else value
            for old, value in zip(self._at(model), values, strict=True)
        ]
        return eqx.tree_at(self._at, model, new)

    def _at(self, model: Any) -> list[Any]:
        return [getattr(part_at(model, each.path), name) for each, name in self._places]


def _traceable(batch: Any) -> Any:
    """A batch in JAX arrays, also where a loader makes others."""

    def as_jax(leaf: Any) -> Any:
        is_other = is_array(leaf) and not isinstance(leaf, jax.Array)
        return jnp.asarray(to_host(leaf)) if is_other else leaf

    return jax.tree.map(as_jax, batch)


def _arrays(output: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(output) if eqx.is_inexact_array(leaf)]
