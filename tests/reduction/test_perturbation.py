"""DC matching: the DC gain is kept, the bound of truncation holds, and so do the standard form's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.kronecker import continuous_lyapunov, discrete_lyapunov
from samples import EPS, dense_system, diagonal_system

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    ErrorBound,
    HankelEnergy,
    HankelMass,
    StateSpace,
    balance,
    hankel_singular_values,
)
from ssmreduce.errors import (
    ArgumentError,
    OrderError,
)
from ssmreduce.reduction.order import TotalBudget
from ssmreduce.reduction.perturbation import singular_perturbation
from ssmreduce.responses import frequency_response

pytestmark = pytest.mark.every_library

SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["dense", "complex dense", "diagonal", "real output"])

C_ROUNDING = 100.0
"""c of c n eps · size: products with W and T, of order n, and an inverse; measured errors of the DC
gain stay below 20 eps of the largest gain for the conditions drawn here."""


def draw(kind: str, seed: int, n: int, *, discrete: bool, after: bool = False) -> Any:
    """A random system with two inputs, three outputs and a feedthrough."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((3, 2))
    if "dense" in kind:
        s = dense_system(rng, n, 2, 3, discrete=discrete, is_complex=kind != "dense")
        return StateSpace(s.A, s.B, s.C, D, time=s.time, read_after_update=after)
    d = diagonal_system(rng, n, 2, 3, discrete=discrete, real_output=kind == "real output")
    return DiagonalStateSpace(
        d.eigenvalues,
        d.B,
        d.C,
        D,
        time=d.time,
        real_output=d.real_output,
        read_after_update=after,
    )


def frequencies(*, discrete: bool) -> np.ndarray:
    if discrete:
        return np.linspace(-np.pi, np.pi, 161)
    decades = np.geomspace(1e-3, 1e3, 80)
    return np.concatenate([-decades[::-1], [0.0], decades])


def error(first: Any, second: Any) -> float:
    """Largest gain of the difference, feedthrough and all, over a grid."""
    omega = frequencies(discrete=isinstance(first.time, Discrete))
    difference = frequency_response(first, omega) - frequency_response(second, omega)
    return float(np.linalg.norm(difference, 2, axis=(1, 2)).max())


def dc_gain(system: Any) -> np.ndarray:
    return np.asarray(frequency_response(system, [0.0])[0])


def condition_at_dc(system: Any) -> float:
    """Condition number of A - s, by which a DC gain amplifies rounding."""
    dense = system if isinstance(system, StateSpace) else system.to_dense()
    shift = 1.0 if isinstance(system.time, Discrete) else 0.0
    return float(np.linalg.cond(dense.A - shift * np.eye(dense.order)))


@given(KINDS, SEEDS, st.integers(2, 9), st.booleans(), st.booleans())
def test_dc_gain_bound_and_stability(
    kind: str, seed: int, n: int, discrete: bool, after: bool
) -> None:
    system = draw(kind, seed, n, discrete=discrete, after=after and discrete)
    balancing = balance(system)
    sigma = hankel_singular_values(system.to_standard())
    gain = dc_gain(system)
    size = float(np.abs(gain).max() + sigma[0])
    for order in {1, n // 2, n - 1} - {0}:
        if "dense" in kind and order > balancing.rank:
            continue
        reduction = balancing.match_dc(order)
        reduced: Any = reduction.system
        assert reduction.method == "DC matching"
        assert reduced.order == reduction.order <= order
        assert reduced.read_after_update == system.read_after_update
        assert type(reduced) is type(system)
        # Rounding of the reduced system, eps times the condition of what was inverted: A - s, the
        # eigenvectors, and A_r where the result is read after its update.
        condition = condition_at_dc(system)
        condition *= 1.0 if reduction.slot_map is None else reduction.slot_map.condition
        if system.read_after_update:
            condition *= np.linalg.cond(
                reduced.A if isinstance(reduced, StateSpace) else np.diag(reduced.eigenvalues)
            )
        rounding = C_ROUNDING * n * EPS * size * condition
        assert np.abs(dc_gain(reduced) - gain).max() <= rounding
        tail = 2 * sigma[int(reduction.real_order) :].sum()
        assert reduction.error_bound == pytest.approx(tail, rel=1e-6, abs=rounding)
        assert error(system, reduced) <= reduction.error_bound * (1 + 1e-9) + rounding
        poles = reduced.poles()
        assert np.all(np.abs(poles) < 1) if discrete else np.all(poles.real < 0)
        if kind == "dense":
            assert not np.iscomplexobj(reduced.A)


@given(SEEDS, st.integers(3, 8), st.booleans(), st.booleans())
def test_the_formula_with_the_discarded_block(
    seed: int, n: int, discrete: bool, is_complex: bool
) -> None:
    # A₁₁ - A₁₂ (A₂₂ - s)⁻¹ A₂₁ in the balanced coordinates of all n states, by hand.
    system = draw("complex dense" if is_complex else "dense", seed, n, discrete=discrete)
    balancing = balance(system)
    if balancing.rank < n:
        return
    r = n // 2
    A, B, C = (np.asarray(x) for x in balanced_by_hand(system))
    shift = 1.0 if discrete else 0.0
    X = np.linalg.inv(A[r:, r:] - shift * np.eye(n - r))
    expected = StateSpace(
        A[:r, :r] - A[:r, r:] @ X @ A[r:, :r],
        B[:r] - A[:r, r:] @ X @ B[r:],
        C[:, :r] - C[:, r:] @ X @ A[r:, :r],
        system.D - C[:, r:] @ X @ B[r:],
        time=system.time,
    )
    sigma = balancing.hsv
    # Formed Gramians know σ_i to eps σ₁²/σ_i only, and spaces as far as σ_r and σ_{r+1} differ.
    gap = (sigma[r - 1] - sigma[r]) / sigma[0]
    allowed = C_ROUNDING * n * EPS * (sigma[0] / sigma[-1]) ** 2 / gap * condition_at_dc(system)
    found = balancing.match_dc(r).system
    assert error(expected, found) <= allowed * (sigma[0] + np.abs(system.D).max())


def balanced_by_hand(system: StateSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Balanced A, B, C from Gramians formed as solutions of linear equations."""
    A, B, C = (np.asarray(x) for x in (system.A, system.B, system.C))
    solve = discrete_lyapunov if isinstance(system.time, Discrete) else continuous_lyapunov
    P = solve(A, B @ B.conj().T)
    Q = solve(A.conj().T, C.conj().T @ C)
    L = np.linalg.cholesky((P + P.conj().T) / 2)
    squares, U = np.linalg.eigh(L.conj().T @ Q @ L)
    order = np.argsort(-squares)
    sigma, U = np.sqrt(squares[order]), U[:, order]
    T = L @ U / np.sqrt(sigma)
    inverse = np.linalg.inv(T)
    return inverse @ A @ T, inverse @ B, C @ T


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_slicot_agrees(seed: int, discrete: bool) -> None:
    slycot = pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
    n = 7
    system = draw("dense", seed, n, discrete=discrete)
    balancing = balance(system)
    for order in (2, 4, 6):
        *_, (A, B, C, D) = slicot_spa(slycot, system, order, job="N")
        theirs = StateSpace(A, B, C, D, time=system.time)
        ours = balancing.match_dc(order).system
        # Two backward stable computations of the same transfer function.
        allowed = C_ROUNDING * n * EPS * balancing.hsv[0] * condition_at_dc(system)
        assert error(theirs, ours) <= allowed


@pytest.mark.parametrize("seed", range(4))
def test_slicot_square_root_variant_is_wrong_in_discrete_time(seed: int) -> None:
    # SLICOT's job 'B' keeps no DC gain in discrete time; ours is the one that its job 'N' returns.
    slycot = pytest.importorskip("slycot", reason="SLICOT is compared with where it is installed")
    system = draw("dense", seed, 7, discrete=True)
    *_, (A, B, C, D) = slicot_spa(slycot, system, 3, job="B")
    theirs = StateSpace(A, B, C, D, time=system.time)
    gain = dc_gain(system)
    ours = balance(system).match_dc(3).system
    assert np.abs(dc_gain(theirs) - gain).max() > 1e-3 * np.abs(gain).max()
    assert np.abs(dc_gain(ours) - gain).max() < 5e3 * EPS * np.abs(gain).max()


def slicot_spa(slycot: Any, system: StateSpace, order: int, *, job: str) -> Any:
    """Singular perturbation by AB09ND (AB09BD of Slycot 0.7.1 writes beyond its work array)."""
    kind = "D" if isinstance(system.time, Discrete) else "C"
    sizes = system.order, system.inputs, system.outputs
    copies = (x.copy() for x in (system.A, system.B, system.C, system.D))
    reached, A, B, C, D, stable, hsv = slycot.ab09nd(kind, job, "N", *sizes, *copies, nr=order)
    assert (reached, stable) == (order, system.order)
    return hsv, (A, B, C, D)


@pytest.mark.parametrize("seed", range(3))
def test_python_control_agrees_in_continuous_time(seed: int) -> None:
    control = pytest.importorskip("control", reason="python-control is compared with if there")
    pytest.importorskip("slycot", reason="python-control's balred needs SLICOT")
    n, order = 6, 3
    system = draw("dense", seed, n, discrete=False)
    theirs = control.balred(
        control.ss(system.A, system.B, system.C, system.D), order, method="matchdc"
    )
    theirs = StateSpace(theirs.A, theirs.B, theirs.C, theirs.D, time=Continuous())
    balancing = balance(system)
    allowed = C_ROUNDING * n * EPS * balancing.hsv[0] * condition_at_dc(system)
    # control balances from formed Gramians, which costs σ₁/σ_n once more.
    allowed *= balancing.hsv[0] / balancing.hsv[-1]
    assert error(theirs, balancing.match_dc(order).system) <= allowed


@pytest.mark.parametrize("kind", ["dense", "complex dense", "diagonal", "real output"])
@pytest.mark.parametrize("discrete", [False, True])
def test_non_minimal_systems(kind: str, discrete: bool) -> None:
    # Half of the states do not respond; the inverse of a block with noise in it is never taken.
    system = draw(kind, 3, 8, discrete=discrete)
    silent = np.arange(8) % 2 == 1
    B = np.where(silent[:, None], 0.0, system.B)
    if isinstance(system, StateSpace):
        A = np.array(system.A)
        A[np.ix_(silent, ~silent)] = 0.0
        A = A * 0.5 if discrete else A - 2.0 * np.eye(8)
        system = StateSpace(A, B, system.C, system.D, time=system.time)
    else:
        system = DiagonalStateSpace(
            system.eigenvalues,
            B,
            system.C,
            system.D,
            time=system.time,
            real_output=system.real_output,
        )
    balancing = balance(system)
    assert balancing.rank == balancing.hsv.size // 2
    size = float(np.abs(dc_gain(system)).max() + balancing.hsv[0])
    for order in (1, 2, 4):
        reduction = balancing.match_dc(order)
        condition = condition_at_dc(system)
        condition *= 1.0 if reduction.slot_map is None else reduction.slot_map.condition
        allowed = C_ROUNDING * 8 * EPS * size * condition
        assert np.abs(dc_gain(reduction.system) - dc_gain(system)).max() <= allowed
        assert error(system, reduction.system) <= reduction.error_bound + allowed
    if "dense" in kind:
        with pytest.raises(OrderError, match="rank 4"):
            balancing.match_dc(5)


def test_matching_the_triple_directly_would_break_the_bound() -> None:
    # Read after the update, ‖z (G - G_r) + D - D_r‖ with the formulas applied to (Λ, B, C) as they
    # stand has no bound; in the standard form it has.
    broken = 0
    for seed in range(20):
        system = draw("diagonal", seed, 4, discrete=True, after=True)
        reduction = balance(system).match_dc(3)
        assert error(system, reduction.system) <= reduction.error_bound * (1 + 1e-9)
        direct = balance(draw("diagonal", seed, 4, discrete=True)).match_dc(3)
        reduced = direct.system
        wrong = DiagonalStateSpace(
            reduced.eigenvalues,
            reduced.B,
            reduced.C,
            reduced.D,
            time=Discrete(),
            read_after_update=True,
        )
        broken += error(system, wrong) > 1.05 * direct.error_bound
    assert broken >= 5


@pytest.mark.parametrize(
    "rule",
    [HankelMass(0.8), HankelEnergy(0.9), ErrorBound(relative=0.2), TotalBudget(3)],
    ids=lambda rule: type(rule).__name__,
)
@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
def test_rules_decide_in_the_standard_form(kind: str, rule: Any) -> None:
    system = draw(kind, 5, 8, discrete=True, after=True)
    matched = balance(system).match_dc(rule)
    truncated = balance(system.to_standard()).truncate(rule)
    allowed = C_ROUNDING * matched.hsv.size * EPS * truncated.hsv[0]
    np.testing.assert_allclose(matched.hsv, truncated.hsv, rtol=0, atol=allowed)
    assert matched.wanted_order == truncated.wanted_order
    assert matched.original is system
    if isinstance(rule, ErrorBound):
        assert matched.error_bound <= 0.2 * matched.hsv[0]
    # The HSVs of the triple itself are others: the balancing says those.
    assert np.abs(balance(system).hsv - matched.hsv).max() > 1e-3 * matched.hsv[0]


@pytest.mark.parametrize("kind", ["dense", "diagonal", "real output"])
@pytest.mark.parametrize("after", [False, True])
def test_own_order_changes_nothing(kind: str, after: bool) -> None:
    system = draw(kind, 6, 4, discrete=True, after=after)
    reduction = balance(system).match_dc(4)
    assert reduction.system is system
    assert reduction.original is system
    assert reduction.error_bound == 0.0


def test_a_horizon_is_refused() -> None:
    system = draw("diagonal", 7, 4, discrete=True)
    with pytest.raises(ArgumentError, match=r"`horizon` is 12; expected none"):
        balance(system, horizon=12).match_dc(2)


def test_a_singular_state_matrix_is_refused_read_after_the_update() -> None:
    # u[k-1] and u[k-2] in one state each: A_r has the pole 0, and no system that reads after its
    # update has the reduced map.
    A = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, -0.5]])
    rng = np.random.default_rng(0)
    system = StateSpace(
        A, rng.standard_normal((3, 1)), rng.standard_normal((1, 3)), time=Discrete()
    )
    from ssmreduce.reduction.dc_matching import dense_after_update

    with pytest.raises(OrderError, match="singular"):
        dense_after_update(system)


def test_a_batch_is_its_singles() -> None:
    singles = [draw("real output", seed, 6, discrete=True, after=True) for seed in range(3)]
    batch = DiagonalStateSpace(
        *(np.stack([getattr(s, name) for s in singles]) for name in ("eigenvalues", "B", "C", "D")),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )
    result = singular_perturbation(batch, 3)
    for k, single in enumerate(singles):
        part = singular_perturbation(single, 3)
        kept = result.mask[k]
        np.testing.assert_array_equal(result.system.C[k][:, kept], part.system.C)
        np.testing.assert_array_equal(result.system.D[k], part.system.D)
        np.testing.assert_array_equal(result.hsv[k], part.hsv)
        assert result.error_bound[k] == part.error_bound
    assert result.method == "DC matching"


def test_logarithms_of_poles_near_one_are_used() -> None:
    # λ = 1 - 1e-13: the DC gain is b c / 1e-13, of which a stored λ knows three digits.
    slow, fast = np.log1p(-1e-13), np.log(0.5)
    logarithms = np.array([slow, fast, np.log(0.2)])
    system = DiagonalStateSpace.from_log(
        logarithms, [[1e-7], [1.0], [1.0]], [[1e-6, 1.0, 1.0]], time=Discrete()
    )
    matched = singular_perturbation(system, 2)
    exact = 1e-13 / 1e-13 + 1.0 / 0.5 + 1.0 / 0.8
    reciprocal_of_reduced = matched.system.D[0, 0] + np.sum(
        matched.system.C[0] * matched.system.B[:, 0] / (1.0 - matched.system.eigenvalues)
    )
    # The reduced pole is a stored one again, so the gain is right to its distance's rounding.
    assert abs(reciprocal_of_reduced - exact) <= 10 * EPS / 1e-13 * exact


@pytest.mark.parametrize("name", ["build", "CDplayer", "heat-cont"])
def test_benchmarks(shared_data: Path, name: str) -> None:
    path = shared_data / "slicot" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the shared data sets")
    with np.load(path, allow_pickle=False) as data:
        system = StateSpace(data["A"], data["B"], data["C"], time=Continuous())
    balancing = balance(system)
    sigma = balancing.hsv
    omega = np.concatenate([[0.0], np.geomspace(1e-2, 1e5, 60)])
    full = frequency_response(system, omega)
    rounding = C_ROUNDING * system.order * EPS * (sigma[0] + np.abs(full).max())
    for order in (4, 10, min(16, int(balancing.rank))):
        reduction = balancing.match_dc(order)
        reduced = frequency_response(reduction.system, omega)
        error_here = np.linalg.norm(full - reduced, 2, axis=(1, 2)).max()
        assert error_here <= reduction.error_bound * (1 + 1e-9) + rounding
        assert np.abs(full[0] - reduced[0]).max() <= rounding
        assert np.all(reduction.system.poles().real < 0)


# --- Orders in turn


@given(SEEDS, KINDS)
def test_orders_in_turn_are_as_from_a_fresh_balancing(seed: int, kind: str) -> None:
    system = draw(kind, seed, 6, discrete=bool(seed % 2))
    balancing = balance(system)
    for order in (2, 4, 3, 3):
        found = balancing.match_dc(order).system
        fresh = balance(system).match_dc(order).system
        limit = C_ROUNDING * 6 * EPS * condition_at_dc(system) * float(balancing.hsv[0])
        assert error(found, fresh) <= limit
        found.D[...] = np.nan
