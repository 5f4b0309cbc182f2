"""One good call of every public function, class and method: what the generator of bad calls spoils."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import control
import numpy as np
import scipy.signal
import torch
from LRU_pytorch import LRU
from s5 import S5
from samples import dense_system, diagonal_system, lru_system

import ssmreduce as sr
from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace, norms, plotting, testing
from ssmreduce.adapters import control as control_adapter
from ssmreduce.adapters import pymor, scipy_signal
from ssmreduce.demo import lru as equinox_lru
from ssmreduce.equations import solvers
from ssmreduce.equations.residual import relative_residual
from ssmreduce.gramians.frequency import frequency_limited_factors
from ssmreduce.gramians.weighted import weighted_factors
from ssmreduce.models.checkpoint import accept_reduced
from ssmreduce.models.systems_of_layers import handle_of
from ssmreduce.reduction.selection import state_scores
from ssmreduce.regularizers import LazyHankelNuclearNorm, hankel_nuclear_norm, modal_l1
from ssmreduce.training import lightning, transformers
from ssmreduce.training.records import HankelRecord
from ssmreduce.training.tracking import ReductionEvent

GoodCall = tuple[Callable[..., Any], dict[str, Any]]


def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@cache
def dense() -> StateSpace:
    return dense_system(rng(), 4, 2, 2)


@cache
def s5_model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(S5(3, 8))


@cache
def continuous() -> StateSpace:
    return dense_system(rng(), 4, 2, 2, discrete=False)


@cache
def diagonal() -> DiagonalStateSpace:
    return diagonal_system(rng(), 4, 2, 2)


@cache
def layer_like() -> DiagonalStateSpace:
    return lru_system(rng(), 4, 2)


@cache
def batch() -> StateSpace:
    one = dense_system(rng(), 3, 1, 1)
    return StateSpace(*(np.stack([x, x]) for x in (one.A, one.B, one.C, one.D)), time=one.time)


@cache
def channels() -> DiagonalStateSpace:
    parts = [diagonal_system(rng(), 3, 1, 1, real_output=True) for _ in range(2)]
    arrays = (
        np.stack([getattr(part, name) for part in parts]) for name in ("eigenvalues", "B", "C", "D")
    )
    return DiagonalStateSpace(*arrays, time=Discrete(), real_output=True)


@cache
def unstable() -> DiagonalStateSpace:
    return DiagonalStateSpace([1.5, 0.5, 0.2], np.ones((3, 1)), np.ones((1, 3)), time=Discrete())


@cache
def balancing() -> sr.Balancing:
    return sr.balance(dense())


@cache
def reduction() -> sr.Reduction:
    return sr.balanced_truncation(dense(), 2)


@cache
def frozen() -> Any:
    return LazyHankelNuclearNorm(10).refresh(dense())


def layer() -> Any:
    torch.manual_seed(0)
    return LRU(2, 2, 6, rmin=0.5)


def weights() -> dict[str, Any]:
    held = {name: value.detach().numpy() for name, value in layer().named_parameters()}
    return {name: np.array(value) for name, value in held.items()}


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 2), LRU(2, 2, 6, rmin=0.5))


def calibration() -> sr.Calibration:
    return sr.Calibration.of_inputs({"model": np.ones((4, 6, 3))})


@cache
def equinox_layer() -> Any:
    return equinox_lru.LRU(6, 2, rng=rng())


@cache
def layer_reduction() -> sr.LayerReduction:
    return sr.reduce_layer(equinox_layer(), 4)


@cache
def reduced_state_dict() -> Any:
    return sr.reduce_model(model(), 3).model.state_dict()


@cache
def event() -> ReductionEvent:
    return ReductionEvent.of(10, "layer", layer_reduction(), sr.HankelMass(0.9))


def trace() -> sr.HankelTrace:
    made = sr.HankelTrace(10)
    made.record(10, equinox_layer())
    made.record(20, equinox_layer())
    return made


def schedule() -> sr.ReductionSchedule:
    return sr.ReductionSchedule(100)


def reducer(**options: Any) -> sr.InTrainingReducer:
    return sr.InTrainingReducer(schedule(), **options)


def watched() -> sr.InTrainingReducer:
    return reducer(rollback=sr.RollbackPolicy(0.1))


@cache
def checkpoint() -> str:
    folder = Path(tempfile.mkdtemp())
    torch.save(reducer().state_dict(), folder / "ssmreduce.pt")
    return str(folder)


def record() -> HankelRecord:
    return HankelRecord(10, "layer", np.array([2.0, 1.0]), np.array([1.0, 2.0]))


A = np.array([[-1.0, 0.3], [0.1, -2.0]])
"""Stable in continuous time; a half of it is in discrete time too."""

HSV = np.array([8.0, 2.0, 1.0, 0.1])
TIMES = np.linspace(0.0, 1.0, 5)
SIGNAL = np.linspace(-1.0, 1.0, 10).reshape(5, 2)


def _arrays(system: StateSpace) -> dict[str, Any]:
    return {"A": system.A, "B": system.B, "C": system.C, "D": system.D}


def _solver(solver: Any, verb: str) -> GoodCall:
    # Poles in a narrow band, for LowRankADI to be of use.
    matrix = -np.diag(np.linspace(1.0, 1.5, 30)) + np.diag(np.full(29, 0.1), 1)
    right = {"Q": np.eye(30)} if verb == "solution" else {"B": np.ones((30, 1))}
    return getattr(solver, verb), {"A": matrix, **right, "time": Continuous()}


def _lyapunov() -> dict[str, Any]:
    X = sr.solve_lyapunov(A, np.eye(2), time=Continuous()).value
    return {"A": A, "X": X, "Q": np.eye(2), "time": Continuous()}


def _outputs(system: Any, times: Any = None) -> dict[str, Any]:
    outputs = sr.simulate(system, SIGNAL, times=times)
    given = {"system": system, "inputs": SIGNAL, "outputs": outputs, "times": times, "rtol": 1e-8}
    return given


def _event_fields() -> dict[str, Any]:
    return {**vars(event()), "rolled_back": 20}


BALANCE = {"horizon": None, "keep_unstable": False, "margin": 0.0}
CUT = {"common_order": False}
OPTIONS = {
    "horizon": None,
    "multiple_of": 1,
    "power_of_two": False,
    "uniform": False,
    "moments": "carry",
    "skip_unsupported": False,
    "exclude": ("layer",),
}
MODEL = {"options": sr.CutOptions()}
DRAWN = {"order": (1, 3), "inputs": 1, "outputs": 2, "time": Discrete(), "batch_shape": (2,)}

CALLS: dict[str, Callable[[], GoodCall]] = {
    # systems
    "StateSpace": lambda: (
        StateSpace,
        {**_arrays(dense()), "time": Discrete(), "read_after_update": True},
    ),
    "DiagonalStateSpace": lambda: (
        DiagonalStateSpace,
        {
            **{name: getattr(layer_like(), name) for name in ("eigenvalues", "B", "C", "D")},
            "time": Discrete(),
            "real_output": True,
            "read_after_update": False,
        },
    ),
    "DiagonalStateSpace.from_log": lambda: (
        DiagonalStateSpace.from_log,
        {
            "log_eigenvalues": np.array([-0.1, -0.2 + 1j]),
            "B": np.ones((2, 1)),
            "C": np.ones((1, 2)),
            "D": np.ones((1, 1)),
            "time": Discrete(),
            "real_output": False,
            "read_after_update": True,
        },
    ),
    "Discrete": lambda: (Discrete, {"dt": 0.1}),
    "StateSpace.is_stable": lambda: (dense().is_stable, {"margin": 0.01}),
    "DiagonalStateSpace.is_stable": lambda: (diagonal().is_stable, {"margin": 0.01}),
    "from_log.is_stable": lambda: (
        sr.to_discrete(diagonal_system(rng(), 3, 1, 1, discrete=False), 0.1).is_stable,
        {"margin": 0.01},
    ),
    "DiagonalStateSpace.rescaled": lambda: (diagonal().rescaled, {"scale": np.ones(4)}),
    "StateSpace.replace": lambda: (
        dense().replace,
        {"B": np.ones((4, 2)), "D": None, "time": Discrete(0.1), "read_after_update": True},
    ),
    "DiagonalStateSpace.replace": lambda: (
        diagonal().replace,
        {"eigenvalues": np.full(4, 0.5), "D": 0.0, "real_output": True},
    ),
    "from_log.replace": lambda: (
        sr.to_discrete(diagonal_system(rng(), 3, 1, 1, discrete=False), 0.1).replace,
        {"log_eigenvalues": np.full(3, -0.1), "C": np.ones((1, 3))},
    ),
    "StateSpace[]": lambda: (batch().__getitem__, {"index": 1}),
    "DiagonalStateSpace[]": lambda: (channels().__getitem__, {"index": 1}),
    "rescaled": lambda: (diagonal().rescaled, {"scale": np.ones(4)}),
    "simulate": lambda: (sr.simulate, {"system": dense(), "inputs": SIGNAL, "times": None}),
    "simulate continuous": lambda: (
        sr.simulate,
        {"system": continuous(), "inputs": SIGNAL, "times": TIMES, "hold": "linear"},
    ),
    "impulse_response": lambda: (sr.impulse_response, {"system": dense(), "length": 5}),
    "impulse_response continuous": lambda: (
        sr.impulse_response,
        {"system": continuous(), "length": None, "times": TIMES},
    ),
    "step_response": lambda: (sr.step_response, {"system": layer_like(), "length": 5}),
    "step_response continuous": lambda: (
        sr.step_response,
        {"system": continuous(), "length": None, "times": TIMES},
    ),
    "frequency_response": lambda: (sr.frequency_response, {"system": dense(), "omega": TIMES}),
    "transformed": lambda: (sr.transformed, {"system": dense(), "T": np.eye(4) + 0.1}),
    "diagonalised": lambda: (sr.diagonalised, {"system": dense()}),
    "real_form": lambda: (sr.real_form, {"system": layer_like()}),
    "to_discrete": lambda: (
        sr.to_discrete,
        {"system": continuous(), "dt": 0.1, "method": "bilinear"},
    ),
    "to_continuous": lambda: (sr.to_continuous, {"system": dense(), "method": "bilinear"}),
    "series": lambda: (sr.series, {"first": dense(), "second": dense()}),
    "parallel": lambda: (sr.parallel, {"first": dense(), "second": dense()}),
    "difference": lambda: (sr.difference, {"first": diagonal(), "second": diagonal()}),
    # adapters
    "from_control": lambda: (
        control_adapter.from_control,
        {"sys": control.ss([[0.5]], [[1.0]], [[1.0]], [[0.0]], True), "time": Discrete()},
    ),
    "to_control": lambda: (control_adapter.to_control, {"system": dense()}),
    "from_scipy": lambda: (
        scipy_signal.from_scipy,
        {"sys": scipy.signal.StateSpace([[0.5]], [[1.0]], [[1.0]], [[0.0]], dt=0.1)},
    ),
    "to_scipy": lambda: (scipy_signal.to_scipy, {"system": dense()}),
    "from_pymor": lambda: (pymor.from_pymor, {"model": pymor.to_pymor(continuous())}),
    "to_pymor": lambda: (pymor.to_pymor, {"system": dense()}),
    # equations
    "solve_lyapunov": lambda: (
        sr.solve_lyapunov,
        {"A": A, "Q": np.eye(2), "time": Continuous(), "solver": solvers.BartelsStewart()},
    ),
    "solve_lyapunov_factor": lambda: (
        sr.solve_lyapunov_factor,
        {"A": A, "B": np.ones((2, 1)), "time": Continuous(), "solver": solvers.Hammarling()},
    ),
    **{
        f"{type(solver).__name__}.{verb}": lambda solver=solver, verb=verb: _solver(solver, verb)
        for solver, verb in (
            (solvers.AutoLyapunov(), "solution"),
            (solvers.AutoLyapunov(), "factor"),
            (solvers.BartelsStewart(), "solution"),
            (solvers.Hammarling(), "factor"),
            (solvers.LowRankADI(), "factor"),
            (solvers.SmithDoubling(), "solution"),
            (solvers.SmithDoubling(), "factor"),
            (solvers.MatrixSign(), "solution"),
            (solvers.MatrixSign(), "factor"),
        )
    },
    "AutoLyapunov.select": lambda: (solvers.AutoLyapunov().select, {"A": A}),
    "AutoLyapunov.select_factor": lambda: (
        solvers.AutoLyapunov().select_factor,
        {"A": A, "B": np.ones((2, 1)), "time": Continuous()},
    ),
    "relative_residual": lambda: (relative_residual, _lyapunov()),
    # Gramians and norms
    "controllability_gramian": lambda: (
        sr.controllability_gramian,
        {"system": dense(), "horizon": 10},
    ),
    "observability_gramian": lambda: (
        sr.observability_gramian,
        {"system": diagonal(), "horizon": 10},
    ),
    "hankel_singular_values": lambda: (
        sr.hankel_singular_values,
        {"system": layer_like(), "horizon": 10},
    ),
    "error_bounds": lambda: (sr.error_bounds, {"hsv": HSV}),
    "h2_norm": lambda: (sr.h2_norm, {"system": dense()}),
    "hinf_norm": lambda: (
        sr.hinf_norm,
        {"system": dense(), "certified": True, "tolerance": 1e-6},
    ),
    "hinf_difference": lambda: (
        norms.hinf_difference,
        {
            "first": dense(),
            "second": reduction().system,
            "grid": 20,
            "refinements": 2,
            "iterations": 4,
        },
    ),
    "certified_difference": lambda: (
        norms.certified_difference,
        {"first": dense(), "second": reduction().system, "tolerance": 1e-6},
    ),
    "finite_horizon_difference": lambda: (
        norms.finite_horizon_difference,
        {"first": dense(), "second": reduction().system, "horizon": 10, "iterations": 4},
    ),
    "hankel_norm": lambda: (sr.hankel_norm, {"system": layer_like()}),
    "frequency_limited_factors": lambda: (
        frequency_limited_factors,
        {"system": dense(), "band": (0.1, 1.0)},
    ),
    "weighted_factors": lambda: (
        weighted_factors,
        {"system": dense(), "input_weight": dense(), "output_weight": None},
    ),
    # reduction
    "balance": lambda: (
        sr.balance,
        {"system": dense(), "band": None, "input_weight": None, "output_weight": None, **BALANCE},
    ),
    "balance in a band": lambda: (sr.balance, {"system": dense(), "band": (0.1, 1.0)}),
    "balance with a horizon": lambda: (sr.balance, {"system": diagonal(), "horizon": 10}),
    "balance unstable": lambda: (
        sr.balance,
        {"system": unstable(), "keep_unstable": True, "margin": 0.01},
    ),
    "Balancing": lambda: (sr.Balancing, {"system": dense(), "weighting": None, **BALANCE}),
    "Balancing.truncate": lambda: (balancing().truncate, {"order": 2, **CUT}),
    "Balancing.match_dc": lambda: (balancing().match_dc, {"order": 2, **CUT}),
    "Balancing.bound": lambda: (balancing().bound, {"order": 2}),
    "balanced_truncation": lambda: (
        sr.balanced_truncation,
        {"system": dense(), "order": 2, "common_order": False, **BALANCE},
    ),
    "balanced_truncation diagonal": lambda: (
        sr.balanced_truncation,
        {"system": layer_like(), "order": 2, "common_order": False, **BALANCE},
    ),
    "balanced_truncation batch": lambda: (
        sr.balanced_truncation,
        {"system": channels(), "order": 2, "common_order": True},
    ),
    "singular_perturbation": lambda: (
        sr.singular_perturbation,
        {
            "system": dense(),
            "order": 2,
            "common_order": False,
            "keep_unstable": True,
            "margin": 0.0,
        },
    ),
    "h2_optimal": lambda: (
        sr.h2_optimal,
        {"system": dense(), "order": 2, "start": None, "iterations": 5, "tolerance": 1e-4},
    ),
    "h2_optimal from a start": lambda: (
        sr.h2_optimal,
        {"system": dense(), "order": 2, "start": reduction().system, "iterations": 5},
    ),
    "modal_truncation": lambda: (sr.modal_truncation, {"system": continuous(), "order": 2}),
    "select_states": lambda: (
        sr.select_states,
        {"system": diagonal(), "order": 2, "score": "h2"},
    ),
    "state_scores": lambda: (state_scores, {"system": diagonal(), "score": "h2"}),
    "balanced_realisation": lambda: (sr.balanced_realisation, {"system": dense()}),
    "minimal_realisation": lambda: (
        sr.minimal_realisation,
        {"system": dense(), "tolerance": 1e-10, "margin": 0.0},
    ),
    "split_unstable": lambda: (sr.split_unstable, {"system": unstable(), "margin": 0.01}),
    "Reduction.verify": lambda: (reduction().verify, {"certified": True}),
    # order rules
    "FixedOrder": lambda: (sr.FixedOrder, {"order": 2}),
    "HankelMass": lambda: (sr.HankelMass, {"share": 0.9}),
    "HankelEnergy": lambda: (sr.HankelEnergy, {"share": 0.9}),
    "ErrorBound": lambda: (sr.ErrorBound, {"absolute": 0.1, "relative": None}),
    "TotalBudget": lambda: (sr.TotalBudget, {"states": 4, "relative": True}),
    "FixedOrder.choose": lambda: (sr.FixedOrder(2).choose, {"hsv": HSV}),
    "HankelMass.choose": lambda: (sr.HankelMass(0.9).choose, {"hsv": HSV}),
    "HankelEnergy.choose": lambda: (sr.HankelEnergy(0.9).choose, {"hsv": HSV}),
    "MeasuredError": lambda: (sr.MeasuredError, {"relative": 0.1}),
    "ErrorBound.choose": lambda: (sr.ErrorBound(relative=0.1).choose, {"hsv": HSV}),
    "ErrorBound.is_met": lambda: (
        sr.ErrorBound(relative=0.1).is_met,
        {"hsv": HSV, "error": 0.01},
    ),
    "ErrorBound.check": lambda: (sr.ErrorBound(relative=0.1).check, {"hsv": HSV, "error": 0.01}),
    "TotalBudget.choose": lambda: (sr.TotalBudget(3).choose, {"hsv": HSV}),
    "TotalBudget.allocate": lambda: (
        sr.TotalBudget(5, relative=True).allocate,
        {"hsvs": [HSV, HSV[:2]], "kept": [0, 1]},
    ),
    # layers and models
    "read_system": lambda: (sr.read_system, {"layer": layer()}),
    "write_system": lambda: (
        sr.write_system,
        {"layer": layer(), "system": sr.read_system(layer())},
    ),
    "reduce_layer": lambda: (
        sr.reduce_layer,
        {
            "layer": layer(),
            "order": 3,
            "options": sr.CutOptions(multiple_of=2),
        },
    ),
    "CutOptions": lambda: (sr.CutOptions, dict(OPTIONS)),
    "CutOptions.excluded": lambda: (sr.CutOptions(exclude=("a",)).excluded, {"names": ["a", "b"]}),
    "reduce_layer equinox": lambda: (
        sr.reduce_layer,
        {"layer": equinox_layer(), "order": 3, "options": sr.CutOptions(horizon=20)},
    ),
    "reduce_model": lambda: (
        sr.reduce_model,
        {
            "model": model(),
            "order": 3,
            "optimizer": None,
            "opt_state": None,
            **MODEL,
            "followers": (),
        },
    ),
    "calibrate": lambda: (
        # What a model says of bad batches, and a function of its arguments, is their own word.
        partial(sr.calibrate, batches=[torch.ones(2, 6, 3), torch.zeros(2, 6, 3)]),
        {
            "model": s5_model(),
            "options": sr.CutOptions(),
            "max_sequences": 4,
        },
    ),
    "Calibration": lambda: (sr.Calibration, {"layers": calibration().layers, "runs": None}),
    "Calibration.merged": lambda: (
        lambda other: calibration().merged(other),
        {"other": calibration()},
    ),
    "Calibration.of_inputs": lambda: (
        sr.Calibration.of_inputs,
        {"inputs": {"model": np.ones((4, 6, 3))}, "weights": {"model": np.ones((4, 6))}},
    ),
    "Calibration.from_arrays": lambda: (
        sr.Calibration.from_arrays,
        {"arrays": calibration().to_arrays()},
    ),
    "sweep": lambda: (
        sr.sweep,
        {"model": dense(), "orders": [1, 2], "options": sr.CutOptions(horizon=10)},
    ),
    "sweep of a model": lambda: (
        sr.sweep,
        {"model": model(), "orders": [2, sr.HankelMass(0.9)], "options": sr.CutOptions()},
    ),
    "sweep of a layer with data": lambda: (
        sr.sweep,
        {
            "model": equinox_layer(),
            "orders": [2],
            "data": sr.Calibration.of_inputs({"model": rng().normal(size=(8, 12, 2))}),
        },
    ),
    "Sweep.smallest": lambda: (
        sr.sweep(dense(), [1, 2, 4]).smallest,
        {"relative_error": 0.5},
    ),
    "LayerReduction.reduce_state": lambda: (
        layer_reduction().reduce_state,
        {"state": np.ones(6, dtype=np.complex64)},
    ),
    "LTILayer.read": lambda: (handle_of(layer()).kind.read, {"weights": weights()}),
    "LTILayer.write": lambda: (
        handle_of(layer()).kind.write,
        {"system": sr.read_system(layer()), "weights": weights()},
    ),
    "register_layer": lambda: (
        sr.register_layer,
        {"layer_type": type("Own", (LRU,), {}), "kind": handle_of(layer()).kind},
    ),
    "load_reduced": lambda: (
        sr.load_reduced,
        {"model": model(), "state_dict": reduced_state_dict()},
    ),
    "shaped_like": lambda: (
        sr.shaped_like,
        {"model": [equinox_layer()], "saved": {"[0]": {"old_order": 6, "new_order": 4}}},
    ),
    "shaped_like of arrays": lambda: (
        sr.shaped_like,
        {"model": [equinox_layer()], "saved": [dict(vars(layer_reduction().layer))]},
    ),
    "accept_reduced": lambda: (accept_reduced, {"model": model()}),
    # training
    "ReductionSchedule": lambda: (
        sr.ReductionSchedule,
        {"total_steps": 100, "start": 0.1, "stop": 0.5, "attempts": 2},
    ),
    "ReductionSchedule.at": lambda: (
        lambda step: sr.ReductionSchedule.at(step, 40),
        {"step": 5},
    ),
    "ReductionSchedule.due": lambda: (schedule().due, {"step": 5}),
    "RollbackPolicy": lambda: (
        sr.RollbackPolicy,
        {"tolerance": 0.1, "mode": "max", "patience": 2, "at_cut": 0.5},
    ),
    "RollbackPolicy.is_worse": lambda: (
        sr.RollbackPolicy(0.1).is_worse,
        {"metric": 1.0, "than": 0.5},
    ),
    "HankelTrace": lambda: (sr.HankelTrace, {"every": 10, "share": 0.9, "horizon": None}),
    "HankelTrace.step": lambda: (
        trace().step,
        {"step": 30, "model": equinox_layer(), "options": sr.CutOptions()},
    ),
    "HankelTrace.record": lambda: (
        trace().record,
        {"step": 30, "model": equinox_layer(), "options": sr.CutOptions()},
    ),
    "HankelTrace.record with data": lambda: (
        trace().record,
        {
            "step": 30,
            "model": equinox_layer(),
            "data": sr.Calibration.of_inputs({"model": rng().normal(size=(8, 12, 2))}),
        },
    ),
    "HankelTrace.of_layer": lambda: (trace().of_layer, {"layer": "model"}),
    "HankelTrace.spacing": lambda: (trace().spacing, {"layer": "model"}),
    "HankelTrace.agreement": lambda: (trace().agreement, {"layer": "model"}),
    "HankelTrace.settled": lambda: (trace().settled, {"layer": "model", "threshold": 0.9}),
    "HankelTrace.from_dict": lambda: (sr.HankelTrace.from_dict, {"values": trace().to_dict()}),
    "HankelRecord.kept": lambda: (record().kept, {"share": 0.9}),
    "HankelRecord": lambda: (HankelRecord, dict(vars(record()))),
    "HankelRecord.from_dict": lambda: (HankelRecord.from_dict, {"values": record().to_dict()}),
    "ReductionEvent": lambda: (ReductionEvent, _event_fields()),
    "ReductionEvent.from_dict": lambda: (
        ReductionEvent.from_dict,
        {"values": event().to_dict()},
    ),
    "ReductionEvent.of": lambda: (
        ReductionEvent.of,
        {
            "step": 10,
            "layer": "layer",
            "result": layer_reduction(),
            "order": sr.HankelMass(0.9),
        },
    ),
    "InTrainingReducer": lambda: (
        sr.InTrainingReducer,
        {
            "schedule": schedule(),
            "order": 3,
            "gate": 0.9,
            **MODEL,
            "rollback": sr.RollbackPolicy(0.1),
            "trace": sr.HankelTrace(10),
            "above_chance": "warn",
        },
    ),
    "InTrainingReducer.due": lambda: (reducer().due, {"step": 3}),
    "InTrainingReducer.report": lambda: (watched().report, {"metric": 0.5}),
    "InTrainingReducer.step": lambda: (
        reducer().step,
        {"step": 2, "model": equinox_layer(), "opt_state": None, "followers": []},
    ),
    "InTrainingReducer.check_metric": lambda: (watched().check_metric, {"name": "loss"}),
    "InTrainingReducer.load_state_dict": lambda: (
        reducer().load_state_dict,
        {"state": reducer().state_dict()},
    ),
    "InTrainingReducer.log_to": lambda: (reducer().log_to, {"writer": None}),
    "lightning.ReductionCallback": lambda: (
        lightning.ReductionCallback,
        {
            "reducer": watched(),
            "metric": "val_loss",
            "followers": None,
            "data": 8,
            "loss": None,
            "forward": None,
        },
    ),
    "transformers.ReductionCallback": lambda: (
        transformers.ReductionCallback,
        {"reducer": watched(), "metric": "eval_loss", "data": 8, "loss": None},
    ),
    "transformers.ReductionCallback.load": lambda: (
        transformers.ReductionCallback(reducer()).load,
        {"checkpoint": checkpoint()},
    ),
    # testing
    "state_spaces": lambda: (
        testing.state_spaces,
        {
            **DRAWN,
            "dtype": "float64",
            "margin": 0.1,
            "departure": 0.5,
            "minimal": True,
            "feedthrough": False,
            "read_after_update": True,
        },
    ),
    "diagonal_state_spaces": lambda: (
        testing.diagonal_state_spaces,
        {
            **DRAWN,
            "dtype": "complex128",
            "margin": 0.1,
            "minimal": True,
            "feedthrough": False,
            "real_output": False,
            "read_after_update": True,
        },
    ),
    "assert_stable": lambda: (testing.assert_stable, {"system": dense(), "margin": 0.01}),
    "assert_systems_close": lambda: (
        testing.assert_systems_close,
        {"actual": dense(), "desired": dense(), "rtol": 1e-8},
    ),
    "assert_error_within_bound": lambda: (
        testing.assert_error_within_bound,
        {"original": dense(), "reduced": reduction().system, "bound": reduction().error_bound},
    ),
    "assert_balanced": lambda: (
        testing.assert_balanced,
        {"system": sr.balanced_realisation(dense())},
    ),
    "assert_lyapunov": lambda: (testing.assert_lyapunov, {**_lyapunov(), "rtol": 1e-8}),
    "assert_outputs_close": lambda: (testing.assert_outputs_close, _outputs(layer_like())),
    "assert_outputs_close continuous": lambda: (
        testing.assert_outputs_close,
        _outputs(continuous(), TIMES),
    ),
    "assert_same_library": lambda: (
        testing.assert_same_library,
        {"result": np.ones(2), "like": dense()},
    ),
    # penalties
    "hankel_nuclear_norm": lambda: (hankel_nuclear_norm, {"system": dense()}),
    "modal_l1": lambda: (modal_l1, {"system": diagonal()}),
    "LazyHankelNuclearNorm": lambda: (LazyHankelNuclearNorm, {"every": 10}),
    "LazyHankelNuclearNorm.due": lambda: (LazyHankelNuclearNorm(10).due, {"step": 5}),
    "LazyHankelNuclearNorm.refresh": lambda: (
        LazyHankelNuclearNorm(10).refresh,
        {"system": dense()},
    ),
    "LazyHankelNuclearNorm.penalty": lambda: (
        LazyHankelNuclearNorm(10).penalty,
        {"system": dense(), "state": frozen()},
    ),
    # pictures
    "plot_hsv": lambda: (
        plotting.plot_hsv,
        {"hsv": HSV, "order": 2, "energy": [0.9], "name": "value", "label": "a", "ax": None},
    ),
    "plot_errors": lambda: (
        plotting.plot_errors,
        {
            "orders": [1, 2],
            "errors": {"bound": [2.0, None]},
            "metric": [0.5, 0.75],
            "metric_name": "accuracy",
        },
    ),
    "plot_poles": lambda: (
        plotting.plot_poles,
        {"before": diagonal().poles(), "after": [0.5], "time": Discrete(), "folded": True},
    ),
    "plot_gain": lambda: (
        plotting.plot_gain,
        {"system": dense(), "reduced": reduction().system, "bound": 0.5, "omega": [0.1, 1.0]},
    ),
    "plot_impulse": lambda: (
        plotting.plot_impulse,
        {"system": dense(), "reduced": reduction().system, "channel": (0, 1), "length": 5},
    ),
    "plot_impulse continuous": lambda: (
        plotting.plot_impulse,
        {"system": continuous(), "times": TIMES, "ax": None},
    ),
    "plot_hsv_map": lambda: (
        plotting.plot_hsv_map,
        {
            "steps": [1, 2],
            "hsv": [HSV, HSV[:2]],
            "kept": [2, 1],
            "cuts": {1.5: "4 → 2"},
            "name": "value",
        },
    ),
    "plot_agreement": lambda: (
        plotting.plot_agreement,
        {"steps": [1, 2], "overlap": [0.5, 1.0], "rank_correlation": [0.5, 1.0], "settled": 2.0},
    ),
    "plot_metric": lambda: (
        plotting.plot_metric,
        {"curves": {"run": ([1.0, 2.0], [0.5, 0.75])}, "cuts": {"run": [1.5]}, "name": "accuracy"},
    ),
    "plot_layers": lambda: (
        plotting.plot_layers,
        {"layers": ["a"], "before": [4], "after": [2], "errors": {"bound": [0.5]}, "ax": None},
    ),
    "HankelTrace.plot": lambda: (trace().plot, {"events": [event()], "ax": None}),
    "ReductionEvent.plot": lambda: (event().plot, {"ax": None}),
    "Reduction.plot": lambda: (reduction().plot, {"ax": None}),
    "Balancing.plot": lambda: (balancing().plot, {"order": 2, "ax": None}),
    "LayerReduction.plot": lambda: (layer_reduction().plot, {"ax": None}),
}
