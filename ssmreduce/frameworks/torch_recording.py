"""Record what layers of a PyTorch model are given, and how a loss depends on what they put out.

Hooks on the layers, for one run in evaluation mode. A layer that computes a kernel is not given the
sequence: the module that holds it is. Under ``torch.vmap`` hooks see batched tensors, whose own data hold
the whole batch. Afterwards modes, buffers, parameters beside them and the states of random number
generators are as before; gradients of parameters are never touched.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _functorch
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import type_name
from ssmreduce.errors import ArgumentError, ShapeError, UnsupportedLayerError
from ssmreduce.frameworks.handle import LayerHandle, Path
from ssmreduce.frameworks.recording import Recorded
from ssmreduce.frameworks.torch_arrays import NamedTuple
from ssmreduce.frameworks.torch_fsdp import sharded_modules


def record(
    model: Any,
    handles: Sequence[LayerHandle],
    run: Callable[[Any], Any],
    *,
    differentiates: bool,
    enough: int | None = None,
) -> dict[Path, list[Recorded]]:
    """Run a model once and return the calls of each layer, in the order in which they are called first.

    The run ends where each of them was given `enough` sequences.

    Raises
    ------
    ShapeError
        If a layer is given something else than a batch of sequences, or `run`, whose derivative is
        wanted, does not return a scalar.
    """
    calls = _Calls(handles, enough)
    watched = [
        _Kernel(model, each, calls) if each.kind.ports(each.weights)[0] else _Watched(each, calls)
        for each in handles
    ]
    with (
        untouched(model, handles, differentiates=differentiates),
        torch.inference_mode(False),
        torch.set_grad_enabled(differentiates),
    ):
        with ExitStack() as hooks, suppress(_Enough):
            for each in watched:
                for hook in each.hooks():
                    hooks.enter_context(hook)
            value = run(model)
        if differentiates:
            _differentiate(value, [call for own in calls.every.values() for call in own])
    return {path: [call.recorded() for call in own] for path, own in calls.every.items()}


def evaluated(model: Any, run: Callable[[Any], Any]) -> float:
    """Return the scalar of a run in evaluation mode.

    Raises
    ------
    ShapeError
        If it is no scalar.
    """
    with untouched(model, (), differentiates=False), torch.no_grad():
        return float(_checked_scalar(run(model)).detach())


def plain(model: Any) -> Any:
    """Return what is inside of the wrappers of DDP and ``torch.compile``."""
    while isinstance(model, DistributedDataParallel | OptimizedModule):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    return model


def scratch(model: Any) -> Any:
    """Return a deep copy; of results of earlier runs that modules keep, the values alone."""
    kept = (value for module in model.modules() for value in vars(module).values())
    results = [value for value in kept if torch.is_tensor(value) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in results})


class _Seen:
    """A tensor of a run as a hook meets it, alone or batched by ``torch.vmap``, as (N, L, channels)."""

    def __init__(self, tensor: torch.Tensor) -> None:
        batched = _functorch.is_batchedtensor(tensor)
        self.raw = _functorch.get_unwrapped(tensor) if batched else tensor
        self.channels_first = False
        self._axis = _functorch.maybe_get_bdim(tensor) if batched else 0

    def arranged(self, tensor: torch.Tensor) -> torch.Tensor:
        """Axes of the tensor itself, or of its derivative, in their order."""
        tensor = tensor.movedim(self._axis, 0)
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        return tensor.movedim(1, 2) if self.channels_first else tensor

    @property
    def values(self) -> torch.Tensor:
        """The tensor."""
        return self.arranged(self.raw)


@dataclass(eq=False)
class _Call:
    """One call of a layer."""

    inputs: _Seen
    output: _Seen | None = None
    computes_output: bool = True
    derivative: torch.Tensor | None = None
    mask: _Seen | None = None

    def recorded(self) -> Recorded:
        """What is kept of it, on the host."""
        output, first, squares = self.output, None, None
        if output is not None and self.computes_output:
            first = _host(output.values[0])
        if output is not None and self.derivative is not None:
            sizes = output.arranged(self.derivative).abs()
            wide = torch.promote_types(sizes.dtype, torch.float32)  # squares underflow in half
            squares = _host(sizes.to(wide).square().mean(dim=-1))
        mask = None if self.mask is None else _host(self.mask.raw)
        return Recorded(_host(self.inputs.values), first, squares, mask)


class _Enough(BaseException):
    """Ends a run that has shown what it was for; no error, which a model might handle."""


class _Calls:
    """The calls of a run, which ends where each layer was given enough sequences."""

    def __init__(self, handles: Sequence[LayerHandle], enough: int | None) -> None:
        self.every: dict[Path, list[_Call]] = defaultdict(list)
        self._left = {} if enough is None else {each.path: enough for each in handles}

    def add(self, path: Path, call: _Call) -> None:
        """Keep a call.

        Raises
        ------
        _Enough
            If it is the last that is wanted.
        """
        self.every[path].append(call)
        if self.ends(path, call):
            raise _Enough

    def ends(self, path: Path, call: _Call) -> bool:
        """Tell whether a call is the last that is wanted."""
        if path in self._left:
            self._left[path] -= len(call.inputs.values)
        return bool(self._left) and max(self._left.values()) <= 0


class _Watched:
    """A layer that is given the sequence itself."""

    def __init__(self, handle: LayerHandle, calls: _Calls) -> None:
        self._handle, self._calls = handle, calls
        _, self._width, _ = handle.kind.ports(handle.weights)
        self._latest: _Call | None = None

    def hooks(self) -> Iterator[Any]:
        """Register hooks that add to the calls."""
        layer = self._handle.layer
        yield layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        yield layer.register_forward_hook(self._leave)

    def _enter(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = _kept(_first_tensor((*args, *kwargs.values())))
        if seen is None or seen.values.ndim != 3 or seen.values.shape[-1] != self._width:
            raise _no_sequences(self._handle, seen, f"(N, L, {self._width})")
        mask = kwargs.get(self._handle.kind.masked_by)
        self._latest = _Call(seen, mask=_kept(mask) if torch.is_tensor(mask) else None)
        self._calls.add(self._handle.path, self._latest)

    def _leave(self, layer: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Hand on a copy of what came out, which may be changed in place."""
        parts = output if isinstance(output, tuple) else (output,)
        first = _first_tensor(parts)
        if first is None or self._latest is None:
            return None
        self._latest.output = _Seen(first)
        if not isinstance(output, tuple):
            return first.clone()
        copied = [part.clone() if part is first else part for part in parts]
        return output._make(copied) if isinstance(output, NamedTuple) else tuple(copied)


class _Kernel:
    """A layer that computes a kernel, in a module that is given the sequence, one channel for each system."""

    def __init__(self, model: Any, handle: LayerHandle, calls: _Calls) -> None:
        self._handle, self._calls = handle, calls
        (self._width,), _, _ = handle.kind.ports(handle.weights)
        if not handle.path:
            raise UnsupportedLayerError(
                f"`model` is a {type_name(model)}, which computes a kernel from no sequence; expected the "
                "module that uses it, or a model. Pass that."
            )
        self._holder = model.get_submodule(".".join(handle.path[:-1]))
        self._given: _Seen | None = None
        self._latest: _Call | None = None
        self._passed = ""

    def hooks(self) -> Iterator[Any]:
        """Register hooks on the holder, the kernel and its siblings."""
        yield self._holder.register_forward_pre_hook(self._enter, with_kwargs=True)
        for each in self._holder.children():
            if each is self._handle.layer:
                yield each.register_forward_hook(self._used)
            else:
                yield each.register_forward_pre_hook(self._pass)

    def _enter(self, holder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = _kept(_first_tensor((*args, *kwargs.values())))
        self._latest, self._passed = None, ""

    def _used(self, kernel: Any, args: tuple[Any, ...], output: Any) -> None:
        seen, width = self._given, self._width
        if seen is None or seen.values.ndim != 3 or width not in seen.values.shape[1:]:
            raise _no_sequences(self._handle, seen, f"(N, {width}, L) or (N, L, {width})")
        if self._passed:
            raise UnsupportedLayerError(
                f"layer `{self._handle.name}` is used after a {self._passed} in the same module, so that its "
                "input is not what the module is given; expected the module's input. Record it yourself, and "
                "pass Calibration.of_inputs."
            )
        first = seen.values.shape[1] == width
        if first and seen.values.shape[2] == width:
            told = getattr(self._holder, "transposed", None)
            if not isinstance(told, bool):
                raise UnsupportedLayerError(
                    f"layer `{self._handle.name}` has {width} channels and is given sequences of {width} "
                    "steps, which no shape tells apart; expected other lengths, or a module with "
                    "`transposed`. Calibrate with longer sequences."
                )
            first = told
        seen.channels_first = first
        self._latest = _Call(seen, computes_output=False)
        self._calls.add(self._handle.path, self._latest)

    def _pass(self, sibling: Any, args: tuple[Any, ...]) -> None:
        """What a sibling is given first after the kernel is what the layer puts out, or comes of it."""
        given, call = _first_tensor(args), self._latest
        if call is None:
            self._passed = self._passed or type(sibling).__name__
        elif given is not None and call.output is None:
            seen = _Seen(given)
            seen.channels_first = call.inputs.channels_first
            if seen.values.shape == call.inputs.values.shape:
                call.output = seen


def _kept(tensor: torch.Tensor | None) -> _Seen | None:
    """A tensor as it is met, with values of its own: the model may change it in place."""
    return None if tensor is None else _Seen(tensor.detach().clone())


def _first_tensor(given: Sequence[Any]) -> torch.Tensor | None:
    return next((each for each in given if torch.is_tensor(each)), None)


def _no_sequences(handle: LayerHandle, seen: _Seen | None, expected: str) -> UnsupportedLayerError:
    found = "no tensor" if seen is None else f"a tensor of shape {tuple(seen.raw.shape)}"
    return UnsupportedLayerError(
        f"layer `{handle.name}` is given {found}; expected sequences of shape {expected}. Record them "
        "yourself and pass them to Calibration."
    )


def _checked_scalar(loss: Any) -> torch.Tensor:
    if torch.is_tensor(loss) and loss.numel() == 1 and loss.is_floating_point():
        return loss
    found = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type_name(loss)
    raise ShapeError(
        f"`loss` returned {found}; expected a scalar tensor. Take the mean over the batch, without item()."
    )


def _differentiate(loss: Any, calls: Sequence[_Call]) -> None:
    """Give each call the derivative of a loss by what came out."""
    loss = _checked_scalar(loss)
    if not loss.requires_grad:
        raise ArgumentError(
            "`loss` returned a tensor without a graph; expected one that depends on what the model puts out. "
            "Leave out detach() and no_grad(); an accuracy, or other counts, are no loss."
        )
    known = [(call, call.output.raw) for call in calls if call.output is not None]
    known = [(call, raw) for call, raw in known if raw.requires_grad]
    if not known:
        return
    derivatives = torch.autograd.grad(loss, [raw for _, raw in known], allow_unused=True)
    for (call, _), derivative in zip(known, derivatives, strict=True):
        call.derivative = derivative


@contextmanager
def untouched(
    model: Any, handles: Sequence[LayerHandle], *, differentiates: bool
) -> Iterator[None]:
    """Run in evaluation mode, and leave modes, kept values and torch's generators as they were.

    What a frozen layer puts out has a derivative, too.
    """
    held = _held(model, handles)
    copies = [value.detach().clone() if torch.is_tensor(value) else value for *_, value in held]
    frozen = [
        each
        for each in model.parameters()
        if differentiates
        and not each.requires_grad
        and (each.is_floating_point() or each.is_complex())
    ]
    try:
        for each in frozen:
            each.requires_grad_(True)
        with in_evaluation(model):
            yield
    finally:
        for each in frozen:
            each.requires_grad_(False)
        for (place, name, value), before in zip(held, copies, strict=True):
            place[name] = value
            if torch.is_tensor(value):
                value.data.copy_(before)  # a graph that the user keeps stays valid


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Run in evaluation mode, and leave modes and torch's generators as they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _held(
    model: Any, handles: Sequence[LayerHandle]
) -> list[tuple[MutableMapping[str, Any], str, Any]]:
    """What a run may change: buffers, parameters beside them, and states that layers keep.

    A buffer may say what the parameters of its module mean, as ``l_kernel`` of S4 does: the first run
    changes both, and one without the other is another layer. FSDP2 drops what a run writes into parameters.
    """
    modules = list(model.modules())
    places = [module._buffers for module in modules]
    if not sharded_modules(model):
        places += [module._parameters for module in modules if module._buffers]
    held = [(place, name, value) for place in places for name, value in place.items()]
    return held + [
        (vars(each.layer), name, vars(each.layer)[name])
        for each in handles
        for name in each.kind.states
        if name in vars(each.layer)
    ]


def _host(tensor: torch.Tensor) -> HostArray:
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    array: HostArray = tensor.cpu().numpy()
    return array.copy()
