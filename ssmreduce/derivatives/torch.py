"""Derivative rules under torch autograd. Imported only once a tensor asks for a gradient.

torch stores dL/dRe z + i dL/dIm z for a complex tensor, as the rules do.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from ssmreduce._array_libraries import to_double
from ssmreduce.derivatives.rule import Rule, on_host
from ssmreduce.errors import UnsupportedEquationError
from ssmreduce.systems.diagonal import System
from ssmreduce.systems.pytree import arrays_of, with_arrays

_Function: Any = torch.autograd.Function


def apply(rule: Rule, system: System, shape: tuple[int, ...], *, is_complex: bool) -> Any:
    """Value of `rule` as a tensor with a derivative."""
    return _Apply.apply(rule, system, is_complex, *arrays_of(system))


class _Apply(_Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, rule: Rule, system: System, is_complex: bool, *arrays: Any) -> Any:
        values, ctx.pullback = on_host(rule, with_arrays(system, arrays))
        tensors = [array for array in arrays if isinstance(array, torch.Tensor)]
        ctx.kinds = [
            (array.dtype, array.device) if isinstance(array, torch.Tensor) else None
            for array in arrays
        ]
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        dtype = dtype.to_complex() if is_complex else dtype.to_real()
        return torch.as_tensor(values, dtype=dtype, device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        if torch.is_grad_enabled():
            raise UnsupportedEquationError(
                "`create_graph` is True but there are first derivatives only; expected False. Keep this "
                "value out of the loss whose gradient is differentiated."
            )
        gradients = ctx.pullback(to_double(cotangent))
        wanted = zip(gradients, ctx.kinds, ctx.needs_input_grad[3:], strict=True)
        return (
            None,
            None,
            None,
            *(
                torch.as_tensor(gradient, dtype=kind[0], device=kind[1]) if needed else None
                for gradient, kind, needed in wanted
            ),
        )
