"""`adjoint` is the only transpose in numeric modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ssmreduce

ROOT = Path(ssmreduce.__file__).parent
SKIPPED = {"demo", "plotting", "cli.py"}
MODULES = [p for p in sorted(ROOT.rglob("*.py")) if p.relative_to(ROOT).parts[0] not in SKIPPED]
FORBIDDEN = {"T", "mT", "transpose", "matrix_transpose", "permute_dims"}


def transposes(source: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_bare_transpose(path: Path) -> None:
    assert transposes(path.read_text(encoding="utf-8")) == []


def test_the_search_finds_them() -> None:
    assert transposes("x = A.T @ B\ny = np.transpose(A)") == [1, 2]
    assert transposes("T = adjoint(A)") == []
