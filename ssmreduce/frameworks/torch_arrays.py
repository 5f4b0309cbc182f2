"""Tensors of PyTorch: read on the host, rounded, given other values and shapes in place.

Parameters keep their identity: a cut gives the same `nn.Parameter` a smaller tensor. So param groups,
ties, attributes (`_optim`, `_no_weight_decay`, requires_grad), hooks and lists of parameters kept
elsewhere all stay valid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ssmreduce._namespace import HostArray
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks.torch_distributed import is_sharded, managed
from ssmreduce.frameworks.transaction import Step


def host_array(tensor: Any) -> HostArray:
    """Return a tensor at double precision on the host.

    Raises
    ------
    UnsupportedLayerError
        If this process holds a part of it only, or it holds no numbers.
    """
    if tensor.is_meta:
        raise UnsupportedLayerError(
            'the layer is on the device "meta", without numbers; expected weights. Load them with '
            "model.to_empty(device=...) and then load_state_dict, or load_reduced after a cut."
        )
    if is_sharded(tensor):
        raise UnsupportedLayerError(
            "the layer has parameters that are sharded over processes (DTensor); expected plain ones. Cut "
            "the whole model with reduce_model, on all ranks; load and read layers before fully_shard."
        )
    double = torch.complex128 if tensor.is_complex() else torch.float64
    return np.array(tensor.detach().to("cpu", double).resolve_conj().numpy())


def tensor_like(tensor: Any, value: HostArray) -> Any:
    """A new tensor with the values of `value`, in the dtype and on the device of `tensor`."""
    if np.iscomplexobj(value) and not tensor.is_complex():
        value = value.real
    return torch.from_numpy(np.array(value)).to(tensor.device, tensor.dtype)


class NewTensor(Step):
    """Gives a parameter or buffer another tensor, of any shape, without a gradient; the object stays."""

    def __init__(self, tensor: Any, new: Any) -> None:
        self._tensor, self._new = tensor, new
        self._before, self._gradient = tensor.data, tensor.grad

    def make(self) -> None:
        """Put the new one in its place."""
        self._put(self._new, None)

    def undo(self) -> None:
        """Put back the old one, with its gradient."""
        self._put(self._before, self._gradient)

    def _put(self, data: Any, gradient: Any) -> None:
        """Replace the data.

        A graph that is still alive (that of the last loss, say) holds the node that accumulates the
        gradient, with the old shape, and the next graph would use it again. torch drops that
        node only when the dtype changes, so the dtype changes for a moment.
        """
        tensor = self._tensor
        tensor.grad = None
        other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
        tensor.data = data
        tensor.grad = gradient


class NewShards(Step):
    """Gives a parameter that FSDP2 shards another full tensor, of any shape; it stays the same object."""

    def __init__(self, model: Any, tensor: Any, full: Any) -> None:
        self._record, self._full = managed(model, tensor), full

    def make(self) -> None:
        """Shard the new one."""
        self._record.replace(self._full)

    def undo(self) -> None:
        """Put back the old shards."""
        self._record.restore()


def replaced(model: Any, tensor: Any, full: Any) -> Step:
    """What gives a parameter or buffer of `model`, in shards or not, another full tensor of any shape."""
    return NewShards(model, tensor, full) if is_sharded(tensor) else NewTensor(tensor, full)
