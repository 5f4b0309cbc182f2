"""`MambaCut`: fewer states for a Mamba mixer, and all that follows; `MambaPlan` makes them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import OrderError
from ssmreduce.gramians.sequences import LayerData
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.mamba_fit import Elimination, ReadoutFit, elimination, few_sequences, refitted
from ssmreduce.layers.mamba_merge import StateMaps, merged
from ssmreduce.layers.mamba_mixer import Mixer
from ssmreduce.layers.options import CutOptions, Method
from ssmreduce.layers.selective import SelectiveCut, SelectivePlan

if TYPE_CHECKING:
    from ssmreduce.layers.mamba import Mamba

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
        if "A_log" in new:
            new["A_log"] = self._carried_rates(new["A_log"], squared=squared)
        if "x_proj.weight" in new:
            delta, B, C = self.kind.split(new["x_proj.weight"], self.old_order)
            new["x_proj.weight"] = np.concatenate([delta, R @ B, T @ C])
        return new

    def _carried_rates(self, moments: HostArray, *, squared: bool) -> HostArray:
        if self.maps.is_selection:
            both = self.maps.drive * self.maps.read
            return np.asarray(moments @ adjoint(both**2 if squared else both))
        mean = np.mean(moments, axis=1, keepdims=True) if squared else np.zeros((len(moments), 1))
        return np.repeat(mean, self.new_order, axis=1)

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> MambaCut:
        """Take the same states of a copy, and add to its weights what a fit has added."""
        new = mapped(self.kind, weights, self.maps)
        moved = {name: new[name] + self.fitted.get(name, 0.0) for name in new}
        return replace(
            self,
            weights=weights,
            new_weights={**weights, **storage.rounded(moved)},
            output_error=None,
        )

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Channels and states."""
        return tuple(self.weights["A_log"].shape)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return T, and zero."""
        return self.maps.drive, np.zeros_like(self.maps.drive)


def mapped(kind: Mamba, weights: dict[str, HostArray], maps: StateMaps) -> dict[str, HostArray]:
    """Return the weights that a cut changes, before any fit."""
    delta, B, C = kind.split(weights["x_proj.weight"], kind.order(weights))
    return {
        "A_log": weights["A_log"] @ adjoint(maps.rates),
        "x_proj.weight": np.concatenate([delta, maps.drive @ B, maps.read @ C]),
        "D": weights["D"],
    }


class MambaPlan(SelectivePlan[MambaCut]):
    """Makes the candidates for one mixer."""

    def __init__(
        self,
        kind: Mamba,
        weights: dict[str, HostArray],
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> None:
        super().__init__(kind, kind.order(weights), options)
        self._kind, self._weights, self._storage, self._data = kind, weights, storage, data
        self._mixer = Mixer.of(weights)

    @cached_property
    def _elimination(self) -> Elimination:
        return elimination(self._mixer, self._data.fitting)

    @property
    def scores(self) -> HostArray:
        """Root of what the outputs lose with each state, descending."""
        return self._elimination.descending

    def made(self, method: Method, order: int) -> MambaCut:
        """Return a cut to fewer states: a selection or merged ones, with a fit or without."""
        maps = self._merged(order) if method == "merged" else self._selected(order)
        return self._made(maps, {} if method == "compensated" else self._added(maps))

    def _selected(self, order: int) -> StateMaps:
        return StateMaps.selection(*self._elimination.kept(order), self.old_order)

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
        change = [after.to_B - before.to_B, after.to_C - before.to_C]
        rows = np.concatenate([np.zeros_like(before.to_delta), *change])
        return {"x_proj.weight": rows, "D": after.skip - before.skip}

    def _made(self, maps: StateMaps, fitted: dict[str, HostArray]) -> MambaCut:
        """A cut as it would be written, with its output error on what was held out."""
        new = mapped(self._kind, self._weights, maps)
        moved = {name: new[name] + fitted.get(name, 0.0) for name in new}
        weights = {**self._weights, **self._storage.rounded(moved)}
        error = Mixer.of(weights).output_error(self._data.held_out, self._mixer)
        return MambaCut(
            self._kind,
            None,
            None,
            self._weights,
            weights,
            self.scores,
            maps,
            output_error=error,
            fitted=fitted,
        )

    def unchanged(self) -> MambaCut:
        """Return the layer as it is."""
        count, weights = self.old_order, self._weights
        maps = StateMaps.selection(np.arange(count), np.ones(count), count)
        return MambaCut(self._kind, None, None, weights, weights, np.zeros(count), maps)
