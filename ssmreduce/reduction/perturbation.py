"""Singular perturbation: reduce a system and keep its DC gain exactly."""

from __future__ import annotations

from ssmreduce._array_routes import any_library
from ssmreduce.reduction.balanced import balance
from ssmreduce.reduction.order import OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import System


@any_library()
def singular_perturbation(
    system: System,
    order: int | OrderRule,
    *,
    common_order: bool = False,
    keep_unstable: bool = False,
    margin: float = 0.0,
) -> Reduction:
    """Reduce by balancing and DC matching: G_r(s₀) = G(s₀) at zero frequency, ‖G - G_r‖∞ ≤ 2
    Σ_{i>r} σ_i.

    The discarded balanced states follow at once, A₁₁ - A₁₂ (A₂₂ - s₀)⁻¹ A₂₁ and so on, with s₀ = 0
    in continuous and s₀ = 1 in discrete time. The error is small at low frequencies and largest at
    high ones; truncation has it the other way round.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless `keep_unstable`; with any leading batch axes. One that reads its state after
        the update is brought to the standard form (A, B, C A, D + C B) and taken back.
    order : int or OrderRule
        As for `balanced_truncation`; rules and bound are those of the standard form.
    common_order : bool
        See `balanced_truncation`.
    keep_unstable : bool
        See `balance`; the DC gain of the stable part is then what is kept.
    margin : float
        See `balance`.

    Returns
    -------
    Reduction
        Of the same kind and diagonal if the system was, with a feedthrough of its own: D is a full
        (p, m) matrix whatever it was.

    Raises
    ------
    OrderError, ArgumentError, UnreachableToleranceError, UnstableSystemError
        As `balanced_truncation`; also an `OrderError` if the system reads after its update and the
        reduced state matrix is singular, so that no such system has the reduced map.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Computed by one bordered system of order n + r (2n + r for real output), in which states beyond
    the numerical rank have no part. The DC gain agrees to eps times the condition number of A - s₀.
    As in truncation, the error may exceed its bound by what rounding of A changes.

    References
    ----------
    Liu and Anderson, Int. J. Control 50 (1989).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.perturbation import singular_perturbation
    >>> from ssmreduce.responses import frequency_response
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> reduced = singular_perturbation(system, 1).system
    >>> gains = [frequency_response(s, [0.0])[0, 0, 0] for s in (system, reduced)]
    >>> bool(abs(gains[1] / gains[0] - 1) < 1e-13)
    True
    """
    balancing = balance(system, keep_unstable=keep_unstable, margin=margin)
    return balancing.match_dc(order, common_order=common_order)
