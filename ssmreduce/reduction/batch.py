"""Batches of reductions: one result out of many, its arrays padded to the largest order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.gramians.batch import batch_indices, in_batch_shape
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace

_LOG_ZERO = -1000.0
"""A logarithm of which the exponential is 0."""

SomeSystem = TypeVar("SomeSystem", StateSpace, DiagonalStateSpace, System)


def single_systems(system: SomeSystem) -> list[SomeSystem]:
    """Systems of a batch in C order; the system itself without batch axes."""
    return [system[index] if index else system for index in batch_indices(system)]


def assemble(original: System, parts: Sequence[Reduction]) -> Reduction:
    """One result for the batch `original` out of those of its systems, in C order."""
    batch = original.batch_shape
    if not batch:
        return parts[0]
    if all(part.system is part.original for part in parts):
        system, mask = original, np.ones((*batch, original.order), bool)
    else:
        system, mask = _stack([part.system for part in parts], batch)

    def gathered(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else in_batch_shape(values, batch)

    first = parts[0]
    return Reduction(
        original=original,
        system=system,
        order=gathered("order"),
        real_order=gathered("real_order"),
        wanted_order=gathered("wanted_order"),
        rank=gathered("rank"),
        hsv=gathered("hsv"),
        error_bound=gathered("error_bound"),
        mask=mask,
        horizon=first.horizon,
        method=first.method,
        unstable=gathered("unstable"),
        scores=gathered("scores"),
        parts=tuple(parts),
    )


def _stack(systems: list[System], batch_shape: tuple[int, ...]) -> tuple[System, HostArray]:
    """Stack systems, padded with states that are neither reachable nor observable; and say which are not."""
    order = max(system.order for system in systems)
    mask = np.array([np.arange(order) < system.order for system in systems])
    hosts = [system.to_host() for system in systems]
    resting = hosts[0].time.steady_point - 1.0

    def stacked(arrays: list[HostArray]) -> HostArray:
        return np.stack(arrays).reshape(*batch_shape, *arrays[0].shape)

    def lengthened(array: HostArray, axis: int, fill: float = 0.0) -> HostArray:
        if array.shape[axis] == order:
            return array
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, order - array.shape[axis])
        return np.pad(array, widths, constant_values=fill)

    B = stacked([lengthened(host.B, -2) for host in hosts])
    C = stacked([lengthened(host.C, -1) for host in hosts])
    D = stacked([host.D for host in hosts])
    first = hosts[0]
    options: dict[str, Any] = {"time": first.time, "read_after_update": first.read_after_update}
    make: Callable[..., System] = StateSpace
    if isinstance(first, DiagonalStateSpace):
        options["real_output"] = first.real_output
        singles = [host for host in hosts if isinstance(host, DiagonalStateSpace)]
        if any(single.log_eigenvalues is not None for single in singles):
            make = DiagonalStateSpace.from_log
            states = [lengthened(_logarithms(single), -1, _LOG_ZERO) for single in singles]
        else:
            make = DiagonalStateSpace
            states = [lengthened(single.eigenvalues, -1, resting) for single in singles]
    else:
        states = [
            lengthened(lengthened(host.A, -1), -2) + resting * np.diag(~kept)
            for host, kept in zip(hosts, mask, strict=True)
            if isinstance(host, StateSpace)
        ]
    return make(stacked(states), B, C, D, **options), mask.reshape(*batch_shape, order)


def _logarithms(system: DiagonalStateSpace) -> HostArray:
    """Stored logarithms of the poles, or computed ones, which are complex."""
    if system.log_eigenvalues is not None:
        return np.asarray(system.log_eigenvalues)
    poles = system.eigenvalues.astype(np.complex128)
    return np.asarray(np.log(poles, out=np.full_like(poles, _LOG_ZERO), where=poles != 0.0))
