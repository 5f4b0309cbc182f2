"""The LRU: weights <-> system, in an Equinox module that is not the package's own."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax_modules import make_s4d, make_s5, s5_weights
from modules import WEIGHTS, ForeignLRU, KernelLRU, SubclassedLRU, make_lru, numpy_outputs
from samples import EPS, complex_normal, impulse_response, lru_weights

from ssmreduce import (
    CutOptions,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelEnergy,
    HankelMass,
    balanced_truncation,
    read_system,
    reduce_layer,
    reduce_model,
    register_layer,
    write_system,
)
from ssmreduce.errors import (
    ArgumentError,
    NonFiniteError,
    ShapeError,
    UnreachableToleranceError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers import known
from ssmreduce.layers.lru import LRU
from ssmreduce.systems.simulation import simulate

SEEDS = st.integers(0, 2**32 - 1)


def eps_of(dtype: str) -> float:
    return float(np.finfo(dtype).eps)


def layer_of(rng: np.random.Generator, n: int, m: int, dtype: str, **options: Any) -> ForeignLRU:
    return make_lru(lru_weights(rng, n, m, **options), dtype)


def weights_of(layer: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(layer, name)) for name in WEIGHTS}


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (2, 4)])
def test_system_is_what_the_layer_runs(
    rng: np.random.Generator, precision: str, inputs: int, outputs: int
) -> None:
    layer = layer_of(rng, 12, inputs, precision, outputs=outputs)
    system = read_system(layer)
    assert isinstance(system.time, Discrete)
    assert system.real_output
    assert system.read_after_update
    assert (system.order, system.inputs, system.outputs) == (12, inputs, outputs)
    assert system.eigenvalues.dtype == np.complex128
    sequence = rng.standard_normal((50, inputs))
    expected = numpy_outputs(layer, sequence)
    scale = np.abs(expected).max()
    # Powers over 50 steps: one rounding each.
    np.testing.assert_allclose(simulate(system, sequence), expected, atol=50 * 10 * EPS * scale)
    found = np.asarray(eqx.filter_jit(layer)(jnp.asarray(sequence, dtype=precision)))
    # The layer's own arithmetic: rounded eigenvalues enter 100 steps of memory.
    np.testing.assert_allclose(found, expected, atol=100 * 10 * eps_of(precision) * scale)


def test_round_trip_of_the_layer(rng: np.random.Generator, precision: str) -> None:
    layer = layer_of(rng, 16, 4, precision)
    again = write_system(layer, read_system(layer))
    assert type(again) is type(layer)
    sequence = rng.standard_normal((80, 4))
    expected = numpy_outputs(layer, sequence)
    # log |λ| and the phase are written rounded; each of 100 steps of memory (r_max = 0.99) sees it.
    allowed = 100 * 10 * eps_of(precision) * np.abs(expected).max()
    assert np.abs(numpy_outputs(again, sequence) - expected).max() <= allowed
    np.testing.assert_array_equal(again.D, layer.D)
    for name, value in weights_of(again).items():
        assert value.dtype == precision, name
        assert value.shape == getattr(layer, name).shape, name
    # System -> layer -> system: to rounding of the stored weights.
    first, second = read_system(layer), read_system(again)
    size = 10 * eps_of(precision)
    np.testing.assert_allclose(second.eigenvalues, first.eigenvalues, atol=size * 2 * np.pi)
    np.testing.assert_allclose(second.B, first.B, atol=size * np.abs(first.B).max() * 10)
    np.testing.assert_allclose(second.C, first.C, atol=size * np.abs(first.C).max())


def test_gamma_is_a_parameter_of_its_own_and_is_folded(
    rng: np.random.Generator, precision: str
) -> None:
    w = lru_weights(rng, 6, 2)
    w["gamma_log"] = rng.standard_normal(6)  # trained away from sqrt(1 - |λ|²)
    layer = make_lru(w, precision)
    system, again = read_system(layer), write_system(layer, read_system(layer))
    gamma = np.exp(np.asarray(layer.gamma_log, dtype=np.float64))
    B = np.asarray(layer.B_re, np.float64) + 1j * np.asarray(layer.B_im, np.float64)
    np.testing.assert_allclose(system.B, gamma[:, None] * B, rtol=4 * EPS)
    written = np.exp(np.asarray(again.gamma_log, dtype=np.float64))
    modulus = np.exp(-np.exp(np.asarray(again.nu_log, dtype=np.float64)))
    # 1 - |λ|² ≥ 0.02 here.
    np.testing.assert_allclose(written, np.sqrt(1 - modulus**2), rtol=10 * eps_of(precision) / 0.02)
    np.testing.assert_allclose(
        read_system(again).B, system.B, atol=20 * eps_of(precision) * np.abs(system.B).max()
    )


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-10])
def test_gamma_keeps_its_digits_near_the_circle(x64: None, distance: float) -> None:
    w = lru_weights(np.random.default_rng(1), 3, 2)
    w["nu_log"][:] = np.log(distance)
    layer = make_lru(w, "float64")
    again = write_system(layer, read_system(layer))
    # |λ| = exp(-d) is stored with an error of eps, so that -log |λ| has the relative error eps/d;
    # γ² = -expm1(-2 nu) follows the nu that was written, without any further loss.
    nu = np.exp(np.asarray(again.nu_log))
    np.testing.assert_allclose(
        np.exp(2 * np.asarray(again.gamma_log)), -np.expm1(-2 * nu), rtol=20 * EPS
    )
    np.testing.assert_allclose(nu, distance, rtol=4 * EPS / distance)


gradient_of = jax.jit(jax.grad(lambda layer, inputs: jnp.sum(layer(inputs) ** 2)))


@pytest.mark.parametrize("phase", [0.0, np.pi, 1e-12, -1e-3, 3.0])
@pytest.mark.parametrize("modulus", [0.0, 1e-300, 1e-7, 0.3, 0.999999])
def test_edges_of_the_pole_map_are_finite(precision: str, modulus: float, phase: float) -> None:
    pole = modulus * np.exp(1j * phase)
    if phase == np.pi:
        pole = complex(-modulus, 0.0)
    rng = np.random.default_rng(2)
    layer = make_lru(lru_weights(rng, 2, 2), precision, KernelLRU)
    system = DiagonalStateSpace(
        [pole, 0.5j],
        complex_normal(rng, 2, 2),
        complex_normal(rng, 2, 2),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    written = write_system(layer, system)
    for name, value in weights_of(written).items():
        assert np.all(np.isfinite(value)), name
    back = read_system(written).eigenvalues[0]
    # |λ| is raised to 1e-6; the phase is stored as a logarithm of up to log 2π, |error| 2π·2 eps.
    assert abs(back - pole) <= 1.01e-6 + 20 * eps_of(precision)
    assert np.exp(float(written.theta_log[0])) > 0

    for leaf in jax.tree.leaves(gradient_of(written, jnp.ones((4, 2), dtype=precision))):
        assert bool(jnp.all(jnp.isfinite(leaf)))


@pytest.mark.parametrize("modulus", [1.0, 1.0 + 1e-12, 3.0])
def test_poles_that_an_lru_cannot_store_are_refused(precision: str, modulus: float) -> None:
    layer = layer_of(np.random.default_rng(3), 1, 1, precision)
    system = DiagonalStateSpace(
        [modulus * 1j],
        [[1.0]],
        [[1.0]],
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    with pytest.raises(UnstableSystemError, match=r"\|λ\| < 1"):
        write_system(layer, system)


def test_a_pole_that_rounds_onto_the_circle_stays_finite() -> None:
    # 1 - 1e-9 in float32: |λ| itself rounds to 1, log(-log |λ|) does not.
    layer = layer_of(np.random.default_rng(4), 1, 1, "float32")
    system = DiagonalStateSpace(
        [(1 - 1e-9) * 1j],
        [[1.0]],
        [[1.0]],
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    written = write_system(layer, system)
    assert np.exp(float(written.nu_log[0])) == pytest.approx(1e-9, rel=1e-5)
    assert abs(read_system(written).eigenvalues[0]) < 1


@given(
    seed=SEEDS,
    n=st.integers(4, 24),
    m=st.integers(1, 4),
    share=st.floats(0.1, 0.9),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_bound_holds_for_the_written_layer(
    seed: int, n: int, m: int, share: float, dtype: str
) -> None:
    with jax.enable_x64(dtype == "float64"):
        layer = layer_of(np.random.default_rng(seed), n, m, dtype)
        before = weights_of(layer)
        order = max(1, int(share * n))
        result = reduce_layer(layer, order)
        assert result.new_order == result.layer.nu_log.size <= order
        assert result.old_order == n
        reduction = result.reduction
        # What the result holds is what was written, bit by bit.
        written = read_system(result.layer)
        np.testing.assert_array_equal(reduction.system.eigenvalues, written.eigenvalues)
        np.testing.assert_array_equal(reduction.system.B, written.B)
        measured = reduction.verify()
        # Rounding of λ by eps moves G by eps ‖c‖‖b‖/(1-|λ|)², 1e4 at r_max = 0.99, for terms
        # that may be larger than their sum.
        rounding = 1e4 * eps_of(dtype) * 2 * reduction.hsv.sum()
        assert measured <= reduction.error_bound * (1 + 1e-6) + rounding
        assert result.measured_error <= measured * (1 + 1e-6) + rounding
        for name, value in weights_of(result.layer).items():
            assert np.all(np.isfinite(value)), name
            assert value.dtype == dtype
        for name, value in weights_of(layer).items():
            np.testing.assert_array_equal(value, before[name])


def test_float32_written_error_is_the_truncation_error() -> None:
    # At the sizes that are trained the rounding of the weights does not show.
    layer = layer_of(np.random.default_rng(5), 64, 8, "float32")
    result = reduce_layer(layer, 16)
    exact = balanced_truncation(read_system(layer), 16)
    assert result.measured_error == pytest.approx(exact.quick_error(), rel=1e-3)
    assert result.measured_error <= exact.error_bound


def test_reduced_layer_runs(rng: np.random.Generator, precision: str) -> None:
    layer = layer_of(rng, 20, 3, precision)
    result = reduce_layer(layer, HankelMass(0.95))
    assert 1 <= result.new_order < 20
    sequence = rng.standard_normal((60, 3))
    found = np.asarray(eqx.filter_jit(result.layer)(jnp.asarray(sequence, dtype=precision)))
    expected = numpy_outputs(result.layer, sequence)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1000 * eps_of(precision) * scale)
    # ℓ² gain of the difference is below the bound, for any signal.
    difference = numpy_outputs(layer, sequence) - expected
    gain = np.linalg.norm(difference) / np.linalg.norm(sequence)
    assert 0 < gain <= result.reduction.error_bound


@pytest.mark.filterwarnings("ignore:.*nothing is cut:UserWarning")
@pytest.mark.parametrize("order", [12, 13, 500])
def test_own_order_or_more_returns_the_layer_itself(precision: str, order: int) -> None:
    layer = layer_of(np.random.default_rng(6), 12, 2, precision)
    result = reduce_layer(layer, order)
    assert result.layer is layer
    assert result.measured_error == 0.0
    assert result.reduction.order == result.new_order == result.old_order == 12
    assert result.reduction.error_bound == 0.0


@pytest.mark.parametrize(
    "rule",
    [HankelMass(0.9), HankelEnergy(0.99), ErrorBound(relative=0.2), ErrorBound(absolute=1.0)],
)
def test_rules_on_layers(rule: Any, precision: str) -> None:
    layer = layer_of(np.random.default_rng(7), 24, 2, precision)
    result = reduce_layer(layer, rule)
    reduction = result.reduction
    assert reduction.real_order == min(rule.choose(reduction.hsv), reduction.rank)
    assert reduction.real_order / 2 <= result.new_order <= reduction.real_order
    assert reduction.hsv.shape == (48,)


def test_reduction_within_a_horizon(precision: str) -> None:
    w = lru_weights(np.random.default_rng(8), 16, 2, r_min=0.9, r_max=0.99999)
    layer = make_lru(w, precision)
    result = reduce_layer(layer, 8, options=CutOptions(horizon=50))
    assert result.reduction.error_bound is None
    assert result.reduction.horizon == 50
    assert np.all(np.abs(result.reduction.system.eigenvalues) < 1)
    assert result.measured_error < result.reduction.hsv[0]


def test_reduction_of_an_already_reduced_layer(precision: str) -> None:
    # Real poles are in the second cut's input: stored with phase 2π, no longer exactly real.
    layer = layer_of(np.random.default_rng(9), 24, 2, precision, max_phase=0.6)
    for order in (14, 9, 5, 2, 1):
        result = reduce_layer(layer, order)
        bound = result.reduction.error_bound
        rounding = 1e4 * eps_of(precision) * 2 * result.reduction.hsv.sum()
        assert result.new_order <= order
        assert result.reduction.verify() <= bound * (1 + 1e-6) + rounding
        layer = result.layer


def test_real_poles_are_written_finite_and_remembered(precision: str) -> None:
    w = lru_weights(np.random.default_rng(10), 10, 1)
    w["theta_log"][:] = np.log(2 * np.pi)
    w["B_im"][:] = 0.0
    w["C_im"][:] = 0.0
    layer = make_lru(w, precision)
    result = reduce_layer(layer, 4)
    assert result.reduction.rank <= 2 * 10
    theta = np.asarray(result.layer.theta_log)
    assert np.all(np.isfinite(theta))
    rounding = 1e4 * eps_of(precision) * 2 * result.reduction.hsv.sum()
    assert result.reduction.verify() <= result.reduction.error_bound * (1 + 1e-6) + rounding


# --- Other people's classes


def test_subclasses_and_lookalikes_are_recognised() -> None:
    w = lru_weights(np.random.default_rng(11), 8, 2)
    layer = make_lru(w, kind=SubclassedLRU)
    result = reduce_layer(layer, 4)
    assert type(result.layer) is SubclassedLRU


class Renamed(eqx.Module):
    """An LRU whose arrays have names of their own."""

    weights: dict[str, jax.Array]
    nu: jax.Array
    theta: jax.Array
    gamma: jax.Array
    Br: jax.Array
    Bi: jax.Array
    Cr: jax.Array
    Ci: jax.Array
    D: jax.Array


class RenamedChild(Renamed):
    """Found through its base class."""


class RenamedMap(LRU):
    """Maps names, and leaves the mathematics to `LRU`."""

    poles = ("nu", "theta", "gamma")
    _names: ClassVar = dict(
        zip(
            ("nu", "theta", "gamma", "Br", "Bi", "Cr", "Ci", "D"),
            ("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im", "D"),
            strict=True,
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.shapes = {mine: LRU().shapes[theirs] for mine, theirs in self._names.items()}

    def _theirs(self, weights: Any) -> dict[str, np.ndarray]:
        return {self._names[name]: value for name, value in weights.items()}

    def modes(self, weights: Any) -> Any:
        return LRU().modes(self._theirs(weights))

    def read(self, weights: Any) -> Any:
        return LRU().read(self._theirs(weights))

    def write(self, system: Any, weights: Any, *, order: int = 0) -> dict[str, np.ndarray]:
        own = {theirs: mine for mine, theirs in self._names.items()}
        written = LRU().write(system, self._theirs(weights), order=order)
        return {own[name]: value for name, value in written.items()}


@pytest.mark.parametrize("kind", [Renamed, RenamedChild])
def test_registered_classes(monkeypatch: pytest.MonkeyPatch, kind: type[Renamed]) -> None:
    w = lru_weights(np.random.default_rng(12), 8, 2)
    arrays = {mine: jnp.asarray(w[theirs], "float32") for mine, theirs in RenamedMap._names.items()}
    layer = kind(weights={}, **arrays)
    monkeypatch.setattr(known, "_REGISTERED", {})
    with pytest.raises(UnsupportedLayerError, match="Renamed"):
        read_system(layer)
    register_layer(Renamed, RenamedMap())
    expected = read_system(make_lru(w))
    np.testing.assert_array_equal(read_system(layer).eigenvalues, expected.eigenvalues)
    result = reduce_layer(layer, 3)
    assert type(result.layer) is kind
    assert result.layer.nu.shape == (result.new_order,)
    other = reduce_layer(make_lru(w), 3)
    np.testing.assert_array_equal(result.layer.Br, other.layer.B_re)
    assert list(reduce_model({"layer": layer}, 3).report) == ["['layer']"]


def test_register_layer_wants_a_class() -> None:
    with pytest.raises(UnsupportedLayerError, match="expected a class"):
        register_layer(LRU(), LRU())  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [None, 3, {"nu_log": 1}, np.zeros(3), eqx.nn.MLP])
def test_unknown_layers_are_named(thing: Any) -> None:
    kind = type(thing).__qualname__
    for function in (read_system, lambda x: reduce_layer(x, 2), lambda x: write_system(x, None)):
        with pytest.raises(UnsupportedLayerError, match=kind) as caught:
            function(thing)
        assert "register_layer" in str(caught.value)
        assert isinstance(caught.value, TypeError)


def test_a_model_without_layers_is_named() -> None:
    model = eqx.nn.Linear(3, 3, key=jax.random.key(0))
    with pytest.raises(UnsupportedLayerError, match="Linear"):
        reduce_model(model, 2)


def test_what_a_layer_lacks_is_said_for_the_nearest_known_one() -> None:
    weights = {
        name: jnp.asarray(x) for name, x in lru_weights(np.random.default_rng(0), 8, 2).items()
    }
    del weights["gamma_log"]
    with pytest.raises(
        UnsupportedLayerError, match="the nearest is LRU: it lacks `gamma_log`"
    ) as one:
        read_system(weights)
    with pytest.raises(
        UnsupportedLayerError, match=r"`\['a'\]` is none, the nearest is LRU: it lacks"
    ):
        reduce_model({"a": weights}, 2)
    assert "theta_log" not in str(one.value)
    linoss = {name: jnp.ones(3) for name in ("A_diag", "steps", "B", "C", "D")}
    with pytest.raises(UnsupportedLayerError, match="LinOSS: `B` has 1 axis instead of 3"):
        read_system(linoss)


def test_stacked_layers_are_refused_or_skipped(rng: np.random.Generator) -> None:
    layers = {
        "LRU": make_lru(lru_weights(rng, 8, 2)),
        "S5": make_s5(s5_weights(rng, 8, 2)),
        "S4D": make_s4d(rng, 8, 2).kernel,
        "LinOSS": {
            "A_diag": jnp.ones(4),
            "steps": jnp.ones(4),
            "B": jnp.ones((4, 2, 2)),
            "C": jnp.ones((2, 4, 2)),
            "D": jnp.ones(2),
        },
    }
    for name, layer in layers.items():
        model = {
            "stack": jax.tree.map(lambda x: jnp.stack([x, x]), eqx.filter(layer, eqx.is_array))
        }
        model["stack"] = eqx.combine(model["stack"], layer)
        with pytest.raises(
            UnsupportedLayerError, match=f"{name} layer.*stacked along a first axis"
        ):
            reduce_model(model, 2)
        model["single"] = layers["LRU"]
        result = reduce_model(model, 2, options=CutOptions(skip_unsupported=True))
        assert list(result.skipped) == ["['stack']"]
        assert result.report["['single']"].new_order == 2


def test_systems_that_do_not_fit_the_layer(rng: np.random.Generator) -> None:
    layer = layer_of(rng, 4, 2, "float32")
    good = read_system(layer)

    def changed(**changes: Any) -> DiagonalStateSpace:
        values = {
            "B": good.B,
            "C": good.C,
            "D": good.D,
            "time": Discrete(),
            "real_output": True,
            "read_after_update": True,
        } | changes
        return DiagonalStateSpace(good.eigenvalues, **values)

    for name, system in {
        "inputs": changed(B=good.B[:, :1], D=good.D[:, :1]),
        "outputs": changed(C=good.C[:1], D=good.D[:1]),
        "real_output": changed(real_output=False),
        "read_after_update": changed(read_after_update=False),
        "time": changed(time=Discrete(0.1)),
        "batch_shape": DiagonalStateSpace(
            good.eigenvalues[None],
            good.B[None],
            good.C[None],
            time=Discrete(),
            real_output=True,
            read_after_update=True,
        ),
    }.items():
        with pytest.raises(ShapeError, match=name):
            write_system(layer, system)
    with pytest.raises(ShapeError):
        write_system(layer, good.to_dense())  # type: ignore[arg-type]


BAD_SHAPES = {
    "nu_log": ((3, 2), r"\(3, 2\)"),
    "theta_log": ((3,), r"\(3,\).*\(4,\)"),
    "gamma_log": ((5,), r"\(5,\).*\(4,\)"),
    "B_re": ((3, 2), r"\(3, 2\).*\(4, m\)"),
    "B_im": ((4, 3), r"\(4, 3\).*\(4, 2\)"),
    "C_re": ((2, 5), r"\(2, 5\).*\(p, 4\)"),
    "C_im": ((3, 4), r"\(3, 4\).*\(2, 4\)"),
    "D": ((3,), r"\(3,\).*\(2,\)"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_weights_of_wrong_shape_print_both(name: str) -> None:
    shape, message = BAD_SHAPES[name]
    w = lru_weights(np.random.default_rng(13), 4, 2)
    w[name] = np.ones(shape)
    with pytest.raises(ShapeError, match=f"`{name}`.*{message}"):
        reduce_layer(make_lru(w), 2)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    w = lru_weights(np.random.default_rng(14), 4, 2)
    w[name].flat[1] = value
    with pytest.raises(NonFiniteError, match=f"`{name}`"):
        reduce_layer(make_lru(w), 2)


def test_a_layer_with_an_overflowing_parameter_is_refused() -> None:
    # Finite weights, but exp(gamma_log) is not: still a clear error, not a NaN result.
    w = lru_weights(np.random.default_rng(15), 4, 2)
    w["gamma_log"][2] = 800.0
    with np.errstate(over="ignore"), pytest.raises(NonFiniteError):
        reduce_layer(make_lru(w), 2)


@pytest.mark.parametrize("order", [0, -2, 1.5, True, None, "half"])
def test_bad_orders(order: Any) -> None:
    layer = layer_of(np.random.default_rng(16), 4, 2, "float32")
    with pytest.raises(ArgumentError):
        reduce_layer(layer, order)


def test_a_marginal_layer_names_the_horizon() -> None:
    w = lru_weights(np.random.default_rng(17), 4, 2)
    w["nu_log"][1] = -800.0  # exp(-exp(-800)) = 1 exactly, and -exp(-800) = -0.0
    with jax.enable_x64(True):
        layer = make_lru(w, "float64")
        with pytest.raises(UnstableSystemError, match="horizon"):
            reduce_layer(layer, 2)
        result = reduce_layer(layer, 2, options=CutOptions(horizon=20))
    assert result.new_order == 2


def test_impulse_response_of_a_written_layer(rng: np.random.Generator) -> None:
    layer = layer_of(rng, 6, 2, "float32")
    unit = np.zeros((10, 2))
    unit[0, 0] = 1.0
    expected = numpy_outputs(layer, unit)
    found = impulse_response(read_system(layer), 10)[:, :, 0]
    np.testing.assert_allclose(found, expected, atol=100 * EPS * np.abs(expected).max())


def test_a_tolerance_that_float32_weights_cannot_keep_is_refused(rng: np.random.Generator) -> None:
    # Slow poles close together, few inputs: values decay fast, and float32 rounds far above 1e-9.
    weights = lru_weights(rng, 24, 1)
    rule = ErrorBound(relative=1e-9)
    assert balanced_truncation(read_system(make_lru(weights, "float32")), rule).order < 24
    with pytest.raises(UnreachableToleranceError, match="tolerance"):
        reduce_layer(make_lru(weights, "float32"), rule)


def test_a_system_with_logarithms_is_parted_and_joined_by_equinox(rng: np.random.Generator) -> None:
    layer = make_lru(lru_weights(rng, 8, 3), "float32")
    expected = read_system(layer)
    system = eqx.filter_jit(read_system)(layer)
    halves = eqx.partition(system, lambda leaf: leaf.ndim == 1)
    for half in halves:
        assert jax.tree.structure(half, is_leaf=lambda leaf: leaf is None) == jax.tree.structure(
            system
        )
    for found in (system, eqx.combine(*halves)):
        for name in ("log_eigenvalues", "eigenvalues", "C"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5)
