"""What the demo leaves behind: a table, ``results.json`` and three pictures."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ssmreduce.demo.experiment import Experiment
from ssmreduce.demo.training import Run
from ssmreduce.plotting import plot_accuracy, plot_hsv_decay, plot_poles

_ABSENT = "–"


def results(experiment: Experiment) -> dict[str, Any]:
    """All numbers of the demo as plain values; accuracies from 0 to 1, times in seconds."""
    return {
        "settings": experiment.settings.to_dict(),
        "environment": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "jax": jax.__version__,
            "cores": os.cpu_count(),
        },
        "runs": {name: run.to_dict() for name, run in experiment.runs.items()},
        "cuts": [event.to_dict() for event in experiment.events],
    }


def write_results(experiment: Experiment, folder: Path) -> list[Path]:
    """Write ``results.json`` and the pictures into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / "results.json"
    numbers.write_text(json.dumps(results(experiment), indent=2) + "\n", encoding="utf-8")
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
        "hsv_decay.png": plot_hsv_decay(experiment.events),
        "accuracy.png": plot_accuracy(curves, cut_times=cut_times),
        "poles.png": plot_poles(experiment.events),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / name)
    return [numbers, *(folder / name for name in pictures)]


def print_tables(experiment: Experiment, console: Console) -> None:
    """Print one row per run and, below it, one row per cut."""
    runs = experiment.runs
    table = Table(title="Runs, same seed and steps", title_justify="left")
    table.add_column("run")
    for heading in ("accuracy", "states", "seconds", "speed-up"):
        table.add_column(heading, justify="right")
    for name, run in runs.items():
        table.add_row(
            name if run.complete else f"{name} (unfinished)",
            _ABSENT if run.accuracy is None else f"{100 * run.accuracy:.1f} %",
            " + ".join(map(str, run.states_per_layer)) or _ABSENT,
            f"{run.seconds:.1f}" if run.seconds else _ABSENT,
            _speed_up(runs["full"], run),
        )
    console.print(table)
    cuts = Table(title="Cuts of the reduced run", title_justify="left")
    for heading in ("step", "layer", "states", "error bound", "measured error", "seconds"):
        cuts.add_column(heading, justify="left" if heading == "layer" else "right")
    for event in experiment.events:
        cuts.add_row(
            str(event.step),
            event.layer.replace("[", r"\["),
            f"{event.old_order} → {event.new_order}",
            _ABSENT if event.error_bound is None else f"{event.error_bound:.3g}",
            f"{event.measured_error:.3g}",
            f"{event.seconds:.2f}",
        )
    if experiment.events:
        console.print(cuts)
    else:
        console.print("No cut was made; a larger --tau or --states gives one.")


def _speed_up(full: Run, run: Run) -> str:
    if not (full.complete and run.complete):
        return _ABSENT
    return f"{full.seconds / run.seconds:.1f}×"


def _label(run: Run, full_states: int) -> str:
    cut = f"{full_states} → " if run.cut_times else ""
    return f"{run.name}, {cut}{run.states} states"
