"""`SelectiveLayer`: one whose coefficients depend on its input, cut by data alone as a selection of states.

`SelectivePlan` finds the order that a rule asks for; `SelectiveCut` is a selection, the same in each channel
of a group. Mamba (`ssmreduce.layers.mamba`) and Mamba-2 (`ssmreduce.layers.mamba2`) are such layers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce._checks import numeric_array
from ssmreduce.errors import (
    NonFiniteError,
    OrderError,
    ShapeError,
    SSMReduceError,
    UnreachableToleranceError,
    UnsupportedLayerError,
)
from ssmreduce.gramians.sequences import LayerData
from ssmreduce.layers.cut import Candidates, LayerCut
from ssmreduce.layers.layer import Layer, Weights, WeightStorage
from ssmreduce.layers.options import CutOptions, Method
from ssmreduce.reduction.measured_order import smallest
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule
from ssmreduce.systems.diagonal import System


class RunsSequences(Protocol):
    """What computes the outputs of a layer."""

    def output(self, inputs: HostArray) -> HostArray:
        """Return the layer's outputs for inputs (S, L, m), from rest."""


class SelectiveLayer(Layer):
    """A layer that runs no one system, since its coefficients depend on its input; cut by data
    alone.

    A cut keeps, or merges, the states that matter for the inputs that were recorded.

    Attributes
    ----------
    title : str
        What the layer is called in messages.
    methods : tuple of str
        What it can be cut by, as `CutOptions` names them.

    Examples
    --------
    >>> from ssmreduce.layers.mamba import Mamba
    >>> Mamba().methods, Mamba().needs_data
    (('compensated', 'selected', 'merged'), True)
    """

    scores_name = "root of the output lost with each state"
    needs_data = True
    masked_by = "attention_mask"
    title: str = ""
    methods: tuple[Method, ...] = ()

    @abstractmethod
    def planned(
        self,
        weights: dict[str, HostArray],
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> SelectivePlan[LayerCut]:
        """Return what makes cuts of a layer with these weights."""

    @abstractmethod
    def mixer(self, weights: Mapping[str, HostArray]) -> RunsSequences:
        """Return what computes the outputs of a layer with these weights."""

    def ports(self, weights: Weights) -> tuple[tuple[int, ...], int, int]:
        """Return (), for no batch axes, and the numbers of inputs and outputs."""
        return (), int(weights["in_proj.weight"].shape[1]), int(weights["out_proj.weight"].shape[0])

    def output(self, weights: Weights, inputs: HostArray) -> HostArray:
        """Return the layer's outputs for sequences, from rest, with its projections.

        Parameters
        ----------
        weights : dict of arrays
            Its weights.
        inputs : (N, L, m) array
            Sequences.

        Returns
        -------
        (N, L, p) array
            Outputs.
        """
        self.check_readable(weights)
        return self.mixer(weights).output(inputs)

    def rests_while_masked(self, weights: Weights) -> bool:
        """Tell whether the convolution sees zeros at masked steps: there is no bias before it."""
        return not np.any(weights.get("in_proj.bias", 0.0))

    def check_readable(self, weights: Weights) -> None:
        """Raise unless the weights fit together and are finite."""
        self.check(weights)

    def read(self, weights: Weights) -> System:
        """Raise `UnsupportedLayerError`: the layer runs no one system."""
        raise UnsupportedLayerError(
            f"this {self.title} layer is selective: its A, B and C depend on its input, so that it runs no "
            "one system; expected a linear time-invariant layer. Cut it by data: "
            "reduce_model(model, order, data=calibrate(model, batches))."
        )

    def scores(self, weights: Weights, horizon: int | None = None) -> HostArray:
        """Raise `UnsupportedLayerError`: without data no state of a selective layer has a score."""
        raise self._needs_data()

    def data_scores(
        self, weights: Weights, data: LayerData, horizon: int | None = None
    ) -> HostArray:
        """Return the roots of what the outputs lose with each state, descending."""
        return self.planned(dict(weights), CutOptions(), _Exact(), data).scores

    def shares(self, weights: Weights, horizon: int | None) -> tuple[HostArray, HostArray]:
        """Raise `UnsupportedLayerError`: there are no Hankel singular values, with data or without."""
        raise UnsupportedLayerError(
            f"{self.title} is selective and has no Hankel singular values to record; expected "
            "linear time-invariant layers. Leave it out with options=CutOptions(exclude=...), or do without "
            "a trace."
        )

    def plan(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
    ) -> LayerCut:
        """Raise `UnsupportedLayerError`: there is no cut without data."""
        raise self._needs_data()

    def candidates(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> Candidates:
        """Plan a cut by each method, or by the one that is asked for.

        Raises
        ------
        UnsupportedLayerError
            If the layer cannot be cut by the method that `options` asks for.
        OrderError, UnreachableToleranceError
            As `SelectivePlan.candidates`.
        """
        if options.method not in ("best", *self.methods):
            raise UnsupportedLayerError(
                f"`method` is {options.method!r}, by which {self.title} cannot be cut; expected one of "
                f"'best', {', '.join(map(repr, self.methods))}. Leave the layer out with "
                "options=CutOptions(exclude=...), and cut it by another call."
            )
        self.check_readable(weights)
        return self.planned(weights, options, storage, data).candidates(order)

    def _needs_data(self) -> UnsupportedLayerError:
        return UnsupportedLayerError(
            f"{self.title} is selective: how much a state matters depends on what the layer is given, and "
            "there are no data; expected some. Pass data: reduce_model(model, order, data=calibrate(model, "
            "batches)), or pass over it beside others: options=CutOptions(skip_unsupported=True)."
        )


@dataclass(frozen=True, eq=False)
class SelectiveCut(LayerCut):
    """A selective layer before and after a cut of its states.

    Attributes
    ----------
    ranked : (n,) array
        Root of what the outputs lose with each state, descending.

    Examples
    --------
    >>> import torch
    >>> from mambapy.mamba import MambaBlock, MambaConfig
    >>> from ssmreduce import Calibration, CutOptions, reduce_layer
    >>> _ = torch.manual_seed(0)
    >>> block = MambaBlock(MambaConfig(8, 1, d_state=8))
    >>> data = Calibration.of_inputs({"model": torch.randn(16, 20, 8)})
    >>> cut = reduce_layer(block, 4, data=data, options=CutOptions(method="selected")).cut
    >>> cut.new_order, cut.scores.shape, cut.reduce_state(torch.zeros(16, 8)).shape
    (4, (8,), torch.Size([16, 4]))
    """

    ranked: HostArray

    @property
    def scores(self) -> HostArray:
        """What the outputs lose with each state, descending."""
        return self.ranked

    def reduce_state(self, state: Array) -> Array:
        """Return the hidden state with which a stream continues after the cut.

        Parameters
        ----------
        state : (..., channels, n) array
            State of the recurrence before the cut, the states on the last axis, with any leading
            axes; Mamba-2 has (..., heads, channels of each, n). The state of the convolution does
            not change.

        Returns
        -------
        (..., channels, r) array
            T h; `state` itself if nothing was cut.

        Raises
        ------
        ShapeError
            If the last axes do not fit.
        """
        state = numeric_array(state, "state", 0)
        if tuple(state.shape[-len(self.state_shape) :]) != self.state_shape:
            raise ShapeError(
                f"`state` has shape {tuple(state.shape)}; expected one whose last axes are "
                f"{self.state_shape}, the channels and states before the cut. Pass the state of the "
                "recurrence alone, not that of the convolution."
            )
        if self.new_order == self.old_order:
            return state
        xp, device = array_api_compat.array_namespace(state), array_api_compat.device(state)
        T = xp.asarray(self.state_maps()[0], dtype=state.dtype, device=device)
        return xp.matmul(T, state[..., None])[..., 0]


class _Exact:
    """How weights are held that are not written."""

    eps = 0.0

    def rounded(self, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """Return them as they are."""
        return dict(values)


C = TypeVar("C", bound=LayerCut, covariant=True)


class SelectivePlan(Generic[C]):
    """Makes the candidates for one layer.

    Parameters
    ----------
    kind : SelectiveLayer
        What is cut.
    order : int
        States before.
    options : CutOptions
        The method that is asked for, and which orders may be stored.

    Attributes
    ----------
    old_order : int
        States before.
    methods : tuple of str
        Those that are asked for.

    Examples
    --------
    A rule chooses by the scores of the states, or measures on the data that are held out:

    >>> import torch
    >>> from mambapy.mamba import MambaBlock, MambaConfig
    >>> from ssmreduce import Calibration, CutOptions, MeasuredError, reduce_layer
    >>> _ = torch.manual_seed(0)
    >>> block = MambaBlock(MambaConfig(8, 1, d_state=8))
    >>> data = Calibration.of_inputs({"model": torch.randn(16, 20, 8)})
    >>> options = CutOptions(method="selected")
    >>> result = reduce_layer(block, MeasuredError(0.1), data=data, options=options)
    >>> result.new_order < 8, result.output_error <= 0.1
    (True, True)
    """

    def __init__(self, kind: SelectiveLayer, order: int, options: CutOptions) -> None:
        self._title, self.old_order = kind.title, order
        self._options = options
        self.methods = kind.methods if options.method == "best" else (options.method,)

    @property
    @abstractmethod
    def scores(self) -> HostArray:
        """Root of what the outputs lose with each state, descending."""

    @abstractmethod
    def made(self, method: Method, order: int) -> C:
        """Return the cut to `order` states by `method`.

        Raises
        ------
        OrderError
            If the method cannot make that many states.
        """

    @abstractmethod
    def unchanged(self) -> C:
        """Return the layer as it is."""

    def candidates(self, order: int | OrderRule) -> Candidates:
        """Return the cuts, by method, to the order that a rule chooses.

        Parameters
        ----------
        order : int or OrderRule
            States to keep, or a rule; `MeasuredError` is met on the data that are held out.

        Returns
        -------
        Candidates
            One cut for each method that can make it.

        Raises
        ------
        OrderError
            If `order` is a number above that of the layer's states, or no state contributes.
        UnreachableToleranceError
            For an `ErrorBound`: nothing bounds the error.
        NonFiniteError
            If outputs of a cut layer overflow.
        """
        rule = as_rule(order)
        if isinstance(rule, ErrorBound):
            raise UnreachableToleranceError(
                f"`order` is {rule} but nothing bounds the error of a cut of {self._title}; expected another "
                "rule. Try MeasuredError(0.01)."
            )
        if isinstance(rule, MeasuredError):
            return self._smallest(rule)
        if isinstance(rule, FixedOrder) and rule.order > max(self.old_order, self._options.size(1)):
            raise OrderError(
                f"`order` is {rule.order} but this {self._title} layer has {self.old_order} states; "
                "expected at most that. Pass fewer."
            )
        wanted = rule.order if isinstance(rule, FixedOrder) else rule.choose(self.scores)
        return self._of_order(self._options.rounded_up(wanted))

    def _smallest(self, rule: MeasuredError) -> Candidates:
        """Those of the smallest order that a bisection finds within the tolerance, on what was held out."""
        _ = self.scores  # what is wrong with the layer or the data is said here
        best = smallest(
            1,
            self._options.count(self.old_order),
            lambda count: self._of_order(self._options.size(count)),
            lambda found: bool(found.within(rule.relative).cuts),
            passed_over=OrderError,  # more states than a method can make
        )
        return self._whole() if best is None else best.within(rule.relative)

    def _of_order(self, order: int) -> Candidates:
        if order >= self.old_order:
            return self._whole()
        cuts: dict[str, LayerCut] = {}
        errors: list[SSMReduceError] = []
        for method in self.methods:
            try:
                cuts[method] = self._finite(method, order)
            except SSMReduceError as error:
                errors.append(error)
        if not cuts:
            raise min(errors, key=lambda error: isinstance(error, OrderError))
        return Candidates(None, cuts)

    def _finite(self, method: Method, order: int) -> C:
        cut = self.made(method, order)
        cut.kind.check(cut.new_weights)
        if cut.output_error is not None and not math.isfinite(cut.output_error):
            raise NonFiniteError(
                f"what {self._title} puts out with {order} states, by method {method!r}, overflows; expected "
                "finite outputs. Keep more states, or calibrate with inputs of the usual size."
            )
        return cut

    def _whole(self) -> Candidates:
        return Candidates(None, {self.methods[0]: self.unchanged()})


class MixerPlan(SelectivePlan[C]):
    """Makes the candidates for one mixer of Mamba or Mamba-2."""

    def __init__(
        self,
        kind: SelectiveLayer,
        weights: dict[str, HostArray],
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> None:
        super().__init__(kind, kind.order(weights), options)
        self._kind, self._weights, self._storage, self._data = kind, weights, storage, data
        self._mixer = kind.mixer(weights)


class MixerLayer(SelectiveLayer):
    """A mixer of Mamba or Mamba-2, whose class says by `plans` what makes its cuts."""

    plans: type[MixerPlan[LayerCut]]

    def planned(
        self,
        weights: dict[str, HostArray],
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> SelectivePlan[LayerCut]:
        """Return what makes cuts of a mixer with these weights."""
        return self.plans(self, weights, options, storage, data)


def check_contributions(gram: HostArray, title: str) -> None:
    """Raise unless the Gram matrix of what states put out is finite, and not zero."""
    if not np.all(np.isfinite(gram)):
        raise NonFiniteError(
            f"what the states of {title} put out on the sequences of `data` overflows; expected finite "
            "outputs. Calibrate with inputs of the usual size."
        )
    if not np.any(gram):
        raise OrderError(
            f"{title} puts out nothing by its states on the sequences of `data`, so that no state matters; "
            "expected states that contribute. Leave it out with options=CutOptions(exclude=...)."
        )
