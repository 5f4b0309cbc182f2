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

_ROUNDINGS = 64.0
"""A row of B counts as real, up to a phase, if its imaginary part is below 64 eps of its length."""


def turn_to_real(B: HostArray) -> HostArray:
    """Return the factor by which each row of B is turned to where its imaginary part is least."""
    square = np.sum(np.asarray(B, np.complex128) ** 2, axis=-1)
    return np.asarray(np.exp(-0.5j * np.angle(square)))


def state_scale(part: Reduction, kind: LTILayer) -> HostArray:
    """Return the factor, shape (r,), by which the layer stores each state of one reduced system.

    It turns the rows of the input matrix to real ones, or makes them 1, where the layer stores these alone.
    """
    left, _, slot_map = part.projection
    B = slot_map.inverse @ (adjoint(left) @ part.original.ports()[0])
    if kind.real_input:
        return turn_to_real(B)
    one = np.where(B[:, 0] == 0.0, 1.0, B[:, 0])
    return np.asarray(np.where(B[:, 0] == 0.0, 0.0, 1.0 / one))


def with_real_input(system: DiagonalStateSpace) -> DiagonalStateSpace:
    """Return the same map with a real B: a state with a complex row of it becomes two."""
    turn = turn_to_real(system.B)
    B, C = turn[:, None] * system.B, system.C / turn
    length = np.linalg.norm(B, axis=-1)
    eps = float(np.finfo(np.float64).eps)
    split = np.linalg.norm(B.imag, axis=-1) > _ROUNDINGS * eps * length
    poles = system.eigenvalues
    return system.replace(
        eigenvalues=np.concatenate([poles, poles[split]]),
        B=np.concatenate([B.real, B.imag[split]]),
        C=np.concatenate([C, 1j * C[:, split]], axis=1),
    )


def stored_basis(part: Reduction, kind: LTILayer) -> tuple[HostArray, HostArray]:
    """Return V, shape (R, r), and S, shape (r, R), of one system, for states as the layer stores them."""
    slot_map = part.projection.slot_map
    vectors, inverse = slot_map.vectors, slot_map.inverse
    if kind.real_input or not kind.stores_input:
        scale = state_scale(part, kind)
        with np.errstate(divide="ignore", invalid="ignore"):
            vectors = np.where(scale == 0.0, 0.0, vectors / scale)
        inverse = inverse * scale[:, None]
    if kind.lower_half:
        return vectors.conj(), inverse.conj()
    return vectors, inverse


def padded(system: DiagonalStateSpace, order: int) -> DiagonalStateSpace:
    """Add states that neither respond nor are seen, up to `order`."""
    missing = order - system.eigenvalues.shape[-1]
    batch = [(0, 0)] * len(system.batch_shape)
    return system.replace(
        eigenvalues=np.pad(system.eigenvalues, [*batch, (0, missing)]),
        B=np.pad(system.B, [*batch, (0, missing), (0, 0)]),
        C=np.pad(system.C, [*batch, (0, 0), (0, missing)]),
    )
