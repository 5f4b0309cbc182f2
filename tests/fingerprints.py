"""SHA-256 over every byte of models, optimizers, schedulers and reducers."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
import torch
from torch import nn


def fingerprint(*things: Any) -> str:
    """Hash of tensors, gradients, attributes and numbers; of objects with a state dict, of that."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if torch.is_tensor(value):
            digest.update(str((value.dtype, tuple(value.shape), value.device)).encode())
            digest.update(value.detach().contiguous().view(-1).cpu().numpy().tobytes())
            add(value.grad if value.is_leaf else None)
        elif isinstance(value, np.ndarray | jax.Array):
            digest.update(str((value.dtype, value.shape)).encode())
            digest.update(np.asarray(value).tobytes())
        elif isinstance(value, dict):
            for key, entry in value.items():
                digest.update(str(key).encode())
                add(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                add(entry)
        else:
            digest.update(repr(value).encode())

    for thing in things:
        if hasattr(thing, "state_dict"):
            add(thing.state_dict())
        else:
            add(jax.tree.leaves(thing))
            digest.update(str(jax.tree.structure(thing)).encode())
        if isinstance(thing, nn.Module):
            parameters = dict(thing.named_parameters())
            add([parameter.grad for parameter in parameters.values()])
            add([vars(parameter) for parameter in parameters.values()])
            for part in thing.modules():
                plain = (bool, int, float, str, torch.Tensor)
                add({k: v for k, v in vars(part).items() if isinstance(v, plain)})
    return digest.hexdigest()
