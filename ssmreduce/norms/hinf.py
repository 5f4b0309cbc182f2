"""The H-infinity norm ‖G‖∞ = max σ_max(G(z)) over the stability boundary, of a system or a difference.

A lower bound comes from an adaptive frequency grid (`grid`), an upper one on request from a
level-set test (`level_set`). The norm of a difference G₁ - G₂ includes its feedthrough D₁ - D₂.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._array_routes import any_library
from ssmreduce._checks import flag, is_number, nonnegative_count, positive_count, shown
from ssmreduce._threads import on_gainful_threads
from ssmreduce.derivatives.dispatch import apply, differentiable
from ssmreduce.derivatives.rule import Pullback
from ssmreduce.devices import norms as native
from ssmreduce.errors import UnreachableToleranceError, UnsupportedEquationError
from ssmreduce.gramians.batch import map_systems
from ssmreduce.norms.gain import Gain, check_alike
from ssmreduce.norms.gain_gradient import gain_gradient
from ssmreduce.norms.grid import Search, frequencies, peak
from ssmreduce.norms.level_set import rounding_of_test, upper_bound
from ssmreduce.norms.refined import RefinedGain, lower_bound, plain_rounding
from ssmreduce.norms.stability import check_stable
from ssmreduce.norms.units import Units, in_units
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace

THOROUGH = Search(256, 12, 32)
"""How `hinf_norm` searches, and `Reduction.verify`."""

_NOISE_POINTS = 16
"""Points of a grid, and sharpest resonances, among which rounding is largest."""

_PLAIN = 0.1
"""Share of the tolerance up to which that is of no account."""

_COARSE_GRID = 64
"""Where a test follows. With more than n points, 0 at all of them is 0."""


@dataclass(frozen=True, eq=False)
class HinfNorm:
    """Bounds on an H-infinity norm: lower ≤ ‖G‖∞ ≤ upper. ``float()`` of it is the lower one.

    Attributes
    ----------
    lower : float or (...) array
        Largest gain found; one for each system of a batch.
    upper : float or (...) array
        Certified upper bound; infinite where none was asked for.
    frequency : float or (...) array
        Where the largest gain was found: radians per sample (discrete) or rad/s (continuous,
        infinite where the feedthrough is largest); nonnegative for real systems.

    Examples
    --------
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.norms import hinf_norm
    >>> system = StateSpace([[-1.0]], [[1.0]], [[3.0]], time=Continuous())
    >>> norm = hinf_norm(system, certified=True)
    >>> norm.lower, norm.upper - norm.lower < 1e-5, norm.frequency, norm.certified
    (3.0, True, 0.0, True)
    """

    lower: float | HostArray
    upper: float | HostArray
    frequency: float | HostArray

    @property
    def certified(self) -> bool:
        """Whether an upper bound is known."""
        return bool(np.all(np.isfinite(self.upper)))

    def __float__(self) -> float:
        """Return the lower bound of a single system."""
        return float(self.lower)


def _native(system: System, *, certified: bool = False, tolerance: float = 1e-6) -> HinfNorm:
    lower, frequency = native.hinf_lower_bound(system, certified)
    return HinfNorm(lower, math.inf, frequency)


@any_library(_native, has_derivative=True)
def hinf_norm(system: System, *, certified: bool = False, tolerance: float = 1e-6) -> HinfNorm:
    """H-infinity norm ‖G‖∞ = max σ_max(G(z)) over |z| = 1 or z = iω: bounds on it.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable; with any leading batch axes.
    certified : bool
        Whether to find an upper bound too, by a level-set test. Otherwise `upper` is infinite.
    tolerance : float
        Relative distance of the upper bound from the lower one.

    Returns
    -------
    HinfNorm
        `lower` is the gain at `frequency`. It most often is the norm to ten digits,
        but without a certificate a peak between grid points may have been missed.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    UnreachableToleranceError
        If `tolerance` is below 100 n eps, if a pole rounds onto the boundary and a certificate is
        asked for, or if no double holds the norm.
    NoConvergenceError
        If levels keep rising: the gain itself is rounding.
    UnsupportedEquationError
        If a certificate is asked for together with a derivative.
    ArgumentTypeError
        If `system` is not a system.
    ArgumentError
        If `certified` is not a bool.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Lower bound: O(K n p m) for K ≈ 300 … 500 frequencies of a diagonal system, and of a dense one
    after an eigendecomposition; where its eigenvectors are ill-conditioned, a Schur form and O(K n²
    min(m, p)). Upper bound: eigenvalues of a matrix of order 2n (4n for a diagonal system with real
    output), once or twice, after a search on fewer frequencies. With poles at a distance d from the
    boundary, both bounds are accurate to a relative n eps ‖A‖/d. `lower` is differentiable under
    torch autograd and JAX, with the frequency of the peak held fixed: at a peak the frequency has
    no first-order effect. Of two equal peaks one is taken.

    References
    ----------
    Bruinsma and Steinbuch, A fast algorithm to compute the H∞-norm of a transfer function matrix,
    Systems & Control Letters 14 (1990).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.norms import hinf_norm
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> float(hinf_norm(system))
    2.0
    """
    certified = flag(certified, "certified")
    tolerance = _checked_tolerance(tolerance)
    if differentiable(system):
        return _with_derivative(system, certified)
    # Products with all points of a grid would wake a second thread, in vain for a small system.
    norms = map_systems(
        system,
        lambda single: on_gainful_threads(
            _single, single, certified, tolerance, order=single.order, ports=THOROUGH.grid
        ),
    )
    if not system.batch_shape:
        return norms[0]
    lower, upper, frequency = (
        np.array([getattr(norm, name) for norm in norms]).reshape(system.batch_shape)
        for name in ("lower", "upper", "frequency")
    )
    return HinfNorm(lower, upper, frequency)


def _with_derivative(system: System, certified: bool) -> HinfNorm:
    if certified:
        raise UnsupportedEquationError(
            "`certified` is True but a derivative is asked for; expected False: only the lower bound has "
            "one. Certify a system of detached arrays."
        )
    found = apply(
        _lower_rule, system.to_standard(), (2,), name="hinf_norm", native=native.hinf_pair
    )
    upper = np.full(system.batch_shape, math.inf) if system.batch_shape else math.inf
    return HinfNorm(found[..., 0], upper, found[..., 1])


def _lower_rule(system: System) -> tuple[HostArray, Pullback]:
    """The largest gain found and where; the frequency counts as a constant."""
    norm = _single(system, False, 1e-6)
    place = float(norm.frequency)
    return np.array([norm.lower, place]), lambda g: gain_gradient(system, place, float(g[0]))


@any_library()
def hinf_difference(
    first: System,
    second: System,
    *,
    grid: int = 64,
    refinements: int = 6,
    iterations: int = 8,
) -> float:
    """Lower bound on ‖G₁ - G₂‖∞, the H-infinity norm of the difference of two systems.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Stable systems of equal sizes and time domain, without batch axes.
    grid : int
        Points of the uniform grid, and at most as many resonances of each system.
    refinements : int
        Rounds of refinement around the largest values.
    iterations : int
        Power iterations per point where both input and output are wide.

    Returns
    -------
    float
        Largest singular value found, less what rounding may have added to it at that frequency.

    Raises
    ------
    ShapeError
        If sizes differ, or a system has batch axes.
    TimeDomainError
        If time domains differ.

    Notes
    -----
    Cost O(grid · iterations · n (m + p)), after an eigendecomposition of dense ones. Where rounding shows,
    solutions are refined in twice the precision: 100 n² min(m, p) for each of some 100 frequencies, or
    O(n³) where the eigenvectors are ill-conditioned.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.norms import hinf_difference
    >>> big = DiagonalStateSpace([0.5, 0.1], [[1.0], [1.0]], [[1.0, 0.9]], time=Discrete())
    >>> small = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> round(hinf_difference(big, small), 6)
    1.0
    """
    grid = positive_count(grid, "grid", "the number of frequencies")
    refinements = nonnegative_count(refinements, "refinements", "how often to refine the grid")
    iterations = positive_count(iterations, "iterations", "the steps of a power iteration")
    check_alike(first, second)
    return largest_difference(first, second, Search(grid, refinements, iterations))


def largest_difference(first: System, second: System, search: Search) -> float:
    """`hinf_difference` of systems on the host that are known to be alike."""
    (one, two), units = in_units([first, second])
    gain = Gain((1.0, one), (-1.0, two))
    order = max(first.order, second.order)
    found = on_gainful_threads(lower_bound, gain, search, order=order, ports=search.grid)
    return units.gain_outside(found[0])


@any_library()
def certified_difference(first: System, second: System, *, tolerance: float = 1e-6) -> HinfNorm:
    """H-infinity norm ‖G₁ - G₂‖∞ of the difference of two systems, with an upper bound.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Stable systems of equal sizes and time domain, without batch axes.
    tolerance : float
        Relative distance of the upper bound from the lower one.

    Returns
    -------
    HinfNorm
        Where the difference is below the rounding of the test, `upper` exceeds `lower` by that: the largest
        eps ‖ |C R| |A| |R B| ‖ of both systems, R = (z - A)⁻¹.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    UnreachableToleranceError
        If `tolerance` is below 100 (n₁ + n₂) eps.

    Notes
    -----
    Eigenvalues of a matrix of order 2 (n₁ + n₂), once or twice.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.norms import certified_difference
    >>> big = DiagonalStateSpace([0.5, 0.1], [[1.0], [1.0]], [[1.0, 0.9]], time=Discrete())
    >>> small = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> norm = certified_difference(big, small)
    >>> 1.0 <= norm.upper <= 1.00001
    True
    """
    tolerance = _checked_tolerance(tolerance)
    check_alike(first, second)
    (one, two), units = in_units([first, second])
    gain = Gain((1.0, one), (-1.0, two))
    for system in (first, second):
        check_stable(system)
    joined = _joined(gain)
    lower, frequency = lower_bound(gain, _beyond(THOROUGH.grid, joined.order))
    omega = frequencies(gain.by_modes if gain.is_dense else gain, _NOISE_POINTS)
    plain = plain_rounding(gain, omega).max(initial=0.0) <= _PLAIN * tolerance * lower
    evaluate: Callable[[HostArray], HostArray] = gain.at
    noise = rounding_of_test(gain, omega)
    if not plain:
        refined = RefinedGain(gain)
        evaluate = refined.lower
        noise += 2.0 * refined.unresolved(np.append(omega, frequency))
    bounds = upper_bound(
        *(gain, joined, lower, frequency, tolerance), evaluate=evaluate, noise=noise
    )
    return _outside(HinfNorm(*bounds), units)


def _single(system: System, certified: bool, tolerance: float) -> HinfNorm:
    check_stable(system)
    (scaled,), units = in_units([system])
    gain = Gain((1.0, scaled))
    if not certified:
        lower, frequency = peak(gain, THOROUGH)
        return _outside(HinfNorm(lower, math.inf, frequency), units)
    dense = _dense(scaled.to_standard())
    # The test finds what a coarse grid has missed.
    lower, frequency = peak(gain, _beyond(_COARSE_GRID, dense.order))
    bounds = upper_bound(gain, dense, lower, frequency, tolerance, evaluate=gain.at)
    return _outside(HinfNorm(*bounds), units)


def _beyond(grid: int, order: int) -> Search:
    """A thorough search of at least `grid` points, and more than `order`."""
    return replace(THOROUGH, grid=max(grid, order + 1))


def _outside(norm: HinfNorm, units: Units) -> HinfNorm:
    """The same norm in the units of the given systems."""
    lower, upper = (units.gain_outside(float(x)) for x in (norm.lower, norm.upper))
    return HinfNorm(lower, upper, units.frequency_outside(float(norm.frequency)))


def _joined(gain: Gain) -> StateSpace:
    """Dense system in standard form with the gain of G₁ - G₂."""
    first, second = gain.systems
    both_after = first.read_after_update and second.read_after_update
    if both_after and not np.any(gain.D):
        # z (G₁ - G₂) has the gain of G₁ - G₂, without the rounding of D + C B.
        one, two, D = _dense(first), _dense(second), gain.D
    else:
        one, two = _dense(first.to_standard()), _dense(second.to_standard())
        D = one.D - two.D
    A = np.zeros((one.order + two.order,) * 2, dtype=np.result_type(one.A, two.A))
    A[: one.order, : one.order] = one.A
    A[one.order :, one.order :] = two.A
    B = np.concatenate([one.B, two.B])
    return StateSpace(A, B, np.concatenate([one.C, -two.C], axis=1), D, time=one.time)


def _dense(system: System) -> StateSpace:
    return system.to_dense() if isinstance(system, DiagonalStateSpace) else system


def _checked_tolerance(tolerance: float) -> float:
    if not is_number(tolerance) or not 0.0 < tolerance < 1.0:
        raise UnreachableToleranceError(
            f"`tolerance` is {shown(tolerance)}; expected a number between 0 and 1. Try 1e-6."
        )
    return float(tolerance)
