"""LinOSS layers: the system that is read, inner products of oscillators, and what selection leaves.

The oracle is the recursion itself, step by step: from speeds and places, not from the matrices M.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from modules import ForeignLinOSS
from numpy.typing import NDArray
from samples import linoss_weights

from ssmreduce import DiagonalStateSpace, StateSpace, h2_norm, impulse_response, simulate
from ssmreduce.errors import (
    ArgumentError,
    NoConvergenceError,
    NonFiniteError,
    ShapeError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers.layer import HasArrays
from ssmreduce.layers.linoss import LinOSS, Rule
from ssmreduce.layers.selection import energy, pursue, refit

Weights = dict[str, NDArray[Any]]

EPS = float(np.finfo(float).eps)

KINDS: list[tuple[Rule, bool]] = [("IMEX", True), ("IMEX", False), ("IM", False)]

HORIZON = 75


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}{' damped' if kind[1] else ''}")
def kind(request: pytest.FixtureRequest) -> tuple[Rule, bool]:
    return request.param  # type: ignore[no-any-return]


def physics(kind: tuple[Rule, bool], weights: Weights) -> tuple[NDArray[Any], ...]:
    """Step, stiffness and the factor on the new speed."""
    step = 1.0 / (1.0 + np.exp(-weights["steps"]))
    A, G = np.maximum(weights["A_diag"], 0.0), 0.0
    if kind[1]:
        G = np.maximum(weights["G_diag"], 0.0)
        root = 2.0 * np.sqrt(1.0 + step * G)
        A = np.clip(
            weights["A_diag"], (2 + step * G - root) / step**2, (2 + step * G + root) / step**2
        )
    return step, A, 1.0 / (1.0 + (step**2 * A if kind[0] == "IM" else step * G))


def stepped(kind: tuple[Rule, bool], weights: Weights, inputs: NDArray[Any]) -> NDArray[Any]:
    """Outputs of the layer."""
    step, A, factor = physics(kind, weights)
    B = weights["B"][..., 0] + 1j * weights["B"][..., 1]
    C = weights["C"][..., 0] + 1j * weights["C"][..., 1]
    speed, place, outputs = np.zeros(len(A), complex), np.zeros(len(A), complex), []
    for sample in inputs:
        speed = factor * (speed + step * (B @ sample - A * place))
        place = place + step * speed
        outputs.append((C @ place).real + weights["D"] * sample)
    return np.array(outputs)


def responses(kind: tuple[Rule, bool], weights: Weights, length: int) -> NDArray[Any]:
    """The impulse response without D, shape (length, m, m)."""
    m = len(weights["D"])
    still = weights | {"D": np.zeros(m)}
    columns = []
    for k in range(m):
        inputs = np.zeros((length, m))
        inputs[0, k] = 1.0
        columns.append(stepped(kind, still, inputs))
    return np.stack(columns, axis=-1)


def states(kind: tuple[Rule, bool], weights: Weights, length: int) -> NDArray[Any]:
    """Speed and place of each oscillator after one unit of force, shape (length, n, 2)."""
    step, A, factor = physics(kind, weights)
    speed, place, force, found = np.zeros(len(A)), np.zeros(len(A)), 1.0, []
    for _ in range(length):
        speed = factor * (speed + step * (force - A * place))
        place = place + step * speed
        found.append(np.stack([speed, place], axis=-1))
        force = 0.0
    return np.array(found)


def relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def subset(weights: Weights, kept: NDArray[Any]) -> Weights:
    """The weights of some oscillators as they are."""
    own = {name: value[kept] for name, value in weights.items() if name not in {"C", "D"}}
    return own | {"C": weights["C"][:, kept], "D": weights["D"]}


def selected(
    layer: LinOSS, weights: Weights, order: int, horizon: int
) -> tuple[NDArray[Any], Weights]:
    """The first oscillators as they are picked, ascending, and the weights of the layer with those."""
    kept = np.sort(layer.ranking(weights, horizon)[0][:order])
    return kept, layer.refitted(weights, kept, horizon)


def fitted(
    kind: tuple[Rule, bool], weights: Weights, kept: NDArray[Any], length: int
) -> NDArray[Any]:
    """The C of `kept` by least squares on the impulse responses themselves."""
    places = states(kind, weights, length)[:, kept, 1]
    B = weights["B"][kept]
    features = np.concatenate(
        [(places[:, :, None] * sign * B[None, :, :, part]) for part, sign in ((0, 1), (1, -1))],
        axis=1,
    )
    design = np.swapaxes(features, 1, 2).reshape(-1, 2 * len(kept))
    target = np.moveaxis(responses(kind, weights, length), 1, 2).reshape(len(design), -1)
    solved = np.linalg.lstsq(design, target, rcond=None)[0]
    return np.stack(np.split(solved.T, 2, axis=1), axis=-1)


# --- Reading


def test_the_system_runs_what_the_layer_runs(
    kind: tuple[Rule, bool], rng: np.random.Generator
) -> None:
    weights, inputs = linoss_weights(kind[1]), rng.standard_normal((60, 3))
    system = LinOSS(*kind).read(weights)
    assert isinstance(system, DiagonalStateSpace)
    assert system.order == 16
    assert relative(simulate(system, inputs), stepped(kind, weights, inputs)) <= 1e3 * EPS
    expected = responses(kind, weights, 60)
    expected[0] += np.diag(weights["D"])
    assert relative(impulse_response(system, 60), expected) <= 1e3 * EPS


@pytest.mark.parametrize(
    ("kind", "stiffness"),
    [(kind, A) for kind in KINDS for A in (-1.0, 0.0, 1e-14)] + [(KINDS[0], 1e4)],
)
def test_poles_that_are_not_apart(
    kind: tuple[Rule, bool], rng: np.random.Generator, stiffness: float
) -> None:
    weights, inputs = linoss_weights(kind[1]), rng.standard_normal((60, 3))
    weights["A_diag"][[1, 4]] = stiffness
    system = LinOSS(*kind).read(weights)
    assert isinstance(system, StateSpace)
    assert system.order == 32
    assert relative(simulate(system, inputs), stepped(kind, weights, inputs)) <= 1e3 * EPS


def test_close_poles_are_exact_on_both_sides_of_the_switch(kind: tuple[Rule, bool]) -> None:
    for sine in (1e-6, 1.1e-4, 1.3e-4, 1e-3):
        weights = linoss_weights(kind[1])
        step, _, factor = physics(kind, weights)
        low = (2 + step * weights.get("G_diag", 0.0) - 2 / np.sqrt(factor)) if kind[1] else 0.0
        weights["A_diag"] = (low + sine**2) / step**2
        expected = responses(kind, weights, 40)
        weights["D"] = np.zeros(3)
        found = impulse_response(LinOSS(*kind).read(weights), 40)
        assert relative(found, expected) <= 1e4 * EPS


def test_undamped_oscillators_too_stiff_are_unstable(rng: np.random.Generator) -> None:
    kind: tuple[Rule, bool] = ("IMEX", False)
    weights, inputs = linoss_weights(kind[1]), rng.standard_normal((20, 3))
    weights["A_diag"][2] = 5.0 / physics(kind, weights)[0][2] ** 2
    layer = LinOSS(*kind)
    system = layer.read(weights)
    assert not system.is_stable()
    assert relative(simulate(system, inputs), stepped(kind, weights, inputs)) <= 1e3 * EPS
    with pytest.raises(NoConvergenceError, match="overflow within 100000 steps"):
        layer.gramians(weights, horizon=100_000)


@pytest.mark.usefixtures("x64")
def test_the_module_runs_the_system(kind: tuple[Rule, bool], rng: np.random.Generator) -> None:
    weights, inputs = linoss_weights(kind[1]), rng.standard_normal((50, 3))
    arrays = {"G_diag": None} | {name: jnp.asarray(value) for name, value in weights.items()}
    module = ForeignLinOSS(**arrays, discretization=kind[0], damping=kind[1])
    axes = {name: value.ndim for name, value in weights.items()}
    layer = LinOSS.recognise(module, HasArrays(axes))
    assert layer is not None
    assert set(layer.shapes) == set(weights)
    assert relative(np.asarray(module(inputs)), simulate(layer.read(weights), inputs)) <= 1e3 * EPS


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", [8, 3])
def test_the_layer_of_discretax(
    kind: tuple[Rule, bool], rng: np.random.Generator, order: int
) -> None:
    linoss = pytest.importorskip(
        "discretax.sequence_mixers.linoss", reason="discretax is not installed"
    )
    import equinox as eqx
    import jax

    key = jax.random.PRNGKey(0)
    mixer = linoss.LinOSSSequenceMixer(3, key, state_dim=8, discretization=kind[0], damping=kind[1])
    names = [name for name in vars(mixer) if eqx.is_array(getattr(mixer, name))]
    weights = {name: np.asarray(getattr(mixer, name), dtype=float) for name in names}
    layer = LinOSS.recognise(mixer, HasArrays({name: x.ndim for name, x in weights.items()}))
    assert layer is not None
    inputs = rng.standard_normal((50, 3))
    _, reduced = selected(layer, weights, order, horizon=50)
    mixer = eqx.tree_at(
        lambda tree: [getattr(tree, name) for name in names],
        mixer,
        [jnp.asarray(reduced[name]) for name in names],
    )
    expected = simulate(layer.read(reduced), inputs)
    outputs = eqx.filter_jit(mixer)(inputs, key=key)
    assert relative(np.asarray(outputs), expected) <= 1e3 * EPS


# --- Inner products


@pytest.mark.parametrize("horizon", [1, 2, 3, 6, 64, 75])
def test_inner_products_over_a_horizon(kind: tuple[Rule, bool], horizon: int) -> None:
    weights = linoss_weights(kind[1])
    weights["A_diag"][[0, 1]] = -1.0, 1e-14
    each = states(kind, weights, horizon)
    expected = np.einsum("kia,kjb->ijab", each, each)
    found = LinOSS(*kind).gramians(weights, horizon)
    sizes = np.sqrt(np.einsum("iiaa->ia", expected))
    bound = 100 * horizon * EPS * sizes[:, None, :, None] * sizes[None, :, None, :]
    assert np.all(np.abs(found - expected) <= bound)


@pytest.mark.parametrize("kind", [("IMEX", True), ("IM", False)])
def test_inner_products_of_all_steps(kind: tuple[Rule, bool]) -> None:
    weights = linoss_weights(kind[1])
    if kind[1]:
        weights["A_diag"][:2] = -1.0, 1e4  # double poles at both ends
    each = states(kind, weights, 6000)
    expected = np.einsum("kia,kjb->ijab", each, each)
    # Rounding moves a double pole ρ by √eps, and its response by eps/(1 - ρ)².
    allowed = 1e4 * EPS if kind[1] else 1e3 * EPS
    assert relative(LinOSS(*kind).gramians(weights), expected) <= allowed


def test_long_horizons(kind: tuple[Rule, bool]) -> None:
    weights = linoss_weights(kind[1])
    weights["A_diag"][0] = 1e-6
    each = states(kind, weights, 20_000)
    expected = np.einsum("kia,kjb->ijab", each, each)
    found = LinOSS(*kind).gramians(weights, 20_000)
    sizes = np.sqrt(np.einsum("iiaa->ia", expected))
    assert np.all(
        np.abs(found - expected) <= 1e-10 * sizes[:, None, :, None] * sizes[None, :, None, :]
    )


def test_slow_oscillators_keep_digits() -> None:
    """One double pole ρ, where Σ (k+1)² ρ²ᵏ = (1+ρ²)/(1-ρ²)³."""
    kind: tuple[Rule, bool] = ("IMEX", True)
    for slow in (1e-2, 1e-4, 1e-6):
        weights = linoss_weights(kind[1], n=1, m=1) | {"A_diag": np.zeros(1), "steps": np.zeros(1)}
        weights["G_diag"] = np.array([2.0 * slow])
        S = 1.0 / (1.0 + slow)
        expected = 0.25**2 * S**2 * (1.0 + S) / (slow * S) ** 3
        found = LinOSS(*kind).gramians(weights)[0, 0, 1, 1]
        assert abs(found / expected - 1.0) <= 100 * EPS / slow


@pytest.mark.parametrize("weights", [{"G_diag": -1.0}, {"steps": -800.0}])
def test_what_does_not_decay_needs_a_horizon(weights: dict[str, float]) -> None:
    layer, found = LinOSS("IMEX", damped=True), linoss_weights()
    for name, value in weights.items():
        found[name][3] = value
    with pytest.raises(UnstableSystemError, match=r"1 of 8 oscillators.*CutOptions\(horizon=L\)"):
        layer.scores(found)
    layer.scores(found, HORIZON)


def test_undamped_layers_need_a_horizon() -> None:
    layer, weights = LinOSS("IMEX", damped=False), linoss_weights(False)
    for ask in (layer.scores, layer.gramians):
        with pytest.raises(UnstableSystemError, match="8 of 8 oscillators"):
            ask(weights)
    with pytest.raises(UnstableSystemError, match="horizon"):
        layer.refitted(weights, np.array([0, 1]))


# --- Selection


def test_selection_takes_what_explains_most(kind: tuple[Rule, bool]) -> None:
    """Each pick, and its gain, by least squares on the impulse responses for every candidate."""
    weights = linoss_weights(kind[1])
    layer, expected = LinOSS(*kind), responses(kind, weights, HORIZON)

    def left(kept: list[int]) -> float:
        at = np.array(sorted(kept))
        own = subset(weights, at) | {"C": fitted(kind, weights, at, HORIZON)}
        return float(np.linalg.norm(responses(kind, own, HORIZON) - expected) ** 2)

    picked: list[int] = []
    errors = [float(np.linalg.norm(expected) ** 2)]
    for order in range(1, 8):
        trials = {j: left([*picked, j]) for j in range(8) if j not in picked}
        picked.append(min(trials, key=lambda j: trials[j]))
        errors.append(trials[picked[-1]])
        kept, reduced = selected(layer, weights, order, HORIZON)
        assert kept.tolist() == sorted(picked)
        found = responses(kind, reduced, HORIZON) - expected
        assert abs(np.linalg.norm(found) ** 2 - errors[-1]) <= 1e-12 * errors[0]
    scores = layer.scores(weights, HORIZON)
    gains = np.sort(-np.diff([*errors, 0.0]))[::-1]
    assert np.abs(scores**2 - gains).max() <= 1e-12 * errors[0]
    assert abs(np.sum(scores**2) - errors[0]) <= 1e-12 * errors[0]


@pytest.mark.parametrize("kind", [("IMEX", True), ("IM", False)])
def test_scores_add_up_to_the_norm(kind: tuple[Rule, bool]) -> None:
    weights = linoss_weights(kind[1]) | {"D": np.zeros(3)}
    layer = LinOSS(*kind)
    scores = layer.scores(weights)
    assert scores.shape == (8,)
    assert np.all(np.diff(scores) <= 0.0)
    norm = h2_norm(layer.read(weights))
    assert abs(np.sqrt(np.sum(scores**2)) / norm - 1.0) <= 1e-10


def test_weights_of_kept_oscillators_stay(kind: tuple[Rule, bool]) -> None:
    weights, layer = linoss_weights(kind[1]), LinOSS(*kind)
    kept, reduced = selected(layer, weights, 3, HORIZON)
    assert kept.dtype.kind == "i"
    assert set(reduced) == set(weights)
    for name in layer.shapes:
        if name != "C":
            expected = weights[name] if name == "D" else weights[name][kept]
            assert np.array_equal(reduced[name], expected)
    layer.check(reduced)
    assert layer.order(reduced) == 3
    again = layer.refitted(weights, kept, HORIZON)
    assert all(np.array_equal(again[name], reduced[name]) for name in again)


def test_the_full_order_changes_nothing(kind: tuple[Rule, bool]) -> None:
    weights = linoss_weights(kind[1])
    kept, same = selected(LinOSS(*kind), weights, 8, HORIZON)
    assert kept.tolist() == list(range(8))
    assert all(np.array_equal(same[name], weights[name]) for name in weights)


def test_refitting_beats_the_plain_subset(kind: tuple[Rule, bool]) -> None:
    weights, layer = linoss_weights(kind[1], n=16), LinOSS(*kind)
    expected = responses(kind, weights, HORIZON)
    for order in (1, 4, 8, 12):
        kept, reduced = selected(layer, weights, order, HORIZON)
        plain = responses(kind, subset(weights, kept), HORIZON) - expected
        found = responses(kind, reduced, HORIZON) - expected
        assert np.linalg.norm(found) < np.linalg.norm(plain)


def test_a_given_set_is_fitted_best(kind: tuple[Rule, bool]) -> None:
    weights, kept = linoss_weights(kind[1]), np.array([0, 3, 7])
    found = LinOSS(*kind).refitted(weights, kept, HORIZON)["C"]
    assert relative(found, fitted(kind, weights, kept, HORIZON)) <= 1e-10


def test_duplicates_collapse(kind: tuple[Rule, bool]) -> None:
    weights = linoss_weights(kind[1])
    twice = {
        name: np.concatenate([x, x], axis=1 if name == "C" else 0) if name != "D" else x
        for name, x in weights.items()
    }
    layer = LinOSS(*kind)
    scores = layer.scores(twice, HORIZON)
    assert np.all(scores[8:] <= 1e-6 * scores[0])
    kept, reduced = selected(layer, twice, 8, HORIZON)
    assert sorted(kept % 8) == list(range(8))
    expected = 2.0 * responses(kind, weights, HORIZON)
    assert relative(responses(kind, reduced, HORIZON), expected) <= 1e-12


def test_real_input_weights_leave_imaginary_output_weights(kind: tuple[Rule, bool]) -> None:
    weights, layer = linoss_weights(kind[1]), LinOSS(*kind)
    weights["B"][..., 1] = 0.0
    kept, reduced = selected(layer, weights, 5, HORIZON)
    assert np.array_equal(reduced["C"][..., 1], weights["C"][:, kept, 1])
    assert not np.array_equal(reduced["C"][..., 0], weights["C"][:, kept, 0])


def test_oscillators_without_input_go_first(kind: tuple[Rule, bool]) -> None:
    weights, layer = linoss_weights(kind[1]), LinOSS(*kind)
    weights["B"][[2, 5]] = 0.0
    kept, reduced = selected(layer, weights, 6, HORIZON)
    assert kept.tolist() == [0, 1, 3, 4, 6, 7]
    assert np.array_equal(reduced["C"], weights["C"][:, kept])
    assert np.all(layer.scores(weights, HORIZON)[6:] == 0.0)
    weights["B"][:] = 0.0
    kept, reduced = selected(layer, weights, 2, HORIZON)
    assert np.array_equal(reduced["C"], weights["C"][:, kept])


def test_units_of_states_do_not_count(kind: tuple[Rule, bool]) -> None:
    weights, layer = linoss_weights(kind[1]), LinOSS(*kind)
    units = np.ldexp(1.0, np.array([0, 3, -200, 40, 500, -7, 1, -450]))
    other = weights | {
        "B": weights["B"] * units[:, None, None],
        "C": weights["C"] / units[:, None],
    }
    kept, expected = selected(layer, weights, 4, HORIZON)
    same, found = selected(layer, other, 4, HORIZON)
    assert np.array_equal(kept, same)
    assert np.array_equal(found["C"] * units[kept][:, None], expected["C"])
    assert np.array_equal(layer.scores(other, HORIZON), layer.scores(weights, HORIZON))


@pytest.mark.parametrize("unit", [2.0**600, 2.0**-700, 3.0])
def test_units_of_outputs_do_not_count(kind: tuple[Rule, bool], unit: float) -> None:
    weights, layer = linoss_weights(kind[1]), LinOSS(*kind)
    other = weights | {"C": weights["C"] * unit}
    kept, expected = selected(layer, weights, 4, HORIZON)
    same, found = selected(layer, other, 4, HORIZON)
    assert np.array_equal(kept, same)
    assert relative(found["C"] / unit, expected["C"]) <= 1e-13
    scores = layer.scores(weights, HORIZON)
    assert relative(layer.scores(other, HORIZON) / unit, scores) <= 1e-13


def test_single_precision(kind: tuple[Rule, bool]) -> None:
    """Oscillators that almost coincide ask for large weights, but not for larger ones than C can hold."""
    rng = np.random.default_rng(1)
    weights = linoss_weights(kind[1], n=24)
    for name in ("A_diag", "steps", "G_diag"):
        if name in weights:
            weights[name] = weights[name][0] * (1.0 + 1e-3 * rng.standard_normal(24))
    single = {name: np.float32(x) for name, x in weights.items()}
    layer = LinOSS(*kind)
    expected = responses(kind, {name: np.float64(x) for name, x in single.items()}, HORIZON)
    for order in (4, 8, 16, 24):
        _, reduced = selected(layer, single, order, HORIZON)
        assert reduced["B"].dtype == np.float32
        found = responses(kind, reduced, HORIZON)
        stored = responses(kind, reduced | {"C": np.float32(reduced["C"])}, HORIZON)
        error = np.linalg.norm(found - expected)
        assert np.linalg.norm(stored - expected) <= error + 1e-2 * np.linalg.norm(expected)


def test_one_oscillator(kind: tuple[Rule, bool]) -> None:
    weights, layer = linoss_weights(kind[1], n=1, m=1), LinOSS(*kind)
    kept, same = selected(layer, weights, 1, HORIZON)
    assert kept.tolist() == [0]
    assert np.array_equal(same["C"], weights["C"])
    norm = np.linalg.norm(responses(kind, weights, HORIZON))
    assert abs(layer.scores(weights, HORIZON)[0] / norm - 1.0) <= 1e-12


def test_kept_states() -> None:
    found = LinOSS().kept_states(np.array([0, 2]), 4)
    assert found.tolist() == [0, 2, 4, 6]


# --- The selection itself


@pytest.mark.parametrize("imaginary", [0.0, 1.0])
def test_groups_of_any_size(rng: np.random.Generator, imaginary: float) -> None:
    factor, C = rng.standard_normal((40, 12)), rng.standard_normal((3, 12))
    if imaginary:
        factor = factor + 1j * rng.standard_normal((40, 12))
        C = C + 1j * rng.standard_normal((3, 12))
    gram, outputs = factor.T @ factor.conj(), factor @ C.T
    for size in (1, 3, 4):
        picked, scores = pursue(gram, C, size)
        kept: list[int] = []
        total = before = energy(gram, C)
        assert abs(before - np.sum(np.abs(outputs) ** 2)) <= 1e-12 * before
        for group, score in zip(picked, scores, strict=True):
            kept = sorted([*kept, *range(group * size, group * size + size)])
            fit = np.linalg.lstsq(factor[:, kept], outputs, rcond=None)[0]
            assert np.allclose(refit(gram, C, np.array(kept)), fit.T, rtol=1e-9, atol=1e-9)
            after = float(np.sum(np.abs(outputs - factor[:, kept] @ fit) ** 2))
            assert abs(before - after - score**2) <= 1e-12 * total
            before = after


# --- Refusals


def test_layers_without_a_formula_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="'IM' with damping"):
        LinOSS("IM", damped=True)
    with pytest.raises(UnsupportedLayerError, match="`discretization` is 'EX'"):
        LinOSS("EX", damped=False)  # type: ignore[arg-type]

    class Layer:
        discretization = "IMEX"
        damping = True

    axes = {"A_diag": 1, "steps": 1, "B": 3, "C": 3, "D": 1}
    with pytest.raises(UnsupportedLayerError, match="`damping` is True but it has no `G_diag`"):
        LinOSS.recognise(Layer(), HasArrays(axes))
    assert LinOSS.recognise(Layer(), HasArrays(axes | {"B": 2})) is None
    Layer.damping = False
    with pytest.raises(UnsupportedLayerError, match="`damping` is False but it has a `G_diag`"):
        LinOSS.recognise(Layer(), HasArrays(axes | {"G_diag": 1}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("steps", (7,)), ("G_diag", (9,)), ("B", (8, 3)), ("C", (3, 7, 2)), ("D", (4,))],
)
def test_weights_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    weights = linoss_weights() | {name: np.ones(shape)}
    with pytest.raises(ShapeError, match=f"`{name}` has shape"):
        LinOSS().read(weights)


def test_weights_that_are_missing_or_not_finite() -> None:
    weights = linoss_weights()
    with pytest.raises(NonFiniteError, match="`steps`"):
        LinOSS().read(weights | {"steps": np.full(8, np.nan)})
    del weights["G_diag"]
    with pytest.raises(ShapeError, match="without G_diag"):
        LinOSS().read(weights)


@pytest.mark.parametrize("kept", [[], [1, 1], [2, 0], [0, 8], [-1, 2], [0.0, 1.0], [True, False]])
def test_sets_that_there_are_not(kept: Any) -> None:
    with pytest.raises(ArgumentError, match="`kept` is"):
        LinOSS().refitted(linoss_weights(), np.array(kept))


def test_arrays_of_features_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="`gram` has shape"):
        pursue(np.eye(3), np.ones((1, 3)), 2)
    with pytest.raises(ShapeError, match="`C` has shape"):
        refit(np.eye(3), np.ones((1, 2)), np.array([0]))
