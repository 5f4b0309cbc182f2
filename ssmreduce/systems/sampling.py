"""Between continuous and discrete time: zero-order hold and bilinear map, both ways.

Zero-order hold, exact for inputs that are constant between samples:

    A_d = exp(A dt),  B_d = ∫₀^dt exp(A s) ds B,  C_d = C,  D_d = D.

Bilinear (Tustin) map s = α (z - 1)/(z + 1) with α = 2/dt, in the coordinates that keep both Gramians and
with them all Hankel singular values (and H∞ norms):

    A_d = (α + A)(α - A)⁻¹,  B_d = √(2α) (α - A)⁻¹ B,  C_d = √(2α) C (α - A)⁻¹,  D_d = D + C (α - A)⁻¹ B.

Diagonal systems stay diagonal, in closed form, and keep log λ_d = dt λ or 2 artanh(λ/α): 1 - |λ_d|² then
has full relative accuracy however close to the boundary the pole is. Dense ones cost O(n³).
Going back takes the principal logarithm, the only one with all frequencies below Nyquist, π/dt; where
there is none (pole at 0 or on the negative real axis) the system is refused, as is a pole that the bilinear
map sends to infinity. Digits are lost in the logarithm where a pole is close to 0 or to that axis.

The exponential and its integral are those of `ssmreduce.systems.time_step`.

References: Al-Mohy and Higham, Improved inverse scaling and squaring algorithms for the matrix logarithm,
SIAM J. Sci. Comput. 34 (2012); Glover, All optimal Hankel-norm approximations, Int. J. Control 39 (1984).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import numpy as np
import scipy.linalg

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._checks import is_one_of, shown
from ssmreduce._poles import poles_of
from ssmreduce._state_units import balanced_matrix, in_units
from ssmreduce._workers import naming_system
from ssmreduce.errors import NoConvergenceError, NonFiniteError, ShapeError, TimeDomainError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.linear_solve import singularity, solve_conditioned
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.time_step import (
    checked_range,
    dense_steps,
    diagonal_step,
    exponential_integral,
)
from ssmreduce.time_domain import Continuous, Discrete

Method = Literal["zoh", "bilinear"]
AnySystem = TypeVar("AnySystem", bound=System)
When = TypeVar("When", Discrete, float)

_EPS = float(np.finfo(np.float64).eps)

_LOGARITHM = 1e4
"""c in the tolerance c·n·ε for exp(log A) against A: four digits beyond what rounding alone takes."""

_ON_POINT = 4.0
"""c in |z + 1| ≤ c·ε: exp(iπ) from rounded logarithms misses -1 by about one ε."""


@any_library()
def to_discrete(system: AnySystem, dt: float, method: Method = "zoh") -> AnySystem:
    """Sample a continuous system: A_d = exp(A dt) (zero-order hold) or (α + A)(α - A)⁻¹, α = 2/dt.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Continuous, also with batch axes; stable or not.
    dt : float
        Sampling time in seconds.
    method : {"zoh", "bilinear"}
        ``"zoh"`` is exact for inputs that are constant between samples; ``"bilinear"`` keeps
        Gramians, Hankel singular values and H∞ norm (with the gain √(2α) split between B and C).

    Returns
    -------
    StateSpace or DiagonalStateSpace
        Of the same class, order and realness, with ``time=Discrete(dt)``.

    Raises
    ------
    TimeDomainError
        If the system is discrete, `dt` is not a positive number, or a pole lies at 2/dt (bilinear).
    ShapeError
        If `method` is neither of the two.
    NonFiniteError
        If an entry of the result overflows.
    NoConvergenceError
        If A is so stiff that rounding spoils the outputs, and has more than 24 states or would take
        more than about 10 s in the integer arithmetic that is used up to 24.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n) for diagonal systems, which keep their logarithms, and O(n³) for dense ones. Bilinear
    with real stored eigenvalues below -2/dt keeps no logarithms: those would be complex.

    References
    ----------
    Higham, SIAM J. Matrix Anal. Appl. 26 (2005), for the matrix exponential; Glover, Int. J.
    Control 39 (1984), for the bilinear map of Gramians.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.systems.sampling import to_discrete
    >>> lag = StateSpace([[-1.0]], [[1.0]], [[1.0]], time=Continuous())
    >>> sampled = to_discrete(lag, 0.1)
    >>> bool(abs(sampled.A[0, 0] - np.exp(-0.1)) < 1e-16), sampled.time
    (True, Discrete(dt=0.1))
    """
    check_system(system)
    _check_method(method)
    if not isinstance(system.time, Continuous):
        raise TimeDomainError(
            f"`system` has time {system.time!r}; expected a continuous system. "
            "To change a sampling time go through to_continuous."
        )
    time = Discrete(dt)
    if isinstance(system, DiagonalStateSpace):
        sample = _sample_diagonal if method == "zoh" else _map_diagonal
        return cast(AnySystem, _converted(sample, system.to_host(), time))
    host = system.to_host()
    sample_dense = _sample_dense if method == "zoh" else _map_dense
    return cast(AnySystem, _converted(sample_dense, host, time))


@any_library()
def to_continuous(system: AnySystem, method: Method = "zoh") -> AnySystem:
    """The continuous system that `to_discrete` samples to this one: A = log(A_d)/dt, or bilinear.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Discrete, also with batch axes; one that reads after its update is brought to the standard
        form first, so that its feedthrough becomes D + C B.
    method : {"zoh", "bilinear"}
        As in `to_discrete`.

    Returns
    -------
    StateSpace or DiagonalStateSpace
        Of the same class, order and realness, with ``time=Continuous()``.

    Raises
    ------
    TimeDomainError
        If the system is continuous, or has a pole that no continuous pole is sampled to: at 0 or on
        the negative real axis (``"zoh"``), at -1 (``"bilinear"``).
    ShapeError
        If `method` is neither of the two.
    NonFiniteError
        If an entry of the result overflows.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n) for diagonal systems and O(n³) for dense ones. The principal logarithm is taken, also
    of stored logarithms: frequencies come out in (-π/dt, π/dt).

    References
    ----------
    Al-Mohy and Higham, SIAM J. Sci. Comput. 34 (2012), for the matrix logarithm.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.systems.sampling import to_continuous
    >>> lag = StateSpace([[0.5]], [[0.5]], [[1.0]], time=Discrete(0.1))
    >>> to_continuous(lag).poles().round(4).tolist(), to_continuous(lag).dc_gain().tolist()
    ([-6.9315], [[1.0]])
    """
    check_system(system)
    _check_method(method)
    if not isinstance(system.time, Discrete):
        raise TimeDomainError("`system` is continuous already; expected a discrete system.")
    dt = system.time.dt
    standard = system.to_host().to_standard()
    if isinstance(standard, DiagonalStateSpace):
        back = _unsample_diagonal if method == "zoh" else _unmap_diagonal
        return cast(AnySystem, _converted(back, standard, dt))
    back_dense = _unsample_dense if method == "zoh" else _unmap_dense
    return cast(AnySystem, _converted(back_dense, standard, dt))


def _converted(convert: Callable[[Any, When], System], host: System, time: When) -> System:
    """Return ``convert(host, time)``; an error says which system of a batch it is about."""
    try:
        return convert(host, time)
    except (TimeDomainError, NonFiniteError):
        if host.batch_shape:
            for at in np.ndindex(host.batch_shape):
                with naming_system(at):
                    convert(host[at], time)
        raise


def _check_method(method: str) -> None:
    if not is_one_of(method, ("zoh", "bilinear")):
        raise ShapeError(
            f"`method` is {shown(method)}; expected 'zoh' or 'bilinear'. Use 'zoh' for sampled inputs, "
            "'bilinear' to carry a reduction from one time domain to the other."
        )


def _unmappable(found: str, method: str, remedy: str) -> TimeDomainError:
    return TimeDomainError(
        f"`system` has a pole at {found}, which method={method!r} has no image for; expected none "
        f"there. {remedy}"
    )


def _sampled_range(dt: float, *arrays: HostArray) -> None:
    """Raise `NonFiniteError` if an entry of the sampled system overflows."""
    for array in arrays:
        checked_range(
            array,
            f"`dt` is {dt:g}, with which the sampled system",
            "Take a shorter step, or look at system.poles().",
        )


def _continuous_range(dt: float, *arrays: HostArray) -> None:
    """Raise `NonFiniteError` if an entry of the continuous system overflows."""
    for array in arrays:
        checked_range(
            array,
            f"`system` has dt={dt:g}, with which its continuous system",
            "Take another unit of time.",
        )


# --- Zero-order hold


def _sample_dense(host: StateSpace, time: Discrete) -> StateSpace:
    count = math.prod(host.batch_shape)
    stacked = [x.reshape(count, *x.shape[-2:]) for x in (host.A, host.B)]
    step = dense_steps(stacked[0], stacked[1], np.array([time.dt]), host.C)
    _sampled_range(time.dt, step.power, step.constant)
    A, B = step.power.reshape(host.A.shape), step.constant.reshape(host.B.shape)
    return host.replace(A=A, B=B, time=time)


def _sample_diagonal(host: DiagonalStateSpace, time: Discrete) -> DiagonalStateSpace:
    with np.errstate(over="ignore", invalid="ignore"):
        logarithms = host.eigenvalues * time.dt
    step = diagonal_step(host.eigenvalues, host.B, time.dt)
    _sampled_range(time.dt, logarithms, step.power, step.constant)
    return host.replace(log_eigenvalues=logarithms, B=step.constant, time=time)


def _unsample_diagonal(host: DiagonalStateSpace, dt: float) -> DiagonalStateSpace:
    if host.log_eigenvalues is not None:
        logarithms = host.log_eigenvalues.astype(np.complex128)
    elif np.any(host.eigenvalues == 0.0):
        raise _no_logarithm("z = 0")
    else:
        logarithms = np.log(host.eigenvalues.astype(np.complex128))
    turns = np.round(logarithms.imag / (2.0 * np.pi))
    logarithms = logarithms - 2j * np.pi * turns
    nyquist = np.pi - np.abs(logarithms.imag) <= _ON_POINT * _EPS * np.pi * (1.0 + np.abs(turns))
    if np.any(nyquist):
        raise _no_logarithm(f"z = {host.eigenvalues[nyquist][0].real:.6g}")
    if not np.iscomplexobj(host.eigenvalues):
        logarithms = logarithms.real
    with np.errstate(over="ignore", invalid="ignore"):
        poles = logarithms / dt
        B = host.B / exponential_integral(logarithms)[..., :, None] / dt
    _continuous_range(dt, poles, B)
    return host.replace(eigenvalues=poles, B=B, time=Continuous())


def _unsample_dense(host: StateSpace, dt: float) -> StateSpace:
    n = host.order
    A = np.zeros(host.A.shape, host.A.dtype)
    B = np.zeros(host.B.shape, np.result_type(host.A, host.B))
    for at in np.ndindex(host.batch_shape):
        even, units = balanced_matrix(host.A[at])
        with naming_system(at):
            logarithm = _principal_logarithm(even)
        step = dense_steps(logarithm[None], np.eye(n)[None], np.ones(1))
        with np.errstate(over="ignore", invalid="ignore"):
            missed = np.abs(step.power[0] - even).max(initial=0.0)
        if not missed <= _LOGARITHM * singularity(n) * np.abs(even).max(initial=0.0):
            raise TimeDomainError(
                f"`system` has poles so close to zero or to the negative real axis that exp(log A) "
                f"misses A by {missed:.1e}; expected a system sampled faster. Try "
                "method='bilinear'."
            )
        driven, _ = solve_conditioned(step.constant[0], host.B[at] / units[:, None])
        with np.errstate(over="ignore", invalid="ignore"):
            A[at] = logarithm / dt * units[:, None] / units
            B[at] = driven / dt * units[:, None]
    _continuous_range(dt, A, B)
    return host.replace(A=A, B=B, time=Continuous())


def _principal_logarithm(matrix: HostArray) -> HostArray:
    n = len(matrix)
    if n == 0:
        return matrix
    _, conditioned = solve_conditioned(matrix, np.zeros((n, 0)))
    if conditioned < singularity(n):
        raise _no_logarithm(f"z = 0 (reciprocal condition {conditioned:.1e})")
    poles = poles_of(matrix)
    # Real arithmetic finds real poles exactly real; complex arithmetic misses the axis by rounding.
    width = singularity(n) * np.abs(poles).max() if np.iscomplexobj(matrix) else 0.0
    on_axis = (poles.real < 0.0) & (np.abs(poles.imag) <= width)
    if np.any(on_axis):
        raise _no_logarithm(f"z = {poles[on_axis][0].real:.6g}")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # its residual is checked by the caller
        try:
            logarithm = scipy.linalg.logm(matrix)
        except Exception as error:  # SciPy raises this very class where a triangle overflows
            raise NoConvergenceError(
                f"the logarithm of `A` could not be computed ({error}); expected poles of moderate size. "
                "Try method='bilinear'."
            ) from error
    return np.asarray(logarithm if np.iscomplexobj(matrix) else logarithm.real)


def _no_logarithm(found: str) -> TimeDomainError:
    return _unmappable(found, "zoh", "Try method='bilinear', or stay in discrete time.")


# --- Bilinear map, in units of time in which X = A dt/2


def _map_dense(host: StateSpace, time: Discrete) -> StateSpace:
    even, units = _evened(host.A)
    half, size = 0.5 * time.dt, np.abs(even.real).max(initial=0.0)
    size = max(size, np.abs(even.imag).max(initial=0.0))
    # A power of two that takes 1 - X and 1 + X into the range where X alone would overflow.
    shift = max(0, math.frexp(size)[1] + math.frexp(half)[1])
    unit, half = math.ldexp(1.0, -shift), math.ldexp(half, -shift)
    eye, X = unit * np.eye(host.order), half * even
    point = f"s = 2/dt = {2.0 / time.dt:.6g}"
    arrays = _mapped(host, units, (eye - X, eye + X), math.sqrt(time.dt) * unit, half, point)
    _sampled_range(time.dt, *arrays)
    return StateSpace(*arrays, time=time)


def _unmap_dense(host: StateSpace, dt: float) -> StateSpace:
    eye, (even, units) = np.eye(host.order), _evened(host.A)
    parts = (eye + even, even - eye)
    A, B, C, D = _mapped(host, units, parts, 2.0 / math.sqrt(dt), -1.0, "z = -1")
    with np.errstate(over="ignore", invalid="ignore"):
        A = 2.0 * A / dt
    _continuous_range(dt, A, B, C, D)
    return StateSpace(A, B, C, D, time=Continuous())


def _evened(A: HostArray) -> tuple[HostArray, HostArray]:
    """S⁻¹ A S and the diagonals of S, for each of a batch."""
    even, units = np.empty_like(A), np.ones(A.shape[:-1])
    for at in np.ndindex(A.shape[:-2]):
        even[at], units[at] = balanced_matrix(A[at])
    return even, units


def _mapped(
    host: StateSpace,
    units: HostArray,
    parts: tuple[HostArray, HostArray],
    gain: float,
    weight: float,
    point: str,
) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """(M⁻¹ N, g M⁻¹ B, g C M⁻¹, D + w C M⁻¹ B), from M and N in units that balance A.

    `point` is the pole for which M is singular.
    """
    A = np.zeros(host.A.shape, dtype=host.A.dtype)
    B = np.zeros(host.B.shape, dtype=np.result_type(host.A, host.B))
    C = np.zeros(host.C.shape, dtype=np.result_type(host.A, host.C))
    D = np.zeros(host.D.shape, dtype=np.result_type(A, B, C, host.D))
    for at in np.ndindex(host.batch_shape):
        M, N, unit = parts[0][at], parts[1][at], units[at]
        with np.errstate(over="ignore", invalid="ignore"):
            inputs, outputs = host.B[at] / unit[:, None], host.C[at] * unit
        found, conditioned = solve_conditioned(M, np.concatenate([N, inputs], axis=-1))
        if conditioned < singularity(host.order):
            raise _unmappable(point, "bilinear", "Try method='zoh', or another sampling time.")
        moved, states = np.split(found, [host.order], axis=-1)
        rows = adjoint(solve_conditioned(adjoint(M), adjoint(outputs))[0])
        with np.errstate(over="ignore", invalid="ignore"):
            A[at] = in_units(moved if np.iscomplexobj(A) else moved.real, 1.0 / unit)
            B[at], C[at] = gain * states * unit[:, None], gain * rows / unit
            D[at] = host.D[at] + weight * (outputs @ states)
    return A, B, C, D


def _map_diagonal(host: DiagonalStateSpace, time: Discrete) -> DiagonalStateSpace:
    half = 0.5 * time.dt
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = host.eigenvalues * half
    _sampled_range(time.dt, ratio)
    if np.any(np.abs(1.0 - ratio) <= _ON_POINT * _EPS):
        point = f"s = 2/dt = {2.0 / time.dt:.6g}"
        raise _unmappable(point, "bilinear", "Take another sampling time.")
    B, C, D = _weighed(host, 1.0 / (1.0 - ratio), math.sqrt(time.dt), half)
    _sampled_range(time.dt, B, C, D)
    with_logarithm = np.iscomplexobj(ratio) or np.all(np.abs(ratio) < 1.0)
    if with_logarithm and not np.any(ratio == -1.0):
        return host.replace(log_eigenvalues=2.0 * np.arctanh(ratio), B=B, C=C, D=D, time=time)
    return host.replace(eigenvalues=(1.0 + ratio) / (1.0 - ratio), B=B, C=C, D=D, time=time)


def _unmap_diagonal(host: DiagonalStateSpace, dt: float) -> DiagonalStateSpace:
    divisor = 1.0 + host.eigenvalues
    if np.any(np.abs(divisor) <= _ON_POINT * _EPS):
        raise _unmappable("z = -1", "bilinear", "Stay in discrete time.")
    with np.errstate(over="ignore", invalid="ignore"):
        if host.log_eigenvalues is None:
            ratio = (host.eigenvalues - 1.0) / divisor
        else:
            ratio = np.tanh(0.5 * host.log_eigenvalues)
        poles = 2.0 * ratio / dt
    B, C, D = _weighed(host, 1.0 / divisor, 2.0 / math.sqrt(dt), -1.0)
    _continuous_range(dt, poles, B, C, D)
    return host.replace(eigenvalues=poles, B=B, C=C, D=D, time=Continuous())


def _weighed(
    host: DiagonalStateSpace, states: HostArray, gain: float, weight: float
) -> tuple[HostArray, HostArray, HostArray]:
    """B and C with states multiplied by g q, and D + w C diag(q) B."""
    with np.errstate(over="ignore", invalid="ignore"):
        C = host.C * states[..., None, :]
        first = C @ host.B
        D = host.D + weight * (first.real if host.real_output else first)
        return gain * states[..., :, None] * host.B, gain * C, D
