"""`Layer`: what the weights of one kind of layer mean, and how they get smaller.

It is framework-free: weights are host arrays by name, at double precision. What a framework knows of
them (how they are rounded when they are stored) comes in as a `WeightStorage`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce._checks import floating_arrays, type_name
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.gramians.sequences import LayerData, output
from ssmreduce.layers.cut import Candidates, LayerCut
from ssmreduce.layers.options import CutOptions
from ssmreduce.reduction.order import OrderRule
from ssmreduce.systems.diagonal import System

Shapes = Mapping[str, tuple[int | str, ...] | None]
"""Shapes of weights by name, in which a letter stands for the same length everywhere."""

Weights = Mapping[str, Array]
"""Arrays of a layer by name, at double precision on the host (tracers as they are)."""


class NamedWeights(dict[str, Any]):
    """Weights that are read by the names that a class lists."""

    def __missing__(self, name: str) -> Any:
        raise UnsupportedLayerError(
            f"the class of the layer asks for the weight `{name}`, which its `shapes` do not list; expected "
            f"one of {', '.join(self) or 'those, but there are none'}. Add it there."
        )


class WeightStorage(Protocol):
    """How an object holds the weights of a layer."""

    @property
    def eps(self) -> float:
        """The rounding of its weights, relative."""

    def rounded(self, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """Return `values` as the object would hold them, at double precision."""


class Layer(ABC):
    """What the weights of one kind of layer mean, and how they get smaller.

    `LTILayer` is one that is cut by balanced truncation, `SelectingLayer` one that keeps a subset
    of its own states; a layer of your own is a class below one of the two.

    Attributes
    ----------
    shapes : dict of str to tuple
        All weights by name, those in modules inside with dots, ``x_proj.weight``, and their shapes. A
        letter stands for the same length everywhere, and ``"2n"`` for twice that of n; n counts the
        stored states, of each channel where these run apart. None is for a shape that `check` says.
    known_by : str
        An array that all layers of a kind that is recognised have.
    sizes : tuple of str
        Attributes of a layer object that count its states (or a multiple of them). One with a dot,
        ``config.d_state``, is in an object that layers may share: each gets a copy of its own.
    states : tuple of str
        Attributes or buffers that keep a state between calls; projected with a cut.
    caches : tuple of str
        Attributes computed from the weights on demand; deleted after a cut.
    widths : dict of str to str
        Attributes that are the length of a weight along its first axis, and the name of that
        weight.
    config_sizes : tuple of str
        Fields of configs of libraries, one of them for all layers of a model, that count their
        states. One with a dot, ``ssm_cfg.d_state``, is an entry of a dict.
    masked_by : str
        Argument of a call of the layer object, (N, L), that is 0 where sequences are padded: what
        goes into the layer and its states is zero there.
    eps : float
        Rounding of the layer itself, where that is coarser than the dtype of its weights.
    scores_name : str
        What the values are by which states are ranked, as pictures call them.
    needs_data : bool
        Whether there is no cut without data.
    both_directions : bool
        Whether the layer runs its system over the sequence from either end, with half of the
        outputs each.

    Notes
    -----
    Arguments that methods share:

    weights : dict of arrays
        Arrays of the layer by name, of those in `shapes`, at double precision on the host;
        tracers of JAX as they are.
    order : int or OrderRule
        Stored states to keep; a number in all methods but `plan` and `candidates`.
    horizon : int or None
        Sequence length to balance for; None for no limit.
    options : CutOptions
        What the user asked for.
    storage : WeightStorage
        How the layer rounds its weights: ``storage.rounded(values)`` and ``storage.eps``.
    data : LayerData
        Recorded sequences: ``fitting`` and ``held_out``, each with inputs (N, L, m), targets (N, L,
        p) and weights (N, L) of the steps.
    has : HasArrays
        Called with names of arrays, and with ``name=axes``: tells whether the layer object has all
        of them.

    Examples
    --------
    >>> from ssmreduce.layers.layer import HasArrays
    >>> from ssmreduce.layers.lru import LRU
    >>> axes = {"nu_log": 1, "theta_log": 1, "gamma_log": 1, "B": 2, "C": 2, "D": 1}
    >>> kind = LRU.recognise(object(), HasArrays(axes))
    >>> kind.shapes["theta_log"], kind.shapes["C"]
    (('n',), ('p', 'n'))
    """

    shapes: Shapes = MappingProxyType({})
    known_by: str = ""
    sizes: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    widths: Mapping[str, str] = MappingProxyType({})
    config_sizes: tuple[str, ...] = ()
    masked_by: str = ""
    eps: float = 0.0
    scores_name: str = "Hankel singular value"
    needs_data: bool = False
    both_directions: bool = False

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Return the kind of a layer, which its arrays tell; None if it is another layer.

        Parameters
        ----------
        layer : object
            What holds the arrays, for options that are attributes.
        has : HasArrays
            Which arrays there are.

        Returns
        -------
        Layer or None
            An instance of this class.

        Raises
        ------
        UnsupportedLayerError
            If it is a variant of this layer that cannot be reduced.
        """
        return None

    @property
    def error_factor(self) -> float:
        """How much larger the layer's error may be than its system's."""
        return 2.0**0.5 if self.both_directions else 1.0

    @classmethod
    def by_default(cls, has: HasArrays) -> Layer:
        """Return the kind with its default options, for a layer of which only arrays are known."""
        return cls()

    def order(self, weights: Weights) -> int:
        """Return the number of stored states, of each channel where they run apart: n of `shapes`.

        Raises
        ------
        UnsupportedLayerError
            If no shape there has an n.
        """
        for name, shape in self.shapes.items():
            if shape is not None and "n" in shape:
                return int(weights[name].shape[shape.index("n")])
        raise UnsupportedLayerError(
            f"no weight in `shapes` of {type(self).__name__} has an axis of length n, the number of states; "
            "expected one."
        )

    @abstractmethod
    def read(self, weights: Weights) -> System:
        """Return the discrete system that the layer runs.

        Raises
        ------
        ShapeError
            If the weights do not fit together.
        NonFiniteError
            If a weight holds NaN or Inf.
        UnsupportedLayerError
            If the layer runs no one system, as one does that is selective.
        """

    def check_readable(self, weights: Weights) -> None:
        """Raise as `read` does unless the weights are those of such a layer."""
        self.read(weights)

    def output(self, weights: Weights, inputs: HostArray) -> HostArray:
        """Return the layer's outputs for sequences, from rest.

        Parameters
        ----------
        weights : dict of arrays
            Its weights.
        inputs : (N, L, m) array
            Sequences.

        Returns
        -------
        (N, L, p) array
            Outputs, feedthrough included.
        """
        return output(self.read(weights), inputs, both_directions=self.both_directions)

    def before_runs(self, weights: Weights) -> Weights:
        """Return weights of the same layer in the form of `write`, where runs of the layer change that."""
        return weights

    def rests_while_masked(self, weights: Weights) -> bool:
        """Tell whether the layer is at rest after steps that `masked_by` says are padded."""
        return True

    def unknowns(self, weights: Weights, order: int) -> float:
        """Return how many unknowns a fit to data has for each output, where `order` states are kept."""
        return (4.0 if self.both_directions else 2.0) * order

    @abstractmethod
    def ports(self, weights: Weights) -> tuple[tuple[int, ...], int, int]:
        """Return batch axes and numbers of inputs and outputs, from the shapes of the weights alone."""

    @abstractmethod
    def resized(self, weights: Weights, order: int) -> dict[str, HostArray]:
        """Return zeros in the shapes of all weights that change with the order, for `order` states."""

    @abstractmethod
    def scores(self, weights: Weights, horizon: int | None = None) -> HostArray:
        """Return the importance of the states, descending: the k-th is what is lost if k are kept.

        Hankel singular values where there are any, one for each stored state; of the worst channel.
        """

    @abstractmethod
    def shares(self, weights: Weights, horizon: int | None) -> tuple[HostArray, HostArray]:
        """Return all scores, descending, and how their sum is shared out among the stored states."""

    def data_scores(
        self, weights: Weights, data: LayerData, horizon: int | None = None
    ) -> HostArray | None:
        """Return the scores by what sequences excite, as many as `shares` returns; None if there
        are none.

        They are the singular values between P = E[x xᵀ] of the states on the sequences and the
        observability Gramian: Hankel singular values, if the inputs are white noise with unit
        variance.
        """
        return None

    @abstractmethod
    def plan(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
    ) -> LayerCut:
        """Decide about a cut, and compute everything that follows from it; nothing is changed.

        Raises
        ------
        SSMReduceError
            If no layer of that order can be written that keeps what the rule asks for.
        """

    def candidates(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> Candidates:
        """Plan cuts of one order that know what the layer is given; nothing is changed.

        Raises
        ------
        UnsupportedLayerError
            If the layer has no cut by the method that `options` asks for.
        """
        if options.method not in ("best", "white"):
            raise UnsupportedLayerError(
                f"`method` is {options.method!r}, but {type(self).__name__} is cut without data alone; "
                "expected 'best' or 'white'."
            )
        white = self.plan(weights, order, options, storage)
        return Candidates(white, {"white": white})

    def unsaved(self, weights: Weights, saved: Weights) -> dict[str, HostArray]:
        """Return weights that a state dict may lack, as it lacks buffers, for as many states as it
        has.

        Parameters
        ----------
        weights : dict of arrays
            Those of the layer that the state dict is loaded into.
        saved : dict of arrays
            What the state dict has of the layer.

        Returns
        -------
        dict of arrays
            Those that are missing in `saved`, by name.
        """
        return {}

    def changing(self, weights: Weights) -> set[str]:
        """Return the names of the weights whose shape depends on the order."""
        return set(self.resized(weights, 1))

    def check(self, weights: Weights) -> None:
        """Raise unless all weights are there, are finite, and fit together as `shapes` says.

        Raises
        ------
        ShapeError
            If they do not fit together.
        NonFiniteError
            If one holds NaN or Inf.
        """
        missing = [
            name for name in self.shapes if not isinstance(weights, Mapping) or name not in weights
        ]
        if missing:
            raise ShapeError(
                f"`weights` is a {type_name(weights)} without {', '.join(missing)}; expected a dict of the "
                f"arrays of {type(self).__name__}. Look at its `shapes`."
            )
        floating_arrays(weights, [0] * len(weights))
        lengths: dict[int | str, int] = {}
        known: dict[int | str, str] = {}
        for name, shape in self.shapes.items():
            if shape is None:
                continue
            found = tuple(weights[name].shape)
            expected = tuple(lengths.get(each, each) for each in shape)
            if len(found) != len(shape):
                why = ", one layer at a time" if len(found) > len(shape) else ""
                raise wrong_shape(name, found, expected, why)
            for each, wanted, length in zip(shape, expected, found, strict=True):
                if isinstance(wanted, int) and wanted != length:
                    why = f", as {known[each]}" if each in known else ""
                    raise wrong_shape(name, found, expected, why)
                if isinstance(each, str) and each not in lengths:
                    lengths |= {each: length, f"2{each}": 2 * length}
                    known |= dict.fromkeys((each, f"2{each}"), f"`{name}` has shape {found}")

    def __repr__(self) -> str:
        own = {name: value for name, value in vars(self).items() if name != "shapes"}
        options = (f"{name.lstrip('_')}={value!r}" for name, value in own.items())
        return f"{type(self).__name__}({', '.join(options)})"

    def is_same(self, other: Layer) -> bool:
        """Tell whether this kind and `other` give weights the same meaning."""
        return self is other or (type(self) is type(other) and vars(self) == vars(other))


@dataclass(eq=False)
class HasArrays:
    """What a kind of layer may ask about the arrays of an object: their names and numbers of axes."""

    axes: Mapping[str, int]

    def __call__(self, *names: str, **axes: int) -> bool:
        """Tell whether there is an array under each name, with so many axes where told."""
        return self.axes.keys() >= {*names, *axes} and axes.items() <= self.axes.items()

    def unstacked(self) -> HasArrays:
        """The same of one layer, where each array is a stack of those of several."""
        return HasArrays({name: count - 1 for name, count in self.axes.items() if count})


def wrong_shape(
    name: str, found: tuple[int, ...], shape: tuple[int | str, ...], why: str = ""
) -> ShapeError:
    """The error for a weight that has not `shape`, in which letters stand for any length."""
    expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    return ShapeError(f"`{name}` has shape {found}; expected {expected}{why}.")


def stack_refusal(kind: str) -> UnsupportedLayerError:
    """The error for several layers of a kind in one object."""
    return refusal(
        kind,
        "its arrays are those of several layers, stacked along a first axis",
        "one object for each layer, in a list say",
    )


def refusal(kind: str, reason: str, expected: str) -> UnsupportedLayerError:
    """The error for a variant of a known layer that cannot be reduced."""
    return UnsupportedLayerError(
        f"this {kind} layer cannot be reduced because {reason}; expected {expected}."
    )


def unsaid(kind: str, attribute: str, instance: str) -> UnsupportedLayerError:
    """The error for a layer with an option that neither its arrays nor an attribute tells."""
    return UnsupportedLayerError(
        f"this {kind} layer cannot be reduced because it has no attribute `{attribute}`, which says what it "
        f"computes; expected a module that has, or to be told. Pass kind={instance}, or bind its class with "
        f"register_layer(type(layer), {instance})."
    )
