"""LinOSS: weights <-> system, and reduction by selection of oscillators (Rusch and Rus, ICLR 2025).

Oscillator j has the step Δ = sigmoid(steps), and runs on complex z and y driven by v = b_j u,

    [z; y][k] = M_j [z; y][k-1] + F_j v[k],   output[k] = Re(C y[k]) + D u[k],

with M and F of `ssmreduce.layers.oscillators` for A = relu(A_diag) and G = relu(G_diag), G = 0 without
damping. With damping A is clipped to where the poles are a pair: Δ² A lies between (√q - 1)² and
(√q + 1)², q = 1 + Δ G.

As M and F are real, the oscillator contributes R_j g_j(k) to the impulse response, with the real matrix
R_j = Re(c_j b_jᵀ) and the scalar g_j(k) = Δ² S ρᵏ sin((k+1)θ)/sin θ: residues have a fixed phase. Balanced
truncation asks for others. So reduction keeps oscillators as they are and refits C, see
`ssmreduce.layers.selection`: y = Σ_j Re(c_j) Re(b_j)ᵀ g_j - Im(c_j) Im(b_j)ᵀ g_j is linear in Re c_j and
Im c_j, and all outputs share the features Re(b_j) g_j and -Im(b_j) g_j.

Without damping, poles of IMEX have |λ| = 1: the H2 norm exists over a horizon only.

Reference: Boyer, Rusch and Rus, Learning to dissipate energy in oscillatory state-space models, 2025.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint, to_double
from ssmreduce._checks import flag, is_one_of, positive_horizon, shown
from ssmreduce.layers.layer import HasArrays, Weights, refusal, unsaid
from ssmreduce.layers.oscillators import Oscillators, inner_products, oscillators
from ssmreduce.layers.selecting import SelectingLayer
from ssmreduce.layers.selection import checked_groups, pursue, refit
from ssmreduce.layers.storage import Packed
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

Rule = Literal["IM", "IMEX"]

_APART = float(np.finfo(np.float64).eps) ** 0.25
"""sin θ from which a pair is diagonalised: residues are 1/sin θ, so that it costs a quarter of the digits."""

_refusal = partial(refusal, "LinOSS", expected="IM without damping, or IMEX")


class LinOSS(SelectingLayer):
    """The LinOSS layer; reduced by selecting oscillators, with C refitted.

    Weights, for N oscillators, m inputs and as many outputs: A_diag, steps (N), with damping G_diag
    (N), B (N, m, 2), C (m, N, 2) of real and imaginary parts, D (m).

    Parameters
    ----------
    discretisation : {"IMEX", "IM"}
        The layer's `discretization`.
    damped : bool
        The layer's `damping`; only with IMEX.

    Raises
    ------
    UnsupportedLayerError
        If no layer has these options.

    References
    ----------
    Rusch and Rus, Oscillatory State-Space Models, ICLR 2025; Boyer, Rusch and Rus, Learning to
    dissipate energy in oscillatory state-space models, 2025, for damping.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.linoss import LinOSS
    >>> weights = {
    ...     "A_diag": np.array([1.0, 2.0]),
    ...     "G_diag": np.array([0.1, 0.1]),
    ...     "steps": np.zeros(2),
    ...     "B": np.ones((2, 1, 2)),
    ...     "C": np.ones((1, 2, 2)),
    ...     "D": np.zeros(1),
    ... }
    >>> layer = LinOSS("IMEX", damped=True)
    >>> picked, scores = layer.ranking(weights)
    >>> picked, layer.refitted(weights, np.sort(picked[:1]))["A_diag"]
    (array([0, 1]), array([1.]))
    """

    known_by = "A_diag"
    sizes = ("state_dim",)

    def __init__(self, discretisation: Rule = "IMEX", damped: bool = True) -> None:
        if not is_one_of(discretisation, get_args(Rule)):
            raise _refusal(f"`discretization` is {shown(discretisation)}, not 'IM' or 'IMEX'")
        self._implicit = discretisation == "IM"
        self._damped = flag(damped, "damped")
        if self._implicit and self._damped:
            raise _refusal("no formula is known for `discretization` 'IM' with damping")
        self.shapes = {
            "A_diag": ("n",),
            **({"G_diag": ("n",)} if self._damped else {}),
            "steps": ("n",),
            "B": ("n", "m", 2),
            "C": ("m", "n", 2),
            "D": ("m",),
        }

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> LinOSS | None:
        """Recognise the arrays of discretax, or of the authors' own layer, which has no damping.

        Raises
        ------
        UnsupportedLayerError
            If it is a variant without a formula, or its arrays do not go with its `damping`.
        """
        if not has(A_diag=1, steps=1, B=3, C=3, D=1):
            return None
        found = has(G_diag=1)
        if not found and not hasattr(layer, "discretization"):
            raise unsaid("LinOSS", "discretization", 'LinOSS("IM", damped=False)')
        damped = bool(getattr(layer, "damping", found))
        if damped != found:
            raise _refusal(f"`damping` is {damped} but it has {'a' if found else 'no'} `G_diag`")
        return cls(getattr(layer, "discretization", "IMEX"), damped)

    @classmethod
    def by_default(cls, has: HasArrays) -> LinOSS:
        """Return IMEX, with damping if there is an array of it."""
        return cls(damped=has(G_diag=1))

    def ports(self, weights: Weights) -> tuple[tuple[int, ...], int, int]:
        """Return (), for no batch axes, and the numbers of inputs and outputs."""
        return (), int(weights["B"].shape[1]), int(weights["C"].shape[0])

    def read(self, weights: Weights) -> System:
        """Return the discrete system with real output that the layer runs.

        Returns
        -------
        DiagonalStateSpace or StateSpace
            Diagonal, with two states for each oscillator, where all poles are pairs that are apart;
            otherwise dense and real, with the four states Re z, Im z, Re y, Im y for each.

        Raises
        ------
        ShapeError
            If the weights do not fit together.
        NonFiniteError
            If a weight holds NaN or Inf.
        """
        found, B, C = self._parts(weights)
        D = np.diag(to_double(weights["D"]))
        if np.all(found.sine >= _APART):
            return _diagonal(found, B, C, D)
        return _dense(found, B, C, D)

    def gramians(self, weights: Weights, horizon: int | None = None) -> HostArray:
        """P_ij = Σ_k M_iᵏ F_i F_jᵀ M_jᵏᵀ, the inner products of the states of any two oscillators.

        Parameters
        ----------
        weights : dict
            The weights.
        horizon : int, optional
            Number of steps k = 0, 1, ...; all of them if left out.

        Returns
        -------
        (N, N, 2, 2) array
            For states [z; y] that are driven by the input itself, without b.

        Raises
        ------
        UnstableSystemError
            If an oscillator does not decay and there is no horizon.
        NoConvergenceError
            If the sum overflows.
        """
        found, _, _ = self._parts(weights)
        return inner_products(found, positive_horizon(horizon))

    def ranking(self, weights: Weights, horizon: int | None = None) -> tuple[HostArray, HostArray]:
        """Return the oscillators in the order of selection, and how much each adds to the output.

        The squares of the scores add up to the squared H2 norm, over the horizon and without D; those of all
        but the first r to the squared H2 error of order r. Scores below √eps of the norm are rounding.

        Parameters
        ----------
        weights : dict
            The weights.
        horizon : int, optional
            Length of the impulse responses; infinite if left out.

        Returns
        -------
        picked : (N,) int array
            Oscillators.
        scores : (N,) array
            In the same order, which is not always descending.

        Raises
        ------
        UnstableSystemError
            If an oscillator does not decay and there is no horizon.
        """
        gram, C, _ = self._features(weights, horizon)
        return pursue(gram, C, 2)

    def refitted(
        self, weights: Weights, kept: HostArray, horizon: int | None = None
    ) -> dict[str, HostArray]:
        """Return the weights of the layer with the oscillators `kept` only.

        Raises
        ------
        ArgumentError
            If `kept` is not an ascending array of indices.
        UnstableSystemError
            If an oscillator does not decay and there is no horizon.
        """
        gram, C, units = self._features(weights, horizon)
        kept = checked_groups(kept, self.order(weights))
        columns = np.stack([2 * kept, 2 * kept + 1], axis=-1).reshape(-1)
        fitted = refit(gram, C, columns).reshape(len(C), len(kept), 2)
        first = [name for name, axis in self.state_axes().items() if axis == 0]
        new = {name: np.asarray(weights[name])[kept] for name in first}
        return {**new, "C": fitted / units[kept][:, None], "D": np.asarray(weights["D"])}

    def kept_states(self, kept: HostArray, order: int) -> HostArray:
        """Where the kept oscillators of `order` are in the hidden state [z; y], shape (2r,)."""
        kept = checked_groups(kept, order)
        return np.concatenate([kept, kept + order])

    def _parts(self, weights: Weights) -> tuple[Oscillators, HostArray, HostArray]:
        """The recursions, and complex B (N, m) and C (m, N), all at double precision."""
        self.check(weights)
        doubles = {name: to_double(weights[name]) for name in self.shapes}
        B, C = Packed("B").get(doubles), Packed("C").get(doubles)
        with np.errstate(over="ignore"):  # a step of zero
            step = 1.0 / (1.0 + np.exp(-doubles["steps"]))
        stiffness = np.maximum(doubles["A_diag"], 0.0)
        damping = np.maximum(doubles["G_diag"], 0.0) if self._damped else np.zeros_like(step)
        found = oscillators(step, stiffness, damping, implicit=self._implicit, clip=self._damped)
        return found, np.asarray(B), np.asarray(C)

    def _features(
        self, weights: Weights, horizon: int | None
    ) -> tuple[HostArray, HostArray, HostArray]:
        """Gram matrix of Re(b_j) g_j and -Im(b_j) g_j; output weights of them, shape (m, 2N); units of b.

        Features are those of b in units of their own, powers of two.
        """
        found, B, _ = self._parts(weights)
        responses = inner_products(found, positive_horizon(horizon))[:, :, 1, 1]
        units = np.ldexp(1.0, np.frexp(np.max(np.abs(weights["B"]), axis=(1, 2)))[1] - 1)
        B = B / units[:, None]
        rows = np.stack([B.real, -B.imag], axis=1).reshape(2 * len(B), -1)
        gram = (rows @ adjoint(rows)) * np.repeat(np.repeat(responses, 2, axis=0), 2, axis=1)
        C = to_double(weights["C"]) * units[:, None]
        return gram, C.reshape(len(C), -1), units


def _diagonal(found: Oscillators, B: HostArray, C: HostArray, D: HostArray) -> DiagonalStateSpace:
    """Two states with the pole μ = ρ exp(iθ), driven by Re b and Im b, read by 2r Re c and -2r Im c.

    g(k) = Re(2r μᵏ) with 2r = Δ² S (1 - i cot θ).
    """
    logarithms = -0.5 * found.decay + 1j * np.arctan2(found.sine, found.cosine)
    twice = found.F[:, 1] * (1.0 - 1j * found.cosine / found.sine)
    return DiagonalStateSpace.from_log(
        np.repeat(logarithms, 2),
        np.stack([B.real, B.imag], axis=1).reshape(2 * len(B), -1).astype(np.complex128),
        np.stack([twice * C.real, -twice * C.imag], axis=2).reshape(len(C), -1),
        D,
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )


def _dense(found: Oscillators, B: HostArray, C: HostArray, D: HostArray) -> StateSpace:
    """The recursions as they are, on Re z, Im z, Re y, Im y of each oscillator."""
    count = len(B)
    A = np.zeros((count, 2, 2, count, 2, 2))
    for part in range(2):
        A[np.arange(count), :, part, np.arange(count), :, part] = found.M
    parts = np.stack([B.real, B.imag], axis=1)
    driven = found.F[:, :, None, None] * parts[:, None]
    seen = np.zeros((len(C), count, 2, 2))
    seen[:, :, 1] = np.stack([C.real, -C.imag], axis=-1)
    states = 4 * count
    return StateSpace(
        A.reshape(states, states),
        driven.reshape(states, -1),
        seen.reshape(-1, states),
        D,
        time=Discrete(),
        read_after_update=True,
    )
