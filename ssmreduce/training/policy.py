"""When a cut is undone: `RollbackPolicy`, and the cut that is on trial."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ssmreduce._checks import is_number, is_one_of, metric_value, positive_count, shown
from ssmreduce.errors import ArgumentError
from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.training.tracking import ReductionEvent


@dataclass(frozen=True)
class RollbackPolicy:
    """Undo a cut if the watched metric m gets worse by more than the tolerance: m > m₀ + tolerance.

    m₀ is the last value reported before the cut, m the next ones; for ``mode="max"`` (an accuracy)
    the test is m < m₀ - tolerance. A cut is undone once `patience` reports in a row are worse, and
    stands from the first that is not. NaN is worse than anything. With data that have a loss ℓ,
    `at_cut` compares the model just before and just after the same cut, on sequences that are held
    out: the cut is not made if ℓ_after > ℓ_before + at_cut.

    Parameters
    ----------
    tolerance : float, optional
        By how much the metric may get worse, in its own units; 0 or more. Without it no metric is
        reported.
    mode : {"min", "max"}
        Whether a small metric is good (a loss) or a large one (an accuracy).
    patience : int
        How many reports after the cut must all be worse; 1 decides at the next report.
    at_cut : float, optional
        By how much the loss on held-out sequences may be higher just after a cut; 0 or more. The
        reducer needs ``data`` with a loss, and no FSDP2.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or neither `tolerance` nor `at_cut` is given.

    Examples
    --------
    >>> from ssmreduce import RollbackPolicy
    >>> policy = RollbackPolicy(0.01, mode="max")
    >>> policy.is_worse(0.93, than=0.95), policy.is_worse(0.945, than=0.95)
    (True, False)
    """

    tolerance: float | None = None
    _: KW_ONLY
    mode: Literal["min", "max"] = "min"
    patience: int = 1
    at_cut: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is None and self.at_cut is None:
            raise ArgumentError(
                "`tolerance` and `at_cut` are None; expected one of them, or both. Try RollbackPolicy(0.02)."
            )
        tolerance = _limit(self.tolerance, "tolerance", "metric", "metric between two reports")
        at_cut = _limit(self.at_cut, "at_cut", "loss", "loss between two batches")
        if not is_one_of(self.mode, ("min", "max")):
            raise ArgumentError(
                f'`mode` is {shown(self.mode)}; expected "min" for a loss or "max" for an accuracy.'
            )
        patience = positive_count(
            self.patience, "patience", "how many reports must be worse, 1 by default"
        )
        vars(self).update(tolerance=tolerance, at_cut=at_cut, patience=patience)

    def __repr__(self) -> str:
        given = [] if self.tolerance is None else [f"tolerance={self.tolerance}"]
        given += [f"mode={self.mode!r}", f"patience={self.patience}"]
        given += [] if self.at_cut is None else [f"at_cut={self.at_cut}"]
        return f"RollbackPolicy({', '.join(given)})"

    @property
    def watches(self) -> bool:
        """Whether it decides by a metric that is reported."""
        return self.tolerance is not None

    def is_worse(self, metric: float, *, than: float) -> bool:
        """Whether a metric is worse than another by more than the tolerance; NaN is.

        Parameters
        ----------
        metric : float
            The metric after a cut.
        than : float
            The metric before it.

        Returns
        -------
        bool
            Without a tolerance only NaN is worse.

        Raises
        ------
        ArgumentError
            If one of them is not a number.
        """
        metric, than = metric_value(metric), metric_value(than, "than")
        change = metric - than if self.mode == "min" else than - metric
        return not change <= (math.inf if self.tolerance is None else self.tolerance)


def _limit(value: float | None, name: str, unit: str, spread: str) -> float | None:
    if value is None:
        return None
    if not is_number(value) or value < 0:
        raise ArgumentError(
            f"`{name}` is {shown(value)}; expected a finite number, 0 or more, in the units of the {unit}. "
            f"Try the spread of the {spread}."
        )
    return float(value)


@dataclass(frozen=True)
class Trial:
    """The last cut, while it can still be undone.

    Attributes
    ----------
    step : int
        Number of updates done before it.
    layers : list of str
        What was cut.
    snapshots : list of dict
        Model and optimizer before it, then its followers.
    misses : int
        How many reports in a row were worse.
    stands : bool
        Whether a report confirmed it; the next step ends the trial.
    """

    step: int
    layers: list[str]
    snapshots: list[Snapshot]
    misses: int = 0
    stands: bool = False

    def is_of(self, event: ReductionEvent) -> bool:
        """Whether an event is one of the cut."""
        return event.step == self.step and event.layer in self.layers
