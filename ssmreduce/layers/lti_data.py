"""Cuts of a linear layer that know its data: candidates, each measured on sequences that none was fitted to.

White-noise balancing asks what a layer could do. Inside a network it is given inputs with structure. From
recorded inputs, and outputs that are to be reproduced, come up to four candidates of one order:

- balanced truncation as without data, with its bound where there is one;
- the same poles and input weights with output weights by least squares on the sequences;
- balanced truncation with P = E[x xᵀ] of the states x = [Re h; Im h] on the sequences in place of the
  controllability Gramian, and such output weights;
- the layer's own modes that fit the outputs best, by matching pursuit, with such output weights.

With Q from a Lyapunov equation the third is stable whatever P is, since A₁₁ᵀ Σ A₁₁ - Σ ≤ 0 holds for any P.
Only the first has a bound: data say nothing about inputs that they do not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.equations.dense import DenseFactors
from ssmreduce.errors import (
    OrderError,
    SSMReduceError,
    UnreachableToleranceError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.gramians.factors import gramian_factor
from ssmreduce.gramians.sequences import (
    RIDGE,
    FeatureSums,
    LayerData,
    feature_sums,
    output_error,
    output_matrix,
    state_moment,
)
from ssmreduce.hankel import decomposed
from ssmreduce.layers.cut import Candidates, LayerCut
from ssmreduce.layers.diagonal_cut import balanced_layer, diagonal_cut
from ssmreduce.layers.layer import WeightStorage
from ssmreduce.layers.lti_cut import LTICut
from ssmreduce.layers.lti_modes import SelectedModes
from ssmreduce.layers.lti_plan import LTIPlan
from ssmreduce.layers.lti_selection import LTISelection
from ssmreduce.layers.options import CutOptions, Method
from ssmreduce.layers.selection import pursue_target
from ssmreduce.reduction.balanced_diagonal import balanced_system
from ssmreduce.reduction.balanced_system import BalancedSystem
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.measured_order import smallest
from ssmreduce.reduction.order import (
    ErrorBound,
    FixedOrder,
    MeasuredError,
    OrderRule,
    as_rule,
)
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import unchecked
from ssmreduce.systems.state_space import StateSpace

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer

_EPS = float(np.finfo(np.float64).eps)

_ROUNDINGS = 16.0
"""Directions of the states below 16 k eps of P, in units in which its diagonal is 1, are rounding."""


class DataPlan:
    """Makes the candidates for one layer."""

    def __init__(
        self,
        kind: LTILayer,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> None:
        self._kind, self._weights, self._storage = kind, weights, storage
        self._order, self._options, self._data = order, options, data
        self._method, self._horizon = options.method, options.horizon
        self._is_fixed = isinstance(as_rule(order), FixedOrder)
        self._system = kind.read(weights).to_host()
        try:
            balancing = balanced_layer(self._system, options.horizon)
        except UnstableSystemError:
            # Poles of trained layers may lie a little outside of the circle.
            if options.horizon is not None:
                raise
            self._horizon = data.horizon
            options = replace(options, horizon=data.horizon)
            balancing = balanced_layer(self._system, data.horizon)
        self._white = LTIPlan(kind, weights, order, options, storage, balancing)
        self._makers: dict[Method, Callable[[int], LTICut]] = {
            "white refit": self._white_refitted,
            "balanced": self._balanced,
            "selected": self._selected,
        }
        if options.method in ("compensated", "merged"):
            raise UnsupportedLayerError(
                f"`method` is {options.method!r}, but {type(kind).__name__} is no selective layer; expected "
                "another. Try 'selected', which fits the weights that read the states, or leave the layer "
                "out with options=CutOptions(exclude=...), and cut it by another call."
            )

    def candidates(self) -> Candidates:
        """The cuts of one order; those that the layer cannot store are left out.

        Raises
        ------
        OrderError
            If the order is above the number of states that the sequences excite.
        SSMReduceError
            If there is no white one.
        """
        rule = as_rule(self._order)
        if isinstance(rule, MeasuredError):
            return self._smallest(rule)
        fixed = rule if isinstance(rule, FixedOrder) and self._method != "white" else None
        try:
            white = self._white.cut()
        except (UnreachableToleranceError, UnsupportedLayerError, UnstableSystemError):
            # The layer cannot hold it, nor one of a few lower orders.
            found = None if fixed is None else self._without_white(fixed)
            if found is None or not found.cuts:
                raise
            return found
        if white.passed_over and fixed is not None:
            try:
                found = self._without_white(fixed)
            except SSMReduceError:  # then the lower order, of which there is a warning
                found = Candidates(None, {})
            if found.cuts:
                return found
        if white.new_order == white.old_order:
            return Candidates(white, {"white": white})
        if not isinstance(rule, ErrorBound):
            return self._of_order(white, white.new_order)
        if self._method not in ("best", "white"):
            raise OrderError(
                f"`order` is an ErrorBound but `method` is {self._method!r}; expected 'white', which "
                "alone has a bound. Try MeasuredError."
            )
        return Candidates(white, {"white": self._measured(white)})

    def _without_white(self, rule: FixedOrder) -> Candidates:
        """The other cuts of the order that was asked for, those that the layer can hold."""
        return self._of_order(None, self._options.rounded_up(rule.order))

    def _smallest(self, rule: MeasuredError) -> Candidates:
        """The candidates of the smallest order of which one is within the tolerance on what was held out."""

        def attempt(count: int) -> Candidates | None:
            white = self._white.at_size(count)
            try:
                found = self._of_order(white, self._options.size(count))
            except (
                SSMReduceError
            ):  # more than the data excite, or poles that the layer cannot store
                return None
            return found if found.cuts else None

        def within(found: Candidates) -> dict[str, LayerCut]:
            cuts = found.cuts.items()
            return {
                method: cut for method, cut in cuts if (cut.output_error or 0.0) <= rule.relative
            }

        best = smallest(
            1,
            self._options.count(self._kind.order(self._weights)),
            attempt,
            lambda found: bool(within(found)),
        )
        if best is None:
            whole = self._white.unchanged()
            return Candidates(whole, {"white": whole})
        return Candidates(best.white, within(best))

    def _of_order(self, white: LTICut | None, order: int) -> Candidates:
        """The white cut, and those of the same order that know the data, as far as they are wanted."""
        if self._method not in ("best", "white"):
            own = self._makers[self._method](order)
            return Candidates(white, {self._method: self._measured(own)})
        found: dict[str, LTICut] = {} if white is None else {"white": white}
        makers = {} if self._method == "white" else self._makers
        for method, make in makers.items():
            try:
                found[method] = make(order)
            except OrderError:  # more than the data excite
                if self._is_fixed:
                    raise
            except SSMReduceError:  # poles that the layer cannot store
                continue
        return Candidates(white, {method: self._measured(cut) for method, cut in found.items()})

    def _check_excited(self, order: int) -> None:
        """Raise `OrderError` if an order, before it was rounded up, is above what the data excite."""
        rule = as_rule(self._order)
        if isinstance(rule, FixedOrder):
            order = least = min(rule.order, order)
        else:
            least = self._options.rounded_down(order - 1) + 1
        most = self._data_balancing.excited(least)
        if most < least:
            raise OrderError(
                f"`order` is {order}, but the sequences of `data` excite {most} of "
                f"{self._kind.order(self._weights)} states; expected at most {most}. Ask for that, or "
                "calibrate with more sequences."
            )

    def _white_refitted(self, order: int) -> LTICut:
        return self._refitted(self._white, "balanced truncation with refit", order)

    def _balanced(self, order: int) -> LTICut:
        self._check_excited(order)
        return self._refitted(
            self._balanced_plan, "data-driven balanced truncation with refit", order
        )

    @cached_property
    def _own_sums(self) -> FeatureSums:
        """Those of the layer as it is."""
        return self._sums_of(self._system)

    @cached_property
    def _data_balancing(self) -> DataBalancing:
        """The layer as it is, between what the sequences excite and what is observed."""
        both = self._kind.both_directions
        return data_balancing(
            self._system, self._data, self._horizon, self._own_sums, both_directions=both
        )

    @cached_property
    def _balanced_plan(self) -> LTIPlan:
        return replace(self._white, balancing=self._data_balancing)

    @cached_property
    def _modes_plan(self) -> LTIPlan:
        whole = self._white.unchanged().reduction
        modes = SelectedModes(self._system.to_dense(), self._data.fitting, whole)
        return replace(self._white, balancing=modes)

    def _refitted(self, plan: LTIPlan, method: str, order: int) -> LTICut:
        """A cut whose output weights fit the sequences, in the states of a reduction."""
        reduction, stored = plan.reduced(order)
        system = reduction.system
        sums = self._sums_of(system.to_host())
        if self._method == "white refit":
            self._check_excited(order)
        K = sums.fitted()
        C = output_matrix(K, both_directions=self._kind.both_directions)
        parts = tuple(
            _with_readout(part, C[at][:, : part.system.order], method)
            for part, at in zip(reduction.parts, np.ndindex(system.batch_shape), strict=False)
        )
        fitted = replace(_with_readout(reduction, C, method), parts=parts)
        cut, _ = plan.written(fitted, stored)
        return replace(cut, readout_change=C - system.C)

    def _selected(self, order: int) -> LTICut:
        """The cut that keeps modes of the layer, picked for each channel by itself."""
        if self._is_fixed or self._method == "selected":
            self._check_excited(order)
        if isinstance(self._system, StateSpace):
            return self._refitted(self._modes_plan, "selection with refit", order)
        sums, system = self._own_sums, self._system
        size = 4 if self._kind.both_directions else 2
        batch, k, p = system.batch_shape, sums.gram.shape[-1], sums.seen.shape[-1]
        pairs = zip(sums.gram.reshape(-1, k, k), sums.seen.reshape(-1, k, p), strict=True)
        picked = [pursue_target(gram, seen, size, order, tolerance=RIDGE) for gram, seen in pairs]
        kept = np.stack(picked).reshape(*batch, order)
        K = sums.of_groups(kept, size).fitted()
        fitted = output_matrix(K, both_directions=self._kind.both_directions)
        change = fitted - np.take_along_axis(system.C, kept[..., None, :], axis=-1)
        whole = self._white.unchanged().reduction
        return LTISelection.made(
            self._kind, self._weights, system, kept, change, self._storage, whole
        )

    def _measured(self, cut: LTICut) -> LTICut:
        """The cut with its output error on what was held out."""
        error = output_error(
            cut.reduction.system,
            self._data.held_out,
            both_directions=self._kind.both_directions,
        )
        return replace(cut, output_error=error)

    def _sums_of(self, system: System) -> FeatureSums:
        both = self._kind.both_directions
        return feature_sums(system, self._data.fitting, both_directions=both)


class DataBalancing:
    """The systems of a layer balanced between P of data and the observability Gramian."""

    def __init__(self, system: System, P: HostArray, horizon: int | None, length: int) -> None:
        self._system, self._stored = system, P.shape[-1] // 2
        self._parts: list[BalancedSystem] = []
        self._excited = 0
        for single, moment in zip(
            single_systems(system), P.reshape(-1, *P.shape[-2:]), strict=True
        ):
            Z = _factor(moment)
            self._excited = max(self._excited, Z.shape[1])
            factors = decomposed(DenseFactors(Z, gramian_factor(single, 1, horizon)))
            # No theorem bounds the error, nor any theorem the poles of a finite horizon.
            self._parts.append(balanced_system(single, length, factors=factors))

    @property
    def hsv(self) -> HostArray:
        """The singular values of each system, descending, shape (systems, 2n)."""
        return np.stack([part.hsv for part in self._parts])

    def truncate(self, order: int | OrderRule, *, common_order: bool) -> Reduction:
        """Cut every system to at most `order` states, or to as many as the data excite."""
        rule = as_rule(order)
        cuts = [diagonal_cut(part, rule) for part in self._parts]
        return replace(assemble(self._system, cuts), method="data-driven balanced truncation")

    def excited(self, order: int) -> int:
        """How many states the data excite in the system where they excite most; at most `order`."""
        less = min(order, self._stored - 1)  # to all of its states a system is not truncated
        if self._excited >= 2 * order or not less:
            return order
        most = max(int(diagonal_cut(part, FixedOrder(less)).order) for part in self._parts)
        return order if most == less else most

    def budget_values(self) -> list[HostArray]:
        """Every other value: a stored state stands for two real ones."""
        return [part.hsv[::2] for part in self._parts]


def data_balancing(
    system: System,
    data: LayerData,
    horizon: int | None,
    sums: FeatureSums | None = None,
    *,
    both_directions: bool,
) -> DataBalancing:
    """Balance between what the sequences excite and what is observed; `sums` are those of the fit."""
    if sums is None:
        sums = feature_sums(system, data.fitting, both_directions=both_directions)
    P = sums.moment  # all steps alike: P with weights is far worse
    if isinstance(system, DiagonalStateSpace):
        P = state_moment(P, both_directions=both_directions)
    P = P / np.count_nonzero(data.fitting.weights)
    return DataBalancing(system, P, horizon, data.horizon)


def _factor(P: HostArray) -> HostArray:
    """Z with P = Z Zᵀ, without the directions that rounding of P made."""
    lengths = np.sqrt(np.maximum(np.diagonal(P), 0.0))
    units = np.where(lengths > 0.0, lengths, 1.0)
    values, vectors = np.linalg.eigh(P / units[:, None] / units)
    used = values > _ROUNDINGS * len(P) * _EPS
    return np.asarray(lengths[:, None] * vectors[:, used] * np.sqrt(values[used]))


def _with_readout(reduction: Reduction, C: HostArray, method: str) -> Reduction:
    """A reduction with other output weights, about which no theorem says anything."""
    system = unchecked(reduction.system, C=C)
    return replace(reduction, system=system, error_bound=None, method=method)
