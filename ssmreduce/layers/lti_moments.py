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

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.layers.stored_states import stored_basis

if TYPE_CHECKING:
    from ssmreduce.layers.lti_cut import LTICut


def carry(cut: LTICut, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
    """Map the moments of one layer; with `squared` through the squared coefficients."""
    # A weight for which the optimizer keeps no moment counts as one with moment zero.
    full = {name: moments.get(name, np.zeros_like(weight)) for name, weight in cut.weights.items()}
    new: dict[str, HostArray] = {}
    if cut.kind.carries_matrices:
        old_B, old_C = cut.kind.matrices(full)
        batch, r = old_B.shape[:-2], cut.new_order
        B = np.zeros((*batch, r, old_B.shape[-1]), complex)
        C_transposed = np.zeros((*batch, r, old_C.shape[-2]), complex)
        for maps, at in zip(cut.moment_maps, np.ndindex(batch), strict=True):
            every = (B[at], old_B[at]), (C_transposed[at], old_C[at].swapaxes(0, 1))
            for real_map, (into, old) in zip(maps, every, strict=True):
                total = real_map**2 if squared else real_map
                moved = total @ np.concatenate([old.real, old.imag])
                kept = len(moved) // 2
                into[:kept] = moved[:kept] + 1j * moved[kept:]
                if squared:
                    into[kept:] = into[:kept].mean(axis=0)
        new |= cut.kind.matrix_weights(B, C_transposed.swapaxes(-1, -2))

    for name in cut.kind.poles:
        shape = cut.new_weights[name].shape
        new[name] = np.zeros(shape)
        if squared and name in cut.changed:
            same = [before == after for before, after in zip(full[name].shape, shape, strict=True)]
            axis = same.index(False)
            shared_out = np.sum(full[name], axis=axis, keepdims=True) / shape[axis]
            new[name] = np.broadcast_to(shared_out, shape)
    lost = [name for name in cut.changed if name in moments and name not in new]
    if lost:
        raise UnsupportedLayerError(
            f"`{lost[0]}` has a new shape, but is neither in `poles` of "
            f"{type(cut.kind).__name__} nor among its `matrix_weights`; expected one of them, since "
            "its moments follow by that. Name it in `poles` if it belongs to the poles."
        )
    return {name: new[name] for name in moments if name in new}


def moment_maps(cut: LTICut) -> list[tuple[HostArray, HostArray]]:
    """For each system, the real matrices on [Re; Im] that carry first moments of b, and of cᵀ."""
    kind = cut.kind
    factors = (*kind.modes(cut.weights)[1:], *kind.modes(cut.new_weights)[1:])
    parts = cut.reduction.parts or (cut.reduction,)
    maps = []
    for part, at in zip(parts, np.ndindex(factors[0].shape[:-1]), strict=True):
        left, right, slot_map = part.projection
        old_s, old_t, new_s, new_t = (factor[at] for factor in factors)
        vectors, inverse = stored_basis(part, kind)
        weight = np.where(slot_map.is_pair, 2.0, 1.0)[:, None]
        to_input = weight * adjoint(right @ vectors)
        # ∇c'ᵀ = conj(s) Wᵀ [Re; -Im] of ∇Cᵀ.
        to_output = inverse.conj() @ adjoint(left)
        to_output[:, left.shape[0] // 2 :] *= -1.0
        real_maps = []
        for to_state, old, new in ((to_input, old_s, new_s), (to_output, old_t, new_t)):
            # Between factors 1/conj(old) and conj(new), as a real matrix on [Re; Im].
            undone, factor = 1.0 / np.conj(old), np.conj(new[: len(inverse)])[:, None]
            first, second = np.split(to_state, 2, axis=1)
            of_real = first * undone.real + second * undone.imag
            of_imag = second * undone.real - first * undone.imag
            total = np.concatenate([of_real, of_imag], axis=1)
            real, imag = total.real, np.where(slot_map.is_pair[:, None], total.imag, 0.0)
            to_real = factor.real * real - factor.imag * imag
            to_imag = factor.imag * real + factor.real * imag
            real_maps.append(np.concatenate([to_real, to_imag]))
        maps.append((real_maps[0], real_maps[1]))
    return maps
