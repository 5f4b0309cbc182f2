"""Selection of modes: what the scores are, what a cut keeps and what it may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import EPS, adjoint, diagonal_system, impulse_response, lru_system

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelMass,
    StateSpace,
    hankel_singular_values,
)
from ssmreduce.errors import (
    ArgumentError,
    ArgumentTypeError,
    OrderError,
)
from ssmreduce.reduction.modal import modal_truncation
from ssmreduce.reduction.order import TotalBudget
from ssmreduce.reduction.selection import select_states, state_scores
from ssmreduce.responses import frequency_response

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)
SCORES: list[Any] = ["hankel", "hinf", "h2"]


def mode(system: DiagonalStateSpace, k: int) -> DiagonalStateSpace:
    """One mode by itself, without D."""
    return DiagonalStateSpace(
        system.eigenvalues[k : k + 1],
        system.B[k : k + 1],
        system.C[:, k : k + 1],
        time=system.time,
        real_output=system.real_output,
    )


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("real_output", [False, True])
def test_scores_are_norms_of_single_modes(discrete: bool, real_output: bool) -> None:
    system = diagonal_system(
        np.random.default_rng(1), 6, 2, 3, discrete=discrete, real_output=real_output, radius=0.8
    )
    hinf, hankel, h2 = (state_scores(system, s) for s in ("hinf", "hankel", "h2"))
    for k in range(6):
        alone = mode(system, k)
        pole = system.eigenvalues[k]
        # The gain is largest right above the pole; a real part has less than the complex mode.
        peak = np.angle(pole) if discrete else pole.imag
        gain = np.linalg.norm(frequency_response(alone, [peak])[0], 2)
        sigma = hankel_singular_values(alone)[0]
        if real_output:
            assert gain <= hinf[k] * (1 + 100 * EPS)
            assert sigma <= hankel[k] * (1 + 100 * EPS)
        else:
            assert gain == pytest.approx(hinf[k], rel=5e3 * EPS)
            assert sigma == pytest.approx(hankel[k], rel=5e3 * EPS)
        if discrete:
            energy = np.sum(np.abs(impulse_response(alone, 400)) ** 2)
        else:
            # Real or complex trapezoidal sum of an analytic integrand that has decayed.
            t = np.linspace(0.0, 120.0, 240001)
            c, b = alone.C[:, 0], alone.B[0]
            values = np.exp(pole * t)[:, None, None] * np.outer(c, b)
            values = values.real if real_output else values
            density = np.sum(np.abs(values) ** 2, axis=(1, 2))
            energy = np.trapezoid(density, t)
        assert h2[k] == pytest.approx(np.sqrt(energy), rel=1e-10 if discrete else 1e-4)


@given(SEEDS, st.integers(2, 8), st.booleans(), st.booleans(), st.sampled_from(SCORES))
def test_the_best_modes_are_kept_as_they_are(
    seed: int, n: int, discrete: bool, real_output: bool, score: Any
) -> None:
    rng = np.random.default_rng(seed)
    system = diagonal_system(rng, n, 2, 3, discrete=discrete, real_output=real_output)
    scores = state_scores(system, score)
    for order in range(1, n):
        reduction = select_states(system, order, score)
        kept = np.sort(np.argsort(-scores, kind="stable")[:order])
        reduced: Any = reduction.system
        np.testing.assert_array_equal(reduced.eigenvalues, system.eigenvalues[kept])
        np.testing.assert_array_equal(reduced.B, system.B[kept])
        np.testing.assert_array_equal(reduced.C, system.C[:, kept])
        np.testing.assert_array_equal(reduction.scores, np.sort(scores)[::-1])
        assert reduction.order == reduced.order == order
        assert reduction.real_order == (2 * order if real_output else order)
        assert reduction.method == "state selection"
        removed = np.setdiff1d(np.arange(n), kept)
        bound = state_scores(system, "hinf")[removed].sum()
        assert reduction.error_bound == pytest.approx(bound, rel=5e3 * EPS)
        assert reduction.verify() <= reduction.error_bound * (1 + 1e-9)
        # Projections and slot map say the same.
        W, T, slots = reduction.left, reduction.right, reduction.slot_map
        assert W is not None
        assert T is not None
        assert slots is not None
        dense = system.to_dense()
        np.testing.assert_array_equal(adjoint(W) @ T, np.eye(int(reduction.real_order)))
        inverse, vectors, B, C = map(
            np.asarray, (slots.inverse, slots.vectors, adjoint(W) @ dense.B, dense.C @ T)
        )
        B, C = inverse @ B, (C @ vectors) * (1.0 + np.asarray(slots.is_pair))
        np.testing.assert_array_equal(B, reduced.B)
        np.testing.assert_array_equal(C, reduced.C)
        np.testing.assert_array_equal(slots.eigenvalues, reduced.eigenvalues)
    assert select_states(system, n, score).system is system
    assert select_states(system, n + 3, score).error_bound == 0.0


@pytest.mark.parametrize("score", SCORES)
def test_rules_take_scores_for_values(score: Any) -> None:
    system = lru_system(np.random.default_rng(2), 24, 3)
    scores = np.sort(state_scores(system, score))[::-1]
    share = np.cumsum(scores) / scores.sum()
    order = select_states(system, HankelMass(0.8), score).order
    assert share[order - 1] >= 0.8 > share[order - 2]
    if score == "h2":
        with pytest.raises(OrderError, match='score="hinf"'):
            select_states(system, ErrorBound(absolute=1.0), score)
        return
    total = float(state_scores(system, "hinf").sum())
    reduction = select_states(system, ErrorBound(absolute=0.2 * total), score)
    assert 1 < reduction.order < 24
    assert reduction.error_bound <= 0.2 * total * (1 + 1e-12)
    assert reduction.verify() <= reduction.error_bound


def test_a_layer_keeps_its_readout_logarithms_and_feedthrough() -> None:
    system = DiagonalStateSpace.from_log(
        np.array([-1e-13 + 0.3j, -1.0 + 1.0j, -2.0 + 0j]),
        np.ones((3, 2)),
        np.ones((2, 3)),
        np.eye(2),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    reduced: Any = select_states(system, 2, "hinf").system
    np.testing.assert_array_equal(reduced.log_eigenvalues, system.log_eigenvalues[:2])
    assert reduced.read_after_update
    assert reduced.real_output
    np.testing.assert_array_equal(reduced.D, np.eye(2))
    # 1 - |λ| comes from the logarithm: from a stored λ it would be right to three digits.
    assert state_scores(system, "hinf")[0] == pytest.approx(2.0 / 1e-13, rel=5e3 * EPS)


@pytest.mark.parametrize("discrete", [False, True])
def test_unstable_modes_are_kept(discrete: bool) -> None:
    poles = [0.5, 1.0, -1.2, 0.9] if discrete else [-1.0, 0.0, 0.5, -0.1]
    time: Any = Discrete() if discrete else Continuous()
    system = DiagonalStateSpace(poles, np.ones((4, 1)), np.ones((1, 4)), time=time)
    np.testing.assert_array_equal(np.isinf(state_scores(system)), [False, True, True, False])
    reduction = select_states(system, 3)
    np.testing.assert_array_equal(reduction.system.eigenvalues, np.array(poles)[[1, 2, 3]])
    assert reduction.unstable == 2
    assert reduction.error_bound == pytest.approx(2.0 if discrete else 1.0)
    assert select_states(system, HankelMass(0.5)).order == 3
    with pytest.raises(OrderError, match="2 states that are not stable"):
        select_states(system, 1)


def test_batches_and_budgets() -> None:
    singles = [diagonal_system(np.random.default_rng(k), 5, 2, 2) for k in range(3)]
    batch = DiagonalStateSpace(
        *(np.stack([getattr(s, name) for s in singles]) for name in ("eigenvalues", "B", "C", "D")),
        time=Discrete(),
    )
    result = select_states(batch, 2)
    for k, single in enumerate(singles):
        np.testing.assert_array_equal(result.system.B[k], select_states(single, 2).system.B)
        np.testing.assert_array_equal(state_scores(batch)[k], state_scores(single))
    assert result.hsv.shape == (3, 0)
    budget = select_states(batch, TotalBudget(8), "hinf")
    assert budget.order.sum() == 8
    # No mode that was left out scores more than one that was kept, but for each system's first.
    left_out = max(part.scores[part.order :].max() for part in budget.parts)
    kept = [part.scores[part.order - 1] for part in budget.parts if part.order > 1]
    assert left_out <= min(kept)


def test_modal_truncation_of_a_diagonal_system_is_the_selection_by_h_infinity() -> None:
    system = lru_system(np.random.default_rng(3), 12, 2)
    first, second = modal_truncation(system, 5), select_states(system, 5, "hinf")
    np.testing.assert_array_equal(first.system.eigenvalues, second.system.eigenvalues)
    assert (first.method, second.method) == ("modal truncation", "state selection")


def test_refusals() -> None:
    dense = StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete())
    with pytest.raises(ArgumentTypeError, match="modal_truncation"):
        select_states(dense, 1)  # type: ignore[arg-type]
    system = diagonal_system(np.random.default_rng(4), 3, 1, 1)
    with pytest.raises(ArgumentError, match="`score` is 'energy'; expected one of \"hankel\""):
        select_states(system, 1, "energy")  # type: ignore[arg-type]
    with pytest.raises(OrderError, match="`order` is 0"):
        select_states(system, 0)


def test_modes_without_response_go_first() -> None:
    system = DiagonalStateSpace(
        [0.9, 0.5, 0.1], [[0.0], [1.0], [1.0]], [[1.0, 1.0, 0.0]], time=Discrete()
    )
    reduction = select_states(system, 1)
    np.testing.assert_array_equal(reduction.system.eigenvalues, [0.5])
    assert reduction.error_bound == 0.0
    assert reduction.rank == 1
    silent = DiagonalStateSpace([0.9, 0.5], np.zeros((2, 1)), np.ones((1, 2)), time=Discrete())
    assert select_states(silent, HankelMass(0.9)).order == 1
