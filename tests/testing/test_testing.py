"""The public test helpers: assertions pass on what is right and fail just above what they allow;
strategies give what was asked for, in every array library, and shrink to simple systems."""

from __future__ import annotations

import doctest
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from samples import EPS, dense_system, diagonal_system, well_conditioned

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_realisation,
    simulate,
    solve_lyapunov,
    to_discrete,
    transformed,
)
from ssmreduce.errors import (
    ArgumentError,
    OrderError,
    ShapeError,
    TimeDomainError,
)
from ssmreduce.testing import (
    assert_balanced,
    assert_error_within_bound,
    assert_lyapunov,
    assert_outputs_close,
    assert_same_library,
    assert_stable,
    assert_systems_close,
    diagonal_state_spaces,
    state_spaces,
)

DOMAINS = [Discrete(), Continuous()]
LIBRARIES = ["numpy", "torch", "jax.numpy", "array_api_strict"]
STRATEGIES = {"dense": state_spaces, "diagonal": diagonal_state_spaces}

one_state = StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete())


def library(name: str) -> Any:
    module = pytest.importorskip(name, reason=f"{name} is not installed")
    assert module is importlib.import_module(name)
    return module


@pytest.fixture(params=LIBRARIES)
def xp(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An array namespace that has double precision."""
    module = library(request.param)
    if request.param != "jax.numpy":
        yield module
        return
    import jax

    with jax.enable_x64(True):
        yield module


def in_library(system: StateSpace, xp: Any) -> StateSpace:
    return StateSpace(
        *(xp.asarray(x) for x in (system.A, system.B, system.C, system.D)), time=system.time
    )


def with_c(system: StateSpace, factor: float) -> StateSpace:
    return StateSpace(system.A, system.B, system.C * factor, system.D, time=system.time)


def simplest(strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool]) -> Any:
    return find(strategy, condition, settings=settings(max_examples=2000, database=None))


# Assertions


def test_stable_systems_are(xp: Any, rng: np.random.Generator) -> None:
    for discrete in (True, False):
        assert_stable(in_library(dense_system(rng, 4, 1, 1, discrete=discrete), xp), margin=0.09)
    assert_stable(StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), time=Discrete()))


@pytest.mark.parametrize(
    ("time", "pole", "margin", "message"),
    [
        (Discrete(), 1.0, 0.0, r"`system` has a pole with |λ| = 1.0; allowed: |λ| < 1.0."),
        (Discrete(), -0.9 - 1e-15, 0.1, "|λ| = 0.900000000000001; allowed: |λ| < 0.9."),
        (Continuous(), 2.0**-60, 0.0, "Re λ = 8.673617379884035e-19; allowed: Re λ < 0.0."),
        (Continuous(), -0.1 + 1e-15, 0.1, "allowed: Re λ < -0.1"),
    ],
)
def test_a_pole_just_over_the_boundary(time: Any, pole: float, margin: float, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        assert_stable(StateSpace([[pole]], [[1.0]], [[1.0]], time=time), margin=margin)


def test_logarithms_decide_about_stability() -> None:
    logs = np.array([-1e-20])
    assert_stable(DiagonalStateSpace.from_log(logs, [[1.0]], [[1.0]], time=Discrete()))
    batch = DiagonalStateSpace(
        [[0.5], [1.5]], np.ones((2, 1, 1)), np.ones((2, 1, 1)), time=Discrete()
    )
    with pytest.raises(AssertionError, match=re.escape("`system`[1] has a pole with |λ| = 1.5")):
        assert_stable(batch)


@pytest.mark.parametrize("time", DOMAINS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_systems_in_other_states_are_close(time: Any, data: st.DataObject) -> None:
    strategy = st.sampled_from([state_spaces, diagonal_state_spaces])
    system = data.draw(data.draw(strategy)(time=time, read_after_update=None))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    T = well_conditioned(rng, system.to_dense().order, is_complex=False)
    assert_systems_close(transformed(system, T), system)
    assert_systems_close(system.to_standard(), system)


@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_systems_that_differ_by_more_than_is_allowed(rng: np.random.Generator, rtol: Any) -> None:
    system = dense_system(rng, 4, 2, 2)
    # What is allowed is read off a failure; half of it passes, twice as much fails.
    with pytest.raises(AssertionError, match="allowed") as caught:
        assert_systems_close(with_c(system, 2.0), system, rtol=rtol)
    gain, allowed = (
        float(re.search(pattern, str(caught.value))[1])  # type: ignore[index]
        for pattern in (r"desired: StateSpace of order 4, .*, gain (\S+)", r"allowed (\S+)\.\n")
    )
    if rtol is None:
        # 20 n eps times conditions: rounding, not a loophole.
        assert 20 * EPS * gain < allowed < 1e-9 * gain
    else:
        assert allowed == pytest.approx(2 * rtol * gain, rel=1e-3)
        allowed /= 2
    assert_systems_close(with_c(system, 1.0 + 0.5 * allowed / gain), system, rtol=rtol)
    with pytest.raises(AssertionError, match=r"differ: ‖G₁ - G₂‖∞ \d\.\d{3}e-\d+, allowed \d"):
        assert_systems_close(with_c(system, 1.0 + 2.0 * allowed / gain), system, rtol=rtol)


def test_single_precision_is_allowed_its_own_rounding(rng: np.random.Generator) -> None:
    system = dense_system(rng, 3, 1, 1)
    single = StateSpace(
        *(x.astype(np.float32) for x in (system.A, system.B, system.C)), time=system.time
    )
    assert_systems_close(single, system)
    with pytest.raises(AssertionError, match="actual: StateSpace of order 3"):
        assert_systems_close(single.to_host(), system)


def test_unstable_systems_are_compared_as_well(rng: np.random.Generator) -> None:
    system = dense_system(rng, 4, 1, 1, radius=1.5)
    assert_systems_close(transformed(system, well_conditioned(rng, 4, is_complex=False)), system)
    with pytest.raises(AssertionError, match="differ"):
        assert_systems_close(with_c(system, 1.0 + 1e-8), system)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete(dt=0.1)), "time"),
        (StateSpace([[0.5]], [[1.0, 1.0]], [[1.0]], time=Discrete()), "inputs"),
        (StateSpace([[0.5]], [[1.0]], [[1.0]] * 2, time=Discrete()), "outputs"),
        (StateSpace([[[0.5]]], [[[1.0]]], [[[1.0]]], time=Discrete()), "batch_shape"),
    ],
)
def test_maps_of_other_kinds_differ(other: StateSpace, what: str) -> None:
    for check in (assert_systems_close, lambda a, b: assert_error_within_bound(b, a, 1e9)):
        with pytest.raises(AssertionError, match=f"has {what} .*; allowed: equal"):
            check(other, one_state)
    with pytest.raises(TypeError, match="expected a StateSpace"):
        assert_systems_close(one_state, np.eye(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_bounds_hold_and_break(rng: np.random.Generator, kind: str) -> None:
    make = dense_system if kind == "dense" else diagonal_system
    system = make(rng, 6, 2, 2)
    reduction = balance(system).truncate(3)
    assert_error_within_bound(system, reduction.system, reduction.error_bound)
    error = float(reduction.verify())
    assert_error_within_bound(system, reduction.system, error * (1 + 1e-6))
    with pytest.raises(AssertionError, match=r"breaks its bound: ‖G - G_r‖∞ \S+, allowed \S+\."):
        assert_error_within_bound(system, reduction.system, error * (1 - 1e-6))
    with pytest.raises(AssertionError, match="`bound` is None"):
        assert_error_within_bound(system, reduction.system, None)


def test_bounds_of_a_batch_are_compared_one_by_one(rng: np.random.Generator) -> None:
    # A first-order system and nothing: the error is c b/(1 - a).
    system = DiagonalStateSpace(
        [[0.5], [0.75]], np.ones((2, 1, 1)), np.ones((2, 1, 1)), time=Discrete()
    )
    nothing = DiagonalStateSpace(
        np.zeros((2, 0)), np.zeros((2, 0, 1)), np.zeros((2, 1, 0)), time=Discrete()
    )
    assert_error_within_bound(system, nothing, np.array([2.0, 4.0]))
    with pytest.raises(AssertionError, match=r"`reduced`\[1\] breaks its bound"):
        assert_error_within_bound(system, nothing, np.array([2.0, 4.0 - 1e-9]))
    with pytest.raises(AssertionError, match=r"`reduced`\[0\] breaks its bound"):
        assert_error_within_bound(system, nothing, 2.0 - 1e-9)


@given(st.one_of(state_spaces(minimal=True), diagonal_state_spaces(minimal=True, order=(1, 3))))
def test_balanced_systems_are(system: Any) -> None:
    try:
        balanced = balanced_realisation(system)
    except OrderError:  # minimal, but not to working precision
        assert balance(system).rank < system.to_dense().order
        return
    assert_balanced(balanced)


@pytest.mark.parametrize("discrete", [True, False])
def test_systems_that_are_not_balanced(rng: np.random.Generator, discrete: bool) -> None:
    system = balanced_realisation(dense_system(rng, 3, 2, 2, discrete=discrete))
    order = [2, 0, 1]
    permuted = StateSpace(
        system.A[np.ix_(order, order)], system.B[order], system.C[:, order], time=system.time
    )
    assert_balanced(permuted)
    # Scaling by 1 + 1e-9 moves the Gramians apart by that; a rotation couples two states.
    scaled = transformed(system, np.diag([1.0 + 1e-9, 1.0, 1.0]))
    with pytest.raises(AssertionError, match=r"entry \(0, 0\) of its \w+ Gramian is off by"):
        assert_balanced(scaled)
    turn = np.eye(3)
    turn[:2, :2] = [[1.0, 1e-9], [-1e-9, 1.0]]
    with pytest.raises(AssertionError, match=r"entry \((0, 1|1, 0)\)[\s\S]*P = [\s\S]*Q = "):
        assert_balanced(transformed(system, turn))


@pytest.mark.parametrize("time", DOMAINS)
def test_lyapunov_equations(rng: np.random.Generator, time: Any) -> None:
    A = dense_system(rng, 5, 1, 1, discrete=isinstance(time, Discrete)).A
    X = solve_lyapunov(A, np.eye(5), time=time).value
    assert_lyapunov(A, X, np.eye(5), time=time)
    with pytest.raises(AssertionError, match=r"relative residual \S+, allowed 2\.220e-14\."):
        assert_lyapunov(A, X * (1 + 1e-12), np.eye(5), time=time)
    assert_lyapunov(A, X * (1 + 1e-12), np.eye(5), time=time, rtol=1e-11)
    with pytest.raises(AssertionError, match="does not solve"):
        assert_lyapunov(A, X, -np.eye(5), time=time)
    with pytest.raises(AssertionError, match=re.escape("`X`[1] does not solve")):
        assert_lyapunov([A, A], [X, 2 * X], [np.eye(5)] * 2, time=time)
    with pytest.raises(AssertionError, match=r"shapes .*; allowed: equal ones"):
        assert_lyapunov(A, X, np.eye(4), time=time)
    with pytest.raises(AssertionError, match="residual nan"):
        assert_lyapunov(A, X * np.nan, np.eye(5), time=time)


def test_lyapunov_in_single_precision(xp: Any, rng: np.random.Generator) -> None:
    A = dense_system(rng, 5, 1, 1).A
    X = solve_lyapunov(A, np.eye(5), time=Discrete()).value
    arrays = [xp.asarray(x.astype(np.float32)) for x in (A, X, np.eye(5))]
    assert_lyapunov(*arrays, time=Discrete())
    with pytest.raises(AssertionError, match="relative residual"):
        assert_lyapunov(arrays[0], arrays[1] * 1.001, arrays[2], time=Discrete())


def test_outputs_of_a_layer(rng: np.random.Generator) -> None:
    system = diagonal_system(rng, 3, 2, 2, real_output=True)
    after = DiagonalStateSpace(
        system.eigenvalues,
        system.B,
        system.C,
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    u = rng.standard_normal((30, 2))
    state, outputs = np.zeros(3, complex), []
    for row in u:
        state = system.eigenvalues * state + system.B @ row
        outputs.append((system.C @ state).real)
    assert_outputs_close(after, u, outputs)
    assert_outputs_close(after, u.astype(np.float32), np.asarray(outputs, np.float32))
    with pytest.raises(AssertionError, match=r"differ .* at step \d+, output [01], by"):
        assert_outputs_close(system, u, outputs)
    wrong = np.array(outputs)
    wrong[7, 1] += 1e-9
    with pytest.raises(AssertionError, match=r"at step 7, output 1, by 1\.000e-09, allowed"):
        assert_outputs_close(after, u, wrong)
    assert_outputs_close(after, u, wrong, rtol=1e-8)
    wrong[7, 1] = np.nan
    with pytest.raises(AssertionError, match="at step 7, output 1, by nan"):
        assert_outputs_close(after, u, wrong)
    with pytest.raises(AssertionError, match=re.escape("shape (29, 2); allowed: (30, 2)")):
        assert_outputs_close(after, u, outputs[1:])


@pytest.mark.parametrize("time", DOMAINS)
def test_outputs_of_every_library(time: Any, xp: Any) -> None:
    A, B = xp.asarray([[-0.5, 0.0], [0.25, -0.25]]), xp.asarray([[1.0], [0.0]])
    system = StateSpace(A, B, xp.asarray([[0.0, 1.0]]), time=time)
    u = xp.asarray([[1.0], [0.0], [2.0], [0.0]])
    times = xp.asarray([0.0, 1.0, 2.0, 3.0]) if time == Continuous() else None
    plain = system.to_host()
    y = simulate(plain, np.asarray(u), times=None if times is None else np.asarray(times))
    assert_outputs_close(system, u, xp.asarray(y), times=times)
    assert_outputs_close(plain, u, y, times=times)
    with pytest.raises(AssertionError, match="differ"):
        assert_outputs_close(system, u, xp.asarray(y + 1e-3), times=times)


def test_outputs_in_continuous_time(rng: np.random.Generator) -> None:
    system = dense_system(rng, 3, 1, 1, discrete=False)
    u, times = rng.standard_normal((20, 1)), np.linspace(0.0, 1.9, 20)
    held = to_discrete(system, 0.1)
    state, outputs = np.zeros(3), []
    for row in u:
        outputs.append(held.C @ state + held.D @ row)
        state = held.A @ state + held.B @ row
    assert_outputs_close(system, u, outputs, times=times)
    with pytest.raises(AssertionError, match="differ"):
        assert_outputs_close(system, u, outputs, times=2 * times)


@pytest.mark.parametrize("found", LIBRARIES)
@pytest.mark.parametrize("expected", LIBRARIES)
def test_libraries_are_told_apart(found: str, expected: str) -> None:
    result, like = library(found).zeros((1, 1)), library(expected).ones(3)
    if found == expected:
        assert_same_library(result, like)
        return
    with pytest.raises(AssertionError, match=f"{found}.* on .*allowed: .*{expected}"):
        assert_same_library(result, like)


def test_devices_and_all_arrays_of_a_system_count() -> None:
    strict = library("array_api_strict")
    with pytest.raises(AssertionError, match="device1"):
        assert_same_library(strict.zeros(1, device=strict.Device("device1")), strict.zeros(1))
    there = in_library(one_state, strict)
    assert_same_library(there, like=strict.zeros(1))
    assert_same_library(one_state, like=one_state.B)
    with pytest.raises(AssertionError, match="allowed: numpy on cpu"):
        assert_same_library(there, like=one_state)


# Strategies


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_systems_of_every_library(kind: str, dtype: str, xp: Any, data: st.DataObject) -> None:
    batch = data.draw(st.sampled_from([(), (2,), (2, 1)]))
    system = data.draw(STRATEGIES[kind](dtype=dtype, xp=xp, batch_shape=batch))
    assert system.batch_shape == batch
    assert_same_library(system, like=xp.zeros(1))
    state = system.eigenvalues if kind == "diagonal" else system.A
    assert {str(x.dtype).rpartition(".")[2] for x in (state, system.B, system.C)} == {dtype}
    assert_stable(system, margin=0.02)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_devices(kind: str) -> None:
    strict = library("array_api_strict")
    device = strict.Device("device1")
    system = simplest(STRATEGIES[kind](xp=strict, device=device), lambda _: True)
    assert_same_library(system, like=strict.zeros(1, device=device))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_library_without_the_dtype(kind: str) -> None:
    import jax

    with jax.enable_x64(False), pytest.raises(ShapeError, match="made float32 of it"):
        simplest(STRATEGIES[kind](dtype="float64", xp=jax.numpy), lambda _: True)


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("time", [None, *DOMAINS])
@given(data=st.data())
def test_options_are_kept(kind: str, time: Any, data: st.DataObject) -> None:
    after = data.draw(st.sampled_from([True, False]))
    # No HealthCheck is suppressed: nothing is filtered, and drawing is fast.
    system = data.draw(
        STRATEGIES[kind](
            order=(0, 7), inputs=2, outputs=(2, 4), time=time, margin=0.3, feedthrough=False,
            read_after_update=after,
        )
    )  # fmt: skip
    assert 0 <= system.order <= 7
    assert system.inputs == 2
    assert 2 <= system.outputs <= 4
    assert system.time == time or (time is None and system.time in DOMAINS)
    assert system.read_after_update == (after and isinstance(system.time, Discrete))
    assert not np.any(system.D)
    assert_stable(system, margin=0.15)
    if kind == "diagonal":
        assert_stable(system, margin=0.3 - 8 * EPS)


@pytest.mark.parametrize("time", DOMAINS)
@given(data=st.data())
def test_normal_systems(time: Any, data: st.DataObject) -> None:
    system = data.draw(state_spaces(time=time, departure=0.0, margin=1e-9, order=(1, 8)))
    A, size = system.A, np.linalg.norm(system.A, 2) ** 2
    assert np.linalg.norm(A @ A.conj().T - A.conj().T @ A) <= 8 * len(A) * EPS * size
    # Poles of a normal matrix move by no more than the rounding of its entries.
    assert_stable(system, margin=1e-9 - 64 * EPS * np.sqrt(max(size, 1.0)))


@given(state_spaces(departure=3.0, margin=0.3))
def test_departure_from_normality_is_bounded(system: StateSpace) -> None:
    # Henrici: ‖A‖_F² = Σ |λ|² + ‖N‖_F², which rounding of defective eigenvalues blurs a little.
    departure = np.linalg.norm(system.A) ** 2 - np.sum(np.abs(system.poles()) ** 2)
    assert departure <= 3.0**2 + 1e-6


@pytest.mark.parametrize("time", DOMAINS)
@given(data=st.data())
def test_minimal_systems_are_reachable_and_observable(time: Any, data: st.DataObject) -> None:
    strategy = data.draw(st.sampled_from(["dense", "diagonal"]))
    system = data.draw(STRATEGIES[strategy](time=time, minimal=True)).to_dense()
    # Popov, Belevitch and Hautus: [λI - A, B] has full rank at every pole.
    for pole in system.poles():
        shifted = pole * np.eye(system.order) - system.A
        for test in (np.hstack([shifted, system.B]), np.vstack([shifted, system.C])):
            assert np.linalg.svd(test, compute_uv=False)[-1] > 1e-4


@pytest.mark.parametrize("time", DOMAINS)
@given(data=st.data())
def test_other_systems_have_a_state_too_many(time: Any, data: st.DataObject) -> None:
    strategy = data.draw(st.sampled_from(["dense", "diagonal"]))
    system = data.draw(STRATEGIES[strategy](time=time, minimal=False)).to_dense()
    n, A = system.order, system.A
    # Krylov matrices, scaled by 2: the poles of the continuous systems go up to 5.
    powers = [np.linalg.matrix_power(A / 2.0, k) for k in range(n)]
    reachable = np.linalg.svd(np.hstack([X @ system.B for X in powers]), compute_uv=False)
    observable = np.linalg.svd(np.vstack([system.C @ X for X in powers]), compute_uv=False)
    least = min(values[n - 1] / max(values[0], 1e-300) for values in (reachable, observable))
    assert least <= 64 * n * EPS


def test_what_systems_shrink_to() -> None:
    system = simplest(state_spaces(), lambda _: True)
    assert (system.time, system.order, system.inputs, system.outputs) == (Discrete(), 1, 1, 1)
    assert [x.item() for x in (system.A, system.B, system.C, system.D)] == [0.5, 1.0, 1.0, 0.0]
    system = simplest(diagonal_state_spaces(time=Continuous()), lambda x: x.order > 2)
    np.testing.assert_array_equal(system.eigenvalues, [-1.0] * 3)
    np.testing.assert_array_equal([system.B[:, 0], system.C[0]], np.ones((2, 3)))
    assert system.real_output is False


def test_entries_shrink_one_by_one() -> None:
    system = simplest(state_spaces(order=(1, 8)), lambda x: x.order > 1 and x.B[1, 0] < 0)
    np.testing.assert_array_equal(system.B, [[1.0], [-1.0]])
    np.testing.assert_array_equal(system.A, 0.5 * np.eye(2))
    system = simplest(
        state_spaces(time=Discrete(), dtype="float64"),
        lambda x: np.any(np.abs(np.linalg.eigvals(x.A).imag) > 0.1),
    )
    np.testing.assert_array_equal(system.A, [[0.0, 0.5], [-0.5, 0.0]])
    system = simplest(
        state_spaces(time=Discrete(), departure=2.0),
        lambda x: x.order == 2 and x.A[0, 1] != 0 and x.A[1, 0] == 0,
    )
    np.testing.assert_array_equal(system.A, [[0.5, 1.0], [0.0, 0.5]])


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("time", DOMAINS)
def test_special_systems_are_among_them(kind: str, time: Any) -> None:
    strategy = STRATEGIES[kind](time=time, margin=1e-6)

    def distance(system: Any) -> Any:
        poles = np.asarray(system.poles())
        return 1.0 - np.abs(poles) if time == Discrete() else -poles.real

    for condition in (
        lambda x: np.sum(distance(x) < 2e-6) > 1,
        lambda x: len(set(np.asarray(x.poles()).tolist())) < x.order,
        lambda x: x.inputs > 1 and x.order > 1 and not np.any(x.B[:, -1]),
        lambda x: x.outputs > 1 and x.order > 1 and not np.any(x.C[-1]),
        lambda x: np.any(np.asarray(x.poles()).imag) and np.any(x.D),
        lambda x: np.any(x.poles() == 0.0) if time == Discrete() else True,
    ):
        # Shrinking is left out: that it is found is all that is asked for.
        generated = settings(phases=[Phase.generate], database=None, max_examples=1000)
        find(strategy, condition, settings=generated)


@given(state_spaces(order=60, batch_shape=(2,)))
def test_large_systems_are_drawn_too(system: StateSpace) -> None:
    assert system.A.shape == (2, 60, 60)
    assert_stable(system, margin=0.02)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: assert_stable(one_state, margin=np.nan), ArgumentError, "`margin` is nan"),
        (lambda: assert_stable(one_state, margin="a"), ArgumentError, "`margin` is 'a'"),
        (
            lambda: assert_error_within_bound(one_state, one_state, [1, 2, 3]),
            ShapeError,
            r"`bound` has shape \(3,\)",
        ),
        (
            lambda: assert_error_within_bound(one_state, one_state, "a"),
            ShapeError,
            "`bound` has dtype",
        ),
        (
            lambda: assert_lyapunov(np.eye(2), np.eye(2), np.eye(2), time=None),
            TimeDomainError,
            "`time` is None",
        ),
        (
            lambda: assert_lyapunov([1.0], [1.0], [1.0], time=Discrete()),
            ShapeError,
            r"`A` has shape \(1,\)",
        ),
        (
            lambda: assert_lyapunov(*[np.ones((2, 3))] * 3, time=Discrete()),
            ShapeError,
            r"`A` has shape \(2, 3\)",
        ),
        (lambda: assert_same_library([1.0], np.eye(2)), AssertionError, r"`result` is \[1.0\]"),
        (lambda: assert_same_library(np.eye(2), None), AssertionError, "`like` is None"),
    ],
)
def test_arguments_that_make_no_sense(
    call: Callable[[], None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": (3, 2)}, ArgumentError, r"`order` is \(3, 2\); expected an int or"),
        ({"order": -1}, ArgumentError, "`order` is -1"),
        ({"inputs": 0}, ArgumentError, "`inputs` is 0; expected at least 1"),
        ({"margin": 0.0}, ArgumentError, "`margin` is 0.0; expected a number from 7.1e-14"),
        ({"margin": 1e-6, "dtype": "float32"}, ArgumentError, "from 3.8e-05 "),
        ({"margin": 1.0}, ArgumentError, "below 1"),
        ({"dtype": "int8"}, ShapeError, "`dtype` is 'int8'; expected one of float64"),
        ({"time": 1.0}, TimeDomainError, "`time` is 1.0"),
        ({"order": "a"}, ArgumentError, "`order` is 'a'; expected an int or"),
        ({"order": (1, 2, 3)}, ArgumentError, r"`order` is \(1, 2, 3\)"),
        ({"order": True}, ArgumentError, "`order` is True"),
        ({"order": 2.5}, ArgumentError, "`order` is 2.5"),
        ({"inputs": [1, 2]}, ArgumentError, r"`inputs` is \[1, 2\]"),
        ({"margin": "a"}, ArgumentError, "`margin` is 'a'"),
        ({"batch_shape": 3}, ShapeError, "`batch_shape` is 3; expected a tuple"),
        ({"batch_shape": (0,)}, ShapeError, r"`batch_shape` is \(0,\)"),
        ({"batch_shape": (-1,)}, ShapeError, r"`batch_shape` is \(-1,\)"),
    ],
)
def test_options_that_make_no_sense(
    kind: str, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        STRATEGIES[kind](**options)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ArgumentError, match="`departure` is -1"):
        state_spaces(departure=-1.0)
    with pytest.raises(ShapeError, match="`dtype` is 'float64'; expected a complex dtype"):
        diagonal_state_spaces(minimal=True, real_output=True, dtype="float64")


# The page


@pytest.fixture(scope="module")
def page() -> str:
    path = Path(__file__).parents[2] / "docs" / "testing.rst"
    return path.read_text(encoding="utf-8")


def run_page(text: str) -> doctest.TestResults:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(text, {}, "testing.rst", "docs/testing.rst", 0)
    return doctest.DocTestRunner(optionflags=flags, verbose=False).run(test)


def test_the_page_runs(page: str) -> None:
    results = run_page(page)
    assert results.failed == 0
    assert results.attempted > 15


@pytest.mark.slow
def test_a_wrong_bound_is_found_as_the_page_says(page: str, capsys: Any) -> None:
    wrong = page.replace(
        "(1 - np.abs(system.eigenvalues[cut]))", "(1 - np.abs(system.eigenvalues[cut]) ** 2)"
    )
    assert wrong != page
    assert run_page(wrong).failed == 1
    printed = capsys.readouterr().out
    assert "breaks its bound" in printed
    assert re.search(r"eigenvalues=array\(\[[^,]*,[^,]*\]\)", printed)
