"""Construction, validation, array libraries and responses of systems."""

from __future__ import annotations

from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import EPS, complex_normal, dense_system, diagonal_system, impulse_response

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balanced_truncation,
    controllability_gramian,
    hankel_singular_values,
    modal_truncation,
)
from ssmreduce._checks import require_backend
from ssmreduce.errors import (
    MissingBackendError,
    NonFiniteError,
    ShapeError,
    TimeDomainError,
    TracedValueError,
)
from ssmreduce.norms import hinf_difference
from ssmreduce.responses import frequency_response
from ssmreduce.systems.simulation import simulate

pytestmark = pytest.mark.every_library

DENSE = {"A": np.eye(4) / 2, "B": np.ones((4, 2)), "C": np.ones((3, 4)), "D": np.ones((3, 2))}
DIAGONAL = {"eigenvalues": np.full(4, 0.5)} | {name: DENSE[name] for name in "BCD"}

DENSE_ERRORS = {
    "B": (np.ones((3, 2)), r"`B` has 3 rows but `A` is 4x4"),
    "C": (np.ones((3, 5)), r"`C` has 5 columns but `A` is 4x4"),
    "D": (np.ones((2, 3)), r"`D` is 2x3 but `C` has 3 rows and `B` has 2 columns"),
    "A": (np.ones((4, 3)), r"`A` is 4x3; expected a square"),
}


@pytest.mark.parametrize("name", DENSE_ERRORS)
def test_dense_sizes_are_printed(name: str) -> None:
    value, message = DENSE_ERRORS[name]
    with pytest.raises(ShapeError, match=message) as caught:
        StateSpace(**(DENSE | {name: value}), time=Discrete())
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["B", "C", "D"])
def test_diagonal_sizes_are_printed(name: str) -> None:
    value, message = DENSE_ERRORS[name]
    message = message.replace("`A` is 4x4", "`eigenvalues` has 4 entries")
    with pytest.raises(ShapeError, match=message):
        DiagonalStateSpace(**(DIAGONAL | {name: value}), time=Discrete())


def test_the_number_0_is_no_feedthrough() -> None:
    for zero in (0, 0.0, 0j, np.float64(0.0), np.float32(0.0), np.int64(0)):
        np.testing.assert_array_equal(
            StateSpace(**(DENSE | {"D": zero}), time=Discrete()).D, np.zeros((3, 2))
        )
        diagonal = DiagonalStateSpace(**(DIAGONAL | {"D": zero}), time=Discrete())
        np.testing.assert_array_equal(diagonal.D, np.zeros((3, 2)))
    with pytest.raises(ShapeError, match=r"`D` has shape \(\)"):
        StateSpace(**(DENSE | {"D": 1.0}), time=Discrete())


def test_batch_axes_are_printed() -> None:
    with pytest.raises(ShapeError, match=r"`B` has leading batch axes \(2,\) but `A` has \(\)"):
        StateSpace(**(DENSE | {"B": np.ones((2, 4, 2))}), time=Discrete())
    with pytest.raises(ShapeError, match=r"`C`.*\(3,\).*`eigenvalues` has \(\)"):
        DiagonalStateSpace(**(DIAGONAL | {"C": np.ones((3, 3, 4))}), time=Discrete())


def test_too_few_axes() -> None:
    with pytest.raises(ShapeError, match=r"`B` has shape \(4,\)"):
        StateSpace(**(DENSE | {"B": np.ones(4)}), time=Discrete())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, complex(0, np.nan)])
@pytest.mark.parametrize("name", ["A", "B", "C", "D", "eigenvalues"])
def test_entries_that_are_not_finite(name: str, value: complex) -> None:
    arrays = dict(DIAGONAL if name == "eigenvalues" else DENSE)
    arrays[name] = arrays[name].astype(complex)
    arrays[name].flat[-1] = value
    kind: Any = DiagonalStateSpace if name == "eigenvalues" else StateSpace
    with pytest.raises(NonFiniteError, match=f"`{name}` holds NaN or Inf") as caught:
        kind(**arrays, time=Discrete())
    assert isinstance(caught.value, ValueError)


def test_other_dtypes() -> None:
    system = StateSpace([[0]], [[1]], [[2]], time=Discrete())
    assert system.A.dtype == system.D.dtype == np.float64
    with pytest.raises(ShapeError, match="dtype"):
        StateSpace([["a"]], [[1]], [[2]], time=Discrete())
    with pytest.raises(ShapeError, match=r"`D` has dtype \S*complex"):
        DiagonalStateSpace(
            **(DIAGONAL | {"D": np.ones((3, 2)) * 1j}), time=Discrete(), real_output=True
        )


def test_subclasses_of_arrays() -> None:
    """Their operators are their own: they are taken as plain arrays, and what is missing is refused."""
    arrays = {"A": 0.5 * np.eye(2), "B": np.ones((2, 1)), "C": np.ones((1, 2))}
    system = StateSpace(
        **{name: x.view(np.recarray) for name, x in arrays.items()}, time=Discrete()
    )
    assert {type(x) for x in (system.A, system.B, system.C, system.D)} == {np.ndarray}
    arrays["A"] = np.ma.MaskedArray(arrays["A"], mask=np.eye(2))
    with pytest.raises(ShapeError, match=r"`A` is a masked array.*A\.filled"):
        StateSpace(**arrays, time=Discrete())


@pytest.mark.parametrize("time", [None, 0, 1.0, True, Discrete, "discrete"])
def test_time_must_be_a_time_domain(time: Any) -> None:
    with pytest.raises(TimeDomainError, match="time") as caught:
        StateSpace(**DENSE, time=time)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(TimeDomainError):
        DiagonalStateSpace(**DIAGONAL, time=time)


def test_time_is_required() -> None:
    with pytest.raises(TypeError, match="time"):
        StateSpace(**DENSE)


@pytest.mark.parametrize("dt", [0, -1.0, np.inf, np.nan, True, None, "1"])
def test_sampling_time(dt: Any) -> None:
    with pytest.raises(TimeDomainError, match="dt"):
        Discrete(dt)


def test_sampling_time_survives_a_reduction() -> None:
    for kind in ("dense", "diagonal"):
        system: Any = StateSpace(**DENSE, time=Discrete(0.01))
        if kind == "diagonal":
            poles = np.array([0.1, 0.2, 0.3, 0.4])
            system = DiagonalStateSpace(**(DIAGONAL | {"eigenvalues": poles}), time=Discrete(0.01))
        assert balanced_truncation(system, 1).system.time == Discrete(0.01)
        assert system.to_host().time == Discrete(0.01)


def test_continuous_systems_do_not_update() -> None:
    for kind, arrays in ((StateSpace, DENSE), (DiagonalStateSpace, DIAGONAL)):
        with pytest.raises(TimeDomainError, match="read_after_update"):
            kind(**arrays, time=Continuous(), read_after_update=True)
    with pytest.raises(TimeDomainError, match="Discrete"):
        DiagonalStateSpace.from_log(
            np.array([-1.0]), np.ones((1, 1)), np.ones((1, 1)), time=Continuous()
        )


# --- Array libraries


@pytest.mark.parametrize("real_output", [False, True])
def test_array_api_strict(rng: np.random.Generator, real_output: bool) -> None:
    plain = diagonal_system(rng, 6, 2, 2, real_output=real_output)
    arrays = [
        array_api_strict.asarray(getattr(plain, name)) for name in ("eigenvalues", "B", "C", "D")
    ]
    system = DiagonalStateSpace(*arrays, time=Discrete(), real_output=real_output)
    assert type(system.B) is type(arrays[1])
    values = hankel_singular_values(system)
    assert type(values) is type(arrays[1])
    np.testing.assert_array_equal(np.asarray(values), hankel_singular_values(plain))
    reduction = balanced_truncation(system, 3)
    assert type(reduction.system.B) is type(arrays[1])
    assert reduction.original is system
    np.testing.assert_array_equal(
        np.asarray(reduction.system.B), balanced_truncation(plain, 3).system.B
    )
    assert balanced_truncation(system, 6).system is system
    without = DiagonalStateSpace(*arrays[:3], time=Discrete(), real_output=real_output)
    assert type(without.D) is type(arrays[1])
    standard = DiagonalStateSpace(
        *arrays, time=Discrete(), real_output=real_output, read_after_update=True
    ).to_standard()
    np.testing.assert_allclose(
        np.asarray(standard.C), plain.C * plain.eigenvalues, atol=10 * EPS * np.abs(plain.C).max()
    )


def test_array_api_strict_dense_batch_and_logarithms(rng: np.random.Generator) -> None:
    singles = [dense_system(rng, 4, 2, 1) for _ in range(3)]
    arrays = [np.stack([getattr(s, name) for s in singles]) for name in "ABCD"]
    system = StateSpace(*(array_api_strict.asarray(x) for x in arrays), time=Discrete())
    values = hankel_singular_values(system)
    np.testing.assert_array_equal(np.asarray(values)[1], hankel_singular_values(singles[1]))
    logarithms = array_api_strict.asarray(np.array([-0.1 + 1j, -0.3]))
    ones = array_api_strict.ones((2, 1), dtype=array_api_strict.float64)
    row = array_api_strict.ones((1, 2), dtype=array_api_strict.float64)
    fromlog = DiagonalStateSpace.from_log(logarithms, ones, row, time=Discrete(), real_output=True)
    assert hankel_singular_values(fromlog).shape == (4,)


def test_jax_arrays(rng: np.random.Generator, precision: str) -> None:
    plain = diagonal_system(rng, 6, 2, 2, real_output=True)
    kinds = {"float32": "complex64", "float64": "complex128"}
    arrays = [
        jnp.asarray(getattr(plain, name), dtype=kinds[precision])
        for name in ("eigenvalues", "B", "C")
    ]
    system = DiagonalStateSpace(*arrays, time=Discrete(), real_output=True)
    assert isinstance(system.eigenvalues, jax.Array)
    assert system.D.dtype == precision
    # On the host, in double precision; rounded to what JAX is set to.
    same = DiagonalStateSpace(
        *(np.asarray(x).astype(complex) for x in arrays), time=Discrete(), real_output=True
    )
    values = hankel_singular_values(system)
    assert isinstance(values, jax.Array)
    assert values.dtype == precision
    np.testing.assert_array_equal(values, hankel_singular_values(same).astype(precision))
    assert isinstance(controllability_gramian(system), jax.Array)
    assert balanced_truncation(system, 2).system.B.dtype == kinds[precision]


def test_float32_numpy_is_computed_in_double(rng: np.random.Generator) -> None:
    plain = dense_system(rng, 5, 1, 1)
    single = StateSpace(*(getattr(plain, x).astype(np.float32) for x in "ABC"), time=Discrete())
    assert single.A.dtype == np.float32
    double = StateSpace(*(getattr(single, x).astype(np.float64) for x in "ABC"), time=Discrete())
    np.testing.assert_array_equal(hankel_singular_values(single), hankel_singular_values(double))


def test_traced_values_are_checked_by_shape_alone() -> None:
    @jax.jit
    def gain(eigenvalues: jax.Array, B: jax.Array, C: jax.Array) -> jax.Array:
        system = DiagonalStateSpace(eigenvalues, B, C, time=Discrete(), read_after_update=True)
        assert system.order == 2
        return system.to_standard().D + system.D

    ones, row = jnp.ones((2, 1)), jnp.ones((1, 2))
    assert float(gain(jnp.array([0.5, jnp.nan]), ones, row)[0, 0]) == 2.0
    with pytest.raises(ShapeError, match="`B` has 3 rows"):
        gain(jnp.array([0.5, 0.1]), jnp.ones((3, 1)), row)


def test_decisions_on_traced_values_are_refused() -> None:
    @jax.jit
    def reduced(A: jax.Array) -> Any:
        system = StateSpace(A, jnp.ones((2, 1)), jnp.ones((1, 2)), time=Discrete())
        return modal_truncation(system, 1).system.A

    with pytest.raises(TracedValueError, match=r"`modal_truncation` .* outside of jit"):
        reduced(jnp.array([[0.5, 0.0], [0.1, 0.1]]))


def test_missing_extra_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for module in ("matplotlib", "matplotlib.pyplot"):
        with pytest.raises(MissingBackendError, match=r"pip install 'ssmreduce\[plot\]'") as caught:
            require_backend(module, extra="plot")
        assert isinstance(caught.value, ImportError)
    assert require_backend("numpy", extra="none") is np


# --- Responses


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_simulation_is_convolution(rng: np.random.Generator, kind: str, after: bool) -> None:
    D = rng.standard_normal((3, 2))
    if kind == "dense":
        s: Any = dense_system(rng, 5, 2, 3)
        system: Any = StateSpace(s.A, s.B, s.C, D, time=Discrete(), read_after_update=after)
    else:
        real = kind == "real output"
        s = diagonal_system(rng, 5, 2, 3, real_output=real)
        system = DiagonalStateSpace(
            s.eigenvalues,
            s.B,
            s.C,
            D,
            time=Discrete(),
            real_output=real,
            read_after_update=after,
        )
    signal = rng.standard_normal((12, 2))
    response = impulse_response(system, 12)
    expected = np.array([sum(response[j] @ signal[k - j] for j in range(k + 1)) for k in range(12)])
    found = simulate(system, signal)
    assert found.shape == (12, 3)
    assert np.isrealobj(found) == (kind != "diagonal")
    np.testing.assert_allclose(found, expected, atol=12 * 10 * EPS * np.abs(expected).max())
    # ... and the frequency response is its Fourier series; |λ|^400 is below rounding.
    omega = np.array([0.0, 0.4, 2.0])
    long = impulse_response(system, 1000)
    series = np.einsum("kpm,kw->wpm", long, np.exp(-1j * np.outer(np.arange(1000), omega)))
    allowed = 1000 * EPS * np.abs(long).sum(axis=0).max()
    np.testing.assert_allclose(frequency_response(system, omega), series, atol=allowed)


def test_simulation_refuses_what_it_cannot_run(rng: np.random.Generator) -> None:
    system = dense_system(rng, 3, 2, 1)
    with pytest.raises(ShapeError, match=r"\(7, 3\).*\(L, 2\)"):
        simulate(system, np.ones((7, 3)))
    with pytest.raises(TimeDomainError):
        simulate(dense_system(rng, 3, 2, 1, discrete=False), np.ones((7, 2)))
    batch = StateSpace(*(getattr(system, x)[None] for x in "ABCD"), time=Discrete())
    with pytest.raises(ShapeError, match="batch"):
        simulate(batch, np.ones((7, 2)))
    with pytest.raises(ShapeError, match="batch"):
        hinf_difference(batch, batch)


def test_real_output_is_its_dense_form(rng: np.random.Generator) -> None:
    for discrete in (False, True):
        system = diagonal_system(rng, 4, 2, 2, discrete=discrete, real_output=True)
        omega = np.linspace(-3, 3, 7)
        expected = frequency_response(system.to_dense(), omega)
        found = frequency_response(system, omega)
        np.testing.assert_allclose(found, expected, atol=1e3 * EPS * np.abs(expected).max())


def test_logarithms_survive_indexing_and_host() -> None:
    rng = np.random.default_rng(1)
    logarithms = np.array([[-1e-12 + 1j, -0.5], [-0.3, -0.2j - 0.1]])
    system = DiagonalStateSpace.from_log(
        logarithms, complex_normal(rng, 2, 2, 1), complex_normal(rng, 2, 1, 2), time=Discrete()
    )
    single = system[0]
    np.testing.assert_array_equal(single.log_eigenvalues, logarithms[0])
    np.testing.assert_array_equal(single.to_host().log_eigenvalues, logarithms[0])
    expected = (np.abs(single.B) ** 2)[0, 0] / -np.expm1(-2e-12)
    assert controllability_gramian(system)[0, 0, 0].real == pytest.approx(expected, rel=10 * EPS)
