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

import math

import array_api_compat

from ssmreduce._namespace import Array
from ssmreduce.errors import NoConvergenceError, UnstableSystemError

_MOST_ITERATIONS = 60
"""Scaled Newton takes log2 of the spread of the spectrum, and a few more."""


def sign_solution(A: Array, Q: Array) -> tuple[Array, int]:
    """Return X with A X + X Aᴴ + Q = 0 for a stable A, and the number of iterations."""
    xp = array_api_compat.array_namespace(A, Q)
    for iteration in range(1, _MOST_ITERATIONS + 1):
        inverse = xp.linalg.inv(A)
        c = _scaling(xp, A, inverse)
        Q = 0.5 * (Q / c + c * (inverse @ Q @ _adjoint(xp, inverse)))
        A, done = _newton(xp, A, inverse, c)
        if done:
            return 0.5 * Q, iteration
    raise _not_converged()


def sign_factor(A: Array, B: Array) -> tuple[Array, int]:
    """Return Z with A Z Zᴴ + Z Zᴴ Aᴴ + B Bᴴ = 0 for a stable A, and the number of iterations."""
    xp = array_api_compat.array_namespace(A, B)
    n = A.shape[-1]
    for iteration in range(1, _MOST_ITERATIONS + 1):
        inverse = xp.linalg.inv(A)
        c = _scaling(xp, A, inverse)
        B = xp.concat([B / (2.0 * c) ** 0.5, (0.5 * c) ** 0.5 * (inverse @ B)], axis=-1)
        if B.shape[-1] > n:
            _, triangle = xp.linalg.qr(_adjoint(xp, B), mode="reduced")
            B = _adjoint(xp, triangle)
        A, done = _newton(xp, A, inverse, c)
        if done:
            return B / 2.0**0.5, iteration
    raise _not_converged()


def _scaling(xp: Array, A: Array, inverse: Array) -> float:
    return math.sqrt(float(xp.linalg.matrix_norm(A)) / float(xp.linalg.matrix_norm(inverse)))


def _newton(xp: Array, A: Array, inverse: Array, c: float) -> tuple[Array, bool]:
    """One step, and whether it was the last: quadratic convergence squares what is left."""
    following = 0.5 * (A / c + c * inverse)
    n = A.shape[-1]
    change = float(xp.linalg.matrix_norm(following - A))
    size = float(xp.linalg.matrix_norm(following))
    done = change <= (n * float(xp.finfo(A.dtype).eps)) ** 0.5 * size
    if done and float(xp.sum(xp.real(xp.linalg.diagonal(following)))) > -n * (1.0 - 0.5 / n):
        raise UnstableSystemError(
            "`A` has an eigenvalue with a positive real part; expected Re λ < 0. Use BartelsStewart() "
            "for an equation whose A is not stable."
        )
    return following, done


def _adjoint(xp: Array, matrix: Array) -> Array:
    swapped = xp.moveaxis(matrix, -1, -2)
    return xp.conj(swapped) if xp.isdtype(matrix.dtype, "complex floating") else swapped


def _not_converged() -> NoConvergenceError:
    return NoConvergenceError(
        f"the matrix sign iteration did not converge in {_MOST_ITERATIONS} steps; expected no "
        "eigenvalue on the imaginary axis. Use Hammarling() or BartelsStewart()."
    )
