"""Gramian factors of a diagonal system with one input and one output, every entry a product.

The states answer an input with h_i = b_i f(λ_i), so both Gramians are a Cauchy matrix K between
diagonal ones, P = diag(b) K diag(b)ᴴ and Q = conj(diag(c) K diag(c)ᴴ). Eliminating state p from
K = Φ Φᴴ multiplies what is left by Blaschke factors, and column j of Φ is

    Φ_ij = Π_{p<j} (λ_i - λ_p) K_ip · K_ij / sqrt(K_jj),    K_ij = 1/(1 - λ_i conj λ_j)

(continuous: K_ij = -1/(λ_i + conj λ_j)): the orthonormal functions of Takenaka and Malmquist, at
the poles. No Schur complement is ever subtracted, so each entry has a relative error of O(n eps),
however small. With Z = diag(b) Φ and Y = conj(diag(c) Φ) the Hankel singular values are those of

    M = Yᴴ Z = Φᵀ diag(c b) Φ = D (Lᵀ S L) D,    S diagonal and unitary, D real and diagonal.

The largest pivot |c_i b_i| K_ii is eliminated first. L is then well conditioned, D holds the whole
range, and a Jacobi singular value decomposition keeps the relative accuracy of every value. Where
the output is real, a pole and its conjugate go together, with two real functions. If they nearly
coincide without being equal this L is ill conditioned, and they go one at a time, in complex numbers.

References: Demmel, SIAM J. Matrix Anal. Appl. 21 (2000); Haut and Beylkin, SIAM J. Matrix Anal.
Appl. 33 (2012); for the functions Ninness and Gustafsson, IEEE Trans. Automatic Control 42 (1997).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.diagonal import cauchy_kernels
from ssmreduce.errors import NoConvergenceError
from ssmreduce.time_domain import Discrete, TimeDomain

_SMALLEST_PIVOT = 1e-290
"""Pivots below this share of the first are left out: products of two columns underflow there."""

_NEAR_POLES = 0.1
"""Poles closer than this share of their modulus are subtracted through their logarithms, if known."""

_NEARLY_REAL = 0.03
"""Smallest |λ - conj λ| |K| of a pair eliminated at once.

Rounding grows by the square of its inverse at most, as measured: three digits of the fifteen.
"""


@dataclass(frozen=True, eq=False)
class CauchyFactors:
    """Gramian factors P = Z Zᴴ and Q = Y Yᴴ, M = Yᴴ Z, and its core.

    Directions that are not both reachable and observable may be left out. The core has the nonzero
    singular values of M, and entry ij of it an error of O(n eps) D_i D_j only (see the module). It is
    M itself unless poles are nearly real: then it is complex.
    """

    Z: HostArray
    Y: HostArray
    M: HostArray
    core: HostArray


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Distinct poles, the sum of the residues c_i b_i at each, and which pole each state has."""

    poles: HostArray
    logarithms: HostArray | None
    residues: HostArray
    of_state: HostArray
    mirrored: HostArray

    def rows(self, functions: HostArray) -> HostArray:
        """Functions at the pole of each state; real functions at a mirrored pole are conjugate."""
        values = functions[self.of_state]
        return np.where(self.mirrored[:, None], values.conj(), values)


@np.errstate(over="ignore", invalid="ignore")
def cauchy_factors(
    eigenvalues: HostArray,
    log_eigenvalues: HostArray | None,
    b: HostArray,
    c: HostArray,
    time: TimeDomain,
    *,
    real_output: bool,
) -> CauchyFactors:
    """Return Z, Y and M = Yᴴ Z = Φᵀ diag(c b) Φ of the system (diag(λ), b, c).

    Parameters
    ----------
    eigenvalues : (n,) array
        λ, stable for `time`; equal ones are allowed.
    log_eigenvalues : (n,) array or None
        log λ where known (discrete time).
    b, c : (n,) array
        Input and output weights; zeros are allowed.
    time : Continuous or Discrete
        Time domain.
    real_output : bool
        Whether the output is Re(c h): Z and Y are then real and belong to the states [Re h; Im h].

    Returns
    -------
    CauchyFactors
        Z and Y of shape (n, k), or (2n, k) with real output; M of shape (k, k).

    Raises
    ------
    NoConvergenceError
        If |c_i b_i| K_ii overflows.

    Notes
    -----
    Cost O(n² k). Close poles cost nothing: their difference is exact. Digits go where a stored λ is
    near the unit circle (pass the logarithms), where residues at one pole cancel, and where those of
    different poles nearly cancel in M. Half a unit in the last place of the data does the same harm.
    """
    if real_output and np.any(nearly_real(eigenvalues, log_eigenvalues, time)):
        return _factors_of_pairs(eigenvalues, log_eigenvalues, b, c, time)
    nodes = _distinct(eigenvalues, log_eigenvalues, c * b, mirror=real_output)
    functions = _real_functions(nodes, time) if real_output else _functions(nodes, time)
    core = _core(functions, nodes.residues)
    rows = nodes.rows(functions)
    Z, Y = b[:, None] * rows, (c[:, None] * rows).conj()
    if not real_output:
        return CauchyFactors(Z, Y, core, core)
    Z, Y, core = np.concatenate([Z.real, Z.imag]), np.concatenate([Y.real, Y.imag]), core.real
    return CauchyFactors(Z, Y, core, core)


def nearly_real(
    eigenvalues: HostArray, log_eigenvalues: HostArray | None, time: TimeDomain
) -> HostArray:
    """Which poles nearly coincide with their conjugates without being equal, shape (n,)."""
    _, kernel = cauchy_kernels(eigenvalues, log_eigenvalues, time)
    distance = 2.0 * np.abs(eigenvalues.imag * kernel.diagonal())
    near: HostArray = (eigenvalues.imag != 0) & (distance < _NEARLY_REAL)
    return near


def _factors_of_pairs(
    eigenvalues: HostArray,
    logarithms: HostArray | None,
    b: HostArray,
    c: HostArray,
    time: TimeDomain,
) -> CauchyFactors:
    """Factors of the system Re(c h) from the complex states [h; conj h], eliminated one at a time."""
    n = eigenvalues.size

    def twice(values: HostArray) -> HostArray:
        return np.concatenate([values, values.conj()])

    nodes = _distinct(
        twice(eigenvalues),
        None if logarithms is None else twice(logarithms),
        twice(c * b) / 2.0,
        mirror=False,
    )
    functions = _functions(nodes, time)
    rows = nodes.rows(functions)
    Z = _real_factor(b[:, None] * rows[:n], b.conj()[:, None] * rows[n:])
    Y = _real_factor(c.conj()[:, None] * rows[:n].conj(), c[:, None] * rows[n:].conj())
    return CauchyFactors(Z, Y, adjoint(Y) @ Z, _core(functions, nodes.residues))


def _distinct(
    eigenvalues: HostArray, logarithms: HostArray | None, residues: HostArray, *, mirror: bool
) -> _Nodes:
    """Merge states with equal poles; with `mirror` also those with conjugate ones."""
    mirrored = np.zeros(eigenvalues.size, dtype=bool)
    if mirror:
        mirrored = eigenvalues.imag < 0
        eigenvalues = np.where(mirrored, eigenvalues.conj(), eigenvalues)
        residues = np.where(mirrored, residues.conj(), residues)
        residues = np.where(eigenvalues.imag == 0, residues.real, residues)
        if logarithms is not None:
            logarithms = np.where(mirrored, logarithms.conj(), logarithms)
    keys = eigenvalues if logarithms is None else logarithms
    _, first, of_state = np.unique(keys, return_index=True, return_inverse=True)
    merged = np.zeros(first.size, dtype=residues.dtype)
    np.add.at(merged, of_state, residues)
    return _Nodes(
        eigenvalues[first],
        None if logarithms is None else logarithms[first],
        merged,
        of_state,
        mirrored,
    )


def _functions(nodes: _Nodes, time: TimeDomain) -> HostArray:
    """Orthonormal functions at the nodes, one for each pole with a residue."""
    kernel, _ = cauchy_kernels(nodes.poles, nodes.logarithms, time)
    gain = kernel.diagonal().real
    blaschke = _differences(nodes, conjugate=False) * kernel
    columns = [
        g * kernel[:, pivot] / np.sqrt(gain[pivot])
        for pivot, g in _eliminate(blaschke, np.abs(nodes.residues) * gain)
    ]
    return _stack(columns, kernel)


def _real_functions(nodes: _Nodes, time: TimeDomain) -> HostArray:
    """Orthonormal functions with f(conj λ) = conj f(λ), one for a real pole and two for a pair.

    Those of the pair (p, conj p), with K = K(λ, p) K(λ, conj p), are the sum and the difference of its
    two functions of Takenaka and Malmquist, up to phases:
    |1-p| (1+λ) K / sqrt(2 K_pp) and |1+p| (1-λ) K / sqrt(2 K_pp) in discrete time,
    λ K sqrt(2/K_pp) and |p| K sqrt(2/K_pp) in continuous time.
    """
    kernel, conjugate_kernel = cauchy_kernels(nodes.poles, nodes.logarithms, time)
    gain = kernel.diagonal().real
    real = nodes.poles.imag == 0
    blaschke = _differences(nodes, conjugate=False) * kernel
    pair_blaschke = _differences(nodes, conjugate=True) * conjugate_kernel
    blaschke *= np.where(real, 1.0, pair_blaschke)
    even, odd = _numerators(nodes, time)
    columns = []
    for pivot, g in _eliminate(blaschke, np.abs(nodes.residues) * gain):
        g = g * kernel[:, pivot] / np.sqrt(gain[pivot])
        if real[pivot]:
            columns.append(g)
            continue
        g *= conjugate_kernel[:, pivot]
        columns += [np.abs(odd[pivot]) * even * g, np.abs(even[pivot]) * odd * g]
    return _stack(columns, kernel)


def _eliminate(blaschke: HostArray, energy: HostArray) -> Iterator[tuple[int, HostArray]]:
    """Yield pivots, the largest remaining energy |g_i|² energy_i first, and g before each.

    g is the product of the Blaschke factors of all earlier pivots. It is exactly zero at those.
    """
    if not np.all(np.isfinite(energy)):
        raise NoConvergenceError(
            "a product of `B`, `C` and Gramian entries overflows; expected Hankel singular values "
            "within the range of double precision. Scale `B` or `C`."
        )
    g = np.ones(energy.size, dtype=blaschke.dtype)
    floor = _SMALLEST_PIVOT * energy.max(initial=0.0)
    for _ in range(energy.size):
        remaining = (g.real**2 + g.imag**2) * energy
        pivot = int(np.argmax(remaining))
        if remaining[pivot] <= floor:
            return
        yield pivot, g
        g = g * blaschke[:, pivot]


def _differences(nodes: _Nodes, *, conjugate: bool) -> HostArray:
    """λ_i - λ_j or λ_i - conj λ_j; as λ_j expm1(log λ_i - log λ_j) where close and logarithms known."""
    others, logarithms = nodes.poles, nodes.logarithms
    if conjugate:
        others = others.conj()
    differences = nodes.poles[:, None] - others
    if nodes.logarithms is not None and logarithms is not None:
        if conjugate:
            logarithms = logarithms.conj()
        i, j = np.nonzero(np.abs(differences) < _NEAR_POLES * np.abs(others))
        differences[i, j] = others[j] * np.expm1(nodes.logarithms[i] - logarithms[j])
    return differences


def _numerators(nodes: _Nodes, time: TimeDomain) -> tuple[HostArray, HostArray]:
    """Numerators of the two real functions of a pair: 1 + λ and 1 - λ, or λ and 1."""
    if not isinstance(time, Discrete):
        return nodes.poles, np.full_like(nodes.poles, np.sqrt(2.0))
    if nodes.logarithms is None:
        return 1.0 + nodes.poles, (1.0 - nodes.poles) / np.sqrt(2.0)
    decay, phase = nodes.logarithms.real, nodes.logarithms.imag
    # 1 + λ without cancellation where λ is close to -1; both real terms are positive there.
    even = 2.0 * np.cos(phase / 2.0) ** 2 + np.cos(phase) * np.expm1(decay)
    return even + 1j * nodes.poles.imag, -np.expm1(nodes.logarithms) / np.sqrt(2.0)


def _core(functions: HostArray, residues: HostArray) -> HostArray:
    """Φᵀ diag(r) Φ, each entry to rounding errors of the size of its row and column scales."""
    size = np.abs(residues)
    largest = size.max(initial=0.0)
    if largest == 0.0:
        return np.zeros((0, 0), dtype=functions.dtype)
    scaled = np.sqrt(size / largest)[:, None] * functions
    phases = residues / np.where(size > 0, size, 1.0)
    core: HostArray = largest * (adjoint(scaled.conj()) @ (phases[:, None] * scaled))
    return core


def _stack(columns: list[HostArray], like: HostArray) -> HostArray:
    return np.stack(columns, axis=1) if columns else np.zeros((len(like), 0), dtype=like.dtype)


def _real_factor(plain: HostArray, conjugate: HostArray) -> HostArray:
    """Real factor of the covariance of [Re h; Im h] from complex factors of h and conj h.

    That covariance is real, so that [Re Z, Im Z] is a factor of it as well as the complex Z. The
    triangular one of its QR decomposition has no more columns than rows, and keeps each row to eps.
    """
    Z = np.concatenate([plain + conjugate, -1j * (plain - conjugate)]) / 2.0
    parts = np.concatenate([Z.real, Z.imag], axis=1)
    return np.asarray(adjoint(np.linalg.qr(adjoint(parts), mode="r")))
