"""Stable systems of every kind for the laws, and how far rounding may take their singular values.

A system is drawn as a short recipe (kind, sizes, distance of the worst pole from the boundary,
departure from normality, unreachable states, silent inputs, repeated poles) and a seed: examples take
fractions of a millisecond, and a failing recipe shrinks to a short one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS, Array, adjoint, complex_normal

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace

DENSE = ("dense", "complex dense")
DIAGONAL = ("diagonal", "real output")
KINDS = DENSE + DIAGONAL

System = StateSpace | DiagonalStateSpace


@dataclass(frozen=True)
class Recipe:
    """All that determines a system."""

    kind: str
    discrete: bool
    n: int
    m: int
    p: int
    distance: float
    departure: float
    unreachable: int
    unobservable: int
    silent: int
    repeated: bool
    read_after_update: bool
    seed: int

    def build(self) -> System:
        """Build the system."""
        rng = np.random.default_rng(self.seed)
        options: dict[str, Any] = {
            "time": Discrete() if self.discrete else Continuous(),
            "read_after_update": self.read_after_update and self.discrete,
        }
        if self.kind in DIAGONAL:
            B, C = self._weights(rng, is_complex=True)
            poles = self._poles(rng, self.n)
            real = self.kind == "real output"
            return DiagonalStateSpace(poles, B, C, real_output=real, **options)
        is_complex = self.kind == "complex dense"
        A = self._schur_form(rng, is_complex=is_complex)
        B, C = self._weights(rng, is_complex=is_complex)
        draw = complex_normal if is_complex else (lambda g, *s: g.standard_normal(s))
        Q, _ = np.linalg.qr(draw(rng, self.n, self.n))
        return StateSpace(Q @ A @ adjoint(Q), Q @ B, C @ adjoint(Q), **options)

    def _poles(self, rng: np.random.Generator, count: int) -> Array:
        """Poles in the stable region; the first at `distance` from its boundary."""
        if self.discrete:
            modulus = (1.0 - self.distance) * np.sqrt(rng.uniform(size=count))
            modulus[0] = 1.0 - self.distance
            poles = modulus * np.exp(2j * np.pi * rng.uniform(size=count))
        else:
            decay = self.distance + rng.uniform(0.0, 3.0, count)
            decay[0] = self.distance
            poles = -decay + 1j * rng.uniform(-4.0, 4.0, count)
        if self.repeated:
            poles = poles[np.arange(count) // 2]
        return poles

    def _schur_form(self, rng: np.random.Generator, *, is_complex: bool) -> Array:
        """Triangular, or quasi-triangular and real, with `departure` above the diagonal."""
        n = self.n
        if is_complex:
            A = np.diag(self._poles(rng, n))
            noise = complex_normal(rng, n, n)
        else:
            A = np.zeros((n, n))
            for i, pole in zip(range(0, n, 2), self._poles(rng, (n + 1) // 2), strict=True):
                if i + 1 < n and rng.uniform() < 0.7:
                    A[i : i + 2, i : i + 2] = [[pole.real, pole.imag], [-pole.imag, pole.real]]
                else:
                    size = np.abs(pole) if self.discrete else pole.real
                    A[i, i] = size
                    A[i + 1 : i + 2, i + 1 : i + 2] = 0.5 * size
            noise = rng.standard_normal((n, n))
        return A + self.departure * np.triu(noise, 2 if not is_complex else 1) / np.sqrt(n)

    def _weights(self, rng: np.random.Generator, *, is_complex: bool) -> tuple[Array, Array]:
        draw = complex_normal if is_complex else (lambda g, *s: g.standard_normal(s))
        B, C = draw(rng, self.n, self.m), draw(rng, self.p, self.n)
        B[self.n - min(self.unreachable, self.n - 1) :] = 0.0
        C[:, : min(self.unobservable, self.n - 1)] = 0.0
        B[:, 1 : 1 + self.silent] = 0.0
        C[1 : 1 + self.silent] = 0.0
        return B, C


@st.composite
def recipes(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    discrete: bool | None = None,
    max_order: int = 8,
    min_order: int = 1,
    minimal: bool = False,
) -> Recipe:
    """Draw a recipe; a `minimal` one has no unreachable, unobservable or repeated states."""
    kind = draw(st.sampled_from(kinds))
    # Departure and nearness to the boundary multiply in every condition number: one at a time.
    distance, departure = draw(
        st.sampled_from(
            [(0.5, 0.0), (0.1, 0.3), (0.1, 1.0), (0.3, 3.0), (1e-2, 0.3), (1e-4, 0.0), (1e-6, 0.0)]
        )
    )
    few = st.just(0) if minimal else st.sampled_from([0, 0, 0, 1, 2])
    return Recipe(
        kind=kind,
        discrete=draw(st.booleans()) if discrete is None else discrete,
        n=draw(st.integers(min_order, max_order)),
        m=draw(st.integers(1, 4)),
        p=draw(st.integers(1, 4)),
        distance=distance,
        departure=departure,
        unreachable=draw(few),
        unobservable=draw(few),
        silent=draw(few),
        repeated=False if minimal else draw(st.sampled_from([False, False, True])),
        read_after_update=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def systems(**options: Any) -> st.SearchStrategy[System]:
    """Systems of `recipes`."""
    return recipes(**options).map(Recipe.build)


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
