"""`InTrainingReducer`: shrink the layers of a model between two steps of any training loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args, overload

from ssmreduce._array_routes import warn_caller
from ssmreduce._checks import (
    check_instance,
    check_text,
    fraction,
    is_one_of,
    metric_value,
    positive_count,
    shown,
    whole_number,
)
from ssmreduce.errors import ArgumentError, OptimizerStateError, SSMReduceError
from ssmreduce.frameworks.current import framework_of
from ssmreduce.frameworks.transaction import Entries, Step, commit
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import agreement, checked_followers
from ssmreduce.models.held_out import AboveChance
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.search import search
from ssmreduce.reduction.order import HankelMass, OrderRule, as_rule
from ssmreduce.training.attempts import Standing, Terms, Turn, attempt, check_model, undo
from ssmreduce.training.books import Books
from ssmreduce.training.policy import RollbackPolicy
from ssmreduce.training.recorder import Recorder
from ssmreduce.training.records import HankelRecord
from ssmreduce.training.saved_state import checked_state
from ssmreduce.training.schedule import ReductionSchedule
from ssmreduce.training.trace import HankelTrace
from ssmreduce.training.tracking import ReductionEvent, events_html

_NOT_GIVEN: Any = object()
"""Stands for an optimizer that was left out; None says that there is none."""


class InTrainingReducer:
    """Cuts layers when the schedule says so and the cut is worth it, and undoes a cut that was not.

    Parameters
    ----------
    schedule : ReductionSchedule
        When attempts are due.
    order : int or OrderRule
        Order per attempt and layer; by default `HankelMass(0.96)`, which is τ = 0.04.
    gate : float
        A layer is cut only if its new order is below this share of the old one: every new shape
        costs a compilation.
    options : CutOptions
        As `reduce_model` takes them. With ``uniform`` all layers pass the gate if one of them does,
        and after a rollback there are no more cuts.
    rollback : RollbackPolicy, optional
        When to undo a cut by the metric that is passed to `report`; without it cuts are final.
    trace : HankelTrace, optional
        Records the Hankel singular values of all layers as training goes on; with `data`, at each
        attempt also the data-driven ones.
    data : callable, optional
        Takes the model to the `Calibration` by which an attempt cuts, such as ``lambda model:
        calibrate(model, batches, loss=loss)``. Where several processes train the model, it is
        called on all of them, and the calibration of the first counts.
    above_chance : {"warn", "match", "refuse"}
        What to do about a cut after which the loss on held-out sequences is no less than that of a
        constant prediction; needs data with a loss. ``"match"`` trains the layers that are cut, for
        100 steps on the other sequences, to reproduce the outputs of the uncut model, takes their
        weights where that lowers the loss, and warns where it is not enough.

    Attributes
    ----------
    events : list of ReductionEvent
        One for every cut of a layer so far.
    last_cut : dict of str to LayerReduction
        What the last cut did to each layer it cut, without the layer itself:
        `LayerReduction.reduce_state` carries the state of a stream through it. Empty before the
        first cut, after a rollback and after `load_state_dict`. After a rollback streams start
        again, or from a state kept from before the cut: the state of the smaller layer does not
        determine it.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Notes
    -----
    In JAX model and optimizer state are pytrees that are replaced; in PyTorch model and optimizer
    are changed in place, after everything that can fail. A cut that fails leaves both as they were
    and warns. A compiled step function compiles once for the new shapes.

    Cuts and rollbacks happen entirely or not at all, also if Ctrl-C comes in between: model,
    optimizer, followers, the reducer and the records of its trace are all as before, or all as
    after. If `step` raises, pytrees and reducer are as before: call it again. In PyTorch everything
    may already be as after; another call then continues from there.

    An attempt whose step was skipped is made in the next call of `step`, one attempt for all that
    were skipped. An attempt that fails is not repeated. Gradients that PyTorch parameters hold at a
    cut follow it, so that an accumulation continues; a rollback clears them.

    With a rollback policy one cut at a time is on trial, and a copy of model and optimizer state
    from before it is kept in host memory. Attempts that come due meanwhile, or before a finite
    metric was reported, wait, and one attempt is then made for all of them. A rollback restores all
    weights and the whole optimizer state of before the cut; step numbers continue, and so do
    hyperparameters of PyTorch optimizers, which schedulers set. The layers of an undone cut are not
    cut again.

    Where several processes train a model (DDP, FSDP2), all of them run a reducer of their own on
    the model as it is wrapped. The first one decides. A cut that one process cannot make is made by
    none; if one fails while it writes, all undo. If a process ends at that point, the others wait
    for the timeout of their process group, and then undo.

    Examples
    --------
    >>> import equinox as eqx, numpy as np, optax
    >>> from ssmreduce import HankelMass, InTrainingReducer, ReductionSchedule
    >>> from ssmreduce.demo.lru import LRU
    >>> model = LRU(32, 4, rng=np.random.default_rng(0))
    >>> opt_state = optax.adam(1e-3).init(eqx.filter(model, eqx.is_inexact_array))
    >>> reducer = InTrainingReducer(ReductionSchedule.at(1, 40), order=HankelMass(0.9))
    >>> for step in range(1, 41):
    ...     # ... one update of model and opt_state ...
    ...     model, opt_state = reducer.step(step, model, opt_state)
    >>> first, last = reducer.events[0], reducer.events[-1]
    >>> first.step, first.old_order, last.new_order == model.nu_log.size < 32
    (1, 32, True)
    """

    def __init__(
        self,
        schedule: ReductionSchedule,
        order: int | OrderRule | None = None,
        *,
        gate: float = 0.95,
        options: CutOptions = CutOptions(),
        rollback: RollbackPolicy | None = None,
        trace: HankelTrace | None = None,
        data: Callable[[Any], Calibration] | None = None,
        above_chance: AboveChance = "warn",
    ) -> None:
        check_instance(options, CutOptions, "options", "CutOptions(multiple_of=8)")
        check_instance(schedule, ReductionSchedule, "schedule", "ReductionSchedule(total_steps)")
        if rollback is not None:
            check_instance(rollback, RollbackPolicy, "rollback", "RollbackPolicy(tolerance)")
        if trace is not None:
            check_instance(trace, HankelTrace, "trace", "HankelTrace(100)")
        self.schedule = schedule
        self.order = HankelMass(0.96) if order is None else as_rule(order)
        self.gate = fraction(gate, "gate")
        self.options = options
        self.rollback = rollback
        self.trace = trace
        if data is not None and not callable(data):
            raise ArgumentError(
                f"`data` is {shown(data)}; expected a function of the model. Pass "
                "data=lambda model: calibrate(model, batches, loss=loss)."
            )
        self.data = data
        if not is_one_of(above_chance, get_args(AboveChance)):
            raise ArgumentError(
                f'`above_chance` is {shown(above_chance)}; expected "warn", "match" or "refuse". Leave it '
                "out to warn."
            )
        self.above_chance = above_chance
        self._books = Books()
        self._idle_step = 0
        self._recorder = Recorder()

    @property
    def events(self) -> list[ReductionEvent]:
        """One for every cut of a layer so far."""
        return list(self._books.events)

    @property
    def last_cut(self) -> dict[str, LayerReduction]:
        """What the last cut did to each layer it cut."""
        return dict(self._books.last_cut)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self._settings().items())
        return f"InTrainingReducer({settings}; {len(self.events)} events)"

    def _repr_html_(self) -> str:
        """The events."""
        return events_html(self.events)

    def _settings(self) -> dict[str, str]:
        """All that decides what is cut and when, for a checkpoint and for people."""
        names = ("schedule", "order", "gate", "options", "rollback", "trace", "above_chance")
        return {name: repr(getattr(self, name)) for name in names}

    @property
    def _watched(self) -> RollbackPolicy | None:
        """The policy, if it decides by reports of a metric."""
        return self.rollback if self.rollback is not None and self.rollback.watches else None

    def log_to(self, writer: Any) -> None:
        """Write what happens from now on to TensorBoard.

        Parameters
        ----------
        writer : torch.utils.tensorboard.SummaryWriter, or any with ``add_scalar(tag, value, step)``
            Gets the order, errors and seconds of each cut, and the latest values of the trace.
        """
        self._recorder.writer = writer

    def due(self, step: int) -> bool:
        """Tell whether `step` would cut layers, or undo a cut, after this update."""
        step = whole_number(step, "step", "the number of updates done")
        books = self._books
        if books.on_trial is not None:
            return books.failed(self._watched) is not None
        return books.may_cut(self._watched) and (books.waiting or self._comes_due(step))

    @property
    def _terms(self) -> Terms:
        return Terms(self.order, self.gate, self.options, self.above_chance, self.rollback)

    @overload
    def step(self, step: int, model: Any, opt_state: Any) -> tuple[Any, Any]: ...

    @overload
    def step(
        self, step: int, model: Any, opt_state: Any, followers: Sequence[Any]
    ) -> tuple[Any, Any, list[Any]]: ...

    def step(
        self,
        step: int,
        model: Any,
        opt_state: Any = _NOT_GIVEN,
        followers: Sequence[Any] | None = None,
    ) -> tuple[Any, ...]:
        """Cut what is due after update number `step` (the first is 1), or undo the last cut.

        Parameters
        ----------
        step : int
            Number of updates done, a positive int. No attempt is due at a step that was passed
            before.
        model : torch.nn.Module or pytree
            Model with supported layers.
        opt_state : torch.optim.Optimizer or pytree
            Its optimizer, or its optax state; None if it has none.
        followers : sequence of models, optional
            Copies of the model that have to follow its cuts and rollbacks, averages of its weights
            for example; see `reduce_model`. Give the same ones in every step.

        Returns
        -------
        tuple
            Model and optimizer state, and a list of the followers if they are given: the same
            objects if nothing was cut, and always in PyTorch.

        Raises
        ------
        ArgumentError
            If `step` is not a positive int, or the options name a layer that does not exist; at the first
            call, if `above_chance`, `at_cut` or the method of the options needs data and there are
            none.
        UnsupportedLayerError
            At the first call, or when an attempt is due, if the model holds no supported layer, or
            a variant of one that cannot be reduced; at the first call, if a layer needs data and there
            are none.
        OptimizerStateError
            If `opt_state` is left out; at the first call, if the optimizer does not belong to this model, or
            holds what cannot follow a cut.
        ShapeError
            If a cut is to be undone and this is not the model that was cut, or these not its
            followers.
        DistributedError
            If several processes train the model and are not all there.

        Warns
        -----
        UserWarning
            If a cut failed; model and optimizer state are returned as they were. If the trace could
            not record, or if an attempt waits for the first metric. At the first call, if `order` is
            above the number of states of every layer.
        """
        step = positive_count(step, "step", "the number of updates done, 1 after the first")
        if opt_state is _NOT_GIVEN:
            raise OptimizerStateError(
                "`opt_state` is not given; expected the optimizer of `model` in PyTorch, or its optax state "
                "in JAX. Call reducer.step(step, model, optimizer), with None where there is none."
            )
        copies = [] if followers is None else checked_followers(followers)
        if self._is_idle(step):
            self._idle_step = max(step, self._idle_step)
            return (model, opt_state) if followers is None else (model, opt_state, copies)
        models = (model, *copies)
        if not self._books.is_checked:
            has_data, has_cut = self.data is not None, bool(self.events)
            check_model(models, opt_state, self._terms, has_data=has_data, has_cut=has_cut)
        trace = HankelTrace(sys.maxsize) if self.trace is None else self.trace  # records nothing
        latest = trace.records[-1:]
        recording = self._recorder.recorded(trace, step, model, self.options)
        books = self._seen(step, model)
        made = before = Standing(models, opt_state, books)
        turn = partial(self._turned, records=recording.records)
        failed = books.failed(self._watched)
        if failed is not None:
            made = undo(step, failed, before, turn, self.options)
        elif books.trial is None and books.waiting:
            made = self._attempt(step, before, turn, recording)
        self._recorder.write(made.books.news(books), recording, latest)
        (model, *copies), opt_state = made.models, made.opt_state
        answer = (model, opt_state) if followers is None else (model, opt_state, copies)
        # Pytrees are the caller's when this returns: no call in between, where Ctrl-C could come.
        self._books, trace.records = made.books, recording.records
        if made.warning:  # nothing was cut
            warn_caller(made.warning, UserWarning)
        return answer

    def report(self, metric: Any) -> None:
        """Report the watched metric of the model as it is now; a rollback follows in the next `step`.

        Parameters
        ----------
        metric : float
            A loss or an accuracy of the validation set, say. In a distributed run all processes
            report one, and that of the first counts.

        Raises
        ------
        ArgumentError
            If there is no rollback policy, or `metric` is not a number.
        """
        policy = self._watched
        if policy is None:
            raise ArgumentError(
                "`metric` was reported but the reducer has no rollback policy with a tolerance; expected "
                "one. Try InTrainingReducer(schedule, rollback=RollbackPolicy(tolerance))."
            )
        self._books = self._books.with_report(metric_value(metric), policy)

    def check_metric(self, name: str | None) -> None:
        """Raise unless a metric is named exactly where a rollback policy watches one.

        Parameters
        ----------
        name : str or None
            Name of the metric.

        Raises
        ------
        ArgumentError
            If one is named and no policy watches it, or the reverse.
        """
        if name is not None:
            check_text(name, "metric", "the name under which the metric is logged")
        if (name is None) != (self._watched is None):
            raise ArgumentError(
                f"`metric` is {name!r} and the reducer's rollback policy is {self.rollback!r}; expected "
                "both or neither. Name the metric that the policy watches."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, of plain numbers, lists, dicts and arrays.

        The arrays are those of the snapshot of a cut on trial: tensors in PyTorch, which ``torch.load`` with
        ``weights_only=True`` accepts, and NumPy arrays in JAX.
        """
        books = self._books
        return {
            "settings": self._settings(),
            "step": self._last_step,
            "events": [event.to_dict() for event in books.events],
            "waiting": books.waiting,
            "metric": books.metric,
            "stopped": sorted(books.stopped),
            "trial": None if books.on_trial is None else dict(vars(books.on_trial)),
            "trace": None if self.trace is None else self.trace.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the reducer stood whose state was saved.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Raises
        ------
        ArgumentError
            If it is of a reducer with other settings, or no such state. The schedule may be another
            one, of a longer run say: its attempts after the saved step are made.
        ShapeError, NonFiniteError
            If an array in it is not one that a reducer saves.

        Notes
        -----
        All of `state` is checked before the reducer changes, and it changes at once: neither an
        error nor Ctrl-C leaves it half-loaded.
        """
        books, records = checked_state(state, self._settings(), self._watched, self.trace)
        commit(self._turned(books, records))

    def _turned(self, books: Books, records: Sequence[HankelRecord]) -> list[Step]:
        """What puts these books and records in the place of the present ones."""
        steps: list[Step] = [Entries(vars(self), {"_books": books, "_idle_step": 0})]
        if self.trace is not None:
            steps.append(Entries(vars(self.trace), {"records": records}))
        return steps

    @property
    def _last_step(self) -> int:
        return max(self._books.step, self._idle_step)

    def _comes_due(self, step: int) -> bool:
        """Whether an attempt is due at this step, or was due at one that was passed over."""
        return any(self._last_step < at <= step for at in self.schedule.steps)

    def _is_idle(self, step: int) -> bool:
        """Whether a step has nothing to do but to be counted, as most have."""
        return self.trace is None and self._books.is_idle and not self._comes_due(step)

    def _seen(self, step: int, model: Any) -> Books:
        """The books at the beginning of a step."""
        books = self._books
        if books.was_told:
            books = books.agreed(framework_of(model).team_of(model))
        return replace(
            books,
            trial=books.on_trial,
            step=max(step, self._last_step),
            waiting=books.waiting or self._comes_due(step),
            is_checked=True,
        )

    def _attempt(self, step: int, before: Standing, turn: Turn, recording: HankelTrace) -> Standing:
        if not before.books.may_cut(self._watched):
            warning = (
                f"the attempt due after step {step} waits: no finite metric was reported. Call "
                "reducer.report(metric) before the first attempt, or leave `rollback` out."
            )
            return replace(before, warning=warning if self._comes_due(step) else "")
        found = search(before.models[0], self.options)
        with agreement(found.team):
            found.check()  # an error of the user, not of this attempt
        data = None
        if self.data is not None:
            trace = None if self.trace is None else recording
            data = partial(self._recorder.calibrated, self.data, trace, step)
        try:
            return attempt(step, found, before, turn, self._terms, data)
        except SSMReduceError as error:
            warning = (
                f"no cut after step {step}, {self.schedule.outlook(step)}; model and optimizer state are "
                f"as they were: {error}"
            )
            books = replace(before.books, waiting=False)
            return replace(before, books=books, warning=warning)
