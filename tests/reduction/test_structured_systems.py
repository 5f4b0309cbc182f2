"""Systems of exact structure: zeros, repeated poles and directions out of reach, in several bases.

Random systems have none of it. In rounded arithmetic a zero becomes rounding, a repeated pole a pair of
frequency eps, and what is out of reach is reached by rounding alone, in a direction that means nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import samples
import scipy.linalg
import scipy.signal
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelMass,
    StateSpace,
    TotalBudget,
    balance,
    balanced_truncation,
    controllability_gramian,
    frequency_response,
    h2_norm,
    h2_optimal,
    hankel_singular_values,
    modal_truncation,
    observability_gramian,
)
from ssmreduce.errors import (
    NoConvergenceError,
    OrderError,
    UnstableSystemError,
)

C = 20.0
"""c of c n eps times the condition of the equation."""

RADIUS = 0.7


def rotation(degrees: float) -> Any:
    angle = np.deg2rad(degrees)
    exact = {90.0: (0.0, 1.0), 180.0: (-1.0, 0.0)}
    cosine, sine = exact.get(degrees, (np.cos(angle), np.sin(angle)))
    return np.array([[cosine, sine], [-sine, cosine]])


def shift(n: int, corner: float = 0.0) -> Any:
    matrix = np.diag(np.ones(n - 1), -1)
    matrix[0, -1] += corner
    return matrix


def cascade(*blocks: Any) -> Any:
    """Each block drives the next one through its first state."""
    matrix = scipy.linalg.block_diag(*blocks)
    start = 0
    for block in blocks[:-1]:
        matrix[start, start + len(block)] = 0.5
        start += len(block)
    return matrix


FORMS: dict[str, Callable[[], Any]] = {
    "cyclic": lambda: shift(4, 1.0),
    "cyclic of odd length": lambda: shift(5, 1.0),
    "twisted cyclic": lambda: shift(4, -1.0),
    "twisted cyclic of odd length": lambda: shift(5, -1.0),
    "delay line": lambda: shift(4),
    "quarter turns": lambda: np.kron(np.eye(2), rotation(90.0)),
    "sixth turns": lambda: np.kron(np.eye(3), rotation(60.0)),
    "turns and a pole": lambda: scipy.linalg.block_diag(1.0, rotation(90.0), rotation(45.0), -1.0),
    "cascade of turns": lambda: cascade(0.5 * np.eye(1), rotation(90.0), rotation(120.0)),
    "cascade after a turn": lambda: cascade(rotation(90.0), rotation(90.0), 0.5 * np.eye(1)),
    "repeated poles": lambda: np.diag([1.0, 1.0, -1.0, -1.0, 0.0]),
    "one pole": lambda: np.eye(4),
    "hub": lambda: (
        np.outer(np.eye(5)[0], [0.0, 1.0, 1.0, 1.0, 1.0]) + 0.5 * np.diag([1.0, -1, 1, -1, 1])
    ),
}
"""State matrices of spectral radius up to 1, to be scaled or shifted."""


def bases(n: int) -> Iterator[Any]:
    """Orthogonal: the given one, in reverse, with a reflection, random."""
    yield np.eye(n)
    yield np.eye(n)[::-1]
    v = np.arange(n) - 1.0
    yield np.eye(n) - 2.0 * np.outer(v, v) / (v @ v)
    yield np.linalg.qr(np.random.default_rng(n).standard_normal((n, n)))[0]


def inputs(n: int) -> Iterator[Any]:
    rng = np.random.default_rng(7)
    yield np.eye(n)[:, [0]]
    yield np.eye(n)[:, [n - 1]]
    yield np.ones((n, 2))
    yield np.eye(n)[:, [1, n - 1]]
    for m in (1, 2, 3):
        yield rng.choice([0.0, 0.0, 1.0, -1.0, 0.5], (n, m))


@pytest.mark.usefixtures("implementation")
@pytest.mark.filterwarnings("ignore::ssmreduce.errors.ScalingWarning")
@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("form", FORMS)
def test_gramians_and_values(form: str, discrete: bool) -> None:
    A = RADIUS * FORMS[form]() if discrete else FORMS[form]() - 1.2 * np.eye(len(FORMS[form]()))
    n, solve = len(A), discrete_lyapunov if discrete else continuous_lyapunov
    time = Discrete() if discrete else Continuous()
    identity = np.eye(n)
    operator = (
        np.eye(n * n) - np.kron(A, A) if discrete else np.kron(A, identity) + np.kron(identity, A)
    )
    rounding = C * (n + 10) * EPS * np.linalg.cond(operator)
    for k, turn in enumerate(bases(n)):
        for given in islice(inputs(n), k % 2, None, 2):
            B, outputs = turn @ given, given[::-1].T @ turn.T
            system = StateSpace(turn @ A @ turn.T, B, outputs, time=time)
            exact_P = solve(system.A, B @ B.T)
            exact_Q = solve(system.A.T, outputs.T @ outputs)
            for found, exact in (
                (controllability_gramian(system), exact_P),
                (observability_gramian(system), exact_Q),
            ):
                assert np.linalg.norm(found - exact) <= rounding * np.linalg.norm(exact)
            size = np.linalg.norm(exact_P) * np.linalg.norm(exact_Q)
            values = hankel_singular_values(system)
            assert abs(np.sum(values**2) - np.trace(exact_P @ exact_Q)) <= rounding * size
            if (rank := int(balance(system).rank)) > 1:
                cut = balance(system).truncate(rank)
                assert (
                    cut.verify() <= cut.error_bound + rounding * values[0] ** 2 / values[rank - 1]
                )


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("form", FORMS)
def test_modal_truncation(form: str, discrete: bool) -> None:
    """Also of poles that are equal or defective: an error below the bound, or a refusal that says why."""
    block = RADIUS * FORMS[form]() if discrete else FORMS[form]() - 1.2 * np.eye(len(FORMS[form]()))
    A = scipy.linalg.block_diag(block, block, 0.5 if discrete else -0.5)
    n, cuts = len(A), 0
    for turn in bases(n):
        for given in islice(inputs(n), 0, None, 7):
            system = StateSpace(
                turn @ A @ turn.T,
                turn @ given,
                given[::-1].T @ turn.T,
                time=Discrete() if discrete else Continuous(),
            )
            size = np.linalg.norm(system.B) * np.linalg.norm(system.C)
            for order in range(1, n):
                try:
                    cut = modal_truncation(system, order)
                except (OrderError, NoConvergenceError):  # a pair, or one pole in both groups
                    continue
                bound, cuts = float(np.asarray(cut.error_bound)), cuts + 1
                assert cut.verify() <= bound * (1.0 + np.sqrt(EPS)) + np.sqrt(EPS) * size
            for share in (0.5, 0.9):
                ruled = modal_truncation(system, HankelMass(share))  # never refused
                assert ruled.verify() <= float(np.asarray(ruled.error_bound)) + np.sqrt(EPS) * size
    assert cuts >= 1


@pytest.mark.parametrize(
    ("order", "edge", "analog"), [(6, 0.05, False), (4, 100.0, True), (4, 0.3, False)]
)
def test_modal_truncation_of_filters(order: int, edge: float, analog: bool) -> None:
    """Companion forms have large entries, or poles near to each other: digits are lost, not all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.signal.BadCoefficients)
        matrices = scipy.signal.tf2ss(*scipy.signal.butter(order, edge, analog=analog))
    system = StateSpace(*matrices, time=Continuous() if analog else Discrete())
    zeros, poles, gain = scipy.signal.butter(order, edge, analog=analog, output="zpk")
    cut = modal_truncation(system, 2)
    kept = cut.system.poles()
    removed = [p for p in poles if min(abs(kept - p)) > 1e-3 * abs(p)]
    assert len(removed) == order - 2
    dominances = [
        abs(gain * np.prod(p - zeros) / np.prod([p - q for q in poles if q != p]))
        / (-p.real if analog else 1.0 - abs(p))
        for p in removed
    ]
    assert cut.error_bound == pytest.approx(sum(dominances), rel=1e-6)


def test_modal_truncation_keeps_a_delay_line_whole() -> None:
    A = scipy.linalg.block_diag(0.5, 0.3, 0.2, shift(4))
    system = StateSpace(A, np.ones((7, 1)), np.ones((1, 7)), time=Discrete())
    for order, bound in ((4, 2 + 1 / 0.7 + 1.25), (5, 1 / 0.7 + 1.25), (6, 1.25)):
        cut = modal_truncation(system, order)
        np.testing.assert_allclose(np.sort(np.abs(cut.system.poles()))[:4], 0.0, atol=1e-3)
        assert cut.error_bound == pytest.approx(bound, rel=100 * EPS)
        assert cut.verify() <= bound * (1 + 100 * EPS)
        assert (cut.unstable, cut.rank) == (0, 7)
    for order in (1, 2, 3):
        with pytest.raises(NoConvergenceError, match="agree to rounding"):
            modal_truncation(system, order)
    for rule, order in (
        (ErrorBound(absolute=3.0), 5),
        (ErrorBound(absolute=1.3), 6),
        (ErrorBound(absolute=1.0), 7),
        (HankelMass(0.7), 6),
        (TotalBudget(5), 5),
    ):
        assert modal_truncation(system, rule).order == order
    # Beside unstable modes it need not be kept, but then nothing is known of what it contributed.
    A = scipy.linalg.block_diag(1.5, shift(2))
    unstable = StateSpace(A, np.ones((3, 1)), np.ones((1, 3)), time=Discrete())
    cut = modal_truncation(unstable, 1)
    assert (cut.unstable, cut.error_bound) == (1, np.inf)
    np.testing.assert_allclose(cut.system.poles(), [1.5])


@pytest.mark.parametrize(("inputs", "outputs"), [(1e140, 1e140), (1e160, 1e-160), (1e-150, 1e-150)])
def test_modal_truncation_of_any_gain(inputs: float, outputs: float) -> None:
    A = scipy.linalg.block_diag(0.5, 0.3, shift(2))
    system = StateSpace(A, np.full((4, 1), inputs), np.full((1, 4), outputs), time=Discrete())
    cut = modal_truncation(system, 3)
    assert cut.unstable == 0
    assert cut.error_bound == pytest.approx(inputs * outputs / 0.7, rel=100 * EPS)


def test_modal_truncation_within_a_tolerance_takes_what_is_left_of_a_multiple_pole() -> None:
    """How its residue is shared out is known after the separation; then the next order is tried."""
    rng = np.random.default_rng(14)
    met = 0
    for _ in range(100):
        V = rng.standard_normal((6, 6))
        A = V @ np.diag([-1.0, -1.0, -1.0, -1.0, -2.0, -2.0]) @ np.linalg.inv(V)
        system = StateSpace(
            A, rng.standard_normal((6, 2)), rng.standard_normal((2, 6)), time=Continuous()
        )
        scores = modal_truncation(system, 6).scores
        assert scores is not None
        tolerance = float(np.asarray(scores)[2:].sum())
        cut = modal_truncation(system, ErrorBound(absolute=tolerance))
        assert float(np.asarray(cut.error_bound)) <= tolerance * (1.0 + EPS)
        met += cut.order < 6
    assert met >= 30


def test_outputs_of_what_inputs_do_not_reach() -> None:
    """Rounding makes a response of it, whose Hankel singular values and states mean nothing."""
    rng, silent = np.random.default_rng(11), 0
    for _ in range(200):
        A = scipy.linalg.block_diag(
            rng.standard_normal((3, 3)), rng.standard_normal((4, 4)), -0.5 * np.eye(1)
        )
        A -= (np.linalg.eigvals(A).real.max() + 0.01) * np.eye(8)
        turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
        B, outputs = np.zeros((8, 2)), np.zeros((1, 8))
        B[:3], outputs[:, 3:7] = rng.standard_normal((3, 2)), rng.standard_normal((1, 4))
        system = StateSpace(turn @ A @ turn.T, turn @ B, outputs @ turn.T, time=Continuous())
        silent += balance(system).rank == 0
        for cut in (balance(system).truncate, balance(system).match_dc):
            for order in (1, 2, 3, 4):
                try:
                    assert cut(order).system.is_stable()
                except (OrderError, UnstableSystemError):  # rank zero, or a cut within rounding
                    continue
    assert silent >= 180


@pytest.mark.parametrize("spread", [1e7, 1e9, 1e12])
@pytest.mark.parametrize("size", [1, 2])
def test_units_of_decoupled_states(size: int, spread: float) -> None:
    block = np.array([[-1.0, 2.0], [-2.0, -1.5]])[:size, :size]
    A, n = scipy.linalg.block_diag(block, 2.0 * block), 2 * size
    plain = StateSpace(A, np.ones((n, 1)), np.ones((1, n)), time=Continuous())
    units = np.repeat([spread, 1.0 / spread], size)
    scaled = StateSpace(plain.A, units[:, None] * plain.B, plain.C / units, time=Continuous())
    expected = balance(plain)
    found = balance(scaled)
    np.testing.assert_allclose(found.hsv, expected.hsv, rtol=100 * EPS)
    assert found.rank == expected.rank == n
    assert found.truncate(1).error_bound == pytest.approx(expected.bound(1), rel=1e3 * EPS)


@pytest.mark.parametrize("real_output", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_stored_states_do_not_depend_on_those_before(real_output: bool, discrete: bool) -> None:
    """In any order and phase they lead to the same numbers, as on any processor: not only up to signs."""
    rng = np.random.default_rng(3)
    n, m, p = 24, 3, 2
    poles = rng.uniform(0.9, 0.999, n) * np.exp(1j * rng.uniform(0.0, np.pi, n))
    B = rng.normal(size=(n, m)) + 1j * rng.normal(size=(n, m))
    C = rng.normal(size=(p, n)) + 1j * rng.normal(size=(p, n))

    def cut(states: Any, phases: Any) -> Any:
        system = DiagonalStateSpace(
            (poles if discrete else np.log(poles))[states],
            (B * phases[:, None])[states],
            (C / phases)[:, states],
            np.zeros((p, m)),
            time=Discrete() if discrete else Continuous(),
            real_output=real_output,
        )
        return balanced_truncation(system, 6).system

    first = cut(np.arange(n), np.ones(n))
    for _ in range(3):
        other = cut(rng.permutation(n), np.exp(1j * rng.uniform(0.0, 2.0 * np.pi, n)))
        for name in ("eigenvalues", "B", "C"):
            found, expected = getattr(other, name), getattr(first, name)
            np.testing.assert_allclose(found, expected, atol=1e-11 * np.abs(expected).max())


def test_the_phase_of_a_real_pole_is_exactly_a_sign() -> None:
    """An imaginary part of rounding would take a second real state."""
    rng = np.random.default_rng(0)
    poles = np.array([0.9, 0.8, 0.5, -0.2, 0.3, 0.7])
    B, C = rng.normal(size=(6, 2)), rng.normal(size=(2, 6))
    layer = DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=True)
    for order in range(1, 6):
        cut = balanced_truncation(layer, order).system
        alone = cut.eigenvalues.imag == 0.0
        assert not np.any(cut.B[alone].imag)
        assert not np.any(cut.C[:, alone].imag)


def test_h2_optimal_of_an_order_that_halves_a_turn() -> None:
    """Its first iterate does not respond at all, and is passed over.

    Both Hankel singular values are equal, so that rounding may keep any direction v. As vᵀ A v = 0, what is
    kept is a delay of gain C v vᵀ B, where the system responds with C B = 0.
    """
    system = StateSpace(0.9 * rotation(90.0), [[0.0], [0.5]], [[1.0, 0.0]], time=Discrete())
    result = h2_optimal(system, 1)
    kept = balance(system).truncate(1).system
    expected = np.hypot(h2_norm(system), np.linalg.norm(kept.C @ kept.B))
    assert result.h2_errors[0] == pytest.approx(expected, rel=10 * EPS)
    assert result.h2_error <= result.h2_errors[0]


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1e150, 1e150), (1e-150, 1e-150), (1e150, 1.0), (1.0, 1e-150)]
)
def test_h2_optimal_of_any_gain(inputs: float, outputs: float, discrete: bool) -> None:
    plain = samples.dense_system(np.random.default_rng(3), 6, 2, 2, discrete=discrete)
    scaled = StateSpace(plain.A, inputs * plain.B, outputs * plain.C, time=plain.time)
    expected, found = h2_optimal(plain, 2), h2_optimal(scaled, 2)
    np.testing.assert_allclose(found.h2_errors / inputs / outputs, expected.h2_errors, rtol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_dc_matching_of_delay_lines_read_after_the_update(n: int) -> None:
    """Reduced poles next to 0 leave no digits of such a readout, and are refused."""
    omega = np.linspace(-np.pi, np.pi, 33)
    rng, cuts = np.random.default_rng(n), 0
    for _ in range(20):
        turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
        B, C = turn[:, [0]], np.ones((1, n)) @ turn.T
        system = StateSpace(turn @ shift(n) @ turn.T, B, C, time=Discrete(), read_after_update=True)
        full = frequency_response(system, omega)
        balancing = balance(system)
        for order in range(1, n):
            try:
                cut = balancing.match_dc(order)
            except OrderError:
                continue
            cuts += 1
            error = np.abs(frequency_response(cut.system, omega) - full).max()
            assert error <= float(np.asarray(cut.error_bound)) + 10 * np.sqrt(EPS)
    assert cuts == 20 * (n - 2)  # all but those to the order of the standard form
