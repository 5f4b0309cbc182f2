"""Cuts that know their data: candidates of each kind of layer, calibration, models of PyTorch."""

from __future__ import annotations

import copy
import io
import json
import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from LRU_pytorch import LRU
from s5 import S5
from samples import linoss_weights, lru_weights, slow_inputs
from torch import nn
from torch_modules import S4D, SSMKernelDiag, SSMKernelDPLR, hippo_legs
from torch_samples import cross_entropy, model_and_batches, trained_with

from ssmreduce import (
    Calibration,
    CutOptions,
    ErrorBound,
    FixedOrder,
    HankelMass,
    HankelTrace,
    InTrainingReducer,
    MeasuredError,
    ReductionSchedule,
    RollbackPolicy,
    TotalBudget,
    calibrate,
    observability_gramian,
    read_system,
    reduce_layer,
    reduce_model,
    simulate,
)
from ssmreduce.errors import (
    ArgumentError,
    CalibrationWarning,
    NoConvergenceError,
    NonFiniteError,
    OrderError,
    ShapeError,
    SSMReduceError,
    UnreachableToleranceError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks import torch_distributed
from ssmreduce.frameworks.torch import TorchFramework
from ssmreduce.frameworks.torch_recording import _Call, _Seen
from ssmreduce.gramians.sequences import feedthrough, output, output_error
from ssmreduce.layers.cut import Candidates
from ssmreduce.layers.linoss import LinOSS
from ssmreduce.models import recorded_weights
from ssmreduce.models.data_cut import _chosen, planned_with_data
from ssmreduce.models.layer_records import LayerRecord
from ssmreduce.models.search import search
from ssmreduce.training import recorder

# Most of these models learned nothing.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the model is at chance:ssmreduce.errors.CalibrationWarning"
)

Array = np.ndarray


def lru() -> dict[str, Array]:
    return lru_weights(np.random.default_rng(0), 24, 6)


LAYERS: dict[str, tuple[Any, bool]] = {
    "S5": (lambda: S5(6, 24).seq, False),
    "S5 in both directions": (lambda: S5(6, 24, bidir=True).seq, True),
    "S4D": (lambda: S4D(6, 24).kernel, False),
    "S4D with options": (lambda: SSMKernelDiag(6, 24), False),
    "S4": (lambda: SSMKernelDPLR(6, 24), False),
    "LRU": (lru, False),
}
"""A layer of each kind, and whether it reads its sequence in both directions."""

DIAGONAL = [name for name in LAYERS if name != "S4"]
"""Layers of which a selection keeps rows of the weights."""

METHODS = {
    "white": "balanced truncation",
    "white refit": "balanced truncation with refit",
    "balanced": "data-driven balanced truncation with refit",
    "selected": "selection with refit",
}


def data(count: int = 64, steps: int = 60, seed: int = 0) -> Calibration:
    return Calibration.of_inputs({"model": slow_inputs(count, steps, 6, seed)})


def kind_of(name: str) -> str | None:
    return "lru" if name == "LRU" else None


# --- Candidates


@pytest.mark.parametrize("name", LAYERS)
def test_data_say_more_than_white_noise(name):
    make, both = LAYERS[name]
    fresh, errors = slow_inputs(50, 60, 6, seed=9), {}
    for method, words in METHODS.items():
        torch.manual_seed(0)
        layer = make()
        before = read_system(layer, kind=kind_of(name))
        direct = feedthrough(before.to_host(), fresh, both_directions=both)
        wanted = output(before, fresh, both_directions=both) - direct
        result = reduce_layer(
            layer, 4, kind=kind_of(name), data=data(), options=CutOptions(method=method)
        )
        assert result.new_order in (3, 4)  # an upper limit
        assert result.reduction.method == words
        assert (result.error_bound is not None) == (method == "white")
        after = read_system(result.layer, kind=kind_of(name))
        found = output(after, fresh, both_directions=both) - direct
        errors[method] = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
        # Sixteen that were held out say what fifty fresh ones of the same process lose.
        assert result.cut.output_error == pytest.approx(errors[method], rel=0.25)
    assert errors["white refit"] < errors["white"]
    assert min(errors["balanced"], errors["selected"]) < 0.8 * errors["white"]


@pytest.mark.parametrize("name", LAYERS)
def test_the_best_on_what_was_held_out_is_taken(name):
    torch.manual_seed(0)
    result = reduce_layer(LAYERS[name][0](), 4, kind=kind_of(name), data=data())
    choice = result.choice
    assert choice is not None
    assert choice.by == "output error"
    assert {*choice.values} == {*METHODS}
    assert choice.values[choice.method] == min(choice.values.values())
    assert result.cut.output_error == min(choice.values.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_with_the_same_weights_becomes_the_same(name, method):
    torch.manual_seed(0)
    layer = LAYERS[name][0]()
    options = CutOptions(method=method)
    result = reduce_layer(copy.deepcopy(layer), 4, kind=kind_of(name), data=data(), options=options)

    class Storage:
        eps = float(np.finfo(np.float64).eps)

        @staticmethod
        def rounded(values):
            return dict(values)

    followed = result.cut.follow(result.weights, Storage())
    for key, value in result.new_weights.items():
        size = np.abs(value).max()
        np.testing.assert_allclose(followed.new_weights[key], value, atol=1e-5 * size, err_msg=key)


@pytest.mark.parametrize("name", DIAGONAL)
def test_a_selection_keeps_rows_of_the_weights_and_of_their_moments(name):
    torch.manual_seed(0)
    layer = LAYERS[name][0]()
    options = CutOptions(method="selected")
    cut = reduce_layer(layer, 4, kind=kind_of(name), data=data(), options=options).cut
    # Moments that number the entries tell which ones are kept.
    numbered = {
        key: np.arange(value.size, dtype=float).reshape(value.shape)
        for key, value in cut.weights.items()
    }
    kept = cut.carry(numbered, squared=False)
    for key in cut.kind.poles:
        moved = cut.weights[key].ravel()[kept[key].astype(int)]
        np.testing.assert_allclose(moved, cut.new_weights[key], rtol=1e-6)
    assert {key: value.shape for key, value in kept.items()} == {
        key: value.shape for key, value in cut.new_weights.items()
    }
    # A gradient by the weights of a state that is s times as large is that before over s, and times s.
    for power, squared in ((1.0, False), (2.0, True)):
        (B, C), (new_B, new_C) = (
            cut.kind.matrices(values) for values in (numbered, cut.carry(numbered, squared=squared))
        )
        sizes = cut.sizes**power
        if cut.kind.stores_input:
            B = np.take_along_axis(B, cut.kept[..., :, None], axis=-2)
            np.testing.assert_allclose(new_B * sizes[..., :, None], B, rtol=1e-12)
        C = np.take_along_axis(C, cut.kept[..., None, :], axis=-1)
        np.testing.assert_allclose(new_C / sizes[..., None, :], C, rtol=1e-12)


@pytest.mark.parametrize("name", ["S4 that was cut, and run since", "S5 with a real input matrix"])
def test_modes_are_selected_where_moments_of_matrices_have_no_image(name):
    torch.manual_seed(0)
    kernel = reduce_layer(SSMKernelDPLR(6, 24), 10).layer
    kernel(40)
    rng = np.random.default_rng(0)
    weights = {"A": rng.normal(size=(12, 2)), "log_dt": rng.uniform(-3, -1, 12)}
    weights |= {
        "B": rng.normal(size=(12, 6)),
        "C": rng.normal(size=(6, 12, 2)),
        "D": np.zeros((6, 6)),
    }
    layer, kind = (kernel, None) if name.startswith("S4") else (weights, "s5_real_input")
    before = read_system(layer, kind=kind).poles()
    options = CutOptions(method="selected")
    result = reduce_layer(layer, 4, kind=kind, data=data(), options=options)
    assert result.new_order == 4
    assert result.cut.output_error < 0.4
    kept = np.take_along_axis(before, result.cut.kept, axis=-1)
    np.testing.assert_allclose(read_system(result.layer, kind=kind).poles(), kept, rtol=1e-5)


def test_a_selection_brings_output_weights_back_to_their_size():
    weights = lru_weights(np.random.default_rng(0), 32, 3, r_min=0.9, r_max=0.999)
    options = CutOptions(method="selected")
    calibration = Calibration.of_inputs(
        {"model": np.random.default_rng(1).normal(size=(64, 40, 3))}
    )
    cut = reduce_layer(weights, 3, kind="lru", data=calibration, options=options).cut

    def sizes(system):
        b = np.linalg.norm(system.B, axis=1) / np.sqrt(1.0 - np.abs(system.eigenvalues) ** 2)
        c = np.linalg.norm(system.C, axis=0)
        return b / c, np.exp(np.average(np.log(c), weights=b * c))

    assert np.ptp(np.log(cut.sizes)) > 0.1
    ratio, usual = sizes(cut.reduction.system)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    np.testing.assert_allclose(usual, sizes(cut.reduction.original)[1], rtol=1e-9)


@pytest.mark.parametrize("name", DIAGONAL)
def test_a_stream_goes_on_after_a_selection(name):
    torch.manual_seed(0)
    options = CutOptions(method="selected")
    result = reduce_layer(LAYERS[name][0](), 4, kind=kind_of(name), data=data(), options=options)
    shape = result.cut.state_shape
    state = np.random.default_rng(0).normal(size=shape) + 1j
    kept = np.take_along_axis(state, result.cut.kept, axis=-1)
    np.testing.assert_allclose(result.reduce_state(state), kept * result.cut.sizes, rtol=1e-12)
    assert np.all(result.cut.sizes == 1.0) == (not result.cut.kind.stores_input)


def test_a_stable_layer_stays_stable_whatever_the_data_are():
    rng = np.random.default_rng(0)
    for seed in range(20):
        weights = lru_weights(np.random.default_rng(seed), 16, 3, r_min=0.9, r_max=0.999)
        mixed = rng.normal(size=(20, 1, 3)) * np.exp(rng.normal(size=(20, 30, 3)))
        calibration = Calibration.of_inputs({"model": mixed})
        result = reduce_layer(
            weights, 5, kind="lru", data=calibration, options=CutOptions(method="balanced")
        )
        assert result.reduction.system.is_stable()


def test_poles_outside_of_the_circle_do_not_stop_a_cut():
    torch.manual_seed(0)
    layer = S5(6, 24).seq
    with torch.no_grad():
        layer.Lambda[3] = 0.05 + 2j  # |λ| a little above 1
    assert not read_system(layer).is_stable()
    result = reduce_layer(layer, 6, data=data())
    assert result.new_order == 6
    assert result.reduction.horizon == 60
    assert result.error_bound is None


@pytest.mark.filterwarnings("ignore:.*nothing is cut:UserWarning")
@pytest.mark.parametrize("order", [24, 30, MeasuredError(1e-9)])
@pytest.mark.parametrize("name", LAYERS)
def test_full_order_changes_nothing(name, order):
    torch.manual_seed(0)
    layer = LAYERS[name][0]()
    before = copy.deepcopy(dict(layer if name == "LRU" else layer.named_parameters()))
    result = reduce_layer(layer, order, kind=kind_of(name), data=data())
    assert result.choice is None
    assert result.new_order == result.old_order
    assert result.layer is layer
    for key, value in dict(layer if name == "LRU" else layer.named_parameters()).items():
        np.testing.assert_array_equal(np.asarray(value.data), np.asarray(before[key].data))


def test_behind_a_cut_every_batch_is_run_again():
    """The cut shows in none of the first and last batch."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (LRU(4, 4, 16, rmin=0.5, rmax=0.95) for _ in range(2))

        def forward(self, batch):
            inputs, gate = batch
            return self.second(inputs + gate * self.first(inputs))

    def gates(model, batches):
        given = []
        hook = model.second.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        with torch.no_grad():
            for batch in batches:
                model(batch)
        hook.remove()
        return torch.cat(given).detach().numpy()

    torch.manual_seed(0)
    model = Gated()
    batches = [(torch.randn(6, 30, 4), 0.0 if k in (0, 5) else 3.0) for k in range(6)]
    data = calibrate(model, batches, loss=lambda own, batch: own(batch).square().mean())
    orders, options = {"first": 2, "second": 6}, CutOptions(method="selected")
    alone = copy.deepcopy(model)
    part = reduce_model(model, orders, data=data, options=options).report["second"]
    reduce_model(alone, {"first": 2}, data=data, options=options)
    uncut = data.layers["second"]
    targets = output(read_system(alone.second), uncut.inputs)
    held_out = replace(uncut, inputs=gates(alone, batches)).data(targets).held_out
    error = output_error(read_system(model.second), held_out)
    assert part.output_error == pytest.approx(error, rel=1e-4)


def test_an_order_rule_chooses_as_without_data():
    plain = reduce_layer(lru(), HankelMass(0.9), kind="lru")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        cut = reduce_layer(lru(), HankelMass(0.9), kind="lru", data=data())
    assert cut.new_order == plain.new_order


@pytest.mark.parametrize("relative", [0.3, 0.05])
@pytest.mark.parametrize("name", ["LRU", "S5", "S5 in both directions"])
@pytest.mark.parametrize("method", ["best", "balanced"])
def test_a_measured_error_is_that_of_held_out_outputs(name, relative, method):
    options = CutOptions(method=method)

    def cut(order):
        torch.manual_seed(0)
        layer = LAYERS[name][0]()
        before = read_system(layer, kind=kind_of(name))
        result = reduce_layer(layer, order, kind=kind_of(name), data=data(), options=options)
        return result, held_out_error(before, read_system(result.layer, kind=kind_of(name)), name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        result, error = cut(MeasuredError(relative))
        assert error <= relative * (1 + 1e-5)  # in float32 of the layer
        assert error == pytest.approx(result.cut.output_error, rel=1e-4)
        _, more = cut(result.new_order - 1)
    assert more > relative


def held_out_error(before, after, name):
    """Error of outputs on every fourth sequence, by simulation, over what is not feedthrough."""
    u = slow_inputs(64, 60, 6)[3::4]
    both = LAYERS[name][1]
    lost = total = 0.0
    for sequence in u:
        wanted, found = (both_ways(system, sequence, both) for system in (before, after))
        rest = wanted - feedthrough(before, sequence[None], both_directions=both)[0]
        lost, total = lost + np.sum((wanted - found) ** 2), total + np.sum(rest**2)
    return np.sqrt(lost / total)


def both_ways(system, sequence, both):
    if not both:
        return simulate(system, sequence)
    forth, back = (
        np.split(simulate(system, sequence), 2, axis=1)[0],
        simulate(system, sequence[::-1]),
    )
    return forth + np.split(back, 2, axis=1)[1][::-1]


def test_a_measured_error_in_a_model_holds_for_every_layer():
    model, batches = model_and_batches(count=4)
    calibration = calibrate(model, batches)
    reducer = InTrainingReducer(
        ReductionSchedule.at(1), MeasuredError(0.3), data=lambda model: calibration
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        reports = [reduce_model(copy.deepcopy(model), MeasuredError(0.3), data=calibration).report]
        reducer.step(1, model, torch.optim.Adam(model.parameters()))
    reports.append(reducer.last_cut)
    for report in reports:
        assert [part.cut.output_error <= 0.3 for part in report.values()] == [True, True]
    orders = [[part.new_order for part in report.values()] for report in reports]
    assert orders[0] == orders[1]


def test_a_measured_error_stops_at_what_the_data_excite():
    pulse = np.zeros((8, 5, 6))
    pulse[:, 0, 0] = 1.0
    short = Calibration.of_inputs({"model": pulse})
    options = CutOptions(method="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        cut = reduce_layer(lru(), MeasuredError(0.1), kind="lru", data=short, options=options).cut
    assert cut.new_order <= 3
    assert cut.output_error <= 0.1


def test_a_budget_is_shared_out_as_without_data():
    model, batches = model_and_batches(count=4)
    calibration = calibrate(model, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        plain, own = (
            reduce_model(copy.deepcopy(model), TotalBudget(20), data=each).report.totals()
            for each in (None, calibration)
        )
    assert plain[1] == own[1] == 20
    with torch.no_grad():
        model.second.seq.Lambda[3] = 0.05 + 2j  # |λ| a little above 1
    with pytest.raises(UnstableSystemError):
        reduce_model(copy.deepcopy(model), TotalBudget(20))
    report = reduce_model(model, TotalBudget(20), data=calibrate(model, batches)).report
    assert report.totals()[1] <= 20


def test_a_bound_is_promised_by_the_white_cut_alone():
    result = reduce_layer(lru(), ErrorBound(relative=0.5), kind="lru", data=data())
    assert result.reduction.method == "balanced truncation"
    assert result.error_bound is not None
    options = CutOptions(method="balanced")
    with pytest.raises(ArgumentError, match="`method` is 'balanced'"):
        reduce_layer(lru(), ErrorBound(relative=0.5), kind="lru", data=data(), options=options)


def test_a_white_cut_that_misses_its_bound_is_left_out(monkeypatch):
    def misses(self):
        raise UnreachableToleranceError("none keeps its bound")

    monkeypatch.setattr("ssmreduce.layers.lti_plan.LTIPlan.cut", misses)
    result = reduce_layer(lru(), 4, kind="lru", data=data(), options=CutOptions(multiple_of=2))
    assert "white" not in result.choice.values
    assert result.new_order == 4
    with pytest.raises(UnreachableToleranceError):
        reduce_layer(lru(), 4, kind="lru", data=data(), options=CutOptions(method="white"))


def test_a_method_that_knows_the_data_needs_some():
    options = CutOptions(method="selected")
    with pytest.raises(ArgumentError, match="`method` is 'selected', but there are no data"):
        reduce_model([lru()], 4, kind="lru", options=options)
    with pytest.raises(ArgumentError, match="`method` is 'selected', but there are no data"):
        reduce_layer(lru(), 4, kind="lru", options=options)


@pytest.mark.parametrize("order", ["8", 0.96, 0, [8, 8], {"0.seq": -1}])
def test_a_wrong_order_is_told_before_an_unstable_pole(order):
    model = torch.nn.Sequential(S5(6, 24))
    with torch.no_grad():
        model[0].seq.Lambda.real.fill_(1.0)
    with pytest.raises(UnstableSystemError):
        reduce_model(model, 4)
    with pytest.raises(OrderError, match="`order` is"):
        reduce_model(model, order)


def test_a_report_prints_what_only_a_cut_by_data_has():
    model, batches = model_and_batches()
    data = calibrate(model, batches, loss=cross_entropy)
    report = reduce_model(model, 6, data=data).report
    text, (part, *_) = str(report), report.values()
    assert text.splitlines()[0].split("  ")[0] == "layer"
    assert "method  output error  error bound  worst input: at least" in text
    assert f"loss on what was held out: {part.losses.before:.3g} before" in text
    assert f"method={part.method!r}, output_error=" in repr(part)
    values = json.loads(json.dumps(report.to_dict()))[next(iter(report))]
    assert values["method"] == part.choice.method
    assert values["output_error"] == part.output_error
    assert values["loss_before"] == part.losses.before
    assert values["loss_after"] == part.losses.after
    assert "<th>method</th>" in report._repr_html_()
    assert "<p>loss on what was held out" in report._repr_html_()
    assert "<td>6</td>" in part._repr_html_()


def test_multiples_hold_with_data():
    options = CutOptions(multiple_of=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        assert reduce_layer(lru(), 5, kind="lru", data=data(), options=options).new_order == 8


def recorded(kernel) -> tuple[Any, Array]:
    """The systems of a kernel of S4, and the inputs of `data` that are not held out."""
    return read_system(kernel).to_host(), slow_inputs(64, 60, 6)[np.arange(64) % 4 != 3]


def states_of(A: Array, B: Array, u: Array) -> Array:
    """States of one system with one input, (N, L, n), step by step."""
    x, found = np.zeros((len(u), len(A))), []
    for inputs in u.T:
        x = x @ A.T + inputs[:, None] * B[:, 0]
        found.append(x)
    return np.stack(found, axis=1)


def test_values_by_which_s4_is_balanced_are_those_of_brute_force():
    torch.manual_seed(0)
    kernel = SSMKernelDPLR(6, 24, rank=2)
    kernel(60)
    systems, u = recorded(kernel)
    record, (handle,) = data().layers["model"], search(kernel).meant
    found = handle.kind.data_scores(handle.weights, record.data(record.outputs(handle)))
    for k in range(6):
        x = states_of(systems[k].A, systems[k].B, u[..., k]).reshape(-1, 24)
        P, Q = x.T @ x / len(x), observability_gramian(systems[k])
        expected = np.sort(np.sqrt(np.linalg.eigvals(P @ Q).real.clip(0.0)))[::-1]
        np.testing.assert_allclose(found[k], expected, atol=1e-7 * expected[0])


@pytest.mark.parametrize("method", ["white refit", "balanced", "selected"])
def test_output_weights_of_s4_are_those_of_least_squares(method):
    torch.manual_seed(0)
    kernel = SSMKernelDPLR(6, 24, heads=2)
    kernel(60)
    systems, u = recorded(kernel)
    cut = reduce_layer(kernel, 4, data=data(), options=CutOptions(method=method)).cut
    new = cut.reduction.system
    for k in range(6):
        wanted = states_of(systems[k].A, systems[k].B, u[..., k]) @ systems[k].C.T
        h = np.zeros((len(u), u.shape[1] + 1, new.order), complex)
        for t in range(u.shape[1]):
            h[:, t] = new.eigenvalues[k] * h[:, t - 1] + u[:, t, k, None] * new.B[k, :, 0]
        rows = np.concatenate([h[:, :-1].real, -h[:, :-1].imag], axis=-1).reshape(-1, 2 * new.order)
        y = wanted.reshape(len(rows), 2)
        own = rows @ np.concatenate([new.C[k].real, new.C[k].imag], axis=1).T
        best = rows @ np.linalg.lstsq(rows, y, rcond=None)[0]
        assert np.linalg.norm(y - own) <= np.linalg.norm(y - best) + 1e-3 * np.linalg.norm(y)


def test_a_selection_of_s4_keeps_modes_and_their_states():
    torch.manual_seed(0)
    kernel = SSMKernelDPLR(6, 24)
    kernel(60)
    systems, u = recorded(kernel)
    result = reduce_layer(kernel, 4, data=data(), options=CutOptions(method="selected"))
    assert result.reduction.method == METHODS["selected"]
    new = result.cut.reduction.system
    for k in range(6):
        apart = np.abs(systems[k].poles()[:, None] - new.poles()[k]).min(axis=0)
        assert apart.max() < 1e-6
    x = np.stack([states_of(systems[k].A, systems[k].B, u[:1, :, k])[0, -1] for k in range(6)])
    h = np.zeros((6, new.order), complex)
    for inputs in u[0]:
        h = new.eigenvalues * h + inputs[:, None] * new.B[..., 0]
    reduced = result.reduce_state(x[:, :12] + 1j * x[:, 12:])
    np.testing.assert_allclose(reduced, h, atol=1e-5 * np.abs(h).max())


def test_modes_of_hippo_are_not_told_apart():
    torch.manual_seed(0)
    kernel = hippo_legs(SSMKernelDPLR(6, 64))
    options = CutOptions(method="selected")
    with pytest.raises(NoConvergenceError, match="does not tell its modes apart"):
        reduce_layer(kernel, 4, data=data(), options=options)
    assert {*reduce_layer(kernel, 4, data=data()).choice.values} == {*METHODS} - {"selected"}


def test_an_order_above_what_the_data_excite_is_refused():
    weights = lru()
    constant = np.zeros((8, 60, 6))
    constant[:, 0, 0] = 1.0  # one pulse at one time: each of 60 steps adds one direction
    short = Calibration.of_inputs({"model": constant[:, :5]})
    for method in ("best", "white refit", "balanced", "selected"):
        for order in (4, 8, HankelMass(0.8)):
            for rounding in ({}, {"multiple_of": 4}, {"power_of_two": True}):
                options = CutOptions(method=method, **rounding)
                if method == "best" and order not in (4, 8):
                    continue  # the white cut needs no data
                if order == 4 and not rounding:
                    continue  # a cut to at most 4 has 3
                said = r"`order` is [1-9]\d?, but .* excite 3 of 24 states; expected at most 3"
                with pytest.raises(ArgumentError, match=said):
                    reduce_layer(weights, order, kind="lru", data=short, options=options)
    options = CutOptions(method="white")
    assert reduce_layer(weights, 8, kind="lru", data=short, options=options).new_order == 8


@pytest.mark.parametrize("method", ["best", "white refit", "balanced", "selected"])
def test_an_order_that_is_rounded_up_above_what_the_data_excite_is_padded(method):
    pulse = np.zeros((8, 5, 6))
    pulse[:, 0, 0] = 1.0
    short = Calibration.of_inputs({"model": pulse})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        for rounding in ({"multiple_of": 8}, {"multiple_of": 4, "power_of_two": True}):
            options = CutOptions(method=method, **rounding)
            result = reduce_layer(lru(), 3, kind="lru", data=short, options=options)
            assert result.new_order == rounding["multiple_of"]
            if method == "best":
                assert {*result.choice.values} == {"white", "white refit", "balanced", "selected"}
            if method != "white":
                assert result.cut.output_error < 1e-3


def test_a_refit_of_s4_wants_as_many_states_excited():
    torch.manual_seed(0)
    kernel = SSMKernelDPLR(6, 24)
    kernel(60)
    pulse = np.zeros((8, 5, 6))
    pulse[:, 0] = 1.0
    short = Calibration.of_inputs({"model": pulse})
    for method in ("best", "white refit"):
        with pytest.raises(OrderError, match=r"`order` is 8, but .*excite 3 of"):
            reduce_layer(kernel, 8, data=short, options=CutOptions(method=method))


@pytest.mark.parametrize("order", [8, MeasuredError(0.1), HankelMass(0.9)])
@pytest.mark.parametrize("rest", [slice(None), slice(3, None, 4), np.arange(16) % 4 != 3])
def test_data_that_excite_nothing_are_refused(order, rest):
    u = slow_inputs(16, 20, 6)
    u[rest] = 0.0
    weights = lru()
    still = Calibration.of_inputs({"model": u})
    with pytest.raises(ArgumentError, match="excite 0 of 24 states of layer `model`"):
        reduce_layer(weights, order, kind="lru", data=still)
    nothing = still.to_arrays() | {"model/held_out": np.zeros(16, bool)}
    with pytest.raises(ArgumentError, match="excite 0 of 24 states"):
        reduce_model(weights, order, kind="lru", data=Calibration.from_arrays(nothing))
    for name, value in lru().items():
        np.testing.assert_array_equal(weights[name], value)


def test_few_sequences_are_said_to_be_few():
    few = Calibration.of_inputs({"model": slow_inputs(4, 5, 6)})
    with pytest.warns(CalibrationWarning, match=r"15 effective rows; expected 64"):
        reduce_layer(lru(), 8, kind="lru", data=few, options=CutOptions(method="white refit"))


# --- Calibrations of plain arrays


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        (np.zeros((4, 5)), None, "has shape"),
        (np.zeros((1, 5, 6)), None, "at least two"),
        (np.full((4, 5, 6), np.nan), None, "NaN"),
        (np.zeros((4, 5, 6)), np.ones((4, 4)), "expected \\(4, 5\\)"),
        (np.zeros((4, 5, 6)), -np.ones((4, 5)), "negative"),
        (np.zeros((4, 5, 6)), np.zeros((4, 5)), "zero"),
    ],
)
def test_inputs_that_are_no_sequences_are_refused(inputs, weights, message):
    given = None if weights is None else {"model": weights}
    with pytest.raises((ShapeError, NonFiniteError), match=message):
        Calibration.of_inputs({"model": inputs}, given)


def test_arrays_of_a_calibration_make_it_again():
    calibration = data()
    file = io.BytesIO()
    np.savez(file, **calibration.to_arrays())
    file.seek(0)
    loaded = Calibration.from_arrays(np.load(file, allow_pickle=False))
    assert str(loaded) == str(calibration)
    own = reduce_layer(lru(), 4, kind="lru", data=calibration)
    again = reduce_layer(lru(), 4, kind="lru", data=loaded)
    for name, value in own.new_weights.items():
        np.testing.assert_array_equal(again.new_weights[name], value)


def test_damaged_arrays_are_refused():
    arrays = data().to_arrays()
    with pytest.raises(ShapeError, match="lacks model/weights"):
        Calibration.from_arrays({k: v for k, v in arrays.items() if "weights" not in k})
    with pytest.raises(ShapeError, match="expected bools"):
        Calibration.from_arrays({**arrays, "model/held_out": np.ones(3)})
    with pytest.raises(ShapeError, match="lacks layers"):
        Calibration.from_arrays({})


def test_calibrations_of_several_processes_are_merged():
    first, second = data(seed=1), data(count=20, steps=40, seed=2)
    both = first.merged(second)
    record = both.layers["model"]
    assert record.inputs.shape == (84, 60, 6)
    np.testing.assert_array_equal(record.weights[64:, 40:], 0.0)
    assert reduce_layer(lru(), 4, kind="lru", data=both).new_order <= 4
    with pytest.raises(ShapeError, match="expected the same"):
        first.merged(Calibration.of_inputs({"other": slow_inputs(4, 5, 6)}))


# --- Recording in PyTorch


def everything(model):
    """Modes, values and gradients, and the state of the generator."""
    return (
        [module.training for module in model.modules()],
        [value.clone() for value in model.state_dict().values()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state(),
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


def same(first, second):
    return str(first) == str(second) and all(
        torch.equal(torch.nan_to_num(a, 7.0), torch.nan_to_num(b, 7.0))
        for one, other in zip(first[1:3], second[1:3], strict=True)
        for a, b in zip(one, other, strict=True)
        if a is not None
    )


@pytest.mark.parametrize("loss", [None, cross_entropy])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_is_as_before_it_was_recorded(loss, frozen):
    model, batches = model_and_batches()
    cross_entropy(model, batches[0]).backward()
    model.second.requires_grad_(not frozen)
    before = everything(model)
    found = calibrate(model, batches, loss=loss)
    assert same(everything(model), before)
    assert [*found.layers] == ["first.seq", "second.seq"]
    assert found.layers["first.seq"].inputs.shape == (128, 40, 6)
    assert found.layers["first.seq"].held_out.sum() == 32


@pytest.mark.parametrize("loss", [None, cross_entropy])
def test_a_model_is_as_before_when_recording_fails(loss):
    model, batches = model_and_batches()
    before = everything(model)

    def forward(model, batch):
        model(batch[0])
        raise RuntimeError("in the middle")

    arguments = {"forward": forward} if loss is None else {"loss": forward}
    with pytest.raises(RuntimeError, match="in the middle"):
        calibrate(model, batches, **arguments)
    assert same(everything(model), before)


def test_inputs_are_those_that_a_layer_is_given():
    model, batches = model_and_batches()
    seen = []
    hook = model.second.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = calibrate(model, batches)
    hook.remove()
    given = torch.cat(seen).detach().numpy()
    np.testing.assert_array_equal(found.layers["second.seq"].inputs, given)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_recomputed_outputs_are_those_of_the_layer(bidirectional):
    model, batches = model_and_batches(lambda: S5(6, 24, bidir=bidirectional))
    found = calibrate(model, batches).layers["first.seq"]
    with torch.no_grad():
        own = model.first(torch.tensor(found.inputs)).numpy()
    again = output(
        read_system(model.first), found.inputs.astype(float), both_directions=bidirectional
    )
    np.testing.assert_allclose(again, own, atol=1e-5 * np.abs(own).max())


def test_steps_count_by_what_the_loss_reads_of_them():
    model, batches = model_and_batches()
    found = calibrate(model, batches, loss=cross_entropy)
    last = found.layers["second.seq"].weights  # read at the last step alone
    np.testing.assert_allclose(last[:, -1], 40.0, rtol=1e-2)
    np.testing.assert_allclose(last[:, :-1], 1e-3, rtol=1e-6)
    assert np.all(calibrate(model, batches).layers["second.seq"].weights == 1.0 + 1e-3)
    # A layer before it counts earlier, as much as the second remembers.
    first = found.layers["first.seq"].weights
    assert np.all(first[:, -2] > 1e-3 * (1 + 1e-3))


def test_a_kernel_is_recorded_in_the_module_that_uses_it():
    model, batches = model_and_batches(lambda: S4D(6, 24), channels_first=True)
    seen = []
    hook = model.second.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    found = calibrate(model, batches, loss=cross_entropy)
    hook.remove()
    record = found.layers["second.kernel"]
    given = torch.cat(seen).detach().numpy()
    np.testing.assert_array_equal(record.inputs, np.swapaxes(given, 1, 2))
    np.testing.assert_allclose(record.weights[:, -1], 40.0, rtol=1e-2)


def test_calls_of_one_layer_add_up():
    torch.manual_seed(0)
    layer = S5(6, 24)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, inputs):
            return self.layer(torch.tanh(self.layer(inputs)))

    batches = [torch.tensor(slow_inputs(8, 20, 6, seed), dtype=torch.float32) for seed in range(4)]
    found = calibrate(Twice(), batches)
    assert found.layers["layer.seq"].inputs.shape == (64, 20, 6)
    assert found.layers["layer.seq"].held_out.sum() == 16


def test_batches_of_other_lengths_are_padded_and_masks_leave_steps_out():
    model, batches = model_and_batches(count=4)
    batches = [(inputs[:, : 40 - 5 * k], labels) for k, (inputs, labels) in enumerate(batches)]
    found = calibrate(model, batches, mask=lambda batch: torch.ones(batch[0].shape[:2]) > 0)
    weights = found.layers["first.seq"].weights
    assert weights.shape == (64, 40)
    np.testing.assert_array_equal(weights[16:32, 35:], 0.0)
    half = calibrate(
        model, batches, mask=lambda batch: np.arange(batch[0].shape[1]) % 2 * np.ones((16, 1)) > 0
    )
    np.testing.assert_array_equal(half.layers["first.seq"].weights[:, ::2], 0.0)
    with pytest.raises(ShapeError, match="`mask` returned shape"):
        calibrate(model, batches, mask=lambda batch: np.ones((2, 2), bool))


def test_a_compiled_model_is_recorded_and_cut():
    model, batches = model_and_batches()
    compiled = torch.compile(model, backend="eager")
    data = calibrate(compiled, batches, loss=cross_entropy)
    result = reduce_model(compiled, 6, data=data)
    assert {*result.report} == {"_orig_mod.first.seq", "_orig_mod.second.seq"}
    assert model.first.seq.Lambda.numel() == 6


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_recorded(autocast):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), S4D(6, 24))
    batches = [torch.randn(8, 9, 3) for _ in range(4)]

    def forward(model, batch):
        with torch.autocast("cpu", dtype=autocast):
            return model[1](model[0](batch).float().transpose(1, 2))

    found = calibrate(model, batches, forward=forward)
    assert found.layers["1.kernel"].inputs.dtype == np.float32


# --- Bad calls


def test_what_is_no_data_is_refused():
    model, batches = model_and_batches()
    with pytest.raises(ArgumentError, match="has 0 sequences"):
        calibrate(model, [])
    with pytest.raises(ArgumentError, match="`batches` is 3; expected batches"):
        calibrate(model, 3)
    for name in ("loss", "forward", "mask", "progress"):
        with pytest.raises(ArgumentError, match=f"`{name}` is 3; expected a function"):
            calibrate(model, batches, **{name: 3})
    with pytest.raises(ArgumentError, match="has 1 sequences"):
        calibrate(model, [batches[0][0][:1]])
    with pytest.raises(NonFiniteError, match=r"`first\.seq` is given NaN"):
        calibrate(model, [torch.full((4, 10, 3), torch.nan)])
    with pytest.raises(ShapeError, match="`loss` returned a tensor of shape"):
        calibrate(model, batches, loss=lambda model, batch: model(batch[0]))
    with pytest.raises(ShapeError, match=r"`loss` returned builtins\.NoneType"):
        calibrate(model, batches, loss=lambda model, batch: [model(batch[0]), None][1])
    with pytest.raises(UnsupportedLayerError, match=r"does not reach layer `second\.seq`"):
        calibrate(model, batches, forward=lambda model, batch: model.first(torch.ones(2, 5, 6)))
    with pytest.raises(UnsupportedLayerError, match="records nothing"):
        calibrate({"lru": lru()}, batches)


def test_a_layer_that_runs_otherwise_than_its_weights_say_is_refused():
    model, batches = model_and_batches()
    with pytest.raises(UnsupportedLayerError, match="something else than its weights say"):
        calibrate(
            model,
            batches,
            forward=lambda model, batch: model.first(batch[0] @ torch.ones(3, 6), 2.0),
        )


def test_a_calibration_of_another_model_is_refused():
    model, batches = model_and_batches()
    before = everything(model)
    other = Calibration.of_inputs({"first.seq": slow_inputs(8, 20, 6)})
    with pytest.raises(ShapeError, match=r"expected one of the name `second\.seq`"):
        reduce_model(model, 6, data=other)
    wide = Calibration.of_inputs(
        {name: slow_inputs(8, 20, 7) for name in ("first.seq", "second.seq")}
    )
    with pytest.raises(ShapeError, match="expected 6 channels"):
        reduce_model(model, 6, data=wide)
    with pytest.raises(SSMReduceError, match="`data`"):
        reduce_model(model, 6, data=batches)
    assert same(everything(model), before)


def saved(calibration):
    file = io.BytesIO()
    np.savez(file, **calibration.to_arrays())
    file.seek(0)
    return Calibration.from_arrays(np.load(file, allow_pickle=False))


@pytest.mark.parametrize("without_batches", [saved, Calibration.merged])
def test_a_calibration_of_another_model_of_the_same_shapes_gives_a_warning(without_batches):
    model, batches = model_and_batches()
    data = calibrate(model, batches)
    torch.manual_seed(1)
    other = type(model)(lambda: S5(6, 24))
    first = Calibration({"first.seq": data.layers["first.seq"]})
    first = first.with_layer_weights(data._layer_weights)
    unrelated = r"of layer `first\.seq` differs by 1\.[2-9]\d* times .*; expected at most 1\.2\."
    with pytest.warns(CalibrationWarning, match=unrelated):
        alone = reduce_layer(copy.deepcopy(other.first.seq), 6, data=first)
    with pytest.warns(CalibrationWarning, match="`others` may be a calibration of another model"):
        both = data.merged(calibrate(other, batches))
    assert len(both.layers["first.seq"].inputs) == 2 * len(data.layers["first.seq"].inputs)
    with pytest.warns(
        CalibrationWarning, match="`data` may be a calibration of another model: its"
    ):
        result = reduce_model(other, 6, data=without_batches(data))
    assert [part.new_order for part in (alone, *result.report.values())] == [6, 6, 6]


def train(model, batches, steps, optimizer=None):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2) if optimizer is None else optimizer
    for step in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, batches[step % len(batches)]).backward()
        optimizer.step()


def test_a_saved_calibration_serves_a_model_that_is_trained_on(monkeypatch):
    model, batches = model_and_batches()
    data = saved(calibrate(model, batches))
    train(model, batches, 30)
    result = reduce_model(copy.deepcopy(model), 6, data=data)
    assert [part.new_order for part in result.report.values()] == [6, 6]
    monkeypatch.setattr(recorded_weights, "_LIMIT", 0.0)
    with pytest.warns(CalibrationWarning, match="differs by 0"):  # the weights were compared
        reduce_model(model, 6, data=data)


def test_a_saved_calibration_serves_a_model_that_is_trained_on_and_cut():
    model, batches = model_and_batches()
    data = saved(calibrate(model, batches))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    train(model, batches, 30, optimizer)
    reduce_model(model, 12, optimizer=optimizer, data=data)
    train(model, batches, 30, optimizer)
    result = reduce_model(model, 6, data=data)
    assert [part.new_order for part in result.report.values()] == [6, 6]


def test_merged_keeps_recorded_weights_in_any_order():
    model, batches = model_and_batches()
    data = calibrate(model, batches)
    stored = {key: array for key, array in data.to_arrays().items() if "layer_weight" not in key}
    without = Calibration.from_arrays(stored)
    kept = {key for key in data.to_arrays() if "layer_weight" in key}
    for both in (data.merged(without), without.merged(data)):
        assert {key for key in both.to_arrays() if "layer_weight" in key} == kept != set()


def test_weights_that_single_precision_cannot_hold_are_not_recorded():
    model, batches = model_and_batches()
    data = calibrate(model, batches)
    huge = {"D": np.full(6, 1e39), "C": np.ones((6, 24)) + 0j}
    assert list(recorded_weights.in_single_precision(huge)) == ["C"]
    assert saved(data).to_arrays().keys() == data.to_arrays().keys()


@pytest.mark.parametrize("name", ["layer_weights", "a/layer_weight", "inputs/layer_weights"])
def test_names_of_layers_do_not_matter_to_what_is_stored(name):
    layers = Calibration.of_inputs({name: slow_inputs(8, 20, 6), "a": slow_inputs(8, 20, 6)}).layers
    weights = {name: {"B": np.ones(16)}, "a": {"B": np.zeros(16)}}
    arrays = Calibration(layers).with_layer_weights(weights).to_arrays()
    again = Calibration.from_arrays(arrays)
    assert list(again.layers) == [name, "a"]
    assert {key: array.tolist() for key, array in again.to_arrays().items()} == {
        key: array.tolist() for key, array in arrays.items()
    }


# --- Models


def disagreement(model, uncut, batches):
    with torch.no_grad():
        inputs = torch.cat([batch[0] for batch in batches])
        return float((model.eval()(inputs) - uncut.eval()(inputs)).square().mean())


def test_a_model_cut_by_data_computes_what_it_did_more_nearly():
    model, batches = model_and_batches()
    calibration = calibrate(model, batches)
    lost = {}
    for method in ("white", "best"):
        cut = copy.deepcopy(model)
        result = reduce_model(cut, 5, data=calibration, options=CutOptions(method=method))
        lost[method] = disagreement(cut, model, batches)
    assert lost["best"] < 0.5 * lost["white"]
    assert [part.choice.by for part in result.report.values()] == ["output error"] * 2


def test_later_layers_make_up_for_earlier_ones():
    model, batches = model_and_batches()
    calibration = calibrate(model, batches)
    apart = Calibration(calibration.layers)  # no batches: each layer is looked at by itself
    lost = []
    for each in (calibration, apart):
        cut = copy.deepcopy(model)
        reduce_model(cut, 5, data=each, options=CutOptions(method="white refit"))
        lost.append(disagreement(cut, model, batches))
    assert lost[0] < lost[1]


def test_a_loss_chooses_where_there_is_one():
    model, batches = model_and_batches()
    result = reduce_model(model, 5, data=calibrate(model, batches, loss=cross_entropy))
    for part in result.report.values():
        assert part.choice.by == "loss"
        assert 0.9 * part.choice.values[part.method] <= min(part.choice.values.values())


@pytest.mark.parametrize("method", ["white", "selected"])
def test_an_optimizer_and_an_average_follow(method):
    model, batches = model_and_batches()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        cross_entropy(model, batches[0]).backward()
        optimizer.step()
        average.update_parameters(model)

    for _ in range(3):
        step()
    calibration = calibrate(model, batches, loss=cross_entropy)
    reduce_model(
        model,
        5,
        optimizer=optimizer,
        followers=[average],
        data=calibration,
        options=CutOptions(method=method),
    )
    for parameter in model.parameters():
        for value in optimizer.state[parameter].values():
            assert value.ndim == 0 or value.shape == parameter.shape
    assert average.module.first.seq.Lambda.shape == model.first.seq.Lambda.shape
    # Three steps apart: both still compute nearly the same.
    assert disagreement(average.module, model, batches) < 1e-2
    model.train()
    step()


@pytest.mark.slow
def test_uniform_orders_hold_with_data():
    model, batches = model_and_batches()
    with torch.no_grad():
        model.second.seq.C[:, 4:] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        result = reduce_model(
            model,
            HankelMass(0.9),
            data=calibrate(model, batches),
            options=CutOptions(uniform=True),
        )
    assert len({part.new_order for part in result.report.values()}) == 1


def test_a_cut_that_fails_at_the_last_layer_changes_nothing():
    model, batches = model_and_batches()
    calibration = calibrate(model, batches)
    with torch.no_grad():
        model.second.seq.B[:] = torch.nan
    before = everything(model)
    with pytest.raises(SSMReduceError, match=r"second\.seq"):
        reduce_model(model, 5, data=calibration)
    assert same(everything(model), before)


# --- In training


def test_a_reducer_cuts_by_what_it_is_given_at_each_attempt():
    model, batches = model_and_batches()
    asked = []

    def data(model):
        asked.append(model.first.seq.Lambda.numel())
        return calibrate(model, batches, loss=cross_entropy)

    schedule = ReductionSchedule.at(2, 4)
    reducer = InTrainingReducer(schedule, FixedOrder(5), data=data, rollback=RollbackPolicy(0.5))
    reducer.report(1.0)
    trained_with(reducer, model, batches)
    assert asked == [24]
    reducer.report(1.0)
    assert [event.new_order for event in reducer.events] == [5, 5]
    assert all(part.choice.by == "loss" for part in reducer.last_cut.values())
    assert model.training


def test_a_reducer_cuts_a_model_whose_weights_have_left_the_recorded_ones():
    model, batches = model_and_batches()
    data = saved(calibrate(model, batches))
    with torch.no_grad():
        model.first.seq.C.mul_(-1.0)
    reducer = InTrainingReducer(ReductionSchedule.at(1), FixedOrder(5), data=lambda model: data)
    with pytest.warns(
        CalibrationWarning, match=r"its weight `C` of layer `first\.seq` differs by 2"
    ):
        reducer.step(1, model, torch.optim.AdamW(model.parameters(), 1e-3))
    assert [event.new_order for event in reducer.events] == [5, 5]


def test_data_that_fail_leave_model_and_reducer_as_they_were():
    model, batches = model_and_batches()

    def broken(model):
        calibrate(model, batches)
        raise RuntimeError("no such loader")

    reducer = InTrainingReducer(ReductionSchedule.at(1), FixedOrder(5), data=broken)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    before = everything(model)
    with pytest.raises(RuntimeError, match="no such loader"):
        reducer.step(1, model, optimizer)
    assert same(everything(model), before)
    assert reducer.due(1)
    empty = InTrainingReducer(
        ReductionSchedule.at(1), FixedOrder(5), data=lambda model: calibrate(model, [])
    )
    with pytest.warns(UserWarning, match="no cut after step 1.*has 0 sequences"):
        empty.step(1, model, optimizer)
    with pytest.raises(ArgumentError, match="`data` is"):
        InTrainingReducer(ReductionSchedule.at(1), data=batches)
    other = InTrainingReducer(ReductionSchedule.at(1), FixedOrder(5), data=lambda model: batches)
    with pytest.warns(UserWarning, match=r"`data\(model\)` is"):
        other.step(1, model, optimizer)


# --- What must not be mistaken


def test_a_calibration_from_before_other_weights_is_made_anew():
    model, batches = model_and_batches()
    old = calibrate(model, batches)
    with torch.no_grad():
        model.encoder.weight.copy_(3.0 * torch.randn(6, 3))
    lost = []
    for each in (old, calibrate(model, batches)):
        cut = copy.deepcopy(model)
        reduce_model(cut, 5, data=each)
        lost.append(disagreement(cut, model, batches))
    assert lost[0] == lost[1]


def test_batches_are_run_again_for_other_weights_alone():
    model, batches = model_and_batches()
    runs = []
    data = calibrate(model, batches, forward=lambda model, batch: runs.append(1) or model(batch[0]))
    assert len(runs) == len(batches)
    for weights, behind in ((1.0, 2), (1.01, len(batches))):
        runs.clear()
        with torch.no_grad():
            model.encoder.weight.mul_(weights)
        reduce_model(copy.deepcopy(model), 4, data=data)
        # For all layers, and for the second one behind the first that is cut.
        assert len(runs) == behind + len(batches)


@pytest.mark.parametrize(("order", "again"), [(4, 0), (MeasuredError(0.3), 1)])
def test_a_cut_that_fits_nothing_runs_no_batches_behind_others(order, again):
    model, batches = model_and_batches()
    runs = []
    data = calibrate(model, batches, forward=lambda model, batch: runs.append(1) or model(batch[0]))
    runs.clear()
    options = CutOptions(method="white")
    result = reduce_model(copy.deepcopy(model), order, data=data, options=options)
    # The first and the last say that the weights are those that were recorded.
    assert len(runs) == 2 + again * len(batches)
    for name, part in result.report.items():
        layer, own = model.get_submodule(name), Calibration({name: data.layers[name]})
        alone = reduce_layer(copy.deepcopy(layer), part.new_order, data=own, options=options)
        assert again or part.output_error == alone.output_error
        assert np.array_equal(part.new_weights["B"], alone.new_weights["B"])


class Looped(nn.Module):
    """A layer that is called twice, one that is called once, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = S5(6, 24), S5(6, 24), nn.Linear(6, 2)

    def forward(self, inputs):
        hidden = torch.tanh(self.first(torch.tanh(self.first(inputs))))
        return self.head(hidden + self.second(hidden))


@pytest.mark.parametrize("looped", [False, True])
def test_batches_run_again_no_further_than_to_the_last_layer(looped, monkeypatch):
    model, batches = model_and_batches()
    if looped:
        model = Looped()
        batches = [torch.tensor(slow_inputs(8, 20, 6, k), dtype=torch.float32) for k in range(4)]
    heads = []
    (model.head if looped else model.decoder).register_forward_hook(lambda *_: heads.append(1))
    data = calibrate(model, batches)
    heads.clear()
    short = reduce_model(copy.deepcopy(model), 4, data=data).report
    # Of a layer that is called twice one cannot tell which call is the last.
    assert bool(heads) == looped
    monkeypatch.setattr("ssmreduce.frameworks.torch_recording._Calls.ends", lambda self, *_: False)
    heads.clear()
    whole = reduce_model(copy.deepcopy(model), 4, data=data).report
    assert heads
    for name, part in short.items():
        for key, value in part.new_weights.items():
            np.testing.assert_array_equal(value, whole[name].new_weights[key])


class Router(nn.Module):
    """Keeps a part of its loss in a list, as routers do, which the loss reads and clears."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.kept = S5(6, 16), S5(6, 16), []

    def forward(self, inputs):
        hidden = torch.tanh(self.first(inputs))
        self.kept.append(hidden.square().mean())
        return self.second(hidden)


def test_a_run_that_ends_early_leaves_nothing_to_later_ones(monkeypatch):
    torch.manual_seed(0)
    model = Router()
    batches = [torch.tensor(slow_inputs(8, 20, 6, k), dtype=torch.float32) for k in range(4)]

    def loss(model, batch):
        value = (model(batch) - batch).square().mean() + sum(model.kept)
        model.kept.clear()
        return value

    data = calibrate(model, batches, loss=loss)
    short = reduce_model(copy.deepcopy(model), 4, data=data).report
    monkeypatch.setattr("ssmreduce.frameworks.torch_recording._Calls.ends", lambda self, *_: False)
    whole = reduce_model(copy.deepcopy(model), 4, data=data).report
    for name, part in short.items():
        assert part.choice.by == "loss"
        assert part.choice.values == whole[name].choice.values


def test_a_candidate_without_an_error_is_not_taken():
    cuts = {
        name: SimpleNamespace(output_error=error)
        for name, error in [("white", np.nan), ("balanced", 0.2), ("selected", 0.1)]
    }
    losses = {0.2: 1.0, 0.1: np.nan}
    chosen = _chosen(Candidates(None, cuts), lambda cut: losses[cut.output_error])
    assert (chosen.method, chosen.by) == ("balanced", "loss")
    cuts["selected"].output_error = 0.001  # far ahead: its loss need not be known
    chosen = _chosen(Candidates(None, cuts), lambda cut: losses[cut.output_error])
    assert (chosen.method, chosen.by) == ("selected", "output error")


@pytest.mark.parametrize("make", [lambda: S5(6, 24), lambda: S4D(6, 24)])
def test_changes_in_place_do_not_reach_what_was_recorded(make):
    torch.manual_seed(0)
    layer = make()
    is_kernel = isinstance(layer, S4D)

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, inputs):
            inputs = inputs.clone()
            out = self.layer(inputs)
            out.relu_()
            inputs += out
            return inputs

    batches = [torch.tensor(slow_inputs(8, 20, 6, k), dtype=torch.float32) for k in range(2)]
    batches = [each.transpose(1, 2) for each in batches] if is_kernel else batches
    found = calibrate(InPlace(), batches, loss=lambda model, batch: model(batch).square().mean())
    (record,) = found.layers.values()
    given = torch.cat(batches).numpy()
    np.testing.assert_array_equal(record.inputs, np.swapaxes(given, 1, 2) if is_kernel else given)


def test_a_measured_error_is_kept_by_what_the_loss_chooses():
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 6), S5(6, 24), nn.Linear(6, 4))
        inputs = torch.tensor(slow_inputs(64, 30, 3, seed), dtype=torch.float32)
        batches = list(zip(inputs.split(16), torch.randint(0, 4, (64,)).split(16), strict=True))

        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0])[:, -1], batch[1])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            data = calibrate(model, batches, loss=loss)
            (part,) = reduce_model(model, MeasuredError(0.3), data=data).report.values()
        assert part.cut.output_error <= 0.3


def test_a_kernel_whose_input_is_made_in_the_same_module_is_refused():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            inner = S4D(6, 24)
            self.norm, self.kernel, self.inner = nn.GroupNorm(1, 6), inner.kernel, [inner]

        def forward(self, inputs):
            return self.inner[0](self.norm(inputs)) + 0.0 * self.kernel(1).sum()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.kernel = nn.GroupNorm(1, 6), S4D(6, 24).kernel

        def forward(self, inputs):
            hidden = self.norm(inputs)
            return hidden * self.kernel(inputs.shape[-1])

    with pytest.raises(UnsupportedLayerError, match="after a GroupNorm"):
        calibrate(nn.Sequential(Block()), [torch.randn(4, 6, 20)])
    with pytest.raises(UnsupportedLayerError, match="no shape tells apart"):
        calibrate(nn.Sequential(S4D(6, 24)), [torch.randn(4, 6, 6)])
    layer = S4D(6, 24)
    layer.transposed = True
    found = calibrate(nn.Sequential(layer), [torch.arange(144.0).reshape(4, 6, 6)])
    np.testing.assert_array_equal(found.layers["0.kernel"].inputs[0, :, 0], np.arange(6.0))


def test_followers_of_channels_get_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(S4D(6, 24))
    twin = copy.deepcopy(model)
    data = calibrate(model, [torch.tensor(slow_inputs(32, 40, 6)).float().transpose(1, 2)])
    reduce_model(model, 4, data=data, followers=[twin])
    for own, copied in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(copied, own, rtol=1e-4, atol=1e-4)


def test_oscillators_are_cut_as_without_data():
    weights = linoss_weights(n=12)
    data = Calibration.of_inputs({"model": slow_inputs(16, 30, weights["D"].shape[0])})
    kind = LinOSS()
    own, plain = (
        reduce_layer(weights, 5, kind=kind, data=each).new_weights for each in (data, None)
    )
    for name, value in plain.items():
        np.testing.assert_array_equal(own[name], value)


def test_state_that_a_run_changes_is_given_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = S5(6, 24)
            self.register_buffer("count", torch.zeros(()))
            self.frozen = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
            self.latest = None

        def forward(self, inputs):
            self.count = self.count + 1
            self.latest = self.layer(inputs)
            return self.latest

    model = Counting()
    before = model.count
    batches = [torch.randn(8, 20, 6) for _ in range(4)]
    data = calibrate(model, batches, loss=lambda model, batch: model(batch).square().mean())
    assert model.count is before
    assert float(before) == 0.0
    assert model.latest.requires_grad  # a result that no deep copy takes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        assert reduce_model(model, 5, data=data).report["layer.seq"].new_order == 5


def test_a_state_that_a_layer_keeps_is_given_back():
    layer = LRU(6, 6, 24)
    layer.state = torch.ones(24, dtype=torch.complex64)
    with pytest.raises(UnsupportedLayerError, match="something else than its weights say"):
        calibrate(nn.Sequential(layer), [torch.randn(4, 10, 6)])
    assert torch.equal(layer.state, torch.ones(24, dtype=torch.complex64))


def test_with_a_loss_one_batch_at_least_is_held_out():
    model, batches = model_and_batches(count=3, size=32)
    data = calibrate(model, batches, loss=cross_entropy, max_sequences=16)
    assert len(data.runs.batches) == 2
    assert data.runs.held_out_loss is not None


@pytest.mark.parametrize(
    ("sizes", "loss", "kept", "held_out"),
    [
        ((80,), None, 32, 8),
        ((80, 80), cross_entropy, 32, 8),  # three quarters of the first, the rest of the second
        ((12, 80), None, 32, 20),
        ((28, 80), None, 32, 8),
        ((8, 8, 8, 7, 80), None, 32, 7),  # the fourth is held out, the last is cropped
        ((8, 8, 8), None, 24, 8),
    ],
)
def test_no_more_sequences_are_kept_than_are_wanted(sizes, loss, kept, held_out):
    model, _ = model_and_batches()
    batches = [batch for size in sizes for batch in model_and_batches(count=1, size=size)[1]]
    data = calibrate(model, batches, loss=loss, max_sequences=32)
    found = search(model, CutOptions())
    others = {name: np.zeros_like(record.inputs) for name, record in data.layers.items()}
    again = data.runs.inputs(found, others, is_uncut=True)
    for name, record in data.layers.items():
        assert len(record.inputs) == kept
        assert record.held_out.sum() == held_out
        assert np.array_equal(again[name], record.inputs)
    assert data.runs.sizes == sizes  # a loss reads batches whole
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        report = reduce_model(model, 5, data=data).report
    assert {part.new_order for part in report.values()} == {5}
    with pytest.raises(ArgumentError, match="`max_sequences` is 1; expected at least two"):
        calibrate(model, batches, max_sequences=1)


def test_progress_ends_with_as_many_sequences_as_there_are():
    model, batches = model_and_batches(count=3, size=16)
    for most, expected in (
        (64, [(16, 64), (32, 64), (48, 64), (48, 48)]),
        (20, [(16, 20), (20, 20)]),
    ):
        seen: list[tuple[int, int]] = []
        calibrate(model, batches, max_sequences=most, progress=lambda *now, to=seen: to.append(now))
        assert seen == expected


def test_a_loss_with_one_batch_alone_is_said_not_to_compare():
    model, batches = model_and_batches(count=2)
    with pytest.warns(
        CalibrationWarning, match="`batches` has one batch, which `loss` reads whole"
    ):
        data = calibrate(model, batches[:1], loss=cross_entropy)
    assert data.runs.held_out_loss is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        calibrate(model, batches, loss=cross_entropy)
        calibrate(model, batches[:1])


def test_a_loss_that_says_nothing_leaves_the_choice_to_outputs():
    model, batches = model_and_batches()
    with pytest.warns(CalibrationWarning, match="`loss` has no derivative by what"):
        data = calibrate(model, batches, loss=lambda model, batch: 0.0 * model(batch[0]).sum())
    result = reduce_model(model, 5, data=data)
    assert {part.choice.by for part in result.report.values()} == {"output error"}
    with pytest.raises(NonFiniteError, match="derivative of `loss`"):
        calibrate(model, batches, loss=lambda model, batch: torch.nan * model(batch[0]).sum())


def test_of_a_layer_that_is_called_twice_both_calls_are_kept():
    torch.manual_seed(0)
    layer = S5(6, 24)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, inputs):
            return self.layer(inputs) + self.layer(100.0 + inputs)

    batch = torch.randn(64, 10, 6)
    (record,) = calibrate(Twice(), [batch] * 2, max_sequences=64).layers.values()
    shifted = record.inputs.mean(axis=(1, 2)) > 50.0
    assert 16 <= shifted.sum() <= 48


def test_batches_that_say_nothing_are_no_reason_to_leave_out_others():
    model, batches = model_and_batches()
    nothing = (torch.zeros_like(batches[0][0]), batches[0][1])
    first, last = ([nothing, *batches[:3]], [*batches[:3], nothing])
    counts = []
    for given in (first, last):
        runs = []
        data = calibrate(
            model, given, forward=lambda model, batch, to=runs: to.append(1) or model(batch[0])
        )
        runs.clear()
        reduce_model(copy.deepcopy(model), 4, data=data)
        counts.append(len(runs))
    assert counts == [2 + len(batches[:3]) + 1] * 2


def test_layers_are_in_the_order_in_which_they_run():
    model, batches = model_and_batches()
    model.first, model.second = model.second, model.first
    swapped = nn.ModuleDict({"second": model.first, "first": model.second})
    found = calibrate(
        swapped, batches, forward=lambda m, b: m["first"](m["second"](b[0] @ torch.ones(3, 6)))
    )
    assert [*found.layers] == ["second.seq", "first.seq"]
    turned = nn.ModuleDict({"first": model.second, "second": model.first})
    found = calibrate(
        turned, batches, forward=lambda m, b: m["first"](m["second"](b[0] @ torch.ones(3, 6)))
    )
    assert [*found.layers] == ["second.seq", "first.seq"]


def test_sequences_of_tied_layers_add_up():
    torch.manual_seed(0)
    model = nn.Sequential(S5(6, 24), nn.Tanh(), S5(6, 24))
    for name, parameter in model[0].seq.named_parameters():
        setattr(model[2].seq, name, parameter)
    batches = [torch.tensor(slow_inputs(16, 20, 6, k), dtype=torch.float32) for k in range(4)]
    data = calibrate(model, batches)
    alone = Calibration({**data.layers, "2.seq": data.layers["0.seq"]})
    both, first = (
        reduce_model(copy.deepcopy(model), 5, data=each).report["0.seq"].cut.output_error
        for each in (Calibration(data.layers), alone)
    )
    assert both != first
    reduce_model(model, 5, data=data)
    assert model[0].seq.Lambda is model[2].seq.Lambda


def test_data_of_another_width_are_refused_for_one_layer():
    with pytest.raises(ShapeError, match="expected 6 channels"):
        reduce_layer(lru(), 4, kind="lru", data=Calibration.of_inputs({"x": np.zeros((4, 5, 7))}))
    two = Calibration.of_inputs({name: slow_inputs(4, 5, 6) for name in "ab"})
    with pytest.raises(ShapeError, match="expected one of the name"):
        reduce_layer(lru(), 4, kind="lru", data=two)
    with pytest.raises(ShapeError, match="is empty"):
        Calibration.of_inputs({})
    with pytest.raises(ShapeError, match="channels in `model`"):
        data().merged(Calibration.of_inputs({"model": slow_inputs(4, 5, 7)}))


def test_a_calibration_holds_records_by_name():
    record = data().layers["model"]
    for layers, message in (
        ({}, "`layers` is empty"),
        (3, "`layers` is 3; expected a Mapping"),
        ({"model": 3}, r"`layers\['model'\]` is 3; expected a LayerRecord"),
        ({1: record}, "the names of the layers"),
    ):
        with pytest.raises((ArgumentError, ShapeError), match=message):
            Calibration(layers)
    with pytest.raises(ArgumentError, match="`runs` is 3"):
        Calibration({"model": record}, runs=3)
    with pytest.raises(ArgumentError, match="`others` is 3; expected a Calibration"):
        data().merged(3)
    with pytest.raises(ShapeError, match=r"shapes \(64, 60, 6\), \(64, 59\), \(64,\)"):
        LayerRecord(record.inputs, record.weights[:, 1:], record.held_out)


def test_real_poles_count_as_one_excited_state_each():
    weights = lru_weights(np.random.default_rng(0), 8, 2, 2)
    weights["theta_log"][:] = np.log(2.0 * np.pi)
    short = Calibration.of_inputs({"model": slow_inputs(40, 30, 2)})
    options = CutOptions(method="balanced")
    assert reduce_layer(weights, 6, kind="lru", data=short, options=options).new_order <= 6
    constant = Calibration.of_inputs({"model": np.ones((8, 6, 6))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        cut = reduce_layer(lru(), MeasuredError(0.2), kind="lru", data=constant).cut
    assert cut.output_error <= 0.2


class RankAlone:
    """A team whose ranks run one after the other: what they agree on, in order, and what the first said."""

    def __init__(self, first: RankAlone | None = None) -> None:
        self.calls: list[str] = []
        self.answers: list[Any] = []
        self._first, self._depth = first, 0

    def check_same(self, held: Any, expected: str = "") -> None:
        assert not self._depth  # another rank may fail in there
        self.calls.append("check")
        self._depth += 1
        held()
        self._depth -= 1

    def decide(self, decision: Any) -> Any:
        self.calls.append("decide")
        place = len(self.answers)
        self.answers.append(decision() if self._first is None else self._first.answers[place])
        return self.answers[place]

    def gather(self, found: Any) -> Any:
        assert not self._depth
        self.calls.append("gather")
        return found


def test_ranks_with_batches_of_other_sizes_calibrate_by_as_many(monkeypatch):
    model, teams = nn.Sequential(S5(2, 4)), [first := RankAlone(), RankAlone(first)]
    counts = []
    for team, size in zip(teams, (8, 5), strict=True):
        monkeypatch.setattr(TorchFramework, "team_of", staticmethod(lambda _, team=team: team))
        batches = [torch.randn(size, 6, 2) for _ in range(4)]
        found = calibrate(model, batches, max_sequences=16)
        counts.append(len(found.runs.batches))
    assert counts == [2, 2]
    assert teams[0].calls == teams[1].calls


def test_layers_are_gathered_where_no_rank_can_fail_alone(monkeypatch):
    model, team = nn.Sequential(S5(2, 8)), RankAlone()
    data = Calibration.of_inputs({"0.seq": slow_inputs(8, 20, 2)})
    reducer = InTrainingReducer(
        ReductionSchedule.at(1),
        4,
        options=CutOptions(method="white"),
        trace=HankelTrace(1),
        data=lambda _: data,
    )
    monkeypatch.setattr(TorchFramework, "team_of", staticmethod(lambda _: team))
    monkeypatch.setattr(recorder, "with_full_layers", team.gather)
    reducer.step(1, model, torch.optim.SGD(model.parameters(), 1e-3))
    assert "gather" in team.calls
    assert reducer.trace.records[-1].data_hsv is not None


def test_ranks_that_fail_in_and_around_a_comparison_leave_together(monkeypatch):
    ranks, meeting = {}, threading.Barrier(2, timeout=2.0)
    held, seen = [None, None], ["", ""]

    def gather(answers: list[Any], own: Any, group: Any) -> None:
        held[ranks[threading.get_ident()]] = own
        meeting.wait()
        answers[:] = held
        meeting.wait()

    def run(rank: int) -> None:
        ranks[threading.get_ident()], team = rank, torch_distributed.Team(None)
        try:
            team.check_same(lambda: team.check_same(dict) if rank else int("none"))
        except SSMReduceError as error:
            seen[rank] = str(error)

    monkeypatch.setattr(torch_distributed.distributed, "get_world_size", lambda _: 2)
    monkeypatch.setattr(torch_distributed.distributed, "all_gather_object", gather)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0].startswith("on rank 0: ValueError")
    assert seen[0] == seen[1]


def test_small_derivatives_in_half_precision_count():
    steps = torch.tensor([[[0.0], [1e-4]]], dtype=torch.float16)
    call = _Call(_Seen(steps), _Seen(steps), derivative=steps)
    np.testing.assert_allclose(call.recorded().squares, [[0.0, 1e-8]], rtol=1e-2)


def test_a_layer_that_runs_otherwise_in_a_later_batch_is_refused():
    model, batches = model_and_batches()
    runs = []

    def forward(model, batch):
        runs.append(1)
        with torch.no_grad():
            found = model(batch[0])
            if len(runs) == 2:
                model.first.seq.D.mul_(1.5)
        return found

    with pytest.raises(UnsupportedLayerError, match=r"`first\.seq` puts out something else"):
        calibrate(model, batches, forward=forward)


def test_candidates_far_behind_in_their_outputs_are_not_run():
    model, batches = model_and_batches()
    handle = search(model, CutOptions()).meant[0]
    record = calibrate(model, batches).record_of(handle)
    errors = planned_with_data(handle, 8, CutOptions(), record).choice.values
    run = []
    result = planned_with_data(
        handle, 8, CutOptions(), record, lambda cut: run.append(cut.output_error) or -len(run)
    )
    least = min(errors.values())
    assert max(errors.values()) > 3.0 * least
    assert sorted(run) == sorted(error for error in errors.values() if error <= 3.0 * least)
    assert {*result.choice.values} == {name for name in errors if errors[name] <= 3.0 * least}
    assert result.choice.by == "loss"


def test_a_candidate_whose_loss_is_not_finite_is_not_taken():
    model, batches = model_and_batches()
    handle = search(model, CutOptions()).meant[0]
    record = calibrate(model, batches).record_of(handle)
    best = planned_with_data(handle, 5, CutOptions(), record)

    def loss(cut):
        return np.nan if cut.output_error == best.output_error else cut.output_error

    result = planned_with_data(handle, 5, CutOptions(), record, loss)
    assert result.choice.by == "loss"
    assert result.choice.values[best.method] == np.inf
    assert result.method != best.method


@pytest.mark.parametrize(
    ("selected", "balanced", "taken"),
    [
        (0.92, 1.0, "balanced"),
        (0.85, 1.0, "selected"),
        (-1.05, -1.0, "balanced"),
        (-1.2, -1.0, "selected"),
    ],
)
def test_a_selected_cut_has_to_lose_clearly_less_than_a_balanced_one(selected, balanced, taken):
    model, batches = model_and_batches()
    handle = search(model, CutOptions()).meant[0]
    record = calibrate(model, batches).record_of(handle)
    losses = {
        METHODS["selected"]: selected,
        METHODS["balanced"]: balanced,
    }
    result = planned_with_data(
        handle, 5, CutOptions(), record, lambda cut: losses.get(cut.reduction.method, 2.0)
    )
    assert result.method == taken
