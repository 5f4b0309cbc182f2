"""scipy.signal systems in and out: `StateSpace`, `TransferFunction`, `ZerosPolesGain`; lti and dlti.

A transfer function becomes its controllable canonical form, exactly what its coefficients say; a static
gain gets no state (SciPy's own conversion gives it one at s = 0, an integrator). Zeros and poles become a
series of first- and second-order sections. Through polynomial coefficients, the way SciPy goes, a Butterworth
low-pass of order 20 loses every digit of its response; the sections keep 12. (Poles that lie close together
are still ill-conditioned eigenvalues of the joint matrix: ask the original for them.) Complex systems are
not exported: SciPy's `freqresp` and `dlsim` drop imaginary parts.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np
from scipy import signal

from ssmreduce import _checks
from ssmreduce._namespace import HostArray, to_double
from ssmreduce.errors import ShapeError, UnsupportedLayerError
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
    UnsupportedLayerError
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
        raise UnsupportedLayerError(
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
        Real (or with real output), without batch axes. One that reads after its update is exported in
        its standard form.

    Returns
    -------
    scipy.signal.StateSpace
        An lti for continuous time, else a dlti with the sampling time.

    Raises
    ------
    ShapeError
        If the system is complex or has batch axes.

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
        numerators = [np.array([1.0, -root]) for root in zeros]
        denominators = [np.array([1.0, -root]) for root in poles]
    pairs = list(zip_longest(numerators, denominators, fillvalue=np.ones(1)))
    sizes = [_size(numerator, denominator, time) for numerator, denominator in pairs]
    factor = to_double(np.asarray(gain)) * np.prod(sizes)
    system = StateSpace(
        np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), factor.reshape(1, 1), time=time
    )
    for (numerator, denominator), size in zip(pairs, sizes, strict=True):
        system = series(system, _canonical(numerator[None] / size, denominator, time))
    return system


def _size(numerator: HostArray, denominator: HostArray, time: TimeDomain) -> float:
    """Power of two near the largest gain of a section where its poles and zeros make it large.

    Sections of gain 1 keep the coupling of their states, and with it ‖A‖, near the size of the poles: of
    a Butterworth filter of order 20 the poles are then right to eps, against two digits without.
    """
    roots = np.concatenate([np.roots(numerator), np.roots(denominator)])
    if isinstance(time, Discrete):
        points = np.exp(1j * np.concatenate([np.angle(roots), [0.0, np.pi]]))
    else:
        points = 1j * np.concatenate([roots.imag, np.abs(roots), [0.0]])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gains = np.abs(np.polyval(numerator, points) / np.polyval(denominator, points))
    gains = gains[np.isfinite(gains) & (gains > 0.0)]
    return float(2.0 ** np.round(np.log2(gains.max()))) if gains.size else 1.0


def _real_factors(roots: HostArray) -> list[HostArray] | None:
    """Quadratics with these roots and at most one linear factor, the last; None if not real."""
    roots = np.asarray(roots, dtype=np.complex128)
    above = roots[roots.imag > 0.0]
    below = list(roots[roots.imag < 0.0].conj())
    quadratics = []
    for root in above:
        partner = int(np.argmin(np.abs(np.array(below) - root))) if below else None
        if partner is None or abs(below[partner] - root) > _CONJUGATE * _EPS * abs(root):
            return None
        below.pop(partner)
        quadratics.append(np.array([1.0, -2.0 * root.real, abs(root) ** 2]))
    if below:
        return None
    real = np.sort(roots[roots.imag == 0.0].real)
    pairs = [np.poly(real[i : i + 2]) for i in range(0, real.size, 2)]
    return quadratics + pairs


def _improper(numerator: int, denominator: int) -> ShapeError:
    return ShapeError(
        f"`sys` has a numerator of degree {numerator} over a denominator of degree {denominator}; "
        "expected a proper transfer function: no state-space system differentiates its input."
    )
