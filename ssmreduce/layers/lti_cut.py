"""`LTICut`: a linear layer cut by balanced truncation, and all that follows from it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.layers.cut import SystemCut
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.lti_copies import copied_parts, stored_together
from ssmreduce.layers.lti_moments import carry, moment_maps
from ssmreduce.layers.read_back import check_read_back
from ssmreduce.layers.stored_states import state_maps
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import System

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer


@dataclass(frozen=True, eq=False)
class LTICut(SystemCut):
    """A linear layer before and after balanced truncation; moments and copies follow its change of states.

    Attributes
    ----------
    readout_change : (..., p, r) array
        What a fit to data has added to the output weights of the reduced system.
    """

    kind: LTILayer
    _: KW_ONLY
    readout_change: HostArray = field(default_factory=lambda: np.zeros(()))

    @property
    def scores(self) -> HostArray:
        """Hankel singular values, descending."""
        return self.reduction.hsv

    @property
    def without_image(self) -> tuple[str, ...]:
        """The poles."""
        return self.kind.poles

    # See `ssmreduce.layers.lti_moments`.
    moment_maps = cached_property(moment_maps)
    carry = carry

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> LTICut:
        """Project a copy with the same W and T; see `ssmreduce.layers.lti_copies`."""
        kind, own = self.kind, self.reduction
        system = kind.read(weights)
        parts, systems = copied_parts(own, system, kind, self.readout_change)
        order = self.new_order
        meant = stored_together(systems, system.batch_shape, order)
        written = kind.write(meant, weights, self.new_weights, order=order)
        new = {**weights, **storage.rounded(written)}
        read_back = kind.read(new)
        check_read_back(kind, meant, read_back, storage.eps)
        if own.parts:
            reduction = replace(own, original=system, error_bound=None, slot_map=None, parts=parts)
        else:
            reduction = replace(parts[0], original=system)
        outcome = as_written(reduction, read_back)
        worst = max(float(part.measured()) for part in outcome.parts or (outcome,))
        return LTICut(kind, outcome, kind.error_factor * worst, weights, new)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The states of each channel, where they run apart."""
        return (*self.reduction.original.batch_shape, self.old_order)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return M₁ and M₂ of h_r = S Wᵀ [Re h; Im h]."""
        return state_maps(self.reduction, self.kind, self.new_order)


def as_written(reduction: Reduction, system: System) -> Reduction:
    """`reduction` with the system that was read back from the weights, in its parts as well."""
    indices = np.ndindex(system.D.shape[:-2])
    parts = tuple(
        replace(part, system=system[at]) for part, at in zip(reduction.parts, indices, strict=False)
    )
    return replace(reduction, system=system, parts=parts)
