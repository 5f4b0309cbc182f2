"""Modes of dense systems of a layer, and the cut that keeps those which fit an output best.

With A = V diag(λ) V⁻¹ a mode is the state h = s x, s a row of V⁻¹, and runs h[k] = λ h[k-1] + (s b) u[k] by
itself. A conjugate pair or a real pole takes one stored state. Its size is free: here the one with variance 1
for white noise, so that s b = sqrt(1 - |λ|²). For r modes W holds the real and imaginary parts of rows of V⁻¹
and T those of columns of V, so that Wᵀ A T are their blocks of A and Wᵀ T = I.

A matrix that is far from normal has modes that rounding does not tell apart; so has that of HiPPO-LegS, with
which S4 begins. Training parts them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError
from ssmreduce.gramians.sequences import RIDGE, Sequences, feature_sums
from ssmreduce.layers.diagonal_cut import in_slots
from ssmreduce.layers.selection import pursue_target
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.order import OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise

_LARGEST_CONDITION = float(np.finfo(np.float64).eps) ** -0.5
"""Condition of eigenvectors at which half of the digits are left."""


class SelectedModes:
    """The systems of a layer, ready for any number of cuts to modes that fit sequences.

    Parameters
    ----------
    system : StateSpace
        Real systems, with any batch axes.
    sequences : Sequences
        What goes in, and what is to come out.
    whole : Reduction
        The reduction that cuts nothing, which knows Hankel singular values.

    Raises
    ------
    NoConvergenceError
        If eigenvectors of a state matrix cost more than half of the digits.
    """

    def __init__(self, system: StateSpace, sequences: Sequences, whole: Reduction) -> None:
        self._system, self._parts = system, whole.parts or (whole,)
        singles = single_systems(system)
        self._modes = [_modes(single) for single in singles]
        every = [
            replace(part, system=in_slots(single, modes, *single.ports()), order=modes.order)
            for part, single, modes in zip(self._parts, singles, self._modes, strict=True)
        ]
        self._sums = feature_sums(assemble(system, every).system, sequences)

    def truncate(self, order: int | OrderRule, *, common_order: bool) -> Reduction:
        """Keep `order` modes of each system."""
        count = as_rule(order).choose(np.zeros(self._system.order))
        gram, seen = self._sums.gram, self._sums.seen
        pairs = zip(
            gram.reshape(-1, *gram.shape[-2:]), seen.reshape(-1, *seen.shape[-2:]), strict=True
        )
        cuts = [
            _kept(part, modes, pursue_target(phi, own, 2, count, tolerance=RIDGE))
            for part, modes, (phi, own) in zip(self._parts, self._modes, pairs, strict=True)
        ]
        return assemble(self._system, cuts)

    def budget_values(self) -> list[HostArray]:
        """Every other Hankel singular value."""
        return [part.hsv[::2] for part in self._parts]


def _modes(system: StateSpace) -> SlotMap:
    """All modes of one system, with variance 1 for white noise where they decay."""
    modes = diagonalise(system.A, real=True)
    if modes is None or modes.condition > _LARGEST_CONDITION:
        raise NoConvergenceError(
            "eigenvectors of its state matrix have condition "
            f"{np.inf if modes is None else modes.condition:.2g}; expected at most "
            f"{_LARGEST_CONDITION:.2g}: rounding does not tell its modes apart. Try another method, or "
            "train on."
        )
    b = modes.ports(system.B, system.C)[0][:, 0]
    usual = np.sqrt(np.abs(1.0 - np.abs(modes.eigenvalues) ** 2))
    return modes.rescaled(np.where(b == 0.0, 1.0, usual) / np.where(b == 0.0, 1.0, b))


def _kept(whole: Reduction, modes: SlotMap, kept: HostArray) -> Reduction:
    """One system cut to some of its modes, ascending."""
    v, s, is_pair = modes.vectors[:, kept], modes.inverse[kept], modes.is_pair[kept]
    W = adjoint(np.concatenate([s.real, s.imag[is_pair]]))
    T = np.concatenate([np.where(is_pair, 2.0, 1.0) * v.real, -2.0 * v.imag[:, is_pair]], axis=1)
    # From these real states to the stored ones: h = Re h + i Im h.
    inverse = np.concatenate([np.eye(kept.size), 1j * np.eye(kept.size)[:, is_pair]], axis=1)
    vectors = adjoint(inverse) * np.where(is_pair, 0.5, 1.0)
    own = SlotMap(modes.eigenvalues[kept], vectors, inverse, is_pair, modes.condition)
    B, C = whole.original.ports()
    return replace(
        whole,
        system=in_slots(whole.original, own, adjoint(W) @ B, C @ T),
        order=kept.size,
        real_order=W.shape[1],
        wanted_order=2 * kept.size,
        error_bound=None,
        left=W,
        right=T,
        slot_map=own,
        method="selection",
    )
