"""Settings of the demo: what can be chosen, the defaults per data set, and their validation."""

from __future__ import annotations

import os.path
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssmreduce.errors import SSMReduceError


class SettingsError(SSMReduceError, ValueError):
    """A demo option has a value that it cannot have."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the demo computes.

    Parameters
    ----------
    dataset : str
        "digits" or "smnist".
    data : Path or None
        Archive with the sMNIST images; None for the digits.
    states : int
        Stored states per LRU of the full model.
    tau : float
        Share of the sum of the Hankel singular values that each cut may drop.
    steps : int
        Optimizer steps of each run.
    seed : int
        Seed of the initial weights and of the batches.
    width : int
        Channels H.
    blocks : int
        Number of LRU blocks.
    batch_size : int
        Sequences per step.
    learning_rate : float
        Peak learning rate.
    attempts : int
        Possible cuts, evenly spaced in the first 10 % of the steps.
    quick : bool
        Whether the defaults were those of a short run.
    output : Path
        Folder for the results.
    """

    dataset: str
    data: Path | None
    states: int
    tau: float
    steps: int
    seed: int
    width: int
    blocks: int
    batch_size: int
    learning_rate: float
    attempts: int
    quick: bool
    output: Path

    def __post_init__(self) -> None:
        if self.dataset == "smnist" and self.data is None:
            raise SettingsError(
                "--dataset smnist needs a file; found no --data. Try --data mnist.npz."
            )
        if self.dataset == "digits" and self.data is not None:
            raise SettingsError(
                f"--data {self.data} is given but the digits come with scikit-learn; expected no "
                "--data. Try adding --dataset smnist."
            )
        for name in ("states", "steps"):
            if (value := getattr(self, name)) < 1:
                raise SettingsError(
                    f"--{name} is {value}; expected at least 1. Leave it out for the default."
                )
        if self.seed < 0:
            raise SettingsError(f"--seed is {self.seed}; expected 0 or more. Try --seed 0.")
        if not 0.0 < self.tau < 1.0:
            raise SettingsError(
                f"--tau is {self.tau}; expected a number between 0 and 1, both excluded. "
                "Try --tau 0.04."
            )
        if os.path.isfile(self.output):
            raise SettingsError(
                f"--output {self.output} is a file; expected a folder, new or existing. "
                "Try another name."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class _Defaults:
    states: int
    tau: float
    steps: int
    width: int
    blocks: int
    batch_size: int
    learning_rate: float
    attempts: int


_DEFAULTS = {
    ("digits", False): _Defaults(1024, 0.1, 4000, 16, 1, 64, 1e-2, 2),
    ("digits", True): _Defaults(256, 0.1, 300, 16, 1, 64, 1e-2, 2),
    ("smnist", False): _Defaults(256, 0.1, 10000, 8, 1, 50, 1e-2, 2),
    ("smnist", True): _Defaults(256, 0.15, 150, 8, 1, 50, 1e-2, 2),
}

DATASETS = tuple(dict.fromkeys(dataset for dataset, _ in _DEFAULTS))


def make_settings(
    *,
    dataset: str = "digits",
    data: Path | None = None,
    states: int | None = None,
    tau: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    output: Path = Path("ssmreduce-demo"),
) -> Settings:
    """Settings with the defaults of the data set filled in.

    Raises
    ------
    SettingsError
        If a value is impossible; the message names the option.

    Examples
    --------
    >>> make_settings(states=128).states
    128
    """
    if dataset not in DATASETS:
        raise SettingsError(
            f"--dataset is {dataset!r}; expected one of {', '.join(DATASETS)}. "
            "Leave it out for the digits."
        )
    chosen = asdict(_DEFAULTS[dataset, quick])
    given = {"states": states, "tau": tau, "steps": steps}
    chosen.update({name: value for name, value in given.items() if value is not None})
    return Settings(dataset=dataset, data=data, seed=seed, quick=quick, output=output, **chosen)
