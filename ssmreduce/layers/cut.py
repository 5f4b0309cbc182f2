"""`LayerCut`: a decision about one layer, and all that follows from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce._checks import numeric_array
from ssmreduce.errors import ShapeError
from ssmreduce.reduction.measured_order import smallest, to_nothing
from ssmreduce.reduction.order import MeasuredError
from ssmreduce.reduction.report import Reduction

if TYPE_CHECKING:
    from ssmreduce.layers.layer import Layer, WeightStorage
    from ssmreduce.layers.options import CutOptions


@dataclass(frozen=True, eq=False)
class LayerCut(ABC):
    """A decision about one layer, and all that follows from it.

    Attributes
    ----------
    kind : Layer
        What the weights mean.
    reduction : Reduction or None
        The systems before and after, the latter as read back from the new weights; None for a layer
        that runs no one system.
    measured_error : float or None
        What the error of the written layer is at least; None without systems.
    weights, new_weights : dict of arrays
        Weights before and after.
    output_error : float or None
        Root of the mean squared error of its outputs over their mean square, feedthrough apart, on
        data that nothing was fitted to; None where no data are known.
    passed_over : str
        Why the layer cannot hold the cut of the order that was asked for, where this one is of a
        lower order; else empty.
    old_order, new_order : int
        Stored states before and after, of each channel where they run apart.
    changed : tuple of str
        Names of the weights with a new shape.

    Notes
    -----
    Arguments that methods share:

    moments : dict of arrays
        Moments of an optimizer by the name of their weight, in its shape.
    squared : bool
        Whether they are second moments, of squared gradients.
    storage : WeightStorage
        How the layer rounds its weights.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> cut = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6).cut
    >>> cut.old_order, cut.new_order, cut.without_image
    (16, 6, ('nu_log', 'theta_log', 'gamma_log'))
    >>> moments = {name: np.zeros(value.shape) for name, value in cut.weights.items()}
    >>> cut.carry(moments, squared=False)["B_re"].shape
    (6, 4)
    """

    kind: Layer
    reduction: Reduction | None
    measured_error: float | None
    weights: dict[str, HostArray]
    new_weights: dict[str, HostArray]
    _: KW_ONLY
    output_error: float | None = None
    passed_over: str = ""
    old_order: int = field(init=False)
    new_order: int = field(init=False)
    changed: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        old, new = self.weights, self.new_weights
        vars(self).update(
            old_order=self.kind.order(old),
            new_order=self.kind.order(new),
            changed=tuple(name for name in new if new[name].shape != old[name].shape),
        )

    @property
    def error_bound(self) -> float | None:
        """Bound on the H-infinity error of the layer before rounding; None where there is none."""
        bound = None if self.reduction is None else self.reduction.error_bound
        return None if bound is None else self.kind.error_factor * float(np.max(bound))

    @property
    @abstractmethod
    def scores(self) -> HostArray:
        """What the states were ranked by, descending."""

    @property
    def scores_name(self) -> str:
        """What `scores` are, as pictures call them."""
        return self.kind.scores_name

    @property
    def without_image(self) -> tuple[str, ...]:
        """Names of weights whose moments have no image in the new states; none where states are kept."""
        return ()

    @abstractmethod
    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Map moments of all weights to those of the new weights."""

    @abstractmethod
    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> LayerCut:
        """Return the same cut of a copy of the layer, in the same coordinates.

        Parameters
        ----------
        weights : dict of arrays
            Weights of the copy.
        storage : WeightStorage
            How the copy rounds them.

        Returns
        -------
        LayerCut
            Of the same order.

        Raises
        ------
        SSMReduceError
            If the copy is too far from the layer.
        """

    @property
    @abstractmethod
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the hidden state before."""

    @abstractmethod
    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return M₁ and M₂, shape (..., r, n): a state h goes on as M₁ h + M₂ conj(h)."""

    def reduce_state(self, state: Array) -> Array:
        """Return the hidden state with which a stream continues after the cut; see
        `LayerReduction.reduce_state`.

        Parameters
        ----------
        state : (..., n) complex array
            State before the cut, with any leading axes; its last axes are `state_shape`.

        Returns
        -------
        (..., r) array
            M₁ h + M₂ conj(h), with the matrices of `state_maps`; `state` itself if nothing was cut.

        Raises
        ------
        ShapeError
            If the last axes do not fit, or `state` is not complex.
        """
        state = numeric_array(state, "state", 0)
        xp = array_api_compat.array_namespace(state)
        expected = self.state_shape
        if tuple(state.shape[-len(expected) :]) != expected or not xp.isdtype(
            state.dtype, "complex floating"
        ):
            raise ShapeError(
                f"`state` has shape {tuple(state.shape)} and dtype {state.dtype}; expected a complex "
                f"array whose last axes are {expected}, the states before the cut. Pass the state as "
                "the layer returned it; join real and imaginary parts first if they are apart."
            )
        if self.new_order == self.old_order:
            return state
        device = array_api_compat.device(state)
        direct, conjugate = (
            xp.asarray(matrix, dtype=state.dtype, device=device) for matrix in self.state_maps()
        )
        column = state[..., None]
        return (direct @ column + conjugate @ xp.conj(column))[..., 0]


@dataclass(frozen=True, eq=False)
class SystemCut(LayerCut):
    """A cut of a layer that runs a system."""

    reduction: Reduction
    measured_error: float

    @property
    def scores(self) -> HostArray:
        """Hankel singular values, or what each state adds to the output, descending."""
        return self.reduction.ranked_by

    @property
    def scores_name(self) -> str:
        """What `scores` are: those of a cut by data may be others than those of the layer."""
        return self.reduction.values_name


Made = TypeVar("Made", bound=SystemCut)


@dataclass(frozen=True, eq=False)
class SystemPlan(ABC, Generic[Made]):
    """Cuts one layer that runs a system, and measures it as it would be written."""

    kind: Layer
    weights: dict[str, HostArray]
    options: CutOptions
    storage: WeightStorage

    @abstractmethod
    def unchanged(self) -> Made:
        """The layer as it is."""

    @abstractmethod
    def of_order(self, order: int) -> Made:
        """The layer with at most so many states."""

    def smallest(self, rule: MeasuredError) -> Made:
        """The smallest written layer that a bisection finds within the tolerance; nothing is cut at worst."""
        whole = self.unchanged()
        parts = whole.reduction.parts or (whole.reduction,)
        gain = self.kind.error_factor * max(float(to_nothing(x).measured()) for x in parts)
        best = smallest(
            1,
            self.options.count(whole.old_order),
            lambda count: self.of_order(self.options.size(count)),
            lambda found: found.measured_error <= rule.relative * gain,
        )
        return whole if best is None else best


@dataclass(frozen=True, eq=False)
class Candidates:
    """Cuts of one layer to one order.

    Attributes
    ----------
    white : LayerCut or None
        The one without data, the only one that may have a bound; None where it cannot be made.
    cuts : dict of str to LayerCut
        Those to choose from, by method, as `CutOptions` names them.
    """

    white: LayerCut | None
    cuts: dict[str, LayerCut]

    def within(self, error: float) -> Candidates:
        """Return those of the cuts that have at most so large an output error."""
        cuts = self.cuts.items()
        return Candidates(
            self.white, {name: cut for name, cut in cuts if (cut.output_error or 0.0) <= error}
        )
