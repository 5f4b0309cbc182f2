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
        "tones", "digits" or "smnist".
    data : Path or None
        Archive with the sMNIST images; None for the others.
    states : int
        Stored states per LRU of the full model.
    order : int
        Stored states per LRU that a cut keeps, where `tau` is None.
    tau : float or None
        Share of the sum of the Hankel singular values that each cut may drop.
    penalty : float
        Factor of `modal_l1` in the loss of the reduced run, up to the last cut.
    steps : int
        Optimizer steps of each run.
    seed : int
        Seed of drawn data, initial weights and batches; the first one where there are several.
    seeds : int
        How many seeds.
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
    order: int
    tau: float | None
    penalty: float
    steps: int
    seed: int
    seeds: int
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
        if self.dataset != "smnist" and self.data is not None:
            raise SettingsError(
                f"--data {self.data} is given but the {self.dataset} need no file; expected no "
                "--data. Try adding --dataset smnist."
            )
        for name in ("states", "steps", "seeds"):
            if (value := getattr(self, name)) < 1:
                raise SettingsError(
                    f"--{name} is {value}; expected at least 1. Leave it out for the default."
                )
        if self.seed < 0:
            raise SettingsError(f"--seed is {self.seed}; expected 0 or more. Try --seed 0.")
        if self.tau is not None and not 0.0 < self.tau < 1.0:
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


_COMMON = {"order": 8, "tau": None, "penalty": 0.0, "seeds": 1, "blocks": 1, "learning_rate": 1e-2}
_TONES = {"states": 512, "penalty": 1e-4, "width": 16, "batch_size": 50, "attempts": 1}
_DIGITS = {"states": 1024, "tau": 0.1, "width": 16, "batch_size": 64, "attempts": 2}
_SMNIST = {"states": 256, "tau": 0.1, "width": 8, "batch_size": 50, "attempts": 2}

_DEFAULTS: dict[tuple[str, bool], dict[str, Any]] = {
    ("tones", False): {**_COMMON, **_TONES, "steps": 1500, "seeds": 3},
    ("tones", True): {**_COMMON, **_TONES, "steps": 100, "states": 64},
    ("digits", False): {**_COMMON, **_DIGITS, "steps": 4000},
    ("digits", True): {**_COMMON, **_DIGITS, "steps": 300, "states": 256},
    ("smnist", False): {**_COMMON, **_SMNIST, "steps": 10000},
    ("smnist", True): {**_COMMON, **_SMNIST, "steps": 150, "tau": 0.15},
}

DATASETS = tuple(dict.fromkeys(dataset for dataset, _ in _DEFAULTS))


def make_settings(
    *,
    dataset: str = DATASETS[0],
    data: Path | None = None,
    states: int | None = None,
    tau: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    seeds: int | None = None,
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
            f"Leave it out for the {DATASETS[0]}."
        )
    given = {"states": states, "tau": tau, "steps": steps, "seeds": seeds}
    chosen = _DEFAULTS[dataset, quick] | {
        name: value for name, value in given.items() if value is not None
    }
    return Settings(dataset=dataset, data=data, seed=seed, quick=quick, output=output, **chosen)
