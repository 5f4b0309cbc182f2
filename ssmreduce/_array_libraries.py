"""Array libraries: the one file that knows their names, where their arrays live, and what they lack.

What follows from these facts is decided here, or by a question asked here:

- Schur forms exist on the host alone: JAX has them for its CPU only (docs.jax.dev, jax.lax.linalg.schur:
  "Only implemented on CPU"), CuPy 14.2 and torch 2.13 not at all. Algorithms for other devices are
  built of products, QR, SVD and inverses, which all libraries have, for stacks of matrices too.
- No `eigh` on a device: batched it has returned the diagonal for eigenvalues in CuPy
  (cupy issue 4847, cuSOLVER's syevjBatched) and runs one matrix after the other in torch above n = 32
  (pytorch issue 175585). Squared singular values by `eigh` are a saving of the host.
- JAX holds 32-bit numbers unless told otherwise (``jax_enable_x64``), some devices have no others
  (torch on "mps"). Decisions about rank need double precision, so that such arrays are computed
  with on the host; under tracing there is no choice.
- Abstract values of JAX (`jit`, `vmap`, `grad`) have shapes and dtypes, and no entries to look at.

No framework is imported here: an array that came from one proves that it is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, overload

import array_api_compat
import numpy as np
from numpy.typing import NDArray

Array = Any
"""An array of any library that follows the array API."""

HostArray = NDArray[Any]
"""A NumPy array."""

namespace: Callable[..., Any] = array_api_compat.array_namespace
"""The functions of the library that all arrays given belong to, by their standard names."""

DOUBLES = (np.dtype(np.float64), np.dtype(np.complex128))
"""What `to_double` returns arrays of."""

State = tuple[Array, ...]
"""What an iteration carries from step to step."""


def as_array(value: object) -> Array:
    """Return `value` itself if it is an array of a known library, else ``numpy.asarray(value)``.

    Subclasses of NumPy's arrays have operators of their own, and are arrays of no known library.
    """
    plain = type(value) is np.ndarray or (is_array(value) and not isinstance(value, np.ndarray))
    return value if plain else np.asarray(value)


def is_array(value: object) -> bool:
    """Tell whether `value` is an array of a known library."""
    known: bool = array_api_compat.is_array_api_obj(value)
    return known and not isinstance(value, np.generic)


# --- Where an array lives, and what it is


def is_traced(array: Array) -> bool:
    """Tell whether `array` is an abstract JAX value, whose entries cannot be looked at."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def records_gradient(array: Array) -> bool:
    """Tell whether operations on `array` are recorded by torch for a later backward pass."""
    if not array_api_compat.is_torch_array(array):
        return False
    return bool(array.requires_grad and sys.modules["torch"].is_grad_enabled())


def in_host_memory(array: Array) -> bool:
    """Tell whether NumPy can read `array`, which is not an abstract value, where it is."""
    if isinstance(array, np.ndarray):
        return True
    if array_api_compat.is_torch_array(array):
        return bool(array.device.type == "cpu")
    if array_api_compat.is_jax_array(array):
        return all(device.platform == "cpu" for device in array.devices())
    if array_api_compat.is_cupy_array(array):
        return False
    return "cpu" in str(device_of(array)).lower()


def device_of(array: Array) -> Any:
    """Return the device of `array`; None, the default one, where it is traced."""
    return None if is_traced(array) else array_api_compat.device(array)


def described(array: Array) -> str:
    """Say for a message what `array` belongs to and where it lives."""
    library = type(array).__module__.split(".")[0].removesuffix("lib")
    if is_traced(array):
        return "a traced array of jax"
    return f"an array of {library} on {device_of(array)}"


def traced_on_device() -> bool:
    """Tell whether what JAX traces now will run on another device than the host, where it has one."""
    return bool(sys.modules["jax"].default_backend() != "cpu")


def has_doubles(array: Array) -> bool:
    """Tell whether the library of `array` keeps double precision on its device, as it is set up now."""
    if array_api_compat.is_jax_array(array):
        return bool(sys.modules["jax"].config.jax_enable_x64)
    if array_api_compat.is_torch_array(array):
        return bool(array.device.type != "mps")
    if isinstance(array, np.ndarray) or array_api_compat.is_cupy_array(array):
        return True
    kinds = namespace(array).__array_namespace_info__().dtypes(device=array.device)
    return "complex128" in kinds


def is_complex_array(array: Array) -> bool:
    """Tell whether `array`, of any library, has a complex dtype."""
    return bool(namespace(array).isdtype(array.dtype, "complex floating"))


# --- From one library to another


def to_host(array: Array) -> HostArray:
    """Copy or view `array` as a NumPy array; device arrays are moved."""
    if isinstance(array, np.ndarray):
        return array
    if array_api_compat.is_torch_array(array):
        array = array.detach().cpu().resolve_conj().resolve_neg()
        if array.dtype == sys.modules["torch"].bfloat16:  # unknown to NumPy
            array = array.float()
        return np.asarray(array.numpy())
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    if is_array(array) and not array_api_compat.is_jax_array(array) and not in_host_memory(array):
        # The made-up devices of array-api-strict.
        array = array.to_device(namespace(array).Device("CPU_DEVICE"))
    return np.asarray(array)


def to_double(array: Array) -> HostArray:
    """Copy or view `array` on the host as float64, or complex128 if it is complex."""
    host = array if type(array) is np.ndarray else to_host(array)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64, copy=False)


def from_host(host: HostArray, like: Array) -> Array:
    """Return `host` in the library and on the device of `like`, as precise as both can hold."""
    if array_api_compat.is_torch_array(like):
        torch = sys.modules["torch"]
        # A tensor takes neither negative strides nor memory that must not be written to.
        array = torch.from_numpy(np.require(host, requirements=["C", "W"]))
        return _single(array) if like.device.type == "mps" else array.to(like.device)
    if array_api_compat.is_jax_array(like):
        device = None if is_traced(like) else min(like.devices(), key=lambda device: device.id)
        return sys.modules["jax"].device_put(host, device)
    if array_api_compat.is_cupy_array(like):
        with like.device:
            return sys.modules["cupy"].asarray(host)
    if not has_doubles(like):
        host = _single(host)
    return namespace(like).asarray(host, device=like.device)


def in_library_of(array: Array, like: Array) -> Array:
    """Return `array` itself if it belongs to the library of `like`, else a copy there."""
    if is_traced(array) or (is_array(array) and namespace(array) is namespace(like)):
        return array
    return from_host(to_host(array), like)


def _single(array: Array) -> Array:
    """The same numbers in single precision, where they are double."""
    xp = namespace(array)
    if array.dtype == xp.complex128:
        return xp.astype(array, xp.complex64)
    return xp.astype(array, xp.float32) if array.dtype == xp.float64 else array


def common_precision(*arrays: Array) -> list[Array]:
    """The arrays in one dtype: the widest of theirs, in double precision where it can be had."""
    return _in_one_dtype(arrays, double=has_doubles(arrays[0]))


def common_dtype(*arrays: Array) -> list[Array]:
    """The arrays in one dtype: the widest of theirs, single precision at least."""
    xp = namespace(*arrays)
    return _in_one_dtype(arrays, double=any(x.dtype in (xp.float64, xp.complex128) for x in arrays))


def _in_one_dtype(arrays: tuple[Array, ...], *, double: bool) -> list[Array]:
    xp = namespace(*arrays)
    if any(map(is_complex_array, arrays)):
        dtype = xp.complex128 if double else xp.complex64
    else:
        dtype = xp.float64 if double else xp.float32
    return [xp.astype(x, dtype, copy=False) for x in arrays]


def array_eps(*arrays: Array) -> float:
    """The largest eps of the dtypes of `arrays`, each of any library; integers have none."""
    kinds = [(namespace(x), x.dtype) for x in arrays]
    floating = ("real floating", "complex floating")
    found = [float(xp.finfo(dtype).eps) for xp, dtype in kinds if xp.isdtype(dtype, floating)]
    return max(found, default=float(np.finfo(np.float64).eps))


def as_number(value: Array) -> Any:
    """A float or int; the array itself if it has axes, is traced, or records gradients."""
    if value.ndim or is_traced(value) or records_gradient(value):
        return value
    return int(value) if namespace(value).isdtype(value.dtype, "integral") else float(value)


def refuted(condition: Array) -> bool:
    """Whether `condition` is known not to hold everywhere: of a traced one nothing is known.

    Under `jit` what is computed from concrete arrays of JAX is traced too.
    """
    if isinstance(condition, np.ndarray | np.bool_):
        return not condition.all()
    return not is_traced(condition) and not bool(namespace(condition).all(condition))


# --- Operations that libraries name or do differently


@overload
def adjoint(matrix: HostArray) -> HostArray: ...
@overload
def adjoint(matrix: Array) -> Array: ...
def adjoint(matrix: Array) -> Array:
    """Conjugate transpose of the last two axes (a view if `matrix` is a real one of NumPy)."""
    if isinstance(matrix, np.ndarray):
        transposed = matrix.swapaxes(-1, -2)
        return transposed.conj() if matrix.dtype.kind == "c" else transposed
    return conjugate(namespace(matrix).moveaxis(matrix, -1, -2))


def conjugate(array: Array) -> Array:
    """Complex conjugate; a real array itself."""
    return namespace(array).conj(array) if is_complex_array(array) else array


def real_part(array: Array) -> Array:
    """Real part; a real array itself."""
    return namespace(array).real(array) if is_complex_array(array) else array


def imaginary_part(array: Array) -> Array:
    """Imaginary part; zeros of a real array."""
    xp = namespace(array)
    return xp.imag(array) if is_complex_array(array) else xp.zeros_like(array)


def product_of(left: Array, right: Array) -> Array:
    """Return ``left @ right``; torch, left alone, multiplies matrices of one dtype only."""
    if array_api_compat.is_torch_array(left) and array_api_compat.is_torch_array(right):
        return namespace(left).matmul(left, right)
    return left @ right


def triangular_factor(matrix: Array) -> Array:
    """Return R of the QR decomposition of a stack of matrices, without Q where that can be left out."""
    if isinstance(matrix, np.ndarray):
        return np.linalg.qr(matrix, mode="r")
    if array_api_compat.is_torch_array(matrix):
        # torch has no derivative of R without Q.
        mode = "reduced" if records_gradient(matrix) else "r"
        return sys.modules["torch"].linalg.qr(matrix, mode=mode)[1]
    if array_api_compat.is_cupy_array(matrix):
        return sys.modules["cupy"].linalg.qr(matrix, mode="r")
    if array_api_compat.is_jax_array(matrix):
        return sys.modules["jax"].numpy.linalg.qr(matrix, mode="r")
    return namespace(matrix).linalg.qr(matrix, mode="reduced")[1]


def linear_algebra_errors() -> tuple[type[Exception], ...]:
    """Exceptions that a decomposition or an inverse may raise, in the libraries that are loaded."""
    errors: list[type[Exception]] = [np.linalg.LinAlgError]
    if "torch" in sys.modules:
        errors.append(sys.modules["torch"].linalg.LinAlgError)
    return tuple(errors)


def repeat_until(
    step: Callable[[State], tuple[Array, State]], state: State, limit: int
) -> tuple[State, int | None]:
    """Apply ``step(state) -> (finished, state)`` until it is finished, or `limit` times.

    Traced steps become a loop of the library once the shapes of the state stay as they are.

    Returns
    -------
    state : tuple of arrays
        After the last step.
    count : int or None
        Steps taken; None where they are traced.
    """
    for count in range(1, limit + 1):
        finished, following = step(state)
        if is_traced(finished):
            if [x.shape for x in state] == [x.shape for x in following]:
                return _traced_loop(step, finished, following, limit - count), None
        elif bool(finished):
            return following, count
        state = following
    return state, limit if not is_traced(state[0]) else None


def _traced_loop(
    step: Callable[[State], tuple[Array, State]], finished: Array, state: State, limit: int
) -> State:
    def advance(carry: tuple[int, Array, State]) -> tuple[int, Array, State]:
        return (carry[0] + 1, *step(carry[2]))

    loop = sys.modules["jax"].lax.while_loop
    result: State = loop(lambda c: (c[0] < limit) & ~c[1], advance, (0, finished, state))[2]
    return result


def collect_columns(
    step: Callable[[State], tuple[State, Array]], state: State, count: int
) -> Array:
    """Apply ``step(state) -> (state, column)`` `count` times; the columns as the last axis."""
    if any(is_traced(x) for x in state):
        scan = sys.modules["jax"].lax.scan
        columns = scan(lambda carry, _: step(carry), state, length=count)[1]
        return namespace(columns).moveaxis(columns, 0, -1)
    found = []
    for _ in range(count):
        state, column = step(state)
        found.append(column)
    return namespace(*found).stack(found, axis=-1)
