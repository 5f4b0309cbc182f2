"""A certified upper bound on the H-infinity norm: a level that the gain never reaches.

For γ > σ_max(D) the gain σ_i(G(iω)) equals γ for some i exactly where iω is an eigenvalue of the
Hamiltonian matrix, with R = γ²I - DᴴD and S = γ²I - DDᴴ,

    H(γ) = [[A + B R⁻¹ Dᴴ C, γ B R⁻¹ Bᴴ], [-γ Cᴴ S⁻¹ C, -(A + B R⁻¹ Dᴴ C)ᴴ]].

If none lies on the axis, γ bounds the norm. A level a little above the largest gain found is tested;
frequencies where the gain crosses it, and their midpoints, raise that gain, and the next level, with
quadratic convergence. Rounding moves eigenvalues off the axis, so the test is not trusted alone:
every eigenvalue within 4 sqrt(n eps) ‖H‖ of the axis (a tangency moves by the root of a
perturbation) is a candidate, the gain is *evaluated* there, between neighbours and around the
largest, and the level stands only if all of that lies below it.

Discrete systems are mapped by z = w (1 + s)/(1 - s), |w| = 1, with -w (which goes to s = ∞) chosen
far from the poles and where the gain is low; the gain is always evaluated in z.

What the bound assumes: eigenvalues that are exact for a matrix within c n eps ‖H‖ of H(γ). A bound
is then one of a system within a relative c n eps of the given one; at a distance d between the poles
and the boundary that is a relative n eps ‖A‖/d of the norm, which no algorithm on doubles escapes.

Cost: eigenvalues of a 2n x 2n matrix per level, most often one or two levels.

References: Boyd, Balakrishnan and Kabamba, Math. Control Signals Systems 2 (1989); Bruinsma and
Steinbuch, Systems & Control Letters 14 (1990).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.linalg

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import frobenius_norm
from ssmreduce._state_units import balanced_matrix
from ssmreduce.errors import NoConvergenceError, UnreachableToleranceError
from ssmreduce.norms.gain import Gain
from ssmreduce.norms.grid import refine
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous, Discrete

_NEAR_AXIS = 4.0
"""c of c sqrt(n eps) ‖H‖, the distance from the axis within which an eigenvalue is a candidate.
Larger costs evaluations, never correctness."""

_NOISE = 1.0
"""c of c eps ‖ |C R| |A| |R B| ‖: eigenvalues of a balanced H are those of a matrix that near to it."""

_SMALLEST_TOLERANCE = 100.0
"""c of c n eps, the tightest relative tolerance: R is ill-conditioned by 1/tolerance at worst."""

_LEVELS = 30
"""Levels tried. Convergence is quadratic, so more means that the gain itself is rounding."""

_REFINEMENTS = 4
"""Rounds of refinement around the largest gains at candidates and midpoints."""

_STILL = 0.01
"""Share of the tolerance by which the gain must promise to rise for another round."""

_ROTATIONS = 32
"""Points of the unit circle that are tried for -w."""

_REAL_IS_WORTH = 0.01
"""A real map (w = ±1) is kept down to this share of the best one: it saves three quarters."""


def upper_bound(
    gain: Gain,
    system: StateSpace,
    lower: float,
    frequency: float,
    tolerance: float,
    *,
    evaluate: Callable[[HostArray], HostArray],
    noise: float = 0.0,
) -> tuple[float, float, float]:
    """Return (lower, upper, frequency), from a first lower bound and its frequency.

    Parameters
    ----------
    gain : Gain
        The gain to bound.
    system : StateSpace
        A dense, stable system in standard form with that gain, without batch axes.
    lower, frequency : float
        The largest gain found, and where. At more than n frequencies where `lower` is 0.
    tolerance : float
        Upper and lower bound differ by at most this relative to the lower one, and by `noise`.
    evaluate : callable
        The gain at frequencies, or a lower bound of it.
    noise : float
        What rounding of the test may hide of a difference.
    """
    n = system.order
    eps = float(np.finfo(np.float64).eps)
    if tolerance < _SMALLEST_TOLERANCE * n * eps:
        raise UnreachableToleranceError(
            f"`tolerance` is {tolerance:.3g}; expected at least {_SMALLEST_TOLERANCE * n * eps:.3g} "
            f"for a system of {n} states in double precision. Try 1e-6."
        )
    if not math.isfinite(lower + noise):
        raise UnreachableToleranceError(
            "`system` has gains that rounding of `A` changes without limit; expected eigenvectors that are "
            "independent in double precision. Ask for the lower bound alone with certified=False."
        )
    if lower + noise == 0.0 or n == 0 or not (np.any(system.B) and np.any(system.C)):
        # A rational function of degree n that vanishes at more than n points is zero; without inputs
        # or outputs of the state only D is left.
        lower = max(lower, float(gain.at(np.array([frequency]))[0]))
        return lower, lower, frequency
    _check_resolved(gain)
    anchors = _anchors(gain)
    gains = evaluate(anchors)
    if gains.max() > lower:
        lower, frequency = float(gains.max()), float(anchors[np.argmax(gains)])
        frequency = abs(frequency) if gain.real else frequency
    w = None
    if isinstance(gain.time, Discrete):
        w = _rotation(gain, anchors, gains / (lower + noise))
    test = _AxisTest(system, w, real=gain.real)
    for _ in range(_LEVELS):
        level = (1.0 + tolerance) * lower + noise
        crossings = test.crossings(level)
        if not crossings.size:
            return lower, level, frequency
        omega = _with_middles(crossings, frequency)
        seen, place = refine(evaluate, omega, _REFINEMENTS, _STILL * tolerance)
        if seen > lower:
            lower, frequency = seen, place
        if seen < level:
            return lower, level, frequency
    raise NoConvergenceError(
        f"the H-infinity norm still rose after {_LEVELS} levels, to {lower:.6g} at frequency "
        f"{frequency:.6g}; expected no more than a few. Ask for a larger tolerance, or for the "
        "lower bound alone with certified=False."
    )


def rounding_of_test(gain: Gain, omega: HostArray) -> float:
    """What rounding of A may move of a difference: the largest eps ‖ |C R| |A| |R B| ‖, R = (z - A)⁻¹."""
    z = gain.time.point(omega)
    moved = sum((part.moved(z, by_poles=True) for part in gain.parts), start=np.zeros(z.size))
    return _NOISE * float(np.finfo(np.float64).eps) * float(moved.max(initial=0.0))


def _check_resolved(gain: Gain) -> None:
    poles = np.concatenate([part.poles for part in gain.parts])
    if not np.all(gain.time.inside(poles)):
        raise UnreachableToleranceError(
            "`system` has a pole so close to the stability boundary that it rounds onto it; expected "
            "one that double precision can tell from it. Ask for the lower bound alone with "
            "certified=False."
        )


def _anchors(gain: Gain) -> HostArray:
    """Frequencies whose gain must lie below every level: ends of the boundary, candidates for -w."""
    if isinstance(gain.time, Continuous):
        return np.array([0.0, math.inf])
    return np.linspace(-np.pi, np.pi, _ROTATIONS, endpoint=False)


def _rotation(gain: Gain, anchors: HostArray, gains: HostArray) -> complex:
    """Return w such that -w is far from the poles and the gain there is low; ±1 if possible."""
    points = np.exp(1j * anchors)
    poles = np.concatenate([part.poles for part in gain.parts])
    distance = np.abs(points[:, None] - poles).min(axis=1)
    score = distance * np.maximum(1.0 - gains**2, np.finfo(np.float64).eps)
    best = int(np.argmax(score))
    if gain.real:
        minus_one, one = 0, _ROTATIONS // 2
        end = minus_one if score[minus_one] >= score[one] else one
        if score[end] >= _REAL_IS_WORTH * score[best]:
            return 1.0 if end == minus_one else -1.0
    return complex(-points[best])


def _with_middles(crossings: HostArray, frequency: float) -> HostArray:
    """Crossings and the middle of every interval between them.

    Nothing is needed beyond the first and last one: the gain at the ends of the boundary (at -1 on the
    circle) is among the anchors and so below the level.
    """
    known = [frequency] if math.isfinite(frequency) else []
    return np.unique(np.concatenate([crossings, (crossings[1:] + crossings[:-1]) / 2, known]))


class _AxisTest:
    """The system with the boundary on the imaginary axis, and the way back to its frequencies."""

    def __init__(self, system: StateSpace, w: complex | None, *, real: bool) -> None:
        self.w, self.real = w, real
        A, B, C, D = system.A, system.B, system.C, system.D
        if w is not None:
            # s = (z - w)/(z + w) and E = (wI + A)⁻¹ give A' = E (A - wI), B' = √2 E B, C' = √2 w C E.
            eye = np.eye(system.order)
            factors = scipy.linalg.lu_factor(w * eye + A)
            EB = scipy.linalg.lu_solve(factors, B)
            A = scipy.linalg.lu_solve(factors, A - w * eye)
            CE = adjoint(scipy.linalg.lu_solve(factors, adjoint(C), trans=2))
            B, C, D = math.sqrt(2.0) * EB, math.sqrt(2.0) * w * CE, D - C @ EB
        self.A, self.B, self.C, self.D = A, B, C, D

    def crossings(self, level: float) -> HostArray:
        """Sorted frequencies of all eigenvalues of H(level) that are on the axis or near it."""
        n = len(self.A)
        root = math.sqrt(level)
        B, C, D = self.B / root, self.C / root, self.D / level
        ratio = math.sqrt(frobenius_norm(C) / frobenius_norm(B))
        B, C = B * ratio, C / ratio
        # D = U diag(s) Vᴴ diagonalises R and S. s < 1 was found, up to rounding.
        U, s, Vh = np.linalg.svd(D)
        s = np.minimum(s, 1.0 - np.finfo(np.float64).eps)
        gap = (1.0 - s) * (1.0 + s)
        BV, UC = B @ adjoint(Vh), adjoint(U) @ C
        k = s.size
        corner = self.A + (BV[:, :k] * (s / gap)) @ UC[:k]
        BV[:, :k] /= np.sqrt(gap)
        UC[:k] /= np.sqrt(gap)[:, None]
        H = np.block([[corner, BV @ adjoint(BV)], [-adjoint(UC) @ UC, -adjoint(corner)]])
        H, _ = balanced_matrix(H)
        near = _NEAR_AXIS * math.sqrt(n * np.finfo(np.float64).eps) * np.linalg.norm(H)
        values = scipy.linalg.eigvals(H, overwrite_a=True, check_finite=False)
        return self._frequencies(values[np.abs(values.real) <= near].imag)

    def _frequencies(self, axis: HostArray) -> HostArray:
        omega = axis
        if self.w is not None:
            omega = np.angle(self.w * (1.0 + 1j * axis) / (1.0 - 1j * axis))
        return np.unique(np.abs(omega) if self.real else omega)
