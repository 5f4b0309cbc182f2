"""Carry out a cut: decided once, prepared completely, then made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.adapters.change import Path
from ssmreduce.adapters.moments import Moments as LayerMoments
from ssmreduce.adapters.registry import is_reducible, layer_map_of, model_backend
from ssmreduce.errors import ShapeError, SSMReduceError
from ssmreduce.layers.layer_map import LayerMap
from ssmreduce.models.followers import check_followers, followed
from ssmreduce.models.optimizer_state import reduced_gradients, reduced_moments
from ssmreduce.models.options import CutOptions
from ssmreduce.models.orders import first_of_same
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.search import find_layers

T = TypeVar("T")

Results = dict[Path, LayerReduction]
"""What is planned, or was done, for each layer."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A model, its optimizer state and its followers after a cut, and what was done to each layer."""

    model: Any
    optimizer_state: Any
    results: Results
    followers: tuple[tuple[Any, Results], ...]


@dataclass(frozen=True, eq=False)
class CutPlan:
    """Everything about a cut but the change itself."""

    results: Results
    moments: dict[Any, HostArray]
    followers: tuple[Results, ...]

    def without_layers(self) -> CutPlan:
        """The plan as other processes can read it."""
        return replace(
            self,
            results=_without_layers(self.results),
            followers=tuple(_without_layers(results) for results in self.followers),
        )


def plan_cut(
    model: Any,
    opt_state: Any,
    decide: Callable[[Any], Results],
    options: CutOptions,
    followers: Sequence[Any] = (),
    *,
    only: Collection[str] | None = None,
) -> CutPlan:
    """Prepare a cut as `decide` says: all that can fail, and nothing is changed.

    Parameters
    ----------
    model, opt_state : object
        The model and its optimizer or optimizer state, or None.
    decide : callable
        Takes the model, or one with the same layers in full where they are sharded, to what is planned
        for the layers. Where several processes train the model, the first alone is asked.
    options : CutOptions
        Which layers there are, and what becomes of moments.
    followers : sequence of models
        Copies that get the same projection.
    only : collection of str, optional
        Names of all layers that `decide` may cut; the others need not be ready for it.
    """
    backend = model_backend(model)
    team = backend.team_of(model)
    together(model, lambda: backend.check_optimizer(model, opt_state, followers))
    if team is None:
        return _planned(model, opt_state, decide, options, followers, only)
    team.check_same(lambda: _shapes(backend, model, opt_state))
    view, state = _gathered(backend, model, opt_state)
    copies = [_gathered(backend, follower, None)[0] for follower in followers]
    team.check_same(lambda: _held(backend, [view, *copies], options, only))
    plan: CutPlan = team.decide(
        lambda: _planned(view, state, decide, options, copies, only).without_layers()
    )
    return plan


def _planned(
    model: Any,
    opt_state: Any,
    decide: Callable[[Any], Results],
    options: CutOptions,
    followers: Sequence[Any],
    only: Collection[str] | None,
) -> CutPlan:
    backend = model_backend(model)
    layers, *copies = (find_layers(each, options) for each in (model, *followers))
    for follower, own in zip(followers, copies, strict=True):
        check_followers(model, layers, follower, own)
    for each, own in zip(
        (model, *followers), _chosen([layers, *copies], backend, only), strict=True
    ):
        check_ready(each, own)
    results = decide(model)
    cut = _really_cut(results)
    new_moments = reduced_moments(backend, model, opt_state, cut, options.moments) if cut else {}
    planned = [cut.get(at) for at, _ in layers]
    plans = tuple(_followed_layers(backend, planned, own) for own in copies)
    return CutPlan(results, new_moments, plans)


def _followed_layers(
    backend: ModuleType,
    planned: Sequence[LayerReduction | None],
    layers: Sequence[tuple[Path, Any]],
) -> Results:
    """Plan for the layers of a follower what was planned for the model's, in the same order."""
    to_cut = {
        backend.path_name(path): (path, layer, result)
        for (path, layer), result in zip(layers, planned, strict=True)
        if result is not None
    }
    firsts = first_of_same(backend, {name: layer for name, (_, layer, _) in to_cut.items()})
    results: Results = {}
    for name, (path, layer, result) in to_cut.items():
        first_path, _, first = to_cut[firsts[name]]  # comes before, or is this one
        if first_path == path:
            results[path] = followed(result, layer, name)
            continue
        if result.weights is not first.weights:
            raise ShapeError(
                f"layers `{firsts[name]}` and `{name}` of a model of `followers` share their weights but "
                "those of `model` do not; expected a copy of the model. Make it anew from the model as it is."
            )
        results[path] = replace(results[first_path], layer=layer)
    return results


def _chosen(
    layers: Sequence[Sequence[tuple[Path, Any]]], backend: ModuleType, only: Collection[str] | None
) -> list[list[tuple[Path, Any]]]:
    """Of the layers of a model, and of its copies in the same order, those that are to be cut."""
    names = [backend.path_name(path) for path, _ in layers[0]]
    return [
        [each for name, each in zip(names, own, strict=False) if only is None or name in only]
        for own in layers
    ]


def make_cut(model: Any, opt_state: Any, plan: CutPlan, followers: Sequence[Any] = ()) -> Cut:
    """Carry out what `plan_cut` returned for this model, on all processes that train it.

    All is prepared, for the followers too and on all processes, before anything is changed.
    """
    backend = model_backend(model)
    planned = [
        (each, state, results, moments, _gradients(backend, each, results))
        for each, state, results, moments in (
            (model, opt_state, plan.results, plan.moments),
            *((copy, None, done, {}) for copy, done in zip(followers, plan.followers, strict=True)),
        )
    ]
    ready = together(model, lambda: [_prepared(backend, *each) for each in planned])
    (model, opt_state, results), *rest = [make() for make in ready]
    return Cut(model, opt_state, results, tuple((copy, done) for copy, _, done in rest))


def _gradients(backend: ModuleType, model: Any, results: Results) -> list[LayerMoments]:
    cut = _really_cut(_with_layers(backend, model, results))
    return cast(
        "list[LayerMoments]",
        backend.gradients_of(
            model, {path: (result.layer, result.layer_map) for path, result in cut.items()}
        ),
    )


def _prepared(
    backend: ModuleType,
    model: Any,
    opt_state: Any,
    results: Results,
    moments: dict[Any, HostArray],
    gradients: list[LayerMoments],
) -> Callable[[], tuple[Any, Any, Results]]:
    """Prepare what was planned; what is returned makes it, and its results hold the new layers."""
    results = _with_layers(backend, model, results)
    cut = _really_cut(results)
    changes = {path: result.change() for path, result in cut.items()}
    new_gradients = reduced_gradients(gradients, cut)
    ready = (
        backend.prepared(model, is_reducible, changes, opt_state, moments, new_gradients)
        if changes
        else lambda: (model, opt_state)
    )

    def make() -> tuple[Any, Any, Results]:
        new_model, new_state = ready()
        return new_model, new_state, _with_layers(backend, new_model, results)

    return make


def together(model: Any, function: Callable[[], T]) -> T:
    """Call a function on all processes that train `model`; where it raises on one, it does on all."""
    team = model_backend(model).team_of(model)
    if team is None:
        return function()
    answers: list[T] = []

    def call() -> dict[str, str]:
        answers.append(function())
        return {}

    team.check_same(call)
    return answers[0]


def first_decides(model: Any, function: Callable[[], T]) -> T:
    """What a function returns, or raises, on the first of the processes that train `model`, on all."""
    team = model_backend(model).team_of(model)
    return function() if team is None else team.decide(function)


def _really_cut(results: Results) -> Results:
    return {path: result for path, result in results.items() if result.new_order < result.old_order}


def _with_layers(backend: ModuleType, model: Any, results: Results) -> Results:
    layers = dict(backend.find_layers(model, is_reducible))
    return {path: replace(result, layer=layers[path]) for path, result in results.items()}


def _without_layers(results: Results) -> Results:
    return {path: replace(result, layer=None) for path, result in results.items()}


def check_ready(model: Any, layers: Sequence[tuple[Path, Any]]) -> None:
    """Raise unless the weights of these layers may be replaced now."""
    maps: dict[Path, tuple[Any, LayerMap]] = {}
    for path, layer in layers:
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        maps[path] = layer, layer_map
    model_backend(model).check_ready(model, maps)


def check_every_rank(models: Sequence[Any], options: CutOptions) -> None:
    """Raise unless weights of a model and its followers may be replaced now.

    The same is raised on all processes that train the model, for a copy that one of them keeps too. What
    the weights hold does not matter: they may be NaN.
    """
    backend = model_backend(models[0])
    views = list(models)
    if backend.team_of(models[0]) is not None:
        views = [_gathered(backend, each, None)[0] for each in models]

    def check() -> None:
        for view in views:
            check_ready(view, find_layers(view, options))

    together(models[0], check)


def with_full_layers(model: Any) -> Any:
    """Return the model, or where it is sharded a view with full layers, for which all ranks must call."""
    backend = model_backend(model)
    if backend.team_of(model) is None:
        return model
    return _gathered(backend, model, None)[0]


# --- What a rank holds, for comparison with the others


def _gathered(backend: ModuleType, model: Any, opt_state: Any) -> tuple[Any, Any]:
    layers = [layer for _, layer in backend.find_layers(model, is_reducible)]
    view: tuple[Any, Any] = backend.gathered(model, opt_state, layers)
    return view


def _shapes(backend: ModuleType, model: Any, opt_state: Any) -> dict[str, str]:
    """What has to be the same before arrays can be gathered."""
    shapes = {"the type of its optimizer": type(opt_state).__qualname__}
    for path, layer in find_layers(model, CutOptions(skip_unsupported=True)):
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        name = backend.path_name(path)
        sizes = {key: tuple(getattr(layer, key).shape) for key in layer_map.names()}
        shapes[f"the shapes of layer `{name}`"] = str(sizes)
        shapes[f"the optimizer state of layer `{name}`"] = str(
            backend.fields_of(opt_state, layer, layer_map.names())
        )
    return shapes


def _held(
    backend: ModuleType,
    models: Sequence[Any],
    options: CutOptions,
    only: Collection[str] | None,
) -> dict[str, str]:
    """Hashes of the layers of a model and of its followers, which this rank could cut."""
    held: dict[str, str] = {}
    found = [find_layers(model, options) for model in models]
    for number, layers in enumerate(_chosen(found, backend, only)):
        model = models[number]
        held |= _hashes(backend, model, layers, f" of follower {number}" if number else "")
    return held


def _hashes(
    backend: ModuleType, model: Any, layers: Sequence[tuple[Path, Any]], of: str
) -> dict[str, str]:
    check_ready(model, layers)
    hashes: dict[str, str] = {}
    for path, layer in layers:
        name = backend.path_name(path)
        layer_map = layer_map_of(layer)
        assert layer_map is not None
        weights = backend.read_arrays(layer, layer_map.names())
        try:
            layer_map.check_finite(weights)
        except SSMReduceError as error:
            raise type(error)(f"while reducing layer `{name}`{of}: {error}") from error
        digest = hashlib.sha256()
        for key, value in weights.items():
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        hashes[f"the weights of layer `{name}`{of}"] = digest.hexdigest()
    return hashes
