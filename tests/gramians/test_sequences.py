"""What states do on sequences: sums against brute force, fits against dense least squares."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from s5 import S5

from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    controllability_gramian,
    read_system,
    simulate,
)
from ssmreduce.errors import ShapeError
from ssmreduce.gramians import sequences as module
from ssmreduce.gramians.sequences import (
    FeatureSums,
    Sequences,
    feature_sums,
    output,
    output_error,
    output_matrix,
    readout,
    state_moment,
)
from ssmreduce.layers.selection import pursue_target

Array = np.ndarray

CASES = {
    "one system": ((), 3, 2, False),
    "wide": ((), 80, 12, False),
    "both directions": ((), 3, 4, True),
    "channels": ((5,), 1, 1, False),
    "channels with two heads": ((5,), 1, 2, False),
}


def drawn(batch: tuple[int, ...], m: int, p: int, n: int = 4, seed: int = 0) -> DiagonalStateSpace:
    rng = np.random.default_rng(seed)
    modulus = rng.uniform(0.5, 0.95, (*batch, n))
    D = rng.normal(size=(*batch, p, m))
    return DiagonalStateSpace(
        modulus * np.exp(1j * rng.uniform(0, 3, (*batch, n))),
        rng.normal(size=(*batch, n, m)) + 1j * rng.normal(size=(*batch, n, m)),
        rng.normal(size=(*batch, p, n)) + 1j * rng.normal(size=(*batch, p, n)),
        D,
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )


def inputs_of(system: DiagonalStateSpace, count: int = 6, steps: int = 20) -> Array:
    width = system.batch_shape[0] if system.batch_shape else system.inputs
    return np.random.default_rng(1).normal(size=(count, steps, width))


def simulated(system: DiagonalStateSpace, u: Array, both: bool) -> Array:
    """The output for one sequence, (L, p), by `simulate`."""
    if system.batch_shape:
        each = [simulate(system[k], u[:, k : k + 1]) for k in range(len(u.T))]
        return np.stack(each, axis=1).reshape(len(u), -1)
    if not both:
        return simulate(system, u)
    half = system.outputs // 2
    parts = [
        DiagonalStateSpace(
            system.eigenvalues,
            system.B,
            system.C[rows],
            system.D[rows],
            time=Discrete(),
            real_output=True,
            read_after_update=True,
        )
        for rows in (slice(half), slice(half, None))
    ]
    return simulate(parts[0], u) + simulate(parts[1], u[::-1])[::-1]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_simulate(case):
    batch, m, p, both = CASES[case]
    system = drawn(batch, m, p)
    u = inputs_of(system)
    found = output(system, u, both_directions=both)
    for own, given in zip(found, u, strict=True):
        np.testing.assert_allclose(own, simulated(system, given, both), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("real", ["eigenvalues", "B", "C", "all"])
def test_real_arrays_are_taken_as_complex_ones(case, real):
    batch, m, p, both = CASES[case]
    system = drawn(batch, m, p)
    arrays = {
        name: getattr(system, name).real if real in (name, "all") else getattr(system, name)
        for name in ("eigenvalues", "B", "C")
    }
    given = dataclasses.replace(system, **arrays)
    same = dataclasses.replace(system, **{name: x.astype(complex) for name, x in arrays.items()})
    u = inputs_of(system)
    outputs = output(same, u, both_directions=both)
    data = Sequences(u, outputs, np.ones(u.shape[:2]))
    np.testing.assert_array_equal(output(given, u, both_directions=both), outputs)
    for name in ("gram", "seen", "moment"):
        found, expected = (
            getattr(feature_sums(each, data, both_directions=both), name) for each in (given, same)
        )
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        readout(given, both_directions=both), readout(same, both_directions=both)
    )


def dense_channels() -> StateSpace:
    rng = np.random.default_rng(0)
    A = 0.4 * rng.normal(size=(3, 4, 4))
    B, C, D = (rng.normal(size=shape) for shape in ((3, 4, 1), (3, 2, 4), (3, 2, 1)))
    return StateSpace(A, B, C, D, time=Discrete(), read_after_update=True)


@pytest.mark.parametrize("steps", [1, 15, 40])
def test_outputs_of_dense_channels_are_those_of_simulate(steps):
    system = dense_channels()
    u = np.random.default_rng(1).normal(size=(2, steps, 3))
    for own, given in zip(output(system, u), u, strict=True):
        np.testing.assert_allclose(own, simulated(system, given, False), rtol=1e-12, atol=1e-12)


def test_sums_of_dense_channels_are_those_of_brute_force():
    system, rng = dense_channels(), np.random.default_rng(1)
    u, y = rng.normal(size=(5, 40, 3)), rng.normal(size=(5, 40, 6))
    weights = rng.uniform(size=(5, 40))
    weights[2, 25:] = 0.0
    sums = feature_sums(system, Sequences(u, y, weights))
    for k in range(3):
        gram = seen = moment = 0.0
        for inputs, wanted, weight in zip(
            u[..., k], y[..., 2 * k : 2 * k + 2], weights, strict=True
        ):
            x = np.zeros(4)
            for t in range(40):
                x = system.A[k] @ x + system.B[k, :, 0] * inputs[t]
                gram = gram + weight[t] * np.outer(x, x)
                seen = seen + weight[t] * np.outer(x, wanted[t] - system.D[k, :, 0] * inputs[t])
                moment = moment + (weight[t] > 0.0) * np.outer(x, x)
        for found, expected in ((sums.gram, gram), (sums.seen, seen), (sums.moment, moment)):
            size = np.abs(expected).max()
            np.testing.assert_allclose(found[k], expected, rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize("case", CASES)
def test_readout_and_output_matrix_are_inverse(case):
    batch, m, p, both = CASES[case]
    system = drawn(batch, m, p)
    K = readout(system, both_directions=both)
    np.testing.assert_array_equal(output_matrix(K, both_directions=both), system.C)


@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_brute_force(case):
    batch, m, p, both = CASES[case]
    system = drawn(batch, m, p)
    u = inputs_of(system)
    rng = np.random.default_rng(2)
    width = p // 2 if both else p * (batch[0] if batch else 1)
    y, weights = rng.normal(size=(6, 20, width)), rng.uniform(size=(6, 20))
    weights[1, 12:] = 0.0
    sums = feature_sums(system, Sequences(u, y, weights), both_directions=both)
    for k, part in enumerate([system[i] for i in range(5)] if batch else [system]):
        own = (u[:, :, k : k + 1], y[:, :, p * k : p * (k + 1)]) if batch else (u, y)
        expected = brute_force(part, *own, weights, both)
        found = [sums.gram, sums.seen, sums.moment]
        found = [each[k] if batch else each for each in found]
        size = np.abs(expected[0]).max()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * size)


def brute_force(system, u, y, weights, both):
    """Φ, R and E of one system, and Φ of all steps alike, summed step by step."""
    n, D = system.order, system.D
    D = np.add(*np.split(D, 2)) if both else D
    gram = seen = moment = 0.0
    for inputs, wanted, weight in zip(u, y, weights, strict=True):
        forth, back = (np.zeros((len(inputs) + 1, n), complex) for _ in range(2))
        for t in range(len(inputs)):  # the last row of each stays zero: the state at rest
            forth[t] = system.eigenvalues * forth[t - 1] + system.B @ inputs[t]
            last = len(inputs) - 1 - t
            back[last] = system.eigenvalues * back[last + 1] + system.B @ inputs[last]
        for t, step in enumerate(inputs):
            states = (forth[t], back[t]) if both else (forth[t],)
            f = np.stack([part for h in states for part in (h.real, h.imag)], axis=-1).ravel()
            rest = wanted[t] - D @ step
            gram = gram + weight[t] * np.outer(f, f)
            seen = seen + weight[t] * np.outer(f, rest)
            moment = moment + (weight[t] > 0.0) * np.outer(f, f)
    return gram, seen, moment


@pytest.mark.parametrize("both", [False, True])
def test_states_are_those_of_the_real_layer(both):
    torch.manual_seed(0)
    layer = S5(6, 8, bidir=both)
    kind = read_system(layer)
    u = inputs_of(kind, 3, 15)
    sums = feature_sums(
        kind, Sequences(u, np.zeros((3, 15, 6)), np.ones((3, 15))), both_directions=both
    )
    own = []
    for k in range(8):  # output weights that read one state after the other
        with torch.no_grad():
            layer.seq.C.zero_()
            layer.seq.C[:2, k] = torch.tensor([1.0, -1.0j])
            if both:
                layer.seq.C[2:4, 8 + k] = torch.tensor([1.0, -1.0j])
            layer.seq.D.zero_()
            out = layer(torch.tensor(u, dtype=torch.float32)).double().numpy()
        own.append(out[..., : 4 if both else 2] / read_system(layer).C[0, k].real)
    features = np.stack(own, axis=-2).reshape(3 * 15, -1)
    expected = features.T @ features
    np.testing.assert_allclose(sums.gram, expected, rtol=0, atol=1e-5 * expected.max())


def test_sums_of_sequences_add_up():
    system = drawn((), 3, 4)
    u = inputs_of(system, 7, 12)
    y, weights = (
        output(system, u, both_directions=True),
        np.random.default_rng(0).uniform(size=(7, 12)),
    )
    whole, *parts = (
        feature_sums(system, Sequences(u[at], y[at], weights[at]), both_directions=True)
        for at in (slice(None), slice(3), slice(3, 7))
    )
    for name in ("gram", "seen", "moment"):
        added = sum(getattr(part, name) for part in parts)
        np.testing.assert_allclose(added, getattr(whole, name), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_sums_add_over_few_sequences_at_a_time(case, monkeypatch):
    batch, m, p, both = CASES[case]
    system = drawn(batch, m, p)
    u = inputs_of(system)
    y = output(system, u, both_directions=both)
    data = Sequences(u, y, np.ones(u.shape[:2]))
    whole = feature_sums(system, data, both_directions=both)
    monkeypatch.setattr(module, "_TOGETHER", 1)
    parts = feature_sums(system, data, both_directions=both)
    for name in ("gram", "seen", "moment"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(whole, name), rtol=1e-11, atol=1e-9
        )
    np.testing.assert_allclose(output(system, u, both_directions=both), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_to_the_own_output_gives_the_own_weights(case):
    batch, m, p, both = CASES[case]
    system = drawn(batch, m, p)
    u = inputs_of(system, 40, 60)
    data = Sequences(u, output(system, u, both_directions=both), np.ones(u.shape[:2]))
    sums = feature_sums(system, data, both_directions=both)
    K, own = sums.fitted(), readout(system, both_directions=both)
    lengths = np.sqrt(np.diagonal(sums.gram, axis1=-2, axis2=-1))
    unit = sums.gram / lengths[..., :, None] / lengths[..., None, :]
    moved = 10 * module.RIDGE * np.max(np.linalg.cond(unit))  # by the ridge
    size = np.abs(own * lengths[..., None, :]).max()
    np.testing.assert_allclose((K - own) * lengths[..., None, :], 0.0, atol=moved * size)
    fitted = DiagonalStateSpace(
        system.eigenvalues,
        system.B,
        output_matrix(K, both_directions=both),
        system.D,
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    assert output_error(fitted, data, both_directions=both) < 1e-4


def test_a_fit_is_that_of_dense_least_squares():
    rng = np.random.default_rng(0)
    X, Y, weights = rng.normal(size=(300, 6)), rng.normal(size=(300, 2)), rng.uniform(size=300)
    X = (
        X @ rng.normal(size=(6, 6)) * 10.0 ** np.arange(-2, 4)
    )  # features of unlike size that overlap
    X[:, 4] = 0.0  # a feature that rests gets no weight
    W = X * weights[:, None]
    K = FeatureSums(W.T @ X, W.T @ Y, X.T @ X).fitted()
    root, kept = np.sqrt(weights)[:, None], np.delete(X, 4, 1)
    lengths = np.linalg.norm(root * kept, axis=0)
    rows = np.vstack([root * kept / lengths, np.sqrt(module.RIDGE) * np.eye(5)])
    wanted = np.vstack([root * Y, np.zeros((5, 2))])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose(np.delete(K, 4, 1) * lengths, expected, atol=1e-10)
    np.testing.assert_array_equal(K[:, 4], 0.0)


@pytest.mark.parametrize("both", [False, True])
def test_state_moments_of_white_inputs_tend_to_the_gramian(both):
    errors = []
    for count in (40, 640):
        apart = []
        for seed in range(5):
            system = drawn((), 2, 4 if both else 2, n=3, seed=seed)
            u = np.random.default_rng(seed).normal(size=(count, 300, 2))
            middle = np.zeros((count, 300))
            middle[:, 150] = 1.0  # away from both ends
            data = Sequences(u, np.zeros((count, 300, 2)), middle)
            gram = feature_sums(system, data, both_directions=both).gram
            P = state_moment(gram, both_directions=both) / count
            expected = controllability_gramian(system.to_dense())
            apart.append(np.linalg.norm(P - expected) / np.linalg.norm(expected))
        errors.append(np.mean(apart))
    assert errors[0] < 2.0 / np.sqrt(40)
    assert 0.15 < errors[1] / errors[0] < 0.4  # a quarter: 1/√N with 16 times as many


def test_groups_of_sums_are_those_of_their_features():
    system = drawn((5,), 1, 1)
    u = inputs_of(system)
    sums = feature_sums(system, Sequences(u, output(system, u), np.ones(u.shape[:2])))
    kept = np.array([[0, 2], [1, 3], [0, 1], [2, 3], [0, 3]])
    part = sums.of_groups(kept, 2)
    for k, modes in enumerate(kept):
        at = np.concatenate([[2 * each, 2 * each + 1] for each in modes])
        np.testing.assert_array_equal(part.gram[k], sums.gram[k][np.ix_(at, at)])
        np.testing.assert_array_equal(part.seen[k], sums.seen[k][at])


def test_pursuit_of_a_target_finds_the_best_groups():
    rng = np.random.default_rng(0)
    for _ in range(20):
        X = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
        Y = rng.normal(size=(200, 3))

        def lost(groups, X=X, Y=Y):
            at = (np.asarray(groups)[:, None] * 2 + np.arange(2)).ravel()
            K = np.linalg.lstsq(X[:, at], Y, rcond=None)[0]
            return np.sum((Y - X[:, at] @ K) ** 2)

        found = pursue_target(X.T @ X, X.T @ Y, 2, 3, tolerance=1e-12)
        assert np.all(np.diff(found) > 0)
        losses = sorted(map(lost, itertools.combinations(range(6), 3)))
        # Swaps end in a local optimum: among the three best of twenty here.
        assert lost(found) <= losses[2] * (1 + 1e-9)


def test_pursuit_of_a_target_leaves_out_what_rests():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(100, 8)), rng.normal(size=(100, 2))
    X[:, 2:4] = 0.0
    assert 1 not in pursue_target(X.T @ X, X.T @ Y, 2, 3, tolerance=1e-9)


def of_unlike_steps(count: int, length: int) -> Sequences:
    """Sequences of which some steps count a hundred times as much as others, and some not at all."""
    rng = np.random.default_rng(0)
    weights = 10.0 ** rng.uniform(-1, 1, size=(count, length))
    weights[rng.uniform(size=weights.shape) < 0.1] = 0.0
    u = rng.normal(size=(count, length, 3)).cumsum(axis=1)
    return Sequences(u, rng.normal(size=(count, length, 2)), weights)


def test_steps_are_drawn_in_proportion_to_their_weights():
    data = of_unlike_steps(40, 50)
    drawn = data.sample(1000)
    counted = data.weights > 0.0
    assert 800 < np.count_nonzero(drawn) <= 1000
    assert not np.any(drawn[~counted])
    assert drawn[drawn > 0.0].min() == 1.0  # none for less than itself
    assert np.all(drawn[data.weights > 8.0] == 1.0)
    rare = data.weights[(drawn > 0.0) & (data.weights < 0.2)]
    assert 15 < len(rare) < 150
    assert drawn.sum() == pytest.approx(np.count_nonzero(counted), rel=0.1)
    np.testing.assert_allclose(np.sum(drawn * data.weights), data.weights.sum(), rtol=0.02)
    np.testing.assert_array_equal(data.sample(1000), drawn)
    np.testing.assert_array_equal(data.sample(2000), counted)


def test_few_of_all_steps_are_not_always_the_same_of_each_sequence():
    data = Sequences(np.zeros((400, 64, 1)), np.zeros((400, 64, 1)), np.ones((400, 64)))
    times = np.sum(data.sample(1600) > 0.0, axis=0)  # every 16th
    assert times.min() > 5
    assert times.max() < 60


@pytest.mark.parametrize("name", ["gram", "moment"])
def test_sums_of_a_sample_are_near_those_of_all_steps(name, monkeypatch):
    data = of_unlike_steps(300, 60)
    system = drawn((), 3, 2, n=6)
    monkeypatch.setattr(module, "_ENTRIES", 10**9)
    whole = getattr(feature_sums(system, data), name)
    lengths = np.sqrt(np.diagonal(whole))
    errors = []
    for count in (400, 6400):
        monkeypatch.setattr(module, "_ENTRIES", 12 * count)
        part = getattr(feature_sums(system, data), name)
        errors.append(np.abs((part - whole) / np.outer(lengths, lengths)).max())
    assert errors[1] < 0.03
    assert errors[1] < 0.6 * errors[0]


def test_a_sample_selects_and_fits_as_all_steps_do(monkeypatch):
    system = drawn((), 3, 2, n=12, seed=1)
    u = np.random.default_rng(0).normal(size=(300, 60, 3)).cumsum(axis=1)
    y = output(system, u)
    noise = np.random.default_rng(1).normal(size=y.shape)
    data = Sequences(u, y + 0.1 * np.std(y) * noise, np.ones((300, 60)))
    lost = []
    for count in (10**6, 2000):
        monkeypatch.setattr(module, "_ENTRIES", 24 * count)
        sums = feature_sums(system, data)
        kept = pursue_target(sums.gram, sums.seen, 2, 5, tolerance=module.RIDGE)
        part = system.to_host()
        fitted = DiagonalStateSpace(
            part.eigenvalues[kept],
            part.B[kept],
            output_matrix(sums.of_groups(kept, 2).fitted()),
            part.D,
            time=Discrete(),
            real_output=True,
            read_after_update=True,
        )
        lost.append(output_error(fitted, data))
    assert lost[0] < 0.5
    assert lost[1] < 1.02 * lost[0]


def test_sequences_that_do_not_fit_together_are_refused():
    u, y = np.zeros((2, 5, 3)), np.zeros((2, 5, 1))
    with pytest.raises(ShapeError, match="have shapes"):
        Sequences(u, y[:, :4], np.ones((2, 5)))
    with pytest.raises(ShapeError, match="have shapes"):
        Sequences(u, y, np.ones((2, 4)))


def test_effective_rows_count_steps_that_matter():
    weights = np.zeros((10, 7))
    weights[:, -1] = 1.0
    data = Sequences(np.zeros((10, 7, 1)), np.zeros((10, 7, 1)), weights)
    assert data.effective_rows == 10.0


def test_steps_that_are_drawn_for_certain_leave_no_more_to_be_drawn():
    weights = np.tile([1.0, 1.0, 1.0, 9.0], (4, 100))
    sequences = Sequences(np.zeros((4, 400, 1)), np.zeros((4, 400, 1)), weights)
    for count in (799, 800, 801):
        stands_for = sequences.sample(count)
        np.testing.assert_allclose(stands_for.sum(), weights.size, rtol=0.02)
        np.testing.assert_allclose((stands_for * weights).sum(), weights.sum(), rtol=0.02)
