"""`LoaderCallback`: what callbacks of trainers share. Some calibrate by the first batches of the training
loader, which are read beside the run, in which nothing changes.

Importing this module imports torch.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ssmreduce._checks import check_functions, check_instance, positive_count, shown, type_name
from ssmreduce.errors import ArgumentError
from ssmreduce.frameworks.torch_fsdp import sharded_modules
from ssmreduce.frameworks.torch_recording import plain, scratch
from ssmreduce.models.calibrate import calibrate
from ssmreduce.models.calibration import Calibration
from ssmreduce.training.reducer import InTrainingReducer

_INSTEAD = "Give the reducer data=lambda model: calibrate(model, batches) instead."


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave the default generators of torch, NumPy and Python as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002, of data sets
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


class LoaderCallback:
    """Runs a reducer, with the first batches of a training loader as its data if it is told how many.

    Raises
    ------
    ArgumentError
        If there is a metric and no policy that watches it, or the reverse; if the number is no positive int,
        a function none, or the reducer calibrates by itself.
    """

    def __init__(
        self,
        reducer: InTrainingReducer,
        metric: str | None,
        data: int | None,
        loss: Callable[[Any, Any], Any] | None,
        forward: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        example = "InTrainingReducer(ReductionSchedule(total_steps))"
        check_instance(reducer, InTrainingReducer, "reducer", example)
        reducer.check_metric(metric)
        functions = {"loss": loss, "forward": forward}
        check_functions(**functions)
        if data is not None:
            data = positive_count(data, "data", "how many batches of the training loader calibrate")
            if reducer.data is not None:
                raise ArgumentError(
                    f"`data` is {data} but the reducer has data={shown(reducer.data)}; expected one of "
                    "them. Leave out the other."
                )
        for name, function in functions.items():
            if data is None and function is not None:
                raise ArgumentError(
                    f"`{name}` is {shown(function)} but `data` is None; expected a number of batches. Pass "
                    "data=8."
                )
        self.reducer, self.metric, self.data = reducer, metric, data
        self.loss, self.forward = loss, forward

    def _run(
        self,
        step: int,
        model: Any,
        optimizer: Any,
        calibration: Callable[[Any], Calibration],
        followers: Sequence[Any] = (),
    ) -> None:
        """Run the reducer after an update, which has the calibration for this step, however that ends."""
        own = self.reducer.data
        try:
            if self.data is not None:
                self.reducer.data = calibration
            self.reducer.step(step, model, optimizer, followers)
        finally:
            self.reducer.data = own

    @_generators_kept()
    def _calibrated(
        self,
        model: Any,
        loader: Any,
        place: Callable[[Any], Any],
        loss: Callable[[Any, Any], Any],
        forward: Callable[[Any, Any], Any] | None,
    ) -> Calibration:
        """Calibrate a copy of a model by batches, each put in its place: a step of training may change more
        than weights. The loss is the usual one, where the user gave none.
        """
        return calibrate(
            scratch(plain(model)),
            [place(batch) for batch in first_batches(loader, self.data or 1)],
            loss=loss if self.loss is None else self.loss,
            forward=forward,
            options=self.reducer.options,
            max_sequences=sys.maxsize,
        )


def check_can_be_copied(model: Any, count: int | None) -> None:
    """Raise `ArgumentError` if a callback is to calibrate a model under FSDP2, which has no copies."""
    if count is not None and sharded_modules(model):
        raise ArgumentError(
            f"`data` is {count} but the module is sharded by fully_shard, and cannot be copied to run a "
            "training step without its trainer; expected one on each process. Give the reducer "
            "data=lambda model: calibrate(model, batches, loss=...) instead."
        )


@_generators_kept()
def first_batches(loader: Any, count: int) -> list[Any]:
    """Return the first batches of a fresh pass over a loader, or all if there are fewer.

    A loader of its own draws them, with copies of samplers and generators, and the default generators of
    torch, NumPy and Python are put back. What a data set changes in itself as it is read stays changed.

    Raises
    ------
    ArgumentError
        If the loader, or its data set, can be read once only, or its samplers cannot be copied.
    """
    return list(islice(iter(_fresh(loader)), count))


def _fresh(loader: Any) -> Iterable[Any]:
    """What reads a loader from its beginning, while another pass over it is on the way."""
    if not isinstance(loader, DataLoader):
        return _checked_batches(loader)
    if isinstance(loader.dataset, Iterator):
        raise ArgumentError(
            f"the training loader reads a {type_name(loader.dataset)}, which can be read once only; expected "
            f"a data set that gives a new iterator each time. {_INSTEAD}"
        )
    known = {id(loader.dataset): loader.dataset}
    try:
        sampler, batches, generator = copy.deepcopy(
            (loader.sampler, loader.batch_sampler, loader.generator), known
        )
    except (TypeError, RuntimeError) as error:
        raise ArgumentError(
            f"the sampler of the training loader cannot be copied ({error}); expected one that can: a pass "
            f"over itself would change what training reads. {_INSTEAD}"
        ) from error
    order: dict[str, Any] = {"batch_sampler": batches}
    if isinstance(loader.dataset, IterableDataset):
        order = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    elif batches is None:
        order = {"batch_size": None, "sampler": sampler}
    return DataLoader(
        loader.dataset,
        **order,
        generator=generator,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _checked_batches(loader: Any) -> Iterable[Any]:
    several = isinstance(loader, list | tuple) and any(isinstance(e, DataLoader) for e in loader)
    readable = isinstance(loader, Iterable) and not isinstance(loader, Iterator | Mapping)
    if several or not readable:
        raise ArgumentError(
            f"the training loader is a {type_name(loader)}; expected one DataLoader, or batches that can be "
            f"read more than once. {_INSTEAD}"
        )
    return loader  # type: ignore[no-any-return]
