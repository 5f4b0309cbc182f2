"""Layers that are trained, right after their cut, to let the model put out again what it did before.

Where a cut takes a model down to chance, the steps that follow may never find the way back. A hundred steps
on the old outputs, by the weights of the layers that were cut alone, are often enough to keep what was
learned. They are done on a copy: what they lead to is then written as any cut is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._array_routes import warn_caller
from ssmreduce._checks import type_name
from ssmreduce.errors import (
    CalibrationWarning,
    CutRefusedError,
    NonFiniteError,
    SSMReduceError,
    UnstableSystemError,
)
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.recording import FINE_MATCHING_RATES, MATCHING_RATES
from ssmreduce.layers.cut import LayerCut
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.lti_cut import as_written
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import Results, copy_of, really_cut
from ssmreduce.models.held_out import cut_copy, losses_in
from ssmreduce.models.runs import Runs
from ssmreduce.models.search import Layers

_NO_LOSS = (
    "`match` is true, but no loss on what was held out is known, by which it is judged; expected `data` "
    "with a loss and two batches at least, and no FSDP2. Calibrate with loss=..., or leave it out."
)

_ADVICE = "Say how: calibrate(..., forward=lambda model, batch: ...), or do not ask for a match."


@dataclass(frozen=True, eq=False)
class MatchedCut(LayerCut):
    """A cut whose weights were then trained; moments, states and copies follow the cut.

    Attributes
    ----------
    cut : LayerCut
        As it was planned.
    """

    cut: LayerCut

    @classmethod
    def of(cls, cut: LayerCut, new_weights: dict[str, HostArray]) -> MatchedCut:
        """Return a cut with other new weights, measured.

        Raises
        ------
        NonFiniteError
            If they hold NaN or Inf.
        UnstableSystemError
            If their system is not stable, and the error is that over all times.
        """
        kind, old = cut.kind, cut.reduction
        if old is None:
            kind.check(new_weights)
            return cls(kind, None, None, cut.weights, new_weights, cut)
        system = kind.read(new_weights)
        if old.horizon is None and not system.is_stable().all():
            raise UnstableSystemError(
                "the layer, or a copy of it, has poles outside of the unit circle once its outputs are "
                'matched; expected none. Pass options=CutOptions(horizon=L), or leave "match" out.'
            )
        parts = tuple(replace(part, error_bound=None, stable_part=None) for part in old.parts)
        reduction = replace(
            old,
            error_bound=None,
            stable_part=None,
            parts=parts,
            method=f"{old.method}, outputs matched",
        )
        written = as_written(reduction, system)
        error = kind.error_factor * float(np.max(written.measured()))
        return cls(kind, written, error, cut.weights, new_weights, cut)

    @property
    def scores(self) -> HostArray:
        """Those of the cut."""
        return self.cut.scores

    @property
    def without_image(self) -> tuple[str, ...]:
        """Those of the cut."""
        return self.cut.without_image

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Map moments as the cut does."""
        return self.cut.carry(moments, squared=squared)

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> MatchedCut:
        """Cut a copy in the same way, and add to its weights what training has added to these."""
        followed = self.cut.follow(weights, storage)
        moved = {
            name: value + self.new_weights[name] - self.cut.new_weights[name]
            for name, value in followed.new_weights.items()
        }
        return MatchedCut.of(followed, storage.rounded(moved))

    @property
    def state_shape(self) -> tuple[int, ...]:
        """That of the cut."""
        return self.cut.state_shape

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return those of the cut."""
        return self.cut.state_maps()


def matched(found: Layers, results: Results, data: Calibration) -> Results:
    """The results with weights that match the old outputs, where they lose less.

    Without `CutOptions.match` only where the cut leads to chance.

    Raises
    ------
    CutRefusedError
        If the outputs of the model cannot be had, or with `CutOptions.match` no loss.
    """
    losses, runs, asked = losses_in(results), data.runs, found.options.match
    held_out = None if runs is None else runs.held_out_loss
    if losses is None or runs is None or held_out is None:
        if asked and really_cut(results):
            raise CutRefusedError(_NO_LOSS)
        return results
    at_chance = losses.constant is not None and losses.after >= losses.constant
    if not at_chance and not asked:
        return results
    rates = MATCHING_RATES if at_chance else FINE_MATCHING_RATES
    try:
        new = _with_cuts(found, results, _trained(found, really_cut(results), runs, rates))
    except (NonFiniteError, UnstableSystemError) as error:
        _warn(
            f"the outputs of the uncut model are not matched, and the cut stays as it is: {error}"
        )
        return results
    after = held_out.of(cut_copy(found, really_cut(new)))
    if not after < losses.after:
        _warn(
            f"matched to the outputs of the uncut model, the loss on what was held out is {after:.4g}; "
            f"expected less than {losses.after:.4g}, that of the cut alone, which stays as it is."
        )
        return results
    told = replace(losses, after=after, unmatched=losses.after)
    return {
        path: replace(each, losses=told) if path in really_cut(new) else each
        for path, each in new.items()
    }


def _trained(
    found: Layers, cuts: Mapping[Path, LayerCut], runs: Runs, rates: Sequence[float]
) -> dict[Path, dict[str, HostArray]]:
    """The weights of the layers that are cut and no copies, trained behind the cut.

    Raises
    ------
    CutRefusedError
        If what the model itself puts out is no array, or `forward` raises.
    """
    framework, forward = found.framework, runs.forward
    copy, paths = cut_copy(found, cuts), cuts.keys() - found.copies.keys()
    trained = [own for path, own in _by_path(found, copy).items() if path in paths]
    batches = runs.fitting[: len(rates)]  # a step sees one
    try:
        uncut = framework.scratch(framework.plain(found.model))
        targets = framework.outputs(uncut, forward, batches)
        if not all(targets):
            raise CutRefusedError(
                "`forward` returns no array of floating-point numbers; expected the outputs that are to be "
                f"matched, in an array or a tuple of arrays. {_ADVICE}"
            )
        del uncut  # a whole model, while another one is trained
        after = framework.matched(copy.model, trained, forward, batches, targets, rates)
    except SSMReduceError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise CutRefusedError(
            f"the outputs of the uncut model cannot be matched: `forward` ends in {type_name(error)}: "
            f"{error}; expected the model's outputs, with a graph. {_ADVICE}"
        ) from error
    return {
        path: own.rounded(own.kind.before_runs(own.weights))
        for path, own in _by_path(found, found.of(after)).items()
        if path in paths
    }


def _by_path(found: Layers, copy: Layers) -> dict[Path, LayerHandle]:
    """The layers of a copy of a model, whose wrappers may be gone, by their paths in the model."""
    return {here.path: there for here, there in zip(found.meant, copy.meant, strict=True)}


def _with_cuts(
    found: Layers, results: Results, weights: Mapping[Path, dict[str, HostArray]]
) -> Results:
    """The results with other new weights; copies of layers follow these."""
    made: dict[int, MatchedCut] = {}
    new = dict(results)
    for path, own in weights.items():
        cut = results[path].cut
        if id(cut) not in made:  # layers that share their weights share a cut
            made[id(cut)] = MatchedCut.of(cut, own)
        new[path] = replace(results[path], cut=made[id(cut)])
    handles = {each.path: each for each in found.meant}
    for path in found.copies.keys() & really_cut(results).keys():
        new[path] = copy_of(handles[path], new[found.copies[path].path], found)
    return new


def _warn(message: str) -> None:
    warn_caller(message, CalibrationWarning)
