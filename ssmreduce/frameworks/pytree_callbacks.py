"""Tell the host, from inside of a JAX program, what layers are given and how a loss depends on them.

`told` passes on what a layer puts out. On the way forward the host hears of the call, in the order of the
program; on the way back it hears the derivative, with the inputs that say whose it is. Both go through
``jit``, ``vmap``, ``scan`` and ``checkpoint``. Which layer it is, says a number among the arrays of the
program, so that layers may be stacked for a scan, and what was compiled for one batch serves the next.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from ssmreduce._array_libraries import HostArray
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.recording import Recorded


@dataclass(eq=False)
class _Call:
    """One call of one layer."""

    path: Path
    inputs: HostArray
    first_output: HostArray | None
    squares: HostArray | None = None


@dataclass(eq=False)
class Received:
    """What the host has received of one run of a model."""

    calls: list[_Call] = field(default_factory=list)
    derivatives: list[tuple[Path, HostArray, HostArray]] = field(default_factory=list)

    def recorded(self) -> dict[Path, list[Recorded]]:
        """The calls of each layer, with the derivative of each."""
        # A loss may take derivatives of its own, which come before those of the loss.
        for path, inputs, squares in reversed(self.derivatives):
            for call in self._calls_with(path, inputs)[:1]:
                call.squares = squares
        found: dict[Path, list[Recorded]] = {}
        for call in self.calls:
            own = Recorded(call.inputs, call.first_output, call.squares)
            found.setdefault(call.path, []).append(own)
        return found

    def _calls_with(self, path: Path, inputs: HostArray) -> list[_Call]:
        """Calls by how near their inputs are: the same, or nearly where a program computes them twice."""
        waiting = [
            call
            for call in self.calls
            if call.path == path and call.squares is None and call.inputs.shape == inputs.shape
        ]
        if len(waiting) < 2:
            return waiting
        with np.errstate(invalid="ignore"):
            return sorted(waiting, key=lambda call: float(np.max(np.abs(call.inputs - inputs))))


_OPEN: dict[int, tuple[Received, LayerHandle]] = {}
"""What the number of a layer means while a model runs."""

_ONE_RUN = threading.RLock()
"""Messages of two runs at once would mix."""


@contextmanager
def numbered(received: Received, handles: Sequence[LayerHandle]) -> Iterator[list[jax.Array]]:
    """Numbers by which `told` knows the layers: small ones, which half precision holds, too."""
    with _ONE_RUN:
        free = (number for number in itertools.count() if number not in _OPEN)
        numbers = list(itertools.islice(free, len(handles)))
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
    _tell_call(*jax.lax.stop_gradient((numbers, inputs, output)))
    return _passed_on(numbers, inputs, output)


def tell(number: jax.Array, inputs: jax.Array) -> None:
    """Tell the host of inputs alone."""
    numbers = jnp.broadcast_to(number, inputs.shape[:-2])
    _tell_call(*jax.lax.stop_gradient((numbers, inputs, inputs)))


# --- On the host


_PIECES: list[HostArray] = []
"""What has arrived of a message; messages come one after the other."""


def _hear_piece(piece: jax.Array) -> None:
    _PIECES.append(np.array(piece))


def _hear(is_call: bool, shapes: Sequence[tuple[int, ...]]) -> None:
    """End a message: numbers, inputs, and an output or the squares of its derivative."""
    arrays = [_joined(shape) for shape in shapes]
    _PIECES.clear()
    numbers = np.rint(arrays[0].astype(np.float64)).ravel()
    flat = [each.reshape(numbers.size, *each.shape[arrays[0].ndim :]) for each in arrays[1:]]
    for number in dict.fromkeys(numbers.tolist()):
        if number not in _OPEN:
            continue
        received, handle = _OPEN[int(number)]
        inputs, other = (each[numbers == number] for each in flat)
        if is_call:
            computes_kernel = bool(handle.kind.ports(handle.weights)[0])
            received.calls.append(_Call(handle.path, inputs, None if computes_kernel else other[0]))
        else:
            received.derivatives.append((handle.path, inputs, other))


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
    jax.lax.map(_send_piece, pieces)


def _send_piece(piece: jax.Array) -> tuple[()]:
    jax.debug.callback(_hear_piece, piece, ordered=True)
    return ()


def _tell(is_call: bool, *arrays: jax.Array) -> None:
    """Tell the host arrays, in the order of the program; all sequences of a batch at once."""
    for array in arrays:
        _send(array)
    shapes = [array.shape for array in arrays]
    jax.debug.callback(functools.partial(_hear, is_call, shapes), ordered=True)


@custom_vmap
def _tell_call(numbers: jax.Array, inputs: jax.Array, output: jax.Array) -> tuple[()]:
    _tell(True, numbers, inputs, output)
    return ()


@custom_vmap
def _tell_derivative(numbers: jax.Array, inputs: jax.Array, squares: jax.Array) -> tuple[()]:
    _tell(False, numbers, inputs, squares)
    return ()


@_tell_call.def_vmap
def _tell_calls(
    size: int, batched: Sequence[bool], *arrays: jax.Array
) -> tuple[tuple[()], tuple[()]]:
    return _tell_call(*_all_batched(size, batched, arrays)), ()


@_tell_derivative.def_vmap
def _tell_derivatives(
    size: int, batched: Sequence[bool], *arrays: jax.Array
) -> tuple[tuple[()], tuple[()]]:
    return _tell_derivative(*_all_batched(size, batched, arrays)), ()


def _all_batched(
    size: int, batched: Sequence[bool], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    return [
        array if has_axis else jnp.broadcast_to(array, (size, *array.shape))
        for array, has_axis in zip(arrays, batched, strict=True)
    ]


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
    _tell_derivative(*jax.lax.stop_gradient((numbers, inputs, squares)))
    return jnp.zeros_like(numbers), jnp.zeros_like(inputs), derivative


_passed_on.defvjp(_passed_forward, _passed_back)
