"""The command line: exit codes, one-line errors, files written, Ctrl-C."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading

import pytest

from ssmreduce.cli import main
from ssmreduce.demo import experiment, report
from ssmreduce.demo.training import CurvePoint

FILES = ("results.json", "hsv_decay.png", "accuracy.png", "poles.png")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises, also where the tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def train(monkeypatch):
    """Stands in for the training, which it pretends to have done; call it to do so."""

    def pretend(run, problem, settings, states_per_layer, watch, reducer=None):
        run.states_per_layer = list(states_per_layer)
        run.seconds = 1.0
        run.curve.append(CurvePoint(10, 1.0, 0.5, 0.75, run.states))
        run.complete = True

    monkeypatch.setattr(experiment, "train", pretend)
    return pretend


def read_results(folder):
    def refuse(constant):
        raise AssertionError(constant)

    text = (folder / "results.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


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


def test_help_needs_the_core_alone(capsys, monkeypatch):
    for module in ("jax", "equinox", "optax", "sklearn", "matplotlib", "rich"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main([]) == 2
    assert "usage: ssmreduce" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["jax", "sklearn", "rich"])
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
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_output_that_cannot_take_a_file_is_refused_before_training(name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    assert main(["demo", "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert f"{name}: Is a directory" in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_output_without_permission_is_refused_before_training(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_unknown_options_are_usage_errors():
    assert main(["demo", "--speed", "11"]) == 2


@pytest.mark.slow  # trains; .ci/run runs the demo itself too
def test_demo_writes_numbers_and_pictures(tmp_path, capsys):
    arguments = ["demo", "--quick", "--steps", "20", "--states", "32", "--tau", "0.3"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"settings", "environment", "interrupted", "runs", "cuts"}
    assert results["interrupted"] is False
    assert set(results["environment"]) == {"python", "numpy", "jax", "cores"}
    assert results["settings"]["steps"] == 20
    runs = results["runs"]
    assert list(runs) == ["full", "reduced", "small"]
    assert all(run["complete"] and 0.0 <= run["accuracy"] <= 1.0 for run in runs.values())
    assert runs["full"]["states"] == 32
    assert runs["reduced"]["states"] == sum(runs["reduced"]["states_per_layer"]) < 32
    assert runs["small"]["states_per_layer"] == runs["reduced"]["states_per_layer"]
    assert results["cuts"][-1]["new_order"] == runs["reduced"]["states"]
    assert all(cut["measured_error"] <= cut["error_bound"] for cut in results["cuts"])
    for name in ("hsv_decay.png", "accuracy.png", "poles.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Same seed, batches and steps" in out
    assert "32 → " in out


@pytest.mark.parametrize("interrupted", ["full", "reduced", "small"])
def test_ctrl_c_saves_what_was_reached(interrupted, train, tmp_path, monkeypatch, capsys):
    def interrupt(run, *args):
        train(run, *args)
        if run.name == interrupted:
            run.complete = False
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    results = read_results(tmp_path)
    assert results["interrupted"] is True
    runs = results["runs"]
    names = list(runs)
    done = names.index(interrupted)
    assert [runs[name]["complete"] for name in names] == [place < done for place in range(3)]
    assert runs[interrupted]["accuracy"] == 0.75
    if interrupted == "full":
        assert runs["small"]["accuracy"] is None
    assert (tmp_path / "poles.png").exists()
    out = capsys.readouterr().out
    assert f"{interrupted} *" in out
    assert "* unfinished" in out


def test_ctrl_c_before_training_exits_with_its_code(tmp_path, monkeypatch, capsys):
    def interrupt(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "load", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_while_the_files_are_written_writes_them_again(train, tmp_path, monkeypatch):
    write, pressed = report.write_results, []

    def interrupt(*args):
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # later ones are ignored
        return write(*args)

    monkeypatch.setattr(report, "write_results", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_while_printing_leaves_the_files(train, tmp_path, monkeypatch):
    def fail(*args):
        raise UnicodeEncodeError("ascii", "→", 0, 1, "no good")

    monkeypatch.setattr(report, "print_table", fail)
    with pytest.raises(UnicodeEncodeError):
        main(["demo", "--output", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_consoles_without_unicode_show_what_they_can(encoding, train, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    output = tmp_path / "δ [bold]"
    assert main(["demo", "--output", str(output)]) == 0
    sys.stdout.flush()
    assert b"? [bold]" in sys.stdout.buffer.getvalue()


def test_the_demo_runs_outside_the_main_thread(train, tmp_path):
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(main(["demo", "--output", str(tmp_path)]))
    )
    thread.start()
    thread.join()
    assert codes == [0]


def test_numbers_that_json_does_not_have_are_null(train, tmp_path, monkeypatch):
    def diverge(run, *args):
        train(run, *args)
        run.curve.append(CurvePoint(20, 2.0, math.nan, math.inf, 1))

    monkeypatch.setattr(experiment, "train", diverge)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    point = read_results(tmp_path)["runs"]["full"]["curve"][-1]
    assert point["loss"] is None
    assert point["accuracy"] is None


@pytest.mark.slow  # a process of its own, which trains
def test_a_real_interrupt_ends_the_demo_cleanly(tmp_path):
    # Python's own handler, also where this test runs in the background with SIGINT ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from ssmreduce.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["demo", "--quick", "--states", "16", "--steps", "100000"]
    command = [sys.executable, "-c", program, *arguments, "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            while "step " not in process.stdout.readline().partition("full")[2]:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    results = read_results(tmp_path)
    assert results["interrupted"] is True
    assert not results["runs"]["full"]["complete"]
