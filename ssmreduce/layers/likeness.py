"""`Likeness`: which known layer is nearest to an object that is none, and what the object lacks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.layers.known import ENOUGH, KNOWN
from ssmreduce.layers.layer import HasArrays

_MAMBA = "a selective layer (Mamba), but not with the arrays of Mamba-1 or Mamba-2"

_MAMBA_3 = "Mamba-3 (B and C are normalised over its states: a selection changes what is left)"

_SELECTIVE: tuple[tuple[set[str], tuple[str, ...], str], ...] = (
    ({"A_log"}, ("in_proj", "conv1d"), _MAMBA),
    ({"A_log"}, ("x_proj", "dt_proj"), _MAMBA),
    ({"B_bias", "C_bias", "dt_bias"}, ("in_proj", "B_norm", "C_norm"), _MAMBA_3),
    (set(), ("q_proj", "k_proj", "v_proj"), "attention, selective where it is linear"),
)
"""Arrays, other attributes, and what has both: layers whose systems depend on their inputs."""

_PROJECTIONS = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
"""Modules inside a Mamba mixer."""


class Likeness:
    """How near an object is to a known layer.

    Attributes
    ----------
    layer : object
        The object.
    share : float
        From 0 (nothing is known of it) to 1.
    reason : str
        Why it is none, as part of a message.
    advice : str
        What to try.
    """

    advice = (
        "Only linear time-invariant layers, Mamba and Mamba-2 can be reduced; for one of your own write a "
        "class and call register_layer(...)."
    )

    def __init__(self, layer: Any, axes: Mapping[str, int]) -> None:
        self.layer = layer
        self.share, self.reason = _nearest(layer, axes)
        if isinstance(layer, dict):
            self.advice = 'Say what the arrays are, for example kind="s5", or look at their names.'
        for arrays, others, name in _SELECTIVE:
            if axes.keys() >= arrays and all(_holds(layer, other) for other in others):
                self.share = 1.0
                self.reason = f"it is {name}, whose system depends on its input: not supported yet"
                self.advice = "In a model that has known layers, too, they stay as they are."
                self._look_at_projections(axes)

    def _look_at_projections(self, axes: Mapping[str, int]) -> None:
        """Say which projection of a Mamba mixer holds no weight of its own."""
        bare = [name for name in _PROJECTIONS if _holds(self.layer, name)]
        bare = [name for name in bare if f"{name}.weight" not in axes]
        if "A_log" in axes and bare:
            self.reason = (
                f"it is a selective layer (Mamba) whose {', '.join(f'`{name}`' for name in bare)} "
                "holds no `weight`, as where it is quantised or wrapped"
            )
            self.advice = "Cut the model before it is quantised; merge what is wrapped."


def _holds(layer: Any, name: str) -> bool:
    return name in layer if isinstance(layer, Mapping) else hasattr(layer, name)


def _nearest(layer: Any, axes: Mapping[str, int]) -> tuple[float, str]:
    """The condition of a known layer that fails, of which most is met."""
    best, reason = 0.0, "it has no arrays like those of one"
    for known in KNOWN:
        asked = _Asked(axes)
        with suppress(UnsupportedLayerError):
            known.recognise(layer, asked)
        if asked.share >= ENOUGH and asked.share > best:
            best, reason = asked.share, f"the nearest is {known.__name__}: {asked.reason}"
    return best, reason


class _Asked(HasArrays):
    """Notes of what is asked the condition of which most is met, one that fails where there is any."""

    share = 0.0
    reason = ""
    _failed = False

    def __call__(self, *names: str, **axes: int) -> bool:
        """Tell, and note."""
        met = super().__call__(*names, **axes)
        wanted = {*names, *axes}
        missing = sorted(wanted - self.axes.keys())
        share = 1.0 - len(missing) / len(wanted)
        if len(wanted) > 1 and (share, not met) > (self.share, self._failed):
            self.share, self._failed = share, not met
            self.reason = self._lack(missing, axes)
        return met

    def _lack(self, missing: list[str], axes: Mapping[str, int]) -> str:
        if missing:
            return f"it lacks {', '.join(f'`{name}`' for name in missing)}"
        for name, count in axes.items():
            found = self.axes[name]
            if found != count:
                return f"`{name}` has {found} {'axis' if found == 1 else 'axes'} instead of {count}"
        return "it has the arrays, but nothing says which variant they are"
