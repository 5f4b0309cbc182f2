"""The gain of a difference of two systems over finitely many steps, stable or not.

The map from L inputs to L outputs is a block Toeplitz matrix; power iteration needs only products
with it and its adjoint, and these are simulations: O(L n (m + p)) each for diagonal systems. Power
iteration only ever underestimates: the result is a lower bound.
"""

from __future__ import annotations

import math

import numpy as np

from ssmreduce._boundary import any_library
from ssmreduce._lapack import frobenius_norm
from ssmreduce._namespace import HostArray, adjoint, to_double
from ssmreduce.errors import UnreachableToleranceError
from ssmreduce.norms.gain import check_alike
from ssmreduce.norms.units import in_units
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, is_complex


@any_library()
def finite_horizon_difference(
    first: System, second: System, horizon: int, *, iterations: int = 8
) -> float:
    """Lower bound on the induced ℓ² norm of G₁ - G₂ over sequences of `horizon` steps.

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

    Raises
    ------
    UnreachableToleranceError
        If an output grows out of the range of doubles within the horizon.
    """
    check_alike(first, second)
    systems, units = in_units([first, second])
    D = to_double(systems[0].D) - to_double(systems[1].D)
    signal = np.random.default_rng(0).standard_normal((horizon, first.inputs))
    with np.errstate(over="ignore", invalid="ignore"):
        gain = _largest_gain(systems, D, signal, iterations)
    if not math.isfinite(gain):
        raise UnreachableToleranceError(
            f"outputs grow out of the range of doubles within horizon={horizon}; expected a system that "
            "does not. Take a shorter horizon, or split off what is unstable."
        )
    return units.gain_outside(gain)


def _largest_gain(systems: list[System], D: HostArray, signal: HostArray, iterations: int) -> float:
    """Largest gain of all iterations; not finite where something overflows."""
    gain = 0.0
    for _ in range(iterations):
        norm = frobenius_norm(signal)
        if norm == 0.0:
            break
        if not math.isfinite(norm):
            return norm
        signal = signal / norm
        output = _sequence(systems[0], signal) - _sequence(systems[1], signal)
        output = output + _each_row(D, signal)
        size = frobenius_norm(output)
        if not math.isfinite(size):
            return size
        gain = max(gain, size)
        signal = _sequence_adjoint(systems[0], output) - _sequence_adjoint(systems[1], output)
        signal = signal + _each_row(adjoint(D), output)
    return gain


def _each_row(matrix: HostArray, rows: HostArray) -> HostArray:
    """Apply `matrix` to every row, a vector at one time step."""
    return np.asarray(np.einsum("ij,kj->ki", matrix, rows, optimize=True))


def _sequence(system: System, signal: HostArray) -> HostArray:
    """Output of the state part."""
    states = _recursion(system, signal, adjoint_system=False)
    if not system.read_after_update:
        states = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    output = _each_row(np.asarray(system.C), states)
    return np.asarray(output if is_complex(system) else output.real)


def _sequence_adjoint(system: System, output: HostArray) -> HostArray:
    if not system.read_after_update:
        output = np.concatenate([output[1:], np.zeros_like(output[:1])])
    states = _recursion(system, output[::-1], adjoint_system=True)[::-1]
    signal = _each_row(adjoint(np.asarray(system.B)), states)
    return np.asarray(signal if is_complex(system) else signal.real)


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
