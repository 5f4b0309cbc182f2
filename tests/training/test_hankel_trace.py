"""`HankelTrace`: shares of states, when a ranking has settled, pictures and JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import good_calls
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from fingerprints import fingerprint
from modules import KernelLRU, Stack, make_lru
from samples import linoss_weights, lru_weights, slow_inputs
from torch_modules import S4D, SSMKernelDPLR
from torch_samples import model_and_batches, s5, trained_with

from ssmreduce import (
    Calibration,
    CutOptions,
    FixedOrder,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    calibrate,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
    read_system,
)
from ssmreduce.errors import (
    ArgumentError,
    CalibrationWarning,
    NonFiniteError,
    ShapeError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers.linoss import LinOSS
from ssmreduce.training.records import Agreement, HankelRecord, thinned

EPS = float(np.finfo(np.float64).eps)


def stack(seed: int = 5) -> Stack:
    rng = np.random.default_rng(seed)
    first, second = (make_lru(lru_weights(rng, n, 3), kind=KernelLRU) for n in (12, 10))
    return Stack(first, second, jnp.asarray(rng.standard_normal(3), dtype="float32"))


def root_of_gramians(system: Any) -> np.ndarray:
    """The diagonal of (P Q)^(1/2) from eigenvectors of the product of Gramians, of the real system."""
    dense = system.to_dense() if hasattr(system, "to_dense") else system
    P, Q = controllability_gramian(dense), observability_gramian(dense)
    squares, vectors = np.linalg.eig(P @ Q)
    roots = np.sqrt(np.maximum(squares.real, 0.0))
    diagonal = np.diag(np.linalg.solve(vectors.T, (vectors * roots).T)).real
    return diagonal.reshape(-1, system.order).sum(axis=0)


# --- Records


def test_records_of_a_model() -> None:
    model, trace = stack(), HankelTrace(10)
    for step in range(25):
        trace.step(step, model)
    assert [(record.step, record.layer) for record in trace.records] == [
        (step, layer) for step in (0, 10, 20) for layer in ("first", "second")
    ]
    assert trace.layers == ("first", "second")
    for name, layer in (("first", model.first), ("second", model.second)):
        record = trace.of_layer(name)[1]
        expected = hankel_singular_values(read_system(layer))
        np.testing.assert_allclose(record.hsv, expected, rtol=0, atol=100 * EPS * expected[0])
        assert record.shares.shape == layer.nu_log.shape
        # The shares add up to the sum of the values.
        np.testing.assert_allclose(record.shares.sum(), expected.sum(), rtol=1e4 * EPS)


def test_shares_are_the_diagonal_of_the_root_of_the_gramians() -> None:
    torch.manual_seed(2)
    layers = (stack().first, s5(False, False, 6).seq, S4D(2, 8).kernel, SSMKernelDPLR(2, 8))
    for layer in layers:
        trace = HankelTrace(1)
        trace.record(3, layer)
        (record,) = trace.records
        system = read_system(layer)
        parts = [system[index] for index in np.ndindex(system.batch_shape)] or [system]
        expected = np.stack([root_of_gramians(part) for part in parts])
        found = record.shares.reshape(expected.shape)
        # A square root halves the digits.
        scale = record.hsv.max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=10 * EPS**0.5 * scale)
        assert record.hsv.shape == (*system.batch_shape, hankel_singular_values(system).shape[-1])


def test_shares_do_not_depend_on_the_scale_of_states() -> None:
    layer = stack().first
    factor = jnp.asarray(2.0 ** np.arange(-6, 6), dtype="float32")
    scaled = eqx.tree_at(
        lambda m: (m.B_re, m.B_im, m.C_re, m.C_im),
        layer,
        (
            layer.B_re * factor[:, None],
            layer.B_im * factor[:, None],
            layer.C_re / factor,
            layer.C_im / factor,
        ),
    )
    trace = HankelTrace(1)
    trace.record(1, layer)
    trace.record(2, scaled)
    one, two = trace.records
    np.testing.assert_allclose(two.shares, one.shares, rtol=0, atol=1e4 * EPS * one.hsv[0])


def test_a_layer_that_cannot_be_balanced_leaves_no_record() -> None:
    model = stack()
    trace = HankelTrace(1)
    broken = eqx.tree_at(lambda m: m.second.C_re, model, model.second.C_re.at[0, 0].set(jnp.nan))
    with pytest.raises(NonFiniteError):
        trace.record(1, broken)
    marginal = eqx.tree_at(
        lambda m: m.second.nu_log, model, model.second.nu_log.at[0].set(jnp.float32(-1e3))
    )
    with pytest.raises(UnstableSystemError):
        trace.record(1, marginal)
    with pytest.raises(UnsupportedLayerError):
        trace.record(1, torch.nn.Linear(2, 2))
    assert trace.records == []
    within = HankelTrace(1, horizon=30)
    within.record(1, marginal)
    assert len(within.records) == 2


def test_a_trace_in_a_run_warns_once_while_it_cannot_record() -> None:
    model = stack()
    broken = eqx.tree_at(lambda m: m.second.C_re, model, model.second.C_re.at[0, 0].set(jnp.nan))
    trace = HankelTrace(2)
    reducer = InTrainingReducer(ReductionSchedule(1000), trace=trace)
    for kind, steps in ((model, (2, 3, 4)), (broken, (5,))):
        for step in steps:
            assert reducer.step(step, kind, None) == (kind, None)
    for _ in range(2):
        with pytest.warns(UserWarning, match="no record of the trace after step 6"):
            reducer.step(6, broken, None)
        reducer.step(8, broken, None)  # warnings are errors here
        reducer.step(10, model, None)
    assert sorted({record.step for record in trace.records}) == [2, 4, 10]


@pytest.mark.parametrize(
    "arguments",
    [
        {"every": 0},
        {"every": 2.5},
        {"every": 1, "share": 0.0},
        {"every": 1, "share": 1.5},
        {"every": 1, "horizon": 0},
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        HankelTrace(**arguments)


# --- Rankings


def trace_of(*shares: list[float], share: float = 0.9) -> HankelTrace:
    trace = HankelTrace(1, share=share)
    for step, values in enumerate(shares):
        array = np.array(values)
        trace.records.append(HankelRecord(step, "layer", np.sort(array)[::-1], array))
    return trace


def test_kept_states() -> None:
    record = trace_of([1.0, 5.0, 0.5, 3.5]).records[0]
    assert record.kept(0.5).tolist() == [1]
    assert record.kept(0.85).tolist() == [1, 3]
    assert record.kept(0.9).tolist() == [1, 3, 0]
    assert record.kept(1.0).tolist() == [1, 3, 0, 2]


def test_agreement_by_hand() -> None:
    # Kept: {0, 1, 2}, then {0, 1, 3}: two of four in both; ranks 1 2 3 4 against 2 1 4 3 of states 0 1 2 3.
    trace = trace_of([5.0, 3.0, 2.0, 0.1, 0.01], [3.0, 5.0, 0.1, 2.0, 0.01])
    first, last = trace.agreement("layer")
    assert first.overlap == 0.5
    assert first.rank_correlation == pytest.approx(1.0 - 6.0 * 4.0 / (4.0 * 15.0))
    assert last == Agreement(1, 1.0, pytest.approx(1.0))


def test_rank_correlation_with_ties() -> None:
    earlier, latest = [5.0, 3.0, 3.0, 1.0, 3.0], [2.0, 4.0, 1.0, 1.0, 6.0]
    (first, _) = trace_of(earlier, latest, share=1.0).agreement("layer")
    assert first.rank_correlation == pytest.approx(scipy.stats.spearmanr(earlier, latest).statistic)


def test_settled_since_when() -> None:
    rising = trace_of([1.0, 5.0, 9.0], [9.0, 5.0, 3.0], [9.0, 6.0, 3.0], [9.0, 5.0, 2.0])
    assert rising.settled("layer") == 1
    assert trace_of([9.0, 5.0, 1.0], [9.0, 1.0, 5.0]).settled("layer") is None
    assert trace_of([9.0, 5.0, 1.0]).settled("layer") is None
    # It has to last until now.
    back = trace_of([9.0, 5.0, 3.0], [3.0, 5.0, 9.0], [9.0, 5.0, 3.0], [9.0, 5.0, 3.0])
    assert back.settled("layer") == 2
    # Other numbers of states are other states.
    cut = trace_of([9.0, 5.0, 3.0, 1.0], [9.0, 5.0], [9.0, 4.0])
    assert cut.settled("layer") == 1
    between = trace_of([9.0, 5.0], [9.0, 5.0, 3.0], [9.0, 4.0])
    assert [entry.step for entry in between.agreement("layer")] == [2]
    # A lower threshold is met earlier.
    near = trace_of([5.0, 4.0, 3.0, 2.0], [4.0, 5.0, 3.0, 2.0], share=1.0)
    assert near.settled("layer") is None
    assert near.settled("layer", threshold=0.75) == 0


def test_rankings_without_an_order() -> None:
    assert trace_of([1.0], [2.0]).agreement("layer")[0] == Agreement(0, 1.0, 1.0)
    assert trace_of([1.0, 1.0], [1.0, 1.0]).agreement("layer")[0].rank_correlation == 1.0
    assert trace_of([1.0, 1.0], [1.0, 1e-9]).agreement("layer")[0].rank_correlation == 0.0


def test_layers_without_records() -> None:
    with pytest.raises(ArgumentError, match=r"`layer` is 'third'.*expected one of layer"):
        trace_of([1.0]).settled("third")
    with pytest.raises(ArgumentError, match="recorded first"):
        HankelTrace(5).agreement("layer")
    with pytest.raises(ArgumentError, match="threshold"):
        trace_of([1.0]).settled("layer", threshold=2.0)


# --- Long traces


def long_trace(
    monkeypatch: pytest.MonkeyPatch, last: int, every: int = 100, *, cut_at: int = 40_000
) -> HankelTrace:
    """Two layers over `last` steps, the first of which is cut once."""
    trace_module = sys.modules["ssmreduce.training.trace"]

    now, record = [0], HankelTrace.record

    def timed(self: HankelTrace, step: int, *rest: Any) -> None:
        now[0] = step
        record(self, step, *rest)

    def handle(name: str) -> SimpleNamespace:
        def shares(*_: Any) -> tuple[np.ndarray, np.ndarray]:
            count = 8 if name == "first" and now[0] >= cut_at else 16
            values = np.linspace(1.0, 2.0, count) + 1e-9 * now[0]
            return values[::-1], values

        kind = SimpleNamespace(shares=shares, needs_data=False, scores_name="value")
        return SimpleNamespace(name=name, weights={}, kind=kind)

    layers = SimpleNamespace(meant=[handle("first"), handle("second")])
    monkeypatch.setattr(trace_module, "find_layers", lambda *_: layers)
    monkeypatch.setattr(trace_module, "with_full_layers", lambda found: found)
    monkeypatch.setattr(HankelTrace, "record", timed)
    trace, model = HankelTrace(every), stack()
    for step in range(every, last + 1, every):
        trace.step(step, model)
    return trace


@pytest.mark.parametrize(
    ("last", "spacing"),
    [(20_000, 100), (20_100, 200), (39_900, 400), (60_000, 400), (100_000, 800)],
)
def test_a_long_trace_thins_itself(
    last: int, spacing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = long_trace(monkeypatch, last)
    for layer in ("first", "second"):
        steps = [record.step for record in trace.of_layer(layer)]
        assert len(steps) <= 200
        assert steps[:1] == [100]
        assert steps[-50:] == [*range(last - 4_900, last + 1, 100)]
        gaps = np.diff(steps)
        assert (gaps > 0).all()
        assert gaps.max() == trace.spacing(layer) == spacing
        if layer == "first" and last > 40_000:
            assert {39_900, 40_000} <= {*steps}
    if last > 40_000:
        assert trace.agreement("first")[0].step == trace.settled("first") == 40_000
    assert trace.settled("second") == 100
    labels = [axes.get_xlabel() for axes in trace.plot()[:, 1]]
    expected = "step" if spacing == 100 else f"step (recorded at least every {spacing})"
    assert labels[1] == expected


def test_a_long_trace_goes_on_alike_after_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = long_trace(monkeypatch, 60_000)
    again = HankelTrace.from_dict(json.loads(json.dumps(long_trace(monkeypatch, 33_300).to_dict())))
    model = stack()
    for step in range(33_400, 60_001, 100):
        again.step(step, model)
    assert [(r.step, r.layer) for r in again.records] == [
        (r.step, r.layer) for r in straight.records
    ]


def test_steps_and_states_that_go_back_and_forth_are_bounded_too() -> None:
    for change in (0, 1):
        records = [
            HankelRecord(step, "layer", np.ones(3 + change * (index % 2)), np.ones(3))
            for index, step in enumerate([*range(300), *range(300)])
        ]
        kept = thinned([*records, *records], 1)
        assert len(kept) <= 200
        assert kept[-1] is records[-1]
    still = [HankelRecord(7, "layer", np.ones(3), np.ones(3))] * 3
    assert thinned(still, 1) == still
    flips = [HankelRecord(k, "layer", np.ones(3), np.ones(3 + k % 2)) for k in range(500)]
    assert thinned(flips, 1) == flips[-200:]


def test_tensorboard_gets_every_record_of_a_long_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    written = set()

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.add(step)

    trace = long_trace(monkeypatch, 19_900)
    reducer = InTrainingReducer(ReductionSchedule.at(10**6), trace=trace)
    reducer.log_to(Writer())
    model = stack()
    for step in range(20_000, 20_401, 100):
        reducer.step(step, model, None)
    assert written == {*range(20_000, 20_401, 100)}


# --- By data


def real_root(layer: Any, kind: Any, u: np.ndarray) -> np.ndarray:
    """Roots of the eigenvalues of P Q, with P from states that run step by step, for each channel."""
    system = read_system(layer, kind=kind)
    parts = [system[index] for index in np.ndindex(system.batch_shape)] or [system]
    found = []
    for number, part in enumerate(parts):
        own = u[:, :, number : number + 1] if system.batch_shape else u
        P, n = np.zeros((2 * part.order, 2 * part.order)), part.order
        for sequence in own:
            h = np.zeros(n, complex)
            for step in sequence:
                h = part.eigenvalues * h + part.B @ step
                P += np.outer(x := np.concatenate([h.real, h.imag]), x) / (len(u) * len(sequence))
        re, im = np.diag(part.eigenvalues.real), np.diag(part.eigenvalues.imag)
        A, C = np.block([[re, -im], [im, re]]), np.hstack([part.C.real, -part.C.imag])
        Q = scipy.linalg.solve_discrete_lyapunov(A.T, C.T @ C)
        squares = np.sort(np.linalg.eigvals(P @ Q).real)[::-1]
        found.append(np.sqrt(np.maximum(squares, 0.0)))
    return np.stack(found).reshape(*system.batch_shape, -1)


@pytest.mark.parametrize("name", ["LRU", "S4D"])
def test_values_by_data_are_those_of_brute_force(name: str) -> None:
    torch.manual_seed(0)
    lru = lru_weights(np.random.default_rng(0), 24, 6)
    layer, kind = (lru, "lru") if name == "LRU" else (S4D(6, 8).kernel, None)
    u = slow_inputs(8, 20, 6)
    trace = HankelTrace(1)
    options = CutOptions(kind=kind)
    trace.record(1, layer, options, data=Calibration.of_inputs({"model": u}))
    (record,) = trace.records
    expected = real_root(layer, kind, np.delete(u, [3, 7], axis=0))  # those held out
    assert record.data_hsv is not None
    # A square root halves the digits.
    np.testing.assert_allclose(record.data_hsv, expected, rtol=0, atol=1e-6 * expected.max())
    plain = HankelTrace(1)
    plain.record(1, layer, options)
    np.testing.assert_array_equal(record.hsv, plain.records[0].hsv)
    assert plain.records[0].data_hsv is None


def test_values_by_white_noise_tend_to_hankel_singular_values() -> None:
    errors: dict[str, list[float]] = {}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        weights = lru_weights(rng, 8, 3, 3, r_min=0.2, r_max=0.7)
        torch.manual_seed(seed)
        both = s5(True, False, 6).seq
        with torch.no_grad():  # no memory beyond some steps
            both.Lambda.real.clamp_(max=-40.0)
        for name, layer, kind in (("LRU", weights, "lru"), ("both directions", both, None)):
            width = read_system(layer, kind=kind).inputs
            for length in (200, 3200):
                data = Calibration.of_inputs({"model": rng.normal(size=(16, length, width))})
                trace = HankelTrace(1)
                trace.record(1, layer, CutOptions(kind=kind), data=data)
                (record,) = trace.records
                apart = np.abs(record.data_hsv - record.hsv).max() / record.hsv[0]
                errors.setdefault(f"{name} {length}", []).append(float(apart))
    for name in ("LRU", "both directions"):
        few, many = (np.mean(errors[f"{name} {length}"]) for length in (200, 3200))
        assert few < 4.0 / np.sqrt(12 * 200)
        assert many < 4.0 / np.sqrt(12 * 3200)
        assert many < 0.5 * few  # a quarter, by the law of large numbers


def test_layers_without_values_by_data_have_none() -> None:
    oscillators = linoss_weights(n=4)
    width = oscillators["D"].shape[0]
    data = Calibration.of_inputs({"model": slow_inputs(8, 20, width)})
    trace = HankelTrace(1)
    trace.record(1, oscillators, CutOptions(kind=LinOSS()), data=data)
    assert trace.records[0].data_hsv is None


def test_layers_that_are_not_diagonal_have_values_by_data() -> None:
    torch.manual_seed(0)
    kernel = SSMKernelDPLR(6, 8)
    kernel(20)
    trace = HankelTrace(1)
    trace.record(1, kernel, data=Calibration.of_inputs({"model": slow_inputs(8, 20, 6)}))
    (record,) = trace.records
    assert record.data_hsv.shape == record.hsv.shape == (6, 8)


def test_a_layer_alone_is_recorded_by_its_only_record() -> None:
    layer, inputs = stack().first, slow_inputs(8, 20, 3)
    trace = HankelTrace(1)
    for step, name in enumerate(("model", "encoder.0")):
        trace.record(step, layer, data=Calibration.of_inputs({name: inputs}))
    one, other = trace.records
    assert one.data_hsv is not None
    assert np.array_equal(one.data_hsv, other.data_hsv)


def test_data_of_another_model_leave_no_record() -> None:
    trace = HankelTrace(1)
    other = Calibration.of_inputs({"first": slow_inputs(8, 20, 3)})
    with pytest.raises(ShapeError, match="expected one of the name `second`"):
        trace.record(1, stack(), data=other)
    with pytest.raises(ArgumentError, match="`data` is"):
        trace.record(1, stack(), data=slow_inputs(8, 20, 3))  # type: ignore[arg-type]
    assert trace.records == []
    both = Calibration.of_inputs({name: slow_inputs(8, 20, 3) for name in ("first", "second")})
    trace.record(1, stack())
    trace.record(1, stack(), data=both)  # takes the place of what was recorded without
    assert [record.data_hsv is None for record in trace.records] == [False, False]


def test_a_run_with_data_records_their_values_at_attempts() -> None:
    model, batches = model_and_batches(count=4, size=8)
    written: dict[tuple[str, int], float] = {}

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written[tag, step] = value

    trace = HankelTrace(2)
    reducer = InTrainingReducer(
        ReductionSchedule.at(3, 4),
        FixedOrder(20),
        gate=0.9,  # the second attempt calibrates and cuts nothing
        data=lambda model: calibrate(model, batches),
        trace=trace,
    )
    reducer.log_to(Writer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        trained_with(reducer, model, batches, steps=6)
    of_layer = trace.of_layer("second.seq")
    found = {record.step: record.data_hsv for record in of_layer}
    assert [*found] == [2, 3, 4, 6]
    assert [step for step, values in found.items() if values is not None] == [3, 4]
    assert [record.shares.size for record in of_layer] == [24, 24, 20, 20]
    values = found[3]
    assert values is not None
    assert written["ssmreduce/second.seq/data_hsv_largest", 3] == values.max()
    assert ("ssmreduce/second.seq/data_hsv_largest", 2) not in written
    again = InTrainingReducer(
        reducer.schedule, reducer.order, gate=0.9, data=reducer.data, trace=HankelTrace(2)
    )
    again.load_state_dict(json.loads(json.dumps(reducer.state_dict())))
    assert again.trace is not None
    assert again.trace.to_dict() == trace.to_dict()
    broken = json.loads(json.dumps(reducer.state_dict()))
    broken["trace"]["records"][2]["data_hsv"][0] = -1.0
    with pytest.raises(ShapeError, match=r'"data_hsv"\]` is not sorted'):
        again.load_state_dict(broken)


def test_a_long_trace_keeps_values_by_data() -> None:
    values = np.ones(3)
    records = [
        HankelRecord(step, "layer", values, values, values if step in (30, 170) else None)
        for step in range(2000)
    ]
    kept = thinned(records, 1)
    assert len(kept) <= 200
    assert [record.step for record in kept if record.data_hsv is not None] == [30, 170]
    everywhere = [HankelRecord(step, "layer", values, values, values) for step in range(2000)]
    assert [r.step for r in thinned(everywhere, 1)] == [
        r.step for r in thinned([dataclasses.replace(r, data_hsv=None) for r in everywhere], 1)
    ]


def test_the_picture_tells_values_by_data_apart() -> None:
    trace = trace_of([4.0, 2.0], [4.0, 2.0], [4.0, 2.0])
    first = dataclasses.replace(trace.records[0], data_hsv=np.array([8.0, 1.0]))
    last = dataclasses.replace(trace.records[2], data_hsv=np.array([7.0, 0.5]))
    trace.records[0], trace.records[2] = first, last
    trace.records.append(dataclasses.replace(trace.records[1], layer="other"))
    axes = trace.plot()
    assert axes.shape == (2, 3)
    np.testing.assert_array_equal(mapped(axes[0, 1]), [[8.0, 7.0], [1.0, 0.5]])
    assert axes[1, 1].texts[0].get_text() == "no values by data"
    assert [row[0].get_title() for row in axes] == ["layer", "other"]
    names = [each.get_ylabel() for each in axes[0, 0].figure.axes[6:]]
    assert sorted(set(names)) == ["Hankel singular value", "singular value by data"]
    with pytest.raises(ShapeError, match="`data_hsv` has shape"):
        dataclasses.replace(first, data_hsv=np.ones(3))


# --- What becomes of it


def test_json_and_back() -> None:
    torch.manual_seed(3)
    trace = HankelTrace(2, share=0.8, horizon=50)
    trace.record(2, torch.nn.Sequential(s5(False, False, 6), S4D(2, 8)))
    back = HankelTrace.from_dict(json.loads(json.dumps(trace.to_dict(), allow_nan=False)))
    assert (back.every, back.share, back.horizon) == (2, 0.8, 50)
    assert fingerprint([vars(r) for r in back.records]) == fingerprint(
        [vars(r) for r in trace.records]
    )


def mapped(axes: Any) -> Any:
    """Values of the heat map, NaN where there is no state."""
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


def test_all_values_make_up_the_whole_sum() -> None:
    values = np.sort(np.random.default_rng(3).random((40, 64)))[:, ::-1]
    trace = trace_of(*values, share=1.0)
    (kept,) = [line for line in trace.plot()[0, 0].lines if line.get_label() == "100 % of the sum"]
    assert np.max(kept.get_ydata()) <= 64.5  # between the last value and nothing


def test_the_picture() -> None:
    axes = trace_of([1.0, 5.0, 9.0], [9.0, 5.0, 3.0], [9.0, 6.0, 3.0], [4.0, 2.0]).plot()
    assert axes.shape == (1, 2)
    above, agreement = axes[0]
    assert above.get_title() == "layer"
    nan = np.nan
    table = [[9.0, 9.0, 9.0, 4.0], [5.0, 5.0, 6.0, 2.0], [1.0, 3.0, 3.0, nan]]
    np.testing.assert_array_equal(mapped(above), table)
    # 14 of 15 are less than 96 %, 14 of 17 and 15 of 18 less than 90 %.
    (kept,) = [line for line in above.lines if line.get_label() == "90 % of the sum"]
    assert kept.get_ydata().tolist() == [2.5, 3.5, 3.5, 2.5]
    assert [line.get_label() for line in agreement.lines][:2] == [
        "same states kept (overlap)",
        "same order (rank correlation)",
    ]
    two = HankelTrace(1)
    two.record(1, stack())
    assert two.plot().shape == (2, 2)
    assert HankelTrace(1).plot()[0, 0].texts[0].get_text() == "nothing was recorded"


def steps_of_cuts(axes: Any) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_color() == "white"][1:]


def test_the_picture_marks_cuts_at_their_steps() -> None:
    trace = trace_of(*[[9.0, 5.0, 3.0]] * 3, *[[4.0, 2.0]] * 37)
    cut = dataclasses.replace(good_calls.event(), step=2, layer="layer", old_order=3, new_order=2)
    other = dataclasses.replace(cut, layer="other")
    above = trace.plot([cut, other])[0, 0]
    assert steps_of_cuts(above) == [2]
    assert [text.get_text() for text in above.texts] == ["3 → 2"]
    assert above.texts[0].xy == (2, 1.0)
    above = trace.plot([dataclasses.replace(cut, rolled_back=20)])[0, 0]
    assert steps_of_cuts(above) == [2, 20]
    assert [text.get_text() for text in above.texts] == ["3 → 2", "undone"]
    with pytest.raises(ArgumentError, match="`events` is"):
        trace.plot(["cut"])  # type: ignore[list-item]


def test_a_trace_whose_step_went_back() -> None:
    trace = trace_of([9.0, 5.0], [8.0, 4.0], [7.0, 3.0])
    trace.records.append(dataclasses.replace(trace.records[0], step=1))
    np.testing.assert_array_equal(mapped(trace.plot()[0, 0]), [[9.0, 9.0, 7.0], [5.0, 5.0, 3.0]])


def test_a_layer_without_response() -> None:
    layer = stack().first
    silent = eqx.tree_at(lambda m: (m.C_re, m.C_im), layer, (0.0 * layer.C_re, 0.0 * layer.C_im))
    trace = HankelTrace(1)
    trace.record(1, silent)
    trace.record(2, silent)
    assert not np.any(trace.records[0].shares)
    trace.plot()[0, 0].figure.canvas.draw()
    trace.record(3, layer)
    assert trace.settled("model") is None
    trace.plot()[0, 0].figure.canvas.draw()


def test_scores_of_oscillators_are_not_called_hankel_singular_values() -> None:
    trace = HankelTrace(1)
    trace.record(1, linoss_weights(n=4), options=CutOptions(kind=LinOSS()))
    trace.record(2, linoss_weights(n=4), options=CutOptions(kind=LinOSS()))
    again = HankelTrace.from_dict(json.loads(json.dumps(trace.to_dict())))
    for each in (trace, again):
        assert [record.ranked_by for record in each.records] == ["score of the state"] * 2
        figure = each.plot()[0, 0].figure
        labels = [axes.get_ylabel() for axes in figure.axes]
        assert "score of the state" in labels
        assert "Hankel singular value" not in labels
