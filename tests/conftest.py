"""Settings and fixtures shared by all tests; counts of property examples and of what was skipped.

Profiles: `dev` (the default: few examples) and `long` (``pytest tests/laws --hypothesis-profile=long``,
more than 100,000 examples in all). `dev` is derandomised: a failure seen once is seen by everybody,
and a run never depends on luck. `long` draws from a fixed seed, another one with
``--hypothesis-seed``. HYPOTHESIS_PROFILE names a profile too.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from pathlib import Path

# Before NumPy is loaded: workers of pytest-xdist share the cores, one BLAS thread for each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Before JAX is loaded: what one process has compiled serves the others, and the next run. With a limit
# of its size the folder is locked while it is written to.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "jax"),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**28),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

from collections.abc import Callable, Iterator
from typing import Any

import everywhere
import exceptions
import libraries
import numpy as np
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.errors import UnsatisfiedAssumption

from ssmreduce import _array_routes
from ssmreduce.equations import hammarling, triangular

LONG_SEED = 20240

_COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("dev", max_examples=8, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=3000, derandomize=False, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


class ExampleCount:
    """How many examples ran to their end, counted where Hypothesis calls the body of a test."""

    def __init__(self) -> None:
        self.examples = 0
        self.laws = 0
        self.left = -1
        """How many more examples of the test that runs are to be looked at; no limit where negative."""

    def count(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                return None
            try:
                result = inner(*args, **kwargs)
            except UnsatisfiedAssumption:
                raise
            except Exception:
                self.left = -1  # Hypothesis looks for a smaller example that fails too
                raise
            self.examples += 1
            self.left -= 1
            return result

        return counted


_COUNT = ExampleCount()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the examples of every property test, and give the long profile its fixed seed."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("_stage") in libraries.ELSEWHERE:
            # What has no version for a device is moved, as the pages say; how is tested elsewhere.
            item.add_marker(
                pytest.mark.filterwarnings("ignore::ssmreduce.errors.HostTransferWarning")
            )
    fixed = settings.get_current_profile_name() == "long"
    fixed = fixed and config.getoption("--hypothesis-seed", None) is None
    seen: set[int] = set()
    for item in items:
        function = getattr(item, "function", None)
        handle = getattr(function, "hypothesis", None)
        if handle is None:
            continue
        _COUNT.laws += 1
        if id(handle) in seen:
            continue
        seen.add(id(handle))
        # `inner_test` is the hook that Hypothesis documents for plugins.
        handle.inner_test = _COUNT.count(handle.inner_test)
        if fixed:
            seed(LONG_SEED)(function)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the count of a worker to the process that prints the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["property_examples"] = _COUNT.examples


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up the workers of pytest-xdist."""
    _COUNT.examples += getattr(node, "workeroutput", {}).get("property_examples", 0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many tests were skipped for each reason, and how many examples were run in all."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"SKIPPED [{count}] {reason}")
    if _COUNT.examples:
        profile = settings.get_current_profile_name()
        laws = f"{_COUNT.laws} property tests, " if _COUNT.laws else ""
        terminalreporter.write_line(f"{laws}{_COUNT.examples} examples (profile {profile})")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with the mark `every_library` in all of them."""
    node = metafunc.definition
    if node.get_closest_marker("every_library"):
        parameters = libraries.parameters(exceptions.libraries_of(node.path, node.originalname))
        metafunc.parametrize("_stage", parameters, indirect=True)


@pytest.fixture(autouse=True)
def _stage(request: pytest.FixtureRequest) -> Iterator[everywhere.Stage | None]:
    """What stands between a test and the package, in other libraries than NumPy."""
    name = getattr(request, "param", "numpy")
    if name == "numpy":
        yield None
        return
    with libraries.opened(name) as library, everywhere.staged_for(request.module, library) as stage:
        _COUNT.left = everywhere.EXAMPLES
        yield stage
        _COUNT.left = -1


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Fail a test that was to run in a library and called nothing there."""
    result = yield
    stage = pyfuncitem.funcargs.get("_stage")
    assert stage is None or stage.calls, (
        "nothing was called in the library; see tests/exceptions.py"
    )
    return result


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """Pictures are pyplot's where python-control, say, has loaded it, and stay open."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")


@pytest.fixture
def quiet_transformers() -> Iterator[None]:
    """Seeded, on one thread of torch, without notices of transformers."""
    import torch
    from transformers.utils import logging

    torch.manual_seed(3)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # arrays are tiny, and others wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision in JAX for the length of one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the dtype that the weights of a test have, with JAX set up for it."""
    import jax

    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(params=["compiled", "python"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The elimination of small systems, as it is compiled and as it is without a C compiler."""
    if request.param == "python":
        monkeypatch.setattr(hammarling, "eliminate", None)
        monkeypatch.setattr(triangular, "stein", None)
    elif hammarling.eliminate is None:
        pytest.skip("installed without a C compiler")
    return str(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets that lie beside the repository; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SSMREDUCE_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no data sets at {folder}: put them beside the repository or set SSMREDUCE_SHARED"
        )
    return folder


@pytest.fixture(params=libraries.parameters(libraries.ON_HOST + libraries.ELSEWHERE))
def library(request: pytest.FixtureRequest) -> Iterator[libraries.Library]:
    """Every array library on every device there is."""
    with libraries.opened(request.param) as opened:
        yield opened


@pytest.fixture(params=libraries.parameters(["strict", "torch", *libraries.ELSEWHERE]))
def native(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[libraries.Library]:
    """A library whose arrays stay where they are: those of the host are taken for ones of a device.

    A move to the host would be a warning, and so an error. JAX, which compiles every step of a shape when
    it first meets it, is tested apart.
    """
    with libraries.opened(request.param) as opened:
        monkeypatch.setattr(_array_routes, "in_host_memory", lambda array: False)
        yield opened
