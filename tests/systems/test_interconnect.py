"""Series, sums and differences: transfer functions multiply and add."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from samples import EPS
from transfer import KINDS, TIMES, random_system, transfer

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.systems.interconnect import difference, parallel, series
from ssmreduce.systems.sampling import to_discrete

pytestmark = pytest.mark.every_library

POINTS = [0.4 + 1.3j, -1.5 + 0.2j, 2.0]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e3 * EPS * np.abs(expected).max())


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(("one", "two"), list(product(KINDS, KINDS)))
def test_transfer_functions(rng: np.random.Generator, one: str, two: str, time: Any) -> None:
    readouts = [(False, False)]
    if isinstance(time, Discrete):
        readouts += [(True, True), (True, False), (False, True)]
    for first_after, second_after in readouts:
        first = random_system(rng, one, time, n=3, after=first_after)
        second = random_system(rng, two, time, n=4, after=second_after)
        behind = random_system(rng, two, time, n=4, m=3, p=1, after=second_after)
        chain = series(first, behind)
        total, error = parallel(first, second), difference(first, second)
        for z in POINTS:
            close(transfer(chain, z), transfer(behind, z) @ transfer(first, z))
            close(transfer(total, z), transfer(first, z) + transfer(second, z))
            close(transfer(error, z), transfer(first, z) - transfer(second, z))
        for system in (chain, total, error):
            assert system.time == time
            assert system.read_after_update == (first_after and second_after)
        assert chain.order == first.to_dense().order + behind.to_dense().order
        diagonal = isinstance(first, DiagonalStateSpace) and isinstance(second, DiagonalStateSpace)
        diagonal = diagonal and first.real_output == second.real_output
        assert isinstance(error, DiagonalStateSpace) == diagonal
        if {one, two} <= {"real dense", "real output", "real diagonal"}:
            arrays = [getattr(error.to_dense(), x) for x in "ABCD"]
            assert not any(np.iscomplexobj(x) for x in arrays)


def test_logarithms_survive_a_sum(rng: np.random.Generator) -> None:
    slow = DiagonalStateSpace([-1e-15 + 2j], [[1.0]], [[1.0]], time=Continuous(), real_output=True)
    sampled = to_discrete(slow, 1.0)
    other = DiagonalStateSpace(
        [0.5, 0.1j], [[1.0]] * 2, [[1.0, 1.0]], time=Discrete(), real_output=True
    )
    for found in (difference(sampled, other), difference(other, sampled)):
        assert np.isin(sampled.log_eigenvalues, found.log_eigenvalues).all()
        for z in POINTS:
            value = transfer(sampled, z) - transfer(other, z)
            sign = 1 if found.order == 3 and found.log_eigenvalues[0].real > -1e-9 else -1
            close(transfer(found, z), sign * value)
    zero = DiagonalStateSpace([0.0j], [[1.0]], [[1.0]], time=Discrete(), real_output=True)
    assert parallel(sampled, zero).log_eigenvalues is None
    assert parallel(other, zero).log_eigenvalues is None


def test_batches(rng: np.random.Generator) -> None:
    for one, two in (("real dense", "complex diagonal"), ("real output", "real output")):
        first = random_system(rng, one, Continuous(), batch=(2,))
        second = random_system(rng, two, Continuous(), batch=(2,), n=2)
        behind = random_system(rng, two, Continuous(), batch=(2,), m=3)
        for k in range(2):
            z = 0.3 + 1j
            close(
                transfer(difference(first, second)[k], z),
                transfer(first[k], z) - transfer(second[k], z),
            )
            close(
                transfer(series(first, behind)[k], z),
                transfer(behind[k], z) @ transfer(first[k], z),
            )


def test_what_does_not_fit_is_printed(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Discrete(0.1))
    with pytest.raises(TimeDomainError, match=r"Discrete\(dt=0.1\).*Discrete\(dt=0.2\)"):
        parallel(system, random_system(rng, "real dense", Discrete(0.2)))
    with pytest.raises(TimeDomainError, match=r"Continuous\(\)"):
        series(system, random_system(rng, "real dense", Continuous()))
    with pytest.raises(ShapeError, match="`first` has 3 outputs but `second` has 2 inputs"):
        series(system, system)
    narrow = random_system(rng, "real dense", Discrete(0.1), p=1)
    with pytest.raises(ShapeError, match="3 outputs and 2 inputs but `second` has 1 and 2"):
        difference(system, narrow)
    batch = StateSpace(*(getattr(system, x)[None] for x in "ABCD"), time=system.time)
    with pytest.raises(ShapeError, match=r"batch axes \(\) but `second` has \(1,\)"):
        parallel(system, batch)
