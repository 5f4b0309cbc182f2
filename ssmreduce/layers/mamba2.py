"""Mamba-2 (Dao and Gu, 2024): which arrays a mixer has, and its reduction by data.

Each head has one decay for all of its states, so that any change of states would commute with it. But B and C
pass a convolution and SiLU before they meet the states: a selection alone, of as many states in each group of
heads, folds into the weights, and the layer stays what its library builds. How much a state matters depends
on what the layer is given: there is no cut without data.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ShapeError
from ssmreduce.layers.layer import HasArrays, Shapes, Weights, refusal, unsaid, wrong_shape
from ssmreduce.layers.mamba2_cut import Mamba2Plan
from ssmreduce.layers.mamba2_mixer import Mixer2, Norm, Settings
from ssmreduce.layers.selective import MixerLayer

_SHAPES: dict[str, tuple[int | str, ...]] = {
    "A_log": ("H",),
    "D": ("H or d",),  # any length here; the number of values is looked at apart
    "dt_bias": ("H",),
    "in_proj.weight": ("d + w + H", "m"),
    "conv1d.weight": ("w", 1, "K"),
    "out_proj.weight": ("p", "d"),
}
"""What each mixer has."""

_OTHERS: Shapes = {
    "in_proj.bias": ("d + w + H",),
    "conv1d.bias": ("w",),
    "out_proj.bias": ("p",),
    "norm.weight": ("d",),
    "mup_vector": (1, 1, "d + w + H"),
}
"""What some have."""

_CONVOLVED = {"conv1d.weight": 0, "conv1d.bias": 0}
_AXES = {"in_proj.weight": 0, "in_proj.bias": 0, "mup_vector": -1, **_CONVOLVED}
"""Axes along which weights have B and C: those of the convolution without z and steps."""


class Mamba2(MixerLayer):
    """The mixer of Mamba-2, of transformers or mamba_ssm; reduced by data.

    Weights, for d channels in H heads, G groups of heads, N states for each channel, m inputs and p
    outputs, with w = d + 2 G N: A_log, dt_bias (H), D (H) or (d), in_proj.weight (d + w + H, m),
    conv1d.weight (w, 1, K), out_proj.weight (p, d).

    Parameters
    ----------
    settings : Settings
        What the weights do not say: groups, norm, limits of the steps.
    others : tuple of str
        Those of in_proj.bias, conv1d.bias, out_proj.bias, norm.weight and mup_vector that there
        are.

    References
    ----------
    Dao and Gu, Transformers are SSMs, ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.mamba2 import Mamba2
    >>> from ssmreduce.layers.mamba2_mixer import Settings
    >>> rng = np.random.default_rng(0)
    >>> shapes = {"A_log": (2,), "D": (2,), "dt_bias": (2,), "in_proj.weight": (26, 3)}
    >>> shapes |= {"conv1d.weight": (20, 1, 2), "conv1d.bias": (20,), "out_proj.weight": (3, 4)}
    >>> weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    >>> kind = Mamba2(Settings(groups=1, norm=None), others=("conv1d.bias",))
    >>> kind.order(weights), kind.output(weights, rng.normal(size=(1, 16, 3))).shape
    (8, (1, 16, 3))
    """

    title = "Mamba-2"
    methods = ("selected",)
    plans = Mamba2Plan
    known_by = "A_log"
    sizes = ("ssm_state_size", "d_state", "groups_time_state_size", "config.d_state")
    widths: Mapping[str, str] = MappingProxyType({"conv_dim": "conv1d.weight"})
    config_sizes = ("state_size", "mamba_d_state", "ssm_state_size", "ssm_cfg.d_state")

    def __init__(
        self, settings: Settings, others: tuple[str, ...] = ("conv1d.bias", "norm.weight")
    ) -> None:
        self.settings, self._others = settings, others
        self.shapes = {**_SHAPES, **{name: _OTHERS[name] for name in others}}

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Mamba2 | None:
        """Recognise the arrays of a mixer, most of them in modules inside.

        Raises
        ------
        UnsupportedLayerError
            If it has an initial state, channels that bypass the scan, heads on several processes or
            another activation, or does not say how many groups it has.
        """
        if not has(**{name: len(shape) for name, shape in _SHAPES.items()}):
            return None
        if has("init_states"):
            raise refusal(
                "Mamba-2", "its states begin with `init_states`", "states that begin with zero"
            )
        channels = getattr(layer, "d_ssm", None)
        if channels != getattr(layer, "d_inner", channels):
            raise refusal(
                "Mamba-2",
                "`d_ssm` is less than `d_inner`, with a gated MLP beside the scan",
                "as many",
            )
        if getattr(layer, "process_group", None) is not None:
            raise refusal("Mamba-2", "its heads are shared out over processes", "all heads in one")
        activation = getattr(layer, "activation", "silu")
        if activation not in ("silu", "swish"):
            raise refusal("Mamba-2", f"its `activation` is {activation!r}", "'silu'")
        others = tuple(name for name in _OTHERS if has(name))
        return cls(_settings(layer, has_norm="norm.weight" in others), others)

    def order(self, weights: Weights) -> int:
        """Return the number of states N of each channel."""
        width, channels = weights["conv1d.weight"].shape[0], weights["out_proj.weight"].shape[1]
        return int(width - channels) // (2 * self.settings.groups)

    def check(self, weights: Weights) -> None:
        """Raise `ShapeError` unless the weights fit together."""
        super().check(weights)
        H, d, N = len(weights["A_log"]), weights["out_proj.weight"].shape[1], self.order(weights)
        G, norm = self.settings.groups, self.settings.norm
        width = d + 2 * G * N
        why = f", as there are {d} channels in {H} heads and {G} groups, with {N} states"
        if H % G or d % H or (norm is not None and d % norm.size):
            raise ShapeError(
                f"the layer has {d} channels in {H} heads and {G} groups, and normalises "
                f"{d if norm is None else norm.size} together; expected multiples. Look at the settings."
            )
        expected = {"conv1d.weight": (width,), "in_proj.weight": (d + width + H,), "D": (H, d)}
        for name, lengths in expected.items():
            found = weights[name].shape
            if found[0] not in lengths:
                raise wrong_shape(name, found, (lengths[0], *_SHAPES[name][1:]), why)

    def selected(self, arrays: Weights, kept: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return those of some arrays that a cut changes, with a part of the states alone.

        Parameters
        ----------
        arrays : dict of arrays
            Weights, or moments, by name.
        kept : (G, r) int array
            States of each group that stay.
        weights : dict of arrays
            Those of the whole layer, for its sizes.

        Returns
        -------
        dict of arrays
            By name.
        """
        channels, N = weights["out_proj.weight"].shape[1], self.order(weights)
        G = self.settings.groups
        B = np.ravel(channels + N * np.arange(G)[:, None] + kept)
        rows = np.concatenate([np.arange(channels), B, B + G * N])
        steps = channels + 2 * G * N + np.arange(len(weights["A_log"]))
        every = np.concatenate([np.arange(channels), channels + rows, channels + steps])
        return {
            name: arrays[name].take(rows if name in _CONVOLVED else every, axis)
            for name, axis in _AXES.items()
            if name in arrays
        }

    def unsaved(self, weights: Weights, saved: Weights) -> dict[str, HostArray]:
        """Return mup_vector, which is the same for all states."""
        if "mup_vector" not in weights or "mup_vector" in saved:
            return {}
        states = np.minimum(np.arange(self.order(saved)), self.order(weights) - 1)
        kept = np.tile(states, (self.settings.groups, 1))
        return {"mup_vector": self.selected(weights, kept, weights)["mup_vector"]}

    def resized(self, weights: Weights, order: int) -> dict[str, HostArray]:
        """Return zeros in the shapes of the weights that hold B and C."""
        more = 2 * self.settings.groups * (order - self.order(weights))
        found = {}
        for name, axis in _AXES.items():
            if name in weights:
                shape = [*weights[name].shape]
                shape[axis] += more
                found[name] = np.zeros(shape)
        return found

    def mixer(self, weights: Mapping[str, HostArray]) -> Mixer2:
        """Return what computes the outputs of a mixer with these weights."""
        return Mixer2(weights, self.settings)

    def unknowns(self, weights: Weights, order: int) -> float:
        """Return 0: nothing is fitted."""
        return 0.0


def _settings(layer: Any, *, has_norm: bool) -> Settings:
    """What a module says by its attributes, as transformers and mamba_ssm name them."""
    groups = getattr(layer, "n_groups", getattr(layer, "ngroups", None))
    if not isinstance(groups, int):
        raise unsaid("Mamba-2", "n_groups", "Mamba2(Settings(...))")
    limit = getattr(layer, "time_step_limit", getattr(layer, "dt_limit", (0.0, float("inf"))))
    gain = getattr(layer, "ssm_in_multiplier", 1.0)
    norm = _norm(layer.norm) if has_norm else None
    return Settings(groups, norm, (float(limit[0]), float(limit[1])), float(gain))


def _norm(norm: Any) -> Norm:
    """What a module says that norms groups of channels."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(eps, float) or getattr(norm, "bias", None) is not None:
        raise refusal("Mamba-2", "its norm is no gated RMS norm that is known", "one")
    channels = len(norm.weight)
    groups = getattr(norm, "n_groups", 1)
    size = getattr(norm, "group_size", None) or channels // groups
    return Norm(int(size), eps, bool(getattr(norm, "norm_before_gate", False)))
