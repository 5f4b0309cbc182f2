"""What assertions compare, and how far rounding may take it.

The scale of a comparison of two maps is what relative changes of eps in all data do to a transfer
function, to first order,

    δG = C R δA R B + C R δB + δC R B + δD,   R = (zI - A)⁻¹.

Realisations in sensible coordinates stay within c n eps of it; what is wrong by more does not. Of eps,
that of the coarsest dtype involved counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, array_eps
from ssmreduce._checks import is_number, shown
from ssmreduce.errors import ArgumentError
from ssmreduce.gramians.factors import controllability_gramian, observability_gramian
from ssmreduce.norms import hinf_difference
from ssmreduce.norms.gain import Gain
from ssmreduce.norms.grid import Search, peak
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_single, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

ROUNDING = 20.0
"""c: either side makes a few n eps errors, and forming the data that it has makes a few more."""

_GRID, _REFINEMENTS, _ITERATIONS = 64, 6, 16


def at_most(what: str, measured: float, allowed: float, *sides: str) -> None:
    """Raise `AssertionError` with all of it unless `measured` is at most `allowed`; NaN is not."""
    if not measured <= allowed:
        raise AssertionError(
            "\n  ".join([f"{what} {measured:.3e}, allowed {allowed:.3e}.", *sides])
        )


def checked_tolerance(rtol: float | None) -> float | None:
    """Return `rtol` as a nonnegative float, or None where it is left out."""
    if rtol is None:
        return None
    if not is_number(rtol) or rtol < 0.0:
        raise ArgumentError(
            f"`rtol` is {shown(rtol)}; expected a number, 0 or more. Try 1e-6, or leave it out."
        )
    return float(rtol)


def arrays_in(thing: Array | System) -> list[Array]:
    """The array itself, or those of a system."""
    if isinstance(thing, DiagonalStateSpace):
        return [thing.eigenvalues, thing.B, thing.C, thing.D]
    return [thing.A, thing.B, thing.C, thing.D] if isinstance(thing, StateSpace) else [thing]


def system_eps(*systems: System) -> float:
    """The largest eps of the dtypes of all arrays."""
    return array_eps(*(x for system in systems for x in arrays_in(system)))


def largest_error(one: System, two: System) -> float:
    """Lower bound on ‖G₁ - G₂‖∞."""
    return hinf_difference(one, two, grid=_GRID, refinements=_REFINEMENTS, iterations=_ITERATIONS)


def largest_gain(system: System) -> float:
    """Lower bound on ‖G‖∞; of an unstable system, the largest gain on the stability boundary."""
    check_single(system)
    gain = Gain((1.0, system.to_host()))
    return peak(gain, Search(_GRID, _REFINEMENTS, _ITERATIONS))[0]


def rounding(*systems: System) -> float:
    """Σ (‖A‖ ‖CR‖ ‖RB‖ + ‖CR‖ ‖B‖ + ‖C‖ ‖RB‖ + ‖D‖) over the systems, times c n eps."""
    total, n = 0.0, 1
    for system in systems:
        full = system.to_dense().to_host()
        n += full.order
        a, b, c, d = (float(np.linalg.norm(x)) for x in (full.A, full.B, full.C, full.D))
        total += d
        if full.order:
            identity = np.eye(full.order)
            reached = largest_gain(reading(full, identity))
            seen = largest_gain(StateSpace(full.A, identity, full.C, time=full.time))
            total += a * seen * reached + seen * b + c * reached
    return ROUNDING * n * system_eps(*systems) * total


def reading(system: StateSpace, C: HostArray) -> StateSpace:
    """The same states with another readout and no feedthrough."""
    return system.replace(C=C, D=None)


def lyapunov_condition(system: StateSpace) -> float:
    """1 + ‖L⁻¹‖ ‖L‖, with ‖L⁻¹‖ = ‖L⁻¹(I)‖ since L⁻¹ keeps the order of Hermitian matrices."""
    n = system.order
    states = StateSpace(system.A, np.eye(n), np.eye(n), time=system.time)
    gramians = controllability_gramian(states), observability_gramian(states)
    inverse = max(float(np.linalg.norm(X, 2)) for X in gramians)
    size = float(np.linalg.norm(system.A, 2))
    return 1.0 + inverse * (size**2 if isinstance(system.time, Discrete) else 2.0 * size)


def singles(system: System) -> Iterator[tuple[str, System]]:
    """Every system of a batch, and its index as a message has it."""
    check_system(system)
    for at in np.ndindex(system.batch_shape):
        yield place_of(at), system[at] if at else system


def paired(
    first: System, second: System, name: str, other: str
) -> Iterator[tuple[str, System, System]]:
    """Both systems of every index, or AssertionError where they cannot be compared."""
    check_system(first, name)
    check_system(second, other)
    for what in ("time", "inputs", "outputs", "batch_shape"):
        found, expected = getattr(first, what), getattr(second, what)
        if found != expected:
            raise AssertionError(
                f"`{name}` has {what} {found}, `{other}` {expected}; allowed: equal."
            )
    for (place, one), (_, two) in zip(singles(first), singles(second), strict=True):
        yield place, one, two


def place_of(at: tuple[int, ...]) -> str:
    """An index as one writes it behind a name; nothing where there are no batch axes."""
    return f"[{', '.join(map(str, at))}]" if at else ""


def described(system: System) -> str:
    """One side of a comparison."""
    return f"{type(system).__name__} of order {system.order}, {system.time}"
