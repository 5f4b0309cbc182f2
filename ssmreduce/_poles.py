"""Eigenvalues of a matrix, or of each of a stack, and whether they are stable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._pole_rounding import CLEARLY, EPS, ROUNDINGS, SMALL
from ssmreduce._schur import SchurForm, fast_to_slow, is_graded
from ssmreduce._state_units import balance_states, balanced_stack, parts_of
from ssmreduce.time_domain import TimeDomain

_SMALLEST = 1e-120
"""Size below which squares underflow, and over whose inverse they overflow."""

_ORDER = 4
"""Order of poles up to which all ways to find them agree whether they are stable."""


def eigenvectors_of(A: HostArray) -> tuple[HostArray, HostArray]:
    """Eigenvalues and eigenvectors of one balanced matrix, in the order of its states from fast to slow."""
    order = fast_to_slow(A)
    if order is None:
        poles, vectors = np.linalg.eig(A)
        return poles, vectors
    poles, ordered = np.linalg.eig(A[np.ix_(order, order)])
    vectors = np.empty_like(ordered)
    vectors[order] = ordered
    return poles, vectors


def poles_of(A: HostArray) -> HostArray:
    """Eigenvalues of each matrix of a stack (..., n, n), those of graded ones to their own digits."""
    if A.shape[-1] == 1:
        return A[..., 0].copy()
    poles = np.linalg.eigvals(A)  # balances, but does not order
    graded = is_graded(A)
    if not graded.any():
        return poles
    poles = poles.astype(np.complex128)
    for at in map(tuple, np.argwhere(graded)):
        balanced, _ = balance_states(A[at])
        if is_graded(balanced):
            poles[at] = _poles_by_parts(balanced)
    complex_valued = np.iscomplexobj(A) or np.any(poles.imag)
    return poles if complex_valued else np.asarray(poles.real)


def _poles_by_parts(A: HostArray) -> HostArray:
    """Eigenvalues of one balanced matrix, of each part in its own scale and from fast to slow states."""
    order, parts = parts_of(A)
    poles = A.diagonal()[order].astype(np.complex128)
    for first, last in parts:
        if last - first > 1:
            states = order[first:last]
            block = A[np.ix_(states, states)]
            falling = fast_to_slow(block)
            if falling is not None:
                block = block[np.ix_(falling, falling)]
            poles[first:last] = np.linalg.eigvals(block)
    return poles


def are_stable(A: HostArray, time: TimeDomain, margin: float = 0.0) -> HostArray:
    """Whether all poles of each matrix of a stack (..., n, n) are stable, shape (...).

    Each part decides for itself, in units that do not depend on those of the states. A Schur form is taken
    where eigenvalues alone leave it to rounding.
    """
    if not A.shape[-1]:
        return np.ones(A.shape[:-2], dtype=bool)
    every = A.reshape(-1, *A.shape[-2:])
    stable = np.ones(len(every), dtype=bool)
    for members, states in _alike_parts(every):
        parts = every[members[:, None, None, None], states[:, :, None], states[:, None, :]]
        each = _parts_are_stable(parts.reshape(-1, *parts.shape[2:]), time, margin)
        stable[members] &= each.reshape(parts.shape[:2]).all(axis=-1)
    return stable.reshape(A.shape[:-2])


def _alike_parts(A: HostArray) -> Iterator[tuple[HostArray, HostArray]]:
    """Matrices of a stack (K, n, n), and states (P, m) of P of their parts: all with the same zeros."""
    coupled = A != 0.0
    if coupled.all():
        yield np.arange(len(A)), np.arange(A.shape[-1])[None]
        return
    kinds: dict[bytes, list[int]] = {}
    for k, zeros in enumerate(coupled):
        kinds.setdefault(zeros.tobytes(), []).append(k)
    for members in kinds.values():
        example = members[0]
        order, parts = parts_of(A[example])
        alike: dict[bytes, list[HostArray]] = {}
        for first, last in parts:
            states = order[first:last]
            zeros = coupled[example][np.ix_(states, states)].tobytes() if last > first + 1 else b""
            alike.setdefault(zeros, []).append(states)
        for same in alike.values():
            yield np.array(members), np.stack(same)


def _parts_are_stable(A: HostArray, time: TimeDomain, margin: float) -> HostArray:
    """The same for a stack (K, n, n) of parts with the same zeros."""
    if A.shape[-1] == 1:
        return np.asarray(time.distance(A[:, 0, 0]) > margin)
    size = np.abs(A).max(axis=(1, 2))
    usual = (size > _SMALLEST) & (size < 1.0 / _SMALLEST)
    stable, doubtful = np.zeros(len(A), dtype=bool), np.ones(len(A), dtype=bool)
    if usual.any():
        stable[usual], doubtful[usual] = _by_eigenvalues(balanced_stack(A[usual]), time, margin)
    for k in np.flatnonzero(doubtful):
        stable[k] = SchurForm.of(A[k]).stable(time, margin).all()
    return stable


def _by_eigenvalues(A: HostArray, time: TimeDomain, margin: float) -> tuple[HostArray, HostArray]:
    """Which of a stack (K, n, n) of balanced parts are stable, and which of these answers are in doubt.

    Eigenvalues alone leave none where the nearest is farther from the boundary than rounding moves a pole of
    order four; of large parts, for which eigenvectors take long, of order two. Small ones with rows that
    slow are not tried.
    """
    n = A.shape[-1]
    small, room, doubtful = n <= SMALL, np.empty(len(A)), np.ones(len(A), dtype=bool)
    far = EPS ** (1.0 / min(n, _ORDER)) if small else CLEARLY
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.linalg.norm(A, axis=-1)
        far = far * np.linalg.norm(rows, axis=-1)
        slow = small & (rows.min(axis=-1) < 2.0 * far)
        if not slow.all():
            distance = time.distance(np.linalg.eigvals(A[~slow])) - margin
            room[~slow] = distance.min(axis=-1)
            doubtful[~slow] = ~(np.abs(room[~slow]) > far[~slow])
        rest = np.flatnonzero(doubtful)
        if small and rest.size:
            room[rest], doubtful[rest] = _by_conditions(A[rest], time, margin, far[rest])
    return room > 0.0, doubtful


def _by_conditions(
    A: HostArray, time: TimeDomain, margin: float, far: HostArray
) -> tuple[HostArray, HostArray]:
    """How far inside the poles of balanced matrices lie, and whether rounding might decide about it.

    It does not where the nearest lies `far` from the boundary, nor where all lie inside, or one outside, by
    twice what their conditions let it do.
    """
    poles, vectors = np.linalg.eig(A)
    distance = time.distance(poles) - margin
    room, size = distance.min(axis=-1), np.linalg.norm(A, axis=(-2, -1))
    doubtful = ~(np.abs(room) > far)
    try:
        conditions = np.linalg.norm(np.linalg.inv(vectors), axis=-1)
    except np.linalg.LinAlgError:
        return room, doubtful
    rounding = 2.0 * ROUNDINGS * A.shape[-1] * EPS * size[:, None] * conditions
    clear = (distance > rounding).all(axis=-1) | (distance < -rounding).any(axis=-1)
    return room, doubtful & ~clear
