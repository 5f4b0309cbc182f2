"""Saved weights: `StateDicts` loads them in place, `NamedTrees` fills copies of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ssmreduce.frameworks.handle import LayerChange, Path


class StateDicts(ABC):
    """Loading of saved weights by name into a model, in place."""

    @abstractmethod
    def check_saved(self, present: Any, saved: Any, name: str) -> None:
        """Raise `ShapeError` unless `saved`, called so in messages, can replace an entry of a state dict."""

    @abstractmethod
    def load_state(
        self, model: Any, state_dict: Mapping[str, Any], changes: Sequence[LayerChange]
    ) -> None:
        """Give layers the shapes of a state dict, whose names and shapes were checked, and load it."""


class NamedTrees(ABC):
    """Copies of a model with saved arrays, by name."""

    @abstractmethod
    def saved_arrays(self, model: Any, saved: Any) -> dict[Path, Any]:
        """Return the leaves of `saved` by their names: one for each array of `model`.

        Raises
        ------
        ShapeError
            If a name is missing or left over, or what is under it no array with as many axes.
        """

    @abstractmethod
    def shapes_of_layer(
        self, given: Mapping[Path, Any], path: Path, names: Sequence[str]
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes that saved arrays give to the layer at a path."""

    @abstractmethod
    def with_arrays(self, model: Any, given: Mapping[Path, Any]) -> Any:
        """Return a copy of `model` with saved arrays; `ShapeError` if a shape or dtype differs."""
