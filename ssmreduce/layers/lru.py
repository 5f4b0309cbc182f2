"""LRU: weights <-> system (Orvieto et al., ICML 2023).

    λ = exp(-exp(nu_log) + i exp(theta_log)),   h[k] = λ h[k-1] + exp(gamma_log) B u[k],
    y[k] = Re(C h[k]) + D u[k].

γ is a parameter of its own and is folded into the input matrix when a layer is read. Written layers
get γ = sqrt(1 - |λ|²), computed as sqrt(-expm1(-2 exp(nu_log))), which keeps its digits near |λ| = 1.
The map of a pole to weights has edges, all kept finite: a positive real pole has phase 0, whose
logarithm would be -inf, and gets phase 2π; |λ| below 1e-6 is raised to that, since λ = 0 has NaN
gradients; |λ| ≥ 1 cannot be stored and is refused.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce.layers.layer import HasArrays, Layer, Weights, stack_refusal, wrong_shape
from ssmreduce.layers.lti import LTILayer, check_decay
from ssmreduce.layers.storage import Parts, Storage, Whole


class LRU(LTILayer):
    """The LRU parametrisation; its weights may be tracers, or tensors that ask for a gradient.

    ::

        λ = exp(-exp(nu_log) + i exp(theta_log)),   h[k] = λ h[k-1] + exp(gamma_log) B u[k],
        y[k] = Re(C h[k]) + D u[k].

    Weights, for n states, m inputs and p outputs: nu_log, theta_log, gamma_log (n), B (n, m), C
    (p, n), and D (p) elementwise or (p, m).

    Parameters
    ----------
    B, C : Storage, optional
        Where the matrices are: by default in the real arrays B_re, B_im, C_re and C_im.

    References
    ----------
    Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, ICML 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.lru import LRU
    >>> names = ("nu_log", "theta_log", "gamma_log")
    >>> weights = {name: np.zeros(2) for name in names} | {"D": np.zeros(1)}
    >>> weights |= {name: np.ones((2, 1)) for name in ("B_re", "B_im")}
    >>> weights |= {name: np.ones((1, 2)) for name in ("C_re", "C_im")}
    >>> np.log(LRU().read(weights).poles()).round(6).tolist()
    [(-1+1j), (-1+1j)]
    """

    known_by = "nu_log"
    poles = ("nu_log", "theta_log", "gamma_log")
    feedthrough = "D"
    sizes = ("d_state", "state_features")
    states = ("state",)

    def __init__(self, B: Storage | None = None, C: Storage | None = None) -> None:
        self._B: Storage = Parts("B_re", "B_im") if B is None else B
        self._C: Storage = Parts("C_re", "C_im") if C is None else C
        self.shapes = {
            **dict.fromkeys(self.poles, ("n",)),
            **dict.fromkeys(self._B.names, ("n", "m")),
            **dict.fromkeys(self._C.names, ("p", "n")),
            "D": None,
        }

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of CompreSSM, discretax and lrnnx, or of LRU-pytorch and forgi86."""
        if not has("nu_log", "theta_log", "gamma_log", "D"):
            return None
        if has(nu_log=2, theta_log=2, gamma_log=2):
            raise stack_refusal("LRU")
        if has("B_re", "B_im", "C_re", "C_im"):
            return cls()
        if has("B", "C"):
            return cls(Whole("B"), Whole("C"))
        return None

    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ = -exp(nu_log) + i exp(theta_log), γ and ones."""
        xp = array_api_compat.array_namespace(weights["nu_log"])
        gamma = xp.exp(weights["gamma_log"])
        logarithms = -xp.exp(weights["nu_log"]) + 1j * xp.exp(weights["theta_log"])
        return logarithms, gamma, xp.ones_like(gamma)

    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return nu_log, theta_log and the gamma_log that goes with them."""
        check_decay(logarithms, "an LRU")
        nu = -logarithms.real
        phase = logarithms.imag % (2.0 * np.pi)
        phase = np.where(phase == 0.0, 2.0 * np.pi, phase)
        return {
            "nu_log": np.log(nu),
            "theta_log": np.log(phase),
            "gamma_log": 0.5 * np.log(-np.expm1(-2.0 * nu)),
        }

    def matrices(self, weights: Weights) -> tuple[Array, Array]:
        """Return B and C without γ."""
        return self._B.get(weights), self._C.get(weights)

    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the arrays of B and C."""
        return self._B.put(B) | self._C.put(C)

    def check(self, weights: Weights) -> None:
        """Raise `ShapeError` unless the weights fit together."""
        super().check(weights)
        m, p = weights[self._B.names[0]].shape[1], weights[self._C.names[0]].shape[0]
        found = tuple(weights["D"].shape)
        if found != (p, m) and (p != m or found != (p,)):
            raise wrong_shape("D", found, (p, m), f" or ({p},)" if p == m else "")
