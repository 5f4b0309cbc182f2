"""Which layers are known, and which object is which: `register_layer`, `kind_of`.

Supporting a layer is one class in `ssmreduce.layers` and one line here. Layers are told apart by the
arrays they hold, so that an LRU of any package (or of your own) is recognised without naming it;
`register_layer` binds a class explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssmreduce._checks import shown, type_name
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.layers.layer import HasArrays, Layer, stack_refusal
from ssmreduce.layers.linoss import LinOSS
from ssmreduce.layers.lru import LRU
from ssmreduce.layers.mamba import Mamba
from ssmreduce.layers.mamba2 import Mamba2
from ssmreduce.layers.s4 import S4
from ssmreduce.layers.s4d import S4D, S4Diagonal
from ssmreduce.layers.s5 import S5
from ssmreduce.layers.s5_jax import S5HalfSpectrum
from ssmreduce.layers.s5_real_input import S5RealInput

KINDS: dict[str, type[Layer]] = {
    "lru": LRU,
    "s5": S5,
    "s5_half_spectrum": S5HalfSpectrum,
    "s5_real_input": S5RealInput,
    "s4d": S4D,
    "s4": S4,
    "s4_diagonal": S4Diagonal,
    "linoss": LinOSS,
}
"""What arrays alone may be said to be."""

KNOWN: tuple[type[Layer], ...] = (*KINDS.values(), Mamba, Mamba2)
"""Recognised by their arrays, the first that does so."""

ENOUGH = 0.5
"""Share of the names that a layer is known by, from which an object is called near to it."""

_REGISTERED: dict[type, Layer] = {}


def register_layer(layer_type: type, kind: Layer) -> None:
    """Say that objects of `layer_type` store their weights as `kind` describes.

    Parameters
    ----------
    layer_type : type
        Class of the layer object: an Equinox or a PyTorch module.
    kind : Layer
        How its weights parametrise a system; see `ssmreduce.layers.lti.LTILayer`.

    Raises
    ------
    UnsupportedLayerError
        If `layer_type` is not a class, or `kind` not an instance of a Layer.

    Examples
    --------
    >>> import equinox as eqx
    >>> from ssmreduce import register_layer
    >>> from ssmreduce.layers.lru import LRU
    >>> class MyLRU(eqx.Module):
    ...     "An LRU with arrays nu_log, theta_log, ..."
    >>> register_layer(MyLRU, LRU())
    """
    if not isinstance(layer_type, type):
        raise UnsupportedLayerError(
            f"`layer_type` is {shown(layer_type)}; expected a class. Pass type(layer)."
        )
    if not isinstance(kind, Layer):
        raise UnsupportedLayerError(
            f"`kind` is {shown(kind)}; expected an instance of a Layer. "
            "Try ssmreduce.layers.lru.LRU()."
        )
    _REGISTERED[layer_type] = kind


def kind_of(
    layer: Any,
    axes: Mapping[str, int],
    said: Layer | type[Layer] | None = None,
    *,
    least: float = ENOUGH,
) -> Layer | None:
    """Return the kind of a layer object with arrays of so many axes; None for anything else.

    Parameters
    ----------
    layer : object
        What holds the arrays.
    axes : dict
        Number of axes of each.
    said : Layer or type of one, optional
        What the layers are, where arrays alone do not tell.
    least : float
        The share of the arrays of that, from which an object without the others is refused.

    Raises
    ------
    UnsupportedLayerError
        If it is a variant of a known layer that cannot be reduced, or a registered one lacks arrays, or one
        that was said.
    """
    if said is not None:
        return _near_to(as_said(said, layer, axes), axes, least)
    for base in type(layer).__mro__:
        if base in _REGISTERED:
            return with_arrays(_REGISTERED[base], layer, axes)
    asked = [known for known in KNOWN if known.known_by in axes]
    if not asked:
        return None
    has = HasArrays(axes)
    for known in asked:
        kind = known.recognise(layer, has)
        if kind is not None:
            return kind
    _check_single(layer, has.unstacked())
    return None


def said_kind(kind: object, *, side_by_side: bool = False) -> Layer | type[Layer] | None:
    """Return what `kind` says: an instance itself, or the class of that name.

    Raises
    ------
    UnsupportedLayerError
        If it is neither, or has weights in modules inside, where all arrays of a layer are `side_by_side`.
    """
    if kind is None:
        return None
    if isinstance(kind, Layer):
        inside = [name for name in kind.shapes if "." in name]
        if inside and side_by_side:
            raise UnsupportedLayerError(
                f"`kind` is {kind!r}, which has `{inside[0]}` in a module inside of the layer; expected a "
                "kind whose arrays are next to each other. Load them into the PyTorch model, and pass that."
            )
        return kind
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    raise UnsupportedLayerError(
        f"`kind` is {shown(kind)}; expected one of {', '.join(map(repr, KINDS))}, or an instance of a "
        "Layer. Leave it out where the layers are modules."
    )


def as_said(said: Layer | type[Layer], layer: Any, axes: Mapping[str, int]) -> Layer:
    """Return what was said: an instance, or of a class the variant that arrays tell, or its defaults."""
    if isinstance(said, Layer):
        return said
    has = HasArrays(axes)
    try:
        found = said.recognise(layer, has)
    except UnsupportedLayerError:
        if not isinstance(layer, dict):
            raise
        found = None  # what arrays do not tell, the defaults do
    return said.by_default(has) if found is None else found


def with_arrays(kind: Layer, layer: Any, axes: Mapping[str, int]) -> Layer:
    """Return the kind, or raise `UnsupportedLayerError` if `layer` lacks arrays of it."""
    missing = [name for name in kind.shapes if name not in axes]
    if missing:
        raise UnsupportedLayerError(
            f"`layer` is a {type_name(layer)} without the arrays {', '.join(missing)}; expected those of "
            f"{type(kind).__name__}. Look at their names, or bind another kind with register_layer(...)."
        )
    return kind


def _near_to(kind: Layer, axes: Mapping[str, int], least: float) -> Layer | None:
    """The kind that was said, if its arrays are there; None if most of them are not."""
    names = kind.shapes
    has = [name for name in names if name in axes]
    if len(has) == len(names):
        return kind
    if len(has) < least * len(names):
        return None
    missing = ", ".join(f"`{name}`" for name in names if name not in axes)
    raise UnsupportedLayerError(
        f"it has {len(has)} of the {len(names)} arrays of {type(kind).__name__}, which `kind` says, and "
        f"lacks {missing}; expected all of them. Look at the names, or write kind={{name: ...}} with what "
        "each layer is."
    )


def _check_single(layer: Any, one: HasArrays) -> None:
    """Raise `UnsupportedLayerError` for several layers of a kind in arrays with one more axis."""
    for known in KNOWN:
        try:
            is_stack = known.recognise(layer, one) is not None
        except UnsupportedLayerError:
            is_stack = True
        if is_stack:
            raise stack_refusal(known.__name__)
