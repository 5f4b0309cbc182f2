"""Runs of Equinox models: what their layers are given, and how a loss depends on what they put out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ssmreduce._checks import type_name
from ssmreduce.errors import MissingBackendError, ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.pytree_callbacks import Received, numbered
from ssmreduce.frameworks.pytree_stand_ins import with_stand_ins, with_zero_outputs
from ssmreduce.frameworks.recording import SAME_LOSS, Recorded

_OLDEST = (0, 8, 2)
"""The first JAX whose ``custom_vmap`` keeps the callbacks inside of it."""

_SPREAD = ("ordered effects", "is not found in mesh")
"""What JAX says where a callback runs on several devices, by the kind of axes that these have."""


def record(
    model: Any,
    handles: Sequence[LayerHandle],
    run: Callable[[Any], Any],
    *,
    differentiates: bool,
    enough: int | None = None,
) -> dict[Path, list[Recorded]]:
    """Run a copy of a model once and return the calls of each layer, in the order in which they come first.

    Raises
    ------
    ShapeError
        If `run`, whose derivative is wanted, does not return a scalar.
    UnsupportedLayerError
        If a layer is no module, is given something else than sequences, or runs on several devices, or if
        inference mode cannot be set.
    MissingBackendError
        If JAX is too old.
    """
    if jax.__version_info__ < _OLDEST:
        raise MissingBackendError(
            f"jax is {jax.__version__}, which drops callbacks of layers under vmap; expected 0.8.2 or newer "
            "for `calibrate`, though 0.6 is enough for all else. Run: pip install -U jax"
        )
    received, model = Received(), in_inference_mode(model)

    def value_of(numbers: Sequence[jax.Array]) -> Any:
        value = run(with_stand_ins(model, handles, numbers))
        return _checked_scalar(value) if differentiates else value

    try:
        with numbered(received, handles) as numbers:
            found = (jax.grad(value_of) if differentiates else value_of)(numbers)
            jax.block_until_ready(found)  # type: ignore[no-untyped-call]
    except ValueError as error:
        if not any(words in str(error) for words in _SPREAD):
            raise
        raise UnsupportedLayerError(
            "`model` or a batch of `batches` is spread over several devices, where calls have no order; "
            "expected one device. Pass jax.device_put(model, jax.devices()[0]), and batches alike."
        ) from error
    return received.recorded()


def evaluated(model: Any, run: Callable[[Any], Any]) -> float:
    """Return the scalar of a run in inference mode.

    Raises
    ------
    ShapeError
        If it is no scalar.
    """
    return float(_checked_scalar(run(in_inference_mode(model))))


def constant_losses(
    model: Any, handles: Sequence[LayerHandle], run: Callable[[Any], Any]
) -> dict[str, float]:
    """Return the loss of a run in which the model, or what the loss reads of it, puts out zeros."""
    usual = evaluated(model, run)
    losses = (evaluated(changed, run) for changed in with_zero_outputs(model, handles))
    other = (loss for loss in losses if not math.isclose(loss, usual, rel_tol=SAME_LOSS))
    zero = next(other, math.nan)
    return {"zero": zero} if math.isfinite(zero) else {}


def in_inference_mode(model: Any) -> Any:
    """Return a copy of a model in inference mode.

    Raises
    ------
    UnsupportedLayerError
        If a module keeps the mode in a static field.
    """
    try:
        return eqx.nn.inference_mode(model)
    except TypeError as error:
        raise UnsupportedLayerError(
            "`model` has a module whose field `inference` is static, so that eqx.nn.inference_mode does not "
            "set it; expected a field that is not. Leave out static=True."
        ) from error


def _checked_scalar(loss: Any) -> jax.Array:
    if isinstance(loss, jax.Array) and loss.size == 1 and jnp.issubdtype(loss.dtype, jnp.floating):
        return jnp.reshape(loss, ())
    found = f"an array of shape {loss.shape}" if isinstance(loss, jax.Array) else type_name(loss)
    raise ShapeError(
        f"`loss` returned {found}; expected a scalar array. Take the mean over the batch, without item()."
    )
