"""How large the states of a reduced layer are: `ModeScaling`.

The map of a diagonal layer is the same for any size s of a state, b s and c / s, but gradients are not:
∇(b s) = ∇b / s and ∇(c / s) = s ∇c, so that s decides which of the two learns faster.

- ``"layer"``: the ratio ‖b‖/(sqrt(1-|λ|²) ‖c‖) of every state is the median of that ratio in the layer
  before the cut. An LRU stores b/sqrt(1-|λ|²), so its stored weights keep their proportion.
- ``"balanced"``: as balancing leaves them. States are coordinates along eigenvectors of unit length in the
  balanced system. For comparison.

The phase of a state is left as the eigenvectors come, of which the largest entry is real. A layer that is
read as a dense system has no such ratio, and gets ``"balanced"`` in either case.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from ssmreduce._checks import is_one_of, shown
from ssmreduce.errors import OrderError
from ssmreduce.reduction.batch import assemble
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace

ModeScaling = Literal["layer", "balanced"]


def check_mode_scaling(mode_scaling: object) -> None:
    """Raise `OrderError` unless `mode_scaling` is one of the known scalings."""
    if not is_one_of(mode_scaling, get_args(ModeScaling)):
        raise OrderError(
            f"`mode_scaling` is {shown(mode_scaling)}; expected one of "
            f"{', '.join(map(repr, get_args(ModeScaling)))}. Leave it out for the default."
        )


def scaled_modes(reduction: Reduction, mode_scaling: ModeScaling) -> Reduction:
    """Return `reduction`, whose states have the scaling ``"layer"``, with that scaling.

    The map to stored states is scaled alike, so that the moments of an optimizer follow.
    """
    if mode_scaling == "layer":
        return reduction
    if reduction.parts:
        return assemble(
            reduction.original, [scaled_modes(x, mode_scaling) for x in reduction.parts]
        )
    if reduction.slot_map is None:
        return reduction
    assert isinstance(reduction.system, DiagonalStateSpace)
    scale = np.linalg.norm(reduction.slot_map.vectors, axis=0)
    return replace(
        reduction,
        system=reduction.system.rescaled(scale),
        slot_map=reduction.slot_map.rescaled(scale),
    )
