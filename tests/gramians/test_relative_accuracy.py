"""Hankel singular values of one-input one-output modal systems to high relative accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.mpmath_cauchy import hankel_singular_values as exact_values
from oracles.mpmath_hsv import hankel_singular_values as exact_values_by_roots
from samples import EPS, adjoint, complex_normal

from ssmreduce.equations.cauchy import cauchy_factors
from ssmreduce.errors import (
    ArgumentError,
    ArgumentTypeError,
    NoConvergenceError,
    UnstableSystemError,
    UnsupportedEquationError,
)
from ssmreduce.gramians.channels import channel_factors, is_channel
from ssmreduce.gramians.factors import controllability_gramian, observability_gramian
from ssmreduce.gramians.relative import jacobi_singular_values, nearly_real
from ssmreduce.hankel import balance_factors, hankel_singular_values, rank_tolerance
from ssmreduce.reduction.balanced import balance
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.time_domain import Continuous, Discrete

pytestmark = pytest.mark.every_library

C_RELATIVE = 8.0
"""c of the relative error c n eps: n Blaschke factors of a few roundings each, and rotations; 1 is the
largest seen below. Where `amplification` is given, the data or the distance of a pair to the real
axis allow no more, and the test says which."""

Array = np.ndarray[Any, Any]


def channel(
    poles: Array, b: Array, c: Array, *, discrete: bool = True, real_output: bool = False
) -> DiagonalStateSpace:
    time = Discrete() if discrete else Continuous()
    return DiagonalStateSpace(poles, b[:, None], c[None], time=time, real_output=real_output)


def accurate_values(system: DiagonalStateSpace) -> Array:
    return hankel_singular_values(system, relative_accuracy=True)


def assert_relative(
    system: DiagonalStateSpace, *, amplification: float = 1.0, digits: int = 200
) -> Array:
    """Compare every value, down to the last, with the oracle; returns the exact ones, unpadded."""
    logarithms = system.log_eigenvalues is not None
    exact = exact_values(
        system.log_eigenvalues if logarithms else system.eigenvalues,
        system.B[:, 0],
        system.C[0],
        discrete=isinstance(system.time, Discrete),
        logarithms=logarithms,
        real_output=system.real_output,
        digits=digits,
    )
    found = accurate_values(system)
    n = 2 * system.order if system.real_output else system.order
    assert found.shape == (n,)
    assert np.all(np.diff(found) <= 0)
    assert np.all(found[exact.size :] == 0.0)
    # Without the option they are right to σ₁; factors take part of what rounding of the data does.
    plain = hankel_singular_values(system)
    assert np.abs(plain - found).max() <= C_RELATIVE * n * EPS * amplification * found[0]
    error = np.abs(found[: exact.size] / exact - 1.0)
    assert error.max() <= C_RELATIVE * n * EPS * amplification
    return exact


def sensitivity(system: DiagonalStateSpace) -> float:
    """Largest relative change of a value for random relative changes eps/2 of the data, over eps.

    Equal poles are moved alike. Ten times the largest of three draws, since random ones find less.
    """
    rng = np.random.default_rng(0)
    discrete = isinstance(system.time, Discrete)
    distinct, of_state = np.unique(system.eigenvalues, return_inverse=True)
    data = distinct, system.B[:, 0], system.C[0]

    def values(change: float) -> Array:
        poles, b, c = (x * (1 + change * rng.choice([-1, 1], x.size)) for x in data)
        return exact_values(
            poles[of_state], b, c, discrete=discrete, real_output=system.real_output
        )

    exact = values(0.0)
    # Changes far above eps, so that they need no more digits than double has; first order is enough.
    moved = [np.abs(values(2.0**-26) / exact - 1).max() for _ in range(3)]
    return max(1.0, 10 * 0.5 * float(max(moved)) / 2.0**-26)


def s4d(name: str, n: int) -> Array:
    """Poles of the S4D initialisations (Gu et al., 2022)."""
    k = np.arange(n)
    if name == "lin":
        return -0.5 + 1j * np.pi * k
    return -0.5 + 1j * n / np.pi * (n / (2 * k + 1) - 1)


@pytest.fixture(scope="module", params=["heat_modal", "heat_modal_nearest"])
def reference(request: pytest.FixtureRequest) -> dict[str, Array]:
    with np.load(Path(__file__).parents[1] / "data" / f"{request.param}.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def system(reference: dict[str, Array]) -> DiagonalStateSpace:
    return channel(reference["poles"], reference["b"], reference["c"], discrete=False)


class TestHeat:
    """The heat benchmark in modal form; `oracles/make_heat_reference.py` says what is in the file."""

    def test_yardstick(self, reference: dict[str, Array], system: DiagonalStateSpace) -> None:
        exact, allowed = reference["hsv"], reference["sensitivity"]
        found = accurate_values(system)
        error = np.abs(found[:134] / exact - 1.0)
        above = exact > 1e-13
        assert np.sum(above) == 15
        assert np.all(error[above] <= 1e-8)
        below = (exact <= 1e-13) & (exact >= 1e-24)
        assert np.sum(below) >= 16
        assert np.all(error[below] <= 10**1.5 * allowed[below])

    def test_balance_has_the_same_rank(
        self, reference: dict[str, Array], system: DiagonalStateSpace
    ) -> None:
        balancing, accurate = balance(system), accurate_values(system)
        np.testing.assert_array_equal(balancing.hsv, hankel_singular_values(system))
        error = np.abs(balancing.hsv - accurate).max()
        assert error <= C_RELATIVE * accurate.size * EPS * accurate[0]
        assert balancing.rank == np.sum(reference["hsv"] > rank_tolerance(balancing.hsv))
        assert np.all(balancing.hsv[134:] == 0.0)

    def test_sensitivity_is_the_published(self, reference: dict[str, Array]) -> None:
        # Half a unit in the last place moves the 20th value by 2e-6.
        assert 1e-6 <= reference["sensitivity"][19] <= 4e-6

    def test_modal_form_is_the_benchmark(
        self, reference: dict[str, Array], shared_data: Path
    ) -> None:
        path = shared_data / "slicot" / "heat-cont.npz"
        if not path.is_file():
            pytest.skip(f"{path.name} is not among the shared data sets")
        with np.load(path, allow_pickle=False) as archive:
            A, B, C = archive["A"], archive["B"], archive["C"]
        k = np.arange(1, 201)
        V = np.sqrt(2 / 201) * np.sin(np.outer(k, k) * np.pi / 201)
        scale = 200 * EPS * np.abs(A).max()
        np.testing.assert_allclose(A @ V, V * reference["poles"], atol=scale)
        np.testing.assert_allclose(adjoint(V) @ B[:, 0], reference["b"], atol=200 * EPS)
        np.testing.assert_allclose(C[0] @ V, reference["c"], atol=200 * EPS)

    def test_oracle_reproduces_the_file(self, reference: dict[str, Array]) -> None:
        # Live on every tenth mode of the file: the oracles agree, and so does the package.
        some = np.flatnonzero(reference["b"])[::10]
        poles, b, c = (reference[key][some] for key in ("poles", "b", "c"))
        exact = exact_values(poles, b, c, discrete=False)
        by_roots = exact_values_by_roots(poles, b[:, None], c[None], discrete=False)
        np.testing.assert_allclose(by_roots[:8], exact[:8], rtol=1e-14)
        some = channel(poles, b, c, discrete=False)
        assert_relative(some, amplification=sensitivity(some))


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", ["lin", "inv"])
def test_s4d_channels(
    name: str, discrete: bool, real_output: bool, rng: np.random.Generator
) -> None:
    n, step = 10, 0.03
    poles, c = s4d(name, n), complex_normal(rng, n)
    b = np.ones(n, dtype=complex)
    if not discrete:
        assert_relative(channel(poles, b, c, discrete=False, real_output=real_output))
        return
    held = np.expm1(step * poles) / poles * b
    logarithms = DiagonalStateSpace.from_log(
        step * poles, held[:, None], c[None], time=Discrete(), real_output=real_output
    )
    assert_relative(logarithms)
    # A stored λ gives 1 - |λ|² with a relative error of eps/(1 - |λ|²).
    stored = np.exp(step * poles)
    assert_relative(
        channel(stored, held, c, real_output=real_output),
        amplification=float(1 / (1 - np.abs(stored).max() ** 2)),
    )


@pytest.mark.parametrize("real_output", [False, True])
def test_poles_on_a_short_arc(real_output: bool, rng: np.random.Generator) -> None:
    # The values fall by 20 to 30 decades, the real ones through a pair as close as 0.13 to the axis.
    poles = 0.3 * np.exp(1j * np.linspace(0.2, 1.4, 10))
    system = channel(
        poles, complex_normal(rng, 10), complex_normal(rng, 10), real_output=real_output
    )
    exact = assert_relative(system, amplification=10.0)
    assert exact[-1] < 1e-18 * exact[0]


def test_real_systems_stay_real(rng: np.random.Generator) -> None:
    poles = -np.geomspace(1e-4, 1e4, 12)
    system = channel(poles, rng.standard_normal(12), rng.standard_normal(12), discrete=False)
    assert_relative(system)
    factors = balance_factors(system)
    arrays = (factors.factors.Z, factors.factors.Y, factors.V)
    assert not any(np.iscomplexobj(x) for x in arrays)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("spread", [1.0, 1e150])
def test_scaling_of_states_does_not_matter(
    spread: float, real_output: bool, rng: np.random.Generator
) -> None:
    n = 6
    poles = 0.7 * np.exp(1j * np.linspace(0.3, 2.8, n))
    b, c = complex_normal(rng, n), complex_normal(rng, n)
    scales = np.exp2(np.round(np.log2(np.geomspace(1 / spread, spread, n))))
    plain = accurate_values(channel(poles, b, c, real_output=real_output))
    scaled = channel(poles, b * scales, c / scales, real_output=real_output)
    np.testing.assert_allclose(accurate_values(scaled), plain, rtol=50 * EPS)
    error = np.abs(hankel_singular_values(scaled) - plain).max()
    assert error <= C_RELATIVE * 2 * n * EPS * plain[0]
    factors = balance_factors(scaled)
    W, T = factors.projections(3)
    np.testing.assert_allclose(adjoint(W) @ T, np.eye(3), atol=5e3 * EPS)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("size", [1e-150, 1e150])
def test_extreme_norms(size: float, real_output: bool, rng: np.random.Generator) -> None:
    poles = 0.7 * np.exp(1j * np.linspace(0.3, 2.8, 4))
    b, c = complex_normal(rng, 4), complex_normal(rng, 4)
    assert_relative(channel(poles, size * b, size * c, real_output=real_output), digits=700)


@pytest.mark.parametrize("real_output", [False, True])
def test_residues_over_many_decades(real_output: bool, rng: np.random.Generator) -> None:
    poles = 0.7 * np.exp(1j * np.linspace(0.3, 2.8, 6))
    scales = np.geomspace(1e-30, 1e30, 6)
    b, c = scales * complex_normal(rng, 6), scales * complex_normal(rng, 6)
    exact = assert_relative(channel(poles, b, c, real_output=real_output), digits=500)
    assert exact[-1] < 1e-100 * exact[0]


def test_overflow_is_an_error(rng: np.random.Generator) -> None:
    poles = 0.7 * np.exp(1j * np.linspace(0.3, 2.8, 4))
    weights = 1e170 * complex_normal(rng, 4)
    for values in (hankel_singular_values, accurate_values):
        with pytest.raises(NoConvergenceError, match="overflow"):
            values(channel(poles, weights, weights))


@pytest.mark.parametrize("real_output", [False, True])
def test_zero_weights_and_repeated_poles(real_output: bool, rng: np.random.Generator) -> None:
    poles = 0.8 * np.exp(1j * np.linspace(0.3, 2.8, 8))
    poles[3], poles[5] = poles[2], -0.4
    b, c = complex_normal(rng, 8), complex_normal(rng, 8)
    b[0], c[1] = 0.0, 0.0
    system = channel(poles, b, c, real_output=real_output)
    exact = assert_relative(system)
    assert exact.size == (9 if real_output else 5)
    balancing = balance(system)
    assert balancing.rank == exact.size
    assert balancing.truncate(3).verify() <= balancing.bound(3) * (1 + 1e-9)


def test_opposite_residues_at_one_pole_cancel() -> None:
    poles = np.array([0.5 + 0.2j, 0.5 + 0.2j, 0.5 - 0.2j, 0.3])
    b = np.ones(4)
    plain = channel(poles, b, np.array([1.0, -1.0, 0.0, 2.0]))
    np.testing.assert_allclose(accurate_values(plain), [2 / (1 - 0.09), 0, 0, 0], rtol=5 * EPS)
    # Re(c h) and Re(-conj(c) conj(h)) cancel too.
    mirrored = channel(poles, b, np.array([0.0, 1j, 1j, 2.0]), real_output=True)
    expected = np.array([2 / (1 - 0.09), *[0.0] * 7])
    np.testing.assert_allclose(accurate_values(mirrored), expected, rtol=5 * EPS)


@pytest.mark.parametrize("real_output", [False, True])
def test_no_response_at_all(real_output: bool) -> None:
    poles = np.array([0.5 + 0.2j, 0.3])
    system = channel(poles, np.array([1.0, 0.0]), np.array([0.0, 1.0]), real_output=real_output)
    for values in (hankel_singular_values, accurate_values):
        assert np.all(values(system) == 0.0)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("distance", [1e-6, 1e-12])
def test_close_to_the_unit_circle(distance: float, real_output: bool) -> None:
    # Poles near 1, near -1 and near each other; from their logarithms nothing is lost.
    rng = np.random.default_rng(4)
    phases = np.array([distance, 3 * distance, np.pi - 2 * distance, 0.7, 0.7 + distance, 2.0, 5.9])
    logarithms = -distance * np.arange(1, 8) + 1j * phases
    b, c = complex_normal(rng, 7), complex_normal(rng, 7)
    system = DiagonalStateSpace.from_log(
        logarithms, b[:, None], c[None], time=Discrete(), real_output=real_output
    )
    assert_relative(system)


@pytest.mark.parametrize("gap", [0.5, 1e-1, 1e-2, 1e-4, 1e-8, 1e-12, 0.0])
@pytest.mark.parametrize("discrete", [False, True])
def test_nearly_real_poles(gap: float, discrete: bool, rng: np.random.Generator) -> None:
    real = np.array([0.9, 0.5, -0.3]) if discrete else np.array([-0.1, -1.0, -4.0])
    poles = np.concatenate([real * (1 + 1j * gap), [-0.5 + 0.6j, -0.2 + 0.3j]])
    b, c = complex_normal(rng, 5), complex_normal(rng, 5)
    if discrete and np.abs(poles).max() >= 1:
        poles[0] = 0.8 + 0.1j
    system = channel(poles, b, c, discrete=discrete, real_output=True)
    # Pairs are eliminated together down to a distance of 0.03, whose square is 1e-3.
    assert_relative(system, amplification=20.0)
    assert nearly_real(poles, None, system.time)[:3].any() == (0 < gap < 0.05)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("nearly", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_factors_are_those_of_the_gramians(
    discrete: bool, nearly: bool, real_output: bool, rng: np.random.Generator
) -> None:
    poles = -np.linspace(0.1, 0.9, 6) * np.exp(1j * np.linspace(-1.2, 1.2, 6))
    if nearly:
        poles[2] = -0.4 + 1e-9j
    b, c = complex_normal(rng, 6), complex_normal(rng, 6)
    system = channel(poles, b, c, discrete=discrete, real_output=real_output)
    ((Z, Y),) = channel_factors(system)
    P, Q = controllability_gramian(system), observability_gramian(system)
    for factor, gramian in ((Z, P), (Y, Q)):
        error = np.abs(factor @ adjoint(factor) - gramian).max()
        assert error <= 4 * C_RELATIVE * 12 * EPS * np.abs(gramian).max()
    assert np.iscomplexobj(Z) is np.iscomplexobj(Y) is not real_output
    if real_output:
        M = adjoint(Y) @ Z
        assert np.abs(M - adjoint(M)).max() <= C_RELATIVE * 12 * EPS * np.abs(M).max()


@pytest.mark.parametrize("nearly", [False, True])
@pytest.mark.parametrize("real_output", [False, True])
def test_projections_balance(real_output: bool, nearly: bool, rng: np.random.Generator) -> None:
    poles = 0.9 * np.exp(1j * np.linspace(0.2, 2.9, 8))
    if nearly:
        poles[0] = 0.7 + 1e-7j
    system = channel(poles, complex_normal(rng, 8), complex_normal(rng, 8), real_output=real_output)
    factors = balance_factors(system)
    W, T = factors.projections(factors.rank)
    # A column of T is divided by its σ: rounding grows by σ₁/σ.
    growth = factors.hsv[0] / factors.hsv[factors.rank - 1]
    allowed = 4 * C_RELATIVE * 16 * EPS * growth
    np.testing.assert_allclose(adjoint(W) @ T, np.eye(factors.rank), atol=allowed)
    P, Q = controllability_gramian(system), observability_gramian(system)
    sigma = np.diag(factors.hsv[: factors.rank])
    scale = factors.hsv[0] * allowed
    np.testing.assert_allclose(adjoint(W) @ P @ W, sigma, atol=scale)
    np.testing.assert_allclose(adjoint(T) @ Q @ T, sigma, atol=scale)
    balancing = balance(system)
    for order in (2, 5):
        reduction = balancing.truncate(order)
        assert reduction.error_bound is not None
        assert reduction.verify() <= reduction.error_bound * (1 + 1e-9)


@given(
    poles=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 201)), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
    real_output=st.booleans(),
)
def test_any_poles(poles: list[tuple[int, int]], seed: int, real_output: bool) -> None:
    # A grid of radii and phases, repeated poles included, up to |λ| = 0.94 and phase 2π.
    rng = np.random.default_rng(seed)
    modulus, phase = np.array(poles)[:, 0] / 64, np.array(poles)[:, 1] / 32
    nodes = modulus * np.exp(1j * phase)
    n = len(nodes)
    system = channel(nodes, complex_normal(rng, n), complex_normal(rng, n), real_output=real_output)
    # Pairs down to a distance of 0.03 may lose the square of it, and the data may decide less.
    assert_relative(system, amplification=100.0 + sensitivity(system))


def test_one_state() -> None:
    system = channel(np.array([-2.0 + 1j]), np.array([3.0]), np.array([1.0 - 2j]), discrete=False)
    np.testing.assert_allclose(accurate_values(system), [3 * 5**0.5 / 4], rtol=4 * EPS)
    # y = Re(c h) has the cross Gramian [[x, y], [y', conj x]] with x = -r/(2λ), y y' = |r/(2 Re λ)|²
    # for r = b c/2; the values are the moduli of its eigenvalues.
    r = 3.0 * (1 - 2j) / 2
    x, y = -r / (2 * (-2 + 1j)), abs(r) / 4
    root = np.sqrt(y**2 - x.imag**2)
    expected = [root + abs(x.real), root - abs(x.real)]
    real = channel(
        np.array([-2.0 + 1j]),
        np.array([3.0]),
        np.array([1.0 - 2j]),
        discrete=False,
        real_output=True,
    )
    np.testing.assert_allclose(accurate_values(real), expected, rtol=50 * EPS)


@pytest.mark.slow
def test_large_systems_take_the_route_of_others(rng: np.random.Generator) -> None:
    n = 256
    poles = 0.9 * np.exp(1j * np.linspace(0.2, 2.9, n + 1))
    b, c = complex_normal(rng, n + 1), complex_normal(rng, n + 1)
    assert not is_channel(channel(poles, b, c))
    assert is_channel(channel(poles[1:], b[1:], c[1:]))
    both = [
        hankel_singular_values(channel(poles[k:], b[k:], c[k:] * (np.arange(k, n + 1) > 0)))
        for k in (0, 1)
    ]
    assert np.abs(both[0][:n] - both[1]).max() <= C_RELATIVE * n * EPS * both[1][0]


def two_inputs() -> DiagonalStateSpace:
    return DiagonalStateSpace([0.5, 0.2], np.ones((2, 2)), np.ones((1, 2)), time=Discrete())


def test_what_is_no_channel_is_refused() -> None:
    system = channel(np.array([0.5]), np.ones(1), np.ones(1))
    assert is_channel(system)
    for other, found in (
        (two_inputs(), "2 inputs and 1 outputs"),
        (system.to_dense(), "StateSpace"),
    ):
        assert not is_channel(other)
        with pytest.raises(UnsupportedEquationError, match=f"(?s)`relative_accuracy`.*{found}"):
            accurate_values(other)
    with pytest.raises(ArgumentError, match="`relative_accuracy` is True but `horizon` is 5"):
        hankel_singular_values(system, horizon=5, relative_accuracy=True)
    with pytest.raises(ArgumentError, match="`relative_accuracy` is 1; expected a bool"):
        hankel_singular_values(system, relative_accuracy=1)
    with pytest.raises(ArgumentTypeError, match="`system`"):
        hankel_singular_values("system", relative_accuracy=True)
    unstable = channel(np.array([1.0]), np.ones(1), np.ones(1))
    for values in (hankel_singular_values, accurate_values):
        with pytest.raises(UnstableSystemError, match=r"\|λ\| = 1"):
            values(unstable)


def test_no_states_have_no_values() -> None:
    nothing = channel(np.zeros(0), np.zeros(0), np.zeros(0))
    assert accurate_values(nothing).shape == (0,)


def test_channels_of_a_batch_keep_their_digits(rng: np.random.Generator) -> None:
    poles = 0.3 * np.exp(1j * np.linspace(0.2, 1.4, 6)) * np.ones((2, 3, 1))
    b, c = complex_normal(rng, 2, 3, 6), complex_normal(rng, 2, 3, 6)
    batch = DiagonalStateSpace(poles, b[..., None], c[..., None, :], time=Discrete())
    found = accurate_values(batch)
    assert found.shape == (2, 3, 6)
    for at in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[at], accurate_values(batch[at]))


def test_inputs_are_unchanged(rng: np.random.Generator) -> None:
    data = [0.9 * np.exp(1j * np.linspace(0, 3, 5)), complex_normal(rng, 5), complex_normal(rng, 5)]
    before = [x.tobytes() for x in data]
    for real_output in (False, True):
        poles, b, c = (x[None] for x in data)
        cauchy_factors(poles, None, b, c, Discrete(), real_output=real_output)
        accurate_values(channel(*data, real_output=real_output))
    assert [x.tobytes() for x in data] == before


class TestJacobi:
    """Graded matrices D₁ K D₂ with known singular values."""

    @pytest.mark.parametrize("is_complex", [False, True])
    def test_graded(self, is_complex: bool, rng: np.random.Generator) -> None:
        import mpmath as mp

        n = 8
        K = complex_normal(rng, n, n) if is_complex else rng.standard_normal((n, n))
        K = K + 4 * np.eye(n)
        grading = np.exp2(-10.0 * np.arange(n))
        M = grading[:, None] * K * grading
        with mp.workdps(150):
            exact = mp.svd(mp.matrix(M.tolist()), compute_uv=False)
            exact = np.array([float(x) for x in exact])
        assert exact[-1] < 1e-40 * exact[0]
        np.testing.assert_allclose(jacobi_singular_values(M), exact, rtol=1e-14)
        # A bidiagonalisation is not enough where the rows come in another order.
        shuffled = M[::-1]
        np.testing.assert_allclose(jacobi_singular_values(shuffled), exact, rtol=1e-14)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, bad: float) -> None:
        with pytest.raises(np.linalg.LinAlgError, match="finite"):
            jacobi_singular_values(np.array([[1.0, 0.0], [0.0, bad]]))

    def test_empty(self) -> None:
        assert jacobi_singular_values(np.zeros((0, 0))).shape == (0,)
