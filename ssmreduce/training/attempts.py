"""One attempt to cut a model in training, and the way back from a cut: entirely or not at all.

Both return what becomes of the models; the books are changed together with models that change in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
class Outcome:
    """What a step leads to; the books are the reducer's once the models are the caller's."""

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
    data : callable or None
        Takes the layers of the model to their calibration; where it fails on one rank, it does on all.
    above_chance : {"warn", "match", "refuse"}
        What to do about a cut that leaves the model no better than chance.
    at_cut : float or None
        By how much a cut may raise the loss.
    is_watched : bool
        Whether reports may undo it.
    """

    order: OrderRule
    gate: float
    data: Callable[[Layers], Calibration] | None
    above_chance: AboveChance
    at_cut: float | None
    is_watched: bool


def check_model(
    models: Sequence[Any],
    opt_state: Any,
    options: CutOptions,
    above_chance: AboveChance,
    rollback: RollbackPolicy | None,
    *,
    has_data: bool,
) -> None:
    """Raise, before any attempt is due, what would end all of them: no layer, no data where some
    are needed, or another optimizer.

    What else goes wrong may be right again when one is. Settings are checked on all ranks together.
    """
    found = search(models[0], options)
    framework = found.framework
    with agreement(found.team):
        options.of_call(has_data=has_data)
        if not has_data:
            _check_no_loss(above_chance, rollback)
        found.check()
        if not has_data:
            found.check_without_data(_PASS_DATA)
        framework.check_optimizer(found.model, opt_state, models[1:])
        if found.team is not None:
            return  # moments are spread over the processes
        try:
            found.check_untraced()
            held = framework.moments_of(found.model, opt_state, found.meant)
            check_fields(held, {each.path: each.weights for each in found.meant})
        except (OptimizerStateError, TracedValueError):
            raise
        except SSMReduceError:
            return


def _check_no_loss(above_chance: AboveChance, rollback: RollbackPolicy | None) -> None:
    """Raise `ArgumentError` where what was asked for needs a loss on data."""
    asked = []
    if above_chance != "warn":
        asked.append(f"`above_chance` is {above_chance!r}")
    if rollback is not None and rollback.at_cut is not None:
        asked.append(f"`at_cut` of `rollback` is {rollback.at_cut!r}")
    if asked:
        raise ArgumentError(
            f"{asked[0]}, but there are no data; expected some with a loss. Pass "
            "data=lambda model: calibrate(model, batches, loss=loss)."
        )


def warn_if_idle(model: Any, order: OrderRule, options: CutOptions, *, has_data: bool) -> None:
    """Warn, before any attempt is due, where no layer has as many states as it is to keep."""
    if not isinstance(order, FixedOrder):
        return
    layers = [each for each in search(model, options).meant if has_data or not each.kind.needs_data]
    try:
        sizes = {each.name: each.order for each in layers}
    except SSMReduceError:  # an attempt says what is wrong, if it still is
        return
    warn_of_no_cut(order, sizes)


def attempt(
    step: int,
    found: Layers,
    models: Sequence[Any],
    opt_state: Any,
    books: Books,
    turn: Turn,
    terms: Terms,
) -> Outcome:
    """Cut the layers found in the first of the models where the gate lets them pass; the others follow."""
    followers, order = models[1:], terms.order
    may_cut = not (found.options.uniform and books.stopped)
    data = None
    if may_cut and terms.data is not None:
        data = terms.data(found).for_first(found)
    decide = partial(_accepted, books.stopped, terms, data)
    plan = plan_cut(found, opt_state, decide, followers)
    warn_at_chance(losses_in(plan.results))
    path_name = found.framework.path_name
    warn_of_lower_orders({path_name(path): each for path, each in plan.results.items()})
    on_trial = terms.is_watched and bool(plan.results)
    snapshots = take_all(models, opt_state, found.options) if on_trial else None
    books = books.with_cut(step, plan.results, order, path_name, snapshots)
    cut = make_cut(found, opt_state, plan, followers, turn(books))
    made = [cut.model, *(each.model for each in cut.followers)]
    return Outcome(made, cut.optimizer_state, books)


def _accepted(
    stopped: frozenset[str], terms: Terms, data: Calibration | None, found: Layers
) -> Results:
    """The cuts that are worth it; where several processes train, the first alone is asked."""
    is_uniform = found.options.uniform
    if is_uniform and stopped:
        return {}
    results = decide_cut(
        found, terms.order, leave_out=lambda name: plain_name(name) in stopped, data=data
    )
    accepted = {
        path: each for path, each in results.items() if each.new_order < terms.gate * each.old_order
    }
    if is_uniform and accepted:
        accepted = {path: each for path, each in results.items() if each.new_order < each.old_order}
    accepted = with_losses(found, accepted, data)
    if accepted:
        if data is not None and (found.options.match or terms.above_chance == "match"):
            accepted = matched(found, accepted, data)
        check_losses(losses_in(accepted), terms.above_chance, terms.at_cut)
    return accepted


def undo(
    step: int,
    trial: Trial,
    models: Sequence[Any],
    opt_state: Any,
    books: Books,
    turn: Turn,
    options: CutOptions,
) -> Outcome:
    """Bring models and optimizer state back to where they were before the cut on trial."""
    team = framework_of(models[0]).team_of(models[0])
    with agreement(team):
        ready = prepared_back(models, opt_state, trial.snapshots, options)
    check_every_rank(models, options)
    books = books.with_rollback(step, trial)
    steps = [step for each in ready for step in each.steps]
    if steps:
        commit([*steps, *turn(books)], agreement(team))
    return Outcome([each.model for each in ready], ready[0].opt_state, books)
