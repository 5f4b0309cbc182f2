"""Quadrature of a resolvent: points and weights with which a sum of squares is its integral, to eps.

On a panel q Gauss-Legendre nodes miss ρ^(-2q) of an integrand without poles inside the ellipse around
the panel with foci at its ends and sum of half axes ρ (of half its width). Panels are halved until all
poles lie outside, so that accuracy follows from the poles and is not estimated. It is asked to be
eps², not eps: a direction in which P_Ω is eps² small has its square root, eps, in the factor.

Near a resonance at distance δ from the axis nodes must be right to eps δ, not to eps |ω|. They are
therefore counted from the frequency of the resonance, and z - λ is formed from the difference.

Reference: Trefethen, Is Gauss quadrature better than Clenshaw-Curtis?, SIAM Review 50 (2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssmreduce._array_libraries import HostArray

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

    def blocks(self, length: int) -> Iterator[Nodes]:
        """The same nodes, at most `length` at a time."""
        for i in range(0, len(self.root), length):
            at = slice(i, i + length)
            yield Nodes(self.distance[at], self.scale[at], self.root[at])


def axis_nodes(poles: HostArray, low: float, high: float) -> Iterator[Nodes]:
    """Nodes iω of a continuous system: ω itself up to twice the largest pole, u = 1/ω beyond."""
    outer = float(_OUTER * np.abs(poles).max())
    # A band that is narrow beyond `outer` would lose its width in 1/ω; it needs few nodes as it is.
    upper, lower = max(low, outer), min(high, -outer)
    upper = upper if high > _OUTER * upper else high
    lower = lower if low < _OUTER * lower else low
    near = max(low, lower), min(high, upper)
    if near[0] < near[1]:
        frequencies = poles.imag - 1j * poles.real
        for anchor, offset, weight in _panels(near, frequencies, np.inf):
            distance = 1j * ((anchor[:, None] - poles.imag) + offset[:, None]) - poles.real
            yield Nodes(distance, np.ones_like(weight), np.sqrt(weight / (2.0 * np.pi)))
    for start, end in ((low, lower), (upper, high)):
        if start < end:
            for anchor, offset, weight in _panels((1.0 / end, 1.0 / start), 1j / poles, np.inf):
                # dω = du/u² and (i/u - A)⁻¹ = u (i - u A)⁻¹: the powers of u cancel.
                u = anchor + offset
                distance = 1j - u[:, None] * poles
                yield Nodes(distance, u, np.sqrt(weight / (2.0 * np.pi)))


def circle_nodes(
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
    band: tuple[float, float], poles: HostArray, widest: float
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
