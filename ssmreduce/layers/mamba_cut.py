"""`MambaCut`: fewer states for a Mamba mixer, and all that follows; `MambaPlan` makes them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import array_api_compat
import numpy as np

from ssmreduce._checks import numeric_array
from ssmreduce._namespace import Array, HostArray, adjoint
from ssmreduce.errors import OrderError, ShapeError, SSMReduceError, UnreachableToleranceError
from ssmreduce.gramians.sequences import LayerData
from ssmreduce.layers.layer import Candidates, LayerCut, WeightStorage
from ssmreduce.layers.mamba_fit import Elimination, ReadoutFit, elimination, few_sequences, refitted
from ssmreduce.layers.mamba_merge import StateMaps, merged
from ssmreduce.layers.mamba_mixer import Mixer
from ssmreduce.layers.options import CutOptions, Method
from ssmreduce.reduction.measured import smallest
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule

if TYPE_CHECKING:
    from ssmreduce.layers.mamba import Mamba

METHODS: tuple[Method, ...] = ("compensated", "selected", "merged")
"""What a selective layer can be cut by."""

_ROWS = 64
"""Steps that are looked at for each number that a fit has to find for each output of a step."""


@dataclass(frozen=True, eq=False)
class MambaCut(LayerCut):
    """A Mamba mixer before and after a cut of its states.

    Attributes
    ----------
    maps : StateMaps
        What becomes of states, and of the rows that drive and read them, before any fit.
    ranked : (n,) array
        Root of what the outputs lose with each state, descending.
    fitted : dict of arrays
        What a fit has added to the new weights.
    """

    kind: Mamba
    maps: StateMaps
    ranked: HostArray
    _: KW_ONLY
    fitted: dict[str, HostArray] = field(default_factory=dict)

    @property
    def scores(self) -> HostArray:
        """What the outputs lose with each state, descending."""
        return self.ranked

    @property
    def without_image(self) -> tuple[str, ...]:
        """None of a selection: what is kept is kept as it is, or scaled; else the rates."""
        return () if self.maps.is_selection else ("A_log",)

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Map the moments of C as the states, h' = T h, and those of B as what reads them, C' = R C.

        Where states are kept those of C stay as they are, and those of B and A_log get the scales. Exact
        where a cut changes no output; for what was fitted near to that. Merged rates have no image: first
        moments become zero, second ones their mean.
        """
        power = 2 if squared else 1
        T, R = self.maps.drive**power, self.maps.read**power
        new = dict(moments)
        if "A_log" in new:
            new["A_log"] = self._carried_rates(new["A_log"], squared=squared)
        if "x_proj.weight" in new:
            delta, B, C = self.kind.split(new["x_proj.weight"], self.old_order)
            new["x_proj.weight"] = np.concatenate([delta, R @ B, T @ C])
        return new

    def _carried_rates(self, moments: HostArray, *, squared: bool) -> HostArray:
        if self.maps.is_selection:
            both = self.maps.drive * self.maps.read
            return np.asarray(moments @ adjoint(both**2 if squared else both))
        mean = np.mean(moments, axis=1, keepdims=True) if squared else np.zeros((len(moments), 1))
        return np.repeat(mean, self.new_order, axis=1)

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> MambaCut:
        """Take the same states of a copy, and add what a fit has added."""
        new = mapped(self.kind, weights, self.maps)
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
        """Return T, and zero."""
        return self.maps.drive, np.zeros_like(self.maps.drive)

    def reduce_state(self, state: Array) -> Array:
        """The hidden state, shape (..., D, n), with which a stream goes on: T h."""
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
        T = xp.asarray(self.maps.drive, dtype=state.dtype, device=array_api_compat.device(state))
        return (T @ state[..., None])[..., 0]


def mapped(kind: Mamba, weights: dict[str, HostArray], maps: StateMaps) -> dict[str, HostArray]:
    """Return the weights that a cut changes, before any fit."""
    delta, B, C = kind.split(weights["x_proj.weight"], kind.order(weights))
    return {
        "A_log": weights["A_log"] @ adjoint(maps.rates),
        "x_proj.weight": np.concatenate([delta, maps.drive @ B, maps.read @ C]),
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
            For an `ErrorBound`: nothing bounds the error.
        """
        rule = as_rule(order)
        if isinstance(rule, ErrorBound):
            raise UnreachableToleranceError(
                f"`order` is {rule} but nothing bounds the error of a cut of Mamba; expected another rule. "
                "Try MeasuredError(0.01)."
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
            self._at_multiple,
            lambda found: bool(within(found)),
        )
        return self._unchanged() if best is None else Candidates(None, within(best))

    def _at_multiple(self, count: int) -> Candidates | None:
        try:
            return self._of_order(count * self._multiple_of)
        except SSMReduceError:  # more than merged states can say
            return None

    def _of_order(self, order: int) -> Candidates:
        if order >= self._old_order:
            return self._unchanged()
        cuts: dict[str, LayerCut] = {}
        for method in self._methods:
            try:
                maps = self._merged(order) if method == "merged" else self._selected(order)
                cuts[method] = self._made(
                    maps, {} if method == "compensated" else self._added(maps)
                )
            except SSMReduceError:
                if method == self._methods[-1] and not cuts:
                    raise
        return Candidates(None, cuts)

    def _selected(self, order: int) -> StateMaps:
        return StateMaps.selection(*self._elimination.kept(order), self._old_order)

    def _merged(self, order: int) -> StateMaps:
        """Maps to states with few rates.

        Raises
        ------
        OrderError
            If there are not as many that do anything.
        """
        sequences = few_sequences(self._data.fitting, 0.0)
        lengths = np.sqrt(np.diagonal(self._elimination.K))
        moment, _ = ReadoutFit(self._mixer, sequences).moments
        maps = merged(self._mixer, sequences, lengths, moment, order)
        if len(maps.drive) < order:
            raise OrderError(
                f"`order` is {order}, but {len(maps.drive)} states say all that merged ones can; expected at "
                "most that. Ask for it, or for method='selected'."
            )
        return maps

    def _added(self, maps: StateMaps) -> dict[str, HostArray]:
        """What a fit adds to the weights of other states."""
        before = maps.mapped(self._mixer)
        least = _ROWS * self._kind.unknowns(self._weights, len(maps.drive))
        after = refitted(before, few_sequences(self._data.fitting, least))
        change = [after.to_B - before.to_B, after.to_C - before.to_C]
        rows = np.concatenate([np.zeros_like(before.to_delta), *change])
        return {"x_proj.weight": rows, "D": after.skip - before.skip}

    def _made(self, maps: StateMaps, fitted: dict[str, HostArray]) -> MambaCut:
        """A cut as it would be written, with its output error on what was held out."""
        new = mapped(self._kind, self._weights, maps)
        moved = {name: new[name] + fitted.get(name, 0.0) for name in new}
        weights = {**self._weights, **self._storage.rounded(moved)}
        error = Mixer.of(weights).output_error(self._data.held_out, self._mixer)
        return MambaCut(
            self._kind,
            None,
            None,
            self._weights,
            weights,
            maps,
            self._elimination.descending,
            output_error=error,
            fitted=fitted,
        )

    def _unchanged(self) -> Candidates:
        """The layer as it is."""
        count = self._old_order
        maps = StateMaps.selection(np.arange(count), np.ones(count), count)
        weights = self._weights
        whole = MambaCut(self._kind, None, None, weights, weights, maps, np.zeros(count))
        return Candidates(None, {"compensated": whole})
