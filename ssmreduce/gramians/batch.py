"""Every system of a batch in turn: channels in stacked arrays, others by workers, dense ones in a loop.

Channels, that is diagonal systems with one input and one output, are taken in chunks that share every
step: 2^17 entries of a Cauchy matrix at a time, so that what is in flight stays near 20 MB per worker
whatever the length of the batch. Other diagonal systems go to the workers one by one. The
decompositions of dense ones hold Python's lock, so they stay in the thread of the caller.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._threads import blas_threads
from ssmreduce._workers import map_workers, naming_system
from ssmreduce.errors import SSMReduceError
from ssmreduce.gramians.channels import is_channel_batch
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.state_space import StateSpace

CHUNK_ENTRIES = 2**17
"""Entries of stacked (n, n) arrays in one chunk."""

_SMALL = 64
"""Stored states below which a single system is mostly Python, which workers cannot share."""

Result = TypeVar("Result")


def batch_indices(system: System) -> list[tuple[int, ...]]:
    """Index of every system of a batch, in C order; () of a single one."""
    return list(itertools.product(*map(range, system.batch_shape)))


def map_systems(
    system: System,
    single: Callable[[Any], Result],
    stacked: Callable[[DiagonalStateSpace], list[Result]] | None = None,
) -> list[Result]:
    """Return ``single(system[index])`` for every index of a batch, in C order; errors name the index.

    `stacked`, for channels, gives the same for a batch with one axis. Where it raises, the systems go
    one by one, and the one to blame raises again.
    """
    check_system(system)
    if not system.batch_shape:
        return [single(system)]
    indices = batch_indices(system)

    def alone(index: tuple[int, ...]) -> Result:
        return single(system[index])

    if stacked is not None and is_channel_batch(system):
        host, at_once = system.to_host(), stacked

        def together(members: list[tuple[int, ...]]) -> list[Result]:
            try:
                return at_once(host[tuple(map(list, zip(*members, strict=True)))])
            except (SSMReduceError, np.linalg.LinAlgError):
                return [_named(alone, index) for index in members]

        return [
            result
            for part in map_workers(together, chunks(indices, system.order))
            for result in part
        ]
    return map_indices(system, alone)


def map_indices(system: System, function: Callable[[tuple[int, ...]], Result]) -> list[Result]:
    """Return ``function(index)`` for every index of a batch, in C order; errors name the index."""
    if not system.batch_shape:
        return [function(())]
    indices = batch_indices(system)
    if len(indices) == 1 or isinstance(system, StateSpace) or system.order < _SMALL:
        return [_named(function, index) for index in indices]
    return map_workers(lambda index: _named(function, index), indices)


def map_parts(
    system: System, function: Callable[..., Result], *arguments: Sequence[Any]
) -> list[Result]:
    """Return ``function(*own)`` of what belongs to every system, in C order; errors name the index."""
    every = dict(zip(batch_indices(system), zip(*arguments, strict=True), strict=True))
    return map_indices(system, lambda index: function(*every[index]))


def _named(function: Callable[[tuple[int, ...]], Result], index: tuple[int, ...]) -> Result:
    with naming_system(index):
        return function(index)


def map_batch(system: System, function: Callable[[Any], HostArray]) -> HostArray:
    """Apply `function` to every system of a batch and stack the arrays it returns."""
    return np.asarray(in_batch_shape(map_systems(system, function), system.batch_shape))


def in_batch_shape(values: list[Any], batch_shape: tuple[int, ...]) -> Any:
    """One value per system in the shape of the batch; the value itself without one."""
    if not batch_shape:
        return values[0]
    stacked = np.asarray(values)
    return stacked.reshape(*batch_shape, *stacked.shape[1:])


def chunks(items: list[Any], order: int) -> list[list[Any]]:
    """Split a list of systems of that order into chunks, at least one for each worker."""
    size = max(1, min(CHUNK_ENTRIES // order**2, -(-len(items) // blas_threads())))
    return [items[start : start + size] for start in range(0, len(items), size)]
