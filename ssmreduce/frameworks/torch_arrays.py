"""Tensors of PyTorch: read on the host, rounded, given other values and shapes in place.

Parameters keep their identity: a cut gives the same `nn.Parameter` a smaller tensor. So param groups,
ties, attributes (`_optim`, `_no_weight_decay`, requires_grad), hooks and lists of parameters kept
elsewhere all stay valid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import distributed

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks.torch_fsdp import managed
from ssmreduce.frameworks.transaction import Change, Step

if distributed.is_available():
    from torch.distributed.tensor import DTensor, distribute_tensor

SHARDED: Any = DTensor if distributed.is_available() else ()
"""Class of tensors of which this rank holds a part; none where torch was built without."""

K = TypeVar("K", bound=Hashable)


def whole(tensor: Any) -> Any:
    """Return the full tensor of a DTensor, which every rank has to call; any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, SHARDED) else tensor


def sharded_like(tensor: Any, full: Any) -> Any:
    """Return the part of `full` that is this rank's, distributed as `tensor` is; without communication.

    A tensor that is not distributed gets `full` itself.
    """
    if not isinstance(tensor, SHARDED):
        return full
    return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)


def host_arrays(arrays: Mapping[K, Any]) -> dict[K, HostArray]:
    """Return tensors at double precision on the host.

    Raises
    ------
    UnsupportedLayerError
        If this process holds a part of one only, or it holds no numbers.
    """
    read = {}
    for key, tensor in arrays.items():
        if tensor.is_meta:
            raise UnsupportedLayerError(
                'the layer is on the device "meta", without numbers; expected weights. Load them with '
                "model.to_empty(device=...) and then load_state_dict, or load_reduced after a cut."
            )
        if isinstance(tensor, SHARDED):
            raise UnsupportedLayerError(
                "the layer has parameters that are sharded over processes (DTensor); expected plain ones. "
                "Cut the whole model with reduce_model, on all ranks; load and read layers before "
                "fully_shard."
            )
        double = torch.complex128 if tensor.is_complex() else torch.float64
        read[key] = np.array(tensor.detach().to("cpu", double).resolve_conj().numpy())
    return read


def tensors_like(
    arrays: Mapping[K, Any], values: Mapping[K, HostArray], *, in_shards: bool = False
) -> dict[K, Any]:
    """New tensors with the values of `values`, each in the dtype and on the device of that in `arrays`.

    With `in_shards` of one like a tensor that is sharded the part that is this rank's.
    """
    made = {}
    for key, value in values.items():
        tensor = arrays[key]
        value = value if tensor.is_complex() else value.real
        new = torch.from_numpy(np.array(value, order="C")).to(tensor.device, tensor.dtype)
        made[key] = sharded_like(tensor, new) if in_shards and isinstance(tensor, SHARDED) else new
    return made


@runtime_checkable
class NamedTuple(Protocol):
    """Any class of named tuples."""

    def _make(self, parts: list[Any]) -> Any: ...


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return what `function` makes of a tensor, or of those in containers, in containers of their own."""
    if torch.is_tensor(value):
        return function(value)
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, entry in value.items():
            made[key] = mapped(entry, function)
        return made
    if not isinstance(value, list | tuple):
        return value
    parts = [mapped(entry, function) for entry in value]
    return value._make(parts) if isinstance(value, NamedTuple) else type(value)(parts)


def replaced(model: Any, tensor: Any, full: Any) -> Step:
    """What gives a parameter or buffer of `model`, in shards or not, another full tensor of any shape.

    Without a gradient; the object stays.
    """
    if isinstance(tensor, SHARDED):
        record = managed(model, tensor)
        return Change(partial(record.replace, full), record.restore)
    before = partial(_give, tensor, tensor.data, tensor.grad)
    return Change(partial(_give, tensor, full, None), before)


def _give(tensor: Any, data: Any, gradient: Any) -> None:
    """Put data of any shape in the place of those of a tensor.

    A graph that is still alive (that of the last loss, say) holds the node that accumulates the
    gradient, with the old shape, and the next graph would use it again. torch drops that
    node only when the dtype changes, so the dtype changes for a moment.
    """
    tensor.grad = None
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data
    tensor.grad = gradient
