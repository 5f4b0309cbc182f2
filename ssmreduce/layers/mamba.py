"""Mamba (Gu and Dao, 2024): which arrays a mixer has, and its reduction by data.

Channels have rates A_log of their own but share B and C, so that a change of states would have to be
diagonal: a cut keeps a subset of the states, the same in all channels, and the layer stays what its library
builds. Rows of x_proj for B and C may be anything, and are scaled and fitted; see
`ssmreduce.layers.mamba_fit`. How much a state matters depends on what the layer is given: there is no cut
without data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.layers.layer import HasArrays, Shapes, Weights, refusal, wrong_shape
from ssmreduce.layers.mamba_cut import MambaPlan
from ssmreduce.layers.mamba_mixer import Mixer
from ssmreduce.layers.selective import MixerLayer

_SHAPES: dict[str, tuple[int | str, ...]] = {
    "A_log": ("D", "n"),
    "D": ("D",),
    "in_proj.weight": ("2D", "m"),
    "conv1d.weight": ("D", 1, "K"),
    "x_proj.weight": ("R + 2 n", "D"),
    "dt_proj.weight": ("D", "R"),
    "dt_proj.bias": ("D",),
    "out_proj.weight": ("p", "D"),
}
"""What each mixer has."""

_BIASES: Shapes = {"in_proj.bias": ("2D",), "conv1d.bias": ("D",), "out_proj.bias": ("p",)}
"""What some have."""

_NORMS = ("b_layernorm", "c_layernorm", "B_layernorm", "C_layernorm", "dt_layernorm")
"""Attributes of mixers that normalise B and C."""


class Mamba(MixerLayer):
    """The mixer of Mamba, of transformers, mambapy or mamba_ssm; reduced by data.

    Weights, for D channels, N states for each, rank R of the steps, m inputs and p outputs: A_log
    (D, N), D (D), in_proj.weight (2 D, m), conv1d.weight (D, 1, K), x_proj.weight (R + 2 N, D),
    dt_proj.weight (D, R), dt_proj.bias (D), out_proj.weight (p, D).

    Parameters
    ----------
    biases : tuple of str
        Those of in_proj.bias, conv1d.bias and out_proj.bias that there are.

    References
    ----------
    Gu and Dao, Mamba: Linear-time sequence modeling with selective state spaces, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.mamba import Mamba
    >>> rng = np.random.default_rng(0)
    >>> shapes = {"A_log": (4, 8), "D": (4,), "in_proj.weight": (8, 2), "conv1d.weight": (4, 1, 3)}
    >>> shapes |= {"conv1d.bias": (4,), "x_proj.weight": (17, 4), "dt_proj.weight": (4, 1)}
    >>> shapes |= {"dt_proj.bias": (4,), "out_proj.weight": (2, 4)}
    >>> weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    >>> Mamba().order(weights), Mamba().output(weights, rng.normal(size=(1, 16, 2))).shape
    (8, (1, 16, 2))
    """

    title = "Mamba"
    methods = ("compensated", "selected", "merged")
    plans = MambaPlan
    known_by = "A_log"
    sizes = ("ssm_state_size", "d_state", "config.d_state")
    config_sizes = ("state_size", "ssm_cfg.d_state")

    def __init__(self, biases: tuple[str, ...] = ("conv1d.bias",)) -> None:
        self._biases = biases
        self.shapes = {**_SHAPES, **{name: _BIASES[name] for name in biases}}

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Mamba | None:
        """Recognise the arrays of a mixer, most of them in modules inside.

        Raises
        ------
        UnsupportedLayerError
            If it normalises B and C over the states, runs in both directions or has another activation.
        """
        if not has(**{name: len(shape) for name, shape in _SHAPES.items()}):
            return None
        if any(getattr(layer, name, None) is not None for name in _NORMS):
            raise refusal(
                "Mamba",
                "it normalises B and C over its states, as FalconMamba and Jamba do, so that a selection of "
                "these changes what is left",
                "one without such norms",
            )
        if has("A_b_log"):
            raise refusal("Mamba", "it has a second scan in reverse, `A_b_log`", "one scan")
        activation = getattr(layer, "activation", "silu")
        if activation not in ("silu", "swish"):
            raise refusal("Mamba", f"its `activation` is {activation!r}", "'silu'")
        return cls(tuple(name for name in _BIASES if has(name)))

    def check(self, weights: Weights) -> None:
        """Raise `ShapeError` unless the weights fit together."""
        super().check(weights)
        (D, N), R = weights["A_log"].shape, weights["dt_proj.weight"].shape[1]
        found = weights["x_proj.weight"].shape
        if found != (R + 2 * N, D):
            why = f", as `A_log` has {D} channels and {N} states, and `dt_proj` the rank {R}"
            raise wrong_shape("x_proj.weight", found, (R + 2 * N, D), why)

    def split(self, rows: HostArray, states: int) -> tuple[HostArray, HostArray, HostArray]:
        """Return the rows of x_proj, or of moments of it, for δ, B and C.

        Parameters
        ----------
        rows : (R + 2 N, D) array
            All rows.
        states : int
            N.

        Returns
        -------
        delta : (R, D) array
            Rows for δ.
        B, C : (N, D) array
            Rows for B and for C.
        """
        rank = len(rows) - 2 * states
        delta, B, C = np.split(rows, [rank, rank + states])
        return delta, B, C

    def resized(self, weights: Weights, order: int) -> dict[str, HostArray]:
        """Return zeros in the shapes of A_log and x_proj."""
        D, N = weights["A_log"].shape
        rows = weights["x_proj.weight"].shape[0] + 2 * (order - N)
        return {"A_log": np.zeros((D, order)), "x_proj.weight": np.zeros((rows, D))}

    def mixer(self, weights: Mapping[str, HostArray]) -> Mixer:
        """Return what computes the outputs of a mixer with these weights."""
        return Mixer(weights)

    def unknowns(self, weights: Weights, order: int) -> float:
        """Return (N + 1) D / p: the unknowns of C and D, for each of p outputs."""
        outputs, channels = weights["out_proj.weight"].shape
        return float((order + 1) * channels / outputs)
