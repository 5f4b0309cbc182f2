"""What runs by default, what .ci/run adds, and that both name what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [ROOT / ".ci" / name for name in ("run", "kernels")]
TESTS_OF_README = re.compile(r"^ +.*&& pytest -n auto$", re.MULTILINE)


def test_slow_tests_are_left_out_unless_asked_for() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    added = options["tool"]["pytest"]["ini_options"]["addopts"]
    assert added[added.index("-m") + 1] == "not slow"
    assert "pytest -n auto -m slow" in SCRIPTS[0].read_text(encoding="utf-8")


def test_the_readme_has_one_test_command() -> None:
    assert len(TESTS_OF_README.findall((ROOT / "README.rst").read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_name_what_there_is(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    named = re.findall(r"(?:python |--ignore=|^ +)((?:benchmarks|tests|\.ci)/[\w./]+)", text, re.M)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
