"""PyTorch modules: find layers in a model, read and change their arrays in place. Nothing else.

Parameters keep their identity: a cut gives the same `nn.Parameter` a smaller tensor. So param groups,
ties, attributes (`_optim`, `_no_weight_decay`, requires_grad), hooks and lists of parameters kept
elsewhere all stay valid. Imported only once the user's own object proves that torch is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from ssmreduce import _checks
from ssmreduce._namespace import HostArray
from ssmreduce.adapters.change import Change, Path
from ssmreduce.adapters.moments import Moments
from ssmreduce.adapters.torch_distributed import gathered as gathered
from ssmreduce.adapters.torch_distributed import (
    is_sharded,
    managed,
    renew_buckets,
    sharded_like,
    whole,
)
from ssmreduce.adapters.torch_distributed import team_of as team_of
from ssmreduce.adapters.torch_saved import check_tensor as check_tensor
from ssmreduce.errors import OptimizerStateError, ShapeError, UnsupportedLayerError
from ssmreduce.layers.layer_map import LayerMap

MomentKey = tuple[Path, str, str]
"""Where a moment is: path of the layer, name of the weight, field of the optimizer state."""


def is_module(candidate: object) -> bool:
    """Tell whether `candidate` is a torch module."""
    return isinstance(candidate, torch.nn.Module)


def array_axes(module: Any) -> dict[str, int]:
    """Return the names of the parameters and buffers of `module` and their numbers of axes."""
    axes = {
        name: tensor.ndim
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    }
    if parametrize.is_parametrized(module):
        # Not the value itself: computing it may change the module, as spectral_norm does.
        for name, chain in module.parametrizations.items():
            axes[name] = getattr(chain, "original" if chain.is_tensor else "original0").ndim
    return axes


def unwrapped(module: Any) -> Any:
    """Return the only module inside wrappers that hold no array of their own."""
    while not array_axes(module):
        children = list(module.children())
        if len(children) != 1:
            return module
        module = children[0]
    return module


def find_layers(model: Any, matches: Callable[[Any], bool]) -> Iterator[tuple[Path, Any]]:
    """Yield the name and the object of every matching module, the outermost ones only."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if matches(module):
            inside.append(f"{name}." if name else "")
            yield (name,), module


def path_name(path: Path) -> str:
    """Return the name of a module, ``model`` for the model itself."""
    return ".".join(filter(None, path)) or "model"


def check_ready(model: Any, layers: Mapping[Path, tuple[Any, LayerMap]]) -> None:
    """Raise unless the arrays of the layers may be replaced now.

    Raises
    ------
    UnsupportedLayerError
        If one is computed by a parametrization, or shared with something of another shape, or if the
        initial state of a layer is learnt.
    OptimizerStateError
        Under `torch.inference_mode`, whose tensors can never be trained.
    """
    if torch.is_inference_mode_enabled():
        raise OptimizerStateError(
            "`torch.inference_mode` is on, whose tensors can never be trained; expected it off. "
            "Reduce outside of it; torch.no_grad() does no harm."
        )
    for path, (layer, layer_map) in layers.items():
        for name in layer_map.names():
            if parametrize.is_parametrized(layer, name):
                raise UnsupportedLayerError(
                    f"`{name}` of layer `{path_name(path)}` is computed by a parametrization; expected "
                    "a plain parameter. Call torch.nn.utils.parametrize.remove_parametrizations first."
                )
        for name in layer_map.states:
            if layer._parameters.get(name) is not None:
                raise UnsupportedLayerError(
                    f"`{name}` of layer `{path_name(path)}` is a parameter: an initial state that is learnt, "
                    "which a cut does not carry; expected a buffer or attribute. Make it one first."
                )
    _check_sharing(model, layers)


def _check_sharing(model: Any, layers: Mapping[Path, tuple[Any, LayerMap]]) -> None:
    """Refuse parameters shared with another module, unless two layers share all of them."""
    owned: dict[int, tuple[Path, str, Any]] = {}
    for path, (layer, layer_map) in layers.items():
        own = {name: getattr(layer, name) for name in layer_map.names()}
        shared = {owned[id(tensor)][0] for tensor in own.values() if id(tensor) in owned}
        for other in shared:
            twin, twin_map = layers[other]
            if not _same_map(layer_map, twin_map):
                raise UnsupportedLayerError(
                    f"layer `{path_name(path)}` shares its weights with `{path_name(other)}`, which computes "
                    "something else from them; expected layers of one kind with the same options. Untie them "
                    "first."
                )
            apart = [name for name in own if getattr(twin, name, None) is not own[name]]
            if apart:
                raise _tied(path_name(path), path_name(other), ", ".join(apart))
        owned |= {id(tensor): (path, name, layer) for name, tensor in own.items()}
    changing = {
        key: entry
        for key, entry in owned.items()
        if entry[1] not in _unchanged(entry[2], layers[entry[0]][1])
    }
    inside = {id(part) for layer, _ in layers.values() for part in layer.modules()}
    for name, module in model.named_modules():
        around = any(layer is part for layer, _ in layers.values() for part in module.modules())
        if id(module) in inside or around:
            continue
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if id(tensor) in changing:
                path, weight, _ = changing[id(tensor)]
                raise _tied(path_name(path), name or "model", weight, only=True)


def _same_map(first: LayerMap, second: LayerMap) -> bool:
    return first is second or (type(first) is type(second) and vars(first) == vars(second))


def _unchanged(layer: Any, layer_map: LayerMap) -> set[str]:
    """Names of weights whose shape does not depend on the order."""
    weights = read_arrays(layer, layer_map.names())
    B, C = layer_map.matrices(weights)
    changing = {*layer_map.poles, *layer_map.matrix_weights(B, C)}
    return set(layer_map.names()) - changing


def _tied(first: str, second: str, names: str, *, only: bool = False) -> UnsupportedLayerError:
    what = "shares only" if only else "shares parameters, but not"
    return UnsupportedLayerError(
        f"layer `{first}` {what} {names} with `{second}`; expected layers that share all "
        "weights or none: one cut has to fit both. Untie them first."
    )


def read_arrays(module: Any, names: tuple[str, ...]) -> dict[str, HostArray]:
    """Return the named arrays at double precision on the host."""
    return {name: host_array(getattr(module, name)) for name in names}


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


def _like(tensor: Any, value: HostArray) -> Any:
    """A new tensor with the values of `value`, in the dtype and on the device of `tensor`."""
    if np.iscomplexobj(value) and not tensor.is_complex():
        value = value.real
    return torch.from_numpy(np.array(value)).to(tensor.device, tensor.dtype)


def precision(module: Any, names: tuple[str, ...]) -> float:
    """Return the largest eps among the dtypes of the named arrays."""
    dtypes = [getattr(module, name).dtype for name in names]
    inexact = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max(float(torch.finfo(dtype).eps) for dtype in inexact)


def item_sizes(module: Any, names: tuple[str, ...]) -> dict[str, int]:
    """Return the bytes of one entry of each named array."""
    return {name: int(getattr(module, name).element_size()) for name in names}


def rounded(module: Any, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Return `values` as the arrays of `module` would hold them, at double precision."""
    return {name: host_array(_like(getattr(module, name), value)) for name, value in values.items()}


def write_layer(
    module: Any, layer_map: LayerMap, values: Mapping[str, HostArray], ratio: float
) -> Any:
    """Give the arrays of `module` new values and shapes, in place, and return it."""
    prepared(module, is_module, {(): Change(module, layer_map, values, ratio)}, None, {}, {})()
    module.zero_grad()  # gradients are those of another system
    return module


def prepared(
    model: Any,
    matches: Callable[[Any], bool],
    changes: Mapping[Path, Change],
    optimizer: Any,
    moments: Mapping[MomentKey, HostArray],
    gradients: Mapping[MomentKey, HostArray],
) -> Callable[[], tuple[Any, Any]]:
    """Compute a change of layers and optimizer state; what is returned makes it, in place.

    Arrays whose gradients are not among `gradients` lose them.
    """
    resizes = [
        resized(model, getattr(change.layer, name), _like(getattr(change.layer, name), value))
        for change in changes.values()
        for name, value in change.values.items()
    ]
    states = []
    for (path, name, field), value in moments.items():
        state = optimizer.state[getattr(changes[path].layer, name)]
        new = sharded_like(state[field], _like(state[field], value))
        states.append((state, field, new))
    new_gradients = [
        _held_gradients(model, getattr(changes[path].layer, name))[field].renewed(value)
        for (path, name, field), value in gradients.items()
    ]
    attributes = [
        entry
        for layer, layer_map, _, ratio, reduce_state in changes.values()
        for entry in _attributes(model, layer, layer_map, ratio, reduce_state)
    ]

    def make() -> tuple[Any, Any]:
        for resize in resizes:
            resize()
        for renew in new_gradients:
            renew()
        renew_buckets(model)
        for state, field, new in states:
            state[field] = new
        _assign(attributes)
        return model, optimizer

    return make


def _assign(attributes: list[tuple[Any, str, Any]]) -> None:
    for owner, name, value in attributes:
        if value is None:
            vars(owner).pop(name, None)  # layers with the same weights name it twice
        else:
            setattr(owner, name, value)


def check_pytree(model: Any) -> None:
    """Raise `UnsupportedLayerError`: a module brings a state dict."""
    raise UnsupportedLayerError(
        f"`model` is a {_checks.type_name(model)}; expected a pytree of Equinox modules. Load the state "
        "dict of a PyTorch module with load_reduced(model, state_dict)."
    )


def load_state(
    model: Any,
    state_dict: Mapping[str, Any],
    layers: Mapping[Path, tuple[Any, LayerMap]],
    ratios: Mapping[Path, float],
) -> None:
    """Give the layers the shapes of a state dict and load it; names and shapes were checked before.

    What fails then, a hook of a module or Ctrl-C, leaves the model as it was: copies of its tensors are
    kept in host memory meanwhile.
    """
    attributes = [
        entry
        for path, (layer, layer_map) in layers.items()
        for entry in _attributes(model, layer, layer_map, ratios[path])
    ]
    restore = _way_back(model, attributes)
    try:
        _assign(attributes)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if torch.is_tensor(tensor) and tensor.shape != state_dict[name].shape:
                new = torch.zeros(state_dict[name].shape, dtype=tensor.dtype, device=tensor.device)
                _replace_data(tensor, new)
        model.load_state_dict(state_dict)
        renew_buckets(model)
    except BaseException:
        restore()
        raise


def _way_back(model: Any, attributes: list[tuple[Any, str, Any]]) -> Callable[[], None]:
    """What gives a model the tensors, gradients, extra states and these attributes that it has now."""
    tensors = [
        (tensor, tensor.data, tensor.detach().to("cpu", copy=True), tensor.grad)
        for tensor in (*model.parameters(), *model.buffers())
    ]
    kept = [
        (owner, name, name in vars(owner), getattr(owner, name, None))
        for owner, name, _ in attributes
    ]
    extra = [
        (part, copy.deepcopy(part.get_extra_state()))
        for part in model.modules()
        if type(part).get_extra_state is not torch.nn.Module.get_extra_state
    ]

    def restore() -> None:
        for owner, name, is_plain, value in kept:
            if is_plain:
                vars(owner)[name] = value
            else:
                setattr(owner, name, value)
        with torch.no_grad():
            for tensor, data, values, gradient in tensors:
                if tensor.shape != data.shape:
                    _replace_data(tensor, data)
                if _has_own_entries(tensor):
                    tensor.copy_(values)
                tensor.grad = gradient
        for part, value in extra:
            part.set_extra_state(value)
        renew_buckets(model)

    return restore


def _has_own_entries(tensor: Any) -> bool:
    """Whether no number stands for several entries: such a tensor cannot be copied into."""
    return bool(tensor.layout is not torch.strided or 0 not in tensor.stride())


def resized(model: Any, tensor: Any, full: Any) -> Callable[[], None]:
    """What gives a parameter or buffer of `model`, in shards or not, another full tensor of any shape."""
    if is_sharded(tensor):
        return partial(managed(model, tensor).replace, full)
    return partial(_replace_data, tensor, full)


def _replace_data(tensor: Any, new: Any) -> None:
    """Give a parameter or buffer another tensor, of any shape, without a gradient.

    A graph that is still alive (that of the last loss, say) holds the node that accumulates the
    gradient, with the old shape, and the next graph would use it again. torch drops that
    node only when the dtype changes, so the dtype changes for a moment.
    """
    tensor.grad = None
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new


def _attributes(
    model: Any,
    layer: Any,
    layer_map: LayerMap,
    ratio: float,
    reduce_state: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[Any, str, Any]]:
    """Owner, name and new value (None: delete) of what else depends on the number of states.

    Every module that holds one of the layer's arrays may keep such attributes. States between calls, which
    may be buffers, follow by `reduce_state`, or begin with zeros.
    """
    for module in holders(model, layer, layer_map):
        values = vars(module)
        for name in layer_map.sizes:
            if isinstance(values.get(name), int):
                yield module, name, round(values[name] * ratio)
        for name in layer_map.states:
            kept = values.get(name, module._buffers.get(name))
            if torch.is_tensor(kept):
                old = kept.detach()
                if reduce_state is None:
                    shape = (*old.shape[:-1], round(old.shape[-1] * ratio))
                    yield module, name, torch.zeros(shape, dtype=old.dtype, device=old.device)
                    continue
                try:
                    yield module, name, reduce_state(old)
                except ShapeError as error:
                    raise ShapeError(
                        f"the layer keeps a state between calls, and that cannot follow: {error}"
                    ) from error
        for name in layer_map.caches:
            if name in values:
                yield module, name, None


def holders(model: Any, layer: Any, layer_map: LayerMap) -> Iterator[Any]:
    """Yield every module of `model` that holds an array of `layer`: itself, and others that share one."""
    own = {id(getattr(layer, name)) for name in layer_map.names()}
    for module in model.modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(id(tensor) in own for tensor in tensors):
            yield module


def shares_weights(first: Any, second: Any, names: tuple[str, ...]) -> bool:
    """Tell whether two layers hold the same parameters, so that a change of one is one of both."""
    return all(getattr(first, name) is getattr(second, name, None) for name in names)


@dataclass(frozen=True, eq=False)
class _Gradient:
    """A gradient that a parameter holds, or that FSDP2 keeps for it until it is summed over processes."""

    owner: Any
    field: str
    value: Any

    def renewed(self, value: HostArray) -> Callable[[], None]:
        """What puts another one of any shape in its place."""
        new = sharded_like(self.value, _like(self.value, value))
        return partial(setattr, self.owner, self.field, new)


def _held_gradients(model: Any, tensor: Any) -> dict[str, _Gradient]:
    owners = [(tensor, "grad")]
    if is_sharded(tensor):
        owners.append((managed(model, tensor), "accumulated_gradient"))
    held = [_Gradient(owner, field, getattr(owner, field)) for owner, field in owners]
    return {gradient.field: gradient for gradient in held if gradient.value is not None}


def gradients_of(model: Any, layers: Mapping[Path, tuple[Any, LayerMap]]) -> list[Moments]:
    """Return the gradients of the layers; where they are sharded, every rank has to call this."""
    fields: dict[tuple[Path, str], dict[str, tuple[Any, HostArray]]] = {}
    for path, (layer, layer_map) in layers.items():
        for name in layer_map.names():
            for field, gradient in _held_gradients(model, getattr(layer, name)).items():
                key = path, name, field
                arrays = fields.setdefault((path, field), {})
                arrays[name] = key, host_array(whole(gradient.value))
    return [
        Moments(field, f"layer {path_name(path)}", path, arrays)
        for (path, field), arrays in fields.items()
    ]


def check_optimizer(model: Any, optimizer: Any, followers: Sequence[Any]) -> None:
    """Raise `OptimizerStateError` unless an optimizer trains `model`, no follower, weight by weight."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()}
    if own.isdisjoint(held):
        raise OptimizerStateError(
            "`optimizer` holds none of the parameters of `model`; expected the one that trains it. Pass "
            "the model that the optimizer was made for, and its copies as `followers`."
        )
    if any(id(p) in held and id(p) not in own for copy in followers for p in copy.parameters()):
        raise OptimizerStateError(
            "`optimizer` holds parameters of a model of `followers`, whose moments are not carried; "
            "expected those of `model` alone. Pass the model that is trained as `model`, copies that "
            "are not as `followers`."
        )
    total = sum(p.numel() * (2 if p.is_complex() else 1) for p in held.values())
    for parameter, state in optimizer.state.items():
        for field, value in state.items():
            if torch.is_tensor(value) and value.shape == (total,) != parameter.shape:
                raise OptimizerStateError(
                    f"`optimizer` is a {type(optimizer).__qualname__} that holds `{field}` for all "
                    "parameters joined, which cannot be carried; expected one tensor for each. Use "
                    "Adam, AdamW, SGD or RMSprop, or initialise the optimizer afresh."
                )


def fields_of(optimizer: Any, layer: Any, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the names of what an optimizer holds for the named arrays."""
    states = getattr(optimizer, "state", {})
    return {name: sorted(states.get(getattr(layer, name), {})) for name in names}


def moments_of(
    model: Any, optimizer: Any, names: Mapping[Path, tuple[str, ...]]
) -> Iterator[Moments]:
    """Yield what an optimizer holds for the named arrays of the layers at the given paths.

    Raises
    ------
    OptimizerStateError
        If `optimizer` is not a torch optimizer.
    """
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerStateError(
            f"`optimizer` is a {_checks.type_name(optimizer)}; expected a "
            "torch.optim.Optimizer. Pass the one that trains the model, or none."
        )
    if hasattr(optimizer, "consolidate_state_dict"):
        raise OptimizerStateError(
            f"`optimizer` is a {type(optimizer).__qualname__}, which keeps most of its state on other "
            "processes; expected one whose state is here. Shard the model with fully_shard instead, or "
            "make the optimizer anew after the cut."
        )
    for path, own in names.items():
        layer = model.get_submodule(path[0])
        fields: dict[str, dict[str, tuple[Any, HostArray]]] = {}
        for name in own:
            tensor = getattr(layer, name)
            for field, value in optimizer.state.get(tensor, {}).items():
                if isinstance(value, list | tuple | dict) or (
                    torch.is_tensor(value) and value.ndim
                ):
                    if not torch.is_tensor(value):
                        raise OptimizerStateError(
                            f"the optimizer state holds `{field}` for `{name}` as a "
                            f"{type(value).__name__}, which cannot be carried; expected tensors. Use Adam, "
                            "AdamW, SGD or RMSprop, or initialise the optimizer afresh."
                        )
                    key = path, name, field
                    fields.setdefault(field, {})[name] = key, host_array(value)
        for field, arrays in fields.items():
            yield Moments(field, f"layer {path_name(path)}", path, arrays)
