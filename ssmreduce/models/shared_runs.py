"""Runs of a model that is spread over several processes, which all of them have to make together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from ssmreduce.models.cut import with_full_layers
from ssmreduce.models.search import Layers

_END = object()

_AS_MANY = "as many batches on all ranks. Cut longer ones off: itertools.islice(batches, count)"


def with_full_weights(found: Layers) -> Layers:
    """The layers themselves, with full weights where they are sharded; all ranks have to call."""
    if found.team is None:
        return found
    full = {each.path: each.weights for each in with_full_layers(found).meant}
    meant = [replace(own, full_weights=full[own.path]) for own in found.meant]
    return replace(found, meant=meant)


def as_many(team: Any, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of this rank, as long as all ranks have one.

    Raises
    ------
    DistributedError
        If one has fewer than another, or cannot read one.
    """
    if team is None:
        yield from batches
        return
    taken = iter(batches)
    for number in itertools.count():
        latest: list[Any] = []

        def take(latest: list[Any] = latest, number: int = number) -> dict[str, str]:
            latest.append(next(taken, _END))
            return {f"whether its `batches` end after {number}": str(latest[0] is _END)}

        team.check_same(take, _AS_MANY)
        if latest[0] is _END:
            return
        yield latest[0]


def of_first(team: Any, count: int) -> int:
    """The count of the first rank, on all of them."""
    return count if team is None else int(team.decide(partial(int, count)))
