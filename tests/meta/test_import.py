"""Importing the package loads no framework."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import sys
import ssmreduce
import ssmreduce.responses, ssmreduce.norms
frameworks = {"jax", "jaxlib", "equinox", "optax", "torch", "cupy", "matplotlib", "control",
              "lightning", "transformers", "tensorboard", "slycot", "sklearn", "rich",
              "hypothesis", "mpmath", "ssmreduce.testing"}
print(sorted(frameworks & set(sys.modules)))
"""

SCIPY = """
import sys
import numpy, scipy, scipy.linalg
before = set(sys.modules)
import ssmreduce
print(sorted(name for name in set(sys.modules) - before if name.startswith("scipy.")))
"""

CORE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "equinox", "optax", "torch", "cupy", "matplotlib"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import ssmreduce
system = ssmreduce.DiagonalStateSpace(
    [0.9, 0.5j, 0.1], [[1.0]] * 3, [[1.0] * 3], time=ssmreduce.Discrete(), real_output=True
)
print(ssmreduce.balanced_truncation(system, 2).order)
try:
    ssmreduce.reduce_model(object(), 2)
except ssmreduce.errors.UnsupportedLayerError as error:
    print(error)
"""


ASSERTIONS = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hypothesis", "jax", "torch", "cupy"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import ssmreduce, ssmreduce.testing
system = ssmreduce.DiagonalStateSpace([0.9], [[1.0]], [[1.0]], time=ssmreduce.Discrete())
ssmreduce.testing.assert_systems_close(system, system.to_dense())
try:
    ssmreduce.testing.state_spaces()
except ssmreduce.errors.MissingBackendError as error:
    print(error)
"""


def run(code: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()


def test_no_framework_is_loaded() -> None:
    (loaded,) = run(PROBE)
    assert loaded == "[]"


def test_of_scipy_linear_algebra_alone_is_loaded() -> None:
    # scipy.stats took half a second, optimize 0.3 s and sparse 0.1 s: more than the package itself.
    (loaded,) = run(SCIPY)
    assert loaded == "[]"


def test_the_core_works_without_any_framework() -> None:
    order, message = run(CORE)
    assert order == "2"
    assert "pip install 'ssmreduce[torch]' or 'ssmreduce[jax]'" in message


def test_assertions_need_no_hypothesis_and_strategies_say_so() -> None:
    (message,) = run(ASSERTIONS)
    assert message.startswith("hypothesis is not installed")
    assert "pip install 'ssmreduce[testing]'" in message


ROOT = Path(__file__).parents[2]
SCRIPTS = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/examples/*.py")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_import_what_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("ssmreduce"):
            continue
        package = importlib.import_module(str(node.module))
        modules = {each.stem for each in Path(str(package.__file__)).parent.glob("*")}
        for name in node.names:
            assert hasattr(package, name.name) or name.name in modules, name.name
