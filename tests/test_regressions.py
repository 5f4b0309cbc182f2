"""Defects that were mended, each with the test that failed before."""

from __future__ import annotations

import tracemalloc
from typing import Any

import control
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.signal
import scipy.sparse
from modules import make_lru
from samples import EPS, lru_system, lru_weights

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelMass,
    InTrainingReducer,
    ReductionSchedule,
    StateSpace,
    TotalBudget,
    balance,
    balanced_truncation,
    controllability_gramian,
    diagonalised,
    difference,
    h2_optimal,
    hankel_singular_values,
    impulse_response,
    minimal_realisation,
    modal_truncation,
    real_form,
    reduce_layer,
    reduce_model,
    register_layer,
    select_states,
    series,
    simulate,
    to_continuous,
    to_discrete,
    transformed,
)
from ssmreduce.adapters.scipy_signal import from_scipy
from ssmreduce.errors import (
    ArgumentTypeError,
    NoConvergenceError,
    OptimizerStateError,
    OrderError,
    ShapeError,
    TimeDomainError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers.lru import LRU
from ssmreduce.norms import finite_horizon_difference
from ssmreduce.responses import frequency_response

pytestmark = pytest.mark.every_library


@pytest.mark.parametrize("seed", range(60))
def test_real_poles_with_full_output_keep_every_pole(seed: int) -> None:
    # Mixed signs let the truncated matrix have complex poles: both of a pair count here.
    rng = np.random.default_rng(seed)
    system = DiagonalStateSpace(
        rng.uniform(-0.9, 0.9, 8),
        rng.standard_normal((8, 2)),
        rng.standard_normal((2, 8)),
        time=Discrete(),
    )
    reduction = balanced_truncation(system, 4)
    rounding = 1e3 * EPS * float(reduction.hsv.sum())
    assert reduction.verify() <= reduction.error_bound + rounding


def test_a_pole_that_rounds_onto_the_circle_is_measured_around() -> None:
    system = DiagonalStateSpace.from_log(
        np.array([-1e-18 + 0.3j, -0.1 + 1.0j, -0.2 + 2.0j]),
        np.array([[1e-6], [1.0], [1.0]]),
        np.ones((1, 3)),
        time=Discrete(),
        real_output=True,
    )
    assert np.isfinite(balanced_truncation(system, 2).verify())


@pytest.mark.parametrize("wrap", ["flatten", "list"])
def test_optimizer_states_of_another_structure_are_refused(wrap: str) -> None:
    layer = make_lru(lru_weights(np.random.default_rng(0), 16, 2), "float32")
    params = eqx.filter(layer, eqx.is_inexact_array)
    if wrap == "flatten":
        state = optax.flatten(optax.adam(1e-3)).init(params)
    else:
        state = optax.adam(1e-3).init(jax.tree.leaves(params))
    with pytest.raises(OptimizerStateError, match=r"belongs to no weight|joins all weights"):
        reduce_model(layer, 4, opt_state=state)


def test_rules_stop_at_the_rank_of_a_dense_system() -> None:
    rng = np.random.default_rng(0)
    A = np.diag([0.9, 0.5, 0.3, 0.2])
    B = np.vstack([rng.standard_normal((2, 1)), np.zeros((2, 1))])
    system = StateSpace(A, B, rng.standard_normal((1, 4)), time=Discrete())
    reduction = balanced_truncation(system, HankelMass(1.0))
    assert reduction.order == reduction.rank == 2
    with pytest.raises(OrderError, match="numerical rank 2"):
        balanced_truncation(system, 3)
    silent = StateSpace(A, np.zeros((4, 1)), np.ones((1, 4)), time=Discrete())
    with pytest.raises(OrderError, match="all Hankel singular values are zero"):
        balanced_truncation(silent, HankelMass(0.9))


def test_common_order_of_dense_systems_of_different_rank() -> None:
    A = np.stack([np.diag([0.9, 0.5, 0.3])] * 2)
    B = np.array([[[1.0], [1.0], [1.0]], [[1.0], [0.0], [0.0]]])
    system = StateSpace(A, B, np.ones((2, 1, 3)), time=Discrete())
    reduction = balanced_truncation(system, HankelMass(0.999), common_order=True)
    assert reduction.order.tolist()[1] == 1
    assert np.all(reduction.verify() <= reduction.error_bound + 1e3 * EPS)


def test_an_uncut_batch_is_returned_with_its_logarithms() -> None:
    logarithms = np.full((2, 1), -1e-17)
    system = DiagonalStateSpace.from_log(
        logarithms, np.ones((2, 1, 1)), np.ones((2, 1, 1)), time=Discrete()
    )
    assert balanced_truncation(system, 1).system is system


def test_logarithms_come_from_from_log_only() -> None:
    with pytest.raises(TypeError):
        DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete(), log_eigenvalues=[0.1])  # type: ignore[call-arg]


def test_one_step_of_a_system_read_before_its_update_is_silent() -> None:
    big = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    small = DiagonalStateSpace([0.5], [[0.1]], [[1.0]], time=Discrete())
    assert finite_horizon_difference(big, small, 1) == 0.0
    assert abs(finite_horizon_difference(big, small, 2) - 0.9) < 8 * EPS


def test_bfloat16_weights_are_reduced() -> None:
    layer = make_lru(lru_weights(np.random.default_rng(0), 12, 2), "float32")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), layer)
    result = reduce_layer(half, 4)
    assert result.layer.nu_log.dtype == jnp.bfloat16
    assert result.new_order <= 4


def test_a_registered_class_without_the_arrays_names_them() -> None:
    class Other(eqx.Module):
        weight: jax.Array

    register_layer(Other, LRU())
    with pytest.raises(UnsupportedLayerError, match="without the arrays nu_log"):
        reduce_layer(Other(jnp.ones(3)), 2)


def test_arguments_that_are_no_systems() -> None:
    with pytest.raises(ArgumentTypeError, match="expected a StateSpace"):
        balance(np.eye(2))
    with pytest.raises(ShapeError, match="rows of equal length"):
        StateSpace([[0.5], [0.1, 0.2]], [[1.0]], [[1.0]], time=Discrete())
    empty = DiagonalStateSpace(
        np.zeros((0, 2)), np.zeros((0, 2, 1)), np.zeros((0, 1, 2)), time=Discrete()
    )
    with pytest.raises(ShapeError, match="at least one system"):
        hankel_singular_values(empty)
    assert Discrete(dt=np.float32(0.5)).dt == 0.5


@pytest.mark.parametrize("scale", [1e-170, 1e150])
@pytest.mark.parametrize("real_output", [False, True])
def test_extreme_scales_of_the_states(scale: float, real_output: bool) -> None:
    plain = lru_system(np.random.default_rng(0), 6, 1)
    scaled = DiagonalStateSpace(
        plain.eigenvalues,
        plain.B * scale,
        plain.C / scale,
        time=Discrete(),
        real_output=real_output,
    )
    same = DiagonalStateSpace(
        plain.eigenvalues, plain.B, plain.C, time=Discrete(), real_output=real_output
    )
    expected = hankel_singular_values(same)
    found = hankel_singular_values(scaled)
    assert np.max(np.abs(found - expected)) <= 64 * expected.size * EPS * expected[0]


def test_the_result_says_what_was_asked_for() -> None:
    system = DiagonalStateSpace(
        np.linspace(0.1, 0.9, 8),
        np.ones((8, 1)),
        np.ones((1, 8)),
        time=Discrete(),
        real_output=True,
    )
    reduction = balanced_truncation(system, 3)
    assert (reduction.wanted_order, reduction.real_order, reduction.order) == (6, 3, 3)


def test_memory_of_a_cut() -> None:
    # At most 16 n² numbers for each of P and Q.
    n = 256
    system = lru_system(np.random.default_rng(0), n, 8)
    tracemalloc.start()
    balance(system).truncate(n // 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2 * 16 * n**2 * 8


@pytest.mark.parametrize("ports", [160, 2])
def test_memory_of_a_dense_cut(ports: int) -> None:
    # Basis, Z, Y, M, its square, and the work space of the eigenvectors, of twice that size. With few ports
    # most values are rounding, and the decomposition of M itself would take one more.
    n = 320
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, n)) / (1.1 * np.sqrt(n))
    B, C = rng.standard_normal((n, ports)), rng.standard_normal((ports, n))
    system = StateSpace(A, B, C, time=Discrete())
    tracemalloc.start()
    balanced_truncation(system, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 8 * n**2 * 8


def test_responses_in_blocks_are_the_same() -> None:
    rng = np.random.default_rng(0)
    omega = np.linspace(0.0, 3.0, 700)
    system = lru_system(rng, 40, 6)
    dense = system.to_dense()
    difference = frequency_response(system, omega) - frequency_response(dense, omega)
    assert np.abs(difference).max() < 1e4 * EPS


def test_continuous_systems_have_no_horizon_and_no_update() -> None:
    system = DiagonalStateSpace([-1.0, -2.0], np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
    with pytest.raises(TypeError, match="`horizon`"):
        balance(system, horizon=4)


def test_a_failing_decomposition_does_not_end_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    layer = make_lru(lru_weights(np.random.default_rng(0), 8, 2), "float32")
    monkeypatch.setattr("ssmreduce.hankel._right_singular", fails)
    reducer = InTrainingReducer(ReductionSchedule(4, attempts=4), ErrorBound(relative=0.1))
    with pytest.warns(UserWarning, match="SVD did not converge"):
        model, _ = reducer.step(1, layer, None)
    assert model is layer


@pytest.mark.parametrize("order", [12, 20])
def test_a_long_filter_in_sections_is_reduced_within_its_bound(order: int) -> None:
    zeros, poles, gain = scipy.signal.butter(order, 0.1, output="zpk")
    system = from_scipy(scipy.signal.ZerosPolesGain(zeros, poles, gain, dt=True))
    found, expected = np.sort_complex(system.poles()), np.sort_complex(poles)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e4 * EPS)
    # Butterworth filters have gain 1 at most, so that σ₁ is below 1.
    assert hankel_singular_values(system)[0] < 1.0
    omega = np.linspace(0.0, np.pi, 500)
    _, response = scipy.signal.freqz_zpk(zeros, poles, gain, worN=omega)
    for r in (order // 2, order - 4):
        reduction = balanced_truncation(system, r)
        assert reduction.error_bound is not None
        error = np.abs(frequency_response(reduction.system, omega)[:, 0, 0] - response).max()
        assert error <= reduction.error_bound + 1e-12


def test_sections_with_poles_and_zeros_on_the_boundary() -> None:
    theirs = scipy.signal.ZerosPolesGain([0.0, 2j, -2j], [0.0, 0.0, 1j, -1j, -3.0], 5.0)
    point = np.array([0.7])
    _, expected = scipy.signal.freqs_zpk(theirs.zeros, theirs.poles, theirs.gain, worN=point)
    found = frequency_response(from_scipy(theirs), point)
    np.testing.assert_allclose(found.ravel(), expected, rtol=500 * EPS)


@pytest.mark.parametrize("time", [Continuous(), Discrete()])
def test_a_real_diagonal_system_is_reduced_in_a_band_to_a_real_one(time: Any) -> None:
    poles = np.array([-1.0, -2.0, -3.0, -5.0]) if time == Continuous() else np.arange(4) / 5.0
    B, C = np.array([[1.0], [2.0], [3.0], [-1.0]]), np.ones((1, 4))
    diagonal = DiagonalStateSpace(poles, B, C, time=time)
    dense = balance(diagonal.to_dense(), band=(0.0, 1.0))
    found = balance(diagonal, band=(0.0, 1.0))
    np.testing.assert_allclose(found.hsv, dense.hsv, rtol=0, atol=1e-12 * dense.hsv[0])
    reduced = found.truncate(2).system
    assert not any(np.iscomplexobj(x) for x in (reduced.poles(), reduced.B, reduced.C))


@pytest.mark.parametrize("block", [[[0.0]], [[0.0, 1.0], [-1.0, 0.0]]])
def test_an_error_is_measured_where_both_systems_keep_a_pole_on_the_boundary(block: Any) -> None:
    A = scipy.linalg.block_diag(block, [[-1.0]], [[-2.0]], [[-4.0]])
    system = StateSpace(A, np.ones((len(A), 1)), np.ones((1, len(A))), time=Continuous())
    reduction = modal_truncation(system, len(A) - 1)
    # What rounding may have added beside the pole is taken off.
    assert reduction.verify() == pytest.approx(0.25, rel=1e-7)
    assert reduction.error_bound == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("real_output", [False, True])
def test_without_states_there_are_no_hankel_singular_values(real_output: bool) -> None:
    empty, D = np.zeros((0, 0)), np.ones((2, 3))
    dense = StateSpace(empty, np.zeros((0, 3)), np.zeros((2, 0)), D, time=Continuous())
    diagonal = DiagonalStateSpace(
        [], np.zeros((0, 3)), np.zeros((2, 0)), D, time=Discrete(), real_output=real_output
    )
    for system in (dense, diagonal):
        assert hankel_singular_values(system).shape == (0,)


def test_an_h2_optimal_reduction_says_so() -> None:
    system = StateSpace(np.diag([-1.0, -2.0]), np.ones((2, 1)), [[1.0, 3.0]], time=Continuous())
    assert h2_optimal(system, 1).method == "H2-optimal refinement"


@pytest.mark.parametrize(
    "call",
    [
        lambda other, own: frequency_response(other, [1.0]),
        lambda other, own: simulate(other, np.ones((3, 1))),
        lambda other, own: to_discrete(other, 0.1),
        lambda other, own: to_continuous(other),
        lambda other, own: impulse_response(other, 3),
        lambda other, own: series(other, own),
        lambda other, own: difference(own, other),
        lambda other, own: diagonalised(other),
        lambda other, own: real_form(other),
        lambda other, own: transformed(other, np.eye(1)),
    ],
)
def test_systems_of_other_packages_are_refused_by_name(call: Any) -> None:
    own = StateSpace([[-1.0]], [[1.0]], [[1.0]], time=Continuous())
    other = control.ss(-1.0, 1.0, 1.0, 0.0)
    with pytest.raises(ArgumentTypeError, match=r"is a control\.statesp\.StateSpace.*from_control"):
        call(other, own)


def test_what_is_wrong_with_an_argument_is_what_the_error_names() -> None:
    own = StateSpace([[-1.0]], [[1.0]], [[1.0]], time=Continuous())
    with pytest.raises(ShapeError, match=r"dia_matrix.*A\.toarray\(\)"):
        StateSpace(scipy.sparse.eye(2), np.ones((2, 1)), np.ones((1, 2)), time=Continuous())
    with pytest.raises(ShapeError, match="each larger than the one before"):
        impulse_response(own, times=[1.0, 0.5])
    with pytest.raises(ShapeError, match=r"`omega` is \[nan\]"):
        frequency_response(own, [np.nan])
    with pytest.raises(ShapeError, match="expected at most 0 indices"):
        own[0]
    with pytest.raises(TimeDomainError, match="`hold` is 'linear' but `system` is discrete"):
        simulate(to_discrete(own, 0.1), np.ones((3, 1)), hold="linear")


def test_an_error_bound_is_refused_where_no_theorem_gives_one() -> None:
    system = StateSpace(np.diag([-1.0, -2.0]), np.ones((2, 1)), [[1.0, 3.0]], time=Continuous())
    rule = ErrorBound(relative=0.5)
    with pytest.raises(OrderError, match="balanced for a band or weights"):
        balance(system, band=(0.5, 2.0)).truncate(rule)
    with pytest.raises(OrderError, match="balanced for a horizon"):
        balance(to_discrete(system, 0.1), horizon=20).truncate(rule)


@pytest.mark.parametrize("omega", [[1j], "ab", [None]])
def test_frequencies_that_are_no_real_numbers(omega: Any) -> None:
    system = StateSpace([[-1.0]], [[1.0]], [[1.0]], time=Continuous())
    with pytest.raises(ShapeError, match="omega"):
        frequency_response(system, omega)


def test_systems_of_other_packages_are_named_with_their_way_in() -> None:
    with pytest.raises(ArgumentTypeError, match="from_scipy"):
        balance(scipy.signal.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.0]]))


def test_logarithms_of_poles_survive_in_batches_and_beside_unstable_ones() -> None:
    """A pole whose modulus has rounded to 1 is stable by its logarithm only."""
    near = np.array([[-1e-18 + 1j, -0.5, -0.7], [-0.3, -0.2, -0.1]])
    B, C = np.ones((2, 3, 1), dtype=complex), np.ones((2, 1, 3), dtype=complex)
    batch = DiagonalStateSpace.from_log(near, B, C, time=Discrete())
    cut = select_states(batch, 2).system
    for k, found in enumerate(hankel_singular_values(cut)):
        alone = hankel_singular_values(select_states(batch[k], 2).system)
        np.testing.assert_allclose(found, alone, rtol=50 * EPS)
    padded = select_states(batch, TotalBudget(4))
    assert sorted(np.ravel(padded.order).tolist()) == [1, 3]
    assert np.all(padded.system.is_stable())
    unstable = DiagonalStateSpace.from_log(
        [near[0, 0], 0.5, 0.6], [[1.0], [0.0], [1.0]], np.ones((1, 3)), time=Discrete()
    )
    kept = minimal_realisation(unstable).system
    assert isinstance(kept, DiagonalStateSpace)
    assert kept.order == 2
    assert kept.log_eigenvalues is not None
    assert kept.log_eigenvalues.real.min() == -1e-18


@pytest.mark.parametrize("time", [Continuous(), Discrete()])
@pytest.mark.parametrize("n", [0, 3, 140])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 0), (0, 2), (0, 0)])
def test_nothing_in_or_nothing_out(time: Any, n: int, inputs: int, outputs: int) -> None:
    """LAPACK takes no empty work space: these printed its complaints and were refused."""
    A = 0.5 * np.eye(n) if time == Discrete() else -np.eye(n)
    system = StateSpace(A, np.ones((n, inputs)), np.ones((outputs, n)), time=time)
    assert not np.any(hankel_singular_values(system))
    if time == Discrete():
        assert not np.any(hankel_singular_values(system, horizon=3))
    assert controllability_gramian(system).shape == (n, n)


def test_values_beyond_the_range_are_refused() -> None:
    """The singular values of what has overflowed came out as NaN."""
    A = np.diag([0.5], 1) - np.eye(2)
    B, C = 1e155 * np.array([[1.0, 2.0], [3.0, 4.0]]), 1e155 * np.array([[1.0, 2.0], [3.0, 5.0]])
    with np.errstate(over="ignore"), pytest.raises(NoConvergenceError):
        hankel_singular_values(StateSpace(A, B, C, time=Continuous()))


def test_pairs_at_the_circle_are_refused_or_finite() -> None:
    """Two roundings of one modulus disagreed on which side of 1 a pair lies: the Gramian was NaN."""
    rng = np.random.default_rng(0)
    found = {"finite": 0, "refused": 0}
    for _ in range(500):
        angle, radius = rng.uniform(0.0, np.pi), 1.0 - rng.uniform(0.0, 4e-15)
        scale = 2.0 ** rng.integers(0, 8)
        A = radius * np.array(
            [[np.cos(angle), -scale * np.sin(angle)], [np.sin(angle) / scale, np.cos(angle)]]
        )
        system = StateSpace(A, np.eye(2), np.eye(2), time=Discrete())
        try:
            assert np.all(np.isfinite(controllability_gramian(system)))
            found["finite"] += 1
        except (UnstableSystemError, NoConvergenceError):
            found["refused"] += 1
    assert found["finite"] > 100
    assert found["refused"] > 10


def test_host_arrays_are_of_native_byte_order() -> None:
    system = StateSpace(*(np.ones((1, 1), dtype=">f8") * x for x in (0.5, 1, 1)), time=Discrete())
    assert system.to_host().A.dtype == np.dtype(np.float64)
    native = system.to_host()
    assert native.to_host() is native
