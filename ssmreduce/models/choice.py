"""`Choice`: how a method was chosen; `LossAtCut`: what a cut does to the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssmreduce.layers.cut import LayerCut


@dataclass(frozen=True)
class Choice:
    """How a method was chosen among cuts of one order.

    Attributes
    ----------
    method : {"white", "white refit", "balanced", "selected", "compensated", "merged"}
        What was taken, as `CutOptions` names it.
    by : {"loss", "output error"}
        What was compared, on data that were held out.
    values : dict of str to float
        That of each method that was compared: losses only of those whose output error is at most
        three times the least. The smallest was taken; but a selected cut only if its loss was at
        least a tenth below that of the balanced one.
    white : LayerCut or None
        The cut without data, the only one that may have an error bound; None where it cannot be
        made.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Calibration, reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> rng = np.random.default_rng(0)
    >>> data = Calibration.of_inputs({"model": rng.normal(size=(64, 50, 4)).cumsum(axis=1)})
    >>> choice = reduce_layer(LRU(16, 4, rng=rng), 6, data=data).choice
    >>> choice.by, choice.method == min(choice.values, key=choice.values.get)
    ('output error', True)
    """

    method: str
    by: str
    values: dict[str, float]
    white: LayerCut | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class LossAtCut:
    """Mean loss of a model on the batches that were held out, the same for all layers of a cut.

    Each batch counts by the number of its sequences.

    Attributes
    ----------
    before, after : float
        Just before the cut, and just after.
    constant : float or None
        That of a constant prediction: of zeros, or of the mean output over the sequences of each
        batch, whichever is smaller (in JAX of zeros); None where it is not available.
    unmatched : float or None
        Where the layers that were cut were trained to reproduce the outputs of the uncut model: the
        loss after the cut alone. `after` is then the loss with their trained weights. None
        elsewhere.

    Examples
    --------
    >>> from ssmreduce.models.choice import LossAtCut
    >>> losses = LossAtCut(before=0.31, after=0.33, constant=2.1)
    >>> losses.after < losses.constant  # better than a constant prediction
    True
    """

    before: float
    after: float
    constant: float | None
    unmatched: float | None = None
