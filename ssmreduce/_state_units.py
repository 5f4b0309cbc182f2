"""Units of states that balance a matrix, and its parts: powers of two, so that nothing is rounded."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray

Edges = list[tuple[int, int]]
"""First and last plus one row of each diagonal block."""

_ROUNDS = 10
"""Times that ports are made smaller; each time goes a good part of the way, counted in digits."""

_NEWTON_STEPS = 50
"""Steps of Newton's method, which mostly takes five; each changes units by a factor of e at most."""

_CONVERGED = 1e-5
"""Change of the logarithm of a unit after which Newton's method ends: the next would be about its square."""

_DAMPING = 1e-13
"""Couplings of two groups of states, to those inside of them, that do not fix their units to each other."""

_OFF = 0.0737
"""Shift before rounding to whole numbers: couplings that are equal put many logarithms on a half."""

_FAR = 1e300
"""Size from which ports count as equally large."""


def balance_states(
    A: HostArray, B: HostArray | None = None, C: HostArray | None = None, *, exact: bool = False
) -> tuple[HostArray, HostArray | None]:
    """S⁻¹ A S with rows and columns of about equal size, and the powers of two in S as a column.

    None stands for units that are all 1, where A itself is returned. Parts of A that act on others without
    being acted on have units of their own, which A leaves open; with B and C, those of inputs and outputs
    fix them. Cost O(n²).

    Parts in `exact` units are the same to the last bit whatever powers of two the states of A had for units,
    if their states are coupled by more than rounding. So are couplings between parts, if B and C are given
    and each part has inputs and outputs. Cost O(n³), as a Schur form.
    """
    n = A.shape[0]
    if n < 2:
        return A, None
    if not exact and (B is None or C is None or np.count_nonzero(A) == A.size):
        even, units = balanced_matrix(A)
    else:
        units = _units_of_parts(A, B, C, exact=exact)
        even = in_units(A, units)
    if len(set(units.tolist())) == 1:
        return A, None
    return even, units[:, None]


def _units_of_parts(
    A: HostArray, B: HostArray | None, C: HostArray | None, *, exact: bool
) -> HostArray:
    """Units that balance each part of A on its own, then the parts, with the coupling between them.

    Ports are made so small that nothing between two parts is larger than what is inside of them.
    """
    order, parts = parts_of(A)
    first = np.array([start for start, _ in parts])
    part = np.empty(len(A), dtype=np.intp)
    part[order] = np.repeat(np.arange(first.size), np.diff(first, append=len(A)))
    inside = part[:, None] == part
    even, units = balanced_matrix(np.where(inside, A, 0.0))
    if exact:
        units = _exact_units(A, even, units, order[first][part])
    if len(parts) == 1:
        return units
    sizes = in_units(np.abs(A), units)
    size = float(sizes.max(initial=0.0, where=inside)) or float(sizes.max()) or 1.0
    count = first.size
    # One row and column for each part, and one for the ports.
    whole = np.zeros((count + 1, count + 1))
    rows, columns = np.nonzero((sizes > 0.0) & ~inside)
    np.maximum.at(whole, (part[rows], part[columns]), sizes[rows, columns])
    # A part without dynamics of its own, an integrator, counts as one as fast as the fastest.
    np.fill_diagonal(whole[:count, :count], size)
    start = np.ones(count + 1)
    if B is not None and C is not None:
        with np.errstate(over="ignore"):
            into = np.minimum(np.abs(B).max(axis=1, initial=0.0) / units, _FAR)
            out = np.minimum(np.abs(C).max(axis=0, initial=0.0) * units, _FAR)
        whole[:count, count] = into = np.maximum.reduceat(into[order], first)
        whole[count, :count] = out = np.maximum.reduceat(out[order], first)
        if exact and into.all() and out.all():
            exponents = (np.frexp(into)[1] - np.frexp(out)[1]) // 2
            start[:count] = np.ldexp(1.0, exponents - (exponents.min() + exponents.max()) // 2)
            whole = in_units(whole, start)
    ports = whole[:count, count], whole[count, :count]
    for port in ports:
        port /= port.max() or 1.0
        port *= size
    for _ in range(_ROUNDS):
        even, change = balanced_matrix(whole)
        excess = float(even[:count, :count].max()) / size
        if excess <= 1.0:
            break
        ports[0][:] /= excess**2
    found: HostArray = units * (start[:count] * change[:count] / change[count])[part]
    return found


def _exact_units(A: HostArray, even: HostArray, units: HostArray, first: HostArray) -> HostArray:
    """Units with the least sum of the sizes of all couplings in a part, but for their rounding.

    `first` is one state for each state, the same for all of a part.
    """
    exponents = np.log2(units) + _least_couplings(even)
    with np.errstate(over="ignore", under="ignore"):
        # Off the halves, where equal couplings put them.
        found = np.exp2(np.rint(exponents - exponents[first] - _OFF))
    inside = first[:, None] == first
    balanced = in_units(np.where(inside, A, 0.0), found)
    # Rates too far apart for any units may lose entries, or Newton's method may not have ended.
    kept = np.count_nonzero(balanced) == np.count_nonzero(even)
    with np.errstate(over="ignore"):
        kept = kept and bool(np.abs(balanced).sum() <= 2.0 * np.abs(even).sum() < np.inf)
    return np.asarray(found if kept else units)


def _least_couplings(A: HostArray) -> HostArray:
    """x, shape (n,), for which the sum of all |a_ij| 2^(x_j - x_i) with i ≠ j is least: Newton's method.

    The sum is convex. Directions in which it hardly changes, where couplings are rounding, stay as they are.
    """
    W = np.abs(A)
    np.fill_diagonal(W, 0.0)
    found = np.zeros(len(W))
    if not W.any():
        return found
    W /= W.max()
    for _ in range(_NEWTON_STEPS):
        out, into = W.sum(axis=1), W.sum(axis=0)
        size = np.sqrt(out + into)
        size[size == 0.0] = 1.0
        H = (W + W.swapaxes(0, 1)) / -np.outer(size, size)
        np.fill_diagonal(H, 1.0 + _DAMPING)
        try:
            change = scipy.linalg.solve(H, (out - into) / size, assume_a="pos", check_finite=False)
        except np.linalg.LinAlgError:
            break
        change /= size
        largest = float(np.abs(change).max())
        change /= max(1.0, largest)
        found += change
        growth = np.exp(change)
        W *= growth / growth[:, None]
        if largest < _CONVERGED:
            break
    return np.asarray(found / np.log(2.0))


def in_units(A: HostArray, units: HostArray) -> HostArray:
    """S⁻¹ A S for S = diag(units); ratios first, since products may underflow where these do not."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ratios = units / units[:, None]
        return np.multiply(A, ratios, out=np.zeros_like(A), where=A != 0.0)


def balanced_matrix(A: HostArray) -> tuple[HostArray, HostArray]:
    """S⁻¹ A S with rows and columns of about equal size, and the powers of two in S, shape (n,)."""
    if not A.size:
        return A, np.ones(len(A))
    gebal = lapack.zgebal if A.dtype.kind == "c" else lapack.dgebal
    even, _, _, units, _ = gebal(A, scale=1, permute=0)
    return even, units


def balanced_stack(A: HostArray) -> HostArray:
    """S⁻¹ A S for each matrix of a stack: nearly what `balanced_matrix` finds for each.

    Two passes: one is enough where only the rates, or only the units of the states, are far apart.
    """
    for _ in range(2):
        sizes = np.abs(A)
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            rows, columns = (np.einsum(f"kij,kij->k{kept}", sizes, sizes) for kept in "ij")
            units = np.exp2(np.rint(0.25 * np.log2(rows / columns)))
            units[~(np.isfinite(units) & (units > 0.0))] = 1.0
            A = A * (units[:, None, :] / units[:, :, None])
    return A


def parts_of(A: HostArray) -> tuple[HostArray, Edges]:
    """An order of the states that makes A block upper triangular, and its diagonal blocks."""
    n = A.shape[0]
    whole = np.arange(n), [(0, n)]
    if np.count_nonzero(A) == A.size:
        return whole
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(A)
    starts = np.zeros(n + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=starts[1:])
    # In the types that the search works in: conversions take longer than the search.
    graph = csr_array((np.ones(rows.size), columns.astype(np.int32), starts), shape=(n, n))
    count, labels = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return whole
    # Components come in topological order, in one direction or the other; the blocks are checked.
    for candidate in (labels, count - 1 - labels):
        if np.all(candidate[rows] <= candidate[columns]):
            order = np.argsort(candidate, kind="stable")
            starts = np.concatenate([[0], np.cumsum(np.bincount(candidate))])
            return order, list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    return whole
