"""What else of a PyTorch module depends on the number of states: sizes, states between calls, caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.framework import LayerChange
from ssmreduce.frameworks.torch_arrays import tensor_at
from ssmreduce.frameworks.transaction import Assignment


def dependents(model: Any, change: LayerChange) -> Iterator[Assignment]:
    """Yield what changes with the number of states of a layer, in every module that holds one of its arrays.

    States between calls, which may be buffers, follow by `reduce_state`, or begin with zeros; one that has
    not begun stays None. Caches go.
    """
    kind = change.handle.kind
    own = {id(tensor_at(change.handle.layer, name)) for name in change.handle.names}
    for module in model.modules():
        if own.isdisjoint(map(id, (*module._parameters.values(), *module._buffers.values()))):
            continue
        values = vars(module)
        for name in kind.sizes:
            if isinstance(values.get(name), int):
                yield Assignment(module, name, round(values[name] * change.ratio))
        for name in kind.states:
            kept = values.get(name, module._buffers.get(name))
            if torch.is_tensor(kept):
                yield Assignment(module, name, _state(kept.detach(), change))
            elif name in values and kept is None:
                yield Assignment(module, name, None)
        for name in kind.caches:
            if name in values:
                yield Assignment(module, name, None, removes=True)


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
