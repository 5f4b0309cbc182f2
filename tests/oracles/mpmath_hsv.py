"""Hankel singular values of diagonal systems from exact Gramians, at 80 digits.

A system with output Re(C h) is treated as the complex system of the states [h; conj h],
(diag(λ, conj λ), [B; conj B], [C, conj C]/2), which is similar to the real one: no formula of the
package is repeated. The square root of the Gramian product costs half of the digits, 80 leave 40.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp
import numpy as np
from numpy.typing import NDArray

_DIGITS = 80


def hankel_singular_values(
    poles: Sequence[complex] | NDArray[Any],
    B: NDArray[Any],
    C: NDArray[Any],
    *,
    discrete: bool = True,
    logarithms: bool = False,
    real_output: bool = False,
) -> NDArray[np.float64]:
    """All singular values, descending, each rounded to double from 40 digits.

    With `logarithms`, `poles` holds log λ (discrete time), taken as exact.
    """
    with mp.workdps(_DIGITS):
        values = _values(
            poles, B, C, discrete=discrete, logarithms=logarithms, real_output=real_output
        )
        return np.array([float(value) for value in values])


def directional_derivative(
    function: Callable[[list[Any]], Any],
    point: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    direction: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    **options: bool,
) -> float:
    """d/dt of function(σ) along (poles, B, C) + t direction, by differences at 80 digits and more."""

    def along(t: Any) -> Any:
        moved = [_exact(x) + t * _exact(dx) for x, dx in zip(point, direction, strict=True)]
        return function(_values(*moved, **{"discrete": True, **options}))

    with mp.workdps(_DIGITS):
        return float(mp.diff(along, 0, h=mp.mpf(10) ** (-_DIGITS // 4)))


def _exact(array: Any) -> Any:
    """Object array of mpmath numbers."""
    return np.vectorize(lambda x: mp.mpmathify(complex(x)), otypes=[object])(np.asarray(array))


def _values(
    poles: Any,
    B: Any,
    C: Any,
    *,
    discrete: bool,
    logarithms: bool = False,
    real_output: bool = False,
) -> list[Any]:
    states = [mp.mpmathify(pole) for pole in _plain(poles)]
    inputs = [[mp.mpmathify(x) for x in _plain(row)] for row in np.asarray(B)]
    outputs = [[mp.mpmathify(x) for x in _plain(row)] for row in np.swapaxes(C, 0, 1)]
    if real_output:
        states += [mp.conj(s) for s in states]
        inputs += [[mp.conj(x) for x in row] for row in inputs]
        outputs += [[mp.conj(x) for x in row] for row in outputs]
        outputs = [[x / 2 for x in row] for row in outputs]
    conjugates = [[mp.conj(x) for x in row] for row in outputs]
    P = _gramian(states, inputs, discrete, logarithms)
    Q = _gramian([mp.conj(s) for s in states], conjugates, discrete, logarithms)
    energies, vectors = mp.eighe(P)
    n = len(states)
    root = mp.matrix(n, n)
    for j in range(n):
        weight = mp.sqrt(max(energies[j], mp.mpf(0)))
        for i in range(n):
            root[i, j] = vectors[i, j] * weight
    squares = mp.eighe(root.H * Q * root, eigvals_only=True)
    return sorted((mp.sqrt(max(x, mp.mpf(0))) for x in squares), reverse=True)


def _plain(row: Any) -> list[Any]:
    """Numbers that mpmath takes: its own, or complex."""
    return [x if isinstance(x, mp.mpf | mp.mpc) else complex(x) for x in row]


def _gramian(states: list[Any], rows: list[list[Any]], discrete: bool, logarithms: bool) -> Any:
    n = len(states)
    gramian = mp.matrix(n, n)
    for i in range(n):
        for j in range(n):
            product = sum(
                (x * mp.conj(y) for x, y in zip(rows[i], rows[j], strict=True)), mp.mpc(0)
            )
            if logarithms:
                distance = 1 - mp.exp(states[i] + mp.conj(states[j]))
            elif discrete:
                distance = 1 - states[i] * mp.conj(states[j])
            else:
                distance = -(states[i] + mp.conj(states[j]))
            gramian[i, j] = product / distance
    return gramian
