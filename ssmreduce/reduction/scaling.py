"""Channels so small that they drown: a warning, since no error bound knows their units.

Hankel singular values and the error bound are absolute, about n eps σ₁ at best. The H2 gain of input j
is ‖Yᴴ b_j‖ and that of output i is ‖c_i Z‖, whatever the scaling of the states. What a channel adds is
right to n eps over its gain relative to the strongest one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssmreduce._boundary import warn_caller
from ssmreduce._lapack import frobenius_norm
from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import ScalingWarning
from ssmreduce.hankel import BalancedFactors
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.real_form import real_input, real_output

_DROWNED = float(np.sqrt(np.finfo(np.float64).eps))
"""Below this share of the strongest channel a channel keeps less than half its digits, and a cut to
1e-8 of σ₁ may leave it out."""


def warn_if_badly_scaled(system: System, factors: BalancedFactors) -> None:
    """Issue a `ScalingWarning` where inputs or outputs drown beside the strongest one."""
    host = system.to_host()
    B, C = host.B, host.C
    if isinstance(host, DiagonalStateSpace) and host.real_output:
        B, C = real_input(B), real_output(C)
    gains = {
        "input": _gains(
            adjoint(B), factors.factors.Y, lambda rows: adjoint(factors.observed(adjoint(rows)))
        ),
        "output": _gains(C, factors.factors.Z, factors.reached),
    }
    for kind, values in gains.items():
        heard = values[values > 0]
        if heard.size and heard.min() < _DROWNED * heard.max():
            weakest = int(np.flatnonzero(values == heard.min())[0])
            warn_caller(
                f"{kind} {weakest} of the system has {heard.min() / heard.max():.1g} of the gain of "
                f"the strongest one; below {_DROWNED:.1g} its part of the response drowns in rounding "
                f"and is the first to be cut. Scale every {kind} to the same size.",
                ScalingWarning,
            )


def _gains(
    rows: HostArray, factor: HostArray, through: Callable[[HostArray], HostArray]
) -> HostArray:
    """Proportional to the norm of every row after `through`, which applies the factor; 0 for rounding."""
    if not rows.size or not factor.size:
        return np.zeros(rows.shape[0])
    # In units of the largest entries, against over- and underflow of squares.
    rows = rows / max(float(np.abs(rows).max()), np.finfo(np.float64).tiny)
    size = max(float(np.abs(factor).max()), np.finfo(np.float64).tiny)
    gains = np.linalg.norm(through(rows) / size, axis=1)
    rounding = (
        np.finfo(np.float64).eps * np.linalg.norm(rows, axis=1) * frobenius_norm(factor / size)
    )
    return np.where(gains > rounding, gains, 0.0)
