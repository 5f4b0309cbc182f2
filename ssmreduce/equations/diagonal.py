"""Lyapunov equations with a diagonal state matrix: closed form, and a factor that never forms it.

The Gramian of (λ, G) solves P - Λ P Λᴴ = G Gᴴ (discrete) or Λ P + P Λᴴ + G Gᴴ = 0 (continuous):

    P_ij = (G Gᴴ)_ij K_ij,   K_ij = 1/(1 - λ_i conj λ_j)   or   K_ij = -1/(λ_i + conj λ_j).

A Cholesky factor of the *formed* P is accurate to sqrt(eps) only: its small columns are square
roots of differences. Here the differences are never taken. Eliminating a state from P leaves a
matrix of the same form whose generator is G times a unitary matrix and Blaschke factors
(λ_i - λ_p)/(1 - λ_i conj λ_p), all of modulus below one (generalised Schur algorithm). Each
row of the factor comes out with an error of eps times the norm of that row, however the states
are scaled, so Hankel singular values are right to eps σ₁. Cost O(n k (m + b)) for numerical rank k
and blocks of b states, in matrix products.

`state_factor` eliminates one state at a time. `diagonal_factor` treats the real system behind
a layer with real output, whose states come in pairs [Re h; Im h], in blocks of such pairs.

References: Kailath and Sayed, Displacement structure: theory and applications, SIAM Review 37
(1995); Gohberg, Kailath and Olshevsky, Math. Comp. 64 (1995), for pivoting.
"""

from __future__ import annotations

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import inverse_of_triangle
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.real_form import apply_real_state
from ssmreduce.time_domain import Discrete, TimeDomain

_PAIRS_PER_BLOCK = 32
"""States eliminated at once: large enough for matrix products, small enough to stay well conditioned."""

_ACCEPTED_PIVOT = 0.1
"""Smallest 1/‖row of L⁻¹‖² accepted in a block, L the Cholesky factor of its correlation matrix.

Within a block differences *are* taken; this bounds their amplification of eps by 10.
"""


_NEAR = 0.1
"""Differences of poles below this are taken from the logarithms, if they are known."""


def cauchy_kernels(
    eigenvalues: HostArray, log_eigenvalues: HostArray | None, time: TimeDomain
) -> tuple[HostArray, HostArray]:
    """Return 1/(1 - λ_i λ') or -1/(λ_i + λ') for λ' = conj λ_j and λ' = λ_j, each of shape (..., n, n).

    The first belongs to E[h hᴴ], the second to E[h hᵀ].
    """
    left, right = eigenvalues[..., :, None], eigenvalues[..., None, :]
    if log_eigenvalues is None:
        return 1.0 / time.divisor(left, right.conj()), 1.0 / time.divisor(left, right)
    first, second = log_eigenvalues[..., :, None], log_eigenvalues[..., None, :]
    return (
        1.0 / time.divisor(left, right.conj(), (first, second.conj())),
        1.0 / time.divisor(left, right, (first, second)),
    )


def horizon_kernels(
    eigenvalues: HostArray, log_eigenvalues: HostArray | None, steps: int
) -> tuple[HostArray, HostArray]:
    """Return Σ_{k<L} (λ_i λ_j')^k for λ_j' = conj λ_j and for λ_j, each of shape (n, n), for any λ.

    As expm1(L s)/expm1(s) with s = log(λ_i λ_j'), L where s is 0 and 1 where the product is 0; the imaginary
    part of s is taken between -π and π, since expm1 loses digits near 2πi. Entries may overflow to inf.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        logarithms = np.log(eigenvalues + 0j) if log_eigenvalues is None else log_eigenvalues
        kernels = []
        for other in (logarithms.conj(), logarithms):
            s = logarithms[:, None] + other
            s = s.real + 1j * (s.imag - 2 * np.pi * np.round(s.imag / (2 * np.pi)))
            ratio = np.expm1(steps * s) / np.expm1(s)
            ratio = np.where(s == 0.0, float(steps), ratio)
            kernels.append(np.where(s.real == -np.inf, 1.0, ratio))
    return kernels[0], kernels[1]


def state_factor(
    eigenvalues: HostArray,
    G: HostArray,
    kernel: HostArray,
    log_eigenvalues: HostArray | None = None,
) -> HostArray:
    """Return Z, shape (n, k), with Z Zᴴ = (G Gᴴ) ∘ K, one state at a time.

    Parameters
    ----------
    eigenvalues : (n,) array
        λ, stable for `kernel`'s time domain.
    G : (n, m) array
        Generator: B for controllability, Cᴴ (with conj λ) for observability.
    kernel : (n, n) array
        First result of `cauchy_kernels`.
    log_eigenvalues : (n,) array, optional
        log λ, from which differences of neighbouring poles are taken: next to the unit circle,
        at distance η, those of the stored poles have a relative error of eps/η.

    Returns
    -------
    (n, k) array
        Factor; k is the numerical rank.
    """
    n = eigenvalues.shape[0]
    gain = kernel.diagonal().real
    G = np.array(G, dtype=np.result_type(G, kernel))
    parts = np.stack([G.real, G.imag])
    # Standard deviation of each state; the largest entry goes first, against over- and underflow.
    largest = np.abs(parts).max(axis=(0, 2), initial=0.0)
    unit = parts / np.where(largest > 0, largest, 1.0)[:, None]
    scale = largest * np.sqrt(np.einsum("pim,pim->i", unit, unit) * gain)
    active = np.flatnonzero(scale)
    G = G[active] / scale[active, None]
    columns = []
    floor = (n * np.finfo(np.float64).eps) ** 2
    while active.size:
        parts = np.stack([G.real, G.imag])
        remaining = np.einsum("pim,pim->i", parts, parts) * gain[active]
        pivot = int(np.argmax(remaining))
        if remaining[pivot] <= floor:
            break
        direction = G[pivot] / np.linalg.norm(G[pivot])
        projection = G @ direction.conj()
        to_pivot = kernel[active, active[pivot]]
        column = np.zeros(n, dtype=G.dtype)
        column[active] = scale[active] * projection * to_pivot / np.sqrt(gain[active[pivot]])
        columns.append(column)
        blaschke = _gaps(eigenvalues, log_eigenvalues, active, active[pivot]) * to_pivot
        G += ((blaschke - 1.0) * projection)[:, None] * direction
        keep = np.arange(active.size) != pivot
        G, active = G[keep], active[keep]
    return np.stack(columns, axis=1) if columns else np.zeros((n, 0), dtype=G.dtype)


def _gaps(
    eigenvalues: HostArray, log_eigenvalues: HostArray | None, active: HostArray, pivot: int
) -> HostArray:
    """λ_i - λ_p over the active states, as λ_p expm1(log λ_i - log λ_p) where that is small."""
    gaps: HostArray = eigenvalues[active] - eigenvalues[pivot]
    if log_eigenvalues is not None:
        near = np.abs(gaps) < _NEAR
        logarithms = log_eigenvalues[active[near]] - log_eigenvalues[pivot]
        gaps[near] = eigenvalues[pivot] * np.expm1(logarithms)
    return gaps


def diagonal_factor(system: DiagonalStateSpace, kernels: tuple[HostArray, HostArray]) -> HostArray:
    """Return Z with Z Zᴴ the Gramian of a diagonal system: that of the real states where the output is real.

    With E₁ = E[h hᴴ] and E₂ = E[h hᵀ] that of [Re h; Im h] is
    ½ [[Re(E₁+E₂), Im(E₂-E₁)], [Im(E₁+E₂), Re(E₁-E₂)]].

    Parameters
    ----------
    system : DiagonalStateSpace
        On the host, stable, without batch axes. Its logarithms are used for pairs that are nearly one
        state; see `state_factor`.
    kernels : tuple of two (n, n) arrays
        From `cauchy_kernels`.

    Returns
    -------
    (n, k) or (2n, k) array
        Factor, real where the output is; k is about the numerical rank.
    """
    eigenvalues, G, logarithms = system.eigenvalues, system.B, system.log_eigenvalues
    if not system.real_output:
        return state_factor(eigenvalues, G, kernels[0], logarithms)
    (n, m), parts = G.shape, np.stack([G.real, G.imag])
    if m > 2 * n:
        # A generator with more columns than real rows is rotated into a square one: the same G Gᵀ.
        triangle = np.linalg.qr(adjoint(parts.reshape(2 * n, m)), mode="r")
        parts = adjoint(triangle).reshape(2, n, 2 * n)
    gain = kernels[0].diagonal().real
    # Standard deviation of each state; the largest entry goes first, against over- and underflow.
    largest = np.abs(parts).max(axis=(0, 2), initial=0.0)
    unit = parts / np.where(largest > 0, largest, 1.0)[:, None]
    scale = largest * np.sqrt(np.einsum("pim,pim->i", unit, unit) * gain)
    active = np.flatnonzero(scale)
    parts = parts[:, active] / scale[active, None]
    near_real = np.zeros(active.size, dtype=bool)
    floor = (n * np.finfo(np.float64).eps) ** 2
    blocks: list[tuple[HostArray, HostArray]] = []
    while True:
        remaining = np.einsum("pim,pim->i", parts, parts) * gain[active]
        alive = remaining > floor
        parts, active, near_real = parts[:, alive], active[alive], near_real[alive]
        remaining = np.where(near_real, 0.0, remaining[alive])
        chosen = np.flatnonzero(remaining)
        if not chosen.size:
            break
        if chosen.size > _PAIRS_PER_BLOCK:
            first = np.argpartition(-remaining[chosen], _PAIRS_PER_BLOCK)
            chosen = chosen[first[:_PAIRS_PER_BLOCK]]
        chosen = chosen[np.argsort(-remaining[chosen], kind="stable")]
        covariance = _pair_covariance(parts, chosen, kernels, active)
        accepted, L, inverse, refused = _well_conditioned_pairs(covariance[:, chosen])
        near_real[chosen[refused]] = True
        if accepted.size:
            pivots = chosen[accepted]
            block, parts = _eliminate_pairs(
                *(parts, covariance[..., accepted, :], pivots, L, inverse),
                *(eigenvalues[active], system.time),
            )
            blocks.append((active, block))
            left = np.ones(active.size, dtype=bool)
            left[pivots] = False
            active, near_real = active[left], near_real[left]
    if active.size:
        blocks.append((active, _near_real_factor(eigenvalues, logarithms, parts, kernels, active)))
    Z = np.zeros((2, n, sum(block.shape[-1] for _, block in blocks)))
    column = 0
    for rows, block in blocks:
        Z[:, rows, column : column + block.shape[-1]] = scale[rows, None] * block
        column += block.shape[-1]
    return Z.reshape(2 * n, Z.shape[-1])


def _pair_covariance(
    parts: HostArray,
    chosen: HostArray,
    kernels: tuple[HostArray, HostArray],
    active: HostArray,
) -> HostArray:
    """Covariance of all active real states with the chosen pairs, shape (2, rows, pairs, 2)."""
    _, rows, m = parts.shape
    products = np.inner(parts.reshape(2 * rows, m), parts[:, chosen].reshape(-1, m))
    products = 0.5 * products.reshape(2, rows, 2, chosen.size)
    pick = np.ix_(active, active[chosen])
    real, imag = products[0, :, 0], products[1, :, 1]
    cross, swapped = products[1, :, 0], products[0, :, 1]
    first, second = kernels[0][pick], kernels[1][pick]
    # Half of E[h hᴴ] and of E[h hᵀ]: complex products in real parts.
    a, b, c, d = real + imag, cross - swapped, first.real, first.imag
    hermitian, hermitian_imag = a * c - b * d, a * d + b * c
    a, b, c, d = real - imag, cross + swapped, second.real, second.imag
    symmetric, symmetric_imag = a * c - b * d, a * d + b * c
    covariance = np.empty((2, rows, chosen.size, 2))
    np.add(hermitian, symmetric, out=covariance[0, :, :, 0])
    np.subtract(symmetric_imag, hermitian_imag, out=covariance[0, :, :, 1])
    np.add(hermitian_imag, symmetric_imag, out=covariance[1, :, :, 0])
    np.subtract(hermitian, symmetric, out=covariance[1, :, :, 1])
    return covariance


def _well_conditioned_pairs(
    covariance: HostArray,
) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """Choose the pairs of a block that may be eliminated together.

    Returns the positions accepted, the Cholesky factor L of their covariance and its inverse, and
    the positions of pairs that are ill conditioned by themselves (both parts nearly proportional:
    a pole and input weights that are nearly real).
    """
    pairs = covariance.shape[1]
    matrix = np.swapaxes(covariance, 0, 1).reshape(2 * pairs, 2 * pairs)
    diagonal = matrix.diagonal().copy()
    first, second = diagonal[0::2], diagonal[1::2]
    coupling = matrix[np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2)]
    proper = first * second - coupling**2 > _ACCEPTED_PIVOT * np.maximum(first, second) ** 2
    accepted, refused = np.flatnonzero(proper), np.flatnonzero(~proper)
    while True:
        inside = (2 * accepted[:, None] + [0, 1]).ravel()
        unit = np.sqrt(diagonal[inside])
        correlation = matrix[np.ix_(inside, inside)] / np.outer(unit, unit)
        try:
            L = np.linalg.cholesky(correlation)
        except np.linalg.LinAlgError:
            accepted = accepted[: accepted.size // 2]
            continue
        inverse = inverse_of_triangle(L, lower=True)
        growth = np.einsum("ij,ij->i", inverse, inverse).reshape(-1, 2).max(axis=1)
        limit = np.flatnonzero(growth * _ACCEPTED_PIVOT >= 1.0)
        length = max(1, int(limit[0])) if limit.size else accepted.size
        width = 2 * length
        return (
            accepted[:length],
            unit[:width, None] * L[:width, :width],
            inverse[:width, :width] / unit[:width],
            refused,
        )


def _eliminate_pairs(
    parts: HostArray,
    covariance: HostArray,
    pivots: HostArray,
    L: HostArray,
    inverse: HostArray,
    eigenvalues: HostArray,
    time: TimeDomain,
) -> tuple[HostArray, HostArray]:
    """Return the factor columns of the pivot pairs and the generator of what remains.

    With S the pivots, L Lᵀ = P_SS and Z = P_:S L⁻ᵀ, the rows [g a] = L⁻¹[G_S, A_S L] are orthonormal;
    an orthogonal matrix that extends them takes [G, A Z] to [Z, G'] (discrete time). In continuous
    time G' = G - Z L⁻¹ G_S.
    """
    _, rows, m = parts.shape
    width = 2 * pivots.size
    Z = np.inner(covariance.reshape(2 * rows, width), inverse).reshape(2, rows, width)
    Z[:, pivots] = np.swapaxes(L.reshape(pivots.size, 2, width), 0, 1)
    rest = np.ones(rows, dtype=bool)
    rest[pivots] = False
    count = int(rest.sum())
    if not isinstance(time, Discrete):
        G, Z_rest = parts[:, rest].reshape(2 * count, m), Z[:, rest].reshape(2 * count, width)
        pivot_generator = np.swapaxes(parts[:, pivots], 0, 1).reshape(width, m)
        return Z, (G - Z_rest @ (inverse @ pivot_generator)).reshape(2, count, m)
    driven = apply_real_state(eigenvalues, Z.reshape(2 * rows, width)).reshape(2, rows, width)
    whole = np.concatenate([parts, driven], axis=2)
    moving = whole[:, rest].reshape(2 * count, m + width)
    known = inverse @ np.swapaxes(whole[:, pivots], 0, 1).reshape(width, m + width)
    # I - Vᵀ T V is the orthogonal factor of the QR decomposition of known rows, as columns.
    packed, tau = np.linalg.qr(adjoint(known), mode="raw")
    V = np.triu(packed, 1)
    np.fill_diagonal(V, 1.0)
    V, tau = V[tau != 0], tau[tau != 0]
    T = np.inner(V, V)
    np.fill_diagonal(T, 1.0 / tau)
    moved = np.inner(moving, V) @ inverse_of_triangle(np.triu(T)) @ V[:, width:]
    return Z, (moving[:, width:] - moved).reshape(2, count, m)


def _near_real_factor(
    eigenvalues: HostArray,
    log_eigenvalues: HostArray | None,
    parts: HostArray,
    kernels: tuple[HostArray, HostArray],
    active: HostArray,
) -> HostArray:
    """Factor of the pairs that are nearly one state, through the complex states [h; conj h]."""
    pick = np.ix_(active, active)
    kernel = np.block(
        [[kernels[0][pick], kernels[1][pick]], [kernels[1][pick].conj(), kernels[0][pick].conj()]]
    )
    G = parts[0] + 1j * parts[1]
    logarithms = None if log_eigenvalues is None else _with_conjugates(log_eigenvalues[active])
    Z = state_factor(_with_conjugates(eigenvalues[active]), _with_conjugates(G), kernel, logarithms)
    plain, conjugate = Z[: active.size], Z[active.size :]
    complex_parts = np.stack([plain + conjugate, -1j * (plain - conjugate)]) / 2.0
    return np.concatenate([complex_parts.real, complex_parts.imag], axis=-1)


def _with_conjugates(values: HostArray) -> HostArray:
    """Return [x; conj x]."""
    return np.concatenate([values, values.conj()])
