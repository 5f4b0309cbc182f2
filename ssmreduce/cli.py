"""Command line: ``python -m ssmreduce`` and the console script ``ssmreduce``.

Help and version need the core alone. What a command needs is looked for before it runs, so that a missing
package ends in one line that names the pip command.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any

from ssmreduce import __version__
from ssmreduce._checks import require_backend
from ssmreduce.errors import SSMReduceError

_FAILED = 1
_MISUSED = 2
_INTERRUPTED = 130

# What the demo imports, checked before it starts so that nothing is missing at its end.
_DEMO_MODULES = ("jax", "equinox", "optax", "sklearn", "matplotlib", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments without the program name; those of the process if not given.

    Returns
    -------
    int
        0 on success, 1 on an error of ssmreduce, 2 on a wrong option, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # A console without "→" or "…" shows a question mark instead.
        sys.stdout.reconfigure(errors="replace")
    parser = _parser()
    try:
        options = vars(parser.parse_args(arguments))
        if options.pop("command") is None:
            parser.print_help()
            return _MISUSED
        return _demo(options)
    except SSMReduceError as error:
        print(f"ssmreduce: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("ssmreduce: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as leaving:  # after --help, --version or a wrong option
        return leaving.code if isinstance(leaving.code, int) else _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssmreduce",
        description="Shrink state-space layers by balanced truncation, also while they train.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"ssmreduce {__version__}", help="Show the version."
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    about = "Train a classifier at full size, reduced in training, and small from scratch."
    more = (
        "By default it learns the keys of a telephone from their two tones in noise, three times: at 512 "
        "states, cut from 512 to 8, and at 8. Some minutes on two cores."
    )
    demo = commands.add_parser(
        "demo", help=about, description=f"{about} {more}", allow_abbrev=False
    )
    option = demo.add_argument
    option(
        "--dataset",
        default="tones",
        help="tones (the default) or digits, where a small model does as well without a cut; "
        "or smnist (needs --data).",
    )
    option(
        "--data",
        type=Path,
        help="NumPy archive with the sMNIST images: train_images, train_labels, ...",
    )
    option("--states", type=int, help="States per layer of the full model.")
    option(
        "--tau",
        type=float,
        help="Share of the sum of the Hankel singular values that each cut may drop; by default the tones "
        "are cut to 8 states.",
    )
    option("--steps", type=int, help="Optimizer steps of each run.")
    option("--seed", type=int, default=0, help="First seed of tones, weights and batches.")
    option("--seeds", type=int, help="How many seeds: 3 for the tones, else 1.")
    option(
        "--quick",
        action="store_true",
        help="A short run, to see that it works; its accuracies mean little.",
    )
    option(
        "--output",
        type=Path,
        default=Path("ssmreduce-demo"),
        help="Folder for pictures and results.",
    )
    return parser


def _demo(options: dict[str, Any]) -> int:
    """Train, write the files and print the table, also after Ctrl-C."""
    for module in _DEMO_MODULES:
        require_backend(module, extra="demo")
    from rich.console import Console

    from ssmreduce.demo.experiment import Experiment, load, run_experiment
    from ssmreduce.demo.progress import ProgressDisplay
    from ssmreduce.demo.report import print_table, write_results
    from ssmreduce.demo.settings import make_settings

    settings = make_settings(**options)
    console = Console()
    data = load(settings)
    _check_output(settings.output)
    console.print(
        f"{data.name}: {len(data.train_labels)} for training, {len(data.test_labels)} for testing; "
        f"{settings.blocks} LRU block(s) of {settings.states} states, width {settings.width}; "
        f"{settings.steps} steps per run; {settings.seeds} seed(s), each run on one core",
        highlight=False,
        soft_wrap=True,
    )
    experiment = Experiment(settings, len(data.test_labels))
    with _one_interrupt():
        # Wherever the one interrupt comes, in the training, in the writing or between, and whatever
        # else ends the training, what was reached is written.
        try:
            try:
                with ProgressDisplay(console, settings.steps) as display:
                    run_experiment(experiment, display.show)
            finally:
                paths = write_results(experiment, settings.output)
        except KeyboardInterrupt:
            experiment.interrupted = True
            paths = write_results(experiment, settings.output)
        for path in paths:
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
        print_table(experiment, console)
        if experiment.interrupted:
            console.print("Interrupted: the numbers are those reached so far.")
    return _INTERRUPTED if experiment.interrupted else 0


def _check_output(folder: Path) -> None:
    """Create the folder, and make sure before the training that the results can be written to it."""
    from ssmreduce.demo.report import FILES
    from ssmreduce.demo.settings import SettingsError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in (folder / name for name in FILES):
            if path.exists():
                with path.open("r+b"):
                    pass
    except OSError as error:
        raise SettingsError(
            f"--output {folder} cannot be written to ({error.filename}: {error.strerror}); expected "
            f"a folder, new or existing, that can hold {', '.join(FILES)}. Try another name."
        ) from None


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C raise `KeyboardInterrupt` and later ones not cut off the files it leaves."""
    # Only the main thread may set handlers; one that is not Python's own is the caller's choice.
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
