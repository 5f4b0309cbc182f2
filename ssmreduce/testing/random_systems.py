"""One stable system, or a batch of them, drawn by Hypothesis from checked options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import Array, HostArray, adjoint, to_double
from ssmreduce._checks import flag, is_int, is_number, is_one_of, require_backend, shown
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.testing.random_matrices import ENTRIES, NONZERO, OFFSETS, Numbers, real_pole
from ssmreduce.time_domain import Continuous, Discrete, TimeDomain, check_time

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

DTYPES = ("float64", "complex128", "float32", "complex64")

_ROUNDING = 64.0
"""c in the smallest margin c n eps: it leaves room for what rounding of A does to normal eigenvalues."""

_HIDDEN = {
    True: [(0, 0)],
    False: [(1, 0), (0, 1), (1, 1), (2, 1)],
    None: [(0, 0), (0, 0), (0, 0), (1, 0), (0, 1), (2, 1)],
}
"""How many states no input reaches and no output sees, by what `minimal` is."""

_Blocks = tuple[HostArray, HostArray, HostArray, HostArray]
"""A (or eigenvalues), B, C and D."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the public strategies take, checked; None stands for either."""

    diagonal: bool
    order: int | tuple[int, int]
    inputs: int | tuple[int, int]
    outputs: int | tuple[int, int]
    time: TimeDomain | None
    dtype: str | None
    batch_shape: tuple[int, ...]
    margin: float
    minimal: bool | None
    feedthrough: bool
    read_after_update: bool | None
    xp: Any
    device: Any
    departure: float = 0.0
    real_output: bool | None = False

    def __post_init__(self) -> None:
        if self.time is not None:
            check_time(self.time)
        for name in ("feedthrough", "minimal", "read_after_update", "real_output"):
            value = getattr(self, name)
            if value is not None or name == "feedthrough":
                object.__setattr__(self, name, flag(value, name))
        if self.dtype is not None and not is_one_of(self.dtype, DTYPES):
            raise ShapeError(
                f"`dtype` is {shown(self.dtype)}; expected one of {', '.join(DTYPES)}."
            )
        if self.minimal and self.real_output and np.dtype(self.dtype).kind != "c":
            raise ShapeError(
                f"`dtype` is {self.dtype!r}; expected a complex dtype, since real states have no "
                "imaginary part that the real system of order 2n could reach. Leave real_output False."
            )
        self._check_sizes()
        self._check_numbers()

    def _check_sizes(self) -> None:
        shape = self.batch_shape
        if not isinstance(shape, tuple) or not all(map(_is_count, shape)) or 0 in shape:
            raise ShapeError(
                f"`batch_shape` is {shown(shape)}; expected a tuple of positive ints. Try (2, 3), or ()."
            )
        for name in ("inputs", "outputs"):
            if self.range(name)[0] < 1:
                raise ArgumentError(
                    f"`{name}` is {shown(getattr(self, name))}; expected at least 1."
                )

    def _check_numbers(self) -> None:
        n = self.range("order")[1]
        least = _ROUNDING * max(n, 1) * float(np.finfo(self.dtype or "float64").eps)
        if not is_number(self.margin) or not least <= self.margin < 1.0:
            raise ArgumentError(
                f"`margin` is {shown(self.margin)}; expected a number from {least:.1e} (64 n eps) to below "
                "1. Nearer poles might be rounded over the boundary."
            )
        if not is_number(self.departure) or self.departure < 0.0:
            raise ArgumentError(
                f"`departure` is {shown(self.departure)}; expected a nonnegative finite number. Pass 0 for "
                "normal `A`."
            )

    def range(self, name: str) -> tuple[int, int]:
        """Least and largest number of states, inputs or outputs."""
        value = getattr(self, name)
        ends = value if isinstance(value, tuple) else (value, value)
        if len(ends) != 2 or not all(map(_is_count, ends)) or ends[0] > ends[1]:
            raise ArgumentError(
                f"`{name}` is {shown(value)}; expected an int or (least, most) with 0 <= least <= most. "
                "Try (1, 5)."
            )
        return ends


def _is_count(value: object) -> bool:
    return is_int(value) and value >= 0


@dataclass(frozen=True)
class _Common:
    """What all systems of a batch share."""

    n: int
    m: int
    p: int
    time: TimeDomain
    dtype: np.dtype[Any]
    real_output: bool


def strategy(options: Options) -> SearchStrategy[Any]:
    """Strategy for the systems of `options`."""
    st = require_backend("hypothesis", extra="testing").strategies
    return st.composite(_system)(st, options)  # type: ignore[no-any-return]


def _system(draw: Any, st: Any, options: Options) -> System:
    least, most = options.range("order")
    if options.minimal is False:  # one state too many leaves something over then
        least = max(least, min(most, 2))
    n = draw(st.integers(least, most))
    m, p = (draw(st.integers(*options.range(name))) for name in ("inputs", "outputs"))
    time = options.time
    if time is None:
        time = draw(st.sampled_from([Discrete(), Continuous()]))
    dtype = np.dtype(options.dtype or draw(st.sampled_from(DTYPES[:2])))
    real_output = options.real_output
    if real_output is None:
        real_output = draw(st.booleans()) and not (options.minimal and dtype.kind != "c")
    after = options.read_after_update
    if after is None:
        after = draw(st.booleans())
    after = after and isinstance(time, Discrete)
    common = _Common(n, m, p, time, dtype, real_output)
    singles = [_arrays(draw, st, options, common) for _ in range(math.prod(options.batch_shape))]
    A, B, C, D = (
        _placed(np.stack(column).reshape(*options.batch_shape, *column[0].shape), options)
        for column in zip(*singles, strict=True)
    )
    if not options.diagonal:
        return StateSpace(A, B, C, D, time=time, read_after_update=after)
    return DiagonalStateSpace(
        A, B, C, D, time=time, real_output=real_output, read_after_update=after
    )


def _arrays(draw: Any, st: Any, options: Options, common: _Common) -> _Blocks:
    """A, B, C and D of one system, in the dtype that was asked for."""
    n, m, p, is_complex = common.n, common.m, common.p, common.dtype.kind == "c"
    most_n, most_m, most_p = (options.range(x)[1] for x in ("order", "inputs", "outputs"))
    numbers = Numbers(lambda size: bytes(draw(st.binary(min_size=size, max_size=size))), most_n)
    minimal, discrete = bool(options.minimal), isinstance(common.time, Discrete)
    poles = numbers.poles(n, options.margin, discrete=discrete, distinct=minimal)
    if minimal and common.real_output:
        poles = numbers.off_the_axis(poles, options.margin, discrete=discrete)
    if not minimal and draw(st.sampled_from([False, False, True])):
        poles = poles[np.arange(n) // 2]
    table = NONZERO if minimal else ENTRIES
    B = numbers.matrix(table, (most_n, most_m), (n, m), is_complex)
    C = numbers.matrix(table, (most_p, most_n), (p, n), is_complex)
    D = np.zeros((p, m))
    if options.feedthrough:
        D = numbers.matrix(OFFSETS, (most_p, most_m), (p, m), is_complex and not common.real_output)
    if options.diagonal:
        A = poles if is_complex else real_pole(poles, discrete=discrete)
        _silence(draw, st, options.minimal, B, C, np.arange(n + 1))
    else:
        blocks = numbers.normal_form(poles, discrete=discrete, is_complex=is_complex)
        pairs = np.diagonal(blocks, -1) != 0.0
        starts = np.flatnonzero([*~np.append(False, pairs)[:n], True])
        _silence(draw, st, options.minimal, B, C, starts)
        H = numbers.reflection(n, is_complex)
        A = H @ blocks @ adjoint(H)
        if not minimal:
            # N may not couple the two states of a pair: that would move their poles.
            N = numbers.couplings(n, is_complex) * (
                ~np.diag(pairs, 1) * options.departure / max(n, 1)
            )
            coupled = H @ (blocks + N) @ adjoint(H)
            A = coupled if _keeps_margin(coupled.astype(common.dtype), options, common) else A
        B, C = H @ B, C @ adjoint(H)
    real = np.empty(0, common.dtype).real.dtype
    return (
        A.astype(common.dtype),
        B.astype(common.dtype),
        C.astype(common.dtype),
        D.astype(real if common.real_output else common.dtype),
    )


def _silence(
    draw: Any, st: Any, minimal: bool | None, B: HostArray, C: HostArray, starts: HostArray
) -> None:
    """Take away channels and states, from the last block on for B and the first for C.

    A is block upper triangular with blocks at `starts`: what has no input below reaches nothing above.
    """
    n = len(B)
    for channels in (B[:, 1:], C[1:].swapaxes(0, 1)):
        if draw(st.sampled_from([False, False, False, True])):
            channels[:, -1:] = 0.0
    unreachable, unobservable = draw(st.sampled_from(_HIDDEN[minimal]))
    limit = max(n - 1, 1) if minimal is False else max(n - 1, 0)
    unreachable = min(unreachable, limit)
    unobservable = min(unobservable, limit - unreachable)
    B[starts[starts <= n - unreachable].max() :] = 0.0
    C[:, : starts[starts >= unobservable].min()] = 0.0


def _keeps_margin(A: HostArray, options: Options, common: _Common) -> bool:
    poles = np.linalg.eigvals(to_double(A))
    return bool(np.all(common.time.inside(poles, options.margin / 2)))


def _placed(array: HostArray, options: Options) -> Array:
    """The array in the library and on the device that were asked for."""
    placed = options.xp.asarray(array)
    found = str(placed.dtype).rpartition(".")[2]
    if found != array.dtype.name:
        raise ShapeError(
            f"`dtype` is {array.dtype.name} but {options.xp.__name__} made {found} of it; expected "
            "a library with that dtype. For JAX set jax_enable_x64, or pass dtype='float32'."
        )
    return placed if options.device is None else array_api_compat.to_device(placed, options.device)
