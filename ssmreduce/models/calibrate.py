"""`calibrate`: run a model on batches, and record what goes into its layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ssmreduce._array_routes import warn_caller
from ssmreduce._checks import (
    check_functions,
    check_instance,
    positive_count,
    shown,
)
from ssmreduce.errors import (
    ArgumentError,
    CalibrationWarning,
    ShapeError,
    SSMReduceError,
    UnsupportedLayerError,
)
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import agreement, with_full_layers
from ssmreduce.models.layer_records import LayerRecord, every_fourth, weighted
from ssmreduce.models.output_checks import OutputChecks
from ssmreduce.models.recorded_weights import in_single_precision
from ssmreduce.models.runs import Runs
from ssmreduce.models.search import Layers, search


def calibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    mask: Callable[[Any], Any] | None = None,
    options: CutOptions = CutOptions(),
    max_sequences: int = 512,
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Record what the layers of a model are given in a few batches, as the data to cut by.

    Parameters
    ----------
    model : object
        A PyTorch module, which runs in evaluation mode: modes, buffers, gradients and the states of
        torch's random number generators are restored. Or an Equinox module, of which a copy runs in
        inference mode, on one device; functions may be compiled, and layers mapped, scanned and
        checkpointed.
    batches : iterable
        Batches as the model takes them, such as a data loader; they are taken until there are
        `max_sequences`. One in four is held out, or one sequence in four of a single batch. A loss
        reads batches whole: only with two or more does it compare candidates.
    loss : callable, optional
        ``loss(model, batch)`` returns a scalar. With it, each step counts by how much the loss
        depends on the output of the layer there, and candidates are compared by their loss on what
        was held out.
    forward : callable, optional
        ``forward(model, batch)`` returns the output of the model: run where there is no loss, and
        matched with ``CutOptions(match=True)`` and where a reducer has ``above_chance="match"``. By
        default ``model(batch)``, or
        ``model(batch[0])`` for tuples and lists; for a module that takes one sequence,
        ``jax.vmap(model)(batch)``.
    mask : callable, optional
        ``mask(batch)`` returns an (N, L) array that is true where sequences are not padded. The
        ``attention_mask`` that Mamba mixers of transformers get counts without it.
    options : CutOptions
        Which layers to leave out; other options have no effect here.
    max_sequences : int
        How many sequences of each layer to keep: where a loss reads one step, at least four times
        the unknowns of a fit, which are 2 for each state that is to be kept. Batches run whole, even
        if only a part of one is kept.
    progress : callable, optional
        Called after each batch with how many sequences are done and how many there will be:
        `max_sequences`, or at the end as many as there were.

    Returns
    -------
    Calibration
        It keeps the batches that were taken.

    Raises
    ------
    ArgumentError
        If there are no batches, or fewer than two sequences, or no more are wanted.
    NonFiniteError
        If a layer is given NaN or Inf.
    ShapeError
        If the loss is not a scalar, a mask does not fit, or a model of JAX that takes one sequence is
        not mapped over batches.
    UnsupportedLayerError
        If the batches do not reach a layer, or its output is not what its weights say; or if a
        layer has no call to record, as dicts of arrays have none: pass its inputs to
        `Calibration.of_inputs`.
    TracedValueError
        If it is called inside of jit.
    MissingBackendError
        If JAX is older than 0.8.2.

    Notes
    -----
    Cost: a run of the model for each batch, forward and, with a loss, backward; in JAX one more
    compilation. Memory: N L m numbers a layer. For a model under FSDP2 all processes have to call
    this, with the same number of batches; in DDP each may calibrate by itself. A cut runs copies of
    the model again, in PyTorch only up to the last layer that it looks at: what `loss` or `forward`
    has to put back after the model, it does in ``finally``.

    Examples
    --------
    >>> import torch
    >>> from s5 import S5
    >>> from ssmreduce import calibrate, reduce_model
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), S5(4, 16))
    >>> batches = [torch.randn(16, 50, 2) for _ in range(4)]
    >>> result = reduce_model(model, 6, data=calibrate(model, batches))
    >>> result.report["1.seq"].choice.by
    'output error'

    In JAX, with a loss:

    >>> import jax
    >>> import numpy as np
    >>> from ssmreduce.demo.lru import LRU
    >>> rng = np.random.default_rng(0)
    >>> model = LRU(16, 4, rng=rng)
    >>> inputs = [rng.normal(size=(16, 50, 4)).astype(np.float32) for _ in range(4)]
    >>> batches = [(each, 0.9 * model(each)) for each in inputs]
    >>> loss = jax.jit(lambda model, batch: ((model(batch[0]) - batch[1])[:, -20:] ** 2).mean())
    >>> result = reduce_model(model, 8, data=calibrate(model, batches, loss=loss))
    >>> result.report["model"].choice.by
    'loss'
    """
    check_instance(options, CutOptions, "options", "CutOptions(exclude=...)")
    check_functions(loss=loss, forward=forward, mask=mask, progress=progress)
    most = positive_count(max_sequences, "max_sequences", "how many sequences to keep")
    if most < 2:
        raise ArgumentError(
            "`max_sequences` is 1; expected at least two, as some are held out. Leave it out for 512."
        )
    found = search(model, options)
    found = found.of(found.framework.plain(found.model))
    with agreement(found.team):
        found.check()
    found = _with_full_weights(found)
    found.check_untraced()
    runs = Runs(_run if forward is None else forward, loss, mask)
    parts: list[dict[str, LayerRecord]] = []
    taken: list[Any] = []
    sizes: list[int] = []
    count, checks = 0, OutputChecks()
    for batch in _as_many(found.team, _iterated(batches)):
        with agreement(found.team):
            part = _all_recorded(runs, found, batch, len(taken), checks)
        parts.append(part)
        taken.append(batch)
        sizes.append(max(len(record.inputs) for record in part.values()))
        count = _of_first(found.team, count + sizes[-1])  # all ranks stop together
        if progress is not None:
            progress(min(count, most), most)
        if count >= most and (loss is None or len(parts) > 1):
            break  # with a loss one batch at least is held out
    with agreement(found.team):
        checks.check()
    if count < 2:
        raise ArgumentError(
            f"`batches` has {count} sequences; expected at least two, as some are held out. Pass a data "
            "loader, or a list of batches."
        )
    if progress is not None and count < most:
        progress(count, count)
    _warn_of_no_derivative(parts)
    if loss is not None and len(parts) == 1 and found.team is None:
        warn_caller(
            "`batches` has one batch, which `loss` reads whole; expected two at least, of which one is held "
            "out. Candidates are compared by their outputs. Pass smaller batches.",
            CalibrationWarning,
        )
    held_out = tuple(map(bool, every_fourth(len(parts))))
    kept = replace(runs, batches=tuple(taken), held_out=held_out, sizes=tuple(sizes), most=most)
    weights = {each.name: in_single_precision(each.weights) for each in found.meant}
    return _of_parts(kept, parts).with_layer_weights(weights)


def _of_parts(kept: Runs, parts: list[dict[str, LayerRecord]]) -> Calibration:
    """The records of the batches, layer by layer, with what is held out."""
    layers = {name: weighted(kept.kept([part[name] for part in parts])) for name in parts[0]}
    if len(parts) == 1:
        layers = {
            name: replace(record, held_out=every_fourth(len(record.inputs)))
            for name, record in layers.items()
        }
    return Calibration(layers, kept)


def _iterated(batches: Iterable[Any]) -> Iterable[Any]:
    try:
        return iter(batches)
    except TypeError:
        raise ArgumentError(
            f"`batches` is {shown(batches)}; expected batches. Pass a data loader or a list of them."
        ) from None


def _all_recorded(
    runs: Runs, found: Layers, batch: Any, number: int, checks: OutputChecks
) -> dict[str, LayerRecord]:
    try:
        part = runs.recorded(found, batch, differentiates=runs.loss is not None, checks=checks)
        if number == 0:  # the others wait, to be looked at together
            checks.check()
    except (TypeError, ValueError) as error:
        if isinstance(error, SSMReduceError) or not _takes_one_sequence(runs, found, batch):
            raise
        is_many = isinstance(batch, tuple | list)
        raise ShapeError(
            f"`model` does not take batch {number} of `batches`, but it takes one sequence of it; expected a "
            f"model of batches. Pass forward=lambda m, b: jax.vmap(m)({'b[0]' if is_many else 'b'})."
        ) from error
    missing = [each.name for each in found.meant if each.name not in part]
    if missing:
        raise UnsupportedLayerError(
            f"batch {number} of `batches` does not reach layer `{missing[0]}`; expected batches that "
            "reach every layer. Leave it out with options=CutOptions(exclude=...)."
        )
    return part


def _warn_of_no_derivative(parts: Sequence[Mapping[str, LayerRecord]]) -> None:
    """Warn where a loss has no derivative by the output of any layer, in any batch."""
    if not any(np.any(record.weights > 0.0) for part in parts for record in part.values()):
        warn_caller(
            "`loss` has no derivative by what the layers put out, in any batch; expected one that depends on "
            "them, and is not at its least yet. Take away stop_gradient, or leave out `loss`.",
            CalibrationWarning,
        )


def _takes_one_sequence(runs: Runs, found: Layers, batch: Any) -> bool:
    """Whether a model that is called by itself, as one of JAX is written, takes one sequence of a batch."""
    if runs.loss is not None or runs.forward is not _run or not found.framework.maps_batches:
        return False
    try:
        one = _inputs_of(batch)[0]
        found.framework.record(found.model, [], lambda model: model(one), differentiates=False)
    except Exception:  # whatever it is, the error of the batch itself says more
        return False
    return True


def _run(model: Any, batch: Any) -> Any:
    return model(_inputs_of(batch))


def _inputs_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch


# --- Where several processes train the model, all of them have to run it together


_END = object()

_AS_MANY = "as many batches on all ranks. Cut longer ones off: itertools.islice(batches, count)"


def _with_full_weights(found: Layers) -> Layers:
    """The layers themselves, with full weights where they are sharded; all ranks have to call."""
    if found.team is None:
        return found
    full = {each.path: each.weights for each in with_full_layers(found).meant}
    meant = [replace(own, full_weights=full[own.path]) for own in found.meant]
    return replace(found, meant=meant)


def _as_many(team: Any, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of this rank, as long as all ranks have one.

    Raises
    ------
    DistributedError
        If one has fewer than another, or cannot read one.
    """
    if team is None:
        yield from batches
        return
    taken = iter(batches)
    for number in itertools.count():
        latest: list[Any] = []

        def take(latest: list[Any] = latest, number: int = number) -> dict[str, str]:
            latest.append(next(taken, _END))
            return {f"whether its `batches` end after {number}": str(latest[0] is _END)}

        team.check_same(take, _AS_MANY)
        if latest[0] is _END:
            return
        yield latest[0]


def _of_first(team: Any, count: int) -> int:
    """The count of the first rank, on all of them."""
    return count if team is None else int(team.decide(partial(int, count)))
