"""Norms of systems against closed forms, mpmath, Kronecker solves, SLICOT and python-control."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from oracles import kronecker
from samples import (
    EPS,
    complex_normal,
    dense_system,
    diagonal_system,
    impulse_response,
    lru_system,
    well_conditioned,
)

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balanced_truncation,
    hankel_singular_values,
)
from ssmreduce.adapters.scipy_signal import from_scipy
from ssmreduce.errors import (
    ShapeError,
    TimeDomainError,
    UnreachableToleranceError,
    UnstableSystemError,
)
from ssmreduce.norms import (
    certified_difference,
    finite_horizon_difference,
    h2_norm,
    hankel_norm,
    hinf_difference,
    hinf_norm,
    level_set,
)
from ssmreduce.norms.gain import Gain
from ssmreduce.responses import frequency_response
from ssmreduce.systems.interconnect import series
from ssmreduce.time_domain import TimeDomain

pytestmark = pytest.mark.every_library

C_ROUNDING = 100.0
"""c of c n eps: a few roundings in each of a few products."""

TOLERANCE = 1e-6
"""Relative width that a certificate has by default."""

System = StateSpace | DiagonalStateSpace
SEEDS = st.integers(0, 2**32 - 1)


def lightly_damped(
    rng: np.random.Generator, n: int, damping: float, *, discrete: bool, is_complex: bool
) -> StateSpace:
    """Poles within about `damping` of the boundary, in a basis of condition 9."""
    size = n if is_complex else n // 2
    depth = damping * rng.uniform(0.1, 10.0, size)
    if discrete:
        low = -np.pi if is_complex else 0.0
        poles = (1.0 - depth) * np.exp(1j * rng.uniform(low, np.pi, size))
    else:
        low = -2.0 if is_complex else 0.1
        poles = -depth + 1j * rng.uniform(low, 2.0, size)
    if is_complex:
        A = np.diag(poles)
        B, C = complex_normal(rng, n, 2), complex_normal(rng, 1, n)
    else:
        A = np.zeros((2 * size, 2 * size))
        for i, pole in enumerate(poles):
            rotation = [[pole.real, pole.imag], [-pole.imag, pole.real]]
            A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = rotation
        B, C = rng.standard_normal((2 * size, 2)), rng.standard_normal((1, 2 * size))
    T = well_conditioned(rng, len(A), is_complex=is_complex)
    inverse = np.linalg.inv(T)
    time: TimeDomain = Discrete() if discrete else Continuous()
    return StateSpace(T @ A @ inverse, T @ B, C @ inverse, time=time)


def with_feedthrough(system: StateSpace, D: Any) -> StateSpace:
    return StateSpace(system.A, system.B, system.C, D, time=system.time)


def largest_gain(system: System, omega: np.ndarray) -> float:
    return float(np.linalg.norm(frequency_response(system, omega), 2, axis=(1, 2)).max())


def boundary(system: System, count: int = 2000) -> np.ndarray:
    """Frequencies that know nothing of the poles, on both sides."""
    if isinstance(system.time, Discrete):
        return np.linspace(-np.pi, np.pi, count)
    decades = np.geomspace(1e-3, 1e3, count // 2)
    return np.concatenate([-decades[::-1], [0.0], decades])


def poles_are_stable(system: System) -> bool:
    poles = system.poles()
    return bool(np.all(np.abs(poles) < 1 if isinstance(system.time, Discrete) else poles.real < 0))


# --- H2


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 5), (5, 2)])
def test_h2_agrees_with_kronecker_solves(
    rng: np.random.Generator, discrete: bool, is_complex: bool, inputs: int, outputs: int
) -> None:
    system = dense_system(rng, 7, inputs, outputs, discrete=discrete, is_complex=is_complex)
    D = rng.standard_normal((outputs, inputs)) if discrete else np.zeros((outputs, inputs))
    solve = kronecker.discrete_lyapunov if discrete else kronecker.continuous_lyapunov
    P = solve(system.A, system.B @ system.B.conj().T)
    expected = np.trace(system.C @ P @ system.C.conj().T).real + np.sum(D**2)
    assert h2_norm(with_feedthrough(system, D)) ** 2 == pytest.approx(expected, rel=5e4 * EPS)


@pytest.mark.parametrize("damping", [0.3, 1e-5, 1e-9])
@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_h2_of_diagonal_systems_agrees_with_mpmath(
    discrete: bool, real_output: bool, damping: float
) -> None:
    rng = np.random.default_rng(3)
    n, m, p = 4, 2, 3
    depth, angle = damping * rng.uniform(1, 2, n), rng.uniform(0.1, 3, n)
    logarithms = -depth + 1j * angle
    B, C = complex_normal(rng, n, m), complex_normal(rng, p, n)
    if discrete:
        system = DiagonalStateSpace.from_log(
            logarithms, B, C, time=Discrete(), real_output=real_output
        )
    else:
        system = DiagonalStateSpace(logarithms, B, C, time=Continuous(), real_output=real_output)
    with mp.workdps(50):
        s = [mp.mpmathify(complex(x)) for x in logarithms]
        rows = [[mp.mpmathify(complex(x)) for x in row] for row in B]
        columns = [[mp.mpmathify(complex(x)) for x in C[:, i]] for i in range(n)]
        if real_output:  # [h; conj h] with half of the output
            s += [mp.conj(x) for x in s]
            rows += [[mp.conj(x) for x in row] for row in rows]
            columns = [[x / 2 for x in column] for column in columns]
            columns += [[mp.conj(x) for x in column] for column in columns]
        total = mp.mpf(0)
        for i in range(len(s)):
            for j in range(len(s)):
                pair = s[i] + mp.conj(s[j])
                distance = -mp.expm1(pair) if discrete else -pair
                inner = sum(x * mp.conj(y) for x, y in zip(rows[i], rows[j], strict=True))
                outer = sum(x * mp.conj(y) for x, y in zip(columns[i], columns[j], strict=True))
                total += mp.re(inner * outer / distance)
        expected = float(mp.sqrt(total))
    assert h2_norm(system) == pytest.approx(expected, rel=C_ROUNDING * n * EPS)


@pytest.mark.parametrize("discrete", [False, True])
def test_h2_agrees_with_slicot(rng: np.random.Generator, discrete: bool) -> None:
    slycot = pytest.importorskip("slycot")
    system = dense_system(rng, 9, 3, 2, discrete=discrete)
    D = rng.standard_normal((2, 3)) if discrete else np.zeros((2, 3))
    expected = slycot.ab13bd(
        "D" if discrete else "C", "H", 9, 3, 2, system.A.copy(), system.B.copy(), system.C.copy(), D
    )
    assert h2_norm(with_feedthrough(system, D)) == pytest.approx(expected, rel=5e4 * EPS)


@given(seed=SEEDS, after=st.booleans(), kind=st.sampled_from(["dense", "complex", "real output"]))
def test_h2_is_the_energy_of_the_impulse_response(seed: int, after: bool, kind: str) -> None:
    rng = np.random.default_rng(seed)
    if kind == "dense":
        dense = dense_system(rng, 5, 2, 2, radius=0.8)
        D = rng.standard_normal((2, 2))
        system: System = StateSpace(
            dense.A, dense.B, dense.C, D, time=Discrete(), read_after_update=after
        )
    else:
        single = diagonal_system(rng, 5, 2, 2, radius=0.8, real_output=kind == "real output")
        system = DiagonalStateSpace(
            single.eigenvalues,
            single.B,
            single.C,
            rng.standard_normal((2, 2)),
            time=Discrete(),
            real_output=single.real_output,
            read_after_update=after,
        )
    expected = np.linalg.norm(impulse_response(system, 300))
    assert h2_norm(system) == pytest.approx(expected, rel=1e-12)


@given(seed=SEEDS, discrete=st.booleans())
def test_h2_does_not_see_the_basis(seed: int, discrete: bool) -> None:
    rng = np.random.default_rng(seed)
    system = dense_system(rng, 6, 2, 3, discrete=discrete)
    T = well_conditioned(rng, 6, is_complex=False)
    inverse = np.linalg.inv(T)
    other = StateSpace(T @ system.A @ inverse, T @ system.B, system.C @ inverse, time=system.time)
    assert h2_norm(other) == pytest.approx(h2_norm(system), rel=1e-10)


def test_h2_with_feedthrough_in_continuous_time_is_infinite(rng: np.random.Generator) -> None:
    system = dense_system(rng, 3, 1, 1, discrete=False)
    assert math.isfinite(h2_norm(system))
    assert h2_norm(with_feedthrough(system, [[1e-9]])) == math.inf


# --- Hankel


@pytest.mark.slow
def test_hankel_norm_is_that_of_the_standard_form(rng: np.random.Generator) -> None:
    system = lru_system(rng, 6, 2)
    expected = hankel_singular_values(system.to_standard())[0]
    assert hankel_norm(system) == pytest.approx(expected, rel=50 * EPS)
    # Past inputs to future outputs: the Hankel matrix of the impulse response.
    response = impulse_response(system, 2000)[1:]
    blocks = np.block([[response[i + j] for j in range(400)] for i in range(400)])
    assert hankel_norm(system) == pytest.approx(np.linalg.norm(blocks, 2), rel=1e-3)


# --- H-infinity: oracles


@pytest.mark.parametrize("name", ["build", "CDplayer", "iss", "heat-cont"])
def test_hinf_of_the_benchmarks_agrees_with_slicot(shared_data: Path, name: str) -> None:
    slycot = pytest.importorskip("slycot")
    path = shared_data / "slicot" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the shared data sets")
    with np.load(path, allow_pickle=False) as data:
        system = StateSpace(data["A"], data["B"], data["C"], time=Continuous())
    n, m, p = system.order, system.inputs, system.outputs
    expected, _ = slycot.ab13dd(
        *("C", "I", "N", "D", n, m, p, system.A.copy(), np.eye(n)),
        *(system.B.copy(), system.C.copy(), np.zeros((p, m)), 1e-10),
    )
    norm = hinf_norm(system, certified=True)
    assert norm.lower == pytest.approx(expected, rel=1e-9)
    assert norm.lower < norm.upper <= norm.lower * (1 + TOLERANCE) * (1 + EPS)
    assert hinf_norm(system).lower == pytest.approx(expected, rel=1e-9)
    assert h2_norm(system) == pytest.approx(
        slycot.ab13bd(
            "C", "H", n, m, p, system.A.copy(), system.B.copy(), system.C.copy(), np.zeros((p, m))
        ),
        rel=1e-7,  # iss: both solvers meet its condition, max|λ|/min|Re λ| = 1e4
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("discrete", [False, True])
def test_hinf_agrees_with_slicot(discrete: bool, seed: int) -> None:
    slycot = pytest.importorskip("slycot")
    rng = np.random.default_rng(seed)
    damping = 10.0 ** -rng.uniform(1, 7)
    system = lightly_damped(rng, 12, damping, discrete=discrete, is_complex=False)
    system = with_feedthrough(system, rng.choice([0.0, 1.0, 100.0]) * rng.standard_normal((1, 2)))
    if not poles_are_stable(system):
        pytest.fail("the sample is not stable")
    expected, _ = slycot.ab13dd(
        *("D" if discrete else "C", "I", "N", "D", 12, 2, 1, system.A.copy(), np.eye(12)),
        *(system.B.copy(), system.C.copy(), system.D.copy(), 1e-10),
    )
    norm = hinf_norm(system, certified=True)
    rounding = C_ROUNDING * 12 * EPS / damping
    assert norm.lower == pytest.approx(expected, rel=1e-9 + rounding)
    assert norm.upper >= expected * (1 - rounding)


def test_hinf_agrees_with_python_control(rng: np.random.Generator) -> None:
    control = pytest.importorskip("control")
    for discrete in (False, True):
        system = dense_system(rng, 6, 2, 3, discrete=discrete)
        theirs = control.ss(system.A, system.B, system.C, system.D, 1.0 if discrete else 0)
        expected, frequency = control.linfnorm(theirs)
        norm = hinf_norm(system, certified=True)
        assert norm.lower == pytest.approx(expected, rel=1e-9)
        assert norm.frequency == pytest.approx(frequency, abs=1e-4)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9])
def test_hinf_of_one_resonance_is_known(distance: float) -> None:
    pole = (1 - distance) * np.exp(1.3j)
    system = DiagonalStateSpace([pole], [[2.0]], [[1.5]], time=Discrete())
    with mp.workdps(40):
        expected = float(3 / (1 - abs(mp.mpmathify(complex(pole)))))
    norm = hinf_norm(system, certified=True)
    # exp(iω) is known to a rounding, which the distance magnifies.
    rounding = 4 * EPS / distance
    assert norm.lower == pytest.approx(expected, rel=4 * EPS + rounding)
    assert expected * (1 - rounding) <= norm.upper <= expected * (1 + TOLERANCE + 2 * rounding)
    # The gain is flat to that rounding within its root of the distance.
    assert norm.frequency == pytest.approx(1.3, abs=5e3 * EPS + math.sqrt(rounding) * distance)


@pytest.mark.parametrize("real_output", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_lower_bound_is_attained_where_it_says(discrete: bool, real_output: bool) -> None:
    # The gain at the reported frequency, evaluated with 40 digits.
    rng = np.random.default_rng(5)
    system = diagonal_system(rng, 5, 2, 2, discrete=discrete, real_output=real_output)
    norm = hinf_norm(system, certified=True)
    with mp.workdps(40):
        z = mp.mpc(0, norm.frequency)
        z = mp.exp(z) if discrete else z
        values = mp.matrix(2, 2)
        for i, pole in enumerate(system.eigenvalues):
            for row in range(2):
                for column in range(2):
                    residue = mp.mpmathify(complex(system.C[row, i])) * complex(system.B[i, column])
                    pole_mp = mp.mpmathify(complex(pole))
                    if real_output:
                        values[row, column] += residue / (z - pole_mp) / 2
                        values[row, column] += mp.conj(residue) / (z - mp.conj(pole_mp)) / 2
                    else:
                        values[row, column] += residue / (z - pole_mp)
        expected = float(mp.svd_c(values, compute_uv=False)[0])
    assert norm.lower == pytest.approx(expected, rel=C_ROUNDING * 5 * EPS)


@pytest.mark.parametrize("refinements", [0, 4])
@given(seed=SEEDS, discrete=st.booleans(), is_complex=st.booleans(), narrow=st.booleans())
def test_level_set_finds_the_norm_from_any_start(
    refinements: int, seed: int, discrete: bool, is_complex: bool, narrow: bool
) -> None:
    # Started at a random frequency, with no grid to help: sharp peaks must announce themselves.
    # Without refinement the method rests on crossings and the midpoints between them alone.
    rng = np.random.default_rng(seed)
    n = 2 * int(rng.integers(1, 9))
    damping = 10.0 ** -(rng.uniform(4, 8) if narrow else rng.uniform(1.5, 3))
    system = lightly_damped(rng, n, damping, discrete=discrete, is_complex=is_complex)
    if seed % 2:
        system = with_feedthrough(system, 10 * rng.standard_normal((1, 2)))
    gain = Gain((1.0, system))
    omega = float(rng.uniform(0, 2))
    first = float(gain.at(np.array([omega]))[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_set, "_REFINEMENTS", refinements)
        lower, upper, frequency = level_set.upper_bound(
            gain, system, first, omega, TOLERANCE, evaluate=gain.at
        )
    expected = hinf_norm(system).lower
    rounding = C_ROUNDING * n * EPS / damping
    assert lower == pytest.approx(expected, rel=TOLERANCE + rounding)
    assert upper >= expected * (1 - rounding)
    again = gain.at(np.array([frequency]))[0]
    assert again == pytest.approx(lower, rel=rounding)


@given(seed=SEEDS, discrete=st.booleans(), kind=st.sampled_from(["real", "complex", "diagonal"]))
def test_bounds_enclose_the_gain_everywhere(seed: int, discrete: bool, kind: str) -> None:
    rng = np.random.default_rng(seed)
    if kind == "diagonal":
        system: System = diagonal_system(rng, 6, 2, 3, discrete=discrete, real_output=seed % 2 == 0)
    else:
        system = dense_system(rng, 6, 2, 3, discrete=discrete, is_complex=kind == "complex")
    norm = hinf_norm(system, certified=True)
    assert largest_gain(system, boundary(system)) <= norm.upper
    assert hinf_norm(system).lower <= norm.upper
    assert norm.upper <= norm.lower * (1 + TOLERANCE) * (1 + EPS)
    at = np.array([norm.frequency])
    assert largest_gain(system, at) == pytest.approx(norm.lower, rel=C_ROUNDING * 6 * EPS)
    if kind == "real":
        assert norm.frequency >= 0


# --- H-infinity: laws


@given(seed=SEEDS, discrete=st.booleans(), real_output=st.booleans())
def test_hankel_values_enclose_the_norm(seed: int, discrete: bool, real_output: bool) -> None:
    rng = np.random.default_rng(seed)
    system = diagonal_system(rng, 4, 2, 2, discrete=discrete, real_output=real_output)
    D = rng.standard_normal((2, 2))
    shifted = DiagonalStateSpace(
        system.eigenvalues, system.B, system.C, D, time=system.time, real_output=real_output
    )
    hsv = hankel_singular_values(system)
    norm = hinf_norm(system, certified=True)
    rounding = C_ROUNDING * hsv.size * EPS
    assert hankel_norm(system) == pytest.approx(hsv[0], rel=rounding)
    assert hsv[0] <= norm.upper * (1 + rounding)
    assert norm.lower <= 2 * hsv.sum() * (1 + rounding)
    shifted_norm = hinf_norm(shifted, certified=True)
    assert hankel_norm(shifted) == hankel_norm(system)
    assert shifted_norm.lower <= (2 * hsv.sum() + np.linalg.norm(D, 2)) * (1 + rounding)
    assert shifted_norm.lower >= norm.lower - np.linalg.norm(D, 2) - rounding * norm.lower
    assert hsv[0] <= shifted_norm.upper * (1 + rounding)


@given(seed=SEEDS, is_complex=st.booleans())
def test_bilinear_map_keeps_the_norm(seed: int, is_complex: bool) -> None:
    rng = np.random.default_rng(seed)
    system = dense_system(rng, 5, 2, 2, discrete=False, is_complex=is_complex)
    E = np.linalg.inv(np.eye(5) - system.A)
    root = np.sqrt(2)
    mapped = StateSpace(
        E @ (np.eye(5) + system.A),
        root * E @ system.B,
        root * system.C @ E,
        system.C @ E @ system.B,
        time=Discrete(),
    )
    one, two = hinf_norm(system, certified=True), hinf_norm(mapped, certified=True)
    assert one.lower == pytest.approx(two.lower, rel=TOLERANCE)
    assert one.lower <= two.upper
    assert two.lower <= one.upper


@given(seed=SEEDS)
def test_readout_after_the_update_is_the_standard_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    system = lru_system(rng, 5, 2)
    one = hinf_norm(system, certified=True)
    two = hinf_norm(system.to_standard(), certified=True)
    assert one.lower == pytest.approx(two.lower, rel=TOLERANCE)
    assert one.lower <= two.upper
    assert two.lower <= one.upper


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("scale_in", "scale_out"), [(100, 100), (-100, -100), (150, -150)])
def test_norms_scale_with_the_system(
    rng: np.random.Generator, discrete: bool, scale_in: int, scale_out: int
) -> None:
    system = dense_system(rng, 5, 2, 2, discrete=discrete)
    scaled = StateSpace(
        system.A, system.B * 10.0**scale_in, system.C * 10.0**scale_out, time=system.time
    )
    factor = 10.0**scale_in * 10.0**scale_out
    one, two = hinf_norm(system, certified=True), hinf_norm(scaled, certified=True)
    for name in ("lower", "upper"):
        assert getattr(two, name) / factor == pytest.approx(getattr(one, name), rel=5e3 * EPS)
    for norm in (h2_norm, hankel_norm):
        assert norm(scaled) / factor == pytest.approx(norm(system), rel=5e3 * EPS)


def test_a_badly_scaled_basis_does_not_matter(rng: np.random.Generator) -> None:
    system = dense_system(rng, 12, 1, 1)
    scale = 10.0 ** rng.uniform(-8, 8, 12)
    other = StateSpace(
        system.A * scale[:, None] / scale,
        system.B * scale[:, None],
        system.C / scale,
        time=Discrete(),
    )
    expected = hinf_norm(system).lower
    norm = hinf_norm(other, certified=True)
    assert norm.lower == pytest.approx(expected, rel=1e-10)
    assert norm.upper >= expected


# --- H-infinity: peaks at the ends, and special systems


@pytest.mark.parametrize(
    ("pole", "D", "time", "frequency", "expected"),
    [
        (0.9, 0.0, Discrete(), 0.0, 10.0),
        (-0.9, 0.0, Discrete(), np.pi, 10.0),
        (-0.1, 0.0, Continuous(), 0.0, 10.0),
        (-0.1, -20.0, Continuous(), math.inf, 20.0),
        (-0.1, 20.0, Continuous(), 0.0, 30.0),
    ],
)
@pytest.mark.parametrize("diagonal", [False, True])
def test_peaks_at_the_ends_of_the_boundary(
    diagonal: bool, pole: float, D: float, time: TimeDomain, frequency: float, expected: float
) -> None:
    system: System = (
        DiagonalStateSpace([pole], [[1.0]], [[1.0]], [[D]], time=time)
        if diagonal
        else StateSpace([[pole]], [[1.0]], [[1.0]], [[D]], time=time)
    )
    for certified in (False, True):
        norm = hinf_norm(system, certified=certified)
        assert norm.lower == pytest.approx(expected, rel=50 * EPS)
        assert norm.frequency == frequency
        assert norm.certified is certified
        assert float(norm) == norm.lower
        assert norm.upper == (pytest.approx(expected, rel=2e-6) if certified else math.inf)


@pytest.mark.parametrize("D", [0.3 + 0.3j, 0.3 - 0.3j])
def test_complex_peaks_beside_the_end_of_the_circle(D: complex) -> None:
    # 1 / (z + 0.9) takes |z| = 1 to the circle through -10 and 1/1.9; the largest value lies beside z = -1.
    system = StateSpace([[-0.9 + 0j]], [[1.0]], [[1.0]], [[D]], time=Discrete())
    expected = abs((1 / 1.9 - 10.0) / 2 + D) + (1 / 1.9 + 10.0) / 2
    norm = hinf_norm(system)
    assert norm.lower == pytest.approx(expected, rel=50 * EPS)
    assert math.copysign(1.0, D.imag) * norm.frequency == pytest.approx(-3.1380380, abs=1e-4)


def test_all_pass_systems_have_gain_one_everywhere(rng: np.random.Generator) -> None:
    # In coordinates with P = I the rows of [A B] are orthonormal; C and D complete them.
    draft = dense_system(rng, 3, 1, 1)
    P = kronecker.discrete_lyapunov(draft.A, draft.B @ draft.B.T).real
    L = np.linalg.cholesky((P + P.T) / 2)
    A, B = np.linalg.solve(L, draft.A @ L), np.linalg.solve(L, draft.B)
    full, _ = np.linalg.qr(np.hstack([A, B]).T, mode="complete")
    row = full[:, -1]
    system = StateSpace(A, B, row[None, :3], row[None, 3:], time=Discrete())
    norm = hinf_norm(system, certified=True)
    assert norm.lower == pytest.approx(1.0, rel=500 * EPS)
    assert 1.0 <= norm.upper <= 1.0 + 2 * TOLERANCE


def test_finite_impulse_response_of_nilpotent_state() -> None:
    rng = np.random.default_rng(4)
    taps = rng.standard_normal(40)
    A = np.eye(40, k=-1)
    system = StateSpace(A, np.eye(40)[:, :1], taps[None], time=Discrete())
    norm = hinf_norm(system, certified=True)
    omega = np.linspace(0, np.pi, 100_001)
    seen = np.abs(np.polyval(taps[::-1], np.exp(-1j * omega))).max()
    assert seen <= norm.upper
    assert norm.lower == pytest.approx(seen, rel=1e-7)
    assert h2_norm(system) == pytest.approx(np.linalg.norm(taps), rel=500 * EPS)


@pytest.mark.parametrize("time", [Discrete(), Continuous()])
@pytest.mark.parametrize("D", [0.0, 2.0])
def test_systems_without_transfer(time: TimeDomain, D: float) -> None:
    A = np.diag([-0.5, -0.3])
    # No input reaches an output; then no input at all; then no output.
    for B, C in (([1, 0], [0, 1]), ([0, 0], [0, 1]), ([1, 0], [0, 0])):
        system = StateSpace(A, np.array([B]).reshape(2, 1), np.array([C]), [[D]], time=time)
        norm = hinf_norm(system, certified=True)
        assert norm.lower == D
        assert D <= norm.upper <= D * (1 + TOLERANCE)
        expected = math.inf if D and time == Continuous() else D
        assert h2_norm(system) == pytest.approx(expected, abs=1e-15)
        assert hankel_norm(system) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (20, 64), (64, 2)])
def test_wide_systems(rng: np.random.Generator, discrete: bool, inputs: int, outputs: int) -> None:
    system = dense_system(rng, 20, inputs, outputs, discrete=discrete)
    norm = hinf_norm(system, certified=True)
    assert largest_gain(system, boundary(system, 400)) <= norm.upper
    # Power iteration underestimates, the last value is decomposed.
    assert hinf_norm(system).lower == pytest.approx(norm.lower, rel=1e-6)


def test_layers_of_256_states(rng: np.random.Generator) -> None:
    system = lru_system(rng, 256, 4, r_max=0.999)
    norm = hinf_norm(system, certified=True)
    assert largest_gain(system, np.linspace(0, np.pi, 4000)) <= norm.upper
    assert hinf_norm(system).lower == pytest.approx(norm.lower, rel=TOLERANCE)


@pytest.mark.parametrize("diagonal", [False, True])
def test_batches_are_their_single_systems(rng: np.random.Generator, diagonal: bool) -> None:
    if diagonal:
        singles: list[Any] = [diagonal_system(rng, 4, 2, 1, real_output=True) for _ in range(6)]
        names = ("eigenvalues", "B", "C", "D")
    else:
        singles = [dense_system(rng, 4, 2, 1) for _ in range(6)]
        names = ("A", "B", "C", "D")
    arrays = [np.stack([getattr(x, name) for x in singles]) for name in names]
    arrays = [x.reshape(2, 3, *x.shape[1:]) for x in arrays]
    batch: Any = (
        DiagonalStateSpace(*arrays, time=Discrete(), real_output=True)
        if diagonal
        else StateSpace(*arrays, time=Discrete())
    )
    for function in (h2_norm, hankel_norm):
        np.testing.assert_array_equal(
            function(batch), np.array([function(x) for x in singles]).reshape(2, 3)
        )
    for certified in (False, True):
        norms = hinf_norm(batch, certified=certified)
        for name in ("lower", "upper", "frequency"):
            expected = [getattr(hinf_norm(x, certified=certified), name) for x in singles]
            found = getattr(norms, name)
            np.testing.assert_array_equal(found, np.array(expected).reshape(2, 3))
        assert norms.certified is certified


def test_inputs_are_left_alone_and_single_precision_is_read(rng: np.random.Generator) -> None:
    double = dense_system(rng, 5, 2, 2)
    single = StateSpace(
        *(getattr(double, name).astype(np.float32) for name in "ABCD"), time=Discrete()
    )
    before = [getattr(single, name).tobytes() for name in "ABCD"]
    norm = hinf_norm(single, certified=True)
    assert h2_norm(single) == pytest.approx(h2_norm(double), rel=1e-5)
    assert norm.lower == pytest.approx(hinf_norm(double).lower, rel=1e-4)
    assert hankel_norm(single) == pytest.approx(hankel_norm(double), rel=1e-4)
    assert before == [getattr(single, name).tobytes() for name in "ABCD"]


# --- Differences


@given(seed=SEEDS, discrete=st.booleans())
def test_a_difference_holds_its_feedthrough(seed: int, discrete: bool) -> None:
    rng = np.random.default_rng(seed)
    one = with_feedthrough(
        dense_system(rng, 4, 2, 2, discrete=discrete), rng.standard_normal((2, 2))
    )
    two = with_feedthrough(
        dense_system(rng, 3, 2, 2, discrete=discrete), 10 * rng.standard_normal((2, 2))
    )
    joined = StateSpace(
        np.block([[one.A, np.zeros((4, 3))], [np.zeros((3, 4)), two.A]]),
        np.concatenate([one.B, two.B]),
        np.concatenate([one.C, -two.C], axis=1),
        one.D - two.D,
        time=one.time,
    )
    expected = hinf_norm(joined, certified=True)
    measured = hinf_difference(one, two, grid=256, refinements=12)
    assert measured == pytest.approx(expected.lower, rel=TOLERANCE)
    found = certified_difference(one, two)
    assert measured <= found.upper
    assert found.upper == pytest.approx(expected.upper, rel=1e-9)


def test_equal_maps_written_differently_have_no_difference(rng: np.random.Generator) -> None:
    layer = lru_system(rng, 8, 3)
    standard = layer.to_standard()
    scale = hinf_norm(layer).lower
    assert hinf_difference(layer, standard) <= C_ROUNDING * 8 * EPS * scale
    assert hinf_difference(layer, layer.to_dense()) <= C_ROUNDING * 8 * EPS * scale
    assert certified_difference(layer, standard).upper <= C_ROUNDING * 32 * EPS * scale
    shifted = DiagonalStateSpace(
        *(standard.eigenvalues, standard.B, standard.C, standard.D + 0.5 * np.eye(3)),
        time=Discrete(),
        real_output=True,
    )
    assert hinf_difference(layer, shifted) == pytest.approx(0.5, rel=5e3 * EPS)
    assert certified_difference(layer, shifted).upper == pytest.approx(0.5, rel=2e-6)


@pytest.mark.parametrize("seed", range(5))
def test_a_difference_in_rounding_is_bounded_by_rounding(seed: int) -> None:
    # Both are the same map, so the gain is noise that differs from one frequency to the next.
    rng = np.random.default_rng(seed)
    one = diagonal_system(rng, 12, 2, 2, real_output=True)
    two = one.to_dense()
    upper = certified_difference(one, two).upper
    noise = Gain((1.0, one), (-1.0, two)).at(rng.uniform(-np.pi, np.pi, 4000)).max()
    assert 0 < noise <= upper <= C_ROUNDING * 36 * EPS * hinf_norm(one).lower


def fading_modes() -> StateSpace:
    """Six modes of damping 1e-4 over four decades of frequency, each 16 times weaker than the one before."""
    damping, A, B, C = 1e-4, np.zeros((12, 12)), np.zeros((12, 1)), np.zeros((1, 12))
    for i, omega in enumerate(np.geomspace(1.0, 1e4, 6)):
        at = slice(2 * i, 2 * i + 2)
        A[at, at] = omega * np.array([[-damping, 1.0], [-1.0, -damping]])
        B[2 * i + 1], C[0, 2 * i] = 10.0 ** (-1.2 * i), 1.0
    return StateSpace(A, B, C, time=Continuous())


def exact_gain(system: StateSpace, omega: float) -> Any:
    """C (iω - A)⁻¹ B of one input and output, in 40 digits."""
    with mp.workdps(40):
        shifted = mp.mpc(0, omega) * mp.eye(system.order) - mp.matrix(system.A.tolist())
        states = mp.lu_solve(shifted, mp.matrix(system.B.tolist()))
        return (mp.matrix(system.C.tolist()) * states)[0]


def solved_rounding(system: StateSpace, omega: float) -> float:
    """Rounding of C M⁻¹ B by a solution with M = iω - A: eps |C M⁻¹| |M| |M⁻¹ B|, entry by entry."""
    shifted = 1j * omega * np.eye(system.order) - system.A
    inverse = np.linalg.inv(shifted)
    sizes = np.abs(system.C @ inverse) @ np.abs(shifted) @ np.abs(inverse @ system.B)
    return float(np.finfo(float).eps * sizes.sum())


def test_rounding_of_a_schur_form_is_no_error_of_a_reduction() -> None:
    """The Schur form moves the gain by 2 to 7 times the error of the cut, and nothing says so.

    Solutions with A itself are right to a tenth of that error at the lowest resonance, and to all digits
    at the highest, where the error of the cut is.
    """
    system = fading_modes()
    reduction = balanced_truncation(system, 10)
    omega = [w * (1 + 1e-4 * t) for w in (1.0, 1e4) for t in (-1, 0, 1)]
    errors = [abs(exact_gain(system, w) - exact_gain(reduction.system, w)) for w in omega]
    rounding = max(solved_rounding(x, 1.0) for x in (system, reduction.system))
    assert rounding <= 0.1 * max(errors)
    assert abs(reduction.verify() - max(errors)) <= 2 * rounding


@pytest.mark.slow
def test_wide_differences_of_layers_hold_their_feedthrough(rng: np.random.Generator) -> None:
    one, two = lru_system(rng, 6, 24), lru_system(rng, 5, 24)
    omega = np.linspace(0, np.pi, 3000)
    difference = frequency_response(one, omega) - frequency_response(two, omega)
    dense = np.linalg.norm(difference, 2, axis=(1, 2)).max()
    found = certified_difference(one, two)
    assert dense <= found.upper
    measured = hinf_difference(one, two, grid=256, refinements=12, iterations=200)
    assert dense * (1 - 1e-3) <= measured <= found.upper


def test_finite_horizon_difference_holds_its_feedthrough(rng: np.random.Generator) -> None:
    one = with_feedthrough(dense_system(rng, 3, 2, 2), rng.standard_normal((2, 2)))
    two = with_feedthrough(dense_system(rng, 2, 2, 2), rng.standard_normal((2, 2)))
    response = impulse_response(one, 12) - impulse_response(two, 12)
    zero = np.zeros((2, 2))
    rows = [[response[i - j] if i >= j else zero for j in range(12)] for i in range(12)]
    expected = np.linalg.norm(np.block(rows), 2)
    measured = finite_horizon_difference(one, two, 12, iterations=300)
    assert measured == pytest.approx(expected, rel=1e-6)
    assert measured <= expected * (1 + 100 * EPS)


@pytest.mark.parametrize("kind", ["dense", "continuous", "layer"])
def test_reductions_are_certified(rng: np.random.Generator, kind: str) -> None:
    if kind == "layer":
        system: System = lru_system(rng, 16, 2)
    else:
        system = dense_system(rng, 16, 2, 2, discrete=kind == "dense")
    reduction = balanced_truncation(system, 6)
    lower, upper = reduction.verify(), reduction.verify(certified=True)
    assert lower <= upper <= lower * (1 + 3 * TOLERANCE)
    assert upper <= reduction.error_bound
    assert reduction.hsv[int(reduction.real_order)] <= upper
    whole = balanced_truncation(system, system.order)
    assert whole.verify(certified=True) <= C_ROUNDING * 64 * EPS * reduction.hsv[0]


def test_certified_verification_of_batches_and_horizons(rng: np.random.Generator) -> None:
    singles = [lru_system(rng, 8, 2) for _ in range(2)]
    batch = DiagonalStateSpace(
        *(np.stack([getattr(x, y) for x in singles]) for y in ("eigenvalues", "B", "C", "D")),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    reduction = balanced_truncation(batch, 3)
    upper = reduction.verify(certified=True)
    assert np.all(reduction.verify() <= upper)
    assert np.all(upper <= reduction.error_bound)
    with pytest.raises(UnreachableToleranceError, match="horizon=20"):
        balanced_truncation(singles[0], 3, horizon=20).verify(certified=True)


# --- Refusals


@pytest.mark.parametrize("name", ["h2_norm", "hinf_norm", "hankel_norm"])
def test_unstable_systems_are_refused(name: str) -> None:
    function = globals()[name]
    for pole, time in ((1.0, Discrete()), (-1.5, Discrete()), (0.0, Continuous())):
        with pytest.raises(UnstableSystemError, match="pole"):
            function(StateSpace([[pole]], [[1.0]], [[1.0]], time=time))
        with pytest.raises(UnstableSystemError, match="pole"):
            function(DiagonalStateSpace([pole], [[0.0]], [[1.0]], time=time))


def test_a_pole_that_rounds_onto_the_boundary_has_no_certificate() -> None:
    system = DiagonalStateSpace.from_log(np.array([-1e-18]), [[1.0]], [[1.0]], time=Discrete())
    with pytest.raises(UnreachableToleranceError, match="boundary"):
        hinf_norm(system, certified=True)
    assert hinf_norm(system).upper == math.inf


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0, math.nan, 1e-17])
def test_impossible_tolerances_are_refused(tolerance: float) -> None:
    system = StateSpace([[0.5]], [[1.0]], [[1.0]], time=Discrete())
    with pytest.raises(UnreachableToleranceError, match="tolerance"):
        hinf_norm(system, certified=True, tolerance=tolerance)


def test_tight_tolerances_are_met(rng: np.random.Generator) -> None:
    system = dense_system(rng, 6, 2, 2)
    norm = hinf_norm(system, certified=True, tolerance=1e-11)
    assert norm.lower < norm.upper <= norm.lower * (1 + 1.0001e-11)


def test_differences_of_unlike_systems_are_refused(rng: np.random.Generator) -> None:
    one = dense_system(rng, 3, 2, 2)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(2, 2\)"):
        hinf_difference(one, dense_system(rng, 3, 3, 2))
    with pytest.raises(TimeDomainError, match="Continuous"):
        certified_difference(one, dense_system(rng, 3, 2, 2, discrete=False))


def test_a_chain_of_sections_of_large_gain_is_right() -> None:
    # A Schur form of A loses what its entries say exactly. The filter's largest gain is 1.
    zeros, poles, gain = scipy.signal.butter(30, 0.3, output="zpk")
    system = StateSpace(
        np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), [[gain]], time=Discrete()
    )
    for pole in poles[poles.imag > 0]:
        section = scipy.signal.ZerosPolesGain([-1.0, -1.0], [pole, pole.conj()], 1.0, dt=True)
        system = series(system, from_scipy(section))
    assert len(zeros) == system.order
    for certified in (False, True):
        norm = hinf_norm(system, certified=certified)
        assert 1.0 - 1e-9 <= norm.lower <= 1.0 + 1e-9
        assert norm.upper >= 1.0
    assert norm.upper <= 1.0 + 3 * TOLERANCE
