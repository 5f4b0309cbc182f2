"""Balanced and minimal realisations, and the warning about inputs and outputs with small gains."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import EPS, complex_normal, dense_system, diagonal_system, lru_system, well_conditioned

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)
from ssmreduce.errors import (
    ArgumentError,
    OrderError,
    ScalingWarning,
    ShapeError,
    UnstableSystemError,
)
from ssmreduce.reduction.realisation import balanced_realisation, minimal_realisation
from ssmreduce.responses import frequency_response

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["dense", "complex dense", "diagonal", "real output"])

C_ROUNDING = 100.0
"""c of c n eps · size · condition."""


def draw(kind: str, seed: int, n: int, *, discrete: bool) -> Any:
    rng = np.random.default_rng(seed)
    if "dense" in kind:
        return dense_system(rng, n, 2, 3, discrete=discrete, is_complex=kind != "dense")
    return diagonal_system(rng, n, 2, 3, discrete=discrete, real_output=kind == "real output")


def distance(first: Any, second: Any) -> float:
    discrete = isinstance(first.time, Discrete)
    omega = np.linspace(-np.pi, np.pi, 101) if discrete else np.linspace(-20.0, 20.0, 101)
    difference = frequency_response(first, omega) - frequency_response(second, omega)
    return float(np.linalg.norm(difference, 2, axis=(1, 2)).max())


@given(KINDS, SEEDS, st.integers(1, 7), st.booleans())
def test_balanced_gramians_are_equal_and_diagonal(
    kind: str, seed: int, n: int, discrete: bool
) -> None:
    system = draw(kind, seed, n, discrete=discrete)
    sigma = hankel_singular_values(system)
    if balance(system).rank < sigma.size:
        with pytest.raises(OrderError, match="minimal_realisation"):
            balanced_realisation(system)
        return
    balanced = balanced_realisation(system)
    assert balanced.order == sigma.size
    assert np.iscomplexobj(balanced.A) == (kind in {"complex dense", "diagonal"})
    # σ_i is known to eps σ₁, and the state of σ_i scaled by 1/sqrt(σ_i): in it an error of
    # eps σ₁ is one of eps σ₁/sqrt(σ_i σ_j). The Gramian of the realisation amplifies it by its own
    # condition, that of A over the distance of poles to the boundary.
    dense = system if isinstance(system, StateSpace) else system.to_dense()
    poles, V = np.linalg.eig(dense.A)
    reach = np.min(1 - np.abs(poles)) if discrete else np.min(-poles.real)
    condition = np.linalg.cond(V) ** 2 / reach * max(1.0, np.abs(poles).max())
    allowed = C_ROUNDING * sigma.size * EPS * condition * sigma[0]
    allowed = allowed * sigma[0] / np.sqrt(np.outer(sigma, sigma))
    for gramian in (controllability_gramian(balanced), observability_gramian(balanced)):
        assert np.all(np.abs(gramian - np.diag(sigma)) <= allowed)
    assert distance(system, balanced) <= allowed.max()


def test_realisations_of_batches_and_layers() -> None:
    singles = [lru_system(np.random.default_rng(k), 4, 2) for k in range(3)]
    batch = DiagonalStateSpace(
        *(np.stack([getattr(s, name) for s in singles]) for name in ("eigenvalues", "B", "C", "D")),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    balanced = balanced_realisation(batch)
    assert balanced.A.shape == (3, 8, 8)
    assert balanced.read_after_update
    for k, single in enumerate(singles):
        np.testing.assert_array_equal(balanced.A[k], balanced_realisation(single).A)
        assert distance(single, balanced[k]) <= 5e4 * EPS * hankel_singular_values(single)[0]
    with pytest.raises(ShapeError, match="batch axes"):
        minimal_realisation(batch)


def padded(system: StateSpace, rng: np.random.Generator) -> StateSpace:
    """The same map with two states that no input reaches and one that no output sees."""
    n = system.order
    A = np.zeros((n + 3, n + 3), dtype=np.asarray(system.A).dtype)
    A[:n, :n] = system.A
    A[n, n], A[n + 1, n + 1], A[n + 2, n + 2] = -0.3, -0.5, -0.4
    A[:n, n : n + 2] = rng.standard_normal((n, 2))
    A[n + 2, :n] = rng.standard_normal(n)
    B = np.concatenate([system.B, np.zeros((2, system.inputs)), np.ones((1, system.inputs))])
    C = np.concatenate(
        [system.C, rng.standard_normal((system.outputs, 2)), np.zeros((system.outputs, 1))], axis=1
    )
    T = well_conditioned(rng, n + 3, is_complex=np.iscomplexobj(A))
    inverse = np.linalg.inv(T)
    return StateSpace(T @ A @ inverse, T @ B, C @ inverse, time=system.time)


@pytest.mark.parametrize("kind", ["dense", "complex dense"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_minimal_realisation_of_dense_systems(kind: str, discrete: bool, seed: int) -> None:
    plain = draw(kind, seed, 5, discrete=discrete)
    system = padded(plain, np.random.default_rng(seed))
    sigma = hankel_singular_values(plain)
    reduction = minimal_realisation(system)
    assert reduction.order == reduction.system.order == 5
    assert reduction.method == "minimal realisation"
    assert np.abs(reduction.hsv[:5] - sigma).max() <= 1e-9 * sigma[0]
    assert distance(plain, reduction.system) <= 1e-9 * sigma[0]
    assert minimal_realisation(plain).system is plain
    with pytest.raises(OrderError, match=r"numerical rank 5 but 8 states"):
        balanced_realisation(system)
    # A tolerance of one's own decides otherwise.
    share = float(np.sqrt(sigma[2] * sigma[3]) / sigma[0])
    assert minimal_realisation(system, tolerance=share).order == 3


@pytest.mark.parametrize("kind", ["dense", "complex dense"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("boundary", [False, True])
def test_minimal_realisation_of_unstable_systems(kind: str, discrete: bool, boundary: bool) -> None:
    rng = np.random.default_rng(3)
    stable = draw(kind, 3, 3, discrete=discrete)
    if discrete:
        poles = np.array([1.0, -1.0] if boundary else [1.5, -1.2])
    else:
        poles = np.array([0.0, 0.0] if boundary else [0.5, 2.0])
    n = 3 + 4
    A = np.zeros((n, n), dtype=np.asarray(stable.A).dtype)
    A[:3, :3], A[3:5, 3:5] = stable.A, np.diag(poles)
    A[3, 4] = 1.0  # a double integrator where both are at 0
    A[5, 5], A[6, 6] = 1.7, -1.9 if discrete else 3.1
    B, C = rng.standard_normal((n, 1)), rng.standard_normal((1, n))
    B[5], C[:, 6] = 0.0, 0.0  # unstable, but never reached or never seen
    plain = StateSpace(A[:5, :5], B[:5], C[:, :5], time=stable.time)
    T = well_conditioned(rng, n, is_complex=kind != "dense")
    inverse = np.linalg.inv(T)
    system = StateSpace(T @ A @ inverse, T @ B, C @ inverse, time=stable.time)
    # A double pole on the boundary spreads to sqrt(eps) on both sides. The change of states leaves
    # what was unreachable reached by some eps ‖A‖‖T‖‖T⁻¹‖: more than the accuracy of the values.
    reduction = minimal_realisation(system, tolerance=1e-12, margin=1e-5)
    assert reduction.order == reduction.system.order == 5
    assert reduction.unstable == 2
    assert np.iscomplexobj(reduction.system.A) == (kind != "dense")
    # Off the boundary, where a pole may lie.
    point = 3.0 + 0.7j
    first, second = transfer(plain, point), transfer(reduction.system, point)
    assert np.abs(first - second).max() <= 1e-10 * np.abs(first).max()
    W, T = reduction.left, reduction.right
    assert W is not None
    assert T is not None
    assert np.abs(W.conj().T @ T - np.eye(5)).max() <= 1e-10
    assert minimal_realisation(plain).order == 5


def transfer(system: StateSpace, point: complex) -> np.ndarray:
    A, B, C, D = (np.asarray(x) for x in (system.A, system.B, system.C, system.D))
    return C @ np.linalg.solve(point * np.eye(len(A)) - A, B) + D


@pytest.mark.parametrize("real_output", [False, True])
def test_minimal_realisation_of_diagonal_systems(real_output: bool) -> None:
    rng = np.random.default_rng(4)
    poles = np.array([0.5 + 0.3j, 0.9j, -0.7 + 0.1j, 1.1 + 0.4j, 1.3j, 2.0 + 0.2j])
    B, C = complex_normal(rng, 6, 2), complex_normal(rng, 2, 6)
    B[1], C[:, 4] = 0.0, 0.0
    system = DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=real_output)
    reduction = minimal_realisation(system)
    assert reduction.order == reduction.system.order == 4
    assert reduction.unstable == 2
    assert isinstance(reduction.system, DiagonalStateSpace)
    first, second = system.to_dense(), reduction.system.to_dense()
    gap = transfer(first, 3.0 + 0.7j) - transfer(second, 3.0 + 0.7j)
    assert np.abs(gap).max() <= 5e3 * EPS * np.abs(transfer(first, 3.0 + 0.7j)).max()


def test_only_unstable_poles_are_left() -> None:
    A = np.diag([1.5, 2.5, 0.5])
    for B, order in (([1.0, 1.0, 0.0], 2), ([1.0, 0.0, 0.0], 1)):
        system = StateSpace(A, np.array(B)[:, None], np.ones((1, 3)), time=Discrete())
        reduction = minimal_realisation(system)
        assert reduction.order == reduction.unstable == order
        gap = transfer(system, 4.0) - transfer(reduction.system, 4.0)
        assert np.abs(gap).max() <= 1e-13
    alone = StateSpace(A[:2, :2], [[1.0], [0.0]], np.ones((1, 2)), time=Discrete())
    assert minimal_realisation(alone).order == 1


def test_refusals() -> None:
    unstable = StateSpace([[1.0]], [[1.0]], [[1.0]], time=Continuous())
    with pytest.raises(UnstableSystemError):
        balanced_realisation(unstable)
    silent = StateSpace([[0.5]], [[0.0]], [[1.0]], time=Discrete())
    with pytest.raises(OrderError, match="all Hankel singular values are zero"):
        minimal_realisation(silent)
    bad: Any
    for bad in (0.0, 1.0, -1.0, np.nan, True, "small"):
        with pytest.raises(ArgumentError, match="`tolerance`"):
            minimal_realisation(unstable, bad)


# --- Scaling


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
@pytest.mark.parametrize("which", ["input", "output"])
def test_small_gains_are_named(kind: str, which: str) -> None:
    system = draw(kind, 5, 5, discrete=True)
    B, C = np.array(system.B), np.array(system.C)
    if which == "input":
        B[:, 1] *= 1e-9
    else:
        C[2] *= 1e-9
    first = system.A if isinstance(system, StateSpace) else system.eigenvalues
    options = {} if isinstance(system, StateSpace) else {"real_output": system.real_output}
    scaled = type(system)(first, B, C, time=Discrete(), **options)
    with pytest.warns(ScalingWarning, match=f"{which} {1 if which == 'input' else 2} .* gain"):
        balance(scaled)
    # The same system in other states: what counts is what a channel does, not how it is stored.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        balance(scaled)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("scale", [1e-70, 1e-9, 1.0, 1e9, 1e70])
def test_common_scales_and_silent_channels_do_not_warn(scale: float) -> None:
    rng = np.random.default_rng(6)
    for system in (lru_system(rng, 16, 4), lru_system(rng, 16, 1)):
        B, C = np.array(system.B) * scale, np.array(system.C) / scale
        if system.inputs > 1:
            B[:, 0], C[1] = 0.0, 0.0
            B[:, 1] *= 1e-3
        balance(DiagonalStateSpace(system.eigenvalues, B, C, time=Discrete(), real_output=True))
    A = np.diag([0.9, 0.5])
    # The second output sees only what no input reaches.
    unseen = StateSpace(A, scale * np.eye(2)[:, :1], np.eye(2) / scale, time=Discrete())
    balance(unseen)
    # States stored in wild units are no reason to warn either.
    units = np.array([1e-8, 1e8])
    balance(
        StateSpace(
            [[0.9, 0.1 * 1e-16], [0.0, 0.5]],
            units[:, None] * np.ones((2, 2)) * scale,
            np.ones((2, 2)) / units / scale,
            time=Discrete(),
        )
    )


def test_the_stable_part_warns_too() -> None:
    B = np.array([[1.0, 1e-9], [1.0, 1e-9], [1.0, 1.0]])
    system = DiagonalStateSpace([0.5, 0.1, 2.0], B, np.ones((1, 3)), time=Discrete())
    with pytest.warns(ScalingWarning, match="input 1"):
        balance(system, keep_unstable=True)


def test_a_channel_whose_gain_is_rounding_is_silent_not_weak() -> None:
    # Input 0 drives a state that no output sees: its gain is zero, and eps in turned coordinates.
    v = np.array([[1.0], [2.0]])
    H = np.eye(2) - 2.0 * v @ v.T / 5.0
    for C in (np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 1.0]])):
        B = H @ np.array([[1.0, 1.0], [0.0, 1.0]])
        assert balance(StateSpace(0.5 * H @ H.T, B, C @ H.T, time=Discrete())).rank == 1
