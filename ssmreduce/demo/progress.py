"""Progress of a run: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ssmreduce.demo.training import Progress, Watch

# Lines per run where there is no terminal.
_LINES = 5


class ProgressDisplay:
    """Shows loss, accuracy, current states and time of the runs, one after the other.

    Parameters
    ----------
    console : Console
        Where to; without a terminal, a few lines per run are printed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def __call__(self, name: str, steps: int) -> Iterator[Watch]:
        """Show the run `name` of `steps` steps; gives the function to report progress to."""
        if not self.console.is_terminal:
            yield self._line_printer(name, steps)
            return
        columns = (
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[reading]}"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=self.console) as bar:
            task = bar.add_task(name, total=steps, reading="compiling …")

            def show(progress: Progress) -> None:
                bar.update(task, completed=progress.step, reading=_reading(progress))

            yield show

    def _line_printer(self, name: str, steps: int) -> Watch:
        printed = 0

        def show(progress: Progress) -> None:
            nonlocal printed
            part = progress.step * _LINES // steps
            if progress.evaluated and part > printed:
                printed = part
                self.console.print(
                    f"{name:8} step {progress.step}/{steps}  {_reading(progress)}"
                    f"  {progress.seconds:.1f} s",
                    highlight=False,
                    soft_wrap=True,
                )

        return show


def _reading(progress: Progress) -> str:
    accuracy = "–" if progress.accuracy is None else f"{100 * progress.accuracy:.1f} %"
    return f"loss {progress.loss:.3f}  accuracy {accuracy}  states {progress.states}"
