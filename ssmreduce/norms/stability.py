"""The stability check that all norms share."""

from __future__ import annotations

from ssmreduce.equations.stability import check_stable_system
from ssmreduce.systems.diagonal import System


def check_stable(system: System) -> None:
    """Raise `UnstableSystemError` if a pole lies on or outside the stability boundary."""
    check_stable_system(
        system,
        "The norm is infinite or undefined otherwise. Take split_unstable(system).stable, or for the "
        "error of a reduction its verify(certified=True).",
    )
