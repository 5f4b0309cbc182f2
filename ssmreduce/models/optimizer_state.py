"""Optimizer state across a cut: which fields are first and second moments, and where they go.

How the moments of a layer follow its cut is said by its `LayerCut`. What a field holds is told by its name:
Adamax, which keeps a maximum under Adam's name ``nu`` in optax, cannot be told apart and is carried as if it
were Adam. ``"reset"`` zeroes all moments of a cut layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import NonFiniteError, OptimizerStateError
from ssmreduce.frameworks.handle import Path
from ssmreduce.frameworks.moments import Moment, reason_against
from ssmreduce.layers.cut import LayerCut
from ssmreduce.layers.options import Moments

_FIRST = frozenset(
    {"mu", "trace", "ema", "acc_grads", "exp_avg", "momentum_buffer", "grad_avg"},
)
"""Fields of optax and torch states that average gradients."""

_SECOND = frozenset(
    {"nu", "nu_max", "sum_of_squares", "e_g", "e_x"}
    | {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum"},
)
"""Fields of optax and torch states that average squares of gradients or updates."""


def reduced_moments(
    held: Sequence[Moment], cuts: Mapping[Path, LayerCut], moments: Moments
) -> dict[Any, HostArray]:
    """Return the moments that go with the reduced layers, by the keys of the framework.

    Parameters
    ----------
    held : sequence of Moment
        What the optimizer holds for the layers that are cut.
    cuts : dict
        What becomes of them, by path.
    moments : {"carry", "reset"}
        Treatment.

    Raises
    ------
    OptimizerStateError
        If a field is neither a known first nor second moment, or not shaped like its weight.
    """
    check_fields(held, {path: cut.weights for path, cut in cuts.items()})
    groups: dict[tuple[Path, str, str | None], dict[str, Moment]] = {}
    for each in held:
        groups.setdefault((each.layer_path, each.where, each.field), {})[each.name] = each
    values: dict[Any, HostArray] = {}
    for (path, where, field), group in groups.items():
        cut = cuts[path]
        old = {name: each.value for name, each in group.items()}
        if moments == "carry":
            for name in cut.changed:
                if name in old and not np.isfinite(old[name]).all():
                    raise NonFiniteError(
                        f"`{field}` of `{name}` at {where} holds NaN or Inf, which a cut would "
                        "carry to all states; expected finite moments. Look at the step before, or pass "
                        "options=CutOptions(moments='reset')."
                    )
            carried = cut.carry(old, squared=field in _SECOND)
            means = _means_about(path, where, held) if field == "square_avg" else {}
            if means:
                carried |= _carry_about(means, old, cut)
        else:
            carried = {name: np.zeros_like(cut.new_weights[name]) for name in old}
        for name, each in group.items():
            new = carried[name] if name in cut.changed else each.value
            values[each.key] = np.asarray(new.real + new.imag) if each.moduli else new
    return values


_ADVICE = {
    True: "A moment of the whole weight, as NovoGrad has it, cannot follow: use AdamW, or cut without the "
    "optimizer and start it anew.",
    False: "Initialise the optimizer from the model as it is.",
}
"""By whether the moment is one number."""


def check_fields(held: Sequence[Moment], weights: Mapping[Path, Mapping[str, HostArray]]) -> None:
    """Raise `OptimizerStateError` unless what an optimizer holds for layers can follow a cut.

    Parameters
    ----------
    held : sequence of Moment
        What it holds.
    weights : dict
        The weights of the layers, by path.
    """
    for each in held:
        if each.field not in _FIRST | _SECOND:
            raise OptimizerStateError(
                f"the optimizer state holds `{each.field}` at {each.where}, which is "
                f"{reason_against(each.field)}; expected averages of gradients and of their squares, entry "
                "by entry. Use Adam, AdamW, SGD, RMSprop or Lion, or cut without the optimizer and start it "
                "anew."
            )
        shape, expected = each.value.shape, weights[each.layer_path][each.name].shape
        if shape != expected:
            raise OptimizerStateError(
                f"`{each.field}` of `{each.name}` has shape {shape}; expected {expected}, that of the "
                f"weight. {_ADVICE[not shape]}"
            )


def _means_about(path: Path, where: str, held: Sequence[Moment]) -> dict[str, HostArray]:
    """The means about which centred RMSprop takes mean squares; none where these are about zero."""
    return {
        each.name: each.value
        for each in held
        if each.field == "grad_avg"
        and each.layer_path == path
        and _holder(each.where) == _holder(where)
    }


def _holder(where: str) -> str:
    """What a field belongs to: all before the last dot or slash."""
    return where[: max(where.rfind("."), where.rfind("/")) + 1]


def _carry_about(
    means: dict[str, HostArray], squares: dict[str, HostArray], cut: LayerCut
) -> dict[str, HostArray]:
    """Map mean squares as variances about a mean, v' = M² (v - g²) + (M g)², which stay above (M g)²."""
    g = {name: array for name, array in means.items() if name in squares}
    positive = partial(np.maximum, 0.0)
    variances = {
        name: _by_parts(positive, squares[name] - _by_parts(np.square, g[name])) for name in g
    }
    moved, centre = cut.carry(variances, squared=True), cut.carry(g, squared=False)
    return {name: moved[name] + _by_parts(np.square, centre[name]) for name in moved}


def _by_parts(function: Callable[[HostArray], HostArray], values: HostArray) -> HostArray:
    """What a function makes of real and imaginary parts, each alone, as torch keeps moments."""
    if np.iscomplexobj(values):
        return np.asarray(function(values.real) + 1j * function(values.imag))
    return function(values)
