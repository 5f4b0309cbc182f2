"""Other coordinates for the same map: similarity transforms, diagonal form, real form.

With x = T z the system (A, B, C, D) becomes (T⁻¹ A T, T⁻¹ B, C T, D); poles, transfer function and
Hankel singular values stay, Gramians become T⁻¹ P T⁻ᴴ and Tᴴ Q T. `diagonalised` takes the
eigenvectors for T, and keeps one state of each conjugate pair of a real system; `real_form` goes back.

Cost O(n³). Rounding in the result grows with the condition number of T (after row and column scaling:
mere units do no harm); eigenvectors of nearly equal poles are nearly dependent, and of a defective
matrix exactly so: refused. Reference: Golub and Van Loan, Matrix Computations, 4th ed., section 7.1.
"""

from __future__ import annotations

import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import HostArray, to_double
from ssmreduce._array_routes import any_library
from ssmreduce._state_units import balance_states, parts_of
from ssmreduce.errors import ShapeError, UnreachableToleranceError
from ssmreduce.systems.diagonal import (
    DiagonalStateSpace,
    System,
    check_single,
    check_system,
    is_complex,
)
from ssmreduce.systems.linear_solve import singularity, solve_conditioned
from ssmreduce.systems.real_form import real_ports, real_state
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.time_step import checked_range
from ssmreduce.systems.transform import SlotMap, diagonalise

_PAIRING = 100.0
"""c in the tolerance c·n·ε·cond(V) for conjugate pairs: eigenvalues and residues are found by an O(n³)
backward stable method whose constants are of the order of ten, for each of the two partners."""


@any_library()
def transformed(system: System, T: HostArray) -> StateSpace:
    """The same map in coordinates x = T z: (T⁻¹ A T, T⁻¹ B, C T, D).

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Of order n; a diagonal system is made dense first (`to_dense`).
    T : (n, n) or (..., n, n) array
        One invertible matrix, or one for each system of a batch.

    Returns
    -------
    StateSpace
        Of the same order, time and `read_after_update`; real if the system and T are.

    Raises
    ------
    ShapeError
        If T does not fit the system.
    UnreachableToleranceError
        If T is singular to working precision.
    NonFiniteError
        If an entry overflows.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n³). Digits lost: log10 of the condition number of T after scaling of its rows and
    columns.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.systems.coordinates import transformed
    >>> system = StateSpace([[0.5, 1.0], [0.0, 0.2]], [[1.0], [1.0]], [[1.0, 0.0]], time=Discrete())
    >>> swapped = transformed(system, [[0.0, 1.0], [1.0, 0.0]])
    >>> swapped.A.tolist()
    [[0.2, 0.0], [1.0, 0.5]]
    """
    check_system(system)
    dense = system.to_dense().to_host()
    matrix = to_double(_checks.floating_array(T, "T", 2))
    n, batch = dense.order, dense.batch_shape
    if matrix.shape not in ((n, n), (*batch, n, n)):
        raise ShapeError(
            f"`T` has shape {matrix.shape} but `system` has order {n} and batch axes {batch}; "
            f"expected {(n, n)}. A real system behind stored states has order 2n."
        )
    matrix = np.broadcast_to(matrix, (*batch, n, n))
    with np.errstate(over="ignore", invalid="ignore"):
        right = np.concatenate([_in_range(dense.A @ matrix), dense.B], axis=-1)
        C = _in_range(dense.C @ matrix)
    moved = np.empty(right.shape, dtype=np.result_type(right, matrix))
    for at in np.ndindex(batch):
        moved[at], conditioned = solve_conditioned(matrix[at], right[at])
        if conditioned < singularity(n):
            raise UnreachableToleranceError(
                f"`T` has reciprocal condition {conditioned:.1e}; expected an invertible matrix, "
                f"above n·ε = {singularity(n):.1e}. Take coordinates that are not nearly dependent."
            )
    _in_range(moved)
    return dense.replace(A=moved[..., :n], B=moved[..., n:], C=C)


@any_library()
def diagonalised(system: System) -> DiagonalStateSpace:
    """The same map with a diagonal state matrix, x = V h and V⁻¹ A V = diag(λ).

    A real system gets ``real_output=True`` and one stored state for each conjugate pair (and for
    each real pole); any other one keeps its order.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes; a diagonal system is returned as it is.

    Returns
    -------
    DiagonalStateSpace
        Of the same time and `read_after_update`.

    Raises
    ------
    ShapeError
        If the system has batch axes.
    UnreachableToleranceError
        If the eigenvectors are dependent to working precision: A is (nearly) defective.
    NonFiniteError
        If an entry overflows.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n³). Digits lost: log10 of the condition number of V.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.systems.coordinates import diagonalised
    >>> turn = StateSpace([[0.0, 0.5], [-0.5, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], time=Discrete())
    >>> system = diagonalised(turn)
    >>> system.order, system.real_output, bool(abs(system.poles()[0] - 0.5j) < 1e-15)
    (1, True, True)
    """
    if isinstance(system, DiagonalStateSpace):
        return system
    check_single(system)
    host = system.to_host()
    real = not is_complex(host)
    slot_map = _eigenvectors(host, real=real)
    with np.errstate(over="ignore", invalid="ignore"):
        B, C = slot_map.ports(host.B, host.C)
    return DiagonalStateSpace(
        slot_map.eigenvalues,
        _in_range(B),
        _in_range(C),
        host.D,
        time=host.time,
        real_output=real,
        read_after_update=host.read_after_update,
    )


@any_library()
def real_form(system: System) -> StateSpace:
    """The same map as a real dense system, where poles and residues come in conjugate pairs.

    Stored states with real output give the 2n states [Re h; Im h]. A complex system is brought to
    diagonal form; λ and its partner, with C_i B_i and its conjugate as residues, become one block
    [[α, -β], [β, α]], a real pole one state: the order stays.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        With real impulse response; complex ones without batch axes.

    Returns
    -------
    StateSpace
        Real, of the same time and `read_after_update`.

    Raises
    ------
    ShapeError
        If a pole has no conjugate partner, or D is not real: the system is not a real one.
    UnreachableToleranceError
        If a dense complex system has a defective state matrix.
    NonFiniteError
        If an entry overflows.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n²) for diagonal systems and O(n³) for dense ones. Partners may differ by c·n·ε·cond(V)
    relative to the largest pole and the largest residue.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.coordinates import real_form
    >>> pair = DiagonalStateSpace([0.5j, -0.5j], [[1j], [-1j]], [[2.0, 2.0]], time=Discrete())
    >>> system = real_form(pair)
    >>> system.A.tolist(), system.B.tolist(), system.C.tolist()
    ([[0.0, -0.5], [0.5, 0.0]], [[0.0], [1.0]], [[4.0, -0.0]])
    """
    check_system(system)
    host = system.to_host()
    if not is_complex(host):
        return host.to_dense()
    if isinstance(host, StateSpace) and not any(
        np.any(x.imag) for x in (host.A, host.B, host.C, host.D)
    ):
        return _dense_like(host, host.A.real, host.B.real, host.C.real, host.D.real)
    check_single(host)
    if isinstance(host, DiagonalStateSpace):
        poles, B, C, condition = host.eigenvalues, host.B, host.C, 1.0
    else:
        slot_map = _eigenvectors(host, real=False)
        poles, condition = slot_map.eigenvalues, float(slot_map.condition)
        with np.errstate(over="ignore", invalid="ignore"):
            B, C = slot_map.ports(host.B, host.C)
        B, C = _in_range(B), _in_range(C)
    tolerance = _PAIRING * singularity(host.order) * condition
    if np.abs(host.D.imag).max(initial=0.0) > tolerance * np.abs(host.D).max(initial=0.0):
        raise ShapeError(
            "`D` has an imaginary part; expected a system that is real in other coordinates. "
            "Keep it complex."
        )
    paired, alone = _conjugate_partners(poles, B, C, tolerance)
    phase = _phases(B[alone])
    A = np.zeros((host.order, host.order))
    pairs = 2 * len(paired)
    A[:pairs, :pairs] = real_state(poles[paired])
    A[range(pairs, host.order), range(pairs, host.order)] = poles[alone].real
    B_paired, C_paired = real_ports(B[paired], 2.0 * C[:, paired])
    return _dense_like(
        host,
        A,
        np.concatenate([B_paired, (B[alone] / phase[:, None]).real]),
        np.concatenate([C_paired, (C[:, alone] * phase).real], axis=-1),
        host.D.real,
    )


def _conjugate_partners(
    poles: HostArray, B: HostArray, C: HostArray, tolerance: float
) -> tuple[list[int], list[int]]:
    """One state of each conjugate pair, and the states that are their own partners."""
    close = tolerance * np.abs(poles).max(initial=0.0)
    sizes = np.linalg.norm(B, axis=-1) * np.linalg.norm(C, axis=0)
    paired: list[int] = []
    alone: list[int] = []
    free = np.ones(poles.size, dtype=bool)
    for i in np.argsort(-poles.imag):
        if not free[i]:
            continue
        candidates = np.flatnonzero(free & (np.abs(poles - poles[i].conj()) <= close))
        residue = np.outer(C[:, i], B[i]).conj()
        mismatch = [np.linalg.norm(np.outer(C[:, j], B[j]) - residue) for j in candidates]
        if not mismatch or min(mismatch) > tolerance * sizes.max():
            raise ShapeError(
                f"`system` has the pole {poles[i]:.6g} without a conjugate partner of conjugate "
                "residue; expected the poles and residues of a real system. Keep it complex, or "
                "pass real_output=True if only the real part of the output is meant."
            )
        j = candidates[int(np.argmin(mismatch))]
        free[[i, j]] = False
        (alone if i == j else paired).append(int(i))
    return paired, alone


def _in_range(values: HostArray) -> HostArray:
    return checked_range(
        values, "`system` in the new coordinates", "Take other units of inputs, outputs or states."
    )


def _phases(rows: HostArray) -> HostArray:
    """Phase of the largest entry of each row; 1 for rows of zeros."""
    if rows.size == 0:
        return np.ones(len(rows))
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(np.where(largest == 0.0, 1.0, np.exp(1j * np.angle(largest))))


def _eigenvectors(host: StateSpace, *, real: bool) -> SlotMap:
    """Of A in balanced units: mere units make no eigenvectors dependent."""
    is_one_part = len(parts_of(host.A)[1]) == 1
    balanced, units = balance_states(host.A, exact=is_one_part)
    slot_map = diagonalise(balanced, real=real)
    limit = 1.0 / singularity(max(host.order, 1))
    condition = np.inf if slot_map is None else slot_map.condition
    if slot_map is None or condition > limit:
        raise UnreachableToleranceError(
            f"`system` has eigenvectors of condition number {condition:.1e}; expected at most "
            f"1/(n·ε) = {limit:.1e}: its state matrix is defective or nearly so. Keep it dense."
        )
    return slot_map if units is None else slot_map.in_units(units)


def _dense_like(host: System, A: HostArray, B: HostArray, C: HostArray, D: HostArray) -> StateSpace:
    return StateSpace(A, B, C, D, time=host.time, read_after_update=host.read_after_update)


def exportable(system: System, real_only: str | None = None) -> StateSpace:
    """The dense standard form for other packages; with `real_only`, the one that holds real numbers only.

    Raises
    ------
    ShapeError
        If the system has batch axes, or is complex and the package is not.
    """
    check_system(system)
    check_single(system)
    dense = system.to_host().to_standard().to_dense()
    if real_only is not None and is_complex(dense):
        raise ShapeError(
            f"`system` is complex but {real_only} holds real systems only; expected a real one. If its "
            "poles and residues come in conjugate pairs, pass real_form(system)."
        )
    return dense
