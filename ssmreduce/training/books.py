"""`Books`: where a run stands, and what reports, cuts and rollbacks make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.layers.options import plain_name
from ssmreduce.models.report import LayerReduction
from ssmreduce.reduction.order import OrderRule
from ssmreduce.training.policy import RollbackPolicy, Trial
from ssmreduce.training.tracking import ReductionEvent


@dataclass(frozen=True)
class Books:
    """Where a run stands; replaced as a whole, so that it always fits the model.

    Attributes
    ----------
    events : tuple of ReductionEvent
        The cuts so far.
    last_cut : dict of str to LayerReduction
        What the last one did.
    step : int
        The last step that changed them.
    waiting : bool
        Whether an attempt is due that has not been made.
    metric : float or None
        The last metric reported before a cut.
    stopped : frozenset of str
        Layers that are not cut again.
    trial : Trial or None
        The cut that can still be undone.
    was_told : bool
        Whether a metric was reported since the last step.
    is_checked : bool
        Whether the model was seen, and nothing about it ends all attempts.
    """

    events: tuple[ReductionEvent, ...] = ()
    last_cut: dict[str, LayerReduction] = field(default_factory=dict)
    step: int = 0
    waiting: bool = False
    metric: float | None = None
    stopped: frozenset[str] = frozenset()
    trial: Trial | None = None
    was_told: bool = False
    is_checked: bool = False

    @property
    def on_trial(self) -> Trial | None:
        """The cut that no report confirmed yet."""
        return None if self.trial is None or self.trial.stands else self.trial

    @property
    def is_idle(self) -> bool:
        """Whether nothing happens before the next attempt or report."""
        return self.is_checked and not self.waiting and not self.was_told and self.trial is None

    def failed(self, policy: RollbackPolicy | None) -> Trial | None:
        """The cut on trial, if it is to be undone."""
        trial = self.on_trial
        if policy is None or trial is None or trial.misses < policy.patience:
            return None
        return trial

    def may_cut(self, policy: RollbackPolicy | None) -> bool:
        """Whether a cut made now could be judged later, if it is to be."""
        return policy is None or self.metric is not None

    def with_report(self, value: float, policy: RollbackPolicy) -> Books:
        """The books after a metric was reported."""
        told, trial = replace(self, was_told=True), self.on_trial
        if self.failed(policy) is not None:
            return told
        if trial is not None and self.metric is not None:
            if policy.is_worse(value, than=self.metric):
                return replace(told, trial=replace(trial, misses=trial.misses + 1))
            told = replace(told, trial=replace(trial, stands=True))
        return replace(told, metric=value if math.isfinite(value) else None)

    def agreed(self, team: Any) -> Books:
        """The books, once the first process decided what the reports since the last step mean."""
        books = replace(self, was_told=False)
        if team is None:
            return books
        trial = books.trial
        verdict = None if trial is None else (trial.misses, trial.stands)
        metric, verdict = team.decide(lambda: (books.metric, verdict))
        if trial is not None and verdict is not None:
            trial = replace(trial, misses=verdict[0], stands=verdict[1])
        return replace(books, metric=metric, trial=trial)

    def with_cut(
        self,
        step: int,
        named: Mapping[str, LayerReduction],
        order: OrderRule,
        snapshots: list[Snapshot] | None,
    ) -> Books:
        """The books with a cut of layers in them, on trial if there are snapshots."""
        books = replace(self, waiting=False)
        if not named:
            return books
        events = [ReductionEvent.of(step, name, each, order) for name, each in named.items()]
        return replace(
            books,
            events=(*books.events, *events),
            trial=None if snapshots is None else Trial(int(step), [*named], snapshots),
            last_cut=dict(named),
        )

    def with_rollback(self, step: int, trial: Trial) -> Books:
        """The books after the cut on trial was undone."""
        return replace(
            self,
            events=tuple(
                replace(event, rolled_back=int(step)) if trial.is_of(event) else event
                for event in self.events
            ),
            stopped=self.stopped | {plain_name(name) for name in trial.layers},
            trial=None,
            last_cut={},
        )

    def news(self, before: Books) -> list[ReductionEvent]:
        """The events that are new, or were changed, since `before`."""
        known = {id(event) for event in before.events}
        return [event for event in self.events if id(event) not in known]
