"""Copies of a whole model and its optimizer state in host memory, and the way back.

A snapshot is made of dicts, numbers and arrays alone (tensors for PyTorch, NumPy arrays for JAX), so that
it can be saved with a checkpoint, and loaded by ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ssmreduce.adapters.registry import model_backend

Snapshot = dict[str, Any]
"""What `take` returns."""


def take(model: Any, opt_state: Any) -> Snapshot:
    """Copy every array of `model` and `opt_state` to host memory, in its own dtype."""
    snapshot: Snapshot = _home(model).take(model, opt_state)
    return snapshot


def put_back(model: Any, opt_state: Any, snapshot: Snapshot) -> tuple[Any, Any]:
    """Return model and optimizer state as they were when `snapshot` was taken, in place for PyTorch.

    Raises
    ------
    ShapeError
        If the snapshot is of another model or optimizer; nothing was changed then.
    """
    restored: tuple[Any, Any] = _home(model).put_back(model, opt_state, snapshot)
    return restored


def _home(model: Any) -> ModuleType:
    """`torch_snapshot` or `jax_snapshot`."""
    return importlib.import_module(f"{model_backend(model).__name__}_snapshot")
