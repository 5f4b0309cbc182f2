"""`HankelTrace`: Hankel singular values of every layer over training, and when their ranking settles.

With W and T of the balanced realisation (Wᴴ T = I), T Σ Wᴴ is the square root of P Q. Its trace is Σ σ_k,
and its diagonal shares that sum out among the stored states:

    s_i = Σ_k T_ik σ_k conj(W_ik),    Σ_i s_i = Σ_k σ_k.

States keep their places in the weights while a layer trains, so the s_i of two steps can be compared: are the
largest of them still the same states, in the same order? The s_i do not change if a state is scaled.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import (
    check_instance,
    check_text,
    fields_of,
    fraction,
    items,
    positive_count,
    positive_horizon,
    whole_number,
)
from ssmreduce.errors import ArgumentError
from ssmreduce.frameworks.handle import LayerHandle
from ssmreduce.layers.options import CutOptions
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.cut import with_full_layers
from ssmreduce.models.search import find_layers
from ssmreduce.training.records import Agreement, HankelRecord, thinned

if TYPE_CHECKING:
    from ssmreduce.training.tracking import ReductionEvent


class HankelTrace:
    """Records the Hankel singular values of every layer, and tells when their ranking has settled.

    Σ σ_k of a layer is shared out among its states, s_i = (T Σ Wᴴ)_ii, and the largest s_i that
    make up `share` of the sum are the states to keep. The ranking has settled when an earlier
    record keeps the same states in the same order as the latest.

    Parameters
    ----------
    every : int
        Record after every so many updates.
    share : float
        Share of Σ σ_k that the kept states make up.
    horizon : int, optional
        Sequence length to balance for; see `balance`.

    Attributes
    ----------
    records : list of HankelRecord
        One for each layer and recorded step, at most 200 of a layer.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Notes
    -----
    A record costs about as much as a cut of each layer, O(n³). Pass the trace to
    `InTrainingReducer`, or call `step` in the loop, also without any cut. With ``data`` a record
    has data-driven values too; a reducer with ``data`` records them at its attempts, when it
    calibrates.

    A long trace thins itself. Once a layer has more than 200 records, its latest 50 stay, and so do
    the last before and the first after a change of the number of states. Of the others every second
    one is dropped, preferably one without data; the updates between two of them then double, or
    quadruple, see `spacing`.

    References
    ----------
    |σ_k(H + δH) - σ_k(H)| ≤ ‖δH‖₂ (Weyl): small steps change the values little, and a ranking with
    gaps not at all. CompreSSM, arXiv 2510.02823, cuts early on that ground.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import HankelTrace
    >>> from ssmreduce.demo.lru import LRU
    >>> model, trace = LRU(16, 4, rng=np.random.default_rng(0)), HankelTrace(10)
    >>> for step in range(1, 31):
    ...     # ... one update of model ...
    ...     trace.step(step, model)
    >>> [record.step for record in trace.records], trace.settled("model")
    ([10, 20, 30], 10)
    """

    def __init__(self, every: int, *, share: float = 0.96, horizon: int | None = None) -> None:
        self.every = positive_count(every, "every", "after how many updates to record")
        self.share = fraction(share, "share")
        self.horizon = positive_horizon(horizon)
        self.records: list[HankelRecord] = []

    def __repr__(self) -> str:
        return f"HankelTrace({self.every}, share={self.share}, horizon={self.horizon})"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the recorded layers."""
        return tuple(dict.fromkeys(record.layer for record in self.records))

    def step(self, step: int, model: Any, options: CutOptions = CutOptions()) -> None:
        """Record every layer if `step` is a multiple of `every`.

        Parameters
        ----------
        step : int
            Number of updates done.
        model : object
            A model, or a layer.
        options : CutOptions
            As `record` takes them.

        Raises
        ------
        SSMReduceError
            As `record`.
        """
        if whole_number(step, "step", "the number of updates done") % self.every == 0:
            self.record(step, model, options)

    def record(
        self,
        step: int,
        model: Any,
        options: CutOptions = CutOptions(),
        *,
        data: Calibration | None = None,
    ) -> None:
        """Record every layer of `model` now; either all of them or, if one cannot be balanced,
        none.

        Parameters
        ----------
        step : int
            Number of updates done. Records of this step with the same number of states are
            replaced.
        model : object
            A model, or a layer.
        options : CutOptions
            Which layers to exclude or to skip, and of what kind they are.
        data : Calibration, optional
            Recorded inputs of the layers: records then have data-driven values too.

        Raises
        ------
        SSMReduceError
            If a layer holds NaN, or is not stable and there is no horizon; or if there is no layer,
            or one of which `data` has no record.
        """
        step = whole_number(step, "step", "the number of updates done")
        check_instance(options, CutOptions, "options", 'CutOptions(exclude=("name",))')
        if data is not None:
            check_instance(data, Calibration, "data", "calibrate(model, batches)")
        self.record_layers(step, with_full_layers(find_layers(model, options)).meant, data)

    def record_layers(
        self, step: int, handles: Sequence[LayerHandle], data: Calibration | None
    ) -> None:
        """Record layers that were found before; those that run no one system are skipped where
        there are others.

        :meta private:

        Parameters
        ----------
        step : int
            Number of updates done.
        handles : sequence of LayerHandle
            The layers.
        data : Calibration or None
            As `record` takes it.

        Raises
        ------
        SSMReduceError
            As `record`.
        """
        recorded = [handle for handle in handles if not handle.kind.needs_data] or handles
        new = [self._record_of(step, handle, data) for handle in recorded]
        again = {(each.step, each.layer, each.shares.shape) for each in new}
        kept = [
            each for each in self.records if (each.step, each.layer, each.shares.shape) not in again
        ]
        self.records[:] = thinned([*kept, *new], self.every)

    def _record_of(self, step: int, handle: LayerHandle, data: Calibration | None) -> HankelRecord:
        hsv, shares = handle.kind.shares(handle.weights, self.horizon)
        by_data = None
        if data is not None:
            record = data.record_of(handle)
            own = record.data(record.outputs(handle))
            by_data = handle.kind.data_scores(handle.weights, own, self.horizon)
        return HankelRecord(step, handle.name, hsv, shares, by_data, handle.kind.scores_name)

    def of_layer(self, layer: str) -> list[HankelRecord]:
        """Return the records of one layer, in order.

        Parameters
        ----------
        layer : str
            Its name in the model.

        Returns
        -------
        list of HankelRecord
            One for each recorded step.

        Raises
        ------
        ArgumentError
            If there is none.
        """
        check_text(layer, "layer", "the name of a layer")
        records = [record for record in self.records if record.layer == layer]
        if not records:
            raise ArgumentError(
                f"`layer` is {layer!r}, of which nothing was recorded; expected one of "
                f"{', '.join(self.layers) or 'those that are recorded first'}."
            )
        return records

    def spacing(self, layer: str) -> int:
        """Return the most updates between two records of a layer: `every`, or more in a long trace.

        Parameters
        ----------
        layer : str
            Its name in the model.

        Returns
        -------
        int
            In updates.

        Raises
        ------
        ArgumentError
            If nothing was recorded of the layer.
        """
        steps = [record.step for record in self.of_layer(layer)]
        return max((abs(two - one) for one, two in itertools.pairwise(steps)), default=self.every)

    def agreement(self, layer: str) -> list[Agreement]:
        """Compare each record of a layer with its latest one, as far back as the states are the
        same.

        Records from before the last change of the number of states are of other states.

        Parameters
        ----------
        layer : str
            Its name in the model.

        Returns
        -------
        list of Agreement
            One for each record, the latest included.

        Raises
        ------
        ArgumentError
            If nothing was recorded of the layer.
        """
        records = self.of_layer(layer)
        latest = records[-1]
        alike = itertools.takewhile(
            lambda record: record.shares.shape == latest.shares.shape, reversed(records)
        )
        return [_agreement(record, latest, self.share) for record in alike][::-1]

    def settled(self, layer: str, *, threshold: float = 0.9) -> int | None:
        """Return the step since which the kept states and their order have been those of the latest
        record.

        It is the first from which on overlap and rank correlation with the latest record are never
        below the threshold. In a long trace it is known to within `spacing`.

        Parameters
        ----------
        layer : str
            Its name in the model.
        threshold : float
            Least overlap and rank correlation, in (0, 1].

        Returns
        -------
        int or None
            None if no record but the latest itself qualifies.

        Raises
        ------
        ArgumentError
            If nothing was recorded of the layer, or `threshold` is out of range.
        """
        threshold = fraction(threshold, "threshold")
        since: int | None = None
        for entry in reversed(self.agreement(layer)[:-1]):
            if min(entry.overlap, entry.rank_correlation) < threshold:
                break
            since = entry.step
        return since

    def plot(self, events: Sequence[ReductionEvent] = (), *, ax: Any = None) -> HostArray:
        """Draw heat maps of the values over the steps, and the agreement with the latest ranking.

        Parameters
        ----------
        events : sequence of ReductionEvent, optional
            Cuts to mark at their steps, in the row of their layer: those of ``reducer.events``.
        ax : Axes, optional
            Where to draw, as many as are returned; a new figure otherwise.

        Returns
        -------
        (L, 2) or (L, 3) array of Axes
            A row for each layer: Hankel singular values, with how many make up `share` of their
            sum; data-driven values, where some layer has them; agreement. See `ssmreduce.plotting`.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        ArgumentError, ShapeError
            If `ax` is not as many Matplotlib axes, or `events` not a list.
        """
        from ssmreduce.training.pictures import draw_trace

        return draw_trace(self, events, ax)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, ready for JSON."""
        settings = {"every": self.every, "share": self.share, "horizon": self.horizon}
        return {**settings, "records": [record.to_dict() for record in self.records]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HankelTrace:
        """Return the trace that `to_dict` made `values` of."""
        settings = fields_of(values, "every", "share", "horizon", "records")
        records = items(settings.pop("records"), "records", "what to_dict returned")
        trace = cls(**settings)
        trace.records = [HankelRecord.from_dict(record) for record in records]
        return trace


def _agreement(earlier: HankelRecord, latest: HankelRecord, share: float) -> Agreement:
    before, now = (set(record.kept(share).tolist()) for record in (earlier, latest))
    either = sorted(before | now)
    pair = [record.shares.ravel()[either] for record in (earlier, latest)]
    if len(either) == 1 or any(np.ptp(values) == 0 for values in pair):
        # Nothing to rank: one state, or all of them equal.
        correlation = 1.0 if before == now else 0.0
    else:
        from scipy.stats import spearmanr  # takes longer to import than all of this package

        correlation = float(spearmanr(*pair).statistic)
    return Agreement(earlier.step, len(before & now) / len(either), correlation)
