"""Hypothesis strategies for stable systems of any array library.

Systems are stable by construction, so nothing is filtered; a system takes about ten draws, whatever
its order. They shrink to one state, one input and one output with round entries. Hypothesis is
imported when a strategy is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.testing.random_systems import Options, strategy
from ssmreduce.time_domain import TimeDomain

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Range = int | tuple[int, int]


def state_spaces(
    *,
    order: Range = (1, 5),
    inputs: Range = (1, 3),
    outputs: Range = (1, 3),
    time: TimeDomain | None = None,
    dtype: str | None = None,
    batch_shape: tuple[int, ...] = (),
    margin: float = 0.05,
    departure: float = 1.0,
    minimal: bool | None = None,
    feedthrough: bool = True,
    read_after_update: bool | None = False,
    xp: Any = np,
    device: Any = None,
) -> SearchStrategy[StateSpace]:
    """Strategy for stable dense systems, A = H (Λ + N) Hᴴ with poles in Λ and unitary H.

    Poles may coincide (then A is defective if N is not zero), lie exactly at the margin, or be
    zero; inputs and outputs may be silent, states unreachable or unobservable.

    Parameters
    ----------
    order, inputs, outputs : int or (int, int)
        How many, or the least and the most.
    time : Continuous or Discrete, optional
        Either of ``Discrete()`` and ``Continuous()`` if left out.
    dtype : {"float32", "float64", "complex64", "complex128"}, optional
        Either of the doubles if left out.
    batch_shape : tuple of int
        Leading axes.
    margin : float
        Least distance of the poles from the stability boundary: |λ| <= 1 - margin or Re λ <=
        -margin, up to rounding.
    departure : float
        Bound on ‖N‖_F, the departure of A from normality; 0 for normal A. Where rounding to `dtype`
        would take poles over half the margin, N is left out.
    minimal : bool, optional
        True for systems that are reachable and observable, which have distinct poles and normal A;
        False for those with at least one state that is not (two states where `order` allows them);
        either if left out.
    feedthrough : bool
        Whether D may differ from zero.
    read_after_update : bool, optional
        Readout after the update, for discrete systems; either if None.
    xp : module
        Namespace of the arrays: numpy, torch, jax.numpy, cupy, array_api_strict ...
    device : optional
        Device of that library.

    Returns
    -------
    SearchStrategy
        Of `StateSpace`.

    Raises
    ------
    MissingBackendError
        If Hypothesis is not installed.
    ArgumentError
        If a range is empty, or `margin` or `departure` is out of range.
    ShapeError
        If `batch_shape` is not a tuple of positive ints, `dtype` is not one of the four, or (in an
        example) the library has no such dtype.
    TimeDomainError
        If `time` is not a time domain.

    Notes
    -----
    Reachable and observable in exact arithmetic: the smallest Hankel singular value may still be
    far below the largest.

    References
    ----------
    Golub and Van Loan, Matrix Computations, 4th ed., section 7.1, for the departure from normality.

    Examples
    --------
    >>> import hypothesis
    >>> from ssmreduce import Discrete
    >>> from ssmreduce.testing import state_spaces
    >>> simplest = hypothesis.find(state_spaces(time=Discrete()), lambda system: True)
    >>> simplest.A.tolist(), simplest.B.tolist(), simplest.C.tolist(), simplest.D.tolist()
    ([[0.5]], [[1.0]], [[1.0]], [[0.0]])
    """
    return strategy(Options(diagonal=False, **locals()))


def diagonal_state_spaces(
    *,
    order: Range = (1, 5),
    inputs: Range = (1, 3),
    outputs: Range = (1, 3),
    time: TimeDomain | None = None,
    dtype: str = "complex128",
    batch_shape: tuple[int, ...] = (),
    margin: float = 0.05,
    minimal: bool | None = None,
    feedthrough: bool = True,
    real_output: bool | None = None,
    read_after_update: bool | None = False,
    xp: Any = np,
    device: Any = None,
) -> SearchStrategy[DiagonalStateSpace]:
    """Strategy for stable diagonal systems, h[k+1] = diag(λ) h[k] + B u[k] (or h' = diag(λ) h + B
    u).

    Poles may coincide, lie exactly at the margin, or be zero; inputs and outputs may be silent,
    states unreachable or unobservable.

    Parameters
    ----------
    order, inputs, outputs : int or (int, int)
        How many (stored states for `order`), or the least and the most.
    time : Continuous or Discrete, optional
        Either of ``Discrete()`` and ``Continuous()`` if left out.
    dtype : {"complex128", "complex64", "float64", "float32"}
        Of λ, B and C.
    batch_shape : tuple of int
        Leading axes.
    margin : float
        Least distance of the poles from the stability boundary: |λ| <= 1 - margin or Re λ <=
        -margin, up to rounding.
    minimal : bool, optional
        True for systems that are reachable and observable, with distinct poles (for real outputs,
        those of the real system of order 2n); False for those with at least one state that is not
        (two states where `order` allows them); either if left out.
    feedthrough : bool
        Whether D may differ from zero.
    real_output : bool, optional
        Whether y = Re(C h) + D u; either if None.
    read_after_update : bool, optional
        Readout after the update, for discrete systems; either if None.
    xp : module
        Namespace of the arrays: numpy, torch, jax.numpy, cupy, array_api_strict ...
    device : optional
        Device of that library.

    Returns
    -------
    SearchStrategy
        Of `DiagonalStateSpace`.

    Raises
    ------
    MissingBackendError
        If Hypothesis is not installed.
    ArgumentError
        If a range is empty, or `margin` is out of range.
    ShapeError
        If `batch_shape` is not a tuple of positive ints, `dtype` is not one of the four, is real where
        a minimal system with real output is asked for, or (in an example) the library has no such
        dtype.
    TimeDomainError
        If `time` is not a time domain.

    Notes
    -----
    Reachable and observable in exact arithmetic: the smallest Hankel singular value may still be
    far below the largest.

    Examples
    --------
    >>> import hypothesis
    >>> from ssmreduce import Continuous
    >>> from ssmreduce.testing import diagonal_state_spaces
    >>> strategy = diagonal_state_spaces(time=Continuous(), order=(1, 8))
    >>> hypothesis.find(strategy, lambda system: system.order > 1).eigenvalues.tolist()
    [(-1+0j), (-1+0j)]
    """
    return strategy(Options(diagonal=True, **locals()))
