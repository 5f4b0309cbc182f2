"""`Mamba2Cut`: a selection of the states of a Mamba-2 mixer, and all that follows; `Mamba2Plan` makes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.mamba2_mixer import Mixer2
from ssmreduce.layers.mamba2_selection import Dropping, group_grams
from ssmreduce.layers.mamba_fit import few_sequences
from ssmreduce.layers.options import Method
from ssmreduce.layers.selective import MixerPlan, SelectiveCut

if TYPE_CHECKING:
    from ssmreduce.layers.mamba2 import Mamba2


@dataclass(frozen=True, eq=False)
class Mamba2Cut(SelectiveCut):
    """A Mamba-2 mixer before and after a selection of its states, of as many in each group.

    Attributes
    ----------
    kept : (G, r) int array
        States that stay, ascending.

    Examples
    --------
    A mixer of 4 channels in 2 heads, without a norm:

    >>> import torch
    >>> from torch import nn
    >>> from ssmreduce import Calibration, reduce_layer
    >>> mixer = nn.Module()
    >>> mixer.A_log, mixer.D, mixer.dt_bias = (nn.Parameter(torch.ones(2)) for _ in range(3))
    >>> mixer.in_proj, mixer.out_proj = nn.Linear(3, 26, bias=False), nn.Linear(4, 3, bias=False)
    >>> mixer.conv1d, mixer.n_groups = nn.Conv1d(20, 20, 2, groups=20), 1
    >>> data = Calibration.of_inputs({"mixer": torch.randn(16, 20, 3)})
    >>> cut = reduce_layer(mixer, 3, data=data).cut
    >>> cut.kept.shape, cut.state_shape, cut.new_weights["in_proj.weight"].shape
    ((1, 3), (2, 2, 8), (16, 3))
    """

    kind: Mamba2
    kept: HostArray

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Keep the moments of the rows that are kept, as they are."""
        return {**moments, **self.kind.selected(moments, self.kept, self.weights)}

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> Mamba2Cut:
        """Keep the same states of a copy."""
        new = {**weights, **self.kind.selected(weights, self.kept, weights)}
        return replace(self, weights=weights, new_weights=new, output_error=None)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Heads, channels of each, and states."""
        heads, channels = len(self.weights["A_log"]), self.weights["out_proj.weight"].shape[1]
        return heads, channels // heads, self.old_order

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return the rows of the identity that are kept, for each head, and zero."""
        rows = np.eye(self.old_order)[self.kept]
        rows = np.repeat(rows, len(self.weights["A_log"]) // len(rows), axis=0)[:, None]
        return rows, np.zeros_like(rows)


class Mamba2Plan(MixerPlan[Mamba2Cut]):
    """Makes the one candidate for one mixer."""

    _kind: Mamba2
    _mixer: Mixer2

    @cached_property
    def _dropping(self) -> Dropping:
        return Dropping.of(group_grams(self._mixer, few_sequences(self._data.fitting, 0.0)))

    @property
    def scores(self) -> HostArray:
        """Root of what the outputs lose with each state, descending."""
        return self._dropping.scores

    def made(self, method: Method, order: int) -> Mamba2Cut:
        """Return a cut to fewer states."""
        kind, weights, kept = self._kind, self._weights, self._dropping.kept(order)
        new = {**weights, **kind.selected(weights, kept, weights)}
        error = kind.mixer(new).output_error(self._data.held_out, self._mixer)
        return Mamba2Cut(kind, None, None, weights, new, self.scores, kept, output_error=error)

    def unchanged(self) -> Mamba2Cut:
        """Return the layer as it is."""
        order = self.old_order
        every = np.tile(np.arange(order), (self._kind.settings.groups, 1))
        weights = self._weights
        return Mamba2Cut(self._kind, None, None, weights, weights, np.zeros(order), every)
