"""`Calibration`: what the layers of a model are given, and which steps a loss reads.

Of each layer only the sequences that go into it are kept, and a weight for each step. What its states do on
them follows from its weights. Part of the sequences is held out: what is fitted to the others is compared
on these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray, to_host
from ssmreduce._checks import (
    check_instance,
    check_text,
    floating_array,
)
from ssmreduce._display import html_table, text_table
from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.framework import listed
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.layers.options import plain_name
from ssmreduce.models.layer_records import LayerRecord, every_fourth
from ssmreduce.models.recorded_weights import in_single_precision, warn_of_unrelated
from ssmreduce.models.runs import Runs
from ssmreduce.models.search import Layers

_WEIGHT = "/layer_weight"
"""Behind the names of a layer and of a weight, in arrays that are stored."""


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
    ArgumentError, ShapeError
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
    _layer_weights: Mapping[str, Mapping[str, HostArray]] = field(default_factory=dict, init=False)
    """Weights as they were recorded, by layer, to notice a calibration of another model."""

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
        ArgumentError
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
            array = to_host(floating_array(value, f"inputs[{name!r}]", 3))
            if array.ndim != 3 or len(array) < 2:
                raise ShapeError(
                    f"`inputs[{name!r}]` has shape {array.shape}; expected (N, L, m) with at least two "
                    "sequences. Some are held out."
                )
            given = given_weights.get(name, np.ones(array.shape[:2]))
            given = to_host(floating_array(given, f"weights[{name!r}]", 2))
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
        ArgumentError
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
        return found.with_layer_weights(_stored_weights(arrays, names))

    def to_arrays(self) -> dict[str, HostArray]:
        """Return plain arrays by name, for ``numpy.savez`` or safetensors; batches are left out."""
        records = {
            f"{name}/{part}": getattr(record, part)
            for name, record in self.layers.items()
            for part in ("inputs", "weights", "held_out")
        }
        return records | {
            f"{name}/{weight}{_WEIGHT}": value
            for name, weights in self._layer_weights.items()
            for weight, value in weights.items()
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
        ArgumentError
            If one is no calibration.
        ShapeError
            If they are of other layers, or of layers of another width.

        Warns
        -----
        CalibrationWarning
            If a weight of a layer is unrelated to that of the same name, as in another model.
        """
        layers, weights = dict(self.layers), dict(self._layer_weights)
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
                own, others_own = (each.get(name, {}) for each in (weights, other._layer_weights))
                warn_of_unrelated("others", name, own, others_own)
                weights[name] = {**others_own, **own}
                both = layers[name].joined(record)
                layers[name] = replace(both, weights=np.maximum(both.weights, 0.0))
        return Calibration(layers).with_layer_weights(weights)

    def with_layer_weights(self, weights: Mapping[str, Mapping[str, HostArray]]) -> Calibration:
        """Return the same with weights as they were recorded.

        :meta private:

        Parameters
        ----------
        weights : dict of dicts of arrays
            By layer, as `in_single_precision` returns them.

        Returns
        -------
        Calibration
            A copy.
        """
        copy = replace(self)
        vars(copy).update(_layer_weights=weights)
        return copy

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
        alone = replace(self, runs=None).with_layer_weights(self._layer_weights)
        return self if team is None else alone

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
            counts = count, record.held_out.sum(), length, effective
            rows.append((name, *(f"{each:,.0f}" for each in counts)))
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

        Warns
        -----
        CalibrationWarning
            If nothing is recorded again, and a weight is unrelated to the recorded one.
        """
        names = {plain_name(name): name for name in self.layers}
        name = names.get(plain_name(handle.name))
        is_model = self.runs is None and not any(map(str, handle.path))
        if (alone or is_model) and len(self.layers) == 1:
            (name,) = self.layers
        if name is None:
            raise ShapeError(
                f"`data` has the layers {listed(self.layers) or 'none'}; expected one of the name "
                f"`{handle.name}`. "
                "Calibrate this model."
            )
        record = self.layers[name]
        batch, inputs, _ = handle.kind.ports(handle.weights)
        width = batch[0] if batch else inputs
        if record.inputs.shape[2] != width:
            raise ShapeError(
                f"`data` has inputs of shape {record.inputs.shape} for layer `{handle.name}`; expected "
                f"{width} channels. Calibrate this model."
            )
        if self.runs is None or alone:  # nothing is recorded again
            recorded = self._layer_weights.get(name, {})
            warn_of_unrelated("data", name, recorded, in_single_precision(handle.weights))
        return record


def _stored_weights(
    arrays: Mapping[str, Any], layers: Sequence[str]
) -> dict[str, dict[str, HostArray]]:
    """Weights by layer: of several that a key may mean, that of the longest name."""
    weights: dict[str, dict[str, HostArray]] = {}
    for key in arrays:
        owners = [name for name in layers if key.startswith(f"{name}/")]
        if key.endswith(_WEIGHT) and owners:
            owner = max(owners, key=len)
            value = np.asarray(to_host(floating_array(arrays[key], key, 1)))
            name = key.removeprefix(f"{owner}/").removesuffix(_WEIGHT)
            weights.setdefault(owner, {})[name] = value
    return weights
