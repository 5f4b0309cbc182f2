"""Where poles may lie: an infinite-horizon Gramian exists for a stable A only."""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.errors import UnstableSystemError
from ssmreduce.time_domain import Discrete, TimeDomain


def check_stable(
    eigenvalues: HostArray,
    time: TimeDomain,
    *,
    name: str = "system",
    log_eigenvalues: HostArray | None = None,
) -> None:
    """Raise `UnstableSystemError` unless all eigenvalues are stable.

    Where logarithms are given (discrete time) they decide: a λ that has rounded to modulus 1 is stable if
    its logarithm has a negative real part.
    """
    if eigenvalues.size == 0:
        return
    discrete = isinstance(time, Discrete)
    if discrete:
        size = np.abs(eigenvalues) if log_eigenvalues is None else np.exp(log_eigenvalues.real)
        worst = eigenvalues.flat[np.argmax(size)]
        stable = abs(worst) < 1.0
        if log_eigenvalues is not None:
            stable = bool(log_eigenvalues.real.max() < 0.0)
        found, expected = f"|λ| = {abs(worst):.17g}", "|λ| < 1"
        remedy = "Pass horizon=L, the length of the sequences it sees, or balance with keep_unstable=True."
    else:
        worst = eigenvalues.flat[np.argmax(eigenvalues.real)]
        stable = worst.real < 0.0
        found, expected = f"Re λ = {worst.real:.6g}", "Re λ < 0"
        remedy = (
            "Look whether the time domain is right; else keep the unstable part, by "
            "balance(system, keep_unstable=True)."
        )
    if name == "A":
        remedy = "Look whether the time domain is right; BartelsStewart() needs no stable `A`, for X itself."
    if not stable:
        raise UnstableSystemError(
            f"`{name}` has a pole with {found}; expected {expected}, since no Gramian exists otherwise. "
            + remedy
        )
