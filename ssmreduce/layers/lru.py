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

from collections.abc import Mapping
from typing import ClassVar

import array_api_compat
import numpy as np

from ssmreduce._checks import floating_array
from ssmreduce._namespace import Array, HostArray
from ssmreduce.errors import ShapeError, UnstableSystemError
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.time_domain import Discrete

_SMALLEST_MODULUS = 1e-6
"""Poles below decay within one step; at exactly zero the layer's gradient is NaN."""


class LRU:
    """The LRU parametrisation with real arrays for real and imaginary parts.

    Weights, for n states, m inputs and p outputs: nu_log, theta_log, gamma_log (n), B_re, B_im
    (n, m), C_re, C_im (p, n), and D (p) elementwise or (p, m).
    """

    poles: ClassVar[tuple[str, ...]] = ("nu_log", "theta_log", "gamma_log")
    input_matrix: ClassVar[tuple[str, ...]] = ("B_re", "B_im")
    output_matrix: ClassVar[tuple[str, ...]] = ("C_re", "C_im")
    feedthrough: ClassVar[tuple[str, ...]] = ("D",)

    def names(self) -> tuple[str, ...]:
        """Return the names of all weights."""
        return (*self.poles, *self.input_matrix, *self.output_matrix, *self.feedthrough)

    def read(self, weights: Mapping[str, Array]) -> DiagonalStateSpace:
        """Return the discrete system that the layer runs, in the arrays of `weights`.

        They may be tensors that ask for a gradient, or tracers of JAX: the system can be differentiated.

        Raises
        ------
        ShapeError
            If the weights do not fit together.
        NonFiniteError
            If a weight holds NaN or Inf.
        """
        _check(weights)
        xp = array_api_compat.array_namespace(weights["nu_log"])
        B = weights["B_re"] + 1j * weights["B_im"]
        C = weights["C_re"] + 1j * weights["C_im"]
        D = weights["D"]
        if D.ndim == 1:
            D = D[:, None] * xp.eye(D.shape[0], dtype=D.dtype, device=array_api_compat.device(D))
        return DiagonalStateSpace.from_log(
            -xp.exp(weights["nu_log"]) + 1j * xp.exp(weights["theta_log"]),
            xp.exp(weights["gamma_log"])[:, None] * B,
            C,
            D,
            time=Discrete(),
            real_output=True,
            read_after_update=True,
        )

    def write(self, system: DiagonalStateSpace) -> dict[str, HostArray]:
        """Return the weights, all but the feedthrough, of a layer that runs `system`.

        Raises
        ------
        UnstableSystemError
            If a pole has |λ| ≥ 1.
        """
        modulus = np.maximum(np.abs(system.eigenvalues), _SMALLEST_MODULUS)
        if np.any(modulus >= 1.0):
            raise UnstableSystemError(
                f"`system` has a pole with |λ| = {modulus.max():.17g}; an LRU stores |λ| < 1 only. "
                "Reduce to another order."
            )
        nu = -np.log(modulus)
        phase = np.angle(system.eigenvalues) % (2.0 * np.pi)
        phase = np.where(phase == 0.0, 2.0 * np.pi, phase)
        gamma_squared = -np.expm1(-2.0 * nu)
        B = system.B / np.sqrt(gamma_squared)[:, None]
        return {
            "nu_log": np.log(nu),
            "theta_log": np.log(phase),
            "gamma_log": 0.5 * np.log(gamma_squared),
            "B_re": B.real,
            "B_im": B.imag,
            "C_re": system.C.real,
            "C_im": system.C.imag,
        }

    def input_scale(self, weights: Mapping[str, HostArray]) -> HostArray:
        """Return γ, shape (n,), with B = γ (B_re + i B_im) the system's input matrix."""
        return np.asarray(np.exp(weights["gamma_log"]))


def _check(weights: Mapping[str, Array]) -> None:
    for name, value in weights.items():
        floating_array(value, name, 1)
    nu_log, B_re, C_re, D = (weights[name] for name in ("nu_log", "B_re", "C_re", "D"))
    if nu_log.ndim != 1:
        raise ShapeError(f"`nu_log` has shape {nu_log.shape}; expected (n,), one layer at a time.")
    n = nu_log.shape[0]
    if B_re.ndim != 2 or B_re.shape[0] != n:
        raise ShapeError(f"`B_re` has shape {B_re.shape}; expected ({n}, m), as `nu_log` has {n}.")
    if C_re.ndim != 2 or C_re.shape[1] != n:
        raise ShapeError(f"`C_re` has shape {C_re.shape}; expected (p, {n}), as `nu_log` has {n}.")
    m, p = B_re.shape[1], C_re.shape[0]
    expected = {"theta_log": (n,), "gamma_log": (n,), "B_im": (n, m), "C_im": (p, n)}
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ShapeError(f"`{name}` has shape {weights[name].shape}; expected {shape}.")
    if D.shape != (p, m) and not (D.shape == (p,) and p == m):
        raise ShapeError(f"`D` has shape {D.shape}; expected ({p},) or ({p}, {m}).")
