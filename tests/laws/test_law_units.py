"""The law of units: a change of states by powers of two changes no answer but by rounding.

x = S z with S = diag(2^k), |k| ≤ 20, rounds nothing in A, B, C: (S⁻¹ A S, S⁻¹ B, C S) is the same map. So
must be what each public function says of it; Gramians, factors and bases follow as P → S⁻¹ P S⁻¹. Companion
forms are the everyday case of badly scaled states.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption
from samples import Array, adjoint

import ssmreduce as sr
from ssmreduce import Continuous, Discrete, SSMReduceError, StateSpace, errors
from ssmreduce.adapters.control import from_control, to_control
from ssmreduce.adapters.scipy_signal import from_scipy, to_scipy
from ssmreduce.equations.solvers import BartelsStewart, Hammarling, MatrixSign, SmithDoubling
from ssmreduce.gramians.frequency import frequency_limited_factors
from ssmreduce.gramians.weighted import weighted_factors
from ssmreduce.norms import certified_difference, finite_horizon_difference, hinf_difference
from ssmreduce.regularizers import hankel_nuclear_norm
from ssmreduce.testing import assert_stable, assert_systems_close, state_spaces

LARGEST = 20
"""Largest exponent of two."""

TOLERANCE = 1e-8
"""Relative to the largest number in an answer, or the largest gain. Poles lie 0.1 or more from the boundary,
cuts have gaps of 1e-2, eigenvectors a condition of 1e4 at most: that leaves four digits of margin."""

LOCAL_OPTIMUM = 1e-2
"""The same for an iteration that stops near to a local optimum."""

Answer = Callable[[StateSpace, Array], Any]
"""What a function says of a system in units S (a column); the states of matrices in it are taken back."""


def scaled(system: StateSpace, units: Array) -> StateSpace:
    """The same map in states x = S z."""
    return StateSpace(
        system.A * adjoint(units) / units,
        system.B / units,
        system.C * adjoint(units),
        system.D,
        time=system.time,
        read_after_update=system.read_after_update,
    )


def grid(system: StateSpace) -> Array:
    if isinstance(system.time, Discrete):
        return np.linspace(0.0, np.pi, 9)
    return np.concatenate([[0.0], np.geomspace(0.05, 50.0, 8)])


def response(system: Any) -> Array:
    """The map of a system, as numbers."""
    return sr.frequency_response(system, grid(system))


def cut_order(system: StateSpace) -> int:
    """An order with a gap below it."""
    hsv = sr.hankel_singular_values(system)
    for order in range(system.order - 1, 0, -1):
        if hsv[order] < 0.99 * hsv[order - 1] and hsv[order - 1] > 1e-4 * hsv[0]:
            return order
    assume(False)
    raise AssertionError


def reduced(make: Callable[[StateSpace, int], sr.Reduction]) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        found = make(system, cut_order(system))
        bound = np.zeros(0) if found.error_bound is None else found.error_bound
        parts = [response(found.system), bound, found.verify(), found.hsv]
        if found.left is not None and found.right is not None:
            parts.append((found.right * units) @ adjoint(found.left / units))
        return parts

    return answer


def with_unstable(system: StateSpace) -> StateSpace:
    """The system in parallel with an unstable one."""
    pole = [[1.5]] if isinstance(system.time, Discrete) else [[0.5]]
    other = StateSpace(
        pole,
        np.ones((1, system.inputs)),
        np.ones((system.outputs, 1)),
        time=system.time,
        read_after_update=system.read_after_update,
    )
    return sr.parallel(system, other)


def kept_unstable(make: Callable[[StateSpace, int], sr.Reduction]) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        found = make(with_unstable(system), cut_order(system) + 1)
        return [response(found.system), found.error_bound, found.unstable]

    return answer


def modal(system: StateSpace, units: Array) -> Any:
    dominance = sr.modal_truncation(system, system.order).scores
    finite = dominance[np.isfinite(dominance)]
    order = next(
        (k for k in range(1, finite.size) if finite[k] < 0.99 * finite[k - 1]), system.order
    )
    found = sr.modal_truncation(system, order)
    return [response(found.system), found.error_bound, finite]


def parts_of_split(system: StateSpace, units: Array) -> Any:
    split = sr.split_unstable(with_unstable(system))
    return [response(split.stable), response(split.unstable), split.unstable_count]


def gramian(make: Callable[[StateSpace], Array], *, seen: bool = False) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        P = make(system)
        return P / units / adjoint(units) if seen else P * units * adjoint(units)

    return answer


def factors(make: Callable[[StateSpace], tuple[Array, Array]]) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        Z, Y = make(system)
        Z, Y = Z * units, Y / units
        return [Z @ adjoint(Z), Y @ adjoint(Y)]

    return answer


def lyapunov(solver: Any) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        found = sr.solve_lyapunov(
            system.A, system.B @ adjoint(system.B), time=system.time, solver=solver
        )
        return [found.value * units * adjoint(units), found.status == "success"]

    return answer


def lyapunov_factor(solver: Any) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        found = sr.solve_lyapunov_factor(system.A, system.B, time=system.time, solver=solver)
        Z = found.value * units
        return [Z @ adjoint(Z), found.status == "success"]

    return answer


def weight(system: StateSpace, size: int) -> StateSpace:
    pole = 0.4 if isinstance(system.time, Discrete) else -0.6
    eye = np.eye(size)
    return StateSpace(pole * eye, eye, eye, 0.1 * eye, time=system.time)


def norm(system: StateSpace, units: Array) -> Any:
    found = sr.hinf_norm(system, certified=True)
    return [found.lower, found.upper]


def in_the_other_time(method: str) -> Answer:
    def answer(system: StateSpace, units: Array) -> Any:
        if isinstance(system.time, Continuous):
            return response(sr.to_discrete(system, 0.3, method))
        return response(sr.to_continuous(system, method))

    return answer


def minimal(system: StateSpace, units: Array) -> Any:
    hsv = sr.hankel_singular_values(system)
    assume(hsv[-1] > 1e-6 * hsv[0])
    found = sr.minimal_realisation(sr.parallel(system, system))
    return [found.order, response(found.system)]


def sequence(system: StateSpace, hold: str) -> Any:
    signal = np.random.default_rng(3).standard_normal((7, system.inputs))
    if isinstance(system.time, Discrete):
        return sr.simulate(system, signal)
    times = np.array([0.0, 0.1, 0.3, 0.4, 1.0, 2.0, 5.0])
    return sr.simulate(system, signal, times=times, hold=hold)


def over_time(function: Callable[..., Array], system: StateSpace) -> Array:
    if isinstance(system.time, Discrete):
        return function(system, 7)
    return function(system, times=np.array([0.0, 0.2, 0.4, 1.0, 3.0]))


def smaller(system: StateSpace) -> StateSpace:
    return sr.balance(system).truncate(cut_order(system)).system


def transformed(system: StateSpace, units: Array) -> Any:
    T = np.random.default_rng(5).standard_normal((system.order, system.order))
    there = sr.transformed(system, T / units)
    return [there.A, there.B, there.C]


def is_real(system: StateSpace) -> bool:
    return not any(np.iscomplexobj(x) for x in (system.A, system.B, system.C, system.D))


def discrete_only(answer: Answer) -> Answer:
    def checked(system: StateSpace, units: Array) -> Any:
        assume(isinstance(system.time, Discrete))
        return answer(system, units)

    return checked


def continuous_only(answer: Answer) -> Answer:
    def checked(system: StateSpace, units: Array) -> Any:
        assume(isinstance(system.time, Continuous))
        return answer(system, units)

    return checked


def separated_poles(answer: Answer) -> Answer:
    """For answers by eigenvectors."""

    def checked(system: StateSpace, units: Array) -> Any:
        poles = np.linalg.eigvals(system.A)
        gaps = np.abs(poles[:, None] - poles) + np.eye(system.order)
        assume(gaps.min() > 1e-2)
        return answer(system, units)

    return checked


ANSWERS: dict[str, Answer] = {
    "poles": lambda s, u: np.poly(s.poles()),
    "is_stable": lambda s, u: [s.is_stable(), s.is_stable(0.05), with_unstable(s).is_stable()],
    "dc_gain": lambda s, u: s.dc_gain(),
    "to_standard": lambda s, u: response(s.to_standard()),
    "frequency_response": lambda s, u: response(s),
    "impulse_response": lambda s, u: over_time(sr.impulse_response, s),
    "step_response": lambda s, u: over_time(sr.step_response, s),
    "simulate": lambda s, u: sequence(s, "constant"),
    "simulate, linear": continuous_only(lambda s, u: sequence(s, "linear")),
    "series": lambda s, u: response(sr.series(s, weight(s, s.outputs))),
    "parallel": lambda s, u: (
        response(sr.parallel(s, weight(s, s.outputs))) if s.inputs == s.outputs else np.zeros(0)
    ),
    "difference": lambda s, u: np.abs(response(sr.difference(s, smaller(s)))),
    "transformed": transformed,
    "diagonalised": separated_poles(
        lambda s, u: [response(sr.diagonalised(s)), np.poly(sr.diagonalised(s).poles()).real]
    ),
    "real_form": separated_poles(
        lambda s, u: (
            response(
                sr.real_form(StateSpace(s.A + 0j, s.B, s.C, s.D, time=s.time) if is_real(s) else s)
            )
            if is_real(s)
            else np.zeros(0)
        )
    ),
    "to_discrete and to_continuous, zoh": in_the_other_time("zoh"),
    "to_discrete and to_continuous, bilinear": in_the_other_time("bilinear"),
    "to_scipy": lambda s, u: response(from_scipy(to_scipy(s))) if is_real(s) else np.zeros(0),
    "to_control": lambda s, u: response(from_control(to_control(s))) if is_real(s) else np.zeros(0),
    "solve_lyapunov": lyapunov(BartelsStewart()),
    "solve_lyapunov, doubling": lyapunov(SmithDoubling()),
    "solve_lyapunov, sign": continuous_only(lyapunov(MatrixSign())),
    "solve_lyapunov_factor": lyapunov_factor(Hammarling()),
    "solve_lyapunov_factor, doubling": lyapunov_factor(SmithDoubling()),
    "solve_lyapunov_factor, sign": continuous_only(lyapunov_factor(MatrixSign())),
    "controllability_gramian": gramian(sr.controllability_gramian),
    "observability_gramian": gramian(sr.observability_gramian, seen=True),
    "controllability_gramian, horizon": discrete_only(
        gramian(lambda s: sr.controllability_gramian(s, horizon=5))
    ),
    "frequency_limited_factors": factors(lambda s: frequency_limited_factors(s, (0.2, 2.0))),
    "weighted_factors": factors(
        lambda s: weighted_factors(s, weight(s, s.inputs), weight(s, s.outputs))
    ),
    "hankel_singular_values": lambda s, u: sr.hankel_singular_values(s),
    "hankel_singular_values, horizon": discrete_only(
        lambda s, u: sr.hankel_singular_values(s, horizon=6)
    ),
    "h2_norm": lambda s, u: sr.h2_norm(StateSpace(s.A, s.B, s.C, time=s.time)),
    "hankel_norm": lambda s, u: sr.hankel_norm(s),
    "hinf_norm": norm,
    "hinf_difference": lambda s, u: hinf_difference(s, smaller(s)),
    "certified_difference": lambda s, u: certified_difference(s, smaller(s)).lower,
    "finite_horizon_difference": discrete_only(
        lambda s, u: finite_horizon_difference(s, smaller(s), 6)
    ),
    "hankel_nuclear_norm": lambda s, u: hankel_nuclear_norm(s),
    "balanced_truncation": reduced(sr.balanced_truncation),
    "singular_perturbation": reduced(sr.singular_perturbation),
    "balance in a band": lambda s, u: sr.balance(s, band=(0.2, 2.0)).hsv,
    "balance with weights": lambda s, u: (
        sr.balance(s, input_weight=weight(s, s.inputs), output_weight=weight(s, s.outputs)).hsv
    ),
    "balance in a horizon": discrete_only(
        lambda s, u: response(sr.balance(s, horizon=6).truncate(cut_order(s)).system)
    ),
    "keep_unstable": kept_unstable(lambda s, r: sr.balanced_truncation(s, r, keep_unstable=True)),
    "keep_unstable, DC matching": kept_unstable(
        lambda s, r: sr.singular_perturbation(s, r, keep_unstable=True)
    ),
    "split_unstable": parts_of_split,
    "modal_truncation": separated_poles(modal),
    "balanced_realisation": lambda s, u: response(sr.balanced_realisation(s)),
    "minimal_realisation": minimal,
    "minimal_realisation, unstable": lambda s, u: response(
        sr.minimal_realisation(with_unstable(s)).system
    ),
}


def outcome(answer: Answer, system: StateSpace, units: Array) -> Any:
    """An answer, or the type of the refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.ScalingWarning)
            return answer(system, units)
    except SSMReduceError as error:
        return type(error)


def assert_same(found: Any, expected: Any, tolerance: float, gain: float = 0.0) -> None:
    """Equal to `tolerance` times the largest number expected, or the gain of the system."""
    if isinstance(expected, list):
        assert isinstance(found, list), (found, expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance, gain)
    elif isinstance(expected, type) or isinstance(found, type):
        assert found is expected
    else:
        found, expected = np.asarray(found), np.asarray(expected)
        assert found.shape == expected.shape
        scale = np.abs(expected).max(initial=gain) if expected.dtype.kind in "fc" else 0.0
        assert np.abs(found * 1.0 - expected).max(initial=0.0) <= tolerance * scale


@st.composite
def systems_and_units(draw: st.DrawFn) -> tuple[StateSpace, Array]:
    dtype = draw(st.sampled_from(["float64", "complex128"]))
    system = draw(
        state_spaces(
            order=(2, 5), margin=0.1, departure=1.0, dtype=dtype, inputs=(1, 2), outputs=(1, 2)
        )
    )
    n = system.order
    exponents = draw(st.lists(st.integers(-LARGEST, LARGEST), min_size=n, max_size=n))
    return system, np.ldexp(1.0, np.array(exponents))[:, None]


def check_law(name: str, system: StateSpace, units: Array) -> None:
    assume(sr.hankel_singular_values(system)[0] > 1e-3)
    # States that rounding alone couples have no units that A could tell.
    sizes = np.abs(system.A[system.A != 0.0])
    assume(sizes.min() > 1e-12 * sizes.max())
    expected = outcome(ANSWERS[name], system, np.ones_like(units))
    found = outcome(ANSWERS[name], scaled(system, units), units)
    assert_same(found, expected, TOLERANCE, float(np.abs(response(system)).max()))


@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=6)
@given(case=systems_and_units())
def test_answers_do_not_depend_on_the_units_of_the_states(
    name: str, case: tuple[StateSpace, Array]
) -> None:
    check_law(name, *case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=25)
@given(case=systems_and_units())
def test_answers_do_not_depend_on_the_units_of_the_states_of_many(
    name: str, case: tuple[StateSpace, Array]
) -> None:
    check_law(name, *case)


@given(case=systems_and_units())
def test_a_local_optimum_does_not_depend_on_the_units_of_the_states(
    case: tuple[StateSpace, Array],
) -> None:
    system, units = case
    order = cut_order(system)
    expected = sr.h2_optimal(system, order).h2_error
    found = sr.h2_optimal(scaled(system, units), order).h2_error
    scale = sr.h2_norm(StateSpace(system.A, system.B, system.C, time=system.time))
    assert abs(found - expected) <= LOCAL_OPTIMUM * expected + TOLERANCE * scale


@given(case=systems_and_units())
def test_assertions_do_not_depend_on_the_units_of_the_states(
    case: tuple[StateSpace, Array],
) -> None:
    system, units = case
    other = scaled(system, units)
    assert_stable(other)
    assert_systems_close(other, system)


EXTREMES = [1e-323, 1e-300, 1e-200, 1e-155, 1e155, 1e200, 1e300, 1e307]


def extreme(size: float, where: str, seed: int) -> StateSpace:
    """A stable system of three states, with extreme numbers in some of its entries."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((3, 3))
    A *= 0.9 / np.abs(np.linalg.eigvals(A)).max()
    A -= np.eye(3) * (seed % 2)
    B, C, D = rng.standard_normal((3, 2)), rng.standard_normal((2, 3)), rng.standard_normal((2, 2))
    parts = {
        "B": B,
        "D": D,
        "a row of B": B[0],
        "a column of C": C[:, 1],
        "an input": B[:, 0],
        "a coupling": A[0, 1:2],
    }
    parts[where] *= size if where != "a coupling" else min(size, 1.0 / size)
    return StateSpace(A, B, C, D, time=sr.Continuous() if seed % 2 else sr.Discrete())


@pytest.mark.parametrize("name", ANSWERS)
def test_extreme_numbers_end_in_finite_ones_or_in_a_word(name: str) -> None:
    """Gramians that the test itself makes of factors may overflow."""
    places = ["B", "D", "a row of B", "a column of C", "an input", "a coupling"]
    for seed, (size, where) in enumerate(product(EXTREMES, places)):
        found: Any = None
        system = extreme(size, where, seed)
        with warnings.catch_warnings(record=True) as caught, suppress(UnsatisfiedAssumption):
            warnings.simplefilter("always")
            found = outcome(ANSWERS[name], system, np.ones((3, 1)))
        inside = [str(w) for w in caught if "ssmreduce/" in w.filename.replace("\\", "/")]
        assert not [w for w in inside if "RuntimeWarning" in w], (size, where)
        if found is not None and "factor" not in name and not isinstance(found, type):
            for part in found if isinstance(found, list) else [found]:
                assert np.all(np.isfinite(np.asarray(part))), (size, where, found)


def test_every_public_function_of_a_system_is_under_the_law() -> None:
    """By the names of its parameters; functions of layers and trainings end in these."""
    exempt = {
        "balance",  # under four names
        "error_bounds",  # takes values
        "h2_optimal",  # has a law of its own
        "select_states",  # of diagonal systems, whose units round nothing
        "write_system",
    }
    covered = {word for name in ANSWERS for word in name.replace(",", " ").split()}
    for name in sr.__all__:
        function = getattr(sr, name)
        if inspect.isfunction(function) and {"system", "first", "A"} & set(
            inspect.signature(function).parameters
        ):
            assert name in covered | exempt, f"{name} is not under the law of units"


# --- Companion forms

FILTERS = {
    "low-pass of order 2": ("butter", (2,), "lowpass"),
    "low-pass of order 3": ("butter", (3,), "lowpass"),
    "low-pass of order 6": ("butter", (6,), "lowpass"),
    "high-pass": ("butter", (4,), "highpass"),
    "band-pass": ("butter", (2,), "bandpass"),
    "with ripple": ("cheby1", (5, 1.0), "lowpass"),
    "with zeros": ("ellip", (4, 1.0, 40.0), "lowpass"),
}


def designed(name: str, hertz: float) -> tuple[StateSpace, StateSpace]:
    """A filter as a companion form, and in sections from its poles and zeros; digital where hertz is 0."""
    kind, arguments, band = FILTERS[name]
    analog = hertz > 0.0
    corner = 2.0 * np.pi * hertz if analog else 0.3
    edges = [0.5 * corner, 1.5 * corner] if band == "bandpass" else corner
    design = getattr(scipy.signal, kind)
    rate = {} if analog else {"dt": True}
    tf = design(*arguments, edges, band, analog=analog)
    zpk = design(*arguments, edges, band, analog=analog, output="zpk")
    return (
        from_scipy(scipy.signal.TransferFunction(*tf, **rate)),
        from_scipy(scipy.signal.ZerosPolesGain(*zpk, **rate)),
    )


@pytest.mark.parametrize("hertz", [0.0, 1e-3, 1.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("name", FILTERS)
def test_companion_forms_give_what_sections_give(name: str, hertz: float) -> None:
    companion, sections = designed(name, hertz)
    order, analog = sections.order, hertz > 0.0
    assert companion.order == order
    rate = 2.0 * np.pi * hertz if analog else 1.0
    omega = rate * np.geomspace(0.05, 20.0 if analog else 3.0, 12)
    kept = order // 2 + order % 2 if order > 2 else 1
    pole = [[0.0]] if analog else [[1.0]]
    integrator = StateSpace(pole, [[rate]], [[1.0]], time=companion.time)

    def answers(system: StateSpace) -> list[Any]:
        integrated = sr.series(system, integrator)
        unstable = sr.balanced_truncation(integrated, order, keep_unstable=True)
        cuts = [
            sr.balanced_truncation(system, kept),
            sr.singular_perturbation(system, kept),
        ]
        strictly_proper = StateSpace(system.A, system.B, system.C, time=system.time)
        found = [
            sr.minimal_realisation(system).order,
            sr.split_unstable(system).unstable_count,
            sr.split_unstable(integrated).unstable_count,
            [sr.frequency_response(cut.system, omega) for cut in cuts],
            [cut.verify() for cut in cuts],
            sr.frequency_response(unstable.system, omega),
            sr.frequency_response(sr.diagonalised(system), omega),
            sr.hankel_singular_values(system),
            sr.balance(system, band=(0.1 * rate, rate)).hsv,
            sr.modal_truncation(system, sr.HankelMass(0.5)).error_bound,
            [sr.h2_norm(strictly_proper), float(sr.hinf_norm(system)), system.dc_gain()],
        ]
        if analog:
            step, times = 0.2 / rate, np.linspace(0.0, 5.0 / rate, 6)
            sampled = [sr.to_discrete(system, step, method) for method in ("zoh", "bilinear")]
            found += [
                sr.step_response(system, times=times),
                sr.impulse_response(system, times=times) / rate,
                sr.simulate(system, np.sin(np.arange(6.0))[:, None], times=times, hold="linear"),
                [sr.frequency_response(each, omega * step) for each in sampled],
                sr.frequency_response(sr.to_continuous(sampled[1], "bilinear"), omega),
            ]
        return found

    assert_same(answers(companion), answers(sections), 1e-9, gain=1.0)
    expected = sr.h2_optimal(sections, kept).h2_error
    assert abs(sr.h2_optimal(companion, kept).h2_error - expected) <= LOCAL_OPTIMUM * expected


def test_real_poles_over_three_decades_in_companion_form() -> None:
    system = from_scipy(scipy.signal.TransferFunction([1.0], np.poly(-np.geomspace(1e2, 1e5, 16))))
    found = sr.minimal_realisation(system)
    assert found.order == 11
    assert found.system.is_stable()
    assert sr.split_unstable(system).unstable_count == 0
