"""The one place that decides whether a derivative is wanted, and from which framework.

`differentiable` costs NumPy callers a look at four types. Where it is true, `apply` checks the system, says
so if it leaves a device, and evaluates a rule through torch autograd or JAX: on the host at double
precision, whatever the precision and device of the arrays; results and derivatives come back in theirs.
First derivatives in reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, is_traced, records_gradient
from ssmreduce._array_routes import announce_transfer
from ssmreduce.derivatives.rule import Rule
from ssmreduce.errors import UnsupportedEquationError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.pytree import arrays_of
from ssmreduce.systems.state_space import StateSpace


def differentiable(system: Any) -> bool:
    """Tell whether an array of `system` is traced by JAX or asks torch for a gradient."""
    if not isinstance(system, StateSpace | DiagonalStateSpace):
        return False
    arrays = [array for array in arrays_of(system) if type(array) is not np.ndarray]
    return any(is_traced(array) or records_gradient(array) for array in arrays)


def apply(
    rule: Rule,
    system: System,
    shape: tuple[int, ...],
    *,
    name: str,
    is_complex: bool = False,
    native: Callable[[System], Array] | None = None,
) -> Array:
    """Value of `rule` at `system`, for which `differentiable` is true, with its derivative.

    Parameters
    ----------
    rule : Rule
        A function defined at the top of a module: JAX compares rules by identity.
    system : StateSpace or DiagonalStateSpace
        With any leading batch axes.
    shape : tuple of int
        Shape of the value for one system.
    name : str
        Of the function that was called, for a warning.
    is_complex : bool
        Whether the value is complex.
    native : callable, optional
        The value alone, from the arrays where they are: under JAX what runs on a device, and is not
        differentiated, is left there.
    """
    check_system(system)
    if any(map(is_traced, arrays_of(system))):
        from ssmreduce.derivatives import jax

        return jax.apply(rule, system, shape, is_complex=is_complex, native=native)
    from ssmreduce.derivatives import torch

    announce_transfer(name, "its derivative is one of the host", system)
    return torch.apply(rule, system, shape, is_complex=is_complex)


def refuse_horizon(horizon: int | None) -> None:
    """Raise `UnsupportedEquationError` for a horizon where a derivative is asked for."""
    if horizon is not None:
        raise UnsupportedEquationError(
            f"`horizon` is {horizon} but a derivative is asked for; expected None: Gramians over a "
            "finite horizon have none here. Leave it out, or detach the arrays of the system."
        )
