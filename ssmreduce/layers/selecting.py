"""`SelectingLayer`: a layer that keeps some of its own states; `SelectionCut`: what follows from that.

Some layers cannot hold the poles and residues of balanced truncation. Their cut keeps a subset of the
states, as they are, and refits the weights that read them. The rows of moments that belong to kept states
stay with them; a copy keeps the same states, and refits by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import OrderError, UnreachableToleranceError
from ssmreduce.layers.cut import SystemCut, SystemPlan
from ssmreduce.layers.layer import Layer, Weights, WeightStorage
from ssmreduce.layers.options import CutOptions
from ssmreduce.reduction.order import ErrorBound, FixedOrder, MeasuredError, OrderRule, as_rule
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import System


class SelectingLayer(Layer):
    """A layer that is cut by keeping a subset of its states, with refitted weights to read them.

    Notes
    -----
    Arguments that methods share, besides those of `Layer`:

    kept : (r,) int array
        The states to keep, ascending.

    Examples
    --------
    LinOSS is such a layer. An oscillator that nothing reads comes last:

    >>> import numpy as np
    >>> from ssmreduce.layers.linoss import LinOSS
    >>> weights = {
    ...     "A_diag": np.array([1.0, 2.0]),
    ...     "G_diag": np.array([0.5, 0.5]),
    ...     "steps": np.zeros(2),
    ...     "B": np.ones((2, 1, 2)),
    ...     "C": np.array([[[0.0, 0.0], [1.0, 0.0]]]),
    ...     "D": np.zeros(1),
    ... }
    >>> order, scores = LinOSS().ranking(weights, None)
    >>> order.tolist(), bool(scores[1] < 1e-8 * scores[0])
    ([1, 0], True)
    """

    scores_name = "score of the state"

    def state_axes(self) -> dict[str, int]:
        """Return the axis that counts states, by name of each weight that has one."""
        return {
            name: shape.index("n") for name, shape in self.shapes.items() if shape and "n" in shape
        }

    @abstractmethod
    def ranking(self, weights: Weights, horizon: int | None) -> tuple[HostArray, HostArray]:
        """Return the states in the order in which they are kept, and what each adds.

        Returns
        -------
        order : (n,) int array
            Indices of the states.
        scores : (n,) array
            In that order. Their squares add up to the square of the layer's H2 norm, without
            feedthrough.
        """

    @abstractmethod
    def refitted(
        self, weights: Weights, kept: HostArray, horizon: int | None
    ) -> dict[str, HostArray]:
        """Return the weights of a layer with the states `kept` alone, ascending indices."""

    @abstractmethod
    def kept_states(self, kept: HostArray, order: int) -> HostArray:
        """Return where the kept states of `order` are in the hidden state."""

    def scores(self, weights: Weights, horizon: int | None = None) -> HostArray:
        """Return the scores, descending."""
        return np.sort(self.ranking(weights, horizon)[1])[::-1]

    def shares(self, weights: Weights, horizon: int | None) -> tuple[HostArray, HostArray]:
        """Return the scores, descending, and by state."""
        picked, scores = self.ranking(weights, horizon)
        shares = np.zeros(scores.shape)
        shares[picked] = scores
        return np.sort(scores)[::-1], shares

    def resized(self, weights: Weights, order: int) -> dict[str, HostArray]:
        """Return zeros of other lengths along the axes of the states."""
        new: dict[str, HostArray] = {}
        for name, axis in self.state_axes().items():
            shape = list(weights[name].shape)
            shape[axis] = order
            new[name] = np.zeros(shape)
        return new

    def plan(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
    ) -> SelectionCut:
        """Keep what the rule asks for, and measure the layer as it would be written.

        Raises
        ------
        UnreachableToleranceError
            For an `ErrorBound`: no theorem bounds the error of a selection.
        """
        return _Plan(self, weights, options, storage).cut(as_rule(order))


@dataclass(frozen=True, eq=False)
class _Plan(SystemPlan["SelectionCut"]):
    """Selects states of one layer, and measures."""

    kind: SelectingLayer

    @cached_property
    def _system(self) -> System:
        return self.kind.read(self.weights).to_host()

    @cached_property
    def _ranking(self) -> tuple[HostArray, HostArray]:
        """The states as they are picked, and the score of each."""
        return self.kind.ranking(self.weights, self.options.horizon)

    def cut(self, rule: OrderRule) -> SelectionCut:
        """The cut by a rule."""
        if isinstance(rule, ErrorBound):
            raise UnreachableToleranceError(
                f"`order` is {rule} but {type(self.kind).__name__} keeps a selection of its own states, "
                "for whose error there is no bound; expected another rule. Try MeasuredError(0.01)."
            )
        if not np.any(self._ranking[1]):
            raise OrderError(
                f"{type(self.kind).__name__} puts out nothing, so that no state matters; expected weights "
                "that are not zero. Leave it out with options=CutOptions(exclude=...)."
            )
        if isinstance(rule, MeasuredError):
            return self.smallest(rule)
        return self.of_order(self.options.rounded_up(self._wanted(rule)))

    def _wanted(self, rule: OrderRule) -> int:
        """How many states hold what a rule asks for, as they are picked: scores need not descend there."""
        scores = self._ranking[1]
        descending = np.sort(scores)[::-1]
        wanted = rule.choose(descending)
        if isinstance(rule, FixedOrder):
            return wanted
        rounding = 1.0 - descending.size * float(np.finfo(np.float64).eps)
        counts = [wanted]
        for power in (1, 2):  # sums, as of `HankelMass`, and energies
            least = rounding * np.sum(descending[:wanted] ** power)
            counts.append(int(np.argmax(np.cumsum(scores**power) >= least)) + 1)
        return max(counts)

    def of_order(self, order: int) -> SelectionCut:
        """The layer with the first states as they are picked."""
        return self.made(np.sort(self._ranking[0][:order]))

    def unchanged(self) -> SelectionCut:
        """The layer as it is."""
        return self.made(np.arange(self.kind.order(self.weights)))

    def made(self, kept: HostArray) -> SelectionCut:
        """The cut that keeps these states."""
        new, system = self.weights, self._system
        unchanged = kept.size == self.kind.order(new)
        if not unchanged:
            refitted = self.kind.refitted(self.weights, kept, self.options.horizon)
            new = {**self.weights, **self.storage.rounded(refitted)}
            system = self.kind.read(new).to_host()
        scores = self._ranking[1]
        reduction = Reduction(
            original=self._system,
            system=system,
            order=system.order,
            real_order=kept.size,
            wanted_order=kept.size,
            rank=int(np.sum(scores > 0.0)),
            hsv=np.zeros(0),
            error_bound=None,
            horizon=self.options.horizon,
            method="selection with refit",
            scores=np.sort(scores)[::-1],
        )
        error = 0.0 if unchanged else self.kind.error_factor * float(reduction.measured())
        return SelectionCut(self.kind, reduction, error, self.weights, new, kept)


@dataclass(frozen=True, eq=False)
class SelectionCut(SystemCut):
    """A layer before and after a selection of its states.

    Attributes
    ----------
    kept : (r,) int array
        The states that were kept, ascending.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_layer
    >>> from ssmreduce.layers.linoss import LinOSS
    >>> weights = {
    ...     "A_diag": np.array([1.0, 2.0]),
    ...     "G_diag": np.array([0.5, 0.5]),
    ...     "steps": np.zeros(2),
    ...     "B": np.ones((2, 1, 2)),
    ...     "C": np.array([[[0.0, 0.0], [1.0, 0.0]]]),
    ...     "D": np.zeros(1),
    ... }
    >>> cut = reduce_layer(weights, 1, kind="linoss").cut
    >>> cut.kept.tolist(), cut.new_weights["A_diag"].tolist()
    ([1], [2.0])
    """

    kind: SelectingLayer
    kept: HostArray

    def carry(self, moments: dict[str, HostArray], *, squared: bool) -> dict[str, HostArray]:
        """Keep the moments of the states that are kept."""
        axes = self.kind.state_axes()
        return {
            name: np.take(value, self.kept, axis=axes[name]) if name in axes else value
            for name, value in moments.items()
        }

    def follow(self, weights: dict[str, HostArray], storage: WeightStorage) -> SelectionCut:
        """Keep the same states of a copy, and refit its own weights."""
        options = CutOptions(horizon=self.reduction.horizon)
        return _Plan(self.kind, weights, options, storage).made(self.kept)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the hidden state before: one axis."""
        return (self.kind.kept_states(np.arange(self.old_order), self.old_order).size,)

    def state_maps(self) -> tuple[HostArray, HostArray]:
        """Return the rows of the identity that are kept, and zero."""
        rows = np.eye(self.state_shape[0])[self.kind.kept_states(self.kept, self.old_order)]
        return rows, np.zeros_like(rows)
