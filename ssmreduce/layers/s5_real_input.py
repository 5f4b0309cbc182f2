"""S5 of lrnnx: weights <-> system, with a real input matrix.

    Λ = -softplus(A[:, 0]) + i A[:, 1],   Δ = exp(log_dt),   λ = exp(Λ Δ),
    h[k] = λ h[k-1] + B u[k],   y[k] = Re(C s h[k]) + Dᵀ u[k],

with s = (λ - 1)/Λ (zero-order hold) or 1 ("dirac"). B is real: the residue c b of a stored state has real b
up to one phase. A pole of a reduced system has a complex b in general and takes two states then,

    c b = c Re b + (i c) Im b,

so that r stored states hold a real order of about r. Its "bilinear" rule has the sign of Λ reversed, so that
all of its poles lie outside of the unit circle.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce.layers.discretisation import Discretisation, steps_of_decay
from ssmreduce.layers.layer import HasArrays, Layer, Weights, refusal
from ssmreduce.layers.lti import LTILayer, check_decay
from ssmreduce.layers.storage import Packed
from ssmreduce.layers.transforms import inverse_transformed, transformed
from ssmreduce.systems.diagonal import System


class S5RealInput(LTILayer):
    """The parametrisation of lrnnx: A (n, 2), log_dt (n), B (n, m), C (m, n, 2), D (m, m).

    Parameters
    ----------
    holds : bool
        Whether the rule is zero-order hold; otherwise inputs are impulses ("dirac").

    Notes
    -----
    With Λ = -softplus(A[:, 0]) + i A[:, 1] and Δ = exp(log_dt),

    ::

        λ = exp(Λ Δ),   h[k] = λ h[k-1] + B u[k],   y[k] = Re(C s h[k]) + Dᵀ u[k],

    with s = (λ - 1)/Λ for zero-order hold, else 1. As B is real, a pole of a reduced system may
    take two stored states.

    References
    ----------
    Smith, Warrington and Linderman, Simplified State Space Layers for Sequence Modeling, ICLR 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.s5_real_input import S5RealInput
    >>> weights = {"A": np.array([[0.0, 1.0]]), "log_dt": np.zeros(1), "B": np.ones((1, 1))}
    >>> weights |= {"C": np.ones((1, 1, 2)), "D": np.zeros((1, 1))}
    >>> np.log(S5RealInput().read(weights).poles()).round(6).tolist()
    [(-0.693147+1j)]
    """

    shapes = MappingProxyType(
        {
            "A": ("n", 2),
            "log_dt": ("n",),
            "B": ("n", "m"),
            "C": ("m", "n", 2),
            "D": ("m", "m"),
        }
    )
    known_by = "log_dt"
    poles = ("A", "log_dt", "B", "C")
    feedthrough = "D"
    sizes = ("d_state", "state_dim")
    carries_matrices = False
    real_input = True

    def __init__(self, *, holds: bool = True) -> None:
        self._holds = holds

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of lrnnx, and refuse its rules without decaying poles."""
        if not has(A=2, log_dt=1, B=2, C=3, D=2) or not hasattr(layer, "discretize_fn"):
            return None
        rule = getattr(layer.discretize_fn, "__name__", None)
        if rule not in ("zoh", "dirac"):
            reason = "which does not take stable poles into the unit circle"
            raise refusal("S5", f"`discretization` is {rule!r}, {reason}", "'zoh' or 'dirac'")
        return cls(holds=rule == "zoh")

    def read(self, weights: Weights) -> System:
        """Return the discrete system that the layer runs, with Dᵀ, which it applies to rows."""
        self.check(weights)
        return super().read({**weights, "D": weights["D"].swapaxes(0, 1)})

    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ = Λ Δ, ones and s: the factor of the input, on the side of the output."""
        poles, step = self._poles(weights), np.exp(weights["log_dt"])
        one = np.ones(step.shape)
        if not self._holds:
            return poles * step, one, one
        logarithms, s = Discretisation.ZOH.modes(poles, step)
        return logarithms, one, s

    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return A and log_dt, for steps with which A decays as in the old states."""
        old = self._poles(weights), np.exp(weights["log_dt"])
        log_step = (
            np.log(steps_of_decay(-logarithms.real, *old)).astype(np.float32).astype(np.float64)
        )
        return self._poles_at(logarithms, log_step)

    def copied_pole_weights(
        self, logarithms: HostArray, weights: Weights, model: Weights
    ) -> dict[str, HostArray]:
        """Return A for the steps of the model, and these."""
        return self._poles_at(logarithms, model["log_dt"])

    def _poles_at(self, logarithms: HostArray, log_step: HostArray) -> dict[str, HostArray]:
        check_decay(logarithms, "an S5 layer")
        poles = logarithms / np.exp(log_step)
        real = inverse_transformed(-poles.real, "softplus")
        return {"A": np.stack([real, poles.imag], axis=-1), "log_dt": log_step}

    def matrices(self, weights: Weights) -> tuple[HostArray, HostArray]:
        """Return B and C."""
        return weights["B"], Packed("C").get(weights)

    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the arrays of B, which is real, and C."""
        return {"B": B.real} | Packed("C").put(C)

    def _poles(self, weights: Weights) -> HostArray:
        A = weights["A"]
        return np.asarray(-transformed(A[:, 0], "softplus") + 1j * A[:, 1])
