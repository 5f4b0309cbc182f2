"""The reduction that CompreSSM (arXiv 2510.02823) publishes, as the reference of `cut.py`.

Written from the paper and the behaviour of its code: Gramians P and Q formed in closed form, Hankel
singular values as the square roots of the eigenvalues of P Q, the balancing transform through the
matrix square root of P + 1e-9 I, its explicit inverse, truncation, eigenvectors and their explicit
inverse. It balances the complex system, not the real one that a layer's output belongs to.

As there, the Gramians have the precision of the weights (complex64), the float64 identity promotes
everything after them to complex128, and NumPy's and SciPy's linear algebra alternate. With several
threads that alternation costs it time, since the two keep thread pools of their own; the figures with one
thread are free of it.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

_REGULARISATION = 1e-9


def reduce_lru(weights: dict[str, np.ndarray], order: int) -> dict[str, np.ndarray]:
    """Return the weights of the LRU with `order` states."""
    eigenvalues = np.exp(-np.exp(weights["nu_log"]) + 1j * np.exp(weights["theta_log"]))
    B = np.exp(weights["gamma_log"])[:, None] * (weights["B_re"] + 1j * weights["B_im"])
    C = weights["C_re"] + 1j * weights["C_im"]
    n = eigenvalues.size
    P = _diagonal_lyapunov(eigenvalues, B @ B.conj().T)
    Q = _diagonal_lyapunov(eigenvalues.conj(), C.conj().T @ C)
    with np.errstate(invalid="ignore"):
        values = np.sqrt(np.linalg.eigvals(P @ Q).real)
    values = np.sort(np.where(np.isnan(values), 0.0, values))[::-1]
    root = scipy.linalg.sqrtm(P + _REGULARISATION * np.eye(n))
    U, squares, _ = scipy.linalg.svd(root @ Q @ root)
    T = root @ U @ np.diag(squares**-0.25)
    inverse = np.linalg.inv(T)
    A = (inverse @ np.diag(eigenvalues) @ T)[:order, :order]
    reduced, vectors = scipy.linalg.eig(A)
    B = np.linalg.inv(vectors) @ (inverse @ B)[:order]
    C = (C @ T)[:, :order] @ vectors
    gamma = np.sqrt(1.0 - np.abs(reduced) ** 2)
    return {
        "nu_log": np.log(-np.log(np.abs(reduced))),
        "theta_log": np.log(np.angle(reduced) % (2.0 * np.pi)),
        "gamma_log": np.log(gamma),
        "B_re": B.real / gamma[:, None],
        "B_im": B.imag / gamma[:, None],
        "C_re": C.real,
        "C_im": C.imag,
    }


def _diagonal_lyapunov(eigenvalues: np.ndarray, right: np.ndarray) -> np.ndarray:
    denominators = 1.0 - np.kron(eigenvalues, eigenvalues.conj())
    return np.reshape(right.flatten() / denominators, right.shape)
