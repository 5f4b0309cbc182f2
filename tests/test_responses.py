"""Stability, DC gain and responses, against mpmath, SciPy, plain formulas; also without any state."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.signal
from samples import EPS, dense_system
from transfer import KINDS, TIMES, plain_matrices, random_system, transfer

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace
from ssmreduce.adapters.scipy_signal import from_scipy
from ssmreduce.errors import ArgumentError, ShapeError, TimeDomainError, UnstableSystemError
from ssmreduce.responses import (
    frequency_response,
    impulse_response,
    step_response,
)
from ssmreduce.systems.coordinates import diagonalised, real_form, transformed
from ssmreduce.systems.interconnect import difference, parallel, series
from ssmreduce.systems.sampling import to_continuous, to_discrete
from ssmreduce.systems.simulation import simulate
from ssmreduce.systems.transfer import state_part

pytestmark = pytest.mark.every_library

# --- Poles, stability, DC gain


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_dc_gain_and_stability(rng: np.random.Generator, kind: str, time: Any) -> None:
    discrete = isinstance(time, Discrete)
    for after in {False, discrete}:
        system = random_system(rng, kind, time, after=after)
        expected = transfer(system, 1.0 if discrete else 0.0)
        gain = system.dc_gain()
        np.testing.assert_allclose(gain, expected, atol=1e3 * EPS * np.abs(expected).max())
        assert np.iscomplexobj(gain) == (kind in {"complex dense", "complex diagonal"})
        poles = system.poles()
        distance = float(np.min(1 - np.abs(poles) if discrete else -poles.real))
        assert bool(system.is_stable())
        assert bool(system.is_stable(0.99 * distance))
        assert not bool(system.is_stable(1.01 * distance))
        assert isinstance(system.is_stable(), np.bool_)
        assert system.to_dense().to_dense() is not None
    batch = random_system(rng, kind, time, batch=(2, 2))
    assert batch.is_stable().shape == (2, 2)
    np.testing.assert_allclose(batch.dc_gain()[1, 0], batch[1, 0].dc_gain(), rtol=1e-14)


def test_to_dense_of_a_dense_system_is_itself(rng: np.random.Generator) -> None:
    system = dense_system(rng, 3, 1, 1)
    assert system.to_dense() is system


def test_integrators_have_no_dc_gain(rng: np.random.Generator) -> None:
    """Also where a turn of the states moves the pole by rounding, to one side or the other."""
    turns = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(10)]
    for time, pole in ((Continuous(), 0.0), (Discrete(), 1.0)):
        point = "s = 0" if pole == 0.0 else "z = 1"
        poles = np.array([pole, pole - 0.5, pole - 0.3])
        diagonal = DiagonalStateSpace(poles, np.ones((3, 1)), np.ones((1, 3)), time=time)
        turned = [transformed(diagonal, turn) for turn in turns]
        for system in (diagonal, diagonal.to_dense(), *turned):
            with pytest.raises(UnstableSystemError, match=f"`system` has a pole at {point}"):
                system.dc_gain()
            assert not system.is_stable()
        # A state that nothing drives, or nothing reads, does not count.
        idle = DiagonalStateSpace(poles, [[0.0], [1.0], [1.0]], np.ones((1, 3)), time=time)
        assert idle.dc_gain()[0, 0] == pytest.approx(1 / 0.5 + 1 / 0.3)


def test_badly_scaled_systems_have_a_dc_gain(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Continuous())
    expected = system.dc_gain()
    units = np.diag(10.0 ** np.array([-140, -20, 0, 20, 140]))
    found = transformed(system, units).dc_gain()
    np.testing.assert_allclose(found, expected, atol=1e3 * EPS * np.abs(expected).max())


def test_logarithms_decide_stability_and_gain_near_the_boundary() -> None:
    system = DiagonalStateSpace.from_log([-1e-20], [[1.0]], [[1.0]], time=Discrete())
    assert system.eigenvalues[0] == 1.0
    assert system.is_stable()
    assert not system.is_stable(1e-19)
    assert not system.is_stable(1.0)
    assert system.dc_gain()[0, 0] == pytest.approx(1e20, rel=4 * EPS)
    assert not DiagonalStateSpace.from_log([0.0], [[1.0]], [[1.0]], time=Discrete()).is_stable()


# --- Continuous responses


def exact_impulse(system: Any, t: float) -> Any:
    """C exp(A t) B at 40 digits."""
    A, B, C, _ = plain_matrices(system)
    with mp.workdps(40):
        n = len(A)
        block = mp.matrix(n, n)
        for i, j in np.ndindex(n, n):
            block[i, j] = mp.mpmathify(complex(A[i, j])) * mp.mpf(t)
        power = mp.expm(block, method="taylor")
        value = np.array([[complex(power[i, j]) for j in range(n)] for i in range(n)])
    return C @ value @ B


@pytest.mark.parametrize("kind", KINDS)
def test_continuous_impulse_response(rng: np.random.Generator, kind: str) -> None:
    system = random_system(rng, kind, Continuous(), n=3)
    for times in (np.linspace(0.0, 2.0, 9), np.array([0.0, 0.1, 0.5, 1.7]), np.array([0.3])):
        found = impulse_response(system, times=times)
        assert found.shape == (times.size, 3, 2)
        assert np.iscomplexobj(found) == (kind in {"complex dense", "complex diagonal"})
        expected = np.array([exact_impulse(system, t) for t in times])
        np.testing.assert_allclose(found, expected, rtol=0, atol=200 * EPS * np.abs(expected).max())


def test_impulse_response_of_complex_states_is_complex_at_once() -> None:
    system = StateSpace([[1j]], [[2.0]], [[3.0]], time=Continuous())
    found = impulse_response(system, times=[0.0])
    assert np.iscomplexobj(found)
    assert found.ravel() == [6.0]


@pytest.mark.parametrize("hold", ["constant", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_continuous_simulation_solves_the_equation(
    rng: np.random.Generator, kind: str, hold: Any
) -> None:
    system = random_system(rng, kind, Continuous(), n=3)
    A, B, C, D = plain_matrices(system)
    for times in (np.linspace(1.0, 2.5, 7), np.array([0.0, 0.2, 0.25, 1.0, 1.1])):
        signal = rng.standard_normal((times.size, 2))
        found = simulate(system, signal, times=times, hold=hold)
        assert np.iscomplexobj(found) == (kind in {"complex dense", "complex diagonal"})
        state = np.zeros(len(A), dtype=complex)
        expected = [D @ signal[0]]
        for k in range(times.size - 1):
            start, stop = times[k], times[k + 1]
            slope = (
                (signal[k + 1] - signal[k]) / (stop - start) if hold == "linear" else 0 * signal[0]
            )

            def rate(
                t: float, x: Any, t0: float = start, u: Any = signal[k], s: Any = slope
            ) -> Any:
                return A @ x + B @ (u + s * (t - t0))

            solved = scipy.integrate.solve_ivp(
                rate, (start, stop), state, method="DOP853", rtol=1e-12, atol=1e-13
            )
            state = solved.y[:, -1]
            expected.append(C @ state + D @ signal[k + 1])
        # The oracle is an integrator with rtol 1e-12.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("hold", ["constant", "linear"])
def test_continuous_simulation_against_scipy(rng: np.random.Generator, hold: str) -> None:
    system = random_system(rng, "real dense", Continuous(), n=8)
    times = np.linspace(0.0, 5.0, 101)
    signal = rng.standard_normal((101, 2))
    theirs = scipy.signal.lsim(
        (system.A, system.B, system.C, system.D), signal, times, interp=hold == "linear"
    )[1]
    mode: Any = hold
    found = simulate(system, signal, times=times, hold=mode)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e3 * EPS * np.abs(theirs).max())
    diagonal = simulate(diagonalised(system), signal, times=times, hold=mode)
    np.testing.assert_allclose(diagonal, found, rtol=0, atol=1e4 * EPS * np.abs(theirs).max())


@pytest.mark.parametrize("pole", [0.0, 1e-200, -1e-9, -0.3 + 0.9j, -0.999, -1.001, -30.0, 5j])
def test_ramp_through_one_pole(pole: complex) -> None:
    """y(1) = ∫₀¹ exp(λ(1-s)) s ds for u = t, also where the power series takes over."""
    system = DiagonalStateSpace([pole], [[1.0]], [[1.0]], time=Continuous())
    with mp.workdps(450):
        p = mp.mpmathify(pole)
        expected = complex((mp.exp(p) - 1 - p) / p**2 if pole else mp.mpf(1) / 2)
    for form in (system, system.to_dense()):
        found = simulate(form, [[0.0], [1.0]], times=[0.0, 1.0], hold="linear")
        assert abs(found[1, 0] - expected) <= 20 * EPS * abs(expected)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_step_response_is_the_integral_and_ends_at_the_dc_gain(
    rng: np.random.Generator, kind: str, time: Any
) -> None:
    system = random_system(rng, kind, time)
    if isinstance(time, Discrete):
        found = step_response(system, 2000)
        expected = np.cumsum(impulse_response(system, 2000), axis=0)
    else:
        times = np.linspace(0.0, 250.0, 2000)
        found = step_response(system, times=times)
        expected = impulse_response(to_discrete(system, times[1]), 2000).cumsum(axis=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e4 * EPS * scale)
    np.testing.assert_allclose(found[-1], system.dc_gain(), rtol=0, atol=1e4 * EPS * scale)
    assert np.iscomplexobj(found) == (kind in {"complex dense", "complex diagonal"})


@pytest.mark.parametrize("kind", KINDS)
def test_markov_parameters(rng: np.random.Generator, kind: str) -> None:
    for after in (False, True):
        system = random_system(rng, kind, Discrete(0.1), after=after)
        A, B, C, D = plain_matrices(system)
        powers = [C @ np.linalg.matrix_power(A, k) @ B for k in range(6)]
        expected = [D + powers[0], *powers[1:]] if after else [D, *powers[:5]]
        found = impulse_response(system, 6)
        np.testing.assert_allclose(found, expected, rtol=0, atol=100 * EPS * np.abs(expected).max())


def test_arguments_of_responses(rng: np.random.Generator) -> None:
    continuous = random_system(rng, "real dense", Continuous())
    discrete = random_system(rng, "real dense", Discrete(0.1))
    for response in (impulse_response, step_response):
        with pytest.raises(TimeDomainError, match="`times` is missing"):
            response(continuous)
        with pytest.raises(TimeDomainError, match="`length` is 5 but `system` is continuous"):
            response(continuous, 5)
        with pytest.raises(TimeDomainError, match="`length` is missing"):
            response(discrete)
        with pytest.raises(TimeDomainError, match="`times` is given but `system` is discrete"):
            response(discrete, 5, times=[0.0, 1.0])
        with pytest.raises(ArgumentError, match="`length`"):
            response(discrete, 0)
        for times in ([1.0, 0.5], [0.0, 0.0], [], [[0.0, 1.0]], [0.0, 1j]):
            with pytest.raises(ShapeError, match="`times`"):
                response(continuous, times=times)
    with pytest.raises(ShapeError, match=r"`times` starts at -1"):
        impulse_response(continuous, times=[-1.0, 0.0])
    with pytest.raises(ShapeError, match=r"`times` has shape \(3,\).*\(2,\)"):
        simulate(continuous, np.ones((2, 2)), times=[0.0, 1.0, 2.0])
    with pytest.raises(TimeDomainError, match="`times` is given"):
        simulate(discrete, np.ones((2, 2)), times=[0.0, 1.0])
    bad: Any = "zoh"
    with pytest.raises(ShapeError, match="`hold` is 'zoh'"):
        simulate(continuous, np.ones((2, 2)), times=[0.0, 1.0], hold=bad)
    layer = random_system(rng, "real output", Discrete(0.1))
    with pytest.raises(ShapeError, match=r"`inputs` has dtype complex128.*real output"):
        simulate(layer, np.ones((2, 2)) * 1j)


# --- Frequency response


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (1, 1)])
@pytest.mark.parametrize("n", [2, 31, 32, 33, 70])
@pytest.mark.parametrize("is_complex", [False, True])
def test_many_frequencies_of_a_dense_system(
    rng: np.random.Generator, is_complex: bool, n: int, size: tuple[int, int]
) -> None:
    """The Schur form, against one linear solve per frequency."""
    m, p = size
    for discrete in (False, True):
        for after in {False, discrete}:
            plain = dense_system(rng, n, m, p, discrete=discrete, is_complex=is_complex)
            system = StateSpace(
                plain.A, plain.B, plain.C, np.ones((p, m)), time=plain.time, read_after_update=after
            )
            omega = np.concatenate([[0.0], np.linspace(-3.0, 3.0, 40)])
            points = np.exp(1j * omega) if discrete else 1j * omega
            expected = np.array([transfer(system, z) for z in points])
            # Distance of the poles to the boundary is at least 0.1.
            limit = 1e3 * n * EPS * np.abs(expected).max()
            np.testing.assert_allclose(
                frequency_response(system, omega), expected, rtol=0, atol=limit
            )
            few = frequency_response(system, omega[:3])
            np.testing.assert_allclose(few, expected[:3], rtol=0, atol=limit)
            part = state_part(system)
            right = rng.standard_normal((m, 41)) + 1j * rng.standard_normal((m, 41))
            left = rng.standard_normal((p, 41)) + 1j * rng.standard_normal((p, 41))
            state = expected - system.D
            forward, backward = part.products(system.time.point(omega))
            found = forward(right)
            np.testing.assert_allclose(
                found, np.einsum("kpm,mk->pk", state, right), rtol=0, atol=10 * limit
            )
            found = backward(left)
            np.testing.assert_allclose(
                found, np.einsum("kpm,pk->mk", state.conj(), left), rtol=0, atol=10 * limit
            )


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("size", [(0, 3, 4), (3, 0, 2), (3, 2, 0), (5, 20, 30), (5, 30, 20)])
def test_products_of_diagonal_systems(
    rng: np.random.Generator, size: tuple[int, int, int], real: bool, after: bool
) -> None:
    """Products with vectors are those with the matrices, of no states or signals too."""
    n, m, p = size
    system = DiagonalStateSpace(
        0.9 * np.exp(1j * rng.uniform(0.0, 3.0, n)),
        rng.standard_normal((n, m)) + 1j,
        rng.standard_normal((p, n)) - 1j,
        time=Discrete(),
        real_output=real,
        read_after_update=after,
    )
    omega = np.array([0.0, 0.3, 1.0])
    part = state_part(system)
    matrices = frequency_response(system, omega)
    assert matrices.shape == (3, p, m)
    forward, backward = part.products(system.time.point(omega))
    right = rng.standard_normal((m, 3)) + 1j
    left = rng.standard_normal((p, 3)) + 1j
    np.testing.assert_allclose(
        forward(right), np.einsum("kpm,mk->pk", matrices, right), rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(
        backward(left), np.einsum("kpm,pk->mk", matrices.conj(), left), rtol=0, atol=1e-11
    )


def test_graded_matrices_keep_their_digits() -> None:
    """A chain of sections of large gain: exact entries matter, and the Schur form alone has lost them."""
    zeros, poles, gain = scipy.signal.butter(40, 0.3, output="zpk")
    system = from_scipy(scipy.signal.ZerosPolesGain([], [], gain, dt=True))
    for pole in poles[poles.imag > 0]:
        section = scipy.signal.ZerosPolesGain([-1.0, -1.0], [pole, pole.conj()], 1.0, dt=True)
        system = series(system, from_scipy(section))
    omega = np.linspace(0.0, 3.0, 64)
    points = np.exp(1j * omega)
    expected = np.array([gain * np.prod(z - zeros) / np.prod(z - poles) for z in points])
    found = frequency_response(system, omega)[:, 0, 0]
    one_by_one = np.array([transfer(system, z)[0, 0] for z in points])
    limit = 10 * np.abs(one_by_one - expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    assert limit < 1e-9
    T, U = scipy.linalg.schur(system.A, output="complex")
    rows, columns = system.C @ U, U.conj().swapaxes(0, 1) @ system.B
    alone = [
        (rows @ scipy.linalg.solve_triangular(z * np.eye(40) - T, columns) + system.D)[0, 0]
        for z in points
    ]
    assert np.abs(alone - expected).max() > 1e-3


@pytest.mark.parametrize("points", [1, 40])
def test_poles_on_the_grid_are_an_error(points: int) -> None:
    omega = np.arange(points) / 8
    for time, pole in ((Continuous(), 0.0), (Discrete(), 1.0)):
        diagonal = DiagonalStateSpace([pole, -0.5], [[1.0]] * 2, [[1.0, 1.0]], time=time)
        for system in (diagonal, diagonal.to_dense()):
            with pytest.raises(UnstableSystemError, match="pole at one of the frequencies"):
                frequency_response(system, omega)
            assert np.all(np.isfinite(frequency_response(system, omega + 0.1)))
    with pytest.raises(ShapeError, match="`omega`"):
        frequency_response(diagonal, [np.nan])


# --- Systems without states


def empty_systems(time: Any, batch: tuple[int, ...] = (), after: bool = False) -> list[Any]:
    D = np.arange(1.0, 7.0).reshape(3, 2) * np.ones((*batch, 1, 1))
    B, C = np.zeros((*batch, 0, 2)), np.zeros((*batch, 3, 0))
    flags: dict[str, Any] = {"time": time, "read_after_update": after}
    return [
        StateSpace(np.zeros((*batch, 0, 0)), B, C, D, **flags),
        DiagonalStateSpace(np.zeros((*batch, 0)), B, C, D, **flags),
        DiagonalStateSpace(np.zeros((*batch, 0)) + 0j, B + 0j, C, D, real_output=True, **flags),
    ]


@pytest.mark.parametrize("time", TIMES)
def test_static_gains(rng: np.random.Generator, time: Any) -> None:
    discrete = isinstance(time, Discrete)
    for after in {False, discrete}:
        for system in empty_systems(time, after=after):
            D = system.D
            assert system.order == 0
            assert system.poles().shape == (0,)
            assert system.is_stable()
            np.testing.assert_array_equal(system.dc_gain(), D)
            np.testing.assert_array_equal(frequency_response(system, [0.0, 1.0]), [D, D])
            np.testing.assert_array_equal(frequency_response(system, np.arange(40.0))[-1], D)
            signal = rng.standard_normal((4, 2))
            where: dict[str, Any] = {} if discrete else {"times": [0.0, 0.1, 0.4, 0.5]}
            np.testing.assert_allclose(simulate(system, signal, **where), signal @ D.swapaxes(0, 1))
            count: dict[str, Any] = {"length": 4} if discrete else where
            np.testing.assert_array_equal(step_response(system, **count), [D] * 4)
            impulse = impulse_response(system, **count)
            np.testing.assert_array_equal(impulse[0], D if discrete else 0 * D)
            assert not impulse[1:].any()
            for method in ("zoh", "bilinear"):
                other: Any = (
                    to_continuous(system, method) if discrete else to_discrete(system, 0.1, method)
                )
                np.testing.assert_array_equal(other.D, D)
            for form in (
                system.to_dense(),
                system.to_host(),
                system.to_standard(),
                diagonalised(system),
                real_form(system),
                transformed(system, np.zeros((0, 0))),
            ):
                assert form.order == 0
                np.testing.assert_array_equal(form.D, D)
            dynamic = random_system(rng, "real dense", time)
            np.testing.assert_allclose(
                transfer(difference(dynamic, system), 2j), transfer(dynamic, 2j) - D
            )
            behind = random_system(rng, "real dense", time, m=3)
            np.testing.assert_allclose(
                transfer(series(system, behind), 2j), transfer(behind, 2j) @ D
            )
            np.testing.assert_array_equal(parallel(system, system).D, 2 * D)
    for system in empty_systems(time, batch=(2,)):
        assert system.is_stable().tolist() == [True, True]
        assert system.dc_gain().shape == (2, 3, 2)
        assert system[1].order == 0
