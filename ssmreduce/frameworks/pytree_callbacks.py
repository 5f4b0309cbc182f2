"""Tell the host, from inside of a JAX program, what layers are given and how a loss depends on them.

`told` passes on what a layer puts out. On the way forward the host hears of the call, in the order of the
program; on the way back it hears the derivative, with the inputs that say whose it is. Both go through
``jit``, ``vmap``, ``scan`` and ``checkpoint``. Which layer it is, says a number among the arrays of the
program, so that layers may be stacked for a scan, and what was compiled for one batch serves the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from ssmreduce._namespace import HostArray
from ssmreduce.frameworks.framework import LayerHandle, Path
from ssmreduce.frameworks.recording import Recorded


@dataclass(eq=False)
class _Call:
    """One call of one layer."""

    path: Path
    inputs: HostArray
    first_output: HostArray | None
    squares: HostArray | None = None


@dataclass(eq=False)
class Heard:
    """What the host has heard of one run of a model."""

    calls: list[_Call] = field(default_factory=list)
    derivatives: list[tuple[Path, HostArray, HostArray]] = field(default_factory=list)

    def recorded(self) -> dict[Path, list[Recorded]]:
        """The calls of each layer, with the derivative of each."""
        for path, inputs, squares in self.derivatives:
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


_OPEN: dict[int, tuple[Heard, LayerHandle]] = {}
"""What the number of a layer means while a model runs."""


@contextmanager
def numbered(heard: Heard, handles: Sequence[LayerHandle]) -> Iterator[list[jax.Array]]:
    """Numbers by which `told` knows the layers: small ones, which half precision holds, too."""
    free = (number for number in itertools.count() if number not in _OPEN)
    numbers = list(itertools.islice(free, len(handles)))
    try:
        _OPEN.update({k: (heard, each) for k, each in zip(numbers, handles, strict=True)})
        yield [jnp.asarray(number, dtype=jnp.float32) for number in numbers]
        jax.effects_barrier()  # type: ignore[no-untyped-call]
    except BaseException:
        with suppress(Exception):  # nothing may arrive later; what failed is raised as it is
            jax.effects_barrier()  # type: ignore[no-untyped-call]
        raise
    finally:
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


def _rows(
    numbers: jax.Array, *arrays: jax.Array
) -> Iterator[tuple[Heard, LayerHandle, list[HostArray]]]:
    """The rows of arrays with the axes of `numbers` in front, by layer."""
    flat_numbers = np.rint(np.asarray(numbers, dtype=np.float64)).ravel()
    flat = [
        _host(array).reshape(flat_numbers.size, *array.shape[numbers.ndim :]) for array in arrays
    ]
    for number in dict.fromkeys(flat_numbers.tolist()):
        if number in _OPEN:
            yield *_OPEN[int(number)], [array[flat_numbers == number] for array in flat]


def _hear_call(numbers: jax.Array, inputs: jax.Array, output: jax.Array) -> None:
    for heard, handle, (given, found) in _rows(numbers, inputs, output):
        computes_kernel = bool(handle.kind.ports(handle.weights)[0])
        heard.calls.append(_Call(handle.path, given, None if computes_kernel else found[0]))


def _hear_derivative(numbers: jax.Array, inputs: jax.Array, squares: jax.Array) -> None:
    for heard, handle, (given, found) in _rows(numbers, inputs, squares):
        heard.derivatives.append((handle.path, given, found))


def _host(array: jax.Array) -> HostArray:
    """A copy, of half precision in single."""
    host: HostArray = np.array(array)
    return host.astype(np.float32) if host.dtype.itemsize < 4 else host


# --- In the program


@custom_vmap
def _tell_call(numbers: jax.Array, inputs: jax.Array, output: jax.Array) -> tuple[()]:
    jax.debug.callback(_hear_call, numbers, inputs, output, ordered=True)
    return ()


@custom_vmap
def _tell_derivative(numbers: jax.Array, inputs: jax.Array, squares: jax.Array) -> tuple[()]:
    jax.debug.callback(_hear_derivative, numbers, inputs, squares)
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
    return output, (numbers, inputs)


def _passed_back(
    kept: tuple[jax.Array, jax.Array], derivative: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    numbers, inputs = kept
    _tell_derivative(numbers, inputs, jnp.mean(jnp.abs(derivative) ** 2, axis=-1))
    return jnp.zeros_like(numbers), jnp.zeros_like(inputs), derivative


_passed_on.defvjp(_passed_forward, _passed_back)
