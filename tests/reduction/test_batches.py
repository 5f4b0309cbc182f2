"""Batches: each system as it is alone, orders that differ, errors that name the system, BLAS threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles.mpmath_cauchy import hankel_singular_values as exact_values
from samples import EPS, complex_normal, dense_system, diagonal_system
from threadpoolctl import threadpool_info, threadpool_limits

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
    h2_norm,
    hankel_norm,
    hankel_singular_values,
    hinf_norm,
    observability_gramian,
    singular_perturbation,
)
from ssmreduce._workers import map_workers
from ssmreduce.errors import OrderError, ShapeError, UnstableSystemError
from ssmreduce.gramians import batch as batch_module
from ssmreduce.norms import gramian as gramian_norms
from ssmreduce.norms import hinf_difference

pytestmark = pytest.mark.every_library

C_BATCH = 20.0
"""Safety factor c of c n eps σ₁: a few roundings per product of factors."""

KINDS: dict[str, Callable[[np.random.Generator, int, int, bool], Any]] = {
    "dense real": lambda rng, m, p, discrete: dense_system(rng, 7, m, p, discrete=discrete),
    "dense complex": lambda rng, m, p, discrete: dense_system(
        rng, 7, m, p, discrete=discrete, is_complex=True
    ),
    "diagonal": lambda rng, m, p, discrete: diagonal_system(rng, 7, m, p, discrete=discrete),
    "real output": lambda rng, m, p, discrete: diagonal_system(
        rng, 7, m, p, discrete=discrete, real_output=True
    ),
}


def stacked(singles: list[Any], shape: tuple[int, ...]) -> Any:
    first = singles[0]
    diagonal = isinstance(first, DiagonalStateSpace)
    options: dict[str, Any] = {"time": first.time}
    if diagonal:
        options["real_output"] = first.real_output
    arrays = (
        np.stack([getattr(single, name) for single in singles])
        for name in (("eigenvalues" if diagonal else "A"), "B", "C", "D")
    )
    return type(first)(*(x.reshape(*shape, *x.shape[1:]) for x in arrays), **options)


def s4d(count: int, rng: np.random.Generator, *, states: int = 8) -> DiagonalStateSpace:
    """S4D-Lin at steps over two decades, sampled; from logarithms."""
    steps = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), count))[:, None]
    poles = -0.5 + 1j * np.pi * np.arange(states)
    B = np.expm1(steps * poles) / poles
    C = complex_normal(rng, count, 1, states)
    return DiagonalStateSpace.from_log(
        steps * poles, B[..., None], C, time=Discrete(), real_output=True
    )


def blas_counts() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3)], ids=["siso", "mimo"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_system_is_as_it_is_alone(
    kind: str, discrete: bool, sizes: tuple[int, int], rng: np.random.Generator
) -> None:
    singles = [KINDS[kind](rng, *sizes, discrete) for _ in range(6)]
    batch = stacked(singles, (2, 3))
    values = hankel_singular_values(batch).reshape(6, -1)
    cut = balanced_truncation(batch, 3)
    matched = singular_perturbation(batch, 3)
    functions = (controllability_gramian, observability_gramian, h2_norm, hankel_norm)
    results = [function(batch) for function in functions]
    gains = hinf_norm(batch).lower.reshape(6)
    for k, single in enumerate(singles):
        at = np.unravel_index(k, (2, 3))
        allowed = C_BATCH * values.shape[1] * EPS * values[k, 0]
        assert np.abs(values[k] - hankel_singular_values(single)).max() <= allowed
        alone = balanced_truncation(single, 3)
        assert (cut.order[at], cut.rank[at]) == (alone.order, alone.rank)
        np.testing.assert_allclose(cut.error_bound[at], alone.error_bound, atol=14 * allowed)
        gain = np.asarray(gains)[k]
        for result, other in (
            (cut.parts[k].system, alone.system),
            (cut.system[at], alone.system),
            (matched.system[at], singular_perturbation(single, 3).system),
        ):
            # Projections amplify by the ratio of the first value to the last one kept.
            amplified = values[k, 0] / values[k, 2] * (1.0 + gain / values[k, 0])
            assert hinf_difference(result, other) <= 10 * amplified * allowed
        for function, result in zip(functions, results, strict=True):
            np.testing.assert_allclose(result[at], function(single), rtol=5e3 * EPS, atol=allowed)
        np.testing.assert_allclose(gain, hinf_norm(single).lower, rtol=5e3 * EPS)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_values_of_channels_keep_their_relative_accuracy(
    discrete: bool, real_output: bool, rng: np.random.Generator
) -> None:
    """Close values, graded ones, a nearly real pole, equal poles and a silent state in one batch."""
    n = 6
    poles = 0.7 * np.exp(1j * np.linspace(0.3, 2.8, n)) * np.ones((6, 1))
    b, c = complex_normal(rng, 6, n), complex_normal(rng, 6, n)
    poles[1] = 0.9 * np.exp(0.02j * np.arange(1, n + 1))  # on a short arc
    b[2] *= np.geomspace(1e-30, 1e30, n)
    poles[3, 0] = 0.5 + 1e-4j
    poles[4, :2], poles[4, 2] = poles[4, 0], poles[4, 0].conj()
    b[5, 1] = 0.0
    if not discrete:
        poles = (poles - 1.0) / (poles + 1.0)
    batch = DiagonalStateSpace(
        poles,
        b[..., None],
        c[:, None],
        time=Discrete() if discrete else Continuous(),
        real_output=real_output,
    )
    found = hankel_singular_values(batch, relative_accuracy=True)
    plain = hankel_singular_values(batch)
    for k in range(6):
        exact = exact_values(
            poles[k], b[k], c[k], discrete=discrete, real_output=real_output, digits=500
        )
        assert np.abs(plain[k] - found[k]).max() <= C_BATCH * 2 * n * EPS * found[k, 0]
        error = np.abs(found[k, : exact.size] / exact - 1.0)
        # Half a unit in the last place of the poles on the arc moves the last value by that much.
        assert error.max() <= (1e4 if k == 1 else 20.0) * C_BATCH * 2 * n * EPS
        assert np.all(found[k, exact.size :] == 0.0)


def test_sampled_s4d_channels_against_the_oracle(rng: np.random.Generator) -> None:
    batch = s4d(24, rng)
    found = hankel_singular_values(batch, relative_accuracy=True)
    plain, logarithms = hankel_singular_values(batch), np.asarray(batch.log_eigenvalues)
    for k in (0, 11, 23):
        exact = exact_values(
            logarithms[k],
            batch.B[k, :, 0],
            batch.C[k, 0],
            logarithms=True,
            real_output=True,
        )
        np.testing.assert_allclose(found[k, : exact.size], exact, rtol=C_BATCH * 16 * EPS)
        assert np.abs(plain[k, : exact.size] - exact).max() <= C_BATCH * 16 * EPS * exact[0]
    reduction = balanced_truncation(batch, 3)
    assert np.all(reduction.order == 3)
    assert np.all(reduction.verify() <= reduction.error_bound * (1 + 1e-9))
    assert np.all(reduction.system.is_stable())


@pytest.mark.parametrize("entries", [1, 100, 10**6])
def test_the_size_of_chunks_changes_nothing(
    entries: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = s4d(5, rng)
    expected = hankel_singular_values(batch), balanced_truncation(batch, 3).system
    monkeypatch.setattr(batch_module, "CHUNK_ENTRIES", entries)
    np.testing.assert_array_equal(hankel_singular_values(batch), expected[0])
    found = balanced_truncation(batch, 3).system
    for name in ("eigenvalues", "B", "C"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected[1], name))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_differ_are_padded_with_states_without_energy(
    kind: str, discrete: bool, rng: np.random.Generator
) -> None:
    """Every rank between 1 and 5, by inputs that do not reach the other states."""
    diagonal = not kind.startswith("dense")
    singles = []
    for reached in range(1, 6):
        single = diagonal_system(
            rng, 7, 1, 1, discrete=discrete, real_output=kind == "real output", radius=0.6
        )
        B = np.where(np.arange(7)[:, None] < reached, single.B, 0.0)
        singles.append(
            DiagonalStateSpace(
                single.eigenvalues,
                B,
                single.C,
                time=single.time,
                real_output=single.real_output,
            )
        )
    if not diagonal:
        singles = [single.to_dense() for single in singles]
    batch = stacked(singles, (5,))
    ranks = np.arange(1, 6) * (2 if kind == "real output" else 1)
    np.testing.assert_array_equal(balance(batch).rank, ranks)
    result = balanced_truncation(batch, HankelMass(1.0))
    np.testing.assert_array_equal(result.order, np.arange(1, 6))
    np.testing.assert_array_equal(result.mask, np.arange(5) < result.order[:, None])
    resting = 0.0 if discrete else -1.0
    poles = np.asarray(result.system.poles())
    if diagonal:
        assert np.all(poles[~result.mask] == resting)
    else:
        assert np.all(np.sum(np.abs(poles - resting) < 5e3 * EPS, axis=1) >= 5 - result.order)
    assert not np.any(np.swapaxes(result.system.C, 1, 2)[~result.mask])
    assert not np.any(result.system.B[~result.mask])
    # The padded batch is a batch like any other: the same values, norms and cuts.
    again = hankel_singular_values(result.system)
    values = hankel_singular_values(batch)
    for k in range(5):
        allowed = 100 * C_BATCH * 14 * EPS * values[k, 0]
        assert np.abs(again[k][: ranks[k]] - values[k][: ranks[k]]).max() <= allowed
        assert np.abs(again[k][ranks[k] :]).max(initial=0.0) <= allowed
    np.testing.assert_allclose(h2_norm(result.system), h2_norm(batch), rtol=1e-10)
    np.testing.assert_array_equal(balanced_truncation(result.system, 1).order, 1)


@pytest.mark.parametrize("rule", [HankelMass(0.8), ErrorBound(relative=0.5), TotalBudget(10)])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)])
def test_orders_that_rules_choose(
    rule: Any, sizes: tuple[int, int], rng: np.random.Generator
) -> None:
    singles = [
        diagonal_system(rng, 8, *sizes, real_output=True, radius=radius)
        for radius in (0.3, 0.6, 0.9, 0.98)
    ]
    batch = stacked(singles, (2, 2))
    result = balanced_truncation(batch, rule)
    assert result.order.shape == result.error_bound.shape == (2, 2)
    assert np.all(result.verify() <= result.error_bound * (1 + 1e-9))
    if isinstance(rule, TotalBudget):
        assert result.order.sum() <= 10
        return
    for k, single in enumerate(singles):
        alone = balanced_truncation(single, rule)
        assert result.parts[k].order == alone.order
        assert result.parts[k].real_order == alone.real_order
    common = balanced_truncation(batch, rule, common_order=True)
    assert np.all(common.order <= result.order.max())
    assert common.order.max() == result.order.max()


def test_one_system_in_a_batch(rng: np.random.Generator) -> None:
    for shape in ((1,), (1, 1)):
        single = diagonal_system(rng, 6, 1, 1, real_output=True)
        batch = stacked([single], shape)
        values = hankel_singular_values(batch)
        assert values.shape == (*shape, 12)
        np.testing.assert_array_equal(values.ravel(), hankel_singular_values(single))
        reduction = balanced_truncation(batch, 2)
        assert reduction.order.shape == shape
        assert reduction.mask.shape == (*shape, 2)
    unreached = stacked([single], (1,))
    assert balanced_truncation(unreached, 6).system is unreached


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_names_the_system(kind: str, rng: np.random.Generator) -> None:
    singles = [KINDS[kind](rng, 1, 1, True) for _ in range(6)]
    diagonal = isinstance(singles[0], DiagonalStateSpace)
    state = "eigenvalues" if diagonal else "A"
    batch = stacked(singles, (3, 2))
    arrays = {name: np.array(getattr(batch, name)) for name in (state, "B", "C")}
    arrays[state][2, 0] *= 5.0
    options: dict[str, Any] = {"time": batch.time}
    if diagonal:
        options["real_output"] = batch.real_output
    unstable = type(batch)(*arrays.values(), **options)
    for function in (hankel_singular_values, controllability_gramian, h2_norm, hinf_norm, balance):
        with pytest.raises(UnstableSystemError, match=r"system\[2, 0\] of the batch"):
            function(unstable)
    arrays = {name: np.array(getattr(batch, name)) for name in (state, "B", "C")}
    arrays["B"][1, 1] = 0.0
    silent = type(batch)(*arrays.values(), **options)
    assert np.all(hankel_singular_values(silent)[1, 1] == 0.0)
    with pytest.raises(OrderError, match=r"system\[1, 1\] of the batch all Hankel"):
        balanced_truncation(silent, 2)
    # A single system is not part of any batch.
    with pytest.raises(UnstableSystemError, match=r"^`system` has a pole"):
        hankel_singular_values(unstable[2, 0])


def test_too_many_indices_are_refused(rng: np.random.Generator) -> None:
    batch = s4d(3, rng)
    assert batch[1].batch_shape == ()
    assert batch[1:].batch_shape == (2,)
    with pytest.raises(ShapeError, match="at most 1"):
        batch[1, 2]


def test_large_channels_are_not_stacked(rng: np.random.Generator) -> None:
    """129 states: the route of large systems, and the same values."""
    singles = [diagonal_system(rng, 129, 1, 1, real_output=True, radius=0.95) for _ in range(2)]
    batch = stacked(singles, (2,))
    for k, single in enumerate(singles):
        values = hankel_singular_values(single)
        found = hankel_singular_values(batch)[k]
        assert np.abs(found - values).max() <= C_BATCH * values.size * EPS * values[0]


def test_layers_are_taken_by_workers(rng: np.random.Generator) -> None:
    singles = [diagonal_system(rng, 64, 3, 2, real_output=True) for _ in range(4)]
    batch = stacked(singles, (4,))
    with threadpool_limits(3, user_api="blas"):
        result = balanced_truncation(batch, 16)
        assert set(blas_counts()) == {3}
    for k, single in enumerate(singles):
        alone = balanced_truncation(single, 16)
        allowed = C_BATCH * alone.hsv.size * EPS * alone.hsv[0]
        assert np.abs(result.hsv[k] - alone.hsv).max() <= allowed
        assert result.parts[k].order == alone.order


def test_workers_have_one_blas_thread_each() -> None:
    seen: list[tuple[int, list[int]]] = []
    barrier = threading.Barrier(2, timeout=30)

    def look(item: int) -> int:
        if item < 2:
            barrier.wait()  # Two workers are in here at once.
        seen.append((threading.get_ident(), blas_counts()))
        return item**2

    with threadpool_limits(2, user_api="blas"):
        assert map_workers(look, range(6)) == [k**2 for k in range(6)]
        assert blas_counts() == [2] * len(blas_counts())
    assert {count for _, counts in seen for count in counts} == {1}
    assert len({thread for thread, _ in seen}) == 2
    assert threading.get_ident() not in {thread for thread, _ in seen}


def test_one_blas_thread_means_no_workers() -> None:
    with threadpool_limits(1, user_api="blas"):
        threads = map_workers(lambda _: threading.get_ident(), range(4))
    assert set(threads) == {threading.get_ident()}


def test_the_first_failure_is_raised_and_threads_are_given_back() -> None:
    done: list[int] = []

    def fail(item: int) -> None:
        done.append(item)
        time.sleep(0.01)  # Long enough for the caller to see the failure before all have run.
        if item in (1, 3):
            raise ValueError(f"item {item}")

    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(ValueError, match="item 1"):
            map_workers(fail, range(200))
        assert set(blas_counts()) == {2}
    assert len(done) < 200


def test_workers_see_the_error_state_of_the_caller() -> None:
    with threadpool_limits(2, user_api="blas"), np.errstate(divide="raise"):
        assert [state["divide"] for state in map_workers(lambda _: np.geterr(), range(3))] == [
            "raise"
        ] * 3


def test_a_dense_batch_is_read_in_any_layout(rng: np.random.Generator) -> None:
    singles = [dense_system(rng, 5, 1, 1) for _ in range(4)]
    batch = stacked(singles, (4,))
    reordered = StateSpace(*(x[::-1] for x in (batch.A, batch.B, batch.C)), time=batch.time)
    found = hankel_singular_values(reordered)[::-1]
    np.testing.assert_allclose(found, hankel_singular_values(batch), rtol=1e-12)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("real", [True, False])
def test_h2_norms_of_channels_are_taken_together(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, discrete: bool, real: bool
) -> None:
    """Silent, scaled and coinciding states; D counts once, and a readout after the update."""
    singles = []
    for k in range(8):
        s = diagonal_system(rng, 6, 1, 1, discrete=discrete, real_output=real)
        poles, B, C = s.eigenvalues.copy(), s.B.copy(), s.C.copy()
        if k == 1:
            B[:] = 0.0
        if k == 2:
            C[0, :3] = 0.0
        if k == 3:
            B, C = 1e200 * B, 1e-120 * C
        if k == 4:
            poles[1] = poles[0]
        if k == 5:
            poles[:3] = poles[:3].real
        D = rng.standard_normal((1, 1)) if discrete else np.zeros((1, 1))
        options: dict[str, Any] = {"time": s.time, "real_output": real}
        singles.append(DiagonalStateSpace(poles, B, C, D, **options, read_after_update=discrete))
    expected = np.array([h2_norm(single) for single in singles])
    arrays = [np.stack([getattr(s, x) for s in singles]) for x in ("eigenvalues", "B", "C", "D")]
    batch = DiagonalStateSpace(*arrays, **options, read_after_update=discrete)

    def alone(*args: Any) -> Any:
        raise AssertionError("a channel was taken alone")

    with monkeypatch.context() as patch:
        patch.setattr(gramian_norms, "gramian_factor", alone)
        assert np.all(abs(h2_norm(batch) - expected) <= 1e3 * EPS * expected)
    arrays[0][5] *= 100.0 if discrete else -1.0
    unstable = DiagonalStateSpace(*arrays, **options, read_after_update=discrete)
    with pytest.raises(UnstableSystemError, match=r"in system\[5\] of the batch"):
        h2_norm(unstable)
    # An impulse passes through D: only in discrete time has it a finite energy.
    if not discrete:
        arrays[0][5] *= -1.0
        arrays[3][2] = 1.0
        assert np.isinf(h2_norm(DiagonalStateSpace(*arrays, **options))).tolist() == [
            k == 2 for k in range(8)
        ]
