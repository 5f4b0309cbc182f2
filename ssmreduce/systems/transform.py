"""From a dense truncated system back to a diagonal one: eigenvectors, pairs, stored states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint


@dataclass(frozen=True, eq=False)
class SlotMap:
    """Coordinates of a dense system of order R in r stored states: x = T₊ h (+ its conjugate).

    For a real system one stored state h_k stands for a conjugate pair, x = 2 Re(v_k h_k), or for a
    real pole, x = v_k h_k; a layer with output Re(C h) then stores B' = S B and C' = C V with
    doubled columns for pairs. For a complex system S = V⁻¹. Maps of equal sizes may be stacked, with a
    leading axis in every array; indexing takes one out.

    Parameters
    ----------
    eigenvalues : (r,) array
        One pole per stored state, by ascending imaginary, then real part; of a pair the one with positive
        imaginary part.
    vectors : (R, r) array
        V, eigenvectors in columns, scaled.
    inverse : (r, R) array
        S, the matching rows of the inverse of the full eigenvector matrix.
    is_pair : (r,) bool array
        Whether the stored state stands for a conjugate pair.
    condition : float or array
        Condition number, in the 1-norm, of the eigenvector matrix with unit columns (for a real
        system of its real form, with columns Re v and Im v).
    """

    eigenvalues: HostArray
    vectors: HostArray
    inverse: HostArray
    is_pair: HostArray
    condition: float | HostArray

    @property
    def order(self) -> int:
        """Number of stored states r."""
        return int(self.eigenvalues.shape[-1])

    def ports(self, B: HostArray, C: HostArray) -> tuple[HostArray, HostArray]:
        """Return B' = S B, shape (r, m), and C' = C V with doubled columns for pairs, shape (p, r)."""
        doubled = (C @ self.vectors) * (1.0 + self.is_pair[..., None, :])
        return self.inverse @ B, doubled

    def in_units(self, units: HostArray) -> SlotMap:
        """Return the map to states multiplied by `units`, shape (R, 1)."""
        return SlotMap(
            self.eigenvalues,
            self.vectors * units,
            self.inverse / adjoint(units),
            self.is_pair,
            self.condition,
        )

    def rescaled(self, scale: HostArray) -> SlotMap:
        """Return the map with stored states multiplied by `scale`, shape (r,); complex numbers turn them."""
        return SlotMap(
            self.eigenvalues,
            self.vectors / scale[..., None, :],
            self.inverse * scale[..., :, None],
            self.is_pair,
            self.condition,
        )

    def __getitem__(self, index: int | HostArray) -> SlotMap:
        """Return one of stacked maps, or a stack of some."""
        return SlotMap(
            self.eigenvalues[index],
            self.vectors[index],
            self.inverse[index],
            self.is_pair[index],
            np.asarray(self.condition)[index],
        )


def diagonalise(A: HostArray, *, real: bool) -> SlotMap | None:
    """Diagonalise A; None if its eigenvectors are linearly dependent in floating point.

    With `real`, A is that of a system with real output and one pole of each conjugate pair is kept.
    Cost O(R³).
    """
    if A.size == 0:
        none = np.zeros(0, dtype=bool)
        return SlotMap(np.zeros(0, dtype=np.complex128), A, A, none, 1.0)
    found = diagonalise_each(A[None], real=real)
    return found[0][1][0] if found else None


def diagonalise_each(A: HostArray, *, real: bool) -> list[tuple[HostArray, SlotMap]]:
    """Diagonalise stacked matrices, shape (count, R, R): which ones, and their stacked maps.

    One stack for each number of slots that they need; matrices whose eigenvectors are linearly dependent
    in floating point are in none.
    """
    try:
        eigenvalues, vectors = np.linalg.eig(A)
        # Columns Re v and Im v of a pair, next to each other as its poles are.
        basis = np.where(eigenvalues.imag[:, None] >= 0, vectors.real, -vectors.imag)
        basis = basis if real else vectors
        inverse = np.linalg.inv(basis)
    except np.linalg.LinAlgError:
        alone = range(len(A)) if len(A) > 1 else ()
        return [
            (np.array([k]), slot_map)
            for k in alone
            for _, slot_map in diagonalise_each(A[k : k + 1], real=real)
        ]
    condition = np.linalg.norm(basis, 1, axis=(1, 2)) * np.linalg.norm(inverse, 1, axis=(1, 2))
    is_pair = real & (eigenvalues.imag > 0)
    kept = (eigenvalues.imag >= 0) | (not real)
    rows = inverse
    if real:
        rows = inverse.astype(np.complex128)
        rows[is_pair] = 0.5 * (inverse[is_pair] - 1j * np.roll(inverse, -1, axis=1)[is_pair])
        eigenvalues, vectors = eigenvalues.astype(np.complex128), vectors.astype(np.complex128)
    finite = np.all(np.isfinite(inverse), axis=(1, 2))
    count = kept.sum(axis=1)
    first = np.lexsort((eigenvalues.real, eigenvalues.imag, ~kept), axis=1)
    found = []
    for slots in np.unique(count[finite]):
        members = np.flatnonzero(finite & (count == slots))
        at = first[members, :slots]
        one, each = members[:, None], np.arange(A.shape[-1])
        slot_map = SlotMap(
            eigenvalues[one, at],
            vectors[one[:, None], each[:, None], at[:, None]],
            rows[one, at],
            is_pair[one, at],
            condition[members],
        )
        found.append((members, slot_map))
    return found
