"""The command line: exit codes, one-line errors, files written, Ctrl-C."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from ssmreduce.cli import main
from ssmreduce.demo import experiment, report
from ssmreduce.demo.data import SequenceData
from ssmreduce.demo.runs import CurvePoint, Run
from ssmreduce.training.tracking import ReductionEvent

FILES = ("results.json", "hsv_decay.png", "accuracy.png", "poles.png")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises, also where the tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def finished(name, seed):
    """A run that pretends to have trained."""
    run = Run(name, seed, step=10, loss=0.5, states_per_layer=[8], seconds=1.0, complete=True)
    run.curve.append(CurvePoint(10, 1.0, 0.5, 0.75, run.states))
    run.poles = 0.9 * np.exp(1j * np.arange(8))
    return run


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the data and for the processes that train; call it for what those tell."""

    def told(function, tasks):
        for settings, names in tasks:
            for name in names:
                yield finished(name, settings.seed)

    few = np.zeros((450, 4), np.float32), np.zeros(450, np.int32)
    monkeypatch.setattr(experiment, "load", lambda settings: SequenceData("tones", *few, *few))
    monkeypatch.setattr(experiment, "told_by_processes", told)
    return told


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
    options = "dataset", "data", "states", "tau", "steps", "seed", "seeds", "quick", "output"
    for option in options:
        assert f"--{option} " in out


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
    "arguments",
    [
        ["--tau", "2"],
        ["--states", "0"],
        ["--steps", "0"],
        ["--seeds", "0"],
        ["--dataset", "smnist"],
        ["--dataset", "cifar"],
    ],
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
    arguments = ["demo", "--quick", "--steps", "20", "--states", "32", "--seed", "5"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"settings", "environment", "interrupted", "runs", "cuts"}
    assert results["interrupted"] is False
    assert set(results["environment"]) == {"python", "numpy", "jax", "cores"}
    assert results["settings"]["steps"] == 20
    runs = results["runs"]
    assert list(runs) == ["full", "reduced", "small"]
    for run in runs.values():
        (seed,) = run["seeds"]
        assert seed["complete"]
        assert seed["seed"] == 5
        assert {key: run[key] for key in ("accuracy", "states", "seconds")}.items() <= seed.items()
        assert 0.0 <= run["accuracy"] <= 1.0
        assert len(seed["poles"]) == run["states"]
        assert seed["processor_seconds"] > 0.0
    assert [run["states"] for run in runs.values()] == [32, 8, 8]
    (cut,) = results["cuts"]
    assert (cut["seed"], cut["step"], cut["old_order"], cut["new_order"]) == (5, 2, 32, 8)
    assert cut["measured_error"] <= cut["error_bound"]
    for name in ("hsv_decay.png", "accuracy.png", "poles.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Same data, batches and steps" in out
    assert "32 → 8" in out


@pytest.mark.parametrize("interrupted", ["full", "reduced", "small"])
def test_ctrl_c_saves_what_was_reached(interrupted, trained, tmp_path, monkeypatch, capsys):
    def interrupt(function, tasks):
        for run in trained(function, tasks):
            if run.name == interrupted:
                run.complete = False
                yield run
                raise KeyboardInterrupt
            yield run

    monkeypatch.setattr(experiment, "told_by_processes", interrupt)
    assert main(["demo", "--seeds", "1", "--output", str(tmp_path)]) == 130
    results = read_results(tmp_path)
    assert results["interrupted"] is True
    runs = results["runs"]
    names = list(runs)
    done = names.index(interrupted)
    complete = [runs[name]["seeds"][0]["complete"] for name in names]
    assert complete == [place < done for place in range(3)]
    assert runs[interrupted]["accuracy"] == 0.75
    if interrupted == "full":
        assert runs["small"]["accuracy"] is None
    assert (tmp_path / "poles.png").exists()
    out = capsys.readouterr().out
    assert f"{interrupted} 0 *" in out
    assert "* unfinished" in out


def test_every_seed_is_shown(trained, tmp_path, monkeypatch, capsys):
    def collapsed(function, tasks):
        for run in trained(function, tasks):
            if (run.name, run.seed) == ("small", 4):
                run.curve = [CurvePoint(10, 1.0, 2.8, 0.05, 8)]
                run.poles = run.poles.real * 1j
            yield run

    monkeypatch.setattr(experiment, "told_by_processes", collapsed)
    assert main(["demo", "--seed", "3", "--seeds", "2", "--output", str(tmp_path)]) == 0
    small = read_results(tmp_path)["runs"]["small"]
    assert [run["seed"] for run in small["seeds"]] == [3, 4]
    assert [run["accuracy"] for run in small["seeds"]] == [0.75, 0.05]
    assert small["accuracy"] == pytest.approx(0.4)
    assert small["states"] == 8
    out = capsys.readouterr().out
    assert re.search(r"small 4 +5.00 %", out)


@pytest.mark.parametrize(
    ("accuracy", "pays"),
    # Two of 450 test sequences are chance, thirty are not: 6.7 points at a standard error of 2.8.
    [(0.75, False), (0.75 + 2 / 450, False), (0.75 + 30 / 450, True)],
)
def test_a_small_model_as_good_is_said_to_win(
    accuracy, pays, trained, tmp_path, monkeypatch, capsys
):
    def cut(function, tasks):
        for run in trained(function, tasks):
            if run.name == "reduced":
                poles = np.full(16, 0.5 + 0j)
                event = ReductionEvent(
                    2, "blocks[0].lru", 16, 8, 16, np.ones(32), 0.1, 2.0, 1.0, 0.1, poles, poles[:8]
                )
                run.events = [event]
                run.curve = [CurvePoint(10, 1.0, 0.5, accuracy, 8)]
            yield run

    monkeypatch.setattr(experiment, "told_by_processes", cut)
    assert main(["demo", "--dataset", "digits", "--output", str(tmp_path)]) == 0
    assert ("the cut does not pay" in capsys.readouterr().out) is not pays


def test_ctrl_c_before_training_exits_with_its_code(tmp_path, monkeypatch, capsys):
    def interrupt(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "load", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_while_the_files_are_written_writes_them_again(trained, tmp_path, monkeypatch):
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


def test_a_failure_while_printing_leaves_the_files(trained, tmp_path, monkeypatch):
    def fail(*args):
        raise UnicodeEncodeError("ascii", "→", 0, 1, "no good")

    monkeypatch.setattr(report, "print_table", fail)
    with pytest.raises(UnicodeEncodeError):
        main(["demo", "--output", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_consoles_without_unicode_show_what_they_can(encoding, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    output = tmp_path / "δ [bold]"
    assert main(["demo", "--output", str(output)]) == 0
    sys.stdout.flush()
    assert b"? [bold]" in sys.stdout.buffer.getvalue()


def test_the_demo_runs_outside_the_main_thread(trained, tmp_path):
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(main(["demo", "--output", str(tmp_path)]))
    )
    thread.start()
    thread.join()
    assert codes == [0]


def test_numbers_that_json_does_not_have_are_null(trained, tmp_path, monkeypatch):
    def diverge(function, tasks):
        for run in trained(function, tasks):
            run.curve.append(CurvePoint(20, 2.0, math.nan, math.inf, 1))
            yield run

    monkeypatch.setattr(experiment, "told_by_processes", diverge)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    point = read_results(tmp_path)["runs"]["full"]["seeds"][0]["curve"][-1]
    assert point["loss"] is None
    assert point["accuracy"] is None


@pytest.mark.slow  # a process of its own, which trains
def test_a_real_interrupt_ends_the_demo_cleanly(tmp_path):
    # Python's own handler, also where this test runs in the background with SIGINT ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from ssmreduce.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["demo", "--quick", "--states", "16", "--steps", "2000"]
    command = [sys.executable, "-c", program, *arguments, "--output", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", process_group=0
    ) as process:
        try:
            while "step 200/" not in process.stdout.readline():
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            # Ends when none of its processes holds the pipes any more.
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == ""
    results = read_results(tmp_path)
    assert results["interrupted"] is True
    assert not results["runs"]["full"]["seeds"][0]["complete"]
