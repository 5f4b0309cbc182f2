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
from dataclasses import dataclass, replace
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
    FeatureSums,
    LayerData,
    feature_sums,
    output_error,
    output_matrix,
    state_moment,
)
from ssmreduce.hankel import decomposed
from ssmreduce.layers.cut import Candidates
from ssmreduce.layers.diagonal_cut import DiagonalisedDense
from ssmreduce.layers.lti_cut import LTICut
from ssmreduce.layers.lti_plan import LTIPlan
from ssmreduce.layers.lti_selection import LTISelection, SelectedModes, picked_groups
from ssmreduce.layers.options import Method
from ssmreduce.reduction.balanced_batch import BalancedBatch
from ssmreduce.reduction.balanced_diagonal import balanced_system
from ssmreduce.reduction.balanced_system import BalancedSystem
from ssmreduce.reduction.batch import single_systems
from ssmreduce.reduction.measured_order import smallest
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.pytree import unchecked
from ssmreduce.systems.state_space import StateSpace

if TYPE_CHECKING:
    from ssmreduce.layers.lti import LTILayer

_EPS = float(np.finfo(np.float64).eps)

_ROUNDINGS = 16.0
"""Directions of the states below 16 k eps of P, in units in which its diagonal is 1, are rounding."""


@dataclass(frozen=True, eq=False)
class DataPlan(LTIPlan):
    """Makes the candidates for one layer, of which `cut` is the one without data."""

    system: System
    data: LayerData

    def candidates(self) -> Candidates:
        """The cuts of one order; those that the layer cannot store are left out.

        Raises
        ------
        OrderError
            If the order is above the number of states that the sequences excite.
        SSMReduceError
            If there is no white one.
        """
        rule = as_rule(self.order)
        if isinstance(rule, MeasuredError):
            return self._smallest(rule)
        fixed = rule if isinstance(rule, FixedOrder) and self.options.method != "white" else None
        try:
            white = self.cut()
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
        if self.options.method not in ("best", "white"):
            raise OrderError(
                f"`order` is an ErrorBound but `method` is {self.options.method!r}; expected 'white', which "
                "alone has a bound. Try MeasuredError."
            )
        return Candidates(white, {"white": self._measured(white)})

    def _without_white(self, rule: FixedOrder) -> Candidates:
        """The other cuts of the order that was asked for, those that the layer can hold."""
        return self._of_order(None, self.options.rounded_up(rule.order))

    def _smallest(self, rule: MeasuredError) -> Candidates:
        """The candidates of the smallest order of which one is within the tolerance on what was held out."""

        def attempt(count: int) -> Candidates | None:
            order = self.options.size(count)
            try:
                white = self.of_order(order)
            except UnsupportedLayerError:
                raise
            except SSMReduceError:
                white = None
            try:
                found = self._of_order(white, order)
            except SSMReduceError:  # more than data excite, or poles that the layer cannot store
                return None
            return found if found.cuts else None

        best = smallest(
            1,
            self.options.count(self.kind.order(self.weights)),
            attempt,
            lambda found: bool(found.within(rule.relative).cuts),
        )
        if best is None:
            whole = self.unchanged()
            return Candidates(whole, {"white": whole})
        return best.within(rule.relative)

    def _of_order(self, white: LTICut | None, order: int) -> Candidates:
        """The white cut, and those of the same order that know the data, as far as they are wanted."""
        makers: dict[Method, Callable[[int], LTICut]] = {
            "white refit": self._white_refitted,
            "balanced": self._balanced,
            "selected": self._selected,
        }
        if self.options.method not in ("best", "white"):
            own = makers[self.options.method](order)
            return Candidates(white, {self.options.method: self._measured(own)})
        found: dict[str, LTICut] = {} if white is None else {"white": white}
        for method, make in makers.items() if self.options.method == "best" else ():
            try:
                found[method] = make(order)
            except OrderError:  # more than the data excite
                if isinstance(as_rule(self.order), FixedOrder):
                    raise
            except SSMReduceError:  # poles that the layer cannot store
                continue
        return Candidates(white, {method: self._measured(cut) for method, cut in found.items()})

    def _check_excited(self, order: int) -> None:
        """Raise `OrderError` if an order, before it was rounded up, is above what the data excite."""
        rule = as_rule(self.order)
        if isinstance(rule, FixedOrder):
            order = least = min(rule.order, order)
        else:
            least = self.options.rounded_down(order - 1) + 1
        most = self._excited(least)
        if most < least:
            raise OrderError(
                f"`order` is {order}, but the sequences of `data` excite {most} of "
                f"{self.kind.order(self.weights)} states; expected at most {most}. Ask for that, or "
                "calibrate with more sequences."
            )

    def _excited(self, order: int) -> int:
        """How many states the data excite in the system where they excite most; at most `order`."""
        # To all of its states a system is not truncated.
        less = min(order, self.kind.order(self.weights) - 1)
        every = [part.factors.factors.Z for part in self._balanced_parts if part.factors]
        if not less or max(Z.shape[1] for Z in every) >= 2 * order:
            return order
        most = int(np.max(self._truncated_by_data(FixedOrder(less)).order))
        return order if most == less else most

    def _white_refitted(self, order: int) -> LTICut:
        return self._refitted(self.truncate, "balanced truncation with refit", order)

    def _balanced(self, order: int) -> LTICut:
        self._check_excited(order)
        method = "data-driven balanced truncation with refit"
        return self._refitted(self._truncated_by_data, method, order)

    def _truncated_by_data(self, rule: OrderRule) -> Reduction:
        return BalancedBatch(self.system, self._balanced_parts).truncate(rule)

    @cached_property
    def _own_sums(self) -> FeatureSums:
        """Those of the layer as it is."""
        return self._sums_of(self.system)

    @cached_property
    def _balanced_parts(self) -> list[BalancedSystem]:
        """The layer as it is, between what the sequences excite and what is observed."""
        own = self.kind, self.system, self.data
        return data_balancing(*own, self.options.horizon, self._own_sums)

    @cached_property
    def _modes(self) -> SelectedModes:
        whole = self.unchanged().reduction
        return SelectedModes(self.system.to_dense(), self.data.fitting, whole)

    def _refitted(
        self, truncate: Callable[[OrderRule], Reduction], method: str, order: int
    ) -> LTICut:
        """A cut whose output weights fit the sequences, in the states of a reduction."""
        reduction, stored = replace(self, truncate=truncate).reduced(order)
        system = reduction.system
        sums = self._sums_of(system.to_host())
        if self.options.method == "white refit":
            self._check_excited(order)
        C = output_matrix(sums.fitted(), both_directions=self.kind.both_directions)
        parts = tuple(
            _with_readout(part, C[at][:, : part.system.order], method)
            for part, at in zip(reduction.parts, np.ndindex(system.batch_shape), strict=False)
        )
        fitted = replace(_with_readout(reduction, C, method), parts=parts)
        cut, _ = self.written(fitted, stored)
        return replace(cut, readout_change=C - system.C)

    def _selected(self, order: int) -> LTICut:
        """The cut that keeps modes of the layer, picked for each channel by itself."""
        if isinstance(as_rule(self.order), FixedOrder) or self.options.method == "selected":
            self._check_excited(order)
        if isinstance(self.system, StateSpace):
            return self._refitted(self._modes.truncate, "selection with refit", order)
        sums, system = self._own_sums, self.system
        size = 4 if self.kind.both_directions else 2
        kept = picked_groups(sums, size, order)
        K = sums.of_groups(kept, size).fitted()
        fitted = output_matrix(K, both_directions=self.kind.both_directions)
        change = fitted - np.take_along_axis(system.C, kept[..., None, :], axis=-1)
        whole = self.unchanged().reduction
        return LTISelection.made(self.kind, self.weights, system, kept, change, self.storage, whole)

    def _measured(self, cut: LTICut) -> LTICut:
        """The cut with its output error on what was held out."""
        both, system = self.kind.both_directions, cut.reduction.system
        error = output_error(system, self.data.held_out, both_directions=both)
        return replace(cut, output_error=error)

    def _sums_of(self, system: System) -> FeatureSums:
        both = self.kind.both_directions
        return feature_sums(system, self.data.fitting, both_directions=both)


def data_balancing(
    kind: LTILayer, system: System, data: LayerData, horizon: int | None, sums: FeatureSums
) -> list[BalancedSystem]:
    """Balance each system between what `sums` of sequences say is excited and what is observed."""
    P = sums.moment  # all steps alike: P with weights is far worse
    if isinstance(system, DiagonalStateSpace):
        P = state_moment(P, both_directions=kind.both_directions)
    P = P / np.count_nonzero(data.fitting.weights)
    parts = []
    for single, own in zip(single_systems(system), P.reshape(-1, *P.shape[-2:]), strict=True):
        factors = decomposed(DenseFactors(_factor(own), gramian_factor(single, 1, horizon)))
        # No theorem bounds the error, nor any theorem the poles of a finite horizon.
        parts.append(
            balanced_system(single, data.horizon, factors=factors, dense=DiagonalisedDense)
        )
    return parts


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
