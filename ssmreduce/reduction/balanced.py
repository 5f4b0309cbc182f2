"""Balanced truncation: balance once, cut as often as you like, one system or a batch.

References: Moore, IEEE Trans. Automatic Control 26 (1981); Al-Saggaf and Franklin, IEEE Trans.
Automatic Control 32 (1987), for discrete time.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ssmreduce._array_libraries import Array, HostArray, to_host
from ssmreduce._array_routes import (
    Caller,
    NoNativeRoute,
    announce_fallback,
    deciding_array,
    is_foreign,
    needs_native,
    run_native,
)
from ssmreduce._checks import check_instance, flag, shown
from ssmreduce._display import short
from ssmreduce.errors import (
    ArgumentError,
)
from ssmreduce.gramians.batch import in_batch_shape
from ssmreduce.gramians.factors import check_horizon
from ssmreduce.gramians.frequency_weighting import FrequencyWeighting
from ssmreduce.reduction.balanced_batch import BalancedBatch
from ssmreduce.reduction.balanced_diagonal import balanced_systems
from ssmreduce.reduction.balanced_on_device import NativeBalancing
from ssmreduce.reduction.balanced_unstable import beside_unstable
from ssmreduce.reduction.order import MeasuredError, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.reduction.scaling import warn_if_badly_scaled
from ssmreduce.systems.diagonal import System, check_system
from ssmreduce.systems.state_space import StateSpace, checked_margin


def balance(
    system: System,
    *,
    horizon: int | None = None,
    band: tuple[float, float] | None = None,
    input_weight: System | None = None,
    output_weight: System | None = None,
    keep_unstable: bool = False,
    margin: float = 0.0,
) -> Balancing:
    """Factor the Gramians and decompose them, once for any number of cuts.

    P = Z Zᴴ, Q = Y Yᴴ, Yᴴ Z = U Σ Vᴴ; order r keeps T = Z V_r Σ_r^(-1/2), W = Y U_r Σ_r^(-1/2).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Sequence length L that the system will see (discrete time): balances what it does within L
        steps, also with poles on or outside the unit circle. No error bound exists then.
    band : tuple of two floats, optional
        Lowest and highest frequency that count, in rad/s or radians per sample (see
        `frequency_limited_factors`). There is no error bound, and the result may be unstable.
    input_weight, output_weight : StateSpace or DiagonalStateSpace, optional
        Stable filters W_i and W_o before the input and after the output, whose gain says how much
        each frequency counts (see `weighted_factors`). There is no error bound; with both weights
        the result may be unstable. Not together with `band` or `horizon`.
    keep_unstable : bool
        Keep unstable states and balance the stable part only. Fixed orders count all states; other
        rules, ``hsv`` and ``rank`` are those of the stable part, and so is the error bound.
    margin : float
        With `keep_unstable`: poles with Re λ ≥ -margin or |λ| ≥ 1 - margin count as unstable.

    Returns
    -------
    Balancing
        With ``hsv``, ``rank``, ``bound(order)``, ``truncate(order)`` and ``match_dc(order)``.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary, there is no horizon and unstable states
        are not to be kept; from `truncate` if a dense system that was balanced in a band, or with
        two weights, became unstable.
    ArgumentError
        If more than one of a horizon, a band and weights is given, or the band is empty or leaves
        the frequencies of the system; if `keep_unstable` is combined with one of them, or `margin`
        given without `keep_unstable`.
    TimeDomainError
        If a horizon is given for a continuous system, or the time of a weight differs.
    NoConvergenceError
        If stable and unstable poles are too close for the two parts to be separated to half of
        the digits.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError, NonFiniteError
        If `band` is not two numbers, or a weight is not a system that fits.

    Warns
    -----
    ScalingWarning
        If an input or output has less than sqrt(eps) of the H2 gain of the strongest one: its part
        of the response is then lost in rounding.

    Notes
    -----
    Cost O(n³), n being twice the stored order where the output is real.

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981); Laub, Heath, Paige and Ward, IEEE Trans.
    Automatic Control 32 (1987), for the square-root algorithm.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, balance
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> balancing = balance(system)
    >>> balancing.bound(1) > balancing.bound(2) > 0.0
    True
    >>> balancing.truncate(2).order
    2
    """
    weighting = FrequencyWeighting.chosen(horizon, band, input_weight, output_weight)
    return Balancing(system, horizon, weighting, keep_unstable=keep_unstable, margin=margin)


def balanced_truncation(
    system: System,
    order: int | OrderRule,
    *,
    horizon: int | None = None,
    common_order: bool = False,
    keep_unstable: bool = False,
    margin: float = 0.0,
) -> Reduction:
    """Reduce a system by balanced truncation, with ‖G - G_r‖∞ ≤ 2 Σ_{i>r} σ_i.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    order : int or OrderRule
        For a `StateSpace` exactly this many states. For diagonal systems an int (or `FixedOrder`)
        is an upper limit on the *stored* states; own order or more returns the system unchanged.
        Other rules choose the order of the (real) balanced system, and stored states follow.
    horizon : int, optional
        See `balance`.
    common_order : bool
        For a batch: give all systems the largest of their orders, as far as the rank of each
        and its pole pattern allow.
    keep_unstable : bool
        Keep unstable states and reduce the stable part; see `balance`.
    margin : float
        See `balance`.

    Returns
    -------
    Reduction
        The reduced system is of the same kind, and diagonal if it was.

    Raises
    ------
    OrderError, ArgumentError
        If the order is not positive, above the numerical rank of a dense system or below the number
        of unstable states, or if all Hankel singular values are zero.
    UnreachableToleranceError
        If an `ErrorBound` lies below the accuracy of the arithmetic.
    UnstableSystemError
        If a pole lies on or outside the stability boundary, there is no horizon and unstable states
        are not to be kept.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Cost O(n³), n being twice the stored order where the output is real. For several orders of one
    system call `balance` once, and cut its result.

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981); Enns, Proc. CDC 1984, and Glover, Int. J.
    Control 39 (1984), for the bound; Antoulas, Approximation of Large-Scale Dynamical Systems, SIAM
    2005, chapter 7.

    Examples
    --------
    >>> from ssmreduce import Discrete, ErrorBound, StateSpace, balanced_truncation
    >>> system = StateSpace([[0.9, 0.0], [0.0, 0.1]], [[1.0], [0.1]], [[1.0, 0.1]], time=Discrete())
    >>> reduction = balanced_truncation(system, ErrorBound(relative=0.1))
    >>> reduction.order, reduction.verify() <= reduction.error_bound
    (1, True)
    """
    balancing = Balancing(system, horizon, keep_unstable=keep_unstable, margin=margin)
    return balancing.truncate(order, common_order=common_order)


class Balancing:
    """One balanced system (or batch), ready for any number of cuts.

    Attributes
    ----------
    system : StateSpace or DiagonalStateSpace
        What was balanced.
    hsv : (..., n) array
        Hankel singular values, descending; 2n of them where a diagonal system outputs a real part.
        Where unstable states are kept, those of the stable part, padded with zeros.
    rank : int or (...) int array
        How many of them exceed 4 n eps σ₁.
    horizon : int or None
        Sequence length that was balanced for.
    weighting : FrequencyWeighting or None
        Band or weights that were balanced for.
    unstable : int or (...) int array
        How many stored states are kept because they are unstable.

    Raises
    ------
    SSMReduceError
        As `balance`.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, balance
    >>> system = DiagonalStateSpace([0.9, 0.5, 0.1], [[1.0]] * 3, [[1.0] * 3], time=Discrete())
    >>> balancing = balance(system)
    >>> balancing.hsv.round(3).tolist(), balancing.rank
    ([6.35, 1.188, 0.068], 3)
    >>> [balancing.truncate(order).verify() <= balancing.bound(order) for order in (1, 2)]
    [True, True]
    """

    def __init__(
        self,
        system: System,
        horizon: int | None = None,
        weighting: FrequencyWeighting | None = None,
        *,
        keep_unstable: bool = False,
        margin: float = 0.0,
    ) -> None:
        check_system(system)
        if weighting is not None:
            check_instance(
                weighting, FrequencyWeighting, "weighting", "FrequencyWeighting(band=(0.0, 1.0))"
            )
        self.system = system
        self._options = False, 0.0
        if keep_unstable is not False or not isinstance(margin, float) or margin != 0.0:
            self._options = _unstable_options(horizon, weighting, keep_unstable, margin)
        self.horizon = check_horizon(system, horizon)
        self.weighting = weighting
        self._caller: Caller | None = None  # who gave arrays of another library than NumPy
        self._native: NativeBalancing | None = None
        if is_foreign(system, weighting):
            self._caller = Caller(deciding_array(system, weighting))
            self._native = self._on_device()
        self.hsv: Array
        self.rank: int | Array
        self.unstable: int | Array
        if self._native is not None:
            self.hsv, self.rank, self.unstable = self._native.hsv, self._native.rank, 0
            return
        parts, shape = self._on_host.parts, tuple(system.D.shape[:-2])
        every = [(part.hsv, part.rank, part.unstable) for part in parts]
        found: Any = every[0]
        if shape:
            found = [in_batch_shape(list(x), shape) for x in zip(*every, strict=True)]
        if self._caller is not None:
            found = self._caller.answer(found)
        self.hsv, self.rank, self.unstable = found
        warn_if_badly_scaled(parts)

    def __repr__(self) -> str:
        parts = [repr(self.system), f"rank={short(self.rank)}"]
        parts += [
            f"{name}={value}"
            for name in ("horizon", "weighting")
            if (value := getattr(self, name)) is not None
        ]
        if short(self.unstable) != "0":
            parts.append(f"unstable={short(self.unstable)}")
        return f"Balancing({', '.join(parts)})"

    def _on_device(self) -> NativeBalancing | None:
        """Balance without leaving the device, where there is one and it can."""
        if not needs_native(self.system, self.weighting):
            return None
        plain = self.horizon is None and self.weighting is None and not self._options[0]
        reason = "only dense, stable systems are balanced on it, without a horizon, band or weights"
        if plain and isinstance(self.system, StateSpace):
            try:
                native: NativeBalancing = run_native(NativeBalancing, self.system)
                return native
            except NoNativeRoute as refusal:
                reason = str(refusal)
        announce_fallback("balance", reason, self.system, self.weighting)
        return None

    def _leave_device(self, name: str, reason: str) -> None:
        """Say that what comes is done on the host, where what came before was not."""
        if self._native is not None:
            announce_fallback(name, reason, self.system)

    @cached_property
    def _on_host(self) -> BalancedBatch:
        keep_unstable, margin = self._options
        host, weighting = self.system, self.weighting
        if self._caller is not None:
            host, weighting = self._caller.host((host, weighting))
        if keep_unstable:
            return BalancedBatch(host, beside_unstable(host, margin))
        return BalancedBatch(host, balanced_systems(host, self.horizon, weighting))

    def bound(self, order: int | OrderRule) -> float | HostArray | None:
        """Error bound of ``truncate(order)``: on ‖G - G_r‖∞.

        Parameters
        ----------
        order : int or OrderRule
            As `truncate` takes it.

        Returns
        -------
        float, (...) array or None
            One for each system of a batch; None where no theorem gives one.

        Raises
        ------
        SSMReduceError
            As `truncate`, which it calls.
        """
        return self.truncate(order).error_bound

    def plot(self, order: int | None = None, *, ax: Any = None) -> HostArray:
        """Draw the decay of the Hankel singular values, and the error bound against order.

        Parameters
        ----------
        order : int, optional
            How many values to mark as kept: of real states, where a diagonal system has a real output.
        ax : two Axes, optional
            Where to draw; a new figure otherwise.

        Returns
        -------
        (2,) array of Axes
            No bound is drawn where no theorem gives one. See `ssmreduce.plotting`.

        Raises
        ------
        OrderError
            If `order` is not between 0 and the number of values.
        MissingBackendError
            If Matplotlib is not installed.
        """
        from ssmreduce.plotting.overview import draw_balancing

        has_bound = self.horizon is None and self.weighting is None
        count = self.hsv.shape[-1]
        # Zeros stand for the states that are kept because they are unstable.
        each = count // max(self.system.order, 1)
        values = self.hsv[..., : count - each * int(to_host(self.unstable).min())]
        return draw_balancing(values, order, has_bound, ax)

    def budget_values(self) -> list[HostArray]:
        """For each system, the values by which a `TotalBudget` shares out states.

        They are the Hankel singular values by what an order counts: σ_{r+1} is left out when r are
        kept. Where a stored state stands for two real ones, that is every other value.
        """
        self._leave_device("budget_values", "it has no version for devices")
        values: list[HostArray] = self._on_host.budget_values()
        return values

    def truncate(self, order: int | OrderRule, *, common_order: bool = False) -> Reduction:
        """Cut to an order, as `balanced_truncation` does.

        Parameters
        ----------
        order : int or OrderRule
            As `balanced_truncation` takes it.
        common_order : bool
            For a batch: give all systems the largest of their orders; see `balanced_truncation`.

        Returns
        -------
        Reduction
            The reduced system is of the same kind, and diagonal if it was.

        Raises
        ------
        OrderError, UnreachableToleranceError
            As `balanced_truncation`.
        UnstableSystemError
            If a dense system that was balanced in a band, or with two weights, became unstable.
        """
        if self._native is not None:
            reason = "reduced systems are measured on the host"
            if not isinstance(order, MeasuredError):
                try:
                    cut: Reduction = run_native(self._native.truncate, as_rule(order))
                    return cut
                except NoNativeRoute as refusal:
                    reason = str(refusal)
            self._leave_device("truncate", reason)
        reduction = self._on_host.truncate(order, common_order=common_order)
        return reduction if self._caller is None else self._caller.answer(reduction)

    def match_dc(self, order: int | OrderRule, *, common_order: bool = False) -> Reduction:
        """Cut to an order and keep the DC gain, as `singular_perturbation` does.

        For a system that reads its state after the update the standard form is balanced on first
        use, a second factorisation: ``hsv``, ``rank`` and ``error_bound`` of the result are of that
        one.

        Parameters
        ----------
        order : int or OrderRule
            As `balanced_truncation` takes it.
        common_order : bool
            As in `truncate`.

        Returns
        -------
        Reduction
            With a feedthrough of its own.

        Raises
        ------
        OrderError, UnreachableToleranceError, UnstableSystemError
            As `singular_perturbation`.
        """
        self._leave_device("match_dc", "it has no version for devices")
        reduction = self._on_host.truncate(order, common_order=common_order, match_dc=True)
        return reduction if self._caller is None else self._caller.answer(reduction)


def _unstable_options(
    horizon: int | None, weighting: FrequencyWeighting | None, keep_unstable: bool, margin: float
) -> tuple[bool, float]:
    """`keep_unstable` and `margin`, checked."""
    keep_unstable, margin = flag(keep_unstable, "keep_unstable"), checked_margin(margin)
    if keep_unstable and weighting is not None:
        raise ArgumentError(
            "`keep_unstable` is True and a band or weights are given; expected one of the two. Balance "
            "split_unstable(system).stable with the band or weights."
        )
    if keep_unstable and horizon is not None:
        raise ArgumentError(
            f"`horizon` is {shown(horizon)} but `keep_unstable` is True; expected one of the two: within a "
            "horizon unstable states are balanced like any other. Leave `keep_unstable` out."
        )
    if not keep_unstable and margin != 0.0:
        raise ArgumentError(
            f"`margin` is {margin!r} but `keep_unstable` is False; expected no margin: nothing is "
            "split. Pass keep_unstable=True."
        )
    return keep_unstable, margin
