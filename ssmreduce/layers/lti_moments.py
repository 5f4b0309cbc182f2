"""Moments of an optimizer across the cut of a linear layer: first and second ones in the new states.

Moments belong to weights, and a cut replaces the weights of a layer by those of another basis. Gradients
are those of torch's convention, ∇z = ∂/∂Re z + i ∂/∂Im z. With real states x = T x_r, x_r = Wᵀ x, and
a stored state v, s (column of V, row of its inverse) for a conjugate pair or a real pole, the chain rule
gives for input and output matrices of the systems

    ∇b' = 2 vᴴ Tᵀ [Re ∇B; Im ∇B] (pair),  the real part without the 2 (real pole);
    ∇c' = [Re ∇C, -Im ∇C] W sᴴ (pair),  its real part (real pole).

A layer stores matrices up to a factor that belongs to its poles, B = f B_stored, so that ∇B_stored =
conj(f) ∇B. All of this is linear, one real matrix on [Re; Im], so first moments are mapped exactly; second
moments take the squared entries of that matrix, which is exact for uncorrelated gradients; those of centred
RMSprop do so about their means, so that no variance becomes negative. Poles have
no such image: their first moments are zero afterwards, and their second moments share out the old sum
evenly. Zero second moments would be wrong here: the step count of Adam goes on, no bias correction remains,
and steps would be several times too long for a while. States that only pad a channel get the mean of the
others for the same reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.layers.stored_states import stored_basis
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.real_form import real_input

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer
    from ssmreduce.layers.lti_cut import LTICut


def carried(cut: LTICut, old: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
    """Map the moments of one layer; with `squared` through the squared coefficients."""
    # A weight for which the optimizer keeps no moment counts as one with moment zero.
    full = {name: old.get(name, np.zeros_like(weight)) for name, weight in cut.weights.items()}
    new: dict[str, HostArray] = {}
    if cut.kind.carries_matrices:
        new |= _carried_matrices(full, cut, squared=squared)
    for name in cut.kind.poles:
        shape = cut.new_weights[name].shape
        new[name] = np.zeros(shape)
        if squared and name in cut.changed:
            axis = [before == after for before, after in zip(full[name].shape, shape, strict=True)]
            at = axis.index(False)
            total = np.sum(full[name], axis=at, keepdims=True)
            new[name] = np.broadcast_to(total / shape[at], shape)
    lost = [name for name in cut.changed if name in old and name not in new]
    if lost:
        raise UnsupportedLayerError(
            f"`{lost[0]}` has a new shape, but is neither in `poles` of "
            f"{type(cut.kind).__name__} nor among its `matrix_weights`; expected one of them, since "
            "its moments follow by that. Name it in `poles` if it belongs to the poles."
        )
    return {name: new[name] for name in old if name in new}


def _carried_matrices(
    full: dict[str, HostArray], cut: LTICut, *, squared: bool
) -> dict[str, HostArray]:
    """Map the moments of input and output matrix."""
    kind = cut.kind
    stored_B, stored_C = kind.matrices(full)
    new_B, new_C = kind.matrices(cut.new_weights)
    B, C = np.zeros(new_B.shape, complex), np.zeros(new_C.shape, complex)
    factors = (*kind.scales(cut.weights), *kind.scales(cut.new_weights))
    parts = cut.reduction.parts or (cut.reduction,)
    for part, at in zip(parts, np.ndindex(B.shape[:-2]), strict=True):
        old_s, old_t, new_s, new_t = (factor[at] for factor in factors)
        to_input, to_output = _state_maps(part, kind)
        assert part.slot_map is not None
        kept, is_pair = part.slot_map.order, part.slot_map.is_pair
        columns = _moved(to_input, stored_B[at], old_s, new_s[:kept], is_pair, squared)
        rows = _moved(to_output, stored_C[at].swapaxes(0, 1), old_t, new_t[:kept], is_pair, squared)
        B[at][:kept], C[at][:, :kept] = columns, rows.swapaxes(0, 1)
        if squared:
            B[at][kept:] = columns.mean(axis=0)
            C[at][:, kept:] = rows.mean(axis=0)[:, None]
    return kind.matrix_weights(B, C)


def _state_maps(part: Reduction, kind: LTILayer) -> tuple[HostArray, HostArray]:
    """Complex maps from [Re; Im] of ∇B, and of conj(∇C)ᵀ, to ∇b' and ∇c'ᵀ, all (r, 2n)."""
    slot_map, left, right = part.slot_map, part.left, part.right
    assert slot_map is not None
    assert left is not None
    assert right is not None
    vectors, inverse = stored_basis(part, kind)
    weight = np.where(slot_map.is_pair, 2.0, 1.0)[:, None]
    to_input = weight * (adjoint(vectors) @ adjoint(right))
    # ∇c'ᵀ = conj(s) Wᵀ [Re; -Im] of ∇Cᵀ.
    to_output = inverse.conj() @ adjoint(left)
    n = left.shape[0] // 2
    return to_input, to_output * np.where(np.arange(2 * n) < n, 1.0, -1.0)


def _moved(
    to_state: HostArray,
    moments: HostArray,
    old_factor: HostArray,
    new_factor: HostArray,
    is_pair: HostArray,
    squared: bool,
) -> HostArray:
    """Moments (n, k) of a stored matrix in the new states, (r, k), by one real matrix on [Re; Im]."""
    undone = _real_diagonal(1.0 / np.conj(old_factor))
    system = to_state @ undone
    parts = np.concatenate([system.real, np.where(is_pair[:, None], system.imag, 0.0)])
    total = _real_diagonal(np.conj(new_factor)) @ parts
    moved: HostArray = (total**2 if squared else total) @ real_input(moments)
    r = is_pair.size
    return moved[:r] + 1j * moved[r:]


def _real_diagonal(factor: HostArray) -> HostArray:
    """The real matrix on [Re; Im] that multiplies by complex factors."""
    real, imag = np.diag(factor.real), np.diag(np.imag(factor))
    return np.block([[real, -imag], [imag, real]])
