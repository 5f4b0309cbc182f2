"""Array libraries as parameters of tests: how to make an array of one, and what its answers must be."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import array_api_compat
import array_api_strict
import numpy as np
import pytest
from numpy.typing import NDArray

from ssmreduce import DiagonalStateSpace, StateSpace
from ssmreduce._array_libraries import to_host
from ssmreduce.errors import HostTransferWarning

HostArray = NDArray[Any]
System = Any


@dataclass(frozen=True)
class Library:
    """One library on one device."""

    name: str
    make: Callable[[HostArray], Any]
    eps: float
    on_host: bool = True
    """Whether its memory is that of the host, so that nothing need be moved."""

    def system(self, plain: System) -> System:
        """`plain` with the same numbers in arrays of this library."""
        options = {"time": plain.time, "read_after_update": plain.read_after_update}
        names = ["B", "C", "D"]
        if isinstance(plain, StateSpace):
            return StateSpace(*(self.make(getattr(plain, x)) for x in ["A", *names]), **options)
        options["real_output"] = plain.real_output
        arrays = [self.make(getattr(plain, x)) for x in names]
        if plain.log_eigenvalues is not None:
            return DiagonalStateSpace.from_log(self.make(plain.log_eigenvalues), *arrays, **options)
        return DiagonalStateSpace(self.make(plain.eigenvalues), *arrays, **options)

    def moves(self, name: str) -> AbstractContextManager[Any]:
        """Expect that `name` says that it moves arrays to the host, where they live elsewhere."""
        if self.on_host:
            return nullcontext()
        return pytest.warns(HostTransferWarning, match=f"`{name}` got an array of")

    def read(self, answer: Any) -> HostArray:
        """The numbers of an answer, which must be one of this library, in its precision, on its device."""
        like = self.make(np.zeros(1))
        assert type(answer) is type(like), f"{type(answer)} is no array of {self.name}"
        device = array_api_compat.device(answer)
        assert device == array_api_compat.device(like), f"{device} is not that of {self.name}"
        host = to_host(answer)
        if host.dtype.kind in "fc":
            assert np.finfo(host.dtype).eps == self.eps, host.dtype
        return host


def _strict(device: str) -> Callable[[HostArray], Any]:
    place = array_api_strict.Device(device)
    return lambda host: array_api_strict.asarray(host, device=place)


def _read_only(host: HostArray) -> HostArray:
    copy = np.array(host)
    copy.setflags(write=False)
    return copy


def _torch(device: str) -> Callable[[HostArray], Any]:
    import torch

    return lambda host: torch.asarray(np.array(host)).to(device)


def _jax(platform: str) -> Callable[[HostArray], Any]:
    import jax

    return lambda host: jax.device_put(host, jax.devices(platform)[0])


def _cupy(host: HostArray) -> Any:
    import cupy

    return cupy.asarray(host)


def _x64(enabled: bool) -> AbstractContextManager[Any]:
    import jax

    return jax.enable_x64(enabled)


def _missing(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def _no_cuda(module: str) -> str | None:
    """Why `module` cannot use a GPU here; None if it can."""
    if (reason := _missing(module)) is not None:
        return reason
    if module == "torch":
        import torch

        return None if torch.cuda.is_available() else "torch finds no CUDA device"
    if module == "jax":
        import jax

        gpus = [device for device in jax.devices() if device.platform == "gpu"]
        return None if gpus else "JAX finds no GPU"
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device: {error}"
    return None if count else "CuPy finds no CUDA device"


SINGLE, DOUBLE = float(np.finfo(np.float32).eps), float(np.finfo(np.float64).eps)

ON_HOST = ["numpy", "numpy-read-only", "strict", "torch", "jax-x64", "jax-x32"]
ELSEWHERE = ["strict-device", "cupy", "torch-cuda", "jax-gpu"]
"""`strict-device` is one that array-api-strict makes up: NumPy cannot read its arrays, no GPU is needed."""


@contextmanager
def opened(name: str) -> Iterator[Library]:
    """The library of that name, set up for the length of a test; skips where there is none."""
    module = name.split("-")[0]
    if name in ("cupy", "torch-cuda", "jax-gpu"):
        reason = _no_cuda(module)
    else:
        reason = _missing("array_api_strict" if module == "strict" else module)
    if reason is not None:
        pytest.skip(reason)
    context: AbstractContextManager[Any] = nullcontext()
    if module == "jax":
        context = _x64(name != "jax-x32")
    makers: dict[str, Callable[[], Library]] = {
        "numpy": lambda: Library(name, np.array, DOUBLE),
        "numpy-read-only": lambda: Library(name, _read_only, DOUBLE),
        "strict": lambda: Library(name, _strict("CPU_DEVICE"), DOUBLE),
        "strict-device": lambda: Library(name, _strict("device1"), DOUBLE, on_host=False),
        "torch": lambda: Library(name, _torch("cpu"), DOUBLE),
        "torch-cuda": lambda: Library(name, _torch("cuda"), DOUBLE, on_host=False),
        "jax-x64": lambda: Library(name, _jax("cpu"), DOUBLE),
        "jax-x32": lambda: Library(name, _jax("cpu"), SINGLE),
        "jax-gpu": lambda: Library(name, _jax("gpu"), DOUBLE, on_host=False),
        "cupy": lambda: Library(name, _cupy, DOUBLE, on_host=False),
    }
    with context:
        yield makers[name]()


def parameters(names: list[str]) -> list[Any]:
    """The names as parameters of a fixture, those of a GPU with their mark; twins are slow."""
    gpu = {"cupy", "torch-cuda", "jax-gpu"}
    twins = {"jax-x32", "numpy-read-only", "strict"}
    marks = dict.fromkeys(gpu, pytest.mark.gpu) | dict.fromkeys(twins, pytest.mark.slow)
    return [pytest.param(name, marks=[marks[name]] if name in marks else []) for name in names]
