"""exp(A h) and the integrals of a held input in whole numbers of 1100 bits, for small stiff systems.

A companion form with rates from 1 to 10^14 has entries in exp(A h) that cancel to 10^-50 of their terms, and
C may weigh them by 10^50. Here no rounding reaches the digits of a double:

    X = A h / 2^s,   E = X + X²/2! + ...,   φ₁ B = B + X φ₂ B,   φ₂ B = (1/2! + X/3! + ...) B,

and s doublings, all as multiples of 2^-1100. Cost O(n³ (70 + s)) products of such numbers, about 2 µs each.
"""

from __future__ import annotations

import math

import numpy as np

from ssmreduce._array_libraries import HostArray

_BITS = 1100
"""Doubles end at 2^-1074."""

_SMALL = 40
"""‖X‖ ≤ 2^-40: fewer doublings need more terms."""

_TERMS = 26
"""2^(-40 k)/k! < 2^-1100."""

_MOST_BITS = _BITS + 1030
"""Numbers with more are beyond doubles."""


def exact_step(
    A: HostArray, B: HostArray, size: float
) -> tuple[HostArray, HostArray, HostArray] | None:
    """exp(A h), φ₁(A h) B and φ₂(A h) B to the last digit of each entry; None where they overflow.

    Parameters
    ----------
    A, B : (n, n) and (n, m) arrays
        With entries of about 1 at most.
    size : float
        h.
    """
    n = len(A)
    if not math.isfinite(size):
        return None
    if np.iscomplexobj(A) or np.iscomplexobj(B):
        A, B = A.astype(np.complex128), B.astype(np.complex128)
        real = np.block([[A.real, -A.imag], [A.imag, A.real]])
        found = exact_step(real, np.concatenate([B.real, B.imag]), size)
        if found is None:
            return None
        power, first, second = (x[:n] + 1j * x[n:] for x in found)
        return power[:, :n], first, second
    halvings = _halvings(A, size)
    X = (_whole(A) * _whole(np.array([size]))) >> (_BITS + halvings)
    held = _whole(B)
    E, first, second = _short_step(X, held)
    for _ in range(halvings):
        if max(abs(x) for x in E.flat).bit_length() > _MOST_BITS:
            return None
        grown = (E @ np.concatenate([E, first, second], axis=1)) >> _BITS
        half = second + (grown[:, n + B.shape[1] :] >> 1)
        second = (2 * half + first) >> 2
        first = first + (grown[:, n : n + B.shape[1]] >> 1)
        E = 2 * E + grown[:, :n]
    try:
        return _rounded(E + _whole(np.eye(n))), _rounded(first), _rounded(second)
    except OverflowError:
        return None


def seconds_of_exact_step(A: HostArray, B: HostArray, size: float) -> float:
    """About how long `exact_step` takes."""
    if not math.isfinite(size):
        return 0.0
    n = len(A) * (2 if np.iscomplexobj(A) or np.iscomplexobj(B) else 1)
    return float(2e-6 * n**2 * (n + B.shape[1]) * (70 + _halvings(A, size)))


def _halvings(A: HostArray, size: float) -> int:
    return max(0, math.frexp(float(np.abs(A).sum(axis=0).max()) * size)[1] + _SMALL)


def _short_step(X: HostArray, B: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """E, φ₁ B and φ₂ B by their series."""
    one = _whole(np.eye(len(X)))
    grown, second = one, B
    for k in range(_TERMS, 0, -1):
        grown = one + ((X @ grown) >> _BITS) // (k + 1)
        second = B + ((X @ second) >> _BITS) // (k + 2)
    second = second >> 1
    return (X @ grown) >> _BITS, B + ((X @ second) >> _BITS), second


def _whole(values: HostArray) -> HostArray:
    """Doubles as multiples of 2^-1100."""
    mantissas, exponents = np.frexp(values)
    integers = np.ldexp(mantissas, 53).astype(np.int64).astype(object)
    up = (exponents + _BITS).astype(object)
    return np.asarray((integers << up) >> 53)


def _rounded(whole: HostArray) -> HostArray:
    return np.asarray(whole / (1 << _BITS)).astype(np.float64)
