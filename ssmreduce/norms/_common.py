"""What all norms share: the stability check, a Frobenius norm without overflow, batches."""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray, to_double
from ssmreduce.errors import UnstableSystemError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.time_domain import Discrete


def check_stable(system: System) -> None:
    """Raise `UnstableSystemError` if a pole lies on or outside the stability boundary."""
    if system.order == 0:
        return
    poles = np.asarray(system.poles())
    if not isinstance(system.time, Discrete):
        worst, limit, kind = poles.real.max(), 0.0, "Re λ"
    elif isinstance(system, DiagonalStateSpace) and system.log_eigenvalues is not None:
        worst, limit, kind = to_double(system.log_eigenvalues).real.max(), 0.0, "log |λ|"
    else:
        worst, limit, kind = np.abs(poles).max(), 1.0, "|λ|"
    if worst >= limit:
        raise UnstableSystemError(
            f"`system` has a pole with {kind} = {worst:.17g}; expected {kind} < {limit:g}, since the "
            "norm is infinite or undefined otherwise. Split off the unstable part first."
        )


def frobenius(matrix: HostArray) -> float:
    """Frobenius norm without overflow or underflow of the squares."""
    largest = float(np.abs(matrix).max(initial=0.0))
    return largest * float(np.linalg.norm(matrix / largest)) if largest > 0.0 else 0.0
