"""A warning about inputs and outputs with small gains: their share is lost in rounding or cut first.

Hankel singular values and the error bound are absolute, about n eps σ₁ at best. The H2 gain of input j
is ‖Yᴴ b_j‖ and that of output i is ‖c_i Z‖, whatever the scaling of the states. The share of
one port is accurate to n eps over its gain relative to the strongest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import warn_caller
from ssmreduce._lapack import frobenius_norm
from ssmreduce.errors import ScalingWarning
from ssmreduce.reduction.balanced_system import BalancedSystem
from ssmreduce.reduction.balanced_unstable import Reducible

_LEAST_SHARE = float(np.sqrt(np.finfo(np.float64).eps))
"""Below this share of the strongest gain a port keeps less than half its digits, and a cut to 1e-8 of
σ₁ may leave it out."""

_ROUNDING = 4.0
"""c in c n eps ‖row‖ ‖factor‖, below which a gain is rounding of none: the factor and the product with it
round by a few n eps each."""


def warn_if_badly_scaled(parts: Sequence[Reducible]) -> None:
    """Issue a `ScalingWarning` where gains of inputs or outputs are far below the largest one."""
    if parts[0].original.D.shape[-2:] == (1, 1):
        return
    for part in parts:
        balanced = part if isinstance(part, BalancedSystem) else part.stable
        if balanced is None or balanced.factors is None:
            continue
        factors, (B, C) = balanced.factors, balanced.host.ports()
        with np.errstate(over="ignore", invalid="ignore"):
            seen, driven = factors.gains(B, C)
            squares = [np.vecdot(x, x).real.tolist() for x in (adjoint(seen), driven)]
        # No row is small beside another, as squares show where they do not overflow.
        if all(_LEAST_SHARE**2 * max(s) < min(s) and max(s) < math.inf for s in squares if s):
            continue
        # In units of the largest entries, against over- and underflow.
        B, C = B / _height(B), C / _height(C)
        seen, driven = factors.gains(B, C)
        for kind, gain_matrix, rows, factor in (
            ("input", seen, adjoint(B), factors.factors.Y),
            ("output", adjoint(driven), C, factors.factors.Z),
        ):
            values = _gains(gain_matrix, rows, factor)
            nonzero = values[values > 0]
            if nonzero.size and nonzero.min() < _LEAST_SHARE * nonzero.max():
                weakest = int(np.flatnonzero(values == nonzero.min())[0])
                warn_caller(
                    f"{kind} {weakest} of the system has {nonzero.min() / nonzero.max():.1g} of the gain "
                    f"of the strongest one; below {_LEAST_SHARE:.1g} its part of the response is lost in "
                    f"rounding and is the first to be cut. Scale every {kind} to the same size.",
                    ScalingWarning,
                )


def _gains(gain_matrix: HostArray, rows: HostArray, factor: HostArray) -> HostArray:
    """Proportional to the norm of every column of `gain_matrix`, rows times a factor; 0 for rounding."""
    size = _height(factor)
    gains = np.linalg.norm(gain_matrix / size, axis=0)
    lengths = np.linalg.norm(rows, axis=1)
    n_eps = rows.shape[1] * np.finfo(np.float64).eps
    rounding = _ROUNDING * n_eps * lengths * frobenius_norm(factor / size)
    return np.where(gains > rounding, gains, 0.0)


def _height(matrix: HostArray) -> float:
    """Size of the largest entry, or of the smallest normal number if there is none."""
    return max(float(np.abs(matrix).max(initial=0.0)), float(np.finfo(np.float64).tiny))
