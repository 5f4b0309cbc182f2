"""Gramian factors of diagonal systems on any device: elimination of one state after the other.

The Gramian (G Gᴴ) ∘ K with K_ij = 1/(1 - λ_i conj λ_j), or -1/(λ_i + conj λ_j), is Cauchy-like: what
eliminating state p leaves is again of this form, with the generator

    G_i + (b_ip - 1) (G_i g) gᴴ,   g = G_pᴴ/‖G_p‖,   b_ip = (λ_i - λ_p) K_ip,

so that n pivots of largest remainder give a factor from (λ, G) without the matrix, in O(n² m). The host's
`equations.diagonal` does the same, and takes states and pairs in blocks. Here all steps have the same
shapes, for any leading axes: pivots are picked by masks, columns beyond the numerical rank are zero. Real
states go through the complex ones of [h; conj h], which have the poles [λ; conj λ].

Reference: Gohberg, Kailath and Olshevsky, Math. Comp. 64 (1995).
"""

from __future__ import annotations

from ssmreduce._array_libraries import (
    Array,
    State,
    collect_columns,
    conjugate,
    device_of,
    namespace,
)
from ssmreduce.time_domain import TimeDomain

_NEAR = 0.1
"""Differences of poles below this come from the logarithms, where they are known."""


def state_factor(
    eigenvalues: Array, log_eigenvalues: Array | None, G: Array, time: TimeDomain
) -> Array:
    """Return Z, shape (..., n, n), with Z Zᴴ = (G Gᴴ) ∘ K.

    Parameters
    ----------
    eigenvalues : (..., n) array
        λ, stable.
    log_eigenvalues : (..., n) array or None
        log λ, for 1 - λ_i conj λ_j near the unit circle.
    G : (..., n, m) array
        B, or Cᴴ together with conj λ; in the dtype of λ.
    time : Continuous or Discrete
        Time domain.
    """
    xp = namespace(eigenvalues)
    n = eigenvalues.shape[-1]
    logs = eigenvalues if log_eigenvalues is None else log_eigenvalues
    exact = log_eigenvalues is not None
    numbers = xp.arange(n, device=device_of(eigenvalues))
    gain = xp.real(_kernel(eigenvalues, logs, eigenvalues, logs, time, exact=exact))
    size = _row_norm(G) * xp.sqrt(gain)
    usable = size > 0.0
    scale = xp.where(usable, size, 1.0)
    floor = (n * xp.finfo(G.dtype).eps) ** 2

    def eliminated(state: State) -> tuple[State, Array]:
        G, active = state
        remainder = xp.where(active, _row_norm(G) ** 2 * gain, 0.0)
        pivot = xp.argmax(remainder, axis=-1, keepdims=True) == numbers
        left = xp.max(remainder, axis=-1, keepdims=True)
        counts = left > floor

        def picked(values: Array) -> Array:
            return xp.sum(xp.where(pivot, values, 0.0), axis=-1, keepdims=True)

        row = xp.sum(xp.where(pivot[..., None], G, 0.0), axis=-2, keepdims=True)
        norm = _row_norm(row)[..., None]
        direction = row / xp.where(norm > 0.0, norm, 1.0)
        projection = xp.sum(G * conjugate(direction), axis=-1)
        pole, log = picked(eigenvalues), picked(logs)
        kernel = _kernel(eigenvalues, logs, pole, log, time, exact=exact)
        column = projection * kernel / xp.sqrt(xp.where(counts, picked(gain), 1.0))
        column = xp.where(active & counts, scale * column, 0.0)
        blaschke = _gap(eigenvalues, logs, pole, log, exact=exact) * kernel
        G = G + ((blaschke - 1.0) * projection)[..., None] * direction
        return (G, active & ~pivot), column

    return collect_columns(eliminated, (G / scale[..., None], usable), n)


def real_state_factor(
    eigenvalues: Array, log_eigenvalues: Array | None, G: Array, time: TimeDomain
) -> Array:
    """Return complex Z, shape (..., 2n, 2n), with Z Zᴴ the (real) Gramian of the states [Re h; Im h]."""
    xp = namespace(eigenvalues)
    n = eigenvalues.shape[-1]

    def doubled(values: Array, axis: int) -> Array:
        return xp.concat([values, conjugate(values)], axis=axis)

    logs = None if log_eigenvalues is None else doubled(log_eigenvalues, -1)
    Z = state_factor(doubled(eigenvalues, -1), logs, doubled(G, -2), time)
    plain, mirrored = Z[..., :n, :], Z[..., n:, :]
    return xp.concat([plain + mirrored, -1j * (plain - mirrored)], axis=-2) / 2.0


def _kernel(
    first: Array, logs: Array, second: Array, other_logs: Array, time: TimeDomain, *, exact: bool
) -> Array:
    """1/(1 - λ conj μ), through the logarithms where `exact` and near; or -1/(λ + conj μ)."""
    logarithms = (logs, conjugate(other_logs)) if exact else None
    return 1.0 / time.divisor(first, conjugate(second), logarithms)


def _gap(first: Array, logs: Array, second: Array, other_logs: Array, *, exact: bool) -> Array:
    """λ - μ, as μ expm1(log λ - log μ) where `exact` and near."""
    gap = first - second
    if not exact:
        return gap
    xp = namespace(first)
    return xp.where(xp.abs(gap) < _NEAR, second * xp.expm1(logs - other_logs), gap)


def _row_norm(G: Array) -> Array:
    return namespace(G).linalg.vector_norm(G, axis=-1)
