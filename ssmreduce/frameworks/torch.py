"""`TorchFramework`: models that are PyTorch modules, changed in place.

Imported only once the user's own object proves that torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch.nn.utils import parametrize

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks import (
    torch_config,
    torch_constant,
    torch_copies,
    torch_distributed,
    torch_matching,
    torch_optimizer,
    torch_recording,
    torch_saved,
    torch_sharing,
    torch_snapshot,
)
from ssmreduce.frameworks.framework import Framework
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, Path
from ssmreduce.frameworks.saved import NamedTrees, StateDicts
from ssmreduce.frameworks.torch_arrays import host_arrays, replaced, tensors_like
from ssmreduce.frameworks.torch_attributes import assigned, dependents
from ssmreduce.frameworks.transaction import Entries, Prepared, commit


@final
class TorchFramework(Framework, StateDicts):
    """A model is a module; a layer is a module that holds its arrays as parameters and buffers."""

    def find(self, model: Any) -> Iterator[tuple[Path, Any, dict[str, int]]]:
        """Yield modules, with parameters and buffers, those of their children too: ``x_proj.weight``."""
        for name, module in model.named_modules():
            axes: dict[str, int] = {}
            for child, part in (("", module), *module.named_children()):
                own = {
                    name: tensor.ndim
                    for name, tensor in {**part._parameters, **part._buffers}.items()
                    if tensor is not None
                }
                if parametrize.is_parametrized(part):
                    # Not the value itself: computing it may change the module, as spectral_norm does.
                    for own_name, chain in part.parametrizations.items():
                        held = getattr(chain, "original" if chain.is_tensor else "original0")
                        own[own_name] = held.ndim
                if part is module and not own:
                    break  # a wrapper, in which a layer may be
                axes |= {f"{child}.{key}" if child else key: count for key, count in own.items()}
            yield tuple(name.split(".")) if name else (), module, axes

    def unwrapped(self, layer: Any) -> tuple[Any, dict[str, int]]:
        """Return the only module inside wrappers that hold no array of their own."""
        for _, module, axes in self.find(layer):
            if axes or len(list(module.children())) != 1:
                return module, axes
        return layer, {}

    on_host = staticmethod(host_arrays)
    like = staticmethod(tensors_like)

    def shares_weights(self, first: LayerHandle, second: LayerHandle) -> bool:
        """Tell whether they hold the same parameters."""
        return all(second.arrays.get(name) is array for name, array in first.arrays.items())

    # Each in the file of its topic, with the arguments of the method.
    check_orders = staticmethod(torch_config.check_orders)
    check_ready = staticmethod(torch_sharing.check_ready)
    check_optimizer = staticmethod(torch_optimizer.check_optimizer)
    moments_of = staticmethod(torch_optimizer.moments_of)
    copies_inside = staticmethod(torch_copies.copies_inside)

    def prepared(
        self,
        model: Any,
        changes: Sequence[LayerChange],
        opt_state: Any,
        moments: Mapping[Any, HostArray],
    ) -> Prepared:
        """Prepare new tensors for the same parameters, their gradients, buckets, moments and attributes."""
        handles = [change.handle for change in changes]
        gradients = torch_optimizer.new_gradients(model, changes)  # first: all ranks meet in it
        shapes = [
            replaced(model, change.handle.arrays[name], new)
            for change in changes
            for name, new in tensors_like(change.handle.arrays, change.values).items()
        ]
        tensors = {handle.path: handle.arrays for handle in handles}
        states = {key: opt_state.state[tensors[key[0]][key[1]]] for key in moments}
        old = {key: state[key[2]] for key, state in states.items()}
        new = tensors_like(old, moments, in_shards=True)
        entries = [Entries(states[key], {key[2]: value}) for key, value in new.items()]
        attributes = [assigned(*each) for change in changes for each in dependents(model, change)]
        steps = [*shapes, *gradients, *entries, *attributes]
        return Prepared(model, opt_state, torch_config.all_steps(model, handles, steps))

    record = staticmethod(torch_recording.record)

    def differentiable(self) -> AbstractContextManager[Any]:
        """Turn gradients on, whatever surrounds it."""
        return torch.enable_grad()

    evaluated = staticmethod(torch_recording.evaluated)
    constant_losses = staticmethod(torch_constant.constant_losses)
    outputs = staticmethod(torch_matching.outputs)
    matched = staticmethod(torch_matching.matched)
    plain = staticmethod(torch_recording.plain)
    scratch = staticmethod(torch_recording.scratch)
    snapshot = staticmethod(torch_snapshot.take)
    prepared_back = staticmethod(torch_snapshot.prepared_back)
    team_of = staticmethod(torch_distributed.team_of)
    gathered = staticmethod(torch_distributed.gathered)

    def fields_of(self, opt_state: Any, handle: LayerHandle) -> dict[str, list[str]]:
        """Return the names of an optimizer's fields."""
        states = getattr(opt_state, "state", {})
        return {name: sorted(states.get(array, {})) for name, array in handle.arrays.items()}

    def state_dicts(self, model: Any) -> StateDicts:
        """A module loads state dicts."""
        return self

    check_saved = staticmethod(torch_saved.check_tensor)

    def load_state(
        self, model: Any, state_dict: Mapping[str, Any], changes: Sequence[LayerChange]
    ) -> None:
        """Give attributes and parameters the sizes, then load strictly."""
        resizes = self.prepared(model, changes, None, {}).steps
        commit(torch_saved.loading_steps(model, state_dict, resizes))

    take_sizes = staticmethod(torch_config.take_sizes)

    def named_trees(self, model: Any) -> NamedTrees:
        """Raise `UnsupportedLayerError`: a module brings a state dict."""
        raise UnsupportedLayerError(
            f"`model` is a {_checks.type_name(model)}; expected a pytree of Equinox modules. Load the state "
            "dict of a PyTorch module with load_reduced(model, state_dict)."
        )
