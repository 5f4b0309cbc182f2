"""Systems of every kind, and their transfer functions from plain formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from samples import complex_normal

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace

Array = NDArray[Any]

KINDS = ["real dense", "complex dense", "complex diagonal", "real output", "real diagonal"]
TIMES = [Continuous(), Discrete(0.1)]


def random_system(
    rng: np.random.Generator,
    kind: str,
    time: Any,
    *,
    n: int = 5,
    m: int = 2,
    p: int = 3,
    after: bool = False,
    batch: tuple[int, ...] = (),
) -> Any:
    """A stable system of well separated poles, none on the negative real axis, with feedthrough."""
    is_complex = kind in {"complex dense", "complex diagonal", "real output"}

    def normal(*shape: int) -> Array:
        shape = (*batch, *shape)
        return complex_normal(rng, *shape) if is_complex else rng.standard_normal(shape)

    poles = -rng.uniform(0.2, 3.0, (*batch, n)) + 0j
    if is_complex:
        poles = poles + 1j * rng.uniform(-8.0, 8.0, (*batch, n))
    elif kind == "real dense":
        pairs = n // 2
        poles[..., :pairs] += 1j * rng.uniform(0.5, 8.0, (*batch, pairs))
        poles[..., pairs : 2 * pairs] = poles[..., :pairs].conj()
    if isinstance(time, Discrete):
        poles = np.exp(poles * time.dt)
    D = rng.standard_normal((*batch, p, m))
    flags: dict[str, Any] = {"time": time, "read_after_update": after}
    if kind == "complex dense" or kind == "complex diagonal":
        D = D + 1j * rng.standard_normal(D.shape)
    if kind.endswith("dense"):
        basis, _ = np.linalg.qr(normal(n, n))
        A = np.zeros((*batch, n, n), dtype=complex)
        A[..., range(n), range(n)] = poles
        if kind == "real dense":
            pairs = n // 2
            A = A.real.astype(complex)
            first, second = np.arange(pairs), np.arange(pairs, 2 * pairs)
            A[..., first, second] = poles.imag[..., :pairs]
            A[..., second, first] = -poles.imag[..., :pairs]
            A = A.real
        A = A + 0.1 * np.triu(normal(n, n), 2 * (n // 2))
        return StateSpace(
            basis @ A @ np.conj(np.swapaxes(basis, -1, -2)), normal(n, m), normal(p, n), D, **flags
        )
    if not is_complex:
        poles = poles.real
    return DiagonalStateSpace(
        poles, normal(n, m), normal(p, n), D, real_output=kind == "real output", **flags
    )


def plain_matrices(system: Any) -> tuple[Array, Array, Array, Array]:
    """(A, B, C, D) whose transfer function is that of the map; of a real output with states [h; h̄]."""
    B, C, D = (np.asarray(x) for x in (system.B, system.C, system.D))
    if isinstance(system, StateSpace):
        return np.asarray(system.A), B, C, D
    poles = np.asarray(system.eigenvalues)
    if system.real_output:
        poles = np.concatenate([poles, poles.conj()])
        B, C = np.concatenate([B, B.conj()]), np.concatenate([C, C.conj()], axis=1) / 2
    return np.diag(poles), B, C, D


def transfer(system: Any, point: complex) -> Array:
    """G at one point of the plane, by a linear solve."""
    A, B, C, D = plain_matrices(system)
    value = C @ np.linalg.solve(point * np.eye(len(A)) - A, B)
    return (point if system.read_after_update else 1.0) * value + D


def assert_same_map(found: Any, expected: Any, rtol: float) -> None:
    """Equal transfer functions at points on and off the boundary, relative to the largest."""
    points = [0.3 + 0.2j, 2.0 - 1.5j, 1.7j, -0.4 + 3.0j]
    if isinstance(expected.time, Discrete):
        points = [1.2, -1.1 + 0.3j, np.exp(1j), 2.0j]
    values = np.array([transfer(expected, z) for z in points])
    others = np.array([transfer(found, z) for z in points])
    np.testing.assert_allclose(others, values, rtol=0, atol=rtol * np.abs(values).max())
    assert found.time == expected.time
