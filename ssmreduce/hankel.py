"""Hankel singular values, and the balancing projections that belong to them.

With Gramian factors P = Z Zᴴ and Q = Y Yᴴ the Hankel singular values are the singular values of
Yᴴ Z = U Σ Vᴴ. The projections W = Y U_r Σ_r^(-1/2) and T = Z V_r Σ_r^(-1/2) satisfy Wᴴ T = I and
truncate to Wᴴ A T, Wᴴ B, C T. Nothing is squared, so small values keep their digits.

Reference: Laub, Heath, Paige and Ward, IEEE Trans. Automatic Control 32 (1987).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint, to_double
from ssmreduce._array_routes import any_library
from ssmreduce._checks import flag, numeric_array
from ssmreduce._lapack import (
    NUMPY,
    SCIPY,
    Pool,
    all_finite,
    frobenius_norm,
    safe_unit,
)
from ssmreduce._threads import on_gainful_threads
from ssmreduce.derivatives.adjoint import controllability_gradient, observability_gradient
from ssmreduce.derivatives.dispatch import apply, differentiable, refuse_horizon
from ssmreduce.derivatives.rule import Gradients, Pullback
from ssmreduce.devices import hankel_values as native
from ssmreduce.equations.dense import DenseFactors, dense_factors
from ssmreduce.errors import NoConvergenceError, ShapeError
from ssmreduce.gramians.batch import in_batch_shape, map_systems
from ssmreduce.gramians.channels import channel_factors, is_channel
from ssmreduce.gramians.factors import (
    check_horizon,
    gramian_factors,
)
from ssmreduce.gramians.frequency_weighting import FrequencyWeighting
from ssmreduce.gramians.relative import check_relative, relative_singular_values
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.prescaling import prescaled
from ssmreduce.systems.state_space import StateSpace

_EPS = float(np.finfo(np.float64).eps)

_RANK_CONSTANT = 4.0
"""Safety factor c of the rank tolerance c n eps σ₁: a few roundings per product of factors."""

_SMALLEST = float(np.finfo(np.float64).tiny)
"""The smallest number with all its digits."""

_LARGEST = 2.0**1010
"""Sums and products with a few numbers near 1 stay in range."""

_SQUARED_RANGE = 0.25
"""A singular value above σ₁/(0.25 n) is taken from Mᴴ M: squaring costs it 0.25 n eps σ₁."""


_SMALL = 64
"""Columns up to which a singular value decomposition is not slower than eigenvectors of Mᴴ M."""


@any_library(native.singular_values, has_derivative=True)
def hankel_singular_values(
    system: System, *, horizon: int | None = None, relative_accuracy: bool = False
) -> HostArray:
    """Hankel singular values σ_i = sqrt(λ_i(P Q)), as the singular values of Yᴴ Z.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable unless a horizon is given; with any leading batch axes.
    horizon : int, optional
        Sequence length L; Gramians are then summed over L steps (discrete time only).
    relative_accuracy : bool
        Whether each value is to be right relative to itself, however small: of a
        `DiagonalStateSpace` with one input and one output, without a horizon.

    Returns
    -------
    (..., n) array
        Real, descending; (..., 2n) for a diagonal system with real output.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary and there is no horizon.
    TimeDomainError
        If a horizon is given for a continuous system.
    ArgumentError
        If `horizon` is not a positive int, or `relative_accuracy` is not a bool or is asked for
        within a horizon.
    NoConvergenceError
        If they leave the range of double precision.
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.
    UnsupportedEquationError
        If a derivative is asked for within a horizon, or with `relative_accuracy`; if that is asked
        for of another system than said above.
    TracedValueError
        If `relative_accuracy` is asked for of traced arrays.

    Notes
    -----
    Absolute error about n eps σ₁. With `relative_accuracy` the relative error of each value, down to
    1e-290 σ₁, is O(n eps), or what a change of the data by half a unit in the last place makes, if
    that is more. Cost O(n³), most of it one singular value decomposition, or Jacobi rotations.

    Where an array is a tensor that asks for a gradient, or a tracer of JAX, so is the result,
    without a horizon: dσ_i = ½ (w_iᴴ dP w_i + t_iᴴ dQ t_i), which divides by no difference of
    values. Of equal values only symmetric functions have a derivative; values below 4 n eps σ₁
    contribute none.

    References
    ----------
    Moore, IEEE Trans. Automatic Control 26 (1981); Laub, Heath, Paige and Ward, IEEE Trans.
    Automatic Control 32 (1987), for values from factors; Haut and Beylkin, SIAM J. Matrix Anal.
    Appl. 33 (2012), for one input and one output.

    Examples
    --------
    >>> from ssmreduce import Continuous, DiagonalStateSpace, Discrete, hankel_singular_values
    >>> system = DiagonalStateSpace([0.5], [[3.0]], [[2.0]], time=Discrete())
    >>> bool(abs(hankel_singular_values(system)[0] - 8.0) < 1e-13)
    True

    Two poles that nearly coincide, where the second value is 1.1e-20 of the first:

    >>> system = DiagonalStateSpace(
    ...     [-1.0, -1.0 - 1e-10], [[1.0]] * 2, [[1.0] * 2], time=Continuous()
    ... )
    >>> values = hankel_singular_values(system, relative_accuracy=True)
    >>> bool(abs(values[1] / (values[0] * 1e-20 / 16) - 1) < 1e-4)
    True
    """
    relative_accuracy = flag(relative_accuracy, "relative_accuracy")
    if relative_accuracy:
        check_relative(system, horizon)
    if differentiable(system):
        refuse_horizon(horizon)
        found: HostArray = apply(
            hsv_rule,
            system,
            (system.real_order,),
            name="hankel_singular_values",
            native=native.singular_values,
        )
        return found

    check_system(system)
    horizon = check_horizon(system, horizon)

    def values(single: System) -> HostArray:
        if not single.order:
            return np.zeros(0)
        host = prescaled(single.to_host())
        if relative_accuracy and isinstance(host, DiagonalStateSpace):
            found = relative_singular_values(host)
            if found.size and not _SMALLEST <= found[0] < _LARGEST:
                raise _out_of_range(float(found[0]))
            return np.pad(found, (0, host.real_order - found.size))
        return balance_factors(host, horizon).hsv

    def stacked(batch: DiagonalStateSpace) -> list[HostArray]:
        return [balanced.hsv for balanced in _balance_channels(prescaled(batch))]

    together = horizon is None and not relative_accuracy
    every = map_systems(system, values, stacked if together else None)
    return np.asarray(in_batch_shape(every, system.batch_shape))


def hsv_rule(system: System) -> tuple[HostArray, Pullback]:
    """dσ_i = ½ (w_iᴴ dP w_i + t_iᴴ dQ t_i), with w_i and t_i the columns of W and T.

    No difference of singular values is divided by. Values that are rounding contribute nothing.
    """
    if system.order == 0:
        return np.zeros(0), lambda _: (None, None, None, None)
    balanced = balance_factors(system)

    def pullback(cotangent: HostArray) -> Gradients:
        if balanced.rank == 0:
            return None, None, None, None
        G, H = balanced.gramian_derivatives(cotangent[: balanced.rank])
        Z, Y = balanced.factors.whole()
        reached, B = controllability_gradient(system, Z, G)
        observed, C = observability_gradient(system, Y, H)
        return reached + observed, B, C, None

    return balanced.hsv, pullback


@any_library(native.tail_sums)
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
    values = to_double(numeric_array(hsv, "hsv", 0))
    if values.ndim == 0 or np.iscomplexobj(values):
        raise ShapeError(
            f"`hsv` has shape {values.shape} and dtype {values.dtype}; expected real numbers in "
            "descending order. Pass the result of hankel_singular_values."
        )
    if not np.all(values >= 0) or np.any(values[..., 1:] > values[..., :-1]):
        raise ShapeError(
            "`hsv` is not sorted, negative or NaN somewhere; expected nonnegative numbers in "
            "descending order. Pass the result of hankel_singular_values."
        )
    return tail_bounds(values)


def tail_bounds(hsv: HostArray) -> HostArray:
    """`error_bounds` of Hankel singular values that are known to be some."""
    bounds = np.zeros((*hsv.shape[:-1], hsv.shape[-1] + 1))
    np.add.accumulate(hsv[..., ::-1], axis=-1, out=bounds[..., -2::-1])
    bounds *= 2.0
    return bounds


def rank_tolerance(hsv: HostArray) -> float:
    """Return 4 n eps σ₁, below which a Hankel singular value is rounding."""
    return _RANK_CONSTANT * hsv.size * _EPS * float(hsv[0]) if hsv.size else 0.0


@dataclass(frozen=True, eq=False)
class BalancedFactors:
    """Gramian factors of one system, the singular values of M = Yᴴ Z and its right vectors V."""

    hsv: HostArray
    rank: int
    factors: DenseFactors
    V: HostArray
    pool: Pool
    floor: float = 0.0
    """What rounding may make of a product Yᴴ Z that vanishes."""

    def gains(self, B: HostArray, C: HostArray) -> tuple[HostArray, HostArray]:
        """What the outputs see of each column, Yᴴ Wᴴ S⁻¹ B, and the inputs reach of each row, C S W Z."""
        Y, Z, basis, multiply = (
            self.factors.Y,
            self.factors.Z,
            self.factors.basis,
            self.pool.multiply,
        )
        B, C = B / self.factors.units, C * np.ravel(self.factors.units)
        if basis is not None:
            B, C = multiply(adjoint(basis), B), multiply(C, basis)
        return multiply(adjoint(Y), B), multiply(C, Z)

    def projections(self, order: int) -> tuple[HostArray, HostArray]:
        """Return W and T, each of shape (n, order), with Wᴴ T = I; `order` at most the rank.

        Only the leading vectors are ever computed: M V_r = Q R with R = Σ_r up to signs and rounding,
        and with W = Y Q Σ_r^(-1/2), T = Z V_r R⁻¹ Σ_r^(1/2) that rounding leaves Wᴴ T = I untouched.
        """
        V, root = self.V[..., :order], np.sqrt(self.hsv[..., None, :order])
        Z, Y, multiply = self.factors.Z, self.factors.Y, self.pool.multiply
        with np.errstate(over="ignore", invalid="ignore"):
            Q, R = self.pool.qr(multiply(adjoint(Y), multiply(Z, V)))
            W = multiply(Y, Q) / root
            T = multiply(Z, self.pool.over_upper(V, R) * root)
        if not all_finite(W, T):
            raise _out_of_range(np.inf)
        T, W = self.factors.in_states(T, W)
        return W, T

    def gramian_derivatives(self, weights: HostArray) -> tuple[HostArray, HostArray]:
        """Derivatives of Σ g_i σ_i by P and by Q: ½ W diag(g) Wᴴ and ½ T diag(g) Tᴴ.

        `weights` are g of the leading values, at most the rank. With u_i = M v_i/σ_i the vectors are right to
        the eps σ₁/σ_i to which the data define them; that Wᴴ T = I to rounding is not needed here.
        """
        values, V = self.hsv[: weights.size], self.V[:, : weights.size]
        multiply = self.pool.multiply
        images = multiply(adjoint(self.factors.Y), multiply(self.factors.Z, V))
        Z, Y = self.factors.whole()
        left, right = multiply(Y, images / values), multiply(Z, V)
        share = 0.5 * weights / values
        return multiply(left * share, adjoint(left)), multiply(right * share, adjoint(right))


def balance_factors(
    system: System, horizon: int | None = None, weighting: FrequencyWeighting | None = None
) -> BalancedFactors:
    """Factor the Gramians of one system on the host (no batch axes) and decompose Yᴴ Z."""
    n, ports = system.real_order, max(system.B.shape[-1], system.C.shape[-2])
    if weighting is not None:  # weights bring states of their own
        n = ports = 0
    return on_gainful_threads(_balance_factors, system, horizon, weighting, order=n, ports=ports)


def balance_every(
    system: System, horizon: int | None = None, weighting: FrequencyWeighting | None = None
) -> list[BalancedFactors]:
    """The same for every system of a batch, in C order."""
    plain = horizon is None and weighting is None
    return map_systems(
        system.to_host(),
        lambda single: balance_factors(single, horizon, weighting),
        _balance_channels if plain else None,
    )


@np.errstate(over="ignore", invalid="ignore")
def _balance_channels(batch: DiagonalStateSpace) -> list[BalancedFactors]:
    """The same for a channel, or each along one batch axis; their factors are made together."""
    return [
        decomposed(DenseFactors(Z, Y), symmetric=np.isrealobj(Z)) for Z, Y in channel_factors(batch)
    ]


def _balance_factors(
    system: System, horizon: int | None, weighting: FrequencyWeighting | None
) -> BalancedFactors:
    with np.errstate(over="ignore", invalid="ignore"):
        if weighting is not None:
            return decomposed(DenseFactors(*weighting.factors(system)))
        if isinstance(system, StateSpace):
            factors = dense_factors(system.A, system.B, system.C, system.time, horizon)
            return decomposed(factors, SCIPY)
        if horizon is None and is_channel(system):
            return _balance_channels(system)[0]
        return decomposed(DenseFactors(*gramian_factors(system, horizon)))


def decomposed(
    factors: DenseFactors, pool: Pool = NUMPY, *, symmetric: bool = False
) -> BalancedFactors:
    """Singular values of Yᴴ Z and their numerical rank, which is 0 if all of it may be rounding.

    The factors may also be those of data. `symmetric`: whether Yᴴ Z is real and symmetric but for rounding.

    Raises
    ------
    NoConvergenceError
        If the values leave the range of double precision.
    """
    try:
        values, V = _right_singular(factors, pool, symmetric)
    except np.linalg.LinAlgError as error:
        raise NoConvergenceError(
            f"the singular values of Yᴴ Z could not be computed ({error}); expected Gramians within "
            "the range of double precision. Look for a pole at the stability boundary."
        ) from error
    n = len(factors.Z)
    hsv = np.zeros(n)
    hsv[: values.size] = values[:n]
    rounding = _RANK_CONSTANT * n * _EPS
    rank = int(np.count_nonzero(hsv > rounding * hsv[:1]))

    # What rounding may make of a product that vanishes: bounded by norms, then looked at more closely.
    floor = 0.0
    if rank:
        floor = frobenius_norm(factors.Y) * rounding * frobenius_norm(factors.Z)
        if hsv[0] <= floor:
            floor = _product_rounding(factors)
            rank = 0 if hsv[0] <= floor else rank
    return BalancedFactors(hsv, rank, factors, V, pool, floor)


def _check_range(M: HostArray, factors: DenseFactors) -> None:
    """Raise `NoConvergenceError` if M = Yᴴ Z leaves the range of double precision."""
    largest = float(np.abs(M).max(initial=0.0))
    if _SMALLEST <= largest < _LARGEST:
        return
    if largest < _SMALLEST:
        Y, Z = (
            X / max(float(np.abs(X).max(initial=0.0)), _SMALLEST) for X in (factors.Y, factors.Z)
        )
        if frobenius_norm(adjoint(Y) @ Z) <= _product_rounding(DenseFactors(Z, Y)):
            return
    raise _out_of_range(largest)


def _out_of_range(largest: float) -> NoConvergenceError:
    lost = largest < _SMALLEST
    return NoConvergenceError(
        f"the Hankel singular values {'underflow' if lost else 'overflow'}: the entries of `B` and `C` are "
        f"too {'small' if lost else 'large'} together; expected a response within the range of double "
        "precision. Scale `B` or `C`."
    )


def _product_rounding(factors: DenseFactors) -> float:
    """What rounding alone may make of a product Yᴴ Z that vanishes.

    States that the basis mixes are right to eps of all of them, others to eps each.
    """
    # Rows of one and columns of the other have inverse units.
    reached, observed = (_of_mixed_states(factors.basis, X) for X in (factors.Z, factors.Y))
    return float(reached @ (_RANK_CONSTANT * _EPS * observed))


def _of_mixed_states(basis: HostArray | None, factor: HostArray) -> HostArray:
    """For each state the norm of the rows of a factor that the basis mixes into it."""
    unit = safe_unit(factor)
    rows: HostArray = np.linalg.norm(factor / unit, axis=1)
    if basis is not None:
        rows = np.linalg.norm(basis, axis=1) * np.sqrt((basis != 0.0) @ rows**2)
    return rows * unit


def _right_singular(
    factors: DenseFactors, pool: Pool, symmetric: bool
) -> tuple[HostArray, HostArray]:
    """Singular values of M = Yᴴ Z, descending, and their right singular vectors, to n eps σ₁.

    The eigenvectors of a symmetric M are singular vectors. Of others, the eigenvectors of Mᴴ M cost a
    third of a singular value decomposition and are as good for large values: squaring costs them
    eps σ₁²/σ. The rest is decomposed without squaring, in the coordinates of the remaining eigenvectors.
    Where the columns of M differ by more than the square of the range of large values, few values are
    large and M is decomposed directly, but for rows and columns that are rounding of σ₁. All is done in
    the pool of BLAS threads in which the factors were made.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        M = pool.multiply(adjoint(factors.Y), factors.Z)
    squares = np.vdot(M, M).real if M.size <= _SMALL**2 else np.inf
    if not _SMALLEST < squares < _LARGEST:
        _check_range(M, factors)
    if symmetric:
        values, V = pool.eigh(M)
        values = np.abs(values)
        falling = np.argsort(-values, kind="stable")
        return values[falling], V[:, falling]
    if M.shape[1] <= _SMALL:
        _, values, Vh = pool.svd(M)
        return values, adjoint(Vh)
    reach = _SQUARED_RANGE * M.shape[1]
    unit = safe_unit(M)  # squares neither over- nor underflow, and nothing is rounded
    M = M if unit == 1.0 else M / unit
    norms = np.sqrt(np.einsum("ij,ij->j", M, M.conj()).real)
    if norms.min() < norms.max() / reach**2:
        rounding = norms.max() * _EPS / len(norms)
        rows, columns = np.linalg.norm(M, axis=1) > rounding, norms > rounding
        M = M[rows][:, columns]
        _, values, Vh = pool.svd(M)
        V = np.zeros((columns.size, values.size), dtype=M.dtype)
        V[columns] = adjoint(Vh)
        return values * unit, V
    squares, V = pool.eigh(pool.multiply(adjoint(M), M))  # ascending
    tail = int(np.sum(squares * reach**2 <= squares[-1]))
    falling = np.arange(squares.size)[::-1]
    values = np.sqrt(squares[tail:])[::-1]
    if tail:
        M = pool.multiply(M, V[:, :tail])  # in the place of M
        small, Xh = pool.svd(M)[1:]
        count = small.size  # fewer than `tail` where M has fewer rows
        V[:, :count] = pool.multiply(V[:, :tail], adjoint(Xh))
        values = np.concatenate([values, small])
        order = np.argsort(-values, kind="stable")
        falling, values = np.concatenate([falling[:-tail], np.arange(count)])[order], values[order]
    return values * unit, V[:, falling]
