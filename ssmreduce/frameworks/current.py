"""Which framework a model belongs to: `framework_of`. None is imported that the user has not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ssmreduce._checks import type_name
from ssmreduce.errors import UnsupportedLayerError
from ssmreduce.frameworks.framework import Framework


def framework_of(model: Any, name: str = "model") -> Framework:
    """Return the framework of a model or layer: a PyTorch module, or a pytree of Equinox modules.

    Raises
    ------
    UnsupportedLayerError
        If it belongs to none, or its framework has not been imported.
    """
    if "torch" in sys.modules:
        import torch

        if isinstance(model, torch.nn.Module):
            from ssmreduce.frameworks.torch import TorchFramework

            return TorchFramework()
    if "equinox" in sys.modules and not isinstance(model, Iterator):
        from ssmreduce.frameworks.pytrees import PytreeFramework

        return PytreeFramework()
    advice = (
        "Pass the module itself, not its class, state dict, parameters or optimizer."
        if {"torch", "equinox"} & sys.modules.keys()
        else "Neither framework is imported; one that is missing comes with: pip install "
        "'ssmreduce[torch]' or 'ssmreduce[jax]'"
    )
    raise UnsupportedLayerError(
        f"`{name}` is a {type_name(model)}; expected a PyTorch module or a pytree of Equinox "
        f"modules. {advice}"
    )
