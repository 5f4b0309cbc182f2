"""Numbers of states in the config of a model of Hugging Face: ``from_pretrained`` builds layers by it.

It makes a model from its config on the device "meta" and compares shapes before it loads a tensor, without
``load_state_dict`` and its hooks. So whatever changes a layer writes ``config.ssm_states``, a dict of numbers
of states by layer name, and the ``__init__`` of the model gives its layers these sizes. Names are those in
the innermost model that has a config: the same whether a head is on top of it or not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssmreduce import _checks
from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.framework import LayerChange, LayerHandle
from ssmreduce.frameworks.torch_arrays import replaced, tensor_at
from ssmreduce.frameworks.torch_attributes import dependents
from ssmreduce.frameworks.transaction import Step, commit
from ssmreduce.layers.options import plain_name

_FIELD = "ssm_states"
_LIBRARY = "transformers.modeling_utils"
"""Has been imported by who has a model with a config."""


class _WrittenSizes(Step):
    """Writes how many states layers have, once they have them, into the configs of their models."""

    def __init__(self, places: Sequence[tuple[Any, str, LayerHandle]]) -> None:
        self._places = places
        self._before = [(config, vars(config).get(_FIELD)) for config, _, _ in places]

    def make(self) -> None:
        """Write them."""
        for config, name, handle in self._places:
            setattr(config, _FIELD, {**_sizes(config), name: _order(handle)})

    def undo(self) -> None:
        """Put back what was there."""
        for config, sizes in self._before:
            if sizes is None:
                vars(config).pop(_FIELD, None)
            else:
                setattr(config, _FIELD, sizes)


def size_steps(model: Any, handles: Sequence[LayerHandle]) -> list[Step]:
    """What writes how many states layers have, once they have them, where there are configs."""
    library = sys.modules.get(_LIBRARY)
    places = _places(library, model, handles) if library is not None else []
    return [_WrittenSizes(places)] if places else []


def take_sizes(model: Any, handles: Sequence[LayerHandle]) -> None:
    """Give layers as many states as the configs of their models say, with or without numbers in them.

    Raises
    ------
    ShapeError, OrderError
        If a config holds something else than numbers of states by name.
    """
    library = sys.modules.get(_LIBRARY)
    if library is None:
        return
    steps: list[Step] = []
    for config, name, handle in _places(library, model, handles):
        if name in (sizes := _sizes(config)):
            what = f"config.{_FIELD}[{name!r}]"
            order = _checks.positive_count(sizes[name], what, "what a cut wrote")
            steps += _resizes(model, handle, order)
    commit(steps)


def _places(
    library: Any, model: Any, handles: Sequence[LayerHandle]
) -> list[tuple[Any, str, LayerHandle]]:
    """Each layer that is in a model with a config, the latter, and its name there."""
    names = {
        id(part): (owner.config, plain_name(name))
        for owner in model.modules()  # the innermost comes last
        if isinstance(owner, library.PreTrainedModel)
        for name, part in owner.named_modules()
    }
    return [(*names[id(handle.layer)], handle) for handle in handles if id(handle.layer) in names]


def _sizes(config: Any) -> Mapping[str, Any]:
    sizes = getattr(config, _FIELD, None)
    if sizes is not None and not isinstance(sizes, Mapping):
        raise ShapeError(
            f"`config.{_FIELD}` is {_checks.shown(sizes)}; expected a dict of numbers of states by layer "
            "name, as a cut writes it. Take that of the saved model, or remove it."
        )
    return sizes or {}


def _ones(handle: LayerHandle) -> dict[str, Any]:
    """Arrays in the shapes of a layer, which may have no numbers yet."""
    return {
        name: np.ones(tuple(tensor_at(handle.layer, name).shape)) for name in handle.kind.names()
    }


def _order(handle: LayerHandle) -> int:
    return handle.kind.order(_ones(handle))


def _resizes(model: Any, handle: LayerHandle, order: int) -> list[Step]:
    if order == _order(handle):
        return []
    values = handle.kind.resized(_ones(handle), order)
    change = LayerChange(handle, values, order / _order(handle))
    tensors = [(tensor_at(handle.layer, name), value.shape) for name, value in values.items()]
    return [
        *replaced(model, [(tensor, _leading(tensor, shape)) for tensor, shape in tensors]),
        *dependents(model, change),
    ]


def _leading(tensor: Any, shape: tuple[int, ...]) -> Any:
    """The first entries of a fresh weight, as many as there are; zeros after them."""
    new = tensor.detach().new_zeros(shape)
    common = tuple(slice(min(pair)) for pair in zip(shape, tensor.shape, strict=True))
    new[common] = tensor.detach()[common]
    return new
