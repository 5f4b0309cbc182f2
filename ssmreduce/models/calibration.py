"""`Calibration`: what the layers of a model are given, and which steps a loss reads.

Of each layer only the sequences that go into it are kept, and a weight for each step. What its states do on
them follows from its weights. Part of the sequences is held out: what is fitted to the others is compared
on these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray, to_host
from ssmreduce._array_routes import warn_caller
from ssmreduce._checks import (
    check_functions,
    check_instance,
    check_text,
    floating_array,
    positive_count,
    shown,
)
from ssmreduce._display import html_table, text_table
from ssmreduce.errors import (
    CalibrationWarning,
    OrderError,
    ShapeError,
    SSMReduceError,
    UnsupportedLayerError,
)
from ssmreduce.frameworks.framework import LayerHandle, listed
from ssmreduce.layers.options import CutOptions, plain_name
from ssmreduce.models.cut import on_all
from ssmreduce.models.layer_records import LayerRecord, every_fourth, weighted
from ssmreduce.models.runs import Runs
from ssmreduce.models.search import Layers, search
from ssmreduce.models.shared_runs import as_many, of_first, with_full_weights


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Recorded inputs of the layers of a model: the data by which `reduce_model` cuts.

    Parameters
    ----------
    layers : dict of str to LayerRecord
        By name of the layer, in the order in which the model runs them.
    runs : Runs, optional
        The model's batches, where they are at hand: layers are then recorded again behind those
        that were cut, and candidates may be compared by a loss. Without them each layer is cut by
        itself.

    Raises
    ------
    OrderError, ShapeError
        If there is no layer, or something is not of its class.

    Examples
    --------
    For one layer whose inputs are known:

    >>> import numpy as np
    >>> from ssmreduce import Calibration, reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> rng = np.random.default_rng(0)
    >>> steps = rng.normal(size=(64, 50, 4)).cumsum(axis=1)
    >>> data = Calibration.of_inputs({"model": steps})
    >>> print(data)
    layer  sequences  held out  steps  effective rows
    model         64        16     50           2,400
    >>> reduce_layer(LRU(16, 4, rng=rng), 6, data=data).new_order
    6
    """

    layers: dict[str, LayerRecord]
    runs: Runs | None = None

    def __post_init__(self) -> None:
        check_instance(self.layers, Mapping, "layers", "Calibration.of_inputs({'encoder.0': u})")
        if not self.layers:
            raise ShapeError("`layers` is empty; expected one layer at least, by name.")
        for name, record in self.layers.items():
            check_text(name, "layers", "the names of the layers")
            check_instance(record, LayerRecord, f"layers[{name!r}]", "Calibration.of_inputs")
        if self.runs is not None:
            check_instance(self.runs, Runs, "runs", "calibrate(model, batches)")
        vars(self).update(layers=dict(self.layers))

    @classmethod
    def of_inputs(
        cls, inputs: Mapping[str, Any], weights: Mapping[str, Any] | None = None
    ) -> Calibration:
        """Return the calibration of layers whose inputs are known, by name; every fourth is held
        out.

        Parameters
        ----------
        inputs : dict of (N, L, m) arrays
            Sequences that go into each layer.
        weights : dict of (N, L) arrays, optional
            How much each step counts, nonnegative; 0 where padded.

        Raises
        ------
        ShapeError
            If shapes do not fit, or there are fewer than two sequences.
        NonFiniteError
            If an array holds NaN or Inf.
        OrderError
            If an argument is not a mapping.
        """
        check_instance(inputs, Mapping, "inputs", '{"encoder.0": u}')
        if not inputs:
            raise ShapeError("`inputs` is empty; expected one layer at least, by name.")
        given_weights = {} if weights is None else weights
        check_instance(given_weights, Mapping, "weights", '{"encoder.0": ones}')
        layers = {}
        for name, value in inputs.items():
            check_text(name, "inputs", "the names of the layers")
            array = np.asarray(to_host(floating_array(value, f"inputs[{name!r}]", 3)))
            if array.ndim != 3 or len(array) < 2:
                raise ShapeError(
                    f"`inputs[{name!r}]` has shape {array.shape}; expected (N, L, m) with at least two "
                    "sequences. Some are held out."
                )
            given = np.ones(array.shape[:2])
            if name in given_weights:
                array_of = floating_array(given_weights[name], f"weights[{name!r}]", 2)
                given = np.asarray(to_host(array_of))
            if given.shape != array.shape[:2] or np.any(given < 0.0) or not np.any(given):
                raise ShapeError(
                    f"`weights[{name!r}]` has shape {given.shape} or a negative entry, or is zero; expected "
                    f"{array.shape[:2]}, one nonnegative number for each step."
                )
            layers[name] = LayerRecord(array, given.astype(np.float64), every_fourth(len(array)))
        return cls(layers)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Calibration:
        """Return the calibration that `to_arrays` stored.

        Parameters
        ----------
        arrays : dict of arrays
            What `to_arrays` returned, also as ``numpy.load(path, allow_pickle=False)`` reads it
            back.

        Returns
        -------
        Calibration
            Without batches.

        Raises
        ------
        ShapeError
            If an array is missing, or its shape does not fit.
        NonFiniteError
            If an array holds NaN or Inf.
        OrderError
            If `arrays` is not a mapping.
        """
        check_instance(arrays, Mapping, "arrays", "numpy.load(path, allow_pickle=False)")
        for key in arrays:
            check_text(key, "arrays", "what to_arrays() returned")
        names = [key.removesuffix("/inputs") for key in arrays if key.endswith("/inputs")]
        parts = ("inputs", "weights", "held_out")
        missing = [
            f"{name}/{part}" for name in names for part in parts if f"{name}/{part}" not in arrays
        ]
        if not names or missing:
            raise ShapeError(
                f"`arrays` lacks {listed(missing) or 'layers'}; expected what to_arrays() returns: "
                "<layer>/inputs, <layer>/weights and <layer>/held_out."
            )
        found = cls.of_inputs(
            {name: arrays[f"{name}/inputs"] for name in names},
            {name: arrays[f"{name}/weights"] for name in names},
        )
        for name, record in found.layers.items():
            held_out = np.asarray(arrays[f"{name}/held_out"])
            if held_out.dtype != bool or held_out.shape != record.held_out.shape:
                raise ShapeError(
                    f"`{name}/held_out` has shape {held_out.shape} and dtype {held_out.dtype}; expected "
                    f"bools of shape {record.held_out.shape}."
                )
            found.layers[name] = replace(record, held_out=held_out)
        return found

    def to_arrays(self) -> dict[str, HostArray]:
        """Return plain arrays by name, for ``numpy.savez`` or safetensors; batches are left out."""
        return {
            f"{name}/{part}": getattr(record, part)
            for name, record in self.layers.items()
            for part in ("inputs", "weights", "held_out")
        }

    def merged(self, *others: Calibration) -> Calibration:
        """Return this calibration and `others` of the same model, from other processes say, as one.

        Parameters
        ----------
        *others : Calibration
            Of the same layers.

        Returns
        -------
        Calibration
            With the sequences of all of them; without batches.

        Raises
        ------
        OrderError
            If one is no calibration.
        ShapeError
            If they are of other layers, or of layers of another width.
        """
        layers = dict(self.layers)
        for other in others:
            check_instance(other, Calibration, "others", "data.merged(*from_other_processes)")
            if other.layers.keys() != layers.keys():
                raise ShapeError(
                    f"a calibration of `others` has the layers {listed(other.layers)}, this one "
                    f"{listed(layers)}; expected the same."
                )
            for name, record in other.layers.items():
                if record.inputs.shape[2] != layers[name].inputs.shape[2]:
                    raise ShapeError(
                        f"a calibration of `others` has {record.inputs.shape[2]} channels in `{name}`, this "
                        f"one {layers[name].inputs.shape[2]}; expected the same."
                    )
                both = layers[name].joined(record)
                layers[name] = replace(both, weights=np.maximum(both.weights, 0.0))
        return Calibration(layers)

    def for_first(self, found: Layers) -> Calibration:
        """Return the same, without batches where one process cannot run the model: the first
        decides alone.

        :meta private:

        Parameters
        ----------
        found : Layers
            The layers of the model.

        Returns
        -------
        Calibration
            Itself, where one process trains the model.
        """
        team = found.framework.team_of(found.framework.plain(found.model))
        return self if team is None else Calibration(self.layers)

    def __repr__(self) -> str:
        largest = max(len(record.inputs) for record in self.layers.values())
        return f"Calibration({len(self.layers)} layers, {largest} sequences)"

    def __str__(self) -> str:
        return text_table(self._rows())

    def _repr_html_(self) -> str:
        return html_table(self._rows())

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("layer", "sequences", "held out", "steps", "effective rows")
        ]
        for name, record in self.layers.items():
            weights = record.weights[~record.held_out]
            effective = np.sum(weights) ** 2 / np.sum(weights**2)
            count, length = record.weights.shape
            rows.append(
                (
                    name,
                    f"{count:,}",
                    f"{record.held_out.sum():,}",
                    f"{length:,}",
                    f"{effective:,.0f}",
                )
            )
        return rows

    def record_of(self, handle: LayerHandle, *, alone: bool = False) -> LayerRecord:
        """Return the record of a layer.

        :meta private:

        Parameters
        ----------
        handle : LayerHandle
            The layer.
        alone : bool
            Whether the layer stands alone: a single record is then taken, whatever its name. It is,
            too, if the layer is the whole model and there are no batches to record it anew.

        Returns
        -------
        LayerRecord
            Its inputs.

        Raises
        ------
        ShapeError
            If there is none, or it is that of a layer of another width.
        """
        by_name = {plain_name(name): record for name, record in self.layers.items()}
        record = by_name.get(plain_name(handle.name))
        alone = alone or (self.runs is None and not any(map(str, handle.path)))
        if alone and len(self.layers) == 1:
            (record,) = self.layers.values()
        if record is None:
            raise ShapeError(
                f"`data` has the layers {listed(self.layers) or 'none'}; expected one of the name "
                f"`{handle.name}`. "
                "Calibrate this model."
            )
        batch, inputs, _ = handle.kind.ports(handle.weights)
        width = batch[0] if batch else inputs
        if record.inputs.shape[2] != width:
            raise ShapeError(
                f"`data` has inputs of shape {record.inputs.shape} for layer `{handle.name}`; expected "
                f"{width} channels. Calibrate this model."
            )
        return record


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
        matched where a reducer has ``above_chance="match"``. By default ``model(batch)``, or
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
    OrderError
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
    this, with the same number of batches; in DDP each may calibrate by itself.

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
        raise OrderError(
            "`max_sequences` is 1; expected at least two, as some are held out. Leave it out for 512."
        )
    found = search(model, options)
    found = found.of(found.framework.plain(found.model))
    on_all(found.team, found.check)
    found = with_full_weights(found)
    found.check_untraced()
    runs = Runs(_run if forward is None else forward, loss, mask)
    parts: list[dict[str, LayerRecord]] = []
    taken: list[Any] = []
    sizes: list[int] = []
    count = 0
    for batch in as_many(found.team, _iterated(batches)):
        part = on_all(found.team, partial(_all_recorded, runs, found, batch, len(taken)))
        parts.append(part)
        taken.append(batch)
        sizes.append(max(len(record.inputs) for record in part.values()))
        count = of_first(found.team, count + sizes[-1])  # all ranks stop together
        if progress is not None:
            progress(min(count, most), most)
        if count >= most and (loss is None or len(parts) > 1):
            break  # with a loss one batch at least is held out
    if count < 2:
        raise OrderError(
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
    layers = {
        name: weighted(
            kept.kept(
                [
                    replace(part[name], held_out=np.full(len(part[name].inputs), out))
                    for part, out in zip(parts, held_out, strict=True)
                ]
            )
        )
        for name in parts[0]
    }
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
        raise OrderError(
            f"`batches` is {shown(batches)}; expected batches. Pass a data loader or a list of them."
        ) from None


def _all_recorded(runs: Runs, found: Layers, batch: Any, number: int) -> dict[str, LayerRecord]:
    try:
        part = runs.recorded(found, batch, differentiates=runs.loss is not None)
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
