"""Laws of the Gramians, over infinitely many steps and over a horizon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.kronecker import summed_gramian
from samples import EPS, adjoint
from strategies import (
    System,
    assert_within,
    dense,
    lyapunov,
    scale_of,
    state_matrix,
    systems,
    with_matrices,
)

from ssmreduce import (
    Discrete,
    StateSpace,
    balance,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)

pytestmark = pytest.mark.every_library

C = 20.0
"""A few n eps for the solver, a few for forming P = Z Zᴴ and for the side it is compared with."""

C_RESIDUAL = 100.0


def both(system: System) -> tuple[Any, Any, Any]:
    """Return (A, P, right-hand side) for the controllability Gramian and the adjoint case."""
    full = dense(system)
    return full.A, full.B @ adjoint(full.B), adjoint(full.C) @ full.C


@given(systems())
def test_they_solve_their_equations(system: System) -> None:
    # Only the diagonal and the Schur form promise a residual of n eps ‖X‖. Doubling of a Cayley
    # transform and the elimination of real pairs next to the unit circle are right to n eps κ ‖X‖,
    # with a residual that is far below that: 10 n eps sqrt(κ) ‖X‖ is the most that was seen.
    A, BB, CC = both(system)
    root = float(np.sqrt(scale_of(system).condition))
    for X, F, right in (
        (controllability_gramian(system), A, BB),
        (observability_gramian(system), adjoint(A), CC),
    ):
        if isinstance(system.time, Discrete):
            residual = F @ X @ adjoint(F) - X + right
            size = (np.linalg.norm(A, 2) ** 2 + 1) * np.linalg.norm(X)
        else:
            residual = F @ X + X @ adjoint(F) + right
            size = 2 * np.linalg.norm(A, 2) * np.linalg.norm(X)
        assert_within(
            residual, C_RESIDUAL * len(A) * EPS * root * float(size + np.linalg.norm(right))
        )


@given(systems())
def test_they_agree_with_a_linear_system(system: System) -> None:
    A, BB, CC = both(system)
    scale = scale_of(system)
    for found, right, dual in (
        (controllability_gramian(system), BB, False),
        (observability_gramian(system), CC, True),
    ):
        exact = lyapunov(system, right, dual=dual)
        allowed = C * scale.n * EPS * scale.condition * float(np.linalg.norm(exact, 2))
        assert_within(found - exact, allowed)
        assert found.dtype == A.dtype


@given(systems())
def test_they_are_hermitian_and_positive(system: System) -> None:
    for X in (controllability_gramian(system), observability_gramian(system)):
        size = float(np.linalg.norm(X, 2))
        assert_within(X - adjoint(X), 2 * EPS * size)
        smallest = float(np.linalg.eigvalsh(X)[0])
        assert_within(max(-smallest, 0.0), C * len(X) * EPS * size)


@given(systems())
def test_the_h2_norm_has_two_forms(system: System) -> None:
    # tr C P Cᴴ = tr Bᴴ Q B.
    full, scale = dense(system), scale_of(system)
    P, Q = controllability_gramian(system), observability_gramian(system)
    one = np.trace(full.C @ P @ adjoint(full.C)).real
    two = np.trace(adjoint(full.B) @ Q @ full.B).real
    size = np.linalg.norm(full.C) ** 2 * np.linalg.norm(P, 2)
    size = max(size, np.linalg.norm(full.B) ** 2 * np.linalg.norm(Q, 2))
    assert_within(one - two, C * scale.n * EPS * scale.condition * float(size))


@given(systems(min_order=2))
def test_inputs_add_up(system: System) -> None:
    # P is linear in B Bᴴ: the Gramian is the sum over inputs.
    scale, P = scale_of(system), controllability_gramian(system)
    parts = [
        controllability_gramian(
            with_matrices(system, state_matrix(system), system.B[:, [j]], system.C)
        )
        for j in range(system.inputs)
    ]
    allowed = C * scale.n * EPS * scale.condition * float(np.linalg.norm(P, 2))
    assert_within(sum(parts) - P, allowed)


def growing(system: System, growth: float) -> System:
    """The same with poles multiplied by `growth`, stable or not."""
    return with_matrices(system, state_matrix(system) * growth, system.B, system.C)


GROWTH = st.sampled_from([0.5, 1.0, 1.2])


@given(systems(discrete=True, max_order=5), GROWTH, st.integers(1, 12))
def test_a_horizon_is_a_sum_of_steps(system: System, growth: float, steps: int) -> None:
    system = growing(system, growth)
    full = dense(system)
    size = max(1.0, float(np.linalg.norm(full.A, 2)))
    for found, A, B in (
        (controllability_gramian(system, horizon=steps), full.A, full.B),
        (observability_gramian(system, horizon=steps), adjoint(full.A), adjoint(full.C)),
    ):
        exact = summed_gramian(A, B, steps)
        growth_of_rounding = size ** (2 * steps) * float(np.linalg.norm(B, 2)) ** 2
        allowed = C * full.order * steps * EPS * growth_of_rounding
        assert_within(found - exact, allowed)


@given(systems(discrete=True, max_order=5), GROWTH, st.integers(1, 8))
def test_values_of_a_horizon_are_those_of_a_hankel_matrix(
    system: System, growth: float, steps: int
) -> None:
    # Over L steps the Hankel operator is the block matrix [C A^(i+j) B], i, j < L.
    system = growing(system, growth)
    full = dense(system)
    markov, X = [], full.B
    for _ in range(2 * steps - 1):
        markov.append(full.C @ X)
        X = full.A @ X
    blocks = [[markov[i + j] for j in range(steps)] for i in range(steps)]
    exact = np.linalg.svd(np.block(blocks), compute_uv=False)
    found = hankel_singular_values(system, horizon=steps)
    padded = np.zeros(max(found.size, exact.size))
    padded[: exact.size] = exact
    size = max(1.0, float(np.linalg.norm(full.A, 2))) ** (2 * steps)
    size *= float(np.linalg.norm(full.B, 2) * np.linalg.norm(full.C, 2))
    assert_within(found - padded[: found.size], C * full.order * steps * EPS * size)
    assert_within(padded[found.size :], C * full.order * steps * EPS * size)


@given(systems(discrete=True, max_order=6), GROWTH, st.integers(1, 20), st.integers(1, 20))
def test_values_grow_with_the_horizon(system: System, growth: float, steps: int, more: int) -> None:
    system = growing(system, growth)
    short = hankel_singular_values(system, horizon=steps)
    long = hankel_singular_values(system, horizon=steps + more)
    P = np.linalg.norm(controllability_gramian(system, horizon=steps + more), 2)
    Q = np.linalg.norm(observability_gramian(system, horizon=steps + more), 2)
    size = max(1.0, float(np.linalg.norm(dense(system).A, 2)) ** 2) ** min(steps + more, 8)
    allowed = C * dense(system).order * EPS * float(np.sqrt(P * Q)) * size
    assert_within(np.maximum(short - long, 0.0), allowed)


@given(systems(discrete=True, max_order=6))
def test_a_long_horizon_is_the_infinite_one(system: System) -> None:
    scale = scale_of(system)
    # (1 - distance)^(2 L) is below eps², whatever power of L a Jordan block adds.
    steps = int(np.ceil(60.0 / (1.0 - np.abs(system.poles()).max())))
    error = hankel_singular_values(system, horizon=steps) - hankel_singular_values(system)
    assert_within(error, C * scale.rounding * max(1.0, np.log2(steps)))


@given(systems(discrete=True, max_order=6), st.integers(0, 40))
def test_an_infinite_horizon_is_the_limit_from_below(system: System, steps: int) -> None:
    gap = hankel_singular_values(system) - hankel_singular_values(system, horizon=steps + 1)
    assert_within(np.maximum(-gap, 0.0), C * scale_of(system).rounding)


@given(systems(discrete=True, max_order=5), GROWTH, st.integers(1, 30))
def test_two_horizons_join(system: System, growth: float, steps: int) -> None:
    # P_2L = P_L + A^L P_L A^Lᴴ.
    system = growing(system, growth)
    A = np.linalg.matrix_power(dense(system).A, steps)
    short = controllability_gramian(system, horizon=steps)
    joined = short + A @ short @ adjoint(A)
    size = max(1.0, float(np.linalg.norm(dense(system).A, 2))) ** min(2 * steps, 16)
    size *= max(1.0, float(np.linalg.norm(A, 2))) ** 2
    allowed = C * len(A) * steps * EPS * size * float(np.linalg.norm(short, 2))
    assert_within(controllability_gramian(system, horizon=2 * steps) - joined, allowed)


@given(systems(discrete=True, max_order=6), GROWTH, st.integers(1, 30))
def test_a_cut_within_a_horizon_promises_no_bound(
    system: System, growth: float, steps: int
) -> None:
    system = growing(system, growth)
    balancing = balance(system, horizon=steps)
    if balancing.rank < 1:
        return
    reduction = balancing.truncate(1)
    assert reduction.error_bound is None
    assert reduction.horizon == steps
    if isinstance(system, StateSpace):
        assert reduction.order == 1
