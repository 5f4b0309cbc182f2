"""Routes that leave arrays where they are: on devices, made-up ones too, under tracing, with gradients.

In the fixture `native` a move to the host is a warning, and so an error. What is compared with comes from
the host's algorithms, which are other ones: Schur forms, and elimination in blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import libraries
import numpy as np
import pytest
from libraries import HostArray, Library
from samples import adjoint, dense_system, diagonal_system, lru_system

import ssmreduce
from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    HankelMass,
    StateSpace,
    TotalBudget,
    balance,
    balanced_truncation,
    controllability_gramian,
    error_bounds,
    frequency_response,
    h2_norm,
    hankel_norm,
    hankel_singular_values,
    hinf_norm,
    modal_truncation,
    observability_gramian,
    solve_lyapunov,
    solve_lyapunov_factor,
)
from ssmreduce.devices import diagonal_factors, doubling, matrix_sign
from ssmreduce.devices.hankel_values import singular_values
from ssmreduce.devices.residual import factor_residual
from ssmreduce.equations.residual import relative_residual
from ssmreduce.equations.solvers import BartelsStewart, MatrixSign, SmithDoubling
from ssmreduce.errors import (
    HostTransferWarning,
    TracedValueError,
    UnstableSystemError,
)
from ssmreduce.regularizers import LazyHankelNuclearNorm, hankel_nuclear_norm
from ssmreduce.systems.pytree import arrays_of, with_arrays

C = 2000.0
"""Tolerance in units of n eps; doubling and the sign iteration see the condition of the equation."""

SYSTEMS: dict[str, Callable[[np.random.Generator], Any]] = {
    "dense, complex": lambda rng: dense_system(rng, 10, 2, 3, is_complex=True),
    "dense, continuous": lambda rng: dense_system(rng, 10, 2, 3, discrete=False),
    "dense, more inputs than states": lambda rng: dense_system(rng, 3, 5, 4, discrete=False),
    "diagonal, continuous": lambda rng: diagonal_system(rng, 10, 2, 3, discrete=False),
    "real output, continuous": lambda rng: diagonal_system(
        rng, 10, 2, 3, discrete=False, real_output=True
    ),
    "layer": lambda rng: lru_system(rng, 12, 3),
}

OMEGA = np.linspace(0.1, 3.0, 5)


@pytest.fixture(params=SYSTEMS)
def plain(request: pytest.FixtureRequest, rng: np.random.Generator) -> Any:
    return SYSTEMS[request.param](rng)


def assert_close(found: HostArray, expected: Any, eps: float = 2.0**-52, factor: float = C) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= factor * 12 * eps * np.abs(expected).max()


def test_nothing_leaves_the_device(plain: Any, native: Library) -> None:
    system = native.system(plain)
    assert_close(native.read(controllability_gramian(system)), controllability_gramian(plain))
    assert_close(native.read(observability_gramian(system)), observability_gramian(plain))
    values = hankel_singular_values(system)
    assert_close(native.read(values), hankel_singular_values(plain))
    assert_close(native.read(error_bounds(values)), error_bounds(hankel_singular_values(plain)))
    assert_close(np.array(h2_norm(system)), h2_norm(plain))
    assert_close(np.array(hankel_norm(system)), hankel_norm(plain))
    response = native.read(frequency_response(system, OMEGA))
    assert_close(response, frequency_response(plain, OMEGA))
    norm, expected = hinf_norm(system), hinf_norm(plain)
    assert norm.lower <= expected.lower * (1.0 + 1e-9)
    assert norm.lower >= expected.lower * (1.0 - 1e-9)
    assert norm.upper == np.inf


@pytest.mark.parametrize("scale", [1e-100, 1e100])
@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_numbers_without_squares_leave_the_device(
    rng: np.random.Generator, kind: str, scale: float
) -> None:
    plain = dense_system(rng, 6, 2, 2) if kind == "dense" else diagonal_system(rng, 6, 2, 2)
    state = plain.A if isinstance(plain, StateSpace) else plain.eigenvalues
    extreme = type(plain)(state, scale * plain.B, scale * plain.C, time=plain.time)
    with libraries.opened("strict-device") as library:
        system = library.system(extreme)
        with pytest.warns(HostTransferWarning, match="cannot be squared"):
            assert h2_norm(system) / scale / scale == pytest.approx(h2_norm(plain), rel=1e-12)
        with pytest.warns(HostTransferWarning, match="cannot be squared"):
            values = library.read(hankel_singular_values(system))
    assert_close(values / scale / scale, hankel_singular_values(plain))


def test_balanced_truncation_stays(rng: np.random.Generator, native: Library) -> None:
    for discrete in (True, False):
        plain = dense_system(rng, 10, 2, 3, discrete=discrete)
        system = native.system(plain)
        balancing, expected = balance(system), balance(plain).truncate(4)
        assert balancing.rank == 10
        for order in (4, HankelMass(0.9)):
            found = balancing.truncate(order)
            assert found.order == balance(plain).truncate(order).order
        found = balancing.truncate(4)
        W, T = native.read(found.left), native.read(found.right)
        assert_close(adjoint(W) @ T, np.eye(4))
        assert_close(native.read(found.system.A), adjoint(W) @ plain.A @ T)
        assert_close(np.array(found.error_bound), expected.error_bound)
        reduced = found.system.to_host()
        assert_close(frequency_response(reduced, OMEGA), frequency_response(expected.system, OMEGA))
        assert balancing.truncate(10).system is system


def test_batches_in_one_go(rng: np.random.Generator, native: Library) -> None:
    dense = [dense_system(rng, 5, 2, 2, discrete=False) for _ in range(4)]
    # One much nearer to the boundary than the others, which must not spoil those that are done before.
    dense[1] = StateSpace(1e-3 * dense[1].A, dense[1].B, dense[1].C, time=Continuous())
    layers = [diagonal_system(rng, 5, 2, 2, real_output=True) for _ in range(4)]
    for singles, names in ((dense, "ABCD"), (layers, ("eigenvalues", "B", "C", "D"))):
        options: dict[str, Any] = {"time": singles[0].time}
        if singles is layers:
            options["real_output"] = True
        stacked = [np.stack([getattr(s, name) for s in singles]) for name in names]
        arrays = [x.reshape(2, 2, *x.shape[1:]) for x in stacked]
        batch = native.system(type(singles[0])(*arrays, **options))
        found = native.read(hankel_singular_values(batch)).reshape(4, -1)
        for k, single in enumerate(singles):
            assert_close(found[k], hankel_singular_values(single))
        assert native.read(h2_norm(batch)).shape == (2, 2)
    batch = native.system(
        StateSpace(*(np.stack([getattr(s, x) for s in dense]) for x in "ABCD"), time=Continuous())
    )
    reduction = balanced_truncation(batch, 2)
    assert native.read(reduction.system.A).shape == (4, 2, 2)
    with native_moves("verify"):
        errors = native.read(reduction.verify())
    assert np.all(errors <= native.read(reduction.error_bound) * (1.0 + 1e-9))


def native_moves(name: str) -> Any:
    return pytest.warns(HostTransferWarning, match=f"`{name}` got an array of")


def test_lyapunov_equations_stay(rng: np.random.Generator, native: Library) -> None:
    for discrete, solver in ((True, SmithDoubling()), (False, MatrixSign())):
        plain = dense_system(rng, 8, 2, 2, discrete=discrete, is_complex=True)
        A, B = native.make(plain.A), native.make(plain.B)
        Q = plain.B @ adjoint(plain.B)
        for solution in (
            solve_lyapunov(A, native.make(Q), time=plain.time),
            solve_lyapunov_factor(A, B, time=plain.time),
        ):
            assert (solution.solver, solution.status) == (solver, "success")
            value = native.read(solution.value)
            # Z is square too, as soon as n columns are needed, but not Hermitian.
            hermitian = np.allclose(value, adjoint(value), atol=1e-9 * np.abs(value).max())
            X = value if hermitian else value @ adjoint(value)
            assert relative_residual(plain.A, X, Q, time=plain.time) < 1e-14


def test_single_precision_is_widened_where_doubles_exist(native: Library) -> None:
    A = np.array([[0.5, 0.25], [0.0, -0.5]], dtype=np.float32)
    system = native.system(StateSpace(A, A[:, :1], A[:1], time=Discrete()))
    assert native.read(hankel_singular_values(system)).dtype == np.float64


# --- What the host does better


def test_what_has_no_native_route_says_so(rng: np.random.Generator, native: Library) -> None:
    system = native.system(dense_system(rng, 6, 1, 1))
    stored = native.system(diagonal_system(rng, 6, 2, 2))
    calls: dict[str, tuple[str, Callable[[], Any]]] = {
        "Schur": ("modal_truncation", lambda: modal_truncation(system, HankelMass(0.9))),
        "horizon": ("hankel_singular_values", lambda: hankel_singular_values(system, horizon=9)),
        "certificate": ("hinf_norm", lambda: hinf_norm(system, certified=True)),
        "diagonal": ("balance", lambda: balance(stored)),
        "match_dc": ("match_dc", lambda: balance(system).match_dc(2)),
        "budget": (
            "budget_values",
            lambda: TotalBudget(3).allocate(balance(system).budget_values()),
        ),
        "solver": (
            "solve_lyapunov",
            lambda: solve_lyapunov(system.A, system.A, time=Discrete(), solver=BartelsStewart()),
        ),
    }
    for name, call in calls.values():
        with native_moves(name) as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}


def test_near_the_boundary_the_host_takes_over(native: Library) -> None:
    # 2^-40 from the axis, with a strong coupling: the inverses lose what a Schur form keeps.
    A = np.array([[-(2.0**-40), 1e6], [0.0, -1.0]])
    plain = StateSpace(A, np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = hankel_singular_values(native.system(plain))
    expected = hankel_singular_values(plain)
    if caught:
        assert {type(w.message) for w in caught} == {HostTransferWarning}
        assert_close(native.read(found), expected, factor=1.0)
    else:
        assert_close(native.read(found), expected, factor=1e6)


@pytest.mark.parametrize("kind", ["dense", "dense, continuous", "diagonal"])
def test_unstable_systems_are_refused(native: Library, kind: str) -> None:
    time: Any = Continuous() if "continuous" in kind else Discrete()
    poles = np.array([0.5, 1.5])
    ones, row = np.ones((2, 1)), np.ones((1, 2))
    plain: Any = StateSpace(np.diag(poles), ones, row, time=time)
    if kind == "diagonal":
        plain = DiagonalStateSpace(poles, ones, row, time=time)
    for function in (hankel_singular_values, h2_norm, hinf_norm, controllability_gramian):
        with pytest.warns(HostTransferWarning), pytest.raises(UnstableSystemError):
            function(native.system(plain))


def test_orders_above_the_rank_are_refused(native: Library) -> None:
    A = np.diag([0.5, 0.25, 0.125])
    plain = StateSpace(A, np.eye(3)[:, :1], np.ones((1, 3)), time=Discrete())
    with (
        native_moves("truncate"),
        pytest.raises(ssmreduce.errors.OrderError, match="numerical rank 1"),
    ):
        balanced_truncation(native.system(plain), 2)


def test_32_bit_devices_are_left_for_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = StateSpace(np.diag([0.5, 0.1]), np.ones((2, 1)), np.ones((1, 2)), time=Discrete())
    device = array_api_strict.Device("no_float64")
    strict = array_api_strict

    def make(host: HostArray) -> Any:
        return strict.asarray(host.astype(np.float32), device=device)

    system = StateSpace(*(make(getattr(plain, x)) for x in "ABCD"), time=Discrete())
    with pytest.warns(HostTransferWarning, match="32-bit numbers only"):
        values = hankel_singular_values(system)
    assert (values.dtype, values.device) == (strict.float32, device)
    with jax.enable_x64(False):
        monkeypatch.setattr("ssmreduce._array_routes.in_host_memory", lambda array: False)
        arrays = [jnp.asarray(getattr(plain, x)) for x in "ABCD"]
        with pytest.warns(HostTransferWarning, match="jax_enable_x64"):
            found = hankel_singular_values(StateSpace(*arrays, time=Discrete()))
    assert_close(np.asarray(found), hankel_singular_values(plain), eps=2.0**-23, factor=1.0)


# --- Tracing


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What JAX traces is taken to run on a device, where derivatives are not asked for."""
    monkeypatch.setattr("ssmreduce.derivatives.jax.traced_on_device", lambda: True)


@pytest.mark.parametrize(
    ("kind", "enabled"),
    [
        ("dense, continuous", True),
        pytest.param("layer", True, marks=pytest.mark.slow),
        pytest.param("dense, complex", False, marks=pytest.mark.slow),
    ],
)
def test_jit(rng: np.random.Generator, on_device: None, kind: str, enabled: bool) -> None:
    plain = SYSTEMS[kind](rng)
    names = ["A" if isinstance(plain, StateSpace) else "eigenvalues", "B", "C", "D"]
    options: dict[str, Any] = {
        "time": plain.time,
        "read_after_update": plain.read_after_update,
    }
    if isinstance(plain, DiagonalStateSpace):
        options["real_output"] = plain.real_output

    def answers(*arrays: Any) -> dict[str, Any]:
        system = type(plain)(*arrays, **options)
        values = hankel_singular_values(system)
        return {
            "P": controllability_gramian(system),
            "values": values,
            "bounds": error_bounds(values),
            "h2": h2_norm(system),
            "hankel": hankel_norm(system),
            "hinf": hinf_norm(system).lower,
            "response": frequency_response(system, jnp.asarray(OMEGA)),
        }

    expected = {
        "P": controllability_gramian(plain),
        "values": hankel_singular_values(plain),
        "bounds": error_bounds(hankel_singular_values(plain)),
        "h2": h2_norm(plain),
        "hankel": hankel_norm(plain),
        "hinf": hinf_norm(plain).lower,
        "response": frequency_response(plain, OMEGA),
    }
    eps = 2.0**-52 if enabled else 2.0**-23
    with jax.enable_x64(enabled):
        arrays = [jnp.asarray(getattr(plain, name)) for name in names]
        found = jax.jit(answers)(*arrays)
        for name, value in expected.items():
            assert_close(np.asarray(found[name]), value, eps)


@pytest.mark.slow
def test_vmap(rng: np.random.Generator, on_device: None) -> None:
    singles = [dense_system(rng, 4, 1, 1, discrete=False) for _ in range(3)]

    def values(A: Any, B: Any, readout: Any) -> Any:
        return hankel_singular_values(StateSpace(A, B, readout, time=Continuous()))

    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.stack([getattr(s, x) for s in singles])) for x in "ABC"]
        found = np.asarray(jax.vmap(values)(*arrays))
    for k, single in enumerate(singles):
        assert_close(found[k], hankel_singular_values(single))


def test_traced_reductions(rng: np.random.Generator) -> None:
    plain = dense_system(rng, 8, 2, 2)

    def reduced(A: Any, B: Any, readout: Any) -> Any:
        reduction = balanced_truncation(StateSpace(A, B, readout, time=Discrete()), 3)
        assert isinstance(reduction.order, int)
        assert reduction.hsv.shape == (8,)
        solution = solve_lyapunov_factor(A, B, time=Discrete())
        assert solution.status == "unchecked"
        assert solution.value.shape == (8, 8)
        return reduction.system.A, reduction.system.B, reduction.system.C, reduction.error_bound

    with jax.enable_x64(True):
        arrays = [jnp.asarray(getattr(plain, x)) for x in "ABC"]
        A, B, readout, bound = map(np.asarray, jax.jit(reduced)(*arrays))
    expected = balanced_truncation(plain, 3)
    assert_close(bound, expected.error_bound)
    found = frequency_response(StateSpace(A, B, readout, time=Discrete()), OMEGA)
    assert_close(found, frequency_response(expected.system, OMEGA))


def test_traced_values_that_do_not_converge_are_nan(on_device: None) -> None:
    @jax.jit
    def values(A: Any) -> Any:
        return hankel_singular_values(
            StateSpace(A, jnp.ones((2, 1)), jnp.ones((1, 2)), time=Discrete())
        )

    with jax.enable_x64(True):
        assert np.all(np.isnan(values(jnp.diag(jnp.array([0.5, 1.5])))))
        assert np.all(np.isfinite(values(jnp.diag(jnp.array([0.5, 0.9])))))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense, more inputs than states", "diagonal, continuous"])
def test_jax_arrays_of_a_device_stay(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("ssmreduce._array_routes.in_host_memory", lambda array: False)
    plain = SYSTEMS[kind](rng)
    with libraries.opened("jax-x64") as library:
        system = library.system(plain)
        found = library.read(hankel_singular_values(system))
        assert_close(found, hankel_singular_values(plain))
        response = library.read(frequency_response(system, OMEGA))
    assert_close(response, frequency_response(plain, OMEGA))


def test_what_looks_at_values_is_refused_under_tracing() -> None:
    def system(A: Any) -> StateSpace:
        return StateSpace(A, jnp.ones((2, 1)), jnp.ones((1, 2)), time=Discrete())

    calls: dict[str, Callable[[Any], Any]] = {
        "modal_truncation": lambda A: modal_truncation(system(A), 1).system.A,
        "truncate": lambda A: balanced_truncation(system(A), HankelMass(0.9)).system.A,
        "match_dc": lambda A: balance(system(A)).match_dc(1).system.A,
        "poles": lambda A: system(A).poles(),
    }
    for name, call in calls.items():
        with pytest.raises(TracedValueError, match=f"`{name}` was called with a traced array"):
            jax.jit(call)(jnp.diag(jnp.array([0.5, 0.25])))


def test_lists_of_traced_arrays_are_refused() -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "hsv": lambda x: error_bounds([x[0], x[1]]),
        "A": lambda x: StateSpace([[x[0]]], [[1.0]], [[1.0]], time=Discrete()).A,
        "eigenvalues": lambda x: (
            DiagonalStateSpace((x[0],), [[1.0]], [[1.0]], time=Discrete()).eigenvalues
        ),
    }
    for name, call in calls.items():
        with pytest.raises(
            TracedValueError, match=f"`{name}` is a .*jax.numpy.stack.*outside of jit"
        ):
            jax.jit(call)(jnp.array([0.5, 0.25]))


def test_orders_above_the_rank_have_no_bound_under_jit() -> None:
    def bound(A: Any, order: int) -> Any:
        C = jnp.ones((1, 3))
        system = StateSpace(A, jnp.eye(3)[:, :1], C, time=Discrete())
        return balanced_truncation(system, order).error_bound

    with jax.enable_x64(True):
        A = jnp.diag(jnp.array([0.5, 0.25, 0.125]))
        found = [float(jax.jit(bound, static_argnums=1)(A, order)) for order in (1, 2, 3)]
    assert found[0] == 0.0
    assert np.isnan(found[1])
    assert found[2] == 0.0  # nothing is cut


def test_constants_under_jit_are_no_obstacle(on_device: None) -> None:
    A, B, readout = np.diag([0.5, 0.25]), np.ones((2, 1)), np.ones((1, 2))

    @jax.jit
    def scaled(gain: Any) -> Any:
        return hankel_norm(StateSpace(jnp.asarray(A), gain * B, readout, time=Discrete()))

    with jax.enable_x64(True):
        found = float(scaled(3.0))
    expected = 3.0 * hankel_norm(StateSpace(A, B, readout, time=Discrete()))
    assert abs(found / expected - 1.0) < 1e-14


def test_derivatives_of_what_runs_on_a_device(on_device: None) -> None:
    """The value comes from the device, the derivative from the host's rule."""
    A, ones, row = np.diag([0.5, 0.25]), np.ones((2, 1)), np.ones((1, 2))

    def norm(gain: Any) -> Any:
        return h2_norm(StateSpace(jnp.asarray(A), gain * ones, row, time=Discrete()))

    expected = h2_norm(StateSpace(A, ones, row, time=Discrete()))
    with jax.enable_x64(True):
        assert abs(jax.jit(norm)(2.0) / (2.0 * expected) - 1.0) < 1e-14
        assert abs(jax.jit(jax.grad(norm))(2.0) / expected - 1.0) < 1e-13


# --- Gradients of torch


def test_torch_records_gradients() -> None:
    torch = pytest.importorskip("torch")
    plain = StateSpace(
        np.array([[0.5, 0.3], [0.0, 0.2]]),
        np.array([[1.0], [2.0]]),
        np.array([[1.0, 1.0]]),
        time=Discrete(),
    )
    A = torch.tensor(plain.A, requires_grad=True)
    B, readout = torch.tensor(plain.B), torch.tensor(plain.C)
    norm = h2_norm(StateSpace(A, B, readout, time=Discrete()))
    norm.backward()
    step = 1e-6
    for at in np.ndindex(2, 2):
        shift = np.zeros((2, 2))
        shift[at] = step
        values = [
            h2_norm(StateSpace(plain.A + s * shift, plain.B, plain.C, time=Discrete()))
            for s in (1.0, -1.0)
        ]
        assert abs(A.grad[at] - (values[0] - values[1]) / (2 * step)) < 1e-7
    with torch.no_grad():
        assert isinstance(h2_norm(StateSpace(A, B, readout, time=Discrete())), float)
    # What has no native route gives values without a gradient, as to_host() does.
    reduced = modal_truncation(StateSpace(A, B, readout, time=Discrete()), 1)
    assert not reduced.system.A.requires_grad


@pytest.mark.parametrize("kind", ["diagonal", "equation"])
def test_a_gradient_that_ends_is_named(kind: str) -> None:
    """Whether a native version answers depends on values; where it cannot the gradient is lost."""
    torch = pytest.importorskip("torch")

    def diagonal(p: float) -> Any:
        p = torch.tensor(p, dtype=torch.float64, requires_grad=True)
        return torch.diag(torch.stack([p, torch.tensor(0.5), torch.tensor(0.2)]).double())

    eye = torch.eye(3, dtype=torch.float64)
    calls: dict[str, Callable[[], Any]] = {
        "diagonal": lambda: (
            balanced_truncation(
                DiagonalStateSpace(
                    torch.diagonal(diagonal(0.6)), eye[:, :1], eye[:1], time=Discrete()
                ),
                1,
            ).system.B
        ),
        "equation": lambda: solve_lyapunov(diagonal(1.5), eye, time=Discrete()).value,
    }
    with pytest.warns(HostTransferWarning, match="the gradient ends here") as caught:
        answer = calls[kind]()
    assert not answer.requires_grad
    assert {warning.filename for warning in caught} == {__file__}
    distinct = StateSpace(diagonal(0.6), eye, eye, time=Discrete())
    assert balanced_truncation(distinct, 2).system.A.requires_grad


def test_derivatives_of_the_host_say_so(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    plain = diagonal_system(rng, 3, 2, 2)
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays_of(plain)]
    system = with_arrays(plain, tensors)
    monkeypatch.setattr("ssmreduce._array_routes.in_host_memory", lambda array: False)
    for name, call in {
        "h2_norm": h2_norm,
        "hankel_nuclear_norm": hankel_nuclear_norm,
        "LazyHankelNuclearNorm.refresh": LazyHankelNuclearNorm().refresh,
    }.items():
        with native_moves(name) as caught:
            call(system)
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_frequencies_have_a_gradient(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    plain = dense_system(rng, 4, 1, 1)
    system = StateSpace(*(torch.tensor(getattr(plain, x)) for x in "ABCD"), time=plain.time)
    omega = torch.tensor([0.3, 1.2], dtype=torch.float64, requires_grad=True)
    abs(frequency_response(system, omega)).sum().backward()
    step = 1e-6
    ends = [abs(frequency_response(plain, omega.detach().numpy() + s)) for s in (step, -step)]
    expected = (ends[0] - ends[1])[:, 0, 0] / (2 * step)
    np.testing.assert_allclose(omega.grad, expected, rtol=1e-7)


# --- The algorithms, for NumPy too


def test_factors_of_numpy_arrays(plain: Any) -> None:
    if plain.read_after_update:
        plain = plain.to_standard()
    assert_close(singular_values(plain), hankel_singular_values(plain))


def test_one_state_factor_for_all_ranks(rng: np.random.Generator) -> None:
    # Equal poles, and a row of zeros: fewer pivots than states.
    poles = np.array([0.5, 0.5, 0.3, 0.2])
    G = np.array([[1.0], [2.0], [0.0], [1.0]])
    Z = diagonal_factors.state_factor(poles, None, G, Discrete())
    gramian = (G @ G.T) / (1.0 - np.outer(poles, poles))
    np.testing.assert_allclose(Z @ Z.T, gramian, rtol=1e-14, atol=1e-15)
    assert np.count_nonzero(np.any(Z != 0.0, axis=0)) == 2
    tiny = DiagonalStateSpace.from_log(
        np.array([-1e-13, -1e-3]), np.ones((2, 1)), np.ones((1, 2)), time=Discrete()
    )
    Z = diagonal_factors.state_factor(tiny.eigenvalues, tiny.log_eigenvalues, tiny.B, Discrete())
    assert abs((Z @ Z.T)[0, 0] * 2e-13 - 1.0) < 1e-12


def test_both_sides_share_an_iteration(rng: np.random.Generator) -> None:
    for plain, factors in (
        (dense_system(rng, 7, 2, 3), doubling.infinite_factors),
        (dense_system(rng, 7, 2, 3, discrete=False), matrix_sign.sign_factors),
    ):
        dual = adjoint(plain.C)
        (Z, Y), converged, *_ = factors(plain.A, plain.B, dual)
        assert bool(converged)
        assert factor_residual(plain.A, Z, plain.B, time=plain.time) < 1e-14
        assert factor_residual(adjoint(plain.A), Y, dual, time=plain.time) < 1e-14
        assert factor_residual(plain.A, Z * 1.01, plain.B, time=plain.time) > 1e-4
