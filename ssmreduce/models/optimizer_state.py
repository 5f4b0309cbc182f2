"""Optimizer state across a cut: which fields are first and second moments, and where they go.

How the moments of a layer follow its cut is said by its `LayerCut`. What a field holds is told by its name:
Adamax, which keeps a maximum under Adam's name ``nu`` in optax, cannot be told apart and is carried as if it
were Adam. ``"reset"`` zeroes all moments of a cut layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import NonFiniteError, OptimizerStateError
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.moments import Moments as LayerMoments
from ssmreduce.frameworks.moments import reason_against
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
    groups: Sequence[LayerMoments], cuts: Mapping[Path, LayerCut], moments: Moments
) -> dict[Any, HostArray]:
    """Return the moments that go with the reduced layers, by the keys of the framework.

    Parameters
    ----------
    groups : sequence of Moments
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
    values: dict[Any, HostArray] = {}
    for group in groups:
        cut = cuts[group.layer_path]
        old = {name: array for name, (_, array) in group.arrays.items()}
        _check_field(group, old, cut.weights)
        if moments == "carry":
            for name in cut.changed:
                if name in old and not np.isfinite(old[name]).all():
                    raise NonFiniteError(
                        f"`{group.field}` of `{name}` at {group.where} holds NaN or Inf, which a cut would "
                        "carry to all states; expected finite moments. Look at the step before, or pass "
                        "options=CutOptions(moments='reset')."
                    )
            carried = cut.carry(old, squared=group.field in _SECOND)
            mean = _mean_about(group, groups) if group.field == "square_avg" else None
            if mean is not None:
                carried |= _carry_about(mean, old, cut)
        else:
            carried = {name: np.zeros_like(cut.new_weights[name]) for name in old}
        values |= {
            key: carried[name] if name in cut.changed else array
            for name, (key, array) in group.arrays.items()
        }
    return values


def reduced_gradients(
    groups: Sequence[LayerMoments], cuts: Mapping[Path, LayerCut]
) -> dict[Any, HostArray]:
    """Return the gradients of the reduced layers, carried as first moments; NaN and Inf remain."""
    values: dict[Any, HostArray] = {}
    for group in groups:
        cut = cuts[group.layer_path]
        old = {name: array for name, (_, array) in group.arrays.items()}
        with np.errstate(invalid="ignore", over="ignore"):
            carried = cut.carry(old, squared=False)
        for name in cut.without_image:  # what a scaler looks for must not get lost
            if name in carried and not np.all(np.isfinite(old[name])):
                carried[name] = np.full_like(carried[name], np.nan)
        values |= {
            key: carried[name] if name in cut.changed else array
            for name, (key, array) in group.arrays.items()
        }
    return values


_ADVICE = {
    True: "A moment of the whole weight, as NovoGrad has it, cannot follow: use AdamW, or cut without the "
    "optimizer and start it anew.",
    False: "Initialise the optimizer from the model as it is.",
}
"""By whether the moment is one number."""


def check_fields(groups: Sequence[LayerMoments], handles: Sequence[LayerHandle]) -> None:
    """Raise `OptimizerStateError` unless what an optimizer holds for these layers can follow a cut."""
    weights = {handle.path: handle.weights for handle in handles}
    for group in groups:
        own = {name: array for name, (_, array) in group.arrays.items()}
        _check_field(group, own, weights[group.layer_path])


def _check_field(
    group: LayerMoments, old: dict[str, HostArray], weights: Mapping[str, HostArray]
) -> None:
    if group.field not in _FIRST | _SECOND:
        raise OptimizerStateError(
            f"the optimizer state holds `{group.field}` at {group.where}, which is "
            f"{reason_against(group.field)}; expected averages of gradients and of their squares, entry by "
            "entry. Use Adam, AdamW, SGD, RMSprop or Lion, or cut without the optimizer and start it anew."
        )
    for name, array in old.items():
        expected = weights[name].shape
        if array.shape != expected:
            raise OptimizerStateError(
                f"`{group.field}` of `{name}` has shape {array.shape}; expected {expected}, that of the "
                f"weight. {_ADVICE[not array.shape]}"
            )


def _mean_about(squares: LayerMoments, groups: Sequence[LayerMoments]) -> LayerMoments | None:
    """The means about which centred RMSprop takes mean squares; None where these are about zero."""
    place = squares.layer_path, _holder(squares.where)
    return next(
        (
            each
            for each in groups
            if each.field == "grad_avg" and (each.layer_path, _holder(each.where)) == place
        ),
        None,
    )


def _holder(where: str) -> str:
    """What a field belongs to: all before the last dot or slash."""
    return where[: max(where.rfind("."), where.rfind("/")) + 1]


def _carry_about(
    mean: LayerMoments, squares: dict[str, HostArray], cut: LayerCut
) -> dict[str, HostArray]:
    """Map mean squares as variances about a mean, v' = M² (v - g²) + (M g)², which stay above (M g)²."""
    g = {name: array for name, (_, array) in mean.arrays.items() if name in squares}
    variances = {name: _positive(squares[name] - _squared(g[name])) for name in g}
    moved, centre = cut.carry(variances, squared=True), cut.carry(g, squared=False)
    return {name: moved[name] + _squared(centre[name]) for name in moved}


def _squared(values: HostArray) -> HostArray:
    """Squares, of real and imaginary parts apart, as torch keeps them."""
    if np.iscomplexobj(values):
        return np.asarray(values.real**2 + 1j * values.imag**2)
    return np.asarray(values**2)


def _positive(values: HostArray) -> HostArray:
    """The values, zero where they are negative, of real and imaginary parts apart."""
    if np.iscomplexobj(values):
        return np.asarray(np.maximum(values.real, 0.0) + 1j * np.maximum(values.imag, 0.0))
    return np.asarray(np.maximum(values, 0.0))
