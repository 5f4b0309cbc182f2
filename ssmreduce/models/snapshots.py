"""Copies of a whole model and its optimizer state in host memory, and the way back.

A snapshot is made of dicts, numbers and arrays alone (tensors for PyTorch, NumPy arrays for JAX), so that
it can be saved with a checkpoint, and loaded by ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import zip_longest
from typing import Any

import numpy as np

from ssmreduce._array_libraries import is_array
from ssmreduce._checks import naming, shown
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.framework import Snapshot
from ssmreduce.frameworks.transaction import Prepared
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.search import search


def take_all(models: Sequence[Any], opt_state: Any, options: CutOptions) -> list[Snapshot]:
    """Copy every array of some models, and of the optimizer state of the first, to host memory.

    Each keeps its dtype. Where several processes train the models, all of them have to call this.
    """
    snapshots = []
    for model, state in zip_longest(models, [opt_state]):
        found = search(model, options)
        snapshot = found.framework.snapshot(model, state, found.handles)
        _check_form(snapshot, f"{type(found.framework).__name__}.snapshot")
        snapshots.append(snapshot)
    return snapshots


def _check_form(snapshot: Any, name: str) -> None:
    """Raise `UnsupportedLayerError` unless a snapshot can be saved and loaded with a reducer's state."""
    if isinstance(snapshot, Mapping) and "tensors" in snapshot:  # that of PyTorch modules
        return
    if not isinstance(snapshot, Mapping) or snapshot.keys() != {"model", "opt_state"}:
        keys = list(snapshot) if isinstance(snapshot, Mapping) else snapshot
        raise _other_form(name, shown(keys))
    for part, entries in snapshot.items():
        if not isinstance(entries, Mapping):
            raise _other_form(name, f"{shown(entries)} as its {part!r}")
        for key, value in entries.items():
            if not isinstance(key, str) or not (is_array(value) or isinstance(value, _NUMBERS)):
                raise _other_form(name, f"{shown(value)} as {part}[{shown(key)}]")


_NUMBERS = bool | int | float | complex | np.generic


def _other_form(name: str, found: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"{name} returned {found}; expected {{'model': {{...}}, 'opt_state': {{...}}}} with arrays and "
        "numbers by name in each, so that the state of a reducer can be saved and loaded. Join nested names "
        "with dots."
    )


def prepared_back(
    models: Sequence[Any], opt_state: Any, snapshots: Sequence[Snapshot], options: CutOptions
) -> list[Prepared]:
    """Prepare the way back to where `snapshots` were taken; nothing is changed yet.

    Raises
    ------
    ShapeError
        If the snapshots are of other models or another optimizer.
    """
    if len(models) != len(snapshots):
        raise ShapeError(
            f"`followers` has {len(models) - 1} models but {len(snapshots) - 1} followed the cut that is "
            "to be undone; expected the same ones. Give them in every step."
        )
    ready = []
    given = zip(zip_longest(models, [opt_state]), snapshots, strict=True)
    for number, ((model, state), snapshot) in enumerate(given):
        found = search(model, options)
        place = naming(f"while undoing the cut of follower {number} in `followers`")
        with place if number else nullcontext():
            ready.append(found.framework.prepared_back(model, state, snapshot, found.handles))
    return ready
