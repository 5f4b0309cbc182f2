"""`ReductionCallback` for Lightning: an `InTrainingReducer` in ``Trainer(callbacks=[...])``.

Importing this module imports Lightning.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule

from ssmreduce._checks import shown, type_name
from ssmreduce.errors import ArgumentError, ArgumentTypeError, OptimizerStateError, SSMReduceError
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.checkpoint import accept_shapes
from ssmreduce.training.callbacks import LoaderCallback, check_can_be_copied
from ssmreduce.training.reducer import InTrainingReducer


class ReductionCallback(LoaderCallback, Callback):  # type: ignore[misc]
    """Runs a reducer after every update, reports the watched metric to it, and saves it in
    checkpoints.

    A step is an update: with gradient accumulation, batches in between do not count.
    ``trainer.fit(model, ckpt_path=...)`` resumes in the middle of the schedule, with a model that
    was built at full size.

    Parameters
    ----------
    reducer : InTrainingReducer
        What to run.
    metric : str, optional
        Name under which the module logs the metric that its rollback policy watches, for example
        ``"val_loss"``; read after every validation but the sanity check.
    followers : callable, optional
        Takes the trainer to a list of copies of the model that follow its cuts, averages of its
        weights for example; see `InTrainingReducer.step`. Also called before the weights of a
        checkpoint are loaded: copies that are not made yet may be left out, or None, then.
    data : int, optional
        Number of batches of the training loader by which to calibrate at each attempt; they are
        read without disturbing the run. The reducer has no ``data`` of its own then.
    loss : callable, optional
        ``loss(module, batch)`` returns the scalar by which steps count and cuts are compared. By
        default what ``training_step`` returns on a copy of the module that has no trainer: nothing
        is logged.
    forward : callable, optional
        ``forward(module, batch)`` returns the output that is matched with ``CutOptions(match=True)``
        and where the reducer has ``above_chance="match"``. By default ``module(batch)``, or
        ``module(batch[0])`` for tuples and lists.

    Raises
    ------
    ArgumentError
        If the reducer has a rollback policy and there is no `metric`, or the reverse; if `data` is
        not a positive int, or the reducer has data, too; while fitting, if nothing was logged under
        the name of the metric, or `data` is given for a module under FSDP2.
    OptimizerStateError
        While fitting, if there is not exactly one optimizer.

    Examples
    --------
    >>> from ssmreduce import InTrainingReducer, ReductionSchedule, RollbackPolicy
    >>> from ssmreduce.training.lightning import ReductionCallback
    >>> reducer = InTrainingReducer(ReductionSchedule(2000), rollback=RollbackPolicy(0.02))
    >>> callback = ReductionCallback(reducer, metric="val_loss")
    >>> # trainer = lightning.pytorch.Trainer(max_steps=2000, callbacks=[callback])
    """

    def __init__(
        self,
        reducer: InTrainingReducer,
        *,
        metric: str | None = None,
        followers: Callable[[Any], Sequence[Any]] | None = None,
        data: int | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        forward: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(reducer, metric, data, loss, forward)
        if followers is not None and not callable(followers):
            raise ArgumentTypeError(
                f"`followers` is {shown(followers)}; expected a function of the trainer. "
                "Try lambda trainer: [copy]."
            )
        self.followers = followers
        self._hooks: list[Any] = []
        self._last_step = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let the module load the weights of a reduced one, also to test and predict."""
        self._hooks.append(accept_shapes(pl_module, self.reducer.options.kind))
        if stage == "fit" and self.followers is not None:
            self._hooks.append(pl_module.register_load_state_dict_pre_hook(_let_followers_load))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the hooks of `setup` away."""
        while self._hooks:
            self._hooks.pop().remove()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the optimizers, and note where a resumed run stands.

        Raises
        ------
        OptimizerStateError
            If there is not exactly one optimizer.
        ArgumentError
            If `data` is given for a module under FSDP2.
        """
        if len(trainer.optimizers) != 1:
            raise OptimizerStateError(
                f"the module has {len(trainer.optimizers)} optimizers; expected one. Call "
                "reducer.step(...) in the training step yourself."
            )
        check_can_be_copied(trainer.model, self.data)
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Run the reducer if this batch was followed by an update."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        (optimizer,) = trainer.optimizers
        # Not pl_module, which under DDP is inside of the wrapper that has to follow the cut.
        followers = [] if self.followers is None else self.followers(trainer)
        calibration = partial(self._calibration, trainer)
        self._run(step, trainer.model, optimizer, calibration, followers)

    def _calibration(self, trainer: Any, model: Any) -> Calibration:
        """Calibrate by the first batches of the training loader."""
        precision, strategy = trainer.precision_plugin, trainer.strategy
        return self._calibrated(
            model,
            trainer.train_dataloader,
            lambda batch: precision.convert_input(strategy.batch_to_device(batch)),
            partial(_own_loss, precision),
            self.forward,
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the watched metric.

        Raises
        ------
        ArgumentError
            If the module did not log it.
        """
        if self.metric is None or trainer.sanity_checking:
            return
        if self.metric not in trainer.callback_metrics:
            raise ArgumentError(
                f"`metric` is {self.metric!r}, which the module did not log; expected one of "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'those it logs'}. Call "
                f"self.log({self.metric!r}, value) in validation_step."
            )
        self.reducer.report(trainer.callback_metrics[self.metric])

    def state_dict(self) -> dict[str, Any]:
        """Return what goes into the checkpoint: the state of the reducer."""
        return self.reducer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was saved."""
        self.reducer.load_state_dict(state_dict)

    def _accept_in(self, followers: Sequence[Any]) -> None:
        """Let followers load the weights of reduced ones, too."""
        for follower in followers:
            parts = follower.modules() if isinstance(follower, torch.nn.Module) else ()
            # Of an AveragedModel Lightning loads the whole, or the module inside.
            for part in parts:
                if part is follower or isinstance(part, LightningModule):
                    self._hooks.append(accept_shapes(part, self.reducer.options.kind))


def _own_loss(precision: Any, module: Any, batch: Any) -> Any:
    """What ``training_step`` returns; on a copy without a trainer ``self.log`` does nothing but warn."""
    takes_index = len(inspect.signature(module.training_step).parameters) > 1
    with precision.train_step_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"You are trying to `self\.log")
        try:
            value = module.training_step(batch, *((0,) if takes_index else ()))
        except SSMReduceError:
            raise
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ArgumentError(
                f"training_step of {type_name(module)} ends in {type_name(error)}: {error} (on a copy of the "
                "module without a trainer, for the loss of a calibration); expected a loss. Pass "
                "loss=lambda module, batch: ..., as training_step computes it."
            ) from error
    return value["loss"] if isinstance(value, Mapping) else value


def _let_followers_load(module: Any, *_: Any) -> None:
    """Before a module loads its weights, let the followers do so.

    Lightning loads the module after `setup` of all callbacks and before any of them loads its own state, in
    whatever order they stand. This is a plain function, which copies and pickles of the module
    can take along.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # a copy, which has none
        return
    for callback in trainer.callbacks:
        if isinstance(callback, ReductionCallback) and callback.followers is not None:
            callback._accept_in(callback.followers(trainer))
