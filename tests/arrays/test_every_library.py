"""The numerics of the package for arrays of every library, against oracles that share no code with it.

What `library.read` returns has been checked to be of the caller's library, device and precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from libraries import HostArray, Library
from oracles import kronecker, mpmath_hsv
from samples import adjoint, dense_system, diagonal_system, impulse_response

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    HankelMass,
    StateSpace,
    balance,
    balanced_realisation,
    balanced_truncation,
    controllability_gramian,
    diagonalised,
    difference,
    error_bounds,
    frequency_response,
    h2_norm,
    h2_optimal,
    hankel_norm,
    hankel_singular_values,
    hinf_norm,
    minimal_realisation,
    modal_truncation,
    observability_gramian,
    parallel,
    real_form,
    select_states,
    series,
    simulate,
    singular_perturbation,
    solve_lyapunov,
    solve_lyapunov_factor,
    split_unstable,
    step_response,
    to_continuous,
    to_discrete,
    transformed,
)
from ssmreduce import impulse_response as markov_parameters

C = 500.0
"""Tolerance in units of n eps: conditions of these systems are below 100."""

SYSTEMS = {
    "dense": lambda rng: dense_system(rng, 6, 2, 3),
    "dense, complex": lambda rng: dense_system(rng, 6, 2, 3, is_complex=True),
    "dense, continuous": lambda rng: dense_system(rng, 6, 2, 3, discrete=False),
    "diagonal": lambda rng: diagonal_system(rng, 6, 2, 3),
    "diagonal, continuous": lambda rng: diagonal_system(rng, 6, 2, 3, discrete=False),
    "real output": lambda rng: diagonal_system(rng, 6, 2, 3, real_output=True),
}


@pytest.fixture(params=SYSTEMS)
def plain(request: pytest.FixtureRequest, rng: np.random.Generator, library: Library) -> Any:
    """A system in NumPy arrays, of numbers that the precision of the library holds exactly."""
    system = SYSTEMS[request.param](rng)
    kinds = {"f": np.float32, "c": np.complex64}
    names = ["B", "C", "D"]
    arrays = [getattr(system, name) for name in names]
    state = system.A if isinstance(system, StateSpace) else system.eigenvalues
    rounded = [x.astype(kinds[x.dtype.kind]).astype(x.dtype) for x in [state, *arrays]]
    options: dict[str, Any] = {"time": system.time}
    if isinstance(system, DiagonalStateSpace):
        options["real_output"] = system.real_output
    return type(system)(*rounded, **options)


def dense(system: Any) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """A, B, C, D of the system that is meant; the real one behind real outputs is written out."""
    if isinstance(system, StateSpace):
        return system.A, system.B, system.C, system.D
    poles, B, readout = system.eigenvalues, system.B, system.C
    if not system.real_output:
        return np.diag(poles), B, readout, system.D
    real, imag = np.diag(poles.real), np.diag(poles.imag)
    A = np.block([[real, -imag], [imag, real]])
    return (
        A,
        np.vstack([B.real, B.imag]),
        np.hstack([readout.real, -readout.imag]),
        system.D,
    )


def lyapunov(A: HostArray, Q: HostArray, time: Any) -> HostArray:
    solve = kronecker.discrete_lyapunov if time == Discrete() else kronecker.continuous_lyapunov
    return solve(A, Q)


def gains(system: Any, omega: HostArray) -> HostArray:
    """The transfer function, by one linear system per point."""
    A, B, readout, D = dense(system)
    z = np.exp(1j * omega) if system.time == Discrete() else 1j * omega
    eye = np.eye(len(A))
    return np.array([readout @ np.linalg.solve(x * eye - A, B) + D for x in z])


def assert_close(
    found: HostArray, expected: HostArray, library: Library, factor: float = C
) -> None:
    assert found.shape == expected.shape
    limit = factor * 12 * library.eps * np.abs(expected).max()
    assert np.abs(found - expected).max() <= limit


OMEGA = np.linspace(0.1, 3.0, 7)


def test_gramians(plain: Any, library: Library) -> None:
    A, B, readout, _ = dense(plain)
    system = library.system(plain)
    expected = lyapunov(A, B @ adjoint(B), plain.time)
    assert_close(library.read(controllability_gramian(system)), expected, library)
    expected = lyapunov(adjoint(A), adjoint(readout) @ readout, plain.time)
    assert_close(library.read(observability_gramian(system)), expected, library)


def test_hankel_singular_values(plain: Any, library: Library) -> None:
    A, B, readout, _ = dense(plain)
    P = lyapunov(A, B @ adjoint(B), plain.time)
    Q = lyapunov(adjoint(A), adjoint(readout) @ readout, plain.time)
    squares = np.sort(np.linalg.eigvals(P @ Q).real)[::-1]
    system = library.system(plain)
    found = library.read(hankel_singular_values(system))
    # Squares are known to eps σ₁² only.
    assert_close(found**2, squares, library)
    assert_close(np.array([hankel_norm(system)]), found[:1], library)
    tails = 2.0 * np.append(np.cumsum(found[::-1].astype(float))[::-1], 0.0)
    assert_close(library.read(error_bounds(hankel_singular_values(system))), tails, library)


def test_small_values_of_a_diagonal_system(rng: np.random.Generator, library: Library) -> None:
    plain = diagonal_system(rng, 8, 1, 1)
    expected = mpmath_hsv.hankel_singular_values(plain.eigenvalues, plain.B, plain.C)
    found = library.read(hankel_singular_values(library.system(plain)))
    assert_close(found, expected, library, factor=10.0)


def test_lyapunov_equations(plain: Any, library: Library) -> None:
    A, B, _, _ = dense(plain)
    Q = B @ adjoint(B)
    expected = lyapunov(A, Q, plain.time)
    solution = solve_lyapunov(library.make(A), library.make(Q), time=plain.time)
    assert solution.status == "success"
    assert_close(library.read(solution.value), expected, library)
    factored = solve_lyapunov_factor(library.make(A), library.make(B), time=plain.time)
    Z = library.read(factored.value)
    assert_close(Z @ adjoint(Z), expected, library)
    assert 0.0 <= factored.residual < 1e-14


def test_balanced_truncation(plain: Any, library: Library) -> None:
    system = library.system(plain)
    moves = library.moves("balance" if isinstance(plain, DiagonalStateSpace) else "nothing")
    if isinstance(plain, StateSpace) and not library.on_host:
        reduction = balanced_truncation(system, 3)
    else:
        with moves:
            reduction = balanced_truncation(system, 3)
    assert reduction.original is system
    assert reduction.order == 3
    A_names = "A" if isinstance(plain, StateSpace) else "eigenvalues"
    for name in (A_names, "B", "C", "D"):
        library.read(getattr(reduction.system, name))
    reduced = reduction.system.to_host()
    errors = np.linalg.norm(gains(plain, OMEGA) - gains(reduced, OMEGA), ord=2, axis=(1, 2))
    assert reduction.error_bound is not None
    assert 0.0 < errors.max() <= reduction.error_bound * (1.0 + C * library.eps)
    hsv = library.read(reduction.hsv)
    tail = 2.0 * float(np.sum(hsv[reduction.real_order :].astype(float)))
    assert abs(reduction.error_bound - tail) <= C * library.eps * hsv[0]
    if isinstance(plain, StateSpace):
        W, T = library.read(reduction.left), library.read(reduction.right)
        assert_close(adjoint(W) @ T, np.eye(3), library)
    with library.moves("verify"):
        assert errors.max() * (1 - C * library.eps) <= reduction.verify() <= reduction.error_bound


def test_order_rules_and_own_order(plain: Any, library: Library) -> None:
    system = library.system(plain)
    rule = HankelMass(0.9)
    with_warning = isinstance(plain, DiagonalStateSpace) and not library.on_host
    if with_warning:
        with library.moves("balance"):
            balancing = balance(system)
    else:
        balancing = balance(system)
    assert balancing.system is system
    library.read(balancing.hsv)
    assert balancing.truncate(6).system is system
    assert balancing.truncate(rule).order == balanced_truncation(plain, rule).order


def test_dc_gain_is_matched(plain: Any, library: Library) -> None:
    with library.moves("singular_perturbation"):
        reduction = singular_perturbation(library.system(plain), 3)
    library.read(reduction.system.B)
    steady = np.zeros(1)
    reduced = reduction.system.to_host()
    assert_close(gains(reduced, steady), gains(plain, steady), library)
    with library.moves("dc_gain"):
        found = library.read(library.system(plain).dc_gain())
    expected = gains(plain, steady)[0]
    assert_close(found, expected if np.iscomplexobj(found) else expected.real, library)


def test_modal_truncation_keeps_poles(plain: Any, library: Library) -> None:
    if isinstance(plain, StateSpace) and plain.A.dtype.kind == "f":
        order: Any = HankelMass(0.8)  # keeps whole pairs
    else:
        order = 3
    with library.moves("modal_truncation"):
        reduction = modal_truncation(library.system(plain), order)
    library.read(reduction.system.B)
    library.read(reduction.scores)
    kept = reduction.system.to_host().poles()
    poles = np.linalg.eigvals(dense(plain)[0])
    distance = np.abs(kept[:, None] - poles).min(axis=1)
    assert distance.max() <= C * 12 * library.eps * np.abs(poles).max()


def test_selection_and_h2_optimal(rng: np.random.Generator, library: Library) -> None:
    plain = diagonal_system(rng, 6, 2, 2)
    with library.moves("select_states"):
        reduction = select_states(library.system(plain), 2)
    kept = library.read(reduction.system.eigenvalues)
    assert np.abs(kept[:, None] - plain.eigenvalues).min(axis=1).max() <= 2 * library.eps
    plain = dense_system(rng, 5, 1, 1)
    system = library.system(plain)
    with library.moves("h2_optimal"):
        optimal = h2_optimal(system, 2)
    assert optimal.original is system
    library.read(optimal.system.A)


def test_norms(plain: Any, library: Library) -> None:
    A, B, readout, D = dense(plain)
    P = lyapunov(A, B @ adjoint(B), plain.time)
    energy = np.trace(readout @ P @ adjoint(readout)).real + np.linalg.norm(D) ** 2
    system = library.system(plain)
    assert abs(h2_norm(system) / np.sqrt(energy) - 1.0) <= C * 2e-16
    norm = hinf_norm(system)
    seen = np.linalg.norm(gains(plain, np.linspace(-np.pi, np.pi, 4001)), ord=2, axis=(1, 2)).max()
    assert norm.lower >= seen * (1.0 - 1e-9)
    at = np.array([norm.frequency])
    assert abs(np.linalg.norm(gains(plain, at)[0], ord=2) / norm.lower - 1.0) <= 1e-9
    with library.moves("hinf_norm"):
        certified = hinf_norm(system, certified=True)
    assert certified.lower >= norm.lower * (1.0 - 1e-6)
    assert certified.upper <= norm.lower * (1.0 + 1e-5)


def test_responses(plain: Any, library: Library) -> None:
    system = library.system(plain)
    expected = gains(plain, OMEGA)
    assert_close(library.read(frequency_response(system, OMEGA)), expected, library)
    omega = library.make(OMEGA)
    rounded = np.asarray(OMEGA.astype(np.float32 if library.name == "jax-x32" else float), float)
    assert_close(library.read(frequency_response(plain, omega)), gains(plain, rounded), library)
    if plain.time == Discrete():
        markov = impulse_response(plain, 8)
        with library.moves("impulse_response"):
            assert_close(library.read(markov_parameters(system, 8)), markov, library)
        with library.moves("step_response"):
            assert_close(library.read(step_response(system, 8)), np.cumsum(markov, axis=0), library)
        with library.moves("simulate"):
            output = simulate(system, library.make(np.ones((8, plain.inputs))))
        assert_close(library.read(output), np.cumsum(markov, axis=0).sum(axis=-1), library)


def test_other_forms_have_the_same_gain(plain: Any, library: Library) -> None:
    system = library.system(plain)
    expected = gains(plain, OMEGA)
    n = plain.order * (2 if getattr(plain, "real_output", False) else 1)
    T = np.triu(np.ones((n, n)))
    forms = {
        "transformed": lambda s: transformed(s, library.make(T)),
        "diagonalised": diagonalised,
        "balanced_realisation": balanced_realisation,
        "minimal_realisation": lambda s: minimal_realisation(s).system,
    }
    if plain.B.dtype.kind == "f" or getattr(plain, "real_output", False):
        forms["real_form"] = real_form
    for name, form in forms.items():
        if isinstance(plain, DiagonalStateSpace) and name == "diagonalised":
            continue
        with library.moves(name):
            other = form(system)
        library.read(other.B)
        assert_close(gains(other.to_host(), OMEGA), expected, library)


def test_combinations(plain: Any, library: Library) -> None:
    system, gain = library.system(plain), gains(plain, OMEGA)
    with library.moves("parallel"):
        both = parallel(system, system)
    library.read(both.C)
    assert_close(gains(both.to_host(), OMEGA), 2.0 * gain, library)
    with library.moves("difference"):
        assert np.abs(gains(difference(system, system).to_host(), OMEGA)).max() < 1e-4
    square = StateSpace(plain.B[:2] * 0.1, plain.B[:2], plain.B[:2], time=plain.time)
    with library.moves("series"):
        chain = series(library.system(square), system)
    assert_close(gains(chain.to_host(), OMEGA), gain @ gains(square, OMEGA), library)


def test_sampling_and_splitting(rng: np.random.Generator, library: Library) -> None:
    plain = dense_system(rng, 4, 1, 1, discrete=False)
    system = library.system(plain)
    with library.moves("to_discrete"):
        sampled = to_discrete(system, 0.1)
    powers = library.read(sampled.A)
    values, vectors = np.linalg.eig(np.asarray(plain.A))
    expected = (vectors * np.exp(0.1 * values)) @ np.linalg.inv(vectors)
    assert_close(powers, expected.real, library)
    with library.moves("to_continuous"):
        back = to_continuous(sampled)
    assert_close(library.read(back.A), plain.A, library)
    unstable = StateSpace(np.diag([1.0, -1.0]), np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
    with library.moves("split_unstable"):
        split = split_unstable(library.system(unstable))
    assert library.read(split.unstable.A).tolist() == [[1.0]]
    with library.moves("poles"):
        assert library.read(split.stable.poles()).tolist() == [-1.0]
    with library.moves("is_stable"):
        assert bool(split.stable.is_stable())


def test_batches(rng: np.random.Generator, library: Library) -> None:
    singles = [dense_system(rng, 4, 2, 2) for _ in range(3)]
    arrays = [np.stack([getattr(s, name) for s in singles]) for name in "ABCD"]
    batch = library.system(StateSpace(*arrays, time=Discrete()))
    hsv = library.read(hankel_singular_values(batch))
    expected = np.stack([hankel_singular_values(s) for s in singles])
    assert_close(hsv, expected, library)
    assert_close(library.read(h2_norm(batch)), np.array([h2_norm(s) for s in singles]), library)
    reduction = balanced_truncation(batch, 2)
    assert library.read(reduction.order).tolist() == [2, 2, 2]
    assert library.read(reduction.mask).all()
    bounds = library.read(reduction.error_bound)
    assert_close(bounds, 2.0 * expected[:, 2:].sum(axis=1), library)
    with library.moves("verify"):
        measured = library.read(reduction.verify())
    assert np.all(measured <= bounds * (1.0 + C * library.eps))


def test_arguments_stay_as_they_are(plain: Any, library: Library) -> None:
    system = library.system(plain)
    names = ["B", "C", "D", "A" if isinstance(plain, StateSpace) else "eigenvalues"]
    held = [getattr(system, name) for name in names]
    before = [library.read(x).tobytes() for x in held]
    hankel_singular_values(system), h2_norm(system), frequency_response(system, OMEGA)
    with library.moves("modal_truncation"):
        modal_truncation(system, HankelMass(0.8))
    assert all(getattr(system, name) is x for name, x in zip(names, held, strict=True))
    assert [library.read(x).tobytes() for x in held] == before
