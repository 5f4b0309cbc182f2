"""Laws of the Hankel singular values: what leaves them as they are, and what it does to them.

The values belong to the input-output map. Tolerances are C n eps sqrt(‖P‖ ‖Q‖) κ with the condition κ
of the Lyapunov operator: what a relative perturbation of A by eps can do (`Scale.rounding`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import Array, adjoint, complex_normal, well_conditioned
from strategies import (
    DENSE,
    DIAGONAL,
    System,
    assert_within,
    bilinear,
    dense,
    lyapunov,
    scale_of,
    state_matrix,
    systems,
    with_matrices,
)

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)

pytestmark = pytest.mark.every_library

C = 20.0
"""Each side makes a few n eps errors, and transforming the data a few more."""

SEEDS = st.integers(0, 2**32 - 1)


def unitary(seed: int, size: int, *, is_complex: bool) -> Array:
    return well_conditioned(np.random.default_rng(seed), size, is_complex=is_complex, spread=1.0)


def is_complex(system: System) -> bool:
    return np.iscomplexobj(system.B)


def permuted(system: System, order: Array) -> System:
    A = state_matrix(system)
    A = A[order] if isinstance(system, DiagonalStateSpace) else A[np.ix_(order, order)]
    return with_matrices(system, A, system.B[order], system.C[:, order])


@given(systems())
def test_they_are_real_descending_and_complete(system: System) -> None:
    values = hankel_singular_values(system)
    assert values.shape == (dense(system).order,)
    assert values.dtype == np.float64
    assert np.all(values >= 0)
    assert np.all(np.diff(values) <= 0)
    assert values[0] <= (1 + 1e-8) * scale_of(system).gramians


@given(systems())
def test_their_squares_are_the_eigenvalues_of_PQ(system: System) -> None:
    # Σ σ² = tr P Q, with P and Q from linear systems of their own.
    values, scale = hankel_singular_values(system), scale_of(system)
    full = dense(system)
    P = lyapunov(system, full.B @ adjoint(full.B))
    Q = lyapunov(system, adjoint(full.C) @ full.C, dual=True)
    assert_within(np.sum(values**2) - np.trace(P @ Q).real, C * scale.rounding * scale.gramians)


@given(systems(kinds=DENSE), SEEDS, st.sampled_from([1.0, 3.0, 30.0]))
def test_similarity(system: StateSpace, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    T = well_conditioned(rng, system.order, is_complex=is_complex(system), spread=spread)
    inverse = np.linalg.inv(T)
    moved = with_matrices(system, inverse @ system.A @ T, inverse @ system.B, system.C @ T)
    assume(moved.is_stable())  # single precision may carry a pole over the boundary
    error = hankel_singular_values(system) - hankel_singular_values(moved)
    assert_within(error, C * spread**2 * scale_of(system).rounding)


@given(systems(kinds=DIAGONAL), SEEDS)
def test_diagonal_similarity(system: DiagonalStateSpace, seed: int) -> None:
    # States may be scaled by anything: the factors come row by row.
    rng = np.random.default_rng(seed)
    scale = np.exp(10 * rng.standard_normal(system.order) + 2j * np.pi * rng.uniform())
    moved = with_matrices(system, system.eigenvalues, system.B * scale[:, None], system.C / scale)
    error = hankel_singular_values(system) - hankel_singular_values(moved)
    assert_within(error, C * scale_of(system).rounding)


@given(systems(), SEEDS)
def test_permutation_of_states(system: System, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(system.order)
    error = hankel_singular_values(system) - hankel_singular_values(permuted(system, order))
    assert_within(error, C * scale_of(system).rounding)


@given(systems())
def test_duality(system: System) -> None:
    A = state_matrix(system)
    A = A.conj() if isinstance(system, DiagonalStateSpace) else adjoint(A)
    dual = with_matrices(system, A, adjoint(system.C), adjoint(system.B))
    scale = scale_of(system)
    error = hankel_singular_values(system) - hankel_singular_values(dual)
    assert_within(error, C * scale.rounding)
    relative = C * scale.n * np.finfo(float).eps * scale.condition
    for one, other in (
        (observability_gramian(system), controllability_gramian(dual)),
        (controllability_gramian(system), observability_gramian(dual)),
    ):
        assert_within(np.abs(one - other), relative * float(np.linalg.norm(one, 2)))


@given(systems())
def test_conjugation(system: System) -> None:
    conjugate = with_matrices(system, state_matrix(system).conj(), system.B.conj(), system.C.conj())
    error = hankel_singular_values(system) - hankel_singular_values(conjugate)
    assert_within(error, C * scale_of(system).rounding)


@given(systems(max_order=7), st.sampled_from([0.3, 1.0, 4.0]))
def test_bilinear_map_between_the_time_domains(system: System, shift: float) -> None:
    mapped = bilinear(system, shift)
    # The map loses n eps cond(sI - A) (or A + I), and its target has a condition of its own.
    identity = np.eye(dense(system).order)
    A = dense(system).A
    below = A + identity if isinstance(system.time, Discrete) else shift * identity - A
    condition = float(np.linalg.cond(below))
    allowed = C * condition * max(scale_of(system).rounding, scale_of(mapped).rounding)
    assert_within(hankel_singular_values(system) - hankel_singular_values(mapped), allowed)


@given(systems(), st.integers(-40, 40), st.integers(-40, 40))
def test_powers_of_two_scale_exactly(system: System, first: int, second: int) -> None:
    scaled = with_matrices(
        system, state_matrix(system), system.B * 2.0**first, system.C * 2.0**second
    )
    expected = hankel_singular_values(system) * 2.0 ** (first + second)
    np.testing.assert_array_equal(hankel_singular_values(scaled), expected)


@given(systems(discrete=False), st.integers(-20, 20))
def test_the_unit_of_time_does_not_matter(system: System, power: int) -> None:
    unit = 4.0**power
    scaled = with_matrices(
        system, state_matrix(system) * unit, system.B * 2.0**power, system.C * 2.0**power
    )
    error = hankel_singular_values(system) - hankel_singular_values(scaled)
    assert_within(error, C * scale_of(system).rounding)


@given(systems(), SEEDS)
def test_unitary_inputs_and_outputs(system: System, seed: int) -> None:
    full = is_complex(system) and not getattr(system, "real_output", False)
    U = unitary(seed, system.outputs, is_complex=full)
    V = unitary(seed + 1, system.inputs, is_complex=full)
    turned = with_matrices(system, state_matrix(system), system.B @ V, U @ system.C)
    error = hankel_singular_values(system) - hankel_singular_values(turned)
    assert_within(error, C * scale_of(system).rounding)


@given(systems(kinds=DIAGONAL))
def test_a_diagonal_system_is_its_dense_form(system: DiagonalStateSpace) -> None:
    error = hankel_singular_values(system) - hankel_singular_values(system.to_dense())
    assert_within(error, C * scale_of(system).rounding)


@given(systems(kinds=("dense",)))
def test_a_real_system_is_a_complex_one(system: StateSpace) -> None:
    lifted = with_matrices(system, system.A + 0j, system.B + 0j, system.C + 0j)
    error = hankel_singular_values(system) - hankel_singular_values(lifted)
    assert_within(error, C * scale_of(system).rounding)


@given(systems(kinds=("real output",), max_order=6))
def test_a_real_part_is_half_a_system_and_its_conjugate(system: DiagonalStateSpace) -> None:
    # Re(C h) = (C h + conj C conj h)/2: the complex system of the states [h; conj h].
    both = DiagonalStateSpace(
        np.concatenate([system.eigenvalues, system.eigenvalues.conj()]),
        np.concatenate([system.B, system.B.conj()]),
        np.concatenate([system.C, system.C.conj()], axis=1) / 2,
        time=system.time,
    )
    error = hankel_singular_values(system) - hankel_singular_values(both)
    assert_within(error, C * max(scale_of(system).rounding, scale_of(both).rounding))


@given(systems(), SEEDS)
def test_feedthrough_does_not_matter(system: System, seed: int) -> None:
    D = np.random.default_rng(seed).standard_normal((system.outputs, system.inputs))
    options = {"time": system.time, "read_after_update": system.read_after_update}
    A = state_matrix(system)
    if isinstance(system, DiagonalStateSpace):
        options["real_output"] = system.real_output
        other: System = DiagonalStateSpace(A, system.B, system.C, D, **options)
    else:
        other = StateSpace(A, system.B, system.C, D, **options)
    np.testing.assert_array_equal(hankel_singular_values(other), hankel_singular_values(system))


@given(systems(max_order=6, kinds=("dense", "complex dense", "diagonal")), SEEDS)
def test_systems_side_by_side_have_the_values_of_both(system: System, seed: int) -> None:
    scales = np.exp(np.random.default_rng(seed).uniform(-3, 3, 2))
    A, n = dense(system).A, system.order
    other = with_matrices(system, state_matrix(system), system.B * scales[0], system.C * scales[1])
    zero = np.zeros_like
    B = np.block([[system.B, zero(system.B)], [zero(system.B), other.B]])
    readout = np.block([[system.C, zero(system.C)], [zero(system.C), other.C]])
    if isinstance(system, DiagonalStateSpace):
        both = with_matrices(system, np.tile(system.eigenvalues, 2), B, readout)
    else:
        both = with_matrices(system, np.kron(np.eye(2), A), B, readout)
    assert both.order == 2 * n
    expected = np.concatenate([hankel_singular_values(system), hankel_singular_values(other)])
    error = hankel_singular_values(both) - np.sort(expected)[::-1]
    # One tolerance for both: absolute in the larger.
    assert_within(error, C * max(scale_of(both).rounding, scale_of(other).rounding))


@given(systems())
def test_an_output_twice_is_the_square_root_of_two(system: System) -> None:
    twice = with_matrices(
        system, state_matrix(system), system.B, np.concatenate([system.C, system.C])
    )
    error = hankel_singular_values(twice) - np.sqrt(2.0) * hankel_singular_values(system)
    assert_within(error, C * scale_of(twice).rounding)


@given(systems(min_order=2), st.integers(0, 3))
def test_fewer_inputs_or_outputs_have_smaller_values(system: System, which: int) -> None:
    # The Hankel operator of the smaller system is a block of that of the larger one.
    keep_in = np.arange(system.inputs) != which % system.inputs
    keep_out = np.arange(system.outputs) != which % system.outputs
    values, allowed = hankel_singular_values(system), C * scale_of(system).rounding
    for B, readout in (
        (system.B[:, keep_in], system.C),
        (system.B, system.C[keep_out]),
    ):
        if B.shape[1] and readout.shape[0]:
            fewer = with_matrices(system, state_matrix(system), B, readout)
            assert_within(np.maximum(hankel_singular_values(fewer) - values, 0.0), allowed)


@given(systems(max_order=6, kinds=("dense", "complex dense")), SEEDS)
def test_they_move_by_no_more_than_the_gain_of_the_change(system: StateSpace, seed: int) -> None:
    # Weyl: |σ_i(G₁) - σ_i(G₂)| ≤ ‖G₁ - G₂‖_H; here C changes, so the difference has the same A and B.
    rng = np.random.default_rng(seed)
    draw = complex_normal if is_complex(system) else (lambda g, *s: g.standard_normal(s))
    change = 10.0 ** rng.uniform(-6, 0) * draw(rng, system.outputs, system.order)
    other = with_matrices(system, system.A, system.B, system.C + change)
    gap = with_matrices(system, system.A, system.B, change)
    limit = hankel_singular_values(gap)[0]
    error = np.abs(hankel_singular_values(system) - hankel_singular_values(other))
    allowed = C * max(scale_of(system).rounding, scale_of(other).rounding)
    assert_within(np.maximum(error - limit, 0.0), allowed)


@given(systems(discrete=True))
def test_reading_after_the_update_keeps_the_triple(system: System) -> None:
    A, options = state_matrix(system), {"time": system.time, "read_after_update": True}
    if isinstance(system, DiagonalStateSpace):
        after: System = DiagonalStateSpace(
            A, system.B, system.C, real_output=system.real_output, **options
        )
    else:
        after = StateSpace(A, system.B, system.C, **options)
    before = hankel_singular_values(with_matrices(system, A, system.B, system.C))
    np.testing.assert_array_equal(hankel_singular_values(after), before)
    # In the standard form the first step of the memory is gone: a block of the same operator.
    allowed = C * scale_of(after).rounding
    standard = hankel_singular_values(after.to_standard())
    assert_within(np.maximum(standard - before, 0.0), allowed)


@given(systems(discrete=True))
def test_values_interlace_with_those_of_one_step_later(system: System) -> None:
    # (A, B, CA) has Q' = Aᴴ Q A = Q - Cᴴ C. With P = Z Zᴴ its σ² are the eigenvalues of the matrix
    # Zᴴ Q Z - (CZ)ᴴ (CZ): those of (A, B, C) less a positive semidefinite matrix of rank at most p, so
    # σ_{i+p} ≤ σ'_i ≤ σ_i (Weyl). (A, AB, C) has the same Hankel matrix and P' = P - B Bᴴ: m does as well.
    later = replace(system, read_after_update=True).to_standard()
    values, of_later = hankel_singular_values(system), hankel_singular_values(later)
    fewer = min(system.inputs, system.outputs)
    allowed = C * max(scale_of(system).rounding, scale_of(later).rounding)
    assert_within(np.maximum(of_later - values, 0.0), allowed)
    assert_within(np.maximum(values[fewer:] - of_later[: values[fewer:].size], 0.0), allowed)


@given(systems(discrete=False), st.floats(0.1, 10.0))
def test_any_unit_of_time(system: System, unit: float) -> None:
    root = np.sqrt(unit)
    scaled = with_matrices(system, state_matrix(system) * unit, system.B * root, system.C * root)
    assert isinstance(scaled.time, Continuous)
    error = hankel_singular_values(system) - hankel_singular_values(scaled)
    assert_within(error, C * scale_of(system).rounding)
