"""H2-optimal refinement: optimality conditions, its promise never to be worse, accuracy of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    HankelMass,
    StateSpace,
    balanced_truncation,
)
from ssmreduce.errors import (
    ArgumentError,
    OrderError,
    ShapeError,
    TimeDomainError,
    UnstableSystemError,
)
from ssmreduce.reduction.h2_descent import stable as mirrored
from ssmreduce.reduction.h2_forms import continuous, discrete
from ssmreduce.reduction.h2_optimal import H2Reduction, h2_optimal
from ssmreduce.reduction.h2_plant import TriangularSystem, distance, plant_of
from tests import samples
from tests.oracles import kronecker

pytestmark = pytest.mark.every_library

EPS = samples.EPS
adjoint = samples.adjoint
KINDS = ["real", "complex", "diagonal", "real_output"]


def draw(kind: str, rng: Any, n: int, m: int, p: int, *, discrete: bool) -> Any:
    if kind in ("real", "complex"):
        return samples.dense_system(rng, n, m, p, discrete=discrete, is_complex=kind == "complex")
    return samples.diagonal_system(
        rng, n, m, p, discrete=discrete, real_output=kind == "real_output"
    )


def dense(system: Any) -> StateSpace:
    return system.to_dense() if isinstance(system, DiagonalStateSpace) else system


def stable(system: Any) -> bool:
    poles = system.poles()
    return bool(np.all(np.abs(poles) < 1 if isinstance(system.time, Discrete) else poles.real < 0))


def h2_distance(first: Any, second: Any) -> float:
    """sqrt(tr C_e P_e C_eᴴ) of the error system, with P_e from one big linear system."""
    a, b = dense(first), dense(second)
    A = np.block(
        [[a.A, np.zeros((a.order, b.order))], [np.zeros((b.order, a.order)), np.asarray(b.A)]]
    )
    B = np.concatenate([a.B, b.B])
    C = np.concatenate([a.C, -np.asarray(b.C)], axis=1)
    in_steps = isinstance(first.time, Discrete)
    solve = kronecker.discrete_lyapunov if in_steps else kronecker.continuous_lyapunov
    square = float(np.trace(C @ solve(A, B @ adjoint(B)) @ adjoint(C)).real)
    return max(square, 0.0) ** 0.5  # squares are subtracted: rounding may leave less than none


def optimality(system: Any, reduced: Any) -> float:
    """Largest violation of the three interpolation conditions, relative to what is interpolated.

    Poles λ_i of G_r = Σ c_i b_iᴴ/(z - λ_i) come from its dense form; what no input reaches is left out.
    """
    full, small = dense(system), dense(reduced)
    poles, vectors = np.linalg.eig(small.A)
    right, left = small.C @ vectors, np.linalg.solve(vectors, small.B)
    worst = 0.0
    for i, pole in enumerate(poles):
        c, b = right[:, i], left[i].conj()
        if np.linalg.norm(c) * np.linalg.norm(b) < 1e-12 * np.linalg.norm(right @ left):
            continue
        point = 1.0 / np.conj(pole) if isinstance(system.time, Discrete) else -np.conj(pole)
        values = []
        for each in (full, small):
            resolvent = np.linalg.inv(point * np.eye(each.order) - each.A)
            value, slope = (each.C @ x @ each.B for x in (resolvent, -resolvent @ resolvent))
            values.append((value @ b, c.conj() @ value, c.conj() @ slope @ b))
        for found, expected in zip(*values, strict=True):
            worst = max(worst, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return worst


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 3)])
def test_interpolates_at_its_mirrored_poles(
    kind: str, discrete: bool, inputs: int, outputs: int
) -> None:
    system = draw(kind, np.random.default_rng(5), 8, inputs, outputs, discrete=discrete)
    result = h2_optimal(system, 3, iterations=2000, tolerance=1e-11)
    assert result.converged
    start = balanced_truncation(system, 3).system
    assert optimality(system, result.system) <= 1e-9
    assert optimality(system, start) >= 1e-4
    assert result.h2_error < result.h2_errors[0]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_the_error_system(rng: Any, kind: str, discrete: bool) -> None:
    system = draw(kind, rng, 8, 2, 3, discrete=discrete)
    result = h2_optimal(system, 3, iterations=5)
    scale = h2_distance(system, StateSpace(*zero_like(system), time=system.time))
    start = balanced_truncation(system, 3).system
    for reduced, error in ((start, result.h2_errors[0]), (result.system, result.h2_error)):
        # The oracle subtracts squares: its own error is eps ‖G‖²/‖G - G_r‖.
        tolerance = 1e3 * EPS * scale**2 / error
        assert abs(h2_distance(system, reduced) - error) <= tolerance


def zero_like(system: Any) -> tuple[Any, Any, Any]:
    return [[-0.5]], np.zeros((1, system.inputs)), np.zeros((system.outputs, 1))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("size", [1e-3, 1e-9, 1e-12])
def test_small_errors_are_not_differences_of_squares(rng: Any, discrete: bool, size: float) -> None:
    """G = G_r + size/(z - pole): squares would leave nothing below 1e-8."""
    small = samples.dense_system(rng, 4, 1, 1, discrete=discrete)
    pole = 0.5 if discrete else -3.0
    A = np.block([[small.A, np.zeros((4, 1))], [np.zeros((1, 4)), np.full((1, 1), pole)]])
    system = StateSpace(
        A,
        np.concatenate([small.B, [[1.0]]]),
        np.concatenate([small.C, [[size]]], axis=1),
        time=small.time,
    )
    plant = plant_of(system)
    reduced = TriangularSystem.of(continuous(small))
    found = distance(plant, reduced, plant.observed(reduced.triangle, reduced.C))
    expected = size / np.sqrt(1 - pole**2 if discrete else -2 * pole)
    assert abs(found - expected) <= 100 * EPS * plant.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_plant_solves_its_sylvester_equations(rng: Any, kind: str) -> None:
    system = draw(kind, rng, 6, 2, 3, discrete=True).to_host()
    plant = plant_of(system)
    T = np.triu(samples.complex_normal(rng, 4, 4)) - 4.0 * np.eye(4)
    into, out = samples.complex_normal(rng, 4, 2), samples.complex_normal(rng, 3, 4)
    A = plant.apply(np.eye(len(plant.B)))
    assert abs(np.trace(A) - np.trace(continuous(dense(system)).A)) <= 1e3 * EPS * np.linalg.norm(A)
    X, Y = plant.reached(T, into), plant.observed(T, out)
    first = A @ X + X @ adjoint(T) + plant.B @ adjoint(into)
    second = adjoint(A) @ Y + Y @ T + adjoint(plant.C) @ out
    scale = np.linalg.norm(A) + np.linalg.norm(T)
    assert np.linalg.norm(first) <= 1e3 * EPS * scale * np.linalg.norm(X)
    assert np.linalg.norm(second) <= 1e3 * EPS * scale * np.linalg.norm(Y)
    V = rng.standard_normal((len(A), 2))
    assert np.linalg.norm(plant.apply(V) - A @ V) <= 1e3 * EPS * np.linalg.norm(A)


def test_continuous_form_keeps_the_gramian_and_comes_back(rng: Any) -> None:
    system = samples.dense_system(rng, 5, 2, 2, discrete=True, is_complex=True)
    there = continuous(system)
    P = kronecker.discrete_lyapunov(system.A, system.B @ adjoint(system.B))
    residual = there.A @ P + P @ adjoint(there.A) + there.B @ adjoint(there.B)
    assert np.linalg.norm(residual) <= 1e4 * EPS * np.linalg.norm(there.A) * np.linalg.norm(P)
    A, B = discrete(there)
    assert np.allclose(A, system.A, rtol=0, atol=1e4 * EPS)
    assert np.allclose(B, system.B, rtol=0, atol=1e4 * EPS)


def test_one_state_is_the_best_of_all_poles(rng: Any) -> None:
    """Order 1 in continuous time: c/(s + a) takes 2a G(a)² off ‖G‖², the rest is a line search."""
    poles, residues = -np.array([1.0, 2.0, 5.0]), np.array([1.0, -0.5, 3.0])
    system = StateSpace(np.diag(poles), np.ones((3, 1)), residues[None], time=Continuous())

    def gain(a: float) -> float:
        return float(2 * a * np.sum(residues / (a - poles)) ** 2)

    grid = np.geomspace(0.01, 100, 400)
    a = grid[np.argmax([gain(each) for each in grid])]
    best = optimize.minimize_scalar(
        lambda each: -gain(each),
        bounds=(a / 1.1, a * 1.1),
        method="bounded",
        options={"xatol": 1e-9},
    )
    result = h2_optimal(system, 1, tolerance=1e-12)
    assert abs(-result.system.A[0, 0] / best.x - 1) <= 1e-6
    total = h2_distance(system, StateSpace(*zero_like(system), time=Continuous())) ** 2
    assert abs(result.h2_error**2 / (total - gain(best.x)) - 1) <= 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_no_small_change_improves_it(kind: str) -> None:
    rng = np.random.default_rng(11)
    system = draw(kind, rng, 6, 1, 2, discrete=True)
    result = h2_optimal(system, 2, iterations=1000, tolerance=1e-12)
    assert result.converged
    reduced = dense(result.system)
    draw_noise = samples.complex_normal if np.iscomplexobj(reduced.A) else real_normal
    for size in (1e-3, 1e-2):
        for _ in range(20):
            moved = [
                x + size * draw_noise(rng, *x.shape) for x in (reduced.A, reduced.B, reduced.C)
            ]
            near = StateSpace(*moved, time=Discrete())
            assert h2_distance(system, near) >= result.h2_error * (1 - 1e-9)


def real_normal(rng: Any, *shape: int) -> Any:
    return rng.standard_normal(shape)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    discrete=st.booleans(),
    n=st.integers(2, 9),
    data=st.data(),
)
@settings(max_examples=60)
def test_never_worse_than_balanced_truncation(
    seed: int, kind: str, discrete: bool, n: int, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    m, p = (int(x) for x in rng.integers(1, 4, 2))
    system = draw(kind, rng, n, m, p, discrete=discrete)
    order = data.draw(st.integers(1, n - 1))
    truncation = balanced_truncation(system, order)
    result = h2_optimal(system, order, iterations=15)
    assert isinstance(result, H2Reduction)
    assert result.order == result.system.order <= order
    assert type(result.system) is type(system)
    assert result.system.time == system.time
    assert stable(result.system)
    assert result.error_bound is None
    assert result.h2_error <= result.h2_errors[0]
    assert len(result.h2_errors) == result.iterations + 1
    scale = h2_distance(system, StateSpace(*zero_like(system), time=system.time))
    before, after = (h2_distance(system, x) for x in (truncation.system, result.system))
    assert after <= before + 1e-7 * scale


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", ["real", "real_output"])
def test_real_systems_stay_real_and_keep_what_they_are(rng: Any, kind: str, discrete: bool) -> None:
    system = draw(kind, rng, 7, 2, 2, discrete=discrete)
    D = rng.standard_normal((2, 2))
    if kind == "real":
        system = StateSpace(
            system.A, system.B, system.C, D, time=system.time, read_after_update=discrete
        )
    else:
        system = DiagonalStateSpace(
            system.eigenvalues,
            system.B,
            system.C,
            D,
            time=system.time,
            real_output=True,
            read_after_update=discrete,
        )
    arrays = [getattr(system, name) for name in ("B", "C", "D")]
    before = [x.tobytes() for x in arrays]
    result = h2_optimal(system, 3)
    assert before == [x.tobytes() for x in arrays]
    reduced = result.system
    assert np.array_equal(reduced.D, D)
    assert reduced.read_after_update == discrete
    if kind == "real":
        assert all(x.dtype == float for x in (reduced.A, reduced.B, reduced.C))
    else:
        assert reduced.real_output
        into, out = np.linalg.norm(reduced.B, axis=1), np.linalg.norm(reduced.C, axis=0)
        assert np.allclose(into, out, rtol=100 * EPS)
    assert result.verify() > 0


def test_given_start_is_improved_or_returned(rng: Any) -> None:
    system = samples.diagonal_system(rng, 8, 1, 1, real_output=True)
    start = DiagonalStateSpace(
        [0.2 + 0.1j, -0.3 + 0.4j],
        np.ones((2, 1)),
        0.01 * np.ones((1, 2)),
        time=Discrete(),
        real_output=True,
    )
    result = h2_optimal(system, 2, start=start)
    assert abs(result.h2_errors[0] / h2_distance(system, start) - 1) <= 1e-10
    assert result.h2_error < result.h2_errors[0]
    again = h2_optimal(system, result.order, start=result.system, iterations=1)
    assert again.h2_error <= result.h2_error * (1 + 1e3 * EPS)


def test_start_with_repeated_and_real_poles(rng: Any) -> None:
    """A Jordan block, and stored states with real poles, half of whose real states are not there."""
    system = samples.dense_system(rng, 8, 1, 1, discrete=False)
    start = StateSpace([[-1.0, 1.0], [0.0, -1.0]], [[0.0], [1.0]], [[1.0, 1.0]], time=Continuous())
    result = h2_optimal(system, 2, start=start)
    assert result.h2_error < result.h2_errors[0]
    layer = DiagonalStateSpace(
        [0.9, 0.8, 0.5, -0.2],
        np.ones((4, 1)),
        [[1.0, -0.5, 0.3, 0.2]],
        time=Discrete(),
        real_output=True,
    )
    result = h2_optimal(layer, 2, iterations=2000, tolerance=1e-12)
    assert result.converged
    assert (result.order, result.real_order) == (2, 3)
    assert optimality(layer, result.system) <= 1e-8


@pytest.mark.parametrize("seed", [57, 159, 239])
def test_cycles_of_the_fixed_point_iteration_end_in_one_minimum(seed: int) -> None:
    """Where only steps of full length are taken, rounding chooses among the iterates of a cycle."""
    system = samples.dense_system(np.random.default_rng(seed), 14, 1, 1, discrete=True)
    plain = h2_optimal(system, 5)
    assert plain.converged
    for k in (1, 2):
        units = np.ldexp(1.0, np.random.default_rng(k).integers(-20, 21, (14, 1)))
        scaled = StateSpace(
            system.A * units.T / units, system.B / units, system.C * units.T, time=Discrete()
        )
        assert abs(h2_optimal(scaled, 5).h2_error - plain.h2_error) <= 1e-6 * plain.h2_error


def test_uncontrollable_states_do_not_matter(rng: Any) -> None:
    system = samples.dense_system(rng, 5, 1, 1, discrete=True)
    idle = StateSpace(
        np.block([[system.A, np.zeros((5, 2))], [np.zeros((2, 5)), 0.3 * np.eye(2)]]),
        np.concatenate([system.B, np.zeros((2, 1))]),
        np.concatenate([system.C, np.ones((1, 2))], axis=1),
        time=Discrete(),
    )
    plain, padded = h2_optimal(system, 2), h2_optimal(idle, 2)
    assert abs(plain.h2_error - padded.h2_error) <= 1e4 * EPS * plain.h2_error
    with pytest.raises(OrderError, match="numerical rank 5"):
        h2_optimal(idle, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_own_order_changes_nothing(rng: Any, kind: str) -> None:
    system = draw(kind, rng, 1, 2, 2, discrete=True)
    result = h2_optimal(system, 1)
    assert result.system is system
    assert (result.h2_error, result.iterations, result.converged) == (0.0, 0, True)


def test_order_rules_and_few_iterations(rng: Any) -> None:
    system = samples.dense_system(rng, 8, 2, 2)
    rule = HankelMass(0.8)
    result = h2_optimal(system, rule, iterations=1)
    assert result.order == balanced_truncation(system, rule).order
    assert (result.iterations, result.converged) == (1, False)


def test_scales_of_input_and_output_scale_the_error(rng: Any) -> None:
    system = samples.dense_system(rng, 6, 1, 1)
    plain = h2_optimal(system, 2)
    for up, down in ((1e120, 1e-120), (1e-130, 1e-10), (1e70, 1e70)):
        scaled = StateSpace(system.A, up * system.B, down * system.C, time=Discrete())
        result = h2_optimal(scaled, 2)
        assert abs(result.h2_error / (up * down) / plain.h2_error - 1) <= 1e-10


@pytest.mark.parametrize("is_complex", [False, True])
def test_unstable_iterates_are_mirrored(rng: Any, is_complex: bool) -> None:
    T = samples.well_conditioned(rng, 4, is_complex=is_complex)
    blocks = np.array([[0.5, 2.0, 0, 0], [-2.0, 0.5, 0, 0], [0, 0, -1.0, 0], [0, 0, 0, 3.0]])
    found = mirrored(T @ blocks @ np.linalg.inv(T))
    assert np.iscomplexobj(found) == is_complex
    poles = np.linalg.eigvals(found)
    expected = np.array([-0.5 - 2j, -0.5 + 2j, -1.0, -3.0])
    order = np.argsort(np.round(poles.imag, 6) - 1e-3 * poles.real)
    assert np.allclose(poles[order], expected[[0, 2, 3, 1]], atol=1e4 * EPS)
    assert np.array_equal(mirrored(-np.eye(2)), -np.eye(2))


def layer(poles: Any, size: int = 1, **options: Any) -> DiagonalStateSpace:
    settings = {"time": Discrete(), **options}
    return DiagonalStateSpace(
        poles, np.ones((len(poles), size)), np.ones((1, len(poles))), **settings
    )


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        (StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete()), ShapeError, "is a StateSpace"),
        (layer([-0.5], time=Continuous()), TimeDomainError, "expected the same"),
        (layer([0.5], real_output=True), ShapeError, "real_output"),
        (layer([0.5], size=2), ShapeError, "is 1x2"),
        (layer([0.5, 0.4]), OrderError, "has 2 states but `order` is 1"),
        (layer([1.5]), UnstableSystemError, r"`start` has a pole with .λ. = 1\.5; .* Leave it out"),
    ],
)
def test_starts_that_do_not_fit(start: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        h2_optimal(layer([0.9, 0.5, 0.1]), 1, start=start)


def test_arguments_that_are_refused() -> None:
    system = layer([0.9, 0.5, 0.1])
    with pytest.raises(ArgumentError, match="iterations"):
        h2_optimal(system, 1, iterations=0)
    with pytest.raises(ArgumentError, match="tolerance"):
        h2_optimal(system, 1, tolerance=0.0)
    with pytest.raises(UnstableSystemError):
        h2_optimal(layer([0.9, 1.5]), 1)
    batch = DiagonalStateSpace(
        np.full((2, 2), 0.5), np.ones((2, 2, 1)), np.ones((2, 1, 2)), time=Discrete()
    )
    with pytest.raises(ShapeError, match="batch axes"):
        h2_optimal(batch, 1)
