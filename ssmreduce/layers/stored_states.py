"""From the states of a layer to those of its reduction, as both are stored.

A cut projects real states, x_r = Wᵀ x with x = [Re h; Im h], and the slots of the diagonal form hold
h_r = S x_r. A layer may store these scaled, turned or conjugated; states that it adds, because they rest or
because one of its states holds half of one, are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer


def stored_basis(part: Reduction, kind: LTILayer) -> tuple[HostArray, HostArray]:
    """Return V, shape (R, r), and S, shape (r, R), of one system, for states as the layer stores them."""
    left, _, slot_map = part.projection
    vectors, inverse = slot_map.vectors, slot_map.inverse
    scale = kind.state_scale(inverse @ (adjoint(left) @ part.original.ports()[0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        vectors = np.where(scale == 0.0, 0.0, vectors / scale)
    inverse = inverse * scale[:, None]
    if kind.lower_half:
        return vectors.conj(), inverse.conj()
    return vectors, inverse


def state_maps(reduction: Reduction, kind: LTILayer, order: int) -> tuple[HostArray, HostArray]:
    """Return the matrices, shape (..., order, n), with h_r = M₁ h + M₂ conj(h)."""
    parts = reduction.parts or (reduction,)
    maps = []
    for part in parts:
        _, inverse = stored_basis(part, kind)
        real, imag = np.split(inverse @ adjoint(part.projection.left), 2, axis=1)
        pad = ((0, order - len(real)), (0, 0))
        maps.append([np.pad(0.5 * (real + sign * 1j * imag), pad) for sign in (-1.0, 1.0)])
    batch = reduction.original.batch_shape
    return tuple(  # type: ignore[return-value]
        np.stack([pair[k] for pair in maps]).reshape(*batch, order, -1) for k in (0, 1)
    )


def padded(system: DiagonalStateSpace, order: int) -> DiagonalStateSpace:
    """Add states that neither respond nor are seen, up to `order`."""
    missing = order - system.eigenvalues.shape[-1]
    if missing == 0:
        return system
    batch = [(0, 0)] * len(system.batch_shape)
    return system.replace(
        eigenvalues=np.pad(system.eigenvalues, [*batch, (0, missing)]),
        B=np.pad(system.B, [*batch, (0, missing), (0, 0)]),
        C=np.pad(system.C, [*batch, (0, 0), (0, missing)]),
    )
