"""What a derivative rule is, and how it runs over a batch on the host.

A rule takes one system in NumPy arrays and returns a value and its pullback: from dL/dvalue to
dL/d(arrays of the system), in the sense of `derivatives.adjoint`. The bindings to frameworks need
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._workers import naming_system
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.pytree import arrays_of

Gradients = tuple[HostArray | None, HostArray | None, HostArray | None, HostArray | None]
"""With respect to the state array, B, C and D; None where the value does not depend on it."""

Pullback = Callable[[HostArray], Gradients]

Rule = Callable[[System], tuple[HostArray | float, Pullback]]


def on_host(
    rule: Rule, system: System
) -> tuple[HostArray, Callable[[HostArray], tuple[HostArray, ...]]]:
    """Evaluate `rule` for every system of a batch: values, and a pullback for all of them.

    Errors name the index.
    """
    host = system.to_host()
    indices = list(np.ndindex(host.batch_shape))

    def single(index: tuple[int, ...]) -> tuple[HostArray | float, Pullback]:
        with naming_system(index):
            return rule(host[index])

    values, pullbacks = zip(*map(single, indices), strict=True)
    stacked = np.stack([np.asarray(value) for value in values])

    def pullback(cotangent: HostArray) -> tuple[HostArray, ...]:
        gradients = tuple(np.zeros_like(array) for array in arrays_of(host))
        for index, backward in zip(indices, pullbacks, strict=True):
            for whole, part in zip(gradients, backward(cotangent[index]), strict=True):
                if part is not None:
                    whole[index] = part if np.iscomplexobj(whole) else part.real
        return gradients

    return stacked.reshape((*host.batch_shape, *stacked.shape[1:])), pullback
