"""`MappingFramework`: models that are arrays by name, of any library: a state dict, an open safetensors file.

Names lead from the outside in, ``"encoder.0.lru.nu_log"``, written with dots or slashes, or as mappings in
mappings, or as both. The last part is the name of the weight and the rest that of the layer. Nothing changes
in place: a cut returns dicts with new arrays for all weights of the layers that are cut, in their library,
dtype and device.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
from array_api_compat import is_torch_array

from ssmreduce._array_libraries import (
    Array,
    HostArray,
    is_array,
    is_complex_array,
    namespace,
    to_double,
)
from ssmreduce._checks import type_name
from ssmreduce.errors import OptimizerStateError, ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.framework import Framework, Snapshot, listed
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, Path
from ssmreduce.frameworks.moments import Moment, read_moment
from ssmreduce.frameworks.transaction import Prepared

_LAST = re.compile(r"^(?:(.*)[./])?([^./]*)$")
"""The name of a layer and that of its weight."""


class ArrayGroup(dict[str, Array]):
    """The arrays whose names differ in the last part alone, by this part: maybe a layer.

    Attributes
    ----------
    names : dict of str to str
        Their whole names.
    model : mapping
        Where they are.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        self.model = model


@final
class MappingFramework(Framework):
    """A model is a mapping, a layer the arrays whose names begin alike, moments are a second mapping."""

    side_by_side = True

    def find(self, model: Any) -> Iterator[tuple[Path, Any, dict[str, int]]]:
        """Yield groups of arrays."""
        for prefix, group in _groups(model).items():
            yield (prefix,), group, {name: array.ndim for name, array in group.items()}

    def unwrapped(self, layer: Any) -> tuple[Any, dict[str, int]]:
        """Return the only group of arrays in a mapping; an empty one if there are several."""
        groups = list(self.find(layer))
        return groups[0][1:] if len(groups) == 1 else (ArrayGroup(layer), {})

    def scratch(self, model: Any) -> Any:
        """Return `model`, which no cut changes."""
        return model

    def shares_weights(self, first: LayerHandle, second: LayerHandle) -> bool:
        """Tell whether they hold the same arrays, as tied weights do in a state dict."""
        own, other = first.layer, second.layer
        return all(
            name in other and _memory(own[name]) == _memory(other[name])
            for name in first.kind.shapes
        )

    def check_optimizer(self, model: Any, opt_state: Any, followers: Sequence[Any]) -> None:
        """Raise `OptimizerStateError` unless moments are a mapping."""
        if opt_state is not None and not isinstance(opt_state, Mapping):
            raise OptimizerStateError(
                f"`opt_state` is a {type_name(opt_state)} but `model` a mapping of arrays; expected a "
                'mapping of moments, such as {"mu": {...}, "nu": {...}} with the names of the model in each. '
                "Leave it out if there are none."
            )
        odd = odd_entry(opt_state or {})
        if odd is not None:
            raise OptimizerStateError(
                f"`opt_state` holds a {type_name(odd[1])} as `{odd[0]}`; expected arrays, numbers and texts, "
                "in mappings. Make what holds moments a mapping, such as its _asdict()."
            )

    def moments_of(
        self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]
    ) -> list[Moment]:
        """Return the arrays whose names end with that of a weight; what comes before is the field."""
        weights = {
            handle.layer.names[name]: (handle.path, name)
            for handle in handles
            for name in handle.kind.shapes
        }
        own = _flat(model)
        moments: list[Moment] = []
        for full, array in _flat(opt_state or {}, "opt_state").items():
            field, name = _field_and_name(full, own)
            if name is None:
                _check_unrelated(array, full)
            elif name in weights:
                is_complex = is_complex_array(own[name])
                read = read_moment(_last(field), to_double(array), is_complex=is_complex)
                moments.append(Moment(_last(field), field, *weights[name], full, *read))
        return moments

    def prepared(
        self,
        model: Any,
        changes: Sequence[LayerChange],
        opt_state: Any,
        moments: Mapping[Any, HostArray],
    ) -> Prepared:
        """Make dicts with new arrays. Gradients of a mapping are another mapping."""
        model = model.model if isinstance(model, ArrayGroup) else model
        own = _flat(model)
        new = {
            change.handle.layer.names[name]: value
            for change in changes
            for name, value in change.values.items()
        }
        new_model = _replaced(model, _tied(own, new, self.like(own, new)))
        if opt_state is None:
            return Prepared(new_model, None)
        state = _flat(opt_state, "opt_state")
        kept = _tied(state, moments, self.like(state, moments))
        return Prepared(new_model, _replaced(opt_state, kept))

    def snapshot(self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]) -> Snapshot:
        """Copy arrays, each in its library, and numbers."""
        return {"model": _saved(model), "opt_state": _saved(opt_state or {})}

    def prepared_back(
        self, model: Any, opt_state: Any, snapshot: Snapshot, handles: Sequence[LayerHandle]
    ) -> Prepared:
        """Make dicts with the arrays and numbers of a snapshot."""
        restored = _restored(model, snapshot["model"], "model")
        if opt_state is None:
            return Prepared(restored, None)
        return Prepared(restored, _restored(opt_state, snapshot["opt_state"], "opt_state"))


def odd_entry(mapping: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the first entry, with its whole name, that is an object: no array, number or text."""
    odd = (each for each in entries(mapping) if not (is_array(each[1]) or _is_plain(each[1])))
    return next(odd, None)


def opened(model: Any) -> Any:
    """Return the tensors of an open safetensors file by name; anything else itself.

    For callers whose user has imported safetensors.
    """
    if not isinstance(model, sys.modules["safetensors"].safe_open):
        return model
    names = model.keys()
    return {name: model.get_tensor(name) for name in names}


def _is_plain(value: Any) -> bool:
    """Whether a value is none of ours, but no object either: a version, a count, a name, a few of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, _NUMBERS | np.generic | str | bytes)


_NUMBERS = bool | int | float | complex | np.number | np.bool_


def entries(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is in a mapping, and in those in it, with whole names."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in entries(value))
        else:
            yield str(key), value


def _flat(mapping: Mapping[str, Any], what: str = "model") -> dict[str, Array]:
    """The arrays of a mapping, called `what` in messages, by their whole names."""
    found: dict[str, Array] = {}
    for name, value in entries(mapping):
        if is_array(value):
            if name in found:
                raise _twice(name, what)
            found[name] = value
    return found


def _twice(name: str, what: str) -> UnsupportedLayerError | OptimizerStateError:
    error = OptimizerStateError if what == "opt_state" else UnsupportedLayerError
    return error(
        f"`{what}` holds two arrays as `{name}`, under names that are nested or joined in two ways; expected "
        "one. Leave out the other."
    )


def _last(name: str) -> str:
    """The last part of a name."""
    return _LAST.sub(r"\2", name)


def _groups(model: Mapping[str, Any]) -> dict[str, ArrayGroup]:
    """The arrays of a model by the name of what may be a layer."""
    groups: dict[str, ArrayGroup] = {}
    for full, array in _flat(model).items():
        prefix, last = _LAST.sub(r"\1", full), _last(full)
        group = groups.setdefault(prefix, ArrayGroup(model))
        if last in group:
            raise _twice(full, "model")
        group[last], group.names[last] = array, full
    return groups


def _memory(array: Array) -> Any:
    """The same for two arrays that are one: torch makes new objects for one tensor, NumPy views."""
    if is_torch_array(array):
        place = array.device, array.data_ptr(), array.shape, array.stride(), array.dtype
        return *place, array.is_conj(), array.is_neg()
    if isinstance(array, np.ndarray):
        return array.ctypes.data, array.shape, array.strides, array.dtype
    return id(array)


def _tied(
    old: Mapping[str, Array], values: Mapping[str, HostArray], new: Mapping[str, Array]
) -> dict[str, Array]:
    """New arrays by name; one for all names of one array, if they get the same values."""
    made: dict[Any, str] = {}
    tied: dict[str, Array] = {}
    for name, value in values.items():
        first = made.get(key := _memory(old[name]))
        if first is None or not np.array_equal(values[first], value):
            made[key] = first = name
        tied[name] = new[first]
    return tied


def _copied(value: Any) -> Any:
    return namespace(value).asarray(value, copy=True) if is_array(value) else value


def _saved(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the arrays and numbers in a mapping."""
    return {
        name: _copied(value)
        for name, value in entries(mapping)
        if is_array(value) or isinstance(value, _NUMBERS)
    }


def _replaced(
    mapping: Mapping[str, Any], new: Mapping[str, Any], before: str = ""
) -> dict[str, Any]:
    """Dicts with other arrays or numbers under some whole names."""
    return {
        key: _replaced(value, new, f"{before}{key}.")
        if isinstance(value, Mapping)
        else new.get(f"{before}{key}", value)
        for key, value in mapping.items()
    }


def _restored(mapping: Mapping[str, Any], saved: Mapping[str, Any], what: str) -> dict[str, Any]:
    other = sorted(_saved(mapping).keys() ^ saved.keys())
    if other:
        raise ShapeError(
            f"the snapshot from before the cut and `{what}` differ in {listed(other, 4)}; expected the same "
            f"names. Build `{what}` as it was."
        )
    return _replaced(mapping, {name: _copied(value) for name, value in saved.items()})


def _field_and_name(full: str, own: Mapping[str, Any]) -> tuple[str, str | None]:
    """The field of a moment and the name of its weight, with which its own name ends; None for none."""
    for at in (match.end() for match in re.finditer(r"[./]", full)):
        if full[at:] in own:
            return full[: at - 1], full[at:]
    return "", None


def _check_unrelated(array: Array, name: str) -> None:
    kinds = ("real floating", "complex floating")
    if array.ndim and namespace(array).isdtype(array.dtype, kinds):
        raise OptimizerStateError(
            f"`opt_state` holds an array of shape {tuple(array.shape)} as `{name}`, which ends with no name "
            "of the model; expected moments under the name of their field and that of their weight, such as "
            '"mu.lru.nu_log". Leave out what belongs to no weight.'
        )
