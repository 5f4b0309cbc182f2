"""No function is too long to read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ssmreduce

MOST_LINES = 60
"""Lines of a function, its docstring left out."""


def lengths() -> Iterator[tuple[str, int]]:
    for path in sorted(Path(ssmreduce.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                lines -= (text.end_lineno or 0) - text.lineno + 1
            yield f"{path.name}: {node.name}", lines


def test_functions_are_short() -> None:
    found = list(lengths())
    assert len(found) > 1000
    assert [each for each in found if each[1] > MOST_LINES] == []
