"""A seeded generator of bad calls, and the judge of how they end.

A good call is spoilt in one or two arguments, or in their number or names. It may end in a result
without NaN, in an exception of ours that the docstring names, or in a `TypeError` that names the argument,
and leaves its inputs as they were.
"""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import itertools
import re
import signal
import time as clock
import warnings
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import array_api_compat
import array_api_strict
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import torch
from good_calls import CALLS, batch, channels, continuous, dense, diagonal, event, unstable
from numpydoc.docscrape import NumpyDocString

from ssmreduce import (
    Continuous,
    DiagonalStateSpace,
    Discrete,
    HankelMass,
    SSMReduceError,
    StateSpace,
    errors,
)
from ssmreduce.errors import HostTransferWarning, ScalingWarning

API_PAGE = Path(__file__).parents[1] / "docs" / "api.rst"

SECONDS = 20.0
"""No call may take longer."""


# --- Bad values


def _without(states: int, inputs: int, outputs: int) -> StateSpace:
    return StateSpace(
        np.zeros((states, states)),
        np.ones((states, inputs)),
        np.ones((outputs, states)),
        time=Discrete(),
    )


def _read_only() -> Any:
    array = np.ones((2, 2))
    array.flags.writeable = False
    return array


def _ragged() -> Any:
    return [[1.0, 2.0], [3.0]]


_SQUARE = np.arange(4.0).reshape(2, 2)

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "numpy True": lambda: np.True_,
    "string": lambda: "no",
    "empty string": lambda: "",
    "bytes": lambda: b"no",
    "0": lambda: 0,
    "1": lambda: 1,
    "3": lambda: 3,
    "-1": lambda: -1,
    "10**12": lambda: 10**12,
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "0.0": lambda: 0.0,
    "0.5": lambda: 0.5,
    "2.0": lambda: 2.0,
    "-1e300": lambda: -1e300,
    "1e300": lambda: 1e300,
    "5e-324": lambda: 5e-324,
    "NaN": lambda: float("nan"),
    "Inf": lambda: float("inf"),
    "-Inf": lambda: float("-inf"),
    "complex": lambda: 1j,
    "complex NaN": lambda: complex("nan"),
    "numpy int": lambda: np.int8(2),
    "numpy unsigned": lambda: np.uint64(2**63),
    "numpy float": lambda: np.float32(0.25),
    "numpy NaN": lambda: np.float64("nan"),
    "numpy longdouble": lambda: np.longdouble(0.25),
    "numpy complex": lambda: np.complex64(1j),
    "numpy string": lambda: np.str_("no"),
    "datetime": lambda: np.datetime64("2020-01-01"),
    "0-d array": lambda: np.array(0.5),
    "0-d int array": lambda: np.array(2),
    "array of one": lambda: np.array([1.0]),
    "1-d array": lambda: np.array([1.0, 0.5, 0.25]),
    "1-d of NaN": lambda: np.array([1.0, np.nan]),
    "1-d of Inf": lambda: np.array([np.inf, 1.0, 0.5, 0.1]),
    "1-d descending": lambda: np.array([1.0, 0.5, -0.25]),
    "1-d complex": lambda: np.array([0.5, 0.5j]),
    "1-d int": lambda: np.array([1, 2, 3]),
    "1-d bool": lambda: np.array([True, False]),
    "2-d array": lambda: _SQUARE.copy(),
    "2-d complex": lambda: _SQUARE * 1j,
    "2-d of NaN": lambda: np.full((2, 2), np.nan),
    "2-d of Inf": lambda: np.full((4, 4), np.inf),
    "2-d of 1e300": lambda: np.full((2, 2), 1e300),
    "2-d of zeros": lambda: np.zeros((4, 4)),
    "wide": lambda: np.ones((2, 5)),
    "tall": lambda: np.ones((5, 2)),
    "3-d array": lambda: np.ones((2, 2, 2)),
    "9-d array": lambda: np.ones((1,) * 9),
    "empty 1-d": lambda: np.zeros(0),
    "empty 2-d": lambda: np.zeros((0, 0)),
    "no columns": lambda: np.zeros((4, 0)),
    "no rows": lambda: np.zeros((0, 4)),
    "empty batch": lambda: np.zeros((0, 2, 2)),
    "float16": lambda: np.ones((2, 2), dtype=np.float16),
    "longdouble array": lambda: np.ones((2, 2), dtype=np.longdouble),
    "big endian": lambda: np.ones((2, 2), dtype=">f8"),
    "object array": lambda: np.array([[object(), 1], [2, 3]], dtype=object),
    "objects of numbers": lambda: np.array([[1, 2], [3, 10**400]], dtype=object),
    "string array": lambda: np.array([["a", "b"], ["c", "d"]]),
    "bytes array": lambda: np.array([b"1", b"2"]),
    "datetime array": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "timedelta array": lambda: np.array([1, 2], dtype="timedelta64[s]"),
    "structured array": lambda: np.zeros(2, dtype=[("a", float), ("b", int)]),
    "masked array": lambda: np.ma.masked_array(_SQUARE, mask=[[0, 1], [0, 0]]),
    "matrix": lambda: _SQUARE.view(np.matrix),
    "sparse": lambda: scipy.sparse.eye(4, format="csr"),
    "sparse array": lambda: scipy.sparse.csr_array(np.eye(4)),
    "read-only": _read_only,
    "non-contiguous": lambda: np.ones((4, 8))[:, ::2],
    "negative strides": lambda: _SQUARE[::-1, ::-1],
    "Fortran order": lambda: np.asfortranarray(np.arange(16.0).reshape(4, 4)),
    "tensor": lambda: torch.eye(2, dtype=torch.float64),
    "tensor of ints": lambda: torch.arange(3),
    "tensor with gradient": lambda: torch.ones(2, 2, requires_grad=True),
    "empty list": lambda: [],
    "empty tuple": lambda: (),
    "list": lambda: [1.0, 2.0],
    "descending list": lambda: [2.0, 1.0],
    "list of None": lambda: [None, None],
    "list of strings": lambda: ["a", "b"],
    "list of NaN": lambda: [float("nan"), 1.0],
    "list of huge": lambda: [10**400, 1],
    "list of lists": lambda: [[0.5, 0.1], [0.2, 0.3]],
    "list of arrays": lambda: [np.ones(2), np.ones((2, 2))],
    "ragged": _ragged,
    "nested": lambda: [[[[[1.0]]]]],
    "pair": lambda: (1, 2),
    "pair backwards": lambda: (3, 1),
    "pair of NaN": lambda: (float("nan"), 1.0),
    "pair of strings": lambda: ("a", "b"),
    "empty dict": lambda: {},
    "dict": lambda: {"a": 1},
    "dict of pairs": lambda: {"a": ([1.0], [0.5, 0.6])},
    "dict of numbers": lambda: {1: 2.0},
    "set": lambda: {1, 2},
    "generator": lambda: (x for x in (1.0, 2.0)),
    "range": lambda: range(3),
    "iterator": lambda: iter([1.0]),
    "function": lambda: len,
    "lambda": lambda: lambda: None,
    "object": object,
    "type": lambda: int,
    "class of a system": lambda: StateSpace,
    "class of a time": lambda: Discrete,
    "module": lambda: np,
    "exception": lambda: ValueError("x"),
    "slice": lambda: slice(None),
    "ellipsis": lambda: ...,
    "Discrete": lambda: Discrete(),
    "other step": lambda: Discrete(0.5),
    "Continuous": lambda: Continuous(),
    "order rule": lambda: HankelMass(0.5),
    "rule type": lambda: HankelMass,
    "discrete system": dense,
    "continuous system": continuous,
    "diagonal system": diagonal,
    "batch": batch,
    "channels": channels,
    "unstable system": unstable,
    "static system": lambda: _without(0, 2, 2),
    "no inputs": lambda: _without(2, 0, 2),
    "no outputs": lambda: _without(2, 2, 0),
    "silent system": lambda: StateSpace(
        0.5 * np.eye(2), np.zeros((2, 2)), np.zeros((2, 2)), time=Discrete()
    ),
    "nothing at all": lambda: _without(0, 0, 0),
    "no systems": lambda: _no_systems(),
    "of other size": lambda: _without(2, 1, 3),
    "on the boundary": lambda: StateSpace([[1.0]], [[1.0]], [[1.0]], time=Discrete()),
    "diagonal without states": lambda: DiagonalStateSpace(
        np.zeros(0), np.zeros((0, 2)), np.zeros((2, 0)), time=Discrete(), real_output=True
    ),
    "diagonal without inputs": lambda: DiagonalStateSpace(
        [0.5], np.zeros((1, 0)), np.zeros((2, 1)), time=Discrete()
    ),
    "diagonal without outputs": lambda: DiagonalStateSpace(
        [0.5], np.ones((1, 2)), np.zeros((0, 1)), time=Continuous()
    ),
    "complex system": lambda: StateSpace(
        0.5j * np.eye(2), np.ones((2, 2)), np.ones((2, 2)) * 1j, time=Discrete()
    ),
    "single precision": lambda: StateSpace(
        0.5 * np.eye(2, dtype=np.float32),
        np.ones((2, 2), np.float32),
        np.ones((2, 2), np.float32),
        time=Discrete(),
    ),
    "system of tensors": lambda: StateSpace(
        0.5 * torch.eye(2), torch.ones(2, 2), torch.ones(2, 2), time=Discrete()
    ),
    "system of JAX": lambda: StateSpace(
        0.5 * jnp.eye(2), jnp.ones((2, 2)), jnp.ones((2, 2)), time=Discrete()
    ),
    "recording system": lambda: StateSpace(
        0.5 * torch.eye(2, dtype=torch.float64, requires_grad=True),
        torch.ones(2, 2, dtype=torch.float64),
        torch.ones(2, 2, dtype=torch.float64),
        time=Discrete(),
    ),
    "recording diagonal": lambda: DiagonalStateSpace(
        torch.tensor([0.5, 0.2], requires_grad=True),
        torch.ones(2, 2),
        torch.ones(2, 2),
        time=Discrete(),
        real_output=True,
    ),
    "array of JAX": lambda: jnp.ones((2, 2)),
    "ints of JAX": lambda: jnp.arange(3),
    "strict array": lambda: array_api_strict.ones((2, 2)),
    "timedelta": lambda: np.timedelta64(2, "s"),
    "too many digits": lambda: 10**5000,
    "fraction": lambda: Fraction(1, 3),
    "huge fraction": lambda: Fraction(10**400, 3),
    "decimal": lambda: Decimal("0.5"),
    "huge longdouble": lambda: np.longdouble("1e4000"),
    "bytearray": lambda: bytearray(b"12"),
    "memoryview": lambda: memoryview(b"12"),
    "path": lambda: Path("nowhere"),
    "record of a structure": lambda: np.zeros(1, dtype=[("a", float)])[0],
    "array of systems": lambda: np.array([dense(), dense()], dtype=object),
    "list of systems": lambda: [dense(), dense()],
    "event": event,
    "event of channels": lambda: dataclasses.replace(event(), hsv=np.ones((2, 12))),
    "list of events": lambda: [event(), dataclasses.replace(event(), hsv=np.zeros(8))],
    "small model": lambda: torch.nn.Linear(2, 2),
    "list of models": lambda: [torch.nn.Linear(2, 2)],
}


def _no_systems() -> StateSpace:
    return StateSpace(
        np.zeros((0, 2, 2)), np.zeros((0, 2, 1)), np.zeros((0, 1, 2)), time=Discrete()
    )


# --- Bad calls


@dataclasses.dataclass
class BadCall:
    """A call of the table, and what was done to it."""

    name: str
    spoilt: dict[str, str]
    extra: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.spoilt or ''} {self.extra}"


def bad_calls(count: int, seed: int) -> Iterator[BadCall]:
    """`count` calls: mostly one argument is bad, else two, or a name, or their number."""
    rng = np.random.default_rng(seed)
    names, labels = list(CALLS), list(VALUES)
    weights = np.array([len(parameters(name)) + 1.0 for name in names])
    chosen = rng.choice(len(names), size=count, p=weights / weights.sum())
    for index in chosen:
        name = names[index]
        own = parameters(name)
        kind = rng.random()
        if kind < 0.04:
            extra = str(rng.choice(["misspelt", "too many", "missing"]))
            yield BadCall(name, {}, extra)
            continue
        size = min(len(own), 2 if kind > 0.85 else 1)
        which = rng.choice(len(own), size=size, replace=False)
        spoilt = {own[k]: labels[rng.integers(len(labels))] for k in which}
        large = any(label == "10**12" for label in spoilt.values())
        if large and (
            name.endswith("_difference") or (name.startswith("reduce_") and "horizon" in spoilt)
        ):
            continue  # time and memory are linear in these counts
        yield BadCall(name, spoilt)


@cache
def parameters(name: str) -> list[str]:
    """Names of the arguments of a good call."""
    return list(CALLS[name]()[1])


@cache
def good_result(name: str) -> Any:
    function, arguments = CALLS[name]()
    return run(function, (), arguments)


def run(function: Callable[..., Any], args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
    """Call, with arguments by position where they can be, and our own warnings let through."""
    given = dict(arguments)
    first = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or name not in given:
            break
        first.append(given.pop(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "no cut after step", UserWarning)
        for category in (HostTransferWarning, ScalingWarning):
            warnings.simplefilter("ignore", category)
        result = function(*first, *args, **given)
    return result


def ending(call: BadCall) -> str | None:
    """What is wrong with the way in which `call` ends; None if nothing is."""
    function, arguments = CALLS[call.name]()
    good = dict(arguments)
    arguments.update({name: VALUES[label]() for name, label in call.spoilt.items()})
    args: tuple[Any, ...] = ()
    if call.extra == "misspelt":
        arguments["certifed"] = True
    elif call.extra == "too many":
        args = tuple(range(20))
    elif call.extra == "missing":
        arguments.pop(next(iter(arguments)))
    before = fingerprint(arguments)
    start = clock.perf_counter()
    failed = False
    try:
        with limited(SECONDS):
            result = run(function, args, arguments)
    except SSMReduceError as error:
        failed = True
        if not str(error):
            return "an error without a word"
        documented = documented_errors(function)
        if documented is not None and not isinstance(error, documented):
            return f"{type(error).__name__}, which its docstring does not name: {error}"
    except AssertionError as error:
        failed = True
        if "allowed" not in str(error):
            return f"AssertionError: {error}"
    except TypeError as error:
        failed = True
        if not names_argument(str(error), [*call.spoilt, *arguments]):
            return f"TypeError: {error}"
    except IndexError as error:
        # Python's word for the end of a sequence.
        failed = True
        if not call.name.endswith("[]") or "out of bounds" not in str(error):
            return f"IndexError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if clock.perf_counter() - start > SECONDS:
        return "it took too long"
    if fingerprint(arguments) != before and (failed or call.name not in IN_PLACE):
        return "an input was changed"
    if failed:
        return None
    for name in call.spoilt:
        if (call.name, name) not in ANYTHING and must_be_refused(
            function, name, good[name], arguments[name]
        ):
            return f"`{name}` was taken for granted, with the result {result!r:.80}"
    looked_at = all((call.name, name) not in ANYTHING for name in call.spoilt)
    if looked_at and holds_nan(result) and not holds_nan(good_result(call.name)):
        return f"NaN: {result!r:.200}"
    return None


@cache
def documented_errors(function: Callable[..., Any]) -> tuple[type[BaseException], ...] | None:
    """What a function or class of the API page says that it raises; None for anything else."""
    public = re.findall(r"^   (?:\w+\.)*(\w+)$", API_PAGE.read_text(encoding="utf-8"), re.M)
    if getattr(function, "__qualname__", "") not in public:
        return None
    rows = NumpyDocString(inspect.getdoc(function) or "")["Raises"]
    names = [name.strip() for row in rows for name in row.type.split(",")]
    return tuple(getattr(errors, name, None) or getattr(builtins, name) for name in names)


IN_PLACE = {
    "reduce_layer",
    "reduce_model",
    "write_system",
    "load_reduced",
    "accept_reduced",
    "InTrainingReducer.step",
    "register_layer",
}
"""Calls that change what they are given, on success."""

ANYTHING = {
    ("InTrainingReducer.log_to", "writer"),
    ("InTrainingReducer.step", "opt_state"),
    ("InTrainingReducer.step", "model"),
    ("InTrainingReducer.step", "followers"),
    ("assert_same_library", "result"),
    ("assert_same_library", "like"),
    ("ReductionEvent", "tau"),
    ("ReductionEvent", "error_bound"),
    ("ReductionEvent", "measured_error"),
    ("ReductionEvent", "rolled_back"),
    ("FixedOrder.choose", "hsv"),
    ("StateSpace[]", "index"),
    ("DiagonalStateSpace[]", "index"),
    ("reduce_model", "order"),
    ("reduce_model", "followers"),
    ("state_spaces", "dtype"),
    ("state_spaces", "read_after_update"),
    ("diagonal_state_spaces", "dtype"),
    ("diagonal_state_spaces", "read_after_update"),
    ("RollbackPolicy.is_worse", "metric"),
    ("RollbackPolicy.is_worse", "than"),
    ("InTrainingReducer.report", "metric"),
    ("relative_residual", "A"),
    ("relative_residual", "X"),
    ("relative_residual", "Q"),
}
"""Arguments whose value is not looked at in the call itself."""


def names_argument(message: str, names: list[str]) -> bool:
    """Whether a TypeError is Python's own about the arguments, or quotes one of them."""
    own = (
        "unexpected keyword argument",
        "required positional argument",
        "required keyword-only argument",
        "positional argument but",
        "positional arguments but",
        "multiple values for argument",
    )
    return any(part in message for part in own) or any(f"`{name}`" in message for name in names)


def must_be_refused(function: Callable[..., Any], name: str, good: Any, bad: Any) -> bool:
    """Whether no sense can be made of `bad`, by the kind of the good value."""
    if bad is None:
        parameter = inspect.signature(function).parameters.get(name)  # none of ``**changes``
        return parameter is not None and parameter.default is not None
    if isinstance(good, bool):
        return not isinstance(bad, bool | np.bool_)
    if isinstance(good, int):
        return isinstance(bad, str | bytes | float | complex | np.inexact | bool | dict | set)
    if isinstance(good, float):
        if isinstance(bad, float | np.floating) and np.isnan(bad):
            return True
        return isinstance(bad, str | bytes | complex | np.complexfloating | bool | dict | set)
    if isinstance(good, str):
        return not isinstance(bad, str)
    if isinstance(good, StateSpace | DiagonalStateSpace):
        return not isinstance(bad, StateSpace | DiagonalStateSpace)
    return False


class TooSlow(Exception):
    """The alarm went off."""


class limited:
    """Interrupt what takes longer than so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise TooSlow("still running")


# --- What is in a value


def parts(value: Any) -> Iterator[Any]:
    """What a container, a result or a system holds; nothing for anything else."""
    if isinstance(value, Mapping):
        yield from itertools.chain(value.keys(), value.values())
    elif isinstance(value, list | tuple | set):
        yield from value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name) for field in dataclasses.fields(value))


def fingerprint(value: Any) -> Any:
    """Equal for two looks at a value exactly if it did not change in between."""
    if isinstance(value, np.ndarray):
        held = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return value.shape, value.strides, value.dtype.str, value.flags.writeable, held
    if isinstance(value, torch.Tensor):
        return fingerprint(value.detach().numpy())
    if isinstance(value, torch.nn.Module):
        return [(name, fingerprint(x)) for name, x in value.state_dict().items()]
    if scipy.sparse.issparse(value):
        return fingerprint(value.toarray())
    if array_api_compat.is_jax_array(value):
        return fingerprint(np.asarray(value))
    if isinstance(value, int | float | complex | str | bytes | np.generic):
        return repr(value) if not isinstance(value, int) else value
    return id(value), [fingerprint(part) for part in parts(value)]


def holds_nan(value: Any) -> bool:
    """Whether there is a NaN anywhere in a result."""
    if isinstance(value, float | complex | np.number):
        return bool(np.isnan(value))
    if isinstance(value, torch.Tensor):
        return bool(torch.isnan(value).any())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fc" and bool(np.isnan(value).any())
    return any(holds_nan(part) for part in parts(value))
