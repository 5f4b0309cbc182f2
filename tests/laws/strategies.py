"""Stable systems of every kind for the laws, and how far rounding may take their singular values.

The systems are those of `ssmreduce.testing`, near the stability boundary or far from normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS, Array, adjoint

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace
from ssmreduce.testing import diagonal_state_spaces, state_spaces

DENSE = ("dense", "complex dense")
DIAGONAL = ("diagonal", "real output")
KINDS = DENSE + DIAGONAL

# Departure from normality and nearness to the boundary multiply in every condition number: one at a time.
DISTANCES = {0.5: 0.0, 0.1: 5.0, 0.3: 15.0, 1e-2: 1.5, 1e-4: 0.0, 1e-6: 0.0}
"""Least distance of a pole from the boundary, and the departure that goes with it."""

System = StateSpace | DiagonalStateSpace


def systems(
    *,
    kinds: tuple[str, ...] = KINDS,
    discrete: bool | None = None,
    max_order: int = 8,
    min_order: int = 1,
    minimal: bool | None = None,
    batch_shape: tuple[int, ...] = (),
) -> st.SearchStrategy[Any]:
    """Systems without feedthrough, read before or after the update."""
    options: dict[str, Any] = {
        "order": (min_order, max_order),
        "inputs": (1, 4),
        "outputs": (1, 4),
        "time": None if discrete is None else Discrete() if discrete else Continuous(),
        "minimal": minimal,
        "feedthrough": False,
        "read_after_update": None,
        "batch_shape": batch_shape,
    }

    def of_kind(kind: str, margin: float, departure: float) -> st.SearchStrategy[Any]:
        if kind in DIAGONAL:
            real_output = kind == "real output"
            return diagonal_state_spaces(margin=margin, real_output=real_output, **options)
        dtype = "complex128" if kind == "complex dense" else "float64"
        return state_spaces(margin=margin, departure=departure, dtype=dtype, **options)

    return st.one_of([of_kind(kind, *pair) for kind in kinds for pair in DISTANCES.items()])


def with_matrices(system: System, A: Array, B: Array, C: Array) -> System:
    """Return a system of the same kind with other arrays and no feedthrough."""
    options: dict[str, Any] = {
        "time": system.time,
        "read_after_update": system.read_after_update,
    }
    if isinstance(system, DiagonalStateSpace):
        return DiagonalStateSpace(A, B, C, real_output=system.real_output, **options)
    return StateSpace(A, B, C, **options)


def state_matrix(system: System) -> Array:
    """Return A, or the eigenvalues of a diagonal system: what `with_matrices` takes."""
    return system.eigenvalues if isinstance(system, DiagonalStateSpace) else system.A


def dense(system: System) -> StateSpace:
    """Return the dense system behind a diagonal one."""
    return system.to_dense() if isinstance(system, DiagonalStateSpace) else system


def lyapunov(system: System, Q: Array, *, dual: bool = False) -> Array:
    """Solve the Lyapunov equation of A (or Aᴴ) with right-hand side Q, as one linear system."""
    A = dense(system).A
    solve = discrete_lyapunov if isinstance(system.time, Discrete) else continuous_lyapunov
    return solve(adjoint(A) if dual else A, Q)


@dataclass(frozen=True)
class Scale:
    """Sizes that decide how much rounding a system suffers."""

    gramians: float
    """sqrt(‖P‖ ‖Q‖), at least σ₁."""
    condition: float
    """1 + ‖L⁻¹‖ ‖A‖² (discrete) or 1 + 2 ‖L⁻¹‖ ‖A‖: the condition of the Lyapunov operator L."""
    n: int

    @property
    def rounding(self) -> float:
        """n eps sqrt(‖P‖ ‖Q‖) κ, the change of the singular values where A is perturbed by eps ‖A‖."""
        return self.n * EPS * self.gramians * self.condition


def scale_of(system: System) -> Scale:
    """Return sizes that decide how much rounding a system suffers, from linear systems of their own."""
    full = dense(system)
    n = full.order
    # ‖L⁻¹‖ = ‖L⁻¹(I)‖, since L⁻¹ keeps the order of Hermitian matrices.
    inverse = max(
        float(np.linalg.norm(lyapunov(system, np.eye(n), dual=dual), 2)) for dual in (False, True)
    )
    size = float(np.linalg.norm(full.A, 2))
    condition = inverse * (size**2 if isinstance(system.time, Discrete) else 2.0 * size)
    P = np.linalg.norm(lyapunov(system, full.B @ adjoint(full.B)), 2)
    Q = np.linalg.norm(lyapunov(system, adjoint(full.C) @ full.C, dual=True), 2)
    return Scale(float(np.sqrt(P * Q)), 1.0 + condition, n)


def bilinear(system: System, shift: float) -> System:
    """Map s = shift (z-1)/(z+1) between the time domains; the Hankel singular values stay.

    Continuous to discrete: A_d = (sI+A)(sI-A)⁻¹, B_d = sqrt(2s)(sI-A)⁻¹B, C_d = sqrt(2s) C (sI-A)⁻¹.
    Back: A = s (A_d-I)(A_d+I)⁻¹, B = sqrt(2s)(A_d+I)⁻¹B_d, C = sqrt(2s) C_d (A_d+I)⁻¹.
    """
    to_discrete = not isinstance(system.time, Discrete)
    time: Any = Discrete() if to_discrete else Continuous()
    root = np.sqrt(2.0 * shift)
    if isinstance(system, DiagonalStateSpace):
        poles = system.eigenvalues
        below = shift - poles if to_discrete else poles + 1.0
        above = shift + poles if to_discrete else shift * (poles - 1.0)
        B, C = root * system.B / below[:, None], root * system.C / below
        return DiagonalStateSpace(above / below, B, C, time=time, real_output=system.real_output)
    identity = np.eye(system.order)
    below = shift * identity - system.A if to_discrete else system.A + identity
    above = shift * identity + system.A if to_discrete else shift * (system.A - identity)
    inverse = np.linalg.inv(below)
    return StateSpace(
        above @ inverse, root * inverse @ system.B, root * system.C @ inverse, time=time
    )


def difference(first: System, second: System) -> StateSpace:
    """Return the system of the difference of two state parts."""
    a, b = dense(first), dense(second)
    A = np.block([[a.A, np.zeros((a.order, b.order))], [np.zeros((b.order, a.order)), b.A]])
    return StateSpace(
        A, np.concatenate([a.B, b.B]), np.concatenate([a.C, -b.C], axis=1), time=a.time
    )


def assert_within(error: object, allowed: float) -> None:
    """Assert that no entry of `error` exceeds `allowed`; NaN fails."""
    worst = float(np.max(np.abs(error), initial=0.0))
    assert worst <= allowed, f"off by {worst:.3e}, allowed {allowed:.3e}"
