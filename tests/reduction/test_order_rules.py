"""A total budget over several systems, and rules in batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import dense_system, diagonal_system, lru_system

from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    HankelMass,
    MeasuredError,
    StateSpace,
    balance,
    balanced_truncation,
    error_bounds,
    hinf_norm,
    singular_perturbation,
)
from ssmreduce.errors import (
    ArgumentError,
    OrderError,
)
from ssmreduce.reduction.modal import modal_truncation
from ssmreduce.reduction.order import TotalBudget
from ssmreduce.reduction.realisation import balanced_realisation, minimal_realisation

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)


def descending(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.sort(rng.exponential(size=size) ** 3 * rng.exponential())[::-1]


@given(SEEDS, st.integers(1, 3), st.integers(0, 6), st.booleans())
def test_no_other_allocation_is_better(seed: int, count: int, more: int, relative: bool) -> None:
    rng = np.random.default_rng(seed)
    lists = [descending(rng, rng.integers(1, 5)) for _ in range(count)]
    budget = count + more
    orders = TotalBudget(budget, relative=relative).allocate(lists)
    assert all(1 <= order <= hsv.size for order, hsv in zip(orders, lists, strict=True))
    assert sum(orders) == min(budget, sum(hsv.size for hsv in lists))
    scaled = [hsv / hsv[0] for hsv in lists] if relative else lists

    def left_out(choice: tuple[int, ...]) -> tuple[float, float]:
        rest = [hsv[order:] for order, hsv in zip(choice, scaled, strict=True)]
        bounds = [error_bounds(hsv)[r] for r, hsv in zip(choice, scaled, strict=True)]
        return max((float(r[0]) for r in rest if r.size), default=0.0), float(np.sum(bounds))

    found = left_out(tuple(orders))
    for choice in itertools.product(*(range(1, hsv.size + 1) for hsv in lists)):
        if sum(choice) <= budget:
            largest, total = left_out(choice)
            assert found[0] <= largest
            assert found[1] <= total * (1 + 1e-12) + 1e-300


def test_rounding_is_not_paid_for() -> None:
    lists = [np.array([1.0, 1e-16, 1e-17]), np.array([1e-20, 1e-21, 1e-22])]
    # The second system is small, not noisy; the first has rank 1.
    assert TotalBudget(6).allocate(lists) == [1, 3]
    assert TotalBudget(3).allocate(lists) == [1, 2]
    assert TotalBudget(6, relative=True).allocate(lists) == [1, 3]


def test_too_small_a_budget_is_refused() -> None:
    lists = [np.ones(3)] * 3
    with pytest.raises(OrderError, match=r"`states` is 2 for 3 systems; expected at least 3"):
        TotalBudget(2).allocate(lists)
    with pytest.raises(OrderError, match="expected at least 6"):
        TotalBudget(5).allocate(lists, kept=[1, 2, 0])
    assert TotalBudget(6).allocate(lists, kept=[1, 2, 0]) == [2, 3, 1]
    with pytest.raises(OrderError, match="`states` is 4 for 0 systems"):
        TotalBudget(4).allocate([])
    bad: Any
    for bad in (0, -1, 2.5, True, None):
        with pytest.raises(ArgumentError, match="`states` is"):
            TotalBudget(bad)


def test_a_budget_leaves_nothing_of_a_system_without_states() -> None:
    for shape in ((), (2,)):
        system = StateSpace(
            np.zeros((*shape, 0, 0)),
            np.zeros((*shape, 0, 1)),
            np.zeros((*shape, 1, 0)),
            time=Discrete(),
        )
        for reduction in (
            balanced_truncation(system, TotalBudget(3)),
            balance(system).truncate(TotalBudget(3)),
        ):
            assert not np.any(reduction.order)


def test_a_single_system_has_the_budget_to_itself() -> None:
    system = lru_system(np.random.default_rng(1), 12, 2)
    balancing = balance(system)
    assert balancing.truncate(TotalBudget(5)).order == balancing.truncate(5).order
    assert balancing.truncate(TotalBudget(100)).system is system
    assert TotalBudget(2).choose(np.array([3.0, 2.0, 1.0])) == 2


def batch_of(singles: list[Any]) -> Any:
    diagonal = isinstance(singles[0], DiagonalStateSpace)
    names = ("eigenvalues" if diagonal else "A", "B", "C", "D")
    options = {"real_output": singles[0].real_output} if diagonal else {}
    return type(singles[0])(
        *(np.stack([getattr(s, name) for s in singles]) for name in names),
        time=Discrete(),
        read_after_update=singles[0].read_after_update,
        **options,
    )


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_batches_share_a_budget(kind: str, matched: bool, relative: bool) -> None:
    rng = np.random.default_rng(2)
    singles: list[Any] = [
        dense_system(rng, 7, 2, 2, radius=radius)
        if kind == "dense"
        else diagonal_system(rng, 7, 2, 2, real_output=kind == "real output", radius=radius)
        for radius in (0.3, 0.7, 0.97)
    ]
    balancing = balance(batch_of(singles))
    cut = balancing.match_dc if matched else balancing.truncate
    result = cut(TotalBudget(9, relative=relative))
    assert result.order.shape == (3,)
    assert result.order.min() >= 1
    assert result.order.sum() <= 9
    if kind != "real output":  # a real pole may keep a stored state from being filled
        assert result.order.sum() == 9
    hsv = balancing.hsv[:, ::2] if kind == "real output" else balancing.hsv
    shares = TotalBudget(9, relative=relative).allocate(list(hsv))
    for part, share in zip(result.parts, shares, strict=True):
        assert part.order <= share
        assert part.wanted_order == (2 * share if kind == "real output" else share)
    # The slow system has the large values and gets the most states.
    if not relative:
        assert shares[2] == max(shares)
    with pytest.raises(OrderError, match="common_order"):
        cut(TotalBudget(9), common_order=True)


def test_more_than_enough_leaves_a_batch_unchanged() -> None:
    batch = batch_of([lru_system(np.random.default_rng(k), 6, 2) for k in range(2)])
    assert balanced_truncation(batch, TotalBudget(12)).system is batch
    with pytest.raises(OrderError, match="for 2 systems"):
        balanced_truncation(batch, TotalBudget(1))


def test_the_layers_of_a_model_share_a_budget() -> None:
    from ssmreduce import hankel_singular_values, read_system, reduce_model
    from ssmreduce.demo.lru import LRU

    rng = np.random.default_rng(3)
    model = {"first": LRU(16, 4, rng=rng), "second": LRU(12, 4, rng=rng)}
    result = reduce_model(model, TotalBudget(10))
    orders = [part.new_order for part in result.report.values()]
    values = [hankel_singular_values(read_system(layer))[::2] for layer in model.values()]
    shares = TotalBudget(10).allocate(values)
    assert sum(shares) == 10
    assert all(order <= share for order, share in zip(orders, shares, strict=True))
    # A real pole may leave a share one state short, no more.
    assert sum(orders) >= 8


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_systems_without_states(kind: str) -> None:
    B, C, D = np.zeros((0, 2)), np.zeros((3, 0)), np.ones((3, 2))
    empty: Any
    if kind == "dense":
        empty = StateSpace(np.zeros((0, 0)), B, C, D, time=Discrete())
    else:
        empty = DiagonalStateSpace(np.zeros(0), B, C, D, time=Discrete(), real_output=True)
    balancing = balance(empty)
    assert balancing.hsv.shape == (0,)
    assert balancing.rank == 0
    kept = balance(empty, keep_unstable=True)
    for reduction in (
        balancing.truncate(1),
        balancing.match_dc(1),
        balancing.truncate(HankelMass(0.9)),
        kept.truncate(1),
        modal_truncation(empty, 1),
    ):
        assert reduction.system is empty
        assert reduction.order == 0
        assert reduction.error_bound == 0.0
    assert balanced_realisation(empty).order == 0
    assert minimal_realisation(empty).system is empty


@pytest.mark.parametrize("kind", ["dense", "diagonal", "batch"])
@pytest.mark.parametrize("tolerance", [1e-3, 0.05])
def test_a_measured_error_is_kept_by_the_smallest_order(kind: str, tolerance: float) -> None:
    rng = np.random.default_rng(11)
    if kind == "dense":
        system: Any = dense_system(rng, 12, 2, 2)
    else:
        system = lru_system(rng, 12, 2)
    if kind == "batch":
        system = DiagonalStateSpace(
            *(np.stack([getattr(system, name)] * 2) for name in ("eigenvalues", "B", "C", "D")),
            time=Discrete(),
            real_output=True,
            read_after_update=system.read_after_update,
        )
    balancing = balance(system)
    result = balancing.truncate(MeasuredError(tolerance))
    part, single = (result.parts[1], system[1]) if kind == "batch" else (result, system)
    gain = hinf_norm(single).lower
    assert part.verify() <= 1.001 * tolerance * gain
    order = int(part.order)
    assert order < 12
    lower = balance(single).truncate(order - 1)
    assert lower.verify() > 0.999 * tolerance * gain


def test_a_measured_error_serves_other_cuts_and_horizons() -> None:
    rng = np.random.default_rng(12)
    system = lru_system(rng, 12, 2)
    rule = MeasuredError(0.02)
    matched = singular_perturbation(system, rule)
    assert matched.verify() <= 0.021 * hinf_norm(system).lower
    within = balance(system, horizon=20).truncate(rule)
    assert 0 < within.order <= 12
    with pytest.raises(OrderError, match="reduced systems are measured"):
        modal_truncation(system, rule)
    for wrong in (0.0, 2.0, "1", None):
        with pytest.raises(ArgumentError, match="`relative` is"):
            MeasuredError(wrong)


def test_a_measured_error_passes_over_orders_that_cannot_be_had() -> None:
    B, C = np.array([[1.0], [1.0], [0.0]]), np.ones((1, 3))
    system = StateSpace(np.diag([0.9, 0.5, 0.2]), B, C, time=Discrete())
    assert balanced_truncation(system, MeasuredError(0.1)).order == 1
    assert balanced_truncation(system, MeasuredError(1e-3)).order == 2
    after = StateSpace(
        np.diag([0.9, 0.6, 0.3, 0.0]),
        np.ones((4, 1)),
        np.ones((1, 4)),
        time=Discrete(),
        read_after_update=True,
    )
    assert singular_perturbation(after, MeasuredError(0.05)).order == 2
    rng = np.random.default_rng(30)
    large = dense_system(rng, 30, 1, 1)  # of lower numerical rank
    result = balanced_truncation(large, MeasuredError(0.05))
    assert result.verify() <= 0.0501 * hinf_norm(large).lower
    assert result.order < 20
    silent = StateSpace([[0.5]], [[0.0]], [[1.0]], time=Discrete())
    with pytest.raises(OrderError, match="all Hankel singular values are zero"):
        balanced_truncation(silent, MeasuredError(0.05))
