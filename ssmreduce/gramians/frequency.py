"""Frequency-limited Gramians: what a system stores and shows of the frequencies in a band.

    P_Ω = (1/2π) ∫_Ω (iω - A)⁻¹ B Bᴴ (iω - A)⁻ᴴ dω,  and with exp(iω) for iω in discrete time,

solves A P_Ω + P_Ω Aᴴ + S B Bᴴ + B Bᴴ Sᴴ = 0 with S = (1/2π) ∫_Ω (iω - A)⁻¹ dω, a logarithm of A. That
right-hand side is indefinite, so the equation yields P_Ω but no factor, and a factor of the formed
P_Ω has lost half its digits. The integral is a sum of squares: with Gauss-Legendre nodes ω_k and
weights w_k its factor is Z = [sqrt(w_k/2π) (iω_k - A)⁻¹ B], and nothing is ever subtracted.

Panels are halved until every pole lies outside the Bernstein ellipse on which 32 nodes leave eps² of
P_Ω, hence eps of its factor: accuracy follows from the poles and is not estimated. Near a
resonance nodes are counted from its frequency, or their rounding would move them by eps |ω| against
a width |Re λ|. Cost: a pole at distance δ from the axis takes about 64 log₂(width/δ) nodes, each
O(n m) for diagonal systems and O(n² m) for dense ones (after one Schur form).

Reference: Gawronski and Juang, Int. J. Systems Science 21 (1990).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.equations.smith import compress_columns
from ssmreduce.errors import NonFiniteError, OrderError, ShapeError, UnstableSystemError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_NODES = 32
"""Gauss-Legendre nodes q of a panel."""

_ELLIPSE = 3.2
"""Sum of half axes ρ of the pole-free ellipse around a panel; ρ^(-2q) = 5e-33 is below eps²."""

_WIDEST_ANGLE = 0.25 * np.pi
"""Width of a panel in discrete time, where exp(iω) grows off the circle however far the poles are."""

_SHARP = 1.0 / 16.0
"""A pole nearer to the axis than this share of its frequency is one that nodes are counted from."""

_OUTER = 2.0
"""Beyond this multiple of the largest pole the variable of integration is 1/ω."""

_WORKING_ENTRIES = 2**21
"""Numbers held at once while panels are checked against poles."""

Band = tuple[float, float]
Resolvent = Callable[["Nodes"], tuple[HostArray, HostArray]]


@dataclass(frozen=True, eq=False)
class Nodes:
    """Quadrature nodes: z_k - λ_j, and what off-diagonal entries of A are multiplied with.

    Attributes
    ----------
    distance : (K, n) array
        iω_k - λ_j, exp(iω_k) - λ_j, or i - u_k λ_j where u = 1/ω is the variable.
    scale : (K,) array
        Factor of A in the same expression: 1, 1 or u_k.
    root : (K,) array
        Square roots of the weights, over sqrt(2π).
    """

    distance: HostArray
    scale: HostArray
    root: HostArray


def frequency_limited_factors(
    system: System, band: tuple[float, float]
) -> tuple[HostArray, HostArray]:
    """Return Z and Y with P_Ω = Z Zᴴ = (1/2π) ∫_Ω (iω - A)⁻¹ B Bᴴ (iω - A)⁻ᴴ dω, and Q_Ω = Y Yᴴ.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable, without batch axes.
    band : tuple of two floats
        Lowest and highest frequency: rad/s in continuous time (inf is allowed), radians per
        sample, at most π, in discrete time. A system with real arrays or real output is limited to
        both ±[low, high], with low ≥ 0; a complex one to the band as it is written, which may be negative.

    Returns
    -------
    Z, Y : (n, k) arrays
        Factors with at most n columns; real for real systems; (2n, k) for a diagonal system with real output,
        whose states are [Re h; Im h].

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    OrderError
        If the band is empty, runs backwards, or leaves the frequencies that the system has.
    ShapeError, NonFiniteError
        If `band` is not two numbers, or the system has batch axes.

    Notes
    -----
    Each row of a factor has an error of a few n eps times its norm. Factoring the formed P_Ω by
    eigenvalues instead leaves sqrt(eps): all Hankel singular values below 1e-8 σ₁ would be noise,
    and those of a narrow band fall fast. A reduction that is balanced in a band has no error bound and
    may be unstable: of 90 truncations of random dense systems with 20 states to 2, 4 and 6, up to 21 in a
    narrow band were (diagonal systems then keep the nearest lower order that is stable).

    References
    ----------
    Gawronski and Juang, Model reduction in limited time and frequency intervals, Int. J. Systems
    Science 21 (1990).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.gramians.frequency import frequency_limited_factors
    >>> system = StateSpace([[-2.0]], [[1.0]], [[1.0]], time=Continuous())
    >>> Z, Y = frequency_limited_factors(system, (0.0, 3.0))
    >>> exact = np.arctan(3.0 / 2.0) / (2.0 * np.pi)  # (1/π) ∫₀³ dω/(ω² + 4)
    >>> bool(abs((Z @ Z.T)[0, 0] - exact) < 1e-15)
    True
    """
    check_system(system)
    if system.batch_shape:
        raise ShapeError(
            f"`system` has batch axes {system.batch_shape}; expected a single system. "
            "Index it first: system[0]."
        )
    low, high = check_band(system, band)
    host = system.to_host()
    if isinstance(host, StateSpace):
        resolvent, poles, logarithms = _dense_resolvent(host)
    else:
        resolvent, poles, logarithms = _diagonal_resolvent(host)
    _check_stable(host, poles, logarithms)
    if isinstance(host.time, Discrete):
        blocks = _circle_nodes(poles, logarithms, low, high)
    else:
        blocks = _axis_nodes(poles, low, high)
    real = is_real(system)
    Z, Y = (np.zeros((poles.size, 0)) for _ in range(2))
    for nodes in blocks:
        columns = resolvent(nodes)
        Z, Y = _appended(Z, columns[0], real=real), _appended(Y, columns[1], real=real)
    return Z, Y


def is_real(system: System) -> bool:
    """Tell whether the system maps real signals to real signals by its type."""
    if isinstance(system, DiagonalStateSpace):
        return system.real_output
    host = system.to_host()
    return not any(np.iscomplexobj(x) for x in (host.A, host.B, host.C))


def check_band(system: System, band: tuple[float, float]) -> Band:
    """Return `band` as two floats that are a band of `system`; see `frequency_limited_factors`."""
    try:
        low, high = (float(edge) for edge in band)
    except (TypeError, ValueError):
        raise ShapeError(
            f"`band` is {band!r}; expected two frequencies (low, high). Try band=(0.0, 1.0)."
        ) from None
    if np.isnan(low) or np.isnan(high):
        raise NonFiniteError(
            f"`band` is ({low}, {high}); expected numbers. Use inf for a band without an end."
        )
    if not low < high:
        raise OrderError(
            f"`band` is ({low}, {high}), which {'is empty' if low == high else 'runs backwards'}; "
            "expected low < high. Write the lower frequency first, and give the band a width."
        )
    real = is_real(system)
    limit = np.pi if isinstance(system.time, Discrete) else np.inf
    lowest = 0.0 if real else -limit
    if low < lowest or high > limit:
        unit = "radians per sample" if isinstance(system.time, Discrete) else "rad/s"
        mirrored = " The mirrored band is always included for a real system." if real else ""
        raise OrderError(
            f"`band` is ({low}, {high}); expected a band within [{lowest:.17g}, {limit:.17g}] {unit}."
            f"{mirrored} Multiply frequencies in Hz by 2π"
            f"{' dt' if isinstance(system.time, Discrete) else ''}."
        )
    return low, high


def _check_stable(system: System, poles: HostArray, logarithms: HostArray) -> None:
    discrete = isinstance(system.time, Discrete)
    decay = (logarithms if discrete else poles).real
    worst = int(np.argmax(decay))
    if decay[worst] >= 0:
        kind = f"|λ| = {abs(poles[worst]):.17g}" if discrete else f"Re λ = {decay[worst]:.6g}"
        raise UnstableSystemError(
            f"`system` has a pole with {kind}; expected {'|λ| < 1' if discrete else 'Re λ < 0'}. "
            "Split off the unstable part and reduce the rest."
        )


def _appended(Z: HostArray, columns: HostArray, *, real: bool) -> HostArray:
    """Z with new columns, compressed; for a real system the mirrored frequencies are added as well."""
    if real:
        columns = np.sqrt(2.0) * np.concatenate([columns.real, columns.imag], axis=1)
    return compress_columns(np.concatenate([Z, columns], axis=1))


def _diagonal_resolvent(host: DiagonalStateSpace) -> tuple[Resolvent, HostArray, HostArray]:
    """Columns of the factors at given nodes; the poles; their logarithms."""
    poles = host.eigenvalues.astype(np.complex128)
    logarithms = _logarithms(poles) if host.log_eigenvalues is None else host.log_eigenvalues
    B, C = host.B, adjoint(host.C)
    if host.real_output:
        # h and its mirror image answer with poles λ and conj λ; the real states are their mean
        # and their difference over 2i.
        poles = np.concatenate([poles, poles.conj()])
        logarithms = np.concatenate([logarithms, np.conj(logarithms)])
        B, C = (np.concatenate([G, G.conj()]) for G in (B, C))
    B, C = compress_columns(B), compress_columns(C)

    def resolvent(nodes: Nodes) -> tuple[HostArray, HostArray]:
        weights = nodes.root[:, None] / nodes.distance
        factors = []
        for G, weight in ((B, weights), (C, weights.conj())):
            columns = np.einsum("kn,nm->nkm", weight, G).reshape(len(G), -1)
            if host.real_output:
                plain, mirrored = np.split(columns, 2)
                columns = np.concatenate([plain + mirrored, -1j * (plain - mirrored)]) / 2.0
            factors.append(columns)
        return factors[0], factors[1]

    return resolvent, poles, logarithms


def _dense_resolvent(host: StateSpace) -> tuple[Resolvent, HostArray, HostArray]:
    """The same for a dense system, through its complex Schur form A = U T Uᴴ."""
    T, U = linalg.schur(host.A, output="complex")
    poles = T.diagonal().copy()
    B, C = (adjoint(U) @ compress_columns(G) for G in (host.B, adjoint(host.C)))
    shifted = np.asfortranarray(-T)
    diagonal = np.arange(len(T))

    def resolvent(nodes: Nodes) -> tuple[HostArray, HostArray]:
        factors = [np.empty((len(T), len(nodes.root), G.shape[1]), complex) for G in (B, C)]
        for k, (distance, scale, root) in enumerate(
            zip(nodes.distance, nodes.scale, nodes.root, strict=True)
        ):
            shifted[diagonal, diagonal] = distance / scale
            for factor, G, conjugated in zip(factors, (B, C), (0, 2), strict=True):
                columns, _ = linalg.lapack.ztrtrs(shifted, G, trans=conjugated)
                factor[:, k] = (root / scale) * columns
        Z, Y = (U @ factor.reshape(len(T), -1) for factor in factors)
        return Z, Y

    return resolvent, poles, _logarithms(poles)


def _logarithms(poles: HostArray) -> HostArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(poles))


def _axis_nodes(poles: HostArray, low: float, high: float) -> Iterator[Nodes]:
    """Nodes iω of a continuous system: ω itself up to twice the largest pole, u = 1/ω beyond."""
    outer = _OUTER * np.abs(poles).max()
    near = max(low, -outer), min(high, outer)
    if near[0] < near[1]:
        frequencies = poles.imag - 1j * poles.real
        for anchor, offset, weight in _panels(near, frequencies, np.inf):
            distance = 1j * ((anchor[:, None] - poles.imag) + offset[:, None]) - poles.real
            yield Nodes(distance, np.ones_like(weight), np.sqrt(weight / (2.0 * np.pi)))
    for start, end in ((low, min(high, -outer)), (max(low, outer), high)):
        if start < end:
            for anchor, offset, weight in _panels((1.0 / end, 1.0 / start), 1j / poles, np.inf):
                # dω = du/u² and (i/u - A)⁻¹ = u (i - u A)⁻¹: the powers of u cancel.
                u = anchor + offset
                distance = 1j - u[:, None] * poles
                yield Nodes(distance, u, np.sqrt(weight / (2.0 * np.pi)))


def _circle_nodes(
    poles: HostArray, logarithms: HostArray, low: float, high: float
) -> Iterator[Nodes]:
    """Nodes exp(iω) of a discrete system; poles repeat every 2π."""
    turn = 2.0 * np.pi
    angles = logarithms.imag - 1j * np.maximum(logarithms.real, -turn)
    images = np.concatenate([angles, angles - turn, angles + turn])
    # exp(iω) - λ = λ expm1(iω - log λ) keeps its digits near λ; a small λ has no such neighbourhood.
    outer = np.abs(poles) > 0.5
    for anchor, offset, weight in _panels((low, high), images, _WIDEST_ANGLE):
        distance = np.exp(1j * (anchor + offset))[:, None] - poles
        turned = anchor[:, None] - logarithms.imag[outer]
        turned = (turned - turn * np.round(turned / turn)) + offset[:, None]
        distance[:, outer] = poles[outer] * np.expm1(1j * turned - logarithms.real[outer])
        yield Nodes(distance, np.ones_like(weight), np.sqrt(weight / (2.0 * np.pi)))


def _panels(
    band: Band, poles: HostArray, widest: float
) -> Iterator[tuple[HostArray, HostArray, HostArray]]:
    """Gauss-Legendre nodes for integrands with `poles` in the plane of the variable of integration.

    Yields blocks of (anchor, offset, weight); a node is anchor + offset, and is known to more
    digits than that sum. Anchors are the edges of the band, zero, and the sharp poles within.
    """
    low, high = band
    height = np.abs(poles.imag)
    sharp = np.append(poles.real[height < _SHARP * np.abs(poles.real)], 0.0)
    points = np.unique(np.concatenate([[low, high], sharp[(sharp > low) & (sharp < high)]]))
    half = np.diff(points) / 2.0
    anchor = np.concatenate([points[:-1], points[1:]])
    left, right = np.concatenate([0.0 * half, -half]), np.concatenate([half, 0.0 * half])
    x, w = np.polynomial.legendre.leggauss(_NODES)
    length = max(1, _WORKING_ENTRIES // (_NODES * poles.size))
    ready: list[HostArray] = []
    pending = [np.stack([anchor, left, right], axis=1)]
    while pending:
        panels = pending.pop()
        if len(panels) > length:
            pending += [panels[length:]]
            panels = panels[:length]
        anchor, left, right = (panels[:, i] for i in range(3))
        away = poles.real - anchor[:, None]
        focal = np.hypot(away - left[:, None], height) + np.hypot(away - right[:, None], height)
        width = right - left
        done = focal.min(axis=1) >= 0.5 * width * (_ELLIPSE + 1.0 / _ELLIPSE)
        done &= width <= widest
        middle = left + 0.5 * width
        first, second = panels.copy(), panels.copy()
        first[:, 2] = second[:, 1] = middle
        halves = np.concatenate([first[~done], second[~done]])
        if len(halves):
            pending.append(halves)
        ready.append(panels[done])
        if sum(map(len, ready)) >= length or not pending:
            anchor, left, right = (np.concatenate(ready)[:, i, None] for i in range(3))
            ready = []
            radius = 0.5 * (right - left)
            offset = left + radius * (1.0 + x)
            yield (
                np.broadcast_to(anchor, offset.shape).ravel(),
                offset.ravel(),
                (radius * w).ravel(),
            )
