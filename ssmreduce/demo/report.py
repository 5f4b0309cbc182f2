"""What the demo leaves behind: a table, ``results.json`` and three pictures."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssmreduce._files import written_whole
from ssmreduce.demo.experiment import Experiment
from ssmreduce.demo.training import Run
from ssmreduce.plotting import plot_accuracy, plot_hsv_decay, plot_poles

_ABSENT = "–"

_HEADINGS = ("accuracy", "states", "seconds", "speed-up", "bound", "measured")

_NUMBERS = "results.json"
_HSV, _ACCURACY, _POLES = "hsv_decay.png", "accuracy.png", "poles.png"

# What the output folder holds at the end.
FILES = (_NUMBERS, _HSV, _ACCURACY, _POLES)


def results(experiment: Experiment) -> dict[str, Any]:
    """All numbers of the demo as plain values; accuracies from 0 to 1, times in seconds.

    JSON has no NaN and no infinity: None stands for both.
    """
    values: dict[str, Any] = _finite(
        {
            "settings": experiment.settings.to_dict(),
            "environment": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "jax": jax.__version__,
                "cores": os.cpu_count(),
            },
            "interrupted": experiment.interrupted,
            "runs": {name: run.to_dict() for name, run in experiment.runs.items()},
            "cuts": [event.to_dict() for event in experiment.events],
        }
    )
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_results(experiment: Experiment, folder: Path) -> list[Path]:
    """Write ``results.json``, then the pictures, into `folder`, and return their paths.

    Each file takes the place of an earlier one once it is there in full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results(experiment), indent=2, allow_nan=False)
    with written_whole(folder / _NUMBERS) as path:
        path.write_text(text + "\n", encoding="utf-8")
    full_states = experiment.settings.states * experiment.settings.blocks
    labels = {name: _label(run, full_states) for name, run in experiment.runs.items() if run.curve}
    curves = {
        label: (
            [point.seconds for point in experiment.runs[name].curve],
            [point.accuracy for point in experiment.runs[name].curve],
        )
        for name, label in labels.items()
    }
    cut_times = {label: experiment.runs[name].cut_times for name, label in labels.items()}
    pictures = {
        _HSV: plot_hsv_decay(experiment.events),
        _ACCURACY: plot_accuracy(curves, cut_times=cut_times),
        _POLES: plot_poles(experiment.events),
    }
    for name, figure in pictures.items():
        with written_whole(folder / name) as path:
            figure.savefig(path)
    return [folder / name for name in FILES]


def print_table(experiment: Experiment, console: Console) -> None:
    """Print one row per run, and below the reduced one a row per cut of a layer."""
    runs = experiment.runs
    table = Table(
        title="Same seed, batches and steps; error bound and measured error of each cut",
        title_justify="left",
    )
    table.add_column("run")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    several = experiment.settings.blocks > 1
    for name, run in runs.items():
        table.add_row(
            name if run.complete else f"{name} *",
            _ABSENT if run.accuracy is None else f"{100 * run.accuracy:.1f} %",
            " + ".join(map(str, run.states_per_layer)) or _ABSENT,
            f"{run.seconds:.1f}" if run.seconds else _ABSENT,
            _speed_up(runs["full"], run),
        )
        for event in experiment.events if name == "reduced" else ():
            table.add_row(
                f"  step {event.step}" + (f", {escape(event.layer)}" if several else ""),
                "",
                f"{event.old_order} → {event.new_order}",
                f"{event.seconds:.2f}",
                "",
                _ABSENT if event.error_bound is None else f"{event.error_bound:.3g}",
                f"{event.measured_error:.3g}",
            )
    console.print(table)
    if not all(run.complete for run in runs.values()):
        console.print("* unfinished")
    if not experiment.events:
        console.print("No cut was made; a larger --tau or --states gives one.")


def _speed_up(full: Run, run: Run) -> str:
    if not (full.complete and run.complete):
        return _ABSENT
    return f"{full.seconds / run.seconds:.1f}×"


def _label(run: Run, full_states: int) -> str:
    cut = f"{full_states} → " if run.cut_times else ""
    return f"{run.name}, {cut}{run.states} states"
