"""Lines of code in each part of the package, without docstrings, comments and blank lines.

python benchmarks/lines.py                       the package as it is here
python benchmarks/lines.py --against f3f7901     next to a revision of the repository
"""

import argparse
import ast
import collections
import io
import pathlib
import subprocess
import tokenize

ROOT = pathlib.Path(__file__).parents[1]

PACKAGE = "ssmreduce"

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines_of_code(source):
    """How many lines of a module hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            lines -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return len(lines)


def modules_here():
    """Name and source of each module in the working tree."""
    for path in (ROOT / PACKAGE).rglob("*.py"):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def modules_at(revision):
    """Name and source of each module at a revision."""
    names = _git("ls-tree", "-r", "--name-only", revision, f"{PACKAGE}/").split()
    for name in names:
        if name.endswith(".py"):
            yield name, _git("show", f"{revision}:{name}")


def _git(*arguments):
    run = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return run.stdout


def by_part(modules):
    """Lines of code by folder of the package."""
    parts = collections.Counter()
    for name, source in modules:
        _, *folder, _ = name.split("/")
        parts[folder[0] if folder else "top level"] += lines_of_code(source)
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="REVISION", help="a revision to count, too")
    options = parser.parse_args()
    counts = {"here": by_part(modules_here())}
    if options.against:
        counts = {options.against: by_part(modules_at(options.against)), **counts}
    print(f"{'':12s}", *(f"{head:>10s}" for head in counts))
    for part in sorted(set().union(*counts.values())):
        print(f"{part:12s}", *(f"{parts[part]:10,d}" for parts in counts.values()))
    print(f"{'total':12s}", *(f"{parts.total():10,d}" for parts in counts.values()))


if __name__ == "__main__":
    main()
