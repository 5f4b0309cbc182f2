"""Native routes beside the host: Hankel singular values and balanced truncation on whatever device is here.

    python -m benchmarks.gpu [--quick] [--repeats 5] [--device gpu|cpu] [--output gpu.json]

For every array library with a GPU (CuPy, torch, JAX) one line per case: the median time on the device,
the median time of the same answer by the host (arrays moved there and back), and the largest difference
of the Hankel singular values relative to the largest. Calls of both are interleaved, after one of each
that is not counted; devices are waited for. Without a GPU it says so and ends. ``--device cpu`` runs
the same native routes on the CPU of torch and JAX, which shows that they work and what they cost there,
and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssmreduce import Continuous, DiagonalStateSpace, Discrete, StateSpace, hankel_singular_values
from ssmreduce._array_libraries import to_host
from ssmreduce.devices.hankel_values import singular_values
from ssmreduce.reduction.balanced import balanced_truncation
from ssmreduce.reduction.balanced_on_device import NativeBalancing
from ssmreduce.reduction.order import FixedOrder


@dataclass(frozen=True)
class Device:
    """A device of one library."""

    library: str
    name: str
    put: Callable[[np.ndarray], Any]
    wait: Callable[[Any], None]


def torch_device(kind: str) -> Device | None:
    import torch

    if kind == "gpu":
        if not torch.cuda.is_available():
            return None
        return Device(
            "torch",
            torch.cuda.get_device_name(),
            lambda x: torch.from_numpy(x).to("cuda"),
            lambda _: torch.cuda.synchronize(),
        )
    return Device("torch", f"CPU ({platform.machine()})", torch.from_numpy, lambda _: None)


def jax_device(kind: str) -> Device | None:
    import jax

    jax.config.update("jax_enable_x64", True)
    fitting = [device for device in jax.devices() if device.platform == kind]
    if not fitting:
        return None
    name = fitting[0].device_kind if kind == "gpu" else f"CPU ({platform.machine()})"
    return Device(
        "jax", name, lambda x: jax.device_put(x, fitting[0]), lambda x: x.block_until_ready()
    )


def cupy_device(kind: str) -> Device | None:
    import cupy

    if kind != "gpu":
        return None
    try:
        properties = cupy.cuda.runtime.getDeviceProperties(0)
    except cupy.cuda.runtime.CUDARuntimeError:
        return None
    wait = cupy.cuda.runtime.deviceSynchronize
    return Device("cupy", properties["name"].decode(), cupy.asarray, lambda _: wait())


FINDERS = {"cupy": cupy_device, "torch": torch_device, "jax": jax_device}


def devices(kind: str) -> Iterator[Device]:
    """Every device of that kind, of the libraries that are installed."""
    for module, find in FINDERS.items():
        if importlib.util.find_spec(module) is None:
            continue
        device = find(kind)
        if device is not None:
            yield device


def drawn(kind: str, batch: int, n: int, seed: int = 0) -> Any:
    """A batch of stable systems with 4 inputs and outputs; of one without batch axes for `batch` 1."""
    rng = np.random.default_rng(seed)
    lead = (batch,) if batch > 1 else ()
    B, C = rng.standard_normal((*lead, n, 4)), rng.standard_normal((*lead, 4, n))
    if kind == "diagonal":
        modulus, phase = rng.uniform(0.8, 0.99, (*lead, n)), rng.uniform(0.0, 3.0, (*lead, n))
        return DiagonalStateSpace(modulus * np.exp(1j * phase), B + 0j, C + 0j, time=Discrete())
    A = rng.standard_normal((*lead, n, n)) / np.sqrt(n)
    if kind == "discrete":
        return StateSpace(A * 0.9 / 1.1, B, C, time=Discrete())
    return StateSpace(A - 1.3 * np.eye(n), B, C, time=Continuous())


def moved(system: Any, device: Device) -> Any:
    """The same system on `device`."""
    arrays = [device.put(np.ascontiguousarray(x)) for x in (system.B, system.C, system.D)]
    if isinstance(system, StateSpace):
        return StateSpace(device.put(np.ascontiguousarray(system.A)), *arrays, time=system.time)
    return DiagonalStateSpace(device.put(system.eigenvalues), *arrays, time=system.time)


def medians(
    calls: list[Callable[[], Any]], wait: Callable[[Any], None], repeats: int
) -> tuple[list[float], list[Any]]:
    """Median seconds of each call, interleaved; and what the first, uncounted calls answered."""
    answers = [call() for call in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            wait(call())
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds], answers


def measure(device: Device, kind: str, batch: int, n: int, repeats: int) -> list[dict[str, Any]]:
    """Times and agreement for one size, for singular values and (dense systems) a cut to n/4."""
    plain = drawn(kind, batch, n)
    system = moved(plain, device)

    def by_host() -> Any:
        return device.put(hankel_singular_values(system.to_host()))

    calls = {"values": (lambda: singular_values(system), by_host)}
    if isinstance(plain, StateSpace):
        order = n // 4
        calls["truncation"] = (
            lambda: NativeBalancing(system).truncate(FixedOrder(order)).system.A,
            lambda: device.put(balanced_truncation(system.to_host(), order).system.A),
        )
    results = []
    for name, pair in calls.items():
        times, answers = medians(list(pair), device.wait, repeats)
        result = {"library": device.library, "device": device.name, "what": name, "kind": kind}
        result |= {"batch": batch, "n": n, "native_s": times[0], "host_s": times[1]}
        if name == "values":
            native, host = (to_host(x) for x in answers)
            result["difference"] = float(np.abs(native - host).max() / host.max())
        results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    sizes = (
        [(1, 16), (8, 8)] if options.quick else [(1, 128), (1, 512), (1, 1024), (64, 32), (64, 128)]
    )
    repeats = 1 if options.quick else options.repeats
    results = []
    found = list(devices(options.device))
    if not found:
        print("No GPU found by CuPy, torch or JAX: nothing was measured. Try --device cpu.")
    for device in found:
        print(f"{device.library} on {device.name}")
        print(
            f"  {'what':<11}{'kind':<12}{'batch':>6}{'n':>6}{'native':>11}{'host':>11}  difference"
        )
        for kind in ("discrete", "continuous", "diagonal"):
            for batch, n in sizes:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # a move that is not meant to be timed
                    lines = measure(device, kind, batch, n, repeats)
                for line in lines:
                    difference = f"{line['difference']:.1e}" if "difference" in line else ""
                    print(
                        f"  {line['what']:<11}{kind:<12}{batch:>6}{n:>6}"
                        f"{line['native_s']:>10.4f}s{line['host_s']:>10.4f}s  {difference}"
                    )
                results += lines
    if options.output:
        options.output.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
