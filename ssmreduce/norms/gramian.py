"""Norms that come from Gramian factors P = Z Zᴴ and Q = Y Yᴴ: the H2 norm and the Hankel norm.

The H2 norm is the energy of the impulse response, Σ ‖g[k]‖_F² or ∫ ‖g(t)‖_F² dt, that is
‖G‖₂² = tr(C P Cᴴ) (+ ‖D‖_F² in discrete time). From the factor it is ‖C Z‖_F: no difference of large
numbers, so its relative error is n eps ‖C‖‖Z‖/‖C Z‖ where the trace loses the square of that ratio.
The Hankel norm is the largest Hankel singular value. Both are those of the standard form, which for
a readout after the update is (A, B, C A, D + C B). Cost: that of the factors.

Reference: Antoulas, Approximation of Large-Scale Dynamical Systems, SIAM 2005, chapter 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._lapack import frobenius_norm
from ssmreduce.derivatives.adjoint import controllability_gradient
from ssmreduce.derivatives.dispatch import apply, differentiable
from ssmreduce.derivatives.rule import Gradients, Pullback
from ssmreduce.devices import norms as native
from ssmreduce.errors import UnreachableToleranceError
from ssmreduce.gramians.batch import in_batch_shape, map_systems
from ssmreduce.gramians.channels import channel_gains
from ssmreduce.gramians.factors import gramian_factor
from ssmreduce.hankel import hankel_singular_values, hsv_rule
from ssmreduce.norms.stability import check_stable
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.prescaling import SomeSystem, prescaled


@any_library(native.h2, has_derivative=True)
def h2_norm(system: System) -> float | HostArray:
    """H2 norm ‖G‖₂ = sqrt(tr(C P Cᴴ)), in discrete time sqrt(tr(C P Cᴴ) + ‖D‖_F²).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable; with any leading batch axes. One that reads after its update is taken in standard
        form.

    Returns
    -------
    float or (...) array
        One for each system of a batch. Infinite for a continuous system with D ≠ 0, whose impulse
        response holds a Dirac impulse.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Relative error n eps ‖C‖‖Z‖/‖C Z‖, times the condition of the Lyapunov equation. Cost of the
    Gramian factors. Differentiable under torch autograd and JAX, with the derivative 0 where the
    norm is 0.

    References
    ----------
    Zhou, Doyle and Glover, Robust and Optimal Control, Prentice Hall 1996, chapter 4.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.norms import h2_norm
    >>> system = DiagonalStateSpace([0.6], [[0.8]], [[1.0]], time=Discrete())
    >>> round(h2_norm(system), 12)
    1.0
    """
    if differentiable(system):
        found: HostArray = apply(
            _h2_rule, system.to_standard(), (), name="h2_norm", native=native.h2
        )
        return found
    return _each(system, _h2, _h2_of_channels)


@any_library(native.hankel, has_derivative=True)
def hankel_norm(system: System) -> float | HostArray:
    """Hankel norm ‖G‖_H = σ₁, the largest Hankel singular value: past inputs to future outputs.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable; with any leading batch axes. One that reads after its update is taken in standard
        form, so the norm may differ from ``hankel_singular_values(system)[0]``, which belongs to
        the triple (A, B, C).

    Returns
    -------
    float or (...) array
        One for each system of a batch.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    σ₁ ≤ ‖G - D‖∞ ≤ 2 Σ σ_i over distinct values. Cost of `hankel_singular_values`. Differentiable
    under torch autograd and JAX; of a double σ₁ the derivative is one of the subgradients.

    References
    ----------
    Glover, Int. J. Control 39 (1984).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.norms import hankel_norm
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[3.0]], time=Discrete())
    >>> round(hankel_norm(system), 12)
    4.0
    """
    if differentiable(system):
        found: HostArray = apply(
            _hankel_rule, system.to_standard(), (), name="hankel_norm", native=native.hankel
        )
        return found
    return _each(system, _hankel)


def _each(
    system: System,
    norm: Callable[[System], float],
    stacked: Callable[[DiagonalStateSpace], list[float]] | None = None,
) -> float | HostArray:
    """Norm of a single system, or of every system of a batch."""
    every = map_systems(system, norm, stacked)
    norms: float | HostArray = in_batch_shape(every, system.batch_shape)
    return norms


def _h2_rule(system: System) -> tuple[float, Pullback]:
    """The norm is the root of tr(C P Cᴴ), whose derivative is 2 Re tr((C P)ᴴ dC) + tr(Cᴴ C dP)."""
    value = _h2(system)

    def pullback(cotangent: HostArray) -> Gradients:
        if value == 0.0 or math.isinf(value):
            return None, None, None, None
        scale = float(cotangent) / value
        D = scale * system.D
        if system.order == 0:
            return None, None, None, D
        (_, C), Z = system.ports(), gramian_factor(system, 0)
        state, B = controllability_gradient(system, Z, (0.5 * scale) * (adjoint(C) @ C))
        outer = scale * ((C @ Z) @ adjoint(Z))
        if system.real_output:
            real_part, imaginary_part = np.split(outer, 2, axis=1)
            outer = real_part - 1j * imaginary_part
        return state, B, outer, D

    return value, pullback


def _hankel_rule(system: System) -> tuple[float, Pullback]:
    values, pullback = hsv_rule(system)
    if values.size == 0:
        return 0.0, pullback
    first = np.arange(values.size) == 0
    return float(values[0]), lambda cotangent: pullback(cotangent * first)


def _hankel(system: System) -> float:
    check_stable(system)
    if system.order == 0:
        return 0.0
    scaled, exponent = _scaled(system.to_host().to_standard())
    return float(_restored(hankel_singular_values(scaled)[0], exponent, "Hankel"))


def _h2(system: System) -> float:
    check_stable(system)
    host = system.to_host().to_standard()
    D = np.asarray(host.D)
    state = 0.0
    if host.order > 0 and np.any(host.B) and np.any(host.C):
        scaled, exponent = _scaled(host)
        state = float(_restored(_state_norm(scaled), exponent, "H2"))
    return float(host.time.h2_norm(state, frobenius_norm(D)))


def _h2_of_channels(batch: DiagonalStateSpace) -> list[float]:
    """The same for channels along one batch axis, which share every step."""
    standard = batch.to_host().to_standard()
    scaled, exponents = _scaled(standard)
    states = _restored(channel_gains(scaled), exponents, "H2")
    return [
        float(batch.time.h2_norm(state, frobenius_norm(D)))
        for state, D in zip(states, standard.D, strict=True)
    ]


def _state_norm(system: System) -> float:
    """‖C Z‖_F or ‖Bᴴ Y‖_F, whichever has fewer rows."""
    B, C = system.ports()
    if system.outputs <= system.inputs:
        return frobenius_norm(C @ gramian_factor(system, 0))
    return frobenius_norm(adjoint(B) @ gramian_factor(system, 1))


def _scaled(system: SomeSystem) -> tuple[SomeSystem, HostArray]:
    """System without D, the largest entries of B and C near 1, and the exponent of two taken out.

    The Gramians hold their squares, which would overflow long before the norm does.
    """
    system = prescaled(system)
    largest = (np.abs(X).max(axis=(-2, -1), initial=0.0) for X in (system.B, system.C))
    first, second = (np.clip(np.frexp(size)[1], -1000, 1000) for size in largest)
    B, C = system.B * _power(-first), system.C * _power(-second)
    exponents = np.asarray(first + second)
    return system.replace(B=B, C=C, D=None), exponents


def _restored(norms: HostArray | float, exponents: HostArray, name: str) -> HostArray:
    """Norms with the exponents of two that were taken out; refused where doubles cannot hold one."""
    with np.errstate(over="ignore", under="ignore"):
        restored = np.ldexp(norms, exponents)
    lost = np.isinf(restored) | ((restored == 0.0) & (np.asarray(norms) > 0.0))
    if np.any(lost):
        raise UnreachableToleranceError(
            f"the {name} norm of `system` is beyond the range of double precision; expected one between "
            "1e-307 and 1e308. Scale `B` or `C`, or choose other units of inputs and outputs."
        )
    return np.asarray(restored)


def _power(exponent: HostArray) -> HostArray:
    """2^e, one number for the matrix of each system."""
    return np.asarray(np.ldexp(1.0, exponent))[..., None, None]
