"""What a continuous system does over one step: exp(A h) and the integrals of a held input.

From t to t + h, with an input that is constant or runs straight in between,

    x(t + h) = Φ x(t) + h φ₁(X) B u(t) [+ h φ₂(X) B (u(t + h) - u(t))],   X = A h,  Φ = exp X = I + E,
    φ₁(x) = (exp x - 1)/x,   φ₂(x) = (φ₁(x) - 1)/x.

All three come from one Padé approximant of a step that is 2^s times shorter. Its numerator less its
denominator is 2U, U = X W odd, so that with one LU factorisation, of V - U,

    E = (V - U)⁻¹ 2 X W,   φ₁ = (V - U)⁻¹ 2 W,   φ₂ = (V - U)⁻¹ (W + X Z),   Z = (2W - V)/X².

Then the step is doubled s times:

    E(2X) = (I + E/2) 2E,   φ₁(2X) = (I + E/2) φ₁(X),   φ₂(2X) = (I + E/2) φ₂(X)/2 + φ₁(X)/4.

Squaring Φ instead, as is usual, rounds slow states to ε while they still stand at 1 + λ h: of a time
constant 10^12 times the shortest step twelve digits are gone. E keeps them, and once a state has decayed Φ
keeps the remainder. The two differ on the diagonal alone, whose entries are carried in the form that is
small. So entries of graded and triangular A are as right as those of A determine them; rows of the fast
states of a companion form are not. Where a graded A takes many doublings they are done again from a step
half as long, and where an entry differs, in whole numbers of 1100 bits (`exact_step`), up to 24 states and
10 s. Beyond that the step is refused if outputs of the two differ.
A h φ₁ B = E B, on which the DC gain rests, survives every doubling: both
sides are multiplied by the same matrix. Where all states have decayed,
h φ₁ B = E (A⁻¹ B) is well conditioned too, and the DC gain is that of A and B themselves.

A is balanced and scaled by powers of two first, B by columns, so that units round nothing and nothing
overflows but the answer. Where the states are a mixed basis for fast and slow ones, what remains is the
condition of the exponential: a relative change of ε in A, that is ε ‖A‖ h in the exponent of a slow pole.

Cost O(n³ (8 + s)) for dense systems, O(n) for diagonal ones, many steps at once.

References: Higham, The scaling and squaring method for the matrix exponential revisited, SIAM J. Matrix Anal.
Appl. 26 (2005); Al-Mohy and Higham, SIAM J. Matrix Anal. Appl. 31 (2009), for the norms of powers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import shifted
from ssmreduce._schur import is_graded
from ssmreduce._state_units import balanced_matrix
from ssmreduce._workers import naming_system
from ssmreduce.errors import NoConvergenceError, NonFiniteError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.exact_step import exact_step, seconds_of_exact_step
from ssmreduce.systems.linear_solve import solve_conditioned

_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)

_REACH = {
    3: np.log2(1.49558521e-2),
    5: np.log2(0.253939833),
    7: np.log2(0.950417899),
    13: np.log2(4.25),
}
"""log₂ ‖X‖ up to which the Padé approximant of that degree is exact for some X + ΔX, ‖ΔX‖ ≤ ε ‖X‖."""

_NONNORMAL = 16.0
"""At most so much larger than `_REACH` is ‖X‖ taken where its powers are small: sums of them then cancel."""

_DECAYED = 0.5
"""Below it Φ_ii is the smaller one beside E_ii = Φ_ii - 1; and ‖Φ‖ below it makes ‖E⁻¹‖ ≤ 2."""

_STIFF = 8
"""Doublings from which on small entries of a graded A may be lost in those of others."""

_AGREEMENT = 1e-9
"""Relative difference of an entry, from one doubling more, that is rounding which does no harm."""

_MOST_STATES = 24
"""Up to this order a step in whole numbers ends within seconds."""

_MOST_SECONDS = 10.0
"""Steps in whole numbers take no longer in one call."""

_LOST = 1e-6
"""Relative difference of outputs, from one doubling more, that is too much."""

_SPREAD = 1000
"""Exponent of the largest numbers that are worked on."""

_ZERO = -(2**16)
"""Exponent of 0: smaller than any other."""

_VANISHED = -800.0
"""Real part of an exponent from which on exp is 0 in double precision."""

_WORKING_ENTRIES = 2**18
"""Numbers in each of the matrices that are worked on at once: 2 MiB."""

_ROOM = 8
"""Matrices in one block of which half is used: the C library keeps at hand up to twice its largest block, and
a step of 200 states, which has ten matrices at once, else spends a fifth of its time on fresh pages."""


@dataclass(frozen=True, eq=False)
class TimeStep:
    """Φ, or its diagonal where A is diagonal, h φ₁ B and h φ₂ B; entries that overflow are Inf or NaN.

    `seconds` is about what whole numbers took.
    """

    power: HostArray
    constant: HostArray
    ramp: HostArray
    seconds: float = 0.0

    def of(self, k: int) -> TimeStep:
        """One step of a stack."""
        return TimeStep(self.power[k], self.constant[k], self.ramp[k])

    def moved(self, x: HostArray) -> HostArray:
        """Φ x, for one state or one in each column."""
        if self.power.ndim == 2:
            return np.asarray(self.power @ x)
        return np.asarray(self.power * x if x.ndim == 1 else self.power[:, None] * x)


def time_steps(host: System, sizes: HostArray, linear: bool = False) -> Iterator[TimeStep]:
    """Steps of a single system, of sizes h ≥ 0, shape (L,); `linear` if inputs run straight in between."""
    diagonal = isinstance(host, DiagonalStateSpace)
    length = max(
        1, _WORKING_ENTRIES // max(1, host.order * (host.inputs if diagonal else host.order))
    )
    left = _MOST_SECONDS
    for start in range(0, len(sizes), length):
        part = sizes[start : start + length]
        if isinstance(host, DiagonalStateSpace):
            stack = diagonal_step(host.eigenvalues, host.B, part[:, None])
        else:
            stack = dense_steps(host.A[None], host.B[None], part, host.C, left, linear)
            left -= stack.seconds
        for power, constant, ramp in zip(stack.power, stack.constant, stack.ramp, strict=True):
            yield TimeStep(power, constant, ramp)


# --- Diagonal


def exponential_integral(x: HostArray) -> HostArray:
    """φ₁(x) = (exp x - 1)/x, entry by entry, 1 at 0: the mean of exp over [0, x]."""
    # Below ε it rounds to 1; complex division by the smallest numbers of all would overflow.
    small = np.abs(x) < _EPS
    return np.asarray(np.where(small, 1.0, np.expm1(x) / np.where(small, 1.0, x)))


def exponents(eigenvalues: HostArray, size: HostArray | float) -> HostArray:
    """λ h, cut off where exp(λ h) has vanished; Inf where λ h overflows all the same."""
    with np.errstate(over="ignore", invalid="ignore"):
        real = np.asarray(eigenvalues.real * size)
        if not np.iscomplexobj(eigenvalues):
            return np.maximum(real, _VANISHED)
        return np.where(real < _VANISHED, _VANISHED, real + 1j * (eigenvalues.imag * size))


def diagonal_step(eigenvalues: HostArray, B: HostArray, size: HostArray | float) -> TimeStep:
    """Steps of x' = Λ x + B u, entries of shape (..., n) and (..., n, m); sizes broadcast with Λ."""
    exponent = exponents(eigenvalues, size)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        near = np.abs(exponent) < 1.0
        small, pole = np.where(near, exponent, 0.0), np.where(near, 1.0, eigenvalues)
        # φ₁ - 1 by its series Σ xᵏ/(k+1)! and φ₂ by Σ xᵏ/(k+2)! where the differences would cancel.
        second = np.zeros_like(small)
        for k in range(20, 0, -1):  # 1/22! < ε
            second = (1.0 + second) * small / (k + 2)
        constant = np.where(near, size * exponential_integral(small), np.expm1(exponent) / pole)
        ramp = np.where(near, 0.5 * size * (1.0 + second), (constant / size - 1.0) / pole)
        power = np.exp(exponent)
        return TimeStep(power, constant[..., None] * B, ramp[..., None] * B)


# --- Dense


def dense_steps(
    A: HostArray,
    B: HostArray,
    sizes: HostArray,
    C: HostArray | None = None,
    budget: float = _MOST_SECONDS,
    linear: bool = False,
) -> TimeStep:
    """Steps of x' = A x + B u, stacked; for one system many sizes, for many systems one, or one each.

    Parameters
    ----------
    A, B : (K, n, n) and (K, n, m) arrays
        K is 1 or L.
    sizes : (L,) array
        Step sizes h ≥ 0, finite; or one where K > 1.
    C : (..., p, n) array, optional
        For one system, or with the batch axes of all. Steps whose outputs rounding spoils are refused.
    budget : float
        Seconds at most that steps in whole numbers may take.
    linear : bool
        Whether h φ₂ B is used, and must be right.

    Returns
    -------
    TimeStep
        Arrays of shape (L, n, n), (L, n, m) and (L, n, m), or K.

    Raises
    ------
    NoConvergenceError
        If outputs C x are lost in rounding, and whole numbers would take too long.
    """
    count, (n, m) = max(len(A), len(sizes)), B.shape[-2:]
    dtype = np.result_type(A, B)
    if n == 0:
        empty = np.zeros((count, 0, m), dtype=dtype)
        return TimeStep(np.zeros((count, 0, 0), dtype=A.dtype), empty, empty)
    A, states = (np.stack(parts) for parts in zip(*map(balanced_matrix, A), strict=True))
    units = np.frexp(states)[1][:, :, None] - 1
    a, b = _exponent(A, (1, 2)), _input_exponent(B, units)
    A, B = shifted(A, -a), shifted(B, -b - units)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        base = _ShortSteps.of(A, B, a.ravel(), sizes)
        parts, doubled = (A, B, a, b, sizes), _doubled(base)
        step = _held(doubled, parts, base.doublings > 0)
        stiff = (base.doublings >= _STIFF) & is_graded(A)
        if stiff.any():
            again = _doubled(_ShortSteps.of(A, B, a.ravel(), sizes, halvings=1))
            which = np.flatnonzero(stiff & _differ(doubled[1:], again[1:]))
            seconds = sum(seconds_of_exact_step(*x) for x in _scaled(parts, which))
            if n <= _MOST_STATES and seconds <= budget:
                step = replace(step, seconds=seconds)
                _replace(step, which, parts)
            elif C is not None:
                other = _held(again, parts, base.doublings > 0)
                _check_outputs((step, other), which, C, states, linear)
        return TimeStep(
            shifted(step.power, units - units.swapaxes(1, 2)),
            shifted(step.constant, b + units),
            shifted(step.ramp, b + units),
            step.seconds,
        )


def _held(
    doubled: tuple[HostArray, ...], parts: tuple[HostArray, ...], halved: HostArray
) -> TimeStep:
    """Steps h φ of parts A, B with exponents a, b, less those of the units of states and inputs."""
    E, power, first, second = doubled
    A, B, a, _, sizes = parts
    h, exponent = (x[:, None, None] for x in np.frexp(sizes))
    constant, ramp = (shifted(x * h, exponent) for x in (first, second))
    decayed = halved & (_norm(power) < _DECAYED)
    if np.any(decayed):
        rest = np.stack([_steady(*pair) for pair in zip(A, B, strict=True)])  # B_d = E (A⁻¹ B)
        exact = decayed[:, None, None] & np.isfinite(rest).all(axis=(1, 2), keepdims=True)
        constant = np.where(exact, shifted(E @ rest, -a), constant)
    return TimeStep(power, constant, ramp)


def _differ(one: tuple[HostArray, ...], other: tuple[HostArray, ...]) -> HostArray:
    """Whether two roundings of the same finite arrays differ, for each of a stack."""
    differ = [
        np.abs(x - y) > _AGREEMENT * np.abs(x) + _TINY for x, y in zip(one, other, strict=True)
    ]
    return np.asarray(np.any([x.any(axis=(1, 2)) for x in differ], axis=0))


def _check_outputs(
    steps: tuple[TimeStep, TimeStep], which: HostArray, C: HostArray, units: HostArray, linear: bool
) -> None:
    """Raise `NoConvergenceError` where two roundings of a step differ in the outputs of three of them."""
    for k in which:
        at = tuple(map(int, np.unravel_index(k, C.shape[:-2]))) if C.ndim > 2 else ()
        weights = C[at] * units[k if len(units) > 1 else 0]
        weights /= np.maximum(np.abs(weights).max(axis=-1, keepdims=True, initial=0.0), _TINY)
        held = [_held_states(step.of(k), linear) for step in steps]
        found, again = (weights @ states for states in held)
        # Without inputs columns are responses to single states, in units that say little about inputs.
        size = np.abs(found).max(axis=0 if steps[0].constant.shape[-1] else (0, -1), keepdims=True)
        allowed = _LOST * size + _AGREEMENT * (np.abs(weights) @ np.abs(held[0]))
        missed = np.abs(found - again)
        if np.any(missed > allowed):
            worst = np.nanmax(missed / np.maximum(size, _TINY))
            with naming_system(at):
                raise _lost(C.shape[-1], worst)


def _lost(n: int, found: float) -> NoConvergenceError:
    remedy = (
        "Take evenly spaced times, or fewer systems at once"
        if n <= _MOST_STATES
        else "Split fast and slow states, or bring the system to modal form"
    )
    return NoConvergenceError(
        f"`system` has {n} states in which exp(A h) is lost in rounding: outputs of two ways to round a step "
        f"differ by {found:.0e} of their size; expected {_LOST:.0e} at most. {remedy}."
    )


def _held_states(step: TimeStep, linear: bool) -> HostArray:
    """States after one, two and three steps, and an input held over the first; Φ^k without inputs."""
    held = step.constant
    if linear:
        held = np.concatenate([held, step.ramp], axis=-1)
    if not held.shape[-1]:
        held = np.eye(len(step.power))
    states = [held, step.power @ held]
    return np.stack([*states, step.power @ states[1]])


def _scaled(
    parts: tuple[HostArray, ...], which: HostArray
) -> Iterator[tuple[HostArray, HostArray, float]]:
    """A, B and the step in the unit of time of A, for some of a stack."""
    for k in which:
        A, B, a, _, size = (x[k if len(x) > 1 else 0] for x in parts)
        yield A, B, float(np.ldexp(size, a.item()))


def _replace(step: TimeStep, which: HostArray, parts: tuple[HostArray, ...]) -> None:
    """Put steps in whole numbers in the place of those that rounding spoils, where doubles hold them."""
    sizes = np.broadcast_to(parts[-1], len(step.power))
    for k, scaled in zip(which, _scaled(parts, which), strict=True):
        found = exact_step(*scaled)
        if found is not None:
            power, first, second = found
            h, exponent = np.frexp(sizes[k])
            step.power[k] = power if np.iscomplexobj(step.power) else power.real
            step.constant[k], step.ramp[k] = (shifted(x * h, exponent) for x in (first, second))


@dataclass(frozen=True, eq=False)
class _ShortSteps:
    """E and [φ₁ B, φ₂ B] of X/2^s, with s as `doublings`, shape (L,)."""

    growth: HostArray
    held: HostArray
    doublings: HostArray

    @classmethod
    def of(
        cls, A: HostArray, B: HostArray, exponent: HostArray, sizes: HostArray, halvings: int = 0
    ) -> _ShortSteps:
        """X = A h 2^exponent, with entries of A and B near 1, and halved so many times more than needed."""
        powers, degree, doublings = _chosen_degree(A, exponent + np.log2(sizes))
        doublings = doublings + halvings
        t = np.ldexp(sizes, exponent - doublings)[:, None, None]
        even, odd = _coefficients(degree)
        W, V = _even_polynomials((odd, even), powers, t * t)
        driven = W @ B
        rest = np.zeros_like(driven)  # Z B
        for k in range(len(odd) - 1, 0, -1):
            rest = (2.0 * odd[k] - even[k]) * B + (t * t) * (powers[:, 1] @ rest)
        U = A @ W
        U *= t
        V -= U
        U *= 2.0
        right = np.concatenate([U, 2.0 * driven, driven + t * (A @ rest)], axis=-1)
        del powers, W, U  # room for what `solve` copies
        growth, held = np.split(np.linalg.solve(V, right), [len(A[0])], axis=-1)
        growth = growth if np.iscomplexobj(A) else growth.real
        return cls(growth.copy(), held.copy(), doublings)


def _chosen_degree(A: HostArray, unit: HostArray) -> tuple[HostArray, int, HostArray]:
    """Powers A^2k up to A⁶ at most, a degree for all steps X = 2^unit A, and how often each is halved.

    The powers have shape (K, 2 to 4, n, n). Degrees 5 and above take max(‖X⁴‖^¼, ‖X⁶‖^⅙) in the place of ‖X‖.
    """
    powers = np.empty((len(A), _ROOM, *A.shape[1:]), dtype=A.dtype)[:, :4]
    powers[:, 0] = np.eye(A.shape[-1])
    np.matmul(A, A, out=powers[:, 1])
    none = np.zeros(unit.shape, dtype=int)
    norm = _norm(A)
    size = norm

    def reach() -> float:
        return float(np.max(unit + np.log2(size), initial=-np.inf))

    if reach() <= _REACH[3]:
        return powers[:, :2], 3, none
    np.matmul(powers[:, 1], powers[:, 1], out=powers[:, 2])
    fourth = _norm(powers[:, 2])
    least = np.maximum(fourth**0.25, norm / _NONNORMAL)
    size = np.maximum(least, (fourth * _norm(powers[:, 1])) ** (1 / 6))
    if reach() <= _REACH[5]:
        return powers[:, :3], 5, none
    np.matmul(powers[:, 1], powers[:, 2], out=powers[:, 3])
    size = np.maximum(least, _norm(powers[:, 3]) ** (1 / 6))
    if reach() <= _REACH[7]:
        return powers, 7, none
    halvings = np.ceil(unit + np.log2(size) - _REACH[13])
    return powers, 13, np.maximum(halvings, 0.0).astype(int)


def _doubled(base: _ShortSteps) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """E, Φ, φ₁ B and φ₂ B of the whole steps."""
    beside, held = base.growth, base.held
    at, m = np.arange(beside.shape[-1]), held.shape[-1] // 2
    gained = beside[:, at, at]  # the diagonals of E and of Φ, equal in all other entries
    kept = 1.0 + gained
    power = beside.copy()
    power[:, at, at] = kept
    beside[:, at, at] = 0.0
    for level in range(int(np.max(base.doublings, initial=0))):
        rest = base.doublings > level
        on = slice(None) if rest.all() else np.flatnonzero(rest)
        e, p, off, inputs = gained[on], kept[on], beside[on], held[on]
        double = 0.5 * (inputs + power[on] @ inputs)
        double[..., m:] = 0.5 * double[..., m:] + 0.25 * inputs[..., :m]
        held[on] = double
        grown = power[on] @ off
        back = grown[:, at, at]
        off *= p[:, None, :]
        grown += off
        slow = np.abs(p) >= _DECAYED
        gained[on] = np.where(slow, e * (1.0 + p) + back, p * p + back - 1.0)
        kept[on] = np.where(slow, 1.0 + gained[on], p * p + back)
        grown[:, at, at] = kept[on]
        power[on] = grown
        grown[:, at, at] = 0.0
        beside[on] = grown
    beside[:, at, at] = gained
    return beside, power, held[..., :m], held[..., m:]


def _coefficients(degree: int) -> tuple[list[float], list[float]]:
    """Coefficients of V, even, and of W, odd, of the Padé approximant of exp; that of I in V is 1."""
    terms = [
        math.comb(degree, k) * math.factorial(2 * degree - k) / math.factorial(2 * degree)
        for k in range(degree + 1)
    ]
    return terms[::2], terms[1::2]


def _even_polynomials(
    terms: tuple[list[float], list[float]], powers: HostArray, square: HostArray
) -> list[HostArray]:
    """Σ c_k t^2k A^2k for rows of coefficients c, from the powers up to A⁶; `square` is t²."""
    K, kept, n = powers.shape[:3]
    rows = [row[:4] for row in terms] + [row[4:] for row in terms if len(row) > 4]
    table = np.zeros((len(rows), kept))
    for i, row in enumerate(rows):
        first = i // len(terms)
        table[i, first : first + len(row)] = row
    weights = table * square ** np.arange(kept)
    sums = (weights @ powers.reshape(K, kept, n * n)).reshape(-1, len(rows), n, n)
    low = sums[:, : len(terms)]
    if len(rows) > len(terms):
        low += square[:, None] ** 3 * (powers[:, 3, None] @ sums[:, len(terms) :])
    return [low[:, i] for i in range(len(terms))]


def _steady(A: HostArray, B: HostArray) -> HostArray:
    """A⁻¹ B, refined, so that its small entries are right too; NaN where A is singular."""
    solved, conditioned = solve_conditioned(A, B)
    return solved if conditioned > 0.0 else np.full_like(solved, np.nan)


def _norm(matrices: HostArray) -> HostArray:
    """1-norms of a stack of matrices."""
    return np.asarray(np.abs(matrices).sum(axis=-2).max(axis=-1))


def _exponent(matrices: HostArray, axes: tuple[int, ...]) -> HostArray:
    """Exponents e with largest entries in [2^(e-1), 2^e), kept as axes of length 1."""
    parts = [matrices.real, matrices.imag] if np.iscomplexobj(matrices) else [matrices]
    largest = [np.abs(part).max(axis=axes, keepdims=True, initial=0.0) for part in parts]
    return np.asarray(np.frexp(np.max(largest, axis=0))[1])


def _input_exponent(B: HostArray, units: HostArray) -> HostArray:
    """Exponents that bring the columns of S⁻¹ B near 1, or all their entries among the doubles."""
    parts = [B.real, B.imag] if np.iscomplexobj(B) else [B]
    found = [np.where(part == 0.0, _ZERO, np.frexp(part)[1] - units) for part in parts]
    most = np.max(found, axis=0).max(axis=1, keepdims=True, initial=_ZERO)
    least = np.min([np.where(x == _ZERO, most, x) for x in found], axis=0)
    least = least.min(axis=1, keepdims=True, initial=-_ZERO)
    return np.where(most == _ZERO, 0, np.clip(least + _SPREAD, most - _SPREAD, most))


# --- Overflow


def checked_range(values: HostArray, found: str, remedy: str) -> HostArray:
    """Return `values` if all are finite; else say that they overflow, and what to do.

    Raises
    ------
    NonFiniteError
        If one is not: "`dt` is 3, over which exp(A dt) overflows; expected numbers below 1.8e308. ..."
    """
    if np.all(np.isfinite(values)):
        return values
    raise NonFiniteError(f"{found} overflows; expected numbers below 1.8e308. {remedy}")
