"""Derivatives of Gramians, Hankel singular values and norms, under torch autograd and JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples
import torch
from oracles import mpmath_hsv

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    controllability_gramian,
    h2_norm,
    hankel_norm,
    hankel_singular_values,
    hinf_norm,
    observability_gramian,
)
from ssmreduce.derivatives.dispatch import differentiable
from ssmreduce.errors import (
    ShapeError,
    TracedValueError,
    UnstableSystemError,
    UnsupportedEquationError,
)
from ssmreduce.regularizers import hankel_nuclear_norm, modal_l1
from ssmreduce.systems.pytree import arrays_of, with_arrays

EPS = samples.EPS


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def seeded(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def lru(rng: np.random.Generator) -> DiagonalStateSpace:
    """Real output, read after the update, logarithms of the poles."""
    s = samples.lru_system(rng, 4, 2)
    options = {"time": Discrete(), "real_output": True, "read_after_update": True}
    return DiagonalStateSpace.from_log(np.log(s.eigenvalues), s.B, s.C, s.D, **options)


def real_poles(rng: np.random.Generator) -> DiagonalStateSpace:
    B, C = rng.standard_normal((3, 2)), rng.standard_normal((2, 3))
    return DiagonalStateSpace(np.array([0.7, -0.4, 0.1]), B, C, time=Discrete())


def after_update(rng: np.random.Generator) -> StateSpace:
    s = samples.dense_system(rng, 4, 2, 3)
    D = rng.standard_normal((3, 2))
    return StateSpace(s.A, s.B, s.C, D, time=s.time, read_after_update=True)


SYSTEMS: dict[str, Callable[[np.random.Generator], Any]] = {
    "lru": lru,
    "real-poles": real_poles,
    "dense-after-update": after_update,
    "one-channel": lambda rng: samples.diagonal_system(rng, 4, 1, 1),
    "wide": lambda rng: samples.diagonal_system(rng, 2, 5, 3, real_output=True),
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


def weighted(values: Any) -> Any:
    """Re Σ w_i x_i with fixed weights without structure, of any library."""
    shape = tuple(values.shape)
    rng = np.random.default_rng(7)
    weights = samples.complex_normal(rng, *shape)
    if isinstance(values, torch.Tensor):
        product = values * torch.tensor(weights)
        return product.real.sum()
    return (values * weights).real.sum()


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "hsv": lambda s: weighted(hankel_singular_values(s)),
    "controllability": lambda s: weighted(controllability_gramian(s)),
    "observability": lambda s: weighted(observability_gramian(s)),
    "h2": h2_norm,
    "hankel": hankel_norm,
    "hinf": lambda s: hinf_norm(s).lower,
    "nuclear": hankel_nuclear_norm,
    "modal": modal_l1,
}


AGREEMENT = dict.fromkeys(FUNCTIONS, 1e-11) | {"hinf": 1e-6}
"""Relative difference of one gradient found in two ways.

A gain within eps of its peak lies within sqrt(eps) of the frequency of the peak, times the width of the
resonance. Rounding chooses one of these frequencies, and the gradient, unlike the gain, is not flat there.
"""


def applies(function: str, system: Any) -> bool:
    return function != "modal" or isinstance(system, DiagonalStateSpace)


CASES = [
    (name, function)
    for name, build in SYSTEMS.items()
    for function in FUNCTIONS
    if applies(function, build(seeded(name)))
]


def torch_gradient(function: Callable[[Any], Any], system: Any) -> tuple[float, list[Any]]:
    """Value, and dL/dRe + i dL/dIm for each array."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays_of(system)]
    value = function(with_arrays(system, tensors))
    value.backward()
    gradients = [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in tensors]
    return value.item(), gradients


def jax_gradient(function: Callable[[Any], Any], system: Any) -> list[Any]:
    """The same; JAX returns the conjugate."""
    gradient = jax.jit(jax.grad(function))(jax.tree.map(jnp.asarray, system))
    return [np.conj(x) for x in arrays_of(gradient)]


def random_direction(system: Any, rng: np.random.Generator) -> list[Any]:
    """A step in all arrays; D stays where the norm is infinite beside it."""
    steps = [
        samples.complex_normal(rng, *x.shape)
        if np.iscomplexobj(x)
        else rng.standard_normal(x.shape)
        for x in arrays_of(system)
    ]
    if not np.any(system.D):
        steps[3] = np.zeros_like(steps[3])
    return steps


def slope(gradients: list[Any], direction: list[Any]) -> float:
    return float(sum(np.vdot(g, d).real for g, d in zip(gradients, direction, strict=True)))


def moved(system: Any, direction: list[Any], t: float) -> Any:
    return with_arrays(
        system, [x + t * d for x, d in zip(arrays_of(system), direction, strict=True)]
    )


def central(
    function: Callable[[Any], Any], system: Any, direction: list[Any]
) -> tuple[float, float]:
    """Central difference, and its error: truncation as two steps show it, rounding of the values."""

    def at(h: float) -> float:
        ends = [float(function(moved(system, direction, t))) for t in (h, -h)]
        return (ends[0] - ends[1]) / (2 * h)

    h = EPS ** (1 / 3) * 0.3
    wide, narrow = at(2 * h), at(h)
    rounding = 200.0 * system.order * EPS * abs(float(function(system))) / h
    return narrow, 4 * abs(wide - narrow) + rounding


@pytest.mark.parametrize(("name", "function"), CASES)
def test_gradients_match_finite_differences(name: str, function: str) -> None:
    system = SYSTEMS[name](seeded(name))
    evaluate = FUNCTIONS[function]
    value, gradients = torch_gradient(evaluate, system)
    assert abs(value - evaluate(system)) <= 20 * EPS * (1 + abs(value))
    direction = random_direction(system, seeded(function))
    expected, error = central(evaluate, system, direction)
    assert error <= 1e-3 * abs(expected)
    scale = sum(
        np.linalg.norm(g) * np.linalg.norm(d) for g, d in zip(gradients, direction, strict=True)
    )
    assert abs(slope(gradients, direction) - expected) <= error + AGREEMENT[function] * scale


@pytest.mark.parametrize(("name", "function"), CASES)
def test_jax_and_torch_agree(name: str, function: str) -> None:
    system = SYSTEMS[name](seeded(name))
    _, expected = torch_gradient(FUNCTIONS[function], system)
    found = jax_gradient(FUNCTIONS[function], system)
    for ours, theirs, array in zip(found, expected, arrays_of(system), strict=True):
        assert ours.dtype == array.dtype
        scale = 1 + np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=AGREEMENT[function] * scale)


@pytest.mark.parametrize(
    ("options", "build"),
    [
        ({}, lambda rng: samples.diagonal_system(rng, 3, 2, 2)),
        ({"discrete": False}, lambda rng: samples.diagonal_system(rng, 3, 2, 2, discrete=False)),
        (
            {"real_output": True},
            lambda rng: samples.diagonal_system(rng, 2, 2, 2, real_output=True),
        ),
        ({"real_output": True, "logarithms": True}, lru),
    ],
    ids=["complex", "continuous", "real-output", "log"],
)
def test_simple_values_match_an_exact_derivative(
    options: dict[str, bool], build: Callable[[np.random.Generator], Any], rng: np.random.Generator
) -> None:
    """Each value by itself, to the rounding that the distance of its neighbours allows."""
    system = build(rng)
    direction = random_direction(system, rng)
    values = hankel_singular_values(system)
    for index in range(values.size):
        expected = mpmath_hsv.directional_derivative(
            lambda sigma, i=index: sigma[i],
            arrays_of(system)[:3],
            (direction[0], direction[1], direction[2]),
            **options,
        )
        _, gradients = torch_gradient(lambda s, i=index: hankel_singular_values(s)[i], system)
        size = sum(np.abs(g * d).sum() for g, d in zip(gradients, direction, strict=True))
        gap = np.abs(np.delete(values, index) - values[index]).min()
        tolerance = 100 * values.size * EPS * (values[0] / gap + values[0] / values[index])
        assert abs(slope(gradients, direction) - expected) <= tolerance * size


def doubled(rng: np.random.Generator, *, discrete: bool, real_output: bool) -> DiagonalStateSpace:
    """Two equal systems side by side, in coordinates that mix their inputs and outputs."""
    one = samples.diagonal_system(rng, 2, 1, 1, discrete=discrete, real_output=real_output)
    # Orthogonal mixtures of inputs and of outputs keep the values; they must be real where output is.
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    B, C = np.kron(np.eye(2), one.B) @ turn, turn @ np.kron(np.eye(2), one.C)
    return DiagonalStateSpace(
        np.tile(one.eigenvalues, 2), B, C, time=one.time, real_output=real_output
    )


SYMMETRIC: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sum": (lambda v: v.sum(), sum),
    "squares": (lambda v: (v * v).sum(), lambda v: sum(x * x for x in v)),
    "largest-pair": (lambda v: v[0] + v[1], lambda v: v[0] + v[1]),
}


@pytest.mark.parametrize("function", SYMMETRIC)
@pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])
@pytest.mark.parametrize("real_output", [True, False], ids=["real-output", "complex"])
def test_symmetric_functions_of_double_values_are_exact(
    function: str, discrete: bool, real_output: bool, rng: np.random.Generator
) -> None:
    system = doubled(rng, discrete=discrete, real_output=real_output)
    values = hankel_singular_values(system)
    np.testing.assert_allclose(values[::2], values[1::2], rtol=1e-10)
    direction = random_direction(system, rng)
    ours, exact = SYMMETRIC[function]
    expected = mpmath_hsv.directional_derivative(
        exact,
        arrays_of(system)[:3],
        (direction[0], direction[1], direction[2]),
        discrete=discrete,
        real_output=real_output,
    )
    evaluate = lambda s: ours(hankel_singular_values(s))  # noqa: E731
    for gradients in (torch_gradient(evaluate, system)[1], jax_gradient(evaluate, system)):
        size = sum(np.abs(g * d).sum() for g, d in zip(gradients, direction, strict=True))
        tolerance = 100 * values.size * EPS * values[0] / values[-1]
        assert abs(slope(gradients, direction) - expected) <= tolerance * size


def unreachable(rng: np.random.Generator, system: Any) -> Any:
    """The last state is neither driven nor seen: its value is zero."""
    state, B, C, D = (array.copy() for array in arrays_of(system))
    B[-1], C[:, -1] = 0.0, 0.0
    if isinstance(system, StateSpace):
        state[:-1, -1] = state[-1, :-1] = 0.0
        if system.time == Continuous():
            state -= np.eye(system.order)  # the smaller system is not stable by itself
    return with_arrays(system, (state, B, C, D))


@pytest.mark.parametrize("name", SYSTEMS)
def test_zero_values_contribute_nothing(name: str) -> None:
    """The rest of the system has the gradient it has alone; the lost state gets none."""
    system = unreachable(seeded(name), SYSTEMS[name](seeded(name)))
    n = system.order
    state, B, C, D = arrays_of(system)
    dense = isinstance(system, StateSpace)
    small = with_arrays(
        system, (state[: n - 1, : n - 1] if dense else state[:-1], B[:-1], C[:, :-1], D)
    )
    for power in (1, 2):
        evaluate = lambda s, k=power: (hankel_singular_values(s) ** k).sum()  # noqa: E731
        value, found = torch_gradient(evaluate, system)
        expected_value, expected = torch_gradient(evaluate, small)
        assert abs(value - expected_value) <= 100 * n * EPS * value
        assert all(np.all(np.isfinite(gradient)) for gradient in found)
        scale = 1 + max(np.abs(gradient).max() for gradient in expected)
        kept = (
            found[0][: n - 1, : n - 1] if dense else found[0][:-1],
            found[1][:-1],
            found[2][:, :-1],
        )
        for ours, theirs in zip(kept, expected[:3], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * scale)
        lost = (found[0][-1], found[1][-1], found[2][:, -1])
        assert all(np.abs(part).max() <= 1e-9 * scale for part in lost)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_system_without_output_has_no_nan(name: str, function: str) -> None:
    system = SYSTEMS[name](seeded(name))
    if not applies(function, system):
        pytest.skip("the modal l1 norm is one of diagonal systems")
    state, B, C, D = arrays_of(system)
    nothing = with_arrays(system, (state, B, np.zeros_like(C), np.zeros_like(D)))
    value, gradients = torch_gradient(FUNCTIONS[function], nothing)
    assert np.isfinite(value)
    for found in (gradients, jax_gradient(FUNCTIONS[function], nothing)):
        assert all(np.all(np.isfinite(gradient)) for gradient in found)


@pytest.mark.parametrize("time", [Discrete(), Continuous()], ids=["discrete", "continuous"])
def test_a_static_gain(time: Any) -> None:
    nothing = np.zeros((0, 2))
    system = StateSpace(np.zeros((0, 0)), nothing, nothing.swapaxes(0, 1), np.eye(2), time=time)
    for function in ("hsv", "hankel", "h2", "hinf", "nuclear"):
        _, gradients = torch_gradient(FUNCTIONS[function], system)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    _, gradients = torch_gradient(FUNCTIONS["hinf"], system)
    assert abs(np.abs(gradients[3]).sum() - 1.0) <= 10 * EPS


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["lru", "dense-continuous-complex", "real-poles"])
def test_batches_and_vmap_are_single_systems_stacked(name: str, function: str) -> None:
    rng = seeded(name)
    singles = [SYSTEMS[name](rng) for _ in range(3)]
    if not applies(function, singles[0]):
        pytest.skip("the modal l1 norm is one of diagonal systems")
    evaluate = FUNCTIONS[function]
    expected = [torch_gradient(evaluate, single)[1] for single in singles]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *singles)
    found = jax.jit(jax.vmap(jax.grad(evaluate)))(batch)
    values = jax.vmap(evaluate)(batch)
    for index, single in enumerate(singles):
        assert abs(values[index] - evaluate(single)) <= 20 * EPS * abs(values[index])
        for ours, theirs in zip(arrays_of(found), expected[index], strict=True):
            scale = 1 + np.abs(theirs).max()
            np.testing.assert_allclose(
                np.conj(ours[index]), theirs, rtol=0, atol=AGREEMENT[function] * scale
            )
    if function in ("h2", "hankel", "hinf", "nuclear", "modal"):
        together = torch_gradient(lambda s: evaluate(s).sum(), jax.tree.map(np.asarray, batch))[1]
        for index in range(3):
            for ours, theirs in zip(together, expected[index], strict=True):
                scale = 1 + np.abs(theirs).max()
                np.testing.assert_allclose(
                    ours[index], theirs, rtol=0, atol=AGREEMENT[function] * scale
                )


def test_vmap_over_some_arrays_only(rng: np.random.Generator) -> None:
    system = jax.tree.map(jnp.asarray, samples.diagonal_system(rng, 3, 2, 2, real_output=True))
    scales = jnp.asarray([1.0, 2.0, 0.5])

    def scaled(scale: Any) -> Any:
        return hankel_nuclear_norm(
            with_arrays(system, (system.eigenvalues, scale * system.B, system.C, system.D))
        )

    values, slopes = jax.vmap(jax.value_and_grad(scaled))(scales)
    expected = float(hankel_nuclear_norm(jax.tree.map(np.asarray, system)))
    np.testing.assert_allclose(values, expected * scales, rtol=1e-13)
    np.testing.assert_allclose(slopes, expected, rtol=1e-12)


def test_jacobian_of_all_values(rng: np.random.Generator) -> None:
    """Σ over rows of the Jacobian, reverse mode over the values, is the derivative of their sum."""
    system = jax.tree.map(jnp.asarray, samples.dense_system(rng, 4, 2, 2))
    jacobian = jax.jit(jax.jacrev(hankel_singular_values))(system)
    expected = jax.grad(hankel_nuclear_norm)(system)
    for ours, theirs in zip(arrays_of(jacobian), arrays_of(expected), strict=True):
        np.testing.assert_allclose(ours.sum(axis=0), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["lru", "dense-discrete-real", "diagonal-continuous-complex"])
def test_single_precision(name: str, function: str) -> None:
    """The result has the precision of the arrays, its error is that of rounding them once."""
    system = SYSTEMS[name](seeded(name))
    if not applies(function, system):
        pytest.skip("the modal l1 norm is one of diagonal systems")
    single = {"float64": "float32", "complex128": "complex64"}
    rounded = jax.tree.map(lambda x: x.astype(single[str(x.dtype)]), system)
    wide = jax.tree.map(lambda x: x.astype(np.complex128 if np.iscomplexobj(x) else float), rounded)
    _, expected = torch_gradient(FUNCTIONS[function], wide)
    with jax.enable_x64(False):
        found = jax_gradient(FUNCTIONS[function], rounded)
    for gradients in (found, torch_gradient(FUNCTIONS[function], rounded)[1]):
        for ours, theirs, array in zip(gradients, expected, arrays_of(rounded), strict=True):
            assert ours.dtype == array.dtype or not np.any(ours)
            scale = 1 + max(np.abs(gradient).max() for gradient in expected)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


def test_large_systems_pass_through_jit(rng: np.random.Generator) -> None:
    """Above about 100 kB JAX hands arrays to callbacks in another way."""
    system = jax.tree.map(jnp.asarray, samples.dense_system(rng, 150, 2, 2))
    value, gradient = jax.jit(jax.value_and_grad(hankel_nuclear_norm))(system)
    expected = float(hankel_nuclear_norm(jax.tree.map(np.asarray, system)))
    assert abs(value - expected) <= 1e-12 * expected
    # Σσ is homogeneous of degree one in C.
    assert abs((gradient.C * system.C).sum() - expected) <= 1e-9 * expected


def test_weights_of_a_layer(rng: np.random.Generator) -> None:
    from ssmreduce.layers.lru import LRU

    weights = samples.lru_weights(rng, 4, 2)
    step = {name: rng.standard_normal(value.shape) for name, value in weights.items()}
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    hankel_nuclear_norm(LRU().read(tensors)).backward()
    found = sum((tensors[n].grad.numpy() * step[n]).sum() for n in weights if n != "D")
    norm = lambda w: hankel_nuclear_norm(LRU().read(w))  # noqa: E731
    gradient = jax.jit(jax.grad(norm))({n: jnp.asarray(x) for n, x in weights.items()})
    assert abs(sum((gradient[n] * step[n]).sum() for n in weights) - found) <= 1e-11 * abs(found)

    def at(h: float) -> float:
        return float(norm({n: x + h * step[n] for n, x in weights.items()}))

    h = 1e-6
    assert abs((at(h) - at(-h)) / (2 * h) - found) <= 1e-7 * abs(found)


def test_numpy_callers_and_detached_tensors_are_left_alone(rng: np.random.Generator) -> None:
    system = samples.diagonal_system(rng, 3, 2, 2)
    assert not differentiable(system)
    assert isinstance(hankel_nuclear_norm(system), float)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays_of(system)]
    assert differentiable(with_arrays(system, tensors))
    with torch.no_grad():
        assert not differentiable(with_arrays(system, tensors))
    assert not differentiable(with_arrays(system, [tensor.detach() for tensor in tensors]))
    assert not differentiable(jax.tree.map(jnp.asarray, system))


def test_some_tensors_only(rng: np.random.Generator) -> None:
    system = samples.diagonal_system(rng, 3, 2, 2)
    eigenvalues, B, C, D = arrays_of(system)
    tensor = torch.tensor(C, requires_grad=True)
    hankel_nuclear_norm(
        with_arrays(system, (torch.tensor(eigenvalues), torch.tensor(B), tensor, torch.tensor(D)))
    ).backward()
    _, expected = torch_gradient(hankel_nuclear_norm, system)
    np.testing.assert_allclose(tensor.grad.numpy(), expected[2], rtol=1e-12)


def test_second_derivatives_are_refused(rng: np.random.Generator) -> None:
    system = real_poles(rng)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays_of(system)]
    value = hankel_nuclear_norm(with_arrays(system, tensors))
    with pytest.raises(UnsupportedEquationError, match="`create_graph` is True"):
        torch.autograd.grad(value, tensors[1], create_graph=True)
    twice = jax.jacfwd(jax.grad(hankel_nuclear_norm))
    with pytest.raises(ValueError, match="do not support JVP"):
        twice(jax.tree.map(jnp.asarray, system))


def test_refusals(rng: np.random.Generator) -> None:
    system = real_poles(rng)
    tensors = with_arrays(system, [torch.tensor(x, requires_grad=True) for x in arrays_of(system)])
    for function in (hankel_singular_values, controllability_gramian, observability_gramian):
        with pytest.raises(UnsupportedEquationError, match="`horizon` is 10"):
            function(tensors, horizon=10)
    with pytest.raises(UnsupportedEquationError, match="`certified` is True"):
        hinf_norm(tensors, certified=True)
    single = with_arrays(system, [system.eigenvalues, system.B[:, :1], system.C[:1], np.eye(1)])
    recording = with_arrays(
        single, [torch.tensor(x, requires_grad=True) for x in arrays_of(single)]
    )
    with pytest.raises(UnsupportedEquationError, match="a derivative is asked for"):
        hankel_singular_values(recording, relative_accuracy=True)
    with pytest.raises(TracedValueError, match="`hankel_singular_values` was called with"):
        jax.jit(lambda x: hankel_singular_values(x, relative_accuracy=True))(single)
    unstable = with_arrays(tensors, [torch.tensor([1.5, 0.1, 0.2]), *arrays_of(tensors)[1:]])
    with pytest.raises(UnstableSystemError):
        hankel_nuclear_norm(unstable)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UnstableSystemError"):
        jax.block_until_ready(
            jax.jit(hankel_nuclear_norm)(
                with_arrays(system, [jnp.asarray([1.5, 0.1, 0.2]), *arrays_of(system)[1:]])
            )
        )


NORMS = [hankel_singular_values, controllability_gramian, h2_norm, hankel_norm, hinf_norm]


@pytest.mark.parametrize("function", [*NORMS, hankel_nuclear_norm])
def test_batches_without_a_system_are_refused(function: Callable[[Any], Any]) -> None:
    shapes = ((0, 2, 2), (0, 2, 1), (0, 1, 2))

    def system(make: Callable[[Any], Any]) -> StateSpace:
        return StateSpace(*(make(shape) for shape in shapes), time=Discrete())

    def traced(gain: Any) -> Any:
        found = function(system(lambda shape: gain * jnp.zeros(shape)))
        return getattr(found, "lower", found)

    for call in (
        lambda: function(system(np.zeros)),
        lambda: function(system(lambda shape: torch.zeros(shape, requires_grad=True))),
        lambda: jax.jit(traced)(1.0),
    ):
        with pytest.raises(ShapeError, match=r"`system` has batch axes \(0,\)"):
            call()


@pytest.mark.parametrize("function", [*NORMS, hankel_nuclear_norm])
def test_the_unstable_system_of_a_batch_is_named(function: Callable[[Any], Any]) -> None:
    poles = torch.tensor([[0.5, 0.25], [1.5, 0.25]], requires_grad=True)
    batch = DiagonalStateSpace(poles, torch.ones(2, 2, 1), torch.ones(2, 1, 2), time=Discrete())
    with pytest.raises(UnstableSystemError, match=r"in system\[1\] of the batch"):
        function(batch)


@pytest.mark.parametrize("dense", [True, False])
def test_a_gramian_is_complex_where_its_equation_is(dense: bool) -> None:
    """C is complex, which is nothing to P: with a gradient, without, under jit, and for NumPy."""
    A = np.diag([0.5, 0.25]) if dense else np.array([0.5, 0.25])
    make: Any = StateSpace if dense else DiagonalStateSpace
    plain = make(A, np.ones((2, 1)), 1j * np.ones((1, 2)), time=Discrete())
    tensors = [torch.tensor(x) for x in arrays_of(plain)]
    jitted = jax.tree.map(jnp.asarray, plain)
    with_gradient = with_arrays(plain, [x.clone().requires_grad_() for x in tensors])
    for function, kind in ((controllability_gramian, "f"), (observability_gramian, "c")):
        assert function(plain).dtype.kind == kind
        for system in (with_arrays(plain, tensors), with_gradient):
            assert function(system).detach().numpy().dtype.kind == kind
        assert jax.jit(function)(jitted).dtype.kind == kind
