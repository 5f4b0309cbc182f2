"""Find the layers of a model that can be cut: once for a call, as handles."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from ssmreduce._checks import type_name
from ssmreduce.errors import ArgumentError, UnsupportedLayerError
from ssmreduce.frameworks.current import framework_of
from ssmreduce.frameworks.framework import Framework, listed
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.mappings import opened
from ssmreduce.layers.known import kind_of, said_kind
from ssmreduce.layers.layer import Layer
from ssmreduce.layers.likeness import Likeness
from ssmreduce.layers.options import CutOptions, names_meant

BY_DATA = "is cut by data alone, and there are none"
"""What a layer is that needs data."""


@dataclass(frozen=True, eq=False)
class Layers:
    """A model and what was found in it.

    Attributes
    ----------
    framework : Framework
        Where its arrays live.
    model : object
        The model.
    handles : list of LayerHandle
        Every layer that can be reduced.
    refused : dict of str to str
        Variants of known layers that cannot, by name, with the reason.
    options : CutOptions
        Which of them are meant, and what they are where it was said.
    meant : list of LayerHandle
        The layers that are not excluded.
    passed_over : dict of str to str
        The variants that are not.
    copies : dict
        By path of a layer, the one that it is a copy of.
    """

    framework: Framework
    model: Any
    handles: list[LayerHandle]
    refused: dict[str, str]
    options: CutOptions
    meant: list[LayerHandle]
    passed_over: dict[str, str]
    copies: dict[Path, LayerHandle] = field(default_factory=dict)

    @cached_property
    def firsts(self) -> dict[str, str]:
        """Name for each of these the one that decides: itself, unless it is tied to one or a copy of it.

        A copy of a layer that is excluded stays as that one does.
        """
        firsts: dict[str, str] = {}
        named = {handle.name: handle for handle in self.meant}
        for name, handle in named.items():
            firsts[name] = next(
                (
                    other
                    for other in dict.fromkeys(firsts.values())
                    if self.framework.shares_weights(handle, named[other])
                ),
                name,
            )
        for each in self.meant:
            if each.path in self.copies:
                original = self.copies[each.path].name
                firsts[each.name] = firsts.get(original, original)
        return firsts

    @cached_property
    def team(self) -> Any:
        """The processes that train the model; None if it is one."""
        return self.framework.team_of(self.model)

    def of(self, model: Any) -> Layers:
        """The layers of another model, found alike."""
        return search(model, self.options)

    def with_same(self, names: Collection[str]) -> set[str]:
        """The names, and those of all layers that change with them."""
        firsts = {self.firsts[name] for name in names}
        return {name for name, first in self.firsts.items() if first in firsts}

    def with_copies(self, opt_state: Any) -> Layers:
        """The same, with what is known about copies of trained layers among them.

        Raises
        ------
        UnsupportedLayerError
            If a layer could be a copy of several trained ones.
        """
        found = self.framework.copies_inside(self.model, opt_state, self.handles)
        copies = {}
        for copy in self.meant:
            originals = found.get(copy.path, [])
            if len(originals) > 1:
                raise UnsupportedLayerError(
                    f"layer `{copy.name}` of `model` is not trained and may be a copy of "
                    f"{listed([f'`{each.name}`' for each in originals])}; expected one that it follows. "
                    f"Leave it as it is with options=CutOptions(exclude=({copy.name!r},))."
                )
            if originals:
                copies[copy.path] = originals[0]
        return replace(self, copies=copies) if copies else self

    def check(self) -> None:
        """Raise unless there is something to cut.

        Raises
        ------
        UnsupportedLayerError
            If there is none, or, unless they are skipped, a variant of a known layer that cannot be reduced.
        ArgumentError
            If a name to exclude, or one that is said to be of a kind, is that of no layer of the model.
        """
        names = [*(handle.name for handle in self.handles), *self.refused]
        kind, exclude = self.options.kind, self.options.exclude
        for argument, given, advice in (
            (
                "kind",
                kind if isinstance(kind, Mapping) else (),
                "Look at the names of the arrays there.",
            ),
            ("exclude", () if callable(exclude) else exclude, "Leave out what is no layer."),
        ):
            unknown = [name for name in given if not names_meant(name, names)]
            if unknown:
                raise ArgumentError(
                    f"`{argument}` names {listed(unknown)}, but the layers are {listed(names) or 'none'}; "
                    f"expected some of these. {advice}"
                )
        refused = self.passed_over
        if refused and not self.options.skip_unsupported:
            name, why = next(iter(refused.items()))
            raise UnsupportedLayerError(
                f"while looking at layer `{name}`: {why} To leave it out, pass "
                "options=CutOptions(skip_unsupported=True)."
            )
        if not self.meant:
            raise _nothing_to_cut(self)

    def check_without_data(self, advice: str) -> None:
        """Raise unless there is something to cut without data.

        Parameters
        ----------
        advice : str
            How data are passed to what is called.

        Raises
        ------
        UnsupportedLayerError
            If a layer needs data and is not skipped, or nothing is left.
        """
        needing = [each.name for each in self.meant if each.kind.needs_data]
        if not needing:
            return
        if not self.options.skip_unsupported:
            raise UnsupportedLayerError(
                f"layer `{needing[0]}` of `model` {BY_DATA}; expected some. {advice} To leave the layer "
                "out, pass options=CutOptions(skip_unsupported=True)."
            )
        if len(needing) == len(self.meant):
            raise UnsupportedLayerError(
                f"`model` has no layer that can be cut without data, and there are none; expected one at "
                f"least. {advice} Passed over: {listed([f'`{name}`' for name in needing])}."
            )

    def check_untraced(self) -> None:
        """Raise `TracedValueError` if weights of layers are traced by JAX."""
        for handle in self.meant:
            dict(handle.weights)


Part = tuple[Path, Any, dict[str, int], Layer | str | None]
"""Where a part of a model is, the part, the axes of its arrays, and what it is: a layer, the reason why it
cannot be reduced, or none."""


def search(model: Any, options: CutOptions = CutOptions()) -> Layers:
    """Find the layers of a model, the outermost ones only: what is inside of one is its own business."""
    if "safetensors" in sys.modules:
        model = opened(model)
    framework = framework_of(model)
    by_name = options.kind if isinstance(options.kind, Mapping) else {}
    told = partial(said_kind, side_by_side=framework.side_by_side)
    said = {name: told(kind) for name, kind in by_name.items()}
    usual = None if by_name or options.kind is None else told(options.kind)

    found: dict[str, Part] = {}
    outermost: Path | None = None
    for path, part, axes in framework.find(model):
        if outermost is not None and path[: len(outermost)] == outermost:
            continue
        kinds: list[Layer | str | None] = []
        for each in (usual, *said.values()):
            try:
                kinds.append(kind_of(part, axes, each))
            except UnsupportedLayerError as error:
                kinds.append(str(error))
        if any(kind is not None for kind in kinds):
            found[framework.path_name(path)] = path, part, axes, kinds[0]
            outermost = path
    if said:
        found |= _said_by_name(found, said)

    refused = {name: kind for name, (*_, kind) in found.items() if isinstance(kind, str)}
    handles = [
        LayerHandle(framework, path, part, kind, name)
        for name, (path, part, _, kind) in found.items()
        if isinstance(kind, Layer)
    ]
    excluded: Collection[str] = ()
    if options.exclude:
        excluded = options.excluded([*(handle.name for handle in handles), *refused])
    meant = [handle for handle in handles if handle.name not in excluded]
    passed_over = {name: why for name, why in refused.items() if name not in excluded}
    return Layers(framework, model, handles, refused, options, meant, passed_over)


def _said_by_name(
    found: Mapping[str, Part], said: Mapping[str, Layer | type[Layer] | None]
) -> dict[str, Part]:
    """The parts that are named, as what they are said to be; others that are like it may be anything."""
    named: dict[str, Part] = {}
    for given, told in said.items():
        for name in names_meant(given, found):
            path, part, axes, kind = found[name]
            try:
                kind = kind_of(part, axes, told, least=0.0)
            except UnsupportedLayerError as error:
                kind = str(error)
            named[name] = path, part, axes, kind
    return named


def find_layers(model: Any, options: CutOptions) -> Layers:
    """Find the layers of a model that are to be cut; raise as `Layers.check` if there are none."""
    found = search(model, options)
    found.check()
    return found


def _nothing_to_cut(found: Layers) -> UnsupportedLayerError:
    if found.passed_over:
        reasons = "; ".join(f"`{name}`: {why}" for name, why in found.passed_over.items())
        return UnsupportedLayerError(
            f"`model` has no layer that can be reduced; expected at least one. Passed over: {reasons}"
        )
    if found.handles:
        return UnsupportedLayerError(
            f"`exclude` names all {len(found.handles)} layers of `model` that can be reduced; expected one "
            "that is left. Exclude fewer."
        )
    if found.options.kind is not None:
        return UnsupportedLayerError(
            f"`model` is a {type_name(found.model)} in which nothing has the arrays of "
            f"kind={found.options.kind!r}; "
            "expected at least one layer of it. Look at the names, or leave `kind` out."
        )
    path, near = _most_alike(found)
    where = f"`{found.framework.path_name(path)}` is none, " if near.share else ""
    return UnsupportedLayerError(
        f"`model` is a {type_name(found.model)} without a known layer; expected at least one, but "
        f"{where}{near.reason}. {near.advice}"
    )


def _most_alike(found: Layers) -> tuple[Path, Likeness]:
    """Where in a model something is nearest to a known layer, and how near."""
    nearest: tuple[Path, Likeness] = (), Likeness(found.model, {})
    outermost: Path | None = None
    for path, part, axes in found.framework.find(found.model):
        if outermost is not None and path[: len(outermost)] == outermost:
            continue
        near = Likeness(part, axes)
        if near.share > 0.0:
            outermost = path
        if near.share > nearest[1].share:
            nearest = path, near
    return nearest
