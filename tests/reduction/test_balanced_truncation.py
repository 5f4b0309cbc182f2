"""Balanced truncation: laws that hold for every system, and what the result says about itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import (
    EPS,
    adjoint,
    complex_normal,
    dense_system,
    diagonal_system,
    impulse_response,
    lru_system,
    well_conditioned,
)

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    FixedOrder,
    HankelEnergy,
    HankelMass,
    Reduction,
    StateSpace,
    balance,
    balanced_truncation,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)
from ssmreduce.errors import (
    ArgumentError,
    OrderError,
    UnreachableToleranceError,
)
from ssmreduce.norms import hinf_difference

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["dense", "complex dense", "diagonal", "real output"])

C_ROUNDING = 100.0
"""c of c n eps σ₁: truncated matrices are products with W and T, whose entries grow like
sqrt(σ₁/σ_r) and meet weights that shrink alike; measured errors stay below 20 n eps σ₁."""


def draw_system(kind: str, seed: int, n: int, m: int, p: int, *, discrete: bool) -> Any:
    rng = np.random.default_rng(seed)
    if "dense" in kind:
        return dense_system(rng, n, m, p, discrete=discrete, is_complex=kind != "dense")
    return diagonal_system(rng, n, m, p, discrete=discrete, real_output=kind == "real output")


def rounding(reduction: Reduction) -> float:
    return C_ROUNDING * reduction.hsv.size * EPS * float(reduction.hsv[0])


@given(KINDS, SEEDS, st.integers(2, 9), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_error_bound_holds(kind: str, seed: int, n: int, m: int, p: int, discrete: bool) -> None:
    balancing = balance(draw_system(kind, seed, n, m, p, discrete=discrete))
    for order in {1, n // 2, n - 1} - {0}:
        if "dense" in kind and order > balancing.rank:
            continue
        reduction = balancing.truncate(order)
        assert reduction.order <= order
        assert reduction.error_bound is not None
        # Re-diagonalisation costs eps cond(V) σ₁.
        condition = 1.0 if reduction.slot_map is None else reduction.slot_map.condition
        allowed = reduction.error_bound * (1 + 1e-9) + rounding(reduction) * condition
        assert reduction.verify() <= allowed
        assert reduction.quick_error() <= allowed


@given(SEEDS, st.integers(2, 8), st.booleans(), st.booleans())
def test_values_are_invariant_under_similarity_dense(
    seed: int, n: int, discrete: bool, is_complex: bool
) -> None:
    rng = np.random.default_rng(seed)
    system = dense_system(rng, n, 2, 2, discrete=discrete, is_complex=is_complex)
    T = well_conditioned(rng, n, is_complex=is_complex)
    inverse = np.linalg.inv(T)
    moved = StateSpace(inverse @ system.A @ T, inverse @ system.B, system.C @ T, time=system.time)
    plain, other = hankel_singular_values(system), hankel_singular_values(moved)
    # Rounding of A T perturbs poles by cond(V) eps, and the Gramian by that over the distance to
    # the boundary, 0.1 here; cond(T) = 3.
    condition = np.linalg.cond(np.linalg.eig(system.A)[1]) ** 2 * 9 / 0.1
    assert np.abs(plain - other).max() <= C_ROUNDING * n * EPS * plain[0] * condition


@given(SEEDS, st.integers(2, 8), st.booleans(), st.booleans())
def test_values_are_invariant_under_similarity_diagonal(
    seed: int, n: int, discrete: bool, real_output: bool
) -> None:
    rng = np.random.default_rng(seed)
    system = diagonal_system(rng, n, 2, 2, discrete=discrete, real_output=real_output)
    scale = np.exp(3 * rng.standard_normal(n) + 2j * np.pi * rng.uniform(size=n))
    order = rng.permutation(n)
    moved = DiagonalStateSpace(
        system.eigenvalues[order],
        (system.B * scale[:, None])[order],
        (system.C / scale)[:, order],
        time=system.time,
        real_output=real_output,
    )
    plain, other = hankel_singular_values(system), hankel_singular_values(moved)
    assert np.abs(plain - other).max() <= C_ROUNDING * n * EPS * plain[0]


@given(KINDS, SEEDS, st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_own_order_or_more_changes_nothing(
    kind: str, seed: int, n: int, more: int, discrete: bool
) -> None:
    system = draw_system(kind, seed, n, 2, 2, discrete=discrete)
    balancing = balance(system)
    if "dense" in kind:
        if balancing.rank < n:
            return
        more = 0
    reduction = balancing.truncate(n + more)
    assert reduction.system is system
    assert reduction.order == n
    assert reduction.real_order == reduction.hsv.size
    assert reduction.error_bound == 0.0
    assert reduction.left is None
    assert reduction.right is None
    assert reduction.slot_map is None
    assert reduction.verify() == 0.0


@given(KINDS, SEEDS, st.integers(1, 7), st.booleans())
def test_duality(kind: str, seed: int, n: int, discrete: bool) -> None:
    system = draw_system(kind, seed, n, 1, 3, discrete=discrete)
    if isinstance(system, StateSpace):
        dual: Any = StateSpace(
            adjoint(system.A), adjoint(system.C), adjoint(system.B), time=system.time
        )
        condition = np.linalg.cond(np.linalg.eig(system.A)[1]) ** 2 / 0.1
    else:
        dual = DiagonalStateSpace(
            system.eigenvalues.conj(),
            adjoint(system.C),
            adjoint(system.B),
            time=system.time,
            real_output=system.real_output,
        )
        condition = 1.0 / (1 - 0.95**2)
    plain, other = hankel_singular_values(system), hankel_singular_values(dual)
    allowed = C_ROUNDING * n * EPS * condition
    assert np.abs(plain - other).max() <= allowed * plain[0]
    P, Q = controllability_gramian(dual), observability_gramian(system)
    assert np.linalg.norm(P - Q) <= allowed * np.linalg.norm(Q)


@given(KINDS, SEEDS, st.integers(2, 8), st.booleans())
def test_bound_falls_with_the_order(kind: str, seed: int, n: int, discrete: bool) -> None:
    balancing = balance(draw_system(kind, seed, n, 2, 2, discrete=discrete))
    highest = int(balancing.rank) if "dense" in kind else n
    bounds = [balancing.bound(order) for order in range(1, highest + 1)]
    assert all(first >= second for first, second in itertools.pairwise(bounds))
    for order, bound in enumerate(bounds, start=1):
        assert bound == balancing.truncate(order).error_bound


@given(st.sampled_from(["diagonal", "real output"]), SEEDS, st.integers(3, 10), st.booleans())
def test_slot_budget(kind: str, seed: int, n: int, discrete: bool) -> None:
    system = draw_system(kind, seed, n, 2, 2, discrete=discrete)
    balancing = balance(system)
    for order in range(1, n):
        reduction = balancing.truncate(order)
        assert reduction.system.order == reduction.order <= order
        assert isinstance(reduction.system, DiagonalStateSpace)
        assert reduction.slot_map is not None
        if kind == "diagonal":
            assert reduction.real_order == reduction.order
            continue
        real_poles = int(np.sum(~reduction.slot_map.is_pair))
        assert reduction.order == (reduction.real_order + real_poles) / 2
        assert order == 1 or reduction.order >= min(order, balancing.rank // 2) - 1


def test_slots_are_used_up_where_all_poles_are_pairs() -> None:
    system = lru_system(np.random.default_rng(1), 32, 4)
    balancing = balance(system)
    for order in (4, 8, 16):
        reduction = balancing.truncate(order)
        assert reduction.order == order
        assert reduction.real_order > 1.5 * order


def test_a_real_pole_takes_a_slot() -> None:
    rng = np.random.default_rng(2)
    poles = np.array([0.95, 0.8, 0.5, -0.7, -0.9, 0.2], dtype=complex)
    system = DiagonalStateSpace(
        poles,
        rng.standard_normal((6, 1)),
        rng.standard_normal((1, 6)),
        time=Discrete(),
        real_output=True,
    )
    reduction = balanced_truncation(system, 4)
    assert reduction.rank == 6
    assert reduction.order <= 4
    assert reduction.real_order >= 4
    assert reduction.verify() <= reduction.error_bound * (1 + 1e-9) + rounding(reduction)
    np.testing.assert_array_equal(reduction.hsv.shape, (12,))
    assert np.all(reduction.hsv[6:] <= 4 * 12 * EPS * reduction.hsv[0])


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
@pytest.mark.parametrize("discrete", [False, True])
def test_fields_reproduce_the_system(kind: str, discrete: bool) -> None:
    system = draw_system(kind, 11, 9, 2, 3, discrete=discrete)
    reduction = balanced_truncation(system, 4)
    W, T = reduction.left, reduction.right
    assert W is not None
    assert T is not None
    assert W.shape == T.shape == (reduction.hsv.size, reduction.real_order)
    r = int(reduction.real_order)
    # ‖W‖‖T‖ is the amplification of any product of the two.
    size = np.linalg.norm(W, 2) * np.linalg.norm(T, 2)
    allowed = 10 * len(W) * EPS * size
    assert np.linalg.norm(adjoint(W) @ T - np.eye(r)) <= allowed
    dense = system if isinstance(system, StateSpace) else system.to_dense()
    A, B, C = adjoint(W) @ dense.A @ T, adjoint(W) @ dense.B, dense.C @ T
    reduced: Any = reduction.system
    if isinstance(reduced, StateSpace):
        np.testing.assert_allclose(reduced.A, A, rtol=0, atol=allowed * np.linalg.norm(dense.A))
        np.testing.assert_allclose(reduced.B, B, rtol=0, atol=allowed * np.linalg.norm(dense.B))
        np.testing.assert_allclose(reduced.C, C, rtol=0, atol=allowed * np.linalg.norm(dense.C))
        assert reduction.slot_map is None
        return
    slots = reduction.slot_map
    assert slots is not None
    condition = slots.condition
    allowed *= condition
    V, S = slots.vectors, slots.inverse
    scale = np.linalg.norm(A)
    np.testing.assert_allclose(A @ V, V * reduced.eigenvalues, rtol=0, atol=allowed * scale * 10)
    np.testing.assert_allclose(S @ V, np.eye(slots.order), rtol=0, atol=allowed * 10)
    weight = np.where(slots.is_pair, 2.0, 1.0)
    identity = (V * weight) @ S
    identity = identity.real if kind == "real output" else identity
    np.testing.assert_allclose(identity, np.eye(r), rtol=0, atol=allowed * 10)
    np.testing.assert_allclose(reduced.B, S @ B, rtol=0, atol=allowed * np.linalg.norm(S))
    expected = (C @ V) * weight
    np.testing.assert_allclose(reduced.C, expected, rtol=0, atol=allowed * np.linalg.norm(expected))


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
@pytest.mark.parametrize("seed", range(3))
def test_projections_are_biorthogonal_entry_by_entry(kind: str, seed: int) -> None:
    # Values that fall fast: Wᴴ T = Σ^(-1/2) (Uᴴ M V) Σ^(-1/2), with an error of eps ‖Y‖‖Z‖ in the
    # middle, is off by eps ‖Y‖‖Z‖/sqrt(σ_i σ_j) and no more; U from M V/σ would have (σ₁/σ_i)^1.5.
    rng = np.random.default_rng(seed)
    poles = 0.4 * np.exp(1j * np.linspace(0.2, 1.4, 12))
    B, C = complex_normal(rng, 12, 1), complex_normal(rng, 1, 12)
    system: Any = DiagonalStateSpace(
        poles, B, C, time=Discrete(), real_output=kind in {"dense", "real output"}
    )
    system = system.to_dense() if "dense" in kind else system
    balancing = balance(system)
    reduction = balancing.truncate(min(11, int(balancing.rank)))
    W, T, r = reduction.left, reduction.right, int(reduction.real_order)
    assert W is not None
    assert T is not None
    sigma = reduction.hsv[:r]
    # The range of values is what makes this test.
    assert sigma[-1] < 1e-9 * sigma[0]
    size = np.linalg.norm(controllability_gramian(system), 2)
    size = np.sqrt(size * np.linalg.norm(observability_gramian(system), 2))
    allowed = C_ROUNDING * len(W) * EPS * size / np.sqrt(np.outer(sigma, sigma))
    # Forming Wᴴ T here rounds too.
    allowed += 4 * len(W) * EPS * np.outer(np.linalg.norm(W, axis=0), np.linalg.norm(T, axis=0))
    excess = np.abs(adjoint(W) @ T - np.eye(r)) / allowed
    assert excess.max() <= 1.0


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
def test_balanced_gramians_are_equal_and_diagonal(kind: str) -> None:
    system = draw_system(kind, 12, 6, 2, 2, discrete=True)
    reduction = balanced_truncation(system, 3)
    W, T, r = reduction.left, reduction.right, reduction.real_order
    assert W is not None
    assert T is not None
    expected = np.diag(reduction.hsv[:r])
    allowed = C_ROUNDING * len(W) * EPS * reduction.hsv[0]
    P, Q = controllability_gramian(system), observability_gramian(system)
    size_w, size_t = np.linalg.norm(W, 2) ** 2, np.linalg.norm(T, 2) ** 2
    error = np.linalg.norm(adjoint(W) @ P @ W - expected)
    assert error <= allowed + C_ROUNDING * EPS * size_w * np.linalg.norm(P)
    error = np.linalg.norm(adjoint(T) @ Q @ T - expected)
    assert error <= allowed + C_ROUNDING * EPS * size_t * np.linalg.norm(Q)


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
def test_zero_rows_of_B_lower_the_rank(kind: str) -> None:
    system = draw_system(kind, 13, 6, 2, 2, discrete=True)
    B = system.B.copy()
    B[[1, 4]] = 0.0
    if isinstance(system, StateSpace):
        A = np.diag(np.linspace(0.1, 0.9, 6)).astype(system.A.dtype)
        system = StateSpace(A, B, system.C, time=Discrete())
    else:
        system = DiagonalStateSpace(
            system.eigenvalues, B, system.C, time=Discrete(), real_output=system.real_output
        )
    balancing = balance(system)
    states = 12 if kind == "real output" else 6
    assert balancing.hsv.shape == (states,)
    assert balancing.rank == states * 4 // 6
    np.testing.assert_array_equal(balancing.hsv[balancing.rank :] <= 4 * 12 * EPS, True)
    reduction = balancing.truncate(4)
    assert reduction.order == 4
    condition = 1.0 if reduction.slot_map is None else reduction.slot_map.condition
    assert reduction.verify() <= rounding(reduction) * condition
    if isinstance(system, StateSpace):
        with pytest.raises(OrderError, match=r"rank 4 \(6 states\)"):
            balancing.truncate(5)
    else:
        # An upper limit: fewer states are there to be had, and the result says so.
        lower = balancing.truncate(5)
        assert (lower.order, lower.rank) == (4, balancing.rank)


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_a_system_without_response(kind: str) -> None:
    system = draw_system(kind, 14, 3, 1, 1, discrete=True)
    if isinstance(system, StateSpace):
        dead: Any = StateSpace(system.A, 0 * system.B, system.C, time=Discrete())
    else:
        dead = DiagonalStateSpace(
            system.eigenvalues,
            0 * system.B,
            system.C,
            time=Discrete(),
            real_output=system.real_output,
        )
    assert not np.any(hankel_singular_values(dead))
    assert balance(dead).rank == 0
    for rule in (1, FixedOrder(2), HankelMass(0.9), HankelEnergy(0.5), ErrorBound(absolute=1.0)):
        with pytest.raises(OrderError, match="all Hankel singular values are zero"):
            balanced_truncation(dead, rule)


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
def test_readout_after_the_update(kind: str) -> None:
    plain = draw_system(kind, 15, 5, 2, 3, discrete=True)
    rng = np.random.default_rng(15)
    D = rng.standard_normal((3, 2))
    if isinstance(plain, StateSpace):
        after: Any = StateSpace(
            plain.A, plain.B, plain.C, D, time=Discrete(), read_after_update=True
        )
    else:
        after = DiagonalStateSpace(
            plain.eigenvalues,
            plain.B,
            plain.C,
            D,
            time=Discrete(),
            real_output=plain.real_output,
            read_after_update=True,
        )
    standard = after.to_standard()
    assert not standard.read_after_update
    assert standard.to_standard() is standard
    response = impulse_response(after, 20)
    scale = np.abs(response).max()
    error = np.abs(impulse_response(standard, 20) - response).max()
    assert error <= 10 * 5 * EPS * scale
    # The two read-outs share Gramians of (A, B, C): reductions of the triple are the same.
    np.testing.assert_array_equal(hankel_singular_values(after), hankel_singular_values(plain))
    reduction = balanced_truncation(after, 3)
    assert reduction.system.read_after_update
    np.testing.assert_array_equal(reduction.system.D, D)
    # ... and the bound holds for the map itself: |y - y_r| at any frequency is |z| |G - G_r|.
    omega = np.linspace(0, np.pi, 200)
    from ssmreduce.responses import frequency_response

    difference = frequency_response(after, omega) - frequency_response(reduction.system, omega)
    worst = np.linalg.norm(difference, 2, axis=(1, 2)).max()
    assert worst <= reduction.error_bound * (1 + 1e-9)
    other = frequency_response(standard, omega) - frequency_response(
        reduction.system.to_standard(), omega
    )
    assert np.abs(np.abs(other) - np.abs(difference)).max() <= C_ROUNDING * EPS * scale * 10


@pytest.mark.parametrize("seed", range(3))
def test_measured_error_sees_sharp_resonances(seed: int) -> None:
    # One pole at distance 1e-6 from the circle, between the points of any uniform grid.
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0.5, 2.5)
    poles = np.array([(1 - 1e-6) * np.exp(1j * angle), 0.5, 0.3])
    big = DiagonalStateSpace(
        poles, [[1e-3], [1.0], [1.0]], [[1e-3, 1.0, 1.0]], time=Discrete(), real_output=True
    )
    small = DiagonalStateSpace(
        poles[1:], [[1.0], [1.0]], [[1.0, 1.0]], time=Discrete(), real_output=True
    )
    # Re: half of 1e-6/1e-6 from the pole itself, little from its mirror image.
    assert hinf_difference(big, small) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("wide", [3, 24])
def test_power_iteration_never_exceeds_the_norm(wide: int) -> None:
    rng = np.random.default_rng(16)
    system = diagonal_system(rng, 8, wide, wide, real_output=True)
    reduction = balanced_truncation(system, 3)
    from ssmreduce.responses import frequency_response

    omega = np.linspace(0, np.pi, 4000)
    norms = []
    for part in np.array_split(omega, 20):
        difference = frequency_response(system, part) - frequency_response(reduction.system, part)
        norms.append(np.linalg.norm(difference, 2, axis=(1, 2)).max())
    dense = max(norms)
    measured = reduction.verify()
    assert measured <= reduction.error_bound
    # The grid here has 4000 points: it may miss a peak by its curvature, verify() by convergence.
    assert measured >= 0.99 * dense


# --- Batches


def stacked(singles: list[DiagonalStateSpace]) -> DiagonalStateSpace:
    first = singles[0]
    return DiagonalStateSpace(
        *(
            np.stack([getattr(single, name) for single in singles])
            for name in ("eigenvalues", "B", "C", "D")
        ),
        time=first.time,
        real_output=first.real_output,
        read_after_update=first.read_after_update,
    )


@given(SEEDS, st.integers(1, 4), st.booleans(), st.booleans())
def test_a_batch_is_its_singles(seed: int, count: int, real_output: bool, common: bool) -> None:
    rng = np.random.default_rng(seed)
    singles = [
        diagonal_system(rng, 6, 2, 1, real_output=real_output, radius=rng.uniform(0.2, 0.95))
        for _ in range(count)
    ]
    batch = stacked(singles)
    rule = HankelMass(0.9)
    result = balanced_truncation(batch, rule, common_order=common)
    expected = [balanced_truncation(single, rule) for single in singles]
    if common:
        largest = max(int(part.order) for part in expected)
        expected = [balanced_truncation(single, largest) for single in singles]
    largest = max(int(part.order) for part in expected)
    assert result.system.eigenvalues.shape == (count, largest)
    assert result.mask.shape == (count, largest)
    np.testing.assert_array_equal(result.order, [part.order for part in expected])
    np.testing.assert_array_equal(result.error_bound, [part.error_bound for part in expected])
    np.testing.assert_array_equal(result.rank, [part.rank for part in expected])
    errors = result.verify()
    for k, part in enumerate(expected):
        mask = result.mask[k]
        assert mask.sum() == part.order
        np.testing.assert_array_equal(result.hsv[k], part.hsv)
        np.testing.assert_array_equal(result.system.eigenvalues[k][mask], part.system.eigenvalues)
        np.testing.assert_array_equal(result.system.B[k][mask], part.system.B)
        np.testing.assert_array_equal(result.system.C[k][:, mask], part.system.C)
        # Padding neither responds nor is seen.
        assert not np.any(result.system.B[k][~mask])
        assert not np.any(result.system.C[k][:, ~mask])
        assert errors[k] == part.verify()


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_padded_batches_stay_usable(kind: str, discrete: bool) -> None:
    singles: list[Any] = [
        draw_system(kind, seed, 6, 2, 2, discrete=discrete) for seed in (1, 2, 3, 4)
    ]
    names = ("A", "B", "C", "D") if kind == "dense" else ("eigenvalues", "B", "C", "D")
    batch = type(singles[0])(
        *(
            np.stack([getattr(s, name) for s in singles]).reshape(
                2, 2, *getattr(singles[0], name).shape
            )
            for name in names
        ),
        time=singles[0].time,
    )
    result = balanced_truncation(batch, ErrorBound(relative=0.3))
    assert result.order.shape == result.error_bound.shape == (2, 2)
    assert result.order.min() < result.order.max() == result.system.order
    assert result.mask.shape == (2, 2, result.system.order)
    # The padded batch is a stable system like any other.
    values = hankel_singular_values(result.system)
    for index in np.ndindex(2, 2):
        kept = int(result.order[index])
        assert values[index][kept - 1] > 0
        assert np.all(values[index][kept:] <= rounding(result.parts[0]))
        assert result.verify()[index] <= result.error_bound[index]


# --- Order rules


def test_rules_count_as_they_say() -> None:
    hsv = np.array([8.0, 1.0, 0.5, 0.25, 0.25])
    assert HankelMass(0.8).choose(hsv) == 1
    assert HankelMass(0.81).choose(hsv) == 2
    assert HankelMass(0.95).choose(hsv) == 3
    assert HankelMass(1.0).choose(hsv) == 5
    assert HankelEnergy(0.95).choose(hsv) == 1
    assert HankelEnergy(0.99).choose(hsv) == 2
    assert HankelEnergy(1.0).choose(hsv) == 5
    assert ErrorBound(absolute=100.0).choose(hsv) == 1
    assert ErrorBound(absolute=4.0).choose(hsv) == 1
    assert ErrorBound(absolute=3.9).choose(hsv) == 2
    assert ErrorBound(relative=0.125).choose(hsv) == 3
    assert ErrorBound(absolute=0.5).choose(hsv) == 4
    assert ErrorBound(absolute=0.4).choose(hsv) == 5
    assert FixedOrder(3).choose(hsv) == 3


@given(SEEDS, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_shares_are_reached_and_monotone(seed: int, first: float, second: float) -> None:
    hsv = np.sort(np.random.default_rng(seed).exponential(size=9) ** 4)[::-1]
    low, high = sorted((first, second))
    for rule, weight in ((HankelMass, hsv), (HankelEnergy, hsv**2)):
        order = rule(low).choose(hsv)
        total = weight.sum()
        assert weight[:order].sum() >= low * total * (1 - 9 * EPS)
        assert weight[: order - 1].sum() < low * total * (1 + 9 * EPS)
        assert order <= rule(high).choose(hsv) <= 9


@given(KINDS, SEEDS, st.floats(1e-6, 1.0))
def test_an_error_bound_is_kept_or_refused(kind: str, seed: int, relative: float) -> None:
    system = draw_system(kind, seed, 7, 2, 2, discrete=True)
    reduction = balanced_truncation(system, ErrorBound(relative=relative))
    assert reduction.error_bound <= relative * reduction.hsv[0]


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_error_bounds_near_rounding_are_kept_or_refused(kind: str, factor: float) -> None:
    # Fast decay: the values reach rounding before the states are used up.
    rng = np.random.default_rng(17)
    poles = 0.3 * np.exp(1j * np.linspace(0.2, 1.4, 16))
    system: Any = DiagonalStateSpace(
        poles,
        complex_normal(rng, 16, 1),
        complex_normal(rng, 1, 16),
        time=Discrete(),
        real_output=kind == "real output",
    )
    system = system.to_dense() if kind == "dense" else system
    balancing = balance(system)
    relative = factor * balancing.hsv.size * EPS
    try:
        reduction = balancing.truncate(ErrorBound(relative=relative))
    except (UnreachableToleranceError, OrderError):
        return  # refused: fine this close to rounding
    assert reduction.error_bound <= relative * reduction.hsv[0]


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("tolerance", [{"absolute": 1e-20}, {"relative": 1e-17}])
def test_unreachable_tolerance(kind: str, tolerance: dict[str, float]) -> None:
    system = draw_system(kind, 18, 5, 1, 1, discrete=True)
    with pytest.raises(UnreachableToleranceError, match="expected at least"):
        balanced_truncation(system, ErrorBound(**tolerance))


def test_dense_order_is_exact() -> None:
    balancing = balance(draw_system("dense", 19, 8, 2, 2, discrete=True))
    for order in range(1, 9):
        assert balancing.truncate(order).system.order == order
    with pytest.raises(OrderError, match="rank 8"):
        balancing.truncate(9)


@pytest.mark.parametrize("order", [0, -1, 2.0, 2.5, True, False, "3", None, np.float64(2)])
def test_orders_that_are_not_positive_ints(order: Any) -> None:
    system = DiagonalStateSpace([0.5, 0.1], np.ones((2, 1)), np.ones((1, 2)), time=Discrete())
    with pytest.raises(OrderError, match="`order` is"):
        balanced_truncation(system, order)
    with pytest.raises(ValueError, match="expected"):
        FixedOrder(order)


def test_numpy_ints_are_ints() -> None:
    system = draw_system("diagonal", 20, 5, 1, 1, discrete=True)
    assert balanced_truncation(system, np.int64(2)).order == 2


@pytest.mark.parametrize("rule", [HankelMass, HankelEnergy])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, np.nan, True, "0.5"])
def test_shares_out_of_range(rule: Any, share: Any) -> None:
    with pytest.raises(ArgumentError, match="share"):
        rule(share)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"absolute": 1.0, "relative": 1.0},
        {"absolute": 0.0},
        {"relative": -1.0},
        {"relative": np.nan},
        {"absolute": np.inf},
        {"absolute": True},
        {"relative": "small"},
    ],
)
def test_error_bound_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        ErrorBound(**arguments)


# --- Defective and nearly defective systems


def test_nearly_defective_reductions_stay_within_the_bound() -> None:
    # A chain of poles so close that eigenvectors of the truncated system are badly conditioned.
    rng = np.random.default_rng(21)
    poles = 0.7 + 1e-3 * np.arange(8)
    system = DiagonalStateSpace(
        poles.astype(complex),
        complex_normal(rng, 8, 1) * 1e3,
        complex_normal(rng, 1, 8),
        time=Discrete(),
        real_output=True,
    )
    balancing = balance(system)
    for order in (1, 2, 3, 4, 5):
        reduction = balancing.truncate(order)
        assert reduction.slot_map is not None
        rounded = EPS * reduction.slot_map.condition * 2 * reduction.hsv.sum() * 10
        assert reduction.verify() <= reduction.error_bound * (1 + 1e-9) + rounded
        # The choice of order keeps that rounding from mattering.
        assert rounded <= max(10 * reduction.error_bound, 1e2 * np.sqrt(EPS) * reduction.hsv[0])


def test_continuous_real_output_poles_stay_stable() -> None:
    system = diagonal_system(np.random.default_rng(22), 10, 2, 2, discrete=False, real_output=True)
    for order in range(1, 10):
        reduced = balanced_truncation(system, order).system
        assert isinstance(reduced.time, Continuous)
        assert np.all(reduced.eigenvalues.real < 0)
