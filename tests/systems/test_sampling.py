"""Zero-order hold, bilinear map and their inverses: against mpmath, SciPy and plain transfer functions."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS, adjoint
from transfer import KINDS, assert_same_map, plain_matrices, random_system, transfer

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace, hankel_singular_values
from ssmreduce.errors import NonFiniteError, ShapeError, TimeDomainError, UnstableSystemError
from ssmreduce.systems.sampling import to_continuous, to_discrete

pytestmark = pytest.mark.every_library

METHODS: list[Any] = ["zoh", "bilinear"]


def exact_hold(A: Any, B: Any, dt: float) -> tuple[Any, Any]:
    """exp(A dt) and its integral times B at 40 digits, from the power series."""
    with mp.workdps(40):
        n, m = B.shape
        block = mp.zeros(n + m)
        for i in range(n):
            for j in range(n):
                block[i, j] = mp.mpmathify(complex(A[i, j])) * dt
            for j in range(m):
                block[i, n + j] = mp.mpmathify(complex(B[i, j])) * dt
        power = mp.expm(block, method="taylor")
        values = np.array([[complex(power[i, j]) for j in range(n + m)] for i in range(n)])
    return values[:, :n], values[:, n:]


@pytest.mark.parametrize("kind", KINDS)
def test_hold_is_the_matrix_exponential(rng: np.random.Generator, kind: str) -> None:
    system = random_system(rng, kind, Continuous(), n=4)
    sampled = to_discrete(system, 0.3)
    assert type(sampled) is type(system)
    assert sampled.time == Discrete(0.3)
    assert not sampled.read_after_update
    A, B, C, D = plain_matrices(system)
    Ad, Bd = exact_hold(A, B, 0.3)
    found = plain_matrices(sampled)
    # The exponential's condition number is below 10 for these; 8 squarings at most.
    np.testing.assert_allclose(found[0], Ad, rtol=0, atol=50 * EPS * np.abs(Ad).max())
    np.testing.assert_allclose(found[1], Bd, rtol=0, atol=50 * EPS * np.abs(Bd).max())
    np.testing.assert_array_equal(found[2], C)
    np.testing.assert_array_equal(found[3], D)
    for name in ("B", "C", "D"):
        assert np.iscomplexobj(getattr(sampled, name)) == np.iscomplexobj(getattr(system, name))


@pytest.mark.parametrize("method", METHODS)
def test_real_dense_against_scipy(rng: np.random.Generator, method: str) -> None:
    system = random_system(rng, "real dense", Continuous(), n=6)
    theirs = scipy.signal.cont2discrete(
        (system.A, system.B, system.C, system.D), 0.2, method=method
    )
    expected = StateSpace(*theirs[:4], time=Discrete(0.2))
    assert_same_map(to_discrete(system, 0.2, method), expected, 1e3 * EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_bilinear_map_keeps_transfer_function_and_gramians(
    rng: np.random.Generator, kind: str
) -> None:
    system, dt = random_system(rng, kind, Continuous()), 0.4
    mapped = to_discrete(system, dt, "bilinear")
    assert type(mapped) is type(system)
    for z in (1.0, 0.5j, -0.9 + 0.1j, np.exp(2j)):
        expected = transfer(system, 2 / dt * (z - 1) / (z + 1))
        found = transfer(mapped, z)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e3 * EPS * np.abs(expected).max())
    A, B, C, _ = plain_matrices(system)
    Ad, Bd, Cd, _ = plain_matrices(mapped)
    for before, after in (
        (continuous_lyapunov(A, B @ adjoint(B)), discrete_lyapunov(Ad, Bd @ adjoint(Bd))),
        (
            continuous_lyapunov(adjoint(A), adjoint(C) @ C),
            discrete_lyapunov(adjoint(Ad), adjoint(Cd) @ Cd),
        ),
    ):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e3 * EPS * np.abs(before).max())
    values = hankel_singular_values(system)
    np.testing.assert_allclose(
        hankel_singular_values(mapped), values, rtol=0, atol=1e3 * EPS * values[0]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(rng: np.random.Generator, kind: str, method: Any) -> None:
    for batch in ((), (2, 3)):
        system = random_system(rng, kind, Continuous(), batch=batch)
        back = to_continuous(to_discrete(system, 0.1, method), method)
        assert type(back) is type(system)
        assert back.time == Continuous()
        for name in ("A", "eigenvalues", "B", "C", "D"):
            if hasattr(system, name):
                value, found = getattr(system, name), getattr(back, name)
                assert found.dtype == value.dtype
                # Rounding of A_d = 1 + O(dt λ) counts 1/(dt |λ|) times in its logarithm.
                limit = 5e3 * EPS * np.abs(value).max()
                np.testing.assert_allclose(found, value, rtol=0, atol=limit)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_back_and_there(rng: np.random.Generator, kind: str, after: bool, method: Any) -> None:
    system = random_system(rng, kind, Discrete(0.1), after=after)
    again = to_discrete(to_continuous(system, method), 0.1, method)
    assert_same_map(again, system, 1e4 * EPS)


@given(
    real=st.floats(-50.0, 20.0),
    imag=st.floats(-3.0, 3.0),
    dt=st.sampled_from([1e-3, 0.5, 1.0]),
    method=st.sampled_from(METHODS),
)
def test_any_pole_below_nyquist_comes_back(
    real: float, imag: float, dt: float, method: Any
) -> None:
    pole = complex(real, imag / dt)
    if abs(1 - pole * dt / 2) < 1e-3 or abs(1 + pole * dt / 2) < 1e-3:
        return
    system = DiagonalStateSpace([pole], [[1 + 1j]], [[2.0]], time=Continuous())
    back = to_continuous(to_discrete(system, dt, method), method)
    # tanh(artanh w): a relative error ε of x = artanh w is one of |(1 - w²) x / w| ε in w.
    w = complex(pole * dt / 2)
    loss = abs((1 - w**2) * np.arctanh(w) / w) if abs(w) > EPS and method == "bilinear" else 0.0
    allowed = 20 * EPS * abs(pole) * (1.0 + loss) + np.finfo(float).tiny / dt
    assert abs(complex(back.eigenvalues[0]) - pole) <= allowed
    np.testing.assert_allclose(transfer(back, 1j), transfer(system, 1j), rtol=1e5 * EPS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pole", [-1e-13 + 5j, -1e-15 + 0.3j, -1e-9, -1e-12 + 100j])
def test_distance_to_the_unit_circle_is_kept(pole: complex, method: Any) -> None:
    poles = np.array([pole]) if isinstance(pole, complex) else np.array([float(pole)])
    system = DiagonalStateSpace(poles, [[1.0]], [[1.0]], time=Continuous())
    sampled = to_discrete(system, 0.1, method)
    with mp.workdps(50):
        p = mp.mpmathify(complex(pole))
        dt = mp.mpf(0.1)
        image = mp.exp(p * dt) if method == "zoh" else (2 / dt + p) / (2 / dt - p)
        expected = float(1 - abs(image) ** 2)
    found = -np.expm1(2 * sampled.log_eigenvalues.real[0])
    assert found == pytest.approx(expected, rel=20 * EPS, abs=0.0)


def test_hold_of_an_integrator_and_of_nearly_one() -> None:
    for pole in (0.0, 1e-300, 2e-311j, -1e-18, 1e-10j, -1e-5):
        system = DiagonalStateSpace([pole], [[3.0]], [[1.0]], time=Continuous())
        with mp.workdps(50):
            p, dt = mp.mpmathify(pole), mp.mpf(0.2)
            held = complex(3 * (mp.expm1(p * dt) / p if pole else dt))
        assert abs(to_discrete(system, 0.2).B[0, 0] - held) <= 4 * EPS * abs(held)
        dense = to_discrete(system.to_dense(), 0.2)
        assert abs(dense.B[0, 0] - held) <= 10 * EPS * abs(held)
    chain = StateSpace([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0]], time=Continuous())
    sampled = to_discrete(chain, 0.5)
    np.testing.assert_array_equal(sampled.A, [[1.0, 0.5], [0.0, 1.0]])
    np.testing.assert_array_equal(sampled.B, [[0.125], [0.5]])
    back = to_continuous(sampled)
    np.testing.assert_allclose(back.A, chain.A, atol=10 * EPS)
    np.testing.assert_allclose(back.B, chain.B, atol=10 * EPS)


def test_large_and_small_inputs_do_not_matter(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Continuous())
    plain = to_discrete(system, 0.1)
    for factor in (1e150, 1e-150):
        scaled = StateSpace(system.A, factor * system.B, system.C, time=Continuous())
        sampled = to_discrete(scaled, 0.1)
        np.testing.assert_allclose(sampled.A, plain.A, rtol=0, atol=20 * EPS)
        limit = 50 * EPS * np.abs(plain.B).max()
        np.testing.assert_allclose(sampled.B / factor, plain.B, rtol=0, atol=limit)


def test_frequencies_come_back_below_nyquist() -> None:
    logarithms = np.array([-0.1 + 5.0j, -0.2 - 9.0j])
    layer = DiagonalStateSpace.from_log(
        logarithms, [[1.0], [1j]], [[1.0, 2.0]], time=Discrete(0.5), real_output=True
    )
    found = to_continuous(layer)
    expected = (logarithms - 2j * np.pi * np.array([1, -1])) / 0.5
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=10 * EPS)
    assert_same_map(to_discrete(found, 0.5), layer, 100 * EPS)


def dense(A: Any) -> StateSpace:
    n = len(A)
    return StateSpace(A, np.ones((n, 1)), np.ones((1, n)), time=Discrete())


def rotated(A: Any) -> Any:
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((len(A), len(A))))
    return turn @ np.asarray(A) @ adjoint(turn)


REFUSED = {
    "zero": [[0.0]],
    "delay chain": np.eye(4, k=1),
    "rotated delay chain": rotated(np.eye(4, k=1)),
    "negative": [[0.5, 1.0], [0.0, -0.3]],
    "complex negative": rotated(np.diag([0.5, -0.3, 0.2j])) + 0j,
}


@pytest.mark.parametrize("name", REFUSED)
def test_dense_systems_without_a_logarithm(name: str) -> None:
    with pytest.raises(TimeDomainError, match=r"pole at z = .*bilinear"):
        to_continuous(dense(REFUSED[name]))


@pytest.mark.parametrize("pole", [0.0, -0.3, -0.3 + 0j])
@pytest.mark.parametrize("real_output", [False, True])
def test_diagonal_systems_without_a_logarithm(pole: complex, real_output: bool) -> None:
    system = DiagonalStateSpace(
        [pole, 0.5], np.ones((2, 1)), np.ones((1, 2)), time=Discrete(), real_output=real_output
    )
    with pytest.raises(TimeDomainError, match=r"pole at z = .*bilinear"):
        to_continuous(system)
    if pole:
        logarithms = np.log(np.array([pole, 0.5]) + 0j)
        kept = DiagonalStateSpace.from_log(logarithms, system.B, system.C, time=Discrete())
        with pytest.raises(TimeDomainError, match=r"pole at z = -0\.3"):
            to_continuous(kept)


def test_poles_that_the_bilinear_map_sends_to_infinity() -> None:
    for pole in (-1.0, -1.0 + 0j):
        diagonal = DiagonalStateSpace([pole, 0.5], [[1.0]] * 2, [[1.0, 1.0]], time=Discrete())
        with pytest.raises(TimeDomainError, match="z = -1"):
            to_continuous(diagonal, "bilinear")
    with pytest.raises(TimeDomainError, match="z = -1"):
        to_continuous(dense(rotated(np.diag([-1.0, 0.5, 0.1]))), "bilinear")
    fast = DiagonalStateSpace([4.0, -1.0], [[1.0]] * 2, [[1.0, 1.0]], time=Continuous())
    for system in (fast, fast.to_dense()):
        with pytest.raises(TimeDomainError, match="s = 2/dt = 4"):
            to_discrete(system, 0.5, "bilinear")
        to_discrete(system, 0.4, "bilinear")
    # λ = -2/dt is fine: it goes to z = 0, whose logarithm cannot be kept.
    zero = DiagonalStateSpace([-4.0 + 0j], [[1.0]], [[1.0]], time=Continuous())
    mapped = to_discrete(zero, 0.5, "bilinear")
    assert mapped.log_eigenvalues is None
    assert mapped.eigenvalues[0] == 0.0
    assert to_continuous(mapped, "bilinear").eigenvalues[0] == -4.0


def test_times_and_methods_are_checked(rng: np.random.Generator) -> None:
    continuous = random_system(rng, "real dense", Continuous())
    discrete = random_system(rng, "real dense", Discrete(0.1))
    with pytest.raises(TimeDomainError, match=r"Discrete\(dt=0.1\)"):
        to_discrete(discrete, 0.1)
    with pytest.raises(TimeDomainError, match="continuous already"):
        to_continuous(continuous)
    with pytest.raises(TimeDomainError, match="dt"):
        to_discrete(continuous, -1.0)
    bad: Any = "tustin"
    with pytest.raises(ShapeError, match=r"'tustin'.*'zoh' or 'bilinear'"):
        to_discrete(continuous, 0.1, bad)


def test_inputs_are_unchanged(rng: np.random.Generator) -> None:
    for kind in KINDS:
        for time in (Continuous(), Discrete(0.1)):
            system = random_system(rng, kind, time)
            before = [x.tobytes() for x in plain_matrices(system)]
            for method in METHODS:
                if time == Continuous():
                    to_discrete(system, 0.1, method)
                else:
                    to_continuous(system, method)
            assert [x.tobytes() for x in plain_matrices(system)] == before


@pytest.mark.parametrize("which", ["A", "B", "C", "D"])
def test_one_complex_matrix_is_enough(rng: np.random.Generator, which: str) -> None:
    for time in (Continuous(), Discrete(0.1)):
        real = random_system(rng, "real dense", time)
        arrays = {x: getattr(real, x) + (1j * 0.01 if x == which else 0.0) for x in "ABCD"}
        system = StateSpace(**arrays, time=time)
        for method in METHODS:
            if time == Continuous():
                there = to_discrete(system, 0.1, method)
                assert_same_map(to_continuous(there, method), system, 1e4 * EPS)
            else:
                there = to_continuous(system, method)
                assert_same_map(to_discrete(there, 0.1, method), system, 1e4 * EPS)


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.floats(0.01, 10.0))
def test_hankel_singular_values_are_those_of_the_image(seed: int, kind: str, dt: float) -> None:
    system = random_system(np.random.default_rng(seed), kind, Continuous(), n=4)
    mapped = to_discrete(system, dt, "bilinear")
    values = hankel_singular_values(system)
    # Poles come as close to z = ±1 as dt |λ| or 1/(dt |λ|): that many digits leave a dense image.
    spread = max(1.0, dt * 100.0, 10.0 / dt)
    limit = 1e3 * EPS * spread * values[0]
    np.testing.assert_allclose(hankel_singular_values(mapped), values, rtol=0, atol=limit)
    assert mapped.is_stable()


@pytest.mark.parametrize("dense", [False, True])
def test_errors_name_the_system_of_a_batch(dense: bool) -> None:
    def batch(poles: list[float], time: Any) -> Any:
        ones = np.ones((1, 2, 1, 1))
        if dense:
            return StateSpace(np.reshape(poles, (1, 2, 1, 1)), ones, ones, time=time)
        return DiagonalStateSpace(np.reshape(poles, (1, 2, 1)), ones, ones, time=time)

    named = r"in system\[0, 1\] of the batch "
    growing, integrator = batch([-1.0, 1e4], Continuous()), batch([-1.0, 0.0], Continuous())
    zero, nyquist = batch([0.5, 0.0], Discrete(1.0)), batch([0.5, -1.0], Discrete(1.0))
    with pytest.raises(NonFiniteError, match=named + "`dt`"):
        to_discrete(growing, 1.0)
    with pytest.raises(TimeDomainError, match=named + "`system` has a pole"):
        to_discrete(growing, 2e-4, "bilinear")
    with pytest.raises(TimeDomainError, match=named + "`system` has a pole"):
        to_continuous(zero)
    with pytest.raises(TimeDomainError, match=named + "`system` has a pole"):
        to_continuous(nyquist, "bilinear")
    with pytest.raises(UnstableSystemError, match=named + "`system` has a pole"):
        integrator.dc_gain()
    with pytest.raises(NonFiniteError, match=r"^`dt`"):
        to_discrete(growing[0, 1], 1.0)
