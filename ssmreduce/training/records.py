"""`HankelRecord`: one layer after one step, as a trace keeps it; which of many records are kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import (
    check_text,
    fields_of,
    fraction,
    real_values,
    whole_number,
)
from ssmreduce.errors import ShapeError

_MOST = 200
"""How many records of one layer a trace keeps: a curve of as many points looks like one of more."""


_LATEST = 50
"""How many of them are the latest ones, at the full rate."""


@dataclass(frozen=True, eq=False)
class HankelRecord:
    """One layer after one step.

    Attributes
    ----------
    step : int
        Number of updates done.
    layer : str
        Name of the layer in the model.
    hsv : (..., n) array
        Hankel singular values, descending; for each channel where they run apart.
    shares : (..., n) array
        How Σ σ_k is shared out among the states.
    data_hsv : (..., n) array or None
        Data-driven values, descending: those between the states that recorded sequences excite and
        what is observed, by which ``method="balanced"`` cuts, in proportion to the inputs. None
        without data, and for layers that have none, such as LinOSS.
    ranked_by : str
        What `hsv` holds, as pictures call it: LinOSS has scores of its states instead.

    Raises
    ------
    ShapeError, NonFiniteError, ArgumentError
        If a value is not what a trace records.

    Examples
    --------
    >>> from ssmreduce.training.records import HankelRecord
    >>> record = HankelRecord(10, "encoder", hsv=[4.0, 1.0], shares=[1.5, 3.5])
    >>> record.kept(0.9).tolist(), record.kept(0.5).tolist()  # indices of states
    ([1, 0], [1])
    """

    step: int
    layer: str
    hsv: HostArray = field(repr=False)
    shares: HostArray = field(repr=False)
    data_hsv: HostArray | None = field(default=None, repr=False)
    ranked_by: str = field(default="Hankel singular value", repr=False)

    def __post_init__(self) -> None:
        step = whole_number(self.step, "step", "the number of updates done")
        check_text(self.layer, "layer", "the name of the layer")
        check_text(self.ranked_by, "ranked_by", "what the values are")
        hsv = real_values(self.hsv, "hsv", "the result of hankel_singular_values")
        shares = real_values(self.shares, "shares", "one number for each state")
        if 0 in hsv.shape or 0 in shares.shape:
            raise ShapeError(
                f"`hsv` has shape {hsv.shape} and `shares` {shares.shape}; expected a number for each of "
                "at least one state."
            )
        vars(self).update(step=step, hsv=hsv, shares=shares)
        if self.data_hsv is not None:
            by_data = real_values(self.data_hsv, "data_hsv", "as many values as hsv")
            if by_data.shape != hsv.shape:
                raise ShapeError(
                    f"`data_hsv` has shape {by_data.shape} and `hsv` {hsv.shape}; expected the same."
                )
            vars(self).update(data_hsv=by_data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, ready for JSON."""
        return plain_values(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HankelRecord:
        """Return the record that `to_dict` made `values` of."""
        return cls(**fields_of(values, *(item.name for item in fields(cls))))

    def kept(self, share: float) -> HostArray:
        """Return the fewest states that make up `share` of the sum, largest first (flat indices)."""
        share = fraction(share, "share")
        order = np.argsort(-self.shares, axis=None, kind="stable")
        total = np.cumsum(self.shares.ravel()[order])
        return order[: np.searchsorted(total, share * total[-1]) + 1]


def plain_values(record: Any) -> dict[str, Any]:
    """The entries of a dataclass, arrays as lists and complex numbers as [re, im]."""
    values = {item.name: getattr(record, item.name) for item in fields(record)}
    for name, value in values.items():
        if np.iscomplexobj(value):
            value = np.stack([value.real, value.imag], axis=-1)
        values[name] = value.tolist() if isinstance(value, np.ndarray) else value
    return values


@dataclass(frozen=True)
class Agreement:
    """How far two rankings of the same states agree.

    Attributes
    ----------
    step : int
        Number of updates done at the earlier one.
    overlap : float
        States that both keep, over states that one of them keeps: 1 for the same set.
    rank_correlation : float
        Spearman's ρ of the shares of the states that one of them keeps: 1 for the same order.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import HankelTrace
    >>> from ssmreduce.demo.lru import LRU
    >>> model, trace = LRU(16, 4, rng=np.random.default_rng(0)), HankelTrace(10)
    >>> for step in (10, 20):
    ...     trace.step(step, model)
    >>> trace.agreement("model")[0]
    Agreement(step=10, overlap=1.0, rank_correlation=1.0)
    """

    step: int
    overlap: float
    rank_correlation: float


def thinned(records: Sequence[HankelRecord], every: int) -> list[HankelRecord]:
    """Return the records that a trace keeps, `_MOST` of each layer at most.

    What goes follows from the records alone, so that a trace goes on alike after it was saved and loaded.
    """
    by_layer: dict[str, list[HankelRecord]] = {}
    for record in records:
        by_layer.setdefault(record.layer, []).append(record)
    kept = {id(record) for own in by_layer.values() for record in _thinned_layer(own, every)}
    return [record for record in records if id(record) in kept]


def _thinned_layer(records: list[HankelRecord], every: int) -> list[HankelRecord]:
    kept, spacing = records, every
    latest = records[-_LATEST:]
    around = [
        record
        for pair in itertools.pairwise(records)
        if pair[0].shares.shape != pair[1].shares.shape
        for record in pair
    ]
    stay = {id(record) for record in (*latest, *around)}
    span = max(record.step for record in records) - min(record.step for record in records)
    while len(kept) > _MOST and spacing <= span:
        spacing *= 2
        apart = {id(record) for record in _apart(records, spacing)}
        kept = [record for record in records if id(record) in apart | stay]
    # More than that if the number of states, or the step, goes back and forth all the time.
    return kept[-_MOST:]


def _apart(records: Sequence[HankelRecord], spacing: int) -> Iterator[HankelRecord]:
    """The first record of every so many updates, or with data: those of twice as many are among them."""
    for _, group in itertools.groupby(records, lambda record: record.step // spacing):
        own = list(group)
        yield next((record for record in own if record.data_hsv is not None), own[0])
