"""Eigenvalues of a matrix, or of each of a stack, and whether they are stable."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import frobenius_norm
from ssmreduce._pole_rounding import CLEARLY, EPS, ROUNDINGS, SEVERAL, SMALL, far
from ssmreduce._schur import SchurForm, fast_to_slow, is_graded
from ssmreduce._state_units import balance_states, balanced_stack, parts_of
from ssmreduce.time_domain import TimeDomain

_LEAST_SCALED = 1e-120
"""Norm below which, and over which in its inverse, LAPACK's geev scales a matrix, which not all undo."""


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

    A Schur form is taken where eigenvalues alone leave it to rounding.
    """
    if not A.shape[-1]:
        return np.ones(A.shape[:-2], dtype=bool)
    # LAPACK takes less than the checks of NumPy.
    size = frobenius_norm(A) if A.ndim == 2 and len(A) <= SMALL else 0.0
    if _LEAST_SCALED < size < 1.0 / _LEAST_SCALED:
        if A.dtype.kind == "c":
            poles, _, _, failed = lapack.zgeev(A, compute_vl=0, compute_vr=0)
        else:
            real, imaginary, _, _, failed = lapack.dgeev(A, compute_vl=0, compute_vr=0)
            poles = real + 1j * imaginary
        nearest = min(time.distance(poles).tolist())
        if not failed and nearest > margin + far(len(A)) * size:
            return np.asarray(True)

    every = A.reshape(-1, *A.shape[-2:])
    stable, doubtful = _by_eigenvalues(every, time, margin)
    for k in np.flatnonzero(doubtful):
        stable[k] = SchurForm.of(every[k], time=time).stable(time, margin).all()
    return stable.reshape(A.shape[:-2])


def _by_eigenvalues(A: HostArray, time: TimeDomain, margin: float) -> tuple[HostArray, HostArray]:
    """Which of a stack (K, n, n) are stable, and which of these answers are in doubt.

    Of small ones with slow rows eigenvalues alone would leave a doubt: they are not computed.
    """
    n = A.shape[-1]
    small, room, doubtful = n <= SMALL, np.empty(len(A)), np.ones(len(A), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.linalg.norm(A, axis=-1)
        size = np.linalg.norm(rows, axis=-1)
        slow = small & (rows.min(axis=-1) < 2.0 * CLEARLY * size)
        in_range = (size > _LEAST_SCALED) & (size < 1.0 / _LEAST_SCALED)
        slow |= ~in_range
        if not slow.all():
            distance = time.distance(np.linalg.eigvals(A[~slow])) - margin
            room[~slow] = distance.min(axis=-1)
            doubtful[~slow] = ~(np.abs(room[~slow]) > far(n) * size[~slow])
        rest = np.flatnonzero(doubtful & in_range)
        if small and rest.size:
            even = balanced_stack(A[rest])
            room[rest], doubtful[rest] = _by_conditions(even, time, margin)
    return room > 0.0, doubtful


def _by_conditions(A: HostArray, time: TimeDomain, margin: float) -> tuple[HostArray, HostArray]:
    """How far inside the poles of balanced matrices lie, and whether rounding might decide about it.

    It does not where all lie inside, or one outside, by several times what their conditions let it do.
    """
    poles, vectors = np.linalg.eig(A)
    distance = time.distance(poles) - margin
    room, size = distance.min(axis=-1), np.linalg.norm(A, axis=(-2, -1))
    doubtful = ~(np.abs(room) > far(A.shape[-1]) * size)
    try:
        conditions = np.linalg.norm(np.linalg.inv(vectors), axis=-1)
    except np.linalg.LinAlgError:
        return room, doubtful
    rounding = SEVERAL * ROUNDINGS * A.shape[-1] * EPS * size[:, None] * conditions
    clear = (distance > rounding).all(axis=-1) | (distance < -rounding).any(axis=-1)
    return room, doubtful & ~clear
