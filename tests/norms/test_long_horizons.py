"""The gain over long horizons, and Gramians over them: closed forms, mpmath, step by step."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from samples import EPS, lru_system

from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balanced_truncation,
    controllability_gramian,
    hankel_singular_values,
)
from ssmreduce.errors import ArgumentError, NoConvergenceError
from ssmreduce.norms import certified_difference, finite_horizon_difference
from ssmreduce.systems.diagonal import System


def nothing(system: System) -> StateSpace:
    """The map to zero, of equal sizes."""
    n, m = np.zeros((0, system.inputs)), np.zeros((system.outputs, 0))
    return StateSpace(np.zeros((0, 0)), n, m, time=Discrete())


@pytest.mark.parametrize("horizon", [4097, 10**5, 10**9, 2**40])
def test_long_horizons_of_an_integrator_have_its_closed_form(horizon: int) -> None:
    """The singular values of the running sum over L steps are 1/(2 sin((2k + 1)π/(4L + 2)))."""
    system = StateSpace([[1.0]], [[1.0]], [[1.0]], time=Discrete(), read_after_update=True)
    expected = 0.5 / math.sin(0.5 * math.pi / (2 * horizon + 1))
    measured = finite_horizon_difference(system, nothing(system), horizon)
    # What is left over of whole blocks, one of a thousand at most.
    assert expected * (1 - 2e-3) <= measured <= expected * (1 + 1e-5)


def test_long_horizons_agree_with_steps_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pole that decays within the horizon, one on the circle and one that grows."""
    for pole in (np.exp(-1e-3 + 0.7j), np.exp(0.7j), np.exp(1e-3 + 0.7j)):
        system = DiagonalStateSpace([pole], [[1.0]], [[1.0 + 1.0j]], time=Discrete())
        system = replace(system, real_output=True)
        other = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete(), real_output=True)
        measured = finite_horizon_difference(system, other, 5000)
        with monkeypatch.context() as patch:
            patch.setattr("ssmreduce.norms.horizon._WHOLE", 5000)
            step_by_step = finite_horizon_difference(system, other, 5000, iterations=12)
        assert measured == pytest.approx(step_by_step, rel=5e-3)


def test_the_gain_grows_with_the_horizon_up_to_the_norm(rng: np.random.Generator) -> None:
    one = lru_system(rng, 8, 2)
    reduced = balanced_truncation(one, 4).system
    horizons = [10, 100, 1000, 10**4, 10**6, 10**9, 2**63 - 1]
    gains = [finite_horizon_difference(one, reduced, horizon) for horizon in horizons]
    norm = certified_difference(one, reduced)
    for shorter, longer in itertools.pairwise(gains):
        assert shorter <= longer * (1 + 1e-3)
    assert norm.lower * (1 - 1e-3) <= gains[-1] <= norm.upper * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_of_several_peaks_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = lru_system(rng, 12, 3)
    reduced = balanced_truncation(one, 6).system
    lower = certified_difference(one, reduced).lower
    assert finite_horizon_difference(one, reduced, 10**6) >= lower * (1 - 2e-3)


def test_reductions_for_long_horizons_take_no_longer(rng: np.random.Generator) -> None:
    """Two million steps one by one would take half a minute."""
    system = lru_system(rng, 8, 2)
    start = time.process_time()
    error = balanced_truncation(system, 4, horizon=2 * 10**6).verify()
    assert time.process_time() - start < 5.0
    assert error <= balanced_truncation(system, 4).error_bound * (1 + 1e-3)


def test_outputs_that_overflow_are_refused() -> None:
    for horizon, pole in ((3000, 2.0), (10**6, 1.5), (10**9, 1 + 1e-5)):
        system = StateSpace([[pole]], [[1.0]], [[1.0]], time=Discrete())
        with pytest.raises(NoConvergenceError, match="overflow"):
            finite_horizon_difference(system, nothing(system), horizon)


@pytest.mark.parametrize("function", [controllability_gramian, hankel_singular_values])
def test_horizons_up_to_64_bits(function: Any) -> None:
    eigenvalues = np.array([0.9, 1 - 1e-9])
    diagonal = DiagonalStateSpace(eigenvalues, [[1.0], [0.5]], [[1.0, 2.0]], time=Discrete())
    for system in (diagonal, diagonal.to_dense()):
        with pytest.raises(ArgumentError, match="`horizon` is 10"):
            function(system, horizon=10**400)
        endless = function(system)
        assert function(system, horizon=2**63 - 1) == pytest.approx(endless, rel=1e-6)
        # Rounding of A alone moves its powers by L eps.
        with mp.workdps(40):
            power = mp.mpf(eigenvalues[1]) ** (2 * 10**9)
            sum_of_squares = (1 - power) / (1 - mp.mpf(eigenvalues[1]) ** 2)
        found = controllability_gramian(system, horizon=10**9)[1, 1]
        assert found == pytest.approx(float(sum_of_squares / 4), rel=8e9 * EPS)
