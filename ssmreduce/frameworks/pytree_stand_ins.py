"""Copies of Equinox models whose layers tell the host what they are given.

A layer becomes an object of a class below its own, with the same fields, a number, and a call that tells. The
model's code runs as it is. A layer that computes a kernel is not given the sequence: the module around it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ssmreduce._checks import type_name
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.pytree_callbacks import told

_Own = Callable[[], Any]
"""The call of the module itself."""


def with_stand_ins(model: Any, handles: Sequence[LayerHandle], numbers: Sequence[jax.Array]) -> Any:
    """Return a copy of a model in which the layers tell what they are given.

    Raises
    ------
    UnsupportedLayerError
        If a layer is not called, or a module holds several kernels.
    """
    held: set[Path] = set()
    for handle, number in zip(handles, numbers, strict=True):
        if not isinstance(handle.layer, eqx.Module) or not callable(handle.layer):
            raise UnsupportedLayerError(
                f"layer `{handle.name}` is a {type_name(handle.layer)} without a call that tells what it is "
                "given; expected an Equinox module with __call__. Record what goes into it, and pass "
                "Calibration.of_inputs({name: inputs})."
            )
        channels, inputs, _ = handle.kind.ports(handle.weights)
        if not channels:
            model = _replaced(model, handle.path, _call_layer, number, inputs)
            continue
        path = _holder_of(model, handle)
        if path in held:
            raise UnsupportedLayerError(
                f"the module around layer `{handle.name}` holds two kernels; expected one, which is given "
                "what the module is given. Record what goes into each, and pass Calibration.of_inputs."
            )
        held.add(path)
        model = _with_kernel(model, handle, path, number, channels[0])
    return model


def part_at(tree: Any, path: Path) -> Any:
    """Return the object at a key path."""
    if not path:
        return tree
    inside = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return part_at(dict(inside)[path[:1]], path[1:])


def with_zero_outputs(model: Any, handles: Sequence[LayerHandle]) -> Iterator[Any]:
    """Copies of a model in which a module that holds all layers puts out zeros, the outermost one first."""
    first, *others = handles
    for end in range(len(first.path) + 1):
        path = first.path[:end]
        if any(each.path[:end] != path for each in others):
            return
        module = part_at(model, path)
        if isinstance(module, eqx.Module) and callable(module):
            yield _replaced(model, path, _call_for_zeros)


def _replaced(
    model: Any,
    path: Path,
    call: Callable[..., Any],
    number: jax.Array | None = None,
    width: int = 0,
) -> Any:
    """A copy of a model in which the module at a path has another call."""
    module = part_at(model, path)
    module_type: Any = type(module)
    new: Any = object.__new__(_class_below(module_type, call))
    vars(new).update(vars(module), ssmreduce_number=number, ssmreduce_width=width)
    return eqx.tree_at(lambda tree: part_at(tree, path), model, new) if path else new


@functools.cache
def _class_below(module_type: Any, call: Callable[..., Any]) -> type:
    """A class below that of a module: always the same, so that what is compiled for it serves again."""

    class StandIn(module_type):  # type: ignore[misc]
        ssmreduce_number: Any = None
        ssmreduce_width: int = eqx.field(static=True, default=0)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            own = functools.partial(module_type.__call__, self, *args, **kwargs)
            return call(self, own, _first_array((*args, *kwargs.values())))

    StandIn.__name__, StandIn.__qualname__ = module_type.__name__, module_type.__qualname__
    StandIn.__module__ = module_type.__module__
    return StandIn


def _call_for_zeros(module: Any, own: _Own, inputs: jax.Array | None) -> Any:
    return jax.tree.map(_zeros, own())


def _zeros(leaf: Any) -> Any:
    """Zeros for an array; a scalar stays, which may be the loss itself."""
    return jnp.zeros_like(leaf) if _is_inexact(leaf) and leaf.ndim else leaf


# --- Layers that are given the sequence


def _call_layer(layer: Any, own: _Own, inputs: jax.Array | None) -> Any:
    width = layer.ssmreduce_width
    if inputs is None or inputs.ndim < 2 or inputs.shape[-1] != width:
        raise _no_sequences(layer, inputs, f"(..., L, {width})")
    output = own()
    first = _first_part(output)
    if first is None or first.shape[:-1] != inputs.shape[:-1]:
        raise UnsupportedLayerError(
            f"a {type_name(layer)} puts out {_shown(first)} first for {_shown(inputs)}; expected a row for "
            "each step. Leave the layer out with options=CutOptions(exclude=...)."
        )
    return _with_part(output, first, told(layer.ssmreduce_number, inputs, first))


# --- Layers that compute a kernel


_CALLED: ContextVar[list[str]] = ContextVar("_CALLED")
"""What a module that holds a kernel has called so far: names of siblings, and "" for the kernel."""


def _holder_of(model: Any, handle: LayerHandle) -> Path:
    """The path of the innermost module around a kernel."""
    for end in reversed(range(len(handle.path))):
        module = part_at(model, handle.path[:end])
        if isinstance(module, eqx.Module) and callable(module):
            return handle.path[:end]
    raise UnsupportedLayerError(
        f"layer `{handle.name}` computes a kernel from no sequence; expected a module around it that is "
        "called with one. Pass that, or a model."
    )


def _with_kernel(model: Any, handle: LayerHandle, path: Path, number: jax.Array, width: int) -> Any:
    """A copy of a model in which the module around a kernel tells what it is given."""
    model = _replaced(model, handle.path, _call_kernel)
    for name, child in vars(part_at(model, path)).items():
        key = jax.tree_util.GetAttrKey(name)
        if isinstance(child, eqx.Module) and callable(child) and key != handle.path[len(path)]:
            model = _replaced(model, (*path, key), _call_sibling)
    return _replaced(model, path, _call_holder, number, width)


def _call_kernel(kernel: Any, own: _Own, inputs: jax.Array | None) -> Any:
    called = _CALLED.get([])
    called.append("")
    if called[0]:
        raise UnsupportedLayerError(
            f"a {type_name(kernel)} is used after a {called[0]} in the same module, so that its input is "
            "not what the module is given; expected the module's input. Record it yourself, and pass "
            "Calibration.of_inputs."
        )
    return own()


def _call_sibling(sibling: Any, own: _Own, inputs: jax.Array | None) -> Any:
    _CALLED.get([]).append(type(sibling).__name__)
    return own()


def _call_holder(module: Any, own: _Own, inputs: jax.Array | None) -> Any:
    """What the module puts out, where it has the shape of its input, stands for what the kernel does."""
    width, number = module.ssmreduce_width, module.ssmreduce_number
    if inputs is None or inputs.ndim < 2 or width not in inputs.shape[-2:]:
        raise _no_sequences(module, inputs, f"(..., L, {width}) or (..., {width}, L)")
    if inputs.shape[-1] == inputs.shape[-2]:
        raise UnsupportedLayerError(
            f"a {type_name(module)} has {width} channels and is given sequences of {width} steps, which no "
            "shape tells apart; expected other lengths. Calibrate with longer sequences."
        )
    axes = (-1, -2) if inputs.shape[-1] == width else (-2, -1)
    sequences = jnp.moveaxis(inputs, axes, (-1, -2))
    token = _CALLED.set([])
    try:
        output = own()
    finally:
        _CALLED.reset(token)
    first = _first_part(output)
    if first is None or first.shape != inputs.shape:
        told(number, sequences, sequences)  # the inputs alone: what comes out is not known
        return output
    passed_on = told(number, sequences, jnp.moveaxis(first, axes, (-1, -2)))
    return _with_part(output, first, jnp.moveaxis(passed_on, (-1, -2), axes))


# --- Arguments and outputs


def _first_array(parts: Sequence[Any]) -> jax.Array | None:
    return next(filter(_is_inexact, parts), None)


def _is_inexact(part: Any) -> bool:
    return isinstance(part, jax.Array | np.ndarray) and jnp.issubdtype(part.dtype, jnp.inexact)


def _first_part(output: Any) -> jax.Array | None:
    return _first_array(output if isinstance(output, tuple | list) else (output,))


def _with_part(output: Any, part: jax.Array, new: jax.Array) -> Any:
    """The output with another array in the place of one."""
    return jax.tree.map(
        lambda each: new if each is part else each, output, is_leaf=lambda node: node is not output
    )


def _no_sequences(module: Any, given: jax.Array | None, expected: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"a {type_name(module)} is given {_shown(given)}; expected sequences of shape {expected}. Record "
        "what goes into the layer yourself, and pass Calibration.of_inputs."
    )


def _shown(array: jax.Array | None) -> str:
    return "no array" if array is None else f"an array of shape {array.shape}"
