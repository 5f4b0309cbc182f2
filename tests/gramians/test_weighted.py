"""Frequency-weighted Gramian factors against Kronecker solves and the defining integral."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace
from ssmreduce.errors import ShapeError, TimeDomainError, UnstableSystemError
from ssmreduce.gramians.factors import gramian_factors
from ssmreduce.gramians.weighted import weighted_factors
from ssmreduce.responses import frequency_response
from tests import samples
from tests.oracles import kronecker

pytestmark = pytest.mark.every_library

EPS = samples.EPS
adjoint = samples.adjoint


def gramian(factor: Any) -> Any:
    return factor @ adjoint(factor)


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def draw(rng: Any, n: int, m: int, p: int, *, discrete: bool, is_complex: bool = False) -> Any:
    """A random system with feedthrough."""
    system = samples.dense_system(rng, n, m, p, discrete=discrete, is_complex=is_complex)
    D = rng.standard_normal((p, m))
    return StateSpace(system.A, system.B, system.C, D, time=system.time)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_factors_are_blocks_of_the_series_connection(
    rng: Any, discrete: bool, is_complex: bool
) -> None:
    n, k = 5, 3
    options = {"discrete": discrete, "is_complex": is_complex}
    system = draw(rng, n, 2, 3, **options)
    before, after = draw(rng, k, 1, 2, **options), draw(rng, k, 3, 2, **options)
    Z, Y = weighted_factors(system, before, after)
    solve = kronecker.discrete_lyapunov if discrete else kronecker.continuous_lyapunov

    A = np.block([[system.A, system.B @ before.C], [np.zeros((k, n)), before.A]])
    B = np.concatenate([system.B @ before.D, before.B])
    assert relative(gramian(Z), solve(A, gramian(B))[:n, :n]) <= 1e4 * EPS

    A = np.block([[system.A, np.zeros((n, k))], [after.B @ system.C, after.A]])
    C = np.concatenate([after.D @ system.C, after.C], axis=1)
    expected = solve(adjoint(A), gramian(adjoint(C)))[:n, :n]
    assert relative(gramian(Y), expected) <= 1e4 * EPS
    assert Z.shape[1] <= n
    assert Y.shape[1] <= n
    assert Z.dtype == Y.dtype == (complex if is_complex else float)


@pytest.mark.parametrize("after_update", [False, True])
def test_factors_are_the_weighted_integral(rng: Any, after_update: bool) -> None:
    """With readouts after the update in the system and in its weights, of diagonal layers."""
    system = samples.lru_system(rng, 4, 2)
    weights = [samples.lru_system(rng, 3, 2) for _ in range(2)]
    if not after_update:
        weights = [weight.to_standard() for weight in weights]
    dense = system.to_dense()
    identity = np.eye(8)

    def integrand(omega: float) -> Any:
        resolvent = np.linalg.inv(np.exp(1j * omega) * identity - dense.A)
        first, second = (frequency_response(weight, [omega])[0] for weight in weights)
        # The mirrored half of a real system gives the conjugate.
        columns, rows = resolvent @ dense.B @ first, second @ dense.C @ resolvent
        return np.stack([gramian(columns).real, gramian(adjoint(rows)).real]) / np.pi

    expected, _ = integrate.quad_vec(integrand, 0.0, np.pi, epsabs=0, epsrel=1e-11, limit=1000)
    for factor, reference in zip(weighted_factors(system, *weights), expected, strict=True):
        assert relative(gramian(factor), reference) <= 1e-9


def test_no_weight_and_identity_weights_change_nothing(rng: Any) -> None:
    system = samples.diagonal_system(rng, 5, 2, 3, discrete=False, real_output=True)
    ones = [
        StateSpace([[-1.0]], np.zeros((1, k)), np.zeros((k, 1)), np.eye(k), time=Continuous())
        for k in (2, 3)
    ]
    plain = gramian_factors(system)
    assert all(map(np.array_equal, weighted_factors(system), plain))
    for found, expected in zip(weighted_factors(system, *ones), plain, strict=True):
        assert relative(gramian(found), gramian(expected)) <= 1e3 * EPS


def test_weights_with_feedthrough_only_scale_inputs_and_outputs(rng: Any) -> None:
    system = samples.dense_system(rng, 5, 2, 3, discrete=True)
    gains = rng.standard_normal((2, 2)), rng.standard_normal((1, 3))
    weights = [
        StateSpace([[0.5]], np.zeros((1, g.shape[1])), np.zeros((len(g), 1)), g, time=Discrete())
        for g in gains
    ]
    scaled = StateSpace(system.A, system.B @ gains[0], gains[1] @ system.C, time=Discrete())
    for found, expected in zip(
        weighted_factors(system, *weights), gramian_factors(scaled), strict=True
    ):
        assert relative(gramian(found), gramian(expected)) <= 1e3 * EPS


@pytest.mark.parametrize("side", ["input_weight", "output_weight"])
def test_an_all_pass_weight_changes_nothing(rng: Any, side: str) -> None:
    """(s - 2)/(s + 2) has gain 1 at every frequency."""
    system = samples.dense_system(rng, 4, 1, 1, discrete=False)
    inner = StateSpace([[-2.0]], [[1.0]], [[-4.0]], [[1.0]], time=Continuous())
    for found, expected in zip(
        weighted_factors(system, **{side: inner}), gramian_factors(system), strict=True
    ):
        assert relative(gramian(found), gramian(expected)) <= 1e3 * EPS


@given(
    seed=st.integers(0, 2**32 - 1),
    discrete=st.booleans(),
    is_complex=st.booleans(),
    at_input=st.booleans(),
)
@settings(max_examples=40)
def test_one_weight_keeps_stability(
    seed: int, discrete: bool, is_complex: bool, at_input: bool
) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    options = {"discrete": discrete, "is_complex": is_complex}
    system = draw(rng, n, 2, 2, **options)
    weight = draw(rng, k, 2, 2, **options)
    Z, Y = weighted_factors(system, **{"input_weight" if at_input else "output_weight": weight})
    left, values, right = np.linalg.svd(adjoint(Y) @ Z)
    for r in range(1, int(np.sum(values > 1e-6 * values[0])) + 1):
        W = Y @ left[:, :r] / np.sqrt(values[:r])
        T = Z @ adjoint(right)[:, :r] / np.sqrt(values[:r])
        poles = np.linalg.eigvals(adjoint(W) @ system.A @ T)
        assert np.all(np.abs(poles) < 1.0 if discrete else poles.real < 0.0)


@pytest.mark.parametrize("discrete", [False, True])
def test_zero_rows_and_one_state(rng: Any, discrete: bool) -> None:
    weight = draw(rng, 2, 1, 1, discrete=discrete)
    time = Discrete() if discrete else Continuous()
    A = np.diag([0.5, 0.2]) if discrete else np.diag([-0.5, -0.2])
    system = StateSpace(A, [[1.0], [0.0]], [[1.0, 1.0]], time=time)
    Z, Y = weighted_factors(system, weight, weight)
    assert not np.any(Z[1])
    assert np.linalg.matrix_rank(Y) == 2
    single = StateSpace(A[:1, :1], [[1.0]], [[1.0]], time=time)
    Z, Y = weighted_factors(single, weight, weight)
    assert Z.shape == Y.shape == (1, 1)
    # One pole each side: the two weighted Gramians are the same number.
    assert abs(Z[0, 0] ** 2 / Y[0, 0] ** 2 - 1) <= 1e3 * EPS


def test_inputs_stay_as_they_were(rng: Any) -> None:
    system, weight = (draw(rng, 3, 2, 2, discrete=True) for _ in range(2))
    before = [x.tobytes() for s in (system, weight) for x in (s.A, s.B, s.C, s.D)]
    weighted_factors(system, weight, weight)
    assert before == [x.tobytes() for s in (system, weight) for x in (s.A, s.B, s.C, s.D)]


def weight_of(size: int, pole: float = 0.5, **options: Any) -> StateSpace:
    time = options.get("time", Discrete())
    kind = options.get("dtype", float)
    ones = np.ones((1, size), dtype=kind)
    return StateSpace([[pole]], ones, np.ones((size, 1)), time=time)


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        (weight_of(3), ShapeError, "`input_weight` has 3 outputs but the system has 2 inputs"),
        (weight_of(2, time=Discrete(dt=0.5)), TimeDomainError, "expected the same"),
        (weight_of(2, pole=-0.5, time=Continuous()), TimeDomainError, "expected the same"),
        (weight_of(2, pole=1.0), UnstableSystemError, "Mirror that pole"),
        (weight_of(2, dtype=complex), ShapeError, "is complex but the system is real"),
        (np.eye(2), ShapeError, "as the `D` of one"),
        (
            DiagonalStateSpace(
                np.full((1, 1), 0.5), np.ones((1, 1, 2)), np.ones((1, 2, 1)), time=Discrete()
            ),
            ShapeError,
            "has batch axes",
        ),
    ],
)
def test_weights_that_do_not_fit(rng: Any, weight: Any, error: type[Exception], words: str) -> None:
    system = samples.dense_system(rng, 4, 2, 3)
    with pytest.raises(error, match=words):
        weighted_factors(system, weight)


def test_output_weights_that_do_not_fit(rng: Any) -> None:
    system = samples.dense_system(rng, 4, 2, 3)
    with pytest.raises(ShapeError, match="`output_weight` has 2 inputs but the system has 3 out"):
        weighted_factors(system, output_weight=weight_of(2))
    with pytest.raises(UnstableSystemError, match="`system` has a pole"):
        weighted_factors(StateSpace([[1.0]], [[1.0]], [[1.0]], time=Discrete()), weight_of(1))
