"""Laws of balanced truncation: the bound above and below, poles, values and Gramians of what is left.

σ_{r+1} ≤ ‖G - G_r‖_H ≤ ‖G - G_r‖∞ ≤ 2 Σ_{i>r} σ_i (Enns; Glover). The Hankel norm in the middle is the
largest singular value of the difference and needs no frequency grid.
Rounding of a truncation is C n eps sqrt(‖P‖ ‖Q‖) κ ‖W‖ ‖T‖: the projections amplify it, and a diagonal
system adds the condition of its eigenvectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import EPS, Array, adjoint, impulse_response
from strategies import (
    DENSE,
    DIAGONAL,
    System,
    assert_within,
    dense,
    difference,
    scale_of,
    systems,
)

from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelEnergy,
    HankelMass,
    Reduction,
    StateSpace,
    balance,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)
from ssmreduce.errors import UnstableSystemError
from ssmreduce.hankel import rank_tolerance
from ssmreduce.norms import hinf_difference
from ssmreduce.reduction.balanced import Balancing

pytestmark = [
    pytest.mark.every_library,
    # A port that rounding alone connects may have a tiny gain, which does not matter here.
    pytest.mark.filterwarnings("ignore::ssmreduce.errors.ScalingWarning"),
]

C = 20.0
"""As for the values; forming and solving with the reduced matrices adds a few more n eps."""


def orders(balancing: Balancing) -> list[int]:
    """Every order that can be asked for, but for those that are refused since rounding decides them."""
    dense_kind = isinstance(balancing.system, StateSpace)
    highest = int(balancing.rank) if dense_kind else balancing.system.order
    answered = []
    # From the highest on: the projections of all lower orders are then the leading columns of the same ones.
    for order in range(highest, 0, -1):
        try:
            balancing.truncate(order)
        except UnstableSystemError:
            assert dense_kind
            assert_decided_by_rounding(balancing, order)
        else:
            answered.append(order)
    return answered[::-1]


def assert_decided_by_rounding(balancing: Balancing, order: int) -> None:
    """The last value kept is near rounding, or nearly equal to the first one cut."""
    kept, cut = balancing.hsv[order - 1], [*balancing.hsv, 0.0][order]
    rounding = max(rank_tolerance(balancing.hsv), C * scale_of(balancing.system).rounding)
    assert kept - cut < 1e-5 * kept or kept < 1e7 * rounding


def trusted(system: System, balancing: Balancing) -> list[Reduction]:
    """Return the reductions to every order whose smallest kept value stands out of rounding."""
    limit = C * scale_of(system).rounding
    reductions = [balancing.truncate(order) for order in orders(balancing)]
    return [r for r in reductions if balancing.hsv[int(r.real_order) - 1] > limit]


def amplification(reduction: Reduction) -> float:
    """‖W‖ ‖T‖, times the condition of the eigenvectors where the result is diagonal."""
    if reduction.left is None or reduction.right is None:
        return 1.0
    grown = float(np.linalg.norm(reduction.left, 2) * np.linalg.norm(reduction.right, 2))
    return grown * (1.0 if reduction.slot_map is None else reduction.slot_map.condition)


def rounding(system: System, reduction: Reduction) -> float:
    # A_r = Wᴴ A T rounds by eps ‖A‖, however small A_r is, and that meets the condition of A_r: a cut
    # between two values that are nearly equal may leave a pole next to the boundary.
    before, after = scale_of(system), scale_of(reduction.system)
    sizes = [float(np.linalg.norm(dense(x).A, 2)) for x in (system, reduction.system)]
    shrunk = sizes[0] / max(sizes[1], EPS * sizes[0]) if sizes[0] else 1.0
    of_result = after.rounding * max(1.0, shrunk)
    # Singular vectors turn by rounding over σ_r - σ_{r+1}: a cut between equal values is arbitrary.
    kept = int(reduction.real_order)
    last, following = float(reduction.hsv[kept - 1]), float([*reduction.hsv, 0.0][kept])
    turned = last / max(last - following, EPS * last) if last else 1.0
    return C * max(before.rounding, of_result) * amplification(reduction) * turned


@given(systems(max_order=6), st.data())
def test_the_bound_holds(system: System, data: st.DataObject) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    reductions = trusted(system, balancing)
    assume(reductions)
    reduction = data.draw(st.sampled_from(reductions))
    assert reduction.error_bound is not None
    measured = hinf_difference(system, reduction.system, grid=24, refinements=3)
    assert_within(max(measured - float(reduction.error_bound), 0.0), rounding(system, reduction))


@given(systems(max_order=6))
def test_the_hankel_norm_of_the_error_lies_between(system: System) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    hsv = balancing.hsv
    for reduction in trusted(system, balancing):
        if reduction.left is None:
            assert reduction.system is system
            continue
        kept, bound = int(reduction.real_order), float(reduction.error_bound or 0.0)
        error = hankel_singular_values(difference(system, reduction.system))[0]
        allowed = rounding(system, reduction)
        assert_within(max(error - bound, 0.0), allowed)
        # No system of this order comes closer than σ_{r+1} (Adamjan, Arov and Krein).
        next_value = hsv[kept] if kept < hsv.size else 0.0
        assert_within(max(next_value - error, 0.0), allowed)


@given(systems(max_order=6))
def test_a_fine_grid_sees_the_lower_bound(system: System) -> None:
    balancing = balance(system)
    assume(balancing.rank > 1)
    for reduction in trusted(system, balancing):
        kept = int(reduction.real_order)
        measured = hinf_difference(system, reduction.system, grid=128, refinements=5)
        # 0.9: a grid with the resonances on it misses little of a peak.
        needed = 0.9 * (balancing.hsv[kept] if kept < balancing.hsv.size else 0.0)
        assert_within(max(needed - measured, 0.0), rounding(system, reduction))


@given(systems())
def test_the_reduced_system_is_stable(system: System) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    discrete = isinstance(system.time, Discrete)
    for reduction in trusted(system, balancing):
        poles = np.asarray(reduction.system.poles())
        assert (np.abs(poles).max() - 1.0 if discrete else poles.real.max()) < 0.0


@given(systems(), st.data())
def test_it_keeps_kind_size_and_arithmetic(system: System, data: st.DataObject) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    possible = orders(balancing)
    assume(possible)
    order = data.draw(st.sampled_from(possible))
    reduced: Any = balancing.truncate(order).system
    assert type(reduced) is type(system)
    assert reduced.time == system.time
    assert reduced.read_after_update == system.read_after_update
    assert (reduced.inputs, reduced.outputs) == (system.inputs, system.outputs)
    np.testing.assert_array_equal(reduced.D, system.D)
    if isinstance(system, StateSpace):
        assert reduced.order == order
        assert {x.dtype for x in (reduced.A, reduced.B, reduced.C)} == {system.A.dtype}
    else:
        assert reduced.order <= order
        assert reduced.real_output == system.real_output


@given(systems(max_order=7))
def test_values_of_what_is_left(system: System) -> None:
    # Continuous: the leading ones. Discrete: none above its own (the truncated Gramians solve
    # Lyapunov inequalities there).
    balancing = balance(system)
    assume(balancing.rank > 0)
    for reduction in trusted(system, balancing):
        left = hankel_singular_values(reduction.system)[: int(reduction.real_order)]
        gap = left - balancing.hsv[: left.size]
        if isinstance(system.time, Discrete):
            gap = np.maximum(gap, 0.0)
        assert_within(gap, rounding(system, reduction))


@given(systems(max_order=7, min_order=2))
def test_balanced_gramians_are_equal_and_diagonal(system: System) -> None:
    balancing = balance(system)
    assume(balancing.rank > 1)
    # The most that can be cut while something is cut, which is when the projections are reported. A column
    # that belongs to a value of the size of rounding is arbitrary.
    reductions = trusted(system, balancing)
    reductions = [r for r in reductions if r.left is not None and r.right is not None]
    assume(reductions)
    W, T = reductions[-1].left, reductions[-1].right
    assert W is not None
    assert T is not None
    kept = int(reductions[-1].real_order)
    expected = np.diag(balancing.hsv[:kept])
    scale = scale_of(system)
    for gramian, side in ((controllability_gramian(system), W), (observability_gramian(system), T)):
        allowed = scale.n * EPS * scale.condition * float(np.linalg.norm(side, 2)) ** 2
        allowed *= float(np.linalg.norm(gramian, 2))
        assert_within(adjoint(side) @ gramian @ side - expected, C * allowed)


@given(systems(max_order=7, min_order=2))
def test_projections_are_biorthogonal(system: System) -> None:
    # Wᴴ T = Σ^(-1/2) Uᴴ (Yᴴ Z) V Σ^(-1/2): n eps ‖Y‖ ‖Z‖ in the middle, divided by σ_r.
    balancing = balance(system)
    assume(balancing.rank > 1)
    size = np.linalg.norm(controllability_gramian(system), 2)
    size = float(np.sqrt(size * np.linalg.norm(observability_gramian(system), 2)))
    for order in orders(balancing):
        reduction = balancing.truncate(order)
        if reduction.left is None or reduction.right is None:
            continue
        product = adjoint(reduction.left) @ reduction.right
        smallest = float(balancing.hsv[len(product) - 1])
        allowed = C * len(reduction.left) * EPS * size / smallest
        assert_within(product - np.eye(len(product)), allowed)


@given(systems(kinds=DENSE, max_order=6))
def test_projections_give_the_reduced_matrices(system: StateSpace) -> None:
    balancing = balance(system)
    assume(balancing.rank > 1)
    for order in orders(balancing)[:-1]:
        reduction = balancing.truncate(order)
        W, T = reduction.left, reduction.right
        assert W is not None
        assert T is not None
        reduced: Any = reduction.system
        size_w, size_t = float(np.linalg.norm(W, 2)), float(np.linalg.norm(T, 2))
        n_eps = system.order * EPS
        for found, expected, size in (
            (reduced.A, adjoint(W) @ system.A @ T, size_w * size_t * np.linalg.norm(system.A)),
            (reduced.B, adjoint(W) @ system.B, size_w * np.linalg.norm(system.B)),
            (reduced.C, system.C @ T, size_t * np.linalg.norm(system.C)),
        ):
            assert_within(found - expected, C * n_eps * float(size))


@given(systems(max_order=8))
def test_bounds_fall_with_the_order_and_are_those_of_the_result(system: System) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    bounds = []
    for order in orders(balancing):
        reduction = balancing.truncate(order)
        bounds.append(reduction.error_bound)
        assert balancing.bound(order) == reduction.error_bound
        tail = 2.0 * np.sum(balancing.hsv[int(reduction.real_order) :])
        assert_within(float(reduction.error_bound or 0.0) - tail, 8 * EPS * float(tail))
    if isinstance(system, StateSpace):
        assert bounds == sorted(bounds, reverse=True)


@given(systems(max_order=6, discrete=True))
def test_outputs_stay_within_the_bound(system: System) -> None:
    # ‖y - y_r‖₂ ≤ bound ‖u‖₂, seen on the impulse response: each column is the response to ‖u‖ = 1.
    balancing = balance(system)
    assume(balancing.rank > 0)
    for reduction in trusted(system, balancing):
        gap: Array = impulse_response(system, 30) - impulse_response(reduction.system, 30)
        worst = float(np.sqrt(np.sum(np.abs(gap) ** 2, axis=(0, 1)).max()))
        bound = float(reduction.error_bound or 0.0)
        assert_within(max(worst - bound, 0.0), rounding(system, reduction))


@given(systems(minimal=True), st.floats(1e-3, 1.0), st.sampled_from(["mass", "energy", "bound"]))
def test_rules_choose_the_smallest_order_that_does(system: System, share: float, rule: str) -> None:
    balancing = balance(system)
    hsv, rank = balancing.hsv, int(balancing.rank)
    if rule == "bound":
        chosen: Any = ErrorBound(relative=share)
        # Below the rank no bound is small enough.
        assume(2.0 * np.sum(hsv[rank:]) <= share * hsv[0])
        fits = [2.0 * np.sum(hsv[r:]) <= share * hsv[0] for r in range(hsv.size + 1)]
    else:
        power = 1 if rule == "mass" else 2
        chosen = HankelMass(share) if rule == "mass" else HankelEnergy(share)
        total = np.cumsum(hsv**power)
        fits = [False, *(total >= share * total[-1])]
    try:
        reduction = balancing.truncate(chosen)
    except UnstableSystemError:
        assert_decided_by_rounding(balancing, max(1, min(fits.index(True), rank)))
        return
    smallest = max(1, min(fits.index(True), rank))
    # An order next to it is right where the sums differ by rounding only.
    if isinstance(system, StateSpace) and reduction.order != smallest:
        kept, other = hsv[: int(reduction.order)], hsv[:smallest]
        assert abs(np.sum(kept) - np.sum(other)) <= 8 * EPS * np.sum(hsv)
    assert int(reduction.wanted_order) >= int(reduction.real_order) or (reduction.system is system)


@given(systems(kinds=DIAGONAL, max_order=6))
def test_cuts_of_diagonal_systems_have_distinct_poles(system: DiagonalStateSpace) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    for order in orders(balancing):
        reduction = balancing.truncate(order)
        slots = reduction.slot_map
        if slots is None:
            continue
        poles = reduction.system.poles()
        assert poles.shape == (int(reduction.order),)
        if system.real_output:
            # One of each pair is stored, the one above the axis.
            assert np.all(poles.imag >= 0)
            assert int(reduction.real_order) == poles.size + int(np.sum(slots.is_pair))


@given(systems(kinds=DENSE, max_order=6), st.integers(-200, 200))
def test_extreme_gains_change_nothing_but_the_gain(system: StateSpace, power: int) -> None:
    balancing = balance(system)
    assume(balancing.rank > 0)
    scaled = StateSpace(
        system.A,
        system.B * 2.0**power,
        system.C * 2.0**power,
        time=system.time,
        read_after_update=system.read_after_update,
    )
    other = balance(scaled)
    assert other.rank == balancing.rank
    possible = orders(balancing)
    assert orders(other) == possible
    for order in possible:
        one: Any = balancing.truncate(order).system
        two: Any = other.truncate(order).system
        # The factors scale exactly, but LAPACK may return a singular vector with the other sign.
        np.testing.assert_allclose(np.abs(two.A), np.abs(one.A), rtol=4 * EPS, atol=0)
