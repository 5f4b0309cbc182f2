"""Copies of systems with other arrays, and the states that their Gramians belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from samples import EPS, dense_system, diagonal_system

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace, controllability_gramian
from ssmreduce.errors import ArgumentError, ShapeError, TimeDomainError

DENSE = {"A": np.eye(4) / 2, "B": np.ones((4, 2)), "C": np.ones((3, 4)), "D": np.ones((3, 2))}


def test_a_changed_copy_keeps_the_rest() -> None:
    dense = StateSpace(**DENSE, time=Discrete(0.1), read_after_update=True)
    louder = dense.replace(C=2.0 * dense.C, D=None)
    assert (louder.time, louder.read_after_update) == (dense.time, True)
    assert np.array_equal(louder.C, 2.0 * dense.C)
    assert not louder.D.any()
    assert louder.A is dense.A
    with pytest.raises(ShapeError, match="`B` has 3 rows but `A` is 4x4"):
        dense.replace(B=np.ones((3, 2)))
    with pytest.raises(TypeError, match="eigenvalues"):
        dense.replace(eigenvalues=np.ones(4))


def test_a_changed_copy_keeps_logarithms() -> None:
    logarithms = np.array([-1e-20 + 1j, -0.5])
    arrays = (np.ones((2, 1)), np.ones((1, 2)))
    slow = DiagonalStateSpace.from_log(logarithms, *arrays, time=Discrete(), real_output=True)
    louder = slow.replace(B=2.0 * slow.B, time=Discrete(0.1))
    assert louder.log_eigenvalues is logarithms
    assert louder.real_output
    assert louder.time == Discrete(0.1)
    assert slow.replace(eigenvalues=[0.5, 0.1]).log_eigenvalues is None
    faster = slow.replace(log_eigenvalues=2.0 * logarithms)
    assert np.array_equal(faster.eigenvalues, np.exp(2.0 * logarithms))


def test_changes_that_logarithms_exclude() -> None:
    ports = (np.ones((2, 1)), np.ones((1, 2)))
    slow = DiagonalStateSpace.from_log([-1e-20, -0.5], *ports, time=Discrete())
    with pytest.raises(
        TimeDomainError, match=r"`time` is Continuous\(\) but .* Give `eigenvalues`"
    ):
        slow.replace(time=Continuous())
    with pytest.raises(TimeDomainError, match=r"`time` is 0\.1; expected Continuous"):
        slow.replace(time=0.1)
    with pytest.raises(ArgumentError, match=r"`log_eigenvalues` is None; .* Give `eigenvalues`"):
        slow.replace(log_eigenvalues=None)
    poles = slow.eigenvalues
    with pytest.raises(ArgumentError, match=r"are both given; .* Leave out `eigenvalues`"):
        slow.replace(eigenvalues=poles, log_eigenvalues=slow.log_eigenvalues)
    rates = slow.replace(eigenvalues=[-1.0, -2.0], time=Continuous())
    assert (rates.time, rates.log_eigenvalues) == (Continuous(), None)
    with pytest.raises(TimeDomainError, match="Give `eigenvalues`"):
        rates.replace(log_eigenvalues=slow.log_eigenvalues)


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_states_of_gramians(rng: np.random.Generator, kind: str) -> None:
    """`ports` and `applied` are those of the dense system that Gramians belong to."""
    if kind == "dense":
        system: Any = dense_system(rng, 4, 2, 3)
    else:
        system = diagonal_system(rng, 4, 2, 3, real_output=kind == "real output")
    dense, (B, C) = system.to_dense(), system.ports()
    assert system.real_order == dense.order == len(controllability_gramian(system))
    assert np.array_equal(B, dense.B)
    assert np.array_equal(C, dense.C)
    X = rng.standard_normal((dense.order, 2))
    assert np.allclose(system.applied(X), dense.A @ X, rtol=10 * EPS, atol=10 * EPS)
