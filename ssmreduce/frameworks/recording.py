"""`Recorded`: what one layer was given in one call."""

from __future__ import annotations

from dataclasses import dataclass

from ssmreduce._namespace import HostArray

SAME_LOSS = 1e-6
"""Relative difference up to which two runs of a model have the same loss."""

MATCHING_STEPS = 100
"""Updates by which layers learn to put out again what the uncut model does."""

MATCHING_RATE = 1e-2
"""Learning rate of Adam there."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """One call of one layer, in a run of the model it is part of.

    Attributes
    ----------
    inputs : (N, L, m) array
        The sequences that it was given, in their own dtype.
    first_output : (L, p) array or None
        What it put out for the first of them; None where the object computes something else, a kernel say.
    squares : (N, L) array or None
        Mean squares over channels of the loss's derivative by what comes out; None without a loss.
    """

    inputs: HostArray
    first_output: HostArray | None
    squares: HostArray | None
