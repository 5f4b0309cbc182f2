"""Numbers of states in the config of a model of Hugging Face: ``from_pretrained`` builds layers by it.

It makes a model from its config on the device "meta" and compares shapes before it loads a tensor, without
``load_state_dict`` and its hooks. So whatever changes a layer writes ``config.ssm_states``, a dict of numbers
of states by layer name, and the ``__init__`` of the model gives its layers these sizes. Names are those in
the innermost model that has a config: the same whether a head is on top of it or not.

A layer of the library itself, as Mamba, has its size in a field for all layers, ``config.state_size``. That
one is written then, so that the library reads a smaller model as it does any other. So is an entry of a dict,
``config.ssm_cfg["d_state"]``, in a language model of ``mamba_ssm``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ssmreduce import _checks
from ssmreduce.errors import OrderError, ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, ones_like
from ssmreduce.frameworks.torch_arrays import replaced
from ssmreduce.frameworks.torch_attributes import assigned, dependents
from ssmreduce.frameworks.torch_distributed import new_buckets
from ssmreduce.frameworks.transaction import ABSENT, Change, Entries, Step, commit
from ssmreduce.layers.options import plain_name

_FIELD = "ssm_states"
_LIBRARY = "transformers.modeling_utils"
"""Has been imported by who has a model with a config."""


@dataclass(frozen=True, eq=False)
class _Place:
    """A layer in a model with a config: the innermost one."""

    owner: Any
    name: str
    handle: LayerHandle

    @property
    def config(self) -> Any:
        """The config of that model."""
        return self.owner.config

    @property
    def common(self) -> str:
        """The field, or entry of one, in which the library has one size for all layers; empty if none."""
        fields = self.handle.kind.config_sizes
        return next((each for each in fields if _has_size(self.config, each)), "")

    def orders(self, new: Mapping[int, int] = MappingProxyType({})) -> set[int]:
        """Return the orders of all layers of this kind there; `new` are those to be, by id of the layer.

        Raises
        ------
        UnsupportedLayerError
            If one is quantised or wrapped, so that it keeps its order.
        """
        held = {}
        for name, part in self.owner.named_modules():
            if type(part) is type(self.handle.layer):
                try:
                    held[id(part)] = replace(self.handle, layer=part).order
                except AttributeError as error:
                    raise UnsupportedLayerError(
                        f"layer `{name}` cannot be cut ({error}), but {_checks.type_name(self.config)} has "
                        f"one `{self.common}` for all layers; expected all of them with weights. Cut before "
                        "any is quantised or wrapped."
                    ) from error
        return {new.get(at, order) for at, order in held.items()}

    def write(self) -> None:
        """Write how many states the layer has: the one size of a library, if all layers have it."""
        config, (name, _, entry) = self.config, self.common.partition(".")
        if not name:
            setattr(config, _FIELD, {**_sizes(config), self.name: self.handle.order})
        elif len(orders := self.orders()) == 1:
            (order,) = orders
            setattr(config, name, {**getattr(config, name), entry: order} if entry else order)


def all_steps(model: Any, handles: Sequence[LayerHandle], changes: Sequence[Step]) -> list[Step]:
    """The steps of a change, and what depends on them.

    `changes` are between those that make DDP's buckets anew, there and back; what writes how many states the
    layers have follows, where there are configs.
    """
    renewals = [
        new_buckets(part) for part in model.modules() if isinstance(part, DistributedDataParallel)
    ]
    before = [Change(undo=each) for each in renewals]
    steps = [*before, *changes, *map(Change, renewals)]
    if _LIBRARY in sys.modules or any(handle.kind.config_sizes for handle in handles):
        for each in _places(model, handles):
            config, field = vars(each.config), each.common.partition(".")[0]
            old = {_FIELD: ABSENT, field: ABSENT, **config}
            steps.append(Change(each.write, Entries(config, old).make))
    return steps


def check_orders(model: Any, orders: Sequence[tuple[LayerHandle, int]]) -> None:
    """Raise `OrderError` where a library has one number of states for all layers, and they would differ."""
    new = {id(handle.layer): order for handle, order in orders}
    for each in _places(model, [handle for handle, _ in orders]):
        if each.common and len(found := each.orders(new)) > 1:
            raise OrderError(
                f"layers would have {', '.join(map(str, sorted(found)))} states, but "
                f"{_checks.type_name(each.config)} has one `{each.common}` for all of them; expected one "
                "order. Give an int for all layers, or pass options=CutOptions(uniform=True)."
            )


def take_sizes(model: Any, handles: Sequence[LayerHandle]) -> None:
    """Give layers as many states as the configs of their models say, with or without numbers in them.

    Raises
    ------
    ShapeError, ArgumentError
        If a config holds something else than numbers of states by name.
    """
    steps: list[Step] = []
    for each in _places(model, handles):
        if each.name in (sizes := _sizes(each.config)):
            what = f"config.{_FIELD}[{each.name!r}]"
            order = _checks.positive_count(sizes[each.name], what, "what a cut wrote")
            steps += _resizes(model, each.handle, order)
    commit(steps)


def _places(model: Any, handles: Sequence[LayerHandle]) -> list[_Place]:
    """Each layer that is in a model with a config that counts its states, that model, and the name there."""
    library = sys.modules.get(_LIBRARY)
    stock = () if library is None else library.PreTrainedModel
    names = {
        id(part): (owner, plain_name(name))
        for owner in model.modules()  # the innermost comes last
        if isinstance(owner, stock)
        # What mamba_ssm builds all layers of a language model by.
        or isinstance(getattr(vars(owner).get("config"), "ssm_cfg", None), dict)
        for name, part in owner.named_modules()
    }
    places = [_Place(*names[id(each.layer)], each) for each in handles if id(each.layer) in names]
    return [each for each in places if each.common or isinstance(each.owner, stock)]


def _has_size(config: Any, field: str) -> bool:
    """Tell whether a config has a number of states in such a field, or a dict of sizes for an entry."""
    name, _, entry = field.partition(".")
    return isinstance(getattr(config, name, None), dict if entry else int)


def _sizes(config: Any) -> Mapping[str, Any]:
    sizes = getattr(config, _FIELD, None)
    if sizes is not None and not isinstance(sizes, Mapping):
        raise ShapeError(
            f"`config.{_FIELD}` is {_checks.shown(sizes)}; expected a dict of numbers of states by layer "
            "name, as a cut writes it. Take that of the saved model, or remove it."
        )
    return sizes or {}


def _resizes(model: Any, handle: LayerHandle, order: int) -> list[Step]:
    if order == handle.order:
        return []
    values = handle.kind.resized(ones_like(handle.arrays), order)
    change = LayerChange(handle, values, order / handle.order)
    tensors = [(handle.arrays[name], value.shape) for name, value in values.items()]
    return [
        *(replaced(model, tensor, _leading(tensor, shape)) for tensor, shape in tensors),
        *(assigned(*each) for each in dependents(model, change)),
    ]


def _leading(tensor: Any, shape: tuple[int, ...]) -> Any:
    """The first entries of a fresh weight, as many as there are; zeros after them."""
    new = tensor.detach().new_zeros(shape)
    common = tuple(slice(min(pair)) for pair in zip(shape, tensor.shape, strict=True))
    new[common] = tensor.detach()[common]
    return new
