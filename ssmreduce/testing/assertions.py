"""Assertions about systems and Lyapunov equations, with tolerances c n eps times a scale.

They take arrays of any library, need no Hypothesis, and raise `AssertionError` (also under ``python -O``)
with both sides, what was measured and what was allowed.
"""

from __future__ import annotations

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import Array, HostArray, array_eps, to_double, to_host
from ssmreduce._checks import is_number, numeric_array, shown
from ssmreduce._lapack import frobenius_norm
from ssmreduce.equations.residual import relative_residual
from ssmreduce.errors import ArgumentError, ShapeError
from ssmreduce.gramians.factors import controllability_gramian, observability_gramian
from ssmreduce.systems.diagonal import System, check_single
from ssmreduce.systems.simulation import simulate
from ssmreduce.testing.tolerances import (
    ROUNDING,
    arrays_in,
    at_most,
    checked_tolerance,
    described,
    largest_error,
    largest_gain,
    lyapunov_condition,
    paired,
    place_of,
    reading,
    rounding,
    singles,
    system_eps,
)
from ssmreduce.time_domain import TimeDomain, check_time


def assert_stable(system: System, *, margin: float = 0.0) -> None:
    """Assert that all poles have |λ| < 1 - margin, or Re λ < -margin.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        With any leading batch axes.
    margin : float
        Distance from the stability boundary that is asked for.

    Raises
    ------
    AssertionError
        If a pole is nearer; the message has the worst one.
    ArgumentError
        If `margin` is not a finite number.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.testing import assert_stable
    >>> system = DiagonalStateSpace([0.5, 0.9], [[1.0], [1.0]], [[1.0, 1.0]], time=Discrete())
    >>> assert_stable(system)
    >>> assert_stable(system, margin=0.2)
    Traceback (most recent call last):
        ...
    AssertionError: `system` has a pole with |λ| = 0.9; allowed: |λ| < 0.8.
    """
    if not is_number(margin):
        raise ArgumentError(f"`margin` is {shown(margin)}; expected a finite number. Try 0.0.")
    for place, single in singles(system):
        if single.is_stable(margin):
            continue
        poles = np.asarray(single.poles())
        worst, kind = single.time.growth(poles).max(), single.time.growth_symbol
        limit = single.time.steady_point - margin
        raise AssertionError(
            f"`system`{place} has a pole with {kind} = {float(worst)!r}; allowed: {kind} < {limit!r}."
        )


def assert_systems_close(actual: System, desired: System, *, rtol: float | None = None) -> None:
    """Assert that two systems are the same input-output map: ‖G₁ - G₂‖∞ is rounding.

    Parameters
    ----------
    actual, desired : StateSpace or DiagonalStateSpace
        Of any orders and kinds; without poles on the stability boundary.
    rtol : float, optional
        Allowed difference over the largest gain of the two; if left out, 20 n eps times what
        relative changes of the data of both do to their transfer functions.

    Raises
    ------
    AssertionError
        If time, sizes or batch axes differ, or the maps do.
    ArgumentTypeError
        If `actual` or `desired` is not a system.
    ArgumentError
        If `rtol` is not a number, 0 or more.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    What is measured is a lower bound (`norms.hinf_difference`). The readout may be before the
    update in one and after it in the other.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace, balanced_realisation
    >>> from ssmreduce.testing import assert_systems_close
    >>> system = StateSpace([[0.9, 0.3], [0.0, 0.1]], [[1.0], [1.0]], [[1.0, 0.5]], time=Discrete())
    >>> assert_systems_close(balanced_realisation(system), system)
    """
    rtol = checked_tolerance(rtol)
    for place, one, two in paired(actual, desired, "actual", "desired"):
        gains = largest_gain(one), largest_gain(two)
        allowed = rounding(one, two) if rtol is None else rtol * max(gains)
        at_most(
            f"`actual`{place} and `desired`{place} differ: ‖G₁ - G₂‖∞",
            largest_error(one, two),
            allowed,
            f"actual: {described(one)}, gain {gains[0]:.6g}",
            f"desired: {described(two)}, gain {gains[1]:.6g}",
        )


def assert_error_within_bound(
    original: System, reduced: System, bound: float | HostArray | None
) -> None:
    """Assert that a reduction keeps its promise: ‖G - G_r‖∞ <= bound, up to rounding.

    Parameters
    ----------
    original, reduced : StateSpace or DiagonalStateSpace
        Without poles on the stability boundary.
    bound : float or (...) array
        What the error may be; one for each system of a batch.

    Raises
    ------
    AssertionError
        If time, sizes or batch axes differ, or an error was seen that exceeds the bound by more
        than 20 n eps times what relative changes of the data do to the two transfer functions.
    ShapeError
        If `bound` is neither a real number nor one for each system.
    ArgumentTypeError
        If `original` or `reduced` is not a system.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace, balanced_truncation
    >>> from ssmreduce.testing import assert_error_within_bound
    >>> system = StateSpace([[0.9, 0.3], [0.0, 0.1]], [[1.0], [1.0]], [[1.0, 0.5]], time=Discrete())
    >>> reduction = balanced_truncation(system, 1)
    >>> assert_error_within_bound(system, reduction.system, reduction.error_bound)
    """
    if bound is None:
        raise AssertionError("`bound` is None; allowed: a number. No theorem gave one.")
    if isinstance(bound, bool | np.bool_):
        raise ShapeError(f"`bound` is {bound}; expected a real number. Pass reduction.error_bound.")
    pairs = list(paired(original, reduced, "original", "reduced"))
    given, batch = to_host(numeric_array(bound, "bound", 0)), original.batch_shape
    if given.shape not in ((), batch) or np.iscomplexobj(given):
        raise ShapeError(
            f"`bound` has shape {given.shape} and dtype {given.dtype}; expected a real number, or one for "
            f"each system, shape {batch}. Pass reduction.error_bound."
        )
    for promised, (place, one, two) in zip(np.broadcast_to(given, batch).flat, pairs, strict=True):
        at_most(
            f"`reduced`{place} breaks its bound: ‖G - G_r‖∞",
            largest_error(one, two),
            float(promised) + rounding(one, two),
            f"original: {described(one)}",
            f"reduced: {described(two)}, bound {float(promised):.6g}",
        )


def assert_balanced(system: System) -> None:
    """Assert that both Gramians are the same diagonal matrix, P = Q = diag(σ), σ in any order.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable, with any leading batch axes.

    Raises
    ------
    AssertionError
        If an entry (i, j) of a Gramian is off by more than 20 n eps κ σ₁²/sqrt(σ_i σ_j), κ being
        the condition of the Lyapunov equations.
    UnstableSystemError
        If the system has no Gramians.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Balancing divides by sqrt(σ_i) on either side, which is where the rounding of small states comes
    from.

    Examples
    --------
    >>> from ssmreduce import Discrete, StateSpace, balanced_realisation
    >>> from ssmreduce.testing import assert_balanced
    >>> system = StateSpace([[0.9, 0.3], [0.0, 0.1]], [[1.0], [1.0]], [[1.0, 0.5]], time=Discrete())
    >>> assert_balanced(balanced_realisation(system))
    """
    for place, single in singles(system):
        full = single.to_dense().to_host()
        if full.order == 0:
            continue
        P, Q = controllability_gramian(full), observability_gramian(full)
        hsv = np.sqrt(np.diagonal(P).real * np.diagonal(Q).real)
        n_eps = full.order * system_eps(single)
        floored = np.maximum(hsv, n_eps * hsv.max())
        scale = hsv.max() ** 2 / np.sqrt(np.outer(floored, floored) + np.finfo(float).tiny)
        allowed = ROUNDING * n_eps * lyapunov_condition(full) * scale
        for name, gramian in (("controllability", P), ("observability", Q)):
            error = np.abs(gramian - np.diag(hsv))
            i, j = np.unravel_index(np.argmax(error - allowed), error.shape)
            at_most(
                f"`system`{place} is not balanced: entry ({i}, {j}) of its {name} Gramian is off by",
                float(error[i, j]),
                float(allowed[i, j]),
                f"P = {P}",
                f"Q = {Q}",
            )


def assert_lyapunov(
    A: Array, X: Array, Q: Array, *, time: TimeDomain, rtol: float | None = None
) -> None:
    """Assert that X solves A X + X Aᴴ + Q = 0, or A X Aᴴ - X + Q = 0, to a small relative residual.

    Parameters
    ----------
    A, X, Q : (..., n, n) array
        State matrix, solution and right-hand side, with equal leading axes.
    time : Continuous or Discrete
        Time domain.
    rtol : float, optional
        Allowed `equations.residual.relative_residual`; 20 n eps if left out, what a backward stable
        solver leaves.

    Raises
    ------
    AssertionError
        If the shapes differ, or the residual is larger.
    ShapeError
        If an argument is not an array of square matrices.
    TimeDomainError
        If `time` is not a time domain.
    ArgumentError
        If `rtol` is not a number, 0 or more.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.testing import assert_lyapunov
    >>> assert_lyapunov(-np.eye(2), np.eye(2), 2 * np.eye(2), time=Continuous())
    """
    check_time(time)
    rtol = checked_tolerance(rtol)
    given = [numeric_array(x, name, 2) for name, x in (("A", A), ("X", X), ("Q", Q))]
    shapes = [tuple(x.shape) for x in given]
    if shapes[0][-2] != shapes[0][-1]:
        raise ShapeError(f"`A` has shape {shapes[0]}; expected (..., n, n). Pass a square matrix.")
    if len(set(shapes)) > 1:
        raise AssertionError(f"`A`, `X`, `Q` have shapes {shapes}; allowed: equal ones.")
    hosts = [to_double(x) for x in given]
    allowed = ROUNDING * shapes[0][-1] * array_eps(*given) if rtol is None else rtol
    for at in np.ndindex(shapes[0][:-2]):
        a, x, q = (host[at] for host in hosts)
        at_most(
            f"`X`{place_of(at)} does not solve its Lyapunov equation: relative residual",
            relative_residual(a, x, q, time=time),
            allowed,
            f"‖A‖ = {frobenius_norm(a):.6g}, ‖X‖ = {frobenius_norm(x):.6g}",
            f"‖Q‖ = {frobenius_norm(q):.6g}, time = {time}",
        )


def assert_outputs_close(
    system: System,
    inputs: Array,
    outputs: Array,
    *,
    times: HostArray | None = None,
    rtol: float | None = None,
) -> None:
    """Assert that `outputs` (of a layer, say) are those of `system` for `inputs`, from rest.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes.
    inputs : (L, m) array
        Input at each sample.
    outputs : (L, p) array
        What they should give, for example by running the layer that the system was read from.
    times : (L,) array, optional
        Sample times of a continuous system; inputs are constant between them.
    rtol : float, optional
        Allowed error over the largest output; if left out, 20 (n + L) eps times
        ‖C‖ max ‖x‖ + ‖D‖ max ‖u‖, the rounding of a recursion over L steps.

    Raises
    ------
    AssertionError
        If the shape differs, or the values do.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError, TimeDomainError
        As `simulate`.
    ArgumentError
        If `rtol` is not a number, 0 or more.
    NonFiniteError
        If an argument holds NaN or Inf, or the output overflows.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.testing import assert_outputs_close
    >>> system = DiagonalStateSpace(
    ...     [0.5], [[1.0]], [[1.0]], time=Discrete(), read_after_update=True
    ... )
    >>> assert_outputs_close(system, [[1.0], [0.0]], [[1.0], [0.5]])
    """
    check_single(system)
    rtol = checked_tolerance(rtol)
    given, host = numeric_array(outputs, "outputs", 1), system.to_host()
    signal = to_double(numeric_array(inputs, "inputs", 1))
    samples = None if times is None else to_double(numeric_array(times, "times", 1))
    expected, found = simulate(host, signal, times=samples), to_double(given)
    if found.shape != expected.shape:
        raise AssertionError(
            f"`outputs` has shape {found.shape}; allowed: {expected.shape}, what `system` gives."
        )
    if expected.size == 0:
        return
    full = host.to_dense()
    if rtol is None:
        states = simulate(reading(full, np.eye(full.order)), signal, times=samples)
        largest = [float(np.linalg.norm(x, axis=-1).max()) for x in (states, signal)]
        scale = (
            float(np.linalg.norm(full.C)) * largest[0] + float(np.linalg.norm(full.D)) * largest[1]
        )
        coarsest = max(system_eps(system), array_eps(given))
        allowed = ROUNDING * (full.order + len(signal)) * coarsest * scale
    else:
        allowed = rtol * float(np.abs(expected).max())
    error = np.abs(found - expected)
    k, i = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
    at_most(
        f"`outputs` differ from those of `system`: at step {k}, output {i}, by",
        float(error[k, i]),
        allowed,
        f"outputs: {found[k, i]}",
        f"system: {expected[k, i]}",
    )


def assert_same_library(result: Array | System, like: Array | System) -> None:
    """Assert that `result` is in the array library, and on the device, that `like` is in.

    Parameters
    ----------
    result, like : StateSpace, DiagonalStateSpace or (...) array
        Of a system, all arrays are looked at.

    Raises
    ------
    AssertionError
        If libraries or devices differ; the message has both.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.testing import assert_same_library
    >>> assert_same_library(np.eye(2), like=np.zeros(3))
    """
    homes = [_homes(result, "result"), _homes(like, "like")]
    if homes[0] != homes[1] or len(homes[0]) != 1:
        found, expected = (
            " and ".join(f"{library} on {device}" for library, device in sorted(home))
            for home in homes
        )
        raise AssertionError(f"`result` is in {found}; allowed: {expected}, where `like` is.")


def _homes(thing: Array | System, name: str) -> set[tuple[str, str]]:
    """Library and device of every array."""
    homes = set()
    for x in arrays_in(thing):
        if not array_api_compat.is_array_api_obj(x):
            raise AssertionError(f"`{name}` is {shown(x)}; allowed: an array or a system.")
        library = array_api_compat.array_namespace(x).__name__.removeprefix("array_api_compat.")
        homes.add((library, str(array_api_compat.device(x))))
    return homes
