"""DC matching beside slow poles: lightly damped ones keep their digits, and the DC gain holds.

The oracle is the response in 50 digits. Rounding of A by eps moves it by eps ‖A‖ ‖C R‖ ‖R B‖, with
R = (z - A)⁻¹ and A in balanced units: that is what an error may exceed its bound by.
"""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
from samples import EPS

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace, balance

C_ROUNDING = 10.0
"""c of c eps ‖A‖ ‖C R‖ ‖R B‖: truncation exceeds it by up to 3 in 380 draws like these, DC matching too; by
the inverse of A it was up to 1e6."""


@pytest.mark.parametrize("seed", range(16))
def test_a_dense_system_keeps_its_bound_and_its_dc_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    discrete = bool(seed % 2)
    poles, resonances = draw_poles(rng)
    n = len(poles)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    if seed % 3 == 0:
        basis = np.diag(2.0 ** rng.integers(-20, 20, n)) @ basis
    inverse = np.linalg.inv(basis)
    B, C = weights(rng, n)
    A = basis @ (scipy.linalg.expm(poles) if discrete else poles) @ inverse
    time = Discrete() if discrete else Continuous()
    system = StateSpace(
        A, basis @ B, C @ inverse, np.ones((2, 2)), time=time, read_after_update=seed % 4 == 3
    )
    balancing = balance(system)
    order = int(rng.integers(1, balancing.rank))
    reduction = balancing.match_dc(order)
    before, after = system.to_standard(), reduction.system.to_standard()
    for omega in (0.0, *resonances, 3.0):
        apart = float(mp.norm(response(before, omega) - response(after, omega)))
        assert apart <= np.sqrt(2) * reduction.error_bound + C_ROUNDING * moved(before, omega)
    steady = float(mp.norm(response(before, 0.0) - response(after, 0.0)))
    assert steady <= C_ROUNDING * (moved(before, 0.0) + moved(after, 0.0))


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_diagonal_system_keeps_its_bound(seed: int, real_output: bool) -> None:
    rng = np.random.default_rng(seed)
    poles = np.linalg.eigvals(draw_poles(rng)[0])
    poles = poles[poles.imag >= 0.0]
    B, C = weights(rng, poles.size)
    unit = 2.0 ** rng.integers(-20, 20, poles.size)
    system = DiagonalStateSpace(
        poles, unit[:, None] * B + 0j, C / unit + 0j, time=Continuous(), real_output=real_output
    )
    reduction = balance(system).match_dc(poles.size - 2)
    dense = system.to_dense()
    for omega in (0.0, *np.abs(poles.imag), 3.0):
        apart = float(
            mp.norm(response(dense, omega) - response(reduction.system.to_dense(), omega))
        )
        allowed = np.sqrt(2) * float(reduction.error_bound) + C_ROUNDING * moved(dense, omega)
        assert apart <= allowed


def test_an_order_that_separates_a_lightly_damped_pair_keeps_the_dc_gain() -> None:
    rng = np.random.default_rng(20)
    A = scipy.linalg.block_diag([[-1e-8, 1.0], [-1.0, -1e-8]], [[-0.5]], [[-3.0]])
    basis = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    system = StateSpace(
        basis @ A @ basis.T,
        basis @ rng.standard_normal((4, 1)),
        rng.standard_normal((1, 4)) @ basis.T,
        time=Continuous(),
    )
    reduced = balance(system).match_dc(1).system
    wanted, found = response(system, 0.0)[0], response(reduced, 0.0)[0]
    rounding = EPS * float(abs(reduced.C[0, 0] * reduced.B[0, 0] / reduced.A[0, 0]))
    assert abs(found - wanted) <= C_ROUNDING * (moved(system, 0.0) + rounding)


def draw_poles(rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A block diagonal A, and the frequencies of its lightly damped pairs."""
    slow = -(10.0 ** rng.uniform(-9, -3, int(rng.integers(1, 3))))
    resonances = rng.uniform(0.1, 2.0, int(rng.integers(1, 3))).tolist()
    pairs = [
        np.array([[-damping, omega], [-omega, -damping]])
        for omega, damping in zip(
            resonances, 10.0 ** rng.uniform(-9, -6, len(resonances)), strict=True
        )
    ]
    return scipy.linalg.block_diag(*slow, *pairs, *-rng.uniform(0.2, 4.0, 3)), resonances


def weights(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    B, C = rng.standard_normal((n, 2)), rng.standard_normal((2, n))
    small = 10.0 ** rng.uniform(-4, 0)
    B[0], C[:, 0] = small * B[0], small * C[:, 0]
    return B, C


def response(system: StateSpace, omega: float) -> mp.matrix:
    """G at a frequency, in 50 digits."""
    with mp.workdps(50):
        A, B, C, D = (mp.matrix(x.tolist()) for x in (system.A, system.B, system.C, system.D))
        z = mp.exp(1j * mp.mpf(omega)) if isinstance(system.time, Discrete) else mp.mpc(0, omega)
        return C * mp.inverse(z * mp.eye(system.order) - A) * B + D


def moved(system: StateSpace, omega: float) -> float:
    """What rounding A by eps moves the response by."""
    A, (scale, _) = scipy.linalg.matrix_balance(system.A, permute=False, separate=True)
    z = np.exp(1j * omega) if isinstance(system.time, Discrete) else 1j * omega
    inverse = np.linalg.inv(z * np.eye(len(A)) - A)
    B, C = system.B / scale[:, None], system.C * scale
    return float(
        EPS * np.linalg.norm(A) * np.linalg.norm(C @ inverse) * np.linalg.norm(inverse @ B)
    )
