"""Record what layers of a PyTorch model are given, and how a loss depends on what they put out.

Hooks on the layers, for one run in evaluation mode. A layer that computes a kernel is not given the
sequence: the module that holds it is. Under ``torch.vmap`` hooks see batched tensors, whose own data hold
the whole batch. Afterwards modes, buffers and the states of random number generators are as before;
gradients of parameters are never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _functorch
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from ssmreduce._checks import type_name
from ssmreduce._namespace import HostArray
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.framework import LayerHandle, Path
from ssmreduce.frameworks.recording import Recorded


def record(
    model: Any, handles: Sequence[LayerHandle], run: Callable[[], Any], *, differentiates: bool
) -> dict[Path, list[Recorded]]:
    """Run a model once and return the calls of each layer.

    Raises
    ------
    ShapeError
        If a layer is given something else than a batch of sequences, or `run`, whose derivative is
        wanted, does not return a scalar.
    """
    watched = [
        _Kernel(model, each) if each.kind.ports(each.weights)[0] else _Watched(each)
        for each in handles
    ]
    hooks: list[Any] = []
    with _untouched(model, differentiates=differentiates), torch.set_grad_enabled(differentiates):
        try:
            for each in watched:
                hooks += each.hooks()
            value = run()
        finally:
            for hook in hooks:
                hook.remove()
        if differentiates:
            _differentiate(value, [call for each in watched for call in each.calls])
    return {each.handle.path: [call.recorded() for call in each.calls] for each in watched}


def evaluated(model: Any, run: Callable[[], Any]) -> float:
    """Return the scalar of a run in evaluation mode, without a graph.

    Raises
    ------
    ShapeError
        If it is no scalar.
    """
    with _untouched(model, differentiates=False), torch.no_grad():
        return float(_checked_scalar(run()))


def plain(model: Any) -> Any:
    """Return what is inside of the wrappers of DDP and ``torch.compile``."""
    while isinstance(model, DistributedDataParallel | OptimizedModule):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    return model


def scratch(model: Any) -> Any:
    """Return a deep copy."""
    return copy.deepcopy(model)


class _Seen:
    """A tensor of a run as a hook meets it, alone or batched by ``torch.vmap``, as (N, L, channels)."""

    def __init__(self, tensor: torch.Tensor, *, channels_first: bool = False) -> None:
        batched = _functorch.is_batchedtensor(tensor)
        self.raw = _functorch.get_unwrapped(tensor) if batched else tensor
        self._kept = self.raw.detach().clone()  # it may be changed in place afterwards
        self._axis = _functorch.maybe_get_bdim(tensor) if batched else 0
        self._channels_first = channels_first

    def arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """Axes of the tensor itself, or of its derivative, in their order."""
        tensor = tensor.movedim(self._axis, 0)
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        return tensor.movedim(1, 2) if self._channels_first else tensor

    @property
    def values(self) -> torch.Tensor:
        """The tensor as it was."""
        return self.arranged(self._kept)


@dataclass(eq=False)
class _Call:
    """One call of a layer."""

    inputs: _Seen
    output: _Seen | None = None
    computes_output: bool = True
    derivative: torch.Tensor | None = None

    def recorded(self) -> Recorded:
        """What is kept of it, on the host."""
        first, squares = None, None
        if self.output is not None and self.computes_output:
            first = _host(self.output.values[0])
        if self.output is not None and self.derivative is not None:
            squares = self.output.arranged(self.derivative).abs().square().mean(dim=-1)
        return Recorded(
            _host(self.inputs.values), first, None if squares is None else _host(squares)
        )


class _Watched:
    """A layer that is given the sequence itself."""

    def __init__(self, handle: LayerHandle) -> None:
        self.handle = handle
        self.calls: list[_Call] = []
        _, self._width, _ = handle.kind.ports(handle.weights)

    def hooks(self) -> list[Any]:
        """Register hooks that add to the calls."""
        layer = self.handle.layer
        return [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            layer.register_forward_hook(self._leave),
        ]

    def _enter(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _first_tensor((*args, *kwargs.values()))
        seen = None if given is None else _Seen(given)
        if seen is None or seen.values.ndim != 3 or seen.values.shape[-1] != self._width:
            raise _no_sequences(self.handle, given, f"(N, L, {self._width})")
        self.calls.append(_Call(seen))

    def _leave(self, layer: Any, args: tuple[Any, ...], output: Any) -> None:
        first = _first_tensor(output if isinstance(output, tuple) else (output,))
        if first is not None:
            self.calls[-1].output = _Seen(first)


class _Kernel:
    """A layer that computes a kernel, in a module that is given the sequence, one channel for each system."""

    def __init__(self, model: Any, handle: LayerHandle) -> None:
        self.handle = handle
        self.calls: list[_Call] = []
        (self._width,), _, _ = handle.kind.ports(handle.weights)
        name = str(handle.path[0])
        if not name:
            raise UnsupportedLayerError(
                f"`model` is a {type_name(model)}, which computes a kernel from no sequence; expected the "
                "module that uses it, or a model. Pass that."
            )
        self._holder = model.get_submodule(name.rpartition(".")[0])
        self._given: torch.Tensor | None = None
        self._channels_first = False

    def hooks(self) -> list[Any]:
        """Register hooks on the holder, the kernel and its siblings."""
        siblings = [each for each in self._holder.children() if each is not self.handle.layer]
        return [
            self._holder.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.handle.layer.register_forward_hook(self._used),
            *(each.register_forward_pre_hook(self._after) for each in siblings),
        ]

    def _enter(self, holder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = _first_tensor((*args, *kwargs.values()))

    def _used(self, kernel: Any, args: tuple[Any, ...], output: Any) -> None:
        given = self._given
        seen = None if given is None else _Seen(given)
        if seen is None or seen.values.ndim != 3 or self._width not in seen.values.shape[1:]:
            expected = f"(N, {self._width}, L) or (N, L, {self._width})"
            raise _no_sequences(self.handle, given, expected)
        self._channels_first = seen.values.shape[1] == self._width
        assert given is not None
        inputs = _Seen(given, channels_first=self._channels_first)
        self.calls.append(_Call(inputs, computes_output=False))

    def _after(self, sibling: Any, args: tuple[Any, ...]) -> None:
        """What a sibling is given first after the kernel is what the layer puts out, or comes of it."""
        given = _first_tensor(args)
        if given is None or not self.calls or self.calls[-1].output is not None:
            return
        call, seen = self.calls[-1], _Seen(given, channels_first=self._channels_first)
        if seen.values.shape == call.inputs.values.shape:
            call.output = seen


def _first_tensor(given: Sequence[Any]) -> torch.Tensor | None:
    return next((each for each in given if torch.is_tensor(each)), None)


def _no_sequences(
    handle: LayerHandle, given: torch.Tensor | None, expected: str
) -> UnsupportedLayerError:
    found = "no tensor" if given is None else f"a tensor of shape {tuple(given.shape)}"
    return UnsupportedLayerError(
        f"layer `{handle.name}` is given {found}; expected sequences of shape {expected}. Record them "
        "yourself and pass them to Calibration."
    )


def _checked_scalar(loss: Any) -> torch.Tensor:
    if torch.is_tensor(loss) and loss.numel() == 1 and loss.is_floating_point():
        return loss
    found = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type_name(loss)
    raise ShapeError(
        f"`loss` returned {found}; expected a scalar tensor. Take its mean over the batch."
    )


def _differentiate(loss: Any, calls: Sequence[_Call]) -> None:
    """Give each call the derivative of a loss by what came out."""
    loss = _checked_scalar(loss)
    known = [(call, call.output.raw) for call in calls if call.output is not None]
    known = [(call, raw) for call, raw in known if raw.requires_grad]
    if not loss.requires_grad or not known:
        return
    derivatives = torch.autograd.grad(loss, [raw for _, raw in known], allow_unused=True)
    for (call, _), derivative in zip(known, derivatives, strict=True):
        call.derivative = derivative


@contextmanager
def _untouched(model: Any, *, differentiates: bool) -> Iterator[None]:
    """Run in evaluation mode, and leave modes, buffers and random states as they were.

    What a frozen layer puts out has a derivative, too.
    """
    frozen = [each for each in model.parameters() if differentiates and not each.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        model.eval()
        for each in frozen:
            each.requires_grad_(True)
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for each in frozen:
            each.requires_grad_(False)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _host(tensor: torch.Tensor) -> HostArray:
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: HostArray = tensor.cpu().numpy()
    return array.copy()
