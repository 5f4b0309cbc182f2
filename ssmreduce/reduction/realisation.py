"""Balanced and minimal realisations: the same transfer function in other, or fewer, states.

In balanced states both Gramians are diag(σ). A minimal realisation leaves out what no input reaches or
no output sees, decided by the Hankel singular values of the stable part and, for the unstable part,
by those of a shifted copy: (A - μ, B, C), or (A/ρ, B, C) in discrete time, is reachable and observable
exactly where (A, B, C) is, and stable for μ or ρ beyond all poles. Cost O(n³).

Reference: Moore, IEEE Trans. Automatic Control 26 (1981).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._checks import is_number, shown
from ssmreduce.errors import ArgumentError, OrderError
from ssmreduce.gramians.batch import in_batch_shape, map_systems
from ssmreduce.hankel import rank_tolerance
from ssmreduce.reduction.balanced_diagonal import balanced_system
from ssmreduce.reduction.balanced_system import check_still_stable
from ssmreduce.reduction.balanced_unstable import BalancedUnstable, check_split
from ssmreduce.reduction.order import FixedOrder, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.unstable import split_unstable
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


@any_library()
def balanced_realisation(system: System) -> StateSpace:
    """Realisation (Wᴴ A T, Wᴴ B, C T) with Gramians P = Q = diag(σ), of full order.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable and minimal; with any leading batch axes.

    Returns
    -------
    StateSpace
        Dense, of the order of the system that is balanced: twice the stored states where a diagonal
        system outputs a real part, and real then. Read after the update if the system is.

    Raises
    ------
    OrderError
        If the system is not minimal up to rounding; the message names its rank.
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    An error of eps σ₁ in the Gramians becomes one of eps σ₁/σ_i in the state of σ_i. Cost O(n³).

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Discrete, StateSpace, controllability_gramian, observability_gramian
    >>> from ssmreduce.reduction.realisation import balanced_realisation
    >>> system = StateSpace([[0.9, 0.3], [0.0, 0.1]], [[1.0], [1.0]], [[1.0, 0.5]], time=Discrete())
    >>> balanced = balanced_realisation(system)
    >>> P, Q = controllability_gramian(balanced), observability_gramian(balanced)
    >>> bool(np.abs(P - Q).max() < 1e-13), bool(abs(P[0, 1]) < 1e-13)
    (True, True)
    """
    check_system(system)
    singles = map_systems(system, _balanced_single)
    batch = system.batch_shape

    def stacked(name: str) -> HostArray:
        return np.asarray(in_batch_shape([getattr(single, name) for single in singles], batch))

    return singles[0].replace(**{name: stacked(name) for name in "ABCD"})


@any_library()
def minimal_realisation(
    system: System, tolerance: float | None = None, *, margin: float = 0.0
) -> Reduction:
    """Leave out the states that are not reachable or not observable: same transfer function.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes; stable or not.
    tolerance : float, optional
        States whose Hankel singular value is at most this share of the largest are left out; 4 n
        eps, the accuracy of the values, if nothing else is given.
    margin : float
        Distance from the stability boundary that separates stable from unstable poles; see `balance`.

    Returns
    -------
    Reduction
        Of the same kind, and diagonal if the system was: balanced truncation of the stable part to
        its numerical rank, together with a minimal unstable part. The system itself if it is
        minimal.

    Raises
    ------
    OrderError, ArgumentError
        If the tolerance is not between 0 and 1, or if a stable system does not respond at all.
    ShapeError
        If the system has batch axes.
    NoConvergenceError
        As `balance`, if stable and unstable poles are too close.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n³).

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.realisation import minimal_realisation
    >>> system = DiagonalStateSpace(
    ...     [0.5, 0.9, 2.0], [[1.0], [0.0], [1.0]], [[1.0, 3.0, 1.0]], time=Discrete()
    ... )
    >>> minimal_realisation(system).system.eigenvalues.round(6).tolist()
    [2.0, 0.5]
    """
    check_system(system)
    rule = _NumericalRank(_checked_tolerance(tolerance))
    split = split_unstable(system, margin)
    check_split(split)
    if split.unstable is None:
        return replace(balanced_system(system).truncate(rule), method=_METHOD)
    trimmed = _minimal_unstable(split.unstable, rule)
    part = BalancedUnstable(system, split, split.unstable, trimmed)
    reduction = part.truncate(rule if part.rank else FixedOrder(max(part.unstable, 1)))
    return replace(reduction, method=_METHOD)


_METHOD = "minimal realisation"


@dataclass(frozen=True)
class _NumericalRank(OrderRule):
    """Keep every state whose Hankel singular value exceeds `tolerance` of the largest."""

    tolerance: float | None

    def choose(self, hsv: HostArray) -> int:
        """Return the number of such values, at least 1."""
        floor = rank_tolerance(hsv) if self.tolerance is None else self.tolerance * hsv[0]
        return max(1, int(np.sum(hsv > floor)))


def _balanced_single(system: System) -> StateSpace:
    dense = system.to_host() if isinstance(system, StateSpace) else system.to_dense()
    balanced = balanced_system(system)
    n = system.real_order
    if balanced.rank < n:
        raise OrderError(
            f"`system` has numerical rank {balanced.rank} but {n} states, so that no balanced "
            "realisation with all of them exists; expected a minimal system. "
            "Use minimal_realisation(system).system first."
        )
    W, T = balanced.projections(n)
    realisation = dense.replace(A=adjoint(W) @ (dense.A @ T), B=adjoint(W) @ dense.B, C=dense.C @ T)
    check_still_stable(
        realisation,
        "Rounding of the projections has moved a pole: leave out the weakest states first.",
    )
    return realisation


def _minimal_unstable(system: System, rule: OrderRule) -> Reduction:
    """Minimal realisation of a system through a stable copy of it with the same states."""
    poles = system.poles()
    if isinstance(system.time, Discrete):
        factor, offset = 1.0 / (2.0 * np.abs(poles).max()), 0.0
    else:
        # As far beyond the rightmost pole as the poles are large; any distance would do for a
        # multiple pole at 0.
        factor, offset = 1.0, -float(poles.real.max()) - float(np.abs(poles).max() or 1.0)
    reduction = balanced_system(_moved(system, factor, offset)).truncate(rule)
    if reduction.system is reduction.original:
        return replace(reduction, original=system, system=system)
    back = _moved(reduction.system, 1.0 / factor, -offset / factor)
    return replace(reduction, original=system, system=back)


def _moved(system: System, factor: float, offset: float) -> System:
    """The system with A replaced by factor · A + offset."""
    if isinstance(system, DiagonalStateSpace):
        return system.replace(eigenvalues=factor * system.poles() + offset)
    return system.replace(A=factor * system.A + offset * np.eye(system.order))


def _checked_tolerance(tolerance: float | None) -> float | None:
    if tolerance is None:
        return None
    if not is_number(tolerance) or not 0.0 < tolerance < 1.0:
        raise ArgumentError(
            f"`tolerance` is {shown(tolerance)}; expected a number between 0 and 1, relative to the largest "
            "Hankel singular value. Try 1e-12, or leave it out."
        )
    return float(tolerance)
