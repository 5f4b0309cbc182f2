"""Gramians against Kronecker products, SciPy, SLICOT and explicit sums."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov, summed_gramian
from samples import EPS, adjoint, complex_normal, dense_system, diagonal_system

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_truncation,
    controllability_gramian,
    h2_norm,
    hankel_singular_values,
    observability_gramian,
)
from ssmreduce.errors import ArgumentError, NoConvergenceError, TimeDomainError, UnstableSystemError
from ssmreduce.gramians.factors import gramian_factors

pytestmark = pytest.mark.every_library

C_LYAPUNOV = 10.0
"""c of c n eps ‖X‖ κ: a few roundings per entry, on both sides of the comparison."""


def separation(A: np.ndarray, *, discrete: bool) -> float:
    """Condition of the Lyapunov operator: ‖L‖ ‖L⁻¹‖ from its explicit matrix."""
    n = len(A)
    if discrete:
        operator = np.eye(n * n) - np.kron(A.conj(), A)
    else:
        operator = np.kron(np.eye(n), A) + np.kron(A.conj(), np.eye(n))
    return float(np.linalg.cond(operator))


def assert_gramians(system: Any, dense: StateSpace) -> None:
    """Compare both Gramians of `system` with a Kronecker solve of `dense`."""
    discrete = isinstance(system.time, Discrete)
    solve = discrete_lyapunov if discrete else continuous_lyapunov
    A, B, C = dense.A, dense.B, dense.C
    allowed = C_LYAPUNOV * len(A) * EPS * separation(A, discrete=discrete)
    for found, exact in (
        (controllability_gramian(system), solve(A, B @ adjoint(B))),
        (observability_gramian(system), solve(adjoint(A), adjoint(C) @ C)),
    ):
        assert found.shape == exact.shape
        assert np.linalg.norm(found - exact) <= allowed * np.linalg.norm(exact)
        assert np.linalg.norm(found - adjoint(found)) <= 2 * EPS * np.linalg.norm(found)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (5, 1, 2), (8, 3, 1)])
def test_dense(
    rng: np.random.Generator, n: int, m: int, p: int, discrete: bool, is_complex: bool
) -> None:
    system = dense_system(rng, n, m, p, discrete=discrete, is_complex=is_complex)
    assert_gramians(system, system)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (5, 1, 2), (6, 4, 1), (4, 12, 12)])
def test_diagonal_against_its_dense_form(
    rng: np.random.Generator, n: int, m: int, p: int, discrete: bool, real_output: bool
) -> None:
    system = diagonal_system(rng, n, m, p, discrete=discrete, real_output=real_output, radius=0.9)
    dense = system.to_dense()
    assert np.isrealobj(dense.A) == real_output
    assert_gramians(system, dense)


def test_scipy_discrete(rng: np.random.Generator) -> None:
    system = dense_system(rng, 20, 2, 3)
    exact = scipy.linalg.solve_discrete_lyapunov(system.A, system.B @ system.B.T, method="direct")
    found = controllability_gramian(system)
    allowed = C_LYAPUNOV * 20 * EPS * separation(system.A, discrete=True)
    assert np.linalg.norm(found - exact) <= allowed * np.linalg.norm(exact)


def test_scipy_continuous_has_the_other_sign(rng: np.random.Generator) -> None:
    system = dense_system(rng, 20, 2, 3, discrete=False)
    exact = scipy.linalg.solve_continuous_lyapunov(system.A, -system.B @ system.B.T)
    found = controllability_gramian(system)
    assert np.all(np.linalg.eigvalsh(found) >= -20 * EPS * np.linalg.norm(found, 2))
    allowed = C_LYAPUNOV * 20 * EPS * separation(system.A, discrete=False)
    assert np.linalg.norm(found - exact) <= allowed * np.linalg.norm(exact)


@pytest.mark.parametrize("discrete", [False, True])
def test_slicot(rng: np.random.Generator, discrete: bool) -> None:
    slycot = pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
    system = dense_system(rng, 16, 2, 2, discrete=discrete)
    # SLICOT solves Aᵀ X A - X = scale C (discrete) and Aᵀ X + X A = scale C (continuous).
    right = -system.C.T @ system.C
    result = slycot.sb03md57(system.A.copy(), C=right, dico="D" if discrete else "C", job="X")
    exact = result[2] / result[3]
    allowed = C_LYAPUNOV * 16 * EPS * separation(system.A, discrete=discrete)
    found = observability_gramian(system)
    assert np.linalg.norm(found - exact) <= allowed * np.linalg.norm(exact)


def test_inputs_are_left_as_they_were(rng: np.random.Generator) -> None:
    for system in (dense_system(rng, 6, 2, 2), diagonal_system(rng, 6, 2, 2, real_output=True)):
        names = ("A", "B", "C", "D") if isinstance(system, StateSpace) else ("eigenvalues", "B")
        arrays = [getattr(system, name) for name in names]
        copies = [array.copy() for array in arrays]
        for array in arrays:
            array.flags.writeable = False
        controllability_gramian(system)
        observability_gramian(system)
        balanced_truncation(system, 3)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("radius", [0.9, 1.0, 1.05])
@pytest.mark.parametrize("kind", ["dense", "complex", "real output"])
def test_finite_horizon_is_the_explicit_sum(kind: str, radius: float, steps: int) -> None:
    rng = np.random.default_rng(steps)
    if kind == "dense":
        system: Any = dense_system(rng, 6, 2, 1, radius=radius)
        dense = system
    else:
        system = diagonal_system(rng, 5, 2, 1, real_output=kind == "real output")
        poles = system.eigenvalues * (radius / np.abs(system.eigenvalues).max())
        system = DiagonalStateSpace(
            poles, system.B, system.C, time=Discrete(), real_output=system.real_output
        )
        dense = system.to_dense()
    # Powers of A are exact to about steps roundings, dense ones to their non-normality too.
    growth = max(np.linalg.norm(np.linalg.matrix_power(dense.A, k), 2) for k in range(1, steps + 1))
    allowed = C_LYAPUNOV * (6 + steps) * EPS * max(growth, 1.0) ** 2
    P = controllability_gramian(system, horizon=steps)
    exact = summed_gramian(dense.A, dense.B, steps)
    assert np.linalg.norm(P - exact) <= allowed * np.linalg.norm(exact)
    Q = observability_gramian(system, horizon=steps)
    exact = summed_gramian(adjoint(dense.A), adjoint(dense.C), steps)
    assert np.linalg.norm(Q - exact) <= allowed * np.linalg.norm(exact)


def test_a_long_horizon_is_the_infinite_one(rng: np.random.Generator) -> None:
    system = diagonal_system(rng, 6, 2, 2, real_output=True, radius=0.9)
    infinite = hankel_singular_values(system)
    # |λ|^2000 < 1e-90: what is left out is far below rounding.
    finite = hankel_singular_values(system, horizon=2000)
    assert np.abs(finite - infinite).max() <= C_LYAPUNOV * 12 * EPS * infinite[0] * 10


def test_hankel_matrix_of_a_finite_horizon(rng: np.random.Generator) -> None:
    # The finite-horizon values are those of the block Hankel matrix of L steps each way.
    system = diagonal_system(rng, 4, 2, 2, real_output=True, radius=1.02)
    dense, steps = system.to_dense(), 9
    markov = [dense.C @ np.linalg.matrix_power(dense.A, k) @ dense.B for k in range(2 * steps - 1)]
    hankel = np.block([[markov[i + j] for j in range(steps)] for i in range(steps)])
    exact = np.linalg.svd(hankel, compute_uv=False)[:8]
    found = hankel_singular_values(system, horizon=steps)
    assert np.abs(found - exact).max() <= C_LYAPUNOV * 18 * EPS * exact[0]


MARGINAL = {
    "on the circle": ([1.0 + 0j, 0.5], Discrete()),
    "outside": ([1.1 + 0j, 0.5], Discrete()),
    "complex on the circle": ([1j, 0.5], Discrete()),
    "on the axis": ([0.0 + 1j, -0.5], Continuous()),
    "right half plane": ([0.1 + 1j, -0.5], Continuous()),
}


@pytest.mark.parametrize("name", MARGINAL)
@pytest.mark.parametrize("real_output", [False, True])
def test_marginal_and_unstable_systems_raise(name: str, real_output: bool) -> None:
    poles, time = MARGINAL[name]
    system = DiagonalStateSpace(
        poles, np.ones((2, 1)), np.ones((1, 2)), time=time, real_output=real_output
    )
    for candidate in (system, system.to_dense()):
        for function in (hankel_singular_values, controllability_gramian, balance):
            remedy = "horizon" if isinstance(time, Discrete) else "split_unstable"
            with pytest.raises(UnstableSystemError, match=remedy):
                function(candidate)


def test_marginal_by_its_logarithm_raises() -> None:
    system = DiagonalStateSpace.from_log(
        np.array([0.3j]), np.ones((1, 1)), np.ones((1, 1)), time=Discrete()
    )
    with pytest.raises(UnstableSystemError):
        hankel_singular_values(system)
    assert hankel_singular_values(system, horizon=10)[0] == pytest.approx(10.0, rel=20 * EPS)


@pytest.mark.parametrize("real_output", [False, True])
def test_marginal_systems_reduce_within_a_horizon(
    rng: np.random.Generator, real_output: bool
) -> None:
    poles = np.array([1.0, np.exp(0.7j), 1.01 * np.exp(-1j), 0.3, 0.2j, -0.1])
    B, C = complex_normal(rng, 6, 1), complex_normal(rng, 1, 6)
    system = DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=real_output)
    reduction = balanced_truncation(system, 4, horizon=32)
    assert reduction.error_bound is None
    assert reduction.horizon == 32
    assert reduction.order <= 4
    # No theorem holds here; the cut values are still the scale of what is lost.
    kept = int(reduction.real_order)
    assert reduction.verify() <= 10 * reduction.hsv[kept] + 1e3 * EPS * reduction.hsv[0]


def test_horizon_in_continuous_time_is_refused() -> None:
    system = DiagonalStateSpace([-1.0], [[1.0]], [[1.0]], time=Continuous())
    with pytest.raises(TimeDomainError, match="continuous"):
        hankel_singular_values(system, horizon=4)


@pytest.mark.parametrize("horizon", [0, -3, 2.5, True, "8"])
def test_horizon_must_be_a_positive_int(horizon: Any) -> None:
    system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    with pytest.raises(ArgumentError, match="horizon"):
        hankel_singular_values(system, horizon=horizon)


def test_overflow_within_the_horizon_is_named() -> None:
    system = DiagonalStateSpace([2.0], [[1.0]], [[1.0]], time=Discrete())
    with pytest.raises(NoConvergenceError, match="overflow"):
        hankel_singular_values(system, horizon=2000)


def test_batch_of_gramians(rng: np.random.Generator) -> None:
    singles = [diagonal_system(rng, 5, 2, 3, real_output=True) for _ in range(6)]
    batch = DiagonalStateSpace(
        *(
            np.stack([getattr(s, name) for s in singles]).reshape(
                2, 3, *getattr(singles[0], name).shape
            )
            for name in ("eigenvalues", "B", "C", "D")
        ),
        time=Discrete(),
        real_output=True,
    )
    for function in (controllability_gramian, observability_gramian, hankel_singular_values):
        stacked = function(batch)
        assert stacked.shape[:2] == (2, 3)
        for index, single in zip(np.ndindex(2, 3), singles, strict=True):
            np.testing.assert_array_equal(stacked[index], function(single))


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_closed_form_within_a_horizon(
    rng: np.random.Generator, steps: int, real_output: bool
) -> None:
    # Poles inside, on and outside the circle, at 0, and pairs whose product is 1 or nearly so.
    angle = 2 * np.pi / 3
    poles = np.array([0.0, 0.5, 1.0, np.exp(1j * angle), np.exp(-1j * angle), 1.001j, 0.999999])
    B, readout = complex_normal(rng, 7, 2), complex_normal(rng, 2, 7)
    system = DiagonalStateSpace(poles, B, readout, time=Discrete(), real_output=real_output)
    dense = system.to_dense()
    for function, A, G in (
        (controllability_gramian, dense.A, dense.B),
        (observability_gramian, adjoint(dense.A), adjoint(dense.C)),
    ):
        exact = summed_gramian(A, G, steps)
        found = function(system, horizon=steps)
        size = np.sqrt(np.abs(np.outer(exact.diagonal(), exact.diagonal())))
        assert np.all(np.abs(found - exact) <= 20 * steps * EPS * size)


@pytest.mark.parametrize("horizon", [None, 7])
@pytest.mark.parametrize("real_output", [True, False])
def test_diagonal_gramians_are_exactly_hermitian(real_output: bool, horizon: int | None) -> None:
    # 1 - λ conj λ is not real where multiplications are fused.
    poles = [0.5772 + 0.7696j, 0.3 - 0.9j, -0.41 + 0.2j]
    rng = np.random.default_rng(5)
    B, C = complex_normal(rng, 3, 2), complex_normal(rng, 1, 3)
    system = DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=real_output)
    for X in (
        controllability_gramian(system, horizon=horizon),
        observability_gramian(system, horizon=horizon),
    ):
        np.testing.assert_array_equal(X, adjoint(X))


@pytest.mark.parametrize("real_output", [True, False])
def test_static_gains_have_empty_gramians(real_output: bool) -> None:
    B, C = np.zeros((0, 2)), np.zeros((3, 0))
    gain = DiagonalStateSpace(np.zeros(0), B, C, time=Discrete(), real_output=real_output)
    for system in (gain, StateSpace(np.zeros((0, 0)), B, C, time=Continuous())):
        for function in (controllability_gramian, observability_gramian):
            assert function(system).shape == (0, 0)


@pytest.mark.parametrize("name", ["dense", "many states", "diagonal", "real output"])
def test_one_gramian_is_one_factor(
    name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for is factored, the other Gramian is not."""
    count = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            return function(*args, **kwargs)

        return call

    for module, function in (
        ("equations.dense", "hammarling_factor"),
        ("equations.dense", "low_rank_gramian"),
        ("equations.diagonal", "diagonal_factor"),
    ):
        whole = importlib.import_module(f"ssmreduce.{module}")
        monkeypatch.setattr(whole, function, counted(getattr(whole, function)))
    if name == "dense":
        system: Any = dense_system(rng, 6, 2, 3)
    elif name == "many states":
        system = dense_system(rng, 140, 1, 1, radius=0.5)
    else:
        system = diagonal_system(rng, 6, 2, 3, real_output=name == "real output")
    gramian_factors(system)
    both = count
    assert both > 0
    for call in (controllability_gramian, observability_gramian, h2_norm):
        count = 0
        call(system)
        closed_form = isinstance(system, DiagonalStateSpace) and call is not h2_norm
        assert 2 * count == (0 if closed_form else both)


@pytest.mark.parametrize("discrete", [True, False])
def test_gramians_in_bad_units(rng: np.random.Generator, discrete: bool) -> None:
    """Powers of two as units of states, and of time, change nothing but the units of the answer."""
    system = dense_system(rng, 5, 2, 2, discrete=discrete)
    unit = 2.0 ** np.array([0.0, 20.0, -15.0, 5.0, 0.0])
    rate = 1.0 if discrete else 2.0**20
    A = rate * unit[:, None] * system.A / unit
    scaled = StateSpace(A, unit[:, None] * system.B, system.C / unit, time=system.time)
    P, Q = (f(system) / rate for f in (controllability_gramian, observability_gramian))
    tolerance = 1e3 * EPS
    found = controllability_gramian(scaled) / np.outer(unit, unit)
    assert np.abs(found - P).max() <= tolerance * np.abs(P).max()
    found = observability_gramian(scaled) * np.outer(unit, unit)
    assert np.abs(found - Q).max() <= tolerance * np.abs(Q).max()


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("real_output", [True, False])
def test_diagonal_gramians_keep_small_entries(
    rng: np.random.Generator, discrete: bool, real_output: bool
) -> None:
    """Scaling states by powers of two scales entries, and rounds nothing."""
    system = diagonal_system(rng, 5, 2, 2, discrete=discrete, real_output=real_output)
    scale = 2.0 ** np.array([0.0, -300.0, 40.0, 0.0, 200.0])
    scaled = system.rescaled(scale)
    weights = np.tile(scale, 2) if real_output else scale
    P, Q = controllability_gramian(system), observability_gramian(system)
    assert np.array_equal(controllability_gramian(scaled), P * np.outer(weights, weights))
    assert np.array_equal(observability_gramian(scaled), Q / np.outer(weights, weights))
