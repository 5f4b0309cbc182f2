"""Hankel singular values of one-input one-output modal systems, to as many digits as asked for.

P_ij = b_i conj(b_j) K_ij is formed and factored as L Lᴴ with mpmath. The values are then square roots
of the eigenvalues of Lᴴ Q L; for real data, scaled so that |b_i| = |c_i|, they are the moduli of those
of Lᵀ S L with the signs S of c_i b_i, and nothing is squared. The package never forms a Gramian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mpmath as mp
import numpy as np
from numpy.typing import NDArray


def hankel_singular_values(
    poles: Sequence[Any] | NDArray[Any],
    b: Sequence[Any] | NDArray[Any],
    c: Sequence[Any] | NDArray[Any],
    *,
    discrete: bool = True,
    logarithms: bool = False,
    real_output: bool = False,
    digits: int = 200,
) -> NDArray[np.float64]:
    """Nonzero values, descending, rounded to double. Data may be mpmath numbers.

    With `logarithms`, `poles` holds log λ (discrete time), taken as exact.
    """
    with mp.workdps(digits):
        nodes, inputs, outputs = _minimal(poles, b, c, real_output)
        if all(mp.im(x) == 0 for x in (*nodes, *inputs, *outputs)):
            values = _real_values(nodes, inputs, outputs, discrete, logarithms)
        else:
            values = _complex_values(nodes, inputs, outputs, discrete, logarithms)
        return np.array([float(x) for x in sorted(values, reverse=True)])


def _number(value: Any) -> Any:
    return value if isinstance(value, mp.mpf | mp.mpc) else mp.mpmathify(complex(value))


def _minimal(poles: Any, b: Any, c: Any, real_output: bool) -> tuple[list[Any], ...]:
    """One state for each distinct pole, with the sum of its residues; none where that is zero."""
    residues: dict[Any, Any] = {}
    for pole, first, second in zip(poles, b, c, strict=True):
        node, residue = _number(pole), _number(first) * _number(second)
        if real_output:
            residues[node] = residues.get(node, 0) + residue / 2
            node, residue = mp.conj(node), mp.conj(residue) / 2
        residues[node] = residues.get(node, 0) + residue
    kept = {node: residue for node, residue in residues.items() if residue != 0}
    inputs = [mp.sqrt(abs(r)) for r in kept.values()]
    outputs = [r / x for r, x in zip(kept.values(), inputs, strict=True)]
    return list(kept), inputs, outputs


def _gramian(nodes: list[Any], weights: list[Any], discrete: bool, logarithms: bool) -> Any:
    n = len(nodes)
    gramian = mp.matrix(n, n)
    for i in range(n):
        for j in range(n):
            if logarithms:
                distance = -mp.expm1(nodes[i] + mp.conj(nodes[j]))
            elif discrete:
                distance = 1 - nodes[i] * mp.conj(nodes[j])
            else:
                distance = -nodes[i] - mp.conj(nodes[j])
            gramian[i, j] = weights[i] * mp.conj(weights[j]) / distance
    return gramian


def _real_values(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], discrete: bool, logarithms: bool
) -> list[Any]:
    nodes, inputs = [mp.re(x) for x in nodes], [mp.re(x) for x in inputs]
    n = len(nodes)
    L = mp.cholesky(_gramian(nodes, inputs, discrete, logarithms))
    signs = [mp.sign(mp.re(x)) for x in outputs]
    matrix = mp.matrix(n, n)
    for i in range(n):
        for j in range(i + 1):
            matrix[i, j] = mp.fdot((signs[k] * L[k, i], L[k, j]) for k in range(i, n))
            matrix[j, i] = matrix[i, j]
    return [abs(x) for x in mp.eigsy(matrix, eigvals_only=True)]


def _complex_values(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], discrete: bool, logarithms: bool
) -> list[Any]:
    L = mp.cholesky(_gramian(nodes, inputs, discrete, logarithms))
    conjugates = [mp.conj(x) for x in nodes]
    Q = _gramian(conjugates, [mp.conj(x) for x in outputs], discrete, logarithms)
    return [mp.sqrt(abs(x)) for x in mp.eighe(L.H * Q * L, eigvals_only=True)]
