"""One attempt to cut a model in training, and the way back from a cut: entirely or not at all.

Both return what becomes of the models; the books are changed together with models that change in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ssmreduce.errors import ArgumentError, OptimizerStateError, SSMReduceError, TracedValueError
from ssmreduce.frameworks.current import framework_of
from ssmreduce.frameworks.transaction import Step, commit
from ssmreduce.layers.options import CutOptions, plain_name
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import (
    Results,
    agreement,
    check_every_rank,
    make_cut,
    plan_cut,
)
from ssmreduce.models.held_out import (
    AboveChance,
    check_losses,
    losses_in,
    warn_at_chance,
    with_losses,
)
from ssmreduce.models.matching import matched
from ssmreduce.models.optimizer_state import check_fields
from ssmreduce.models.orders import warn_of_lower_orders, warn_of_no_cut
from ssmreduce.models.reduce import decide_cut
from ssmreduce.models.search import Layers, search
from ssmreduce.models.snapshots import prepared_back, take_all
from ssmreduce.reduction.order import FixedOrder, OrderRule
from ssmreduce.training.books import Books
from ssmreduce.training.policy import RollbackPolicy, Trial

Turn = Callable[[Books], list[Step]]
"""What puts books in the place of those of the reducer."""

_PASS_DATA = (
    "Pass InTrainingReducer(schedule, data=lambda model: calibrate(model, batches, loss=loss))."
)


@dataclass(frozen=True, eq=False)
class Standing:
    """Where a run stands, before a step or after it.

    The books are the reducer's once the models are the caller's.

    Attributes
    ----------
    models : sequence of models
        The model, and those that follow it.
    opt_state : object or None
        The optimizer of the first, or its state.
    books : Books
        What was done so far.
    warning : str
        Why nothing was cut.
    """

    models: Sequence[Any]
    opt_state: Any
    books: Books
    warning: str = ""


@dataclass(frozen=True, eq=False)
class Terms:
    """On what terms an attempt cuts.

    Attributes
    ----------
    order : OrderRule
        How many states each layer keeps.
    gate : float
        A layer is cut only if it keeps fewer than this share.
    options : CutOptions
        Which layers, and how.
    above_chance : {"warn", "match", "refuse"}
        What to do about a cut that leaves the model no better than chance.
    rollback : RollbackPolicy or None
        By how much a cut may raise the loss, and whether reports may undo it.
    """

    order: OrderRule
    gate: float
    options: CutOptions
    above_chance: AboveChance
    rollback: RollbackPolicy | None

    @property
    def at_cut(self) -> float | None:
        """By how much a cut may raise the loss."""
        return None if self.rollback is None else self.rollback.at_cut


def check_model(
    models: Sequence[Any], opt_state: Any, terms: Terms, *, has_data: bool, has_cut: bool
) -> None:
    """Raise, before any attempt is due, what would end all of them: no layer, no data where some
    are needed, or another optimizer. Warn where no layer has as many states as it is to keep.

    What else goes wrong may be right again when one is. Settings are checked on all ranks together.
    """
    found = search(models[0], terms.options)
    with agreement(found.team):
        terms.options.of_call(has_data=has_data)
        if not has_data:
            _check_no_loss(terms)
        found.check()
        if not has_data:
            found.check_without_data(_PASS_DATA)
        found.framework.check_optimizer(found.model, opt_state, models[1:])
        if found.team is None:  # else moments are spread over the processes
            _check_moments(found, opt_state)
    if isinstance(terms.order, FixedOrder) and not has_cut:  # later on layers have fewer states
        layers = [each for each in found.meant if has_data or not each.kind.needs_data]
        with suppress(SSMReduceError):  # an attempt says what is wrong, if it still is
            warn_of_no_cut(terms.order, {each.name: each.order for each in layers})


def _check_moments(found: Layers, opt_state: Any) -> None:
    """Raise where the optimizer holds what cannot follow a cut, whatever the numbers are."""
    try:
        found.check_untraced()
        held = found.framework.moments_of(found.model, opt_state, found.meant)
        check_fields(held, {each.path: each.weights for each in found.meant})
    except (OptimizerStateError, TracedValueError):
        raise
    except SSMReduceError:
        return


def _check_no_loss(terms: Terms) -> None:
    """Raise `ArgumentError` where what was asked for needs a loss on data."""
    asked = []
    if terms.above_chance != "warn":
        asked.append(f"`above_chance` is {terms.above_chance!r}")
    if terms.at_cut is not None:
        asked.append(f"`at_cut` of `rollback` is {terms.at_cut!r}")
    if asked:
        raise ArgumentError(
            f"{asked[0]}, but there are no data; expected some with a loss. Pass "
            "data=lambda model: calibrate(model, batches, loss=loss)."
        )


def attempt(
    step: int,
    found: Layers,
    before: Standing,
    turn: Turn,
    terms: Terms,
    calibrated: Callable[[Layers], Calibration] | None,
) -> Standing:
    """Cut the layers found in the first of the models where the gate lets them pass; the others follow.

    What calibrates takes these layers; where it fails on one rank, it does on all.
    """
    models, opt_state, books = before.models, before.opt_state, before.books
    if found.options.uniform and books.stopped:
        return replace(before, books=replace(books, waiting=False))
    followers = models[1:]
    data = None if calibrated is None else calibrated(found).for_first(found)
    decide = partial(_accepted, books.stopped, terms, data)
    plan = plan_cut(found, opt_state, decide, followers)
    warn_at_chance(losses_in(plan.results))
    named = {found.framework.path_name(path): each for path, each in plan.results.items()}
    warn_of_lower_orders(named)
    on_trial = terms.rollback is not None and terms.rollback.watches and bool(named)
    snapshots = take_all(models, opt_state, found.options) if on_trial else None
    books = books.with_cut(step, named, terms.order, snapshots)
    cut = make_cut(found, opt_state, plan, followers, turn(books))
    made = [cut.model, *(each.model for each in cut.followers)]
    return Standing(made, cut.optimizer_state, books)


def _accepted(
    stopped: frozenset[str], terms: Terms, data: Calibration | None, found: Layers
) -> Results:
    """The cuts that are worth it; where several processes train, the first alone is asked."""
    results = decide_cut(
        found, terms.order, leave_out=lambda name: plain_name(name) in stopped, data=data
    )
    accepted = {
        path: each for path, each in results.items() if each.new_order < terms.gate * each.old_order
    }
    if found.options.uniform and accepted:
        accepted = {path: each for path, each in results.items() if each.new_order < each.old_order}
    accepted = with_losses(found, accepted, data)
    if accepted:
        if data is not None and (found.options.match or terms.above_chance == "match"):
            accepted = matched(found, accepted, data)
        check_losses(losses_in(accepted), terms.above_chance, terms.at_cut)
    return accepted


def undo(step: int, trial: Trial, before: Standing, turn: Turn, options: CutOptions) -> Standing:
    """Bring models and optimizer state back to where they were before the cut on trial."""
    models = before.models
    team = framework_of(models[0]).team_of(models[0])
    with agreement(team):
        ready = prepared_back(models, before.opt_state, trial.snapshots, options)
    check_every_rank(models, options)
    books = before.books.with_rollback(step, trial)
    steps = [step for each in ready for step in each.steps]
    if steps:
        commit([*steps, *turn(books)], agreement(team))
    return Standing([each.model for each in ready], ready[0].opt_state, books)
