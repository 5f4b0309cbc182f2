"""Imports point only downwards on the map of the package."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import ssmreduce

ROOT = Path(ssmreduce.__file__).parent

LEVELS = [
    {
        "errors",
        "_array_libraries",
        "_array_routes",
        "time_domain",
        "_checks",
        "_display",
        "_files",
        "_lapack",
        "_schur",
        "_state_units",
        "_pole_rounding",
        "_poles",
        "_threads",
        "_workers",
    },
    {"systems"},
    {"devices"},
    {"equations", "responses"},
    {"derivatives"},
    {"gramians"},
    {"hankel", "norms", "regularizers"},
    {"plotting"},
    {"reduction"},
    {"layers"},
    {"adapters"},
    {"frameworks"},
    {"models"},
    {"training"},
    {"testing", "cli", "demo", "__init__", "__main__"},
]
"""Top-level names, foundations first; a module imports from its own level and those before it."""

ALLOWED = {
    # Whatever sends arrays there lies above.
    "devices": LEVELS[0] | {"systems", "devices"},
    # Solvers work on arrays alone, and on the coordinates of real systems.
    "equations": {
        "errors",
        "_array_libraries",
        "_array_routes",
        "time_domain",
        "_checks",
        "_lapack",
        "_schur",
        "_state_units",
        "_pole_rounding",
        "_poles",
        "_workers",
        "systems",
        "devices",
        "equations",
    },
}

FRAMEWORKS = {
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "torch",
    "lightning",
    "transformers",
    "tensorboard",
    "cupy",
    "matplotlib",
    "control",
    "hypothesis",
    "slycot",
    "pymor",
}

FRAMEWORK_HOMES = {
    "frameworks/current.py",
    "frameworks/pytrees.py",
    "frameworks/pytree_callbacks.py",
    "frameworks/pytree_matching.py",
    "frameworks/pytree_recording.py",
    "frameworks/pytree_stand_ins.py",
    "frameworks/torch.py",
    "frameworks/torch_config.py",
    "frameworks/torch_constant.py",
    "frameworks/torch_copies.py",
    "frameworks/torch_distributed.py",
    "frameworks/torch_fsdp.py",
    "frameworks/torch_snapshot.py",
    "frameworks/torch_arrays.py",
    "frameworks/torch_matching.py",
    "frameworks/torch_optimizer.py",
    "frameworks/torch_recording.py",
    "frameworks/torch_sharing.py",
    "frameworks/torch_attributes.py",
    "frameworks/torch_saved.py",
    "adapters/control.py",
    "adapters/scipy_signal.py",
    "adapters/pymor.py",
    "derivatives/jax.py",
    "derivatives/torch.py",
    "training/lightning.py",
    "training/callbacks.py",
    "training/transformers.py",
    "plotting/notebook.py",
    # For type checkers alone.
    "plotting/axes.py",
    "plotting/decay.py",
    "plotting/impulse.py",
    "plotting/layers.py",
    "plotting/runs.py",
    "plotting/systems.py",
    "testing/random_systems.py",
    "testing/strategies.py",
}
"""Where a framework may be imported at the top of a module; the demo brings its own."""

MODULES = sorted(ROOT.rglob("*.py"))


def level_of(name: str) -> int:
    for level, names in enumerate(LEVELS):
        if name in names:
            return level
    raise AssertionError(f"ssmreduce.{name} is not on the map: add it to LEVELS")


def top_name(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> list[tuple[str, int]]:
    """Absolute names of imported modules, with line numbers."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "ssmreduce":
                found += [(f"ssmreduce.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((node.module, node.lineno))
    return found


def test_the_walk_sees_the_package() -> None:
    names = {top_name(path) for path in MODULES}
    assert {"errors", "systems", "equations", "gramians", "hankel", "models", "training"} <= names
    tree = ast.parse((ROOT / "hankel.py").read_text(encoding="utf-8"))
    assert "ssmreduce.gramians.factors" in {name for name, _ in imported(tree, ROOT)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = top_name(path)
    for name, line in imported(ast.parse(path.read_text(encoding="utf-8")), path):
        parts = name.split(".")
        if parts[0] != "ssmreduce" or own in {"__init__", "cli", "demo", "__main__"}:
            continue
        if len(parts) == 1:
            raise AssertionError(f"{path}:{line} imports the package from inside it")
        target = parts[1]
        assert level_of(target) <= level_of(own), f"{path}:{line}: {own} imports {target}"
        if own in ALLOWED:
            assert target in ALLOWED[own], f"{path}:{line}: {own} imports {target}"


def test_the_list_for_contributors_has_every_package_from_the_bottom_up() -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.rst").read_text(encoding="utf-8")
    block = text.partition("Where things are")[2].partition("code-block:: text")[2]
    rows = [
        line.strip().split("  ")[0] for line in block.partition("\nEvery module")[0].split("\n")
    ]
    listed = [name.strip(" /") for row in rows if row for name in row.split(",")]
    assert sorted(listed) == sorted(set().union(*LEVELS) - {"__init__", "__main__"})
    levels = [level_of(name) for name in listed]
    assert levels == sorted(levels)


def at_run_time(tree: ast.Module) -> ast.Module:
    """Leave out the body of ``if TYPE_CHECKING:``: annotations may name each other."""
    kept = [
        x for x in tree.body if not (isinstance(x, ast.If) and "TYPE_CHECKING" in ast.dump(x.test))
    ]
    return ast.Module(kept, [])


def test_modules_import_one_another_in_no_circle() -> None:
    names = {
        ".".join(("ssmreduce", *p.relative_to(ROOT).with_suffix("").parts)): p for p in MODULES
    }
    graph = {}
    for name, path in names.items():
        tree = at_run_time(ast.parse(path.read_text(encoding="utf-8")))
        found = {target for target, _ in imported(tree, path)}
        found |= {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        graph[name] = found & names.keys()
    assert len(graph["ssmreduce.hankel"]) > 5
    # Options are checked against the list of all layers, which take options: imported when called.
    graph["ssmreduce.layers.options"].remove("ssmreduce.layers.known")
    graphlib.TopologicalSorter(graph).prepare()


def test_nothing_below_imports_the_command_line_the_demo_or_the_test_helpers() -> None:
    for path in MODULES:
        if top_name(path) in {"cli", "demo", "testing", "__main__"}:
            continue
        names = [name for name, _ in imported(ast.parse(path.read_text(encoding="utf-8")), path)]
        assert not [
            n
            for n in names
            if n.startswith(("ssmreduce.demo", "ssmreduce.cli", "ssmreduce.testing"))
        ], path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_frameworks_are_imported_in_their_adapters_only(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    if relative in FRAMEWORK_HOMES or top_name(path) in {"demo", "cli"}:
        return
    names = {
        name.split(".")[0]
        for name, _ in imported(ast.parse(path.read_text(encoding="utf-8")), path)
    }
    assert not names & FRAMEWORKS
