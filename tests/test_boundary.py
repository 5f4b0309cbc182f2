"""Poles on the stability boundary, to rounding: all functions agree, in any units, on every processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import samples
import scipy.linalg
import scipy.optimize

import ssmreduce as sr
from ssmreduce import Continuous, Discrete, StateSpace, errors
from ssmreduce._pole_rounding import conditions_of
from ssmreduce._schur import SchurForm
from ssmreduce._state_units import balance_states
from ssmreduce.equations.solvers import Hammarling, SmithDoubling
from ssmreduce.errors import UnstableSystemError
from ssmreduce.gramians.frequency import frequency_limited_factors
from ssmreduce.systems.state_space import in_balanced_units

REFUSALS: dict[str, Callable[[StateSpace], Any]] = {
    "controllability_gramian": sr.controllability_gramian,
    "observability_gramian": sr.observability_gramian,
    "hankel_singular_values": sr.hankel_singular_values,
    "balanced_truncation": lambda s: sr.balanced_truncation(s, 1),
    "singular_perturbation": lambda s: sr.singular_perturbation(s, 1),
    "h2_norm": sr.h2_norm,
    "hankel_norm": sr.hankel_norm,
    "hinf_norm": sr.hinf_norm,
    "h2_optimal": lambda s: sr.h2_optimal(s, 1),
    "frequency_limited_factors": lambda s: frequency_limited_factors(s, (0.1, 1.0)),
    "hammarling": lambda s: sr.solve_lyapunov_factor(s.A, s.B, time=s.time, solver=Hammarling()),
    "doubling": lambda s: sr.solve_lyapunov_factor(s.A, s.B, time=s.time, solver=SmithDoubling()),
}


def on_the_boundary(seed: int) -> StateSpace:
    """Two to eight states in a rotated basis, one or a pair of them on the boundary, the others inside."""
    rng = np.random.default_rng(seed)
    n, discrete, is_complex = int(rng.integers(2, 9)), bool(rng.integers(2)), bool(rng.integers(2))
    A = np.diag(rng.uniform(-0.6, 0.6, n) if discrete else -rng.uniform(0.1, 3.0, n))
    angle = rng.uniform(0.1, 3.0)
    if rng.integers(2):
        A[0, 0] = 1.0 if discrete else 0.0
    elif discrete:
        A[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    else:
        A[:2, :2] = [[0.0, -angle], [angle, 0.0]]
    turn = np.linalg.qr(
        samples.complex_normal(rng, n, n) if is_complex else rng.normal(size=(n, n))
    )
    A = turn[0] @ A @ turn[0].conj().T
    time = Discrete() if discrete else Continuous()
    return StateSpace(A, rng.normal(size=(n, 2)), rng.normal(size=(2, n)), time=time)


@pytest.mark.parametrize("seed", range(40))
def test_a_pole_within_rounding_of_the_boundary_is_on_it(seed: int) -> None:
    system = on_the_boundary(seed)
    count = int(np.sum(np.abs(distances(system)) < 1e-12))
    assert count in (1, 2)
    assert not system.is_stable()
    assert sr.split_unstable(system).unstable_count == count
    assert sr.balance(system, keep_unstable=True).unstable == count
    assert sr.modal_truncation(system, system.order).unstable == count
    for refused in REFUSALS.values():
        with pytest.raises(UnstableSystemError):
            refused(system)


def distances(system: StateSpace) -> Any:
    poles = np.linalg.eigvals(system.A)
    return 1.0 - np.abs(poles) if isinstance(system.time, Discrete) else -poles.real


@pytest.mark.parametrize("seed", range(20))
def test_slow_poles_of_graded_matrices_are_not_taken_to_the_boundary(seed: int) -> None:
    """Small entries have digits of their own: time constants may be 1e15 apart."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    rates = 10.0 ** np.sort(rng.uniform(0.0, 15.0, n))
    coupling = 0.05 * rng.standard_normal((n, n)) * np.sqrt(np.outer(rates, rates))
    system = StateSpace(
        coupling - np.diag(rates), np.ones((n, 1)), np.ones((1, n)), time=Continuous()
    )
    assert system.is_stable()
    assert sr.split_unstable(system).unstable_count == 0
    with mpmath.workdps(60):
        exact = [complex(pole) for pole in mpmath.eig(mpmath.matrix(system.A.tolist()))[0]]
    # At most 1,200 eps with the kernels of three processors; not ordered, up to 1e-4.
    for poles in (system.poles(), SchurForm.of(system.A).eigenvalues()):
        for pole in exact:
            assert np.min(np.abs(poles - pole)) <= 1e4 * samples.EPS * abs(pole)
    gain = system.dc_gain()[0, 0]
    hsv = sr.hankel_singular_values(system)
    assert hsv[0] <= abs(gain) <= 2.0 * hsv.sum() * (1.0 + 1e-12)


def test_parts_of_one_state_are_their_own_poles() -> None:
    poles = np.array([-1e-20, -1.0, -3.0])
    A = np.diag(poles)
    A[0, 1] = A[1, 2] = 1e3
    order = np.array([2, 0, 1])
    system = StateSpace(
        A[np.ix_(order, order)], np.ones((3, 1)), np.ones((1, 3)), time=Continuous()
    )
    assert system.is_stable()
    assert sr.split_unstable(system).unstable_count == 0
    form = SchurForm.of(system.A)
    assert sorted(form.eigenvalues().real) == sorted(poles)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    mixed = turn @ np.diag([-1e-17, -1.0, -3.0]) @ turn.T
    other = StateSpace(mixed, np.ones((3, 1)), np.ones((1, 3)), time=Continuous())
    with pytest.raises(UnstableSystemError, match="Re λ"):
        sr.h2_norm(other)


@pytest.mark.parametrize("feedback", [0.0, 1e-27])
@pytest.mark.parametrize("octaves", [0, 27, -27])
@pytest.mark.parametrize("lower", [False, True])
def test_stable_systems_have_a_dc_gain_in_any_units(
    feedback: float, octaves: int, lower: bool
) -> None:
    pole = 1.0 - 1e-7
    A = np.diag([pole] * 3) + np.diag([1.0, 1.0], 1)
    A[2, 0] = feedback
    order = slice(None, None, -1) if lower else slice(None)
    A, b, c = A[order, order], np.eye(3)[order, 2:], np.eye(3)[:1, order]
    units = 2.0 ** (octaves * np.arange(3.0))
    system = StateSpace(A * units / units[:, None], b / units[:, None], c * units, time=Discrete())
    assert system.is_stable()
    expected = 1.0 / ((1.0 - pole) ** 3 - feedback)
    assert system.dc_gain()[0, 0] == pytest.approx(expected, rel=1e-9)


NEARLY_DEFECTIVE = [[10.999999889490027, 11.0], [-11.0, -11.000000110509973]]
SINGULAR = [[-156.0, 78.0, 50.0], [-252.0, 126.0, 84.0], [-48.0, 24.0, 10.0]]
POLE_AT_ONE = [[-5.0, -6.0, 4.0], [10.0, 12.0, -8.0], [10.0, 12.0, -8.0]]
INSIDE = [[-1e-3, 1.0], [-1e-12, -1e-3]]


@pytest.mark.parametrize(
    ("A", "time", "count"),
    [
        (NEARLY_DEFECTIVE, Continuous(), 2),
        ([[-5.000000000000018, 5.0], [-5.0, 4.999999999999982]], Continuous(), 2),
        (SINGULAR, Continuous(), 1),
        (POLE_AT_ONE, Discrete(), 1),
        (INSIDE, Continuous(), 0),
    ],
)
def test_functions_decide_alike_for_poles_sensitive_to_rounding(
    A: Any, time: Any, count: int
) -> None:
    A = np.array(A)
    for matrix in (A, A.T, A[::-1, ::-1], A + 0j):
        for scale in (1.0, 1.0 + 1.0j):
            n = len(A)
            system = StateSpace(matrix, scale * np.ones((n, 1)), np.ones((1, n)), time=time)
            assert system.is_stable() == (not count)
            assert sr.split_unstable(system).unstable_count == count
            assert sr.modal_truncation(system, n).unstable == count
            for refused in REFUSALS.values():
                if count:
                    with pytest.raises(UnstableSystemError):
                        refused(system)
                else:
                    refused(system)


def test_parts_keep_their_own_scale() -> None:
    for A in (np.diag([-1e300, -1e-300]), np.array([[-1e-300, 0.0], [1.0, -1e300]])):
        system = StateSpace(A, np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
        assert sorted(system.poles()) == [-1e300, -1e-300]
        assert system.is_stable()
    decoupled = StateSpace(
        np.diag([-1e300, -1e-300]), np.ones((2, 1)), np.ones((1, 2)), time=Continuous()
    )
    assert sr.h2_norm(decoupled) == pytest.approx(np.sqrt(0.5) * 1e150)
    with pytest.raises(errors.NoConvergenceError):
        sr.h2_norm(system)


def test_poles_that_overflow_are_refused() -> None:
    pole = 1.5e308 * (-1.0 + 1.0j)
    ports = np.ones((2, 1)), np.ones((1, 2))
    alone = StateSpace([[pole]], ports[0][:1], ports[1][:, :1], time=Continuous())
    assert alone.poles() == [pole]
    assert alone.is_stable()
    with pytest.raises(errors.NonFiniteError, match="poles"):
        StateSpace([[pole, 1.0], [1.0, pole]], *ports, time=Continuous()).poles()


def test_functions_decide_alike_for_nearly_defective_poles() -> None:
    """Of random systems with a pole of order two to four; the decision itself is one of rounding."""
    rng = np.random.default_rng(1)
    names = (
        "controllability_gramian",
        "observability_gramian",
        "hankel_singular_values",
        "h2_norm",
    )
    for _ in range(60):
        n, distance = int(rng.integers(2, 5)), 10.0 ** rng.uniform(-12.0, -3.0)
        turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
        A = np.triu(rng.normal(size=(n, n)), 1) - distance * np.eye(n)
        B = rng.normal(size=(n, 1)) + 1j
        system = StateSpace(turn @ A @ turn.T, B, rng.normal(size=(1, n)), time=Continuous())
        stable = bool(system.is_stable())
        assert stable == (sr.split_unstable(system).unstable_count == 0)
        for name in names:
            try:
                REFUSALS[name](system)
                accepted = True
            except UnstableSystemError:
                accepted = False
            assert accepted == stable, name


def near_the_boundary(rng: np.random.Generator) -> StateSpace:
    """A pole of order two to four next to the boundary, others inside; some behind two other states."""
    order, more, distance = (
        int(rng.integers(2, 5)),
        int(rng.integers(4)),
        10.0 ** rng.uniform(-12, -3),
    )
    discrete, n = bool(rng.integers(2)), order + more
    multiple, others = -distance + discrete, rng.uniform(-0.5, 0.5, more) - 1.0 + discrete
    A = np.triu(rng.normal(size=(n, n)), 1) + np.diag(np.append(np.full(order, multiple), others))
    is_complex = bool(rng.integers(2))
    turn = samples.complex_normal(rng, n, n) if is_complex else rng.normal(size=(n, n))
    turn = np.linalg.qr(turn)[0]
    A = turn @ A @ turn.conj().T
    if rng.integers(3) == 0:
        A = np.block(
            [[A, rng.normal(size=(n, 2))], [np.zeros((2, n)), np.array([[-0.3, 0.1], [0.2, -0.4]])]]
        )
        mixed = rng.permutation(n + 2)
        A = A[np.ix_(mixed, mixed)]
    n = len(A)
    time = Discrete() if discrete else Continuous()
    return StateSpace(A, rng.normal(size=(n, 1)), rng.normal(size=(1, n)), time=time)


def in_other_units(system: StateSpace, rng: np.random.Generator) -> StateSpace:
    units = 2.0 ** rng.integers(-20, 21, system.order)
    columns = units[:, None]
    return system.replace(A=system.A * units / columns, B=system.B / columns, C=system.C * units)


def word(answer: Callable[[StateSpace], Any], system: StateSpace) -> Any:
    """What is answered, or the type of the refusal."""
    try:
        return answer(system)
    except errors.SSMReduceError as error:
        return type(error)


def is_refused(answer: Callable[[StateSpace], Any], system: StateSpace) -> bool:
    """As unstable; an iteration that does not converge is another matter."""
    try:
        answer(system)
    except UnstableSystemError:
        return True
    except errors.NoConvergenceError:
        return False
    return False


@pytest.mark.parametrize("seed", range(30))
def test_decisions_next_to_the_boundary_do_not_depend_on_units(seed: int) -> None:
    """Not even those that rounding makes."""
    rng = np.random.default_rng(seed)
    system = near_the_boundary(rng)
    decisions: dict[str, Callable[[StateSpace], Any]] = {
        "is_stable": lambda s: bool(s.is_stable()),
        "margin": lambda s: bool(s.is_stable(-1e-6)),
        "batch": lambda s: (
            s.replace(A=s.A[None], B=s.B[None], C=s.C[None], D=s.D[None]).is_stable().tolist()
        ),
        "split": lambda s: sr.split_unstable(s).unstable_count,
        "keep": lambda s: sr.balance(s, keep_unstable=True).unstable,
        "modal": lambda s: sr.modal_truncation(s, s.order).unstable,
        "dc_gain": lambda s: s.dc_gain().shape,
    } | {name: lambda s, answer=answer: is_refused(answer, s) for name, answer in REFUSALS.items()}
    for _ in range(3):
        other = in_other_units(system, rng)
        for name, decide in decisions.items():
            assert word(decide, other) == word(decide, system), name


@pytest.mark.parametrize("seed", range(20))
def test_modal_truncation_of_triangular_matrices_does_not_depend_on_units(seed: int) -> None:
    """Separations of such modes are ill conditioned: whether one is refused is decided by rounding."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 30))
    A = np.triu(rng.normal(size=(n, n)), 1) * rng.uniform(0.2, 2.0) - np.diag(
        rng.uniform(0.5, 2.0, n)
    )
    system = StateSpace(A, rng.normal(size=(n, 1)), rng.normal(size=(1, n)), time=Continuous())
    other = in_other_units(system, rng)
    omega = np.geomspace(0.01, 100.0, 9)
    for order in (n // 5 + 1, n // 2, 4 * n // 5):
        cut = partial(sr.modal_truncation, order=order)
        found, expected = word(cut, other), word(cut, system)
        if isinstance(expected, type):
            assert found is expected
        else:
            responses = [sr.frequency_response(cut.system, omega) for cut in (found, expected)]
            # In exact units they are equal; where modes are well separated no such units are needed.
            np.testing.assert_allclose(*responses, atol=1e-9 * float(np.abs(responses[1]).max()))


@pytest.mark.parametrize("kind", ["full", "sparse", "cascade", "companion", "complex"])
def test_balanced_states_are_the_same_to_the_last_bit(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 12))
        A = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-1, 1, (n, n))
        if kind == "complex":
            A = A * np.exp(1j * rng.uniform(0.0, 6.0, (n, n)))
        elif kind == "sparse":
            A *= rng.random((n, n)) < 0.4
        elif kind == "cascade":
            A = np.triu(A, -1) * np.repeat([1.0, 0.0], n)[:n, None] + np.triu(A)
        elif kind == "companion":
            A[1:] = np.eye(n)[:-1]
        system = StateSpace(A, rng.normal(size=(n, 2)), rng.normal(size=(1, n)), time=Continuous())
        one = in_balanced_units(system, exact=True)
        other = in_balanced_units(in_other_units(system, rng), exact=True)
        np.testing.assert_array_equal(one.A, other.A)
        # One unit is common to all states, and changes no response.
        for found, expected in ((one.B, other.B), (one.C, other.C)):
            ratios = np.unique(np.log2(found / expected))
            assert ratios.size == 1
            assert ratios[0] == np.round(ratios[0])


def ring(n: int, closing: float = 1.0) -> Any:
    """Each state acts on the next, the last on the first."""
    A = np.eye(n, k=-1)
    A[0, -1] = closing
    return A


LOOPS = {
    "comb filter": (ring(60, 0.5), Discrete()),
    "ring": (ring(100) - 1.2 * np.eye(100), Continuous()),
    "slow ring": (1e-3 * ring(30) - np.eye(30), Continuous()),
    "slow lags": (1e-6 * (ring(21, -0.3 / 20) - np.diag([0.0] + [1.0] * 20)), Continuous()),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_exact_units_of_loops_are_as_good_as_any(kind: str) -> None:
    """The couplings of a loop have a product that no units change: none may be made large."""
    A, time = LOOPS[kind]
    n = len(A)
    even, _ = balance_states(A, exact=True)
    assert np.abs(even).sum() <= 2.0 * np.abs(A).sum()
    system = StateSpace(A, np.eye(n)[:, :1], np.eye(n)[-1:], time=time)
    assert system.is_stable()
    assert sr.split_unstable(system).unstable_count == 0
    exact = SchurForm.of(A, exact=True)
    found = exact.reached(exact.triangle) @ exact.observed(np.eye(n)).T
    np.testing.assert_allclose(found, A, atol=1e3 * samples.EPS * np.abs(A).max())


@pytest.mark.parametrize("seed", range(20))
def test_exact_units_have_the_least_couplings(seed: int) -> None:
    """Against a general minimiser of the convex sum."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    A = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-2, 2, (n, n))
    W = np.abs(A - np.diag(np.diag(A)))

    def total(x: Any) -> Any:
        return np.log((W * np.exp(x - x[:, None])).sum())

    least = float(np.exp(scipy.optimize.minimize(total, np.zeros(n), tol=1e-12).fun))
    even, _ = balance_states(A, exact=True)
    found = float(np.abs(even - np.diag(np.diag(even))).sum())
    # Each unit is off by half an octave at most, and one coupling by two units.
    assert least * (1.0 - 1e-9) <= found <= least * 1.25


@pytest.mark.parametrize("kind", ["real", "complex", "triangular"])
def test_conditions_of_few_poles_are_those_of_all(kind: str) -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((80, 80)) + (
        1j * rng.standard_normal((80, 80)) if kind == "complex" else 0
    )
    T = np.asfortranarray(np.triu(A) if kind == "triangular" else scipy.linalg.schur(A)[0])
    every = conditions_of(T, np.ones(80, dtype=bool))
    for k in range(0, 80, 9):
        few = conditions_of(T, np.arange(80) == k)
        found = np.isfinite(few)
        assert found[k]
        assert found.sum() <= 2
        np.testing.assert_allclose(few[found], every[found], rtol=1e-6)


@pytest.mark.parametrize("couplings", [1.0, 0.2])
def test_conditions_are_those_of_the_complex_triangle(couplings: float) -> None:
    """Where few states are coupled, LAPACK would permute the blocks of a real triangle."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        n = int(rng.integers(2, 16))
        A = rng.normal(size=(n, n)) * (rng.random((n, n)) < couplings)
        T = scipy.linalg.schur(A)[0]
        left, right = scipy.linalg.eig(scipy.linalg.rsf2csf(T, np.eye(n))[0], left=True)[1:]
        with np.errstate(divide="ignore"):
            expected = 1.0 / np.abs(np.sum(left.conj() * right, axis=0))
        simple = expected < 1e6
        found = conditions_of(T, np.ones(n, dtype=bool))
        np.testing.assert_allclose(found[simple], expected[simple], rtol=1e-6)
