"""Cut a batch of balanced channels together: diagonal systems with one input and one output.

Channels that keep the same real order share projections, eigenvectors and write-back, in stacked arrays.
The steps are those of `ssmreduce.reduction.balanced_diagonal` for a single system, which takes over where
eigenvectors are not safe, the rank is zero, or a bound is missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import NUMPY
from ssmreduce._workers import map_workers
from ssmreduce.equations.dense import DenseFactors
from ssmreduce.errors import UnreachableToleranceError
from ssmreduce.gramians.batch import chunks
from ssmreduce.hankel import BalancedFactors, tail_bounds
from ssmreduce.reduction.balanced_diagonal import (
    BalancedDiagonal,
    Target,
    stored_system,
)
from ssmreduce.reduction.balanced_system import SAFE_SHARE
from ssmreduce.reduction.order import ErrorBound, OrderRule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace
from ssmreduce.systems.transform import SlotMap, diagonalise_each

_EPS = float(np.finfo(np.float64).eps)


def truncate_channels(
    balanced: Sequence[BalancedDiagonal], rules: Sequence[OrderRule]
) -> list[Reduction | None]:
    """Truncate the systems of a batch; None for those that have to be cut alone."""
    results: list[Reduction | None] = [None] * len(balanced)
    alike: defaultdict[tuple[object, ...], list[tuple[int, Target]]] = defaultdict(list)
    for k, (part, rule) in enumerate(zip(balanced, rules, strict=True)):
        target = part.target(rule) if part.rank else None
        if target is not None and part.factors is not None:
            widths = part.factors.factors.Z.shape, part.factors.factors.Y.shape
            key = target.order, target.limit, widths
            alike[key].append((k, target))
    order = balanced[0].original.order
    tasks = [chunk for members in alike.values() for chunk in chunks(members, order)]

    def cut(members: list[tuple[int, Target]]) -> None:
        parts = [balanced[k] for k, _ in members]
        for at, real_order, reduced, projections, slot_map in _truncated(parts, members[0][1]):
            (k, target), part = members[at], parts[at]
            rule = rules[k]
            try:
                if isinstance(rule, ErrorBound):
                    part.check_bound(rule, real_order)
            except UnreachableToleranceError:
                continue
            results[k] = part.report(reduced, real_order, target.wanted, projections, slot_map)

    map_workers(cut, tasks)
    return results


def _truncated(
    parts: Sequence[BalancedDiagonal], target: Target
) -> Iterator[tuple[int, int, DiagonalStateSpace, tuple[HostArray, HostArray], SlotMap]]:
    """Which one, its real order, the truncated system, W and T, and the map to its stored states."""
    host = _stacked_systems([part.host for part in parts])
    factors = _stacked_factors([part.factors for part in parts if part.factors is not None])
    W, T = factors.projections(target.order)
    B, C = host.ports()
    state, B, C = adjoint(W) @ host.applied(T), adjoint(W) @ B, C @ T
    bounds = tail_bounds(factors.hsv)
    # One order lower at a time for those that do not fit: real poles come and go with the order.
    pending = np.arange(len(parts))
    for order in range(target.order, 0, -1):
        lower = np.zeros(pending.size, dtype=bool)
        for members, slot_map in diagonalise_each(
            state[pending, :order, :order], real=host.real_output
        ):
            if slot_map.order > target.limit:
                lower[members] = True
                continue
            at = pending[members]
            rounding = _EPS * slot_map.condition * bounds[at, 0]
            limit = np.maximum(bounds[at, order], _EPS**0.5 * bounds[at, 0])
            safe = np.asarray(rounding <= SAFE_SHARE * limit)
            safe &= np.all(host.time.inside(slot_map.eigenvalues), axis=-1)
            if slot_map.order >= host.order or not np.any(safe):
                continue
            at, slot_map = at[safe], slot_map[safe]
            reduced, slot_map = stored_system(
                host[at], slot_map, B[at, :order], C[at, :, :order], host.D[at]
            )
            for j, k in enumerate(at):
                projections = W[k, :, :order], T[k, :, :order]
                yield int(k), order, reduced[j], projections, slot_map[j]
        pending = pending[lower]
        if pending.size == 0:
            return


def _stacked_systems(hosts: Sequence[DiagonalStateSpace]) -> DiagonalStateSpace:
    names = ("eigenvalues", "B", "C", "D")
    return hosts[0].replace(
        **{name: np.stack([getattr(host, name) for host in hosts]) for name in names}
    )


def _stacked_factors(every: Sequence[BalancedFactors]) -> BalancedFactors:
    rank = min(factors.rank for factors in every)
    return BalancedFactors(
        np.stack([factors.hsv for factors in every]),
        rank,
        DenseFactors(
            np.stack([factors.factors.Z for factors in every]),
            np.stack([factors.factors.Y for factors in every]),
        ),
        np.stack([factors.V[:, :rank] for factors in every]),
        NUMPY,
    )
