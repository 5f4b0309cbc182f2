"""`Recorded`: what one layer was given in one call; and what matching of outputs has in every framework."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce.errors import CutRefusedError

SAME_LOSS = 1e-6
"""Relative difference up to which two runs of a model have the same loss."""

MATCHING_RATES = (1e-2,) * 100
"""Learning rates of Adam, by which layers learn to put out again what the uncut model does."""

FINE_MATCHING_RATES = tuple(2e-3 * (1 - step / 100) for step in range(100))
"""The same where they have not lost it."""


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
    mask : (N, L) array or None
        What the layer was told about padding, as `Layer.masked_by` says; None for nothing.
    """

    inputs: HostArray
    first_output: HostArray | None
    squares: HostArray | None
    mask: HostArray | None = None


def pairs_of(found: Sequence[Array], targets: Sequence[Array]) -> Iterator[tuple[Array, Array]]:
    """Outputs of a model, and what is to come out in their place.

    Raises
    ------
    CutRefusedError
        If the cut has changed their number or shapes.
    """
    shapes, wanted = ([tuple(each.shape) for each in arrays] for arrays in (found, targets))
    if shapes != wanted:
        raise CutRefusedError(
            f"`forward` returns shapes {shapes} after the cut and {wanted} before it; expected the same, to "
            "match outputs. Return what does not depend on the states: calibrate(..., forward=...)."
        )
    return zip(found, targets, strict=True)
