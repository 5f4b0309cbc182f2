"""Lyapunov equations as one big linear system: O(n^6), independent of any matrix factorisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.complex128]


def discrete_lyapunov(A: Matrix, Q: Matrix) -> Matrix:
    """X with A X A^H - X + Q = 0: vec(A X A^H) = (conj A kron A) vec X, columns stacked."""
    n = len(A)
    operator = np.eye(n * n) - np.kron(np.conj(A), A)
    return np.linalg.solve(operator, Q.reshape(-1, order="F")).reshape(n, n, order="F")


def continuous_lyapunov(A: Matrix, Q: Matrix) -> Matrix:
    """X with A X + X A^H + Q = 0: vec(A X) = (I kron A) vec X, vec(X A^H) = (conj A kron I) vec X."""
    n = len(A)
    operator = np.kron(np.eye(n), A) + np.kron(np.conj(A), np.eye(n))
    return -np.linalg.solve(operator, Q.reshape(-1, order="F")).reshape(n, n, order="F")


def summed_gramian(A: Matrix, B: Matrix, steps: int) -> Matrix:
    """Sum of A^k B B^H A^k^H over k < steps, term by term."""
    total = np.zeros((len(A), len(A)), dtype=np.result_type(A, B))
    X = np.asarray(B)
    for _ in range(steps):
        total = total + X @ np.conj(np.swapaxes(X, 0, 1))
        X = A @ X
    return total
