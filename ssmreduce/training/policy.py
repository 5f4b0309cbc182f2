"""When a cut is undone: `RollbackPolicy`, and the cut that is on trial."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ssmreduce._checks import is_number, is_one_of, metric_value, positive_count, shown
from ssmreduce.errors import OrderError
from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.training.tracking import ReductionEvent


@dataclass(frozen=True)
class RollbackPolicy:
    """Undo a cut if the watched metric m gets worse by more than the tolerance: m > m₀ + tolerance.

    m₀ is the last value reported before the cut, m the next ones; for ``mode="max"`` (an accuracy) the
    test is m < m₀ - tolerance. A cut is undone once `patience` reports in a row are worse, and stands
    from the first that is not. NaN is worse than anything.

    Parameters
    ----------
    tolerance : float
        By how much the metric may get worse, in its own units; 0 or more.
    mode : {"min", "max"}
        Whether the metric is to become small (a loss) or large (an accuracy).
    patience : int
        How many reports after the cut must all be worse; 1 decides at the next report.

    Raises
    ------
    OrderError
        If an argument is out of range.

    Examples
    --------
    >>> from ssmreduce import RollbackPolicy
    >>> policy = RollbackPolicy(0.01, mode="max")
    >>> policy.is_worse(0.93, than=0.95), policy.is_worse(0.945, than=0.95)
    (True, False)
    """

    tolerance: float
    _: KW_ONLY
    mode: Literal["min", "max"] = "min"
    patience: int = 1

    def __post_init__(self) -> None:
        if not is_number(self.tolerance) or self.tolerance < 0:
            raise OrderError(
                f"`tolerance` is {shown(self.tolerance)}; expected a finite number, 0 or more, in the units "
                "of the metric. Try the spread of the metric between two reports."
            )
        if not is_one_of(self.mode, ("min", "max")):
            raise OrderError(
                f'`mode` is {shown(self.mode)}; expected "min" for a loss or "max" for an accuracy.'
            )
        patience = positive_count(
            self.patience, "patience", "how many reports must be worse, 1 by default"
        )
        vars(self).update(tolerance=float(self.tolerance), patience=patience)

    def is_worse(self, metric: float, *, than: float) -> bool:
        """Tell whether `metric` is worse than `than` by more than the tolerance; NaN is."""
        metric, than = metric_value(metric), metric_value(than, "than")
        change = metric - than if self.mode == "min" else than - metric
        return not change <= self.tolerance


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
