"""Copies of a layer through its cut: averages of its weights, momentum teachers.

A copy has weights of its own, near those of the layer, and goes on being averaged with them weight by weight.
So it must arrive in the coordinates of the model: its systems are projected with the same W and T,

    A_r = Wᴴ A T,   B_r = Wᴴ B,   C_r = C T,

and diagonalised by the eigenvectors that continue those of the model: each belongs to the nearest pole
and has coefficient 1 on the model's eigenvector. That is exact for the projected copy, and the closer
the copy to the model, the closer their coordinates. Where the poles of the two cannot be paired (a pair here,
two real poles there), the copy keeps the model's eigenvectors and the diagonal of its A_r in them, which
is right to first order in the distance of the poles alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import UnstableSystemError
from ssmreduce.layers.stored_states import padded, state_scale
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.transform import SlotMap

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer


def copied_parts(
    reduction: Reduction, system: System, kind: LTILayer, change: HostArray
) -> tuple[tuple[Reduction, ...], list[DiagonalStateSpace]]:
    """Project each system of a copy as that of the layer was, and change its output weights as much.

    Returns the reductions, and what each led to.

    Raises
    ------
    UnstableSystemError
        If one is unstable then.
    """
    parts, systems = [], []
    for part, at in zip(
        reduction.parts or (reduction,), np.ndindex(system.batch_shape), strict=True
    ):
        single, own = system[at] if system.batch_shape else system, change
        if change.ndim and part.slot_map is not None:
            own = change[at][:, : part.slot_map.order]
        copied, reduced = _copied_part(part, single, kind, own)
        parts.append(copied)
        systems.append(reduced)
    return tuple(parts), systems


def stored_together(
    systems: Sequence[DiagonalStateSpace], batch: tuple[int, ...], order: int
) -> DiagonalStateSpace:
    """All systems of a layer in one, in a batch with `order` states each."""
    if not batch:
        return systems[0]
    every = [padded(system, order) for system in systems]
    arrays = {
        name: np.stack([getattr(one, name) for one in every])
        for name in ("eigenvalues", "B", "C", "D")
    }
    return every[0].replace(
        **{name: value.reshape(*batch, *value.shape[1:]) for name, value in arrays.items()}
    )


def _copied_part(
    part: Reduction, system: System, kind: LTILayer, change: HostArray
) -> tuple[Reduction, DiagonalStateSpace]:
    """Project one system as another one was, and diagonalise it alike."""
    W, T, slot_map = part.projection
    host = system.to_host()
    B, C = host.ports()
    own = _continued(adjoint(W) @ host.applied(T), slot_map)
    # Turned and scaled as the model's states are: what a layer does to a nearly turned state is smooth.
    scale = np.ones(slot_map.order)
    if kind.real_input or not kind.stores_input:
        scale = state_scale(part, kind)
        scale = np.where(scale == 0.0, 1.0, scale)
    own = own.rescaled(scale)
    if part.horizon is None and np.any(np.abs(own.eigenvalues) >= 1.0):
        raise UnstableSystemError(
            f"projected like the model it has a pole with |λ| = {np.abs(own.eigenvalues).max():.6g}; "
            "expected poles inside of the unit circle. Cut later, when copy and model are closer."
        )
    B, C = own.ports(adjoint(W) @ B, C @ T)
    reduced = DiagonalStateSpace(
        own.eigenvalues,
        B,
        C + change / scale,
        system.D,
        time=system.time,
        real_output=True,
        read_after_update=system.read_after_update,
    )
    copied = replace(part, original=system, system=reduced, slot_map=own, error_bound=None)
    return copied, reduced


def _continued(A: HostArray, slot_map: SlotMap) -> SlotMap:
    """The slots of A that continue those of another matrix near it."""
    from scipy.optimize import linear_sum_assignment

    poles, vectors = np.linalg.eig(A)
    chosen = np.zeros(slot_map.order, dtype=int)
    for pair in (True, False):
        slots = np.flatnonzero(slot_map.is_pair == pair)
        candidates = np.flatnonzero(poles.imag > 0.0 if pair else poles.imag == 0.0)
        if slots.size != candidates.size:
            return _first_order(A, slot_map)
        distance = np.abs(slot_map.eigenvalues[slots, None] - poles[candidates])
        rows, columns = linear_sum_assignment(distance)
        chosen[slots[rows]] = candidates[columns]
    moved = vectors[:, chosen]
    share = np.einsum("ij,ji->i", slot_map.inverse, moved)
    if np.any(share == 0.0):
        return _first_order(A, slot_map)
    moved = moved / share
    is_pair = slot_map.is_pair
    full = np.concatenate([moved, moved[:, is_pair].conj()], axis=1)
    try:
        inverse = np.linalg.inv(full)
    except np.linalg.LinAlgError:
        return _first_order(A, slot_map)
    condition = float(np.linalg.norm(full, 1) * np.linalg.norm(inverse, 1))
    return SlotMap(
        poles[chosen].astype(np.complex128), moved, inverse[: slot_map.order], is_pair, condition
    )


def _first_order(A: HostArray, slot_map: SlotMap) -> SlotMap:
    """The diagonal of A in the slots of another matrix."""
    poles = np.einsum("ij,jk,ki->i", slot_map.inverse, A, slot_map.vectors)
    return replace(slot_map, eigenvalues=np.where(slot_map.is_pair, poles, poles.real))
