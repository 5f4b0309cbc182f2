"""Gramian factors of a diagonal system with one input and one output, every entry a product.

The states answer an input with h_i = b_i f(λ_i), so both Gramians are a Cauchy matrix K between
diagonal ones, P = diag(b) K diag(b)ᴴ and Q = conj(diag(c) K diag(c)ᴴ). Eliminating state p from
K = Φ Φᴴ multiplies what is left by Blaschke factors, and column j of Φ is

    Φ_ij = Π_{p<j} (λ_i - λ_p) K_ip · K_ij / sqrt(K_jj),    K_ij = 1/(1 - λ_i conj λ_j)

(continuous: K_ij = -1/(λ_i + conj λ_j)): the orthonormal functions of Takenaka and Malmquist, at
the poles. No Schur complement is ever subtracted, so each entry has a relative error of O(n eps),
however small. With Z = diag(b) Φ and Y = conj(diag(c) Φ) the Hankel singular values are those of

    M = Yᴴ Z = Φᵀ diag(c b) Φ.

The largest pivot |c_i b_i| K_ii is eliminated first. Where the output is real, a pole and its
conjugate go together, with two real functions, and M is real and symmetric.

The systems along the leading axis share the loop over pivots, each with its own.

References: Demmel, SIAM J. Matrix Anal. Appl. 21 (2000); Haut and Beylkin, SIAM J. Matrix Anal.
Appl. 33 (2012); for the functions Ninness and Gustafsson, IEEE Trans. Automatic Control 42 (1997).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce.equations.diagonal import cauchy_kernels
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain

_SMALLEST_PIVOT = 1e-290
"""Pivots below this share of the first are left out: products of two columns underflow there."""

_NEAR_POLES = 0.1
"""Poles closer than this share of their modulus are subtracted through their logarithms, if known."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """Poles, their logarithms, and residues c_i b_i: of equal poles the first one has the sum.

    `mirrored` poles have been replaced by their conjugates.
    """

    poles: HostArray
    logarithms: HostArray | None
    residues: HostArray
    mirrored: HostArray


@np.errstate(over="ignore", invalid="ignore")
def cauchy_factors(
    eigenvalues: HostArray,
    log_eigenvalues: HostArray | None,
    b: HostArray,
    c: HostArray,
    time: TimeDomain,
    *,
    real_output: bool,
) -> tuple[HostArray, HostArray]:
    """Return Z and Y, P = Z Zᴴ and Q = Y Yᴴ, of the systems (diag(λ), b, c).

    Parameters
    ----------
    eigenvalues : (k, n) array
        λ, stable for `time`; equal ones are allowed.
    log_eigenvalues : (k, n) array or None
        log λ where known (discrete time).
    b, c : (k, n) array
        Input and output weights; zeros are allowed.
    time : Continuous or Discrete
        Time domain.
    real_output : bool
        Whether the output is Re(c h): Z and Y are then real and belong to the states [Re h; Im h].

    Returns
    -------
    tuple of two arrays
        Z and Y, each of shape (k, n, r), or (k, 2n, r) with real output. Directions that are not both
        reachable and observable may be left out.

    Raises
    ------
    NoConvergenceError
        If |c_i b_i| K_ii overflows.

    Notes
    -----
    Cost O(n² r). Close poles cost nothing: their difference is exact. Digits go where a stored λ is
    near the unit circle (pass the logarithms), and where residues at one pole cancel.
    """
    functions, nodes = orthonormal_functions(
        eigenvalues, log_eigenvalues, _shares(c) * _shares(b), time, real=real_output
    )
    if np.any(nodes.mirrored):
        functions = np.where(nodes.mirrored[..., None, :], functions.conj(), functions)
    Z, Y = b[..., None, :] * functions, c[..., None, :] * functions
    if real_output:
        Z = np.concatenate([Z.real, Z.imag], axis=-1)
        Y = np.concatenate([Y.real, -Y.imag], axis=-1)
    return Z.swapaxes(-1, -2), adjoint(Y)


def _shares(weights: HostArray) -> HostArray:
    """Weights over the largest of each system: products choose pivots only, and must not underflow."""
    largest = np.abs(weights).max(axis=-1, keepdims=True, initial=0.0)
    return np.asarray(weights / np.where(largest > 0.0, largest, 1.0))


def orthonormal_functions(
    eigenvalues: HostArray,
    logarithms: HostArray | None,
    residues: HostArray,
    time: TimeDomain,
    *,
    real: bool,
) -> tuple[HostArray, Nodes]:
    """Columns of Φ in rows, shape (k, r, n), and the nodes at which they are taken.

    `real`: those with f(conj λ) = conj f(λ), which need poles that are real or far from it.
    """
    nodes = _nodes(eigenvalues, logarithms, residues, mirror=real)
    functions = _real_functions(nodes, time) if real else _functions(nodes, time)
    used = np.any(functions, axis=(0, 2))
    return functions if np.all(used) else functions[:, used], nodes


def _nodes(
    eigenvalues: HostArray, logarithms: HostArray | None, residues: HostArray, *, mirror: bool
) -> Nodes:
    """Gather the residues of states with equal poles; with `mirror` also of those with conjugate ones."""
    mirrored = np.zeros(eigenvalues.shape, dtype=bool)
    if mirror:
        mirrored = eigenvalues.imag < 0
        eigenvalues = np.where(mirrored, eigenvalues.conj(), eigenvalues)
        residues = np.where(mirrored, residues.conj(), residues)
        residues = np.where(eigenvalues.imag == 0, residues.real, residues)
        if logarithms is not None:
            logarithms = np.where(mirrored, logarithms.conj(), logarithms)
    keys = eigenvalues if logarithms is None else logarithms
    ordered = np.sort(keys, axis=-1)
    if np.any(ordered[..., 1:] == ordered[..., :-1]):
        same = keys[..., :, None] == keys[..., None, :]
        is_first = np.argmax(same, axis=-1) == np.arange(keys.shape[-1])
        sums = np.sum(np.where(same, residues[..., None, :], 0.0), axis=-1)
        residues = np.where(is_first, sums, 0.0)
    return Nodes(eigenvalues, logarithms, residues, mirrored)


def _functions(nodes: Nodes, time: TimeDomain) -> HostArray:
    """Orthonormal functions in rows, one for each pole with a residue; zeros where there are fewer."""
    kernel, _ = cauchy_kernels(nodes.poles, nodes.logarithms, time)
    gain = kernel.diagonal(axis1=1, axis2=2).real
    blaschke = _differences(nodes, conjugate=False) * kernel
    at, products = _eliminate(blaschke, np.abs(nodes.residues) * gain)
    products *= kernel[at].conj() / np.sqrt(gain[at])[..., None]
    return products


def _real_functions(nodes: Nodes, time: TimeDomain) -> HostArray:
    """Orthonormal functions with f(conj λ) = conj f(λ) in rows, one for a real pole and two for a pair.

    Those of the pair (p, conj p), with K = K(λ, p) K(λ, conj p), are the sum and the difference of its
    two functions of Takenaka and Malmquist, up to phases:
    |1-p| (1+λ) K / sqrt(2 K_pp) and |1+p| (1-λ) K / sqrt(2 K_pp) in discrete time,
    λ K sqrt(2/K_pp) and |p| K sqrt(2/K_pp) in continuous time.
    """
    kernel, conjugate_kernel = cauchy_kernels(nodes.poles, nodes.logarithms, time)
    gain = kernel.diagonal(axis1=1, axis2=2).real
    real = nodes.poles.imag == 0
    blaschke = _differences(nodes, conjugate=False) * kernel
    pair_blaschke = _differences(nodes, conjugate=True) * conjugate_kernel
    blaschke *= np.where(real[:, None], 1.0, pair_blaschke)
    at, products = _eliminate(blaschke, np.abs(nodes.residues) * gain)
    products *= kernel[at].conj()
    pairs = products * conjugate_kernel[at]
    even, odd = _numerators(nodes, time)
    functions = np.stack([pairs * even[:, None], pairs * odd[:, None]], axis=2)
    sizes = np.abs(np.stack([odd[at], even[at]], axis=2))
    single = real[at]
    functions[single, 0], functions[single, 1], sizes[single, 0] = products[single], 0.0, 1.0
    functions *= (sizes / np.sqrt(gain[at])[..., None])[..., None]
    return functions.reshape(len(real), -1, real.shape[1])


def _eliminate(
    blaschke: HostArray, energy: HostArray
) -> tuple[tuple[HostArray, HostArray], HostArray]:
    """Where the pivots are, those of the largest remaining energy |g_i|² energy_i first, and g before each.

    g, shape (n,), is the product of the Blaschke factors of all earlier pivots. It is exactly zero at
    those, and everywhere where a system has no pivot left.
    """
    if not np.all(np.isfinite(energy)):
        raise NoConvergenceError(
            "a product of `B`, `C` and Gramian entries overflows; expected Hankel singular values "
            "within the range of double precision. Scale `B` or `C`."
        )
    count, n = energy.shape
    largest = energy.max(axis=1, initial=0.0)[:, None]
    share = energy / np.where(largest > 0.0, largest, 1.0)
    systems = np.arange(count)
    g = np.ones(energy.shape, dtype=blaschke.dtype)
    products = np.zeros((n, count, n), dtype=g.dtype)
    pivots, heights = np.zeros((n, count), dtype=np.intp), np.zeros((n, count))
    for step in range(n):
        remaining = np.abs(g)
        remaining *= remaining
        remaining *= share
        pivot = remaining.argmax(axis=1)
        height = remaining[systems, pivot]
        if height.max() <= _SMALLEST_PIVOT:
            break
        pivots[step], heights[step], products[step] = pivot, height, g
        g = g * blaschke[systems, :, pivot]
    alive = np.logical_and.accumulate(heights > _SMALLEST_PIVOT)
    steps = int(np.sum(alive.any(axis=1)))
    products[~alive] = 0.0
    at = systems[:, None], pivots[:steps].swapaxes(0, 1)
    return at, products[:steps].swapaxes(0, 1).copy()


def _differences(nodes: Nodes, *, conjugate: bool) -> HostArray:
    """λ_i - λ_j or λ_i - conj λ_j; as λ_j expm1(log λ_i - log λ_j) where close and logarithms known."""
    others, logarithms = nodes.poles[..., None, :], nodes.logarithms
    if conjugate:
        others = others.conj()
    differences = nodes.poles[..., :, None] - others
    if nodes.logarithms is not None and logarithms is not None:
        if conjugate:
            logarithms = logarithms.conj()
        near = np.abs(differences) < _NEAR_POLES * np.abs(others)
        gaps = (nodes.logarithms[..., :, None] - logarithms[..., None, :])[near]
        differences[near] = np.broadcast_to(others, differences.shape)[near] * np.expm1(gaps)
    return differences


def _numerators(nodes: Nodes, time: TimeDomain) -> tuple[HostArray, HostArray]:
    """Numerators of the two real functions of a pair: 1 + λ and 1 - λ, or λ and 1."""
    if not isinstance(time, Discrete):
        return nodes.poles, np.full_like(nodes.poles, np.sqrt(2.0))
    if nodes.logarithms is None:
        return 1.0 + nodes.poles, (1.0 - nodes.poles) / np.sqrt(2.0)
    decay, phase = nodes.logarithms.real, nodes.logarithms.imag
    # 1 + λ without cancellation where λ is close to -1; both real terms are positive there.
    even = 2.0 * np.cos(phase / 2.0) ** 2 + np.cos(phase) * np.expm1(decay)
    return even + 1j * nodes.poles.imag, -np.expm1(nodes.logarithms) / np.sqrt(2.0)
