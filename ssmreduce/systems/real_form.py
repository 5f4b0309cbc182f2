"""The real system behind a layer that outputs Re(C h): stored states <-> real states.

With h[k+1] = diag(λ) h[k] + B u[k] and real u, the state [Re h; Im h] follows the real system

    A = [[diag Re λ, -diag Im λ], [diag Im λ, diag Re λ]],  B = [Re B; Im B],  C = [Re C, -Im C].

NumPy arrays with any leading axes; the state axis holds all real parts first.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray


def real_state(eigenvalues: HostArray) -> HostArray:
    """Return the real state matrix, shape (..., 2n, 2n), of diag(λ)."""
    n = eigenvalues.shape[-1]
    A = np.zeros((*eigenvalues.shape[:-1], 2 * n, 2 * n), dtype=eigenvalues.real.dtype)
    first, second = np.arange(n), np.arange(n, 2 * n)
    A[..., first, first] = A[..., second, second] = eigenvalues.real
    A[..., first, second] = -eigenvalues.imag
    A[..., second, first] = eigenvalues.imag
    return A


def apply_real_state(eigenvalues: HostArray, X: HostArray) -> HostArray:
    """Return A X for the real state matrix A of diag(λ), shape (..., 2n, k), without forming A."""
    n = eigenvalues.shape[-1]
    alpha, beta = eigenvalues.real[..., :, None], eigenvalues.imag[..., :, None]
    product = np.empty_like(X)
    product[..., :n, :] = alpha * X[..., :n, :] - beta * X[..., n:, :]
    product[..., n:, :] = beta * X[..., :n, :] + alpha * X[..., n:, :]
    return product


def real_ports(B: HostArray, C: HostArray) -> tuple[HostArray, HostArray]:
    """Return [Re B; Im B], shape (..., 2n, m), and [Re C, -Im C], shape (..., p, 2n)."""
    return np.concatenate([B.real, B.imag], axis=-2), np.concatenate([C.real, -C.imag], axis=-1)
