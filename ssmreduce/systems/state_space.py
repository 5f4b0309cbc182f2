"""`StateSpace`: a dense linear system, real or complex, continuous or discrete, with batch axes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import array_api_compat
import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import (
    DOUBLES,
    Array,
    HostArray,
    adjoint,
    device_of,
    is_array,
    namespace,
    product_of,
    to_double,
)
from ssmreduce._array_routes import any_library
from ssmreduce._poles import are_stable, poles_of
from ssmreduce._state_units import balance_states, balanced_matrix, in_units, parts_of
from ssmreduce._workers import naming_system
from ssmreduce.errors import NonFiniteError, ShapeError, UnstableSystemError
from ssmreduce.systems.linear_solve import singularity, solve_conditioned
from ssmreduce.systems.pytree import register_pytree, unchecked
from ssmreduce.time_domain import (
    TimeDomain,
    check_time,
)

_SUSPICIOUS = float(np.finfo(np.float64).eps) ** 0.5
"""Reciprocal condition of z I - A from which there may be a pole at z for all that rounding of A tells."""

_NUMBERS = (int, float, complex, np.number)


def checked_arrays(
    values: dict[str, Any], axes: int, *, real: bool
) -> tuple[Array, Array, Array, Array]:
    """State array, with `axes` axes, B, C and D as finite arrays that fit together.

    `values` holds them in this order. D that is None or the number 0 becomes zeros like B; real ones where
    `real`.
    """
    D = values["D"]
    missing = D is None or (isinstance(D, _NUMBERS) and D == 0)
    if missing:
        del values["D"]
    state, B, C, *given = _checks.floating_arrays(values, (axes, 2, 2, 2)[: len(values)])
    if not missing:
        D = given[0]
    else:
        # Zeros like B; NumPy arrays are the most common by far, and need no search for their library.
        shape = (*B.shape[:-2], C.shape[-2], B.shape[-1])
        if type(B) is np.ndarray:
            D = np.zeros(shape, (B.real if real else B).dtype)
        else:
            xp = array_api_compat.array_namespace(B)
            is_real = real and xp.isdtype(B.dtype, "complex floating")
            D = xp.zeros(shape, dtype=(xp.real(B) if is_real else B).dtype, device=device_of(B))
    name, n = next(iter(values)), state.shape[-1]
    if axes == 2 and state.shape[-2] != n:
        raise _checks.not_square(state)
    states = f"`A` is {n}x{n}" if axes == 2 else f"`{name}` has {n} entries"
    if B.shape[-2] != n:
        raise ShapeError(
            f"`B` has {B.shape[-2]} rows but {states}; expected `B` of shape (..., {n}, m)."
        )
    if C.shape[-1] != n:
        raise ShapeError(
            f"`C` has {C.shape[-1]} columns but {states}; expected `C` of shape (..., p, {n})."
        )
    if tuple(D.shape[-2:]) != (C.shape[-2], B.shape[-1]):
        raise ShapeError(
            f"`D` is {D.shape[-2]}x{D.shape[-1]} but `C` has {C.shape[-2]} rows and `B` has "
            f"{B.shape[-1]} columns; expected `D` of shape (..., {C.shape[-2]}, {B.shape[-1]})."
        )
    if state.ndim > axes or not B.ndim == C.ndim == D.ndim == 2:
        batches = {name: tuple(state.shape[: state.ndim - axes])}
        batches |= {key: tuple(x.shape[:-2]) for key, x in (("B", B), ("C", C), ("D", D))}
        _checks.matching_batches(batches)
    return state, B, C, D


def checked_margin(margin: float) -> float:
    """Return the margin of a question about stability as a float; negative ones widen the region."""
    return _checks.finite_number(margin, "margin", "0.0 or a distance from the stability boundary")


def check_index(index: object, batch_shape: tuple[int, ...]) -> None:
    """Raise `ShapeError` unless `index` takes systems out of a batch; beyond its ends is an IndexError."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if not (part is None or isinstance(part, slice) or _is_index(part)):
            raise ShapeError(
                f"`index` is {_checks.shown(index)}; expected ints, slices or arrays of ints, for the "
                f"batch axes {batch_shape}. Try system[0]."
            )


def _is_index(value: Any) -> bool:
    """Tell whether `value` is an int, a list of ints or bools, or an array of them of any library."""
    if _checks.is_int(value):
        return True
    if isinstance(value, list):
        try:
            value = np.asarray(value if value else [0])
        except ValueError:  # rows of uneven lengths
            return False
    if is_array(value):
        return bool(namespace(value).isdtype(value.dtype, ("bool", "integral")))
    return False


def no_steady_gain(time: TimeDomain, found: str) -> UnstableSystemError:
    """Return the error for a system with a pole where constant signals are."""
    point = f"{time.variable} = {time.steady_point:g}"
    return UnstableSystemError(
        f"`system` has a pole at {point} ({found}), so that a constant input has no constant output; "
        "expected a system without integrators. Look at system.poles()."
    )


def system_line(system: Any) -> str:
    """Sizes and options of a system; its leaves where, as in a tree of JAX, they have no sizes."""
    parts: dict[str, Any]
    try:
        parts = {name: getattr(system, name) for name in ("order", "inputs", "outputs")}
        if system.batch_shape:
            parts["batch_shape"] = system.batch_shape
    except (AttributeError, IndexError, TypeError):
        parts = {name: value for name, value in vars(system).items() if value is not system.time}
    parts["time"] = system.time
    options = ("real_output", "read_after_update")
    parts.update({name: True for name in options if getattr(system, name, False)})
    text = ", ".join(f"{name}={value!r}" for name, value in parts.items())
    return f"{type(system).__name__}({text})"


@dataclass(frozen=True, eq=False, repr=False)
class StateSpace:
    """Linear system x[k+1] = A x[k] + B u[k], y[k] = C x[k] + D u[k] (or x' = A x + B u).

    With ``read_after_update`` (what most neural layers do) the state is read after it was
    updated: x[k] = A x[k-1] + B u[k], y[k] = C x[k] + D u[k], with impulse response D + C B, C A B,
    C A^2 B, ...

    Parameters
    ----------
    A : (..., n, n) array
        State matrix, real or complex, of any array library; n = 0 is a static gain.
    B : (..., n, m) array
        Input matrix.
    C : (..., p, n) array
        Output matrix.
    D : (..., p, m) array, optional
        Feedthrough; zero if left out, or given as the number 0.
    time : Continuous or Discrete
        Time domain, required.
    read_after_update : bool
        Whether the output reads the state after its update; discrete time only.

    Raises
    ------
    ShapeError
        If sizes do not fit together; the message prints both.
    NonFiniteError
        If an array holds NaN or Inf.
    TimeDomainError
        If `time` is not a time domain.
    ArgumentError
        If `read_after_update` is not a bool.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> system = StateSpace([[0.5, 0.1], [0.0, 0.2]], [[1.0], [1.0]], [[1.0, 0.0]], time=Discrete())
    >>> system.order, system.inputs, system.outputs
    (2, 1, 1)
    """

    A: Array
    B: Array
    C: Array
    D: Array = None
    _: KW_ONLY
    time: TimeDomain
    read_after_update: bool = False

    real_output: ClassVar[bool] = False
    """As of a `DiagonalStateSpace`: the output is all of C x here."""

    state_field: ClassVar[str] = "A"
    """Name of the field of the state array.

    :meta private:
    """

    def __post_init__(self) -> None:
        given = {"A": self.A, "B": self.B, "C": self.C, "D": self.D}
        A, B, C, D = checked_arrays(given, 2, real=False)
        after = _checks.flag(self.read_after_update, "read_after_update")
        check_time(self.time, read_after_update=after)
        vars(self).update(A=A, B=B, C=C, D=D, read_after_update=after)
        register_pytree(type(self))

    def __repr__(self) -> str:
        return system_line(self)

    @property
    def order(self) -> int:
        """Number of states n."""
        return int(self.A.shape[-1])

    real_order = order
    """Number of states of Gramians: the order."""

    @property
    def inputs(self) -> int:
        """Number of inputs m."""
        return int(self.B.shape[-1])

    @property
    def outputs(self) -> int:
        """Number of outputs p."""
        return int(self.C.shape[-2])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes; () for a single system."""
        return tuple(self.A.shape[:-2])

    @any_library()
    def poles(self) -> HostArray:
        """Eigenvalues of A, shape (..., n).

        Raises
        ------
        NonFiniteError
            If they overflow.
        """
        poles = poles_of(to_double(self.A))
        if not np.all(np.isfinite(poles)):
            raise NonFiniteError(
                "the poles of `system` overflow; expected ones within the range of double precision. Scale "
                "`A`, or take another unit of time."
            )
        return poles

    @any_library()
    def is_stable(self, margin: float = 0.0) -> HostArray:
        """Whether all poles have |z| < 1 - margin (or Re s < -margin), shape (...).

        A static gain is stable. A pole counts as on the boundary if rounding cannot tell: if it is
        within 2 n eps ‖A‖_F times its condition number, and at most √eps ‖A‖_F. Norms are those of
        A in balanced units, and of each diagonal block where the states can be ordered so that A is
        block triangular. For the slowest poles of a stiff block the rounding of its inverse counts
        where that is less.

        Parameters
        ----------
        margin : float
            Distance from the stability boundary that is asked for; a negative one widens the
            region.

        Returns
        -------
        (...) bool array
            One for each system of a batch.

        Raises
        ------
        ArgumentError
            If `margin` is not a finite number.

        Examples
        --------
        >>> from ssmreduce import Discrete, StateSpace
        >>> system = StateSpace([[0.9]], [[1.0]], [[1.0]], time=Discrete())
        >>> bool(system.is_stable()), bool(system.is_stable(margin=0.2))
        (True, False)
        """
        return are_stable(to_double(self.A), self.time, checked_margin(margin))[()]

    @any_library()
    def dc_gain(self) -> HostArray:
        """Gain for constant inputs, D + C (z I - A)⁻¹ B at z = 1 (or s = 0), shape (..., p, m).

        Raises
        ------
        UnstableSystemError
            If z I - A is singular to working precision: an integrator has no such gain.
        NonFiniteError
            If the gain overflows.
        """
        host, shift = self.to_host(), self.time.steady_point * np.eye(self.order)
        gain = np.zeros(host.D.shape, dtype=np.result_type(host.A, host.B, host.C, host.D))
        for at in np.ndindex(self.batch_shape):
            single = in_balanced_units(host[at])
            shifted = shift - single.A
            states, conditioned = solve_conditioned(shifted, single.B)
            if conditioned < _SUSPICIOUS:
                single = in_balanced_units(host[at], exact=True)
                states, conditioned = _steady_states(single, shift - single.A)
            if conditioned < singularity(self.order):
                with naming_system(at):
                    raise no_steady_gain(self.time, f"reciprocal condition {conditioned:.1e}")
            with np.errstate(over="ignore", invalid="ignore"):
                gain[at] = single.D + single.C @ states
        return finite_gain(gain)

    def replace(self, **changes: Any) -> StateSpace:
        """Return the system with some arguments of the constructor changed, checked as there.

        Parameters
        ----------
        **changes : Any
            New arguments by name.
        """
        return replace(self, **changes)

    def ports(self) -> tuple[Array, Array]:
        """B and C for the states of Gramians: these two.

        :meta private:
        """
        return self.B, self.C

    def applied(self, X: Array) -> Array:
        """Return A X for states `X` of Gramians, shape (..., n, k).

        :meta private:
        """
        return self.A @ X

    def to_host(self) -> StateSpace:
        """Return the same system in NumPy arrays at double precision; itself if it is that already."""
        arrays = (self.A, self.B, self.C, self.D)
        if all(type(x) is np.ndarray and x.dtype in DOUBLES for x in arrays):
            return self
        A, B, C, D = map(to_double, (self.A, self.B, self.C, self.D))
        return self.replace(A=A, B=B, C=C, D=D)

    def to_dense(self) -> StateSpace:
        """Return the system itself: it is dense."""
        return self

    def to_standard(self) -> StateSpace:
        """Return the same input-output map read before the update: (A, B, C A, D + C B)."""
        if not self.read_after_update:
            return self
        C, D = product_of(self.C, self.A), self.D + product_of(self.C, self.B)
        return self.replace(C=C, D=D, read_after_update=False)

    def __getitem__(self, index: int | tuple[int, ...]) -> StateSpace:
        """Return one system of a batch."""
        check_index(index, self.batch_shape)
        if (len(index) if isinstance(index, tuple) else 1) > len(self.batch_shape):
            raise ShapeError(
                f"`system` has batch axes {self.batch_shape} but is indexed by {index}; expected at most "
                f"{len(self.batch_shape)} indices. For one channel take columns of B and D, rows of C and D."
            )
        at = (*index, ...) if isinstance(index, tuple) else (index, ...)
        return unchecked(self, A=self.A[at], B=self.B[at], C=self.C[at], D=self.D[at])


def finite_gain(gain: HostArray) -> HostArray:
    """Return a DC gain, or raise `NonFiniteError` where it overflows."""
    if not np.all(np.isfinite(gain)):
        raise NonFiniteError(
            "the DC gain of `system` overflows; expected one within the range of double precision. Scale "
            "`B` or `C`."
        )
    return gain


def _steady_states(system: StateSpace, shifted: HostArray) -> tuple[HostArray, float]:
    """(z I - A)⁻¹ B from part to part of A, and the least reciprocal condition of a part.

    It is 0.0 where there may be a pole at z. A part of order 1 is its own pole, without rounding.
    """
    order, parts = parts_of(system.A)
    states = np.zeros(system.B.shape, dtype=np.result_type(shifted, system.B))
    worst = 1.0
    for first, last in reversed(parts):
        at, later = order[first:last], order[last:]
        inside = np.ix_(at, at)
        with np.errstate(over="ignore", invalid="ignore"):
            driven = system.B[at] - shifted[np.ix_(at, later)] @ states[later]
            states[at], conditioned = _solve_part(
                shifted[inside], driven, system.A[inside], system.time
            )
        worst = min(worst, conditioned)
    return states, worst


def _solve_part(
    shifted: HostArray, driven: HostArray, A: HostArray, time: TimeDomain
) -> tuple[HostArray, float]:
    """The same for one part, which has no pole at z if it is stable; in units that balance it there."""
    if len(A) == 1:
        return (driven / shifted, 1.0) if shifted[0, 0] else (driven, 0.0)
    even, units = balanced_matrix(shifted)
    columns = units[:, None]
    states, conditioned = solve_conditioned(even, driven / columns)
    if conditioned < _SUSPICIOUS and not are_stable(A, time):
        inverse, _ = solve_conditioned(even, np.eye(len(A)))
        # Rounding of A by 2 n eps may make z I - A singular.
        growth = (np.abs(inverse) @ np.abs(in_units(A, units))).sum(axis=1).max(initial=0.0)
        if 2.0 * singularity(len(A)) * growth >= 1.0:
            conditioned = 0.0
    return states * columns, conditioned


def in_balanced_units(system: StateSpace, *, exact: bool = False) -> StateSpace:
    """A single system on the host in balanced units of its states, powers of two: nothing is rounded.

    What is computed from it depends on the units of the system no more than by rounding, and from that in
    `exact` units not at all; see `balance_states`. Ports that would overflow leave it as it is.
    """
    A, units = balance_states(system.A, system.B, system.C, exact=exact)
    if units is None:
        return system
    with np.errstate(over="ignore"):
        B, C = system.B / units, system.C * adjoint(units)
    if not (np.all(np.isfinite(B)) and np.all(np.isfinite(C))):
        return system
    return system.replace(A=A, B=B, C=C)
