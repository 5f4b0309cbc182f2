"""`LTICut`: a linear layer cut by balanced truncation, and all that follows from it.

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

Copies of a layer, averages of its weights or momentum teachers, have weights of their own, near those of the
layer, and go on being averaged with them weight by weight. So they must arrive in the coordinates of the
model: their systems are projected with the same W and T,

    A_r = Wᴴ A T,   B_r = Wᴴ B,   C_r = C T,

and diagonalised by the eigenvectors that continue those of the model: each belongs to the nearest pole
and has coefficient 1 on the model's eigenvector. That is exact for the projected copy, and the closer
the copy to the model, the closer their coordinates. Where the poles of the two cannot be paired (a pair here,
two real poles there), the copy keeps the model's eigenvectors and the diagonal of its A_r in them, which
is right to first order in the distance of the poles alone.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import UnstableSystemError, UnsupportedLayerError
from ssmreduce.layers.cut import SystemCut
from ssmreduce.layers.diagonal_cut import in_slots
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.read_back import read_back
from ssmreduce.layers.stored_states import state_scale, stored_basis
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.transform import SlotMap

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
    def without_image(self) -> tuple[str, ...]:
        """The poles."""
        return self.kind.poles

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Map the moments of one layer; with `squared` through the squared coefficients."""
        # A weight for which the optimizer keeps no moment counts as one with moment zero.
        full = {
            name: moments.get(name, np.zeros_like(weight)) for name, weight in self.weights.items()
        }
        new: dict[str, HostArray] = {}
        if self.kind.carries_matrices:
            old_B, old_C = self.kind.matrices(full)
            batch, r = old_B.shape[:-2], self.new_order
            B = np.zeros((*batch, r, old_B.shape[-1]), complex)
            C_transposed = np.zeros((*batch, r, old_C.shape[-2]), complex)
            for maps, at in zip(self.moment_maps, np.ndindex(batch), strict=True):
                every = (B[at], old_B[at]), (C_transposed[at], old_C[at].swapaxes(0, 1))
                for real_map, (into, old) in zip(maps, every, strict=True):
                    total = real_map**2 if squared else real_map
                    moved = total @ np.concatenate([old.real, old.imag])
                    kept = len(moved) // 2
                    into[:kept] = moved[:kept] + 1j * moved[kept:]
                    if squared:
                        into[kept:] = into[:kept].mean(axis=0)
            new |= self.kind.matrix_weights(B, C_transposed.swapaxes(-1, -2))

        for name in self.kind.poles:
            shape = self.new_weights[name].shape
            new[name] = np.zeros(shape)
            if squared and name in self.changed:
                same = [
                    before == after for before, after in zip(full[name].shape, shape, strict=True)
                ]
                axis = same.index(False)
                shared_out = np.sum(full[name], axis=axis, keepdims=True) / shape[axis]
                new[name] = np.broadcast_to(shared_out, shape)
        lost = [name for name in self.changed if name in moments and name not in new]
        if lost:
            raise UnsupportedLayerError(
                f"`{lost[0]}` has a new shape, but is neither in `poles` of "
                f"{type(self.kind).__name__} nor among its `matrix_weights`; expected one of them, since "
                "its moments follow by that. Name it in `poles` if it belongs to the poles."
            )
        return {name: new[name] for name in moments if name in new}

    @cached_property
    def moment_maps(self) -> list[tuple[HostArray, HostArray]]:
        """For each system, the real matrices on [Re; Im] that carry first moments of b, and of cᵀ."""
        kind = self.kind
        factors = (*kind.modes(self.weights)[1:], *kind.modes(self.new_weights)[1:])
        parts = self.reduction.parts or (self.reduction,)
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

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> LTICut:
        """Project a copy with the same W and T, and change its output weights as much."""
        kind, own = self.kind, self.reduction
        system = kind.read(weights)
        indices = np.ndindex(system.batch_shape)
        singles = zip(own.parts or (own,), single_systems(system), indices, strict=True)
        reduction = assemble(system, [self._copied(*single) for single in singles])
        written = kind.write(reduction.system, weights, self.new_weights, order=self.new_order)
        new = {**weights, **storage.rounded(written)}
        outcome = as_written(reduction, read_back(kind, reduction.system, new, storage.eps))
        error = kind.error_factor * float(np.max(outcome.measured()))
        return LTICut(kind, outcome, error, weights, new)

    def _copied(self, part: Reduction, system: System, at: tuple[int, ...]) -> Reduction:
        """Project one system as another one was, and diagonalise it alike.

        Raises
        ------
        UnstableSystemError
            If it is unstable then.
        """
        W, T, slot_map = part.projection
        host = system.to_host()
        own = _continued(adjoint(W) @ host.applied(T), slot_map)
        # Turned and scaled as the model's states are: what a layer does to a nearly turned state is smooth.
        scale = np.ones(slot_map.order)
        if self.kind.real_input or not self.kind.stores_input:
            scale = state_scale(part, self.kind)
            scale = np.where(scale == 0.0, 1.0, scale)
        own = own.rescaled(scale)
        if part.horizon is None and np.any(np.abs(own.eigenvalues) >= 1.0):
            raise UnstableSystemError(
                f"projected like the model it has a pole with |λ| = {np.abs(own.eigenvalues).max():.6g}; "
                "expected poles inside of the unit circle. Cut later, when copy and model are closer."
            )
        B, C = host.ports()
        reduced = in_slots(system, own, adjoint(W) @ B, C @ T)
        if self.readout_change.ndim:
            change = self.readout_change[at][:, : slot_map.order]
            reduced = reduced.replace(C=reduced.C + change / scale)
        return replace(part, original=system, system=reduced, slot_map=own, error_bound=None)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The states of each channel, where they run apart."""
        return (*self.reduction.original.batch_shape, self.old_order)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return M₁ and M₂ of h_r = S Wᵀ [Re h; Im h]."""
        maps = []
        for part in self.reduction.parts or (self.reduction,):
            _, inverse = stored_basis(part, self.kind)
            real, imag = np.split(inverse @ adjoint(part.projection.left), 2, axis=1)
            pad = ((0, self.new_order - len(real)), (0, 0))
            maps.append([np.pad(0.5 * (real + sign * 1j * imag), pad) for sign in (-1.0, 1.0)])
        batch = self.reduction.original.batch_shape
        direct, conjugate = np.swapaxes(maps, 0, 1).reshape(2, *batch, self.new_order, -1)
        return direct, conjugate


def as_written(reduction: Reduction, system: System) -> Reduction:
    """`reduction` with the system that was read back from the weights, in its parts as well."""
    indices = np.ndindex(system.D.shape[:-2])
    parts = tuple(
        replace(part, system=system[at]) for part, at in zip(reduction.parts, indices, strict=False)
    )
    return replace(reduction, system=system, parts=parts)


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
