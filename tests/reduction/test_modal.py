"""Modal truncation of dense systems: dominant poles are kept to the last digit, pairs together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import EPS, adjoint, dense_system, well_conditioned

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, ErrorBound, HankelMass, StateSpace
from ssmreduce._schur import SchurForm
from ssmreduce.errors import (
    OrderError,
)
from ssmreduce.reduction.modal import modal_truncation
from ssmreduce.reduction.order import TotalBudget
from ssmreduce.reduction.selection import select_states, state_scores
from ssmreduce.responses import frequency_response

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)

C_ROUNDING = 100.0
"""c of c n eps · condition, the condition being that of the eigenvectors."""


def dominances(system: StateSpace) -> tuple[np.ndarray, np.ndarray, float]:
    """Poles and dominances by plain eigenvectors, and the condition of those."""
    poles, V = np.linalg.eig(system.A)
    c = np.linalg.norm(system.C @ V, axis=0)
    b = np.linalg.norm(np.linalg.solve(V, system.B), axis=1)
    discrete = isinstance(system.time, Discrete)
    distance = 1 - np.abs(poles) if discrete else -poles.real
    return poles, b * c / distance, float(np.linalg.cond(V))


@given(SEEDS, st.integers(2, 8), st.booleans(), st.booleans())
def test_dominant_modes_are_kept(seed: int, n: int, discrete: bool, is_complex: bool) -> None:
    rng = np.random.default_rng(seed)
    system = dense_system(rng, n, 2, 3, discrete=discrete, is_complex=is_complex)
    poles, values, condition = dominances(system)
    ranking = np.argsort(-values)
    omega = np.linspace(-np.pi, np.pi, 101) if discrete else np.linspace(-20, 20, 101)
    full = frequency_response(system, omega)
    allowed = C_ROUNDING * n * EPS * condition**2
    for order in range(1, n):
        kept, removed = poles[ranking[:order]], ranking[order:]
        splits_pair = not is_complex and abs(kept.imag.sum()) > 1e-6
        if splits_pair:
            with pytest.raises(OrderError, match="conjugate pair"):
                modal_truncation(system, order)
            continue
        reduction = modal_truncation(system, order)
        reduced: Any = reduction.system
        assert reduction.order == reduced.order == order
        assert np.iscomplexobj(reduced.A) == is_complex
        found = reduced.poles()
        # Every kept pole is there, whatever the order.
        gaps = np.abs(found[:, None] - kept).min(axis=1)
        assert gaps.max() <= allowed * np.linalg.norm(system.A, 2)
        bound = values[removed].sum()
        assert reduction.error_bound == pytest.approx(bound, rel=1e3 * allowed)
        W, T = reduction.left, reduction.right
        assert W is not None
        assert T is not None
        error = np.abs(adjoint(W) @ T - np.eye(order)).max()
        assert error <= C_ROUNDING * n * EPS * np.linalg.norm(W, 2)
        residual = np.linalg.norm(system.A @ T - T @ reduced.A)
        assert residual <= C_ROUNDING * n * EPS * np.linalg.norm(system.A)
        # The response is that of the kept terms of the partial fraction expansion.
        difference = full - frequency_response(reduced, omega)
        worst = np.linalg.norm(difference, 2, axis=(1, 2)).max()
        assert worst <= bound * (1 + 1e-9) + allowed * values.sum()


def test_schur_poles_are_eigenvalues() -> None:
    rng = np.random.default_rng(1)
    for is_complex in (False, True):
        A = np.asarray(dense_system(rng, 9, 1, 1, is_complex=is_complex).A)
        found, exact = SchurForm.of(A).eigenvalues(), np.linalg.eigvals(A)
        assert np.abs(found[:, None] - exact).min(axis=1).max() <= 500 * EPS
        assert np.abs(found[:, None] - exact).min(axis=0).max() <= 500 * EPS


def test_a_diagonal_system_as_a_dense_one() -> None:
    rng = np.random.default_rng(2)
    poles = -np.array([0.1, 1.0, 2.0, 5.0, 30.0])
    B, C = rng.standard_normal((5, 2)), rng.standard_normal((2, 5))
    diagonal = DiagonalStateSpace(poles, B, C, time=Continuous())
    T = well_conditioned(rng, 5, is_complex=False)
    inverse = np.linalg.inv(T)
    dense = StateSpace(T @ np.diag(poles) @ inverse, T @ B, C @ inverse, time=Continuous())
    for order in (1, 2, 3, 4):
        first, second = modal_truncation(dense, order), select_states(diagonal, order, "hinf")
        found = np.sort(first.system.poles().real)
        np.testing.assert_allclose(found, np.sort(second.system.eigenvalues), rtol=5e3 * EPS)
        assert first.error_bound == pytest.approx(second.error_bound, rel=5e3 * EPS)
        np.testing.assert_allclose(
            first.scores, np.sort(state_scores(diagonal, "hinf"))[::-1], rtol=5e3 * EPS
        )


def oscillators(damping: list[float], time: Any = None) -> StateSpace:
    """Damped oscillators side by side, one conjugate pair each."""
    n = 2 * len(damping)
    A = np.zeros((n, n))
    for k, d in enumerate(damping):
        A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[-d, 1.0 + k], [-1.0 - k, -d]]
    return StateSpace(A, np.ones((n, 1)), np.ones((1, n)), time=Continuous())


def test_pairs_stay_together() -> None:
    system = oscillators([0.1, 1.0, 10.0])
    with pytest.raises(OrderError, match=r"separates a conjugate pair .*expected 2 or 4"):
        modal_truncation(system, 3)
    with pytest.raises(OrderError, match="expected 2"):
        modal_truncation(system, 1)
    # A rule asks for at least so much: both poles of the pair come along, and the result says so.
    for rule in (HankelMass(0.2), HankelMass(0.9), ErrorBound(relative=0.7)):
        reduction = modal_truncation(system, rule)
        assert reduction.order % 2 == 0
        assert reduction.order - reduction.wanted_order in (0, 1)
    assert modal_truncation(system, HankelMass(0.2)).wanted_order == 1
    assert modal_truncation(system, 4).system.order == 4
    complex_one = StateSpace(system.A + 0j, system.B + 0j, system.C + 0j, time=Continuous())
    assert modal_truncation(complex_one, 3).order == 3


def test_an_error_bound_is_kept() -> None:
    system = oscillators([0.1, 0.5, 1.0, 10.0])
    total = float(modal_truncation(system, 8).scores.sum())
    for share in (0.5, 0.2, 0.05):
        reduction = modal_truncation(system, ErrorBound(absolute=share * total))
        assert reduction.error_bound <= share * total
        assert reduction.verify() <= reduction.error_bound


def test_defective_poles() -> None:
    # A triple pole is kept or left as a group: the Schur form needs no eigenvectors of it.
    A = np.diag([-1.0, -1.0, -1.0, -20.0]) + np.diag([1.0, 1.0, 0.0], 1)
    system = StateSpace(A, np.ones((4, 1)), np.ones((1, 4)), time=Continuous())
    reduction = modal_truncation(system, 3)
    np.testing.assert_allclose(reduction.system.poles(), [-1.0] * 3, atol=1e-4)
    omega = np.linspace(0, 50, 101)
    expected = frequency_response(system, omega) - 1.0 / (1j * omega[:, None, None] + 20.0)
    assert np.abs(frequency_response(reduction.system, omega) - expected).max() <= 500 * EPS
    # The residues of its single eigenvectors mean nothing, and a rule keeps it.
    assert reduction.scores is not None
    assert np.all(np.isinf(np.asarray(reduction.scores)[:3]))
    assert (reduction.unstable, reduction.rank) == (0, 4)
    assert modal_truncation(system, HankelMass(0.1)).order >= 3


def test_unstable_modes_are_kept() -> None:
    system = oscillators([-0.1, 1.0, 0.0])
    reduction = modal_truncation(system, 4)
    assert reduction.unstable == 4
    np.testing.assert_allclose(np.sort(reduction.system.poles().real), [0, 0, 0.1, 0.1], atol=1e-14)
    assert reduction.error_bound is not None
    assert 0 < reduction.error_bound < 5
    with pytest.raises(OrderError, match="4 states that are not stable"):
        modal_truncation(system, 2)
    assert modal_truncation(system, HankelMass(0.5)).order == 6


def test_orders_beyond_the_system() -> None:
    system = oscillators([0.1, 1.0])
    unchanged = modal_truncation(system, 4)
    assert unchanged.system is system
    assert unchanged.error_bound == 0.0
    with pytest.raises(OrderError, match="has 4 states"):
        modal_truncation(system, 5)


def test_batches_and_budgets() -> None:
    rng = np.random.default_rng(5)
    singles = []
    for _ in range(3):
        T = well_conditioned(rng, 4, is_complex=False)
        A = T @ np.diag(-rng.uniform(0.1, 5, 4)) @ np.linalg.inv(T)
        singles.append(
            StateSpace(
                A, rng.standard_normal((4, 1)), rng.standard_normal((1, 4)), time=Continuous()
            )
        )
    batch = StateSpace(
        *(np.stack([getattr(s, name) for s in singles]) for name in "ABCD"), time=Continuous()
    )
    result = modal_truncation(batch, 2)
    for k, single in enumerate(singles):
        np.testing.assert_array_equal(result.system.A[k], modal_truncation(single, 2).system.A)
    budget = modal_truncation(batch, TotalBudget(7))
    assert budget.order.sum() == 7
    assert budget.system.order == budget.order.max()


def test_a_refusal_names_the_system_of_the_batch() -> None:
    systems = [
        StateSpace(np.diag([-1.0, last]), np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
        for last in (-2.0, 2.0)
    ]
    batch = StateSpace(
        *(np.stack([getattr(s, name) for s in systems]) for name in "ABCD"), time=Continuous()
    )
    with pytest.raises(OrderError, match=r"in system\[0\] of the batch `order` is 3"):
        modal_truncation(batch, 3)
    unstable = DiagonalStateSpace(
        [[-1.0, -2.0], [1.0, 2.0]], np.ones((2, 2, 1)), np.ones((2, 1, 2)), time=Continuous()
    )
    with pytest.raises(OrderError, match=r"in system\[1\] of the batch .* 2 states that are not"):
        modal_truncation(unstable, 1)
