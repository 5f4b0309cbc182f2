"""Which framework a model belongs to: `framework_of`, `register_framework`.

None is imported that the user has not imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from array_api_compat import is_jax_array

from ssmreduce._checks import shown, type_name
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks.framework import Framework
from ssmreduce.frameworks.mappings import MappingFramework, entries, odd_entry

_REGISTERED: dict[type, Framework] = {}


def register_framework(model_type: type, framework: Framework) -> None:
    """Say that models and layers of `model_type` keep their arrays as `framework` describes.

    Parameters
    ----------
    model_type : type
        Class of the objects, or a base class of all of them.
    framework : Framework
        Where their arrays are.

    Raises
    ------
    UnsupportedLayerError
        If `model_type` is not a class, or `framework` not an instance of a Framework.

    Examples
    --------
    Objects of a class of dicts are mappings of arrays, also where Equinox would take them as
    pytrees:

    >>> from ssmreduce.frameworks.current import framework_of, register_framework
    >>> from ssmreduce.frameworks.mappings import MappingFramework
    >>> class Bundle(dict):
    ...     "Arrays by name."
    >>> register_framework(Bundle, MappingFramework())
    >>> type(framework_of(Bundle())).__name__
    'MappingFramework'
    """
    if not isinstance(model_type, type) or not isinstance(framework, Framework):
        raise UnsupportedLayerError(
            f"`model_type` is {shown(model_type)} and `framework` is {shown(framework)}; expected a class "
            "and an instance of a Framework. Write register_framework(Model, MyFramework())."
        )
    _REGISTERED[model_type] = framework


def framework_of(model: Any, name: str = "model") -> Framework:
    """Return the framework of a model or layer: a registered one, PyTorch, or pytrees of Equinox modules.

    Raises
    ------
    UnsupportedLayerError
        If it belongs to none, or its framework has not been imported.
    """
    for base in type(model).__mro__:
        if base in _REGISTERED:
            return _REGISTERED[base]
    if "torch" in sys.modules:
        import torch

        if isinstance(model, torch.nn.Module):
            from ssmreduce.frameworks.torch import TorchFramework

            return TorchFramework()
    odd = odd_entry(model) if isinstance(model, Mapping) else None
    if isinstance(model, Mapping) and odd is None and not _is_pytree(model):
        return MappingFramework()
    if "equinox" in sys.modules and not isinstance(model, Iterator):
        from ssmreduce.frameworks.pytrees import PytreeFramework

        return PytreeFramework()
    advice = (
        "Pass the module itself, not its class, parameters or optimizer."
        if {"torch", "equinox"} & sys.modules.keys()
        else "Neither framework is imported; one that is missing comes with: pip install "
        "'ssmreduce[torch]' or 'ssmreduce[jax]'"
    )
    holding = f" that holds a {type_name(odd[1])} as `{odd[0]}`" if odd is not None else ""
    raise UnsupportedLayerError(
        f"`{name}` is a {type_name(model)}{holding}; expected a PyTorch module, a pytree of Equinox modules, "
        f"or a mapping of arrays by name. {advice}"
    )


def _is_pytree(model: Mapping[str, Any]) -> bool:
    """Whether a mapping is nested dicts with plain keys and JAX arrays, where Equinox is there, too."""
    if "equinox" not in sys.modules or not _is_tree(model):
        return False
    return any(is_jax_array(value) for _, value in entries(model))


def _is_tree(model: Mapping[str, Any]) -> bool:
    return isinstance(model, dict) and all(
        isinstance(key, str)
        and not {".", "/"} & set(key)
        and (_is_tree(value) if isinstance(value, Mapping) else _is_leaf(value))
        for key, value in model.items()
    )


def _is_leaf(value: Any) -> bool:
    numbers = bool | int | float | complex | np.ndarray | np.generic
    return value is None or isinstance(value, numbers) or is_jax_array(value)
