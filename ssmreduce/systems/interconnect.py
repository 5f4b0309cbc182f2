"""Interconnections of two systems: in series, in parallel, and their difference.

With G₁ = (A₁, B₁, C₁, D₁) and G₂ alike, states stacked as [x₁; x₂],

    G₂ G₁ :  A = [[A₁, 0], [B₂ C₁, A₂]],  B = [B₁; B₂ D₁],  C = [D₂ C₁, C₂],  D = D₂ D₁
    G₁ ± G₂ :  A = diag(A₁, A₂),  B = [B₁; B₂],  C = [C₁, ±C₂],  D = D₁ ± D₂.

Orders add up; nothing is cancelled. Sums of diagonal systems with equal flags stay diagonal (and keep
log λ), everything else becomes dense. Systems that read after their update stay so if both do; in a series
the first then feeds the second what it reads, (C₁ A₁, D₁ + C₁ B₁). Mixtures go through the standard form.
Cost: copies. Digits are lost in a difference of nearly equal systems only when it is evaluated.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._array_routes import any_library
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.time_step import checked_range


@any_library()
def series(first: System, second: System) -> StateSpace:
    """The system G₂ G₁: the output of `first` is the input of `second`.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Of equal time and batch axes; `first` has as many outputs as `second` has inputs.

    Returns
    -------
    StateSpace
        Of order n₁ + n₂, where stored states with real output count twice.

    Raises
    ------
    TimeDomainError
        If time domains or sampling times differ.
    ShapeError
        If sizes do not fit together.
    NonFiniteError
        If an entry overflows.
    ArgumentTypeError
        If `first` or `second` is not a system.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace
    >>> from ssmreduce.systems.interconnect import series
    >>> from ssmreduce.responses import impulse_response
    >>> delay = StateSpace([[0.0]], [[1.0]], [[1.0]], time=Discrete())
    >>> impulse_response(series(delay, delay), 4).ravel().tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    one, two = _alike(first, second)
    if one.outputs != two.inputs:
        raise ShapeError(
            f"`first` has {one.outputs} outputs but `second` has {two.inputs} inputs; expected the "
            "same number. The output of `first` is the input of `second`."
        )
    G1, G2 = one.to_dense(), two.to_dense()
    with np.errstate(over="ignore", invalid="ignore"):
        C1, D1 = (G1.C @ G1.A, G1.D + G1.C @ G1.B) if G1.read_after_update else (G1.C, G1.D)
        A21, B2, C, D = map(_in_range, (G2.B @ C1, G2.B @ D1, G2.D @ G1.C, G2.D @ G1.D))
    corner = np.zeros((*G1.batch_shape, G1.order, G2.order))
    return G1.replace(
        A=_rows(_columns(G1.A, corner), _columns(A21, G2.A)),
        B=_rows(G1.B, B2),
        C=_columns(C, G2.C),
        D=D,
    )


@any_library()
def parallel(first: System, second: System) -> System:
    """The system G₁ + G₂: both get the same input, their outputs are added.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Of equal sizes, time and batch axes.

    Returns
    -------
    StateSpace or DiagonalStateSpace
        Of order n₁ + n₂; diagonal if both are, with equal `real_output`.

    Raises
    ------
    TimeDomainError
        If time domains or sampling times differ.
    ShapeError
        If sizes do not fit together.
    NonFiniteError
        If an entry overflows.
    ArgumentTypeError
        If `first` or `second` is not a system.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.interconnect import parallel
    >>> lag = DiagonalStateSpace([0.5], [[0.5]], [[1.0]], time=Discrete())
    >>> both = parallel(lag, lag)
    >>> both.order, both.dc_gain().tolist()
    (2, [[2.0]])
    """
    return _sum(first, second, 1.0)


@any_library()
def difference(first: System, second: System) -> System:
    """The error system G₁ - G₂, for example of a system and its reduction.

    Parameters
    ----------
    first, second : StateSpace or DiagonalStateSpace
        Of equal sizes, time and batch axes.

    Returns
    -------
    StateSpace or DiagonalStateSpace
        Of order n₁ + n₂; diagonal if both are, with equal `real_output`.

    Raises
    ------
    TimeDomainError
        If time domains or sampling times differ.
    ShapeError
        If sizes do not fit together.
    NonFiniteError
        If an entry overflows.
    ArgumentTypeError
        If `first` or `second` is not a system.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.interconnect import difference
    >>> lag = DiagonalStateSpace([0.5], [[0.5]], [[1.0]], time=Discrete())
    >>> difference(lag, lag).dc_gain().tolist()
    [[0.0]]
    """
    return _sum(first, second, -1.0)


def _sum(first: System, second: System, sign: float) -> System:
    one, two = _alike(first, second)
    if (one.outputs, one.inputs) != (two.outputs, two.inputs):
        raise ShapeError(
            f"`first` has {one.outputs} outputs and {one.inputs} inputs but `second` has "
            f"{two.outputs} and {two.inputs}; expected equal sizes. Select channels first."
        )
    if (
        isinstance(one, DiagonalStateSpace)
        and isinstance(two, DiagonalStateSpace)
        and one.real_output == two.real_output
    ):
        return _diagonal_sum(one, two, sign)
    G1, G2 = one.to_dense(), two.to_dense()
    corner = np.zeros((*G1.batch_shape, G1.order, G2.order))
    other = np.zeros((*G1.batch_shape, G2.order, G1.order))
    return G1.replace(
        A=_rows(_columns(G1.A, corner), _columns(other, G2.A)),
        B=_rows(G1.B, G2.B),
        C=_columns(G1.C, sign * G2.C),
        D=_sum_of_feedthroughs(G1, G2, sign),
    )


def _diagonal_sum(
    one: DiagonalStateSpace, two: DiagonalStateSpace, sign: float
) -> DiagonalStateSpace:
    state = {"eigenvalues": _columns(one.eigenvalues, two.eigenvalues)}
    logs, other_logs = _logarithms(one), _logarithms(two)
    kept = one.log_eigenvalues is not None or two.log_eigenvalues is not None
    if kept and logs is not None and other_logs is not None:
        state = {"log_eigenvalues": _columns(logs, other_logs)}
    return one.replace(
        **state,
        B=_rows(one.B, two.B),
        C=_columns(one.C, sign * two.C),
        D=_sum_of_feedthroughs(one, two, sign),
    )


def _sum_of_feedthroughs(one: System, two: System, sign: float) -> HostArray:
    with np.errstate(over="ignore"):
        return _in_range(one.D + sign * two.D)


def _in_range(values: HostArray) -> HostArray:
    return checked_range(
        values, "the connection of `first` and `second`", "Take other units of inputs and outputs."
    )


def _logarithms(system: DiagonalStateSpace) -> HostArray | None:
    """Stored logarithms, or those of the poles if they have finite ones of the same realness."""
    if system.log_eigenvalues is not None:
        return np.asarray(system.log_eigenvalues)
    poles = system.eigenvalues
    if np.any(poles == 0.0) or (not np.iscomplexobj(poles) and np.any(poles < 0.0)):
        return None
    return np.asarray(np.log(poles))


def _alike(first: System, second: System) -> tuple[System, System]:
    """Both on the host with the same readout, checked for time and batch axes."""
    check_system(first, "first")
    check_system(second, "second")
    if first.time != second.time:
        raise TimeDomainError(
            f"`first` has time {first.time!r} but `second` has {second.time!r}; expected the same. "
            "Convert one with to_discrete or to_continuous."
        )
    if first.batch_shape != second.batch_shape:
        raise ShapeError(
            f"`first` has batch axes {first.batch_shape} but `second` has {second.batch_shape}; "
            "expected the same. Index the batch, or combine its systems one by one."
        )
    one, two = first.to_host(), second.to_host()
    if one.read_after_update != two.read_after_update:
        one, two = one.to_standard(), two.to_standard()
    return one, two


def _rows(above: HostArray, below: HostArray) -> HostArray:
    return np.concatenate([above, below], axis=-2)


def _columns(left: HostArray, right: HostArray) -> HostArray:
    return np.concatenate([left, right], axis=-1)
