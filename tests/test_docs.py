"""Examples of the docs that are programs of their own."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
import re
import runpy
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s5 import S5
from samples import lru_weights

from ssmreduce import (
    InTrainingReducer,
    ReductionSchedule,
    RollbackPolicy,
    balanced_truncation,
    calibrate,
    difference,
    h2_norm,
    read_system,
    reduce_layer,
    reduce_model,
    register_layer,
    write_system,
)
from ssmreduce.demo.lru import LRU
from ssmreduce.errors import OptimizerStateError, UnsupportedLayerError
from ssmreduce.frameworks.current import register_framework
from ssmreduce.frameworks.transaction import Prepared

FOLDER = Path(__file__).parents[1] / "docs/examples"
ROOT = FOLDER.parents[1]
PAGES, PICTURE = ("index", "tour"), r"image:: (\S+)"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", ["README.rst", "CONTRIBUTING.rst", "docs/*.rst"])
def test_names_and_paths_in_the_docs_exist(page: str) -> None:
    names = re.compile(r"\bssmreduce(?:\.[A-Za-z]\w*)+")
    paths = re.compile(r"``((?:ssmreduce|tests|benchmarks|docs|\.ci)/[\w./]+)")
    missing = []
    for path in ROOT.glob(page):
        text = path.read_text(encoding="utf-8")
        if path.name == "renamed.rst":  # the column of today's names
            text = "".join(re.findall(r"^     - .*\n(?:       .*\n)*", text, re.M))
            assert len(names.findall(text)) > 15
        missing += [each for each in names.findall(text) if not exists(each)]
        missing += [each for each in paths.findall(text) if not (ROOT / each).exists()]
    assert set(missing) <= {"ssmreduce.pt"}  # a file of the Trainer's checkpoints


@pytest.mark.parametrize(
    "name", ["torch_penalty", pytest.param("train_and_cut", marks=pytest.mark.slow)]
)
def test_an_example_trains(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    losses = [float(each) for each in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3


def readme(framework: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run the code of a section of the README; what it leaves behind."""
    text = (FOLDER.parents[1] / "README.rst").read_text(encoding="utf-8")
    section = text.split(f"\n{framework}\n---")[1]
    block = section.split("code-block:: python\n\n")[1]
    code = re.match(r"(?:   .*\n|\n)+", block)
    assert code is not None
    exec(textwrap.dedent(code[0]), given)
    return given


def test_the_readme_in_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), S5(16, 64))
    left = readme(
        "PyTorch",
        {
            "model": model,
            "optimizer": torch.optim.AdamW(model.parameters(), 1e-3),
            "batches": torch.randn(30, 8, 20, 2),
            "total_steps": 30,
            "sequence_length": 20,
            "loss_of": lambda model, batch: model(batch).square().mean(),
            "accuracy": lambda model: 0.5,
        },
    )
    assert [event.step for event in left["reducer"].events] == [15]
    assert len(model[1].seq.Lambda) <= 16
    assert "0.5" in capsys.readouterr().out


def test_the_readme_in_jax(capsys: pytest.CaptureFixture[str]) -> None:
    left = readme(
        "JAX",
        {
            "model": LRU(32, 4, rng=np.random.default_rng(0)),
            "batches": range(30),
            "total_steps": 30,
            "train_step": lambda model, opt_state, batch: (model, opt_state),
        },
    )
    assert left["model"].states < 32
    assert "ReductionEvent(step=15" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tour_pictures.py", str(tmp_path)])
    runpy.run_path(str(FOLDER / "tour_pictures.py"), run_name="__main__")
    shown = re.findall(r"([\d.]+)%", "\n".join(accuracies(capsys.readouterr().out)))
    full, again, half, ten, white, data, *fewer, young, loaded = map(float, shown)
    assert full == again > 97.0
    assert min(half, ten, data, young) > full - 2.0
    assert max(fewer) < white < full
    assert young == loaded
    pages = [(FOLDER.parent / f"{name}.rst").read_text(encoding="utf-8") for name in PAGES]
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(PICTURE, "".join(pages)))


def accuracies(printed: str) -> list[str]:
    """The lines of the tour that say how good a model is."""
    return [line for line in printed.splitlines() if "accuracy" in line or "data" in line]


def test_the_tour_shows_all_of_its_program() -> None:
    page = (FOLDER.parent / "tour.rst").read_text(encoding="utf-8")
    parts = re.findall(r":start-after: (# .+)", page)
    program = (FOLDER / "tour.py").read_text(encoding="utf-8")
    assert re.findall(r"^# [A-Z].*$", program, flags=re.MULTILINE) == parts
    assert re.findall(r":end-before: (# .+)", page) == parts[1:]


# torch.jit warns that it is deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_one_step_of_a_reduced_layer_exports(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    layer = S5(4, 16)
    reduce_model(layer, 6)
    module = runpy.run_path(str(FOLDER / "deploy.py"))
    step = module["Step"](read_system(layer))
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, 4), torch.zeros(2, 2, 6)
    program = torch.export.export(step, example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "step.pt2")
    loaded = torch.export.load(tmp_path / "step.pt2").module()
    inputs = torch.randn(3, 5, 4)
    for run in (step, loaded, torch.jit.script(step)):
        state, outputs = torch.zeros(3, 2, 6), []
        for each in inputs.unbind(1):
            out, state = run(each, state)
            outputs.append(out)
        torch.testing.assert_close(torch.stack(outputs, 1), layer(inputs), rtol=1e-5, atol=1e-6)


def test_a_reduced_model_of_jax_exports() -> None:
    import jax
    from jax import export

    model = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6).layer
    (batch,) = export.symbolic_shape("batch")
    run = jax.jit(lambda inputs: model(inputs))
    exported = export.export(run)(jax.ShapeDtypeStruct((batch, 20, 4), "float32"))
    inputs = np.random.default_rng(1).normal(size=(3, 20, 4)).astype(np.float32)
    assert np.allclose(exported.call(inputs), model(inputs), rtol=1e-4, atol=1e-5)


def test_errors_at_other_steps_and_lengths() -> None:
    module = runpy.run_path(str(FOLDER / "other_steps.py"))
    layer, by_step, by_length = (
        module[name] for name in ("layer", "errors_by_step", "errors_by_length")
    )
    bound, errors = by_step(layer("bilinear", 3.0, states=16), 4)
    at_cut = module["SCALES"].index(1.0)
    assert 0.0 < errors[at_cut] <= bound
    for scale, error in zip(module["SCALES"], errors, strict=True):
        assert error <= max(1.0, scale) * errors[at_cut] * (
            1.0 + 1e-4
        )  # weights are in single precision
    bound, errors = by_step(module["turned"](), 1)
    assert errors[0] > 1.0 > bound > errors[at_cut]
    bound, errors = by_length(layer("zoh", 3.0, states=16), 4, None)
    assert errors == sorted(errors)
    assert errors[-1] <= bound


def test_a_layer_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    path = FOLDER / "own_layer.py"
    runpy.run_path(str(path))
    assert re.search(r"^0 +32 +8 ", capsys.readouterr().out, flags=re.MULTILINE)
    assert len([line for line in path.read_text().splitlines() if line]) < 40


def test_a_layer_with_real_poles_alone(capsys: pytest.CaptureFixture[str]) -> None:
    import jax

    module = runpy.run_path(str(FOLDER / "real_poles.py"))
    assert re.search(r"^\[0\] +32 +8 ", capsys.readouterr().out, flags=re.MULTILINE)
    layer = module["RealPoles"](32, 2, jax.random.key(0))
    result = reduce_layer(layer, 8)
    cut = result.cut
    assert np.array_equal(result.layer.decay, layer.decay[cut.kept])
    squares = cut.scores**2
    assert squares.sum() == pytest.approx(h2_norm(read_system(layer)) ** 2)
    lost = h2_norm(difference(read_system(layer), read_system(result.layer))) ** 2
    assert lost == pytest.approx(squares[8:].sum(), rel=1e-3)


def test_a_layer_with_real_poles_alone_is_calibrated() -> None:
    import jax
    import jax.numpy as jnp

    module = runpy.run_path(str(FOLDER / "real_poles.py"))

    class Running(module["RealPoles"]):  # type: ignore[misc]
        def __call__(self, inputs: Any) -> Any:
            def step(state: Any, sample: Any) -> tuple[Any, Any]:
                state = jnp.exp(-jnp.exp(self.decay)) * state + self.B @ sample
                return state, self.C @ state

            return jax.lax.scan(step, jnp.zeros_like(self.decay), inputs)[1]

    register_layer(Running, module["RealPolesLayer"]())
    layer = Running(32, 2, jax.random.key(0))
    inputs = np.random.default_rng(0).normal(size=(8, 30, 2)).astype(np.float32)
    data = calibrate(
        layer, [inputs, inputs], loss=lambda model, u: (jax.vmap(model)(u) ** 2).mean()
    )
    assert reduce_layer(layer, 8, data=data).new_order == 8


def test_the_pictures_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pictures.py", str(tmp_path)])
    runpy.run_path(str(FOLDER / "pictures.py"), run_name="__main__")
    page = (FOLDER.parent / "pictures.rst").read_text(encoding="utf-8")
    shown = sorted(re.findall(r"image:: (\S+)", page))
    assert sorted(path.name for path in tmp_path.iterdir()) == shown
    assert all((FOLDER.parent / name).exists() for name in shown)


def test_a_framework_of_ones_own() -> None:
    path = FOLDER / "own_framework.py"
    Part = runpy.run_path(str(path))["Part"]
    assert len([line for line in path.read_text().splitlines() if line]) < 40
    weights = lru_weights(np.random.default_rng(0), 16, 3)
    ssm = Part(**{name: value.astype(np.float32) for name, value in weights.items()})
    model, copy = Part(encoder=Part(W=np.eye(3)), ssm=ssm), Part(ssm=ssm)
    result = reduce_model(model, 6, followers=[copy])
    assert list(result.report) == ["ssm"]
    assert result.model.ssm.nu_log.shape == result.followers[0].model.ssm.nu_log.shape == (6,)
    assert result.model.ssm.nu_log.dtype == np.float32
    assert ssm.nu_log.shape == (16,)
    assert reduce_layer(ssm, 6).layer.C_re.shape == (3, 6)
    smaller = balanced_truncation(read_system(ssm), 4).system
    assert write_system(ssm, smaller).nu_log.shape == (4,)
    cut, _ = InTrainingReducer(ReductionSchedule.at(1), 5).step(1, model, None)
    assert cut.ssm.nu_log.shape == (5,)
    with pytest.raises(OptimizerStateError, match="knows of none"):
        reduce_model(model, 6, opt_state={"nu": 1})
    watched = InTrainingReducer(ReductionSchedule.at(1), 5, rollback=RollbackPolicy(0.1))
    watched.report(1.0)
    with pytest.warns(UserWarning, match="takes no snapshot"):
        watched.step(1, model, None)


def snapshots_of(module: dict[str, Any]) -> tuple[Any, Any]:
    """The framework of the example, with snapshots, and one whose snapshots have another form."""
    Part, Parts = module["Part"], module["Parts"]

    def arrays_of(part: Any, before: str = "") -> dict[str, Any]:
        found = {}
        for name, value in vars(part).items():
            inner = arrays_of(value, f"{before}{name}.") if isinstance(value, Part) else None
            found |= {before + name: value.copy()} if inner is None else inner
        return found

    class Watched(Parts):  # type: ignore[misc,valid-type]
        def snapshot(self, model: Any, opt_state: Any, handles: Any) -> Any:
            return {"model": arrays_of(model), "opt_state": {}}

        def prepared_back(self, model: Any, opt_state: Any, snapshot: Any, handles: Any) -> Any:
            made = copy.deepcopy(model)
            for name, value in snapshot["model"].items():
                *path, last = name.split(".")
                setattr(functools.reduce(getattr, path, made), last, value.copy())
            return Prepared(made, opt_state)

    class Odd(Watched):
        def snapshot(self, model: Any, opt_state: Any, handles: Any) -> Any:
            return self.form(super().snapshot(model, opt_state, handles)["model"])

    return Watched(), Odd()


def test_a_framework_of_ones_own_with_snapshots() -> None:
    module = runpy.run_path(str(FOLDER / "own_framework.py"))
    Part = module["Part"]
    watched, odd = snapshots_of(module)
    weights = lru_weights(np.random.default_rng(0), 16, 3)
    model = Part(encoder=Part(W=np.eye(3)), ssm=Part(**weights))

    def reducer() -> InTrainingReducer:
        return InTrainingReducer(ReductionSchedule.at(1), 5, rollback=RollbackPolicy(0.1))

    register_framework(Part, watched)
    first, again = reducer(), reducer()
    first.report(1.0)
    cut, _ = first.step(1, model, None)
    assert cut.ssm.nu_log.shape == (5,)
    again.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert again.events == first.events
    again.report(2.0)
    back, _ = again.step(2, cut, None)
    assert np.array_equal(back.ssm.B_re, weights["B_re"])
    register_framework(Part, odd)
    for form, message in (
        (lambda arrays: arrays, r"Odd\.snapshot returned \['encoder\.W'.*expected \{'model'"),
        (lambda arrays: [arrays], r"Odd\.snapshot returned "),
        (lambda arrays: {"model": [arrays], "opt_state": {}}, r"as its 'model'; expected"),
        (lambda arrays: {"model": {"x": arrays}, "opt_state": {}}, r"as model\['x'\]; expected"),
    ):
        odd.form = form
        third = reducer()
        third.report(1.0)
        with pytest.warns(UserWarning, match=rf"(?s)no cut after step 1.*{message}"):
            same, _ = third.step(1, model, None)
        assert same is model


def test_what_is_no_framework_is_refused() -> None:
    for arguments in ((3, 3), (dict, dict)):
        with pytest.raises(UnsupportedLayerError, match="`model_type` is"):
            register_framework(*arguments)  # type: ignore[arg-type]
