"""Where poles may lie: infinite-horizon Gramians and norms exist for stable systems only."""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray
from ssmreduce.errors import UnstableSystemError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.time_domain import Discrete, TimeDomain

_NO_GRAMIAN = "No Gramian exists otherwise. "
_IN_STEPS = (
    "Balance with horizon=L, the length of the sequences it sees, or with keep_unstable=True, or take "
    "split_unstable(system).stable."
)
_IN_TIME = (
    "Look whether the time domain is right; else take split_unstable(system).stable, or "
    "balance(system, keep_unstable=True)."
)
_OF_MATRIX = (
    "Look whether the time domain is right; BartelsStewart() needs no stable `A`, for X itself."
)


def check_stable(
    eigenvalues: HostArray,
    time: TimeDomain,
    *,
    name: str = "`system`",
    log_eigenvalues: HostArray | None = None,
    advice: str | None = None,
) -> None:
    """Raise `UnstableSystemError` unless all eigenvalues are stable.

    Where logarithms are given (discrete time) they decide: a λ that has rounded to modulus 1 is stable if
    its logarithm has a negative real part. `name` says in the message what has the pole, and `advice`
    what to try; without one, what to try where a Gramian was wanted.
    """
    if eigenvalues.size == 0:
        return
    discrete = isinstance(time, Discrete)
    if discrete and log_eigenvalues is not None:
        worst, limit, kind = float(log_eigenvalues.real.max()), 0.0, "log |λ|"
    elif discrete:
        worst, limit, kind = float(np.abs(eigenvalues).max()), 1.0, "|λ|"
    else:
        worst, limit, kind = float(eigenvalues.real.max()), 0.0, "Re λ"
    if worst < limit:
        return
    if advice is None:
        remedy = _OF_MATRIX if name == "`A`" else _IN_STEPS if discrete else _IN_TIME
        advice = _NO_GRAMIAN + remedy
    raise UnstableSystemError(
        f"{name} has a pole with {kind} = {worst:.17g}; expected {kind} < {limit:g}. {advice}"
    )


def check_stable_system(system: System, advice: str, *, name: str = "`system`") -> None:
    """Raise `UnstableSystemError` unless all poles of a single system are stable."""
    host = system.to_host()
    logarithms = host.log_eigenvalues if isinstance(host, DiagonalStateSpace) else None
    check_stable(
        np.asarray(host.poles()), host.time, name=name, log_eigenvalues=logarithms, advice=advice
    )
