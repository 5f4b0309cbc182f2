"""What the demo leaves behind: a table, ``results.json`` and three pictures."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssmreduce._files import written_whole
from ssmreduce.demo.experiment import Experiment
from ssmreduce.demo.pictures import (
    accuracy_picture,
    poles_picture,
    tones_picture,
    values_picture,
)
from ssmreduce.demo.runs import Run
from ssmreduce.demo.tones import TONES, tones_found
from ssmreduce.training.tracking import ReductionEvent

_ABSENT = "–"

_HEADINGS = "accuracy", "states", "seconds", "speed-up"

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
            "runs": {name: _means(runs) for name, runs in experiment.runs.items()},
            "cuts": [
                {"seed": run.seed, **event.to_dict()} for run in experiment for event in run.events
            ],
        }
    )
    return values


def _means(runs: list[Run]) -> dict[str, Any]:
    """Means over the seeds, then each of them."""
    return {
        "accuracy": _mean(run.accuracy for run in runs),
        "states": _mean(run.states for run in runs),
        "seconds": _mean(run.seconds for run in runs),
        "seeds": [run.to_dict() for run in runs],
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


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
    events = [event for run in experiment for event in _of_seed(run, experiment)]
    has_tones = experiment.settings.dataset == "tones"
    pictures = {
        _HSV: values_picture(events),
        _ACCURACY: accuracy_picture(experiment),
        _POLES: tones_picture(experiment) if has_tones else poles_picture(events),
    }
    for name, figure in pictures.items():
        with written_whole(folder / name) as path:
            figure.savefig(path)
    return [folder / name for name in FILES]


def _of_seed(run: Run, experiment: Experiment) -> list[ReductionEvent]:
    """The cuts of a run, with the seed in the layer's name where there are several."""
    if experiment.settings.seeds == 1:
        return run.events
    several = experiment.settings.blocks > 1
    names = {event.layer: f", {event.layer}" if several else "" for event in run.events}
    return [replace(event, layer=f"seed {run.seed}{names[event.layer]}") for event in run.events]


def print_table(experiment: Experiment, console: Console) -> None:
    """Print one row per run, below a reduced one a row per cut of a layer, and what it all says."""
    table = Table(
        title="Same data, batches and steps; error bound and measured error of each cut",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("run, seed", no_wrap=True)
    extra = ("tones",) if experiment.settings.dataset == "tones" else ()
    for heading in (*_HEADINGS, *extra, "bound", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in experiment:
        full = experiment.runs["full"][run.seed - experiment.settings.seed]
        table.add_row(
            f"{run.name} {run.seed}" + ("" if run.complete else " *"),
            _percent(run.accuracy),
            " + ".join(map(str, run.states_per_layer)) or _ABSENT,
            f"{run.seconds:.1f}" if run.seconds else _ABSENT,
            f"{full.seconds / run.seconds:.1f}×" if full.complete and run.complete else _ABSENT,
            *(_tones(run) for _ in extra),
        )
        several = experiment.settings.blocks > 1
        for event in run.events:
            table.add_row(
                f"  step {event.step}" + (f", {escape(event.layer)}" if several else ""),
                _around(run, event.step),
                f"{event.old_order} → {event.new_order}",
                f"{event.seconds:.2f}",
                "",
                *("" for _ in extra),
                _ABSENT if event.error_bound is None else f"{event.error_bound:.3g}",
                _ABSENT if event.measured_error is None else f"{event.measured_error:.3g}",
            )
    console.print(table)
    for line in _conclusions(experiment):
        console.print(line, highlight=False, soft_wrap=True)


def _percent(accuracy: float | None) -> str:
    return _ABSENT if accuracy is None else f"{100 * accuracy:.2f} %"


def _around(run: Run, step: int) -> str:
    """Accuracies right before and right after a cut."""
    points = [point.accuracy for point in run.curve if point.step == step]
    return " → ".join(f"{100 * accuracy:.1f}" for accuracy in points) if len(points) == 2 else ""


def _tones(run: Run) -> str:
    """How many tones have a pole; among the many poles of the full model there is always one."""
    if run.name == "full" or not run.poles.size:
        return _ABSENT
    return f"{tones_found(run.poles)} of {TONES.size}"


def _conclusions(experiment: Experiment) -> list[str]:
    """What the runs say, and where cutting did not pay."""
    if not all(run.complete for run in experiment):
        return ["* unfinished"]
    if not any(run.events for run in experiment):
        return ["No cut was made; a larger --tau or --states gives one."]
    full, reduced, small = (experiment.runs[name] for name in ("full", "reduced", "small"))
    faster = sum(run.seconds for run in full) / sum(run.seconds for run in reduced)
    lines = [
        f"reduced against full: accuracy {_points(reduced, full)} points, {faster:.1f}× as fast",
        f"reduced against small: accuracy {_points(reduced, small)} points",
    ]
    if not _is_ahead(reduced, small, experiment.tested):
        lines.append(
            "Here the cut does not pay: the small model from scratch is as accurate, as far as "
            f"{experiment.tested} test sequences tell, in less time."
        )
    return lines


def _is_ahead(runs: list[Run], others: list[Run], tested: int) -> bool:
    """Tell whether the mean accuracy is higher by more than two standard errors of such a difference."""
    ahead, behind = (
        statistics.mean(run.accuracy or 0.0 for run in each) for each in (runs, others)
    )
    variance = (ahead * (1.0 - ahead) + behind * (1.0 - behind)) / (tested * len(runs))
    return ahead - behind > 2.0 * math.sqrt(variance)


def _points(runs: list[Run], others: list[Run]) -> str:
    """Differences in per cent, seed by seed."""
    # Adding 0.0 makes 0.0 of -0.0.
    pairs = zip(runs, others, strict=True)
    return ", ".join(
        f"{round(100 * (a.accuracy or 0.0) - 100 * (b.accuracy or 0.0), 2) + 0.0:+.2f}"
        for a, b in pairs
    )
