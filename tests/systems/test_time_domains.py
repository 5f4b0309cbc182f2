"""What `Continuous` and `Discrete` know of poles, frequencies and Gramians."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_api_strict import asarray
from samples import EPS

from ssmreduce import Continuous, Discrete, solve_lyapunov
from ssmreduce.time_domain import TimeDomain

TIMES = [Continuous(), Discrete(), Discrete(0.1)]


def stable_poles(time: TimeDomain, rng: np.random.Generator) -> np.ndarray:
    poles = rng.uniform(0.1, 0.9, 6) * np.exp(2j * np.pi * rng.random(6))
    return poles if isinstance(time, Discrete) else (poles - 1.0) / (poles + 1.0)


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_the_boundary_is_where_the_frequencies_are(time: TimeDomain) -> None:
    omega = np.linspace(-3.0, 3.0, 7)
    points = time.point(omega)
    assert abs(time.distance(points)).max() <= EPS
    assert time.point(0.0) == time.steady_point
    assert np.allclose(time.rates(points), 1j * omega, rtol=8 * EPS)


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_stable_poles_lie_inside(time: TimeDomain, rng: np.random.Generator) -> None:
    poles = stable_poles(time, rng)
    assert time.inside(poles).all()
    assert not time.inside(poles, margin=time.distance(poles).max()).any()
    outside = 1.0 / poles if isinstance(time, Discrete) else -poles
    assert not time.inside(outside).any()
    assert (time.rates(poles).real < 0.0).all()


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_a_divisor_is_that_of_a_gramian(time: TimeDomain, rng: np.random.Generator) -> None:
    poles = stable_poles(time, rng)
    gramian = solve_lyapunov(np.diag(poles), np.ones((6, 6)), time=time).value
    divisors = time.divisor(poles[:, None], poles.conj())
    assert np.allclose(divisors * gramian, 1.0, rtol=100 * EPS)
    assert np.allclose(time.decay(time.distance(poles)), divisors.diagonal(), rtol=100 * EPS)
    residual = time.lyapunov(np.diag(poles), gramian) + 1.0
    size = time.lyapunov_size(np.linalg.norm(poles)) * np.linalg.norm(gramian)
    assert np.linalg.norm(residual) <= 10 * EPS * size


def test_logarithms_keep_the_digits_of_slow_poles() -> None:
    time, logarithms = Discrete(), np.array([-1e-20 + 1j, -1e-16, -5.0])
    poles = np.exp(logarithms)
    assert time.inside(poles, logarithms=logarithms).all()
    distance = time.distance(poles, logarithms)
    assert np.allclose(distance, [1e-20, 1e-16, 1.0 - np.exp(-5.0)], rtol=8 * EPS, atol=0.0)
    pair = (logarithms, logarithms.conj())
    divisors = time.divisor(poles, poles.conj(), pair)
    assert np.allclose(divisors, [2e-20, 2e-16, 1.0 - np.exp(-10.0)], rtol=8 * EPS, atol=0.0)


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_arrays_of_other_libraries(time: TimeDomain, rng: np.random.Generator) -> None:
    poles = stable_poles(time, rng)
    logarithms = np.log(poles) if isinstance(time, Discrete) else poles
    for place in (asarray, jnp.asarray):
        there = place(poles)
        pair = (place(logarithms), place(logarithms.conj()))
        assert np.allclose(np.asarray(time.distance(there)), time.distance(poles))
        found = np.asarray(time.divisor(there, place(poles.conj()), pair))
        assert np.allclose(found, time.divisor(poles, poles.conj()))
    traced = jax.jit(lambda x: time.inside(x) & (time.growth(x) < time.steady_point))
    assert traced(jnp.asarray(poles)).all()


@pytest.mark.parametrize("time", TIMES, ids=repr)
def test_time_domains_are_values(time: TimeDomain) -> None:
    copy = pickle.loads(pickle.dumps(time))
    assert copy == time
    assert hash(copy) == hash(time)
    assert [time == other for other in TIMES].count(True) == 1
