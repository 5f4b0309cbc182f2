"""What H2-optimal reduction needs of a system: Sylvester solves with a small matrix, and distances.

With A of order n and an upper triangular T of order r, both stable and in continuous time,

    A X + X Tᴴ + B Eᴴ = 0   and   Aᴴ Y + Y T + Cᴴ E = 0

are r shifted solves: triangular ones after a Schur form of A, divisions by λ_k + conj τ_i where A
is diagonal. Discrete systems are written in the continuous form of `ssmreduce.reduction.h2_forms`.

References: Xu and Zeng, IEEE Trans. Automatic Control 56 (2011).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import frobenius_norm, safe_unit
from ssmreduce._schur import SchurForm
from ssmreduce.equations.hammarling import hammarling_factor
from ssmreduce.gramians.factors import gramian_factor
from ssmreduce.reduction.h2_forms import continuous
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace, in_balanced_units
from ssmreduce.time_domain import Continuous


@dataclass(frozen=True, eq=False)
class TriangularSystem:
    """A continuous system in the coordinates of its complex Schur `form`, with inputs `B` and outputs `C`."""

    form: SchurForm
    B: HostArray
    C: HostArray

    @classmethod
    def of(cls, system: StateSpace) -> TriangularSystem:
        """Transform a system with host arrays."""
        form = SchurForm.of(system.A.astype(np.complex128))
        B, C_adjoint = form.ports(system.B, adjoint(system.C))
        return cls(form, B, adjoint(C_adjoint))

    @property
    def triangle(self) -> HostArray:
        """The state matrix T."""
        return self.form.triangle

    @cached_property
    def Z(self) -> HostArray:
        """Factor of the controllability Gramian."""
        return _factor(self.triangle, self.B)

    @cached_property
    def Y(self) -> HostArray:
        """Factor of the observability Gramian."""
        return _factor(adjoint(self.form.triangle)[::-1, ::-1], adjoint(self.C)[::-1])[::-1]

    @cached_property
    def observable_states(self) -> tuple[HostArray, HostArray]:
        """L and L⁻ᴴ on the observable states, where L Lᴴ is the observability Gramian."""
        left, values, _ = np.linalg.svd(self.Y, full_matrices=False)
        # Unobservable states have no part in the output.
        kept = values > len(left) * np.finfo(np.float64).eps * values[:1]
        return left[:, kept] * values[kept], left[:, kept] / values[kept]

    def norm(self) -> float:
        """‖G‖_H2."""
        return frobenius_norm(self.C @ self.Z)

    def reached(self, T: HostArray, E: HostArray) -> HostArray:
        """Return X with A X + X Tᴴ + B Eᴴ = 0, in the coordinates of the form."""
        X, scale, _ = lapack.ztrsyl(self.triangle, T, -self.B @ adjoint(E), tranb="C")
        return np.asarray(X / scale)

    def observed(self, T: HostArray, E: HostArray) -> HostArray:
        """Return Y with Aᴴ Y + Y T + Cᴴ E = 0, in the coordinates of the form."""
        Y, scale, _ = lapack.ztrsyl(self.triangle, T, -adjoint(self.C) @ E, trana="C")
        return np.asarray(Y / scale)

    def distance(self, reduced: TriangularSystem) -> float:
        """‖G - G_r‖_H2."""
        return distance(self, reduced, self.observed(reduced.triangle, reduced.C))


def _factor(T: HostArray, B: HostArray) -> HostArray:
    rate = safe_unit(T)
    return hammarling_factor(T / rate, B / math.sqrt(rate), Continuous())


def distance(
    system: Plant | TriangularSystem, reduced: TriangularSystem, observed: HostArray
) -> float:
    """‖G - G_r‖_H2 where `observed` is ``system.observed(reduced.triangle, reduced.C)``.

    The square is the trace of [B; B_r]ᴴ [[Q, -Y], [-Yᴴ, Q_r]] [B; B_r]. With Q_r = L Lᴴ and M = Y L⁻ᴴ
    it is tr Bᴴ (Q - M Mᴴ) B + ‖Lᴴ B_r - Mᴴ B‖². The Schur complement Q - M Mᴴ is itself the
    observability Gramian of Ĉ = C - C_r L⁻ᴴ Mᴴ, so that the first term is ‖Ĉ Z‖² with the
    controllability factor Z of G: two sums of squares, O(n k p) once Z is known.
    """
    L, dual = reduced.observable_states
    M = observed @ dual
    output = system.C - (reduced.C @ dual) @ adjoint(M)
    outside = adjoint(L) @ reduced.B - adjoint(M) @ system.B
    return math.hypot(frobenius_norm(output @ system.Z), frobenius_norm(outside))


class Plant(ABC):
    """A stable system, written as a continuous one.

    Attributes
    ----------
    B, C : (n, m) array, (p, n) array
        Its matrices in the (real, where it is real) states.
    Z : (n, k) array
        Factor of its controllability Gramian.
    real : bool
        Whether its states, and those of its reduced systems, are real.
    """

    B: HostArray
    C: HostArray
    Z: HostArray
    real: bool

    @abstractmethod
    def apply(self, V: HostArray) -> HostArray:
        """Return A V."""

    @abstractmethod
    def reached(self, T: HostArray, E: HostArray) -> HostArray:
        """Return X, shape (n, r), with A X + X Tᴴ + B Eᴴ = 0, for E of shape (r, m)."""

    @abstractmethod
    def observed(self, T: HostArray, E: HostArray) -> HostArray:
        """Return Y, shape (n, r), with Aᴴ Y + Y T + Cᴴ E = 0, for E of shape (p, r)."""

    def norm(self) -> float:
        """‖G‖_H2 = ‖C Z‖_F."""
        return frobenius_norm(self.C @ self.Z)


class DensePlant(Plant):
    """A `StateSpace` with host arrays, in units that balance its state matrix."""

    def __init__(self, system: StateSpace) -> None:
        balanced = in_balanced_units(system)
        as_continuous = continuous(balanced)
        self.A, self.B, self.C = as_continuous.A, as_continuous.B, as_continuous.C
        self.Z = gramian_factor(balanced, 0)
        self.real = not any(np.iscomplexobj(x) for x in (self.A, self.B, self.C))
        self._whole = TriangularSystem.of(as_continuous)

    def apply(self, V: HostArray) -> HostArray:
        """Return A V."""
        return np.asarray(self.A @ V)

    def reached(self, T: HostArray, E: HostArray) -> HostArray:
        """Return X with A X + X Tᴴ + B Eᴴ = 0."""
        return self._whole.form.reached(self._whole.reached(T, E))

    def observed(self, T: HostArray, E: HostArray) -> HostArray:
        """Return Y with Aᴴ Y + Y T + Cᴴ E = 0."""
        return self._whole.form.observed(self._whole.observed(T, E))


class DiagonalPlant(Plant):
    """A `DiagonalStateSpace` with host arrays; its real states [Re h; Im h] if its output is real."""

    def __init__(self, system: DiagonalStateSpace) -> None:
        self._form = continuous(system)
        self.B, self.C = self._form.ports()
        self.Z = gramian_factor(system, 0)
        self.real_output = system.real_output
        arrays = (self._form.eigenvalues, self._form.B, self._form.C)
        self.real = system.real_output or not any(map(np.iscomplexobj, arrays))

    def apply(self, V: HostArray) -> HostArray:
        """Return A V."""
        return self._form.applied(V)

    def reached(self, T: HostArray, E: HostArray) -> HostArray:
        """Return X with A X + X Tᴴ + B Eᴴ = 0."""
        return self._solved(self._form.eigenvalues, self._form.B, T, adjoint(E))

    def observed(self, T: HostArray, E: HostArray) -> HostArray:
        """Return Y with Aᴴ Y + Y T + Cᴴ E = 0: the first equation with Tᴴ, from the last column on."""
        poles, outputs = self._form.eigenvalues.conj(), adjoint(self._form.C)
        return self._solved(poles, outputs, adjoint(T)[::-1, ::-1], E[:, ::-1])[:, ::-1]

    def _solved(self, poles: HostArray, G: HostArray, T: HostArray, E: HostArray) -> HostArray:
        """Solve Λ X + X Tᴴ + G E = 0, where the output is real with h and its mirror image."""
        if self.real_output:
            poles, G = np.concatenate([poles, poles.conj()]), np.concatenate([G, G.conj()])
        X: HostArray = -(G @ E).astype(np.complex128)
        for j in reversed(range(X.shape[1])):
            X[:, j] -= X[:, j + 1 :] @ T[j, j + 1 :].conj()
            X[:, j] /= poles + T[j, j].conj()
        if self.real_output:
            plain, mirrored = np.split(X, 2)
            X = np.concatenate([plain + mirrored, -1j * (plain - mirrored)]) / 2.0
        return X


def plant_of(system: System) -> Plant:
    """Return the plant of a stable system with host arrays, without batch axes."""
    return DensePlant(system) if isinstance(system, StateSpace) else DiagonalPlant(system)
