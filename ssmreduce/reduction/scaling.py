"""Channels so small that they drown: a warning, since no error bound knows their units.

Hankel singular values and the error bound are absolute, about n eps σ₁ at best. The H2 gain of input j
is ‖Yᴴ b_j‖ and that of output i is ‖c_i Z‖, whatever the scaling of the states. What a channel adds is
right to n eps over its gain relative to the strongest one.
"""

from __future__ import annotations

import warnings

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.errors import ScalingWarning
from ssmreduce.hankel import BalancedFactors
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.real_form import real_input, real_output

_DROWNED = float(np.sqrt(np.finfo(np.float64).eps))
"""Below this share of the strongest channel a channel keeps less than half its digits, and a cut to
1e-8 of σ₁ may leave it out."""


def warn_if_badly_scaled(system: System, factors: BalancedFactors, *, stacklevel: int) -> None:
    """Issue a `ScalingWarning` where inputs or outputs drown beside the strongest one."""
    host = system.to_host()
    B, C = host.B, host.C
    if isinstance(host, DiagonalStateSpace) and host.real_output:
        B, C = real_input(B), real_output(C)
    Z, Y = factors.factors.whole()
    gains = {"input": _gains(B, Y), "output": _gains(adjoint(C), Z)}
    for kind, values in gains.items():
        heard = values[values > 0]
        if heard.size and heard.min() < _DROWNED * heard.max():
            weakest = int(np.flatnonzero(values == heard.min())[0])
            warnings.warn(
                f"{kind} {weakest} of the system has {heard.min() / heard.max():.1g} of the gain of "
                f"the strongest one; below {_DROWNED:.1g} its part of the response drowns in rounding "
                f"and is the first to be cut. Scale every {kind} to the same size.",
                ScalingWarning,
                stacklevel=stacklevel,
            )


def _gains(columns: HostArray, factor: HostArray) -> HostArray:
    """Proportional to ‖factorᴴ column‖ for every column; 0 where that is rounding."""
    if not columns.size or not factor.size:
        return np.zeros(columns.shape[1])
    # Largest entries first, against over- and underflow of squares.
    columns = columns / max(float(np.abs(columns).max()), np.finfo(np.float64).tiny)
    factor = factor / max(float(np.abs(factor).max()), np.finfo(np.float64).tiny)
    gains = np.linalg.norm(adjoint(factor) @ columns, axis=0)
    rounding = np.finfo(np.float64).eps * np.linalg.norm(columns, axis=0) * np.linalg.norm(factor)
    return np.where(gains > rounding, gains, 0.0)
