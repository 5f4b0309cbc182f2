"""What came of reducing layers: `LayerReduction`, `ModelReduction` and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce._display import cell, html_table, short, text_table
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.layers.cut import LayerCut
from ssmreduce.layers.layer import Layer
from ssmreduce.models.choice import Choice, LossAtCut
from ssmreduce.reduction.report import Reduction

_HEADS = {
    "old_order": "states",
    "new_order": "order",
    "method": "method",
    "output_error": "output error",
    "error_bound": "error bound",
    "measured_error": "error at least",
    "parameters_saved": "parameters saved",
    "bytes_saved": "bytes saved",
}
"""What a table says of a layer, and what is written above it."""

_ONLY_BY_DATA = ("method", "output_error")
"""What it says of layers that were cut by data alone."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerReduction:
    """A layer before and after.

    Attributes
    ----------
    layer : object
        The reduced layer; the original object itself if nothing was cut, or if it was changed in
        place, as PyTorch modules are.
    cut : LayerCut
        What was decided, and what follows from it.
    item_sizes : dict of str to int
        Bytes of one entry of each weight.
    seconds : float
        Wall-clock time of reading, balancing, writing and measuring; 0 for a follower.
    choice : Choice or None
        How the method was chosen, where the layer was cut by data.
    losses : LossAtCut or None
        What the whole cut does to the loss, where the data have one and one process can run the
        model.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_layer
    >>> from ssmreduce.demo.lru import LRU
    >>> result = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6)
    >>> result.old_order, result.new_order, result.parameters_saved
    (16, 6, 190)
    >>> result.measured_error <= result.error_bound
    True
    """

    layer: Any
    cut: LayerCut
    item_sizes: dict[str, int]
    seconds: float = 0.0
    choice: Choice | None = None
    losses: LossAtCut | None = None

    def __repr__(self) -> str:
        by_data = ""
        if self.method is not None:
            by_data = f"method={self.method!r}, output_error={short(self.output_error)}, "
        return (
            f"LayerReduction({self.old_order} -> {self.new_order} states, {by_data}"
            f"error_bound={short(self.error_bound)}, measured_error={short(self.measured_error)})"
        )

    def _repr_html_(self) -> str:
        return html_table([row[1:] for row in _rows({"": self})])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        losses = {
            "loss_before": None if self.losses is None else self.losses.before,
            "loss_after": None if self.losses is None else self.losses.after,
            "constant_loss": None if self.losses is None else self.losses.constant,
            "unmatched_loss": None if self.losses is None else self.losses.unmatched,
        }
        return {name: getattr(self, name) for name in (*_HEADS, "seconds")} | losses

    def plot(self, *, ax: Any = None) -> HostArray:
        """Draw the values by which states were ranked, poles, gain and impulse response.

        Parameters
        ----------
        ax : four Axes, optional
            Where to draw; a new figure otherwise. A layer that runs no one system takes one.

        Returns
        -------
        (2, 2) array of Axes
            As `Reduction.plot` returns it; (1, 1), of the values alone, for a layer that runs no
            one system.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        ArgumentError, ShapeError
            If `ax` is not as many Matplotlib axes.
        """
        if self.cut.reduction is not None:
            return self.cut.reduction.plot(ax=ax)
        from ssmreduce.plotting.axes import panels
        from ssmreduce.plotting.decay import plot_hsv

        axes = panels(ax, (6.4, 4.2), 1, 1)
        plot_hsv(self.cut.scores, self.new_order, name=self.cut.scores_name, ax=axes[0, 0])
        return axes

    @property
    def method(self) -> str | None:
        """How it was cut by data, as `CutOptions` names it; None without data."""
        return None if self.choice is None else self.choice.method

    @property
    def output_error(self) -> float | None:
        """Relative error of the held-out outputs; None without data, or where they were matched."""
        return self.cut.output_error

    @property
    def kind(self) -> Layer:
        """What the weights of this kind of layer mean."""
        return self.cut.kind

    @property
    def reduction(self) -> Reduction:
        """How it was reduced; ``reduction.system`` was read back from what was written.

        A batch where the layer runs its channels apart.

        Raises
        ------
        UnsupportedLayerError
            If the layer runs no one system, as one does that is selective.
        """
        if self.cut.reduction is None:
            raise UnsupportedLayerError(
                f"this {type(self.kind).__name__} layer runs no one system, of which there could be a "
                "reduction; expected a linear time-invariant layer. Look at output_error, and at cut."
            )
        return self.cut.reduction

    @property
    def measured_error(self) -> float | None:
        """Measured error of the written layer, a lower bound from a coarse grid; of the worst
        channel.

        None where the layer runs no one system. See `Reduction.quick_error`; ``reduction.verify()``
        takes longer.
        """
        return self.cut.measured_error

    @property
    def weights(self) -> dict[str, HostArray]:
        """Weights of the layer before, on the host."""
        return self.cut.weights

    @property
    def new_weights(self) -> dict[str, HostArray]:
        """Weights after."""
        return self.cut.new_weights

    @property
    def old_order(self) -> int:
        """Stored states before, of each channel where they run apart."""
        return self.cut.old_order

    @property
    def new_order(self) -> int:
        """Stored states after."""
        return self.cut.new_order

    @property
    def error_bound(self) -> float | None:
        """Bound on the H-infinity error of the layer before rounding; None where there is none."""
        return self.cut.error_bound

    @property
    def parameters_saved(self) -> int:
        """Entries of weights that the cut removed; a complex number counts as one."""
        return sum(self._entries_saved(name) for name in self.weights)

    @property
    def bytes_saved(self) -> int:
        """Bytes of weights that the cut removed."""
        return sum(self._entries_saved(name) * self.item_sizes[name] for name in self.weights)

    def reduce_state(self, state: Array) -> Array:
        """Return the hidden state with which a stream continues after the cut: h_r = S Wᵀ [Re h; Im h].

        The reduced layer then continues from the projection x_r = Wᵀ x, as its system would.

        Parameters
        ----------
        state : (..., n) complex array
            State h[k] = λ h[k-1] + B u[k] of the layer before the cut, of any array library, with any
            leading axes; ``(..., H, n)`` where the layer runs H channels apart. B is that of
            `read_system`.

        Returns
        -------
        (..., r) array
            In the library, dtype and device of `state`, which it depends on differentiably; `state`
            itself if nothing was cut.

        Raises
        ------
        ShapeError
            If the last axes do not fit, or `state` is not complex.

        Examples
        --------
        >>> import numpy as np
        >>> from ssmreduce import reduce_layer
        >>> from ssmreduce.demo.lru import LRU
        >>> result = reduce_layer(LRU(16, 4, rng=np.random.default_rng(0)), 6)
        >>> result.reduce_state(np.zeros((3, 16), dtype=complex)).shape
        (3, 6)
        """
        return self.cut.reduce_state(state)

    def _entries_saved(self, name: str) -> int:
        return int(self.weights[name].size - self.new_weights[name].size)


class ModelReport(dict[str, LayerReduction]):
    """Result for each layer, by its name in the model: a dict of `LayerReduction` that prints as a
    table.

    After a cut by data the table has the method, and the error of held-out outputs next to the
    error for the worst input, which such a cut need not keep small.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_model
    >>> from ssmreduce.demo.lru import LRU
    >>> report = reduce_model([LRU(16, 4, rng=np.random.default_rng(0))], 6).report
    >>> print(report)
    layer  states  order  error bound  error at least  parameters saved  bytes saved
    [0]        16      6         34.5            3.52               190          760
    total      16      6                                            190          760
    >>> report.to_dict()["[0]"]["new_order"]
    6
    """

    def __repr__(self) -> str:
        return f"ModelReport({self._summary()})"

    def __str__(self) -> str:
        """The table, with a line of totals, in which weights that layers share count once."""
        said = self._losses_said()
        return text_table(self._rows()) + (f"\n{said}" if said else "")

    def _repr_html_(self) -> str:
        said = self._losses_said()
        return html_table(self._rows()) + (f"\n<p>{said}</p>" if said else "")

    def _losses_said(self) -> str:
        """What the cut does to the loss, in a line; nothing where that is not known."""
        losses = next((part.losses for part in self.values() if part.losses is not None), None)
        if losses is None:
            return ""
        constant = losses.constant
        beside = "" if constant is None else f"; of a constant prediction {short(constant)}"
        change = f"{short(losses.before)} before, {short(losses.after)} after"
        if losses.unmatched is not None:
            change += f", {short(losses.unmatched)} without matched outputs"
        return f"loss on what was held out: {change}{beside}"

    def _summary(self) -> str:
        """Number of layers, states and the largest error; of outputs, where no other is known."""
        states, orders, _, _ = self.totals()
        count = f"{len(self)} layer{'' if len(self) == 1 else 's'}"
        known = {
            name: [error for part in self.values() if (error := getattr(part, name)) is not None]
            for name in ("measured_error", "output_error")
        }
        name = next((name for name, errors in known.items() if errors), "measured_error")
        largest = short(max(known[name], default=None))
        return f"{count}, {states} -> {orders} states, largest {name}={largest}"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain numbers by layer, for JSON, or ``pandas.DataFrame.from_dict(..., orient="index")``."""
        return {name: part.to_dict() for name, part in self.items()}

    def plot(self, *, ax: Any = None) -> HostArray:
        """Draw the states of each layer before and after, and next to them its errors and bound.

        Parameters
        ----------
        ax : two Axes, optional
            Where to draw; a new figure otherwise.

        Returns
        -------
        (2,) array of Axes
            See `ssmreduce.plotting.plot_layers`.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        """
        from ssmreduce.plotting.layers import plot_layers

        parts = list(self.values())
        errors = {
            "error bound": [part.error_bound for part in parts],
            "measured error (at least)": [part.measured_error for part in parts],
        }
        if any(part.output_error is not None for part in parts):
            errors["output error (relative)"] = [part.output_error for part in parts]
        orders = [part.old_order for part in parts], [part.new_order for part in parts]
        return plot_layers([*self], *orders, errors=errors, ax=ax)

    def _rows(self) -> list[tuple[str, ...]]:
        states, orders, parameters, saved = self.totals()
        rows = _rows(self)
        between = [""] * (len(rows[0]) - 5)
        total = ("total", str(states), str(orders), *between, f"{parameters:,}", f"{saved:,}")
        return [*rows, total]

    def totals(self) -> tuple[int, int, int, int]:
        """Return states before and after, parameters and bytes saved; shared weights count once."""
        once = list({id(part.weights): part for part in self.values()}.values())
        return (
            sum(part.old_order for part in once),
            sum(part.new_order for part in once),
            sum(part.parameters_saved for part in once),
            sum(part.bytes_saved for part in once),
        )


@dataclass(frozen=True, eq=False, repr=False)
class ModelReduction:
    """A model after its layers were reduced.

    Attributes
    ----------
    model : object
        The reduced model; the same object for PyTorch, which is changed in place.
    optimizer_state : object or None
        The optimizer state that goes with it, for PyTorch the optimizer, changed in place; None if
        none was given.
    report : ModelReport
        Result for each supported layer, by its name in the model: a dict of `LayerReduction` that
        prints as a table.
    skipped : dict of str to str
        Layers that cannot be reduced and were skipped, by name, with the reason.
    followers : tuple of ModelReduction
        The copies that followed, with reports of their own: errors are those of the copy, Hankel
        singular values those of the model.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import reduce_model
    >>> from ssmreduce.demo.lru import LRU
    >>> model = {"first": LRU(16, 4, rng=np.random.default_rng(0))}
    >>> result = reduce_model(model, 6)
    >>> result.model["first"].nu_log.shape, result.skipped, result.followers
    ((6,), {}, ())
    """

    model: Any
    optimizer_state: Any
    report: ModelReport
    skipped: dict[str, str] = field(default_factory=dict)
    followers: tuple[ModelReduction, ...] = ()

    def __repr__(self) -> str:
        parts = [self.report._summary()]
        parts += [f"{len(self.skipped)} not reduced"] if self.skipped else []
        parts += [f"{len(self.followers)} followed"] if self.followers else []
        return f"ModelReduction({', '.join(parts)})"

    def _repr_html_(self) -> str:
        table = self.report._repr_html_()
        if not self.skipped:
            return table
        return f"{table}\n{html_table([('not reduced', 'reason'), *self.skipped.items()])}"

    def plot(self, *, ax: Any = None) -> HostArray:
        """Draw the report, as `ModelReport.plot` does.

        Parameters
        ----------
        ax : two Axes, optional
            Where to draw; a new figure otherwise.

        Returns
        -------
        (2,) array of Axes
            See `ssmreduce.plotting.plot_layers`.

        Raises
        ------
        MissingBackendError
            If Matplotlib is not installed.
        """
        return self.report.plot(ax=ax)

    def __str__(self) -> str:
        """The table of the report, and what was passed over."""
        skipped = [f"not reduced: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join([str(self.report), *skipped])


def _rows(parts: Mapping[str, LayerReduction]) -> list[tuple[str, ...]]:
    """A head, and a row of each layer, with what only a cut by data has where there is one."""
    by_data = any(part.choice is not None for part in parts.values())
    heads = {name: head for name, head in _HEADS.items() if by_data or name not in _ONLY_BY_DATA}
    if by_data:
        heads["measured_error"] = "worst input: at least"
    rows = [(own, *(_cell(part, name) for name in heads)) for own, part in parts.items()]
    return [("layer", *heads.values()), *rows]


def _cell(part: LayerReduction, name: str) -> str:
    value = getattr(part, name)
    return f"{value:,}" if name.endswith("saved") else cell(value)
