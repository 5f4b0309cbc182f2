"""Carry out a cut: decided once, prepared completely, then made entirely or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import naming, type_name
from ssmreduce.errors import ShapeError
from ssmreduce.frameworks.handle import LayerChange, LayerHandle, Path
from ssmreduce.frameworks.mappings import ArrayGroup
from ssmreduce.frameworks.transaction import Prepared, Step, commit
from ssmreduce.layers.cut import LayerCut
from ssmreduce.layers.options import CutOptions, plain_name
from ssmreduce.models.optimizer_state import reduced_moments
from ssmreduce.models.report import LayerReduction, ModelReduction, ModelReport
from ssmreduce.models.search import Layers, search

Results = dict[Path, LayerReduction]
"""What is planned for each layer, without the layer itself, which other processes could not read."""


@dataclass(frozen=True, eq=False)
class CutPlan:
    """Everything about a cut but the change itself."""

    results: Results
    moments: dict[Any, HostArray]
    followers: tuple[Results, ...]


def plan_cut(
    found: Layers,
    opt_state: Any,
    decide: Callable[[Layers], Results],
    followers: Sequence[Any] = (),
    *,
    only: Collection[str] | None = None,
    for_team: bool = False,
) -> CutPlan:
    """Prepare a cut as `decide` says: all that can fail, and nothing is changed.

    Parameters
    ----------
    found : Layers
        The layers of the model.
    opt_state : object
        Its optimizer or optimizer state, or None.
    decide : callable
        Takes the layers, in full where they are sharded, to what is planned for them. Where several
        processes train the model, the first alone is asked.
    followers : sequence of models
        Copies that get the same projection.
    only : collection of str, optional
        Names of all layers that `decide` may cut, but for tied ones and copies; the others need not be ready
        for it.
    for_team : bool
        Whether the first of several processes plans for all, with full layers and copies that are known.
    """
    if not for_team:
        with agreement(found.team):
            found.framework.check_optimizer(found.model, opt_state, followers)
        if found.team is not None:
            return _agreed(found, opt_state, decide, followers, only)
        if len(found.handles) > 1:
            found = found.with_copies(opt_state)

    handles = found.meant
    only = None if only is None else found.with_same(only)
    copies = []
    for model in followers:
        copy = found.of(model)
        with naming("a model of `followers`"):
            copy.check()
        copies.append(replace(copy, meant=counterparts(handles, copy.meant)))
    for each in (found, *copies):
        ready = [
            layer
            for layer, handle in zip(each.meant, handles, strict=True)
            if only is None or handle.name in only
        ]
        each.framework.check_ready(each.model, ready)
    results = decide(found)
    cuts = really_cut(results)
    # What is a copy there, too, follows the layer itself.
    originals = {
        path: cuts[found.copies[path].path] if path in found.copies else cut
        for path, cut in cuts.items()
    }
    changing = [each for each in handles if each.path in cuts]
    alike = [(each, cuts[each.path].new_order) for each in changing if each.kind.config_sizes]
    if alike:
        found.framework.check_orders(found.model, alike)
    held = found.framework.moments_of(found.model, opt_state, changing) if cuts else []
    return CutPlan(
        results,
        reduced_moments(held, cuts, found.options.moments),
        tuple(followed(handles, copy, originals) for copy in copies),
    )


def _agreed(
    found: Layers,
    opt_state: Any,
    decide: Callable[[Layers], Results],
    followers: Sequence[Any],
    only: Collection[str] | None,
) -> CutPlan:
    """Prepare a cut on the first of several processes, once all of them hold the same."""
    team = found.team
    team.check_same(lambda: _shapes(found, opt_state))
    view, state = _gathered(found, opt_state)
    with agreement(team):
        full = found.of(view).with_copies(state)
    copies = [_gathered(found.of(each), None)[0] for each in followers]
    team.check_same(lambda: _held([full, *(found.of(each) for each in copies)], only))
    plan: CutPlan = team.decide(
        partial(plan_cut, full, state, decide, copies, only=only, for_team=True)
    )
    return plan


def copy_of(handle: LayerHandle, result: LayerReduction, found: Layers) -> LayerReduction:
    """What is planned for a copy of the layer for which `result` was."""
    if result.new_order == result.old_order:
        return result
    place = f"while reducing layer `{handle.name}`, a copy of `{found.copies[handle.path].name}`"
    advice = f" To leave it as it is, pass options=CutOptions(exclude=({handle.name!r},))."
    with naming(place, advice):
        cut = result.cut.follow(handle.weights, handle)
    return LayerReduction(None, cut, handle.item_sizes)


def make_cut(
    found: Layers,
    opt_state: Any,
    plan: CutPlan,
    followers: Sequence[Any] = (),
    books: Sequence[Step] = (),
) -> ModelReduction:
    """Carry out what `plan_cut` returned for this model, on all processes that train it.

    All is prepared, for the followers too and on all processes, before anything is changed. `books` are
    changed with a model that is changed in place; with another one they are left to who returns it.
    """
    models = [found, *(found.of(each) for each in followers)]
    planned = [plan.results, *plan.followers]
    ready = []
    with agreement(found.team):
        for each, results in zip(models, planned, strict=True):
            state, moments = (opt_state, plan.moments) if each is found else (None, {})
            cuts = really_cut(results)
            changes = [
                LayerChange(layer, cut.new_weights, cut.new_order / cut.old_order, cut)
                for layer in each.meant
                if (cut := cuts.get(layer.path)) is not None
            ]
            made = Prepared(each.model, state)
            if changes:
                made = each.framework.prepared(each.model, changes, state, moments)
            ready.append(made)
    steps = [step for made in ready for step in made.steps]
    if steps:
        commit([*steps, *books], agreement(found.team))

    reductions = []
    for each, results, made in zip(models, planned, ready, strict=True):
        names = {handle.path: handle.name for handle in each.meant}
        layers = {handle.path: handle.layer for handle in each.meant}
        if made.model is not each.model:
            layers = {path: layer for path, layer, _ in each.framework.find(made.model)}
        report = {}
        for path, result in results.items():
            layer = layers[path]
            layer = dict(layer) if isinstance(layer, ArrayGroup) else layer
            report[names[path]] = replace(result, layer=layer)
        reductions.append(ModelReduction(made.model, made.opt_state, ModelReport(report)))
    own, *others = reductions
    return replace(own, followers=tuple(others))


@contextmanager
def agreement(team: Any) -> Iterator[None]:
    """A context in which all processes of a team raise, at its end, if one did; None is no team."""
    if team is None:
        yield
        return
    own: Future[dict[str, str]] = Future()
    try:
        yield
        own.set_result({})
    except Exception as error:
        own.set_exception(error)
    team.check_same(own.result)  # which raises what was raised here


def really_cut(results: Results) -> dict[Path, LayerCut]:
    """The cuts that make a layer smaller."""
    return {
        path: result.cut
        for path, result in results.items()
        if result.cut.new_order < result.cut.old_order
    }


def check_every_rank(models: Sequence[Any], options: CutOptions) -> None:
    """Raise unless weights of a model and its followers may be replaced now.

    The same is raised on all processes that train the model, for a copy that one of them keeps too. What
    the weights hold does not matter: they may be NaN.
    """
    found = [search(each, options) for each in models]
    full = [with_full_layers(each) for each in found]
    with agreement(found[0].team):
        for each in full:
            each.check()
            each.framework.check_ready(each.model, each.meant)


def with_full_layers(found: Layers) -> Layers:
    """The layers, or where they are sharded those of a view in which they are full; all ranks must call."""
    return found if found.team is None else found.of(_gathered(found, None)[0])


# --- Copies of a model that follow its cut: averages of its weights, momentum teachers


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


def followed(own: Sequence[LayerHandle], copy: Layers, cuts: Mapping[Path, LayerCut]) -> Results:
    """Plan for the layers of a follower, in the order of the model's, what was planned for these."""
    to_cut = {
        handle.name: (handle, cuts[of.path])
        for of, handle in zip(own, copy.meant, strict=True)
        if of.path in cuts
    }
    firsts = replace(copy, meant=[handle for handle, _ in to_cut.values()]).firsts
    planned: Results = {}
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


# --- What a rank holds, for comparison with the others


def _gathered(found: Layers, opt_state: Any) -> tuple[Any, Any]:
    layers = [handle.layer for handle in found.handles]
    return found.framework.gathered(found.model, opt_state, layers)


def _shapes(found: Layers, opt_state: Any) -> dict[str, str]:
    """What has to be the same before arrays can be gathered."""
    shapes = {"the type of its optimizer": type(opt_state).__qualname__}
    for handle in found.handles:
        sizes = {key: tuple(array.shape) for key, array in handle.arrays.items()}
        shapes[f"the shapes of layer `{handle.name}`"] = str(sizes)
        shapes[f"the optimizer state of layer `{handle.name}`"] = str(
            found.framework.fields_of(opt_state, handle)
        )
    return shapes


def _held(models: Sequence[Layers], only: Collection[str] | None) -> dict[str, str]:
    """Hashes of the layers of a model and of its followers, which this rank could cut."""
    held: dict[str, str] = {}
    first = models[0].meant
    only = None if only is None else models[0].with_same(only)
    for number, found in enumerate(models):
        of = f" of follower {number}" if number else ""
        own = [
            layer
            for layer, handle in zip(counterparts(first, found.meant), first, strict=True)
            if only is None or handle.name in only
        ]
        found.framework.check_ready(found.model, own)
        for layer in own:
            with naming(f"while reducing layer `{layer.name}`{of}"):
                layer.kind.check(layer.weights)
            digest = hashlib.sha256()
            for key, value in layer.weights.items():
                digest.update(key.encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            held[f"the weights of layer `{layer.name}`{of}"] = digest.hexdigest()
    return held
