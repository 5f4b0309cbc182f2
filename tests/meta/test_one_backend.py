"""One file knows the names of array libraries; the rest of the core asks it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ssmreduce

ROOT = Path(ssmreduce.__file__).parent
HOME = "_array_libraries.py"
OUTSIDE = {
    "adapters",
    "cli.py",
    "demo",
    "derivatives",
    "frameworks",
    "layers",
    "models",
    "regularizers.py",
    "systems/pytree.py",
    "testing",
    "training",
}
"""Not the core: these get at objects and derivatives of frameworks, which are more than arrays."""

LIBRARIES = {"torch", "jax", "cupy", "jaxlib", "array_api_strict"}
CORE = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not {path.relative_to(ROOT).parts[0], path.relative_to(ROOT).as_posix()} & {*OUTSIDE, HOME}
]


def named(source: str) -> list[int]:
    """Lines that name a library in code: as a string, or in a question like `is_torch_array`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in LIBRARIES:
            found.append(node.lineno)
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            asks = name in {f"is_{library}_array" for library in LIBRARIES}
            if name in LIBRARIES or asks:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_names_no_library(path: Path) -> None:
    assert named(path.read_text(encoding="utf-8")) == []


def test_the_search_finds_them() -> None:
    assert named((ROOT / HOME).read_text(encoding="utf-8"))
    assert named('import sys\ntorch = sys.modules["torch"]') == [2, 2]
    assert named("a.is_jax_array(x)") == [1]
