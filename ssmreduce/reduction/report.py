"""`Reduction`: a reduced system and everything that was decided and is known about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ssmreduce._array_libraries import HostArray, to_double, to_host
from ssmreduce._array_routes import any_library
from ssmreduce._checks import flag
from ssmreduce._display import cell, html_table, short
from ssmreduce.errors import ArgumentError, UnreachableToleranceError
from ssmreduce.norms import certified_difference, finite_horizon_difference
from ssmreduce.norms.grid import Search
from ssmreduce.norms.hinf import THOROUGH, largest_difference
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.transform import SlotMap

_QUICK = Search(24, 4, 3, accuracy=1e-4)
"""How `quick_error` searches: to a tenth, where the grid meets the peak."""


class Projection(NamedTuple):
    """From the (real) states of a system to those of its reduction, and to stored ones."""

    left: HostArray
    right: HostArray
    slot_map: SlotMap


@dataclass(frozen=True, eq=False, repr=False)
class Reduction:
    """Result of a reduction.

    Attributes
    ----------
    original : StateSpace or DiagonalStateSpace
        The system before.
    system : StateSpace or DiagonalStateSpace
        The system after, of the same kind and array library, at double precision; for a layer, as
        read back from what was written. The original itself if nothing was cut.
    order : int or (...) int array
        Stored states of `system`; one for each system of a batch.
    real_order : int or (...) int array
        Order of the truncated balanced system: where a diagonal system has real output, the number
        of real states, between `order` and twice that. For a layer that keeps some of its own
        states, how many it keeps.
    wanted_order : int or (...) int array
        Real order that was asked for (twice the int, where the output is real) before real poles,
        the rank or unsafe eigenvectors made `real_order` lower.
    rank : int or (...) int array
        Numerical rank of Yᴴ Z: how many Hankel singular values exceed 4 n eps σ₁. For modal
        truncation and selection, how many modes have a score that exceeds n eps times the largest.
    hsv : (..., n) array
        Hankel singular values, descending (2n of them for real output). For DC matching those of
        the standard form; where unstable states were kept, those of the stable part, padded with
        zeros; no entries for modal truncation and selection, which need none.
    error_bound : float, (...) array or None
        A bound on the H-infinity error before rounding: 2 Σ σ_i over what was cut, or the sum of
        the H-infinity norms of the modes that were removed. None where no theorem gives one (finite
        horizon).
    left, right : (n, real_order) array or None
        W and T with Wᴴ T = I, in the (real) states of the balanced system; for DC matching they
        project the inverse of A - s instead of A. None if nothing was cut or for a batch.
    slot_map : SlotMap or None
        The rest of the way from truncated states to stored ones; None for a dense system.
    mask : (..., order) bool array or None
        For a batch: which states of the padded arrays are in use.
    horizon : int or None
        Sequence length that was balanced for.
    method : str
        ``"balanced truncation"``, ``"DC matching"``, ``"modal truncation"`` ...
    unstable : int or (...) int array
        How many stored states were kept because they are unstable; part of `order`.
    stable_part : Reduction or None
        Where unstable states were kept: the reduction of the stable part, which is where all of
        the error is and where `verify` measures it.
    scores : (..., n) array or None
        For modal truncation and selection: score of every mode, descending; inf for unstable ones.
    parts : tuple of Reduction
        For a batch: the single reductions, in C order; none where it was cut as one on its device.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, balanced_truncation
    >>> system = DiagonalStateSpace([0.9, 0.1], [[1.0], [0.1]], [[1.0, 0.1]], time=Discrete())
    >>> reduction = balanced_truncation(system, 1)
    >>> reduction.order, reduction.verify() <= reduction.error_bound
    (1, True)
    """

    original: System
    system: System
    order: int | HostArray
    real_order: int | HostArray
    wanted_order: int | HostArray
    rank: int | HostArray
    hsv: HostArray
    error_bound: float | HostArray | None
    left: HostArray | None = None
    right: HostArray | None = None
    slot_map: SlotMap | None = None
    mask: HostArray | None = None
    horizon: int | None = None
    method: str = "balanced truncation"
    unstable: int | HostArray = 0
    stable_part: Reduction | None = None
    scores: HostArray | None = None
    parts: tuple[Reduction, ...] = ()

    def __repr__(self) -> str:
        parts = [self._orders(), f"error_bound={short(self.error_bound)}"]
        if self.original.batch_shape:
            parts.append(f"batch_shape={self.original.batch_shape}")
        if self.horizon is not None:
            parts.append(f"horizon={self.horizon}")
        if short(self.unstable) != "0":
            parts.append(f"unstable={short(self.unstable)}")
        return f"Reduction({', '.join(parts)}, method={self.method!r})"

    def _orders(self) -> str:
        """Stored states before and after."""
        return f"{self.original.order} -> {short(self.order)} states"

    def _repr_html_(self) -> str:
        columns = {
            "states": self.original.order,
            "order": self.order,
            "real order": self.real_order,
            "rank": self.rank,
            "error bound": self.error_bound,
            "method": self.method,
        }
        return html_table([list(columns), [cell(value) for value in columns.values()]])

    @any_library()
    def verify(self, *, certified: bool = False) -> float | HostArray:
        """Measure the error between `original` and `system` as it stands.

        Parameters
        ----------
        certified : bool
            Whether to return an upper bound, from a level-set test on the difference of order
            n + order, O((n + order)³) for each of a few levels.

        Returns
        -------
        float or (...) array
            A lower bound on the H-infinity norm of the difference (adaptive grid and power
            iteration), less what rounding may have added at that frequency; with a horizon, on the
            induced ℓ² norm over that many steps. With `certified` an upper bound: above a gain that
            was found by a relative 1e-6 and by what rounding of the test may hide.

        Raises
        ------
        UnreachableToleranceError
            If `certified` and the reduction has a horizon, for which there is no level-set test.
        UnstableSystemError
            If `certified` and one of the systems is not stable.
        ArgumentError
            If `certified` is not a bool.
        """
        if flag(certified, "certified"):
            return self._certified()
        return self.measured(THOROUGH)

    @any_library()
    def quick_error(self) -> float | HostArray:
        """Measure like `verify`, on a coarse grid: what a cut during training records.

        A lower bound. It is up to a tenth below the error where a peak lies between two points of
        the grid, or where inputs and outputs are both more than 16, since its power iteration is
        short.
        """
        return self.measured()

    def plot(self, *, ax: Any = None) -> HostArray:
        """Draw what was cut and what it changed: values, poles, gain and impulse response.

        Parameters
        ----------
        ax : four Axes, optional
            Where to draw; a new figure otherwise.

        Returns
        -------
        (2, 2) array of Axes
            Of a batch the largest gain and error are drawn, and the impulse response of one system;
            see `ssmreduce.plotting`.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        ArgumentError, ShapeError
            If `ax` is not four Matplotlib axes.
        """
        from ssmreduce.plotting.overview import draw_reduction

        ranked = self.stable_part or self
        values, kept = ranked._ranking()
        batch = bool(self.original.batch_shape)
        return draw_reduction(
            self.original,
            None if self.system is self.original else self.system,
            values,
            kept,
            ranked.values_name,
            bound=self.error_bound,
            horizon=self.horizon,
            mask=self.mask if batch else None,
            ax=ax,
        )

    @property
    def projection(self) -> Projection:
        """W, T and the map to stored states, of one system that was cut to a diagonal one.

        :meta private:

        Raises
        ------
        ArgumentError
            If nothing was projected.
        """
        if self.left is None or self.right is None or self.slot_map is None:
            raise ArgumentError(
                f"this reduction ({self.method}) projects nothing on stored states; expected one system that "
                "was cut to a diagonal one. Look at its parts, or at order."
            )
        return Projection(self.left, self.right, self.slot_map)

    @property
    def ranked_by(self) -> HostArray:
        """The values by which states were ranked: scores, or Hankel singular values.

        :meta private:
        """
        return self.hsv if self.scores is None else self.scores

    @property
    def values_name(self) -> str:
        """What the values are by which states were ranked, as pictures call them."""
        if self.scores is not None:
            return "score of the state"
        by_data = self.method.startswith("data-driven")
        return "singular value by data" if by_data else "Hankel singular value"

    def _ranking(self) -> tuple[HostArray, int | None]:
        """Finite values of states, and how many of them were kept at most if it is those."""
        if self.scores is None:
            # A selection picks states by what they do for outputs.
            is_those = self.method != "selection with refit"
            return to_double(self.hsv), (
                int(np.max(to_host(self.real_order))) if is_those else None
            )
        # Modes that are kept in any case have an infinite one, and come first.
        scores = to_double(self.scores)
        always = int(np.isinf(scores).sum(axis=-1).max(initial=0))
        # The smaller counts states: an oscillator is one of two real ones, a stored mode may be too.
        kept = min(int(np.max(to_host(each))) for each in (self.order, self.real_order))
        return scores[..., always:], kept - always

    def _singles(self) -> tuple[Reduction, ...]:
        """The reductions of a batch: its parts, or where all were cut as one, pieces of it."""
        if self.parts:
            return self.parts
        return tuple(
            replace(self, original=self.original[at], system=self.system[at])
            for at in np.ndindex(self.original.batch_shape)
        )

    def _certified(self) -> float | HostArray:
        if self.original.batch_shape:
            errors = [part._certified() for part in self._singles()]
            return np.asarray(errors).reshape(self.original.batch_shape)
        if self.stable_part is not None:
            return self.stable_part._certified()
        if self.horizon is not None:
            raise UnreachableToleranceError(
                f"`certified` is True but the reduction has horizon={self.horizon}; expected one "
                "without a horizon. Use verify() for a lower bound."
            )
        if self.system is self.original:
            return 0.0
        return float(certified_difference(self.original, self.system).upper)

    def measured(self, search: Search = _QUICK) -> float | HostArray:
        """Return what `quick_error` does, or `verify` by another `search`, of systems on the host.

        :meta private:
        """
        if self.original.D.ndim > 2:
            errors = [part.measured(search) for part in self._singles()]
            return np.asarray(errors).reshape(self.original.batch_shape)
        if self.stable_part is not None:
            return self.stable_part.measured(search)
        if self.horizon is not None:
            return finite_horizon_difference(
                self.original, self.system, self.horizon, iterations=search.iterations
            )
        return largest_difference(self.original, self.system, search)
