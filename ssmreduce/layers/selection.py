"""Selection of groups of states, and output weights refitted to the groups that stay.

A layer whose states cannot be mixed has an output y = C f(u) in features f = (f_1, f_2, ...) that are
fixed but for leaving some out. Features come in groups of equal size, the states that stay or go
together. With the Gram matrix Φ of the features (inner products of their impulse responses),

    ‖C f‖² = tr(C Φ Cᴴ),   and   C_S + C_R Φ_RS Φ_SS⁻¹

are the best output weights on kept features S, with dropped ones R: what S can say of the dropped
features is added. Which groups to keep is a combinatorial question; orthogonal matching pursuit takes in
each step the group that explains most of the energy that is left.

All of it runs in units in which Φ has a unit diagonal. So it does not depend on the units of the features.
Directions in which features of length one have an energy up to n eps count as dependent and get nothing.
Errors are exact down to about √(n eps) times the coefficients, as with any answer from a Gram matrix.
Cost O(n³) for n features.

References: Chen, Billings and Luo, Int. J. Control 50 (1989); Pati, Rezaiifar and Krishnaprasad,
Asilomar Conf. (1993).
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint, to_double
from ssmreduce._checks import floating_array, positive_count, shown
from ssmreduce.errors import ArgumentError, ShapeError

_EPS = float(np.finfo(np.float64).eps)


_SWEPT = 64
"""Features that are kept, up to which groups are swapped: each swap factors all the others."""


def pursue(gram: HostArray, C: HostArray, size: int = 1) -> tuple[HostArray, HostArray]:
    """Groups in the order of what they explain of tr(C Φ Cᴴ), and how much that is for each.

    Parameters
    ----------
    gram : (n, n) array
        Φ, positive semidefinite; features of a group are neighbours.
    C : (p, n) array
        Output weights of the features.
    size : int
        Number of features in each group; n is a multiple of it.

    Returns
    -------
    picked : (n / size,) int array
        Groups in the order in which they are taken.
    scores : (n / size,) array
        Roots of the energies that they add to the best fit, so that the squares of all add up to
        tr(C Φ Cᴴ); not always descending.

    Raises
    ------
    ShapeError
        If sizes do not fit together.
    NonFiniteError
        If an array holds NaN or Inf.

    Notes
    -----
    Block Cholesky factorisation with pivots: after each pick the Gram matrix of the others becomes the
    Schur complement, that of what is new in them. Of groups that rounding cannot tell apart the first is
    taken.

    Examples
    --------
    The second feature is twice the first:

    >>> import numpy as np
    >>> from ssmreduce.layers.selection import pursue
    >>> pursue(np.array([[1.0, 2.0], [2.0, 4.0]]), np.array([[1.0, 1.0]]))
    (array([0, 1]), array([3., 0.]))
    """
    gram, C = _checked(gram, C, size)
    scaled, lengths = _normalised(gram)
    weights = C * lengths
    unit = _unit(weights)
    steps = len(scaled) // size
    alike = len(scaled) * _EPS * energy(scaled, weights / unit)
    seen = scaled @ adjoint(weights / unit)  # what the outputs hold of the features
    picked, scores = _picked(_Features(scaled, seen, size), steps, alike, _tolerance(len(scaled)))
    return picked, scores * unit


def pursue_target(
    gram: HostArray, seen: HostArray, size: int, count: int, *, tolerance: float, sweeps: int = 2
) -> HostArray:
    """Groups, ascending, whose features fit a target best, as matching pursuit and a few swaps find them.

    Parameters
    ----------
    gram : (n, n) array
        Φ, positive semidefinite; features of a group are neighbours.
    seen : (n, p) array
        Inner products of the features with the target.
    size : int
        Number of features in each group.
    count : int
        How many groups to take.
    tolerance : float
        Share of its energy below which what is new in a feature counts as nothing.
    sweeps : int
        How often each group that was taken is given up for the best one in its place, as long as that helps;
        not for more than 64 features that are kept, which cost more than they gain.
    """
    scaled, lengths = _normalised(gram)
    seen = np.where(lengths > 0.0, 1.0 / _divisor(lengths), 0.0)[:, None] * seen
    picked, _ = _picked(_Features(scaled, seen, size), count, 0.0, tolerance)
    for _ in range(sweeps if count * size <= _SWEPT else 0):
        before = picked
        for group in before:
            others = picked[picked != group]
            features = _Features(scaled, seen, size)
            features.take(others, tolerance)
            explained = features.explained(tolerance)
            explained[others] = -1.0
            picked = np.append(others, np.argmax(explained))
        if set(picked.tolist()) == set(before.tolist()):
            break
    return np.sort(picked)


class _Features:
    """Features of length one in groups of a size, what a target holds of them, and what is new in them.

    Block Cholesky factorisation with pivots: once groups are taken, the Gram matrix of the others is the
    Schur complement, of which only the blocks of single groups are formed.
    """

    def __init__(self, gram: HostArray, seen: HostArray, size: int) -> None:
        self.gram, self.size = gram, size
        self._rows = np.arange(len(gram)).reshape(-1, size)
        self._seen = seen
        self._new = gram[self._rows[:, :, None], self._rows[:, None, :]]
        self._factor = np.zeros((len(gram), 0), gram.dtype)

    def explained(self, tolerance: float) -> HostArray:
        """How much of the target the new part of each group explains."""
        roots = _inverse_roots(self._new, tolerance)
        explained: HostArray = np.sum(
            np.abs(adjoint(roots) @ self._seen[self._rows]) ** 2, axis=(1, 2)
        )
        return explained

    def take(self, groups: HostArray, tolerance: float) -> None:
        """Take these groups; of the others what is new beside them remains."""
        at = self._rows[groups].ravel()
        new = self.gram[np.ix_(at, at)] - self._factor[at] @ adjoint(self._factor[at])
        roots = _inverse_roots(new, tolerance)
        columns = (self.gram[:, at] - self._factor @ adjoint(self._factor[at])) @ roots
        self._seen = self._seen - columns @ (adjoint(roots) @ self._seen[at])
        self._new = self._new - columns[self._rows] @ adjoint(columns[self._rows])
        self._factor = np.concatenate([self._factor, columns], axis=1)


def _picked(
    features: _Features, count: int, alike: float, tolerance: float
) -> tuple[HostArray, HostArray]:
    """Groups as they are picked, and the roots of what they explain.

    Of groups that explain as much as the best but for `alike` the first is picked.
    """
    picked, scores = np.zeros(count, dtype=np.intp), np.zeros(count)
    free = np.ones(len(features.gram) // features.size, dtype=bool)
    for k in range(count):
        explained = features.explained(tolerance)
        best = int(np.argmax(free & (explained >= np.max(explained[free]) - alike)))
        picked[k], scores[k], free[best] = best, np.sqrt(explained[best]), False
        features.take(picked[k : k + 1], tolerance)
    return picked, scores


def refit(gram: HostArray, C: HostArray, kept: HostArray) -> HostArray:
    """C_S + C_R Φ_RS Φ_SS⁺: output weights on the `kept` features that fit the output of all best.

    Parameters
    ----------
    gram : (n, n) array
        Φ, positive semidefinite.
    C : (p, n) array
        Output weights of all features.
    kept : (r,) int array
        The features that stay, ascending.

    Returns
    -------
    (p, r) array
        C itself where no feature is dropped, and where a kept one vanishes.

    Raises
    ------
    ShapeError
        If sizes do not fit together.
    NonFiniteError
        If an array holds NaN or Inf.
    ArgumentError
        If `kept` is not an ascending array of indices.
    """
    gram, C = _checked(gram, C, 1)
    kept = checked_groups(kept, len(gram))
    scaled, lengths = _normalised(gram)
    dropped = np.setdiff1d(np.arange(len(gram)), kept)
    lost = C[:, dropped] * lengths[dropped]
    unit = _unit(lost)
    roots = _inverse_roots(scaled[np.ix_(kept, kept)], _tolerance(len(gram)))
    added = (lost / unit) @ scaled[np.ix_(dropped, kept)] @ roots @ adjoint(roots)
    added = np.where(lengths[kept] > 0.0, added / _divisor(lengths[kept]), 0.0)
    return np.asarray(C[:, kept] + added * unit)


def energy(gram: HostArray, C: HostArray) -> float:
    """tr(C Φ Cᴴ), the squared H2 norm of an output C f."""
    return float(np.sum((C @ gram) * C.conj()).real)


def checked_groups(kept: object, count: int) -> HostArray:
    """Return `kept` as ascending indices of groups.

    Raises
    ------
    ArgumentError
        If they are not ascending ints from 0 on and below `count`, or there are none.
    """
    found = np.asarray(kept)
    fits = found.ndim == 1 and found.size > 0 and found.dtype.kind in "iu"
    if not (fits and found[0] >= 0 and found[-1] < count and np.all(np.diff(found) > 0)):
        raise ArgumentError(
            f"`kept` is {shown(kept)}; expected an array of ascending ints, at least one, from 0 to "
            f"{count - 1}. Pass the indices of what is kept, sorted."
        )
    return found.astype(np.intp)


def _checked(gram: HostArray, C: HostArray, size: int) -> tuple[HostArray, HostArray]:
    """Both at double precision, with sizes that fit together."""
    gram = to_double(floating_array(gram, "gram", 2))
    C = to_double(floating_array(C, "C", 2))
    size = positive_count(size, "size", "the number of features in each group")
    n = gram.shape[-1]
    if gram.shape != (n, n) or n % size:
        raise ShapeError(
            f"`gram` has shape {gram.shape}; expected a square matrix of a multiple of {size} rows. "
            "Pass inner products of all features."
        )
    if C.ndim != 2 or C.shape[1] != n:
        raise ShapeError(
            f"`C` has shape {C.shape}; expected (p, {n}), as `gram` has {n} rows. Pass one column for "
            "each feature."
        )
    return gram, C


def _normalised(gram: HostArray) -> tuple[HostArray, HostArray]:
    """The Gram matrix of features of length one, and the lengths; features of length 0 stay."""
    lengths = np.sqrt(np.maximum(np.diagonal(gram).real, 0.0))
    divisor = _divisor(lengths)
    return gram / divisor[:, None] / divisor, lengths


def _divisor(lengths: HostArray) -> HostArray:
    """Lengths, and 1 where there is none."""
    return np.where(lengths > 0.0, lengths, 1.0)


def _inverse_roots(grams: HostArray, tolerance: float) -> HostArray:
    """R with R Rᴴ the pseudo-inverse of each; eigenvalues up to `tolerance` count as zero."""
    values, vectors = np.linalg.eigh(grams)
    used = values > tolerance
    roots = np.where(used, 1.0 / np.sqrt(np.where(used, values, 1.0)), 0.0)
    return np.asarray(vectors * roots[..., None, :])


def _tolerance(n: int) -> float:
    """Energy below which a direction of features of length one counts as dependent on others.

    Rounding of Φ is of that size. Where single precision rounds coefficients, they have on such a direction
    about as much energy as their errors have elsewhere.
    """
    return n * _EPS


def _unit(array: HostArray) -> float:
    """The power of two below the largest modulus, so that squares stay in range."""
    exponent = np.frexp(np.max(np.abs(array), initial=0.0))[1] - 1
    return float(np.ldexp(1.0, exponent))
