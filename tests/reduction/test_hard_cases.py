"""Hard cases, one test each: non-minimal, defective, marginal, extreme norms, extreme shapes."""

from __future__ import annotations

from math import lgamma
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from oracles.mpmath_hsv import hankel_singular_values as exact_values
from samples import EPS, Array, adjoint, complex_normal, dense_system, well_conditioned

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_truncation,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)
from ssmreduce.errors import (
    OrderError,
    ScalingWarning,
    UnstableSystemError,
)
from ssmreduce.norms import hinf_difference

pytestmark = pytest.mark.every_library

C = 20.0
"""c of c n eps times a size and a condition that each test names."""


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_reduces_within_the_bound(system: Any, order: int, rounding: float) -> None:
    reduction = balanced_truncation(system, order)
    assert reduction.error_bound is not None
    assert reduction.verify() <= reduction.error_bound + rounding


# Non-minimal systems


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_kalman_form_has_the_rank_of_its_minimal_part(discrete: bool, is_complex: bool) -> None:
    # States reachable and observable, reachable only, observable only, neither; then a similarity.
    part = dense_system(rng(0), 3, 2, 2, discrete=discrete, is_complex=is_complex)
    blocks = np.repeat([0, 1, 2, 3], [3, 2, 2, 2])
    feeds = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=bool)
    n, k = blocks.size, 3
    A = 0.3 * np.triu(rng(1).standard_normal((n, n)), 1).astype(part.A.dtype)
    A += 0.3 * np.tril(rng(2).standard_normal((n, n)), -1) * (blocks[:, None] != blocks)
    A += np.diag(np.linspace(-0.5, 0.5, n) - (0.0 if discrete else 1.0))
    A[~feeds[np.ix_(blocks, blocks)]] = 0.0
    A[:k, :k] = part.A
    B, readout = np.zeros((n, 2), dtype=A.dtype), np.zeros((2, n), dtype=A.dtype)
    B[:k], B[blocks == 1] = part.B, 1.0
    readout[:, :k], readout[:, blocks == 2] = part.C, 1.0
    T = well_conditioned(rng(2), n, is_complex=is_complex)
    inverse = np.linalg.inv(T)
    system = StateSpace(inverse @ A @ T, inverse @ B, readout @ T, time=part.time)
    balancing, minimal = balance(system), hankel_singular_values(part)
    assert np.abs(balancing.hsv[:k] - minimal).max() <= 1e3 * C * n * EPS * minimal[0]
    assert balancing.hsv[k] <= 1e3 * C * n * EPS * minimal[0]
    assert hinf_difference(system, balancing.truncate(k).system) <= 1e3 * C * n * EPS * minimal[0]


def test_reachable_and_observable_parts_that_do_not_meet() -> None:
    # G = 0, though neither Gramian is: every singular value is rounding of ‖Y‖ ‖Z‖.
    A = np.array([[0.5, 0.3, 0.0], [0.0, -0.4, 0.6], [0.0, 0.0, 0.2]])
    B, readout = np.array([[1.0], [0.0], [0.0]]), np.array([[0.0, 1.0, 1.0]])
    Q = well_conditioned(rng(3), 3, is_complex=False, spread=1.0)
    system = StateSpace(Q @ A @ adjoint(Q), Q @ B, readout @ adjoint(Q), time=Discrete())
    P, Q = controllability_gramian(system), observability_gramian(system)
    size = float(np.sqrt(np.linalg.norm(P, 2) * np.linalg.norm(Q, 2)))
    assert hankel_singular_values(system)[0] <= C * 3 * EPS * size


def test_a_system_that_transfers_nothing_has_rank_zero() -> None:
    A = np.array([[0.3, 3.0, 1.0], [0.0, -0.4, 3.0], [0.0, 0.0, 0.2]])
    B, readout = np.array([[1.0], [0.0], [0.0]]), np.array([[0.0, 1.0, 1.0]])
    Q = well_conditioned(rng(4), 3, is_complex=False, spread=1.0)
    system = StateSpace(Q @ A @ adjoint(Q), Q @ B, readout @ adjoint(Q), time=Discrete())
    assert balance(system).rank == 0


@pytest.mark.parametrize("real_output", [False, True])
def test_repeated_poles_of_a_diagonal_system_share_inputs(real_output: bool) -> None:
    # Three equal poles and one input: they are one state.
    poles = np.array([0.7 + 0.2j] * 3 + [-0.4 + 0.5j] * 2)
    B, readout = complex_normal(rng(5), 5, 1), complex_normal(rng(6), 2, 5)
    system = DiagonalStateSpace(poles, B, readout, time=Discrete(), real_output=real_output)
    balancing = balance(system)
    assert balancing.rank == (4 if real_output else 2)
    exact = exact_values(poles, B, readout, real_output=real_output)
    assert np.abs(balancing.hsv - exact).max() <= C * 10 * EPS * exact[0]


@pytest.mark.parametrize("discrete", [False, True])
def test_rows_of_B_that_are_zero(discrete: bool) -> None:
    plain = dense_system(rng(7), 6, 2, 2, discrete=discrete)
    B = plain.B.copy()
    B[2:] = 0.0
    system = StateSpace(plain.A, B, plain.C, time=plain.time)
    solve = discrete_lyapunov if discrete else continuous_lyapunov
    exact = solve(plain.A, B @ adjoint(B))
    found = controllability_gramian(system)
    assert np.abs(found - exact).max() <= 1e2 * C * 6 * EPS * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("discrete", [False, True])
def test_all_of_B_zero(kind: str, discrete: bool) -> None:
    time: Any = Discrete() if discrete else Continuous()
    poles = np.array([0.5, -0.3, 0.2]) - (0.0 if discrete else 1.0)
    B, readout = np.zeros((3, 2)), np.ones((1, 3))
    if kind == "dense":
        system: Any = StateSpace(np.diag(poles), B, readout, time=time)
    else:
        system = DiagonalStateSpace(poles, B, readout, time=time, real_output=kind == "real output")
    assert not hankel_singular_values(system).any()
    assert not controllability_gramian(system).any()
    assert observability_gramian(system).any()
    with pytest.raises(OrderError, match="all Hankel singular values are zero"):
        balanced_truncation(system, 1)


# Repeated and defective eigenvalues


def jordan(eigenvalue: float, size: int) -> Array:
    return eigenvalue * np.eye(size) + np.eye(size, k=1)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("size", [2, 4, 6])
def test_jordan_blocks(size: int, discrete: bool) -> None:
    A = jordan(0.5 if discrete else -1.0, size)
    time: Any = Discrete() if discrete else Continuous()
    B, readout = rng(8).standard_normal((size, 2)), rng(9).standard_normal((1, size))
    system = StateSpace(A, B, readout, time=time)
    solve = discrete_lyapunov if discrete else continuous_lyapunov
    P, Q = solve(A, B @ adjoint(B)), solve(adjoint(A), adjoint(readout) @ readout)
    # ‖L⁻¹‖ ‖A‖², as in the laws.
    condition = np.linalg.norm(solve(A, np.eye(size)), 2) * np.linalg.norm(A, 2) ** 2
    for found, exact in (
        (controllability_gramian(system), P),
        (observability_gramian(system), Q),
    ):
        assert np.linalg.norm(found - exact) <= C * size * EPS * condition * np.linalg.norm(exact)
    size_of_rounding = np.sqrt(np.linalg.norm(P, 2) * np.linalg.norm(Q, 2)) * condition
    assert_reduces_within_the_bound(system, size - 1, C * size * EPS * float(size_of_rounding))


@pytest.mark.parametrize("n", [1, 3, 8, 40])
@pytest.mark.parametrize(("m", "p"), [(1, 1), (2, 3)])
def test_delay_lines_have_the_values_of_their_hankel_matrix(n: int, m: int, p: int) -> None:
    # A nilpotent: G = Σ h_k z^-k is a polynomial and its Hankel matrix finite, an exact oracle.
    h = rng(10).standard_normal((n, p, m)) * 0.8 ** np.arange(n)[:, None, None]
    A = np.kron(np.eye(n, k=-1), np.eye(m))
    B = np.concatenate([np.eye(m), np.zeros(((n - 1) * m, m))])
    readout = np.concatenate(list(h), axis=1)
    system = StateSpace(A, B, readout, time=Discrete())
    zero = np.zeros((p, m))
    blocks = [[h[i + j] if i + j < n else zero for j in range(n)] for i in range(n)]
    exact = np.zeros(n * m)
    values = np.linalg.svd(np.block(blocks), compute_uv=False)
    exact[: min(n * m, values.size)] = values[: n * m]
    assert np.abs(hankel_singular_values(system) - exact).max() <= C * n * m * EPS * exact[0]
    np.testing.assert_allclose(controllability_gramian(system), np.eye(n * m), atol=n * EPS)
    if n > 1:
        assert_reduces_within_the_bound(system, n // 2, C * n * m * EPS * float(exact[0]))


@pytest.mark.parametrize("real_output", [False, True])
def test_nearly_equal_poles_are_cut_safely(real_output: bool) -> None:
    poles = 0.6 + 0.3j + 1e-12 * np.arange(6)
    B, readout = complex_normal(rng(11), 6, 3), complex_normal(rng(12), 3, 6)
    system = DiagonalStateSpace(poles, B, readout, time=Discrete(), real_output=real_output)
    balancing = balance(system)
    for order in (1, 2, 3):
        reduction = balancing.truncate(order)
        assert reduction.slot_map is not None
        rounding = C * 12 * EPS * float(balancing.hsv[0]) * reduction.slot_map.condition
        assert reduction.error_bound is not None
        assert reduction.verify() <= reduction.error_bound + rounding


# Next to the boundary of stability


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_modulus_1_minus_1e_minus_12(kind: str) -> None:
    # One slow pole and fast ones. In a stored λ the distance η has a relative error of eps/η = 2e-4.
    eta = 1e-12
    poles = np.array([(1 - eta) * np.exp(0.7j), 0.5, -0.3 + 0.4j, 0.1j])
    B, readout = complex_normal(rng(13), 4, 2), complex_normal(rng(14), 2, 4)
    exact = exact_values(poles, B, readout, real_output=kind == "real output")
    if kind == "dense":
        U = well_conditioned(rng(15), 4, is_complex=True, spread=1.0)
        system: Any = StateSpace(
            (U * poles) @ adjoint(U), U @ B, readout @ adjoint(U), time=Discrete()
        )
    else:
        system = DiagonalStateSpace(
            poles, B, readout, time=Discrete(), real_output=kind == "real output"
        )
    found = hankel_singular_values(system)
    assert np.abs(found - exact).max() <= C * 8 * EPS / eta * exact[0]
    reduction = balanced_truncation(system, 1)
    # The slow mode is all that counts; it stays, and stays stable.
    assert np.abs(reduction.system.poles()).max() < 1.0
    assert reduction.error_bound is not None
    assert reduction.error_bound <= 1e-9 * exact[0]
    # Rounding of a new pole beside its distance η: that is what the cut costs.
    assert reduction.verify() <= reduction.error_bound + C * 8 * EPS / eta * exact[0]


def test_modulus_1_minus_1e_minus_12_in_a_real_matrix() -> None:
    eta = 1e-12
    angle, radius = 0.7, 1.0 - eta
    rotation = radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    A = scipy.linalg.block_diag(rotation, [[0.5]], [[-0.2]])
    B, readout = rng(16).standard_normal((4, 1)), rng(17).standard_normal((1, 4))
    system = StateSpace(A, B, readout, time=Discrete())
    found = hankel_singular_values(system)
    assert found.dtype == np.float64
    # As the pair of a diagonal system: eigenvector [1, -i]/√2 of the rotation by +angle.
    V = np.array([[1, 1], [-1j, 1j]]) / np.sqrt(2)
    V = scipy.linalg.block_diag(V, np.eye(2))
    poles = np.array([radius * np.exp(1j * angle), radius * np.exp(-1j * angle), 0.5, -0.2])
    exact = exact_values(poles, adjoint(V) @ B, readout @ V)
    assert np.abs(found - exact).max() <= C * 4 * EPS / eta * exact[0]


@pytest.mark.parametrize("distance", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("spread", [0.3, 30.0])
def test_a_cluster_next_to_the_circle_from_logarithms(spread: float, distance: float) -> None:
    # Differences of the stored poles are off by eps/η here, those of the logarithms are exact.
    draw = rng(18)
    logarithms = -distance * draw.uniform(1, 3, 3)
    logarithms = logarithms + 1j * (0.5 + spread * distance * draw.uniform(size=3))
    B, readout = complex_normal(draw, 3, 1), complex_normal(draw, 1, 3)
    system = DiagonalStateSpace.from_log(logarithms, B, readout, time=Discrete())
    exact = exact_values(logarithms, B, readout, logarithms=True)
    assert np.abs(hankel_singular_values(system) - exact).max() <= C * 3 * EPS * exact[0]


@pytest.mark.parametrize("distance", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("phase", [0.0, np.pi, 2 * np.pi])
@pytest.mark.parametrize("is_complex", [False, True])
def test_real_poles_next_to_the_circle_from_logarithms(
    is_complex: bool, phase: float, distance: float
) -> None:
    draw = rng(19)
    logarithms = -distance * draw.uniform(1, 3, 3) + 1j * phase
    B, readout = complex_normal(draw, 3, 1), complex_normal(draw, 1, 3)
    if not is_complex:
        B, readout = B.real + 0j, readout.real + 0j
    system = DiagonalStateSpace.from_log(logarithms, B, readout, time=Discrete(), real_output=True)
    exact = exact_values(logarithms, B, readout, logarithms=True, real_output=True)
    # Blocks of real pairs lose sqrt(eps/η) of eps at most where such pairs are correlated.
    allowed = C * 6 * EPS * (1.0 if not is_complex else 1.0 + np.sqrt(1.0 / distance))
    assert np.abs(hankel_singular_values(system) - exact).max() <= allowed * exact[0]


@pytest.mark.parametrize("radius", [1.0, 1.0 + 1e-12])
def test_on_the_circle_and_beyond(radius: float) -> None:
    A = np.diag([radius, 0.5])
    dense = StateSpace(A, np.ones((2, 1)), np.ones((1, 2)), time=Discrete())
    diagonal = DiagonalStateSpace(A.diagonal(), np.ones((2, 1)), np.ones((1, 2)), time=Discrete())
    for system in (dense, diagonal):
        with pytest.raises(UnstableSystemError, match=r"expected \|λ\| < 1"):
            balance(system)
        assert balance(system, horizon=1000).rank == 2


@pytest.mark.parametrize("distance", [1e-3, 1e-6])
def test_a_fast_lightly_damped_pair_next_to_a_slow_pole(distance: float) -> None:
    # A Cayley shift between the two moduli would put the pair at distance² from the circle.
    A = scipy.linalg.block_diag([[-distance, 4.0], [-4.0, -distance]], [[-distance]])
    B, readout = rng(27).standard_normal((3, 2)), rng(28).standard_normal((2, 3))
    system = StateSpace(A, B, readout, time=Continuous())
    values, vectors = np.linalg.eig(A)
    exact = exact_values(
        values, np.linalg.solve(vectors, B + 0j), readout @ vectors, discrete=False
    )
    condition = 4.0 / distance  # ‖A‖ ‖L⁻¹‖ of a normal A
    found = hankel_singular_values(system)
    assert np.abs(found - exact).max() <= C * 3 * EPS * condition * exact[0]


# Norms of 1e±150, scales


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("of_B", "of_C"), [(1e150, 1e-150), (1e-150, 1e150), (1e150, 1.0)])
def test_gains_of_1e150(kind: str, discrete: bool, of_B: float, of_C: float) -> None:
    plain = dense_system(rng(20), 5, 2, 2, discrete=discrete)
    poles = np.linalg.eigvals(plain.A)

    def build(b: float, c: float) -> Any:
        if kind == "dense":
            return StateSpace(plain.A, b * plain.B, c * plain.C, time=plain.time)
        return DiagonalStateSpace(
            poles, b * plain.B, c * plain.C, time=plain.time, real_output=kind == "real output"
        )

    expected = hankel_singular_values(build(1.0, 1.0))
    system = build(of_B, of_C)
    found = hankel_singular_values(system) / (of_B * of_C)
    assert np.abs(found - expected).max() <= 10 * C * 10 * EPS * expected[0]
    reduction = balanced_truncation(system, 2)
    assert np.all(np.isfinite(reduction.system.B))
    assert np.all(np.isfinite(reduction.system.C))
    assert reduction.error_bound is not None
    assert reduction.verify() <= reduction.error_bound * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("unit", [1e-100, 1e100])
def test_time_in_units_of_1e100(kind: str, unit: float) -> None:
    plain = dense_system(rng(21), 5, 2, 2, discrete=False)
    poles, root = np.linalg.eigvals(plain.A), np.sqrt(unit)

    def build(a: float, b: float) -> Any:
        if kind == "dense":
            return StateSpace(a * plain.A, b * plain.B, b * plain.C, time=Continuous())
        return DiagonalStateSpace(
            a * poles, b * plain.B, b * plain.C, time=Continuous(), real_output=kind != "diagonal"
        )

    expected = hankel_singular_values(build(1.0, 1.0))
    system = build(unit, root)
    found = hankel_singular_values(system)
    assert np.abs(found - expected).max() <= 10 * C * 10 * EPS * expected[0]
    reduction = balanced_truncation(system, 2)
    assert reduction.error_bound is not None
    assert reduction.verify() <= reduction.error_bound * (1 + 1e-9)


@pytest.mark.parametrize("discrete", [False, True])
def test_badly_scaled_states(discrete: bool) -> None:
    # Powers of two: a similarity without rounding.
    plain = dense_system(rng(22), 6, 2, 2, discrete=discrete)
    scale = 2.0 ** np.array([-20, 11, 0, 17, -9, 4])
    system = StateSpace(
        plain.A * (scale[:, None] / scale),
        plain.B * scale[:, None],
        plain.C / scale,
        time=plain.time,
    )
    expected = hankel_singular_values(plain)
    found = hankel_singular_values(system)
    assert np.abs(found - expected).max() <= 100 * 6 * EPS * expected[0]


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_badly_scaled_inputs_and_outputs(kind: str) -> None:
    # A gain of 1e12 between channels: small channels keep an absolute accuracy of n eps σ₁.
    plain = dense_system(rng(23), 5, 3, 3, discrete=True)
    poles = np.linalg.eigvals(plain.A)
    B = plain.B * np.array([1e6, 1.0, 1e-6])
    readout = plain.C * np.array([1e-6, 1.0, 1e6])[:, None]
    if kind == "dense":
        system: Any = StateSpace(plain.A, B, readout, time=Discrete())
        values, vectors = np.linalg.eig(plain.A)
        exact = exact_values(values, np.linalg.solve(vectors, B + 0j), readout @ vectors)
    else:
        system = DiagonalStateSpace(
            poles, B, readout, time=Discrete(), real_output=kind == "real output"
        )
        exact = exact_values(poles, B, readout, real_output=kind == "real output")
    found = hankel_singular_values(system)
    assert np.abs(found - exact).max() <= 10 * C * 10 * EPS * exact[0]
    with pytest.warns(ScalingWarning):
        assert_reduces_within_the_bound(system, 2, 10 * C * 10 * EPS * float(exact[0]))


def test_wide_frequency_ranges() -> None:
    # Twelve decades of time constants, each visible: σ = |c b|/(2|λ|) for well separated poles.
    poles = -np.geomspace(1e-6, 1e6, 5)
    B = np.sqrt(np.abs(poles))[:, None]
    diagonal = DiagonalStateSpace(poles, B, B.reshape(1, -1), time=Continuous())
    exact = exact_values(poles, B, B.reshape(1, -1), discrete=False)
    assert np.abs(hankel_singular_values(diagonal) - exact).max() <= C * 5 * EPS * exact[0]
    dense = hankel_singular_values(diagonal.to_dense())
    # A diagonal matrix, so even the dense route need not lose the slow pole.
    assert np.abs(dense - exact).max() <= 1e-9 * exact[0]
    # Wᴴ A T rounds by eps ‖A‖, which is 1e12 eps of the slow pole; the projections are graded, so
    # that less than the square root of that is left.
    for order in (1, 3):
        assert_reduces_within_the_bound(diagonal, order, C * 5 * EPS * 1e6 * float(exact[0]))


# Shapes


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
@pytest.mark.parametrize("discrete", [False, True])
def test_one_state(kind: str, discrete: bool) -> None:
    pole, b, c = (0.5 if discrete else -0.5), np.array([[3.0, 4.0]]), np.array([[2.0], [0.0]])
    time: Any = Discrete() if discrete else Continuous()
    if "dense" in kind:
        dtype = complex if kind == "complex dense" else float
        system: Any = StateSpace(np.array([[pole]], dtype=dtype), b, c, time=time)
    else:
        system = DiagonalStateSpace([pole], b, c, time=time, real_output=kind == "real output")
    expected = 5.0 * 2.0 / (0.75 if discrete else 1.0)
    found = hankel_singular_values(system)
    assert found[0] == pytest.approx(expected, rel=C * EPS)
    assert not found[1:].any()
    assert balanced_truncation(system, 1).system is system


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize(("m", "p"), [(1, 1), (1, 512), (512, 1), (512, 512)])
def test_from_one_to_512_inputs_and_outputs(kind: str, m: int, p: int) -> None:
    draw = rng(24)
    n = 4
    poles = np.array([0.9, -0.5, 0.3, 0.1])
    B, readout = draw.standard_normal((n, m)), draw.standard_normal((p, n))
    if kind == "dense":
        Q = well_conditioned(draw, n, is_complex=False, spread=1.0)
        system: Any = StateSpace(
            (Q * poles) @ adjoint(Q), Q @ B, readout @ adjoint(Q), time=Discrete()
        )
    else:
        system = DiagonalStateSpace(
            poles, B, readout, time=Discrete(), real_output=kind == "real output"
        )
    # The Gramians see B Bᴴ and Cᴴ C only: triangular factors of those have the same values.
    rows = np.linalg.qr(adjoint(B), mode="r")
    columns = np.linalg.qr(readout, mode="r")
    small = StateSpace(np.diag(poles), adjoint(rows), columns, time=Discrete())
    expected = hankel_singular_values(small)
    found = hankel_singular_values(system)[:n]
    assert np.abs(found - expected).max() <= 10 * C * n * EPS * expected[0]
    reduction = balanced_truncation(system, 2)
    assert (reduction.system.inputs, reduction.system.outputs) == (m, p)
    assert reduction.error_bound is not None
    assert reduction.verify() <= reduction.error_bound + 10 * C * n * EPS * float(expected[0])


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_float32_data(kind: str) -> None:
    # The core works in double: single-precision data are the data, exactly.
    draw = rng(25)
    poles = (0.95 * np.exp(1j * draw.uniform(0, 3, 5))).astype(np.complex64)
    B = complex_normal(draw, 5, 2).astype(np.complex64)
    readout = complex_normal(draw, 2, 5).astype(np.complex64)
    if kind == "dense":
        A = (0.2 * draw.standard_normal((5, 5))).astype(np.float32)
        single: Any = StateSpace(A, B.real, readout.real, time=Discrete())
        double: Any = StateSpace(
            A.astype(float), B.real.astype(float), readout.real.astype(float), time=Discrete()
        )
    else:
        real = kind == "real output"
        single = DiagonalStateSpace(poles, B, readout, time=Discrete(), real_output=real)
        double = DiagonalStateSpace(
            *(x.astype(complex) for x in (poles, B, readout)), time=Discrete(), real_output=real
        )
    np.testing.assert_array_equal(hankel_singular_values(single), hankel_singular_values(double))
    reduction = balanced_truncation(single, 2)
    assert reduction.system.B.dtype in (np.float64, np.complex128)
    assert reduction.error_bound is not None
    assert reduction.verify() <= reduction.error_bound * (1 + 1e-9)


# Departure from normality


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("departure", [1e1, 1e3])
def test_far_from_normal(departure: float, discrete: bool) -> None:
    # Upper triangular with large entries: ‖L⁻¹‖ grows like departure^(2(n-1)).
    n = 3
    A = np.diag([0.5, -0.3, 0.2] if discrete else [-0.5, -1.0, -2.0])
    A = A + departure * np.triu(rng(26).standard_normal((n, n)), 1)
    B, readout = np.ones((n, 1)), np.ones((1, n))
    system = StateSpace(A, B, readout, time=Discrete() if discrete else Continuous())
    # The eigenvalues are on the diagonal; eigenvectors and residues at 80 digits.
    with mp.workdps(80):
        values, vectors = mp.eig(mp.matrix(A.tolist()))
        rows = vectors**-1 * mp.matrix(B.tolist())
        columns = mp.matrix(readout.tolist()) * vectors
        residues = np.array([complex(rows[i] * columns[i]) for i in range(n)])
        poles = np.array([complex(x) for x in values])
    exact = exact_values(poles, residues[:, None], np.ones((1, n)), discrete=discrete)
    # First order: |δσ| ≤ ‖δA‖ ‖C (zI - A)⁻¹‖∞ ‖(zI - A)⁻¹ B‖∞.
    omega = np.linspace(0, np.pi, 400) if discrete else np.geomspace(1e-3, 1e2, 400)
    points = np.exp(1j * omega) if discrete else 1j * omega
    resolvents = np.linalg.inv(points[:, None, None] * np.eye(n) - A)
    gains = [
        np.linalg.norm(x, 2, axis=(1, 2)).max() for x in (readout @ resolvents, resolvents @ B)
    ]
    sensitivity = float(np.linalg.norm(A, 2) * gains[0] * gains[1])
    assert sensitivity > 1e2 * exact[0]  # far from normal indeed
    found = hankel_singular_values(system)
    assert np.abs(found - exact).max() <= C * n * EPS * sensitivity


@pytest.mark.parametrize("n", [20, 60])
def test_long_chains_of_slow_states(n: int) -> None:
    # 1/(s+1)^n as a chain: one n-fold pole in one Jordan block.
    A = -np.eye(n) + np.eye(n, k=-1)
    B, readout = np.eye(n)[:, :1], np.eye(n)[-1:]
    system = StateSpace(A, B, readout, time=Continuous())
    values = hankel_singular_values(system)
    # Σσ² = ∫ t h(t)² dt = (2n-1)!/((n-1)!² 4^n) for h(t) = t^(n-1) e^-t/(n-1)!.
    total = np.exp(lgamma(2 * n) - 2 * lgamma(n) - 2 * n * np.log(2.0))
    assert np.sum(values**2) == pytest.approx(total, rel=C * n * n * EPS)
    # G(0) = 1 is the peak of the gain: σ₁ ≤ 1.
    assert values[0] <= 1.0 + C * n * EPS
    assert_reduces_within_the_bound(system, n // 4, 1e3 * C * n * EPS)
