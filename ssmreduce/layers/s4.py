"""S4: weights <-> systems (Gu, Goel and Ré, ICLR 2022), diagonal plus low rank, one for each channel.

With n stored poles Λ, p_r = [P_r; conj P_r], b = [B; conj B] and c = [C, conj C],

    x' = (diag(Λ, conj Λ) - Σ_r p_r p_rᴴ) x + b u,   y = c x,

by the bilinear rule with a step Δ for each channel. Once the layer has run with sequences of length L,
its parameter C holds C̃ = c (I - A^L) and ``l_kernel`` holds L; reading undoes that.

The state matrix may be far from normal (that of HiPPO-LegS has real eigenvalues -1 ... -n and eigenvectors
that no arithmetic tells apart), so such a layer is read as a dense system of order 2n. A reduced one is
diagonal: it is written with P = 0, which has gradient zero and stays, and with l_kernel = 0.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.layers.discretisation import Discretisation
from ssmreduce.layers.layer import HasArrays, Layer, Weights, unsaid
from ssmreduce.layers.s4d import S4Diagonal
from ssmreduce.layers.storage import Packed
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.real_form import real_ports, real_state
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete


class S4(S4Diagonal):
    """The kernel `SSMKernelDPLR`: diagonal plus low rank, one system for each channel.

    ::

        x' = (diag(Λ, conj Λ) - Σ_r p_r p_rᴴ) x + b u,   y = c x,

    by the bilinear rule. Weights are those of `S4Diagonal`, P (r, H, n, 2) and l_kernel. It is read
    as a dense system of order 2n; a reduced one is diagonal, and written with P = 0.

    Parameters
    ----------
    **options
        Those of `S4Diagonal`, but for the rule.

    References
    ----------
    Gu, Goel and Ré, Efficiently Modeling Long Sequences with Structured State Spaces, ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.s4 import S4
    >>> weights = {"A_real": np.zeros((1, 2)), "A_imag": np.ones((1, 2))}
    >>> weights |= {"inv_dt": np.zeros((1, 1)), "l_kernel": np.array(0)}
    >>> weights |= {"B": np.ones((1, 1, 2, 2)), "C": np.ones((1, 1, 2, 2))}
    >>> S4().read(weights | {"P": np.ones((1, 1, 2, 2))}).A.shape
    (1, 4, 4)
    """

    shapes = MappingProxyType({**S4Diagonal.shapes, "P": ("r", "H", "n", 2), "l_kernel": ()})
    poles = ("A_real", "A_imag", "inv_dt", "P", "B", "C")
    caches = ("dA", "dB", "dC", "step_params")
    carries_matrices = False

    def __init__(self, **options: Any) -> None:
        super().__init__(Discretisation.BILINEAR, **options)

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of `SSMKernelDPLR`, and refuse channels that share their poles."""
        if not has("A_real", "A_imag", "inv_dt", B=4, C=4, P=4, l_kernel=0):
            return None
        if not hasattr(layer, "real_transform"):
            raise unsaid("S4", "real_transform", 'S4(real_transform="exp")')
        return cls(**cls._options(layer))

    def read(self, weights: Weights) -> System:
        """Return the systems that the layer runs: dense and real of order 2n, diagonal if P = 0."""
        self.check(weights)
        if not np.any(weights["P"]):
            return super().read(self.before_runs(weights))
        b, c = self.matrices(weights)
        P = np.moveaxis(Packed("P").get(weights), 0, -1)
        # Of [P; conj P] in coordinates [Re; Im]; its adjoint there is twice that.
        p = np.concatenate([P.real, P.imag], axis=-2)
        A = real_state(self._poles(weights)) - 2.0 * p @ adjoint(p)
        B, C = real_ports(b, 2.0 * c)
        step = np.broadcast_to(self._step(weights), b.shape[:-1])
        half_step = 0.5 * np.concatenate([step, step], axis=-1)[..., None]
        identity = np.eye(A.shape[-1])
        backward = identity - half_step * A
        A = np.asarray(np.linalg.solve(backward, identity + half_step * A))
        B = np.linalg.solve(backward, 2.0 * half_step * B)
        length = int(weights["l_kernel"])
        if length:
            remaining = identity - np.linalg.matrix_power(A, length)
            C = adjoint(np.linalg.solve(adjoint(remaining), adjoint(C)))
        return StateSpace(A, B, C, time=Discrete(), read_after_update=True)

    def before_runs(self, weights: Weights) -> Weights:
        """Return weights of the same layer with C and l_kernel = 0, where the state matrix is diagonal."""
        length = int(weights["l_kernel"])
        if not length or np.any(weights["P"]):
            return weights
        C = Packed("C").get(weights) / -np.expm1(length * self.modes(weights)[0])
        return {**weights, **Packed("C").put(C), "l_kernel": np.zeros(())}

    def write(
        self, system: System, weights: Weights, model: Weights | None = None, *, order: int = 0
    ) -> dict[str, HostArray]:
        """Return the weights of a layer that runs `system`, which is diagonal: with P = 0."""
        new = super().write(system, weights, model, order=order)
        P = np.zeros((len(weights["P"]), *new["A_real"].shape, 2))
        return {**new, "P": P, "l_kernel": np.zeros(())}
