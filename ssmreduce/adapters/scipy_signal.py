"""scipy.signal systems in and out: `StateSpace`, `TransferFunction`, `ZerosPolesGain`; lti and dlti.

A transfer function becomes its controllable canonical form, exactly what its coefficients say; a static
gain gets no state (SciPy's own conversion gives it one at s = 0, an integrator). Zeros and poles become a
series of first- and second-order sections. Through polynomial coefficients, the way SciPy goes, a Butterworth
low-pass of order 20 loses every digit of its response; the sections keep 12. (Poles that lie close together
are still ill-conditioned eigenvalues of the joint matrix: ask the original for them.) Complex systems are
not exported: SciPy's `freqresp` and `dlsim` drop imaginary parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import signal
from scipy.optimize import linear_sum_assignment

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray, to_double
from ssmreduce.errors import ArgumentTypeError, ShapeError
from ssmreduce.systems.coordinates import exportable
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.interconnect import series
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous, Discrete, TimeDomain

_EPS = float(np.finfo(np.float64).eps)

_CONJUGATE = 100.0
"""c in the tolerance c·ε·|z| within which two roots count as conjugate: as SciPy pairs them."""


def from_scipy(sys: Any) -> StateSpace:
    """The `StateSpace` of a scipy.signal system, time base kept.

    Parameters
    ----------
    sys : scipy.signal.lti or scipy.signal.dlti
        `StateSpace`, `TransferFunction` (one input) or `ZerosPolesGain` (one input and output). A discrete
        one with ``dt=True`` has no sampling time and becomes ``Discrete()``.

    Returns
    -------
    StateSpace
        Complex only if the coefficients are, or the roots do not come in conjugate pairs.

    Raises
    ------
    ArgumentTypeError
        If `sys` is none of these.
    ShapeError
        If the numerator has a higher degree than the denominator.

    Examples
    --------
    >>> from scipy import signal
    >>> from ssmreduce.adapters.scipy_signal import from_scipy
    >>> system = from_scipy(signal.TransferFunction([1.0], [1.0, 0.5], dt=0.1))
    >>> system.A.tolist(), system.time
    ([[-0.5]], Discrete(dt=0.1))
    """
    if not isinstance(sys, signal.lti | signal.dlti):
        raise ArgumentTypeError(
            f"`sys` is a {_checks.type_name(sys)}; expected a scipy.signal.lti or "
            "dlti. Build one from coefficients, for example scipy.signal.TransferFunction(num, den)."
        )
    time: TimeDomain = Continuous()
    if isinstance(sys, signal.dlti):
        time = Discrete() if sys.dt is True else Discrete(float(sys.dt))
    if isinstance(sys, signal.TransferFunction):
        return _canonical(
            np.atleast_2d(to_double(sys.num)), np.atleast_1d(to_double(sys.den)), time
        )
    if isinstance(sys, signal.ZerosPolesGain):
        return _sections(to_double(sys.zeros), to_double(sys.poles), sys.gain, time)
    return StateSpace(*(np.array(x, copy=True) for x in (sys.A, sys.B, sys.C, sys.D)), time=time)


def to_scipy(system: System) -> Any:
    """The scipy.signal `StateSpace` with the same map, time base kept.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Real (or with real output), without batch axes. One that reads after its update is exported
        in its standard form.

    Returns
    -------
    scipy.signal.StateSpace
        An lti for continuous time, else a dlti with the sampling time.

    Raises
    ------
    ShapeError
        If the system is complex or has batch axes.
    ArgumentTypeError
        If `system` is not a system.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.adapters.scipy_signal import to_scipy
    >>> to_scipy(StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete(0.1))).dt
    0.1
    """
    dense = exportable(system, "scipy.signal")
    arrays = (dense.A, dense.B, dense.C, dense.D)
    if isinstance(dense.time, Discrete):
        return signal.StateSpace(*arrays, dt=dense.time.dt)
    return signal.StateSpace(*arrays)


def _canonical(numerators: HostArray, denominator: HostArray, time: TimeDomain) -> StateSpace:
    """Controllable canonical form: A = [-a; I 0], B = e₁, C = b - b₀ a, D = b₀, highest power first."""
    n = denominator.size - 1
    surplus = numerators.shape[1] - denominator.size
    if surplus > 0 and np.any(numerators[:, :surplus]):
        raise _improper(numerators.shape[1] - 1, n)
    numerators = numerators[:, max(0, surplus) :] / denominator[0]
    padding = np.zeros((len(numerators), denominator.size - numerators.shape[1]))
    numerators = np.concatenate([padding, numerators], axis=1)
    tail = denominator[1:] / denominator[0]
    A = np.eye(n, k=-1, dtype=tail.dtype)
    A[:1] = -tail
    B = np.eye(n, 1)
    D = numerators[:, :1]
    return StateSpace(A, B, numerators[:, 1:] - D * tail, D, time=time)


def _sections(zeros: HostArray, poles: HostArray, gain: complex, time: TimeDomain) -> StateSpace:
    """Gain · Π (x - zero) / Π (x - pole) as a series of sections of order one and two."""
    if zeros.ndim != 1 or poles.ndim != 1:
        raise ShapeError(
            f"`sys` has zeros of shape {zeros.shape}; expected one input and one output. Build a "
            "scipy.signal.StateSpace for several."
        )
    if zeros.size > poles.size:
        raise _improper(zeros.size, poles.size)
    numerators, denominators = _real_factors(zeros), _real_factors(poles)
    if numerators is None or denominators is None:
        numerators, denominators = list(zeros[:, None]), list(poles[:, None])
    numerators += [np.zeros(0)] * (len(denominators) - len(numerators))
    sections, peaks = _paired(numerators, denominators, _points(zeros, poles, time))
    sizes = 2.0 ** np.round(peaks / np.log(2.0))
    factor = to_double(np.asarray(gain)) * np.prod(sizes)
    system = StateSpace(
        np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), factor.reshape(1, 1), time=time
    )
    for (numerator, denominator), size in zip(sections, sizes, strict=True):
        coefficients = np.atleast_2d(np.poly(numerator)) / size
        system = series(system, _canonical(coefficients, np.poly(denominator), time))
    return system


def _points(zeros: HostArray, poles: HostArray, time: TimeDomain) -> HostArray:
    """Points of the stability boundary at the corner frequencies of all zeros and poles, and at its ends."""
    roots = np.concatenate([zeros, poles]).astype(np.complex128)
    if isinstance(time, Discrete):
        roots = np.where(roots == 0.0, np.exp(-np.pi), roots)
    roots = time.rates(roots)
    sizes = np.abs(roots)
    end = 1e3 * sizes.max(initial=1e-3) if isinstance(time, Continuous) else time.nyquist
    omega = np.concatenate([np.abs(roots.imag), np.minimum(sizes, end), [0.0, end]])
    omega = np.unique(np.concatenate([omega, -omega]))
    points = time.point(omega)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.abs(points[:, None] - poles).min(axis=1, initial=np.inf)
    kept = points[nearest > _EPS * np.abs(points)]
    return np.asarray(kept if kept.size else points[-1:] * 2.0)


def _paired(
    numerators: list[HostArray], denominators: list[HostArray], points: HostArray
) -> tuple[list[tuple[HostArray, HostArray]], HostArray]:
    """Sections of low peak gain, in an order that keeps the gains before and after each of them low.

    Also the logarithm of the peak gain of each. Pairs are those whose peak gains have the smallest product.
    Of sections of gain 1 the coupling of the states, and with it ‖A‖, stays near the size of the poles: of a
    Butterworth filter of order 20 the poles are then right to eps, against two digits without. Zeros beside
    poles that lie decades away would make gains that only the other sections take back.
    """
    count = len(denominators)
    above, below = (_logarithms(factors, points) for factors in (numerators, denominators))
    peaks = (above[:, None] - below).max(axis=2, initial=-np.inf)
    sizes = [np.array([factor.size for factor in each]) for each in (numerators, denominators)]
    rows, columns = linear_sum_assignment(np.where(sizes[0][:, None] > sizes[1], np.inf, peaks))
    gains = above[rows] - below[columns]
    seen, rest = np.zeros(points.size), gains.sum(axis=0)
    remaining, order = list(range(count)), []
    while remaining:
        then = seen + gains[remaining]
        worst = then.max(axis=1) + (rest - gains[remaining]).max(axis=1)
        best = remaining.pop(int(np.argmin(worst)))
        order.append(best)
        seen, rest = seen + gains[best], rest - gains[best]
    sections = [(numerators[rows[k]], denominators[columns[k]]) for k in order]
    return sections, gains[order].max(axis=1)


def _logarithms(factors: list[HostArray], points: HostArray) -> HostArray:
    """Log |Π (x - root)| of each factor, at each point."""
    sizes = [np.abs(points[:, None] - roots) for roots in factors]
    tiny = np.finfo(np.float64).tiny
    logarithms = [np.log(np.maximum(size, tiny)).sum(axis=1) for size in sizes]
    return np.reshape(logarithms, (len(factors), points.size))


def _real_factors(roots: HostArray) -> list[HostArray] | None:
    """Roots in conjugate and real pairs, with at most one left over, the last; None if not real."""
    roots = np.asarray(roots, dtype=np.complex128)
    above = roots[roots.imag > 0.0]
    below = list(roots[roots.imag < 0.0].conj())
    pairs = []
    for root in above:
        partner = int(np.argmin(np.abs(np.array(below) - root))) if below else None
        if partner is None or abs(below[partner] - root) > _CONJUGATE * _EPS * abs(root):
            return None
        below.pop(partner)
        pairs.append(np.array([root, root.conj()]))
    if below:
        return None
    real = np.sort(roots[roots.imag == 0.0].real)
    return pairs + [real[i : i + 2] for i in range(0, real.size, 2)]


def _improper(numerator: int, denominator: int) -> ShapeError:
    return ShapeError(
        f"`sys` has a numerator of degree {numerator} over a denominator of degree {denominator}; "
        "expected a proper transfer function: no state-space system differentiates its input."
    )
