"""Progress of the runs: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ssmreduce.demo.runs import Run

_BETWEEN_LINES = 5
"""Evaluations from one line to the next where there is no terminal."""


class ProgressDisplay:
    """Shows loss, accuracy, current states and time of the runs.

    Parameters
    ----------
    console : Console
        Where to; without a terminal, a few lines per run are printed.
    steps : int
        Steps of each run.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self.steps = steps
        self._next_line: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[reading]}"),
            console=console,
        )

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, run: Run) -> None:
        """Show what `run` has reached."""
        name = f"{run.name} {run.seed}"
        reading = _reading(run) if run.step else "compiling …"
        if self.console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=self.steps, reading=reading)
            self._bars.update(self._tasks[name], completed=run.step, reading=reading)
        elif len(run.curve) >= self._next_line.get(name, 0):
            # At the start, at the first evaluation, and at every fifth from there.
            self._next_line[name] = len(run.curve) + (_BETWEEN_LINES if run.curve else 1)
            self.console.print(
                f"{name:10} step {run.step}/{self.steps}  {reading}",
                highlight=False,
                soft_wrap=True,
            )


def _reading(run: Run) -> str:
    accuracy = "–" if run.accuracy is None else f"{100 * run.accuracy:.1f} %"
    return f"loss {run.loss:.3f}  accuracy {accuracy}  states {run.states}  {run.seconds:.0f} s"
