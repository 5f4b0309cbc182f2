"""System norms. So far: measured lower bounds on the H-infinity norm of a difference.

For ‖G - G_r‖ over the unit circle (or imaginary axis) the largest singular value is measured on a
grid that holds the resonances of both systems and is refined around its largest values. Where both
dimensions are large the singular value comes from a power iteration, which only ever
underestimates. Points where a pole has rounded onto the boundary are left out. The result is
therefore a *lower bound*: what was seen, not a certificate.
Feedthroughs are left out: reductions keep D as it is.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.response import StatePart
from ssmreduce.time_domain import Discrete

_EXACT_WIDTH = 16
"""Up to this many inputs or outputs G(z) is formed; above, power iteration takes fewer products."""


def hinf_difference(
    first: System, second: System, *, grid: int = 64, refinements: int = 6, iterations: int = 8
) -> float:
    """Lower bound on ‖G₁ - G₂‖∞, the H-infinity norm of the difference of the state parts.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Stable systems of equal sizes and time domain, without batch axes.
    grid : int
        Points of the uniform grid, and at most as many resonances of each system.
    refinements : int
        Rounds of bisection around the largest values.
    iterations : int
        Power iterations per point where both input and output are wide.

    Returns
    -------
    float
        Largest singular value seen.

    Notes
    -----
    Cost O(grid · iterations · n (m + p)) for diagonal systems.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.norms import hinf_difference
    >>> big = DiagonalStateSpace([0.5, 0.1], [[1.0], [1.0]], [[1.0, 0.9]], time=Discrete())
    >>> small = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> round(hinf_difference(big, small), 6)
    1.0
    """
    parts = StatePart(first), StatePart(second)
    real = _is_real(parts[0].system) and _is_real(parts[1].system)
    omega = _grid(parts, grid, real)
    values = _largest_gain(parts, omega, iterations)
    for _ in range(refinements):
        best = np.argsort(values)[-4:]
        left, right = np.maximum(best - 1, 0), np.minimum(best + 1, omega.size - 1)
        middles = np.unique(
            np.concatenate([omega[best] + omega[left], omega[best] + omega[right]]) / 2
        )
        middles = np.setdiff1d(middles, omega)
        if not middles.size:
            break
        omega = np.concatenate([omega, middles])
        values = np.concatenate([values, _largest_gain(parts, middles, iterations)])
        order = np.argsort(omega)
        omega, values = omega[order], values[order]
    return float(values.max())


def finite_horizon_difference(
    first: System, second: System, horizon: int, *, iterations: int = 8
) -> float:
    """Lower bound on the induced ℓ² norm of the difference over sequences of `horizon` steps.

    Power iteration with the two simulated systems and their adjoints, from rest.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Discrete systems of equal sizes, without batch axes; stable or not.
    horizon : int
        Number of steps L.
    iterations : int
        Power iterations; each simulates both systems forth and back, O(L n (m + p)).

    Returns
    -------
    float
        Largest gain ‖y₁ - y₂‖₂ / ‖u‖₂ seen.
    """
    systems = StatePart(first).system, StatePart(second).system
    signal = np.random.default_rng(0).standard_normal((horizon, systems[0].inputs))
    gain = 0.0
    for _ in range(iterations):
        norm = np.linalg.norm(signal)
        if norm == 0.0:
            break
        signal = signal / norm
        output = _sequence(systems[0], signal) - _sequence(systems[1], signal)
        gain = max(gain, float(np.linalg.norm(output)))
        signal = _sequence_adjoint(systems[0], output) - _sequence_adjoint(systems[1], output)
    return gain


def _is_real(system: System) -> bool:
    if isinstance(system, DiagonalStateSpace):
        return system.real_output
    return not any(np.iscomplexobj(x) for x in (system.A, system.B, system.C))


def _grid(parts: tuple[StatePart, StatePart], grid: int, real: bool) -> HostArray:
    """Sorted frequencies: a uniform or logarithmic grid, and the sharpest resonances."""
    poles = [_resonances(part.system, grid) for part in parts]
    if parts[0].discrete:
        angles = np.concatenate([np.angle(p) for p in poles])
        uniform = np.linspace(0.0 if real else -np.pi, np.pi, grid + 1)
        omega = np.concatenate([uniform, np.abs(angles) if real else angles])
    else:
        everything = np.concatenate(poles)
        sizes = np.abs(everything)
        sizes = sizes[sizes > 0]
        decades = np.geomspace(sizes.min() / 100, sizes.max() * 100, grid)
        sides = [decades] if real else [decades, -decades]
        imaginary = np.abs(everything.imag) if real else everything.imag
        omega = np.concatenate([[0.0], *sides, imaginary])
    return np.unique(omega)


def _resonances(system: System, count: int) -> HostArray:
    """The poles with the largest resonance ‖c‖‖b‖/(distance to the boundary), at most `count`."""
    poles = np.asarray(system.poles()).ravel()
    if isinstance(system.time, Discrete):
        distance = np.abs(1.0 - np.abs(poles))
    else:
        distance = np.abs(poles.real)
    weight = np.ones(poles.size)
    if isinstance(system, DiagonalStateSpace):
        weight = np.linalg.norm(system.B, axis=1) * np.linalg.norm(system.C, axis=0)
    sharpness = weight / np.maximum(distance, np.finfo(np.float64).tiny)
    return poles[np.argsort(sharpness)[-count:]]


def _largest_gain(
    parts: tuple[StatePart, StatePart], omega: HostArray, iterations: int
) -> HostArray:
    first, second = parts
    inputs, outputs = first.system.inputs, first.system.outputs
    if min(inputs, outputs) <= _EXACT_WIDTH:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            difference = first.matrices(omega) - second.matrices(omega)
        gains = np.zeros(omega.size)
        seen = np.all(np.isfinite(difference), axis=(-2, -1))
        gains[seen] = np.linalg.norm(difference[seen], ord=2, axis=(-2, -1))
        return gains
    vectors = np.random.default_rng(0).standard_normal((inputs, omega.size)).astype(complex)
    gains = np.zeros(omega.size)
    for _ in range(iterations):
        norm = np.linalg.norm(vectors, axis=0)
        vectors = vectors / np.where(norm > 0, norm, 1.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            image = first.products(omega, vectors) - second.products(omega, vectors)
        image[:, ~np.all(np.isfinite(image), axis=0)] = 0.0
        gains = np.maximum(gains, np.linalg.norm(image, axis=0))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            vectors = first.adjoint_products(omega, image) - second.adjoint_products(omega, image)
        vectors[:, ~np.all(np.isfinite(vectors), axis=0)] = 0.0
    return gains


def _sequence(system: System, signal: HostArray) -> HostArray:
    """Output of the state part."""
    states = _recursion(system, signal, adjoint_system=False)
    if not system.read_after_update:
        states = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    output = np.einsum("pn,kn->kp", np.asarray(system.C), states, optimize=True)
    return np.asarray(output.real if _is_real(system) else output)


def _sequence_adjoint(system: System, output: HostArray) -> HostArray:
    if not system.read_after_update:
        output = np.concatenate([output[1:], np.zeros_like(output[:1])])
    states = _recursion(system, output[::-1], adjoint_system=True)[::-1]
    signal = np.einsum("mn,kn->km", adjoint(np.asarray(system.B)), states, optimize=True)
    return np.asarray(signal.real if _is_real(system) else signal)


def _recursion(system: System, signal: HostArray, *, adjoint_system: bool) -> HostArray:
    """States x[k] = A x[k-1] + B u[k], or the same with Aᴴ and Cᴴ."""
    diagonal = isinstance(system, DiagonalStateSpace)
    A = np.asarray(system.eigenvalues if isinstance(system, DiagonalStateSpace) else system.A)
    B = np.asarray(system.B)
    if adjoint_system:
        A = A.conj() if diagonal else adjoint(A)
        B = adjoint(np.asarray(system.C))
    states: HostArray = np.einsum(
        "nm,km->kn", B.astype(np.result_type(A, B, signal)), signal, optimize=True
    )
    for k in range(1, len(states)):
        states[k] += A * states[k - 1] if diagonal else A @ states[k - 1]
    return states
