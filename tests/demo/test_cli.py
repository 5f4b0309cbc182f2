"""The command line: exit codes, one-line errors, files written, Ctrl-C."""

from __future__ import annotations

import json
import sys

import pytest

from ssmreduce.cli import main
from ssmreduce.demo import experiment
from ssmreduce.demo.training import CurvePoint


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ssmreduce ")


def test_help_names_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["demo", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--dataset", "--data", "--states", "--tau", "--steps", "--seed", "--quick"):
        assert option in out
    assert "--output" in out


@pytest.mark.parametrize("module", ["typer", "jax", "sklearn", "rich"])
def test_a_missing_package_is_one_line_with_the_pip_command(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "pip install 'ssmreduce[demo]'" in captured.err


@pytest.mark.parametrize(
    "arguments", [["--tau", "2"], ["--states", "0"], ["--steps", "0"], ["--dataset", "smnist"]]
)
def test_impossible_options_are_one_line(arguments, tmp_path, capsys):
    output = tmp_path / "results"
    assert main(["demo", *arguments, "--output", str(output)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"ssmreduce: {arguments[0]}")
    assert captured.err.count("\n") == 1
    assert not output.exists()


def test_a_wrong_data_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "mnist.npz"
    path.write_text("not an archive")
    output = tmp_path / "results"
    arguments = ["demo", "--dataset", "smnist", "--data", str(path), "--output", str(output)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not output.exists()


def test_output_below_a_file_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file" / "results")]) == 1
    assert "cannot be created" in capsys.readouterr().err


def test_unknown_options_are_usage_errors():
    assert main(["demo", "--speed", "11"]) == 2


def test_demo_writes_numbers_and_pictures(tmp_path, capsys):
    arguments = ["demo", "--quick", "--steps", "20", "--states", "32", "--tau", "0.3"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"settings", "environment", "runs", "cuts"}
    assert set(results["environment"]) == {"python", "numpy", "jax", "cores"}
    assert results["settings"]["steps"] == 20
    runs = results["runs"]
    assert list(runs) == ["full", "reduced", "small"]
    assert all(run["complete"] and 0.0 <= run["accuracy"] <= 1.0 for run in runs.values())
    assert runs["full"]["states"] == 32
    assert runs["reduced"]["states"] == sum(runs["reduced"]["states_per_layer"]) < 32
    assert runs["small"]["states_per_layer"] == runs["reduced"]["states_per_layer"]
    # Same seed, same batches: full and reduced are one run until the first cut.
    assert results["cuts"][-1]["new_order"] == runs["reduced"]["states"]
    assert all(cut["measured_error"] <= cut["error_bound"] for cut in results["cuts"])
    for name in ("hsv_decay.png", "accuracy.png", "poles.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Runs, same seed and steps" in out
    assert "Cuts of the reduced run" in out


@pytest.mark.parametrize("interrupted", ["full", "reduced", "small"])
def test_ctrl_c_saves_what_was_reached(interrupted, tmp_path, monkeypatch, capsys):
    def train(run, problem, settings, states_per_layer, watch, reducer=None):
        run.states_per_layer = list(states_per_layer)
        run.seconds = 1.0
        run.curve.append(CurvePoint(10, 1.0, 0.5, 0.75, run.states))
        if run.name == interrupted:
            raise KeyboardInterrupt
        run.complete = True

    monkeypatch.setattr(experiment, "train", train)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    runs = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["runs"]
    names = list(runs)
    done = names.index(interrupted)
    assert [runs[name]["complete"] for name in names] == [place < done for place in range(3)]
    assert runs[interrupted]["accuracy"] == 0.75
    if interrupted == "full":
        assert runs["small"]["accuracy"] is None
    assert (tmp_path / "poles.png").exists()
    assert f"{interrupted} (unfinished)" in capsys.readouterr().out


def test_ctrl_c_before_training_exits_with_its_code(tmp_path, monkeypatch, capsys):
    def interrupt(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "load", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1
