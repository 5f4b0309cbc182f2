"""Optimizer state across a cut: first and second moments in the new coordinates.

Moments belong to weights, and a cut replaces the weights of a layer by those of another basis. With
real states x = T x_r and x_r = Wᵀ x the chain rule gives, for the (γ-folded) input and output
matrices,

    ∇B_r = Tᵀ [Re ∇B; Im ∇B],   ∇C_r = [Re ∇C, -Im ∇C] W,

and with a stored state v, s (column of V, row of its inverse) for a conjugate pair or a real pole

    ∇b' = 2 vᴴ ∇B_r (pair),  Re(vᴴ ∇B_r) (real);    ∇c' = ∇C_r sᴴ,  Re(∇C_r sᴴ).

All of this is linear, so first moments are mapped exactly; second moments take the squared
coefficients, real and imaginary parts apart, which is exact for uncorrelated gradients. Poles and γ
have no such image: their first moments are zero afterwards, and their second moments share out
the old sum evenly. Zero second moments would be wrong here: the step count of Adam goes on, no bias
correction remains, and steps would be several times too long for a while.

What a field holds is told by its name in optax: Adamax, which keeps a maximum under Adam's name ``nu``,
cannot be told apart and is carried as if it were Adam.

``"reset"`` zeroes all moments of a cut layer; ``"slice"`` keeps the first entries, in the wrong basis, as
CompreSSM does. Both exist for comparison.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from ssmreduce._namespace import HostArray, adjoint, to_double, to_host
from ssmreduce.adapters.registry import Path
from ssmreduce.errors import OptimizerStateError
from ssmreduce.models.report import LayerReduction

Moments = Literal["carry", "reset", "slice"]

_FIRST = frozenset({"mu", "trace", "ema", "acc_grads"})
"""Fields of optax states that average gradients."""

_SECOND = frozenset({"nu", "nu_max", "sum_of_squares", "e_g", "e_x"})
"""Fields of optax states that average squares of gradients or updates."""


def check_moments(moments: object) -> None:
    """Raise `OptimizerStateError` unless `moments` is one of the known treatments."""
    if moments not in get_args(Moments):
        raise OptimizerStateError(
            f"`moments` is {moments!r}; expected one of {', '.join(map(repr, get_args(Moments)))}."
        )


def reduce_optimizer_state(
    backend: ModuleType,
    model: Any,
    opt_state: Any,
    reductions: dict[Path, LayerReduction],
    moments: Moments,
) -> Any:
    """Return the optimizer state that goes with the reduced layers.

    Parameters
    ----------
    backend : module
        Adapter of the framework.
    model : pytree
        The model before the cut: its key paths tell which leaf of the state belongs to which weight.
    opt_state : pytree or None
        optax state, initialised from the model's arrays (nested as you like).
    reductions : dict
        By key path in the model, the layers that were cut.
    moments : {"carry", "reset", "slice"}
        Treatment.

    Returns
    -------
    pytree or None
        Same structure, new shapes; counts, schedules and all other layers untouched.

    Raises
    ------
    OptimizerStateError
        If a field is neither a known first nor second moment, or not shaped like its weight.
    """
    weights = {
        (*path, backend.attribute_key(name)): (path, name)
        for path, result in reductions.items()
        for name in result.layer_map.names()
    }
    model_paths = {path for path, _ in backend.leaves_with_paths(model)}
    groups: dict[tuple[Path, Path], dict[str, tuple[Path, HostArray]]] = {}
    for leaf_path, leaf in backend.leaves_with_paths(opt_state):
        start = next((i for i in range(len(leaf_path)) if leaf_path[i:] in model_paths), None)
        if start is None:
            _check_unrelated(leaf, backend.path_name(leaf_path))
        elif leaf_path[start:] in weights:
            layer_path, name = weights[leaf_path[start:]]
            group = groups.setdefault((leaf_path[:start], layer_path), {})
            group[name] = leaf_path, to_double(leaf)
    values: dict[Path, HostArray] = {}
    for (prefix, layer_path), group in groups.items():
        result = reductions[layer_path]
        field = backend.last_attribute(prefix)
        old = {name: array for name, (_, array) in group.items()}
        _check_field(field, old, result, backend.path_name(prefix))
        new_weights = backend.read_arrays(result.layer, result.layer_map.names())
        if moments == "carry":
            carried = _carry(old, result, new_weights, squared=field in _SECOND)
        elif moments == "slice":
            carried = {
                name: array[tuple(slice(length) for length in new_weights[name].shape)]
                for name, array in old.items()
            }
        else:
            carried = {name: np.zeros_like(new_weights[name]) for name in old}
        values |= {group[name][0]: array for name, array in carried.items()}
    return backend.replace_leaves(opt_state, values)


def _check_unrelated(leaf: Any, where: str) -> None:
    """Refuse arrays that belong to no weight: flattened or factored moments of cut layers, say."""
    if getattr(leaf, "ndim", 0) and np.issubdtype(to_host(leaf).dtype, np.inexact):
        raise OptimizerStateError(
            f"the optimizer state holds an array of shape {leaf.shape} at {where} that belongs to no "
            "weight of the model; expected moments with the model's structure. Initialise the "
            "optimizer from the model itself, not from a list or a flattened vector."
        )


def _check_field(
    field: str | None, old: dict[str, HostArray], result: LayerReduction, where: str
) -> None:
    if field not in _FIRST | _SECOND:
        raise OptimizerStateError(
            f"the optimizer state holds `{field}` at {where}, which is neither a first moment "
            f"({', '.join(sorted(_FIRST))}) nor a second one ({', '.join(sorted(_SECOND))}). "
            "Use optax.adam, adamw, sgd, rmsprop or lion, or initialise the optimizer afresh."
        )
    for name, array in old.items():
        expected = result.weights[name].shape
        if array.shape != expected:
            raise OptimizerStateError(
                f"`{field}` of `{name}` has shape {array.shape}; expected {expected}, that of the "
                "weight. Initialise the optimizer from the model as it is."
            )


def _carry(
    old: dict[str, HostArray],
    result: LayerReduction,
    new_weights: dict[str, HostArray],
    *,
    squared: bool,
) -> dict[str, HostArray]:
    """Map the moments of one layer; with `squared` through the squared coefficients."""
    layer_map, reduction = result.layer_map, result.reduction
    slot_map = reduction.slot_map
    assert slot_map is not None
    assert reduction.left is not None
    assert reduction.right is not None
    pair_weight = np.where(slot_map.is_pair, 2.0, 1.0)[:, None]
    to_input = pair_weight * (adjoint(slot_map.vectors) @ adjoint(reduction.right))
    to_output = reduction.left @ adjoint(slot_map.inverse)
    old_scale = np.tile(layer_map.input_scale(result.weights), 2)[:, None]
    new_scale = layer_map.input_scale(new_weights)[:, None]
    input_parts = [to_input.real, np.where(slot_map.is_pair[:, None], to_input.imag, 0.0)]
    output_parts = [to_output.real, np.where(slot_map.is_pair, to_output.imag, 0.0)]
    sign = -1.0
    if squared:
        old_scale, new_scale, sign = old_scale**2, new_scale**2, 1.0
        input_parts = [part**2 for part in input_parts]
        output_parts = [part**2 for part in output_parts]

    new = {name: old[name] for name in layer_map.feedthrough if name in old}
    for name in layer_map.poles:
        if name in old:
            share = old[name].sum() / result.new_order if squared else 0.0
            new[name] = np.full(result.new_order, share)
    if any(name in old for name in layer_map.input_matrix):
        real, imag = (_moment(old, name, result) for name in layer_map.input_matrix)
        stacked = np.concatenate([real, imag]) / old_scale
        for name, part in zip(layer_map.input_matrix, input_parts, strict=True):
            new[name] = new_scale * (part @ stacked)
    if any(name in old for name in layer_map.output_matrix):
        real, imag = (_moment(old, name, result) for name in layer_map.output_matrix)
        stacked = np.concatenate([real, sign * imag], axis=1)
        for name, part in zip(layer_map.output_matrix, output_parts, strict=True):
            new[name] = stacked @ part
    return {name: new[name] for name in old}


def _moment(old: dict[str, HostArray], name: str, result: LayerReduction) -> HostArray:
    """The moment of a weight; zero where the optimizer keeps none."""
    return old[name] if name in old else np.zeros(result.weights[name].shape)
