"""Optimizer state across a cut: first and second moments in the new coordinates.

Moments belong to weights, and a cut replaces the weights of a layer by those of another basis. Gradients
are those of torch's convention, ∇z = ∂/∂Re z + i ∂/∂Im z. With real states x = T x_r, x_r = Wᵀ x, and
a stored state v, s (column of V, row of its inverse) for a conjugate pair or a real pole, the chain rule
gives for input and output matrices of the systems

    ∇b' = 2 vᴴ Tᵀ [Re ∇B; Im ∇B] (pair),  the real part without the 2 (real pole);
    ∇c' = [Re ∇C, -Im ∇C] W sᴴ (pair),  its real part (real pole).

A layer stores matrices up to a factor that belongs to its poles, B = f B_stored, so that ∇B_stored =
conj(f) ∇B. All of this is linear, one real matrix on [Re; Im], so first moments are mapped exactly; second
moments take the squared entries of that matrix, which is exact for uncorrelated gradients; those of centred
RMSprop do so about their means, so that no variance becomes negative. Poles have
no such image: their first moments are zero afterwards, and their second moments share out the old sum
evenly. Zero second moments would be wrong here: the step count of Adam goes on, no bias correction remains,
and steps would be several times too long for a while. States that only pad a channel get the mean of the
others for the same reason.

What a field holds is told by its name: Adamax, which keeps a maximum under Adam's name ``nu`` in optax,
cannot be told apart and is carried as if it were Adam.

``"reset"`` zeroes all moments of a cut layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ssmreduce._namespace import HostArray, adjoint
from ssmreduce.adapters.change import Path
from ssmreduce.adapters.moments import Moments as LayerMoments
from ssmreduce.errors import NonFiniteError, OptimizerStateError, UnsupportedLayerError
from ssmreduce.layers.layer_map import LayerMap
from ssmreduce.models.options import Moments
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.stored_states import stored_basis
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.real_form import real_input

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
    backend: ModuleType,
    model: Any,
    opt_state: Any,
    reductions: dict[Path, LayerReduction],
    moments: Moments,
) -> dict[Any, HostArray]:
    """Return the moments that go with the reduced layers, by the keys of the adapter.

    Parameters
    ----------
    backend : module
        Adapter of the framework.
    model : object
        The model before the cut: it tells which moment belongs to which weight.
    opt_state : object or None
        optax state, initialised from the model's arrays (nested as you like), or torch optimizer.
    reductions : dict
        By key path in the model, the layers that were cut.
    moments : {"carry", "reset"}
        Treatment.

    Returns
    -------
    dict
        New moments of cut layers; counts, schedules and all other layers are not in it.

    Raises
    ------
    OptimizerStateError
        If a field is neither a known first nor second moment, or not shaped like its weight.
    """
    names = {path: result.layer_map.names() for path, result in reductions.items()}
    values: dict[Any, HostArray] = {}
    groups = list(backend.moments_of(model, opt_state, names))
    for group in groups:
        result = reductions[group.layer_path]
        old = {name: array for name, (_, array) in group.arrays.items()}
        _check_field(group, old, result)
        if moments == "carry":
            _check_finite(group, {name: old[name] for name in result.changed if name in old})
            carried = _carry(old, result, squared=group.field in _SECOND)
            mean = next((each for each in groups if _is_mean(each, group)), None)
            if mean is not None:
                carried |= _carry_about(mean, old, result)
        else:
            carried = {name: np.zeros_like(result.new_weights[name]) for name in old}
        values |= _by_key(group, old, carried, result)
    return values


def reduced_gradients(
    groups: Sequence[LayerMoments], reductions: dict[Path, LayerReduction]
) -> dict[Any, HostArray]:
    """Return the gradients of the reduced layers, carried as first moments; NaN and Inf remain."""
    values: dict[Any, HostArray] = {}
    for group in groups:
        result = reductions[group.layer_path]
        old = {name: array for name, (_, array) in group.arrays.items()}
        with np.errstate(invalid="ignore", over="ignore"):
            carried = _carry(old, result, squared=False)
        for name in result.layer_map.poles:  # what a scaler looks for must not get lost
            if name in carried and not np.all(np.isfinite(old[name])):
                carried[name] = np.full_like(carried[name], np.nan)
        values |= _by_key(group, old, carried, result)
    return values


def _by_key(
    group: LayerMoments,
    old: dict[str, HostArray],
    carried: dict[str, HostArray],
    result: LayerReduction,
) -> dict[Any, HostArray]:
    """Carried moments by the keys of the adapter, and those of weights that stay as they are."""
    carried = carried | {name: old[name] for name in old if name not in result.changed}
    return {group.arrays[name][0]: array for name, array in carried.items()}


def _check_field(group: LayerMoments, old: dict[str, HostArray], result: LayerReduction) -> None:
    if group.field not in _FIRST | _SECOND:
        raise OptimizerStateError(
            f"the optimizer state holds `{group.field}` at {group.where}, which is neither a first "
            f"moment ({', '.join(sorted(_FIRST))}) nor a second one ({', '.join(sorted(_SECOND))}). "
            "Use Adam, AdamW, SGD, RMSprop or Lion, or initialise the optimizer afresh."
        )
    for name, array in old.items():
        expected = result.weights[name].shape
        if array.shape != expected:
            raise OptimizerStateError(
                f"`{group.field}` of `{name}` has shape {array.shape}; expected {expected}, that of the "
                "weight. Initialise the optimizer from the model as it is."
            )


def _check_finite(group: LayerMoments, old: dict[str, HostArray]) -> None:
    for name, array in old.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"`{group.field}` of `{name}` at {group.where} holds NaN or Inf, which a cut would carry to "
                "all states; expected finite moments. Look at the step before, or pass "
                "options=CutOptions(moments='reset')."
            )


def _is_mean(group: LayerMoments, squares: LayerMoments) -> bool:
    """Whether a group holds the means about which centred RMSprop takes the mean squares of another."""
    fields = squares.field, group.field
    together = group.where.rpartition(".")[0] == squares.where.rpartition(".")[0]
    return (
        fields == ("square_avg", "grad_avg") and together and group.layer_path == squares.layer_path
    )


def _carry_about(
    mean: LayerMoments, squares: dict[str, HostArray], result: LayerReduction
) -> dict[str, HostArray]:
    """Map mean squares as variances about a mean, v' = M² (v - g²) + (M g)², which stay above (M g)²."""
    g = {name: array for name, (_, array) in mean.arrays.items() if name in squares}
    variances = {name: _positive(squares[name] - _squared(g[name])) for name in g}
    moved, centre = _carry(variances, result, squared=True), _carry(g, result, squared=False)
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


def _carry(
    old: dict[str, HostArray], result: LayerReduction, *, squared: bool
) -> dict[str, HostArray]:
    """Map the moments of one layer; with `squared` through the squared coefficients."""
    # A weight for which the optimizer keeps no moment counts as one with moment zero.
    full = {name: old.get(name, np.zeros_like(weight)) for name, weight in result.weights.items()}
    new: dict[str, HostArray] = {}
    if result.layer_map.carries_matrices:
        new |= _carried_matrices(full, result, squared=squared)
    for name in result.layer_map.poles:
        shape = result.new_weights[name].shape
        new[name] = np.zeros(shape)
        if squared and name in result.changed:
            axis = [before == after for before, after in zip(full[name].shape, shape, strict=True)]
            at = axis.index(False)
            total = np.sum(full[name], axis=at, keepdims=True)
            new[name] = np.broadcast_to(total / shape[at], shape)
    lost = [name for name in result.changed if name in old and name not in new]
    if lost:
        raise UnsupportedLayerError(
            f"`{lost[0]}` has a new shape, but is neither in `poles` of "
            f"{type(result.layer_map).__name__} nor among its `matrix_weights`; expected one of them, since "
            "its moments follow by that. Name it in `poles` if it belongs to the poles."
        )
    return {name: new[name] for name in old if name in new}


def _carried_matrices(
    full: dict[str, HostArray], result: LayerReduction, *, squared: bool
) -> dict[str, HostArray]:
    """Map the moments of input and output matrix."""
    layer_map = result.layer_map
    stored_B, stored_C = layer_map.matrices(full)
    new_B, new_C = layer_map.matrices(result.new_weights)
    B, C = np.zeros(new_B.shape, complex), np.zeros(new_C.shape, complex)
    factors = (*layer_map.scales(result.weights), *layer_map.scales(result.new_weights))
    parts = result.reduction.parts or (result.reduction,)
    for part, at in zip(parts, np.ndindex(B.shape[:-2]), strict=True):
        old_s, old_t, new_s, new_t = (factor[at] for factor in factors)
        to_input, to_output = _state_maps(part, layer_map)
        assert part.slot_map is not None
        kept, is_pair = part.slot_map.order, part.slot_map.is_pair
        columns = _moved(to_input, stored_B[at], old_s, new_s[:kept], is_pair, squared)
        rows = _moved(to_output, stored_C[at].swapaxes(0, 1), old_t, new_t[:kept], is_pair, squared)
        B[at][:kept], C[at][:, :kept] = columns, rows.swapaxes(0, 1)
        if squared:
            B[at][kept:] = columns.mean(axis=0)
            C[at][:, kept:] = rows.mean(axis=0)[:, None]
    return layer_map.matrix_weights(B, C)


def _state_maps(part: Reduction, layer_map: LayerMap) -> tuple[HostArray, HostArray]:
    """Complex maps from [Re; Im] of ∇B, and of conj(∇C)ᵀ, to ∇b' and ∇c'ᵀ, all (r, 2n)."""
    slot_map, left, right = part.slot_map, part.left, part.right
    assert slot_map is not None
    assert left is not None
    assert right is not None
    vectors, inverse = stored_basis(part, layer_map)
    weight = np.where(slot_map.is_pair, 2.0, 1.0)[:, None]
    to_input = weight * (adjoint(vectors) @ adjoint(right))
    # ∇c'ᵀ = conj(s) Wᵀ [Re; -Im] of ∇Cᵀ.
    to_output = inverse.conj() @ adjoint(left)
    n = left.shape[0] // 2
    return to_input, to_output * np.where(np.arange(2 * n) < n, 1.0, -1.0)


def _moved(
    to_state: HostArray,
    moments: HostArray,
    old_factor: HostArray,
    new_factor: HostArray,
    is_pair: HostArray,
    squared: bool,
) -> HostArray:
    """Moments (n, k) of a stored matrix in the new states, (r, k), by one real matrix on [Re; Im]."""
    undone = _real_diagonal(1.0 / np.conj(old_factor))
    system = to_state @ undone
    parts = np.concatenate([system.real, np.where(is_pair[:, None], system.imag, 0.0)])
    total = _real_diagonal(np.conj(new_factor)) @ parts
    moved: HostArray = (total**2 if squared else total) @ real_input(moments)
    r = is_pair.size
    return moved[:r] + 1j * moved[r:]


def _real_diagonal(factor: HostArray) -> HostArray:
    """The real matrix on [Re; Im] that multiplies by complex factors."""
    real, imag = np.diag(factor.real), np.diag(np.imag(factor))
    return np.block([[real, -imag], [imag, real]])
