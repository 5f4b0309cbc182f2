"""`balance` with a band or with weights: what it gains, what it refuses, what it does not promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_truncation,
)
from ssmreduce.errors import ArgumentError, UnstableSystemError
from ssmreduce.responses import frequency_response
from tests import samples

pytestmark = pytest.mark.every_library

EPS = samples.EPS
KINDS = ["real", "complex", "diagonal", "real_output"]


def draw(kind: str, rng: Any, n: int, *, discrete: bool) -> Any:
    if kind in ("real", "complex"):
        return samples.dense_system(rng, n, 2, 2, discrete=discrete, is_complex=kind == "complex")
    return samples.diagonal_system(
        rng, n, 2, 2, discrete=discrete, real_output=kind == "real_output"
    )


def largest_error(first: Any, second: Any, omega: Any, weight: Any = None) -> float:
    difference = frequency_response(first, omega) - frequency_response(second, omega)
    if weight is not None:
        difference = difference @ frequency_response(weight, omega)
    return float(np.linalg.norm(difference, ord=2, axis=(1, 2)).max())


def stable_cut(balancing: Any, order: int) -> Any:
    """Cut to `order`, or to the largest below that is stable."""
    for lower in range(order, 0, -1):
        try:
            return balancing.truncate(lower)
        except UnstableSystemError:
            continue
    raise AssertionError("no order is stable")


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_band_is_approximated_better_than_without(kind: str, discrete: bool) -> None:
    band = (0.2, 0.5)
    omega = np.linspace(*band, 50)
    gains = []
    for seed in range(5):
        system = draw(kind, np.random.default_rng(seed), 20, discrete=discrete)
        limited = stable_cut(balance(system, band=band), 6)
        assert limited.error_bound is None
        plain = balanced_truncation(system, limited.order)
        gains.append(
            largest_error(system, plain.system, omega)
            / largest_error(system, limited.system, omega)
        )
    assert np.median(gains) > 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_all_frequencies_are_balanced_truncation(kind: str, rng: Any) -> None:
    system = draw(kind, rng, 10, discrete=True)
    band = (0.0 if kind in ("real", "real_output") else -np.pi, np.pi)
    limited, plain = balance(system, band=band), balance(system)
    assert np.allclose(limited.hsv, plain.hsv, rtol=0, atol=5e3 * EPS * plain.hsv[0])
    omega = np.linspace(-3, 3, 30)
    first, second = (b.truncate(4).system for b in (limited, plain))
    assert largest_error(first, second, omega) <= 1e-8 * plain.hsv[0]


def test_one_weight_is_heard(rng: Any) -> None:
    """A sharp low-pass weight makes the weighted error smaller, and the system stays stable."""
    gains = []
    lowpass = StateSpace(
        [[-0.05, 0.0], [0.0, -0.05]], 0.05 * np.eye(2), np.eye(2), time=Continuous()
    )
    omega = np.geomspace(1e-3, 1e3, 400)
    for seed in range(5):
        system = samples.dense_system(np.random.default_rng(seed), 20, 2, 2, discrete=False)
        weighted = balance(system, input_weight=lowpass).truncate(6)
        assert weighted.error_bound is None
        assert np.all(weighted.system.poles().real < 0)
        assert weighted.verify() > 0.0
        plain = balanced_truncation(system, 6)
        gains.append(
            largest_error(system, plain.system, omega, lowpass)
            / largest_error(system, weighted.system, omega, lowpass)
        )
    assert np.median(gains) > 1.5


@pytest.mark.parametrize("discrete", [False, True])
def test_an_unstable_result_is_refused_and_others_are_given(discrete: bool) -> None:
    """Two weights: of the orders of some systems one is unstable, and it alone is refused."""
    refused = given = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        system, before, after = (
            samples.dense_system(rng, size, 1, 1, discrete=discrete) for size in (4, 3, 3)
        )
        balancing = balance(system, input_weight=before, output_weight=after)
        for order in (1, 2, 3):
            try:
                poles = balancing.truncate(order).system.poles()
            except UnstableSystemError:
                refused += 1
            else:
                assert np.all(np.abs(poles) < 1 if discrete else poles.real < 0)
                given += 1
    assert given > refused > 0


def test_the_refusal_says_which_order_and_what_to_try() -> None:
    rng = np.random.default_rng(2)
    system, before, after = (
        samples.dense_system(rng, size, 1, 1, discrete=False) for size in (4, 3, 3)
    )
    balancing = balance(system, input_weight=before, output_weight=after)
    with pytest.raises(UnstableSystemError, match=r"`order` 2 .* Re λ = 0.01.* one weight only"):
        balancing.truncate(2)


def test_batches_share_a_band_and_weights(rng: Any) -> None:
    poles = rng.uniform(0.1, 0.9, (3, 6))
    batch = DiagonalStateSpace(
        poles,
        rng.standard_normal((3, 6, 1)),
        rng.standard_normal((3, 1, 6)),
        time=Discrete(),
        real_output=True,
    )
    weight = StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete())
    for options in ({"band": (0.1, 1.0)}, {"output_weight": weight}):
        balancing = balance(batch, **options)
        reduction = balancing.truncate(2)
        assert reduction.error_bound is None
        assert balancing.bound(2) is None
        for index in range(3):
            alone = balance(batch[index], **options)
            assert np.array_equal(alone.hsv, balancing.hsv[index])


def test_only_one_of_horizon_band_and_weights(rng: Any) -> None:
    system = samples.dense_system(rng, 3, 1, 1)
    weight = StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete())
    for options, words in (
        ({"horizon": 5, "band": (0.1, 0.2)}, "`horizon` and `band` are both given"),
        ({"horizon": 5, "output_weight": weight}, "`horizon` and `output_weight`"),
        ({"band": (0.1, 0.2), "input_weight": weight}, "`band` and `input_weight`"),
    ):
        with pytest.raises(ArgumentError, match=words):
            balance(system, **options)
    with pytest.raises(ArgumentError, match="is empty"):
        balance(system, band=(0.2, 0.2))
