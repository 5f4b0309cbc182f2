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

References: Van Loan, Computing integrals involving the matrix exponential, IEEE TAC 23 (1978);
Al-Mohy and Higham, Improved inverse scaling and squaring algorithms for the matrix logarithm,
SIAM J. Sci. Comput. 34 (2012); Glover, All optimal Hankel-norm approximations, Int. J. Control 39 (1984).
"""

from __future__ import annotations

import warnings
from typing import Literal, TypeVar, cast

import numpy as np
import scipy.linalg

from ssmreduce._boundary import any_library
from ssmreduce._checks import is_one_of, shown
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.linear_solve import singularity, solve_conditioned
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous, Discrete

Method = Literal["zoh", "bilinear"]
AnySystem = TypeVar("AnySystem", bound=System)

_EPS = float(np.finfo(np.float64).eps)

_LOGARITHM = 1e4
"""c in the tolerance c·n·ε for exp(log A) against A: four digits beyond what rounding alone takes."""

_SHORTEST = 4.0 * float(np.finfo(np.float64).tiny)
"""Below it 2/dt overflows."""

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
        ``"zoh"`` is exact for inputs that are constant between samples; ``"bilinear"`` keeps Gramians,
        Hankel singular values and H∞ norm (with the gain √(2α) split between B and C).

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

    Notes
    -----
    Cost O(n) for diagonal systems, which keep their logarithms, and O(n³) for dense ones. Bilinear with
    real stored eigenvalues below -2/dt keeps no logarithms: those would be complex.

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
        return cast(AnySystem, sample(system.to_host(), time))
    host = system.to_host()
    if method == "zoh":
        A, B = hold_integrals(host.A, host.B, time.dt)
        return cast(AnySystem, StateSpace(A, B, host.C, host.D, time=time))
    alpha, eye = _fold(time.dt), np.eye(host.order)
    mapped = _map_dense(host, alpha * eye - host.A, alpha * eye + host.A, alpha, 1.0)
    return cast(AnySystem, StateSpace(*mapped, time=time))


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
        If the system is continuous, or has a pole that no continuous pole is sampled to: at 0 or on the
        negative real axis (``"zoh"``), at -1 (``"bilinear"``).
    ShapeError
        If `method` is neither of the two.

    Notes
    -----
    Cost O(n) for diagonal systems and O(n³) for dense ones. The principal logarithm is taken, also of
    stored logarithms: frequencies come out in (-π/dt, π/dt).

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
        return cast(AnySystem, back(standard, dt))
    if method == "zoh":
        return cast(AnySystem, _unsample_dense(standard, dt))
    alpha, eye = _fold(dt), np.eye(standard.order)
    mapped = _map_dense(standard, eye + standard.A, alpha * (standard.A - eye), alpha, -1.0)
    return cast(AnySystem, StateSpace(*mapped, time=Continuous()))


def hold_integrals(A: HostArray, B: HostArray, step: float) -> tuple[HostArray, HostArray]:
    """Return exp(A dt) and ∫₀^dt exp(A s) ds B, from the exponential of [[A, B], [0, 0]] dt."""
    n, m = B.shape[-2:]
    # The result is linear in B: scaled so that it does not stand out, it costs no extra squarings.
    size = max(1.0, step * np.abs(A).sum(axis=-1).max(initial=0.0))
    scale = power_of_two(step * np.abs(B).sum(axis=-1).max(initial=0.0) / size)
    block = np.zeros((*B.shape[:-2], n + m, n + m), dtype=np.result_type(A, B))
    block[..., :n, :n] = A * step
    block[..., :n, n:] = B * (step / scale)
    powers = scipy.linalg.expm(block) if block.size else block
    return powers[..., :n, :n], powers[..., :n, n:] * scale


def exponential_integral(x: HostArray) -> HostArray:
    """φ₁(x) = (exp x - 1)/x, entry by entry, 1 at 0: the mean of exp over [0, x]."""
    # Below ε it rounds to 1; complex division by the smallest numbers of all would overflow.
    small = np.abs(x) < _EPS
    return np.asarray(np.where(small, 1.0, np.expm1(x) / np.where(small, 1.0, x)))


def power_of_two(size: float) -> float:
    """Return the power of two nearest to `size`: scaling by it is exact. 1 for 0."""
    return float(2.0 ** np.round(np.log2(size))) if size > 0.0 and np.isfinite(size) else 1.0


def _fold(dt: float) -> float:
    """Return α = 2/dt, the point that the bilinear map sends to infinity."""
    if dt < _SHORTEST:
        raise TimeDomainError(
            f"`dt` is {dt:.3g} seconds; expected at least {_SHORTEST:.3g} for the bilinear map, which takes "
            "2/dt. Choose another unit of time."
        )
    return 2.0 / dt


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


# --- Zero-order hold


def _sample_diagonal(host: DiagonalStateSpace, time: Discrete) -> DiagonalStateSpace:
    logarithms = host.eigenvalues * time.dt
    held = exponential_integral(logarithms) * time.dt
    return DiagonalStateSpace.from_log(
        logarithms,
        held[..., :, None] * host.B,
        host.C,
        host.D,
        time=time,
        real_output=host.real_output,
    )


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
    held = exponential_integral(logarithms) * dt
    return DiagonalStateSpace(
        logarithms / dt,
        host.B / held[..., :, None],
        host.C,
        host.D,
        time=Continuous(),
        real_output=host.real_output,
    )


def _unsample_dense(host: StateSpace, dt: float) -> StateSpace:
    A, B = np.zeros(host.A.shape, host.A.dtype), np.zeros(host.B.shape, host.B.dtype)
    if not np.iscomplexobj(host.B):
        B = B.astype(host.A.dtype)
    for at in np.ndindex(host.batch_shape):
        A[at] = _principal_logarithm(host.A[at]) / dt
        sampled, held = hold_integrals(A[at], np.eye(host.order), dt)
        missed = np.abs(sampled - host.A[at]).max(initial=0.0)
        if missed > _LOGARITHM * singularity(host.order) * np.abs(host.A[at]).max(initial=0.0):
            raise TimeDomainError(
                f"`system` has poles so close to zero or to the negative real axis that exp(log A) "
                f"misses A by {missed:.1e}; expected a system sampled faster. Try "
                "method='bilinear'."
            )
        B[at], _ = solve_conditioned(held, host.B[at])
    return StateSpace(A, B, host.C, host.D, time=Continuous())


def _principal_logarithm(matrix: HostArray) -> HostArray:
    n = len(matrix)
    if n == 0:
        return matrix
    _, conditioned = solve_conditioned(matrix, np.zeros((n, 0)))
    if conditioned < singularity(n):
        raise _no_logarithm(f"z = 0 (reciprocal condition {conditioned:.1e})")
    poles = np.linalg.eigvals(matrix)
    # Real arithmetic finds real poles exactly real; complex arithmetic misses the axis by rounding.
    width = singularity(n) * np.abs(poles).max() if np.iscomplexobj(matrix) else 0.0
    on_axis = (poles.real < 0.0) & (np.abs(poles.imag) <= width)
    if np.any(on_axis):
        raise _no_logarithm(f"z = {poles[on_axis][0].real:.6g}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # its residual is checked by the caller
        logarithm = scipy.linalg.logm(matrix)
    return np.asarray(logarithm if np.iscomplexobj(matrix) else logarithm.real)


def _no_logarithm(found: str) -> TimeDomainError:
    return _unmappable(found, "zoh", "Try method='bilinear', or stay in discrete time.")


# --- Bilinear map


def _map_dense(
    host: StateSpace, divisor: HostArray, dividend: HostArray, alpha: float, sign: float
) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """(M⁻¹ N, √(2α) M⁻¹ B, √(2α) C M⁻¹, D ± C M⁻¹ B) with M the divisor and N the dividend."""
    n, gain = host.order, np.sqrt(2.0 * alpha)
    right = np.concatenate([dividend, host.B], axis=-1)
    solved = np.zeros(right.shape, dtype=np.result_type(host.A, host.B))
    left = np.zeros(host.C.shape, dtype=np.result_type(host.A, host.C))
    for at in np.ndindex(host.batch_shape):
        solved[at], conditioned = solve_conditioned(divisor[at], right[at])
        if conditioned < singularity(n):
            point = f"s = 2/dt = {alpha:.6g}" if sign > 0.0 else "z = -1"
            raise _unmappable(point, "bilinear", "Try method='zoh', or another sampling time.")
        left[at] = adjoint(solve_conditioned(adjoint(divisor[at]), adjoint(host.C[at]))[0])
    B = solved[..., n:]
    return solved[..., :n], gain * B, gain * left, host.D + sign * (host.C @ B)


def _map_diagonal(host: DiagonalStateSpace, time: Discrete) -> DiagonalStateSpace:
    alpha = _fold(time.dt)
    ratio = host.eigenvalues / alpha
    if np.any(np.abs(1.0 - ratio) <= _ON_POINT * _EPS):
        raise _unmappable(f"s = 2/dt = {alpha:.6g}", "bilinear", "Take another sampling time.")
    B, C, D = _weighed(host, 1.0 / (alpha * (1.0 - ratio)), np.sqrt(2.0 * alpha), 1.0)
    with_logarithm = np.iscomplexobj(ratio) or np.all(np.abs(ratio) < 1.0)
    if with_logarithm and not np.any(ratio == -1.0):
        return DiagonalStateSpace.from_log(
            2.0 * np.arctanh(ratio), B, C, D, time=time, real_output=host.real_output
        )
    return DiagonalStateSpace(
        (1.0 + ratio) / (1.0 - ratio), B, C, D, time=time, real_output=host.real_output
    )


def _unmap_diagonal(host: DiagonalStateSpace, dt: float) -> DiagonalStateSpace:
    alpha, divisor = _fold(dt), 1.0 + host.eigenvalues
    if np.any(np.abs(divisor) <= _ON_POINT * _EPS):
        raise _unmappable("z = -1", "bilinear", "Stay in discrete time.")
    if host.log_eigenvalues is None:
        poles = alpha * (host.eigenvalues - 1.0) / divisor
    else:
        poles = alpha * np.tanh(0.5 * host.log_eigenvalues)
    B, C, D = _weighed(host, 1.0 / divisor, np.sqrt(2.0 * alpha), -1.0)
    return DiagonalStateSpace(poles, B, C, D, time=Continuous(), real_output=host.real_output)


def _weighed(
    host: DiagonalStateSpace, weight: HostArray, gain: float, sign: float
) -> tuple[HostArray, HostArray, HostArray]:
    """B and C with states weighed by √(2α) w, and D ± C diag(w) B."""
    C = host.C * weight[..., None, :]
    first = C @ host.B
    D = host.D + sign * (first.real if host.real_output else first)
    return gain * weight[..., :, None] * host.B, gain * C, D
