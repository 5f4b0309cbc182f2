"""Units of states that balance a matrix, and its parts: powers of two, so that nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import lapack

from ssmreduce._array_libraries import HostArray
from ssmreduce._lapack import shifted

Edges = list[tuple[int, int]]
"""First and last plus one row of each diagonal block."""

_ROUNDS = 10
"""Times that ports are made smaller; each time goes a good part of the way, counted in digits."""

_WEAK = 2.0**-30
"""Couplings so small beside others of the same states do not fix their units: they may be rounding."""

_PASSES = 12
"""Times that all states of a stack are balanced at once; each time halves what is left."""

_EVEN = 0.25
"""Logarithm to base two of a change of units that is not worth another pass."""

_EXCESS = 4.0
"""Size of a coupling between parts, to that of what is inside of them, that does no harm."""

_FAR = 1e300
"""Size from which ports count as equally large."""


def balance_states(
    A: HostArray, B: HostArray | None = None, C: HostArray | None = None
) -> tuple[HostArray, HostArray | None]:
    """S⁻¹ A S with rows and columns of about equal size, and the powers of two in S as a column.

    None stands for units that are all 1, where A itself is returned. Parts of A that act on others without
    being acted on have units of their own, which A leaves open; with B and C, those of inputs and outputs
    fix them. In each part S⁻¹ A S is the same to the last bit whatever powers of two the states of A had for
    units; with B and C all of it is. Cost O(n²).
    """
    n = A.shape[0]
    if n < 2:
        return A, None
    order, parts = parts_of(A)
    if len(parts) == 1:
        even, units = balanced_parts(A)
    else:
        units = _units_of_parts(A, order, parts, B, C)
        even = in_units(A, units)
    if len(set(units.tolist())) == 1:
        return A, None
    return even, units[:, None]


def _units_of_parts(
    A: HostArray, order: HostArray, parts: Edges, B: HostArray | None, C: HostArray | None
) -> HostArray:
    """Units that balance each part of A on its own, then the parts, with the coupling between them.

    Ports are made so small that nothing between two parts is much larger than what is inside of them.
    """
    first = np.array([start for start, _ in parts])
    part = np.empty(len(A), dtype=np.intp)
    part[order] = np.repeat(np.arange(first.size), np.diff(first, append=len(A)))
    inside = part[:, None] == part
    _, units = balanced_parts(np.where(inside, A, 0.0))
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
        whole[:count, count] = np.maximum.reduceat(into[order], first)
        whole[count, :count] = np.maximum.reduceat(out[order], first)
        start[:count] = np.ldexp(1.0, _exponents_by_ports(whole))
        whole = in_units(whole, start)
    ports = whole[:count, count], whole[count, :count]
    for port in ports:
        port /= port.max() or 1.0
        port *= size
    for _ in range(_ROUNDS):
        even, change = balanced_matrix(whole)
        excess = float(even[:count, :count].max()) / size
        if excess <= _EXCESS:
            break
        ports[0][:] /= excess**2
    found: HostArray = units * (start[:count] * change[:count] / change[count])[part]
    return found


def balanced_parts(A: HostArray) -> tuple[HostArray, HostArray]:
    """`balanced_matrix` of a part, or of parts that are not coupled.

    Where states are coupled by more than rounding it is the same to the last bit, whatever powers of two they
    had for units.
    """
    even, units = balanced_matrix(A)
    known = np.frexp(units)[1]
    exponents = _common_exponents(A[None], _strong(even[None])[0], known[None])[0]
    common_units = np.ldexp(1.0, exponents - 1)
    if np.array_equal(exponents, known) or not (
        np.isfinite(common_units).all() and common_units.all()
    ):
        return even, units
    with np.errstate(over="ignore", under="ignore"):
        common = in_units(A, common_units)
    if not np.all(np.isfinite(common)) or np.count_nonzero(common) < np.count_nonzero(A):
        return even, units
    even, change = balanced_matrix(common)
    return even, common_units * change


def balanced_stack(A: HostArray) -> HostArray:
    """S⁻¹ A S for each of a stack (K, n, n) of parts: nearly what `balanced_parts` finds for each."""
    exponents = _even_exponents(A)
    coupled = _strong(_in_exponents(A, exponents))
    kinds: dict[bytes, list[int]] = {}
    for k, strong in enumerate(coupled):
        kinds.setdefault(strong.tobytes(), []).append(k)
    for alike in kinds.values():
        exponents[alike] = _common_exponents(A[alike], coupled[alike[0]], exponents[alike])
    return _in_exponents(A, exponents)


def _exponents_by_ports(whole: HostArray) -> HostArray:
    """Exponents of units of parts that do not depend on those of their states; ports come last in `whole`.

    A part with inputs and outputs has both equally large. Other parts follow from what they are coupled to;
    in a group without such a part, inputs of one are made as large as outputs of another.
    """
    inner, driven, read = whole[:-1, :-1], whole[:-1, -1] > 0.0, whole[-1, :-1] > 0.0
    into, out = np.frexp(whole[:-1, -1])[1], np.frexp(whole[-1, :-1])[1]
    known = np.where(driven & read, (into - out) // 2, 0)
    label = _groups(inner != 0.0)
    groups = [label == group for group in np.setdiff1d(label, label[driven & read])]
    first = np.append(np.flatnonzero(driven & read), [int(group.argmax()) for group in groups])
    exponents = _along_tree(inner[None], inner != 0.0, first.astype(np.intp), known[None])[0]
    into, out = into - exponents, out + exponents
    for group in groups:
        if np.any(driven & group) and np.any(read & group):
            exponents[group] += (into[driven & group].max() - out[read & group].max()) // 2
    return np.asarray(exponents - (exponents.min() + exponents.max()) // 2)


def _strong(A: HostArray) -> HostArray:
    """Couplings (K, n, n) of balanced matrices that are not small beside all others of their two states."""
    sizes = np.abs(A)
    states = np.arange(A.shape[-1])
    sizes[:, states, states] = 0.0
    largest = np.maximum(sizes.max(axis=1), sizes.max(axis=2))
    least = _WEAK * np.minimum(largest[:, :, None], largest[:, None, :])
    return np.asarray((sizes > 0.0) & (sizes >= least))


def _common_exponents(A: HostArray, coupled: HostArray, known: HostArray) -> HostArray:
    """Exponents of units (K, n) that do not depend on those of a stack, but for one in each group of states.

    This one, the first, keeps what is known of it. What the units balance is then balanced further.
    """
    if coupled[0, 1:].all() and coupled[1:, 0].all():
        first = np.zeros(1, dtype=np.intp)
    else:
        first = np.unique(_groups(coupled), return_index=True)[1]
    exponents = _along_tree(A, coupled, first, known)
    return exponents + _even_exponents(_in_exponents(A, exponents))


def _along_tree(A: HostArray, coupled: HostArray, first: HostArray, known: HostArray) -> HostArray:
    """Exponents of units, one by one along a tree of couplings from the `first` states, whose are known.

    Where two states act on each other both ways are made equally large, else the one way up to half as large
    as the largest rate.
    """
    sizes = np.maximum(np.abs(A.real), np.abs(A.imag)) if A.dtype.kind == "c" else np.abs(A)
    exponents = np.frexp(sizes)[1]
    if first.size == 1 and coupled[0, 1:].all() and coupled[1:, 0].all():
        changes = (exponents[:, :, 0] - exponents[:, 0, :]) // 2
        return np.asarray(changes + known[:, :1])
    states, nearer = np.arange(len(coupled)), _tree(coupled, first)
    rates = exponents[:, states, states].max(axis=-1, keepdims=True) - 1
    there, back = exponents[:, states, nearer], exponents[:, nearer, states]
    found = np.where(
        coupled[states, nearer],
        np.where(coupled[nearer, states], (there - back) // 2, there - rates),
        rates - back,
    )
    found[:, first] = known[:, first]
    while np.any(nearer != nearer[nearer]):
        step = nearer != nearer[nearer]
        found[:, step] += found[:, nearer[step]]
        nearer = nearer[nearer]
    others = nearer != states
    found[:, others] += found[:, nearer[others]]
    return np.asarray(found)


def _tree(coupled: HostArray, first: HostArray) -> HostArray:
    """For each state one coupled to it that is nearer to a `first` one; for these themselves."""
    from scipy.sparse.csgraph import breadth_first_order

    n = len(coupled)
    # One state more, coupled to the first ones, makes it one tree.
    rows, columns = np.nonzero(coupled | coupled.swapaxes(0, 1))
    rows, columns = np.append(rows, np.full(first.size, n)), np.append(columns, first)
    _, nearer = breadth_first_order(_graph(n + 1, rows, columns), n)
    nearer[first] = first
    return np.asarray(nearer[:n], dtype=np.intp)


def _groups(coupled: HostArray) -> HostArray:
    """Labels of states, equal where one is coupled to the other, directly or by others, either way."""
    from scipy.sparse.csgraph import connected_components

    edges = _graph(len(coupled), *np.nonzero(coupled | coupled.swapaxes(0, 1)))
    return np.asarray(connected_components(edges, directed=True, connection="strong")[1])


def _even_exponents(A: HostArray) -> HostArray:
    """Exponents of units (K, n) in which rows and columns of a stack are about equally large."""
    states, change = np.arange(A.shape[-1]), np.zeros(A.shape[:2])
    sizes = np.abs(A)
    sizes[:, states, states] = 0.0
    for _ in range(_PASSES):
        with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
            rows, columns = (np.einsum(f"kij,kij->k{kept}", sizes, sizes) for kept in "ij")
            # Half of what would even out one state alone: all move at once.
            step = 0.125 * np.log2(rows / columns)
            step[~np.isfinite(step)] = 0.0
            if np.abs(step).max(initial=0.0) < _EVEN:
                break
            change += step
            units = np.exp2(step)
            sizes = sizes * (units[:, None, :] / units[:, :, None])
    return np.rint(change).astype(np.intp)


def _in_exponents(A: HostArray, exponents: HostArray) -> HostArray:
    return shifted(A, exponents[:, None, :] - exponents[:, :, None])


def _graph(n: int, rows: HostArray, columns: HostArray) -> Any:
    """The graph of n states with edges from `rows`, in order, to `columns`, as SciPy's searches take it."""
    from scipy.sparse import csr_array

    starts = np.zeros(n + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=starts[1:])
    # In the types that searches work in: conversions take longer than they.
    return csr_array((np.ones(rows.size), columns.astype(np.int32), starts), shape=(n, n))


def in_units(A: HostArray, units: HostArray) -> HostArray:
    """S⁻¹ A S for S = diag(units); ratios first, since products may underflow where these do not."""
    with np.errstate(over="ignore"):
        ratios = units / units[:, None]
    return np.multiply(A, ratios, out=np.zeros_like(A), where=A != 0.0)


def balanced_matrix(A: HostArray) -> tuple[HostArray, HostArray]:
    """S⁻¹ A S with rows and columns of about equal size, and the powers of two in S, shape (n,)."""
    if not A.size:
        return A, np.ones(len(A))
    gebal = lapack.zgebal if A.dtype.kind == "c" else lapack.dgebal
    even, _, _, units, _ = gebal(A, scale=1, permute=0)
    return even, units


def one_part(n: int) -> tuple[HostArray, Edges]:
    return np.arange(n), [(0, n)]


def parts_of(A: HostArray) -> tuple[HostArray, Edges]:
    """An order of the states that makes A block upper triangular, and its diagonal blocks."""
    n = A.shape[0]
    if np.count_nonzero(A) == A.size:
        return one_part(n)
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(A)
    graph = _graph(n, rows, columns)
    count, labels = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return one_part(n)
    # Components come in topological order, in one direction or the other; the blocks are checked.
    for candidate in (labels, count - 1 - labels):
        if np.all(candidate[rows] <= candidate[columns]):
            order = np.argsort(candidate, kind="stable")
            starts = np.concatenate([[0], np.cumsum(np.bincount(candidate))])
            return order, list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
    return one_part(n)
