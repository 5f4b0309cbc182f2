"""`MambaCut`: a selection of the states of a Mamba mixer, and all that follows; `MambaPlan` makes them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import array_api_compat
import numpy as np

from ssmreduce._checks import numeric_array
from ssmreduce._namespace import Array, HostArray
from ssmreduce.errors import OrderError, ShapeError, SSMReduceError, UnreachableToleranceError
from ssmreduce.gramians.sequences import LayerData
from ssmreduce.layers.layer import Candidates, LayerCut, WeightStorage
from ssmreduce.layers.mamba_fit import Elimination, elimination, few_sequences, refitted
from ssmreduce.layers.mamba_mixer import Mixer
from ssmreduce.layers.options import CutOptions, Method
from ssmreduce.reduction.measured import smallest
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule

if TYPE_CHECKING:
    from ssmreduce.layers.mamba import Mamba

METHODS: tuple[Method, ...] = ("compensated", "selected")
"""What a selective layer can be cut by."""

_FITTED = ("x_proj.weight", "D")
"""Weights that a fit changes beside the selection."""

_ROWS = 64
"""Steps that are looked at for each number that a fit has to find for each output of a step."""


@dataclass(frozen=True, eq=False)
class MambaCut(LayerCut):
    """A Mamba mixer before and after a selection of its states.

    Attributes
    ----------
    kept : (r,) int array
        States that stay, ascending.
    scales : (r,) array
        What the rows of C are multiplied by, before any fit.
    ranked : (n,) array
        Root of what the outputs lose with each state, descending.
    fitted : dict of arrays
        What a fit has added to the new weights.
    """

    kind: Mamba
    kept: HostArray
    scales: HostArray
    ranked: HostArray
    _: KW_ONLY
    fitted: dict[str, HostArray] = field(default_factory=dict)

    @property
    def scores(self) -> HostArray:
        """What the outputs lose with each state, descending."""
        return self.ranked

    @property
    def without_image(self) -> tuple[str, ...]:
        """None: what is kept is kept as it is, or scaled."""
        return ()

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Keep the moments of the states that are kept.

        Of C as they are, as the states are those of before; of B and A_log times the scales, as the states
        are read by so much more. Exact for a selection that changes no output; for what was fitted near to
        that.
        """
        scales = self.scales**2 if squared else self.scales
        new = dict(moments)
        if "A_log" in new:
            new["A_log"] = new["A_log"][:, self.kept] * scales
        if "x_proj.weight" in new:
            delta, B, C = self.kind.split(new["x_proj.weight"], self.old_order)
            new["x_proj.weight"] = np.concatenate(
                [delta, scales[:, None] * B[self.kept], C[self.kept]]
            )
        return new

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> MambaCut:
        """Keep the same states of a copy, with the same scales, and add what a fit has added."""
        new = selected(self.kind, weights, self.kept, self.scales)
        moved = {name: new[name] + self.fitted.get(name, 0.0) for name in new}
        return replace(
            self,
            weights=weights,
            new_weights={**weights, **storage.rounded(moved)},
            output_error=None,
        )

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Channels and states."""
        return tuple(self.weights["A_log"].shape)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return the rows of the identity that are kept, and zero."""
        rows = np.eye(self.old_order)[self.kept]
        return rows, np.zeros_like(rows)

    def reduce_state(self, state: Array) -> Array:
        """The hidden state, shape (..., D, n), with which a stream goes on: the states that are kept."""
        state = numeric_array(state, "state", 0)
        if tuple(state.shape[-2:]) != self.state_shape:
            raise ShapeError(
                f"`state` has shape {tuple(state.shape)}; expected one whose last axes are "
                f"{self.state_shape}, the channels and states before the cut. Pass the state of the "
                "recurrence alone, not that of the convolution."
            )
        if self.new_order == self.old_order:
            return state
        xp = array_api_compat.array_namespace(state)
        at = xp.asarray(self.kept, device=array_api_compat.device(state))
        return xp.take(state, at, axis=-1)


def selected(
    kind: Mamba, weights: dict[str, HostArray], kept: HostArray, scales: HostArray
) -> dict[str, HostArray]:
    """Return the weights that a cut changes, of the states `kept` alone, before any fit."""
    delta, B, C = kind.split(weights["x_proj.weight"], kind.order(weights))
    return {
        "A_log": weights["A_log"][:, kept],
        "x_proj.weight": np.concatenate([delta, B[kept], scales[:, None] * C[kept]]),
        "D": weights["D"],
    }


class MambaPlan:
    """Makes the candidates for one mixer."""

    def __init__(
        self,
        kind: Mamba,
        weights: dict[str, HostArray],
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> None:
        kind.check_readable(weights)
        self._kind, self._weights, self._storage, self._data = kind, weights, storage, data
        self._multiple_of = options.multiple_of
        self._methods = METHODS if options.method == "best" else (options.method,)
        self._old_order = kind.order(weights)
        self._mixer = Mixer.of(weights)

    @cached_property
    def _elimination(self) -> Elimination:
        return elimination(self._mixer, self._data.fitting)

    def candidates(self, order: int | OrderRule) -> Candidates:
        """The cuts to the order that a rule chooses.

        Raises
        ------
        OrderError
            If there are fewer states.
        UnreachableToleranceError
            For an `ErrorBound`: nothing bounds the error of a selection.
        """
        rule = as_rule(order)
        if isinstance(rule, ErrorBound):
            raise UnreachableToleranceError(
                f"`order` is {rule} but Mamba keeps a selection of its own states, for whose error there is "
                "no bound; expected another rule. Try MeasuredError(0.01)."
            )
        if isinstance(rule, MeasuredError):
            return self._smallest(rule)
        if isinstance(rule, FixedOrder) and rule.order > max(self._old_order, self._multiple_of):
            raise OrderError(
                f"`order` is {rule.order} but this Mamba layer has {self._old_order} states; expected at "
                "most that. Pass fewer."
            )
        wanted = (
            rule.order
            if isinstance(rule, FixedOrder)
            else rule.choose(self._elimination.descending)
        )
        return self._of_order(-(-wanted // self._multiple_of) * self._multiple_of)

    def _smallest(self, rule: MeasuredError) -> Candidates:
        """Those of the smallest order that a bisection finds within the tolerance, on what was held out."""

        def within(found: Candidates) -> dict[str, LayerCut]:
            return {
                method: cut
                for method, cut in found.cuts.items()
                if (cut.output_error or 0.0) <= rule.relative
            }

        best = smallest(
            1,
            -(-self._old_order // self._multiple_of),
            lambda count: self._of_order(count * self._multiple_of),
            lambda found: bool(within(found)),
        )
        return self._unchanged() if best is None else Candidates(None, within(best))

    def _of_order(self, order: int) -> Candidates:
        if order >= self._old_order:
            return self._unchanged()
        kept, scales = self._elimination.kept(order)
        made = {
            "compensated": lambda: self._made(kept, scales, {}),
            "selected": lambda: self._made(kept, scales, self._added(kept, scales)),
        }
        cuts: dict[str, LayerCut] = {}
        for method in self._methods:
            try:
                cuts[method] = made[method]()
            except SSMReduceError:
                if len(self._methods) == 1:
                    raise
        return Candidates(None, cuts)

    def _added(self, kept: HostArray, scales: HostArray) -> dict[str, HostArray]:
        """What a fit adds to the weights of a selection."""
        before = self._mixer.selected(kept, scales)
        least = _ROWS * self._kind.unknowns(self._weights, kept.size)
        after = refitted(before, few_sequences(self._data.fitting, least))
        change = [after.to_B - before.to_B, after.to_C - before.to_C]
        rows = np.concatenate([np.zeros_like(before.to_delta), *change])
        return {"x_proj.weight": rows, "D": after.skip - before.skip}

    def _made(self, kept: HostArray, scales: HostArray, fitted: dict[str, HostArray]) -> MambaCut:
        """A cut as it would be written, with its output error on what was held out."""
        new = selected(self._kind, self._weights, kept, scales)
        moved = {name: new[name] + fitted.get(name, 0.0) for name in new}
        weights = {**self._weights, **self._storage.rounded(moved)}
        error = Mixer.of(weights).output_error(self._data.held_out, self._mixer)
        return MambaCut(
            self._kind,
            None,
            None,
            self._weights,
            weights,
            kept,
            scales,
            self._elimination.descending,
            output_error=error,
            fitted=fitted,
        )

    def _unchanged(self) -> Candidates:
        """The layer as it is."""
        every = np.arange(self._old_order)
        scores = np.zeros(self._old_order)
        whole = MambaCut(
            self._kind, None, None, self._weights, self._weights, every, np.ones(every.size), scores
        )
        return Candidates(None, {"compensated": whole})
