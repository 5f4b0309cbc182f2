"""The Schur form A = W T Wᴴ, found once and used for A and for Aᴴ.

Real matrices get the real form, whose T has 2 by 2 blocks for conjugate pairs. A matrix with
structure (decoupled or cascaded parts, as flexible structures in modal form have) is permuted to
block triangular form first, by the strongly connected components of its graph; then each part needs
a small Schur form instead of the O(25 n³) of the whole.

Reference: Golub and Van Loan, Matrix Computations, 4th ed., 2013, chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ssmreduce._lapack import product
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.stability import check_stable
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain

_SMALLEST_FOR_PARTS = 100
"""Below this order the search takes longer than the Schur form."""

_SMALL = 64
"""Up to this order LAPACK takes little work space, and is called without the checks of its wrapper, which
cost more than a pair."""

_WORK_PER_STATE = 40
"""Numbers of work space for each state, enough for blocks of 32 columns."""

_SPARSE_SHARE = 0.2
"""Above this share of nonzero entries a matrix is not searched for parts: it would rarely have any."""


@dataclass(frozen=True, eq=False)
class SchurForm:
    """Upper (quasi-)triangular T (`triangle`) and unitary W (`basis`) with A = W T Wᴴ."""

    triangle: HostArray
    basis: HostArray

    @classmethod
    def of(cls, A: HostArray) -> SchurForm:
        """Decompose A, O(25 n³) unless it has structure.

        Raises
        ------
        NoConvergenceError
            If the QR algorithm fails.
        """
        try:
            order, edges = _parts(A)
            if len(edges) == 1:
                return cls(*_schur(A))
            return cls._in_parts(A, order, edges)
        except np.linalg.LinAlgError as error:
            raise NoConvergenceError(
                f"the Schur form of `A` could not be computed ({error}); expected entries of moderate "
                "range. Scale the states."
            ) from error

    @staticmethod
    def is_cheap(A: HostArray) -> bool:
        """Whether A falls apart into blocks of at most a quarter of its order."""
        _, edges = _parts(A)
        return bool(4 * max(last - first for first, last in edges) <= A.shape[0])

    @classmethod
    def _in_parts(cls, A: HostArray, order: HostArray, edges: list[tuple[int, int]]) -> SchurForm:
        T = np.asfortranarray(A[np.ix_(order, order)])
        W = np.zeros_like(T)
        for first, last in edges:
            at = slice(first, last)
            if last - first == 1:
                W[order[first], first] = 1.0
                continue
            T[at, at], basis = _schur(T[at, at])
            W[order[at], at] = basis
            T[:first, at] = product(T[:first, at], basis)
            T[at, last:] = product(basis, T[at, last:], adjoint_left=True)
        return cls(T, W)

    def reversed_adjoint(self) -> HostArray:
        """Tᴴ with rows and columns in reverse order: the triangle of Aᴴ in the reversed basis."""
        return np.asfortranarray(adjoint(self.triangle)[::-1, ::-1])

    def check_stable(self, time: TimeDomain, *, name: str = "`system`") -> None:
        """Raise `UnstableSystemError` unless A is stable."""
        # Blocks of pairs have equal diagonal entries: all real parts are on the diagonal.
        diagonal = self.triangle.diagonal().real
        if isinstance(time, Discrete) or np.count_nonzero(diagonal < 0.0) < diagonal.size:
            check_stable(self.eigenvalues(), time, name=name)

    def eigenvalues(self) -> HostArray:
        """Eigenvalues of A, in the order of the diagonal of T."""
        diagonal: HostArray = self.triangle.diagonal().astype(np.complex128)
        if np.isrealobj(self.triangle):
            # LAPACK's blocks of pairs [a, b; c, a] have equal diagonal entries, and b c < 0.
            below = self.triangle.diagonal(-1)
            first = np.flatnonzero(below)
            if first.size:
                beside = self.triangle.diagonal(1)[first]
                root = 1j * np.sqrt(np.abs(beside * below[first]))
                diagonal[first] += root
                diagonal[first + 1] -= root
        return diagonal


def _schur(A: HostArray) -> tuple[HostArray, HostArray]:
    """Triangle and basis."""
    n = A.shape[0]
    if n == 0:
        return A, A
    if n > _SMALL:
        return cast(tuple[HostArray, HostArray], scipy.linalg.schur(A, check_finite=False))
    if A.dtype.kind == "c":
        T, _, _, basis, _, failed = lapack.zgees(lambda *_: None, A, lwork=_WORK_PER_STATE * n)
    else:
        T, _, _, _, basis, _, failed = lapack.dgees(lambda *_: None, A, lwork=_WORK_PER_STATE * n)
    if failed:
        raise np.linalg.LinAlgError("the QR algorithm did not converge")
    return T, basis


def _parts(A: HostArray) -> tuple[HostArray, list[tuple[int, int]]]:
    """An order of the states that makes A block upper triangular, and its diagonal blocks."""
    n = A.shape[0]
    order = np.arange(n)
    whole = (order, [(0, n)])
    if n < _SMALLEST_FOR_PARTS or np.count_nonzero(A) > _SPARSE_SHARE * n * n:
        return whole
    graph = csr_array(A != 0)
    count, labels = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return whole
    # Components come in topological order, in one direction or the other; the blocks are checked.
    for candidate in (labels, count - 1 - labels):
        rows, columns = graph.nonzero()
        if np.all(candidate[rows] <= candidate[columns]):
            order = np.argsort(candidate, kind="stable")
            starts = np.concatenate([[0], np.cumsum(np.bincount(candidate))])
            return order, list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    return whole
