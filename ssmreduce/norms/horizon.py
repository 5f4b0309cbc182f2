"""The gain of a difference of two systems over finitely many steps, stable or not.

The map from L inputs to L outputs is a block Toeplitz matrix; power iteration needs only products
with it and its adjoint, and these are simulations: O(L n (m + p)) each for diagonal systems. Power
iteration only ever underestimates: the result is a lower bound.

So does a choice of inputs. Over many steps those count that vary slowly beside a carrier z^k, |z| = 1, where
the gain is largest: u[k] = z^(k mod b) a[k div b], M vectors a for L = M b steps. A block of b steps of

    ⎡x⎤     ⎡A  B ⎤ ⎡x⎤             ⎡x⎤
    ⎣u⎦  ←  ⎣0  zI⎦ ⎣u⎦,   y = [C D] ⎣u⎦

is one step with the matrix's b-th power, and the energy of its outputs that of F [x; a], where Fᴴ F is the
observability Gramian over b steps: by doubling, both cost O(log b). That leaves M steps of power iteration.
"""

from __future__ import annotations

import numpy as np
from numpy.linalg import eigvals

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._checks import positive_count
from ssmreduce._threads import on_gainful_threads
from ssmreduce.equations import smith
from ssmreduce.errors import NoConvergenceError
from ssmreduce.norms.gain import check_alike
from ssmreduce.norms.units import in_units
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, is_complex
from ssmreduce.systems.interconnect import difference
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transfer import state_part
from ssmreduce.time_domain import Discrete

_WHOLE = 4096
"""Steps that are always simulated one by one."""

_SOLVED = 40_000
"""(n + m)³ over this many more steps take as long one by one as in blocks."""

_BLOCKS = 1024
"""Blocks of a longer horizon, about: what grows by e^350 in all, the most there is, grows by 0.4 in one."""

_TRIES = 4
"""Power iterations at each of them, from one vector."""

_ENDLESS = 2**40
"""Steps over which powers of the carrier keep seven digits; what bounds their gain bounds that of more."""

_TINY = np.finfo(np.float64).tiny

_GRID, _NEAR = 256, 65
"""Frequencies that are tried beside those of the poles, and then three times near the best one."""


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
        Power iterations; each simulates both systems forth and back.

    Returns
    -------
    float
        Largest gain ‖y₁ - y₂‖₂ / ‖u‖₂ found.

    Raises
    ------
    ArgumentError
        If `horizon` is no positive int.
    NoConvergenceError
        If the outputs overflow within the horizon.

    Notes
    -----
    O(L n (m + p)) for each iteration and diagonal systems, all inputs counting. Long horizons, from 4096
    steps and (n + m)³/40000, cost O((n + m)³ log L) and count inputs near one frequency.
    """
    check_alike(first, second)
    iterations = positive_count(iterations, "iterations", "the steps of a power iteration")
    steps = min(positive_count(horizon, "horizon", "a number of steps"), _ENDLESS)
    if not (first.inputs and first.outputs):
        return 0.0
    systems, units = in_units([first, second])
    both = difference(systems[0], systems[1])
    size = both.real_order + both.inputs
    if steps > max(_WHOLE, size**3 // _SOLVED):
        gain = on_gainful_threads(_in_blocks, both, steps, iterations, order=size, ports=_BLOCKS)
        return units.gain_outside(gain)
    start = np.random.default_rng(0).standard_normal((steps, both.inputs))
    return units.gain_outside(_power_iteration(both, start, iterations))


def _power_iteration(system: System, signal: HostArray, iterations: int) -> float:
    D, gain = np.asarray(system.D), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(iterations):
            norm = np.linalg.norm(signal)
            if norm == 0.0:
                break
            signal = signal / norm
            output = _sequence(system, signal) + _each_row(D, signal)
            reached = float(np.linalg.norm(output))
            if not np.isfinite(reached):
                raise _overflow()
            gain = max(gain, reached)
            signal = _sequence_adjoint(system, output / max(reached, _TINY))
            signal = signal + _each_row(adjoint(D), output / max(reached, _TINY))
    return gain


def _in_blocks(system: System, steps: int, iterations: int) -> float:
    """The same for inputs near one frequency, over as many whole blocks as there are."""
    host = system.to_dense().to_standard()
    n, m, size = host.order, host.inputs, round(steps / _BLOCKS)
    z, direction = _carrier(system, steps)
    step = np.block([[host.A, host.B], [np.zeros((m, n)), z * np.eye(m)]])
    outputs = np.concatenate([host.C, host.D], axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        power = np.linalg.matrix_power(step, size)
        F = adjoint(smith.finite_factor(smith.dense_powers(adjoint(step)), adjoint(outputs), size))
    if not np.all(np.isfinite(power)):
        raise _overflow()
    # A block of inputs has √size times the norm of its first one.
    share = 1.0 / np.sqrt(size)
    blocks = StateSpace(
        power[:n, :n], share * power[:n, n:], F[:, :n], share * F[:, n:], time=Discrete()
    )
    # What the carrier has turned by at the start of each block.
    turned = (z**size) ** np.arange(steps // size)
    return _power_iteration(blocks, turned[:, None] * direction, iterations)


def _carrier(system: System, steps: int) -> tuple[complex, HostArray]:
    """The carrier z where the gain is largest, as `steps` steps resolve it, and the input that has it.

    Looked for on a circle outside of all poles by 1/L: there a pole on the circle has the gain L, and one
    that grows comes before all that do not. The gains come from a few power iterations each.
    """
    poles = system.eigenvalues if isinstance(system, DiagonalStateSpace) else eigvals(system.A)
    radius = max(1.0, float(np.max(np.abs(poles), initial=0.0))) * (1.0 + 1.0 / steps)
    # On the unit circle, of the system with poles divided by the radius.
    if isinstance(system, DiagonalStateSpace):
        inner: System = system.replace(eigenvalues=poles / radius)
    else:
        inner = system.replace(A=system.A / radius)
    part, D = state_part(inner), np.asarray(system.D)
    angles = np.concatenate([np.angle(poles), np.linspace(-np.pi, np.pi, _GRID, endpoint=False)])
    width, at = 2.0 * np.pi / _GRID, 0.0
    for _ in range(4):
        forward, backward = part.products(np.exp(1j * angles))
        vectors = np.random.default_rng(0).standard_normal((system.inputs, angles.size)) + 0j
        for _ in range(_TRIES):
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=0), _TINY)
            seen = forward(vectors) + D @ vectors
            vectors = backward(seen) + adjoint(D) @ seen
        at = float(angles[np.argmax(np.linalg.norm(seen, axis=0))])
        angles = at + width * np.linspace(-1.0, 1.0, _NEAR)
        width *= 4.0 / _NEAR
    point = np.exp(1j * at)
    gain = part.matrices(np.array([point]))[0] + D
    return complex(point), np.linalg.svd(gain)[2][0].conj()


def _overflow() -> NoConvergenceError:
    return NoConvergenceError(
        "the outputs overflow within `horizon`; expected |λ|^horizon to be finite. Use a shorter one, or "
        "remove the fast unstable poles first."
    )


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
