"""DDP and FSDP2: one decision for all ranks, full arrays of sharded layers, buckets and shards renewed.

A cut of a model that several processes train has three parts. Every rank says what it holds, and all of
them fail together if one cannot be cut or holds something else. The first rank decides and computes; its
weights and moments are broadcast, so that all ranks hold the same bits afterwards. Every rank then writes
them: DDP gets a new reducer, as its buckets have the old sizes, and FSDP2 parameters are sharded anew.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ssmreduce.errors import DistributedError, SSMReduceError, UnsupportedLayerError
from ssmreduce.frameworks.torch_arrays import SHARDED, whole
from ssmreduce.frameworks.torch_fsdp import FULLY_SHARDED, reshard

T = TypeVar("T")

_UNCHANGED = "No rank was changed."

_SAME_STATE = "the same model and optimizer on all ranks. Broadcast rank 0's state before the cut"


def team_of(model: Any) -> Team | None:
    """Return the processes that train `model`; None if it is not distributed.

    Raises
    ------
    DistributedError
        If the process group is not, or no longer, initialised.
    UnsupportedLayerError
        If parameters are spread over more than one axis of a device mesh, or DDP keeps copies of them.
    """
    modules = [*model.modules()]
    for part in modules:
        if isinstance(part, FULLY_SHARDED):
            part.reshard()  # a forward pass alone may leave full parameters in it
    wrapped = [part for part in modules if isinstance(part, DistributedDataParallel)]
    sharded = [tensor for tensor in model.parameters() if isinstance(tensor, SHARDED)]
    if not wrapped and not sharded:
        return None
    if not distributed.is_initialized():
        raise DistributedError(
            "`model` is wrapped for distributed training but the process group is not initialised; expected "
            "all of its processes to take part. Reduce before destroy_process_group(), or unwrap it."
        )
    if any(part.mixed_precision is not None for part in wrapped):
        raise UnsupportedLayerError(
            "`model` is in DistributedDataParallel with mixed_precision, which keeps copies of its "
            "parameters in their old shapes; expected none. Use torch.autocast instead."
        )
    if wrapped:
        return Team(wrapped[0].process_group)
    mesh = sharded[0].device_mesh
    if mesh.ndim != 1:
        raise UnsupportedLayerError(
            f"`model` has parameters on a device mesh with {mesh.ndim} axes; expected one axis, that of "
            "FSDP2. Reduce before parameters are spread over other axes."
        )
    return Team(mesh.get_group())


class Team:
    """The processes of one group."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def check_same(
        self, held: Callable[[], Mapping[str, str]], expected: str = _SAME_STATE
    ) -> None:
        """Compare what the ranks hold.

        Parameters
        ----------
        held : callable
            Says what this rank holds, by name. May raise.
        expected : str
            What an error says is expected, and one thing to try.

        Raises
        ------
        SSMReduceError
            The same on all ranks, if `held` raised on one of them.
        DistributedError
            If ranks hold different things, or another exception was raised.
        """
        own = _attempt(held)
        if own[1] is not None and own[1][1].endswith(_UNCHANGED):
            # Agreed on inside, maybe with a rank that failed out here and does not wait again.
            raise own[1][0](own[1][1])
        answers: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(answers, own, group=self._group)
        for rank, (_, failure) in enumerate(answers):
            if failure is not None:
                raise _same_error(rank, *failure)
        first, _ = answers[0]
        for rank, (values, _) in enumerate(answers):
            for name in {**first, **values}:
                if first.get(name) != values.get(name):
                    raise DistributedError(
                        f"rank {rank} differs from rank 0 in {name}; expected {expected}."
                    )

    def decide(self, decision: Callable[[], T]) -> T:
        """Return on all ranks what `decision` returns on the first, the only one that calls it.

        Raises
        ------
        SSMReduceError
            The same on all ranks, if it raised.
        DistributedError
            If what it returned cannot be pickled, or another exception was raised.
        """
        answer: list[Any] = [None]
        if distributed.get_rank(self._group) == 0:
            # Pickled here: a failure within the broadcast would leave the others waiting.
            answer = [_attempt(lambda: pickle.dumps(decision()))]
        source = distributed.get_global_rank(self._group, 0)
        distributed.broadcast_object_list(answer, src=source, group=self._group)
        ((result, failure),) = answer
        if failure is not None:
            raise _same_error(0, *failure)
        return pickle.loads(result)  # type: ignore[no-any-return]


def _attempt(function: Callable[[], T]) -> tuple[T | None, tuple[type[Exception], str] | None]:
    """What a function returns, or type and text of what it raised: no rank may leave the others alone."""
    try:
        return function(), None
    except SSMReduceError as error:
        return None, (type(error), str(error))
    except Exception as error:
        return None, (DistributedError, f"{type(error).__name__}: {error}")


def _same_error(rank: int, kind: type[Exception], text: str) -> Exception:
    return kind(f"on rank {rank}: {text.removesuffix('.')}. {_UNCHANGED}")


# --- DDP


def new_buckets(module: Any) -> Callable[[], None]:
    """Return what gives a DDP module a reducer for its parameters, once their shapes have changed."""
    return partial(_renew, module, dict(vars(module)), [*module._comm_hooks])


def _renew(module: Any, held: Mapping[str, Any], hooks: Sequence[tuple[Any, Any]]) -> None:
    """Give a DDP module a reducer for its parameters as they are, with what else it held.

    The way to one is DDP's own pickling protocol, which keeps its settings; communication hooks belong
    to the old reducer and are registered again.
    """
    for parameter in module.parameters():
        if parameter.grad is not None:  # maybe a view of an old bucket
            parameter.grad = parameter.grad.detach().clone()
    module.__setstate__({**held, "_comm_hooks": []})
    module._static_graph_delay_allreduce_enqueued = False  # left as it was by the protocol
    for hook, state in hooks:
        module.register_comm_hook(state, hook)


# --- FSDP2


def gathered(model: Any, opt_state: Any, layers: Sequence[Any]) -> tuple[Any, Any]:
    """Return views of model and optimizer in which `layers` have full arrays; every rank has to call this."""
    reshard(model)
    full = {
        id(tensor): (tensor, torch.nn.Parameter(whole(tensor.detach()), tensor.requires_grad))
        for layer in layers
        for tensor in layer.parameters()
        if isinstance(tensor, SHARDED)
    }
    if not full:
        return model, opt_state
    view = _viewed(model, {key: new for key, (_, new) in full.items()}, {})
    if not isinstance(opt_state, torch.optim.Optimizer):
        return view, opt_state
    states = object.__new__(type(opt_state))
    entries = {
        new: {field: whole(value) for field, value in opt_state.state.get(tensor, {}).items()}
        for tensor, new in full.values()
    }
    groups = [
        {**group, "params": [full.get(id(p), (p, p))[1] for p in group["params"]]}
        for group in opt_state.param_groups
    ]
    vars(states).update({**vars(opt_state), "state": entries, "param_groups": groups})
    return view, states


def _viewed(module: Any, full: Mapping[int, Any], seen: dict[int, Any]) -> Any:
    """A copy of a tree of modules with other parameters; FSDP2 modules refuse to be copied as usual."""
    if id(module) not in seen:
        view = seen[id(module)] = object.__new__(type(module))
        parameters = {
            name: full.get(id(tensor), tensor) for name, tensor in module._parameters.items()
        }
        parts = {
            name: None if part is None else _viewed(part, full, seen)
            for name, part in module._modules.items()
        }
        vars(view).update({**vars(module), "_parameters": parameters, "_modules": parts})
    return seen[id(module)]
