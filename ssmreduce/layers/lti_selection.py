"""A linear layer that keeps some of its own modes, with other output weights to read them.

Poles and steps of the modes that stay are rows of the old weights, and so are their moments. Output weights
that make up for what is left out may be a hundred times as large as they were, at which size training hardly
moves them; states of another size, if the layer stores its input weights, bring them back to what is usual.

Modes of a dense system are no rows of weights. With A = V diag(λ) V⁻¹ a mode is the state h = s x, s a row of
V⁻¹, and runs h[k] = λ h[k-1] + (s b) u[k] by itself. A conjugate pair or a real pole takes one stored state.
Its size is free: here the one with variance 1 for white noise, so that s b = sqrt(1 - |λ|²). For r modes W
holds the real and imaginary parts of rows of V⁻¹ and T those of columns of V, so that Wᵀ A T are their blocks
of A and Wᵀ T = I.

A matrix that is far from normal has modes that rounding does not tell apart; so has that of HiPPO-LegS, with
which S4 begins. Training parts them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.errors import NoConvergenceError, UnsupportedLayerError
from ssmreduce.gramians.sequences import RIDGE, FeatureSums, Sequences, feature_sums
from ssmreduce.layers.diagonal_cut import in_slots
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.lti_cut import LTICut
from ssmreduce.layers.read_back import read_back
from ssmreduce.layers.selection import pursue_target
from ssmreduce.reduction.balanced_diagonal import usual_sizes
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.order import OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer


_LARGEST_CONDITION = float(np.finfo(np.float64).eps) ** -0.5
"""Condition of eigenvectors at which half of the digits are left."""


@dataclass(frozen=True, eq=False)
class LTISelection(LTICut):
    """A linear layer before and after a selection of its modes.

    Attributes
    ----------
    kept : (..., r) int array
        Modes that stay, ascending; of each channel its own.
    sizes : (..., r) array
        By how much each of their states was multiplied.
    """

    kept: HostArray
    sizes: HostArray

    @classmethod
    def made(
        cls,
        kind: LTILayer,
        weights: dict[str, HostArray],
        old: DiagonalStateSpace,
        kept: HostArray,
        change: HostArray,
        storage: WeightStorage,
        whole: Reduction,
        sizes: HostArray | None = None,
    ) -> LTISelection:
        """Keep these modes of `old`, and add `change`, shape (..., p, r), to how the system reads them.

        `whole` is the reduction of the layer that cuts nothing; `sizes` are the usual ones if none are given.
        """
        weights = dict(kind.before_runs(weights))
        poles = np.take_along_axis(old.eigenvalues, kept, axis=-1)
        B = np.take_along_axis(old.B, kept[..., :, None], axis=-2)
        C = np.take_along_axis(old.C, kept[..., None, :], axis=-1) + change
        if sizes is None:
            sizes = usual_sizes(old, poles, B, C) if kind.stores_input else np.ones(kept.shape)
        B, C = B * sizes[..., :, None], C / sizes[..., None, :]
        meant = old.replace(eigenvalues=poles, B=B, C=C)
        new = _rows(kind, weights, kept, sizes)
        _, _, t = kind.modes({**weights, **new})
        b, _ = kind.matrices({**weights, **new})
        new |= kind.matrix_weights(b, C / t[..., None, :])
        written = {**weights, **storage.rounded(new)}
        system = read_back(kind, meant, written, storage.eps)
        order = kept.shape[-1]
        reduction = Reduction(
            original=old,
            system=system,
            order=order,
            real_order=2 * order,
            wanted_order=2 * order,
            rank=whole.rank,
            hsv=whole.hsv,
            error_bound=None,
            horizon=whole.horizon,
            method="selection with refit",
        )
        error = kind.error_factor * float(np.max(reduction.measured()))
        return cls(kind, reduction, error, weights, written, kept, sizes, readout_change=change)

    @property
    def without_image(self) -> tuple[str, ...]:
        """None: what is kept is kept as it is."""
        return ()

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Keep the moments of the modes that are kept, for states of their new sizes."""
        full = {name: moments.get(name, np.zeros_like(old)) for name, old in self.weights.items()}
        rows = _rows(self.kind, full, self.kept, 1.0 / (self.sizes**2 if squared else self.sizes))
        return {name: rows.get(name, value) for name, value in moments.items()}

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> LTISelection:
        """Keep the same modes of a copy, and change how it reads them as much."""
        kind, old = self.kind, self.kind.read(weights).to_host()
        if not isinstance(old, DiagonalStateSpace):
            raise UnsupportedLayerError(
                f"this {type(kind).__name__} runs a system whose state matrix is not diagonal; expected one "
                "that is, as in the layer whose modes were selected. Leave it out of `followers`."
            )
        plan = kind, weights, old, self.kept, self.readout_change, storage, self.reduction
        return LTISelection.made(*plan, self.sizes)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return the rows of the identity that are kept, times their sizes, and zero."""
        rows = np.eye(self.old_order)[self.kept] * self.sizes[..., None]
        return rows, np.zeros_like(rows)


def _rows(
    kind: LTILayer, values: dict[str, HostArray], kept: HostArray, sizes: HostArray
) -> dict[str, HostArray]:
    """What belongs to the kept modes in all weights, or moments of them, that have a place for each mode."""
    B, C = kind.matrices(values)
    rows = kind.matrix_weights(
        np.take_along_axis(B, kept[..., :, None], axis=-2) * sizes[..., :, None],
        np.take_along_axis(C, kept[..., None, :], axis=-1) / sizes[..., None, :],
    )
    resized = kind.resized(values, kept.shape[-1])
    for name in kind.poles:
        before, after = values[name].shape, resized[name].shape
        if before == after or name in rows:
            continue
        axis = next(k for k in range(len(before)) if before[k] != after[k])
        ones = (1,) * (axis + 1 - kept.ndim), (1,) * (len(before) - axis - 1)
        at = kept.reshape(*ones[0], *kept.shape, *ones[1])
        rows[name] = np.take_along_axis(values[name], at, axis=axis)
    return rows


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

    def truncate(self, rule: OrderRule) -> Reduction:
        """Keep as many modes of each system as the rule says."""
        count = rule.choose(np.zeros(self._system.order))
        groups = picked_groups(self._sums, 2, count).reshape(-1, count)
        cuts = [_kept(*own) for own in zip(self._parts, self._modes, groups, strict=True)]
        return assemble(self._system, cuts)


def picked_groups(sums: FeatureSums, size: int, count: int) -> HostArray:
    """Return the groups of features that fit the outputs best, of each system, shape (..., count)."""
    gram, seen = (each.reshape(-1, *each.shape[-2:]) for each in (sums.gram, sums.seen))
    pairs = zip(gram, seen, strict=True)
    picked = [pursue_target(phi, own, size, count, tolerance=RIDGE) for phi, own in pairs]
    return np.stack(picked).reshape(*sums.gram.shape[:-2], count)


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
