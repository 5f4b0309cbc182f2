"""Exponentials and held inputs of stiff systems, in any unit and over any step, against mpmath."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import EPS

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace
from ssmreduce.errors import NoConvergenceError, NonFiniteError
from ssmreduce.responses import frequency_response, impulse_response, step_response
from ssmreduce.systems.exact_step import exact_step
from ssmreduce.systems.sampling import to_continuous, to_discrete
from ssmreduce.systems.simulation import simulate
from ssmreduce.systems.time_step import dense_steps

DIGITS = 60
"""Enough for squarings of a block whose norm is 10^17 and whose slow entries are near 1."""


def expected_step(A: Any, B: Any, size: float) -> list[Any]:
    """exp(A h), h φ₁ B and h φ₂ B: blocks of the exponential of [[A, B, 0], [0, 0, 1/h], [0, 0, 0]] h."""
    n, m = B.shape
    with mp.workdps(DIGITS):
        block = mp.zeros(n + 2 * m)
        h = mp.mpf(size)
        for i in range(n):
            for j in range(n):
                block[i, j] = mp.mpmathify(A[i, j].item()) * h
            for j in range(m):
                block[i, n + j] = mp.mpmathify(B[i, j].item()) * h
        for j in range(m):
            block[n + j, n + m + j] = mp.mpf(1)
        power = mp.expm(block, method="taylor")
        values = np.array([[complex(power[i, j]) for j in range(n + 2 * m)] for i in range(n)])
    return np.split(values, [n, n + m], axis=1)


def exact_gain(system: StateSpace) -> Any:
    with mp.workdps(DIGITS):
        A, B, C = (
            mp.matrix([[mp.mpmathify(x.item()) for x in row] for row in np.asarray(M)])
            for M in (system.A, system.B, system.C)
        )
        gain = -C * mp.inverse(A) * B
        values = [[complex(gain[i, j]) for j in range(gain.cols)] for i in range(gain.rows)]
    return np.array(values)


def stiff(rng: np.random.Generator, kind: str, ratio: float, n: int = 4) -> StateSpace:
    """Time constants from 1 down to 1/ratio, in coordinates in which each entry of A counts, or mixed."""
    is_complex = kind.startswith("complex")

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if is_complex else 0.0)

    rates = rng.permutation(ratio ** np.linspace(0.0, 1.0, n))
    poles = -rates * (1.0 + (2j if is_complex else 0.0))
    A = np.diag(poles)
    if kind.endswith("graded"):
        A = A + 0.3 * normal(n, n) * (1.0 - np.eye(n))
    elif kind == "rows":
        A = A + 0.3 * rates[:, None] * normal(n, n) / n
    elif kind == "triangular":
        A = A + np.triu(normal(n, n), 1) * 1e-6 * ratio
    else:
        basis = np.linalg.qr(normal(n, n))[0] * rng.uniform(1.0, 3.0, n)
        A = basis @ A @ np.linalg.inv(basis)
    return StateSpace(A, normal(n, 2), normal(1, n), time=Continuous())


@pytest.mark.parametrize("ratio", [1e8, 1e15])
@pytest.mark.parametrize("kind", ["graded", "complex graded", "rows", "triangular"])
def test_every_state_of_a_stiff_system_has_its_digits(
    rng: np.random.Generator, kind: str, ratio: float
) -> None:
    for size in (0.2, 3.0):
        system = stiff(rng, kind, ratio)
        found = dense_steps(system.A[None], system.B[None], np.array([size]))
        expected = expected_step(system.A, system.B, size)
        # About 50 doublings, each with n rounded terms; some cancel in "rows".
        for value, exact in zip((found.power, found.constant, found.ramp), expected, strict=True):
            limit = 2e3 * EPS * np.abs(exact).max(axis=0)
            assert np.all(np.abs(value[0] - exact) <= limit + np.finfo(float).tiny)
        gain = exact_gain(system)
        sampled = to_discrete(system, size)
        np.testing.assert_allclose(sampled.dc_gain(), gain, atol=2e3 * EPS * np.abs(gain).max())
        slow = np.abs(sampled.poles()).max()
        most = np.abs(np.linalg.eigvals(expected[0])).max()
        np.testing.assert_allclose(slow, most, rtol=2e3 * EPS)


@pytest.mark.parametrize("kind", ["mixed", "complex mixed"])
def test_mixed_states_lose_what_rounding_of_the_matrix_loses(
    rng: np.random.Generator, kind: str
) -> None:
    for ratio in (1e6, 1e12):
        system, size = stiff(rng, kind, ratio), 2.0
        expected = expected_step(system.A, system.B, size)
        found = dense_steps(system.A[None], system.B[None], np.array([size]))
        # ε ‖A‖ in A is ε ‖A‖ h in the exponent of the slow pole; the basis has a condition below 10.
        loss = 100.0 * EPS * (1.0 + size * np.linalg.norm(system.A))
        for value, exact in zip((found.power, found.constant, found.ramp), expected, strict=True):
            assert np.abs(value[0] - exact).max() <= loss * np.abs(exact).max()
        # Where all has decayed the DC gain is that of a linear solve with A.
        gain = to_discrete(system, 1e3).dc_gain()
        loss = 100.0 * EPS * np.linalg.cond(system.A)
        exact_value = exact_gain(system)
        np.testing.assert_allclose(gain, exact_value, atol=loss * np.abs(exact_value).max())


def companion(poles: Any, form: str) -> StateSpace:
    """(1 + s/10)^(n-1)/Π (1 - s/p_i) in controller or observer form."""
    last, zeros = np.poly(poles), np.poly(np.full(len(poles) - 1, -10.0))
    n = len(poles)
    A, B, C = np.eye(n, k=-1), np.zeros((n, 1)), np.zeros((1, n))
    A[0], B[0], C[0] = -last[1:], 1.0, zeros * (last[-1] / zeros[-1])
    if form.startswith("observer"):
        A, B, C = np.swapaxes(A, 0, 1), np.swapaxes(C, 0, 1), np.swapaxes(B, 0, 1)
    if form.endswith("reversed"):
        A, B, C = A[::-1, ::-1], B[::-1], C[:, ::-1]
    return StateSpace(A, B, C, time=Continuous())


@pytest.mark.parametrize("form", ["controller", "observer", "observer reversed"])
@pytest.mark.parametrize("rates", [[5e13, 3e13, 2e13, 1e12, 1.0], [6e13, 2e12, 2e11, 1e11, 1e8, 1]])
def test_companion_forms_of_stiff_systems_keep_the_dc_gain(rates: list[float], form: str) -> None:
    system, size = companion(-np.array(rates), form), 1.0 / 256.0
    sampled = to_discrete(system, size)
    np.testing.assert_allclose(sampled.dc_gain(), 1.0, rtol=1e-11)


def graded_companion(n: int) -> StateSpace:
    """Poles from 1 to 10^5 and zeros at 0.11 times all but the last."""
    poles = -(10.0 ** np.linspace(0.0, 5.0, n))
    A, B = np.eye(n, k=-1), np.eye(n, 1)
    A[0] = -np.poly(poles)[1:]
    return StateSpace(A, B, np.poly(0.11 * poles[:-1])[None], time=Continuous())


def test_stiff_steps_that_rounding_spoils_are_refused() -> None:
    system = graded_companion(25)
    hidden = "25 states in which exp.* Split fast and slow states"
    with pytest.raises(NoConvergenceError, match=hidden):
        to_discrete(system, 0.3)
    with pytest.raises(NoConvergenceError, match=hidden):
        step_response(system, times=[0.0, 0.3])
    with pytest.raises(NoConvergenceError, match=hidden):
        simulate(system, np.ones((2, 1)), times=[0.0, 0.3], hold="linear")
    # An output that does not see the loss.
    fine = StateSpace(system.A, system.B, np.eye(1, 25, 24), time=Continuous())
    assert np.isfinite(to_discrete(fine, 0.3).A).all()


def test_stiff_steps_of_a_batch_are_refused_by_index() -> None:
    system = graded_companion(25)
    outputs = np.stack([np.eye(1, 25, 24), system.C, np.eye(1, 25, 24)]).reshape(3, 1, 1, 25)
    A, B = (np.broadcast_to(x, (3, 1, *x.shape)) for x in (system.A, system.B))
    batch = StateSpace(A, B, outputs, time=Continuous())
    with pytest.raises(NoConvergenceError, match=r"in system\[1, 0\] of the batch .* 25 states"):
        to_discrete(batch, 0.3)


def test_whole_numbers_end_within_seconds_or_are_refused() -> None:
    times = np.cumsum(np.linspace(0.1, 0.3, 1000))
    with pytest.raises(NoConvergenceError, match=r"20 states .* Take evenly spaced times"):
        step_response(graded_companion(20), times=times)


@pytest.mark.parametrize("kind", ["graded", "rows", "complex graded"])
def test_ordinary_stiff_systems_of_many_states_are_stepped(
    rng: np.random.Generator, kind: str
) -> None:
    for size in (0.2, 300.0):
        system = stiff(rng, kind, 1e10, n=40)
        gain = system.dc_gain()
        found = to_discrete(system, size).dc_gain()
        np.testing.assert_allclose(found, gain, atol=1e-8 * np.abs(gain).max())


@pytest.mark.parametrize("value", [1e-310, 1e-320, 1e-310j])
def test_subnormal_inputs_are_held(value: complex) -> None:
    system = StateSpace([[-1.0]], [[value]], [[1.0]], time=Continuous())
    expected = -np.expm1(-1.0) * value
    np.testing.assert_allclose(to_discrete(system, 1.0).B[0, 0], expected, rtol=0, atol=1e-323)


def test_steps_are_taken_wherever_doubles_hold_the_result() -> None:
    for poles, inputs, size in (
        ([-1e10, -1e-12], [[1e300], [1e-300]], 1e10),
        ([-1e-308], [[1.0]], 1e308),
        ([-5e-324], [[1.0]], 1e308),
    ):
        diagonal = DiagonalStateSpace(poles, inputs, np.ones((1, len(poles))), time=Continuous())
        found, expected = (to_discrete(x, size).B for x in (diagonal.to_dense(), diagonal))
        np.testing.assert_allclose(found, expected, rtol=100 * EPS)


@pytest.mark.parametrize("exponents", [[500, -500], [-500, 500]])
def test_huge_units_of_states_change_no_sampled_system(exponents: list[int]) -> None:
    A, B = np.array([[-1.0, 0.5], [0.3, -2.0]]), np.ones((2, 1))
    units = np.ldexp(1.0, exponents)
    plain = StateSpace(A, B, B.T, time=Continuous())
    scaled = StateSpace(
        A * units[:, None] / units, B * units[:, None], B.T / units, time=Continuous()
    )
    for method in ("zoh", "bilinear"):
        one, other = (to_discrete(x, 0.5, method) for x in (plain, scaled))
        np.testing.assert_allclose(other.B / units[:, None], one.B, rtol=100 * EPS)
        np.testing.assert_allclose(to_continuous(other, method).C * units, B.T, rtol=100 * EPS)


def test_whole_numbers_are_right_for_complex_and_unstable_systems(rng: np.random.Generator) -> None:
    A = rng.standard_normal((3, 3)) + 1j * rng.standard_normal((3, 3))
    B = rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2))
    for state, held in ((A, B), (A.real, B)):
        found = exact_step(state, held, 2.0)
        expected = expected_step(state, held, 2.0)
        assert found is not None
        for value, exact, unit in zip(found, expected, (1.0, 2.0, 2.0), strict=True):
            np.testing.assert_allclose(unit * value, exact, rtol=2 * EPS)
    assert exact_step(np.eye(2), np.eye(2), 1e3) is None
    assert exact_step(np.eye(2), np.eye(2), 1e100) is None


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("dt", [1e-300, 1e-8, 1e4, 1e8, 1e12, 1e15, 1e40, 1e300])
def test_the_dc_gain_holds_over_any_step(dt: float, method: Any) -> None:
    system = StateSpace([[-1.0, 3.0], [0.2, -2.0]], [[1.0], [1.0]], [[1.0, 0.0]], time=Continuous())
    sampled = to_discrete(system, dt, method)
    if dt > 1e3:
        np.testing.assert_allclose(sampled.dc_gain(), 25.0 / 7.0, rtol=100 * EPS)
        response = step_response(system, times=[0.0, dt, 2.0 * dt])
        np.testing.assert_allclose(response[1:, 0, 0], 25.0 / 7.0, rtol=100 * EPS)
        assert impulse_response(system, times=[dt])[0, 0, 0] == 0.0
    elif dt < 1e-200:
        # 1 - A_d is lost in A_d, but not B.
        gain = dt if method == "zoh" else np.sqrt(dt)
        np.testing.assert_allclose(sampled.B, gain * np.asarray(system.B), rtol=10 * EPS)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(-40, 40))
def test_units_of_states_and_of_time_change_nothing(
    seed: int, is_complex: bool, time_unit: int
) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if is_complex else 0.0)

    A, B, C = normal(n, n), normal(n, 2), normal(2, n)
    A = A - (1.0 + np.linalg.norm(A, 2)) * np.eye(n)
    units, c = 2.0 ** rng.integers(-20, 21, n), 2.0**time_unit
    plain = StateSpace(A, B, C, time=Continuous())
    scaled = StateSpace(
        A * units[:, None] / units * c, B * units[:, None] * c, C / units, time=Continuous()
    )
    size = float(10.0 ** rng.uniform(-2.0, 3.0))
    times = np.array([0.0, 1.0, 2.5]) * size
    growth = 1.0 + size * np.linalg.norm(A)
    # Rounding in balanced coordinates, which differ by small powers of two: ε ‖A‖ h at most.
    for one, other in (
        (step_response(plain, times=times), step_response(scaled, times=times / c)),
        (impulse_response(plain, times=times), impulse_response(scaled, times=times / c) / c),
        (
            simulate(plain, np.eye(3, 2), times=times, hold="linear"),
            simulate(scaled, np.eye(3, 2), times=times / c, hold="linear"),
        ),
    ):
        assert np.abs(one - other).max() <= 1e3 * EPS * growth * np.abs(one).max()
    for method in ("zoh", "bilinear"):
        one, other = to_discrete(plain, size, method), to_discrete(scaled, size / c, method)
        difference = other.A / units[:, None] * units - one.A
        scale = np.abs(one.A).max() if method == "zoh" else np.linalg.cond(A)
        # Entries next to underflow have few digits.
        assert np.abs(difference).max() <= 1e3 * EPS * growth * scale + 1e-290


def test_companion_forms_are_sampled_like_their_cascades() -> None:
    """A filter at 100 kHz: entries of its companion form range over 10^28."""
    rate = 2e5 * np.pi
    chain = np.array([[-1.0, -1.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    units = rate ** np.arange(3.0)
    companion = StateSpace(
        rate * chain * units / units[:, None],
        [[1.0], [0.0], [0.0]],
        [[0.0, 0.0, rate**3]],
        time=Continuous(),
    )
    normal = StateSpace(chain, [[1.0], [0.0], [0.0]], [[0.0, 0.0, 1.0]], time=Continuous())
    times = np.array([0.0, 1.0, 10.0, 1e3])
    expected = step_response(normal, times=times)
    found = step_response(companion, times=times / rate)
    # times/rate is rounded, which counts |A| t times.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize(
    ("pole", "size"),
    [
        (-1e-300, 1e-20),
        (-1e-160, 1e150),
        (-1e200, 1e150),
        (-1e300, 1e-300),
        (-1e155 + 3e155j, 1e-155),
        (-1e200 + 1e200j, 1e200),
        (-30.0, 1.0),
        (-700.0, 1.0),
        (2e-307, 1e307),
        (-1.0, 5e-324),
    ],
)
def test_one_pole_of_any_size_over_any_step(pole: complex, size: float) -> None:
    with mp.workdps(400):
        p, h = mp.mpmathify(pole), mp.mpf(size)
        power = complex(mp.exp(p * h)) if (p * h).real > -2000 else 0j
        growth = mp.expm1(p * h) if (p * h).real > -2000 else mp.mpf(-1)
        held = complex(growth / p)
    diagonal = DiagonalStateSpace([pole], [[1.0]], [[1.0]], time=Continuous())
    for system in (diagonal, diagonal.to_dense()):
        step = step_response(system, times=[0.0, size])[1, 0, 0]
        # Doublings of a decayed state square its relative error: |λ h| ε, 700 of them at most.
        assert abs(step - held) <= 50 * EPS * abs(held) + 5e-324
        impulse = impulse_response(system, times=[size])[0, 0, 0]
        assert abs(impulse - power) <= 4e3 * EPS * abs(power)


def growing(*, discrete: bool) -> list[Any]:
    pole, time = (3.0, Discrete(0.1)) if discrete else (2.0, Continuous())
    diagonal = DiagonalStateSpace([pole, 0.1], [[1.0]] * 2, [[1.0, 1.0]], time=time)
    return [diagonal, diagonal.to_dense()]


def test_overflow_is_said_to_be_overflow() -> None:
    for system in growing(discrete=False):
        with pytest.raises(NonFiniteError, match=r"`dt` is 1e\+40, with which .* overflows"):
            to_discrete(system, 1e40)
        for response in (step_response, impulse_response):
            with pytest.raises(NonFiniteError, match=r"`times` reaches 1e\+40, .* overflows"):
                response(system, times=[0.0, 1.0, 1e40])
        for hold in ("constant", "linear"):
            with pytest.raises(NonFiniteError, match=r"`times` reaches 400, .* overflows"):
                simulate(system, [[1.0]] * 2, times=[0.0, 400.0], hold=hold)
        with pytest.raises(NonFiniteError, match=r"`times` ends at 1e\+308, whose distance"):
            simulate(system, [[1.0]] * 2, times=[-1e308, 1e308])
    for system in growing(discrete=True):
        for response in (step_response, impulse_response):
            with pytest.raises(NonFiniteError, match=r"1000.* overflows"):
                response(system, 1000)
        with pytest.raises(NonFiniteError, match=r"`inputs` has 1000 rows, .* overflows"):
            simulate(system, np.ones((1000, 1)))


def test_huge_and_tiny_entries_are_computed_with_or_refused() -> None:
    for make in (StateSpace, DiagonalStateSpace):
        poles: Any = [[-1.0]] if make is StateSpace else [-1.0]
        system = make(poles, [[1e200]], [[1e-200]], time=Continuous())
        assert frequency_response(system, [0.0])[0, 0, 0] == pytest.approx(1.0, rel=4 * EPS)
        loud = make(poles, [[1e200]], [[1e200]], time=Continuous())
        with pytest.raises(NonFiniteError, match="transfer function of `system` overflows"):
            frequency_response(loud, [0.0])
        louder = make(poles, [[1e308]], [[1.0]], [[1e308]], time=Continuous())
        with pytest.raises(NonFiniteError, match="transfer function of `system` overflows"):
            frequency_response(louder, [0.0])
        for dt in (5e-324, 1e-310):
            poles = [[0.5]] if make is StateSpace else [0.5]
            fast = make(poles, [[1.0]], [[1.0]], time=Discrete(dt))
            for method in ("zoh", "bilinear"):
                with pytest.raises(NonFiniteError, match=r"`system` has dt=.* overflows"):
                    to_continuous(fast, method)


def test_batches_and_uneven_grids_are_stepped_like_single_ones(rng: np.random.Generator) -> None:
    A = rng.standard_normal((3, 4, 4)) * np.array([1e-3, 1.0, 50.0])[:, None, None]
    A = A - 3.0 * np.abs(A).max(axis=(1, 2), keepdims=True) * np.eye(4)
    B, C = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 1, 4))
    batch = StateSpace(A, B, C, time=Continuous())
    sampled = to_discrete(batch, 0.7)
    for k in range(3):
        alone = to_discrete(batch[k], 0.7)
        np.testing.assert_allclose(sampled.A[k], alone.A, rtol=0, atol=1e3 * EPS)
        limit = 1e3 * EPS * np.abs(alone.B).max()
        np.testing.assert_allclose(sampled.B[k], alone.B, rtol=0, atol=limit)
    times = np.array([0.0, 1.0, 3.0])
    near, far = step_response(batch[1], times=times), step_response(batch[1], times=1e15 + times)
    np.testing.assert_allclose(far, near, rtol=0, atol=100 * EPS * np.abs(near).max())


@pytest.mark.parametrize("rates", [[1.0, 1e4, 1e8, 1e12], [1.0, 1e5, 1e10, 1e14]])
def test_companion_forms_with_inputs_everywhere_keep_their_dc_gain(rates: list[float]) -> None:
    """The solution with A was right in its large entries alone: the gain was off by up to a third."""
    A = np.diag(np.ones(3), -1)
    A[0] = -np.poly(-np.array(rates))[1:]
    B, C = np.array([[0.7], [-1.0], [2.0], [1.5]]), np.array([[1.0, 2.0, -1.0, 0.5]])
    system = StateSpace(A, B, C, time=Continuous())
    gain = system.dc_gain()[0, 0]
    assert abs(to_discrete(system, 1.0).dc_gain()[0, 0] - gain) <= 1e-12 * abs(gain)
    assert abs(step_response(system, times=[0.0, 50.0])[-1, 0, 0] - gain) <= 1e-12 * abs(gain)
