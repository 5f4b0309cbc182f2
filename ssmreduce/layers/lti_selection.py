"""`LTISelection`: a linear layer that keeps some of its own modes, with other output weights to read them.

Poles and steps of the modes that stay are rows of the old weights, and so are their moments. Output weights
that make up for what is left out may be a hundred times as large as they were, at which size training hardly
moves them; states of another size, if the layer stores its input weights, bring them back to what is usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.lti_cut import LTICut
from ssmreduce.layers.read_back import read_back
from ssmreduce.reduction.balanced_diagonal import usual_sizes
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer


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
