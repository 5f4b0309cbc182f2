"""FSDP2's records of sharded parameters: the one place that uses its private names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from ssmreduce.errors import UnsupportedLayerError

if distributed.is_available():
    from torch.distributed.fsdp import FSDPModule

FULLY_SHARDED: Any = FSDPModule if distributed.is_available() else ()
"""Class of modules that ``fully_shard`` was called with; none where torch was built without."""

_TRIED = "2.13.0"
"""The version of torch that the tests run with."""

_NAMES = (
    "sharded_param",
    "unsharded_accumulated_grad",
    "all_gather_outputs",
    "fsdp_placement",
    "post_forward_mesh_info",
    "mesh_info",
    "device",
    "_init_sharded_param",
    "_init_sharded_post_forward_param_metadata",
    "_setattr_on_modules",
)
"""Attributes of a record that are needed here."""

_UNSHARDED = "_unsharded_param"
"""Attribute that is there after the first forward pass."""

_ARGUMENTS = 4
"""Number of arguments of ``_init_sharded_param``."""


class ShardedParameter:
    """FSDP2's record of one parameter.

    Raises
    ------
    UnsupportedLayerError
        If this version of torch keeps other records.
    """

    def __init__(self, record: Any) -> None:
        missing = [name for name in _NAMES if not hasattr(record, name)]
        if missing or len(inspect.signature(record._init_sharded_param).parameters) != _ARGUMENTS:
            raise _other_version(missing[0] if missing else "_init_sharded_param")
        self._record = record
        self._before: tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]] | None = None

    @property
    def tensor(self) -> Any:
        """The parameter, a DTensor."""
        return self._record.sharded_param

    @property
    def accumulated_gradient(self) -> Any:
        """What this process has accumulated without sync, a full tensor, not yet summed over processes."""
        unsharded = getattr(self._record, _UNSHARDED, None)
        held = self._record.unsharded_accumulated_grad, getattr(unsharded, "grad", None)
        found = [gradient for gradient in held if gradient is not None]
        return sum(found[1:], found[0]) if found else None

    @accumulated_gradient.setter
    def accumulated_gradient(self, gradient: Any) -> None:
        self._record.unsharded_accumulated_grad = gradient
        unsharded = getattr(self._record, _UNSHARDED, None)
        if unsharded is not None:
            unsharded.grad = None

    def replace(self, full: Any) -> None:
        """Give the parameter another full tensor, of any shape; it stays the same object.

        torch has no public way to do so: what ``fully_shard`` does with a parameter is done again.
        """
        record, tensor = self._record, self.tensor
        attributes, placement = dict(vars(tensor)), record.fsdp_placement
        swapped: list[tuple[Any, Any]] = []
        self._before = dict(vars(record)), attributes, swapped
        parameter = torch.nn.Parameter(full, requires_grad=tensor.requires_grad)
        record._init_sharded_param(parameter, record.device, lambda _: placement, record.mesh_info)
        if record.post_forward_mesh_info is not None:
            record._init_sharded_post_forward_param_metadata(parameter)
        record.all_gather_outputs = []
        record.unsharded_accumulated_grad = None
        if hasattr(record, _UNSHARDED):
            delattr(record, _UNSHARDED)
        new, gradient = record.sharded_param, tensor.grad
        tensor.grad = None
        torch.utils.swap_tensors(tensor, new)  # type: ignore[no-untyped-call]
        swapped.append((new, gradient))
        vars(tensor).update(attributes)
        record.sharded_param = tensor
        record._setattr_on_modules(tensor)

    def restore(self) -> None:
        """Put back what `replace` replaced, as far as it came."""
        if self._before is None:
            return
        values, attributes, swapped = self._before
        tensor = values["sharded_param"]
        while swapped:
            old, gradient = swapped.pop()
            tensor.grad = None
            torch.utils.swap_tensors(tensor, old)  # type: ignore[no-untyped-call]
            tensor.grad = gradient
        vars(tensor).clear()
        vars(tensor).update(attributes)
        vars(self._record).clear()
        vars(self._record).update(values)
        self._record._setattr_on_modules(tensor)


def sharded_modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules in `model` that ``fully_shard`` was called with."""
    return [part for part in model.modules() if isinstance(part, FULLY_SHARDED)]


def reshard(model: Any) -> None:
    """Shard the parameters in `model` again: a forward pass alone may leave full ones in it."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_parameters(model: torch.nn.Module) -> Iterator[ShardedParameter]:
    """Yield the record of every parameter that FSDP2 manages in `model`."""
    for module in sharded_modules(model):
        try:
            groups = module._get_fsdp_state()._fsdp_param_groups
            records = [record for group in groups for record in group.fsdp_params]
        except AttributeError as error:
            raise _other_version(error.name) from None
        yield from map(ShardedParameter, records)


def managed(model: Any, tensor: Any) -> ShardedParameter:
    """Return FSDP2's record of a sharded parameter.

    Raises
    ------
    UnsupportedLayerError
        If there is none.
    """
    found = next((each for each in sharded_parameters(model) if each.tensor is tensor), None)
    if found is None:
        raise UnsupportedLayerError(
            "`model` holds a DTensor that FSDP2 does not manage; expected parameters sharded by "
            "fully_shard. Reduce the model before it is distributed."
        )
    return found


def _other_version(name: str | None) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"`model` is sharded by FSDP2 of torch {torch.__version__}, which keeps its parameters in another "
        f"way (`{name}` is missing or differs); expected that of torch {_TRIED}. Install it, or reduce the "
        "model before fully_shard."
    )
