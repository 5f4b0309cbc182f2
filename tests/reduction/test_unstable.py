"""Stable and unstable parts, and reductions that touch the stable one only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import EPS, adjoint, complex_normal, well_conditioned

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelMass,
    StateSpace,
    balance,
    balanced_truncation,
)
from ssmreduce._state_units import balance_states
from ssmreduce.errors import (
    ArgumentError,
    NoConvergenceError,
    OrderError,
    ShapeError,
    UnstableSystemError,
)
from ssmreduce.reduction.order import TotalBudget
from ssmreduce.reduction.unstable import split_unstable
from ssmreduce.responses import frequency_response

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["dense", "complex dense", "diagonal", "real output"])

C_ROUNDING = 100.0
"""c of c n eps · size · condition, for a handful of products of matrices of order n."""


def poles_of(rng: np.random.Generator, stable: int, unstable: int, *, discrete: bool) -> Any:
    """Complex poles at distance 0.1 or more from the boundary, on both sides of it."""
    if discrete:
        modulus = np.concatenate([rng.uniform(0.1, 0.9, stable), rng.uniform(1.1, 2.0, unstable)])
        return modulus * np.exp(1j * rng.uniform(0.2, 2.8, stable + unstable))
    real = np.concatenate([rng.uniform(-3.0, -0.1, stable), rng.uniform(0.1, 2.0, unstable)])
    return real + 1j * rng.uniform(0.5, 3.0, stable + unstable)


def draw(kind: str, seed: int, stable: int, unstable: int, *, discrete: bool) -> Any:
    """A system with that many poles of each kind; pairs of them in a real dense system."""
    rng = np.random.default_rng(seed)
    poles = poles_of(rng, stable, unstable, discrete=discrete)
    time: Any = Discrete() if discrete else Continuous()
    n = poles.size
    if kind in {"diagonal", "real output"}:
        order = rng.permutation(n)
        return DiagonalStateSpace(
            poles[order],
            complex_normal(rng, n, 2),
            complex_normal(rng, 3, n),
            rng.standard_normal((3, 2)),
            time=time,
            real_output=kind == "real output",
        )
    if kind == "complex dense":
        A, size = np.diag(poles), n
    else:
        size = 2 * n
        A = np.zeros((size, size))
        for k, pole in enumerate(poles):
            block = [[pole.real, pole.imag], [-pole.imag, pole.real]]
            A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = block
    T = well_conditioned(rng, size, is_complex=kind != "dense")
    normal = complex_normal if kind != "dense" else (lambda g, *s: g.standard_normal(s))
    return StateSpace(
        T @ A @ np.linalg.inv(T),
        normal(rng, size, 2),
        normal(rng, 3, size),
        rng.standard_normal((3, 2)),
        time=time,
    )


def response(system: Any, *, discrete: bool) -> np.ndarray:
    omega = np.linspace(-np.pi, np.pi, 121) if discrete else np.linspace(-12.0, 12.0, 121)
    return np.asarray(frequency_response(system, omega))


def distance(first: Any, second: Any, *, discrete: bool) -> float:
    difference = response(first, discrete=discrete) - response(second, discrete=discrete)
    return float(np.linalg.norm(difference, 2, axis=(1, 2)).max())


def is_stable(poles: np.ndarray, *, discrete: bool) -> np.ndarray:
    return np.asarray(np.abs(poles) < 1 if discrete else poles.real < 0)


@given(KINDS, SEEDS, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_the_parts_add_up(kind: str, seed: int, stable: int, unstable: int, discrete: bool) -> None:
    system = draw(kind, seed, stable, unstable, discrete=discrete)
    split = split_unstable(system)
    assert split.stable is not None
    assert split.unstable is not None
    pair = 2 if kind == "dense" else 1
    assert (split.stable.order, split.unstable.order) == (pair * stable, pair * unstable)
    assert split.unstable_count == pair * unstable
    assert np.all(is_stable(split.stable.poles(), discrete=discrete))
    assert not np.any(is_stable(split.unstable.poles(), discrete=discrete))
    assert type(split.stable) is type(system)
    total = response(split.stable, discrete=discrete) + response(split.unstable, discrete=discrete)
    size = np.abs(response(system, discrete=discrete)).max()
    size = max(size, np.abs(response(split.stable, discrete=discrete)).max())
    # Condition 9 of the states drawn, twice, and resonances at a distance of 0.1.
    allowed = C_ROUNDING * system.order * EPS * size * split.condition * 81 / 0.1
    assert np.abs(total - response(system, discrete=discrete)).max() <= allowed
    np.testing.assert_array_equal(split.stable.D, system.D)
    assert not np.any(split.unstable.D)
    if kind == "dense":
        assert not np.iscomplexobj(split.stable.A)
        assert not np.iscomplexobj(split.unstable.B)
    (Ws, Wu), (Ts, Tu) = split.left, split.right
    identity = np.concatenate([adjoint(Ws), adjoint(Wu)]) @ np.concatenate([Ts, Tu], axis=1)
    rounding = C_ROUNDING * len(Ws) * EPS * split.condition
    assert np.abs(identity - np.eye(len(Ws))).max() <= rounding
    units = None
    if isinstance(system, StateSpace):
        _, units = balance_states(system.A, system.B, system.C)
    T = np.concatenate([Ts, Tu], axis=1)
    measured = np.linalg.cond(T if units is None else T / units)
    assert split.condition == pytest.approx(measured, rel=1e-6)


@given(KINDS, SEEDS, st.integers(2, 5), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_stable_part_is_reduced(
    kind: str, seed: int, stable: int, unstable: int, discrete: bool, matched: bool
) -> None:
    system = draw(kind, seed, stable, unstable, discrete=discrete)
    with pytest.raises(UnstableSystemError):
        balance(system)
    balancing = balance(system, keep_unstable=True)
    kept = 2 * unstable if kind == "dense" else unstable
    assert balancing.unstable == kept
    assert balancing.hsv.shape == (2 * system.order if kind == "real output" else system.order,)
    split = split_unstable(system)
    inner = balance(split.stable)
    # The same arithmetic, but not on the same addresses, which BLAS may take in other blocks.
    rounding = C_ROUNDING * system.order * EPS
    np.testing.assert_allclose(balancing.hsv[: inner.hsv.size], inner.hsv, rtol=rounding, atol=0)
    assert not np.any(balancing.hsv[inner.hsv.size :])
    cut = balancing.match_dc if matched else balancing.truncate
    size = np.abs(response(system, discrete=discrete)).max() + inner.hsv[0]
    for order in range(kept, kept + min(int(balancing.rank), split.stable.order)):
        reduction = cut(order)
        reduced: Any = reduction.system
        assert kept <= reduction.order <= order
        assert reduced.order == reduction.order
        if "dense" in kind:
            assert reduction.order == order
        assert reduction.unstable == kept
        stable_order = int(reduction.real_order) - kept * (2 if kind == "real output" else 1)
        tail = 2 * inner.hsv[stable_order:].sum()
        assert reduction.error_bound == pytest.approx(tail, rel=1e-9)
        condition = split.condition
        condition *= 1.0 if reduction.slot_map is None else reduction.slot_map.condition
        rounding = C_ROUNDING * system.order * EPS * size * condition * 81 / 0.1
        assert distance(system, reduced, discrete=discrete) <= (
            reduction.error_bound * (1 + 1e-9) + rounding
        )
        if not matched:
            assert reduction.verify() <= reduction.error_bound * (1 + 1e-9) + rounding
        # The unstable poles are those of before.
        before = np.sort_complex(split.unstable.poles())
        poles = np.asarray(reduced.poles())
        after = np.sort_complex(poles[~is_stable(poles, discrete=discrete)])
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
        if reduction.left is not None:
            W, T = reduction.left, reduction.right
            assert T is not None
            assert W.shape == (balancing.hsv.size, reduction.real_order)
            error = np.abs(adjoint(W) @ T - np.eye(int(reduction.real_order))).max()
            size_wt = np.linalg.norm(W, 2) * np.linalg.norm(T, 2)
            assert error <= C_ROUNDING * len(W) * EPS * size_wt
            if not matched:
                check_slot_map(system, reduction)
    with pytest.raises(OrderError, match=f"`order` is {max(kept - 1, 0)}"):
        cut(kept - 1)


def check_slot_map(system: Any, reduction: Any) -> None:
    """The stored states are what the projections and the slot map say."""
    if reduction.slot_map is None:
        return
    dense = system.to_dense()
    W, T, slots = reduction.left, reduction.right, reduction.slot_map
    reduced = reduction.system
    scale = np.linalg.norm(W, 2) * np.linalg.norm(T, 2) * slots.condition
    allowed = C_ROUNDING * len(W) * EPS * scale
    B, C = slots.ports(adjoint(W) @ dense.B, dense.C @ T)
    assert np.abs(reduced.B - B).max() <= allowed * np.abs(B).max()
    assert np.abs(reduced.C - C).max() <= allowed * np.abs(C).max()


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
@pytest.mark.parametrize("discrete", [False, True])
def test_only_the_unstable_states_may_stay(kind: str, discrete: bool) -> None:
    system = draw(kind, 1, 3, 2, discrete=discrete)
    kept = 4 if kind == "dense" else 2
    balancing = balance(system, keep_unstable=True)
    truncated, matched = balancing.truncate(kept), balancing.match_dc(kept)
    total = 2 * balancing.hsv.sum()
    for reduction in (truncated, matched):
        assert reduction.order == reduction.system.order == kept
        assert reduction.error_bound == pytest.approx(total)
        assert distance(system, reduction.system, discrete=discrete) <= total
    np.testing.assert_array_equal(truncated.system.D, system.D)
    # What is left of the stable part is its DC gain.
    split = split_unstable(system)
    gain = frequency_response(split.stable, [0.0])[0]
    assert np.abs(matched.system.D - gain).max() <= C_ROUNDING * system.order * EPS * 81 * (
        np.abs(gain).max() + balancing.hsv[0]
    )


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
def test_nothing_is_left_to_reduce(kind: str) -> None:
    system = draw(kind, 2, 0, 3, discrete=True)
    split = split_unstable(system)
    assert split.stable is None
    np.testing.assert_array_equal(split.unstable.D, system.D)
    balancing = balance(system, keep_unstable=True)
    assert balancing.rank == 0
    reduction = balancing.truncate(system.order)
    assert reduction.system is system
    assert balancing.truncate(HankelMass(0.5)).system is system
    with pytest.raises(OrderError, match="unstable states"):
        balancing.truncate(1)


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
def test_a_stable_system_is_reduced_as_ever(kind: str) -> None:
    system = draw(kind, 3, 4, 0, discrete=True)
    split = split_unstable(system)
    assert split.unstable is None
    assert split.condition == 1.0
    first = balanced_truncation(system, 2)
    second = balanced_truncation(system, 2, keep_unstable=True)
    assert second.unstable == 0
    np.testing.assert_array_equal(first.hsv, second.hsv)
    np.testing.assert_array_equal(first.system.B, second.system.B)


def test_poles_on_the_boundary_are_kept() -> None:
    # An integrator, an undamped oscillator and a stable rest: neither has a Gramian.
    A = np.zeros((6, 6))
    A[1:3, 1:3] = [[0.0, 2.0], [-2.0, 0.0]]
    A[3:, 3:] = [[-1.0, 1.0, 0.0], [0.0, -2.0, 1.0], [0.0, 0.0, -3.0]]
    rng = np.random.default_rng(4)
    T = well_conditioned(rng, 6, is_complex=False)
    B, C = rng.standard_normal((6, 1)), rng.standard_normal((1, 6))
    system = StateSpace(T @ A @ np.linalg.inv(T), B, C, time=Continuous())
    split = split_unstable(system)
    assert split.unstable_count == 3
    assert np.abs(split.unstable.poles().real).max() <= 500 * EPS
    reduction = balanced_truncation(system, 4, keep_unstable=True)
    assert reduction.error_bound is not None
    assert reduction.verify() <= reduction.error_bound * (1 + 1e-9)
    for poles, time in (([0.5, 1.0, -1.0, 1j], Discrete()), ([-1.0, 0.0, 2j, -2j], Continuous())):
        diagonal = DiagonalStateSpace(
            np.array(poles, dtype=complex), np.ones((4, 1)), np.ones((1, 4)), time=time
        )
        assert split_unstable(diagonal).unstable_count == 3
        exact = balanced_truncation(diagonal, 3, keep_unstable=True)
        assert exact.order == 3
        # Measured on the stable part, where poles on the boundary do not blur it.
        assert 0 < exact.verify() <= exact.error_bound * (1 + 4 * EPS)


def test_margin_moves_the_line() -> None:
    poles = np.array([0.5, 0.9, 0.999, 1.5])
    system = DiagonalStateSpace(poles, np.ones((4, 1)), np.ones((1, 4)), time=Discrete())
    counts = [split_unstable(system, margin).unstable_count for margin in (0.0, 0.01, 0.2, 0.9)]
    assert counts == [1, 2, 3, 4]
    # The line itself counts as unstable.
    assert split_unstable(system, 0.5).unstable_count == 4
    continuous = StateSpace(
        np.diag([-0.5, -1e-3, 0.2]), np.ones((3, 1)), np.ones((1, 3)), time=Continuous()
    )
    assert [split_unstable(continuous, margin).unstable_count for margin in (0, 1e-2)] == [1, 2]
    assert balance(continuous, keep_unstable=True, margin=0.01).unstable == 2


def test_logarithms_decide_next_to_the_circle() -> None:
    logarithms = np.array([-1e-17, 0.0, -1.0])
    system = DiagonalStateSpace.from_log(
        logarithms, np.ones((3, 1)), np.ones((1, 3)), time=Discrete()
    )
    split = split_unstable(system)
    assert split.unstable_count == 1
    assert split.stable.log_eigenvalues is not None


def test_poles_that_cannot_be_told_apart() -> None:
    # One defective pole at the boundary, a digit of rounding on either side of it: the condition says
    # what separating the two costs, or the split is refused.
    A = np.array([[1e-8, 1.0, 0.0], [0.0, -1e-8, 0.0], [0.0, 0.0, -1.0]])
    system = StateSpace(A, np.ones((3, 1)), np.ones((1, 3)), time=Continuous())
    assert split_unstable(system).condition > 1e14
    assert split_unstable(system, margin=1e-6).condition < 10
    with pytest.raises(NoConvergenceError, match="`margin`"):
        balance(system, keep_unstable=True)
    assert balance(system, keep_unstable=True, margin=1e-6).unstable == 2
    twin = StateSpace(
        np.array([[0.0, 1.0], [0.0, -1e-12]]), np.ones((2, 1)), np.ones((1, 2)), time=Continuous()
    )
    # Written as a triangle, poles are no rounding.
    assert split_unstable(twin).unstable_count == 1
    assert split_unstable(twin, margin=1e-11).unstable_count == 2
    diagonal = np.diag([1.0, 1.0])
    from ssmreduce._schur import SchurForm
    from ssmreduce.reduction.decoupling import decouple

    diagonal[0, 1] = 1.0
    with pytest.raises(NoConvergenceError, match="cannot be separated"):
        decouple(SchurForm.of(diagonal), np.array([True, False]))


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_rules_see_the_stable_part(kind: str) -> None:
    system = draw(kind, 5, 6, 2, discrete=True)
    balancing = balance(system, keep_unstable=True)
    inner = balance(split_unstable(system).stable)
    for rule in (HankelMass(0.9), ErrorBound(relative=0.3)):
        assert (
            balancing.truncate(rule).order
            == inner.truncate(rule).order + split_unstable(system).unstable_count
        )
    budget = balancing.truncate(TotalBudget(int(balancing.unstable) + 3))
    assert budget.order <= balancing.unstable + 3
    assert budget.unstable == balancing.unstable


def test_a_batch_of_mixed_stability() -> None:
    singles = [draw("real output", seed, 6 - seed, seed, discrete=True) for seed in range(3)]
    batch = DiagonalStateSpace(
        *(np.stack([getattr(s, name) for s in singles]) for name in ("eigenvalues", "B", "C", "D")),
        time=Discrete(),
        real_output=True,
    )
    result = balanced_truncation(batch, 4, keep_unstable=True)
    np.testing.assert_array_equal(result.unstable, [0, 1, 2])
    for k, single in enumerate(singles):
        part = balanced_truncation(single, 4, keep_unstable=True)
        assert result.order[k] == part.order
        np.testing.assert_array_equal(result.system.B[k][result.mask[k]], part.system.B)
        assert result.error_bound[k] == part.error_bound
        assert result.verify()[k] <= result.error_bound[k]
    budget = balanced_truncation(batch, TotalBudget(10), keep_unstable=True)
    assert budget.order.sum() <= 10
    common = balanced_truncation(batch, HankelMass(0.9), keep_unstable=True, common_order=True)
    assert np.all(common.order <= common.order.max())
    with pytest.raises(OrderError, match="2 unstable"):
        balanced_truncation(batch, 1, keep_unstable=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("discrete", [False, True])
def test_slicot_agrees(seed: int, discrete: bool) -> None:
    slycot = pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
    system = draw("dense", seed, 3, 1, discrete=discrete)
    order, n = 5, system.order
    copies = (x.copy() for x in (system.A, system.B, system.C))
    reached, A, B, C, stable, hsv = slycot.ab09md(
        "D" if discrete else "C", "B", "N", n, 2, 3, *copies, nr=order
    )
    assert (reached, stable) == (order, 6)
    reduction = balanced_truncation(system, order, keep_unstable=True)
    condition = split_unstable(system).condition * 81 / 0.1
    allowed = C_ROUNDING * n * EPS * hsv[0] * condition
    assert np.abs(reduction.hsv[:6] - hsv[:6]).max() <= allowed
    theirs = StateSpace(A, B, C, system.D, time=system.time)
    size = np.abs(response(system, discrete=discrete)).max()
    assert distance(theirs, reduction.system, discrete=discrete) <= allowed * (1 + size / hsv[0])


@pytest.mark.parametrize("margin", [-1e-3, np.nan, "small", True, 1.0])
def test_margins_out_of_range(margin: Any) -> None:
    system = draw("diagonal", 6, 2, 1, discrete=True)
    with pytest.raises(ArgumentError, match="`margin`"):
        split_unstable(system, margin)


def test_arguments_that_do_not_go_together() -> None:
    system = draw("diagonal", 7, 2, 1, discrete=True)
    with pytest.raises(ArgumentError, match="`keep_unstable` is True"):
        balance(system, horizon=5, keep_unstable=True)
    with pytest.raises(ArgumentError, match="`keep_unstable` is False"):
        balance(system, margin=0.1)
    batch = DiagonalStateSpace(
        system.eigenvalues[None], system.B[None], system.C[None], system.D[None], time=Discrete()
    )
    with pytest.raises(ShapeError, match="batch axes"):
        split_unstable(batch)
    dense = draw("dense", 7, 2, 1, discrete=True)
    with pytest.raises(OrderError, match="at most 6"):
        balanced_truncation(dense, 7, keep_unstable=True)
