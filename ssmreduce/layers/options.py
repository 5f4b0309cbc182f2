"""`CutOptions`: what a cut of layers may be told, the same for one layer, a model and a whole run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ssmreduce._checks import (
    check_text,
    flag,
    is_one_of,
    items,
    positive_count,
    positive_horizon,
    shown,
)
from ssmreduce.errors import (
    ArgumentError,
    ArgumentTypeError,
    OptimizerStateError,
    UnsupportedLayerError,
)

if TYPE_CHECKING:
    from ssmreduce.layers.layer import Layer

Moments = Literal["carry", "reset"]

Method = Literal["best", "white", "white refit", "balanced", "selected", "compensated", "merged"]
"""How a cut uses data; see `ssmreduce.layers.lti_data` and `ssmreduce.layers.mamba_fit`."""

_FLAGS = ("power_of_two", "uniform", "match", "skip_unsupported")


@dataclass(frozen=True, kw_only=True, repr=False)
class CutOptions:
    """How layers are cut, apart from their order.

    Parameters
    ----------
    horizon : int, optional
        Sequence length to balance for; see `balance`.
    multiple_of : int
        Round orders up to a multiple, for kernels that want one; states that are not needed are
        stored with output weights zero. A layer with fewer states stays as it is.
    power_of_two : bool
        Round orders up to a power of two, times `multiple_of`: 1, 2, 4, ... or with
        ``multiple_of=16`` 16, 32, 64, ..., for kernels that pad to these anyway. Shares of a
        `TotalBudget` are rounded down, and what that leaves is not used.
    uniform : bool
        Give all layers the largest of their orders, for libraries that need one.
    moments : {"carry", "reset"}
        Whether first and second moments of the optimizer follow the states of a cut layer or become
        zero.
    method : {"best", "white", "white refit", "balanced", "selected", "compensated", "merged"}
        How a cut with data is made. ``"best"``: by what is best on the data that are held out.
        ``"white"``: by balanced truncation as without data, which alone has a bound.
        ``"white refit"``: by that, with output weights fitted to the data after it.
        ``"balanced"``: by balancing what the data excite. ``"selected"``: by a selection of the
        layer's own modes. Mamba has ``"selected"``; ``"compensated"``, the same with scales in
        place of a fit; and ``"merged"``, which merges states with like rates of decay. Mamba-2 has
        ``"selected"``, without a fit.
    match : bool
        Train the layers of a model that are cut, for a hundred steps on the batches of `data`
        that are not held out, to reproduce the outputs of the uncut model; the new weights are taken
        if they lower the loss on the held-out batches. Needs data with a loss, and no FSDP2. The
        output error of a matched layer is not known.
    skip_unsupported : bool
        Skip variants of known layers that cannot be reduced, stacks of layers, and without data
        layers that need some, instead of refusing the model.
    exclude : tuple of str, or callable
        Layers to leave as they are: their names as a report has them, or a function that takes a
        name and returns whether to. Names with and without the wrappers of DDP and
        ``torch.compile`` are the same.
    kind : str, Layer, or dict of them by layer name
        What kind of layer arrays are, where neither they nor an object tell: ``"lru"``, ``"s5"``,
        ``"s4d"``, ``"linoss"`` ... with its defaults, or an instance with others, such as
        ``S5(Discretisation.BILINEAR)``. With one for the whole model other layers are not looked
        for, and what has most of its arrays counts as a variant that cannot be reduced. Layers that
        a dict does not name are recognised by their arrays.

    Raises
    ------
    ArgumentError, OptimizerStateError, UnsupportedLayerError
        If a value is none of these.

    Examples
    --------
    >>> from ssmreduce import CutOptions
    >>> CutOptions(multiple_of=8, exclude=("encoder.0",))
    CutOptions(multiple_of=8, exclude=('encoder.0',))
    """

    horizon: int | None = None
    multiple_of: int = 1
    power_of_two: bool = False
    uniform: bool = False
    moments: Moments = "carry"
    method: Method = "best"
    match: bool = False
    skip_unsupported: bool = False
    exclude: tuple[str, ...] | Callable[[str], bool] = ()
    kind: str | Layer | Mapping[str, str | Layer] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not is_one_of(self.moments, get_args(Moments)):
            raise OptimizerStateError(
                f"`moments` is {shown(self.moments)}; expected one of "
                f"{', '.join(map(repr, get_args(Moments)))}. Leave it out for the first."
            )
        methods = get_args(Method)
        if not is_one_of(self.method, methods):
            raise ArgumentError(
                f"`method` is {shown(self.method)}; expected one of {', '.join(map(repr, methods))}. Leave "
                "it out for the best."
            )
        values = {
            "horizon": positive_horizon(self.horizon),
            "multiple_of": positive_count(
                self.multiple_of, "multiple_of", "1, or what kernels want"
            ),
            **{name: flag(getattr(self, name), name) for name in _FLAGS},
            "exclude": self.exclude if callable(self.exclude) else _names(self.exclude),
            "kind": _kinds(self.kind),
        }
        vars(self).update(values)

    def __repr__(self) -> str:
        given = {
            own.name: value
            for own in fields(self)
            if (value := getattr(self, own.name)) != own.default
        }
        if callable(self.exclude):  # by name: the settings of a run are compared with a later one's
            given["exclude"] = getattr(self.exclude, "__qualname__", type(self.exclude).__name__)
        return f"CutOptions({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def of_call(self, kind: Any = None, *, has_data: bool) -> CutOptions:
        """Return the options of a call with a kind that was given apart from them, or without one.

        :meta private:

        Parameters
        ----------
        kind : str, Layer, dict of them by layer name, or None
            What kind of layer arrays are.
        has_data : bool
            Whether there are data.

        Returns
        -------
        CutOptions
            With that kind; these if it is None.

        Raises
        ------
        ArgumentError
            If the method, or `match`, needs data and there are none.
        UnsupportedLayerError
            If these options have a kind, too, or `kind` is none.
        """
        if not has_data and self.method not in ("best", "white"):
            raise ArgumentError(
                f"`method` is {self.method!r}, but there are no data; expected some. Pass "
                "data=calibrate(model, batches), or leave `method` out."
            )
        if not has_data and self.match:
            raise ArgumentError(
                "`match` is true, but there are no data; expected some with a loss. Pass "
                "data=calibrate(model, batches, loss=loss), or leave `match` out."
            )
        if kind is None:
            return self
        if self.kind is not None:
            raise UnsupportedLayerError(
                f"`kind` is {shown(kind)} but `options` has kind={self.kind!r}; expected one of them. Leave "
                "out the other."
            )
        return replace(self, kind=kind)

    def size(self, count: int) -> int:
        """Return the `count`-th of the orders that may be stored, from 1 on.

        :meta private:
        """
        return self.multiple_of << (count - 1) if self.power_of_two else self.multiple_of * count

    def count(self, order: int) -> int:
        """Return how many orders may be stored up to the first one that holds `order` states.

        :meta private:
        """
        multiples = -(-order // self.multiple_of)
        return max(multiples - 1, 0).bit_length() + 1 if self.power_of_two else multiples

    def rounded_up(self, order: int) -> int:
        """Return the least order that may be stored and holds `order` states.

        :meta private:
        """
        multiples = -(-order // self.multiple_of)
        if self.power_of_two:
            multiples = 1 << max(multiples - 1, 0).bit_length()
        return self.multiple_of * multiples

    def rounded_down(self, order: int) -> int:
        """Return the largest order that may be stored and is no more than `order`; 0 if there is none.

        :meta private:
        """
        above = self.count(order + 1)
        return self.size(above - 1) if above > 1 else 0

    def excluded(self, names: Collection[str]) -> set[str]:
        """Return the names of the layers that stay as they are.

        Parameters
        ----------
        names : collection of str
            Names of all layers of a model.

        Returns
        -------
        set of str
            Those that `exclude` names, or picks.

        Raises
        ------
        ArgumentError
            If `exclude` returns something else than a bool.
        ShapeError
            If `names` is not a list.
        """
        names = items(names, "names", "the names of the layers")
        for name in names:
            check_text(name, "names", "the names of the layers")
        if callable(self.exclude):
            plain = {name: plain_name(name) for name in names}
            return {
                name for name, own in plain.items() if flag(self.exclude(own), f"exclude({own!r})")
            }
        return {own for name in self.exclude for own in names_meant(name, names)}


def plain_name(name: str) -> str:
    """Name of a layer, the same whether the model is compiled or in DDP or not."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] == ["module"]:
        del parts[0]
    return ".".join(parts) or "model"


def names_meant(name: str, names: Collection[str]) -> list[str]:
    """Return the layer that is called so, or where there is none those that differ by wrappers alone."""
    if name in names:
        return [name]
    return [own for own in names if plain_name(own) == plain_name(name)]


def _names(exclude: object) -> tuple[str, ...]:
    if not isinstance(exclude, list | tuple | set | frozenset) or not all(
        isinstance(name, str) for name in exclude
    ):
        raise ArgumentTypeError(
            f"`exclude` is {shown(exclude)}; expected names of layers, or a function of a name. Write "
            "(name,) for one."
        )
    return tuple(sorted(exclude)) if isinstance(exclude, set | frozenset) else tuple(exclude)


def _kinds(kind: object) -> object:
    from ssmreduce.layers.known import said_kind  # all layers, which know these options

    if not isinstance(kind, Mapping):
        said_kind(kind)
        return kind
    for name, own in kind.items():
        check_text(name, "kind", "the names of layers, each with what it is")
        said_kind(shown(own) if own is None else own)
    return dict(kind) or None
