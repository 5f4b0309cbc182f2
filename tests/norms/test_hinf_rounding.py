"""Measured and certified errors where rounding is large: against 50 digits, in any units and coordinates."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_truncation,
    hinf_norm,
)
from ssmreduce.errors import NoConvergenceError, UnreachableToleranceError
from ssmreduce.norms import certified_difference, finite_horizon_difference, hinf_difference
from ssmreduce.norms.gain import Gain
from ssmreduce.norms.refined import RefinedGain
from ssmreduce.norms.units import in_units
from ssmreduce.responses import frequency_response
from ssmreduce.systems.diagonal import System


def exact_gain(system: System, omega: float) -> mp.mpc:
    """C (z - A)⁻¹ B of one input and output in 50 digits, times z if read after the update."""
    if isinstance(system, DiagonalStateSpace):
        system = system.to_dense()
    with mp.workdps(50):
        z = mp.expj(omega) if isinstance(system.time, Discrete) else mp.mpc(0, omega)
        shifted = z * mp.eye(system.order) - mp.matrix(system.A.tolist())
        states = mp.lu_solve(shifted, mp.matrix(system.B.tolist()))
        value = (mp.matrix(system.C.tolist()) * states)[0]
        return z * value if system.read_after_update else value


def exact_error(first: System, second: System, omegas: list[float]) -> float:
    with mp.workdps(50):
        return max(float(abs(exact_gain(first, w) - exact_gain(second, w))) for w in omegas)


def delay_line() -> StateSpace:
    """Three delays behind a pole that is 1e-8 from the circle."""
    A = np.eye(4, k=-1)
    A[0, 0] = 0.99999999
    return StateSpace(A, [[1e-8], [0], [0], [0]], [[0, 0, 0, 1.0]], time=Discrete())


def resonance() -> StateSpace:
    """A mode of gain 5e8 beside four slow ones, in mixed coordinates."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    L = np.diag([-1e-3, -1e-3, -5.0, -6, -7, -9])
    L[0, 1], L[1, 0] = 789, -789
    B, C = np.array([[1e3], [0], [1], [1], [1], [1]]), np.array([[1e3, 0, 1, -2, 3, -1]])
    return StateSpace(Q @ L @ Q.swapaxes(0, 1), Q @ B, C @ Q.swapaxes(0, 1), time=Continuous())


def test_a_visible_error_is_measured_beside_a_pole_near_the_circle() -> None:
    reduction = balanced_truncation(delay_line(), 3)
    true = exact_error(reduction.original, reduction.system, [0.0])
    measured, certified = reduction.verify(), reduction.verify(certified=True)
    assert measured == pytest.approx(true, rel=1e-6)
    assert max(true, measured) <= certified <= 100 * true


def test_rounding_at_a_resonance_is_no_excuse_elsewhere() -> None:
    reduction = balance(resonance()).truncate(3)
    near = [789.0 + 1e-4 * k for k in range(-3, 4)]
    true = exact_error(reduction.original, reduction.system, [0.0, 3.0, 7.0, *near])
    measured, certified = reduction.verify(), reduction.verify(certified=True)
    assert measured == pytest.approx(true, rel=0.02)
    assert max(true, measured) <= certified <= 100 * true


@pytest.mark.parametrize("seed", range(6))
def test_gains_of_a_difference_are_right_to_what_is_said_of_their_rounding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = resonance() if seed % 2 else delay_line()
    units = 2.0 ** rng.integers(-20, 21, system.order)
    system = StateSpace(
        system.A * units[:, None] / units,
        system.B * units[:, None],
        system.C / units,
        time=system.time,
    )
    # The same map but for a rounding of every entry.
    other = StateSpace(
        system.A * (1 + 1e-15 * rng.standard_normal(system.A.shape)),
        system.B,
        system.C,
        time=system.time,
    )
    (one, two), found = in_units([system, other])
    omega = np.array([0.0, 0.1, 3.0] if seed % 2 == 0 else [0.0, 7.0, 789.0])
    values, rounding = RefinedGain(Gain((1.0, one), (-1.0, two))).matrices(omega / 2.0**found.time)
    for w, value, bound in zip(omega.tolist(), np.abs(values[:, 0, 0]), rounding, strict=True):
        # exp(iω) is a double to both.
        rotation = 1e-14 if isinstance(system.time, Discrete) and w else 0.0
        true = exact_error(system, other, [w])
        assert abs(value * 2.0**found.gain - true) <= bound * 2.0**found.gain + rotation * true
        assert bound <= 1e-6 * value


@pytest.mark.parametrize("real_output", [False, True])
def test_certified_errors_of_layers_near_the_circle_lie_above_the_true_ones(
    real_output: bool,
) -> None:
    poles = (1 - np.array([1e-8, 1e-6, 1e-4, 0.1])) * np.exp(1j * np.array([0.3, 1.0, 2.0, 0.7]))
    C = np.array([[1e-6, 1e-4, 1e-2, 1.0]])
    layer = DiagonalStateSpace(
        *(poles, np.ones((4, 1)), C),
        time=Discrete(),
        real_output=real_output,
        read_after_update=True,
    )
    reduction = balanced_truncation(layer, 3)
    measured, certified = reduction.verify(), reduction.verify(certified=True)
    omega = [*np.angle(poles).tolist(), *np.linspace(0.0, math.pi, 30).tolist()]
    true = exact_error(layer, reduction.system, omega)
    assert true * (1 - 1e-6) <= measured <= certified


@pytest.mark.parametrize("batched", [False, True])
def test_units_of_states_time_inputs_and_outputs_do_not_matter(batched: bool) -> None:
    rng = np.random.default_rng(3)
    A = rng.standard_normal((6, 6)) - 4 * np.eye(6)
    B, C = rng.standard_normal((6, 2)), rng.standard_normal((2, 6))
    plain, less = StateSpace(A, B, C, time=Continuous()), (slice(0, 4), slice(0, 4))
    units = 2.0 ** rng.integers(-20, 21, 6)
    for time, gain in ((2.0**40, 2.0**-30), (2.0**-40, 2.0**200), (2.0**500, 2.0**500)):
        other = StateSpace(
            time * A * units[:, None] / units,
            time * B * units[:, None],
            gain * C / units,
            time=Continuous(),
        )
        one, two = hinf_norm(plain, certified=True), hinf_norm(other, certified=True)
        if batched:
            stack = StateSpace(other.A[None], other.B[None], other.C[None], time=Continuous())
            two = hinf_norm(stack, certified=True)
        # Balancing may end in other units of the states, and rounding with it.
        assert two.lower == pytest.approx(gain * one.lower, rel=1e-12)
        assert two.upper == pytest.approx(gain * one.upper, rel=1e-12)
        assert two.frequency == pytest.approx(time * one.frequency, rel=1e-6)
        cut, other_cut = (
            StateSpace(x.A[less], x.B[:4], x.C[:, :4], time=Continuous()) for x in (plain, other)
        )
        measured, certified = hinf_difference(plain, cut), certified_difference(plain, cut)
        assert hinf_difference(other, other_cut) == pytest.approx(gain * measured, rel=1e-12)
        again = certified_difference(other, other_cut)
        assert again.upper == pytest.approx(gain * certified.upper, rel=1e-12)


@pytest.mark.parametrize("time", [Continuous(), Discrete()])
@pytest.mark.parametrize(("inputs", "outputs"), [(1e155, 1.0), (1e-155, 1e-100), (1e200, 1e-200)])
def test_entries_whose_squares_overflow_have_a_norm(
    time: Continuous | Discrete, inputs: float, outputs: float
) -> None:
    pole = 0.5 if isinstance(time, Discrete) else -0.5
    A = [[pole, 0.0], [0.0, pole]]
    system = StateSpace(A, [[inputs], [1.0]], [[outputs, 1.0]], time=time)
    norm = hinf_norm(system, certified=True)
    assert norm.lower == pytest.approx(2.0 * (inputs * outputs + 1.0), rel=1e-12)
    assert norm.lower <= norm.upper <= 1.00001 * norm.lower
    static = StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), time=time)
    assert hinf_difference(system, static) == pytest.approx(norm.lower, rel=1e-9)
    assert certified_difference(system, static).upper >= norm.lower
    if isinstance(time, Discrete):
        assert (
            0.9 * norm.lower <= finite_horizon_difference(system, static, 60) <= 1.001 * norm.lower
        )


@pytest.mark.parametrize("size", [1e160, 1e-170])
def test_a_norm_that_no_double_holds_is_refused(size: float) -> None:
    system = StateSpace([[0.5]], [[size]], [[size]], time=Discrete())
    static = StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), time=Discrete())
    for call in (
        lambda: hinf_norm(system),
        lambda: hinf_norm(system, certified=True),
        lambda: hinf_difference(system, static),
        lambda: certified_difference(system, static),
        lambda: finite_horizon_difference(system, static, 10),
    ):
        with pytest.raises(UnreachableToleranceError, match="doubles"):
            call()


def test_an_output_that_overflows_within_the_horizon_is_refused() -> None:
    one, two = (StateSpace([[x]], [[1.0]], [[1.0]], time=Discrete()) for x in (3.0, 2.0))
    with pytest.raises(NoConvergenceError, match="`horizon`"):
        finite_horizon_difference(one, two, 2000)


def test_errors_of_graded_systems_are_theirs() -> None:
    """Rates 1e13 apart: eigenvectors knew the slow pole to eps ‖A‖, and the error was off by nine orders."""
    A = [[-1.0, -0.45624884378821484], [0.28499659257574395, -10158801471821.78]]
    B, C = [[1.3160900159473519], [-0.14657058160021563]], [[1.693590072689526, 1.2241993137726308]]
    reduction = balanced_truncation(StateSpace(A, B, C, time=Continuous()), 1)
    measured = reduction.verify()
    # 1.8e-14 by mpmath, 60 digits; rounding of the cut is a few percent of that.
    assert 0.5 * reduction.error_bound <= measured <= 2.0 * reduction.error_bound
    assert measured <= reduction.verify(certified=True) <= 2.0 * measured


@pytest.mark.parametrize("slow", [1e-15, 5e-17, 1e-18])
def test_the_norm_of_a_slow_system_is_its_dc_gain(slow: float) -> None:
    A = [[-slow, 1e-3 * slow], [1e-3, -1.0]]
    system = StateSpace(A, np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
    norm, gain = hinf_norm(system, certified=True), system.dc_gain()[0, 0]
    assert norm.lower == pytest.approx(gain, rel=1e-9)
    assert gain <= norm.upper <= 1.00001 * gain


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("seed", [26, 32])
def test_lower_triangular_chains_of_many_rates_keep_their_digits(seed: int, permuted: bool) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    A = np.tril(rng.standard_normal((n, n)), -1) - np.diag(10.0 ** rng.uniform(-6.0, 6.0, n))
    if permuted:
        order = rng.permutation(n)
        A = A[np.ix_(order, order)]
    system = StateSpace(
        A, rng.standard_normal((n, 1)), rng.standard_normal((1, n)), time=Continuous()
    )
    omega = np.concatenate([[1e-9], np.geomspace(1e-8, 1e7, 31)])
    exact = np.array([complex(exact_gain(system, w)) for w in omega])
    np.testing.assert_allclose(frequency_response(system, omega)[:, 0, 0], exact, rtol=1e-9)
    for certified in (False, True):
        norm = hinf_norm(system, certified=certified)
        at = float(abs(exact_gain(system, float(norm.frequency))))
        assert norm.lower == pytest.approx(at, rel=1e-9)
        assert norm.upper >= np.abs(exact).max()
