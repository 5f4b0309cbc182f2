"""`ReductionCallback` for the Trainer of Hugging Face: an `InTrainingReducer` among its callbacks.

Importing this module imports transformers.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ssmreduce._checks import shown, type_name
from ssmreduce._files import written_whole
from ssmreduce.errors import ArgumentError, ArgumentTypeError, DataFileError, DistributedError
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.checkpoint import accept_shapes
from ssmreduce.training.callbacks import LoaderCallback
from ssmreduce.training.reducer import InTrainingReducer

_FILE = "ssmreduce.pt"


class ReductionCallback(LoaderCallback, TrainerCallback):  # type: ignore[misc]
    """Runs a reducer after every update, reports the watched metric to it, and saves it in
    checkpoints.

    A step is an update: with gradient accumulation, batches in between do not count. The state of
    the reducer is stored next to the weights, in ``checkpoint-<step>/ssmreduce.pt``, and
    ``trainer.train(resume_from_checkpoint=...)`` resumes in the middle of the schedule, with a
    model that was built at full size.

    Parameters
    ----------
    reducer : InTrainingReducer
        What to run.
    metric : str, optional
        Name of the metric that its rollback policy watches, as evaluations return it, for example
        ``"eval_loss"``. Evaluations without it do not count.
    data : int, optional
        Number of batches of the training loader by which to calibrate at each attempt; they are
        read without disturbing the run. The reducer has no ``data`` of its own then.
    loss : callable, optional
        ``loss(model, batch)`` returns the scalar by which steps count and cuts are compared. By
        default the loss that ``model(**batch)`` returns; pass your own where the Trainer computes
        another.

    Raises
    ------
    ArgumentError
        If the reducer has a rollback policy and there is no `metric`, or the reverse; if `data` is
        not a positive int, or the reducer has data, too; while training, if the checkpoint of a
        resumed run has no reducer in it.
    DistributedError
        While training, if there are several processes: callbacks see the model without the wrapper,
        and that would keep the old shapes.

    Notes
    -----
    Pass it to the constructor, ``Trainer(callbacks=[...])``: callbacks that are added later are too
    late to load a checkpoint. For a checkpoint outside of ``output_dir`` call `load` first.

    Examples
    --------
    >>> from ssmreduce import InTrainingReducer, ReductionSchedule, RollbackPolicy
    >>> from ssmreduce.training.transformers import ReductionCallback
    >>> reducer = InTrainingReducer(ReductionSchedule(2000), rollback=RollbackPolicy(0.02))
    >>> callback = ReductionCallback(reducer, metric="eval_loss")
    >>> # trainer = transformers.Trainer(model, arguments, callbacks=[callback], ...)
    """

    def __init__(
        self,
        reducer: InTrainingReducer,
        *,
        metric: str | None = None,
        data: int | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        super().__init__(reducer, metric, data, loss)
        self._loaded = False

    def load(self, checkpoint: str | Path) -> None:
        """Continue where a checkpoint was saved.

        Parameters
        ----------
        checkpoint : str or Path
            Its folder.

        Raises
        ------
        ArgumentError
            If there is no state of a reducer in it, or that of another one.
        DataFileError
            If the file is damaged, holds other objects than tensors and numbers, or unpacks to more
            than its own length.
        """
        if not isinstance(checkpoint, str | Path):
            raise ArgumentTypeError(
                f"`checkpoint` is {shown(checkpoint)}; expected a str or a Path. Pass the folder."
            )
        file = Path(checkpoint) / _FILE
        if not file.is_file():
            raise ArgumentError(
                f"`checkpoint` is {str(checkpoint)!r}, where there is no {_FILE}; expected a checkpoint "
                "of a run with this callback. Call callback.load(folder) before trainer.train(...) if it "
                "lies elsewhere."
            )
        self.reducer.load_state_dict(_read(file))
        self._loaded = True

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the model load the weights of a reduced one."""
        accept_shapes(kwargs["model"], self.reducer.options.kind)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the reducer if the run is resumed.

        Raises
        ------
        DistributedError
            If the Trainer runs in several processes.
        ArgumentError, DataFileError
            As `load`.
        """
        if args.world_size > 1:
            raise DistributedError(
                f"the Trainer runs in {args.world_size} processes, where callbacks see the model without its "
                "wrapper; expected one process. Train in a loop of your own with reducer.step(...)."
            )
        if state.global_step > 0 and not self._loaded:
            self.load(_folder(args, state))
        self._loaded = False

    def _calibration(self, loader: Any, args: Any, model: Any) -> Calibration:
        """Calibrate by the first batches of the training loader."""
        place = partial(send_to_device, device=args.device)
        return self._calibrated(model, loader, place, _own_loss, _outputs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run the reducer: the update is done and gradients are cleared."""
        optimizer = kwargs["optimizer"]
        # accelerate wraps it.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        calibration = partial(self._calibration, kwargs.get("train_dataloader"), args)
        self._run(state.global_step, kwargs["model"], optimizer, calibration)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the watched metric."""
        # With several sets for evaluation each of them comes alone, and one of them has it.
        if self.metric in kwargs["metrics"]:
            self.reducer.report(kwargs["metrics"][self.metric])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the reducer next to the weights."""
        if state.is_world_process_zero:
            with written_whole(_folder(args, state) / _FILE) as path, path.open("wb") as file:
                torch.save(self.reducer.state_dict(), file)


def _own_loss(model: Any, batch: Any) -> Any:
    """The loss that a model returns for a batch with labels."""
    if not isinstance(batch, Mapping):
        raise ArgumentError(
            f"a batch of the training loader is a {type_name(batch)}; expected a dict for model(**batch). "
            "Pass loss=lambda model, batch: ..."
        )
    outputs = model(**batch)
    if not isinstance(outputs, Mapping):
        return outputs[0]
    if "loss" not in outputs:
        raise ArgumentError(
            f"model(**batch) returns {', '.join(outputs)}; expected a loss among them. Pass "
            "loss=lambda model, batch: ..."
        )
    return outputs["loss"]


def _outputs(model: Any, batch: Any) -> Any:
    """What a model puts out for a batch, but for its loss."""
    outputs = model(**batch)
    if not isinstance(outputs, Mapping):
        return outputs[1:]
    return tuple(value for name, value in outputs.items() if name != "loss")


def _read(file: Path) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            size, length = sum(part.file_size for part in archive.infolist()), file.stat().st_size
        # torch.save packs nothing, and torch.load would unpack whatever it finds.
        if size > length:
            raise DataFileError(
                f"{file}: unpacks to {size} bytes but has {length}; expected a file of torch.save, which "
                "packs nothing. Resume from another checkpoint."
            )
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise DataFileError(
            f"{file}: cannot be read ({reason}); expected the state of a reducer, as this callback saves "
            "it. Resume from another checkpoint."
        ) from error


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
