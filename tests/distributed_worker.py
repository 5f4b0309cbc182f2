"""One of the processes of a distributed test: a torch worker that reports what it saw.

Run as ``python distributed_worker.py SCENARIOS RANK WORLD FOLDER``, with commas between scenarios; writes
FOLDER/RANK.json.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision
from torch_modules import S4D, LrnnxLRU
from transformers import MambaConfig, MambaForCausalLM

from ssmreduce import (
    CutOptions,
    ErrorBound,
    HankelMass,
    HankelTrace,
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    SSMReduceError,
    calibrate,
    load_reduced,
    reduce_model,
    register_layer,
)
from ssmreduce.frameworks.transaction import Entries, Step
from ssmreduce.models import cut as cut_of_models
from ssmreduce.models.systems_of_layers import handle_of
from ssmreduce.training import attempts as attempts_module
from ssmreduce.training.callbacks import check_can_be_copied

ORDERS = (6, 3)
STEPS = 6


class Sequences(nn.Module):
    """An LRU on a batch of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.lru = LrnnxLRU(3, 9)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (B, L, H) to (B, L, H)."""
        return torch.stack([self.lru(sequence) for sequence in inputs])


class Channels(nn.Module):
    """`S4D` on (B, L, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = S4D(3, 16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (B, L, H) to (B, L, H)."""
        return self.block(inputs.transpose(1, 2)).transpose(1, 2)


def model_of(seed: int = 3) -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), Sequences(), Channels(), nn.Linear(3, 1))


def batches() -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch, of which every rank takes its rows."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(4, 8, 2, generator=generator)
    return inputs, torch.cumsum(inputs[..., :1], 1) / 8


def loss_of(model: nn.Module, rows: slice) -> torch.Tensor:
    """The loss on these rows."""
    inputs, targets = batches()
    return torch.mean((model(inputs[rows]) - targets[rows]) ** 2)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: slice) -> float:
    """One update; returns the loss on these rows."""
    optimizer.zero_grad()
    loss = loss_of(model, rows)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a shard."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> str:
    """Hash of all weights and of the optimizer state."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for value in (parameter, *state.values()):
            if torch.is_tensor(value):
                digest.update(str(tuple(value.shape)).encode())
                digest.update(whole(value.detach()).contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(model: nn.Module, rows: slice) -> dict[str, Any]:
    """A run with two cuts, and what was seen on the way."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    parameters = list(model.parameters())
    seen: dict[str, Any] = {"losses": [], "prints": [], "orders": [], "bounds": []}
    for order in (*ORDERS, None):
        seen["losses"] += [step(model, optimizer, rows) for _ in range(STEPS)]
        if order is not None:
            result = reduce_model(model, order, optimizer=optimizer)
            seen["orders"].append([part.new_order for part in result.report.values()])
            seen["bounds"].append([part.measured_error for part in result.report.values()])
        seen["prints"].append(fingerprint(model, optimizer))
    seen["same objects"] = all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    seen["shapes"] = [list(parameter.shape) for parameter in model.parameters()]
    seen["moments"] = [
        list(value.shape)
        for parameter in model.parameters()
        for field, value in sorted(optimizer.state[parameter].items())
        if field != "step"
    ]
    return seen


def wrapped(kind: str, model: nn.Sequential) -> nn.Module:
    """`model` as it is trained by several processes."""
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "ddp static":
        return DistributedDataParallel(model, static_graph=True)
    if kind == "ddp compiled":
        return torch.compile(DistributedDataParallel(model), backend="eager")
    if kind == "ddp unused":
        model[0].spare = nn.Linear(2, 2)
        return DistributedDataParallel(model, find_unused_parameters=True)
    if kind == "ddp frozen views":
        model[1].requires_grad_(False)
        model[2].requires_grad_(False)
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    if kind == "ddp views":
        wrap = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=1)
        wrap.register_comm_hook(None, allreduce_hook)
        return wrap
    for layer in (model[1], model[2]):
        fully_shard(layer, reshard_after_forward=kind == "fsdp")
    return fully_shard(model)


def failing(scenario: str, rank: int, rows: slice) -> dict[str, Any]:
    """A cut that one rank cannot make."""
    kind, fault = scenario.split("-")
    model = wrapped("ddp" if kind == "trainer" else kind, model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step(model, optimizer, rows)
    if fault == "shard" and rank == 1:
        with torch.no_grad():
            model[1].lru.C_re.to_local()[0, 0] = float("nan")
    if fault == "mesh":
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
        model = fully_shard(model_of(), mesh=mesh)
        optimizer = None
    if fault == "nan" and rank == 1:
        with torch.no_grad():
            model.module[1].lru.C_re[0, 0] = float("nan")
    if fault == "other" and rank == 1:
        with torch.no_grad():
            model.module[1].lru.B_re[0, 0] += 1e-3
    if fault == "state" and rank == 1:
        model.module[1].lru.state = torch.zeros(5)  # kept between calls, of another layout
    if fault == "pickle":
        layer = model.module[1].lru
        own_map = copy.copy(handle_of(layer).kind)
        own_map.note = lambda: None
        layer.__class__ = type("Own", (LrnnxLRU,), {})
        register_layer(type(layer), own_map)
    if fault == "unstable":
        with torch.no_grad():
            model.module[1].lru.nu_log[0] = -1e9
    if fault == "adamax":
        optimizer = torch.optim.Adamax(model.parameters())
        step(model, optimizer, rows)
    if fault == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when imported

        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2)
        step(model, optimizer, rows)
    if fault == "precision":
        settings = _MixedPrecision(param_dtype=torch.bfloat16)
        model = DistributedDataParallel(model_of(), mixed_precision=settings)
        optimizer = None
    if fault == "optimizer" and rank == 1:
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    if fault == "gone":
        distributed.destroy_process_group()
    before = fingerprint(model, optimizer)
    if fault == "writing" and rank == 1:
        Entries.make = in_the_middle
    if kind == "trainer":
        order = ErrorBound(relative=1e-17) if fault == "planning" and rank == 0 else 4
        reducer = InTrainingReducer(ReductionSchedule(1, stop=1.0, attempts=1), order=order)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reducer.step(1, model, optimizer)
        return {
            "error": str(caught[-1].message),
            "kind": caught[-1].category.__name__,
            "unchanged": fingerprint(model, optimizer) == before,
        }
    try:
        reduce_model(model, 4, optimizer=optimizer)
    except SSMReduceError as error:
        seen = {
            "error": str(error),
            "kind": type(error).__name__,
            "unchanged": fingerprint(model, optimizer) == before,
        }
    else:
        return {"error": None}
    if fault == "writing":
        reduce_model(model, 4, optimizer=optimizer)
        step(model, optimizer, rows)
        seen["then"] = fingerprint(model, optimizer)
    return seen


def in_the_middle(_: Any, make: Any = Entries.make) -> None:
    """Fail once when moments are written: weights have their new shapes then."""
    Entries.make = make
    raise RuntimeError("in the middle")


def breaking(kind: str, rank: int, rows: slice) -> dict[str, Any]:
    """A cut and a rollback that one rank cannot write, at any of their steps, and then can."""
    model = wrapped(kind, model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step(model, optimizer, rows)
    reducer = InTrainingReducer(
        ReductionSchedule(4, stop=1.0, attempts=4), order=4, rollback=RollbackPolicy(0.5)
    )
    reducer.report(1.0)
    before = fingerprint(model, optimizer)
    cuts = broken(
        cut_of_models, lambda: reduce_model(model, 4, optimizer=optimizer), model, optimizer, rank
    )
    reducer.step(1, model, optimizer)
    step(model, optimizer, rows)
    reducer.report(9.0)
    books = books_of(reducer)
    rollbacks = broken(
        attempts_module, lambda: reducer.step(2, model, optimizer), model, optimizer, rank
    )
    kept = books_of(reducer) == books
    reducer.step(2, model, optimizer)
    undone = fingerprint(model, optimizer) == before
    step(model, optimizer, rows)
    return {
        "cuts": cuts,
        "rollbacks": rollbacks,
        "kept": kept,
        "undone": undone,
        "then": fingerprint(model, optimizer),
    }


def broken(
    module: Any, operate: Any, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int
) -> dict[str, Any]:
    """What is left after the second rank failed before each of the steps of a commit, and after them."""
    commit, before = module.commit, fingerprint(model, optimizer)
    seen: dict[str, Any] = {"steps": 0, "tried": 0, "errors": [], "torn": []}
    while seen["tried"] <= seen["steps"]:

        def fail(steps: Any, together: Any) -> None:
            seen["steps"] = len(steps)
            faulty = [Failing()] if rank == 1 else []
            place = seen["tried"]
            commit([*steps[:place], *faulty, *steps[place:]], together)

        module.commit = fail
        try:
            operate()
        except SSMReduceError as error:
            seen["errors"] = sorted({*seen["errors"], f"{type(error).__name__}: {error}"})
        else:
            seen["errors"].append("none")
        finally:
            module.commit = commit
        if fingerprint(model, optimizer) != before:
            seen["torn"].append(seen["tried"])
        seen["tried"] += 1
    return seen


class Failing(Step):
    """Fails when it is made."""

    def make(self) -> None:
        raise RuntimeError("in the middle")

    def undo(self) -> None:
        pass


def books_of(reducer: InTrainingReducer) -> str:
    """Where a reducer stands."""
    return repr({k: v for k, v in reducer.state_dict().items() if k != "trial"}) + repr(
        (reducer.due(10**6), sorted(reducer.last_cut))
    )


TIMEOUT = timedelta(seconds=15)
"""Of the group in which a rank is lost."""


def losing(scenario: str, rank: int, rows: slice) -> dict[str, Any]:
    """A cut or a rollback during which a rank ends, or is too late; all by what this rank itself holds."""
    _, kind, place = scenario.split()
    model = wrapped(kind, model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step(model, optimizer, rows)
    reducer = InTrainingReducer(
        ReductionSchedule(4, stop=1.0, attempts=4), order=4, rollback=RollbackPolicy(0.5)
    )
    reducer.report(1.0)
    if place == "undoing":
        reducer.step(1, model, optimizer)
        step(model, optimizer, rows)
        reducer.report(9.0)
    if rank == 1 and place in ("writing", "undoing"):
        Entries.make = lambda _: os._exit(0)
    elif rank == 1 and place == "late":
        Entries.make = late
    elif rank == 1 and place == "checking":
        cut_of_models._held = lambda *_: os._exit(0)
    elif rank == 0 and place == "deciding":
        attempts_module._accepted = lambda *_: os._exit(0)
    before, books = own_bytes(model, optimizer), books_of(reducer)
    began = time.perf_counter()
    try:
        reducer.step(2, model, optimizer)
        seen = {"error": "none"}
    except Exception as error:
        seen = {"error": str(error), "kind": type(error).__name__}
    seen["seconds"] = time.perf_counter() - began
    seen["unchanged"] = (own_bytes(model, optimizer), books_of(reducer)) == (before, books)
    return seen


def late(entry: Entries, make: Any = Entries.make) -> None:
    """Make the others wait too long, once."""
    Entries.make = make
    time.sleep(2 * TIMEOUT.total_seconds())
    entry.make()


def own_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """What this rank holds, without the others: shapes, and bits of parameters, gradients and moments."""
    tensors = [
        value
        for parameter in model.parameters()
        for value in (parameter, parameter.grad, *optimizer.state[parameter].values())
        if value is not None
    ]
    parts = [each.to_local() if hasattr(each, "to_local") else each for each in tensors]
    return [
        (tuple(each.shape), part.detach().contiguous().numpy().tobytes())
        for each, part in zip(tensors, parts, strict=True)
    ]


def checkpoints(rows: slice) -> dict[str, Any]:
    """A cut model that is saved whole and loaded by a plain one, and by one in DDP."""
    inputs, _ = batches()
    model = wrapped("fsdp", model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step(model, optimizer, rows)
    reduce_model(model, 4, optimizer=optimizer)
    saved = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    objects: list[Any] = [saved]  # the whole state is on the first rank alone
    distributed.broadcast_object_list(objects)
    plain = load_reduced(model_of(), objects[0])
    apart = float((plain(inputs) - model(inputs)).abs().max())
    wrap = wrapped("ddp", model_of())
    load_reduced(wrap, {f"module.{name}": value for name, value in objects[0].items()})
    optimizer = torch.optim.AdamW(wrap.parameters(), 1e-2)
    for _ in range(2):
        step(wrap, optimizer, rows)
    try:
        load_reduced(model, objects[0])
        refused = ""
    except SSMReduceError as error:
        refused = str(error)
    return {"apart": apart, "prints": [fingerprint(wrap, optimizer)], "refused": refused}


def in_training(rows: slice) -> dict[str, Any]:
    """The two lines of a training loop."""
    model = wrapped("ddp", model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    reducer = InTrainingReducer(ReductionSchedule(12, stop=0.5, attempts=2), order=HankelMass(0.9))
    for number in range(1, 13):
        step(model, optimizer, rows)
        model, optimizer = reducer.step(number, model, optimizer)
    return {
        "prints": [fingerprint(model, optimizer)],
        "orders": [event.new_order for event in reducer.events],
    }


REPORTS = {2: (1.0, 1.0), 4: (0.9, 5.0), 8: (9.0, 0.1)}
"""What each rank reports: by the first one, the first cut stands and the second does not."""


def make_reducer() -> InTrainingReducer:
    """Cuts after updates 3 and 6, each on trial."""
    return InTrainingReducer(
        ReductionSchedule(12, stop=0.5, attempts=2),
        order=HankelMass(0.8),
        gate=1.0,
        rollback=RollbackPolicy(0.5),
        trace=HankelTrace(3),
    )


def resumed(
    kind: str, model: nn.Module, optimizer: torch.optim.Optimizer, reducer: InTrainingReducer
) -> tuple[nn.Module, torch.optim.Optimizer, InTrainingReducer]:
    """The run from a checkpoint of full tensors, which is that of the first rank."""
    full = StateDictOptions(full_state_dict=True)
    state = *get_state_dict(model, optimizer, options=full), reducer.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    objects = [file.getvalue()]
    distributed.broadcast_object_list(objects)
    weights, moments, progress = torch.load(io.BytesIO(objects[0]), weights_only=True)
    model, reducer = wrapped(kind, load_reduced(model_of(5), weights)), make_reducer()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    set_optimizer_state_dict(model, optimizer, moments, options=full)
    reducer.load_state_dict(progress)
    return model, optimizer, reducer


def on_trial(kind: str, rank: int, rows: slice, *, resume: bool = False) -> dict[str, Any]:
    """Two cuts, one of which is undone; with `resume` the run is saved and loaded in the second trial."""
    model, reducer = wrapped(kind, model_of()), make_reducer()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    seen: dict[str, Any] = {"before": {}, "after": {}}
    for number in range(1, 13):
        step(model, optimizer, rows)
        seen["before"][number] = fingerprint(model, optimizer)
        with torch.no_grad():  # leaves full parameters in FSDP2 modules
            loss_of(model, rows)
        if number in REPORTS:
            reducer.report(REPORTS[number][rank])
        reducer.step(number, model, optimizer)
        if number in (3, 6, 8):
            seen["after"][number] = fingerprint(model, optimizer)
        if resume and number == 7:
            model, optimizer, reducer = resumed(kind, model, optimizer, reducer)
    return {
        **seen,
        "events": [event.to_dict() for event in reducer.events],
        "trace": reducer.trace.to_dict(),
    }


def by_data(kind: str, rank: int, rows: slice) -> dict[str, Any]:
    """Cuts by what each rank is given: on the way, and where a rank has fewer batches, or NaN in one."""
    model = wrapped(kind, model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step(model, optimizer, rows)
    generator = torch.Generator().manual_seed(rank)  # each has its own
    own = [torch.randn(8, 12, 2, generator=generator) for _ in range(4)]
    faults = {1: own[: 4 - rank], 2: [*own[:3], own[3] * (float("nan") if rank else 1.0)], 3: own}
    if kind == "ddp":
        del faults[1]
    given: list[Any] = []
    refused = ""
    try:
        check_can_be_copied(model, 4)
    except SSMReduceError as error:
        refused = str(error)
    reducer = InTrainingReducer(
        ReductionSchedule.at(1, 2, 3),
        order=4,
        data=lambda model: calibrate(
            model, given, loss=lambda model, batch: model(batch).square().mean()
        ),
    )
    seen: dict[str, Any] = {"errors": [], "callback": refused}
    for number, batches_of in faults.items():
        given[:] = batches_of
        before = fingerprint(model, optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            reducer.step(number, model, optimizer)
        if number < 3:
            seen["errors"].append(str(caught[-1].message))
            seen["unchanged"] = fingerprint(model, optimizer) == before
    step(model, optimizer, rows)
    seen["orders"] = [event.new_order for event in reducer.events]
    seen["by"] = sorted({part.choice.by for part in reducer.last_cut.values()})
    seen["losses"] = [event.loss_after for event in reducer.events]
    seen["print"] = fingerprint(model, optimizer)
    seen["unmatched"] = ""
    if kind == "fsdp":
        data = calibrate(model, own, loss=lambda model, batch: model(batch).square().mean())
        try:
            reduce_model(model, 2, optimizer=optimizer, data=data, options=CutOptions(match=True))
        except SSMReduceError as error:
            seen["unmatched"] = str(error)
        seen["unchanged"] &= fingerprint(model, optimizer) == seen["print"]
    return seen


def mamba_of(seed: int = 3) -> Any:
    """A small language model of transformers, the same on every rank."""
    torch.manual_seed(seed)
    config = MambaConfig(vocab_size=12, hidden_size=8, state_size=6, num_hidden_layers=2)
    return MambaForCausalLM(config)


def mamba_loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next token."""
    scores = model(ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(scores.transpose(1, 2), ids[:, 1:])


def mamba(kind: str, rank: int) -> dict[str, Any]:
    """A cut of a Mamba model in training by what each rank is given, and a rollback."""
    model = mamba_of()
    inner = model
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(rank)  # each has its own
    own = [torch.randint(12, (8, 10), generator=generator) for _ in range(4)]
    reducer = InTrainingReducer(
        ReductionSchedule.at(2),
        order=3,
        data=lambda model: calibrate(model, own, loss=mamba_loss),
        rollback=RollbackPolicy(0.5),
    )
    reducer.report(1.0)
    seen: dict[str, Any] = {"prints": [], "sizes": []}
    for number in range(1, 6):
        optimizer.zero_grad()
        mamba_loss(model, own[number % 4]).backward()
        optimizer.step()
        if number == 4:
            reducer.report(9.0)
        reducer.step(number, model, optimizer)
        seen["prints"].append(fingerprint(model, optimizer))
        seen["sizes"].append(
            [inner.config.state_size]
            + [each.mixer.A_log.shape[1] for each in inner.backbone.layers]
        )
    seen["methods"] = [event.method for event in reducer.events]
    return seen


def carrying(kind: str, rows: slice) -> dict[str, Any]:
    """A cut between two batches of one update: before it gradients are summed over processes, or not yet."""
    wrapper, _, way = kind.partition(" ")
    model = model_of() if wrapper == "alone" else wrapped(wrapper, model_of())
    optimizer = torch.optim.SGD(model.parameters(), 1e-1, momentum=0.9)
    step(model, optimizer, rows)
    if way == "unsummed" and wrapper == "ddp":
        with model.no_sync():
            loss_of(model, rows).backward()
    elif way == "unsummed":
        model.set_requires_gradient_sync(False)
        loss_of(model, rows).backward()
        model.set_requires_gradient_sync(True)
    else:
        loss_of(model, rows).backward()
    reduce_model(model, 4, optimizer=optimizer)
    loss_of(model, rows).backward()
    optimizer.step()
    return {
        "prints": [fingerprint(model, optimizer)],
        "weights": [whole(p.detach()).flatten().tolist() for p in model.parameters()],
    }


def accumulating(rows: slice) -> dict[str, Any]:
    """Layers that are not trained are cut while other weights hold gradients, which have to stay."""
    model = wrapped("ddp frozen views", model_of())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    step(model, optimizer, rows)
    loss_of(model, rows).backward()
    held = {
        name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad
    }
    reduce_model(model, 4, optimizer=optimizer)
    kept = [torch.equal(model.get_parameter(name).grad, value) for name, value in held.items()]
    loss_of(model, rows).backward()
    optimizer.step()
    return {"kept": kept, "prints": [fingerprint(model, optimizer)]}


def followers(rows: slice) -> dict[str, Any]:
    """An average that every rank keeps, and a teacher that is sharded like its model."""
    model = wrapped("ddp", model_of())
    average = torch.optim.swa_utils.AveragedModel(
        model.module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(3):
        step(model, optimizer, rows)
        average.update_parameters(model.module)
    reduce_model(model, 4, optimizer=optimizer, followers=[average])
    step(model, optimizer, rows)
    average.update_parameters(model.module)
    model, teacher = wrapped("fsdp", model_of()), wrapped("fsdp", model_of())
    inputs, _ = batches()
    with torch.no_grad():
        teacher(inputs)  # leaves full parameters
    reduce_model(model, 4, followers=[teacher])
    return {
        "prints": [fingerprint(average, optimizer)],
        "apart": float((model(inputs) - teacher(inputs)).abs().max()),
    }


def copies_inside(rows: slice) -> dict[str, Any]:
    """An average that is part of the model, on every rank or sharded."""
    prints, apart = [], []
    for kind in ("ddp", "fsdp"):
        net = model_of()
        average = torch.optim.swa_utils.AveragedModel(net).requires_grad_(False)
        whole_model = nn.Sequential(net, average)
        if kind == "ddp":
            model = DistributedDataParallel(whole_model)
        else:
            model = fully_shard(whole_model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        reduce_model(model, 4, optimizer=optimizer)
        prints.append(fingerprint(model, optimizer))
        apart += [
            float((whole(own.detach()) - whole(other.detach())).abs().max())
            for own, other in zip(net.parameters(), average.parameters(), strict=True)
        ]
    return {"prints": prints, "apart": max(apart)}


def main() -> None:
    """Join the others, run the scenario, leave a file."""
    scenarios, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=TIMEOUT if scenarios.startswith("losing ") else None,
    )
    rows = slice(2 * rank, 2 * rank + 2)
    seen = {}
    for scenario in scenarios.split(","):
        if scenario.startswith("resumed "):
            kind = scenario.removeprefix("resumed ")
            seen[scenario] = on_trial(kind, rank, rows, resume=True)
        elif scenario.startswith("on trial "):
            seen[scenario] = on_trial(scenario.removeprefix("on trial "), rank, rows)
        elif scenario == "followers":
            seen[scenario] = followers(rows)
        elif scenario == "copies inside":
            seen[scenario] = copies_inside(rows)
        elif scenario.startswith("carrying "):
            seen[scenario] = carrying(scenario.removeprefix("carrying "), rows)
        elif scenario == "accumulating":
            seen[scenario] = accumulating(rows)
        elif scenario.startswith("breaking "):
            seen[scenario] = breaking(scenario.removeprefix("breaking "), rank, rows)
        elif scenario.startswith("losing "):
            seen[scenario] = losing(scenario, rank, rows)
        elif scenario.startswith("mamba "):
            seen[scenario] = mamba(scenario.removeprefix("mamba "), rank)
        elif scenario.startswith("data "):
            seen[scenario] = by_data(scenario.removeprefix("data "), rank, rows)
        elif scenario == "in training":
            seen[scenario] = in_training(rows)
        elif scenario == "checkpoints":
            seen[scenario] = checkpoints(rows)
        elif "-" in scenario:
            seen[scenario] = failing(scenario, rank, rows)
        else:
            seen[scenario] = train(wrapped(scenario, model_of()), rows)
    Path(folder, f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
