"""The matrix sign iteration in factored form, for continuous equations: products and inverses only.

Newton's iteration A <- (A/c + c A⁻¹)/2 takes a stable A to -I. The block matrix [[A, Q], [0, -Aᴴ]] goes
along as Q <- (Q/c + c A⁻¹ Q A⁻ᴴ)/2, which tends to 2 X for A X + X Aᴴ + Q = 0; with Q = B Bᴴ the factor
goes along as B <- [B/sqrt(c), sqrt(c) A⁻¹ B]/sqrt(2), whose columns are compressed to at most n, so that X
is never formed. c = sqrt(‖A‖/‖A⁻¹‖) equalises the sizes of A/c and c A⁻¹. It converges quadratically; cost
O(n³) per iteration, for 6 to 12 iterations, more where poles lie near the imaginary axis, where it
also loses digits: the inverses see all of the condition of A. No Schur form is needed, which is what
a GPU lacks: arrays of any library that follows the array API pass through.

References: Roberts, Int. J. Control 32 (1980); Benner and Quintana-Ortí, Numer. Algorithms 20 (1999).
"""

from __future__ import annotations

from ssmreduce._array_libraries import (
    Array,
    State,
    adjoint,
    device_of,
    namespace,
    repeat_until,
    triangular_factor,
)
from ssmreduce.errors import NoConvergenceError, UnstableSystemError

_MOST_ITERATIONS = 60
"""Scaled Newton takes log2 of the spread of the spectrum, and a few more."""


def sign_solution(A: Array, Q: Array) -> tuple[Array, int | None]:
    """Return X with A X + X Aᴴ + Q = 0 for a stable A, and the number of iterations."""
    X, converged, stable, iterations = sign_sum(A, Q)
    _check(converged, stable)
    return X, iterations


def sign_factor(A: Array, B: Array) -> tuple[Array, int | None]:
    """Return Z with A Z Zᴴ + Z Zᴴ Aᴴ + B Bᴴ = 0 for a stable A, and the number of iterations."""
    (Z,), converged, stable, iterations = sign_factors(A, B)
    _check(converged, stable)
    return Z, iterations


def sign_sum(A: Array, Q: Array) -> tuple[Array, Array, Array, int | None]:
    """X; whether the iteration converged, and A is stable, each of shape (...); and the iterations."""

    def step(state: State) -> tuple[Array, State]:
        _, A, Q = state
        inverse, c = _inverse(A)
        Q = 0.5 * (Q / c + c * (inverse @ Q @ adjoint(inverse)))
        finished, settled, A = _newton(A, inverse, c)
        return finished, (settled, A, Q)

    (settled, A, Q), iterations = repeat_until(step, (_unsettled(A), A, Q), _MOST_ITERATIONS)
    return 0.5 * Q, settled, _is_stable(A), iterations


def sign_factors(A: Array, *generators: Array) -> tuple[list[Array], Array, Array, int | None]:
    """Factors for (A, B) with the first generator B, for (Aᴴ, G) with a second one G.

    Arrays of any library and with any leading axes, of one dtype; both share the inverses.

    Returns
    -------
    factors : list of (..., n, k) arrays
        With k = n once as many iterations were taken as that needs.
    converged, stable : (...) bool arrays
        Whether the iteration ended, and A has eigenvalues with negative real part alone.
    iterations : int or None
        None where they are traced.
    """

    def step(state: State) -> tuple[Array, State]:
        _, A, *factors = state
        inverse, c = _inverse(A)
        following = [
            _doubled(B, solved, c)
            for B, solved in zip(factors, (inverse, adjoint(inverse)), strict=False)
        ]
        finished, settled, A = _newton(A, inverse, c)
        return finished, (settled, A, *following)

    start = (_unsettled(A), A, *generators)
    (settled, A, *factors), iterations = repeat_until(step, start, _MOST_ITERATIONS)
    return [B / 2.0**0.5 for B in factors], settled, _is_stable(A), iterations


def _unsettled(A: Array) -> Array:
    xp = namespace(A)
    return xp.zeros(A.shape[:-2], dtype=xp.bool, device=device_of(A))


def _inverse(A: Array) -> tuple[Array, Array]:
    """A⁻¹ and the scaling c, of shape (..., 1, 1)."""
    xp = namespace(A)
    inverse = xp.linalg.inv(A)
    sizes = [xp.linalg.matrix_norm(x, keepdims=True) for x in (A, inverse)]
    return inverse, xp.sqrt(sizes[0] / sizes[1])


def _doubled(B: Array, inverse: Array, c: Array) -> Array:
    """[B/sqrt(c), sqrt(c) A⁻¹ B]/sqrt(2), with at most n columns."""
    xp = namespace(B)
    B = xp.concat([B / xp.sqrt(2.0 * c), xp.sqrt(0.5 * c) * (inverse @ B)], axis=-1)
    return B if B.shape[-1] <= B.shape[-2] else adjoint(triangular_factor(adjoint(B)))


def _newton(A: Array, inverse: Array, c: Array) -> tuple[Array, Array, Array]:
    """One step; whether it was the last of each, and of all: convergence squares what is left."""
    xp = namespace(A)
    following = 0.5 * (A / c + c * inverse)
    n = A.shape[-1]
    change, size = (xp.linalg.matrix_norm(x) for x in (following - A, following))
    settled = change <= (n * xp.finfo(A.dtype).eps) ** 0.5 * size
    return xp.all(settled | ~xp.isfinite(size)), settled, following


def _is_stable(limit: Array) -> Array:
    """Whether the limit is -I: its trace is the number of eigenvalues on the right less those on the left."""
    xp = namespace(limit)
    n = limit.shape[-1]
    trace = xp.sum(xp.real(xp.linalg.diagonal(limit)), axis=-1)
    return trace <= -n * (1.0 - 0.5 / n)


def _check(converged: Array, stable: Array) -> None:
    xp = namespace(converged)
    if not bool(xp.all(converged)):
        raise not_converged()
    if not bool(xp.all(stable)):
        raise UnstableSystemError(
            "`A` has an eigenvalue with a positive real part; expected Re λ < 0. Use BartelsStewart() "
            "for an equation whose A is not stable."
        )


def not_converged() -> NoConvergenceError:
    """The error for an iteration without end."""
    return NoConvergenceError(
        f"the matrix sign iteration did not converge in {_MOST_ITERATIONS} steps; expected no "
        "eigenvalue on the imaginary axis. Use Hammarling() or BartelsStewart()."
    )
