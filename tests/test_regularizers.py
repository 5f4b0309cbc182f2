"""Penalties for training: values, the lazy form at and after a refresh, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
import torch

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    hankel_singular_values,
    hinf_norm,
    modal_truncation,
    read_system,
)
from ssmreduce.errors import (
    ArgumentError,
    ShapeError,
    UnstableSystemError,
    UnsupportedEquationError,
)
from ssmreduce.regularizers import LazyHankelNuclearNorm, hankel_nuclear_norm, modal_l1
from ssmreduce.systems.pytree import arrays_of, with_arrays

EPS = samples.EPS


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def logarithmic(rng: np.random.Generator) -> DiagonalStateSpace:
    s = samples.lru_system(rng, 5, 2)
    options = {"time": Discrete(), "real_output": True, "read_after_update": True}
    return DiagonalStateSpace.from_log(np.log(s.eigenvalues), s.B, s.C, s.D, **options)


def real_poles(rng: np.random.Generator) -> DiagonalStateSpace:
    B, C = rng.standard_normal((3, 2)), rng.standard_normal((2, 3))
    return DiagonalStateSpace(np.array([-0.7, -0.4, -3.0]), B, C, time=Continuous())


SYSTEMS: dict[str, Callable[[np.random.Generator], Any]] = {
    "lru": logarithmic,
    "real-poles": real_poles,
}
for discrete in (True, False):
    kind = "discrete" if discrete else "continuous"
    for flag in (True, False):
        SYSTEMS[f"diagonal-{kind}-{'real-output' if flag else 'complex'}"] = (
            lambda rng, d=discrete, f=flag: samples.diagonal_system(
                rng, 4, 2, 3, discrete=d, real_output=f
            )
        )
        SYSTEMS[f"dense-{kind}-{'complex' if flag else 'real'}"] = lambda rng, d=discrete, f=flag: (
            samples.dense_system(rng, 4, 2, 3, discrete=d, is_complex=f)
        )


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, rng: np.random.Generator) -> Any:
    return SYSTEMS[request.param](rng)


def as_jax(system: Any) -> Any:
    return jax.tree.map(jnp.asarray, system)


def as_torch(system: Any, *, gradient: bool = False) -> Any:
    return with_arrays(system, [torch.tensor(x, requires_grad=gradient) for x in arrays_of(system)])


def step(system: Any, rng: np.random.Generator, size: float) -> list[Any]:
    return [
        size
        * (
            samples.complex_normal(rng, *x.shape)
            if np.iscomplexobj(x)
            else rng.standard_normal(x.shape)
        )
        for x in arrays_of(system)[:3]
    ] + [0.0 * system.D]


def test_the_nuclear_norm_is_the_sum(system: Any) -> None:
    expected = hankel_singular_values(system).sum()
    assert abs(hankel_nuclear_norm(system) - expected) <= 4 * EPS * expected
    assert abs(jax.jit(hankel_nuclear_norm)(as_jax(system)) - expected) <= 4 * EPS * expected


@pytest.mark.slow
def test_value_and_gradient_of_the_lazy_form_at_a_refresh(system: Any) -> None:
    lazy = LazyHankelNuclearNorm()
    exact = jax.value_and_grad(hankel_nuclear_norm)
    state = lazy.refresh(as_jax(system))
    late = jax.jit(jax.value_and_grad(lambda s, state: lazy.penalty(s, state)))
    value, gradient = exact(as_jax(system))
    found, slope = late(as_jax(system), state)
    assert abs(found - value) <= 1e-12 * value
    scale = max(float(abs(x).max()) for x in arrays_of(gradient))
    for ours, theirs in zip(arrays_of(slope), arrays_of(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * scale)
    tensors = as_torch(system, gradient=True)
    penalty = lazy.penalty(tensors, lazy.refresh(as_torch(system)))
    penalty.backward()
    assert abs(penalty.item() - value) <= 1e-12 * value
    for ours, theirs in zip(arrays_of(tensors)[:3], arrays_of(gradient)[:3], strict=True):
        np.testing.assert_allclose(ours.grad, np.conj(theirs), rtol=0, atol=1e-11 * scale)
    assert lazy.penalty(system, lazy.refresh(system)) == pytest.approx(float(value), rel=1e-12)


def test_the_lazy_form_is_right_to_second_order(system: Any, rng: np.random.Generator) -> None:
    """Half the step, a quarter of the difference to the exact value."""
    lazy = LazyHankelNuclearNorm()
    state = lazy.refresh(system)
    direction = step(system, rng, 1.0)
    differences = []
    for size in (4e-4, 2e-4, 1e-4):
        moved = with_arrays(
            system, [x + size * d for x, d in zip(arrays_of(system), direction, strict=True)]
        )
        differences.append(abs(lazy.penalty(moved, state) - hankel_nuclear_norm(moved)))
    assert differences[2] > 0.0
    for wide, narrow in pairwise(differences):
        assert 3.0 < wide / narrow < 5.0


def test_the_lazy_form_is_convex_in_each_matrix(system: Any, rng: np.random.Generator) -> None:
    lazy = LazyHankelNuclearNorm()
    state = lazy.refresh(system)
    for index in range(3):
        direction = step(system, rng, 1.0)

        def along(t: float, i: int = index, d: Any = direction) -> float:
            arrays = list(arrays_of(system))
            if i == 0 and getattr(system, "log_eigenvalues", None) is not None:
                # Quadratic in the poles, not in their logarithms.
                arrays[0] = np.log(np.exp(arrays[0]) + t * d[0])
            else:
                arrays[i] = arrays[i] + t * d[i]
            return float(lazy.penalty(with_arrays(system, arrays), state))

        for t in (0.1, 1.0, 10.0):
            assert along(t) + along(-t) - 2 * along(0.0) >= -1e-9 * (1 + abs(along(t)))


def test_batches_are_single_systems(rng: np.random.Generator) -> None:
    lazy = LazyHankelNuclearNorm()
    singles = [samples.diagonal_system(rng, 4, 2, 3, real_output=True) for _ in range(6)]
    batch = jax.tree.map(lambda *x: np.stack(x).reshape(2, 3, *x[0].shape), *singles)
    state = lazy.refresh(batch)
    assert state.offset.shape == (2, 3)
    values = lazy.penalty(batch, state)
    sums, modes = hankel_nuclear_norm(batch), modal_l1(batch)
    for index, single in zip(np.ndindex(2, 3), singles, strict=True):
        expected = hankel_nuclear_norm(single)
        assert values[index] == pytest.approx(expected, rel=1e-12)
        assert sums[index] == pytest.approx(expected, rel=1e-12)
        assert modes[index] == pytest.approx(modal_l1(single), rel=1e-12)
    mapped = jax.vmap(lazy.penalty)(as_jax(batch), jax.tree.map(jnp.asarray, state))
    np.testing.assert_allclose(mapped, values, rtol=1e-12)


def test_the_lazy_form_of_single_precision(rng: np.random.Generator) -> None:
    """Weights of float32 in a jitted step: the gradient is right to 1 % of its size."""
    from ssmreduce.demo.lru import LRU

    with jax.enable_x64(False):
        layer = LRU(64, 4, rng=rng)
        lazy = LazyHankelNuclearNorm()
        state = jax.device_put(lazy.refresh(read_system(layer)))
        late = jax.jit(jax.grad(lambda w, state: lazy.penalty(read_system(w), state)))
        exact = jax.jit(jax.grad(lambda w: hankel_nuclear_norm(read_system(w))))
        for ours, theirs in zip(
            jax.tree.leaves(late(layer, state)), jax.tree.leaves(exact(layer)), strict=True
        ):
            assert ours.dtype == jnp.float32
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * (1e-6 + abs(theirs).max()))
    kinds = {"float64": torch.float32, "complex128": torch.complex64}
    system = logarithmic(rng)
    single = with_arrays(
        system, [torch.tensor(x, dtype=kinds[str(x.dtype)]) for x in arrays_of(system)]
    )
    assert lazy.refresh(single).inputs.dtype == torch.float32


def test_zero_values_and_zero_systems_have_no_nan(system: Any) -> None:
    lazy = LazyHankelNuclearNorm()
    state, B, C, D = arrays_of(system)
    B, silent = B.copy(), np.zeros_like(C)
    B[-1] = 0.0
    for poor in (with_arrays(system, (state, B, C, D)), with_arrays(system, (state, B, silent, D))):
        frozen = lazy.refresh(as_torch(poor))
        tensors = as_torch(poor, gradient=True)
        penalty = lazy.penalty(tensors, frozen)
        penalty.backward()
        expected = hankel_nuclear_norm(poor)
        assert abs(penalty.item() - expected) <= 1e-11 * (1 + expected)
        assert all(bool(torch.isfinite(x.grad).all()) for x in arrays_of(tensors)[:3])


def test_descent_on_the_lazy_form_goes_down_the_norm(rng: np.random.Generator) -> None:
    """With ‖B‖ and ‖C‖ kept and a refresh every fifth step, about as far as on the exact form."""
    system = as_jax(samples.diagonal_system(rng, 8, 2, 2, real_output=True))
    lazy = LazyHankelNuclearNorm(every=5)
    reached = {}
    for name, penalty in {
        "lazy": lazy.penalty,
        "exact": lambda s, _: hankel_nuclear_norm(s),
    }.items():

        def loss(B: Any, C: Any, state: Any, penalty: Any = penalty) -> Any:
            return penalty(with_arrays(system, (system.eigenvalues, B, C, system.D)), state)

        gradient = jax.jit(jax.grad(loss, (0, 1)))
        current = system
        for count in range(60):
            if lazy.due(count):
                state = lazy.refresh(current)
            moved = []
            for x, slope in zip(
                (current.B, current.C), gradient(current.B, current.C, state), strict=True
            ):
                step = x - 0.05 * jnp.conj(slope) / abs(slope).max()
                moved.append(step * jnp.linalg.norm(x) / jnp.linalg.norm(step))
            current = with_arrays(current, (current.eigenvalues, *moved, current.D))
        reached[name] = hankel_nuclear_norm(jax.tree.map(np.asarray, current))
    assert reached["lazy"] < 1.2 * reached["exact"]
    assert reached["lazy"] < 0.5 * hankel_nuclear_norm(jax.tree.map(np.asarray, system))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if "dense" not in name])
def test_modal_l1_bounds_the_gain_and_adds_up_to_the_bound_of_a_cut(
    name: str, rng: np.random.Generator
) -> None:
    system = SYSTEMS[name](rng)
    total = modal_l1(system)
    gain = with_arrays(system, (*arrays_of(system)[:3], 0.0 * system.D))
    assert hinf_norm(gain, certified=True).upper <= total * (1 + 1e-6)
    cut = modal_truncation(system, system.order - 1)
    kept = modal_l1(cut.system)
    assert cut.error_bound == pytest.approx(total - kept, rel=1e-10)


def test_modal_l1_of_one_complex_mode_is_its_gain() -> None:
    system = DiagonalStateSpace([0.6j], [[1.0, 2.0]], [[1.0], [-1j]], time=Discrete())
    assert modal_l1(system) == pytest.approx(float(hinf_norm(system)), rel=1e-9)


def test_modal_l1_has_a_derivative_at_a_pole_at_zero() -> None:
    def penalty(poles: Any) -> Any:
        ones = jnp.ones((2, 1))
        return modal_l1(DiagonalStateSpace(poles, ones, ones.mT, time=Discrete()))

    np.testing.assert_allclose(jax.grad(penalty)(jnp.array([0.0, 0.5])), [0.0, 4.0], rtol=1e-12)


def test_modal_l1_needs_no_host_and_knows_logarithms() -> None:
    """At |λ| = 1 - 1e-13 a stored pole leaves three digits of 1 - |λ|."""
    logarithm, one = jnp.asarray([-1e-13 + 0.5j]), jnp.ones((1, 1))
    system = DiagonalStateSpace.from_log(logarithm, one, one, time=Discrete())
    assert "callback" not in str(jax.make_jaxpr(modal_l1)(system))
    assert float(modal_l1(system)) == pytest.approx(1e13, rel=1e-12)


def test_what_is_refused(rng: np.random.Generator) -> None:
    system = samples.diagonal_system(rng, 3, 2, 2)
    lazy = LazyHankelNuclearNorm()
    with pytest.raises(ArgumentError, match="`every` is 0"):
        LazyHankelNuclearNorm(every=0)
    with pytest.raises(ShapeError, match="`system` is a StateSpace"):
        modal_l1(system.to_dense())
    unstable = with_arrays(system, (1.5 * np.ones(3), *arrays_of(system)[1:]))
    for function in (modal_l1, hankel_nuclear_norm, lazy.refresh):
        with pytest.raises(UnstableSystemError):
            function(unstable)
    with pytest.raises(UnsupportedEquationError, match="outside"):
        jax.jit(lazy.refresh)(as_jax(system))
    state = lazy.refresh(system)
    with pytest.raises(ShapeError, match="refresh"):
        lazy.penalty(samples.diagonal_system(rng, 2, 2, 2), state)
    with pytest.raises(ShapeError, match="refresh"):
        lazy.penalty(jax.tree.map(lambda x: x[None], system), state)


def test_a_state_belongs_to_one_kind_of_system(rng: np.random.Generator) -> None:
    """Their matrices have one size, 4x4; what is not checked would be a wrong number."""
    lazy = LazyHankelNuclearNorm()
    others = [
        samples.diagonal_system(rng, 2, 2, 2),
        samples.diagonal_system(rng, 2, 2, 2, real_output=True),
        samples.diagonal_system(rng, 2, 2, 2, discrete=False),
        samples.diagonal_system(rng, 2, 3, 2),
        samples.diagonal_system(rng, 2, 2, 1),
        samples.dense_system(rng, 4, 2, 2),
        samples.dense_system(rng, 4, 2, 2, discrete=False),
    ]
    states = [lazy.refresh(system) for system in others]
    for k, system in enumerate(others):
        for j, state in enumerate(states):
            if j == k:
                lazy.penalty(system, state)
                continue
            with pytest.raises(ShapeError, match="but `state` was made for a"):
                lazy.penalty(system, state)
    with pytest.raises(TypeError, match="`system` is a"):
        lazy.penalty(np.eye(2), states[0])  # type: ignore[arg-type]


PENALTIES = {
    "exact": hankel_nuclear_norm,
    "lazy": lambda s: LazyHankelNuclearNorm().penalty(s, LazyHankelNuclearNorm().refresh(s)),
    "modal l1": modal_l1,
}


def penalties(system: Any) -> list[Callable[[Any], Any]]:
    dense = isinstance(system, StateSpace)
    return [f for name, f in PENALTIES.items() if not (dense and name == "modal l1")]


@pytest.mark.parametrize(
    "module", ["torch", pytest.param("jax", marks=pytest.mark.slow), "array_api_strict"]
)
def test_arrays_of_numpy_beside_those_of_a_library(system: Any, module: str) -> None:
    """Only B, or all arrays but B, belong to the library; answers do too, or are floats."""
    xp = pytest.importorskip("jax.numpy" if module == "jax" else module)
    for penalty in penalties(system):
        expected = penalty(system)
        for foreign in ({1}, {0, 2, 3}, {0, 1, 2, 3}):
            arrays = [xp.asarray(x) if k in foreign else x for k, x in enumerate(arrays_of(system))]
            found = penalty(with_arrays(system, arrays))
            assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_gradients_of_some_tensors_beside_numpy(system: Any) -> None:
    for penalty in penalties(system):
        tensors = as_torch(system, gradient=True)
        penalty(tensors).backward()
        alone = torch.tensor(system.B, requires_grad=True)
        state, _, C, D = arrays_of(system)
        penalty(with_arrays(system, (state, alone, C, D))).backward()
        np.testing.assert_allclose(alone.grad, tensors.B.grad, rtol=1e-9, atol=1e-12)


MIXED = {
    "half": (torch.float16,) * 3,
    "bfloat16": (torch.bfloat16,) * 3,
    "mixed": (torch.float32, torch.bfloat16, torch.float64),
    "complex outputs": (torch.float64, torch.float64, torch.complex128),
    "complex poles": (torch.complex64, torch.float32, torch.float64),
}


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_precisions_of_every_kind(
    rng: np.random.Generator, kind: str, discrete: bool, dense: bool
) -> None:
    poles = np.array([0.5, -0.25]) if discrete else np.array([-0.5, -1.0])
    arrays = [np.diag(poles) if dense else poles, [[1.0, 0.5], [-0.5, 2.0]], [[1.0, -2.0]]]
    kinds = MIXED[kind]
    time: Any = Discrete() if discrete else Continuous()
    tensors = [torch.tensor(x).to(k).requires_grad_() for x, k in zip(arrays, kinds, strict=True)]
    make: Any = StateSpace if dense else DiagonalStateSpace
    system, plain = make(*tensors, time=time), make(*arrays, time=time)
    for penalty in penalties(system):
        value = penalty(system)
        accuracy = 4.0 * torch.finfo(value.dtype).eps
        assert value.item() == pytest.approx(float(penalty(plain)), rel=max(accuracy, 1e-5))
        value.backward()
        assert all(bool(torch.isfinite(x.grad).all()) for x in tensors)


def test_a_refresh_names_the_system_to_blame(rng: np.random.Generator) -> None:
    poles = np.array([[0.5, 0.25], [1.5, 0.25]])
    batch = DiagonalStateSpace(poles, np.ones((2, 2, 1)), np.ones((2, 1, 2)), time=Discrete())
    with pytest.raises(UnstableSystemError, match=r"in system\[1\] of the batch"):
        LazyHankelNuclearNorm().refresh(batch)


@pytest.mark.parametrize("real_output", [True, False])
def test_static_gains_have_no_penalty(real_output: bool) -> None:
    gain = DiagonalStateSpace(
        np.zeros(0), np.zeros((0, 2)), np.zeros((3, 0)), time=Discrete(), real_output=real_output
    )
    for system in (gain, StateSpace(np.zeros((0, 0)), gain.B, gain.C, time=Continuous())):
        for penalty in penalties(system):
            assert penalty(system) == 0.0


def test_due_counts_from_zero() -> None:
    lazy = LazyHankelNuclearNorm(every=3)
    assert [step for step in range(8) if lazy.due(step)] == [0, 3, 6]
    numbers: list[Any] = [np.int64(3), jnp.asarray(3), torch.tensor(3)]
    assert all(map(lazy.due, numbers))
    for step in ("a", 2.5, None):
        with pytest.raises(ArgumentError, match="`step` is"):
            lazy.due(step)  # type: ignore[arg-type]


class TestPytrees:
    """Systems as arguments and results of JAX functions."""

    def test_a_round_trip_keeps_everything(self, system: Any) -> None:
        leaves, structure = jax.tree.flatten(system)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(system)
        for ours, theirs in zip(arrays_of(again), arrays_of(system), strict=True):
            assert ours is theirs
        options = ["time", "read_after_update"]
        options += ["real_output"] if isinstance(system, DiagonalStateSpace) else []
        assert all(getattr(again, name) == getattr(system, name) for name in options)
        assert again.order == system.order

    def test_leaves_have_the_names_of_the_arrays(self, rng: np.random.Generator) -> None:
        names = {
            "lru": [".log_eigenvalues", ".B", ".C", ".D"],
            "real-poles": [".eigenvalues", ".B", ".C", ".D"],
            "dense-discrete-real": [".A", ".B", ".C", ".D"],
        }
        for name, expected in names.items():
            paths = jax.tree_util.tree_leaves_with_path(SYSTEMS[name](rng))
            assert [jax.tree_util.keystr(path) for path, _ in paths] == expected

    def test_poles_follow_their_logarithms(self, rng: np.random.Generator) -> None:
        system = as_jax(logarithmic(rng))
        halved = jax.jit(lambda s: jax.tree.map(lambda x: 0.5 * x, s))(system)
        np.testing.assert_allclose(
            halved.eigenvalues, np.exp(0.5 * np.asarray(system.log_eigenvalues)), rtol=1e-14
        )

    def test_going_back_checks_nothing(self, system: Any) -> None:
        structure = jax.tree.structure(system)
        for leaf in (None, 0, np.nan, "x", object()):
            again = jax.tree.unflatten(structure, [leaf] * 4)
            assert again.B is leaf

    def test_systems_are_built_of_tracers_without_looking_at_values(self) -> None:
        @jax.jit
        def build(A: Any) -> Any:
            return StateSpace(A, jnp.ones((2, 1)), jnp.ones((1, 2)), time=Discrete())

        nan = jnp.full((2, 2), jnp.nan)
        assert bool(jnp.isnan(build(nan).A).all())
        with pytest.raises(ShapeError, match="square"):
            build(jnp.ones((2, 3)))

    def test_systems_that_differ_in_options_are_compiled_apart(
        self, rng: np.random.Generator
    ) -> None:
        real = as_jax(samples.diagonal_system(rng, 3, 2, 2, real_output=True))
        options = {"time": real.time, "real_output": False}
        plain = DiagonalStateSpace(real.eigenvalues, real.B, real.C, real.D, **options)
        norm = jax.jit(hankel_nuclear_norm)
        for system in (real, plain):
            expected = hankel_nuclear_norm(jax.tree.map(np.asarray, system))
            assert float(norm(system)) == pytest.approx(expected, rel=1e-12)
