"""Copies of trained layers inside a PyTorch model: averages of its weights, momentum teachers.

A layer is trained if the optimizer holds one of its parameters, or any would without an optimizer, and that
wants gradients; what is in an `AveragedModel` never is. A layer that is not may be a copy of one that is.
Their names end alike, ``teacher.blocks.0`` and ``student.blocks.0``: what is left in front are two modules,
and each parameter of the first one must have its counterpart in the second, of the same shape and dtype.
The longer the common end, the better.

Layers of one architecture are no copies yet: think of a network whose first blocks are frozen. Weights that
are averaged point the same way, those of independent layers are nearly orthogonal, so that a cosine of 1/2
tells them apart. The average of `AveragedModel` is a copy anyway: before its first update it is far away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.torch_arrays import whole

Name = tuple[str, ...]

_LEAST_COSINE = 0.5
_LEAST_SIZE = 8
"""The cosine of so few random numbers may be anything."""


def copies_inside(
    model: Any, opt_state: Any, handles: Sequence[LayerHandle]
) -> dict[Path, list[LayerHandle]]:
    """Return, by path of each layer that is a copy, the trained layers that it may be a copy of."""
    averages = {
        id(part)
        for each in model.modules()
        if isinstance(each, AveragedModel) and each is not model
        for part in each.modules()
    }
    trainable = _trainable(model, opt_state)
    trained = [
        each
        for each in handles
        if id(each.layer) not in averages
        and not trainable.isdisjoint(map(id, each.layer.parameters()))
    ]
    others = [each for each in handles if each not in trained]
    if not trained or not others:
        return {}
    parameters = [
        (_plain(name.split(".")), _kind(value))
        for name, value in model.named_parameters(remove_duplicate=False)
    ]

    @cache
    def inside(root: Name) -> dict[Name, Any]:
        start = len(root)
        return {name[start:]: kind for name, kind in parameters if name[:start] == root}

    found: dict[Path, list[LayerHandle]] = {}
    for each in others:
        alike = [layer for layer in trained if _are_alike(each, layer, inside)]
        near = [layer for layer in alike if _are_near(each.layer, layer.layer)]
        if near or id(each.layer) in averages:
            found[each.path] = _best(each, near or alike)
    return {path: originals for path, originals in found.items() if originals}


def _trainable(model: Any, optimizer: Any) -> set[int]:
    """Ids of the parameters that want gradients and are in the optimizer, if there is one."""
    held = model.parameters()
    if isinstance(optimizer, torch.optim.Optimizer):
        held = (p for group in optimizer.param_groups for p in group["params"])
    return {id(p) for p in held if p.requires_grad}


def _plain(path: Sequence[str]) -> Name:
    """The parts of a name without those of ``torch.compile``."""
    return tuple(part for part in path if part != "_orig_mod")


def _kind(parameter: Any) -> tuple[Any, Any]:
    """Shape and dtype; parameters of lazy modules have no shape yet."""
    lazy = torch.nn.parameter.is_lazy(parameter)
    return None if lazy else parameter.shape, parameter.dtype


def _common_end(first: Name, second: Name) -> int:
    """How many parts at the end of two names are the same."""
    pairs = list(zip(reversed(first), reversed(second), strict=False))
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _are_alike(
    copy: LayerHandle, layer: LayerHandle, inside: Callable[[Name], dict[Name, Any]]
) -> bool:
    """Whether the layers, and the modules around them whose names differ, have one architecture."""
    if not copy.kind.is_same(layer.kind):
        return False
    first, second = _plain(copy.path), _plain(layer.path)
    end = _common_end(first, second)
    own, other = inside(first[: len(first) - end]), inside(second[: len(second) - end])
    return own.items() <= other.items()


def _best(copy: LayerHandle, layers: Sequence[LayerHandle]) -> list[LayerHandle]:
    """The layers whose names have most in common with that of the copy, tied ones once."""
    ends = [_common_end(_plain(copy.path), _plain(layer.path)) for layer in layers]
    best: list[LayerHandle] = []
    for end, layer in zip(ends, layers, strict=True):
        if end == max(ends) and not any(
            layer.framework.shares_weights(layer, other) for other in best
        ):
            best.append(layer)
    return best


def _are_near(first: Any, second: Any) -> bool:
    """Whether the weights of two layers point the same way, each of them."""
    others = dict(second.named_parameters())
    return all(
        _point_alike(_numbers(value), _numbers(others[name]))
        for name, value in first.named_parameters()
        if value.numel() >= _LEAST_SIZE
    )


def _numbers(tensor: Any) -> Any:
    tensor = whole(tensor.detach())
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def _point_alike(first: Any, second: Any) -> bool:
    """Whether the cosine is large; zeros, with which some weights begin, have none."""
    size = float(first.norm() * second.norm())
    return size == 0.0 or float((first * second).sum()) > _LEAST_COSINE * size
