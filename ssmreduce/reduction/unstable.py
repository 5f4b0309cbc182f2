"""Unstable systems: split them in a stable and an unstable part.

G = G_s + G_u, where the poles of G_u have Re λ ≥ -margin (continuous) or |λ| ≥ 1 - margin (discrete time).
Dense systems are split by an ordered Schur form and a Sylvester equation (`decoupling`), diagonal
ones by picking states. Reductions touch G_s only, see `stable_part`. Digits are lost with the
condition of the split, which is reported: a margin can put it where the poles have a gap.

References: Kågström and Van Dooren, Linear Algebra Appl. 126 (1990); Varga, Proc. CDC 2001.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._checks import is_number, shown
from ssmreduce._schur import SchurForm
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.reduction.decoupling import decouple
from ssmreduce.reduction.selection import embedding, stability_distance, subsystem
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous


@dataclass(frozen=True, eq=False)
class UnstableSplit:
    """A system as the sum of a stable and an unstable part.

    Attributes
    ----------
    stable : StateSpace, DiagonalStateSpace or None
        Part with the stable poles, and D; None if there are none.
    unstable : StateSpace, DiagonalStateSpace or None
        Part with the other poles and no feedthrough (but D where there is no stable part); None if
        there are none.
    condition : float
        Condition number of the change of states that separates the two, in units that balance A; 1
        for a diagonal system.
    left, right : tuple of two (n, k) arrays
        W and T of the stable and of the unstable part, with Wᴴ T = I for each and 0 between the
        two; in real states where a diagonal system outputs a real part.

    Examples
    --------
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.reduction.unstable import split_unstable
    >>> system = StateSpace(
    ...     [[1.0, 1.0], [0.0, -1.0]], [[1.0], [1.0]], [[1.0, 0.0]], time=Continuous()
    ... )
    >>> split = split_unstable(system)
    >>> split.stable.poles().tolist(), split.unstable.poles().tolist()
    ([-1.0], [1.0])
    """

    stable: System | None
    unstable: System | None
    condition: float
    left: tuple[HostArray, HostArray] = field(repr=False)
    right: tuple[HostArray, HostArray] = field(repr=False)

    @property
    def unstable_count(self) -> int:
        """Stored states of the unstable part."""
        return 0 if self.unstable is None else self.unstable.order


@any_library()
def split_unstable(system: System, margin: float = 0.0) -> UnstableSplit:
    """Split G = G_s + G_u at Re λ = -margin (continuous) or |λ| = 1 - margin (discrete time).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes.
    margin : float
        Poles within this distance of the stability boundary count as unstable, and so does what
        lies on the line itself. Poles of a dense system are taken to lie on it if they do up to
        rounding (`StateSpace.is_stable`); multiple ones spread further and need a margin.

    Returns
    -------
    UnstableSplit
        The parts are in NumPy arrays at double precision; real if the system is.

    Raises
    ------
    ArgumentError
        If the margin is not a nonnegative number (below 1 in discrete time).
    ShapeError
        If the system has batch axes.
    NoConvergenceError
        If poles on both sides of the line agree to rounding.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n³) for a dense system; none for a diagonal one.

    References
    ----------
    Kågström and Van Dooren, Linear Algebra Appl. 126 (1990).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.unstable import split_unstable
    >>> system = DiagonalStateSpace([0.5, 1.0], [[1.0], [2.0]], [[1.0, 1.0]], time=Discrete())
    >>> split_unstable(system).unstable.eigenvalues.tolist()
    [1.0]
    """
    check_system(system)
    if system.batch_shape:
        raise ShapeError(
            f"`system` has batch axes {system.batch_shape}; expected a single system. "
            "Index it first: system[0]."
        )
    margin = _checked_margin(margin, system)
    host = system.to_host()
    if isinstance(host, DiagonalStateSpace):
        return _split_diagonal(host, margin)
    return _split_dense(host, margin)


def _split_diagonal(host: DiagonalStateSpace, margin: float) -> UnstableSplit:
    is_stable = stability_distance(host) > margin
    stable, unstable = np.flatnonzero(is_stable), np.flatnonzero(~is_stable)
    bases = embedding(host, stable)[0], embedding(host, unstable)[0]
    return UnstableSplit(
        stable=subsystem(host, stable, keep_D=True) if stable.size else None,
        unstable=subsystem(host, unstable, keep_D=not stable.size) if unstable.size else None,
        condition=1.0,
        left=bases,
        right=bases,
    )


def _split_dense(host: StateSpace, margin: float) -> UnstableSplit:
    schur = SchurForm.of(host.A, host.B, host.C, time=host.time)
    is_stable = schur.stable(host.time, margin)
    groups = decouple(schur, is_stable)

    def part(A: HostArray, W: HostArray, T: HostArray, *, keep_D: bool) -> StateSpace | None:
        if not len(A):
            return None
        D = host.D if keep_D else np.zeros_like(host.D)
        return host.replace(A=A, B=adjoint(W) @ host.B, C=host.C @ T, D=D)

    return UnstableSplit(
        stable=part(groups.first, groups.left[0], groups.right[0], keep_D=True),
        unstable=part(groups.second, groups.left[1], groups.right[1], keep_D=not np.any(is_stable)),
        condition=groups.condition,
        left=groups.left,
        right=groups.right,
    )


def _checked_margin(margin: float, system: System) -> float:
    limit = np.inf if isinstance(system.time, Continuous) else 1.0
    if not is_number(margin) or not 0.0 <= margin < limit:
        below = " below 1" if limit == 1.0 else ""
        raise ArgumentError(
            f"`margin` is {shown(margin)}; expected a nonnegative number{below}: how far inside the "
            "stability boundary poles still count as unstable. Try 1e-6."
        )
    return float(margin)
