"""`MambaCut`: fewer states for a Mamba mixer, and all that follows; `MambaPlan` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import OrderError
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.mamba_fit import (
    Elimination,
    ReadoutFit,
    few_sequences,
    output_gram,
    refitted,
)
from ssmreduce.layers.mamba_merge import StateMaps, merged
from ssmreduce.layers.mamba_mixer import Mixer
from ssmreduce.layers.options import Method
from ssmreduce.layers.selective import MixerPlan, SelectiveCut

if TYPE_CHECKING:
    from ssmreduce.layers.mamba import Mamba

_FITTED = ("x_proj.weight", "D")
"""Weights that a fit changes."""

_ROWS = 64
"""Steps that are looked at for each number that a fit has to find for each output of a step."""


@dataclass(frozen=True, eq=False)
class MambaCut(SelectiveCut):
    """A Mamba mixer before and after a cut of its states.

    Attributes
    ----------
    maps : StateMaps
        What becomes of states, and of the rows that drive and read them, before any fit.
    fitted : dict of arrays
        What a fit has added to the new weights.

    Examples
    --------
    >>> import torch
    >>> from mambapy.mamba import MambaBlock, MambaConfig
    >>> from ssmreduce import Calibration, CutOptions, reduce_layer
    >>> _ = torch.manual_seed(0)
    >>> block = MambaBlock(MambaConfig(8, 1, d_state=8))
    >>> data = Calibration.of_inputs({"model": torch.randn(16, 20, 8)})
    >>> cut = reduce_layer(block, 4, data=data, options=CutOptions(method="merged")).cut
    >>> cut.maps.is_selection, cut.without_image
    (False, ('A_log',))
    """

    kind: Mamba
    maps: StateMaps
    _: KW_ONLY
    fitted: dict[str, HostArray] = field(default_factory=dict)

    @property
    def without_image(self) -> tuple[str, ...]:
        """Empty for a selection, whose states are kept or scaled; A_log where they were merged."""
        return () if self.maps.is_selection else ("A_log",)

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Map the moments of C as the states, h' = T h, and those of B as what reads them, C' = R
        C.

        In a selection those of C stay as they are, and those of B and A_log get the scales: exact
        where a cut changes no output, and close to that after a fit. Merged rates have no image:
        their first moments become zero, their second ones the mean.
        """
        power = 2 if squared else 1
        T, R = self.maps.drive**power, self.maps.read**power
        new = dict(moments)
        if "A_log" in new and self.maps.is_selection:
            new["A_log"] = new["A_log"] @ adjoint(T * R)
        elif "A_log" in new:
            mean = np.mean(new["A_log"], axis=1, keepdims=True) if squared else 0.0
            new["A_log"] = np.zeros(self.new_weights["A_log"].shape) + mean
        if "x_proj.weight" in new:
            delta, B, C = self.kind.split(new["x_proj.weight"], self.old_order)
            new["x_proj.weight"] = np.concatenate([delta, R @ B, T @ C])
        return new

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> MambaCut:
        """Take the same states of a copy, and add to its weights what a fit has added."""
        new = written(Mixer(weights), self.maps, self.fitted, storage)
        return replace(self, weights=weights, new_weights=new, output_error=None)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Channels and states."""
        return tuple(self.weights["A_log"].shape)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return T, and zero."""
        return self.maps.drive, np.zeros_like(self.maps.drive)


def written(
    mixer: Mixer, maps: StateMaps, fitted: Mapping[str, HostArray], storage: WeightStorage
) -> dict[str, HostArray]:
    """Return the weights of a mixer after a cut, as they would be stored."""
    new = maps.mapped(mixer).weights
    changed = {name: new[name] + fitted.get(name, 0.0) for name in ("A_log", *_FITTED)}
    return {**mixer.weights, **storage.rounded(changed)}


class MambaPlan(MixerPlan[MambaCut]):
    """Makes the candidates for one mixer."""

    _kind: Mamba
    _mixer: Mixer

    @cached_property
    def _elimination(self) -> Elimination:
        return Elimination.of(output_gram(self._mixer, few_sequences(self._data.fitting, 0.0)))

    @property
    def scores(self) -> HostArray:
        """Root of what the outputs lose with each state, descending."""
        return self._elimination.descending

    def made(self, method: Method, order: int) -> MambaCut:
        """Return a cut to fewer states: a selection or merged ones, with a fit or without.

        Its output error is that on what was held out, as it would be written.
        """
        if method == "merged":
            maps = self._merged(order)
        else:
            maps = StateMaps.selection(*self._elimination.kept(order), self.old_order)
        fitted = {} if method == "compensated" else self._added(maps)
        old, new = self._weights, written(self._mixer, maps, fitted, self._storage)
        error = Mixer(new).output_error(self._data.held_out, self._mixer)
        return MambaCut(
            self._kind, None, None, old, new, self.scores, maps, output_error=error, fitted=fitted
        )

    def unchanged(self) -> MambaCut:
        """Return the layer as it is."""
        count, weights = self.old_order, self._weights
        maps = StateMaps.selection(np.arange(count), np.ones(count), count)
        return MambaCut(self._kind, None, None, weights, weights, np.zeros(count), maps)

    def _merged(self, order: int) -> StateMaps:
        """Maps to states with few rates.

        Raises
        ------
        OrderError
            If there are not as many that do anything.
        """
        sequences = few_sequences(self._data.fitting, 0.0)
        lengths = np.sqrt(np.diagonal(self._elimination.K))
        moment, _ = ReadoutFit(self._mixer, sequences).moments
        maps = merged(self._mixer, sequences, lengths, moment, order)
        if len(maps.drive) < order:
            raise OrderError(
                f"`order` is {order}, but {len(maps.drive)} states say all that merged ones can; expected at "
                "most that. Ask for it, or for method='selected'."
            )
        return maps

    def _added(self, maps: StateMaps) -> dict[str, HostArray]:
        """What a fit adds to the weights of other states."""
        before = maps.mapped(self._mixer)
        least = _ROWS * self._kind.unknowns(self._weights, len(maps.drive))
        after = refitted(before, few_sequences(self._data.fitting, least))
        return {name: after.weights[name] - before.weights[name] for name in _FITTED}
