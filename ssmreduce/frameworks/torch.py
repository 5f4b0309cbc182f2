"""`TorchFramework`: models that are PyTorch modules, changed in place.

Imported only once the user's own object proves that torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch.nn.utils import parametrize

from ssmreduce import _checks
from ssmreduce._namespace import HostArray
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks import (
    torch_config,
    torch_copies,
    torch_distributed,
    torch_optimizer,
    torch_saved,
    torch_sharing,
    torch_snapshot,
)
from ssmreduce.frameworks.framework import (
    Framework,
    LayerChange,
    LayerHandle,
    NamedTrees,
    Path,
    Snapshot,
    StateDicts,
)
from ssmreduce.frameworks.moments import Moments
from ssmreduce.frameworks.torch_arrays import host_array, replaced, tensor_like
from ssmreduce.frameworks.torch_attributes import dependents
from ssmreduce.frameworks.torch_buckets import bucket_steps
from ssmreduce.frameworks.transaction import Entry, Prepared, commit


@final
class TorchFramework(Framework, StateDicts):
    """A model is a module; a layer is a module that holds its arrays as parameters and buffers."""

    def find(self, model: Any, stops: Callable[[Any], bool]) -> Iterator[tuple[Path, Any]]:
        """Yield modules."""
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if not name.startswith(inside) and stops(module):
                inside = (*inside, f"{name}." if name else "")
                yield (name,), module

    def at(self, model: Any, path: Path) -> Any:
        """Return the module of that name."""
        return model.get_submodule(path[0])

    def array_axes(self, layer: Any) -> dict[str, int]:
        """Look at parameters and buffers."""
        axes = {
            name: tensor.ndim
            for tensors in (layer._parameters, layer._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        }
        if parametrize.is_parametrized(layer):
            # Not the value itself: computing it may change the module, as spectral_norm does.
            for name, chain in layer.parametrizations.items():
                axes[name] = getattr(chain, "original" if chain.is_tensor else "original0").ndim
        return axes

    def unwrapped(self, layer: Any) -> Any:
        """Return the only module inside wrappers that hold no array of their own."""
        while not self.array_axes(layer):
            children = list(layer.children())
            if len(children) != 1:
                return layer
            layer = children[0]
        return layer

    def read_arrays(self, layer: Any, names: Sequence[str]) -> dict[str, HostArray]:
        """Return tensors at double precision on the host."""
        return {name: host_array(getattr(layer, name)) for name in names}

    def precision(self, layer: Any, names: Sequence[str]) -> float:
        """Return the largest eps."""
        dtypes = [getattr(layer, name).dtype for name in names]
        inexact = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
        return max(float(torch.finfo(dtype).eps) for dtype in inexact)

    def item_sizes(self, layer: Any, names: Sequence[str]) -> dict[str, int]:
        """Return bytes."""
        return {name: int(getattr(layer, name).element_size()) for name in names}

    def rounded(self, layer: Any, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """Round through the dtype of each tensor."""
        return {
            name: host_array(tensor_like(getattr(layer, name), value))
            for name, value in values.items()
        }

    def shares_weights(self, first: LayerHandle, second: LayerHandle) -> bool:
        """Tell whether they hold the same parameters."""
        return all(
            getattr(first.layer, name) is getattr(second.layer, name, None)
            for name in first.kind.names()
        )

    def check_ready(self, model: Any, handles: Sequence[LayerHandle]) -> None:
        """Look for parametrizations, shared parameters, and inference mode."""
        torch_sharing.check_ready(model, handles)

    def check_optimizer(self, model: Any, opt_state: Any, followers: Sequence[Any]) -> None:
        """Look whether it trains `model`, no follower, weight by weight."""
        torch_optimizer.check_optimizer(model, opt_state, followers)

    def moments_of(
        self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]
    ) -> list[Moments]:
        """Return the tensors that an optimizer holds."""
        return torch_optimizer.moments_of(opt_state, handles)

    def gradients_of(self, model: Any, handles: Sequence[LayerHandle]) -> list[Moments]:
        """Return ``.grad``, and what FSDP2 keeps beside it."""
        return torch_optimizer.gradients_of(model, handles)

    def prepared(
        self,
        model: Any,
        changes: Sequence[LayerChange],
        opt_state: Any,
        moments: Mapping[Any, HostArray],
        gradients: Mapping[Any, HostArray],
    ) -> Prepared:
        """Prepare new tensors for the same parameters, their gradients, buckets, moments and attributes."""
        layers = {change.handle.path: change.handle.layer for change in changes}
        tensors = [
            replaced(model, old, tensor_like(old, value))
            for change in changes
            for name, value in change.values.items()
            for old in [getattr(change.handle.layer, name)]
        ]
        new_gradients = [
            torch_optimizer.held_gradients(model, getattr(layers[path], name))[field].renewed(value)
            for (path, name, field), value in gradients.items()
        ]
        states = []
        for (path, name, field), value in moments.items():
            state = opt_state.state[getattr(layers[path], name)]
            new = torch_distributed.sharded_like(state[field], tensor_like(state[field], value))
            states.append(Entry(state, field, new))
        attributes = [each.assignment() for change in changes for each in dependents(model, change)]
        steps = bucket_steps(model, [*tensors, *new_gradients])
        sizes = torch_config.WrittenSizes(model, [change.handle for change in changes])
        return Prepared(model, opt_state, [*steps, *states, *attributes, sizes])

    def snapshot(self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]) -> Snapshot:
        """Copy tensors, counts, kept states and the optimizer's state."""
        return torch_snapshot.take(model, opt_state, handles)

    def prepared_back(
        self, model: Any, opt_state: Any, snapshot: Snapshot, handles: Sequence[LayerHandle]
    ) -> Prepared:
        """Prepare what gives them back, in place."""
        back = torch_snapshot.prepared_back(model, opt_state, snapshot, handles)
        return replace(back, steps=[*back.steps, torch_config.WrittenSizes(model, handles)])

    def team_of(self, model: Any) -> Any:
        """Return the processes of DDP or FSDP2."""
        return torch_distributed.team_of(model)

    def gathered(self, model: Any, opt_state: Any, layers: Sequence[Any]) -> tuple[Any, Any]:
        """Gather what FSDP2 shards."""
        return torch_distributed.gathered(model, opt_state, layers)

    def fields_of(self, opt_state: Any, handle: LayerHandle) -> dict[str, list[str]]:
        """Return the names of an optimizer's fields."""
        states = getattr(opt_state, "state", {})
        return {
            name: sorted(states.get(getattr(handle.layer, name), {}))
            for name in handle.kind.names()
        }

    def state_dicts(self, model: Any) -> StateDicts:
        """A module loads state dicts."""
        return self

    def check_saved(self, present: Any, saved: Any, name: str) -> None:
        """Look at kind, dtype and numbers of a tensor."""
        torch_saved.check_tensor(present, saved, name)

    def saved_weights(
        self, state_dict: Mapping[str, Any], prefix: str, names: Sequence[str]
    ) -> dict[str, HostArray]:
        """Return what a state dict holds for the named arrays of a layer."""
        return {name: host_array(state_dict[prefix + name]) for name in names}

    def load_state(
        self, model: Any, state_dict: Mapping[str, Any], changes: Sequence[LayerChange]
    ) -> None:
        """Give attributes and parameters the sizes, then load strictly."""
        attributes = [each.assignment() for change in changes for each in dependents(model, change)]
        tensors = [
            replaced(model, tensor, tensor.detach().new_zeros(shape))
            for name, tensor in model.state_dict(keep_vars=True).items()
            if torch.is_tensor(tensor) and tensor.shape != (shape := state_dict[name].shape)
        ]
        resizes = [*attributes, *tensors]
        steps = bucket_steps(model, torch_saved.loading_steps(model, state_dict, resizes))
        sizes = torch_config.WrittenSizes(model, [change.handle for change in changes])
        commit([*steps, sizes])

    def take_sizes(self, model: Any, handles: Sequence[LayerHandle]) -> None:
        """Look at the configs of Hugging Face."""
        torch_config.take_sizes(model, handles)

    def copies_inside(
        self, model: Any, opt_state: Any, handles: Sequence[LayerHandle]
    ) -> dict[Path, list[LayerHandle]]:
        """Look for layers that are not trained, and like one that is."""
        return torch_copies.copies_inside(model, opt_state, handles)

    def named_trees(self, model: Any) -> NamedTrees:
        """Raise `UnsupportedLayerError`: a module brings a state dict."""
        raise UnsupportedLayerError(
            f"`model` is a {_checks.type_name(model)}; expected a pytree of Equinox modules. Load the state "
            "dict of a PyTorch module with load_reduced(model, state_dict)."
        )
