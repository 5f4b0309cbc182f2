"""From a dense truncated system back to a diagonal one: eigenvectors, pairs, stored states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._namespace import HostArray


@dataclass(frozen=True, eq=False)
class SlotMap:
    """Coordinates of a dense system of order R in r stored states: x = T₊ h (+ its conjugate).

    For a real system one stored state h_k stands for a conjugate pair, x = 2 Re(v_k h_k), or for a
    real pole, x = v_k h_k; a layer with output Re(C h) then stores B' = S B and C' = C V with
    doubled columns for pairs. For a complex system S = V⁻¹.

    Parameters
    ----------
    eigenvalues : (r,) array
        One pole per stored state; of a pair the one with positive imaginary part.
    vectors : (R, r) array
        V, eigenvectors in columns, scaled.
    inverse : (r, R) array
        S, the matching rows of the inverse of the full eigenvector matrix.
    is_pair : (r,) bool array
        Whether the stored state stands for a conjugate pair.
    condition : float
        Condition number, in the 1-norm, of the eigenvector matrix with unit columns (for a real
        system of its real form, with columns Re v and Im v).
    """

    eigenvalues: HostArray
    vectors: HostArray
    inverse: HostArray
    is_pair: HostArray
    condition: float

    @property
    def order(self) -> int:
        """Number of stored states r."""
        return int(self.eigenvalues.size)

    def input_matrix(self, B: HostArray) -> HostArray:
        """Return B' = S B, shape (r, m)."""
        product: HostArray = self.inverse @ B
        return product

    def output_matrix(self, C: HostArray) -> HostArray:
        """Return C' = C V with doubled columns for pairs, shape (p, r)."""
        return (C @ self.vectors) * np.where(self.is_pair, 2.0, 1.0)

    def rescaled(self, scale: HostArray) -> SlotMap:
        """Return the map with stored states multiplied by `scale`, shape (r,)."""
        return SlotMap(
            self.eigenvalues,
            self.vectors / scale,
            self.inverse * scale[:, None],
            self.is_pair,
            self.condition,
        )


def slots_needed(poles: HostArray, *, real: bool) -> int:
    """Stored states that the poles of a dense system take: a real system's pairs take one."""
    if not real:
        return int(poles.size)
    return int(np.sum(poles.imag >= 0))


def diagonalise(A: HostArray, *, real: bool) -> SlotMap | None:
    """Diagonalise A; None if its eigenvectors are linearly dependent in floating point.

    With `real`, A is that of a system with real output and one pole of each conjugate pair is kept.
    Cost O(R³).
    """
    if A.size == 0:
        none = np.zeros(0, dtype=bool)
        return SlotMap(np.zeros(0, dtype=np.complex128), A, A, none, 1.0)
    try:
        eigenvalues, vectors = np.linalg.eig(A)
    except np.linalg.LinAlgError:
        return None
    if not real:
        inverse = _inverse(vectors)
        if inverse is None:
            return None
        alone = np.zeros(eigenvalues.size, dtype=bool)
        return SlotMap(eigenvalues, vectors, inverse, alone, _condition(vectors, inverse))
    kept = np.flatnonzero(eigenvalues.imag >= 0)
    is_pair = eigenvalues.imag[kept] > 0
    first = np.arange(kept.size) + np.concatenate([[0], np.cumsum(is_pair)[:-1]])
    second = first[is_pair] + 1
    real_vectors = np.empty(A.shape)
    real_vectors[:, first] = vectors[:, kept].real
    real_vectors[:, second] = vectors[:, kept[is_pair]].imag
    real_inverse = _inverse(real_vectors)
    if real_inverse is None:
        return None
    inverse = real_inverse[first].astype(np.complex128)
    inverse[is_pair] = 0.5 * (inverse[is_pair] - 1j * real_inverse[second])
    return SlotMap(
        eigenvalues[kept].astype(np.complex128),
        vectors[:, kept].astype(np.complex128),
        inverse,
        is_pair,
        _condition(real_vectors, real_inverse),
    )


def _inverse(vectors: HostArray) -> HostArray | None:
    try:
        inverse = np.linalg.inv(vectors)
    except np.linalg.LinAlgError:
        return None
    return inverse if np.all(np.isfinite(inverse)) else None


def _condition(vectors: HostArray, inverse: HostArray) -> float:
    return float(np.linalg.norm(vectors, 1) * np.linalg.norm(inverse, 1))
