"""Hankel singular values, and the balancing projections that belong to them.

With Gramian factors P = Z Zᴴ and Q = Y Yᴴ the Hankel singular values are the singular values of
Yᴴ Z = U Σ Vᴴ. The projections W = Y U_r Σ_r^(-1/2) and T = Z V_r Σ_r^(-1/2) satisfy Wᴴ T = I and
truncate to Wᴴ A T, Wᴴ B, C T. Nothing is squared, so small values keep their digits. Diagonal systems
with one input and one output go through `gramians.single_channel`.

Reference: Laub, Heath, Paige and Ward, IEEE Trans. Automatic Control 32 (1987).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._boundary import any_library
from ssmreduce._lapack import NUMPY, SCIPY, Pool, frobenius_norm, product
from ssmreduce._namespace import HostArray, adjoint, to_double
from ssmreduce.equations.dense import DenseFactors, in_basis
from ssmreduce.errors import NoConvergenceError, ShapeError
from ssmreduce.gramians import native_hankel
from ssmreduce.gramians.emphasis import Emphasis
from ssmreduce.gramians.factors import (
    check_horizon,
    dense_gramian_factors,
    gramian_factors,
    map_batch,
)
from ssmreduce.gramians.single_channel import right_singular, single_channel
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace

_RANK_CONSTANT = 4.0
"""Safety factor c of the rank tolerance c n eps σ₁: a few roundings per product of factors."""

_SQUARED_RANGE = 0.25
"""A singular value above σ₁/(0.25 n) is taken from Mᴴ M: squaring costs it 0.25 n eps σ₁."""


def state_count(system: System) -> int:
    """Order of the system that is balanced: 2n where a diagonal system outputs a real part."""
    real_output = isinstance(system, DiagonalStateSpace) and system.real_output
    return 2 * system.order if real_output else system.order


@any_library(native_hankel.singular_values)
def hankel_singular_values(system: System, *, horizon: int | None = None) -> HostArray:
    """Hankel singular values σ_i = sqrt(λ_i(P Q)), as the singular values of Yᴴ Z.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Sequence length L; Gramians are then summed over L steps (discrete time only).

    Returns
    -------
    (..., n) array
        Real, descending; (..., 2n) for a diagonal system with real output.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.

    Notes
    -----
    Absolute error about n eps σ₁. For a `DiagonalStateSpace` with one input and one output, up to 256
    states and without a horizon, every value has an error relative to itself, down to 1e-290 σ₁:
    O(n eps), or about what half a unit in the last place of the data changes, if that is more.
    Cost O(n³), most of it one singular value decomposition.

    References
    ----------
    Antoulas, Approximation of Large-Scale Dynamical Systems, SIAM 2005, chapter 5; Haut and Beylkin,
    SIAM J. Matrix Anal. Appl. 33 (2012), for one input and one output.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete, hankel_singular_values
    >>> system = DiagonalStateSpace([0.5], [[3.0]], [[2.0]], time=Discrete())
    >>> bool(abs(hankel_singular_values(system)[0] - 8.0) < 1e-13)
    True
    """

    def values(single: System) -> HostArray:
        return balance_factors(single, horizon).hsv if single.order else np.zeros(0)

    return map_batch(system, values)


@any_library(native_hankel.tail_sums)
def error_bounds(hsv: HostArray) -> HostArray:
    """Bounds on the H-infinity error of balanced truncation: entry r is 2 Σ_{i>r} σ_i.

    Parameters
    ----------
    hsv : (..., n) array
        Hankel singular values, real, nonnegative, descending.

    Returns
    -------
    (..., n + 1) array
        Bound for every order r = 0 ... n; the last entry is 0.

    Raises
    ------
    ShapeError
        If `hsv` is not a descending list of nonnegative numbers.

    References
    ----------
    Enns, CDC 1984; Glover, Int. J. Control 39 (1984).

    Examples
    --------
    >>> from ssmreduce import error_bounds
    >>> error_bounds([4.0, 2.0, 1.0]).tolist()
    [14.0, 6.0, 2.0, 0.0]
    """
    values = to_double(hsv)
    if values.ndim == 0 or np.iscomplexobj(values):
        raise ShapeError(
            f"`hsv` has shape {values.shape} and dtype {values.dtype}; expected real numbers in "
            "descending order. Pass the result of hankel_singular_values."
        )
    if not np.all(values >= 0) or np.any(np.diff(values, axis=-1) > 0):
        raise ShapeError(
            "`hsv` is not sorted, negative or NaN somewhere; expected nonnegative numbers in "
            "descending order. Pass the result of hankel_singular_values."
        )
    tails = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]
    return 2.0 * np.concatenate([tails, np.zeros((*values.shape[:-1], 1))], axis=-1)


def rank_tolerance(hsv: HostArray) -> float:
    """Return 4 n eps σ₁, below which a Hankel singular value is rounding."""
    return float(_RANK_CONSTANT * hsv.size * np.finfo(np.float64).eps * hsv[:1].sum())


@dataclass(frozen=True, eq=False)
class BalancedFactors:
    """Gramian factors of one system, the singular values of M = Yᴴ Z and its right vectors V."""

    hsv: HostArray
    rank: int
    factors: DenseFactors
    M: HostArray
    V: HostArray
    pool: Pool

    def observed(self, B: HostArray) -> HostArray:
        """What the outputs see of each column: the factor of Q, transposed, times B."""
        basis = self.factors.left_basis
        inner = B if basis is None else product(basis, B, adjoint_left=True)
        return self.pool.multiply(adjoint(self.factors.Y), inner)

    def reached(self, C: HostArray) -> HostArray:
        """What the inputs reach of each row: C times the factor of P."""
        basis = self.factors.right_basis
        return self.pool.multiply(C if basis is None else product(C, basis), self.factors.Z)

    def projections(self, order: int) -> tuple[HostArray, HostArray]:
        """Return W and T, each of shape (n, order), with Wᴴ T = I; `order` at most the rank.

        Only the leading vectors are ever computed: M V_r = Q R with R = Σ_r up to signs and rounding,
        and with W = Y Q Σ_r^(-1/2), T = Z V_r R⁻¹ Σ_r^(1/2) that rounding leaves Wᴴ T = I untouched.
        """
        V, root = self.V[:, :order], np.sqrt(self.hsv[:order])
        multiply = self.pool.multiply
        Q, R = self.pool.qr(multiply(self.M, V))
        W = multiply(self.factors.Y, Q) / root
        T = multiply(self.factors.Z, V @ (np.linalg.inv(R) * root))
        return in_basis(self.factors.left_basis, W), in_basis(self.factors.right_basis, T)


def balance_factors(
    system: System, horizon: int | None = None, emphasis: Emphasis | None = None
) -> BalancedFactors:
    """Factor the Gramians of one system (no batch axes) and decompose Yᴴ Z."""
    pool = NUMPY
    plain = horizon is None and emphasis is None
    channel = single_channel(system) if plain else None
    if channel is not None:
        factors, M = DenseFactors(channel.Z, channel.Y), channel.M
    elif emphasis is None and isinstance(system, StateSpace):
        factors = dense_gramian_factors(system.to_host(), check_horizon(system, horizon))
        M, pool = product(factors.Y, factors.Z, adjoint_left=True), SCIPY
    else:
        Z, Y = gramian_factors(system, horizon) if emphasis is None else emphasis.factors(system)
        factors, M = DenseFactors(Z, Y), adjoint(Y) @ Z
    try:
        if channel is None:
            values, V = _right_singular(M, pool)
        else:
            values, V = right_singular(channel)
    except np.linalg.LinAlgError as error:
        raise NoConvergenceError(
            f"the singular values of Yᴴ Z could not be computed ({error}); expected Gramians within "
            "the range of double precision. Look for a pole at the stability boundary."
        ) from error
    n = state_count(system)
    hsv = _pad(values, n)
    rank = int(np.sum(hsv > rank_tolerance(hsv)))
    if channel is None and hsv[:1].sum() <= _RANK_CONSTANT * _product_rounding(factors):
        rank = 0
    return BalancedFactors(hsv, rank, factors, M, V, pool)


def _product_rounding(factors: DenseFactors) -> float:
    """What rounding alone makes of a product Yᴴ Z that vanishes.

    Rows of factors in the states of the system are right to eps each; in a basis to eps of the whole.
    """
    eps = float(np.finfo(np.float64).eps)
    if factors.right_basis is not None:
        return eps * frobenius_norm(factors.Y) * frobenius_norm(factors.Z)
    rows = np.linalg.norm(factors.Y, axis=1) * np.linalg.norm(factors.Z, axis=1)
    return eps * float(rows.sum())


def _right_singular(M: HostArray, pool: Pool) -> tuple[HostArray, HostArray]:
    """Singular values, descending, and right singular vectors, to an absolute error of n eps σ₁.

    The eigenvectors of Mᴴ M cost a third of a singular value decomposition and are as good for large
    values: squaring costs them eps σ₁²/σ. The rest is decomposed without squaring, in the coordinates
    of the remaining eigenvectors. Where the columns of M differ by more than the square of the range
    of large values, few values are large and all of M is decomposed directly. All is done in
    the pool of BLAS threads in which the factors were made.
    """
    reach = max(1.0, _SQUARED_RANGE * M.shape[1])
    largest = float(np.abs(M).max(initial=0.0))
    # A power of two: squares neither over- nor underflow, and nothing is rounded.
    unit = float(2.0 ** np.frexp(largest)[1]) if 0.0 < largest < np.inf else 1.0
    M = M / unit
    norms = np.linalg.norm(M, axis=0)
    if M.shape[1] == 0 or norms.min() < norms.max() / reach**2:
        _, values, Vh = pool.svd(M)
        return values * unit, adjoint(Vh)
    squares, V = pool.eigh(pool.multiply(adjoint(M), M))
    squares, V = squares[::-1], V[:, ::-1]
    head = int(np.sum(squares * reach**2 > squares[0]))
    if head == squares.size:
        return np.sqrt(squares) * unit, V
    _, small, Xh = pool.svd(pool.multiply(M, V[:, head:]))
    values = np.concatenate([np.sqrt(squares[:head]), small])
    V = np.concatenate([V[:, :head], pool.multiply(V[:, head:], adjoint(Xh))], axis=1)
    order = np.argsort(-values, kind="stable")
    return values[order] * unit, V[:, order]


def _pad(values: HostArray, n: int) -> HostArray:
    """Bring a list of singular values to length n; what is missing is zero."""
    padded = np.zeros(n)
    padded[: min(n, values.size)] = values[:n]
    return padded
