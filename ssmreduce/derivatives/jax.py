"""Derivative rules under JAX: grad, vmap and jit. Imported only once an array is a tracer.

JAX stores the conjugate of what the rules do for a complex array: dL/dRe z - i dL/dIm z. The work is
done on the host in a callback, where all leading axes, those of `vmap` included, are axes of a batch.
Where the value is one number per system its derivative is found together with it; otherwise the
value is evaluated again when the derivative is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce._array_libraries import HostArray, traced_on_device
from ssmreduce._array_routes import NoNativeRoute
from ssmreduce.derivatives.rule import Rule, on_host
from ssmreduce.systems.diagonal import System


class _Call(NamedTuple):
    """What is known when a function is traced: hashable, so that JAX can compare calls."""

    rule: Rule
    structure: Any
    shape: tuple[int, ...]
    dtype: Any
    scalar: bool
    native: Callable[[System], Any] | None

    def on_device(self, arrays: Any) -> Any:
        """The value where the arrays are; None where that cannot be."""
        if self.native is None or not traced_on_device():
            return None
        try:
            return self.native(jax.tree_util.tree_unflatten(self.structure, arrays))
        except NoNativeRoute:
            return None

    def on_host(self, arrays: Any) -> Any:
        system = jax.tree_util.tree_unflatten(self.structure, [np.asarray(x) for x in arrays])
        return on_host(self.rule, system)

    def value(self, *arrays: Any) -> HostArray:
        return np.asarray(self.on_host(arrays)[0], dtype=self.dtype)

    def gradients(self, cotangent: Any, *arrays: Any) -> tuple[HostArray, ...]:
        _, pullback = self.on_host(arrays)
        return _as_jax(pullback(np.asarray(cotangent).conj()), arrays)

    def value_and_gradients(self, *arrays: Any) -> tuple[HostArray, ...]:
        value, pullback = self.on_host(arrays)
        return np.asarray(value, dtype=self.dtype), *_as_jax(pullback(np.ones_like(value)), arrays)


def _as_jax(gradients: tuple[HostArray, ...], arrays: Any) -> tuple[HostArray, ...]:
    pairs = zip(gradients, arrays, strict=True)
    return tuple(gradient.conj().astype(array.dtype) for gradient, array in pairs)


_Shape: Any = jax.ShapeDtypeStruct

_callback = partial(jax.pure_callback, vmap_method="broadcast_all")


def apply(
    rule: Rule,
    system: System,
    shape: tuple[int, ...],
    *,
    is_complex: bool,
    native: Callable[[System], Any] | None = None,
) -> Any:
    """Value of `rule` as an array with a derivative."""
    leaves, structure = jax.tree_util.tree_flatten(system)
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    dtype: Any = jnp.result_type(*arrays)
    dtype = jnp.result_type(dtype, jnp.complex64) if is_complex else np.finfo(dtype).dtype
    call = _Call(rule, structure, (*system.batch_shape, *shape), np.dtype(dtype), not shape, native)
    return _apply(call, *arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(call: _Call, *arrays: Any) -> Any:
    value = call.on_device(arrays)
    if value is not None:
        return value
    return _callback(call.value, _Shape(call.shape, call.dtype), *arrays)


def _forward(call: _Call, *arrays: Any) -> Any:
    if not call.scalar:
        return _apply(call, *arrays), arrays
    kinds = (_Shape(call.shape, call.dtype), *_kinds(arrays))
    value, *gradients = _callback(call.value_and_gradients, kinds, *arrays)
    return value, tuple(gradients)


def _backward(call: _Call, saved: Any, cotangent: Any) -> Any:
    if not call.scalar:
        return _callback(call.gradients, _kinds(saved), cotangent, *saved)
    batch = len(call.shape)
    return tuple(
        cotangent.reshape(*cotangent.shape, *[1] * (gradient.ndim - batch)).astype(gradient.dtype)
        * gradient
        for gradient in saved
    )


_apply.defvjp(_forward, _backward)


def _kinds(arrays: Any) -> tuple[Any, ...]:
    return tuple(_Shape(array.shape, array.dtype) for array in arrays)


@jax.custom_jvp
def quadratic_form(rows: Any, X: Any) -> Any:
    """Return tr R X Rᵀ for a fixed real symmetric X: one product serves value and derivative."""
    return jnp.sum((rows @ X) * rows, axis=(-2, -1))


@quadratic_form.defjvp
def _quadratic_form_jvp(primals: Any, tangents: Any) -> Any:
    rows, X = primals
    product = rows @ X
    slope = 2.0 * jnp.sum(product * tangents[0], axis=(-2, -1))
    return jnp.sum(product * rows, axis=(-2, -1)), slope
