"""What else of PyTorch knows the shape of a parameter: graphs, scalers, hooks, schedulers, files."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from test_torch_training import (
    LAYERS,
    Kernel,
    Transposed,
    batch,
    check_shapes,
    fingerprint,
    loss_of,
    model_of,
    train,
)
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch_modules import LrnnxLRU
from torch_samples import s5

from ssmreduce import CutOptions, load_reduced, reduce_model
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.models.search import search


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(24)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_the_number_of_states_follows_from_shapes_alone(name: str) -> None:
    (handle,) = search(model_of(name)).meant
    assert handle.order == handle.kind.order(handle.weights)
    (empty,) = search(model_of(name).to("meta")).meant
    assert empty.order == handle.order


COMPILED = ["s4d", "s4 diagonal"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("passed", ["model", "compiled"])
def test_compiled_models_recompile(name: str, passed: str) -> None:
    model = model_of(name)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    inputs, _ = batch()
    assert torch.equal(compiled(inputs), model(inputs))
    frames = counter.frame_count
    compiled(inputs)
    assert counter.frame_count == frames
    result = reduce_model(model if passed == "model" else compiled, 4, optimizer=optimizer)
    assert all(part.new_order == 4 for part in result.report.values())
    # Another shape, another graph, the same numbers; once.
    assert torch.equal(compiled(inputs), model(inputs))
    assert counter.frame_count > frames
    again = counter.frame_count
    losses = train(compiled, optimizer, 5)
    assert counter.frame_count <= again + 1
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_gradients_after_a_cut_are_those_of_the_model(name: str) -> None:
    model = model_of(name)
    compiled = torch.compile(model, backend="aot_eager")
    loss_of(compiled).backward()
    model.zero_grad()
    reduce_model(model, 4)
    loss_of(compiled).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss_of(model).backward()
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        assert gradient.shape == parameter.shape
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
# Inductor's own imports, and what it says of complex operators.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation:UserWarning")
def test_inductor_compiles_the_new_shape() -> None:
    pytest.importorskip("torch._inductor")
    model = model_of("s4d")
    try:
        compiled = torch.compile(model)
        before = compiled(batch()[0])
    except torch._inductor.exc.InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    reduce_model(model, 4)
    after = compiled(batch()[0])
    torch.testing.assert_close(after, model(batch()[0]), rtol=1e-5, atol=1e-6)
    assert not torch.equal(before, after)


# torch.export asks intermediate results of s5's vmap for a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["s5", "s4d", "s4 diagonal"])
def test_reduced_models_export(name: str, tmp_path: Any) -> None:
    model = model_of(name)
    reduce_model(model, 4)
    inputs, _ = batch()
    program = torch.export.export(model, (inputs,))
    shapes = {key: value.shape for key, value in program.state_dict.items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-5, atol=1e-6)
    if name == "s5":
        return  # torch cannot save the constants that vmap leaves in a graph, at any order
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(again(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_what_was_taken_before_a_cut_keeps_the_old_tensors() -> None:
    model = model_of("s4d")
    inputs, _ = batch()
    expected = model(inputs).detach()
    program = torch.export.export(copy.deepcopy(model), (inputs,))
    state = model.state_dict()
    reduce_model(model, 4)
    assert torch.equal(program.module()(inputs), expected)
    fresh = model_of("s4d")
    fresh.load_state_dict(state)
    assert torch.equal(fresh(inputs), expected)


def test_gradient_scalers_go_on() -> None:
    def run(cut: bool) -> tuple[list[float], dict[str, Any]]:
        torch.manual_seed(24)
        model = model_of("s4d")
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        losses = []
        for step in range(8):
            with torch.autocast("cpu", enabled=False):
                loss = loss_of(model)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if cut and step == 3:
                before = scaler.state_dict()
                reduce_model(model, 4, optimizer=optimizer)
                assert scaler.state_dict() == before
        return losses, scaler.state_dict()

    losses, state = run(cut=True)
    _, expected = run(cut=False)
    assert state == expected  # scale and its growth count steps alone
    assert losses[-1] < losses[0]


def test_scaled_gradients_in_progress_follow() -> None:
    model = model_of("s4d")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model)).backward()
    reduce_model(model, 4)
    scaler.scale(loss_of(model)).backward()
    scaler.step(optimizer)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_hooks_stay() -> None:
    model = model_of("s5")
    layer = model[1].seq
    seen: dict[str, list[Any]] = {"forward": [], "backward": [], "tensor": [], "accumulated": []}
    model[1].register_forward_hook(lambda *_: seen["forward"].append(1))
    model[2].register_full_backward_hook(lambda *_: seen["backward"].append(1))
    layer.C.register_hook(lambda gradient: seen["tensor"].append(gradient.shape))
    layer.C.register_post_accumulate_grad_hook(
        lambda parameter: seen["accumulated"].append(parameter.grad.shape)
    )
    loss_of(model).backward()
    model.zero_grad()
    reduce_model(model, 4)
    loss_of(model).backward()
    assert seen["forward"] == seen["backward"] == [1, 1]
    for kind in ("tensor", "accumulated"):
        assert seen[kind] == [(3, 8), (3, 4)], kind


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad"])
def test_fused_and_foreach_optimizers(kind: str, fused: bool) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
    make = getattr(torch.optim, kind)
    if fused and kind == "RMSprop":
        pytest.skip("torch has no fused RMSprop")
    runs = []
    for form in ({"fused": True} if fused else {"foreach": True}, {"foreach": False}):
        torch.manual_seed(24)
        model = model_of("s4d")  # real parameters only: fused kernels take no others
        optimizer = make(model.parameters(), 1e-3, **options, **form)
        train(model, optimizer, 2)
        reduce_model(model, 4, optimizer=optimizer)
        check_shapes(optimizer)
        runs.append(train(model, optimizer, 5))
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


SCHEDULERS: dict[str, Any] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=20),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "chain": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        ],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on(name: str) -> None:
    rates = []
    for cut in (False, True):
        torch.manual_seed(24)
        model = model_of("s4d")
        groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[1].parameters()}]
        optimizer = torch.optim.SGD(groups, 1e-2, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        seen = []
        for step in range(8):
            train(model, optimizer, 1)
            scheduler.step(*([1.0] if name == "plateau" else []))
            if cut and step == 3:
                reduce_model(model, 4, optimizer=optimizer)
            seen.append([group["lr"] for group in optimizer.param_groups])
        rates.append(seen)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("name", LAYERS)
def test_safetensors(name: str) -> None:
    model = model_of(name)
    reduce_model(model, 4)
    fresh = model_of(name)
    data = save_safetensors(model.state_dict())
    load_reduced(fresh, load_safetensors(data))
    inputs, _ = batch()
    assert torch.equal(fresh(inputs), model(inputs))


def test_copies_and_pickles_with_their_optimizer() -> None:
    model = model_of("lru")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    train(model, optimizer, 2)
    reduce_model(model, 4, optimizer=optimizer)
    pair = {"model": model, "optimizer": optimizer}
    twin, thawed = copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))
    stream = io.BytesIO()
    torch.save(pair, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    expected = train(model, optimizer, 3)
    for other in (twin, thawed, loaded):
        assert train(other["model"], other["optimizer"], 3) == expected


# --- Variants that cannot be reduced


def mixed() -> nn.Sequential:
    return nn.Sequential(
        LrnnxLRU(3, 12),
        Kernel(bandlimit=0.5),
        s5(False, False, 8),
        Transposed(),
        Kernel(disc="dss"),
    )


def test_variants_may_be_skipped_by_name() -> None:
    model = mixed()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    before = fingerprint(model[1], model[4])
    with pytest.raises(UnsupportedLayerError, match=r"bandlimit.*skip_unsupported"):
        reduce_model(model, 4, optimizer=optimizer)
    result = reduce_model(model, 4, optimizer=optimizer, options=CutOptions(skip_unsupported=True))
    assert list(result.report) == ["0", "2.seq", "3.block.kernel"]
    assert list(result.skipped) == ["1.kernel", "4.kernel"]
    assert "`bandlimit`" in result.skipped["1.kernel"]
    assert "`disc`" in result.skipped["4.kernel"]
    assert fingerprint(model[1], model[4]) == before
    last = str(result).splitlines()[-2:]
    assert last[0].startswith("not reduced: 1.kernel: ")
    assert last[1].startswith("not reduced: 4.kernel: ")
    assert not reduce_model(model_of("s5"), 4, options=CutOptions(skip_unsupported=True)).skipped


def test_nothing_but_variants_is_an_error() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"Passed over: `0\.kernel`.*bandlimit"):
        reduce_model(
            nn.Sequential(Kernel(bandlimit=0.5)), 4, options=CutOptions(skip_unsupported=True)
        )


def test_copies_skip_what_the_model_skips() -> None:
    model = mixed()
    twin = copy.deepcopy(model)
    result = reduce_model(model, 4, options=CutOptions(skip_unsupported=True), followers=[twin])
    assert list(result.followers[0].report) == list(result.report)
