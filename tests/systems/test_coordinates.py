"""Similarity transforms, diagonal form, real form: the map stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import EPS, adjoint, complex_normal, dense_system, well_conditioned
from transfer import KINDS, TIMES, assert_same_map, random_system

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace, hankel_singular_values
from ssmreduce.errors import ShapeError, UnreachableToleranceError
from ssmreduce.systems.coordinates import diagonalised, real_form, transformed
from ssmreduce.systems.interconnect import parallel

pytestmark = pytest.mark.every_library


def is_real(system: StateSpace) -> bool:
    return not any(np.iscomplexobj(x) for x in (system.A, system.B, system.C, system.D))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_transformed_is_the_same_map(rng: np.random.Generator, kind: str, after: bool) -> None:
    system = random_system(rng, kind, Discrete(0.1), after=after)
    n = system.to_dense().order
    for is_complex in (False, True):
        T = well_conditioned(rng, n, is_complex=is_complex)
        found = transformed(system, T)
        assert_same_map(found, system, 1e3 * EPS)
        assert found.read_after_update == after
        np.testing.assert_allclose(
            T @ found.A, system.to_dense().A @ T, atol=100 * EPS * np.abs(T).max()
        )
        assert is_real(found) == (not is_complex and is_real(system.to_dense()))


def test_transformed_takes_one_matrix_or_one_for_each_system(rng: np.random.Generator) -> None:
    batch = random_system(rng, "complex dense", Continuous(), batch=(2, 3))
    one = well_conditioned(rng, 5, is_complex=False)
    many = np.stack([[well_conditioned(rng, 5, is_complex=True) for _ in range(3)] for _ in "ab"])
    for T in (one, many):
        found = transformed(batch, T)
        for i, j in np.ndindex(2, 3):
            single = transformed(batch[i, j], T if T.ndim == 2 else T[i, j])
            np.testing.assert_array_equal(found[i, j].A, single.A)
            np.testing.assert_array_equal(found[i, j].C, single.C)
    with pytest.raises(ShapeError, match=r"`T` has shape \(4, 4\).*order 5"):
        transformed(batch, np.eye(4))
    with pytest.raises(ShapeError, match=r"`T` has shape \(3, 5, 5\).*\(2, 3\)"):
        transformed(batch, np.ones((3, 5, 5)))


def test_units_are_no_singularity_but_dependent_columns_are(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Continuous())
    units = np.diag(10.0 ** np.array([-150, -20, 0, 20, 150]))
    back = transformed(transformed(system, units), np.diag(1 / np.diag(units)))
    np.testing.assert_allclose(back.A, system.A, rtol=10 * EPS)
    for T in (np.ones((5, 5)), rotated_projection(rng)):
        with pytest.raises(UnreachableToleranceError, match="`T` has reciprocal condition"):
            transformed(system, T)


def rotated_projection(rng: np.random.Generator) -> Any:
    left = well_conditioned(rng, 5, is_complex=False)
    return left @ np.diag([1.0, 1.0, 1.0, 1.0, 0.0]) @ adjoint(left)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_diagonalised_is_the_same_map(rng: np.random.Generator, kind: str, after: bool) -> None:
    system = random_system(rng, kind, Discrete(0.1), after=after)
    found = diagonalised(system)
    assert_same_map(found, system, 1e4 * EPS)
    assert found.read_after_update == after
    if kind == "real dense":
        assert found.real_output
        assert found.order == 3  # two pairs and a real pole
        assert not np.iscomplexobj(found.D)
    elif kind == "complex dense":
        assert not found.real_output
        assert found.order == 5
    else:
        assert found is system


def test_real_state_matrix_with_complex_input_keeps_all_states(rng: np.random.Generator) -> None:
    real = dense_system(rng, 6, 1, 1)
    system = StateSpace(real.A, real.B + 1j, real.C, time=real.time)
    found = diagonalised(system)
    assert found.order == 6
    assert not found.real_output
    assert_same_map(found, system, 1e5 * EPS)


def test_defective_matrices_stay_dense() -> None:
    block = np.array([[0.5, 1.0], [0.0, 0.5]])
    for A in (block, block + 0j, np.eye(3, k=1)):
        n = len(A)
        system = StateSpace(A, np.ones((n, 1)), np.ones((1, n)), time=Discrete())
        with pytest.raises(UnreachableToleranceError, match=r"condition number .*defective"):
            diagonalised(system)
    # Rounding of a rotation splits the pole by √ε, which leaves half of the digits of the map.
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    system = StateSpace(
        turn @ block @ adjoint(turn), np.ones((2, 1)), np.ones((1, 2)), time=Discrete()
    )
    assert_same_map(diagonalised(system), system, 1e2 * np.sqrt(EPS))


@pytest.mark.parametrize("time", TIMES)
def test_complex_coordinates_of_a_real_system(rng: np.random.Generator, time: Any) -> None:
    system = random_system(rng, "real dense", time, n=7)
    hidden = transformed(system, well_conditioned(rng, 7, is_complex=True))
    assert np.iscomplexobj(hidden.A)
    found = real_form(hidden)
    assert is_real(found)
    assert found.order == 7
    assert_same_map(found, system, 1e5 * EPS)
    values = hankel_singular_values(system)
    np.testing.assert_allclose(
        hankel_singular_values(found), values, rtol=0, atol=1e5 * EPS * values[0]
    )


@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 3))
def test_conjugate_pairs_in_any_order_and_scale(seed: int, after: bool, copies: int) -> None:
    """Also with equal poles (`copies`), with real ones, and states scaled by any number."""
    rng = np.random.default_rng(seed)
    pairs, alone, m, p = 2, 2, 2, 1
    upper = np.repeat(0.9 * np.exp(1j * rng.uniform(0.1, 3.0, pairs)), copies)
    B, C = complex_normal(rng, upper.size, m), complex_normal(rng, p, upper.size)
    poles = np.concatenate([upper, upper.conj(), rng.uniform(-0.9, 0.9, alone)])
    B = np.concatenate([B, B.conj(), rng.standard_normal((alone, m))])
    C = np.concatenate([C, C.conj(), rng.standard_normal((p, alone))], axis=1)
    scale, order = complex_normal(rng, poles.size), rng.permutation(poles.size)
    system = DiagonalStateSpace(
        poles[order],
        (scale[:, None] * B)[order],
        (C / scale)[:, order],
        np.ones((p, m)) + 0j,
        time=Discrete(),
        read_after_update=after,
    )
    found = real_form(system)
    assert is_real(found)
    assert found.order == poles.size
    assert found.read_after_update == after
    assert_same_map(found, system, 1e4 * EPS)


@pytest.mark.parametrize("kind", ["real output", "real dense", "real diagonal"])
def test_real_form_of_real_systems(rng: np.random.Generator, kind: str) -> None:
    for batch in ((), (2,)):
        system = random_system(rng, kind, Discrete(0.1), after=True, batch=batch)
        found = real_form(system)
        assert is_real(found)
        assert found.order == (10 if kind == "real output" else 5)
        at = (0,) if batch else ...
        assert_same_map(
            found if not batch else found[at], system if not batch else system[at], 100 * EPS
        )


def test_a_real_system_in_a_complex_dtype(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Continuous())
    disguised = StateSpace(*(getattr(system, x).astype(complex) for x in "ABCD"), time=Continuous())
    np.testing.assert_array_equal(real_form(disguised).A, system.A)


def test_complex_systems_have_no_real_form(rng: np.random.Generator) -> None:
    for kind in ("complex dense", "complex diagonal"):
        system = random_system(rng, kind, Continuous())
        with pytest.raises(ShapeError, match="`D` has an imaginary part"):
            real_form(system)
        arrays = [
            getattr(system, x) for x in (("A" if "dense" in kind else "eigenvalues"), "B", "C")
        ]
        without: Any = type(system)(*arrays, time=Continuous())
        with pytest.raises(ShapeError, match="without a conjugate partner"):
            real_form(without)
    # Right poles, wrong residues.
    system = DiagonalStateSpace([0.5j, -0.5j], [[1.0], [1.0]], [[1.0, 2.0]], time=Discrete())
    with pytest.raises(ShapeError, match="conjugate residue"):
        real_form(system)
    batch = random_system(rng, "complex diagonal", Continuous(), batch=(2,))
    with pytest.raises(ShapeError, match=r"batch axes \(2,\)"):
        real_form(batch)
    with pytest.raises(ShapeError, match=r"batch axes \(2,\)"):
        diagonalised(random_system(rng, "complex dense", Continuous(), batch=(2,)))


def test_there_and_back(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Discrete(0.1), n=9)
    assert_same_map(real_form(diagonalised(system)), system, 1e4 * EPS)
    # A real pole takes one stored state, and two real ones.
    assert real_form(diagonalised(system)).order == 10
    both = parallel(diagonalised(system), diagonalised(system))
    assert both.order == 10
