"""Descent of ‖G - G_r‖_H2 by interpolation at mirrored poles, with steps of a chosen length.

The gradient of ‖G - G_r‖² on the manifold of systems of order r is 2 (G_r - P G), where P G, the projection
of G onto the tangent space, is what the fixed-point iteration interpolates. A step of length α interpolates
(1 - α) G_r + α G at the mirrored poles of G_r: one along the gradient, and for α = 1 the fixed-point
iteration itself. That one cycles where the Hessian has an eigenvalue above 2, and often finds a good
neighbourhood before; so the first few steps have length 1. From the best of these on, the error may not rise:
lengths are those of Barzilai and Borwein, shortened until it falls.

References: Mlinarić, Beattie, Drmač and Gugercin, IRKA is a Riemannian gradient descent method, IEEE Trans.
Automatic Control 70 (2025); Barzilai and Borwein, IMA J. Numer. Anal. 8 (1988).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.equations.stability import check_stable_form
from ssmreduce.errors import NoConvergenceError, UnstableSystemError
from ssmreduce.reduction.h2_plant import Plant, TriangularSystem, distance
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Continuous

_FULL_STEPS = 10
"""Steps of length 1 at first; where they do not converge, rounding is not felt yet."""

_SHORTEST, _LONGEST = 0.05, 4.0
"""Lengths from which a line search starts."""

_VANISHED = 1e-6
"""Length below which a line search gives up."""

_DESCENT = 0.1
"""Share of the decrease that the gradient promises, ‖step‖²/α, that is asked for."""


class Iterate:
    """A reduced system in continuous form, its error, and the step that led to it."""

    def __init__(self, plant: Plant, reduced: StateSpace) -> None:
        self.plant = plant
        self.reduced = reduced
        self.triangular = TriangularSystem.of(reduced)
        check_stable_form(self.triangular.form, Continuous())
        self._observed = plant.observed(self.triangular.triangle, self.triangular.C)
        self.error = distance(plant, self.triangular, self._observed)
        self.previous: Iterate | None = None
        self.length, self.step = 1.0, np.inf

    @cached_property
    def _solutions(self) -> tuple[HostArray, HostArray, HostArray, HostArray]:
        """X and Y of the plant, and those of the reduced system itself: its Gramians."""
        plant, small = self.plant, self.triangular
        form, n = small.form, len(plant.B)
        P, Q = (Z @ adjoint(Z) for Z in (small.Z, small.Y))
        X = np.concatenate([plant.reached(small.triangle, small.B), form.reached(P)])
        Y = np.concatenate([self._observed, form.observed(Q)])
        if plant.real:
            # In the real states of the reduced system the solutions are real.
            X = adjoint(form.reached(adjoint(X))).real
            Y = adjoint(form.observed(adjoint(Y))).real
        return X[:n], X[n:], Y[:n], Y[n:]

    def moved(self, length: float) -> Iterate | None:
        """Take a step; None where that gives no stable system of this order that responds."""
        plant, reduced = self.plant, self.reduced
        X, P, Y, Q = self._solutions
        n, V, W = len(X), X, Y
        if length != 1.0:
            V, W = np.concatenate([X, P]), np.concatenate([length * Y, (1.0 - length) * Q])
        if not (np.all(np.isfinite(V)) and np.all(np.isfinite(W))):
            return None
        V, W = np.linalg.qr(V)[0], np.linalg.qr(W)[0]
        projected = adjoint(W[:n]) @ np.concatenate([plant.apply(V[:n]), plant.B], axis=1)
        C = plant.C @ V[:n]
        if length != 1.0:
            own = np.concatenate([reduced.A @ V[n:], reduced.B], axis=1)
            projected = projected + adjoint(W[n:]) @ own
            C = length * C + (1.0 - length) * (reduced.C @ V[n:])
        try:
            projected = np.linalg.solve(adjoint(W) @ V, projected)
            A, B = stable(projected[:, : V.shape[1]]), projected[:, V.shape[1] :]
            if not all(np.all(np.isfinite(x)) for x in (A, B, C)):
                return None
            following = Iterate(plant, StateSpace(A, B, C, time=Continuous()))
        except (np.linalg.LinAlgError, NoConvergenceError, UnstableSystemError):
            # A pole so near to the boundary that its Gramian cannot be computed, for one.
            return None
        if following.triangular.norm() == 0.0 or not np.isfinite(following.error):
            return None
        following.previous, following.length = self, length
        following.step = following.triangular.distance(self.triangular)
        return following

    def lowered(self, length: float, rounding: float) -> Iterate | None:
        """Take a step of at most this length that lowers the error; None where rounding hides any."""
        while length > _VANISHED:
            following = self.moved(length)
            if following is None:
                length *= 0.5
                continue
            slope = following.step * (following.step / length)
            fall = (self.error - following.error) * (self.error + following.error)
            if fall >= _DESCENT * slope - 2.0 * rounding * self.error:
                return following
            length *= min(max(slope / (2.0 * slope - fall), 0.1), 0.7)
        return None

    def next_length(self) -> float:
        """⟨s, y⟩/⟨y, y⟩ of the last step s and the change y of the gradient before it."""
        middle = self.previous
        if middle is None or middle.previous is None or 0.0 in (self.step, middle.step):
            return 1.0
        whole = self.triangular.distance(middle.previous.triangular) / middle.step
        ratio = self.step / middle.step
        # In units of the first of the two steps: ⟨g₀, g₁⟩ and ‖g₁‖² of the gradients, times its length.
        inner = 0.5 * (whole**2 - 1.0 - ratio**2) * middle.length / self.length
        square = (ratio * middle.length / self.length) ** 2
        along, change = 1.0 - inner, 1.0 - 2.0 * inner + square
        if along <= 0.0 or change <= 0.0:
            return min(max(1.0, 2.0 * self.length), _LONGEST)
        return min(max(middle.length * along / change, _SHORTEST), _LONGEST)


def descend(
    start: Iterate, iterations: int, tolerance: float, rounding: float
) -> tuple[list[Iterate], bool]:
    """All iterates from a start on, and whether the last step was below the tolerance."""
    found, current = [start], start
    while len(found) <= iterations:
        following = None
        if len(found) <= _FULL_STEPS:
            following = current.moved(1.0)
        if following is None:
            best = min(found, key=lambda each: each.error)
            length = current.next_length() if current.error <= best.error + rounding else 1.0
            current = current if current.error <= best.error + rounding else best
            following = current.lowered(length, rounding)
        if following is None:
            return found, False
        found.append(following)
        current = following
        # A short step says the less of how far it is to a minimum.
        share = following.step / following.triangular.norm()
        if share <= tolerance * min(following.length, 1.0):
            return found, True
    return found, False


def stable(A: HostArray) -> HostArray:
    """Mirror the unstable eigenvalues of A at the imaginary axis."""
    poles, vectors = np.linalg.eig(A)
    if np.all(poles.real < 0):
        return A
    decay = np.maximum(np.abs(poles.real), np.finfo(np.float64).eps * np.abs(poles))
    mirrored = np.linalg.solve(adjoint(vectors), adjoint(vectors * (1j * poles.imag - decay)))
    return adjoint(mirrored) if np.iscomplexobj(A) else adjoint(mirrored).real
