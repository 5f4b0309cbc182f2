"""S5: weights <-> system (Smith, Warrington and Linderman, ICLR 2023), as s5-pytorch stores it.

With a step Δ = exp(log_step) for each state,

    zoh:       λ = exp(Λ Δ),                   s = (λ - 1)/Λ,
    bilinear:  λ = (1 + Λ Δ/2)/(1 - Λ Δ/2),    s = Δ/(1 - Λ Δ/2),

    h[k] = λ h[k-1] + s B u[k],   y[k] = Re(C h[k]) + D ⊙ u[k].

The step is a redundant number for each state: written states take one with which Λ decays as before. A
bidirectional layer runs the same states over the sequence from either end and reads them with
C = [C_f, C_b]: the system here has the outputs of both, [C_f; C_b], with D in the first half. The error
of the layer is then at most sqrt(2) times that of the system.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.layers.discretisation import Discretisation, steps_of_decay
from ssmreduce.layers.layer import HasArrays, Layer, Weights, refusal
from ssmreduce.layers.lti import LTILayer

_FUNCTIONS = {
    "discretize_zoh": Discretisation.ZOH,
    "discretize_bilinear": Discretisation.BILINEAR,
}
"""How s5-pytorch calls the function that it keeps in `discretize`."""


class S5(LTILayer):
    """The S5 parametrisation of s5-pytorch.

    ::

        h[k] = λ h[k-1] + s B u[k],   y[k] = Re(C h[k]) + D ⊙ u[k],

    where λ and s follow from Λ and the step exp(log_step), see
    `~ssmreduce.layers.discretisation.Discretisation`. Weights, for n states and m channels:
    Lambda, log_step (n), B (n, m, 2), C (m, n), D (m).

    Parameters
    ----------
    discretisation : Discretisation
        Rule of the layer.
    bidirectional : bool
        Whether C is (m, 2n), for both directions.

    References
    ----------
    Smith, Warrington and Linderman, Simplified State Space Layers for Sequence Modeling, ICLR 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.discretisation import Discretisation
    >>> from ssmreduce.layers.s5 import S5
    >>> weights = {"Lambda": np.array([-1.0 + 0j]), "log_step": np.zeros(1), "D": np.zeros(1)}
    >>> weights |= {"B": np.ones((1, 1, 2)), "C": np.ones((1, 1))}
    >>> S5(Discretisation.BILINEAR).read(weights).poles().round(6).tolist()
    [(0.333333+0j)]
    """

    known_by = "Lambda"
    poles = ("Lambda", "log_step")
    feedthrough = "D"
    in_single = ("B",)  # s5-pytorch makes it complex64, whatever its other dtypes are
    eps = float(np.finfo(np.float32).eps)

    def __init__(
        self, discretisation: Discretisation = Discretisation.ZOH, *, bidirectional: bool = False
    ) -> None:
        self._discretisation = discretisation
        self.both_directions = bidirectional
        self.shapes = {
            "Lambda": ("n",),
            "log_step": ("n",),
            "B": ("n", "m", 2),
            "C": ("m", "2n" if bidirectional else "n"),
            "D": ("m",),
        }

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of `S5SSM`, and refuse the variants that are not such systems."""
        if has("BH", "CH", "Lambda", "log_step"):
            raise _refusal("`factor_rank` is set: B and C are products of low rank")
        if not has(Lambda=1, B=3, C=2, D=1, log_step=1) or not hasattr(layer, "discretize"):
            return None
        if getattr(layer, "liquid", False):
            raise _refusal("`liquid` is True: its poles depend on the input")
        degree = getattr(layer, "degree", 1)
        if degree != 1:
            raise _refusal(f"`degree` is {degree}: its input matrix is an elementwise power")
        function = getattr(layer.discretize, "__name__", None)
        if function not in _FUNCTIONS:
            raise _refusal(f"`discretize` is {function}: a rule that is neither zoh nor bilinear")
        return cls(_FUNCTIONS[function], bidirectional=bool(getattr(layer, "bidir", False)))

    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ, s and ones; `ShapeError` if the layer divides by zero."""
        if self._discretisation is Discretisation.ZOH and np.any(weights["Lambda"] == 0.0):
            raise ShapeError(
                "`Lambda` has an entry 0; expected none: the layer divides by it and returns NaN. "
                "Set it to a small negative number."
            )
        step = np.exp(weights["log_step"])
        return *self._discretisation.modes(weights["Lambda"], step), np.ones(step.shape)

    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return Lambda and log_step, for steps with which Lambda decays as in the old states."""
        old = weights["Lambda"], np.exp(weights["log_step"])
        unit = self._discretisation.poles(logarithms, 1.0)
        steps = steps_of_decay(-unit.real, *old)
        # A number of single precision: weights of that dtype hold the very step that Λ is made for.
        log_step = np.log(steps).astype(np.float32).astype(np.float64)
        return {"Lambda": unit / np.exp(log_step), "log_step": log_step}

    def copied_pole_weights(
        self, logarithms: HostArray, weights: Weights, model: Weights
    ) -> dict[str, HostArray]:
        """Return Lambda for the steps of the model, and these."""
        poles = self._discretisation.poles(logarithms, np.exp(model["log_step"]))
        return {"Lambda": poles, "log_step": model["log_step"]}

    def matrices(self, weights: Weights) -> tuple[HostArray, HostArray]:
        """Return B and C, the two directions of C one below the other."""
        B, C = weights["B"][..., 0] + 1j * weights["B"][..., 1], weights["C"]
        return B, np.concatenate(np.split(C, 2, axis=1)) if self.both_directions else C

    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the arrays of B and C."""
        stored = np.concatenate(np.split(C, 2), axis=1) if self.both_directions else C
        return {"B": np.stack([B.real, B.imag], axis=-1), "C": stored}


def _refusal(reason: str) -> UnsupportedLayerError:
    return refusal("S5", reason, "the linear time-invariant layer")
