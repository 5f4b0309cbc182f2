"""DDP's buckets of gradients, made anew where parameters change their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssmreduce.frameworks.torch_distributed import renew_buckets, with_buckets
from ssmreduce.frameworks.transaction import Step


class _BucketsAfter(Step):
    """Makes the buckets anew once the shapes have changed."""

    def __init__(self, model: Any) -> None:
        self._held = with_buckets(model)

    def make(self) -> None:
        self._renew()

    def undo(self) -> None:
        """Nothing: the shapes are not back yet."""

    def _renew(self) -> None:
        for module, values, hooks in self._held:
            renew_buckets(module, values, hooks)


class _BucketsBefore(_BucketsAfter):
    """The same when the shapes are back: undone last, since it was made first."""

    def make(self) -> None:
        """Nothing: the shapes have not changed yet."""

    def undo(self) -> None:
        self._renew()


def bucket_steps(model: Any, steps: Sequence[Step]) -> list[Step]:
    """The steps that change shapes, and those that make DDP's buckets anew, there and back."""
    return [_BucketsBefore(model), *steps, _BucketsAfter(model)]
