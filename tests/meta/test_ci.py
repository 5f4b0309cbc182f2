"""What runs by default, what .ci/run adds, and that both name what there is."""

from __future__ import annotations

import os
import re
import subprocess
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


@pytest.mark.parametrize(
    ("own", "flags", "others"),
    [
        ("Haswell", "pni sse4_2 avx avx2 fma", ["Nehalem", "Sandybridge"]),
        ("Zen", "pni sse4_2 avx avx2 fma avx512f", ["Nehalem", "Sandybridge"]),
        (
            "Haswell",
            "pni sse4_2 avx avx2 fma avx512f avx512bw avx512dq avx512vl",
            ["Nehalem", "SkylakeX"],
        ),
        ("SkylakeX", "pni sse4_2 avx avx2 fma avx512f", ["Nehalem", "Haswell"]),
        ("Nehalem", "pni sse4_2 avx", ["Sandybridge"]),
    ],
)
def test_kernels_of_two_other_processors_are_tried(
    tmp_path: Path, own: str, flags: str, others: list[str]
) -> None:
    for name, says in (("python", f'[[ $1 != -c ]] || echo "{own}"'), ("sed", f"echo {flags}")):
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{says}\n", encoding="utf-8")
        program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPTS[1]], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert re.findall(r"^(\w+): \w+$", done.stdout, re.M) == others


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_name_what_there_is(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    named = re.findall(r"(?:python |--ignore=|^ +)((?:benchmarks|tests|\.ci)/[\w./]+)", text, re.M)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
