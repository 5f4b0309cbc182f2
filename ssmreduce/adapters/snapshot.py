"""Copies of a whole model and its optimizer state in host memory, and the way back.

A snapshot is made of dicts, numbers and arrays alone (tensors for PyTorch, NumPy arrays for JAX), so that
it can be saved with a checkpoint, and loaded by ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ssmreduce.adapters.registry import model_backend
from ssmreduce.errors import ShapeError

Snapshot = dict[str, Any]
"""A copy of one model, and of its optimizer state."""


def take_all(models: Sequence[Any], opt_state: Any) -> list[Snapshot]:
    """Copy every array of some models, and of the optimizer state of the first, to host memory.

    Each keeps its dtype. Where several processes train the models, all of them have to call this.
    """
    return [_home(model).take(model, state) for model, state in _with_states(models, opt_state)]


def prepared_back(
    models: Sequence[Any], opt_state: Any, snapshots: Sequence[Snapshot]
) -> Callable[[], tuple[list[Any], Any]]:
    """Prepare the way back to where `snapshots` were taken; nothing is changed yet.

    What is returned goes it, in place for PyTorch, and returns the models and the optimizer state.

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
    given = zip(_with_states(models, opt_state), snapshots, strict=True)
    for number, ((model, state), snapshot) in enumerate(given):
        try:
            ready.append(_home(model).prepared_back(model, state, snapshot))
        except ShapeError as error:
            if number == 0:
                raise
            raise ShapeError(
                f"while undoing the cut of follower {number} in `followers`: {error}"
            ) from error

    def make() -> tuple[list[Any], Any]:
        (first, state), *rest = [each() for each in ready]
        return [first, *(copy for copy, _ in rest)], state

    return make


def _with_states(models: Sequence[Any], opt_state: Any) -> list[tuple[Any, Any]]:
    first, *rest = models
    return [(first, opt_state), *((copy, None) for copy in rest)]


def _home(model: Any) -> ModuleType:
    """`torch_snapshot` or `jax_snapshot`."""
    return importlib.import_module(f"{model_backend(model).__name__}_snapshot")
