"""Copies of a model that follow its cut: averages of its weights, momentum teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ssmreduce._checks import naming, type_name
from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.layers.cut import LayerCut
from ssmreduce.layers.options import plain_name
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.search import Layers


def checked_followers(followers: Sequence[Any]) -> list[Any]:
    """Return the followers as a list; raise `ShapeError` unless they are a list or tuple of models."""
    if not isinstance(followers, list | tuple):
        raise ShapeError(
            f"`followers` is a {type_name(followers)}; expected a list or tuple of models. "
            "Write [copy] for one."
        )
    return list(followers)


def counterparts(own: Sequence[LayerHandle], copy: Sequence[LayerHandle]) -> list[LayerHandle]:
    """Return the layers of a follower in the order of those of the model, told by name if they have these.

    Raises
    ------
    ShapeError
        If they are not those of the model.
    """
    by_name = {plain_name(handle.name): handle for handle in copy}
    names = [plain_name(handle.name) for handle in own]
    if len(by_name) == len(copy) and by_name.keys() == {*names} and len(names) == len(copy):
        copy = [by_name[name] for name in names]
    if len(own) != len(copy) or not all(
        one.kind.is_same(other.kind) for one, other in zip(own, copy, strict=True)
    ):
        names = [
            ", ".join(f"{handle.name} ({type(handle.kind).__name__})" for handle in some)
            for some in (own, copy)
        ]
        raise ShapeError(
            f"a model of `followers` has the layers {names[1]} but `model` has {names[0]}; expected a copy "
            "of the model. Make it anew from the model as it is."
        )
    return list(copy)


def followed(
    own: Sequence[LayerHandle],
    found: Layers,
    copy: Sequence[LayerHandle],
    cuts: Mapping[Path, LayerCut],
) -> dict[Path, LayerReduction]:
    """Plan for the layers of a follower, in the order of the model's, what was planned for these."""
    to_cut = {
        handle.name: (handle, cuts[of.path])
        for of, handle in zip(own, copy, strict=True)
        if of.path in cuts
    }
    firsts = replace(found, meant=[handle for handle, _ in to_cut.values()]).firsts
    planned: dict[Path, LayerReduction] = {}
    for name, (handle, cut) in to_cut.items():
        first, first_cut = to_cut[firsts[name]]  # comes before, or is this one
        if first is handle:
            copy_cut = _followed_layer(handle, cut)
            planned[handle.path] = LayerReduction(None, copy_cut, handle.item_sizes)
        elif cut.weights is first_cut.weights:
            planned[handle.path] = planned[first.path]
        else:
            raise ShapeError(
                f"layers `{first.name}` and `{name}` of a model of `followers` share their weights but "
                "those of `model` do not; expected a copy of the model. Make it anew from the model as it is."
            )
    return planned


def _followed_layer(handle: LayerHandle, cut: LayerCut) -> LayerCut:
    with naming(f"while reducing layer `{handle.name}` of `followers`"):
        for key, value in cut.weights.items():
            if handle.weights[key].shape != value.shape:
                raise ShapeError(
                    f"`{key}` has shape {handle.weights[key].shape} but that of the model has "
                    f"{value.shape}; expected a copy of the model. Make it anew from the model as it is."
                )
        copy = cut.follow(handle.weights, handle)
        for key, value in cut.new_weights.items():
            if copy.new_weights[key].shape != value.shape:
                raise ShapeError(
                    f"`{key}` would have shape {copy.new_weights[key].shape} but that of the model "
                    f"{value.shape}; expected the same. Cut to another order."
                )
    return copy
