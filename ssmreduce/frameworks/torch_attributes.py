"""What else of a PyTorch module depends on the number of states: sizes, states between calls, caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.framework import LayerChange, LayerHandle
from ssmreduce.frameworks.transaction import Assignment


class Dependent(NamedTuple):
    """An attribute that depends on the number of states, and its new value; a cache has none."""

    owner: Any
    name: str
    value: Any
    is_cache: bool = False

    def assignment(self) -> Assignment:
        """What gives it the new value, or removes it."""
        return Assignment(self.owner, self.name, self.value, removes=self.is_cache)


def holders(model: Any, handle: LayerHandle) -> list[Any]:
    """Return every module of `model` that holds an array of a layer: itself, and others that share one."""
    own = {id(getattr(handle.layer, name)) for name in handle.names}
    return [
        module
        for module in model.modules()
        if not own.isdisjoint(map(id, (*module._parameters.values(), *module._buffers.values())))
    ]


def dependents(model: Any, change: LayerChange) -> Iterator[Dependent]:
    """Yield what depends on the number of states of a layer, in every module that holds one of its arrays.

    States between calls, which may be buffers, follow by `reduce_state`, or begin with zeros.
    """
    kind = change.handle.kind
    for module in holders(model, change.handle):
        values = vars(module)
        for name in kind.sizes:
            if isinstance(values.get(name), int):
                yield Dependent(module, name, round(values[name] * change.ratio))
        for name in kind.states:
            kept = values.get(name, module._buffers.get(name))
            if torch.is_tensor(kept):
                yield Dependent(module, name, _state(kept.detach(), change))
        for name in kind.caches:
            if name in values:
                yield Dependent(module, name, None, is_cache=True)


def _state(old: Any, change: LayerChange) -> Any:
    if change.reduce_state is None:
        shape = (*old.shape[:-1], round(old.shape[-1] * change.ratio))
        return torch.zeros(shape, dtype=old.dtype, device=old.device)
    try:
        return change.reduce_state(old)
    except ShapeError as error:
        raise ShapeError(
            f"the layer keeps a state between calls, and that cannot follow: {error}"
        ) from error
