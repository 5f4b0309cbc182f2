"""Entries of 1e155 and more, or 1e-155: right by scaling, or refused with a word; never NaN, Inf or 0.0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    controllability_gramian,
    h2_norm,
    hankel_norm,
    hankel_singular_values,
    hinf_norm,
    observability_gramian,
    parallel,
    series,
)
from ssmreduce.errors import NoConvergenceError, NonFiniteError, UnreachableToleranceError

KINDS = ["dense", "continuous", "complex", "real output", "channel", "channels", "batch"]

C_ROUNDING = 100.0
"""c of c eps: powers of two round nothing, so that only the order of a few operations differs."""


def drawn(kind: str, b: float, c: float) -> Any:
    """A system with B and C in units of powers of two near b and c."""
    b, c = (2.0 ** np.round(np.log2(size)) for size in (b, c))
    A = np.array([[0.5, 0.2], [0.0, -0.3]])
    B, C = np.array([[1.0, 0.3], [0.5, 1.0]]) * b, np.array([[1.0, 2.0], [0.4, 1.0]]) * c
    poles = np.array([0.5 + 0.1j, 0.3j])
    match kind:
        case "dense":
            return StateSpace(A, B, C, time=Discrete())
        case "continuous":
            return StateSpace(A - np.eye(2), B, C, time=Continuous())
        case "batch":
            return StateSpace(*(np.stack([X, X]) for X in (A, B, C)), time=Discrete())
        case "channel":
            return DiagonalStateSpace(poles, B[:, :1], C[:1], time=Discrete(), real_output=True)
        case "channels":
            arrays = (np.stack([X, X]) for X in (poles, B[:, :1], C[:1]))
            return DiagonalStateSpace(*arrays, time=Discrete(), real_output=True)
        case _:
            real = kind == "real output"
            return DiagonalStateSpace(poles, B, C, time=Discrete(), real_output=real)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("b", "c"), [(1e155, 1), (1e200, 1e-200), (1e-170, 1e170), (1e300, 1e-10)])
def test_hankel_singular_values_and_cuts_are_right_where_they_exist(
    kind: str, b: float, c: float
) -> None:
    system, plain = drawn(kind, b, c), drawn(kind, 1.0, 1.0)
    unit = 2.0 ** (np.round(np.log2(b)) + np.round(np.log2(c)))
    expected = hankel_singular_values(plain)
    for found in (hankel_singular_values(system), balance(system).hsv):
        np.testing.assert_allclose(
            found / unit, expected, rtol=1e3 * C_ROUNDING * np.finfo(float).eps
        )
    for method in ("truncate", "match_dc"):
        reduced = getattr(balance(system), method)(1).system
        wanted = getattr(balance(plain), method)(1).system
        product = (reduced.C / 2.0 ** np.round(np.log2(c))) @ (
            reduced.B / 2.0 ** np.round(np.log2(b))
        )
        np.testing.assert_allclose(product, wanted.C @ wanted.B, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e155, 1e200, 1e-155, 1e-170])
def test_a_gramian_out_of_range_is_refused(kind: str, size: float) -> None:
    for gramian, system, name in (
        (controllability_gramian, drawn(kind, size, 1.0), "`B`"),
        (observability_gramian, drawn(kind, 1.0, size), "`C`"),
    ):
        with pytest.raises(
            NoConvergenceError, match="overflows" if size > 1 else "underflows"
        ) as caught:
            gramian(system)
        assert name in str(caught.value)
        if kind != "continuous":
            with pytest.raises(NoConvergenceError):
                gramian(system, horizon=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gramian_within_range_is_right(kind: str) -> None:
    for size in (1e150, 1e-150):
        found = controllability_gramian(drawn(kind, size, 1.0))
        unit = 2.0 ** np.round(np.log2(size))
        expected = controllability_gramian(drawn(kind, 1.0, 1.0))
        np.testing.assert_allclose(found / unit / unit, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e155, 1e200, 1e-155, 1e-200])
def test_values_out_of_range_are_refused(kind: str, size: float) -> None:
    system = drawn(kind, size, size)
    weight = StateSpace(0.5 * np.eye(2), np.eye(2), np.eye(2), time=Discrete())
    calls: list[Callable[[], Any]] = [
        lambda: hankel_singular_values(system),
        lambda: balance(system).truncate(1),
    ]
    if kind != "continuous":
        calls.append(lambda: hankel_singular_values(system, horizon=5))
    if kind in ("channel", "channels"):
        calls.append(lambda: hankel_singular_values(system, relative_accuracy=True))
    if kind in ("dense", "complex", "real output"):
        calls.append(lambda: balance(system, band=(0.1, 1.0)))
        calls.append(lambda: balance(system, input_weight=weight))
    for call in calls:
        with pytest.raises(NoConvergenceError, match=r"flow|range"):
            call()


def test_a_system_that_does_not_respond_has_values_of_zero() -> None:
    system = StateSpace(np.diag([0.5, 0.2]), [[1.0], [0.0]], [[0.0, 1.0]], time=Discrete())
    assert hankel_singular_values(system).tolist() == [0.0, 0.0]
    assert not np.any(
        controllability_gramian(StateSpace([[0.5]], [[0.0]], [[1.0]], time=Discrete()))
    )


@pytest.mark.parametrize("size", [1e155, 1e200, 1e-200])
@pytest.mark.parametrize("norm", [h2_norm, hankel_norm, hinf_norm])
def test_norms_beyond_the_range_are_refused(norm: Any, size: float) -> None:
    """They came out as Inf with a warning, or as 0."""
    B, C = size * np.ones((2, 1)), size * np.ones((1, 2))
    for system in (
        StateSpace([[-1.0, 0.5], [0.0, -2.0]], B, C, time=Continuous()),
        DiagonalStateSpace([0.5 + 0.1j, 0.2], B, C, time=Discrete(), real_output=True),
    ):
        with pytest.raises(UnreachableToleranceError, match="double"):
            norm(system)
        if size > 1.0:
            with pytest.raises(NonFiniteError, match="DC gain"):
                system.dc_gain()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("connect", "gain"), [(series, 1e200), (parallel, 1.5e308)])
def test_overflow_is_said_to_be_overflow(connect: Any, gain: float, diagonal: bool) -> None:
    system: Any = StateSpace([[0.5]], [[1.0]], [[1.0]], [[gain]], time=Discrete())
    if diagonal:
        system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], [[gain]], time=Discrete())
    with pytest.raises(NonFiniteError, match="the connection of `first` and `second` overflows"):
        connect(system, system)
