"""Tell the host, from inside of a JAX program, what layers are given and how a loss depends on them.

`told` passes on what a layer puts out. On the way forward the host hears of the call, in the order of the
program; on the way back it hears the derivative, with the inputs that say whose it is. Both go through
``jit``, ``vmap``, ``scan`` and ``checkpoint``. Which layer it is, says a number among the arrays of the
program, so that layers may be stacked for a scan, and what was compiled for one batch serves the next.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from ssmreduce._array_libraries import HostArray
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.recording import Recorded


@dataclass(eq=False)
class Received:
    """What the host has received of one run of a model."""

    calls: dict[Path, list[Recorded]] = field(default_factory=dict)
    derivatives: list[tuple[Path, HostArray, HostArray]] = field(default_factory=list)

    def recorded(self) -> dict[Path, list[Recorded]]:
        """The calls of each layer, with the derivative of each."""
        # A loss may take derivatives of its own, which come before those of the loss.
        for path, inputs, squares in reversed(self.derivatives):
            calls = self.calls.get(path, [])
            waiting = [
                k
                for k, call in enumerate(calls)
                if call.squares is None and call.inputs.shape == inputs.shape
            ]
            if waiting:
                # The same inputs, or nearly where a program computes them twice.
                nearest = min(waiting, key=lambda k: _distance(calls[k].inputs, inputs))
                calls[nearest] = replace(calls[nearest], squares=squares)
        return self.calls


def _distance(one: HostArray, other: HostArray) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(one - other), initial=0.0))


_OPEN: dict[int, tuple[Received, LayerHandle]] = {}
"""What the number of a layer means while a model runs."""

_ONE_RUN = threading.RLock()
"""Messages of two runs at once would mix."""


@contextmanager
def numbered(received: Received, handles: Sequence[LayerHandle]) -> Iterator[list[jax.Array]]:
    """Numbers by which `told` knows the layers: small ones, which half precision holds, too."""
    with _ONE_RUN:
        numbers = range(len(_OPEN), len(_OPEN) + len(handles))
        try:
            _OPEN.update({k: (received, each) for k, each in zip(numbers, handles, strict=True)})
            yield [jnp.asarray(number, dtype=jnp.float32) for number in numbers]
            jax.effects_barrier()  # type: ignore[no-untyped-call]
        except BaseException:
            with suppress(Exception):  # nothing may arrive later; what failed is raised as it is
                jax.effects_barrier()  # type: ignore[no-untyped-call]
            raise
        finally:
            _PIECES.clear()
            for number in numbers:
                _OPEN.pop(number, None)


def told(number: jax.Array, inputs: jax.Array, output: jax.Array) -> jax.Array:
    """Return what a layer puts out, (..., L, p), for inputs (..., L, m), and tell the host of both."""
    numbers = jnp.broadcast_to(number, inputs.shape[:-2])
    _tell(*jax.lax.stop_gradient((numbers, inputs, output)))
    return _passed_on(numbers, inputs, output)


# --- On the host


_PIECES: list[HostArray] = []
"""What has arrived of a message; messages come one after the other."""


def _hear_piece(piece: jax.Array) -> None:
    _PIECES.append(np.array(piece))


def _hear(shapes: Sequence[tuple[int, ...]]) -> None:
    """End a message: numbers, inputs, and an output or the squares of its derivative, an axis less."""
    arrays = [_joined(shape) for shape in shapes]
    _PIECES.clear()
    numbers = np.rint(arrays[0].astype(np.float64)).ravel()
    flat = [each.reshape(numbers.size, *each.shape[arrays[0].ndim :]) for each in arrays[1:]]
    for number in dict.fromkeys(numbers.tolist()):
        if number not in _OPEN:
            continue
        received, handle = _OPEN[int(number)]
        inputs, other = (each[numbers == number] for each in flat)
        if other.ndim < inputs.ndim:
            received.derivatives.append((handle.path, inputs, other))
        else:
            computes_kernel = bool(handle.kind.ports(handle.weights)[0])
            call = Recorded(inputs, None if computes_kernel else other[0], None)
            received.calls.setdefault(handle.path, []).append(call)


def _joined(shape: tuple[int, ...]) -> HostArray:
    """The first array of a message, taken out of it; of half precision in single."""
    size = math.prod(shape)
    if not size:
        return np.zeros(shape)
    count = -(-size // _PIECES[0].size)
    array = np.concatenate(_PIECES[:count])[:size].reshape(shape)
    del _PIECES[:count]
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


# --- In the program


_PIECE = 2**15
"""Bytes that are told at once: JAX copies more than 100 kB in a thread that it may not have, and waits."""


@jax.jit
def _send(array: jax.Array) -> None:
    """Send an array in pieces, the last one filled up."""
    flat = array.ravel()
    size = max(1, min(flat.size, _PIECE // array.dtype.itemsize))
    pieces = jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)
    jax.lax.map(functools.partial(jax.debug.callback, _hear_piece, ordered=True), pieces)


@custom_vmap
def _tell(*arrays: jax.Array) -> tuple[()]:
    """Tell the host a message, in the order of the program; all sequences of a batch at once."""
    for array in arrays:
        _send(array)
    shapes = [array.shape for array in arrays]
    jax.debug.callback(functools.partial(_hear, shapes), ordered=True)
    return ()


@_tell.def_vmap
def _tell_batched(
    size: int, batched: Sequence[bool], *arrays: jax.Array
) -> tuple[tuple[()], tuple[()]]:
    every = [
        array if has_axis else jnp.broadcast_to(array, (size, *array.shape))
        for array, has_axis in zip(arrays, batched, strict=True)
    ]
    return _tell(*every), ()


@jax.custom_vjp
def _passed_on(numbers: jax.Array, inputs: jax.Array, output: jax.Array) -> jax.Array:
    """`output`. A derivative by `numbers` is zero, and leads through here on its way back."""
    return output


def _passed_forward(
    numbers: jax.Array, inputs: jax.Array, output: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # By itself again: a loss that has derivatives inside is differentiated through here.
    return _passed_on(numbers, inputs, output), (numbers, inputs)


def _passed_back(
    kept: tuple[jax.Array, jax.Array], derivative: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    numbers, inputs = kept
    sizes = jnp.abs(derivative)
    wide = jnp.promote_types(sizes.dtype, jnp.float32)  # squares underflow in half precision
    squares = jnp.mean(sizes.astype(wide) ** 2, axis=-1)
    _tell(*jax.lax.stop_gradient((numbers, inputs, squares)))
    return jnp.zeros_like(numbers), jnp.zeros_like(inputs), derivative


_passed_on.defvjp(_passed_forward, _passed_back)
